//! TAP interfaces: `/dev/net/tun` and the interface requests of `netdevice(7)`.

// UNSAFETY: ioctl(2) takes a request's argument as an untyped pointer.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

/// `TUNSETOFFLOAD`: frames may come with an open checksum.
pub(crate) const OFFLOAD_CSUM: u32 = 1;
/// TSO for IPv4, IPv6, with ECN.
pub(crate) const OFFLOAD_TSO: u32 = 2 | 4 | 8;
/// UDP segmentation for IPv4 and IPv6 (Linux 6.2).
pub(crate) const OFFLOAD_USO: u32 = 0x20 | 0x40;

/// Most bytes of an interface name.
pub(crate) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// `struct ifreq`: a name and a union of 24 bytes.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: [u8; 24],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str) -> Request {
        let mut request = Request { name: [0; libc::IFNAMSIZ], data: [0; 24] };
        let len = name.len().min(MAX_NAME);
        request.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        request
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&b| b == 0).unwrap_or(MAX_NAME);
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

/// Opens `/dev/net/tun`, not yet attached to an interface.
pub(crate) fn open() -> io::Result<OwnedFd> {
    Ok(fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Attaches `fd` as a queue of interface `name`, made if it is not there; packets carry a
/// `virtio_net_hdr` of `header` bytes. Returns the name: a `%d` in it is replaced by the kernel.
pub(crate) fn attach(fd: BorrowedFd<'_>, name: &str, multi_queue: bool, header: u32) -> io::Result<String> {
    let mut request = Request::new(name);
    let flags = libc::IFF_TAP
        | libc::IFF_NO_PI
        | libc::IFF_VNET_HDR
        | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    request.data[..2].copy_from_slice(&(flags as u16).to_ne_bytes());
    ioctl(fd, libc::TUNSETIFF as _, &mut request)?;
    let mut size = header as libc::c_int;
    ioctl(fd, libc::TUNSETVNETHDRSZ as _, &mut size)?;
    Ok(request.name())
}

/// A descriptor that this process was started with, by its number: a copy, so that whoever names it again has it
/// again.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl copies it, or says that there is none of that number.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just now, nobody else's.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) })
}

/// Takes over `fd`, a queue of a TAP interface that somebody else made: packets carry a `virtio_net_hdr` of
/// `header` bytes. Returns the interface's name.
pub(crate) fn take_over(fd: BorrowedFd<'_>, header: u32) -> io::Result<String> {
    let mut request = Request::new("");
    ioctl(fd, libc::TUNGETIFF as _, &mut request)?;
    let flags = libc::c_int::from(u16::from_ne_bytes([request.data[0], request.data[1]]));
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        let what = "no queue of a TAP with IFF_NO_PI and IFF_VNET_HDR";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut size = header as libc::c_int;
    ioctl(fd, libc::TUNSETVNETHDRSZ as _, &mut size)?;
    rustix::io::ioctl_fionbio(fd, true)?;
    Ok(request.name())
}

/// Whether the interface stays when its last queue is closed.
pub(crate) fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    let rc =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST as _, libc::c_ulong::from(persistent)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Name of the interface that `fd` is a queue of; `None`: it was removed.
pub(crate) fn interface(fd: BorrowedFd<'_>) -> Option<String> {
    let mut request = Request::new("");
    ioctl(fd, libc::TUNGETIFF as _, &mut request).ok()?;
    Some(request.name())
}

/// Which offloads the frames that are read may need: `OFFLOAD_*`.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket for requests about interfaces of the thread's network namespace.
pub(crate) fn control() -> io::Result<OwnedFd> {
    Ok(net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Address of the interface.
pub(crate) fn mac(control: BorrowedFd<'_>, name: &str) -> io::Result<[u8; 6]> {
    let mut request = Request::new(name);
    ioctl(control, libc::SIOCGIFHWADDR as _, &mut request)?;
    Ok(request.data[2..8].try_into().expect("6 bytes"))
}

/// The same of the interface that `fd` is a queue of, wherever that is.
pub(crate) fn mac_of(fd: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    let mut request = Request::new("");
    ioctl(fd, libc::SIOCGIFHWADDR as _, &mut request)?;
    Ok(request.data[2..8].try_into().expect("6 bytes"))
}

/// Gives the interface an address.
pub(crate) fn set_mac(control: BorrowedFd<'_>, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = Request::new(name);
    request.data[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
    request.data[2..8].copy_from_slice(&mac);
    ioctl(control, libc::SIOCSIFHWADDR as _, &mut request)
}

/// The largest payload of a frame.
pub(crate) fn mtu(control: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = Request::new(name);
    ioctl(control, libc::SIOCGIFMTU as _, &mut request)?;
    Ok(u32::from_ne_bytes(request.data[..4].try_into().expect("4 bytes")))
}

/// The kernel's number of the interface.
pub(crate) fn index(control: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = Request::new(name);
    ioctl(control, libc::SIOCGIFINDEX as _, &mut request)?;
    Ok(u32::from_ne_bytes(request.data[..4].try_into().expect("4 bytes")))
}

/// The name of the interface of that number.
pub(crate) fn name_of(control: BorrowedFd<'_>, index: u32) -> io::Result<String> {
    let mut request = Request::new("");
    request.data[..4].copy_from_slice(&index.to_ne_bytes());
    ioctl(control, libc::SIOCGIFNAME as _, &mut request)?;
    Ok(request.name())
}

/// Receive queues of the interface (`ETHTOOL_GCHANNELS`): its own and those combined with transmit queues.
pub(crate) fn receive_queues(control: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    // struct ethtool_channels: cmd, most of each kind (rx, tx, other, combined), and how many of each.
    let mut channels = [0u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    let mut request = Request::new(name);
    request.data[..8].copy_from_slice(&((&raw mut channels).expose_provenance() as u64).to_ne_bytes());
    ioctl(control, libc::SIOCETHTOOL as _, &mut request)?;
    Ok(channels[5] + channels[8])
}

/// Sets the largest payload of a frame.
pub(crate) fn set_mtu(control: BorrowedFd<'_>, name: &str, mtu: u32) -> io::Result<()> {
    let mut request = Request::new(name);
    request.data[..4].copy_from_slice(&mtu.to_ne_bytes());
    ioctl(control, libc::SIOCSIFMTU as _, &mut request)
}

/// `IFF_*` of the interface.
pub(crate) fn flags(control: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    let mut request = Request::new(name);
    ioctl(control, libc::SIOCGIFFLAGS as _, &mut request)?;
    Ok(i32::from(u16::from_ne_bytes([request.data[0], request.data[1]])))
}

/// Switches the interface on or off.
pub(crate) fn set_up(control: BorrowedFd<'_>, name: &str, up: bool) -> io::Result<()> {
    let flags = flags(control, name)?;
    let wanted = if up { flags | libc::IFF_UP } else { flags & !libc::IFF_UP };
    if wanted == flags {
        return Ok(());
    }
    let mut request = Request::new(name);
    request.data[..2].copy_from_slice(&(wanted as u16).to_ne_bytes());
    ioctl(control, libc::SIOCSIFFLAGS as _, &mut request)
}

/// A request that reads or writes at most `argument`.
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: every request of this file takes a pointer to a T (an ifreq, an int) and stays inside.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
