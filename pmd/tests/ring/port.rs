//! Frames of guests that wrap them in odd ways, through a queue of the vhost port: a guest's frame comes
//! out as it went in or not at all, and the ring goes on.

use std::collections::VecDeque;

use hugepages::{Backing, Offload, PageSize, Pool};
use pmd::port::vhost::local;
use pmd::spec::{net, virtio as v};
use pmd::vring::driver::{Raw, Segment};
use pmd::vring::{AnyVring, Way};
use pmd::{Batch, Queue};
use zerocopy::IntoBytes;

use crate::rig::{DATA, FORMS, Form, Guest, MEMORY, Rig, plain_forms};

const SIZE: u16 = 256;

/// One direction of a guest's queue pair.
struct Side {
    raw: Raw,
    guest: Guest,
    /// Where the next buffer is put.
    at: u64,
}

impl Side {
    fn new(form: Form, features: u64, way: Way) -> (Side, AnyVring) {
        let Rig { ring, raw, .. } = Rig::new(form, SIZE, features, way);
        let guest = Guest::new(&raw);
        (Side { raw, guest, at: DATA }, ring)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let lender = hugepages::Lender::new(self.raw.table().clone());
        let buf = lender.lend(at, len as u32, 0).unwrap();
        let mut bytes = vec![0; len];
        buf.read(0, &mut bytes);
        lender.settle(buf.finish(0));
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let lender = hugepages::Lender::new(self.raw.table().clone());
        let mut buf = lender.lend_writable(at, bytes.len() as u32, 0).unwrap();
        assert_eq!(buf.write(0, bytes), bytes.len());
        lender.settle(buf.finish(0));
    }

    fn place(&mut self, len: u32) -> u64 {
        let at = self.at;
        self.at += u64::from(len) + 3;
        at
    }
}

/// A guest on a queue of the vhost port.
struct Vm {
    queue: Box<dyn Queue>,
    transmit: Side,
    receive: Side,
    features: u64,
}

impl Vm {
    fn new(form: Form, features: u64) -> Vm {
        let (transmit, from_guest) = Side::new(form, features, Way::FromDriver);
        let (receive, to_guest) = Side::new(form, features, Way::ToDriver);
        let queue = local("test", features, Some(from_guest), Some(to_guest)).unwrap();
        let mut vm = Vm { queue, transmit, receive, features };
        vm.queue.reap(&mut Batch::default());
        vm
    }

    fn hdr(&self) -> usize {
        let modern = self.features & (v::F_VERSION_1 | net::F_MRG_RXBUF) != 0;
        if modern { net::HDR_LEN as usize } else { net::HDR_LEN_LEGACY as usize }
    }

    /// Sends bytes, header included, in pieces of these lengths.
    fn send(&mut self, bytes: &[u8], pieces: &[usize]) {
        let mut chain = Vec::new();
        let mut rest = bytes;
        for &n in pieces {
            let (piece, after) = rest.split_at(n.min(rest.len()));
            let at = self.transmit.place(piece.len() as u32);
            self.transmit.write(at, piece);
            chain.push(Segment::read(at, piece.len() as u32));
            rest = after;
        }
        assert!(rest.is_empty());
        let table = (chain.len() > 1 && self.features & v::F_INDIRECT_DESC != 0)
            .then(|| self.transmit.place(16 * chain.len() as u32 + 16).next_multiple_of(16));
        self.transmit.guest.offer(&self.transmit.raw, &chain, table, 0).expect("room in the ring");
        self.transmit.guest.publish(&self.transmit.raw);
    }

    /// What the queue receives now: frames with what is left to do to them. All comes back to the guest.
    fn receive(&mut self) -> Vec<(Vec<u8>, Offload)> {
        let (mut batch, mut loans) = (Batch::default(), Batch::default());
        let n = self.queue.rx(&mut batch);
        assert_eq!(batch.packets(), n);
        let mut frames = Vec::new();
        let (mut frame, mut offload) = (Vec::new(), None);
        while let Some(buf) = batch.pop_front() {
            let mut part = vec![0; buf.len() as usize];
            buf.read(0, &mut part);
            frame.extend(part);
            offload.get_or_insert(buf.offload);
            let more = buf.more();
            loans.push(buf.finish(0));
            if !more {
                frames.push((std::mem::take(&mut frame), offload.take().unwrap()));
            }
        }
        self.queue.settle(&mut loans);
        assert!(loans.is_empty() && self.queue.lent() == 0);
        frames
    }

    /// Chains that came back to the guest since the last look.
    fn returned(&mut self) -> usize {
        std::iter::from_fn(|| self.transmit.guest.take_used(&self.transmit.raw)).count()
    }

