//! A bridge of the [`Switch`], as OpenFlow sees it.

use std::collections::HashMap;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::error::OfError;
use super::ofproto::{
    self, Change, FlowChange, MeterMod, Ofproto, PortChange, PortDesc, Removal, Select, bucket,
};
use super::server::Bridge;
use crate::vswitch::bridge::{
    self, ALL, ALL_TABLES, Event, FlowError, FlowFilter, FlowMod, GroupCommand, GroupError, MeterError,
    Removed,
};
use crate::vswitch::flow::action::{Bucket, Group, GroupKind, Meter, port};
use crate::vswitch::flow::fields::Field;
use crate::vswitch::flow::key::{Mask, PACKET_WORDS};
use crate::vswitch::flow::matching::Match;
use crate::vswitch::runner::Runner;

/// What happened, by bridge, until the connections of the bridge are told.
pub(crate) struct Post {
    receiver: Receiver<Event>,
    letters: HashMap<String, Vec<ofproto::Event>>,
}

impl Post {
    /// Takes letters from now on.
    pub(crate) fn new(runner: &Runner) -> Post {
        Post { receiver: runner.switch().subscribe(), letters: HashMap::new() }
    }

    /// Takes what came.
    pub(crate) fn collect(&mut self, runner: &Runner) {
        for event in self.receiver.try_iter() {
            if let Some((bridge, event)) = translate(event, runner) {
                self.letters.entry(bridge).or_default().push(event);
            }
        }
    }
}

/// One bridge.
pub(crate) struct Adapter<'a> {
    /// The bridge's name.
    pub(crate) name: String,
    /// Devices and bridges.
    pub(crate) runner: &'a Runner,
    /// What happened.
    pub(crate) post: &'a mut Post,
}

fn translate(event: Event, runner: &Runner) -> Option<(String, ofproto::Event)> {
    Some(match event {
        Event::PacketIn(packet) => {
            let mut mask = Mask::default();
            mask.words[PACKET_WORDS..].fill(u64::MAX);
            mask.mark(Field::InPortOxm);
            for field in [
                Field::TunId,
                Field::TunSrc,
                Field::TunDst,
                Field::CtState,
                Field::CtZone,
                Field::CtMark,
                Field::PktMark,
            ] {
                mask.mark(field);
            }
            // What is zero says nothing.
            for (bits, value) in mask.words.iter_mut().zip(packet.flow.words) {
                *bits &= if value >> 32 == 0 { 0xffff_ffff } else { u64::MAX }
                    & if value as u32 == 0 { !0xffff_ffff } else { u64::MAX };
            }
            mask.words[crate::vswitch::flow::key::word::SET] = 0;
            mask.mark(Field::InPortOxm);
            let made = ofproto::PacketIn {
                frame: packet.data.clone(),
                total: packet.size,
                reason: packet.reason,
                table: packet.table,
                cookie: packet.cookie,
                metadata: Match::new(&packet.flow, &mask),
                controller: packet.controller,
                userdata: packet.userdata.clone(),
                max_len: u16::MAX,
            };
            (packet.bridge.clone(), ofproto::Event::PacketIn(made))
        }
        Event::FlowRemoved { bridge, flow, reason } => {
            let reason = match reason {
                Removed::IdleTimeout => Removal::IdleTimeout,
                Removed::HardTimeout => Removal::HardTimeout,
                Removed::Delete => Removal::Delete,
                Removed::GroupDelete => Removal::GroupDelete,
                Removed::MeterDelete => Removal::MeterDelete,
                Removed::Eviction => Removal::Eviction,
            };
            (bridge, ofproto::Event::Flow(FlowChange::Deleted(reason), stats((*flow).clone())))
        }
        Event::FlowChanged { bridge, flow, added } => {
            let zero = Duration::ZERO;
            let flow = (*flow).clone();
            let stats = ofproto::FlowStats {
                flow,
                duration: zero,
                idle: zero,
                unchanged: zero,
                packets: 0,
                bytes: 0,
            };
            (
                bridge,
                ofproto::Event::Flow(if added { FlowChange::Added } else { FlowChange::Modified }, stats),
            )
        }
        Event::Port { bridge, number, name, change } => {
            let gone = PortDesc { number, name, mac: [0; 6], config: 0, state: 0, speed_kbps: 0 };
            let port = ports(runner, &bridge).into_iter().find(|p| p.number == number).unwrap_or(gone);
            let change = match change {
                bridge::PortChange::Add => PortChange::Added,
                bridge::PortChange::Delete => PortChange::Removed,
                bridge::PortChange::Modify => PortChange::Modified,
            };
            (bridge, ofproto::Event::Port(change, port))
        }
    })
}

