//! The data side of a client: its buffers are its own, and the server reads and fills them where they are.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use hugepages::{Buf, Loan, Monitor, Pool};

use super::door::Door;
use super::ring::{Desc, Fault, MAX_CHAIN, Packet, Ring, ahead};
use crate::batch::Batch;
use crate::offload::Patch;
use crate::offload::segment::Segment;
use crate::port::frames::Work;
use crate::port::{Counters, Queue, drop_packet, frames};
use crate::spec::net::MAX_FRAME;
use crate::sys::eventfd::EventFd;

/// Frames that receiving leaves for sending.
const RESERVE: usize = 64;

/// The rings of a queue while a server runs them.
pub(super) struct Live {
    pub(super) send: Option<Lane>,
    pub(super) receive: Option<Lane>,
    /// Wakes the server, and us.
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
}

/// A ring and the buffers in it, by place.
pub(super) struct Lane {
    ring: Ring,
    slots: Box<[Option<Buf>]>,
    /// The next place to put a buffer, and the first that the server has not given back.
    next: u16,
    last: u16,
}

impl Lane {
    pub(super) fn new(ring: Ring) -> Lane {
        let slots = (0..ring.size()).map(|_| None).collect();
        Lane { ring, slots, next: 0, last: 0 }
    }

    #[inline(always)]
    fn free(&self) -> u16 {
        self.ring.size() - self.next.wrapping_sub(self.last)
    }

    #[inline(always)]
    fn put(&mut self, buf: Buf, desc: Desc) {
        self.ring.put(self.next, desc);
        self.slots[self.ring.at(self.next)] = Some(buf);
        self.next = self.next.wrapping_add(1);
    }

    /// Buffers that the server has given back.
    #[inline(always)]
    fn returned(&self) -> Result<u16, Fault> {
        ahead(self.last, self.ring.tail(), self.next.wrapping_sub(self.last))
    }

    /// The next buffer that it has given back.
    #[inline(always)]
    fn take(&mut self) -> Buf {
        let at = self.ring.at(self.last);
        self.last = self.last.wrapping_add(1);
        self.slots[at].take().expect("put there, and counted by returned()")
    }
}

/// One queue of a client.
pub(super) struct ClientQueue {
    /// For the log.
    name: String,
    live: Option<Box<Live>>,
    pool: Pool,
    /// Address of the pool's first byte, and the number of its region.
    base: u64,
    region: u16,
    /// Bytes of a buffer, as the server is told.
    size: u32,
    /// Buffers in rings.
    inside: u32,
    packet: Packet,
    /// Receipts of what was copied.
    done: Batch<Loan>,
    door: Arc<Door<Live>>,
    counters: Arc<Counters>,
}

/// What became of a packet.
enum Sent {
    /// Its buffers are in the ring.
    Whole,
    /// Its buffers are done with.
    Copied,
    Later,
    Never,
}

impl ClientQueue {
    pub(super) fn new(name: String, pool: Pool, region: u16, size: u32, door: Arc<Door<Live>>) -> Self {
        let base = pool.table().regions().first().map_or(0, |r| r.map.address() + r.at as u64);
        let (packet, done) = (Packet::new(), Batch::default());
        let counters = Arc::default();
        ClientQueue { name, live: None, pool, base, region, size, inside: 0, packet, done, door, counters }
    }

    /// Takes in what the control side left at the door.
    #[cold]
    fn answer(&mut self) {
        let Some(mail) = self.door.look() else { return };
        self.drop_rings();
        self.live = mail;
        self.fill();
    }

    /// Lets go of the rings: the buffers in them are free.
    fn drop_rings(&mut self) {
        let Some(live) = self.live.take() else { return };
        for lane in [live.send, live.receive].into_iter().flatten() {
            for buf in lane.slots.into_iter().flatten() {
                self.pool.settle(buf.finish(0));
                self.inside -= 1;
            }
        }
    }

    /// The server broke the rules: no more of it, until the control side has new rings.
    #[cold]
    fn retire(&mut self, fault: Fault) {
        self.counters.faults.add(1);
        tracing::error!("{}: rings retired: {fault}; the connection is begun anew", self.name);
        self.drop_rings();
        self.door.complain();
    }

