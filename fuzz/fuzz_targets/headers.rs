//! See `examples/testpmd/headers.rs` and `examples/testpmd/sums.rs`.

#![no_main]

#[allow(dead_code)]
#[path = "../../examples/testpmd/headers.rs"]
mod headers;
#[allow(dead_code)]
#[path = "../../examples/testpmd/sums.rs"]
mod sums;

libfuzzer_sys::fuzz_target!(|data: &[u8]| sums::any_frame(data));
