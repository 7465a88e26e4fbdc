//! `switch.toml`: bridges, ports and flows in one file, and what a changed file changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::bridge::{Command, FlowMod, PortConfig, Switch};
use super::flow::Flow;
use super::flow::values::Names;
use super::pipeline::{Mirror, Vlan};
use super::placement::Policy;
use super::runner::{Balance, Device, Runner, Settings};
use super::tunnel::Tunnel;

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The CPUs that forward; none: one core, wherever the scheduler puts it.
    #[serde(default)]
    pub cores: Vec<usize>,
    /// How receive queues are dealt out to them: `cycles`, `group` or `roundrobin`.
    pub assign: Option<String>,
    /// Queues are moved by themselves when a core is busy and another is not.
    #[serde(default)]
    pub balance: bool,
    /// Milliseconds that cores may sleep when nothing comes; none: they poll without pause.
    pub idle_sleep_ms: Option<u64>,
    /// Bridges.
    #[serde(default, rename = "bridge")]
    pub bridges: Vec<BridgeConfig>,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// Its name.
    pub name: String,
    /// Its number in OpenFlow; none: of its place in the file.
    pub datapath_id: Option<u64>,
    /// Ports.
    #[serde(default, rename = "port")]
    pub ports: Vec<PortEntry>,
    /// Flows, in the words of `ovs-ofctl add-flow`; none: NORMAL.
    pub flows: Option<Vec<String>>,
    /// Mirrors.
    #[serde(default, rename = "mirror")]
    pub mirrors: Vec<MirrorEntry>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortEntry {
    /// Its name.
    pub name: String,
    /// The device, in the words of testpmd's `--vdev`; none: a patch.
    pub vdev: Option<String>,
    /// Its number in OpenFlow; none: the next that is free.
    pub number: Option<u32>,
    /// A tunnel in place of a device: its `type`, and options as the database has them.
    #[serde(default)]
    pub tunnel: BTreeMap<String, String>,
    /// Queues; none: what `vdev` says, or one.
    pub queues: Option<u16>,
    /// CPUs that queues are to be on: of the first, the second and so on.
    #[serde(default)]
    pub affinity: Vec<usize>,
    /// The VLAN of frames without tag.
    pub tag: Option<u16>,
    /// VLANs that it carries; none: all.
    #[serde(default)]
    pub trunks: Vec<u16>,
    /// `access`, `trunk`, `native-tagged` or `native-untagged`.
    pub vlan_mode: Option<String>,
    /// The port at the other end of a patch: `bridge/port`.
    pub peer: Option<String>,
}

/// A mirror.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorEntry {
    /// Its name.
    pub name: String,
    /// Names of the ports from which frames are copied.
    #[serde(default)]
    pub from: Vec<String>,
    /// Names of the ports to which copied frames go.
    #[serde(default)]
    pub to: Vec<String>,
    /// All frames.
    #[serde(default)]
    pub all: bool,
    /// Frames of these VLANs only.
    #[serde(default)]
    pub vlans: Vec<u16>,
    /// Name of the port that gets the copies.
    pub output: String,
}

/// Ports of one bridge by name.
struct PortNames(Vec<(String, u32)>);

impl Names for PortNames {
    fn number(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, number)| *number)
    }
    fn name(&self, number: u32) -> Option<String> {
        self.0.iter().find(|(_, n)| *n == number).map(|(name, _)| name.clone())
    }
}

/// Names of the ports of a bridge.
pub fn port_names(switch: &Switch, bridge: &str) -> impl Names + use<> {
    let ports = switch.with(bridge, |b| b.ports.values().map(|p| (p.name.clone(), p.number)).collect());
    PortNames(ports.unwrap_or_default())
}

