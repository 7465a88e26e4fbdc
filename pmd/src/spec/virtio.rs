//! Virtqueues: virtio 1.3 §2.7 (split), §2.8 (packed), §6 (feature bits).

/// §2.7.5: the chain goes on at `next` (split) or in the next descriptor (packed).
pub const DESC_F_NEXT: u16 = 1;
/// §2.7.5: the buffer is for the device to write.
pub const DESC_F_WRITE: u16 = 2;
/// §2.7.5.3, §2.8.7: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// §2.8.1: set by the driver to its wrap counter.
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// §2.8.1: set by the device to its wrap counter.
pub const DESC_F_USED: u16 = 1 << 15;

/// §2.7.6: in `avail.flags`: the driver needs no interrupt.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// §2.7.8: in `used.flags`: the device needs no kick.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// §2.8.14: event suppression flags of a packed ring: always notify.
pub const EVENT_ENABLE: u16 = 0;
/// §2.8.14: never notify.
pub const EVENT_DISABLE: u16 = 1;
/// §2.8.14: notify at the descriptor named by `off_wrap` (needs [`F_EVENT_IDX`]).
pub const EVENT_DESC: u16 = 2;

/// §2.7.4: the largest ring.
pub const MAX_RING: u16 = 32768;
/// Bytes of a descriptor, of both layouts.
pub const DESC_BYTES: u32 = 16;

/// §6, bit 28: indirect descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// §6, bit 29: `used_event` and `avail_event`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// §6, bit 32: not legacy.
pub const F_VERSION_1: u64 = 1 << 32;
/// §6, bit 33: addresses go through the platform's IOMMU.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// §6, bit 34: packed ring layout.
pub const F_RING_PACKED: u64 = 1 << 34;
/// §6, bit 35: buffers are used in the order in which they were made available.
pub const F_IN_ORDER: u64 = 1 << 35;
/// §6, bit 40: a ring can be reset by itself.
pub const F_RING_RESET: u64 = 1 << 40;
/// Bit 27, legacy: any framing of the header and the data.
pub const F_ANY_LAYOUT: u64 = 1 << 27;
/// Bit 24, legacy: notify when the ring runs empty even if notification is off.
pub const F_NOTIFY_ON_EMPTY: u64 = 1 << 24;
