//! What an idle switch costs, and how fast it wakes: a worker that may sleep, with vhost ports on it to
//! which `virtio_user` ports of this process are connected, each over its socket.
//!
//! For each number of ports: the share of a core that the worker's thread takes in some seconds in which
//! nothing arrives, and how long after a driver began to send a lone packet (kick included) to a port
//! chosen by chance the worker had received it, and the driver had it back. Beside it, what the machine
//! takes at least: a thread that waits in poll(2) for an eventfd, and says that it is awake.
//!
//! The worker is on the first core, the drivers are on the second.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Loan, PageSize, Pool};
use pmd::port::vhost::{self, Vhost};
use pmd::port::virtio_user::{self, VirtioUser};
use pmd::vhost::{Server, Socket};
use pmd::worker::{Config, Outbox, QueueId, Stage, Worker, WorkerHandle};
use pmd::{Batch, Port, Queue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// As testpmd's `--idle-sleep`.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
const QUIET: Duration = Duration::from_secs(5);
const WAKES: usize = 1000;
const NAME: &str = "sleepy";

/// Sends every packet back where it came from.
struct Back;

impl Stage for Back {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(from, batch);
    }
}

/// A vhost port on the worker and its driver.
struct Pair {
    vhost: Vhost,
    user: VirtioUser,
    driver: Box<dyn Queue>,
}

impl Pair {
    fn new(i: u16, packed: bool, server: &Server, worker: &WorkerHandle) -> Outcome<Pair> {
        let path = std::env::temp_dir().join(format!("hotring-idle-{}-{i}.sock", std::process::id()));
        let listen = vhost::Config::new(Socket::Listen(path.clone()));
        let mut vhost = Vhost::new(&format!("vhost{i}"), listen, &server.handle())?;
        worker.attach(QueueId(i), vhost.start(1)?.pop().ok_or("no queue")?)?;
        let backing = Backing { page: PageSize::Base, node: None };
        let config = virtio_user::Config { path, packed, queue_size: 64, backing, ..Default::default() };
        let mut user = VirtioUser::new(&format!("virtio_user{i}"), config)?;
        let driver = user.start(1)?.pop().ok_or("no queue")?;
        Ok(Pair { vhost, user, driver })
    }
}

/// Nanoseconds that the thread of this name has run.
fn cpu_time(name: &str) -> Outcome<u64> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim() == name {
            let times = std::fs::read_to_string(task.join("schedstat"))?;
            return Ok(times.split(' ').next().unwrap_or_default().parse()?);
        }
    }
    Err(format!("no thread {name}").into())
}

/// Numbers by chance (SplitMix64).
fn chance(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 29)
}

/// A pause after which the other side sleeps for certain: 2 to 6 ms.
fn pause(state: &mut u64) {
    std::thread::sleep(Duration::from_micros(2000 + chance(state) % 4000));
}

/// Microseconds at some percentiles.
fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    print!("  {what:<28}");
    for (name, permille) in [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999)] {
        let at = (times.len() * permille).div_ceil(1000).saturating_sub(1);
        print!("  {name} {:>7.1}", times[at].as_nanos() as f64 / 1e3);
    }
    println!("  most {:>7.1} us", times[times.len() - 1].as_nanos() as f64 / 1e3);
}

/// Sends one packet; the times after which the worker and the driver received it.
fn wake(pair: &mut Pair, received: impl Fn() -> u64, pool: &mut Pool) -> Outcome<(Duration, Duration)> {
    let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    let mut buf = pool.take().ok_or("a frame is not back")?;
    buf.truncate(60);
    batch.push(buf);
    let before = received();
    let since = Instant::now();
    if pair.driver.tx(&mut batch) == 0 {
        return Err("the ring is full, or not there".into());
    }
    while received() == before {
        if since.elapsed() > Duration::from_secs(8) {
            return Err("a packet was not received".into());
        }
    }
    let served = since.elapsed();
    while pair.driver.rx(&mut batch) == 0 {}
    let back = since.elapsed();
    batch.finish_front(1, &mut loans);
    pair.driver.settle(&mut loans);
    pair.driver.reap(&mut loans);
    while let Some(loan) = loans.pop_front() {
        pool.settle(loan);
    }
    Ok((served, back))
}

