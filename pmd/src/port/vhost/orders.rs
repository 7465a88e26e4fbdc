//! How a ring is to serve its guest, as the guest says through its control queue: which packets it gets,
//! what they may leave to it, and how often it is called.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan};

use super::filter::{Filter, HEAD};
use crate::batch::Batch;
use crate::port::drop_packet;

/// The orders for one ring.
pub(crate) struct Orders {
    pub(super) delivery: Delivery,
    /// Features that its frames are wrapped by: those that the guest has turned off since are left out.
    pub(super) features: u64,
    pub(super) moderation: Moderation,
}

impl Orders {
    /// Whatever the features say, and no more.
    pub(super) fn of(features: u64) -> Orders {
        Orders { delivery: Delivery::All, features, moderation: Moderation::default() }
    }
}

/// Which packets a guest gets.
pub(super) enum Delivery {
    All,
    /// Those that pass.
    Some(Box<Sieve>),
    /// None: the queue pair is not in use.
    Nothing,
}

/// A filter, and a place for what passes.
pub(super) struct Sieve {
    pub(super) filter: Arc<Filter>,
    /// Empty between calls.
    pub(super) kept: Batch<Buf>,
}

impl Sieve {
    /// Finishes what is not wanted: `batch` holds the others then, in their order. How many went. Nothing is
    /// looked at unless `done` has room for all receipts.
    pub(super) fn sift(&mut self, batch: &mut Batch<Buf>, done: &mut Batch<Loan>) -> Option<usize> {
        if done.room() < batch.len() {
            return None;
        }
        let mut refused = 0;
        while !batch.is_empty() {
            let (bufs, _) = batch.packet_at(0);
            let (mut head, mut got) = ([0; HEAD], 0);
            for buf in batch.iter().take(bufs) {
                got += buf.read(0, &mut head[got..]);
            }
            if self.filter.takes(&head, got) {
                (0..bufs).for_each(|_| self.kept.push(batch.pop_front().expect("counted")));
            } else {
                drop_packet(batch, done);
                refused += 1;
            }
        }
        self.kept.move_to(batch);
        Some(refused)
    }
}

/// How often a guest is called (virtio 1.3 §5.1.6.5.9): after so many packets, or so many microseconds after
/// the first of them, whichever is sooner. At once when either is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moderation {
    pub(super) packets: u32,
    pub(super) usecs: u32,
}

/// What a guest was not called for yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    packets: u64,
    since: Option<Instant>,
}

impl Waiting {
    /// More of it.
    #[inline(always)]
    pub(super) fn add(&mut self, packets: usize) {
        self.packets += packets as u64;
    }

    /// Whether the call is held back.
    #[inline(always)]
    pub(super) fn holds(&mut self, moderation: Moderation) -> bool {
        if moderation.packets == 0 || moderation.usecs == 0 || self.packets == 0 {
            *self = Waiting::default();
            return false;
        }
        self.not_due(moderation, Instant::now())
    }

    fn not_due(&mut self, moderation: Moderation, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let held = Duration::from_micros(moderation.usecs.into());
        let due = self.packets >= moderation.packets.into() || now.saturating_duration_since(since) >= held;
        if due {
            *self = Waiting::default();
        }
        !due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_held_back_for_so_many_packets_or_so_long() {
        let now = Instant::now();
        let at = |us| now + Duration::from_micros(us);
        let moderation = Moderation { packets: 10, usecs: 50 };
        let mut waiting = Waiting::default();
        assert!(!waiting.holds(moderation), "nothing waits");
        waiting.add(4);
        assert!(waiting.not_due(moderation, at(0)) && waiting.not_due(moderation, at(49)));
        assert!(!waiting.not_due(moderation, at(50)), "long enough");
        waiting.add(9);
        assert!(waiting.not_due(moderation, at(60)));
        waiting.add(1);
        assert!(!waiting.not_due(moderation, at(61)), "enough of them");
        for at_once in [Moderation { packets: 0, usecs: 50 }, Moderation { packets: 10, usecs: 0 }] {
            waiting.add(1);
            assert!(!waiting.holds(at_once));
        }
    }
}
