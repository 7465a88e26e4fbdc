//! What a neighbour on the same core keeps of its rate while one port has its front-end or its guest storm. Not a
//! test but a run, by hand: `scripts/fairness`.
//!
//! The neighbour's guest is played on the core itself, so that only the core is shared. Storm and calm take turns.
//! What is counted are packets in a second of the core's thread: what else runs on the machine, the storm's own
//! threads too, takes nothing from it.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hugepages::{Backing, Batch, Buf, Map, PageSize, Table};
use pmd::port::vhost::{Config, Vhost, local};
use pmd::spec::vhost_user::iotlb::{INVALIDATE, READ, UPDATE, WRITE};
use pmd::spec::vhost_user::{IotlbMsg, id};
use pmd::spec::virtio as v;
use pmd::vhost::{Server, Socket};
use pmd::vring::driver::{Areas, Packed, Ring, Segment, Split};
use pmd::vring::{AnyVring, Way};
use pmd::worker::{self, Outbox, QueueId, Worker};
use pmd::{Port, Queue};
use zerocopy::IntoBytes;

use crate::front::{Front, message};
use crate::guest::{FRAMES, GUEST, Guest, HDR, MEMORY, PACKED, SPLIT, USER, state};

const SIZE: u16 = 256;
const ROOM: u64 = 2048;
/// Of storm or calm, and how many of both.
const SPELL: Duration = Duration::from_millis(400);
const SPELLS: u32 = 6;

/// A guest that sends all that its ring holds, again and again.
struct Player<R> {
    rings: [R; 2],
    at: [u64; 2],
}

impl<R: Ring> Player<R> {
    fn new(features: u64) -> (Player<R>, Box<dyn Queue>) {
        let backing = Backing { page: PageSize::Base, node: None };
        let table = Table::of(Map::shared(4 << 20, backing).unwrap());
        let receive = Areas::at(0, SIZE, features, 0);
        let transmit = Areas::at(receive.end + 4096, SIZE, features, 0);
        let rings = [&receive, &transmit].map(|areas| R::open(areas, &table).unwrap());
        let open = |areas: &Areas, way| AnyVring::open(&areas.ring(way), &table).unwrap();
        let (from, to) = (open(&transmit, Way::FromDriver), open(&receive, Way::ToDriver));
        let queue = local("neighbour", features, Some(from), Some(to)).unwrap();
        (Player { rings, at: [1 << 20, 2 << 20] }, queue)
    }

    fn turn(&mut self) {
        for (i, ring) in self.rings.iter_mut().enumerate() {
            while ring.used().unwrap().is_some() {}
            for _ in 0..ring.free() {
                let slot = self.at[i] / ROOM % u64::from(SIZE);
                let addr = ((i as u64 + 1) << 20) + slot * ROOM;
                let segment =
                    if i == 0 { Segment::write(addr, ROOM as u32) } else { Segment::read(addr, HDR + 60) };
                ring.add(&[segment]).unwrap();
                self.at[i] += ROOM;
            }
            let _ = ring.publish();
        }
    }
}

/// Sends packets back, and plays the neighbour's guest.
struct Back<R>(Player<R>);

impl<R: Ring + 'static> worker::Stage for Back<R> {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(from, batch);
    }

    fn tick(&mut self, _: &mut Outbox) -> bool {
        self.0.turn();
        false
    }
}

/// One act of a storm, on a connection of its own.
type Act = fn(&mut Guest, u64);

fn entry(kind: u8, iova: u64, size: u64) -> IotlbMsg {
    IotlbMsg { iova, size, user: iova - GUEST + USER, perm: READ | WRITE, kind, ..IotlbMsg::default() }
}

fn iotlb(guest: &mut Guest, entry: IotlbMsg) {
    assert_eq!(guest.front.tell(id::IOTLB_MSG, entry.as_bytes(), &[]), Some(true));
}

const STORMS: &[(&str, u64, Act)] = &[
    ("kicks", 0, |guest, _| guest.kick()),
    ("faults, and rings started again", 0, |guest, _| {
        guest.restart();
        guest.offer(1);
    }),
    ("rings stopped and started", 0, |guest, _| guest.restart()),
    ("bursts of runts", 0, |guest, n| {
        // The ring as it is, from its beginning, with chains of no packet.
        if n.is_multiple_of(64) {
            guest.restart();
        }
        guest.burst(100);
    }),
    ("IOTLB invalidations of frames", v::F_ACCESS_PLATFORM, |guest, n| {
        let at = FRAMES + n % 64 * 4096;
        iotlb(guest, entry(INVALIDATE, at, 4096));
        iotlb(guest, entry(UPDATE, at, 4096));
    }),
    ("IOTLB invalidations of rings", v::F_ACCESS_PLATFORM, |guest, _| {
        iotlb(guest, entry(INVALIDATE, GUEST, 4096));
        iotlb(guest, entry(UPDATE, GUEST, 4096));
    }),
    ("messages without an answer", 0, |guest, _| {
        let index = 1u64.to_ne_bytes();
        guest.front.send(&message(id::SET_VRING_CALL, 0, &index), &[guest.call.as_fd()]);
        guest.front.send(&message(id::SET_VRING_ENABLE, 0, &state(1, 1)), &[]);
    }),
    ("new memory tables", 0, |guest, _| assert_eq!(guest.set_memory(), Some(true))),
];

