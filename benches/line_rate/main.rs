//! `linerate`: how fast, how late and how reliable is a vhost-user back-end, ours or another, seen from
//! its driver's side? In the order of reading:
//!
//! - `args`: what can be asked for
//! - `frontend`, `memory`, `frames`: the connection, what lies where, what is sent
//! - `lane`, `rig`: rings whose driver costs next to nothing, and all of them connected
//! - `rate`: packets per second with rings kept full
//! - `trial`, `search`, `latency`, `rfc2544`: a steady rate, what was lost of it, how long frames took
//! - `sequence`, `pair`, `verify`: every byte of every frame
//! - `report`, `compare`, `plot`, `svg`, `host`: results, and the machine they belong to
//! - `run`, `stop`: progress, and Ctrl-C

mod args;
#[cfg(test)]
mod backend;
mod compare;
mod frames;
mod frontend;
mod host;
mod lane;
mod latency;
mod memory;
mod pair;
mod plot;
mod rate;
mod report;
mod rfc2544;
mod rig;
mod run;
mod search;
mod sequence;
mod stop;
mod svg;
#[cfg(test)]
mod tests;
mod trial;
mod verify;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use args::{Args, Measure};
use compare::Set;
use frontend::Door;
use report::Report;
use rig::Rig;
use run::{Progress, Run};
use stop::Stop;

/// Measures what was asked for; whether all was well.
fn measure(args: &Args) -> Result<bool, Box<dyn Error>> {
    args.check()?;
    args.core.first().map_or(Ok(()), |&core| host::pin(core))?;
    let (stop, progress) = (Stop::on_signals()?, Progress::new(args.quiet));
    let mut report = Report::new(args, &stop)?;
    let paths = args.path.iter().chain(&args.idle);
    let doors =
        paths.map(|path| Door::open(path, args.listen).map_err(|e| format!("{}: {e}", path.display())));
    let doors: Vec<Door> = doors.collect::<Result<_, _>>()?;
    let mut well = true;
    for &frame in &args.frame {
        let run = Run { args, frame, stop: &stop, progress: &progress };
        well &= match args.measure {
            Measure::Verify | Measure::Soak => verify(&doors, &run, &mut report)?,
            _ => count(&doors, &run, &mut report).map(|()| true)?,
        };
        if stop.now() {
            progress.clear();
            eprintln!("linerate: ended before its time; what was measured until then counts");
            break;
        }
    }
    draw(args, &[("".into(), report.records)])?;
    Ok(well)
}

fn verify(doors: &[Door], run: &Run<'_>, report: &mut Report) -> Result<bool, Box<dyn Error>> {
    let mut failed = Ok(());
    let found = verify::measure(doors, run, |seconds, found| {
        let what = format!(
            "{:.3} Mpps, {} received, {} duplicated, {} reordered, {} damaged",
            found.mpps, found.received, found.duplicated, found.reordered, found.damaged
        );
        run.progress.clear();
        failed = report.period(seconds, &what, found).map_err(|e| e.to_string());
    })?;
    failed?;
    let measure = if run.args.measure == Measure::Soak { "soak" } else { "verify" };
    report.found(measure, run.frame, &found)?;
    Ok(found.well())
}

fn count(doors: &[Door], run: &Run<'_>, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let (args, frame) = (run.args, run.frame);
    let mut rig = Rig::open(doors, run)?;
    let page = rig.page;
    let all = args.measure == Measure::Rfc2544;
    match args.measure {
        Measure::Rate => {
            let mut failed = Ok(());
            let rate = rate::measure(&mut rig, run, (args.seconds(), args.period()), |seconds, mpps| {
                run.progress.clear();
                let what = format!("{mpps:.3} Mpps");
                failed = report.period(seconds, &what, &json!({ "mpps": mpps })).map_err(|e| e.to_string());
            })?;
            failed?;
            run.progress.clear();
            report.rate(frame, page, &rate)?;
        }
        Measure::Lone => {
            let lone = latency::lone(&mut rig, run);
            report.lone(frame, page, &lone)?;
        }
        _ => {}
    }
    let given = !args.rate.is_empty();
    if all || args.measure == Measure::Throughput || args.measure == Measure::Latency && !given {
        let found = rfc2544::throughput(&mut rig, run)?;
        run.progress.clear();
        report.throughput(frame, page, &found)?;
        if args.measure != Measure::Throughput {
            if found.mpps == 0.0 {
                eprintln!(
                    "linerate: no rate passed: no latency at loads; give --rate, or allow --loss or --tries"
                );
            }
            for &load in &args.loads {
                latency(&mut rig, run, report, found.mpps * load / 100.0, Some(load))?;
            }
        }
    }
    if args.measure == Measure::Latency && given {
        for &mpps in &args.rate {
            latency(&mut rig, run, report, mpps, None)?;
        }
    }
    if (all || args.measure == Measure::LossCurve) && !run.stop.now() {
        let curve = rfc2544::curve(&mut rig, run)?;
        run.progress.clear();
        report.curve(frame, page, &curve)?;
    }
    rig.close()?;
    Ok(())
}

fn latency(
    rig: &mut Rig,
    run: &Run<'_>,
    report: &mut Report,
    mpps: f64,
    load: Option<f64>,
) -> Result<(), Box<dyn Error>> {
    if run.stop.now() || mpps == 0.0 {
        return Ok(());
    }
    let found = rfc2544::latency(rig, run, mpps, load);
    run.progress.clear();
    report.latency(run.frame, rig.page, &found)
}

/// Draws what there is, if asked for.
fn draw(args: &Args, sets: &[Set]) -> Result<(), Box<dyn Error>> {
    if let Some(path) = &args.plot {
        std::fs::write(path, svg::draw(&plot::charts(sets)))
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    if args.compare.is_empty() {
        return measure(args);
    }
    let sets = args.compare.iter().map(|path| compare::read(path)).collect::<Result<Vec<Set>, _>>()?;
    compare::print(&sets, args.json.is_some());
    draw(args, &sets)?;
    Ok(true)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("linerate: {e}");
            ExitCode::FAILURE
        }
    }
}
