//! See `pmd/src/port/vhost/lies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pmd::fuzzing::control_queue(data));
