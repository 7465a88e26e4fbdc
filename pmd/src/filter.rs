//! Which frames are taken from a wire.

/// Which frames a port takes, besides broadcasts and those for its own address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Every frame, whatever its destination.
    pub promiscuous: bool,
    /// Every frame for a group of stations.
    pub all_multicast: bool,
    /// Further addresses of its own.
    pub unicast: Vec<[u8; 6]>,
    /// Groups that it belongs to.
    pub multicast: Vec<[u8; 6]>,
    /// Tagged frames of these networks only; `None`: of all.
    pub vlans: Option<Vec<u16>>,
}
