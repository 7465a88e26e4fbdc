//! The in-flight record of one ring (spec "Inflight I/O tracking"): which chains were taken and are not given
//! back yet, in memory that outlives this process, so that the next one gives back each of them, once.
//!
//! Every word is written in the order of the specification: a process can be killed between any two. What is
//! read at the start was written by whoever ran the ring before, and is checked like anything of a driver.

use std::collections::VecDeque;
use std::sync::Arc;

use hugepages::{OutOfRange, Table, Window, Words};

use super::{Layout, RingLayout};
use crate::spec::virtio as v;

/// A part of the record's memory.
#[derive(Clone, Debug)]
pub struct Area {
    /// The memory.
    pub table: Arc<Table>,
    /// First byte in it, a multiple of 8.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// Bytes that the record of a ring of `size` entries takes, rounded up as every back-end does it.
pub fn bytes(packed: bool, size: u16) -> u64 {
    let n = u64::from(size);
    (if packed { 29 + 32 * n } else { 16 + 16 * n }).next_multiple_of(64)
}

const VERSION: u16 = 1;

// `QueueRegionSplit` and `QueueRegionPacked`, in words of 16 bits; the features are words 0 to 3.
const AT_VERSION: usize = 4;
const AT_NUM: usize = 5;
const LAST_BATCH_HEAD: usize = 6;
const USED_IDX: usize = 7;
const FREE_HEAD: usize = 6;
const OLD_FREE_HEAD: usize = 7;
const USED: usize = 8;
const OLD_USED: usize = 9;
/// `used_wrap_counter`, and `old_used_wrap_counter` in the upper byte.
const WRAPS: usize = 10;

/// A chain that is to be taken again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    /// Head (split) or entry of the record (packed).
    pub(super) at: u16,
}

/// Where a ring goes on after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Where the driver sees the used elements end: split: the index; packed: place and wrap counter.
    pub(super) used: u16,
    /// Places of the chains in flight, from there on.
    pub(super) places: u16,
}

/// The record of a ring.
pub(super) struct Record {
    packed: bool,
    size: u16,
    halves: Window<u16>,
    words: Window<u64>,
    counter: u64,
    /// Chains to be taken again, the next one first.
    again: VecDeque<Again>,
    /// By id: it was taken again.
    retaken: Vec<bool>,
    /// By id: its entry (packed).
    entries: Vec<u16>,
    /// Heads or entries that are staged.
    staged: Vec<u16>,
}

impl Record {
    /// The record in this memory: gone on with if it is one of such a ring, and begun if not. `seen` is
    /// [`Layout::seen`] of the ring. Where the ring goes on, if that is not where the front-end says.
    ///
    /// # Errors
    /// When the area is too small for the ring.
    pub(super) fn open(
        area: &Area,
        ring: &RingLayout,
        seen: impl Fn(u16) -> u16,
    ) -> Result<(Record, Option<Start>), OutOfRange> {
        let packed = ring.has(v::F_RING_PACKED);
        let need = bytes(packed, ring.size);
        if area.len < need {
            return Err(OutOfRange { gpa: area.at, len: need });
        }
        let n = usize::from(ring.size);
        let len = (n + 1) * if packed { 32 } else { 16 };
        let mut record = Record {
            packed,
            size: ring.size,
            halves: area.table.window(area.at, len / 2)?,
            words: area.table.window(area.at, len / 8)?,
            counter: 0,
            again: VecDeque::new(),
            retaken: vec![false; n],
            entries: vec![0; n],
            staged: Vec::new(),
        };
        let known = record.half(AT_VERSION) == VERSION && record.half(AT_NUM) == ring.size;
        let start = known.then(|| record.recover(seen)).flatten();
        if start.is_none() {
            record.begin(ring);
        }
        Ok((record, start))
    }

    fn half(&self, at: usize) -> u16 {
        self.halves.get(at)
    }

    fn set(&self, at: usize, value: u16) {
        // Release: a process that is killed has made its writes in the order of the program.
        self.halves.release(at, value);
    }

    /// First half-word of an entry.
    fn entry(&self, i: u16) -> usize {
        if self.packed { 16 + 16 * usize::from(i) } else { 8 + 8 * usize::from(i) }
    }

    fn inflight(&self, i: u16) -> bool {
        self.half(self.entry(i)) & 0xff != 0
    }

    fn set_inflight(&self, i: u16, on: bool) {
        self.set(self.entry(i), on.into());
    }

    // Split: inflight, padding, next in the fourth half-word; then the counter. Packed: inflight, next, last,
    // num; counter; id, flags, len; address.
    fn next_at(&self, i: u16) -> usize {
        self.entry(i) + if self.packed { 1 } else { 3 }
    }

    fn count(&mut self, i: u16) {
        self.words.release(self.entry(i) / 4 + 1, self.counter);
        self.counter = self.counter.wrapping_add(1);
    }

