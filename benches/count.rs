//! `count CASE BURSTS`: takes one part of the data path through so many bursts of 32 packets, prints how
//! many packets that were, and does nothing else, so that instructions can be counted under valgrind.
//! The functions of [`step`] are what is told apart; the driver's part is outside of them.
//!
//! `scripts/instructions` runs every case and compares with `benches/instructions.toml`.

use std::process::ExitCode;
use std::sync::Arc;

use benches::{Near, ring_bytes};
use hugepages::{Backing, Buf, Loan, Map, PageSize, Pool, Table};
use pmd::port::null::{self, Null};
use pmd::port::vhost::local;
use pmd::spec::net::{F_MRG_RXBUF, HDR_LEN};
use pmd::spec::virtio::{F_IN_ORDER, F_RING_PACKED, F_VERSION_1};
use pmd::vring::{AnyVring, Checked, Layout, Mapped, Packed, RingLayout, Split, Vring, Way};
use pmd::worker::{Config, Outbox, QueueId, Stage, Worker};
use pmd::{Batch, Port, Queue};

const SIZE: u16 = 256;
const BURST: usize = 32;
/// Bytes of a buffer for the device to fill.
const ROOM: u32 = 2048;
/// Ordinary pages: the same everywhere.
const BACKING: Backing = Backing { page: PageSize::Base, node: None };

