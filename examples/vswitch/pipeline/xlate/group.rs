//! Groups, bundles, the action set.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Walk;
use crate::vswitch::flow::Field;
use crate::vswitch::flow::action::{Action, Bucket, Bundle, GroupKind, Hash};
use crate::vswitch::pipeline::Grouped;

/// Groups that are asked whether they live, one through the other.
const MAX_CHAIN: usize = 16;

/// In which order an action set is done (OpenFlow 1.3 §5.10); `None`: not in a set.
fn rank(action: &Action) -> Option<usize> {
    Some(match action {
        Action::PopVlan { .. } => 1,
        Action::PopMpls(_) => 2,
        Action::PushMpls(_) => 3,
        Action::PushVlan(_) => 4,
        Action::DecTtl(_) => 5,
        Action::DecMplsTtl => 6,
        Action::SetField { .. } | Action::Load { .. } | Action::Move { .. } => 7,
        Action::SetVlanVid { .. }
        | Action::SetVlanPcp { .. }
        | Action::SetEthSrc(_)
        | Action::SetEthDst(_) => 7,
        Action::SetIpv4Src(_) | Action::SetIpv4Dst(_) | Action::SetDscp(_) | Action::SetEcn(_) => 7,
        Action::SetTtl(_) | Action::SetTpSrc(_) | Action::SetTpDst(_) | Action::SetTunnel { .. } => 7,
        Action::SetMplsLabel(_) | Action::SetMplsTc(_) | Action::SetMplsTtl(_) => 7,
        Action::SetQueue(_) => 8,
        Action::Ct(_) | Action::Group(_) | Action::Output { .. } | Action::Resubmit { .. } => 9,
        _ => return None,
    })
}

/// Whether a later action of the set takes the place of an earlier one.
fn same_kind(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::SetField { field: f, .. }, Action::SetField { field: g, .. }) => f == g,
        (Action::Load { .. } | Action::Move { .. }, _) => false,
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

