//! What the database wants, as a tree: bridges, their ports, their interfaces.

use std::collections::BTreeMap;

use super::replica::{Replica, Row, Uuid};

/// The tables and columns that are followed: those that users write. What we write back is not among them.
pub(crate) const FOLLOWED: &[(&str, &[&str])] = &[
    ("Open_vSwitch", &["bridges", "next_cfg", "other_config", "external_ids"]),
    (
        "Bridge",
        &[
            "name",
            "datapath_type",
            "fail_mode",
            "ports",
            "mirrors",
            "controller",
            "protocols",
            "other_config",
            "flood_vlans",
            "sflow",
            "ipfix",
            "netflow",
            "stp_enable",
            "rstp_enable",
            "mcast_snooping_enable",
        ],
    ),
    (
        "Port",
        &[
            "name",
            "interfaces",
            "tag",
            "trunks",
            "cvlans",
            "vlan_mode",
            "qos",
            "mac",
            "bond_mode",
            "lacp",
            "bond_updelay",
            "bond_downdelay",
            "bond_active_slave",
            "protected",
            "other_config",
        ],
    ),
    (
        "Interface",
        &[
            "name",
            "type",
            "options",
            "ofport_request",
            "mac",
            "mtu_request",
            "ingress_policing_rate",
            "ingress_policing_burst",
            "other_config",
        ],
    ),
    (
        "Mirror",
        &[
            "name",
            "select_all",
            "select_src_port",
            "select_dst_port",
            "select_vlan",
            "output_port",
            "output_vlan",
            "snaplen",
        ],
    ),
    (
        "Controller",
        &["target", "max_backoff", "inactivity_probe", "connection_mode", "enable_async_messages"],
    ),
    ("QoS", &["type", "queues", "other_config"]),
    ("Queue", &["dscp", "other_config"]),
    ("sFlow", &["targets", "sampling", "polling", "header", "agent"]),
    (
        "IPFIX",
        &["targets", "sampling", "obs_domain_id", "obs_point_id", "cache_active_timeout", "cache_max_flows"],
    ),
];

/// Everything that is wanted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Config {
    /// The row of the root.
    pub(crate) uuid: Uuid,
    /// The number that `ovs-vsctl` waits for in `cur_cfg`.
    pub(crate) next_cfg: i64,
    /// Settings of the whole switch.
    pub(crate) other_config: BTreeMap<String, String>,
    /// In the order of their names.
    pub(crate) bridges: Vec<BridgeConfig>,
}

/// One bridge.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BridgeConfig {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) datapath_type: String,
    /// Without a controller do nothing (`secure`), and not as a plain switch does (`standalone`).
    pub(crate) secure: bool,
    pub(crate) other_config: BTreeMap<String, String>,
    pub(crate) flood_vlans: Vec<u16>,
    pub(crate) protocols: Vec<String>,
    pub(crate) ports: Vec<PortConfig>,
    pub(crate) mirrors: Vec<MirrorConfig>,
    pub(crate) controllers: Vec<ControllerConfig>,
    pub(crate) sflow: Option<SflowConfig>,
    pub(crate) ipfix: Option<IpfixConfig>,
}

/// One port: an interface, or several that are bonded.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PortConfig {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) tag: Option<u16>,
    pub(crate) trunks: Vec<u16>,
    pub(crate) vlan_mode: Option<String>,
    pub(crate) bond_mode: Option<String>,
    pub(crate) bond_active: Option<String>,
    pub(crate) bond_updelay_ms: u32,
    pub(crate) bond_downdelay_ms: u32,
    pub(crate) lacp: Option<String>,
    pub(crate) protected: bool,
    pub(crate) qos: Option<QosConfig>,
    pub(crate) other_config: BTreeMap<String, String>,
    pub(crate) interfaces: Vec<InterfaceConfig>,
}

/// One interface.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct InterfaceConfig {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// Empty for one that the system has.
    pub(crate) kind: String,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) ofport_request: Option<u32>,
    pub(crate) mac: Option<String>,
    pub(crate) mtu_request: Option<u32>,
    pub(crate) policing_rate_kbps: u32,
    pub(crate) policing_burst_kb: u32,
    pub(crate) other_config: BTreeMap<String, String>,
}

