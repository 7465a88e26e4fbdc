//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use pmd::spec::net::{F_MRG_RXBUF, HDR_LEN, HDR_LEN_LEGACY, MAX_QUEUE_PAIRS};
use pmd::spec::virtio::{self, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1};
use serde::Serialize;

use crate::frames::{MAX_FLOWS, Size};

/// What the back-end is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Frames from the guest to the device, which drops them (testpmd rxonly)
    Dequeue,
    /// Frames from the device to the guest (testpmd txonly)
    Enqueue,
    /// Frames from the guest and back to it (testpmd io, --port-topology=loop)
    Loop,
    /// Frames from one guest to another, both ways (testpmd io on two ports: two --path)
    Guests,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// Packets per second with rings kept full
    Rate,
    /// Is every frame that was sent there, once, in order and undamaged? Exit status 1 if not
    Verify,
    /// The same for a long time (an hour, unless --seconds), with a line every ten seconds
    Soak,
    /// The time that a lone frame takes through an otherwise idle back-end
    Lone,
    /// RFC 2544 §26.1: the highest rate at which no more than --loss is lost, by binary search
    Throughput,
    /// RFC 2544 §26.2: the time that frames take at --loads of the throughput, or at --rate
    Latency,
    /// RFC 2544 §26.3: loss at 10 % to 120 % of the highest rate
    LossCurve,
    /// Throughput, latency and loss curve
    Rfc2544,
}

/// Where the virtio-net header goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Header {
    /// In front of the frame, in the same buffer
    Same,
    /// In a buffer of its own (of receive buffers only with --no-mergeable)
    Own,
}

/// How the rings and their buffers look: goes into each result.
#[derive(clap::Args, Clone, Debug, Serialize)]
pub(crate) struct Shape {
    /// Packed rings
    #[arg(long)]
    pub(crate) packed: bool,
    /// Negotiate in-order
    #[arg(long)]
    pub(crate) in_order: bool,
    /// Do not negotiate mergeable receive buffers
    #[arg(long)]
    pub(crate) no_mergeable: bool,
    /// Descriptors point to indirect tables (of receive rings only where a buffer has two parts)
    #[arg(long)]
    pub(crate) indirect: bool,
    /// Where the virtio-net header goes
    #[arg(long, value_enum, default_value = "same")]
    pub(crate) header: Header,
    /// A driver from before virtio 1: its header has 10 bytes, or 12 if mergeable; split rings only
    #[arg(long, conflicts_with = "packed")]
    pub(crate) legacy: bool,
    /// Descriptors of each ring
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..=i64::from(virtio::MAX_RING)))]
    pub(crate) size: u16,
    /// Queue pairs of each port
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    pub(crate) queues: u16,
    /// Flows of each port: source MAC, IP addresses and ports differ. Up to as many as there are buffers
    /// they cost nothing; more are written into the frames as they are sent
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    pub(crate) flows: u32,
    /// Bytes of a receive buffer [default: 2048, and the longest frame if not mergeable]
    #[arg(long, value_parser = clap::value_parser!(u32).range(128..=65536))]
    pub(crate) room: Option<u32>,
    /// Bytes from one buffer to the next, at the least
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(64..=1 << 20))]
    pub(crate) stride: u32,
}

impl Shape {
    /// Bytes of the virtio-net header.
    pub(crate) fn hdr(&self) -> u32 {
        if self.legacy && self.no_mergeable { HDR_LEN_LEGACY } else { HDR_LEN }
    }

    /// Features of virtio that the back-end must have.
    pub(crate) fn features(&self) -> u64 {
        [
            (!self.legacy, F_VERSION_1),
            (self.packed, F_RING_PACKED),
            (self.in_order, F_IN_ORDER),
            (!self.no_mergeable, F_MRG_RXBUF),
            (self.indirect, F_INDIRECT_DESC),
        ]
        .into_iter()
        .fold(0, |all, (on, feature)| all | if on { feature } else { 0 })
    }

    /// Bytes that a receive buffer has for header and frame.
    pub(crate) fn room(&self, frame: Size) -> u32 {
        let whole = (self.hdr() + frame.longest()).next_multiple_of(64);
        self.room.unwrap_or(if self.no_mergeable { whole.max(2048) } else { 2048 })
    }

    /// Receive buffers that frame `n` takes.
    pub(crate) fn rooms(&self, frame: Size, n: u64) -> u32 {
        if self.no_mergeable { 1 } else { (self.hdr() + frame.of(n)).div_ceil(self.room(frame)) }
    }
}

