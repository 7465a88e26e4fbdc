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
