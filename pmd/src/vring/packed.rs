//! The packed layout: virtio 1.3 §2.8.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Buf, Monitor, OutOfRange, Table, Words};

use super::access::Access;
use super::log::Written;
use super::walk::{Memory, Walk};
use super::{Chain, Fault, Layout, RingLayout, Rules, Single, Way, notify, place};
use crate::batch::Batch;
use crate::spec::virtio as v;

const WRAP: u16 = 1 << 15;

/// A packed ring: one ring of descriptors (two words of 64 bits each: address; length, id, flags) that
/// both sides write, and an event area of each side.
pub struct Packed<A: Access> {
    desc: A::Of<u64>,
    /// The driver's event area, read; ours, written: offset and wrap, flags.
    driver: A::Of<u32>,
    device: A::Of<u32>,
    size: u16,
    next: Position,
    used: Position,
    /// Places popped and not staged as used yet; with those staged, never more than the ring has.
    out: u16,
    /// The first staged element, whose write makes all of them visible: place and word.
    first: Option<(usize, u64)>,
    /// Places of staged elements.
    staged: u16,
    /// Where the elements end that the driver sees, and how many places before it are those for which it
    /// is not known whether it wants to be called.
    shown: Position,
    uncalled: u16,
    event_idx: bool,
    /// Used elements are mostly written by [`Layout::push_batch`].
    batches: bool,
}

/// A place in the ring and the wrap counter that goes with it (§2.8.1).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    at: u16,
    wrap: bool,
}