    /// Puts empty buffers into the ring to receive, as far as enough are left to send with.
    #[inline(always)]
    fn fill(&mut self) {
        let Some(lane) = self.live.as_mut().and_then(|live| live.receive.as_mut()) else { return };
        let n = usize::from(lane.free()).min(self.pool.free().saturating_sub(RESERVE));
        // A few at a time, so that publishing is shared between them.
        if n < usize::from(lane.ring.size() / 8).max(1) {
            return;
        }
        for _ in 0..n {
            let mut buf = self.pool.take().expect("counted");
            buf.truncate(self.size);
            let offset = (buf.iova() - self.base) as u32;
            lane.put(buf, Desc { next: false, region: self.region, len: self.size, offset });
        }
        self.inside += n as u32;
        lane.ring.set_head(lane.next);
    }

    /// Has back what was sent.
    #[inline(always)]
    fn complete(&mut self) -> Result<(), Fault> {
        let Some(lane) = self.live.as_mut().and_then(|live| live.send.as_mut()) else { return Ok(()) };
        let n = lane.returned()?;
        for _ in 0..n {
            let buf = lane.take();
            self.pool.settle(buf.finish(0));
        }
        self.inside -= u32::from(n);
        Ok(())
    }

    /// Takes the next received packet to the back of `out`: its bytes; 0, if it was none.
    #[inline(always)]
    fn next_packet(&mut self, out: &mut Batch<Buf>, available: &mut u16) -> Result<Option<u64>, Fault> {
        let Some(lane) = self.live.as_mut().and_then(|live| live.receive.as_mut()) else { return Ok(None) };
        let whole = *available > 0 && self.packet.read(&lane.ring, lane.last, *available)?;
        let n = self.packet.parts.len();
        if !whole || n > out.room() {
            return Ok(None);
        }
        if let Some(part) = self.packet.parts.iter().find(|part| part.len > self.size) {
            return Err(Fault::Length { len: part.len, room: self.size });
        }
        let (last, wanted) = (self.packet.last(), self.packet.is_frame());
        for (i, part) in self.packet.parts.iter().enumerate() {
            let mut buf = lane.take();
            if wanted && part.len > 0 {
                buf.truncate(part.len);
                buf.set_more(i < last);
                buf.prefetch();
                out.push(buf);
            } else {
                self.pool.settle(buf.finish(0));
            }
        }
        self.inside -= n as u32;
        *available -= n as u16;
        Ok(Some(if wanted { self.packet.bytes } else { 0 }))
    }

