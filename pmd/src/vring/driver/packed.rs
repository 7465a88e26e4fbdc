//! The driver's side of a packed ring: virtio 1.3 §2.8.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{OutOfRange, Table, Window, Words};

use super::{Areas, Lie, Ring, Segment, Slot, Tables, Used, packed_word, room, slots};
use crate::spec::virtio as v;
use crate::vring::notify::passed_packed;

const BOTH: u16 = v::DESC_F_AVAIL | v::DESC_F_USED;

/// A place in the ring and the wrap counter of whoever stands there (§2.8.1).
#[derive(Clone, Copy)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    #[inline(always)]
    fn advance(&mut self, descs: u16, size: u16) {
        self.at += descs;
        if self.at >= size {
            self.at -= size;
            self.wrap = !self.wrap;
        }
    }
}

/// The driver's side of a packed ring.
pub struct Packed {
    size: u16,
    event_idx: bool,
    in_order: bool,
    /// Two words a descriptor: address; length, id and flags.
    desc: Window<u64>,
    /// One word: place and wrap counter, flags (§2.8.14).
    driver: Window<u32>,
    device: Window<u32>,
    tables: Option<Tables>,
    slots: Box<[Slot]>,
    /// Free ids: the first and the last of their list. First in, first out, so that with in-order
    /// devices they go round.
    first: u16,
    last: u16,
    /// Descriptors that can be added, and chains the device has, added ones included.
    free: u16,
    out: u16,
    /// Where the next descriptor is added, and where the next used one is looked for.
    next: Place,
    taken: Place,
    /// What was added and is not published: descriptors, place and second word of the first of them,
    /// which is held back, for the device goes by it.
    staged: u16,
    held: (u16, u64),
    /// In-order: the oldest id out; the end of the batch that is being taken.
    oldest: u16,
    batch: Option<Used>,
}

impl Ring for Packed {
    fn open(areas: &Areas, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        areas.clear(table)?;
        let start = Place { at: 0, wrap: true };
        Ok(Packed {
            size: areas.size,
            event_idx: areas.has(v::F_EVENT_IDX),
            in_order: areas.has(v::F_IN_ORDER),
            desc: table.window(areas.desc, 2 * usize::from(areas.size))?,
            driver: table.window(areas.driver, 1)?,
            device: table.window(areas.device, 1)?,
            tables: Tables::open(areas, table)?,
            slots: slots(areas.size),
            first: 0,
            last: areas.size - 1,
            free: areas.size,
            out: 0,
            next: start,
            taken: start,
            staged: 0,
            held: (0, 0),
            oldest: 0,
            batch: None,
        })
    }

    #[inline(always)]
    fn add(&mut self, chain: &[Segment]) -> Option<u16> {
        let n = chain.len();
        assert!(n > 0 && n <= usize::from(self.size), "a chain of {n} in a ring of {}", self.size);
        if n > usize::from(self.free) {
            return None;
        }
        let id = self.take_id(n as u16, room(chain));
        for (i, segment) in chain.iter().enumerate() {
            let more = if i + 1 < n { v::DESC_F_NEXT } else { 0 };
            self.put(segment.addr, segment.len, id, segment.flags() | more);
        }
        Some(id)
    }

