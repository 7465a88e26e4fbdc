//! The driver's side of a split ring: virtio 1.3 §2.7.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{OutOfRange, Table, Window, Words};

use super::{Areas, Lie, Ring, Segment, Slot, Tables, Used, room, slots, split_word};
use crate::spec::virtio as v;
use crate::vring::notify::passed;

/// Index of `idx` in the 16-bit words of the available and the used ring; `flags` is word 0.
const IDX: usize = 1;
/// First entry of the available ring, in 16-bit words.
const ENTRIES: usize = 2;

/// The driver's side of a split ring.
pub struct Split {
    size: u16,
    /// The size less one. A word of its own: loaded together with a field that has just been written, it
    /// waits for that, which makes 36 ns of 24 (`cargo bench -p benches --bench virtio_user`).
    mask: usize,
    event_idx: bool,
    in_order: bool,
    /// Two words a descriptor: address; length, flags and next.
    desc: Window<u64>,
    /// `flags`, `idx`, one word an entry, `used_event`.
    avail: Window<u16>,
    /// `flags`, `idx`, four words an element, `avail_event`.
    used: Window<u16>,
    /// The same area in words of 32 bits: element `i` is the words `1 + 2i` (id) and `2 + 2i` (length).
    elements: Window<u32>,
    tables: Option<Tables>,
    slots: Box<[Slot]>,
    /// Free descriptors: how many, the first and the last of their list. First in, first out, which is
    /// what in-order devices expect (§2.7.9: ring order) and what is read in sequence by others.
    free: u16,
    first: u16,
    last: u16,
    /// Chains the device has, added ones included.
    out: u16,
    /// Available index with all that was added, and as published.
    next: u16,
    published: u16,
    /// Used elements taken, and the used index at the last look.
    taken: u16,
    seen: u16,
    /// In-order: the oldest chain out; the end of the batch that is being taken.
    oldest: u16,
    batch: Option<Used>,
}

