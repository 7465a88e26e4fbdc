//! Registers of the 82576 (§8) and their bits.

pub(super) const CTRL: u32 = 0x0000;
/// Set link up.
pub(super) const CTRL_SLU: u32 = 1 << 6;
pub(super) const CTRL_FORCE_SPEED: u32 = 1 << 11;
pub(super) const CTRL_FORCE_DUPLEX: u32 = 1 << 12;
pub(super) const CTRL_RST: u32 = 1 << 26;
pub(super) const CTRL_EXT: u32 = 0x0018;
/// A driver is here.
pub(super) const CTRL_EXT_DRIVER: u32 = 1 << 28;

pub(super) const STATUS: u32 = 0x0008;
pub(super) const STATUS_LINK: u32 = 1 << 1;
pub(super) const STATUS_SPEED: u32 = 6;

/// Registers of the PHY: value, number, and what to do.
pub(super) const MDIC: u32 = 0x0020;
pub(super) const MDIC_PHY: u32 = 1 << 21;
pub(super) const MDIC_WRITE: u32 = 1 << 26;
pub(super) const MDIC_READY: u32 = 1 << 28;
/// IEEE 802.3 §22.2.4.1: the PHY's control register is number 0; full duplex, negotiate anew.
pub(super) const PHY_CONTROL: u32 = 0;
pub(super) const PHY_NEGOTIATE: u32 = 1 << 12 | 1 << 9 | 1 << 8;

pub(super) const ICR: u32 = 0x1500;
pub(super) const IMC: u32 = 0x150c;
pub(super) const EIMC: u32 = 0x1528;

pub(super) const RCTL: u32 = 0x0100;
pub(super) const RCTL_ON: u32 = 1 << 1;
pub(super) const RCTL_UNICAST: u32 = 1 << 3;
pub(super) const RCTL_MULTICAST: u32 = 1 << 4;
pub(super) const RCTL_LONG: u32 = 1 << 5;
pub(super) const RCTL_BROADCAST: u32 = 1 << 15;
/// Tagged frames of some networks only.
pub(super) const RCTL_NETWORKS: u32 = 1 << 18;
pub(super) const RCTL_STRIP_CRC: u32 = 1 << 26;
/// Longest packet with its check sequence.
pub(super) const RLPML: u32 = 0x5004;

pub(super) const TCTL: u32 = 0x0400;
pub(super) const TCTL_ON: u32 = 1 << 1;
/// Pad short packets.
pub(super) const TCTL_PSP: u32 = 1 << 3;
/// Collision threshold and distance as recommended, §8.11.1.
pub(super) const TCTL_RETRY: u32 = 0x0f << 4 | 0x40 << 12;

/// First register of a receive queue.
pub(super) fn rx_queue(queue: u16) -> u32 {
    0xc000 + 0x40 * u32::from(queue)
}

/// The same of a transmit queue.
pub(super) fn tx_queue(queue: u16) -> u32 {
    0xe000 + 0x40 * u32::from(queue)
}

// Of a queue, from its first register on.
pub(super) const BASE_LOW: u32 = 0x00;
pub(super) const BASE_HIGH: u32 = 0x04;
pub(super) const LENGTH: u32 = 0x08;
/// Kinds and sizes of receive buffers; KiB in the low bits.
pub(super) const SRRCTL: u32 = 0x0c;
/// Advanced descriptors, one buffer each.
pub(super) const SRRCTL_ADVANCED: u32 = 1 << 25;
pub(super) const SRRCTL_DROP: u32 = 1 << 31;
pub(super) const HEAD: u32 = 0x10;
pub(super) const TAIL: u32 = 0x18;
pub(super) const CONTROL: u32 = 0x28;
pub(super) const CONTROL_ON: u32 = 1 << 25;

pub(super) const RXCSUM: u32 = 0x5000;
pub(super) const RXCSUM_IP: u32 = 1 << 8;
pub(super) const RXCSUM_TCP_UDP: u32 = 1 << 9;
/// The hash takes the place of the checksum of fragments.
pub(super) const RXCSUM_NO_FRAGMENTS: u32 = 1 << 13;
pub(super) const MTA: u32 = 0x5200;
pub(super) const VFTA: u32 = 0x5600;
pub(super) const RAL: u32 = 0x5400;
pub(super) const MRQC: u32 = 0x5818;
/// Several queues by RSS.
pub(super) const MRQC_RSS: u32 = 2;
/// TCP, UDP and plain IPv4 and IPv6.
pub(super) const MRQC_FIELDS: u32 = 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23;
pub(super) const RETA: u32 = 0x5c00;
pub(super) const RSSRK: u32 = 0x5c80;

/// Statistics, §8.18: name, register, and whether it goes on in the next one. Cleared when read.
pub(super) const COUNTERS: &[(&str, u32, bool)] = &[
    ("rx_crc_errors", 0x4000, false),
    ("rx_align_errors", 0x4004, false),
    ("rx_symbol_errors", 0x4008, false),
    ("rx_errors", 0x400c, false),
    ("rx_missed_packets", 0x4010, false),
    ("tx_single_collision_packets", 0x4014, false),
    ("tx_excessive_collision_packets", 0x4018, false),
    ("tx_multiple_collision_packets", 0x401c, false),
    ("tx_late_collisions", 0x4020, false),
    ("collision_count", 0x4028, false),
    ("tx_deferred_packets", 0x4030, false),
    ("rx_length_errors", 0x4040, false),
    ("rx_xon_packets", 0x4048, false),
    ("tx_xon_packets", 0x404c, false),
    ("rx_xoff_packets", 0x4050, false),
    ("tx_xoff_packets", 0x4054, false),
    ("rx_good_packets", 0x4074, false),
    ("rx_broadcast_packets", 0x4078, false),
    ("rx_multicast_packets", 0x407c, false),
    ("tx_good_packets", 0x4080, false),
    ("rx_good_bytes", 0x4088, true),
    ("tx_good_bytes", 0x4090, true),
    ("rx_no_buffer", 0x40a0, false),
    ("rx_undersize_errors", 0x40a4, false),
    ("rx_fragment_errors", 0x40a8, false),
    ("rx_oversize_errors", 0x40ac, false),
    ("rx_jabber_errors", 0x40b0, false),
    ("rx_total_bytes", 0x40c0, true),
    ("tx_total_bytes", 0x40c8, true),
    ("rx_total_packets", 0x40d0, false),
    ("tx_total_packets", 0x40d4, false),
    ("tx_multicast_packets", 0x40f0, false),
    ("tx_broadcast_packets", 0x40f4, false),
    ("tx_tso_packets", 0x40f8, false),
];
