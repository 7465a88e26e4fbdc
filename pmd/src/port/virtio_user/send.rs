//! From packets to the transmit ring.

use hugepages::{Buf, Loan, Offload};

use super::frames::Frames;
use super::queue::Fault;
use super::scatter::{Part, Scatter};
use super::wire::{HDR, Wire, write_no_header};
use crate::batch::Batch;
use crate::offload;
use crate::offload::segment::Segments;
use crate::port::{Counters, drop_packet};
use crate::spec::net;
use crate::vring::driver::{Lie, Ring, Segment};

/// Fills a transmit ring.
pub(super) struct Send<'a> {
    pub(super) wire: Wire,
    pub(super) frames: &'a mut Frames,
    pub(super) done: &'a mut Batch<Loan>,
    pub(super) counters: &'a Counters,
}

/// What became of a packet.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// It is in the ring.
    Sent,
    /// It cannot be sent, ever.
    Refused,
    /// There is no room now.
    Full,
}

impl Send<'_> {
    /// Packets taken, and whether to kick.
    #[inline(always)]
    pub(super) fn burst<R: Ring>(
        &mut self,
        ring: &mut R,
        batch: &mut Batch<Buf>,
    ) -> Result<(usize, bool), Fault> {
        clean(ring, self.frames)?;
        let (mut packets, mut errors, mut bytes) = (0, 0, 0u64);
        while let Some(first) = batch.front() {
            let own = first.owner() == self.frames.owner();
            let (n, sum) = if own { self.own(ring, batch) } else { self.copies(ring, batch) };
            packets += n;
            bytes += sum;
            if n > 0 {
                continue;
            }
            let len = batch.packet_at(0).1;
            match self.other(ring, batch) {
                Fate::Sent => bytes += u64::from(len),
                Fate::Refused => errors += 1,
                Fate::Full => break,
            }
            packets += 1;
        }
        if packets > 0 {
            self.counters.tx_packets.add((packets - errors) as u64);
            self.counters.tx_bytes.add(bytes);
            self.counters.tx_errors.add(errors as u64);
        }
        Ok((packets, ring.publish()))
    }

    /// Whether a packet is complete and has one buffer, which fits a frame.
    #[inline(always)]
    fn plain(&self, buf: &Buf) -> bool {
        let fits = !buf.is_empty() && buf.len() <= self.frames.frame() - HDR;
        fits && !buf.more() && buf.offload.flags & net::HDR_F_NEEDS_CSUM == 0
    }

    /// Sends plain packets at the front that lie in frames of this queue, where they lie, the header in
    /// front: how many, and their bytes. They are on loan no more: nobody waits for a back-end that does
    /// not take them.
    #[inline(always)]
    fn own<R: Ring>(&mut self, ring: &mut R, batch: &mut Batch<Buf>) -> (usize, u64) {
        let (mut n, mut bytes) = (0, 0u64);
        for buf in batch.as_slice().iter().take(ring.free().into()) {
            if buf.owner() != self.frames.owner() || !self.plain(buf) {
                break;
            }
            let (frame, len) = (buf.id(), buf.len());
            let Some(at) = self.frames.headroom(buf, HDR) else { break };
            let at = at - u64::from(HDR);
            let mut front = self.frames.lend_at(at, HDR, frame);
            write_no_header(&mut front);
            self.frames.filled(front);
            let id = ring.add(&[Segment::read(at, HDR + len)]).expect("there is room");
            self.frames.send(id, frame);
            bytes += u64::from(len);
            n += 1;
        }
        self.frames.take_back(batch, n);
        (n, bytes)
    }

    /// Sends copies of plain packets at the front, up to one that lies in a frame of this queue: how
    /// many, and their bytes.
    #[inline(always)]
    fn copies<R: Ring>(&mut self, ring: &mut R, batch: &mut Batch<Buf>) -> (usize, u64) {
        let (mut n, mut bytes) = (0, 0u64);
        for buf in batch.as_slice().iter().take(self.done.room().min(ring.free().into())) {
            if buf.owner() == self.frames.owner() || !self.plain(buf) {
                break;
            }
            let Some(frame) = self.frames.take() else { break };
            let len = HDR + buf.len();
            let mut to = self.frames.lend(frame, len);
            // §5.1.6.2: nothing is asked for, and the driver sets num_buffers to 0.
            let whole = buf.copy_whole::<HDR>((0, 0), &mut to);
            debug_assert!(whole, "plain() looked for room");
            self.frames.filled(to);
            let id = ring.add(&[Segment::read(self.frames.address(frame), len)]).expect("there is room");
            self.frames.send(id, frame);
            bytes += u64::from(buf.len());
            n += 1;
        }
        batch.finish_front(n, self.done);
        (n, bytes)
    }

    /// Any packet: of several buffers, longer than a frame, with something left to do.
    fn other<R: Ring>(&mut self, ring: &mut R, batch: &mut Batch<Buf>) -> Fate {
        let (n, len) = batch.packet_at(0);
        if self.done.room() < n {
            return Fate::Full;
        }
        let fate = self.packet(ring, &batch.as_slice()[..n], len);
        match fate {
            Fate::Sent => batch.finish_front(n, self.done),
            Fate::Refused => _ = drop_packet(batch, self.done),
            Fate::Full => {}
        }
        fate
    }

    /// What the back-end does not take as it is, is completed or segmented on the way.
    fn packet<R: Ring>(&mut self, ring: &mut R, packet: &[Buf], len: u32) -> Fate {
        if len == 0 || len > net::MAX_FRAME {
            return Fate::Refused;
        }
        let mut to = Scatter { frames: self.frames, ring, packet };
        let whole = Part { from: 0, len };
        let asked = packet[0].offload;
        if asked.flags & net::HDR_F_NEEDS_CSUM == 0 {
            return to.frame(Offload::default(), &[], whole, None);
        }
        // §5.1.6.2: DATA_VALID is not for the driver to say.
        let asked = Offload { flags: net::HDR_F_NEEDS_CSUM, ..asked };
        if self.wire.has(net::F_CSUM) && self.wire.segments(asked.gso_type) {
            return to.frame(asked, &[], whole, None);
        }
        if asked.gso_type != net::GSO_NONE {
            let Some(segments) = Segments::of(&asked, packet.iter()) else { return Fate::Refused };
            return to.segments(segments);
        }
        match to.room(1, len) {
            Fate::Sent => {}
            other => return other,
        }
        match offload::checksum(&asked, packet.iter()) {
            Ok(patch) => to.frame(Offload::default(), &[], whole, patch),
            Err(_) => Fate::Refused,
        }
    }
}

/// Takes home the frames of packets that were sent.
#[inline(always)]
pub(super) fn clean<R: Ring>(ring: &mut R, frames: &mut Frames) -> Result<(), Lie> {
    while let Some(used) = ring.used()? {
        frames.sent(used.id);
    }
    Ok(())
}
