//! The port's side of any NIC, with a device that keeps packets for as long as a test wants and gives
//! them back in any order.

mod direct;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hugepages::{Buf, Lender, Loan, Map, Offload, PageSize};
use proptest::prelude::*;

use super::queue::NicQueue;
use super::*;
use crate::batch::Batch;
use crate::nic::slots::Slots;
use crate::nic::{Arrival, Broken, Fate, Rings};

const BASE: Backing = Backing { page: PageSize::Base, node: None };
const RING: u16 = 64;

/// What the device has, and what the test tells it to do.
#[derive(Default)]
struct Inner {
    /// Packets with the device: number, address of the first buffer, bytes.
    has: Vec<(u16, u64, Vec<u8>)>,
    /// Numbers it is done with, in the order in which it says so.
    done: Vec<u16>,
    /// Empty buffers, by number.
    empty: Vec<u16>,
    /// Pieces that come in: bytes, `MORE`, damaged.
    comes: Vec<(Vec<u8>, bool, bool)>,
    broken: bool,
    /// Which empty buffer it fills next, of those it has.
    pick: usize,
    /// Most buffers of one packet that its ring can ever hold; 0: any.
    short: usize,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Inner>>);

impl Fake {
    fn get<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// Everything is sent, in this order of what there is.
    fn complete(&self, order: impl Fn(usize) -> usize) {
        self.get(|inner| {
            while !inner.has.is_empty() {
                let n = inner.has.len();
                let (id, ..) = inner.has.remove(order(n) % n);
                inner.done.push(id);
            }
        });
    }
}

impl Rings for Fake {
    const MOST: usize = 4;

    fn completes(&self, _: &Offload) -> bool {
        false
    }

    fn tx_size(&self) -> u16 {
        RING
    }

    fn free(&self) -> usize {
        self.get(|inner| usize::from(RING) - inner.has.len() - inner.done.len())
    }

    fn send(&mut self, packet: &[Buf]) -> Fate {
        let mut bytes = Vec::new();
        for buf in packet {
            let old = bytes.len();
            bytes.resize(old + buf.len() as usize, 0);
            buf.read(0, &mut bytes[old..]);
        }
        self.get(|inner| {
            if inner.short > 0 && packet.len() > inner.short {
                return Fate::Full;
            }
            let taken = |id: &u16| inner.has.iter().any(|p| p.0 == *id) || inner.done.contains(id);
            let Some(id) = (0..RING).find(|id| !taken(id)) else { return Fate::Full };
            inner.has.push((id, packet[0].iova(), bytes));
            Fate::Taken(id)
        })
    }

    fn show_sent(&mut self) {}

    fn sent(&mut self) -> Result<Option<u16>, Broken> {
        self.get(|inner| {
            if inner.broken {
                return Err(Broken("it lies".into()));
            }
            Ok(if inner.done.is_empty() { None } else { Some(inner.done.remove(0)) })
        })
    }

    fn rx_size(&self) -> u16 {
        RING
    }

    fn writes(&self) -> u32 {
        0
    }

    fn post(&mut self, _: &Buf) -> u16 {
        self.get(|inner| {
            let id = (0..RING).find(|id| !inner.empty.contains(id)).expect("the caller counts");
            inner.empty.push(id);
            id
        })
    }

    fn show_posted(&mut self) {}

    fn received(&mut self, posted: &mut Slots) -> Result<Option<Arrival>, Broken> {
        self.get(|inner| {
            if inner.comes.is_empty() || inner.empty.is_empty() {
                return Ok(None);
            }
            let (bytes, more, damaged) = inner.comes.remove(0);
            let next = inner.pick * 7 % inner.empty.len();
            let mut buf = posted.take(inner.empty.remove(next)).expect("posted");
            assert_eq!(buf.write(0, &bytes), bytes.len());
            buf.truncate(bytes.len() as u32);
            buf.set_more(more);
            Ok(Some(if damaged { Arrival::Damaged(buf) } else { Arrival::Piece(buf) }))
        })
    }
}