impl Position {
    fn of(bits: u32) -> Position {
        let bits = bits as u16;
        Position { at: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    fn bits(self) -> u16 {
        self.at | if self.wrap { WRAP } else { 0 }
    }

    #[inline(always)]
    fn forward(&mut self, n: u16, size: u16) {
        self.at += n;
        if self.at >= size {
            self.at -= size;
            self.wrap = !self.wrap;
        }
    }

    /// §2.8.1.1: available: AVAIL equals our wrap counter, USED does not.
    #[inline(always)]
    fn offered(self, flags: u16) -> bool {
        let both = v::DESC_F_AVAIL | v::DESC_F_USED;
        flags & both == if self.wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED }
    }

    /// Places from here forward to `to`.
    fn distance(self, to: Position, size: u16) -> u16 {
        let lap = if self.wrap == to.wrap { 0 } else { size };
        (to.at + lap).saturating_sub(self.at).min(size)
    }

    fn back(&mut self, n: u16, size: u16) {
        if self.at < n {
            self.at += size;
            self.wrap = !self.wrap;
        }
        self.at -= n;
    }
}

#[inline(always)]
fn fields((addr, rest): (u64, u64)) -> (u64, u32, u16, u16) {
    (addr, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
}

/// Places of a chain, as `used` has put them into its word.
#[inline(always)]
fn descs(used: u64) -> u16 {
    (used >> 48) as u16
}

/// The word of a used descriptor. §2.8.1.1: AVAIL and USED both equal our wrap counter. §2.8.4: WRITE:
/// the length counts.
#[inline(always)]
fn element(used: u64, wrap: bool) -> u64 {
    let mut flags = if wrap { v::DESC_F_AVAIL | v::DESC_F_USED } else { 0 };
    if used as u32 > 0 {
        flags |= v::DESC_F_WRITE;
    }
    used << 16 >> 16 | u64::from(flags) << 48
}

/// Whether the word of a descriptor says that it is used, in the lap of that wrap counter.
fn used_by(word: u64, wrap: bool) -> bool {
    let flags = (word >> 48) as u16;
    (flags & v::DESC_F_AVAIL != 0) == wrap && (flags & v::DESC_F_USED != 0) == wrap
}

impl<A: Access> Packed<A> {
    /// Goes on behind a used element.
    #[inline(always)]
    fn pass(&mut self, used: u64) {
        let n = descs(used);
        self.used.forward(n, self.size);
        self.out -= n;
        self.staged += n;
    }

    /// A chain of several descriptors, or an indirect one. The descriptors follow each other; the id
    /// is in the last (§2.8.6), which is why the chain is gone through twice.
    fn chain<M: Memory>(
        &self,
        mem: &M,
        rules: Rules,
        out: &mut Batch<Buf>,
        first: (u64, u64),
    ) -> Result<Chain, Fault> {
        let (mut descs, mut last, mut at) = (1u16, first, self.next);
        while fields(last).3 & v::DESC_F_NEXT != 0 {
            if descs == self.size {
                return Err(Fault::Loop(fields(first).2));
            }
            if fields(last).3 & v::DESC_F_INDIRECT != 0 {
                return Err(Fault::Indirect);
            }
            at.forward(1, self.size);
            last = self.descriptor(at.at);
            descs += 1;
        }
        let id = fields(last).2;
        if id >= self.size {
            return Err(Fault::HeadRange(id));
        }
        let mut walk = Walk::new(mem, rules, out, id);
        let mut desc = first;
        let mut at = self.next;
        for left in (0..descs).rev() {
            let (addr, len, _, flags) = fields(desc);
            if flags & v::DESC_F_INDIRECT != 0 {
                // The driver may have rewritten it since: only the last one may be a table.
                let alone = left == 0 && flags & v::DESC_F_NEXT == 0;
                return if alone { indirect(walk, addr, len, flags, descs) } else { Err(Fault::Indirect) };
            }
            if !walk.add(addr, len, flags)? {
                break;
            }
            if left > 0 {
                at.forward(1, self.size);
                desc = if left == 1 { last } else { self.descriptor(at.at) };
            }
        }
        walk.end(descs)
    }

    #[inline(always)]
    fn descriptor(&self, i: u16) -> (u64, u64) {
        self.desc.pair(usize::from(i)).expect("a place in the ring")
    }

    /// The same; the rest of its chain is seen after it: pairs with the driver's release of the flags.
    #[inline(always)]
    fn seen(&self, i: u16) -> (u64, u64) {
        self.desc.acquire_pair(usize::from(i)).expect("a place in the ring")
    }
}

/// §2.8.7: the entries of the table are the chain, in order; only `WRITE` means anything in them.
fn indirect<M: Memory>(
    mut walk: Walk<'_, M>,
    table: u64,
    len: u32,
    flags: u16,
    descs: u16,
) -> Result<Chain, Fault> {
    for i in 0..walk.indirect_entries(len, flags)? {
        let (addr, len, _, mut flags) = fields(walk.indirect_entry(table, i)?);
        if flags & v::DESC_F_INDIRECT != 0 {
            return Err(Fault::Indirect);
        }
        if walk.rules.way == Way::FromDriver {
            // DPDK 22.11's driver leaves WRITE set, as vring_desc_init_indirect_packed made it, on the
            // entry of the net header and on the one whose number is the chain's place in the ring.
            // What comes from a driver is only ever read, so there is nothing to protect.
            flags &= !v::DESC_F_WRITE;
        }
        if !walk.add(addr, len, flags)? {
            break;
        }
    }
    walk.end(descs)
}

impl<A: Access> Layout for Packed<A> {
    fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        assert!(ring.size > 0 && ring.size <= v::MAX_RING, "the session checks the size");
        // §2.8: alignment 16, 4, 4.
        for (gpa, align) in [(ring.desc, 16), (ring.driver, 4), (ring.device, 4)] {
            if !gpa.is_multiple_of(align) {
                return Err(OutOfRange { gpa, len: 0 });
            }
        }
        let (next, used) = (Position::of(ring.base), Position::of(ring.base >> 16));
        if next.at >= ring.size || used.at >= ring.size {
            return Err(OutOfRange { gpa: ring.desc, len: u64::from(ring.size) * 16 });
        }
        Ok(Packed {
            desc: A::view(table, ring.desc, 2 * usize::from(ring.size))?,
            driver: A::view(table, ring.driver, 1)?,
            device: A::view(table, ring.device, 1)?,
            size: ring.size,
            next,
            used,
            out: used.distance(next, ring.size),
            first: None,
            staged: 0,
            shown: used,
            uncalled: 0,
            event_idx: ring.has(v::F_EVENT_IDX),
            batches: ring.batches(),
        })
    }

    #[inline(always)]
    fn pop<M: Memory>(
        &mut self,
        mem: &M,
        rules: Rules,
        out: &mut Batch<Buf>,
    ) -> Result<Option<Chain>, Fault> {
        let desc = self.seen(self.next.at);
        let (addr, len, id, flags) = fields(desc);
        if !self.next.offered(flags) {
            return Ok(None);
        }
        let chain = if flags & (v::DESC_F_NEXT | v::DESC_F_INDIRECT) == 0 {
            if id >= self.size {
                return Err(Fault::HeadRange(id));
            }
            Walk::new(mem, rules, out, id).single(addr, len, flags, 1)?
        } else {
            self.chain(mem, rules, out, desc)?
        };
        if chain.descs > self.size - self.out - self.staged {
            let (index, used) = (self.next.at, self.used.at);
            return Err(Fault::AvailJump { index, used, size: self.size });
        }
        self.out += chain.descs;
        self.next.forward(chain.descs, self.size);
        Ok(Some(chain))
    }

    #[inline(always)]
    fn ready(&mut self) -> bool {
        let word = self.desc.acquire(2 * usize::from(self.next.at) + 1);
        self.next.offered((word >> 48) as u16)
    }

    #[inline(always)]
    fn look(&self, flags: u16, out: &mut [Single]) -> usize {
        const LOOK: u16 =
            v::DESC_F_NEXT | v::DESC_F_WRITE | v::DESC_F_INDIRECT | v::DESC_F_AVAIL | v::DESC_F_USED;
        let want = flags | if self.next.wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED };
        // As far as the end of the ring.
        let free = (self.size - self.out - self.staged).min(self.size - self.next.at);
        let most = out.len().min(free.into());
        if !self.batches {
            // Used descriptors are written where available ones are read: lines that are taken to be
            // written need not be taken twice.
            self.desc.expect_writes(2 * usize::from(self.next.at), 2 * most);
        }
        let mut n = 0;
        // Pairs with the driver's release of the flags.
        for (single, desc) in out.iter_mut().zip(self.desc.acquire_pairs(self.next.at.into(), most)) {
            let (addr, len, id, what) = fields(desc);
            if what & LOOK != want || id >= self.size {
                break;
            }
            *single = Single { addr, len, id };
            n += 1;
        }
        n
    }

