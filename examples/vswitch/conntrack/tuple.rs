//! The addresses of one direction of a connection.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::vswitch::flow::key::{FRAG_ANY, ether, proto};
use crate::vswitch::flow::{Field, Key};
use crate::vswitch::packet::{be16, be32, be64};

/// Addresses of a direction, in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Zone.
    pub zone: u16,
    /// IPv6.
    pub v6: bool,
    /// Protocol.
    pub proto: u8,
    /// Source; of IPv4 the lowest 32 bits.
    pub src: u128,
    /// Destination.
    pub dst: u128,
    /// Port; of ICMP the type of the request.
    pub src_port: u16,
    /// Port; of ICMP the type of the request.
    pub dst_port: u16,
    /// Number of an ICMP request.
    pub id: u16,
}

/// What tells a packet's connection and is in no key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beyond {
    /// Number of an ICMP request or answer.
    pub id: u16,
    /// Of the packet that an ICMP error is about.
    pub quoted: Option<Tuple>,
}

impl Beyond {
    /// Of a packet whose transport header is `bytes`.
    pub fn of(key: &Key, bytes: &[u8]) -> Beyond {
        let kind = key.lie(Field::IcmpType) as u8;
        let (v6, error) = match (key.ether_type(), key.nw_proto()) {
            (ether::IPV4, proto::ICMP) => (false, matches!(kind, 3 | 4 | 5 | 11 | 12)),
            (ether::IPV6, proto::ICMP6) => (true, matches!(kind, 1..=4)),
            _ => return Beyond::default(),
        };
        let quoted = if error { bytes.get(8..).and_then(|quote| Tuple::in_quote(quote, v6)) } else { None };
        Beyond { id: be16(bytes, 4).unwrap_or(0), quoted }
    }
}

/// Types of ICMP that ask, and those that answer.
const PAIRS: [(u8, u8, u8); 5] = [
    (proto::ICMP, 8, 0),
    (proto::ICMP, 13, 14),
    (proto::ICMP, 15, 16),
    (proto::ICMP, 17, 18),
    (proto::ICMP6, 128, 129),
];

impl Tuple {
    /// Of a packet; `None`: it is of no connection.
    pub fn of(key: &Key, zone: u16, id: u16) -> Option<Tuple> {
        let v6 = match key.ether_type() {
            ether::IPV4 => false,
            ether::IPV6 => true,
            _ => return None,
        };
        // Fragments are of no connection that their ports could tell.
        if key.lie(Field::NwFrag) as u8 & FRAG_ANY != 0 {
            return None;
        }
        let (src, dst) = match v6 {
            false => (key.lie(Field::NwSrc), key.lie(Field::NwDst)),
            true => (key.lie(Field::Ipv6Src), key.lie(Field::Ipv6Dst)),
        };
        let protocol = key.nw_proto();
        let icmp = matches!(protocol, proto::ICMP | proto::ICMP6);
        let (mut src_port, mut dst_port) = (key.lie(Field::TcpSrc) as u16, key.lie(Field::TcpDst) as u16);
        match protocol {
            proto::TCP | proto::UDP | proto::SCTP => {
                if src_port == 0 || dst_port == 0 {
                    return None;
                }
            }
            proto::ICMP | proto::ICMP6 => {
                // Both directions of a question have its type; which is which is in the addresses.
                let kind = src_port as u8;
                let pair =
                    PAIRS.iter().find(|(p, ask, answer)| *p == protocol && (*ask == kind || *answer == kind));
                let (_, ask, answer) = pair?;
                (src_port, dst_port) = match kind == *ask {
                    true => (u16::from(*ask), u16::from(*answer)),
                    false => (u16::from(*answer), u16::from(*ask)),
                };
            }
            _ => (src_port, dst_port) = (0, 0),
        }
        Some(Tuple { zone, v6, proto: protocol, src, dst, src_port, dst_port, id: if icmp { id } else { 0 } })
    }

    /// Of the packet that an ICMP error quotes, which may be cut short behind its ports; in no zone.
    fn in_quote(bytes: &[u8], v6: bool) -> Option<Tuple> {
        let (proto, at, src, dst) = match v6 {
            false => {
                let (src, dst) = (be32(bytes, 12)?, be32(bytes, 16)?);
                (*bytes.get(9)?, usize::from(bytes[0] & 15) * 4, u128::from(src), u128::from(dst))
            }
            true => {
                let wide = |at| Some(u128::from(be64(bytes, at)?) << 64 | u128::from(be64(bytes, at + 8)?));
                (*bytes.get(6)?, 40, wide(8)?, wide(24)?)
            }
        };
        if !matches!(proto, proto::TCP | proto::UDP | proto::SCTP) {
            return None;
        }
        let (src_port, dst_port) = (be16(bytes, at)?, be16(bytes, at + 2)?);
        Some(Tuple { zone: 0, v6, proto, src, dst, src_port, dst_port, id: 0 })
    }

    /// The other direction.
    pub fn reversed(&self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, ..*self }
    }

    /// The key's fields of the original direction.
    pub(super) fn tell(&self, key: &mut Key) {
        let (src, dst) = match self.v6 {
            false => (Field::CtNwSrc, Field::CtNwDst),
            true => (Field::CtIpv6Src, Field::CtIpv6Dst),
        };
        key.lay(src, self.src);
        key.lay(dst, self.dst);
        key.lay(Field::CtNwProto, self.proto.into());
        let icmp = matches!(self.proto, proto::ICMP | proto::ICMP6);
        key.lay(Field::CtTpSrc, self.src_port.into());
        key.lay(Field::CtTpDst, if icmp { 0 } else { self.dst_port.into() });
    }

    /// As it is printed.
    pub(super) fn text(&self) -> String {
        let addr = |a: u128| match self.v6 {
            false => Ipv4Addr::from(a as u32).to_string(),
            true => Ipv6Addr::from(a).to_string(),
        };
        let ports = match self.proto {
            proto::ICMP | proto::ICMP6 => format!("id={},type={},code=0", self.id, self.src_port),
            _ => format!("sport={},dport={}", self.src_port, self.dst_port),
        };
        format!("src={},dst={},{ports}", addr(self.src), addr(self.dst))
    }
}
