//! The data side: a core's stage. A burst is read into keys, each key is looked up in what the core
//! keeps, and what is found is done.

mod act;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use hugepages::Buf;
use pmd::Batch;
use pmd::batch::CAP;
use pmd::port::Count;
use pmd::worker::{Outbox, QueueId, Stage, cycles};

use super::bridge::{Injected, Kept, Switch, Upcall};
use super::cache::{Cache, Hits};
use super::flow::Key;
use super::packet::{HEAD, Layers, parse};
use super::pipeline::MAX_DP;
use super::pipeline::op::Op;
use super::pipeline::rule::now_ms;

/// Bytes of a frame that are read at first: all headers of most.
const FIRST: usize = 128;
/// Turns between two looks at the clock and at what the control side wants.
const LOOK_TURNS: u32 = 64;
/// Milliseconds between two sweeps.
const SWEEP_MS: u64 = 100;
/// Times that one packet may be looked up.
const MAX_ROUNDS: u32 = 8;

/// What a core counts; read by the control side at any time.
#[allow(missing_docs)]
#[derive(Debug, Default)]
pub struct CoreStats {
    pub packets: Count,
    pub bursts: Count,
    pub recirculated: Count,
    pub exact: Count,
    pub signature: Count,
    pub megaflow: Count,
    pub lookups: Count,
    pub miss: Count,
    pub upcall_cycles: Count,
    /// Cycles of bursts: of parsing and look-ups, with most upcalls, and of actions.
    pub cycles: Count,
    pub lookup_cycles: Count,
    pub action_cycles: Count,
    pub dropped: Count,
    pub flows: Count,
    /// Of receive queues by their names.
    queues: QueueCycles,
}

/// Cycles that the packets of each receive queue took.
#[derive(Debug)]
struct QueueCycles(Box<[Count]>);

impl Default for QueueCycles {
    fn default() -> QueueCycles {
        QueueCycles((0..CROSSING).map(|_| Count::default()).collect())
    }
}

/// What [`CoreStats`] held at a moment, or how much it grew between two.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct StageStats {
    pub packets: u64,
    pub bursts: u64,
    pub recirculated: u64,
    pub exact: u64,
    pub signature: u64,
    pub megaflow: u64,
    pub lookups: u64,
    pub miss: u64,
    pub upcall_cycles: u64,
    pub cycles: u64,
    pub lookup_cycles: u64,
    pub action_cycles: u64,
}

impl StageStats {
    fn zip(self, other: StageStats, f: impl Fn(u64, u64) -> u64) -> StageStats {
        StageStats {
            packets: f(self.packets, other.packets),
            bursts: f(self.bursts, other.bursts),
            recirculated: f(self.recirculated, other.recirculated),
            exact: f(self.exact, other.exact),
            signature: f(self.signature, other.signature),
            megaflow: f(self.megaflow, other.megaflow),
            lookups: f(self.lookups, other.lookups),
            miss: f(self.miss, other.miss),
            upcall_cycles: f(self.upcall_cycles, other.upcall_cycles),
            cycles: f(self.cycles, other.cycles),
            lookup_cycles: f(self.lookup_cycles, other.lookup_cycles),
            action_cycles: f(self.action_cycles, other.action_cycles),
        }
    }

    /// How much each grew since `earlier`.
    pub fn since(self, earlier: StageStats) -> StageStats {
        self.zip(earlier, u64::wrapping_sub)
    }

    /// The sum.
    pub fn plus(self, other: StageStats) -> StageStats {
        self.zip(other, u64::wrapping_add)
    }
}

impl CoreStats {
    /// Cycles that packets of a receive queue took.
    pub fn queue_cycles(&self, queue: QueueId) -> u64 {
        self.queues.0.get(usize::from(queue.0)).map_or(0, Count::get)
    }

    /// The counters now.
    pub fn sum(&self) -> StageStats {
        StageStats {
            packets: self.packets.get(),
            bursts: self.bursts.get(),
            recirculated: self.recirculated.get(),
            exact: self.exact.get(),
            signature: self.signature.get(),
            megaflow: self.megaflow.get(),
            lookups: self.lookups.get(),
            miss: self.miss.get(),
            upcall_cycles: self.upcall_cycles.get(),
            cycles: self.cycles.get(),
            lookup_cycles: self.lookup_cycles.get(),
            action_cycles: self.action_cycles.get(),
        }
    }
}