/// What a mirror copies, and where to. Ports are named by their rows.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MirrorConfig {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) select_all: bool,
    pub(crate) sources: Vec<Uuid>,
    pub(crate) destinations: Vec<Uuid>,
    pub(crate) vlans: Vec<u16>,
    pub(crate) output_port: Option<Uuid>,
    pub(crate) output_vlan: Option<u16>,
    pub(crate) snap_length: Option<u32>,
}

/// A controller, or a socket for controllers.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct ControllerConfig {
    pub(crate) uuid: Uuid,
    pub(crate) target: String,
    pub(crate) max_backoff_ms: u32,
    pub(crate) inactivity_probe_ms: u32,
}

/// Shaping of what leaves a port.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct QosConfig {
    pub(crate) kind: String,
    pub(crate) other_config: BTreeMap<String, String>,
    pub(crate) queues: BTreeMap<i64, BTreeMap<String, String>>,
}

/// Sampling by sFlow.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SflowConfig {
    pub(crate) targets: Vec<String>,
    pub(crate) sampling: Option<u32>,
    pub(crate) polling: Option<u32>,
    pub(crate) header: Option<u32>,
    pub(crate) agent: Option<String>,
}

/// Sampling by IPFIX.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct IpfixConfig {
    pub(crate) targets: Vec<String>,
    pub(crate) sampling: Option<u32>,
    pub(crate) domain: u32,
    pub(crate) point: u32,
}

impl Config {
    /// Reads the tree; nothing while there is no row at its root.
    pub(crate) fn read(replica: &Replica) -> Option<Config> {
        let (uuid, root) = replica.rows("Open_vSwitch").next()?;
        let bridges = each(replica, "Bridge", &root.references("bridges"), bridge);
        let other_config = root.map("other_config");
        Some(Config {
            uuid: uuid.clone(),
            next_cfg: root.integer("next_cfg").unwrap_or(0),
            other_config,
            bridges,
        })
    }
}

/// The rows that a list names, in the order of their `name`; what is not there yet is left out.
fn each<T>(replica: &Replica, table: &str, uuids: &[Uuid], read: fn(&Replica, &Uuid, &Row) -> T) -> Vec<T> {
    let mut rows: Vec<_> = uuids.iter().filter_map(|u| Some((replica.row(table, u)?, u))).collect();
    rows.sort_by_cached_key(|(row, uuid)| (row.string("name"), (*uuid).clone()));
    rows.into_iter().map(|(row, uuid)| read(replica, uuid, row)).collect()
}

fn bridge(replica: &Replica, uuid: &Uuid, row: &Row) -> BridgeConfig {
    BridgeConfig {
        uuid: uuid.clone(),
        name: row.string("name").unwrap_or_default(),
        datapath_type: row.string("datapath_type").unwrap_or_default(),
        secure: row.string("fail_mode").as_deref() == Some("secure"),
        other_config: row.map("other_config"),
        flood_vlans: vlans(&row.integers("flood_vlans")),
        protocols: row.strings("protocols"),
        ports: each(replica, "Port", &row.references("ports"), port),
        mirrors: each(replica, "Mirror", &row.references("mirrors"), mirror),
        controllers: each(replica, "Controller", &row.references("controller"), controller),
        sflow: row.reference("sflow").and_then(|u| replica.row("sFlow", &u)).map(sflow),
        ipfix: row.reference("ipfix").and_then(|u| replica.row("IPFIX", &u)).map(ipfix),
    }
}

fn port(replica: &Replica, uuid: &Uuid, row: &Row) -> PortConfig {
    PortConfig {
        uuid: uuid.clone(),
        name: row.string("name").unwrap_or_default(),
        tag: row.integer("tag").and_then(|t| u16::try_from(t).ok()),
        trunks: vlans(&row.integers("trunks")),
        vlan_mode: row.string("vlan_mode"),
        bond_mode: row.string("bond_mode"),
        bond_active: row.string("bond_active_slave"),
        bond_updelay_ms: number(row, "bond_updelay").unwrap_or(0),
        bond_downdelay_ms: number(row, "bond_downdelay").unwrap_or(0),
        lacp: row.string("lacp"),
        protected: row.flag("protected"),
        qos: row.reference("qos").and_then(|u| replica.row("QoS", &u)).map(|q| qos(replica, q)),
        other_config: row.map("other_config"),
        interfaces: each(replica, "Interface", &row.references("interfaces"), interface),
    }
}

