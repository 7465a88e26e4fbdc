//! A packet through the tables.
//!
//! The outcome is what is done to the packet, and a mask: a packet that is the same in its bits is done
//! the same to. Every bit that a look-up, an action or NORMAL depended on is in the mask; a field that an
//! action writes is, too, because it is written only where it differs.

mod apply;
mod group;
mod learn;
mod normal;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::op::{Op, ToController, ops_text};
use super::rule::Rule;
use super::{Bridge, Frozen, World};
use crate::vswitch::flow::action::{Action, Controller, Flow, Reason, port};
use crate::vswitch::flow::key::{PACKET_WORDS, word};
use crate::vswitch::flow::values::Numbers;
use crate::vswitch::flow::{Field, Key, Mask, Match, print};

/// How deep tables may call tables.
pub const MAX_DEPTH: usize = 64;
/// How many times a packet may be looked up.
pub const MAX_RESUBMITS: usize = 4096;

/// What a translation wants done besides: when packets pass, not when somebody only asks.
#[derive(Clone, Debug)]
pub enum Effect {
    /// An address was seen: bridge, VLAN, address, port.
    Address(usize, u16, [u8; 6], u32),
    /// A flow is to be added or changed: bridge, flow, the limit of `learn`.
    Learn(usize, Box<Flow>, u32),
    /// A TCP connection ends.
    Fin(Arc<Rule>, u16, u16),
}

/// The outcome.
#[derive(Default)]
pub struct Outcome {
    /// What is done to the packet.
    pub ops: Vec<Op>,
    /// For packets that are the same in these bits.
    pub mask: Mask,
    /// Rules that it passed.
    pub rules: Vec<Arc<Rule>>,
    /// Groups and buckets that it passed.
    pub groups: Vec<Arc<super::rule::Passed>>,
    /// What else.
    pub effects: Vec<Effect>,
    /// How it went, line by line, if that was wanted.
    pub told: String,
}

/// A packet on its way.
pub(super) struct Walk<'w> {
    world: &'w World,
    bridge: usize,
    /// The fields as actions have made them.
    flow: Key,
    /// The fields as the operations so far have made them.
    base: Key,
    out: Outcome,
    table: u8,
    rule: Option<Arc<Rule>>,
    depth: usize,
    resubmits: usize,
    indent: usize,
    action_set: Vec<Action>,
    stack: Vec<(u128, u32)>,
    exit: bool,
    /// The list of actions that is being done ends here; the one that called it goes on.
    cut: bool,
    /// It went too deep: nothing is done.
    lost: bool,
    /// Labels were taken off: what is below is not known.
    unlabelled: bool,
    tell: bool,
    mirrored: u32,
    truncate: Option<u32>,
    in_group: bool,
}

/// Sends a packet through the tables of the bridge that its port is of. `tell`: and says how it went.
pub fn translate(world: &World, key: &Key, tell: bool) -> Outcome {
    let Some((bridge, table, flow)) = world.entry(key) else {
        // No such port or state: nothing is done, to no packet from there.
        let mut mask = Mask::default();
        mask.words[word::IN] = u64::MAX;
        return Outcome { mask, ..Outcome::default() };
    };
    let mut walk = Walk::new(world, bridge, flow, tell);
    // What decides which other fields there are.
    for field in [Field::InPortOxm, Field::RecircId, Field::EthType] {
        walk.out.mask.mark(field);
    }
    if flow.is_ip() {
        walk.out.mask.mark(Field::NwFrag);
    }
    walk.mirror_in();
    walk.enter(table);
    walk.finish()
}

/// Does actions to a packet that did not come through the tables: `packet-out`. The input port is the
/// bridge's.
pub fn translate_actions(world: &World, bridge: usize, key: &Key, actions: &[Action]) -> Outcome {
    let mut walk = Walk::new(world, bridge, *key, false);
    walk.apply(actions);
    walk.run_action_set();
    walk.finish()
}

