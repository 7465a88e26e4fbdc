//! Event descriptors: kicks, calls, bells.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::{ReadWriteFlags, preadv2};

use super::aio;

/// A counter that one side signals and the other waits for; never blocks.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: Arc<OwnedFd>,
    /// Nobody else has it.
    private: bool,
}

impl EventFd {
    /// A new one of our own.
    pub(crate) fn new() -> io::Result<EventFd> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFd { fd: fd.into(), private: true })
    }

    /// A new one that is sent to a peer, who can fill it and have it block.
    pub(crate) fn shared() -> io::Result<EventFd> {
        Ok(EventFd { private: false, ..EventFd::new()? })
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
        Ok(EventFd { fd, private: false })
    }

    /// One that a peer sent to be signalled. User-mode Linux sends a pipe: it is opened anew, so that whether
    /// a write to it waits is our own business.
    pub(crate) fn adopt_call(fd: Arc<OwnedFd>) -> io::Result<EventFd> {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if !std::fs::read_link(&path)?.as_os_str().as_encoded_bytes().starts_with(b"pipe:[") {
            return EventFd::adopt(fd);
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(path, flags, Mode::empty())?;
        // Nobody else has this open file.
        Ok(EventFd { fd: Arc::new(pipe), private: true })
    }

    /// Adds one. A counter that is full stays full, which is as good.
    pub(crate) fn signal(&self) {
        if self.private {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        } else {
            aio::signal(self.fd.as_fd());
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
    fn a_full_pipe_is_signalled_without_waiting() {
        use std::io::Read;
        let (mut reader, writer) = io::pipe().unwrap();
        let call = EventFd::adopt_call(Arc::new(writer.into())).unwrap();
        (0..20_000).for_each(|_| call.signal());
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 8);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(EventFd::adopt_call(Arc::new(null.into())).is_err());
        drop(reader);
        call.signal();
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
