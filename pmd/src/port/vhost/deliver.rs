//! Packets into a guest's receive ring: one copy, straight from the lender's memory.

use hugepages::{Buf, Loan, Offload};
use zerocopy::IntoBytes;

use super::hash::Hashing;
use super::wire::{Header, Mark, Wire};
use crate::batch::Batch;
use crate::offload::segment::{self, Segment, Segments};
use crate::offload::{self, Patch};
use crate::port::{Counters, drop_packet};
use crate::spec::net;
use crate::vring::{Layout, Rooms, Vring};

/// Fills a guest's receive ring.
pub(super) struct Deliver<'a, L> {
    pub(super) ring: &'a mut Vring<L>,
    pub(super) wire: Wire,
    /// What is reported of packets, if their header has a place for it.
    pub(super) hashing: Option<&'a Hashing>,
    /// Empty chains that were popped for a packet; empty between bursts.
    pub(super) stash: &'a mut Batch<Buf>,
    /// Receipts of packets that are delivered.
    pub(super) done: &'a mut Batch<Loan>,
    /// Chains without room that may still be passed over in this burst: a guest that offers nothing else
    /// must not keep the core.
    pub(super) idle: usize,
}

impl<L: Layout> Deliver<'_, L> {
    /// Delivers from the front of `batch`, as much as there is room for; how many packets went, also
    /// those that can never be delivered.
    #[inline(always)]
    pub(super) fn burst(&mut self, batch: &mut Batch<Buf>, counters: &Counters) -> usize {
        let (mut packets, mut bytes, mut errors) = (0, 0u64, 0);
        if self.ring.lent() > 0 {
            return self.mixed(batch, counters);
        }
        if !self.ring.ready() {
            return 0;
        }
        while !batch.is_empty() && self.done.room() > 0 {
            let (n, sum) = self.simple(batch);
            packets += n;
            bytes += sum;
            if n > 0 {
                continue;
            }
            match self.packet(batch) {
                Sent::Bytes(n) => {
                    packets += 1;
                    bytes += n;
                }
                Sent::Never => errors += 1,
                Sent::Later => break,
            }
        }
        if !self.stash.is_empty() {
            self.ring.unpop(self.stash);
        }
        counters.tx_packets.add(packets as u64);
        counters.tx_bytes.add(bytes);
        counters.tx_errors.add(errors as u64);
        packets + errors
    }

    /// As [`Deliver::burst`], while buffers of this ring are out to be filled by a device: packets may lie in
    /// them. One for which there is no room makes none wait that has its place already.
    #[cold]
    #[inline(never)]
    fn mixed(&mut self, batch: &mut Batch<Buf>, counters: &Counters) -> usize {
        let (mut packets, mut bytes, mut errors, mut in_place) = (0, 0u64, 0, 0);
        while !batch.is_empty() && batch.packet_at(0).0 <= self.done.room() {
            if let Some(n) = self.in_place(batch) {
                in_place += 1;
                packets += 1;
                bytes += n;
                continue;
            }
            match self.packet(batch) {
                Sent::Bytes(n) => {
                    packets += 1;
                    bytes += n;
                }
                Sent::Never => errors += 1,
                Sent::Later => {
                    drop_packet(batch, self.done);
                    errors += 1;
                }
            }
        }
        if !self.stash.is_empty() {
            self.ring.unpop(self.stash);
        }
        counters.tx_packets.add(packets as u64);
        counters.tx_bytes.add(bytes);
        counters.tx_errors.add(errors as u64);
        counters.tx_in_place.add(in_place);
        packets + errors
    }

    /// The first packet, if it lies in chains of this ring as the guest wants it: it only gets its header, and
    /// its chains are complete. Its bytes.
    fn in_place(&mut self, batch: &mut Batch<Buf>) -> Option<u64> {
        let (n, bytes) = batch.packet_at(0);
        let (bufs, owner) = (&batch.as_slice()[..n], self.ring.owner());
        let ours = |buf: &Buf| buf.owner() == owner && !buf.is_moved() && !buf.is_empty();
        if !(bufs.iter().all(ours) && bufs[0].is_behind_header() && (n == 1 || self.wire.mergeable)) {
            return None;
        }
        let mut offload = bufs[0].offload;
        if offload.flags == net::HDR_F_DATA_VALID && !self.wire.checksums(&offload) {
            offload = Offload::default();
        }
        if !self.wire.takes(&offload) {
            return None;
        }
        let header = Header { offload, num_buffers: n as u16 };
        for i in 0..n {
            let mut buf = batch.pop_front().expect("counted");
            // §5.1.6.4: what follows the first buffer begins where its chain does.
            let placed = if i == 0 { buf.put_header(header.words()) } else { buf.close_up() };
            debug_assert!(placed, "looked at above, and lent to be written");
            let written = buf.len();
            self.ring.settle(buf.finish(written));
        }
        Some(bytes.into())
    }

    /// Delivers packets into chains of one buffer each, as long as they follow each other and ask for
    /// nothing that the guest does not take: how many, and their bytes.
    #[inline(always)]
    fn simple(&mut self, batch: &mut Batch<Buf>) -> (usize, u64) {
        if !self.stash.is_empty() {
            return (0, 0);
        }
        let most = batch.len().min(self.done.room());
        let packets = &batch.as_slice()[..most];
        let (n, bytes) = if self.wire.hdr == net::HDR_LEN {
            copy::<{ net::HDR_LEN }, L>(self.ring, self.wire, packets)
        } else if self.wire.hdr == net::HDR_LEN_LEGACY {
            copy::<{ net::HDR_LEN_LEGACY }, L>(self.ring, self.wire, packets)
        } else {
            return (0, 0);
        };
        if n > 0 {
            batch.finish_front(n, self.done);
            return (n, bytes);
        }
        let spread = spread(self.ring, self.wire, packets);
        batch.finish_front(spread.bufs, self.done);
        (spread.packets, spread.bytes)
    }

    /// Pops a chain into the stash; `false`: there is none, or there were enough without room.
    fn fetch(&mut self) -> bool {
        let had = self.stash.len();
        if self.idle == 0 || self.ring.pop(self.stash).is_none() {
            return false;
        }
        self.idle -= usize::from(self.stash.len() == had);
        true
    }

    /// Any packet into any chains; what the guest did not negotiate is completed on the way.
    fn packet(&mut self, batch: &mut Batch<Buf>) -> Sent {
        let (bufs, bytes) = batch.packet_at(0);
        if bufs > self.done.room() {
            return Sent::Later;
        }
        let mut offload = batch.front().expect("not empty").offload;
        if bytes == 0 {
            return self.never(batch);
        }
        let packet = Packet { batch, bufs };
        let hashing = self.hashing.filter(|_| self.wire.hdr == net::HDR_LEN_HASH);
        let mark = hashing.map_or(Mark::default(), |hashing| hashing.packet(packet.iter()));
        let sent = if self.wire.segments(&offload) {
            let mut patch = None;
            if !self.wire.checksums(&offload) {
                let Ok(sum) = offload::checksum(&offload, packet.iter()) else { return self.never(batch) };
                (patch, offload) = (sum, Offload::default());
            }
            self.frame(&packet, (offload, mark), &[], Segment { from: 0, len: bytes }, patch)
        } else {
            let Some(segments) = Segments::of(&offload, packet.iter()) else { return self.never(batch) };
            self.frames(&packet, mark, segments)
        };
        match sent {
            Sent::Never => return self.never(batch),
            Sent::Later => return Sent::Later,
            Sent::Bytes(_) => {}
        }
        for _ in 0..bufs {
            self.done.push(batch.pop_front().expect("counted").finish(0));
        }
        sent
    }

    /// A large packet, frame by frame. Frames after the first for which the guest has no buffers left
    /// are lost, as on a wire.
    fn frames(&mut self, packet: &Packet<'_>, mark: Mark, mut segments: Segments) -> Sent {
        let mut bytes = 0;
        while let Some(segment) = segments.advance(packet.iter()) {
            match self.frame(packet, (Offload::default(), mark), segments.headers(), segment, None) {
                Sent::Bytes(n) => bytes += n,
                refused if bytes == 0 => return refused,
                _ => break,
            }
        }
        Sent::Bytes(bytes)
    }

    /// One frame: `headers`, then a part of the packet.
    fn frame(
        &mut self,
        packet: &Packet<'_>,
        (offload, mark): (Offload, Mark),
        headers: &[u8],
        part: Segment,
        patch: Option<Patch>,
    ) -> Sent {
        let bytes = headers.len() as u64 + u64::from(part.len);
        let need = bytes + u64::from(self.wire.hdr);
        let (rooms, chains) = match self.room_for(need) {
            Ok(found) => found,
            Err(refused) => return refused,
        };
        let header = Header { offload, num_buffers: chains as u16 };
        let hdr = self.wire.hdr as usize;
        let mut prefix = [0u8; net::HDR_LEN_HASH as usize + segment::MAX_HEADERS];
        let (front, rest) = prefix.split_at_mut(net::HDR_LEN as usize);
        front.copy_from_slice(header.as_bytes());
        rest[..size_of::<Mark>()].copy_from_slice(mark.as_bytes());
        prefix[hdr..hdr + headers.len()].copy_from_slice(headers);
        self.fill(packet, &prefix[..hdr + headers.len()], part, patch, rooms);
        Sent::Bytes(bytes)
    }

    /// Buffers at the front of the stash that hold `need` bytes, and whole chains they are; one chain
    /// only, unless mergeable.
    fn room_for(&mut self, need: u64) -> Result<(usize, usize), Sent> {
        let (mut have, mut chains, mut i) = (0u64, 0, 0);
        loop {
            while let Some(room) = self.stash.get(i) {
                have += u64::from(room.len());
                i += 1;
                if room.more() {
                    continue;
                }
                chains += 1;
                if have >= need {
                    return Ok((i, chains));
                }
                if !self.wire.mergeable {
                    // A single chain that is too short will not do later either.
                    return Err(Sent::Never);
                }
            }
            if self.stash.room() == 0 {
                // Full of crumbs.
                return Err(Sent::Never);
            }
            if !self.fetch() {
                return Err(Sent::Later);
            }
        }
    }

    /// Writes `prefix` and a part of the packet over the first `rooms` buffers of the stash and
    /// completes them.
    fn fill(
        &mut self,
        packet: &Packet<'_>,
        mut prefix: &[u8],
        part: Segment,
        patch: Option<Patch>,
        rooms: usize,
    ) {
        let mut from = packet.seek(part.from);
        let (mut at, mut left) = (part.from, part.len);
        for _ in 0..rooms {
            let mut room = self.stash.pop_front().expect("counted");
            let start = room.write(0, prefix) as u32;
            prefix = &prefix[start as usize..];
            let mut written = start;
            while left > 0 && written < room.len() {
                let n = packet.copy(&mut from, &mut room, written, left);
                written += n;
                left -= n;
            }
            if let Some(patch) = patch {
                patch_room(&mut room, patch, at, start, written);
            }
            at += written - start;
            self.ring.settle(room.finish(written));
        }
    }

    fn never(&mut self, batch: &mut Batch<Buf>) -> Sent {
        drop_packet(batch, self.done);
        Sent::Never
    }
}

