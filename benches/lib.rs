//! What the benches share: rings whose driver costs next to nothing, because every descriptor is
//! written once and only indices or flags move.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Table, Window, Words};
use pmd::spec::virtio as v;
use pmd::vring::{RingLayout, Way};

/// A driver's side that is never the bottleneck: each entry of the ring has its buffers for good, and is
/// offered again as soon as the device has used it. The device must use entries in order.
pub struct Near {
    /// Where the ring is.
    pub layout: RingLayout,
    packed: bool,
    in_order: bool,
    /// Descriptors of the ring that an entry takes.
    descs: u16,
    desc: Window<u64>,
    avail: Window<u16>,
    used: Window<u16>,
    /// Next descriptor to offer, next to be used (split: free-running indices of entries), and their wrap
    /// counters (packed).
    next: u16,
    wrap: bool,
    seen: u16,
    seen_wrap: bool,
    /// Packed: the second words of the descriptors without the flags of a lap.
    rest: Vec<u64>,
}

/// What the entries of a ring are made of.
#[derive(Clone, Copy)]
pub struct Entries<'a> {
    /// Buffers of an entry.
    pub parts: u16,
    /// Where indirect tables go, 16 bytes for each buffer of each entry: an entry is one descriptor then.
    /// `None`: it is a chain of descriptors in the ring.
    pub tables: Option<u64>,
    /// Address and length of a buffer: entry, part.
    pub part: &'a dyn Fn(u16, u16) -> (u64, u32),
}

/// Bytes that a ring of `size` takes, without its buffers.
pub fn ring_bytes(size: u16) -> u64 {
    (u64::from(size) * 26 + 256).next_multiple_of(4096)
}

impl Near {
    /// A ring of `size` entries at `at` whose entry `i` is a buffer of `len` bytes at
    /// `buffers + i * stride`; `way` says who fills it.
    pub fn new(
        table: &Arc<Table>,
        at: u64,
        size: u16,
        features: u64,
        way: Way,
        (buffers, stride, len): (u64, u64, u32),
    ) -> Near {
        let part = |entry: u16, _| (buffers + u64::from(entry) * stride, len);
        Near::of(table, at, size, features, way, Entries { parts: 1, tables: None, part: &part })
    }

    /// A ring of `size` descriptors at `at`, as many entries as they make; `way` says who fills them.
    ///
    /// # Panics
    /// When the entries do not fill the ring, or some of it is not memory of `table`.
    pub fn of(table: &Arc<Table>, at: u64, size: u16, features: u64, way: Way, entries: Entries<'_>) -> Near {
        let packed = features & v::F_RING_PACKED != 0;
        let n = u64::from(size);
        let driver = at + n * 16;
        let device = (driver + 6 + 2 * n).next_multiple_of(64);
        let base = if packed { 0x8000_8000 } else { 0 };
        let layout = RingLayout { size, desc: at, driver, device, features, base, way };
        let inside = "the areas lie in the table";
        let desc: Window<u64> = table.window(at, 2 * usize::from(size)).expect(inside);
        let avail: Window<u16> = table.window(driver, 2 + usize::from(size)).expect(inside);
        let used: Window<u16> = table.window(device, 2 + 4 * usize::from(size)).expect(inside);
        // It never wants to be called.
        avail.set(usize::from(packed), if packed { v::EVENT_DISABLE } else { v::AVAIL_F_NO_INTERRUPT });
        let descs = if entries.tables.is_some() { 1 } else { entries.parts };
        assert!(size.is_multiple_of(descs), "chains of {descs} descriptors fill a ring of {size}");
        let (next, wrap, seen, seen_wrap) = (0, true, 0, true);
        let rest = vec![0; usize::from(size)];
        let in_order = features & v::F_IN_ORDER != 0;
        let mut near =
            Near { layout, packed, in_order, descs, desc, avail, used, next, wrap, seen, seen_wrap, rest };
        for entry in 0..near.entries() {
            near.write(table, entry, &entries);
        }
        if !packed {
            for i in 0..size {
                near.avail.set(2 + usize::from(i), i % near.entries() * descs);
            }
        }
        near
    }

