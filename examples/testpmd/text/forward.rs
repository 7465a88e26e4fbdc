//! `show fwd stats all`, and what `stop` says.

use std::fmt::Write;

use crate::streams::Stream;

/// What became of the packets of a port since forwarding started or statistics were cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Totals {
    pub(crate) rx_packets: u64,
    pub(crate) rx_missed: u64,
    pub(crate) rx_errors: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_dropped: u64,
    pub(crate) bad_ip: u64,
    pub(crate) bad_l4: u64,
}

/// Counts by packets in a burst.
pub(crate) type Spread = Vec<u64>;

/// One port of the report.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortReport {
    /// Its number.
    pub(crate) port: usize,
    /// Its packets.
    pub(crate) totals: Totals,
    /// Bursts received and sent, if they are to be shown.
    pub(crate) bursts: Option<(Spread, Spread)>,
}

/// One stream of the report: shown when ports have several.
#[derive(Clone, Debug)]
pub(crate) struct StreamReport {
    /// Which.
    pub(crate) stream: Stream,
    /// Its packets.
    pub(crate) totals: Totals,
    /// Bursts received and sent, if they are to be shown.
    pub(crate) bursts: Option<(Spread, Spread)>,
}

/// Cycles that packets cost.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub(crate) struct Cycles {
    pub(crate) total: u64,
    pub(crate) packets: u64,
    pub(crate) mhz: u64,
}

/// All of `show fwd stats all`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Mode of forwarding.
    pub(crate) mode: String,
    /// By port.
    pub(crate) ports: Vec<PortReport>,
    /// By stream, when ports have several.
    pub(crate) streams: Vec<StreamReport>,
    /// If measured.
    pub(crate) cycles: Option<Cycles>,
}

const BORDER: &str = "----------------------";

/// The report as DPDK prints it.
pub(crate) fn report(report: &Report) -> String {
    let mut out = String::new();
    let csum = report.mode == "csum";
    for s in &report.streams {
        out += &stream(s, csum);
    }
    let mut sum = Totals::default();
    for p in &report.ports {
        let t = p.totals;
        let _ = write!(out, "\n  {BORDER} Forward statistics for port {:<2} {BORDER}\n{}", p.port, rx(&t));
        if csum {
            let _ = write!(
                out,
                "  Bad-ipcsum: {:<14} Bad-l4csum: {:<14}Bad-outer-l4csum: {:<14}\n  Bad-outer-ipcsum: {:<14}\n",
                t.bad_ip, t.bad_l4, 0, 0
            );
        }
        if t.rx_errors > 0 {
            let _ = write!(out, "  RX-error: {}\n  RX-nombufs: {:<14}\n", t.rx_errors, 0);
        }
        out += &tx(&t);
        if let Some((rx, tx)) = &p.bursts {
            out += &(bursts("RX", rx) + &bursts("TX", tx));
        }
        let _ = writeln!(out, "  {BORDER}--------------------------------{BORDER}");
        sum = plus(sum, t);
    }
    let border = "+++++++++++++++";
    let _ = write!(
        out,
        "\n  {border} Accumulated forward statistics for all ports{border}\n{}{}  {border}\
         ++++++++++++++++++++++++++++++++++++++++++++++{border}\n",
        rx(&sum),
        tx(&sum)
    );
    if let Some(c) = report.cycles.filter(|c| c.packets > 0) {
        let _ = write!(
            out,
            "\n  CPU cycles/packet={:.2} (total cycles={} / total {} packets={}) at {} MHz Clock\n",
            c.total as f64 / c.packets as f64,
            c.total,
            report.mode,
            c.packets,
            c.mhz
        );
    }
    out
}

fn plus(a: Totals, b: Totals) -> Totals {
    Totals {
        rx_packets: a.rx_packets + b.rx_packets,
        rx_missed: a.rx_missed + b.rx_missed,
        rx_errors: a.rx_errors + b.rx_errors,
        tx_packets: a.tx_packets + b.tx_packets,
        tx_dropped: a.tx_dropped + b.tx_dropped,
        bad_ip: a.bad_ip + b.bad_ip,
        bad_l4: a.bad_l4 + b.bad_l4,
    }
}

fn rx(t: &Totals) -> String {
    let total = t.rx_packets + t.rx_missed;
    format!("  RX-packets: {:<14} RX-dropped: {:<14}RX-total: {total}\n", t.rx_packets, t.rx_missed)
}

fn tx(t: &Totals) -> String {
    let total = t.tx_packets + t.tx_dropped;
    format!("  TX-packets: {:<14} TX-dropped: {:<14}TX-total: {total}\n", t.tx_packets, t.tx_dropped)
}

/// One stream; nothing, when nothing came.
fn stream(report: &StreamReport, csum: bool) -> String {
    let StreamReport { stream, totals: t, bursts: spread } = report;
    if t.rx_packets + t.tx_packets + t.tx_dropped == 0 {
        return String::new();
    }
    let mut out = format!(
        "\n  ------- Forward Stats for RX Port={:>2}/Queue={:>2} -> TX Port={:>2}/Queue={:>2} -------\n  \
         RX-packets: {:<14} TX-packets: {:<14} TX-dropped: {:<14}\n",
        stream.rx.0, stream.rx.1, stream.tx.0, stream.tx.1, t.rx_packets, t.tx_packets, t.tx_dropped
    );
    if csum {
        let _ = writeln!(
            out,
            "  RX- bad IP checksum: {:<14}  Rx- bad L4 checksum: {:<14} Rx- bad outer L4 checksum: {:<14}",
            t.bad_ip, t.bad_l4, 0
        );
    }
    if let Some((rx, tx)) = spread {
        out += &(bursts("RX", rx) + &bursts("TX", tx));
    }
    out
}

