//! Ports of devices on bridges, and the cores that serve them.

mod load;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::Backing;
use pmd::Port;
use pmd::port::Stats;
use pmd::worker::cycles;

use super::bridge::{PortConfig, Switch};
use super::cores::{Core, CoreSum, Placed, Seat};
use super::datapath::{MAX_CORES, MAX_PORT_QUEUES, StageStats};
use super::placement::{Policy, Rxq, assign, isolated};
use super::tunnel::Tunnel;
use crate::devices::ports::{Maker, Rings, queues};
use crate::devices::vdev::Vdev;
pub use load::Balance;
use load::{Load, SAMPLE};

/// Between two looks at whether what cores keep still holds.
const LOOK: Duration = Duration::from_millis(2);
/// The number of the first tunnel's device.
const FIRST_TUNNEL: u16 = 1 << 15;
/// Looks between two rounds of ageing.
const ROUND: u32 = 100;

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
    /// The kernel has no such tunnel.
    #[error("{0}")]
    Tunnel(String),
}

/// How cores serve ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A core on each of these CPUs; none named: one core, wherever the scheduler puts it.
    pub cpus: Vec<usize>,
    /// The longest that cores sleep when nothing comes; `None`: they poll without pause.
    pub idle_sleep: Option<Duration>,
    /// How queues are dealt out.
    pub policy: Policy,
    /// A core that a queue is pinned to has no others.
    pub isolate: bool,
    /// When queues are moved by themselves; `None`: never.
    pub balance: Option<Balance>,
}

impl Default for Settings {
    fn default() -> Settings {
        let (cpus, idle_sleep, policy, balance) = Default::default();
        Settings { cpus, idle_sleep, policy, isolate: true, balance }
    }
}

impl Settings {
    fn seats(&self) -> Vec<Seat> {
        let mut cpus: Vec<_> = self.cpus.iter().map(|cpu| Some(*cpu)).collect();
        if cpus.is_empty() {
            cpus.push(None);
        }
        cpus.truncate(MAX_CORES);
        cpus.into_iter().map(|cpu| Seat { cpu, idle_sleep: self.idle_sleep }).collect()
    }
}

/// A device to be made, and how it is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// In the words of `--vdev`; nothing for a tunnel.
    pub vdev: String,
    /// The tunnel that its port is the end of.
    pub tunnel: Option<Tunnel>,
    /// Queues; 0: as many as `vdev` says, or one.
    pub queues: u16,
    /// Queues that are to be on certain CPUs.
    pub affinity: BTreeMap<u16, usize>,
}

/// A receive queue on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Name of the port.
    pub port: String,
    /// Which of its queues.
    pub queue: usize,
    /// Cycles of it in a million, over the last minute; `None`: nothing is known yet.
    pub share: Option<u64>,
}

/// A core, as it is shown.
#[derive(Clone, Debug)]
pub struct CoreView {
    /// The CPU that it is pinned to; `None`: any.
    pub cpu: Option<usize>,
    /// Only pinned queues are on it.
    pub isolated: bool,
    /// What it counted since the counters were cleared.
    pub sum: CoreSum,
    /// Its receive queues.
    pub queues: Vec<Served>,
}

/// A device at work.
struct Running {
    port: Box<dyn Port>,
    bridge: String,
    device: Device,
    placed: Placed,
    loads: Vec<Load>,
}

/// Devices at work, and the cores.
struct Devices {
    switch: Arc<Switch>,
    backing: Backing,
    settings: Settings,
    forwards: bool,
    cores: Vec<Core>,
    running: BTreeMap<String, Running>,
}

/// Devices at work, the cores, and what the switch does in the background.
pub struct Runner {
    switch: Arc<Switch>,
    devices: Arc<Mutex<Devices>>,
    maker: Mutex<Maker>,
    /// The number of the next tunnel's device.
    tunnels: AtomicU16,
    stop: Arc<AtomicBool>,
    background: Option<JoinHandle<()>>,
}

impl Devices {
    fn start_cores(&mut self, seats: &[Seat]) -> Result<(), RunError> {
        for seat in seats {
            let core = Core::start(&self.switch, *seat, self.backing)?;
            if self.forwards {
                core.forward()?;
            }
            self.cores.push(core);
        }
        Ok(())
    }

    /// All receive queues, by port and number. `stay`: those that are on a core want no other.
    fn queues(&self, stay: bool) -> Vec<Rxq> {
        let of = |device: &Running, i: usize| Rxq {
            load: device.loads[i].share().unwrap_or(0),
            pinned: self.pin(&device.device, i),
            stays: device.placed.core_of(i).filter(|_| stay),
        };
        let each = self.running.values().flat_map(|d| (0..d.placed.queues()).map(move |i| of(d, i)));
        each.collect()
    }

    /// The core that a user wants a queue on, if there is such a core.
    fn pin(&self, device: &Device, queue: usize) -> Option<usize> {
        let cpu = device.affinity.get(&(queue as u16))?;
        self.cores.iter().position(|core| core.seat().cpu == Some(*cpu))
    }

