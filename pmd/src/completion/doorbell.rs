//! A doorbell between cores: it costs a system call only when the other side sleeps.
//!
//! One listener, any number of ringers. The listener [arms](Doorbell::arm) the bell, looks once more
//! for what it waits for, and sleeps on [`Doorbell::fd`] only when there is nothing. A ringer
//! publishes first and [rings](Doorbell::ring) then. One of the two always sees the other.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

use crate::sys::eventfd::EventFd;

/// See the module.
#[derive(Debug)]
pub struct Doorbell {
    asleep: AtomicBool,
    bell: EventFd,
    /// What a modelled listener sleeps on.
    #[cfg(loom)]
    model: loom::sync::Notify,
}

impl Doorbell {
    /// A bell that nobody listens to yet.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> std::io::Result<Doorbell> {
        Ok(Doorbell {
            asleep: AtomicBool::new(false),
            bell: EventFd::new()?,
            #[cfg(loom)]
            model: loom::sync::Notify::new(),
        })
    }

    /// The listener is about to sleep: whoever publishes from now on rings. To be followed by a last
    /// look for work, and by [`Doorbell::disarm`] whether it slept or not.
    pub fn arm(&self) {
        // Acquire pairs with the release in `strike`: a ring of the last sleep comes before this one.
        self.asleep.swap(true, Ordering::Acquire);
        // Pairs with the fence in `ring`: if the ringer does not see `asleep`, the listener's look
        // after this fence sees what the ringer published before its own.
        fence(Ordering::SeqCst);
    }

    /// The listener is awake: nobody needs to ring.
    pub fn disarm(&self) {
        // Acquire: as in `arm`.
        self.asleep.swap(false, Ordering::Acquire);
        self.bell.clear();
    }

    /// Something was published: wakes the listener if it sleeps or is about to.
    #[inline]
    pub fn ring(&self) {
        // Pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            self.strike();
        }
    }

    #[cold]
    fn strike(&self) {
        // One ringer of several makes the call. Release pairs with the acquires in
        // `arm` and `disarm`.
        if self.asleep.swap(false, Ordering::Release) {
            self.bell.signal();
            #[cfg(loom)]
            self.model.notify();
        }
    }

    /// Becomes readable when the bell was rung.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.bell)
    }

    #[cfg(loom)]
    fn sleep(&self) {
        self.model.wait();
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// A listener that always sleeps when it finds nothing must find everything: a lost wake-up is a
    /// deadlock, which loom reports.
    #[test]
    fn loom_no_ring_is_lost() {
        let mut model = loom::model::Builder::new();
        // Complete with one ringer; with two it would take many minutes.
        model.preemption_bound = Some(2);
        model.check(|| {
            let bell = Arc::new(Doorbell::new().unwrap());
            let work = Arc::new(AtomicUsize::new(0));
            let ringers: Vec<_> = (0..2)
                .map(|_| {
                    let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
                    thread::spawn(move || {
                        work.fetch_add(1, Ordering::Release);
                        bell.ring();
                    })
                })
                .collect();
            let mut seen = 0;
            while seen < 2 {
                bell.arm();
                let now = work.load(Ordering::Acquire);
                if now == seen {
                    bell.sleep();
                }
                bell.disarm();
                seen = work.load(Ordering::Acquire);
            }
            for ringer in ringers {
                ringer.join().unwrap();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    #[cfg_attr(miri, ignore = "poll(2)")]
    fn a_sleeper_wakes_for_every_publication() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let work = Arc::new(AtomicU64::new(0));
        let ringer = std::thread::spawn({
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            move || {
                for i in 0..2000 {
                    work.fetch_add(1, Ordering::Release);
                    bell.ring();
                    if i % 64 == 0 {
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    }
                }
            }
        });
        let mut seen = 0;
        while seen < 2000 {
            bell.arm();
            if work.load(Ordering::Acquire) == seen {
                let n = poll(
                    &mut [PollFd::from_borrowed_fd(bell.fd(), PollFlags::IN)],
                    Some(&rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 }),
                );
                assert_eq!(n, Ok(1), "slept through a ring at {seen}");
            }
            bell.disarm();
            seen = work.load(Ordering::Acquire);
        }
        ringer.join().unwrap();
    }

    #[test]
    fn an_awake_listener_costs_no_system_call_and_leaves_nothing_behind() {
        let bell = Doorbell::new().unwrap();
        bell.ring();
        assert!(rustix::io::read(bell.fd(), &mut [0u8; 8]).is_err());
        bell.arm();
        bell.ring();
        bell.ring();
        let mut count = [0u8; 8];
        assert_eq!((rustix::io::read(bell.fd(), &mut count), u64::from_ne_bytes(count)), (Ok(8), 1));
        bell.disarm();
    }
}
