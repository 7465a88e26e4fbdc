//! From a packet to what is done with it: OpenFlow tables, groups, meters, NORMAL.
//!
//! - [`rule`], [`table`]: flows, and the look-up that says which bits it depended on
//! - [`fdb`], [`meter`]: learned addresses, token buckets
//! - [`op`]: what is done to packets
//! - [`xlate`]: a packet through the tables: operations, and the widest mask they hold for

pub mod rule;
pub mod table;
pub mod fdb;
pub mod meter;
pub mod op;
pub mod xlate;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use super::flow::Key;
use super::flow::action::{Group, TABLES};
use super::tunnel::Tunnel;
use fdb::Fdb;
use meter::Bucket;
use table::Table;

/// Ports of the datapath have numbers below this: they are parts of the names of queues.
pub const MAX_DP: u32 = 1 << 10;

/// How a port takes part in VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vlan {
    /// Frames of one VLAN, without tag.
    Access(u16),
    /// Frames of these VLANs with a tag (none named: of all), without tag of VLAN 0.
    Trunk(Vec<u16>),
    /// The same, but those of this VLAN have no tag.
    NativeUntagged(u16, Vec<u16>),
    /// The same, but those without tag are of this VLAN.
    NativeTagged(u16, Vec<u16>),
}

impl Vlan {
    /// Whether frames of a VLAN pass.
    pub fn carries(&self, vlan: u16) -> bool {
        match self {
            Vlan::Access(tag) => *tag == vlan,
            Vlan::Trunk(vlans) => vlans.is_empty() || vlans.contains(&vlan),
            Vlan::NativeUntagged(tag, vlans) | Vlan::NativeTagged(tag, vlans) => {
                *tag == vlan || vlans.is_empty() || vlans.contains(&vlan)
            }
        }
    }
}

/// A port of a bridge.
#[derive(Debug)]
pub struct Port {
    /// Its number in OpenFlow.
    pub number: u32,
    /// Its number in the datapath, shared by all bridges.
    pub dp: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
    /// VLANs.
    pub vlan: Vlan,
    /// FLOOD passes it by.
    pub no_flood: bool,
    /// Nothing is forwarded to it.
    pub no_forward: bool,
    /// Whether the other side is there.
    pub up: AtomicBool,
    /// The bridge and the port at the other end of a patch.
    pub peer: Option<(usize, u32)>,
    /// The tunnel that it is the end of.
    pub tunnel: Option<Tunnel>,
    /// NORMAL sends nothing here but copies: a mirror's port.
    pub mirror_output: bool,
}

/// A group at work.
#[derive(Debug)]
pub struct Grouped {
    /// As it was asked for.
    pub group: Group,
    /// When it was made.
    pub created_ms: u64,
    /// Packets and bytes; then those of each bucket.
    pub passed: Vec<Arc<rule::Passed>>,
}

/// Copies of frames for somebody who listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Its name.
    pub name: String,
    /// Frames from these ports.
    pub from: Vec<u32>,
    /// Frames to these ports.
    pub to: Vec<u32>,
    /// All frames.
    pub all: bool,
    /// Only of these VLANs; none: of all.
    pub vlans: Vec<u16>,
    /// The port that gets the copies.
    pub output: Option<u32>,
}

/// A packet's state while it is away to be looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frozen {
    /// Bridge and table it goes on in.
    pub bridge: usize,
    /// Table.
    pub table: u8,
    /// Metadata, registers.
    pub state: Vec<u64>,
    /// Input port as the bridge numbers it.
    pub in_port: u32,
}

/// States of packets that are away, by number.
#[derive(Debug, Default)]
pub struct Freezer {
    states: Vec<Frozen>,
    numbers: HashMap<Frozen, u32>,
}

/// Most states of packets that are away.
const MAX_FROZEN: usize = 1 << 16;

impl Freezer {
    /// The number of a state; the same state has the same one. `None`: there are too many.
    pub fn number(&mut self, state: Frozen) -> Option<u32> {
        if let Some(number) = self.numbers.get(&state) {
            return Some(*number);
        }
        if self.states.len() >= MAX_FROZEN {
            return None;
        }
        self.states.push(state.clone());
        let number = self.states.len() as u32;
        self.numbers.insert(state, number);
        Some(number)
    }

    /// The state of a number.
    pub fn get(&self, number: u32) -> Option<&Frozen> {
        self.states.get((number as usize).checked_sub(1)?)
    }
}

/// A bridge.
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its number in OpenFlow.
    pub datapath_id: u64,
    /// Tables.
    pub tables: Vec<Table>,
    /// Groups.
    pub groups: BTreeMap<u32, Grouped>,
    /// Meters.
    pub meters: BTreeMap<u32, Arc<Bucket>>,
    /// Ports, by number in OpenFlow.
    pub ports: BTreeMap<u32, Port>,
    /// Learned addresses.
    pub fdb: Mutex<Fdb>,
    /// Mirrors.
    pub mirrors: Vec<Mirror>,
    /// Seconds after which an address is forgotten.
    pub ageing_s: u64,
    /// Packets that no flow matched go to the controller, as OpenFlow before 1.3 has it.
    pub miss_to_controller: AtomicBool,
    /// Packets that could not be translated: too deep.
    pub too_deep: AtomicU64,
}

impl Bridge {
    /// An empty one.
    pub fn new(name: &str, datapath_id: u64) -> Bridge {
        Bridge {
            name: name.into(),
            datapath_id,
            tables: (0..TABLES).map(|_| Table::default()).collect(),
            groups: BTreeMap::new(),
            meters: BTreeMap::new(),
            ports: BTreeMap::new(),
            fdb: Mutex::default(),
            mirrors: Vec::new(),
            ageing_s: fdb::AGEING_S,
            miss_to_controller: AtomicBool::new(false),
            too_deep: AtomicU64::new(0),
        }
    }

    /// Its port of this name.
    pub fn port_named(&self, name: &str) -> Option<&Port> {
        self.ports.values().find(|p| p.name == name)
    }
}

/// All bridges, and what they share.
#[derive(Default)]
pub struct World {
    /// The bridges; a number that is free is `None`.
    pub bridges: Vec<Option<Bridge>>,
    /// Packets that are away.
    pub frozen: Mutex<Freezer>,
}

impl World {
    /// The bridge of a port of the datapath, and the port.
    pub fn port_of(&self, dp: u32) -> Option<(usize, &Port)> {
        self.bridges
            .iter()
            .enumerate()
            .find_map(|(i, bridge)| Some((i, bridge.as_ref()?.ports.values().find(|p| p.dp == dp)?)))
    }

    /// Where a packet of the datapath starts: bridge, table, and the key as the bridge sees it.
    pub fn entry(&self, key: &Key) -> Option<(usize, u8, Key)> {
        let (bridge, port) = self.port_of(key.in_port())?;
        let mut inner = *key;
        inner.set_in_port(port.number);
        if let Some(tunnel) = &port.tunnel {
            tunnel.lay(&mut inner);
        }
        let recirc = key.words[super::flow::key::word::IN] as u32;
        if recirc == 0 {
            return Some((bridge, 0, inner));
        }
        let frozen = self.frozen.lock().expect("no holder panics");
        let state = frozen.get(recirc)?;
        let first = super::flow::key::PACKET_WORDS;
        inner.words[first..].copy_from_slice(&state.state);
        inner.set_in_port(state.in_port);
        Some((state.bridge, state.table, inner))
    }
}
