//! Cores, and which queue is on which.

use std::sync::Arc;
use std::time::Duration;

use pmd::port::Queue;
use pmd::worker::{Config, QueueId, Stage, Worker, WorkerHandle};

use super::{App, Outcome};
use crate::cli::Lcore;
use crate::forward::csum::Checks;
use crate::forward::{Routes, port_queue, queue_id, stage};
use crate::streams::{Share, Stream, spread};

/// How long a queue may take to come home: longer than any device holds a buffer.
const RECALL: Duration = Duration::from_secs(3);
/// How long a core that may sleep sleeps at most.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// Frames of a core unless told otherwise.
const FRAMES: usize = 8192;

/// A running core.
pub(super) struct Core {
    pub(super) lcore: Lcore,
    pub(super) worker: WorkerHandle,
    pub(super) checks: Arc<Checks>,
    /// The queues on it.
    pub(super) queues: Vec<QueueId>,
}

impl App {
    /// The streams of the started forwarding ports, by core.
    pub(super) fn shares(&self) -> Vec<Share> {
        let ports: Vec<usize> =
            self.forwarding().into_iter().filter(|&p| self.slot(p).started.is_some()).collect();
        let o = &self.options;
        let lcores = &self.lcores[..usize::from(o.nb_cores).min(self.lcores.len())];
        // An answer leaves where the question came from.
        let topology = match o.forward_mode {
            crate::cli::Mode::Icmpecho => crate::cli::Topology::Loop,
            _ => o.port_topology,
        };
        spread(&ports, topology, (o.rxq, o.txq), lcores)
    }

    /// The core of a queue under `shares`; the first for a queue that is in no stream.
    fn place(&self, shares: &[Share], id: QueueId) -> usize {
        let (port, queue) = port_queue(id);
        let here = |s: &Share| s.streams.iter().any(|s| s.rx == (port, queue) || s.tx == (port, queue));
        let lcore = shares.iter().find(|s| here(s)).map(|s| s.lcore.id);
        lcore.and_then(|id| self.lcores.iter().position(|l| l.id == id)).unwrap_or(0)
    }

    /// Starts cores up to number `n`.
    fn wake_cores(&mut self, n: usize) -> Outcome {
        while self.cores.len() <= n {
            let lcore = self.lcores[self.cores.len()];
            let o = &self.options;
            let config = Config {
                name: format!("lcore-{}", lcore.id),
                core: Some(lcore.cpu),
                burst: o.burst.into(),
                frames: match o.total_num_mbufs as usize {
                    0 => FRAMES,
                    all => (all / self.lcores.len()).max(1),
                },
                frame: o.mbuf_size,
                backing: self.maker.backing(),
                idle_sleep: o.idle_sleep.then_some(LONGEST_SLEEP),
                ..Config::default()
            };
            let checks = Arc::new(Checks::default());
            let idle = stage(o, Routes::default(), &checks, 0);
            let worker = Worker::spawn(config, idle).map_err(|e| e.to_string())?;
            self.cores.push(Core { lcore, worker, checks, queues: Vec::new() });
        }
        Ok(())
    }

    /// Gives a started port's queues to their cores.
    pub(super) fn attach(&mut self, port: usize, queues: super::Home) -> Outcome {
        let shares = self.shares();
        for (q, queue) in queues.into_iter().enumerate() {
            let id = queue_id(port, q as u16);
            let at = self.place(&shares, id);
            self.put(at, id, queue)?;
        }
        Ok(())
    }

    fn put(&mut self, at: usize, id: QueueId, queue: Box<dyn Queue>) -> Outcome {
        self.wake_cores(at)?;
        let core = &mut self.cores[at];
        core.worker.attach(id, queue).map_err(|e| e.to_string())?;
        core.queues.push(id);
        Ok(())
    }

    /// Takes queues back from their cores, in the order given; all or none.
    pub(super) fn recall(&mut self, ids: &[QueueId]) -> Result<super::Home, String> {
        let mut asked = Vec::new();
        for &id in ids {
            let at = self.cores.iter().position(|c| c.queues.contains(&id)).ok_or(format!("{id} is lost"))?;
            asked.push((at, id, self.cores[at].worker.begin_recall(id, RECALL).map_err(|e| e.to_string())?));
        }
        let answers: Vec<_> = asked.into_iter().map(|(at, id, queue)| (at, id, queue.wait())).collect();
        let (mut home, mut fault) = (Vec::new(), None);
        for (at, id, answer) in answers {
            match answer {
                Ok(queue) => {
                    self.cores[at].queues.retain(|known| *known != id);
                    home.push((at, id, queue));
                }
                Err(e) => fault = fault.or(Some(e.to_string())),
            }
        }
        if let Some(fault) = fault {
            for (at, id, queue) in home {
                self.put(at, id, queue)?;
            }
            return Err(fault);
        }
        Ok(home.into_iter().map(|(_, _, queue)| queue).collect())
    }

    /// Moves queues that are not where `shares` wants them.
    pub(super) fn settle_queues(&mut self, shares: &[Share]) -> Outcome {
        let mut moves = Vec::new();
        for (c, core) in self.cores.iter().enumerate() {
            for &id in &core.queues {
                let at = self.place(shares, id);
                if at != c {
                    moves.push((id, at));
                }
            }
        }
        for (id, at) in moves {
            for queue in self.recall(&[id])? {
                self.put(at, id, queue)?;
            }
        }
        Ok(())
    }

    /// Tells every core what to do with packets.
    pub(super) fn set_stages(
        &self,
        stages: impl Fn(&Core, Routes) -> Box<dyn Stage>,
        shares: &[Share],
    ) -> Outcome {
        for core in &self.cores {
            let share = shares.iter().find(|s| s.lcore.id == core.lcore.id);
            let routes = share.map_or_else(Routes::default, |s| self.routes(s));
            core.worker.set_stage(stages(core, routes)).map_err(|e| e.to_string())?;
            // Into a guest's own buffers, where a NIC is there for it alone.
            let direct = |s: &&Stream| self.slot(s.rx.0).vdev.flag("direct") == Some(true);
            let streams = share.iter().flat_map(|share| &share.streams).filter(direct);
            let feeds: Vec<_> =
                streams.map(|s| (queue_id(s.rx.0, s.rx.1), queue_id(s.tx.0, s.tx.1))).collect();
            core.worker.feed(&feeds).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