/// A queue on a fake, and a guest that sends through it.
struct Bench {
    fake: Fake,
    queue: NicQueue<Fake>,
    shared: Arc<Shared>,
    guest: Lender,
    home: Vec<(u16, u32)>,
}

impl Bench {
    fn new(copy_break: u32) -> Bench {
        Bench::of(Config { copy_break, ..Config::default() })
    }

    fn of(config: Config) -> Bench {
        let shared = Shared::new("nic", None).unwrap();
        shared.halted.store(false, Ordering::Release);
        let config = Config { backing: BASE, ..config };
        let fake = Fake::default();
        let queue = NicQueue::new(fake.clone(), &config, "nic", Arc::clone(&shared)).unwrap();
        let guest = Lender::new(Table::of(Map::shared(1 << 20, BASE).unwrap()));
        Bench { fake, queue, shared, guest, home: Vec::new() }
    }

    /// A packet of the guest's, a buffer for each length, numbered from `id` on; each byte is the number.
    fn packet(&self, id: u16, lens: &[u32], out: &mut Batch<Buf>) {
        for (i, &len) in lens.iter().enumerate() {
            let number = id + i as u16;
            let mut buf = self.guest.lend_writable(u64::from(number) * 4096, len, number).unwrap();
            buf.write(0, &vec![number as u8; len as usize]);
            buf.set_more(i + 1 < lens.len());
            out.push(buf);
        }
    }

    fn reap(&mut self) -> usize {
        let mut loans: Batch<Loan> = Batch::default();
        let n = self.queue.reap(&mut loans);
        while let Some(loan) = loans.pop_front() {
            self.home.push(self.guest.settle(loan));
        }
        n
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Completions come in any order: every buffer once, none twice, with nothing written.
    #[test]
    fn receipts_come_home_once_in_any_order(
        packets in proptest::collection::vec(proptest::collection::vec(1..1400u32, 1..5), 1..40),
        step in 1..97usize,
    ) {
        let mut bench = Bench::new(64);
        let (mut batch, mut id) = (Batch::default(), 0);
        for lens in &packets {
            let lens: Vec<u32> = lens.iter().map(|len| (len / lens.len() as u32).max(14)).collect();
            bench.packet(id, &lens, &mut batch);
            id += lens.len() as u16;
        }
        while !batch.is_empty() {
            bench.queue.tx(&mut batch);
            bench.fake.complete(|n| n * step / 7);
            bench.reap();
        }
        for _ in 0..packets.len() {
            bench.reap();
        }
        bench.home.sort_unstable();
        prop_assert_eq!(bench.home, (0..id).map(|id| (id, 0)).collect::<Vec<_>>());
        prop_assert_eq!((bench.guest.out(), bench.queue.held()), (0, 0));
        prop_assert_eq!(bench.queue.counters().tx_packets.get(), packets.len() as u64);
    }
}

#[test]
fn large_frames_are_read_where_they_lie_and_small_ones_are_copied() {
    let mut bench = Bench::new(256);
    let mut batch = Batch::default();
    bench.packet(0, &[256], &mut batch);
    bench.packet(1, &[257], &mut batch);
    bench.packet(2, &[100, 200], &mut batch);
    let at: Vec<u64> = batch.iter().map(Buf::iova).collect();
    assert_eq!(bench.queue.tx(&mut batch), 3);
    let has = bench.fake.get(|inner| inner.has.clone());
    assert!(has[0].1 != at[0] && has[0].2 == [0; 256]);
    assert!(has[1].1 == at[1] && has[1].2 == [1; 257]);
    assert!(has[2].1 == at[2] && has[2].2.len() == 300);
    // The copy's receipt is home though the device has sent nothing; the others wait for it. A guest that
    // rewrites its small frame now changes nothing that is sent.
    bench.reap();
    assert_eq!((bench.home.as_slice(), bench.guest.out()), (&[(0, 0)][..], 3));
    bench.fake.complete(|_| 0);
    bench.reap();
    assert_eq!((bench.guest.out(), bench.queue.held()), (0, 0));
    let ways = bench.queue.ways();
    assert_eq!((ways.copied.get(), ways.in_place.get()), (1, 2));
}

#[test]
fn a_packet_that_a_short_ring_can_never_hold_blocks_nobody() {
    let mut bench = Bench::new(0);
    bench.fake.get(|inner| inner.short = 2);
    let mut batch = Batch::default();
    bench.packet(0, &[400, 400], &mut batch);
    bench.packet(2, &[300, 300, 300], &mut batch);
    bench.packet(5, &[200, 200, 200], &mut batch);
    batch.get_mut(5).unwrap().offload =
        Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() };
    bench.packet(8, &[500], &mut batch);
    // While the device has something, there may be room once it is done.
    assert_eq!((bench.queue.tx(&mut batch), batch.len()), (1, 7));
    for _ in 0..4 {
        bench.fake.complete(|_| 0);
        bench.reap();
        bench.queue.tx(&mut batch);
    }
    bench.fake.complete(|_| 0);
    bench.reap();
    bench.home.sort_unstable();
    assert_eq!(bench.home, (0..9).map(|id| (id, 0)).collect::<Vec<_>>());
    let ways = bench.queue.ways();
    assert_eq!((ways.in_place.get(), ways.copied.get(), bench.queue.counters().tx_errors.get()), (2, 2, 0));
}