impl PortEntry {
    fn vlan(&self) -> Result<Vlan, String> {
        let trunks = self.trunks.clone();
        let usual = if self.tag.is_some() && trunks.is_empty() { "access" } else { "trunk" };
        match (self.vlan_mode.as_deref().unwrap_or(usual), self.tag) {
            ("access", tag) => Ok(Vlan::Access(tag.unwrap_or(0))),
            ("trunk", _) => Ok(Vlan::Trunk(trunks)),
            ("native-tagged", tag) => Ok(Vlan::NativeTagged(tag.unwrap_or(0), trunks)),
            ("native-untagged", tag) => Ok(Vlan::NativeUntagged(tag.unwrap_or(0), trunks)),
            (other, _) => Err(format!(
                "port {}: vlan_mode '{other}' is none of access, trunk, native-tagged, native-untagged",
                self.name
            )),
        }
    }

    /// Whether another is the same device at the same place, perhaps of other VLANs.
    fn is_device(&self, other: &PortEntry) -> bool {
        (&self.name, &self.vdev, &self.tunnel, &self.number, &self.peer, self.queues)
            == (&other.name, &other.vdev, &other.tunnel, &other.number, &other.peer, other.queues)
    }

    fn is_patch(&self) -> bool {
        self.vdev.is_none() && self.tunnel.is_empty()
    }

    fn device(&self) -> Result<Device, String> {
        let mut options = self.tunnel.clone();
        let kind = options.remove("type");
        let tunnel = match (self.tunnel.is_empty(), &self.vdev) {
            (true, _) => None,
            (false, Some(_)) => return Err("a port has a vdev or a tunnel, not both".into()),
            (false, None) => Some(Tunnel::parse(&kind.unwrap_or_default(), &options)?),
        };
        let (vdev, queues) = (self.vdev.clone().unwrap_or_default(), self.queues.unwrap_or(0));
        Ok(Device { vdev, tunnel, queues, affinity: self.affinity() })
    }

    fn affinity(&self) -> BTreeMap<u16, usize> {
        (0..).zip(self.affinity.iter().copied()).collect()
    }

    fn config(&self) -> Result<PortConfig, String> {
        let peer = match &self.peer {
            None => None,
            Some(text) => {
                let cut = text.split_once('/');
                let (bridge, port) = cut.ok_or_else(|| format!("port {}: peer is bridge/port", self.name))?;
                Some((bridge.to_owned(), port.to_owned()))
            }
        };
        Ok(PortConfig { number: self.number, vlan: self.vlan()?, peer, ..PortConfig::new(&self.name) })
    }
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// In one line, what is wrong and where.
    pub fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// How the cores serve ports.
    ///
    /// # Errors
    /// A word that means nothing.
    pub fn settings(&self) -> Result<Settings, String> {
        let policy = match &self.assign {
            None => Policy::default(),
            Some(word) => Policy::parse(word)
                .ok_or_else(|| format!("assign = '{word}' is none of cycles, group, roundrobin"))?,
        };
        Ok(Settings {
            cpus: self.cores.clone(),
            idle_sleep: self.idle_sleep_ms.map(Duration::from_millis),
            policy,
            balance: self.balance.then(Balance::default),
            ..Settings::default()
        })
    }

