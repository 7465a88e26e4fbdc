//! Joining: consecutive TCP segments of a flow within a burst become one large packet, for receivers that
//! take such packets. The reverse of [`segment`](super::segment): segmenting what was joined gives the
//! frames that came in, but for the order among flows.
//!
//! Nothing is copied but headers: the large packet is a header, in the first frame or in a buffer of its
//! own, and the payloads where they lie.

use hugepages::{Buf, Offload};

use super::Sum;
use super::segment::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP, network, payload};
use crate::batch::{Batch, CAP};
use crate::spec::net;

/// Bytes of the longest headers that are looked at: Ethernet, two VLAN tags, IPv6, TCP with all options.
pub const HEADERS: usize = 14 + 8 + 40 + 60;
/// Buffers of a joined packet: what any port sends at once.
const MAX_BUFS: usize = 64;
/// Flows that are joined at a time; of more, the one that began first is let go.
const FLOWS: usize = 16;

const ACK: u8 = 0x10;
const PSH_FIN: u8 = 0x08 | 0x01;
const NONE: u16 = u16::MAX;

/// What one packet is.
enum Kind {
    /// Not TCP.
    Other,
    /// TCP, as far as can be seen: no flow goes on across it.
    Opaque,
    /// TCP of this flow, that cannot be joined: its flow does not go on across it.
    Ends(u64),
    /// A segment with data.
    Data(u64, Data),
}

/// Where things are in a segment, and what goes on from one to the next.
#[derive(Clone, Copy, Default)]
struct Data {
    ipv4: bool,
    l3: usize,
    l4: usize,
    headers: usize,
    /// Payload bytes.
    len: u32,
    seq: u32,
    id: u16,
    flags: u8,
    /// Its checksum is known to be right, or will be completed.
    sound: bool,
}

/// Packets that become one; most have just one.
struct Group {
    header: [u8; HEADERS],
    first: Data,
    /// First buffer of its first packet, and of its last.
    head: u16,
    tail: u16,
    packets: u16,
    bufs: usize,
    /// Payload bytes, and flags of the last.
    bytes: u32,
    last: u8,
}

/// A packet on its way through.
#[derive(Clone, Copy)]
struct Link {
    bufs: u16,
    /// First buffer of the next one of its group.
    next: u16,
    len: u32,
}

/// Joins the packets of bursts. Keeps nothing from one burst to the next.
pub struct Joiner {
    groups: Vec<Group>,
    /// By the first buffer of a packet.
    links: Vec<Link>,
    /// Flows that may go on: their groups.
    open: Vec<(u64, u16)>,
    moved: Vec<Option<Buf>>,
}

impl Default for Joiner {
    fn default() -> Self {
        Joiner {
            groups: Vec::with_capacity(CAP),
            links: vec![Link { bufs: 0, next: NONE, len: 0 }; CAP],
            open: Vec::with_capacity(FLOWS),
            moved: Vec::with_capacity(CAP),
        }
    }
}

impl Joiner {
    /// Joins what can be joined of `batch`; how many packets there are less. `frame` lends a writable buffer
    /// for headers, used where a first frame cannot be written; `finish` gets buffers of which nothing is
    /// left.
    pub fn join(
        &mut self,
        batch: &mut Batch<Buf>,
        frame: impl FnMut(u32) -> Option<Buf>,
        finish: impl FnMut(Buf),
    ) -> usize {
        self.groups.clear();
        self.open.clear();
        let (mut at, mut packets) = (0, 0);
        while at < batch.len() {
            let (bufs, bytes) = batch.packet_at(at);
            self.links[at] = Link { bufs: bufs as u16, next: NONE, len: 0 };
            self.look(batch, at, bufs, bytes);
            at += bufs;
            packets += 1;
        }
        if self.groups.len() == packets {
            return 0;
        }
        self.rebuild(batch, frame, finish)
    }