    /// Writes the descriptors of an entry, once and for good.
    fn write(&mut self, table: &Arc<Table>, entry: u16, entries: &Entries<'_>) {
        let write = if self.layout.way == Way::ToDriver { v::DESC_F_WRITE } else { 0 };
        let head = entry * self.descs;
        let (packed, parts) = (self.packed, entries.parts);
        let word = |len: u32, flags: u16, next: u16| {
            let (third, fourth) = if packed { (head, flags) } else { (flags, next) };
            u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48
        };
        let mut set = |i: u16, addr: u64, word: u64| {
            self.desc.set(2 * usize::from(i), addr);
            self.desc.set(2 * usize::from(i) + 1, if packed { 0 } else { word });
            self.rest[usize::from(i)] = word;
        };
        let more = |part: u16| if part + 1 < parts { v::DESC_F_NEXT } else { 0 };
        let Some(tables) = entries.tables else {
            for part in 0..parts {
                let (addr, len) = (entries.part)(entry, part);
                set(head + part, addr, word(len, write | more(part), head + part + 1));
            }
            return;
        };
        let bytes = u64::from(v::DESC_BYTES) * u64::from(parts);
        let at = tables + u64::from(entry) * bytes;
        let words: Window<u64> =
            table.window(at, 2 * usize::from(parts)).expect("the tables lie in the table");
        for part in 0..parts {
            let (addr, len) = (entries.part)(entry, part);
            // virtio 1.3 §2.8.7: in a table of a packed ring only address, length and WRITE count.
            let flags = write | if packed { 0 } else { more(part) };
            words.set(2 * usize::from(part), addr);
            words.set(2 * usize::from(part) + 1, word(len, flags, part + 1));
        }
        set(head, at, word(bytes as u32, v::DESC_F_INDIRECT, 0));
    }

    /// Entries that can be offered.
    pub fn entries(&self) -> u16 {
        self.layout.size / self.descs
    }

    /// Has buffer `i` of the ring at `at(i)` from now on.
    pub fn scatter(&mut self, at: impl Fn(u16) -> u64) {
        for i in 0..self.layout.size {
            self.desc.set(2 * usize::from(i), at(i));
        }
    }

    /// Offers `n` more entries.
    #[inline(always)]
    pub fn offer(&mut self, n: u16) {
        if !self.packed {
            self.next = self.next.wrapping_add(n);
            self.avail.release(1, self.next);
            return;
        }
        for _ in 0..n {
            let at = usize::from(self.next);
            let flags = u64::from(if self.wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED }) << 48;
            for rest in at + 1..at + usize::from(self.descs) {
                self.desc.set(2 * rest + 1, self.rest[rest] | flags);
            }
            self.desc.release(2 * at + 1, self.rest[at] | flags);
            self.next += self.descs;
            if self.next + self.descs > self.layout.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
    }

    /// Entries that the device has used since the last look, up to `most`.
    #[inline(always)]
    pub fn used(&mut self, most: u16) -> u16 {
        if !self.packed {
            let n = self.used.acquire(1).wrapping_sub(self.seen).min(most);
            self.seen = self.seen.wrapping_add(n);
            return n;
        }
        let mut n = 0;
        while n < most {
            let word = self.desc.acquire(2 * usize::from(self.seen) + 1);
            let flags = (word >> 48) as u16;
            let (avail, used) = (flags & v::DESC_F_AVAIL != 0, flags & v::DESC_F_USED != 0);
            if avail != self.seen_wrap || used != self.seen_wrap {
                break;
            }
            // virtio 1.3 §2.8.9: in order, an element may stand for all entries up to its own.
            let size = self.layout.size;
            let skip = if self.in_order { ((word >> 32) as u16 + size - self.seen) % size } else { 0 };
            n += 1 + skip / self.descs;
            self.seen += self.descs + skip;
            if self.seen >= size {
                (self.seen, self.seen_wrap) = (self.seen - size, !self.seen_wrap);
            }
        }
        n
    }