    fn add_indirect(&mut self, chain: &[Segment]) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let id = self.take_id(1, room(chain));
        let tables = self.tables.as_ref().expect("a ring with indirect tables");
        // §2.8.7: in the table only address, length and WRITE count.
        let at = tables.write(id, chain, |_, segment| packed_word(segment.len, 0, segment.flags()));
        self.put(at, chain.len() as u32 * v::DESC_BYTES, id, v::DESC_F_INDIRECT);
        Some(id)
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        if self.staged == 0 {
            return false;
        }
        let (at, word) = self.held;
        // Pairs with the device's acquire load of the flags: it sees the batch after its first.
        self.desc.release(2 * usize::from(at) + 1, word);
        // The device says what it wants, then looks at the flags; here it is the other way about. The
        // fence pairs with the device's: one of the two sees the other (§2.8.21.3.1).
        fence(Ordering::SeqCst);
        let staged = std::mem::take(&mut self.staged);
        passed_packed(self.device.get(0), self.next.at, self.next.wrap, staged, self.size)
    }

    #[inline(always)]
    fn used(&mut self) -> Result<Option<Used>, Lie> {
        if self.out == 0 {
            return Ok(None);
        }
        if let Some(end) = self.batch {
            return self.used_in_order(end).map(Some);
        }
        let Some(word) = self.used_word() else {
            return Ok(None);
        };
        let used = Used { id: (word >> 32) as u16, len: word as u32 };
        if used.id >= self.size {
            return Err(Lie::Range { id: used.id, size: self.size });
        }
        if self.slots[usize::from(used.id)].descs == 0 {
            return Err(Lie::NotOffered(used.id));
        }
        if self.in_order {
            return self.used_in_order(used).map(Some);
        }
        self.home(used.id);
        Ok(Some(used))
    }

    fn arm(&mut self, after: Option<u16>) -> bool {
        let Some(after) = after else {
            self.driver.set(0, u32::from(v::EVENT_DISABLE) << 16);
            return false;
        };
        if self.event_idx {
            let mut place = self.taken;
            place.advance(after.min(self.size - 1), self.size);
            let off_wrap = place.at | u16::from(place.wrap) << 15;
            self.driver.set(0, u32::from(off_wrap) | u32::from(v::EVENT_DESC) << 16);
        } else {
            self.driver.set(0, u32::from(v::EVENT_ENABLE) << 16);
        }
        // Pairs with the device's fence between its used flags and its look at what was just set.
        fence(Ordering::SeqCst);
        self.out > 0 && (self.batch.is_some() || self.used_word().is_some())
    }

    #[inline(always)]
    fn free(&self) -> u16 {
        self.free
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn indirect(&self) -> u16 {
        self.tables.as_ref().map_or(0, |tables| tables.entries)
    }
}

impl Packed {
    #[inline(always)]
    fn take_id(&mut self, descs: u16, room: u32) -> u16 {
        let id = self.first;
        let slot = &mut self.slots[usize::from(id)];
        self.first = slot.next;
        (slot.descs, slot.room) = (descs, room);
        self.free -= descs;
        self.out += 1;
        id
    }

    /// Writes the next descriptor.
    #[inline(always)]
    fn put(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let at = usize::from(self.next.at);
        // §2.8.1: available is AVAIL equal to the wrap counter and USED not.
        let lap = if self.next.wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED };
        let word = packed_word(len, id, flags | lap);
        self.desc.set(2 * at, addr);
        if self.staged == 0 {
            self.held = (self.next.at, word);
        } else {
            self.desc.set(2 * at + 1, word);
        }
        self.staged += 1;
        self.next.advance(1, self.size);
    }

    /// The second word of the next used descriptor, if it is used.
    #[inline(always)]
    fn used_word(&self) -> Option<u64> {
        // Pairs with the device's release store of the flags: length, id and buffers are read after.
        // One load has them all, for the device writes the flags last.
        let word = self.desc.acquire(2 * usize::from(self.taken.at) + 1);
        // §2.8.1: used is both equal to the wrap counter.
        let lap = if self.taken.wrap { BOTH } else { 0 };
        ((word >> 48) as u16 & BOTH == lap).then_some(word)
    }

    /// §2.8.9: a device may write one used descriptor for a batch, that of the last chain, at the place
    /// of the first; the others were used completely.
    fn used_in_order(&mut self, end: Used) -> Result<Used, Lie> {
        let id = self.oldest;
        self.oldest = if id + 1 == self.size { 0 } else { id + 1 };
        let room = self.slots[usize::from(id)].room;
        self.batch = (id != end.id).then_some(end);
        self.home(id);
        Ok(if id == end.id { end } else { Used { id, len: room } })
    }

    #[inline(always)]
    fn home(&mut self, id: u16) {
        let descs = std::mem::take(&mut self.slots[usize::from(id)].descs);
        if self.out == self.size {
            self.first = id;
        } else {
            self.slots[usize::from(self.last)].next = id;
        }
        self.last = id;
        self.out -= 1;
        self.free += descs;
        self.taken.advance(descs, self.size);
    }
}
