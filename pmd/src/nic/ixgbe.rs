//! Intel 82599, X540 and X550 (ixgbe), from the "82599 10 GbE Controller Datasheet". Section numbers
//! are its. Written to the datasheet and tried against a model of it; no hardware has run it yet.

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

/// Devices of the family that differ in their PHY only.
pub(crate) const IDS: &[Id] = &[
    Id { vendor: 0x8086, device: 0x10f7 },
    Id { vendor: 0x8086, device: 0x10f8 },
    Id { vendor: 0x8086, device: 0x10fb },
    Id { vendor: 0x8086, device: 0x10fc },
    Id { vendor: 0x8086, device: 0x151c },
    Id { vendor: 0x8086, device: 0x1528 },
    Id { vendor: 0x8086, device: 0x154d },
    Id { vendor: 0x8086, device: 0x1557 },
    Id { vendor: 0x8086, device: 0x1560 },
    Id { vendor: 0x8086, device: 0x1563 },
];

/// §1.3: jumbo frames of 15.5 KiB.
const MAX_FRAME: u32 = 15_872 - 4;
/// §7.1.2.1: queues that RSS reaches.
const QUEUES: u16 = 16;
/// Patience with a reset and with a queue; with what the firmware has to finish (§4.6.3).
const PATIENCE: Duration = Duration::from_millis(100);
const FIRMWARE: Duration = Duration::from_secs(1);

/// Descriptors of the 82599.
pub(crate) struct Ixgbe82599;

impl Ixgbe82599 {
    /// §7.2.3.2.4: the context is to be looked at.
    const CHECK_CONTEXT: u64 = 1 << 39;
}

impl Format for Ixgbe82599 {
    const MAX_PIECE: u32 = 15 << 10;
    /// §7.1.6.2: RXE, which stands for all errors of the MAC.
    const DAMAGED: u64 = 1 << 29;
    /// L4E.
    const UNSURE: u64 = 1 << 30;

    fn completes(offload: &Offload) -> bool {
        Advanced::completes(offload)
    }

    fn context(offload: &Offload, network: u16) -> (u64, u64) {
        Advanced::context(offload, network)
    }

    fn data(offload: &Offload, len: u32, total: u32) -> u64 {
        let plain = Advanced::data(&Offload::default(), len, total);
        let word = Advanced::data(offload, len, total);
        if word == plain { word } else { word | Ixgbe82599::CHECK_CONTEXT }
    }
}

/// §8.2.3.7.
const FILTERS: Filters = Filters { addresses: r::RAL, most: 128, groups: r::MTA, networks: r::VFTA };

/// The control side.
pub(crate) struct Ixgbe {
    regs: Regs,
    device: Option<Arc<Device>>,
    totals: Totals,
    filter: Filter,
}

impl Ixgbe {
    /// The chip behind `regs`; `device` is what lets it reach memory, if it is one.
    pub(crate) fn new(regs: Regs, device: Option<Arc<Device>>) -> Ixgbe {
        Ixgbe { regs, device, totals: Totals::of(r::COUNTERS), filter: Filter::default() }
    }

    /// §4.6.3.1, §4.6.3.2: interrupts off, no more requests, reset, and what comes after.
    fn reset(&self) -> Result<(), NicError> {
        let regs = &self.regs;
        self.interrupts_off();
        regs.change(r::RXCTRL, 0, r::RXCTRL_ON);
        intel::reset(regs, r::CTRL_RST | r::CTRL_LINK_RST, Duration::from_millis(10))?;
        self.interrupts_off();
        // §4.6.3: the EEPROM is read, and the DMA engine ready.
        let ready = || regs.get(r::EEC) & r::EEC_READ != 0 && regs.get(r::RDRXCTL) & r::RDRXCTL_READY != 0;
        if !wait(FIRMWARE, ready) {
            return Err(NicError::Late("read its EEPROM", FIRMWARE.as_millis() as u64));
        }
        Ok(())
    }

    fn interrupts_off(&self) {
        self.regs.set(r::EIMC, 0x7fff_ffff);
        self.regs.set(r::EIMC_EX, u32::MAX);
        self.regs.set(r::EIMC_EX + 4, u32::MAX);
        self.regs.get(r::EICR);
    }

