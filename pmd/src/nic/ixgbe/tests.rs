//! The driver against a model of the device: registers with their order of use, descriptors, checksums,
//! frames of several buffers.

use std::collections::HashMap;
use std::sync::Mutex;

use hugepages::{Backing, Buf, Lender, PageSize, Pool, Region, Table, Words};

use super::*;
use crate::nic::slots::Slots;
use crate::nic::{Arrival, Fate, Registers, Rings};
use crate::offload::Sum;

const BASE: Backing = Backing { page: PageSize::Base, node: None };

/// What the model keeps of a packet that is being sent.
#[derive(Default)]
struct Sending {
    bytes: Vec<u8>,
    context: (u64, u64),
    checksum: bool,
}

/// An 82599, as far as the datasheet says what a driver may rely on.
#[derive(Default)]
struct Model {
    regs: Mutex<HashMap<u32, u32>>,
    /// Memory, as its bus sees it.
    memory: Mutex<Option<Arc<Table>>>,
    /// What went out, by queue.
    wire: Mutex<Vec<(u16, Vec<u8>)>>,
    resets: Mutex<u32>,
}

impl Model {
    fn reg(&self, at: u32) -> u32 {
        self.regs.lock().unwrap().get(&at).copied().unwrap_or(0)
    }

    fn put(&self, at: u32, value: u32) {
        self.regs.lock().unwrap().insert(at, value);
    }

    fn reset(&self) {
        let mut regs = self.regs.lock().unwrap();
        regs.clear();
        regs.insert(r::EEC, r::EEC_READ);
        regs.insert(r::RDRXCTL, r::RDRXCTL_READY);
        regs.insert(r::RAL, 0x0000_1b00);
        regs.insert(r::RAL + 4, 1 << 31 | 0x0201);
        *self.resets.lock().unwrap() += 1;
    }

    fn table(&self) -> Arc<Table> {
        self.memory.lock().unwrap().clone().expect("memory is known before a queue runs")
    }

    /// The ring of a queue: its descriptors, and how many.
    fn ring(&self, base: u32) -> (hugepages::Window<u64>, u16) {
        let at = u64::from(self.reg(base + r::BASE_LOW)) | u64::from(self.reg(base + r::BASE_HIGH)) << 32;
        let bytes = self.reg(base + r::LENGTH);
        assert!(
            at.is_multiple_of(128) && bytes.is_multiple_of(128) && bytes > 0,
            "§7.1.9: ring at {at:#x}, {bytes} bytes"
        );
        (self.table().window(at, bytes as usize / 8).unwrap(), (bytes / 16) as u16)
    }

    /// §7.2.3: sends what is between head and tail.
    fn transmit(&self, queue: u16) {
        let base = r::tx_queue(queue);
        assert!(self.reg(r::DMATXCTL) & r::DMATXCTL_ON != 0, "§4.6.8: DMA is on before a queue is used");
        assert!(self.reg(base + r::CONTROL) & r::CONTROL_ON != 0, "a queue that is off was shown a packet");
        let (ring, size) = self.ring(base);
        let lender = Lender::new(self.table());
        let mut now =
            Sending { context: (self.reg(0xf0).into(), self.reg(0xf4).into()), ..Sending::default() };
        let mut head = self.reg(base + r::HEAD) as u16;
        let mut reported = true;
        while u32::from(head) != self.reg(base + r::TAIL) {
            let at = 2 * usize::from(head);
            let (first, second) = (ring.get(at), ring.get(at + 1));
            assert!(second >> 29 & 1 == 1, "§7.2.3.2.3: DEXT is set");
            if second >> 20 & 15 == 2 {
                now.context = (first, second);
                self.put(0xf0, first as u32);
                self.put(0xf4, second as u32);
            } else {
                assert_eq!(second >> 20 & 15, 3, "a data descriptor");
                let len = second as u32 & 0xffff;
                let buf = lender.lend(first, len, 0).expect("the IOMMU lets it read");
                let old = now.bytes.len();
                now.bytes.resize(old + len as usize, 0);
                buf.read(0, &mut now.bytes[old..]);
                lender.settle(buf.finish(0));
                now.checksum |= second >> 41 & 1 == 1;
                assert!(!now.checksum || second >> 39 & 1 == 1, "§7.2.3.2.4: CC");
                if second >> 24 & 1 == 1 {
                    let packet = std::mem::take(&mut now);
                    assert_eq!(second >> 46, packet.bytes.len() as u64, "PAYLEN");
                    now.context = packet.context;
                    self.wire.lock().unwrap().push((queue, finish(packet)));
                    reported = second >> 27 & 1 == 1;
                    if reported {
                        ring.set(at + 1, 1 << 32);
                    }
                }
            }
            head = (head + 1) % size;
            self.put(base + r::HEAD, head.into());
        }
        assert!(reported, "RS of the last packet that is shown: the driver waits for it");
    }

