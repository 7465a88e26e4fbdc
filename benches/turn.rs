//! What ports cost a turn of their core, by how many there are.
//!
//!   idle   nanoseconds a turn with one busy port (`null`, alike in every line) and 0 to 256 idle ones:
//!          vhost queues whose rings have nothing in them
//!   rate   packets a second that vhost queues send back where they came from: one of 1 to 256 busy,
//!          and all of them
//!   cores  the same of two queues on one core, and of two on each of two cores
//!   fair   what is left to a busy queue beside one that idles, one as busy, and one whose guest offers
//!          nothing but chains that are no packets
//!
//! `cargo bench -p benches --bench turn -- rate` runs one of them. In `rate` and `cores` the guests'
//! side runs on the core of their queues, at the beginning of each turn, and is part of what is measured.

use std::error::Error;
use std::time::{Duration, Instant};

use benches::{Near, ring_bytes};
use hugepages::{Backing, Buf, Map, Table};
use pmd::port::null::{self, Null};
use pmd::port::vhost::local;
use pmd::spec::net::F_MRG_RXBUF;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vring::{AnyVring, Way};
use pmd::worker::{Config, Outbox, QueueId, Stage, Worker, WorkerHandle};
use pmd::{Batch, Port, Queue};

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
/// A frame of 60 bytes behind its header.
const SENT: u32 = 72;
const TIME: Duration = Duration::from_millis(200);
const RUNS: u32 = 5;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Part = (&'static str, fn() -> Outcome);

/// The guest's side of a queue pair: transmit and receive ring.
struct Guest {
    rings: [Near; 2],
}

impl Guest {
    /// Offers again what was used.
    fn turn(&mut self) {
        for ring in &mut self.rings {
            let used = ring.used(SIZE);
            if used > 0 {
                ring.offer(used);
            }
        }
    }
}

/// A queue pair in a huge page of its own. `page`: where in it the rings begin, in pages of 4 KiB.
fn guest(page: u64, packed: bool) -> Outcome<(Box<dyn Queue>, Guest)> {
    guest_of(page, packed, SENT)
}

/// The same, with `sent` bytes in each chain that it sends.
fn guest_of(page: u64, packed: bool, sent: u32) -> Outcome<(Box<dyn Queue>, Guest)> {
    let features = F_VERSION_1 | F_MRG_RXBUF | if packed { F_RING_PACKED } else { 0 };
    let (ring, buffers) = (ring_bytes(SIZE), u64::from(SIZE) * BUFFER);
    let start = page % 128 * 4096;
    let end = start + 2 * (ring + buffers);
    let (map, _) = Map::shared_or_base(end as usize, Backing::default())?;
    let table = Table::of(map);
    let at = |i: u64, way, len| {
        let buffers = (start + 2 * ring + i * buffers, BUFFER, len);
        Near::new(&table, start + i * ring, SIZE, features, way, buffers)
    };
    let rings = [at(0, Way::FromDriver, sent), at(1, Way::ToDriver, BUFFER as u32)];
    let open = |near: &Near| AnyVring::open(&near.layout, &table);
    let queue = local("guest", features, Some(open(&rings[0])?), Some(open(&rings[1])?))?;
    Ok((queue, Guest { rings }))
}

/// Pages as guests have them: anywhere.
fn anywhere(i: u16) -> u64 {
    u64::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57
}

/// Sends packets to the queue beside the one they came from (`cross`) or back, and plays the guests.
struct Back {
    guests: Vec<Guest>,
    cross: u16,
}

impl Stage for Back {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(QueueId(from.0 ^ self.cross), batch);
    }

    fn tick(&mut self, _: &mut Outbox) -> bool {
        self.guests.iter_mut().for_each(Guest::turn);
        false
    }
}

struct Drop;

impl Stage for Drop {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.drop_all(batch);
    }
}

/// The least time that one of a count took, in several runs of [`TIME`], in nanoseconds.
fn least(mut count: impl FnMut() -> u64) -> f64 {
    std::thread::sleep(TIME / 4);
    let run = |_| {
        let (before, since) = (count(), Instant::now());
        std::thread::sleep(TIME);
        since.elapsed().as_nanos() as f64 / (count() - before) as f64
    };
    (0..RUNS).map(run).fold(f64::MAX, f64::min)
}

/// Nanoseconds a turn with `n` idle ports.
fn turn(n: u16, packed: bool, page: fn(u16) -> u64) -> Outcome<f64> {
    let worker = Worker::spawn(Config { core: Some(0), ..Config::default() }, Box::new(Drop))?;
    let mut busy = Null::new("busy", null::Config::default())?;
    worker.attach(QueueId(0), busy.start(1)?.pop().ok_or("no queue")?)?;
    let mut guests = Vec::new();
    for i in 0..n {
        let (queue, guest) = guest(page(i), packed)?;
        worker.attach(QueueId(i + 1), queue)?;
        guests.push(guest);
    }
    worker.start()?;
    let best = least(|| worker.counters().turns.get());
    worker.stop(Duration::from_secs(1))?;
    Ok(best)
}

