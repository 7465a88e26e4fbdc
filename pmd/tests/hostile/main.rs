//! Front-ends and guests that do what they must not, against the `vhost` port, through its socket.
//!
//! The oracle is the same for every case: the process lives; a well-behaved port on the same core and the
//! same control thread loses no frame and waits for none too long; no descriptor and no mapping is left
//! behind; a ring is retired once, and its error eventfd signalled; then a well-behaved front-end on the
//! same socket passes traffic.
//!
//! - `front`: any bytes, with any descriptors, through the socket
//! - `guest`: memory and rings behind it, well-behaved until it is told otherwise
//! - `handover`: processes that are no predecessor and no successor, and states of no device
//! - `house`: the two ports, their core, and the oracle
//! - `messages`: M, the socket
//! - `memory`: files that shrink
//! - `rings`: T, the rings
//! - `iommu`: M12, addresses of the guest's IOMMU that change while they are used
//! - `log`: L, what is written while a guest moves
//! - `device`: Z, a device that reads frames where they lie, and sits on them
//! - `race`: T9, rings that change while they are read
//! - `fair`: what a neighbour keeps of its rate, a run by hand
//! - `soak`: any of these, one after the other, for as long as one likes

mod device;
mod fair;
mod front;
mod guest;
mod handover;
mod house;
mod iommu;
mod log;
mod memory;
mod messages;
mod race;
mod rings;
mod soak;
