//! What cores keep of translations: made here for them, counted, and looked through when something
//! changed that they depended on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Switch;
use crate::vswitch::flow::{Key, Mask, Match};
use crate::vswitch::packet::Layers;
use crate::vswitch::pipeline::op::{Op, ops_text};
use crate::vswitch::pipeline::rule::{Passed, Rule, now_ms};
use crate::vswitch::pipeline::xlate::{self, Effect};
use pmd::port::Count;

/// Milliseconds without a packet after which a core need not keep a translation.
pub const MAX_IDLE_MS: u64 = 10_000;
/// Translations that all cores may keep; beyond, the idle go early.
pub const FLOW_LIMIT: usize = 200_000;

/// What one core keeps, for the control side to look through.
pub type Kept = Arc<Mutex<Vec<Arc<Megaflow>>>>;

/// Milliseconds between two looks for connections that ended.
const AGEING_MS: u64 = 1000;

/// A packet that a core does not know what to do with.
pub struct Upcall<'a> {
    /// Its key.
    pub key: &'a Key,
    /// Where its headers are.
    pub layers: Layers,
}

/// What is done to packets that are alike in the bits of a mask. Shared with the core that keeps it, which
/// alone counts.
#[derive(Debug)]
pub struct Megaflow {
    /// What the packets have.
    pub key: Key,
    /// In which bits.
    pub mask: Mask,
    /// The packet that it was made for.
    pub made_for: Key,
    /// What is done.
    pub ops: Vec<Op>,
    /// Packets.
    pub packets: Count,
    /// Bytes.
    pub bytes: Count,
    /// When the last one came.
    pub used_ms: AtomicU64,
    /// It no longer holds.
    pub dead: AtomicBool,
    /// Up to which change it is known to hold.
    checked: AtomicU64,
    rules: Vec<Arc<Rule>>,
    groups: Vec<Arc<Passed>>,
    effects: Vec<Effect>,
    /// Packets and bytes that its rules have been told of.
    credited: Mutex<(u64, u64)>,
}

