//! A frame's headers into a key, by hand, in one pass; as Open vSwitch's `miniflow_extract` sees them.

use super::{be16, be32, be64};
use crate::vswitch::flow::key::{FRAG_ANY, FRAG_LATER, Key, VLAN_PRESENT, ether, proto, word};

/// Bytes of a frame that are looked at; headers beyond are taken for payload.
pub const HEAD: usize = 256;
/// Tags that are read; more are taken for payload of type 0x8100.
pub const VLANS: usize = 2;
/// Bytes that may follow what an IP header says is its packet: padding.
const MOST_PADDING: usize = 255;

/// Where the headers lie, bytes into the frame; 0: not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// Behind the Ethernet header and its tags: MPLS, or what `l3` says.
    pub l2_len: usize,
    /// The network header.
    pub l3: usize,
    /// The transport header; it may not be whole.
    pub l4: usize,
    /// End of the IP packet.
    pub end: usize,
}

/// Reads the headers of a frame of `size` bytes whose first are `frame`. The words of `key` that packets
/// have must be zero, but for its metadata.
#[inline]
pub fn parse(frame: &[u8], size: usize, key: &mut Key) -> Layers {
    let mut layers = Layers::default();
    let w = &mut key.words;
    let (Some(dst), Some(src)) = (be64(frame, 0), be64(frame, 6)) else { return layers };
    let Some(mut kind) = be16(frame, 12) else { return layers };
    let mut at = 14;
    let mut tags = [0u16; VLANS];
    for tag in &mut tags {
        if kind != ether::VLAN && kind != ether::QINQ {
            break;
        }
        let (Some(tci), Some(next)) = (be16(frame, at), be16(frame, at + 2)) else { break };
        *tag = tci | VLAN_PRESENT;
        kind = next;
        at += 4;
    }
    if kind < 0x600 {
        kind = llc(frame, &mut at);
    }
    w[word::ETH_DST] = dst & !0xffff | u64::from(kind);
    w[word::ETH_SRC] = src & !0xffff | u64::from(tags[0]);
    w[word::MISC] = u64::from(tags[1]) << 32;
    layers.l2_len = at;
    match kind {
        ether::IPV4 => ipv4(frame, size, at, key, &mut layers),
        ether::IPV6 => ipv6(frame, size, at, key, &mut layers),
        ether::ARP | ether::RARP => {
            layers.l3 = at;
            arp(frame, at, key);
        }
        ether::MPLS | ether::MPLS_MULTICAST => mpls(frame, at, key, &mut layers),
        _ => layers.l3 = at,
    }
    layers
}

/// The type of an 802.2 frame: that of its SNAP header, if it has one.
#[cold]
fn llc(frame: &[u8], at: &mut usize) -> u16 {
    match frame.get(*at..*at + 8) {
        Some([0xaa, 0xaa, 3, 0, 0, 0, high, low]) => {
            *at += 8;
            let kind = u16::from_be_bytes([*high, *low]);
            if kind >= 0x600 { kind } else { ether::LLC }
        }
        _ => ether::LLC,
    }
}

fn mpls(frame: &[u8], mut at: usize, key: &mut Key, layers: &mut Layers) {
    let mut entries = [0u32; 2];
    let mut n = 0;
    while let Some(entry) = be32(frame, at) {
        if let Some(slot) = entries.get_mut(n) {
            *slot = entry;
        }
        n += 1;
        at += 4;
        // Bottom of stack; Open vSwitch reads three.
        if entry & 0x100 != 0 || n == 3 {
            break;
        }
    }
    key.words[word::MPLS] = u64::from(entries[0]) << 32 | u64::from(entries[1]);
    layers.l3 = at;
}

fn arp(frame: &[u8], at: usize, key: &mut Key) {
    let Some(arp) = frame.get(at..at + 28) else { return };
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    let field = |at: usize| be32(arp, at).map_or(0, u64::from);
    let mac = |at: usize| be64(arp, at).map_or(0, |m| m & !0xffff);
    let w = &mut key.words;
    w[word::IP4] = field(14) << 32 | field(24);
    // Only operations of one byte are matched.
    if arp[6] == 0 {
        w[word::L4] = u64::from(arp[7]) << 24;
    }
    w[word::ARP_SHA] = mac(8);
    w[word::ARP_THA] = mac(18);
}

