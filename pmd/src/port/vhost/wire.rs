//! The virtio-net header (virtio 1.3 §5.1.6): where it is, what of it to believe, who takes what.

use hugepages::Offload;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::spec::{net, virtio};

/// virtio 1.3 §5.1.6: the header in front of a frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) offload: Offload,
    pub(super) num_buffers: u16,
}

impl Header {
    /// The header as two words.
    #[inline(always)]
    pub(super) fn words(self) -> (u64, u32) {
        let (low, high) = self.offload.words();
        (low, u32::from(high) | u32::from(self.num_buffers) << 16)
    }
}

/// virtio 1.3 §5.1.6: what follows the header with HASH_REPORT; all zero: no hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Mark {
    pub(super) value: u32,
    pub(super) report: u16,
    pub(super) zero: u16,
}

impl Mark {
    /// The hash, if there is one.
    pub(super) fn hash(self) -> Option<u32> {
        (self.report != 0).then(|| u32::from_le(self.value))
    }
}

/// How frames are wrapped on a ring, by its negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    /// Bytes of the header: 12; 20 with HASH_REPORT; 10 for a legacy driver without mergeable buffers.
    pub(super) hdr: u32,
    /// A packet may take several chains.
    pub(super) mergeable: bool,
    features: u64,
}

impl Wire {
    /// By the features of the connection.
    pub(crate) fn of(features: u64) -> Wire {
        let mergeable = features & net::F_MRG_RXBUF != 0;
        let modern = features & virtio::F_VERSION_1 != 0;
        let hashed = features & net::F_HASH_REPORT != 0;
        let hdr = match (hashed, mergeable || modern) {
            (true, _) => net::HDR_LEN_HASH,
            (false, true) => net::HDR_LEN,
            (false, false) => net::HDR_LEN_LEGACY,
        };
        Wire { hdr, mergeable, features }
    }

    fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// What of a guest's header is to be believed: nothing that points outside the frame or was not
    /// negotiated, and no segmentation without a checksum to complete (§5.1.6.2).
    pub(super) fn believe(self, offload: Offload, frame: u32) -> Offload {
        let end = u32::from(offload.csum_start) + u32::from(offload.csum_offset) + 2;
        let wanted = self.has(net::F_CSUM) && offload.flags & net::HDR_F_NEEDS_CSUM != 0;
        if !wanted || end > frame {
            return Offload::default();
        }
        let negotiated = match offload.gso_type & !net::GSO_ECN {
            net::GSO_TCPV4 => self.has(net::F_HOST_TSO4),
            net::GSO_TCPV6 => self.has(net::F_HOST_TSO6),
            net::GSO_UDP => self.has(net::F_HOST_UFO),
            net::GSO_UDP_L4 => self.has(net::F_HOST_USO),
            _ => false,
        };
        let flags = net::HDR_F_NEEDS_CSUM;
        if negotiated && offload.gso_size > 0 {
            let hdr_len = (u32::from(offload.hdr_len)).min(frame) as u16;
            Offload { flags, hdr_len, ..offload }
        } else {
            Offload { flags, gso_type: 0, gso_size: 0, hdr_len: 0, ..offload }
        }
    }

    /// Whether the guest takes the packet as it is.
    #[inline(always)]
    pub(super) fn takes(self, offload: &Offload) -> bool {
        offload.is_none() || (self.segments(offload) && self.checksums(offload))
    }

    /// Whether the guest takes a packet of this size or segments it itself.
    pub(super) fn segments(self, offload: &Offload) -> bool {
        match offload.gso_type & !net::GSO_ECN {
            net::GSO_NONE => true,
            net::GSO_TCPV4 => self.has(net::F_GUEST_TSO4),
            net::GSO_TCPV6 => self.has(net::F_GUEST_TSO6),
            net::GSO_UDP => self.has(net::F_GUEST_UFO),
            net::GSO_UDP_L4 => self.has(net::F_GUEST_USO4) && self.has(net::F_GUEST_USO6),
            _ => false,
        }
    }

    /// Whether the guest completes the checksum itself.
    pub(super) fn checksums(self, offload: &Offload) -> bool {
        offload.flags == 0 || self.has(net::F_GUEST_CSUM)
    }
}
