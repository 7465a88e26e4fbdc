//! The control side of a worker: commands go in over a channel, counters are read directly.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use hugepages::MapError;

use super::counters::{CoreCounters, Stream};
use super::{QueueId, Stage};
use crate::completion::doorbell::Doorbell;
use crate::port::Queue;

/// Most queues on one worker.
pub const MAX_QUEUES: usize = 1 << 15;

/// Where the answer to a command goes.
pub type Reply<T> = Sender<T>;

/// What the control side may ask of a worker. Looked at between turns, never inside one.
pub enum Command {
    /// Take a queue and serve it from now on.
    Attach(QueueId, Box<dyn Queue>, Arc<Stream>),
    /// Stop the queue's `rx` and `tx`, and send it home when nothing of it is out. After the duration
    /// the answer is who still holds what; the queue stays stopped and can be asked for again.
    Recall(QueueId, Duration, Reply<Result<Box<dyn Queue>, WorkerError>>),
    /// Forward by other rules.
    SetStage(Box<dyn Stage>),
    /// Have the first queue of each pair fill empty buffers of the second, and no other any more.
    Feed(Vec<(QueueId, QueueId)>),
    /// Ask queues for up to this many packets at a time.
    SetBurst(usize),
    /// Forward.
    Start,
    /// Call no `rx`; receipts and housekeeping go on.
    Pause,
    /// Say what is where.
    Read(Reply<Report>),
    /// Recall everything and end, at the latest after the duration.
    Stop(Duration),
}

/// Where a queue's buffers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The queue.
    pub id: QueueId,
    /// Buffers it lent that are not settled.
    pub lent: u32,
    /// Buffers of others that it holds.
    pub held: u32,
    /// Whether it is on its way home.
    pub leaving: bool,
}

/// What is where on a worker, at a turn's boundary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its queues.
    pub queues: Vec<QueueState>,
    /// Frames of its own pools that are out.
    pub frames_out: u32,
    /// Whether it forwards.
    pub running: bool,
}

impl Report {
    /// Whether every buffer is home.
    pub fn clean(&self) -> bool {
        self.frames_out == 0 && self.queues.iter().all(|q| q.lent == 0 && q.held == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for q in self.queues.iter().filter(|q| q.lent > 0 || q.held > 0) {
            write!(f, "{}: {} lent, {} held; ", q.id, q.lent, q.held)?;
        }
        write!(f, "own frames out: {}", self.frames_out)
    }
}

/// What a worker leaves behind.
pub struct Stopped {
    /// Its queues. Those with buffers still out (see `report`) are among them.
    pub queues: Vec<(QueueId, Box<dyn Queue>)>,
    /// What was where at the end.
    pub report: Report,
}

/// What can go wrong between the control side and a worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No memory for its frames.
    #[error("worker {name}: {source}")]
    Memory {
        /// Name of the worker.
        name: String,
        /// Why.
        source: MapError,
    },
    /// The system refused a thread or a descriptor.
    #[error("worker {name}: {what}: {source}")]
    Os {
        /// Name of the worker.
        name: String,
        /// The step that failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The thread ended by itself: a bug, whose message is on stderr.
    #[error("worker {0} has died; its queues are lost, restart the program")]
    Gone(String),
    /// The queue is not on this worker.
    #[error("{0} is not on this worker")]
    NotHere(QueueId),
    /// The queue is on this worker already, or there are too many.
    #[error("{0} cannot be attached: it is here already, or {MAX_QUEUES} queues are")]
    Taken(QueueId),
    /// Buffers were still out at the deadline.
    #[error(
        "{id} cannot leave: {lent} buffers lent and {held} held ({report}); ask again, or reset who holds them"
    )]
    Out {
        /// The queue.
        id: QueueId,
        /// Buffers it lent that are not settled.
        lent: u32,
        /// Buffers of others that it holds.
        held: u32,
        /// What is where on its worker.
        report: Report,
    },
}

struct Attached {
    stream: Arc<Stream>,
    here: bool,
}

/// The control side of a running worker. Can be shared between threads. Dropped, it stops the worker.
pub struct WorkerHandle {
    name: String,
    commands: Sender<Command>,
    bell: Arc<Doorbell>,
    counters: Arc<CoreCounters>,
    queues: Mutex<BTreeMap<QueueId, Attached>>,
    thread: Option<JoinHandle<Stopped>>,
}

/// A queue on its way home.
pub struct Recalling<'w> {
    worker: &'w WorkerHandle,
    id: QueueId,
    answer: Receiver<Result<Box<dyn Queue>, WorkerError>>,
}

