//! The data side against a back-end that writes its rings by hand: what it may get wrong, and what our
//! frames look like to it.

use std::sync::Arc;

use hugepages::{Backing, Lender, Loan, Offload, PageSize, Pool};

use super::door::{Door, Live, Rings};
use super::frames::Frames;
use super::memory::Side;
use super::queue::UserQueue;
use super::*;
use crate::batch::Batch;
use crate::sys::eventfd::EventFd;
use crate::vring::driver::{Areas, Desc, Packed, Raw, Ring, Split};

const HDR: usize = net::HDR_LEN as usize;
const PACKED: u64 = v::F_RING_PACKED;

/// A queue and its back-end.
struct Lab {
    queue: UserQueue,
    memory: Memory,
    door: Arc<Door>,
    state: Arc<State>,
    lender: Lender,
    /// Rings of the set in use.
    raws: [Raw; 2],
    set: usize,
    features: u64,
    /// Where the back-end stands in either ring.
    at: [u16; 2],
}

impl Lab {
    fn new(features: u64) -> Lab {
        let features = features | v::F_VERSION_1;
        let backing = Backing { page: PageSize::Base, node: None };
        let config = Config {
            queue_size: 64,
            mrg_rxbuf: features & net::F_MRG_RXBUF != 0,
            path: "unused".into(),
            backing,
            ..Config::default()
        };
        let memory = Memory::new("test", &config, 1).unwrap();
        let state = Arc::new(State::new().unwrap());
        let door = Arc::new(Door::new(&state).unwrap());
        let queue = UserQueue::new("test".into(), Frames::new(&memory, 0), Arc::clone(&door));
        let lender = Lender::new(Arc::clone(memory.table()));
        let raws = [Side::Rx, Side::Tx].map(|side| raw(&memory, side, 0, features));
        let mut lab = Lab { queue, memory, door, state, lender, raws, set: 0, features, at: [0; 2] };
        lab.connect(0);
        lab
    }

    /// Gives the queue new rings.
    fn connect(&mut self, set: usize) {
        (self.set, self.at) = (set, [0; 2]);
        self.raws = [Side::Rx, Side::Tx].map(|side| raw(&self.memory, side, set, self.features));
        let areas = self.raws.each_ref().map(|raw| *raw.areas());
        let table = self.memory.table();
        let rings = if self.features & PACKED != 0 {
            let [rx, tx] = areas.map(|a| Packed::open(&a, table).unwrap());
            Rings::Packed(rx, tx)
        } else {
            let [rx, tx] = areas.map(|a| Split::open(&a, table).unwrap());
            Rings::Split(rx, tx)
        };
        let kick = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        self.door.give(Box::new(Live { rings, kick, features: self.features }));
        self.queue.reap(&mut Batch::default());
    }

    fn packed(&self) -> bool {
        self.features & PACKED != 0
    }

    /// What the back-end finds next in a ring: the descriptors of one chain, and its id.
    fn next(&mut self, side: Side) -> (u16, Vec<Desc>) {
        let (i, raw) = (side as usize, &self.raws[side as usize]);
        let at = self.at[i];
        let mut chain = Vec::new();
        if self.packed() {
            loop {
                let desc = raw.desc(at + chain.len() as u16);
                assert_eq!(desc.flags & (v::DESC_F_AVAIL | v::DESC_F_USED), v::DESC_F_AVAIL);
                chain.push(desc);
                if desc.flags & v::DESC_F_NEXT == 0 {
                    break;
                }
            }
            (chain[chain.len() - 1].tag, chain)
        } else {
            assert_ne!(at, raw.avail_idx(), "nothing is offered");
            let head = raw.driver(2 + usize::from(at));
            let mut desc = raw.desc(head);
            chain.push(desc);
            while desc.flags & v::DESC_F_NEXT != 0 {
                desc = raw.desc(desc.tag);
                chain.push(desc);
            }
            (head, chain)
        }
    }

    /// Says that the chain of `id`, of `descs` descriptors, is used.
    fn used(&mut self, side: Side, id: u16, descs: u16, len: u32) {
        let (i, raw) = (side as usize, &self.raws[side as usize]);
        let at = self.at[i];
        if self.packed() {
            raw.set_desc(at, Desc { addr: 0, len, flags: Raw::used_bits(true), tag: id });
            self.at[i] += descs;
        } else {
            raw.set_used(at, id.into(), len);
            raw.set_used_idx(at + 1);
            self.at[i] += 1;
        }
    }

