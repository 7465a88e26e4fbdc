//! One OpenFlow table: rules by priority, and which bits of a packet a look-up depended on.
//!
//! Rules of one mask are a subtable, a hash map. A look-up walks the subtables from the highest priority
//! down. What it learns of the packet is noted as little as possible: an address whose first bits no
//! rule has is known by these bits, and a rule that differs in the Ethernet header is known to differ
//! without its ports.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::rule::Rule;
use crate::vswitch::flow::action::Action;
use crate::vswitch::flow::fields::ones;
use crate::vswitch::flow::key::word;
use crate::vswitch::flow::{Field, Key, Mask, Match};

/// Fields of which first bits may tell that no rule matches.
const PREFIXES: &[Field] =
    &[Field::NwSrc, Field::NwDst, Field::Ipv6Src, Field::Ipv6Dst, Field::TcpSrc, Field::TcpDst];
/// Stages of a look-up: metadata, Ethernet, network, all.
const STAGES: usize = 4;

/// Mixes words; for keys that no peer chooses the hash of is not needed: the slow path is rate-limited.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }
}

type Map<V> = HashMap<Box<[u64]>, V, BuildHasherDefault<Mix>>;

/// First bits of one field among the rules of a subtable.
struct Prefix {
    field: Field,
    /// How many bits.
    len: u32,
    /// Values, in the field's upper bits, and how many rules have each.
    values: BTreeMap<u128, u32>,
}

impl Prefix {
    fn of(field: Field, mask: &Mask) -> Option<Prefix> {
        let (bits, width) = (mask.lie(field), field.info().bits);
        let len = width - bits.trailing_zeros().min(width);
        (bits != 0 && bits == ones(len) << (width - len)).then(|| Prefix {
            field,
            len,
            values: BTreeMap::new(),
        })
    }

    /// If no rule has the packet's value: the bits that show it.
    fn absent(&self, key: &Key) -> Option<u128> {
        let width = self.field.info().bits;
        let value = key.lie(self.field) & (ones(self.len) << (width - self.len));
        if self.values.contains_key(&value) {
            return None;
        }
        let common = |other: u128| width - (128 - (value ^ other).leading_zeros());
        let below = self.values.range(..value).next_back().map_or(0, |(v, _)| common(*v));
        let above = self.values.range(value..).next().map_or(0, |(v, _)| common(*v));
        let len = below.max(above) + 1;
        Some(ones(len) << (width - len))
    }

    fn count(&mut self, key: &Key, add: bool) {
        let value = key.lie(self.field);
        let n = self.values.entry(value).or_default();
        *n = if add { *n + 1 } else { *n - 1 };
        if *n == 0 {
            self.values.remove(&value);
        }
    }
}

/// Rules of one mask.
struct Subtable {
    mask: Mask,
    /// Words that count.
    words: Vec<usize>,
    /// By value; of each the highest priority first.
    rules: Map<Vec<Arc<Rule>>>,
    /// How many rules have each priority.
    priorities: BTreeMap<u16, u32>,
    prefixes: Vec<Prefix>,
    /// What counts up to a stage, where it is more than before and less than all; values and their rules.
    stages: Vec<(Mask, Vec<usize>, Map<u32>)>,
}

fn used(mask: &Mask) -> Vec<usize> {
    (0..mask.words.len()).filter(|i| mask.words[*i] != 0).collect()
}

fn gather(key: &Key, mask: &Mask, words: &[usize]) -> Box<[u64]> {
    words.iter().map(|i| key.words[*i] & mask.words[*i]).collect()
}

/// Bits of a stage and all before it.
fn stage_mask(stage: usize) -> Mask {
    let mut mask = Mask::default();
    for (i, bits) in mask.words.iter_mut().enumerate() {
        let first = match i {
            word::ETH_DST | word::ETH_SRC => 1,
            word::IP4..=word::MPLS => 2,
            _ => 0,
        };
        if first <= stage {
            *bits = u64::MAX;
        }
    }
    if stage == 2 {
        // Ports and flags come last.
        mask.words[word::L4] = 0xffff_ffff;
        mask.words[word::MISC] = 0xffff_ffff_ffff;
    }
    mask
}

impl Subtable {
    fn new(mask: Mask) -> Subtable {
        let mut stages = Vec::new();
        let mut before = Mask::default();
        for stage in 0..STAGES - 1 {
            let part = mask.masked(&stage_mask(stage));
            if part != before && part != mask {
                stages.push((part, used(&part), Map::default()));
                before = part;
            }
        }
        Subtable {
            words: used(&mask),
            rules: Map::default(),
            priorities: BTreeMap::new(),
            prefixes: PREFIXES.iter().filter_map(|f| Prefix::of(*f, &mask)).collect(),
            stages,
            mask,
        }
    }

