//! OpenFlow, the switch's side: versions 1.0 with Nicira's extensions, 1.3, 1.4 and 1.5, as `ovs-ofctl` speaks them.
//!
//! - [`ofproto`]: what is asked of a bridge, and what it tells
//! - `wire`, `version`, `error`: numbers, headers and hellos, refusals
//! - `oxm`, `match10`: matches
//! - `actions`: actions and instructions
//! - `flow_mod`, `flow_stats`, `groups`, `ports`, `packets`: what messages hold
//! - `multipart`, `monitor`, `bundle`: answers in parts, flow monitors, bundles
//! - `session`: a connection's conversation, without I/O
//! - [`server`]: the connections of a bridge
//! - `adapter`: a bridge of the switch, as OpenFlow sees it

pub mod ofproto;
mod wire;
mod version;
mod error;
mod oxm;
mod match10;
mod actions;
mod flow_mod;
mod flow_stats;
mod groups;
mod ports;
mod packets;
mod multipart;
mod monitor;
mod bundle;
mod session;
pub mod server;
pub(crate) mod adapter;

pub use error::OfError;
pub use monitor::{outputs_to, uses_group};
pub use oxm::Cookie;
