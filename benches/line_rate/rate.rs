//! Packets per second with rings kept full: the device is the limit, and nothing else is measured.

use std::error::Error;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::{Args, Mode, Shape};
use crate::frames::Size;
use crate::host;
use crate::lane::{Lane, Sample};
use crate::rig::Rig;
use crate::run::Run;

const WARM_UP: Duration = Duration::from_millis(500);
/// How often the main thread looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);
/// Turns of a worker between two reports of where it stands.
const REPORT: u32 = 256;

/// A rate, as it is reported.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rate {
    /// What the mode is about: frames received, or taken in mode dequeue.
    pub(crate) mpps: f64,
    pub(crate) gbps: f64,
    pub(crate) received_mpps: f64,
    pub(crate) sent_mpps: f64,
    /// Share of looks that found the ring used up far enough.
    pub(crate) driver_busy: f64,
    pub(crate) seconds: f64,
    /// The last frames that arrived: their mean length, and receive buffers for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sampled: Option<Sampled>,
    /// Rates of the periods, Mpps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) periods: Vec<f64>,
}

/// What a look at the last frames found.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sampled {
    pub(crate) frames: u64,
    pub(crate) bytes: f64,
    pub(crate) buffers: f64,
}

/// What a worker counts.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    received: u64,
    sent: u64,
    looks: u64,
    hits: u64,
    seconds: f64,
}

/// Phases of all workers.
const WARM: u8 = 0;
const MEASURE: u8 = 1;
const END: u8 = 2;

/// A worker's own cache lines: what it counted so far.
#[repr(align(128))]
#[derive(Default)]
struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

/// Measures for `seconds`; with `period`, calls `tell` with each period's rate.
pub(crate) fn measure(
    rig: &mut Rig,
    run: &Run<'_>,
    (seconds, period): (f64, Option<f64>),
    mut tell: impl FnMut(f64, f64),
) -> Result<Rate, Box<dyn Error>> {
    let (args, frame) = (run.args, run.frame);
    let cores = if args.core.len() < 2 { vec![None] } else { args.core.iter().copied().map(Some).collect() };
    for lane in &mut rig.lanes {
        lane.fill(args.mode)?;
    }
    let share = rig.lanes.len().div_ceil(cores.len());
    let counts: Vec<Counts> = cores.iter().map(|_| Counts::default()).collect();
    let phase = AtomicU8::new(WARM);
    let mut periods = Vec::new();
    let tallies = thread::scope(|scope| {
        let workers: Vec<_> = rig
            .lanes
            .chunks_mut(share)
            .zip(&counts)
            .zip(&cores)
            .map(|((lanes, counts), core)| {
                let (phase, core) = (&phase, *core);
                scope.spawn(move || {
                    core.map_or(Ok(()), host::pin)?;
                    Ok(work(lanes, phase, counts))
                })
            })
            .collect();
        thread::sleep(WARM_UP);
        phase.store(MEASURE, Ordering::Relaxed);
        let began = Instant::now();
        let each = frames_of(&args.shape, frame, args.mode);
        let (mut last, mut before) = (began, total(&counts, args.mode, each));
        while began.elapsed().as_secs_f64() < seconds && !run.stop.now() {
            let left = seconds - began.elapsed().as_secs_f64();
            thread::sleep(LOOK.min(Duration::from_secs_f64(left.max(0.0))));
            if let Some(period) = period
                && last.elapsed().as_secs_f64() >= period
            {
                let now = total(&counts, args.mode, each);
                let rate = (now - before) / last.elapsed().as_secs_f64() / 1e6;
                (last, before) = (Instant::now(), now);
                periods.push(rate);
                tell(began.elapsed().as_secs_f64(), rate);
            }
        }
        phase.store(END, Ordering::Relaxed);
        let tallies = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        tallies.collect::<Result<Vec<Tally>, String>>()
    })?;
    let sample = rig.lanes.iter_mut().map(|lane| lane.sample(run.mergeable()));
    let sample = sample.fold(Sample::default(), |a, b| Sample {
        frames: a.frames + b.frames,
        buffers: a.buffers + b.buffers,
        bytes: a.bytes + b.bytes,
    });
    Ok(summary(&tallies, sample, args, frame, periods))
}

