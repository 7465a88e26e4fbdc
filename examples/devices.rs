//! Ports from descriptions in the words of DPDK's `--vdev`, for any application.
//!
//! - [`vdev`]: `KIND<N>,key=value,...`, read and checked
//! - [`ports`]: the ports that such texts describe
//! - [`memory`]: what buffers are made of

mod error;
mod faults;
pub mod memory;
pub mod ports;
pub mod vdev;

pub use error::Error;
