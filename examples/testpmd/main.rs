//! testpmd
fn main() {}
