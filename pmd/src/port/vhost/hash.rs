//! The hash of a packet: which of its fields (virtio 1.3 §5.1.6.4.3), and the Toeplitz hash over them.

use hugepages::Buf;

use super::wire::Mark;
use crate::spec::net::hash::{self, MAX_KEY};

/// Bytes of a packet that are looked at for what is to be hashed.
const HEAD: usize = 256;
/// Bytes of the longest input: two IPv6 addresses and two ports.
const MAX_INPUT: usize = 36;
/// IPv6 extension headers that are followed.
const MAX_EXTENSIONS: usize = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is hashed, and by which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashing {
    types: u32,
    key: [u8; MAX_KEY],
    /// By half byte of the input, and its value: what it adds to the hash.
    table: Box<[[u32; 16]; 2 * MAX_INPUT]>,
}

impl Hashing {
    /// With some of [`hash::ALL`], and a key; one shorter than [`MAX_KEY`] goes on with zeros. `None`: it knows no
    /// such type, or has no room for such a key.
    pub(super) fn new(types: u32, key: &[u8]) -> Option<Hashing> {
        if types & !hash::ALL != 0 || key.len() > MAX_KEY {
            return None;
        }
        let mut whole = [0; MAX_KEY];
        whole[..key.len()].copy_from_slice(key);
        let mut table = Box::new([[0; 16]; 2 * MAX_INPUT]);
        for (at, sums) in table.iter_mut().enumerate() {
            for (value, sum) in sums.iter_mut().enumerate() {
                let bits = (0..4).filter(|bit| value & 8 >> bit != 0);
                *sum = bits.fold(0, |sum, bit| sum ^ window(&whole, 4 * at + bit));
            }
        }
        Some(Hashing { types, key: whole, table })
    }

    /// The types, and the key.
    pub(super) fn parts(&self) -> (u32, &[u8; MAX_KEY]) {
        (self.types, &self.key)
    }

    /// The hash of a packet, and what was hashed.
    pub(super) fn packet<'b>(&self, bufs: impl Iterator<Item = &'b Buf>) -> Mark {
        let (mut head, mut got) = ([0; HEAD], 0);
        for buf in bufs {
            got += buf.read(0, &mut head[got..]);
            if got == HEAD {
                break;
            }
        }
        self.frame(&head[..got])
    }

    /// The same of a frame that begins like this.
    fn frame(&self, head: &[u8]) -> Mark {
        let Some((ip, kind)) = payload(head) else { return Mark::default() };
        let fields = match kind {
            0x0800 => v4(ip, self.types),
            0x86dd => v6(ip, self.types),
            _ => None,
        };
        let Some(Fields { bytes, len, kind }) = fields else { return Mark::default() };
        // §5.1.6.4.4: the reports are numbered as the bits are.
        let report = kind.trailing_zeros() as u16 + 1;
        Mark { value: self.toeplitz(&bytes[..len]).to_le(), report: report.to_le(), zero: 0 }
    }

    /// The hash of up to [`MAX_INPUT`] bytes.
    fn toeplitz(&self, input: &[u8]) -> u32 {
        let halves = input.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        halves.zip(self.table.iter()).fold(0, |sum, (half, sums)| sum ^ sums[usize::from(half)])
    }
}

/// 32 bits of a key, from this bit on.
fn window(key: &[u8; MAX_KEY], bit: usize) -> u32 {
    let byte = |i: usize| u64::from(key.get(bit / 8 + i).copied().unwrap_or(0));
    let bits = (0..5).fold(0, |bits, i| bits << 8 | byte(i));
    (bits >> (8 - bit % 8)) as u32
}

/// What is hashed, and the type by which it is.
struct Fields {
    bytes: [u8; MAX_INPUT],
    len: usize,
    kind: u32,
}

