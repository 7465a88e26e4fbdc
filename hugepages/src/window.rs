//! Typed views of rings. Every access is one atomic load or store of a whole word, so a value that a
//! guest changes meanwhile is read once or the other way, never torn and never twice.

mod monitor;

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use zerocopy::FromBytes;

pub use monitor::Monitor;

use crate::table::{OutOfRange, Table};

mod sealed {
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// A word that the machine reads and writes at once: `u16`, `u32`, `u64`.
pub trait Word:
    sealed::Sealed + Copy + Send + AtomicAccess + Default + FromBytes + Into<u64> + std::fmt::Debug + 'static
{
    #[doc(hidden)]
    /// # Safety
    /// `at` is aligned and mapped.
    unsafe fn load(at: *mut Self, order: Ordering) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `at` is aligned and mapped.
    unsafe fn store(at: *mut Self, value: Self, order: Ordering);
}

macro_rules! word {
    ($int:ty, $atomic:ty) => {
        impl Word for $int {
            #[inline(always)]
            unsafe fn load(at: *mut Self, order: Ordering) -> Self {
                // SAFETY: the caller's promise.
                unsafe { <$atomic>::from_ptr(at) }.load(order)
            }
            #[inline(always)]
            unsafe fn store(at: *mut Self, value: Self, order: Ordering) {
                // SAFETY: the caller's promise.
                unsafe { <$atomic>::from_ptr(at) }.store(value, order);
            }
        }
    };
}
word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

/// What a ring needs of an area of memory, mapped or checked.
pub trait Words<T: Word>: Send {
    /// Word `i`, unordered.
    fn get(&self, i: usize) -> T;
    /// Sets word `i`, unordered.
    fn set(&self, i: usize, value: T);
    /// Word `i`; what follows in program order is read after it.
    fn acquire(&self, i: usize) -> T;
    /// Sets word `i` after everything that precedes in program order.
    fn release(&self, i: usize, value: T);
    /// Words `2 i` and `2 i + 1`, unordered; `None`: they are not both in the window.
    fn pair(&self, i: usize) -> Option<(T, T)>;
    /// The same; what follows in program order, and word `2 i`, is read after word `2 i + 1`.
    fn acquire_pair(&self, i: usize) -> Option<(T, T)>;
    /// Words `from` to `from + n`, unordered.
    fn run(&self, from: usize, n: usize) -> impl Iterator<Item = T>;
    /// Pairs `from` to `from + n`; each as [`Words::acquire_pair`].
    fn acquire_pairs(&self, from: usize, n: usize) -> impl Iterator<Item = (T, T)>;
    /// Sets words `2 i + 1` for `i` from `from` on, the last one first.
    fn set_seconds(&self, from: usize, words: impl ExactSizeIterator<Item = T> + DoubleEndedIterator);
    /// Copies whole words to word `from` on, unordered.
    fn copy_in(&self, from: usize, bytes: &[u8]);
    /// Asks the cache for the lines of `n` words from `from` on, to be written soon.
    fn expect_writes(&self, from: usize, n: usize) {
        let _ = (from, n);
    }
    /// Lets `monitor` tell when the upper 16 bits of word `i` are no longer those of `value`.
    fn monitor(&self, i: usize, value: T, monitor: &mut Monitor);
}

impl Table {
    /// A view of `n` words at `gpa`, translated once: rings, at set-up.
    ///
    /// # Errors
    /// [`OutOfRange`] when the words are not all in one region, or not aligned to their size.
    pub fn window<T: Word>(self: &Arc<Self>, gpa: u64, n: usize) -> Result<Window<T>, OutOfRange> {
        let len = (n as u64).checked_mul(size_of::<T>() as u64).ok_or(OutOfRange { gpa, len: u64::MAX })?;
        let va = self.translate(gpa, len)?;
        if !(va.as_ptr() as usize).is_multiple_of(align_of::<T>()) {
            return Err(OutOfRange { gpa, len });
        }
        // SAFETY: translate() checked that n words lie in one region, which the Arc keeps mapped.
        Ok(unsafe { Window::new(va.cast(), n, Arc::clone(self)) })
    }

    /// The same view, translated and checked at every access: for words that lie in several regions.
    ///
    /// # Errors
    /// [`OutOfRange`] when some word is outside guest memory or not aligned to its size.
    pub fn checked_window<T: Word>(
        self: &Arc<Self>,
        gpa: u64,
        n: usize,
    ) -> Result<CheckedWindow<T>, OutOfRange> {
        CheckedWindow::new(Arc::clone(self), gpa, n)
    }
}

/// `n` words of guest memory, translated once. Keeps the table (so the mapping) alive; stale, but
/// harmless, when the guest's memory table has been replaced since.
#[derive(Debug)]
pub struct Window<T> {
    at: NonNull<T>,
    n: usize,
    table: Arc<Table>,
}

// SAFETY: all access is atomic and the table keeps the memory mapped.
unsafe impl<T: Word> Send for Window<T> {}
// SAFETY: as above.
unsafe impl<T: Word> Sync for Window<T> {}

impl<T: Word> Window<T> {
    /// # Safety
    /// `n` aligned words at `at` stay mapped as long as `table` lives.
    pub(crate) unsafe fn new(at: NonNull<T>, n: usize, table: Arc<Table>) -> Self {
        Window { at, n, table }
    }

