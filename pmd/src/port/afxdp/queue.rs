//! The data side: one socket, and the frames that are the kernel's for the time being.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hugepages::{Buf, Loan, Pool};

use super::FRAME;
use crate::batch::Batch;
use crate::offload::Patch;
use crate::offload::segment::Segment;
use crate::port::frames::Work;
use crate::port::{Counters, Queue, drop_packet, frames};
use crate::sys::xsk::{CONTINUES, Desc, ENTRIES, Xsk};

/// Most descriptors of a frame: the kernel's `MAX_SKB_FRAGS` and the first.
const MOST: usize = 18;
/// Looks in a row that found nothing, after which the kernel is made to poll only now and then.
const POLL_AGAIN: u32 = 16;

/// One queue of an interface.
pub(super) struct XskQueue {
    xsk: Xsk,
    pool: Pool,
    /// Address of the pool's first byte.
    base: u64,
    /// Frames that the kernel has, by number: to receive into, or to send.
    kernel: Vec<Option<Buf>>,
    inside: u32,
    /// Descriptors that were given to be sent and have not come back.
    sending: u32,
    /// Receipts of what was copied.
    done: Batch<Loan>,
    several: bool,
    busy: bool,
    empty: u32,
    /// The interface is gone; said by whoever notices, read by the control side.
    gone: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

impl XskQueue {
    pub(super) fn new(xsk: Xsk, pool: Pool, several: bool, busy: bool, gone: Arc<AtomicBool>) -> XskQueue {
        let base = pool.table().regions().first().map_or(0, |r| r.map.address() + r.at as u64);
        let kernel = (0..pool.free()).map(|_| None).collect();
        let mut queue = XskQueue {
            xsk,
            pool,
            base,
            kernel,
            inside: 0,
            sending: 0,
            done: Batch::default(),
            several,
            busy,
            empty: 0,
            gone,
            counters: Arc::default(),
        };
        queue.fill();
        queue
    }

    /// Gives the kernel a frame; its offset in the UMEM.
    fn give(&mut self, buf: Buf) -> u64 {
        let (id, at) = (usize::from(buf.id()), buf.iova() - self.base);
        debug_assert!(self.kernel[id].is_none(), "a frame is on loan once");
        self.kernel[id] = Some(buf);
        self.inside += 1;
        at
    }

    /// Has a frame back from the kernel, by any address in it.
    fn take(&mut self, at: u64) -> Option<Buf> {
        let buf = self.kernel.get_mut((at / u64::from(FRAME)) as usize)?.take()?;
        self.inside -= 1;
        Some(buf)
    }

    /// Frames to receive into, as far as half of the pool is left for others.
    fn fill(&mut self) {
        let spare = self.pool.free().saturating_sub(self.kernel.len() / 2) as u32;
        let n = self.xsk.fill.free().min(spare);
        if n == 0 {
            return;
        }
        for _ in 0..n {
            let frame = self.pool.take().expect("counted");
            let at = self.give(frame);
            self.xsk.fill.put(at);
        }
        self.xsk.fill.submit();
    }

    /// Has back what was sent.
    fn complete(&mut self) {
        let n = self.xsk.completion.available();
        for i in 0..n {
            let at = self.xsk.completion.look(i);
            if let Some(buf) = self.take(at) {
                self.pool.settle(buf.finish(0));
            }
        }
        if n > 0 {
            self.xsk.completion.take(n);
            self.sending = self.sending.saturating_sub(n);
        }
    }

