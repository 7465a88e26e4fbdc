use std::collections::BTreeMap;

use etherparse::PacketBuilder;
use hugepages::{Backing, PageSize, Pool};
use proptest::prelude::*;

use super::super::segment::Segments;
use super::*;

fn pool(frames: usize, size: u32) -> Pool {
    Pool::new(frames, size, Backing { page: PageSize::Base, node: None }).unwrap().0
}

/// A packet in pieces of its own, its bytes in writable buffers or not.
struct Bench {
    data: Pool,
    headers: Pool,
    joiner: Joiner,
}

impl Bench {
    fn new() -> Bench {
        Bench { data: pool(CAP, 2048), headers: pool(CAP, HEADERS as u32), joiner: Joiner::default() }
    }

    fn lend(&mut self, packet: &[u8], offload: Offload, piece: usize, batch: &mut Batch<Buf>) {
        let at = batch.len();
        for part in packet.chunks(piece) {
            let mut buf = self.data.take().unwrap();
            assert_eq!(buf.write(0, part), part.len());
            buf.truncate(part.len() as u32);
            buf.set_more(true);
            batch.push(buf);
        }
        batch.get_mut(at).unwrap().offload = offload;
        let last = batch.len() - 1;
        batch.get_mut(last).unwrap().set_more(false);
    }

    /// Joins, and gives the packets that come of it: bytes, offload, buffers.
    fn join(&mut self, batch: &mut Batch<Buf>) -> Vec<(Vec<u8>, Offload, usize)> {
        let packets = count(batch);
        let Bench { data, headers, joiner } = self;
        let gone = joiner.join(batch, |_| headers.take(), |buf| data.settle(buf.finish(0)));
        assert_eq!(count(batch), packets - gone);
        let mut out = Vec::new();
        let mut at = 0;
        while at < batch.len() {
            let (bufs, _) = batch.packet_at(at);
            let mut bytes = Vec::new();
            for buf in batch.iter().skip(at).take(bufs) {
                assert!(!buf.is_empty());
                let from = bytes.len();
                bytes.resize(from + buf.len() as usize, 0);
                buf.read(0, &mut bytes[from..]);
            }
            out.push((bytes, batch.get(at).unwrap().offload, bufs));
            at += bufs;
        }
        out
    }

    /// The frames that a receiver without segmentation gets of it.
    fn segmented(&mut self, batch: &mut Batch<Buf>) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut at = 0;
        while at < batch.len() {
            let (bufs, bytes) = batch.packet_at(at);
            let packet = || batch.iter().skip(at).take(bufs);
            let mut whole = vec![0; bytes as usize];
            let mut got = 0;
            for buf in packet() {
                got += buf.read(0, &mut whole[got..]);
            }
            let offload = batch.get(at).unwrap().offload;
            if offload.gso_type == 0 {
                super::super::complete_slice(&offload, &mut whole).unwrap();
                frames.push(whole);
            } else {
                let mut segments = Segments::of(&offload, packet()).expect("it can be segmented");
                while let Some(segment) = segments.advance(packet()) {
                    let from = segment.from as usize;
                    frames.push([segments.headers(), &whole[from..from + segment.len as usize]].concat());
                }
            }
            at += bufs;
        }
        self.clear(batch);
        frames
    }

    fn clear(&mut self, batch: &mut Batch<Buf>) {
        while let Some(buf) = batch.pop_front() {
            let own = buf.owner() == self.headers.owner();
            let loan = buf.finish(0);
            if own { self.headers.settle(loan) } else { self.data.settle(loan) }
        }
        assert_eq!((self.data.out(), self.headers.out()), (0, 0));
    }
}

fn count(batch: &Batch<Buf>) -> usize {
    batch.iter().filter(|buf| !buf.more()).count()
}

