//! Memory of rings: shared with a device, at the same address for both.

use std::sync::Arc;

use hugepages::{Backing, Map, Region, Table, Window};

use super::NicError;

/// One block, given out piece by piece.
pub(crate) struct Memory {
    table: Arc<Table>,
    next: u64,
    end: u64,
}

impl Memory {
    /// At least `bytes` bytes, zeroed.
    pub(crate) fn new(bytes: usize, backing: Backing) -> Result<Memory, NicError> {
        let (map, _) = Map::shared_or_base(bytes, backing)?;
        let (at, len) = (map.address(), map.len() as u64);
        let region = Region { gpa: at, len, user: at, map: Arc::new(map), at: 0 };
        let table = Table::new(vec![region]).expect("one region, as long as its mapping");
        Ok(Memory { table: Arc::new(table), next: at, end: at + len })
    }

    /// The next `bytes` bytes at a multiple of `align`; their address.
    ///
    /// # Panics
    /// When the block is used up: who made it counted wrong.
    pub(crate) fn take(&mut self, bytes: usize, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + bytes as u64;
        assert!(self.next <= self.end, "a block of memory is used up");
        at
    }

    /// The words at an address that was taken.
    ///
    /// # Panics
    /// When they are not in the block.
    pub(crate) fn words<T: hugepages::Word>(&self, at: u64, n: usize) -> Window<T> {
        self.table.window(at, n).expect("inside the block")
    }

    /// All of it: addresses of the table are the device's.
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }
}
