//! Workers on real threads. The far end of every queue is a [`Toy`], a pipe or a null port.

mod rest;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hugepages::{Lender, Loan, Map, PageSize, Table};

use super::*;
use crate::batch::CAP;
use crate::port::null::{self, Null};
use crate::port::pipe::Pipe;
use crate::port::{Counters, Port};

const BASE: Backing = Backing { page: PageSize::Base, node: None };
const SOON: Duration = Duration::from_secs(5);

/// A device: lends packets of `pieces` read-only buffers, and holds what it is sent until `finish`.
struct Toy {
    lender: Lender,
    free: Vec<u16>,
    pieces: u16,
    room: usize,
    held: VecDeque<Buf>,
    wires: Arc<Wires>,
    counters: Arc<Counters>,
}

/// What a test sees and does from outside.
#[derive(Default)]
struct Wires {
    /// Packets that it may still lend.
    supply: AtomicU64,
    lent: AtomicU64,
    settled: AtomicU64,
    taken: AtomicU64,
    settles: AtomicU64,
    reaps: AtomicU64,
    /// Whether it keeps what it was sent.
    hoard: AtomicBool,
}

impl Toy {
    fn new(pieces: u16, room: usize) -> (Box<Toy>, Arc<Wires>) {
        let lender = Lender::new(Table::of(Map::shared(64 * 512, BASE).unwrap()));
        let wires = Arc::new(Wires::default());
        let toy = Toy {
            lender,
            free: (0..512).collect(),
            pieces,
            room,
            held: VecDeque::new(),
            wires: Arc::clone(&wires),
            counters: Arc::default(),
        };
        (Box::new(toy), wires)
    }
}

impl Queue for Toy {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let n = usize::from(self.pieces);
        let mut packets = 0;
        while packets < out.burst()
            && out.room() >= n
            && self.free.len() >= n
            && self.wires.supply.load(Relaxed) > 0
        {
            self.wires.supply.fetch_sub(1, Relaxed);
            for piece in 0..n {
                let id = self.free.pop().unwrap();
                let mut buf = self.lender.lend(u64::from(id) * 64, 60, id).unwrap();
                buf.set_more(piece + 1 < n);
                buf.offload.hdr_len = 42;
                out.push(buf);
            }
            self.wires.lent.fetch_add(n as u64, Relaxed);
            packets += 1;
        }
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let mut packets = 0;
        loop {
            let (n, _) = batch.packet_at(0);
            if n == 0 || self.held.len() + n > self.room {
                return packets;
            }
            self.held.extend((0..n).map(|_| batch.pop_front().unwrap()));
            self.wires.taken.fetch_add(1, Relaxed);
            packets += 1;
        }
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.wires.reaps.fetch_add(1, Relaxed);
        let before = done.len();
        while !self.wires.hoard.load(Relaxed) && done.room() > 0 {
            let Some(buf) = self.held.pop_front() else { break };
            done.push(buf.finish(0));
        }
        done.len() - before
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.wires.settles.fetch_add(1, Relaxed);
        while loans.front().is_some_and(|loan| loan.owner() == self.lender.owner()) {
            let (id, _) = self.lender.settle(loans.pop_front().unwrap());
            self.free.push(id);
            self.wires.settled.fetch_add(1, Relaxed);
        }
    }

    fn lent(&self) -> u32 {
        self.lender.out()
    }

    fn held(&self) -> u32 {
        self.held.len() as u32
    }

    fn sleep<'q>(&'q mut self, _: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        self.wires.supply.load(Relaxed) == 0 && self.held.is_empty()
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

/// Sends everything from one queue to another.
struct Route(Vec<(QueueId, QueueId)>);

impl Stage for Route {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        match self.0.iter().find(|(f, _)| *f == from) {
            Some(&(_, to)) => out.send_all(to, batch),
            None => out.drop_all(batch),
        }
    }
}

const A: QueueId = QueueId(0);
const B: QueueId = QueueId(7);

fn config(name: &str) -> Config {
    Config { name: name.into(), frames: 64, large_frames: 2, backing: BASE, ..Config::default() }
}

