//! How the control side of a port calls a queue that runs on a core: a flag that the queue looks at in
//! `reap`, a descriptor that wakes its core, and one count of all knocks, so that a core sees at a
//! glance whether it has to look at queues that rest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::sys::eventfd::EventFd;

/// On a line of its own: every core reads it every turn.
#[repr(align(128))]
struct Count(AtomicU32);

static KNOCKS: Count = Count(AtomicU32::new(0));

/// Counts all knocks of this process: when it changes, some queue may have been called.
#[inline(always)]
pub(crate) fn knocks() -> u32 {
    // Pairs with the release in `knock`: the flags of the knocks counted are seen.
    KNOCKS.0.load(Ordering::Acquire)
}

/// Between the control side and one queue.
pub(crate) struct Knock {
    waiting: AtomicBool,
    bell: Arc<EventFd>,
}

impl Knock {
    /// Nobody has knocked yet.
    pub(crate) fn new() -> io::Result<Knock> {
        Ok(Knock { waiting: AtomicBool::new(false), bell: Arc::new(EventFd::new()?) })
    }

    /// Calls the queue: something was put where it looks when somebody knocked.
    pub(crate) fn knock(&self) {
        // Pairs with the acquire in `knocked`: what was put there is seen.
        self.waiting.store(true, Ordering::Release);
        // Pairs with the acquire in `knocks`.
        KNOCKS.0.fetch_add(1, Ordering::Release);
        self.bell.signal();
    }

    /// Whether somebody knocked since the last call.
    #[inline(always)]
    pub(crate) fn knocked(&self) -> bool {
        // Relaxed first: the line is shared and quiet. The swap pairs with the release in `knock`.
        self.waiting.load(Ordering::Relaxed) && self.waiting.swap(false, Ordering::Acquire)
    }

    /// Whether somebody knocked and was not heard yet.
    pub(crate) fn knocking(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What readable means somebody knocked.
    pub(crate) fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knock_is_seen_once_and_counted() {
        let knock = Knock::new().unwrap();
        assert!(!knock.knocked());
        let before = knocks();
        knock.knock();
        knock.knock();
        assert_ne!(knocks(), before);
        assert!(knock.bell().clear());
        assert!(knock.knocking() && knock.knocked() && !knock.knocked());
    }
}
