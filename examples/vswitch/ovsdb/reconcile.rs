//! Makes the switch what the database wants, and writes back what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::{Value, json};
use tracing::warn;

use super::client::{Changes, Client};
use super::config::{BridgeConfig, Config, InterfaceConfig, PortConfig};
use super::cores;
use super::replica::{map, optional};
use crate::vswitch::bridge::{self, FlowFilter, FlowMod};
use crate::vswitch::flow::action::{Action, Flow, port};
use crate::vswitch::flow::values::mac_text;
use crate::vswitch::openflow::adapter::ports;
use crate::vswitch::openflow::server::{Server, Wanted};
use crate::vswitch::pipeline::{Mirror, Vlan};
use crate::vswitch::runner::{Device, Runner, Settings};
use crate::vswitch::stream::Address;
use crate::vswitch::tunnel::Tunnel;

/// How often counters and states are written.
const WRITE: Duration = Duration::from_secs(5);
/// How often states of links and controllers are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Types of interfaces that there are.
const TYPES: &[&str] = &[
    "afxdp",
    "dpdk",
    "dpdkvhostuser",
    "dpdkvhostuserclient",
    "geneve",
    "internal",
    "patch",
    "system",
    "tap",
    "vfio",
    "vxlan",
];

/// An interface that the switch has.
struct Present {
    bridge: String,
    device: bool,
    wanted: InterfaceConfig,
    result: Result<u32, String>,
}

/// Follows a database.
pub(crate) struct Follower {
    client: Client,
    config: Option<Config>,
    present: BTreeMap<String, Present>,
    bridges: BTreeSet<String>,
    /// Bridges whose connections know their controllers.
    controlled: BTreeSet<String>,
    /// What was last asked of the cores.
    settings: Settings,
    /// Devices that were made so far.
    made: u32,
    dirty: bool,
    counted: Instant,
    looked: Instant,
}

impl Follower {
    /// Of the database at this address.
    pub(crate) fn new(server: Address) -> Follower {
        let now = Instant::now();
        Follower {
            client: Client::new(server),
            config: None,
            present: BTreeMap::new(),
            bridges: BTreeSet::new(),
            controlled: BTreeSet::new(),
            settings: Settings::default(),
            made: 0,
            dirty: false,
            counted: now,
            looked: now,
        }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.client.interest()
    }

    /// Takes in what the database says, does it, and writes back.
    pub(crate) fn turn(&mut self, now: Instant, runner: &Runner, servers: &mut BTreeMap<String, Server>) {
        if self.client.turn(now)
            && let Some(config) = self.client.replica().and_then(Config::read)
        {
            self.reconcile(&config, runner);
            self.config = Some(config);
            self.controlled.clear();
            self.dirty = true;
        }
        if let Some(config) = &self.config {
            for bridge in &config.bridges {
                if !self.controlled.contains(&bridge.name)
                    && let Some(server) = servers.get_mut(&bridge.name)
                {
                    control(bridge, server);
                    self.controlled.insert(bridge.name.clone());
                }
            }
        }
        let count = now.saturating_duration_since(self.counted) > WRITE;
        let look = now.saturating_duration_since(self.looked) > LOOK;
        if self.dirty || count || look {
            self.looked = now;
            self.dirty = !self.write(runner, servers, count);
            if count {
                self.counted = now;
            }
        }
    }

    fn reconcile(&mut self, config: &Config, runner: &Runner) {
        let settings = cores::settings(&config.other_config);
        if settings != self.settings {
            if let Err(e) = runner.configure(&settings) {
                warn!("ovsdb: cores: {e}");
            }
            self.settings = settings;
        }
        let wanted: BTreeSet<String> = config.bridges.iter().map(|b| b.name.clone()).collect();
        let mut keep = BTreeMap::new();
        for bridge in &config.bridges {
            for interface in bridge.ports.iter().flat_map(|p| &p.interfaces) {
                keep.insert(interface.name.clone(), (bridge.name.clone(), interface.clone()));
            }
        }
        // What is no longer wanted, or wanted otherwise, goes first.
        let gone: Vec<String> = self
            .present
            .iter()
            .filter(|(name, p)| !same(p, keep.get(*name)))
            .map(|(n, _)| n.clone())
            .collect();
        for name in gone {
            self.remove(&name, runner);
        }
        for name in self.bridges.difference(&wanted).cloned().collect::<Vec<_>>() {
            runner.switch().remove_bridge(&name);
        }
        self.bridges.clone_from(&wanted);
        for bridge in &config.bridges {
            self.bridge(bridge, runner);
        }
    }

