//! Ports of devices on bridges, and the core that serves them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hugepages::Backing;
use pmd::Port;
use pmd::port::Stats;
use pmd::worker::{self, Config, Worker, WorkerHandle};

use super::bridge::{PortConfig, Switch};
use super::datapath::{CoreStats, Datapath, StageStats, queue_of};
use crate::devices::ports::{Maker, Rings};
use crate::devices::vdev::Vdev;

/// How long buffers may take to come home when a port goes.
const RECALL: Duration = Duration::from_secs(5);
/// Between two looks at whether what cores keep still holds.
const LOOK: Duration = Duration::from_millis(2);
/// Looks between two rounds of ageing.
const ROUND: u32 = 100;
/// What ports have unless they are told.
const RINGS: Rings = Rings { rxd: 0, txd: 0, queues: 1, mtu: 1500 };

/// Why a port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be made.
    #[error(transparent)]
    Device(#[from] crate::devices::Error),
    /// It could not be started or stopped.
    #[error(transparent)]
    Port(#[from] pmd::PortError),
    /// Its core did not take it, or did not give it back.
    #[error(transparent)]
    Worker(#[from] pmd::worker::WorkerError),
    /// The bridge did not take it.
    #[error(transparent)]
    Bridge(#[from] super::bridge::PortError),
}

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

/// A device at work.
struct Running {
    port: Box<dyn Port>,
    bridge: String,
    dp: u32,
    vdev: String,
}

/// Devices at work, the core, and what the switch does in the background.
pub struct Runner {
    switch: Arc<Switch>,
    stats: Arc<CoreStats>,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    worker: WorkerHandle,
    /// The CPU that the worker is pinned to.
    core: Option<usize>,
    /// What its counters showed when they were cleared.
    cleared: Mutex<CoreSum>,
    maker: Mutex<Maker>,
    stop: Arc<AtomicBool>,
    background: Option<JoinHandle<()>>,
}

impl Runner {
    /// Starts a core and the switch's background work. Nothing is forwarded before [`Runner::forward`].
    ///
    /// # Errors
    /// No memory or no thread.
    pub fn start(
        switch: Arc<Switch>,
        core: Option<usize>,
        backing: Backing,
        idle_sleep: Option<Duration>,
    ) -> Result<Runner, RunError> {
        let stats = Arc::new(CoreStats::default());
        let stage = Datapath::new(Arc::clone(&switch), Arc::clone(&stats));
        let config = Config { name: "datapath".into(), core, backing, idle_sleep, ..Config::default() };
        let worker = Worker::spawn(config, Box::new(stage))?;
        let stop = Arc::new(AtomicBool::new(false));
        let running = Arc::default();
        let background = {
            let (switch, stop, running) = (Arc::clone(&switch), Arc::clone(&stop), Arc::clone(&running));
            std::thread::spawn(move || background(&switch, &stop, &running))
        };
        let maker = Mutex::new(Maker::new(backing));
        let cleared = Mutex::default();
        Ok(Runner {
            switch,
            stats,
            running,
            worker,
            core,
            cleared,
            maker,
            stop,
            background: Some(background),
        })
    }

    /// Forwards from now on.
    ///
    /// # Errors
    /// The core is gone.
    pub fn forward(&self) -> Result<(), RunError> {
        Ok(self.worker.start()?)
    }

    /// The switch.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// What the core counts.
    pub fn core_stats(&self) -> &Arc<CoreStats> {
        &self.stats
    }

    /// What the core counted since the counters were cleared.
    pub fn since_cleared(&self) -> CoreSum {
        let cleared = *self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        CoreSum { stage: self.stats.sum(), turns: self.worker.counters().stats() }.since(cleared)
    }

    /// Counts from here on, for [`Runner::since_cleared`].
    pub fn clear_core_stats(&self) {
        let now = CoreSum { stage: self.stats.sum(), turns: self.worker.counters().stats() };
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// The CPU that the core is pinned to; `None`: any.
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// Makes a device from a description in the words of `--vdev`, and a port of a bridge of it. Its
    /// number in OpenFlow.
    ///
    /// # Errors
    /// Which step failed; then nothing is left of it.
    pub fn add(&self, bridge: &str, mut config: PortConfig, vdev: &str) -> Result<u32, RunError> {
        let described = Vdev::parse(vdev)?;
        let mut port = self.maker.lock().unwrap_or_else(PoisonError::into_inner).make(&described, &RINGS)?;
        let mut queues = port.start(1)?;
        config.mac = port.mac();
        let name = config.name.clone();
        let (number, dp) = match self.switch.add_port(bridge, config) {
            Ok(numbers) => numbers,
            Err(e) => {
                port.stop(queues)?;
                return Err(e.into());
            }
        };
        self.switch.set_up(bridge, &name, port.link().up);
        let queue = queues.pop().expect("a port starts as many queues as it is asked for");
        self.worker.attach(queue_of(dp), queue)?;
        let running = Running { port, bridge: bridge.into(), dp, vdev: vdev.into() };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(name, running);
        Ok(number)
    }

    /// Takes a device and its port away.
    ///
    /// # Errors
    /// Its buffers did not come home, or it did not stop.
    pub fn remove(&self, name: &str) -> Result<(), RunError> {
        let found = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(mut running) = found else {
            return Err(super::bridge::PortError::Unknown(name.into()).into());
        };
        // Nothing is sent there any more; then it comes home.
        self.switch.remove_port(&running.bridge, name)?;
        self.switch.revalidate();
        let queue = self.worker.recall(queue_of(running.dp), RECALL)?;
        running.port.stop(vec![queue])?;
        Ok(())
    }

    /// Names of the devices, and the descriptions they were made of.
    pub fn devices(&self) -> Vec<(String, String)> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().map(|(name, r)| (name.clone(), r.vdev.clone())).collect()
    }

    /// Counters of a device; `None`: there is none of this name.
    pub fn stats(&self, name: &str) -> Option<Stats> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        Some(running.get(name)?.port.stats().into_iter().fold(Stats::default(), Stats::plus))
    }

    /// Takes everything apart.
    pub fn stop(mut self) {
        for (name, _) in self.devices() {
            if let Err(e) = self.remove(&name) {
                tracing::warn!("port {name}: {e}");
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.background.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Ageing, timeouts, link states; and soon after a change, whether what cores keep still holds.
fn background(switch: &Switch, stop: &AtomicBool, running: &Mutex<BTreeMap<String, Running>>) {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        looks += 1;
        if looks < ROUND {
            switch.catch_up();
            continue;
        }
        looks = 0;
        switch.expire();
        switch.revalidate();
        let links: Vec<_> = running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(name, r)| (r.bridge.clone(), name.clone(), r.port.link().up))
            .collect();
        links.iter().for_each(|(bridge, name, up)| switch.set_up(bridge, name, *up));
    }
}
