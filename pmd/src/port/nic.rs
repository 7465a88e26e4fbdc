//! A port on a NIC that is bound to VFIO. The NIC reads the packets it sends where they lie, in a
//! guest's memory too, and their receipts come home in `reap` when it has done with them.

mod keeper;
#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
mod queue;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use hugepages::{Backing, Table};

use crate::nic::{About, Chip, NicError, Setup, e1000e, igb, ixgbe, open, pci, registers, virtio, vmxnet3};
use crate::port::{Caps, Count, Filter, Link, Port, PortError, Queue, Stats, Tally};
use crate::sys::eventfd::EventFd;
use crate::sys::vfio::{Device, Interrupt};
use crate::vring::driver::{Packed, Split};
use keeper::Keeper;
use queue::NicQueue;

/// Frames of at most so many bytes are copied before they are sent, unless told otherwise: four cache
/// lines, for which a receipt at once is worth a copy. Not measured on hardware.
pub const COPY_BREAK: u32 = 256;
/// Descriptors of a ring unless told otherwise.
pub const DESCRIPTORS: u16 = 512;
/// Largest payload of a frame unless told otherwise.
pub const MTU: u32 = 1500;
/// Ethernet header with one VLAN tag.
const HEADER: u32 = 18;

/// What a NIC port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Descriptors of each receive ring; the device takes the next number it can.
    pub rx_size: u16,
    /// Descriptors of each transmit ring.
    pub tx_size: u16,
    /// Largest payload of a frame.
    pub mtu: u32,
    /// Takes every frame, whatever its destination.
    pub promiscuous: bool,
    /// Its address; `None`: the device's own.
    pub mac: Option<[u8; 6]>,
    /// Frames of at most so many bytes are copied before they are sent, so that their receipts go home
    /// at once; 0: none is.
    pub copy_break: u32,
    /// The device is one guest's: its receive ring is filled with the empty buffers of the guest that its
    /// packets go to, and nothing is copied on the way. It has one queue pair then.
    pub direct: bool,
    /// Memory of rings and frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            rx_size: DESCRIPTORS,
            tx_size: DESCRIPTORS,
            mtu: MTU,
            promiscuous: true,
            mac: None,
            copy_break: COPY_BREAK,
            direct: false,
            backing: Backing::default(),
        }
    }
}

/// A port on the device at PCI address `address`, which must be bound to vfio-pci. Not started.
///
/// # Errors
/// One line that says what is in the way, and what to do: the device is another driver's, its group is
/// not viable, nothing here drives it, memory is out of its reach.
pub fn new(name: &str, address: &str, config: Config) -> Result<Box<dyn Port>, PortError> {
    let refused = |e: NicError| error(name, e);
    let at: pci::Address = address.parse().map_err(refused)?;
    let mut config = config;
    config.backing.node = config.backing.node.or(at.node());
    let (device, id) = open(&at).map_err(refused)?;
    let shared = Shared::new(name, Some(Arc::clone(&device))).map_err(refused)?;
    if e1000e::IDS.contains(&id) {
        let regs = registers(&device, 0).map_err(refused)?;
        let chip = e1000e::E1000e::new(regs, Some(device));
        return Ok(Box::new(Nic::new(name, chip, shared, config)?));
    }
    if igb::IDS.contains(&id) {
        let regs = registers(&device, 0).map_err(refused)?;
        let chip = igb::Igb::new(regs, Some(device));
        return Ok(Box::new(Nic::new(name, chip, shared, config)?));
    }
    if ixgbe::IDS.contains(&id) {
        let regs = registers(&device, 0).map_err(refused)?;
        let chip = ixgbe::Ixgbe::new(regs, Some(device));
        return Ok(Box::new(Nic::new(name, chip, shared, config)?));
    }
    if virtio::IDS.contains(&id) {
        let found = virtio::find(device).map_err(refused)?;
        return Ok(if found.packed() {
            Box::new(Nic::new(name, found.chip::<Packed>(), shared, config)?)
        } else {
            Box::new(Nic::new(name, found.chip::<Split>(), shared, config)?)
        });
    }
    if vmxnet3::IDS.contains(&id) {
        let (doors, regs) =
            (registers(&device, 0).map_err(refused)?, registers(&device, 1).map_err(refused)?);
        let chip = vmxnet3::Vmxnet3::new(doors, regs, Some(device));
        return Ok(Box::new(Nic::new(name, chip, shared, config)?));
    }
    let what = format!(
        "device {at} is {:04x}:{:04x}, which has no driver here; see docs/nics.md for those that have",
        id.vendor, id.device
    );
    Err(refused(NicError::Device(what.into())))
}

