//! One device.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio;

use super::container::Group;
use super::{Bar, Request, VfioError, ask, ask_long, os, say};
use crate::sys::eventfd::EventFd;

/// PCI 3.0 §6.2.2: the command register and its bits.
const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const NO_INTX: u16 = 1 << 10;

/// Most vectors that are asked for.
const MAX_VECTORS: usize = 64;

/// A PCI device that is ours as long as this lives. Reset when it is opened and when it is closed.
pub(crate) struct Device {
    fd: Arc<OwnedFd>,
    resets: bool,
    /// Where configuration space lies in its file, and its length.
    config: (u64, u64),
    /// Closed after the device.
    _group: Arc<Group>,
}

/// What a device can interrupt for.
#[derive(Clone, Copy)]
pub(crate) enum Interrupt {
    /// An error that it cannot recover from.
    Error = vfio::VFIO_PCI_ERR_IRQ_INDEX as isize,
    /// The kernel wants it back: it is being removed.
    Removal = vfio::VFIO_PCI_REQ_IRQ_INDEX as isize,
}

impl Device {
    /// The device at PCI address `address`, of IOMMU group `group`.
    pub(crate) fn open(address: &str, group: u32) -> Result<Device, VfioError> {
        let group = Group::open(group)?;
        let name = CString::new(address).map_err(|e| os("address of a device")(io::Error::other(e)))?;
        // SAFETY: the request reads a string that ends in 0.
        let fd = unsafe {
            libc::ioctl(group.fd().as_raw_fd(), Request::GroupGetDeviceFd.number() as _, name.as_ptr())
        };
        if fd < 0 {
            return Err(os("getting a device from its group")(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made it for us.
        let fd = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut info = vfio::vfio_device_info {
            argsz: size_of::<vfio::vfio_device_info>() as u32,
            ..Default::default()
        };
        ask(fd.as_fd(), Request::DeviceGetInfo, &mut info).map_err(os("asking about a device"))?;
        let resets = info.flags & vfio::VFIO_DEVICE_FLAGS_RESET != 0;
        let mut device = Device { fd, resets, config: (0, 0), _group: group };
        let config = device.region(vfio::VFIO_PCI_CONFIG_REGION_INDEX)?;
        device.config = (config.offset, config.size);
        device.reset();
        device.command(NO_INTX | MEMORY, MASTER)?;
        Ok(device)
    }

    /// Resets its function, if it can be; some can only be reset by their own registers.
    pub(crate) fn reset(&self) -> bool {
        self.resets && say(self.fd.as_fd(), Request::DeviceReset, 0).is_ok()
    }

    /// Lets it reach memory, or ends that: from then on it reads and writes nothing, whatever it holds.
    pub(crate) fn set_master(&self, on: bool) -> Result<(), VfioError> {
        if on { self.command(MASTER | MEMORY | NO_INTX, 0) } else { self.command(0, MASTER) }
    }

    fn command(&self, set: u16, clear: u16) -> Result<(), VfioError> {
        let command = self.config::<2>(COMMAND).map(u16::from_le_bytes)?;
        let wanted = (command & !clear) | set;
        let place = self.config.0 + COMMAND;
        let written = rustix::io::pwrite(&self.fd, &wanted.to_le_bytes(), place);
        written.map(drop).map_err(|e| os("writing a device's configuration")(e.into()))
    }

    /// Bytes of its configuration space from `at` on.
    pub(crate) fn config<const N: usize>(&self, at: u64) -> Result<[u8; N], VfioError> {
        let wrong = os("reading a device's configuration");
        let mut bytes = [0; N];
        if at + N as u64 > self.config.1 {
            return Err(wrong(io::ErrorKind::InvalidInput.into()));
        }
        match rustix::io::pread(&self.fd, &mut bytes, self.config.0 + at) {
            Ok(n) if n == N => Ok(bytes),
            Ok(_) => Err(wrong(io::ErrorKind::UnexpectedEof.into())),
            Err(e) => Err(wrong(e.into())),
        }
    }

    /// Registers behind base address `index`, 0 to 5; `None`: it has no memory there.
    pub(crate) fn bar(&self, index: u32) -> Result<Option<Bar>, VfioError> {
        let region = self.region(index)?;
        if region.size == 0 || region.flags & vfio::VFIO_REGION_INFO_FLAG_READ == 0 {
            return Ok(None);
        }
        let bar = Bar::map(Arc::clone(&self.fd), region.offset, region.size, &region.areas);
        bar.map(Some).map_err(os("mapping a device's registers"))
    }

    /// Lets an interrupt signal these, vector by vector; none: it is switched off. `false`: the device has
    /// no such interrupt, or not so many.
    pub(crate) fn interrupt(&self, kind: Interrupt, events: &[&EventFd]) -> Result<bool, VfioError> {
        let mut info = vfio::vfio_irq_info {
            argsz: size_of::<vfio::vfio_irq_info>() as u32,
            index: kind as u32,
            ..Default::default()
        };
        let known = ask(self.fd.as_fd(), Request::DeviceGetIrqInfo, &mut info).is_ok();
        let by_event = info.flags & vfio::VFIO_IRQ_INFO_EVENTFD != 0;
        if !known || !by_event || (info.count as usize) < events.len().max(1) {
            return Ok(false);
        }
        // struct vfio_irq_set: length, flags, index, start, count, then a descriptor for each.
        let mut set = [0u32; 5 + MAX_VECTORS];
        let n = events.len().min(MAX_VECTORS);
        let data = if n == 0 { vfio::VFIO_IRQ_SET_DATA_NONE } else { vfio::VFIO_IRQ_SET_DATA_EVENTFD };
        set[..5].copy_from_slice(&[
            (20 + 4 * n) as u32,
            data | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
            kind as u32,
            0,
            n as u32,
        ]);
        for (word, event) in set[5..].iter_mut().zip(events) {
            *word = event.as_fd().as_raw_fd() as u32;
        }
        ask(self.fd.as_fd(), Request::DeviceSetIrqs, &mut set).map_err(os("setting interrupts"))?;
        Ok(true)
    }

    fn region(&self, index: u32) -> Result<Region, VfioError> {
        let size = size_of::<vfio::vfio_region_info>();
        let info = ask_long(self.fd.as_fd(), Request::DeviceGetRegionInfo, size, &[0, index])
            .map_err(os("asking for a region of a device"))?;
        let (flags, first) = (info.word(4), info.word(12));
        let mut region = Region { flags, size: info.long(16), offset: info.long(24), areas: Vec::new() };
        if flags & vfio::VFIO_REGION_INFO_FLAG_MMAP != 0 {
            region.areas.push((0, region.size));
        }
        let sparse = vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16;
        if flags & vfio::VFIO_REGION_INFO_FLAG_CAPS != 0
            && let Some(at) = info.capability(first, sparse)
        {
            let n = info.word(at + 8).min(64) as usize;
            let areas = (0..n).map(|i| at + 16 + 16 * i).map(|at| (info.long(at), info.long(at + 8)));
            region.areas = areas.filter(|&(_, len)| len > 0).collect();
        }
        Ok(region)
    }
}

struct Region {
    flags: u32,
    size: u64,
    offset: u64,
    /// What of it may be mapped.
    areas: Vec<(u64, u64)>,
}

impl Drop for Device {
    fn drop(&mut self) {
        // Before its buffers are anybody else's.
        let _ = self.set_master(false);
        self.reset();
    }
}
