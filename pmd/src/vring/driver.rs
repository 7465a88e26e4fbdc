//! A ring, seen from the driver: the guest's side of both layouts, over memory of ours.
//!
//! [`Ring`] is the door: add chains, publish, take used ones back, say when to be called. [`Split`] and
//! [`Packed`] are its two layouts. [`Raw`] writes whatever it is told, right or wrong: it is how tests
//! and fuzzers play a broken or hostile driver. The device is not trusted either: what it may write is
//! checked against what was offered, and a lie is an error value ([`Lie`]).

mod packed;
mod raw;
mod split;

use std::sync::Arc;

use hugepages::{OutOfRange, Table, Window, Words};

use super::{RingLayout, Way};
use crate::spec::virtio as v;
pub use packed::Packed;
pub use raw::{Desc, Raw};
pub use split::Split;

/// What a device did wrong: it is not to be talked to any more. Nothing is taken from the ring when
/// this is found, so the next look finds it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// A used element names an id that is not in the ring.
    #[error("device used id {id} in a ring of {size}")]
    Range {
        /// The id.
        id: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A used element names an id that the device does not have: never offered, or used before.
    #[error("device used id {0}, which it does not have")]
    NotOffered(u16),
    /// The used index is further ahead than chains were offered.
    #[error("used index says {used} more chains, the device has {offered}")]
    Index {
        /// Chains the device says it used since the last look.
        used: u16,
        /// Chains it has.
        offered: u16,
    },
    /// In-order: the batch that ends with this id is longer than the used index says.
    #[error("in-order batch up to id {0} goes past the used index")]
    Batch(u16),
}

/// One buffer of a chain, in the addresses of the ring's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// For the device to write.
    pub write: bool,
}

impl Segment {
    /// A buffer for the device to read.
    pub fn read(addr: u64, len: u32) -> Segment {
        Segment { addr, len, write: false }
    }

    /// A buffer for the device to write.
    pub fn write(addr: u64, len: u32) -> Segment {
        Segment { addr, len, write: true }
    }

    #[inline(always)]
    fn flags(&self) -> u16 {
        if self.write { v::DESC_F_WRITE } else { 0 }
    }
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`Ring::add`] returned for it; free to be returned again.
    pub id: u16,
    /// Bytes the device says it wrote: as it said, even if the chain has no such room. A chain that an
    /// in-order device used without saying so counts as written completely (virtio 1.3 §2.7.9).
    pub len: u32,
}

/// Bytes between areas, so that no line (and no pair of lines, which processors fetch together) is
/// written by both sides.
const APART: u64 = 128;

/// Where the areas of one ring lie, and by which rules it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Entries.
    pub size: u16,
    /// Negotiated features, of which the ring features matter here.
    pub features: u64,
    /// Descriptor table (split) or ring (packed).
    pub desc: u64,
    /// Available ring (split) or driver event area (packed).
    pub driver: u64,
    /// Used ring (split) or device event area (packed).
    pub device: u64,
    /// Indirect tables, one for each id.
    pub tables: u64,
    /// Entries of an indirect table; 0: there are none.
    pub entries: u16,
    /// First byte after all areas.
    pub end: u64,
}

impl Areas {
    /// Lays out the areas of a ring from address `at` on (rounded up to a pair of cache lines), sizes
    /// and alignments by virtio 1.3 §2.7 and §2.8.10. `entries` is the length of each indirect table;
    /// 0 for none.
    ///
    /// # Panics
    /// When `size` is 0, above [`v::MAX_RING`], or no power of two for a split ring.
    pub fn at(at: u64, size: u16, features: u64, entries: u16) -> Areas {
        let packed = features & v::F_RING_PACKED != 0;
        assert!((1..=v::MAX_RING).contains(&size), "a ring of {size} entries");
        assert!(packed || size.is_power_of_two(), "a split ring of {size} entries: no power of two");
        let n = u64::from(size);
        let (driver_bytes, device_bytes) = if packed { (4, 4) } else { (6 + 2 * n, 6 + 8 * n) };
        let bytes = u64::from(v::DESC_BYTES);
        let desc = at.next_multiple_of(APART);
        let driver = (desc + bytes * n).next_multiple_of(APART);
        let device = (driver + driver_bytes).next_multiple_of(APART);
        let tables = (device + device_bytes).next_multiple_of(APART);
        let end = tables + bytes * n * u64::from(entries);
        Areas { size, features, desc, driver, device, tables, entries, end }
    }

    /// Whether the feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// What the device is told of it, at its beginning.
    pub fn ring(&self, way: Way) -> RingLayout {
        // A packed ring begins with both wrap counters set (virtio 1.3 §2.8.1).
        let base = if self.has(v::F_RING_PACKED) { 1 << 15 | 1 << 31 } else { 0 };
        let Areas { size, desc, driver, device, features, .. } = *self;
        RingLayout { size, desc, driver, device, features, base, way }
    }