    /// Offers buffers of these lengths to receive into, as one chain; its id.
    fn post(&mut self, lens: &[u32]) -> (u16, Vec<Segment>) {
        let chain: Vec<Segment> =
            lens.iter().map(|&len| Segment::write(self.receive.place(len), len)).collect();
        let id = self.receive.guest.offer(&self.receive.raw, &chain, None, 0).expect("room in the ring");
        self.receive.guest.publish(&self.receive.raw);
        (id, chain)
    }
}

fn zeroed(hdr: usize, frame: &[u8]) -> Vec<u8> {
    [vec![0; hdr], frame.to_vec()].concat()
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed * 13 + i / 256) as u8).collect()
}

/// Feature sets that change the header or the way of buffers.
const FEATURES: [u64; 4] = [
    0,
    v::F_VERSION_1,
    v::F_VERSION_1 | net::F_MRG_RXBUF | v::F_INDIRECT_DESC,
    v::F_VERSION_1 | net::F_MRG_RXBUF | v::F_IN_ORDER | v::F_EVENT_IDX,
];

#[test]
fn t10_headers_in_pieces_and_frames_of_0_to_2_bytes() {
    for form in plain_forms() {
        for features in FEATURES {
            let mut vm = Vm::new(form, features);
            let hdr = vm.hdr();
            let mut counters = (0, 0);
            for total in [1, hdr - 1, hdr, hdr + 1, hdr + 2, hdr + 60] {
                for pieces in 1..=12usize.min(total) {
                    // One byte each, and the rest in the last, or in the first.
                    let mut lens = vec![1; pieces];
                    for at in [pieces - 1, 0] {
                        lens.fill(1);
                        lens[at] = total - (pieces - 1);
                        let sent = zeroed(hdr.min(total), &frame(total.saturating_sub(hdr), pieces));
                        vm.send(&sent, &lens);
                        let got = vm.receive();
                        if total > hdr {
                            assert_eq!(got, [(sent[hdr..].to_vec(), Offload::default())], "{lens:?}");
                            counters.0 += 1;
                        } else {
                            assert!(got.is_empty(), "{total} bytes are no frame");
                            counters.1 += 1;
                        }
                        assert_eq!(vm.returned(), 1, "every chain comes back");
                        vm.transmit.at = DATA;
                    }
                }
            }
            let stats = vm.queue.counters().stats();
            assert_eq!((stats.rx_packets, stats.rx_errors, stats.faults), (counters.0, counters.1, 0));
        }
    }
}

#[test]
fn t10_runts_in_each_lane_of_a_burst() {
    for form in plain_forms() {
        for features in FEATURES {
            for lane in 0..8 {
                let mut vm = Vm::new(form, features);
                let hdr = vm.hdr();
                for i in 0..8 {
                    let whole = zeroed(hdr, &frame(60, i));
                    if i == lane { vm.send(&[1, 2, 3], &[3]) } else { vm.send(&whole, &[whole.len()]) }
                }
                let got: Vec<Vec<u8>> = vm.receive().into_iter().map(|(bytes, _)| bytes).collect();
                let expected: Vec<Vec<u8>> = (0..8).filter(|&i| i != lane).map(|i| frame(60, i)).collect();
                assert_eq!((got, vm.returned()), (expected, 8));
            }
        }
    }
}

#[test]
fn t10_a_guest_of_runts_waits_and_loses_nothing() {
    for form in plain_forms() {
        let mut vm = Vm::new(form, v::F_VERSION_1);
        let (mut runts, mut back, mut turns) = (0, 0, 0);
        while runts < 2000 {
            while runts - back < 32 {
                vm.send(&[1, 2, 3], &[3]);
                runts += 1;
            }
            assert!(vm.receive().is_empty());
            back += vm.returned();
            vm.transmit.at = DATA;
            turns += 1;
            assert!(turns < 50_000, "served in the end");
        }
        assert!(turns > 2 * 2000 / 32, "it is left alone for most turns: {turns}");
        let good = zeroed(vm.hdr(), &frame(60, 1));
        vm.send(&good, &[good.len()]);
        // Behind the last of the others.
        let got = (0..2 * 130).find_map(|_| vm.receive().pop());
        assert_eq!(got, Some((good[vm.hdr()..].to_vec(), Offload::default())), "{form:?}");
        vm.send(&good, &[good.len()]);
        assert_eq!(vm.receive().len(), 1, "at once again");
    }
}