    /// Words in it.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Asks the cache for the line of word `i`.
    #[inline(always)]
    pub fn prefetch(&self, i: usize) {
        crate::copy::prefetch(self.at.as_ptr().wrapping_add(i).cast());
    }

    #[inline(always)]
    fn word(&self, i: usize) -> *mut T {
        if i >= self.n {
            outside(i, self.n);
        }
        // SAFETY: i < n.
        unsafe { self.at.as_ptr().add(i) }
    }

    /// The first of `n` words.
    #[inline(always)]
    fn words(&self, from: usize, n: usize) -> *mut T {
        if from > self.n || n > self.n - from {
            outside(from.saturating_add(n), self.n);
        }
        // SAFETY: from <= n.
        unsafe { self.at.as_ptr().add(from) }
    }

    /// The first of the two words of pair `i`.
    #[inline(always)]
    fn pair_at(&self, i: usize) -> Option<*mut T> {
        if i >= self.n >> 1 {
            return None;
        }
        // SAFETY: 2 i + 1 < n.
        Some(unsafe { self.at.as_ptr().add(2 * i) })
    }
}

impl<T: Word> Words<T> for Window<T> {
    #[inline(always)]
    fn get(&self, i: usize) -> T {
        // SAFETY: word() checked the index; new() promised the rest.
        unsafe { T::load(self.word(i), Ordering::Relaxed) }
    }
    #[inline(always)]
    fn set(&self, i: usize, value: T) {
        // SAFETY: as in get().
        unsafe { T::store(self.word(i), value, Ordering::Relaxed) }
    }
    #[inline(always)]
    fn acquire(&self, i: usize) -> T {
        // SAFETY: as in get().
        unsafe { T::load(self.word(i), Ordering::Acquire) }
    }
    #[inline(always)]
    fn release(&self, i: usize, value: T) {
        // SAFETY: as in get().
        unsafe { T::store(self.word(i), value, Ordering::Release) }
    }
    #[inline(always)]
    fn pair(&self, i: usize) -> Option<(T, T)> {
        let at = self.pair_at(i)?;
        // SAFETY: pair_at() checked both words; new() promised the rest.
        Some(unsafe { (T::load(at, Ordering::Relaxed), T::load(at.add(1), Ordering::Relaxed)) })
    }
    #[inline(always)]
    fn acquire_pair(&self, i: usize) -> Option<(T, T)> {
        let at = self.pair_at(i)?;
        // SAFETY: as in pair().
        unsafe {
            let high = T::load(at.add(1), Ordering::Acquire);
            Some((T::load(at, Ordering::Relaxed), high))
        }
    }
    #[inline(always)]
    fn run(&self, from: usize, n: usize) -> impl Iterator<Item = T> {
        let first = self.words(from, n);
        // SAFETY: words() checked the range; new() promised the rest.
        (0..n).map(move |i| unsafe { T::load(first.add(i), Ordering::Relaxed) })
    }
    #[inline(always)]
    fn acquire_pairs(&self, from: usize, n: usize) -> impl Iterator<Item = (T, T)> {
        let first = self.words(2 * from, 2 * n);
        (0..n).map(move |i| {
            // SAFETY: as in run().
            unsafe {
                let high = T::load(first.add(2 * i + 1), Ordering::Acquire);
                (T::load(first.add(2 * i), Ordering::Relaxed), high)
            }
        })
    }
    #[inline(always)]
    fn set_seconds(&self, from: usize, words: impl ExactSizeIterator<Item = T> + DoubleEndedIterator) {
        let n = words.len();
        let first = self.words(2 * from, 2 * n);
        for (i, word) in (0..n).zip(words).rev() {
            // SAFETY: as in run().
            unsafe { T::store(first.add(2 * i + 1), word, Ordering::Relaxed) };
        }
    }
    #[inline(always)]
    fn copy_in(&self, from: usize, bytes: &[u8]) {
        let n = bytes.len() / size_of::<T>();
        let first = self.words(from, n);
        // SAFETY: as in run(): n words, no more than there are bytes.
        unsafe { crate::copy::bytes(bytes.as_ptr(), first.cast(), n * size_of::<T>()) };
    }
    #[inline(always)]
    fn expect_writes(&self, from: usize, n: usize) {
        for i in (from..from + n).step_by(64 / size_of::<T>()) {
            crate::copy::prefetch_write(self.at.as_ptr().wrapping_add(i).cast());
        }
    }
    #[inline]
    fn monitor(&self, i: usize, value: T, monitor: &mut Monitor) {
        let at = NonNull::new(self.word(i)).expect("a word of a mapping");
        // SAFETY: word() checked the index; new() promised the rest.
        unsafe { monitor.set(at, value, &self.table) }
    }
}

/// `n` words of guest memory, translated at every access by `vm-memory`: slower, but the words may
/// lie in several regions.
pub struct CheckedWindow<T> {
    memory: GuestMemoryMmap,
    gpa: u64,
    n: usize,
    table: Arc<Table>,
    _word: PhantomData<T>,
}

impl<T: Word> CheckedWindow<T> {
    pub(crate) fn new(table: Arc<Table>, gpa: u64, n: usize) -> Result<Self, OutOfRange> {
        let len = (n as u64).saturating_mul(size_of::<T>() as u64);
        let range = OutOfRange { gpa, len };
        let end = gpa.checked_add(len).ok_or(range)?;
        if !gpa.is_multiple_of(size_of::<T>() as u64) {
            return Err(range);
        }
        let mut at = gpa;
        while at < end {
            match table.contiguous(at) {
                0 => return Err(range),
                run if run < end - at && !run.is_multiple_of(size_of::<T>() as u64) => return Err(range),
                run => at += run.min(end - at),
            }
        }
        Ok(CheckedWindow { memory: view(&table), gpa, n, table, _word: PhantomData })
    }

