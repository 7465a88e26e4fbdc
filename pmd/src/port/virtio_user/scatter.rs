//! Copies of packets of any length and number of buffers, over as many frames as they take.

use arrayvec::ArrayVec;
use hugepages::{Buf, Offload};

use super::MAX_SEGMENTS;
use super::frames::Frames;
use super::send::Fate;
use super::wire::{HDR, write_header};
use crate::offload::Patch;
pub(super) use crate::offload::segment::Segment as Part;
use crate::offload::segment::Segments;
use crate::vring::driver::{Ring, Segment};

/// One packet on its way into a transmit ring.
pub(super) struct Scatter<'a, R> {
    pub(super) frames: &'a mut Frames,
    pub(super) ring: &'a mut R,
    /// Its buffers.
    pub(super) packet: &'a [Buf],
}

impl<R: Ring> Scatter<'_, R> {
    /// Whether there is room for `n` packets of `len` bytes now, or ever: [`Fate::Sent`] if so.
    pub(super) fn room(&self, n: usize, len: u32) -> Fate {
        let segments = (HDR + len).div_ceil(self.frames.frame()) as usize;
        let each = if self.indirect(segments) { 1 } else { segments };
        if segments > MAX_SEGMENTS || n * each > usize::from(self.ring.size()) {
            return Fate::Refused;
        }
        let full = usize::from(self.ring.free()) < n * each || self.frames.free() < n * segments;
        if full { Fate::Full } else { Fate::Sent }
    }

    fn indirect(&self, segments: usize) -> bool {
        segments > 1 && segments <= usize::from(self.ring.indirect())
    }

    /// Sends all frames of a large packet, or none.
    pub(super) fn segments(&mut self, mut segments: Segments) -> Fate {
        let first = self.packet[0].offload;
        let longest = segments.headers().len() as u32 + u32::from(first.gso_size);
        let fate = self.room(segments.left() as usize, longest);
        if let Fate::Sent = fate {
            while let Some(part) = segments.advance(self.packet.iter()) {
                self.frame(Offload::default(), segments.headers(), part, None);
            }
        }
        fate
    }

    /// Sends one frame: `headers`, then a part of the packet, with `patch` stored in the packet.
    pub(super) fn frame(
        &mut self,
        offload: Offload,
        headers: &[u8],
        part: Part,
        patch: Option<Patch>,
    ) -> Fate {
        let whole = HDR + headers.len() as u32 + part.len;
        let fate = self.room(1, whole - HDR);
        let Fate::Sent = fate else { return fate };
        let mut chain = ArrayVec::<Segment, MAX_SEGMENTS>::new();
        let mut used = ArrayVec::<u16, MAX_SEGMENTS>::new();
        let mut source = Source::new(self.packet, part.from);
        let mut left = whole;
        while left > 0 {
            let frame = self.frames.take().expect("room() counted them");
            let mut to = self.frames.lend(frame, left);
            let begin = if left == whole { prefix(&mut to, offload, headers) } else { 0 };
            source.copy(&mut to, begin);
            if let Some(patch) = patch {
                store(&mut to, whole - left, patch);
            }
            left -= to.len();
            chain.push(Segment::read(self.frames.address(frame), to.len()));
            self.frames.filled(to);
            used.push(frame);
        }
        let indirect = self.indirect(chain.len());
        let id = if indirect { self.ring.add_indirect(&chain) } else { self.ring.add(&chain) };
        let id = id.expect("room() counted them");
        for frame in used {
            self.frames.send(id, frame);
        }
        fate
    }
}

/// Writes what comes before the packet's own bytes, which fits the first frame; its length.
fn prefix(to: &mut Buf, offload: Offload, headers: &[u8]) -> u32 {
    write_header(to, offload);
    let written = to.write(HDR, headers);
    assert_eq!(written, headers.len(), "a frame has room for headers");
    HDR + written as u32
}

/// Stores those bytes of a checksum that lie in `to`, which holds a packet and its header from byte
/// `from` on.
fn store(to: &mut Buf, from: u32, patch: Patch) {
    for (i, byte) in patch.bytes.into_iter().enumerate() {
        let at = HDR + patch.at + i as u32;
        if let Some(off) = at.checked_sub(from).filter(|&off| off < to.len()) {
            let written = to.poke(off, byte);
            assert!(written, "looked at its length");
        }
    }
}

/// The bytes of a packet, from some byte on.
struct Source<'a> {
    packet: &'a [Buf],
    at: u32,
}

impl<'a> Source<'a> {
    fn new(mut packet: &'a [Buf], mut at: u32) -> Self {
        while let Some(first) = packet.first().filter(|first| at >= first.len()) {
            at -= first.len();
            packet = &packet[1..];
        }
        Source { packet, at }
    }

    /// Copies bytes to `to` from byte `off` on until it is full or the packet ends.
    fn copy(&mut self, to: &mut Buf, mut off: u32) {
        while let Some(buf) = self.packet.first().filter(|_| off < to.len()) {
            let n = buf.copy_part(self.at, to, off, to.len() - off);
            off += n;
            self.at += n;
            if self.at == buf.len() {
                (self.packet, self.at) = (&self.packet[1..], 0);
            }
        }
    }
}
