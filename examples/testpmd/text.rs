//! What is printed, in the form of DPDK's testpmd: scripts parse it.

pub(crate) mod config;
pub(crate) mod forward;
pub(crate) mod json;
pub(crate) mod limits;
pub(crate) mod packets;
pub(crate) mod port;

/// `02:00:00:00:00:01`, in DPDK's capital letters.
pub(crate) fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02X}")).join(":")
}
