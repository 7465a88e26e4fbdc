//! Packet sockets (`packet(7)`, `Documentation/networking/packet_mmap.rst` of Linux): received frames in a ring
//! shared with the kernel, with a `virtio_net_hdr` in front of each.

// UNSAFETY: a socket's options and address are untyped memory to the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::xsk::option;

const PACKET_RX_RING: libc::c_int = 5;
const PACKET_STATISTICS: libc::c_int = 6;
const PACKET_VERSION: libc::c_int = 10;
const PACKET_RESERVE: libc::c_int = 12;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_FANOUT: libc::c_int = 18;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

const TPACKET_V3: libc::c_int = 2;
const FANOUT_HASH: u32 = 0;
const FANOUT_FLAG_UNIQUEID: u32 = 0x2000;

/// What a ring is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Bytes of a block, a power of two of at least a page.
    pub(crate) size: u32,
    pub(crate) count: u32,
}

/// A packet socket on an interface, for all protocols, with a ring to receive into. It receives nothing before
/// it is bound by [`bind`].
pub(crate) fn open(
    blocks: Blocks,
    reserve: u32,
    qdisc_bypass: bool,
) -> Result<OwnedFd, (&'static str, io::Error)> {
    let step = |what| move |e| (what, e);
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: makes a descriptor, or fails.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(("socket(AF_PACKET)", io::Error::last_os_error()));
    }
    // SAFETY: made just now, nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    option(&fd, libc::SOL_PACKET, PACKET_VERSION, &TPACKET_V3).map_err(step("asking for TPACKET_V3"))?;
    option(&fd, libc::SOL_PACKET, PACKET_VNET_HDR, &1).map_err(step("asking for PACKET_VNET_HDR"))?;
    option(&fd, libc::SOL_PACKET, PACKET_RESERVE, &reserve).map_err(step("asking for headroom"))?;
    // Kernels that do not know it mark such frames, which are left out then.
    let _ = option(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1);
    if qdisc_bypass {
        option(&fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, &1)
            .map_err(step("asking for PACKET_QDISC_BYPASS"))?;
    }
    let frame = 2048;
    let request = libc::tpacket_req3 {
        tp_block_size: blocks.size,
        tp_block_nr: blocks.count,
        tp_frame_size: frame,
        tp_frame_nr: blocks.size / frame * blocks.count,
        // Milliseconds until a block that is not full is handed over; the least there is.
        tp_retire_blk_tov: 1,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    option(&fd, libc::SOL_PACKET, PACKET_RX_RING, &request).map_err(step("making a ring"))?;
    Ok(fd)
}

/// Receives and sends on the interface from now on.
pub(crate) fn bind(fd: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: interface as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads one sockaddr_ll.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the socket receive nothing, until told otherwise.
pub(crate) fn deafen(fd: &OwnedFd, deaf: bool) -> io::Result<()> {
    if !deaf {
        return option(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0);
    }
    // One instruction: keep 0 bytes (BPF_RET | BPF_K).
    let mut nothing = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Shares the frames of the interface by flow between the sockets of a group: the first of them, with `None`,
/// makes the group and has its number.
pub(crate) fn share(fd: &OwnedFd, group: Option<u16>) -> io::Result<u16> {
    let asked = match group {
        Some(group) => u32::from(group) | FANOUT_HASH << 16,
        None => (FANOUT_HASH | FANOUT_FLAG_UNIQUEID) << 16,
    };
    option(fd, libc::SOL_PACKET, PACKET_FANOUT, &asked)?;
    Ok(ask::<u32>(fd, PACKET_FANOUT)? as u16)
}

/// Frames received and lost for want of room, since the last call.
pub(crate) fn statistics(fd: &OwnedFd) -> io::Result<(u32, u32)> {
    // struct tpacket_stats_v3: packets, drops, times that the ring was full.
    let [packets, drops, _]: [u32; 3] = ask(fd, PACKET_STATISTICS)?;
    Ok((packets, drops))
}

/// Asks for an option of plain integers.
fn ask<T: Default>(fd: &OwnedFd, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    let at = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most one T, whose fields are integers.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_PACKET, name, at, &raw mut len) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