/// Sends frames to the guest; how many the queue took.
fn deliver(vm: &mut Vm, frames: &[Vec<u8>]) -> usize {
    let backing = Backing { page: PageSize::Base, node: None };
    let (mut pool, _) = Pool::new(64, 2048, backing).unwrap();
    let (mut batch, mut loans) = (Batch::default(), Batch::default());
    for bytes in frames {
        let mut chunks = bytes.chunks(2048).peekable();
        while let Some(chunk) = chunks.next() {
            let mut buf = pool.take().unwrap();
            buf.truncate(chunk.len() as u32);
            buf.write(0, chunk);
            buf.set_more(chunks.peek().is_some());
            batch.push(buf);
        }
    }
    let taken = vm.queue.tx(&mut batch);
    while let Some(buf) = batch.pop_front() {
        loans.push(buf.finish(0));
    }
    vm.queue.reap(&mut loans);
    while let Some(loan) = loans.pop_front() {
        assert_eq!(loan.owner(), pool.owner());
        pool.settle(loan);
    }
    assert_eq!(pool.out(), 0);
    taken
}

/// The frames the guest has received, put together as its driver would; nothing half is there.
fn received(vm: &mut Vm, posted: &mut Vec<(u16, Vec<Segment>)>) -> Vec<Vec<u8>> {
    let mut chains = VecDeque::new();
    while let Some((id, len)) = vm.receive.guest.take_used(&vm.receive.raw) {
        let at = posted.iter().position(|(other, _)| *other == id).expect("posted");
        let (mut bytes, mut left) = (Vec::new(), len);
        for segment in posted.remove(at).1 {
            let n = left.min(segment.len);
            bytes.extend(vm.receive.bytes(segment.addr, n as usize));
            left -= n;
        }
        assert_eq!(left, 0, "more written than there is room");
        chains.push_back(bytes);
    }
    let mut frames = Vec::new();
    while !chains.is_empty() {
        let (mut bytes, mut taken) = (Vec::new(), 0);
        loop {
            bytes.extend(chains.pop_front().expect("half a frame is published"));
            taken += 1;
            // The header may lie in pieces: num_buffers is known when it is whole.
            let total = match bytes.get(10..12) {
                _ if vm.features & net::F_MRG_RXBUF == 0 => 1,
                Some(n) => u16::from_le_bytes([n[0], n[1]]),
                None => continue,
            };
            assert!(taken <= total, "num_buffers {total}");
            if taken == total {
                break;
            }
        }
        frames.push(bytes.split_off(vm.hdr()));
    }
    frames
}

#[test]
fn t5_receive_chains_with_empty_descriptors() {
    // One buffer each, but two or three places in the ring: many laps of it.
    for form in plain_forms() {
        for features in FEATURES {
            let mut vm = Vm::new(form, features);
            for lap in 0..SIZE as usize {
                let mut posted = vec![vm.post(&[0, 200, 0]), vm.post(&[300]), vm.post(&[200, 0])];
                let frames: Vec<_> = (0..3).map(|i| frame(60 + i, lap + i)).collect();
                assert_eq!(deliver(&mut vm, &frames), 3);
                assert_eq!(received(&mut vm, &mut posted), frames, "lap {lap} in {form:?}");
                vm.receive.at = DATA;
            }
            assert_eq!(vm.queue.counters().stats().faults, 0);
        }
    }
}

#[test]
fn t4_a_guest_that_offers_receive_chains_without_room() {
    for form in plain_forms() {
        for features in FEATURES {
            let mut vm = Vm::new(form, features);
            let mut posted: Vec<_> = (0..100).map(|_| vm.post(&[0])).collect();
            posted.push(vm.post(&[200]));
            let frames = [frame(60, 1)];
            // A burst passes over a bounded number of them.
            let mut bursts = 1;
            while deliver(&mut vm, &frames) == 0 {
                bursts += 1;
            }
            assert_eq!(bursts, 100usize.div_ceil(pmd::batch::BURST), "{form:?}");
            for (id, _) in posted.drain(..100) {
                assert_eq!(vm.receive.guest.take_used(&vm.receive.raw), Some((id, 0)));
            }
            assert_eq!(received(&mut vm, &mut posted), frames);
        }
    }
}

