//! Wire structures and constants of virtio 1.3, with their section numbers. No logic.

pub mod net;
pub mod vhost_user;
pub mod virtio;
