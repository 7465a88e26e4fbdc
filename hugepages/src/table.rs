//! The memory of one guest: guest-physical to virtual addresses.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::map::{Damage, Map, PageSize};

/// Most regions a table takes: what vhost-user's `GET_MAX_MEM_SLOTS` promises.
pub const MAX_REGIONS: usize = 509;

/// A guest address range that is not (wholly) guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest address {gpa:#x} + {len:#x} is outside guest memory")]
pub struct OutOfRange {
    /// First address asked for.
    pub gpa: u64,
    /// Bytes asked for.
    pub len: u64,
}

/// Why a list of regions is no table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More than [`MAX_REGIONS`].
    #[error("memory table of {0} regions; at most {MAX_REGIONS} are supported")]
    TooMany(usize),
    /// A region is empty, wraps around the address space, is larger than its mapping, or does not
    /// begin on a page of 4 KiB.
    #[error("memory region {gpa:#x} + {len:#x} is empty, wraps, exceeds its mapping, or is not page-aligned")]
    Extent {
        /// Guest address of the region.
        gpa: u64,
        /// Its length.
        len: u64,
    },
    /// Two regions share guest addresses.
    #[error("memory regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
}

/// One region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// Address of its first byte in the front-end's process (ring addresses are given in these).
    pub user: u64,
    /// The mapping that holds it.
    pub map: Arc<Map>,
    /// Where it begins inside the mapping.
    pub at: usize,
}

impl Region {
    pub(crate) fn va(&self) -> NonNull<u8> {
        // SAFETY: `Table::new` checked that at + len lies inside the mapping.
        unsafe { self.map.base().add(self.at) }
    }
}

/// A region of a table as a loop keeps it in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) size: u64,
    pub(crate) base: NonNull<u8>,
}

// SAFETY: an address and numbers; who goes to the address keeps the mapping alive.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    /// The address of `len` bytes that lie in it.
    #[inline(always)]
    pub(crate) fn locate(&self, gpa: u64, len: u32) -> Option<NonNull<u8>> {
        let at = gpa.wrapping_sub(self.start);
        if at >= self.size || u64::from(len) > self.size - at {
            return None;
        }
        // SAFETY: at lies inside the region, whose mapping the lender's table keeps alive.
        Some(unsafe { self.base.add(at as usize) })
    }
}

/// The memory table of one guest: an unchanging list of regions, shared as `Arc<Table>`. A change of
/// guest memory makes a new table; the old one lives until the last window or buffer into it is gone.
#[derive(Debug)]
pub struct Table {
    /// Sorted by guest address, without overlap.
    regions: Box<[Region]>,
    /// The same regions.
    spans: Box<[Span]>,
    /// The guest addresses from `low`, where the first region begins, to the end of the last, in equal
    /// parts of `1 << shift` bytes: for each the first region that goes on past its beginning.
    parts: Box<[u16]>,
    low: u64,
    shift: u32,
}

/// Most parts that the addresses of a table are divided into, to find a region at once: one of 512 regions
/// of the same size and alignment shares its parts with no other, or with one.
const MAX_PARTS: u64 = 4096;

impl Table {
    /// Makes a table of regions in any order.
    ///
    /// # Errors
    /// Too many regions, an empty or wrapping one, one larger than its mapping, or an overlap.
    pub fn new(mut regions: Vec<Region>) -> Result<Table, TableError> {
        if regions.len() > MAX_REGIONS {
            return Err(TableError::TooMany(regions.len()));
        }
        for r in &regions {
            let inside = (r.at as u64).checked_add(r.len).is_some_and(|end| end <= r.map.len() as u64);
            let aligned = (r.gpa | r.at as u64).is_multiple_of(PageSize::Base.bytes() as u64);
            if r.len == 0
                || !inside
                || !aligned
                || r.gpa.checked_add(r.len).is_none()
                || r.user.checked_add(r.len).is_none()
            {
                return Err(TableError::Extent { gpa: r.gpa, len: r.len });
            }
        }
        regions.sort_by_key(|r| r.gpa);
        for pair in regions.windows(2) {
            if pair[1].gpa - pair[0].gpa < pair[0].len {
                return Err(TableError::Overlap(pair[0].gpa, pair[1].gpa));
            }
        }
        Ok(Table::indexed(regions.into()))
    }

    /// Regions in order, checked.
    fn indexed(regions: Box<[Region]>) -> Table {
        let span = |r: &Region| Span { start: r.gpa, size: r.len, base: r.va() };
        let low = regions.first().map_or(0, |r| r.gpa);
        let size = regions.last().map_or(0, |r| r.gpa + r.len - low);
        let mut shift = PageSize::Base.bytes().ilog2();
        while size.div_ceil(1 << shift) > MAX_PARTS {
            shift += 1;
        }
        let mut first = 0;
        let first_past = |part: u64| {
            while regions[first].gpa - low + regions[first].len <= part << shift {
                first += 1;
            }
            first as u16
        };
        let parts = (0..size.div_ceil(1 << shift)).map(first_past).collect();
        Table { spans: regions.iter().map(span).collect(), regions, parts, low, shift }
    }