    fn address(&self, i: usize) -> GuestAddress {
        if i >= self.n {
            outside(i, self.n);
        }
        GuestAddress(self.gpa + (i * size_of::<T>()) as u64)
    }

    fn load(&self, i: usize, order: Ordering) -> T {
        self.memory.load(self.address(i), order).expect("new() checked that every word is guest memory")
    }

    fn store(&self, i: usize, value: T, order: Ordering) {
        self.memory
            .store(value, self.address(i), order)
            .expect("new() checked that every word is guest memory");
    }
}

impl<T: Word> Words<T> for CheckedWindow<T> {
    fn get(&self, i: usize) -> T {
        self.load(i, Ordering::Relaxed)
    }
    fn set(&self, i: usize, value: T) {
        self.store(i, value, Ordering::Relaxed);
    }
    fn acquire(&self, i: usize) -> T {
        self.load(i, Ordering::Acquire)
    }
    fn release(&self, i: usize, value: T) {
        self.store(i, value, Ordering::Release);
    }
    fn pair(&self, i: usize) -> Option<(T, T)> {
        (i < self.n / 2).then(|| (self.get(2 * i), self.get(2 * i + 1)))
    }
    fn acquire_pair(&self, i: usize) -> Option<(T, T)> {
        if i >= self.n / 2 {
            return None;
        }
        let high = self.acquire(2 * i + 1);
        Some((self.get(2 * i), high))
    }
    fn run(&self, from: usize, n: usize) -> impl Iterator<Item = T> {
        (from..from + n).map(|i| self.get(i))
    }
    fn acquire_pairs(&self, from: usize, n: usize) -> impl Iterator<Item = (T, T)> {
        (from..from + n).map(|i| {
            let high = self.acquire(2 * i + 1);
            (self.get(2 * i), high)
        })
    }
    fn set_seconds(&self, from: usize, words: impl ExactSizeIterator<Item = T> + DoubleEndedIterator) {
        for (i, word) in words.enumerate().rev() {
            self.set(2 * (from + i) + 1, word);
        }
    }
    fn copy_in(&self, from: usize, bytes: &[u8]) {
        for (i, word) in bytes.chunks_exact(size_of::<T>()).enumerate() {
            self.set(from + i, T::read_from_bytes(word).expect("of its size"));
        }
    }
    fn monitor(&self, i: usize, value: T, monitor: &mut Monitor) {
        let at = self.table.translate(self.address(i).0, size_of::<T>() as u64);
        let at = at.expect("new() checked that every word is guest memory").cast();
        // SAFETY: translate() checked that the word lies in one region, which the table keeps mapped;
        // regions begin on pages, and new() checked that words are aligned in them.
        unsafe { monitor.set(at, value, &self.table) }
    }
}

/// Takes its numbers by value, so that the caller need not keep them in memory.
#[cold]
#[inline(never)]
fn outside(i: usize, n: usize) -> ! {
    panic!("word {i} of a window of {n}");
}

/// The table as `vm-memory` sees it, over our mappings, which it does not own.
fn view(table: &Table) -> GuestMemoryMmap {
    let regions = table.regions().iter().map(|r| {
        // SAFETY: the region lies inside a live mapping, which the caller keeps alive by the table.
        let raw = unsafe {
            MmapRegion::build_raw(
                r.va().as_ptr(),
                r.len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
            )
        };
        let raw = raw.expect("a mapping is page-aligned");
        GuestRegionMmap::new(raw, GuestAddress(r.gpa)).expect("the table checked that no region wraps")
    });
    GuestMemoryMmap::from_regions(regions.collect()).expect("the table checked order and overlap")
}
