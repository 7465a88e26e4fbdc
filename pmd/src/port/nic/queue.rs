//! The data side: one queue pair of a NIC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan, Offload, Pool};

use super::keeper::Door;
use super::{Config, HEADER, Shared, Ways};
use crate::batch::{Batch, CAP};
use crate::nic::slots::{Held, Slots};
use crate::nic::{Arrival, Broken, Fate, Rings};
use crate::offload::segment::Segments;
use crate::offload::{self, Patch};
use crate::port::{Counters, PortError, Queue, Wanted, drop_packet, frames};
use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM, HDR_LEN};

/// Bytes of an empty buffer that the device is given.
pub(super) const ROOM: u32 = 2048;
/// Of its frame in the pool: no power of two, so that the first lines of frames fall on different sets of
/// a cache.
const FRAME: u32 = ROOM + 64;
/// Most buffers of a received packet: 64 KiB.
const MAX_PIECES: usize = 33;
/// Empty buffers that are waited for before the ring is filled again.
const REFILL: usize = 32;
/// Frames of ours in the ring of a device whose guest lends it none: not many, for they are filled before
/// the guest's are.
const FEW: usize = 64;
/// Bytes that a guest's buffer must have for a frame, and of one that has more, those that are used.
const LEAST: u32 = 256;
const LONGEST: u32 = 16384;
/// Descriptors of a ring that `rx` may have lent at a time, besides those in the ring.
const LENT: usize = 2048;
/// The device has a packet so long and sends none: it hangs.
pub(super) const HANGS: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// Looks without progress between two looks at the clock.
const LOOKS: u32 = 1024;

pub(super) struct NicQueue<R: Rings> {
    rings: R,
    shared: Arc<Shared>,
    /// Its rings are the device's. Otherwise new ones will be at the door.
    live: bool,
    door: Arc<Door<R>>,
    /// Receive: our frames, those with the device, and a packet of which not all has come.
    pool: Pool,
    posted: Slots,
    arrived: Batch<Buf>,
    damaged: bool,
    /// Of the last two, those that are a guest's.
    guests: usize,
    /// The ring is for a guest's.
    direct: bool,
    /// Transmit: what the device has, frames for copies, receipts of others that wait to be reaped.
    held: Held,
    copies: Pool,
    done: Batch<Loan>,
    copy_break: u32,
    max_frame: u32,
    /// Looks without progress, and since when.
    looks: u32,
    since: Option<Instant>,
    /// Where the search for what a halted device had has come to.
    swept: u16,
    ways: Arc<Ways>,
    counters: Arc<Counters>,
}

impl<R: Rings> NicQueue<R> {
    pub(super) fn new(
        rings: R,
        config: &Config,
        port: &str,
        shared: Arc<Shared>,
    ) -> Result<NicQueue<R>, PortError> {
        let (rx, tx) = (usize::from(rings.rx_size()), rings.tx_size());
        let pool = frames::pool(port, rx + LENT, FRAME, config.backing)?;
        let max_frame = config.mtu + HEADER;
        let copies = frames::pool(port, usize::from(tx).min(CAP * 2), max_frame, config.backing)?;
        let mut queue = NicQueue {
            posted: Slots::new(rings.rx_size() + 2),
            held: Held::new(tx, tx),
            rings,
            shared,
            live: true,
            door: Arc::default(),
            pool,
            arrived: Batch::default(),
            damaged: false,
            guests: 0,
            direct: config.direct,
            copies,
            done: Batch::default(),
            copy_break: config.copy_break.min(max_frame),
            max_frame,
            looks: 0,
            since: None,
            swept: 0,
            ways: Arc::default(),
            counters: Arc::default(),
        };
        queue.fill(1);
        Ok(queue)
    }

    /// Where new rings come in.
    pub(super) fn door(&self) -> Arc<Door<R>> {
        Arc::clone(&self.door)
    }

