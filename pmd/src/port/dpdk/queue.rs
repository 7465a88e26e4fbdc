//! The data side: one queue of a device of DPDK's.

use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Pool};

use crate::batch::Batch;
use crate::offload;
use crate::offload::segment::{Segment, Segments};
use crate::port::{Counters, PortError, Queue, drop_packet, frames};
use crate::spec::net::HDR_F_NEEDS_CSUM;

/// Frames for packets that are copied.
const COPIES: usize = 512;
/// Buffers of others that the device may keep before packets are copied: a driver that gives them back only
/// when its ring is nearly full must not starve the ring they came from.
const KEEP: u32 = 128;
/// Bytes of one.
const FRAME: u32 = 2048;

pub(super) struct DpdkQueue {
    raw: dpdk_sys::Queue,
    /// For packets whose checksum or segmentation was left open.
    copies: Pool,
    several: bool,
    /// Receipts of what was copied.
    done: Batch<Loan>,
    counters: Arc<Counters>,
}

impl DpdkQueue {
    pub(super) fn new(
        port: &str,
        raw: dpdk_sys::Queue,
        several: bool,
        backing: Backing,
    ) -> Result<DpdkQueue, PortError> {
        let copies = frames::pool(port, COPIES, FRAME, backing)?;
        Ok(DpdkQueue { raw, copies, several, done: Batch::default(), counters: Arc::default() })
    }

    /// Sends the first packet, `n` buffers of `bytes` in all, from where it lies, or copied.
    fn packet(&mut self, batch: &mut Batch<Buf>, n: usize, bytes: u32) -> Sent {
        let asked = batch.front().expect("a packet has a buffer").offload;
        let ours = batch.front().is_some_and(|first| first.owner() == self.raw.owner());
        if asked.is_none() && (n == 1 || self.several) && (ours || self.raw.held() < KEEP) {
            return if self.raw.send(batch, n) { Sent::Whole } else { Sent::Later };
        }
        let bufs = &batch.as_slice()[..n];
        let fits = |headers: u32, len: u32| self.several || headers + len <= FRAME;
        let mut made = Batch::default();
        if asked.gso_type != 0 {
            let Some(mut segments) = Segments::of(&asked, bufs.iter()) else { return Sent::Never };
            let longest = segments.headers().len() as u32 + u32::from(asked.gso_size);
            let count = segments.left() as usize;
            if count > self.raw.room() || count * longest.div_ceil(FRAME) as usize > self.copies.free() {
                return Sent::Later;
            }
            if !fits(0, longest) {
                return Sent::Never;
            }
            while let Some(part) = segments.advance(bufs.iter()) {
                frames::copy(&mut self.copies, segments.headers(), bufs, part, None, |frame, _| {
                    made.push(frame)
                });
            }
        } else {
            let patch = if asked.flags & HDR_F_NEEDS_CSUM != 0 {
                match offload::checksum(&asked, bufs.iter()) {
                    Ok(patch) => patch,
                    Err(_) => return Sent::Never,
                }
            } else {
                None
            };
            if bytes == 0 || !fits(0, bytes) {
                return Sent::Never;
            }
            if bytes.div_ceil(FRAME) as usize > self.copies.free() || self.raw.room() == 0 {
                return Sent::Later;
            }
            let whole = Segment { from: 0, len: bytes };
            frames::copy(&mut self.copies, &[], bufs, whole, patch, |frame, _| made.push(frame));
        }
        loop {
            let (n, _) = made.packet_at(0);
            if n == 0 {
                return Sent::Copied;
            }
            if !self.raw.send(&mut made, n) {
                // Room for heads was there: what is kept has none. The rest of the packet is lost, as on a wire.
                while let Some(frame) = made.pop_front() {
                    self.copies.settle(frame.finish(0));
                }
            }
        }
    }
}

/// What became of a packet.
enum Sent {
    /// Its buffers are the device's for now.
    Whole,
    /// Its buffers are done with.
    Copied,
    Later,
    Never,
}

impl Queue for DpdkQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let (packets, bytes, missed) = self.raw.receive(out, out.burst());
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(bytes);
        self.counters.rx_missed.add(missed as u64);
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            if self.raw.room() == 0 {
                self.raw.flush();
            }
            match self.packet(batch, n, bytes) {
                Sent::Later => break,
                Sent::Never => {
                    self.counters.tx_errors.add(1);
                    drop_packet(batch, &mut self.done);
                }
                fate @ (Sent::Whole | Sent::Copied) => {
                    sent += 1;
                    sum += u64::from(bytes);
                    if let Sent::Copied = fate {
                        drop_packet(batch, &mut self.done);
                    }
                }
            }
            taken += 1;
        }
        self.raw.flush();
        self.counters.tx_packets.add(sent);
        self.counters.tx_bytes.add(sum);
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        let before = done.len();
        self.done.move_to(done);
        self.raw.reap(done);
        done.len() - before
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        while let Some(loan) = loans.front() {
            if loan.owner() == self.raw.owner() {
                self.raw.settle(loans.pop_front().expect("looked at"));
            } else if loan.owner() == self.copies.owner() {
                self.copies.settle(loans.pop_front().expect("looked at"));
            } else {
                break;
            }
        }
    }

    fn lent(&self) -> u32 {
        self.raw.lent()
    }

    fn held(&self) -> u32 {
        self.done.len() as u32 + self.raw.held()
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}
