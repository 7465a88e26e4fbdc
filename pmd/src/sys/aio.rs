//! Signals an eventfd that a peer may have filled and made blocking, and never waits.
//!
//! `write(2)` waits when the counter is full and `O_NONBLOCK` is not set, and both belong to the open file
//! that we share with the peer; an eventfd takes no `RWF_NOWAIT` for writes. The kernel itself adds to an
//! eventfd without waiting, and does so on our behalf when an operation of `io_submit(2)` completes
//! (`IOCB_FLAG_RESFD`): here one that reads no bytes of `/dev/null`, which completes at once.

// UNSAFETY: these system calls have no wrapper, and completions are taken out of a page shared with the
// kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Operations under way that are asked for; there is never more than one.
const EVENTS: libc::c_long = 8;
/// `AIO_RING_MAGIC`: the page has the form below.
const RING_MAGIC: u32 = 0xa10a_10a1;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);

/// What precedes the completions: `struct aio_ring`.
#[repr(C)]
struct Ring {
    id: u32,
    nr: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
}

/// A thread's own.
struct Caller {
    /// `aio_context_t`: the address of its ring.
    context: libc::c_ulong,
    null: File,
}

thread_local! {
    static CALLER: Option<Caller> = Caller::new();
}

impl Caller {
    fn new() -> Option<Caller> {
        if cfg!(miri) {
            return None;
        }
        let null = File::open("/dev/null").ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: writes one word of ours.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) };
        if done != 0 {
            return None;
        }
        let caller = Caller { context, null };
        (caller.ring().magic == RING_MAGIC).then_some(caller)
    }

    fn ring(&self) -> &Ring {
        // SAFETY: io_setup mapped it there, until io_destroy; head and tail are only accessed atomically,
        // and nothing else changes.
        unsafe { &*(self.context as *const Ring) }
    }

    /// Whether it was signalled.
    fn signal(&self, fd: BorrowedFd<'_>) -> bool {
        let iocb = Iocb {
            opcode: IOCB_CMD_PREAD,
            file: self.null.as_raw_fd() as u32,
            flags: IOCB_FLAG_RESFD,
            resfd: fd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let list = [&raw const iocb];
        // SAFETY: one operation, described by values of this stack that the call copies; it reads no bytes.
        let done =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, list.as_ptr()) };
        // It is complete: taken, whatever it says. Acquire and release pair with the kernel's own accesses.
        let ring = self.ring();
        ring.head.store(ring.tail.load(Ordering::Acquire), Ordering::Release);
        done == 1
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // SAFETY: the context of this value, which nobody uses any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// Adds one to a peer's eventfd. A counter that is full stays full, which is as good.
pub(crate) fn signal(fd: BorrowedFd<'_>) {
    let signalled = CALLER.try_with(|caller| caller.as_ref().is_some_and(|caller| caller.signal(fd)));
    if signalled != Ok(true) {
        signal_if_ready(fd);
    }
}

/// Where there is no such call, or no room for one more thread's: the peer would have to fill the counter
/// between the look and the write.
#[cold]
fn signal_if_ready(fd: BorrowedFd<'_>) {
    let mut look = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A counter that has overflowed is an error to poll, and a write would wait.
    if poll(&mut look, Some(&now)) == Ok(1) && look[0].revents() == PollFlags::OUT {
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicBool;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn count(fd: BorrowedFd<'_>) -> u64 {
        let mut word = [0; 8];
        rustix::io::read(fd, &mut word).unwrap();
        u64::from_ne_bytes(word)
    }

    #[test]
    fn every_signal_arrives() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert!(CALLER.with(Option::is_some), "this kernel has it");
        for n in [1, 7, 1000] {
            (0..n).for_each(|_| signal(fd.as_fd()));
            assert_eq!(count(fd.as_fd()), n);
        }
        signal_if_ready(fd.as_fd());
        assert_eq!(count(fd.as_fd()), 1);
    }

    #[test]
    fn a_full_counter_that_blocks_stops_nobody() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..1000 {
            signal(fd.as_fd());
        }
        signal_if_ready(fd.as_fd());
        assert!(count(fd.as_fd()) >= u64::MAX - 1);
    }

    #[test]
    fn a_peer_that_fills_it_all_the_time_stops_nobody() {
        let (fd, stop) = (eventfd(0, EventfdFlags::CLOEXEC).unwrap(), AtomicBool::new(false));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fcntl_setfl(&fd, OFlags::NONBLOCK).unwrap();
                    let _ = rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes());
                    fcntl_setfl(&fd, OFlags::empty()).unwrap();
                }
            });
            (0..50_000).for_each(|_| signal(fd.as_fd()));
            stop.store(true, Ordering::Relaxed);
        });
    }
}