fn started(path: &Path, features: u64) -> Guest {
    let mut guest = Guest::connect(path, features);
    if features & v::F_ACCESS_PLATFORM != 0 {
        iotlb(&mut guest, entry(UPDATE, GUEST, MEMORY));
    }
    guest.start();
    guest.burst(100);
    guest
}

/// How long a thread of this process has run.
fn ran(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let named = |task: &std::path::PathBuf| {
        let comm = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        comm.trim_end() == name.get(..15).unwrap_or(name)
    };
    let task = tasks.into_iter().find(named).expect("the core's thread");
    let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

/// Rates of the neighbour, calm and in the storm, in packets a second of the core; acts a second.
fn measure<R: Ring + 'static>(
    features: u64,
    mut storm: impl FnMut(&Path, u64) + Send,
    path: &Path,
) -> [f64; 3] {
    let (player, queue) = Player::<R>::new(features & !v::F_ACCESS_PLATFORM);
    let backing = Backing { page: PageSize::Base, node: None };
    let config =
        worker::Config { core: Some(0), frames: 256, large_frames: 8, backing, ..Default::default() };
    let core = Worker::spawn(config, Box::new(Back(player))).unwrap();
    let server = Server::start().unwrap();
    let config = Config::new(Socket::Listen(path.to_owned()));
    let mut target = Vhost::new("target", config, &server.handle()).unwrap();
    let stream = core.attach(QueueId(0), queue).unwrap();
    core.attach(QueueId(1), target.start(1).unwrap().pop().unwrap()).unwrap();
    core.start().unwrap();
    let (on, end, acts) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let mut rates = [Duration::ZERO; 2].map(|time| (0u64, time));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut n = 0;
            while !end.load(Ordering::Relaxed) {
                if on.load(Ordering::Relaxed) {
                    storm(path, n);
                    n += 1;
                    acts.store(n, Ordering::Relaxed);
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for spell in 0..2 * SPELLS {
            let storms = spell % 2 == 1;
            on.store(storms, Ordering::Relaxed);
            std::thread::sleep(SPELL / 4);
            let (then, since) = (stream.tx_packets.get(), ran(core.name()));
            std::thread::sleep(SPELL);
            let rate = &mut rates[usize::from(storms)];
            *rate = (rate.0 + stream.tx_packets.get() - then, rate.1 + (ran(core.name()) - since));
        }
        end.store(true, Ordering::Relaxed);
    });
    core.stop(Duration::from_secs(5)).unwrap();
    let [calm, stormy] = rates.map(|(packets, time)| packets as f64 / time.as_secs_f64());
    [calm, stormy, acts.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64() * 2.0]
}

fn run(name: &str, features: u64, storm: impl FnMut(&Path, u64) + Send) {
    let path = std::env::temp_dir().join(format!("hotring-{}-fair", std::process::id()));
    let packed = features & v::F_RING_PACKED != 0;
    let measure = if packed {
        measure::<Packed>(features, storm, &path)
    } else {
        measure::<Split>(features, storm, &path)
    };
    let [calm, stormy, acts] = measure;
    let (layout, share) = (if packed { "packed" } else { "split" }, 100.0 * stormy / calm);
    println!(
        "{layout:>6}  {name:<32} {acts:>10.0}/s  {:>6.2} Mpps, calm {:>6.2}: {share:>4.0} %",
        stormy / 1e6,
        calm / 1e6
    );
}

#[test]
#[ignore = "a measurement: scripts/fairness"]
fn what_a_neighbour_keeps() {
    hugepages::sigbus::install().unwrap();
    for form in [SPLIT, PACKED] {
        for &(name, more, act) in STORMS {
            let mut guest = None;
            run(name, form | more, |path, n| act(guest.get_or_insert_with(|| started(path, form | more)), n));
        }
        run("connections", form, |path, _| drop(Front::connect(path)));
        run("front-ends that come and go", form, |path, _| drop(started(path, form)));
    }
}
