//! Groups and meters: added, changed, deleted, counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Switch;
use super::flows::{Command, FlowMod};
use crate::vswitch::flow::Flow;
use crate::vswitch::flow::action::{Action, Group, Meter};
use crate::vswitch::pipeline::meter::Bucket;
use crate::vswitch::pipeline::rule::{Passed, now_ms};
use crate::vswitch::pipeline::{Bridge, Grouped};

/// Most groups, and most meters, of a bridge.
pub const MAX_GROUPS: usize = 1 << 16;
/// All groups, or all meters, of a deletion.
pub const ALL: u32 = u32::MAX;

/// What is to be done with a group.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupCommand {
    Add,
    Modify,
    AddOrModify,
    Delete,
    /// Adds these buckets at the end.
    InsertBuckets,
    /// Takes the buckets of these numbers out.
    RemoveBuckets,
}

/// Why a group cannot be.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("no bridge named {0}")]
    NoBridge(String),
    #[error("group {0} exists")]
    Exists(u32),
    #[error("group {0} is not there")]
    Unknown(u32),
    #[error("group {0} would send to itself")]
    Loop(u32),
    #[error("{MAX_GROUPS} groups exist, the most there can be")]
    Full,
    #[error("group {0}: an indirect group has one bucket")]
    BadBuckets(u32),
}

/// Why a meter cannot be.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    #[error("no bridge named {0}")]
    NoBridge(String),
    #[error("meter {0} exists")]
    Exists(u32),
    #[error("meter {0} is not there")]
    Unknown(u32),
}

/// A group and what passed by it.
#[derive(Clone, Debug)]
pub struct GroupStats {
    /// The group.
    pub group: Group,
    /// Milliseconds since it came.
    pub duration_ms: u64,
    /// Flows and groups that send to it.
    pub references: u32,
    /// Packets and bytes.
    pub passed: (u64, u64),
    /// The same of each bucket.
    pub buckets: Vec<(u64, u64)>,
}

/// A meter and what passed by it.
#[derive(Clone, Debug)]
pub struct MeterStats {
    /// The meter.
    pub meter: Meter,
    /// Milliseconds since it came.
    pub duration_ms: u64,
    /// Packets and bytes that came.
    pub came: (u64, u64),
    /// Packets and bytes that each band took.
    pub bands: Vec<(u64, u64)>,
    /// Flows that name it.
    pub flows: u32,
}

fn names(actions: &[Action], is: &dyn Fn(&Action) -> bool) -> bool {
    actions.iter().any(|action| match action {
        Action::WriteActions(inner) | Action::Clone(inner) => names(inner, is),
        other => is(other),
    })
}

/// Whether a group sends to another, at last.
fn reaches(bridge: &Bridge, group: &Group, goal: u32, depth: usize) -> bool {
    let mut next = group.buckets.iter().flat_map(|b| &b.actions);
    next.any(|action| match action {
        Action::Group(id) if *id == goal || depth == 0 => true,
        Action::Group(id) => {
            bridge.groups.get(id).is_some_and(|g| reaches(bridge, &g.group, goal, depth - 1))
        }
        _ => false,
    })
}

fn users(bridge: &Bridge, is: &dyn Fn(&Action) -> bool) -> usize {
    let rules = bridge.tables.iter().flat_map(|t| t.rules()).filter(|r| names(&r.flow.actions, is)).count();
    let groups = bridge.groups.values().flat_map(|g| &g.group.buckets);
    rules + groups.filter(|b| names(&b.actions, is)).count()
}

impl Switch {
    /// Adds, changes or deletes a group; its flows go with it.
    ///
    /// # Errors
    /// Why it cannot be; then nothing has changed.
    pub fn group_mod(&self, bridge: &str, command: GroupCommand, group: Group) -> Result<(), GroupError> {
        self.credit();
        let id = group.id;
        let missing = || GroupError::NoBridge(bridge.to_owned());
        self.change(bridge, |b| set_group(b, command, group)).ok_or_else(missing)??;
        if command == GroupCommand::Delete {
            let mut request = FlowMod::new(Command::Delete, Flow { table: 255, ..Flow::default() });
            request.out_group = id;
            if id != ALL {
                // The bridge was there a moment ago; without it there are no flows either.
                let _ = self.flow_mod(bridge, &request);
            }
        }
        Ok(())
    }

    /// Groups and their counters; `None`: there is no such bridge.
    pub fn groups(&self, bridge: &str) -> Option<Vec<GroupStats>> {
        self.credit();
        let now = now_ms();
        let two = |p: &Arc<Passed>| (p.get().0, p.get().1);
        self.with(bridge, |b| {
            let stats = |g: &Grouped| GroupStats {
                group: g.group.clone(),
                duration_ms: now.saturating_sub(g.created_ms),
                references: users(b, &|a| *a == Action::Group(g.group.id)) as u32,
                passed: g.passed.first().map_or((0, 0), two),
                buckets: g.passed.iter().skip(1).map(two).collect(),
            };
            b.groups.values().map(stats).collect()
        })
    }

