//! VMware vmxnet3, revision 1, by the layout of its structures as VMware's drivers for Linux and BSD
//! publish it.

mod layout;
mod rings;

use std::sync::Arc;

use hugepages::{Window, Words};

use super::memory::Memory;
use super::pci::Id;
use super::{About, Chip, NicError, Regs, Setup};
use crate::filter::Filter;
use crate::sys::vfio::Device;
use layout as l;
use rings::{Rings3, Sizes};

/// Devices of the family.
pub(crate) const IDS: &[Id] = &[Id { vendor: 0x15ad, device: 0x07b0 }];

/// The device takes payloads of 9000 bytes, and a VLAN tag.
const MAX_FRAME: u32 = 9000 + 18;

/// The control side.
pub(crate) struct Vmxnet3 {
    /// Doors; commands and addresses.
    doors: Regs,
    regs: Regs,
    device: Option<Arc<Device>>,
    shared: Option<Shared>,
    filter: Filter,
    totals: [u64; l::COUNTERS.len()],
}

/// What the device is told at activation, and where it tells.
struct Shared {
    words: Window<u32>,
    at: u64,
}

impl Shared {
    fn put(&self, at: usize, value: u32) {
        self.words.set(at / 4, value);
    }

    fn put64(&self, at: usize, value: u64) {
        self.put(at, value as u32);
        self.put(at + 4, (value >> 32) as u32);
    }

    fn get64(&self, at: usize) -> u64 {
        u64::from(self.words.get(at / 4)) | u64::from(self.words.get(at / 4 + 1)) << 32
    }
}

impl Vmxnet3 {
    /// The chip behind these registers; `device` is what lets it reach memory, if it is one.
    pub(crate) fn new(doors: Regs, regs: Regs, device: Option<Arc<Device>>) -> Vmxnet3 {
        Vmxnet3 {
            doors,
            regs,
            device,
            shared: None,
            filter: Filter::default(),
            totals: [0; l::COUNTERS.len()],
        }
    }

    /// Gives a command and returns its answer.
    fn command(&self, command: u32) -> u32 {
        self.regs.set(l::CMD, command);
        self.regs.get(l::CMD)
    }

    /// Revision 1 of the device and of its structures.
    fn choose_revision(&self) -> Result<(), NicError> {
        if self.regs.get(l::VRRS) & 1 == 0 || self.regs.get(l::UVRS) & 1 == 0 {
            return Err(NicError::Device("a vmxnet3 device without revision 1".into()));
        }
        self.regs.set(l::VRRS, 1);
        self.regs.set(l::UVRS, 1);
        Ok(())
    }

    /// Says where everything is.
    fn describe(&self, shared: &Shared, sizes: Sizes, rings: &Rings3, setup: &Setup) {
        let queues = shared.at + l::SHARED as u64;
        shared.put(l::MAGIC, l::MAGIC_VALUE);
        shared.put(l::DRIVER_VERSION, 1);
        shared.put(l::DRIVER_OS, l::OS_64_BITS_LINUX);
        shared.put(l::DRIVER_REVISION, 1);
        shared.put(l::DRIVER_UPT, 1);
        shared.put64(l::FEATURES, l::FEATURE_RX_CHECKSUM);
        shared.put64(l::DRIVER_DATA, shared.at);
        shared.put64(l::QUEUES, queues);
        shared.put(l::DRIVER_DATA_LEN, l::SHARED as u32);
        shared.put(l::QUEUES_LEN, 2 * l::QUEUE as u32);
        shared.put(l::MTU, setup.max_frame - 18);
        let pieces = setup.max_frame.div_ceil(setup.room);
        shared.put(l::PIECES_AND_QUEUES, pieces | 1 << 16 | 1 << 24);
        // One interrupt, never asked for.
        shared.put(l::INTERRUPTS, 1 | 1 << 8);
        shared.put(l::INTERRUPT_CONTROL, l::INTERRUPTS_OFF);
        self.sift(shared);
        let (tx, rx) = (l::SHARED, l::SHARED + l::QUEUE);
        let places = rings.places();
        shared.put64(tx + l::TX_RING, places.tx);
        shared.put64(tx + l::TX_DATA, places.data);
        shared.put64(tx + l::TX_DONE, places.tx_done);
        shared.put(tx + l::TX_SIZE, sizes.tx.into());
        shared.put(tx + l::TX_DATA_SIZE, sizes.tx.into());
        shared.put(tx + l::TX_DONE_SIZE, sizes.tx.into());
        shared.put64(rx + l::RX_RINGS, places.rx[0]);
        shared.put64(rx + l::RX_RINGS + 8, places.rx[1]);
        shared.put64(rx + l::RX_DONE, places.rx_done);
        shared.put(rx + l::RX_SIZES, sizes.rx.into());
        shared.put(rx + l::RX_SIZES + 4, sizes.rx.into());
        shared.put(rx + l::RX_DONE_SIZE, 2 * u32::from(sizes.rx));
    }

