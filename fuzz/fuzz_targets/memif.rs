//! See `pmd/src/port/memif/lies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pmd::fuzzing::memif(data));
