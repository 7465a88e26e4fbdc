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
        let mut fault = self.collect(ring, out.burst()).err();
        let (mut packets, mut bytes) = (0, 0u64);
        while packets < out.burst() {
            let Some(first) = self.arrived.front() else { break };
            let Some(header) = first.peek::<Header>(0).filter(|_| first.len() > HDR) else {
                self.runt();
                continue;
            };
            // §5.1.6.4: without MRG_RXBUF the number means nothing.
            let n = if self.wire.has(net::F_MRG_RXBUF) { header.num_buffers.max(1) } else { 1 };
            if n > 1 {
                match self.complete(ring, n) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(why) => {
                        fault = Some(why);
                        break;
                    }
                }
            }
            if out.room() < usize::from(n) {
                break;
            }
            let mut first = self.arrived.pop_front().expect("looked at");
            first.advance(HDR);
            let mut frame = first.len();
            first.set_more(n > 1);
            let at = out.len();
            out.push(first);
            for left in (1..n).rev() {
                let mut buf = self.arrived.pop_front().expect("counted");
                frame += buf.len();
                buf.set_more(left > 1);
                out.push(buf);
            }
            if header.offload != Offload::default() {
                out.get_mut(at).expect("pushed").offload = self.wire.believe(header.offload, frame);
            }
            packets += 1;
            bytes += u64::from(frame);
        }
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(bytes);
        }
        (packets, fault)
    }

    /// Takes used buffers until `n` have arrived, so that the lines of their headers are on the way.
    #[inline(always)]
    fn collect<R: Ring>(&mut self, ring: &mut R, n: usize) -> Result<(), Fault> {
        while self.arrived.len() < n {
            let Some(used) = ring.used()? else { break };
            let frame = self.frames.received(used.id);
            let buf = self.frames.lend(frame, used.len);
            buf.prefetch();
            self.arrived.push(buf);
        }
        Ok(())
    }

    /// Whether all `n` buffers of the first packet are there.
    #[cold]
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
