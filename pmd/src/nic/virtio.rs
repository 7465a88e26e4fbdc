//! The network device of virtio over PCI: virtio 1.3 §4.1 (transport), §5.1 (network). Modern devices
//! only, split and packed rings.

mod rings;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use super::memory::Memory;
use super::pci::Id;
use super::{About, Chip, NicError, Setup};
use crate::filter::Filter;
use crate::spec::net;
use crate::spec::virtio as v;
use crate::sys::vfio::Device;
use crate::vring::driver::{Areas, Ring, Segment};
use rings::VirtioRings;
use transport::Transport;

/// §4.1.2: devices of virtio; modern and transitional network devices.
pub(crate) const IDS: &[Id] = &[Id { vendor: 0x1af4, device: 0x1041 }, Id { vendor: 0x1af4, device: 0x1000 }];

/// §5.1.3 bit 18, 23; §6 bit 36.
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_MAC: u64 = 1 << 23;
const F_ORDER_PLATFORM: u64 = 1 << 36;

/// What is taken of what a device offers.
const WANTED: u64 = v::F_VERSION_1
    | v::F_ACCESS_PLATFORM
    | F_ORDER_PLATFORM
    | v::F_RING_PACKED
    | net::F_MAC
    | net::F_STATUS
    | net::F_MTU
    | net::F_MQ
    | net::F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_MAC
    | net::F_MRG_RXBUF
    | net::F_CSUM
    | net::F_GUEST_CSUM
    | net::F_HOST_TSO4
    | net::F_HOST_TSO6
    | net::F_HOST_ECN
    | net::F_HOST_USO;

/// §5.1.6.5: classes and commands of the control queue.
const PROMISCUOUS: [u8; 2] = [0, 0];
const ALL_MULTICAST: [u8; 2] = [0, 1];
const SET_TABLE: [u8; 2] = [1, 0];
const SET_MAC: [u8; 2] = [1, 1];
const SET_PAIRS: [u8; 2] = [4, 0];
/// Patience with a command, and with a reset.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most addresses of each kind that a command names.
const ADDRESSES: usize = 64;
/// Bytes for a command, and after them its acknowledgement.
const COMMAND: usize = 1024;
/// Entries of the control queue: one command at a time.
const CONTROL: u16 = 4;

/// A device that was found and not yet started.
pub(crate) struct Found {
    transport: Transport,
    device: Arc<Device>,
    features: u64,
}

/// Looks at the device.
pub(crate) fn find(device: Arc<Device>) -> Result<Found, NicError> {
    let transport = Transport::find(&device)?;
    let features = transport.offered() & WANTED;
    if features & v::F_VERSION_1 == 0 {
        return Err(NicError::Device("a virtio device of the time before 1.0 (disable-legacy=on)".into()));
    }
    if features & v::F_ACCESS_PLATFORM == 0 {
        let what = "a virtio device that goes around the IOMMU: its host must set iommu_platform=on";
        return Err(NicError::Device(what.into()));
    }
    Ok(Found { transport, device, features })
}

impl Found {
    /// Whether its rings will be packed.
    pub(crate) fn packed(&self) -> bool {
        self.features & v::F_RING_PACKED != 0
    }

    /// The chip, with rings of that layout.
    pub(crate) fn chip<R: Ring>(self) -> VirtioNet<R> {
        let Found { transport, device, features } = self;
        VirtioNet { transport, device, features, control: None, filter: Filter::default() }
    }
}

/// The control side.
pub(crate) struct VirtioNet<R> {
    transport: Transport,
    device: Arc<Device>,
    features: u64,
    control: Option<Control<R>>,
    filter: Filter,
}

/// The queue that commands go through.
struct Control<R> {
    ring: R,
    /// A command and its acknowledgement.
    memory: Memory,
    at: u64,
    door: transport::Door,
    /// A command was not answered, or not by the rules: what comes now would be the answer to which?
    lost: bool,
}