fn stats(s: bridge::FlowStats) -> ofproto::FlowStats {
    ofproto::FlowStats {
        flow: s.flow,
        duration: Duration::from_millis(s.duration_ms),
        idle: Duration::from_millis(s.idle_ms),
        unchanged: Duration::from_millis(s.hard_ms),
        packets: s.packets,
        bytes: s.bytes,
    }
}

fn filter(select: &Select) -> FlowFilter {
    FlowFilter {
        table: select.table.unwrap_or(ALL_TABLES),
        matching: select.matching,
        cookie: (select.cookie.value, select.cookie.mask),
        out_port: select.out_port.unwrap_or(port::ANY),
        out_group: select.out_group.unwrap_or(u32::MAX),
    }
}

fn flow_error(e: &FlowError) -> OfError {
    match e {
        FlowError::NoBridge(_) => OfError::BRC_BAD_PORT,
        FlowError::BadTable(_) => OfError::FMFC_BAD_TABLE_ID,
        FlowError::Overlap => OfError::FMFC_OVERLAP,
        FlowError::Full(_) => OfError::FMFC_TABLE_FULL,
        FlowError::BadGoto(_) => OfError::BIC_BAD_TABLE_ID,
        FlowError::NoGroup(_) => OfError::BAC_BAD_OUT_GROUP,
        FlowError::NoMeter(_) => OfError::MMFC_INVALID_METER,
    }
}

fn group_error(e: &GroupError) -> OfError {
    match e {
        GroupError::NoBridge(_) => OfError::BRC_BAD_PORT,
        GroupError::Exists(_) => OfError::GMFC_GROUP_EXISTS,
        GroupError::Unknown(_) => OfError::GMFC_UNKNOWN_GROUP,
        GroupError::Loop(_) => OfError::GMFC_LOOP,
        GroupError::Full => OfError::GMFC_OUT_OF_GROUPS,
        GroupError::BadBuckets(_) => OfError::GMFC_INVALID_GROUP,
    }
}

fn meter_error(e: &MeterError) -> OfError {
    match e {
        MeterError::NoBridge(_) => OfError::BRC_BAD_PORT,
        MeterError::Exists(_) => OfError::MMFC_METER_EXISTS,
        MeterError::Unknown(_) => OfError::MMFC_UNKNOWN_METER,
    }
}

/// The ports of a bridge, as controllers see them.
pub(crate) fn ports(runner: &Runner, bridge: &str) -> Vec<PortDesc> {
    let describe = |p: &crate::vswitch::pipeline::Port| {
        let up = p.up.load(std::sync::atomic::Ordering::Relaxed);
        // OFPPC_NO_FLOOD, in OpenFlow 1.0, and OFPPC_NO_FWD.
        let config = u32::from(p.no_flood) << 4 | u32::from(p.no_forward) << 5;
        PortDesc {
            number: p.number,
            name: p.name.clone(),
            mac: p.mac,
            config,
            state: u32::from(!up),
            speed_kbps: 0,
        }
    };
    runner.switch().with(bridge, |b| b.ports.values().map(describe).collect()).unwrap_or_default()
}

