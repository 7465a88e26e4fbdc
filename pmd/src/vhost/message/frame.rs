//! A message as it comes: its header, its bytes, its descriptors.

use std::os::fd::OwnedFd;

use arrayvec::ArrayVec;

use super::name;
use crate::spec::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, FLAG_VERSION_MASK, Header, MAX_FDS, MAX_PAYLOAD,
};

/// A message as it came through the socket: header checked, payload complete.
#[derive(Debug)]
pub struct Frame {
    /// Its header, see [`check_header`].
    pub header: Header,
    /// Its payload, `header.size` bytes.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Fds,
}

impl Frame {
    /// A message to be sent.
    pub(in super::super) fn of(request: u32, payload: &[u8], fds: Fds) -> Frame {
        assert!(payload.len() <= MAX_PAYLOAD, "{} bytes of payload", payload.len());
        let header = Header { request, flags: FLAG_VERSION, size: payload.len() as u32 };
        Frame { header, payload: payload.to_vec(), fds }
    }

    /// Whether the sender asks for an acknowledgement.
    pub fn need_reply(&self) -> bool {
        self.header.flags & FLAG_NEED_REPLY != 0
    }
}

/// The descriptors of a message, in order. Those beyond [`MAX_FDS`] are closed and counted.
#[derive(Debug, Default)]
pub struct Fds {
    kept: ArrayVec<OwnedFd, MAX_FDS>,
    closed: usize,
}

impl Fds {
    /// Takes one more.
    pub fn push(&mut self, fd: OwnedFd) {
        if self.kept.try_push(fd).is_err() {
            self.closed += 1;
        }
    }

    /// Takes the last one that was kept.
    pub(super) fn pop(&mut self) -> Option<OwnedFd> {
        self.kept.pop()
    }

    /// How many came.
    pub fn len(&self) -> usize {
        self.kept.len() + self.closed
    }

    /// The same descriptors once more.
    ///
    /// # Errors
    /// When we run out of descriptors.
    pub(in super::super) fn again(&self) -> std::io::Result<Fds> {
        let kept = self.kept.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        Ok(Fds { kept, closed: self.closed })
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl IntoIterator for Fds {
    type Item = OwnedFd;
    type IntoIter = arrayvec::IntoIter<OwnedFd, MAX_FDS>;

    /// Those that were kept, in order.
    fn into_iter(self) -> Self::IntoIter {
        self.kept.into_iter()
    }
}

impl FromIterator<OwnedFd> for Fds {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(fds: I) -> Fds {
        let mut all = Fds::default();
        fds.into_iter().for_each(|fd| all.push(fd));
        all
    }
}

/// The sender and we disagree about where messages begin: the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Not the only version there is.
    #[error("message {} has version {version}, not 1: not a vhost-user front-end, or framing is lost", name(*.id))]
    Version {
        /// Id of the message.
        id: u32,
        /// What it had.
        version: u32,
    },
    /// A reply to a request that was never sent.
    #[error("message {} is marked as a reply, and nothing was asked of the front-end", name(*.id))]
    Reply {
        /// Id of the message.
        id: u32,
    },
    /// A request on the channel for ours.
    #[error("message number {id} on the back-end channel is no reply")]
    NoReply {
        /// Id of the message.
        id: u32,
    },
    /// Longer than any message.
    #[error("message {} announces {size} bytes of payload; no message has more than {MAX_PAYLOAD}", name(*.id))]
    Oversize {
        /// Id of the message.
        id: u32,
        /// Bytes announced.
        size: u32,
    },
}

/// Checks what every header must say.
///
/// # Errors
/// [`FramingError`]: what follows cannot be read.
pub fn check_header(header: &Header) -> Result<(), FramingError> {
    let Header { request: id, flags, size } = *header;
    if flags & FLAG_VERSION_MASK != FLAG_VERSION {
        return Err(FramingError::Version { id, version: flags & FLAG_VERSION_MASK });
    }
    if flags & FLAG_REPLY != 0 {
        return Err(FramingError::Reply { id });
    }
    if size as usize > MAX_PAYLOAD {
        return Err(FramingError::Oversize { id, size });
    }
    Ok(())
}

/// The same of a message on the channel for our own requests, where only replies come.
///
/// # Errors
/// [`FramingError`], as [`check_header`].
pub fn check_reply(header: &Header) -> Result<(), FramingError> {
    let Header { request: id, flags, .. } = *header;
    if flags & FLAG_REPLY == 0 {
        return Err(FramingError::NoReply { id });
    }
    check_header(&Header { flags: flags & !FLAG_REPLY, ..*header })
}