#[test]
fn t11_receive_buffers_shorter_than_the_header_mergeable() {
    for form in plain_forms() {
        for features in FEATURES.into_iter().filter(|f| f & net::F_MRG_RXBUF != 0) {
            for lane in 0..6 {
                for crumbs in [&[1u32; 12][..], &[5, 5, 5], &[11, 1], &[11, 2, 1], &[3]] {
                    let mut vm = Vm::new(form, features);
                    let mut posted = Vec::new();
                    for i in 0..8 {
                        if i == lane {
                            posted.extend(crumbs.iter().map(|&len| vm.post(&[len])));
                        }
                        posted.push(vm.post(&[200]));
                    }
                    let frames: Vec<_> = (0..6).map(|i| frame(60 + i, i)).collect();
                    assert_eq!(deliver(&mut vm, &frames), 6);
                    assert_eq!(received(&mut vm, &mut posted), frames, "{crumbs:?} in lane {lane}");
                }
            }
        }
    }
}

#[test]
fn t11_receive_buffers_shorter_than_the_frame() {
    for form in plain_forms() {
        for features in FEATURES.into_iter().filter(|f| f & net::F_MRG_RXBUF == 0) {
            for len in [1, 9, 10, 11, 12, 40] {
                let mut vm = Vm::new(form, features);
                let mut posted = vec![vm.post(&[200]), vm.post(&[len])];
                let frames: Vec<_> = (0..3).map(|i| frame(60, i)).collect();
                assert_eq!(deliver(&mut vm, &frames), 3, "none waits for a buffer that will not grow");
                assert_eq!(received(&mut vm, &mut posted), frames[..1]);
                let stats = vm.queue.counters().stats();
                assert_eq!((stats.tx_packets, stats.tx_errors, stats.faults), (1, 2, 0));
            }
            // In pieces it is long enough.
            let mut vm = Vm::new(form, features);
            let lens: Vec<u32> = std::iter::repeat_n(1, 20).chain([5, 100]).collect();
            let mut posted = vec![vm.post(&lens)];
            let frames = [frame(90, 1)];
            assert_eq!(deliver(&mut vm, &frames), 1);
            assert_eq!(received(&mut vm, &mut posted), frames);
        }
    }
}

#[test]
fn t11_frames_of_any_length_over_receive_buffers_of_any_length() {
    for form in plain_forms() {
        for features in FEATURES.into_iter().filter(|f| f & net::F_MRG_RXBUF != 0) {
            let mut vm = Vm::new(form, features);
            let mut random = 7u32;
            let mut next = |most: u32| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                1 + (random >> 8) % most
            };
            for lap in 0..60 {
                let longest = [300, 2000, 5000][lap % 3];
                let mut posted: Vec<_> = (0..100).map(|_| vm.post(&[next(longest)])).collect();
                let frames: Vec<_> = (0..4).map(|i| frame(next(4 * longest) as usize, lap + i)).collect();
                let taken = deliver(&mut vm, &frames);
                assert_eq!(received(&mut vm, &mut posted), frames[..taken], "lap {lap} in {form:?}");
                // What no frame was put into serves the next lap's.
                let rest = frame(100, lap);
                while deliver(&mut vm, std::slice::from_ref(&rest)) == 1 {
                    assert_eq!(received(&mut vm, &mut posted), std::slice::from_ref(&rest));
                }
                while !posted.is_empty() {
                    // Too little for a frame of 100 bytes, enough for one of a byte, or for none.
                    let one = [frame(1, lap)];
                    if deliver(&mut vm, &one) == 0 {
                        break;
                    }
                    assert_eq!(received(&mut vm, &mut posted), one);
                }
                let bytes: usize = posted.iter().flat_map(|(_, chain)| chain).map(|s| s.len as usize).sum();
                assert!(bytes <= vm.hdr(), "{bytes} bytes of room are left");
                vm.post(&[200]);
                assert_eq!(deliver(&mut vm, &[frame(1, lap)]), 1);
                while vm.receive.guest.take_used(&vm.receive.raw).is_some() {}
                vm.receive.at = DATA;
            }
            assert_eq!(vm.queue.counters().stats().faults, 0);
        }
    }
}

#[test]
fn t2_a_receive_buffer_outside_memory_in_the_middle_of_a_frame() {
    for form in plain_forms() {
        for features in FEATURES.into_iter().filter(|f| f & net::F_MRG_RXBUF != 0) {
            for bad in 1..3 {
                let mut vm = Vm::new(form, features);
                let mut posted = vec![vm.post(&[2048])];
                for i in 0..4 {
                    if i == bad {
                        let chain = [Segment::write(MEMORY - 100, 2048)];
                        vm.receive.guest.offer(&vm.receive.raw, &chain, None, 0).unwrap();
                        vm.receive.guest.publish(&vm.receive.raw);
                    } else {
                        posted.push(vm.post(&[2048]));
                    }
                }
                let frames = [frame(60, 1)];
                assert_eq!(deliver(&mut vm, &frames), 1, "{form:?}");
                assert_eq!(received(&mut vm, &mut posted), frames);
                assert_eq!(deliver(&mut vm, &[frame(6000, 2)]), 0);
                assert!(received(&mut vm, &mut posted).is_empty(), "nothing of the second is there");
                assert_eq!(vm.queue.counters().stats().faults, 1);
            }
        }
    }
}

