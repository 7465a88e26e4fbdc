//! Flow monitors: a controller is told of changes of flows (OpenFlow 1.4 §7.3.5.17; `NXST_FLOW_MONITOR` in 1.0).

use std::collections::BTreeMap;

use super::actions::{Context, put_instructions};
use super::error::OfError;
use super::flow_mod::nx_match;
use super::flow_stats::put_nx_match;
use super::multipart::{Parts, monitor_kind};
use super::ofproto::{FlowChange, FlowStats, Ofproto, Select};
use super::oxm::{self, Cookie};
use super::version::Version;
use super::wire::{Reader, Writer};
use crate::vswitch::flow::action::{Action, Flow, port, port_from_16};

/// How many a connection may have.
const MONITORS: usize = 256;

/// What is wanted, in the numbers of OpenFlow 1.4.
mod flag {
    pub(super) const INITIAL: u16 = 1;
    pub(super) const ADD: u16 = 2;
    pub(super) const REMOVED: u16 = 4;
    pub(super) const MODIFY: u16 = 8;
    pub(super) const INSTRUCTIONS: u16 = 16;
    pub(super) const NO_ABBREV: u16 = 32;
    pub(super) const ONLY_OWN: u16 = 64;
}

struct Monitor {
    select: Select,
    flags: u16,
}

/// The monitors of one connection.
#[derive(Default)]
pub(crate) struct Monitors(BTreeMap<u32, Monitor>);

/// What a monitor is told.
enum What {
    Initial,
    Change(FlowChange),
}

impl Monitors {
    /// Takes a request, and answers with the flows that are there, where that is wanted.
    pub(crate) fn request(
        &mut self,
        body: &[u8],
        version: Version,
        xid: u32,
        bridge: &dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let mut made = Vec::new();
        while !from.is_empty() {
            let (id, command, monitor) =
                if version == Version::V10 { of_10(&mut from)? } else { of_14(&mut from)? };
            match command {
                0 if self.0.contains_key(&id) => return Err(OfError::MOFC_MONITOR_EXISTS),
                1 if !self.0.contains_key(&id) => return Err(OfError::MOFC_UNKNOWN_MONITOR),
                0 | 1 => made.push((id, monitor)),
                2 => self.cancel(id)?,
                _ => return Err(OfError::MOFC_BAD_COMMAND),
            }
        }
        if self.0.len() + made.len() > MONITORS {
            return Err(OfError::MOFC_BAD_FLAGS);
        }
        let mut parts = Parts::new(version, monitor_kind(version), xid);
        for (id, monitor) in made {
            if monitor.flags & flag::INITIAL != 0 {
                for stats in bridge.flows(&monitor.select) {
                    parts.entry(|w| put_full(w, version, monitor.flags, &What::Initial, &stats.flow));
                }
            }
            self.0.insert(id, monitor);
        }
        Ok(parts.finish())
    }

    /// Forgets a monitor.
    pub(crate) fn cancel(&mut self, id: u32) -> Result<(), OfError> {
        self.0.remove(&id).map(|_| ()).ok_or(OfError::MOFC_UNKNOWN_MONITOR)
    }

    /// The message that tells of a change, if a monitor wants it. `own`: the request that made it came from here.
    pub(crate) fn tell(
        &self,
        version: Version,
        change: FlowChange,
        stats: &FlowStats,
        own: Option<u32>,
    ) -> Option<Vec<u8>> {
        let bit = match change {
            FlowChange::Added => flag::ADD,
            FlowChange::Deleted(_) => flag::REMOVED,
            FlowChange::Modified => flag::MODIFY,
        };
        let wants = |m: &&Monitor| {
            m.flags & bit != 0
                && (own.is_some() || m.flags & flag::ONLY_OWN == 0)
                && m.select.selects(&stats.flow)
        };
        let wanted =
            self.0.values().filter(wants).fold(None, |f: Option<u16>, m| Some(f.unwrap_or(0) | m.flags))?;
        let mut parts = Parts::new(version, monitor_kind(version), 0);
        match own {
            Some(xid) if wanted & flag::NO_ABBREV == 0 => {
                let abbreviated = if version == Version::V10 { 3 } else { 4 };
                parts.entry(|w| {
                    w.u16(8).u16(abbreviated).u32(xid);
                });
            }
            _ => parts.entry(|w| put_full(w, version, wanted, &What::Change(change), &stats.flow)),
        }
        Some(parts.finish())
    }
}

