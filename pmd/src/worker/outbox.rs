//! The queues of one core, as a stage sees them: where packets are sent, dropped, and copied.

use std::sync::Arc;

use hugepages::{Buf, Pool};

use super::QueueId;
use super::awake::{Awake, REST_POLLS, slots};
use super::counters::{CoreCounters, Stream};
use crate::batch::{Batch, CAP};
use crate::completion::Loans;
use crate::port::Queue;

/// Buffers that wait for a queue before it is called without waiting for the end of the turn.
const FLUSH: usize = 64;

/// Desks of the two pools; those of the queues follow. See [`Loans`].
const POOLS: u16 = 2;

/// One queue on its core.
pub(super) struct Slot {
    pub(super) id: QueueId,
    pub(super) queue: Box<dyn Queue>,
    pub(super) stream: Arc<Stream>,
    /// On its way home: neither `rx` nor `tx` is called any more.
    pub(super) leaving: bool,
    /// Calls of `rx` in a row that brought nothing.
    pub(super) empty: u32,
    /// Whole packets that wait to be sent.
    lane: Batch<Buf>,
}

/// Frames of the core's own: for packets that are made or rewritten here.
pub(super) struct Frames {
    pub(super) small: Pool,
    pub(super) large: Pool,
}

impl Frames {
    #[inline(always)]
    fn take(&mut self, len: u32) -> Option<Buf> {
        let small = if len <= self.small.frame() { self.small.take() } else { None };
        let mut frame = match small {
            None if len <= self.large.frame() => self.large.take(),
            other => other,
        }?;
        frame.truncate(len);
        Some(frame)
    }
}

/// Where a stage puts packets. Nothing is lost in it: every buffer it is given is sent or finished.
pub struct Outbox {
    pub(super) slots: Vec<Slot>,
    pub(super) frames: Frames,
    pub(super) counters: Arc<CoreCounters>,
    pub(super) awake: Awake,
    /// By queue id: 1 + its slot; 0 not here.
    at: Vec<u16>,
    /// Desks that are asked first: queues that carry other cores' buffers.
    carriers: Vec<u16>,
    loans: Loans,
    spare: Batch<Buf>,
    /// Direct receive: who fills whose buffers.
    feeds: Vec<Feed>,
}

/// A queue that fills another's empty buffers.
#[derive(Clone, Copy)]
struct Feed {
    filler: QueueId,
    guest: QueueId,
    /// Not any more: what it has is to come back.
    over: bool,
}

impl Outbox {
    pub(super) fn new(frames: Frames, counters: Arc<CoreCounters>) -> Outbox {
        Outbox {
            slots: Vec::new(),
            frames,
            counters,
            awake: Awake::default(),
            at: Vec::new(),
            carriers: Vec::new(),
            loans: Loans::new(),
            spare: Batch::default(),
            feeds: Vec::new(),
        }
    }

    /// The queues of this core, in the order of a turn.
    pub fn queues(&self) -> impl Iterator<Item = QueueId> {
        self.slots.iter().map(|slot| slot.id)
    }

    /// Whether the queue is on this core.
    #[inline(always)]
    pub fn has(&self, id: QueueId) -> bool {
        self.slot(id).is_some()
    }

    /// Sends one buffer, the next of its packet if the one before had `MORE`. A queue that is full
    /// drops the packet; so does one that is not on this core. Both are counted.
    #[inline(always)]
    pub fn send(&mut self, to: QueueId, buf: Buf) {
        let Some(i) = self.slot(to) else {
            return self.drop(buf);
        };
        if self.slots[i].lane.room() == 0 {
            self.make_room(i);
        }
        let whole = !buf.more();
        self.wake(i);
        let lane = &mut self.slots[i].lane;
        lane.push(buf);
        if whole && lane.len() >= FLUSH {
            self.flush(i);
        }
    }

    /// Sends all packets of a batch and leaves it empty.
    #[inline]
    pub fn send_all(&mut self, to: QueueId, batch: &mut Batch<Buf>) {
        let Some(i) = self.slot(to) else {
            return self.drop_all(batch);
        };
        if self.slots[i].lane.room() < batch.len() {
            self.flush(i);
        }
        self.wake(i);
        let lane = &mut self.slots[i].lane;
        if lane.is_empty() {
            // Nothing moves but the two batches' places.
            let burst = batch.burst();
            std::mem::swap(lane, batch);
            batch.set_burst(burst);
        } else {
            batch.move_to(lane);
        }
        if lane.len() >= FLUSH {
            self.flush(i);
        }
    }