    /// Writes the next receive buffer and uses it.
    fn fill(&mut self, bytes: &[u8]) {
        let (id, chain) = self.next(Side::Rx);
        assert_eq!((chain.len(), chain[0].flags & v::DESC_F_WRITE), (1, v::DESC_F_WRITE));
        let mut buf = self.lender.lend_writable(chain[0].addr, chain[0].len, 0).unwrap();
        assert_eq!(buf.write(0, bytes), bytes.len());
        self.lender.settle(buf.finish(0));
        self.used(Side::Rx, id, 1, bytes.len() as u32);
    }

    /// Takes the next transmitted chain: header and frame.
    fn drain(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (id, mut chain) = self.next(Side::Tx);
        let descs = chain.len() as u16;
        if chain[0].flags & v::DESC_F_INDIRECT != 0 {
            let n = chain[0].len as usize / 16;
            let words = self.memory.table().window::<u64>(chain[0].addr, 2 * n).unwrap();
            use hugepages::Words;
            let entry =
                |i| Desc { addr: words.get(2 * i), len: words.get(2 * i + 1) as u32, ..Desc::default() };
            chain = (0..n).map(entry).collect();
        }
        let mut bytes = Vec::new();
        for desc in chain {
            let buf = self.lender.lend(desc.addr, desc.len, 0).unwrap();
            let mut part = vec![0; desc.len as usize];
            buf.read(0, &mut part);
            bytes.extend(part);
            self.lender.settle(buf.finish(0));
        }
        self.used(Side::Tx, id, descs, 0);
        let frame = bytes.split_off(HDR);
        (bytes, frame)
    }

    /// Receives; the frames, with what is left to do.
    fn receive(&mut self) -> Vec<(Vec<u8>, Offload)> {
        let mut batch = Batch::default();
        self.queue.rx(&mut batch);
        let (mut frames, mut loans) = (Vec::new(), Batch::default());
        let (mut bytes, mut offload) = (Vec::new(), None);
        while let Some(buf) = batch.pop_front() {
            let mut part = vec![0; buf.len() as usize];
            buf.read(0, &mut part);
            bytes.extend(part);
            offload.get_or_insert(buf.offload);
            let more = buf.more();
            loans.push(buf.finish(0));
            if !more {
                frames.push((std::mem::take(&mut bytes), offload.take().unwrap()));
            }
        }
        self.queue.settle(&mut loans);
        assert!(loans.is_empty() && self.queue.lent() == 0);
        frames
    }

    fn stats(&self) -> Stats {
        self.queue.counters().stats()
    }
}

fn raw(memory: &Memory, side: Side, set: usize, features: u64) -> Raw {
    let areas: Areas = memory.areas(0, side, set, features);
    Raw::open(&areas, memory.table()).unwrap()
}

fn header(num_buffers: u16, offload: Offload) -> Vec<u8> {
    use zerocopy::IntoBytes;
    [offload.as_bytes(), &num_buffers.to_le_bytes()].concat()
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 5 + i / 256) as u8).collect()
}

/// Both layouts, with and without mergeable buffers.
fn everywhere(mut run: impl FnMut(Lab)) {
    for features in [0, net::F_MRG_RXBUF, PACKED, PACKED | net::F_MRG_RXBUF] {
        run(Lab::new(features));
    }
}

#[test]
fn received_frames_are_lent_whole() {
    everywhere(|mut lab| {
        let parts = [frame(700), frame(1), frame(60)];
        lab.fill(&[header(1, Offload::default()), parts[0].clone()].concat());
        if lab.features & net::F_MRG_RXBUF == 0 {
            // The number means nothing here (virtio 1.3 §5.1.6.4).
            lab.fill(&[header(9, Offload::default()), parts[2].clone()].concat());
            let frames: Vec<_> = lab.receive().into_iter().map(|(bytes, _)| bytes).collect();
            assert_eq!(frames, [parts[0].clone(), parts[2].clone()]);
            return;
        }
        lab.fill(&[header(3, Offload::default()), parts[0].clone()].concat());
        lab.fill(&parts[1]);
        let frames = lab.receive();
        assert_eq!(frames, [(parts[0].clone(), Offload::default())], "the second waits for its third buffer");
        assert!(lab.receive().is_empty());
        lab.fill(&parts[2]);
        assert_eq!(lab.receive(), [(parts.concat(), Offload::default())]);
        assert_eq!((lab.stats().rx_packets, lab.stats().rx_bytes), (2, 700 + 761));
    });
}