impl Ring for Split {
    fn open(areas: &Areas, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        areas.clear(table)?;
        let n = usize::from(areas.size);
        Ok(Split {
            size: areas.size,
            mask: n - 1,
            event_idx: areas.has(v::F_EVENT_IDX),
            in_order: areas.has(v::F_IN_ORDER),
            desc: table.window(areas.desc, 2 * n)?,
            avail: table.window(areas.driver, 3 + n)?,
            used: table.window(areas.device, 3 + 4 * n)?,
            elements: table.window(areas.device, 1 + 2 * n)?,
            tables: Tables::open(areas, table)?,
            slots: slots(areas.size),
            free: areas.size,
            first: 0,
            last: areas.size - 1,
            out: 0,
            next: 0,
            published: 0,
            taken: 0,
            seen: 0,
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
        let head = self.first;
        let mut at = head;
        for (i, segment) in chain.iter().enumerate() {
            let next = self.slots[usize::from(at)].next;
            // §2.7.9: with IN_ORDER, `next` is the following descriptor, as the list of free ones has it.
            let (more, link) = if i + 1 < n { (v::DESC_F_NEXT, next) } else { (0, 0) };
            self.desc.set(2 * usize::from(at), segment.addr);
            self.desc.set(2 * usize::from(at) + 1, split_word(segment.len, segment.flags() | more, link));
            at = next;
        }
        self.offer(head, at, n as u16, room(chain));
        Some(head)
    }

    fn add_indirect(&mut self, chain: &[Segment]) -> Option<u16> {
        let tables = self.tables.as_ref().expect("a ring with indirect tables");
        if self.free == 0 {
            return None;
        }
        let (head, n) = (self.first, chain.len());
        let at = tables.write(head, chain, |i, segment| {
            let (more, link) = if i + 1 < n { (v::DESC_F_NEXT, i as u16 + 1) } else { (0, 0) };
            split_word(segment.len, segment.flags() | more, link)
        });
        self.desc.set(2 * usize::from(head), at);
        let word = split_word(n as u32 * v::DESC_BYTES, v::DESC_F_INDIRECT, 0);
        self.desc.set(2 * usize::from(head) + 1, word);
        self.offer(head, self.slots[usize::from(head)].next, 1, room(chain));
        Some(head)
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        let old = self.published;
        if old == self.next {
            return false;
        }
        // Pairs with the device's acquire load: it sees descriptors and entries before the index.
        self.avail.release(IDX, self.next);
        self.published = self.next;
        // The device says what it wants, then looks at the index; here it is the other way about. The
        // fence pairs with the device's: one of the two sees the other (§2.7.13.3).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let avail_event = self.used.get(ENTRIES + 4 * usize::from(self.size));
            passed(avail_event, self.next, old)
        } else {
            self.used.get(0) & v::USED_F_NO_NOTIFY == 0
        }
    }

    #[inline(always)]
    fn used(&mut self) -> Result<Option<Used>, Lie> {
        if self.taken == self.seen && !self.look()? {
            return Ok(None);
        }
        if self.in_order {
            return self.used_in_order().map(Some);
        }
        let used = self.element()?;
        self.taken = self.taken.wrapping_add(1);
        self.home(used.id);
        Ok(Some(used))
    }

    fn arm(&mut self, after: Option<u16>) -> bool {
        let wanted = self.taken.wrapping_add(after.unwrap_or(0));
        if self.event_idx {
            // Never: the index before this one is 65,535 used chains away.
            let event = if after.is_some() { wanted } else { self.taken.wrapping_sub(1) };
            self.avail.set(ENTRIES + usize::from(self.size), event);
        } else {
            self.avail.set(0, if after.is_some() { 0 } else { v::AVAIL_F_NO_INTERRUPT });
        }
        if after.is_none() {
            return false;
        }
        // Pairs with the device's fence between its used index and its look at what was just set.
        fence(Ordering::SeqCst);
        let ahead = self.used.acquire(IDX).wrapping_sub(self.taken);
        if self.event_idx { ahead > after.unwrap_or(0) } else { ahead > 0 }
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

impl Split {
    /// Takes the descriptors from `head` to before `rest` out of the free list and enters the chain.
    #[inline(always)]
    fn offer(&mut self, head: u16, rest: u16, descs: u16, room: u32) {
        self.first = rest;
        self.free -= descs;
        self.out += 1;
        let slot = &mut self.slots[usize::from(head)];
        (slot.descs, slot.room) = (descs, room);
        let entry = ENTRIES + (usize::from(self.next) & self.mask);
        self.avail.set(entry, head);
        self.next = self.next.wrapping_add(1);
    }

    /// Looks at the used index; whether it moved.
    #[inline(always)]
    fn look(&mut self) -> Result<bool, Lie> {
        // Pairs with the device's release store: elements and buffers are read after the index.
        let seen = self.used.acquire(IDX);
        let ahead = seen.wrapping_sub(self.taken);
        if ahead > self.out {
            return Err(Lie::Index { used: ahead, offered: self.out });
        }
        self.seen = seen;
        Ok(ahead > 0)
    }

    /// The used element at the place of the next one, if it can be one.
    #[inline(always)]
    fn element(&self) -> Result<Used, Lie> {
        let at = usize::from(self.taken) & self.mask;
        let (id, len) = (self.elements.get(1 + 2 * at), self.elements.get(2 + 2 * at));
        if id >= u32::from(self.size) {
            return Err(Lie::Range { id: id.min(0xffff) as u16, size: self.size });
        }
        let id = id as u16;
        if self.slots[usize::from(id)].descs == 0 {
            return Err(Lie::NotOffered(id));
        }
        Ok(Used { id, len })
    }

    /// §2.7.9: a device may write one element for a batch, that of the last chain, at the place of the
    /// first; the others were used completely.
    fn used_in_order(&mut self) -> Result<Used, Lie> {
        let end = match self.batch {
            Some(end) => end,
            None => self.element()?,
        };
        let id = self.oldest;
        let last_seen = self.taken.wrapping_add(1) == self.seen;
        if id != end.id && last_seen {
            return Err(Lie::Batch(end.id));
        }
        self.taken = self.taken.wrapping_add(1);
        let Slot { descs, room, .. } = self.slots[usize::from(id)];
        self.oldest = ((usize::from(id) + usize::from(descs)) & self.mask) as u16;
        self.batch = (id != end.id).then_some(end);
        self.home(id);
        Ok(if id == end.id { end } else { Used { id, len: room } })
    }

    /// Puts a chain's descriptors back to the end of the free list.
    #[inline(always)]
    fn home(&mut self, head: u16) {
        let descs = self.slots[usize::from(head)].descs;
        self.slots[usize::from(head)].descs = 0;
        let mut last = head;
        for _ in 1..descs {
            last = self.slots[usize::from(last)].next;
        }
        if self.free == 0 {
            self.first = head;
        } else {
            self.slots[usize::from(self.last)].next = head;
        }
        self.last = last;
        self.free += descs;
        self.out -= 1;
    }
}
