//! The application: ports, cores, and what is set.

mod cores;
mod forward;
mod handover;
mod ports;
mod show;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pmd::port::{Filter, Port, Queue, Stats};
use pmd::worker::cycles;

use crate::Error;
use crate::cli::{Lcore, Options};
use crate::forward::MAX_PORTS;
use crate::ports::Maker;
use crate::text::port::Rate;
use crate::vdev::Vdev;

use cores::Core;
use forward::Run;

/// A port and what is known of it.
struct Slot {
    vdev: Vdev,
    port: Box<dyn Port>,
    /// Queues while it is started; they are on their cores.
    started: Option<u16>,
    /// When its statistics were shown last, and what they were.
    shown: Option<(Instant, Stats)>,
    /// The same for JSON; at first, when forwarding started.
    told: Option<(Instant, Stats)>,
}

/// All of testpmd but its prompt.
pub(crate) struct App {
    /// As given, and as set since.
    pub(crate) options: Options,
    verbose: u16,
    /// Starts without listing what is configured.
    pub(crate) brief: bool,
    lcores: Vec<Lcore>,
    ports: Vec<Option<Slot>>,
    cores: Vec<Core>,
    /// After the ports: it serves their sockets.
    maker: Maker,
    run: Option<Run>,
    /// The last run, for statistics after it.
    last: Option<Run>,
    born: (Instant, u64),
}

/// What goes wrong with a command, in one line.
pub(crate) type Outcome = Result<(), String>;

impl App {
    /// An application on these forwarding cores, without ports.
    pub(crate) fn new(options: Options, lcores: Vec<Lcore>, maker: Maker) -> App {
        let born = (Instant::now(), cycles());
        App {
            options,
            verbose: 0,
            brief: false,
            lcores,
            maker,
            ports: Vec::new(),
            cores: Vec::new(),
            run: None,
            last: None,
            born,
        }
    }

    /// Makes and starts the ports of the command line; those of the process before are taken over.
    ///
    /// # Errors
    /// When one cannot be made or started, or is not handed over.
    pub(crate) fn open(&mut self) -> Result<(), Error> {
        self.claim()?;
        let dpdk = self.options.dpdk.clone().map_or(Ok(Vec::new()), |args| self.maker.dpdk(&args))?;
        for vdev in self.options.vdevs.clone().into_iter().chain(dpdk) {
            self.add(vdev)?;
        }
        self.start_ports(&self.all()).map_err(Error::Usage)
    }

    fn add(&mut self, vdev: Vdev) -> Result<usize, Error> {
        if self.ports.iter().flatten().any(|slot| slot.vdev.name == vdev.name) {
            return Err(Error::Usage(format!("port {} exists already", vdev.name)));
        }
        if self.ports.len() >= MAX_PORTS {
            return Err(Error::Usage(format!("{MAX_PORTS} ports exist, the most there can be")));
        }
        let port = self.maker.make(&vdev, &self.options.rings())?;
        self.ports.push(Some(Slot { vdev, port, started: None, shown: None, told: None }));
        Ok(self.ports.len() - 1)
    }

