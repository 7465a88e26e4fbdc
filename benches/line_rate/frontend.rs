//! The least of a vhost-user front-end: enough to hand rings to any back-end and get out of the way.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pmd::vring::RingLayout;
use rustix::event::EventfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

// Message ids of the vhost-user specification, "Front-end message types".
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const PROTOCOL_F_MQ: u64 = 1;

/// How long a back-end may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket of a back-end, or one of ours that a back-end connects to; then it is removed in the end.
pub(crate) struct Door {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Door {
    /// The back-end listens at `path`; with `listen` it is the other way about.
    pub(crate) fn open(path: &Path, listen: bool) -> io::Result<Door> {
        let listener = if listen { Some(UnixListener::bind(path)?) } else { None };
        listener.as_ref().map_or(Ok(()), |listener| listener.set_nonblocking(true))?;
        Ok(Door { path: path.to_owned(), listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, waited for.
    fn connect(&self) -> io::Result<UnixStream> {
        let since = Instant::now();
        loop {
            let tried = match &self.listener {
                Some(listener) => listener.accept().map(|(socket, _)| socket),
                None => UnixStream::connect(&self.path),
            };
            match tried {
                Ok(socket) => {
                    socket.set_nonblocking(false)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    return Ok(socket);
                }
                Err(_) if since.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A connection whose rings run. Dropping it disconnects.
pub(crate) struct Frontend {
    socket: UnixStream,
    rings: u32,
    /// Kept open as long as the connection.
    _calls: Vec<OwnedFd>,
}

impl Frontend {
    /// Connects, waiting up to ten seconds for the back-end, and offers `features`, with what it has of
    /// `optional`, for `pairs` queue pairs. The error names what it does not have.
    pub(crate) fn connect(door: &Door, features: u64, optional: u64, pairs: u16) -> io::Result<Frontend> {
        let mut this = Frontend { socket: door.connect()?, rings: 0, _calls: Vec::new() };
        this.send(SET_OWNER, &[], &[])?;
        let offered = this.ask(GET_FEATURES, &[])?;
        let missing = features & !offered;
        if missing != 0 {
            return Err(io::Error::other(format!("back-end lacks features {missing:#x}")));
        }
        let mut most = 1;
        if offered & F_PROTOCOL_FEATURES != 0 {
            let protocol = this.ask(GET_PROTOCOL_FEATURES, &[])? & PROTOCOL_F_MQ;
            this.send(SET_PROTOCOL_FEATURES, &[protocol], &[])?;
            if protocol != 0 {
                most = this.ask(GET_QUEUE_NUM, &[])?;
            }
        }
        if u64::from(pairs) > most {
            return Err(io::Error::other(format!("back-end has {most} queue pairs, not {pairs}")));
        }
        this.send(SET_FEATURES, &[features | offered & (optional | F_PROTOCOL_FEATURES)], &[])?;
        Ok(this)
    }

    /// Sends the memory and starts the rings, in the order of their indices: receive, transmit. Returns
    /// the descriptors by which they are kicked, each kicked once.
    pub(crate) fn start(
        &mut self,
        memory: BorrowedFd<'_>,
        len: u64,
        user: u64,
        rings: &[RingLayout],
    ) -> io::Result<Vec<OwnedFd>> {
        self.send(SET_MEM_TABLE, &[1, 0, len, user, 0], &[memory])?;
        let mut kicks = Vec::new();
        for (i, ring) in rings.iter().enumerate() {
            let i = i as u64;
            let (kick, call) = (event()?, event()?);
            self.send(SET_VRING_NUM, &[i | u64::from(ring.size) << 32], &[])?;
            self.send(SET_VRING_BASE, &[i | u64::from(ring.base) << 32], &[])?;
            self.send(
                SET_VRING_ADDR,
                &[i, user + ring.desc, user + ring.device, user + ring.driver, 0],
                &[],
            )?;
            self.send(SET_VRING_CALL, &[i], &[call.as_fd()])?;
            self.send(SET_VRING_KICK, &[i], &[kick.as_fd()])?;
            ring_bell(&kick)?;
            kicks.push(kick);
            self._calls.push(call);
        }
        self.rings = rings.len() as u32;
        for i in 0..self.rings {
            self.send(SET_VRING_ENABLE, &[u64::from(i) | 1 << 32], &[])?;
        }
        Ok(kicks)
    }

    /// Stops all rings, as a driver does that goes away in order.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        for i in 0..self.rings {
            self.ask(GET_VRING_BASE, &[u64::from(i)])?;
        }
        Ok(())
    }

    fn send(&mut self, id: u32, body: &[u64], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for word in [id, VERSION, 8 * body.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in body {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends a question and returns the last 8 bytes of the answer.
    fn ask(&mut self, id: u32, body: &[u64]) -> io::Result<u64> {
        self.send(id, body, &[])?;
        let mut header = [0u8; 12];
        self.socket.read_exact(&mut header)?;
        let mut body = vec![0u8; u32::from_le_bytes(header[8..].try_into().expect("4 bytes")) as usize];
        self.socket.read_exact(&mut body)?;
        let tail = body.last_chunk::<8>().ok_or_else(|| io::Error::other("the answer is too short"))?;
        Ok(u64::from_le_bytes(*tail))
    }
}

/// Kicks, or calls.
pub(crate) fn ring_bell(bell: &OwnedFd) -> io::Result<()> {
    rustix::io::write(bell, &1u64.to_ne_bytes())?;
    Ok(())
}

fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}
