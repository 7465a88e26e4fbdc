//! All ports and their queue pairs, connected and running.

use std::error::Error;
use std::time::{Duration, Instant};

use std::os::fd::AsFd;

use benches::ring_bytes;
use pmd::spec::net::F_MQ;
use pmd::spec::virtio::F_ANY_LAYOUT;
use pmd::vring::RingLayout;

use crate::args::{Args, Mode};
use crate::frontend::{Door, Frontend};
use crate::lane::Lane;
use crate::memory::Memory;
use crate::run::Run;
use crate::stop::Stop;

/// How long a back-end may take until frames come through it.
const PATIENCE: Duration = Duration::from_secs(10);
/// A back-end through which nothing came for so long has nothing on its way.
const QUIET: Duration = Duration::from_millis(20);

/// What is mostly the matter when nothing comes.
pub(crate) const HINT: &str = "is the back-end forwarding, on as many queues, and as --mode says?";

/// Connections, and the lanes over them: all those of the first port, then those of the second.
pub(crate) struct Rig {
    pub(crate) lanes: Vec<Lane>,
    /// Ports that are connected and idle.
    _idle: Vec<Lane>,
    ports: Vec<Frontend>,
    /// Bytes of the pages that buffers and rings are in.
    pub(crate) page: usize,
}

impl Rig {
    /// Connects all ports and waits until frames come through.
    pub(crate) fn open(doors: &[Door], run: &Run<'_>) -> Result<Rig, Box<dyn Error>> {
        let (args, frame) = (run.args, run.frame);
        let mut rig = Rig { lanes: Vec::new(), _idle: Vec::new(), ports: Vec::new(), page: 0 };
        for (port, door) in doors.iter().enumerate() {
            let memory = Memory::new(ring_bytes(args.shape.size), &args.shape, frame)?;
            rig.page = memory.page;
            let first = rig.lanes.len();
            let lane =
                |pair| Lane::new(&memory, &args.shape, frame, (port as u16, pair, (first + pair) as u16));
            let mut lanes: Vec<Lane> = (0..usize::from(args.shape.queues)).map(lane).collect();
            let rings: Vec<_> = lanes.iter().flat_map(Lane::rings).collect();
            let (frontend, kicks) = connect(door, args, &memory, &rings)
                .map_err(|e| format!("{}: {e}", door.path().display()))?;
            let mut kicks = kicks.into_iter();
            for lane in &mut lanes {
                let mut next = || kicks.next().expect("one for each ring");
                lane.begin([next(), next()])?;
            }
            rig.ports.push(frontend);
            if port < args.path.len() { &mut rig.lanes } else { &mut rig._idle }.extend(lanes);
        }
        rig.await_frames(args.mode, run.stop)?;
        Ok(rig)
    }

    /// Sends a frame on each lane until all lanes are served and frames arrive.
    fn await_frames(&mut self, mode: Mode, stop: &Stop) -> Result<(), Box<dyn Error>> {
        let (since, mut taken) = (Instant::now(), 0);
        while since.elapsed() < PATIENCE && !stop.now() {
            for lane in &mut self.lanes {
                if mode != Mode::Enqueue && lane.free() == lane.entries() {
                    lane.send(1);
                }
                lane.collect();
            }
            let arrived = self.received() > 0 || mode == Mode::Dequeue;
            taken = self.lanes.iter().filter(|lane| lane.sent > 0).count();
            if arrived && (taken == self.lanes.len() || mode == Mode::Enqueue) {
                if mode != Mode::Enqueue {
                    self.drain();
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let what = if taken < self.lanes.len() && mode != Mode::Enqueue {
            format!("{} of {} queues are not served", self.lanes.len() - taken, self.lanes.len())
        } else {
            "no frame arrives".into()
        };
        Err(format!("{what}; {HINT}").into())
    }

    /// Waits until nothing is on its way any more: a second at most.
    pub(crate) fn drain(&mut self) {
        let since = Instant::now();
        let mut last = since;
        while last.elapsed() < QUIET && since.elapsed() < Duration::from_secs(1) {
            let got: u64 = self.lanes.iter_mut().map(|lane| u64::from(lane.collect())).sum();
            if got > 0 || self.lanes.iter().any(|lane| lane.free() < lane.entries()) {
                last = Instant::now();
            }
        }
    }

    /// Receive buffers that were filled since it began.
    pub(crate) fn received(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.received).sum()
    }

    /// Stops all rings.
    pub(crate) fn close(mut self) -> std::io::Result<()> {
        self.ports.iter_mut().try_for_each(Frontend::stop)
    }
}

/// Connects a port whose rings are ready; the bells by which they are kicked.
pub(crate) fn connect(
    door: &Door,
    args: &Args,
    memory: &Memory,
    rings: &[RingLayout],
) -> std::io::Result<(Frontend, Vec<std::os::fd::OwnedFd>)> {
    let optional = if args.shape.legacy { F_ANY_LAYOUT } else { 0 };
    let optional = optional | if args.shape.queues > 1 { F_MQ } else { 0 };
    let mut frontend = Frontend::connect(door, args.shape.features(), optional, args.shape.queues)?;
    let (fd, len, user) = &memory.file;
    let kicks = frontend.start(fd.as_fd(), *len, *user, rings)?;
    Ok((frontend, kicks))
}