fn spawn(name: &str, routes: &[(QueueId, QueueId)]) -> WorkerHandle {
    Worker::spawn(config(name), Box::new(Route(routes.to_vec()))).unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn forwards_counts_and_sends_queues_home() {
    let worker = spawn("forward", &[(A, B), (B, A)]);
    let ((a, a_wires), (b, b_wires)) = (Toy::new(1, 512), Toy::new(3, 512));
    let (a_stream, b_stream) = (worker.attach(A, a).unwrap(), worker.attach(B, b).unwrap());
    assert!(matches!(worker.attach(A, Toy::new(1, 1).0), Err(WorkerError::Taken(A))));
    a_wires.supply.store(10_000, Relaxed);
    b_wires.supply.store(5_000, Relaxed);
    // Paused: nothing is received, receipts and housekeeping go on.
    let reaps = a_wires.reaps.load(Relaxed);
    until("housekeeping while paused", || a_wires.reaps.load(Relaxed) > reaps + 3);
    assert_eq!(a_wires.lent.load(Relaxed), 0);
    worker.start().unwrap();
    until("all forwarded", || a_stream.stats().tx_packets + b_stream.stats().tx_packets == 15_000);
    until("all settled", || worker.read().unwrap().clean());
    assert_eq!((a_stream.stats().rx_packets, b_stream.stats().rx_packets), (10_000, 5_000));
    assert_eq!((a_stream.stats().tx_dropped, b_stream.stats().tx_dropped), (0, 0));
    let bursts: u64 = a_stream.rx_spread().iter().enumerate().map(|(n, count)| n as u64 * count).sum();
    assert_eq!((bursts, a_stream.rx_spread()[33..].iter().sum::<u64>()), (10_000, 0));
    let core = worker.counters().stats();
    assert!(core.turns >= core.empty_turns && core.busy_cycles > 0 && core.idle_cycles > 0);
    assert_eq!((core.dropped, core.lost, core.no_frame), (0, 0, 0));
    let home = worker.recall(A, SOON).unwrap();
    assert_eq!((home.lent(), home.held()), (0, 0));
    assert!(matches!(worker.recall(A, SOON), Err(WorkerError::NotHere(A))));
    // Packets for a queue that is gone are dropped, and their lender gets them back.
    b_wires.supply.store(100, Relaxed);
    until("dropped", || worker.counters().dropped.get() == 100);
    let again = worker.attach(A, home).unwrap();
    assert_eq!(again.stats().rx_packets, 10_000);
    let stopped = worker.stop(SOON).unwrap();
    assert!(stopped.report.clean() && stopped.queues.len() == 2);
    for wires in [a_wires, b_wires] {
        assert_eq!(wires.lent.load(Relaxed), wires.settled.load(Relaxed));
    }
}

#[test]
fn what_a_full_queue_refuses_is_dropped_and_counted() {
    let worker = spawn("full", &[(A, B)]);
    let ((a, a_wires), (b, b_wires)) = (Toy::new(2, 512), Toy::new(1, 21));
    b_wires.hoard.store(true, Relaxed);
    worker.attach(A, a).unwrap();
    let b_stream = worker.attach(B, b).unwrap();
    a_wires.supply.store(1000, Relaxed);
    worker.start().unwrap();
    until("dropped", || b_stream.tx_dropped.get() == 990);
    assert_eq!((b_wires.taken.load(Relaxed), b_stream.tx_packets.get()), (10, 10));
    let states = worker.read().unwrap().queues;
    assert_eq!((states[0].lent, states[1].held), (20, 20));
    // What is still out keeps the lender from going home; the answer says who holds it.
    let why = worker.recall(A, Duration::from_millis(20)).err().unwrap();
    assert!(matches!(&why, WorkerError::Out { id: A, lent: 20, held: 0, .. }));
    assert!(why.to_string().contains("queue 7: 0 lent, 20 held"), "{why}");
    let home = worker.begin_recall(A, SOON).unwrap();
    b_wires.hoard.store(false, Relaxed);
    assert_eq!(home.wait().unwrap().lent(), 0);
    assert_eq!(a_wires.lent.load(Relaxed), a_wires.settled.load(Relaxed));
}

#[test]
fn a_stop_whose_time_is_up_says_what_is_out() {
    let worker = spawn("late", &[(A, B)]);
    let ((a, a_wires), (b, b_wires)) = (Toy::new(1, 512), Toy::new(1, 512));
    b_wires.hoard.store(true, Relaxed);
    worker.attach(A, a).unwrap();
    worker.attach(B, b).unwrap();
    a_wires.supply.store(5, Relaxed);
    worker.start().unwrap();
    until("taken", || b_wires.taken.load(Relaxed) == 5);
    let mut stopped = worker.stop(Duration::from_millis(10)).unwrap();
    assert!(!stopped.report.clean());
    assert_eq!(
        stopped.report.to_string(),
        "queue 0: 5 lent, 0 held; queue 7: 0 lent, 5 held; own frames out: 0"
    );
    b_wires.hoard.store(false, Relaxed);
    let mut loans = Batch::default();
    assert_eq!(stopped.queues[1].1.reap(&mut loans), 5);
    stopped.queues[0].1.settle(&mut loans);
    assert_eq!(stopped.queues[0].1.lent(), 0);
}

/// Rewrites every packet into frames of the core, and keeps the last few.
struct Rewrite(VecDeque<Buf>);

impl Stage for Rewrite {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        while !batch.is_empty() {
            let Some(mut frame) = out.own(batch) else { continue };
            assert!(frame.writable() && !frame.more() && frame.len() == 180 && frame.offload.hdr_len == 42);
            assert!(frame.poke(174, [1u8; 6]));
            self.0.push_back(frame);
            if self.0.len() > 8 {
                out.send(B, self.0.pop_front().unwrap());
            }
        }
    }

    fn flush(&mut self, out: &mut Outbox) {
        while let Some(buf) = self.0.pop_front() {
            out.send(B, buf);
        }
    }
}

