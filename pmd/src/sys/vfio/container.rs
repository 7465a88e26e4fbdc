//! The container of this process, and the groups in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use hugepages::dma::{self, Attached, Domain};
use rustix::fs::{self, Mode, OFlags};
use vfio_bindings::bindings::vfio;

use super::{Info, Request, VfioError, ask, ask_long, os, say};

/// What is open. A group can be opened once; a device beside another in it shares it.
static OPEN: Mutex<Open> = Mutex::new(Open { container: Weak::new(), groups: Vec::new() });

struct Open {
    container: Weak<Container>,
    groups: Vec<(u32, Weak<Group>)>,
}

/// One group, in the container.
pub(super) struct Group(Option<Inside>);

struct Inside {
    /// Closed before the container is.
    fd: OwnedFd,
    _container: Arc<Container>,
}

struct Container {
    iommu: Arc<Iommu>,
    /// Memory is mapped as long as this lives.
    attached: Mutex<Option<Attached>>,
}

impl Group {
    /// The group of that number, opened unless it is open.
    pub(super) fn open(number: u32) -> Result<Arc<Group>, VfioError> {
        let mut open = OPEN.lock().expect("no holder panics");
        open.groups.retain(|(_, group)| group.strong_count() > 0);
        let known = open.groups.iter().find(|(n, _)| *n == number).and_then(|(_, group)| group.upgrade());
        if let Some(group) = known {
            return Ok(group);
        }
        let fd = fs::open(format!("/dev/vfio/{number}"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| VfioError::Group { group: number, source: e.into() })?;
        viable(&fd, number)?;
        let container = match open.container.upgrade() {
            Some(container) => {
                container.iommu.join(&fd)?;
                container
            }
            None => Container::open(&fd)?,
        };
        open.container = Arc::downgrade(&container);
        let group = Arc::new(Group(Some(Inside { fd, _container: container })));
        open.groups.push((number, Arc::downgrade(&group)));
        Ok(group)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0.as_ref().expect("open until it is dropped").fd
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Under the lock: who opens the next group finds this container whole, or gone.
        let _open = OPEN.lock();
        self.0 = None;
    }
}

impl Container {
    /// A container with that group in it, and all memory.
    fn open(group: &OwnedFd) -> Result<Arc<Container>, VfioError> {
        let fd = fs::open("/dev/vfio/vfio", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| VfioError::NoVfio(e.into()))?;
        let version = say(fd.as_fd(), Request::GetApiVersion, 0).map_err(VfioError::NoVfio)?;
        let kind = vfio::VFIO_TYPE1v2_IOMMU;
        let has = say(fd.as_fd(), Request::CheckExtension, kind).map_err(VfioError::NoVfio)?;
        if version != vfio::VFIO_API_VERSION as i32 || has != 1 {
            return Err(VfioError::NoType1);
        }
        let mut iommu = Iommu { fd, reach: Vec::new() };
        iommu.join(group)?;
        say(iommu.fd.as_fd(), Request::SetIommu, kind).map_err(os("choosing the IOMMU of a container"))?;
        iommu.reach = iommu.ask_reach().map_err(os("asking for the reach of an IOMMU"))?;
        let iommu = Arc::new(iommu);
        let attached = dma::attach(Arc::clone(&iommu) as Arc<dyn Domain>)?;
        Ok(Arc::new(Container { iommu, attached: Mutex::new(Some(attached)) }))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.attached.lock().map(|mut attached| attached.take()));
    }
}

/// The IOMMU, as the container has it.
struct Iommu {
    fd: OwnedFd,
    /// Addresses that devices can be given, first and last of each range; none when it does not tell.
    reach: Vec<(u64, u64)>,
}

impl Iommu {
    fn join(&self, group: &OwnedFd) -> Result<(), VfioError> {
        let mut fd = self.fd.as_raw_fd();
        let joined = ask(group.as_fd(), Request::GroupSetContainer, &mut fd);
        joined.map(drop).map_err(os("putting a group into a container"))
    }

    fn ask_reach(&self) -> io::Result<Vec<(u64, u64)>> {
        let size = size_of::<vfio::vfio_iommu_type1_info>();
        let info = ask_long(self.fd.as_fd(), Request::IommuGetInfo, size, &[])?;
        let caps = info.word(4) & vfio::VFIO_IOMMU_INFO_CAPS != 0;
        let at = std::mem::offset_of!(vfio::vfio_iommu_type1_info, cap_offset);
        let first = if caps { info.word(at) } else { 0 };
        Ok(ranges(&info, first))
    }
}

/// `struct vfio_iommu_type1_info_cap_iova_range`.
fn ranges(info: &Info, first: u32) -> Vec<(u64, u64)> {
    let id = vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE as u16;
    let Some(at) = info.capability(first, id) else { return Vec::new() };
    let n = info.word(at + 8).min(1024) as usize;
    (0..n).map(|i| at + 16 + 16 * i).map(|at| (info.long(at), info.long(at + 8))).collect()
}