    /// How its packets go out, shared with the control side.
    pub(super) fn ways(&self) -> Arc<Ways> {
        Arc::clone(&self.ways)
    }

    /// Gives the device empty frames, if it has room for `least`.
    #[inline(always)]
    fn fill(&mut self, least: usize) {
        let mut most = usize::from(self.rings.rx_size());
        if self.direct {
            most = if self.guests > 0 { 0 } else { FEW.min(most / 2) };
        }
        let wanted = most.saturating_sub(self.posted.len());
        if wanted < least {
            return;
        }
        let mut n = 0;
        while n < wanted {
            let Some(mut frame) = self.pool.take() else { break };
            frame.truncate(ROOM);
            let id = self.rings.post(&frame);
            self.posted.put(id, frame);
            n += 1;
        }
        if n > 0 {
            self.rings.show_posted();
        }
    }

    /// Puts a packet that has come whole to the back of `out`; its bytes, unless it was damaged.
    #[inline(always)]
    fn deliver(&mut self, out: &mut Batch<Buf>) -> Option<u32> {
        if std::mem::take(&mut self.damaged) {
            while let Some(buf) = self.arrived.pop_front() {
                self.take_back(buf);
            }
            self.counters.rx_errors.add(1);
            return None;
        }
        let bytes = self.arrived.iter().map(Buf::len).sum();
        if self.guests > 0 {
            let ours = self.pool.owner();
            let guests = self.arrived.iter().filter(|buf| buf.owner() != ours).count();
            self.guests -= guests;
            self.ways.received.add(u64::from(guests == self.arrived.len()));
        }
        self.arrived.move_to(out);
        Some(bytes)
    }

    /// An empty buffer, or one of a packet that is no good, goes back to its owner.
    fn take_back(&mut self, buf: Buf) {
        if buf.owner() == self.pool.owner() {
            self.pool.settle(buf.finish(0));
        } else {
            self.guests -= 1;
            self.done.push(buf.finish(0));
        }
    }

    #[cold]
    fn fail(&mut self, broken: Broken) {
        self.counters.faults.add(1);
        self.shared.halt(&broken.0);
        self.shared.hang.signal();
    }

    /// Whether the device has nothing to do with this queue.
    #[inline(always)]
    fn down(&self) -> bool {
        !self.live || self.shared.halted()
    }

    /// Lets go of what a halted device had, and goes on with new rings.
    #[cold]
    fn renew(&mut self) {
        self.live = false;
        self.sweep();
        self.reclaim();
        if self.held.len() + self.posted.len() + self.arrived.len() > 0 {
            return;
        }
        if let Some(rings) = self.door.call() {
            self.rings = rings;
            (self.looks, self.since, self.swept, self.damaged) = (0, None, 0, false);
            self.live = true;
            self.fill(1);
        }
    }

    /// Takes empty buffers, and packets of which not all has come, back from a halted device, as far as there
    /// is room for the receipts of a guest's.
    fn reclaim(&mut self) {
        let mut id = 0;
        while self.done.room() > 0
            && let Some((at, buf)) = self.posted.take_any(id)
        {
            self.take_back(buf);
            id = at;
        }
        while self.done.room() > 0
            && let Some(buf) = self.arrived.pop_front()
        {
            self.take_back(buf);
        }
    }

    /// Sends the first packet of `batch`, `n` buffers and `bytes` bytes; `None`: not now.
    #[inline(always)]
    fn packet(&mut self, batch: &mut Batch<Buf>, n: usize, bytes: u32) -> Option<Sent> {
        let offload = batch.as_slice()[0].offload;
        let asks = offload.flags & HDR_F_NEEDS_CSUM != 0 || offload.gso_type != GSO_NONE;
        if asks {
            return self.unfinished(batch, n, bytes, offload);
        }
        if bytes > self.max_frame || bytes < 14 {
            return Some(Sent::NEVER);
        }
        if bytes <= self.copy_break || n > R::MOST {
            return self.copied(batch, n, bytes, None);
        }
        self.in_place(batch, n, bytes)
    }

