//! `linerate`: how fast is a vhost-user back-end, ours or another, when its driver costs next to
//! nothing? Rings are kept full and entries recycled without touching data, so that the device is
//! always what is measured.

mod frontend;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use benches::{Near, ring_bytes};
use clap::{Parser, ValueEnum};
use hugepages::{Backing, Map, Table, Words};
use pmd::spec::net::{F_MRG_RXBUF, HDR_LEN};
use pmd::spec::virtio::{F_IN_ORDER, F_RING_PACKED, F_VERSION_1};
use pmd::vring::Way;

use frontend::Frontend;

/// Bytes of a buffer for the device to fill.
const ROOM: u64 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Frames from the guest to the device, which drops them (testpmd rxonly).
    Dequeue,
    /// Frames from the device to the guest (testpmd txonly).
    Enqueue,
    /// Frames from the guest and back to it (testpmd io on one port).
    Loop,
    /// Frames from one guest to another, both ways (testpmd io on two ports: two --path).
    Guests,
}

/// Measures a vhost-user back-end from the driver's side.
///
/// Start the back-end first, for example
///   testpmd --vdev vhost0,iface=/tmp/a.sock --lcores 0 -- --forward-mode io --port-topology loop
/// and then
///   linerate --path /tmp/a.sock --mode loop --core 1
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
struct Args {
    /// Socket of the back-end; once for each port
    #[arg(long, required = true)]
    path: Vec<PathBuf>,
    /// What the back-end is doing
    #[arg(long, value_enum, default_value = "loop")]
    mode: Mode,
    /// Packed rings
    #[arg(long)]
    packed: bool,
    /// Negotiate in-order
    #[arg(long)]
    in_order: bool,
    /// Do not negotiate mergeable receive buffers
    #[arg(long)]
    no_mergeable: bool,
    /// Entries of each ring
    #[arg(long, default_value_t = 1024)]
    size: u16,
    /// Bytes of a frame, without FCS
    #[arg(long, default_value_t = 60)]
    frame: u32,
    /// Seconds to measure
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Core to run the driver on
    #[arg(long)]
    core: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One port: its connection, and its rings.
struct Port {
    frontend: Frontend,
    receive: Near,
    transmit: Near,
    received: u64,
    sent: u64,
}

impl Port {
    fn open(path: &std::path::Path, args: &Args) -> Result<Port, Box<dyn std::error::Error>> {
        let mut features = F_VERSION_1;
        for (on, feature) in
            [(args.packed, F_RING_PACKED), (args.in_order, F_IN_ORDER), (!args.no_mergeable, F_MRG_RXBUF)]
        {
            features |= if on { feature } else { 0 };
        }
        let ring = ring_bytes(args.size);
        let (n, frame) = (u64::from(args.size), u64::from(HDR_LEN + args.frame));
        let stride = frame.next_multiple_of(64).max(ROOM);
        let (rooms, frames) = (2 * ring, 2 * ring + n * ROOM);
        let len = frames + n * stride;
        let (map, fallback) = Map::shared_or_base(len as usize, Backing::default())?;
        if let Some(why) = fallback {
            eprintln!("{why}");
        }
        let (fd, len, user) = (map.fd().try_clone_to_owned()?, map.len() as u64, map.address());
        let table = Table::of(map);
        for i in 0..n {
            let at = table.window::<u16>(frames + i * stride, (frame / 2) as usize)?;
            // An Ethernet header: to 02:.., from 02:.., EtherType of local experiments.
            for (word, value) in [(6, 0x0002), (9, 0x0002), (12, 0xb588)] {
                at.set(word, value);
            }
            at.set(11, i as u16);
        }
        let receive = Near::new(&table, 0, args.size, features, Way::ToDriver, (rooms, ROOM, ROOM as u32));
        let transmit =
            Near::new(&table, ring, args.size, features, Way::FromDriver, (frames, stride, frame as u32));
        let mut frontend = Frontend::connect(path, features)?;
        use std::os::fd::AsFd;
        frontend.start(fd.as_fd(), len, user, &[receive.layout, transmit.layout])?;
        Ok(Port { frontend, receive, transmit, received: 0, sent: 0 })
    }

    /// Offers again what the device has used; whether there was any.
    fn turn(&mut self, least: u16) -> bool {
        let size = self.transmit.layout.size;
        let (got, sent) = (self.receive.used(size), self.transmit.used(size));
        if got > 0 {
            self.receive.offer(got);
        }
        if sent > 0 {
            self.transmit.offer(sent);
        }
        self.received += u64::from(got);
        self.sent += u64::from(sent);
        got.max(sent) >= least
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(id) = args.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id })
    {
        return Err(format!("cannot run on core {id}").into());
    }
    let mut ports: Vec<Port> = args.path.iter().map(|p| Port::open(p, args)).collect::<Result<_, _>>()?;
    for port in &mut ports {
        port.receive.offer(args.size);
        if args.mode != Mode::Enqueue {
            port.transmit.offer(args.size);
        }
    }
    // A driver that looks at the rings all the time takes their lines from the device: it waits until
    // about a sixth of a ring is used.
    let least = args.size / 6;
    let (mut looks, mut hits) = (0u64, 0u64);
    let mut spin = |ports: &mut [Port], time: Duration| {
        let since = Instant::now();
        while since.elapsed() < time {
            for port in ports.iter_mut() {
                looks += 1;
                if port.turn(least) {
                    hits += 1;
                } else {
                    for _ in 0..32 {
                        std::hint::spin_loop();
                    }
                }
            }
        }
        since.elapsed()
    };
    spin(&mut ports, Duration::from_millis(500));
    let before: Vec<_> = ports.iter().map(|p| (p.received, p.sent)).collect();
    let time = spin(&mut ports, Duration::from_secs_f64(args.seconds)).as_secs_f64();
    let rate = |i: usize, n: u64, b: u64| (i, (n - b) as f64 / time / 1e6);
    let received: f64 = ports.iter().enumerate().map(|(i, p)| rate(i, p.received, before[i].0).1).sum();
    let sent: f64 = ports.iter().enumerate().map(|(i, p)| rate(i, p.sent, before[i].1).1).sum();
    for port in &mut ports {
        port.frontend.stop()?;
    }
    let mpps = if args.mode == Mode::Dequeue { sent } else { received };
    let full = hits as f64 / looks as f64;
    if args.json {
        let line = serde_json::json!({
            "mode": format!("{:?}", args.mode).to_lowercase(), "packed": args.packed, "frame": args.frame,
            "size": args.size, "mpps": mpps, "gbps": mpps * f64::from(args.frame) * 8e-3,
            "received_mpps": received, "sent_mpps": sent, "driver_busy": full,
        });
        println!("{line}");
    } else {
        println!(
            "{mpps:.2} Mpps ({received:.2} received, {sent:.2} sent; driver busy {:.0} %)",
            full * 100.0
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("linerate: {e}");
            ExitCode::FAILURE
        }
    }
}
