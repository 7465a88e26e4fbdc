//! Buffers on loan and their receipts.
//!
//! A [`Lender`] lends ranges of one memory table as [`Buf`]s. Whoever holds a `Buf` may use the bytes;
//! finishing it gives its receipt, a [`Loan`]; the lender settles the receipt and counts the buffer
//! as home. Both are moved, never cloned. A lender that is dropped with buffers out leaks its memory
//! table, so that no `Buf` ever dangles.

use std::cell::Cell;
use std::num::{NonZeroU16, NonZeroU32};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::copy;
use crate::table::{OutOfRange, Span, Table};

/// Plain data: any bytes are a valid value, and it has no padding.
pub trait Pod: FromBytes + IntoBytes + Immutable + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + Copy> Pod for T {}

/// What is left for the receiver to do to a packet, in the words of virtio 1.3 §5.1.6
/// (`struct virtio_net_hdr` without `num_buffers`). All zero: the packet is complete as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Offload {
    /// `VIRTIO_NET_HDR_F_*`: 1 needs checksum, 2 data valid.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`: 0 none, 1 TCPv4, 3 UDP, 4 TCPv6, 5 UDP_L4; bit 7 ECN.
    pub gso_type: u8,
    /// Bytes of headers in front of the payload.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts, bytes into the frame.
    pub csum_start: u16,
    /// Where the checksum is stored, bytes after `csum_start`.
    pub csum_offset: u16,
}

pub(crate) const MORE: u8 = 1;
pub(crate) const WRITE: u8 = 2;
/// It begins behind a header that was skipped, which belongs to the loan.
const BEHIND: u8 = 4;
/// It begins elsewhere in the range that was lent.
const MOVED: u8 = 8;

/// Bytes of the header that [`Buf::skip_header`] skips.
const SKIPPED: u32 = 12;

/// Whose loan, and which: the owner in the upper half, its own number in the lower. One word, so that a
/// buffer becomes a receipt by one load and one store.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Tag(NonZeroU32);

impl Tag {
    #[inline(always)]
    pub(crate) fn new(owner: NonZeroU16, id: u16) -> Tag {
        let word = u32::from(owner.get()) << 16 | u32::from(id);
        // SAFETY: its upper half is not zero.
        Tag(unsafe { NonZeroU32::new_unchecked(word) })
    }

    #[inline(always)]
    fn owner(self) -> NonZeroU16 {
        // SAFETY: new() put a number there that is not zero.
        unsafe { NonZeroU16::new_unchecked((self.0.get() >> 16) as u16) }
    }

    #[inline(always)]
    fn id(self) -> u16 {
        self.0.get() as u16
    }
}

/// A range of bytes on loan: part of a packet, or room for one.
///
/// 32 bytes, moved and never cloned. It can only shrink, but for a header that was [skipped](Buf::skip_header)
/// and is put back. The bytes belong to shared memory: they are
/// copied in and out, and no reference to them exists. Must be [finished](Buf::finish); one that is
/// merely dropped counts as out forever, which costs its lender's memory but is safe.
#[derive(Debug)]
#[must_use = "a Buf must be finished, or its lender waits for it forever"]
#[repr(C)]
pub struct Buf {
    pub(crate) at: NonNull<u8>,
    pub(crate) len: u32,
    pub(crate) tag: Tag,
    pub(crate) flags: u8,
    /// What is left to do to the packet; meaningful in its first buffer.
    pub offload: Offload,
}

const _: () = assert!(size_of::<Buf>() == 32 && size_of::<Option<Buf>>() == 32);

// SAFETY: a Buf is the only holder of its loan; the bytes are accessed by copies that tolerate any
// other party; the lender (or its leak) keeps the range mapped.
unsafe impl Send for Buf {}

/// The receipt of a finished [`Buf`]: who lent it, which of theirs it is, and what was written.
#[derive(Debug)]
#[must_use = "a Loan must be settled, or its lender waits for it forever"]
#[repr(C)]
pub struct Loan {
    written: u32,
    tag: Tag,
}

