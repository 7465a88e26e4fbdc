//! Memory that one core keeps to itself: batches, tables, counters. In huge pages where the host has
//! any, so that a core's whole state takes a handful of TLB entries.
//!
//! Pieces are cut from chunks of a huge page; each thread cuts from its own, so that cores share no
//! cache line. Space is used again only when all of its chunk is free: made for what lives as long as
//! its core or its port. No other process and no device can see it; memory for those is a
//! [`Map`](crate::Map).

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::{Arc, LazyLock};

use zerocopy::FromZeros;

/// Bytes of a chunk: the usual huge page. Miri, which has none, is slow with so much.
const CHUNK: usize = if cfg!(miri) { 64 << 10 } else { 2 << 20 };
/// Two cache lines, which processors fetch as a pair: nothing is shared with a neighbour.
const ALIGN: usize = 128;

/// Whether the host's usual huge page is no larger than a chunk. Where it has none, `hugepage_rs` must
/// not be asked (it panics); where it is larger, most of each would be wasted.
static SUPPORTED: LazyLock<bool> = LazyLock::new(|| {
    if cfg!(miri) {
        return false;
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.is_some_and(|kib| kib * 1024 <= CHUNK)
});

thread_local! {
    /// The chunk that this thread cuts from, and the bytes that are taken.
    static OPEN: RefCell<Option<(Arc<Chunk>, usize)>> = const { RefCell::new(None) };
}

/// Memory of one allocation.
struct Chunk {
    base: NonNull<u8>,
    layout: Layout,
    huge: bool,
}

// SAFETY: an address range; who may access which part of it is the business of its pieces.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// In huge pages, or else from the heap.
    fn new(size: usize, align: usize) -> Chunk {
        let layout = Layout::from_size_align(size, align.max(ALIGN)).expect("sizes of Rust types");
        if *SUPPORTED {
            // SAFETY: the size is not zero.
            if let Some(base) = NonNull::new(unsafe { hugepage_rs::alloc(layout) }) {
                return Chunk { base, layout, huge: true };
            }
        }
        // SAFETY: as above.
        let base = NonNull::new(unsafe { alloc::alloc(layout) });
        Chunk { base: base.unwrap_or_else(|| alloc::handle_alloc_error(layout)), layout, huge: false }
    }

    /// A place for `layout` from byte `used` on, and the bytes used then.
    fn cut(&self, used: usize, layout: Layout) -> Option<(NonNull<u8>, usize)> {
        let start = used.checked_next_multiple_of(layout.align().max(ALIGN))?;
        let end = start.checked_add(layout.size())?;
        if end > self.layout.size() || layout.align() > self.layout.align() {
            return None;
        }
        // SAFETY: start <= end <= size of the chunk.
        Some((unsafe { self.base.add(start) }, end))
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, by the allocator that `huge` names; no piece is left.
        unsafe {
            if self.huge {
                hugepage_rs::dealloc(self.base.as_ptr(), self.layout);
            } else {
                alloc::dealloc(self.base.as_ptr(), self.layout);
            }
        }
    }
}

/// Room for `layout`, not of size zero, and the chunk that holds it.
fn room(layout: Layout) -> (NonNull<u8>, Arc<Chunk>) {
    if layout.size() <= CHUNK / 2 && layout.align() <= ALIGN {
        let cut = OPEN.try_with(|open| {
            let mut open = open.borrow_mut();
            if let Some((chunk, used)) = &mut *open {
                if Arc::get_mut(chunk).is_some() {
                    // No piece is left of it.
                    *used = 0;
                }
                if let Some((at, end)) = chunk.cut(*used, layout) {
                    *used = end;
                    return (at, chunk.clone());
                }
            }
            let chunk = Arc::new(Chunk::new(CHUNK, ALIGN));
            let (at, end) = chunk.cut(0, layout).expect("half a chunk fits a whole one");
            *open = Some((chunk.clone(), end));
            (at, chunk)
        });
        if let Ok(cut) = cut {
            return cut;
        }
    }
    let chunk = Arc::new(Chunk::new(layout.size(), layout.align()));
    (chunk.base, chunk)
}

/// A value (or a slice) in memory of its own core: a `Box` in huge pages.
pub struct Private<T: ?Sized> {
    at: NonNull<T>,
    /// `None`: the value has no bytes.
    chunk: Option<Arc<Chunk>>,
}

// SAFETY: like a Box, it is the only way to its value.
unsafe impl<T: ?Sized + Send> Send for Private<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for Private<T> {}

impl<T> Private<T> {
    /// Moves a value there.
    pub fn new(value: T) -> Private<T> {
        let (at, chunk) = place::<T>(Layout::new::<T>());
        // SAFETY: room for one T, aligned.
        unsafe { at.write(value) };
        Private { at, chunk }
    }
}

impl<T> Private<[T]> {
    /// `len` values of all zeroes.
    ///
    /// # Panics
    /// When so many do not fit the address space.
    pub fn zeroed(len: usize) -> Private<[T]>
    where
        T: FromZeros,
    {
        let (at, chunk) = place::<T>(Layout::array::<T>(len).expect("fits the address space"));
        // SAFETY: room for `len` values, for which zeroes are valid.
        unsafe { at.write_bytes(0, len) };
        Private { at: NonNull::slice_from_raw_parts(at, len), chunk }
    }