    /// A new record of a ring of which nothing is in flight.
    fn begin(&mut self, ring: &RingLayout) {
        for i in 0..self.size {
            self.set_inflight(i, false);
            self.set(self.next_at(i), if self.packed { i + 1 } else { 0 });
        }
        if self.packed {
            let used = (ring.base >> 16) as u16;
            self.set(FREE_HEAD, 0);
            self.set(OLD_FREE_HEAD, 0);
            self.set_used(used, used);
        } else {
            self.set(LAST_BATCH_HEAD, 0);
            self.set(USED_IDX, ring.base as u16);
        }
        self.set(AT_NUM, self.size);
        self.words.release(0, ring.features);
        self.set(AT_VERSION, VERSION);
        self.again.clear();
    }

    /// What the process before has left; `None`: that cannot be a record of this ring.
    fn recover(&mut self, seen: impl Fn(u16) -> u16) -> Option<Start> {
        let used = if self.packed { self.recover_packed(seen)? } else { self.recover_split(seen)? };
        let mut flying: Vec<(u64, u16)> = (0..self.size)
            .filter(|&i| self.inflight(i))
            .map(|i| (self.words.get(self.entry(i) / 4 + 1), i))
            .collect();
        flying.sort_unstable();
        self.counter = flying.last().map_or(0, |last| last.0.wrapping_add(1));
        let mut places = 0u32;
        for &(_, at) in &flying {
            places += if self.packed { u32::from(self.half(self.entry(at) + 3)) } else { 1 };
        }
        if places > self.size.into() {
            return None;
        }
        self.again = flying.into_iter().map(|(_, at)| Again { at }).collect();
        if self.packed {
            self.relink()?;
        }
        Some(Start { used, places: places as u16 })
    }

    fn recover_split(&mut self, seen: impl Fn(u16) -> u16) -> Option<u16> {
        let used = seen(0);
        let n = used.wrapping_sub(self.half(USED_IDX));
        if n > self.size {
            return None;
        }
        // The batch that was published and not cleared.
        let mut head = self.half(LAST_BATCH_HEAD);
        for _ in 0..n {
            if head >= self.size {
                return None;
            }
            self.set_inflight(head, false);
            head = self.half(self.next_at(head));
        }
        self.set(USED_IDX, used);
        Some(used)
    }

    fn recover_packed(&mut self, seen: impl Fn(u16) -> u16) -> Option<u16> {
        let (used, old) = self.used();
        if used & 0x7fff >= self.size || old & 0x7fff >= self.size {
            return None;
        }
        if used != old {
            if seen(old) != 0 {
                // Published and not cleared: what is free now and was not before.
                let (mut at, end) = (self.half(FREE_HEAD), self.half(OLD_FREE_HEAD));
                for _ in 0..self.size {
                    if at == end || at >= self.size {
                        break;
                    }
                    self.set_inflight(at, false);
                    at = self.half(self.next_at(self.last(at)?));
                }
                self.set(OLD_FREE_HEAD, self.half(FREE_HEAD));
                self.set_used(used, used);
            } else {
                self.set(FREE_HEAD, self.half(OLD_FREE_HEAD));
                self.set_used(old, old);
            }
        }
        Some(self.used().0)
    }

    /// The list of free entries, anew: all that belong to no chain in flight.
    fn relink(&mut self) -> Option<()> {
        let mut taken = vec![false; usize::from(self.size)];
        for again in &self.again {
            let mut at = again.at;
            for _ in 0..self.half(self.entry(again.at) + 3) {
                if std::mem::replace(taken.get_mut(usize::from(at))?, true) {
                    return None;
                }
                at = self.half(self.next_at(at));
            }
        }
        let free: Vec<u16> = (0..self.size).filter(|&i| !taken[usize::from(i)]).collect();
        for pair in free.windows(2) {
            self.set(self.next_at(pair[0]), pair[1]);
        }
        if let Some(&last) = free.last() {
            self.set(self.next_at(last), self.size);
        }
        let head = free.first().copied().unwrap_or(self.size);
        self.set(FREE_HEAD, head);
        self.set(OLD_FREE_HEAD, head);
        Some(())
    }

    fn last(&self, head: u16) -> Option<u16> {
        Some(self.half(self.entry(head) + 2)).filter(|&last| last < self.size)
    }

    /// Where the used elements end, and where they ended when the last batch was cleared: as half a base.
    fn used(&self) -> (u16, u16) {
        let wraps = self.half(WRAPS);
        let bit = |on: bool| if on { 0x8000 } else { 0 };
        (self.half(USED) | bit(wraps & 0xff != 0), self.half(OLD_USED) | bit(wraps >> 8 != 0))
    }

    fn set_used(&self, used: u16, old: u16) {
        self.set(USED, used & 0x7fff);
        self.set(OLD_USED, old & 0x7fff);
        self.set(WRAPS, used >> 15 | old >> 15 << 8);
    }

    /// The chain that is to be taken again before any other.
    pub(super) fn next(&self) -> Option<Again> {
        self.again.front().copied()
    }

