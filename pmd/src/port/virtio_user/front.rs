//! The vhost-user protocol as the front-end speaks it: one request, and its answer where there is one.
//! Blocks, for [`PATIENCE`] at most.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::{FromBytes, IntoBytes};

use crate::spec::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, FLAG_VERSION_MASK, Header, MemRegion, MemTable,
    PROTOCOL_F_REPLY_ACK, VringAddr, VringState, id,
};

/// How long a back-end may take to answer, or to take, one message.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a conversation with a back-end ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrontError {
    /// The socket failed, or the back-end hung up or did not answer.
    #[error("{what}: {source}; is the back-end alive?")]
    Io { what: &'static str, source: io::Error },
    /// The answer is not one.
    #[error("answer to {what} has id {id}, flags {flags:#x} and {size} bytes: not a vhost-user back-end?")]
    Answer { what: &'static str, id: u32, flags: u32, size: u32 },
    /// The back-end refused.
    #[error("back-end refused {what} (code {code}); its log says why")]
    Refused { what: &'static str, code: u64 },
    /// The back-end cannot do what is needed.
    #[error("{0}")]
    Lacks(String),
}

/// A connection to a back-end.
pub(super) struct Front {
    socket: UnixStream,
    /// Requests without an answer of their own are acknowledged.
    acknowledged: bool,
}

impl Front {
    pub(super) fn new(socket: UnixStream) -> io::Result<Front> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Front { socket, acknowledged: false })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn features(&mut self) -> Result<u64, FrontError> {
        self.ask(id::GET_FEATURES, "GET_FEATURES", &[])
    }

    pub(super) fn protocol_features(&mut self) -> Result<u64, FrontError> {
        self.ask(id::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", &[])
    }

    pub(super) fn queue_pairs(&mut self) -> Result<u64, FrontError> {
        self.ask(id::GET_QUEUE_NUM, "GET_QUEUE_NUM", &[])
    }

    /// Where the back-end stopped in a ring.
    pub(super) fn vring_base(&mut self, index: u32) -> Result<u32, FrontError> {
        let state = VringState { index, num: 0 };
        let answer: VringState = self.ask(id::GET_VRING_BASE, "GET_VRING_BASE", state.as_bytes())?;
        Ok(answer.num)
    }

    pub(super) fn set_protocol_features(&mut self, features: u64) -> Result<(), FrontError> {
        self.tell(id::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", features.as_bytes(), &[])?;
        self.acknowledged = features & PROTOCOL_F_REPLY_ACK != 0;
        Ok(())
    }

    pub(super) fn set_features(&mut self, features: u64) -> Result<(), FrontError> {
        self.tell(id::SET_FEATURES, "SET_FEATURES", features.as_bytes(), &[])
    }

    pub(super) fn set_owner(&mut self) -> Result<(), FrontError> {
        self.tell(id::SET_OWNER, "SET_OWNER", &[], &[])
    }

    pub(super) fn set_mtu(&mut self, mtu: u64) -> Result<(), FrontError> {
        self.tell(id::NET_SET_MTU, "NET_SET_MTU", mtu.as_bytes(), &[])
    }

    /// A memory table of one region, backed by `file`.
    pub(super) fn set_memory(&mut self, region: MemRegion, file: BorrowedFd<'_>) -> Result<(), FrontError> {
        let head = MemTable { regions: 1, padding: 0 };
        let body = [head.as_bytes(), region.as_bytes()].concat();
        self.tell(id::SET_MEM_TABLE, "SET_MEM_TABLE", &body, &[file])
    }

    pub(super) fn set_vring_num(&mut self, index: u32, num: u32) -> Result<(), FrontError> {
        self.tell(id::SET_VRING_NUM, "SET_VRING_NUM", VringState { index, num }.as_bytes(), &[])
    }

    pub(super) fn set_vring_base(&mut self, index: u32, num: u32) -> Result<(), FrontError> {
        self.tell(id::SET_VRING_BASE, "SET_VRING_BASE", VringState { index, num }.as_bytes(), &[])
    }

    pub(super) fn set_vring_addr(&mut self, addr: VringAddr) -> Result<(), FrontError> {
        self.tell(id::SET_VRING_ADDR, "SET_VRING_ADDR", addr.as_bytes(), &[])
    }

    pub(super) fn set_vring_kick(&mut self, index: u32, fd: BorrowedFd<'_>) -> Result<(), FrontError> {
        self.tell(id::SET_VRING_KICK, "SET_VRING_KICK", u64::from(index).as_bytes(), &[fd])
    }

    pub(super) fn set_vring_call(&mut self, index: u32, fd: BorrowedFd<'_>) -> Result<(), FrontError> {
        self.tell(id::SET_VRING_CALL, "SET_VRING_CALL", u64::from(index).as_bytes(), &[fd])
    }

    pub(super) fn set_vring_enable(&mut self, index: u32, on: bool) -> Result<(), FrontError> {
        let state = VringState { index, num: on.into() };
        self.tell(id::SET_VRING_ENABLE, "SET_VRING_ENABLE", state.as_bytes(), &[])
    }

    /// A request that has no answer of its own.
    fn tell(
        &mut self,
        request: u32,
        what: &'static str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontError> {
        let flags = if self.acknowledged { FLAG_NEED_REPLY } else { 0 };
        self.send(request, what, flags, body, fds)?;
        if self.acknowledged {
            let code: u64 = self.receive(request, what)?;
            if code != 0 {
                return Err(FrontError::Refused { what, code });
            }
        }
        Ok(())
    }

    /// A request with an answer.
    fn ask<T: FromBytes>(&mut self, request: u32, what: &'static str, body: &[u8]) -> Result<T, FrontError> {
        self.send(request, what, 0, body, &[])?;
        self.receive(request, what)
    }

    fn send(
        &mut self,
        request: u32,
        what: &'static str,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontError> {
        let header = Header { request, flags: FLAG_VERSION | flags, size: body.len() as u32 };
        let message = [header.as_bytes(), body].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "one descriptor a message");
        }
        let fail = |source: io::Error| FrontError::Io { what, source };
        let mut sent = 0;
        while sent < message.len() {
            let rest = [IoSlice::new(&message[sent..])];
            let n =
                rustix::io::retry_on_intr(|| sendmsg(&self.socket, &rest, &mut control, SendFlags::NOSIGNAL));
            sent += n.map_err(|errno| fail(errno.into()))?;
            // The descriptors went with the first byte.
            control.clear();
        }
        Ok(())
    }

    fn receive<T: FromBytes>(&mut self, request: u32, what: &'static str) -> Result<T, FrontError> {
        let mut head = [0u8; size_of::<Header>()];
        self.read(&mut head, what)?;
        let Header { request: id, flags, size } = Header::read_from_bytes(&head).expect("as long as one");
        let reply = flags & FLAG_REPLY != 0 && flags & FLAG_VERSION_MASK == FLAG_VERSION;
        if id != request || !reply || size as usize != size_of::<T>() {
            return Err(FrontError::Answer { what, id, flags, size });
        }
        let mut body = vec![0u8; size as usize];
        self.read(&mut body, what)?;
        Ok(T::read_from_bytes(&body).expect("as long as one"))
    }

    fn read(&mut self, into: &mut [u8], what: &'static str) -> Result<(), FrontError> {
        self.socket.read_exact(into).map_err(|source| FrontError::Io { what, source })
    }
}
