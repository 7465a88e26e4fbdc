//! What the applications share, and the switch.

pub mod vswitch;
