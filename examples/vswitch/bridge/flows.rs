//! Flows: added, changed, deleted, counted, and let go when their time is up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Event, Removed, Switch};
use crate::vswitch::flow::action::{Action, TABLES, port};
use crate::vswitch::flow::{Flow, Match};
use crate::vswitch::pipeline::Bridge;
use crate::vswitch::pipeline::rule::{Rule, now_ms};

/// All tables.
pub const ALL_TABLES: u8 = 255;
/// Most flows of a table.
pub const MAX_FLOWS: usize = 1_000_000;

/// What is to be done with a flow.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Modify,
    ModifyStrict,
    Delete,
    DeleteStrict,
}

/// A flow, and what is to be done.
#[derive(Clone, Debug)]
pub struct FlowMod {
    /// What.
    pub command: Command,
    /// The flow. Table 255 of a deletion is all tables.
    pub flow: Flow,
    /// Of a change: only flows whose cookie has these bits of `flow.cookie`.
    pub cookie_mask: u64,
    /// Of a change: the new cookie; `None`: as it is.
    pub new_cookie: Option<u64>,
    /// Of a deletion: only flows that output to this port; [`port::ANY`]: all.
    pub out_port: u32,
    /// Of a deletion: only flows that send to this group; all ones: all.
    pub out_group: u32,
    /// A change that finds no flow adds one, as in OpenFlow 1.0 and 1.1.
    pub may_add: bool,
}

impl FlowMod {
    /// Of a command that is not narrowed.
    pub fn new(command: Command, flow: Flow) -> FlowMod {
        FlowMod {
            command,
            flow,
            cookie_mask: 0,
            new_cookie: None,
            out_port: port::ANY,
            out_group: u32::MAX,
            may_add: false,
        }
    }
}

/// Why a flow cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// There is no such bridge.
    #[error("no bridge named {0}")]
    NoBridge(String),
    /// There is no such table.
    #[error("table {0}: tables are 0 to {last}", last = TABLES - 1)]
    BadTable(u8),
    /// Another flow of this priority matches some of the same packets, and that was not wanted.
    #[error("another flow of the same priority overlaps")]
    Overlap,
    /// The table has as many as it can.
    #[error("table {0} has {MAX_FLOWS} flows, the most there can be")]
    Full(u8),
    /// An action goes to an earlier table.
    #[error("goto_table:{0} does not lead to a later table")]
    BadGoto(u8),
    /// An action names a group that is not there.
    #[error("group {0} is not there")]
    NoGroup(u32),
    /// An action names a meter that is not there.
    #[error("meter {0} is not there")]
    NoMeter(u32),
}

/// Which flows are wanted.
#[derive(Clone, Debug)]
pub struct FlowFilter {
    /// Table; 255: all.
    pub table: u8,
    /// Those that match only what this does.
    pub matching: Match,
    /// Cookie and the bits of it that count.
    pub cookie: (u64, u64),
    /// Those that output there; [`port::ANY`]: all.
    pub out_port: u32,
    /// Those that send to this group; all ones: all.
    pub out_group: u32,
}

impl Default for FlowFilter {
    fn default() -> FlowFilter {
        FlowFilter {
            table: ALL_TABLES,
            matching: Match::default(),
            cookie: (0, 0),
            out_port: port::ANY,
            out_group: u32::MAX,
        }
    }
}

/// A flow and what passed by it.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowStats {
    /// The flow.
    pub flow: Flow,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Milliseconds since it came.
    pub duration_ms: u64,
    /// Milliseconds since the last packet, or since it came.
    pub idle_ms: u64,
    /// Milliseconds since it was changed.
    pub hard_ms: u64,
}

/// What a table has seen.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    pub table: u8,
    pub active: usize,
    pub lookups: u64,
    pub matched: u64,
}

fn stats(rule: &Rule, now: u64) -> FlowStats {
    let (packets, bytes, used) = rule.passed.get();
    let modified = rule.modified_ms.load(Ordering::Relaxed);
    FlowStats {
        flow: rule.flow.clone(),
        packets,
        bytes,
        duration_ms: now.saturating_sub(rule.created_ms),
        idle_ms: now.saturating_sub(used.max(rule.created_ms)),
        hard_ms: now.saturating_sub(modified),
    }
}

fn outputs_to(actions: &[Action], to: u32) -> bool {
    actions.iter().any(|action| match action {
        Action::Output { port, .. } | Action::OutputTrunc { port, .. } | Action::Enqueue { port, .. } => {
            *port == to
        }
        Action::Controller(_) => to == port::CONTROLLER,
        Action::WriteActions(inner) | Action::Clone(inner) => outputs_to(inner, to),
        _ => false,
    })
}