    fn remove(&mut self, name: &str, runner: &Runner) {
        let Some(old) = self.present.remove(name) else {
            return;
        };
        if old.result.is_err() {
            return;
        }
        let done = if old.device {
            runner.remove(name).map_err(|e| e.to_string())
        } else {
            runner.switch().remove_port(&old.bridge, name).map(|_| ()).map_err(|e| e.to_string())
        };
        if let Err(e) = done {
            warn!("ovsdb: interface {name}: {e}");
        }
    }

    fn bridge(&mut self, bridge: &BridgeConfig, runner: &Runner) {
        let id = datapath_id(bridge);
        if runner.switch().add_bridge(&bridge.name, id) {
            standalone(bridge, runner);
        }
        if let Some(ageing) = bridge.other_config.get("mac-aging-time").and_then(|t| t.parse::<u64>().ok()) {
            let differs = runner.switch().with(&bridge.name, |b| b.ageing_s != ageing).unwrap_or(false);
            if differs {
                runner.switch().change(&bridge.name, |b| b.ageing_s = ageing);
            }
        }
        for port in &bridge.ports {
            for interface in &port.interfaces {
                self.interface(bridge, port, interface, runner);
            }
        }
        self.mirrors(bridge, runner);
    }

    fn interface(
        &mut self,
        bridge: &BridgeConfig,
        of: &PortConfig,
        interface: &InterfaceConfig,
        runner: &Runner,
    ) {
        let name = &interface.name;
        let vlan = vlan(of);
        // What failed is tried again whenever the database changes.
        if self.present.get(name).is_some_and(|p| p.result.is_ok()) {
            let differs =
                |b: &crate::vswitch::pipeline::Bridge| b.port_named(name).is_some_and(|p| p.vlan != vlan);
            if runner.switch().with(&bridge.name, differs) == Some(true) {
                runner.switch().change_port(&bridge.name, name, |p| p.vlan = vlan);
            }
            if let Err(e) = runner.set_affinity(name, &cores::affinity(&interface.other_config)) {
                warn!("ovsdb: interface {name}: {e}");
            }
            return;
        }
        let mut config = bridge::PortConfig { vlan, ..bridge::PortConfig::new(name) };
        config.number = interface.ofport_request.filter(|n| (1..port::FIRST_RESERVED).contains(n));
        let taken = |n: u32| runner.switch().with(&bridge.name, |b| b.ports.contains_key(&n)) == Some(true);
        config.number = config.number.filter(|n| !taken(*n));
        let (device, result) = if of.interfaces.len() > 1 || of.bond_mode.is_some() {
            (false, Err(format!("port {}: bonds are not supported", of.name)))
        } else {
            self.made += 1;
            add(bridge, interface, config, self.made, runner)
        };
        if let Err(e) = &result {
            warn!("ovsdb: interface {name}: {e}");
        }
        self.present.insert(
            name.clone(),
            Present { bridge: bridge.name.clone(), device, wanted: interface.clone(), result },
        );
    }

    fn mirrors(&self, bridge: &BridgeConfig, runner: &Runner) {
        let numbers = |uuids: &[String]| -> Vec<u32> {
            let ports = bridge.ports.iter().filter(|p| uuids.contains(&p.uuid));
            let names = ports
                .flat_map(|p| &p.interfaces)
                .filter_map(|i| self.present.get(&i.name)?.result.clone().ok());
            names.collect()
        };
        let of = |m: &super::config::MirrorConfig| Mirror {
            name: m.name.clone(),
            from: numbers(&m.sources),
            to: numbers(&m.destinations),
            all: m.select_all,
            vlans: m.vlans.clone(),
            output: m.output_port.as_ref().and_then(|u| numbers(std::slice::from_ref(u)).first().copied()),
        };
        let mirrors: Vec<Mirror> = bridge.mirrors.iter().map(of).collect();
        let differs = runner.switch().with(&bridge.name, |b| b.mirrors != mirrors).unwrap_or(false);
        if differs {
            runner.switch().set_mirrors(&bridge.name, mirrors);
        }
    }