/// Measures a vhost-user back-end from the driver's side.
///
/// Start the back-end first, for example
///   testpmd -l 0 --vdev vhost0,iface=/tmp/a.sock -- --forward-mode=io --port-topology=loop
///   dpdk-testpmd -l 0,2 --no-pci --in-memory --vdev net_vhost0,iface=/tmp/a.sock \
///       -- --forward-mode=io --port-topology=loop
/// and then
///   linerate --path /tmp/a.sock --mode loop --core 1
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Socket of the back-end; once for each port
    #[arg(long, required_unless_present = "compare", num_args = 1..)]
    pub(crate) path: Vec<PathBuf>,
    /// Make the sockets and wait for the back-end to connect
    #[arg(long)]
    pub(crate) listen: bool,
    /// Sockets of ports that are connected and left idle, to see what they cost the others
    #[arg(long, num_args = 1..)]
    pub(crate) idle: Vec<PathBuf>,
    /// What the back-end is doing
    #[arg(long, value_enum, default_value = "loop")]
    pub(crate) mode: Mode,
    /// What to measure
    #[arg(long, value_enum, default_value = "rate")]
    pub(crate) measure: Measure,
    /// Bytes of a frame without FCS, 60 to 9014, or imix; several, and each is measured
    #[arg(long, default_value = "60", value_delimiter = ',')]
    pub(crate) frame: Vec<Size>,
    #[command(flatten)]
    pub(crate) shape: Shape,
    /// Seconds to measure, or of each trial [default: 2; soak: 3600]
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// A line every so many seconds while measuring (rate, verify, soak) [default: none; soak: 10]
    #[arg(long)]
    pub(crate) period: Option<f64>,
    /// Loss that a throughput trial may have, percent
    #[arg(long, default_value_t = 0.0)]
    pub(crate) loss: f64,
    /// How closely throughput is searched, percent of the highest rate
    #[arg(long, default_value_t = 1.0)]
    pub(crate) resolution: f64,
    /// Trials of a rate before it counts as failed: more than one where others disturb the cores
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tries: u32,
    /// Loads at which latency is measured, percent of the throughput
    #[arg(long, default_value = "10,50,90", value_delimiter = ',')]
    pub(crate) loads: Vec<f64>,
    /// Rates at which latency is measured instead, Mpps
    #[arg(long, value_delimiter = ',')]
    pub(crate) rate: Vec<f64>,
    /// Frames that are sent at once, at a steady rate [default: those of 1 us, 1 to 32]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) burst: Option<u16>,
    /// Frames of a queue under way at most while verifying [default: what the receive ring holds]
    #[arg(long)]
    pub(crate) window: Option<u16>,
    /// Cores to run the driver on: rates use all, the rest the first
    #[arg(long, value_delimiter = ',')]
    pub(crate) core: Vec<usize>,
    /// Print JSON, one object a line; with a file, write it there beside the table
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "FILE")]
    pub(crate) json: Option<Option<PathBuf>>,
    /// Draw what was measured (SVG)
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// Measure nothing: compare files of JSON lines, the second and further with the first
    #[arg(long, num_args = 1.., value_name = "FILE", conflicts_with = "path")]
    pub(crate) compare: Vec<PathBuf>,
    /// Show no progress
    #[arg(long)]
    pub(crate) quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  linerate --path /tmp/a.sock --mode loop --frame 60,252,1514,9000 --plot sizes.svg --core 1
  linerate --path /tmp/a.sock --mode loop --packed --measure verify --frame imix --flows 1000
  linerate --path /tmp/a.sock --mode loop --measure lone
  linerate --path /tmp/a.sock --mode loop --measure rfc2544 --loss 0.001 --tries 3 --json=a.json
  linerate --path /tmp/a.sock /tmp/b.sock --mode guests --measure latency --rate 0.1,1,5
  linerate --path /tmp/a.sock --mode loop --measure soak --seconds 86400 --period 60
  linerate --compare a.json b.json --plot both.svg

driver busy is the share of looks that found the ring used up far enough: near 0 the device was the
limit, near 100 % this driver was. Ctrl-C ends the measurement and keeps what was measured so far.
docs/performance.md says what each number means.";

impl Args {
    /// Checks what clap cannot: what does not go together, and how to put it right.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shape = &self.shape;
        let positive = |name: &str, value: f64| {
            if value > 0.0 { Ok(()) } else { Err(format!("--{name} {value}: must be more than 0")) }
        };
        positive("seconds", self.seconds())?;
        positive("resolution", self.resolution)?;
        self.period.map_or(Ok(()), |period| positive("period", period))?;
        self.rate.iter().try_for_each(|&rate| positive("rate", rate))?;
        self.loads.iter().try_for_each(|&load| positive("loads", load))?;
        if !shape.packed && !shape.size.is_power_of_two() {
            return Err(format!("--size {}: a split ring is a power of two", shape.size));
        }
        if shape.header == Header::Own && !shape.indirect && !shape.size.is_multiple_of(2) {
            return Err(format!("--size {}: frames of two descriptors need an even ring", shape.size));
        }
        if self.mode == Mode::Guests && !self.path.len().is_multiple_of(2) {
            return Err("--mode guests: give --path twice, for the two guests".into());
        }
        let returns = matches!(self.mode, Mode::Loop | Mode::Guests);
        if !returns && self.measure != Measure::Rate {
            return Err(format!(
                "--measure {:?} needs frames that come back: --mode loop or guests",
                self.measure
            ));
        }
        if shape.no_mergeable
            && let Some(long) = self.frame.iter().find(|f| shape.hdr() + f.longest() > shape.room(**f))
        {
            return Err(format!("--room: too small for frames of {long} that are not mergeable"));
        }
        let mixed = |f: &Size| (0..12).any(|n| shape.rooms(*f, n) != shape.rooms(*f, 0));
        let counts = !matches!(self.measure, Measure::Verify | Measure::Soak);
        if counts && returns && self.frame.iter().any(mixed) {
            return Err("--room: the frames of a mix must take one buffer each (--room 1536)".into());
        }
        Ok(())
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.measure == Measure::Soak { 3600.0 } else { 2.0 })
    }

    pub(crate) fn period(&self) -> Option<f64> {
        self.period.or((self.measure == Measure::Soak).then_some(10.0))
    }
}
