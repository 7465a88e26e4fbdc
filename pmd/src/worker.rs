//! The run loop of a core.
//!
//! A [`Worker`] owns queues and runs each to completion: packets in, through the [`Stage`], packets
//! out, receipts home. It never sleeps unless told that it may. Commands come between turns, from the
//! [`WorkerHandle`]; queues are moved to a worker and recalled, never shared. Packets cross to another
//! core over a [`pipe`](crate::port).

mod awake;
mod counters;
mod handle;
mod meter;
mod outbox;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use hugepages::{Backing, Buf, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use crate::sys::cycles::cycles;
pub use counters::{CoreCounters, CoreStats, Stream, StreamStats};
pub use handle::{
    Command, MAX_QUEUES, QueueState, Recalling, Reply, Report, Stopped, WorkerError, WorkerHandle,
};
pub use outbox::Outbox;

use crate::batch::{BURST, Batch};
use crate::completion::doorbell::Doorbell;
use crate::port::{Queue, knock};
use crate::spec::net::MAX_FRAME;
use awake::slots;
use meter::Meter;
use outbox::Frames;

/// Turns between two looks into the inbox while there is work.
const INBOX_TURNS: u32 = 256;
/// The same while there is none: a look takes as long as an empty turn.
const IDLE_INBOX_TURNS: u32 = 16;
/// Empty turns after which a core that may sleep tries to.
const IDLE_TURNS: u32 = 1024;
/// How long a core that does not forward waits between rounds of housekeeping.
const PAUSE: Duration = Duration::from_millis(1);
/// The same while queues wait to go home.
const RECALL_PAUSE: Duration = Duration::from_micros(50);
/// Turns that a queue spends stopped before it may leave: by its second `reap` without an `rx` it has
/// seen that it is stopped.
const RECALL_TURNS: u32 = 2;
/// Commands that may wait; the control side waits when there are more.
const INBOX: usize = 256;

/// A queue's name on its core, chosen by the application; small numbers make small tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u16);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}", self.0)
    }
}

/// What an application does with packets.
pub trait Stage: Send {
    /// Packets that came from a queue. What is left in `batch` afterwards is dropped and counted.
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox);

    /// Once per turn before any queue is asked, for packets that come from nowhere else. Whether it
    /// did anything: a core with something to do does not sleep.
    fn tick(&mut self, out: &mut Outbox) -> bool {
        let _ = out;
        false
    }

    /// Send or drop every buffer that was kept: forwarding stops, the stage is replaced, or a queue is
    /// to go home. May be called many times.
    fn flush(&mut self, out: &mut Outbox) {
        let _ = out;
    }
}

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the worker and its thread.
    pub name: String,
    /// Core to pin it to; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// Packets asked of a queue at a time.
    pub burst: usize,
    /// Small frames of its own, for packets made or rewritten here.
    pub frames: usize,
    /// Bytes of a small frame.
    pub frame: u32,
    /// Frames for the largest packets, 64 KiB each.
    pub large_frames: usize,
    /// Memory of its frames.
    pub backing: Backing,
    /// The longest it may sleep when nothing arrives; `None`: it polls without pause.
    pub idle_sleep: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "worker".into(),
            core: None,
            burst: BURST,
            frames: 8192,
            frame: 2048,
            large_frames: 128,
            backing: Backing::default(),
            idle_sleep: None,
        }
    }
}

struct Recall {
    id: QueueId,
    deadline: Instant,
    turns: u32,
    reply: Reply<Result<Box<dyn Queue>, WorkerError>>,
}

/// The data side: the loop, and everything that it owns.
pub struct Worker {
    inbox: Receiver<Command>,
    bell: Arc<Doorbell>,
    stage: Box<dyn Stage>,
    out: Outbox,
    batch: Batch<Buf>,
    running: bool,
    recalls: Vec<Recall>,
    /// Deadline, and turns since the command.
    stop: Option<(Instant, u32)>,
    idle_sleep: Option<Duration>,
    /// Knocks that it has heard of.
    knocks: u32,
}

