//! The least that a packet can cost on this machine, whoever handles it: the cache lines that must cross
//! from core to core, and the bytes that must be copied.
//!
//!   round trip  one line there and back, nothing else under way: what a lone packet waits for
//!   lines       many lines that the other core wrote last, read or written in a row: what they cost when
//!               they overlap
//!   copy        a frame from one ring's worth of buffers into another's, with the fastest moves we have
//!   floor       for each kind of work and size: lines and copies, in nanoseconds, and as a rate
//!
//! The driver is the near-free one of `linerate`: it rewrites an index (split) or a word in each descriptor
//! (packed) and never touches a frame. A line of a packed ring holds four descriptors.
//!
//! `cargo bench -p benches --bench floor`

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hugepages::{Backing, Buf, Lender, Map, Private, Table};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const LINES: usize = 128;
const LAPS: u64 = 2000;
const ROUNDS: usize = 12;
/// Buffers of a ring.
const RING: u64 = 1024;
const FRAMES: [u32; 4] = [60, 252, 1514, 9000];

#[repr(align(128))]
struct Line(AtomicU64);

struct Shared {
    turn: Line,
    lines: Private<[Line]>,
}

/// Waits for its turn, as a poll core does.
fn wait(turn: &AtomicU64, until: u64) {
    while turn.load(Ordering::Acquire) != until {}
}

/// Nanoseconds: a line there and back; a line of many that the other core wrote, read and written.
struct Crossing {
    round_trip: f64,
    read: f64,
    write: f64,
}

/// One round: in each lap, the second core writes all lines, and the first reads or writes them all.
fn crossing(shared: &Shared, cores: &[core_affinity::CoreId]) -> Crossing {
    let Shared { turn: Line(turn), lines } = shared;
    // Nanoseconds of `work` in a lap, and of a lap.
    let laps = |work: &(dyn Fn() + Sync), other: &(dyn Fn() + Sync)| {
        turn.store(0, Ordering::Release);
        let (mut spent, mut all) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                core_affinity::set_for_current(cores[1]);
                for lap in 0..LAPS {
                    wait(turn, 2 * lap);
                    other();
                    turn.store(2 * lap + 1, Ordering::Release);
                }
            });
            core_affinity::set_for_current(cores[0]);
            wait(turn, 1);
            let begin = Instant::now();
            for lap in 0..LAPS {
                wait(turn, 2 * lap + 1);
                let since = Instant::now();
                work();
                spent += since.elapsed().as_nanos() as u64;
                turn.store(2 * lap + 2, Ordering::Release);
            }
            all = begin.elapsed().as_nanos() as u64;
        });
        (spent as f64 / LAPS as f64, all as f64 / LAPS as f64)
    };
    let write = || lines.iter().for_each(|line| line.0.store(7, Ordering::Relaxed));
    let read = || {
        black_box(lines.iter().map(|line| line.0.load(Ordering::Relaxed)).sum::<u64>());
    };
    let (clock, lap) = laps(&|| (), &|| ());
    // A lap looks at the clock twice, once before and once after the time it finds.
    let round_trip = lap - 2.0 * clock;
    let each = |spent: f64| (spent - clock).max(0.0) / LINES as f64;
    Crossing { round_trip, read: each(laps(&read, &write).0), write: each(laps(&write, &write).0) }
}

/// Nanoseconds to copy a frame, in turn from each buffer of a ring into that of another.
fn copy(frame: u32) -> Outcome<f64> {
    let stride = u64::from(frame).max(2048).next_multiple_of(64);
    let (map, _) = Map::shared_or_base((2 * RING * stride) as usize, Backing::default())?;
    let lender = Lender::new(Table::of(map));
    let lend = |i: u64| lender.lend_writable(i * stride, frame, 0);
    let mut bufs: Vec<Buf> = (0..2 * RING).map(lend).collect::<Result<_, _>>()?;
    let (from, to) = bufs.split_at_mut(RING as usize);
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let since = Instant::now();
        for _ in 0..20 {
            for (from, to) in from.iter().zip(to.iter_mut()) {
                black_box(from.copy_to(to));
            }
        }
        best = best.min(since.elapsed().as_nanos() as f64 / (20.0 * RING as f64));
    }
    for buf in bufs {
        lender.settle(buf.finish(0));
    }
    Ok(best)
}

fn main() -> Outcome {
    let cores = core_affinity::get_core_ids().filter(|ids| ids.len() > 1).ok_or("it takes two cores")?;
    let lines = Private::from_fn(LINES, |_| Line(AtomicU64::new(0)));
    let shared = Shared { turn: Line(AtomicU64::new(0)), lines };
    let mut rounds: Vec<Crossing> = (0..ROUNDS).map(|_| crossing(&shared, &cores)).collect();
    rounds.sort_by(|a, b| a.round_trip.total_cmp(&b.round_trip));
    let (least, middle) = (&rounds[0], &rounds[ROUNDS / 2]);
    println!("round trip of a line: least {:.0} ns, median {:.0} ns", least.round_trip, middle.round_trip);
    println!("a line of many: {:.1} ns to read, {:.1} ns to write\n", least.read, least.write);
    // A line of a packed ring is read and then written; it holds four descriptors.
    let packed = (least.read + least.write) / 4.0;
    println!("{:>7} {:>9}  {:>22} {:>22}  {:>22} {:>22}", "", "", "dequeue", "", "loop, guests", "");
    println!(
        "{:>7} {:>9}  {:>22} {:>22}  {:>22} {:>22}",
        "bytes", "copy, ns", "split: ns (Mpps)", "packed: ns (Mpps)", "split: ns (Mpps)", "packed: ns (Mpps)"
    );
    let cell = |ns: f64| format!("{ns:.1} ({:.1})", 1000.0 / ns);
    for frame in FRAMES {
        let copy = copy(frame)?;
        println!(
            "{frame:>7} {copy:>9.1}  {:>22} {:>22}  {:>22} {:>22}",
            "-",
            cell(packed),
            cell(copy),
            cell(copy + 2.0 * packed)
        );
    }
    Ok(())
}
