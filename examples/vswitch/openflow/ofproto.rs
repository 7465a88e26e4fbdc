//! What OpenFlow asks of a bridge, in the words of [`crate::vswitch::flow`], and what a bridge tells its controllers.

use std::time::Duration;

use super::error::OfError;
use super::oxm::Cookie;
use crate::vswitch::flow::action::{Action, Bucket, Flow, Group, Meter, Reason};
use crate::vswitch::flow::matching::Match;

/// `OFPFC_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Adds a flow, or replaces the one with its match and priority.
    Add,
    /// Changes the actions of all that its match covers.
    Modify,
    /// Changes the actions of the one with its match and priority.
    ModifyStrict,
    /// Removes all that its match covers.
    Delete,
    /// Removes the one with its match and priority.
    DeleteStrict,
}

/// A change of flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowMod {
    /// What is to be done.
    pub command: Command,
    /// Which, and with what.
    pub flow: Flow,
    /// In which table; `None`: all, of those that are there, or the first for a new one.
    pub table: Option<u8>,
    /// Only flows with these cookies.
    pub cookie: Cookie,
    /// A changed flow gets the cookie of `flow`.
    pub new_cookie: bool,
    /// A change that finds nothing adds.
    pub add_if_none: bool,
    /// Only flows that output here.
    pub out_port: Option<u32>,
    /// Only flows that use this group.
    pub out_group: Option<u32>,
}

/// Flows that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    /// Of one table, or of all.
    pub table: Option<u8>,
    /// Those that it covers.
    pub matching: Match,
    /// With these cookies.
    pub cookie: Cookie,
    /// That output here.
    pub out_port: Option<u32>,
    /// That use this group.
    pub out_group: Option<u32>,
}

/// A flow, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowStats {
    /// The flow.
    pub flow: Flow,
    /// Since it was added.
    pub duration: Duration,
    /// Since its last packet.
    pub idle: Duration,
    /// Since it was changed.
    pub unchanged: Duration,
    /// Packets it took.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A port as controllers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDesc {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
    /// `OFPPC_*`.
    pub config: u32,
    /// `OFPPS_*`.
    pub state: u32,
    /// Its speed; 0: unknown.
    pub speed_kbps: u32,
}

/// `OFPPC_PORT_DOWN`.
pub const PORT_DOWN: u32 = 1;
/// `OFPPS_LINK_DOWN`.
pub const LINK_DOWN: u32 = 1;

/// What a port counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PortStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub duration: Duration,
}

/// What a table counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Flows it has.
    pub active: u32,
    /// Packets that were looked up in it.
    pub lookups: u64,
    /// Those that found a flow.
    pub matched: u64,
}

/// What a group counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Flows and groups that name it.
    pub references: u32,
    /// Packets it took.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since it was added.
    pub duration: Duration,
    /// Packets and bytes of each bucket.
    pub buckets: Vec<(u64, u64)>,
}

/// What a meter counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeterStats {
    /// Flows that name it.
    pub flows: u32,
    /// Packets it took.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since it was added.
    pub duration: Duration,
    /// Packets and bytes that each band took.
    pub bands: Vec<(u64, u64)>,
}

/// A change of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMod {
    /// A new one.
    Add(Group),
    /// In place of the one with its number.
    Modify(Group),
    /// Either.
    AddOrModify(Group),
    /// One, or all.
    Delete(Option<u32>),
    /// More buckets, behind the one with this number, or at an end (`OFPG_BUCKET_*`).
    Insert {
        /// The group.
        id: u32,
        /// Where.
        at: u32,
        /// What.
        buckets: Vec<Bucket>,
    },
    /// One bucket, or those at an end, or all.
    Remove {
        /// The group.
        id: u32,
        /// Which.
        at: u32,
    },
}

/// Places among the buckets of a group.
#[allow(missing_docs)]
pub mod bucket {
    pub const FIRST: u32 = 0xffff_fffd;
    pub const LAST: u32 = 0xffff_fffe;
    pub const ALL: u32 = 0xffff_ffff;
}

/// A change of meters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeterMod {
    /// A new one.
    Add(Meter),
    /// In place of the one with its number.
    Modify(Meter),
    /// One, or all.
    Delete(Option<u32>),
}

/// A packet that a controller sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketOut {
    /// Where it came from, and what else is known of it.
    pub metadata: Match,
    /// What is done with it.
    pub actions: Vec<Action>,
    /// The frame.
    pub frame: Vec<u8>,
}

/// A change that may be part of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Change {
    Flow(FlowMod),
    Group(GroupMod),
    PacketOut(PacketOut),
    Port { number: u32, mac: [u8; 6], config: u32, mask: u32 },
}

/// A packet for the controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketIn {
    /// The frame, or its beginning.
    pub frame: Vec<u8>,
    /// Bytes of all of it.
    pub total: usize,
    /// Why.
    pub reason: Reason,
    /// The table it was in.
    pub table: u8,
    /// The cookie of the flow; `u64::MAX`: there was none.
    pub cookie: u64,
    /// Where it came from, and what else is known of it.
    pub metadata: Match,
    /// The controller that is meant.
    pub controller: u16,
    /// What the action wants given back.
    pub userdata: Vec<u8>,
    /// Bytes of it at most that the action allows; `u16::MAX`: all.
    pub max_len: u16,
}

/// `OFPRR_*`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    IdleTimeout = 0,
    HardTimeout = 1,
    Delete = 2,
    GroupDelete = 3,
    MeterDelete = 4,
    Eviction = 5,
}

/// What happened to a port.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChange {
    Added = 0,
    Removed = 1,
    Modified = 2,
}

/// What happened to a flow.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    Added,
    Deleted(Removal),
    Modified,
}

/// What controllers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    PacketIn(PacketIn),
    Flow(FlowChange, FlowStats),
    Port(PortChange, PortDesc),
}

/// A bridge, as OpenFlow sees it. Errors are those that the asker is told.
#[allow(missing_docs)]
pub trait Ofproto {
    fn datapath_id(&self) -> u64;
    fn name(&self) -> &str;
    /// In the order of their numbers.
    fn ports(&self) -> Vec<PortDesc>;
    fn port_stats(&self, number: u32) -> Option<PortStats>;
    /// Of all tables, by number.
    fn table_stats(&self) -> Vec<TableStats>;
    /// In the order of table, then age.
    fn flows(&self, select: &Select) -> Vec<FlowStats>;
    fn groups(&self) -> Vec<(Group, GroupStats)>;
    fn meters(&self) -> Vec<(Meter, MeterStats)>;
    fn meter_mod(&mut self, change: &MeterMod) -> Result<(), OfError>;
    /// All of these, or none: the error says which one failed.
    fn change(&mut self, changes: &[Change]) -> Result<(), (usize, OfError)>;
    /// Removes tracked connections, of one zone or of all.
    fn flush_connections(&mut self, zone: Option<u16>);
}
