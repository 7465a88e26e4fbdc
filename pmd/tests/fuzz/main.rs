//! What the fuzzers of `fuzz/` run, and every input that they kept, run again.
//!
//! A target is a function of bytes that panics when a promise is broken; `fuzz/fuzz_targets/` wraps each for
//! libFuzzer. An input that once broke something stays in its corpus under the name of what it was.

mod conversation;
mod dirty_log;
mod frames;
mod iotlb;
mod message;
mod record;
#[allow(dead_code)]
#[path = "../ring/rig.rs"]
mod rig;
mod rings;

include!("../../../fuzz/replay.rs");

#[test]
fn conversations() {
    replay("conversation", conversation::run);
}

#[test]
fn dirty_logs() {
    replay("dirty_log", dirty_log::run);
}

#[test]
fn frames_of_all_kinds() {
    replay("frames", frames::run);
}

#[test]
fn translations() {
    replay("iotlb", iotlb::run);
}

#[test]
fn messages() {
    replay("message", message::run);
}

#[test]
fn records() {
    replay("record", record::run);
}

#[test]
fn rings_of_all_kinds() {
    replay("rings", rings::run);
}