    fn best(&self) -> u16 {
        self.priorities.last_key_value().map_or(0, |(p, _)| *p)
    }

    /// The rules that match, the highest priority first.
    fn find(&self, key: &Key, seen: &mut Option<&mut Mask>) -> Option<&[Arc<Rule>]> {
        if let Some(seen) = seen.as_deref_mut() {
            for prefix in &self.prefixes {
                if let Some(bits) = prefix.absent(key) {
                    seen.mark_raw(prefix.field, bits);
                    return None;
                }
            }
            for (mask, words, values) in &self.stages {
                if !values.contains_key(&gather(key, mask, words)) {
                    seen.widen(mask);
                    return None;
                }
            }
            seen.widen(&self.mask);
        }
        self.rules.get(&gather(key, &self.mask, &self.words)).map(Vec::as_slice)
    }

    fn count(&mut self, key: &Key, add: bool) {
        self.prefixes.iter_mut().for_each(|p| p.count(key, add));
        for (mask, words, values) in &mut self.stages {
            let at = gather(key, mask, words);
            let n = values.entry(at.clone()).or_default();
            *n = if add { *n + 1 } else { *n - 1 };
            if *n == 0 {
                values.remove(&at);
            }
        }
    }
}

/// A table.
#[derive(Default)]
pub struct Table {
    /// The highest priority first.
    subtables: Vec<Subtable>,
    len: usize,
    /// Rules that are a dimension of a conjunction.
    conjunctive: usize,
    /// Look-ups, and those that found a rule.
    pub lookups: std::sync::atomic::AtomicU64,
    /// See `lookups`.
    pub matched: std::sync::atomic::AtomicU64,
}

impl Table {
    /// Rules in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rule of the highest priority that matches, or that a conjunction stands for. The bits that it
    /// depended on are added to `seen`.
    pub fn lookup(&self, key: &Key, mut seen: Option<&mut Mask>) -> Option<&Arc<Rule>> {
        if self.conjunctive == 0 {
            return self.best(key, &mut seen, None);
        }
        let mut dimensions = Vec::new();
        let best = self.best(key, &mut seen, Some(&mut dimensions));
        dimensions.retain(|d| best.is_none_or(|b| d.flow.priority > b.flow.priority));
        dimensions.sort_by_key(|d| std::cmp::Reverse(d.flow.priority));
        for met in dimensions.chunk_by(|a, b| a.flow.priority == b.flow.priority) {
            for id in whole(met) {
                let mut key = *key;
                key.lay(Field::ConjId, id.into());
                let rule = self.best(&key, &mut seen, None);
                if rule.is_some() {
                    return rule;
                }
            }
        }
        best
    }

    /// The same without conjunctions; rules that are dimensions of one go to `dimensions`.
    fn best<'t>(
        &'t self,
        key: &Key,
        seen: &mut Option<&mut Mask>,
        mut dimensions: Option<&mut Vec<&'t Arc<Rule>>>,
    ) -> Option<&'t Arc<Rule>> {
        let mut best: Option<&Arc<Rule>> = None;
        for subtable in &self.subtables {
            if best.is_some_and(|b| b.flow.priority >= subtable.best()) {
                break;
            }
            for rule in subtable.find(key, seen).unwrap_or_default() {
                if self.conjunctive > 0 && is_dimension(rule) {
                    dimensions.iter_mut().for_each(|all| all.push(rule));
                } else if best.is_none_or(|b| rule.flow.priority > b.flow.priority) {
                    best = Some(rule);
                    break;
                }
            }
        }
        best
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.subtables.iter().flat_map(|s| s.rules.values().flatten())
    }

    /// The rule of just this match and priority.
    pub fn exact(&self, matching: &Match, priority: u16) -> Option<&Arc<Rule>> {
        let subtable = self.subtables.iter().find(|s| s.mask == matching.mask)?;
        let rules = subtable.rules.get(&gather(&matching.key, &subtable.mask, &subtable.words))?;
        rules.iter().find(|r| r.flow.priority == priority)
    }

    /// Adds a rule in place of one of the same match and priority, which comes back.
    pub fn insert(&mut self, rule: Arc<Rule>) -> Option<Arc<Rule>> {
        let old = self.remove(&rule.flow.matching, rule.flow.priority);
        let mask = rule.flow.matching.mask;
        let at = self.subtables.iter().position(|s| s.mask == mask).unwrap_or_else(|| {
            self.subtables.push(Subtable::new(mask));
            self.subtables.len() - 1
        });
        let subtable = &mut self.subtables[at];
        *subtable.priorities.entry(rule.flow.priority).or_default() += 1;
        subtable.count(&rule.flow.matching.key, true);
        let rules = subtable
            .rules
            .entry(gather(&rule.flow.matching.key, &subtable.mask, &subtable.words))
            .or_default();
        let place = rules.partition_point(|r| r.flow.priority > rule.flow.priority);
        self.conjunctive += usize::from(is_dimension(&rule));
        rules.insert(place, rule);
        self.len += 1;
        self.order();
        old
    }

    /// Takes a rule out.
    pub fn remove(&mut self, matching: &Match, priority: u16) -> Option<Arc<Rule>> {
        let at = self.subtables.iter().position(|s| s.mask == matching.mask)?;
        let subtable = &mut self.subtables[at];
        let value = gather(&matching.key, &subtable.mask, &subtable.words);
        let rules = subtable.rules.get_mut(&value)?;
        let place = rules.iter().position(|r| r.flow.priority == priority)?;
        let rule = rules.remove(place);
        if rules.is_empty() {
            subtable.rules.remove(&value);
        }
        subtable.count(&matching.key, false);
        let n = subtable.priorities.get_mut(&priority).expect("counted when it came");
        *n -= 1;
        if *n == 0 {
            subtable.priorities.remove(&priority);
        }
        if subtable.priorities.is_empty() {
            self.subtables.swap_remove(at);
        }
        self.len -= 1;
        self.conjunctive -= usize::from(is_dimension(&rule));
        self.order();
        Some(rule)
    }

    fn order(&mut self) {
        if !self.subtables.is_sorted_by_key(|s| std::cmp::Reverse(s.best())) {
            self.subtables.sort_by_key(|s| std::cmp::Reverse(s.best()));
        }
    }
}

