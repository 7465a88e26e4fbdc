//! One connection's conversation: a function of messages. It does no I/O.

use tracing::debug;

use super::bundle::Bundles;
use super::error::OfError;
use super::flow_stats::put_removed;
use super::monitor::Monitors;
use super::multipart::{self, Request};
use super::ofproto::{Change, Event, FlowChange, Ofproto, PacketIn};
use super::packets::{self, Format};
use super::version::{HEADER, HELLO, Header, Version, hello, message, negotiate};
use super::wire::Reader;
use super::{flow_mod, groups, ports};
use crate::vswitch::flow::action::{Reason, TABLES};

/// Nicira's number among experimenters.
pub(crate) const NICIRA: u32 = 0x2320;
/// The Open Networking Foundation's.
pub(crate) const ONF: u32 = 0x4f4e_4600;

/// What an experimenter's message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Experimenter {
    /// Who defined it.
    pub(crate) vendor: u32,
    /// Which of theirs.
    pub(crate) subtype: u32,
}

/// `OFPT_*` that have one number in all versions.
mod kind {
    pub(super) const ERROR: u8 = 1;
    pub(super) const ECHO_REQUEST: u8 = 2;
    pub(super) const ECHO_REPLY: u8 = 3;
    pub(super) const EXPERIMENTER: u8 = 4;
    pub(super) const FEATURES_REQUEST: u8 = 5;
    pub(super) const FEATURES_REPLY: u8 = 6;
    pub(super) const GET_CONFIG_REQUEST: u8 = 7;
    pub(super) const GET_CONFIG_REPLY: u8 = 8;
    pub(super) const SET_CONFIG: u8 = 9;
    pub(super) const FLOW_REMOVED: u8 = 11;
    pub(super) const PORT_STATUS: u8 = 12;
    pub(super) const PACKET_OUT: u8 = 13;
    pub(super) const FLOW_MOD: u8 = 14;
}

/// `OFPT10_*` that were renumbered.
mod kind10 {
    pub(super) const PORT_MOD: u8 = 15;
    pub(super) const STATS_REQUEST: u8 = 16;
    pub(super) const BARRIER_REQUEST: u8 = 18;
    pub(super) const BARRIER_REPLY: u8 = 19;
    pub(super) const QUEUE_GET_CONFIG_REQUEST: u8 = 20;
    pub(super) const QUEUE_GET_CONFIG_REPLY: u8 = 21;
}

/// `OFPT_*` since OpenFlow 1.3.
mod kind13 {
    pub(super) const GROUP_MOD: u8 = 15;
    pub(super) const PORT_MOD: u8 = 16;
    pub(super) const TABLE_MOD: u8 = 17;
    pub(super) const MULTIPART_REQUEST: u8 = 18;
    pub(super) const BARRIER_REQUEST: u8 = 20;
    pub(super) const BARRIER_REPLY: u8 = 21;
    pub(super) const QUEUE_GET_CONFIG_REQUEST: u8 = 22;
    pub(super) const QUEUE_GET_CONFIG_REPLY: u8 = 23;
    pub(super) const ROLE_REQUEST: u8 = 24;
    pub(super) const ROLE_REPLY: u8 = 25;
    pub(super) const GET_ASYNC_REQUEST: u8 = 26;
    pub(super) const GET_ASYNC_REPLY: u8 = 27;
    pub(super) const SET_ASYNC: u8 = 28;
    pub(super) const METER_MOD: u8 = 29;
    pub(super) const BUNDLE_CONTROL: u8 = 33;
    pub(super) const BUNDLE_ADD: u8 = 34;
}

/// `NXT_*`.
mod nxt {
    pub(super) const ROLE_REQUEST: u32 = 10;
    pub(super) const ROLE_REPLY: u32 = 11;
    pub(super) const SET_FLOW_FORMAT: u32 = 12;
    pub(super) const FLOW_MOD: u32 = 13;
    pub(super) const FLOW_REMOVED: u32 = 14;
    pub(super) const FLOW_MOD_TABLE_ID: u32 = 15;
    pub(super) const SET_PACKET_IN_FORMAT: u32 = 16;
    pub(super) const FLOW_AGE: u32 = 18;
    pub(super) const SET_ASYNC_CONFIG: u32 = 19;
    pub(super) const SET_CONTROLLER_ID: u32 = 20;
    pub(super) const FLOW_MONITOR_CANCEL: u32 = 21;
    pub(super) const TLV_TABLE_REQUEST: u32 = 25;
    pub(super) const TLV_TABLE_REPLY: u32 = 26;
    pub(super) const CT_FLUSH_ZONE: u32 = 29;
    pub(super) const GROUP_MOD: u32 = 31;
    pub(super) const CT_FLUSH: u32 = 32;
}

