//! Ports of bridges.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Event, PortChange, Switch};
use crate::vswitch::flow::action::port;
use crate::vswitch::pipeline::{Bridge, MAX_DP, Mirror, Port, Vlan, World};
use crate::vswitch::tunnel::Tunnel;

/// A port to be added.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Its name.
    pub name: String,
    /// Its number in OpenFlow; `None`: the next that is free. [`port::LOCAL`]: the bridge's own.
    pub number: Option<u32>,
    /// Its address.
    pub mac: [u8; 6],
    /// VLANs.
    pub vlan: Vlan,
    /// Bridge and port at the other end of a patch, by name.
    pub peer: Option<(String, String)>,
    /// The tunnel that it is the end of.
    pub tunnel: Option<Tunnel>,
}

impl PortConfig {
    /// A port that takes part in all VLANs.
    pub fn new(name: &str) -> PortConfig {
        let (number, mac, peer, tunnel) = Default::default();
        PortConfig { name: name.into(), number, mac, vlan: Vlan::Trunk(Vec::new()), peer, tunnel }
    }
}

/// Why a port cannot be.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("no bridge named {0}")]
    NoBridge(String),
    #[error("a port named {0} exists")]
    Exists(String),
    #[error("port {0} is taken, or out of range")]
    Number(u32),
    #[error("no port named {0}")]
    Unknown(String),
    #[error("there are {MAX_DP} ports already")]
    TooMany,
}

impl World {
    fn free_dp(&self) -> Option<u32> {
        let ports = || self.bridges.iter().flatten().flat_map(|b| b.ports.values());
        (1..MAX_DP).find(|n| ports().all(|p| p.dp != *n))
    }

    /// Joins patches whose other end is there.
    fn join(&mut self, from: (usize, u32), to: &(String, String)) {
        let Some(there) = self.find(&to.0) else { return };
        let Some(number) = self.bridges[there].as_ref().and_then(|b| b.port_named(&to.1)).map(|p| p.number)
        else {
            return;
        };
        for ((bridge, port), peer) in [(from, (there, number)), ((there, number), from)] {
            if let Some(port) = self.bridges[bridge].as_mut().and_then(|b| b.ports.get_mut(&port)) {
                port.peer = Some(peer);
            }
        }
    }
}

impl Switch {
    /// Adds a port. Its number in OpenFlow, and in the datapath.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn add_port(&self, bridge: &str, config: PortConfig) -> Result<(u32, u32), PortError> {
        let mut world = self.write();
        let Some(at) = world.find(bridge) else { return Err(PortError::NoBridge(bridge.into())) };
        if world.bridges.iter().flatten().any(|b| b.port_named(&config.name).is_some()) {
            return Err(PortError::Exists(config.name));
        }
        let dp = world.free_dp().ok_or(PortError::TooMany)?;
        let b = world.bridges[at].as_mut().expect("found above");
        let free = || (1..port::FIRST_RESERVED).find(|n| !b.ports.contains_key(n));
        let number = config.number.or_else(free).unwrap_or(0);
        let good = number == port::LOCAL || (1..port::FIRST_RESERVED).contains(&number);
        if !good || b.ports.contains_key(&number) {
            return Err(PortError::Number(number));
        }
        let name = config.name.clone();
        let port = Port {
            number,
            dp,
            name: config.name,
            mac: config.mac,
            vlan: config.vlan,
            no_flood: false,
            no_forward: false,
            up: AtomicBool::new(true),
            peer: None,
            tunnel: config.tunnel,
            mirror_output: false,
        };
        b.ports.insert(number, port);
        if let Some(peer) = &config.peer {
            world.join((at, number), peer);
        }
        drop(world);
        self.tell(Event::Port { bridge: bridge.into(), number, name, change: PortChange::Add });
        Ok((number, dp))
    }

    /// Takes a port away. Its number in the datapath.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_port(&self, bridge: &str, name: &str) -> Result<u32, PortError> {
        let remove = |b: &mut Bridge| {
            let number = b.port_named(name).map(|p| p.number)?;
            b.fdb.lock().expect("no holder panics").flush(Some(number));
            b.ports.remove(&number)
        };
        let port = self.change(bridge, remove).ok_or_else(|| PortError::NoBridge(bridge.into()))?;
        let port = port.ok_or_else(|| PortError::Unknown(name.into()))?;
        let (number, name) = (port.number, port.name);
        self.tell(Event::Port { bridge: bridge.into(), number, name, change: PortChange::Delete });
        Ok(port.dp)
    }

    /// Changes a port; `None`: there is no such bridge or port.
    pub fn change_port<T>(&self, bridge: &str, name: &str, change: impl FnOnce(&mut Port) -> T) -> Option<T> {
        let result = self.change(bridge, |b| {
            let port = b.ports.values_mut().find(|p| p.name == name)?;
            let number = port.number;
            Some((number, change(port)))
        });
        let (number, out) = result.flatten()?;
        self.tell(Event::Port {
            bridge: bridge.into(),
            number,
            name: name.into(),
            change: PortChange::Modify,
        });
        Some(out)
    }

    /// Says whether a port's other side is there.
    pub fn set_up(&self, bridge: &str, name: &str, up: bool) {
        let now = self.with(bridge, |b| b.port_named(name).map(|p| p.up.load(Ordering::Relaxed))).flatten();
        if now.is_some_and(|now| now != up) {
            self.change_port(bridge, name, |p| p.up.store(up, Ordering::Relaxed));
        }
    }

    /// Sets the mirrors of a bridge; `false`: there is no such bridge.
    pub fn set_mirrors(&self, bridge: &str, mirrors: Vec<Mirror>) -> bool {
        let set = |b: &mut Bridge| {
            for port in b.ports.values_mut() {
                port.mirror_output = mirrors.iter().any(|m| m.output == Some(port.number));
            }
            b.mirrors = mirrors;
        };
        self.change(bridge, set).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_numbers_of_their_own() {
        let switch = Switch::default();
        switch.add_bridge("br0", 1);
        switch.add_bridge("br1", 2);
        assert_eq!(switch.add_port("br0", PortConfig::new("a")), Ok((1, 1)));
        assert_eq!(switch.add_port("br1", PortConfig::new("b")), Ok((1, 2)));
        assert_eq!(switch.add_port("br1", PortConfig::new("b")), Err(PortError::Exists("b".into())));
        let local = PortConfig { number: Some(port::LOCAL), ..PortConfig::new("br0") };
        assert_eq!(switch.add_port("br0", local), Ok((port::LOCAL, 3)));
        assert_eq!(switch.remove_port("br0", "a"), Ok(1));
        assert_eq!(switch.remove_port("br0", "a"), Err(PortError::Unknown("a".into())));
    }
}