    /// §7.1.5: a frame comes in, with these bits of status and error in its last descriptor; `false`: there
    /// were no descriptors for it.
    fn receive(&self, queue: u16, frame: &[u8], status: u64) -> bool {
        let base = r::rx_queue(queue);
        assert!(self.reg(r::RXCTRL) & r::RXCTRL_ON != 0 && self.reg(base + r::CONTROL) & r::CONTROL_ON != 0);
        assert_eq!(self.reg(base + r::SRRCTL) >> 25 & 7, 1, "advanced descriptors, one buffer");
        let room = (self.reg(base + r::SRRCTL) as usize & 0x1f) << 10;
        let (ring, size) = self.ring(base);
        let lender = Lender::new(self.table());
        let mut head = self.reg(base + r::HEAD) as u16;
        let tail = self.reg(base + r::TAIL) as u16;
        if usize::from((tail + size - head) % size) < frame.len().div_ceil(room) {
            return false;
        }
        let mut pieces = frame.chunks(room).peekable();
        while let Some(piece) = pieces.next() {
            let at = 2 * usize::from(head);
            let mut buf =
                lender.lend_writable(ring.get(at), room as u32, 0).expect("the IOMMU lets it write");
            buf.write(0, piece);
            lender.settle(buf.finish(0));
            let last = if pieces.peek().is_none() { status | 2 } else { 0 };
            ring.set(at, 0);
            ring.release(at + 1, 1 | last | (piece.len() as u64) << 32);
            head = (head + 1) % size;
        }
        self.put(base + r::HEAD, head.into());
        true
    }
}

/// Completes a packet's checksum, if it was asked for.
fn finish(packet: Sending) -> Vec<u8> {
    let Sending { mut bytes, context: (first, second), checksum } = packet;
    if checksum {
        let start = (first & 0x1ff) as usize + (first >> 9 & 0x7f) as usize;
        let at = start + if second >> 11 & 3 == 1 { 16 } else { 6 };
        let mut sum = Sum::default();
        sum.add(&bytes[start..]);
        bytes[at..at + 2].copy_from_slice(&sum.stored());
    }
    bytes
}

impl Registers for Model {
    fn read(&self, at: u32, bytes: u32) -> u32 {
        assert_eq!((bytes, at % 4), (4, 0));
        let value = self.reg(at);
        if r::COUNTERS.iter().any(|c| c.1 == at || (c.2 && c.1 + 4 == at)) {
            self.put(at, 0);
        }
        value
    }

    fn write(&self, at: u32, bytes: u32, value: u32) {
        assert_eq!((bytes, at % 4), (4, 0));
        if at == crate::nic::intel::CTRL && value & r::CTRL_RST != 0 {
            return self.reset();
        }
        let queue = |base: u32| {
            at.checked_sub(base + r::TAIL).filter(|off| off.is_multiple_of(0x40) && off / 0x40 < 64)
        };
        if queue(r::rx_queue(0)).is_some() && value != 0 {
            assert!(
                self.reg(at - r::TAIL + r::CONTROL) & r::CONTROL_ON != 0,
                "§4.6.7: tail before the queue is on"
            );
        }
        self.put(at, value);
        if at == r::SECRXCTRL {
            self.put(r::SECRXSTAT, u32::from(value & r::SECRXCTRL_OFF != 0));
        }
        if let Some(off) = queue(r::tx_queue(0)).filter(|_| value != 0 || self.reg(at - 8) != 0) {
            self.transmit((off / 0x40) as u16);
        }
    }
}

struct Bench {
    model: Arc<Model>,
    chip: Ixgbe,
    rings: Vec<IntelRings<Ixgbe82599>>,
    pool: Pool,
}

/// A chip that was started, with all it can reach.
fn started(queues: u16, max_frame: u32) -> Bench {
    let model = Arc::new(Model::default());
    let mut chip = Ixgbe::new(Arc::clone(&model) as Regs, None);
    let setup = Setup { queues, rx_size: 16, tx_size: 16, room: 2048, max_frame, mac: None, backing: BASE };
    let rings = chip.start(&setup).unwrap();
    let (pool, _) = Pool::new(64, 2048, BASE).unwrap();
    let own = pool.table().regions()[0].clone();
    let at = own.map.address();
    let mut regions = vec![Region { gpa: at, user: at, ..own }];
    regions.extend(rings[0].memory.regions().iter().cloned());
    *model.memory.lock().unwrap() = Some(Arc::new(Table::new(regions).unwrap()));
    Bench { model, chip, rings, pool }
}