#[test]
fn runts_are_counted_and_their_frames_come_back() {
    everywhere(|mut lab| {
        for len in [0, 1, 11, 12] {
            lab.fill(&vec![0; len]);
        }
        lab.fill(&[header(1, Offload::default()), frame(1)].concat());
        assert_eq!(lab.receive().len(), 1);
        assert_eq!((lab.stats().rx_errors, lab.stats().rx_packets), (4, 1));
    });
}

#[test]
fn a_lying_back_end_is_left_and_its_successor_served() {
    let lies: [fn(&mut Lab); 4] = [
        |lab| lab.used(Side::Rx, 64, 1, 100),
        |lab| {
            let (id, _) = lab.next(Side::Rx);
            lab.used(Side::Rx, id, 1, 100);
            lab.used(Side::Rx, id, 1, 100);
        },
        |lab| {
            lab.fill(&[header(0xffff, Offload::default()), frame(60)].concat());
            // Without mergeable buffers that is no lie.
            if lab.features & net::F_MRG_RXBUF == 0 {
                lab.used(Side::Rx, 99, 1, 100);
            }
        },
        |lab| {
            lab.fill(&[header(1, Offload::default()), frame(60)].concat());
            lab.used(Side::Rx, 0xffff, 1, u32::MAX);
        },
    ];
    for lie in lies {
        everywhere(|mut lab| {
            lie(&mut lab);
            let mut batch = Batch::default();
            lab.queue.rx(&mut batch);
            assert!(lab.queue.rx(&mut Batch::default()) == 0 && lab.stats().faults == 1, "once");
            assert_eq!(lab.state.features(), 0);
            let mut loans: Batch<Loan> = Batch::default();
            while let Some(buf) = batch.pop_front() {
                loans.push(buf.finish(0));
            }
            lab.queue.settle(&mut loans);
            assert_eq!(lab.queue.lent(), 0);
            lab.connect(1);
            lab.fill(&[header(1, Offload::default()), frame(60)].concat());
            assert_eq!(lab.receive(), [(frame(60), Offload::default())]);
        });
    }
}

#[test]
fn a_used_length_past_the_frame_is_cut() {
    everywhere(|mut lab| {
        let (id, chain) = lab.next(Side::Rx);
        lab.used(Side::Rx, id, 1, u32::MAX);
        let mut batch = Batch::default();
        // Whatever the header says: the bytes lie in one frame.
        lab.queue.rx(&mut batch);
        while let Some(buf) = batch.pop_front() {
            assert!(buf.len() <= chain[0].len);
            let mut loans = Batch::default();
            loans.push(buf.finish(0));
            lab.queue.settle(&mut loans);
        }
    });
}

/// A packet in pieces of a pool's buffers.
fn packet(pool: &mut Pool, bytes: &[u8], piece: usize, offload: Offload) -> Batch<hugepages::Buf> {
    let mut batch = Batch::default();
    let mut chunks = bytes.chunks(piece).peekable();
    while let Some(chunk) = chunks.next() {
        let mut buf = pool.take().unwrap();
        buf.truncate(chunk.len() as u32);
        assert_eq!(buf.write(0, chunk), chunk.len());
        buf.set_more(chunks.peek().is_some());
        batch.push(buf);
    }
    batch.get_mut(0).unwrap().offload = offload;
    batch
}

