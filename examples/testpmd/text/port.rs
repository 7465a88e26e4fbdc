//! `show port info|stats|xstats|summary`.

use std::fmt::Write;
use std::time::Duration;

use pmd::port::{Caps, Filter, Link, Stats};

/// What stands in a `show port info` besides numbers.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// `net_vhost0`.
    pub(crate) name: String,
    /// `net_vhost`.
    pub(crate) driver: &'static str,
    /// As given.
    pub(crate) devargs: String,
    /// Its address.
    pub(crate) mac: [u8; 6],
    /// Its link, now.
    pub(crate) link: Link,
    /// What it can do.
    pub(crate) caps: Caps,
    /// Which frames it takes; `None`: all.
    pub(crate) filter: Option<Filter>,
    /// Queues it was started with, receive and transmit.
    pub(crate) queues: (u16, u16),
}

/// Packets and bits per second, of receive and transmit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Rate {
    pub(crate) rx_pps: u64,
    pub(crate) rx_bps: u64,
    pub(crate) tx_pps: u64,
    pub(crate) tx_bps: u64,
}

impl Rate {
    /// The rate at which `grown` came in `span`.
    pub(crate) fn of(grown: Stats, span: Duration) -> Rate {
        let per_second = |n: u64| (n as f64 / span.as_secs_f64().max(1e-9)) as u64;
        Rate {
            rx_pps: per_second(grown.rx_packets),
            rx_bps: per_second(grown.rx_bytes.saturating_mul(8)),
            tx_pps: per_second(grown.tx_packets),
            tx_bps: per_second(grown.tx_bytes.saturating_mul(8)),
        }
    }
}

const BORDER: &str = "########################";

/// `show port stats`, for one port.
pub(crate) fn stats(port: usize, stats: &Stats, rate: Rate) -> String {
    let Stats { rx_packets, rx_bytes, rx_missed, rx_errors, tx_packets, tx_bytes, tx_errors, .. } = stats;
    let Rate { rx_pps, rx_bps, tx_pps, tx_bps } = rate;
    format!(
        "\n  {BORDER} NIC statistics for port {port:<2} {BORDER}\n  \
         RX-packets: {rx_packets:<10} RX-missed: {rx_missed:<10} RX-bytes:  {rx_bytes}\n  \
         RX-errors: {rx_errors}\n  \
         RX-nombuf:  {:<10}\n  \
         TX-packets: {tx_packets:<10} TX-errors: {tx_errors:<10} TX-bytes:  {tx_bytes}\n\n  \
         Throughput (since last show)\n  \
         Rx-pps: {rx_pps:>12}          Rx-bps: {rx_bps:>12}\n  \
         Tx-pps: {tx_pps:>12}          Tx-bps: {tx_bps:>12}\n  \
         {BORDER}############################{BORDER}\n",
        0
    )
}

