//! The dirty log of a live migration: one bit for each page of guest memory, shared with the front-end,
//! which takes bits away and copies their pages while we set others.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::map::{Damage, Map, MapError};

/// Bytes of memory for which a bit stands.
pub const LOG_PAGE: u64 = 4096;

/// Words that are kept back before the log is touched.
const KEPT: usize = 16;

/// The bitmap in the front-end's file. Bit `n` is bit `n % 8` of byte `n / 8`, and stands for the page of
/// [`LOG_PAGE`] bytes at guest address `n * LOG_PAGE`.
#[derive(Debug)]
pub struct DirtyLog {
    map: Map,
    at: usize,
    pages: u64,
}

impl DirtyLog {
    /// The bitmap in bytes `offset .. offset + len` of a file.
    ///
    /// # Errors
    /// As [`Map::file`]; also when it does not begin on a word.
    pub fn open(file: OwnedFd, offset: u64, len: u64) -> Result<DirtyLog, MapError> {
        if !offset.is_multiple_of(size_of::<u64>() as u64) {
            return Err(MapError::Extent { offset, len });
        }
        let (map, at) = Map::file(file, offset, len)?;
        // The mapping has `len` bytes, so that this does not wrap.
        Ok(DirtyLog { map, at, pages: len * 8 })
    }

    /// The first guest address that has no bit.
    pub fn end(&self) -> u64 {
        self.pages.saturating_mul(LOG_PAGE)
    }

    /// The file behind it, to be sent to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd()
    }

    /// What is wrong with its mapping, see [`Map::damage`].
    pub fn damage(&self) -> Option<Damage> {
        self.map.damage()
    }

    /// Sets `bits` of a word; whether one of them was not set.
    fn set(&self, word: u64, bits: u64) -> bool {
        debug_assert!(word * 64 < self.pages);
        // SAFETY: the word begins inside the area, at a multiple of 8 in a mapping of whole pages, so that all
        // of it is mapped; no bit beyond the area is changed. It is only accessed atomically.
        let word = unsafe {
            AtomicU64::from_ptr(self.map.base().as_ptr().add(self.at + word as usize * 8).cast::<u64>())
        };
        // Relaxed: see the fence in `Marks::flush`.
        word.load(Ordering::Relaxed) & bits != bits && word.fetch_or(bits, Ordering::SeqCst) & bits != bits
    }
}

/// One core's marks, kept back so that a page written again and again costs the shared log one access a
/// flush.
///
/// Mark what *was* written, and flush before the front-end may rely on it: the bit must not be set, taken
/// away and its page copied before the write.
#[derive(Debug)]
pub struct Marks {
    log: Arc<DirtyLog>,
    kept: [(u64, u64); KEPT],
    n: usize,
    fresh: bool,
}

impl Marks {
    /// Marks for this log.
    pub fn new(log: Arc<DirtyLog>) -> Marks {
        Marks { log, kept: [(0, 0); KEPT], n: 0, fresh: false }
    }

