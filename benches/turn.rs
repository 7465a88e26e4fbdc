//! What idle ports cost: nanoseconds per turn of a worker with one busy port and 0 to 256 idle ones.
//!
//! The busy port (`null`) keeps the loop from pausing and is the same in every line; the idle ones are
//! vhost queues whose rings have nothing in them, split and packed.

use std::error::Error;
use std::time::{Duration, Instant};

use benches::{Near, ring_bytes};
use hugepages::{Backing, Buf, Map, Table};
use pmd::port::null::{self, Null};
use pmd::port::vhost::local;
use pmd::spec::net::F_MRG_RXBUF;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vring::{AnyVring, Way};
use pmd::worker::{Config, Outbox, QueueId, Stage, Worker};
use pmd::{Batch, Port, Queue};

const SIZE: u16 = 256;
const TIME: Duration = Duration::from_millis(200);

struct Drop;

impl Stage for Drop {
    fn burst(&mut self, _from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.drop_all(batch);
    }
}

/// An idle queue pair, and the driver's side that keeps its memory.
fn idle(packed: bool) -> Result<Box<dyn Queue>, Box<dyn Error>> {
    let features = F_VERSION_1 | F_MRG_RXBUF | if packed { F_RING_PACKED } else { 0 };
    let (map, _) = Map::shared_or_base(2 * ring_bytes(SIZE) as usize, Backing::default())?;
    let table = Table::of(map);
    let ring = |at, way| {
        let near = Near::new(&table, at, SIZE, features, way, (0, 0, 64));
        AnyVring::open(&near.layout, &table)
    };
    let (from, to) = (ring(0, Way::FromDriver)?, ring(ring_bytes(SIZE), Way::ToDriver)?);
    Ok(local("idle", features, Some(from), Some(to))?)
}

/// Nanoseconds per turn with `n` idle ports: the least of five runs.
fn measure(n: u16, packed: bool) -> Result<f64, Box<dyn Error>> {
    let worker = Worker::spawn(Config { core: Some(0), ..Config::default() }, Box::new(Drop))?;
    let mut busy = Null::new("busy", null::Config::default())?;
    worker.attach(QueueId(0), busy.start(1)?.pop().ok_or("no queue")?)?;
    for i in 0..n {
        worker.attach(QueueId(i + 1), idle(packed)?)?;
    }
    worker.start()?;
    std::thread::sleep(TIME / 4);
    let mut best = f64::MAX;
    for _ in 0..5 {
        let (turns, since) = (worker.counters().turns.get(), Instant::now());
        std::thread::sleep(TIME);
        let turns = worker.counters().turns.get() - turns;
        best = best.min(since.elapsed().as_nanos() as f64 / turns as f64);
    }
    worker.stop(Duration::from_secs(1))?;
    Ok(best)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:>5}  {:>22}  {:>22}", "idle", "split: ns/turn ns/port", "packed: ns/turn ns/port");
    let base = measure(0, false)?;
    for n in [0, 1, 4, 16, 64, 256] {
        let (split, packed) = (measure(n, false)?, measure(n, true)?);
        let each = |turn: f64| if n == 0 { 0.0 } else { (turn - base) / f64::from(n) };
        println!("{n:>5}  {split:>14.1} {:>7.2}  {packed:>15.1} {:>7.2}", each(split), each(packed));
    }
    Ok(())
}
