//! See `pmd/tests/fuzz/dirty_log.rs`.

#![no_main]

#[path = "../../pmd/tests/fuzz/dirty_log.rs"]
mod dirty_log;

libfuzzer_sys::fuzz_target!(|data: &[u8]| dirty_log::run(data));
