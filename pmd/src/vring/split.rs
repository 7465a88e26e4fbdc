//! The split layout: virtio 1.3 §2.7.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Buf, Monitor, OutOfRange, Table, Words};

use zerocopy::IntoBytes;

use super::access::Access;
use super::log::Written;
use super::walk::{Memory, Walk};
use super::{Chain, Fault, Layout, RingLayout, Rules, Single, notify};
use crate::batch::Batch;
use crate::spec::virtio as v;

// Words of the areas, §2.7.6 and §2.7.8.
const FLAGS: usize = 0;
const IDX: usize = 1;
const RING: usize = 2;

/// A split ring. Three areas: descriptors (two words of 64 bits each: address; length, flags, next),
/// available ring (16-bit words), used ring (16-bit words for its index, 32-bit ones for elements).
pub struct Split<A: Access> {
    desc: A::Of<u64>,
    avail: A::Of<u16>,
    used: A::Of<u16>,
    elements: A::Of<u32>,
    size: u16,
    /// Next index to pop, and the driver's index as last seen.
    next: u16,
    seen: u16,
    /// Index after the last staged element, and the index the driver sees.
    used_idx: u16,
    published: u16,
    /// The index up to which it is known whether the driver wants to be called.
    called: u16,
    event_idx: bool,
    /// Used elements are mostly written by [`Layout::push_batch`].
    batches: bool,
}

impl<A: Access> Split<A> {
    /// Address; length, flags, next (§2.7.5). `None`: there is no such descriptor.
    #[inline(always)]
    fn descriptor(&self, i: u16) -> Option<(u64, u64)> {
        self.desc.pair(usize::from(i))
    }

    /// Whether a chain is available, reading the driver's index only when all seen ones are popped.
    #[inline(always)]
    fn available(&mut self) -> Result<bool, Fault> {
        if self.next == self.seen {
            // Pairs with the driver's release of idx: what it wrote before is seen after.
            let index = self.avail.acquire(IDX);
            if index == self.next {
                return Ok(false);
            }
            if jumps(index, self.next, self.published, self.size) {
                return Err(Fault::AvailJump { index, used: self.published, size: self.size });
            }
            self.seen = index;
        }
        Ok(true)
    }

    /// A chain of several descriptors, or an indirect one.
    fn chain<M: Memory>(&self, mut walk: Walk<'_, M>, mut desc: (u64, u64)) -> Result<Chain, Fault> {
        for _ in 0..self.size {
            let (addr, len, flags, next) = fields(desc);
            if flags & v::DESC_F_INDIRECT != 0 {
                return indirect(walk, addr, len, flags);
            }
            if !walk.add(addr, len, flags)? || flags & v::DESC_F_NEXT == 0 {
                return walk.end(1);
            }
            desc = self.descriptor(next).ok_or(Fault::NextRange(next))?;
        }
        Err(Fault::Loop(walk.id))
    }
}

/// Whether a driver's index is none that it may have, when all before `next` is popped and all before
/// `published` used. §2.7.13.3: never more outstanding than the ring has entries.
#[inline(always)]
fn jumps(index: u16, next: u16, published: u16, size: u16) -> bool {
    let out = next.wrapping_sub(published);
    index.wrapping_sub(next) > size.saturating_sub(out)
}

