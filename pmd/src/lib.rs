//! A virtio data plane in user space, in the order a packet meets it.
//!
//! A port that receives a packet lends its buffers ([`hugepages::Buf`]); whoever finishes a buffer
//! gets its receipt ([`hugepages::Loan`]); receipts that come home let the lender recycle. Five verbs
//! between devices, see [`port::Queue`], and no others.

pub mod spec;
mod sys;
pub mod confine;
pub mod batch;
pub mod completion;
pub mod offload;
pub mod vring;
pub mod vhost;
pub mod filter;
mod nic;
pub mod port;
pub mod worker;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;

pub use batch::Batch;
pub use port::{Port, PortError, Queue};