impl Walk<'_> {
    pub(super) fn write_actions(&mut self, actions: &[Action]) {
        for action in actions {
            self.action_set.retain(|old| !same_kind(old, action));
            self.action_set.push(action.clone());
        }
    }

    /// Does the action set, in its order; of a group and an output, the group.
    pub(super) fn run_action_set(&mut self) {
        let mut set = std::mem::take(&mut self.action_set);
        if set.is_empty() || self.exit {
            return;
        }
        set.retain(|a| rank(a).is_some());
        set.sort_by_key(rank);
        let last = |set: &[Action], pick: fn(&Action) -> bool| set.iter().rev().find(|a| pick(a)).cloned();
        let goal = last(&set, |a| matches!(a, Action::Group(_)))
            .or_else(|| last(&set, |a| matches!(a, Action::Output { .. })))
            .or_else(|| last(&set, |a| rank(a) == Some(9)));
        set.retain(|a| rank(a) != Some(9));
        let Some(goal) = goal else { return };
        set.push(goal);
        self.apply(&set);
    }

    pub(super) fn group(&mut self, id: u32) {
        let Some(grouped) = self.bridge().groups.get(&id) else { return };
        if self.depth >= super::MAX_DEPTH {
            return;
        }
        let buckets = &grouped.group.buckets;
        match grouped.group.kind {
            GroupKind::All | GroupKind::Indirect => {
                (0..buckets.len())
                    .filter(|i| self.lives(&buckets[*i], 0))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|i| self.bucket(grouped, i));
            }
            GroupKind::FastFailover => {
                if let Some(i) = (0..buckets.len()).find(|i| self.watched(&buckets[*i], 0)) {
                    self.bucket(grouped, i);
                }
            }
            GroupKind::Select => {
                if let Some(i) = self.choose(grouped) {
                    self.bucket(grouped, i);
                }
            }
        }
    }

    fn bucket(&mut self, grouped: &Grouped, i: usize) {
        let counted = [0, i + 1].into_iter().filter_map(|n| grouped.passed.get(n).map(Arc::clone));
        self.out.groups.extend(counted);
        let (flow, base, ops) = (self.flow, self.base, std::mem::take(&mut self.out.ops));
        let (set, stack, unlabelled, inside) =
            (std::mem::take(&mut self.action_set), self.stack.clone(), self.unlabelled, self.in_group);
        self.in_group = true;
        self.depth += 1;
        self.indent += 1;
        // A bucket's actions are a set.
        self.write_actions(&grouped.group.buckets[i].actions);
        let listed = std::mem::take(&mut self.action_set);
        self.bucket_actions(&listed);
        self.indent -= 1;
        self.depth -= 1;
        let inner = std::mem::replace(&mut self.out.ops, ops);
        (self.flow, self.base, self.action_set, self.stack) = (flow, base, set, stack);
        (self.unlabelled, self.in_group, self.exit) = (unlabelled, inside, false);
        self.nest(inner);
    }

    /// Those that change the packet first, then where it goes; several outputs, as Open vSwitch allows.
    fn bucket_actions(&mut self, actions: &[Action]) {
        let mut sorted: Vec<Action> = actions.to_vec();
        sorted.sort_by_key(|a| rank(a).unwrap_or(7));
        self.apply(&sorted);
    }

    /// Whether a bucket may be used: nothing that it watches is down.
    fn lives(&self, bucket: &Bucket, chain: usize) -> bool {
        (bucket.watch_port.is_none() && bucket.watch_group.is_none()) || self.watched(bucket, chain)
    }

    /// Whether something that it watches is up.
    fn watched(&self, bucket: &Bucket, chain: usize) -> bool {
        let port = bucket.watch_port.and_then(|p| self.bridge().ports.get(&p));
        if port.is_some_and(|p| p.up.load(Ordering::Relaxed)) {
            return true;
        }
        let group = bucket.watch_group.and_then(|g| self.bridge().groups.get(&g));
        chain < MAX_CHAIN && group.is_some_and(|g| g.group.buckets.iter().any(|b| self.watched(b, chain + 1)))
    }

    /// A bucket by hash and weight: of each live one a score, and the best has it, so that few flows move
    /// when one comes or goes.
    fn choose(&mut self, grouped: &Grouped) -> Option<usize> {
        let hash = if grouped.group.method == "hash" && !grouped.group.fields.is_empty() {
            let basis = mix(grouped.group.param as u32 ^ (grouped.group.param >> 32) as u32);
            grouped.group.fields.iter().fold(basis, |hash, (field, mask)| {
                self.out.mask.mark_bits(*field, *mask);
                let value = self.flow.get(*field) & mask;
                (0..4).fold(hash, |h, i| mix(h ^ (value >> (32 * i)) as u32))
            })
        } else {
            self.hash(Hash::SymmetricL4, 0)
        };
        let buckets = grouped.group.buckets.iter().enumerate();
        let live = buckets.filter(|(_, b)| b.weight > 0 && self.lives(b, 0));
        let score = |(i, b): &(usize, &Bucket)| {
            u64::from(mix(hash ^ mix(*i as u32 + 1)) & 0xffff) * u64::from(b.weight)
        };
        live.max_by_key(score).map(|(i, _)| i)
    }

    /// A hash of what `hash` names.
    pub(super) fn hash(&mut self, hash: Hash, basis: u32) -> u32 {
        let single: &[Field] = &[];
        let (both, one): (&[[Field; 2]], &[Field]) = match hash {
            Hash::EthSrc => (&[], &[Field::EthSrc]),
            Hash::NwSrc => (&[], &[Field::NwSrc, Field::Ipv6Src]),
            Hash::NwDst => (&[], &[Field::NwDst, Field::Ipv6Dst]),
            Hash::SymmetricL3 => (&[[Field::NwSrc, Field::NwDst], [Field::Ipv6Src, Field::Ipv6Dst]], single),
            Hash::SymmetricL4 => (
                &[
                    [Field::EthSrc, Field::EthDst],
                    [Field::NwSrc, Field::NwDst],
                    [Field::Ipv6Src, Field::Ipv6Dst],
                    [Field::TcpSrc, Field::TcpDst],
                ],
                &[Field::VlanTci, Field::EthType, Field::NwProto],
            ),
            Hash::SymmetricL3L4 | Hash::SymmetricL3L4Udp => (
                &[
                    [Field::NwSrc, Field::NwDst],
                    [Field::Ipv6Src, Field::Ipv6Dst],
                    [Field::TcpSrc, Field::TcpDst],
                ],
                &[Field::EthType, Field::NwProto],
            ),
        };
        let mut out = mix(basis);
        let mut add = |value: u128| (0..4).for_each(|i| out = mix(out ^ (value >> (32 * i)) as u32));
        for [a, b] in both {
            self.out.mask.mark(*a);
            self.out.mask.mark(*b);
            add(self.flow.lie(*a) ^ self.flow.lie(*b));
        }
        for field in one {
            self.out.mask.mark(*field);
            add(self.flow.lie(*field));
        }
        out
    }

    pub(super) fn bundle(&mut self, bundle: &Bundle) {
        let up = |port: &u32| self.bridge().ports.get(port).is_some_and(|p| p.up.load(Ordering::Relaxed));
        let live: Vec<u32> = bundle.slaves.iter().copied().filter(up).collect();
        let chosen = if bundle.active_backup {
            live.first().copied()
        } else {
            let hash = self.hash(bundle.fields, u32::from(bundle.basis));
            live.into_iter().max_by_key(|port| mix(hash ^ mix(*port)))
        };
        match (bundle.dst, chosen) {
            (Some(dst), port) => {
                self.write(dst, port.unwrap_or(crate::vswitch::flow::action::port::ANY).into())
            }
            (None, Some(port)) => self.output_to(port, 0),
            (None, None) => {}
        }
    }
}

/// Mixes 32 bits well (the finish of MurmurHash3).
pub(super) fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}
