//! Packets that wait until it is known where the buffers of their guest are: a translation takes as long as
//! its front-end needs, and none is lost for that.

use std::time::{Duration, Instant};

use hugepages::{Buf, Loan};

use crate::batch::Batch;

/// How long packets wait: their lenders wait with them.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whole packets of others, oldest first, as many as a batch holds.
#[derive(Default)]
pub(super) struct Parked {
    batch: Batch<Buf>,
    since: Option<Instant>,
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Buffers that wait.
    pub(super) fn len(&self) -> usize {
        self.batch.len()
    }

    /// The packets, to be delivered from the front.
    pub(super) fn batch(&mut self) -> &mut Batch<Buf> {
        &mut self.batch
    }

    /// Takes packets from the front of `packets`, as many as there is room for; how many.
    pub(super) fn take(&mut self, packets: &mut Batch<Buf>) -> usize {
        if self.batch.is_empty() {
            self.since = Some(Instant::now());
        }
        let mut n = 0;
        while !packets.is_empty() {
            let (bufs, _) = packets.packet_at(0);
            if bufs > self.batch.room() {
                break;
            }
            for _ in 0..bufs {
                self.batch.push(packets.pop_front().expect("counted"));
            }
            n += 1;
        }
        n
    }

    /// Some were delivered: the others wait from now on.
    pub(super) fn moved(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Whether they have waited for too long.
    pub(super) fn expired(&self) -> bool {
        !self.is_empty() && self.since.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// Finishes them undelivered, as far as `done` has room; how many packets that were.
    pub(super) fn finish(&mut self, done: &mut Batch<Loan>) -> u64 {
        let mut n = 0;
        while !self.batch.is_empty() {
            let (bufs, _) = self.batch.packet_at(0);
            if bufs > done.room() {
                break;
            }
            for _ in 0..bufs {
                done.push(self.batch.pop_front().expect("counted").finish(0));
            }
            n += 1;
        }
        n
    }
}
