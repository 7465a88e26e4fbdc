//! The command line: DPDK's spellings, before or after a lone `--`.

mod argv;
mod cores;
mod file;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::Error;
use crate::ports::Rings;
use crate::vdev::{self, Vdev};

pub(crate) use cores::Lcore;

/// What is done to packets between receive and transmit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Forward as they are.
    Io,
    /// Set the destination to the peer's MAC address and the source to the port's.
    Mac,
    /// Swap source and destination MAC addresses.
    Macswap,
    /// Swap MAC and IP addresses and TCP or UDP ports.
    #[value(name = "5tswap")]
    FiveTuple,
    /// Make UDP flows, drop what arrives.
    Flowgen,
    /// Drop what arrives.
    Rxonly,
    /// Make frames, receive nothing.
    Txonly,
    /// Verify and complete checksums.
    Csum,
    /// Answer ARP and ping.
    Icmpecho,
    /// Forward like a busy network function: buffering and memory look-ups.
    Noisy,
}

impl Mode {
    /// As it is spelled.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("no mode is hidden").get_name().to_string()
    }
}

/// Which port a packet leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Topology {
    /// 0 to 1 and back, 2 to 3 and back.
    Paired,
    /// 0 to 1 to 2 to 0.
    Chained,
    /// Each to itself.
    Loop,
}

const EXAMPLES: &str = "\
Examples:
  testpmd
      The demo: two guests in this process, forwarded through real vrings. Needs nothing.
  testpmd --vdev vhost0,iface=/run/vm0.sock --vdev vhost1,iface=/run/vm1.sock -i
      Two virtual machines, connected to each other; then 'start' at the prompt.
  testpmd -l 0-2 --vdev net_vhost0,iface=/run/vm0.sock,queues=2 --vdev net_tap0,iface=tap0 \\
          -- --rxq=2 --txq=2 --nb-cores=2 --forward-mode=macswap --stats-period 1
      A machine and an interface of the host, two queue pairs on two cores, figures each second.
  testpmd --takeover /run/testpmd.sock --vdev vhost0,iface=/run/vm0.sock --vdev vhost1,iface=/run/vm1.sock
      The same line again, with a new build: it takes the machines over from the one that runs, which ends;
      no packet is lost, and the machines notice nothing.
  testpmd --vdev generator0,size=64 --vdev null1 --forward-mode=io --duration 5 --json
      A measurement for a script: one line of JSON at the end.
  In QEMU: -object memory-backend-memfd,id=m,size=1G,share=on -numa node,memdev=m
           -chardev socket,id=c,path=/run/vm0.sock -netdev vhost-user,id=n,chardev=c
           -device virtio-net-pci,netdev=n
";

/// Forwards packets between ports on cores that never sleep, in the words of DPDK's testpmd.
#[derive(Clone, Debug, Parser)]
#[command(name = "testpmd", version, max_term_width = 100, args_override_self = true)]
#[command(override_usage = "testpmd [-l CORES] [--vdev PORT]... [--] [OPTIONS]")]
pub(crate) struct Options {
    // No doc comment: rustdoc takes <N> for a tag.
    #[arg(long = "vdev", value_name = "PORT", value_parser = parse_vdev)]
    #[arg(help = "A port: KIND<N>,key=value,... (kinds below); again for each further port")]
    pub(crate) vdevs: Vec<Vdev>,

    /// DPDK's devices as ports: arguments of its EAL, as "-a 0000:01:00.0" or "--no-pci --vdev net_af_xdp0,iface=eth0"
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub(crate) dpdk: Option<String>,

    /// Cores, as 0,2-3 or 0@4,1@5 (lcore@cpu): the first for the prompt, the others forward
    #[arg(short = 'l', long, value_name = "CORES", value_parser = cores::parse)]
    pub(crate) lcores: Option<cores::List>,

    /// Ask for commands: start, stop, show, set, port, quit, help
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Start forwarding at once (always so when not interactive)
    #[arg(short, long)]
    pub(crate) auto_start: bool,

    /// Send one burst from every port before forwarding
    #[arg(long)]
    pub(crate) tx_first: bool,

    /// Run the commands of this file before anything else
    #[arg(long, value_name = "FILE")]
    pub(crate) cmdline_file: Option<PathBuf>,

    /// What is done to packets
    #[arg(long, value_name = "MODE", default_value = "io")]
    pub(crate) forward_mode: Mode,

    /// Which port a packet leaves by
    #[arg(long, value_name = "TOPOLOGY", default_value = "paired")]
    pub(crate) port_topology: Topology,

    /// Queues of each port for receive
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub(crate) rxq: u16,

    /// Queues of each port for transmit
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub(crate) txq: u16,

