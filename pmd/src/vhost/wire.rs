//! Messages through a connected socket. It never waits: a message may come in pieces, an answer may
//! leave in pieces.

use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, take};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::message::{Answer, Fds, Frame, FramingError, check_header, check_reply};
use crate::spec::vhost_user::{Header, MAX_FDS};

const HEADER: usize = size_of::<Header>();

/// Descriptors the kernel lets one message carry (`SCM_MAX_FD`): with room for all of them, control
/// data is cut short only when we run out of descriptors ourselves.
const ROOM_FOR_FDS: usize = 253;

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No telling where the next message begins.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// Descriptors were lost.
    #[error("descriptors of a message were lost: is the limit of open files (ulimit -n) reached?")]
    Truncated,
    /// The front-end left in the middle of a message.
    #[error("the front-end closed the connection {got} bytes into a message")]
    Cut {
        /// Bytes of the message that came.
        got: usize,
    },
    /// More was received of a message than it has.
    #[error("more bytes of a message than it announces")]
    Excess,
    /// The kernel's word.
    #[error("{0}")]
    Os(Errno),
}

/// What there is to read.
#[derive(Debug)]
pub(super) enum Received {
    /// A whole message.
    Frame(Frame),
    /// Not a whole message yet.
    Nothing,
    /// The front-end closed the connection, between messages.
    Closed,
}

/// A connection that another process goes on with: what was received of a message, what was not sent yet.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) socket: OwnedFd,
    pub(super) received: Vec<u8>,
    pub(super) fds: Fds,
    pub(super) unsent: Vec<u8>,
    pub(super) unsent_fds: Fds,
}

impl Half {
    /// Goes on with a conversation.
    pub(super) fn conversation(self) -> Result<Wire, WireError> {
        self.wire(check_header)
    }

    /// Goes on with a channel for our own requests.
    pub(super) fn channel(self) -> Result<Wire, WireError> {
        self.wire(check_reply)
    }

    fn wire(self, check: Check) -> Result<Wire, WireError> {
        let Half { socket, received, fds, unsent, unsent_fds } = self;
        let unsent_fds = unsent_fds.into_iter().map(Arc::new).collect();
        let mut wire = Wire { fds, unsent, unsent_fds, got: received.len(), check, ..Wire::new(socket) };
        let (header, payload) = received.split_at(received.len().min(HEADER));
        wire.header[..header.len()].copy_from_slice(header);
        if header.len() == HEADER {
            let header = Header::read_from_bytes(&wire.header).expect("a header's worth of bytes");
            check(&header)?;
            wire.payload.resize(header.size as usize, 0);
            wire.payload.get_mut(..payload.len()).ok_or(WireError::Excess)?.copy_from_slice(payload);
        }
        Ok(wire)
    }
}

type Check = fn(&Header) -> Result<(), FramingError>;