/// Copies packets of one buffer, behind a header of `HDR` bytes, into chains of one buffer: how many, and
/// their bytes.
#[inline(never)]
fn copy<const HDR: u32, L: Layout>(ring: &mut Vring<L>, wire: Wire, packets: &[Buf]) -> (usize, u64) {
    let mut bytes = 0u64;
    let mut next = packets.iter();
    let n = ring.fill_each(packets.len(), |room| {
        let packet = next.next()?;
        if !wire.takes(&packet.offload) {
            return None;
        }
        let header = Header { offload: packet.offload, num_buffers: 1 };
        let written = room.copy_packet::<HDR>(header.words(), packet)?;
        bytes += u64::from(packet.len());
        Some(written)
    });
    (n, bytes)
}

/// What was spread over chains.
#[derive(Default)]
struct Spread {
    packets: usize,
    bufs: usize,
    bytes: u64,
}

/// Copies packets of any number of buffers into any number of chains of one buffer each.
#[inline(never)]
fn spread<L: Layout>(ring: &mut Vring<L>, wire: Wire, bufs: &[Buf]) -> Spread {
    let mut done = Spread::default();
    done.packets = ring.fill(bufs.len(), |rooms| match spread_one(rooms, wire, &bufs[done.bufs..]) {
        Some((bufs, bytes)) => {
            done.bufs += bufs;
            done.bytes += bytes;
            true
        }
        None => false,
    });
    done
}

