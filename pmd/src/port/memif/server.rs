//! The data side of a server: the buffers are the client's. What it sends is lent where it lies, and given back
//! in order when the receipts are there; what it is sent is copied into its buffers.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use hugepages::{Buf, Lender, Loan, Monitor};

use super::door::Door;
use super::ring::{Desc, Fault, MAX_CHAIN, Packet, Ring, ahead};
use crate::batch::Batch;
use crate::offload::Patch;
use crate::offload::segment::Segment;
use crate::port::frames::Work;
use crate::port::{Counters, Queue, drop_packet, frames};
use crate::spec::net::MAX_FRAME;
use crate::sys::eventfd::EventFd;

/// Where in the table of a client's memory a region begins, by its number: offsets have 32 bits, and so have
/// lengths.
pub(super) const REGION_SHIFT: u32 = 33;

/// Where the buffer of a descriptor lies.
#[inline(always)]
fn gpa(desc: &Desc) -> u64 {
    (u64::from(desc.region) << REGION_SHIFT) + u64::from(desc.offset)
}

/// The rings of a queue while a client is there.
pub(super) struct Live {
    pub(super) lender: Lender,
    pub(super) receive: Option<(Inlet, EventFd)>,
    pub(super) send: Option<(Outlet, EventFd)>,
}

/// The ring that the client sends by.
pub(super) struct Inlet {
    ring: Ring,
    /// Which of its places have come home, and wait for those before.
    home: Box<[bool]>,
    /// The next place to lend, and the first that is not given back.
    next: u16,
    tail: u16,
}

impl Inlet {
    pub(super) fn new(ring: Ring) -> Inlet {
        ring.set_tail(0);
        ring.mask(true);
        Inlet { home: vec![false; ring.size().into()].into(), ring, next: 0, tail: 0 }
    }

    #[inline(always)]
    fn available(&self) -> Result<u16, Fault> {
        let out = self.next.wrapping_sub(self.tail);
        ahead(self.next, self.ring.head(), self.ring.size() - out)
    }

    /// Takes the mark of a chain off the packet that begins at the next place. DPDK's client (22.11) sets it and
    /// never clears it: packets that come to lie there later would run together.
    #[cold]
    fn unchain(&self, packet: &Packet) {
        for (i, part) in (0..).zip(&packet.parts).filter(|(_, part)| part.next) {
            self.ring.put(self.next.wrapping_add(i), Desc { next: false, ..*part });
        }
    }

    #[inline(always)]
    fn come_home(&mut self, place: u16) {
        self.home[usize::from(place)] = true;
    }

    /// Gives back what has come home, in order.
    #[inline(always)]
    fn give_back(&mut self) {
        let before = self.tail;
        while self.tail != self.next && std::mem::take(&mut self.home[self.ring.at(self.tail)]) {
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            self.ring.set_tail(self.tail);
        }
    }
}

/// The ring with the client's empty buffers.
pub(super) struct Outlet {
    ring: Ring,
    tail: u16,
    /// The client's head as last seen.
    head: u16,
    /// The buffers that the packet goes to.
    pieces: Vec<Desc>,
}

impl Outlet {
    pub(super) fn new(ring: Ring) -> Outlet {
        ring.set_tail(0);
        Outlet { pieces: Vec::with_capacity(ring.size().into()), ring, tail: 0, head: 0 }
    }

    #[inline(always)]
    fn available(&self) -> u16 {
        self.head.wrapping_sub(self.tail)
    }

    #[inline(always)]
    fn look(&mut self) -> Result<(), Fault> {
        let head = self.ring.head();
        ahead(self.tail, head, self.ring.size())?;
        self.head = head;
        Ok(())
    }

    /// Reads the descriptors that `n` frames of at most `len` bytes take: whether there are as many.
    fn gather(&mut self, n: usize, len: u32) -> Result<Sent, Fault> {
        self.pieces.clear();
        for _ in 0..n {
            let (mut left, before) = (len, self.pieces.len());
            while left > 0 {
                let i = self.pieces.len();
                if i - before == MAX_CHAIN || i == usize::from(self.ring.size()) {
                    return Ok(Sent::Never);
                }
                if i == usize::from(self.available()) {
                    return Ok(Sent::Later);
                }
                let desc = self.ring.desc(self.tail.wrapping_add(i as u16));
                if desc.len == 0 {
                    return Err(Fault::Empty);
                }
                left = left.saturating_sub(desc.len);
                self.pieces.push(desc);
            }
        }
        Ok(Sent::Copied)
    }
}

/// One queue of a server.
pub(super) struct ServerQueue {
    /// For the log.
    name: String,
    live: Option<Box<Live>>,
    /// Of clients before, whose buffers are not all home.
    left: Vec<Lender>,
    packet: Packet,
    /// Buffers of the packet that is being lent.
    parts: Vec<Buf>,
    done: Batch<Loan>,
    door: Arc<Door<Live>>,
    counters: Arc<Counters>,
}

/// What became of a packet.
enum Sent {
    Copied,
    Later,
    Never,
}

