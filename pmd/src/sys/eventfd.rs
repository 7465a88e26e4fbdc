//! Event descriptors: kicks, calls, bells.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, preadv2};
use rustix::net::{AddressFamily, SendFlags, send, sockopt::socket_domain};

use super::aio;

/// A counter that one side signals and the other waits for; never blocks.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: Arc<OwnedFd>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nobody else has it.
    Private,
    /// A peer has it, too.
    Shared,
    /// A unix socket, to be signalled only.
    Socket,
}

impl EventFd {
    /// A new one of our own.
    pub(crate) fn new() -> io::Result<EventFd> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFd { fd: fd.into(), kind: Kind::Private })
    }

    /// A new one that is sent to a peer, who can fill it and have it block.
    pub(crate) fn shared() -> io::Result<EventFd> {
        Ok(EventFd { kind: Kind::Shared, ..EventFd::new()? })
    }

    /// One that a peer sent. Anything else than an eventfd is refused: a write to a full pipe, say,
    /// would stop the core that does it.
    pub(crate) fn adopt(fd: Arc<OwnedFd>) -> io::Result<EventFd> {
        use std::os::fd::AsRawFd;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[eventfd]" {
            let what = format!("{} where an eventfd is expected", link.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(EventFd { fd, kind: Kind::Shared })
    }

    /// One that a peer sent to be signalled: an eventfd, or, from user-mode Linux, a unix socket. To send to a
    /// socket waits only if the sender wants to, whatever its peer has set.
    pub(crate) fn adopt_call(fd: Arc<OwnedFd>) -> io::Result<EventFd> {
        if matches!(socket_domain(&fd), Ok(AddressFamily::UNIX)) {
            return Ok(EventFd { fd, kind: Kind::Socket });
        }
        EventFd::adopt(fd)
    }

    /// Adds one. A counter that is full stays full, which is as good.
    pub(crate) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        match self.kind {
            Kind::Private => drop(rustix::io::write(&self.fd, &one)),
            Kind::Shared => aio::signal(self.fd.as_fd()),
            Kind::Socket => drop(send(&self.fd, &one, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)),
        }
    }

    /// Takes the count; whether there was any. `O_NONBLOCK` belongs to the open file, so that a peer can
    /// take it away: whether this read waits is its own business.
    pub(crate) fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        if cfg!(miri) {
            // Miri does not know preadv2; no peer is there to take the flag away.
            return rustix::io::read(&self.fd, &mut count).is_ok();
        }
        let nowhere = u64::MAX; // An eventfd has no places to read from.
        preadv2(&self.fd, &mut [IoSliceMut::new(&mut count)], nowhere, ReadWriteFlags::NOWAIT).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "system calls")]
    fn a_full_socket_is_signalled_without_waiting() {
        use std::io::Read;
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let call = EventFd::adopt_call(Arc::new(writer.into())).unwrap();
        (0..20_000).for_each(|_| call.signal());
        let mut one = [0; 8];
        reader.read_exact(&mut one).unwrap();
        assert_eq!(u64::from_ne_bytes(one), 1);
        drop(reader);
        call.signal();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for other in [OwnedFd::from(udp), OwnedFd::from(null), io::pipe().unwrap().1.into()] {
            assert!(EventFd::adopt_call(Arc::new(other)).is_err());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "system calls")]
    fn clearing_never_waits_even_when_the_peer_made_it_blocking() {
        let peer = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let kick = EventFd::adopt(Arc::clone(&peer)).unwrap();
        let flags = rustix::fs::fcntl_getfl(&peer).unwrap();
        rustix::fs::fcntl_setfl(&peer, flags - OFlags::NONBLOCK).unwrap();
        assert!(!kick.clear());
        kick.signal();
        kick.signal();
        assert!(kick.clear() && !kick.clear());
    }
}
