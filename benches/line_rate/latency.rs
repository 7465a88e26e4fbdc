//! How long frames take.
//!
//! Frames say in their payload which entry of which ring they were sent from, written once. The driver
//! keeps the times at which it offered them, and reads the tag of a share of those that arrive: so a
//! frame under load costs no more than in any other trial.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::lane::Lane;
use crate::rig::Rig;
use crate::run::Run;
use crate::trial::Watch;

/// Longest time that is told from longer ones: ten seconds.
const LONGEST_NS: u64 = 10_000_000_000;
/// Times are told apart to three digits.
const DIGITS: u8 = 3;
/// Frames sent so early in a trial do not count.
const WARM_UP_NS: u64 = 10_000_000;
/// Frames per second that are looked at.
const SAMPLES: f64 = 1e6;
/// A lone frame that took so long is lost.
const LOST: Duration = Duration::from_millis(100);

/// How long frames took, ns. A percentile is left out when no frame can be expected beyond it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) samples: u64,
    pub(crate) min_ns: u64,
    pub(crate) mean_ns: f64,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p75_ns: Option<u64>,
    pub(crate) p90_ns: Option<u64>,
    pub(crate) p95_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) p99_9_ns: Option<u64>,
    pub(crate) p99_99_ns: Option<u64>,
    pub(crate) p99_999_ns: Option<u64>,
    pub(crate) max_ns: u64,
    /// RFC 8219 §7.3.1: the 99.9th percentile less the least.
    pub(crate) pdv_ns: Option<u64>,
}

/// The percentiles of [`Times`], and their names.
pub(crate) const PERCENTILES: [(f64, &str); 8] = [
    (50.0, "p50_ns"),
    (75.0, "p75_ns"),
    (90.0, "p90_ns"),
    (95.0, "p95_ns"),
    (99.0, "p99_ns"),
    (99.9, "p99_9_ns"),
    (99.99, "p99_99_ns"),
    (99.999, "p99_999_ns"),
];

/// A histogram of times.
pub(crate) struct Clock(Histogram<u64>);

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock(Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are in order"))
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(crate) fn times(&self) -> Times {
        let samples = self.0.len();
        let at = |i: usize| {
            let beyond = 1.0 - PERCENTILES[i].0 / 100.0;
            // A hair less than 1, for beyond is not exact.
            (samples as f64 * beyond >= 0.999).then(|| self.0.value_at_percentile(PERCENTILES[i].0))
        };
        let min_ns = if samples == 0 { 0 } else { self.0.min() };
        Times {
            samples,
            min_ns,
            mean_ns: self.0.mean(),
            p50_ns: at(0),
            p75_ns: at(1),
            p90_ns: at(2),
            p95_ns: at(3),
            p99_ns: at(4),
            p99_9_ns: at(5),
            p99_99_ns: at(6),
            p99_999_ns: at(7),
            max_ns: self.0.max(),
            pdv_ns: at(5).map(|p| p - min_ns),
        }
    }
}

/// When the frames of a lane were offered.
struct Sent {
    times: Vec<u64>,
    /// The first that may still arrive.
    next: u64,
}

/// Looks on at a trial and keeps the times of a share of its frames.
pub(crate) struct Stamps {
    clock: Clock,
    sent: Vec<Sent>,
    /// Every so many frames one is looked at.
    every: u64,
    buffers: u64,
    /// Frames that arrived with a tag that no frame under way has.
    pub(crate) unknown: u64,
}

impl Stamps {
    /// For a trial over these lanes at `rate` frames per second of `buffers` receive buffers each.
    pub(crate) fn new(lanes: &[Lane], rate: f64, buffers: u32) -> Stamps {
        let sent = lanes.iter().map(|lane| Sent {
            times: vec![
                0;
                (4 * (usize::from(lane.entries()) + usize::from(lane.rooms()))).next_power_of_two()
            ],
            next: lane.offered,
        });
        // An odd number, so that it keeps no step with bursts.
        let every = (rate / SAMPLES) as u64 | 1;
        Stamps { clock: Clock::new(), sent: sent.collect(), every, buffers: buffers.into(), unknown: 0 }
    }

    pub(crate) fn times(&self) -> Times {
        self.clock.times()
    }

    /// The time at which the frame was offered that lane `lane` sent from `entry`, of `entries`, if it can
    /// still be under way: frames of a lane stay in order, and `offered` were offered.
    fn find(&mut self, lane: u16, entry: u16, entries: u16, offered: u64) -> Option<u64> {
        let sent = self.sent.get_mut(usize::from(lane))?;
        let (entry, entries) = (u64::from(entry), u64::from(entries));
        let seq = sent.next + (entry + entries - sent.next % entries) % entries;
        if entry >= entries || seq >= offered {
            return None;
        }
        sent.next = seq + 1;
        Some(sent.times[seq as usize & (sent.times.len() - 1)])
    }
}

impl Watch for Stamps {
    #[inline(always)]
    fn sent(&mut self, lane: usize, first: u64, n: u16, at_ns: u64) {
        let times = &mut self.sent[lane].times;
        let mask = times.len() - 1;
        for seq in first..first + u64::from(n) {
            times[seq as usize & mask] = at_ns;
        }
    }

