//! The least of a vhost-user front-end: enough to hand rings to any back-end and get out of the way.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
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
const SET_VRING_ENABLE: u32 = 18;
const VERSION: u32 = 1;
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
const PROTOCOL_F_MQ: u64 = 1;

/// A connection whose rings run. Dropping it disconnects.
pub(crate) struct Frontend {
    socket: UnixStream,
    rings: u32,
    /// Kept open as long as the connection.
    _events: Vec<OwnedFd>,
}

impl Frontend {
    /// Connects to the back-end at `path`, waiting up to ten seconds for it to listen, and offers
    /// `features`; the error names those it does not have.
    pub(crate) fn connect(path: &Path, features: u64) -> io::Result<Frontend> {
        let since = Instant::now();
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(_) if since.elapsed() < Duration::from_secs(10) => {
                    std::thread::sleep(Duration::from_millis(50))
                }
                Err(e) => return Err(e),
            }
        };
        let mut this = Frontend { socket, rings: 0, _events: Vec::new() };
        this.send(SET_OWNER, &[], &[])?;
        let offered = this.ask(GET_FEATURES, &[])?;
        let missing = features & !offered;
        if missing != 0 {
            return Err(io::Error::other(format!(
                "{}: back-end lacks features {missing:#x}",
                path.display()
            )));
        }
        if offered & F_PROTOCOL_FEATURES != 0 {
            let protocol = this.ask(GET_PROTOCOL_FEATURES, &[])?;
            this.send(SET_PROTOCOL_FEATURES, &[protocol & PROTOCOL_F_MQ], &[])?;
        }
        this.send(SET_FEATURES, &[features | offered & F_PROTOCOL_FEATURES], &[])?;
        Ok(this)
    }

    /// Sends the memory and starts the rings, in the order of their indices: receive, transmit.
    pub(crate) fn start(
        &mut self,
        memory: BorrowedFd<'_>,
        len: u64,
        user: u64,
        rings: &[RingLayout],
    ) -> io::Result<()> {
        self.send(SET_MEM_TABLE, &[1, 0, len, user, 0], &[memory])?;
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
            rustix::io::write(&kick, &1u64.to_ne_bytes())?;
            self._events.extend([kick, call]);
        }
        self.rings = rings.len() as u32;
        for i in 0..self.rings {
            self.send(SET_VRING_ENABLE, &[u64::from(i) | 1 << 32], &[])?;
        }
        Ok(())
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

fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}
