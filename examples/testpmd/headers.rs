//! The headers of a packet, read once into memory of our own.

use hugepages::Buf;
use pmd::Batch;

/// Bytes that are looked at: Ethernet, two VLAN tags, IPv6 and the longest TCP header fit.
pub(crate) const HEAD: usize = 128;

/// EtherTypes (IEEE 802).
pub(crate) mod ether {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(crate) const VLAN: u16 = 0x8100;
    pub(crate) const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers (IANA).
pub(crate) mod ip {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
}

/// What lies behind the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L3 {
    /// IPv4; its header may have options.
    V4,
    /// IPv6; without extension headers in front of `proto`.
    V6,
    /// Anything else.
    Other,
}

/// Where the headers are. Lengths are 0 for what is not there, or not all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Headers {
    /// The EtherType at byte 12: VLAN, if there is a tag.
    pub(crate) outer_type: u16,
    /// The EtherType behind all tags.
    pub(crate) ether_type: u16,
    /// Whether there is a VLAN tag.
    pub(crate) vlan: bool,
    /// What follows Ethernet.
    pub(crate) l3: L3,
    /// IP protocol; 0 if there is none.
    pub(crate) proto: u8,
    /// Whether it is a fragment other than the whole packet.
    pub(crate) fragment: bool,
    /// Bytes of Ethernet with tags.
    pub(crate) l2_len: usize,
    /// Bytes of IP.
    pub(crate) l3_len: usize,
    /// Bytes of TCP or UDP.
    pub(crate) l4_len: usize,
}

/// The two bytes at `at`, as the network orders them.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl Headers {
    /// Reads them from the first bytes of a packet; `None` for a runt without an Ethernet header.
    pub(crate) fn of(head: &[u8]) -> Option<Headers> {
        let outer_type = be16(head, 12)?;
        let (mut ether_type, mut l2_len) = (outer_type, 14);
        while ether_type == ether::VLAN || ether_type == ether::QINQ {
            let Some(inner) = be16(head, l2_len + 2) else { break };
            (ether_type, l2_len) = (inner, l2_len + 4);
        }
        let vlan = l2_len > 14;
        let none = Headers {
            outer_type,
            ether_type,
            vlan,
            l3: L3::Other,
            proto: 0,
            fragment: false,
            l2_len,
            l3_len: 0,
            l4_len: 0,
        };
        let rest = &head[l2_len..];
        let (l3, l3_len, proto, fragment) = match ether_type {
            ether::IPV4 if rest.len() >= 20 && rest[0] >> 4 == 4 && rest[0] & 15 >= 5 => {
                let fragment = (u16::from(rest[6]) << 8 | u16::from(rest[7])) & 0x3fff != 0;
                (L3::V4, usize::from(rest[0] & 15) * 4, rest[9], fragment)
            }
            ether::IPV6 if rest.len() >= 40 && rest[0] >> 4 == 6 => (L3::V6, 40, rest[6], false),
            _ => return Some(none),
        };
        let l4 = rest.get(l3_len..).unwrap_or_default();
        let l4_len = match proto {
            _ if fragment => 0,
            ip::UDP if l4.len() >= 8 => 8,
            ip::TCP if l4.len() >= 20 && l4[12] >> 4 >= 5 => usize::from(l4[12] >> 4) * 4,
            _ => 0,
        };
        Some(Headers { l3, proto, fragment, l3_len, l4_len, ..none })
    }

    /// Where TCP, UDP or ICMP begins.
    pub(crate) fn l4(&self) -> usize {
        self.l2_len + self.l3_len
    }
}

/// The first bytes of the packet that begins at buffer `i`.
pub(crate) fn head_at(batch: &Batch<Buf>, i: usize) -> ([u8; HEAD], usize) {
    let (mut head, mut n) = ([0; HEAD], 0);
    let mut at = i;
    while let Some(buf) = batch.get(at) {
        n += buf.read(0, &mut head[n..]);
        if !buf.more() || n == HEAD {
            break;
        }
        at += 1;
    }
    (head, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    #[test]
    fn finds_what_etherparse_built() {
        let eth = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut out = Vec::new();
        eth().ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9).udp(10, 11).write(&mut out, &[1, 2, 3]).unwrap();
        let h = Headers::of(&out).unwrap();
        assert_eq!((h.l3, h.proto, h.l2_len, h.l3_len, h.l4_len), (L3::V4, ip::UDP, 14, 20, 8));
        assert_eq!(be16(&out, h.l4()), Some(10));
        let mut out = Vec::new();
        let id = etherparse::VlanId::try_new(7).unwrap();
        let builder = eth().single_vlan(id).ipv6([1; 16], [2; 16], 9).tcp(10, 11, 12, 13);
        builder.write(&mut out, &[]).unwrap();
        let h = Headers::of(&out).unwrap();
        assert_eq!((h.l3, h.proto, h.l2_len, h.l3_len, h.l4_len), (L3::V6, ip::TCP, 18, 40, 20));
        assert_eq!((h.outer_type, h.ether_type, h.vlan), (ether::VLAN, ether::IPV6, true));
    }

    #[test]
    fn survives_every_truncation_and_any_bytes() {
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([1; 4], [2; 4], 9).tcp(1, 2, 3, 4);
        builder.write(&mut out, &[0; 40]).unwrap();
        for n in 0..out.len() {
            assert_eq!(Headers::of(&out[..n]).is_some(), n >= 14);
        }
        let mut seed = 1u64;
        for round in 0..20_000 {
            let mut bytes = out.clone();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 24) as u8;
            }
            bytes.truncate(1 + round % bytes.len());
            let _ = Headers::of(&bytes);
        }
    }
}
