//! Which core looks after which receive queue: by what users pin, and by one of three policies.

/// How queues that nobody pinned are dealt out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In turn.
    RoundRobin,
    /// By their load, there and back over the cores.
    #[default]
    Cycles,
    /// By their load, each to the core that has least so far.
    Group,
}

impl Policy {
    /// In the words of `pmd-rxq-assign`.
    pub fn parse(word: &str) -> Option<Policy> {
        match word {
            "roundrobin" => Some(Policy::RoundRobin),
            "cycles" => Some(Policy::Cycles),
            "group" => Some(Policy::Group),
            _ => None,
        }
    }
}

/// A receive queue that wants a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rxq {
    /// What it costs, in any unit.
    pub load: u64,
    /// The core that a user wants it on, by its place among the cores.
    pub pinned: Option<usize>,
    /// The core that it is on and stays on, if it is not pinned.
    pub stays: Option<usize>,
}

/// Cores that only have what is pinned to them. When no other is left, none is.
pub fn isolated(cores: usize, queues: &[Rxq], isolate: bool) -> Vec<bool> {
    let mut alone = vec![false; cores];
    if isolate {
        queues.iter().filter_map(|q| q.pinned).for_each(|core| alone[core] = true);
    }
    if alone.iter().all(|a| *a) {
        alone.fill(false);
    }
    alone
}

/// A core of `cores` (at least one) for each queue.
pub fn assign(policy: Policy, cores: usize, queues: &[Rxq], isolate: bool) -> Vec<usize> {
    let alone = isolated(cores, queues, isolate);
    let free: Vec<usize> = (0..cores).filter(|c| !alone[*c]).collect();
    let fixed = |q: &Rxq| q.pinned.or(q.stays.filter(|c| !alone[*c]));
    let mut to: Vec<Option<usize>> = queues.iter().map(fixed).collect();
    let mut load = vec![(0u64, 0u32); cores];
    for (q, core) in queues.iter().zip(&to) {
        if let Some(core) = core {
            load[*core] = (load[*core].0 + q.load, load[*core].1 + 1);
        }
    }
    let mut wait: Vec<usize> = (0..queues.len()).filter(|i| to[*i].is_none()).collect();
    if policy != Policy::RoundRobin {
        wait.sort_by_key(|i| std::cmp::Reverse(queues[*i].load));
    }
    // One that comes to others that stay goes where there is least to do, whatever the policy.
    let comes = queues.iter().any(|q| q.stays.is_some());
    for (turn, i) in wait.into_iter().enumerate() {
        let (lap, place) = (turn / free.len(), turn % free.len());
        let core = match policy {
            _ if comes => least(&free, &load),
            Policy::Group => least(&free, &load),
            Policy::Cycles if lap % 2 == 1 => free[free.len() - 1 - place],
            Policy::Cycles | Policy::RoundRobin => free[place],
        };
        load[core] = (load[core].0 + queues[i].load, load[core].1 + 1);
        to[i] = Some(core);
    }
    to.into_iter().map(|core| core.expect("each had its turn")).collect()
}

/// The core with the least load; of equals the one with fewest queues.
fn least(among: &[usize], load: &[(u64, u32)]) -> usize {
    *among.iter().min_by_key(|c| load[**c]).expect("one core at least is not isolated")
}

/// By how many hundredths the spread of the cores' loads shrinks from one assignment to another.
pub fn improvement(cores: usize, queues: &[Rxq], from: &[usize], to: &[usize]) -> u64 {
    let variance = |at: &[usize]| {
        let mut load = vec![0f64; cores];
        at.iter().zip(queues).for_each(|(core, q)| load[*core] += q.load as f64);
        let mean = load.iter().sum::<f64>() / cores as f64;
        load.iter().map(|l| (l - mean) * (l - mean)).sum::<f64>()
    };
    let (before, after) = (variance(from), variance(to));
    if before <= after { 0 } else { ((before - after) * 100.0 / before) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(loads: &[u64]) -> Vec<Rxq> {
        loads.iter().map(|load| Rxq { load: *load, ..Rxq::default() }).collect()
    }

    #[test]
    fn each_policy_deals_as_it_says() {
        // The example of Open vSwitch's manual: shares of 80, 70, 60, 40, 30, 30 % and three cores.
        let queues = loads(&[30, 80, 60, 70, 30, 40]);
        assert_eq!(assign(Policy::RoundRobin, 3, &queues, true), [0, 1, 2, 0, 1, 2]);
        assert_eq!(assign(Policy::Cycles, 3, &queues, true), [1, 0, 2, 1, 0, 2]);
        let group = assign(Policy::Group, 3, &queues, true);
        let sum = |core| group.iter().zip(&queues).filter(|(c, _)| **c == core).map(|(_, q)| q.load).sum();
        let mut sums: [u64; 3] = [sum(0), sum(1), sum(2)];
        sums.sort_unstable();
        assert_eq!(sums, [100, 100, 110]);
    }

    #[test]
    fn a_core_with_a_pinned_queue_has_no_other_unless_it_may() {
        let mut queues = loads(&[5, 5, 5]);
        queues[1].pinned = Some(0);
        assert_eq!(assign(Policy::RoundRobin, 2, &queues, true), [1, 0, 1]);
        assert_eq!(assign(Policy::RoundRobin, 2, &queues, false), [0, 0, 1]);
        queues[0].pinned = Some(1);
        let to = assign(Policy::Cycles, 2, &queues, true);
        assert_eq!(to[..2], [1, 0], "all are pinned to: none is alone");
    }

    #[test]
    fn who_comes_later_moves_nobody() {
        let mut queues = loads(&[9, 1, 0]);
        (queues[0].stays, queues[1].stays) = (Some(0), Some(1));
        assert_eq!(assign(Policy::RoundRobin, 2, &queues, true), [0, 1, 1]);
        assert_eq!(assign(Policy::Cycles, 2, &queues, true), [0, 1, 1]);
    }

    #[test]
    fn improvement_is_a_share_of_the_spread() {
        let queues = loads(&[50, 50, 0, 0]);
        assert_eq!(improvement(2, &queues, &[0, 0, 1, 1], &[0, 1, 0, 1]), 100);
        assert_eq!(improvement(2, &queues, &[0, 1, 0, 1], &[0, 0, 1, 1]), 0);
    }

    proptest! {
        #[test]
        fn every_queue_has_a_core_and_pins_hold(
            cores in 1usize..8,
            given in prop::collection::vec((0u64..100, prop::option::of(0usize..8), prop::option::of(0usize..8)), 0..40),
            which in 0usize..3,
            isolate: bool,
        ) {
            let inside = |core: Option<usize>| core.filter(|c| *c < cores);
            let queues: Vec<Rxq> = given
                .iter()
                .map(|(load, pinned, stays)| Rxq { load: *load, pinned: inside(*pinned), stays: inside(*stays) })
                .collect();
            let policy = [Policy::RoundRobin, Policy::Cycles, Policy::Group][which];
            let to = assign(policy, cores, &queues, isolate);
            let alone = isolated(cores, &queues, isolate);
            prop_assert_eq!(to.len(), queues.len());
            for (core, q) in to.iter().zip(&queues) {
                prop_assert!(*core < cores);
                prop_assert!(q.pinned.is_none_or(|p| p == *core));
                prop_assert!(q.pinned.is_some() || !alone[*core]);
            }
        }
    }
}
