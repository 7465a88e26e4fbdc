//! Registers of the 82599 (§8.2) and their bits.

pub(super) const CTRL_LINK_RST: u32 = 1 << 3;
pub(super) const CTRL_RST: u32 = 1 << 26;
pub(super) const CTRL_EXT: u32 = 0x0018;
/// A driver is here.
pub(super) const CTRL_EXT_DRIVER: u32 = 1 << 28;

pub(super) const EICR: u32 = 0x0800;
pub(super) const EIMC: u32 = 0x0888;
pub(super) const EIMC_EX: u32 = 0x0ab0;

pub(super) const EEC: u32 = 0x1_0010;
pub(super) const EEC_READ: u32 = 1 << 9;
pub(super) const RDRXCTL: u32 = 0x2f00;
pub(super) const RDRXCTL_STRIP_CRC: u32 = 1 << 1;
pub(super) const RDRXCTL_READY: u32 = 1 << 3;
/// First segment of receive side coalescing, which is not used: to be 0.
pub(super) const RDRXCTL_RSC_FIRST: u32 = 0x1f << 17;

pub(super) const AUTOC: u32 = 0x42a0;
pub(super) const AUTOC_RESTART: u32 = 1 << 12;
pub(super) const LINKS: u32 = 0x42a4;
pub(super) const LINKS_UP: u32 = 1 << 30;
pub(super) const LINKS_SPEED: u32 = 28;

pub(super) const FCTRL: u32 = 0x5080;
pub(super) const FCTRL_MULTICAST: u32 = 1 << 8;
pub(super) const FCTRL_UNICAST: u32 = 1 << 9;
pub(super) const FCTRL_BROADCAST: u32 = 1 << 10;
pub(super) const HLREG0: u32 = 0x4240;
pub(super) const HLREG0_ADD_CRC: u32 = 1 << 0;
pub(super) const HLREG0_STRIP_CRC: u32 = 1 << 1;
pub(super) const HLREG0_LONG: u32 = 1 << 2;
pub(super) const HLREG0_PAD: u32 = 1 << 10;
pub(super) const MAXFRS: u32 = 0x4268;

pub(super) const RXCTRL: u32 = 0x3000;
pub(super) const RXCTRL_ON: u32 = 1;
pub(super) const SECRXCTRL: u32 = 0x8d00;
pub(super) const SECRXCTRL_OFF: u32 = 1 << 1;
pub(super) const SECRXSTAT: u32 = 0x8d04;
pub(super) const SECRXSTAT_READY: u32 = 1;
pub(super) const DMATXCTL: u32 = 0x4a80;
pub(super) const DMATXCTL_ON: u32 = 1;

/// First register of a receive queue, of the first 64.
pub(super) fn rx_queue(queue: u16) -> u32 {
    0x1000 + 0x40 * u32::from(queue)
}

/// The same of a transmit queue.
pub(super) fn tx_queue(queue: u16) -> u32 {
    0x6000 + 0x40 * u32::from(queue)
}

// Of a queue, from its first register on.
pub(super) const BASE_LOW: u32 = 0x00;
pub(super) const BASE_HIGH: u32 = 0x04;
pub(super) const LENGTH: u32 = 0x08;
pub(super) const HEAD: u32 = 0x10;
/// Kinds and sizes of receive buffers; KiB in the low bits.
pub(super) const SRRCTL: u32 = 0x14;
/// Advanced descriptors, one buffer each.
pub(super) const SRRCTL_ADVANCED: u32 = 1 << 25;
pub(super) const SRRCTL_DROP: u32 = 1 << 28;
pub(super) const TAIL: u32 = 0x18;
pub(super) const CONTROL: u32 = 0x28;
pub(super) const CONTROL_ON: u32 = 1 << 25;

pub(super) const RXCSUM: u32 = 0x5000;
pub(super) const RXCSUM_IP: u32 = 1 << 12;
/// The hash takes the place of the checksum of fragments.
pub(super) const RXCSUM_NO_FRAGMENTS: u32 = 1 << 13;
pub(super) const MTA: u32 = 0x5200;
pub(super) const MCSTCTRL: u32 = 0x5090;
/// The table of groups is looked at.
pub(super) const MCSTCTRL_ON: u32 = 1 << 2;
pub(super) const VLNCTRL: u32 = 0x5088;
pub(super) const VLNCTRL_ON: u32 = 1 << 30;
pub(super) const VFTA: u32 = 0xa000;
/// Pools that an address belongs to: there is one.
pub(super) const MPSAR: u32 = 0xa600;
pub(super) const RAL: u32 = 0xa200;
pub(super) const MRQC: u32 = 0xec80;
/// Several queues by RSS.
pub(super) const MRQC_RSS: u32 = 1;
/// TCP, UDP and plain IPv4 and IPv6.
pub(super) const MRQC_FIELDS: u32 = 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23;
pub(super) const RETA: u32 = 0xeb00;
pub(super) const RSSRK: u32 = 0xeb80;

/// Statistics, §8.2.3.23: name, register, and whether it goes on in the next one. Cleared when read.
pub(super) const COUNTERS: &[(&str, u32, bool)] = &[
    ("rx_crc_errors", 0x4000, false),
    ("rx_illegal_byte_errors", 0x4004, false),
    ("rx_error_bytes", 0x4008, false),
    ("rx_mac_local_faults", 0x4034, false),
    ("rx_mac_remote_faults", 0x4038, false),
    ("rx_length_errors", 0x4040, false),
    ("rx_size_64_packets", 0x405c, false),
    ("rx_size_65_to_127_packets", 0x4060, false),
    ("rx_size_128_to_255_packets", 0x4064, false),
    ("rx_size_256_to_511_packets", 0x4068, false),
    ("rx_size_512_to_1023_packets", 0x406c, false),
    ("rx_size_1024_to_max_packets", 0x4070, false),
    ("rx_good_packets", 0x4074, false),
    ("rx_broadcast_packets", 0x4078, false),
    ("rx_multicast_packets", 0x407c, false),
    ("tx_good_packets", 0x4080, false),
    ("rx_good_bytes", 0x4088, true),
    ("tx_good_bytes", 0x4090, true),
    ("rx_undersize_errors", 0x40a4, false),
    ("rx_fragment_errors", 0x40a8, false),
    ("rx_oversize_errors", 0x40ac, false),
    ("rx_jabber_errors", 0x40b0, false),
    ("rx_total_bytes", 0x40c0, true),
    ("rx_total_packets", 0x40d0, false),
    ("tx_total_packets", 0x40d4, false),
    ("tx_multicast_packets", 0x40f0, false),
    ("tx_broadcast_packets", 0x40f4, false),
];
