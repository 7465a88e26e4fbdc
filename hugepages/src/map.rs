//! One mapping of a file: guest memory received from a front-end, or memory of our own.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{self, FileType, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use crate::dma;
use crate::reserve;
pub use crate::reserve::PageSize;
use crate::sigbus::{Guard, MAX_GUARDED};

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// Of memfds and of files in `/dev/shm`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Where mappings are placed: above the heap of most programs and below 39 bits, the address width
/// of the narrowest IOMMUs, because a virtual address of ours is also its I/O address.
static NEXT_ADDRESS: AtomicUsize = AtomicUsize::new(FIRST_ADDRESS);
const FIRST_ADDRESS: usize = 0x10_0000_0000;
const ADDRESS_LIMIT: usize = 1 << 39;
/// Places that are tried, in use by others, before any address will do.
const PLACES: usize = 64;

/// What our own memory is to be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Page size; a request that the host cannot serve is an error, see [`Map::shared`].
    pub page: PageSize,
    /// NUMA node to take the pages from; `None` leaves it to the kernel.
    pub node: Option<u32>,
}

impl Default for Backing {
    fn default() -> Self {
        Backing { page: PageSize::Huge2M, node: None }
    }
}

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The descriptor is not a file that can be mapped and shared.
    #[error("memory fd is a {0}, not a memfd, hugetlbfs or shared-memory file")]
    NotAFile(&'static str),
    /// Length zero, or offset + length does not fit the address space.
    #[error("memory region of {len:#x} bytes at file offset {offset:#x} is empty or wraps")]
    Extent {
        /// Offset asked for, bytes.
        offset: u64,
        /// Length asked for, bytes.
        len: u64,
    },
    /// The file is shorter than the region.
    #[error("memory region ends at byte {end:#x} of its file, which has only {size:#x} bytes")]
    PastEnd {
        /// First byte past the region.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// As many mappings of peers' files as there can be.
    #[error("{MAX_GUARDED} files of peers are mapped, the most there can be")]
    TooMany,
    /// No huge page is free for it.
    #[error(
        "no {len:#x} bytes of {page} huge pages free{}; reserve some: scripts/setup, or {}",
        .node.map(|n| format!(" on node {n}")).unwrap_or_default(),
        reserve::command(*.page, *.node, .len.div_ceil(.page.bytes()) as u64)
    )]
    NoHugePages {
        /// Bytes asked for.
        len: usize,
        /// Size of page asked for.
        page: PageSize,
        /// Node asked for.
        node: Option<u32>,
    },
    /// Devices that are to read and write it cannot.
    #[error(transparent)]
    Reach(#[from] dma::Unreachable),
    /// The kernel refused.
    #[error("{what}: {errno}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// What became of a mapping whose pages could not be had when they were accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its file is shorter now than what is mapped of it.
    #[error("its file was truncated to {size:#x} bytes while it was mapped")]
    Truncated {
        /// Size of the file.
        size: u64,
    },
    /// The file is long enough.
    #[error("no page could be had for it (huge pages or shared memory used up, or a hardware error)")]
    NoPage,
}

fn os(what: &'static str) -> impl FnOnce(Errno) -> MapError {
    move |errno| MapError::Os { what, errno }
}

/// One shared, writable mapping of a file. Unmapped when dropped; users share it as `Arc<Map>`.
///
/// The bytes inside may change at any time (a guest, a device or another process writes them), so no
/// reference to them exists: they are reached through [`Window`](crate::Window) and
/// [`Buf`](crate::Buf) only.
pub struct Map {
    base: NonNull<u8>,
    len: usize,
    page: usize,
    file: OwnedFd,
    /// Where it ends in the file.
    end: u64,
    sealed: bool,
    /// Of a file that somebody else may change.
    guard: Option<Guard>,
    /// Gone before the memory is.
    reach: Option<dma::Guard>,
}

// SAFETY: a Map is an address range and a descriptor; the bytes behind it are only ever accessed
// volatile or atomic, by types of this crate.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Map({:p} + {:#x}, pages of {:#x})", self.base, self.len, self.page)
    }
}

