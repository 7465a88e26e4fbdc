//! Mode `icmpecho`: answers ARP requests and pings over IPv4, drops the rest.

use hugepages::Buf;
use pmd::Batch;
use pmd::offload::Sum;
use pmd::worker::{Outbox, QueueId, Stage};

use super::{Route, Routes, drop_first};
use crate::headers::{HEAD, Headers, L3, be16, ether, head_at, ip};

/// ICMP types (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// ARP operations (RFC 826).
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Ethernet, IPv4, six and four bytes of address: what comes first in an ARP packet we answer.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

pub(super) struct Echo {
    pub(super) routes: Routes,
}

impl Stage for Echo {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let Some((_, route)) = self.routes.find(from) else { return };
        while !batch.is_empty() {
            let (mut head, n) = head_at(batch, 0);
            if !answer(&mut head[..n], route) {
                drop_first(batch, out);
                continue;
            }
            let Some(mut packet) = out.own(batch) else { continue };
            packet.write(0, &head[..n]);
            // The answer's checksums are complete.
            packet.offload = Default::default();
            out.send(route.to, packet);
        }
    }
}

/// Turns the head of a request into that of its answer; `false`: nothing to be answered.
fn answer(head: &mut [u8], route: &Route) -> bool {
    let Some(h) = Headers::of(head) else { return false };
    let l3 = h.l2_len;
    if h.ether_type == ether::ARP {
        return answer_arp(head, l3, route);
    }
    let icmp = h.l4();
    let is_ping = h.l3 == L3::V4
        && h.proto == ip::ICMP
        && !h.fragment
        && head.get(icmp..icmp + 8).is_some_and(|i| i[0] == ECHO_REQUEST && i[1] == 0);
    if !is_ping {
        return false;
    }
    let (dst, src): ([u8; 6], [u8; 6]) = (field(head, 0), field(head, 6));
    let (ip_src, ip_dst): ([u8; 4], [u8; 4]) = (field(head, l3 + 12), field(head, l3 + 16));
    // A group cannot answer: another host of the requester's network does.
    let ip_own = if ip_dst[0] >> 4 == 14 { neighbour(ip_src) } else { ip_dst };
    let mac_own = if dst[0] & 1 == 1 { route.mac } else { dst };
    head[..6].copy_from_slice(&src);
    head[6..12].copy_from_slice(&mac_own);
    head[l3 + 12..l3 + 16].copy_from_slice(&ip_own);
    head[l3 + 16..l3 + 20].copy_from_slice(&ip_src);
    head[l3 + 10..l3 + 12].fill(0);
    let mut sum = Sum::default();
    sum.add(&head[l3..icmp]);
    head[l3 + 10..l3 + 12].copy_from_slice(&sum.bytes());
    // RFC 1624 eqn. 3: the checksum changes by what the type does.
    let old = be16(head, icmp + 2).expect("eight bytes are there");
    let mut sum = Sum::default();
    sum.add_word(!old);
    sum.add_word(!(u16::from(ECHO_REQUEST) << 8));
    head[icmp] = ECHO_REPLY;
    head[icmp + 2..icmp + 4].copy_from_slice(&sum.bytes());
    true
}

fn answer_arp(head: &mut [u8], at: usize, route: &Route) -> bool {
    let Some(arp) = head.get_mut(at..at + 28) else { return false };
    if arp[..6] != ARP_KIND || be16(arp, 6) != Some(ARP_REQUEST) {
        return false;
    }
    arp[6..8].copy_from_slice(&ARP_REPLY.to_be_bytes());
    let asker: [u8; 10] = arp[8..18].try_into().expect("ten bytes");
    let target: [u8; 4] = arp[24..28].try_into().expect("four bytes");
    arp[8..14].copy_from_slice(&route.mac);
    arp[14..18].copy_from_slice(&target);
    arp[18..28].copy_from_slice(&asker);
    head.copy_within(6..12, 0);
    head[6..12].copy_from_slice(&route.mac);
    true
}

fn neighbour(mut ip: [u8; 4]) -> [u8; 4] {
    ip[3] = ip[3] & !3 | if ip[3] & 3 == 1 { 2 } else { 1 };
    ip
}

fn field<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    const { assert!(N <= HEAD) };
    head[at..at + N].try_into().expect("headers were found there")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MAC, run};
    use crate::cli::Mode;
    use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};

    fn ping(dst: [u8; 4], payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let builder =
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 7]).ipv4([10, 0, 0, 1], dst, 64);
        builder.icmpv4_echo_request(5, 6).write(&mut out, &vec![0xa5; payload]).unwrap();
        out
    }

    #[test]
    fn pings_are_answered_with_right_checksums() {
        for (payload, cut) in [(56, 0), (1400, 0), (1400, 50), (0, 20)] {
            let got = run(Mode::Icmpecho, &[ping([10, 0, 0, 2], payload)], cut);
            let packet = SlicedPacket::from_ethernet(&got[0]).unwrap();
            assert_eq!((&got[0][..6], &got[0][6..12]), (&[2, 0, 0, 0, 0, 9][..], &[2, 0, 0, 0, 0, 7][..]));
            let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!() };
            let header = ip.header().to_header();
            assert_eq!((header.source, header.destination), ([10, 0, 0, 2], [10, 0, 0, 1]));
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport else { panic!() };
            let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else { panic!() };
            assert_eq!((echo.id, echo.seq), (5, 6));
            assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
            assert_eq!(icmp.payload(), vec![0xa5; payload]);
        }
        let group = &run(Mode::Icmpecho, &[ping([224, 0, 0, 1], 8)], 0)[0];
        assert_eq!(group[26..30], [10, 0, 0, 2]);
    }

    #[test]
    fn arp_is_answered_and_the_rest_is_dropped() {
        let mut arp = vec![0xff; 6];
        arp.extend_from_slice(&[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend_from_slice(&[2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        let mut expected = vec![2, 0, 0, 0, 0, 9];
        expected.extend_from_slice(&MAC);
        expected.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend_from_slice(&MAC);
        expected.extend_from_slice(&[10, 0, 0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 1]);
        let mut reply = arp.clone();
        reply[21] = 2;
        let mut fragment = ping([10, 0, 0, 2], 8);
        fragment[20] = 0x20;
        let frames =
            [arp.clone(), reply, fragment, arp[..41].to_vec(), ping([1; 4], 0)[..40].to_vec(), vec![0; 60]];
        assert_eq!(run(Mode::Icmpecho, &frames, 0), [expected]);
    }
}