    /// Puts a packet into its group.
    fn look(&mut self, batch: &Batch<Buf>, at: usize, bufs: usize, bytes: u32) {
        let (mut header, mut got) = ([0; HEADERS], 0);
        let packet = || batch.iter().skip(at).take(bufs);
        for buf in packet() {
            got += buf.read(0, &mut header[got..]);
        }
        let offload = packet().next().expect("a packet has a buffer").offload;
        let kind = kind(&header[..got], bytes, &offload);
        let (tag, data) = match kind {
            Kind::Data(tag, data) => (tag, data),
            Kind::Other => return self.alone(at, bufs),
            Kind::Opaque => {
                self.open.clear();
                return self.alone(at, bufs);
            }
            Kind::Ends(tag) => {
                self.open.retain(|(open, _)| *open != tag);
                return self.alone(at, bufs);
            }
        };
        self.links[at].len = data.len;
        let known = self.open.iter().position(|(open, _)| *open == tag);
        if let Some(known) = known {
            let group = self.open[known].1;
            if self.goes_on(batch, usize::from(group), &header, &data, at, bufs) {
                let group = &mut self.groups[usize::from(group)];
                self.links[usize::from(group.tail)].next = at as u16;
                group.tail = at as u16;
                group.packets += 1;
                group.bufs += bufs;
                group.bytes += data.len;
                group.last |= data.flags & PSH_FIN;
                if data.len < group.first.len || data.flags & PSH_FIN != 0 {
                    self.open.swap_remove(known);
                }
                return;
            }
            self.open.swap_remove(known);
        }
        let group = self.groups.len() as u16;
        self.groups.push(Group {
            header,
            first: data,
            head: at as u16,
            tail: at as u16,
            packets: 1,
            bufs,
            bytes: data.len,
            last: data.flags & PSH_FIN,
        });
        if data.flags & PSH_FIN == 0 {
            if self.open.len() == FLOWS {
                self.open.remove(0);
            }
            self.open.push((tag, group));
        }
    }

    fn alone(&mut self, at: usize, bufs: usize) {
        self.groups.push(Group {
            header: [0; HEADERS],
            first: Data::default(),
            head: at as u16,
            tail: at as u16,
            packets: 1,
            bufs,
            bytes: 0,
            last: 0,
        });
    }

    /// Whether a segment is the next one of a group.
    fn goes_on(
        &mut self,
        batch: &Batch<Buf>,
        group: usize,
        header: &[u8; HEADERS],
        data: &Data,
        at: usize,
        bufs: usize,
    ) -> bool {
        let group = &mut self.groups[group];
        let first = &group.first;
        let whole = (first.headers - first.l3) as u32 + group.bytes + data.len;
        let follows = data.seq == first.seq.wrapping_add(group.bytes)
            && (!data.ipv4 || data.id == first.id.wrapping_add(group.packets))
            && data.len <= first.len
            && whole <= 65535
            && group.bufs + bufs < MAX_BUFS
            && same(&group.header, first, header, data);
        if !follows {
            return false;
        }
        // Payloads are looked at only now that it matters.
        if !group.first.sound {
            let head = usize::from(group.head);
            let bufs = usize::from(self.links[head].bufs);
            group.first.sound = verifies(&group.header, &group.first, batch.iter().skip(head).take(bufs));
        }
        group.first.sound && (data.sound || verifies(header, data, batch.iter().skip(at).take(bufs)))
    }

