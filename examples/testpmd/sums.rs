//! Checksums of packets: those that a sender left open, and those that it says are there.

use hugepages::Buf;
use pmd::Batch;
use pmd::offload::{self, Sum};
use pmd::spec::net::HDR_F_NEEDS_CSUM;

use crate::headers::{Headers, L3, be16, head_at, ip};

/// Stores the checksum that the packet leaves open.
pub(crate) fn complete(packet: &mut Buf) -> bool {
    let asked = packet.offload;
    let Ok(Some(patch)) = offload::checksum(&asked, std::iter::once(&*packet)) else { return false };
    packet.offload.flags &= !HDR_F_NEEDS_CSUM;
    (packet.offload.csum_start, packet.offload.csum_offset) = (0, 0);
    packet.poke(patch.at, patch.bytes)
}

/// Whether the checksums of the first packet are right: of its IPv4 header, and (if asked) of TCP or
/// UDP. What it has none of is right.
pub(crate) fn verify(batch: &Batch<Buf>, l4: bool) -> (bool, bool) {
    let (head, n) = head_at(batch, 0);
    let Some(h) = Headers::of(&head[..n]) else { return (true, true) };
    let l3 = &head[h.l2_len..n];
    if l3.len() < h.l3_len || h.l3 == L3::Other {
        return (true, true);
    }
    let ip_good = h.l3 == L3::V6 || {
        let mut sum = Sum::default();
        sum.add(&l3[..h.l3_len]);
        sum.verifies()
    };
    // UDP over IPv4 may have none.
    let none = h.proto == ip::UDP && be16(&head[..n], h.l4() + 6) == Some(0);
    if !l4 || h.l4_len == 0 || none {
        return (ip_good, true);
    }
    let (addresses, len) = match h.l3 {
        L3::V4 => (&l3[12..20], be16(l3, 2).map_or(0, |total| usize::from(total).saturating_sub(h.l3_len))),
        _ => (&l3[8..40], be16(l3, 4).map_or(0, usize::from)),
    };
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add_word(u16::from(h.proto));
    sum.add_word(len as u16);
    (ip_good, add_packet(&mut sum, batch, h.l4(), len) && sum.verifies())
}

/// Adds `len` bytes from byte `off` of the first packet; whether there were so many.
fn add_packet(sum: &mut Sum, batch: &Batch<Buf>, off: usize, len: usize) -> bool {
    let (mut skip, mut left) = (off as u32, len);
    let mut piece = [0; 512];
    for buf in batch.iter() {
        let mut at = skip.min(buf.len());
        skip -= at;
        while left > 0 {
            let want = left.min(piece.len());
            let n = buf.read(at, &mut piece[..want]);
            if n == 0 {
                break;
            }
            sum.add(&piece[..n]);
            (at, left) = (at + n as u32, left - n);
        }
        if left == 0 || !buf.more() {
            break;
        }
    }
    left == 0
}

/// A packet of any bytes in any pieces, with any offload: its headers lie in it, and a checksum that is completed
/// is right if the packet is one that can be verified.
#[cfg(any(test, fuzzing))]
pub(crate) fn any_frame(data: &[u8]) {
    use hugepages::{Backing, Lender, Map, Offload, PageSize, Table};

    let Some((&[pieces, start, offset, _], frame)) = data.split_first_chunk::<4>() else { return };
    let frame = &frame[..frame.len().min(0x4000)];
    if let Some(h) = Headers::of(frame) {
        assert!(h.l2_len >= 14 && h.l2_len <= frame.len() && (h.l4_len == 0 || h.l3 != L3::Other));
    }
    let backing = Backing { page: PageSize::Base, node: None };
    let lender = Lender::new(Table::of(Map::shared(0x1_0000, backing).unwrap()));
    let (mut batch, mut at) = (Batch::<Buf>::default(), 0);
    let piece = (frame.len() / (usize::from(pieces) % 12 + 1)).max(1);
    for part in frame.chunks(piece) {
        let mut buf = lender.lend_writable(at as u64, part.len() as u32, 0).unwrap();
        buf.write(0, part);
        at += part.len();
        buf.set_more(at < frame.len());
        batch.push(buf);
    }
    for l4 in [true, false] {
        let _ = verify(&batch, l4);
    }
    if !batch.is_empty() {
        let mut whole = lender.lend_writable(0x8000, frame.len() as u32, 0).unwrap();
        whole.write(0, frame);
        whole.offload = Offload {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: u16::from(start),
            csum_offset: u16::from(offset),
            ..Offload::default()
        };
        let inside = usize::from(start) + usize::from(offset) + 2 <= frame.len();
        assert!(inside || !complete(&mut whole), "a checksum outside the packet");
        lender.settle(whole.finish(0));
    }
    while let Some(buf) = batch.pop_front() {
        lender.settle(buf.finish(0));
    }
    assert_eq!(lender.out(), 0);
}

#[cfg(test)]
mod tests {
    include!("../../fuzz/replay.rs");

    #[test]
    fn frames_of_all_kinds() {
        replay("headers", super::any_frame);
    }
}
