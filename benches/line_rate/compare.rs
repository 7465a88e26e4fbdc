//! Two or more files of results, side by side.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde_json::{Value, json};

/// A file of JSON lines: its name and its records.
pub(crate) type Set = (String, Vec<Value>);

/// What makes two records comparable.
const KEY: [&str; 17] = [
    "measure",
    "mode",
    "packed",
    "in_order",
    "no_mergeable",
    "indirect",
    "header",
    "legacy",
    "size",
    "queues",
    "flows",
    "room",
    "stride",
    "frame",
    "ports",
    "idle_ports",
    "load",
];
/// Facts of the host that change figures.
const FACTS: [&str; 6] = ["cpu", "cpus", "governor", "kernel", "isolated", "virtual_machine"];

/// What is compared of each kind of record.
fn figures(measure: &str) -> &'static [&'static str] {
    match measure {
        "rate" | "throughput" | "verify" | "soak" => &["mpps"],
        "lone" | "latency" => &["p50_ns", "p99_ns", "p99_9_ns", "p99_99_ns"],
        "loss-curve" => &["highest_mpps"],
        _ => &[],
    }
}

/// Reads a file of JSON lines.
pub(crate) fn read(path: &Path) -> Result<Set, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut records = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record = serde_json::from_str(line).map_err(|e| format!("{}:{}: {e}", path.display(), i + 1))?;
        records.push(record);
    }
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok((name, records))
}

/// A figure of the first file beside that of another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    /// What was measured, in words.
    pub(crate) what: String,
    pub(crate) figure: &'static str,
    /// Median, least and most, of the first and of the other.
    pub(crate) first: [f64; 3],
    pub(crate) other: [f64; 3],
}

impl Pair {
    /// The other's median by the first's, if that is not 0.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (self.first[0] != 0.0).then(|| self.other[0] / self.first[0])
    }
}

/// All figures that both files have.
pub(crate) fn pairs(first: &Set, other: &Set) -> Vec<Pair> {
    let (a, b) = (gathered(first), gathered(other));
    let mut pairs = Vec::new();
    for ((key, figure), values) in &a {
        if let Some(others) = b.get(&(key.clone(), *figure)) {
            let (first, other) = (spread(values), spread(others));
            pairs.push(Pair { what: key.clone(), figure, first, other });
        }
    }
    pairs
}

/// Figures by what was measured.
fn gathered(set: &Set) -> BTreeMap<(String, &'static str), Vec<f64>> {
    let mut all: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for record in &set.1 {
        for figure in figures(record["measure"].as_str().unwrap_or_default()) {
            if let Some(value) = record[*figure].as_f64() {
                all.entry((what(record), *figure)).or_default().push(value);
            }
        }
    }
    all
}

/// What was measured: the settings that are not what they are by default.
pub(crate) fn what(record: &Value) -> String {
    let words = KEY.iter().filter_map(|&key| match (key, &record[key]) {
        ("measure" | "mode", Value::String(text)) => Some(text.clone()),
        ("packed", Value::Bool(packed)) => Some(if *packed { "packed" } else { "split" }.into()),
        ("header", Value::String(text)) if text == "same" => None,
        ("size", size) if *size == 1024 => None,
        ("stride", stride) if *stride == 2048 => None,
        ("queues" | "flows", n) if *n == 1 => None,
        ("idle_ports", n) if *n == 0 => None,
        ("ports", n) if n.as_u64() <= Some(2) => None,
        (_, Value::Null | Value::Bool(false)) => None,
        (_, Value::Bool(true)) => Some(key.replace('_', "-")),
        ("frame", frame) => Some(format!("{} B", frame.to_string().trim_matches('"'))),
        ("load", load) => Some(format!("at {load} %")),
        (_, value) => Some(format!("{}={}", key, value.to_string().trim_matches('"'))),
    });
    words.collect::<Vec<_>>().join(" ").replace("imix B", "imix")
}

/// Median, least and most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, last) = (sorted.len(), sorted[sorted.len() - 1]);
    let median = if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 };
    [median, sorted[0], last]
}

/// What differs between the machines of two files.
pub(crate) fn differences(first: &Set, other: &Set) -> Vec<String> {
    let host = |set: &Set, fact: &str| set.1.iter().map(|r| r["host"][fact].clone()).find(|v| !v.is_null());
    FACTS
        .iter()
        .map(|fact| (fact, host(first, fact), host(other, fact)))
        .filter(|(_, a, b)| a != b)
        .map(|(fact, a, b)| {
            let text = |v: Option<Value>| v.map_or("unknown".into(), |v| v.to_string());
            format!("{fact}: {} in {}, {} in {}", text(a), first.0, text(b), other.0)
        })
        .collect()
}