    #[inline(always)]
    fn take(&mut self, n: usize) {
        self.next.forward(n as u16, self.size);
        self.out += n as u16;
    }

    fn unpop(&mut self, descs: u16) {
        self.out -= descs;
        self.next.back(descs, self.size);
    }

    #[inline(always)]
    fn used(id: u16, descs: u16, written: u32) -> u64 {
        u64::from(written) | u64::from(id) << 32 | u64::from(descs) << 48
    }

    #[inline(always)]
    fn push(&mut self, mut used: &[u64]) {
        if let (None, Some((&first, rest))) = (self.first, used.split_first()) {
            self.first = Some((2 * usize::from(self.used.at) + 1, element(first, self.used.wrap)));
            self.pass(first);
            used = rest;
        }
        while let Some(&next) = used.first() {
            // As many as have one place each, as far as the end of the ring.
            let room = used.len().min((self.size - self.used.at).into());
            let n = used[..room].iter().take_while(|&&used| descs(used) == 1).count();
            if n == 0 {
                self.desc.set(2 * usize::from(self.used.at) + 1, element(next, self.used.wrap));
                self.pass(next);
                used = &used[1..];
                continue;
            }
            let (run, rest) = used.split_at(n);
            let wrap = self.used.wrap;
            self.desc.set_seconds(self.used.at.into(), run.iter().map(|&used| element(used, wrap)));
            self.used.forward(n as u16, self.size);
            self.out -= n as u16;
            self.staged += n as u16;
            used = rest;
        }
    }

    #[inline(always)]
    fn staged(&self) -> bool {
        self.first.is_some()
    }

    /// §2.8.9: one element, that of the last chain at the place of the first.
    #[inline(always)]
    fn push_batch(&mut self, used: &[u64]) {
        let Some(&last) = used.last() else { return };
        let (at, word) = (2 * usize::from(self.used.at) + 1, element(last, self.used.wrap));
        if self.first.is_none() {
            self.first = Some((at, word));
        } else {
            self.desc.set(at, word);
        }
        let n = used.iter().map(|&used| descs(used)).sum();
        self.used.forward(n, self.size);
        self.out -= n;
        self.staged += n;
    }

    #[inline(always)]
    fn publish(&mut self) {
        let Some((at, word)) = self.first.take() else { return };
        // Pairs with the driver's acquire of the flags: it looks at the elements in order, so the
        // first one, written last, uncovers the others and the data.
        self.desc.release(at, word);
        self.shown = self.used;
        self.uncalled = self.uncalled.saturating_add(std::mem::take(&mut self.staged)).min(self.size);
    }