impl Select {
    /// Whether a flow is among those that are asked for.
    pub fn selects(&self, flow: &Flow) -> bool {
        self.table.is_none_or(|t| t == flow.table)
            && self.cookie.matches(flow.cookie)
            && flow.matching.within(&self.matching)
            && self.out_port.is_none_or(|p| outputs_to(&flow.actions, p))
            && self.out_group.is_none_or(|g| uses_group(&flow.actions, g))
    }
}

/// Whether one of the actions outputs to a port.
pub fn outputs_to(actions: &[Action], to: u32) -> bool {
    actions.iter().any(|a| match a {
        Action::Output { port, .. } | Action::OutputTrunc { port, .. } | Action::Enqueue { port, .. } => {
            *port == to
        }
        Action::Controller(_) => to == port::CONTROLLER,
        Action::WriteActions(list) | Action::Clone(list) => outputs_to(list, to),
        _ => false,
    })
}

/// Whether one of the actions uses a group.
pub fn uses_group(actions: &[Action], group: u32) -> bool {
    actions.iter().any(|a| match a {
        Action::Group(id) => *id == group,
        Action::WriteActions(list) | Action::Clone(list) => uses_group(list, group),
        _ => false,
    })
}

fn of_10(from: &mut Reader<'_>) -> Result<(u32, u8, Monitor), OfError> {
    let (id, raw) = (from.u32()?, from.u16()?);
    let out_port = port_from_16(from.u16()?);
    let length = usize::from(from.u16()?);
    let table = from.u8()?;
    from.skip(5)?;
    let (matching, cookie) = nx_match(from, length)?;
    // Bit 5 asks for own changes in full.
    if raw >> 6 != 0 || raw & 0xf == 0 {
        return Err(OfError::MOFC_BAD_FLAGS);
    }
    let select = Select {
        table: (table != 0xff).then_some(table),
        matching,
        cookie: cookie.unwrap_or_default(),
        out_port: (out_port != port::ANY).then_some(out_port),
        out_group: None,
    };
    // Nicira's numbers are those of OpenFlow 1.4 but for the meaning of bit 5, which is the same here.
    Ok((id, 0, Monitor { select, flags: raw }))
}

fn of_14(from: &mut Reader<'_>) -> Result<(u32, u8, Monitor), OfError> {
    let (id, out_port, out_group, flags) = (from.u32()?, from.u32()?, from.u32()?, from.u16()?);
    let (table, command) = (from.u8()?, from.u8()?);
    let matching = oxm::decode_ofp(from)?;
    if flags >> 7 != 0 {
        return Err(OfError::MOFC_BAD_FLAGS);
    }
    let any = |n: u32| (n != u32::MAX).then_some(n);
    let table = (table != 0xff).then_some(table);
    let select = Select {
        table,
        matching,
        cookie: Cookie::default(),
        out_port: any(out_port),
        out_group: any(out_group),
    };
    Ok((id, command, Monitor { select, flags }))
}

fn put_full(out: &mut Writer, version: Version, flags: u16, what: &What, flow: &Flow) {
    let from = out.at();
    let reason = match what {
        What::Change(FlowChange::Deleted(reason)) => *reason as u8,
        _ => 0,
    };
    let deleted = matches!(what, What::Change(FlowChange::Deleted(_)));
    let with_actions = flags & flag::INSTRUCTIONS != 0 && !deleted;
    let number = match what {
        What::Initial => 0,
        What::Change(FlowChange::Added) => u16::from(version > Version::V10),
        What::Change(FlowChange::Deleted(_)) => 1 + u16::from(version > Version::V10),
        What::Change(FlowChange::Modified) => 2 + u16::from(version > Version::V10),
    };
    out.u16(0).u16(number);
    if version == Version::V10 {
        out.u16(reason.into()).u16(flow.priority).u16(flow.idle_timeout).u16(flow.hard_timeout);
        let length_at = out.at();
        out.u16(0).u8(flow.table).zeros(1).u64(flow.cookie);
        put_nx_match(out, length_at, |w| oxm::encode(w, Version::V10, &flow.matching));
    } else {
        out.u8(flow.table).u8(reason).u16(flow.idle_timeout).u16(flow.hard_timeout).u16(flow.priority);
        out.zeros(4).u64(flow.cookie);
        oxm::encode_ofp(out, version, &flow.matching);
    }
    if with_actions {
        put_instructions(out, Context::new(version, &flow.matching), &flow.actions);
    }
    out.length(from, from);
}