fn error(port: &str, e: NicError) -> PortError {
    PortError::Io { port: port.to_owned(), what: "NIC".to_owned(), source: std::io::Error::other(e) }
}

/// What the control side and all queues know of the device.
struct Shared {
    /// For the log.
    name: String,
    device: Option<Arc<Device>>,
    /// It reaches no memory any more: whatever it had is ours again.
    halted: AtomicBool,
    /// The kernel wants the device back; it met an error it cannot recover from.
    removal: EventFd,
    failure: EventFd,
    /// A queue found that it hangs.
    hang: EventFd,
    /// It does not come back.
    gone: AtomicBool,
}

impl Shared {
    fn new(name: &str, device: Option<Arc<Device>>) -> Result<Arc<Shared>, NicError> {
        let event = || EventFd::new().map_err(|e| NicError::Device(format!("eventfd: {e}").into()));
        let shared = Shared {
            name: name.to_owned(),
            device,
            halted: AtomicBool::new(true),
            removal: event()?,
            failure: event()?,
            hang: event()?,
            gone: AtomicBool::new(false),
        };
        if let Some(device) = &shared.device {
            device.interrupt(Interrupt::Removal, &[&shared.removal])?;
            device.interrupt(Interrupt::Error, &[&shared.failure])?;
        }
        Ok(Arc::new(shared))
    }

    fn halted(&self) -> bool {
        // Pairs with the release in `halt`: the device reaches no memory.
        self.halted.load(Ordering::Acquire)
    }

    fn gone(&self) -> bool {
        // Relaxed: it only keeps somebody from trying.
        self.gone.load(Ordering::Relaxed)
    }

    /// The device runs.
    fn run(&self) {
        self.halted.store(false, Ordering::Release);
    }

    /// Takes memory away from the device. Its buffers can be finished from then on.
    fn halt(&self, why: &str) {
        if self.halted() {
            return;
        }
        tracing::error!("{}: stopped: {why}", self.name);
        self.cut();
    }

    /// Takes memory away from the device, to give a guest its buffers back, and has it start anew.
    fn let_go(&self) {
        if self.halted() {
            return;
        }
        tracing::info!("{}: starts anew: a guest wants its buffers back", self.name);
        self.cut();
        self.hang.signal();
    }

    fn cut(&self) {
        if let Some(device) = &self.device {
            let _ = device.set_master(false);
            device.reset();
        }
        self.halted.store(true, Ordering::Release);
    }

    /// Looks whether the kernel has said something.
    fn look(&self) {
        let (removed, failed) = (self.removal.clear(), self.failure.clear());
        if removed || failed {
            self.gone.store(true, Ordering::Relaxed);
            self.halt(if removed { "the device is being removed" } else { "it met an error on its bus" });
        }
    }
}

/// How packets of one queue went out.
#[derive(Default)]
struct Ways {
    /// Read by the device where they lay.
    in_place: Count,
    /// Copied first: small ones, and those that software had to complete.
    copied: Count,
    /// Came in where their guest wanted them.
    received: Count,
}

/// The control side.
struct Nic<C: Chip> {
    name: String,
    config: Config,
    about: About,
    chip: Arc<Mutex<C>>,
    keeper: Option<Keeper>,
    shared: Arc<Shared>,
    mac: [u8; 6],
    filter: Filter,
    tally: Tally,
    ways: Vec<Arc<Ways>>,
    /// What its further counters showed when they were cleared.
    cleared: Vec<u64>,
}

impl<C: Chip> Nic<C> {
    fn new(name: &str, mut chip: C, shared: Arc<Shared>, config: Config) -> Result<Nic<C>, PortError> {
        let (about, mac) = (chip.about(), config.mac.unwrap_or_else(|| chip.mac()));
        let most = about.max_frame - HEADER;
        if !(68..=most).contains(&config.mtu) {
            let what = format!("mtu={} is not in 68..={most}, which this device can", config.mtu);
            return Err(PortError::Config { port: name.to_owned(), what });
        }
        let filter = Filter { promiscuous: config.promiscuous, ..Filter::default() };
        chip.filter(&filter).map_err(|e| error(name, e))?;
        let (name, chip) = (name.to_owned(), Arc::new(Mutex::new(chip)));
        Ok(Nic {
            name,
            config,
            about,
            chip,
            keeper: None,
            shared,
            mac,
            filter,
            tally: Tally::default(),
            ways: Vec::new(),
            cleared: Vec::new(),
        })
    }