    #[inline(always)]
    fn wants_call(&mut self) -> bool {
        let count = std::mem::take(&mut self.uncalled);
        if count == 0 {
            return false;
        }
        // Between our flags and its event area: pairs with the fence the driver has between its event
        // area and its look at our flags (§2.8.14), so that one of the two sees the other.
        fence(Ordering::SeqCst);
        notify::passed_packed(self.driver.get(0), self.shown.at, self.shown.wrap, count, self.size)
    }

    fn arm(&mut self, on: bool) -> bool {
        let event = match (on, self.event_idx) {
            (false, _) => u32::from(v::EVENT_DISABLE) << 16,
            (true, false) => u32::from(v::EVENT_ENABLE) << 16,
            (true, true) => u32::from(v::EVENT_DESC) << 16 | u32::from(self.next.bits()),
        };
        self.device.set(0, event);
        // Pairs with the driver's fence between its flags and its look at our event area.
        fence(Ordering::SeqCst);
        let flags = (self.desc.get(usize::from(self.next.at) * 2 + 1) >> 48) as u16;
        self.next.offered(flags)
    }

    fn monitor(&self, monitor: &mut Monitor) -> bool {
        // The flags are the upper 16 bits. Not available as they are now, they change when it is.
        let at = usize::from(self.next.at) * 2 + 1;
        let rest = self.desc.get(at);
        self.desc.monitor(at, rest, monitor);
        !self.next.offered((rest >> 48) as u16)
    }

    fn seen(&self, at: u16) -> u16 {
        let Position { at, wrap } = Position::of(at.into());
        used_by(self.desc.acquire(2 * usize::from(at) + 1), wrap).into()
    }

    fn place(&self) -> Option<u16> {
        let flags = |i| (self.desc.get(2 * usize::from(i) + 1) >> 48) as u16;
        place::find(&(0..self.size).map(flags).collect::<Vec<_>>())
    }

    fn resume(&mut self, used: u16, places: u16) {
        self.used = Position::of(used.into());
        (self.next, self.shown) = (self.used, self.used);
        for _ in 0..places {
            // Staged behind an element that never became visible: the driver would take it for used as soon
            // as that place is used.
            let at = 2 * usize::from(self.next.at) + 1;
            let word = self.desc.get(at);
            if used_by(word, self.next.wrap) {
                self.desc.set(at, word ^ u64::from(v::DESC_F_USED) << 48);
            }
            self.next.forward(1, self.size);
        }
        self.out = places;
    }

    fn again<M: Memory>(
        &mut self,
        mem: &M,
        rules: Rules,
        out: &mut Batch<Buf>,
        _head: u16,
        descriptors: &[(u64, u64)],
    ) -> Result<Chain, Fault> {
        let descs = descriptors.len() as u16;
        let id = descriptors.last().map_or(self.size, |&last| fields(last).2);
        if id >= self.size {
            return Err(Fault::HeadRange(id));
        }
        let mut walk = Walk::new(mem, rules, out, id);
        for &desc in descriptors {
            let (addr, len, _, flags) = fields(desc);
            if flags & v::DESC_F_INDIRECT != 0 {
                return if descs == 1 {
                    indirect(walk, addr, len, flags, descs)
                } else {
                    Err(Fault::Indirect)
                };
            }
            if !walk.add(addr, len, flags)? {
                break;
            }
        }
        walk.end(descs)
    }

    fn popped(&self, descs: u16) -> Vec<(u64, u64)> {
        let mut at = self.next;
        at.back(descs, self.size);
        let descriptors = (0..descs).map(|_| {
            let desc = self.descriptor(at.at);
            at.forward(1, self.size);
            desc
        });
        descriptors.collect()
    }

    fn used_end(&self) -> u16 {
        self.used.bits()
    }

    fn element(&self) -> Written {
        Written { descriptors: true, at: 16 * u32::from(self.used.at), len: 16 }
    }

    fn index(&self) -> Option<Written> {
        None
    }

    fn event(&self, _on: bool) -> Option<Written> {
        Some(Written { descriptors: false, at: 0, len: 4 })
    }

    fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.used.bits()) << 16
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Backing, Map, PageSize};

    use super::*;
    use crate::vring::driver::{Areas, Desc, Raw};
    use crate::vring::{Mapped, Vring};

    /// Pops one chain whose indirect table has these flags.
    fn pop_indirect(way: Way, flags: [u16; 2]) -> Result<u32, Option<Fault>> {
        let areas = Areas::at(0, 4, v::F_VERSION_1 | v::F_RING_PACKED | v::F_INDIRECT_DESC, 4);
        let (table_at, data_at) = (areas.end.next_multiple_of(16), areas.end + 256);
        let table = Table::of(
            Map::shared(areas.end as usize + 4096, Backing { page: PageSize::Base, node: None }).unwrap(),
        );
        let raw = Raw::open(&areas, &table).unwrap();
        let entry = |flags| Desc { addr: data_at, len: 100, flags, tag: 0 };
        raw.set_table(table_at, &flags.map(entry)).unwrap();
        let flags = v::DESC_F_INDIRECT | Raw::avail_bits(true);
        raw.set_desc(0, Desc { addr: table_at, len: 32, flags, tag: 0 });
        let mut ring = Vring::<Packed<Mapped>>::open(&areas.ring(way), &table).unwrap();
        let mut out = Batch::default();
        let popped = ring.pop(&mut out).map(|chain| chain.bytes);
        while let Some(buf) = out.pop_back() {
            ring.settle(buf.finish(0));
        }
        popped.ok_or(ring.fault())
    }

    /// All rings of up to 40 entries and the largest: every position, every step.
    fn positions(mut each: impl FnMut(u16, Position, u16)) {
        for size in (1..=40).chain([v::MAX_RING - 1, v::MAX_RING]) {
            let near = |n: u16| size <= 40 || n < 3 || n > size - 3;
            for at in (0..size).filter(|at| near(*at)) {
                for wrap in [false, true] {
                    for n in (0..=size).filter(|n| near(*n)) {
                        each(size, Position { at, wrap }, n);
                    }
                }
            }
        }
    }

    #[test]
    fn positions_go_round_and_back_in_rings_of_every_size() {
        positions(|size, from, n| {
            // Places counted without end: two laps have the same wrap counter.
            let place = u32::from(from.at) + if from.wrap { 0 } else { u32::from(size) };
            let mut to = from;
            to.forward(n, size);
            let end = (place + u32::from(n)) % (2 * u32::from(size));
            assert_eq!((u32::from(to.at), to.wrap), (end % u32::from(size), end < u32::from(size)));
            assert_eq!(from.distance(to, size), n);
            assert!(Position::of(to.bits().into()) == to);
            to.back(n, size);
            assert!(to == from);
        });
    }

    #[test]
    fn no_base_has_more_out_than_the_ring_has() {
        positions(|size, used, at| {
            for wrap in [false, true] {
                assert!(used.distance(Position { at: at.min(size - 1), wrap }, size) <= size);
            }
        });
    }

    #[test]
    fn a_descriptor_is_available_in_one_lap_and_used_in_the_other() {
        for (flags, wrap) in (0..=u16::MAX).flat_map(|flags| [(flags, false), (flags, true)]) {
            let word = u64::from(flags) << 48;
            let (avail, used) = (flags & v::DESC_F_AVAIL != 0, flags & v::DESC_F_USED != 0);
            let position = Position { at: 0, wrap };
            assert_eq!(position.offered(flags), avail == wrap && used != wrap);
            assert_eq!(used_by(word, wrap), avail == wrap && used == wrap);
            // What is written as used is nobody's offer, in this lap or the next.
            let shown = (element(word, wrap) >> 48) as u16;
            assert!(!position.offered(shown) && !Position { at: 0, wrap: !wrap }.offered(shown));
        }
    }

    #[test]
    fn an_indirect_entry_may_say_that_it_is_written_where_it_is_read() {
        let write = v::DESC_F_WRITE;
        assert_eq!(pop_indirect(Way::FromDriver, [0, 0]), Ok(200));
        assert_eq!(pop_indirect(Way::FromDriver, [write, 0]), Ok(200), "as DPDK's driver has it");
        assert_eq!(pop_indirect(Way::FromDriver, [write, write]), Ok(200), "at place 1 of the ring");
        assert_eq!(pop_indirect(Way::ToDriver, [write, write]), Ok(200));
        assert_eq!(pop_indirect(Way::ToDriver, [write, 0]), Err(Some(Fault::Direction(0))));
    }
}
