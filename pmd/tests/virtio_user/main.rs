//! The `virtio_user` port and its back-ends, over a socket.
//!
//! - `lanes`: frames there and back
//! - `vhost`: our own back-end, in this process
//! - `dpdk`, `peer`: DPDK's, where it is installed

mod dpdk;
mod lanes;
mod peer;
mod vhost;