    /// Sets all areas to zero, as a device expects them at first.
    ///
    /// # Errors
    /// When they are not memory of `table`.
    pub fn clear(&self, table: &Arc<Table>) -> Result<(), OutOfRange> {
        let words = table.window::<u16>(self.desc, ((self.end - self.desc) / 2) as usize)?;
        for i in 0..words.len() {
            words.set(i, 0);
        }
        Ok(())
    }
}

/// The guest's side of a ring. One owner.
///
/// Chains are added, then published together; every chain comes back once from [`Ring::used`].
/// Memory that a chain names belongs to the device until then.
pub trait Ring: Sized + Send {
    /// Clears the areas and begins with an empty ring.
    ///
    /// # Errors
    /// When an area is not memory of `table`.
    fn open(areas: &Areas, table: &Arc<Table>) -> Result<Self, OutOfRange>;

    /// Adds a chain (readable buffers first), one descriptor for each buffer, and returns its id, below
    /// the size of the ring. `None`: it does not fit now. The device cannot see it yet.
    ///
    /// # Panics
    /// When `chain` is empty or longer than the ring.
    fn add(&mut self, chain: &[Segment]) -> Option<u16>;

    /// The same with one descriptor for the whole chain, which points to a table of its buffers
    /// (virtio 1.3 §2.7.5.3, §2.8.7).
    ///
    /// # Panics
    /// When `chain` is empty or longer than [`Areas::entries`].
    fn add_indirect(&mut self, chain: &[Segment]) -> Option<u16>;

    /// Shows the device all that was added, by one release store; `true`: it wants to be kicked.
    #[must_use = "a device that is not kicked may sleep forever"]
    fn publish(&mut self) -> bool;

    /// Takes the next used chain.
    ///
    /// # Errors
    /// What the device did wrong.
    fn used(&mut self) -> Result<Option<Used>, Lie>;

    /// Asks the device to call when, after what was taken, `after` more chains (split) or descriptors
    /// (packed) are used and then one more; or never. Without `EVENT_IDX` the device knows only "at the
    /// next" and "never". `true`: there may be enough already, and no call may follow.
    fn arm(&mut self, after: Option<u16>) -> bool;

    /// Descriptors that can be added.
    fn free(&self) -> u16;

    /// Entries.
    fn size(&self) -> u16;

    /// Longest chain that [`Ring::add_indirect`] takes; 0: it takes none.
    fn indirect(&self) -> u16;
}

/// What is known of an id (and, in a split ring, of a descriptor), where no device can write it.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// The next one of the chain, or of the list of free ones.
    next: u16,
    /// Places of the ring that the chain takes; 0: the device does not have it.
    descs: u16,
    /// Bytes the device may write.
    room: u32,
}

/// A list of all slots, each pointing to the next, the last to the first.
fn slots(size: u16) -> Box<[Slot]> {
    (0..size).map(|i| Slot { next: (i + 1) % size, ..Slot::default() }).collect()
}

/// The indirect tables of a ring, one for each id.
struct Tables {
    at: u64,
    entries: u16,
    words: Window<u64>,
}

impl Tables {
    fn open(areas: &Areas, table: &Arc<Table>) -> Result<Option<Tables>, OutOfRange> {
        if areas.entries == 0 {
            return Ok(None);
        }
        let words = table.window(areas.tables, ((areas.end - areas.tables) / 8) as usize)?;
        Ok(Some(Tables { at: areas.tables, entries: areas.entries, words }))
    }

    /// Writes the table of `id`, `word` making the second word of entry `i`; its address.
    fn write(&self, id: u16, chain: &[Segment], word: impl Fn(usize, &Segment) -> u64) -> u64 {
        let (n, entries) = (chain.len(), usize::from(self.entries));
        assert!(n > 0 && n <= entries, "a chain of {n} in tables of {entries}");
        let first = usize::from(id) * entries;
        for (i, segment) in chain.iter().enumerate() {
            self.words.set(2 * (first + i), segment.addr);
            self.words.set(2 * (first + i) + 1, word(i, segment));
        }
        self.at + first as u64 * u64::from(v::DESC_BYTES)
    }
}

/// Bytes of a chain that the device may write.
#[inline(always)]
fn room(chain: &[Segment]) -> u32 {
    chain.iter().fold(0, |sum, s| sum.saturating_add(if s.write { s.len } else { 0 }))
}

/// The second word of a descriptor of a split ring as it lies in memory.
#[inline(always)]
fn split_word(len: u32, flags: u16, next: u16) -> u64 {
    u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48
}

/// The same of a packed ring.
#[inline(always)]
fn packed_word(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

#[cfg(test)]
mod tests;
