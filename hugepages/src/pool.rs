//! A lender over our own pages: NIC receive buffers, generated frames, copies.

use std::num::NonZeroU16;

use crate::batch::Batch;
use crate::buf::{Buf, Lender, Loan};
use crate::map::{Backing, Map, MapError};
use crate::table::Table;

/// Most frames a pool holds: their numbers are 16 bits wide.
pub const MAX_FRAMES: usize = 1 << 16;

/// Where in its line a frame for packets begins: where a packet does behind a net header in a guest's buffer, so
/// that the loads and the stores of a copy from one to the other are both aligned: 1 % of a copy of 1,514 bytes, 4 %
/// of 4,096, 8 % of 9,014 (`cargo bench -p benches --bench copy`).
const LEAD: u32 = 12;

/// Frames of one size in one mapping of our own. The frame that came home last is lent first, while
/// it is warm in the cache.
#[derive(Debug)]
pub struct Pool {
    lender: Lender,
    frame: u32,
    /// Where the first one begins.
    first: u32,
    free: Vec<u16>,
}

impl Pool {
    /// `frames` frames of `frame` bytes each (rounded up to whole cache lines), at most
    /// [`MAX_FRAMES`], in pages of `backing`; falls back to ordinary pages and then says why.
    ///
    /// # Errors
    /// When no memory can be had at all.
    pub fn new(frames: usize, frame: u32, backing: Backing) -> Result<(Pool, Option<MapError>), MapError> {
        Pool::from_byte(0, frames, frame, backing)
    }

    /// The same, of frames that packets are made in to be copied to guests: none begins where a line does.
    ///
    /// # Errors
    /// As for [`Pool::new`].
    pub fn for_packets(
        frames: usize,
        frame: u32,
        backing: Backing,
    ) -> Result<(Pool, Option<MapError>), MapError> {
        Pool::from_byte(LEAD, frames, frame, backing)
    }

    fn from_byte(
        first: u32,
        frames: usize,
        frame: u32,
        backing: Backing,
    ) -> Result<(Pool, Option<MapError>), MapError> {
        let frames = frames.clamp(1, MAX_FRAMES);
        let frame = frame.max(64).next_multiple_of(64);
        let (map, fallback) = Map::shared_or_base(frames * frame as usize + first as usize, backing)?;
        let lender = Lender::new(Table::of(map));
        // Lowest number on top of the stack.
        let free = (0..frames).rev().map(|i| i as u16).collect();
        Ok((Pool { lender, frame, first, free }, fallback))
    }

    /// Bytes in a frame.
    pub fn frame(&self) -> u32 {
        self.frame
    }

    /// Frames at home.
    #[inline(always)]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Frames out.
    #[inline(always)]
    pub fn out(&self) -> u32 {
        self.lender.out()
    }

    /// The number its frames carry.
    #[inline(always)]
    pub fn owner(&self) -> NonZeroU16 {
        self.lender.owner()
    }

    /// The memory behind it, to be mapped for a device.
    pub fn table(&self) -> &std::sync::Arc<Table> {
        self.lender.table()
    }

    /// Lends a whole frame, writable; `None` when all are out.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Buf> {
        let id = self.free.pop()?;
        let gpa = u64::from(id) * u64::from(self.frame) + u64::from(self.first);
        Some(self.lender.lend_writable(gpa, self.frame, id).expect("every frame lies in the mapping"))
    }

    /// Lends up to `n` frames, writable and cut to `len` bytes, to the back of `out`, as many as are free
    /// and fit; how many.
    #[inline]
    pub fn take_run(&mut self, n: usize, len: u32, out: &mut Batch<Buf>) -> usize {
        let Pool { lender, frame, first, free } = self;
        let len = len.min(*frame);
        let mut ids = free.iter().rev();
        let n = lender.lend_run::<true>(out, n.min(ids.len()), || {
            let id = *ids.next()?;
            Some((u64::from(id) * u64::from(*frame) + u64::from(*first), len, id))
        });
        free.truncate(free.len() - n);
        n
    }

    /// Takes its own receipts from the front of `loans`, up to the first that is another's.
    #[inline]
    pub fn settle_front(&mut self, loans: &mut Batch<Loan>) {
        let Pool { lender, free, .. } = self;
        lender.settle_front(loans, |id, _| free.push(id));
    }

    /// Takes the receipt of a frame of its own.
    ///
    /// # Panics
    /// When the receipt is another lender's.
    #[inline(always)]
    pub fn settle(&mut self, loan: Loan) {
        let (id, _) = self.lender.settle(loan);
        self.free.push(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::PageSize;

    #[test]
    fn every_frame_once_and_again_after_settling() {
        let (mut pool, _) = Pool::new(5, 100, Backing { page: PageSize::Base, node: None }).unwrap();
        assert_eq!(pool.frame(), 128);
        for _ in 0..3 {
            let mut bufs: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
            assert_eq!((bufs.len(), pool.free(), pool.out()), (5, 0, 5));
            let mut at: Vec<u64> = bufs.iter().map(Buf::iova).collect();
            at.sort_unstable();
            assert!(at.windows(2).all(|w| w[1] - w[0] == 128));
            for (i, buf) in bufs.iter_mut().enumerate() {
                assert!(buf.poke(120, i as u64));
            }
            for (i, buf) in bufs.into_iter().enumerate() {
                assert_eq!(buf.peek::<u64>(120), Some(i as u64));
                pool.settle(buf.finish(0));
            }
        }
    }

    #[test]
    fn frames_for_packets_begin_in_a_line_where_packets_do_in_a_guests_buffer() {
        let (mut pool, _) = Pool::for_packets(2, 64, Backing { page: PageSize::Base, node: None }).unwrap();
        let mut run = Batch::default();
        assert_eq!(pool.take_run(1, 64, &mut run), 1);
        let bufs = [run.pop_front().unwrap(), pool.take().unwrap()];
        assert_eq!(bufs.each_ref().map(|buf| (buf.iova() % 64, buf.len())), [(12, 64), (12, 64)]);
        assert_eq!(bufs[1].iova() - bufs[0].iova(), 64);
        for buf in bufs {
            pool.settle(buf.finish(0));
        }
    }

    #[test]
    fn a_run_takes_what_is_free_and_comes_home_together() {
        let (mut pool, _) = Pool::new(5, 64, Backing { page: PageSize::Base, node: None }).unwrap();
        let (mut bufs, mut loans) = (Batch::default(), Batch::default());
        for _ in 0..3 {
            assert_eq!((pool.take_run(3, 40, &mut bufs), pool.take_run(9, 100, &mut bufs)), (3, 2));
            assert!(bufs.iter().map(Buf::len).eq([40, 40, 40, 64, 64]));
            let mut ids: Vec<u16> = bufs.iter().map(Buf::id).collect();
            ids.sort_unstable();
            assert_eq!((ids, pool.free(), pool.out()), (vec![0, 1, 2, 3, 4], 0, 5));
            bufs.finish_front(5, &mut loans);
            pool.settle_front(&mut loans);
            assert_eq!((pool.free(), pool.out(), loans.len()), (5, 0, 0));
        }
    }
}