    /// A packet that leaves something to be done.
    fn unfinished(&mut self, batch: &mut Batch<Buf>, n: usize, bytes: u32, offload: Offload) -> Option<Sent> {
        let large = offload.gso_type != GSO_NONE;
        let field = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
        if field > bytes || (!large && bytes > self.max_frame) {
            return Some(Sent::NEVER);
        }
        if n <= R::MOST && self.rings.completes(&offload) {
            return self.in_place(batch, n, bytes);
        }
        if large {
            return self.segments(batch, n, offload);
        }
        match offload::checksum(&offload, batch.iter().take(n)) {
            Ok(patch) => self.copied(batch, n, bytes, patch),
            Err(_) => Some(Sent::NEVER),
        }
    }

    /// The device reads it where it lies. Its buffers are taken.
    #[inline(always)]
    fn in_place(&mut self, batch: &mut Batch<Buf>, n: usize, bytes: u32) -> Option<Sent> {
        if self.held.room() < n {
            return self.too_long(batch, n, bytes);
        }
        let Fate::Taken(id) = self.rings.send(&batch.as_slice()[..n]) else {
            return self.too_long(batch, n, bytes);
        };
        for _ in 0..n {
            let buf = batch.pop_front().expect("the packet's buffers");
            self.held.put(id, buf);
        }
        self.ways.in_place.add(1);
        Some(Sent { frames: 1, bytes: bytes.into(), taken: true })
    }

    /// The device has no room for a packet. One that has none for it though it has nothing else never will:
    /// the packet is copied into one piece, or given up if it is more than that.
    #[cold]
    fn too_long(&mut self, batch: &Batch<Buf>, n: usize, bytes: u32) -> Option<Sent> {
        let offload = batch.as_slice()[0].offload;
        if self.held.len() > 0 {
            return None;
        }
        if n == 1 || offload.gso_type != GSO_NONE {
            return Some(Sent::NEVER);
        }
        let asks = offload.flags & HDR_F_NEEDS_CSUM != 0;
        let patch = if asks { offload::checksum(&offload, batch.iter().take(n)) } else { Ok(None) };
        match patch {
            Ok(patch) => self.copied(batch, n, bytes, patch),
            Err(_) => Some(Sent::NEVER),
        }
    }

    /// The device is given a copy, with `patch` stored in it.
    #[inline(always)]
    fn copied(&mut self, batch: &Batch<Buf>, n: usize, bytes: u32, patch: Option<Patch>) -> Option<Sent> {
        let mut frame = self.frame(bytes)?;
        let mut at = 0;
        for buf in batch.iter().take(n) {
            at += buf.copy_part(0, &mut frame, at, u32::MAX);
        }
        if let Some(Patch { at, bytes }) = patch {
            let stored = frame.poke(at, bytes);
            debug_assert!(stored, "checked against the packet's length");
        }
        self.own(frame).then_some(Sent { frames: 1, bytes: bytes.into(), taken: false })
    }

    /// A frame of our own for `bytes` bytes, if the device can be given one.
    #[inline(always)]
    fn frame(&mut self, bytes: u32) -> Option<Buf> {
        if self.held.room() == 0 {
            return None;
        }
        let mut frame = self.copies.take()?;
        frame.truncate(bytes);
        Some(frame)
    }

    /// Sends a frame of our own; `false`: there is no room, and it is back in its pool.
    #[inline(always)]
    fn own(&mut self, frame: Buf) -> bool {
        match self.rings.send(std::slice::from_ref(&frame)) {
            Fate::Taken(id) => {
                self.ways.copied.add(1);
                self.held.put(id, frame);
                true
            }
            Fate::Full => {
                self.copies.settle(frame.finish(0));
                false
            }
        }
    }