/// `ONFT_*`: bundles, before OpenFlow had them.
mod onft {
    pub(super) const BUNDLE_CONTROL: u32 = 2300;
    pub(super) const BUNDLE_ADD: u32 = 2301;
}

/// `OFPCR_ROLE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// May do anything.
    Equal = 1,
    /// May do anything, and is the only one.
    Master = 2,
    /// May look.
    Slave = 3,
}

/// Which messages a connection wants by itself: bits by reason, as master or equal, and as slave.
#[derive(Clone, Copy)]
struct Async {
    packet_in: [u32; 2],
    port_status: [u32; 2],
    flow_removed: [u32; 2],
}

impl Default for Async {
    fn default() -> Async {
        // All but "invalid TTL", which must be asked for; a slave is told of ports only.
        Async { packet_in: [0x3b, 0], port_status: [7, 7], flow_removed: [0x3f, 0] }
    }
}

/// What the connections of a bridge share.
#[derive(Default)]
pub(crate) struct Shared {
    /// The newest number of an election of a master.
    generation: Option<u64>,
}

/// How a connection came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A controller we connect to, or that connects to a socket for controllers.
    Controller,
    /// The management socket: nothing is sent there unless it is asked for.
    Service,
}

/// One connection.
pub(crate) struct Session {
    ours: Vec<Version>,
    version: Option<Version>,
    origin: Origin,
    role: Role,
    /// It became the master: others are no longer.
    pub(crate) elected: bool,
    format: Format,
    miss_send_len: u16,
    controller_id: u16,
    by_table: bool,
    nicira_flows: bool,
    wants: Async,
    monitors: Monitors,
    pub(super) bundles: Bundles,
}

/// The connection must end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fatal {
    /// No version is spoken by both.
    #[error("no version of OpenFlow is spoken by both sides")]
    Version,
    /// The first message must be a hello.
    #[error("the first message is not a hello")]
    NoHello,
    /// It is over.
    #[error("the peer has no use for us: {0}")]
    Refused(String),
}

impl Session {
    /// A connection that has not begun; `ours` are the versions that may be spoken.
    pub(crate) fn new(ours: Vec<Version>, origin: Origin) -> Session {
        Session {
            ours,
            version: None,
            origin,
            role: Role::Equal,
            elected: false,
            format: Format::Standard,
            miss_send_len: if origin == Origin::Service { 0 } else { 128 },
            controller_id: 0,
            by_table: false,
            nicira_flows: false,
            wants: Async::default(),
            monitors: Monitors::default(),
            bundles: Bundles::default(),
        }
    }

    /// What is said first.
    pub(crate) fn begin(&self) -> Vec<u8> {
        hello(&self.ours)
    }

