//! Room in a lender's memory for the time of a call: what is written and forgotten at once needs no loan.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::buf::{Buf, Lender, MORE};
use crate::copy;
use crate::table::Span;

/// Reaches into a lender's memory; keeps the region of the last look-up at hand.
pub struct Reach<'a> {
    lender: &'a Lender,
    span: Span,
}

/// Bytes that may be written. The lender cannot go away meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    at: NonNull<u8>,
    len: u32,
    lender: PhantomData<&'a Lender>,
}

impl Lender {
    /// Rooms in its memory.
    #[inline(always)]
    pub fn reach(&self) -> Reach<'_> {
        Reach { lender: self, span: self.span.get() }
    }
}

impl<'a> Reach<'a> {
    /// `len` bytes at `gpa`; `None` unless all of them lie in one region.
    #[inline(always)]
    pub fn room(&mut self, gpa: u64, len: u32) -> Option<Room<'a>> {
        let at = match self.span.locate(gpa, len) {
            Some(at) => at,
            None => {
                let (span, at) = self.lender.look_up(gpa, len)?;
                self.span = span;
                at
            }
        };
        Some(Room { at, len, lender: PhantomData })
    }
}

impl Room<'_> {
    /// Asks the cache for its first two lines, to be written soon: a header in front puts small frames
    /// on two. A header that has a line of its own may not have to be written ([`Room::copy_packet`]).
    #[inline(always)]
    pub fn prefetch(&self) {
        let at = self.at.as_ptr();
        if apart::<12>(at) {
            copy::prefetch(at)
        } else {
            copy::prefetch_write(at)
        }
        copy::prefetch_write(at.wrapping_add(64));
    }

    /// Bytes in it.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "a room of no bytes is a room")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Copies up to `len` bytes of `from`, from its byte `off` on, to byte `at`; how many fitted.
    #[inline(always)]
    pub fn copy_part(&self, at: u32, from: &Buf, off: u32, len: u32) -> u32 {
        let n = len.min(from.len.saturating_sub(off)).min(self.len.saturating_sub(at));
        if n > 0 {
            // SAFETY: n bytes fit both ranges after their offsets; the lender's table keeps the room
            // mapped.
            unsafe {
                copy::bytes(
                    from.at.as_ptr().add(off as usize),
                    self.at.as_ptr().add(at as usize),
                    n as usize,
                );
            }
        }
        n
    }

    /// Writes `bytes` to its front; `false`, and nothing is, unless they fit.
    #[inline(always)]
    pub fn write(&self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.len as usize;
        if fits {
            // SAFETY: they fit the room, which the lender's table keeps mapped.
            unsafe { copy::bytes(bytes.as_ptr(), self.at.as_ptr(), bytes.len()) };
        }
        fits
    }

    /// Copies a packet of one buffer behind a header of `HEADER` bytes: 8, then 4 (`HEADER` is 12) or the
    /// first 2 of these (10). The bytes written; `None`, and nothing is, unless the packet has that one
    /// buffer, with bytes in it, and fits.
    ///
    /// A header on a line of its own that is there already is left alone: of a driver that uses a buffer
    /// again without touching its header, as DPDK's does, that line need not cross at all.
    #[inline(always)]
    pub fn copy_packet<const HEADER: u32>(self, header: (u64, u32), packet: &Buf) -> Option<u32> {
        const { assert!(HEADER == 12 || HEADER == 10, "a header of 10 or 12 bytes") };
        let whole = u64::from(HEADER) + u64::from(packet.len);
        if packet.flags & MORE != 0 || packet.len == 0 || whole > u64::from(self.len) {
            return None;
        }
        let at = self.at.as_ptr();
        // SAFETY: header and packet fit the room, which the lender's table keeps mapped.
        unsafe {
            if !(apart::<HEADER>(at) && has::<HEADER>(at, header)) {
                copy::store(header.0, at.cast());
                if HEADER == 12 {
                    copy::store(header.1, at.add(8).cast());
                } else {
                    copy::store(header.1 as u16, at.add(8).cast());
                }
            }
            copy::bytes(packet.at.as_ptr(), at.add(HEADER as usize), packet.len as usize);
        }
        Some(whole as u32)
    }
}

/// Whether a header at `at` ends where its line does.
#[inline(always)]
fn apart<const HEADER: u32>(at: *const u8) -> bool {
    at as usize % 64 == 64 - HEADER as usize
}

/// Whether a header is there already.
///
/// # Safety
/// `HEADER` bytes at `at` are mapped.
#[inline(always)]
unsafe fn has<const HEADER: u32>(at: *const u8, header: (u64, u32)) -> bool {
    // SAFETY: the caller's promise; any bytes are integers.
    unsafe {
        let first = copy::load::<u64>(at.cast()) == header.0;
        let rest = at.add(8);
        let same = if HEADER == 12 {
            copy::load::<u32>(rest.cast()) == header.1
        } else {
            copy::load::<u16>(rest.cast()) == header.1 as u16
        };
        first & same
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Backing, Map, PageSize};
    use crate::table::Table;

    #[test]
    fn copies_whole_packets_into_what_holds_them_and_nothing_else() {
        let map = Map::shared(4096, Backing { page: PageSize::Base, node: None }).unwrap();
        let lender = Lender::new(Table::of(map));
        let lend = |at, len| lender.lend_writable(at, len, 9).unwrap();
        let mut from = lend(0, 5);
        assert_eq!(from.write(0, b"abcde"), 5);
        let header = (0x0807_0605_0403_0201, 0x0c0b_0a09);
        let room = |at, len| lender.reach().room(at, len);
        assert!(room(4095, 2).is_none() && room(4096, 0).is_none() && room(u64::MAX, 1).is_none());
        assert_eq!(room(100, 16).unwrap().copy_packet::<12>(header, &from), None);
        assert_eq!(room(100, 0).unwrap().copy_packet::<12>(header, &from), None);
        let to = lend(100, 18);
        assert_eq!(to.peek::<[u8; 18]>(0), Some([0; 18]));
        assert_eq!(room(100, 17).unwrap().copy_packet::<12>(header, &from), Some(17));
        assert_eq!(to.peek(0), Some(*b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cabcde\0"));
        assert_eq!(room(100, 4000 - 100).unwrap().copy_packet::<10>(header, &from), Some(15));
        assert_eq!(to.peek(8), Some(*b"\x09\x0aabcdede\0"));
        // Where the header has a line of its own: there already, there in part, and not at all.
        let apart = lend(180, 64);
        for before in [header, (header.0, 7), (7, header.1), (7, 7)] {
            assert!(lend(180, 8).poke(0, before.0) && lend(188, 4).poke(0, before.1));
            assert_eq!(room(180, 64).unwrap().copy_packet::<12>(header, &from), Some(17));
            assert_eq!(apart.peek(0), Some(*b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cabcde\0"));
        }
        assert!(lend(180, 64).poke(12, 0u16));
        assert_eq!(room(182, 62).unwrap().copy_packet::<10>(header, &from), Some(15));
        assert_eq!(apart.peek(8), Some(*b"\x07\x08\x09\x0aabcde"));
        assert_eq!(room(100, 64).unwrap().copy_packet::<12>(header, &lend(0, 0)), None);
        from.set_more(true);
        assert_eq!(room(100, 64).unwrap().copy_packet::<12>(header, &from), None);
        let _ = (from.finish(0), to.finish(0));
    }
}
