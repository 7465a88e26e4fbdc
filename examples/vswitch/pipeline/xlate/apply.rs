//! Actions, one by one.

use super::{Effect, Walk};
use crate::vswitch::flow::Field;
use crate::vswitch::flow::action::{Action, Controller, Ct, Reason, SAME_TABLE, Zone, port};
use crate::vswitch::flow::fields::{Subfield, ones};
use crate::vswitch::flow::key::{Key, VLAN_PRESENT, ether, mac_value, proto, word};
use crate::vswitch::pipeline::op::{CtOp, Op};

impl Walk<'_> {
    pub(super) fn apply(&mut self, actions: &[Action]) {
        for action in actions {
            if self.exit {
                return;
            }
            self.tell_action(action);
            self.one(action);
            if std::mem::take(&mut self.cut) {
                return;
            }
        }
    }

    fn one(&mut self, action: &Action) {
        match action {
            Action::Output { port, max_len } => self.output_to(*port, *max_len),
            Action::OutputReg { src, max_len } => {
                let number = self.read(*src) as u32;
                let number = if src.len <= 16 {
                    crate::vswitch::flow::action::port_from_16(number as u16)
                } else {
                    number
                };
                self.output_to(number, *max_len);
            }
            Action::OutputTrunc { port, max_len } => {
                self.truncate = Some(*max_len);
                self.output_to(*port, 0);
                self.truncate = None;
            }
            Action::Controller(how) => self.tell_controller((**how).clone()),
            Action::Enqueue { port, .. } => self.output_to(*port, 0),
            // Queues of ports are not told apart.
            Action::SetQueue(_) | Action::PopQueue | Action::Note(_) | Action::Sample(_) => {}
            Action::Group(id) => self.group(*id),
            Action::Resubmit { port, table, .. } => {
                let from = if *port == port::IN_PORT { self.flow.in_port() } else { *port };
                let table = if *table == SAME_TABLE { self.table } else { *table };
                self.go(table, from);
            }
            Action::GotoTable(table) => {
                let from = self.flow.in_port();
                self.go_on(*table, from);
            }
            Action::Learn(learn) => self.learn(learn),
            Action::Exit => self.exit = true,
            Action::Clone(inner) => self.aside(inner),
            Action::Ct(ct) => self.ct(ct),
            Action::CtClear => self.ct_clear(),
            Action::Meter(id) => {
                if let Some(bucket) = self.bridge().meters.get(id) {
                    self.out.ops.push(Op::Meter(*id, std::sync::Arc::clone(bucket)));
                }
            }
            Action::ClearActions => self.action_set.clear(),
            Action::WriteActions(inner) => self.write_actions(inner),
            Action::FinTimeout { idle, hard } => self.fin_timeout(*idle, *hard),
            Action::Multipath(m) => {
                let hash = self.hash(m.fields, u32::from(m.basis));
                let link = u128::from(hash % (u32::from(m.max_link) + 1));
                self.write(m.dst, link);
            }
            Action::Bundle(b) => self.bundle(b),
            // Within `ct` only; of rules that are met together with others.
            Action::Nat(_) | Action::Conjunction { .. } | Action::CheckPktLarger { .. } => {}
            _ => self.edit(action),
        }
    }

    /// Actions that change fields.
    fn edit(&mut self, action: &Action) {
        match action {
            Action::SetField { field, value, mask } => {
                if !self.has(*field) {
                    return;
                }
                self.out.mask.mark(*field);
                let old = self.flow.get(*field);
                self.flow.set(*field, old & !mask | value & mask);
            }
            Action::Load { value, dst } => self.write(*dst, *value),
            Action::Move { src, dst } => {
                let value = self.read(*src);
                self.write(*dst, value);
            }
            Action::StackPush(src) => {
                let value = self.read(*src);
                self.stack.push((value, src.len));
            }
            Action::StackPop(dst) => {
                if let Some((value, _)) = self.stack.pop() {
                    self.write(*dst, value & ones(dst.len));
                }
            }
            Action::SetEthSrc(mac) => self.put(Field::EthSrc, mac_value(*mac)),
            Action::SetEthDst(mac) => self.put(Field::EthDst, mac_value(*mac)),
            Action::SetIpv4Src(ip) => self.put(Field::NwSrc, (*ip).into()),
            Action::SetIpv4Dst(ip) => self.put(Field::NwDst, (*ip).into()),
            Action::SetDscp(tos) => self.put(Field::NwTos, (*tos).into()),
            Action::SetEcn(ecn) => self.put(Field::NwEcn, (*ecn).into()),
            Action::SetTtl(ttl) => self.put(Field::NwTtl, (*ttl).into()),
            Action::SetTpSrc(p) => self.put_port(Field::TcpSrc, *p),
            Action::SetTpDst(p) => self.put_port(Field::TcpDst, *p),
            Action::WriteMetadata { value, mask } => {
                let old = self.flow.words[word::METADATA];
                self.flow.words[word::METADATA] = old & !mask | value & mask;
            }
            Action::SetTunnel { id, .. } => self.flow.lay(Field::TunId, (*id).into()),
            Action::DecTtl(_) => self.dec_ttl(),
            _ => self.layers(action),
        }
    }

    /// Actions on tags and labels.
    fn layers(&mut self, action: &Action) {
        match action {
            Action::SetVlanVid { vid, push } => self.set_vlan(Field::VlanVid, (*vid).into(), *push),
            Action::SetVlanPcp { pcp, push } => self.set_vlan(Field::VlanPcp, (*pcp).into(), *push),
            Action::PushVlan(kind) => {
                let tci = self.flow.vlan_tci();
                self.push_vlan(*kind, if tci == 0 { VLAN_PRESENT } else { tci });
            }
            Action::PopVlan { .. } => self.pop_vlan(),
            Action::PushMpls(kind) => self.push_mpls(*kind),
            Action::PopMpls(kind) => self.pop_mpls(*kind),
            Action::SetMplsLabel(label) => self.put(Field::MplsLabel, (*label).into()),
            Action::SetMplsTc(tc) => self.put(Field::MplsTc, (*tc).into()),
            Action::SetMplsTtl(ttl) => self.put(Field::MplsTtl, (*ttl).into()),
            Action::DecMplsTtl => {
                let ttl = self.flow.lie(Field::MplsTtl);
                self.out.mask.mark(Field::MplsTtl);
                if !self.has(Field::MplsTtl) {
                    return;
                }
                if ttl > 1 {
                    self.put(Field::MplsTtl, ttl - 1);
                } else {
                    self.invalid_ttl();
                }
            }
            _ => {}
        }
    }

    /// Whether the packet has a field: writing one that it has not does nothing.
    fn has(&mut self, field: Field) -> bool {
        use crate::vswitch::flow::fields::Need;
        let kind = self.flow.ether_type();
        let protocol = self.flow.nw_proto();
        let ip = self.flow.is_ip();
        let mut upper = |p: u8| {
            self.out.mask.mark(Field::NwProto);
            ip && protocol == p && self.flow.lie(Field::NwFrag) & 2 == 0
        };
        match field.info().need {
            Need::None => true,
            Need::VlanVid => {
                self.out.mask.mark(Field::VlanVid);
                self.flow.vlan_tci() & VLAN_PRESENT != 0
            }
            Need::Arp => matches!(kind, ether::ARP | ether::RARP),
            Need::Ipv4 => kind == ether::IPV4,
            Need::Ipv6 => kind == ether::IPV6,
            Need::Ip | Need::Ct => ip,
            Need::Mpls => matches!(kind, ether::MPLS | ether::MPLS_MULTICAST),
            Need::Tcp => upper(proto::TCP),
            Need::Udp => upper(proto::UDP),
            Need::Sctp => upper(proto::SCTP),
            Need::Icmp4 => upper(proto::ICMP),
            Need::Icmp6 | Need::Nd | Need::NdSolicit | Need::NdAdvert => upper(proto::ICMP6),
        }
    }

    pub(super) fn read(&mut self, src: Subfield) -> u128 {
        self.out.mask.mark_bits(src.field, src.mask());
        self.flow.get_sub(src)
    }

    pub(super) fn write(&mut self, dst: Subfield, value: u128) {
        if self.has(dst.field) {
            self.out.mask.mark(dst.field);
            self.flow.set_sub(dst, value);
        }
    }

    fn put(&mut self, field: Field, value: u128) {
        if self.has(field) {
            self.out.mask.mark(field);
            self.flow.set(field, value);
        }
    }

    fn put_port(&mut self, field: Field, value: u16) {
        self.out.mask.mark(Field::NwProto);
        let upper = matches!(self.flow.nw_proto(), proto::TCP | proto::UDP | proto::SCTP);
        if self.flow.is_ip() && upper && self.flow.lie(Field::NwFrag) & 2 == 0 {
            self.out.mask.mark(field);
            self.flow.lay(field, value.into());
        }
    }

    fn dec_ttl(&mut self) {
        if !self.flow.is_ip() {
            return;
        }
        self.out.mask.mark(Field::NwTtl);
        let ttl = self.flow.lie(Field::NwTtl);
        if ttl > 1 {
            self.flow.lay(Field::NwTtl, ttl - 1);
        } else {
            self.invalid_ttl();
        }
    }

    /// The controllers are told, and the actions behind it are not done.
    fn invalid_ttl(&mut self) {
        self.tell_controller(Controller { reason: Reason::InvalidTtl, ..Controller::plain(u16::MAX) });
        self.cut = true;
    }

    fn set_vlan(&mut self, field: Field, value: u128, push: bool) {
        self.out.mask.mark(Field::VlanTci);
        if self.flow.vlan_tci() & VLAN_PRESENT == 0 {
            if !push {
                return;
            }
            self.push_vlan(ether::VLAN, VLAN_PRESENT);
        }
        self.flow.set(field, value);
    }

    pub(super) fn push_vlan(&mut self, kind: u16, tci: u16) {
        self.commit();
        self.out.mask.mark(Field::VlanTci);
        self.out.mask.mark(Field::VlanTci1);
        let outer = self.flow.vlan_tci();
        self.flow.lay(Field::VlanTci1, outer.into());
        self.flow.lay(Field::VlanTci, tci.into());
        self.base.lay(Field::VlanTci1, outer.into());
        self.base.lay(Field::VlanTci, tci.into());
        self.out.ops.push(Op::PushVlan(kind, tci));
    }

    pub(super) fn pop_vlan(&mut self) {
        self.out.mask.mark(Field::VlanTci);
        if self.flow.vlan_tci() & VLAN_PRESENT == 0 {
            return;
        }
        self.commit();
        self.out.mask.mark(Field::VlanTci1);
        let inner = self.flow.lie(Field::VlanTci1);
        for key in [&mut self.flow, &mut self.base] {
            key.lay(Field::VlanTci, inner);
            key.lay(Field::VlanTci1, 0);
        }
        self.out.ops.push(Op::PopVlan);
    }

    fn push_mpls(&mut self, kind: u16) {
        self.commit();
        let labelled = self.has(Field::MplsLabel);
        let entry: u32 = if labelled {
            self.out.mask.mark(Field::MplsLse);
            self.out.mask.mark(Field::MplsLse1);
            self.flow.lie(Field::MplsLse) as u32 & !0x100
        } else {
            // The lowest label takes TTL and class of what it is put in front of.
            let (mut ttl, mut tc) = (64, 0);
            if self.flow.is_ip() {
                self.out.mask.mark(Field::NwTtl);
                self.out.mask.mark(Field::NwTos);
                ttl = self.flow.lie(Field::NwTtl) as u32;
                tc = self.flow.lie(Field::NwTos) as u32 >> 5;
            }
            let label: u32 = if self.flow.ether_type() == ether::IPV6 { 2 } else { 0 };
            label << 12 | tc << 9 | 0x100 | ttl
        };
        let below = if labelled { self.flow.lie(Field::MplsLse) } else { 0 };
        for key in [&mut self.flow, &mut self.base] {
            if !labelled {
                forget_network(key);
            }
            key.lay(Field::EthType, kind.into());
            key.lay(Field::MplsLse, entry.into());
            key.lay(Field::MplsLse1, below);
        }
        self.out.ops.push(Op::PushMpls(kind, entry));
    }

    fn pop_mpls(&mut self, kind: u16) {
        if !self.has(Field::MplsLabel) {
            return;
        }
        self.commit();
        self.out.mask.mark(Field::MplsLse);
        self.out.mask.mark(Field::MplsLse1);
        let below = self.flow.lie(Field::MplsLse1);
        for key in [&mut self.flow, &mut self.base] {
            key.lay(Field::EthType, kind.into());
            key.lay(Field::MplsLse, below);
            key.lay(Field::MplsLse1, 0);
        }
        self.unlabelled = true;
        self.out.ops.push(Op::PopMpls(kind));
    }

    /// Into another table and back.
    fn go(&mut self, table: u8, from: u32) {
        self.indent += 1;
        if self.unlabelled {
            self.commit();
            self.freeze(table);
        } else {
            self.lookup(table, from);
        }
        self.indent -= 1;
    }

    /// Into another table, not back.
    fn go_on(&mut self, table: u8, from: u32) {
        if self.unlabelled {
            self.commit();
            self.freeze(table);
        } else {
            self.lookup(table, from);
        }
    }

    /// Actions on a copy.
    fn aside(&mut self, actions: &[Action]) {
        let (flow, base, ops) = (self.flow, self.base, std::mem::take(&mut self.out.ops));
        let (stack, set, unlabelled) = (self.stack.clone(), self.action_set.clone(), self.unlabelled);
        self.indent += 1;
        self.apply(actions);
        self.indent -= 1;
        let inner = std::mem::replace(&mut self.out.ops, ops);
        (self.flow, self.base, self.stack, self.action_set) = (flow, base, stack, set);
        (self.unlabelled, self.exit) = (unlabelled, false);
        self.nest(inner);
    }

    /// Adds what is done on a copy: as it is, where it does not change the packet.
    pub(super) fn nest(&mut self, inner: Vec<Op>) {
        if inner.iter().all(|op| matches!(op, Op::Output(_) | Op::Controller(_))) {
            self.out.ops.extend(inner);
        } else {
            self.out.ops.push(Op::Clone(inner));
        }
    }

    fn ct_clear(&mut self) {
        self.out.mask.mark(Field::CtState);
        if self.flow.lie(Field::CtState) != 0 {
            self.out.ops.push(Op::CtClear);
        }
        for key in [&mut self.flow, &mut self.base] {
            forget_connection(key);
        }
    }

    fn ct(&mut self, ct: &Ct) {
        self.commit();
        let zone = match ct.zone {
            Zone::Number(n) => n,
            Zone::Field(src) => self.read(src) as u16,
        };
        let mut op = CtOp {
            zone,
            commit: ct.commit,
            force: ct.force,
            mark: (0, 0),
            label: (0, 0),
            nat: None,
            alg: ct.alg,
        };
        // Mark and label are the connection's: they are written there, not here.
        let (mark, label) = (self.flow.lie(Field::CtMark), self.flow.lie(Field::CtLabel));
        for action in &ct.actions {
            match action {
                Action::Nat(nat) => op.nat = Some((**nat).clone()),
                Action::SetField { field: Field::CtMark, mask, .. } => op.mark.1 |= *mask as u32,
                Action::SetField { field: Field::CtLabel, mask, .. } => op.label.1 |= mask,
                Action::Load { dst, .. } | Action::Move { dst, .. } if dst.field == Field::CtMark => {
                    op.mark.1 |= dst.mask() as u32;
                }
                Action::Load { dst, .. } | Action::Move { dst, .. } if dst.field == Field::CtLabel => {
                    op.label.1 |= dst.mask();
                }
                _ => {}
            }
            self.edit(action);
        }
        op.mark.0 = self.flow.lie(Field::CtMark) as u32 & op.mark.1;
        op.label.0 = self.flow.lie(Field::CtLabel) & op.label.1;
        self.flow.lay(Field::CtMark, mark);
        self.flow.lay(Field::CtLabel, label);
        let nat = op.nat.is_some();
        if let Some(table) = ct.table {
            // A copy goes on, with its connection; this one does not know it.
            let ops = std::mem::take(&mut self.out.ops);
            self.out.ops.push(Op::Ct(Box::new(op)));
            self.freeze(table);
            let inner = std::mem::replace(&mut self.out.ops, ops);
            self.out.ops.push(Op::Clone(inner));
        } else {
            self.out.ops.push(Op::Ct(Box::new(op)));
            if nat {
                // Its addresses are not known any more.
                self.out.mask.mark(Field::CtState);
            }
        }
        for key in [&mut self.flow, &mut self.base] {
            forget_connection(key);
        }
    }

    fn fin_timeout(&mut self, idle: u16, hard: u16) {
        self.out.mask.mark(Field::NwProto);
        if self.flow.is_ip() && self.flow.nw_proto() == proto::TCP {
            self.out.mask.mark_raw(Field::TcpFlags, 5);
            if self.flow.lie(Field::TcpFlags) & 5 != 0
                && let Some(rule) = &self.rule
            {
                self.out.effects.push(Effect::Fin(std::sync::Arc::clone(rule), idle, hard));
            }
        }
    }
}

/// What lies behind a label cannot be matched.
fn forget_network(key: &mut Key) {
    for word in
        [word::IP4, word::L4, word::SRC6, word::SRC6 + 1, word::DST6, word::DST6 + 1, word::ND, word::ND + 1]
    {
        key.words[word] = 0;
    }
    key.words[word::ARP_SHA] = 0;
    key.words[word::ARP_THA] = 0;
    key.words[word::MISC] &= 0x0000_ffff_0000_0000;
}

fn forget_connection(key: &mut Key) {
    for word in word::CT..word::TUN_ID {
        if word == word::MARK {
            key.words[word] &= 0xffff_ffff;
        } else {
            key.words[word] = 0;
        }
    }
}
