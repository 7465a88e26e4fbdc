//! The database that `ovs-vsctl` writes (RFC 7047, schema `Open_vSwitch`), followed as `ovs-vswitchd` follows it.
//!
//! - `replica`: the rows we know of
//! - `config`: what they want, as a tree
//! - `client`: the connection
//! - `cores`: which cores serve ports
//! - `reconcile`: makes it so, and writes back what came of it

mod client;
mod config;
mod cores;
mod reconcile;
mod replica;

pub(crate) use reconcile::Follower;
