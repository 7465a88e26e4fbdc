//! Two `vhost` ports on one core and one control thread: the target, which a case does to what it likes, and
//! its neighbour, whose traffic goes on all the while.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::{Backing, Batch, Buf, PageSize};
use pmd::Port;
use pmd::port::vhost::{Config, Vhost};
use pmd::vhost::{Server, Socket};
use pmd::vring::driver::Packed;
use pmd::worker::{self, Outbox, QueueId, Worker, WorkerHandle};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use pmd::spec::vhost_user::{VringAddr, id};
use zerocopy::IntoBytes;

use crate::device::Device;
use crate::guest::{Clock, FORMS, Guest, PACKED, Traffic, rung};

/// The longest that a frame of the neighbour may be away. It shares two cores with everything else here.
const WORST: Duration = Duration::from_secs(2);

/// One case at a time: descriptors and mappings of the process are counted.
static ONE: Mutex<()> = Mutex::new(());

/// Sends every packet back where it came from; those of the target to a device instead, while one listens.
struct Back {
    device: Option<Device>,
}

const TARGET: QueueId = QueueId(0);
const DEVICE: QueueId = QueueId(u16::MAX / 2);

impl worker::Stage for Back {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let listens = from == TARGET && self.device.as_ref().is_some_and(Device::listens);
        out.send_all(if listens { DEVICE } else { from }, batch);
    }
}

