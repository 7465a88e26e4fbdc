//! VFIO: PCI devices that the kernel hands to this process, and the IOMMU between them and memory.
//!
//! One container for the process, a group for each device (or for several that the IOMMU cannot tell
//! apart), type 1 version 2; see Documentation/driver-api/vfio.rst of Linux. While a device is open,
//! every mapping of this process is in the container at its own address (`hugepages::dma`).

// UNSAFETY: ioctl(2) takes a request's argument as an untyped pointer; registers are addresses.
#![allow(unsafe_code)]

mod bar;
mod container;
mod device;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub(crate) use bar::Bar;
pub(crate) use device::{Device, Interrupt};

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VfioError {
    /// The kernel has no VFIO.
    #[error("/dev/vfio/vfio cannot be opened: {0}; load the driver (modprobe vfio-pci), as root")]
    NoVfio(io::Error),
    /// The kernel's VFIO is of another kind.
    #[error("this kernel's VFIO has no IOMMU of type 1 v2 (modprobe vfio_iommu_type1)")]
    NoType1,
    /// The group cannot be opened.
    #[error(
        "/dev/vfio/{group} cannot be opened: {source}; bind the device (scripts/bind bind vfio-pci \
         ADDRESS), and see that no other program has it and this user may open it"
    )]
    Group {
        /// Its number.
        group: u32,
        /// Why.
        source: io::Error,
    },
    /// Other devices of the group are with drivers of the kernel.
    #[error(
        "IOMMU group {group} is not viable: {blockers}; bind them too: scripts/bind bind vfio-pci {addresses}"
    )]
    NotViable {
        /// Its number.
        group: u32,
        /// Who is in the way, each with its driver.
        blockers: String,
        /// The same, addresses only.
        addresses: String,
    },
    /// Memory that is there cannot be reached by the device.
    #[error(transparent)]
    Reach(#[from] hugepages::dma::Unreachable),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn os(what: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| VfioError::Os { what, source }
}

/// Requests of linux/vfio.h, which are all `_IO(';', 100 + n)`: the crate has no macros.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Request {
    GetApiVersion = 0,
    CheckExtension = 1,
    SetIommu = 2,
    GroupGetStatus = 3,
    GroupSetContainer = 4,
    GroupGetDeviceFd = 6,
    DeviceGetInfo = 7,
    DeviceGetRegionInfo = 8,
    DeviceGetIrqInfo = 9,
    DeviceSetIrqs = 10,
    DeviceReset = 11,
    IommuGetInfo = 12,
    IommuMapDma = 13,
    IommuUnmapDma = 14,
}

impl Request {
    fn number(self) -> libc::c_ulong {
        (u32::from(b';') << 8 | (100 + self as u32)).into()
    }
}

/// A request whose argument is a number, or nothing.
fn say(fd: BorrowedFd<'_>, request: Request, value: u32) -> io::Result<i32> {
    // SAFETY: the requests that are given a number touch no memory of ours.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request.number() as _, libc::c_ulong::from(value)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A request that reads and writes a structure, which says its length in its first word.
fn ask<T>(fd: BorrowedFd<'_>, request: Request, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the request is one that takes a pointer to a T, and stays inside the length it says.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request.number() as _, std::ptr::from_mut(argument)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// A structure of `size` bytes with whatever capabilities the kernel puts behind it. `words`, if any,
/// begin behind its length.
fn ask_long(fd: BorrowedFd<'_>, request: Request, size: usize, words: &[u32]) -> io::Result<Info> {
    let mut len = size;
    loop {
        let mut info = vec![0u32; len.div_ceil(4)];
        info[0] = (info.len() * 4) as u32;
        info[1..=words.len()].copy_from_slice(words);
        // SAFETY: the kernel reads and writes as many bytes as the first word says, which are there.
        let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request.number() as _, info.as_mut_ptr()) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        if info[0] as usize <= info.len() * 4 {
            return Ok(Info(info));
        }
        len = info[0] as usize;
    }
}

/// A structure and the capabilities behind it, in words of 32 bits.
struct Info(Vec<u32>);

impl Info {
    /// The word at byte `at`; 0 past the end.
    fn word(&self, at: usize) -> u32 {
        self.0.get(at / 4).copied().unwrap_or(0)
    }

    /// The two words at byte `at`.
    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    /// Where the capability `id` begins, if it is in the chain that starts at byte `first`.
    fn capability(&self, first: u32, id: u16) -> Option<usize> {
        let mut at = first as usize;
        for _ in 0..self.0.len() {
            if at == 0 || !at.is_multiple_of(4) || at / 4 + 1 >= self.0.len() {
                return None;
            }
            // struct vfio_info_cap_header: id and version in the first word, the next one's place after.
            if self.word(at) as u16 == id {
                return Some(at);
            }
            at = self.word(at + 4) as usize;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_capabilities_is_followed_to_its_end_and_not_in_circles() {
        // Bytes: a structure of 8, a capability 7 at 8, a capability 1 at 16, whose next is `next`.
        let info = |next| Info(vec![28, 0, 7, 16, 1 | 1 << 16, next, 0xabc]);
        assert_eq!((info(0).capability(8, 1), info(0).capability(8, 7)), (Some(16), Some(8)));
        assert_eq!((info(0).capability(8, 2), info(0).capability(0, 7)), (None, None));
        for next in [8, 16, 24, 28, 30, u32::MAX] {
            assert_eq!(info(next).capability(8, 2), None, "{next}");
        }
        assert_eq!((info(0).word(24), info(0).word(28), info(0).long(20)), (0xabc, 0, 0xabc << 32));
    }

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!((Request::GetApiVersion.number(), Request::IommuUnmapDma.number()), (0x3b64, 0x3b72));
    }
}
