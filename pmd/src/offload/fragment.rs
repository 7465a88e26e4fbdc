//! Fragmentation in software (UFO, virtio 1.3 §5.1.6.2.1): one large UDP packet becomes fragments of it (RFC
//! 791 §3.2, RFC 8200 §4.5). Its checksum covers the whole, and is completed before.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use hugepages::{Buf, Offload};

use super::Sum;
use super::segment::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, MAX_FRAMES, MAX_HEADERS, Segment, network, payload};
use crate::spec::net;

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const UDP_BYTES: usize = 8;
const MORE: u16 = 0x2000;

/// Identifications of IPv6, from a start that nobody knows (RFC 7739).
static NEXT_ID: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(RandomState::new().hash_one(0) as u32));

/// The fragments of one packet, one after the other.
#[derive(Debug)]
pub struct Fragments {
    header: [u8; MAX_HEADERS],
    /// The UDP header, complete.
    udp: [u8; UDP_BYTES],
    /// Bytes of the headers that were written last.
    written: usize,
    l3: usize,
    /// Where the UDP header is in the packet: what follows the headers of IP.
    l4: usize,
    ipv4: bool,
    /// Bytes of a fragment behind its headers, a multiple of 8.
    size: u32,
    total: u32,
    at: u32,
    id: u32,
}

impl Fragments {
    /// Reads the headers of the packet in `bufs`. `None`: it is not what `offload` says, or has options or
    /// extension headers.
    pub fn of<'a>(offload: &Offload, bufs: impl Iterator<Item = &'a Buf> + Clone) -> Option<Fragments> {
        let mut header = [0u8; MAX_HEADERS];
        let (mut got, mut total) = (0, 0u32);
        for buf in bufs.clone() {
            got += buf.read(0, &mut header[got..]);
            total = total.checked_add(buf.len())?;
        }
        let (l3, ethertype) = network(&header[..got])?;
        let l4 = usize::from(offload.csum_start);
        let ip = header.get(l3..l3 + 40)?;
        let (ipv4, sound, id) = match ethertype {
            // No options, no fragment.
            ETHERTYPE_IPV4 => {
                let whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff == 0;
                let id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
                (true, ip[0] == 0x45 && ip[9] == UDP && l4 == l3 + 20 && whole, id)
            }
            ETHERTYPE_IPV6 => {
                // Relaxed: it is a number that nobody else gets.
                let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
                (false, ip[0] >> 4 == 6 && ip[6] == UDP && l4 == l3 + 40, id)
            }
            _ => return None,
        };
        let size = u32::from(offload.gso_size) & !7;
        let l4_bytes = total.checked_sub(l4 as u32)?;
        let fits = l4_bytes > UDP_BYTES as u32 && l4_bytes <= 65535 - 48 && l4 + UDP_BYTES <= got;
        if !sound || !fits || size <= UDP_BYTES as u32 || l4_bytes.div_ceil(size) > MAX_FRAMES {
            return None;
        }
        let mut udp: [u8; UDP_BYTES] = header[l4..l4 + UDP_BYTES].try_into().expect("that many");
        udp[4..6].copy_from_slice(&(l4_bytes as u16).to_be_bytes());
        udp[6..].fill(0);
        let mut sum = Sum::default();
        sum.add(if ipv4 { &header[l3 + 12..l3 + 20] } else { &header[l3 + 8..l3 + 40] });
        sum.add_word(l4_bytes as u16);
        sum.add_word(UDP.into());
        sum.add(&udp);
        payload(&mut sum, bufs, (l4 + UDP_BYTES) as u32, l4_bytes - UDP_BYTES as u32);
        udp[6..].copy_from_slice(&sum.stored());
        Some(Fragments { header, udp, written: 0, l3, l4, ipv4, size, total, at: l4 as u32, id })
    }

    /// Frames that are still to come.
    pub fn left(&self) -> u32 {
        (self.total - self.at).div_ceil(self.size)
    }

    /// The headers of the frame that [`Fragments::advance`] gave last.
    pub fn headers(&self) -> &[u8] {
        &self.header[..self.written]
    }

    /// Goes on to the next frame and writes its headers.
    pub fn advance(&mut self) -> Option<Segment> {
        if self.at >= self.total {
            return None;
        }
        let (from, len) = (self.at, self.size.min(self.total - self.at));
        let offset = (from - self.l4 as u32) as u16;
        let last = from + len == self.total;
        self.at += len;
        self.written = self.l4;
        if self.ipv4 {
            self.ipv4_header(len, offset, last)
        } else {
            self.ipv6_header(len, offset, last)
        }
        if offset > 0 {
            return Some(Segment { from, len });
        }
        self.header[self.written..self.written + UDP_BYTES].copy_from_slice(&self.udp);
        self.written += UDP_BYTES;
        Some(Segment { from: from + UDP_BYTES as u32, len: len - UDP_BYTES as u32 })
    }

    fn ipv4_header(&mut self, len: u32, offset: u16, last: bool) {
        let ip = &mut self.header[self.l3..self.l4];
        let bytes = ip.len() as u16 + len as u16;
        ip[2..4].copy_from_slice(&bytes.to_be_bytes());
        let more = if last { 0 } else { MORE };
        let word = (offset / 8) | more;
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        ip[10..12].fill(0);
        let mut sum = Sum::default();
        sum.add(ip);
        ip[10..12].copy_from_slice(&sum.bytes());
    }

    fn ipv6_header(&mut self, len: u32, offset: u16, last: bool) {
        let (l3, l4) = (self.l3, self.l4);
        self.header[l3 + 4..l3 + 6].copy_from_slice(&(len as u16 + 8).to_be_bytes());
        self.header[l3 + 6] = FRAGMENT;
        let extension = &mut self.header[l4..l4 + 8];
        extension[..2].copy_from_slice(&[UDP, 0]);
        // The offset in eights stands three bits up.
        extension[2..4].copy_from_slice(&(offset | u16::from(!last)).to_be_bytes());
        extension[4..].copy_from_slice(&self.id.to_be_bytes());
        self.written += 8;
    }
}

