//! The network device: virtio 1.3 §5.1.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// §5.1.4, bit of `status`: the link is up.
pub const S_LINK_UP: u16 = 1;
/// §5.1.4, bit of `status`: the driver is to announce its guest, and to acknowledge that.
pub const S_ANNOUNCE: u16 = 2;

/// §5.1.3 bit 0: the device completes checksums of frames it is given.
pub const F_CSUM: u64 = 1 << 0;
/// §5.1.3 bit 1: the driver takes frames with partial checksums.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// §5.1.3 bit 2: the driver can turn its offloads on and off ([`ctrl::GUEST_OFFLOADS`]).
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
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
/// §5.1.3 bit 18: receive modes ([`ctrl::RX`]).
pub const F_CTRL_RX: u64 = 1 << 18;
/// §5.1.3 bit 19: VLAN filter ([`ctrl::VLAN`]).
pub const F_CTRL_VLAN: u64 = 1 << 19;
/// §5.1.3 bit 20: further receive modes.
pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// §5.1.3 bit 21: the driver can announce itself.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// §5.1.3 bit 22: several queue pairs.
pub const F_MQ: u64 = 1 << 22;
/// §5.1.3 bit 23: the driver can set its address ([`ctrl::MAC_ADDR_SET`]).
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// §5.1.3 bit 52: moderation of calls, by ring ([`ctrl::NOTF_COAL`]).
pub const F_VQ_NOTF_COAL: u64 = 1 << 52;
/// §5.1.3 bit 53: moderation of calls, all receive or all transmit rings.
pub const F_NOTF_COAL: u64 = 1 << 53;
/// §5.1.3 bit 54: the driver takes USO for IPv4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// §5.1.3 bit 55: the driver takes USO for IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// §5.1.3 bit 56: the device takes USO.
pub const F_HOST_USO: u64 = 1 << 56;
/// §5.1.3 bit 57: the device reports the hash of packets, in a longer header ([`HDR_LEN_HASH`]).
pub const F_HASH_REPORT: u64 = 1 << 57;
/// §5.1.3 bit 60: the device chooses the receive queue by a packet's hash.
pub const F_RSS: u64 = 1 << 60;
/// §5.1.3 bit 63: the configuration has speed and duplex.
pub const F_SPEED_DUPLEX: u64 = 1 << 63;

/// What a driver can take, and turn off again with [`ctrl::GUEST_OFFLOADS`] (§5.1.6.5.6.1).
pub const GUEST_OFFLOADS: u64 =
    F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO | F_GUEST_USO4 | F_GUEST_USO6;

/// §5.1.6.5: classes of the control queue, and the commands of each.
#[allow(missing_docs)]
pub mod ctrl {
    pub const OK: u8 = 0;
    pub const ERR: u8 = 1;

    /// §5.1.6.5.1.
    pub const RX: u8 = 0;
    pub const RX_PROMISC: u8 = 0;
    pub const RX_ALLMULTI: u8 = 1;
    pub const RX_ALLUNI: u8 = 2;
    pub const RX_NOMULTI: u8 = 3;
    pub const RX_NOUNI: u8 = 4;
    pub const RX_NOBCAST: u8 = 5;
    /// §5.1.6.5.2.
    pub const MAC: u8 = 1;
    pub const MAC_TABLE_SET: u8 = 0;
    pub const MAC_ADDR_SET: u8 = 1;
    /// §5.1.6.5.3.
    pub const VLAN: u8 = 2;
    pub const VLAN_ADD: u8 = 0;
    pub const VLAN_DEL: u8 = 1;
    /// §5.1.6.5.4.
    pub const ANNOUNCE: u8 = 3;
    pub const ANNOUNCE_ACK: u8 = 0;
    /// §5.1.6.5.5.
    pub const MQ: u8 = 4;
    pub const MQ_VQ_PAIRS_SET: u8 = 0;
    /// §5.1.6.5.7.
    pub const MQ_RSS_CONFIG: u8 = 1;
    /// §5.1.6.5.6.4.
    pub const MQ_HASH_CONFIG: u8 = 2;
    /// §5.1.6.5.6.1.
    pub const GUEST_OFFLOADS: u8 = 5;
    pub const GUEST_OFFLOADS_SET: u8 = 0;
    /// §5.1.6.5.9.
    pub const NOTF_COAL: u8 = 6;
    pub const NOTF_COAL_TX_SET: u8 = 0;
    pub const NOTF_COAL_RX_SET: u8 = 1;
    pub const NOTF_COAL_VQ_SET: u8 = 2;
    pub const NOTF_COAL_VQ_GET: u8 = 3;
}

/// §5.1.6.4.3: which packets are hashed over what, as bits, and what is reported of a packet.
#[allow(missing_docs)]
pub mod hash {
    pub const IPV4: u32 = 1 << 0;
    pub const TCPV4: u32 = 1 << 1;
    pub const UDPV4: u32 = 1 << 2;
    pub const IPV6: u32 = 1 << 3;
    pub const TCPV6: u32 = 1 << 4;
    pub const UDPV6: u32 = 1 << 5;
    pub const IP_EX: u32 = 1 << 6;
    pub const TCP_EX: u32 = 1 << 7;
    pub const UDP_EX: u32 = 1 << 8;
    pub const ALL: u32 = (1 << 9) - 1;

    /// §5.1.6.4.4: nothing was hashed. Otherwise it is the number of the type's bit, plus 1.
    pub const REPORT_NONE: u16 = 0;

    /// §5.1.4: bytes of the longest key, the least that a device may have.
    pub const MAX_KEY: usize = 40;
    /// §5.1.4: entries of the longest indirection table, the least that a device may have, and the most that Linux
    /// had room for before it asked.
    pub const MAX_TABLE: usize = 128;
}

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
/// §5.1.6: bytes of the header with the hash ([`F_HASH_REPORT`]).
pub const HDR_LEN_HASH: u32 = 20;

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
    /// Speed, Mbit/s; all ones: unknown ([`F_SPEED_DUPLEX`]).
    pub speed: u32,
    /// 1 full duplex; 0xff: unknown.
    pub duplex: u8,
    /// Bytes of the longest hash key ([`F_RSS`], [`F_HASH_REPORT`]); not offered: zero, as the next two.
    pub rss_max_key_size: u8,
    /// Entries of the longest indirection table ([`F_RSS`]).
    pub rss_max_indirection_table_length: u16,
    /// Types of [`hash`].
    pub supported_hash_types: u32,
}