#[inline(always)]
fn ipv4(frame: &[u8], size: usize, at: usize, key: &mut Key, layers: &mut Layers) {
    layers.l3 = at;
    let Some(ip) = frame.get(at..).and_then(|f| f.first_chunk::<20>()) else { return };
    let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
    let rest = size - at;
    if header < 20
        || ip[0] >> 4 != 4
        || header > rest
        || total > rest
        || header > total
        || rest - total > MOST_PADDING
    {
        return;
    }
    let offset = u16::from_be_bytes([ip[6], ip[7]]);
    let frag = match (offset & 0x1fff != 0, offset & 0x2000 != 0) {
        (true, _) => FRAG_ANY | FRAG_LATER,
        (false, true) => FRAG_ANY,
        _ => 0,
    };
    let w = &mut key.words;
    w[word::IP4] = be64(ip, 12).unwrap_or(0);
    w[word::L4] = u64::from(ip[9]) << 24 | u64::from(ip[1]) << 16 | u64::from(ip[8]) << 8 | u64::from(frag);
    layers.l4 = at + header;
    layers.end = at + total;
    if frag & FRAG_LATER == 0 {
        transport(frame, ip[9], key, layers);
    }
}

fn ipv6(frame: &[u8], size: usize, at: usize, key: &mut Key, layers: &mut Layers) {
    layers.l3 = at;
    let Some(ip) = frame.get(at..).and_then(|f| f.first_chunk::<40>()) else { return };
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    if ip[0] >> 4 != 6 || at + 40 + payload > size {
        return;
    }
    let w = &mut key.words;
    for (i, slot) in [word::SRC6, word::SRC6 + 1, word::DST6, word::DST6 + 1].into_iter().enumerate() {
        w[slot] = be64(ip, 8 + 8 * i).unwrap_or(0);
    }
    layers.end = at + 40 + payload;
    let Some((next, l4, frag)) = extensions(&frame[..frame.len().min(layers.end)], at + 40, ip[6]) else {
        return;
    };
    let class = (ip[0] << 4) | ip[1] >> 4;
    let w = &mut key.words;
    w[word::MISC] |= u64::from(u32::from_be_bytes([0, ip[1] & 15, ip[2], ip[3]]));
    w[word::L4] = u64::from(next) << 24 | u64::from(class) << 16 | u64::from(ip[7]) << 8 | u64::from(frag);
    layers.l4 = l4;
    if frag & FRAG_LATER == 0 {
        transport(frame, next, key, layers);
    }
}

/// Walks extension headers: the protocol behind them, where it begins, fragment bits. `None`: cut short.
fn extensions(frame: &[u8], mut at: usize, mut next: u8) -> Option<(u8, usize, u8)> {
    let mut frag = 0;
    loop {
        let len = match next {
            // Hop by hop, routing, destination options, mobility, HIP, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => 8 * (usize::from(*frame.get(at + 1)?) + 1),
            // Authentication.
            51 => 4 * (usize::from(*frame.get(at + 1)?) + 2),
            44 => {
                let offset = be16(frame, at + 2)?;
                frame.get(at..at + 8)?;
                if offset != 0 {
                    frag = FRAG_ANY;
                    if offset & 0xfff8 != 0 {
                        return Some((44, at + 8, FRAG_ANY | FRAG_LATER));
                    }
                }
                8
            }
            _ => return Some((next, at, frag)),
        };
        next = *frame.get(at)?;
        at += len;
        if at > frame.len() {
            return None;
        }
    }
}

#[inline(always)]
fn transport(frame: &[u8], protocol: u8, key: &mut Key, layers: &Layers) {
    let (l4, end) = (layers.l4, frame.len().min(layers.end));
    let Some(bytes) = frame.get(l4..end) else { return };
    let kind = key.ether_type();
    let w = &mut key.words;
    let ports = be32(bytes, 0).map_or(0, |p| u64::from(p) << 32);
    match protocol {
        proto::TCP => {
            let Some(control) = be16(bytes, 12) else { return };
            let header = usize::from(control >> 12) * 4;
            if header >= 20 && layers.end - l4 >= header && bytes.len() >= 20 {
                w[word::L4] |= ports;
                w[word::MISC] |= u64::from(control & 0xfff) << 48;
            }
        }
        proto::UDP if bytes.len() >= 8 => w[word::L4] |= ports,
        proto::SCTP if bytes.len() >= 12 => w[word::L4] |= ports,
        proto::ICMP if kind == ether::IPV4 && bytes.len() >= 8 => {
            w[word::L4] |= u64::from(bytes[0]) << 48 | u64::from(bytes[1]) << 32;
        }
        proto::IGMP if kind == ether::IPV4 && bytes.len() >= 8 => {
            w[word::L4] |= u64::from(bytes[0]) << 48 | u64::from(bytes[1]) << 32;
        }
        proto::ICMP6 if kind == ether::IPV6 && bytes.len() >= 8 => {
            w[word::L4] |= u64::from(bytes[0]) << 48 | u64::from(bytes[1]) << 32;
            if matches!(bytes[..2], [135 | 136, 0]) {
                neighbour(&bytes[8..], key);
            }
        }
        _ => {}
    }
}