/// The first packet: how many buffers it has, and its bytes. `None`: it must be looked at more closely, or
/// there are too few chains.
fn spread_one<L: Layout>(rooms: &mut Rooms<'_, L>, wire: Wire, bufs: &[Buf]) -> Option<(usize, u64)> {
    let n = bufs.iter().position(|buf| !buf.more())? + 1;
    let bufs = &bufs[..n];
    let offload = bufs[0].offload;
    let bytes = bufs.iter().map(|buf| u64::from(buf.len())).sum::<u64>();
    if bytes == 0 || !wire.takes(&offload) {
        return None;
    }
    let chains = rooms.holding(bytes + u64::from(wire.hdr))?;
    if chains > 1 && !wire.mergeable {
        return None;
    }
    let header = Header { offload, num_buffers: chains as u16 };
    if let [packet] = bufs {
        let whole = rooms.scatter(chains, &header.as_bytes()[..wire.hdr as usize], packet);
        return whole.then_some((1, bytes));
    }
    let before = rooms.filled();
    let (mut rest, mut off, mut start) = (bufs, 0, wire.hdr);
    for i in 0..chains {
        let room = rooms.front().filter(|room| i > 0 || room.write(&header.as_bytes()[..start as usize]));
        let Some(room) = room else {
            // Not memory of the guest, or too short for a header.
            rooms.undo(before);
            return None;
        };
        let mut at = std::mem::take(&mut start);
        while let Some(buf) = rest.first().filter(|_| at < room.len()) {
            let n = room.copy_part(at, buf, off, buf.len());
            (at, off) = (at + n, off + n);
            if off == buf.len() {
                (rest, off) = (&rest[1..], 0);
            }
        }
        rooms.written(at);
    }
    Some((n, bytes))
}

