//! See `pmd/tests/fuzz/iotlb.rs`.

#![no_main]

#[allow(dead_code)]
#[path = "../../pmd/tests/ring/rig.rs"]
mod rig;
#[path = "../../pmd/tests/fuzz/iotlb.rs"]
mod iotlb;

libfuzzer_sys::fuzz_target!(|data: &[u8]| iotlb::run(data));
