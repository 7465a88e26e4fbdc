//! The switch as a program: `cargo run --release --bin vswitch -- --config switch.toml`
//!
//! The file is read again on SIGHUP; ports that are described as they were go on without a pause. Instead of a file, or
//! beside it, the database of `ovs-vsctl` may say what there is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use examples::devices::memory;
use examples::vswitch::config::Config;
use examples::vswitch::manage::{Management, Places};
use examples::vswitch::runner::Runner;
use hugepages::Backing;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How often signals are looked for.
const SIGNALS: Duration = Duration::from_millis(20);

/// A virtual switch in the manner of Open vSwitch, on the devices of testpmd.
#[derive(Parser)]
#[command(name = "vswitch", version)]
struct Arguments {
    /// Bridges, ports and flows (see docs/vswitch.md); read again on SIGHUP.
    #[arg(long, value_name = "FILE", required_unless_present = "db")]
    config: Option<PathBuf>,
    /// The database of ovs-vsctl to follow: unix:FILE or tcp:IP:PORT of an ovsdb-server.
    #[arg(long, value_name = "TARGET")]
    db: Option<String>,
    /// The socket for ovs-appctl.
    #[arg(long, value_name = "FILE")]
    unixctl: Option<PathBuf>,
    /// The folder for the socket BRIDGE.mgmt of each bridge, for ovs-ofctl.
    #[arg(long, value_name = "FOLDER")]
    rundir: Option<PathBuf>,
    /// Ordinary pages for buffers, not huge ones.
    #[arg(long)]
    no_huge: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vswitch: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let read = || arguments.config.as_ref().map_or_else(|| Ok(Config::default()), |path| Config::read(path));
    let mut config = read()?;
    let mut backing = Backing::default();
    if arguments.no_huge {
        backing.page = hugepages::PageSize::Base;
    }
    let (backing, fallback) = memory::choose(backing).map_err(|e| e.to_string())?;
    if let Some(line) = fallback {
        eprintln!("vswitch: {line}");
    }
    // A front-end that truncates its memory ends its own port and no other.
    hugepages::sigbus::install().map_err(|e| format!("handler of SIGBUS: {e}"))?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(|e| format!("signals: {e}"))?;
    let runner = Runner::start(Arc::default(), config.settings()?, backing).map_err(|e| e.to_string())?;
    config.apply(&Config::default(), &runner)?;
    runner.forward().map_err(|e| e.to_string())?;
    let runner = Arc::new(runner);
    let quit = Arc::new(AtomicBool::new(false));
    let places = Places {
        unixctl: arguments.unixctl.clone(),
        folder: arguments.rundir.clone(),
        database: arguments.db.clone(),
    };
    let management = Management::start(Arc::clone(&runner), &places, Arc::clone(&quit))?;
    println!("vswitch: ready");
    while !quit.load(Ordering::Relaxed) {
        for signal in signals.pending() {
            if signal != SIGHUP {
                quit.store(true, Ordering::Relaxed);
                continue;
            }
            match read() {
                Ok(new) => {
                    if let Err(e) = new.apply(&config, &runner) {
                        eprintln!("vswitch: {e}");
                    }
                    config = new;
                    println!("vswitch: read again");
                }
                Err(e) => eprintln!("vswitch: {e}"),
            }
        }
        std::thread::sleep(SIGNALS);
    }
    management.stop();
    if let Some(runner) = Arc::into_inner(runner) {
        runner.stop();
    }
    Ok(())
}
