//! memif, version 2.0 (<https://s3-docs.fd.io/vpp/24.02/interfacing/libmemif/>, and "Memif Poll Mode Driver" of
//! DPDK's guide): messages between two processes on a socket of packets, and rings in memory that they share.
//! The client (slave) brings the memory and connects; the server (master) listens. All numbers are in the
//! machine's byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The one version that is in use.
pub const VERSION: u16 = 2 << 8;
/// First word of every ring.
pub const COOKIE: u32 = 0x3e3_1f20;
/// Bytes of a message, whatever is in it.
pub const MESSAGE: usize = 128;
/// The largest rings, as a power of two.
pub const MAX_LOG2_RING: u8 = 14;

/// Kinds of messages: the first two bytes of one.
#[allow(missing_docs)]
pub mod kind {
    pub const ACK: u16 = 1;
    pub const HELLO: u16 = 2;
    pub const INIT: u16 = 3;
    pub const ADD_REGION: u16 = 4;
    pub const ADD_RING: u16 = 5;
    pub const CONNECT: u16 = 6;
    pub const CONNECTED: u16 = 7;
    pub const DISCONNECT: u16 = 8;
}

/// What an interface carries: Ethernet frames.
pub const MODE_ETHERNET: u8 = 0;
/// [`AddRing`]: from client to server.
pub const RING_TO_SERVER: u16 = 1;

/// The server's first word.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct Hello {
    pub name: [u8; 32],
    pub min_version: u16,
    pub max_version: u16,
    /// The largest index of a region, and of a ring to the client and to the server.
    pub max_region: u16,
    pub max_to_client: u16,
    pub max_to_server: u16,
    pub max_log2_ring_size: u8,
}

/// Which interface the client wants.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct Init {
    pub version: u16,
    pub id: u32,
    pub mode: u8,
    pub secret: [u8; 24],
    pub name: [u8; 32],
}

/// A file of memory, in a descriptor beside it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct AddRegion {
    pub index: u16,
    pub size: u64,
}

/// Where a ring lies; beside it what to signal when something is in it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct AddRing {
    /// [`RING_TO_SERVER`].
    pub flags: u16,
    pub index: u16,
    pub region: u16,
    pub offset: u32,
    pub log2_size: u8,
    pub private_header: u16,
}

/// Both [`kind::CONNECT`] and [`kind::CONNECTED`]: the sender's name of the interface.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct Connect {
    pub name: [u8; 32],
}

/// The end, and why.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[allow(missing_docs)]
pub struct Disconnect {
    pub code: u32,
    pub reason: [u8; 96],
}

/// Bytes in front of the descriptors of a ring: [`COOKIE`], flags and head on one cache line, tail on the next.
pub const RING_HEADER: u64 = 128;
/// Bytes of a descriptor: flags and region (16 bits each), length, offset in the region, and a word that means
/// nothing here.
pub const DESC: u64 = 16;
/// Places of 16-bit words in the header.
pub const FLAGS: usize = 2;
#[allow(missing_docs)]
pub const HEAD: usize = 3;
#[allow(missing_docs)]
pub const TAIL: usize = 32;
/// In the flags of a ring: its receiver does not want to be signalled.
pub const RING_MASKED: u16 = 1;
/// In the flags of a descriptor: the packet goes on in the next.
pub const DESC_NEXT: u16 = 1;
