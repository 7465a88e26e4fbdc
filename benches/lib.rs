//! What the benches share: rings whose driver costs next to nothing, because every descriptor is
//! written once and only indices or flags move.

use std::sync::Arc;

use hugepages::{Table, Window, Words};
use pmd::spec::virtio as v;
use pmd::vring::{RingLayout, Way};

/// A driver's side that is never the bottleneck: each entry of the ring has one buffer for good, and is
/// offered again as soon as the device has used it. The device must use buffers in order.
pub struct Near {
    /// Where the ring is.
    pub layout: RingLayout,
    packed: bool,
    desc: Window<u64>,
    avail: Window<u16>,
    used: Window<u16>,
    /// Next entry to offer, next to be used, and their wrap counters (packed).
    next: u16,
    wrap: bool,
    seen: u16,
    seen_wrap: bool,
    rest: Vec<u64>,
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
        let flags = if way == Way::ToDriver { v::DESC_F_WRITE } else { 0 };
        let mut rest = Vec::new();
        for i in 0..size {
            let at = usize::from(i);
            let id =
                if packed { u64::from(i) << 32 | u64::from(flags) << 48 } else { u64::from(flags) << 32 };
            desc.set(2 * at, buffers + u64::from(i) * stride);
            desc.set(2 * at + 1, u64::from(len) | id);
            rest.push(u64::from(len) | id);
            if !packed {
                avail.set(2 + at, i);
            }
        }
        // It never wants to be called.
        if packed {
            avail.set(1, v::EVENT_DISABLE);
        } else {
            avail.set(0, v::AVAIL_F_NO_INTERRUPT);
        }
        Near { layout, packed, desc, avail, used, next: 0, wrap: true, seen: 0, seen_wrap: true, rest }
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
            let flags = if self.wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED };
            self.desc.release(2 * at + 1, self.rest[at] | u64::from(flags) << 48);
            self.next += 1;
            if self.next == self.layout.size {
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
            let flags = (self.desc.acquire(2 * usize::from(self.seen) + 1) >> 48) as u16;
            let (avail, used) = (flags & v::DESC_F_AVAIL != 0, flags & v::DESC_F_USED != 0);
            if avail != self.seen_wrap || used != self.seen_wrap {
                break;
            }
            n += 1;
            self.seen += 1;
            if self.seen == self.layout.size {
                (self.seen, self.seen_wrap) = (0, !self.seen_wrap);
            }
        }
        n
    }
}