#[test]
fn any_packet_is_sent_as_it_is() {
    let backing = Backing { page: PageSize::Base, node: None };
    let (mut pool, _) = Pool::new(128, 2048, backing).unwrap();
    for indirect in [0, v::F_INDIRECT_DESC] {
        everywhere(|lab| {
            let mut lab = Lab::new(lab.features | indirect);
            let mut loans = Batch::default();
            for (len, piece) in
                [(1, 1), (60, 60), (60, 7), (2100, 2048), (2101, 2048), (9000, 1500), (65_554, 2048)]
            {
                let mut batch = packet(&mut pool, &frame(len), piece, Offload::default());
                assert_eq!((lab.queue.tx(&mut batch), batch.len()), (1, 0));
                assert_eq!(lab.drain(), (vec![0; HDR], frame(len)), "{len} bytes in pieces of {piece}");
                lab.queue.reap(&mut loans);
                while let Some(loan) = loans.pop_front() {
                    pool.settle(loan);
                }
                assert_eq!(pool.out(), 0, "the receipt is given at once");
            }
            let mut batch = packet(&mut pool, &frame(65_555), 2048, Offload::default());
            assert_eq!((lab.queue.tx(&mut batch), batch.len(), lab.stats().tx_errors), (1, 0, 1));
            lab.queue.reap(&mut loans);
            while let Some(loan) = loans.pop_front() {
                pool.settle(loan);
            }
        });
    }
}

#[test]
fn a_received_frame_is_sent_where_it_lies() {
    everywhere(|mut lab| {
        lab.fill(&[header(1, Offload::default()), frame(300)].concat());
        let (_, chain) = lab.next(Side::Rx);
        let mut batch = Batch::default();
        assert_eq!(lab.queue.rx(&mut batch), 1);
        let first = batch.get_mut(0).unwrap();
        let at = first.iova() - lab.memory.region().map.address();
        first.advance(10);
        assert_eq!(lab.queue.tx(&mut batch), 1);
        assert_eq!(lab.queue.lent(), 0, "not on loan any more, though the back-end has it");
        let (_, sent) = lab.next(Side::Tx);
        assert_eq!((sent[0].addr, sent[0].len), (at + 10 - HDR as u64, HDR as u32 + 290));
        assert!(sent[0].addr.abs_diff(chain[0].addr) >= 2048, "its frame is in no other ring");
        assert_eq!(lab.drain(), (vec![0; HDR], frame(300)[10..].to_vec()));
    });
}

#[test]
fn checksums_are_left_to_those_who_take_them() {
    let backing = Backing { page: PageSize::Base, node: None };
    let (mut pool, _) = Pool::new(8, 2048, backing).unwrap();
    let asked = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
    let tso = Offload { gso_type: 1, gso_size: 500, hdr_len: 54, ..asked };
    for layout in [0, PACKED] {
        for (features, offload, taken) in
            [(0, asked, false), (net::F_CSUM, asked, true), (net::F_CSUM | net::F_HOST_TSO4, tso, true)]
        {
            let mut lab = Lab::new(layout | features);
            let mut batch = packet(&mut pool, &frame(1000), 300, offload);
            assert_eq!(lab.queue.tx(&mut batch), 1);
            let (head, bytes) = lab.drain();
            let mut expected = frame(1000);
            if taken {
                assert_eq!(head, header(0, offload));
            } else {
                crate::offload::complete_slice(&offload, &mut expected).unwrap();
                assert_eq!(head, vec![0; HDR]);
            }
            assert!(bytes == expected, "{features:#x}");
            let mut loans = Batch::default();
            lab.queue.reap(&mut loans);
            while let Some(loan) = loans.pop_front() {
                pool.settle(loan);
            }
        }
    }
}

#[test]
fn large_packets_are_segmented_for_those_who_do_not() {
    let backing = Backing { page: PageSize::Base, node: None };
    let (mut pool, _) = Pool::new(64, 2048, backing).unwrap();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 1000, 512);
    let mut bytes = Vec::new();
    let payload = frame(20_000);
    builder.write(&mut bytes, &payload).unwrap();
    let offload =
        Offload { flags: 1, gso_type: 1, gso_size: 1460, hdr_len: 54, csum_start: 34, csum_offset: 16 };
    for layout in [0, PACKED] {
        for features in [0, net::F_CSUM, net::F_CSUM | net::F_HOST_TSO6] {
            let mut lab = Lab::new(layout | features);
            let mut batch = packet(&mut pool, &bytes, 2048, offload);
            assert_eq!((lab.queue.tx(&mut batch), batch.len()), (1, 0));
            let mut got: Vec<u8> = Vec::new();
            for i in 0..14 {
                let (head, frame) = lab.drain();
                assert_eq!(head, vec![0; HDR]);
                let slice = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                let (net, transport) = (slice.net.unwrap(), slice.transport.unwrap());
                let etherparse::TransportSlice::Tcp(tcp) = transport else { panic!("no TCP") };
                assert_eq!(tcp.sequence_number(), 1000 + 1460 * i);
                let ip = net.ipv4_ref().unwrap().header().to_header();
                assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&ip, tcp.payload()).unwrap());
                got.extend(tcp.payload());
            }
            assert!(got == payload);
            // A ring that never has room for all of them.
            let tiny = Offload { gso_size: 100, ..offload };
            let mut batch = packet(&mut pool, &bytes, 2048, tiny);
            assert_eq!((lab.queue.tx(&mut batch), lab.stats().tx_errors), (1, 1));
            let mut loans = Batch::default();
            lab.queue.reap(&mut loans);
            while let Some(loan) = loans.pop_front() {
                pool.settle(loan);
            }
        }
    }
}

