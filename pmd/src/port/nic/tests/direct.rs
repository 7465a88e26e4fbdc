//! Direct receive: the device fills the empty buffers of a guest with real rings, in any order.

use super::*;
use crate::port::Wanted;
use crate::port::vhost::local;
use crate::spec::{net, virtio as v};
use crate::vring::driver::{Areas, Packed, Ring, Segment, Split};
use crate::vring::{AnyVring, Way};
use crate::worker::{self, Outbox, QueueId, Stage, Worker};

const FRAMES: u64 = 1 << 16;
const ROOM: u64 = 2048;
const MERGEABLE: u64 = v::F_VERSION_1 | net::F_MRG_RXBUF;

/// The guest's side of its receive ring.
struct Guest<R> {
    ring: R,
    memory: Lender,
    /// Chains that it has offered, by id: where.
    at: Vec<Option<u64>>,
    /// Chains that came back empty.
    empty: usize,
}

impl<R: Ring> Guest<R> {
    /// It, with `chains` buffers in a ring of `size`, and the queue that serves it.
    fn new(features: u64, size: u16, chains: u64) -> (Guest<R>, Box<dyn Queue>) {
        let table = Table::of(Map::shared(1 << 20, BASE).unwrap());
        let areas = Areas::at(0, size, features, 0);
        let ring = R::open(&areas, &table).unwrap();
        let device = AnyVring::open(&areas.ring(Way::ToDriver), &table).unwrap();
        let queue = local("guest", features, None, Some(device)).unwrap();
        let mut guest = Guest { ring, memory: Lender::new(table), at: vec![None; size.into()], empty: 0 };
        (0..chains).for_each(|i| guest.offer(FRAMES + i * ROOM));
        (guest, queue)
    }

    fn offer(&mut self, at: u64) {
        // What was there before is not mistaken for what comes.
        let mut room = self.memory.lend_writable(at, ROOM as u32, 0).unwrap();
        room.write(0, &[0xee; ROOM as usize]);
        self.memory.settle(room.finish(0));
        let id = self.ring.add(&[Segment::write(at, ROOM as u32)]).unwrap();
        assert!(self.at[usize::from(id)].replace(at).is_none(), "every head once");
        let _ = self.ring.publish();
    }

    fn read(&self, at: u64, len: u32) -> Vec<u8> {
        let buf = self.memory.lend(at, len, 0).unwrap();
        let mut bytes = vec![0; len as usize];
        buf.read(0, &mut bytes);
        self.memory.settle(buf.finish(0));
        bytes
    }

    /// Frames that have come; their chains are offered again.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(used) = self.ring.used().unwrap() {
            let at = self.at[usize::from(used.id)].take().expect("every head once");
            if used.len == 0 {
                self.empty += 1;
                self.offer(at);
                continue;
            }
            let first = self.read(at, used.len);
            assert_eq!(first[..10], [0; 10], "nothing is left to be done");
            let chains = u16::from_le_bytes([first[10], first[11]]);
            let mut frame = first[12..].to_vec();
            self.offer(at);
            for _ in 1..chains {
                let used = self.ring.used().unwrap().expect("chains of a packet come together");
                let at = self.at[usize::from(used.id)].take().expect("every head once");
                frame.extend(self.read(at, used.len));
                self.offer(at);
            }
            frames.push(frame);
        }
        frames
    }
}

/// A device with a guest of its own on one core.
struct Core<R> {
    bench: Bench,
    guest: Guest<R>,
    vhost: Box<dyn Queue>,
    loans: Batch<Loan>,
}

impl<R: Ring> Core<R> {
    fn new(features: u64, size: u16, chains: u64) -> Core<R> {
        let bench = Bench::of(Config { direct: true, ..Config::default() });
        let (guest, vhost) = Guest::new(features, size, chains);
        let mut core = Core { bench, guest, vhost, loans: Batch::default() };
        core.bring_home();
        // Frames of our own that are in the device's ring from before.
        core.bench.fake.get(|inner| inner.comes = vec![(vec![9; 60], false, false); inner.empty.len()]);
        core.feed();
        let mut out = Batch::default();
        while core.bench.queue.rx(&mut out) > 0 {
            core.drop(&mut out);
        }
        core.bring_home();
        assert_eq!(core.bench.queue.lent(), 0);
        core
    }

