//! Registers and structures of vmxnet3. Places are bytes from the beginning of the structure.

// Behind base address 0: doors.
pub(super) const TX_DOOR: u32 = 0x600;
pub(super) const RX_DOORS: [u32; 2] = [0x800, 0xa00];

// Behind base address 1.
pub(super) const VRRS: u32 = 0x00;
pub(super) const UVRS: u32 = 0x08;
pub(super) const DSAL: u32 = 0x10;
pub(super) const DSAH: u32 = 0x18;
pub(super) const CMD: u32 = 0x20;
pub(super) const MACL: u32 = 0x28;
pub(super) const MACH: u32 = 0x30;

// Commands.
pub(super) const ACTIVATE: u32 = 0xcafe_0000;
pub(super) const QUIESCE: u32 = 0xcafe_0001;
pub(super) const RESET: u32 = 0xcafe_0002;
pub(super) const UPDATE_RECEIVE_MODE: u32 = 0xcafe_0003;
pub(super) const UPDATE_GROUPS: u32 = 0xcafe_0004;
pub(super) const UPDATE_NETWORKS: u32 = 0xcafe_0005;
pub(super) const GET_STATS: u32 = 0xf00d_0001;
pub(super) const GET_LINK: u32 = 0xf00d_0002;

// The structure that driver and device share.
pub(super) const MAGIC: usize = 0;
pub(super) const MAGIC_VALUE: u32 = 0xbabe_fee1;
pub(super) const DRIVER_VERSION: usize = 8;
pub(super) const DRIVER_OS: usize = 12;
pub(super) const OS_64_BITS_LINUX: u32 = 2 | 1 << 2;
pub(super) const DRIVER_REVISION: usize = 16;
pub(super) const DRIVER_UPT: usize = 20;
pub(super) const FEATURES: usize = 24;
pub(super) const FEATURE_RX_CHECKSUM: u64 = 1;
pub(super) const DRIVER_DATA: usize = 32;
pub(super) const QUEUES: usize = 40;
pub(super) const DRIVER_DATA_LEN: usize = 48;
pub(super) const QUEUES_LEN: usize = 52;
pub(super) const MTU: usize = 56;
/// Most buffers of a received packet, 16 bits; transmit queues, receive queues, 8 each.
pub(super) const PIECES_AND_QUEUES: usize = 60;
/// Masked by themselves, how many, which one for events: 8 bits each.
pub(super) const INTERRUPTS: usize = 80;
pub(super) const INTERRUPT_CONTROL: usize = 108;
pub(super) const INTERRUPTS_OFF: u32 = 1;
pub(super) const RECEIVE_MODE: usize = 120;
pub(super) const MODE_UNICAST: u32 = 1;
pub(super) const MODE_MULTICAST: u32 = 2;
pub(super) const MODE_BROADCAST: u32 = 4;
pub(super) const MODE_ALL_MULTICAST: u32 = 8;
pub(super) const MODE_PROMISCUOUS: u32 = 16;
/// Bytes of the table of groups, 16 bits, and where it is.
pub(super) const GROUPS_LEN: usize = 124;
pub(super) const GROUPS: usize = 128;
/// Networks whose tagged frames are taken: a bit each, in so many words.
pub(super) const NETWORKS: usize = 136;
pub(super) const NETWORKS_WORDS: usize = 128;
/// Its bytes, as far as it is kept apart from what follows.
pub(super) const SHARED: usize = 1024;

/// Bytes of the description of a queue; the transmit queue's comes first.
pub(super) const QUEUE: usize = 256;
/// The table of groups follows, 6 bytes each.
pub(super) const TABLE: usize = SHARED + 2 * QUEUE;
pub(super) const TABLE_MOST: usize = 64;
pub(super) const BYTES: usize = TABLE + 6 * TABLE_MOST;

// Of a transmit queue.
pub(super) const TX_RING: usize = 16;
pub(super) const TX_DATA: usize = 24;
pub(super) const TX_DONE: usize = 32;
pub(super) const TX_SIZE: usize = 56;
pub(super) const TX_DATA_SIZE: usize = 60;
pub(super) const TX_DONE_SIZE: usize = 64;
// Of a receive queue.
pub(super) const RX_RINGS: usize = 16;
pub(super) const RX_DONE: usize = 32;
pub(super) const RX_SIZES: usize = 56;
pub(super) const RX_DONE_SIZE: usize = 64;

/// Counters: name, and place from the description of the transmit queue on.
pub(super) const COUNTERS: &[(&str, usize)] = &[
    ("tx_tso_packets", 88),
    ("tx_tso_bytes", 96),
    ("tx_unicast_packets", 104),
    ("tx_unicast_bytes", 112),
    ("tx_multicast_packets", 120),
    ("tx_multicast_bytes", 128),
    ("tx_broadcast_packets", 136),
    ("tx_broadcast_bytes", 144),
    ("tx_errors", 152),
    ("tx_discarded", 160),
    ("rx_lro_packets", QUEUE + 88),
    ("rx_lro_bytes", QUEUE + 96),
    ("rx_unicast_packets", QUEUE + 104),
    ("rx_unicast_bytes", QUEUE + 112),
    ("rx_multicast_packets", QUEUE + 120),
    ("rx_multicast_bytes", QUEUE + 128),
    ("rx_broadcast_packets", QUEUE + 136),
    ("rx_broadcast_bytes", QUEUE + 144),
    ("rx_no_buffer", QUEUE + 152),
    ("rx_errors", QUEUE + 160),
];