#[test]
fn a_device_that_sits_on_small_frames_starves_no_ring() {
    // A guest with 8 buffers; the device has room for 64 packets and sends none of them.
    let mut bench = Bench::new(256);
    for _ in 0..7 {
        let mut batch = Batch::default();
        for id in 0..8 {
            bench.packet(id, &[64], &mut batch);
        }
        assert_eq!(bench.queue.tx(&mut batch), 8);
        bench.reap();
        assert_eq!(bench.guest.out(), 0);
    }
    assert_eq!(bench.fake.get(|inner| inner.has.len()), 56);
}

#[test]
fn what_the_device_never_sends_comes_home_at_the_deadline() {
    let mut bench = Bench::new(0);
    let mut batch = Batch::default();
    for id in 0..40 {
        bench.packet(3 * id, &[500, 500, 400], &mut batch);
        bench.queue.tx(&mut batch);
    }
    let kept = batch.len();
    assert!(bench.queue.held() > 60 && kept + bench.queue.held() as usize == 120);
    let began = Instant::now();
    while bench.queue.held() > 0 {
        bench.reap();
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert!(bench.shared.halted() && began.elapsed() >= queue::HANGS);
    // What comes now is dropped and counted; the device completes what it lost, and nobody hears it.
    bench.fake.complete(|_| 0);
    while !batch.is_empty() {
        bench.queue.tx(&mut batch);
        bench.reap();
    }
    bench.reap();
    bench.home.sort_unstable();
    assert_eq!(bench.home, (0..120).map(|id| (id, 0)).collect::<Vec<_>>());
    assert_eq!(bench.queue.counters().tx_errors.get(), kept as u64 / 3);
    assert_eq!(bench.queue.counters().faults.get(), 1);
}

#[test]
fn a_device_that_lies_is_stopped_and_gives_everything_back() {
    let mut bench = Bench::new(0);
    let mut batch = Batch::default();
    bench.packet(0, &[300, 300], &mut batch);
    bench.queue.tx(&mut batch);
    bench.fake.get(|inner| inner.broken = true);
    bench.reap();
    bench.reap();
    assert!(bench.shared.halted() && bench.guest.out() == 0 && bench.queue.held() == 0);
    assert_eq!(bench.queue.rx(&mut Batch::default()), 0);
}

#[test]
fn a_queue_that_ends_leaves_no_frame_of_its_own_out_and_anothers_memory_alone() {
    let bench = Bench::new(0);
    let mut batch = Batch::default();
    bench.packet(0, &[300], &mut batch);
    let Bench { mut queue, guest, shared, .. } = bench;
    queue.tx(&mut batch);
    let table = Arc::downgrade(guest.table());
    drop(queue);
    assert!(shared.halted());
    drop(guest);
    assert!(table.upgrade().is_some(), "the guest's memory stays: its receipt never came");
}

#[test]
fn frames_come_in_whole_and_damaged_ones_not_at_all() {
    let mut bench = Bench::new(0);
    let piece = |byte: u8, len, more, damaged| (vec![byte; len], more, damaged);
    bench.fake.get(|inner| {
        inner.comes = vec![
            piece(1, 60, false, false),
            piece(2, 2048, true, false),
            piece(2, 2048, true, false),
            piece(2, 10, false, false),
            piece(3, 2048, true, false),
            piece(3, 5, false, true),
            piece(4, 70, false, false),
            piece(5, 70, false, true),
        ];
    });
    let mut out = Batch::default();
    assert_eq!(bench.queue.rx(&mut out), 3);
    let lens: Vec<(u32, bool)> = out.iter().map(|buf| (buf.len(), buf.more())).collect();
    assert_eq!(lens, [(60, false), (2048, true), (2048, true), (10, false), (70, false)]);
    let counters = bench.queue.counters();
    assert_eq!((counters.rx_errors.get(), counters.rx_bytes.get()), (2, 60 + 4106 + 70));
    assert_eq!(bench.queue.lent(), 5);
    let mut loans = Batch::default();
    while let Some(buf) = out.pop_front() {
        loans.push(buf.finish(0));
    }
    bench.queue.settle(&mut loans);
    assert_eq!(bench.queue.lent(), 0);
    // A packet without an end is cut off, counted, and its buffers are used again.
    for _ in 0..4 {
        bench.fake.get(|inner| inner.comes = vec![piece(6, 100, true, false); 40]);
        bench.queue.rx(&mut out);
        assert!(out.is_empty());
    }
    assert!(counters.rx_errors.get() >= 5);
}

#[test]
fn what_the_device_cannot_is_done_for_it() {
    let mut bench = Bench::new(0);
    let mut batch = Batch::default();
    bench.packet(7, &[20, 40, 240], &mut batch);
    batch.get_mut(0).unwrap().offload =
        Offload { flags: 1, csum_start: 34, csum_offset: 16, ..Offload::default() };
    let mut expected: Vec<u8> = [vec![7; 20], vec![8; 40], vec![9; 240]].concat();
    crate::offload::complete_slice(&batch.as_slice()[0].offload, &mut expected).unwrap();
    // Numbers that point outside the packet: it can never be sent.
    bench.packet(20, &[60], &mut batch);
    batch.get_mut(3).unwrap().offload =
        Offload { flags: 1, csum_start: 59, csum_offset: 0, ..Offload::default() };
    assert_eq!(bench.queue.tx(&mut batch), 2);
    assert_eq!(bench.fake.get(|inner| inner.has.iter().map(|p| p.2.clone()).collect::<Vec<_>>()), [expected]);
    bench.reap();
    assert_eq!((bench.guest.out(), bench.queue.counters().tx_errors.get()), (0, 1));

    // A large TCP packet becomes frames of a segment each.
    let mut large = vec![0u8; 54 + 3000];
    large[12..14].copy_from_slice(&[8, 0]);
    large[14] = 0x45;
    large[23] = 6;
    large[46] = 0x50;
    let mut buf = bench.guest.lend_writable(0, 54 + 3000, 50).unwrap();
    buf.write(0, &large);
    buf.offload =
        Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1400, csum_start: 34, csum_offset: 16 };
    batch.push(buf);
    bench.fake.get(|inner| inner.has.clear());
    assert_eq!(bench.queue.tx(&mut batch), 1);
    let lens = bench.fake.get(|inner| inner.has.iter().map(|p| p.2.len()).collect::<Vec<_>>());
    assert_eq!(lens, [1454, 1454, 254]);
}