    fn feed(&mut self) -> usize {
        let mut empty = Batch::default();
        let Some(wanted) = self.bench.queue.wants() else { return 0 };
        let n = self.vhost.empty(&wanted, &mut empty).unwrap();
        assert_eq!((self.bench.queue.post(&mut empty), empty.len()), (n, 0));
        n
    }

    fn drop(&mut self, batch: &mut Batch<Buf>) {
        while let Some(buf) = batch.pop_front() {
            self.loans.push(buf.finish(0));
            if self.loans.room() < 64 {
                self.bring_home();
            }
        }
    }

    fn bring_home(&mut self) {
        self.bench.queue.reap(&mut self.loans);
        self.vhost.reap(&mut self.loans);
        while !self.loans.is_empty() {
            let before = self.loans.len();
            self.bench.queue.settle(&mut self.loans);
            self.vhost.settle(&mut self.loans);
            assert!(self.loans.len() < before, "somebody's");
        }
        self.vhost.reap(&mut self.loans);
    }

    /// The device receives these, each in pieces; what arrives at the guest.
    fn wire(&mut self, frames: &[Vec<&[u8]>]) -> Vec<Vec<u8>> {
        let pieces = frames.iter().flat_map(|frame| {
            let last = frame.len() - 1;
            frame.iter().enumerate().map(move |(i, piece)| (piece.to_vec(), i < last, false))
        });
        self.bench.fake.get(|inner| inner.comes.extend(pieces));
        let mut got = Vec::new();
        let mut idle = 0;
        while idle < 8 {
            idle += usize::from(self.bench.fake.get(|inner| inner.comes.is_empty()));
            self.feed();
            let mut batch = Batch::default();
            self.bench.queue.rx(&mut batch);
            self.vhost.tx(&mut batch);
            self.drop(&mut batch);
            self.bring_home();
            got.extend(self.guest.receive());
        }
        got
    }

    fn in_place(&self) -> [u64; 2] {
        [self.bench.queue.ways().received.get(), self.vhost.counters().tx_in_place.get()]
    }
}