    /// Puts the packets of each group together, in the order in which groups began.
    fn rebuild(
        &mut self,
        batch: &mut Batch<Buf>,
        mut frame: impl FnMut(u32) -> Option<Buf>,
        mut finish: impl FnMut(Buf),
    ) -> usize {
        let Joiner { groups, links, moved, .. } = self;
        moved.clear();
        while let Some(buf) = batch.pop_front() {
            moved.push(Some(buf));
        }
        let mut joined = 0;
        for group in groups {
            let header = if group.packets > 1 { header_of(group, moved, &mut frame) } else { None };
            let Some((offload, own)) = header else {
                let mut at = group.head;
                while at != NONE {
                    let link = links[usize::from(at)];
                    (0..link.bufs).for_each(|i| batch.push(take(moved, at + i)));
                    at = link.next;
                }
                continue;
            };
            joined += usize::from(group.packets) - 1;
            let before = batch.len();
            let headers = group.first.headers as u32;
            let mut strip = own.is_some();
            if let Some(own) = own {
                batch.push(own);
            }
            let mut at = group.head;
            while at != NONE {
                let link = links[usize::from(at)];
                let (mut skip, mut left) = if strip { (headers, link.len) } else { (0, headers + link.len) };
                for i in 0..link.bufs {
                    let mut buf = take(moved, at + i);
                    let gone = skip.min(buf.len());
                    buf.advance(gone);
                    skip -= gone;
                    buf.truncate(left);
                    left -= buf.len();
                    if buf.is_empty() { finish(buf) } else { batch.push(buf) }
                }
                (at, strip) = (link.next, true);
            }
            let last = batch.len() - 1;
            for i in before..=last {
                batch.get_mut(i).expect("just pushed").set_more(i < last);
            }
            batch.get_mut(before).expect("just pushed").offload = offload;
        }
        joined
    }
}

fn take(moved: &mut [Option<Buf>], at: u16) -> Buf {
    moved[usize::from(at)].take().expect("each buffer is in one group, once")
}

/// Writes the header of a joined packet: into its first frame, or into one of its own. `None`: there is none.
fn header_of(
    group: &mut Group,
    moved: &mut [Option<Buf>],
    frame: &mut impl FnMut(u32) -> Option<Buf>,
) -> Option<(Offload, Option<Buf>)> {
    let Data { ipv4, l3, l4, headers, len, .. } = group.first;
    let header = &mut group.header;
    let l4_bytes = (headers - l4) as u32 + group.bytes;
    if ipv4 {
        let bytes = (l4 - l3) as u32 + l4_bytes;
        header[l3 + 2..l3 + 4].copy_from_slice(&(bytes as u16).to_be_bytes());
        header[l3 + 10..l3 + 12].copy_from_slice(&[0, 0]);
        let mut sum = Sum::default();
        sum.add(&header[l3..l4]);
        header[l3 + 10..l3 + 12].copy_from_slice(&sum.bytes());
    } else {
        header[l3 + 4..l3 + 6].copy_from_slice(&(l4_bytes as u16).to_be_bytes());
    }
    header[l4 + 13] |= group.last;
    // virtio 1.3 §5.1.6.2: the sum of the pseudo header stands where the checksum will be.
    let sum = pseudo(header, &group.first, l4_bytes).partial();
    header[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    let offload = Offload {
        flags: net::HDR_F_NEEDS_CSUM,
        gso_type: if ipv4 { net::GSO_TCPV4 } else { net::GSO_TCPV6 },
        hdr_len: headers as u16,
        gso_size: len as u16,
        csum_start: l4 as u16,
        csum_offset: 16,
    };
    let first = moved[usize::from(group.head)].as_mut().expect("not taken yet");
    if first.writable() && first.len() as usize >= headers {
        first.write(0, &header[..headers]);
        return Some((offload, None));
    }
    let mut own = frame(headers as u32)?;
    own.truncate(headers as u32);
    assert_eq!(own.write(0, &header[..headers]), headers, "a frame for headers holds them");
    Some((offload, Some(own)))
}

fn pseudo(header: &[u8], data: &Data, l4_bytes: u32) -> Sum {
    let mut sum = Sum::default();
    let (from, to) = if data.ipv4 { (12, 20) } else { (8, 40) };
    sum.add(&header[data.l3 + from..data.l3 + to]);
    sum.add_word(l4_bytes as u16);
    sum.add_word(u16::from(TCP));
    sum
}

/// Whether the checksum of a segment is right.
fn verifies<'a>(header: &[u8], data: &Data, bufs: impl Iterator<Item = &'a Buf>) -> bool {
    let l4_bytes = (data.headers - data.l4) as u32 + data.len;
    let mut sum = pseudo(header, data, l4_bytes);
    // Headers as they were copied out, payload as it is.
    sum.add(&header[data.l4..data.headers]);
    payload(&mut sum, bufs, data.headers as u32, data.len);
    sum.verifies()
}

