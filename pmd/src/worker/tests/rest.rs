//! Queues at rest, turn by turn: whatever comes for one is seen in the next turn.

use hugepages::{Monitor, Region, Window, Words};
use proptest::prelude::*;

use super::*;
use crate::port::knock::Knock;
use crate::port::vhost::local;
use crate::spec::net::F_MRG_RXBUF;
use crate::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use crate::vring::driver::{self, Areas, Ring, Segment};
use crate::vring::{AnyVring, Way};
use awake::REST_POLLS;

/// More than a word of slots.
const N: u16 = 70;

/// Calls that a queue at rest gets in a hundred thousand turns: other tests knock at theirs, which all
/// cores of the process hear.
const FEW: u64 = 1000;

/// A device whose packets are a count in guest memory, and which rests when there is none.
struct Dozer {
    lender: Lender,
    published: Window<u16>,
    next: u16,
    held: VecDeque<Buf>,
    knock: Arc<Knock>,
    seen: Arc<Seen>,
}

/// What was asked of it.
#[derive(Default)]
struct Seen {
    received: AtomicU64,
    polls: AtomicU64,
    reaps: AtomicU64,
    taken: AtomicU64,
    answered: AtomicU64,
    hoard: AtomicBool,
}

/// The far end of a dozer.
struct Far {
    words: Window<u16>,
    knock: Arc<Knock>,
    seen: Arc<Seen>,
    published: u64,
    sent: u64,
}

impl Far {
    fn publish(&mut self, packets: u16) {
        self.published += u64::from(packets);
        self.words.release(0, self.published as u16);
    }
}

fn dozer() -> (Box<Dozer>, Far) {
    let table = Table::of(Map::shared(4096, BASE).unwrap());
    let words = || table.window::<u16>(0, 1).unwrap();
    let (knock, seen) = (Arc::new(Knock::new().unwrap()), Arc::<Seen>::default());
    let far =
        Far { words: words(), knock: Arc::clone(&knock), seen: Arc::clone(&seen), published: 0, sent: 0 };
    let (published, lender) = (words(), Lender::new(table));
    (Box::new(Dozer { lender, published, next: 0, held: VecDeque::new(), knock, seen }), far)
}

impl Queue for Dozer {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        self.seen.polls.fetch_add(1, Relaxed);
        let before = out.len();
        while self.next != self.published.acquire(0) && out.len() - before < out.burst() {
            out.push(self.lender.lend(64, 60, 0).unwrap());
            self.next = self.next.wrapping_add(1);
        }
        self.seen.received.fetch_add((out.len() - before) as u64, Relaxed);
        out.len() - before
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let before = self.held.len();
        self.held.extend(std::iter::from_fn(|| batch.pop_front()));
        let n = self.held.len() - before;
        self.seen.taken.fetch_add(n as u64, Relaxed);
        n
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.seen.reaps.fetch_add(1, Relaxed);
        self.seen.answered.fetch_add(u64::from(self.knock.knocked()), Relaxed);
        let before = done.len();
        while !self.seen.hoard.load(Relaxed) && done.room() > 0 {
            let Some(buf) = self.held.pop_front() else { break };
            done.push(buf.finish(0));
        }
        done.len() - before
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == self.lender.owner()) {
            self.lender.settle(loans.pop_front().unwrap());
        }
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        self.published.monitor(0, self.next, monitor);
        self.held.is_empty() && !monitor.changed()
    }

    fn lent(&self) -> u32 {
        self.lender.out()
    }

    fn held(&self) -> u32 {
        self.held.len() as u32
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }
}

/// A worker whose turns are the test's.
fn bare() -> Worker {
    let pool = |n| Pool::new(n, 64, BASE).unwrap().0;
    let (_, inbox) = crossbeam_channel::bounded(1);
    Worker {
        inbox,
        bell: Arc::new(Doorbell::new().unwrap()),
        stage: Box::new(Route(Vec::new())),
        out: Outbox::new(Frames { small: pool(256), large: pool(1) }, Arc::default()),
        // More than any test leaves waiting for one turn.
        batch: Batch::new(CAP),
        running: true,
        recalls: Vec::new(),
        stop: None,
        idle_sleep: None,
        knocks: 0,
    }
}

impl Worker {
    fn turns(&mut self, n: u32) {
        for _ in 0..n {
            self.turn();
        }
    }

    /// Sends frames of its own, one by one or all at once.
    fn send(&mut self, to: u16, n: u16, all: bool) {
        let mut batch = Batch::default();
        for _ in 0..n {
            batch.push(self.out.frame(60).unwrap());
        }
        if all {
            return self.out.send_all(QueueId(to), &mut batch);
        }
        while let Some(frame) = batch.pop_front() {
            self.out.send(QueueId(to), frame);
        }
    }