/// Prints all files against the first: a table, or JSON lines.
pub(crate) fn print(sets: &[Set], json_lines: bool) {
    for other in sets.iter().skip(1) {
        let first = &sets[0];
        let pairs = pairs(first, other);
        if json_lines {
            for p in &pairs {
                let line = json!({"what": p.what, "figure": p.figure, "first": first.0, "other": other.0,
                    "first_median": p.first[0], "first_range": [p.first[1], p.first[2]],
                    "other_median": p.other[0], "other_range": [p.other[1], p.other[2]], "ratio": p.ratio()});
                println!("{line}");
            }
            continue;
        }
        for difference in differences(first, other) {
            println!("the machines differ: {difference}");
        }
        let wide = pairs.iter().map(|p| p.what.len()).max().unwrap_or(0);
        println!("{:wide$}  {:14}  {:>26}  {:>26}  {:>6}", "", "", first.0, other.0, "ratio");
        for p in &pairs {
            let range = |[median, low, high]: [f64; 3]| {
                if low < high {
                    format!("{median:.2} ({low:.2} to {high:.2})")
                } else {
                    format!("{median:.2}")
                }
            };
            let (a, b) = (range(p.first), range(p.other));
            let ratio = p.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}"));
            println!("{:wide$}  {:14}  {a:>26}  {b:>26}  {ratio:>6}", p.what, p.figure);
        }
        println!("{} figures in both; more is better of mpps, less of ns", pairs.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(packed: bool, frame: Value, mpps: f64) -> Value {
        json!({"measure": "rate", "mode": "loop", "packed": packed, "in_order": false, "header": "same",
            "size": 1024, "queues": 1, "flows": 1, "ports": 1, "idle_ports": 0, "stride": 2048, "room": null,
            "frame": frame, "mpps": mpps, "host": {"cpu": "X", "kernel": "6.18"}})
    }

    #[test]
    fn like_is_compared_with_like() {
        let a = (
            "a".to_owned(),
            vec![rate(false, 60.into(), 10.0), rate(true, 60.into(), 20.0), rate(false, "imix".into(), 5.0)],
        );
        let b = (
            "b".to_owned(),
            vec![rate(true, 60.into(), 30.0), rate(false, 60.into(), 5.0), rate(false, 1514.into(), 9.0)],
        );
        let pairs = pairs(&a, &b);
        let found: Vec<_> = pairs.iter().map(|p| (p.what.as_str(), p.figure, p.ratio())).collect();
        assert_eq!(
            found,
            [("rate loop packed 60 B", "mpps", Some(1.5)), ("rate loop split 60 B", "mpps", Some(0.5))]
        );
        assert!(differences(&a, &b).is_empty());
    }

    #[test]
    fn of_several_runs_the_median_counts_and_the_spread_is_told() {
        let runs = |rates: &[f64]| rates.iter().map(|&r| rate(false, 60.into(), r)).collect();
        let (a, b) = (("a".to_owned(), runs(&[9.0, 11.0, 10.0])), ("b".to_owned(), runs(&[22.0, 18.0])));
        let none = ("none".to_owned(), runs(&[0.0]));
        assert_eq!((pairs(&none, &a)[0].ratio(), pairs(&a, &none)[0].ratio()), (None, Some(0.0)));
        let pair = &pairs(&a, &b)[0];
        assert_eq!(
            (pair.first, pair.other, pair.ratio()),
            ([10.0, 9.0, 11.0], [20.0, 18.0, 22.0], Some(2.0))
        );
    }

    #[test]
    fn latencies_are_compared_by_load_and_other_machines_are_named() {
        let record = |load: u32, p50: u64, kernel: &str| {
            json!({"measure": "latency", "mode": "loop", "packed": false, "frame": "imix", "load": load,
                "size": 256, "indirect": true, "p50_ns": p50, "p99_ns": null, "host": {"kernel": kernel}})
        };
        let a = ("a".to_owned(), vec![record(10, 800, "6.1"), record(50, 900, "6.1")]);
        let b = ("b".to_owned(), vec![record(50, 450, "6.12")]);
        let found = pairs(&a, &b);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].what.as_str(), found[0].ratio()),
            ("latency loop split indirect size=256 imix at 50 %", Some(0.5))
        );
        assert_eq!(differences(&a, &b), [r#"kernel: "6.1" in a, "6.12" in b"#]);
    }
}