/// Whether two headers differ only in what differs from one segment to the next: lengths, identification,
/// sequence number, PSH, FIN and checksums.
fn same(a: &[u8; HEADERS], at: &Data, b: &[u8; HEADERS], bt: &Data) -> bool {
    if (at.ipv4, at.l3, at.l4, at.headers) != (bt.ipv4, bt.l3, bt.l4, bt.headers) {
        return false;
    }
    let alike = |from: usize, to: usize| a[from..to] == b[from..to];
    let (l3, l4) = (at.l3, at.l4);
    let network = if at.ipv4 {
        // Version, TOS; fragment bits, TTL, protocol; addresses.
        alike(0, l3 + 2) && alike(l3 + 6, l3 + 10) && alike(l3 + 12, l4)
    } else {
        // Version, class, flow label; next header, hop limit, addresses.
        alike(0, l3 + 4) && alike(l3 + 6, l4)
    };
    // Ports; acknowledgement, offset; window; urgent pointer, options.
    network
        && alike(l4, l4 + 4)
        && alike(l4 + 8, l4 + 13)
        && alike(l4 + 14, l4 + 16)
        && alike(l4 + 18, at.headers)
        && (a[l4 + 13] ^ b[l4 + 13]) & !PSH_FIN == 0
}

/// What a packet of `bytes` bytes is, by its first bytes.
fn kind(header: &[u8], bytes: u32, offload: &Offload) -> Kind {
    let Some((l3, ethertype)) = network(header) else { return Kind::Other };
    let ip = &header[l3..];
    let (ipv4, l4, end) = match ethertype {
        ETHERTYPE_IPV4 if ip.len() >= 20 && ip[9] == TCP => {
            let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
            let mut sum = Sum::default();
            sum.add(&ip[..20]);
            // No options, no fragment, a good checksum.
            if ip[0] != 0x45 || word(6) & 0xbfff != 0 || !sum.verifies() {
                return Kind::Opaque;
            }
            (true, l3 + 20, l3 + usize::from(word(2)))
        }
        ETHERTYPE_IPV6 if ip.len() >= 40 => {
            if ip[6] != TCP {
                // Behind an extension header there may be TCP.
                return if ip[6] == 17 || ip[6] == 58 { Kind::Other } else { Kind::Opaque };
            }
            (false, l3 + 40, l3 + 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])))
        }
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 if ip.len() < 20 => return Kind::Opaque,
        _ => return Kind::Other,
    };
    let Some(tcp) = header.get(l4..).filter(|tcp| tcp.len() >= 20) else { return Kind::Opaque };
    let addresses = if ipv4 { &ip[12..20] } else { &ip[8..40] };
    let tag = addresses.iter().chain(&tcp[..4]).fold(0u64, |tag, byte| {
        // FNV-1a: equal tags are compared in full before anything is joined.
        (tag ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let headers = l4 + usize::from(tcp[12] >> 4) * 4;
    let known = headers >= l4 + 20 && headers <= header.len();
    if !known || end <= headers || end > bytes as usize || offload.gso_type != 0 {
        return Kind::Ends(tag);
    }
    if tcp[13] & !PSH_FIN != ACK {
        return Kind::Ends(tag);
    }
    let partial = offload.flags & net::HDR_F_NEEDS_CSUM != 0;
    if partial && (usize::from(offload.csum_start), offload.csum_offset) != (l4, 16) {
        return Kind::Ends(tag);
    }
    Kind::Data(
        tag,
        Data {
            ipv4,
            l3,
            l4,
            headers,
            len: (end - headers) as u32,
            seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            id: if ipv4 { u16::from_be_bytes([ip[4], ip[5]]) } else { 0 },
            flags: tcp[13],
            sound: partial || offload.flags & net::HDR_F_DATA_VALID != 0,
        },
    )
}

#[cfg(test)]
mod tests;
