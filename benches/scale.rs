//! What a packet costs as a guest grows: the calls of a vhost queue that sends frames of 60 bytes back,
//! guest's side included, all on one core, in bursts of 32. Nanoseconds a packet, the least of many rounds.
//!
//!   regions  the guest's memory in 1 to 509 regions: all buffers in one, or every buffer in one chosen by
//!            chance
//!   pairs    one port with 1 to 128 queue pairs, all busy in turns, and a `virtio_user` port that is
//!            connected to it over its socket
//!
//! `cargo bench -p benches --bench scale -- regions` runs one of them.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::{Near, ring_bytes};
use hugepages::table::MAX_REGIONS;
use hugepages::{Backing, Buf, Loan, Map, Pool, Region, Table};
use pmd::port::vhost::{self, Vhost, local};
use pmd::port::virtio_user::{self, VirtioUser};
use pmd::spec::net::F_MRG_RXBUF;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vhost::{Server, Socket};
use pmd::vring::{AnyVring, Way};
use pmd::{Batch, Port, Queue};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Part = (&'static str, fn() -> Outcome);

const SIZE: u16 = 256;
const BURST: u16 = 32;
const BUFFER: u64 = 2048;
const PAGE: u64 = 4096;
/// Pages of buffers: one or more in each region.
const PAGES: u64 = 2 * MAX_REGIONS as u64;
/// Guest addresses between two regions that are no memory.
const GAP: u64 = 16 * PAGE;
const BURSTS: u32 = 200;
const ROUNDS: u32 = 400;

/// A map of `rings` bytes and [`PAGES`] pages as `n` regions of nearly the same number of pages, the first
/// with the rings before them; and the guest address of a page.
fn table(map: Map, rings: u64, n: u64) -> Outcome<(Arc<Table>, impl Fn(u64) -> u64)> {
    let map = Arc::new(map);
    let first = move |i: u64| i * PAGES / n;
    let gpa = move |page: u64| {
        let i = (0..n).rev().find(|&i| first(i) <= page).expect("the first begins at 0");
        rings + page * PAGE + i * GAP
    };
    let region = |i: u64| {
        let before = if i == 0 { rings } else { 0 };
        let (start, len) = (gpa(first(i)) - before, before + (first(i + 1) - first(i)) * PAGE);
        let at = (rings + first(i) * PAGE - before) as usize;
        Region { gpa: start, len, user: start, map: Arc::clone(&map), at }
    };
    Ok((Arc::new(Table::new((0..n).map(region).collect())?), gpa))
}

/// The same with all pages in the first of `n` regions.
fn together(map: Map, rings: u64, n: u64) -> Outcome<(Arc<Table>, impl Fn(u64) -> u64)> {
    let (others, _) = Map::shared_or_base((n * PAGE) as usize, Backing::default())?;
    let (len, map, others) = (map.len() as u64, Arc::new(map), Arc::new(others));
    let mut regions = vec![Region { gpa: 0, len, user: 0, map, at: 0 }];
    for i in 1..n {
        let (gpa, at, map) = (len + i * GAP, (i * PAGE) as usize, Arc::clone(&others));
        regions.push(Region { gpa, len: PAGE, user: gpa, map, at });
    }
    Ok((Arc::new(Table::new(regions)?), move |page| rings + page * PAGE))
}

/// Nanoseconds a packet with the guest's memory in `n` regions, and its buffers in one or in all of them.
fn regions_of(n: u64, packed: bool, scatter: bool) -> Outcome<f64> {
    let rings = 2 * ring_bytes(SIZE);
    let (map, _) = Map::shared_or_base((rings + PAGES * PAGE) as usize, Backing::default())?;
    if scatter {
        let (table, gpa) = table(map, rings, n)?;
        there_and_back(packed, &table, gpa)
    } else {
        let (table, gpa) = together(map, rings, n)?;
        there_and_back(packed, &table, gpa)
    }
}

/// Nanoseconds a packet with buffers in all pages, whose guest addresses `gpa` tells.
fn there_and_back(packed: bool, table: &Arc<Table>, gpa: impl Fn(u64) -> u64) -> Outcome<f64> {
    let features = F_VERSION_1 | F_MRG_RXBUF | if packed { F_RING_PACKED } else { 0 };
    let near = |at, way, len| Near::new(table, at, SIZE, features, way, (0, 0, len));
    let mut transmit = near(0, Way::FromDriver, 72);
    let mut receive = near(ring_bytes(SIZE), Way::ToDriver, BUFFER as u32);
    // A permutation of the buffers, the same for every number of regions.
    let slots = PAGES * PAGE / BUFFER;
    let place = |i: u64| {
        let slot = (i * 1_000_003 + 17) % slots;
        gpa(slot * BUFFER / PAGE) + slot * BUFFER % PAGE
    };
    transmit.scatter(|i| place(u64::from(i)));
    receive.scatter(|i| place(u64::from(i + SIZE)));
    let open = |near: &Near| AnyVring::open(&near.layout, table);
    let mut queue = local("scattered", features, Some(open(&transmit)?), Some(open(&receive)?))?;
    let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    queue.reap(&mut loans);
    let mut burst = || {
        transmit.offer(BURST);
        receive.offer(BURST);
        let n = queue.rx(&mut batch);
        assert_eq!((n, queue.tx(&mut batch)), (usize::from(BURST), usize::from(BURST)));
        queue.reap(&mut loans);
        queue.settle(&mut loans);
        assert_eq!((transmit.used(SIZE), receive.used(SIZE)), (BURST, BURST));
    };
    let round = |_| {
        let since = Instant::now();
        (0..BURSTS).for_each(|_| burst());
        since.elapsed().as_nanos() as f64 / f64::from(BURSTS * u32::from(BURST))
    };
    Ok((0..ROUNDS).map(round).fold(f64::MAX, f64::min))
}

fn regions() -> Outcome {
    println!("\nmemory in so many regions, all buffers in one, and in all by chance: ns a packet");
    println!(
        "{:>7}  {:>6}  {:>6}  {:>12}  {:>13}",
        "regions", "split", "packed", "split, all", "packed, all"
    );
    for n in [1, 2, 8, 64, MAX_REGIONS as u64] {
        let [split, packed] = [false, true].map(|packed| regions_of(n, packed, false));
        let [split_all, packed_all] = [false, true].map(|packed| regions_of(n, packed, true));
        println!("{n:>7}  {:>6.1}  {:>6.1}  {:>12.1}  {:>13.1}", split?, packed?, split_all?, packed_all?);
    }
    Ok(())
}

/// Nanoseconds a packet from driver to device and back with `n` queue pairs in turns.
fn busy_pairs(n: u16, packed: bool) -> Outcome<f64> {
    let path = std::env::temp_dir().join(format!("hotring-scale-{}.sock", std::process::id()));
    let server = Server::start()?;
    let listen = vhost::Config { queues: n, ..vhost::Config::new(Socket::Listen(path.clone())) };
    let mut vhost = Vhost::new("vhost0", listen, &server.handle())?;
    let mut devices = vhost.start(n)?;
    let config = virtio_user::Config { path, queues: n, packed, ..Default::default() };
    let mut user = VirtioUser::new("virtio_user0", config)?;
    let mut drivers = user.start(n)?;
    let (mut pool, _) = Pool::new(2 * usize::from(BURST), 2048, Backing::default())?;
    let (mut batch, mut loans) = (Batch::new(usize::from(BURST)), Batch::<Loan>::default());
    let mut burst = |device: &mut dyn Queue, driver: &mut dyn Queue| {
        while batch.len() < usize::from(BURST) {
            let mut buf = pool.take().expect("receipts come at once");
            buf.truncate(60);
            batch.push(buf);
        }
        driver.tx(&mut batch);
        driver.reap(&mut loans);
        // What was not taken, before the rings are there.
        while let Some(buf) = batch.pop_front() {
            loans.push(buf.finish(0));
        }
        while let Some(loan) = loans.pop_front() {
            pool.settle(loan);
        }
        device.rx(&mut batch);
        device.tx(&mut batch);
        device.reap(&mut loans);
        device.settle(&mut loans);
        let n = driver.rx(&mut batch);
        batch.finish_front(n, &mut loans);
        driver.settle(&mut loans);
        n
    };
    let (mut best, mut rounds, since) = (f64::MAX, 0, Instant::now());
    let laps = BURSTS.div_ceil(n.into());
    let all = laps as usize * usize::from(n) * usize::from(BURST);
    while rounds < ROUNDS / 4 {
        let (start, mut packets) = (Instant::now(), 0);
        for _ in 0..laps {
            packets +=
                devices.iter_mut().zip(&mut drivers).map(|(a, b)| burst(&mut **a, &mut **b)).sum::<usize>();
        }
        if packets == all {
            rounds += 1;
            best = best.min(start.elapsed().as_nanos() as f64 / packets as f64);
        } else if since.elapsed() > Duration::from_secs(20) {
            return Err(format!("{packets} of {all} packets come back").into());
        }
    }
    user.stop(drivers)?;
    vhost.stop(devices)?;
    Ok(best)
}

fn pairs() -> Outcome {
    println!("\nso many queue pairs of one port, all busy: ns a packet there and back, driver included");
    println!("{:>5}  {:>6}  {:>6}", "pairs", "split", "packed");
    for n in [1, 2, 8, 32, 128] {
        println!("{n:>5}  {:>6.1}  {:>6.1}", busy_pairs(n, false)?, busy_pairs(n, true)?);
    }
    Ok(())
}

fn main() -> Outcome {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let parts: [Part; 2] = [("regions", regions), ("pairs", pairs)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part()?;
        }
    }
    Ok(())
}