    /// A table of one mapping, guest address 0 at its first byte: memory of our own.
    pub fn of(map: Map) -> Arc<Table> {
        let (len, user) = (map.len() as u64, map.address());
        let region = Region { gpa: 0, len, user, map: Arc::new(map), at: 0 };
        Arc::new(Table::indexed(Box::new([region])))
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The first region whose mapping is damaged, by its guest address.
    pub fn damage(&self) -> Option<(u64, Damage)> {
        self.regions.iter().find_map(|r| Some((r.gpa, r.map.damage()?)))
    }

    /// The guest address of an address in the front-end's process, if it is guest memory.
    pub fn gpa_of(&self, user: u64) -> Option<u64> {
        self.regions.iter().find(|r| user.wrapping_sub(r.user) < r.len).map(|r| r.gpa + (user - r.user))
    }

    /// The guest address of an address of ours, such as [`Buf::iova`](crate::Buf::iova) of a buffer that was
    /// lent from this table.
    pub fn gpa_at(&self, va: u64) -> Option<u64> {
        let start = |r: &Region| r.va().as_ptr() as u64;
        self.regions.iter().find(|r| va.wrapping_sub(start(r)) < r.len).map(|r| r.gpa + (va - start(r)))
    }

    /// How many bytes from `gpa` on lie in one region; 0 when `gpa` is not guest memory.
    pub fn contiguous(&self, gpa: u64) -> u64 {
        self.find(gpa).map_or(0, |span| span.size - (gpa - span.start))
    }

    /// The address of `len` bytes that lie in one region.
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Result<NonNull<u8>, OutOfRange> {
        let span = self.find(gpa).ok_or(OutOfRange { gpa, len })?;
        let at = gpa - span.start;
        if len > span.size - at {
            return Err(OutOfRange { gpa, len });
        }
        // SAFETY: at < span.size, and the region lies inside its mapping.
        Ok(unsafe { span.base.add(at as usize) })
    }

    /// The region that an address lies in.
    pub(crate) fn find(&self, gpa: u64) -> Option<Span> {
        self.find_with(gpa, 0).map(|(span, _)| span)
    }

    /// The region that `len` bytes lie in, and their address.
    #[inline(always)]
    pub(crate) fn find_with(&self, gpa: u64, len: u32) -> Option<(Span, NonNull<u8>)> {
        let part = usize::try_from(gpa.wrapping_sub(self.low) >> self.shift).ok()?;
        let i = usize::from(*self.parts.get(part)?);
        let span = self.spans.get(i)?;
        match span.locate(gpa, len) {
            Some(at) => Some((*span, at)),
            None => self.find_behind(i, gpa, len),
        }
    }

    /// The same in a part where several regions are, the first of them number `i`.
    #[cold]
    #[inline(never)]
    fn find_behind(&self, i: usize, gpa: u64, len: u32) -> Option<(Span, NonNull<u8>)> {
        let behind = &self.spans[i..];
        let after = behind.partition_point(|span| span.start <= gpa);
        let span = behind[after.checked_sub(1)?];
        Some((span, span.locate(gpa, len)?))
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::Backing;
    use crate::window::Words;

    const PAGE: u64 = 4096;

    fn map(pages: u64) -> Arc<Map> {
        Arc::new(Map::shared((pages * PAGE) as usize, Backing { page: PageSize::Base, node: None }).unwrap())
    }

    fn region(gpa: u64, pages: u64, map: &Arc<Map>, at: u64) -> Region {
        Region { gpa, len: pages * PAGE, user: gpa + (1 << 40), map: Arc::clone(map), at: at as usize }
    }

    /// Guest pages 16 to 19, in an order of their own in one mapping, and a hole behind.
    fn scattered() -> Arc<Table> {
        let map = map(4);
        let regions = [(17, 0), (16, 2), (19, 1), (18, 3)];
        let regions = regions.map(|(page, at)| region(page * PAGE, 1, &map, at * PAGE)).to_vec();
        Arc::new(Table::new(regions).unwrap())
    }

    #[test]
    fn nothing_crosses_from_one_region_into_the_next() {
        let table = scattered();
        let start = 16 * PAGE;
        for (gpa, len, inside) in [
            (start, PAGE, true),
            (start, PAGE + 1, false),
            (start + PAGE - 1, 1, true),
            (start + PAGE - 1, 2, false),
            (start - 1, 1, false),
            (start + 4 * PAGE - 1, 1, true),
            (start + 4 * PAGE, 1, false),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(table.translate(gpa, len).is_ok(), inside, "{gpa:#x} + {len:#x}");
        }
        assert_eq!((table.contiguous(start + 5), table.contiguous(start - 1)), (PAGE - 5, 0));
        assert_eq!(table.gpa_of((1 << 40) + start + 7), Some(start + 7));
        assert_eq!(table.gpa_of(start), None);
    }

    proptest! {
        /// Regions anywhere: all in one part of the address space and some far off, or evenly.
        #[test]
        fn every_address_is_found_where_it_is(
            low in prop_oneof![Just(0), 0..1u64 << 40, Just((u64::MAX >> 12) - 20_000)],
            gaps in proptest::collection::vec((0..20u64, 1..4u64), 0..MAX_REGIONS),
            far in proptest::option::of(1..1u64 << 20),
        ) {
            let map = map(4);
            let region = |page: u64, pages| {
                Region { gpa: page * PAGE, len: pages * PAGE, user: 0, map: Arc::clone(&map), at: 0 }
            };
            let (mut page, mut regions) = (low, Vec::new());
            for (gap, pages) in gaps {
                page += gap;
                regions.push(region(page, pages));
                page += pages;
            }
            if let Some(far) = far.filter(|far| page + far < u64::MAX >> 12) {
                regions.push(region(page + far, 1));
            }
            let known = regions.clone();
            let table = Table::new(regions).unwrap();
            let edges = known.iter().flat_map(|r| [r.gpa, r.gpa + r.len]);
            for edge in edges.chain([0, u64::MAX, low * PAGE]) {
                for gpa in [edge.wrapping_sub(1), edge, edge.wrapping_add(1)] {
                    let inside = known.iter().find(|r| gpa >= r.gpa && gpa - r.gpa < r.len);
                    prop_assert_eq!(table.find(gpa).map(|s| (s.start, s.size)), inside.map(|r| (r.gpa, r.len)));
                    let run = inside.map_or(0, |r| r.len - (gpa - r.gpa));
                    prop_assert_eq!(table.contiguous(gpa), run);
                    for len in [run as u32, run as u32 + 1] {
                        let found = table.find_with(gpa, len).map(|(_, at)| at.as_ptr() as u64);
                        let there = inside.map(|r| r.map.address() + (gpa - r.gpa));
                        prop_assert_eq!(found, there.filter(|_| u64::from(len) <= run));
                    }
                }
            }
        }
    }

    #[test]
    fn a_checked_window_goes_where_a_mapped_one_cannot() {
        let table = scattered();
        let gpa = 17 * PAGE - 16;
        assert!(table.window::<u64>(gpa, 4).is_err());
        let checked = table.checked_window::<u64>(gpa, 4).unwrap();
        let (left, right) = (table.window::<u64>(gpa, 2).unwrap(), table.window::<u64>(gpa + 16, 2).unwrap());
        for i in 0..4 {
            checked.set(i, 100 + i as u64);
        }
        checked.release(3, 7);
        assert_eq!([left.get(0), left.get(1), right.get(0), right.acquire(1)], [100, 101, 102, 7]);
        for (gpa, n) in [(20 * PAGE - 8, 2), (16 * PAGE - 8, 2), (17 * PAGE - 12, 2), (gpa, usize::MAX)] {
            assert!(table.checked_window::<u64>(gpa, n).is_err(), "{gpa:#x}, {n}");
        }
        assert!(table.window::<u64>(16 * PAGE + 4, 1).is_err(), "not aligned");
        assert!(table.window::<u32>(16 * PAGE + 4, 1).is_ok());
    }

    #[test]
    #[should_panic(expected = "word 2 of a window of 2")]
    fn a_window_has_an_end() {
        scattered().window::<u16>(16 * PAGE, 2).unwrap().get(2);
    }

    #[test]
    fn a_list_that_is_no_table_is_named() {
        let map = map(2);
        let bad = |regions: Vec<Region>| Table::new(regions).unwrap_err();
        let one = region(PAGE, 1, &map, 0);
        assert_eq!(bad(vec![one.clone(), one.clone()]), TableError::Overlap(PAGE, PAGE));
        let two = region(2 * PAGE, 2, &map, 0);
        assert_eq!(bad(vec![region(3 * PAGE, 1, &map, 0), two]), TableError::Overlap(2 * PAGE, 3 * PAGE));
        for region in [
            Region { len: 0, ..one.clone() },
            Region { len: 2 * PAGE + 1, ..one.clone() },
            Region { at: PAGE as usize + 4096, ..one.clone() },
            Region { at: 8, len: 8, ..one.clone() },
            Region { gpa: 8, ..one.clone() },
            Region { gpa: u64::MAX - 4095, len: 2 * PAGE, ..one.clone() },
            Region { user: u64::MAX, ..one.clone() },
        ] {
            assert!(matches!(bad(vec![region]), TableError::Extent { .. }));
        }
        let many = |n: usize| (0..n as u64).map(|i| region(i * 2 * PAGE, 1, &map, 0)).collect::<Vec<_>>();
        assert_eq!(bad(many(MAX_REGIONS + 1)), TableError::TooMany(MAX_REGIONS + 1));
        let table = Table::new(many(MAX_REGIONS)).unwrap();
        for i in 0..MAX_REGIONS as u64 {
            assert_eq!((table.contiguous(i * 2 * PAGE), table.contiguous((i * 2 + 1) * PAGE)), (PAGE, 0));
        }
    }
}