    fn attach(&mut self, id: u16, queue: Box<dyn Queue>) {
        self.obey(Command::Attach(QueueId(id), queue, Arc::default()));
    }

    /// Calls a queue home, as the loop does.
    fn recall(&mut self, id: u16) -> Box<dyn Queue> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.obey(Command::Recall(QueueId(id), SOON, reply));
        for _ in 0..4 {
            self.turn();
            self.send_home();
        }
        answer.try_recv().expect("two turns are enough").unwrap()
    }

    fn resting(&self, id: u16) -> bool {
        let i = self.out.slot(QueueId(id)).unwrap();
        self.out.awake.get(i / 64) >> (i % 64) & 1 == 0
    }
}

#[test]
fn a_queue_at_rest_is_left_alone_until_something_comes_for_it() {
    let mut worker = bare();
    let (queue, mut far) = dozer();
    worker.attach(0, queue);
    let asked = |far: &Far| (far.seen.polls.load(Relaxed), far.seen.reaps.load(Relaxed));
    worker.turns(REST_POLLS);
    worker.turns(100_000);
    let (polls, reaps) = asked(&far);
    assert!(polls < u64::from(REST_POLLS) + FEW && reaps < u64::from(REST_POLLS) + FEW, "{polls}, {reaps}");
    // A packet, after however long: the next turn. From then on it is awake for a while.
    far.publish(3);
    worker.turn();
    assert_eq!(far.seen.received.load(Relaxed), 3);
    assert!(!worker.resting(0));
    worker.turns(REST_POLLS);
    assert!(worker.resting(0));
    // Something to send: in this turn, and its receipt is home.
    worker.send(0, 1, false);
    worker.turn();
    assert_eq!((far.seen.taken.load(Relaxed), worker.out.frames.small.out()), (1, 0));
    worker.turns(REST_POLLS);
    assert!(worker.resting(0));
    // A knock.
    far.knock.knock();
    worker.turn();
    assert_eq!(far.seen.answered.load(Relaxed), 1);
    assert!(worker.resting(0));
    // What holds buffers of others does not rest.
    far.seen.hoard.store(true, Relaxed);
    worker.send(0, 1, false);
    worker.turns(10 * REST_POLLS);
    assert!(!worker.resting(0) && worker.out.frames.small.out() == 1);
    far.seen.hoard.store(false, Relaxed);
    worker.turns(2 * REST_POLLS);
    assert!(worker.resting(0) && worker.out.frames.small.out() == 0);
    // Paused, it is asked for receipts every turn.
    worker.obey(Command::Pause);
    let before = asked(&far);
    worker.turns(100);
    assert_eq!(asked(&far), (before.0, before.1 + 100));
    worker.obey(Command::Start);
    worker.turns(REST_POLLS);
    assert!(worker.resting(0));
    let before = asked(&far);
    let home = worker.recall(0);
    assert_eq!((home.lent(), worker.out.slots.len()), (0, 0));
    assert_eq!(
        asked(&far),
        (before.0, before.1 + u64::from(RECALL_TURNS)),
        "it had time to see that it is stopped"
    );
}

#[test]
fn what_is_awake_or_gone_keeps_no_memory_of_a_guest() {
    let mut worker = bare();
    let (queue, mut far) = dozer();
    let table = Arc::clone(queue.lender.table());
    let known = Arc::strong_count(&table);
    worker.attach(0, queue);
    worker.turns(REST_POLLS);
    assert_eq!(Arc::strong_count(&table), known + 1, "the monitor's");
    far.publish(1);
    worker.turn();
    assert_eq!(Arc::strong_count(&table), known);
    worker.turns(REST_POLLS);
    assert_eq!(Arc::strong_count(&table), known + 1);
    let home = worker.recall(0);
    assert_eq!(Arc::strong_count(&table), known);
    drop((home, far));
    assert_eq!(Arc::strong_count(&table), 1);
}

/// Keeps packets until it is told to drop them.
struct Keep(Batch<Buf>, Arc<AtomicBool>);

impl Stage for Keep {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, _: &mut Outbox) {
        batch.move_to(&mut self.0);
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        if self.1.load(Relaxed) {
            out.drop_all(&mut self.0);
        }
        false
    }
}