type Case = (&'static str, fn(u32) -> u64);

const CASES: &[Case] = &[
    ("ring-split", |n| ring::<Split<Mapped>>(0, n)),
    ("ring-split-in-order", |n| ring::<Split<Mapped>>(F_IN_ORDER, n)),
    ("ring-split-checked", |n| ring::<Split<Checked>>(0, n)),
    ("ring-packed", |n| ring::<Packed<Mapped>>(F_RING_PACKED, n)),
    ("ring-packed-in-order", |n| ring::<Packed<Mapped>>(F_RING_PACKED | F_IN_ORDER, n)),
    ("ring-packed-checked", |n| ring::<Packed<Checked>>(F_RING_PACKED, n)),
    ("queue-split-60", |n| queue(0, 60, AnyVring::open, n)),
    ("queue-split-in-order-60", |n| queue(F_IN_ORDER, 60, AnyVring::open, n)),
    ("queue-split-checked-60", |n| queue(0, 60, |r, t| Vring::open(r, t).map(AnyVring::SplitChecked), n)),
    ("queue-split-1514", |n| queue(0, 1514, AnyVring::open, n)),
    ("queue-split-9000", |n| queue(0, 9000, AnyVring::open, n)),
    ("queue-packed-60", |n| queue(F_RING_PACKED, 60, AnyVring::open, n)),
    ("queue-packed-in-order-60", |n| queue(F_RING_PACKED | F_IN_ORDER, 60, AnyVring::open, n)),
    ("queue-packed-checked-60", |n| {
        queue(F_RING_PACKED, 60, |r, t| Vring::open(r, t).map(AnyVring::PackedChecked), n)
    }),
    ("queue-packed-1514", |n| queue(F_RING_PACKED, 1514, AnyVring::open, n)),
    ("queue-packed-9000", |n| queue(F_RING_PACKED, 9000, AnyVring::open, n)),
    ("copy-60", |n| copy(60, n)),
    ("copy-252", |n| copy(252, n)),
    ("copy-1514", |n| copy(1514, n)),
    // A thread's start takes now more turns, now fewer: many bursts make nothing of them.
    ("turn", |n| turn(0, 0, 25 * n)),
    ("turn-beside-64-idle-split", |n| turn(64, 0, 25 * n)),
    ("turn-beside-64-idle-packed", |n| turn(64, F_RING_PACKED, 25 * n)),
];

/// What is counted: functions that stay functions, found by their names.
mod step {
    use super::*;

    #[inline(never)]
    pub(super) fn pop<L: Layout>(ring: &mut Vring<L>, bufs: &mut Batch<Buf>) {
        while bufs.len() < BURST {
            if ring.pop_simple(bufs, BURST, (1, u32::MAX), u64::MAX).0 == 0 {
                assert!(ring.pop(bufs).is_some());
            }
        }
    }

    #[inline(never)]
    pub(super) fn finish(bufs: &mut Batch<Buf>, loans: &mut Batch<Loan>) {
        bufs.finish_front(BURST, loans);
    }

    /// Receipts home, and used elements staged: settle and push.
    #[inline(never)]
    pub(super) fn push<L: Layout>(ring: &mut Vring<L>, loans: &mut Batch<Loan>) {
        ring.settle_front(loans);
    }

    #[inline(never)]
    pub(super) fn publish<L: Layout>(ring: &mut Vring<L>) -> bool {
        ring.publish()
    }

    #[inline(never)]
    pub(super) fn receive(queue: &mut dyn Queue, bufs: &mut Batch<Buf>) {
        assert_eq!(queue.rx(bufs), BURST);
    }

    #[inline(never)]
    pub(super) fn deliver(queue: &mut dyn Queue, bufs: &mut Batch<Buf>) {
        assert_eq!(queue.tx(bufs), BURST);
    }

    #[inline(never)]
    pub(super) fn reap(queue: &mut dyn Queue, loans: &mut Batch<Loan>) {
        assert_eq!(queue.reap(loans), BURST);
    }

    #[inline(never)]
    pub(super) fn settle(queue: &mut dyn Queue, loans: &mut Batch<Loan>) {
        queue.settle(loans);
        assert!(loans.is_empty());
    }

    #[inline(never)]
    pub(super) fn copy(from: &[Buf], to: &mut [Buf]) {
        for (from, to) in from.iter().zip(to) {
            assert_eq!(from.copy_to(to), from.len());
        }
    }
}

/// A ring alone: pop, finish, push, publish.
fn ring<L: Layout>(features: u64, bursts: u32) -> u64 {
    let at = ring_bytes(SIZE);
    let table = memory(at + u64::from(SIZE) * 64);
    let mut near = Near::new(&table, 0, SIZE, F_VERSION_1 | features, Way::FromDriver, (at, 64, 60));
    let mut ring: Vring<L> = Vring::open(&near.layout, &table).expect("inside");
    let (mut bufs, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    for _ in 0..bursts {
        near.offer(BURST as u16);
        step::pop(&mut ring, &mut bufs);
        step::finish(&mut bufs, &mut loans);
        step::push(&mut ring, &mut loans);
        step::publish(&mut ring);
        assert_eq!(near.used(SIZE), BURST as u16);
    }
    u64::from(bursts) * BURST as u64
}

/// A vhost queue that gives a guest its own packets back: receive, deliver, reap, settle.
fn queue(
    features: u64,
    frame: u32,
    open: fn(&RingLayout, &Arc<Table>) -> Result<AnyVring, hugepages::OutOfRange>,
    bursts: u32,
) -> u64 {
    let features = F_VERSION_1 | F_MRG_RXBUF | features;
    let (ring, n, len) = (ring_bytes(SIZE), u64::from(SIZE), HDR_LEN + frame);
    let stride = u64::from(len.next_multiple_of(64));
    let (frames, rooms) = (2 * ring, 2 * ring + n * stride);
    let table = memory(rooms + n * u64::from(ROOM));
    let mut transmit = Near::new(&table, 0, SIZE, features, Way::FromDriver, (frames, stride, len));
    let to_fill = (rooms, u64::from(ROOM), ROOM);
    let mut receive = Near::new(&table, ring, SIZE, features, Way::ToDriver, to_fill);
    let rings = [&transmit, &receive].map(|near| open(&near.layout, &table).expect("inside"));
    let [from, to] = rings.map(Some);
    let mut queue: Box<dyn Queue> = local("count", features, from, to).expect("descriptors");
    let (mut bufs, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    queue.reap(&mut loans);
    let needed = BURST as u16 * len.div_ceil(ROOM) as u16;
    for _ in 0..bursts {
        transmit.offer(BURST as u16);
        receive.offer(needed);
        step::receive(&mut *queue, &mut bufs);
        step::deliver(&mut *queue, &mut bufs);
        step::reap(&mut *queue, &mut loans);
        step::settle(&mut *queue, &mut loans);
        assert_eq!((transmit.used(SIZE), receive.used(SIZE)), (BURST as u16, needed));
    }
    u64::from(bursts) * BURST as u64
}

/// A frame from one buffer into another.
fn copy(bytes: u32, bursts: u32) -> u64 {
    let frames = || {
        let (mut pool, _) = Pool::new(BURST, 2048, BACKING).expect("memory");
        let mut frame = || pool.take().expect("as many as there are");
        let mut bufs: Vec<Buf> = (0..BURST).map(|_| frame()).collect();
        bufs.iter_mut().for_each(|buf| buf.truncate(bytes));
        (pool, bufs)
    };
    let ((mut from_pool, from), (mut to_pool, mut to)) = (frames(), frames());
    for _ in 0..bursts {
        step::copy(&from, &mut to);
    }
    from.into_iter().for_each(|buf| from_pool.settle(buf.finish(0)));
    to.into_iter().for_each(|buf| to_pool.settle(buf.finish(0)));
    u64::from(bursts) * BURST as u64
}

/// Sends everything back and ends the program after so many bursts: no turn is counted that comes
/// after them.
struct Return {
    left: u32,
    packets: u64,
}

impl Stage for Return {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        if self.left == 0 {
            println!("{}", self.packets);
            std::process::exit(0);
        }
        self.left -= 1;
        self.packets += batch.len() as u64;
        out.send_all(from, batch);
    }
}

/// The run loop with a null port that has packets in every turn, and vhost ports that never have any.
fn turn(idle: u16, features: u64, bursts: u32) -> u64 {
    let stage = Return { left: bursts, packets: 0 };
    let worker = Worker::spawn(Config { backing: BACKING, ..Config::default() }, Box::new(stage));
    let worker = worker.expect("a thread");
    let mut busy = Null::new("busy", null::Config { backing: BACKING, ..null::Config::default() });
    let queues = busy.as_mut().expect("as described").start(1).expect("memory");
    let mut memories = Vec::new();
    for i in 0..idle {
        let table = memory(2 * ring_bytes(SIZE));
        let rings = [(0, Way::FromDriver), (ring_bytes(SIZE), Way::ToDriver)].map(|(at, way)| {
            let near = Near::new(&table, at, SIZE, F_VERSION_1 | features, way, (0, 0, 64));
            Some(AnyVring::open(&near.layout, &table).expect("inside"))
        });
        let [from, to] = rings;
        let queue = local("idle", F_VERSION_1 | features, from, to).expect("descriptors");
        worker.attach(QueueId(i + 1), queue).expect("room");
        memories.push(table);
    }
    for queue in queues {
        worker.attach(QueueId(0), queue).expect("room");
    }
    worker.start().expect("it is there");
    loop {
        std::thread::park();
    }
}

fn memory(bytes: u64) -> Arc<Table> {
    Table::of(Map::shared(bytes as usize, BACKING).expect("memory"))
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (case, bursts) = (args.next().unwrap_or_default(), args.next().and_then(|n| n.parse().ok()));
    if let (Some((_, run)), Some(bursts)) = (CASES.iter().find(|(name, _)| *name == case), bursts) {
        println!("{}", run(bursts));
        return ExitCode::SUCCESS;
    }
    if case == "--list" {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    eprintln!("usage: count CASE BURSTS; count --list names the cases");
    ExitCode::FAILURE
}
