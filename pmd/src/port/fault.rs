//! A port around a port that does what a bad network, and a device that finishes in any order, would
//! do: both ways it loses, copies, damages, delays and swaps packets; it holds back and permutes the
//! receipts of what was sent. By chance, and the same with the same seed.

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Pool, Table};

use crate::batch::{Batch, CAP};
use crate::port::frames::{self, FRAMES};
use crate::port::{Caps, Count, Counters, Filter, Link, Port, PortError, Queue, Stats};

/// Packets held back each way at most; then no more are taken.
const HELD: usize = 512;
/// Turns without `rx` after which packets held back on their way in are dropped: the queue is about to
/// leave its core.
const RECALL: u32 = 64;
/// Bytes of a frame for copies.
const FRAME: u32 = 2048 + 64;

/// What is to go wrong, each with a chance from 0 (never) to 1 (always).
#[derive(Clone, Debug)]
pub struct Config {
    /// Where chance begins.
    pub seed: u64,
    /// A packet is lost.
    pub drop: f64,
    /// A packet passes twice.
    pub duplicate: f64,
    /// A bit of a packet is flipped. What may not be written is copied first.
    pub corrupt: f64,
    /// A packet passes only after 1 to `turns` turns.
    pub delay: f64,
    /// A packet overtakes the one before it.
    pub reorder: f64,
    /// The receipt of a buffer that was sent is given only after 1 to `turns` turns.
    pub hold: f64,
    /// Receipts are given in random order.
    pub permute: bool,
    /// The longest delay, turns of the core.
    pub turns: u32,
    /// Frames of a queue for copies, each way; without a free one, a packet is spared.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            seed: 1,
            drop: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            delay: 0.0,
            reorder: 0.0,
            hold: 0.0,
            permute: false,
            turns: 16,
            frames: FRAMES / 2,
            backing: Backing::default(),
        }
    }
}

/// The control side: the port inside, and what was done to its packets.
pub struct Fault {
    inner: Box<dyn Port>,
    config: Config,
    done: Vec<Arc<Done>>,
    cleared: [u64; KINDS.len()],
}

/// Kinds of what is done, in the order of [`Done`].
const KINDS: [&str; 6] = [
    "fault_dropped",
    "fault_duplicated",
    "fault_corrupted",
    "fault_delayed",
    "fault_reordered",
    "fault_receipts_held",
];
const DROPPED: usize = 0;
const DUPLICATED: usize = 1;
const CORRUPTED: usize = 2;
const DELAYED: usize = 3;
const REORDERED: usize = 4;
const RECEIPTS: usize = 5;

/// How often each kind was done.
type Done = [Count; KINDS.len()];

impl Fault {
    /// Faults around `inner`.
    ///
    /// # Errors
    /// When a chance is not in 0..=1, or no delay is possible.
    pub fn new(inner: Box<dyn Port>, config: Config) -> Result<Fault, PortError> {
        let wrong = |what: String| PortError::Config { port: inner.name().to_owned(), what };
        let chances = [
            ("drop", config.drop),
            ("duplicate", config.duplicate),
            ("corrupt", config.corrupt),
            ("delay", config.delay),
            ("reorder", config.reorder),
            ("hold", config.hold),
        ];
        if let Some((name, chance)) = chances.into_iter().find(|(_, chance)| !(0.0..=1.0).contains(chance)) {
            return Err(wrong(format!("{name}={chance} is not a chance from 0 to 1")));
        }
        if config.turns == 0 {
            return Err(wrong("turns=0 is no delay; 1 is the least".into()));
        }
        Ok(Fault { inner, config, done: Vec::new(), cleared: [0; KINDS.len()] })
    }

    fn sums(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|kind| self.done.iter().map(|done| done[kind].get()).sum())
    }
}

impl Port for Fault {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn driver(&self) -> &'static str {
        self.inner.driver()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn mac(&self) -> [u8; 6] {
        self.inner.mac()
    }

    fn link(&self) -> Link {
        self.inner.link()
    }

    fn map(&mut self, memory: &Arc<Table>) -> Result<(), PortError> {
        self.inner.map(memory)
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let mut started: Vec<Box<dyn Queue>> = Vec::new();
        let mut done = Vec::new();
        for (index, inner) in (0u64..).zip(self.inner.start(queues)?) {
            let config = self.config.clone();
            let name = self.inner.name();
            let lent = frames::pool(name, config.frames, FRAME, config.backing)?;
            let sent = frames::pool(name, config.frames, FRAME, config.backing)?;
            done.push(Arc::<Done>::default());
            started.push(Box::new(FaultQueue {
                inner,
                chance: Chance(config.seed.wrapping_add(index << 32)),
                config,
                lent,
                sent,
                inbound: Lane::default(),
                outbound: Lane::default(),
                received: Batch::default(),
                sending: Batch::default(),
                loans: Batch::default(),
                receipts: Vec::new(),
                turn: 0,
                without_rx: 0,
                held: 0,
                done: done.last().expect("pushed").clone(),
            }));
        }
        (self.done, self.cleared) = (done, Default::default());
        Ok(started)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        let inner = queues.into_iter().map(|queue| {
            let queue: Box<dyn Any> = queue;
            queue.downcast::<FaultQueue>().expect("a port gets its own queues back").inner
        });
        let inner = inner.collect();
        self.inner.stop(inner)
    }

