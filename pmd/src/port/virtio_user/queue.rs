//! The data side: one queue pair.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use hugepages::{Buf, Loan};

use super::MAX_SEGMENTS;
use super::door::{Door, Live, Rings};
use super::frames::Frames;
use super::receive::{Receive, fill};
use super::send::{Send, clean};
use super::wire::Wire;
use crate::batch::Batch;
use crate::port::{Counters, Queue};
use crate::vring::driver::{Lie, Ring};

/// Used buffers that are waited for before the receive ring is filled again, so that publishing is
/// shared between them; a quarter of a small ring.
const REFILL: u16 = 32;

/// What a back-end did wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Ring(#[from] Lie),
    #[error("received packet takes {0} buffers; at most {MAX_SEGMENTS} hold the longest")]
    Buffers(u16),
}

/// One queue pair of a virtio-user port.
pub(super) struct UserQueue {
    /// For the log.
    name: String,
    live: Option<Live>,
    frames: Frames,
    /// Received buffers on their way to be lent: a packet whose last buffers have not come waits here.
    arrived: Batch<Buf>,
    /// Receipts of what was copied.
    done: Batch<Loan>,
    door: Arc<Door>,
    counters: Arc<Counters>,
}

impl UserQueue {
    pub(super) fn new(name: String, frames: Frames, door: Arc<Door>) -> Self {
        let (arrived, done) = (Batch::default(), Batch::default());
        UserQueue { name, live: None, frames, arrived, done, door, counters: Arc::default() }
    }

    /// Takes in what the control thread left at the door.
    #[cold]
    fn answer(&mut self) {
        let Some(mail) = self.door.look() else { return };
        self.drop_rings();
        if let Some(live) = mail {
            self.live = Some(*live);
            self.fill(1);
            self.quiet();
        }
    }

    /// Lets go of the rings: the frames in them are free.
    fn drop_rings(&mut self) {
        self.live = None;
        while let Some(buf) = self.arrived.pop_front() {
            self.frames.drop(buf);
        }
        self.frames.reclaim();
    }

    /// The back-end broke the rules: no more of it, until the control thread has new rings.
    #[cold]
    fn retire(&mut self, fault: Fault) {
        self.counters.faults.add(1);
        tracing::error!("{}: rings retired: {fault}; the connection is begun anew", self.name);
        self.drop_rings();
        self.door.complain();
    }

    /// Takes home what was sent when frames are scarce, though nothing is to be sent now.
    #[cold]
    fn clean(&mut self) {
        let cleaned = match self.live.as_mut().map(|live| &mut live.rings) {
            Some(Rings::Split(_, tx)) => clean(tx, &mut self.frames),
            Some(Rings::Packed(_, tx)) => clean(tx, &mut self.frames),
            None => Ok(()),
        };
        if let Err(lie) = cleaned {
            self.retire(lie.into());
        }
    }

    /// Asks not to be called.
    fn quiet(&mut self) {
        match self.live.as_mut().map(|live| &mut live.rings) {
            Some(Rings::Split(rx, tx)) => _ = (rx.arm(None), tx.arm(None)),
            Some(Rings::Packed(rx, tx)) => _ = (rx.arm(None), tx.arm(None)),
            None => {}
        }
    }

    /// Puts free frames into the receive ring, if it has room for `least`.
    #[inline(always)]
    fn fill(&mut self, least: u16) {
        let Some(live) = &mut self.live else { return };
        let kick = match &mut live.rings {
            Rings::Split(rx, _) => fill(rx, &mut self.frames, least),
            Rings::Packed(rx, _) => fill(rx, &mut self.frames, least),
        };
        if kick {
            live.kick[0].signal();
            self.counters.calls.add(1);
        }
    }
}

impl Queue for UserQueue {
    #[inline]
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let Some(live) = &mut self.live else { return 0 };
        let wire = Wire::of(live.features);
        let mut from =
            Receive { wire, frames: &mut self.frames, arrived: &mut self.arrived, counters: &self.counters };
        let (packets, fault) = match &mut live.rings {
            Rings::Split(rx, _) => from.burst(rx, out),
            Rings::Packed(rx, _) => from.burst(rx, out),
        };
        match fault {
            None => self.fill(REFILL),
            Some(fault) => self.retire(fault),
        }
        packets
    }

    #[inline]
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let Some(live) = &mut self.live else { return 0 };
        let wire = Wire::of(live.features);
        let mut to = Send { wire, frames: &mut self.frames, done: &mut self.done, counters: &self.counters };
        let sent = match &mut live.rings {
            Rings::Split(_, tx) => to.burst(tx, batch),
            Rings::Packed(_, tx) => to.burst(tx, batch),
        };
        match sent {
            Ok((packets, kick)) => {
                if kick {
                    live.kick[1].signal();
                    self.counters.calls.add(1);
                }
                packets
            }
            Err(fault) => {
                self.retire(fault);
                0
            }
        }
    }

    #[inline]
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.door.knocked() {
            self.answer();
        }
        if self.frames.low() {
            self.clean();
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    #[inline]
    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.frames.settle(loans);
    }

    fn lent(&self) -> u32 {
        self.frames.out() - self.arrived.len() as u32
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        if self.door.knocked() {
            self.answer();
            return false;
        }
        self.fill(1);
        let more = match self.live.as_mut().map(|live| &mut live.rings) {
            Some(Rings::Split(rx, _)) => rx.arm(Some(0)),
            Some(Rings::Packed(rx, _)) => rx.arm(Some(0)),
            None => false,
        };
        if more {
            return false;
        }
        wait(self.door.bell().as_fd());
        true
    }

    fn wake(&mut self, rung: bool) {
        if rung {
            self.door.bell().clear();
        }
        self.quiet();
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for UserQueue {
    fn drop(&mut self) {
        self.drop_rings();
    }
}