    /// The descriptors of a chain that is to be taken again: address; length, id, flags (packed).
    pub(super) fn descriptors(&self, again: Again) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        if !self.packed {
            return all;
        }
        let mut at = again.at;
        for _ in 0..self.half(self.entry(again.at) + 3).min(self.size) {
            if at >= self.size {
                break;
            }
            let entry = self.entry(at);
            let (id, flags) = (u64::from(self.half(entry + 8)), u64::from(self.half(entry + 9)));
            let len = u64::from(self.half(entry + 10)) | u64::from(self.half(entry + 11)) << 16;
            all.push((self.words.get(entry / 4 + 3), len | id << 32 | flags << 48));
            at = self.half(self.next_at(at));
        }
        all
    }

    /// The chain that was to be taken again is taken, under this id.
    pub(super) fn retake(&mut self, id: u16) {
        let again = self.again.pop_front().expect("looked at before");
        self.retaken[usize::from(id)] = true;
        self.entries[usize::from(id)] = again.at;
    }

    /// Whether that chain was one to be taken again; it goes back to them.
    pub(super) fn put_back(&mut self, id: u16) -> bool {
        let retaken = std::mem::take(&mut self.retaken[usize::from(id)]);
        let entry = self.entries[usize::from(id)];
        if retaken {
            self.again.push_front(Again { at: if self.packed { entry } else { id } });
        } else if self.packed {
            self.set_inflight(entry, false);
            self.free(entry);
            self.set(OLD_FREE_HEAD, self.half(FREE_HEAD));
        } else {
            self.set_inflight(id, false);
        }
        retaken
    }

    /// A chain was taken from the ring. Its descriptors, of a packed one.
    pub(super) fn take(&mut self, id: u16, descriptors: &[(u64, u64)]) {
        if !self.packed {
            self.count(id);
            return self.set_inflight(id, true);
        }
        let head = self.half(FREE_HEAD);
        let (mut at, mut last) = (head, head);
        for &(addr, rest) in descriptors {
            if at >= self.size {
                return; // The record was tampered with; it is not ours to mend.
            }
            let entry = self.entry(at);
            self.words.set(entry / 4 + 3, addr);
            self.set(entry + 8, (rest >> 32) as u16);
            self.set(entry + 9, (rest >> 48) as u16);
            self.set(entry + 10, rest as u16);
            self.set(entry + 11, (rest >> 16) as u16);
            last = at;
            at = self.half(self.next_at(at));
        }
        self.set(self.entry(head) + 2, last);
        self.set(self.entry(head) + 3, descriptors.len() as u16);
        self.count(head);
        self.set_inflight(head, true);
        self.set(FREE_HEAD, at);
        self.set(OLD_FREE_HEAD, at);
        self.entries[usize::from(id)] = head;
    }

    /// A chain is about to be staged as used.
    pub(super) fn stage(&mut self, id: u16) {
        self.retaken[usize::from(id)] = false;
        self.staged.push(if self.packed { self.entries[usize::from(id)] } else { id });
    }

    /// The entries of a chain are in front of the free ones.
    fn free(&self, head: u16) {
        if let Some(last) = self.last(head) {
            self.set(self.next_at(last), self.half(FREE_HEAD));
            self.set(FREE_HEAD, head);
        }
    }

    /// What is staged is about to become visible, up to there, see [`Layout::used_end`].
    pub(super) fn publish(&mut self, used: u16) {
        for &at in &self.staged {
            if self.packed {
                // Not before: what is taken meanwhile must not be written over a chain that comes back.
                self.free(at);
            } else {
                self.set(self.next_at(at), self.half(LAST_BATCH_HEAD));
                self.set(LAST_BATCH_HEAD, at);
            }
        }
        if self.packed {
            let old = self.used().1;
            self.set_used(used, old);
        }
    }

    /// What was staged is visible.
    pub(super) fn published(&mut self, used: u16) {
        for i in 0..self.staged.len() {
            self.set_inflight(self.staged[i], false);
        }
        self.staged.clear();
        if self.packed {
            self.set(OLD_FREE_HEAD, self.half(FREE_HEAD));
            self.set_used(used, used);
        } else {
            self.set(USED_IDX, used);
        }
    }
}

impl<L: Layout> super::Vring<L> {
    /// Keeps the in-flight record in this memory from now on. If it holds one of this ring, that counts: what
    /// was in flight is popped again before anything else, whatever the base. To be called before anything
    /// is popped.
    ///
    /// # Errors
    /// When the area is too small for the ring.
    pub fn record(&mut self, area: &Area) -> Result<(), OutOfRange> {
        let (record, start) = Record::open(area, &self.place, |at| self.layout.seen(at))?;
        if let Some(Start { used, places }) = start {
            self.layout.resume(used, places);
        }
        let mut track = self.track.take().unwrap_or_default();
        track.record = Some(record);
        self.track = Some(track);
        self.choose_way();
        Ok(())
    }
}
