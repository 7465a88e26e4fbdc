use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// The key of Microsoft's "Verifying the RSS hash calculation".
pub(in crate::port::vhost) const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// From that document: source and destination with their ports, the hash of the addresses, the hash of all.
pub(in crate::port::vhost) const V4: [(&str, u16, &str, u16, u32, u32); 5] = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323e_8fc2, 0x51cc_c178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xd718_262a, 0xc626_b0ea),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xd2d0_a5de, 0x5c2b_394a),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x8298_9176, 0xafc7_327f),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5d18_09c5, 0x10e8_28a2),
];
pub(in crate::port::vhost) const V6: [(&str, u16, &str, u16, u32, u32); 3] = [
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2cc1_8cd5, 0x4020_7d3d),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0f0c_461c, 0xdde5_1bbf),
    (
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        "fe80::200:f8ff:fe21:67cf",
        38024,
        0x4b61_e985,
        0x02d1_feef,
    ),
];

fn ethernet(kind: u16, ip: &[&[u8]]) -> Vec<u8> {
    [&[2; 12][..], &kind.to_be_bytes(), &ip.concat()].concat()
}

fn ports((from, to): (u16, u16)) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat()
}

pub(in crate::port::vhost) fn v4_frame(from: &str, to: &str, protocol: u8, at: (u16, u16)) -> Vec<u8> {
    let [from, to] = [from, to].map(|at| at.parse::<Ipv4Addr>().unwrap().octets());
    let fixed = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    ethernet(0x0800, &[&fixed, &from, &to, &ports(at)])
}

fn v6_packet(from: &str, to: &str, next: u8, rest: &[u8]) -> Vec<u8> {
    let [from, to] = [from, to].map(|at| at.parse::<Ipv6Addr>().unwrap().octets());
    ethernet(0x86dd, &[&[0x60, 0, 0, 0, 0, 20, next, 64], &from, &to, rest])
}

pub(in crate::port::vhost) fn v6_frame(from: &str, to: &str, protocol: u8, at: (u16, u16)) -> Vec<u8> {
    v6_packet(from, to, protocol, &ports(at))
}

/// The hash by these types, and the report.
fn hashed(types: u32, frame: &[u8]) -> (u32, u16) {
    let Mark { value, report, .. } = Hashing::new(types, &KEY).unwrap().frame(frame);
    (u32::from_le(value), u16::from_le(report))
}

#[test]
fn the_vectors_of_microsoft() {
    for (from, a, to, b, addresses, all) in V4 {
        for (protocol, kind, report) in [(TCP, hash::TCPV4, 2), (UDP, hash::UDPV4, 3)] {
            let frame = v4_frame(from, to, protocol, (a, b));
            assert_eq!(hashed(hash::ALL, &frame), (all, report));
            assert_eq!(hashed(kind, &frame), (all, report));
            assert_eq!(hashed(hash::ALL & !kind, &frame), (addresses, 1));
            assert_eq!(hashed(hash::ALL & !kind & !hash::IPV4, &frame), (0, 0));
        }
    }
    for (from, a, to, b, addresses, all) in V6 {
        for (protocol, kind, report) in [(TCP, hash::TCPV6, 5), (UDP, hash::UDPV6, 6)] {
            let frame = v6_frame(from, to, protocol, (a, b));
            assert_eq!(hashed(hash::ALL, &frame), (all, report));
            assert_eq!(hashed(hash::ALL & !kind, &frame), (addresses, 4));
            assert_eq!(hashed(hash::ALL & !kind & !hash::IPV6, &frame), (0, 0), "it has no extension header");
        }
    }
}

#[test]
fn fragments_options_and_tags() {
    let (from, a, to, b, addresses, all) = V4[0];
    let plain = v4_frame(from, to, TCP, (a, b));
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
    assert_eq!(hashed(hash::ALL, &tagged), (all, 2));
    let mut optional = plain.clone();
    optional[14] = 0x46;
    optional.splice(34..34, [1; 4]);
    assert_eq!(hashed(hash::ALL, &optional), (all, 2));
    for (at, field) in [(20, 0x20), (21, 1)] {
        let mut fragment = plain.clone();
        fragment[at] = field;
        assert_eq!(hashed(hash::ALL, &fragment), (addresses, 1));
    }
    assert_eq!(hashed(hash::ALL, &plain[..37]), (addresses, 1), "no ports there");
    for none in [&plain[..33], &plain[..13], &ethernet(0x0806, &[&[0; 28]])[..], &[]] {
        assert_eq!(hashed(hash::ALL, none), (0, 0));
    }
}

#[test]
fn extension_headers() {
    let (from, a, to, b, addresses, all) = V6[0];
    let options = |next: u8, home: &str| -> Vec<u8> {
        let home = home.parse::<Ipv6Addr>().unwrap().octets();
        [&[next, 2, 0, 1, 0, 201, 16][..], &home, &[0]].concat()
    };
    let route = |next: u8, to: &str| -> Vec<u8> {
        [&[next, 2, 2, 1, 0, 0, 0, 0][..], &to.parse::<Ipv6Addr>().unwrap().octets()].concat()
    };
    // Both addresses are elsewhere, and hashed as if they were not.
    let mut rest = [options(43, from), route(TCP, to), ports((a, b))].concat();
    let frame = v6_packet("fe80::1", "fe80::2", 60, &rest);
    assert_eq!(hashed(hash::ALL, &frame), (all, 8));
    assert_eq!(hashed(hash::ALL & !hash::TCP_EX, &frame), (addresses, 7));
    let skipped = hashed(hash::TCPV6, &v6_frame("fe80::1", "fe80::2", TCP, (a, b)));
    assert_eq!(hashed(hash::ALL & !hash::TCP_EX & !hash::IP_EX, &frame), skipped);
    rest[24] = UDP;
    let frame = v6_packet("fe80::1", "fe80::2", 60, &rest);
    assert_eq!(hashed(hash::ALL, &frame), (all, 9));
    // Neither is there.
    for header in [&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &[TCP, 0, 0, 0, 0, 0, 0, 0]] {
        let frame = v6_packet(from, to, 0, &[header, &ports((a, b))].concat());
        assert_eq!(hashed(hash::ALL, &frame), (all, 8));
    }
    // A fragment has no ports; a packet in one piece has.
    for (field, report) in [(1u16, 7), (8, 7), (0, 8)] {
        let header = [&[TCP, 0][..], &field.to_be_bytes(), &[0; 4]].concat();
        let frame = v6_packet(from, to, 44, &[header, ports((a, b))].concat());
        assert_eq!(hashed(hash::ALL, &frame).1, report);
    }
}

#[test]
fn keys_and_types_that_are_none() {
    assert!(Hashing::new(hash::ALL + 1, &KEY).is_none());
    assert!(Hashing::new(1, &[0; 41]).is_none());
    let short = Hashing::new(hash::ALL, &KEY[..7]).unwrap();
    let zeros = [&KEY[..7], &[0; 33]].concat();
    assert_eq!(Some(short), Hashing::new(hash::ALL, &zeros));
}

proptest! {
    /// Any bytes, and any types: a report that was asked for.
    #[test]
    fn any_frame(
        kind in prop_oneof![Just(0x0800u16), Just(0x86dd)], version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        mut ip in prop::collection::vec(prop_oneof![Just(0u8), Just(43), Just(60), any::<u8>()], 1..300),
        types in 0..=hash::ALL,
    ) {
        ip[0] = version;
        let (_, report) = hashed(types, &ethernet(kind, &[&ip]));
        prop_assert!(report == 0 || types >> (report - 1) & 1 == 1);
    }
}
