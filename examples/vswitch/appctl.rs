//! What `ovs-appctl` asks of a running switch.
//!
//! - `server`: the socket
//! - `commands`: what can be asked

mod commands;
mod server;

pub(crate) use commands::run;
pub(crate) use server::Server;
