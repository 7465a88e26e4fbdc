//! Results: a table for people, JSON lines for programs.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::Args;
use crate::frames::Size;
use crate::host::Host;
use crate::latency::{Lone, Times};
use crate::rate::Rate;
use crate::rfc2544::{Curve, Latency, Throughput};
use crate::stop::Stop;
use crate::verify::Found;

/// A row of a table: names of columns, and what goes there.
type Row = Vec<(&'static str, String)>;

/// Where results go, and all there are so far.
pub(crate) struct Report {
    host: Host,
    /// What is common to all records of this run.
    common: Map<String, Value>,
    stop: Stop,
    table: bool,
    json: Option<Box<dyn Write>>,
    /// Names of the columns printed last.
    columns: Vec<&'static str>,
    pub(crate) records: Vec<Value>,
}

impl Report {
    pub(crate) fn new(args: &Args, stop: &Stop) -> Result<Report, Box<dyn Error>> {
        let json: Option<Box<dyn Write>> = match &args.json {
            None => None,
            Some(None) => Some(Box::new(std::io::stdout())),
            Some(Some(path)) => {
                let file = File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
                Some(Box::new(file))
            }
        };
        let host = Host::facts(Path::new("/"));
        let mut common = object(&args.shape)?;
        common.insert("mode".into(), serde_json::to_value(args.mode)?);
        common.insert("ports".into(), args.path.len().into());
        common.insert("idle_ports".into(), args.idle.len().into());
        common.insert("cores".into(), args.core.clone().into());
        let table = !matches!(args.json, Some(None));
        if table {
            println!("{}", host.line());
        }
        let (columns, records, stop) = (Vec::new(), Vec::new(), stop.clone());
        Ok(Report { host, common, stop, table, json, columns, records })
    }

    pub(crate) fn rate(&mut self, frame: Size, page: usize, rate: &Rate) -> Result<(), Box<dyn Error>> {
        let row = vec![
            ("Mpps", format!("{:.3}", rate.mpps)),
            ("Gbit/s", format!("{:.2}", rate.gbps)),
            ("received", format!("{:.3}", rate.received_mpps)),
            ("sent", format!("{:.3}", rate.sent_mpps)),
            ("driver busy", percent(rate.driver_busy * 100.0)),
            ("bytes seen", rate.sampled.map_or("-".into(), |s| format!("{:.1}", s.bytes))),
        ];
        self.add("rate", frame, page, rate, row)
    }

    pub(crate) fn found(&mut self, measure: &str, frame: Size, found: &Found) -> Result<(), Box<dyn Error>> {
        let mut row = vec![
            ("Mpps", format!("{:.3}", found.mpps)),
            ("sent", found.sent.to_string()),
            ("received", found.received.to_string()),
            ("lost", found.lost.to_string()),
            ("duplicated", found.duplicated.to_string()),
            ("reordered", found.reordered.to_string()),
            ("damaged", found.damaged.to_string()),
            ("elsewhere", found.misdelivered.to_string()),
            ("unknown", found.unknown.to_string()),
            ("bad headers", found.bad_headers.to_string()),
        ];
        if let Some(fault) = &found.fault {
            row.push(("fault", fault.clone()));
        }
        self.add(measure, frame, 0, found, row)
    }

    pub(crate) fn lone(&mut self, frame: Size, page: usize, lone: &Lone) -> Result<(), Box<dyn Error>> {
        let mut row = times(&lone.times);
        row.push(("lost", lone.lost.to_string()));
        self.add("lone", frame, page, lone, row)
    }

    pub(crate) fn throughput(
        &mut self,
        frame: Size,
        page: usize,
        found: &Throughput,
    ) -> Result<(), Box<dyn Error>> {
        let row = vec![
            ("Mpps", format!("{:.3}", found.mpps)),
            ("Gbit/s", format!("{:.2}", found.gbps)),
            ("at loss of", format!("{} %", found.loss_limit)),
            ("of highest", percent(found.mpps / found.highest_mpps * 100.0)),
            ("trials", found.trials.len().to_string()),
            ("driver was limit", if found.driver_was_limit { "yes" } else { "no" }.into()),
        ];
        self.add("throughput", frame, page, found, row)
    }

    pub(crate) fn latency(
        &mut self,
        frame: Size,
        page: usize,
        found: &Latency,
    ) -> Result<(), Box<dyn Error>> {
        let mut row = vec![
            ("load", found.load.map_or("-".into(), |load| format!("{load} %"))),
            ("Mpps", format!("{:.3}", found.trial.received_mpps)),
            ("loss", format!("{:.4} %", found.trial.loss)),
        ];
        row.extend(times(&found.times));
        self.add("latency", frame, page, found, row)
    }

    pub(crate) fn curve(&mut self, frame: Size, page: usize, curve: &Curve) -> Result<(), Box<dyn Error>> {
        for point in &curve.points {
            let row = vec![
                ("offered", format!("{:.3}", point.offered_mpps)),
                ("received", format!("{:.3}", point.received_mpps)),
                ("loss", format!("{:.4} %", point.loss)),
                ("refused", point.refused.to_string()),
                ("driver kept up", if point.kept_up { "yes" } else { "no" }.into()),
            ];
            self.row("loss-curve", frame, row);
        }
        self.add("loss-curve", frame, page, curve, Vec::new())
    }

    /// A period of a long measurement; not one of the results.
    pub(crate) fn period(
        &mut self,
        seconds: f64,
        what: &str,
        value: &impl Serialize,
    ) -> Result<(), Box<dyn Error>> {
        if self.table {
            println!("{seconds:>10.1} s  {what}");
        }
        let mut record = object(value)?;
        record.insert("measure".into(), "period".into());
        record.insert("at_seconds".into(), seconds.into());
        self.line(&Value::Object(record))
    }

    /// Prints a result, and keeps it.
    fn add(
        &mut self,
        measure: &str,
        frame: Size,
        page: usize,
        result: &impl Serialize,
        row: Row,
    ) -> Result<(), Box<dyn Error>> {
        if !row.is_empty() {
            self.row(measure, frame, row);
        }
        let mut record = Map::new();
        record.insert("measure".into(), measure.into());
        record.insert("frame".into(), serde_json::to_value(frame)?);
        record.extend(self.common.clone());
        record.extend(object(result)?);
        let way = if self.common["mode"] == "guests" { "one-way" } else { "round trip" };
        if record.contains_key("p50_ns") {
            record.insert("way".into(), way.into());
        }
        if self.stop.now() {
            record.insert("interrupted".into(), true.into());
        }
        if page > 0 {
            record.insert("page_kib".into(), (page / 1024).into());
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        record.insert("unix_time".into(), since.as_secs().into());
        record.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        record.insert("host".into(), serde_json::to_value(&self.host)?);
        let record = Value::Object(record);
        self.line(&record)?;
        self.records.push(record);
        Ok(())
    }

    fn row(&mut self, measure: &str, frame: Size, row: Row) {
        if !self.table {
            return;
        }
        let text = |key: &str| self.common[key].as_str().unwrap_or_default().to_owned();
        let layout = if self.common["packed"] == true { "packed" } else { "split" };
        let first = [
            ("measure", measure.into()),
            ("mode", text("mode")),
            ("ring", layout.into()),
            ("frame", frame.to_string()),
        ];
        let row: Vec<_> = first.into_iter().chain(row).collect();
        let columns: Vec<_> = row.iter().map(|(name, _)| *name).collect();
        let widths = row.iter().map(|(name, _)| name.len().max(10));
        if columns != self.columns {
            let names: Vec<_> =
                columns.iter().zip(widths.clone()).map(|(name, w)| format!("{name:>w$}")).collect();
            println!("{}", names.join("  "));
            self.columns = columns;
        }
        let values: Vec<_> = row.iter().zip(widths).map(|((_, value), w)| format!("{value:>w$}")).collect();
        println!("{}", values.join("  "));
    }

    fn line(&mut self, record: &Value) -> Result<(), Box<dyn Error>> {
        if let Some(json) = &mut self.json {
            writeln!(json, "{record}")?;
            json.flush()?;
        }
        Ok(())
    }
}

fn object(value: &impl Serialize) -> Result<Map<String, Value>, Box<dyn Error>> {
    match serde_json::to_value(value)? {
        Value::Object(map) => Ok(map),
        other => Err(format!("not an object: {other}").into()),
    }
}

fn percent(value: f64) -> String {
    format!("{value:.0} %")
}

/// The columns of a latency, us.
fn times(times: &Times) -> Row {
    let us = |ns: Option<u64>| ns.map_or("-".into(), |ns| format!("{:.2}", ns as f64 / 1e3));
    vec![
        ("samples", times.samples.to_string()),
        ("min us", us(Some(times.min_ns))),
        ("p50", us(times.p50_ns)),
        ("p90", us(times.p90_ns)),
        ("p99", us(times.p99_ns)),
        ("p99.9", us(times.p99_9_ns)),
        ("p99.99", us(times.p99_99_ns)),
        ("p99.999", us(times.p99_999_ns)),
        ("max", us(Some(times.max_ns))),
    ]
}
