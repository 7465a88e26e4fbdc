//! Which cores serve ports, in the words of the database.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::vswitch::placement::Policy;
use crate::vswitch::runner::{Balance, Settings};

/// What `other_config` of the switch says of cores.
pub(super) fn settings(config: &BTreeMap<String, String>) -> Settings {
    let text = |key: &str| config.get(key).map(String::as_str);
    let number = |key: &str| text(key).and_then(|t| t.parse::<u64>().ok());
    let flag = |key: &str, usual: bool| text(key).map_or(usual, |t| t == "true");
    let usual = Balance::default();
    let policy = text("pmd-rxq-assign").and_then(Policy::parse).unwrap_or_default();
    let balance = Balance {
        interval: number("pmd-auto-lb-rebal-interval")
            .map_or(usual.interval, |minutes| Duration::from_secs(60 * minutes.clamp(1, 20_000))),
        load: number("pmd-auto-lb-load-threshold").filter(|n| *n <= 100).unwrap_or(usual.load),
        improvement: number("pmd-auto-lb-improvement-threshold")
            .filter(|n| *n <= 100)
            .unwrap_or(usual.improvement),
    };
    // In turn is in turn, whatever the load.
    let balanced = flag("pmd-auto-lb", false) && policy != Policy::RoundRobin;
    Settings {
        cpus: text("pmd-cpu-mask").map(mask).unwrap_or_default(),
        idle_sleep: number("pmd-sleep-max").filter(|us| *us > 0).map(Duration::from_micros),
        policy,
        isolate: flag("pmd-rxq-isolate", true),
        balance: balanced.then_some(balance),
    }
}

/// The CPUs of a mask in hexadecimal digits, however many.
fn mask(text: &str) -> Vec<usize> {
    let digits = text.trim_start_matches("0x").trim_start_matches("0X");
    let digit = |(i, c): (usize, char)| {
        (0..4).filter(move |b| c.to_digit(16).unwrap_or(0) >> b & 1 == 1).map(move |b| 4 * i + b)
    };
    digits.chars().rev().enumerate().flat_map(digit).collect()
}

/// `pmd-rxq-affinity`: `QUEUE:CPU,...`.
pub(super) fn affinity(config: &BTreeMap<String, String>) -> BTreeMap<u16, usize> {
    let text = config.get("pmd-rxq-affinity").map_or("", String::as_str);
    let pair = |part: &str| {
        let (queue, cpu) = part.split_once(':')?;
        Some((queue.trim().parse().ok()?, cpu.trim().parse().ok()?))
    };
    text.split(',').filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn words_of_the_database_are_read() {
        assert_eq!(settings(&config(&[])), Settings::default());
        let some = settings(&config(&[
            ("pmd-cpu-mask", "0x100000006"),
            ("pmd-rxq-assign", "group"),
            ("pmd-rxq-isolate", "false"),
            ("pmd-auto-lb", "true"),
            ("pmd-auto-lb-load-threshold", "70"),
            ("pmd-auto-lb-rebal-interval", "2"),
            ("pmd-sleep-max", "500"),
        ]));
        assert_eq!(some.cpus, [1, 2, 32]);
        assert_eq!((some.policy, some.isolate), (Policy::Group, false));
        assert_eq!(some.idle_sleep, Some(Duration::from_micros(500)));
        let balance = Balance { interval: Duration::from_secs(120), load: 70, improvement: 25 };
        assert_eq!(some.balance, Some(balance));
        assert_eq!(
            settings(&config(&[("pmd-auto-lb", "true"), ("pmd-rxq-assign", "roundrobin")])).balance,
            None
        );
        let pins = affinity(&config(&[("pmd-rxq-affinity", "0:3, 1:7,x")]));
        assert_eq!(pins, BTreeMap::from([(0, 3), (1, 7)]));
    }
}
