//! See `pmd/tests/fuzz/record.rs`.

#![no_main]

#[allow(dead_code)]
#[path = "../../pmd/tests/ring/rig.rs"]
mod rig;
#[path = "../../pmd/tests/fuzz/record.rs"]
mod record;

libfuzzer_sys::fuzz_target!(|data: &[u8]| record::run(data));