/// Stores those bytes of `patch` that lie in the part of the packet which `room` got: from byte `at` of
/// the packet on, at `start..end` of the buffer.
fn patch_room(room: &mut Buf, patch: Patch, at: u32, start: u32, end: u32) {
    for (i, byte) in patch.bytes.into_iter().enumerate() {
        let target = (patch.at + i as u32).checked_sub(at).map(|off| off + start);
        if let Some(off) = target.filter(|&off| off < end) {
            let stored = room.poke(off, byte);
            debug_assert!(stored, "written just now");
        }
    }
}

/// The first packet of a batch.
struct Packet<'a> {
    batch: &'a Batch<Buf>,
    bufs: usize,
}

impl<'a> Packet<'a> {
    fn iter(&self) -> impl Iterator<Item = &'a Buf> + Clone {
        let batch = self.batch;
        (0..self.bufs).map(move |i| batch.get(i).expect("counted"))
    }

    /// Buffer and offset of byte `off` of the packet.
    fn seek(&self, mut off: u32) -> (usize, u32) {
        for (i, buf) in self.iter().enumerate() {
            if off < buf.len() {
                return (i, off);
            }
            off -= buf.len();
        }
        (self.bufs, 0)
    }

    /// Copies up to `len` bytes from `from` on, which moves on with them.
    fn copy(&self, from: &mut (usize, u32), room: &mut Buf, at: u32, len: u32) -> u32 {
        let buf = self.batch.get(from.0).expect("the part lies in the packet");
        let n = buf.copy_part(from.1, room, at, len);
        from.1 += n;
        if from.1 == buf.len() {
            *from = (from.0 + 1, 0);
        }
        n
    }
}

/// What became of a packet or a frame.
enum Sent {
    Bytes(u64),
    Never,
    Later,
}