impl Adapter<'_> {
    fn group(&self, command: GroupCommand, group: Group) -> Result<(), OfError> {
        self.runner.switch().group_mod(&self.name, command, group).map_err(|e| group_error(&e))
    }

    /// A group of a number and buckets only.
    fn named(id: u32, buckets: Vec<Bucket>) -> Group {
        Group { id, kind: GroupKind::All, buckets, method: String::new(), param: 0, fields: Vec::new() }
    }

    fn group_mod(&self, change: &ofproto::GroupMod) -> Result<(), OfError> {
        match change.clone() {
            ofproto::GroupMod::Add(group) => self.group(GroupCommand::Add, group),
            ofproto::GroupMod::Modify(group) => self.group(GroupCommand::Modify, group),
            ofproto::GroupMod::AddOrModify(group) => self.group(GroupCommand::AddOrModify, group),
            ofproto::GroupMod::Delete(id) => {
                self.group(GroupCommand::Delete, Self::named(id.unwrap_or(ALL), Vec::new()))
            }
            ofproto::GroupMod::Insert { id, at, buckets } => {
                let mut group = self.existing(id)?;
                if group.buckets.iter().any(|b| buckets.iter().any(|n| n.id == b.id)) {
                    return Err(OfError::GMFC_BUCKET_EXISTS);
                }
                let place = match at {
                    bucket::FIRST => 0,
                    bucket::LAST | bucket::ALL => group.buckets.len(),
                    id => {
                        1 + group
                            .buckets
                            .iter()
                            .position(|b| b.id == id)
                            .ok_or(OfError::GMFC_UNKNOWN_BUCKET)?
                    }
                };
                group.buckets.splice(place..place, buckets);
                self.group(GroupCommand::Modify, group)
            }
            ofproto::GroupMod::Remove { id, at } => {
                let mut group = self.existing(id)?;
                match at {
                    bucket::ALL => group.buckets.clear(),
                    bucket::FIRST if !group.buckets.is_empty() => drop(group.buckets.remove(0)),
                    bucket::LAST => drop(group.buckets.pop()),
                    id => {
                        let place = group
                            .buckets
                            .iter()
                            .position(|b| b.id == id)
                            .ok_or(OfError::GMFC_UNKNOWN_BUCKET)?;
                        group.buckets.remove(place);
                    }
                }
                self.group(GroupCommand::Modify, group)
            }
        }
    }

    fn existing(&self, id: u32) -> Result<Group, OfError> {
        let groups = self.runner.switch().groups(&self.name).unwrap_or_default();
        groups.into_iter().map(|g| g.group).find(|g| g.id == id).ok_or(OfError::GMFC_UNKNOWN_GROUP)
    }

    fn flow_mod(&self, change: &ofproto::FlowMod) -> Result<(), OfError> {
        let command = match change.command {
            ofproto::Command::Add => bridge::Command::Add,
            ofproto::Command::Modify => bridge::Command::Modify,
            ofproto::Command::ModifyStrict => bridge::Command::ModifyStrict,
            ofproto::Command::Delete => bridge::Command::Delete,
            ofproto::Command::DeleteStrict => bridge::Command::DeleteStrict,
        };
        let mut request = FlowMod::new(command, change.flow.clone());
        // Without a table, changes are of all tables, and a new flow goes to the first.
        if change.table.is_none() && command != bridge::Command::Add {
            request.flow.table = ALL_TABLES;
        }
        if command != bridge::Command::Add {
            request.new_cookie = change.new_cookie.then_some(change.flow.cookie);
            request.flow.cookie = change.cookie.value;
            request.cookie_mask = change.cookie.mask;
        }
        request.may_add = change.add_if_none && change.cookie.mask == 0;
        request.out_port = change.out_port.unwrap_or(port::ANY);
        request.out_group = change.out_group.unwrap_or(u32::MAX);
        if request.may_add && self.nothing(&request) {
            request = FlowMod::new(bridge::Command::Add, change.flow.clone());
        }
        self.runner.switch().flow_mod(&self.name, &request).map_err(|e| flow_error(&e))
    }

    /// Whether no flow is meant by a change.
    fn nothing(&self, request: &FlowMod) -> bool {
        let filter = FlowFilter {
            table: request.flow.table,
            matching: request.flow.matching,
            ..FlowFilter::default()
        };
        let strict = request.command == bridge::Command::ModifyStrict;
        let (matching, priority) = (request.flow.matching, request.flow.priority);
        let found = self.runner.switch().flows(&self.name, &filter).unwrap_or_default();
        !found.iter().any(|f| !strict || (f.flow.matching == matching && f.flow.priority == priority))
    }

    fn port_mod(&self, number: u32, mac: [u8; 6], config: u32, mask: u32) -> Result<(), OfError> {
        let found = ports(self.runner, &self.name).into_iter().find(|p| p.number == number);
        let desc = found.ok_or(OfError::PMFC_BAD_PORT)?;
        if desc.mac != mac {
            return Err(OfError::PMFC_BAD_HW_ADDR);
        }
        self.runner.switch().change_port(&self.name, &desc.name, |p| {
            if mask & 1 << 4 != 0 {
                p.no_flood = config & 1 << 4 != 0;
            }
            if mask & 1 << 5 != 0 {
                p.no_forward = config & 1 << 5 != 0;
            }
        });
        Ok(())
    }

    fn apply(&self, change: &Change) -> Result<(), OfError> {
        match change {
            Change::Flow(change) => self.flow_mod(change),
            Change::Group(change) => self.group_mod(change),
            Change::Port { number, mac, config, mask } => self.port_mod(*number, *mac, *config, *mask),
            Change::PacketOut(out) => {
                let in_port = out.metadata.get(Field::InPortOxm).0 as u32;
                if self.runner.switch().packet_out(&self.name, in_port, out.frame.clone(), &out.actions) {
                    Ok(())
                } else {
                    Err(OfError::BRC_BAD_PACKET)
                }
            }
        }
    }
}