    /// Finishes one buffer unsent. The last buffer of a packet counts as a packet dropped.
    #[inline]
    pub fn drop(&mut self, buf: Buf) {
        if !buf.more() {
            self.counters.dropped.add(1);
        }
        self.finish(buf);
    }

    /// Finishes all packets of a batch unsent.
    pub fn drop_all(&mut self, batch: &mut Batch<Buf>) {
        while let Some(buf) = batch.pop_front() {
            self.drop(buf);
        }
    }

    /// Lends a writable frame of this core's own, of `len` bytes; `None` when none (as large) is free.
    #[inline]
    pub fn frame(&mut self, len: u32) -> Option<Buf> {
        self.frames.take(len)
    }

    /// Lends up to `n` such frames to the back of `out`; how many.
    #[inline]
    pub fn frames(&mut self, n: usize, len: u32, out: &mut Batch<Buf>) -> usize {
        let Frames { small, large } = &mut self.frames;
        if len <= small.frame() {
            small.take_run(n, len, out)
        } else if len <= large.frame() {
            large.take_run(n, len, out)
        } else {
            0
        }
    }

    /// Takes the first packet of `batch` as one writable buffer: itself, if it is one already;
    /// otherwise a copy with the same offload, and the original is finished. `None` when the batch is
    /// empty, or when the packet had to be dropped for want of a frame (counted).
    #[inline]
    pub fn own(&mut self, batch: &mut Batch<Buf>) -> Option<Buf> {
        let first = batch.front()?;
        if first.writable() && !first.more() {
            return batch.pop_front();
        }
        let offload = first.offload;
        let (buffers, bytes) = batch.packet_at(0);
        let mut frame = self.frames.take(bytes);
        if frame.is_none() {
            self.counters.no_frame.add(1);
        }
        let mut at = 0;
        for _ in 0..buffers {
            let part = batch.pop_front().expect("packet_at counted it");
            if let Some(frame) = &mut frame {
                at += part.copy_part(0, frame, at, u32::MAX);
            }
            self.finish(part);
        }
        if let Some(frame) = &mut frame {
            frame.offload = offload;
        }
        frame
    }

    pub(super) fn attach(&mut self, id: QueueId, queue: Box<dyn Queue>, stream: Arc<Stream>) {
        let known = usize::from(id.0);
        if self.at.len() <= known {
            self.at.resize(known + 1, 0);
        }
        assert!(self.at[known] == 0, "the handle attaches {id} once");
        self.slots.push(Slot { id, queue, stream, leaving: false, empty: 0, lane: Batch::default() });
        self.renumber();
    }

    pub(super) fn detach(&mut self, i: usize) -> Slot {
        let slot = self.slots.swap_remove(i);
        debug_assert!(slot.lane.is_empty(), "flushed at the end of the turn");
        self.at[usize::from(slot.id.0)] = 0;
        self.renumber();
        slot
    }

    #[inline(always)]
    pub(super) fn slot(&self, id: QueueId) -> Option<usize> {
        match self.at.get(usize::from(id.0)) {
            None | Some(0) => None,
            Some(&at) => Some(usize::from(at) - 1),
        }
    }

    /// Ends a turn: what waits is sent, receipts are collected and brought home. Whether there were any.
    #[inline]
    pub(super) fn close_turn(&mut self) -> bool {
        let mut any = !self.loans.is_empty();
        if !self.feeds.is_empty() {
            self.feed();
        }
        for word in 0..self.awake.words() {
            for i in slots(word, self.awake.get(word)) {
                if !self.slots[i].lane.is_empty() {
                    self.flush(i);
                }
                any |= self.slots[i].queue.reap(self.loans.batch()) > 0;
                if self.loans.near_full() {
                    self.settle();
                }
                self.rest(i);
            }
        }
        if !self.loans.is_empty() {
            self.settle();
        }
        any
    }

    /// From now on the first queue of each pair fills empty buffers of the second, and no other does.
    pub(super) fn set_feeds(&mut self, pairs: &[(QueueId, QueueId)]) {
        self.feeds.iter_mut().for_each(|feed| feed.over = true);
        for &(filler, guest) in pairs {
            self.feeds.retain(|feed| (feed.filler, feed.guest) != (filler, guest));
            self.feeds.push(Feed { filler, guest, over: false });
        }
    }