fn fills<R: Ring>(features: u64, pick: usize, frames: &[Vec<usize>]) {
    let mut core = Core::<R>::new(features, 128, 100);
    core.bench.fake.get(|inner| inner.pick = pick);
    let bytes: Vec<Vec<Vec<u8>>> = frames
        .iter()
        .enumerate()
        .map(|(n, pieces)| pieces.iter().map(|&len| (0..len).map(|i| (n * 31 + i) as u8).collect()).collect())
        .collect();
    let sent: Vec<Vec<&[u8]>> = bytes.iter().map(|frame| frame.iter().map(Vec::as_slice).collect()).collect();
    // Fewer at a time than the device has buffers of the guest's.
    let got: Vec<Vec<u8>> = sent.chunks(4).flat_map(|some| core.wire(some)).collect();
    assert_eq!(got, sent.iter().map(|frame| frame.concat()).collect::<Vec<_>>());
    assert_eq!(core.in_place(), [frames.len() as u64; 2], "none was copied");
    let counters = core.vhost.counters();
    assert_eq!((counters.tx_packets.get(), counters.tx_errors.get()), (frames.len() as u64, 0));
    assert_eq!(core.guest.empty, 0, "no buffer came back empty");
    // All that is out is with the device, and comes back when it is asked for, once.
    assert_eq!(core.vhost.lent(), core.bench.queue.held());
    core.bench.queue.unpost();
    for _ in 0..4 {
        core.bring_home();
    }
    assert_eq!((core.vhost.lent(), core.bench.queue.held(), core.bench.queue.lent()), (0, 0, 0));
    let out = core.guest.at.iter().flatten().count();
    assert!(core.guest.receive().is_empty() && core.guest.empty > 0);
    assert_eq!(core.guest.at.iter().flatten().count(), out);
    // What the device of before says it received is heard by nobody.
    core.bench.fake.get(|inner| inner.comes = vec![(vec![1; 60], false, false); 8]);
    assert_eq!(core.bench.queue.rx(&mut Batch::default()), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever buffer the device fills next: every head once, lengths and bytes right, nothing copied.
    #[test]
    fn frames_come_in_where_the_guest_wants_them(
        frames in proptest::collection::vec(proptest::collection::vec(1..2000usize, 1..5), 1..60),
        pick in 0..50usize,
        packed: bool,
    ) {
        let frames: Vec<Vec<usize>> = frames.into_iter().map(|mut f| { f[0] = f[0].max(14); f }).collect();
        if packed {
            fills::<Packed>(MERGEABLE | v::F_RING_PACKED, pick, &frames);
        } else {
            fills::<Split>(MERGEABLE, pick, &frames);
        }
    }
}

#[test]
fn a_guest_whose_packets_are_of_one_buffer_each_gets_those_in_place_too() {
    let frames: Vec<Vec<usize>> = (0..80).map(|n| vec![60 + n * 18]).collect();
    fills::<Split>(v::F_VERSION_1, 3, &frames);
    fills::<Packed>(v::F_VERSION_1 | v::F_RING_PACKED, 5, &frames);
    // One that the device spread over several of its chains cannot be: it is copied into one, or lost.
    let mut core = Core::<Split>::new(v::F_VERSION_1, 128, 100);
    let pieces: Vec<&[u8]> = vec![&[1; 300], &[2; 300]];
    assert_eq!(core.wire(&[pieces.clone(), pieces.clone()]), vec![pieces.concat(); 2]);
    assert_eq!((core.in_place(), core.guest.empty), ([2, 0], 4));
}

#[test]
fn a_ring_shorter_than_the_devices_starves_nobody() {
    for chains in [4, 16] {
        let mut core = Core::<Split>::new(MERGEABLE, 16, chains);
        assert!(core.feed() <= 12 && core.vhost.lent() <= 12 && core.feed() == 0);
        let frame = vec![5u8; 900];
        for round in 0..50 {
            // More at a time than the guest has buffers: what finds none is for frames of our own.
            let sent = vec![vec![frame.as_slice()]; 40];
            let got = core.wire(&sent);
            assert!(!got.is_empty() && got.iter().all(|got| *got == frame), "round {round}");
            // From elsewhere: copied into what is left for that, even while the device has the others.
            core.feed();
            let (mut pool, _) = hugepages::Pool::new(4, 2048, BASE).unwrap();
            let mut batch = Batch::default();
            let mut other = pool.take().unwrap();
            other.truncate(100);
            other.write(0, &[7; 100]);
            batch.push(other);
            assert_eq!(core.vhost.tx(&mut batch), 1);
            let mut loans = Batch::default();
            core.vhost.reap(&mut loans);
            pool.settle_front(&mut loans);
            assert!(loans.is_empty() && pool.out() == 0);
            if chains == 16 {
                assert_eq!(core.guest.receive(), [vec![7; 100]], "round {round}");
            }
        }
        assert!(core.in_place()[1] > 50);
    }
}

fn takes_turns<R: Ring>(features: u64) {
    let (mut guest, mut vhost) = Guest::<R>::new(features, 64, 64);
    vhost.reap(&mut Batch::default());
    let (mut pool, _) = hugepages::Pool::new(8, 2048, BASE).unwrap();
    let wanted = Wanted { most: 5, least: 268, whole: 1530 };
    for round in 0..100 {
        let mut batch = Batch::default();
        for n in 0..3 {
            let mut frame = pool.take().unwrap();
            frame.truncate(60 + n);
            frame.write(0, &[round; 62]);
            batch.push(frame);
        }
        assert_eq!(vhost.tx(&mut batch), 3);
        let mut loans = Batch::default();
        vhost.reap(&mut loans);
        pool.settle_front(&mut loans);
        let mut empty = Batch::default();
        assert_eq!(vhost.empty(&wanted, &mut empty), Some(5));
        while let Some(buf) = empty.pop_front() {
            loans.push(buf.finish(0));
        }
        vhost.settle(&mut loans);
        assert_eq!(vhost.lent(), 0);
        vhost.reap(&mut loans);
        let frames = guest.receive();
        assert!(frames.iter().map(Vec::len).eq([60, 61, 62]) && frames.concat().iter().all(|b| *b == round));
        assert_eq!(guest.empty, 5 * (usize::from(round) + 1));
    }
}

#[test]
fn packets_that_are_copied_and_buffers_that_are_lent_take_turns() {
    takes_turns::<Split>(MERGEABLE);
    takes_turns::<Packed>(MERGEABLE | v::F_RING_PACKED);
}

#[test]
fn what_is_not_for_the_guest_comes_back_to_it_as_an_empty_buffer() {
    let mut core = Core::<Packed>::new(MERGEABLE | v::F_RING_PACKED, 64, 60);
    core.feed();
    core.bench.fake.get(|inner| {
        inner.comes = vec![
            (vec![1; 60], false, false),
            // Damaged, in two pieces.
            (vec![2; 60], true, false),
            (vec![2; 60], false, true),
            (vec![3; 60], false, false),
        ];
    });
    let mut batch = Batch::default();
    assert_eq!(core.bench.queue.rx(&mut batch), 2);
    // One is dropped, of the other something is taken off: its rest is copied.
    let first = batch.pop_front().unwrap();
    core.loans.push(first.finish(0));
    batch.get_mut(0).unwrap().advance(4);
    assert_eq!(core.vhost.tx(&mut batch), 1);
    core.bring_home();
    assert_eq!(core.guest.receive(), [vec![3; 56]]);
    assert_eq!((core.guest.empty, core.in_place()[1]), (4, 0));
}

#[test]
fn a_ring_in_order_or_watched_lends_nothing() {
    for features in [MERGEABLE | v::F_IN_ORDER, 0] {
        let (_guest, mut vhost) = Guest::<Split>::new(features, 64, 60);
        vhost.reap(&mut Batch::default());
        let wanted = Wanted { most: 32, least: 268, whole: 1530 };
        assert_eq!(vhost.empty(&wanted, &mut Batch::default()), None);
    }
}

/// Sends all to one queue.
struct To(QueueId);

impl Stage for To {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(self.0, batch);
    }
}