    fn assigned(&self, stay: bool) -> Vec<usize> {
        assign(self.settings.policy, self.cores.len(), &self.queues(stay), self.settings.isolate)
    }

    /// Has each queue be where it is assigned to; ports that are there go on without a pause.
    fn put(&mut self, to: &[usize]) -> Result<(), RunError> {
        let mut at = 0;
        for device in self.running.values_mut() {
            let n = device.placed.queues();
            let wanted = &to[at..at + n];
            at += n;
            if device.placed.is_on(wanted) {
                continue;
            }
            device.placed.unplace(&self.cores)?;
            device.placed.place(&self.cores, wanted)?;
            for (i, load) in device.loads.iter_mut().enumerate() {
                load.moved(self.cores[wanted[i]].cycles_of(device.placed.dp(), i));
            }
        }
        Ok(())
    }

    /// Other cores: all ports pause.
    fn seat(&mut self, seats: &[Seat]) -> Result<(), RunError> {
        for device in self.running.values_mut() {
            device.placed.unplace(&self.cores)?;
        }
        let old = std::mem::take(&mut self.cores);
        let (kept, gone): (Vec<Core>, Vec<Core>) = old.into_iter().partition(|c| seats.contains(&c.seat()));
        drop(gone);
        let new: Vec<Seat> =
            seats.iter().filter(|seat| kept.iter().all(|c| c.seat() != **seat)).copied().collect();
        self.cores = kept;
        self.start_cores(&new)?;
        self.cores.sort_by_key(|core| core.seat().cpu);
        Ok(())
    }

    fn configure(&mut self, settings: &Settings) -> Result<(), RunError> {
        let seats = settings.seats();
        let moves = (self.settings.policy, self.settings.isolate) != (settings.policy, settings.isolate);
        let other = self.settings.seats() != seats;
        self.settings = settings.clone();
        if other {
            self.seat(&seats)?;
        }
        if other || moves { self.put(&self.assigned(false)) } else { Ok(()) }
    }

    fn add(&mut self, name: &str, running: Running) -> Result<(), RunError> {
        self.running.insert(name.into(), running);
        self.put(&self.assigned(true))
    }
}

impl Runner {
    /// Starts cores and the switch's background work. Nothing is forwarded before [`Runner::forward`].
    ///
    /// # Errors
    /// No memory or no thread.
    pub fn start(switch: Arc<Switch>, settings: Settings, backing: Backing) -> Result<Runner, RunError> {
        let seats = settings.seats();
        let (cores, running) = Default::default();
        let mut devices =
            Devices { switch: Arc::clone(&switch), backing, settings, forwards: false, cores, running };
        devices.start_cores(&seats)?;
        let devices = Arc::new(Mutex::new(devices));
        let stop = Arc::new(AtomicBool::new(false));
        let background = {
            let (switch, stop, devices) = (Arc::clone(&switch), Arc::clone(&stop), Arc::clone(&devices));
            std::thread::spawn(move || background(&switch, &stop, &devices))
        };
        let maker = Mutex::new(Maker::new(backing));
        let tunnels = AtomicU16::new(FIRST_TUNNEL);
        Ok(Runner { switch, devices, maker, tunnels, stop, background: Some(background) })
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards from now on.
    ///
    /// # Errors
    /// A core is gone.
    pub fn forward(&self) -> Result<(), RunError> {
        let mut devices = self.devices();
        devices.forwards = true;
        devices.cores.iter().try_for_each(Core::forward)
    }

    /// The switch.
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// Serves ports otherwise from now on. Other cores, or another policy: queues are dealt out anew.
    ///
    /// # Errors
    /// A core cannot be had, or a queue did not leave its core.
    pub fn configure(&self, settings: &Settings) -> Result<(), RunError> {
        self.devices().configure(settings)
    }

    /// Has queues of a device be on certain CPUs, and deals all out anew if that is a change.
    ///
    /// # Errors
    /// A queue did not leave its core.
    pub fn set_affinity(&self, name: &str, affinity: &BTreeMap<u16, usize>) -> Result<(), RunError> {
        let mut devices = self.devices();
        let Some(running) = devices.running.get_mut(name) else { return Ok(()) };
        if running.device.affinity == *affinity {
            return Ok(());
        }
        running.device.affinity.clone_from(affinity);
        let to = devices.assigned(false);
        devices.put(&to)
    }

    /// Deals all queues out anew, by what they cost in the last minute.
    ///
    /// # Errors
    /// A queue did not leave its core.
    pub fn rebalance(&self) -> Result<(), RunError> {
        let mut devices = self.devices();
        let to = devices.assigned(false);
        devices.put(&to)
    }

    /// The cores.
    pub fn cores(&self) -> Vec<CoreView> {
        let devices = self.devices();
        let alone = isolated(devices.cores.len(), &devices.queues(false), devices.settings.isolate);
        let view = |(i, core): (usize, &Core)| {
            let served = devices.running.iter().flat_map(|(name, d)| {
                let here = (0..d.placed.queues()).filter(move |q| d.placed.core_of(*q) == Some(i));
                here.map(|queue| Served { port: name.clone(), queue, share: d.loads[queue].share() })
            });
            CoreView {
                cpu: core.seat().cpu,
                isolated: alone[i],
                sum: core.since_cleared(),
                queues: served.collect(),
            }
        };
        devices.cores.iter().enumerate().map(view).collect()
    }

    /// What the stages of all cores counted since the counters were cleared.
    pub fn stage_stats(&self) -> StageStats {
        self.devices().cores.iter().fold(StageStats::default(), |sum, c| sum.plus(c.since_cleared().stage))
    }

    /// Counts from here on, for [`Runner::cores`].
    pub fn clear_core_stats(&self) {
        self.devices().cores.iter().for_each(Core::clear);
    }

    /// Makes a device, and a port of a bridge of it. Its number in OpenFlow.
    ///
    /// # Errors
    /// Which step failed; then nothing is left of it.
    pub fn add(&self, bridge: &str, mut config: PortConfig, mut device: Device) -> Result<u32, RunError> {
        let Some(tunnel) = device.tunnel.clone() else { return self.serve(bridge, config, device) };
        let name = config.name.clone();
        tunnel.create(&name).map_err(RunError::Tunnel)?;
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed);
        device.vdev = format!("net_af_packet{number},iface={name}");
        config.tunnel = Some(tunnel.clone());
        self.serve(bridge, config, device).inspect_err(|_| drop(tunnel.remove(&name)))
    }

