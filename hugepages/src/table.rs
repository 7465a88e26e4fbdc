//! The memory of one guest: guest-physical to virtual addresses.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::map::{Map, PageSize};

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
}

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
        Ok(Table { regions: regions.into() })
    }

    /// A table of one mapping, guest address 0 at its first byte: memory of our own.
    pub fn of(map: Map) -> Arc<Table> {
        let (len, user) = (map.len() as u64, map.address());
        let region = Region { gpa: 0, len, user, map: Arc::new(map), at: 0 };
        Arc::new(Table { regions: Box::new([region]) })
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
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
        self.find(gpa).map_or(0, |r| r.len - (gpa - r.gpa))
    }

    /// The address of `len` bytes that lie in one region.
    pub(crate) fn translate(&self, gpa: u64, len: u64) -> Result<NonNull<u8>, OutOfRange> {
        let region = self.find(gpa).ok_or(OutOfRange { gpa, len })?;
        let at = gpa - region.gpa;
        if len > region.len - at {
            return Err(OutOfRange { gpa, len });
        }
        // SAFETY: at < region.len, and the region lies inside its mapping.
        Ok(unsafe { region.va().add(at as usize) })
    }

    pub(crate) fn find(&self, gpa: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.gpa <= gpa);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (gpa - region.gpa < region.len).then_some(region)
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
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
