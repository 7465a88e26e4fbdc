//! vhost-user, the back-end's side: a front-end (QEMU, DPDK's virtio-user) hands over the memory and
//! the rings of a guest through a socket, and this room turns what it says into rings to run.
//!
//! Each module knows only those above it:
//!
//! - [`message`]: what one message says: bytes to [`Request`](message::Request), and
//!   [`Answer`](message::Answer) to bytes

pub mod message;
