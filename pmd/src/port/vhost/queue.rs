//! The data side of a vhost port: one queue pair.
//!
//! `rx` lends chains of the guest's transmit ring with the virtio-net header taken off; `tx` copies
//! packets into chains of the guest's receive ring, straight from the lender's memory, so a packet
//! from guest to guest is copied once. Both publish once per burst.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hugepages::{Buf, Loan, Offload};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::door::{Inside, Side};
use crate::batch::{Batch, CAP};
use crate::port::{Counters, Queue};
use crate::spec::net;
use crate::sys::eventfd::EventFd;
use crate::vring::{AnyVring, Layout, Vring};
use crate::with_ring;

/// Bytes one ring may lend in one burst, so that a guest of large frames leaves the others their share:
/// the weight of the kernel's vhost-net.
pub(crate) const WEIGHT: u64 = 0x80000;

/// virtio 1.3 §5.1.6: the header in front of a frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    offload: Offload,
    num_buffers: u16,
}

/// How frames are wrapped on a ring, by its negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    /// Bytes of the header: 12, or 10 for a legacy driver without mergeable buffers.
    hdr: u32,
    mergeable: bool,
    features: u64,
}

impl Wire {
    /// By the features of the connection.
    pub(crate) fn of(features: u64) -> Wire {
        let mergeable = features & net::F_MRG_RXBUF != 0;
        let modern = features & crate::spec::virtio::F_VERSION_1 != 0;
        let hdr = if mergeable || modern { net::HDR_LEN } else { net::HDR_LEN_LEGACY };
        Wire { hdr, mergeable, features }
    }

    fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// What of a guest's header is to be believed: nothing that points outside the frame or was not
    /// negotiated, and no segmentation without a checksum to complete (§5.1.6.2).
    fn believe(self, offload: Offload, frame: u32) -> Offload {
        let end = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
        let wanted = self.has(net::F_CSUM) && offload.flags & net::HDR_F_NEEDS_CSUM != 0;
        if !wanted || end > frame {
            return Offload::default();
        }
        let negotiated = match offload.gso_type & !net::GSO_ECN {
            net::GSO_TCPV4 => self.has(net::F_HOST_TSO4),
            net::GSO_TCPV6 => self.has(net::F_HOST_TSO6),
            net::GSO_UDP => self.has(net::F_HOST_UFO),
            net::GSO_UDP_L4 => self.has(net::F_HOST_USO),
            _ => false,
        };
        let flags = net::HDR_F_NEEDS_CSUM;
        if negotiated && offload.gso_size > 0 {
            let hdr_len = (u32::from(offload.hdr_len)).min(frame) as u16;
            Offload { flags, hdr_len, ..offload }
        } else {
            Offload { flags, gso_type: 0, gso_size: 0, hdr_len: 0, ..offload }
        }
    }

    /// Whether the guest takes the packet as it is.
    fn takes(self, offload: &Offload) -> bool {
        let segments = match offload.gso_type & !net::GSO_ECN {
            net::GSO_NONE => true,
            net::GSO_TCPV4 => self.has(net::F_GUEST_TSO4),
            net::GSO_TCPV6 => self.has(net::F_GUEST_TSO6),
            net::GSO_UDP => self.has(net::F_GUEST_UFO),
            net::GSO_UDP_L4 => self.has(net::F_GUEST_USO4) && self.has(net::F_GUEST_USO6),
            _ => false,
        };
        segments && (offload.flags == 0 || self.has(net::F_GUEST_CSUM))
    }
}

/// A ring with all that its core needs to run it.
pub(crate) struct Ring {
    /// The ring itself.
    pub(crate) ring: AnyVring,
    /// How its frames are wrapped.
    pub(crate) wire: Wire,
    /// What the guest signals; `None`: it does not, the ring can only be polled.
    pub(crate) kick: Option<EventFd>,
    /// What signals the guest; `None`: it polls.
    pub(crate) call: Option<EventFd>,
    /// What tells the front-end of a fault.
    pub(crate) err: Option<EventFd>,
    /// Socket and queue, for the log.
    pub(crate) name: String,
}

impl Ring {
    fn publish(&mut self, counters: &Counters) {
        if self.ring.publish() {
            self.call(counters);
        }
    }

    fn call(&self, counters: &Counters) {
        if let Some(call) = &self.call {
            call.signal();
            counters.calls.add(1);
        }
    }