impl<'w> Walk<'w> {
    fn new(world: &'w World, bridge: usize, flow: Key, tell: bool) -> Walk<'w> {
        Walk {
            world,
            bridge,
            flow,
            base: flow,
            out: Outcome::default(),
            table: 0,
            rule: None,
            depth: 0,
            resubmits: 0,
            indent: 0,
            action_set: Vec::new(),
            stack: Vec::new(),
            exit: false,
            cut: false,
            lost: false,
            unlabelled: false,
            tell,
            mirrored: 0,
            truncate: None,
            in_group: false,
        }
    }

    pub(super) fn bridge(&self) -> &'w Bridge {
        self.world.bridges[self.bridge].as_ref().expect("packets come from bridges that are there")
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.tell {
            let indent = " ".repeat(4 * (self.indent + 1));
            let _ = writeln!(self.out.told, "{indent}{}", text());
        }
    }

    /// From the first table on, then the action set.
    fn enter(&mut self, table: u8) {
        self.lookup(table, self.flow.in_port());
        if !self.exit || !self.action_set.is_empty() {
            self.run_action_set();
        }
    }

    fn finish(mut self) -> Outcome {
        if self.lost {
            self.out.ops.clear();
        }
        self.out.mask.words[PACKET_WORDS..].fill(0);
        self.out
    }

    /// Looks a table up as if the packet came from `in_port`, and does what the rule says.
    fn lookup(&mut self, table: u8, in_port: u32) {
        if self.depth >= MAX_DEPTH || self.resubmits >= MAX_RESUBMITS {
            self.bridge().too_deep.fetch_add(1, Ordering::Relaxed);
            self.say(|| format!("over {MAX_DEPTH} deep or {MAX_RESUBMITS} look-ups: dropped"));
            (self.exit, self.lost) = (true, true);
            return;
        }
        self.resubmits += 1;
        let Some(tables) = self.bridge().tables.get(usize::from(table)) else { return };
        let own = self.flow.in_port();
        self.flow.set_in_port(in_port);
        tables.lookups.fetch_add(1, Ordering::Relaxed);
        let found = tables.lookup(&self.flow, Some(&mut self.out.mask)).cloned();
        self.flow.set_in_port(own);
        let before = std::mem::replace(&mut self.table, table);
        match found {
            Some(rule) => {
                tables.matched.fetch_add(1, Ordering::Relaxed);
                self.tell_rule(table, &rule);
                self.out.rules.push(Arc::clone(&rule));
                let outer = self.rule.replace(Arc::clone(&rule));
                self.depth += 1;
                self.apply(&rule.flow.actions);
                self.depth -= 1;
                self.rule = outer;
            }
            None => self.miss(table),
        }
        self.table = before;
    }

    fn miss(&mut self, table: u8) {
        if self.tell {
            let indent = " ".repeat(4 * self.indent);
            let _ = writeln!(self.out.told, "{indent}{table:2}. No match.");
        }
        if self.depth == 0 && self.bridge().miss_to_controller.load(Ordering::Relaxed) {
            let how = Controller { reason: Reason::NoMatch, ..Controller::plain(128) };
            self.tell_controller(how);
        } else {
            self.say(|| "drop".into());
        }
    }

    fn tell_rule(&mut self, table: u8, rule: &Rule) {
        if !self.tell {
            return;
        }
        let mut text = rule.flow.matching.to_string();
        if !text.is_empty() {
            text.push_str(", ");
        }
        let _ = write!(text, "priority {}", rule.flow.priority);
        if rule.flow.cookie != 0 {
            let _ = write!(text, ", cookie {:#x}", rule.flow.cookie);
        }
        let indent = " ".repeat(4 * self.indent);
        let _ = writeln!(self.out.told, "{indent}{table:2}. {text}");
        if rule.flow.actions.is_empty() {
            self.say(|| "drop".into());
        }
    }

    /// Has the packet become what the actions made of it.
    pub(super) fn commit(&mut self) {
        let (mut key, mut mask) = (Key::default(), Mask::default());
        for &field in COMMITTED {
            if self.flow.lie(field) != self.base.lie(field) {
                mask.mark_raw(field, u128::MAX);
                // All of it is written, though an action may have changed and looked at a part.
                self.out.mask.mark_raw(field, u128::MAX);
                key.lay(field, self.flow.lie(field));
                self.base.lay(field, self.flow.lie(field));
            }
        }
        if mask != Mask::default() {
            // What a field is depends on the type that the packet has.
            self.out.mask.mark(Field::EthType);
            self.out.ops.push(Op::Set(Box::new((key, mask))));
        }
    }

