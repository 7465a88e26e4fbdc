//! Whether a NIC should read a guest's frames where they are, or copies of them: what a frame costs the
//! core either way, by its size, and with it where the copy break lies.
//!
//! A vhost queue lends the frames of a guest. A stand-in for a NIC takes a descriptor for each (address and
//! length), keeps hundreds of them, and completes them later, out of order, block by block. *Zero copy*
//! hands it the guest's buffers, whose receipts come home then. *Copy* copies each frame into a pool's
//! buffer, gives the guest its own back at once, and hands on the copy. The frames take more room than the
//! second-level cache has, as after another core wrote them. The guest's side is part of both.
//!
//! `cargo bench -p benches --bench zero_copy`

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use benches::{Near, ring_bytes};
use hugepages::{Backing, Buf, Loan, Map, Pool, Table};
use pmd::port::vhost::local;
use pmd::spec::net::HDR_LEN;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vring::{AnyVring, Way};
use pmd::{Batch, Queue};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const SIZE: u16 = 1024;
const BURST: u16 = 32;
/// Frames that the NIC keeps before it completes a block of [`BURST`].
const DEPTH: usize = 256;
const BURSTS: u32 = 400;
const ROUNDS: u32 = 60;
const FRAMES: [u32; 9] = [60, 124, 188, 252, 508, 1024, 1514, 4096, 9000];

/// Takes descriptors, completes them later and out of order.
struct Nic {
    descriptors: Vec<(u64, u32)>,
    at: usize,
    under_way: VecDeque<Buf>,
}

impl Nic {
    fn take(&mut self, buf: Buf) {
        let n = self.descriptors.len();
        self.descriptors[self.at % n] = (buf.iova(), buf.len());
        self.at += 1;
        self.under_way.push_back(buf);
    }

    /// A block of the oldest, from its last to its first.
    fn complete(&mut self, done: &mut Batch<Loan>) {
        if self.under_way.len() >= DEPTH {
            self.under_way.drain(..usize::from(BURST)).rev().for_each(|buf| done.push(buf.finish(0)));
        }
    }
}

/// A guest that sends frames of one size, the queue they come from, and a NIC.
struct Rig {
    guest: Near,
    queue: Box<dyn Queue>,
    pool: Pool,
    nic: Nic,
    batch: Batch<Buf>,
    done: Batch<Loan>,
    returned: u64,
}

impl Rig {
    fn new(frame: u32, packed: bool) -> Outcome<Rig> {
        let features = F_VERSION_1 | if packed { F_RING_PACKED } else { 0 };
        let rings = ring_bytes(SIZE);
        let stride = u64::from(frame + HDR_LEN).max(2048).next_multiple_of(64);
        let (map, _) = Map::shared_or_base((rings + u64::from(SIZE) * stride) as usize, Backing::default())?;
        let table = Table::of(map);
        let buffers = (rings, stride, frame + HDR_LEN);
        let mut guest = Near::new(&table, 0, SIZE, features, Way::FromDriver, buffers);
        let ring = AnyVring::open(&guest.layout, &table)?;
        let mut queue = local("zero_copy", features, Some(ring), None)?;
        let (pool, _) = Pool::new(2 * DEPTH, frame, Backing::default())?;
        let nic =
            Nic { descriptors: vec![(0, 0); 512], at: 0, under_way: VecDeque::with_capacity(2 * DEPTH) };
        let (batch, mut done) = (Batch::new(usize::from(BURST)), Batch::default());
        queue.reap(&mut done);
        // What the NIC keeps, and as much again, so that the ring never runs dry.
        guest.offer(2 * DEPTH as u16);
        Ok(Rig { guest, queue, pool, nic, batch, done, returned: 0 })
    }

    /// A burst from the guest to the NIC, and what comes home.
    fn turn(&mut self, copy: bool) {
        let Rig { guest, queue, pool, nic, batch, done, returned } = self;
        queue.rx(batch);
        while let Some(buf) = batch.pop_front() {
            if copy {
                let mut ours = pool.take().expect("twice as many as the NIC keeps");
                ours.truncate(buf.len());
                buf.copy_to(&mut ours);
                done.push(buf.finish(0));
                nic.take(ours);
            } else {
                nic.take(buf);
            }
        }
        queue.settle(done);
        nic.complete(done);
        pool.settle_front(done);
        queue.settle(done);
        queue.reap(done);
        assert!(done.is_empty(), "every receipt has its owner");
        let n = guest.used(SIZE);
        guest.offer(n);
        *returned += u64::from(n);
    }
}

/// Nanoseconds a frame, the least of many rounds: zero copy, copy.
fn cost(frame: u32, packed: bool) -> Outcome<[f64; 2]> {
    let mut best = [f64::MAX; 2];
    for _ in 0..ROUNDS {
        for copy in [false, true] {
            let mut rig = Rig::new(frame, packed)?;
            (0..64).for_each(|_| rig.turn(copy));
            let (before, since) = (rig.returned, Instant::now());
            (0..BURSTS).for_each(|_| rig.turn(copy));
            let ns = since.elapsed().as_nanos() as f64 / (rig.returned - before) as f64;
            best[usize::from(copy)] = best[usize::from(copy)].min(ns);
        }
    }
    Ok(best)
}

fn main() -> Outcome {
    println!("{:>7}  {:>24}  {:>24}", "", "split: ns a frame", "packed: ns a frame");
    println!(
        "{:>7}  {:>9} {:>6} {:>7}  {:>9} {:>6} {:>7}",
        "bytes", "zero copy", "copy", "ratio", "zero copy", "copy", "ratio"
    );
    for frame in FRAMES {
        let ([zero, copy], [packed_zero, packed_copy]) = (cost(frame, false)?, cost(frame, true)?);
        println!(
            "{frame:>7}  {zero:>9.1} {copy:>6.1} {:>7.2}  {packed_zero:>9.1} {packed_copy:>6.1} {:>7.2}",
            copy / zero,
            packed_copy / packed_zero
        );
    }
    Ok(())
}
