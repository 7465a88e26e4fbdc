//! See `pmd/tests/fuzz/frames.rs`.

#![no_main]

#[allow(dead_code)]
#[path = "../../pmd/tests/ring/rig.rs"]
mod rig;
#[path = "../../pmd/tests/fuzz/frames.rs"]
mod frames;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frames::run(data));
