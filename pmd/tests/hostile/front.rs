//! The front-end's end of the socket: any bytes, with any descriptors.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use pmd::spec::vhost_user::{FLAG_NEED_REPLY, FLAG_VERSION, Header};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::{FromBytes, IntoBytes};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub(crate) struct Front(pub(crate) UnixStream);

/// A message with these flags beside the version.
pub(crate) fn message(id: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { request: id, flags: FLAG_VERSION | flags, size: payload.len() as u32 };
    [header.as_bytes(), payload].concat()
}

impl Front {
    pub(crate) fn connect(path: &Path) -> Front {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Front(stream)
    }

    /// Sends bytes in one piece; whether anybody was there to take them.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
    }

    /// The next answer; `None`: the connection has ended.
    pub(crate) fn answer(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = [0; size_of::<Header>()];
        self.0.read_exact(&mut header).ok()?;
        let header = Header::read_from_bytes(&header).unwrap();
        assert!(header.size <= 4096, "an answer of {} bytes", header.size);
        let mut payload = vec![0; header.size as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    /// Sends a message that has an answer of its own.
    pub(crate) fn ask(&mut self, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Vec<u8>> {
        if !self.send(&message(id, 0, payload), fds) {
            return None;
        }
        let (header, payload) = self.answer()?;
        assert_eq!(header.request, id);
        Some(payload)
    }

    /// Sends a message and asks how it was taken: `None`, the connection has ended.
    pub(crate) fn tell(&mut self, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<bool> {
        if !self.send(&message(id, FLAG_NEED_REPLY, payload), fds) {
            return None;
        }
        let (header, payload) = self.answer()?;
        assert_eq!(header.request, id);
        Some(payload.iter().all(|byte| *byte == 0))
    }
}