/// The stage of a core.
pub struct Datapath {
    switch: Arc<Switch>,
    cache: Cache,
    injected: Receiver<Injected>,
    stats: Arc<CoreStats>,
    told: Hits,
    now_ms: u64,
    swept_ms: u64,
    turns: u32,
    found: Box<[Found; CAP]>,
    /// Buffers of the packet that something is done to; empty between packets.
    rest: act::Rest,
    kept: Kept,
}

/// A packet of a burst, looked up.
#[derive(Clone, Copy, Default)]
struct Found {
    /// Place in the cache; `NONE`: nothing is known of it.
    place: u32,
    bytes: u32,
}

const NONE: u32 = u32::MAX;

/// Most queues of a port.
pub const MAX_PORT_QUEUES: u16 = 32;
/// Most cores.
pub const MAX_CORES: usize = 32;
/// Names of queues from here on are those of pipes from other cores.
const CROSSING: u16 = MAX_DP as u16 * MAX_PORT_QUEUES;

/// The queue by which a core sends to a port: the port's first, or a pipe to the core that has it.
#[inline(always)]
pub fn queue_of(dp: u32) -> QueueId {
    QueueId(dp as u16)
}

/// The name of a port's queue where it receives.
pub fn receive_queue(dp: u32, queue: usize) -> QueueId {
    QueueId(dp as u16 + queue as u16 * MAX_DP as u16)
}

/// The end of the pipe over which another core's packets for a port come.
pub fn crossing(dp: u32, from: usize) -> QueueId {
    QueueId(CROSSING + dp as u16 + from as u16 * MAX_DP as u16)
}

/// The port that a queue, or a pipe, is of.
#[inline(always)]
fn port_of(queue: QueueId) -> u32 {
    u32::from(queue.0) % MAX_DP
}

impl Datapath {
    /// The stage of one core.
    pub fn new(switch: Arc<Switch>, stats: Arc<CoreStats>) -> Datapath {
        let kept = switch.join();
        let injected = switch.injected();
        Datapath {
            switch,
            cache: Cache::new(Arc::clone(&kept)),
            injected,
            stats,
            told: Hits::default(),
            now_ms: now_ms(),
            swept_ms: 0,
            turns: 0,
            found: Box::new([Found::default(); CAP]),
            rest: act::Rest::new(),
            kept,
        }
    }

    /// What is known of a packet: from the cache, or from the tables.
    #[inline(always)]
    fn place_of(&mut self, key: &Key) -> u32 {
        match self.cache.lookup(key) {
            Some(place) => place,
            None => self.miss(key),
        }
    }

    #[cold]
    fn miss(&mut self, key: &Key) -> u32 {
        let start = cycles();
        let flow = self.switch.upcall(&Upcall { key, layers: Layers::default() });
        let place = self.cache.insert(Arc::clone(&flow));
        self.switch.kept(&flow);
        self.stats.upcall_cycles.add(cycles().wrapping_sub(start));
        // Too many are kept: what is idle goes at the next sweep, and this packet with it.
        place.unwrap_or(NONE)
    }

    /// Looks all packets of a burst up; how many there are, and whether one fate is theirs.
    #[inline]
    fn look_up(&mut self, from: QueueId, batch: &Batch<Buf>) -> (usize, bool) {
        let (mut at, mut n, mut same) = (0, 0, true);
        while at < batch.len() {
            let (buffers, bytes) = batch.packet_at(at);
            if let Some(next) = batch.get(at + buffers) {
                next.prefetch();
            }
            let mut key = Key::default();
            key.set_in_port(port_of(from));
            read(batch, at, buffers, bytes, &mut key);
            let place = self.place_of(&key);
            self.found[n] = Found { place, bytes };
            same &= place == self.found[0].place;
            at += buffers;
            n += 1;
        }
        (n, same)
    }