    /// Reports the fault that has just retired the ring.
    #[cold]
    fn retired(&self, counters: &Counters) {
        let fault = self.ring.fault().expect("asked after a fault");
        counters.faults.add(1);
        tracing::error!("{}: ring retired: {fault}; the guest must reset its device", self.name);
        if let Some(err) = &self.err {
            err.signal();
        }
    }
}

/// One queue pair of a vhost port. Its rings come and go through the door.
pub(super) struct VhostQueue {
    from_guest: Option<Ring>,
    to_guest: Option<Ring>,
    /// Empty chains of `to_guest`, popped ahead so that their lines are on the way.
    stash: Batch<Buf>,
    done: Batch<Loan>,
    leaving: [bool; 2],
    door: Inside,
    counters: Arc<Counters>,
}

impl VhostQueue {
    pub(super) fn new(door: Inside, counters: Arc<Counters>) -> Self {
        VhostQueue {
            from_guest: None,
            to_guest: None,
            stash: Batch::default(),
            done: Batch::default(),
            leaving: [false; 2],
            door,
            counters,
        }
    }

    /// Takes in rings that wait at the door and sends home those that are wanted.
    #[cold]
    fn answer(&mut self) {
        for side in [Side::FromGuest, Side::ToGuest] {
            let (ring, wanted) = self.door.look(side);
            if let Some(mut ring) = ring {
                ring.ring.arm(false);
                // A call may have been lost while the descriptor was changed.
                ring.call(&self.counters);
                *self.slot(side) = Some(ring);
            }
            self.leaving[side as usize] = wanted;
        }
        self.leave();
    }

    /// Sends home what is wanted and has nothing out.
    #[cold]
    fn leave(&mut self) {
        if self.leaving[Side::FromGuest as usize] {
            match &self.from_guest {
                Some(ring) if ring.ring.lent() > 0 => self.door.tell(Side::FromGuest, ring.ring.lent()),
                _ => self.go(Side::FromGuest),
            }
        }
        if self.leaving[Side::ToGuest as usize] {
            if let Some(ring) = &mut self.to_guest {
                ring.ring.unpop(&mut self.stash);
            }
            self.go(Side::ToGuest);
        }
    }

    fn go(&mut self, side: Side) {
        self.leaving[side as usize] = false;
        if let Some(mut ring) = self.slot(side).take() {
            ring.publish(&self.counters);
            self.door.send(side, ring);
        }
    }

    fn slot(&mut self, side: Side) -> &mut Option<Ring> {
        match side {
            Side::FromGuest => &mut self.from_guest,
            Side::ToGuest => &mut self.to_guest,
        }
    }
}