    /// Segments a large packet in software: all of its frames, or none.
    fn segments(&mut self, batch: &Batch<Buf>, n: usize, offload: Offload) -> Option<Sent> {
        let Some(mut segments) = Segments::of(&offload, batch.iter().take(n)) else {
            return Some(Sent::NEVER);
        };
        let (count, headers) = (segments.left() as usize, segments.headers().len() as u32);
        let longest = headers + u32::from(offload.gso_size);
        if longest > self.max_frame || count > usize::from(self.rings.tx_size()) / 2 {
            return Some(Sent::NEVER);
        }
        if self.copies.free() < count || self.held.room() < count || self.rings.free() < count {
            return None;
        }
        let mut sent = Sent { frames: 0, bytes: 0, taken: false };
        while let Some(part) = segments.advance(batch.iter().take(n)) {
            let mut frame = self.frame(headers + part.len)?;
            let mut at = frame.write(0, segments.headers()) as u32;
            let mut skip = part.from;
            for buf in batch.iter().take(n) {
                let off = skip.min(buf.len());
                skip -= off;
                at += buf.copy_part(off, &mut frame, at, headers + part.len - at);
            }
            sent.frames += 1;
            sent.bytes += u64::from(frame.len());
            let taken = self.own(frame);
            debug_assert!(taken, "there was room for all of them");
        }
        Some(sent)
    }

    /// Takes back what the device has sent.
    #[inline(always)]
    fn clean(&mut self) {
        let mut progress = false;
        while self.done.room() > R::MOST {
            match self.rings.sent() {
                Ok(Some(id)) => {
                    progress = true;
                    while let Some(buf) = self.held.take(id) {
                        self.home(buf);
                    }
                }
                Ok(None) => break,
                Err(broken) => return self.fail(broken),
            }
        }
        if progress || self.held.len() == 0 {
            (self.looks, self.since) = (0, None);
        } else {
            self.doubt();
        }
    }

    /// The device has packets, and has sent none since the last look.
    #[inline(always)]
    fn doubt(&mut self) {
        self.looks += 1;
        if self.looks < LOOKS {
            return;
        }
        self.looks = 0;
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > HANGS && self.done.room() > R::MOST {
            self.fail(Broken(format!("it has sent nothing for {} ms", HANGS.as_millis()).into()));
        }
    }

    /// A buffer that was sent goes back to its owner.
    #[inline(always)]
    fn home(&mut self, buf: Buf) {
        if buf.owner() == self.copies.owner() {
            self.copies.settle(buf.finish(0));
        } else {
            self.done.push(buf.finish(0));
        }
    }

    /// Takes back what a halted device had.
    #[cold]
    fn sweep(&mut self) {
        while self.done.room() > 0 {
            let Some(buf) = self.held.take_any(&mut self.swept) else { break };
            self.home(buf);
        }
    }
}

/// What became of one packet.
struct Sent {
    frames: u64,
    bytes: u64,
    /// Its buffers are with the device; otherwise it is to be finished.
    taken: bool,
}

impl Sent {
    const NEVER: Sent = Sent { frames: 0, bytes: 0, taken: false };
}