fn sends_to(actions: &[Action], group: u32) -> bool {
    actions.iter().any(|action| match action {
        Action::Group(id) => *id == group,
        Action::WriteActions(inner) | Action::Clone(inner) => sends_to(inner, group),
        _ => false,
    })
}

fn wanted(rule: &Rule, filter: &FlowFilter) -> bool {
    let flow = &rule.flow;
    (filter.table == ALL_TABLES || filter.table == flow.table)
        && flow.matching.within(&filter.matching)
        && (flow.cookie ^ filter.cookie.0) & filter.cookie.1 == 0
        && (filter.out_port == port::ANY || outputs_to(&flow.actions, filter.out_port))
        && (filter.out_group == u32::MAX || sends_to(&flow.actions, filter.out_group))
}

fn check(bridge: &Bridge, flow: &Flow, actions: &[Action]) -> Result<(), FlowError> {
    for action in actions {
        match action {
            Action::GotoTable(table) if *table <= flow.table || *table >= TABLES => {
                return Err(FlowError::BadGoto(*table));
            }
            Action::Group(id) if !bridge.groups.contains_key(id) => return Err(FlowError::NoGroup(*id)),
            Action::Meter(id) if !bridge.meters.contains_key(id) => return Err(FlowError::NoMeter(*id)),
            Action::WriteActions(inner) | Action::Clone(inner) => check(bridge, flow, inner)?,
            _ => {}
        }
    }
    Ok(())
}

/// What a change did: flows that came or were changed, and flows that went.
#[derive(Default)]
struct Done {
    changed: Vec<(Arc<Rule>, bool)>,
    gone: Vec<Arc<Rule>>,
}

impl Switch {
    /// Adds, changes or deletes flows.
    ///
    /// # Errors
    /// Why it cannot be; then nothing has changed.
    pub fn flow_mod(&self, bridge: &str, request: &FlowMod) -> Result<(), FlowError> {
        // What was counted so far belongs to the rules as they are.
        self.credit();
        let missing = || FlowError::NoBridge(bridge.to_owned());
        let done = self.change(bridge, |b| request.run(b)).ok_or_else(missing)??;
        self.report(bridge, done, Removed::Delete);
        Ok(())
    }

    fn report(&self, bridge: &str, done: Done, reason: Removed) {
        let now = now_ms();
        for (rule, added) in done.changed {
            self.tell(Event::FlowChanged { bridge: bridge.into(), flow: Arc::new(rule.flow.clone()), added });
        }
        for rule in done.gone {
            self.tell(Event::FlowRemoved {
                bridge: bridge.into(),
                flow: Arc::new(stats(&rule, now)),
                reason,
            });
        }
    }

    /// Flows and their counters, by table and priority; `None`: there is no such bridge.
    pub fn flows(&self, bridge: &str, filter: &FlowFilter) -> Option<Vec<FlowStats>> {
        self.credit();
        let now = now_ms();
        self.with(bridge, |b| {
            let rules = b.tables.iter().flat_map(|t| t.rules());
            let mut out: Vec<FlowStats> =
                rules.filter(|r| wanted(r, filter)).map(|r| stats(r, now)).collect();
            out.sort_by(|a, b| {
                let key = |s: &FlowStats| (s.flow.table, std::cmp::Reverse(s.flow.priority));
                key(a).cmp(&key(b)).then_with(|| b.duration_ms.cmp(&a.duration_ms))
            });
            out
        })
    }

    /// Look-ups of each table.
    pub fn tables(&self, bridge: &str) -> Option<Vec<TableStats>> {
        self.with(bridge, |b| {
            let tables = b.tables.iter().enumerate();
            tables
                .map(|(i, t)| TableStats {
                    table: i as u8,
                    active: t.len(),
                    lookups: t.lookups.load(Ordering::Relaxed),
                    matched: t.matched.load(Ordering::Relaxed),
                })
                .collect()
        })
    }

    /// Lets flows go whose time is up.
    pub fn expire(&self) {
        self.credit();
        let now = now_ms();
        for name in self.bridges() {
            let due = self.with(&name, |b| {
                let rules = b.tables.iter().flat_map(|t| t.rules());
                rules.filter_map(|r| Some((Arc::clone(r), overdue(r, now)?))).collect::<Vec<_>>()
            });
            for (rule, reason) in due.unwrap_or_default() {
                let gone = self.change(&name, |b| {
                    let table = &mut b.tables[usize::from(rule.flow.table)];
                    table.remove(&rule.flow.matching, rule.flow.priority)
                });
                let done = Done { gone: gone.flatten().into_iter().collect(), ..Done::default() };
                self.report(&name, done, reason);
            }
        }
    }