impl Ofproto for Adapter<'_> {
    fn datapath_id(&self) -> u64 {
        self.runner.switch().with(&self.name, |b| b.datapath_id).unwrap_or(0)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn ports(&self) -> Vec<PortDesc> {
        ports(self.runner, &self.name)
    }

    fn port_stats(&self, number: u32) -> Option<ofproto::PortStats> {
        let port = self.ports().into_iter().find(|p| p.number == number)?;
        let s = self.runner.stats(&port.name).unwrap_or_default();
        Some(ofproto::PortStats {
            rx_packets: s.rx_packets,
            tx_packets: s.tx_packets,
            rx_bytes: s.rx_bytes,
            tx_bytes: s.tx_bytes,
            rx_dropped: s.rx_missed,
            tx_dropped: 0,
            rx_errors: s.rx_errors,
            tx_errors: s.tx_errors,
            duration: Duration::ZERO,
        })
    }

    fn table_stats(&self) -> Vec<ofproto::TableStats> {
        let of = |t: &bridge::TableStats| ofproto::TableStats {
            active: t.active as u32,
            lookups: t.lookups,
            matched: t.matched,
        };
        self.runner.switch().tables(&self.name).unwrap_or_default().iter().map(of).collect()
    }

    fn flows(&self, select: &Select) -> Vec<ofproto::FlowStats> {
        let found = self.runner.switch().flows(&self.name, &filter(select)).unwrap_or_default();
        found.into_iter().map(stats).collect()
    }

    fn groups(&self) -> Vec<(Group, ofproto::GroupStats)> {
        let of = |g: bridge::GroupStats| {
            let stats = ofproto::GroupStats {
                references: g.references,
                packets: g.passed.0,
                bytes: g.passed.1,
                duration: Duration::from_millis(g.duration_ms),
                buckets: g.buckets,
            };
            (g.group, stats)
        };
        self.runner.switch().groups(&self.name).unwrap_or_default().into_iter().map(of).collect()
    }

    fn meters(&self) -> Vec<(Meter, ofproto::MeterStats)> {
        let of = |m: bridge::MeterStats| {
            let stats = ofproto::MeterStats {
                flows: m.flows,
                packets: m.came.0,
                bytes: m.came.1,
                duration: Duration::from_millis(m.duration_ms),
                bands: m.bands,
            };
            (m.meter, stats)
        };
        self.runner.switch().meters(&self.name).unwrap_or_default().into_iter().map(of).collect()
    }

    fn meter_mod(&mut self, change: &MeterMod) -> Result<(), OfError> {
        let switch = self.runner.switch();
        let done = match change {
            MeterMod::Add(meter) => switch.set_meter(&self.name, meter.clone(), true),
            MeterMod::Modify(meter) => switch.set_meter(&self.name, meter.clone(), false),
            MeterMod::Delete(id) => switch.delete_meter(&self.name, id.unwrap_or(ALL)),
        };
        done.map_err(|e| meter_error(&e))
    }

    fn change(&mut self, changes: &[Change]) -> Result<(), (usize, OfError)> {
        // What is undone when one of several fails: flows and groups as they were.
        let before = (changes.len() > 1).then(|| (self.flows(&everything()), self.groups()));
        for (i, change) in changes.iter().enumerate() {
            if let Err(e) = self.apply(change) {
                if let Some((flows, groups)) = before {
                    self.restore(flows, groups);
                }
                return Err((i, e));
            }
        }
        Ok(())
    }

    fn flush_connections(&mut self, zone: Option<u16>) {
        if let Ok(mut connections) = self.runner.switch().conntrack.lock() {
            connections.flush(zone);
        }
    }
}

/// All flows.
fn everything() -> Select {
    Select {
        table: None,
        matching: Match::default(),
        cookie: super::oxm::Cookie::default(),
        out_port: None,
        out_group: None,
    }
}

impl Adapter<'_> {
    /// Puts flows and groups back; those that did not change keep their counters.
    fn restore(&self, flows: Vec<ofproto::FlowStats>, groups: Vec<(Group, ofproto::GroupStats)>) {
        for (group, _) in self.groups() {
            if !groups.iter().any(|(g, _)| g.id == group.id) {
                let _ = self.group(GroupCommand::Delete, group);
            }
        }
        let now = self.groups();
        for (group, _) in groups.into_iter().filter(|(g, _)| !now.iter().any(|(n, _)| n == g)) {
            let _ = self.group(GroupCommand::AddOrModify, group);
        }
        let same = |a: &ofproto::FlowStats, b: &ofproto::FlowStats| {
            a.flow.table == b.flow.table
                && a.flow.priority == b.flow.priority
                && a.flow.matching == b.flow.matching
        };
        let now = self.flows(&everything());
        for extra in now.iter().filter(|n| !flows.iter().any(|f| same(f, n))) {
            let request = FlowMod::new(bridge::Command::DeleteStrict, extra.flow.clone());
            let _ = self.runner.switch().flow_mod(&self.name, &request);
        }
        for old in flows.iter().filter(|f| !now.iter().any(|n| n.flow == f.flow)) {
            let request = FlowMod::new(bridge::Command::Add, old.flow.clone());
            let _ = self.runner.switch().flow_mod(&self.name, &request);
        }
    }
}

impl Bridge for Adapter<'_> {
    fn take_events(&mut self) -> Vec<ofproto::Event> {
        self.post.collect(self.runner);
        self.post.letters.remove(&self.name).unwrap_or_default()
    }
}