/// The share of empty bursts, of the two commonest sizes, and of the others; nothing without bursts.
fn bursts(direction: &str, spread: &[u64]) -> String {
    let total: u64 = spread.iter().sum();
    if total == 0 {
        return String::new();
    }
    let mut common: Vec<(u64, usize)> = spread.iter().copied().zip(0..).skip(1).filter(|b| b.0 > 0).collect();
    common.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    common.truncate(2);
    common.insert(0, (spread[0], 0));
    let mut out = format!("  {direction}-bursts : {total} [");
    let (mut seen, mut percent) = (0, 0);
    for (count, size) in common {
        seen += count;
        if seen == total {
            let _ = writeln!(out, "{}% of {size} pkts]", 100 - percent);
            return out;
        }
        let share = (count as f64 / total as f64 * 100.0) as u64;
        let _ = write!(out, "{share}% of {size} pkts + ");
        percent += share;
    }
    let _ = writeln!(out, "{}% of other]", 100 - percent);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: usize, rx_packets: u64, tx_packets: u64) -> PortReport {
        PortReport { port, totals: Totals { rx_packets, tx_packets, ..Totals::default() }, bursts: None }
    }

    #[test]
    fn totals_are_dpdks() {
        let ports = vec![port(0, 66_416_000, 66_416_000), port(1, 66_416_384, 66_416_416)];
        let text = report(&Report { mode: "io".into(), ports, ..Report::default() });
        insta::assert_snapshot!(text, @r"

          ---------------------- Forward statistics for port 0  ----------------------
          RX-packets: 66416000       RX-dropped: 0             RX-total: 66416000
          TX-packets: 66416000       TX-dropped: 0             TX-total: 66416000
          ----------------------------------------------------------------------------

          ---------------------- Forward statistics for port 1  ----------------------
          RX-packets: 66416384       RX-dropped: 0             RX-total: 66416384
          TX-packets: 66416416       TX-dropped: 0             TX-total: 66416416
          ----------------------------------------------------------------------------

          +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
          RX-packets: 132832384      RX-dropped: 0             RX-total: 132832384
          TX-packets: 132832416      TX-dropped: 0             TX-total: 132832416
          ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
        ");
    }

    #[test]
    fn checksums_bursts_cycles_and_streams_are_dpdks() {
        let mut spread = vec![0; 257];
        spread[32] = 2_549_689;
        let mut one = port(0, 81_590_048, 81_590_048);
        one.totals.rx_errors = 5;
        one.bursts = Some((spread.clone(), spread.clone()));
        let streams = vec![
            StreamReport {
                stream: Stream { rx: (0, 1), tx: (1, 1) },
                totals: one.totals,
                bursts: Some((spread, vec![])),
            },
            StreamReport {
                stream: Stream { rx: (0, 2), tx: (1, 2) },
                totals: Totals::default(),
                bursts: None,
            },
        ];
        let cycles = Some(Cycles { total: 10_495_116_632, packets: 163_180_096, mhz: 2700 });
        let text = report(&Report { mode: "csum".into(), ports: vec![one], streams, cycles });
        insta::assert_snapshot!(text, @r"

          ------- Forward Stats for RX Port= 0/Queue= 1 -> TX Port= 1/Queue= 1 -------
          RX-packets: 81590048       TX-packets: 81590048       TX-dropped: 0             
          RX- bad IP checksum: 0               Rx- bad L4 checksum: 0              Rx- bad outer L4 checksum: 0             
          RX-bursts : 2549689 [0% of 0 pkts + 100% of 32 pkts]

          ---------------------- Forward statistics for port 0  ----------------------
          RX-packets: 81590048       RX-dropped: 0             RX-total: 81590048
          Bad-ipcsum: 0              Bad-l4csum: 0             Bad-outer-l4csum: 0             
          Bad-outer-ipcsum: 0             
          RX-error: 5
          RX-nombufs: 0             
          TX-packets: 81590048       TX-dropped: 0             TX-total: 81590048
          RX-bursts : 2549689 [0% of 0 pkts + 100% of 32 pkts]
          TX-bursts : 2549689 [0% of 0 pkts + 100% of 32 pkts]
          ----------------------------------------------------------------------------

          +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
          RX-packets: 81590048       RX-dropped: 0             RX-total: 81590048
          TX-packets: 81590048       TX-dropped: 0             TX-total: 81590048
          ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++

          CPU cycles/packet=64.32 (total cycles=10495116632 / total csum packets=163180096) at 2700 MHz Clock
        ");
    }

    #[test]
    fn bursts_name_the_commonest_sizes() {
        for (spread, text) in [
            (vec![0, 0], ""),
            (vec![7], "  RX-bursts : 7 [100% of 0 pkts]\n"),
            (vec![50, 25, 25], "  RX-bursts : 100 [50% of 0 pkts + 25% of 1 pkts + 25% of 2 pkts]\n"),
            (
                vec![50, 10, 30, 10],
                "  RX-bursts : 100 [50% of 0 pkts + 30% of 2 pkts + 10% of 1 pkts + 10% of other]\n",
            ),
        ] {
            assert_eq!(bursts("RX", &spread), text);
        }
    }
}
