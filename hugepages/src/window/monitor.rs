//! Waiting for a word of a ring without its ring at hand: what a core keeps of queues that rest.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::Word;
use crate::table::Table;

/// What a monitor of nothing looks at.
static STILL: AtomicU16 = AtomicU16::new(0);

/// The upper 16 bits of a word of guest memory, and what they were: [`Words::monitor`](super::Words::monitor)
/// fills it. Keeps the table (so the mapping) alive until it is [cleared](Monitor::clear) or dropped.
#[derive(Debug)]
pub struct Monitor {
    at: NonNull<u16>,
    was: u16,
    table: Option<Arc<Table>>,
}

// SAFETY: all access is atomic and the table keeps the memory mapped.
unsafe impl Send for Monitor {}

impl Default for Monitor {
    fn default() -> Self {
        Monitor { at: NonNull::from(&STILL).cast(), was: 0, table: None }
    }
}

impl Monitor {
    /// Whether the word is another than it was. A hint, unordered: who acts on it reads the word again.
    #[inline(always)]
    pub fn changed(&self) -> bool {
        // SAFETY: `at` is aligned, and either STILL or kept mapped by `table`.
        unsafe { u16::load(self.at.as_ptr(), Ordering::Relaxed) != self.was }
    }

    /// Whether it monitors nothing.
    #[inline(always)]
    pub fn is_clear(&self) -> bool {
        self.table.is_none()
    }

    /// Monitors nothing from now on: never changes, and keeps no memory alive.
    pub fn clear(&mut self) {
        *self = Monitor::default();
    }

    /// Monitors the upper 16 bits of the word at `at`, whose value is `value`.
    ///
    /// # Safety
    /// `at` is aligned and mapped as long as `table` lives.
    #[inline]
    pub(super) unsafe fn set<T: Word>(&mut self, at: NonNull<T>, value: T, table: &Arc<Table>) {
        let top = size_of::<T>() - size_of::<u16>();
        // SAFETY: the upper 16 bits of a little-endian word are its last bytes.
        self.at = unsafe { at.cast::<u8>().add(top) }.cast();
        let value: u64 = value.into();
        self.was = (value >> (8 * top)) as u16;
        if !self.table.as_ref().is_some_and(|known| Arc::ptr_eq(known, table)) {
            self.table = Some(Arc::clone(table));
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::map::{Backing, Map, PageSize};
    use crate::window::{Window, Words};

    /// Word 1 of `wide` has word 3 of `narrow` as its upper bits.
    fn upper_bits(wide: &impl Words<u64>, narrow: &Window<u16>, monitor: &mut Monitor) {
        wide.set(1, 0xABCD_0000_0000_0000);
        wide.monitor(1, wide.get(1), monitor);
        assert!(!monitor.is_clear() && !monitor.changed());
        wide.set(1, 0xABCD_FFFF_FFFF_FFFF);
        assert!(!monitor.changed(), "the lower bits do not count");
        narrow.set(3, 0xABCC);
        assert!(monitor.changed());
    }

    #[test]
    fn a_change_of_the_upper_bits_is_seen_and_the_table_is_kept_until_then() {
        let table = Table::of(Map::shared(4096, Backing { page: PageSize::Base, node: None }).unwrap());
        let wide = table.window::<u64>(8, 2).unwrap();
        let narrow = table.window::<u16>(16, 4).unwrap();
        let checked = table.checked_window::<u64>(8, 2).unwrap();
        let mut monitor = Monitor::default();
        assert!(monitor.is_clear() && !monitor.changed());
        upper_bits(&wide, &narrow, &mut monitor);
        upper_bits(&checked, &narrow, &mut monitor);
        narrow.monitor(1, 0xFFFF, &mut monitor);
        assert!(!monitor.changed());
        narrow.monitor(1, 0, &mut monitor);
        assert!(monitor.changed(), "it was another already");
        drop((wide, narrow, checked));
        assert_eq!(Arc::strong_count(&table), 2);
        monitor.clear();
        assert_eq!(Arc::strong_count(&table), 1);
        assert!(monitor.is_clear() && !monitor.changed());
    }
}
