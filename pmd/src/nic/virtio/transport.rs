//! Virtio over PCI: virtio 1.3 §4.1.

use std::sync::Arc;

use crate::nic::{NicError, Regs, registers, wait};
use crate::sys::vfio::Device;
use crate::vring::driver::Areas;

/// PCI 3.0 §6.2.3, §6.7: status register with its bit for a list of capabilities, and where it begins.
const STATUS: u64 = 0x06;
const STATUS_LIST: u16 = 1 << 4;
const LIST: u64 = 0x34;
const VENDOR: u8 = 0x09;

/// §4.1.4: kinds of structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

/// §4.1.4.3: `struct virtio_pci_common_cfg`.
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u32 = 0;
    pub(super) const DEVICE_FEATURE: u32 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u32 = 8;
    pub(super) const DRIVER_FEATURE: u32 = 12;
    pub(super) const MSIX: u32 = 16;
    pub(super) const STATUS: u32 = 20;
    pub(super) const QUEUE_SELECT: u32 = 22;
    pub(super) const QUEUE_SIZE: u32 = 24;
    pub(super) const QUEUE_MSIX: u32 = 26;
    pub(super) const QUEUE_ENABLE: u32 = 28;
    pub(super) const QUEUE_NOTIFY: u32 = 30;
    pub(super) const QUEUE_DESC: u32 = 32;
    pub(super) const QUEUE_DRIVER: u32 = 40;
    pub(super) const QUEUE_DEVICE: u32 = 48;
}

/// §2.1: device status.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
/// §4.1.4.3: no vector.
const NO_VECTOR: u32 = 0xffff;

/// Registers from some byte on.
#[derive(Clone)]
struct Part {
    regs: Regs,
    at: u32,
}

impl Part {
    fn read(&self, at: u32, bytes: u32) -> u32 {
        self.regs.read(self.at + at, bytes)
    }

    fn write(&self, at: u32, bytes: u32, value: u32) {
        self.regs.write(self.at + at, bytes, value);
    }
}

/// The structures of one device.
pub(super) struct Transport {
    common: Part,
    notify: Part,
    /// Bytes between the notification addresses of queues.
    apart: u32,
    device: Part,
}

/// Where a queue is kicked.
pub(super) struct Door {
    part: Part,
    queue: u16,
}

impl Door {
    /// A door of a model of a device.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(regs: Regs, queue: u16) -> Door {
        Door { part: Part { regs, at: 0 }, queue }
    }

    /// §4.1.5.2: without NOTIFICATION_DATA the queue's number is written.
    #[inline(always)]
    pub(super) fn kick(&self) {
        self.part.write(0, 2, self.queue.into());
    }
}

impl Transport {
    /// Finds them by the device's capabilities.
    pub(super) fn find(device: &Arc<Device>) -> Result<Transport, NicError> {
        let mut bars: [Option<Regs>; 6] = Default::default();
        let (mut parts, mut apart) = ([const { None::<Part> }; 5], 0);
        let listed = u16::from_le_bytes(device.config::<2>(STATUS)?) & STATUS_LIST != 0;
        let mut at = if listed { device.config::<1>(LIST)?[0] & !3 } else { 0 };
        // A list in circles is no list: there is room for 48 in all.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let [id, next, _, kind, bar, _, _, _] = device.config::<8>(at.into())?;
            let known = id == VENDOR && [COMMON, NOTIFY, DEVICE].contains(&kind) && bar < 6;
            if known && parts[usize::from(kind)].is_none() {
                let offset = u32::from_le_bytes(device.config::<4>(u64::from(at) + 8)?);
                if kind == NOTIFY {
                    apart = u32::from_le_bytes(device.config::<4>(u64::from(at) + 16)?);
                }
                let slot = &mut bars[usize::from(bar)];
                let regs = match slot {
                    Some(regs) => regs.clone(),
                    None => slot.insert(registers(device, bar.into())?).clone(),
                };
                parts[usize::from(kind)] = Some(Part { regs, at: offset });
            }
            at = next & !3;
        }
        let missing = || NicError::Device("a virtio device without the structures of virtio 1.0".into());
        let mut part = |kind: u8| parts[usize::from(kind)].take().ok_or_else(missing);
        Ok(Transport { common: part(COMMON)?, notify: part(NOTIFY)?, apart, device: part(DEVICE)? })
    }

    /// Features that the device offers.
    pub(super) fn offered(&self) -> u64 {
        let half = |i| {
            self.common.write(common::DEVICE_FEATURE_SELECT, 4, i);
            u64::from(self.common.read(common::DEVICE_FEATURE, 4))
        };
        half(0) | half(1) << 32
    }

    /// §2.4: it is reset when its status reads 0; then it uses no queue any more.
    pub(super) fn reset(&self) -> Result<(), NicError> {
        self.common.write(common::STATUS, 1, 0);
        let done = wait(super::PATIENCE, || self.common.read(common::STATUS, 1) == 0);
        if done { Ok(()) } else { Err(NicError::Late("reset itself", super::PATIENCE.as_millis() as u64)) }
    }

    /// §3.1.1 steps 2 to 6.
    pub(super) fn negotiate(&self, features: u64) -> Result<(), NicError> {
        self.status(ACKNOWLEDGE);
        self.status(DRIVER);
        for (i, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write(common::DRIVER_FEATURE_SELECT, 4, i);
            self.common.write(common::DRIVER_FEATURE, 4, half);
        }
        self.status(FEATURES_OK);
        self.common.write(common::MSIX, 2, NO_VECTOR);
        if self.common.read(common::STATUS, 1) & FEATURES_OK == 0 {
            return Err(NicError::Device(format!("the device does not take features {features:#x}").into()));
        }
        Ok(())
    }

    /// §3.1.1 step 8.
    pub(super) fn run(&self) {
        self.status(DRIVER_OK);
    }

    fn status(&self, bit: u32) {
        let status = self.common.read(common::STATUS, 1);
        self.common.write(common::STATUS, 1, status | bit);
    }

    /// Most entries of a queue; 0: there is no such queue.
    pub(super) fn queue_size(&self, index: u16) -> u16 {
        self.common.write(common::QUEUE_SELECT, 2, index.into());
        self.common.read(common::QUEUE_SIZE, 2) as u16
    }

    /// §4.1.5.1.3: tells the device where a queue is, and switches it on.
    pub(super) fn open_queue(&self, index: u16, areas: &Areas) -> Result<Door, NicError> {
        let common = &self.common;
        common.write(common::QUEUE_SELECT, 2, index.into());
        common.write(common::QUEUE_SIZE, 2, areas.size.into());
        common.write(common::QUEUE_MSIX, 2, NO_VECTOR);
        for (at, address) in [
            (common::QUEUE_DESC, areas.desc),
            (common::QUEUE_DRIVER, areas.driver),
            (common::QUEUE_DEVICE, areas.device),
        ] {
            common.write(at, 4, address as u32);
            common.write(at + 4, 4, (address >> 32) as u32);
        }
        let notify = common.read(common::QUEUE_NOTIFY, 2) * self.apart;
        common.write(common::QUEUE_ENABLE, 2, 1);
        let part = Part { regs: self.notify.regs.clone(), at: self.notify.at + notify };
        Ok(Door { part, queue: index })
    }

    /// A byte of the network configuration (§5.1.4).
    pub(super) fn config8(&self, at: u32) -> u8 {
        self.device.read(at, 1) as u8
    }

    /// Two bytes of it.
    pub(super) fn config16(&self, at: u32) -> u16 {
        self.device.read(at, 2) as u16
    }
}