fn fill(pool: &mut Pool, bytes: &[u8]) -> Buf {
    let mut buf = pool.take().unwrap();
    assert_eq!(buf.write(0, bytes), bytes.len());
    buf.truncate(bytes.len() as u32);
    buf
}

#[test]
fn frames_go_out_in_order_from_any_number_of_buffers() {
    let Bench { model, mut rings, mut pool, .. } = started(2, 9018);
    let bytes: Vec<u8> = (0..=255).cycle().take(4000).map(|b: u8| b).collect();
    let mut expected = Vec::new();
    let mut ids = Vec::new();
    for (queue, pieces) in [(0, vec![60]), (1, vec![60, 1]), (0, vec![14, 1000, 2000]), (0, vec![1514])] {
        let mut at = 0;
        let packet: Vec<Buf> = pieces
            .iter()
            .map(|n| {
                at += n;
                fill(&mut pool, &bytes[at - n..at])
            })
            .collect();
        let Fate::Taken(id) = rings[queue].send(&packet) else { panic!("no room") };
        rings[queue].show_sent();
        expected.push((queue as u16, bytes[..at].to_vec()));
        ids.push((queue, id));
        packet.into_iter().for_each(|buf| pool.settle(buf.finish(0)));
    }
    assert_eq!(*model.wire.lock().unwrap(), expected);
    for (queue, id) in ids {
        assert_eq!(rings[queue].sent().unwrap(), Some(id));
    }
    assert!(rings[0].sent().unwrap().is_none() && rings[1].sent().unwrap().is_none());
    assert_eq!(rings[0].free(), 15);
}

#[test]
fn checksums_are_completed_by_the_device() {
    let Bench { model, mut rings, mut pool, .. } = started(1, 1518);
    for (start, offset, vlan) in [(34, 16, false), (34, 6, false), (54, 16, false), (38, 6, true)] {
        let mut frame: Vec<u8> = (0..90u32).map(|i| (i * 7) as u8).collect();
        frame[12..14].copy_from_slice(if vlan { &[0x81, 0] } else { &[8, 0] });
        let mut buf = fill(&mut pool, &frame);
        buf.offload = Offload { flags: 1, csum_start: start, csum_offset: offset, ..Offload::default() };
        assert!(rings[0].completes(&buf.offload));
        crate::offload::complete_slice(&buf.offload, &mut frame).unwrap();
        assert!(matches!(rings[0].send(std::slice::from_ref(&buf)), Fate::Taken(_)));
        rings[0].show_sent();
        let sent = model.wire.lock().unwrap().pop().unwrap().1;
        assert_eq!(sent, frame, "{start} + {offset}");
        pool.settle(buf.finish(0));
        assert!(rings[0].sent().unwrap().is_some());
    }
    // SCTP's is none that the device knows by these fields.
    let strange = Offload { flags: 1, csum_start: 34, csum_offset: 8, ..Offload::default() };
    assert!(!rings[0].completes(&strange));
}

#[test]
fn a_full_ring_takes_no_more_until_something_was_sent() {
    let Bench { mut rings, mut pool, .. } = started(1, 1518);
    let buf = fill(&mut pool, &[1; 64]);
    for _ in 0..15 {
        assert!(matches!(rings[0].send(std::slice::from_ref(&buf)), Fate::Taken(_)));
    }
    assert!(rings[0].send(std::slice::from_ref(&buf)) == Fate::Full && rings[0].sent().unwrap().is_none());
    rings[0].show_sent();
    for _ in 0..15 {
        assert!(rings[0].sent().unwrap().is_some());
    }
    assert!(matches!(rings[0].send(std::slice::from_ref(&buf)), Fate::Taken(_)));
    pool.settle(buf.finish(0));
}