    /// Counts a run of packets of one translation.
    #[inline(always)]
    fn count(&self, place: u32, packets: u64, bytes: u64) {
        let flow = self.cache.get(place);
        flow.packets.add(packets);
        flow.bytes.add(bytes);
        flow.used_ms.store(self.now_ms, Ordering::Relaxed);
    }

    fn tell_hits(&mut self) {
        let (now, then) = (self.cache.hits, self.told);
        self.stats.exact.add(now.exact - then.exact);
        self.stats.signature.add(now.signature - then.signature);
        self.stats.megaflow.add(now.megaflow - then.megaflow);
        self.stats.lookups.add(now.lookups - then.lookups);
        self.stats.miss.add(now.miss - then.miss);
        let flows = self.cache.len() as u64;
        self.stats.flows.add(flows.wrapping_sub(self.stats.flows.get()));
        self.told = now;
    }

    #[cold]
    fn look_around(&mut self, out: &mut Outbox) -> bool {
        self.now_ms = now_ms();
        self.tell_hits();
        if self.now_ms - self.swept_ms >= SWEEP_MS {
            self.swept_ms = self.now_ms;
            self.cache.sweep();
        }
        let mut any = false;
        while let Ok(packet) = self.injected.try_recv() {
            any = true;
            self.inject(&packet, out);
        }
        any
    }
}

/// Reads the headers of a packet of a batch into a key.
#[inline(always)]
fn read(batch: &Batch<Buf>, at: usize, buffers: usize, bytes: u32, key: &mut Key) {
    let mut head = [0; FIRST];
    let n = gather(batch, at, buffers, &mut head);
    let layers = parse(&head[..n], bytes as usize, key);
    if n == FIRST && (layers.l4 == 0 || layers.l4 + 40 > FIRST) {
        read_more(batch, at, buffers, bytes, key);
    }
}

/// The same, of more bytes.
#[cold]
fn read_more(batch: &Batch<Buf>, at: usize, buffers: usize, bytes: u32, key: &mut Key) {
    let mut head = [0; HEAD];
    let n = gather(batch, at, buffers, &mut head);
    let port = key.in_port();
    *key = Key::default();
    key.set_in_port(port);
    parse(&head[..n], bytes as usize, key);
}

/// Copies the first bytes of a packet, of however many buffers it is; how many there were.
#[inline(always)]
fn gather(batch: &Batch<Buf>, at: usize, buffers: usize, head: &mut [u8]) -> usize {
    let mut n = 0;
    for i in at..at + buffers {
        let Some(buf) = batch.get(i) else { break };
        n += buf.read(0, &mut head[n..]);
        if n == head.len() {
            break;
        }
    }
    n
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.switch.leave(&self.kept);
    }
}

impl Stage for Datapath {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        if from.0 >= CROSSING {
            // Another core has done everything else.
            return out.send_all(queue_of(port_of(from)), batch);
        }
        let start = cycles();
        let (n, same) = self.look_up(from, batch);
        let looked = cycles();
        self.stats.packets.add(n as u64);
        self.stats.bursts.add(1);
        let first = self.found[0].place;
        let mut done = 0;
        if same && first != NONE {
            let bytes = self.found[..n].iter().map(|f| u64::from(f.bytes)).sum();
            self.count(first, n as u64, bytes);
            if let [Op::Output(dp)] = self.cache.get(first).ops[..] {
                out.send_all(queue_of(dp), batch);
                done = n;
            }
        }
        let counted = same && first != NONE;
        for i in done..n {
            let Found { place, bytes } = self.found[i];
            if place == NONE {
                self.stats.dropped.add(1);
                act::discard(batch, out);
                continue;
            }
            if !counted {
                self.count(place, 1, bytes.into());
            }
            self.act_on_first(from, place, batch, out);
        }
        let end = cycles();
        self.stats.lookup_cycles.add(looked.wrapping_sub(start));
        self.stats.action_cycles.add(end.wrapping_sub(looked));
        self.stats.cycles.add(end.wrapping_sub(start));
        self.stats.queues.0[usize::from(from.0)].add(end.wrapping_sub(start));
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        self.turns += 1;
        if self.turns < LOOK_TURNS {
            return false;
        }
        self.turns = 0;
        self.look_around(out)
    }
}