impl Worker {
    /// Starts a worker on a thread of its own. It does not forward until told to
    /// [`start`](WorkerHandle::start).
    ///
    /// # Errors
    /// No memory for its frames, no thread, or no descriptor. A core that it cannot be pinned to is
    /// only a warning.
    pub fn spawn(config: Config, stage: Box<dyn Stage>) -> Result<WorkerHandle, WorkerError> {
        let Config { name, core, burst, frames, frame, large_frames, backing, idle_sleep } = config;
        let pool = |n, bytes| match Pool::for_packets(n, bytes, backing) {
            Ok((pool, fallback)) => {
                if let Some(why) = fallback {
                    tracing::warn!("worker {name}: frames in ordinary pages: {why}");
                }
                Ok(pool)
            }
            Err(source) => Err(WorkerError::Memory { name: name.clone(), source }),
        };
        let frames = Frames { small: pool(frames, frame)?, large: pool(large_frames, MAX_FRAME)? };
        let os = |what| {
            let name = name.clone();
            move |source| WorkerError::Os { name, what, source }
        };
        let bell = Arc::new(Doorbell::new().map_err(os("eventfd for its inbox"))?);
        let (commands, inbox) = crossbeam_channel::bounded(INBOX);
        let counters = Arc::new(CoreCounters::default());
        let worker = Worker {
            inbox,
            bell: Arc::clone(&bell),
            stage,
            out: Outbox::new(frames, Arc::clone(&counters)),
            batch: Batch::new(burst),
            running: false,
            recalls: Vec::new(),
            stop: None,
            idle_sleep,
            knocks: 0,
        };
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn({
                let name = name.clone();
                move || {
                    if let Some(core) = core {
                        pin(&name, core);
                    }
                    worker.run()
                }
            })
            .map_err(os("thread"))?;
        Ok(WorkerHandle::new(name, commands, bell, counters, thread))
    }

    /// The loop: turns until told to stop.
    fn run(mut self) -> Stopped {
        let counters = Arc::clone(&self.out.counters);
        let (mut quiet, mut until_inbox) = (0u32, 0);
        let mut meter = Meter::new();
        loop {
            let busy = self.turn();
            if busy {
                meter.busy(&counters);
                quiet = 0;
                until_inbox += 1;
            } else {
                meter.idle();
                quiet = quiet.saturating_add(1);
                until_inbox += INBOX_TURNS / IDLE_INBOX_TURNS;
            }
            if until_inbox < INBOX_TURNS && self.running && self.recalls.is_empty() && self.stop.is_none() {
                continue;
            }
            if !busy {
                meter.look(&counters);
            }
            until_inbox = 0;
            while let Ok(command) = self.inbox.try_recv() {
                quiet = 0;
                self.obey(command);
            }
            if !self.recalls.is_empty() || self.stop.is_some() {
                self.stage.flush(&mut self.out);
                self.send_home();
                if self.done() {
                    return self.leave();
                }
            }
            if !busy {
                self.rest(quiet);
            }
            meter.rested(&counters);
        }
    }

    /// One round over all queues that do not rest. Whether anything moved.
    #[inline]
    fn turn(&mut self) -> bool {
        let any = self.running && self.receive();
        self.out.close_turn() | any
    }

    /// The first half of a turn: packets in, and through the stage.
    #[inline]
    fn receive(&mut self) -> bool {
        let Worker { stage, out, batch, .. } = self;
        let knocks = knock::knocks();
        if knocks != self.knocks {
            self.knocks = knocks;
            out.awake.wake_all();
        }
        let mut any = stage.tick(out);
        let mut empty = 0;
        for word in 0..out.awake.words() {
            for i in slots(word, out.awake.look(word)) {
                let slot = &mut out.slots[i];
                if slot.leaving {
                    continue;
                }
                let packets = slot.queue.rx(batch);
                if packets == 0 {
                    slot.empty = slot.empty.saturating_add(1);
                    empty += 1;
                    continue;
                }
                any = true;
                slot.empty = 0;
                slot.stream.count_rx(packets);
                let from = slot.id;
                stage.burst(from, batch, out);
                if !batch.is_empty() {
                    out.drop_all(batch);
                }
            }
        }
        if empty > 0 {
            out.counters.empty_polls.add(empty);
        }
        any
    }

