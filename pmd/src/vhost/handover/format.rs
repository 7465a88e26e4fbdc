//! What is said between the processes, message by message. A port is a `PORT`, and for its front-end a `WIRE`
//! and what belongs to it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::backend::{Ask, MAX_UNANSWERED};
use super::super::endpoint::Socket;
use super::super::legacy::{Legacy, Talk};
use super::super::message::{Fds, Frame};
use super::super::wire::Half;
use super::HandoverError;

/// Ids of messages; those of vhost-user are below.
#[rustfmt::skip]
pub(super) mod id {
    /// Versions that the sender understands: the first and the last.
    pub(in super::super) const HELLO: u32 = 0x100;
    /// A port that the sender has.
    pub(in super::super) const NAMED: u32 = 0x101;
    /// The version that follows, and the socket at which the next process is waited for.
    pub(in super::super) const WILL: u32 = 0x102;
    /// A port, and the socket that listens for it.
    pub(in super::super) const PORT: u32 = 0x103;
    /// A connection.
    pub(in super::super) const WIRE: u32 = 0x104;
    /// The channel for requests of the device; `RECEIVED` and `UNSENT` after it are of the channel.
    pub(in super::super) const CHANNEL: u32 = 0x105;
    /// Bytes, and descriptors, that were received of a message.
    pub(in super::super) const RECEIVED: u32 = 0x106;
    /// Bytes, and descriptors, that were not sent yet.
    pub(in super::super) const UNSENT: u32 = 0x107;
    /// A request that was sent and is not answered.
    pub(in super::super) const ASKED: u32 = 0x108;
    /// State of the device.
    pub(in super::super) const DEVICE: u32 = 0x109;
    /// The end of ports.
    pub(in super::super) const DONE: u32 = 0x10a;
    /// The successor can go on.
    pub(in super::super) const READY: u32 = 0x10b;
    /// It is to go on.
    pub(in super::super) const YOURS: u32 = 0x10c;
    /// Nothing comes of it, and why.
    pub(in super::super) const REFUSED: u32 = 0x10d;
}

/// Ports of one process; messages of one port, more than 509 regions and 256 rings make; bytes of a state, or of
/// what waits in a connection.
pub(super) const MAX_PORTS: usize = 4096;
const MAX_SAID: usize = 8192;
const MAX_BYTES: usize = 1 << 20;
/// Bytes of one piece of those.
const PIECE: usize = 4096;
/// Bytes of a reason.
const MAX_WHY: usize = 1024;

/// What precedes the path of a port.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    /// 1: it listens; 0: it connects.
    listens: u32,
    pairs: u16,
    control: u16,
}

pub(super) fn bare(id: u32, payload: &[u8]) -> Frame {
    Frame::of(id, payload, Fds::default())
}

fn nonsense<T>(what: impl Into<String>) -> Result<T, HandoverError> {
    Err(HandoverError::Nonsense(what.into()))
}

/// As much of a reason as fits.
pub(super) fn clip(why: &str) -> &[u8] {
    &why.as_bytes()[..why.len().min(MAX_WHY)]
}