impl<R: Rings + 'static> Queue for NicQueue<R> {
    #[inline]
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        if self.down() {
            return 0;
        }
        let (mut packets, mut sum) = (0, 0);
        // A packet that is damaged gives a guest receipts.
        while packets < out.burst() && out.room().min(self.done.room()) >= MAX_PIECES {
            let buf = match self.rings.received(&mut self.posted) {
                Ok(None) => break,
                Ok(Some(Arrival::Piece(buf))) => buf,
                Ok(Some(Arrival::Damaged(buf))) => {
                    self.damaged = true;
                    buf
                }
                Err(broken) => {
                    self.fail(broken);
                    break;
                }
            };
            let last = !buf.more();
            if self.arrived.is_empty() && last && !self.damaged {
                if self.guests > 0 && buf.owner() != self.pool.owner() {
                    self.guests -= 1;
                    self.ways.received.add(1);
                }
                sum += u64::from(buf.len());
                out.push(buf);
                packets += 1;
                continue;
            }
            self.arrived.push(buf);
            // One that has no end is a fault of the device: it is cut off, and counted as damaged.
            let endless = self.arrived.len() == MAX_PIECES && !last;
            self.damaged |= endless;
            if (last || endless)
                && let Some(bytes) = self.deliver(out)
            {
                packets += 1;
                sum += u64::from(bytes);
            }
        }
        self.fill(REFILL);
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(sum);
        packets
    }

    #[inline]
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let halted = self.down();
        let (mut packets, mut frames, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            let sent = if halted { Some(Sent::NEVER) } else { self.packet(batch, n, bytes) };
            let Some(sent) = sent else { break };
            if !sent.taken {
                drop_packet(batch, &mut self.done);
            }
            self.counters.tx_errors.add(u64::from(sent.frames == 0));
            packets += 1;
            frames += sent.frames;
            sum += sent.bytes;
        }
        if frames > 0 {
            self.rings.show_sent();
        }
        self.counters.tx_packets.add(frames);
        self.counters.tx_bytes.add(sum);
        packets
    }

    #[inline]
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.down() {
            self.renew();
        } else if self.held.len() > 0 {
            self.clean();
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    #[inline]
    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.pool.settle_front(loans);
    }

    fn lent(&self) -> u32 {
        self.pool.out() - (self.posted.len() + self.arrived.len() - self.guests) as u32
    }

    fn held(&self) -> u32 {
        (self.held.len() + self.done.len() + self.guests) as u32
    }

    fn wants(&self) -> Option<Wanted> {
        if !self.direct || self.down() {
            return None;
        }
        let free = usize::from(self.rings.rx_size()) - self.posted.len();
        let (writes, frame) = (self.rings.writes(), self.max_frame);
        let whole = if writes == 0 || writes >= frame { HDR_LEN + writes.max(frame) } else { u32::MAX };
        let most = if free < REFILL { 0 } else { free };
        Some(Wanted { most, least: HDR_LEN + writes.max(LEAST), whole })
    }

    fn post(&mut self, empty: &mut Batch<Buf>) -> usize {
        let (mut n, room) = (0, usize::from(self.rings.rx_size()) - self.posted.len());
        while n < room && self.done.room() > 0 && !self.down() {
            let Some(mut buf) = empty.pop_front() else { break };
            buf.truncate(LONGEST);
            self.guests += 1;
            n += 1;
            if buf.len() < HDR_LEN + self.rings.writes() || !(R::HEADER || buf.skip_header()) {
                // Against what was wanted: the device would write behind its end.
                self.take_back(buf);
                continue;
            }
            let id = self.rings.post(&buf);
            self.posted.put(id, buf);
        }
        if n > 0 {
            self.rings.show_posted();
        }
        n
    }

    fn unpost(&mut self) {
        if self.guests > 0 {
            self.shared.let_go();
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl<R: Rings> Drop for NicQueue<R> {
    fn drop(&mut self) {
        self.shared.halt("a queue of it is gone");
        let mut id = 0;
        while let Some((at, buf)) = self.posted.take_any(id) {
            id = at;
            if buf.owner() == self.pool.owner() {
                self.pool.settle(buf.finish(0));
            }
            // A guest's stays out, as what is to be sent: its lender keeps its memory.
        }
        while let Some(buf) = self.arrived.pop_front() {
            if buf.owner() == self.pool.owner() {
                self.pool.settle(buf.finish(0));
            }
        }
        let mut from = 0;
        while let Some(buf) = self.held.take_any(&mut from) {
            if buf.owner() == self.copies.owner() {
                self.copies.settle(buf.finish(0));
            }
            // Another's stays out: its lender keeps its memory.
        }
    }
}