    fn receive(&mut self, out: &mut Batch<Buf>) -> (usize, Result<(), Fault>) {
        let Some(lane) = self.live.as_ref().and_then(|live| live.receive.as_ref()) else {
            return (0, Ok(()));
        };
        let mut available = match lane.returned() {
            Ok(available) => available,
            Err(fault) => return (0, Err(fault)),
        };
        let (mut packets, mut sum, mut errors) = (0, 0, 0);
        let fate = loop {
            if packets == out.burst() {
                break Ok(());
            }
            match self.next_packet(out, &mut available) {
                Ok(None) => break Ok(()),
                Ok(Some(0)) => errors += 1,
                Ok(Some(bytes)) => {
                    packets += 1;
                    sum += bytes;
                }
                Err(fault) => break Err(fault),
            }
        };
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(sum);
        }
        if errors > 0 {
            self.counters.rx_errors.add(errors);
        }
        (packets, fate)
    }

    /// Sends the first packet, `n` buffers.
    #[inline(always)]
    fn packet(&mut self, lane: &mut Lane, batch: &mut Batch<Buf>, n: usize, bytes: u32) -> Sent {
        if bytes == 0 || bytes > MAX_FRAME {
            return Sent::Never;
        }
        let bufs = &batch.as_slice()[..n];
        let asked = bufs[0].offload;
        let own = |buf: &Buf| buf.owner() == self.pool.owner() && (1..=self.size).contains(&buf.len());
        if asked.is_none() && n <= MAX_CHAIN && bufs.iter().all(own) {
            if usize::from(lane.free()) < n {
                return Sent::Later;
            }
            for _ in 0..n {
                let buf = batch.pop_front().expect("counted");
                let (len, offset) = (buf.len(), (buf.iova() - self.base) as u32);
                let next = buf.more();
                lane.put(buf, Desc { next, region: self.region, len, offset });
            }
            self.inside += n as u32;
            return Sent::Whole;
        }
        match Work::on(bufs) {
            Work::Never => Sent::Never,
            Work::Frame(patch) => match self.room(lane, 1, bytes) {
                Sent::Whole => {
                    self.copy(lane, &[], bufs, Segment { from: 0, len: bytes }, patch);
                    Sent::Copied
                }
                other => other,
            },
            Work::Frames(mut segments) => {
                let longest = segments.headers().len() as u32 + u32::from(asked.gso_size);
                match self.room(lane, segments.left() as usize, longest) {
                    Sent::Whole => {}
                    other => return other,
                }
                while let Some(part) = segments.advance(bufs.iter()) {
                    self.copy(lane, segments.headers(), bufs, part, None);
                }
                Sent::Copied
            }
        }
    }

    /// Whether there is room for `n` frames of `len` bytes: `Whole`, if there is.
    #[inline(always)]
    fn room(&self, lane: &Lane, n: usize, len: u32) -> Sent {
        let each = len.div_ceil(self.size) as usize;
        if each > MAX_CHAIN || n * each > usize::from(lane.ring.size()) {
            return Sent::Never;
        }
        let full = usize::from(lane.free()) < n * each || self.pool.free() < n * each;
        if full { Sent::Later } else { Sent::Whole }
    }

    /// Copies `headers` and a part of a packet into buffers of its own, and puts them into the ring.
    #[inline(always)]
    fn copy(&mut self, lane: &mut Lane, headers: &[u8], bufs: &[Buf], part: Segment, patch: Option<Patch>) {
        let (size, base, region) = (self.size, self.base, self.region);
        let (pool, inside) = (&mut self.pool, &mut self.inside);
        let take = || {
            let mut buf = pool.take().expect("room() counted them");
            buf.truncate(size);
            buf
        };
        frames::copy_into(take, headers, bufs, part, patch, |buf, next| {
            let (len, offset) = (buf.len(), (buf.iova() - base) as u32);
            lane.put(buf, Desc { next, region, len, offset });
            *inside += 1;
        });
    }

    fn send(&mut self, lane: &mut Lane, batch: &mut Batch<Buf>) -> usize {
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            match self.packet(lane, batch, n, bytes) {
                Sent::Later => break,
                Sent::Never => {
                    self.counters.tx_errors.add(1);
                    drop_packet(batch, &mut self.done);
                }
                fate => {
                    sent += 1;
                    sum += u64::from(bytes);
                    if let Sent::Copied = fate {
                        batch.finish_front(n, &mut self.done);
                    }
                }
            }
            taken += 1;
        }
        if sent > 0 {
            lane.ring.set_head(lane.next);
            self.counters.tx_packets.add(sent);
            self.counters.tx_bytes.add(sum);
        }
        taken
    }
}

impl Queue for ClientQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let (packets, fate) = self.receive(out);
        match fate {
            Ok(()) => self.fill(),
            Err(fault) => self.retire(fault),
        }
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        if let Err(fault) = self.complete() {
            self.retire(fault);
        }
        // Out of the queue for as long as its lane is borrowed.
        let Some(mut live) = self.live.take() else { return 0 };
        let taken = live.send.as_mut().map_or(0, |lane| {
            let before = lane.next;
            let taken = self.send(lane, batch);
            if lane.next != before && lane.ring.wants_signal() {
                live.kick.signal();
                self.counters.calls.add(1);
            }
            taken
        });
        self.live = Some(live);
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.door.knocked() {
            self.answer();
        }
        // Buffers come home also when nothing more is to be sent.
        if self.pool.free() <= RESERVE
            && let Err(fault) = self.complete()
        {
            self.retire(fault);
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
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

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        if !self.done.is_empty() {
            return false;
        }
        match self.live.as_ref().and_then(|live| live.receive.as_ref()) {
            // Received buffers that are still in their ring wait for room, or for the rest of a packet.
            Some(lane) if lane.returned() != Ok(0) || lane.free() > lane.ring.size() / 4 => return false,
            Some(lane) => lane.ring.monitor_tail(lane.last, monitor),
            None => monitor.clear(),
        }
        true
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        if self.door.knocking() {
            return false;
        }
        let ClientQueue { live, door, .. } = self;
        if let Some(live) = live {
            if let Some(lane) = &live.receive {
                lane.ring.mask(false);
                if lane.returned() != Ok(0) {
                    return false;
                }
            }
            wait(live.call.as_fd());
        }
        wait(door.bell());
        true
    }

    fn wake(&mut self, rung: bool) {
        if rung {
            self.door.hush();
        }
        if let Some(live) = &self.live {
            if rung {
                live.call.clear();
            }
            if let Some(lane) = &live.receive {
                lane.ring.mask(true);
            }
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for ClientQueue {
    fn drop(&mut self) {
        self.drop_rings();
    }
}