    /// The version, once it is agreed upon.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version
    }

    /// The role, as the database has it.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Another connection became the master.
    pub(crate) fn demote(&mut self) {
        if self.role == Role::Master {
            self.role = Role::Slave;
        }
    }

    /// Takes one whole message, and gives what is said to it.
    pub(crate) fn on(
        &mut self,
        bytes: &[u8],
        shared: &mut Shared,
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, Fatal> {
        let Some(header) = Header::of(bytes) else {
            return Err(Fatal::NoHello);
        };
        let Some(version) = self.version else {
            return self.first(header, bytes);
        };
        // A hello says which versions there are, not which is spoken.
        if header.kind == HELLO {
            return Ok(Vec::new());
        }
        let result = if header.version == version as u8 {
            self.dispatch(version, header, &bytes[HEADER..], shared, bridge)
        } else {
            Err(OfError::BRC_BAD_VERSION)
        };
        Ok(result.unwrap_or_else(|e| error(version, header.xid, e, bytes)))
    }

    fn first(&mut self, header: Header, bytes: &[u8]) -> Result<Vec<u8>, Fatal> {
        if header.kind == kind::ERROR {
            return Err(Fatal::Refused(format!("{:02x?}", &bytes[HEADER..bytes.len().min(HEADER + 32)])));
        }
        if header.kind != HELLO {
            return Err(Fatal::NoHello);
        }
        self.version = negotiate(&self.ours, bytes);
        self.version.map(|_| Vec::new()).ok_or(Fatal::Version)
    }

    fn dispatch(
        &mut self,
        version: Version,
        header: Header,
        body: &[u8],
        shared: &mut Shared,
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let reply = |kind: u8, body: &[u8]| {
            Ok(message(version, kind, header.xid, |w| {
                w.put(body);
            }))
        };
        match header.kind {
            kind::ECHO_REQUEST => reply(kind::ECHO_REPLY, body),
            kind::ECHO_REPLY | kind::ERROR => Ok(Vec::new()),
            kind::EXPERIMENTER => self.experimenter(version, header, body, shared, bridge),
            kind::FEATURES_REQUEST => Ok(features(version, header.xid, bridge)),
            kind::GET_CONFIG_REQUEST => {
                let length = self.miss_send_len;
                Ok(message(version, kind::GET_CONFIG_REPLY, header.xid, |w| {
                    w.u16(0).u16(length);
                }))
            }
            kind::SET_CONFIG => self.set_config(body),
            kind::PACKET_OUT => self.apply(bridge, Change::PacketOut(packets::decode_out(body, version)?)),
            kind::FLOW_MOD => {
                let change = flow_mod::decode(body, version, false, self.by_table)?;
                self.apply(bridge, Change::Flow(change))
            }
            other if version == Version::V10 => self.older(header, other, body, bridge),
            other => self.newer(version, header, other, body, shared, bridge),
        }
    }

    fn older(
        &mut self,
        header: Header,
        kind: u8,
        body: &[u8],
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let version = Version::V10;
        match kind {
            kind10::PORT_MOD => self.apply(bridge, port_mod(version, body)?),
            kind10::STATS_REQUEST => self.statistics(version, header, body, bridge),
            kind10::BARRIER_REQUEST => Ok(message(version, kind10::BARRIER_REPLY, header.xid, |_| {})),
            kind10::QUEUE_GET_CONFIG_REQUEST => {
                let port = Reader::new(body, OfError::BRC_BAD_LEN).u16()?;
                Ok(message(version, kind10::QUEUE_GET_CONFIG_REPLY, header.xid, |w| {
                    w.u16(port).zeros(6);
                }))
            }
            _ => Err(OfError::BRC_BAD_TYPE),
        }
    }

    fn newer(
        &mut self,
        version: Version,
        header: Header,
        kind: u8,
        body: &[u8],
        shared: &mut Shared,
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let xid = header.xid;
        match kind {
            kind13::GROUP_MOD => {
                let change = groups::decode_mod(body, version, version == Version::V15)?;
                self.apply(bridge, Change::Group(change))
            }
            kind13::PORT_MOD => self.apply(bridge, port_mod(version, body)?),
            kind13::TABLE_MOD => self.table_mod(body),
            kind13::MULTIPART_REQUEST => self.statistics(version, header, body, bridge),
            kind13::BARRIER_REQUEST => Ok(message(version, kind13::BARRIER_REPLY, xid, |_| {})),
            kind13::QUEUE_GET_CONFIG_REQUEST if version == Version::V13 => {
                let port = Reader::new(body, OfError::BRC_BAD_LEN).u32()?;
                Ok(message(version, kind13::QUEUE_GET_CONFIG_REPLY, xid, |w| {
                    w.u32(port).zeros(4);
                }))
            }
            kind13::ROLE_REQUEST => {
                let (role, generation) = self.role_request(body, shared)?;
                Ok(message(version, kind13::ROLE_REPLY, xid, |w| {
                    w.u32(role as u32).zeros(4).u64(generation);
                }))
            }
            kind13::GET_ASYNC_REQUEST => Ok(self.get_async(version, xid)),
            kind13::SET_ASYNC => self.set_async(version, body),
            kind13::METER_MOD => {
                self.may_change()?;
                bridge.meter_mod(&groups::decode_meter_mod(body)?).map(|()| Vec::new())
            }
            kind13::BUNDLE_CONTROL if version >= Version::V14 => {
                self.bundle_control(version, xid, body, false, bridge)
            }
            kind13::BUNDLE_ADD if version >= Version::V14 => self.bundle_add(version, xid, body),
            _ => Err(OfError::BRC_BAD_TYPE),
        }
    }

    fn experimenter(
        &mut self,
        version: Version,
        header: Header,
        body: &[u8],
        shared: &mut Shared,
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let (vendor, subtype) = (from.u32()?, from.u32()?);
        if vendor == ONF {
            return match subtype {
                onft::BUNDLE_CONTROL => self.bundle_control(version, header.xid, from.rest(), true, bridge),
                onft::BUNDLE_ADD => self.bundle_add(version, header.xid, from.rest()),
                _ => Err(OfError::BRC_BAD_EXP_TYPE),
            };
        }
        if vendor != NICIRA {
            return Err(OfError::BRC_BAD_EXPERIMENTER);
        }
        match subtype {
            nxt::ROLE_REQUEST => {
                // Nicira's numbers are one less than OpenFlow's.
                let role = from.u32()?.checked_add(1).ok_or(OfError::RRFC_BAD_ROLE)?;
                let role = self.take_role(role)? as u32 - 1;
                return Ok(message(version, kind::EXPERIMENTER, header.xid, |w| {
                    w.u32(NICIRA).u32(nxt::ROLE_REPLY).u32(role);
                }));
            }
            nxt::SET_FLOW_FORMAT => self.nicira_flows = from.u32()? != 0,
            nxt::FLOW_MOD => {
                let change = flow_mod::decode(from.rest(), version, true, self.by_table)?;
                return self.apply(bridge, Change::Flow(change));
            }
            nxt::FLOW_MOD_TABLE_ID => self.by_table = from.u8()? != 0,
            nxt::SET_PACKET_IN_FORMAT => {
                const ALL: [Format; 3] = [Format::Standard, Format::Nicira, Format::Nicira2];
                let number = from.u32()? as usize;
                self.format = ALL.get(number).copied().ok_or(OfError::BRC_BAD_EXP_TYPE)?;
            }
            nxt::FLOW_AGE => {}
            nxt::SET_ASYNC_CONFIG => self.wants = async_13(&mut from)?,
            nxt::SET_CONTROLLER_ID => {
                from.skip(6)?;
                self.controller_id = from.u16()?;
            }
            nxt::FLOW_MONITOR_CANCEL => self.monitors.cancel(from.u32()?)?,
            nxt::TLV_TABLE_REQUEST => {
                return Ok(message(version, kind::EXPERIMENTER, header.xid, |w| {
                    w.u32(NICIRA).u32(nxt::TLV_TABLE_REPLY).u32(0).u16(0).zeros(10);
                }));
            }
            nxt::CT_FLUSH_ZONE => {
                self.may_change()?;
                from.skip(6)?;
                bridge.flush_connections(Some(from.u16()?));
            }
            nxt::CT_FLUSH => self.flush(&mut from, bridge)?,
            nxt::GROUP_MOD if version == Version::V10 => {
                let change = groups::decode_mod(from.rest(), version, true)?;
                return self.apply(bridge, Change::Group(change));
            }
            _ => return Err(OfError::BRC_BAD_EXP_TYPE),
        }
        let _ = shared;
        Ok(Vec::new())
    }

    /// `NXT_CT_FLUSH`: of all connections, or of a zone; of single ones we cannot.
    fn flush(&mut self, from: &mut Reader<'_>, bridge: &mut dyn Ofproto) -> Result<(), OfError> {
        self.may_change()?;
        let (protocol, _family) = (from.u8()?, from.u8()?);
        from.skip(6)?;
        let mut zone = None;
        for (kind, content) in super::actions::properties(from.rest())? {
            let mut value = Reader::new(content, OfError::BPC_BAD_LEN);
            match kind {
                2 => zone = Some(value.u16()?),
                _ => return Err(OfError::BPC_BAD_TYPE),
            }
        }
        if protocol != 0 {
            return Err(OfError::BRC_BAD_EXP_TYPE);
        }
        bridge.flush_connections(zone);
        Ok(())
    }

    fn set_config(&mut self, body: &[u8]) -> Result<Vec<u8>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let (flags, length) = (from.u16()?, from.u16()?);
        // Fragments are matched as they come; nothing else can be had.
        if flags & 3 != 0 {
            return Err(OfError::SCFC_BAD_FLAGS);
        }
        self.miss_send_len = length;
        Ok(Vec::new())
    }

    fn table_mod(&mut self, body: &[u8]) -> Result<Vec<u8>, OfError> {
        self.may_change()?;
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let table = from.u8()?;
        from.skip(3)?;
        if table >= TABLES && table != 0xff {
            return Err(OfError::TMFC_BAD_TABLE);
        }
        // Tables neither evict nor tell of vacancy.
        if from.u32()? != 0 { Err(OfError::TMFC_BAD_CONFIG) } else { Ok(Vec::new()) }
    }

    fn may_change(&self) -> Result<(), OfError> {
        if self.role == Role::Slave { Err(OfError::BRC_IS_SLAVE) } else { Ok(()) }
    }

    fn apply(&mut self, bridge: &mut dyn Ofproto, change: Change) -> Result<Vec<u8>, OfError> {
        self.may_change()?;
        bridge.change(&[change]).map(|()| Vec::new()).map_err(|(_, e)| e)
    }

    fn statistics(
        &mut self,
        version: Version,
        header: Header,
        body: &[u8],
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let request = Request::parse(body, version)?;
        if multipart::is_monitor(request.kind, version) {
            return self.monitors.request(request.body, version, header.xid, bridge);
        }
        multipart::answer(&request, version, header.xid, bridge)
    }

    fn role_request(&mut self, body: &[u8], shared: &mut Shared) -> Result<(Role, u64), OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let role = from.u32()?;
        from.skip(4)?;
        let generation = from.u64()?;
        if role == Role::Master as u32 || role == Role::Slave as u32 {
            // Numbers wrap around (OpenFlow 1.3.5 §6.3.4).
            if shared.generation.is_some_and(|newest| (generation.wrapping_sub(newest) as i64) < 0) {
                return Err(OfError::RRFC_STALE);
            }
            shared.generation = Some(generation);
        }
        let role = if role == 0 { self.role } else { self.take_role(role)? };
        Ok((role, shared.generation.unwrap_or(u64::MAX)))
    }

    fn take_role(&mut self, number: u32) -> Result<Role, OfError> {
        self.role = [Role::Equal, Role::Master, Role::Slave]
            .into_iter()
            .find(|r| *r as u32 == number)
            .ok_or(OfError::RRFC_BAD_ROLE)?;
        self.elected = self.role == Role::Master;
        Ok(self.role)
    }

    fn get_async(&self, version: Version, xid: u32) -> Vec<u8> {
        let Async { packet_in, port_status, flow_removed } = self.wants;
        message(version, kind13::GET_ASYNC_REPLY, xid, |w| {
            if version == Version::V13 {
                for bits in [packet_in, port_status, flow_removed].concat() {
                    w.u32(bits);
                }
                return;
            }
            // Properties: of a slave, then of a master, for each kind of message.
            for (kind, bits) in [(0, packet_in), (2, port_status), (4, flow_removed)] {
                w.u16(kind).u16(8).u32(bits[1]).u16(kind + 1).u16(8).u32(bits[0]);
            }
        })
    }

    fn set_async(&mut self, version: Version, body: &[u8]) -> Result<Vec<u8>, OfError> {
        if version == Version::V13 {
            self.wants = async_13(&mut Reader::new(body, OfError::BRC_BAD_LEN))?;
            return Ok(Vec::new());
        }
        let mut wants = self.wants;
        for (kind, content) in super::actions::properties(body)? {
            let bits = Reader::new(content, OfError::BPC_BAD_LEN).u32()?;
            let slave = usize::from(kind % 2 == 0);
            match kind {
                0 | 1 => wants.packet_in[slave] = bits,
                2 | 3 => wants.port_status[slave] = bits,
                4 | 5 => wants.flow_removed[slave] = bits,
                6..=11 => {}
                _ => return Err(OfError::BPC_BAD_TYPE),
            }
        }
        self.wants = wants;
        Ok(Vec::new())
    }

    /// The message that tells of an event, if this connection wants it. `own`: the xid of the request that caused it,
    /// if it came from here.
    pub(crate) fn tell(&self, event: &Event, own: Option<u32>) -> Vec<u8> {
        let Some(version) = self.version else {
            return Vec::new();
        };
        match event {
            Event::Flow(change, stats) => {
                let mut out = self.monitors.tell(version, *change, stats, own).unwrap_or_default();
                if let FlowChange::Deleted(reason) = change {
                    let wanted = self.wanted(self.wants.flow_removed, *reason as u32);
                    if stats.flow.flags.send_flow_rem && wanted {
                        out.extend(
                            self.removed(version, |w, nicira| {
                                put_removed(w, version, nicira, *reason, stats)
                            }),
                        );
                    }
                }
                out
            }
            Event::Port(change, port) if self.wanted(self.wants.port_status, *change as u32) => {
                message(version, kind::PORT_STATUS, 0, |w| {
                    w.u8(*change as u8).zeros(7);
                    ports::put_port(w, version, port);
                })
            }
            Event::PacketIn(packet) if self.takes(packet) => {
                let missed = packet.reason == Reason::NoMatch && packet.max_len == u16::MAX;
                let max_len = if missed { self.miss_send_len } else { packet.max_len };
                packets::encode_in(version, self.format, packet, max_len)
            }
            _ => Vec::new(),
        }
    }

    fn removed(&self, version: Version, body: impl FnOnce(&mut super::wire::Writer, bool)) -> Vec<u8> {
        if version == Version::V10 && self.nicira_flows {
            return message(version, kind::EXPERIMENTER, 0, |w| {
                w.u32(NICIRA).u32(nxt::FLOW_REMOVED);
                body(w, true);
            });
        }
        message(version, kind::FLOW_REMOVED, 0, |w| body(w, false))
    }

    fn takes(&self, packet: &PacketIn) -> bool {
        packet.controller == self.controller_id && self.wanted(self.wants.packet_in, packet.reason as u32)
    }

    fn wanted(&self, bits: [u32; 2], reason: u32) -> bool {
        let asked = self.origin == Origin::Controller || self.miss_send_len != 0;
        asked && bits[usize::from(self.role == Role::Slave)] >> reason & 1 != 0
    }
}