    /// Adds a flow that `learn` made, or remembers that it was learned again.
    pub(super) fn learned(&self, bridge: usize, flow: &Flow, limit: u32) {
        let world = self.read();
        let Some(b) = world.bridges.get(bridge).and_then(Option::as_ref) else { return };
        let Some(table) = b.tables.get(usize::from(flow.table)) else { return };
        let name = b.name.clone();
        let known = table.exact(&flow.matching, flow.priority);
        if let Some(rule) = known.filter(|r| r.flow.actions == flow.actions && r.flow.cookie == flow.cookie) {
            rule.modified_ms.store(now_ms(), Ordering::Relaxed);
            return;
        }
        let full = limit != 0
            && known.is_none()
            && table.rules().filter(|r| r.flow.cookie == flow.cookie).count() >= limit as usize;
        drop(world);
        if !full {
            let mut request = FlowMod::new(Command::ModifyStrict, flow.clone());
            request.may_add = true;
            request.new_cookie = Some(flow.cookie);
            // A learned flow that cannot be is not learned.
            let _ = self.flow_mod(&name, &request);
        }
    }
}

fn overdue(rule: &Rule, now: u64) -> Option<Removed> {
    let (idle, hard) = rule.timeouts();
    let modified = rule.modified_ms.load(Ordering::Relaxed);
    if hard != 0 && now.saturating_sub(modified) >= u64::from(hard) * 1000 {
        return Some(Removed::HardTimeout);
    }
    let used = rule.passed.get().2.max(modified);
    (idle != 0 && now.saturating_sub(used) >= u64::from(idle) * 1000).then_some(Removed::IdleTimeout)
}

impl FlowMod {
    fn run(&self, bridge: &mut Bridge) -> Result<Done, FlowError> {
        let table = self.flow.table;
        let all = matches!(self.command, Command::Delete | Command::DeleteStrict | Command::Modify);
        if table >= TABLES && !(all && table == ALL_TABLES) {
            return Err(FlowError::BadTable(table));
        }
        match self.command {
            Command::Add => self.add(bridge),
            Command::Modify | Command::ModifyStrict => self.modify(bridge),
            Command::Delete | Command::DeleteStrict => Ok(self.delete(bridge)),
        }
    }

    fn add(&self, bridge: &mut Bridge) -> Result<Done, FlowError> {
        check(bridge, &self.flow, &self.flow.actions)?;
        let table = &mut bridge.tables[usize::from(self.flow.table)];
        let (matching, priority) = (&self.flow.matching, self.flow.priority);
        let known = table.exact(matching, priority).is_some();
        if self.flow.flags.check_overlap
            && table.rules().any(|r| r.flow.priority == priority && r.flow.matching.overlaps(matching))
        {
            return Err(FlowError::Overlap);
        }
        if !known && table.len() >= MAX_FLOWS {
            return Err(FlowError::Full(self.flow.table));
        }
        let mut flow = self.flow.clone();
        flow.flags.check_overlap = false;
        let rule = Arc::new(Rule::new(flow, now_ms()));
        table.insert(Arc::clone(&rule));
        Ok(Done { changed: vec![(rule, !known)], gone: Vec::new() })
    }

    /// Flows that a change or a deletion means.
    fn meant(&self, bridge: &Bridge) -> Vec<Arc<Rule>> {
        let strict = matches!(self.command, Command::ModifyStrict | Command::DeleteStrict);
        let narrowed = matches!(self.command, Command::Delete | Command::DeleteStrict);
        let filter = FlowFilter {
            table: self.flow.table,
            matching: self.flow.matching,
            cookie: (self.flow.cookie, self.cookie_mask),
            out_port: if narrowed { self.out_port } else { port::ANY },
            out_group: if narrowed { self.out_group } else { u32::MAX },
        };
        let is = |r: &Rule| {
            !strict || r.flow.matching == self.flow.matching && r.flow.priority == self.flow.priority
        };
        if strict && self.flow.table != ALL_TABLES {
            let found =
                bridge.tables[usize::from(self.flow.table)].exact(&self.flow.matching, self.flow.priority);
            return found.filter(|r| wanted(r, &filter)).cloned().into_iter().collect();
        }
        bridge
            .tables
            .iter()
            .flat_map(|t| t.rules())
            .filter(|r| is(r) && wanted(r, &filter))
            .cloned()
            .collect()
    }