impl Fields {
    fn of(kind: u32, parts: &[&[u8]]) -> Option<Fields> {
        let (mut bytes, mut len) = ([0; MAX_INPUT], 0);
        for part in parts {
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        Some(Fields { bytes, len, kind })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// What an Ethernet frame carries, behind up to two VLAN tags, and its EtherType.
fn payload(frame: &[u8]) -> Option<(&[u8], u16)> {
    let (mut at, mut kind) = (14, word(frame, 12)?);
    for _ in 0..2 {
        if matches!(kind, 0x8100 | 0x88a8) {
            (kind, at) = (word(frame, at + 2)?, at + 4);
        }
    }
    Some((frame.get(at..)?, kind))
}

/// §5.1.6.4.3.2. Of a fragment only the addresses are hashed: the others of its datagram have no ports.
fn v4(ip: &[u8], types: u32) -> Option<Fields> {
    let header = usize::from(ip.first()? & 15) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return None;
    }
    let addresses = ip.get(12..20)?;
    let whole = word(ip, 6)? & 0x3fff == 0;
    let ports = ip.get(header..header + 4).filter(|_| whole);
    match (ip[9], ports) {
        (TCP, Some(ports)) if types & hash::TCPV4 != 0 => Fields::of(hash::TCPV4, &[addresses, ports]),
        (UDP, Some(ports)) if types & hash::UDPV4 != 0 => Fields::of(hash::UDPV4, &[addresses, ports]),
        _ if types & hash::IPV4 != 0 => Fields::of(hash::IPV4, &[addresses]),
        _ => None,
    }
}

/// §5.1.6.4.3.3 and, with extension headers, §5.1.6.4.3.4.
fn v6(ip: &[u8], types: u32) -> Option<Fields> {
    let (from, to) = (ip.get(8..24)?, ip.get(24..40)?);
    if ip[0] >> 4 != 6 {
        return None;
    }
    let extensions = Extensions::of(ip);
    let ports = extensions.ports;
    if extensions.any {
        let (from, to) = (extensions.home.unwrap_or(from), extensions.route.unwrap_or(to));
        match (extensions.last, ports) {
            (TCP, Some(ports)) if types & hash::TCP_EX != 0 => {
                return Fields::of(hash::TCP_EX, &[from, to, ports]);
            }
            (UDP, Some(ports)) if types & hash::UDP_EX != 0 => {
                return Fields::of(hash::UDP_EX, &[from, to, ports]);
            }
            _ if types & hash::IP_EX != 0 => return Fields::of(hash::IP_EX, &[from, to]),
            _ => {}
        }
    }
    match (extensions.last, ports) {
        (TCP, Some(ports)) if types & hash::TCPV6 != 0 => Fields::of(hash::TCPV6, &[from, to, ports]),
        (UDP, Some(ports)) if types & hash::UDPV6 != 0 => Fields::of(hash::UDPV6, &[from, to, ports]),
        _ if types & hash::IPV6 != 0 => Fields::of(hash::IPV6, &[from, to]),
        _ => None,
    }
}

/// The extension headers of an IPv6 packet (RFC 8200 §4), as far as they are in what is looked at.
#[derive(Default)]
struct Extensions<'p> {
    any: bool,
    /// The home address option (RFC 6275 §6.3).
    home: Option<&'p [u8]>,
    /// The address in a routing header of type 2 (RFC 6275 §6.4).
    route: Option<&'p [u8]>,
    /// The protocol behind them.
    last: u8,
    /// Its first four bytes, unless it is in fragments.
    ports: Option<&'p [u8]>,
}

impl<'p> Extensions<'p> {
    /// Of a packet with a whole fixed header.
    fn of(ip: &'p [u8]) -> Extensions<'p> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;
        let (mut found, mut at) = (Extensions { last: ip[6], ..Extensions::default() }, 40);
        for _ in 0..MAX_EXTENSIONS {
            let (Some(&next), Some(&units)) = (ip.get(at), ip.get(at + 1)) else { return found };
            let len = match found.last {
                HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(units) + 1) * 8,
                AUTHENTICATION => (usize::from(units) + 2) * 4,
                FRAGMENT => 8,
                _ => {
                    found.ports = ip.get(at..at + 4);
                    return found;
                }
            };
            let header = ip.get(at..at + len).unwrap_or(&[]);
            match found.last {
                DESTINATION => found.home = home_address(header).or(found.home),
                ROUTING if header.get(2) == Some(&2) => found.route = header.get(8..24).or(found.route),
                FRAGMENT if word(header, 2).is_none_or(|field| field & 0xfff9 != 0) => {
                    (found.any, found.last) = (true, next);
                    return found;
                }
                _ => {}
            }
            (found.any, found.last, at) = (true, next, at + len);
        }
        found
    }
}

fn home_address(options: &[u8]) -> Option<&[u8]> {
    const PAD1: u8 = 0;
    const HOME_ADDRESS: u8 = 201;
    let mut rest = options.get(2..)?;
    loop {
        match rest {
            [PAD1, more @ ..] => rest = more,
            [HOME_ADDRESS, 16, data @ ..] => return data.get(..16),
            [_, len, more @ ..] => rest = more.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
pub(in crate::port::vhost) mod tests;