impl ServerQueue {
    pub(super) fn new(name: String, door: Arc<Door<Live>>) -> ServerQueue {
        let (packet, parts) = (Packet::new(), Vec::with_capacity(MAX_CHAIN));
        let (done, counters) = (Batch::default(), Arc::default());
        ServerQueue { name, live: None, left: Vec::new(), packet, parts, done, door, counters }
    }

    /// Takes in what the control side left at the door.
    #[cold]
    fn answer(&mut self) {
        let Some(mail) = self.door.look() else { return };
        self.drop_rings();
        self.live = mail;
    }

    /// Lets go of the rings; what was lent still comes home.
    fn drop_rings(&mut self) {
        if let Some(live) = self.live.take()
            && live.lender.out() > 0
        {
            self.left.push(live.lender);
        }
    }

    /// The client broke the rules: no more of it.
    #[cold]
    fn retire(&mut self, fault: Fault) {
        self.counters.faults.add(1);
        tracing::error!("{}: rings retired: {fault}; the client is sent away", self.name);
        self.drop_rings();
        self.door.complain();
    }

    fn receive(&mut self, out: &mut Batch<Buf>) -> (usize, Result<(), Fault>) {
        let Some(live) = self.live.as_mut() else { return (0, Ok(())) };
        let Some((inlet, _)) = &mut live.receive else { return (0, Ok(())) };
        let mut available = match inlet.available() {
            Ok(available) => available,
            Err(fault) => return (0, Err(fault)),
        };
        let (mut packets, mut sum, mut errors) = (0, 0, 0);
        let fate = loop {
            if packets == out.burst() || available == 0 {
                break Ok(());
            }
            let whole = match self.packet.read(&inlet.ring, inlet.next, available) {
                Ok(whole) => whole,
                Err(fault) => break Err(fault),
            };
            let n = self.packet.parts.len() as u16;
            if !whole || usize::from(n) > out.room() {
                break Ok(());
            }
            if n > 1 {
                inlet.unchain(&self.packet);
            }
            if self.packet.is_frame() {
                if let Err(fault) = lend(&live.lender, inlet, &self.packet, &mut self.parts) {
                    break Err(fault);
                }
                self.parts.drain(..).for_each(|buf| out.push(buf));
                packets += 1;
                sum += self.packet.bytes;
            } else {
                (0..n).for_each(|i| inlet.home[inlet.ring.at(inlet.next.wrapping_add(i))] = true);
                errors += 1;
            }
            inlet.next = inlet.next.wrapping_add(n);
            available -= n;
        };
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(sum);
        }
        if errors > 0 {
            inlet.give_back();
            self.counters.rx_errors.add(errors);
        }
        (packets, fate)
    }

    fn send(&mut self, live: &mut Live, batch: &mut Batch<Buf>) -> (usize, Result<(), Fault>) {
        let Some((outlet, kick)) = &mut live.send else { return (0, Ok(())) };
        if let Err(fault) = outlet.look() {
            return (0, Err(fault));
        }
        let before = outlet.tail;
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        let mut fate = Ok(());
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            match packet(&live.lender, outlet, &batch.as_slice()[..n], bytes) {
                Ok(Sent::Copied) => {
                    sent += 1;
                    sum += u64::from(bytes);
                    batch.finish_front(n, &mut self.done);
                }
                Ok(Sent::Never) => {
                    self.counters.tx_errors.add(1);
                    drop_packet(batch, &mut self.done);
                }
                Ok(Sent::Later) => break,
                Err(fault) => {
                    fate = Err(fault);
                    break;
                }
            }
            taken += 1;
        }
        if outlet.tail != before {
            outlet.ring.set_tail(outlet.tail);
            self.counters.tx_packets.add(sent);
            self.counters.tx_bytes.add(sum);
            if outlet.ring.wants_signal() {
                kick.signal();
                self.counters.calls.add(1);
            }
        }
        (taken, fate)
    }
}

/// Lends the parts of a packet that have bytes; those that have none are home at once.
#[inline(always)]
fn lend(lender: &Lender, inlet: &mut Inlet, packet: &Packet, parts: &mut Vec<Buf>) -> Result<(), Fault> {
    let last = packet.last();
    for (i, part) in packet.parts.iter().enumerate() {
        let place = inlet.ring.at(inlet.next.wrapping_add(i as u16)) as u16;
        if part.len == 0 {
            inlet.come_home(place);
            continue;
        }
        match lender.lend_writable(gpa(part), part.len, place) {
            Ok(mut buf) => {
                buf.set_more(i < last);
                buf.prefetch();
                parts.push(buf);
            }
            Err(outside) => {
                parts.drain(..).for_each(|buf| _ = lender.settle(buf.finish(0)));
                return Err(outside.into());
            }
        }
    }
    Ok(())
}