    /// Adds or changes a meter.
    ///
    /// # Errors
    /// It is there already, or not there.
    pub fn set_meter(&self, bridge: &str, meter: Meter, add: bool) -> Result<(), MeterError> {
        let missing = || MeterError::NoBridge(bridge.to_owned());
        let set = |b: &mut Bridge| match (add, b.meters.contains_key(&meter.id)) {
            (true, true) => Err(MeterError::Exists(meter.id)),
            (false, false) => Err(MeterError::Unknown(meter.id)),
            _ => {
                b.meters.insert(meter.id, Arc::new(Bucket::new(meter.clone())));
                Ok(())
            }
        };
        self.change(bridge, set).ok_or_else(missing)?
    }

    /// Deletes a meter, or all ([`ALL`]); flows that name it go with it.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn delete_meter(&self, bridge: &str, id: u32) -> Result<(), MeterError> {
        let delete = |b: &mut Bridge| {
            b.meters.retain(|own, _| id != ALL && *own != id);
            let is = |a: &Action| matches!(a, Action::Meter(m) if id == ALL || *m == id);
            let tables = b.tables.iter().flat_map(|t| t.rules());
            let gone: Vec<_> = tables.filter(|r| names(&r.flow.actions, &is)).cloned().collect();
            for rule in gone {
                b.tables[usize::from(rule.flow.table)].remove(&rule.flow.matching, rule.flow.priority);
            }
        };
        self.change(bridge, delete).ok_or_else(|| MeterError::NoBridge(bridge.to_owned()))
    }

    /// Meters and their counters; `None`: there is no such bridge.
    pub fn meters(&self, bridge: &str) -> Option<Vec<MeterStats>> {
        let now = now_ms();
        let two = |p: &[std::sync::atomic::AtomicU64; 2]| {
            (p[0].load(Ordering::Relaxed), p[1].load(Ordering::Relaxed))
        };
        self.with(bridge, |b| {
            let stats = |m: &Arc<Bucket>| MeterStats {
                meter: m.meter.clone(),
                duration_ms: now.saturating_sub(m.created_ms),
                came: two(&m.came),
                bands: m.hit.iter().map(two).collect(),
                flows: users(b, &|a| *a == Action::Meter(m.meter.id)) as u32,
            };
            b.meters.values().map(stats).collect()
        })
    }
}

fn set_group(bridge: &mut Bridge, command: GroupCommand, mut group: Group) -> Result<(), GroupError> {
    let id = group.id;
    let known = bridge.groups.contains_key(&id);
    match command {
        GroupCommand::Delete => {
            bridge.groups.retain(|own, _| id != ALL && *own != id);
            return Ok(());
        }
        GroupCommand::Add if known => return Err(GroupError::Exists(id)),
        GroupCommand::Modify | GroupCommand::InsertBuckets | GroupCommand::RemoveBuckets if !known => {
            return Err(GroupError::Unknown(id));
        }
        GroupCommand::InsertBuckets => {
            let old = &bridge.groups[&id].group;
            let buckets = [old.buckets.clone(), group.buckets].concat();
            group = Group { buckets, ..old.clone() };
        }
        GroupCommand::RemoveBuckets => {
            let old = bridge.groups[&id].group.clone();
            let gone: Vec<u32> = group.buckets.iter().map(|b| b.id).collect();
            let buckets = old.buckets.iter().filter(|b| !gone.contains(&b.id)).cloned().collect();
            group = Group { buckets, ..old };
        }
        _ => {}
    }
    if !known && bridge.groups.len() >= MAX_GROUPS {
        return Err(GroupError::Full);
    }
    if group.kind == crate::vswitch::flow::action::GroupKind::Indirect && group.buckets.len() != 1 {
        return Err(GroupError::BadBuckets(id));
    }
    if reaches(bridge, &group, id, 32) {
        return Err(GroupError::Loop(id));
    }
    let passed = (0..=group.buckets.len()).map(|_| Arc::default()).collect();
    bridge.groups.insert(id, Grouped { group, created_ms: now_ms(), passed });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::flow::action::{Bucket, GroupKind};

    fn group(id: u32, to: u32) -> Group {
        let bucket = Bucket { weight: 1, actions: vec![Action::Group(to)], ..Bucket::default() };
        Group {
            id,
            kind: GroupKind::All,
            buckets: vec![bucket],
            method: String::new(),
            param: 0,
            fields: vec![],
        }
    }

    #[test]
    fn groups_do_not_lead_in_circles() {
        let switch = Switch::default();
        switch.add_bridge("br0", 1);
        switch.group_mod("br0", GroupCommand::Add, group(1, 2)).unwrap();
        assert_eq!(switch.group_mod("br0", GroupCommand::Add, group(2, 1)), Err(GroupError::Loop(2)));
        assert_eq!(switch.group_mod("br0", GroupCommand::Add, group(1, 3)), Err(GroupError::Exists(1)));
        assert_eq!(switch.group_mod("br0", GroupCommand::Modify, group(9, 3)), Err(GroupError::Unknown(9)));
        switch.group_mod("br0", GroupCommand::Delete, group(ALL, 0)).unwrap();
        assert!(switch.groups("br0").unwrap().is_empty());
    }
}
