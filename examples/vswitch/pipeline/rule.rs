//! A rule: a flow in its table, and what passed by it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::vswitch::flow::Flow;

/// Milliseconds since the switch was first asked for the time.
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    // Not zero: that stands for never.
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// What passed by a rule. Several cores add to it, seldom.
#[derive(Debug, Default)]
pub struct Passed {
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ms: AtomicU64,
}

impl Passed {
    /// Adds.
    pub fn add(&self, packets: u64, bytes: u64, used_ms: u64) {
        // Relaxed all: counts order nothing.
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used_ms.fetch_max(used_ms, Ordering::Relaxed);
    }

    /// Packets, bytes, and when the last one came (0: never).
    pub fn get(&self) -> (u64, u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (load(&self.packets), load(&self.bytes), load(&self.used_ms))
    }
}

/// A flow in its table.
#[derive(Debug)]
pub struct Rule {
    /// The flow. What may be changed of it (actions, cookie) is changed by another rule in its place.
    pub flow: Flow,
    /// When it came.
    pub created_ms: u64,
    /// When it was last changed, or learned again.
    pub modified_ms: AtomicU64,
    /// What passed; it stays when the rule is changed.
    pub passed: Arc<Passed>,
    /// Timeouts that `fin_timeout` has lowered: idle in the upper half, hard in the lower; all ones: not.
    pub lowered: AtomicU64,
}

impl Rule {
    /// A flow that comes now.
    pub fn new(flow: Flow, now: u64) -> Rule {
        Rule {
            flow,
            created_ms: now,
            modified_ms: AtomicU64::new(now),
            passed: Arc::default(),
            lowered: AtomicU64::new(u64::MAX),
        }
    }

    /// Seconds after which it goes: idle and hard; 0: never.
    pub fn timeouts(&self) -> (u16, u16) {
        let lowered = self.lowered.load(Ordering::Relaxed);
        let least = |own: u16, other: u32| match u16::try_from(other) {
            Ok(other) if other != 0 && (own == 0 || other < own) => other,
            _ => own,
        };
        (least(self.flow.idle_timeout, (lowered >> 32) as u32), least(self.flow.hard_timeout, lowered as u32))
    }

    /// Lowers its timeouts.
    pub fn lower(&self, idle: u16, hard: u16) {
        let half = |n: u16| if n == 0 { u64::from(u32::MAX) } else { u64::from(n) };
        self.lowered.store(half(idle) << 32 | half(hard), Ordering::Relaxed);
    }
}
