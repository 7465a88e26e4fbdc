//! The measurements against a back-end in this process. Its threads share the machine with others, so that
//! what is tested is what was counted, never how fast.

use clap::{CommandFactory, Parser};
use pmd::port::fault;

use crate::args::Args;
use crate::backend::Backend;
use crate::latency::{self, Stamps};
use crate::rig::Rig;
use crate::run::{Progress, Run};
use crate::stop::Stop;
use crate::trial::{self, Nobody, Plan};
use crate::verify::{self, Found};
use crate::{rate, rfc2544};

/// Does something with what the command line asks for.
fn with<T>(line: &str, act: impl FnOnce(&Run<'_>) -> T) -> T {
    let args = Args::parse_from(format!("linerate --path here {line}").split_whitespace());
    args.check().unwrap();
    let (stop, progress) = (Stop::default(), Progress::new(true));
    act(&Run { args: &args, frame: args.frame[0], stop: &stop, progress: &progress })
}

fn verified(backend: &Backend, line: &str) -> Found {
    with(&format!("--measure verify --seconds 0.2 {line}"), |run| {
        verify::measure(&backend.doors(), run, |_, _| ()).unwrap()
    })
}

/// A rig on a back-end that returns frames.
fn rigged<T>(faults: Option<fault::Config>, line: &str, act: impl FnOnce(&mut Rig, &Run<'_>) -> T) -> T {
    let backend = Backend::start(1, 1, faults);
    with(line, |run| {
        let mut rig = Rig::open(&backend.doors(), run).unwrap();
        let result = act(&mut rig, run);
        rig.close().unwrap();
        result
    })
}

#[test]
fn a_good_back_end_is_found_to_be_good_in_every_shape() {
    let backend = Backend::start(1, 1, None);
    for line in [
        "",
        "--packed",
        "--in-order --frame imix",
        "--packed --in-order --flows 1000",
        "--header own --frame 590",
        "--packed --header own --indirect",
        "--indirect --no-mergeable --header own --frame 9014",
        "--legacy",
        "--legacy --no-mergeable --header own --frame imix",
        "--room 128 --frame imix --size 64",
        "--packed --size 100 --room 512 --frame 9014",
        "--size 2 --window 1",
    ] {
        let found = verified(&backend, line);
        assert!(found.well() && found.sent > 10, "{line}: {found:?}");
        assert!(found.mpps > 0.0 && found.seconds > 0.0);
    }
}

#[test]
fn queues_and_guests_are_told_apart() {
    let backend = Backend::start(1, 4, None);
    let found = verified(&backend, "--queues 4 --packed");
    assert!(found.well(), "{found:?}");
    drop(backend);
    let backend = Backend::start(2, 2, None);
    let found = verified(&backend, "--path there --queues 2 --mode guests");
    assert!(found.well(), "{found:?}");
    // Frames that cross, though they should come back.
    let found = verified(&backend, "--path there --queues 2 --mode loop");
    assert_eq!((found.received, found.misdelivered), (found.sent, found.sent));
    assert!(!found.well());
}

#[test]
fn each_fault_is_told_by_its_name() {
    let quiet = || fault::Config { turns: 1, ..fault::Config::default() };
    for (name, faults) in [
        ("lost", fault::Config { drop: 0.01, ..quiet() }),
        ("duplicated", fault::Config { duplicate: 0.01, ..quiet() }),
        ("reordered", fault::Config { reorder: 0.01, ..quiet() }),
        ("damaged", fault::Config { corrupt: 0.01, ..quiet() }),
    ] {
        let backend = Backend::start(1, 1, Some(faults));
        // Room for copies; and few enough under way that none is lost for want of a free frame.
        let found = verified(&backend, "--window 128");
        assert!(!found.well(), "{name}: {found:?}");
        let lost = if name == "damaged" { found.lost - found.damaged } else { found.lost };
        let counts = [
            ("lost", lost),
            ("duplicated", found.duplicated),
            ("reordered", found.reordered),
            ("damaged", found.damaged),
        ];
        for (kind, count) in counts {
            assert_eq!(count > 0, kind == name, "{name}: {found:?}");
        }
        assert_eq!((found.misdelivered, found.unknown, found.bad_headers), (0, 0, 0), "{found:?}");
    }
}

#[test]
fn rates_count_frames_and_not_buffers() {
    for (line, bytes, buffers) in [
        ("--seconds 0.1", 60.0, 1.0),
        ("--seconds 0.1 --packed --frame 1514 --room 256", 1514.0, 6.0),
        ("--seconds 0.1 --header own --no-mergeable --frame 590 --flows 5000", 590.0, 1.0),
    ] {
        let rate =
            rigged(None, line, |rig, run| rate::measure(rig, run, (0.1, Some(0.05)), |_, _| ()).unwrap());
        let seen = rate.sampled.unwrap();
        assert_eq!((seen.bytes, seen.buffers), (bytes, buffers), "{line}: {rate:?}");
        assert!(rate.mpps > 0.0 && rate.seconds > 0.09 && !rate.periods.is_empty(), "{rate:?}");
        // What is on its way at the beginning is all that may be received without being sent.
        let more = (rate.received_mpps - rate.sent_mpps) * 1e6 * rate.seconds;
        assert!(more <= 2.0 * 1024.0, "{line}: {rate:?}");
    }
}

#[test]
fn a_trial_counts_each_frame_once() {
    let chance = fault::Config { drop: 0.3, ..fault::Config::default() };
    for (faults, lossy) in [(None, false), (Some(chance), true)] {
        // Fewer frames than the ring holds: even a back-end that is kept from its core for long can lose
        // none but those that it means to.
        let outcome = rigged(faults, "--seconds 0.2", |rig, run| {
            trial::run(rig, &Plan::new(run.args, run.frame, 0.004), &mut Nobody, run.stop)
        });
        assert!(outcome.offered > 100 && outcome.refused == 0, "{outcome:?}");
        let lost = (outcome.offered - outcome.received) as f64 / outcome.offered as f64 * 100.0;
        assert_eq!(outcome.loss, lost);
        if lossy {
            // Both ways: 51 %.
            assert!((30.0..70.0).contains(&lost) && !outcome.passed(10.0), "{outcome:?}");
        } else {
            assert_eq!(outcome.received, outcome.offered, "{outcome:?}");
        }
    }
}

#[test]
fn times_are_those_of_frames_that_can_be_told() {
    rigged(None, "--packed --seconds 0.2 --frame 9000", |rig, run| {
        let found = rfc2544::latency(rig, run, 0.02, Some(50.0));
        assert!(found.times.samples > 100 && found.unknown == 0, "{found:?}");
        assert!(found.times.min_ns > 0 && found.times.max_ns < 10_000_000_000);
        let lone = latency::lone(rig, run);
        assert!(lone.times.samples > 10 && lone.times.min_ns > lone.clock_ns, "{lone:?}");
        let stamps = Stamps::new(&rig.lanes, 1e6, 5);
        assert_eq!(stamps.times().samples, 0);
    });
}

#[test]
fn throughput_and_loss_curve_end_and_agree_with_their_trials() {
    rigged(None, "--seconds 0.05 --resolution 20 --loss 50", |rig, run| {
        let found = rfc2544::throughput(rig, run).unwrap();
        let passed = found.trials.iter().filter(|t| t.passed(50.0));
        let best = passed.max_by(|a, b| a.wanted_mpps.total_cmp(&b.wanted_mpps));
        assert_eq!(found.mpps, best.map_or(0.0, |t| t.offered_mpps));
        assert!((found.trials[0].wanted_mpps - found.highest_mpps).abs() < 1e-9);
        let curve = rfc2544::curve(rig, run).unwrap();
        assert!(curve.points.len() >= 2 && curve.points.len() <= 12);
        assert!(curve.points.is_sorted_by(|a, b| a.wanted_mpps > b.wanted_mpps));
    });
}

#[test]
fn the_command_line_says_what_does_not_go_together() {
    Args::command().debug_assert();
    let checked = |line: &str| {
        Args::try_parse_from(format!("linerate {line}").split_whitespace())
            .map_err(|e| e.to_string())?
            .check()
    };
    assert_eq!(checked("--path a --mode loop"), Ok(()));
    for (line, what) in [
        ("", "--path"),
        ("--path a --size 100", "a split ring is a power of two"),
        ("--path a --packed --size 101 --header own", "an even ring"),
        ("--path a --mode guests", "give --path twice"),
        ("--path a --mode dequeue --measure verify", "needs frames that come back"),
        ("--path a --no-mergeable --room 1000 --frame 1514", "too small for frames of 1514"),
        ("--path a --room 1024 --frame imix", "one buffer each"),
        ("--path a --packed --legacy", "cannot be used with"),
        ("--path a --frame 40", "not in 60..=9014"),
        ("--path a --seconds 0", "must be more than 0"),
    ] {
        let why = checked(line).unwrap_err();
        assert!(why.contains(what), "{line}: {why}");
    }
}
