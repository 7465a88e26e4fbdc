//! The device's side of rings from outside: against the specification, against another device, and
//! against drivers that break every rule.
//!
//! - `rig`: the ring under test in each of its forms, and a plain driver
//! - `model`: what a ring owes a driver that keeps the rules
//! - `differential`: the same as the `virtio-queue` crate does
//! - `hostile`: drivers that do not keep the rules
//! - `iommu`: what a ring behind an IOMMU asks for, and what it waits for
//! - `log`: the dirty log of a migration, against what was written
//! - `record`: a device that ends, and the next that goes on by the in-flight record
//! - `port`: frames that are wrapped in odd ways, through the vhost port's queue

mod differential;
mod hostile;
mod iommu;
mod log;
mod model;
mod port;
mod record;
mod rig;
