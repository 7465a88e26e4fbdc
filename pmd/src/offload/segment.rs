//! Segmentation in software: one large TCP or UDP packet becomes frames of `gso_size` payload each
//! (virtio 1.3 §5.1.6.2.1), with headers and checksums of their own.
//!
//! Headers are copied out once and patched per frame; the payload stays where it is, and whoever
//! sends a frame copies the frame's share of it.

use hugepages::{Buf, Offload};

use super::Sum;
use super::fragment::{self, Fragments};
use crate::spec::net;

/// Bytes of headers a packet may have: Ethernet, two VLAN tags, IPv6 with extensions, TCP.
pub const MAX_HEADERS: usize = 256;
/// Frames a packet may become: more than one of 64 KiB with the least segment size of TCP in use, 48
/// bytes. A sender that asks for more wants the receiver's core, not frames.
pub const MAX_FRAMES: u32 = 2048;

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
pub(super) const TCP: u8 = 6;
const UDP: u8 = 17;

// TCP flags (RFC 9293 §3.1, RFC 3168): those that only the last, or only the first segment keeps.
const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// One frame to be: its headers, and which bytes of the packet follow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First payload byte, counted from the start of the packet.
    pub from: u32,
    /// Payload bytes.
    pub len: u32,
}

/// The frames of one packet, one after the other.
#[derive(Debug)]
pub enum Segments {
    /// Of TCP, or datagrams of UDP.
    Segmented(Segmented),
    /// Fragments of one datagram.
    Fragmented(Fragments),
}

impl Segments {
    /// Reads the headers of the packet in `bufs`. `None`: it is not what `offload` says, and cannot be
    /// segmented.
    pub fn of<'a>(offload: &Offload, bufs: impl Iterator<Item = &'a Buf> + Clone) -> Option<Segments> {
        if fragment::is_asked(offload) {
            Fragments::of(offload, bufs).map(Segments::Fragmented)
        } else {
            Segmented::of(offload, bufs).map(Segments::Segmented)
        }
    }

    /// Frames that are still to come.
    pub fn left(&self) -> u32 {
        match self {
            Segments::Segmented(segmented) => segmented.left(),
            Segments::Fragmented(fragments) => fragments.left(),
        }
    }

    /// The headers of the frame that [`Segments::advance`] gave last.
    pub fn headers(&self) -> &[u8] {
        match self {
            Segments::Segmented(segmented) => segmented.headers(),
            Segments::Fragmented(fragments) => fragments.headers(),
        }
    }

    /// Goes on to the next frame and writes its headers; its checksums cover the payload in `bufs`,
    /// the packet's buffers, as it is now.
    pub fn advance<'a>(&mut self, bufs: impl Iterator<Item = &'a Buf>) -> Option<Segment> {
        match self {
            Segments::Segmented(segmented) => segmented.advance(bufs),
            Segments::Fragmented(fragments) => fragments.advance(),
        }
    }
}

/// The frames of one packet with headers and checksums of their own.
#[derive(Debug)]
pub struct Segmented {
    header: [u8; MAX_HEADERS],
    headers: usize,
    l3: usize,
    l4: usize,
    ipv4: bool,
    tcp: bool,
    size: u32,
    total: u32,
    /// Next payload byte, and number of the next frame.
    at: u32,
    index: u32,
    id: u16,
    seq: u32,
    flags: u8,
}

