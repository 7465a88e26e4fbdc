//! Rings, device side and driver side.