    fn stats(&self) -> Vec<Stats> {
        self.inner.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let mut all = self.inner.xstats();
        let grown = self.sums().into_iter().zip(self.cleared).map(|(now, then)| now - then);
        all.extend(KINDS.iter().zip(grown).map(|(kind, n)| ((*kind).to_owned(), n)));
        all
    }

    fn filter(&self) -> Option<Filter> {
        self.inner.filter()
    }

    fn set_filter(&mut self, filter: Filter) -> Result<(), PortError> {
        self.inner.set_filter(filter)
    }

    fn clear_stats(&mut self) {
        self.inner.clear_stats();
        self.cleared = self.sums();
    }
}

/// Numbers by chance (SplitMix64).
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    fn below(&mut self, n: usize) -> usize {
        (self.number() % n as u64) as usize
    }

    fn happens(&mut self, chance: f64) -> bool {
        chance > 0.0 && ((self.number() >> 11) as f64) < chance * (1u64 << 53) as f64
    }
}

/// Packets on their way, in order, each with the turn from which on it may pass.
#[derive(Default)]
struct Lane {
    packets: VecDeque<(u64, Vec<Buf>)>,
}

impl Lane {
    /// Moves the packets that may pass to the back of `out`, `most` at most; how many.
    fn release(&mut self, turn: u64, out: &mut Batch<Buf>, most: usize) -> usize {
        let (mut n, mut at) = (0, 0);
        while n < most
            && let Some((due, packet)) = self.packets.get(at)
        {
            if *due > turn {
                at += 1;
                continue;
            }
            if packet.len() > out.room() {
                break;
            }
            let (_, packet) = self.packets.remove(at).expect("looked at");
            packet.into_iter().for_each(|buf| out.push(buf));
            n += 1;
        }
        n
    }
}

struct FaultQueue {
    inner: Box<dyn Queue>,
    config: Config,
    chance: Chance,
    /// Frames of copies on their way in, which are lent; and out, which nobody else knows of.
    lent: Pool,
    sent: Pool,
    inbound: Lane,
    outbound: Lane,
    /// Just received, nothing done to it yet.
    received: Batch<Buf>,
    /// May pass, but the port has not taken it yet.
    sending: Batch<Buf>,
    /// Receipts on their way to be settled or kept; empty between calls.
    loans: Batch<Loan>,
    /// Receipts to be given, and from which turn on.
    receipts: Vec<(u64, Loan)>,
    turn: u64,
    without_rx: u32,
    /// Buffers taken by `tx` whose receipts were not given.
    held: u32,
    done: Arc<Done>,
}

/// Takes the first packet out of `batch`.
fn take_packet(batch: &mut Batch<Buf>) -> Option<Vec<Buf>> {
    let (n, _) = batch.packet_at(0);
    if n == 0 { None } else { Some((0..n).filter_map(|_| batch.pop_front()).collect()) }
}

/// Takes receipts of frames of `lent`, and of the port inside, from the front of `loans`.
fn settle(lent: &mut Pool, inner: &mut dyn Queue, loans: &mut Batch<Loan>) {
    loop {
        let before = loans.len();
        lent.settle_front(loans);
        inner.settle(loans);
        if loans.len() == before {
            return;
        }
    }
}

impl FaultQueue {
    fn happens(&mut self, kind: usize, chance: f64) -> bool {
        let happens = self.chance.happens(chance);
        self.done[kind].add(u64::from(happens));
        happens
    }

    /// A copy of a packet in own frames; `None`: too few are free.
    fn copy(&mut self, packet: &[Buf], inbound: bool) -> Option<Vec<Buf>> {
        let pool = if inbound { &mut self.lent } else { &mut self.sent };
        let bytes: u32 = packet.iter().map(Buf::len).sum();
        let n = bytes.div_ceil(FRAME).max(1) as usize;
        if n > pool.free() || n > CAP {
            return None;
        }
        let mut copy: Vec<Buf> = (0..n).filter_map(|_| pool.take()).collect();
        let mut at = 0;
        for buf in packet {
            let mut off = 0;
            while off < buf.len() {
                let frame = at / FRAME;
                let n = buf.copy_part(off, &mut copy[frame as usize], at % FRAME, buf.len() - off);
                (off, at) = (off + n, at + n);
            }
        }
        for (i, buf) in copy.iter_mut().enumerate() {
            buf.truncate(bytes - i as u32 * FRAME);
            buf.set_more(i + 1 < n);
        }
        copy[0].offload = packet[0].offload;
        Some(copy)
    }