    /// Our own counters of what went out how, and the device's.
    fn further(&self) -> Vec<(String, u64)> {
        let sum = |count: fn(&Ways) -> &Count| self.ways.iter().map(|ways| count(ways).get()).sum();
        let own = [
            ("rx_in_place_packets", sum(|w| &w.received)),
            ("tx_in_place_packets", sum(|w| &w.in_place)),
            ("tx_copied_packets", sum(|w| &w.copied)),
        ];
        let own = own.into_iter().map(|(name, n)| (name.to_owned(), n));
        let device = self.chip().counters();
        own.chain(device.into_iter().map(|(name, n)| (format!("hw_{name}"), n))).collect()
    }

    /// Queue pairs at most. To take a guest's buffers from a device it is reset: that must disturb nobody else.
    fn queues(&self) -> u16 {
        if self.config.direct { 1 } else { self.about.queues }
    }

    fn chip(&self) -> MutexGuard<'_, C> {
        self.chip.lock().expect("no holder panics")
    }
}

impl<C: Chip> Port for Nic<C> {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        self.about.driver
    }

    fn caps(&self) -> Caps {
        // What the device cannot is done in software before it gets the packet.
        Caps {
            mtu: self.config.mtu,
            queues: self.queues(),
            checksum: true,
            segmentation: true,
            reads_foreign_memory: true,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link(&self) -> Link {
        self.shared.look();
        let (up, speed) = self.chip().link();
        Link { up: up && !self.shared.halted(), speed }
    }

    fn filter(&self) -> Option<Filter> {
        Some(self.filter.clone())
    }

    fn set_filter(&mut self, filter: Filter) -> Result<(), PortError> {
        self.chip().filter(&filter).map_err(|e| error(&self.name, e))?;
        self.filter = filter;
        Ok(())
    }

    /// All memory of the process is within the device's reach while it is open (`hugepages::dma`).
    fn map(&mut self, _: &Arc<Table>) -> Result<(), PortError> {
        Ok(())
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        if queues == 0 || queues > self.queues() {
            let what = format!("{queues} queues; this device has 1 to {}", self.queues());
            return Err(PortError::Config { port: self.name.clone(), what });
        }
        let config = &self.config;
        let setup = Setup {
            queues,
            rx_size: config.rx_size,
            tx_size: config.tx_size,
            room: queue::ROOM,
            max_frame: config.mtu + HEADER,
            mac: config.mac,
            backing: config.backing,
        };
        let rings = self.chip().start(&setup).map_err(|e| error(&self.name, e))?;
        self.shared.run();
        let mut started: Vec<Box<dyn Queue>> = Vec::new();
        self.ways.clear();
        let mut doors = Vec::new();
        for rings in rings {
            let queue = NicQueue::new(rings, config, &self.name, Arc::clone(&self.shared))?;
            self.ways.push(queue.ways());
            doors.push(queue.door());
            started.push(Box::new(queue));
        }
        self.tally = Tally::of(&started);
        let (chip, shared) = (Arc::clone(&self.chip), Arc::clone(&self.shared));
        self.keeper = Some(Keeper::new(chip, setup, doors, shared).map_err(|source| PortError::Io {
            port: self.name.clone(),
            what: "thread that stays with the device".to_owned(),
            source,
        })?);
        Ok(started)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        self.keeper = None;
        self.chip().stop();
        self.shared.halted.store(true, Ordering::Release);
        drop(queues);
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let then = self.cleared.iter().chain(std::iter::repeat(&0));
        // A restart begins with queues that have counted nothing.
        self.further()
            .into_iter()
            .zip(then)
            .map(|((name, now), then)| (name, now.saturating_sub(*then)))
            .collect()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
        self.cleared = self.further().into_iter().map(|(_, n)| n).collect();
    }
}

impl<C: Chip> Drop for Nic<C> {
    fn drop(&mut self) {
        self.keeper = None;
        self.chip().stop();
        self.shared.halted.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