#[test]
fn a_stage_owns_what_it_writes_and_gives_up_what_it_keeps() {
    let worker = Worker::spawn(config("rewrite"), Box::new(Rewrite(VecDeque::new()))).unwrap();
    let ((a, a_wires), (b, b_wires)) = (Toy::new(3, 512), Toy::new(1, 512));
    worker.attach(A, a).unwrap();
    worker.attach(B, b).unwrap();
    worker.start().unwrap();
    a_wires.supply.store(500, Relaxed);
    until("rewritten", || b_wires.taken.load(Relaxed) == 492);
    until("originals are home", || a_wires.settled.load(Relaxed) == 1500);
    assert_eq!(worker.read().unwrap().frames_out, 8);
    // More than it has frames for: dropped, counted, nothing stuck.
    b_wires.hoard.store(true, Relaxed);
    a_wires.supply.store(100, Relaxed);
    until("out of frames", || worker.counters().no_frame.get() == 100 - (64 + 2 - 8));
    b_wires.hoard.store(false, Relaxed);
    worker.pause().unwrap();
    until("kept frames are sent", || worker.read().unwrap().frames_out == 0);
    assert!(worker.stop(SOON).unwrap().report.clean());
    assert_eq!(b_wires.taken.load(Relaxed), 500 + 58);
}

/// Makes packets out of nothing.
struct Make(u32);

impl Stage for Make {
    fn burst(&mut self, _: QueueId, _: &mut Batch<Buf>, _: &mut Outbox) {}

    fn tick(&mut self, out: &mut Outbox) -> bool {
        for _ in 0..self.0.min(40) {
            let Some(mut frame) = out.frame(100) else { return true };
            self.0 -= 1;
            frame.set_more(!self.0.is_multiple_of(4));
            out.send(A, frame);
        }
        self.0 > 0
    }
}

#[test]
fn a_stage_makes_packets_that_no_queue_brought() {
    let worker = Worker::spawn(config("make"), Box::new(Make(4000))).unwrap();
    let (a, wires) = Toy::new(1, 512);
    worker.attach(A, a).unwrap();
    worker.start().unwrap();
    until("made", || wires.taken.load(Relaxed) == 1000);
    assert!(worker.stop(SOON).unwrap().report.clean());
}

