//! A virtual switch that is driven as Open vSwitch is. In reading order:
//!
//! - [`flow`]: fields, keys, matches, actions: the words all others use
//! - [`packet`]: frames read into keys, and rewritten
//! - [`tunnel`]: tunnels of the kernel
//! - [`pipeline`]: tables, groups, meters: from a packet to what is done with it
//! - [`conntrack`]: connections, zones, NAT
//! - [`bridge`]: the control side: bridges, ports, flows, and what cores keep of translations
//! - [`cache`]: what a core keeps of translations
//! - [`datapath`]: the stage of a core
//! - [`placement`]: which core looks after which receive queue
//! - [`cores`]: the cores, and how ports are reached from each
//! - [`runner`]: devices on ports, and the cores that serve them
//! - [`config`]: the file of the standalone mode
//! - `stream`, `jsonrpc`: sockets that are never waited for; JSON-RPC
//! - [`openflow`]: controllers and `ovs-ofctl`
//! - `ovsdb`: the database of `ovs-vsctl`
//! - `appctl`: `ovs-appctl`
//! - [`manage`]: the thread that serves these

pub mod flow;
pub mod packet;
pub mod tunnel;
pub mod pipeline;
pub mod conntrack;
pub mod bridge;
pub mod cache;
pub mod datapath;
pub mod placement;
pub mod cores;
pub mod runner;
pub mod config;
mod stream;
mod jsonrpc;
pub mod openflow;
mod ovsdb;
mod appctl;
pub mod manage;