/// The names and values of `show port xstats`: those of every port in DPDK's words, then the port's own.
pub(crate) fn xstats_of(queues: &[Stats], own: Vec<(String, u64)>) -> Vec<(String, u64)> {
    let sum = queues.iter().fold(Stats::default(), |sum, q| sum.plus(*q));
    let mut out: Vec<(String, u64)> = [
        ("rx_good_packets", sum.rx_packets),
        ("tx_good_packets", sum.tx_packets),
        ("rx_good_bytes", sum.rx_bytes),
        ("tx_good_bytes", sum.tx_bytes),
        ("rx_missed_errors", sum.rx_missed),
        ("rx_errors", sum.rx_errors),
        ("tx_errors", sum.tx_errors),
        ("rx_mbuf_allocation_errors", 0),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    for (i, q) in queues.iter().enumerate() {
        out.push((format!("rx_q{i}_packets"), q.rx_packets));
        out.push((format!("rx_q{i}_bytes"), q.rx_bytes));
        out.push((format!("rx_q{i}_errors"), q.rx_errors));
    }
    for (i, q) in queues.iter().enumerate() {
        out.push((format!("tx_q{i}_packets"), q.tx_packets));
        out.push((format!("tx_q{i}_bytes"), q.tx_bytes));
    }
    out.push(("calls".into(), sum.calls));
    out.push(("faults".into(), sum.faults));
    for (name, value) in own {
        if !out.iter().any(|(known, _)| *known == name) {
            out.push((name, value));
        }
    }
    out
}

/// `show port xstats`, for one port.
pub(crate) fn xstats(port: usize, xstats: &[(String, u64)]) -> String {
    let mut out = format!("###### NIC extended statistics for port {port:<2}\n");
    for (name, value) in xstats {
        let _ = writeln!(out, "{name}: {value}");
    }
    out
}

/// The head of `show port summary`.
pub(crate) fn summary_head(ports: usize) -> String {
    format!(
        "Number of available ports: {ports}\n\
         Port MAC Address       Name         Driver         Status   Link\n"
    )
}

/// The line of one port in `show port summary`.
pub(crate) fn summary(port: usize, about: &About) -> String {
    format!(
        "{port:<4} {} {:<12} {:<14} {:<8} {}\n",
        super::mac(about.mac),
        about.name,
        about.driver,
        up(about.link.up),
        speed(about.link.speed)
    )
}

/// `show port info`, for one port.
pub(crate) fn info(port: usize, about: &About) -> String {
    let About { name, driver, devargs, mac, link, caps, filter, queues } = about;
    let on = |filtered: fn(&Filter) -> bool| filter.as_ref().is_none_or(|filter| !filtered(filter));
    let mode = |on| if on { "enabled" } else { "disabled" };
    let promiscuous = mode(on(|filter| !filter.promiscuous));
    let groups = mode(on(|filter| !(filter.promiscuous || filter.all_multicast)));
    let networks = if on(|filter| filter.vlans.is_some()) { "off" } else { "on" };
    let border = "*********************";
    // Rings of any size up to this one; the other end chooses where it makes them.
    let ring = pmd::spec::virtio::MAX_RING;
    let segments = pmd::batch::CAP;
    format!(
        "\n{border} Infos for port {port:<2} {border}\n\
         MAC address: {}\n\
         Device name: {name}\n\
         Driver name: {driver}\n\
         Firmware-version: not available\n\
         Devargs: {devargs}\n\
         Connect to socket: 0\n\
         memory allocation on the socket: 0\n\
         Link status: {}\n\
         Link speed: {}\n\
         Link duplex: full-duplex\n\
         Autoneg status: Off\n\
         MTU: {}\n\
         Promiscuous mode: {promiscuous}\n\
         Allmulticast mode: {groups}\n\
         Maximum number of MAC addresses: 1\n\
         Maximum number of MAC addresses of hash filtering: 0\n\
         VLAN offload: \n  strip off, filter {networks}, extend off, qinq strip off\n\
         No RSS offload flow type is supported.\n\
         Minimum size of RX buffer: 0\n\
         Maximum configurable length of RX packet: {}\n\
         Maximum configurable size of LRO aggregated packet: 0\n\
         Current number of RX queues: {}\n\
         Max possible RX queues: {}\n\
         Max possible number of RXDs per queue: {ring}\n\
         Min possible number of RXDs per queue: 1\n\
         RXDs number alignment: 1\n\
         Current number of TX queues: {}\n\
         Max possible TX queues: {}\n\
         Max possible number of TXDs per queue: {ring}\n\
         Min possible number of TXDs per queue: 1\n\
         TXDs number alignment: 1\n\
         Max segment number per packet: {segments}\n\
         Max segment number per MTU/TSO: {segments}\n\
         Device capabilities: 0x0( )\n\
         Device error handling mode: none\n",
        super::mac(*mac),
        up(link.up),
        speed(link.speed),
        caps.mtu,
        pmd::spec::net::MAX_FRAME,
        queues.0,
        caps.queues,
        queues.1,
        caps.queues,
    )
}

fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// A speed in Mbit/s, as DPDK writes it.
fn speed(mbps: u32) -> String {
    match mbps {
        0 => "None".into(),
        2500 => "2.5 Gbps".into(),
        m if m % 1000 == 0 => format!("{} Gbps", m / 1000),
        m => format!("{m} Mbps"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Stats {
        Stats {
            rx_packets: 66_807_744,
            rx_bytes: 4_275_695_616,
            tx_packets: 66_418_080,
            tx_bytes: 1 << 40,
            rx_missed: 3,
            ..Stats::default()
        }
    }

    #[test]
    fn stats_are_dpdks() {
        let rate = Rate { rx_pps: 33_387_358, rx_bps: 17_094_327_296, tx_pps: 33_192_623, tx_bps: 0 };
        insta::assert_snapshot!(stats(0, &some(), rate), @r"

          ######################## NIC statistics for port 0  ########################
          RX-packets: 66807744   RX-missed: 3          RX-bytes:  4275695616
          RX-errors: 0
          RX-nombuf:  0         
          TX-packets: 66418080   TX-errors: 0          TX-bytes:  1099511627776

          Throughput (since last show)
          Rx-pps:     33387358          Rx-bps:  17094327296
          Tx-pps:     33192623          Tx-bps:            0
          ############################################################################
        ");
        let rate =
            Rate::of(Stats { rx_packets: 10, rx_bytes: 640, ..Stats::default() }, Duration::from_millis(500));
        assert_eq!(rate, Rate { rx_pps: 20, rx_bps: 10_240, tx_pps: 0, tx_bps: 0 });
    }

    #[test]
    fn xstats_are_dpdks_then_the_ports_own() {
        let all =
            xstats_of(&[some(), Stats::default()], vec![("rx_good_packets".into(), 9), ("kicks".into(), 7)]);
        insta::assert_snapshot!(xstats(0, &all), @r"
        ###### NIC extended statistics for port 0 
        rx_good_packets: 66807744
        tx_good_packets: 66418080
        rx_good_bytes: 4275695616
        tx_good_bytes: 1099511627776
        rx_missed_errors: 3
        rx_errors: 0
        tx_errors: 0
        rx_mbuf_allocation_errors: 0
        rx_q0_packets: 66807744
        rx_q0_bytes: 4275695616
        rx_q0_errors: 0
        rx_q1_packets: 0
        rx_q1_bytes: 0
        rx_q1_errors: 0
        tx_q0_packets: 66418080
        tx_q0_bytes: 1099511627776
        tx_q1_packets: 0
        tx_q1_bytes: 0
        calls: 0
        faults: 0
        kicks: 7
        ");
    }

    #[test]
    fn info_and_summary_are_dpdks() {
        let about = About {
            name: "net_null0".into(),
            driver: "net_null",
            devargs: "size=64".into(),
            mac: [0xde, 0, 6, 0xc1, 0x3f, 0xbe],
            link: Link { up: true, speed: 10_000 },
            caps: Caps {
                mtu: 1500,
                queues: 128,
                checksum: true,
                segmentation: true,
                reads_foreign_memory: false,
            },
            filter: None,
            queues: (2, 2),
        };
        insta::assert_snapshot!(summary_head(2) + &summary(0, &about), @r"
        Number of available ports: 2
        Port MAC Address       Name         Driver         Status   Link
        0    DE:00:06:C1:3F:BE net_null0    net_null       up       10 Gbps
        ");
        insta::assert_snapshot!(info(0, &about), @r"

        ********************* Infos for port 0  *********************
        MAC address: DE:00:06:C1:3F:BE
        Device name: net_null0
        Driver name: net_null
        Firmware-version: not available
        Devargs: size=64
        Connect to socket: 0
        memory allocation on the socket: 0
        Link status: up
        Link speed: 10 Gbps
        Link duplex: full-duplex
        Autoneg status: Off
        MTU: 1500
        Promiscuous mode: enabled
        Allmulticast mode: enabled
        Maximum number of MAC addresses: 1
        Maximum number of MAC addresses of hash filtering: 0
        VLAN offload: 
          strip off, filter off, extend off, qinq strip off
        No RSS offload flow type is supported.
        Minimum size of RX buffer: 0
        Maximum configurable length of RX packet: 65554
        Maximum configurable size of LRO aggregated packet: 0
        Current number of RX queues: 2
        Max possible RX queues: 128
        Max possible number of RXDs per queue: 32768
        Min possible number of RXDs per queue: 1
        RXDs number alignment: 1
        Current number of TX queues: 2
        Max possible TX queues: 128
        Max possible number of TXDs per queue: 32768
        Min possible number of TXDs per queue: 1
        TXDs number alignment: 1
        Max segment number per packet: 256
        Max segment number per MTU/TSO: 256
        Device capabilities: 0x0( )
        Device error handling mode: none
        ");
        let words = [0, 10, 2500, 1000, 40_000].map(speed);
        assert_eq!(words, ["None", "10 Mbps", "2.5 Gbps", "1 Gbps", "40 Gbps"]);
    }
}