    /// Writes what came of it; false when it must be tried again.
    fn write(&mut self, runner: &Runner, servers: &BTreeMap<String, Server>, count: bool) -> bool {
        let Some(config) = &self.config else {
            return true;
        };
        let mut changes = Changes::default();
        for bridge in &config.bridges {
            let columns = json!({"datapath_id": format!("{:016x}", datapath_id(bridge)), "datapath_version": "<built-in>"});
            changes.set("Bridge", &bridge.uuid, columns);
            let descs = ports(runner, &bridge.name);
            for interface in bridge.ports.iter().flat_map(|p| &p.interfaces) {
                let state = self.present.get(&interface.name);
                let desc = descs.iter().find(|d| d.name == interface.name);
                changes.set("Interface", &interface.uuid, interface_columns(state, desc));
                if count && let Some(stats) = runner.stats(&interface.name) {
                    changes.set("Interface", &interface.uuid, json!({"statistics": statistics(&stats)}));
                }
            }
            let status = servers.get(&bridge.name).map(Server::status).unwrap_or_default();
            for controller in &bridge.controllers {
                let found = status.iter().find(|s| s.target == controller.target);
                let connected = found.is_some_and(|s| s.connected);
                let state = if connected { "ACTIVE" } else { "BACKOFF" };
                let columns = json!({
                    "is_connected": connected,
                    "role": optional(found.and_then(|s| s.role)),
                    "status": map([("state".to_owned(), state)]),
                });
                changes.set("Controller", &controller.uuid, columns);
            }
        }
        let types = |list: &[&str]| json!(["set", list]);
        let root = json!({
            "cur_cfg": config.next_cfg,
            "ovs_version": env!("CARGO_PKG_VERSION"),
            "datapath_types": types(&["netdev"]),
            "iface_types": types(TYPES),
        });
        changes.set("Open_vSwitch", &config.uuid, root);
        self.client.write(changes)
    }
}

fn same(present: &Present, wanted: Option<&(String, InterfaceConfig)>) -> bool {
    let Some((bridge, wanted)) = wanted else {
        return false;
    };
    let (a, b) = (&present.wanted, wanted);
    let number = b.ofport_request.is_none()
        || present.result.as_ref().ok() == b.ofport_request.as_ref()
        || a.ofport_request == b.ofport_request;
    present.bridge == *bridge
        && a.kind == b.kind
        && a.options == b.options
        && number
        && a.mtu_request == b.mtu_request
        && a.mac == b.mac
}

/// The number of a bridge: what is asked for, or made from its address, or from its row.
fn datapath_id(bridge: &BridgeConfig) -> u64 {
    let asked = bridge
        .other_config
        .get("datapath-id")
        .and_then(|t| u64::from_str_radix(t.trim_start_matches("0x"), 16).ok());
    let address = bridge
        .other_config
        .get("hwaddr")
        .and_then(|t| crate::vswitch::flow::values::parse_mac(t))
        .map(|m| m as u64);
    let digits: String = bridge.uuid.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    // Locally administered, and no group's.
    let made = u64::from_str_radix(&digits, 16).unwrap_or(1) & !(1 << 40) | 2 << 40;
    asked.or(address).unwrap_or(made)
}

fn bridge_mac(bridge: &BridgeConfig) -> [u8; 6] {
    let b = datapath_id(bridge).to_be_bytes();
    [b[2], b[3], b[4], b[5], b[6], b[7]]
}

/// A new bridge that does not wait for a controller does as a plain switch does.
fn standalone(bridge: &BridgeConfig, runner: &Runner) {
    let empty = runner.switch().flows(&bridge.name, &FlowFilter::default()).is_some_and(|f| f.is_empty());
    if bridge.secure || !empty {
        return;
    }
    let actions = vec![Action::Output { port: port::NORMAL, max_len: 0 }];
    let flow = Flow { priority: 0, actions, ..Flow::default() };
    if let Err(e) = runner.switch().flow_mod(&bridge.name, &FlowMod::new(bridge::Command::Add, flow)) {
        warn!("ovsdb: bridge {}: {e}", bridge.name);
    }
}

fn vlan(port: &PortConfig) -> Vlan {
    let (tag, trunks) = (port.tag.unwrap_or(0), port.trunks.clone());
    match port.vlan_mode.as_deref() {
        Some("native-tagged") => Vlan::NativeTagged(tag, trunks),
        Some("native-untagged") => Vlan::NativeUntagged(tag, trunks),
        Some("access") => Vlan::Access(tag),
        Some("trunk") => Vlan::Trunk(trunks),
        _ if port.tag.is_some() => Vlan::Access(tag),
        _ => Vlan::Trunk(trunks),
    }
}

