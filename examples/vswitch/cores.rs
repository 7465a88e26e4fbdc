//! The cores: a worker each, with a stage and caches of its own.
//!
//! A queue of a port is on one core. Every other core reaches the port over a pipe to where the port's first
//! queue is; on that core too the port has its own number, so that a stage sends without asking where.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hugepages::Backing;
use pmd::Port;
use pmd::port::Queue;
use pmd::port::pipe::Pipe;
use pmd::worker::{self, Config, QueueId, Worker, WorkerError, WorkerHandle};

use super::bridge::Switch;
use super::datapath::{CoreStats, Datapath, StageStats, crossing, queue_of, receive_queue};
use super::runner::RunError;

/// How long buffers may take to come home when a queue leaves its core.
const RECALL: Duration = Duration::from_secs(5);

/// What a core counted: its stage, and the turns it makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreSum {
    /// Packets, look-ups, upcalls.
    pub stage: StageStats,
    /// Turns and their cycles.
    pub turns: worker::CoreStats,
}

impl CoreSum {
    fn since(self, earlier: CoreSum) -> CoreSum {
        CoreSum { stage: self.stage.since(earlier.stage), turns: self.turns.since(earlier.turns) }
    }
}

/// Where a core runs, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The CPU that it is pinned to; `None`: any.
    pub cpu: Option<usize>,
    /// The longest it may sleep when nothing comes; `None`: it polls without pause.
    pub idle_sleep: Option<Duration>,
}

/// One core.
pub struct Core {
    seat: Seat,
    worker: WorkerHandle,
    stats: Arc<CoreStats>,
    /// What its counters showed when they were cleared.
    cleared: Mutex<CoreSum>,
}

impl Core {
    /// Starts one.
    ///
    /// # Errors
    /// No memory or no thread.
    pub fn start(switch: &Arc<Switch>, seat: Seat, backing: Backing) -> Result<Core, RunError> {
        let stats = Arc::new(CoreStats::default());
        let stage = Datapath::new(Arc::clone(switch), Arc::clone(&stats));
        let name = seat.cpu.map_or("datapath".into(), |cpu| format!("datapath-{cpu}"));
        let config =
            Config { name, core: seat.cpu, backing, idle_sleep: seat.idle_sleep, ..Config::default() };
        let worker = Worker::spawn(config, Box::new(stage))?;
        Ok(Core { seat, worker, stats, cleared: Mutex::default() })
    }

    /// Forwards from now on.
    ///
    /// # Errors
    /// It is gone.
    pub fn forward(&self) -> Result<(), RunError> {
        Ok(self.worker.start()?)
    }

    /// Where it runs.
    pub fn seat(&self) -> Seat {
        self.seat
    }

    fn sum(&self) -> CoreSum {
        CoreSum { stage: self.stats.sum(), turns: self.worker.counters().stats() }
    }

    /// What it counted since the counters were cleared.
    pub fn since_cleared(&self) -> CoreSum {
        self.sum().since(*self.cleared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts from here on.
    pub fn clear(&self) {
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = self.sum();
    }

    /// Cycles that packets of a receive queue took here, ever.
    pub fn cycles_of(&self, dp: u32, queue: usize) -> u64 {
        self.stats.queue_cycles(receive_queue(dp, queue))
    }
}

enum Place {
    Home(Box<dyn Queue>),
    /// On the core of this number.
    On(usize),
}

/// The queues of a port, and the pipes that lead to it.
pub struct Placed {
    dp: u32,
    queues: Vec<Place>,
    /// From which core to which.
    pipes: Vec<(usize, usize)>,
}

impl Placed {
    /// Queues that are on no core.
    pub fn new(dp: u32, queues: Vec<Box<dyn Queue>>) -> Placed {
        Placed { dp, queues: queues.into_iter().map(Place::Home).collect(), pipes: Vec::new() }
    }

    /// Its port's number in the datapath.
    pub fn dp(&self) -> u32 {
        self.dp
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The core that a queue is on.
    pub fn core_of(&self, queue: usize) -> Option<usize> {
        match self.queues.get(queue)? {
            Place::On(core) => Some(*core),
            Place::Home(_) => None,
        }
    }

    /// Whether its queues are on these cores.
    pub fn is_on(&self, to: &[usize]) -> bool {
        self.queues.len() == to.len() && (0..to.len()).all(|i| self.core_of(i) == Some(to[i]))
    }

    /// Puts queues that are at home on cores, one of `to` each, and lays pipes from the others.
    ///
    /// # Errors
    /// A core is gone, or there are no descriptors for a pipe.
    pub fn place(&mut self, cores: &[Core], to: &[usize]) -> Result<(), RunError> {
        for (i, core) in to.iter().enumerate() {
            if let Place::Home(queue) = std::mem::replace(&mut self.queues[i], Place::On(*core)) {
                cores[*core].worker.attach(receive_queue(self.dp, i), queue)?;
            }
        }
        // Senders share the first queue: of the others nobody knows whether the peer uses them.
        let owner = to[0];
        for from in (0..cores.len()).filter(|core| *core != owner) {
            let (mut near, mut far) = Pipe::pair(["near", "far"], 1, 0)?;
            for (end, core, id) in
                [(&mut far, owner, crossing(self.dp, from)), (&mut near, from, queue_of(self.dp))]
            {
                let queue = end.start(1)?.pop().expect("one was asked for");
                cores[core].worker.attach(id, queue)?;
            }
            self.pipes.push((from, owner));
        }
        Ok(())
    }

    /// Brings all queues home, and takes the pipes away.
    ///
    /// # Errors
    /// Buffers of one are still out: it is stopped, and can be asked for again.
    pub fn unplace(&mut self, cores: &[Core]) -> Result<(), RunError> {
        let begin = |core: usize, id: QueueId| cores[core].worker.begin_recall(id, RECALL);
        let mut failed = None;
        // All are asked before one is waited for: they hold each other's buffers.
        let asked = self.queues.iter().enumerate().map(|(i, place)| match place {
            Place::On(core) => Some(begin(*core, receive_queue(self.dp, i))),
            Place::Home(_) => None,
        });
        let asked: Vec<_> = asked.collect();
        let ends = |(from, to): &(usize, usize)| {
            [begin(*from, queue_of(self.dp)), begin(*to, crossing(self.dp, *from))]
        };
        let pipes: Vec<_> = self.pipes.iter().map(ends).collect();
        for (i, recall) in asked.into_iter().enumerate() {
            match recall.map(|recall| recall?.wait()) {
                Some(Ok(queue)) => self.queues[i] = Place::Home(queue),
                Some(Err(e)) => failed = Some(e),
                None => {}
            }
        }
        let mut left = Vec::new();
        for (pipe, recalls) in self.pipes.drain(..).zip(pipes) {
            for recall in recalls {
                match recall.and_then(worker::Recalling::wait) {
                    // The other end may have come home before.
                    Ok(_) | Err(WorkerError::NotHere(_)) => {}
                    Err(e) => {
                        failed = Some(e);
                        left.push(pipe);
                    }
                }
            }
        }
        left.dedup();
        self.pipes = left;
        failed.map_or(Ok(()), |e| Err(e.into()))
    }

    /// The queues, when all are at home.
    pub fn into_queues(self) -> Vec<Box<dyn Queue>> {
        let home = |place| match place {
            Place::Home(queue) => Some(queue),
            Place::On(_) => None,
        };
        self.queues.into_iter().filter_map(home).collect()
    }
}