#[test]
fn packets_longer_than_the_room_left_are_kept_whole() {
    let frames =
        Frames { small: Pool::new(CAP * 2, 64, BASE).unwrap().0, large: Pool::new(1, 64, BASE).unwrap().0 };
    let mut out = Outbox::new(frames, Arc::default());
    let ((a, wires), stream) = (Toy::new(1, 512), Arc::new(Stream::default()));
    out.attach(A, a, Arc::clone(&stream));
    for buffers in [60, 250, 3, CAP] {
        for i in 0..buffers {
            let mut frame = out.frame(64).unwrap();
            frame.set_more(i + 1 < buffers);
            out.send(A, frame);
        }
        out.close_turn();
        out.close_turn();
    }
    assert_eq!((wires.taken.load(Relaxed), stream.tx_packets.get(), stream.tx_dropped.get()), (4, 4, 0));
    assert_eq!(out.frames.small.out() + out.frames.large.out(), 0);
}

#[test]
fn a_packet_crosses_two_cores_and_comes_back() {
    let (mut near, mut far) = Pipe::pair(["pipe0", "pipe1"], 1, 0).unwrap();
    // Toy 0 -> pipe -> other core -> pipe -> toy 7, whose lender is back on the first core by then.
    let (here, there) = (QueueId(3), QueueId(4));
    let one = spawn("one", &[(A, here), (here, B)]);
    let two = spawn("two", &[(there, there)]);
    let ((a, a_wires), (b, b_wires)) = (Toy::new(2, 512), Toy::new(1, 512));
    one.attach(A, a).unwrap();
    one.attach(B, b).unwrap();
    let mut undelivered = 0;
    for round in 1..=3 {
        one.attach(here, near.start(1).unwrap().pop().unwrap()).unwrap();
        two.attach(there, far.start(1).unwrap().pop().unwrap()).unwrap();
        two.start().unwrap();
        one.start().unwrap();
        until("both ends are there", || near.link().up && far.link().up);
        a_wires.supply.store(20_000, Relaxed);
        until("all received", || a_wires.supply.load(Relaxed) == 0);
        until("all home", || one.read().unwrap().clean() && two.read().unwrap().clean());
        // Under way when both ends are called home, in either order, and while one core is paused.
        a_wires.supply.store(20_000, Relaxed);
        if round == 2 {
            two.pause().unwrap();
        }
        let mut ends = [(&one, here), (&two, there)];
        if round > 1 {
            ends.reverse();
        }
        for (worker, id) in ends {
            drop(worker.recall(id, SOON).unwrap());
        }
        until("all home", || a_wires.supply.load(Relaxed) == 0 && one.read().unwrap().clean());
        undelivered += near.stats()[0].tx_errors + far.stats()[0].tx_errors;
    }
    let dropped: u64 = [&one, &two]
        .iter()
        .flat_map(|w| [A, B, here, there].map(|id| w.stream(id).map_or(0, |s| s.tx_dropped.get())))
        .chain([one.counters().dropped.get(), two.counters().dropped.get()])
        .sum();
    assert_eq!(b_wires.taken.load(Relaxed) + dropped + undelivered, 120_000);
    assert_eq!((one.counters().lost.get(), two.counters().lost.get()), (0, 0));
    assert!(one.stop(SOON).unwrap().report.clean() && two.stop(SOON).unwrap().report.clean());
    assert_eq!(a_wires.lent.load(Relaxed), a_wires.settled.load(Relaxed));
}

