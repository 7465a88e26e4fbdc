//! How rings come to a queue on its core: the control side leaves them at the door and knocks; the queue looks
//! for a knock in `reap`, one relaxed load, and then takes them in under the lock.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::port::knock::Knock;
use crate::sys::eventfd::EventFd;

/// What a port, its control side and its queues know of each other.
#[derive(Debug)]
pub(super) struct State {
    up: AtomicBool,
    connections: AtomicU64,
    stop: AtomicBool,
    broken: AtomicBool,
    /// Wakes the control side.
    bell: Arc<EventFd>,
}

impl State {
    pub(super) fn new(bell: Arc<EventFd>) -> State {
        let (up, stop, broken) = Default::default();
        State { up, stop, broken, connections: AtomicU64::new(0), bell }
    }

    pub(super) fn up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(super) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        if up {
            self.broken.store(false, Ordering::Relaxed);
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Asks the control side to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.signal();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks the control side to leave a peer that broke the rules.
    pub(super) fn complain(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.bell.signal();
    }

    pub(super) fn broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }
}

enum Mail<T> {
    Nothing,
    Down,
    Up(Box<T>),
}

/// Between the control side and one queue, which is given its rings as a `T`.
pub(super) struct Door<T> {
    knock: Knock,
    mail: Mutex<Mail<T>>,
    state: Arc<State>,
}

impl<T> Door<T> {
    pub(super) fn new(state: &Arc<State>) -> io::Result<Door<T>> {
        Ok(Door { knock: Knock::new()?, mail: Mutex::new(Mail::Nothing), state: Arc::clone(state) })
    }

    /// Leaves rings for the queue.
    pub(super) fn give(&self, live: T) {
        self.post(Mail::Up(Box::new(live)));
    }

    /// Tells the queue that the peer is gone.
    pub(super) fn down(&self) {
        self.post(Mail::Down);
    }

    fn post(&self, mail: Mail<T>) {
        let before = std::mem::replace(&mut *self.mail.lock().expect("no holder panics"), mail);
        drop(before);
        self.knock.knock();
    }

    /// Whether there is mail; clears the knock.
    #[inline(always)]
    pub(super) fn knocked(&self) -> bool {
        self.knock.knocked()
    }

    /// Whether there is mail.
    pub(super) fn knocking(&self) -> bool {
        self.knock.knocking()
    }

    /// Becomes readable when there is mail; cleared by [`Door::hush`].
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.knock.bell().as_fd()
    }

    pub(super) fn hush(&self) {
        self.knock.bell().clear();
    }

    /// Takes the mail: `None`, there is none; `Some(None)`, the peer is gone.
    pub(super) fn look(&self) -> Option<Option<Box<T>>> {
        match std::mem::replace(&mut *self.mail.lock().expect("no holder panics"), Mail::Nothing) {
            Mail::Nothing => None,
            Mail::Down => Some(None),
            Mail::Up(live) => Some(Some(live)),
        }
    }

    /// The peer broke the rules: asks the control side to leave it.
    pub(super) fn complain(&self) {
        self.state.complain();
    }
}