impl<R: Ring> VirtioNet<R> {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn pairs(&self) -> u16 {
        if self.has(net::F_MQ) { self.transport.config16(8).clamp(1, net::MAX_QUEUE_PAIRS) } else { 1 }
    }

    /// Makes ring `index` of at most `wanted` entries over `memory`, and shows it to the device.
    fn ring(&self, index: u16, size: u16, memory: &mut Memory) -> Result<(R, transport::Door), NicError> {
        let bytes = Areas::at(0, size, self.features, 0).end as usize;
        let areas = Areas::at(memory.take(bytes, ALIGN), size, self.features, 0);
        let mut ring = R::open(&areas, memory.table()).expect("inside the block");
        ring.arm(None);
        let door = self.transport.open_queue(index, &areas)?;
        Ok((ring, door))
    }

    /// The size of ring `index`: the device's own, or less if that is wanted.
    fn size(&self, index: u16, wanted: u16) -> Result<u16, NicError> {
        let most = self.transport.queue_size(index);
        // A command, and a header with its frame, are two descriptors.
        if most < 2 {
            return Err(NicError::Device(format!("queue {index} of the device has {most} entries").into()));
        }
        let size = most.min(wanted.max(2)).min(v::MAX_RING);
        Ok(if self.has(v::F_RING_PACKED) || size.is_power_of_two() {
            size
        } else {
            size.next_power_of_two() / 2
        })
    }

    fn control(&self) -> Result<Option<Control<R>>, NicError> {
        if !self.has(net::F_CTRL_VQ) {
            return Ok(None);
        }
        let index = 2 * self.pairs();
        let size = self.size(index, CONTROL)?;
        let mut memory =
            Memory::new(4 * 4096, hugepages::Backing { page: hugepages::PageSize::Base, node: None })?;
        let (ring, door) = self.ring(index, size, &mut memory)?;
        let at = memory.take(COMMAND + 8, 64);
        Ok(Some(Control { ring, memory, at, door, lost: false }))
    }

    /// What is set by commands, once the device runs.
    fn command(&mut self, setup: &Setup) -> Result<(), NicError> {
        self.sift()?;
        let own = self.has(F_CTRL_MAC);
        let Some(control) = &mut self.control else { return Ok(()) };
        if let Some(mac) = setup.mac.filter(|_| own) {
            control.send(SET_MAC, &mac)?;
        }
        if setup.queues > 1 {
            control.send(SET_PAIRS, &setup.queues.to_le_bytes())?;
        }
        Ok(())
    }
}

impl<R: Ring> VirtioNet<R> {
    /// Says which frames are to be taken, if it runs.
    fn sift(&mut self) -> Result<(), NicError> {
        let (receive, own) = (self.has(F_CTRL_RX), self.has(F_CTRL_MAC));
        let Some(control) = self.control.as_mut().filter(|_| receive) else { return Ok(()) };
        let filter = &self.filter;
        control.send(PROMISCUOUS, &[filter.promiscuous.into()])?;
        control.send(ALL_MULTICAST, &[(filter.promiscuous || filter.all_multicast).into()])?;
        if own {
            let mut table = Vec::new();
            for addresses in [&filter.unicast, &filter.multicast] {
                table.extend((addresses.len() as u32).to_le_bytes());
                table.extend(addresses.iter().flatten());
            }
            control.send(SET_TABLE, &table)?;
        }
        Ok(())
    }
}

/// Areas of rings begin at a multiple of this.
const ALIGN: u64 = 4096;

