//! Intel 82576 (igb), from the "82576EB Gigabit Ethernet Controller Datasheet". Section numbers are its.

mod registers;

use std::sync::Arc;
use std::time::Duration;

use hugepages::Offload;

use super::intel::{self, Advanced, Filters, Format, IntelRings, Totals, mask};
use super::pci::Id;
use super::{About, Chip, NicError, Regs, Setup, rss, wait};
use crate::filter::Filter;
use crate::sys::vfio::Device;
use registers as r;

/// Devices of the family.
pub(crate) const IDS: &[Id] = &[
    Id { vendor: 0x8086, device: 0x10c9 },
    Id { vendor: 0x8086, device: 0x10e6 },
    Id { vendor: 0x8086, device: 0x10e7 },
    Id { vendor: 0x8086, device: 0x10e8 },
    Id { vendor: 0x8086, device: 0x1526 },
];

/// §1.3: jumbo frames of 9.5 KiB.
const MAX_FRAME: u32 = 9728 - 4;
/// §7.1.2: queues without virtual functions, as far as RSS reaches them: a pair has one bit less.
const QUEUES: u16 = 8;
/// Patience with a reset, with requests that are on the bus, and with a queue (§4.5).
const PATIENCE: Duration = Duration::from_millis(100);

/// Descriptors of the 82576.
pub(crate) struct Igb82576;

impl Format for Igb82576 {
    const MAX_PIECE: u32 = 15 << 10;
    /// RXE, CXE, SEQ, SE, CE.
    const DAMAGED: u64 = 1 << 31 | 1 << 28 | 1 << 26 | 1 << 25 | 1 << 24;
    /// L4E.
    const UNSURE: u64 = 1 << 29;

    fn completes(offload: &Offload) -> bool {
        Advanced::completes(offload)
    }

    fn context(offload: &Offload, network: u16) -> (u64, u64) {
        Advanced::context(offload, network)
    }

    fn data(offload: &Offload, len: u32, total: u32) -> u64 {
        Advanced::data(offload, len, total)
    }
}

/// §8.10.
const FILTERS: Filters = Filters { addresses: r::RAL, most: 16, groups: r::MTA, networks: r::VFTA };

/// The control side.
pub(crate) struct Igb {
    regs: Regs,
    device: Option<Arc<Device>>,
    totals: Totals,
    filter: Filter,
}

impl Igb {
    /// The chip behind `regs`; `device` is what lets it reach memory, if it is one.
    pub(crate) fn new(regs: Regs, device: Option<Arc<Device>>) -> Igb {
        Igb { regs, device, totals: Totals::of(r::COUNTERS), filter: Filter::default() }
    }

    /// §4.2.1.6.1, §4.5.2: interrupts off, no more requests, reset.
    fn reset(&self) -> Result<(), NicError> {
        let regs = &self.regs;
        regs.set(r::IMC, u32::MAX);
        regs.set(r::EIMC, u32::MAX);
        regs.set(r::RCTL, 0);
        regs.set(r::TCTL, r::TCTL_PSP);
        intel::reset(regs, r::CTRL_RST, Duration::from_millis(1))?;
        regs.set(r::IMC, u32::MAX);
        regs.set(r::EIMC, u32::MAX);
        regs.get(r::ICR);
        Ok(())
    }

    /// §4.5.7: forces nothing; lets the PHY negotiate, also when it has been told to rest.
    fn start_link(&self) {
        let regs = &self.regs;
        regs.change(r::CTRL, r::CTRL_SLU, r::CTRL_FORCE_SPEED | r::CTRL_FORCE_DUPLEX);
        if regs.get(r::STATUS) & r::STATUS_LINK == 0 {
            let write = r::MDIC_WRITE | r::MDIC_PHY | r::PHY_CONTROL << 16;
            regs.set(r::MDIC, write | r::PHY_NEGOTIATE);
            wait(PATIENCE, || regs.get(r::MDIC) & r::MDIC_READY != 0);
        }
    }

    /// §4.5.9.
    fn start_receive(&self, rings: &[IntelRings<Igb82576>], setup: &Setup) -> Result<(), NicError> {
        let regs = &self.regs;
        if let Some(mac) = setup.mac {
            FILTERS.listen(regs, 0, mac);
        }
        regs.set(r::RXCSUM, r::RXCSUM_IP | r::RXCSUM_TCP_UDP | r::RXCSUM_NO_FRAGMENTS);
        self.spread(setup.queues);
        regs.set(r::RLPML, setup.max_frame + 4);
        let long = if setup.max_frame > 1518 { r::RCTL_LONG } else { 0 };
        regs.set(r::RCTL, r::RCTL_ON | r::RCTL_BROADCAST | r::RCTL_STRIP_CRC | long);
        self.sift();
        for (queue, ring) in rings.iter().enumerate() {
            let (base, place) = (r::rx_queue(queue as u16), ring.places().0);
            regs.set(base + r::BASE_LOW, place.at as u32);
            regs.set(base + r::BASE_HIGH, (place.at >> 32) as u32);
            regs.set(base + r::LENGTH, place.bytes);
            // With several, one that is not served must not stop the others.
            let drop = if setup.queues > 1 { r::SRRCTL_DROP } else { 0 };
            regs.set(base + r::SRRCTL, r::SRRCTL_ADVANCED | setup.room >> 10 | drop);
            regs.set(base + r::HEAD, 0);
            regs.set(base + r::CONTROL, r::CONTROL_ON | 1 << 16 | 8 << 8 | 8);
            self.on(base + r::CONTROL)?;
            regs.set(base + r::TAIL, 0);
        }
        Ok(())
    }