fn measure(ports: u16, packed: bool) -> Outcome {
    let config =
        Config { name: NAME.into(), core: Some(0), idle_sleep: Some(LONGEST_SLEEP), ..Config::default() };
    let worker = Worker::spawn(config, Box::new(Back))?;
    let server = Server::start()?;
    let mut pairs = Vec::new();
    for i in 0..ports {
        pairs.push(Pair::new(i, packed, &server, &worker)?);
    }
    worker.start()?;
    // The rings are taken in: by the queues of the worker, and by the drivers.
    std::thread::sleep(Duration::from_millis(50));
    for pair in &mut pairs {
        pair.driver.reap(&mut Batch::default());
        pair.driver.rx(&mut Batch::default());
    }
    std::thread::sleep(Duration::from_millis(50));
    let layout = if packed { "packed" } else { "split" };
    let (ran, since, sleeps) = (cpu_time(NAME)?, Instant::now(), worker.counters().sleeps.get());
    std::thread::sleep(QUIET);
    let share = (cpu_time(NAME)? - ran) as f64 / since.elapsed().as_nanos() as f64;
    let sleeps = worker.counters().sleeps.get() - sleeps;
    println!("{ports} ports, {layout}: idle {:.3} % of a core, {sleeps} sleeps in {QUIET:?}", share * 100.0);
    let (mut pool, _) = Pool::new(4, 2048, Backing { page: PageSize::Base, node: None })?;
    let (mut served, mut back, mut state) = (Vec::new(), Vec::new(), 1);
    for _ in 0..WAKES {
        pause(&mut state);
        let i = (chance(&mut state) % u64::from(ports)) as u16;
        let stream = worker.stream(QueueId(i)).ok_or("attached")?;
        let (there, round) = wake(&mut pairs[usize::from(i)], || stream.rx_packets.get(), &mut pool)?;
        served.push(there);
        back.push(round);
    }
    print("kick to served", served);
    print("kick to back at the driver", back);
    for (i, mut pair) in (0..).zip(pairs) {
        pair.user.stop(vec![pair.driver])?;
        pair.vhost.stop(vec![worker.recall(QueueId(i), Duration::from_secs(1))?])?;
    }
    Ok(())
}

/// The least that a wake-up takes here.
fn floor() -> Outcome {
    let fd = Arc::new(eventfd(0, EventfdFlags::NONBLOCK)?);
    let (awake, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    let sleeper = std::thread::spawn({
        let (fd, awake, stop) = (Arc::clone(&fd), Arc::clone(&awake), Arc::clone(&stop));
        move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
            while !stop.load(Ordering::Relaxed) {
                let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
                awake.fetch_add(1, Ordering::Relaxed);
                let _ = rustix::io::read(&fd, &mut [0u8; 8]);
            }
        }
    });
    let (mut times, mut state) = (Vec::new(), 1);
    for i in 0..WAKES {
        pause(&mut state);
        if i + 1 == WAKES {
            stop.store(true, Ordering::Relaxed);
        }
        let (before, since) = (awake.load(Ordering::Relaxed), Instant::now());
        rustix::io::write(&fd, &1u64.to_ne_bytes())?;
        while awake.load(Ordering::Relaxed) == before {}
        times.push(since.elapsed());
    }
    sleeper.join().expect("it does not panic");
    println!("a bare thread in poll(2)");
    print("eventfd to awake", times);
    Ok(())
}

fn main() -> Outcome {
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    floor()?;
    for ports in [1, 16, 64, 256] {
        for packed in [false, true] {
            measure(ports, packed)?;
        }
    }
    floor()
}