/// Copies a packet into buffers of the client.
#[inline(always)]
fn packet(lender: &Lender, outlet: &mut Outlet, bufs: &[Buf], bytes: u32) -> Result<Sent, Fault> {
    if bytes == 0 || bytes > MAX_FRAME {
        return Ok(Sent::Never);
    }
    let asked = bufs[0].offload;
    if bufs.len() == 1 && asked.is_none() {
        if outlet.available() == 0 {
            return Ok(Sent::Later);
        }
        let desc = outlet.ring.desc(outlet.tail);
        if desc.len >= bytes {
            let room = lender.reach().room(gpa(&desc), bytes);
            let room = room.ok_or(hugepages::OutOfRange { gpa: gpa(&desc), len: bytes.into() })?;
            room.copy_part(0, &bufs[0], 0, bytes);
            outlet.ring.put(outlet.tail, Desc { next: false, len: bytes, ..desc });
            outlet.tail = outlet.tail.wrapping_add(1);
            return Ok(Sent::Copied);
        }
    }
    match Work::on(bufs) {
        Work::Never => Ok(Sent::Never),
        Work::Frame(patch) => {
            let fate = outlet.gather(1, bytes)?;
            if let Sent::Copied = fate {
                let mut used = 0;
                copy(lender, outlet, &mut used, &[], bufs, (Segment { from: 0, len: bytes }, patch))?;
            }
            Ok(fate)
        }
        Work::Frames(mut segments) => {
            let longest = segments.headers().len() as u32 + u32::from(asked.gso_size);
            let fate = outlet.gather(segments.left() as usize, longest)?;
            if let Sent::Copied = fate {
                let mut used = 0;
                while let Some(part) = segments.advance(bufs.iter()) {
                    copy(lender, outlet, &mut used, segments.headers(), bufs, (part, None))?;
                }
            }
            Ok(fate)
        }
    }
}

/// Copies one frame into the pieces that were gathered, from number `used` on. A piece that is no memory of the
/// client's is a fault, and nothing of the frame is in the ring then.
fn copy(
    lender: &Lender,
    outlet: &mut Outlet,
    used: &mut usize,
    headers: &[u8],
    bufs: &[Buf],
    (part, patch): (Segment, Option<Patch>),
) -> Result<(), Fault> {
    let Outlet { ring, tail, pieces, .. } = outlet;
    let pieces = &pieces[*used..];
    // Looked at before, because what is handed to the copy must be there.
    let mut left = headers.len() as u32 + part.len;
    for desc in pieces {
        if left == 0 {
            break;
        }
        lender.settle(lender.lend_writable(gpa(desc), desc.len, 0)?.finish(0));
        left = left.saturating_sub(desc.len);
    }
    let (mut taken, mut filled) = (0, 0);
    let take = || {
        let desc = &pieces[taken];
        taken += 1;
        lender.lend_writable(gpa(desc), desc.len, 0).expect("looked at")
    };
    let each = |buf: Buf, next: bool| {
        let desc = Desc { next, len: buf.len(), ..pieces[filled] };
        ring.put(tail.wrapping_add(filled as u16), desc);
        filled += 1;
        lender.settle(buf.finish(0));
    };
    frames::copy_into(take, headers, bufs, part, patch, each);
    *used += filled;
    *tail = tail.wrapping_add(filled as u16);
    Ok(())
}

impl Queue for ServerQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let (packets, fate) = self.receive(out);
        if let Err(fault) = fate {
            self.retire(fault);
        }
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        // Out of the queue for as long as its rings are borrowed.
        let Some(mut live) = self.live.take() else { return 0 };
        let (taken, fate) = self.send(&mut live, batch);
        self.live = Some(live);
        if let Err(fault) = fate {
            self.retire(fault);
        }
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        // The next client waits until the buffers of the one before are home.
        if self.left.is_empty() && self.door.knocked() {
            self.answer();
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        // Receipts may alternate between clients: what is at the front decides.
        self.left.retain(|left| {
            left.settle_front(loans, |_, _| {});
            left.out() > 0
        });
        if let Some(live) = &mut self.live
            && let Some((inlet, _)) = &mut live.receive
        {
            live.lender.settle_front(loans, |place, _| inlet.come_home(place));
            inlet.give_back();
        }
    }

    fn lent(&self) -> u32 {
        let live = self.live.as_ref().map_or(0, |live| live.lender.out());
        live + self.left.iter().map(Lender::out).sum::<u32>()
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        if !self.done.is_empty() || !self.left.is_empty() {
            return false;
        }
        match self.live.as_ref().and_then(|live| live.receive.as_ref()) {
            Some((inlet, _)) if inlet.available() != Ok(0) => return false,
            Some((inlet, _)) => inlet.ring.monitor_head(inlet.next, monitor),
            None => monitor.clear(),
        }
        true
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        if self.door.knocking() {
            return false;
        }
        let ServerQueue { live, door, .. } = self;
        if let Some((inlet, call)) = live.as_ref().and_then(|live| live.receive.as_ref()) {
            inlet.ring.mask(false);
            if inlet.available() != Ok(0) {
                return false;
            }
            wait(call.as_fd());
        }
        wait(door.bell());
        true
    }

    fn wake(&mut self, rung: bool) {
        if rung {
            self.door.hush();
        }
        if let Some((inlet, call)) = self.live.as_ref().and_then(|live| live.receive.as_ref()) {
            if rung {
                call.clear();
            }
            inlet.ring.mask(true);
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for ServerQueue {
    fn drop(&mut self) {
        self.drop_rings();
    }
}