#[test]
fn what_a_back_end_leaves_to_do_is_believed_if_negotiated() {
    let asked = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
    let tso = Offload { gso_type: 1, gso_size: 500, hdr_len: 54, ..asked };
    let mergeable = net::F_MRG_RXBUF | net::F_GUEST_CSUM;
    for (features, said, believed) in [
        (0, tso, Offload::default()),
        (mergeable, tso, asked),
        (mergeable | net::F_GUEST_TSO4, tso, tso),
        (mergeable, Offload { csum_start: 60, ..asked }, Offload::default()),
        (mergeable, Offload { flags: 2, ..Offload::default() }, Offload { flags: 2, ..Offload::default() }),
        (mergeable | net::F_GUEST_TSO4, Offload { gso_type: 4, ..tso }, asked),
        (mergeable | net::F_GUEST_TSO4, Offload { gso_size: 0, ..tso }, asked),
    ] {
        let mut lab = Lab::new(features);
        lab.fill(&[header(1, said), frame(60)].concat());
        assert_eq!(lab.receive(), [(frame(60), believed)], "{features:#x}");
    }
}

#[test]
fn a_sleeper_is_woken_by_the_first_frame() {
    for event_idx in [0, v::F_EVENT_IDX] {
        everywhere(|lab| {
            let mut lab = Lab::new(lab.features | event_idx);
            lab.door.bell().clear();
            let mut fds = 0;
            assert!(lab.queue.sleep(&mut |_| fds += 1) && fds == 1);
            let raw = &lab.raws[Side::Rx as usize];
            let wanted = match (lab.packed(), event_idx != 0) {
                (false, false) => raw.driver(0) == 0,
                (false, true) => raw.driver(2 + 64) == 0,
                (true, false) => raw.driver(1) == v::EVENT_ENABLE,
                (true, true) => (raw.driver(0), raw.driver(1)) == (1 << 15, v::EVENT_DESC),
            };
            assert!(wanted, "the back-end is asked to call");
            lab.queue.wake(true);
            lab.fill(&[header(1, Offload::default()), frame(60)].concat());
            assert!(!lab.queue.sleep(&mut |_| {}), "there is work already");
            assert_eq!(lab.receive().len(), 1);
        });
    }
}

#[test]
fn arguments_out_of_range_are_named() {
    let good = Config { path: "x".into(), ..Config::default() };
    let wrong = [
        (Config { path: "".into(), ..good.clone() }, "path="),
        (Config { queues: 0, ..good.clone() }, "queues=0"),
        (Config { queues: 129, ..good.clone() }, "queues=129"),
        (Config { queue_size: 0, ..good.clone() }, "queue_size=0"),
        (Config { queue_size: 1000, ..good.clone() }, "queue_size=1000"),
        (Config { queue_size: 32769, ..good.clone() }, "queue_size=32769"),
        (Config { mtu: 67, ..good.clone() }, "mtu=67"),
        (Config { mtu: 65536, ..good.clone() }, "mtu=65536"),
    ];
    for (config, named) in wrong {
        let message = VirtioUser::new("user0", config).err().unwrap().to_string();
        assert!(message.contains("user0") && message.contains(named), "{message}");
    }
    let config = Config {
        queue_size: 1000,
        packed: true,
        backing: Backing { page: PageSize::Base, node: None },
        ..good
    };
    let message = VirtioUser::new("user0", config).unwrap().start(1).err().unwrap().to_string();
    assert!(message.contains("cannot connect to x"), "{message}");
}
