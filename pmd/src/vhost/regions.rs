//! The regions of a guest's memory, as the front-end names them: which may stand beside each other.

use crate::spec::vhost_user::{MAX_MEM_SLOTS, MemRegion};

/// What is wrong with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// No byte long.
    #[error("region at guest address {0:#x} has no bytes")]
    Empty(u64),
    /// Beyond the last address there is.
    #[error("region of {:#x} bytes at guest address {:#x}, user address {:#x}, file offset {:#x} wraps", .0.size, .0.guest, .0.user, .0.offset)]
    Wraps(MemRegion),
    /// Two regions at one guest address.
    #[error("region of {:#x} bytes at guest address {:#x} overlaps the one at {other:#x}", .region.size, .region.guest)]
    Overlaps {
        /// The new one.
        region: MemRegion,
        /// Guest address of the one that is there.
        other: u64,
    },
    /// More than the limit.
    #[error("all {MAX_MEM_SLOTS} memory slots are taken")]
    Full,
    /// To be removed, but not there.
    #[error("no region of {:#x} bytes at guest address {:#x}, user address {:#x}", .0.size, .0.guest, .0.user)]
    Unknown(MemRegion),
}

/// The regions there are; none overlaps another.
#[derive(Debug, Default)]
pub(super) struct Regions(Vec<MemRegion>);

impl Regions {
    /// A whole table.
    pub(super) fn of(table: impl IntoIterator<Item = MemRegion>) -> Result<Regions, RegionError> {
        let mut all = Regions::default();
        for region in table {
            all.check(&region)?;
            all.add(region);
        }
        Ok(all)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &MemRegion> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the region could be added. Its addresses in the front-end may overlap others: the same
    /// memory may appear twice in a guest.
    pub(super) fn check(&self, region: &MemRegion) -> Result<(), RegionError> {
        let MemRegion { guest, size, user, offset } = *region;
        if size == 0 {
            return Err(RegionError::Empty(guest));
        }
        if [guest, user, offset].iter().any(|start| start.checked_add(size).is_none()) {
            return Err(RegionError::Wraps(*region));
        }
        let overlaps = |o: &&MemRegion| guest < o.guest + o.size && o.guest < guest + size;
        if let Some(other) = self.0.iter().find(overlaps) {
            return Err(RegionError::Overlaps { region: *region, other: other.guest });
        }
        if self.0.len() >= MAX_MEM_SLOTS { Err(RegionError::Full) } else { Ok(()) }
    }

    /// Adds one that was checked.
    pub(super) fn add(&mut self, region: MemRegion) {
        self.0.push(region);
    }

    /// Spec "Front-end message types", REM_MEM_REG: found by guest address, user address and size; the
    /// file offset is ignored. The region as it was added.
    pub(super) fn find(&self, wanted: &MemRegion) -> Result<MemRegion, RegionError> {
        let key = |r: &MemRegion| (r.guest, r.user, r.size);
        self.0.iter().find(|r| key(r) == key(wanted)).copied().ok_or(RegionError::Unknown(*wanted))
    }

    /// Removes one that was found.
    pub(super) fn remove(&mut self, region: &MemRegion) {
        self.0.retain(|r| r != region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, size: u64) -> MemRegion {
        MemRegion { guest, size, user: 0x7000_0000_0000 + guest, offset: 0 }
    }

    #[test]
    fn neighbours_may_touch_and_not_overlap() {
        let regions = Regions::of([region(0x10000, 0x1000), region(0x11000, 0x1000)]).unwrap();
        for (guest, size, fits) in [
            (0xf000, 0x1000, true),
            (0x12000, 0x1000, true),
            (0xf000, 0x1001, false),
            (0x11fff, 1, false),
            (0x10800, 0x10, false),
            (0x0, 0x100000, false),
            (0x10000, 0x1000, false),
        ] {
            assert_eq!(regions.check(&region(guest, size)).is_ok(), fits, "{guest:#x} {size:#x}");
        }
    }

    #[test]
    fn empty_and_wrapping_regions() {
        let none = Regions::default();
        assert_eq!(none.check(&region(5, 0)), Err(RegionError::Empty(5)));
        let plain = region(0x1000, 0x1000);
        for wraps in [
            MemRegion { guest: u64::MAX - 0xffe, ..plain },
            MemRegion { user: u64::MAX - 0xffe, ..plain },
            MemRegion { offset: u64::MAX - 0xffe, ..plain },
            MemRegion { size: u64::MAX, ..plain },
        ] {
            assert_eq!(none.check(&wraps), Err(RegionError::Wraps(wraps)));
        }
    }

    #[test]
    fn the_last_slot() {
        let all = (0..MAX_MEM_SLOTS as u64).map(|i| region(i * 0x1000, 0x1000));
        let mut regions = Regions::of(all).unwrap();
        let more = region(0x100_0000, 0x1000);
        assert_eq!(regions.check(&more), Err(RegionError::Full));
        regions.remove(&region(0x3000, 0x1000));
        assert_eq!(regions.check(&more), Ok(()));
    }

    #[test]
    fn found_by_address_and_size() {
        let mut regions = Regions::of([region(0x1000, 0x1000), region(0x2000, 0x1000)]).unwrap();
        let wanted = MemRegion { offset: 0x77, ..region(0x2000, 0x1000) };
        let found = regions.find(&wanted).unwrap();
        assert_eq!(found, region(0x2000, 0x1000));
        for other in
            [region(0x2000, 0x800), MemRegion { user: 1, ..wanted }, MemRegion { guest: 0x1000, ..wanted }]
        {
            assert_eq!(regions.find(&other), Err(RegionError::Unknown(other)));
        }
        regions.remove(&found);
        assert!(regions.find(&wanted).is_err());
    }
}
