//! Frames: read into a [`Key`](super::flow::Key) once, and rewritten.
//!
//! Both work on a copy of the first bytes: a guest cannot change what was checked.

#[cfg(any(test, fuzzing))]
pub mod lies;
pub mod parse;
pub mod rewrite;

pub use parse::{HEAD, Layers, parse};
pub use rewrite::Head;

/// Two bytes of a slice, as on the wire; `None`: past its end.
#[inline(always)]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes.
#[inline(always)]
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Eight bytes.
#[inline(always)]
pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
