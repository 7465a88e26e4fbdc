//! From packets to the transmit ring.

use arrayvec::ArrayVec;
use hugepages::{Buf, Loan, Offload};

use super::MAX_SEGMENTS;
use super::frames::Frames;
use super::queue::Fault;
use super::wire::{HDR, Header, Wire};
use crate::batch::Batch;
use crate::offload;
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
enum Fate {
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
            let mut len = first.len();
            let plain = !first.more() && first.offload.flags & net::HDR_F_NEEDS_CSUM == 0;
            let fate = if plain && len > 0 && len <= self.frames.frame() - HDR {
                self.simple(ring, batch)
            } else {
                len = batch.packet_at(0).1;
                self.other(ring, batch)
            };
            match fate {
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

    /// A complete packet of one buffer that fits a frame: sent in place if it is ours, or copied.
    #[inline(always)]
    fn simple<R: Ring>(&mut self, ring: &mut R, batch: &mut Batch<Buf>) -> Fate {
        let first = batch.front().expect("the caller looked at it");
        if ring.free() == 0 {
            return Fate::Full;
        }
        if first.owner() == self.frames.owner()
            && let Some(at) = self.frames.headroom(first, HDR)
        {
            let buf = batch.pop_front().expect("looked at");
            self.own(ring, at - u64::from(HDR), buf);
            return Fate::Sent;
        }
        if self.done.room() == 0 {
            return Fate::Full;
        }
        let Some(frame) = self.frames.take() else { return Fate::Full };
        let buf = batch.pop_front().expect("looked at");
        self.copy(ring, frame, &buf);
        self.done.push(buf.finish(0));
        Fate::Sent
    }

    /// Sends a frame of this queue as it is, the header in front of it, from `at` on. It is on loan no
    /// more: nobody waits for a back-end that does not take it.
    #[inline(always)]
    fn own<R: Ring>(&mut self, ring: &mut R, at: u64, buf: Buf) {
        let (frame, len) = (buf.id(), HDR + buf.len());
        self.frames.filled(buf);
        let mut front = self.frames.lend_at(at, HDR, frame);
        header(&mut front, Offload::default());
        self.frames.filled(front);
        let id = ring.add(&[Segment::read(at, len)]).expect("there was room");
        self.frames.send(id, frame);
    }

    /// Sends a copy of a packet of one buffer.
    #[inline(always)]
    fn copy<R: Ring>(&mut self, ring: &mut R, frame: u16, buf: &Buf) {
        let len = HDR + buf.len();
        let mut to = self.frames.lend(frame, len);
        header(&mut to, Offload::default());
        buf.copy_part(0, &mut to, HDR, buf.len());
        self.frames.filled(to);
        let id = ring.add(&[Segment::read(self.frames.address(frame), len)]).expect("there was room");
        self.frames.send(id, frame);
    }

    /// Any packet: of several buffers, longer than a frame, with something left to do.
    fn other<R: Ring>(&mut self, ring: &mut R, batch: &mut Batch<Buf>) -> Fate {
        let (n, len) = batch.packet_at(0);
        if self.done.room() < n {
            return Fate::Full;
        }
        let asked = batch.front().expect("the caller looked at it").offload;
        let mut offload = Offload::default();
        let mut patch = None;
        let mut right = len > 0 && len <= net::MAX_FRAME;
        if asked.flags & net::HDR_F_NEEDS_CSUM != 0 {
            if self.wire.has(net::F_CSUM) {
                right &= self.wire.segments(asked.gso_type);
                offload = Offload { flags: net::HDR_F_NEEDS_CSUM, ..asked };
            } else {
                right &= asked.gso_type == net::GSO_NONE;
                match offload::checksum(&asked, batch.iter().take(n)) {
                    Ok(sum) => patch = sum,
                    Err(_) => right = false,
                }
            }
        }
        let segments = (HDR + len).div_ceil(self.frames.frame()) as usize;
        let indirect = segments > 1 && segments <= usize::from(ring.indirect());
        if !right || segments > MAX_SEGMENTS || (!indirect && segments > usize::from(ring.size())) {
            drop_packet(batch, self.done);
            return Fate::Refused;
        }
        let places = if indirect { 1 } else { segments };
        if usize::from(ring.free()) < places || self.frames.free() < segments {
            return Fate::Full;
        }
        let mut chain = ArrayVec::<Segment, MAX_SEGMENTS>::new();
        let mut used = ArrayVec::<u16, MAX_SEGMENTS>::new();
        let mut from = Source { batch, buf: 0, at: 0 };
        let mut left = HDR + len;
        while left > 0 {
            let frame = self.frames.take().expect("counted");
            let mut to = self.frames.lend(frame, left);
            let part = to.len();
            let begin = if used.is_empty() {
                header(&mut to, offload);
                HDR
            } else {
                0
            };
            from.copy(&mut to, begin);
            if let Some(patch) = patch {
                store(&mut to, u64::from(HDR + len - left), patch);
            }
            self.frames.filled(to);
            chain.push(Segment::read(self.frames.address(frame), part));
            used.push(frame);
            left -= part;
        }
        let id = if indirect { ring.add_indirect(&chain) } else { ring.add(&chain) };
        let id = id.expect("there was room");
        for frame in used {
            self.frames.send(id, frame);
        }
        for _ in 0..n {
            self.done.push(batch.pop_front().expect("counted").finish(0));
        }
        Fate::Sent
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

/// Writes the header of a packet to be sent.
#[inline(always)]
fn header(to: &mut Buf, offload: Offload) {
    // §5.1.6.2: the driver sets num_buffers to 0.
    let written = to.poke(0, Header { offload, num_buffers: 0 });
    assert!(written, "a frame has room for a header");
}

/// Stores those bytes of a checksum that lie in `to`, which holds a packet and its header from byte
/// `from` on.
fn store(to: &mut Buf, from: u64, patch: offload::Patch) {
    for (i, byte) in patch.bytes.into_iter().enumerate() {
        let at = u64::from(HDR + patch.at) + i as u64;
        if let Some(off) = at.checked_sub(from).filter(|&off| off < u64::from(to.len())) {
            let written = to.poke(off as u32, byte);
            assert!(written, "looked at its length");
        }
    }
}

/// The bytes of the first packet of a batch, from front to back.
struct Source<'a> {
    batch: &'a Batch<Buf>,
    buf: usize,
    at: u32,
}

impl Source<'_> {
    /// Copies bytes to `to` from byte `off` on until it is full or the packet ends.
    fn copy(&mut self, to: &mut Buf, mut off: u32) {
        while off < to.len() {
            let Some(buf) = self.batch.get(self.buf) else { break };
            let n = buf.copy_part(self.at, to, off, to.len() - off);
            off += n;
            self.at += n;
            if self.at == buf.len() {
                (self.buf, self.at) = (self.buf + 1, 0);
            }
        }
    }
}
