//! The network device: virtio 1.3 §5.1.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// §5.1.3 bit 0: the device completes checksums of frames it is given.
pub const F_CSUM: u64 = 1 << 0;
/// §5.1.3 bit 1: the driver takes frames with partial checksums.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// §5.1.3 bit 3: the device reports its largest MTU.
pub const F_MTU: u64 = 1 << 3;
/// §5.1.3 bit 5: the device has a MAC address.
pub const F_MAC: u64 = 1 << 5;
/// §5.1.3 bit 7: the driver takes TSOv4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// §5.1.3 bit 8: the driver takes TSOv6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// §5.1.3 bit 9: the driver takes TSO with ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// §5.1.3 bit 10: the driver takes UFO.
pub const F_GUEST_UFO: u64 = 1 << 10;
/// §5.1.3 bit 11: the device takes TSOv4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// §5.1.3 bit 12: the device takes TSOv6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// §5.1.3 bit 13: the device takes TSO with ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// §5.1.3 bit 14: the device takes UFO.
pub const F_HOST_UFO: u64 = 1 << 14;
/// §5.1.3 bit 15: a received packet may take several chains.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// §5.1.3 bit 16: the configuration has a status field.
pub const F_STATUS: u64 = 1 << 16;
/// §5.1.3 bit 17: control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// §5.1.3 bit 21: the driver can announce itself.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// §5.1.3 bit 22: several queue pairs.
pub const F_MQ: u64 = 1 << 22;
/// §5.1.3 bit 54: the driver takes USO for IPv4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// §5.1.3 bit 55: the driver takes USO for IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// §5.1.3 bit 56: the device takes USO.
pub const F_HOST_USO: u64 = 1 << 56;

/// §5.1.6: `flags`: the checksum at `csum_start + csum_offset` is to be completed.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// §5.1.6: `flags`: the checksum was verified.
pub const HDR_F_DATA_VALID: u8 = 2;
/// §5.1.6: `gso_type`: not segmented.
pub const GSO_NONE: u8 = 0;
/// §5.1.6: `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// §5.1.6: `gso_type`: UDP fragments.
pub const GSO_UDP: u8 = 3;
/// §5.1.6: `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// §5.1.6: `gso_type`: UDP segments.
pub const GSO_UDP_L4: u8 = 5;
/// §5.1.6: `gso_type`: TCP with ECN, a bit beside the type.
pub const GSO_ECN: u8 = 0x80;

/// §5.1.6: bytes of the header with `num_buffers` (`VERSION_1` or `MRG_RXBUF`).
pub const HDR_LEN: u32 = 12;
/// §5.1.6.1: bytes of the legacy header without it.
pub const HDR_LEN_LEGACY: u32 = 10;

/// The most queue pairs of a device: what a vhost-user front-end can name with MQ here.
pub const MAX_QUEUE_PAIRS: u16 = 128;
/// Bytes of the largest frame with segmentation offload: 64 KiB and an Ethernet header with VLAN.
pub const MAX_FRAME: u32 = 65536 + 18;

/// §5.1.4: the configuration space, as far as it is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetConfig {
    /// MAC address ([`F_MAC`]).
    pub mac: [u8; 6],
    /// Bit 0: link up ([`F_STATUS`]).
    pub status: u16,
    /// Queue pairs the device has ([`F_MQ`]).
    pub max_queue_pairs: u16,
    /// Largest MTU ([`F_MTU`]).
    pub mtu: u16,
    /// Speed, Mbit/s.
    pub speed: u32,
    /// 1 full duplex.
    pub duplex: u8,
    /// RSS key size, indirection length and hash types; not offered: zero.
    pub rss: [u8; 7],
}