#[test]
fn t16_the_longest_frames_and_more_pieces_than_a_batch_holds() {
    for form in plain_forms() {
        for features in FEATURES {
            let mut vm = Vm::new(form, features);
            let hdr = vm.hdr();
            let most = if features & v::F_INDIRECT_DESC != 0 { 1000 } else { 200 };
            let whole = zeroed(hdr, &frame(net::MAX_FRAME as usize, 3));
            for pieces in [2, 33, most] {
                let each = whole.len().div_ceil(pieces);
                let lens: Vec<usize> = whole.chunks(each).map(<[u8]>::len).collect();
                vm.send(&whole, &lens);
                let got = vm.receive();
                if pieces <= 256 {
                    assert!(got.len() == 1 && got[0].0 == whole[hdr..], "{pieces} pieces");
                } else {
                    assert!(got.is_empty());
                }
                assert_eq!(vm.returned(), 1);
                vm.transmit.at = DATA;
            }
            let stats = vm.queue.counters().stats();
            assert_eq!((stats.rx_errors, stats.faults), (u64::from(most > 256), 0));
            // And to the guest.
            let mut posted = Vec::new();
            let frames = [frame(65_000, 5)];
            for _ in 0..if features & net::F_MRG_RXBUF != 0 { 100 } else { 1 } {
                let lens = if features & net::F_MRG_RXBUF != 0 { vec![700] } else { vec![1000; 66] };
                posted.push(vm.post(&lens));
            }
            assert_eq!(deliver(&mut vm, &frames), 1);
            assert_eq!(received(&mut vm, &mut posted), frames);
        }
    }
}

#[test]
fn t16_chains_longer_than_any_frame() {
    for form in plain_forms() {
        for features in FEATURES {
            let mut vm = Vm::new(form, features);
            let read = |len| Segment::read(DATA, len);
            for chain in
                [&[read(700_000)][..], &[read(100), read(700_000)], &[read(60_000); 3], &[read(131_073)]]
            {
                vm.transmit.guest.offer(&vm.transmit.raw, chain, None, 0).unwrap();
            }
            let sent = zeroed(vm.hdr(), &frame(60, 1));
            vm.send(&sent, &[sent.len()]);
            let got = vm.receive();
            assert_eq!(got, [(sent[vm.hdr()..].to_vec(), Offload::default())], "{form:?}");
            assert_eq!(vm.returned(), 5, "every chain comes back");
            let stats = vm.queue.counters().stats();
            assert_eq!((stats.rx_packets, stats.rx_errors, stats.faults), (1, 4, 0));
        }
    }
}

#[test]
fn t17_what_a_guest_asks_for_is_believed_only_if_it_can_be() {
    let offered = v::F_VERSION_1 | net::F_CSUM | net::F_HOST_TSO4;
    let words = [0, 1, 13, 14, 33, 34, 58, 59, 60, 61, 255, 256, 0x7fff, 0x8000, 0xfffe, 0xffff];
    for features in [v::F_VERSION_1, offered] {
        let mut vm = Vm::new(FORMS[0], features);
        for gso_type in [0u8, 1, 3, 4, 5, 0x81, 2, 0xff] {
            for flags in [0u8, 1, 2, 3, 0xff] {
                for csum_start in words {
                    for (csum_offset, gso_size, hdr_len) in words.map(|w| (w, w, w)) {
                        let asked = Offload { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
                        let mut sent = zeroed(12, &frame(60, 1));
                        sent[..10].copy_from_slice(asked.as_bytes());
                        vm.send(&sent, &[72]);
                        let got = vm.receive();
                        let (bytes, believed) = &got[0];
                        assert_eq!(bytes[..], sent[12..]);
                        let end = u32::from(believed.csum_start) + u32::from(believed.csum_offset) + 2;
                        let none = *believed == Offload::default();
                        assert!(
                            none || features == offered && believed.flags == 1 && end <= 60,
                            "{believed:?}"
                        );
                        assert!(
                            believed.gso_type == 0
                                || (believed.gso_type & 0x7f == 1 && believed.gso_size > 0)
                        );
                        assert!(believed.hdr_len <= 60);
                        assert_eq!(vm.returned(), 1);
                        vm.transmit.at = DATA;
                    }
                }
            }
        }
    }
}