/// A connected socket and the message on its way in.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    header: [u8; HEADER],
    payload: Vec<u8>,
    /// Bytes of header and payload that are there.
    got: usize,
    fds: Fds,
    unsent: Vec<u8>,
    /// Go with the first of the bytes that are unsent.
    unsent_fds: Vec<Arc<OwnedFd>>,
    check: Check,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Wire {
        let (header, payload, fds, unsent) = ([0; HEADER], Vec::new(), Fds::default(), Vec::new());
        Wire { socket, header, payload, got: 0, fds, unsent, unsent_fds: Vec::new(), check: check_header }
    }

    /// The channel for our own requests, where only replies come.
    pub(super) fn channel(socket: OwnedFd) -> Wire {
        Wire { check: check_reply, ..Wire::new(socket) }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads on, never past the end of the message: its descriptors come with its own bytes.
    pub(super) fn receive(&mut self) -> Result<Received, WireError> {
        loop {
            let rest = match self.got.checked_sub(HEADER) {
                None => &mut self.header[self.got..],
                Some(at) => &mut self.payload[at..],
            };
            if rest.is_empty() {
                self.got = 0;
                let header = Header::read_from_bytes(&self.header).expect("a header's worth of bytes");
                let (payload, fds) = (take(&mut self.payload), take(&mut self.fds));
                return Ok(Received::Frame(Frame { header, payload, fds }));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM_FOR_FDS))];
            match receive(self.socket.as_fd(), rest, &mut self.fds, &mut space)? {
                None => return Ok(Received::Nothing),
                Some(0) if self.got == 0 => return Ok(Received::Closed),
                Some(0) => return Err(WireError::Cut { got: self.got }),
                Some(n) => self.got += n,
            }
            if self.got == HEADER {
                let header = Header::read_from_bytes(&self.header).expect("a header's worth of bytes");
                (self.check)(&header)?;
                self.payload.resize(header.size as usize, 0);
            }
        }
    }

    /// Sends, as far as the socket takes it; [`Wire::flush`] sends the rest.
    pub(super) fn send(&mut self, answer: &Answer) -> Result<(), WireError> {
        assert!(answer.fd().is_none() || self.unsent.is_empty(), "no message is served while answers wait");
        self.unsent_fds.extend(answer.fd().cloned());
        self.unsent.extend_from_slice(&answer.encode());
        self.flush()
    }

    /// What another process needs to go on with it, at any byte. It can go on here as well.
    pub(super) fn leave(&self) -> std::io::Result<Half> {
        let payload = self.got.saturating_sub(HEADER);
        let received = [&self.header[..self.got.min(HEADER)], &self.payload[..payload]].concat();
        Ok(Half {
            socket: self.socket.try_clone()?,
            received,
            fds: self.fds.again()?,
            unsent: self.unsent.clone(),
            unsent_fds: self.unsent_fds.iter().map(|fd| fd.try_clone()).collect::<std::io::Result<_>>()?,
        })
    }

    /// Sends a message of any kind with its descriptors, as far as the socket takes it. Whatever was sent
    /// before has left.
    pub(super) fn pass(&mut self, frame: &Frame) -> Result<(), WireError> {
        assert!(self.unsent.is_empty(), "one message at a time");
        self.unsent.extend_from_slice(frame.header.as_bytes());
        self.unsent.extend_from_slice(&frame.payload);
        self.unsent_fds =
            frame.fds.again().map_err(|_| WireError::Truncated)?.into_iter().map(Arc::new).collect();
        self.flush()
    }

    /// Sends requests, as far as the socket takes them.
    pub(super) fn request(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.unsent.extend_from_slice(bytes);
        self.flush()
    }

    /// Whether answers wait for the socket. No message should be read until they have left: a
    /// front-end that does not read gets no further.
    pub(super) fn blocked(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self) -> Result<(), WireError> {
        while !self.unsent.is_empty() {
            let sent = retry_on_intr(|| match &self.unsent_fds[..] {
                [] => send(&self.socket, &self.unsent, SEND),
                fds => send_with_fds(self.socket.as_fd(), &self.unsent, fds),
            });
            match sent {
                Ok(n) => {
                    self.unsent.drain(..n);
                    self.unsent_fds.clear();
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(WireError::Os(errno)),
            }
        }
        Ok(())
    }
}

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Sends bytes, and descriptors, no more than [`MAX_FDS`], with the first of them.
fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: ArrayVec<BorrowedFd<'_>, MAX_FDS> = fds.iter().map(|fd| fd.as_fd()).collect();
    let fits = control.push(SendAncillaryMessage::ScmRights(&fds));
    assert!(fits, "there is room for them");
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SEND)
}

/// Receives up to `rest.len()` bytes and the descriptors that come with them, as many as `space` holds.
/// `None`: nothing there.
fn receive(
    socket: BorrowedFd<'_>,
    rest: &mut [u8],
    fds: &mut Fds,
    space: &mut [MaybeUninit<u8>],
) -> Result<Option<usize>, WireError> {
    let mut control = RecvAncillaryBuffer::new(space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, flags));
    let got = match got {
        Ok(got) => got,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(WireError::Os(errno)),
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            received.for_each(|fd| fds.push(fd));
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) { Err(WireError::Truncated) } else { Ok(Some(got.bytes)) }
}

#[cfg(test)]
pub(super) mod testing {
    //! The front-end's end: any bytes, with any descriptors.