fn interface(_: &Replica, uuid: &Uuid, row: &Row) -> InterfaceConfig {
    InterfaceConfig {
        uuid: uuid.clone(),
        name: row.string("name").unwrap_or_default(),
        kind: row.string("type").unwrap_or_default(),
        options: row.map("options"),
        ofport_request: number(row, "ofport_request"),
        mac: row.string("mac"),
        mtu_request: number(row, "mtu_request"),
        policing_rate_kbps: number(row, "ingress_policing_rate").unwrap_or(0),
        policing_burst_kb: number(row, "ingress_policing_burst").unwrap_or(0),
        other_config: row.map("other_config"),
    }
}

fn mirror(_: &Replica, uuid: &Uuid, row: &Row) -> MirrorConfig {
    MirrorConfig {
        uuid: uuid.clone(),
        name: row.string("name").unwrap_or_default(),
        select_all: row.flag("select_all"),
        sources: row.references("select_src_port"),
        destinations: row.references("select_dst_port"),
        vlans: vlans(&row.integers("select_vlan")),
        output_port: row.reference("output_port"),
        output_vlan: row.integer("output_vlan").and_then(|t| u16::try_from(t).ok()),
        snap_length: number(row, "snaplen"),
    }
}

fn controller(_: &Replica, uuid: &Uuid, row: &Row) -> ControllerConfig {
    ControllerConfig {
        uuid: uuid.clone(),
        target: row.string("target").unwrap_or_default(),
        max_backoff_ms: number(row, "max_backoff").unwrap_or(8000).max(1000),
        inactivity_probe_ms: number(row, "inactivity_probe").unwrap_or(5000),
    }
}

fn qos(replica: &Replica, row: &Row) -> QosConfig {
    let queues = row.numbered("queues").into_iter();
    QosConfig {
        kind: row.string("type").unwrap_or_default(),
        other_config: row.map("other_config"),
        queues: queues
            .filter_map(|(n, u)| Some((n, replica.row("Queue", &u)?.map("other_config"))))
            .collect(),
    }
}

fn sflow(row: &Row) -> SflowConfig {
    SflowConfig {
        targets: row.strings("targets"),
        sampling: number(row, "sampling"),
        polling: number(row, "polling"),
        header: number(row, "header"),
        agent: row.string("agent"),
    }
}

fn ipfix(row: &Row) -> IpfixConfig {
    IpfixConfig {
        targets: row.strings("targets"),
        sampling: number(row, "sampling"),
        domain: number(row, "obs_domain_id").unwrap_or(0),
        point: number(row, "obs_point_id").unwrap_or(0),
    }
}

fn number(row: &Row, column: &str) -> Option<u32> {
    row.integer(column).and_then(|n| u32::try_from(n).ok())
}

fn vlans(numbers: &[i64]) -> Vec<u16> {
    numbers.iter().filter_map(|n| u16::try_from(*n).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_tree_is_read_and_what_has_not_come_left_out() {
        let mut replica = Replica::default();
        assert_eq!(Config::read(&replica), None);
        let rows = json!({
            "Open_vSwitch": {"r": {"new": {"bridges": ["uuid", "b"], "next_cfg": 3}}},
            "Bridge": {"b": {"new": {"name": "br0", "fail_mode": "secure",
                "ports": ["set", [["uuid", "p2"], ["uuid", "p1"], ["uuid", "gone"]]]}}},
            "Port": {
                "p1": {"new": {"name": "a", "tag": 5, "interfaces": ["uuid", "i1"]}},
                "p2": {"new": {"name": "b", "interfaces": ["set", [["uuid", "i2"], ["uuid", "i1"]]]}}},
            "Interface": {
                "i1": {"new": {"name": "a", "type": "tap", "ofport_request": 9}},
                "i2": {"new": {"name": "c", "type": "dpdkvhostuserclient",
                    "options": ["map", [["vhost-server-path", "/x"]]]}}},
        });
        replica.update(&rows).expect("an update");
        let config = Config::read(&replica).expect("a tree");
        assert_eq!(config.next_cfg, 3);
        let bridge = &config.bridges[0];
        assert!(bridge.secure);
        assert_eq!(bridge.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((bridge.ports[0].tag, bridge.ports[1].interfaces.len()), (Some(5), 2));
        assert_eq!(bridge.ports[0].interfaces[0].ofport_request, Some(9));
        assert_eq!(bridge.ports[1].interfaces[1].options["vhost-server-path"], "/x");
    }
}