    /// §4.6.7.
    fn start_receive(&self, rings: &[IntelRings<Ixgbe82599>], setup: &Setup) -> Result<(), NicError> {
        let regs = &self.regs;
        if let Some(mac) = setup.mac {
            FILTERS.listen(regs, 0, mac);
        }
        regs.set(r::FCTRL, r::FCTRL_BROADCAST);
        self.sift();
        regs.set(r::RXCSUM, r::RXCSUM_IP | r::RXCSUM_NO_FRAGMENTS);
        self.spread(setup.queues);
        // §8.2.3.7.4: the two that strip the check sequence must agree.
        regs.change(r::RDRXCTL, r::RDRXCTL_STRIP_CRC, r::RDRXCTL_RSC_FIRST);
        let long = if setup.max_frame > 1518 { r::HLREG0_LONG } else { 0 };
        regs.change(
            r::HLREG0,
            r::HLREG0_STRIP_CRC | r::HLREG0_ADD_CRC | r::HLREG0_PAD | long,
            r::HLREG0_LONG & !long,
        );
        regs.set(r::MAXFRS, (setup.max_frame + 4) << 16);
        for (queue, ring) in rings.iter().enumerate() {
            let (base, place) = (r::rx_queue(queue as u16), ring.places().0);
            regs.set(base + r::BASE_LOW, place.at as u32);
            regs.set(base + r::BASE_HIGH, (place.at >> 32) as u32);
            regs.set(base + r::LENGTH, place.bytes);
            let drop = if setup.queues > 1 { r::SRRCTL_DROP } else { 0 };
            regs.set(base + r::SRRCTL, r::SRRCTL_ADVANCED | setup.room >> 10 | drop);
            regs.set(base + r::HEAD, 0);
            regs.change(base + r::CONTROL, r::CONTROL_ON, 0);
            self.on(base + r::CONTROL)?;
            regs.set(base + r::TAIL, 0);
        }
        // §4.6.7: the data path rests while it is switched on.
        regs.change(r::SECRXCTRL, r::SECRXCTRL_OFF, 0);
        wait(PATIENCE, || regs.get(r::SECRXSTAT) & r::SECRXSTAT_READY != 0);
        regs.change(r::RXCTRL, r::RXCTRL_ON, 0);
        regs.change(r::SECRXCTRL, 0, r::SECRXCTRL_OFF);
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

    /// §7.1.1: takes the frames that it is to take.
    fn sift(&self) {
        let (regs, filter) = (&self.regs, &self.filter);
        FILTERS.set(regs, filter);
        for number in 0..FILTERS.most {
            regs.set(r::MPSAR + 8 * number, 1);
        }
        regs.set(r::MCSTCTRL, r::MCSTCTRL_ON);
        let modes = [
            (filter.promiscuous, r::FCTRL_UNICAST),
            (filter.promiscuous || filter.all_multicast, r::FCTRL_MULTICAST),
        ];
        regs.change(r::FCTRL, mask(&modes, true), mask(&modes, false));
        let networks = [(filter.vlans.is_some(), r::VLNCTRL_ON)];
        regs.change(r::VLNCTRL, mask(&networks, true), mask(&networks, false));
    }

    /// §4.6.8.
    fn start_transmit(&self, rings: &[IntelRings<Ixgbe82599>]) -> Result<(), NicError> {
        let regs = &self.regs;
        for (queue, ring) in rings.iter().enumerate() {
            let (base, place) = (r::tx_queue(queue as u16), ring.places().1);
            regs.set(base + r::BASE_LOW, place.at as u32);
            regs.set(base + r::BASE_HIGH, (place.at >> 32) as u32);
            regs.set(base + r::LENGTH, place.bytes);
            regs.set(base + r::HEAD, 0);
            regs.set(base + r::TAIL, 0);
        }
        regs.change(r::DMATXCTL, r::DMATXCTL_ON, 0);
        for queue in 0..rings.len() as u16 {
            let control = r::tx_queue(queue) + r::CONTROL;
            // Prefetch 32 when the host has 1; write back each.
            regs.set(control, r::CONTROL_ON | 1 << 8 | 32);
            self.on(control)?;
        }
        Ok(())
    }

    /// Waits until a queue is on.
    fn on(&self, control: u32) -> Result<(), NicError> {
        let on = wait(PATIENCE, || self.regs.get(control) & r::CONTROL_ON != 0);
        if on { Ok(()) } else { Err(NicError::Late("switch a queue on", PATIENCE.as_millis() as u64)) }
    }
}

impl Chip for Ixgbe {
    type Rings = IntelRings<Ixgbe82599>;

    fn about(&self) -> About {
        About { driver: "net_ixgbe", queues: QUEUES, max_frame: MAX_FRAME }
    }

    fn mac(&self) -> [u8; 6] {
        FILTERS.mac(&self.regs)
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<IntelRings<Ixgbe82599>>, NicError> {
        self.reset()?;
        let doors = |queue| (r::rx_queue(queue) + r::TAIL, r::tx_queue(queue) + r::TAIL);
        let rings = IntelRings::make(&self.regs, setup, doors)?;
        if let Some(device) = &self.device {
            device.set_master(true)?;
        }
        // The firmware leaves the device to us; no relaxed ordering of what is written back.
        self.regs.change(r::CTRL_EXT, r::CTRL_EXT_DRIVER, 0);
        self.regs.change(r::AUTOC, r::AUTOC_RESTART, 0);
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
        let links = self.regs.get(r::LINKS);
        let speed = [0, 100, 1000, 10_000][(links >> r::LINKS_SPEED & 3) as usize];
        (links != u32::MAX && links & r::LINKS_UP != 0, speed)
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        self.totals.read(&self.regs, r::COUNTERS, 0xf)
    }
}

#[cfg(test)]
mod tests;
