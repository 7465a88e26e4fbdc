//! A frame's headers, changed in a copy. Checksums follow by what changes (RFC 1624), so that the
//! payload need not be read.

use super::be16;
use super::parse::{HEAD, Layers, parse};
use crate::vswitch::flow::key::{FRAG_LATER, Key, ether, mac_bytes, proto};
use crate::vswitch::flow::{Field, Mask};
use hugepages::Offload;

/// Bytes of new headers that fit in front.
pub const ROOM: usize = 128;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;

/// The first bytes of a frame, with room in front.
#[derive(Clone)]
pub struct Head {
    bytes: [u8; ROOM + HEAD],
    start: usize,
    end: usize,
    /// Bytes of the frame that are not here: its payload.
    beyond: usize,
    layers: Layers,
    kind: u16,
    protocol: u8,
    later: bool,
    /// What is left to do to the packet.
    pub offload: Offload,
}

impl Head {
    /// Of a frame of `size` bytes whose first are `first`.
    pub fn new(first: &[u8], size: usize, offload: Offload) -> Head {
        let n = first.len().min(HEAD);
        let mut bytes = [0; ROOM + HEAD];
        bytes[ROOM..ROOM + n].copy_from_slice(&first[..n]);
        let mut head = Head {
            bytes,
            start: ROOM,
            end: ROOM + n,
            beyond: size - n,
            layers: Layers::default(),
            kind: 0,
            protocol: 0,
            later: false,
            offload,
        };
        head.look();
        head
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Bytes of the whole frame now.
    pub fn size(&self) -> usize {
        self.end - self.start + self.beyond
    }

    fn look(&mut self) {
        let mut key = Key::default();
        self.layers = parse(&self.bytes[self.start..self.end], self.end - self.start + self.beyond, &mut key);
        (self.kind, self.protocol) = (key.ether_type(), key.nw_proto());
        self.later = key.lie(Field::NwFrag) as u8 & FRAG_LATER != 0;
    }

    fn at(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        self.bytes[self.start..self.end].get_mut(at..at + len)
    }

    /// Replaces bytes; the old ones come back in their place. `None`: they are not here.
    fn swap(&mut self, at: usize, new: &mut [u8]) -> Option<()> {
        self.at(at, new.len())?.swap_with_slice(new);
        Some(())
    }

    /// Grows by `n` bytes at `at`.
    fn insert(&mut self, at: usize, n: usize) -> bool {
        if self.start < n || at > self.end - self.start {
            return false;
        }
        self.bytes.copy_within(self.start..self.start + at, self.start - n);
        self.start -= n;
        self.moved(n as i32);
        true
    }

    fn remove(&mut self, at: usize, n: usize) -> bool {
        if at + n > self.end - self.start {
            return false;
        }
        self.bytes.copy_within(self.start..self.start + at, self.start + n);
        self.start += n;
        self.moved(-(n as i32));
        true
    }

    /// What is left to do lies elsewhere now.
    fn moved(&mut self, by: i32) {
        let shift = |at: u16| (i32::from(at) + by).clamp(0, i32::from(u16::MAX)) as u16;
        if self.offload.flags & NEEDS_CSUM != 0 {
            self.offload.csum_start = shift(self.offload.csum_start);
        }
        if self.offload.hdr_len != 0 {
            self.offload.hdr_len = shift(self.offload.hdr_len);
        }
    }

    /// Puts a tag behind the addresses.
    pub fn push_vlan(&mut self, kind: u16, tci: u16) -> bool {
        if self.size() < 14 || !self.insert(12, 4) {
            return false;
        }
        let at = self.start + 12;
        self.bytes[at..at + 2].copy_from_slice(&kind.to_be_bytes());
        // The bit that says a tag is there is none of the tag's.
        self.bytes[at + 2..at + 4].copy_from_slice(&(tci & !0x1000).to_be_bytes());
        self.look();
        true
    }

    /// Takes the outer tag away.
    pub fn pop_vlan(&mut self) -> bool {
        let tagged = matches!(be16(self.bytes(), 12), Some(ether::VLAN | ether::QINQ));
        let done = tagged && self.remove(12, 4);
        self.look();
        done
    }

    /// Puts a label in front of the network header or the other labels.
    pub fn push_mpls(&mut self, kind: u16, entry: u32) -> bool {
        let at = self.layers.l2_len;
        if at < 14 || !self.insert(at, 4) {
            return false;
        }
        let base = self.start + at;
        self.bytes[base - 2..base].copy_from_slice(&kind.to_be_bytes());
        self.bytes[base..base + 4].copy_from_slice(&entry.to_be_bytes());
        self.look();
        true
    }

    /// Takes the outer label away; what is behind it has this type.
    pub fn pop_mpls(&mut self, kind: u16) -> bool {
        let at = self.layers.l2_len;
        if !matches!(self.kind, ether::MPLS | ether::MPLS_MULTICAST) || !self.remove(at, 4) {
            return false;
        }
        let base = self.start + at;
        self.bytes[base - 2..base].copy_from_slice(&kind.to_be_bytes());
        self.look();
        true
    }

    /// Puts other headers in front of the whole frame.
    pub fn encapsulate(&mut self, header: &[u8]) -> bool {
        if !self.insert(0, header.len()) {
            return false;
        }
        self.bytes[self.start..self.start + header.len()].copy_from_slice(header);
        self.look();
        true
    }

    /// Takes `n` bytes off the front.
    pub fn decapsulate(&mut self, n: usize) -> bool {
        let done = self.remove(0, n);
        self.look();
        done
    }

    /// Sets the bits of `mask` in all fields of a packet to those of `key`.
    pub fn set(&mut self, key: &Key, mask: &Mask) {
        for &field in SETTABLE {
            let bits = mask.lie(field);
            if bits != 0 {
                self.set_field(field, key.lie(field), bits);
            }
        }
    }

    /// Sets some bits of one field; of a packet that has it not: nothing.
    pub fn set_field(&mut self, field: Field, value: u128, mask: u128) -> Option<()> {
        let l3 = self.layers.l3;
        let v4 = self.kind == ether::IPV4 && self.layers.l4 > 0;
        let v6 = self.kind == ether::IPV6 && self.layers.l4 > 0;
        let arp = matches!(self.kind, ether::ARP | ether::RARP);
        let mpls = matches!(self.kind, ether::MPLS | ether::MPLS_MULTICAST);
        match field {
            Field::EthDst => self.plain(0, 6, value, mask),
            Field::EthSrc => self.plain(6, 6, value, mask),
            Field::VlanTci => match be16(self.bytes(), 12) {
                Some(ether::VLAN | ether::QINQ) => self.plain(14, 2, value & 0xefff, mask & 0xefff),
                _ => None,
            },
            Field::NwSrc if arp => self.plain(l3 + 14, 4, value, mask),
            Field::NwDst if arp => self.plain(l3 + 24, 4, value, mask),
            Field::NwProto if arp => self.plain(l3 + 7, 1, value, mask),
            Field::ArpSha if arp => self.plain(l3 + 8, 6, value, mask),
            Field::ArpTha if arp => self.plain(l3 + 18, 6, value, mask),
            Field::NwSrc if v4 => self.summed(l3 + 12, 4, value, mask, true, true),
            Field::NwDst if v4 => self.summed(l3 + 16, 4, value, mask, true, true),
            Field::Ipv6Src if v6 => self.summed(l3 + 8, 16, value, mask, false, true),
            Field::Ipv6Dst if v6 => self.summed(l3 + 24, 16, value, mask, false, true),
            Field::NwTtl if v4 => self.summed(l3 + 8, 1, value, mask, true, false),
            Field::NwTtl if v6 => self.plain(l3 + 7, 1, value, mask),
            Field::NwTos if v4 => self.summed(l3 + 1, 1, value, mask, true, false),
            Field::NwTos if v6 => self.plain(l3, 4, value << 20, mask << 20),
            Field::Ipv6Label if v6 => self.plain(l3, 4, value, mask),
            Field::MplsLse if mpls => self.plain(self.layers.l2_len, 4, value, mask),
            Field::TcpSrc if v4 || v6 => self.upper(0, 2, value, mask),
            Field::TcpDst if v4 || v6 => self.upper(2, 2, value, mask),
            Field::NdTarget if v6 => self.upper(8, 16, value, mask),
            Field::ArpSha if v6 => self.option(1, value, mask),
            Field::ArpTha if v6 => self.option(2, value, mask),
            _ => None,
        }
    }

    /// Replaces the bits of `mask`.
    fn plain(&mut self, at: usize, len: usize, value: u128, mask: u128) -> Option<()> {
        let bytes = self.at(at, len)?;
        let old = bytes.iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
        let new = old & !mask | value & mask;
        bytes.copy_from_slice(&new.to_be_bytes()[16 - len..]);
        Some(())
    }

    /// The same for bytes of a checksum: of the IPv4 header, and of the pseudo header.
    fn summed(
        &mut self,
        at: usize,
        len: usize,
        value: u128,
        mask: u128,
        header: bool,
        pseudo: bool,
    ) -> Option<()> {
        // Whole words of 16 bits, so that the sum's bytes are in their places.
        let l3 = self.layers.l3;
        let first = l3 + ((at - l3) & !1);
        let n = (at + len - first).next_multiple_of(2);
        let mut old = [0u8; 18];
        old[..n].copy_from_slice(self.at(first, n)?);
        self.plain(at, len, value, mask)?;
        let mut new = [0u8; 18];
        new[..n].copy_from_slice(self.at(first, n)?);
        if header {
            self.adjust(l3 + 10, &old[..n], &new[..n], false);
        }
        if pseudo && !self.later {
            self.adjust_upper(&old[..n], &new[..n], true);
        }
        Some(())
    }

    fn upper(&mut self, at: usize, len: usize, value: u128, mask: u128) -> Option<()> {
        let l4 = self.layers.l4;
        if self.later || l4 + at + len > self.layers.end {
            return None;
        }
        // Type and code of ICMP are one byte each, of the field's two.
        if matches!(self.protocol, proto::ICMP | proto::ICMP6 | proto::IGMP) && at < 8 {
            let byte = at / 2;
            let mut old = [0u8; 2];
            old.copy_from_slice(self.at(l4, 2)?);
            self.plain(l4 + byte, 1, value, mask)?;
            let mut new = [0u8; 2];
            new.copy_from_slice(self.at(l4, 2)?);
            self.adjust_upper(&old, &new, false);
            return Some(());
        }
        let mut old = [0u8; 16];
        old[..len].copy_from_slice(self.at(l4 + at, len)?);
        self.plain(l4 + at, len, value, mask)?;
        let mut new = [0u8; 16];
        new[..len].copy_from_slice(self.at(l4 + at, len)?);
        if self.protocol == proto::SCTP {
            self.crc(&old[..len], &new[..len], at);
        } else {
            self.adjust_upper(&old[..len], &new[..len], false);
        }
        Some(())
    }

    /// A link-layer address in an option of neighbour discovery.
    fn option(&mut self, which: u8, value: u128, mask: u128) -> Option<()> {
        let l4 = self.layers.l4;
        let mut at = l4 + 24;
        loop {
            let [kind, len] = *self.bytes().get(at..at + 2)?.first_chunk()?;
            if kind == which {
                let mut old = [0u8; 6];
                old.copy_from_slice(self.at(at + 2, 6)?);
                self.plain(at + 2, 6, value, mask)?;
                let new =
                    mac_bytes(self.bytes()[at + 2..at + 8].iter().fold(0, |n, b| n << 8 | u128::from(*b)));
                self.adjust_upper(&old, &new, false);
                return Some(());
            }
            if len == 0 {
                return None;
            }
            at += 8 * usize::from(len);
        }
    }

    /// The checksum of the upper protocol, when words that it covers change.
    fn adjust_upper(&mut self, old: &[u8], new: &[u8], pseudo: bool) {
        let l4 = self.layers.l4;
        let v6 = self.kind == ether::IPV6;
        let at = match self.protocol {
            proto::TCP => l4 + 16,
            proto::UDP => l4 + 6,
            proto::ICMP if !pseudo => l4 + 2,
            proto::ICMP6 if v6 => l4 + 2,
            _ => return,
        };
        if at + 2 > self.layers.end {
            return;
        }
        if self.offload.flags & NEEDS_CSUM != 0 && usize::from(self.offload.csum_start) == l4 {
            // It holds the sum of the pseudo header so far, not inverted.
            if pseudo {
                self.adjust(at, old, new, true);
            }
            return;
        }
        let udp = self.protocol == proto::UDP;
        if udp && be16(self.bytes(), at) == Some(0) {
            return;
        }
        self.adjust(at, old, new, false);
        if udp && be16(self.bytes(), at) == Some(0) {
            let _ = self.swap(at, &mut [0xff, 0xff]);
        }
    }

    /// RFC 1624 eqn. 3; `partial`: the sum is stored as it is, not inverted.
    fn adjust(&mut self, at: usize, old: &[u8], new: &[u8], partial: bool) {
        let Some(stored) = be16(self.bytes(), at) else { return };
        let words = |bytes: &[u8], flip: u16| -> u32 {
            bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]) ^ flip)).sum()
        };
        let start = if partial { stored } else { !stored };
        let mut sum = u32::from(start) + words(old, 0xffff) + words(new, 0);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = if partial { sum as u16 } else { !(sum as u16) };
        let _ = self.swap(at, &mut sum.to_be_bytes());
    }

    /// The CRC32c of SCTP is linear: it changes by the CRC of what changed, at its distance from the end.
    fn crc(&mut self, old: &[u8], new: &[u8], at: usize) {
        let step = |crc: u32, byte: u8| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 })
        };
        let changed = old.iter().zip(new).fold(0, |crc, (a, b)| step(crc, a ^ b));
        let l4 = self.layers.l4;
        let change = (l4 + at + old.len()..self.layers.end).fold(changed, |crc, _| step(crc, 0));
        if let Some(sum) = self.at(l4 + 8, 4) {
            let stored = u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
            sum.copy_from_slice(&(stored ^ change).to_le_bytes());
        }
    }
}