/// Receive buffers of a frame: of ours as they are laid out; of the device's own, one, until a sample
/// tells.
fn frames_of(shape: &Shape, frame: Size, mode: Mode) -> f64 {
    match mode {
        Mode::Enqueue => 1.0,
        _ => (0..12).map(|n| f64::from(shape.rooms(frame, n))).sum::<f64>() / 12.0,
    }
}

fn total(counts: &[Counts], mode: Mode, each: f64) -> f64 {
    let sum = |get: fn(&Counts) -> &AtomicU64| -> u64 {
        counts.iter().map(|c| get(c).load(Ordering::Relaxed)).sum()
    };
    if mode == Mode::Dequeue { sum(|c| &c.sent) as f64 } else { sum(|c| &c.received) as f64 / each }
}

fn summary(tallies: &[Tally], sample: Sample, args: &Args, frame: Size, periods: Vec<f64>) -> Rate {
    let sampled = (sample.frames > 0).then(|| Sampled {
        frames: sample.frames,
        bytes: sample.bytes as f64 / sample.frames as f64,
        buffers: sample.buffers as f64 / sample.frames as f64,
    });
    let mut each = frames_of(&args.shape, frame, args.mode);
    let mut bytes = frame.mean();
    if let Some(sampled) = sampled.filter(|_| args.mode == Mode::Enqueue) {
        (each, bytes) = (sampled.buffers, sampled.bytes);
    }
    let rate = |get: fn(&Tally) -> u64| tallies.iter().map(|t| get(t) as f64 / t.seconds / 1e6).sum::<f64>();
    let (received, sent) = (rate(|t| t.received) / each, rate(|t| t.sent));
    let sum = |get: fn(&Tally) -> u64| tallies.iter().map(get).sum::<u64>() as f64;
    let mpps = if args.mode == Mode::Dequeue { sent } else { received };
    Rate {
        mpps,
        gbps: mpps * bytes * 8e-3,
        received_mpps: received,
        sent_mpps: sent,
        driver_busy: sum(|t| t.hits) / sum(|t| t.looks).max(1.0),
        seconds: tallies.iter().map(|t| t.seconds).fold(0.0, f64::max),
        sampled,
        periods,
    }
}

/// Keeps rings full until the last phase; what was counted in phase [`MEASURE`].
fn work(lanes: &mut [Lane], phase: &AtomicU8, counts: &Counts) -> Tally {
    let mut tally = Tally::default();
    spin(lanes, phase, WARM, counts, &mut tally);
    let sums = |lanes: &[Lane]| {
        lanes.iter().fold((0, 0), |(received, sent), lane| (received + lane.received, sent + lane.sent))
    };
    let (before, began) = (sums(lanes), Instant::now());
    tally = Tally::default();
    spin(lanes, phase, MEASURE, counts, &mut tally);
    let after = sums(lanes);
    (tally.received, tally.sent) = (after.0 - before.0, after.1 - before.1);
    tally.seconds = began.elapsed().as_secs_f64();
    tally
}

/// Goes round the lanes as long as the phase is `while_phase`.
fn spin(lanes: &mut [Lane], phase: &AtomicU8, while_phase: u8, counts: &Counts, tally: &mut Tally) {
    // A driver that looks at the rings all the time takes their lines from the device: it waits until
    // about a sixth of a ring is used.
    let least = lanes.first().map_or(1, |lane| lane.entries().min(lane.rooms()) / 6);
    let mut turn = 0u32;
    // Relaxed: the phase orders nothing.
    while phase.load(Ordering::Relaxed) == while_phase {
        for lane in lanes.iter_mut() {
            tally.looks += 1;
            if lane.turn(least) {
                tally.hits += 1;
            } else {
                for _ in 0..32 {
                    std::hint::spin_loop();
                }
            }
        }
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(REPORT) {
            counts.received.store(lanes.iter().map(|lane| lane.received).sum(), Ordering::Relaxed);
            counts.sent.store(lanes.iter().map(|lane| lane.sent).sum(), Ordering::Relaxed);
        }
    }
}
