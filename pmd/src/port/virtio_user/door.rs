//! How rings come to a queue on its core: the control thread leaves them at the door and knocks; the
//! queue looks for a knock in `reap`, one relaxed load, and then takes them in under the lock.

use std::io;
use std::sync::{Arc, Mutex};

use super::control::State;
use crate::port::knock::Knock;
use crate::sys::eventfd::EventFd;
use crate::vring::driver::{Packed, Split};

/// The two rings of a queue pair, of one layout: receive, transmit.
#[allow(clippy::large_enum_variant)]
pub(super) enum Rings {
    Split(Split, Split),
    Packed(Packed, Packed),
}

/// A queue pair that the back-end runs.
pub(super) struct Live {
    pub(super) rings: Rings,
    /// What wakes the back-end: receive, transmit.
    pub(super) kick: [EventFd; 2],
    /// Negotiated.
    pub(super) features: u64,
}

enum Mail {
    Nothing,
    Down,
    Up(Box<Live>),
}

/// Between the control thread and one queue.
pub(super) struct Door {
    /// Its bell is rung by the back-end, too, when it has used buffers that were waited for.
    knock: Knock,
    mail: Mutex<Mail>,
    state: Arc<State>,
}

impl Door {
    pub(super) fn new(state: &Arc<State>) -> io::Result<Door> {
        Ok(Door { knock: Knock::new()?, mail: Mutex::new(Mail::Nothing), state: Arc::clone(state) })
    }

    pub(super) fn bell(&self) -> &Arc<EventFd> {
        self.knock.bell()
    }

    /// Leaves rings for the queue.
    pub(super) fn give(&self, live: Box<Live>) {
        self.post(Mail::Up(live));
    }

    /// Tells the queue that the back-end is gone. Whether rings that it was given still lay here: it
    /// has not touched them.
    pub(super) fn down(&self) -> bool {
        matches!(self.post(Mail::Down), Mail::Up(_))
    }

    fn post(&self, mail: Mail) -> Mail {
        let before = std::mem::replace(&mut *self.mail.lock().expect("no holder panics"), mail);
        self.knock.knock();
        before
    }

    /// Whether there is mail; clears the knock.
    #[inline(always)]
    pub(super) fn knocked(&self) -> bool {
        self.knock.knocked()
    }

    /// Takes the mail: `None`, there is none; `Some(None)`, the back-end is gone.
    pub(super) fn look(&self) -> Option<Option<Box<Live>>> {
        match std::mem::replace(&mut *self.mail.lock().expect("no holder panics"), Mail::Nothing) {
            Mail::Nothing => None,
            Mail::Down => Some(None),
            Mail::Up(live) => Some(Some(live)),
        }
    }

    /// The back-end broke the rules: asks the control thread to leave it.
    pub(super) fn complain(&self) {
        self.state.complain();
    }
}