    /// Makes what is described, coming from what was described before: ports that are described as they
    /// were go on without a pause.
    ///
    /// # Errors
    /// What could not be done; the rest is.
    pub fn apply(&self, before: &Config, runner: &Runner) -> Result<(), String> {
        let mut errors = Vec::new();
        let cores = self.settings().and_then(|s| runner.configure(&s).map_err(|e| e.to_string()));
        errors.extend(cores.err());
        for old in &before.bridges {
            let new = self.bridges.iter().find(|b| b.name == old.name);
            let kept = |p: &PortEntry| new.is_some_and(|b| b.ports.iter().any(|q| q.is_device(p)));
            let gone: Vec<String> = match new {
                None => Vec::new(),
                Some(new) => old.texts().into_iter().filter(|t| !new.texts().contains(t)).collect(),
            };
            old.flow_mods(Command::DeleteStrict, &gone, runner, &mut errors);
            for port in old.ports.iter().filter(|p| !kept(p)) {
                remove_port(runner, &old.name, port, &mut errors);
            }
            if new.is_none() {
                runner.switch().remove_bridge(&old.name);
            }
        }
        for (i, bridge) in self.bridges.iter().enumerate() {
            let old = before.bridges.iter().find(|b| b.name == bridge.name);
            if old.is_none() {
                let id = bridge.datapath_id.unwrap_or(i as u64 + 1);
                runner.switch().add_bridge(&bridge.name, id);
            }
            for port in &bridge.ports {
                match old.and_then(|o| o.ports.iter().find(|p| p.is_device(port))) {
                    None => add_port(runner, &bridge.name, port, &mut errors),
                    Some(before) if before != port => set_port(runner, &bridge.name, port, &mut errors),
                    Some(_) => {}
                }
            }
            let known = old.map_or_else(Vec::new, BridgeConfig::texts);
            let new: Vec<String> = bridge.texts().into_iter().filter(|t| !known.contains(t)).collect();
            bridge.flow_mods(Command::Add, &new, runner, &mut errors);
            bridge.mirrors(runner, &mut errors);
        }
        runner.switch().catch_up();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
    }
}

fn add_port(runner: &Runner, bridge: &str, port: &PortEntry, errors: &mut Vec<String>) {
    let added = port.config().and_then(|config| match port.is_patch() {
        true => runner.switch().add_port(bridge, config).map(drop).map_err(|e| e.to_string()),
        false => runner.add(bridge, config, port.device()?).map(drop).map_err(|e| e.to_string()),
    });
    if let Err(e) = added {
        errors.push(format!("port {}: {e}", port.name));
    }
}

fn set_port(runner: &Runner, bridge: &str, port: &PortEntry, errors: &mut Vec<String>) {
    let moved = runner.set_affinity(&port.name, &port.affinity());
    errors.extend(moved.err().map(|e| format!("port {}: {e}", port.name)));
    match port.vlan() {
        Ok(vlan) => drop(runner.switch().change_port(bridge, &port.name, |p| p.vlan = vlan)),
        Err(e) => errors.push(e),
    }
}

fn remove_port(runner: &Runner, bridge: &str, port: &PortEntry, errors: &mut Vec<String>) {
    let removed = match port.is_patch() {
        true => runner.switch().remove_port(bridge, &port.name).map(drop).map_err(|e| e.to_string()),
        false => runner.remove(&port.name).map_err(|e| e.to_string()),
    };
    if let Err(e) = removed {
        errors.push(format!("port {}: {e}", port.name));
    }
}

impl BridgeConfig {
    fn texts(&self) -> Vec<String> {
        self.flows.clone().unwrap_or_else(|| vec!["priority=0,actions=NORMAL".into()])
    }

    fn flow_mods(&self, command: Command, texts: &[String], runner: &Runner, errors: &mut Vec<String>) {
        let names = port_names(runner.switch(), &self.name);
        for text in texts {
            let done = Flow::parse(text, &names).map_err(|e| e.to_string()).and_then(|flow| {
                runner.switch().flow_mod(&self.name, &FlowMod::new(command, flow)).map_err(|e| e.to_string())
            });
            if let Err(e) = done {
                errors.push(format!("bridge {}: flow {text}: {e}", self.name));
            }
        }
    }

