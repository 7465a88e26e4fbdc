//! A lender over our own pages: NIC receive buffers, generated frames, copies.

use std::num::NonZeroU16;

use crate::buf::{Buf, Lender, Loan};
use crate::map::{Backing, Map, MapError};
use crate::table::Table;

/// Most frames a pool holds: their numbers are 16 bits wide.
pub const MAX_FRAMES: usize = 1 << 16;

/// Frames of one size in one mapping of our own. The frame that came home last is lent first, while
/// it is warm in the cache.
#[derive(Debug)]
pub struct Pool {
    lender: Lender,
    frame: u32,
    free: Vec<u16>,
}

impl Pool {
    /// `frames` frames of `frame` bytes each (rounded up to whole cache lines), at most
    /// [`MAX_FRAMES`], in pages of `backing`; falls back to ordinary pages and then says why.
    ///
    /// # Errors
    /// When no memory can be had at all.
    pub fn new(frames: usize, frame: u32, backing: Backing) -> Result<(Pool, Option<MapError>), MapError> {
        let frames = frames.clamp(1, MAX_FRAMES);
        let frame = frame.max(64).next_multiple_of(64);
        let (map, fallback) = Map::shared_or_base(frames * frame as usize, backing)?;
        let lender = Lender::new(Table::of(map));
        // Lowest number on top of the stack.
        let free = (0..frames).rev().map(|i| i as u16).collect();
        Ok((Pool { lender, frame, free }, fallback))
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
        let gpa = u64::from(id) * u64::from(self.frame);
        Some(self.lender.lend_writable(gpa, self.frame, id).expect("every frame lies in the mapping"))
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
}
