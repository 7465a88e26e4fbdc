//! How a ring is to serve its guest, as the guest says through its control queue: which packets it gets,
//! what they may leave to it, and how often it is called.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan};

use super::filter::{Filter, HEAD};
use super::hash::Hashing;
use super::mail::Mail;
use super::steering::Steering;
use crate::batch::Batch;
use crate::port::drop_packet;

/// The orders for one ring.
pub(crate) struct Orders {
    pub(super) delivery: Delivery,
    /// What is reported of packets.
    pub(super) hashing: Option<Arc<Hashing>>,
    /// Features that its frames are wrapped by: those that the guest has turned off since are left out.
    pub(super) features: u64,
    pub(super) moderation: Moderation,
}

impl Orders {
    /// Whatever the features say, and no more.
    pub(super) fn of(features: u64) -> Orders {
        Orders { delivery: Delivery::All, hashing: None, features, moderation: Moderation::default() }
    }
}

/// Which packets a ring gets.
pub(super) enum Delivery {
    All,
    /// Those that pass, and are not for another ring.
    Some(Box<Sieve>),
}

impl Delivery {
    /// Whether what comes to this queue may be for other rings.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Delivery::Some(sieve) if !matches!(sieve.steering, Steering::Here))
    }
}

/// A filter, a way for what passes, and places for it.
pub(super) struct Sieve {
    filter: Arc<Filter>,
    steering: Steering,
    /// For this ring; empty between calls.
    kept: Batch<Buf>,
    /// By queue; empty between calls.
    others: Vec<Batch<Buf>>,
    /// Queues of which that is not empty.
    named: Vec<u16>,
}

/// Packets that are not for a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sifted {
    /// The guest wants them not at all.
    pub(super) refused: usize,
    /// They are for others of its rings.
    pub(super) elsewhere: usize,
    /// They are as well, and there was no room.
    pub(super) lost: usize,
}

impl Sieve {
    /// For one of so many queues.
    pub(super) fn new(filter: Arc<Filter>, steering: Steering, queues: usize) -> Sieve {
        let queues = if matches!(steering, Steering::Here) { 0 } else { queues };
        let others = (0..queues).map(|_| Batch::default()).collect();
        Sieve { filter, steering, kept: Batch::default(), others, named: Vec::with_capacity(queues) }
    }

    /// Finishes what is not wanted and sends on what is for other rings: `batch` holds the rest then, in its
    /// order. Nothing is looked at unless `done` has room for all receipts.
    pub(super) fn sift(
        &mut self,
        batch: &mut Batch<Buf>,
        done: &mut Batch<Loan>,
        mail: &mut Mail,
    ) -> Option<Sifted> {
        if done.room() < batch.len() {
            return None;
        }
        let mut sifted = Sifted::default();
        while !batch.is_empty() {
            let (bufs, _) = batch.packet_at(0);
            let (mut head, mut got) = ([0; HEAD], 0);
            for buf in batch.iter().take(bufs) {
                got += buf.read(0, &mut head[got..]);
            }
            if !self.filter.takes(&head, got) {
                drop_packet(batch, done);
                sifted.refused += 1;
                continue;
            }
            let queue = self.steering.queue(mail.index(), batch.iter().take(bufs));
            let to = if queue == mail.index() {
                &mut self.kept
            } else {
                sifted.elsewhere += 1;
                let to = &mut self.others[usize::from(queue)];
                if to.is_empty() {
                    self.named.push(queue);
                }
                to
            };
            (0..bufs).for_each(|_| to.push(batch.pop_front().expect("counted")));
        }
        self.kept.move_to(batch);
        for queue in self.named.drain(..) {
            let packets = &mut self.others[usize::from(queue)];
            mail.send(queue, packets);
            while !packets.is_empty() {
                drop_packet(packets, done);
                sifted.elsewhere -= 1;
                sifted.lost += 1;
            }
        }
        Some(sifted)
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
