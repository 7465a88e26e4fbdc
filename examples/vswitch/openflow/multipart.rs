//! Answers in parts (OpenFlow 1.3.5 §7.3.5): requests for statistics and descriptions, answered.

use super::error::OfError;
use super::flow_mod::decode_select;
use super::flow_stats::{put_aggregate, put_flow};
use super::ofproto::Ofproto;
use super::session::{Experimenter, NICIRA, ONF};
use super::version::Version;
use super::wire::{Reader, Writer};
use super::{groups, ports};
use crate::vswitch::flow::action::port_from_16;

/// A part is closed when it is longer than this.
const PART: usize = 60_000;
/// The longest message.
const LONGEST: usize = 65_535;
const REPLY_MORE: u16 = 1;
const REQUEST_MORE: u16 = 1;
const EXPERIMENTER: u16 = 0xffff;
const ANY_PORT: u32 = u32::MAX;

/// `OFPMP_*`.
mod kind {
    pub(super) const DESC: u16 = 0;
    pub(super) const FLOW: u16 = 1;
    pub(super) const AGGREGATE: u16 = 2;
    pub(super) const TABLE: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const QUEUE: u16 = 5;
    pub(super) const GROUP: u16 = 6;
    pub(super) const GROUP_DESC: u16 = 7;
    pub(super) const GROUP_FEATURES: u16 = 8;
    pub(super) const METER: u16 = 9;
    pub(super) const METER_CONFIG: u16 = 10;
    pub(super) const METER_FEATURES: u16 = 11;
    pub(super) const TABLE_FEATURES: u16 = 12;
    pub(super) const PORT_DESC: u16 = 13;
    pub(super) const TABLE_DESC: u16 = 14;
    pub(super) const QUEUE_DESC: u16 = 15;
    pub(super) const FLOW_MONITOR: u16 = 16;
}

/// `NXST_*`.
mod nxst {
    pub(super) const FLOW: u32 = 0;
    pub(super) const AGGREGATE: u32 = 1;
    pub(super) const FLOW_MONITOR: u32 = 2;
    pub(super) const GROUP: u32 = 7;
    pub(super) const GROUP_DESC: u32 = 8;
    pub(super) const GROUP_FEATURES: u32 = 9;
}

/// A request, without what is the same in all.
pub(crate) struct Request<'a> {
    /// `OFPMP_*`, or an experimenter's.
    pub(crate) kind: Kind,
    /// What follows.
    pub(crate) body: &'a [u8],
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `OFPMP_*`.
    Standard(u16),
    /// An experimenter's.
    Extension(Experimenter),
}

impl<'a> Request<'a> {
    /// Reads a request.
    pub(crate) fn parse(body: &'a [u8], version: Version) -> Result<Request<'a>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let (kind, flags) = (from.u16()?, from.u16()?);
        if version > Version::V10 {
            from.skip(4)?;
        }
        if flags & REQUEST_MORE != 0 {
            return Err(OfError::BRC_MULTIPART_OVERFLOW);
        }
        let kind = if kind == EXPERIMENTER {
            let (vendor, subtype) = (from.u32()?, from.u32()?);
            // Nicira's have their padding here in 1.0.
            from.skip(if version == Version::V10 { 4 } else { 0 })?;
            Kind::Extension(Experimenter { vendor, subtype })
        } else {
            Kind::Standard(kind)
        };
        Ok(Request { kind, body: from.rest() })
    }
}

/// Collects the entries of an answer into messages.
pub(crate) struct Parts {
    version: Version,
    kind: Kind,
    xid: u32,
    full: Vec<Vec<u8>>,
    open: Writer,
    begin: usize,
}

impl Parts {
    /// An answer of this kind, still empty.
    pub(crate) fn new(version: Version, kind: Kind, xid: u32) -> Parts {
        let mut parts = Parts { version, kind, xid, full: Vec::new(), open: Writer::default(), begin: 0 };
        parts.start();
        parts
    }

    fn start(&mut self) {
        let mut w = Writer::default();
        let reply = if self.version == Version::V10 { 17 } else { 19 };
        w.u8(self.version as u8).u8(reply).u16(0).u32(self.xid);
        let number = match self.kind {
            Kind::Standard(n) => n,
            Kind::Extension(_) => EXPERIMENTER,
        };
        w.u16(number).u16(0);
        if self.version > Version::V10 {
            w.zeros(4);
        }
        if let Kind::Extension(e) = self.kind {
            w.u32(e.vendor).u32(e.subtype).zeros(if self.version == Version::V10 { 4 } else { 0 });
        }
        self.begin = w.at();
        self.open = w;
    }

