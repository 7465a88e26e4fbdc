//! vhost-user: <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>, cited as "spec" with the
//! title of the section. All numbers are in the machine's byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Spec "Front-end message types": the ids of requests.
#[allow(missing_docs)]
pub mod id {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const CREATE_CRYPTO_SESSION: u32 = 26;
    pub const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const POSTCOPY_LISTEN: u32 = 29;
    pub const POSTCOPY_END: u32 = 30;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GPU_SET_SOCKET: u32 = 33;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
    pub const GET_SHMEM_CONFIG: u32 = 44;
}

/// Spec "Back-end message types": the ids of what a back-end asks of its front-end.
#[allow(missing_docs)]
pub mod backend_id {
    pub const IOTLB_MSG: u32 = 1;
    pub const CONFIG_CHANGE_MSG: u32 = 2;
    pub const VRING_HOST_NOTIFIER_MSG: u32 = 3;
    pub const VRING_CALL: u32 = 4;
    pub const VRING_ERR: u32 = 5;
}

/// Spec "Header": mask of the version bits in `flags`.
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// Spec "Header": the only version.
pub const FLAG_VERSION: u32 = 0x1;
/// Spec "Header": the message is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// Spec "Header": the sender wants an acknowledgement, see [`PROTOCOL_F_REPLY_ACK`].
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Spec "Communication": feature bit that says that protocol features can be negotiated; not a
/// feature of virtio, where the bit is reserved.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Spec "Multiple queue support": [`id::GET_QUEUE_NUM`].
pub const PROTOCOL_F_MQ: u64 = 1 << 0;
/// Spec "Migration": the log comes with [`id::SET_LOG_BASE`] as a descriptor.
pub const PROTOCOL_F_LOG_SHMFD: u64 = 1 << 1;
/// Spec "Front-end message types": [`id::SEND_RARP`].
pub const PROTOCOL_F_RARP: u64 = 1 << 2;
/// Spec "VHOST_USER_PROTOCOL_F_REPLY_ACK": [`FLAG_NEED_REPLY`] asks for a 64-bit answer, 0 for success.
pub const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// Spec "Front-end message types": [`id::NET_SET_MTU`].
pub const PROTOCOL_F_NET_MTU: u64 = 1 << 4;
/// Spec "Back-end communication": [`id::SET_BACKEND_REQ_FD`].
pub const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
/// Spec "Front-end message types": [`id::POSTCOPY_ADVISE`], [`id::POSTCOPY_LISTEN`], [`id::POSTCOPY_END`].
pub const PROTOCOL_F_PAGEFAULT: u64 = 1 << 8;
/// Spec "Front-end message types": [`id::GET_CONFIG`], [`id::SET_CONFIG`].
pub const PROTOCOL_F_CONFIG: u64 = 1 << 9;
/// Spec "Inflight I/O tracking": [`id::GET_INFLIGHT_FD`], [`id::SET_INFLIGHT_FD`].
pub const PROTOCOL_F_INFLIGHT_SHMFD: u64 = 1 << 12;
/// Spec "Front-end message types": [`id::RESET_DEVICE`].
pub const PROTOCOL_F_RESET_DEVICE: u64 = 1 << 13;
/// Spec "In-band notifications": kicks, calls and errors as messages, for rings without descriptors.
pub const PROTOCOL_F_INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// Spec "Front-end message types": [`id::GET_MAX_MEM_SLOTS`], [`id::ADD_MEM_REG`], [`id::REM_MEM_REG`].
pub const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// Spec "Front-end message types": [`id::SET_STATUS`], [`id::GET_STATUS`].
pub const PROTOCOL_F_STATUS: u64 = 1 << 16;
/// Spec "Migrating back-end state": [`id::SET_DEVICE_STATE_FD`], [`id::CHECK_DEVICE_STATE`].
pub const PROTOCOL_F_DEVICE_STATE: u64 = 1 << 19;
/// Spec "Front-end message types", GET_VRING_BASE: what is in flight then need not be waited for, if the
/// in-flight record has it.
pub const PROTOCOL_F_GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;

/// Spec "Migration", `VHOST_F_LOG_ALL`, a bit beside the features of virtio: writes to guest memory are
/// logged.
pub const F_LOG_ALL: u64 = 1 << 26;
/// Spec "Migration": bytes of memory for which a bit of the log stands.
pub const LOG_PAGE: u64 = 4096;

/// Spec "Front-end message types", SET_VRING_KICK, CALL and ERR: mask of the ring's index.
pub const VRING_FD_INDEX_MASK: u64 = 0xff;
/// The same: no descriptor comes with the message; the ring is to be polled.
pub const VRING_FD_NONE: u64 = 1 << 8;

/// Spec "Migration", `VHOST_VRING_F_LOG` in [`VringAddr::flags`]: writes to the used ring are logged.
pub const VRING_F_LOG: u32 = 1 << 0;

