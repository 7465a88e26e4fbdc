//! A ring in shared memory. The client puts buffers at its head, to be sent or to be filled, and the server gives
//! them back at its tail, in that order; each side writes its own index only.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Monitor, OutOfRange, Table, Window, Words};

use crate::spec::memif::{COOKIE, DESC, DESC_NEXT, FLAGS, HEAD, RING_HEADER, RING_MASKED, TAIL};
use crate::spec::net::MAX_FRAME;

/// Most buffers of a packet.
pub(super) const MAX_CHAIN: usize = 128;

/// What a peer did wrong on a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("index {theirs} where ours is {ours}: more than a ring of {size} holds")]
    Index { ours: u16, theirs: u16, size: u16 },
    #[error("a buffer of {len} bytes, where {room} were given")]
    Length { len: u32, room: u32 },
    #[error("a packet of more than {MAX_CHAIN} buffers, or than its ring holds")]
    Chain,
    #[error("an empty buffer to fill")]
    Empty,
    #[error("{0}")]
    Outside(#[from] OutOfRange),
}

/// A descriptor, copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) next: bool,
    pub(super) region: u16,
    pub(super) len: u32,
    pub(super) offset: u32,
}

impl Desc {
    /// Its first word, without flags that nobody knows.
    fn word(self) -> u64 {
        let flags = if self.next { DESC_NEXT } else { 0 };
        u64::from(flags) | u64::from(self.region) << 16 | u64::from(self.len) << 32
    }
}

/// Header and descriptors of a ring, as either side sees them.
#[derive(Debug)]
pub(super) struct Ring {
    header: Window<u16>,
    descs: Window<u64>,
    size: u16,
}

impl Ring {
    /// Bytes of a ring of `1 << log2` descriptors.
    pub(super) fn bytes(log2: u8) -> u64 {
        RING_HEADER + (DESC << log2)
    }

    /// A ring that is there.
    ///
    /// # Errors
    /// When not all of it is in one region, or not aligned.
    pub(super) fn open(table: &Arc<Table>, gpa: u64, log2: u8) -> Result<Ring, OutOfRange> {
        let size = 1u16 << log2;
        let header = table.window(gpa, RING_HEADER as usize / size_of::<u16>())?;
        let behind = gpa.checked_add(RING_HEADER).ok_or(OutOfRange { gpa, len: RING_HEADER })?;
        Ok(Ring { header, descs: table.window(behind, 2 * usize::from(size))?, size })
    }

    /// Writes the header of a new ring.
    pub(super) fn init(&self) {
        self.header.copy_in(0, &COOKIE.to_ne_bytes());
        self.mask(true);
    }

    /// Whether its first word is what it should be.
    pub(super) fn is_one(&self) -> bool {
        let cookie = u32::from(self.header.get(0)) | u32::from(self.header.get(1)) << 16;
        cookie == COOKIE
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Pairs with the release in `set_head` of the client: it has written the descriptors before.
    #[inline(always)]
    pub(super) fn head(&self) -> u16 {
        self.header.acquire(HEAD)
    }

    /// Pairs with the release in `set_tail` of the server: it is done with the buffers before.
    #[inline(always)]
    pub(super) fn tail(&self) -> u16 {
        self.header.acquire(TAIL)
    }

    #[inline(always)]
    pub(super) fn set_head(&self, head: u16) {
        self.header.release(HEAD, head);
    }

    #[inline(always)]
    pub(super) fn set_tail(&self, tail: u16) {
        self.header.release(TAIL, tail);
    }

    /// The receiver's: whether it does without signals.
    pub(super) fn mask(&self, masked: bool) {
        self.header.set(FLAGS, if masked { RING_MASKED } else { 0 });
        // Pairs with the fence in `wants_signal`: either the other side sees the flag, or we what it did.
        fence(Ordering::SeqCst);
    }

    /// The sender's, after its index was set: whether the receiver wants to be signalled.
    #[inline(always)]
    pub(super) fn wants_signal(&self) -> bool {
        // Pairs with the fence in `mask`.
        fence(Ordering::SeqCst);
        self.header.get(FLAGS) & RING_MASKED == 0
    }

    /// Lets `monitor` watch the other side's index, last seen as `was`.
    pub(super) fn monitor_head(&self, was: u16, monitor: &mut Monitor) {
        self.header.monitor(HEAD, was, monitor);
    }

    /// As [`Ring::monitor_head`].
    pub(super) fn monitor_tail(&self, was: u16, monitor: &mut Monitor) {
        self.header.monitor(TAIL, was, monitor);
    }

    #[inline(always)]
    pub(super) fn desc(&self, i: u16) -> Desc {
        let (low, high) = self.descs.pair(self.at(i)).expect("the index is below the size");
        Desc {
            next: low as u16 & DESC_NEXT != 0,
            region: (low >> 16) as u16,
            len: (low >> 32) as u32,
            offset: high as u32,
        }
    }

    #[inline(always)]
    pub(super) fn put(&self, i: u16, desc: Desc) {
        let at = 2 * self.at(i);
        self.descs.set(at, desc.word());
        self.descs.set(at + 1, desc.offset.into());
    }

    /// Place of a free-running index.
    #[inline(always)]
    pub(super) fn at(&self, i: u16) -> usize {
        usize::from(i & (self.size - 1))
    }
}

/// What the descriptors from one on say of a packet, read once.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) parts: Vec<Desc>,
    /// Bytes of all.
    pub(super) bytes: u64,
}