    /// Numbers of all ports.
    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.ports.len()).filter(|&i| self.ports[i].is_some()).collect()
    }

    /// Numbers of the ports that forward.
    fn forwarding(&self) -> Vec<usize> {
        let most = self.options.nb_ports.map_or(usize::MAX, usize::from);
        self.all().into_iter().take(most).collect()
    }

    fn slot(&self, port: usize) -> &Slot {
        self.ports[port].as_ref().expect("ports are named by `choose` and `all`")
    }

    fn slot_mut(&mut self, port: usize) -> &mut Slot {
        self.ports[port].as_mut().expect("ports are named by `choose` and `all`")
    }

    /// The ports that a word names: a number or `all`.
    ///
    /// # Errors
    /// In testpmd's words, with the ports there are.
    pub(crate) fn choose(&self, word: &str) -> Result<Vec<usize>, String> {
        let all = self.all();
        if word == "all" {
            return Ok(all);
        }
        match word.parse::<usize>() {
            Ok(port) if all.contains(&port) => Ok(vec![port]),
            _ => {
                let valid: Vec<String> = all.iter().map(usize::to_string).collect();
                Err(format!("Invalid port {word}\nThe valid ports array is [ {} ]", valid.join(" ")))
            }
        }
    }

    /// Which frames a port takes; `None`: all, and that cannot be changed.
    pub(crate) fn filter(&self, port: usize) -> Option<Filter> {
        self.slot(port).port.filter()
    }

    /// Has a port take other frames.
    ///
    /// # Errors
    /// When its device cannot.
    pub(crate) fn set_filter(&mut self, port: usize, filter: Filter) -> Outcome {
        self.slot_mut(port).port.set_filter(filter).map_err(|e| e.to_string())
    }

    /// The MAC address of whoever is behind a port.
    fn peer(&self, port: usize) -> [u8; 6] {
        let given = self.options.eth_peer.iter().rev().find(|(p, _)| usize::from(*p) == port);
        given.map_or([2, 0, 0, 0, 0, port as u8], |(_, mac)| *mac)
    }

    /// Sets the level of detail with which packets are printed.
    pub(crate) fn set_verbose(&mut self, level: u16) -> Result<u16, String> {
        let before = std::mem::replace(&mut self.verbose, level);
        self.restage()?;
        Ok(before)
    }

    /// Packets asked of a queue at a time, from now on.
    pub(crate) fn set_burst(&mut self, burst: u16) -> Outcome {
        self.options.burst = burst;
        for core in &self.cores {
            core.worker.set_burst(burst.into()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Whether packets are forwarded.
    pub(crate) fn is_forwarding(&self) -> bool {
        self.run.is_some()
    }

    /// Whether any port is started.
    pub(crate) fn any_started(&self) -> bool {
        self.ports.iter().flatten().any(|slot| slot.started.is_some())
    }

    /// What buffers are made of.
    pub(crate) fn backing(&self) -> hugepages::Backing {
        self.maker.backing()
    }

    /// Most forwarding cores.
    pub(crate) fn max_cores(&self) -> usize {
        self.lcores.len()
    }

    /// Stops everything and takes it apart, as `quit` does. Sockets and interfaces are gone after it.
    ///
    /// # Errors
    /// When a queue does not come home or a port does not stop; the rest is taken apart all the same.
    pub(crate) fn close(&mut self) -> Outcome {
        let mut first = Ok(());
        if self.is_forwarding() {
            first = first.and(self.stop());
        }
        for port in self.all() {
            say(&format!("\nStopping port {port}...\nStopping ports...\n"));
            first = first.and(self.stop_port(port));
            say("Done\n");
        }
        for port in self.all() {
            say(&format!("\nShutting down port {port}...\nClosing ports...\n"));
            self.ports[port] = None;
            say(&format!("Port {port} is closed\nDone\n"));
        }
        self.cores.clear();
        first
    }
}

/// Rates since `last`, which is now; zero the first time.
fn rate(last: &mut Option<(Instant, Stats)>, now: Stats) -> Rate {
    let at = Instant::now();
    match last.replace((at, now)) {
        // Cleared meanwhile: counts began anew.
        Some((_, then)) if now.rx_packets < then.rx_packets || now.tx_packets < then.tx_packets => {
            Rate::default()
        }
        Some((then_at, then)) => Rate::of(now.since(then), at - then_at),
        None => Rate::default(),
    }
}

fn total(port: &dyn Port) -> Stats {
    port.stats().into_iter().fold(Stats::default(), Stats::plus)
}

type Home = Vec<Box<dyn Queue>>;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves standard output to others from now on.
pub(crate) fn hush() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Prints, and lets a reader at the other end of a pipe see it at once.
pub(crate) fn say(text: &str) {
    // Relaxed: set before anything is said.
    if QUIET.load(Ordering::Relaxed) {
        return;
    }
    let mut out = std::io::stdout().lock();
    // Nobody may be listening any more; the forwarding goes on.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
