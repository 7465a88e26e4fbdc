//! What the benches share: rings whose driver costs next to nothing, because every descriptor is
//! written once and only indices or flags move.

use std::sync::Arc;

use hugepages::{Backing, Map, PageSize, Table, Window, Words};
use pmd::spec::virtio as v;
use pmd::vring::{RingLayout, Way};

/// Bytes between the buffers of a ring.
pub const STRIDE: u64 = 2048;

/// Memory with one ring in it, and its driver.
pub struct Rig {
    /// Guest memory: the ring's areas, then one buffer per entry.
    pub table: Arc<Table>,
    /// Where the ring is.
    pub layout: RingLayout,
    size: u16,
    packed: bool,
    desc: Window<u64>,
    avail: Window<u16>,
    used: Window<u16>,
    next: u16,
    wrap: bool,
    rest: Vec<u64>,
}

impl Rig {
    /// A ring of `size` entries whose buffers have `len` bytes; `write`: the device fills them.
    pub fn new(size: u16, packed: bool, write: bool, len: u32) -> Rig {
        let n = u64::from(size);
        let bytes = (64 << 10) + 2 * n * 16 + n * STRIDE;
        let (map, _) = Map::shared_or_base(bytes as usize, Backing { page: PageSize::Huge2M, node: None })
            .expect("memory for a bench");
        let table = Table::of(map);
        let driver = n * 16;
        let device = (driver + 6 + 2 * n).next_multiple_of(64);
        let buffers = (device + 6 + 8 * n).next_multiple_of(4096);
        let features = v::F_VERSION_1 | if packed { v::F_RING_PACKED } else { 0 };
        let way = if write { Way::ToDriver } else { Way::FromDriver };
        let base = if packed { 0x8000_8000 } else { 0 };
        let layout = RingLayout { size, desc: 0, driver, device, features, base, way };
        let view = "the areas are inside";
        let desc: Window<u64> = table.window(0, 2 * usize::from(size)).expect(view);
        let avail: Window<u16> = table.window(driver, 2 + usize::from(size)).expect(view);
        let used: Window<u16> = table.window(device, 2 + 4 * usize::from(size)).expect(view);
        let flags = if write { v::DESC_F_WRITE } else { 0 };
        let mut rest = Vec::new();
        for i in 0..size {
            let at = usize::from(i);
            let word = u64::from(len)
                | if packed { u64::from(i) << 32 | u64::from(flags) << 48 } else { u64::from(flags) << 32 };
            desc.set(2 * at, buffers + u64::from(i) * STRIDE);
            desc.set(2 * at + 1, word);
            rest.push(word);
            if !packed {
                avail.set(2 + at, i);
            }
        }
        if packed {
            // Flags of the driver's event area: it wants no calls.
            avail.set(1, v::EVENT_DISABLE);
        } else {
            avail.set(0, v::AVAIL_F_NO_INTERRUPT);
        }
        Rig { table, layout, size, packed, desc, avail, used, next: 0, wrap: true, rest }
    }

    /// Makes `n` more entries available.
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
            if self.next == self.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        }
    }

    /// The used index of a split ring.
    pub fn used(&self) -> u16 {
        self.used.acquire(1)
    }
}