#[inline(always)]
fn fields((addr, rest): (u64, u64)) -> (u64, u32, u16, u16) {
    (addr, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
}

/// §2.7.5.3: the table is a chain of its own, linked by `next` from its entry 0 on.
fn indirect<M: Memory>(mut walk: Walk<'_, M>, table: u64, len: u32, flags: u16) -> Result<Chain, Fault> {
    let entries = walk.indirect_entries(len, flags)?;
    let mut i = 0;
    for _ in 0..entries {
        let (addr, len, flags, next) = fields(walk.indirect_entry(table, i)?);
        if flags & v::DESC_F_INDIRECT != 0 {
            return Err(Fault::Indirect);
        }
        if !walk.add(addr, len, flags)? || flags & v::DESC_F_NEXT == 0 {
            return walk.end(1);
        }
        if u32::from(next) >= entries {
            return Err(Fault::NextRange(next));
        }
        i = u32::from(next);
    }
    Err(Fault::Loop(walk.id))
}

impl<A: Access> Layout for Split<A> {
    fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        let n = usize::from(ring.size);
        assert!(ring.size.is_power_of_two() && ring.size <= v::MAX_RING, "the session checks the size");
        // §2.7: alignment 16, 2, 4.
        for (gpa, align) in [(ring.desc, 16), (ring.driver, 2), (ring.device, 4)] {
            if !gpa.is_multiple_of(align) {
                return Err(OutOfRange { gpa, len: 0 });
            }
        }
        // The event words at the ends are part of the areas with EVENT_IDX only.
        let event_idx = ring.has(v::F_EVENT_IDX);
        let event = usize::from(event_idx);
        let base = ring.base as u16;
        Ok(Split {
            desc: A::view(table, ring.desc, 2 * n)?,
            avail: A::view(table, ring.driver, RING + n + event)?,
            used: A::view(table, ring.device, RING + 4 * n + event)?,
            elements: A::view(table, ring.device + 4, 2 * n)?,
            size: ring.size,
            next: base,
            seen: base,
            used_idx: base,
            published: base,
            called: base,
            event_idx,
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
        if !self.available()? {
            return Ok(None);
        }
        let head = self.avail.get(RING + usize::from(self.next & (self.size - 1)));
        let desc = self.descriptor(head).ok_or(Fault::HeadRange(head))?;
        let (addr, len, flags, _) = fields(desc);
        let walk = Walk::new(mem, rules, out, head);
        let chain = if flags & (v::DESC_F_NEXT | v::DESC_F_INDIRECT) == 0 {
            walk.single(addr, len, flags, 1)?
        } else {
            self.chain(walk, desc)?
        };
        self.next = self.next.wrapping_add(1);
        Ok(Some(chain))
    }

    #[inline(always)]
    fn ready(&mut self) -> bool {
        self.available().unwrap_or(true)
    }

    #[inline(always)]
    fn look(&self, flags: u16, out: &mut [Single]) -> usize {
        // As far as the end of the ring.
        let at = self.next & (self.size - 1);
        let most = out.len().min((self.seen.wrapping_sub(self.next)).min(self.size - at).into());
        if !self.batches {
            let used = usize::from(self.used_idx & (self.size - 1));
            self.elements.expect_writes(2 * used, 2 * most);
        }
        let mut n = 0;
        for (single, id) in out.iter_mut().zip(self.avail.run(RING + usize::from(at), most)) {
            let Some(desc) = self.descriptor(id) else { break };
            let (addr, len, what, _) = fields(desc);
            if what != flags {
                break;
            }
            *single = Single { addr, len, id };
            n += 1;
        }
        n
    }

    #[inline(always)]
    fn take(&mut self, n: usize) {
        self.next = self.next.wrapping_add(n as u16);
    }

    fn unpop(&mut self, _descs: u16) {
        self.next = self.next.wrapping_sub(1);
    }

    #[inline(always)]
    fn used(id: u16, _descs: u16, written: u32) -> u64 {
        // §2.7.8: le32 id, le32 len.
        u64::from(id) | u64::from(written) << 32
    }

    #[inline(always)]
    fn push(&mut self, used: &[u64]) {
        let at = usize::from(self.used_idx & (self.size - 1));
        let (first, rest) = used.split_at(used.len().min(usize::from(self.size) - at));
        self.elements.copy_in(2 * at, first.as_bytes());
        if !rest.is_empty() {
            self.elements.copy_in(0, rest.as_bytes());
        }
        self.used_idx = self.used_idx.wrapping_add(used.len() as u16);
    }

    #[inline(always)]
    fn staged(&self) -> bool {
        self.used_idx != self.published
    }

    /// §2.7.9: one element, that of the last chain at the place of the first.
    #[inline(always)]
    fn push_batch(&mut self, used: &[u64]) {
        if let Some(last) = used.last() {
            self.elements.copy_in(2 * usize::from(self.used_idx & (self.size - 1)), last.as_bytes());
            self.used_idx = self.used_idx.wrapping_add(used.len() as u16);
        }
    }

    #[inline(always)]
    fn publish(&mut self) {
        self.published = self.used_idx;
        // Pairs with the driver's acquire of idx: the elements, and the data, come first.
        self.used.release(IDX, self.used_idx);
    }

    #[inline(always)]
    fn wants_call(&mut self) -> bool {
        let old = std::mem::replace(&mut self.called, self.published);
        if old == self.published {
            return false;
        }
        // Between our index and its event: pairs with the fence the driver has between its event and
        // its look at our index (§2.7.7), so that one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            notify::passed(self.avail.get(RING + usize::from(self.size)), self.published, old)
        } else {
            self.avail.get(FLAGS) & v::AVAIL_F_NO_INTERRUPT == 0
        }
    }

    fn arm(&mut self, on: bool) -> bool {
        if self.event_idx {
            if on {
                self.used.set(RING + 4 * usize::from(self.size), self.next);
            }
        } else {
            self.used.set(FLAGS, if on { 0 } else { v::USED_F_NO_NOTIFY });
        }
        // Pairs with the driver's fence between its index and its look at our event (§2.7.13.4).
        fence(Ordering::SeqCst);
        self.avail.get(IDX) != self.next
    }

    fn seen(&self, _at: u16) -> u16 {
        self.used.get(IDX)
    }

    fn place(&self) -> Option<u16> {
        Some(self.seen(0))
    }

    fn resume(&mut self, used: u16, places: u16) {
        (self.used_idx, self.published, self.called) = (used, used, used);
        self.next = used.wrapping_add(places);
        self.seen = self.next;
    }

    fn again<M: Memory>(
        &mut self,
        mem: &M,
        rules: Rules,
        out: &mut Batch<Buf>,
        head: u16,
        _descriptors: &[(u64, u64)],
    ) -> Result<Chain, Fault> {
        let desc = self.descriptor(head).ok_or(Fault::HeadRange(head))?;
        self.chain(Walk::new(mem, rules, out, head), desc)
    }

    fn popped(&self, _descs: u16) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn used_end(&self) -> u16 {
        self.used_idx
    }

    fn element(&self) -> Written {
        let at = 4 + 8 * u32::from(self.used_idx & (self.size - 1));
        Written { descriptors: false, at, len: 8 }
    }

    fn index(&self) -> Option<Written> {
        Some(Written { descriptors: false, at: 2, len: 2 })
    }

    fn event(&self, on: bool) -> Option<Written> {
        let at = if self.event_idx { 4 + 8 * u32::from(self.size) } else { 0 };
        (on || !self.event_idx).then_some(Written { descriptors: false, at, len: 2 })
    }

    fn monitor(&self, monitor: &mut Monitor) -> bool {
        self.avail.monitor(IDX, self.next, monitor);
        !monitor.changed()
    }

    fn base(&self) -> u32 {
        u32::from(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every index, for rings of every size, with any number of chains out.
    #[test]
    fn an_index_is_taken_if_what_is_out_and_what_comes_fit_the_ring() {
        for size in (0..16).map(|log| 1u16 << log) {
            let outs = (0..=size).filter(|out| size <= 16 || *out < 2 || *out > size - 2 || *out == size / 2);
            for (out, published) in outs.flat_map(|out| [0, 1, 40_000, 65_535].map(|at: u16| (out, at))) {
                let next = published.wrapping_add(out);
                for comes in 0..=u16::MAX {
                    let fits = u32::from(out) + u32::from(comes) <= u32::from(size);
                    assert_eq!(jumps(next.wrapping_add(comes), next, published, size), !fits);
                }
            }
        }
    }
}