/// One segment of a flow.
#[derive(Clone, Copy, Debug)]
struct Seg {
    port: u16,
    v6: bool,
    seq: u32,
    id: u16,
    len: usize,
    flags: u8,
    ack: u32,
    ttl: u8,
}

const PLAIN: Seg = Seg { port: 1000, v6: false, seq: 5000, id: 7, len: 1000, flags: ACK, ack: 1, ttl: 64 };

/// A whole frame, checksums complete.
fn frame(seg: Seg) -> Vec<u8> {
    let payload: Vec<u8> = (0..seg.len).map(|i| (i as u32 * 7).wrapping_add(seg.seq) as u8).collect();
    let mut packet = Vec::new();
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let step = if seg.v6 {
        eth.ipv6([1; 16], [2; 16], seg.ttl)
    } else {
        let mut ip =
            etherparse::Ipv4Header::new(0, seg.ttl, etherparse::IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                .unwrap();
        ip.identification = seg.id;
        eth.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
    };
    let stamp = [etherparse::TcpOptionElement::Noop, etherparse::TcpOptionElement::Timestamp(9, 8)];
    step.tcp(seg.port, 2, seg.seq, 500)
        .ack(seg.ack)
        .options(&stamp)
        .unwrap()
        .write(&mut packet, &payload)
        .unwrap();
    // Other flags than ACK, the checksum corrected (RFC 1624).
    let l4 = if seg.v6 { 54 } else { 34 };
    packet[l4 + 13] = seg.flags;
    let mut sum = Sum::default();
    packet[l4 + 16..l4 + 18].fill(0);
    sum.add(&packet[l4..]);
    let addresses = if seg.v6 { 22..54 } else { 26..34 };
    let mut whole = Sum::default();
    whole.add(&packet[addresses]);
    whole.add_word((packet.len() - l4) as u16);
    whole.add_word(6);
    whole.add(&packet[l4..]);
    packet[l4 + 16..l4 + 18].copy_from_slice(&whole.stored());
    packet
}

/// How many packets come of these segments.
fn joined(segs: &[Seg]) -> Vec<u32> {
    let mut bench = Bench::new();
    let mut batch = Batch::default();
    for seg in segs {
        bench.lend(&frame(*seg), Offload::default(), 2048, &mut batch);
    }
    let out = bench.join(&mut batch);
    bench.clear(&mut batch);
    out.iter().map(|(bytes, ..)| bytes.len() as u32).collect()
}

#[test]
fn a_burst_of_one_flow_is_one_packet_without_a_copy() {
    for v6 in [false, true] {
        let mut bench = Bench::new();
        let mut batch = Batch::default();
        let headers = if v6 { 86 } else { 66 };
        for i in 0..10 {
            let flags = if i == 9 { ACK | 0x08 } else { ACK };
            let seg = Seg { v6, seq: PLAIN.seq + i * 1000, id: 7 + i as u16, flags, ..PLAIN };
            bench.lend(&frame(seg), Offload::default(), 2048, &mut batch);
        }
        let at: Vec<u64> = batch.iter().map(Buf::iova).collect();
        let out = bench.join(&mut batch);
        let [(bytes, offload, bufs)] = &out[..] else { panic!("{} packets", out.len()) };
        assert_eq!((bytes.len(), *bufs), (headers + 10_000, 10));
        let want = Offload {
            flags: net::HDR_F_NEEDS_CSUM,
            gso_type: if v6 { net::GSO_TCPV6 } else { net::GSO_TCPV4 },
            hdr_len: headers as u16,
            gso_size: 1000,
            csum_start: headers as u16 - 32,
            csum_offset: 16,
        };
        assert_eq!(*offload, want);
        assert_eq!(bytes[headers - 32 + 13], ACK | 0x08, "flags of the last");
        for (i, buf) in batch.iter().enumerate() {
            let skip = if i == 0 { 0 } else { headers as u64 };
            assert_eq!(buf.iova(), at[i] + skip, "where it was");
        }
        bench.clear(&mut batch);
    }
}

#[test]
fn what_differs_is_not_joined() {
    let next = Seg { seq: PLAIN.seq + 1000, id: 8, ..PLAIN };
    let whole = |seg: Seg| frame(seg).len() as u32;
    assert_eq!(joined(&[PLAIN, next]).len(), 1);
    for other in [
        Seg { seq: next.seq + 1, ..next },
        Seg { seq: PLAIN.seq, ..next },
        Seg { id: 9, ..next },
        Seg { id: 7, ..next },
        Seg { ack: 2, ..next },
        Seg { ttl: 63, ..next },
        Seg { port: 1001, ..next },
        Seg { len: 1001, ..next },
        Seg { len: 0, ..next },
        Seg { flags: ACK | 0x02, ..next },
        Seg { flags: ACK | 0x04, ..next },
        Seg { flags: ACK | 0x20, ..next },
        Seg { flags: ACK | 0x40, ..next },
        Seg { flags: ACK | 0x80, ..next },
        Seg { flags: 0, ..next },
    ] {
        assert_eq!(joined(&[PLAIN, other]), [whole(PLAIN), whole(other)], "{other:?}");
    }
    // A short one, PSH and FIN end a packet; what comes after begins another.
    for last in [Seg { len: 999, ..next }, Seg { flags: ACK | 8, ..next }, Seg { flags: ACK | 1, ..next }] {
        let third = Seg { seq: next.seq + last.len as u32, id: 9, ..PLAIN };
        assert_eq!(joined(&[PLAIN, last, third]).len(), 2, "{last:?}");
    }
    // Another packet of the flow between them, of whatever kind, is not overtaken.
    for between in [Seg { len: 0, ..next }, Seg { flags: ACK | 4, ..next }, Seg { seq: 1, ..next }] {
        assert_eq!(joined(&[PLAIN, between, next]).len(), 3, "{between:?}");
    }
    // Flows among each other are.
    let other = Seg { port: 77, ..PLAIN };
    let more = Seg { port: 77, ..next };
    assert_eq!(joined(&[PLAIN, other, next, more]).len(), 2);
    // No more than IP can say.
    let many: Vec<Seg> = (0..70).map(|i| Seg { seq: i * 1000, id: i as u16, ..PLAIN }).collect();
    let sizes = joined(&many);
    assert!(sizes.len() == 2 && sizes.iter().all(|n| *n <= 65535 + 14), "{sizes:?}");
}

#[test]
fn damaged_or_odd_frames_pass_as_they_are() {
    let next = Seg { seq: PLAIN.seq + 1000, id: 8, ..PLAIN };
    let good = [frame(PLAIN), frame(next)];
    // Any one byte: what is joined and segmented again is never other than what came in.
    for at in (0..80).chain([500, 1065]) {
        for which in 0..2 {
            let mut frames = good.clone();
            frames[which][at] ^= 0x10;
            let mut bench = Bench::new();
            let mut batch = Batch::default();
            for frame in &frames {
                bench.lend(frame, Offload::default(), 2048, &mut batch);
            }
            bench.join(&mut batch);
            let mut out = bench.segmented(&mut batch);
            out.sort();
            frames.sort();
            assert!(out == frames, "byte {at} of frame {which}");
        }
    }
    for len in 0..66 {
        let mut bench = Bench::new();
        let mut batch = Batch::default();
        bench.lend(&good[0], Offload::default(), 2048, &mut batch);
        bench.lend(&good[1][..len.max(1)], Offload::default(), 2048, &mut batch);
        assert_eq!(bench.join(&mut batch).len(), 2, "cut to {len}");
        bench.clear(&mut batch);
    }
}

#[test]
fn without_a_frame_for_headers_packets_stay_apart() {
    let mut source = pool(4, 2048);
    let frames = [frame(PLAIN), frame(Seg { seq: PLAIN.seq + 1000, id: 8, ..PLAIN })];
    let mut batch = Batch::default();
    // The header lies in two buffers: it cannot be rewritten in one.
    for frame in &frames {
        for part in [&frame[..40], &frame[40..]] {
            let mut buf = source.take().unwrap();
            assert_eq!(buf.write(0, part), part.len());
            buf.truncate(part.len() as u32);
            buf.set_more(part.len() == 40);
            batch.push(buf);
        }
    }
    let gone = Joiner::default().join(&mut batch, |_| None, |_| panic!("nothing is left over"));
    assert_eq!((gone, batch.len()), (0, 4));
    while let Some(buf) = batch.pop_front() {
        source.settle(buf.finish(0));
    }
    assert_eq!(source.out(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..Default::default() })]

    /// segment(join(x)) == x: of any burst, flow by flow and byte by byte, however it lies in buffers.
    #[test]
    fn segmenting_what_was_joined_gives_what_came_in(
        steps in prop::collection::vec((0..3u16, 0..12u8, 1..1400usize, 1..2000usize), 1..24),
        v6 in any::<bool>(),
        partial in any::<bool>(),
        mss in 200..1400usize,
    ) {
        let mut bench = Bench::new();
        let mut batch = Batch::default();
        let mut state: BTreeMap<u16, (u32, u16)> = BTreeMap::new();
        let mut sent: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        for (flow, what, len, piece) in steps {
            let (seq, id) = state.entry(flow).or_insert((u32::MAX - 2000, u16::MAX - 2));
            let mut seg = Seg { port: flow, v6, seq: *seq, id: *id, len: mss, ..PLAIN };
            match what {
                0 => seg.len = len.min(mss),
                1 => seg.flags |= 8,
                2 => seg.flags |= 1,
                3 => seg.len = 0,
                4 => seg.ack = 2,
                5 => seg.seq = seg.seq.wrapping_add(1),
                _ => {}
            }
            *seq = seg.seq.wrapping_add(seg.len as u32);
            *id = id.wrapping_add(1);
            let mut bytes = frame(seg);
            let whole = bytes.clone();
            sent.entry(flow).or_default().push(whole);
            let l4 = if v6 { 54 } else { 34 };
            let mut offload = Offload::default();
            if partial {
                // As the kernel sends it: only the sum of the pseudo header.
                let mut sum = Sum::default();
                sum.add(&bytes[if v6 { 22..54 } else { 26..34 }]);
                sum.add_word((bytes.len() - l4) as u16);
                sum.add_word(6);
                bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.partial().to_be_bytes());
                offload = Offload { flags: 1, csum_start: l4 as u16, csum_offset: 16, ..offload };
            }
            // Frames of the wire are padded.
            if !partial && bytes.len() < 100 {
                bytes.resize(100, 0);
                sent.get_mut(&flow).unwrap().last_mut().unwrap().resize(100, 0);
            }
            if batch.room() < bytes.len().div_ceil(piece.max(20)) {
                break;
            }
            bench.lend(&bytes, offload, piece.max(20), &mut batch);
            if batch.room() < 80 {
                break;
            }
        }
        bench.join(&mut batch);
        let mut came: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        for frame in bench.segmented(&mut batch) {
            let l4 = if v6 { 54 } else { 34 };
            came.entry(u16::from_be_bytes([frame[l4], frame[l4 + 1]])).or_default().push(frame);
        }
        for (flow, frames) in came {
            let want = &sent[&flow][..frames.len()];
            // Padding may go: it is behind what IP says there is.
            for (got, want) in frames.iter().zip(want) {
                prop_assert!(got[..] == want[..got.len()], "flow {}", flow);
                let ip = if v6 { 54 + usize::from(u16::from_be_bytes([want[18], want[19]])) }
                    else { 14 + usize::from(u16::from_be_bytes([want[16], want[17]])) };
                prop_assert!(got.len() == want.len() || got.len() == ip);
            }
        }
    }
}