    use super::*;

    /// Sends `bytes` and `fds` in one piece.
    pub(crate) fn send_with(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM_FOR_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::send_with;
    use super::*;
    use crate::spec::vhost_user::id;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours.into()), theirs)
    }

    fn bytes(request: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header { request, flags: 1, size: payload.len() as u32 };
        [header.as_bytes(), payload].concat()
    }

    fn frame(wire: &mut Wire) -> Frame {
        match wire.receive() {
            Ok(Received::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    fn nothing(wire: &mut Wire) -> bool {
        matches!(wire.receive(), Ok(Received::Nothing))
    }

    #[test]
    fn messages_in_pieces_and_in_heaps() {
        let (mut wire, mut peer) = pair();
        let (first, second) = (bytes(id::SET_FEATURES, &[7; 8]), bytes(id::SET_OWNER, &[]));
        for byte in &first {
            assert!(nothing(&mut wire));
            peer.write_all(&[*byte]).unwrap();
        }
        assert_eq!(frame(&mut wire).payload, [7; 8]);
        peer.write_all(&[&first[..], &second, &first, &second[..5]].concat()).unwrap();
        let requests = [0, 1, 2].map(|_| frame(&mut wire).header.request);
        assert_eq!(requests, [id::SET_FEATURES, id::SET_OWNER, id::SET_FEATURES]);
        assert!(nothing(&mut wire));
        peer.write_all(&second[5..]).unwrap();
        assert_eq!(frame(&mut wire).header.request, id::SET_OWNER);
    }

    #[test]
    fn descriptors_belong_to_the_message_they_came_with() {
        let (mut wire, peer) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let plain = bytes(id::SET_OWNER, &[]);
        let kick = bytes(id::SET_VRING_KICK, &[0; 8]);
        send_with(&peer, &plain, &[]).unwrap();
        send_with(&peer, &kick[..1], &[file.as_fd()]).unwrap();
        send_with(&peer, &kick[1..], &[]).unwrap();
        send_with(&peer, &plain, &[]).unwrap();
        send_with(&peer, &plain, &[file.as_fd(); 100]).unwrap();
        let fds = [0, 1, 2, 3].map(|_| frame(&mut wire).fds.len());
        assert_eq!(fds, [0, 1, 0, 100]);
    }

    #[test]
    fn descriptors_that_find_no_room_are_noticed() {
        let (wire, peer) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send_with(&peer, &[0; 12], &[file.as_fd(); 20]).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut fds = Fds::default();
        let got = receive(wire.socket(), &mut [0; 12], &mut fds, &mut space);
        assert_eq!(got, Err(WireError::Truncated));
    }

    #[test]
    fn the_end_of_a_connection() {
        let (mut wire, peer) = pair();
        drop(peer);
        assert!(matches!(wire.receive(), Ok(Received::Closed)));
        for got in 1..20 {
            let (mut wire, mut peer) = pair();
            peer.write_all(&bytes(id::SET_FEATURES, &[0; 8])[..got]).unwrap();
            drop(peer);
            assert_eq!(wire.receive().unwrap_err(), WireError::Cut { got });
        }
        for header in [[0u8; 12], [0xff; 12]] {
            let (mut wire, mut peer) = pair();
            peer.write_all(&header).unwrap();
            assert!(matches!(wire.receive(), Err(WireError::Framing(_))));
        }
    }

    #[test]
    fn answers_wait_for_a_front_end_that_does_not_read() {
        use std::io::Read;
        let (mut wire, mut peer) = pair();
        let answer = Answer::number(id::GET_FEATURES, u64::MAX);
        let mut sent = 0;
        while !wire.blocked() {
            wire.send(&answer).unwrap();
            sent += 1;
        }
        let mut got = vec![0; answer.encode().len() * sent];
        let reader = std::thread::spawn(move || peer.read_exact(&mut got).map(|()| got));
        while wire.blocked() {
            wire.flush().unwrap();
        }
        let got = reader.join().unwrap().unwrap();
        assert!(got.chunks(20).all(|chunk| chunk == answer.encode()));
    }
}