/// Waits until `done`.
#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let mut clock = Clock::new();
    while !done() {
        assert!(clock.look() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What was logged since the last look, at the levels that are there for the user, of all ports.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps lines.
struct Log;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{value:?} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, about: &Metadata<'_>) -> bool {
        *about.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LOG.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Descriptors and shared mappings of this process.
fn holdings() -> Vec<String> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fd.ok()?.path().read_link().ok());
    // Without the numbers of sockets and pipes; and not the directory that is being read.
    let name = |fd: PathBuf| fd.to_str().unwrap().split(":[").next().unwrap().to_owned();
    let fds = fds.map(name).filter(|name| !name.starts_with("/proc/"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains(" rw-s "));
    let maps = maps.map(|line| format!("mapped {}", line.split_once('/').unwrap().1));
    let mut all: Vec<String> = fds.chain(maps).collect();
    all.sort();
    all
}

/// The same when the last front-end has gone for good.
fn steady() -> Vec<String> {
    let (mut last, mut since) = (holdings(), Instant::now());
    while since.elapsed() < Duration::from_millis(50) {
        std::thread::sleep(Duration::from_millis(1));
        let now = holdings();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// What of `now` was not there `before`, as often.
fn more_than(before: &[String], mut now: Vec<String>) -> Vec<String> {
    for one in before {
        if let Some(at) = now.iter().position(|other| other == one) {
            now.remove(at);
        }
    }
    now
}

struct Neighbour {
    stop: Arc<AtomicBool>,
    /// Frames that went round, and the longest that one was away.
    thread: JoinHandle<(u64, Duration)>,
}

impl Neighbour {
    fn start(path: PathBuf) -> Neighbour {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut guest = Guest::connect(&path, PACKED);
            let mut traffic = Traffic::<Packed>::start(&mut guest);
            let (mut frames, mut worst) = (0, Duration::ZERO);
            while !flag.load(Ordering::Relaxed) {
                worst = worst.max(traffic.ping(64));
                frames += 64;
            }
            (frames, worst)
        });
        Neighbour { stop, thread }
    }
}

/// See the module.
pub(crate) struct House {
    pub(crate) path: PathBuf,
    pub(crate) target: Vhost,
    neighbour: Vhost,
    traffic: Option<Neighbour>,
    core: WorkerHandle,
    holdings: Vec<String>,
    server: Server,
    _one: MutexGuard<'static, ()>,
}

impl House {
    pub(crate) fn new(name: &str, edit: impl FnOnce(&mut Config)) -> House {
        House::with(name, edit, None)
    }

    /// The same, with a device beside them on their core.
    pub(crate) fn with(name: &str, edit: impl FnOnce(&mut Config), device: Option<Device>) -> House {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        hugepages::sigbus::install().unwrap();
        // Once for the process.
        let _ = tracing::subscriber::set_global_default(Log);
        let server = Server::start().unwrap();
        let path =
            |which| std::env::temp_dir().join(format!("hotring-{}-{which}-{name}", std::process::id()));
        let mut config = Config::new(Socket::Listen(path("target")));
        edit(&mut config);
        let queues = config.queues;
        let mut target = Vhost::new("target", config, &server.handle()).unwrap();
        let other = Config::new(Socket::Listen(path("neighbour")));
        let mut neighbour = Vhost::new("neighbour", other, &server.handle()).unwrap();
        let backing = Backing { page: PageSize::Base, node: None };
        let config = worker::Config { frames: 256, large_frames: 8, backing, ..Default::default() };
        let core = Worker::spawn(config, Box::new(Back { device: device.clone() })).unwrap();
        let ports = target.start(queues).unwrap().into_iter().chain(neighbour.start(1).unwrap());
        for (i, queue) in ports.enumerate() {
            core.attach(QueueId(i as u16), queue).unwrap();
        }
        if let Some(device) = device {
            core.attach(DEVICE, device.queue()).unwrap();
        }
        core.start().unwrap();
        let mut house = House {
            path: path("target"),
            target,
            neighbour,
            traffic: None,
            core,
            holdings: Vec::new(),
            server,
            _one: one,
        };
        house.traffic = Some(Neighbour::start(path("neighbour")));
        // Threads and their eventfds come at the first use.
        house.serves();
        house.refuses();
        eventually("traffic of the neighbour", || house.neighbour.stats()[0].rx_packets > 100);
        house.serves();
        eventually("rest", || !house.target.link().up);
        house.holdings = steady();
        house
    }

    pub(crate) fn faults(&self) -> u64 {
        self.target.stats().iter().map(|stats| stats.faults).sum()
    }

    /// What was logged of the target since the last look and has one of these words in it.
    pub(crate) fn lines(&self, words: &[&str]) -> Vec<String> {
        let mut lines = std::mem::take(&mut *LOG.lock().unwrap_or_else(PoisonError::into_inner));
        let path = self.path.to_str().unwrap();
        lines.retain(|line| line.contains(path) && words.iter().any(|word| line.contains(word)));
        lines
    }

    /// A ring outside memory is refused, and the front-end told.
    fn refuses(&self) {
        let mut guest = Guest::connect(&self.path, PACKED);
        guest.start();
        let addr = VringAddr { used: 0, ..guest.addr(1) };
        assert_eq!(guest.front.tell(id::SET_VRING_ADDR, addr.as_bytes(), &[]), Some(false));
        assert!(rung(&guest.err));
    }

    /// Well-behaved front-ends are served, one after the other.
    fn serves(&self) {
        for features in FORMS {
            Guest::connect(&self.path, features).ping(20);
        }
    }

    /// The neighbour's frames go round.
    #[track_caller]
    pub(crate) fn stands_beside(&self, what: &str) {
        let frames = || self.neighbour.stats()[0].tx_packets;
        let then = frames();
        eventually(&format!("frames of the neighbour after {what}"), || frames() > then + 64);
    }

    /// The oracle, as far as it can be asked between cases: the neighbour's frames go round, and well-behaved
    /// front-ends of the target are served.
    #[track_caller]
    pub(crate) fn stands(&self, what: &str) {
        self.serves();
        self.stands_beside(what);
        eventually("rest", || !self.target.link().up);
    }

    /// The rest of it: nothing is left behind, and the neighbour has lost nothing.
    #[track_caller]
    pub(crate) fn ends(mut self, what: &str) {
        self.stands(what);
        // What goes, goes some time after its front-end.
        let mut more = Vec::new();
        eventually(&format!("{what}: descriptors and mappings go"), || {
            let now = more_than(&self.holdings, holdings());
            if now != more {
                println!("left after {what}: {now:?}");
                more = now;
            }
            more.is_empty()
        });
        let Neighbour { stop, thread } = self.traffic.take().unwrap();
        stop.store(true, Ordering::Relaxed);
        let (frames, worst) = thread.join().expect("the neighbour lost a frame");
        assert!(worst < WORST, "{what}: a frame of the neighbour was away for {worst:?}");
        let stats = self.neighbour.stats()[0];
        assert_eq!((stats.rx_packets, stats.tx_packets, stats.faults), (frames, frames, 0), "{what}");
        let stopped = self.core.stop(Duration::from_secs(5)).unwrap();
        assert!(stopped.report.clean(), "{what}: {:?}", stopped.report);
        drop((stopped, self.target, self.neighbour, self.server));
    }
}