/// The rings of each start.
type Starts = Arc<Mutex<Vec<Vec<Fake>>>>;

/// A chip whose rings are fakes, new ones with each start.
struct FakeChip {
    starts: Starts,
    refuses: bool,
}

impl Chip for FakeChip {
    type Rings = Fake;

    fn about(&self) -> About {
        About { driver: "net_fake", queues: 2, max_frame: 9018 }
    }

    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, 1]
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<Fake>, NicError> {
        let mut starts = self.starts.lock().unwrap();
        if self.refuses && !starts.is_empty() {
            return Err(NicError::Late("leave reset", 100));
        }
        starts.push((0..setup.queues).map(|_| Fake::default()).collect());
        Ok(starts.last().unwrap().clone())
    }

    fn filter(&mut self, _: &Filter) -> Result<(), NicError> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn link(&self) -> (bool, u32) {
        (true, 1000)
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        vec![("resets", self.starts.lock().unwrap().len() as u64)]
    }
}

/// A started port of two queues, and the fakes behind it.
fn port(refuses: bool) -> (Nic<FakeChip>, Vec<Box<dyn Queue>>, Starts) {
    let starts = Starts::default();
    let chip = FakeChip { starts: Arc::clone(&starts), refuses };
    let config = Config { copy_break: 0, backing: BASE, ..Config::default() };
    let shared = Shared::new("nic", None).unwrap();
    let mut port = Nic::new("nic", chip, shared, config).unwrap();
    let queues = port.start(2).unwrap();
    (port, queues, starts)
}

