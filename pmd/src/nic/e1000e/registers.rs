//! Registers of the 82574 (§10.2) and their bits.

pub(super) const CTRL: u32 = 0x0000;
/// Set link up.
pub(super) const CTRL_SLU: u32 = 1 << 6;
pub(super) const CTRL_FORCE_SPEED: u32 = 1 << 11;
pub(super) const CTRL_FORCE_DUPLEX: u32 = 1 << 12;
pub(super) const CTRL_RST: u32 = 1 << 26;

pub(super) const STATUS: u32 = 0x0008;
pub(super) const STATUS_LINK: u32 = 1 << 1;
pub(super) const STATUS_SPEED: u32 = 6;

/// EtherType of tagged frames.
pub(super) const VET: u32 = 0x0038;
pub(super) const VET_TAGGED: u32 = 0x8100;

pub(super) const ICR: u32 = 0x00c0;
pub(super) const IMC: u32 = 0x00d8;

pub(super) const RCTL: u32 = 0x0100;
pub(super) const RCTL_ON: u32 = 1 << 1;
pub(super) const RCTL_UNICAST: u32 = 1 << 3;
pub(super) const RCTL_MULTICAST: u32 = 1 << 4;
pub(super) const RCTL_LONG: u32 = 1 << 5;
pub(super) const RCTL_BROADCAST: u32 = 1 << 15;
pub(super) const RCTL_2048: u32 = 0;
pub(super) const RCTL_1024: u32 = 1 << 16;
pub(super) const RCTL_16384: u32 = 1 << 25 | 1 << 16;
pub(super) const RCTL_8192: u32 = 1 << 25 | 2 << 16;
pub(super) const RCTL_4096: u32 = 1 << 25 | 3 << 16;
/// Tagged frames of some networks only.
pub(super) const RCTL_NETWORKS: u32 = 1 << 18;
pub(super) const RCTL_STRIP_CRC: u32 = 1 << 26;

pub(super) const TCTL: u32 = 0x0400;
pub(super) const TCTL_ON: u32 = 1 << 1;
/// Pad short packets.
pub(super) const TCTL_PSP: u32 = 1 << 3;
/// Collision threshold and distance as recommended, §10.2.6.1.
pub(super) const TCTL_RETRY: u32 = 0x0f << 4 | 0x3f << 12 | 1 << 28;
pub(super) const TIPG: u32 = 0x0410;
/// IPGT 8, IPGR1 8, IPGR2 6, §10.2.6.2.
pub(super) const TIPG_COPPER: u32 = 8 | 8 << 10 | 6 << 20;

pub(super) const RDBAL: u32 = 0x2800;
pub(super) const RDBAH: u32 = 0x2804;
pub(super) const RDLEN: u32 = 0x2808;
pub(super) const RDH: u32 = 0x2810;
pub(super) const RDT: u32 = 0x2818;
pub(super) const RDTR: u32 = 0x2820;
pub(super) const RXDCTL: u32 = 0x2828;

pub(super) const TDBAL: u32 = 0x3800;
pub(super) const TDBAH: u32 = 0x3804;
pub(super) const TDLEN: u32 = 0x3808;
pub(super) const TDH: u32 = 0x3810;
pub(super) const TDT: u32 = 0x3818;
pub(super) const TIDV: u32 = 0x3820;
pub(super) const TXDCTL: u32 = 0x3828;
/// Thresholds count descriptors, not cache lines.
pub(super) const DCTL_DESCRIPTORS: u32 = 1 << 24;
/// Must be one, §10.2.6.10.
pub(super) const TXDCTL_ONE: u32 = 1 << 22;

pub(super) const RXCSUM: u32 = 0x5000;
pub(super) const RXCSUM_IP: u32 = 1 << 8;
pub(super) const RXCSUM_TCP_UDP: u32 = 1 << 9;
pub(super) const RFCTL: u32 = 0x5008;
/// Extended receive descriptors.
pub(super) const RFCTL_EXTENDED: u32 = 1 << 15;
pub(super) const MTA: u32 = 0x5200;
pub(super) const VFTA: u32 = 0x5600;
pub(super) const RAL: u32 = 0x5400;
pub(super) const MRQC: u32 = 0x5818;

/// Statistics, §10.2.7: name, register, and whether it goes on in the next one. Cleared when read.
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
    ("tx_tso_errors", 0x40fc, false),
];
