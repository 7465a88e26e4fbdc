//! Why a message was refused, and what that does to the conversation.

use super::host::HostError;
use super::message::{Malformed, name};
use super::regions::RegionError;
use super::ring::RingError;
use crate::spec::vhost_user::MIN_MTU;

/// Why a message was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be understood.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is not served.
    #[error("message {} is not served", name(*.0))]
    Unknown(u32),
    /// Features nobody offered.
    #[error("features {unknown:#x} were set and not offered")]
    Features {
        /// The offending bits.
        unknown: u64,
    },
    /// Features that contradict each other.
    #[error("packed rings were set without VERSION_1")]
    PackedLegacy,
    /// Features of a device at work.
    #[error("features cannot change from {from:#x} to {to:#x} while rings run")]
    FeaturesChange {
        /// Those at work.
        from: u64,
        /// Those set.
        to: u64,
    },
    /// What was said about a ring is wrong.
    #[error("ring {index}: {source}")]
    Ring {
        /// As it came.
        index: u32,
        /// What is wrong.
        source: RingError,
    },
    /// The ring is described, but does not run.
    #[error("ring {index} does not start: {source}")]
    Start {
        /// Which.
        index: u32,
        /// Why.
        source: HostError,
    },
    /// The ring was to stop.
    #[error("ring {index} does not stop: {source}")]
    Stop {
        /// Which.
        index: u32,
        /// Why.
        source: HostError,
    },
    /// The ring's eventfds do not serve.
    #[error("ring {index}: {source}")]
    Signals {
        /// Which.
        index: u32,
        /// Why.
        source: HostError,
    },
    /// What was said about memory is wrong.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The memory cannot be mapped.
    #[error(transparent)]
    Memory(HostError),
    /// Writes to memory cannot be logged, or not any other way.
    #[error(transparent)]
    Log(HostError),
    /// What is in flight cannot be recorded.
    #[error(transparent)]
    Record(HostError),
    /// Records for rings that the device does not have, or of a size that none has.
    #[error("in-flight records of {rings} rings of {num} entries")]
    Records {
        /// Rings.
        rings: u16,
        /// Entries of each.
        num: u16,
    },
    /// Records of rings at work.
    #[error("the in-flight records cannot change while rings run")]
    RecordsRunning,
    /// Rings of a byte order that no driver here uses.
    #[error("ring {index}: byte order {order}; 0 (little-endian) is possible")]
    Endian {
        /// Which.
        index: u32,
        /// As it came.
        order: u32,
    },
    /// An address of the guest's IOMMU is not, or cannot be, where it is said to be.
    #[error(transparent)]
    Iotlb(HostError),
    /// A message about the guest's IOMMU that makes no sense here.
    #[error("IOTLB message of type {kind}{}", if *.negotiated { "" } else { " without VIRTIO_F_ACCESS_PLATFORM" })]
    IotlbKind {
        /// As it came.
        kind: u8,
        /// Whether the device uses addresses of the guest's IOMMU.
        negotiated: bool,
    },
    /// Post-copy does not go like that.
    #[error("{}: {}", name(*.0), .1)]
    Postcopy(u32, &'static str),
    /// Memory cannot lack pages.
    #[error(transparent)]
    Pages(HostError),
    /// A message of a protocol feature that was not negotiated.
    #[error("{} without its protocol feature", name(*.0))]
    NotNegotiated(u32),
    /// The state of a device cannot be had, or be gone on with.
    #[error(transparent)]
    State(HostError),
    /// The state of a device at work, or a direction or phase that is none.
    #[error("device state: {0}")]
    Transfer(&'static str),
    /// Messages in place of descriptors, without what they need.
    #[error("in-band notifications were set without BACKEND_REQ and REPLY_ACK")]
    Inband,
    /// Not among what a conversation leaves to the process that goes on with it.
    #[error("{0} in what another process has left")]
    Legacy(String),
    /// Bits beyond the device status of virtio.
    #[error("device status {0:#x} has more than eight bits")]
    Status(u64),
    /// An MTU out of range.
    #[error("MTU {mtu}; {MIN_MTU} to {max} are possible")]
    Mtu {
        /// As it came.
        mtu: u64,
        /// The largest.
        max: u16,
    },
    /// Outside the configuration space.
    #[error("configuration bytes {offset} to {offset} + {size}; there are {len}")]
    ConfigRange {
        /// First byte asked for.
        offset: u32,
        /// How many.
        size: u32,
        /// How many there are.
        len: usize,
    },
    /// Virtio 1.3 §5.1.4: a driver may not write the configuration.
    #[error("the configuration is read-only (flags {0:#x} are not those of a migration)")]
    ConfigReadOnly(u32),
}

impl Refusal {
    /// Whether the conversation can go on although the front-end does not hear of it.
    pub(super) fn spares_the_connection(&self) -> bool {
        match self {
            Refusal::Unknown(_) | Refusal::Start { .. } => true,
            Refusal::Ring { source, .. } => source.is_the_guests(),
            _ => false,
        }
    }
}

/// The end of a conversation.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Refused, and the front-end did not ask to be told.
    #[error("{0}; the front-end asked for no acknowledgement, so the connection ends")]
    Unheard(Refusal),
    /// An answer is due, and there is none that says "refused".
    #[error("{0}; the answer due cannot be given, so the connection ends")]
    Unanswerable(Refusal),
}