/// Packets of one buffer on their way through both queues, half a ring each.
fn send_half(guest: &Lender, queues: &mut [Box<dyn Queue>]) {
    for (i, queue) in queues.iter_mut().enumerate() {
        let mut batch = Batch::default();
        for n in 0..RING / 2 {
            batch.push(guest.lend(0, 600, i as u16 * RING + n).unwrap());
        }
        assert_eq!(queue.tx(&mut batch), usize::from(RING / 2));
    }
}

fn reap_all(guest: &Lender, queues: &mut [Box<dyn Queue>]) {
    for queue in queues {
        let mut loans = Batch::default();
        queue.reap(&mut loans);
        while let Some(loan) = loans.pop_front() {
            guest.settle(loan);
        }
    }
}

#[test]
fn a_device_that_hangs_is_started_anew_and_loses_no_buffer() {
    let (mut port, mut queues, starts) = port(false);
    let guest = Lender::new(Table::of(Map::shared(1 << 20, BASE).unwrap()));
    for round in 1..=3 {
        send_half(&guest, &mut queues);
        assert_eq!(guest.out(), u32::from(RING));
        // The first queue says nothing for too long; the other one's packets are gone with the reset.
        let began = Instant::now();
        while starts.lock().unwrap().len() == round || !port.link().up || guest.out() > 0 {
            reap_all(&guest, &mut queues);
            assert!(began.elapsed() < Duration::from_secs(20), "round {round}: {} out", guest.out());
        }
        // What the dead generation completes is heard by nobody.
        starts.lock().unwrap()[round - 1].iter().for_each(|fake| fake.complete(|_| 0));
        let began = Instant::now();
        let posted = |i: usize| starts.lock().unwrap()[round][i].get(|inner| inner.empty.len());
        while posted(0) < usize::from(RING) || posted(1) < usize::from(RING) {
            reap_all(&guest, &mut queues);
            assert!(began.elapsed() < Duration::from_secs(20), "new rings are filled");
        }
    }
    assert_eq!(queues.iter().map(|q| q.held() + q.lent()).sum::<u32>(), 0);
    assert!(port.xstats().contains(&("hw_resets".to_owned(), 4)));
    port.stop(queues).unwrap();
    assert!(!port.link().up);
}

#[test]
fn a_device_that_is_removed_stays_stopped() {
    let (mut port, mut queues, starts) = port(false);
    let guest = Lender::new(Table::of(Map::shared(1 << 20, BASE).unwrap()));
    send_half(&guest, &mut queues);
    port.shared.removal.signal();
    let began = Instant::now();
    while guest.out() > 0 {
        reap_all(&guest, &mut queues);
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert!(!port.link().up && starts.lock().unwrap().len() == 1);
    // Its port can still be closed.
    port.stop(queues).unwrap();
}

#[test]
fn a_device_that_does_not_start_again_stays_stopped() {
    let (mut port, mut queues, _) = port(true);
    let guest = Lender::new(Table::of(Map::shared(1 << 20, BASE).unwrap()));
    send_half(&guest, &mut queues);
    let began = Instant::now();
    while guest.out() > 0 {
        reap_all(&guest, &mut queues);
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert!(!port.link().up);
    port.stop(queues).unwrap();
}