impl Map {
    /// Maps bytes `offset .. offset + len` of a file that a front-end sent, and returns where they
    /// begin inside the mapping: huge pages are mapped whole, so the mapping may begin earlier.
    ///
    /// # Errors
    /// A descriptor that is not a file in memory (on FUSE, say, each access would wait for whoever serves
    /// it), an empty or wrapping extent, a file shorter than the
    /// extent (a later access would raise SIGBUS), too many mappings, or the kernel's refusal.
    pub fn file(fd: OwnedFd, offset: u64, len: u64) -> Result<(Map, usize), MapError> {
        let stat = fs::fstat(&fd).map_err(os("fstat of a memory fd"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(MapError::NotAFile("directory")),
            FileType::Fifo => return Err(MapError::NotAFile("pipe")),
            FileType::Socket => return Err(MapError::NotAFile("socket")),
            FileType::CharacterDevice => return Err(MapError::NotAFile("character device")),
            _ => return Err(MapError::NotAFile("special file")),
        }
        let end = offset.checked_add(len).filter(|&e| len > 0 && e <= i64::MAX as u64);
        let end = end.ok_or(MapError::Extent { offset, len })?;
        let size = stat.st_size as u64;
        if end > size {
            return Err(MapError::PastEnd { end, size });
        }
        let page = page_of(fd.as_fd())?;
        let begin = offset & !(page as u64 - 1);
        let whole = (end - begin).next_multiple_of(page as u64) as usize;
        let sealed = fs::fcntl_get_seals(&fd).is_ok_and(|s| s.contains(SealFlags::SHRINK));
        let base =
            map_shared(fd.as_fd(), begin, whole, page, false).map_err(os("mmap of a memory region"))?;
        let guard = Guard::new(base.as_ptr() as usize, whole);
        let lacks_guard = guard.is_none();
        // Without a guard it is unmapped again.
        let map = Map { base, len: whole, page, file: fd, end, sealed, guard, reach: None };
        if lacks_guard { Err(MapError::TooMany) } else { Ok((map.reached()?, (offset - begin) as usize)) }
    }

    /// Makes `len` bytes (rounded up to whole pages) of zeroed memory of our own, populated, in a
    /// sealed memfd that can be sent to another process.
    ///
    /// # Errors
    /// [`MapError::NoHugePages`] when the host has too few pages of that size (and node): the caller
    /// decides whether ordinary pages will do ([`Map::shared_or_base`] does).
    pub fn shared(len: usize, backing: Backing) -> Result<Map, MapError> {
        let page = backing.page.bytes();
        let whole = len
            .checked_next_multiple_of(page)
            .filter(|&l| l > 0 && l <= isize::MAX as usize)
            .ok_or(MapError::Extent { offset: 0, len: len as u64 })?;
        #[cfg(miri)]
        return Map::interpreted(whole, page);
        let huge = match backing.page {
            PageSize::Base => MemfdFlags::empty(),
            PageSize::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            PageSize::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let none = MapError::NoHugePages { len: whole, page: backing.page, node: backing.node };
        let fd = match fs::memfd_create(c"hotring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | huge) {
            Ok(fd) => fd,
            Err(_) if backing.page != PageSize::Base => return Err(none),
            Err(e) => return Err(os("memfd_create")(e)),
        };
        fs::ftruncate(&fd, whole as u64).map_err(os("ftruncate of a memfd"))?;
        fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(os("sealing a memfd"))?;
        // With a node, pages are taken only after the policy is set.
        let populate = backing.node.is_none();
        let base = match map_shared(fd.as_fd(), 0, whole, page, populate) {
            Ok(base) => base,
            Err(Errno::NOMEM) if backing.page != PageSize::Base => return Err(none),
            Err(e) => return Err(os("mmap of own memory")(e)),
        };
        let map = Map {
            base,
            len: whole,
            page,
            file: fd,
            end: whole as u64,
            sealed: true,
            guard: None,
            reach: None,
        };
        if let Some(node) = backing.node {
            map.bind(node).map_err(os("mbind of own memory"))?;
            // SAFETY: the range is our own mapping, whole.
            unsafe { mm::madvise(base.as_ptr().cast(), whole, mm::Advice::LinuxPopulateWrite) }
                .map_err(|_| none)?;
        }
        map.reached()
    }

    /// Maps the ring that a packet socket shares with the kernel, `len` bytes, a multiple of a page: memory of
    /// the kernel's, which goes with its last user.
    ///
    /// # Errors
    /// A descriptor that is no socket, or one without a ring of that size.
    pub fn ring(socket: OwnedFd, len: usize) -> Result<Map, MapError> {
        let stat = fs::fstat(&socket).map_err(os("fstat of a socket"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(MapError::NotAFile("no socket"));
        }
        let page = PageSize::Base.bytes();
        if len == 0 || !len.is_multiple_of(page) {
            return Err(MapError::Extent { offset: 0, len: len as u64 });
        }
        let base = map_shared(socket.as_fd(), 0, len, page, false).map_err(os("mmap of a packet ring"))?;
        let (end, guard, reach) = (len as u64, None, None);
        // It does not shrink: the kernel refuses another ring while this one is mapped.
        Map { base, len, page, file: socket, end, sealed: true, guard, reach }.reached()
    }

    /// Lets devices that reach memory by themselves read and write it.
    fn reached(mut self) -> Result<Map, MapError> {
        self.reach = Some(dma::Guard::new(self.address(), self.len as u64)?);
        Ok(self)
    }

    /// Like [`Map::shared`], but falls back to ordinary pages. The second value is the error that
    /// made it fall back: one line that also says how to reserve huge pages.
    ///
    /// # Errors
    /// When ordinary pages cannot be had either.
    pub fn shared_or_base(len: usize, backing: Backing) -> Result<(Map, Option<MapError>), MapError> {
        match Map::shared(len, backing) {
            Ok(map) => Ok((map, None)),
            Err(why @ MapError::NoHugePages { .. }) => {
                let map = Map::shared(len, Backing { page: PageSize::Base, ..backing })?;
                // Transparent huge pages, where the host allows them for shared memory.
                // SAFETY: the range is our own mapping, whole; the advice changes no content.
                let _ = unsafe { mm::madvise(map.base.as_ptr().cast(), map.len, mm::Advice::LinuxHugepage) };
                Ok((map, Some(why)))
            }
            Err(e) => Err(e),
        }
    }

    /// Bytes mapped: a multiple of [`Map::page`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty extent is refused.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of a page of the file behind it.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Whether the file is sealed against shrinking. No access can raise SIGBUS then, but for want of pages.
    pub fn sealed(&self) -> bool {
        self.sealed
    }

    /// What is wrong with it, if an access found no page and it was replaced: see [`sigbus`](crate::sigbus).
    pub fn damage(&self) -> Option<Damage> {
        self.guard.as_ref().filter(|guard| guard.broken())?;
        Some(match fs::fstat(&self.file) {
            Ok(stat) if (stat.st_size as u64) < self.end => Damage::Truncated { size: stat.st_size as u64 },
            _ => Damage::NoPage,
        })
    }

    /// The file behind it, to be sent to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Virtual address of the first byte; also its I/O address.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// NUMA node of the first page, if the kernel tells.
    pub fn node(&self) -> Option<u32> {
        const MPOL_F_NODE_ADDR: libc::c_ulong = 1 | 2;
        let mut node: libc::c_int = -1;
        // SAFETY: asks the kernel about an address of our own mapping; writes one int of ours.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut node,
                std::ptr::null_mut::<libc::c_ulong>(),
                0 as libc::c_ulong,
                self.base.as_ptr(),
                MPOL_F_NODE_ADDR,
            )
        };
        if rc == 0 { u32::try_from(node).ok() } else { None }
    }

    /// Miri knows no memfd and no shared mapping: anonymous memory, which it checks the better.
    #[cfg(miri)]
    fn interpreted(len: usize, page: usize) -> Result<Map, MapError> {
        let file =
            fs::open("/dev/null", fs::OFlags::RDWR, fs::Mode::empty()).map_err(os("open of /dev/null"))?;
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
        }
        .map_err(os("mmap of own memory"))?;
        let base = NonNull::new(base.cast()).expect("mmap does not return null");
        Ok(Map { base, len, page, file, end: len as u64, sealed: true, guard: None, reach: None })
    }