fn async_13(from: &mut Reader<'_>) -> Result<Async, OfError> {
    let mut pair = || Ok::<_, OfError>([from.u32()?, from.u32()?]);
    Ok(Async { packet_in: pair()?, port_status: pair()?, flow_removed: pair()? })
}

/// `OFPT_ERROR`, with the beginning of what was wrong.
pub(crate) fn error(version: Version, xid: u32, error: OfError, request: &[u8]) -> Vec<u8> {
    const SHOWN: usize = 1024;
    debug!("openflow: refused: {error}");
    message(version, kind::ERROR, xid, |w| {
        w.put(&error.encode(version)).put(&request[..request.len().min(SHOWN)]);
    })
}

fn features(version: Version, xid: u32, bridge: &dyn Ofproto) -> Vec<u8> {
    /// Statistics of flows, tables, ports, queues; in 1.0, addresses in ARP are matched.
    const OLDER: u32 = 0xc7;
    /// Statistics of flows, tables, ports, groups, queues.
    const NEWER: u32 = 0x4f;
    message(version, kind::FEATURES_REPLY, xid, |w| {
        w.u64(bridge.datapath_id()).u32(0).u8(TABLES).zeros(3);
        if version > Version::V10 {
            w.u32(NEWER).u32(0);
            return;
        }
        w.u32(OLDER).u32(0xfff);
        for port in bridge.ports() {
            ports::put_port(w, version, &port);
        }
    })
}