/// Whether a packet is to be fragmented.
pub(super) fn is_asked(offload: &Offload) -> bool {
    offload.gso_type & !net::GSO_ECN == net::GSO_UDP
}

#[cfg(test)]
mod tests {
    use super::super::segment::Segments;
    use super::*;
    use crate::batch::Batch;
    use etherparse::PacketBuilder;
    use hugepages::{Backing, PageSize, Pool};
    use std::collections::BTreeMap;

    fn packet(v6: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let step =
            if v6 { eth.ipv6([1; 16], [2; 16], 64) } else { eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64) };
        step.udp(7, 9).write(&mut packet, payload).unwrap();
        packet
    }

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

    fn asked(v6: bool, gso_size: u16) -> Offload {
        let csum_start = if v6 { 54 } else { 34 };
        Offload { flags: 1, gso_type: net::GSO_UDP, hdr_len: 0, gso_size, csum_start, csum_offset: 6 }
    }

    /// Puts fragments together as a receiver does; the packet that comes of it, from its UDP header on.
    fn reassemble(v6: bool, frames: &[Vec<u8>], size: usize) -> Vec<u8> {
        let (mut parts, mut ids) = (BTreeMap::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let (more, offset, from) = if v6 {
                assert_eq!((usize::from(word(18)), frame[20]), (frame.len() - 54, FRAGMENT));
                assert_eq!(frame[54..56], [UDP, 0]);
                ids.push(frame[58..62].to_vec());
                (word(56) & 1 == 1, usize::from(word(56) & !7), 62)
            } else {
                let mut sum = Sum::default();
                sum.add(&frame[14..34]);
                assert!(sum.verifies() && usize::from(word(16)) == frame.len() - 14);
                ids.push(frame[18..20].to_vec());
                (word(20) & MORE != 0, usize::from(word(20) & 0x1fff) * 8, 34)
            };
            assert_eq!((more, offset), (i + 1 < frames.len(), i * size));
            assert!(frame.len() - from <= size && (!more || frame.len() - from == size));
            parts.insert(offset, frame[from..].to_vec());
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "one identification");
        parts.into_values().flatten().collect()
    }

    #[test]
    fn fragments_are_the_packet() {
        let (mut pool, _) = Pool::new(64, 4096, Backing { page: PageSize::Base, node: None }).unwrap();
        for v6 in [false, true] {
            for (bytes, size, piece) in
                [(4321, 1480, 700), (2952, 1480, 4096), (60_000, 1448, 4096), (20, 16, 33)]
            {
                let payload: Vec<u8> = (0..bytes as u32).map(|i| (i * 13) as u8).collect();
                let whole = packet(v6, &payload);
                let l4 = if v6 { 54 } else { 34 };
                let mut left_open = whole.clone();
                left_open[l4 + 6..l4 + 8].fill(0x5a);
                let mut batch = lend(&mut pool, &left_open, piece);
                // What is no multiple of 8 is rounded down.
                let mut segments = Segments::of(&asked(v6, size + 3), batch.iter()).unwrap();
                let (count, mut frames) = (segments.left(), Vec::new());
                while let Some(segment) = segments.advance(batch.iter()) {
                    let from = segment.from as usize;
                    frames.push([segments.headers(), &left_open[from..from + segment.len as usize]].concat());
                }
                assert_eq!(count as usize, frames.len());
                assert_eq!(reassemble(v6, &frames, size.into()), &whole[l4..], "with its checksum");
                while let Some(buf) = batch.pop_front() {
                    pool.settle(buf.finish(0));
                }
            }
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        let (mut pool, _) = Pool::new(2, 65536, Backing { page: PageSize::Base, node: None }).unwrap();
        for v6 in [false, true] {
            let good = asked(v6, 800);
            let whole = packet(v6, &[7; 2000]);
            let mut batch = lend(&mut pool, &whole, 65536);
            assert!(Segments::of(&good, batch.iter()).is_some());
            for bad in [
                Offload { gso_size: 15, ..good },
                Offload { gso_size: 0, ..good },
                Offload { csum_start: good.csum_start + 1, ..good },
                Offload { csum_start: 0xffff, ..good },
                Offload { csum_start: 0, ..good },
            ] {
                assert!(Segments::of(&bad, batch.iter()).is_none(), "{bad:?}");
            }
            pool.settle(batch.pop_front().unwrap().finish(0));
            // Not UDP; options or extension headers; a fragment already.
            for (at, byte) in [(if v6 { 20 } else { 23 }, 6), (14, 0x46), (20, 0x20)] {
                let mut other = whole.clone();
                other[at] = byte;
                let mut batch = lend(&mut pool, &other, 65536);
                assert!(Segments::of(&good, batch.iter()).is_none(), "{byte:#x} at {at}");
                pool.settle(batch.pop_front().unwrap().finish(0));
            }
            for len in 1..usize::from(good.csum_start) + 9 {
                let mut batch = lend(&mut pool, &whole[..len], 65536);
                assert!(Segments::of(&good, batch.iter()).is_none(), "{len}");
                pool.settle(batch.pop_front().unwrap().finish(0));
            }
        }
    }
}