impl Packet {
    pub(super) fn new() -> Packet {
        Packet { parts: Vec::with_capacity(MAX_CHAIN), bytes: 0 }
    }

    /// Reads the packet at `from`, `available` descriptors being there; whether all of it is.
    #[inline(always)]
    pub(super) fn read(&mut self, ring: &Ring, from: u16, available: u16) -> Result<bool, Fault> {
        self.parts.clear();
        self.bytes = 0;
        for i in 0..available {
            let desc = ring.desc(from.wrapping_add(i));
            self.bytes += u64::from(desc.len);
            self.parts.push(desc);
            if !desc.next {
                return Ok(true);
            }
            if self.parts.len() == MAX_CHAIN {
                return Err(Fault::Chain);
            }
        }
        // One that a full ring does not hold never comes to its end.
        if available == ring.size() { Err(Fault::Chain) } else { Ok(false) }
    }

    /// Whether it is one that is passed on.
    #[inline(always)]
    pub(super) fn is_frame(&self) -> bool {
        self.bytes > 0 && self.bytes <= u64::from(MAX_FRAME)
    }

    /// The last part that has bytes.
    #[inline(always)]
    pub(super) fn last(&self) -> usize {
        self.parts.iter().rposition(|part| part.len > 0).unwrap_or(0)
    }
}

/// How far `theirs` is ahead of `ours`, `most` at the most.
#[inline(always)]
pub(super) fn ahead(ours: u16, theirs: u16, most: u16) -> Result<u16, Fault> {
    let n = theirs.wrapping_sub(ours);
    if n > most { Err(Fault::Index { ours, theirs, size: most }) } else { Ok(n) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, Map, PageSize};

    #[test]
    fn descriptors_and_indices_are_where_the_protocol_has_them() {
        let map = Map::shared(8192, Backing { page: PageSize::Base, node: None }).unwrap();
        let table = Table::of(map);
        let ring = Ring::open(&table, 4096, 4).unwrap();
        assert!(!ring.is_one());
        ring.init();
        let desc = Desc { next: true, region: 0x1234, len: 0xaabb_ccdd, offset: 0x5566_7788 };
        ring.put(17, desc);
        ring.set_head(0xfedc);
        ring.set_tail(0x9876);
        let bytes: Window<u16> = table.window(4096, 128).unwrap();
        let at = |byte: usize| bytes.get(byte / 2);
        assert_eq!([at(0), at(2), at(4), at(6), at(64)], [0x1f20, 0x03e3, 1, 0xfedc, 0x9876]);
        let second = 128 + 16;
        assert_eq!([at(second), at(second + 2), at(second + 4), at(second + 6)], [1, 0x1234, 0xccdd, 0xaabb]);
        assert_eq!([at(second + 8), at(second + 10)], [0x7788, 0x5566]);
        assert!(ring.is_one() && ring.desc(1) == desc && !ring.wants_signal());
        ring.mask(false);
        assert!(ring.wants_signal());
        let last = 8192 - Ring::bytes(4);
        assert!(Ring::open(&table, last, 4).is_ok());
        assert!(Ring::open(&table, last + 16, 4).is_err() && Ring::open(&table, last - 4, 4).is_err());
        assert!(Ring::open(&table, u64::MAX - 7, 4).is_err());
    }

    #[test]
    fn a_chain_ends_or_is_waited_for_or_is_a_fault() {
        let map = Map::shared(65536, Backing { page: PageSize::Base, node: None }).unwrap();
        let ring = Ring::open(&Table::of(map), 0, 8).unwrap();
        let part = |next, len| Desc { next, region: 0, len, offset: 0 };
        let mut packet = Packet::new();
        (0..3).for_each(|i| ring.put(i, part(i < 2, if i == 2 { 0 } else { 100 })));
        assert_eq!(packet.read(&ring, 0, 2), Ok(false));
        assert_eq!(packet.read(&ring, 0, 3), Ok(true));
        assert_eq!((packet.parts.len(), packet.bytes, packet.last(), packet.is_frame()), (3, 200, 1, true));
        assert_eq!(packet.read(&ring, 2, 1), Ok(true));
        assert!(!packet.is_frame());
        (0..=255).for_each(|i| ring.put(i, part(true, 1)));
        assert_eq!(packet.read(&ring, 7, 100), Ok(false));
        assert_eq!(packet.read(&ring, 7, 200), Err(Fault::Chain));
        assert_eq!((ahead(65530, 4, 256), ahead(0, 257, 256).is_err()), (Ok(10), true));
    }
}