impl Offload {
    /// As two words, the first 8 bytes and the last 2.
    #[inline(always)]
    pub fn words(self) -> (u64, u16) {
        let [a, b, c, d, high]: [u16; 5] = zerocopy::transmute!(self);
        (u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48, high)
    }

    /// Whether the packet is complete as it is.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        let (low, high) = self.words();
        low | u64::from(high) == 0
    }
}

const _: () = assert!(size_of::<Loan>() == 8 && size_of::<Option<Loan>>() == 8);

impl Loan {
    /// The lender it belongs to, see [`Lender::owner`].
    #[inline(always)]
    pub fn owner(&self) -> NonZeroU16 {
        self.tag.owner()
    }
}

impl Buf {
    /// Bytes in it.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing is left of it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the packet goes on in the next buffer of the batch.
    #[inline(always)]
    pub fn more(&self) -> bool {
        self.flags & MORE != 0
    }

    /// Says whether the packet goes on in the next buffer.
    #[inline(always)]
    pub fn set_more(&mut self, more: bool) {
        self.flags = self.flags & !MORE | if more { MORE } else { 0 };
    }

    /// Whether the lender lets it be written.
    #[inline(always)]
    pub fn writable(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// Who lent it, see [`Lender::owner`].
    #[inline(always)]
    pub fn owner(&self) -> NonZeroU16 {
        self.tag.owner()
    }

    /// The lender's own number for it.
    #[inline(always)]
    pub fn id(&self) -> u16 {
        self.tag.id()
    }

    /// The address a device is given: I/O addresses equal virtual ones.
    #[inline(always)]
    pub fn iova(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    /// Drops the first `n` bytes (all, if it has fewer).
    #[inline(always)]
    pub fn advance(&mut self, n: u32) {
        let n = n.min(self.len);
        // SAFETY: n <= len: the result is in, or one past, the range on loan.
        self.at = unsafe { self.at.add(n as usize) };
        self.len -= n;
        self.flags = self.flags & !BEHIND | MOVED;
    }

    /// Keeps the first `n` bytes.
    #[inline(always)]
    pub fn truncate(&mut self, n: u32) {
        self.len = self.len.min(n);
    }

    /// Takes a header of `HEADER` bytes (10 or 12) off the front: its first 8 and the next 2. `None`: it
    /// is shorter.
    #[inline(always)]
    pub fn take_header<const HEADER: u32>(&mut self) -> Option<(u64, u16)> {
        const { assert!(matches!(HEADER, 10 | 12 | 20), "a header of 10, 12 or 20 bytes") };
        let rest = self.len.checked_sub(HEADER)?;
        debug_assert!(self.flags & BEHIND == 0, "one header is taken off, or skipped");
        // SAFETY: there are HEADER bytes, at least 10; any are valid integers.
        let header = unsafe {
            let at = self.at.as_ptr();
            self.at = self.at.add(HEADER as usize);
            (copy::load(at.cast::<u64>()), copy::load(at.add(8).cast::<u16>()))
        };
        self.len = rest;
        Some(header)
    }

    /// Leaves a header of 12 bytes in front of what is to be written: [`Buf::put_header`] writes it, or
    /// [`Buf::close_up`] closes the gap. `false`: it has no 12 bytes, or does not begin where the loan does.
    pub fn skip_header(&mut self) -> bool {
        if self.len < SKIPPED || self.flags & (BEHIND | MOVED) != 0 {
            return false;
        }
        self.advance(SKIPPED);
        self.flags = self.flags & !MOVED | BEHIND;
        true
    }

    /// Begins again where the loan does, with the header that was skipped.
    fn unskip(&mut self) {
        assert!(self.flags & BEHIND != 0, "a header was skipped");
        // SAFETY: skip_header() went forward over so many bytes of the loan, and nobody has moved the
        // beginning since: advance() takes the flag away, take_header() only goes further forward.
        self.at = unsafe { self.at.sub(SKIPPED as usize) };
        self.len += SKIPPED;
        self.flags &= !BEHIND;
    }

    /// Writes the header that was skipped, of which the buffer begins then: 8 bytes, and 4. `false`: none
    /// was, what is in front has been taken off since, or it may not be written.
    pub fn put_header(&mut self, (low, high): (u64, u32)) -> bool {
        if self.flags & (BEHIND | WRITE) != BEHIND | WRITE {
            return false;
        }
        self.unskip();
        self.poke(0, low) && self.poke(8, high)
    }

    /// Moves what it holds to the beginning of its loan, over a header that was skipped. `false`: what is
    /// in front has been taken off, or it may not be written.
    pub fn close_up(&mut self) -> bool {
        if self.flags & MOVED != 0 || !self.writable() {
            return false;
        }
        if self.flags & BEHIND != 0 {
            let (bytes, mut at) = (self.len, 0);
            self.unskip();
            let mut some = [0; 256];
            while at < bytes {
                let n = self.read(at + SKIPPED, &mut some);
                at += self.write(at, &some[..n]) as u32;
            }
            self.truncate(bytes);
        }
        true
    }

    /// Whether it can be given back as it is, behind a header: it begins where one was skipped.
    #[inline(always)]
    pub fn is_behind_header(&self) -> bool {
        self.flags & (BEHIND | MOVED) == BEHIND
    }

    /// Whether something was taken off in front.
    #[inline(always)]
    pub fn is_moved(&self) -> bool {
        self.flags & MOVED != 0
    }

    /// A copy of the value at byte `off`; `None` if it does not fit. Values of 1, 2, 4 and 8 bytes are
    /// read at once.
    #[inline(always)]
    pub fn peek<T: Pod>(&self, off: u32) -> Option<T> {
        if !self.has(off, size_of::<T>()) {
            return None;
        }
        // SAFETY: the range was checked, and any bytes are a valid T.
        Some(unsafe { copy::load(self.at.as_ptr().add(off as usize).cast()) })
    }

    /// Stores a value at byte `off`; `false` if it does not fit or the buffer may not be written.
    #[inline(always)]
    #[must_use]
    pub fn poke<T: Pod>(&mut self, off: u32, value: T) -> bool {
        if !self.writable() || !self.has(off, size_of::<T>()) {
            return false;
        }
        // SAFETY: the range was checked and may be written.
        unsafe { copy::store(value, self.at.as_ptr().add(off as usize).cast()) };
        true
    }

    /// Copies bytes from `off` on into `out`; how many there were.
    #[inline]
    pub fn read(&self, off: u32, out: &mut [u8]) -> usize {
        let n = (self.len.saturating_sub(off) as usize).min(out.len());
        if n > 0 {
            // SAFETY: off + n <= len, and n <= out.len().
            unsafe { copy::bytes(self.at.as_ptr().add(off as usize), out.as_mut_ptr(), n) };
        }
        n
    }

    /// Copies `bytes` to `off` on; how many fitted (none, if the buffer may not be written).
    #[inline]
    pub fn write(&mut self, off: u32, bytes: &[u8]) -> usize {
        let n = (self.len.saturating_sub(off) as usize).min(bytes.len());
        if n == 0 || !self.writable() {
            return 0;
        }
        // SAFETY: off + n <= len, and n <= bytes.len().
        unsafe { copy::bytes(bytes.as_ptr(), self.at.as_ptr().add(off as usize), n) };
        n
    }

    /// Copies all of it, as far as it fits, to the front of `dst`; how many bytes fitted.
    #[inline(always)]
    pub fn copy_to(&self, dst: &mut Buf) -> u32 {
        self.copy_part(0, dst, 0, self.len)
    }

    /// Copies up to `len` bytes from `off` on to byte `dst_off` of `dst`; how many fitted.
    #[inline(always)]
    pub fn copy_part(&self, off: u32, dst: &mut Buf, dst_off: u32, len: u32) -> u32 {
        let n = len.min(self.len.saturating_sub(off)).min(dst.len.saturating_sub(dst_off));
        if n == 0 || !dst.writable() {
            return 0;
        }
        // SAFETY: n bytes fit both ranges after their offsets; the bytes may even be the same ones.
        unsafe {
            copy::bytes(
                self.at.as_ptr().add(off as usize),
                dst.at.as_ptr().add(dst_off as usize),
                n as usize,
            );
        }
        n
    }

    /// Copies this packet into one buffer: writes `prefix` (8 bytes, then as many of the other 4 as
    /// `PREFIX` has beyond them: it is 10 or 12) and all of this buffer behind it to the front of `dst`,
    /// which then has just that length. `false`, and nothing is written, unless both are the only buffer
    /// of their packet, this one has bytes, they fit, and `dst` may be written.
    #[inline(always)]
    pub fn copy_whole<const PREFIX: u32>(&self, prefix: (u64, u32), dst: &mut Buf) -> bool {
        const { assert!(PREFIX == 12 || PREFIX == 10, "a prefix of 10 or 12 bytes") };
        let whole = u64::from(PREFIX) + u64::from(self.len);
        let alone = (self.flags & MORE) | dst.flags == WRITE;
        if !alone || self.len == 0 || whole > u64::from(dst.len) {
            return false;
        }
        let at = dst.at.as_ptr();
        // SAFETY: the prefix and the bytes behind it fit `dst`, which may be written.
        unsafe {
            copy::store(prefix.0, at.cast());
            if PREFIX == 12 {
                copy::store(prefix.1, at.add(8).cast());
            } else {
                copy::store(prefix.1 as u16, at.add(8).cast());
            }
            copy::bytes(self.at.as_ptr(), at.add(PREFIX as usize), self.len as usize);
        }
        dst.len = whole as u32;
        true
    }

    /// Asks the cache for the line of byte `off`, to be read soon.
    #[inline(always)]
    pub fn prefetch_at(&self, off: u32) {
        copy::prefetch(self.at.as_ptr().wrapping_add(off as usize));
    }

    /// Asks the cache for its first line, to be read soon.
    #[inline(always)]
    pub fn prefetch(&self) {
        copy::prefetch(self.at.as_ptr());
    }

    /// Asks the cache for its first line, to be written soon.
    #[inline(always)]
    pub fn prefetch_write(&self) {
        copy::prefetch_write(self.at.as_ptr());
    }

    /// Ends the loan: the receipt says that `written` bytes were written to it.
    #[inline(always)]
    pub fn finish(self, written: u32) -> Loan {
        Loan { written, tag: self.tag }
    }

    #[inline(always)]
    fn has(&self, off: u32, len: usize) -> bool {
        off as u64 + len as u64 <= self.len as u64
    }
}

/// Numbers of live lenders. A number is free again only when none of its loans is out.
static OWNERS: Mutex<Owners> = Mutex::new(Owners { free: Vec::new(), next: 1 });

struct Owners {
    free: Vec<NonZeroU16>,
    next: u32,
}

impl Owners {
    fn take(&mut self) -> Option<NonZeroU16> {
        self.free.pop().or_else(|| {
            let owner = NonZeroU16::new(u16::try_from(self.next).ok()?)?;
            self.next += 1;
            Some(owner)
        })
    }
}

/// Lends ranges of one memory table and takes the receipts. One owner, one thread at a time.
#[derive(Debug)]
pub struct Lender {
    table: Arc<Table>,
    owner: NonZeroU16,
    out: Cell<u32>,
    /// The region of the last look-up.
    pub(crate) span: Cell<Span>,
}

// SAFETY: the cached address points into `table`, which goes along.
unsafe impl Send for Lender {}

impl Lender {
    /// A lender over `table`.
    ///
    /// # Panics
    /// When 65,535 lenders are alive: a limit of ours far above queues × ports of any host.
    pub fn new(table: Arc<Table>) -> Lender {
        let owner = OWNERS.lock().expect("no holder panics").take().expect("fewer than 65,535 lenders");
        Lender {
            table,
            owner,
            out: Cell::new(0),
            span: Cell::new(Span { start: 0, size: 0, base: NonNull::dangling() }),
        }
    }

    /// The number its buffers and receipts carry; unique among lenders with buffers out.
    #[inline(always)]
    pub fn owner(&self) -> NonZeroU16 {
        self.owner
    }

    /// The table it lends from.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Buffers out.
    #[inline(always)]
    pub fn out(&self) -> u32 {
        self.out.get()
    }

    /// Lends `len` bytes at `gpa`, to be read only, under the lender's own number `id`.
    ///
    /// # Errors
    /// [`OutOfRange`] unless all bytes lie in one region.
    #[inline(always)]
    pub fn lend(&self, gpa: u64, len: u32, id: u16) -> Result<Buf, OutOfRange> {
        self.lend_as(gpa, len, id, 0)
    }

    /// Lends `len` bytes at `gpa` to be written.
    ///
    /// # Errors
    /// [`OutOfRange`] unless all bytes lie in one region.
    #[inline(always)]
    pub fn lend_writable(&self, gpa: u64, len: u32, id: u16) -> Result<Buf, OutOfRange> {
        self.lend_as(gpa, len, id, WRITE)
    }

    /// Takes a receipt of its own: the buffer is home. Returns its number and the bytes written.
    ///
    /// # Panics
    /// When the receipt is another lender's.
    #[inline(always)]
    pub fn settle(&self, loan: Loan) -> (u16, u32) {
        if loan.owner() != self.owner {
            foreign(loan.owner(), self.owner);
        }
        self.out.set(self.out.get() - 1);
        (loan.tag.id(), loan.written)
    }

    /// Counts `n` more as out.
    #[inline(always)]
    pub(crate) fn count_out(&self, n: usize) {
        self.out.set(self.out.get() + n as u32);
    }

    /// Counts these as home, for a caller that forgets them: see `Lender::take_back`.
    #[inline(always)]
    pub(crate) fn count_home(&self, bufs: &[Buf]) {
        if let Some(buf) = bufs.iter().find(|buf| buf.owner() != self.owner) {
            foreign(buf.owner(), self.owner);
        }
        self.out.set(self.out.get() - bufs.len() as u32);
    }

    /// Calls `home` with number and bytes written of its own receipts at the front of `loans`, up to the
    /// first that is another's, and counts them as home; how many.
    #[inline(always)]
    pub(crate) fn count_loans(&self, loans: &[Loan], mut home: impl FnMut(u16, u32)) -> usize {
        let mut n = 0;
        for loan in loans {
            if loan.owner() != self.owner {
                break;
            }
            home(loan.tag.id(), loan.written);
            n += 1;
        }
        self.out.set(self.out.get() - n as u32);
        n
    }

    /// A copy of the value at `gpa`, for tables that a guest keeps outside its rings.
    ///
    /// # Errors
    /// [`OutOfRange`] unless all of it lies in one region.
    #[inline(always)]
    pub fn peek<T: Pod>(&self, gpa: u64) -> Result<T, OutOfRange> {
        let at = self.locate(gpa, size_of::<T>() as u32)?;
        // SAFETY: locate() checked the range, and any bytes are a valid T.
        Ok(unsafe { copy::load(at.as_ptr().cast()) })
    }

    #[inline(always)]
    fn lend_as(&self, gpa: u64, len: u32, id: u16, flags: u8) -> Result<Buf, OutOfRange> {
        let at = self.locate(gpa, len)?;
        self.out.set(self.out.get() + 1);
        Ok(Buf { at, len, tag: Tag::new(self.owner, id), flags, offload: Offload::default() })
    }

    #[inline(always)]
    fn locate(&self, gpa: u64, len: u32) -> Result<NonNull<u8>, OutOfRange> {
        if let Some(at) = self.span.get().locate(gpa, len) {
            return Ok(at);
        }
        let (span, at) = self.look_up(gpa, len).ok_or(OutOfRange { gpa, len: len.into() })?;
        self.span.set(span);
        Ok(at)
    }

    /// Finds the region of some bytes, to be kept for the next, and their address.
    #[inline(always)]
    pub(crate) fn look_up(&self, gpa: u64, len: u32) -> Option<(Span, NonNull<u8>)> {
        self.table.find_with(gpa, len)
    }
}

/// Takes its numbers by value, so that the caller need not keep them in memory.
#[cold]
#[inline(never)]
fn foreign(owner: NonZeroU16, lender: NonZeroU16) -> ! {
    panic!("a receipt of lender {owner} came to lender {lender}");
}

impl Drop for Lender {
    fn drop(&mut self) {
        if self.out.get() == 0 {
            OWNERS.lock().expect("no holder panics").free.push(self.owner);
        } else {
            // Somebody still holds a Buf: the memory must stay, and the number must not come back.
            std::mem::forget(Arc::clone(&self.table));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Backing, Map, PageSize};

    fn lender(len: usize) -> Lender {
        let map = Map::shared(len, Backing { page: PageSize::Base, node: None }).unwrap();
        Lender::new(Table::of(map))
    }

    #[test]
    fn lends_exactly_what_is_inside() {
        let lender = lender(8192);
        for (gpa, len, ok) in [
            (0, 8192, true),
            (0, 8193, false),
            (8191, 1, true),
            (8191, 2, false),
            (8192, 0, false),
            (8192, 1, false),
            (u64::MAX, 1, false),
            (u64::MAX - 4, u32::MAX, false),
            (0, u32::MAX, false),
        ] {
            match lender.lend(gpa, len, 7) {
                Ok(buf) => {
                    assert!(ok, "{gpa:#x} + {len}");
                    assert_eq!(lender.out(), 1);
                    assert_eq!(lender.settle(buf.finish(3)), (7, 3));
                }
                Err(e) => assert!(!ok && e == OutOfRange { gpa, len: len.into() }),
            }
            assert_eq!(lender.out(), 0);
        }
    }

    #[test]
    fn writes_only_where_it_may() {
        let lender = lender(4096);
        let mut reader = lender.lend(0, 64, 0).unwrap();
        let mut writer = lender.lend_writable(0, 64, 0).unwrap();
        assert!(!reader.poke(0, 1u32) && reader.write(0, &[1]) == 0 && writer.copy_to(&mut reader) == 0);
        assert!(writer.poke(60, 0x0403_0201u32) && !writer.poke(61, 0u32));
        assert_eq!(reader.peek::<[u8; 4]>(60), Some([1, 2, 3, 4]));
        assert_eq!(reader.peek::<u32>(61), None);
        assert_eq!(reader.peek::<u8>(u32::MAX), None);
        reader.advance(60);
        reader.truncate(3);
        let mut out = [0; 8];
        assert_eq!((reader.read(0, &mut out), &out[..4]), (3, &[1u8, 2, 3, 0][..]));
        reader.advance(9);
        assert!(reader.is_empty());
        lender.settle(reader.finish(0));
        lender.settle(writer.finish(0));
    }

    #[test]
    fn copies_whole_packets_into_what_holds_them_and_nothing_else() {
        let lender = lender(4096);
        let lend = |at, len| lender.lend_writable(at, len, 9).unwrap();
        let mut from = lend(0, 5);
        assert_eq!(from.write(0, b"abcde"), 5);
        let prefix = (0x0807_0605_0403_0201, 0x0c0b_0a09);
        for (mut to, fits) in [
            (lend(100, 17), true),
            (lend(100, 16), false),
            (lender.lend(100, 64, 1).unwrap(), false),
            (lend(100, 0), false),
        ] {
            assert_eq!(from.copy_whole::<12>(prefix, &mut to), fits);
            let mut bytes = [0; 20];
            assert_eq!(to.read(0, &mut bytes), (to.len() as usize).min(20));
            assert!(!fits || to.len() == 17);
            assert!(!fits || bytes == *b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cabcde\0\0\0");
            let _ = to.finish(0);
        }
        let mut to = lend(200, 15);
        assert!(from.copy_whole::<10>(prefix, &mut to) && to.peek(8) == Some(*b"\x09\x0aabcde"));
        let (mut room, empty) = (lend(300, 64), lend(0, 0));
        assert!(!empty.copy_whole::<12>(prefix, &mut room));
        room.set_more(true);
        assert!(!from.copy_whole::<12>(prefix, &mut room));
        room.set_more(false);
        from.set_more(true);
        assert!(!from.copy_whole::<12>(prefix, &mut room));
        for buf in [from, to, room, empty] {
            let _ = buf.finish(0);
        }
    }

    #[test]
    fn a_header_that_was_skipped_is_put_back_where_it_was_and_nowhere_else() {
        let lender = lender(4096);
        let mut buf = lender.lend_writable(64, 700, 0).unwrap();
        let frame: Vec<u8> = (0..688).map(|i| i as u8).collect();
        assert!(!buf.put_header((1, 2)) && buf.skip_header() && !buf.skip_header());
        assert_eq!((buf.len(), buf.write(0, &frame)), (688, 688));
        assert!(buf.is_behind_header() && buf.put_header((0x0807_0605_0403_0201, 0x0c0b_0a09)));
        assert!(
            !buf.is_behind_header() && buf.len() == 700 && buf.peek(8) == Some(*b"\x09\x0a\x0b\x0c\0\x01")
        );
        // The gap is closed, whatever the length.
        for len in [0, 1, 255, 256, 257, 688] {
            let mut buf = lender.lend_writable(1024, 700, 0).unwrap();
            assert!(buf.skip_header() && buf.write(0, &frame[..len]) == len);
            buf.truncate(len as u32);
            assert!(buf.close_up() && buf.close_up() && buf.len() as usize == len && !buf.is_behind_header());
            let mut bytes = vec![0; len];
            assert_eq!((buf.read(0, &mut bytes), bytes.as_slice()), (len, &frame[..len]));
            let first = lender.lend(1024, 700, 0).unwrap();
            assert!(len == 0 || first.peek::<u8>(0) == Some(frame[0]), "at the beginning of the loan");
            for buf in [buf, first] {
                let _ = buf.finish(0);
            }
        }
        // Not once something was taken off, and not of what is too short or may not be written.
        let mut moved = lender.lend_writable(64, 700, 0).unwrap();
        assert!(moved.skip_header());
        moved.advance(4);
        assert!(moved.is_moved() && !moved.put_header((0, 0)) && !moved.close_up() && !moved.skip_header());
        let (mut short, mut fixed) =
            (lender.lend_writable(0, 11, 0).unwrap(), lender.lend(0, 64, 0).unwrap());
        assert!(
            !short.skip_header() && fixed.skip_header() && !fixed.put_header((0, 0)) && !fixed.close_up()
        );
        for buf in [buf, moved, short, fixed] {
            let _ = buf.finish(0);
        }
    }

    #[test]
    #[should_panic(expected = "came to lender")]
    fn refuses_a_receipt_of_another() {
        let (a, b) = (lender(4096), lender(4096));
        b.settle(a.lend(0, 1, 0).unwrap().finish(0));
    }

    #[test]
    fn a_lender_dropped_with_buffers_out_keeps_the_memory() {
        let lender = lender(4096);
        let table = Arc::downgrade(lender.table());
        let mut buf = lender.lend_writable(0, 8, 0).unwrap();
        drop(lender);
        assert!(table.upgrade().is_some());
        assert!(buf.poke(0, 5u64));
        assert_eq!(buf.peek::<u64>(0), Some(5));
        let _ = buf.finish(0);
    }
}