    #[inline(always)]
    fn received(&mut self, lanes: &[Lane], lane: usize, n: u16, at_ns: u64) {
        let end = lanes[lane].received / self.buffers;
        let begin = (lanes[lane].received - u64::from(n)) / self.buffers;
        let mut frame = begin.next_multiple_of(self.every);
        while frame < end {
            let (from, entry) = lanes[lane].tag(frame * self.buffers);
            let source = lanes.get(usize::from(from)).map(|lane| (lane.entries(), lane.offered));
            let found = source.and_then(|(entries, offered)| self.find(from, entry, entries, offered));
            match found {
                Some(sent) if sent < WARM_UP_NS => {}
                Some(sent) => self.clock.record(at_ns - sent),
                None => self.unknown += 1,
            }
            frame += self.every;
        }
    }
}

/// What became of lone frames.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Lone {
    #[serde(flatten)]
    pub(crate) times: Times,
    pub(crate) lost: u64,
    /// The time that two looks at the clock take, which is contained in each.
    pub(crate) clock_ns: u64,
}

/// Sends one frame, waits until it is there, leaves the back-end alone for 5 to 15 us, and so on.
pub(crate) fn lone(rig: &mut Rig, run: &Run<'_>) -> Lone {
    rig.drain();
    let (mut clock, mut lost, mut chance) = (Clock::new(), 0, 1u64);
    let began = Instant::now();
    let warm = Duration::from_nanos(WARM_UP_NS);
    while began.elapsed().as_secs_f64() < run.args.seconds() + warm.as_secs_f64() && !run.stop.now() {
        let sent = Instant::now();
        rig.lanes[0].send(1);
        match arrival(&mut rig.lanes, sent) {
            Some(time) if began.elapsed() > warm => clock.record(time.as_nanos() as u64),
            Some(_) => {}
            None => lost += 1,
        }
        // xorshift64: not in step with the back-end's turns.
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let (pause, since) = (Duration::from_nanos(5_000 + chance % 10_000), Instant::now());
        while since.elapsed() < pause || rig.lanes[0].free() == 0 && !run.stop.now() {
            for lane in &mut rig.lanes {
                lane.collect();
            }
        }
    }
    Lone { times: clock.times(), lost, clock_ns: clock_ns() }
}

/// Waits for a frame on any lane: the time since `sent`, or `None` when it is lost.
fn arrival(lanes: &mut [Lane], sent: Instant) -> Option<Duration> {
    while sent.elapsed() < LOST {
        for _ in 0..64 {
            if lanes.iter_mut().any(|lane| lane.collect() > 0) {
                return Some(sent.elapsed());
            }
            std::hint::spin_loop();
        }
    }
    None
}

/// The least time between two looks at the clock.
fn clock_ns() -> u64 {
    let look = |_| Instant::now().elapsed().as_nanos() as u64;
    (0..1000).map(look).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut clock = Clock::new();
        for ns in 1..=100_000 {
            clock.record(ns);
        }
        let times = clock.times();
        assert_eq!((times.samples, times.min_ns), (100_000, 1));
        for (found, want) in [
            (times.p50_ns, 50_000u64),
            (times.p75_ns, 75_000),
            (times.p90_ns, 90_000),
            (times.p95_ns, 95_000),
            (times.p99_ns, 99_000),
            (times.p99_9_ns, 99_900),
            (times.p99_99_ns, 99_990),
            (times.p99_999_ns, 99_999),
            (Some(times.max_ns), 100_000),
            (times.pdv_ns, 99_899),
        ] {
            assert!(found.unwrap().abs_diff(want) <= want / 1000, "{found:?} for {want}");
        }
        assert!((times.mean_ns - 50_000.5).abs() < 50.0);
    }

    #[test]
    fn a_percentile_beyond_all_samples_is_not_told() {
        let mut clock = Clock::new();
        assert_eq!((clock.times().samples, clock.times().p50_ns, clock.times().min_ns), (0, None, 0));
        for ns in 1..=999 {
            clock.record(ns);
        }
        assert!(clock.times().p99_ns.is_some() && clock.times().p99_9_ns.is_none());
        clock.record(u64::MAX);
        let times = clock.times();
        assert!(times.p99_9_ns.is_some() && times.p99_99_ns.is_none());
        assert!(times.max_ns >= LONGEST_NS);
    }

    #[test]
    fn frames_are_found_by_their_entries_as_long_as_they_keep_their_order() {
        let sent = Sent { times: vec![0; 64], next: 20 };
        let mut stamps = Stamps { clock: Clock::new(), sent: vec![sent], every: 1, buffers: 1, unknown: 0 };
        stamps.sent(0, 20, 20, 700);
        stamps.sent(0, 26, 14, 800);
        // A ring of 8: entry 4 is frame 20, entry 1 is frame 25 and then 33.
        assert_eq!(stamps.find(0, 4, 8, 40), Some(700));
        assert_eq!(stamps.find(0, 1, 8, 40), Some(700));
        assert_eq!(stamps.find(0, 1, 8, 40), Some(800));
        assert_eq!(stamps.sent[0].next, 34);
        // Neither one of another lane, nor one outside of the ring, nor one that was not offered yet.
        assert_eq!((stamps.find(1, 0, 8, 40), stamps.find(0, 8, 8, 40)), (None, None));
        assert_eq!((stamps.find(0, 1, 8, 41), stamps.find(0, 7, 8, 40)), (None, Some(800)));
        assert_eq!(stamps.find(0, 0, 8, 40), None);
    }
}
