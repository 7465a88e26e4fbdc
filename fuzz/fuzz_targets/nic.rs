//! See `pmd/src/port/nic/lies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pmd::fuzzing::nic(data));
