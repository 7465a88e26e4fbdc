//! See `pmd/src/port/virtio_user/lies.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pmd::fuzzing::virtio_user(data));
