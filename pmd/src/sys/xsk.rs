//! AF_XDP sockets (`Documentation/networking/af_xdp.rst` of Linux): a socket, its memory (UMEM), and the four
//! rings that it shares with the kernel.

// UNSAFETY: socket options and addresses are untyped memory to the kernel, and the rings lie in mappings
// that it shares with us.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hugepages::Table;

pub(crate) use libc::xdp_desc as Desc;
pub(crate) use libc::xdp_statistics as Statistics;

/// Entries of each ring.
pub(crate) const ENTRIES: u32 = 2048;
/// The packet goes on in the next descriptor.
pub(crate) const CONTINUES: u32 = libc::XDP_PKT_CONTD;

const PREFER_BUSY_POLL: libc::c_int = 69;
const BUSY_POLL_BUDGET: libc::c_int = 70;

/// How a socket is to be bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bind {
    pub(crate) interface: u32,
    pub(crate) queue: u32,
    /// No zero copy between NIC and UMEM.
    pub(crate) copy: bool,
    /// Frames of several descriptors.
    pub(crate) several: bool,
    /// Packets that the kernel handles at most when it is made to poll; 0: it polls by itself.
    pub(crate) busy_budget: u32,
}

/// Sets an option of a socket, plain integers.
pub(super) fn option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads one T.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for an option of plain integers.
fn ask<T>(fd: &OwnedFd, name: libc::c_int) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most one T, whose fields are integers: what it leaves out is zero.
    unsafe {
        let rc =
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, name, value.as_mut_ptr().cast(), &raw mut len);
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(value.assume_init()) }
    }
}

/// One mapping of a ring, unmapped when the ring goes.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by Ring::map() with this length; whoever holds pointers into it owns it.
        let _ = unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// A ring: indices that both sides see, entries of `T`, and where we are. A consumer's or a producer's,
/// by which of the calls below are used.
pub(crate) struct Ring<T> {
    map: Mapping,
    producer: usize,
    consumer: usize,
    flags: usize,
    entries: usize,
    /// Our index, and the other side's as last seen.
    ours: u32,
    theirs: u32,
    of: std::marker::PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn map(fd: &OwnedFd, at: &libc::xdp_ring_offset, page: libc::off_t) -> io::Result<Ring<T>> {
        let len = at.desc as usize + ENTRIES as usize * size_of::<T>();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping of a file, at an address of the kernel's choice.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), page) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = Mapping { at: NonNull::new(map.cast()).expect("not at 0"), len };
        let (producer, consumer) = (at.producer as usize, at.consumer as usize);
        let (flags, entries) = (at.flags as usize, at.desc as usize);
        Ok(Ring { map, producer, consumer, flags, entries, ours: 0, theirs: 0, of: std::marker::PhantomData })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the kernel gave the offset of an aligned word inside the mapping, which lives as long as
        // the ring; both sides use it atomically.
        unsafe { AtomicU32::from_ptr(self.map.at.as_ptr().add(at).cast()) }
    }

    fn entry(&self, i: u32) -> *mut T {
        // SAFETY: the mapping has ENTRIES entries from there on, a power of two.
        unsafe { self.map.at.as_ptr().add(self.entries).cast::<T>().add((i & (ENTRIES - 1)) as usize) }
    }

    /// Whether the kernel wants to be woken to look at it.
    #[inline(always)]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Producer: entries that can be put.
    #[inline(always)]
    pub(crate) fn free(&mut self) -> u32 {
        let free = ENTRIES - self.ours.wrapping_sub(self.theirs);
        if free > ENTRIES / 2 {
            return free;
        }
        // Pairs with the kernel's release: it has read the entries before.
        self.theirs = self.word(self.consumer).load(Ordering::Acquire);
        ENTRIES - self.ours.wrapping_sub(self.theirs)
    }

    /// Producer: puts an entry, one of those that were free, behind what was put.
    #[inline(always)]
    pub(crate) fn put(&mut self, entry: T) {
        debug_assert!(self.ours.wrapping_sub(self.theirs) < ENTRIES, "free() counted it");
        // SAFETY: entry() is inside; the kernel does not read it before submit().
        unsafe { self.entry(self.ours).write_volatile(entry) };
        self.ours = self.ours.wrapping_add(1);
    }

    /// Producer: shows the kernel what was put.
    #[inline(always)]
    pub(crate) fn submit(&self) {
        // Pairs with the kernel's acquire.
        self.word(self.producer).store(self.ours, Ordering::Release);
    }

    /// Producer: entries that the kernel has not taken.
    pub(crate) fn pending(&self) -> u32 {
        self.ours.wrapping_sub(self.word(self.consumer).load(Ordering::Acquire))
    }

    /// Consumer: entries that can be taken.
    #[inline(always)]
    pub(crate) fn available(&mut self) -> u32 {
        if self.theirs == self.ours {
            // Pairs with the kernel's release of the entries.
            self.theirs = self.word(self.producer).load(Ordering::Acquire);
        }
        self.theirs.wrapping_sub(self.ours).min(ENTRIES)
    }

