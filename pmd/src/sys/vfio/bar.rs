//! Registers of a device.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{self, MapFlags, ProtFlags};

/// One region of registers: mapped where the kernel lets it be mapped (the page of the MSI-X table may
/// not be), reached by system calls elsewhere.
pub(crate) struct Bar {
    parts: Vec<Part>,
    fd: Arc<OwnedFd>,
    /// Where it lies in the device's file.
    offset: u64,
    len: u64,
}

/// A part that is mapped.
struct Part {
    at: u64,
    len: u64,
    base: NonNull<u8>,
}

// SAFETY: an address range of registers, which are only ever accessed volatile, a register at a time.
unsafe impl Send for Bar {}
// SAFETY: as above; which registers two threads may use at a time is the driver's business, and no more
// than the device's state is at stake.
unsafe impl Sync for Bar {}

/// A word that a device reads or writes at once.
trait Width: Copy {
    fn of(value: u32) -> Self;
    fn wide(self) -> u32;
}

macro_rules! width {
    ($($int:ty),*) => {$(
        impl Width for $int {
            fn of(value: u32) -> Self {
                value as $int
            }
            fn wide(self) -> u32 {
                self.into()
            }
        }
    )*};
}
width!(u8, u16, u32);

impl Bar {
    /// The region of `len` bytes at `offset` of a device's file, of which `areas` (first byte and length)
    /// may be mapped.
    pub(super) fn map(fd: Arc<OwnedFd>, offset: u64, len: u64, areas: &[(u64, u64)]) -> io::Result<Bar> {
        let mut bar = Bar { parts: Vec::new(), fd, offset, len };
        for &(at, len) in areas {
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            let (len_bytes, place) = (len as usize, offset + at);
            // SAFETY: a new mapping at an address of the kernel's choice.
            let base = unsafe {
                mm::mmap(std::ptr::null_mut(), len_bytes, flags, MapFlags::SHARED, &bar.fd, place)
            }?;
            let base = NonNull::new(base.cast()).expect("mmap does not return null");
            bar.parts.push(Part { at, len, base });
        }
        Ok(bar)
    }

    /// The register at byte `at`, of 1, 2 or 4 bytes. All ones when the device is gone, or where there is
    /// no register.
    #[inline]
    pub(crate) fn read(&self, at: u32, bytes: u32) -> u32 {
        match bytes {
            1 => self.get::<u8>(at),
            2 => self.get::<u16>(at),
            _ => self.get::<u32>(at),
        }
    }

    /// Writes it.
    #[inline]
    pub(crate) fn write(&self, at: u32, bytes: u32, value: u32) {
        match bytes {
            1 => self.set::<u8>(at, value),
            2 => self.set::<u16>(at, value),
            _ => self.set::<u32>(at, value),
        }
    }

    fn get<T: Width>(&self, at: u32) -> u32 {
        if let Some(register) = self.mapped::<T>(at) {
            // SAFETY: mapped() checked place and alignment.
            return unsafe { register.read_volatile() }.wide();
        }
        let mut bytes = [0xff; 4];
        let n = size_of::<T>();
        if u64::from(at) + n as u64 <= self.len {
            let _ = rustix::io::pread(&self.fd, &mut bytes[..n], self.offset + u64::from(at));
        }
        bytes[n..].fill(0);
        u32::from_le_bytes(bytes)
    }

    fn set<T: Width>(&self, at: u32, value: u32) {
        if let Some(register) = self.mapped::<T>(at) {
            // SAFETY: mapped() checked place and alignment.
            return unsafe { register.write_volatile(T::of(value)) };
        }
        let n = size_of::<T>();
        if u64::from(at) + n as u64 <= self.len {
            let place = self.offset + u64::from(at);
            let _ = rustix::io::pwrite(&self.fd, &value.to_le_bytes()[..n], place);
        }
    }

    /// Where the register is mapped, if it is.
    #[inline]
    fn mapped<T>(&self, at: u32) -> Option<*mut T> {
        let at = u64::from(at);
        if !at.is_multiple_of(size_of::<T>() as u64) {
            return None;
        }
        let part = self.parts.iter().find(|part| {
            let off = at.wrapping_sub(part.at);
            off < part.len && part.len - off >= size_of::<T>() as u64
        })?;
        // SAFETY: the register lies inside the mapping.
        Some(unsafe { part.base.as_ptr().add((at - part.at) as usize) }.cast())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        for part in &self.parts {
            // SAFETY: exactly what mmap returned; no register of it is used any more.
            let _ = unsafe { mm::munmap(part.base.as_ptr().cast(), part.len as usize) };
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use rustix::fs::{self, MemfdFlags};

    use super::*;

    #[test]
    fn registers_are_reached_mapped_or_not_and_never_outside() {
        let fd = fs::memfd_create(c"bar", MemfdFlags::CLOEXEC).unwrap();
        fs::ftruncate(&fd, 0x6000).unwrap();
        // The region is at 0x1000 of the file; its second page must not be mapped.
        let areas = [(0, 0x1000), (0x2000, 0x1000)];
        let bar = Bar::map(Arc::new(fd), 0x1000, 0x4000, &areas).unwrap();
        assert_eq!((bar.len, bar.parts.len()), (0x4000, 2));
        for at in [0, 0xffc, 0x1000, 0x1ffc, 0x2000, 0x2ffc, 0x3000, 0x3ffc] {
            bar.write(at, 4, 0x8765_4321);
            assert_eq!((bar.read(at, 4), bar.read(at, 2), bar.read(at + 3, 1)), (0x8765_4321, 0x4321, 0x87));
            bar.write(at + 1, 1, 0xee);
            bar.write(at + 2, 2, 0xabcd);
            assert_eq!(bar.read(at, 4), 0xabcd_ee21);
        }
        for at in [0x4000, 0x3ffd, u32::MAX - 2] {
            bar.write(at, 4, 1);
            assert_eq!(bar.read(at, 4), u32::MAX, "{at:#x}");
        }
        let mut behind = [7; 4];
        assert_eq!(rustix::io::pread(&*bar.fd, &mut behind, 0x5000), Ok(4));
        assert_eq!(behind, [0; 4], "nothing was written behind it");
    }
}
