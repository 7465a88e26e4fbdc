//! What the applications share, and the switch.

pub mod devices;
pub mod vswitch;
