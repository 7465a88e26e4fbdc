//! The control side: bridges, ports, flows, groups, meters, and who wants to know of changes.
//!
//! Cores translate misses under a shared lock; who changes something holds it alone. Cores keep what was
//! translated until [`Switch::revalidate`] finds that it would come out otherwise.

mod flows;
mod groups;
mod ports;
mod revalidate;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::conntrack::Conntrack;
use super::flow::action::{Action, Reason};
use super::flow::key::word;
use super::flow::{Flow, Key};
use super::pipeline::op::Op;
use super::pipeline::rule::now_ms;
use super::pipeline::{Bridge, World, xlate};

pub use flows::{ALL_TABLES, Command, FlowError, FlowFilter, FlowMod, FlowStats, MAX_FLOWS, TableStats};
pub use groups::{ALL, GroupCommand, GroupError, GroupStats, MAX_GROUPS, MeterError, MeterStats};
pub use ports::{PortConfig, PortError};
pub use revalidate::{FLOW_LIMIT, Kept, MAX_IDLE_MS, Megaflow, Upcall};

/// Events that a subscriber may be behind; more are lost to it.
const MAX_EVENTS: usize = 4096;
/// Packets that may wait to be injected.
const MAX_INJECTED: usize = 1024;

/// Why a flow is gone (`OFPRR_*`).
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    IdleTimeout = 0,
    HardTimeout = 1,
    Delete = 2,
    GroupDelete = 3,
    MeterDelete = 4,
    Eviction = 5,
}

/// What happens to a port (`OFPPR_*`).
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChange {
    Add = 0,
    Delete = 1,
    Modify = 2,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet for controllers.
    PacketIn(Arc<PacketIn>),
    /// A flow is gone.
    FlowRemoved {
        /// Bridge.
        bridge: String,
        /// The flow, with its counters at the end.
        flow: Arc<FlowStats>,
        /// Why.
        reason: Removed,
    },
    /// A flow came or was changed, for monitors.
    FlowChanged {
        /// Bridge.
        bridge: String,
        /// The flow.
        flow: Arc<Flow>,
        /// It is new.
        added: bool,
    },
    /// A port.
    Port {
        /// Bridge.
        bridge: String,
        /// Its number in OpenFlow.
        number: u32,
        /// Its name.
        name: String,
        /// What.
        change: PortChange,
    },
}

/// A packet for controllers.
#[derive(Clone, Debug)]
pub struct PacketIn {
    /// Bridge.
    pub bridge: String,
    /// The frame, cut to what was asked for.
    pub data: Vec<u8>,
    /// Bytes of the whole frame.
    pub size: usize,
    /// Why.
    pub reason: Reason,
    /// Table.
    pub table: u8,
    /// Cookie of the flow; all ones: none.
    pub cookie: u64,
    /// Which controller; 0: those that do not say.
    pub controller: u16,
    /// What the action gave along.
    pub userdata: Vec<u8>,
    /// Metadata, registers, tunnel, and the input port as the bridge numbers it.
    pub flow: Key,
}

/// A packet to be sent by a core.
pub struct Injected {
    /// The frame.
    pub data: Vec<u8>,
    /// What is done to it.
    pub ops: Vec<Op>,
    /// Its key.
    pub key: Key,
}

/// The switch.
pub struct Switch {
    world: RwLock<World>,
    subscribers: Mutex<Vec<Sender<Event>>>,
    pub(crate) cores: Mutex<Vec<Kept>>,
    /// Connections, of all bridges.
    pub conntrack: Mutex<Conntrack>,
    inject: (Sender<Injected>, Receiver<Injected>),
    /// Grows with everything that a translation depends on.
    changes: AtomicU64,
    /// Something is kept that was made before the last change.
    late: std::sync::atomic::AtomicBool,
    /// Up to which change what cores keep was looked through, and when connections were.
    revalidated: Mutex<(u64, u64)>,
}

impl Default for Switch {
    fn default() -> Switch {
        Switch {
            world: RwLock::default(),
            subscribers: Mutex::default(),
            cores: Mutex::default(),
            conntrack: Mutex::default(),
            inject: bounded(MAX_INJECTED),
            changes: AtomicU64::new(1),
            late: std::sync::atomic::AtomicBool::new(false),
            revalidated: Mutex::default(),
        }
    }
}