    pub(super) fn tell_controller(&mut self, how: Controller) {
        self.commit();
        let cookie = self.rule.as_ref().map_or(u64::MAX, |r| r.flow.cookie);
        // The packet's own fields come with each packet.
        let mut flow = Key::default();
        flow.set_in_port(self.flow.in_port());
        flow.words[PACKET_WORDS..].copy_from_slice(&self.flow.words[PACKET_WORDS..]);
        let to = ToController { bridge: self.bridge, how, table: self.table, cookie, flow };
        self.out.ops.push(Op::Controller(Box::new(to)));
    }

    /// Has the packet come back to a table after what was done to it.
    pub(super) fn freeze(&mut self, table: u8) {
        let state = Frozen {
            bridge: self.bridge,
            table,
            state: self.flow.words[PACKET_WORDS..].to_vec(),
            in_port: self.flow.in_port(),
        };
        match self.world.frozen.lock().expect("no holder panics").number(state) {
            Some(number) => self.out.ops.push(Op::Recirc(number)),
            None => self.say(|| "too many packets are away: dropped".into()),
        }
    }

    /// Sends it to a port of the bridge, by its number.
    pub(super) fn output(&mut self, number: u32) {
        let Some(port) = self.bridge().ports.get(&number) else {
            self.say(|| ">> Nonexistent output port".into());
            return;
        };
        if port.no_forward {
            self.say(|| ">> OFPPC_NO_FWD set, skipping output".into());
            return;
        }
        if let Some((bridge, peer)) = port.peer {
            return self.patch(bridge, peer);
        }
        self.mirror_out(number);
        self.commit();
        self.push_output(Op::Output(port.dp));
    }

    fn push_output(&mut self, op: Op) {
        if let Some(len) = self.truncate {
            self.out.ops.push(Op::Trunc(len));
        }
        self.out.ops.push(op);
    }

    /// Through a patch into another bridge, and back to how it was here.
    fn patch(&mut self, bridge: usize, peer: u32) {
        let there = self.world.bridges.get(bridge).and_then(Option::as_ref);
        if there.is_none_or(|b| !b.ports.contains_key(&peer)) || self.depth >= MAX_DEPTH {
            return;
        }
        let (flow, own, set, stack) =
            (self.flow, self.bridge, std::mem::take(&mut self.action_set), std::mem::take(&mut self.stack));
        let (exit, unlabelled) = (self.exit, self.unlabelled);
        self.bridge = bridge;
        self.flow.words[PACKET_WORDS..].fill(0);
        self.flow.set_in_port(peer);
        if self.tell {
            let name = &self.bridge().name;
            let _ = write!(self.out.told, "\nbridge(\"{name}\")\n{}\n", "-".repeat(name.len() + 10));
        }
        self.depth += 1;
        self.lookup(0, peer);
        self.run_action_set();
        self.depth -= 1;
        self.bridge = own;
        (self.flow, self.action_set, self.stack) = (flow, set, stack);
        (self.exit, self.unlabelled) = (exit, unlabelled);
    }
}

/// Fields that are written to the packet when they differ: each bit once.
const COMMITTED: &[Field] = &[
    Field::EthDst,
    Field::EthSrc,
    Field::VlanTci,
    Field::MplsLse,
    Field::NwSrc,
    Field::NwDst,
    Field::NwProto,
    Field::NwTos,
    Field::NwEcn,
    Field::NwTtl,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::Ipv6Label,
    Field::ArpSha,
    Field::ArpTha,
    Field::NdTarget,
    Field::TcpSrc,
    Field::TcpDst,
    Field::PktMark,
];