    /// Whether the device asks to be kicked for what was offered just now.
    #[inline(always)]
    pub fn wants_kick(&self) -> bool {
        // The device says what it wants, then looks at the ring; here it is the other way about. The
        // fence pairs with the device's: one of the two sees the other (virtio 1.3 §2.7.13.3).
        fence(Ordering::SeqCst);
        if self.packed {
            self.used.get(1) != v::EVENT_DISABLE
        } else {
            self.used.get(0) & v::USED_F_NO_NOTIFY == 0
        }
    }

    /// What the device says of the entry that it used `back` before the last one seen: id (its first
    /// descriptor) and bytes written. Only of entries that were not offered again.
    pub fn said(&self, back: u16) -> (u16, u32) {
        if self.packed {
            let entry = (self.seen / self.descs + self.entries() - 1 - back) % self.entries();
            let word = self.desc.get(2 * usize::from(entry * self.descs) + 1);
            return ((word >> 32) as u16, word as u32);
        }
        let at = 2 + 4 * usize::from(self.seen.wrapping_sub(1 + back) % self.layout.size);
        let len = u32::from(self.used.get(at + 2)) | u32::from(self.used.get(at + 3)) << 16;
        (self.used.get(at), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, Buf, Map, PageSize};
    use pmd::Batch;
    use pmd::spec::virtio::{F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1};
    use pmd::vring::{Layout, Mapped, Packed, Split, Vring};

    /// A device that uses all it is offered, as if it wrote 7 bytes to each buffer: what it was offered.
    fn device<L: Layout>(ring: &mut Vring<L>) -> Vec<Vec<(u64, u32)>> {
        let (mut batch, mut chains) = (Batch::<Buf>::default(), Vec::new());
        while ring.pop(&mut batch).is_some() {
            let chain: Vec<_> = batch.iter().map(|buf| (buf.iova(), buf.len())).collect();
            while let Some(buf) = batch.pop_front() {
                ring.settle(buf.finish(7));
            }
            chains.push(chain);
        }
        assert_eq!(ring.fault(), None);
        ring.publish();
        chains
    }

    fn round_and_round<L: Layout>(packed: bool, shapes: &[(u16, u16, bool)]) {
        for &(size, parts, indirect) in shapes {
            let map = Map::shared(1 << 20, Backing { page: PageSize::Base, node: None }).unwrap();
            let base = map.address();
            let table = Table::of(map);
            let features = F_VERSION_1 | F_INDIRECT_DESC | if packed { F_RING_PACKED } else { 0 };
            let part = |entry: u16, part: u16| {
                (0x10000 + u64::from(entry) * 256 + u64::from(part) * 64, 10 + u32::from(part))
            };
            let entries = Entries { parts, tables: indirect.then_some(0x8000), part: &part };
            let mut near = Near::of(&table, 0, size, features, Way::FromDriver, entries);
            let mut ring = Vring::<L>::open(&near.layout, &table).unwrap();
            let n = near.entries();
            assert_eq!(n, if indirect { size } else { size / parts });
            assert!(near.wants_kick(), "nobody has said otherwise");
            let mut next = 0;
            for count in [3, 1, n.min(4), 2, 3, n.min(4), 1, 1, 3] {
                near.offer(count);
                let chains = device(&mut ring);
                assert_eq!(chains.len(), usize::from(count));
                for chain in chains {
                    let wanted: Vec<_> = (0..parts).map(|p| part(next % n, p)).collect();
                    assert_eq!(chain, wanted.iter().map(|(a, l)| (base + a, *l)).collect::<Vec<_>>());
                    next += 1;
                }
                assert_eq!(near.used(1), 1);
                assert_eq!(near.used(n), count - 1);
                assert_eq!(near.used(n), 0);
                for back in 0..count {
                    let descs = if indirect { 1 } else { parts };
                    assert_eq!(near.said(back), ((next - 1 - back) % n * descs, 7 * u32::from(parts)));
                }
            }
        }
    }

    #[test]
    fn entries_of_every_shape_go_round_and_round() {
        round_and_round::<Split<Mapped>>(false, &[(8, 1, false), (8, 2, false), (8, 1, true), (8, 2, true)]);
        round_and_round::<Packed<Mapped>>(
            true,
            &[(8, 1, false), (7, 1, false), (8, 2, false), (7, 2, true), (8, 1, true)],
        );
    }
}