/// Whether a rule is met together with others only.
fn is_dimension(rule: &Rule) -> bool {
    rule.flow.actions.iter().any(|a| matches!(a, Action::Conjunction { .. }))
}

/// Conjunctions of which a rule of every dimension is among these.
fn whole(met: &[&Arc<Rule>]) -> Vec<u32> {
    let mut found: BTreeMap<u32, (u8, u64)> = BTreeMap::new();
    for action in met.iter().flat_map(|rule| &rule.flow.actions) {
        if let Action::Conjunction { id, clause, clauses } = action {
            let (of, seen) = found.entry(*id).or_default();
            (*of, *seen) = (*clauses, *seen | 1 << (clause & 63));
        }
    }
    let all = |(of, seen): &(u8, u64)| *seen == u64::MAX >> (64 - u32::from(*of).clamp(1, 64));
    found.into_iter().filter(|(_, dimensions)| all(dimensions)).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::flow::Flow;
    use crate::vswitch::flow::values::Numbers;
    use proptest::prelude::*;

    fn rule(text: String) -> Arc<Rule> {
        Arc::new(Rule::new(Flow::parse(&text, &Numbers).unwrap(), 0))
    }

    /// Rules over few values, so that packets meet them.
    fn any_rule() -> impl Strategy<Value = (String, u8)> {
        let part = |name: &'static str, values: &'static [&'static str]| {
            prop::option::of(prop::sample::select(values)).prop_map(move |v| v.map(|v| format!("{name}={v}")))
        };
        let parts = (
            part("in_port", &["1", "2"]),
            part("dl_src", &["00:00:00:00:00:01", "00:00:00:00:00:02/00:00:00:00:00:03"]),
            part("nw_src", &["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "11.0.0.0/8", "0.0.0.1/0.0.0.1"]),
            part("nw_dst", &["10.0.0.0/9", "10.128.0.0/9", "10.1.2.0/24"]),
            part("tp_dst", &["80", "81", "0x50/0xfff0"]),
            part("reg0", &["1", "2/3"]),
        );
        (parts, 0u8..8).prop_map(|((a, b, c, d, e, f), priority)| {
            let parts: Vec<String> = [Some("tcp".into()), a, b, c, d, e, f].into_iter().flatten().collect();
            (format!("priority={priority},{},actions=drop", parts.join(",")), priority)
        })
    }

    fn any_packet() -> impl Strategy<Value = Key> {
        let ip = prop::sample::select(
            &[0x0a01_0203u32, 0x0a01_0204, 0x0a00_0001, 0x0b00_0000, 0x0a80_0101, 1][..],
        );
        (1u32..4, 0u64..5, ip.clone(), ip, 78u16..100, 0u32..4).prop_map(|(port, mac, src, dst, tp, reg)| {
            let mut key = Key::default();
            key.set_in_port(port);
            for (field, value) in [
                (Field::EthType, 0x800),
                (Field::NwProto, 6),
                (Field::EthSrc, mac.into()),
                (Field::NwSrc, src.into()),
                (Field::NwDst, dst.into()),
                (Field::TcpDst, tp.into()),
                (Field::Reg0, reg.into()),
            ] {
                key.lay(field, value);
            }
            key
        })
    }

    proptest! {
        #[test]
        fn a_look_up_finds_the_best_and_depends_on_what_it_says(
            rules in prop::collection::vec(any_rule(), 0..30),
            packets in prop::collection::vec(any_packet(), 1..20),
            gone in any::<u32>(),
        ) {
            let mut table = Table::default();
            // One rule a priority and mask suffices: equal priorities that overlap have no order.
            let all: Vec<Arc<Rule>> = rules.iter().enumerate().map(|(i, (text, p))| {
                let head = format!("priority={}", usize::from(*p) * 100 + i);
                rule(text.replacen(&format!("priority={p}"), &head, 1))
            }).collect();
            for rule in &all {
                prop_assert!(table.insert(Arc::clone(rule)).is_none());
            }
            let kept: Vec<_> = all.iter().enumerate().filter(|(i, rule)| {
                let goes = gone >> (i % 32) & 1 == 1;
                if goes {
                    assert!(table.remove(&rule.flow.matching, rule.flow.priority).is_some());
                }
                !goes
            }).map(|(_, r)| r).collect();
            prop_assert_eq!(table.len(), kept.len());
            let mut seen = Vec::new();
            for packet in &packets {
                let mut mask = Mask::default();
                let found = table.lookup(packet, Some(&mut mask)).map(|r| r.flow.priority);
                let best = kept.iter().filter(|r| r.flow.matching.matches(packet)).map(|r| r.flow.priority).max();
                prop_assert_eq!(found, best);
                prop_assert_eq!(table.lookup(packet, None).map(|r| r.flow.priority), best);
                seen.push((packet.masked(&mask), mask, best));
            }
            for packet in &packets {
                for (key, mask, best) in &seen {
                    if packet.masked(mask) == *key {
                        prop_assert_eq!(table.lookup(packet, None).map(|r| r.flow.priority), *best);
                    }
                }
            }
        }
    }

    #[test]
    fn a_conjunction_is_met_when_all_its_dimensions_are() {
        let mut table = Table::default();
        for text in [
            "priority=9,ip,nw_src=10.0.0.1,actions=conjunction(5,1/2)",
            "priority=9,ip,nw_src=10.0.0.2,actions=conjunction(5,1/2),conjunction(6,1/2)",
            "priority=9,tcp,tp_dst=80,actions=conjunction(5,2/2)",
            "priority=9,tcp,tp_dst=81,actions=conjunction(6,2/2)",
            "priority=7,conj_id=5,ip,actions=output:1",
            "priority=6,conj_id=6,ip,actions=output:2",
            "priority=8,tcp,tp_dst=82,actions=output:4",
            "priority=5,ip,nw_src=10.0.0.1,actions=output:5",
            "priority=1,actions=output:3",
        ] {
            table.insert(rule(text.into()));
        }
        let found = |table: &Table, src: u128, port: u128, mask: &mut Mask| {
            let mut key = Key::default();
            for (field, value) in [
                (Field::EthType, 0x800),
                (Field::NwProto, 6),
                (Field::NwSrc, 0x0a00_0000 + src),
                (Field::TcpDst, port),
            ] {
                key.lay(field, value);
            }
            table.lookup(&key, Some(mask)).unwrap().flow.priority
        };
        let of = |src, port| found(&table, src, port, &mut Mask::default());
        assert_eq!((of(1, 80), of(2, 80), of(2, 81)), (7, 7, 6));
        assert_eq!((of(1, 81), of(1, 82), of(2, 82), of(3, 80)), (5, 8, 8, 1), "not whole");
        let mut mask = Mask::default();
        found(&table, 1, 80, &mut mask);
        assert_eq!((mask.lie(Field::NwSrc), mask.lie(Field::TcpDst)), (0xffff_ffff, 0xffff));
        let dimension = rule("priority=9,tcp,tp_dst=80,actions=conjunction(5,2/2)".into());
        table.remove(&dimension.flow.matching, 9).unwrap();
        assert_eq!(found(&table, 2, 80, &mut Mask::default()), 1);
    }

    #[test]
    fn addresses_are_told_apart_by_as_few_bits_as_possible() {
        let mut table = Table::default();
        table.insert(rule("priority=5,ip,nw_dst=10.0.0.0/24,actions=drop".into()));
        table.insert(rule("priority=1,actions=drop".into()));
        let mut key = Key::default();
        key.lay(Field::EthType, 0x800);
        key.lay(Field::NwDst, 0xc000_0001);
        let mut mask = Mask::default();
        assert_eq!(table.lookup(&key, Some(&mut mask)).unwrap().flow.priority, 1);
        assert_eq!((mask.lie(Field::NwDst), mask.lie(Field::EthType)), (0x8000_0000, 0));
    }
}
