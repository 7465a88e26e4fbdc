//! Pages that come later: memory of a guest that has moved here before all of its memory has. Whoever
//! touches a page that is missing waits in the kernel until its front-end, which has the descriptor, puts
//! the page there.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::map::{Map, MapError};

/// `UFFD_API` of `linux/userfaultfd.h`, as the following.
const API: u64 = 0xaa;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const IOC_API: libc::c_ulong = 0xc018_aa3f;
const IOC_REGISTER: libc::c_ulong = 0xc020_aa00;
const IOC_UNREGISTER: libc::c_ulong = 0x8010_aa01;

#[repr(C)]
struct ApiCall {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// Missing pages of some mappings are waited for, until this is dropped: then whoever waits goes on, and a
/// page that is still missing is one of zeros.
#[derive(Debug)]
pub struct MissingPages {
    fd: OwnedFd,
    maps: Vec<Arc<Map>>,
}

impl MissingPages {
    /// Of no mapping yet.
    ///
    /// # Errors
    /// [`MapError::Os`] when the kernel does not let us (`vm.unprivileged_userfaultfd`), or cannot do it for
    /// shared memory.
    pub fn new() -> Result<MissingPages, MapError> {
        // SAFETY: a new descriptor, of which nothing is registered yet.
        let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
        let fd = fd.map_err(|errno| MapError::Os { what: "userfaultfd", errno })?;
        let features = FEATURE_MISSING_HUGETLBFS | FEATURE_MISSING_SHMEM;
        let mut call = ApiCall { api: API, features, ioctls: 0 };
        control(&fd, IOC_API, &mut call, "userfaultfd of shared memory")?;
        Ok(MissingPages { fd, maps: Vec::new() })
    }

    /// The descriptor for whoever brings the pages. With it, they can also put pages where any mapping of
    /// this process lacks some: it is for a front-end that is trusted.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Pages that are missing of this mapping, from now on.
    ///
    /// # Errors
    /// [`MapError::Os`].
    pub fn wait_for(&mut self, map: &Arc<Map>) -> Result<(), MapError> {
        let range = Range { start: map.address(), len: map.len() as u64 };
        let mut call = Register { range, mode: MODE_MISSING, ioctls: 0 };
        control(&self.fd, IOC_REGISTER, &mut call, "userfaultfd of a memory region")?;
        self.maps.push(Arc::clone(map));
        Ok(())
    }
}

impl Drop for MissingPages {
    fn drop(&mut self) {
        for map in &self.maps {
            let mut range = Range { start: map.address(), len: map.len() as u64 };
            let gone = control(&self.fd, IOC_UNREGISTER, &mut range, "userfaultfd");
            debug_assert!(gone.is_ok(), "{gone:?} of {map:?}");
        }
    }
}

fn control<T>(
    fd: &OwnedFd,
    request: libc::c_ulong,
    call: &mut T,
    what: &'static str,
) -> Result<(), MapError> {
    // SAFETY: the structure is that of the request; ranges are whole mappings of ours, which whoever calls
    // keeps, and the call changes how faults in them are handled, not what is mapped.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(call)) };
    if done == 0 {
        return Ok(());
    }
    let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL);
    Err(MapError::Os { what, errno })
}

#[cfg(all(test, not(miri)))]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::{Table, Words};

    #[test]
    fn who_waits_for_a_page_gets_it_or_goes_on_when_nobody_brings_it() {
        let mut missing = match MissingPages::new() {
            Ok(missing) => missing,
            Err(why) => return println!("skipped: {why}"),
        };
        let file = memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 2 * 4096).unwrap();
        let theirs = file.try_clone().unwrap();
        let map = Arc::new(Map::file(file, 0, 2 * 4096).unwrap().0);
        missing.wait_for(&map).unwrap();
        let region = crate::Region { gpa: 0, len: 2 * 4096, user: 0, map, at: 0 };
        let table = Arc::new(Table::new(vec![region]).unwrap());
        let reader = |page: usize| {
            let words = table.window::<u64>(0, 1024).unwrap();
            std::thread::spawn(move || words.get(page * 512))
        };
        let [first, second] = [0, 1].map(reader);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!first.is_finished() && !second.is_finished(), "they wait");
        // The page is there now, but nobody has said so: the readers look when they are woken.
        rustix::io::pwrite(&theirs, &7u64.to_ne_bytes(), 0).unwrap();
        drop(missing);
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (7, 0));
    }
}