    fn mirrors(&self, runner: &Runner, errors: &mut Vec<String>) {
        let names = port_names(runner.switch(), &self.name);
        let mut number = |name: &String| {
            let found = names.number(name);
            if found.is_none() {
                errors.push(format!("bridge {}: a mirror names port {name}, which is not there", self.name));
            }
            found
        };
        let mirrors = self.mirrors.iter().map(|m| Mirror {
            name: m.name.clone(),
            from: m.from.iter().filter_map(&mut number).collect(),
            to: m.to.iter().filter_map(&mut number).collect(),
            all: m.all,
            vlans: m.vlans.clone(),
            output: number(&m.output),
        });
        let mirrors = mirrors.collect();
        runner.switch().set_mirrors(&self.name, mirrors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::bridge::FlowFilter;
    use crate::vswitch::flow::values::Numbers;
    use hugepages::{Backing, PageSize};
    use std::sync::Arc;

    fn runner() -> Runner {
        let backing = Backing { page: PageSize::Base, ..Backing::default() };
        let settings = Settings { idle_sleep: Some(Duration::from_millis(1)), ..Settings::default() };
        Runner::start(Arc::default(), settings, backing).unwrap()
    }

    #[test]
    fn a_changed_file_changes_only_what_is_changed() {
        let runner = runner();
        let first: Config = toml::from_str(
            "[[bridge]]\nname = 'br0'\nflows = ['in_port=a,actions=b', 'priority=0,actions=drop']\n\
             [[bridge.port]]\nname = 'a'\nvdev = 'generator0,count=2000,flows=100'\ntag = 5\n\
             [[bridge.port]]\nname = 'b'\nvdev = 'null0,no-rx=1'\n",
        )
        .unwrap();
        first.apply(&Config::default(), &runner).unwrap();
        runner.forward().unwrap();
        let start = std::time::Instant::now();
        while runner.stats("b").unwrap().tx_packets < 2000 && start.elapsed().as_secs() < 60 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(runner.stats("b").unwrap().tx_packets, 2000);
        let mut second = first.clone();
        second.bridges[0].flows.as_mut().unwrap().push("arp,actions=NORMAL".into());
        second.bridges[0].ports[1].name = "c".into();
        second.bridges[0].flows.as_mut().unwrap()[0] = "in_port=a,actions=c".into();
        second.apply(&first, &runner).unwrap();
        let flows = runner.switch().flows("br0", &FlowFilter::default()).unwrap();
        let texts: Vec<_> = flows.iter().map(|s| s.flow.text(&Numbers)).collect();
        assert_eq!(texts, ["in_port=1 actions=output:2", "arp actions=NORMAL", "priority=0 actions=drop"]);
        assert!(runner.stats("b").is_none() && runner.stats("c").is_some());
        Config::default().apply(&second, &runner).unwrap();
        assert!(runner.described().is_empty() && runner.switch().bridges().is_empty());
        runner.stop();
    }

    #[test]
    fn rules_count_what_passed_by_them() {
        let runner = runner();
        let config: Config = toml::from_str(
            "[[bridge]]\nname = 'br0'\nflows = ['udp,in_port=a,actions=mod_nw_ttl:9,b', 'priority=1,actions=drop']\n\
             [[bridge.port]]\nname = 'a'\nvdev = 'generator0,count=5000,flows=50,size=64'\n\
             [[bridge.port]]\nname = 'b'\nvdev = 'null0,no-rx=1'\n",
        )
        .unwrap();
        config.apply(&Config::default(), &runner).unwrap();
        runner.forward().unwrap();
        let start = std::time::Instant::now();
        let count = || runner.switch().flows("br0", &FlowFilter::default()).unwrap()[0].packets;
        while count() < 5000 && start.elapsed().as_secs() < 60 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((count(), runner.stats("b").unwrap().tx_packets), (5000, 5000));
        assert_eq!(runner.switch().dump_datapath().len(), 1);
        runner.stop();
    }

    #[test]
    fn what_is_wrong_is_said() {
        let runner = runner();
        let config: Config = toml::from_str(
            "[[bridge]]\nname = 'br0'\nflows = ['foo=1,actions=drop']\n[[bridge.port]]\nname = 'a'\nvdev = 'what0'\n",
        )
        .unwrap();
        let text = config.apply(&Config::default(), &runner).unwrap_err();
        assert!(text.contains("no kind of port 'what0'") && text.contains("foo=1"), "{text}");
        assert!(toml::from_str::<Config>("[[bridge]]\nname='a'\nflow=[]").is_err());
        runner.stop();
    }
}