    /// Descriptors of a receive ring, where we choose; 0: as the port likes
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=32768))]
    pub(crate) rxd: u16,

    /// Descriptors of a transmit ring, where we choose; 0: as the port likes
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=32768))]
    pub(crate) txd: u16,

    /// Packets in a burst
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=pmd::batch::CAP as i64))]
    pub(crate) burst: u16,

    /// Use ordinary pages, even where huge pages are free
    #[arg(long)]
    pub(crate) no_huge: bool,

    /// Huge pages to use; every pool takes whole ones
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = ["2M", "1G"])]
    pub(crate) huge_size: String,

    /// NUMA node to take memory from
    #[arg(long, value_name = "NODE")]
    pub(crate) numa_node: Option<u32>,

    /// Forwarding cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) nb_cores: u16,

    /// Forwarding ports: the first N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) nb_ports: Option<u16>,

    /// Segment lengths of the frames that txonly and flowgen make
    #[arg(long, value_name = "X[,Y]*", default_value = "64", value_delimiter = ',')]
    pub(crate) txpkts: Vec<u16>,

    /// MAC address that mode mac sends port X's packets to: X,xx:xx:xx:xx:xx:xx
    #[arg(long, value_name = "X,MAC", value_parser = parse_peer)]
    pub(crate) eth_peer: Vec<(u16, [u8; 6])>,

    /// Buffers of our own, in all; 0: enough for the queues
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) total_num_mbufs: u32,

    /// Bytes of a buffer of our own
    #[arg(long, value_name = "N", default_value_t = 2176, value_parser = clap::value_parser!(u32).range(64..=131_072))]
    pub(crate) mbuf_size: u32,

    /// Bytes of the largest frame with its check sequence, for ports that need to know
    #[arg(long, value_name = "N", default_value_t = 1518, value_parser = clap::value_parser!(u32).range(86..=65_531))]
    pub(crate) max_pkt_len: u32,

    /// Show statistics every N seconds (when not interactive)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) stats_period: u32,

    /// End after so many seconds (when not interactive)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) duration: Option<f64>,

    /// Statistics as a line of JSON per period and at the end: instead of text, or beside it in FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub(crate) json: Option<PathBuf>,

    /// Measure the cycles that a packet costs
    #[arg(long)]
    pub(crate) record_core_cycles: bool,

    /// Count bursts by their size
    #[arg(long)]
    pub(crate) record_burst_stats: bool,

    /// Let a core without work back off, then sleep until a port has something
    #[arg(long)]
    pub(crate) idle_sleep: bool,

    /// Flows that mode flowgen makes
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) flowgen_flows: u32,

    /// Vary the source address in mode txonly
    #[arg(long)]
    pub(crate) txonly_multi_flow: bool,

    /// Addresses of mode txonly
    #[arg(long, value_name = "SRC,DST", default_value = "198.18.0.1,198.18.0.2", value_parser = parse_ips)]
    pub(crate) tx_ip: (std::net::Ipv4Addr, std::net::Ipv4Addr),

    /// Ports of mode txonly
    #[arg(long, value_name = "SRC[,DST]", default_value = "9", value_parser = parse_udp)]
    pub(crate) tx_udp: (u16, u16),

    /// Packets that mode noisy keeps back
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=8192))]
    pub(crate) noisy_tx_sw_buffer_size: u16,

    /// Milliseconds after which mode noisy sends what it keeps back
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) noisy_tx_sw_buffer_flushtime: u32,

    /// MiB that mode noisy walks in
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub(crate) noisy_lkup_memory: u32,

    /// Random writes per packet of mode noisy
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) noisy_lkup_num_writes: u32,

    /// Random reads per packet of mode noisy
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) noisy_lkup_num_reads: u32,

    /// Random reads with write per packet of mode noisy
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) noisy_lkup_num_reads_writes: u32,

    /// Take the vhost ports over from the testpmd that listens at this socket, if one does; then listen there for the next
    #[arg(long, value_name = "SOCKET")]
    pub(crate) takeover: Option<PathBuf>,

    /// Once ports are there, go on as this user (a name or UID:GID) without capabilities, and --confine
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Once ports are there, allow no new privileges, no programs, and only the system calls needed
    #[arg(long)]
    pub(crate) confine: bool,

    /// Options from a TOML file, with these names as keys; the command line wins
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What became of the command line.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Go on with these; the second are options that mean nothing here.
    Run(Box<Options>, Vec<String>),
    /// `--help` or `--version`: print this and leave.
    Print(String),
}

impl Options {
    /// What our buffers are to be made of.
    pub(crate) fn backing(&self) -> hugepages::Backing {
        let page = match (self.no_huge, self.huge_size.as_str()) {
            (true, _) => hugepages::PageSize::Base,
            (false, "1G") => hugepages::PageSize::Huge1G,
            (false, _) => hugepages::PageSize::Huge2M,
        };
        hugepages::Backing { page, node: self.numa_node }
    }