/// Fields that lie in a packet, each bit once, in an order in which they can be set.
const SETTABLE: &[Field] = &[
    Field::EthDst,
    Field::EthSrc,
    Field::VlanTci,
    Field::MplsLse,
    Field::NwSrc,
    Field::NwDst,
    Field::NwProto,
    Field::NwTos,
    Field::NwTtl,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Label,
    Field::ArpSha,
    Field::ArpTha,
    Field::NdTarget,
    Field::TcpSrc,
    Field::TcpDst,
];

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn udp(src: [u8; 4], port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(src, [10, 0, 0, 2], 64);
        builder.udp(port, 80).write(&mut frame, payload).unwrap();
        frame
    }

    fn whole(head: &Head, frame: &[u8]) -> Vec<u8> {
        let mut out = head.bytes().to_vec();
        out.extend(&frame[frame.len() - head.beyond..]);
        out
    }

    #[test]
    fn a_rewritten_packet_is_as_one_made_so() {
        for payload in [&[][..], &[7; 33], &[9; 1000]] {
            let frame = udp([10, 0, 0, 1], 1000, payload);
            let mut head = Head::new(&frame, frame.len(), Offload::default());
            head.set_field(Field::NwSrc, 0x0b01_0203, 0xffff_ffff).unwrap();
            head.set_field(Field::TcpSrc, 4321, 0xffff).unwrap();
            assert_eq!(whole(&head, &frame), udp([11, 1, 2, 3], 4321, payload));
        }
        let v6 = |a: u8, port| {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([a; 16], [2; 16], 64);
            builder.tcp(port, 80, 1, 2).write(&mut frame, &[5; 40]).unwrap();
            frame
        };
        let mut head = Head::new(&v6(1, 5), v6(1, 5).len(), Offload::default());
        head.set_field(Field::Ipv6Src, u128::from_be_bytes([8; 16]), u128::MAX).unwrap();
        head.set_field(Field::TcpSrc, 6, 0xffff).unwrap();
        assert_eq!(whole(&head, &v6(1, 5)), v6(8, 6));
    }

    #[test]
    fn fields_of_the_ip_header_keep_its_checksum() {
        let frame = udp([10, 0, 0, 1], 1000, &[1; 10]);
        let mut head = Head::new(&frame, frame.len(), Offload::default());
        head.set_field(Field::NwTtl, 9, 0xff).unwrap();
        head.set_field(Field::NwTos, 0xb8, 0xfc).unwrap();
        let out = whole(&head, &frame);
        let packet = SlicedPacket::from_ethernet(&out).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!() };
        let header = ip.header().to_header();
        assert_eq!((header.time_to_live, header.calc_header_checksum()), (9, header.header_checksum));
        assert!(matches!(packet.transport, Some(TransportSlice::Udp(_))));
    }

    #[test]
    fn tags_and_labels_come_and_go() {
        let frame = udp([10, 0, 0, 1], 1000, &[1; 10]);
        let offload =
            Offload { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, hdr_len: 42, ..Offload::default() };
        let mut head = Head::new(&frame, frame.len(), offload);
        assert!(head.push_vlan(0x8100, 0x1005) && head.push_mpls(0x8847, 0x0006_4140));
        assert_eq!(head.bytes()[12..22], [0x81, 0, 0, 5, 0x88, 0x47, 0, 6, 0x41, 0x40]);
        assert_eq!((head.offload.csum_start, head.offload.hdr_len, head.size()), (42, 50, frame.len() + 8));
        assert!(head.pop_mpls(0x800) && head.pop_vlan() && !head.pop_vlan());
        assert_eq!((whole(&head, &frame), head.offload), (frame, offload));
    }

    #[test]
    fn the_checksum_of_sctp_follows() {
        let crc32c = |bytes: &[u8]| {
            !bytes.iter().fold(!0u32, |crc, b| {
                (0..8).fold(crc ^ u32::from(*b), |c, _| c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 })
            })
        };
        let make = |port: u16| {
            let mut frame = vec![1; 12];
            frame.extend([8, 0, 0x45, 0, 0, 20 + 32, 0, 0, 0, 0, 64, 132, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
            let mut sctp = vec![0; 32];
            sctp[..2].copy_from_slice(&port.to_be_bytes());
            sctp[20..].fill(3);
            let sum = crc32c(&sctp);
            sctp[8..12].copy_from_slice(&sum.to_le_bytes());
            frame.extend(sctp);
            frame
        };
        let mut head = Head::new(&make(7), make(7).len(), Offload::default());
        head.set_field(Field::TcpSrc, 8000, 0xffff).unwrap();
        assert_eq!(head.bytes(), make(8000));
    }

    #[test]
    fn an_open_checksum_counts_the_pseudo_header_only() {
        let frame = udp([10, 0, 0, 1], 1000, &[1; 10]);
        let offload = Offload { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
        let mut head = Head::new(&frame, frame.len(), offload);
        head.set_field(Field::TcpSrc, 7, 0xffff).unwrap();
        assert_eq!(head.bytes()[40..42], frame[40..42]);
        head.set_field(Field::NwSrc, 0x0a00_0003, 0xffff_ffff).unwrap();
        let sum = |b: &[u8]| u32::from(u16::from_be_bytes([b[40], b[41]]));
        assert_eq!(sum(head.bytes()), sum(&frame) + 2);
    }

    /// Bytes that look like headers for a while, and the size of the frame that they begin.
    fn any_frame() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let kinds =
            [ether::IPV4, ether::IPV6, ether::ARP, ether::VLAN, ether::QINQ, ether::MPLS, 0x40, 0x1234];
        let kind = || prop::sample::select(kinds.to_vec());
        let protocol = prop::sample::select(&[0u8, 1, 6, 17, 43, 44, 50, 58, 60, 132][..]);
        let bytes = prop::collection::vec(any::<u8>(), 0..HEAD + 40);
        (bytes, kind(), kind(), protocol, any::<bool>(), 0usize..3000).prop_map(
            |(mut bytes, outer, inner, protocol, six, beyond)| {
                let mut put = |at: usize, value: &[u8]| {
                    if let Some(place) = bytes.get_mut(at..at + value.len()) {
                        place.copy_from_slice(value);
                    }
                };
                put(12, &outer.to_be_bytes());
                let l3 = if matches!(outer, ether::VLAN | ether::QINQ) { 18 } else { 14 };
                put(16, &inner.to_be_bytes());
                put(l3, if six { &[0x60] } else { &[0x45] });
                put(l3 + 2, &[0, 80]);
                put(l3 + if six { 6 } else { 9 }, &[protocol]);
                let size = bytes.len() + beyond;
                (bytes, size)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_frame_is_read_and_any_field_of_it_written(
            (bytes, size) in any_frame(),
            edits in prop::collection::vec((0usize..8, any::<u16>(), any::<u128>(), any::<u128>()), 0..12),
        ) {
            let read = &bytes[..bytes.len().min(HEAD)];
            let mut key = Key::default();
            let layers = parse(read, size, &mut key);
            prop_assert!(layers.l2_len <= read.len());
            let mut head = Head::new(read, size, Offload::default());
            for (which, word, value, mask) in edits {
                let before = head.size();
                match which {
                    0 => drop(head.push_vlan(ether::VLAN, word)),
                    1 => drop(head.pop_vlan()),
                    2 => drop(head.push_mpls(ether::MPLS, value as u32)),
                    3 => drop(head.pop_mpls(word)),
                    _ => {
                        let field = SETTABLE[usize::from(word) % SETTABLE.len()];
                        let _ = head.set_field(field, value, mask);
                        prop_assert_eq!(head.size(), before);
                    }
                }
                prop_assert!(head.size().abs_diff(before) <= 4);
                prop_assert_eq!(head.size() - head.bytes().len(), size - read.len(), "the payload stays");
            }
        }
    }
}
