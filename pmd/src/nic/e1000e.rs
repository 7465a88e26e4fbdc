//! Intel 82574 (e1000e), from the "82574 GbE Controller Family Datasheet". Section numbers are its.

mod registers;
mod rings;

use std::sync::Arc;
use std::time::Duration;

use super::memory::Memory;
use super::pci::Id;
use super::{About, Chip, NicError, Regs, Setup, wait};
use crate::sys::vfio::Device;
use registers as r;
pub(crate) use rings::E1000eRings;

/// Devices of the family.
pub(crate) const IDS: &[Id] = &[Id { vendor: 0x8086, device: 0x10d3 }, Id { vendor: 0x8086, device: 0x10f6 }];

/// §1.3: jumbo frames of 9018 bytes with the check sequence; a VLAN tag besides.
const MAX_FRAME: u32 = 9018 - 4 + 4;
/// Patience with a reset, §4.6.1 says 1 ms.
const RESET: Duration = Duration::from_millis(100);
/// Patience with requests that are on the bus, §3.1.3.10.
const QUIET: Duration = Duration::from_millis(100);
/// §10.2.5.4, §10.2.6.5: rings are a multiple of 128 bytes long, and as aligned.
const ALIGN: u64 = 128;

/// The control side.
pub(crate) struct E1000e {
    regs: Regs,
    device: Option<Arc<Device>>,
    totals: [u64; r::COUNTERS.len()],
}

impl E1000e {
    /// The chip behind `regs`; `device` is what lets it reach memory, if it is one.
    pub(crate) fn new(regs: Regs, device: Option<Arc<Device>>) -> E1000e {
        E1000e { regs, device, totals: [0; r::COUNTERS.len()] }
    }

    /// §4.6.1: interrupts off, no more requests, reset.
    fn reset(&self) -> Result<(), NicError> {
        let regs = &self.regs;
        regs.set(r::IMC, u32::MAX);
        regs.set(r::RCTL, 0);
        regs.set(r::TCTL, r::TCTL_PSP);
        regs.change(r::CTRL, r::CTRL_GIO_MASTER_DISABLE, 0);
        // One that has requests out for good is reset all the same.
        wait(QUIET, || regs.get(r::STATUS) & r::STATUS_GIO_MASTER == 0);
        regs.change(r::CTRL, r::CTRL_RST, 0);
        std::thread::sleep(Duration::from_millis(1));
        if !wait(RESET, || regs.get(r::CTRL) & r::CTRL_RST == 0) {
            return Err(NicError::Late("leave reset", RESET.as_millis() as u64));
        }
        regs.set(r::IMC, u32::MAX);
        regs.get(r::ICR);
        Ok(())
    }

    /// §4.6.5.
    fn start_receive(&self, rings: &E1000eRings, setup: &Setup) {
        let regs = &self.regs;
        for i in 0..r::MTA_WORDS {
            regs.set(r::MTA + 4 * i, 0);
        }
        if let Some([a, b, c, d, e, f]) = setup.mac {
            regs.set(r::RAL, u32::from_le_bytes([a, b, c, d]));
            regs.set(r::RAH, u32::from_le_bytes([e, f, 0, 0]) | r::RAH_VALID);
        }
        regs.set(r::RXCSUM, r::RXCSUM_IP | r::RXCSUM_TCP_UDP);
        regs.set(r::RFCTL, r::RFCTL_EXTENDED);
        regs.set(r::MRQC, 0);
        rings.open_receive();
        let size = match setup.room {
            1024 => r::RCTL_1024,
            4096 => r::RCTL_4096,
            8192 => r::RCTL_8192,
            16384 => r::RCTL_16384,
            _ => r::RCTL_2048,
        };
        let everything = if setup.promiscuous { r::RCTL_UNICAST | r::RCTL_MULTICAST } else { 0 };
        let long = if setup.max_frame > 1518 { r::RCTL_LONG } else { 0 };
        regs.set(r::RCTL, r::RCTL_ON | r::RCTL_BROADCAST | r::RCTL_STRIP_CRC | size | everything | long);
    }

    /// §4.6.6.
    fn start_transmit(&self, rings: &E1000eRings) {
        rings.open_transmit();
        self.regs.set(r::TIPG, r::TIPG_COPPER);
        self.regs.set(r::TCTL, r::TCTL_ON | r::TCTL_PSP | r::TCTL_RETRY);
    }
}

impl Chip for E1000e {
    type Rings = E1000eRings;

    fn about(&self) -> About {
        About { driver: "net_e1000_em", queues: 1, max_frame: MAX_FRAME }
    }

    fn mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.regs.get(r::RAL).to_le_bytes();
        let [e, f, ..] = self.regs.get(r::RAH).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn start(&mut self, setup: &Setup) -> Result<Vec<E1000eRings>, NicError> {
        assert_eq!(setup.queues, 1, "of one queue pair");
        self.reset()?;
        // Descriptors of 16 bytes, of which 8 make 128 bytes.
        let even = |n: u16| n.clamp(8, 4096).next_multiple_of(8);
        let (rx, tx) = (even(setup.rx_size), even(setup.tx_size));
        let bytes = 16 * (usize::from(rx) + usize::from(tx)) + 2 * ALIGN as usize;
        let memory = Memory::new(bytes, setup.backing)?;
        let rings = E1000eRings::new(Arc::clone(&self.regs), memory, rx, tx);
        if let Some(device) = &self.device {
            device.set_master(true)?;
        }
        // §4.6.3: force nothing, let the PHY negotiate.
        self.regs.change(r::CTRL, r::CTRL_SLU, r::CTRL_FORCE_SPEED | r::CTRL_FORCE_DUPLEX);
        self.start_receive(&rings, setup);
        self.start_transmit(&rings);
        self.counters();
        Ok(vec![rings])
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
        for (total, (_, at, wide)) in self.totals.iter_mut().zip(r::COUNTERS) {
            // Cleared as they are read; of a pair the lower one first (§10.2.7).
            let low = self.regs.get(*at);
            let high = if *wide { self.regs.get(*at + 4) } else { 0 };
            if low != u32::MAX {
                *total += u64::from(low) | u64::from(high) << 32;
            }
        }
        r::COUNTERS.iter().zip(self.totals).map(|((name, ..), total)| (*name, total)).collect()
    }
}
