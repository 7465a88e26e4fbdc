//! Statistics as JSON, one object in a line.

use pmd::port::Stats;
use serde::Serialize;

use super::forward::{Cycles, Totals};
use super::port::Rate;

/// One line: statistics of all ports at a moment.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// `period`, or `end` for the last one.
    pub(crate) event: &'static str,
    /// Seconds since forwarding started.
    pub(crate) seconds: f64,
    /// Mode of forwarding.
    pub(crate) mode: String,
    /// By port.
    pub(crate) ports: Vec<Port>,
    /// Cycles that a packet costs, if measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cycles_per_packet: Option<f64>,
}

/// One port.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub(crate) struct Port {
    pub(crate) port: usize,
    pub(crate) name: String,
    pub(crate) link_up: bool,
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_missed: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_errors: u64,
    pub(crate) tx_dropped: u64,
    pub(crate) rx_pps: u64,
    pub(crate) rx_bps: u64,
    pub(crate) tx_pps: u64,
    pub(crate) tx_bps: u64,
    pub(crate) calls: u64,
    pub(crate) faults: u64,
}

impl Port {
    /// Statistics since the last clear, drops since forwarding started, rates since the last line.
    pub(crate) fn new(
        port: usize,
        name: &str,
        link_up: bool,
        s: &Stats,
        rate: Rate,
        forward: Totals,
    ) -> Port {
        Port {
            port,
            name: name.into(),
            link_up,
            rx_packets: s.rx_packets,
            rx_bytes: s.rx_bytes,
            rx_missed: s.rx_missed,
            rx_errors: s.rx_errors,
            tx_packets: s.tx_packets,
            tx_bytes: s.tx_bytes,
            tx_errors: s.tx_errors,
            tx_dropped: forward.tx_dropped,
            rx_pps: rate.rx_pps,
            rx_bps: rate.rx_bps,
            tx_pps: rate.tx_pps,
            tx_bps: rate.tx_bps,
            calls: s.calls,
            faults: s.faults,
        }
    }
}

impl Line {
    /// With its newline.
    pub(crate) fn render(&self) -> String {
        serde_json::to_string(self).expect("numbers and text") + "\n"
    }

    /// For [`Line::cycles_per_packet`].
    pub(crate) fn per_packet(cycles: Option<Cycles>) -> Option<f64> {
        let c = cycles.filter(|c| c.packets > 0)?;
        Some((c.total as f64 / c.packets as f64 * 100.0).round() / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_object_in_one_line() {
        let stats = Stats { rx_packets: 5, rx_bytes: 320, ..Stats::default() };
        let totals = Totals { tx_dropped: 2, ..Totals::default() };
        let rate = Rate { rx_pps: 5, ..Rate::default() };
        let line = Line {
            event: "end",
            seconds: 1.5,
            mode: "io".into(),
            ports: vec![Port::new(0, "net_null0", true, &stats, rate, totals)],
            cycles_per_packet: Line::per_packet(Some(Cycles { total: 1000, packets: 3, mhz: 2000 })),
        };
        insta::assert_snapshot!(line.render(), @r#"{"event":"end","seconds":1.5,"mode":"io","ports":[{"port":0,"name":"net_null0","link_up":true,"rx_packets":5,"rx_bytes":320,"rx_missed":0,"rx_errors":0,"tx_packets":0,"tx_bytes":0,"tx_errors":0,"tx_dropped":2,"rx_pps":5,"rx_bps":0,"tx_pps":0,"tx_bps":0,"calls":0,"faults":0}],"cycles_per_packet":333.33}"#);
    }
}
