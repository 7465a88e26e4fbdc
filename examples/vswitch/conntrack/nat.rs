//! Which addresses a connection gets.

use std::net::IpAddr;

use super::Tuple;
use crate::vswitch::flow::action::{Nat, Side};
use crate::vswitch::flow::key::proto;

/// Addresses that are tried before it is given up, and ports of all of them: who uses up all that there are costs
/// others little time.
const HOSTS: u128 = 16;
const TRIES: u32 = 1024;
/// From one port that is tried to the next, where not all can be: whoever takes many takes them in a row.
const STRIDE: u32 = 40_507;

/// The tuple of the answers, with the addresses that NAT gives; `None`: all are taken.
pub(super) fn choose(nat: &Nat, original: &Tuple, taken: impl Fn(&Tuple) -> bool) -> Option<Tuple> {
    let plain = original.reversed();
    let Some(side) = nat.side else {
        return (!taken(&plain)).then_some(plain);
    };
    let number = |a: IpAddr| match a {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    let own = if side == Side::Src { original.src } else { original.dst };
    let (first, last) = nat.addrs.map_or((own, own), |(a, b)| (number(a), number(b)));
    let own_port = if side == Side::Src { original.src_port } else { original.dst_port };
    let has_ports = matches!(original.proto, proto::TCP | proto::UDP | proto::SCTP);
    // Without a range of its own: the port it has, else any that is not of a well-known service.
    let (low, high) = match (nat.ports, side) {
        _ if !has_ports => (own_port, own_port),
        (Some((low, high)), _) => (low, high.max(low)),
        (None, Side::Src) => (1024, 65535),
        (None, Side::Dst) => (own_port, own_port),
    };
    let hosts = last.saturating_sub(first).saturating_add(1);
    let hash = mix(original);
    let ports = u32::from(high - low) + 1;
    let start = if (low..=high).contains(&own_port) && !nat.random {
        u32::from(own_port - low)
    } else if nat.ports.is_none() && !nat.random {
        u32::MAX
    } else {
        (hash >> 32) as u32 % ports
    };
    let tried = hosts.min(HOSTS);
    let each = ports.min(TRIES / tried as u32);
    let stride = if each == ports { 1 } else { STRIDE };
    for i in 0..tried {
        let host = first + (u128::from(hash) + i) % hosts;
        let with = |port: u16| match side {
            Side::Src => Tuple { dst: host, dst_port: port, ..plain },
            Side::Dst => Tuple { src: host, src_port: port, ..plain },
        };
        if start == u32::MAX && !taken(&with(own_port)) {
            return Some(with(own_port));
        }
        let from = if start == u32::MAX { 0 } else { start };
        let port =
            |n: u32| low + ((u64::from(from) + u64::from(n) * u64::from(stride)) % u64::from(ports)) as u16;
        let free = (0..each).map(|n| with(port(n))).find(|t| !taken(t));
        if free.is_some() {
            return free;
        }
    }
    None
}

fn mix(tuple: &Tuple) -> u64 {
    let words = [tuple.src as u64, (tuple.src >> 64) as u64, tuple.dst as u64, u64::from(tuple.src_port)];
    words.iter().fold(0, |h, w| (h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}