fn port_mod(version: Version, body: &[u8]) -> Result<Change, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    if version == Version::V10 {
        let number = crate::vswitch::flow::action::port_from_16(from.u16()?);
        let mac = from.array()?;
        return Ok(Change::Port { number, mac, config: from.u32()?, mask: from.u32()? });
    }
    let number = from.u32()?;
    from.skip(4)?;
    let mac = from.array()?;
    from.skip(2)?;
    Ok(Change::Port { number, mac, config: from.u32()?, mask: from.u32()? })
}

impl Session {
    pub(super) fn apply_all(
        &mut self,
        bridge: &mut dyn Ofproto,
        changes: &[Change],
    ) -> Result<(), (usize, OfError)> {
        self.may_change().map_err(|e| (0, e))?;
        bridge.change(changes)
    }

    /// Reads a message that may be part of a bundle.
    pub(super) fn bundled(&self, version: Version, header: Header, body: &[u8]) -> Result<Change, OfError> {
        match header.kind {
            kind::FLOW_MOD => flow_mod::decode(body, version, false, self.by_table).map(Change::Flow),
            kind13::GROUP_MOD if version > Version::V10 => {
                groups::decode_mod(body, version, version == Version::V15).map(Change::Group)
            }
            kind13::PORT_MOD if version > Version::V10 => port_mod(version, body),
            kind::PACKET_OUT => packets::decode_out(body, version).map(Change::PacketOut),
            _ => Err(OfError::BFC_MSG_UNSUP),
        }
    }
}