    /// `len` values, each made from its index.
    ///
    /// # Panics
    /// As `make`, and when so many do not fit the address space.
    pub fn from_fn(len: usize, mut make: impl FnMut(usize) -> T) -> Private<[T]> {
        let (at, chunk) = place::<T>(Layout::array::<T>(len).expect("fits the address space"));
        // The values so far are dropped if `make` panics.
        let mut made = Private { at: NonNull::slice_from_raw_parts(at, 0), chunk };
        for i in 0..len {
            // SAFETY: i < len: inside the room, aligned.
            unsafe { at.add(i).write(make(i)) };
            made.at = NonNull::slice_from_raw_parts(at, i + 1);
        }
        made
    }
}

fn place<T>(layout: Layout) -> (NonNull<T>, Option<Arc<Chunk>>) {
    if layout.size() == 0 {
        return (NonNull::dangling(), None);
    }
    let (at, chunk) = room(layout);
    (at.cast(), Some(chunk))
}

impl<T: ?Sized> Private<T> {
    /// Whether it lies in huge pages.
    pub fn huge(&self) -> bool {
        self.chunk.as_ref().is_some_and(|chunk| chunk.huge)
    }
}

impl<T: ?Sized> Deref for Private<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: initialised, and `self` is the only way to it.
        unsafe { self.at.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for Private<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { self.at.as_mut() }
    }
}

impl<T: ?Sized> Drop for Private<T> {
    fn drop(&mut self) {
        // SAFETY: initialised, and dropped once; its room is not used again while the chunk lives.
        unsafe { ptr::drop_in_place(self.at.as_ptr()) };
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    #[test]
    fn values_lie_apart_and_keep_what_they_hold() {
        let mut tables: Vec<Private<[u64]>> = (0..40).map(|i| Private::zeroed(i * 37)).collect();
        let mut cell = Private::new([1u8; 3]);
        assert!(tables.iter().flat_map(|t| t.iter()).all(|&v| v == 0));
        for (i, table) in tables.iter_mut().enumerate() {
            table.fill(i as u64);
        }
        cell[1] = 9;
        assert!(
            tables.iter().enumerate().all(|(i, t)| t.len() == i * 37 && t.iter().all(|&v| v == i as u64))
        );
        assert_eq!(format!("{cell:?}"), "[1, 9, 1]");
        for table in tables.iter().filter(|t| !t.is_empty()) {
            assert_eq!(table.as_ptr() as usize % ALIGN, 0);
        }
        assert!(Private::new(()).chunk.is_none());
    }

    #[test]
    fn a_large_one_and_a_strictly_aligned_one_get_a_chunk_of_their_own() {
        #[repr(align(4096))]
        struct Page([u8; 4096]);
        let large = Private::<[u8]>::zeroed(3 * CHUNK + 1);
        assert!(large.iter().all(|&b| b == 0));
        let page = Private::new(Page([7; 4096]));
        assert_eq!((&raw const *page as usize % 4096, page.0[4095]), (0, 7));
    }

    #[test]
    fn values_are_dropped_once_and_chunks_with_their_last() {
        let count = Rc::new(());
        let made = Private::from_fn(10, |_| count.clone());
        let chunk = Arc::downgrade(made.chunk.as_ref().unwrap());
        assert_eq!(Rc::strong_count(&count), 11);
        drop(made);
        assert_eq!(Rc::strong_count(&count), 1);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            Private::from_fn(10, |i| if i < 5 { count.clone() } else { panic!("five are enough") })
        }));
        assert!(failed.is_err());
        assert_eq!(Rc::strong_count(&count), 1);
        OPEN.with(|open| open.take());
        assert!(chunk.upgrade().is_none());
    }

    #[test]
    fn space_is_used_again_when_nothing_of_its_chunk_is_left() {
        let first = Private::new([1u8; 1000]).as_ptr();
        for _ in 0..if cfg!(miri) { 100 } else { 10_000 } {
            let table = Private::<[u8]>::zeroed(1000);
            assert_eq!((table.as_ptr(), table.iter().all(|&b| b == 0)), (first, true));
        }
        let kept = Private::new([2u8; 1000]);
        let others: Vec<_> =
            (0..if cfg!(miri) { 100 } else { 4000 }).map(|_| Private::new([3u8; 1000])).collect();
        assert!(kept.iter().all(|&b| b == 2) && others.iter().all(|o| o.iter().all(|&b| b == 3)));
    }

    #[test]
    fn moves_to_another_thread_with_its_value() {
        let table = Private::<[u32]>::zeroed(100);
        let sum = std::thread::spawn(move || {
            let mut table = table;
            table[3] = 4;
            let own = Private::new(5u32);
            table.iter().sum::<u32>() + *own
        });
        assert_eq!(sum.join().unwrap(), 9);
    }
}
