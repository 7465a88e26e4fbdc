//! The frames of one queue. A frame is free, in a ring, or on loan; its number is also the id of its
//! loan.

use std::num::NonZeroU16;
use std::sync::Arc;

use hugepages::{Buf, Lender, Loan};

use super::memory::Memory;
use crate::batch::Batch;

/// Frames that receiving leaves for sending.
const RESERVE: usize = 64;
/// The end of a list of frames.
const NONE: u32 = u32::MAX;

pub(super) struct Frames {
    lender: Lender,
    /// Address of the mapping, and of the first frame in it.
    origin: u64,
    at: u64,
    frame: u32,
    reserve: usize,
    /// The frame that came back last goes out first, while it is in the cache.
    free: Vec<u16>,
    /// The next frame of the packet that is in the transmit ring, for each frame.
    link: Box<[u32]>,
    /// The frame (receive ring) or first frame (transmit ring) under each id.
    received: Box<[u32]>,
    sent: Box<[u32]>,
}

impl Frames {
    pub(super) fn new(memory: &Memory, queue: u16) -> Frames {
        let (n, frame, size) = (memory.frames(), memory.frame(), usize::from(memory.size()));
        Frames {
            lender: Lender::new(Arc::clone(memory.table())),
            origin: memory.region().map.address(),
            at: memory.frames_at(queue),
            frame,
            reserve: RESERVE.min(size),
            free: (0..n).rev().map(|i| i as u16).collect(),
            link: vec![NONE; n].into(),
            received: vec![NONE; size].into(),
            sent: vec![NONE; size].into(),
        }
    }

    /// Bytes of a frame.
    #[inline(always)]
    pub(super) fn frame(&self) -> u32 {
        self.frame
    }

    #[inline(always)]
    pub(super) fn owner(&self) -> NonZeroU16 {
        self.lender.owner()
    }

    /// Frames on loan.
    #[inline(always)]
    pub(super) fn out(&self) -> u32 {
        self.lender.out()
    }

    /// Free frames.
    #[inline(always)]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Whether so few are free that none are received into.
    #[inline(always)]
    pub(super) fn low(&self) -> bool {
        self.free.len() <= self.reserve
    }

    /// Address of a frame.
    #[inline(always)]
    pub(super) fn address(&self, frame: u16) -> u64 {
        self.at + u64::from(frame) * u64::from(self.frame)
    }

    /// A free frame, to send with.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// A free frame, to receive into, if enough are left to send with.
    #[inline(always)]
    pub(super) fn take_empty(&mut self) -> Option<u16> {
        if self.low() { None } else { self.free.pop() }
    }

    /// Lends bytes of a frame, writable.
    #[inline(always)]
    pub(super) fn lend(&self, frame: u16, len: u32) -> Buf {
        let len = len.min(self.frame);
        self.lender.lend_writable(self.address(frame), len, frame).expect("every frame lies in the mapping")
    }

    /// Where in the mapping a buffer of its own begins, if there are `room` bytes of its frame before
    /// it: bytes that were on loan with it, and that its holder has cut off.
    #[inline(always)]
    pub(super) fn headroom(&self, buf: &Buf, room: u32) -> Option<u64> {
        let at = buf.iova() - self.origin;
        (at - self.address(buf.id()) >= u64::from(room)).then_some(at)
    }

    /// Lends `len` bytes of `frame` at `at`, writable.
    #[inline(always)]
    pub(super) fn lend_at(&self, at: u64, len: u32, frame: u16) -> Buf {
        self.lender.lend_writable(at, len, frame).expect("every frame lies in the mapping")
    }

    /// Takes a buffer of its own that was only lent to be filled here.
    #[inline(always)]
    pub(super) fn filled(&self, buf: Buf) {
        self.lender.settle(buf.finish(0));
    }

    /// Takes the first `n` buffers of `bufs`, its own, off loan; their frames are not free.
    #[inline(always)]
    pub(super) fn take_back(&self, bufs: &mut Batch<Buf>, n: usize) {
        self.lender.take_back(bufs, n);
    }

    /// Takes a buffer of its own back to free.
    #[inline(always)]
    pub(super) fn drop(&mut self, buf: Buf) {
        let (frame, _) = self.lender.settle(buf.finish(0));
        self.free.push(frame);
    }

    /// Takes receipts of its own from the front of `loans`, and stops at the first of another lender.
    #[inline(always)]
    pub(super) fn settle(&mut self, loans: &mut Batch<Loan>) {
        let owner = self.owner();
        while loans.front().is_some_and(|loan| loan.owner() == owner) {
            let (frame, _) = self.lender.settle(loans.pop_front().expect("looked at"));
            self.free.push(frame);
        }
    }

    /// A frame is in the receive ring under `id`.
    #[inline(always)]
    pub(super) fn receive(&mut self, id: u16, frame: u16) {
        self.received[usize::from(id)] = u32::from(frame);
    }

    /// The frame that was in the receive ring under `id`.
    #[inline(always)]
    pub(super) fn received(&mut self, id: u16) -> u16 {
        std::mem::replace(&mut self.received[usize::from(id)], NONE) as u16
    }

    /// One more frame is in the transmit ring under `id`.
    #[inline(always)]
    pub(super) fn send(&mut self, id: u16, frame: u16) {
        let first = &mut self.sent[usize::from(id)];
        self.link[usize::from(frame)] = *first;
        *first = u32::from(frame);
    }

    /// The frames that were in the transmit ring under `id` are free.
    #[inline(always)]
    pub(super) fn sent(&mut self, id: u16) {
        let mut frame = std::mem::replace(&mut self.sent[usize::from(id)], NONE);
        while frame != NONE {
            self.free.push(frame as u16);
            frame = self.link[frame as usize];
        }
    }

    /// All frames that are in rings are free: nobody has the rings any more.
    pub(super) fn reclaim(&mut self) {
        for id in 0..self.sent.len() as u16 {
            self.sent(id);
            if self.received[usize::from(id)] != NONE {
                let frame = self.received(id);
                self.free.push(frame);
            }
        }
        debug_assert_eq!(self.free.len() + self.out() as usize, self.link.len());
    }
}
