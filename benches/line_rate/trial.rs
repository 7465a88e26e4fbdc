//! A trial: frames at a steady rate for a while; how many of them came through. (RFC 2544 §23 to §24.)

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::Args;
use crate::frames::Size;
use crate::host::Steal;
use crate::lane::Lane;
use crate::rig::Rig;
use crate::stop::Stop;

/// How often the rings are looked at: often enough for latencies, seldom enough to leave the device its
/// lines.
const LOOK_NS: u64 = 100;
/// A driver that was away sends at once what it missed, as far as that fills so much of its rings, and
/// leaves out the rest: a flood would not be the rate.
const CATCH_UP: f64 = 0.25;
/// Frames that fall due in so much time are sent at once, unless told otherwise: up to [`BURST`].
const GATHER: Duration = Duration::from_micros(1);
const BURST: f64 = 32.0;
/// Share of the frames of a rate that the driver must have managed to offer. What it offered is what
/// counts; others that take its core for moments do not spoil a trial.
const KEPT_UP: f64 = 0.9;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Frames per second of all lanes together.
    pub(crate) rate: f64,
    pub(crate) length: Duration,
    /// Frames at once.
    pub(crate) burst: u16,
    /// Receive buffers that a frame takes.
    pub(crate) buffers: u32,
}

impl Plan {
    pub(crate) fn new(args: &Args, frame: Size, mpps: f64) -> Plan {
        let length = Duration::from_secs_f64(args.seconds());
        let buffers = args.shape.rooms(frame, 0);
        let gathered = (mpps * 1e6 * GATHER.as_secs_f64()).clamp(1.0, BURST) as u16;
        let burst = args.burst.unwrap_or(gathered).clamp(1, args.shape.size / 2);
        Plan { rate: mpps * 1e6, length, burst, buffers }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// The rate that was wanted, and the one that was offered.
    pub(crate) wanted_mpps: f64,
    pub(crate) offered_mpps: f64,
    pub(crate) received_mpps: f64,
    /// Frames offered: those that the ring had no room for are lost.
    pub(crate) offered: u64,
    pub(crate) refused: u64,
    pub(crate) received: u64,
    /// Percent of the frames offered.
    pub(crate) loss: f64,
    /// Whether the driver offered what was wanted.
    pub(crate) kept_up: bool,
    /// The longest time that the driver was away, and CPU time that the hypervisor took from all cores.
    pub(crate) away_us: f64,
    pub(crate) steal_ms: f64,
    pub(crate) seconds: f64,
}

impl Outcome {
    /// Whether no more than `limit` percent was lost of what was wanted.
    pub(crate) fn passed(&self, limit: f64) -> bool {
        self.kept_up && self.loss <= limit
    }
}

/// What looks on: at frames that are sent, and at those that arrive.
pub(crate) trait Watch {
    /// Frames `first..first + n` of a lane are being offered, `at_ns` after the beginning.
    fn sent(&mut self, lane: usize, first: u64, n: u16, at_ns: u64);
    /// `n` receive buffers of a lane were found used.
    fn received(&mut self, lanes: &[Lane], lane: usize, n: u16, at_ns: u64);
}

/// Nobody looks on.
pub(crate) struct Nobody;

impl Watch for Nobody {
    #[inline(always)]
    fn sent(&mut self, _: usize, _: u64, _: u16, _: u64) {}
    #[inline(always)]
    fn received(&mut self, _: &[Lane], _: usize, _: u16, _: u64) {}
}

/// Sends at the rate of the plan; nothing is on its way before and afterwards.
pub(crate) fn run(rig: &mut Rig, plan: &Plan, watch: &mut impl Watch, stop: &Stop) -> Outcome {
    rig.drain();
    let before = rig.received();
    let steal = Steal::now();
    let sent = send(&mut rig.lanes, plan, watch, stop);
    rig.drain();
    let steal_ms = steal.since_ms();
    let received = (rig.received() - before) / u64::from(plan.buffers);
    let loss = (sent.offered.saturating_sub(received)) as f64 / (sent.offered as f64).max(1.0) * 100.0;
    let seconds = sent.time.as_secs_f64();
    let mpps = |n: u64| n as f64 / seconds / 1e6;
    Outcome {
        wanted_mpps: plan.rate / 1e6,
        offered_mpps: mpps(sent.offered),
        received_mpps: mpps(received),
        offered: sent.offered,
        refused: sent.refused,
        received,
        loss,
        kept_up: mpps(sent.offered) * 1e6 >= plan.rate * KEPT_UP,
        away_us: sent.away_ns as f64 / 1e3,
        steal_ms,
        seconds,
    }
}

#[derive(Default)]
struct Sent {
    offered: u64,
    refused: u64,
    away_ns: u64,
    time: Duration,
}

fn send(lanes: &mut [Lane], plan: &Plan, watch: &mut impl Watch, stop: &Stop) -> Sent {
    let mut sent = Sent::default();
    let per_ns = plan.rate / 1e9;
    let (burst, length) = (u64::from(plan.burst), plan.length.as_nanos() as u64);
    let rings: u64 = lanes.iter().map(|lane| u64::from(lane.entries())).sum();
    let catch_up = burst + (rings as f64 * CATCH_UP) as u64;
    // Frames due so far that were left out; when it was here last, and when it looked at the rings.
    let (mut left_out, mut turned, mut looked, mut lane) = (0u64, 0u64, 0u64, 0);
    let began = Instant::now();
    loop {
        let now = began.elapsed().as_nanos() as u64;
        if now >= length || stop.now() {
            break;
        }
        let mut due = ((now as f64 * per_ns) as u64).saturating_sub(sent.offered + left_out);
        if due > catch_up {
            left_out += due - catch_up;
            due = catch_up;
        }
        sent.away_ns = sent.away_ns.max(now - turned);
        turned = now;
        if now - looked >= LOOK_NS {
            looked = now;
            look(lanes, watch, began);
        }
        while due >= burst {
            let first = lanes[lane].offered;
            watch.sent(lane, first, plan.burst, now);
            let took = lanes[lane].send(plan.burst);
            sent.offered += burst;
            sent.refused += burst - u64::from(took);
            due -= burst;
            lane = if lane + 1 == lanes.len() { 0 } else { lane + 1 };
        }
    }
    sent.time = began.elapsed();
    // What is still on its way.
    let ended = Instant::now();
    while ended.elapsed() < Duration::from_millis(5) {
        look(lanes, watch, began);
    }
    sent
}

/// Collects from all lanes.
#[inline(always)]
fn look(lanes: &mut [Lane], watch: &mut impl Watch, began: Instant) {
    for i in 0..lanes.len() {
        let n = lanes[i].collect();
        if n > 0 {
            watch.received(lanes, i, n, began.elapsed().as_nanos() as u64);
        }
    }
}
