//! Throughput, latency under load and frame loss, as RFC 2544 §26.1 to §26.3 has them.

use std::error::Error;

use serde::Serialize;

use crate::latency::{Stamps, Times};
use crate::rate;
use crate::rig::Rig;
use crate::run::Run;
use crate::search::Search;
use crate::trial::{self, Nobody, Outcome, Plan};

/// The highest rate of the loss curve, percent of what rings kept full give, and its steps.
const CURVE_TOP: u32 = 120;
const CURVE_STEP: usize = 10;

/// The highest rate at which no more than a share was lost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Throughput {
    pub(crate) mpps: f64,
    pub(crate) gbps: f64,
    /// Loss that was allowed, percent.
    pub(crate) loss_limit: f64,
    /// What rings kept full gave: where the search began.
    pub(crate) highest_mpps: f64,
    /// Whether some trial failed because this driver did not keep up.
    pub(crate) driver_was_limit: bool,
    pub(crate) trials: Vec<Outcome>,
}

/// Searches it.
pub(crate) fn throughput(rig: &mut Rig, run: &Run<'_>) -> Result<Throughput, Box<dyn Error>> {
    let highest = highest(rig, run)?;
    let args = run.args;
    let mut search = Search::new(highest, args.resolution);
    let mut trials: Vec<Outcome> = Vec::new();
    while let Some(mpps) = search.next() {
        let mut passed = false;
        for _ in 0..args.tries {
            let left = f64::from(search.left()) * args.seconds();
            run.progress.say(&format!("throughput: trying {mpps:.3} Mpps, {left:.0} s left"));
            let outcome = trial::run(rig, &Plan::new(args, run.frame, mpps), &mut Nobody, run.stop);
            passed = outcome.passed(args.loss);
            trials.push(outcome);
            if passed || run.stop.now() {
                break;
            }
        }
        // A trial that was cut short says nothing.
        if run.stop.now() {
            trials.pop();
            break;
        }
        search.tell(passed);
    }
    // What was offered is what passed, be it a little less than wanted.
    let found = trials.iter().filter(|t| t.passed(args.loss) && t.wanted_mpps == search.found());
    let mpps = found.map(|t| t.offered_mpps).next_back().unwrap_or(0.0);
    Ok(Throughput {
        mpps,
        gbps: mpps * run.frame.mean() * 8e-3,
        loss_limit: args.loss,
        highest_mpps: highest,
        driver_was_limit: trials.iter().any(|t| !t.kept_up && t.loss <= args.loss),
        trials,
    })
}

/// What rings kept full give, Mpps.
fn highest(rig: &mut Rig, run: &Run<'_>) -> Result<f64, Box<dyn Error>> {
    run.progress.say("the highest rate, with rings kept full");
    let rate = rate::measure(rig, run, (run.args.seconds().min(2.0), None), |_, _| ())?;
    rig.drain();
    if rate.mpps == 0.0 {
        return Err("no frame comes back with rings kept full".into());
    }
    Ok(rate.mpps)
}

/// How long frames take at a steady rate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    /// Percent of the throughput; left out when the rate was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load: Option<f64>,
    #[serde(flatten)]
    pub(crate) times: Times,
    /// Frames looked at that could not be told.
    pub(crate) unknown: u64,
    pub(crate) burst: u16,
    pub(crate) trial: Outcome,
}

/// Measures at a rate.
pub(crate) fn latency(rig: &mut Rig, run: &Run<'_>, mpps: f64, load: Option<f64>) -> Latency {
    let plan = Plan::new(run.args, run.frame, mpps);
    run.progress.say(&format!("latency at {mpps:.3} Mpps, {:.0} s", plan.length.as_secs_f64()));
    rig.drain();
    let mut stamps = Stamps::new(&rig.lanes, plan.rate, plan.buffers);
    let trial = trial::run(rig, &plan, &mut stamps, run.stop);
    Latency { load, times: stamps.times(), unknown: stamps.unknown, burst: plan.burst, trial }
}

/// Loss by rate, from the highest rate down.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) highest_mpps: f64,
    pub(crate) points: Vec<Outcome>,
}

/// Measures it: down in steps until two trials in succession lose nothing.
pub(crate) fn curve(rig: &mut Rig, run: &Run<'_>) -> Result<Curve, Box<dyn Error>> {
    let highest = highest(rig, run)?;
    let mut points: Vec<Outcome> = Vec::new();
    for percent in (CURVE_STEP as u32..=CURVE_TOP).rev().step_by(CURVE_STEP) {
        let mpps = highest * f64::from(percent) / 100.0;
        run.progress.say(&format!("loss at {percent} % of {highest:.3} Mpps"));
        let outcome = trial::run(rig, &Plan::new(run.args, run.frame, mpps), &mut Nobody, run.stop);
        if run.stop.now() {
            break;
        }
        points.push(outcome);
        if points.len() >= 2 && points.iter().rev().take(2).all(|p| p.loss == 0.0) {
            break;
        }
    }
    Ok(Curve { highest_mpps: highest, points })
}