    fn bind(&self, node: u32) -> Result<(), Errno> {
        const MPOL_BIND: libc::c_ulong = 2;
        const NODES: usize = 1024;
        if node as usize >= NODES {
            return Err(Errno::INVAL);
        }
        let mut mask = [0u64; NODES / 64];
        mask[node as usize / 64] |= 1 << (node % 64);
        // SAFETY: sets the policy of our own mapping; the mask outlives the call.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.len,
                MPOL_BIND,
                mask.as_ptr(),
                NODES as libc::c_ulong + 1,
                0 as libc::c_ulong,
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
        }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.reach = None;
        // First: what is mapped here next is no business of it.
        self.guard = None;
        // SAFETY: the range is exactly what mmap returned; every Window and Buf holds the Map alive.
        let gone = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
        assert!(gone.is_ok(), "munmap of {self:?}: {gone:?}");
    }
}

fn page_of(fd: BorrowedFd<'_>) -> Result<usize, MapError> {
    let fs = fs::fstatfs(fd).map_err(os("fstatfs of a memory fd"))?;
    #[allow(clippy::unnecessary_cast)]
    match fs.f_type as i64 {
        HUGETLBFS_MAGIC => Ok(fs.f_bsize as usize),
        TMPFS_MAGIC => Ok(PageSize::Base.bytes()),
        _ => Err(MapError::NotAFile("file on a disk, a network or FUSE")),
    }
}