    #[cold]
    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(id, queue, stream) => self.out.attach(id, queue, stream),
            Command::Recall(id, within, reply) => match self.out.slot(id) {
                None => drop(reply.send(Err(WorkerError::NotHere(id)))),
                Some(i) => {
                    self.out.slots[i].leaving = true;
                    self.out.rouse();
                    self.recalls.push(Recall { id, deadline: Instant::now() + within, turns: 0, reply });
                }
            },
            Command::SetStage(stage) => {
                self.stage.flush(&mut self.out);
                self.stage = stage;
            }
            Command::Feed(pairs) => self.out.set_feeds(&pairs),
            Command::SetBurst(packets) => self.batch.set_burst(packets),
            Command::Start => self.running = true,
            Command::Pause => {
                self.stage.flush(&mut self.out);
                self.running = false;
                self.out.rouse();
            }
            Command::Read(reply) => drop(reply.send(self.report())),
            Command::Stop(within) => {
                self.running = false;
                self.stop = Some((Instant::now() + within, 0));
                self.out.slots.iter_mut().for_each(|slot| slot.leaving = true);
                self.out.rouse();
            }
        }
    }

    /// Sends queues home that nothing is out of, and answers those whose time is up.
    #[cold]
    fn send_home(&mut self) {
        let now = Instant::now();
        let mut i = 0;
        while i < self.recalls.len() {
            self.recalls[i].turns += 1;
            let Recall { id, deadline, turns, .. } = self.recalls[i];
            let Some(at) = self.out.slot(id) else {
                let recall = self.recalls.swap_remove(i);
                drop(recall.reply.send(Err(WorkerError::NotHere(id))));
                continue;
            };
            let queue = &self.out.slots[at].queue;
            let (lent, held) = (queue.lent(), queue.held());
            if turns >= RECALL_TURNS && lent == 0 && held == 0 {
                let recall = self.recalls.swap_remove(i);
                let slot = self.out.detach(at);
                if let Err(unheard) = recall.reply.send(Ok(slot.queue)) {
                    // Nobody waits any more: it stays, stopped, until it is asked for again.
                    let queue = unheard.into_inner().expect("sent as Ok");
                    self.out.attach(id, queue, slot.stream);
                    self.out.slots.last_mut().expect("just attached").leaving = true;
                }
            } else if now >= deadline {
                let recall = self.recalls.swap_remove(i);
                let report = self.report();
                drop(recall.reply.send(Err(WorkerError::Out { id, lent, held, report })));
            } else {
                i += 1;
            }
        }
    }

    fn done(&mut self) -> bool {
        let Some((deadline, turns)) = &mut self.stop else {
            return false;
        };
        *turns += 1;
        let (turns, deadline) = (*turns, *deadline);
        (turns >= RECALL_TURNS && self.report().clean()) || Instant::now() >= deadline
    }

    fn report(&self) -> Report {
        let queues = self.out.slots.iter().map(|slot| QueueState {
            id: slot.id,
            lent: slot.queue.lent(),
            held: slot.queue.held(),
            leaving: slot.leaving,
        });
        let frames_out = self.out.frames.small.out() + self.out.frames.large.out();
        Report { queues: queues.collect(), frames_out, running: self.running }
    }

    fn leave(mut self) -> Stopped {
        for recall in self.recalls.drain(..) {
            drop(recall.reply.send(Err(WorkerError::NotHere(recall.id))));
        }
        let report = self.report();
        let queues = self.out.slots.drain(..).map(|slot| (slot.id, slot.queue)).collect();
        Stopped { queues, report }
    }

    /// Between two turns of which the last moved nothing.
    fn rest(&mut self, quiet: u32) {
        if !self.running || self.out.slots.is_empty() {
            let hurry = self.stop.is_some() || !self.recalls.is_empty();
            self.wait_for_command(if hurry { RECALL_PAUSE } else { PAUSE });
        } else if let (Some(longest), true, true) =
            (self.idle_sleep, quiet >= IDLE_TURNS, self.recalls.is_empty())
        {
            self.sleep(longest);
        }
    }

    #[cold]
    fn wait_for_command(&mut self, longest: Duration) {
        self.bell.arm();
        if self.inbox.is_empty() {
            let _ = poll(
                &mut [PollFd::from_borrowed_fd(self.bell.fd(), PollFlags::IN)],
                Some(&timespec(longest)),
            );
        }
        self.bell.disarm();
    }

    /// Sleeps until a peer of some queue calls, a command comes, or the time is up.
    #[cold]
    fn sleep(&mut self, longest: Duration) {
        self.bell.arm();
        let mut fds = Vec::with_capacity(1 + 2 * self.out.slots.len());
        fds.push(PollFd::from_borrowed_fd(self.bell.fd(), PollFlags::IN));
        // Of the queues that were asked: where their descriptors begin.
        let mut starts = Vec::with_capacity(self.out.slots.len() + 1);
        let mut quiet = self.inbox.is_empty();
        for slot in &mut self.out.slots {
            if !quiet {
                break;
            }
            starts.push(fds.len());
            quiet = slot.queue.sleep(&mut |fd| fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        starts.push(fds.len());
        if quiet {
            self.out.counters.sleeps.add(1);
            // An error (a signal) is a wake-up as well.
            let _ = poll(&mut fds, Some(&timespec(longest)));
        }
        let rung = |range: &[usize]| fds[range[0]..range[1]].iter().any(|fd| !fd.revents().is_empty());
        let rung: Vec<bool> = starts.windows(2).map(rung).collect();
        drop(fds);
        for (slot, rung) in self.out.slots.iter_mut().zip(rung) {
            slot.queue.wake(rung);
        }
        self.bell.disarm();
        if !quiet {
            thread::yield_now();
        }
    }
}

fn pin(name: &str, core: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        tracing::warn!(
            "worker {name}: cannot be pinned to core {core}; it runs unpinned. Choose a core that this process \
             may use (taskset -pc $$)"
        );
    }
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) }
}
