//! Packets in rings: virtio 1.3 §5.1.6. The header of a packet to be sent is in memory of ours, its
//! frame wherever it lies; received ones have their header in front.

use arrayvec::ArrayVec;
use hugepages::{Buf, Offload, Window, Words};
use zerocopy::IntoBytes;

use super::transport::Door;
use crate::nic::memory::Memory;
use crate::nic::slots::Slots;
use crate::nic::{Arrival, Broken, Fate, Rings};
use crate::spec::net;
use crate::vring::driver::{Lie, Ring, Segment};

/// Buffers of a packet to be sent, at most.
const BUFFERS: usize = 16;
/// Bytes kept for a header.
const SLOT: u64 = 16;
/// No header of its own.
const NONE: u16 = u16::MAX;

/// One queue pair.
pub(crate) struct VirtioRings<R> {
    features: u64,
    longest: u32,
    rx: (R, Door),
    /// Buffers of the packet that is being received that have not come.
    missing: u16,
    tx: (R, Door),
    /// Headers of packets that ask for something, one slot each; the first is all zero, and everybody's.
    headers: Window<u64>,
    at: u64,
    free: Vec<u16>,
    /// By number of a packet: its slot.
    slots: Box<[u16]>,
}

/// Bytes of the headers of a ring.
pub(super) fn headers(size: u16) -> usize {
    SLOT as usize * (usize::from(size) + 1) + 64
}

impl<R: Ring> VirtioRings<R> {
    pub(super) fn new(
        rx: (R, Door),
        tx: (R, Door),
        mut memory: Memory,
        features: u64,
        longest: u32,
    ) -> VirtioRings<R> {
        let size = tx.0.size();
        let n = usize::from(size) + 1;
        let at = memory.take(SLOT as usize * n, 64);
        let headers = memory.words(at, 2 * n);
        let free = (1..=size).rev().collect();
        let slots = vec![NONE; size.into()].into();
        VirtioRings { features, longest, rx, missing: 0, tx, headers, at, free, slots }
    }

    fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// §5.1.6.4: nothing is believed that was not negotiated, or points outside any frame.
    fn believe(&self, offload: Offload) -> Offload {
        let end = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
        let flags = offload.flags & (net::HDR_F_NEEDS_CSUM | net::HDR_F_DATA_VALID);
        if !self.has(net::F_GUEST_CSUM) {
            Offload::default()
        } else if flags & net::HDR_F_NEEDS_CSUM == 0 || end > self.longest {
            Offload { flags: flags & net::HDR_F_DATA_VALID, ..Offload::default() }
        } else {
            Offload {
                flags,
                csum_start: offload.csum_start,
                csum_offset: offload.csum_offset,
                ..Offload::default()
            }
        }
    }
}

impl From<Lie> for Broken {
    fn from(lie: Lie) -> Broken {
        Broken(lie.to_string().into())
    }
}

impl<R: Ring> Rings for VirtioRings<R> {
    const MOST: usize = BUFFERS;
    const HEADER: bool = true;

    fn completes(&self, offload: &Offload) -> bool {
        let segments = match offload.gso_type & !net::GSO_ECN {
            net::GSO_NONE => true,
            net::GSO_TCPV4 => self.has(net::F_HOST_TSO4),
            net::GSO_TCPV6 => self.has(net::F_HOST_TSO6),
            net::GSO_UDP_L4 => self.has(net::F_HOST_USO),
            _ => false,
        };
        let ecn = offload.gso_type & net::GSO_ECN == 0 || self.has(net::F_HOST_ECN);
        self.has(net::F_CSUM) && segments && ecn
    }

    fn tx_size(&self) -> u16 {
        self.tx.0.size()
    }

    fn free(&self) -> usize {
        // Header and frame.
        usize::from(self.tx.0.free() / 2)
    }

    #[inline]
    fn send(&mut self, packet: &[Buf]) -> Fate {
        let ring = &mut self.tx.0;
        if usize::from(ring.free()) < packet.len() + 1 {
            return Fate::Full;
        }
        let mut offload = packet[0].offload;
        // §5.1.6.2: a driver sets no other flag.
        offload.flags &= net::HDR_F_NEEDS_CSUM;
        let slot = if offload.is_none() { 0 } else { self.free.pop().expect("as many as descriptors") };
        if slot != 0 {
            let mut header = [0u8; SLOT as usize];
            header[..size_of::<Offload>()].copy_from_slice(offload.as_bytes());
            self.headers.copy_in(2 * usize::from(slot), &header);
        }
        let mut chain = ArrayVec::<Segment, { BUFFERS + 1 }>::new();
        chain.push(Segment::read(self.at + SLOT * u64::from(slot), net::HDR_LEN));
        chain.extend(packet.iter().map(|buf| Segment::read(buf.iova(), buf.len())));
        let id = ring.add(&chain).expect("there was room");
        self.slots[usize::from(id)] = slot;
        Fate::Taken(id)
    }

    #[inline]
    fn show_sent(&mut self) {
        if self.tx.0.publish() {
            self.tx.1.kick();
        }
    }

    #[inline]
    fn sent(&mut self) -> Result<Option<u16>, Broken> {
        let Some(used) = self.tx.0.used()? else { return Ok(None) };
        let slot = self.slots[usize::from(used.id)];
        if slot != 0 {
            self.free.push(slot);
        }
        Ok(Some(used.id))
    }

    fn rx_size(&self) -> u16 {
        self.rx.0.size()
    }

    fn writes(&self) -> u32 {
        // Without MRG_RXBUF a packet has one buffer, which holds the longest.
        if self.has(net::F_MRG_RXBUF) { 0 } else { self.longest }
    }

    #[inline]
    fn post(&mut self, empty: &Buf) -> u16 {
        let chain = [Segment::write(empty.iova(), empty.len())];
        self.rx.0.add(&chain).expect("the caller counts them")
    }

    #[inline]
    fn show_posted(&mut self) {
        if self.rx.0.publish() {
            self.rx.1.kick();
        }
    }

    #[inline]
    fn received(&mut self, posted: &mut Slots) -> Result<Option<Arrival>, Broken> {
        let Some(used) = self.rx.0.used()? else { return Ok(None) };
        let mut buf = posted.take(used.id).expect("the ring checked the number");
        buf.truncate(used.len);
        if self.missing == 0 {
            // Of a guest's memory it can change at any time: a copy is looked at.
            let header: Option<[u16; net::HDR_LEN as usize / 2]> = buf.peek(0);
            let Some([a, b, c, d, e, count]) = header.filter(|_| buf.skip_header()) else {
                return Ok(Some(Arrival::Damaged(buf)));
            };
            buf.offload = self.believe(zerocopy::transmute!([a, b, c, d, e]));
            // §5.1.6.4: without MRG_RXBUF it is always one.
            self.missing = if self.has(net::F_MRG_RXBUF) { count.max(1) } else { 1 };
        }
        self.missing -= 1;
        buf.set_more(self.missing > 0);
        Ok(Some(Arrival::Piece(buf)))
    }
}