    /// The bytes at `gpa` were written. What lies beyond the log cannot be marked.
    pub fn mark(&mut self, gpa: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|more| gpa.saturating_add(more) / LOG_PAGE) else { return };
        let mut page = gpa / LOG_PAGE;
        let last = last.min(self.log.pages - 1);
        while page <= last {
            let (word, from) = (page / 64, page % 64);
            let to = (last - word * 64).min(63);
            self.keep(word, u64::MAX << from & u64::MAX >> (63 - to));
            page = (word + 1) * 64;
        }
    }

    fn keep(&mut self, word: u64, bits: u64) {
        if let Some(kept) = self.kept[..self.n].iter_mut().rev().find(|kept| kept.0 == word) {
            kept.1 |= bits;
            return;
        }
        if self.n == KEPT {
            self.write();
        }
        self.kept[self.n] = (word, bits);
        self.n += 1;
    }

    fn write(&mut self) {
        // Between the writes to memory and the look at the log: pairs with the front-end's atomic exchange
        // that takes bits away before it reads their pages. A bit seen set will be taken away after that
        // look, and its page is read with what was written before it.
        fence(Ordering::SeqCst);
        for &(word, bits) in &self.kept[..self.n] {
            self.fresh |= self.log.set(word, bits);
        }
        self.n = 0;
    }

    /// Brings all marks into the log; whether a bit was set since the last flush that was not set.
    pub fn flush(&mut self) -> bool {
        if self.n > 0 {
            self.write();
        }
        std::mem::take(&mut self.fresh)
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::map::{Backing, PageSize};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::sync::atomic::AtomicBool;

    fn memfd(len: u64) -> OwnedFd {
        let fd = memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    /// A log of `len` bytes at `offset`, and what reads the bytes of the file.
    fn log(offset: u64, len: u64) -> (Arc<DirtyLog>, impl Fn() -> Vec<u8>) {
        let file = memfd(offset + len + 64);
        let ours = file.try_clone().unwrap();
        let read = move || {
            let mut bytes = vec![0; (offset + len + 64) as usize];
            assert_eq!(rustix::io::pread(&ours, &mut bytes, 0).unwrap(), bytes.len());
            bytes
        };
        (Arc::new(DirtyLog::open(file, offset, len).unwrap()), read)
    }

    #[test]
    fn a_bit_a_page_and_none_beyond_the_log() {
        for (offset, len) in [(0, 8), (8, 13), (4096, 1), (4088, 16)] {
            let (log, read) = log(offset, len);
            let pages = len * 8;
            assert_eq!(log.end(), pages * 4096);
            let mut marks = Marks::new(Arc::clone(&log));
            for (gpa, len) in [
                (0, 0),
                (4096, 1),
                (3 * 4096 - 1, 2),
                (4096 * (pages - 1) + 4095, u64::MAX),
                (4096 * pages, 5),
                (u64::MAX, 1),
                (u64::MAX, 0),
            ] {
                marks.mark(gpa, len);
            }
            assert!(read().iter().all(|byte| *byte == 0), "kept back");
            assert!(marks.flush() && !marks.flush());
            let mut want = vec![0u8; (offset + len + 64) as usize];
            for page in [1, 2, 3, pages - 1] {
                want[(offset + page / 8) as usize] |= 1 << (page % 8);
            }
            assert_eq!(read(), want, "{len} bytes at {offset}");
            marks.mark(4096, 10);
            assert!(!marks.flush(), "set already");
        }
    }

    #[test]
    fn long_ranges_and_more_words_than_are_kept() {
        let (log, read) = log(0, 4096);
        let mut marks = Marks::new(log);
        marks.mark(5 * 4096, 1000 * 4096);
        for word in 100..150u64 {
            marks.mark(word * 64 * 4096, 1);
        }
        marks.flush();
        let bytes = read();
        let set = |page: usize| bytes[page / 8] >> (page % 8) & 1 == 1;
        for page in 0..4096 * 8 {
            let want = (5..1005).contains(&page) || page % 64 == 0 && (100..150).contains(&(page / 64));
            assert_eq!(set(page), want, "page {page}");
        }
    }

    #[test]
    fn odd_logs_are_refused() {
        assert!(DirtyLog::open(memfd(4096), 4, 8).is_err());
        for (offset, len) in [(0, 0), (0, 4097), (4096, 8), (u64::MAX - 7, 8), (1 << 63, 8), (8, u64::MAX)] {
            assert!(DirtyLog::open(memfd(4096), offset, len).is_err(), "{len:#x} bytes at {offset:#x}");
        }
    }

    /// The front-end takes bits away while two cores write pages and mark them: whoever copies the pages
    /// whose bits it took has all that was written in the end.
    #[test]
    fn nothing_is_missed_while_bits_are_taken_away() {
        const PAGES: usize = 64;
        let base = Backing { page: PageSize::Base, node: None };
        let memory = crate::Table::of(Map::shared(PAGES * 4096, base).unwrap());
        let (log, _) = log(0, 8);
        let done = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = [0, 1]
            .map(|half| {
                let (memory, log) = (Arc::clone(&memory), Arc::clone(&log));
                std::thread::spawn(move || {
                    use crate::Words;
                    let words = memory.window::<u64>(0, PAGES * 512).unwrap();
                    let mut marks = Marks::new(log);
                    for i in 0..100_000usize {
                        let page = (i * 7 + i / 64) % (PAGES / 2) * 2 + half;
                        words.set(page * 512, i as u64 + 1);
                        marks.mark(page as u64 * 4096, 8);
                        if i % 5 == 0 {
                            marks.flush();
                        }
                    }
                    marks.flush();
                })
            })
            .into();
        let reader = {
            let (memory, log, done) = (Arc::clone(&memory), Arc::clone(&log), Arc::clone(&done));
            std::thread::spawn(move || {
                use crate::Words;
                let words = memory.window::<u64>(0, PAGES * 512).unwrap();
                // SAFETY: the first word of the log, which is only accessed atomically.
                let bits = unsafe { AtomicU64::from_ptr(log.map.base().as_ptr().add(log.at).cast()) };
                let mut copy = vec![0; PAGES];
                loop {
                    let last = done.load(Ordering::Acquire);
                    let taken = bits.swap(0, Ordering::SeqCst);
                    for (page, copy) in copy.iter_mut().enumerate().filter(|(page, _)| taken >> page & 1 == 1)
                    {
                        *copy = words.get(page * 512);
                    }
                    if last {
                        return copy;
                    }
                }
            })
        };
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
        let copy = reader.join().unwrap();
        use crate::Words;
        let words = memory.window::<u64>(0, PAGES * 512).unwrap();
        let want: Vec<u64> = (0..PAGES).map(|page| words.get(page * 512)).collect();
        assert_eq!(copy, want);
    }
}