/// Neighbour discovery: target and link-layer addresses, unless an option is wrong or comes twice.
fn neighbour(bytes: &[u8], key: &mut Key) {
    let (Some(high), Some(low)) = (be64(bytes, 0), be64(bytes, 8)) else { return };
    let mut macs = [0u64; 2];
    let mut options = &bytes[16..];
    while options.len() >= 8 {
        let len = usize::from(options[1]) * 8;
        if len == 0 || len > options.len() {
            return;
        }
        if let (which @ 1..=2, 8) = (options[0], len) {
            let slot = &mut macs[usize::from(which) - 1];
            if *slot != 0 {
                return;
            }
            *slot = be64(options, 0).map_or(0, |m| m << 16);
        }
        options = &options[len..];
    }
    let w = &mut key.words;
    w[word::ND] = high;
    w[word::ND + 1] = low;
    w[word::ARP_SHA] = macs[0];
    w[word::ARP_THA] = macs[1];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::flow::Field;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn key(frame: &[u8]) -> (Key, Layers) {
        let mut key = Key::default();
        let layers = parse(&frame[..frame.len().min(HEAD)], frame.len(), &mut key);
        (key, layers)
    }

    #[test]
    fn fields_are_those_of_the_headers() {
        let mut frame = Vec::new();
        let id = etherparse::VlanId::try_new(7).unwrap();
        let builder = PacketBuilder::ethernet2([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]).single_vlan(id);
        builder
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 80, 5, 6)
            .syn()
            .write(&mut frame, &[1; 9])
            .unwrap();
        let (k, layers) = key(&frame);
        for (field, value) in [
            (Field::EthSrc, 0x0102_0304_0506),
            (Field::EthDst, 0x0708_090a_0b0c),
            (Field::VlanTci, 0x1007),
            (Field::EthType, 0x800),
            (Field::NwSrc, 0x0a00_0001),
            (Field::NwDst, 0x0a00_0002),
            (Field::NwProto, 6),
            (Field::NwTtl, 64),
            (Field::TcpSrc, 1000),
            (Field::TcpDst, 80),
            (Field::TcpFlags, 2),
        ] {
            assert_eq!(k.lie(field), value, "{field:?}");
        }
        assert_eq!(layers, Layers { l2_len: 18, l3: 18, l4: 38, end: 67 });

        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([3; 16], [4; 16], 9);
        builder.udp(53, 54).write(&mut frame, &[]).unwrap();
        let (k, _) = key(&frame);
        assert_eq!(
            (k.lie(Field::Ipv6Src), k.lie(Field::Ipv6Dst)),
            (u128::from_be_bytes([3; 16]), u128::from_be_bytes([4; 16]))
        );
        assert_eq!((k.lie(Field::UdpSrc), k.lie(Field::UdpDst), k.lie(Field::NwTtl)), (53, 54, 9));
    }

    #[test]
    fn neighbour_solicitations_are_read() {
        let mut icmp = vec![135, 0, 0, 0, 0, 0, 0, 0];
        icmp.extend([0xfe; 16]);
        icmp.extend([1, 1, 2, 3, 4, 5, 6, 7]);
        let mut frame = vec![1; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255]);
        frame.extend([9; 32]);
        frame.extend(&icmp);
        let (k, _) = key(&frame);
        assert_eq!(k.lie(Field::NdTarget), u128::from_be_bytes([0xfe; 16]));
        assert_eq!(k.lie(Field::NdSll), 0x0203_0405_0607);
    }

    #[test]
    fn what_is_cut_short_or_wrong_has_no_upper_fields() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([1; 4], [2; 4], 64);
        builder.udp(1, 2).write(&mut frame, &[0; 20]).unwrap();
        assert_eq!(key(&frame[..30]).0.lie(Field::NwSrc), 0);
        frame[14] = 0x44;
        assert_eq!(key(&frame).0.lie(Field::NwSrc), 0);
        frame[14] = 0x45;
        frame[20] = 0x20;
        assert_eq!((key(&frame).0.lie(Field::NwFrag), key(&frame).0.lie(Field::UdpDst)), (1, 2));
        frame[21] = 1;
        assert_eq!((key(&frame).0.lie(Field::NwFrag), key(&frame).0.lie(Field::UdpDst)), (3, 0));
        assert_eq!(key(&frame[..13]).0, Key::default());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..8) {
            let kinds = [0x0800u16, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x8847, 0x20, 0x9000];
            if frame.len() > 16 {
                frame[12..14].copy_from_slice(&kinds[kind].to_be_bytes());
                frame[14] = if kind == 0 { 0x45 } else { 0x60 };
            }
            let (_, layers) = key(&frame);
            prop_assert!(layers.l3 <= frame.len() && layers.end <= frame.len().max(layers.l3));
        }
    }
}
