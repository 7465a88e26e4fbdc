//! What the ports that make or copy packets have in common: frames of their own, and an address.

use std::sync::Once;

use hugepages::{Backing, Buf, MapError, Offload, Pool};

use crate::offload::segment::{Segment, Segments};
use crate::offload::{self, Patch};
use crate::port::PortError;
use crate::spec::net::GSO_NONE;

/// Frames of a queue unless told otherwise: more than any burst and ring on its way, few enough to
/// stay in a core's cache when they are small.
pub const FRAMES: usize = 2048;

/// A pool of `frames` frames of `size` bytes for a queue of `port`. The first that must do without
/// huge pages says so, once for the process.
pub(crate) fn pool(port: &str, frames: usize, size: u32, backing: Backing) -> Result<Pool, PortError> {
    told(port, Pool::new(frames, size, backing))
}

/// The same, of frames that packets are made in.
pub(crate) fn packets(port: &str, frames: usize, size: u32, backing: Backing) -> Result<Pool, PortError> {
    told(port, Pool::for_packets(frames, size, backing))
}

fn told(port: &str, made: Result<(Pool, Option<MapError>), MapError>) -> Result<Pool, PortError> {
    static TOLD: Once = Once::new();
    let (pool, fallback) = made.map_err(|source| PortError::Memory { port: port.to_owned(), source })?;
    if let Some(why) = fallback {
        TOLD.call_once(|| tracing::warn!("port {port}: ordinary pages are used: {why}"));
    }
    Ok(pool)
}

/// What is left to do to a packet for a device that takes whole frames only.
#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart at once; a box would cost an allocation a packet"
)]
pub(crate) enum Work {
    /// Nothing but this to store in it, if anything.
    Frame(Option<Patch>),
    /// It becomes several.
    Frames(Segments),
    /// What it asks for cannot be done.
    Never,
}

impl Work {
    /// The work on the packet in `bufs`.
    #[inline]
    pub(crate) fn on(bufs: &[Buf]) -> Work {
        let asked = bufs.first().map_or(Offload::default(), |first| first.offload);
        if asked.gso_type != GSO_NONE {
            return Segments::of(&asked, bufs.iter()).map_or(Work::Never, Work::Frames);
        }
        offload::checksum(&asked, bufs.iter()).map_or(Work::Never, Work::Frame)
    }
}

/// Copies a frame into buffers of `pool`, which has as many as it takes: `headers`, then `part` of the packet in
/// `bufs`, with `patch` stored in the packet. `each` is given every buffer, and whether more follow.
pub(crate) fn copy(
    pool: &mut Pool,
    headers: &[u8],
    bufs: &[Buf],
    part: Segment,
    patch: Option<Patch>,
    each: impl FnMut(Buf, bool),
) {
    copy_into(|| pool.take().expect("the caller counted them"), headers, bufs, part, patch, each);
}

/// The same into the buffers that `take` gives, none of them empty.
pub(crate) fn copy_into(
    mut take: impl FnMut() -> Buf,
    headers: &[u8],
    bufs: &[Buf],
    part: Segment,
    patch: Option<Patch>,
    mut each: impl FnMut(Buf, bool),
) {
    let (mut from, mut left) = (part.from, part.len);
    let mut bufs = bufs.iter().peekable();
    while let Some(buf) = bufs.next_if(|buf| from >= buf.len()) {
        from -= buf.len();
    }
    let (mut headers, mut start) = (headers, 0);
    while left > 0 || !headers.is_empty() {
        let mut frame = take();
        let mut len = frame.write(0, headers) as u32;
        headers = &headers[len as usize..];
        while let Some(buf) = bufs.peek().filter(|_| left > 0 && len < frame.len()) {
            let n = buf.copy_part(from, &mut frame, len, left);
            (len, left, from) = (len + n, left - n, from + n);
            if from == buf.len() {
                bufs.next();
                from = 0;
            }
        }
        if let Some(Patch { at, bytes }) = patch {
            for (i, byte) in (0..).zip(bytes) {
                if let Some(off) = (at + i).checked_sub(start).filter(|&off| off < len) {
                    let stored = frame.poke(off, byte);
                    debug_assert!(stored, "written just now");
                }
            }
        }
        start += len;
        frame.truncate(len);
        frame.set_more(left > 0);
        each(frame, left > 0);
    }
}

/// A locally administered address made from the name: the same one in every run.
pub(crate) fn local_mac(name: &str) -> [u8; 6] {
    // FNV-1a, 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_addresses() {
        assert_eq!(local_mac("tap0"), local_mac("tap0"));
        assert_ne!(local_mac("tap0"), local_mac("tap1"));
        assert_eq!(local_mac("")[0] & 3, 2, "local, not a group");
    }
}