impl<R: Ring> Control<R> {
    fn send(&mut self, command: [u8; 2], data: &[u8]) -> Result<(), NicError> {
        use hugepages::Words;
        if self.lost {
            return Err(NicError::Device("the device has left a command unanswered; start it anew".into()));
        }
        let bytes = self.memory.words::<u64>(self.at, COMMAND / 8 + 1);
        let mut words = vec![0u8; COMMAND];
        words[..2].copy_from_slice(&command);
        words[2..2 + data.len()].copy_from_slice(data);
        bytes.copy_in(0, &words);
        // The acknowledgement: neither 0 nor 1 until the device has written it.
        bytes.set(COMMAND / 8, 0xff);
        let chain =
            [Segment::read(self.at, 2 + data.len() as u32), Segment::write(self.at + COMMAND as u64, 1)];
        self.ring.add(&chain).expect("one command at a time, and none that is lost");
        if self.ring.publish() {
            self.door.kick();
        }
        let mut lie = None;
        let used = super::wait(PATIENCE, || match self.ring.used() {
            Ok(used) => used.is_some(),
            Err(what) => {
                lie = Some(what);
                true
            }
        });
        self.lost = !used || lie.is_some();
        if let Some(lie) = lie {
            return Err(NicError::Device(format!("the device answers command {command:?}: {lie}").into()));
        }
        if !used {
            return Err(NicError::Late("answer a command", PATIENCE.as_millis() as u64));
        }
        match bytes.acquire(COMMAND / 8) & 0xff {
            0 => Ok(()),
            ack => Err(NicError::Device(format!("the device refused command {command:?}: {ack}").into())),
        }
    }
}