impl Segmented {
    fn of<'a>(offload: &Offload, bufs: impl Iterator<Item = &'a Buf>) -> Option<Segmented> {
        let mut header = [0u8; MAX_HEADERS];
        let (mut got, mut total) = (0, 0u32);
        for buf in bufs {
            got += buf.read(0, &mut header[got..]);
            total = total.checked_add(buf.len())?;
        }
        let l4 = usize::from(offload.csum_start);
        let (l3, ethertype) = network(&header[..got])?;
        let kind = offload.gso_type & !net::GSO_ECN;
        let tcp = matches!(kind, net::GSO_TCPV4 | net::GSO_TCPV6);
        let ipv4 = match (kind, ethertype) {
            (net::GSO_TCPV4 | net::GSO_UDP_L4, ETHERTYPE_IPV4) => true,
            (net::GSO_TCPV6 | net::GSO_UDP_L4, ETHERTYPE_IPV6) => false,
            _ => return None,
        };
        let protocol = if tcp { TCP } else { UDP };
        let sound = if ipv4 {
            let ip = header.get(l3..l3 + 20)?;
            ip[0] >> 4 == 4 && l3 + usize::from(ip[0] & 15) * 4 == l4 && ip[9] == protocol
        } else {
            *header.get(l3)? >> 4 == 6 && l4 >= l3 + 40
        };
        let l4_len = if tcp { usize::from(*header.get(l4 + 12)? >> 4) * 4 } else { 8 };
        let headers = l4 + l4_len;
        let least = if tcp { 20 } else { 8 };
        if !sound || l4_len < least || headers > got || headers as u32 >= total || offload.gso_size == 0 {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, seq, flags) = (
            if ipv4 { word(l3 + 4) } else { 0 },
            if tcp { u32::from(word(l4 + 4)) << 16 | u32::from(word(l4 + 6)) } else { 0 },
            if tcp { header[l4 + 13] } else { 0 },
        );
        let (size, at) = (u32::from(offload.gso_size), headers as u32);
        if (total - at).div_ceil(size) > MAX_FRAMES {
            return None;
        }
        Some(Segmented { header, headers, l3, l4, ipv4, tcp, size, total, at, index: 0, id, seq, flags })
    }

    fn left(&self) -> u32 {
        (self.total - self.at).div_ceil(self.size)
    }

    fn headers(&self) -> &[u8] {
        &self.header[..self.headers]
    }

    fn advance<'a>(&mut self, bufs: impl Iterator<Item = &'a Buf>) -> Option<Segment> {
        if self.at >= self.total {
            return None;
        }
        let (from, len) = (self.at, self.size.min(self.total - self.at));
        let last = from + len == self.total;
        let l4_bytes = (self.headers - self.l4) as u32 + len;
        self.network_header(l4_bytes);
        let put = |header: &mut [u8; MAX_HEADERS], at: usize, bytes: &[u8]| {
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let field = if self.tcp {
            let seq = self.seq.wrapping_add(self.index.wrapping_mul(self.size));
            put(&mut self.header, self.l4 + 4, &seq.to_be_bytes());
            let gone = if last { 0 } else { FIN_PSH } | if self.index == 0 { 0 } else { CWR };
            self.header[self.l4 + 13] = self.flags & !gone;
            self.l4 + 16
        } else {
            put(&mut self.header, self.l4 + 4, &(l4_bytes as u16).to_be_bytes());
            self.l4 + 6
        };
        put(&mut self.header, field, &[0, 0]);
        let mut sum = self.pseudo(l4_bytes);
        sum.add(&self.header[self.l4..self.headers]);
        payload(&mut sum, bufs, from, len);
        put(&mut self.header, field, &sum.stored());
        self.at += len;
        self.index += 1;
        Some(Segment { from, len })
    }

    /// Lengths, identification and checksum of the IP header.
    fn network_header(&mut self, l4_bytes: u32) {
        let l3 = self.l3;
        let ip_bytes = (self.l4 - l3) as u32 + l4_bytes;
        if self.ipv4 {
            self.header[l3 + 2..l3 + 4].copy_from_slice(&(ip_bytes as u16).to_be_bytes());
            let id = self.id.wrapping_add(self.index as u16);
            self.header[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
            self.header[l3 + 10..l3 + 12].copy_from_slice(&[0, 0]);
            let mut sum = Sum::default();
            sum.add(&self.header[l3..self.l4]);
            self.header[l3 + 10..l3 + 12].copy_from_slice(&sum.bytes());
        } else {
            let bytes = (ip_bytes - 40) as u16;
            self.header[l3 + 4..l3 + 6].copy_from_slice(&bytes.to_be_bytes());
        }
    }

    fn pseudo(&self, l4_bytes: u32) -> Sum {
        let mut sum = Sum::default();
        let addresses = if self.ipv4 { self.l3 + 12..self.l3 + 20 } else { self.l3 + 8..self.l3 + 40 };
        sum.add(&self.header[addresses]);
        sum.add_word(l4_bytes as u16);
        sum.add_word(u16::from(if self.tcp { TCP } else { UDP }));
        sum
    }
}

/// Where the network header starts, and its EtherType, past any VLAN tags.
pub(super) fn network(header: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    for _ in 0..3 {
        let word = u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?]);
        at += 2;
        if !VLAN.contains(&word) {
            return Some((at, word));
        }
        at += 2;
    }
    None
}