/// Whether some range has all of `len` bytes at `va`.
fn within(reach: &[(u64, u64)], va: u64, len: u64) -> bool {
    let last = va.saturating_add(len.max(1) - 1);
    reach.is_empty() || reach.iter().any(|&(first, end)| first <= va && last <= end)
}

impl Domain for Iommu {
    fn map(&self, va: u64, len: u64) -> io::Result<()> {
        if !within(&self.reach, va, len) {
            let what = format!("outside the addresses that the IOMMU translates ({:x?})", self.reach);
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
        }
        let mut map = vfio::vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio::vfio_iommu_type1_dma_map>() as u32,
            flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: va,
            iova: va,
            size: len,
        };
        ask(self.fd.as_fd(), Request::IommuMapDma, &mut map).map(drop).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOMEM) => io::Error::new(
                e.kind(),
                format!("{e}: raise the limit of locked memory (ulimit -l unlimited), or give less memory"),
            ),
            Some(libc::ENOSPC) => io::Error::new(
                e.kind(),
                "too many mappings: raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit".to_owned(),
            ),
            _ => e,
        })
    }

    fn unmap(&self, va: u64, len: u64) {
        let mut unmap = vfio::vfio_iommu_type1_dma_unmap {
            argsz: size_of::<vfio::vfio_iommu_type1_dma_unmap>() as u32,
            iova: va,
            size: len,
            ..Default::default()
        };
        match ask(self.fd.as_fd(), Request::IommuUnmapDma, &mut unmap) {
            Ok(_) if unmap.size == len => {}
            // The last group has left, and the kernel took its mappings with it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {}
            other => tracing::error!("unmapping {len:#x} bytes at {va:#x}: {other:?}, {:#x}", unmap.size),
        }
    }
}

/// Whether all devices of the group may be had; if not, which ones are in the way.
fn viable(group: &OwnedFd, number: u32) -> Result<(), VfioError> {
    let argsz = size_of::<vfio::vfio_group_status>() as u32;
    let mut status = vfio::vfio_group_status { argsz, flags: 0 };
    ask(group.as_fd(), Request::GroupGetStatus, &mut status)
        .map_err(os("asking for the state of a group"))?;
    if status.flags & vfio::VFIO_GROUP_FLAGS_VIABLE != 0 {
        return Ok(());
    }
    let folder = format!("/sys/kernel/iommu_groups/{number}/devices");
    let (blockers, addresses) = blockers(folder.as_ref());
    Err(VfioError::NotViable { group: number, blockers, addresses })
}

/// Devices with a driver of the kernel, in words and as addresses. Bridges that carry a bus are in nobody's way.
fn blockers(devices: &std::path::Path) -> (String, String) {
    let (mut words, mut addresses) = (Vec::new(), Vec::new());
    for entry in devices.read_dir().into_iter().flatten().flatten() {
        let (address, driver) =
            (entry.file_name().to_string_lossy().into_owned(), entry.path().join("driver"));
        let Ok(driver) = driver.read_link() else { continue };
        let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !["vfio-pci", "pci-stub", "pcieport"].contains(&driver.as_str()) {
            words.push(format!("{address} is with the driver {driver}"));
            addresses.push(address);
        }
    }
    words.sort();
    addresses.sort();
    (words.join(", "), addresses.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_within_reach_whole_or_not_at_all() {
        let reach = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];
        for (va, len, inside) in [
            (0, 1, true),
            (0xfedf_f000, 0x1000, true),
            (0xfedf_f000, 0x1001, false),
            (0xfee0_0000, 0x1000, false),
            (0x10_0000_0000, 1 << 30, true),
            ((1 << 39) - 0x1000, 0x1000, true),
            ((1 << 39) - 0x1000, 0x2000, false),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(within(&reach, va, len), inside, "{va:#x} + {len:#x}");
        }
        assert!(within(&[], 1 << 60, 4096));
    }

    #[test]
    fn ranges_are_read_from_the_capability() {
        let mut words = vec![0; 6];
        words.extend([1 | 1 << 16, 0, 2, 0]);
        words.extend([0, 0, 0xfedf_ffff, 0]);
        words.extend([0xfef0_0000, 0, u32::MAX, 0x7f]);
        let info = Info(words);
        assert_eq!(ranges(&info, 24), [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        assert!(ranges(&info, 0).is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "system calls")]
    fn who_is_in_the_way_is_named() {
        let folder = std::env::temp_dir().join(format!("hotring-group-{}", std::process::id()));
        for (address, driver) in [
            ("0000:02:00.1", "igb"),
            ("0000:02:00.0", "vfio-pci"),
            ("0000:01:00.0", "pcieport"),
            ("0000:02:00.2", ""),
        ] {
            std::fs::create_dir_all(folder.join(address)).unwrap();
            if !driver.is_empty() {
                let link = folder.join(address).join("driver");
                std::os::unix::fs::symlink(format!("../../../bus/pci/drivers/{driver}"), link).unwrap();
            }
        }
        let named = blockers(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(named, ("0000:02:00.1 is with the driver igb".into(), "0000:02:00.1".into()));
    }
}
