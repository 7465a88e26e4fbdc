//! Wire structures and constants of virtio 1.3, with their section numbers, and of memif. No logic.

pub mod memif;
pub mod net;
pub mod vhost_user;
pub mod virtio;