    /// §7.1.2.8: by a hash of addresses and ports, if there are several queues.
    fn spread(&self, queues: u16) {
        let regs = &self.regs;
        if queues == 1 {
            return regs.set(r::MRQC, 0);
        }
        for (i, word) in rss::key().iter().enumerate() {
            regs.set(r::RSSRK + 4 * i as u32, *word);
        }
        for (i, word) in rss::table::<128>(queues).iter().enumerate() {
            regs.set(r::RETA + 4 * i as u32, *word);
        }
        regs.set(r::MRQC, r::MRQC_RSS | r::MRQC_FIELDS);
    }

    /// Takes the frames that it is to take.
    fn sift(&self) {
        let (regs, filter) = (&self.regs, &self.filter);
        FILTERS.set(regs, filter);
        let modes = [
            (filter.promiscuous, r::RCTL_UNICAST),
            (filter.promiscuous || filter.all_multicast, r::RCTL_MULTICAST),
            (filter.vlans.is_some(), r::RCTL_NETWORKS),
        ];
        regs.change(r::RCTL, mask(&modes, true), mask(&modes, false));
    }

    /// §4.5.10.
    fn start_transmit(&self, rings: &[IntelRings<Igb82576>]) -> Result<(), NicError> {
        let regs = &self.regs;
        regs.set(r::TCTL, r::TCTL_ON | r::TCTL_PSP | r::TCTL_RETRY);
        for (queue, ring) in rings.iter().enumerate() {
            let (base, place) = (r::tx_queue(queue as u16), ring.places().1);
            regs.set(base + r::BASE_LOW, place.at as u32);
            regs.set(base + r::BASE_HIGH, (place.at >> 32) as u32);
            regs.set(base + r::LENGTH, place.bytes);
            regs.set(base + r::HEAD, 0);
            regs.set(base + r::TAIL, 0);
            regs.set(base + r::CONTROL, r::CONTROL_ON | 1 << 16 | 1 << 8 | 8);
            self.on(base + r::CONTROL)?;
        }
        Ok(())
    }

    /// Waits until a queue is on.
    fn on(&self, control: u32) -> Result<(), NicError> {
        let on = wait(PATIENCE, || self.regs.get(control) & r::CONTROL_ON != 0);
        if on { Ok(()) } else { Err(NicError::Late("switch a queue on", PATIENCE.as_millis() as u64)) }
    }
}

impl Chip for Igb {
    type Rings = IntelRings<Igb82576>;

    fn about(&self) -> About {
        About { driver: "net_e1000_igb", queues: QUEUES, max_frame: MAX_FRAME }
    }

    fn mac(&self) -> [u8; 6] {
        FILTERS.mac(&self.regs)
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<IntelRings<Igb82576>>, NicError> {
        self.reset()?;
        let doors = |queue| (r::rx_queue(queue) + r::TAIL, r::tx_queue(queue) + r::TAIL);
        let rings = IntelRings::make(&self.regs, setup, doors)?;
        if let Some(device) = &self.device {
            device.set_master(true)?;
        }
        // The firmware leaves the device to us.
        self.regs.change(r::CTRL_EXT, r::CTRL_EXT_DRIVER, 0);
        self.start_link();
        self.start_receive(&rings, setup)?;
        self.start_transmit(&rings)?;
        self.counters();
        Ok(rings)
    }

    fn filter(&mut self, filter: &Filter) -> Result<(), NicError> {
        FILTERS.check(filter)?;
        self.filter = filter.clone();
        self.sift();
        Ok(())
    }

    fn stop(&mut self) {
        // Keeps what was counted so far: a reset forgets it.
        self.counters();
        let _ = self.reset();
        if let Some(device) = &self.device {
            let _ = device.set_master(false);
        }
    }

    fn link(&self) -> (bool, u32) {
        let status = self.regs.get(r::STATUS);
        let speed = [10, 100, 1000, 1000][(status >> r::STATUS_SPEED & 3) as usize];
        (status != u32::MAX && status & r::STATUS_LINK != 0, speed)
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        self.totals.read(&self.regs, r::COUNTERS, u32::MAX)
    }
}