    /// Consumer: the entry `i` behind the next, one of those that are available.
    #[inline(always)]
    pub(crate) fn look(&self, i: u32) -> T {
        // SAFETY: entry() is inside; the kernel wrote it before it showed it, and any bits are a T.
        unsafe { self.entry(self.ours.wrapping_add(i)).read_volatile() }
    }

    /// Consumer: takes `n` entries.
    #[inline(always)]
    pub(crate) fn take(&mut self, n: u32) {
        self.ours = self.ours.wrapping_add(n);
        // Pairs with the kernel's acquire: it may write the entries again.
        self.word(self.consumer).store(self.ours, Ordering::Release);
    }
}

/// A bound socket.
pub(crate) struct Xsk {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) fill: Ring<u64>,
    pub(crate) completion: Ring<u64>,
    pub(crate) rx: Ring<Desc>,
    pub(crate) tx: Ring<Desc>,
    /// Whether NIC and UMEM do without a copy.
    pub(crate) zero_copy: bool,
    /// What it reads and writes.
    _umem: Arc<Table>,
}

impl Xsk {
    /// Binds a socket to a queue of an interface, its UMEM the only region of `umem` in chunks of `chunk`
    /// bytes. What it wants to be bound to shows in `step` when it fails.
    pub(crate) fn bind(umem: &Arc<Table>, chunk: u32, bind: Bind) -> Result<Xsk, (&'static str, io::Error)> {
        let step = |what| move |e| (what, e);
        // SAFETY: makes a descriptor, or fails.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(("socket(AF_XDP)", io::Error::last_os_error()));
        }
        // SAFETY: made just now, nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let region = umem.regions().first().expect("a table of one region");
        let len = region.len / u64::from(chunk) * u64::from(chunk);
        let addr = region.map.address() + region.at as u64;
        let register =
            libc::xdp_umem_reg { addr, len, chunk_size: chunk, headroom: 0, flags: 0, tx_metadata_len: 0 };
        option(&fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &register).map_err(step("registering its memory"))?;
        let rings =
            [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING];
        for ring in rings {
            option(&fd, libc::SOL_XDP, ring, &ENTRIES).map_err(step("making a ring"))?;
        }
        let at: libc::xdp_mmap_offsets =
            ask(&fd, libc::XDP_MMAP_OFFSETS).map_err(step("asking where its rings are"))?;
        let map = step("mapping a ring");
        let fill = Ring::map(&fd, &at.fr, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t).map_err(map)?;
        let completion =
            Ring::map(&fd, &at.cr, libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t).map_err(map)?;
        let rx = Ring::map(&fd, &at.rx, libc::XDP_PGOFF_RX_RING as libc::off_t).map_err(map)?;
        let tx = Ring::map(&fd, &at.tx, libc::XDP_PGOFF_TX_RING as libc::off_t).map_err(map)?;
        if bind.busy_budget > 0 {
            let polls =
                [(PREFER_BUSY_POLL, 1), (libc::SO_BUSY_POLL, 20), (BUSY_POLL_BUDGET, bind.busy_budget)];
            for (name, value) in polls {
                option(&fd, libc::SOL_SOCKET, name, &value).map_err(step("asking for busy polling"))?;
            }
        }
        let mut flags = libc::XDP_USE_NEED_WAKEUP;
        if bind.copy {
            flags |= libc::XDP_COPY;
        }
        if bind.several {
            flags |= libc::XDP_USE_SG;
        }
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: bind.interface,
            sxdp_queue_id: bind.queue,
            sxdp_shared_umem_fd: 0,
        };
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel reads one sockaddr_xdp.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
            return Err(("bind", io::Error::last_os_error()));
        }
        let options: libc::xdp_options = ask(&fd, libc::XDP_OPTIONS).map_err(step("asking for its mode"))?;
        let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        Ok(Xsk { fd: Arc::new(fd), fill, completion, rx, tx, zero_copy, _umem: Arc::clone(umem) })
    }

    /// Has the kernel look at the transmit ring.
    pub(crate) fn kick(&self) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: sends nothing from nowhere.
        let rc =
            unsafe { libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, flags, std::ptr::null(), 0) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has the kernel look at the fill ring, and poll the NIC.
    pub(crate) fn poll(&self) {
        let (nothing, nowhere) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: receives nothing to nowhere. What it answers does not matter: the rings tell.
        let _ = unsafe {
            libc::recvfrom(self.fd.as_raw_fd(), nothing, 0, libc::MSG_DONTWAIT, std::ptr::null_mut(), nowhere)
        };
    }
}

/// What the kernel counted on a socket.
pub(crate) fn statistics(fd: &OwnedFd) -> io::Result<Statistics> {
    ask(fd, libc::XDP_STATISTICS)
}

/// A socket that keeps an interface promiscuous while it is open.
pub(crate) fn promiscuous(interface: u32) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, or fails. Protocol 0: it receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = libc::packet_mreq {
        mr_ifindex: interface as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)?;
    Ok(fd)
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