    /// Hands empty buffers to those that fill them, and asks for them back where that is over.
    #[cold]
    fn feed(&mut self) {
        let mut i = 0;
        while let Some(&Feed { filler, guest, over }) = self.feeds.get(i) {
            i += 1;
            let Some(filler) = self.slot(filler) else { continue };
            let over = over || self.slots[filler].leaving;
            let guest = self.slot(guest).filter(|guest| !over && !self.slots[*guest].leaving);
            let wanted = self.slots[filler].queue.wants();
            let lent = match (guest, wanted) {
                (Some(guest), Some(wanted)) => self.slots[guest].queue.empty(&wanted, &mut self.spare),
                (Some(_), None) => Some(0),
                (None, _) => None,
            };
            let queue = &mut self.slots[filler].queue;
            match lent {
                Some(0) => {}
                Some(_) => {
                    queue.post(&mut self.spare);
                    while let Some(buf) = self.spare.pop_front() {
                        self.finish(buf);
                    }
                }
                None => queue.unpost(),
            }
        }
        let Outbox { feeds, slots, at, .. } = self;
        let has = |id: QueueId| match at.get(usize::from(id.0)) {
            None | Some(0) => false,
            Some(&at) => slots[usize::from(at) - 1].queue.held() > 0,
        };
        feeds.retain(|feed| !feed.over || has(feed.filler));
    }

    /// Has a queue looked after from this turn on, and for a while.
    #[inline(always)]
    pub(super) fn wake(&mut self, i: usize) {
        if self.awake.wake(i) {
            self.slots[i].empty = 0;
        }
    }

    /// Lets a queue rest that has brought nothing for a while, if it can.
    #[inline(always)]
    fn rest(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        if slot.empty >= REST_POLLS && !self.awake.rest(i, |monitor| slot.queue.rest(monitor)) {
            slot.empty = 0;
        }
    }

    /// Nobody rests until it has been asked in vain for a while again.
    pub(super) fn rouse(&mut self) {
        self.awake.reset(self.slots.len());
        self.slots.iter_mut().for_each(|slot| slot.empty = 0);
    }

    fn renumber(&mut self) {
        self.carriers.clear();
        for (i, slot) in self.slots.iter().enumerate() {
            self.at[usize::from(slot.id.0)] = i as u16 + 1;
            if slot.queue.carries() {
                self.carriers.push(POOLS + i as u16);
            }
        }
        self.loans.forget();
        self.rouse();
    }

    fn finish(&mut self, buf: Buf) {
        self.loans.push(buf.finish(0));
        if self.loans.near_full() {
            self.settle();
        }
    }

    fn settle(&mut self) {
        let Outbox { slots, frames, carriers, loans, counters, awake, .. } = self;
        let before = loans.lost();
        loans.settle(carriers, POOLS + slots.len() as u16, |desk, batch| match desk {
            0 => frames.small.settle_front(batch),
            1 => frames.large.settle_front(batch),
            n => {
                let i = usize::from(n - POOLS);
                slots[i].queue.settle(batch);
                if awake.wake(i) {
                    slots[i].empty = 0;
                }
            }
        });
        if loans.lost() != before {
            counters.lost.add(loans.lost() - before);
        }
    }

    #[inline]
    fn flush(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        let sent = if slot.leaving { 0 } else { slot.queue.tx(&mut slot.lane) };
        if sent > 0 {
            slot.stream.count_tx(sent);
        }
        if !slot.lane.is_empty() {
            self.drop_rest(i);
        }
    }

    #[cold]
    fn drop_rest(&mut self, i: usize) {
        while let Some(buf) = self.slots[i].lane.pop_front() {
            if !buf.more() {
                self.slots[i].stream.tx_dropped.add(1);
            }
            self.finish(buf);
        }
    }

    /// Sends the whole packets of a full lane, and keeps the beginning of one that is not whole yet.
    #[cold]
    fn make_room(&mut self, i: usize) {
        let lane = &mut self.slots[i].lane;
        while lane.get(lane.len() - 1).is_some_and(Buf::more) {
            assert!(lane.len() > 1, "a packet sent has at most {CAP} buffers");
            self.spare.push(lane.pop_back().expect("looked at it"));
        }
        self.flush(i);
        while let Some(buf) = self.spare.pop_back() {
            self.slots[i].lane.push(buf);
        }
    }
}
