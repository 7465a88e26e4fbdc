//! See `pmd/tests/fuzz/rings.rs`.

#![no_main]

#[allow(dead_code)]
#[path = "../../pmd/tests/ring/rig.rs"]
mod rig;
#[path = "../../pmd/tests/fuzz/rings.rs"]
mod rings;

libfuzzer_sys::fuzz_target!(|data: &[u8]| rings::run(data));