impl Queue for VhostQueue {
    #[inline]
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let Some(ring) = &mut self.from_guest else { return 0 };
        if self.leaving[Side::FromGuest as usize] {
            return 0;
        }
        let had = ring.ring.fault().is_some();
        let (packets, errors, bytes) = with_ring!(&mut ring.ring, vring => receive(vring, ring.wire, out));
        if packets + errors > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(bytes);
            self.counters.rx_errors.add(errors as u64);
        }
        if errors > 0 {
            // Runts and empty chains are complete already.
            ring.publish(&self.counters);
        }
        if !had && ring.ring.fault().is_some() {
            ring.retired(&self.counters);
        }
        packets
    }

    #[inline]
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let Some(ring) = &mut self.to_guest else { return 0 };
        let had = ring.ring.fault().is_some();
        let (packets, call) = with_ring!(&mut ring.ring, vring => {
            let mut to = Deliver { ring: vring, wire: ring.wire, stash: &mut self.stash, done: &mut self.done };
            let packets = to.burst(batch, &self.counters);
            (packets, vring.publish())
        });
        if call {
            ring.call(&self.counters);
        }
        if !had && ring.ring.fault().is_some() {
            ring.retired(&self.counters);
            ring.ring.unpop(&mut self.stash);
        }
        packets
    }

    #[inline]
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.door.knocked() {
            self.answer();
        } else if self.leaving[Side::FromGuest as usize] {
            self.leave();
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    #[inline]
    fn settle(&mut self, loans: &mut Batch<Loan>) {
        let Some(ring) = &mut self.from_guest else { return };
        let call = with_ring!(&mut ring.ring, vring => {
            let owner = vring.owner();
            while loans.front().is_some_and(|loan| loan.owner() == owner) {
                vring.settle(loans.pop_front().expect("not empty"));
            }
            vring.publish()
        });
        if call {
            ring.call(&self.counters);
        }
    }

    fn lent(&self) -> u32 {
        self.from_guest.as_ref().map_or(0, |ring| ring.ring.lent())
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        use std::os::fd::AsFd;
        if self.door.knocked() {
            self.answer();
            return false;
        }
        if self.from_guest.as_mut().is_some_and(|ring| ring.kick.is_none() || ring.ring.arm(true)) {
            return false;
        }
        wait(self.door.bell().as_fd());
        if let Some(kick) = self.from_guest.as_ref().and_then(|ring| ring.kick.as_ref()) {
            wait(kick.as_fd());
        }
        true
    }

    fn wake(&mut self) {
        self.door.bell().clear();
        if let Some(ring) = &mut self.from_guest {
            ring.ring.arm(false);
            if let Some(kick) = &ring.kick {
                kick.clear();
            }
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for VhostQueue {
    fn drop(&mut self) {
        if let Some(ring) = &mut self.to_guest {
            ring.ring.unpop(&mut self.stash);
            ring.publish(&self.counters);
        }
        self.door.close([self.from_guest.take(), self.to_guest.take()]);
    }
}

/// Lends packets of a guest's transmit ring: pops a burst first, so that the lines of its headers are
/// on the way, then takes the headers off. How many packets, how many chains that were none, and the
/// bytes of the packets.
#[inline(always)]
fn receive<L: Layout>(ring: &mut Vring<L>, wire: Wire, out: &mut Batch<Buf>) -> (usize, usize, u64) {
    let mut plain = [0u8; CAP];
    let (mut plains, mut packets, mut bytes, mut errors) = (0, 0, 0u64, 0);
    while packets + errors < out.burst() && bytes < WEIGHT {
        let at = out.len();
        let Some(chain) = ring.pop(out) else { break };
        let first = out.get(at).filter(|first| first.len() > wire.hdr);
        if let Some(first) = first {
            first.prefetch();
            plain[plains] = at as u8;
            plains += 1;
        } else if !strip(ring, wire, out, at) {
            errors += 1;
            continue;
        }
        packets += 1;
        bytes += u64::from(chain.bytes - wire.hdr);
    }
    for &at in &plain[..plains] {
        let buf = out.get_mut(at.into()).expect("popped just now");
        let offload = buf.peek::<Offload>(0).expect("longer than a header");
        buf.advance(wire.hdr);
        if offload != Offload::default() {
            let (_, frame) = out.packet_at(at.into());
            out.get_mut(at.into()).expect("popped just now").offload = wire.believe(offload, frame);
        }
    }
    (packets, errors, bytes)
}

/// Takes the header off the last packet of `out`, which begins at buffer `at`, when the header does not
/// lie in its first buffer with room to spare. `false`: it was no longer than its header and is gone.
#[cold]
fn strip<L: Layout>(ring: &mut Vring<L>, wire: Wire, out: &mut Batch<Buf>, at: usize) -> bool {
    let (_, bytes) = out.packet_at(at);
    let runt = bytes <= wire.hdr;
    let (mut header, mut got) = ([0u8; net::HDR_LEN as usize], 0);
    // Its buffers, last first: those that the header leaves empty are finished at once.
    let mut keep = [const { None }; CAP];
    let mut n = 0;
    while out.len() > at {
        keep[n] = out.pop_back();
        n += 1;
    }
    for buf in keep[..n].iter_mut().rev() {
        let mut buf = buf.take().expect("filled just now");
        let part = buf.read(0, &mut header[got..wire.hdr as usize]);
        got += part;
        buf.advance(part as u32);
        if runt || buf.is_empty() {
            ring.settle(buf.finish(0));
        } else {
            out.push(buf);
        }
    }
    if let Some(buf) = out.get_mut(at) {
        let (offload, _) = Offload::read_from_prefix(&header).expect("long enough");
        buf.offload = wire.believe(offload, bytes - wire.hdr);
    }
    !runt
}

/// Fills a guest's receive ring.
struct Deliver<'a, L> {
    ring: &'a mut Vring<L>,
    wire: Wire,
    stash: &'a mut Batch<Buf>,
    done: &'a mut Batch<Loan>,
}

impl<L: Layout> Deliver<'_, L> {
    fn burst(&mut self, batch: &mut Batch<Buf>, counters: &Counters) -> usize {
        let hdr = self.wire.hdr;
        let (mut packets, mut bytes, mut errors) = (0, 0u64, 0);
        self.fetch(batch.len());
        while let Some(packet) = batch.front() {
            if self.done.room() == 0 {
                break;
            }
            let simple = self.stash.front().is_some_and(|room| {
                let fits = room.len() >= hdr && room.len() - hdr >= packet.len();
                fits && !packet.more() && !room.more() && !packet.is_empty()
            });
            if simple && self.wire.takes(&packet.offload) {
                let packet = batch.pop_front().expect("not empty");
                let mut room = self.stash.pop_front().expect("not empty");
                self.header(&mut room, packet.offload);
                let len = packet.len();
                packet.copy_part(0, &mut room, hdr, len);
                self.ring.settle(room.finish(hdr + len));
                self.done.push(packet.finish(0));
                packets += 1;
                bytes += u64::from(len);
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
        counters.tx_packets.add(packets as u64);
        counters.tx_bytes.add(bytes);
        counters.tx_errors.add(errors as u64);
        packets + errors
    }

    /// Pops empty chains until `want` buffers are in the stash, or there are no more.
    #[inline(always)]
    fn fetch(&mut self, want: usize) {
        let want = want.min(CAP);
        while self.stash.len() < want {
            let at = self.stash.len();
            if self.ring.pop(self.stash).is_none() {
                break;
            }
            if let Some(room) = self.stash.get(at) {
                room.prefetch_write();
            }
        }
    }

    #[inline(always)]
    fn header(&self, room: &mut Buf, offload: Offload) {
        let whole = if self.wire.hdr == net::HDR_LEN {
            room.poke(0, Header { offload, num_buffers: 1 })
        } else {
            room.poke(0, offload)
        };
        debug_assert!(whole, "the caller looked for room");
    }

    /// Any packet into any chains.
    fn packet(&mut self, batch: &mut Batch<Buf>) -> Sent {
        let (bufs, bytes) = batch.packet_at(0);
        if bufs > self.done.room() {
            return Sent::Later;
        }
        let offload = batch.front().expect("not empty").offload;
        if bytes == 0 || !self.wire.takes(&offload) {
            return self.never(batch);
        }
        let need = u64::from(bytes) + u64::from(self.wire.hdr);
        let (mut rooms, mut chains) = self.room_for(need);
        if rooms.is_none() {
            self.fetch(CAP);
            (rooms, chains) = self.room_for(need);
        }
        let Some(rooms) = rooms else {
            // A single chain that is too short, or a stash full of crumbs, will not do later either.
            let hopeless = (!self.wire.mergeable && chains > 0) || self.stash.room() == 0;
            return if hopeless { self.never(batch) } else { Sent::Later };
        };
        self.fill(batch, bufs, rooms, Header { offload, num_buffers: chains as u16 });
        for _ in 0..bufs {
            self.done.push(batch.pop_front().expect("counted").finish(0));
        }
        Sent::Bytes(u64::from(bytes))
    }

    /// Buffers from the front of the stash that hold `need` bytes, and whole chains they are; one chain
    /// only, unless mergeable.
    fn room_for(&self, need: u64) -> (Option<usize>, usize) {
        let (mut have, mut chains) = (0u64, 0);
        for (i, room) in self.stash.iter().enumerate() {
            have += u64::from(room.len());
            if room.more() {
                continue;
            }
            chains += 1;
            if have >= need {
                return (Some(i + 1), chains);
            }
            if !self.wire.mergeable {
                break;
            }
        }
        (None, chains)
    }

    /// Writes header and packet over the first `rooms` buffers of the stash and completes them.
    fn fill(&mut self, batch: &Batch<Buf>, bufs: usize, rooms: usize, header: Header) {
        let bytes = header.as_bytes();
        let (mut hdr, mut from, mut off) = (&bytes[..self.wire.hdr as usize], 0, 0);
        for _ in 0..rooms {
            let mut room = self.stash.pop_front().expect("counted");
            let mut written = room.write(0, hdr) as u32;
            hdr = &hdr[written as usize..];
            while hdr.is_empty() && from < bufs && written < room.len() {
                let packet = batch.get(from).expect("counted");
                let n = packet.copy_part(off, &mut room, written, packet.len() - off);
                written += n;
                off += n;
                if off == packet.len() {
                    (from, off) = (from + 1, 0);
                }
            }
            self.ring.settle(room.finish(written));
        }
    }

    fn never(&mut self, batch: &mut Batch<Buf>) -> Sent {
        crate::port::drop_packet(batch, self.done);
        Sent::Never
    }
}

/// What became of a packet.
enum Sent {
    Bytes(u64),
    Never,
    Later,
}