    fn serve(&self, bridge: &str, mut config: PortConfig, device: Device) -> Result<u32, RunError> {
        let described = Vdev::parse(&device.vdev)?;
        let wanted = if device.queues > 0 { device.queues } else { queues(&described).unwrap_or(1) };
        let rings = Rings { rxd: 0, txd: 0, queues: wanted, mtu: 1500 };
        let mut port = self.maker.lock().unwrap_or_else(PoisonError::into_inner).make(&described, &rings)?;
        let queues = port.start(wanted.clamp(1, MAX_PORT_QUEUES.min(port.caps().queues)))?;
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
        let loads = queues.iter().map(|_| Load::default()).collect();
        let placed = Placed::new(dp, queues);
        let running = Running { port, bridge: bridge.into(), device, placed, loads };
        self.devices().add(&name, running)?;
        Ok(number)
    }

    /// Takes a device and its port away.
    ///
    /// # Errors
    /// Its buffers did not come home, or it did not stop.
    pub fn remove(&self, name: &str) -> Result<(), RunError> {
        let mut devices = self.devices();
        let Some(mut running) = devices.running.remove(name) else {
            return Err(super::bridge::PortError::Unknown(name.into()).into());
        };
        // Nothing is sent there any more; then it comes home.
        self.switch.remove_port(&running.bridge, name)?;
        self.switch.revalidate();
        running.placed.unplace(&devices.cores)?;
        running.port.stop(running.placed.into_queues())?;
        running.device.tunnel.map_or(Ok(()), |t| t.remove(name).map_err(RunError::Tunnel))
    }

    /// Names of the devices, and the descriptions they were made of.
    pub fn described(&self) -> Vec<(String, String)> {
        self.devices().running.iter().map(|(name, r)| (name.clone(), r.device.vdev.clone())).collect()
    }

    /// Counters of a device; `None`: there is none of this name.
    pub fn stats(&self, name: &str) -> Option<Stats> {
        let devices = self.devices();
        Some(devices.running.get(name)?.port.stats().into_iter().fold(Stats::default(), Stats::plus))
    }

    /// Takes everything apart.
    pub fn stop(mut self) {
        for (name, _) in self.described() {
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

/// Ageing, timeouts, link states, the load of cores; and soon after a change, whether what cores keep still
/// holds.
fn background(switch: &Switch, stop: &AtomicBool, devices: &Mutex<Devices>) {
    let mut looks = 0;
    let (mut sampled, mut sampled_at, mut balanced) = (Instant::now(), cycles(), Instant::now());
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
        let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
        let links =
            devices.running.iter().map(|(name, r)| (r.bridge.clone(), name.clone(), r.port.link().up));
        let links: Vec<_> = links.collect();
        if sampled.elapsed() >= SAMPLE {
            let now = cycles();
            devices.sample(now.wrapping_sub(sampled_at));
            (sampled, sampled_at) = (Instant::now(), now);
        }
        if devices.settings.balance.is_some_and(|b| balanced.elapsed() >= b.interval) {
            balanced = Instant::now();
            devices.balance();
        }
        drop(devices);
        links.iter().for_each(|(bridge, name, up)| switch.set_up(bridge, name, *up));
    }
}

#[cfg(test)]
mod tests;
