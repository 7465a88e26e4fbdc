//! Two guests in this process, for a start without arguments.
//!
//! Nothing is pretended: each guest is the driver's side of a virtio device (`virtio_user`), connected
//! over a unix socket to a `vhost` port, with rings in memory that is passed as a descriptor. The guests
//! send to each other from a core of their own; testpmd forwards between the two ports on another.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::Backing;
use pmd::port::{Port, virtio_user};
use pmd::worker::{Config, Stream, StreamStats, Worker, WorkerHandle};

use crate::Error;
use crate::cli::{Lcore, Mode, Options};
use crate::forward::csum::Checks;
use crate::forward::{Route, Routes, queue_id, stage};
use crate::vdev::Vdev;

/// How long the guests may take to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// How long packets that are on their way are waited for at a time,
const DRAIN: Duration = Duration::from_millis(50);
/// and how often, while any are missing.
const DRAINS: u32 = 20;
/// Descriptors in a ring.
const RING: u16 = 1024;

/// A folder for the sockets, for us alone; removed in the end.
pub(crate) struct Sockets(PathBuf);

impl Sockets {
    /// Makes it.
    ///
    /// # Errors
    /// When the folder for temporary files cannot be written to.
    pub(crate) fn new() -> Result<Sockets, Error> {
        let path = std::env::temp_dir().join(format!("testpmd-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::io(format!("{} (set TMPDIR to another folder)", path.display())))?;
        Ok(Sockets(path))
    }

    fn of(&self, guest: usize) -> PathBuf {
        self.0.join(format!("guest{guest}.sock"))
    }

    /// The ports that the guests connect to.
    ///
    /// # Errors
    /// When the path has a comma in it.
    pub(crate) fn vdevs(&self) -> Result<Vec<Vdev>, Error> {
        (0..2).map(|g| Vdev::parse(&format!("net_vhost{g},iface={}", self.of(g).display()))).collect()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The guests and their core.
pub(crate) struct Guests {
    ports: Vec<virtio_user::VirtioUser>,
    worker: WorkerHandle,
    queues: Vec<Arc<Stream>>,
    /// Counters at the last line.
    then: (Instant, Vec<StreamStats>),
    since: Instant,
    until: Option<Instant>,
    /// After the ports.
    _sockets: Sockets,
}

impl Guests {
    /// Connects two guests to the ports of `sockets`, which are started. They do not send yet.
    ///
    /// # Errors
    /// When a guest cannot be set up or connected.
    pub(crate) fn connect(
        sockets: Sockets,
        core: Option<Lcore>,
        backing: Backing,
        options: &Options,
    ) -> Result<Guests, Error> {
        let make = |g| {
            let config = virtio_user::Config {
                path: sockets.of(g),
                queue_size: RING,
                mtu: options.mtu(),
                mac: Some([2, 0, 0, 0, 1, g as u8]),
                backing,
                ..virtio_user::Config::default()
            };
            virtio_user::VirtioUser::new(&format!("guest{g}"), config)
        };
        let mut ports = (0..2).map(make).collect::<Result<Vec<_>, _>>()?;
        let route = |g: usize| Route {
            from: queue_id(g, 0),
            to: queue_id(g, 0),
            mac: ports[g].mac(),
            peer: ports[1 - g].mac(),
        };
        let routes = Routes::new(vec![route(0), route(1)]);
        let options = Options { forward_mode: Mode::Txonly, txonly_multi_flow: true, ..options.clone() };
        let config = Config {
            name: "guests".into(),
            core: core.map(|c| c.cpu),
            burst: options.burst.into(),
            backing,
            ..Config::default()
        };
        let stage = stage(&options, routes, &Arc::new(Checks::default()), 0);
        let worker = Worker::spawn(config, stage).map_err(|e| Error::Usage(e.to_string()))?;
        let mut queues = Vec::new();
        for (g, port) in ports.iter_mut().enumerate() {
            for queue in port.start(1)? {
                queues.push(worker.attach(queue_id(g, 0), queue).map_err(|e| Error::Usage(e.to_string()))?);
            }
        }
        let deadline = Instant::now() + CONNECT;
        while !ports.iter().all(|p| p.link().up) {
            if Instant::now() >= deadline {
                return Err(Error::Usage("the guests of the demo do not connect; see RUST_LOG=debug".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let now = Instant::now();
        let then = (now, vec![StreamStats::default(); 2]);
        Ok(Guests { ports, worker, queues, then, since: now, until: None, _sockets: sockets })
    }

    /// What the demo is, in two lines.
    pub(crate) fn greeting(&self) -> &'static str {
        "Demo: two guests in this process, over vhost-user; testpmd forwards between them. Ctrl-C ends it.\n\
         For ports of your own: testpmd --help\n"
    }

    /// Lets them send.
    ///
    /// # Errors
    /// When their core is gone.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        self.since = Instant::now();
        self.then.0 = self.since;
        self.worker.start().map_err(|e| Error::Usage(e.to_string()))
    }

    /// Stops their sending, and lets arrive what is on its way.
    pub(crate) fn pause(&mut self) {
        self.until = Some(Instant::now());
        let stop = Options { forward_mode: Mode::Rxonly, ..crate::cli::defaults() };
        let stage = stage(&stop, Routes::default(), &Arc::new(Checks::default()), 0);
        let _ = self.worker.set_stage(stage).and_then(|()| self.worker.read());
        for _ in 0..DRAINS {
            let before = self.stats();
            std::thread::sleep(DRAIN);
            let missing = |g: usize| before[g].tx_packets > before[1 - g].rx_packets;
            if before == self.stats() && !missing(0) && !missing(1) {
                break;
            }
        }
        let _ = self.worker.pause();
    }

    /// The rates since the last line, in one line.
    pub(crate) fn line(&mut self) -> String {
        let now = (Instant::now(), self.stats());
        let (then_at, then) = std::mem::replace(&mut self.then, now);
        let span = (self.then.0 - then_at).as_secs_f64().max(1e-9);
        let rate = |g: usize| self.then.1[g].since(then[g]).rx_packets as f64 / span / 1e6;
        let bytes = self.bytes();
        format!(
            "{:>6.1} s   guest 0 -> guest 1 {:>7.3} Mpps   guest 1 -> guest 0 {:>7.3} Mpps   in all {:>7.3} Mpps{}\n",
            (self.then.0 - self.since).as_secs_f64(),
            rate(1),
            rate(0),
            rate(0) + rate(1),
            if bytes > 0 { format!(" of {bytes} bytes") } else { String::new() },
        )
    }

    /// Bytes of a frame, as received.
    fn bytes(&self) -> u64 {
        let all = self
            .ports
            .iter()
            .flat_map(|p| p.stats())
            .fold((0, 0), |(n, b), s| (n + s.rx_packets, b + s.rx_bytes));
        all.1.checked_div(all.0).unwrap_or(0)
    }

    fn stats(&self) -> Vec<StreamStats> {
        self.queues.iter().map(|q| q.stats()).collect()
    }

    /// What became of their packets.
    pub(crate) fn summary(&self) -> String {
        let stats = self.stats();
        let span = (self.until.unwrap_or_else(Instant::now) - self.since).as_secs_f64();
        let mut out = String::from("\n  Guests\n");
        for (g, to) in [(0, 1), (1, 0)] {
            let (sent, received) = (stats[g].tx_packets, stats[to].rx_packets);
            out += &format!(
                "  guest {g} -> guest {to}: sent {sent}, received {received}, missing {}, {:.3} Mpps; \
                 ring full for {}\n",
                sent.saturating_sub(received),
                received as f64 / span / 1e6,
                stats[g].tx_dropped
            );
        }
        out
    }

    /// Disconnects them.
    ///
    /// # Errors
    /// When a buffer does not come home.
    pub(crate) fn close(mut self) -> Result<(), Error> {
        let mut queues = Vec::new();
        for g in 0..self.ports.len() {
            let queue =
                self.worker.recall(queue_id(g, 0), CONNECT).map_err(|e| Error::Usage(e.to_string()))?;
            queues.push(queue);
        }
        for (port, queue) in self.ports.iter_mut().zip(queues) {
            port.stop(vec![queue])?;
        }
        Ok(())
    }
}
