//! The switch as a program: `cargo run --release --bin vswitch -- --config switch.toml`
//!
//! The file is read again on SIGHUP; ports that are described as they were go on without a pause.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use examples::devices::memory;
use examples::vswitch::config::Config;
use examples::vswitch::runner::Runner;
use hugepages::Backing;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A virtual switch in the manner of Open vSwitch, on the devices of testpmd.
#[derive(Parser)]
#[command(name = "vswitch", version)]
struct Arguments {
    /// Bridges, ports and flows (see docs/vswitch.md); read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
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
    let mut config = Config::read(&arguments.config)?;
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
    let sleep = config.idle_sleep_ms.map(Duration::from_millis);
    let runner = Runner::start(Arc::default(), config.core, backing, sleep).map_err(|e| e.to_string())?;
    config.apply(&Config::default(), &runner)?;
    runner.forward().map_err(|e| e.to_string())?;
    println!("vswitch: ready");
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        match Config::read(&arguments.config) {
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
    runner.stop();
    Ok(())
}