#[test]
fn two_cores_that_stop_at_once_strand_nothing() {
    for paused in [false, true] {
        let (mut near, mut far) = Pipe::pair(["pipe0", "pipe1"], 1, 0).unwrap();
        let (one, two) = (spawn("one", &[(A, B)]), spawn("two", &[(A, B)]));
        let mut wires = Vec::new();
        for (worker, port) in [(&one, &mut near), (&two, &mut far)] {
            let (toy, wire) = Toy::new(1, 512);
            wire.supply.store(u64::MAX, Relaxed);
            wires.push(wire);
            worker.attach(A, toy).unwrap();
            worker.attach(B, port.start(1).unwrap().pop().unwrap()).unwrap();
            worker.start().unwrap();
        }
        until("packets cross", || near.stats()[0].rx_packets.min(far.stats()[0].rx_packets) > 1000);
        if paused {
            one.pause().unwrap();
            two.pause().unwrap();
            until("all home", || one.read().unwrap().clean() && two.read().unwrap().clean());
        }
        one.begin_stop(SOON).unwrap();
        two.begin_stop(SOON).unwrap();
        let (one, two) = (one.stop(SOON).unwrap(), two.stop(SOON).unwrap());
        assert!(one.report.clean() && two.report.clean(), "{} / {}", one.report, two.report);
        for wire in wires {
            assert_eq!(wire.lent.load(Relaxed), wire.settled.load(Relaxed));
        }
    }
}

#[test]
fn an_idle_core_sleeps_and_wakes_on_a_packet_and_on_a_command() {
    let (mut near, mut far) = Pipe::pair(["pipe0", "pipe1"], 1, 0).unwrap();
    let sleepy = Config { idle_sleep: Some(Duration::from_secs(60)), ..config("sleepy") };
    let worker = Worker::spawn(sleepy, Box::new(Route(vec![(A, B)]))).unwrap();
    let (sink, wires) = Toy::new(1, 512);
    worker.attach(A, far.start(1).unwrap().pop().unwrap()).unwrap();
    worker.attach(B, sink).unwrap();
    worker.start().unwrap();
    let mut queue = near.start(1).unwrap().pop().unwrap();
    let (mut pool, mut batch, mut loans) =
        (Pool::new(8, 64, BASE).unwrap().0, Batch::default(), Batch::default());
    for round in 1..=20 {
        until("sleeps", || {
            let (turns, slept) = (worker.counters().turns.get(), worker.counters().sleeps.get());
            thread::sleep(Duration::from_millis(2));
            slept > 0 && worker.counters().turns.get() == turns
        });
        if round % 2 == 0 {
            let asked = Instant::now();
            assert!(worker.read().unwrap().clean());
            assert!(asked.elapsed() < Duration::from_secs(1), "a command waited for {:?}", asked.elapsed());
        }
        batch.push(pool.take().unwrap());
        assert_eq!(queue.tx(&mut batch), 1);
        until("woke on a packet", || wires.taken.load(Relaxed) == round);
        until("receipt is back", || {
            queue.rx(&mut batch);
            queue.reap(&mut loans) == 1
        });
        pool.settle(loans.pop_front().unwrap());
    }
    assert!(worker.stop(SOON).unwrap().report.clean());
}

#[test]
fn hundreds_of_queues_on_one_core() {
    const N: u16 = 600;
    let worker = spawn("many", &[(QueueId(1), QueueId(N))]);
    let config = null::Config { no_rx: true, frames: 1, backing: BASE, ..null::Config::default() };
    for id in 2..=N {
        let queue = Null::new("idle", config.clone()).unwrap().start(1).unwrap().pop().unwrap();
        worker.attach(QueueId(id), queue).unwrap();
    }
    let (toy, wires) = Toy::new(1, 512);
    worker.attach(QueueId(1), toy).unwrap();
    worker.start().unwrap();
    wires.supply.store(1000, Relaxed);
    until("forwarded and home", || wires.settled.load(Relaxed) == 1000);
    // Every other one goes home; the rest is served on.
    let leaving: Vec<_> =
        (2..N).step_by(2).map(|id| worker.begin_recall(QueueId(id), SOON).unwrap()).collect();
    for recall in leaving {
        recall.wait().unwrap();
    }
    wires.supply.store(1000, Relaxed);
    until("forwarded again", || wires.settled.load(Relaxed) == 2000);
    assert_eq!(worker.stop(SOON).unwrap().queues.len(), usize::from(N / 2) + 1);
}
