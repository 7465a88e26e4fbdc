//! How long the control thread waits for rings that do not come home, since other ports wait with it.

use std::time::{Duration, Instant};

/// How long one message may wait for rings to come home, all of them together; and how long all messages of
/// a port may wait in vain in [`PATIENCE_PERIOD`], since other ports wait with them.
pub(in crate::port::vhost) const PATIENCE: Duration = Duration::from_secs(2);
/// A port that has used up its patience gets it back after so long.
pub(in crate::port::vhost) const PATIENCE_PERIOD: Duration =
    Duration::from_secs(if cfg!(test) { 5 } else { 20 });

/// How long a message waits at the least for a ring that runs, whatever messages before it waited in vain: those
/// may have been another front-end's. Longer than packets are parked: what an `INVALIDATE` is refused for may be
/// accessed after all.
pub(super) const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// What is left of a port's patience.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    spent: Duration,
}

impl Patience {
    /// How long may be waited at `now`.
    pub(super) fn left(&mut self, now: Instant) -> Duration {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PATIENCE_PERIOD) {
            *self = Patience { since: Some(now), spent: Duration::ZERO };
        }
        PATIENCE.saturating_sub(self.spent)
    }

    /// It was waited so long in vain.
    pub(super) fn spend(&mut self, waited: Duration) {
        self.spent += waited;
    }
}