    /// Has the kernel send what is in the ring. It takes some at a time where it copies.
    fn kick(&mut self) {
        if self.sending == 0 || !self.xsk.tx.needs_wakeup() {
            return;
        }
        let refused = self.xsk.kick().err().and_then(|e| e.raw_os_error());
        // Busy, out of memory for now, or down: it is asked again.
        if matches!(refused, Some(libc::ENXIO | libc::ENODEV)) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    /// Sends the first packet, `n` buffers.
    fn packet(&mut self, batch: &mut Batch<Buf>, n: usize, bytes: u32) -> Sent {
        let first = batch.front().expect("a packet has a buffer");
        let asked = first.offload;
        if n == 1 && first.owner() == self.pool.owner() && asked.is_none() {
            if self.xsk.tx.free() == 0 {
                return Sent::Later;
            }
            let buf = batch.pop_front().expect("looked at");
            let len = buf.len();
            let addr = self.give(buf);
            self.xsk.tx.put(Desc { addr, len, options: 0 });
            self.sending += 1;
            return Sent::Whole;
        }
        let bufs = &batch.as_slice()[..n];
        match Work::on(bufs) {
            Work::Never => Sent::Never,
            Work::Frame(patch) => match self.room(1, bytes) {
                Sent::Whole => {
                    self.copy(&[], bufs, Segment { from: 0, len: bytes }, patch);
                    Sent::Copied
                }
                other => other,
            },
            Work::Frames(mut segments) => {
                let longest = segments.headers().len() as u32 + u32::from(asked.gso_size);
                match self.room(segments.left() as usize, longest) {
                    Sent::Whole => {}
                    other => return other,
                }
                while let Some(part) = segments.advance(bufs.iter()) {
                    self.copy(segments.headers(), bufs, part, None);
                }
                Sent::Copied
            }
        }
    }

    /// Whether there is room for `n` frames of `len` bytes: `Whole`, if there is.
    fn room(&mut self, n: usize, len: u32) -> Sent {
        let each = len.div_ceil(FRAME) as usize;
        if len == 0 || each > if self.several { MOST } else { 1 } || n * each > ENTRIES as usize / 2 {
            return Sent::Never;
        }
        let full = (self.xsk.tx.free() as usize) < n * each || self.pool.free() < n * each;
        if full { Sent::Later } else { Sent::Whole }
    }

    /// Copies `headers` and a part of a packet into frames, and puts them into the ring.
    fn copy(&mut self, headers: &[u8], bufs: &[Buf], part: Segment, patch: Option<Patch>) {
        let XskQueue { pool, kernel, xsk, base, inside, sending, .. } = self;
        frames::copy(pool, headers, bufs, part, patch, |frame, more| {
            let (id, addr, len) = (usize::from(frame.id()), frame.iova() - *base, frame.len());
            kernel[id] = Some(frame);
            (*inside, *sending) = (*inside + 1, *sending + 1);
            xsk.tx.put(Desc { addr, len, options: if more { CONTINUES } else { 0 } });
        });
    }

    /// Descriptors of the next received packet and its bytes; `None`: it is not whole yet, or there is none.
    fn next_packet(&mut self, available: u32) -> Option<(u32, u32)> {
        let mut bytes = 0u32;
        for i in 0..available {
            let desc = self.xsk.rx.look(i);
            bytes = bytes.saturating_add(desc.len);
            if desc.options & CONTINUES == 0 {
                return Some((i + 1, bytes));
            }
        }
        None
    }
}

/// What became of a packet.
enum Sent {
    /// Its buffer is the kernel's now.
    Whole,
    /// Its buffers are done with.
    Copied,
    Later,
    Never,
}

impl Queue for XskQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let (mut packets, mut sum) = (0, 0u64);
        while packets < out.burst() {
            let available = self.xsk.rx.available();
            let Some((n, bytes)) = self.next_packet(available) else { break };
            if n as usize > out.room() {
                break;
            }
            for i in 0..n {
                let desc = self.xsk.rx.look(i);
                let Some(mut buf) = self.take(desc.addr) else {
                    debug_assert!(false, "the kernel gives back what it was given");
                    continue;
                };
                buf.advance((desc.addr - (buf.iova() - self.base)) as u32);
                buf.truncate(desc.len);
                buf.set_more(i + 1 < n);
                out.push(buf);
            }
            self.xsk.rx.take(n);
            packets += 1;
            sum += u64::from(bytes);
        }
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(sum);
            self.empty = 0;
        } else {
            self.empty = self.empty.wrapping_add(1);
        }
        self.fill();
        // With busy polling the kernel looks at the NIC only when it is told to.
        let due = self.empty <= POLL_AGAIN || self.empty.is_multiple_of(POLL_AGAIN);
        if self.busy && due || self.xsk.fill.needs_wakeup() && self.xsk.fill.pending() > 0 && due {
            self.xsk.poll();
        }
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        self.complete();
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            let fate =
                if self.gone.load(Ordering::Relaxed) { Sent::Never } else { self.packet(batch, n, bytes) };
            match fate {
                Sent::Later => break,
                Sent::Never => {
                    self.counters.tx_errors.add(1);
                    drop_packet(batch, &mut self.done);
                }
                Sent::Whole | Sent::Copied => {
                    sent += 1;
                    sum += u64::from(bytes);
                    if let Sent::Copied = fate {
                        drop_packet(batch, &mut self.done);
                    }
                }
            }
            taken += 1;
        }
        if sent > 0 {
            self.xsk.tx.submit();
            self.kick();
            self.counters.tx_packets.add(sent);
            self.counters.tx_bytes.add(sum);
        }
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.sending > 0 {
            self.complete();
            if self.xsk.tx.pending() > 0 {
                self.kick();
            }
        }
        self.done.move_to(done)
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.pool.settle_front(loans);
    }

    fn lent(&self) -> u32 {
        self.pool.out() - self.inside
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        self.complete();
        if self.xsk.rx.available() > 0 || self.sending > 0 {
            return false;
        }
        self.empty = 0;
        if !self.gone.load(Ordering::Relaxed) {
            wait(self.xsk.as_fd());
        }
        true
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

impl Drop for XskQueue {
    fn drop(&mut self) {
        // The kernel keeps the pages of its memory for as long as it may write to them.
        for buf in self.kernel.drain(..).flatten() {
            self.pool.settle(buf.finish(0));
        }
    }
}