    /// Flips a bit of a packet, or of a copy that takes its place; gives the original back then.
    fn corrupt(&mut self, packet: &mut Vec<Buf>, inbound: bool) -> Option<Vec<Buf>> {
        let bytes: u32 = packet.iter().map(Buf::len).sum();
        if bytes == 0 {
            return None;
        }
        let original = if packet.iter().all(Buf::writable) {
            None
        } else {
            let copy = self.copy(packet, inbound)?;
            Some(std::mem::replace(packet, copy))
        };
        self.done[CORRUPTED].add(1);
        let mut at = self.chance.below(bytes as usize) as u32;
        let bit = 1u8 << self.chance.below(8);
        for buf in packet {
            if at < buf.len() {
                let byte: u8 = buf.peek(at).expect("inside");
                assert!(buf.poke(at, byte ^ bit), "writable, or a copy");
                break;
            }
            at -= buf.len();
        }
        original
    }

    /// Puts a packet on a lane, or several, or none.
    fn pass(&mut self, mut packet: Vec<Buf>, inbound: bool) {
        let config = self.config.clone();
        if self.happens(DROPPED, config.drop) {
            return self.finish(packet, inbound);
        }
        if self.chance.happens(config.corrupt)
            && let Some(original) = self.corrupt(&mut packet, inbound)
        {
            self.finish(original, inbound);
        }
        let twin = if self.chance.happens(config.duplicate) { self.copy(&packet, inbound) } else { None };
        self.done[DUPLICATED].add(u64::from(twin.is_some()));
        for packet in std::iter::once(packet).chain(twin) {
            let late = self.happens(DELAYED, config.delay);
            let due = if late { self.turn + 1 + self.chance.below(config.turns as usize) as u64 } else { 0 };
            let overtakes = self.chance.happens(config.reorder);
            let lane = if inbound { &mut self.inbound } else { &mut self.outbound };
            let at = lane.packets.len() - usize::from(overtakes && !lane.packets.is_empty());
            self.done[REORDERED].add(u64::from(at < lane.packets.len()));
            lane.packets.insert(at, (due, packet));
        }
    }

    /// Ends the loans of a packet that does not pass.
    fn finish(&mut self, packet: Vec<Buf>, inbound: bool) {
        for buf in packet {
            self.loans.push(buf.finish(0));
        }
        if inbound { self.bring_home() } else { self.keep() }
    }

    /// Settles the receipts in `self.loans` of packets that the port inside lent.
    fn bring_home(&mut self) {
        settle(&mut self.lent, &mut *self.inner, &mut self.loans);
        // It passed on another lender's: the core brings those home.
        self.held += self.loans.len() as u32;
        self.keep();
    }

    /// Keeps the receipts in `self.loans`, of buffers that were sent, until they are reaped.
    fn keep(&mut self) {
        loop {
            self.sent.settle_front(&mut self.loans);
            let Some(loan) = self.loans.pop_front() else { return };
            let late = self.happens(RECEIPTS, self.config.hold);
            let wait = if late { 1 + self.chance.below(self.config.turns as usize) as u64 } else { 0 };
            self.receipts.push((self.turn + wait, loan));
        }
    }

    /// Hands on what may pass to the port inside.
    fn send(&mut self) {
        self.outbound.release(self.turn, &mut self.sending, CAP);
        self.inner.tx(&mut self.sending);
    }
}

impl Queue for FaultQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        self.without_rx = 0;
        if self.inbound.packets.len() < HELD {
            self.received.set_burst(out.burst());
            self.inner.rx(&mut self.received);
            while let Some(packet) = take_packet(&mut self.received) {
                self.pass(packet, true);
            }
        }
        self.inbound.release(self.turn, out, out.burst())
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let mut taken = 0;
        while self.outbound.packets.len() < HELD
            && let Some(packet) = take_packet(batch)
        {
            self.held += packet.len() as u32;
            self.pass(packet, false);
            taken += 1;
        }
        self.send();
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.turn += 1;
        self.without_rx += 1;
        if self.without_rx > RECALL {
            while let Some((_, packet)) = self.inbound.packets.pop_front() {
                self.done[DROPPED].add(1);
                self.finish(packet, true);
            }
        }
        self.send();
        self.inner.reap(&mut self.loans);
        self.keep();
        let mut given = 0;
        let mut due: Vec<usize> =
            (0..self.receipts.len()).filter(|&i| self.receipts[i].0 <= self.turn).collect();
        while done.room() > 0 && !due.is_empty() {
            let pick = if self.config.permute { self.chance.below(due.len()) } else { 0 };
            let at = due.remove(pick);
            due.iter_mut().for_each(|i| *i -= usize::from(*i > at));
            done.push(self.receipts.remove(at).1);
            given += 1;
        }
        self.held -= given;
        given as usize
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        settle(&mut self.lent, &mut *self.inner, loans);
    }

    fn lent(&self) -> u32 {
        self.inner.lent() + self.lent.out()
    }

    fn held(&self) -> u32 {
        self.held + self.sent.out()
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        // What is held back passes by turns.
        let idle = self.inbound.packets.is_empty() && self.held() == 0;
        idle && self.inner.sleep(wait)
    }

    fn wake(&mut self, rung: bool) {
        self.inner.wake(rung);
    }

    fn counters(&self) -> Arc<Counters> {
        self.inner.counters()
    }
}

#[cfg(test)]
mod tests;