    fn modify(&self, bridge: &mut Bridge) -> Result<Done, FlowError> {
        check(bridge, &self.flow, &self.flow.actions)?;
        let meant = self.meant(bridge);
        if meant.is_empty() && self.may_add && self.cookie_mask == 0 {
            return self.add(bridge);
        }
        let mut done = Done::default();
        let now = now_ms();
        for old in meant {
            let mut flow = old.flow.clone();
            flow.actions.clone_from(&self.flow.actions);
            flow.cookie = self.new_cookie.unwrap_or(flow.cookie);
            let mut rule = Rule::new(flow, now);
            rule.created_ms = old.created_ms;
            if !self.flow.flags.reset_counts {
                rule.passed = Arc::clone(&old.passed);
            }
            let rule = Arc::new(rule);
            bridge.tables[usize::from(rule.flow.table)].insert(Arc::clone(&rule));
            done.changed.push((rule, false));
        }
        Ok(done)
    }

    fn delete(&self, bridge: &mut Bridge) -> Done {
        let gone = self.meant(bridge);
        for rule in &gone {
            bridge.tables[usize::from(rule.flow.table)].remove(&rule.flow.matching, rule.flow.priority);
        }
        Done { gone, ..Done::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::flow::values::Numbers;

    fn run(switch: &Switch, command: Command, text: &str) -> Result<(), FlowError> {
        switch.flow_mod("br0", &FlowMod::new(command, Flow::parse(text, &Numbers).unwrap()))
    }

    fn dump(switch: &Switch) -> Vec<String> {
        let flows = switch.flows("br0", &FlowFilter::default()).unwrap();
        flows.iter().map(|s| s.flow.text(&Numbers)).collect()
    }

    #[test]
    fn flows_are_added_changed_and_deleted_as_openflow_says() {
        let switch = Switch::default();
        assert!(switch.add_bridge("br0", 1) && !switch.add_bridge("br0", 1));
        let events = switch.subscribe();
        for text in [
            "priority=5,ip,actions=output:1",
            "table=2,tcp,actions=output:2",
            "priority=5,ip,actions=output:3",
        ] {
            run(&switch, Command::Add, text).unwrap();
        }
        assert_eq!(dump(&switch), ["priority=5,ip actions=output:3", "table=2, tcp actions=output:2"]);
        run(&switch, Command::Modify, "table=0,ip,actions=drop").unwrap();
        assert_eq!(dump(&switch)[0], "priority=5,ip actions=drop");
        run(&switch, Command::ModifyStrict, "ip,actions=output:9").unwrap();
        assert_eq!(dump(&switch)[0], "priority=5,ip actions=drop");
        let mut request = FlowMod::new(Command::Delete, Flow { table: ALL_TABLES, ..Flow::default() });
        request.out_port = 2;
        switch.flow_mod("br0", &request).unwrap();
        assert_eq!(dump(&switch), ["priority=5,ip actions=drop"]);
        assert!(events.try_iter().any(|e| matches!(e, Event::FlowRemoved { reason: Removed::Delete, .. })));
        run(&switch, Command::DeleteStrict, "ip").unwrap();
        assert_eq!(dump(&switch).len(), 1);
        run(&switch, Command::DeleteStrict, "priority=5,ip").unwrap();
        assert!(dump(&switch).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let switch = Switch::default();
        assert!(run(&switch, Command::Add, "actions=drop").is_err());
        switch.add_bridge("br0", 1);
        run(&switch, Command::Add, "ip,actions=drop").unwrap();
        assert_eq!(
            run(&switch, Command::Add, "check_overlap,in_port=1,actions=drop"),
            Err(FlowError::Overlap)
        );
        assert_eq!(run(&switch, Command::Add, "table=3,actions=goto_table:3"), Err(FlowError::BadGoto(3)));
        assert_eq!(run(&switch, Command::Add, "actions=group:3"), Err(FlowError::NoGroup(3)));
        assert_eq!(run(&switch, Command::Add, "table=254,actions=drop"), Err(FlowError::BadTable(254)));
    }

    #[test]
    fn flows_go_when_their_time_is_up() {
        let switch = Switch::default();
        switch.add_bridge("br0", 1);
        run(&switch, Command::Add, "hard_timeout=1,ip,actions=drop").unwrap();
        run(&switch, Command::Add, "idle_timeout=60,arp,actions=drop").unwrap();
        let events = switch.subscribe();
        let start = std::time::Instant::now();
        while dump(&switch).len() == 2 && start.elapsed().as_secs() < 60 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            switch.expire();
        }
        assert_eq!(dump(&switch), ["idle_timeout=60, arp actions=drop"]);
        assert!(
            events.try_iter().any(|e| matches!(e, Event::FlowRemoved { reason: Removed::HardTimeout, .. }))
        );
    }
}
