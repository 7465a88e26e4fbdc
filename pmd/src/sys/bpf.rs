//! `bpf(2)`: the map of sockets and the XDP program that fills them, loaded without libbpf.

// UNSAFETY: bpf(2) takes its arguments as untyped memory.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// The program reads packets of several buffers.
const XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `union bpf_attr` as far as these commands use it: the fields of each are written by offset.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Attr {
        Attr([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Attr {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Attr {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// The command; what these return is a descriptor or 0.
    fn run(&self, command: libc::c_long) -> io::Result<libc::c_int> {
        // SAFETY: the kernel reads the attribute, and what its addresses say, which the callers keep.
        let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const self.0, self.0.len()) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as libc::c_int) }
    }

    fn open(&self, command: libc::c_long) -> io::Result<OwnedFd> {
        let fd = self.run(command)?;
        // SAFETY: these commands return a new descriptor, nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A map of `n` sockets by number (`BPF_MAP_TYPE_XSKMAP`).
pub(crate) fn socket_map(n: u32) -> io::Result<OwnedFd> {
    Attr::new().u32(0, MAP_TYPE_XSKMAP).u32(4, 4).u32(8, 4).u32(12, n).open(MAP_CREATE)
}

/// Puts a socket into the map.
pub(crate) fn set_socket(map: BorrowedFd<'_>, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd();
    let attr = Attr::new().u32(0, map.as_raw_fd() as u32);
    let attr = attr.u64(8, (&raw const key).addr() as u64).u64(16, (&raw const value).addr() as u64);
    attr.run(MAP_UPDATE_ELEM).map(drop)
}

/// Loads a program; the kernel checks it. `frags`: it takes packets of several buffers.
pub(crate) fn load(program: &[u64], frags: bool) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attr = Attr::new()
        .u32(0, PROG_TYPE_XDP)
        .u32(4, program.len() as u32)
        .u64(8, program.as_ptr().addr() as u64)
        .u64(16, license.as_ptr().addr() as u64)
        .u32(44, if frags { XDP_HAS_FRAGS } else { 0 });
    attr.open(PROG_LOAD)
}

/// Attaches a program to an interface until the link is closed. `native`: in the driver, not behind it.
pub(crate) fn attach(program: BorrowedFd<'_>, interface: u32, native: bool) -> io::Result<OwnedFd> {
    let mode = if native { XDP_FLAGS_DRV_MODE } else { XDP_FLAGS_SKB_MODE };
    let attr =
        Attr::new().u32(0, program.as_raw_fd() as u32).u32(4, interface).u32(8, ATTACH_XDP).u32(12, mode);
    attr.open(LINK_CREATE)
}