#[test]
fn a_receipt_that_comes_late_wakes_its_queue() {
    let mut worker = bare();
    let drop = Arc::<AtomicBool>::default();
    worker.stage = Box::new(Keep(Batch::default(), Arc::clone(&drop)));
    let (queue, mut far) = dozer();
    worker.attach(0, queue);
    far.publish(1);
    worker.turns(REST_POLLS + 1);
    assert!(worker.resting(0) && worker.out.slots[0].queue.lent() == 1);
    let reaps = far.seen.reaps.load(Relaxed);
    drop.store(true, Relaxed);
    worker.turns(2);
    assert_eq!(worker.out.slots[0].queue.lent(), 0);
    assert!(far.seen.reaps.load(Relaxed) > reaps, "its guest can be called");
}

/// A transmit ring over one region, or its available area and descriptors over the border of two.
fn guest<R: Ring>(features: u64, checked: bool) -> (R, Box<dyn Queue>) {
    let map = Arc::new(Map::shared(0x8000, BASE).unwrap());
    let region = |gpa: u64, len| Region { gpa, len, user: gpa, map: Arc::clone(&map), at: gpa as usize };
    let whole = Arc::new(Table::new(vec![region(0, 0x8000)]).unwrap());
    let parts = vec![region(0, 0x1000), region(0x1000, 0x7000)];
    let table = if checked { Arc::new(Table::new(parts).unwrap()) } else { Arc::clone(&whole) };
    let areas = Areas::at(0x1000 - 128, 64, features, 0);
    let ring = R::open(&areas, &whole).unwrap();
    let device = AnyVring::open(&areas.ring(Way::FromDriver), &table).unwrap();
    assert_eq!(device.mapped(), !checked);
    (ring, local("guest", features, Some(device), None).unwrap())
}

/// Rings of which the device sees one chain at a time, with long pauses, for several laps.
fn chains_after_pauses<R: Ring>(features: u64) {
    for checked in [false, true] {
        let mut worker = bare();
        let (mut ring, queue) = guest::<R>(features, checked);
        let counters = queue.counters();
        worker.attach(0, queue);
        for sent in 1..=200 {
            worker.turns(REST_POLLS + 2);
            assert!(worker.resting(0));
            ring.add(&[Segment::read(0x4000, 100)]).unwrap();
            let _ = ring.publish();
            worker.turn();
            assert_eq!(counters.stats().rx_packets, sent, "checked: {checked}");
            assert!(ring.used().unwrap().is_some(), "its receipt is home");
        }
    }
}

#[test]
fn rings_of_every_form_wake_their_queue_with_the_first_chain() {
    let features = F_VERSION_1 | F_MRG_RXBUF;
    chains_after_pauses::<driver::Split>(features);
    chains_after_pauses::<driver::Packed>(features | F_RING_PACKED);
}

#[derive(Clone, Debug)]
enum Step {
    Turns(u32),
    Publish(u16, u16),
    /// One by one, or all at once.
    Send(u16, u16, bool),
    Knock(u16),
    Pause,
    Start,
    /// Home, and back again.
    Move(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3 * REST_POLLS).prop_map(Step::Turns),
        4 => (0..N, 1..5u16).prop_map(|(id, n)| Step::Publish(id, n)),
        2 => (0..N, 1..5u16, any::<bool>()).prop_map(|(id, n, all)| Step::Send(id, n, all)),
        1 => (0..N).prop_map(Step::Knock),
        1 => Just(Step::Pause),
        1 => Just(Step::Start),
        1 => (0..N).prop_map(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_waits_longer_than_a_turn(steps in proptest::collection::vec(step(), 1..60)) {
        let mut worker = bare();
        let mut far = Vec::new();
        for id in 0..N {
            let (queue, end) = dozer();
            worker.attach(id, queue);
            far.push(end);
        }
        let mut knocked = vec![0; N.into()];
        for step in steps {
            match step {
                Step::Turns(n) => worker.turns(n),
                Step::Publish(id, n) => far[usize::from(id)].publish(n),
                Step::Send(id, n, all) => {
                    worker.send(id, n, all);
                    far[usize::from(id)].sent += u64::from(n);
                }
                Step::Knock(id) => {
                    far[usize::from(id)].knock.knock();
                    knocked[usize::from(id)] += 1;
                }
                Step::Pause => worker.obey(Command::Pause),
                Step::Start => worker.obey(Command::Start),
                Step::Move(id) => {
                    let queue = worker.recall(id);
                    worker.attach(id, queue);
                }
            }
            worker.turn();
            prop_assert_eq!(worker.out.frames.small.out(), 0, "receipts are home");
            for (id, end) in far.iter().enumerate() {
                prop_assert_eq!(end.seen.taken.load(Relaxed), end.sent, "sent to {}", id);
                prop_assert_eq!(end.seen.answered.load(Relaxed), knocked[id], "knock at {}", id);
                if worker.running {
                    prop_assert_eq!(end.seen.received.load(Relaxed), end.published, "from {}", id);
                }
            }
        }
    }
}
