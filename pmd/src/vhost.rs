//! vhost-user, the back-end's side: a front-end (QEMU, DPDK's virtio-user) hands over the memory and
//! the rings of a guest through a socket, and this room turns what it says into rings to run.
//!
//! Each module knows only those above it:
//!
//! - [`message`]: what one message says: bytes to [`Request`](message::Request), and
//!   [`Answer`](message::Answer) to bytes
//! - [`backend`]: what the device asks of the front-end, on a channel of its own
//! - [`host`]: what a conversation asks of whoever runs the rings: [`Host`]
//! - `lines`: how much a peer may put into the log
//! - `ring`, `regions`: what a front-end may say about a ring, and about memory
//! - `refusal`: why a message was refused
//! - [`session`]: the conversation, a state machine without I/O: [`Session`]
//! - `wire`: messages through a socket, in pieces or not
//! - `endpoint`: where the socket comes from: listening or connecting
//! - `legacy`: what a port leaves to the process that goes on with it
//! - [`server`]: one thread for any number of sockets: [`Server`]
//! - [`handover`]: from one process to the next

pub mod backend;
mod endpoint;
pub mod handover;
pub mod host;
mod legacy;
pub(crate) mod lines;
pub mod message;
mod refusal;
mod regions;
mod ring;
pub mod server;
pub mod session;
mod wire;

pub use backend::Ask;
pub use endpoint::{Access, Socket, SocketError};
pub use host::{Files, Host, HostError, RingSetup, Signals};
pub use legacy::{Legacy, LegacyError, LegacyTrouble};
pub use lines::LINES;
pub use refusal::{Refusal, SessionError};
pub use regions::RegionError;
pub use ring::RingError;
pub use server::{Handle, MESSAGES_A_TURN, PortId, Server, ServerError};
pub use session::{Offer, Session};
pub use wire::WireError;