/// Adds a port; whether it is a device, and its number.
fn add(
    bridge: &BridgeConfig,
    interface: &InterfaceConfig,
    mut config: bridge::PortConfig,
    made: u32,
    runner: &Runner,
) -> (bool, Result<u32, String>) {
    let option = |name: &str| interface.options.get(name).map(String::as_str);
    let plain = |config| {
        (false, runner.switch().add_port(&bridge.name, config).map(|(n, _)| n).map_err(|e| e.to_string()))
    };
    match interface.kind.as_str() {
        "internal" | "" | "system" if interface.name == bridge.name => {
            config.number = Some(port::LOCAL);
            config.mac = bridge_mac(bridge);
            plain(config)
        }
        "patch" => {
            let Some(peer) = option("peer") else {
                return (false, Err("options:peer is missing".into()));
            };
            let there = runner
                .switch()
                .bridges()
                .into_iter()
                .find(|b| runner.switch().with(b, |b| b.port_named(peer).is_some()) == Some(true));
            config.peer = there.map(|b| (b, peer.to_owned()));
            plain(config)
        }
        kind @ ("vxlan" | "geneve") => {
            let made = Tunnel::parse(kind, &interface.options).and_then(|mut tunnel| {
                tunnel.mtu = interface.mtu_request.unwrap_or(tunnel.mtu);
                let device = Device { tunnel: Some(tunnel), ..Device::default() };
                runner.add(&bridge.name, config, device).map_err(|e| e.to_string())
            });
            (true, made)
        }
        _ => match vdev(interface, made) {
            Ok(vdev) => {
                let queues = option("n_rxq").and_then(|n| n.parse().ok()).unwrap_or(0);
                let affinity = cores::affinity(&interface.other_config);
                let device = Device { vdev, queues, affinity, tunnel: None };
                (true, runner.add(&bridge.name, config, device).map_err(|e| e.to_string()))
            }
            Err(e) => (false, Err(e)),
        },
    }
}

/// An interface in the words of `--vdev`, under a number of its own.
fn vdev(interface: &InterfaceConfig, made: u32) -> Result<String, String> {
    let name = &interface.name;
    let option = |key: &str| interface.options.get(key).cloned();
    let mtu = interface.mtu_request.map_or(String::new(), |m| format!(",mtu={m}"));
    let needs = |key: &str| option(key).ok_or_else(|| format!("options:{key} is missing"));
    Ok(match interface.kind.as_str() {
        "dpdkvhostuserclient" => {
            format!("net_vhost{made},iface={},client=1{mtu}", needs("vhost-server-path")?)
        }
        "dpdkvhostuser" => {
            format!("net_vhost{made},iface={}{mtu}", option("vhost-path").unwrap_or_else(|| name.clone()))
        }
        "tap" | "internal" => format!("net_tap{made},iface={name}{mtu}"),
        "afxdp" => format!("net_af_xdp{made},iface={name}"),
        "" | "system" => format!("net_af_xdp{made},iface={name}"),
        "vfio" => format!("net_nic{made},pci={}", needs("pci")?),
        "dpdk" => match needs("dpdk-devargs")? {
            // An address on the PCI bus, or anything in the words of `--vdev`.
            pci if pci.starts_with(|c: char| c.is_ascii_hexdigit()) => format!("net_nic{made},pci={pci}"),
            vdev => vdev,
        },
        other => return Err(format!("type {other} is not known; there are {}", TYPES.join(", "))),
    })
}

fn interface_columns(
    state: Option<&Present>,
    desc: Option<&crate::vswitch::openflow::ofproto::PortDesc>,
) -> Value {
    let number = match state.map(|s| &s.result) {
        Some(Ok(port::LOCAL)) => Some(65_534),
        Some(Ok(n)) => Some(i64::from(*n)),
        Some(Err(_)) => Some(-1),
        None => None,
    };
    let error = state.and_then(|s| s.result.as_ref().err().cloned());
    let up = desc.map(|d| if d.state & 1 == 0 { "up" } else { "down" });
    json!({
        "ofport": optional(number),
        "error": optional(error),
        "mac_in_use": optional(desc.map(|d| mac_text(d.mac))),
        "link_state": optional(up),
        "admin_state": optional(desc.map(|_| "up")),
    })
}

fn statistics(s: &pmd::port::Stats) -> Value {
    let pairs = [
        ("rx_packets", s.rx_packets),
        ("rx_bytes", s.rx_bytes),
        ("rx_dropped", s.rx_missed),
        ("rx_errors", s.rx_errors),
        ("tx_packets", s.tx_packets),
        ("tx_bytes", s.tx_bytes),
        ("tx_errors", s.tx_errors),
    ];
    map(pairs.map(|(n, v)| (n.to_owned(), i64::try_from(v).unwrap_or(i64::MAX))))
}

/// The controllers that a bridge wants.
fn control(bridge: &BridgeConfig, server: &mut Server) {
    let of = |c: &super::config::ControllerConfig| Wanted {
        target: c.target.clone(),
        max_backoff: Duration::from_millis(c.max_backoff_ms.into()),
        probe: Duration::from_millis(c.inactivity_probe_ms.into()),
    };
    let wanted: Vec<Wanted> = bridge.controllers.iter().map(of).collect();
    server.speak(&bridge.protocols);
    for e in server.control(&wanted) {
        warn!("bridge {}: controller {e}", bridge.name);
    }
}
