//! Messages on a socket: each is one packet of 128 bytes, with a descriptor or without. Never waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::spec::memif::{
    AddRegion, AddRing, Connect, Disconnect, Hello, Init, MESSAGE, MODE_ETHERNET, VERSION, kind,
};

/// Descriptors that one message may carry, by the kernel (`SCM_MAX_FD`): room for all, so that none are lost.
const ROOM_FOR_FDS: usize = 253;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer left: {0}")]
    Left(String),
    #[error("a message of {0} bytes, where all have {MESSAGE}")]
    Size(usize),
    #[error("message {0} out of turn")]
    Unexpected(u16),
    #[error("message {kind} with {fds} descriptors")]
    Descriptors { kind: u16, fds: usize },
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {errno}")]
    Os { what: &'static str, errno: Errno },
}

impl WireError {
    /// Whether the peer need not be told.
    pub(super) fn is_peers(&self) -> bool {
        matches!(self, WireError::Closed | WireError::Left(_))
    }
}

/// A message that came.
#[derive(Debug)]
pub(super) enum Message {
    Ack,
    Hello(Hello),
    Init(Init),
    AddRegion(AddRegion, OwnedFd),
    AddRing(AddRing, OwnedFd),
    Connect(Connect),
    Connected(Connect),
    Disconnect(Disconnect),
}

impl Message {
    /// # Errors
    /// What is no message, or has too many or too few descriptors.
    pub(super) fn parse(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Result<Message, WireError> {
        if bytes.len() != MESSAGE {
            return Err(WireError::Size(bytes.len()));
        }
        let kind = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let wanted = usize::from(matches!(kind, kind::ADD_REGION | kind::ADD_RING));
        if fds.len() != wanted {
            return Err(WireError::Descriptors { kind, fds: fds.len() });
        }
        let fd = fds.pop();
        Ok(match (kind, fd) {
            (kind::ACK, _) => Message::Ack,
            (kind::HELLO, _) => Message::Hello(body(bytes)),
            (kind::INIT, _) => Message::Init(body(bytes)),
            (kind::ADD_REGION, Some(fd)) => Message::AddRegion(body(bytes), fd),
            (kind::ADD_RING, Some(fd)) => Message::AddRing(body(bytes), fd),
            (kind::CONNECT, _) => Message::Connect(body(bytes)),
            (kind::CONNECTED, _) => Message::Connected(body(bytes)),
            (kind::DISCONNECT, _) => Message::Disconnect(body(bytes)),
            (other, _) => return Err(WireError::Unexpected(other)),
        })
    }

    pub(super) fn kind(&self) -> u16 {
        match self {
            Message::Ack => kind::ACK,
            Message::Hello(_) => kind::HELLO,
            Message::Init(_) => kind::INIT,
            Message::AddRegion(..) => kind::ADD_REGION,
            Message::AddRing(..) => kind::ADD_RING,
            Message::Connect(_) => kind::CONNECT,
            Message::Connected(_) => kind::CONNECTED,
            Message::Disconnect(_) => kind::DISCONNECT,
        }
    }

    /// The end of the conversation, if it is that; itself otherwise.
    pub(super) fn or_end(self) -> Result<Message, WireError> {
        match self {
            Message::Disconnect(why) => Err(WireError::Left(text(&why.reason))),
            other => Ok(other),
        }
    }
}

fn body<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> T {
    T::read_from_prefix(&bytes[2..]).expect("every body is shorter than a message").0
}

/// A field of text: up to its first zero, without what no log should show.
pub(super) fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).chars().filter(|c| !c.is_control()).collect()
}

/// Text as a field: cut off, and with a zero behind it.
pub(super) fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let n = text.len().min(N - 1);
    out[..n].copy_from_slice(&text.as_bytes()[..n]);
    out
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Wire {
        Wire { socket }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next message, if one is there.
    pub(super) fn receive(&self) -> Result<Option<Message>, WireError> {
        let mut bytes = [0; MESSAGE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM_FOR_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got =
            retry_on_intr(|| recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags));
        let got = match got {
            Ok(got) => got,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(WireError::Closed),
            Err(errno) => return Err(WireError::Os { what: "recvmsg", errno }),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.bytes == 0 {
            return Err(WireError::Closed);
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            let what = "descriptors of a message were lost: is the limit of open files (ulimit -n) reached?";
            return Err(WireError::Refused(what.to_owned()));
        }
        Message::parse(&bytes[..got.bytes], fds).map(Some)
    }

    /// Sends a message. A peer that does not read is one that left.
    pub(super) fn send<T: IntoBytes + Immutable>(
        &self,
        kind: u16,
        body: &T,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), WireError> {
        let mut bytes = [0; MESSAGE];
        bytes[..2].copy_from_slice(&kind.to_ne_bytes());
        let body = body.as_bytes();
        bytes[2..2 + body.len()].copy_from_slice(body);
        let fds = fd.map(|fd| [fd]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "there is room for one");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = retry_on_intr(|| sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags));
        match sent {
            Ok(_) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(WireError::Closed),
            Err(errno) => Err(WireError::Os { what: "sendmsg", errno }),
        }
    }

    pub(super) fn ack(&self) -> Result<(), WireError> {
        self.send(kind::ACK, &[0u8; 0], None)
    }

    /// Says why the connection ends. Nobody may be there to read it.
    pub(super) fn leave(&self, why: &str) {
        let _ = self.send(kind::DISCONNECT, &Disconnect { code: 0, reason: field(why) }, None);
    }
}

/// What a client asks for.
pub(super) fn init(id: u32, secret: &str, name: &str) -> Init {
    // A secret may fill its field.
    let mut bytes = [0; 24];
    let n = secret.len().min(bytes.len());
    bytes[..n].copy_from_slice(&secret.as_bytes()[..n]);
    Init { version: VERSION, id, mode: MODE_ETHERNET, secret: bytes, name: field(name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn structures_have_the_sizes_of_the_protocol() {
        let sizes = [
            size_of::<Hello>(),
            size_of::<Init>(),
            size_of::<AddRegion>(),
            size_of::<AddRing>(),
            size_of::<Connect>(),
            size_of::<Disconnect>(),
        ];
        assert_eq!(sizes, [43, 63, 10, 13, 32, 100]);
        assert!(sizes.iter().all(|n| n + 2 <= MESSAGE));
        assert_eq!(
            (text(&field::<8>("a\nb")), text(&[b'x'; 4]), text(&field::<4>("abcdef"))),
            ("ab".into(), "xxxx".into(), "abc".into())
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..130), kind in 0u16..10, fds in 0usize..3) {
            let mut bytes = bytes;
            if bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&kind.to_ne_bytes());
            }
            let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let whole = bytes.len() == MESSAGE;
            match Message::parse(&bytes, (0..fds).map(|_| null()).collect()) {
                Ok(message) => prop_assert!(whole && message.kind() == kind && (1..=8).contains(&kind)),
                Err(WireError::Size(n)) => prop_assert!(!whole && n == bytes.len()),
                Err(WireError::Descriptors { .. }) => prop_assert_ne!(fds, usize::from(kind == 4 || kind == 5)),
                Err(WireError::Unexpected(_)) => prop_assert!(kind == 0 || kind == 9),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