/// A reason that came, fit for a terminal.
pub(super) fn text(payload: &[u8]) -> String {
    let payload = &payload[..payload.len().min(MAX_WHY)];
    String::from_utf8_lossy(payload).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn hello((first, last): (u32, u32)) -> [u8; 8] {
    (u64::from(last) << 32 | u64::from(first)).to_ne_bytes()
}

pub(super) fn versions(payload: &[u8]) -> Result<(u32, u32), HandoverError> {
    let Ok(bytes) = payload.try_into() else { return nonsense("a greeting without versions") };
    let both = u64::from_ne_bytes(bytes);
    Ok((both as u32, (both >> 32) as u32))
}

pub(super) fn version(payload: &[u8]) -> Result<u32, HandoverError> {
    let Ok(bytes) = payload.try_into() else { return nonsense("no version") };
    Ok(u32::from_ne_bytes(bytes))
}

pub(super) fn of_socket(socket: &Socket) -> Vec<u8> {
    head(socket, 0, 0)
}

fn head(socket: &Socket, pairs: u16, control: u16) -> Vec<u8> {
    let listens = matches!(socket, Socket::Listen(_)).into();
    [Head { listens, pairs, control }.as_bytes(), socket.path().as_os_str().as_bytes()].concat()
}

pub(super) fn socket(payload: &[u8]) -> Result<Socket, HandoverError> {
    Ok(described(payload)?.0)
}

fn described(payload: &[u8]) -> Result<(Socket, Head), HandoverError> {
    let Ok((head, path)) = Head::read_from_prefix(payload) else { return nonsense("a port without a path") };
    if path.is_empty() || path.contains(&0) {
        return nonsense("a port without a path");
    }
    let path = PathBuf::from(OsStr::from_bytes(path));
    match head.listens {
        0 => Ok((Socket::Connect(path), head)),
        1 => Ok((Socket::Listen(path), head)),
        other => nonsense(format!("{}: neither listens nor connects ({other})", path.display())),
    }
}

/// The one descriptor of a message.
pub(super) fn one_fd(frame: Frame) -> Result<OwnedFd, HandoverError> {
    let (id, n) = (frame.header.request, frame.fds.len());
    match frame.fds.into_iter().next() {
        Some(fd) if n == 1 => Ok(fd),
        _ => nonsense(format!("message {id:#x} with {n} descriptors, not 1")),
    }
}

/// A port, in messages.
pub(super) fn port(port: Legacy) -> Vec<Frame> {
    let Legacy { socket, pairs, control, listener, talk } = port;
    let mut out = vec![Frame::of(id::PORT, &head(&socket, pairs, control), listener.into_iter().collect())];
    let Some(Talk { wire, channel, asked, said, device }) = talk else { return out };
    half(id::WIRE, wire, &mut out);
    out.extend(said);
    out.extend(device.chunks(PIECE).map(|piece| bare(id::DEVICE, piece)));
    if let Some(channel) = channel {
        half(id::CHANNEL, channel, &mut out);
    }
    out.extend(asked.into_iter().map(|ask| bare(id::ASKED, &ask.encode(0))));
    out
}

fn half(what: u32, half: Half, out: &mut Vec<Frame>) {
    let Half { socket, received, fds, unsent, unsent_fds } = half;
    out.push(Frame::of(what, &[], Fds::from_iter([socket])));
    for (what, bytes, fds) in [(id::RECEIVED, received, fds), (id::UNSENT, unsent, unsent_fds)] {
        // With the first piece, as they came or will go.
        let mut fds = Some(fds);
        out.extend(bytes.chunks(PIECE).map(|piece| Frame::of(what, piece, fds.take().unwrap_or_default())));
    }
}

/// Puts ports together again.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) ports: Vec<Legacy>,
}

impl Reader {
    pub(super) fn take(&mut self, frame: Frame) -> Result<(), HandoverError> {
        let what = frame.header.request;
        if what == id::PORT {
            return self.port(frame);
        }
        let Some(port) = self.ports.last_mut() else {
            return nonsense(format!("message {what:#x} before any port"));
        };
        if what == id::WIRE {
            let wire = fresh(one_fd(frame)?);
            let talk = Talk { wire, channel: None, asked: Vec::new(), said: Vec::new(), device: Vec::new() };
            return match port.talk.replace(talk) {
                None => Ok(()),
                Some(_) => nonsense("two connections of one port"),
            };
        }
        let Some(talk) = &mut port.talk else {
            return nonsense(format!("message {what:#x} before any connection"));
        };
        match what {
            id::CHANNEL if talk.channel.is_none() => talk.channel = Some(fresh(one_fd(frame)?)),
            id::RECEIVED => {
                let half = talk.channel.as_mut().unwrap_or(&mut talk.wire);
                append(&mut half.received, &frame.payload)?;
                frame.fds.into_iter().for_each(|fd| half.fds.push(fd));
            }
            id::UNSENT => {
                let half = talk.channel.as_mut().unwrap_or(&mut talk.wire);
                append(&mut half.unsent, &frame.payload)?;
                frame.fds.into_iter().for_each(|fd| half.unsent_fds.push(fd));
            }
            id::ASKED if talk.asked.len() < MAX_UNANSWERED => match Ask::decode(&frame.payload) {
                Some(ask) => talk.asked.push(ask),
                None => return nonsense("a request of the device that is none"),
            },
            id::DEVICE => append(&mut talk.device, &frame.payload)?,
            said if said < id::HELLO && talk.said.len() < MAX_SAID => talk.said.push(frame),
            other => return nonsense(format!("message {other:#x}, unknown, or one too many")),
        }
        Ok(())
    }

    fn port(&mut self, frame: Frame) -> Result<(), HandoverError> {
        let (socket, Head { pairs, control, .. }) = described(&frame.payload)?;
        if self.ports.len() == MAX_PORTS || self.ports.iter().any(|port| port.socket == socket) {
            return nonsense(format!("{}: twice, or one port too many", socket.path().display()));
        }
        let listener = match socket {
            Socket::Listen(_) => Some(one_fd(frame)?),
            Socket::Connect(_) => None,
        };
        self.ports.push(Legacy { socket, pairs, control, listener, talk: None });
        Ok(())
    }
}

fn fresh(socket: OwnedFd) -> Half {
    let (fds, unsent_fds) = Default::default();
    Half { socket, received: Vec::new(), fds, unsent: Vec::new(), unsent_fds }
}

fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<(), HandoverError> {
    if bytes.len() + more.len() > MAX_BYTES {
        return nonsense(format!("more than {MAX_BYTES} bytes of one thing"));
    }
    bytes.extend_from_slice(more);
    Ok(())
}
