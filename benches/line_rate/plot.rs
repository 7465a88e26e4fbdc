//! Which charts show what was measured.

use serde_json::Value;

use crate::compare::{Set, what};
use crate::latency::PERCENTILES;
use crate::svg::{Axis, Chart, Scale};

/// The charts of these results; of several sets, each in its own lines.
pub(crate) fn charts(sets: &[Set]) -> Vec<Chart> {
    [rates(sets), losses(sets), latencies(sets), periods(sets)]
        .into_iter()
        .filter(|chart| !chart.lines.is_empty())
        .collect()
}

/// What tells the lines of a chart apart: what was measured, without `leave_out`, and the set.
fn name(sets: &[Set], set: &Set, record: &Value, leave_out: &[&str]) -> String {
    let mut record = record.clone();
    for key in leave_out {
        record[*key] = Value::Null;
    }
    let what = what(&record);
    if sets.len() > 1 { format!("{}: {what}", set.0) } else { what }
}

/// The records of these kinds, with the names of their lines.
fn lines<'a>(sets: &'a [Set], kinds: &[&str], leave_out: &[&str]) -> Vec<(String, Vec<&'a Value>)> {
    let mut lines: Vec<(String, Vec<&Value>)> = Vec::new();
    for set in sets {
        for record in set.1.iter().filter(|r| r["measure"].as_str().is_some_and(|m| kinds.contains(&m))) {
            let name = name(sets, set, record, leave_out);
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, records)) => records.push(record),
                None => lines.push((name, vec![record])),
            }
        }
    }
    lines
}

/// Rates by size of frame. Sizes stand side by side, imix last; several runs of one size are a column.
fn rates(sets: &[Set]) -> Chart {
    let lines = lines(sets, &["rate", "throughput", "verify"], &["frame"]);
    let mut sizes: Vec<u64> = Vec::new();
    let size = |record: &Value| record["frame"].as_u64().unwrap_or(u64::MAX);
    for record in lines.iter().flat_map(|(_, records)| records) {
        sizes.push(size(record));
    }
    sizes.sort_unstable();
    sizes.dedup();
    let place = |record: &Value| sizes.binary_search(&size(record)).expect("gathered above") as f64;
    let line = |(name, records): &(String, Vec<&Value>)| {
        let mut points: Vec<_> =
            records.iter().filter_map(|r| Some((place(r), r["mpps"].as_f64()?))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (name.clone(), points)
    };
    let ticks = sizes
        .iter()
        .enumerate()
        .map(|(i, &size)| (i as f64, if size == u64::MAX { "imix".into() } else { size.to_string() }));
    let x = Axis { name: "frame, bytes without FCS".into(), scale: Scale::Linear, ticks: ticks.collect() };
    let title = "Rate by size of frame".into();
    Chart { title, x, y: Axis::new("Mpps", Scale::Linear), lines: lines.iter().map(line).collect() }
}

/// Loss by rate offered.
fn losses(sets: &[Set]) -> Chart {
    let line = |(name, records): (String, Vec<&Value>)| {
        let points = records.iter().filter_map(|r| r["points"].as_array()).flatten();
        let mut points: Vec<_> =
            points.filter_map(|p| Some((p["offered_mpps"].as_f64()?, p["loss"].as_f64()?))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (name, points)
    };
    let lines = lines(sets, &["loss-curve"], &[]).into_iter().map(line).collect();
    let (x, y) = (Axis::new("offered, Mpps", Scale::Linear), Axis::new("loss, %", Scale::Linear));
    Chart { title: "Loss by rate".into(), x, y, lines }
}

/// Latency by percentile: each nine is as wide as the one before.
fn latencies(sets: &[Set]) -> Chart {
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).log10();
    let line = |(name, records): (String, Vec<&Value>)| {
        // Of several runs the last.
        let record = records.last().copied().unwrap_or(&Value::Null);
        let points =
            PERCENTILES.iter().filter_map(|(p, key)| Some((nines(*p), record[*key].as_f64()? / 1e3)));
        (name, points.collect())
    };
    let lines = lines(sets, &["latency", "lone"], &[]).into_iter().map(line).collect();
    let ticks = PERCENTILES
        .iter()
        .filter(|(p, _)| ![75.0, 95.0].contains(p))
        .map(|(p, _)| (nines(*p), p.to_string()))
        .collect();
    let x = Axis { name: "percentile".into(), scale: Scale::Linear, ticks };
    Chart { title: "Latency".into(), x, y: Axis::new("us", Scale::Log), lines }
}

/// Rates by time.
fn periods(sets: &[Set]) -> Chart {
    let line = |(name, records): (String, Vec<&Value>)| {
        let rates = records.iter().filter_map(|r| r["periods"].as_array()).flatten();
        (name, rates.enumerate().filter_map(|(i, r)| Some((i as f64 + 1.0, r.as_f64()?))).collect())
    };
    let lines = lines(sets, &["rate"], &[]).into_iter().map(line);
    let lines = lines.filter(|(_, points): &(String, Vec<(f64, f64)>)| !points.is_empty()).collect();
    let (x, y) = (Axis::new("period", Scale::Linear), Axis::new("Mpps", Scale::Linear));
    Chart { title: "Rate over time".into(), x, y, lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_kind_of_result_has_its_chart() {
        let rate = |frame: Value, mpps: f64| json!({"measure": "rate", "mode": "loop", "packed": false, "frame": frame, "mpps": mpps});
        let records = vec![
            rate(1514.into(), 6.0),
            rate("imix".into(), 11.0),
            rate(60.into(), 25.0),
            json!({"measure": "latency", "mode": "loop", "packed": true, "frame": 60, "load": 50,
                "p50_ns": 900, "p99_ns": 2000, "p99_9_ns": null}),
            json!({"measure": "loss-curve", "mode": "loop", "packed": true, "frame": 60,
                "points": [{"offered_mpps": 10.0, "loss": 20.0}, {"offered_mpps": 5.0, "loss": 0.0}]}),
        ];
        let charts = charts(&[("a".into(), records.clone())]);
        let titles: Vec<_> = charts.iter().map(|c| c.title.as_str()).collect();
        assert_eq!(titles, ["Rate by size of frame", "Loss by rate", "Latency"]);
        assert_eq!(charts[0].lines, [("rate loop split".into(), vec![(0.0, 25.0), (1.0, 6.0), (2.0, 11.0)])]);
        assert_eq!(
            charts[0].x.ticks.iter().map(|t| t.1.as_str()).collect::<Vec<_>>(),
            ["60", "1514", "imix"]
        );
        assert_eq!(charts[1].lines[0].1, [(5.0, 0.0), (10.0, 20.0)]);
        let (name, points) = &charts[2].lines[0];
        assert_eq!((name.as_str(), points.len()), ("latency loop packed 60 B at 50 %", 2));
        assert!((points[0].1 - 0.9).abs() < 1e-9 && (points[1].0 - 2.0).abs() < 1e-9);
        // Two sets: lines of their own in the same charts.
        let both = super::charts(&[("a".into(), records.clone()), ("b".into(), records)]);
        assert_eq!(both.len(), 3);
        assert_eq!(
            both[0].lines.iter().map(|l| l.0.as_str()).collect::<Vec<_>>(),
            ["a: rate loop split", "b: rate loop split"]
        );
    }
}
