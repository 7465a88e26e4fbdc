//! See `examples/vswitch/packet/lies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| examples::vswitch::packet::lies::run(data));
