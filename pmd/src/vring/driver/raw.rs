//! A ring that is written as told, right or wrong.

use std::sync::Arc;

use hugepages::{OutOfRange, Table, Window, Words};

use super::{Areas, packed_word, split_word};
use crate::spec::virtio as v;

/// A descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Address of the buffer or table.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `DESC_F_*`, with the AVAIL and USED bits of a packed ring.
    pub flags: u16,
    /// `next` (split) or `id` (packed).
    pub tag: u16,
}

/// Every word of a ring, for tests and fuzzers that play a broken or hostile driver (or a device: the
/// device's area can be written as well). Keeps no state and checks nothing but that an index is inside
/// its area; may be used beside a [`Ring`](super::Ring) on the same areas, and from several threads.
pub struct Raw {
    areas: Areas,
    table: Arc<Table>,
    desc: Window<u64>,
    driver: Window<u16>,
    device: Window<u16>,
}

impl Raw {
    /// A view of the areas; changes nothing.
    ///
    /// # Errors
    /// When an area is not memory of `table`.
    pub fn open(areas: &Areas, table: &Arc<Table>) -> Result<Raw, OutOfRange> {
        let n = usize::from(areas.size);
        let (driver, device) = if areas.has(v::F_RING_PACKED) { (2, 2) } else { (3 + n, 3 + 4 * n) };
        Ok(Raw {
            areas: *areas,
            table: Arc::clone(table),
            desc: table.window(areas.desc, 2 * n)?,
            driver: table.window(areas.driver, driver)?,
            device: table.window(areas.device, device)?,
        })
    }

    /// Where it lies.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// The memory it lies in.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Writes descriptor `i`; the word with the flags last, and as a release store.
    pub fn set_desc(&self, i: u16, desc: Desc) {
        self.desc.set(2 * usize::from(i), desc.addr);
        self.desc.release(2 * usize::from(i) + 1, self.word(desc));
    }

    /// Descriptor `i`; the word with the flags is read first, and as an acquire load.
    pub fn desc(&self, i: u16) -> Desc {
        let word = self.desc.acquire(2 * usize::from(i) + 1);
        self.parse(self.desc.get(2 * usize::from(i)), word)
    }

    /// Writes descriptors at any address, in the order of fields of this ring: indirect tables.
    ///
    /// # Errors
    /// When they do not lie in one region of the table.
    pub fn set_table(&self, gpa: u64, descs: &[Desc]) -> Result<(), OutOfRange> {
        let words = self.table.window::<u64>(gpa, 2 * descs.len())?;
        for (i, desc) in descs.iter().enumerate() {
            words.set(2 * i, desc.addr);
            words.set(2 * i + 1, self.word(*desc));
        }
        Ok(())
    }

    /// A packed descriptor's AVAIL and USED bits as a driver with this wrap counter sets them.
    pub fn avail_bits(wrap: bool) -> u16 {
        if wrap { v::DESC_F_AVAIL } else { v::DESC_F_USED }
    }

    /// The same bits as a device with this wrap counter sets them.
    pub fn used_bits(wrap: bool) -> u16 {
        if wrap { v::DESC_F_AVAIL | v::DESC_F_USED } else { 0 }
    }

    /// Word `i` of the driver's area. Split: `flags`, `idx`, the entries, `used_event`. Packed: place
    /// and wrap counter, flags.
    pub fn driver(&self, i: usize) -> u16 {
        self.driver.acquire(i)
    }

    /// Writes word `i` of the driver's area, as a release store.
    pub fn set_driver(&self, i: usize, value: u16) {
        self.driver.release(i, value);
    }

    /// Word `i` of the device's area. Split: `flags`, `idx`, four words an element (id and length, low
    /// half first), `avail_event`. Packed: place and wrap counter, flags.
    pub fn device(&self, i: usize) -> u16 {
        self.device.acquire(i)
    }

    /// Writes word `i` of the device's area, as a release store.
    pub fn set_device(&self, i: usize, value: u16) {
        self.device.release(i, value);
    }

    /// Split: writes entry `i` of the available ring; `i` is taken modulo the size.
    pub fn set_avail(&self, i: u16, head: u16) {
        self.set_driver(2 + usize::from(i % self.areas.size), head);
    }

    /// Split: the available index.
    pub fn avail_idx(&self) -> u16 {
        self.driver(1)
    }

    /// Split: writes the available index.
    pub fn set_avail_idx(&self, idx: u16) {
        self.set_driver(1, idx);
    }

    /// Split: writes `used_event`.
    pub fn set_used_event(&self, idx: u16) {
        self.set_driver(2 + usize::from(self.areas.size), idx);
    }

    /// Split: the used index.
    pub fn used_idx(&self) -> u16 {
        self.device(1)
    }

    /// Split: used element `i` (taken modulo the size): id and length.
    pub fn used(&self, i: u16) -> (u32, u32) {
        let at = 2 + 4 * usize::from(i % self.areas.size);
        let word = |i| u32::from(self.device(i)) | u32::from(self.device(i + 1)) << 16;
        (word(at), word(at + 2))
    }

    /// Split, as the device: writes used element `i` (taken modulo the size).
    pub fn set_used(&self, i: u16, id: u32, len: u32) {
        let at = 2 + 4 * usize::from(i % self.areas.size);
        for (i, half) in [id, id >> 16, len, len >> 16].into_iter().enumerate() {
            self.set_device(at + i, half as u16);
        }
    }

    /// Split, as the device: writes the used index.
    pub fn set_used_idx(&self, idx: u16) {
        self.set_device(1, idx);
    }

    /// Split: `avail_event`.
    pub fn avail_event(&self) -> u16 {
        self.device(2 + 4 * usize::from(self.areas.size))
    }

    fn packed(&self) -> bool {
        self.areas.has(v::F_RING_PACKED)
    }

    fn word(&self, d: Desc) -> u64 {
        if self.packed() { packed_word(d.len, d.tag, d.flags) } else { split_word(d.len, d.flags, d.tag) }
    }

    fn parse(&self, addr: u64, word: u64) -> Desc {
        let (third, fourth) = ((word >> 32) as u16, (word >> 48) as u16);
        let (flags, tag) = if self.packed() { (fourth, third) } else { (third, fourth) };
        Desc { addr, len: word as u32, flags, tag }
    }
}
