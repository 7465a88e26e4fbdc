//! What receive queues cost their cores, over the last minute.

use std::collections::VecDeque;
use std::time::Duration;

use super::Devices;
use crate::vswitch::placement::{Rxq, assign, improvement};

/// Between two samples.
pub(super) const SAMPLE: Duration = Duration::from_secs(1);
/// Samples that are kept.
const WINDOW: usize = 60;

/// What one receive queue cost of late.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// What its core had counted at the last sample.
    last: u64,
    /// Cycles of it, and cycles that passed.
    window: VecDeque<(u64, u64)>,
}

impl Load {
    fn sample(&mut self, now: u64, passed: u64) {
        self.window.push_back((now.wrapping_sub(self.last), passed));
        self.last = now;
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
    }

    /// On another core, that has counted so many.
    pub(super) fn moved(&mut self, now: u64) {
        self.last = now;
    }

    /// Cycles of it in a million that passed; `None`: nothing is known yet.
    pub(super) fn share(&self) -> Option<u64> {
        let sum = self.window.iter().fold((0, 0), |sum, (own, all)| (sum.0 + own, sum.1 + all));
        (u128::from(sum.0) * 1_000_000).checked_div(u128::from(sum.1)).map(|share| share as u64)
    }
}

/// When queues are moved by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Between two looks.
    pub interval: Duration,
    /// Hundredths of its time that some core must be busy.
    pub load: u64,
    /// Hundredths by which the spread of loads must shrink.
    pub improvement: u64,
}

impl Default for Balance {
    fn default() -> Balance {
        Balance { interval: Duration::from_secs(60), load: 95, improvement: 25 }
    }
}

impl Balance {
    /// Whether `to` is worth the pause of those that move from where they are.
    fn wants(&self, cores: usize, queues: &[Rxq], from: &[usize], to: &[usize]) -> bool {
        let busy =
            |core| -> u64 { from.iter().zip(queues).filter(|(c, _)| **c == core).map(|(_, q)| q.load).sum() };
        (0..cores).any(|core| busy(core) >= self.load * 10_000)
            && improvement(cores, queues, from, to) >= self.improvement
    }
}

impl Devices {
    /// Notes what each queue cost since the last time, `passed` cycles ago.
    pub(super) fn sample(&mut self, passed: u64) {
        for device in self.running.values_mut() {
            for (i, load) in device.loads.iter_mut().enumerate() {
                if let Some(core) = device.placed.core_of(i) {
                    load.sample(self.cores[core].cycles_of(device.placed.dp(), i), passed);
                }
            }
        }
    }

    /// Moves queues if that is asked for and worth it; whether it did.
    pub(super) fn balance(&mut self) -> bool {
        let Some(balance) = self.settings.balance else { return false };
        let queues = self.queues(false);
        let from = self.running.values().flat_map(|d| (0..d.placed.queues()).map(|i| d.placed.core_of(i)));
        let Some(from) = from.collect::<Option<Vec<usize>>>() else { return false };
        let to = assign(self.settings.policy, self.cores.len(), &queues, self.settings.isolate);
        let wants = balance.wants(self.cores.len(), &queues, &from, &to);
        wants && self.put(&to).map_err(|e| tracing::warn!("balancing of cores: {e}")).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_core_is_relieved_if_that_helps() {
        let queues = |loads: &[u64]| -> Vec<Rxq> {
            loads.iter().map(|load| Rxq { load: load * 10_000, ..Rxq::default() }).collect()
        };
        let balance = Balance::default();
        assert!(balance.wants(2, &queues(&[60, 36, 2, 2]), &[0, 0, 1, 1], &[0, 1, 1, 0]));
        assert!(!balance.wants(2, &queues(&[60, 30, 2, 2]), &[0, 0, 1, 1], &[0, 1, 1, 0]), "nobody is busy");
        assert!(!balance.wants(2, &queues(&[98, 0, 2, 2]), &[0, 0, 1, 1], &[1, 0, 0, 0]), "nothing is won");
    }

    #[test]
    fn a_share_is_of_the_time_that_passed() {
        let mut load = Load::default();
        assert_eq!(load.share(), None);
        load.sample(250, 1000);
        load.sample(500, 1000);
        assert_eq!(load.share(), Some(250_000));
        load.moved(7);
        (0..WINDOW as u64).for_each(|i| load.sample(7 + (i + 1) * 500, 1000));
        assert_eq!(load.share(), Some(500_000));
    }
}