#[test]
fn frames_come_in_whole_checked_or_damaged() {
    let Bench { model, mut rings, mut pool, .. } = started(1, 9018);
    let mut posted = Slots::new(rings[0].rx_size() + 2);
    let (checked, wrong, damaged) = (1 << 5, 1 << 5 | 1 << 30, 1 << 29);
    let cases = [(60, 0), (1514, checked), (2048, wrong), (2049, 0), (9014, checked), (70, damaged)];
    // Round the ring several times.
    for (len, status) in cases.into_iter().cycle().take(60) {
        while posted.len() < usize::from(rings[0].rx_size()) {
            let empty = pool.take().unwrap();
            let id = rings[0].post(&empty);
            posted.put(id, empty);
        }
        rings[0].show_posted();
        let frame: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        assert!(model.receive(0, &frame, status));
        let mut got = Vec::new();
        loop {
            let (buf, bad) = match rings[0].received(&mut posted).unwrap().expect("it has come") {
                Arrival::Piece(buf) => (buf, false),
                Arrival::Damaged(buf) => (buf, true),
            };
            let old = got.len();
            got.resize(old + buf.len() as usize, 0);
            buf.read(0, &mut got[old..]);
            let more = buf.more();
            if !more {
                assert_eq!(
                    (bad, buf.offload.flags),
                    (status == damaged, if status == checked { 2 } else { 0 })
                );
            }
            pool.settle(buf.finish(0));
            if !more {
                break;
            }
        }
        assert!(got == frame && rings[0].received(&mut posted).unwrap().is_none());
    }
    // More than there are descriptors for.
    assert!(!model.receive(0, &vec![0; 16 * 2048], 0));
}

#[test]
fn the_device_is_reset_named_and_counted() {
    let Bench { model, mut chip, .. } = started(16, 1518);
    assert_eq!(*model.resets.lock().unwrap(), 1);
    assert_eq!(chip.mac(), [0, 0x1b, 0, 0, 1, 2]);
    assert_eq!(chip.link(), (false, 0));
    model.put(r::LINKS, r::LINKS_UP | 3 << r::LINKS_SPEED);
    assert_eq!(chip.link(), (true, 10_000));
    // Queues are dealt by the hash; frames are no longer than they were said to be.
    assert_eq!((model.reg(r::RETA), model.reg(r::RETA + 12)), (0x0302_0100, 0x0f0e_0d0c));
    assert_eq!((model.reg(r::MRQC) & 0xf, model.reg(r::MAXFRS) >> 16), (1, 1522));
    let count = |chip: &mut Ixgbe, name| chip.counters().iter().find(|c| c.0 == name).unwrap().1;
    model.put(0x4074, 7);
    model.put(0x4088, 5);
    model.put(0x408c, 1);
    assert_eq!((count(&mut chip, "rx_good_packets"), count(&mut chip, "rx_good_bytes")), (7, (1 << 32) + 5));
    model.put(0x4074, 3);
    chip.stop();
    assert_eq!((count(&mut chip, "rx_good_packets"), *model.resets.lock().unwrap()), (10, 2));
    assert_eq!(model.reg(r::RXCTRL) & r::RXCTRL_ON, 0);
    // A device that is gone reads as all ones: no link, and nothing counted.
    model.put(r::LINKS, u32::MAX);
    model.put(0x4074, u32::MAX);
    assert_eq!((chip.link().0, count(&mut chip, "rx_good_packets")), (false, 10));
}

#[test]
fn filters_are_where_the_datasheet_has_them() {
    let Bench { model, mut chip, rings: _rings, .. } = started(1, 1518);
    let filter = Filter {
        unicast: vec![[2, 0x11, 0x22, 0x33, 0x44, 0x55]],
        multicast: vec![[1, 0, 0x5e, 0, 0, 0xfb]],
        vlans: Some(vec![0, 5, 4095]),
        ..Filter::default()
    };
    chip.filter(&filter).unwrap();
    // §8.2.3.7.1: BAM alone. §8.2.3.7.9: the first bytes of an address are the lowest; AV.
    assert_eq!(model.reg(0x5080), 1 << 10);
    assert_eq!((model.reg(0xa208), model.reg(0xa20c)), (0x3322_1102, 1 << 31 | 0x5544));
    assert_eq!((model.reg(0xa204) >> 31, model.reg(0xa214) >> 31), (1, 0), "its own, and no third one");
    // §8.2.3.7.7: bits 47:36 of 01:00:5e:00:00:fb are 0xfb0; MFE.
    assert_eq!((model.reg(0x5200 + 4 * (0xfb0 / 32)), model.reg(0x5090)), (1 << (0xfb0 % 32), 4));
    // §8.2.3.7.11, §8.2.3.7.2: VFTA and VFE.
    assert_eq!((model.reg(0xa000), model.reg(0xa000 + 4 * 127)), (1 | 1 << 5, 1 << 31));
    assert_eq!(model.reg(0x5088) >> 30, 1);
    chip.filter(&Filter { promiscuous: true, ..Filter::default() }).unwrap();
    assert_eq!((model.reg(0x5080), model.reg(0x5088) >> 30), (7 << 8, 0));
    assert_eq!((model.reg(0xa20c) >> 31, model.reg(0x5200 + 4 * (0xfb0 / 32))), (0, 0));
    let many = Filter { unicast: vec![[2; 6]; 128], ..Filter::default() };
    assert!(chip.filter(&many).unwrap_err().to_string().contains("127"));
}
