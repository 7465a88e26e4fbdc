//! Who stays with a device while it runs: takes memory away from one that is removed or fails, and
//! begins anew with one that hangs.

use std::os::fd::AsFd;
#[cfg(not(loom))]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

#[cfg(loom)]
use loom::sync::atomic::AtomicBool;

use super::Shared;
use crate::nic::{Chip, NicError, Setup, wait};
use crate::sys::eventfd::EventFd;

/// How long the queues may take to let go of what a stopped device had.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between a queue and whoever starts its device anew.
pub(super) struct Door<R> {
    /// The queue holds nothing that the stopped device had.
    idle: AtomicBool,
    rings: Mutex<Option<R>>,
}

impl<R> Default for Door<R> {
    fn default() -> Self {
        Door { idle: AtomicBool::new(false), rings: Mutex::new(None) }
    }
}

impl<R> Door<R> {
    /// Says that nothing is held any more, and takes new rings, if there are some.
    pub(super) fn call(&self) -> Option<R> {
        let rings = self.rings.lock().expect("no holder panics").take();
        // Pairs with the acquire in `attend`: what the device had is gone from the queue.
        self.idle.store(rings.is_none(), Ordering::Release);
        rings
    }
}

/// The thread that stays with a device.
pub(super) struct Keeper {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Stays with `chip`, started by `setup`, whose queues are behind `doors`.
    pub(super) fn new<C: Chip>(
        chip: Arc<Mutex<C>>,
        setup: Setup,
        doors: Vec<Arc<Door<C::Rings>>>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Keeper> {
        let end = Arc::new(EventFd::new()?);
        let ended = Arc::clone(&end);
        let name = format!("nic {}", shared.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            while !stay(&shared, &ended) {
                shared.look();
                if shared.hang.clear() {
                    attend(&chip, &setup, &doors, &shared);
                }
            }
        })?;
        Ok(Keeper { end, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until something happens; whether it is the end.
fn stay(shared: &Shared, end: &EventFd) -> bool {
    let watched = [end, &shared.removal, &shared.failure, &shared.hang];
    let mut fds = watched.map(|event| PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
    let _ = poll(&mut fds, None);
    end.clear()
}

/// Starts a device that hung, once its queues have let go of what it had.
fn attend<C: Chip>(chip: &Mutex<C>, setup: &Setup, doors: &[Arc<Door<C::Rings>>], shared: &Shared) {
    // Pairs with the release in `Door::call`.
    let idle = || doors.iter().all(|door| door.idle.load(Ordering::Acquire));
    if shared.gone() || !wait(PATIENCE, idle) {
        return tracing::error!("{}: stays stopped", shared.name);
    }
    let started = chip.lock().expect("no holder panics").start(setup);
    match started {
        Ok(rings) => {
            shared.run();
            for (door, rings) in doors.iter().zip(rings) {
                *door.rings.lock().expect("no holder panics") = Some(rings);
            }
            tracing::warn!("{}: goes on", shared.name);
        }
        Err(e) => failed(&shared.name, &e),
    }
}

fn failed(name: &str, e: &NicError) {
    tracing::error!("{name}: does not start again: {e}");
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    use super::*;

    /// A device is started only when its queue holds nothing; its new rings are taken once.
    #[test]
    fn loom_new_rings_come_when_nothing_is_held_and_once() {
        loom::model(|| {
            let door = loom::sync::Arc::new(Door::<u32>::default());
            let held = loom::sync::Arc::new(AtomicU32::new(1));
            let (there, has) = (door.clone(), held.clone());
            let queue = thread::spawn(move || {
                has.store(0, Ordering::Relaxed);
                (0..2).filter_map(|_| there.call()).count()
            });
            let start = || {
                let idle = door.idle.load(Ordering::Acquire);
                if idle {
                    assert_eq!(held.load(Ordering::Relaxed), 0, "something is held");
                    *door.rings.lock().unwrap() = Some(7);
                }
                idle
            };
            let started = start();
            let taken = queue.join().unwrap();
            if started {
                let rest = usize::from(door.call().is_some());
                assert_eq!(taken + rest, 1);
                // What was taken is in use: nobody may start it anew.
                assert!(taken == 0 || !door.idle.load(Ordering::Acquire) || rest == 0);
            } else {
                assert_eq!(taken, 0);
            }
        });
    }
}