/// Spec "Virtio device config space", bit of [`ConfigAccess::flags`]: the access is part of a live
/// migration.
pub const CONFIG_F_MIGRATION: u32 = 1 << 0;

/// Descriptors that one message may carry: one for each region of a SET_MEM_TABLE.
pub const MAX_FDS: usize = 8;
/// Regions in a SET_MEM_TABLE (spec "Memory regions description").
pub const MAX_TABLE_REGIONS: usize = 8;
/// Regions a guest may have in all; what the kernel's vhost takes, too.
pub const MAX_MEM_SLOTS: usize = 509;
/// Rings a message can name: eight bits in SET_VRING_KICK. Two to a queue pair.
pub const MAX_VRINGS: usize = 256;
/// Entries of a ring: virtio 1.3 §2.7, §2.8.10.1.
pub const MAX_VRING_NUM: u32 = 32768;
/// The smallest MTU a front-end may set: virtio 1.3 §5.1.4.1.
pub const MIN_MTU: u16 = 68;
/// Bytes of configuration space one message may carry.
pub const MAX_CONFIG: usize = 256;
/// Bytes of the longest payload that is read. No known message has more than 300; a longer one is
/// taken for lost framing.
pub const MAX_PAYLOAD: usize = 4096;

/// Spec "Header".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of [`id`].
    pub request: u32,
    /// Version, reply and need-reply bits.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

/// Spec "A vring state description".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// Ring.
    pub index: u32,
    /// Size, base or enable flag, by message. A base is split: bits 0-15 the next available index;
    /// packed: bits 0-14 and 15 the next available index and its wrap counter, bits 16-30 and 31 the
    /// next used index and its wrap counter (spec "Vring descriptor indices for packed virtqueues").
    pub num: u32,
}

/// Spec "A vring address description". Addresses are of the front-end's own address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// Ring.
    pub index: u32,
    /// [`VRING_F_LOG`].
    pub flags: u32,
    /// Descriptor table, or descriptor ring.
    pub descriptors: u64,
    /// Used ring, or device event suppression area.
    pub used: u64,
    /// Available ring, or driver event suppression area.
    pub available: u64,
    /// Guest address under which writes to the used ring are logged.
    pub log: u64,
}

/// Spec "Log description".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogArea {
    /// Bytes of the log.
    pub size: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
}

/// Spec "Inflight description".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InflightArea {
    /// Bytes of all records together.
    pub size: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Rings.
    pub rings: u16,
    /// Entries of each.
    pub num: u16,
    /// Not in the specification, and in every front-end of today: the end of a C structure.
    pub padding: u32,
}

/// Bytes of an [`InflightArea`] without its padding.
pub const INFLIGHT_AREA: usize = 20;

/// Spec "An IOTLB message".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IotlbMsg {
    /// First I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// What is there, in the front-end's own address space.
    pub user: u64,
    /// Bits of [`iotlb`]: what may be done there.
    pub perm: u8,
    /// One of [`iotlb`].
    pub kind: u8,
    /// The end of a C structure.
    pub padding: [u8; 6],
}

/// Spec "An IOTLB message": its types, and permissions.
#[allow(missing_docs)]
pub mod iotlb {
    pub const MISS: u8 = 1;
    pub const UPDATE: u8 = 2;
    pub const INVALIDATE: u8 = 3;
    pub const ACCESS_FAIL: u8 = 4;
    /// The device may read there.
    pub const READ: u8 = 1;
    /// The device may write there.
    pub const WRITE: u8 = 2;
}

/// Spec "Device state transfer parameters".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StateTransfer {
    /// [`SAVE`] or [`LOAD`].
    pub direction: u32,
    /// 0: the device is stopped.
    pub phase: u32,
}

/// [`StateTransfer::direction`]: from the back-end.
pub const SAVE: u32 = 0;
/// [`StateTransfer::direction`]: to the back-end.
pub const LOAD: u32 = 1;
/// Spec "Front-end message types", SET_DEVICE_STATE_FD: bit of the answer, no descriptor comes with it.
pub const STATE_NO_FD: u64 = 1 << 8;

/// Spec "Memory regions description": what precedes the regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemTable {
    /// Regions that follow, 1 to [`MAX_TABLE_REGIONS`].
    pub regions: u32,
    /// Unused.
    pub padding: u32,
}

/// Spec "Memory regions description": a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemRegion {
    /// Guest physical address of the first byte.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the first byte in the front-end's own address space.
    pub user: u64,
    /// Offset of the first byte in the file.
    pub offset: u64,
}

/// Spec "Single memory region description".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SingleRegion {
    /// Unused.
    pub padding: u64,
    /// The region.
    pub region: MemRegion,
}

/// Spec "Virtio device config space": what precedes the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigAccess {
    /// First byte.
    pub offset: u32,
    /// Bytes, up to [`MAX_CONFIG`].
    pub size: u32,
    /// 0 or [`CONFIG_F_MIGRATION`].
    pub flags: u32,
}