impl Switch {
    /// Where a core that comes shows what it keeps.
    pub fn join(&self) -> Kept {
        let kept = Kept::default();
        self.cores.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&kept));
        kept
    }

    /// A core goes, with all that it kept.
    pub fn leave(&self, kept: &Kept) {
        self.cores.lock().unwrap_or_else(PoisonError::into_inner).retain(|core| !Arc::ptr_eq(core, kept));
        for flow in kept.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            flow.credit();
        }
    }

    /// What is to be done to a packet, and to all that are like it.
    pub fn upcall(&self, upcall: &Upcall<'_>) -> Arc<Megaflow> {
        let checked = self.changes.load(Ordering::Relaxed);
        let world = self.read();
        let outcome = xlate::translate(&world, upcall.key, false);
        drop(world);
        self.have_effects(&outcome.effects);
        let now = now_ms();
        Arc::new(Megaflow {
            key: upcall.key.masked(&outcome.mask),
            mask: outcome.mask,
            made_for: *upcall.key,
            ops: outcome.ops,
            packets: Count::default(),
            bytes: Count::default(),
            used_ms: AtomicU64::new(now),
            dead: AtomicBool::new(false),
            checked: AtomicU64::new(checked),
            rules: outcome.rules,
            groups: outcome.groups,
            effects: outcome.effects,
            credited: Mutex::new((0, 0)),
        })
    }

    /// A core keeps a translation from now on. If something changed since it was made, it may have been
    /// passed by when the others were looked through.
    pub fn kept(&self, flow: &Megaflow) {
        if flow.checked.load(Ordering::Relaxed) != self.changes.load(Ordering::Relaxed) {
            self.late.store(true, Ordering::Relaxed);
        }
    }

    /// Does what translations want done besides.
    pub(super) fn have_effects(&self, effects: &[Effect]) {
        let now = now_ms();
        for effect in effects {
            match effect {
                Effect::Address(bridge, vlan, mac, port) => {
                    let world = self.read();
                    let Some(bridge) = world.bridges.get(*bridge).and_then(Option::as_ref) else { continue };
                    if bridge.fdb.lock().expect("no holder panics").learn(*vlan, *mac, *port, now) {
                        self.changes.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Effect::Learn(bridge, flow, limit) => self.learned(*bridge, flow, *limit),
                Effect::Fin(rule, idle, hard) => rule.lower(*idle, *hard),
            }
        }
    }

    fn megaflows(&self) -> Vec<Arc<Megaflow>> {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of = |core: &Kept| core.lock().unwrap_or_else(PoisonError::into_inner).clone();
        cores.iter().flat_map(of).collect()
    }

    /// Tells rules what passed by them.
    pub fn credit(&self) {
        self.megaflows().iter().for_each(|flow| {
            flow.credit();
        });
    }

    /// Looks through what cores keep: what would come out otherwise, or was not used for long, goes.
    /// Counters are brought to their rules, learned addresses and flows are kept young.
    pub fn revalidate(&self) {
        let mut done = self.revalidated.lock().unwrap_or_else(PoisonError::into_inner);
        let flows = self.megaflows();
        // What passed keeps alive what it had learned; only then is it asked what has changed.
        for flow in &flows {
            if flow.credit() && !flow.dead.load(Ordering::Relaxed) {
                self.have_effects(&flow.effects);
            }
        }
        let now = now_ms();
        if now.saturating_sub(done.1) >= AGEING_MS {
            self.conntrack.lock().unwrap_or_else(PoisonError::into_inner).age(now);
            done.1 = now;
        }
        {
            let world = self.read();
            for bridge in world.bridges.iter().flatten() {
                let mut fdb = bridge.fdb.lock().expect("no holder panics");
                let before = fdb.generation;
                fdb.age(now, bridge.ageing_s);
                if fdb.generation != before {
                    self.changes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        let changes = self.changes.load(Ordering::Relaxed);
        let idle_ms = if flows.len() > FLOW_LIMIT { 100 } else { MAX_IDLE_MS };
        let world = self.read();
        for flow in &flows {
            let idle = now.saturating_sub(flow.used_ms.load(Ordering::Relaxed)) > idle_ms;
            let changed = flow.checked.swap(changes, Ordering::Relaxed) != changes;
            if idle || changed && !flow.holds(&world) {
                flow.dead.store(true, Ordering::Release);
            }
        }
        drop(world);
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for core in cores {
            core.lock().unwrap_or_else(PoisonError::into_inner).retain(|flow| {
                let dead = flow.dead.load(Ordering::Relaxed);
                if dead {
                    flow.credit();
                }
                !dead
            });
        }
        done.0 = changes;
    }

    /// Revalidates if anything has changed since it was last done. After it no packet goes by what was
    /// before.
    pub fn catch_up(&self) {
        let done = self.revalidated.lock().unwrap_or_else(PoisonError::into_inner).0;
        let late = self.late.swap(false, Ordering::Relaxed);
        if late || self.changes.load(Ordering::Relaxed) != done {
            self.revalidate();
        }
    }

    /// What cores keep, as `dpctl/dump-flows` prints it.
    pub fn dump_datapath(&self) -> Vec<String> {
        let now = now_ms();
        let text = |flow: &Arc<Megaflow>| {
            let matching = Match { key: flow.key, mask: flow.mask }.megaflow_text();
            let used = match flow.packets.get() {
                0 => "never".into(),
                _ => {
                    let ms = now.saturating_sub(flow.used_ms.load(Ordering::Relaxed));
                    format!("{}.{:03}s", ms / 1000, ms % 1000)
                }
            };
            let (packets, bytes) = (flow.packets.get(), flow.bytes.get());
            format!(
                "{matching}, packets:{packets}, bytes:{bytes}, used:{used}, actions:{}",
                ops_text(&flow.ops)
            )
        };
        self.megaflows().iter().map(text).collect()
    }

    /// Everything that cores keep is forgotten.
    pub fn flush_datapath(&self) {
        for flow in self.megaflows() {
            flow.dead.store(true, Ordering::Release);
        }
        self.revalidate();
    }
}

impl Megaflow {
    /// Tells its rules what passed since; whether anything did.
    fn credit(&self) -> bool {
        let mut told = self.credited.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.packets.get(), self.bytes.get());
        let (packets, bytes) = (now.0 - told.0, now.1 - told.1);
        if packets == 0 {
            return false;
        }
        let used = self.used_ms.load(Ordering::Relaxed);
        for passed in self.rules.iter().map(|r| &r.passed).chain(&self.groups) {
            passed.add(packets, bytes, used);
        }
        *told = now;
        true
    }

    /// Whether it would come out the same.
    fn holds(&self, world: &crate::vswitch::pipeline::World) -> bool {
        let outcome = xlate::translate(world, &self.made_for, false);
        let same_rules = outcome.rules.len() == self.rules.len()
            && outcome.rules.iter().zip(&self.rules).all(|(a, b)| Arc::ptr_eq(a, b));
        // A mask that is narrower than needed is no wrong.
        outcome.ops == self.ops && same_rules && outcome.mask.within(&self.mask)
    }
}