    /// Adds an entry. One that fits in no message is left out.
    pub(crate) fn entry(&mut self, put: impl FnOnce(&mut Writer)) {
        if self.open.at() > PART {
            self.close(REPLY_MORE);
            self.start();
        }
        let at = self.open.at();
        put(&mut self.open);
        if self.open.at() > LONGEST {
            let whole = std::mem::take(&mut self.open).finish();
            let entry = &whole[at..];
            if at > self.begin && self.begin + entry.len() <= LONGEST {
                self.open.put(&whole[..at]);
                self.close(REPLY_MORE);
                self.start();
                self.open.put(entry);
            } else {
                self.open.put(&whole[..at]);
            }
        }
    }

    fn close(&mut self, flags: u16) {
        let mut w = std::mem::take(&mut self.open);
        w.length(2, 0);
        w.set_u16(10, flags);
        self.full.push(w.finish());
    }

    /// All messages, in order.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.close(0);
        self.full.concat()
    }
}

/// Answers a request; flow monitors are not among them.
pub(crate) fn answer(
    request: &Request<'_>,
    version: Version,
    xid: u32,
    bridge: &dyn Ofproto,
) -> Result<Vec<u8>, OfError> {
    let mut parts = Parts::new(version, request.kind, xid);
    let newest = version == Version::V15;
    match (request.kind, version) {
        (Kind::Standard(kind::DESC), _) => parts.entry(|w| put_desc(w, bridge)),
        (Kind::Standard(kind::FLOW), _) => flows(&mut parts, request, version, false, bridge)?,
        (Kind::Standard(kind::AGGREGATE), _) => {
            let found = bridge.flows(&decode_select(request.body, version, false)?);
            parts.entry(|w| put_aggregate(w, version, &found));
        }
        (Kind::Standard(kind::TABLE), _) => {
            for (id, stats) in bridge.table_stats().iter().enumerate() {
                parts.entry(|w| ports::put_table(w, version, id as u8, stats));
            }
        }
        (Kind::Standard(kind::PORT), _) => port_stats(&mut parts, request.body, version, bridge)?,
        (Kind::Standard(kind::PORT_DESC), _) => port_descs(&mut parts, request.body, version, bridge)?,
        (Kind::Standard(kind::QUEUE), _) => {}
        (Kind::Standard(kind::QUEUE_DESC), Version::V14 | Version::V15) => {}
        (Kind::Standard(kind::GROUP), v) if v > Version::V10 => {
            group_stats(&mut parts, request.body, bridge)?
        }
        (Kind::Standard(kind::GROUP_DESC), v) if v > Version::V10 => {
            group_descs(&mut parts, request.body, version, newest, bridge)?;
        }
        (Kind::Standard(kind::GROUP_FEATURES), v) if v > Version::V10 => parts.entry(groups::put_features),
        (Kind::Standard(k @ (kind::METER | kind::METER_CONFIG)), v) if v > Version::V10 => {
            meters(&mut parts, request.body, k == kind::METER, bridge)?;
        }
        (Kind::Standard(kind::METER_FEATURES), v) if v > Version::V10 => {
            parts.entry(groups::put_meter_features)
        }
        (Kind::Standard(kind::TABLE_FEATURES), v) if v > Version::V10 => {
            if !request.body.is_empty() {
                return Err(OfError::TFFC_EPERM);
            }
            (0..bridge.table_stats().len())
                .for_each(|id| parts.entry(|w| ports::put_features(w, version, id as u8)));
        }
        (Kind::Standard(kind::TABLE_DESC), Version::V14 | Version::V15) => {
            let tables = bridge.table_stats().len();
            (0..tables).for_each(|id| {
                parts.entry(|w| {
                    w.u16(8).u8(id as u8).zeros(1).u32(0);
                })
            });
        }
        (Kind::Extension(Experimenter { vendor: NICIRA, subtype }), _) => {
            nicira(&mut parts, request, version, subtype, bridge)?;
        }
        (Kind::Extension(_), _) => return Err(OfError::BRC_BAD_EXPERIMENTER),
        _ => return Err(OfError::BRC_BAD_MULTIPART),
    }
    Ok(parts.finish())
}

fn nicira(
    parts: &mut Parts,
    request: &Request<'_>,
    version: Version,
    subtype: u32,
    bridge: &dyn Ofproto,
) -> Result<(), OfError> {
    match subtype {
        nxst::FLOW => flows(parts, request, version, true, bridge)?,
        nxst::AGGREGATE => {
            let found = bridge.flows(&decode_select(request.body, version, true)?);
            parts.entry(|w| put_aggregate(w, Version::V10, &found));
        }
        nxst::GROUP => group_stats(parts, request.body, bridge)?,
        nxst::GROUP_DESC => group_descs(parts, request.body, version, true, bridge)?,
        nxst::GROUP_FEATURES => parts.entry(groups::put_features),
        _ => return Err(OfError::BRC_BAD_EXP_TYPE),
    }
    Ok(())
}

