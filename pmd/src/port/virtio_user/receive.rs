//! From the receive ring to packets on loan.

use hugepages::{Buf, Offload};

use super::MAX_SEGMENTS;
use super::frames::Frames;
use super::queue::Fault;
use super::wire::{HDR, Header, Wire};
use crate::batch::Batch;
use crate::port::Counters;
use crate::spec::net;
use crate::vring::driver::{Ring, Segment};

/// Lends what a receive ring has.
pub(super) struct Receive<'a> {
    pub(super) wire: Wire,
    pub(super) frames: &'a mut Frames,
    pub(super) arrived: &'a mut Batch<Buf>,
    pub(super) counters: &'a Counters,
}

impl Receive<'_> {
    /// How many packets, and what was wrong with what came after.
    #[inline(always)]
    pub(super) fn burst<R: Ring>(&mut self, ring: &mut R, out: &mut Batch<Buf>) -> (usize, Option<Fault>) {
        if !self.arrived.is_empty() {
            return self.any(ring, out, 0);
        }
        // The lines of the headers are on the way while the next are lent.
        let at = out.len();
        let mut fault = None;
        for _ in 0..out.burst().min(out.room()) {
            match ring.used() {
                Ok(Some(used)) => {
                    let frame = self.frames.received(used.id);
                    let buf = self.frames.lend(frame, used.len);
                    buf.prefetch();
                    out.push(buf);
                }
                Ok(None) => break,
                Err(lie) => {
                    fault = Some(lie.into());
                    break;
                }
            }
        }
        let (mut packets, mut bytes) = (0, 0u64);
        for buf in &mut out.as_mut_slice()[at..] {
            let Some((header, num_buffers)) = header(buf) else { break };
            // §5.1.6.4: without MRG_RXBUF the number means nothing.
            if num_buffers > 1 && self.wire.has(net::F_MRG_RXBUF) {
                break;
            }
            buf.advance(HDR);
            if let Some(offload) = header {
                buf.offload = self.wire.believe(offload, buf.len());
            }
            packets += 1;
            bytes += u64::from(buf.len());
        }
        self.count(packets, bytes);
        if at + packets < out.len() {
            self.set_aside(out, at + packets);
            let (more, why) = self.any(ring, out, packets);
            return (packets + more, fault.or(why));
        }
        (packets, fault)
    }

    fn count(&self, packets: usize, bytes: u64) {
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(bytes);
        }
    }

    /// Takes the buffers of `out` from `at` on out of it: the first is no packet of one buffer.
    #[cold]
    fn set_aside(&mut self, out: &mut Batch<Buf>, at: usize) {
        let mut tail = Batch::default();
        while out.len() > at {
            tail.push(out.pop_back().expect("counted"));
        }
        while let Some(buf) = tail.pop_back() {
            self.arrived.push(buf);
        }
    }

    /// Lends packets of any number of buffers from those that have arrived; `had` of the burst are there.
    fn any<R: Ring>(&mut self, ring: &mut R, out: &mut Batch<Buf>, had: usize) -> (usize, Option<Fault>) {
        let burst = out.burst() - had;
        let mut fault = self.collect(ring, burst).err();
        let (mut packets, mut bytes) = (0, 0u64);
        while packets < burst {
            let Some(first) = self.arrived.front() else { break };
            let Some(header) = first.peek::<Header>(0).filter(|_| first.len() > HDR) else {
                self.runt();
                continue;
            };
            let n = if self.wire.has(net::F_MRG_RXBUF) { header.num_buffers.max(1) } else { 1 };
            match self.complete(ring, n) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    fault = Some(why);
                    break;
                }
            }
            if out.room() < usize::from(n) {
                break;
            }
            bytes += u64::from(self.lend(out, n.into(), header.offload));
            packets += 1;
        }
        self.count(packets, bytes);
        (packets, fault)
    }

    /// Lends the first packet, of `n` buffers; its bytes.
    fn lend(&mut self, out: &mut Batch<Buf>, n: usize, offload: Offload) -> u32 {
        let at = out.len();
        let mut frame = 0;
        for left in (0..n).rev() {
            let mut buf = self.arrived.pop_front().expect("counted");
            if left + 1 == n {
                buf.advance(HDR);
            }
            frame += buf.len();
            buf.set_more(left > 0);
            out.push(buf);
        }
        if offload != Offload::default() {
            out.get_mut(at).expect("pushed").offload = self.wire.believe(offload, frame);
        }
        frame
    }

    /// Takes used buffers until `n` have arrived.
    fn collect<R: Ring>(&mut self, ring: &mut R, n: usize) -> Result<(), Fault> {
        while self.arrived.len() < n {
            let Some(used) = ring.used()? else { break };
            let frame = self.frames.received(used.id);
            self.arrived.push(self.frames.lend(frame, used.len));
        }
        Ok(())
    }

    /// Whether all `n` buffers of the first packet are there.
    fn complete<R: Ring>(&mut self, ring: &mut R, n: u16) -> Result<bool, Fault> {
        if usize::from(n) > MAX_SEGMENTS {
            return Err(Fault::Buffers(n));
        }
        self.collect(ring, n.into())?;
        Ok(self.arrived.len() >= n.into())
    }

    /// Drops a buffer that has no packet in it.
    #[cold]
    fn runt(&mut self) {
        self.counters.rx_errors.add(1);
        let buf = self.arrived.pop_front().expect("looked at");
        self.frames.drop(buf);
    }
}

/// Reads the header of a buffer with more than that: what it asks for, if anything, and how many
/// buffers it says the packet has.
#[inline(always)]
fn header(buf: &Buf) -> Option<(Option<Offload>, u16)> {
    if buf.len() <= HDR {
        return None;
    }
    // Read once, as two words: most ask for nothing, and are all zero but for the number.
    let (low, high) = (buf.peek::<u64>(0)?, buf.peek::<u32>(8)?);
    let offload = (low != 0 || high as u16 != 0).then(|| {
        let mut bytes = [0; size_of::<Offload>()];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&(high as u16).to_le_bytes());
        zerocopy::transmute!(bytes)
    });
    Some((offload, (high >> 16) as u16))
}

/// Puts free frames into a receive ring, if it has room for `least`; whether to kick.
#[inline(always)]
pub(super) fn fill<R: Ring>(ring: &mut R, frames: &mut Frames, least: u16) -> bool {
    if ring.free() < least.min((ring.size() / 4).max(1)) {
        return false;
    }
    let len = frames.frame();
    while ring.free() > 0 {
        let Some(frame) = frames.take_empty() else { break };
        let id = ring.add(&[Segment::write(frames.address(frame), len)]);
        frames.receive(id.expect("there was room"), frame);
    }
    ring.publish()
}