/// How a packet would go, as `ofproto/trace` tells it.
pub fn trace(world: &World, key: &Key) -> String {
    let Some((bridge, _, flow)) = world.entry(key) else { return "Bad input port\n".into() };
    let name = world.bridges[bridge].as_ref().map_or("", |b| &b.name);
    let outcome = translate(world, key, true);
    let mut out = format!("Flow: {}\n\n", shown(&flow));
    let _ = write!(out, "bridge(\"{name}\")\n{}\n{}\n", "-".repeat(name.len() + 10), outcome.told);
    let _ = writeln!(out, "Final flow: unchanged");
    let _ = writeln!(out, "Megaflow: {}", Match::new(&flow, &outcome.mask).megaflow_text());
    let _ = writeln!(out, "Datapath actions: {}", ops_text(&outcome.ops));
    out
}

/// A packet's fields, those that it has.
pub fn shown(flow: &Key) -> String {
    let mut all = Match::default();
    for &field in Field::ALL {
        if all.allows(field.info().need) && (flow.lie(field) != 0 || SHOWN_ALWAYS.contains(&field)) {
            let mask = crate::vswitch::flow::fields::ones(Key::width(field));
            all.mask.lay(field, mask);
            all.key.lay(field, flow.lie(field));
        }
    }
    all.text(crate::vswitch::flow::action::DEFAULT_PRIORITY, &Numbers)
}

const SHOWN_ALWAYS: &[Field] = &[
    Field::InPortOxm,
    Field::EthSrc,
    Field::EthDst,
    Field::EthType,
    Field::VlanTci,
    Field::NwSrc,
    Field::NwDst,
    Field::Ipv6Src,
    Field::Ipv6Dst,
    Field::NwProto,
    Field::NwTos,
    Field::NwEcn,
    Field::NwTtl,
    Field::NwFrag,
    Field::TcpSrc,
    Field::TcpDst,
    Field::UdpSrc,
    Field::UdpDst,
    Field::IcmpType,
    Field::IcmpCode,
];

impl Walk<'_> {
    fn tell_action(&mut self, action: &Action) {
        if self.tell {
            let text = print::action_text(action, &Numbers);
            self.say(|| text);
        }
    }

    /// Copies of what came in.
    fn mirror_in(&mut self) {
        let from = self.flow.in_port();
        self.mirror(|m| m.all || m.from.contains(&from));
    }

    /// Copies of what goes out.
    fn mirror_out(&mut self, to: u32) {
        self.mirror(|m| m.all || m.to.contains(&to));
    }

    fn mirror(&mut self, wants: impl Fn(&super::Mirror) -> bool) {
        let bridge = self.bridge();
        for (i, mirror) in bridge.mirrors.iter().enumerate().take(32) {
            if self.mirrored & 1 << i != 0 || !wants(mirror) {
                continue;
            }
            if !mirror.vlans.is_empty() {
                self.out.mask.mark(Field::VlanTci);
                if !mirror.vlans.contains(&(self.flow.vlan_tci() & 0xfff)) {
                    continue;
                }
            }
            self.mirrored |= 1 << i;
            if let Some(port) = mirror.output.and_then(|p| bridge.ports.get(&p)) {
                self.commit();
                self.out.ops.push(Op::Output(port.dp));
            }
        }
    }

    /// Sends it to every port that `wants` it, but the one that it came from.
    fn flood(&mut self, wants: impl Fn(&super::Port) -> bool) {
        let from = self.flow.in_port();
        let to: Vec<u32> =
            self.bridge().ports.values().filter(|p| p.number != from && wants(p)).map(|p| p.number).collect();
        to.into_iter().for_each(|p| self.output(p));
    }

    fn output_to(&mut self, number: u32, max_len: u16) {
        let from = self.flow.in_port();
        match number {
            port::IN_PORT => self.output(from),
            port::TABLE => self.lookup(0, from),
            port::NORMAL => self.normal(),
            port::FLOOD => self.flood(|p| !p.no_flood),
            port::ALL => self.flood(|_| true),
            port::CONTROLLER => self.tell_controller(Controller::plain(max_len)),
            port::ANY | port::UNSET => {}
            other if other == from => self.say(|| ">> skipping output to input port".into()),
            other => self.output(other),
        }
    }
}