    /// Says which frames are to be taken.
    fn sift(&self, shared: &Shared) {
        let filter = &self.filter;
        let usual = l::MODE_UNICAST | l::MODE_MULTICAST | l::MODE_BROADCAST;
        let everything = if filter.promiscuous { l::MODE_PROMISCUOUS } else { 0 };
        let groups = if filter.promiscuous || filter.all_multicast { l::MODE_ALL_MULTICAST } else { 0 };
        shared.put(l::RECEIVE_MODE, usual | everything | groups);
        let mut table: Vec<u8> = filter.multicast.iter().flatten().copied().collect();
        // With the modes, of 16 bits; the other half is not used.
        shared.put(l::GROUPS_LEN, table.len() as u32);
        shared.put64(l::GROUPS, shared.at + l::TABLE as u64);
        table.resize(table.len().next_multiple_of(4), 0);
        for (i, word) in table.chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes(word.try_into().expect("of 4 bytes"));
            shared.put(l::TABLE + 4 * i, word);
        }
        let mut networks = [if filter.vlans.is_some() { 0 } else { u32::MAX }; l::NETWORKS_WORDS];
        for vlan in filter.vlans.iter().flatten() {
            networks[usize::from(vlan & 0xfff) / 32] |= 1 << (vlan % 32);
        }
        networks.iter().enumerate().for_each(|(i, word)| shared.put(l::NETWORKS + 4 * i, *word));
    }

    /// Has the device look at what was said.
    fn update(&self) {
        for command in [l::UPDATE_RECEIVE_MODE, l::UPDATE_GROUPS, l::UPDATE_NETWORKS] {
            self.regs.set(l::CMD, command);
        }
    }

    fn set_mac(&self, [a, b, c, d, e, f]: [u8; 6]) {
        self.regs.set(l::MACL, u32::from_le_bytes([a, b, c, d]));
        self.regs.set(l::MACH, u32::from_le_bytes([e, f, 0, 0]));
    }
}

impl Chip for Vmxnet3 {
    type Rings = Rings3;

    fn about(&self) -> About {
        About { driver: "net_vmxnet3", queues: 1, max_frame: MAX_FRAME }
    }

    fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.regs.get(l::MACL).to_le_bytes();
        let [e, f, ..] = self.regs.get(l::MACH).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<Rings3>, NicError> {
        assert_eq!(setup.queues, 1, "of one queue pair");
        self.choose_revision()?;
        self.command(l::RESET);
        let sizes = Sizes::of(setup);
        let mut memory = Memory::new(sizes.bytes() + l::BYTES + 1024, setup.backing)?;
        let at = memory.take(l::BYTES, 512);
        let shared = Shared { words: memory.words(at, l::BYTES / 4), at };
        let rings = Rings3::new(Arc::clone(&self.doors), memory, sizes);
        self.describe(&shared, sizes, &rings, setup);
        if let Some(device) = &self.device {
            device.set_master(true)?;
        }
        if let Some(mac) = setup.mac {
            self.set_mac(mac);
        }
        self.regs.set(l::DSAL, at as u32);
        self.regs.set(l::DSAH, (at >> 32) as u32);
        let refused = self.command(l::ACTIVATE);
        if refused != 0 {
            return Err(NicError::Device(format!("the device was not activated: {refused:#x}").into()));
        }
        self.update();
        self.shared = Some(shared);
        Ok(vec![rings])
    }

    fn filter(&mut self, filter: &Filter) -> Result<(), NicError> {
        if !filter.unicast.is_empty() {
            return Err(NicError::Device("the device has one address; use promiscuous mode".into()));
        }
        if filter.multicast.len() > l::TABLE_MOST {
            let what = format!("the device has room for {} groups; use all-multicast mode", l::TABLE_MOST);
            return Err(NicError::Device(what.into()));
        }
        self.filter = filter.clone();
        if let Some(shared) = &self.shared {
            self.sift(shared);
            self.update();
        }
        Ok(())
    }

    fn stop(&mut self) {
        let now = self.counters();
        self.regs.set(l::CMD, l::QUIESCE);
        self.regs.set(l::CMD, l::RESET);
        if let Some(device) = &self.device {
            let _ = device.set_master(false);
        }
        if self.shared.take().is_some() {
            // The next activation counts from zero.
            self.totals = std::array::from_fn(|i| now[i].1);
        }
    }

    fn link(&self) -> (bool, u32) {
        let link = self.command(l::GET_LINK);
        (link != u32::MAX && link & 1 != 0, link >> 16)
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        if self.shared.is_some() {
            self.regs.set(l::CMD, l::GET_STATS);
        }
        let now = |at: usize| self.shared.as_ref().map_or(0, |shared| shared.get64(l::SHARED + at));
        l::COUNTERS.iter().zip(self.totals).map(|(&(name, at), total)| (name, total + now(at))).collect()
    }
}
