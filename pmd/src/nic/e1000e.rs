//! Intel 82574 (e1000e), from the "82574 GbE Controller Family Datasheet". Section numbers are its.

mod registers;

use std::sync::Arc;
use std::time::Duration;

use hugepages::Offload;

use super::intel::{self, Filters, Format, IntelRings, Place, Totals, mask};
use super::pci::Id;
use super::{About, Chip, NicError, Regs, Setup};
use crate::filter::Filter;
use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM};
use crate::sys::vfio::Device;
use registers as r;

/// Devices of the family.
pub(crate) const IDS: &[Id] = &[Id { vendor: 0x8086, device: 0x10d3 }, Id { vendor: 0x8086, device: 0x10f6 }];

/// §1.3: jumbo frames of 9018 bytes with the check sequence; a VLAN tag besides.
const MAX_FRAME: u32 = 9018 - 4 + 4;
/// Descriptors of the 82574: extended ones for receive (§7.1.5), context and data ones for transmit
/// (§7.2.10, §7.2.11).
pub(crate) struct Extended;

impl Extended {
    const DATA: u64 = 1 << 20;
    const L4_CHECKSUM: u64 = 1 << 41;
}

impl Format for Extended {
    /// The field has room for more, which the chip's buffer has not (§7.2.1).
    const MAX_PIECE: u32 = 8192;
    /// RXE, CXE, SEQ, SE, CE.
    const DAMAGED: u64 = 1 << 31 | 1 << 28 | 1 << 26 | 1 << 25 | 1 << 24;
    /// TCPE, IXSM.
    const UNSURE: u64 = 1 << 29 | 1 << 2;

    fn completes(offload: &Offload) -> bool {
        let field = u32::from(offload.csum_start) + u32::from(offload.csum_offset);
        offload.gso_type == GSO_NONE && field <= 255
    }

    fn context(offload: &Offload, _: u16) -> (u64, u64) {
        // TUCSS, TUCSO; TUCSE 0: to the end. The IP fields are not used.
        let start = u64::from(offload.csum_start);
        (start << 32 | (start + u64::from(offload.csum_offset)) << 40, 0)
    }

    fn data(offload: &Offload, len: u32, _: u32) -> u64 {
        let sum = if offload.flags & HDR_F_NEEDS_CSUM != 0 { Extended::L4_CHECKSUM } else { 0 };
        u64::from(len) | Extended::DATA | sum
    }
}

/// §10.2.5.13.
const FILTERS: Filters = Filters { addresses: r::RAL, most: 16, groups: r::MTA, networks: r::VFTA };

/// The control side.
pub(crate) struct E1000e {
    regs: Regs,
    device: Option<Arc<Device>>,
    totals: Totals,
    filter: Filter,
}

impl E1000e {
    /// The chip behind `regs`; `device` is what lets it reach memory, if it is one.
    pub(crate) fn new(regs: Regs, device: Option<Arc<Device>>) -> E1000e {
        E1000e { regs, device, totals: Totals::of(r::COUNTERS), filter: Filter::default() }
    }

    /// §4.6.1: interrupts off, no more requests, reset.
    fn reset(&self) -> Result<(), NicError> {
        let regs = &self.regs;
        regs.set(r::IMC, u32::MAX);
        regs.set(r::RCTL, 0);
        regs.set(r::TCTL, r::TCTL_PSP);
        intel::reset(regs, r::CTRL_RST, Duration::from_millis(1))?;
        regs.set(r::IMC, u32::MAX);
        regs.get(r::ICR);
        Ok(())
    }

    /// §4.6.5.
    fn start_receive(&self, at: Place, setup: &Setup) {
        let regs = &self.regs;
        if let Some(mac) = setup.mac {
            FILTERS.listen(regs, 0, mac);
        }
        regs.set(r::RXCSUM, r::RXCSUM_IP | r::RXCSUM_TCP_UDP);
        regs.set(r::RFCTL, r::RFCTL_EXTENDED);
        regs.set(r::MRQC, 0);
        regs.set(r::RDBAL, at.at as u32);
        regs.set(r::RDBAH, (at.at >> 32) as u32);
        regs.set(r::RDLEN, at.bytes);
        regs.set(r::RDH, 0);
        regs.set(r::RDT, 0);
        regs.set(r::RDTR, 0);
        // Prefetch 8 when the host has 4; write back each.
        regs.set(r::RXDCTL, r::DCTL_DESCRIPTORS | 1 << 16 | 4 << 8 | 8);
        let size = match setup.room {
            1024 => r::RCTL_1024,
            4096 => r::RCTL_4096,
            8192 => r::RCTL_8192,
            16384 => r::RCTL_16384,
            _ => r::RCTL_2048,
        };
        let long = if setup.max_frame > 1518 { r::RCTL_LONG } else { 0 };
        regs.set(r::RCTL, r::RCTL_ON | r::RCTL_BROADCAST | r::RCTL_STRIP_CRC | size | long);
        self.sift();
    }

    /// Takes the frames that it is to take.
    fn sift(&self) {
        let (regs, filter) = (&self.regs, &self.filter);
        FILTERS.set(regs, filter);
        regs.set(r::VET, r::VET_TAGGED);
        let modes = [
            (filter.promiscuous, r::RCTL_UNICAST),
            (filter.promiscuous || filter.all_multicast, r::RCTL_MULTICAST),
            (filter.vlans.is_some(), r::RCTL_NETWORKS),
        ];
        regs.change(r::RCTL, mask(&modes, true), mask(&modes, false));
    }

    /// §4.6.6.
    fn start_transmit(&self, at: Place) {
        let regs = &self.regs;
        regs.set(r::TDBAL, at.at as u32);
        regs.set(r::TDBAH, (at.at >> 32) as u32);
        regs.set(r::TDLEN, at.bytes);
        regs.set(r::TDH, 0);
        regs.set(r::TDT, 0);
        regs.set(r::TIDV, 0);
        regs.set(r::TXDCTL, r::DCTL_DESCRIPTORS | r::TXDCTL_ONE | 1 << 16 | 1 << 8 | 31);
        regs.set(r::TIPG, r::TIPG_COPPER);
        regs.set(r::TCTL, r::TCTL_ON | r::TCTL_PSP | r::TCTL_RETRY);
    }
}

impl Chip for E1000e {
    type Rings = IntelRings<Extended>;

    fn about(&self) -> About {
        About { driver: "net_e1000_em", queues: 1, max_frame: MAX_FRAME }
    }

    fn mac(&self) -> [u8; 6] {
        FILTERS.mac(&self.regs)
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<IntelRings<Extended>>, NicError> {
        assert_eq!(setup.queues, 1, "of one queue pair");
        self.reset()?;
        let rings = IntelRings::make(&self.regs, setup, |_| (r::RDT, r::TDT))?;
        let (rx, tx) = rings[0].places();
        if let Some(device) = &self.device {
            device.set_master(true)?;
        }
        // §4.6.3: force nothing, let the PHY negotiate.
        self.regs.change(r::CTRL, r::CTRL_SLU, r::CTRL_FORCE_SPEED | r::CTRL_FORCE_DUPLEX);
        self.start_receive(rx, setup);
        self.start_transmit(tx);
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