#[test]
fn a_worker_hands_buffers_over_and_brings_them_home() {
    let starts = Starts::default();
    let chip = FakeChip { starts: Arc::clone(&starts), refuses: false };
    let config = Config { direct: true, backing: BASE, ..Config::default() };
    let mut port = Nic::new("nic", chip, Shared::new("nic", None).unwrap(), config).unwrap();
    assert_eq!(port.caps().queues, 1, "its reset disturbs nobody else");
    let (mut guest, vhost) = Guest::<Split>::new(MERGEABLE, 64, 64);
    let config = worker::Config { frames: 64, large_frames: 1, backing: BASE, ..worker::Config::default() };
    let worker = Worker::spawn(config, Box::new(To(QueueId(1)))).unwrap();
    let patience = Duration::from_secs(60);
    worker.attach(QueueId(0), port.start(1).unwrap().remove(0)).unwrap();
    worker.attach(QueueId(1), vhost).unwrap();
    worker.feed(&[(QueueId(0), QueueId(1))]).unwrap();
    // Nothing is sent before the guest's queue has its ring, and has lent of it.
    let lent = |worker: &worker::WorkerHandle| worker.read().unwrap().queues.iter().any(|q| q.lent > 0);
    let wait_for_lent = || {
        let began = Instant::now();
        while !lent(&worker) {
            assert!(began.elapsed() < patience, "nothing is lent");
        }
    };
    wait_for_lent();
    worker.start().unwrap();
    let fake = starts.lock().unwrap()[0][0].clone();
    let (mut sent, mut got, began) = (0u32, Vec::new(), Instant::now());
    while got.len() < 300 {
        if sent < 300 && fake.get(|inner| inner.comes.len()) < 8 {
            let frame = [&sent.to_le_bytes()[..], &[0; 56]].concat();
            fake.get(|inner| inner.comes.push((frame, false, false)));
            sent += 1;
        }
        got.extend(guest.receive());
        assert!(began.elapsed() < patience, "{} of 300", got.len());
    }
    assert!(got.iter().enumerate().all(|(n, frame)| frame[..4] == (n as u32).to_le_bytes()));
    let counted = port.xstats();
    let in_place = counted.iter().find(|(name, _)| name == "rx_in_place_packets").unwrap().1;
    assert!((300 - 64..=300).contains(&in_place), "all but those that were there before: {in_place}");
    // Another order ends it; what the device has is given up, and the queues can leave.
    worker.feed(&[]).unwrap();
    let began = Instant::now();
    while !worker.read().unwrap().clean() {
        assert!(began.elapsed() < patience, "{}", worker.read().unwrap());
    }
    // The same with a guest that is recalled while the device has its buffers.
    worker.feed(&[(QueueId(0), QueueId(1))]).unwrap();
    wait_for_lent();
    let vhost = worker.recall(QueueId(1), patience).unwrap();
    assert_eq!(vhost.lent(), 0);
    let nic = worker.recall(QueueId(0), patience).unwrap();
    port.stop(vec![nic]).unwrap();
}