impl Switch {
    /// The bridges as they are.
    pub fn read(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bridges, to be changed; translations are out of date afterwards.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, World> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.world.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of what happens from now on. Who is too far behind loses events.
    pub fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = bounded(MAX_EVENTS);
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Tells everybody.
    pub(crate) fn tell(&self, event: Event) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|s| match s.try_send(event.clone()) {
            Ok(()) => true,
            Err(e) => e.is_full(),
        });
    }

    /// Adds a bridge; `false`: there is one of this name.
    pub fn add_bridge(&self, name: &str, datapath_id: u64) -> bool {
        let mut world = self.write();
        if world.find(name).is_some() {
            return false;
        }
        let bridge = Some(Bridge::new(name, datapath_id));
        match world.bridges.iter().position(Option::is_none) {
            Some(free) => world.bridges[free] = bridge,
            None => world.bridges.push(bridge),
        }
        true
    }

    /// Takes a bridge away, with its ports and flows; `false`: there is none of this name.
    pub fn remove_bridge(&self, name: &str) -> bool {
        let mut world = self.write();
        let found = world.find(name);
        if let Some(i) = found {
            world.bridges[i] = None;
        }
        found.is_some()
    }

    /// Names of the bridges.
    pub fn bridges(&self) -> Vec<String> {
        self.read().bridges.iter().flatten().map(|b| b.name.clone()).collect()
    }

    /// Looks at a bridge; `None`: there is none of this name.
    pub fn with<T>(&self, bridge: &str, look: impl FnOnce(&Bridge) -> T) -> Option<T> {
        let world = self.read();
        let i = world.find(bridge)?;
        world.bridges[i].as_ref().map(look)
    }

    /// Changes a bridge; `None`: there is none of this name.
    pub fn change<T>(&self, bridge: &str, change: impl FnOnce(&mut Bridge) -> T) -> Option<T> {
        let mut world = self.write();
        let i = world.find(bridge)?;
        world.bridges[i].as_mut().map(change)
    }

    /// How a packet would go, as `ofproto/trace` tells it. The input port is the bridge's.
    pub fn trace(&self, bridge: &str, key: &Key) -> String {
        let world = self.read();
        let port = world
            .find(bridge)
            .and_then(|i| world.bridges[i].as_ref()?.ports.get(&key.in_port()).map(|p| p.dp));
        let Some(dp) = port else { return "Bad input port\n".into() };
        let mut key = *key;
        key.set_in_port(dp);
        xlate::trace(&world, &key)
    }

    /// Does actions to a frame as if it came from a port of the bridge (or from none). `false`: there is
    /// no such bridge, or too many packets wait.
    pub fn packet_out(&self, bridge: &str, in_port: u32, data: Vec<u8>, actions: &[Action]) -> bool {
        let mut key = Key::default();
        key.set_in_port(in_port);
        super::packet::parse(&data[..data.len().min(super::packet::HEAD)], data.len(), &mut key);
        let world = self.read();
        let Some(i) = world.find(bridge) else { return false };
        let outcome = xlate::translate_actions(&world, i, &key, actions);
        drop(world);
        for rule in &outcome.rules {
            rule.passed.add(1, data.len() as u64, now_ms());
        }
        self.have_effects(&outcome.effects);
        // What goes to a controller needs no core.
        let ops = self.controllers(&outcome.ops, &data, &key);
        ops.is_empty() || self.inject.0.try_send(Injected { data, ops, key }).is_ok()
    }

    /// Packets that wait for a core to send them.
    pub fn injected(&self) -> Receiver<Injected> {
        self.inject.1.clone()
    }

    /// Sends a packet to the controllers that these operations say; the others are left.
    fn controllers(&self, ops: &[Op], data: &[u8], key: &Key) -> Vec<Op> {
        let mut left = Vec::new();
        for op in ops {
            match op {
                Op::Controller(to) => self.packet_in(to, data, key),
                other => left.push(other.clone()),
            }
        }
        left
    }

    /// A packet for controllers; `key`: its tunnel and its connection.
    pub fn packet_in(&self, to: &super::pipeline::op::ToController, data: &[u8], key: &Key) {
        let Some(bridge) = self.read().bridges.get(to.bridge).and_then(|b| Some(b.as_ref()?.name.clone()))
        else {
            return;
        };
        let len = data.len().min(usize::from(to.how.max_len));
        let mut flow = to.flow;
        let tracked = word::CT..word::HASH;
        flow.words[tracked.clone()].copy_from_slice(&key.words[tracked]);
        let packet = PacketIn {
            bridge,
            data: data[..len].to_vec(),
            size: data.len(),
            reason: to.how.reason,
            table: to.table,
            cookie: to.cookie,
            controller: to.how.id,
            userdata: to.how.userdata.clone(),
            flow,
        };
        self.tell(Event::PacketIn(Arc::new(packet)));
    }
}

impl World {
    /// The number of a bridge.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.bridges.iter().position(|b| b.as_ref().is_some_and(|b| b.name == name))
    }
}
