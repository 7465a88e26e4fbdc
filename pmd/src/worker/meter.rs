//! Where the time of a core goes.

use crate::sys::cycles::cycles;

use super::CoreCounters;

/// Tells busy turns from idle ones. It looks at the clock when something moved, and else only now and then:
/// a look takes about as long as an idle turn, and a packet that arrives meanwhile waits.
pub(super) struct Meter {
    then: u64,
    /// Idle turns since it last looked.
    idle: u32,
    /// Cycles of an idle turn.
    each: u64,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { then: cycles(), idle: 0, each: 0 }
    }

    #[inline(always)]
    fn spent(&mut self) -> u64 {
        let now = cycles();
        now.wrapping_sub(std::mem::replace(&mut self.then, now))
    }

    #[inline(always)]
    fn turns(&mut self, counters: &CoreCounters, busy: u64) {
        let idle = u64::from(std::mem::take(&mut self.idle));
        counters.turns.add(idle + busy);
        counters.empty_turns.add(idle);
    }

    /// A turn in which nothing moved.
    #[inline(always)]
    pub(super) fn idle(&mut self) {
        self.idle += 1;
    }

    /// A turn in which something did.
    #[inline(always)]
    pub(super) fn busy(&mut self, counters: &CoreCounters) {
        let spent = self.spent();
        let idle = (u64::from(self.idle) * self.each).min(spent);
        if idle > 0 {
            counters.idle_cycles.add(idle);
        }
        counters.busy_cycles.add(spent - idle);
        self.turns(counters, 1);
    }

    /// After idle turns.
    pub(super) fn look(&mut self, counters: &CoreCounters) {
        let spent = self.spent();
        counters.idle_cycles.add(spent);
        // A core that was away says nothing of a turn.
        let each = spent / u64::from(self.idle.max(1));
        self.each = if self.each == 0 { each } else { each.min(2 * self.each) };
        self.turns(counters, 0);
    }

    /// After a time without turns.
    pub(super) fn rested(&mut self, counters: &CoreCounters) {
        let spent = self.spent();
        counters.idle_cycles.add(spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_turn_and_every_cycle_is_counted_once() {
        let (counters, begin) = (CoreCounters::default(), cycles());
        let mut meter = Meter::new();
        for lap in 0..100 {
            (0..16).for_each(|_| meter.idle());
            meter.look(&counters);
            (0..lap % 16).for_each(|_| meter.idle());
            meter.busy(&counters);
            meter.rested(&counters);
        }
        let all = cycles() - begin;
        let (idle, busy) = (counters.idle_cycles.get(), counters.busy_cycles.get());
        assert!(idle + busy <= all && idle > 0, "{idle} and {busy} of {all}");
        let empty: u64 = (0..100u64).map(|lap| 16 + lap % 16).sum();
        assert_eq!((counters.turns.get(), counters.empty_turns.get()), (empty + 100, empty));
    }
}