/// Whether a request is for a flow monitor.
pub(crate) fn is_monitor(kind: Kind, version: Version) -> bool {
    match kind {
        Kind::Standard(kind::FLOW_MONITOR) => version >= Version::V14,
        Kind::Extension(e) => {
            e == Experimenter { vendor: NICIRA, subtype: nxst::FLOW_MONITOR } && version == Version::V10
        }
        Kind::Standard(_) => false,
    }
}

/// The kind of a flow monitor's answers.
pub(crate) fn monitor_kind(version: Version) -> Kind {
    match version {
        Version::V10 => Kind::Extension(Experimenter { vendor: NICIRA, subtype: nxst::FLOW_MONITOR }),
        Version::V13 => Kind::Extension(Experimenter { vendor: ONF, subtype: 1870 }),
        Version::V14 | Version::V15 => Kind::Standard(kind::FLOW_MONITOR),
    }
}

fn put_desc(out: &mut Writer, bridge: &dyn Ofproto) {
    const LONG: usize = 256;
    out.text("Hotring", LONG)
        .text("vswitch", LONG)
        .text(env!("CARGO_PKG_VERSION"), LONG)
        .text("None", 32)
        .text(bridge.name(), LONG);
}

fn flows(
    parts: &mut Parts,
    request: &Request<'_>,
    version: Version,
    nicira: bool,
    bridge: &dyn Ofproto,
) -> Result<(), OfError> {
    for flow in bridge.flows(&decode_select(request.body, version, nicira)?) {
        parts.entry(|w| put_flow(w, version, nicira, &flow));
    }
    Ok(())
}

/// The port that a request names; nothing for all.
fn named_port(body: &[u8], version: Version) -> Result<Option<u32>, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let number = if version == Version::V10 { port_from_16(from.u16()?) } else { from.u32()? };
    Ok((number != ANY_PORT).then_some(number))
}

fn port_stats(parts: &mut Parts, body: &[u8], version: Version, bridge: &dyn Ofproto) -> Result<(), OfError> {
    let wanted = named_port(body, version)?;
    for port in ordered_ports(bridge).into_iter().filter(|p| wanted.is_none_or(|n| n == p.number)) {
        if let Some(stats) = bridge.port_stats(port.number) {
            parts.entry(|w| ports::put_stats(w, version, port.number, &stats));
        }
    }
    Ok(())
}

/// All ports, as a bridge lists them.
fn ordered_ports(bridge: &dyn Ofproto) -> Vec<super::ofproto::PortDesc> {
    bridge.ports()
}

fn port_descs(parts: &mut Parts, body: &[u8], version: Version, bridge: &dyn Ofproto) -> Result<(), OfError> {
    let wanted = if version == Version::V15 { named_port(body, version)? } else { None };
    for port in ordered_ports(bridge).iter().filter(|p| wanted.is_none_or(|n| n == p.number)) {
        parts.entry(|w| ports::put_port(w, version, port));
    }
    Ok(())
}

/// The group or meter that a request names; nothing for all.
fn named(body: &[u8], all: u32) -> Result<Option<u32>, OfError> {
    let id = Reader::new(body, OfError::BRC_BAD_LEN).u32()?;
    Ok((id != all).then_some(id))
}

fn group_stats(parts: &mut Parts, body: &[u8], bridge: &dyn Ofproto) -> Result<(), OfError> {
    let wanted = named(body, groups::ALL_GROUPS)?;
    for (group, stats) in bridge.groups().iter().filter(|(g, _)| wanted.is_none_or(|n| n == g.id)) {
        parts.entry(|w| groups::put_stats(w, group.id, stats));
    }
    Ok(())
}

fn group_descs(
    parts: &mut Parts,
    body: &[u8],
    version: Version,
    newer: bool,
    bridge: &dyn Ofproto,
) -> Result<(), OfError> {
    let wanted = if newer { named(body, groups::ALL_GROUPS)? } else { None };
    for (group, _) in bridge.groups().iter().filter(|(g, _)| wanted.is_none_or(|n| n == g.id)) {
        parts.entry(|w| groups::put_desc(w, version, newer, group));
    }
    Ok(())
}

fn meters(parts: &mut Parts, body: &[u8], counters: bool, bridge: &dyn Ofproto) -> Result<(), OfError> {
    let wanted = named(body, groups::ALL_METERS)?;
    let found: Vec<_> =
        bridge.meters().into_iter().filter(|(m, _)| wanted.is_none_or(|n| n == m.id)).collect();
    if wanted.is_some() && found.is_empty() {
        return Err(OfError::MMFC_UNKNOWN_METER);
    }
    for (meter, stats) in &found {
        parts.entry(|w| {
            if counters { groups::put_meter_stats(w, meter.id, stats) } else { groups::put_meter(w, meter) }
        });
    }
    Ok(())
}
