//! See `pmd/tests/fuzz/conversation.rs`.

#![no_main]

#[path = "../../pmd/tests/fuzz/conversation.rs"]
mod conversation;

libfuzzer_sys::fuzz_target!(|data: &[u8]| conversation::run(data));