impl<R: Ring + 'static> Chip for VirtioNet<R> {
    type Rings = VirtioRings<R>;

    fn about(&self) -> About {
        let longest = if self.has(net::F_MTU) { u32::from(self.transport.config16(10)) + 18 } else { 65_535 };
        About { driver: "net_virtio", queues: self.pairs(), max_frame: longest }
    }

    fn mac(&self) -> [u8; 6] {
        std::array::from_fn(|i| self.transport.config8(i as u32))
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<VirtioRings<R>>, NicError> {
        self.transport.reset()?;
        self.transport.negotiate(self.features)?;
        self.device.set_master(true)?;
        let mut started = Vec::new();
        for pair in 0..setup.queues {
            let rx_size = self.size(2 * pair, setup.rx_size)?;
            let tx_size = self.size(2 * pair + 1, setup.tx_size)?;
            let rings = |size| Areas::at(0, size, self.features, 0).end as usize + ALIGN as usize;
            let headers = rings::headers(tx_size);
            let mut memory = Memory::new(rings(rx_size) + rings(tx_size) + headers, setup.backing)?;
            let rx = self.ring(2 * pair, rx_size, &mut memory)?;
            let tx = self.ring(2 * pair + 1, tx_size, &mut memory)?;
            started.push(VirtioRings::new(rx, tx, memory, self.features, setup.max_frame));
        }
        self.control = self.control()?;
        self.transport.run();
        self.command(setup)?;
        Ok(started)
    }

    fn filter(&mut self, filter: &Filter) -> Result<(), NicError> {
        let refused = |what: &'static str| Err(NicError::Device(what.into()));
        if filter.vlans.is_some() {
            return refused("VLANs are not filtered on virtio devices");
        }
        if filter.unicast.len().max(filter.multicast.len()) > ADDRESSES {
            return refused("64 further addresses, and 64 groups, are the most");
        }
        if *filter != (Filter { promiscuous: true, ..Filter::default() }) && !self.has(F_CTRL_RX) {
            return refused("the device takes every frame, whatever its destination");
        }
        let named = !filter.unicast.is_empty() || !filter.multicast.is_empty();
        if named && !self.has(F_CTRL_MAC) {
            return refused("the device has one address, and belongs to all groups or none");
        }
        self.filter = filter.clone();
        self.sift()
    }

    fn stop(&mut self) {
        let _ = self.transport.reset();
        let _ = self.device.set_master(false);
        self.control = None;
    }

    fn link(&self) -> (bool, u32) {
        let up = if self.has(net::F_STATUS) { self.transport.config16(6) & 1 != 0 } else { true };
        // §5.1.4: speed and duplex; all ones when unknown.
        (up, 0)
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Rings of `size` entries of a model of a device, and their memory.
#[cfg(any(test, fuzzing))]
pub(crate) fn liar<R: Ring>(
    regs: super::Regs,
    features: u64,
    size: u16,
) -> (VirtioRings<R>, Arc<hugepages::Table>) {
    let backing = hugepages::Backing { page: hugepages::PageSize::Base, node: None };
    let mut memory = Memory::new(1 << 16, backing).unwrap();
    let mut ring = |queue| {
        let bytes = Areas::at(0, size, features, 0).end as usize;
        let areas = Areas::at(memory.take(bytes, ALIGN), size, features, 0);
        (R::open(&areas, memory.table()).unwrap(), transport::Door::of(Arc::clone(&regs), queue))
    };
    let (rx, tx) = (ring(0), ring(1));
    let table = memory.table().clone();
    (VirtioRings::new(rx, tx, memory, features, 4018), table)
}

#[cfg(test)]
mod tests {
    use hugepages::{Backing, PageSize, Words};

    use super::*;
    use crate::nic::Registers;
    use crate::vring::driver::{Packed, Split};

    /// Registers of a device that nobody hears of.
    struct Deaf;

    impl Registers for Deaf {
        fn read(&self, _: u32, _: u32) -> u32 {
            0
        }

        fn write(&self, _: u32, _: u32, _: u32) {}
    }

    fn control<R: Ring>(features: u64) -> (Control<R>, Areas) {
        let mut memory = Memory::new(4 * 4096, Backing { page: PageSize::Base, node: None }).unwrap();
        let bytes = Areas::at(0, CONTROL, features, 0).end as usize;
        let areas = Areas::at(memory.take(bytes, ALIGN), CONTROL, features, 0);
        let ring = R::open(&areas, memory.table()).unwrap();
        let (at, door) = (memory.take(COMMAND + 8, 64), transport::Door::of(Arc::new(Deaf), 0));
        (Control { ring, memory, at, door, lost: false }, areas)
    }

    fn unanswered<R: Ring>(features: u64) {
        let (mut control, areas) = control::<R>(features);
        let why = control.send(PROMISCUOUS, &[1]).unwrap_err();
        assert!(matches!(why, NicError::Late(..)), "{why}");
        // The answer comes after all, and is none to what is asked now.
        let device = control.memory.words::<u16>(areas.device, 4);
        device.set(1, 1);
        control.memory.words::<u64>(control.at, COMMAND / 8 + 1).set(COMMAND / 8, 0);
        for _ in 0..2 * CONTROL {
            let why = control.send(ALL_MULTICAST, &[1]).unwrap_err().to_string();
            assert!(why.contains("unanswered"), "{why}");
        }
    }

    #[test]
    fn a_device_that_answers_no_command_costs_no_more_than_its_own() {
        unanswered::<Split>(v::F_VERSION_1);
        unanswered::<Packed>(v::F_VERSION_1 | v::F_RING_PACKED);
    }

    #[test]
    fn answers_to_what_was_not_asked_are_lies() {
        let (mut lying, areas) = control::<Split>(v::F_VERSION_1);
        let used = lying.memory.words::<u16>(areas.device, 8);
        used.set(2, 9);
        used.set(1, 1);
        let why = lying.send(PROMISCUOUS, &[1]).unwrap_err().to_string();
        assert!(why.contains("the device answers command"), "{why}");
        assert!(lying.send(PROMISCUOUS, &[1]).is_err());
        // One that says it is done, and has not written how it went.
        let (mut silent, areas) = control::<Split>(v::F_VERSION_1);
        let used = silent.memory.words::<u16>(areas.device, 8);
        used.set(1, 1);
        let why = silent.send(PROMISCUOUS, &[1]).unwrap_err().to_string();
        assert!(why.contains("refused"), "{why}");
    }
}
