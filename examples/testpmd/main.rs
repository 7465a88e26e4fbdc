//! testpmd: ports in, ports out, in the words of DPDK's application of that name.
//!
//! - `cli`: the command line; the ports it names are made by `examples::devices`
//! - `streams`: which queue feeds which, on which core
//! - `forward`, `headers`: what is done to packets, one mode per file
//! - `app`: ports and cores while they live; start, stop, show
//! - `command`, `prompt`, `session`: what is asked of it, and by whom
//! - `demo`: two guests in this process, when nothing is asked for
//! - `text`: how it answers, in the form that scripts of DPDK parse

mod app;
mod cli;
mod command;
mod demo;
mod forward;
mod headers;
mod sums;
mod prompt;
mod session;
mod streams;
mod text;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use app::{App, say};
use cli::{Lcore, Mode, Options, Parsed};
use ports::Maker;
use prompt::Events;
use session::Session;

pub(crate) use examples::devices::Error;
use examples::devices::{memory, ports, vdev};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("testpmd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let options = match Options::parse_args(std::env::args_os())? {
        Parsed::Print(text) => {
            print!("{text}");
            return Ok(());
        }
        Parsed::Run(options, mut ignored) => {
            ignored.extend(options.vdevs.iter().flat_map(|v| v.ignored.clone()));
            if !ignored.is_empty() {
                eprintln!("testpmd: not needed here, ignored: {}", ignored.join(", "));
            }
            *options
        }
    };
    log(&options);
    let cores = options.lcores.clone().unwrap_or_else(usable);
    let (main_core, lcores) = divide(cores, &options)?;
    let (backing, fallback) = memory::choose(options.backing())?;
    if let Some(line) = fallback {
        eprintln!("testpmd: {line}");
    }
    // Before the prompt's own threads start: they inherit it.
    if let Some(core) = main_core {
        core_affinity::set_for_current(core_affinity::CoreId { id: core.cpu });
    }
    // A front-end that truncates its memory ends its own port and no other.
    hugepages::sigbus::install().map_err(Error::io("handler of SIGBUS"))?;
    let events = Events::new()?;
    let asked = !options.vdevs.is_empty()
        || options.dpdk.is_some()
        || options.interactive
        || options.cmdline_file.is_some();
    if !asked {
        // The guests share a core with the prompt, which is not there, unless there is one to spare.
        let guests = lcores.get(usize::from(options.nb_cores)).copied().or(main_core);
        return Session::new(App::new(options, lcores, Maker::new(backing)), events)?.demo(guests);
    }
    if options.interactive {
        say("Interactive-mode selected\n");
    }
    if options.forward_mode != Mode::Io {
        say(&format!("Set {} packet forwarding mode\n", options.forward_mode.name()));
    }
    Session::new(App::new(options, lcores, Maker::new(backing)), events)?.run()
}

/// Logs to standard error what `RUST_LOG` asks for: warnings, and the packets of traced ports, unless it
/// says otherwise.
fn log(options: &Options) {
    let traced = options.vdevs.iter().any(|v| v.text("tracer") == Some("1"));
    let usual = if traced { "warn,pmd::packet=trace" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

/// The cores that this process may use.
fn usable() -> Vec<Lcore> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let cores: Vec<Lcore> = ids.into_iter().map(|c| Lcore { id: c.id, cpu: c.id }).collect();
    if cores.is_empty() { vec![Lcore { id: 0, cpu: 0 }] } else { cores }
}

/// The core of the prompt, and those that forward: as in DPDK, the first and the others. One core alone
/// forwards, and the prompt takes what is left of any.
fn divide(cores: Vec<Lcore>, options: &Options) -> Result<(Option<Lcore>, Vec<Lcore>), Error> {
    let (main, lcores) = match cores.split_first() {
        Some((main, others)) if !others.is_empty() => (Some(*main), others.to_vec()),
        _ => (None, cores),
    };
    let (wanted, most) = (usize::from(options.nb_cores), lcores.len());
    if wanted > most {
        return Err(Error::Usage(format!(
            "--nb-cores={wanted}: allowed: 1 to {most}, the cores given less the first, which is the prompt's"
        )));
    }
    let there = usable();
    if let Some(core) = main.iter().chain(&lcores).find(|c| !there.iter().any(|t| t.cpu == c.cpu)) {
        let cpus: Vec<String> = there.iter().map(|c| c.cpu.to_string()).collect();
        return Err(Error::Usage(format!(
            "--lcores: CPU {} is not one this process may use; allowed: {}",
            core.cpu,
            cpus.join(",")
        )));
    }
    Ok((main, lcores))
}