impl Recalling<'_> {
    /// Waits for it.
    ///
    /// # Errors
    /// [`WorkerError::Out`] when the deadline passed: the queue stays stopped and can be asked for again.
    pub fn wait(self) -> Result<Box<dyn Queue>, WorkerError> {
        let queue = self.answer.recv().map_err(|_| self.worker.gone())??;
        if let Some(attached) = self.worker.known().get_mut(&self.id) {
            attached.here = false;
        }
        Ok(queue)
    }
}

impl WorkerHandle {
    pub(super) fn new(
        name: String,
        commands: Sender<Command>,
        bell: Arc<Doorbell>,
        counters: Arc<CoreCounters>,
        thread: JoinHandle<Stopped>,
    ) -> WorkerHandle {
        let queues = Mutex::default();
        WorkerHandle { name, commands, bell, counters, queues, thread: Some(thread) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives it a queue. Returns the counters of that queue on this worker: a queue that comes again
    /// under the same id counts on.
    ///
    /// # Errors
    /// The id is taken, or the worker is gone.
    pub fn attach(&self, id: QueueId, queue: Box<dyn Queue>) -> Result<Arc<Stream>, WorkerError> {
        let mut known = self.known();
        if known.get(&id).is_some_and(|a| a.here) || known.values().filter(|a| a.here).count() >= MAX_QUEUES {
            return Err(WorkerError::Taken(id));
        }
        let attached = known.entry(id).or_insert_with(|| Attached { stream: Arc::default(), here: false });
        let stream = Arc::clone(&attached.stream);
        self.send(Command::Attach(id, queue, Arc::clone(&stream)))?;
        attached.here = true;
        Ok(stream)
    }

    /// Asks for a queue back, to be waited for later: other queues can be recalled meanwhile.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn begin_recall(&self, id: QueueId, within: Duration) -> Result<Recalling<'_>, WorkerError> {
        let (reply, answer) = bounded(1);
        self.send(Command::Recall(id, within, reply))?;
        Ok(Recalling { worker: self, id, answer })
    }

    /// Asks for a queue back and waits for it.
    ///
    /// # Errors
    /// It is not here, or its buffers are still out after `within`: then it stays stopped, and can be
    /// asked for again.
    pub fn recall(&self, id: QueueId, within: Duration) -> Result<Box<dyn Queue>, WorkerError> {
        self.begin_recall(id, within)?.wait()
    }

    /// Changes the rules of forwarding. What the old stage kept is sent or finished.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn set_stage(&self, stage: Box<dyn Stage>) -> Result<(), WorkerError> {
        self.send(Command::SetStage(stage))
    }

    /// Direct receive: the first queue of each pair fills empty buffers of the second, which are given it from
    /// now on; no other does any more. Packets that it lends should go there: whatever else becomes of one, the
    /// guest sees an empty buffer.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn feed(&self, pairs: &[(QueueId, QueueId)]) -> Result<(), WorkerError> {
        self.send(Command::Feed(pairs.to_vec()))
    }

    /// Asks queues for up to `packets` at a time.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn set_burst(&self, packets: usize) -> Result<(), WorkerError> {
        self.send(Command::SetBurst(packets))
    }

    /// Forwards from now on.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn start(&self) -> Result<(), WorkerError> {
        self.send(Command::Start)
    }

    /// Stops forwarding: packets wait in their rings. Receipts and housekeeping go on.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn pause(&self) -> Result<(), WorkerError> {
        self.send(Command::Pause)
    }

    /// What is where, at a turn's boundary. Commands sent before have been obeyed by then.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn read(&self) -> Result<Report, WorkerError> {
        let (reply, answer) = bounded(1);
        self.send(Command::Read(reply))?;
        answer.recv().map_err(|_| self.gone())
    }

    /// Its counters: read without disturbing it.
    pub fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    /// The counters of a queue that is or was here.
    pub fn stream(&self, id: QueueId) -> Option<Arc<Stream>> {
        self.known().get(&id).map(|a| Arc::clone(&a.stream))
    }

    /// Asks it to recall everything and to end; [`WorkerHandle::stop`] collects what it leaves. To be
    /// used where workers hold each other's buffers (pipes): ask all, then collect.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn begin_stop(&self, within: Duration) -> Result<(), WorkerError> {
        self.send(Command::Stop(within))
    }

    /// Recalls everything, ends the thread, and returns what it had.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn stop(mut self, within: Duration) -> Result<Stopped, WorkerError> {
        let _ = self.begin_stop(within);
        let thread = self.thread.take().expect("taken only here and in drop");
        thread.join().map_err(|_| self.gone())
    }

    fn send(&self, command: Command) -> Result<(), WorkerError> {
        self.commands.send(command).map_err(|_| self.gone())?;
        self.bell.ring();
        Ok(())
    }

    fn gone(&self) -> WorkerError {
        WorkerError::Gone(self.name.clone())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<QueueId, Attached>> {
        self.queues.lock().expect("no holder panics")
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.begin_stop(Duration::from_secs(1));
            let _ = thread.join();
        }
    }
}