fn idle() -> Outcome {
    println!("\nidle ports: ns a turn, ns for each");
    println!("{:>5}  {:>16}  {:>16}  {:>22}", "idle", "split", "packed", "split, all at one place");
    let base = turn(0, false, anywhere)?;
    for n in [0, 1, 4, 16, 64, 256] {
        let each = |turn: f64| if n == 0 { 0.0 } else { (turn - base) / f64::from(n) };
        let (split, packed) = (turn(n, false, anywhere)?, turn(n, true, anywhere)?);
        let place = turn(n, false, |_| 0)?;
        println!(
            "{n:>5}  {split:>9.1} {:>6.2}  {packed:>9.1} {:>6.2}  {place:>15.1} {:>6.2}",
            each(split),
            each(packed),
            each(place)
        );
    }
    Ok(())
}

/// A worker whose first `busy` of `n` queues send packets back (or across), and those queues' ids.
fn looping(core: usize, (busy, n): (u16, u16), packed: bool, cross: u16) -> Outcome<WorkerHandle> {
    let (mut queues, mut busy_guests, mut idle_guests) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..n {
        let (queue, mut guest) = guest(anywhere(i), packed)?;
        queues.push(queue);
        if i < busy {
            guest.rings.iter_mut().for_each(|ring| ring.offer(SIZE));
            busy_guests.push(guest);
        } else {
            idle_guests.push(guest);
        }
    }
    let stage = Back { guests: busy_guests, cross };
    let worker = Worker::spawn(Config { core: Some(core), ..Config::default() }, Box::new(stage))?;
    for (i, queue) in (0..).zip(queues) {
        worker.attach(QueueId(i), queue)?;
    }
    Ok(worker)
}

fn sent(worker: &WorkerHandle) -> u64 {
    (0..256).filter_map(|i| worker.stream(QueueId(i))).map(|stream| stream.tx_packets.get()).sum()
}

/// Nanoseconds a packet.
fn packet(workers: Vec<WorkerHandle>) -> Outcome<f64> {
    workers.iter().try_for_each(WorkerHandle::start)?;
    let best = least(|| workers.iter().map(sent).sum());
    for worker in workers {
        worker.stop(Duration::from_secs(1))?;
    }
    Ok(best)
}

fn rate() -> Outcome {
    println!("\nframes of 60 bytes sent back: ns a packet, Mpps");
    println!(
        "{:>5}  {:>16}  {:>16}  {:>16}  {:>16}",
        "ports", "split, 1 busy", "all", "packed, 1 busy", "all"
    );
    for n in [1, 16, 64, 256] {
        print!("{n:>5}");
        for (busy, packed) in [(1, false), (n, false), (1, true), (n, true)] {
            let ns = packet(vec![looping(0, (busy, n), packed, 0)?])?;
            print!("  {ns:>9.1} {:>6.2}", 1e3 / ns);
        }
        println!();
    }
    Ok(())
}

fn cores() -> Outcome {
    println!("\ntwo queues a core, packets across: Mpps");
    println!("{:>6}  {:>8}  {:>9}  {:>5}", "", "one core", "two cores", "ratio");
    for (name, packed) in [("split", false), ("packed", true)] {
        let one = packet(vec![looping(0, (2, 2), packed, 1)?])?;
        let two = packet(vec![looping(0, (2, 2), packed, 1)?, looping(1, (2, 2), packed, 1)?])?;
        println!("{name:>6}  {:>8.2}  {:>9.2}  {:>5.2}", 1e3 / one, 1e3 / two, one / two);
    }
    Ok(())
}

/// Mpps of a busy queue beside another whose guest sends chains of `sent` bytes, all the time (`busy`).
fn beside(packed: bool, sent: u32, busy: bool) -> Outcome<f64> {
    let ((first, mut good), (second, mut other)) = (guest(0, packed)?, guest_of(64, packed, sent)?);
    good.rings.iter_mut().for_each(|ring| ring.offer(SIZE));
    if busy {
        other.rings.iter_mut().for_each(|ring| ring.offer(SIZE));
    }
    let stage = Back { guests: vec![good, other], cross: 0 };
    let worker = Worker::spawn(Config { core: Some(0), ..Config::default() }, Box::new(stage))?;
    worker.attach(QueueId(0), first)?;
    worker.attach(QueueId(1), second)?;
    worker.start()?;
    let stream = worker.stream(QueueId(0)).ok_or("no stream")?;
    let ns = least(|| stream.tx_packets.get());
    worker.stop(Duration::from_secs(1))?;
    Ok(1e3 / ns)
}

fn fair() -> Outcome {
    println!("\na busy queue beside another: Mpps, and of what it has beside an idle one");
    for (name, packed) in [("split", false), ("packed", true)] {
        let alone = beside(packed, SENT, false)?;
        println!("{name:>6}  {:<28} {alone:>6.2}", "beside an idle one");
        // A header and nothing behind it.
        for (what, sent) in [("one as busy", SENT), ("one of chains without packets", 12)] {
            let rate = beside(packed, sent, true)?;
            println!("{name:>6}  {what:<28} {rate:>6.2}  {:>4.0} %", 100.0 * rate / alone);
        }
    }
    Ok(())
}

fn main() -> Outcome {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let parts: [Part; 4] = [("idle", idle), ("rate", rate), ("cores", cores), ("fair", fair)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part()?;
        }
    }
    Ok(())
}