/// An address to ask for; 0, for any, when there is no room below the limit. A peer chooses the length and
/// may map again and again: the range is gone through in turns.
fn place(len: usize, align: usize) -> usize {
    let Some(span) = len.checked_next_multiple_of(align).and_then(|span| span.checked_add(align)) else {
        return 0;
    };
    let after =
        |at: usize| at.checked_next_multiple_of(align)?.checked_add(span).filter(|&end| end <= ADDRESS_LIMIT);
    let next = |at: usize| after(at).or_else(|| after(FIRST_ADDRESS));
    // Relaxed: only a number, which no other memory depends on.
    match NEXT_ADDRESS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
        Ok(at) => after(at).unwrap_or_else(|| after(FIRST_ADDRESS).expect("it just fitted")) - span,
        Err(_) => 0,
    }
}

fn map_shared(
    fd: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    page: usize,
    populate: bool,
) -> Result<NonNull<u8>, Errno> {
    // 2 MiB alignment lets transparent huge pages back an ordinary file; a gap of a page between
    // mappings turns an overrun into a fault.
    let align = page.max(PageSize::Huge2M.bytes());
    let flags = if populate { MapFlags::SHARED | MapFlags::POPULATE } else { MapFlags::SHARED };
    let map = |at: usize, flags| {
        // SAFETY: at no address, or at one that MAP_FIXED_NOREPLACE takes only if nothing is there: no
        // existing mapping is touched.
        let base =
            unsafe { mm::mmap(at as *mut _, len, ProtFlags::READ | ProtFlags::WRITE, flags, fd, offset) };
        base.map(|base| NonNull::new(base.cast()).expect("mmap does not return null"))
    };
    for _ in 0..PLACES {
        match place(len, align) {
            0 => break,
            at => match map(at, flags | MapFlags::FIXED_NOREPLACE) {
                Err(Errno::EXIST) => {}
                mapped => return mapped,
            },
        }
    }
    map(0, flags)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    const BASE: Backing = Backing { page: PageSize::Base, node: None };

    fn memfd(len: u64) -> OwnedFd {
        let fd = fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        fs::ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn maps_a_part_of_a_file_from_its_page_on() {
        let fd = memfd(16 << 12);
        rustix::io::pwrite(&fd, b"here", 5 * 4096 + 8).unwrap();
        let (map, at) = Map::file(fd, 5 * 4096 + 8, 100).unwrap();
        assert_eq!((map.len(), map.page(), at, map.sealed()), (4096, 4096, 8, false));
        let lender = crate::Lender::new(crate::Table::of(map));
        let buf = lender.lend(8, 4, 0).unwrap();
        assert_eq!(buf.peek::<[u8; 4]>(0), Some(*b"here"));
        lender.settle(buf.finish(0));
    }

    #[test]
    fn refuses_what_would_fault_later() {
        let refused = |len: u64, offset, size| Map::file(memfd(len), offset, size).unwrap_err();
        assert!(matches!(refused(8192, 0, 0), MapError::Extent { .. }));
        assert!(matches!(refused(8192, u64::MAX, 2), MapError::Extent { .. }));
        assert!(matches!(refused(8192, u64::MAX - 4095, 4096), MapError::Extent { .. }));
        assert!(matches!(refused(8192, 1 << 62, 1 << 62), MapError::Extent { .. }));
        assert!(matches!(refused(8192, 4096, 4097), MapError::PastEnd { end: 8193, size: 8192 }));
        assert!(matches!(refused(0, 0, 1), MapError::PastEnd { .. }));
        assert!(Map::file(memfd(8192), 4096, 4096).is_ok());
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        assert!(matches!(Map::file(open("/"), 0, 4096), Err(MapError::NotAFile("directory"))));
        assert!(matches!(Map::file(open("/dev/null"), 0, 4096), Err(MapError::NotAFile("character device"))));
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        assert!(matches!(Map::file(pipe, 0, 4096), Err(MapError::NotAFile("pipe"))));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(Map::file(socket.into(), 0, 4096), Err(MapError::NotAFile("socket"))));
        // Pages of these come when somebody brings them.
        for path in ["/proc/self/exe", "/proc/self/maps"] {
            assert!(matches!(
                Map::file(open(path), 0, 1),
                Err(MapError::NotAFile(_) | MapError::PastEnd { .. })
            ));
        }
        // A file that cannot be written cannot be shared with a device.
        let file = memfd(8192);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        assert!(matches!(Map::file(open(&path), 0, 4096), Err(MapError::Os { .. })));
    }

    #[test]
    fn own_memory_is_sealed_and_unmapped_with_its_last_user() {
        let map = Map::shared(5000, BASE).unwrap();
        assert_eq!((map.len(), map.sealed()), (8192, true));
        assert!(fs::ftruncate(map.fd(), 4096).is_err(), "sealed against shrinking");
        // By its inode: another test may be given the same address meanwhile.
        let inode = fs::fstat(map.fd()).unwrap().st_ino.to_string();
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().any(|line| line.split_whitespace().nth(4) == Some(inode.as_str()))
        };
        let table = crate::Table::of(map);
        let window = table.window::<u64>(0, 4).unwrap();
        drop(table);
        assert!(mapped(), "a window keeps it");
        drop(window);
        assert!(!mapped());
    }

    #[test]
    fn an_impossible_node_and_size_are_named() {
        let none = Map::shared(1 << 50, Backing { page: PageSize::Huge2M, node: None }).unwrap_err();
        assert!(none.to_string().contains("2 MiB huge pages"), "{none}");
        assert!(Map::shared(4096, Backing { page: PageSize::Base, node: Some(5000) }).is_err());
        assert!(matches!(Map::shared(0, BASE), Err(MapError::Extent { .. })));
    }

    #[test]
    fn huge_pages_are_mapped_whole_and_from_their_node() {
        let wanted = Backing { page: PageSize::Huge2M, node: Some(0) };
        let map = match Map::shared(3 << 20, wanted) {
            Ok(map) => map,
            Err(why) => return println!("skipped: {why}"),
        };
        assert_eq!((map.len(), map.page(), map.node()), (4 << 20, 2 << 20, Some(0)));
        // As a front-end would send it: an extent inside, not aligned to the page.
        let fd = map.fd().try_clone_to_owned().unwrap();
        let (part, at) = Map::file(fd, (2 << 20) + 0x3000, 0x1000).unwrap();
        assert_eq!((part.len(), part.page(), at), (2 << 20, 2 << 20, 0x3000));
    }

    #[test]
    fn a_file_of_any_length_takes_no_addresses_from_others() {
        for len in [1u64 << 40, 1 << 62, i64::MAX as u64] {
            for _ in 0..9 {
                // As large as the file says it is, which costs its sender nothing.
                drop(Map::file(memfd(len), 0, len));
            }
        }
        // More than there is below the limit, one after the other.
        for _ in 0..20 {
            let (map, _) = Map::file(memfd(1 << 35), 0, 1 << 35).unwrap();
            let end = map.address() as usize + map.len();
            assert!(end <= ADDRESS_LIMIT, "{map:?} lies beyond the reach of narrow IOMMUs");
        }
    }
}