/// Adds `len` bytes of the packet in `bufs` from byte `skip` on.
pub(super) fn payload<'a>(sum: &mut Sum, bufs: impl Iterator<Item = &'a Buf>, mut skip: u32, mut len: u32) {
    let mut local = [0u8; 1024];
    for buf in bufs {
        let mut off = skip.min(buf.len());
        skip -= off;
        while len > 0 && off < buf.len() {
            let n = buf.read(off, &mut local[..(len as usize).min(1024)]);
            sum.add(&local[..n]);
            off += n as u32;
            len -= n as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use hugepages::{Backing, PageSize, Pool};

    fn lend(pool: &mut Pool, packet: &[u8], piece: usize) -> Batch<Buf> {
        let mut batch = Batch::default();
        for part in packet.chunks(piece) {
            let mut buf = pool.take().unwrap();
            assert_eq!(buf.write(0, part), part.len());
            buf.truncate(part.len() as u32);
            batch.push(buf);
        }
        batch
    }

    fn check(packet: &[u8], offload: Offload, payload: &[u8]) {
        let (mut pool, _) = Pool::new(64, 2048, Backing { page: PageSize::Base, node: None }).unwrap();
        let mut batch = lend(&mut pool, packet, 700);
        let mut segments = Segments::of(&offload, batch.iter()).unwrap();
        let frames = segments.left();
        let (mut got, mut n) = (Vec::new(), 0);
        while let Some(segment) = segments.advance(batch.iter()) {
            let from = segment.from as usize;
            let mut frame = segments.headers().to_vec();
            frame.extend_from_slice(&packet[from..from + segment.len as usize]);
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            match sliced.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    let header = tcp.to_header();
                    assert_eq!(header.sequence_number, 1000 + got.len() as u32);
                    assert_eq!(header.fin, n + 1 == frames);
                    let sum = match sliced.net.unwrap() {
                        etherparse::NetSlice::Ipv4(ip) => {
                            let ip = ip.header().to_header();
                            assert_eq!(
                                (ip.header_checksum, ip.identification),
                                (ip.calc_header_checksum(), n as u16)
                            );
                            header.calc_checksum_ipv4(&ip, tcp.payload())
                        }
                        etherparse::NetSlice::Ipv6(ip) => {
                            header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
                        }
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(header.checksum, sum.unwrap());
                    got.extend_from_slice(tcp.payload());
                }
                TransportSlice::Udp(udp) => {
                    let etherparse::NetSlice::Ipv4(ip) = sliced.net.unwrap() else { panic!() };
                    let header = udp.to_header();
                    assert_eq!(usize::from(header.length), 8 + udp.payload().len());
                    let sum = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
                    assert_eq!(header.checksum, sum.unwrap());
                    got.extend_from_slice(udp.payload());
                }
                other => panic!("{other:?}"),
            }
            n += 1;
        }
        assert_eq!((n, &got[..]), (frames, payload));
        while let Some(buf) = batch.pop_front() {
            pool.settle(buf.finish(0));
        }
    }

    #[test]
    fn tcp_and_udp_become_sound_frames() {
        let payload: Vec<u8> = (0..4321u32).map(|i| (i * 13) as u8).collect();
        let gso = |gso_type, csum_start, csum_offset, gso_size| Offload {
            flags: 1,
            gso_type,
            hdr_len: 0,
            gso_size,
            csum_start,
            csum_offset,
        };
        let mut packet = Vec::new();
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        tcp.tcp(1, 2, 1000, 500).fin().ack(7).write(&mut packet, &payload).unwrap();
        check(&packet, gso(net::GSO_TCPV4, 34, 16, 1000), &payload);
        packet.clear();
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6]).single_vlan(5.try_into().unwrap());
        let tcp = tcp.ipv6([1; 16], [2; 16], 64).tcp(1, 2, 1000, 500).fin();
        tcp.write(&mut packet, &payload).unwrap();
        check(&packet, gso(net::GSO_TCPV6, 58, 16, 1440), &payload);
        packet.clear();
        let udp = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2);
        udp.write(&mut packet, &payload).unwrap();
        check(&packet, gso(net::GSO_UDP_L4, 34, 6, 999), &payload);
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        let (mut pool, _) = Pool::new(8, 2048, Backing { page: PageSize::Base, node: None }).unwrap();
        let mut packet = Vec::new();
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        tcp.tcp(1, 2, 1000, 500).write(&mut packet, &[7; 500]).unwrap();
        let good =
            Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 100, csum_start: 34, csum_offset: 16 };
        let mut batch = lend(&mut pool, &packet, 2048);
        assert!(Segments::of(&good, batch.iter()).is_some());
        for bad in [
            Offload { gso_size: 0, ..good },
            Offload { csum_start: 33, ..good },
            Offload { csum_start: 0xFFFF, ..good },
            Offload { gso_type: net::GSO_TCPV6, ..good },
            Offload { gso_type: net::GSO_UDP_L4, ..good },
            Offload { gso_type: net::GSO_UDP, ..good },
            Offload { gso_type: 77, ..good },
        ] {
            assert!(Segments::of(&bad, batch.iter()).is_none(), "{bad:?}");
        }
        let buf = batch.pop_front().unwrap();
        for len in 0..54 {
            let mut short = batch_of(&mut pool, &buf, len);
            assert!(Segments::of(&good, short.iter()).is_none(), "{len}");
            pool.settle(short.pop_front().unwrap().finish(0));
        }
        pool.settle(buf.finish(0));
    }

    #[test]
    fn crumbs_for_segments_are_refused() {
        let (mut pool, _) = Pool::new(1, 65536, Backing { page: PageSize::Base, node: None }).unwrap();
        let mut packet = Vec::new();
        let tcp = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        tcp.tcp(1, 2, 1000, 500).write(&mut packet, &[7; 65_000]).unwrap();
        let mut batch = lend(&mut pool, &packet, 65536);
        for (gso_size, frames) in [(1, None), (31, None), (32, Some(2032)), (48, Some(1355))] {
            let offload =
                Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size, csum_start: 34, csum_offset: 16 };
            let segments = Segments::of(&offload, batch.iter());
            assert_eq!(segments.map(|segments| segments.left()), frames, "{gso_size} bytes");
        }
        pool.settle(batch.pop_front().unwrap().finish(0));
    }

    fn batch_of(pool: &mut Pool, from: &Buf, len: u32) -> Batch<Buf> {
        let mut short = pool.take().unwrap();
        short.truncate(len);
        from.copy_to(&mut short);
        let mut batch = Batch::default();
        batch.push(short);
        batch
    }
}