    /// Reads the command line, program name first.
    ///
    /// # Errors
    /// One line that names the option or value and what is allowed.
    pub(crate) fn parse_args(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Error> {
        let mut args = args.into_iter();
        let program = args.next().unwrap_or_else(|| "testpmd".into());
        let (given, ignored) = argv::arrange(args)?;
        let mut all = vec![program];
        if let Some(path) = argv::value_of(&given, "--config") {
            all.extend(file::read(path.as_ref())?);
        }
        all.extend(given.into_iter().map(OsString::from));
        let command = Options::command().after_long_help(format!("{}\n{EXAMPLES}", vdev::help()));
        let matches = match command
            .after_help("--help tells the kinds of ports, and examples")
            .try_get_matches_from(all)
        {
            Ok(matches) => matches,
            Err(e) if !e.use_stderr() => return Ok(Parsed::Print(e.to_string())),
            Err(e) => return Err(Error::Usage(one_line(&e.to_string()))),
        };
        let options =
            Options::from_arg_matches(&matches).map_err(|e| Error::Usage(one_line(&e.to_string())))?;
        options.check()?;
        Ok(Parsed::Run(Box::new(options), ignored))
    }

    /// Largest payload of a frame: `--max-pkt-len` less Ethernet and check sequence.
    pub(crate) fn mtu(&self) -> u32 {
        self.max_pkt_len - 18
    }

    /// What ports have that are not told otherwise.
    pub(crate) fn rings(&self) -> Rings {
        Rings { rxd: self.rxd, txd: self.txd, queues: self.rxq.max(self.txq), mtu: self.mtu() }
    }

    fn check(&self) -> Result<(), Error> {
        for (i, vdev) in self.vdevs.iter().enumerate() {
            if self.vdevs[..i].iter().any(|v| v.name == vdev.name) {
                return Err(Error::Usage(format!("--vdev {}: given twice; number them", vdev.name)));
            }
        }
        check_txpkts(&self.txpkts).map_err(|e| Error::Usage(format!("--txpkts: {e}")))?;
        let work = self.noisy_lkup_num_reads + self.noisy_lkup_num_writes + self.noisy_lkup_num_reads_writes;
        if work > 0 && self.noisy_lkup_memory == 0 {
            return Err(Error::Usage("--noisy-lkup-memory must be > 0 for look-ups".into()));
        }
        if self.takeover.is_some() && self.vdevs.is_empty() {
            return Err(Error::Usage(
                "--takeover: name the ports (--vdev), as the testpmd before did".into(),
            ));
        }
        if self.duration.is_some_and(|d| !(d.is_finite() && d > 0.0)) {
            return Err(Error::Usage("--duration: allowed: seconds greater than 0".into()));
        }
        Ok(())
    }
}

/// Most segments of a frame that we make.
pub(crate) const MAX_TX_SEGMENTS: usize = 16;
/// Ethernet, IPv4 and UDP headers.
const MIN_TX_FRAME: u32 = 42;

/// Checks segment lengths of frames that we make.
///
/// # Errors
/// What is wrong, in testpmd's words.
pub(crate) fn check_txpkts(lengths: &[u16]) -> Result<(), String> {
    let total: u32 = lengths.iter().map(|&l| u32::from(l)).sum();
    if lengths.len() > MAX_TX_SEGMENTS {
        return Err(format!("nb segments per TX packets={} > {MAX_TX_SEGMENTS} - give up", lengths.len()));
    }
    if lengths.contains(&0) || total < MIN_TX_FRAME {
        return Err(format!("total packet length={total} < {MIN_TX_FRAME} - give up"));
    }
    if total > pmd::spec::net::MAX_FRAME {
        return Err(format!("total packet length={total} > {} - give up", pmd::spec::net::MAX_FRAME));
    }
    Ok(())
}

/// The options of an empty command line.
pub(crate) fn defaults() -> Options {
    Options::parse_from(["testpmd"])
}

/// What clap says in several lines, in one.
fn one_line(message: &str) -> String {
    let said = message.split("\n\nUsage:").next().unwrap_or(message);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let words: Vec<&str> = said.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

fn parse_vdev(text: &str) -> Result<Vdev, String> {
    Vdev::parse(text).map_err(|e| e.to_string())
}

fn parse_peer(text: &str) -> Result<(u16, [u8; 6]), String> {
    let (port, mac) = text.split_once(',').ok_or("allowed: PORT,xx:xx:xx:xx:xx:xx")?;
    let port = port.parse().map_err(|_| "the port is a number from 0 on")?;
    Ok((port, vdev::mac(mac).ok_or("the MAC address is xx:xx:xx:xx:xx:xx")?))
}

fn parse_ips(text: &str) -> Result<(std::net::Ipv4Addr, std::net::Ipv4Addr), String> {
    let (src, dst) = text.split_once(',').ok_or("allowed: SRC,DST, two IPv4 addresses")?;
    match (src.parse(), dst.parse()) {
        (Ok(src), Ok(dst)) => Ok((src, dst)),
        _ => Err("allowed: SRC,DST, two IPv4 addresses".into()),
    }
}

fn parse_udp(text: &str) -> Result<(u16, u16), String> {
    let (src, dst) = text.split_once(',').unwrap_or((text, text));
    match (src.parse(), dst.parse()) {
        (Ok(src), Ok(dst)) => Ok((src, dst)),
        _ => Err("allowed: SRC[,DST], ports from 0 to 65535".into()),
    }
}

#[cfg(test)]
mod tests;
