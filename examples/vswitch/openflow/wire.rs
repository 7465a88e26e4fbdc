//! Numbers in network order, read with every length checked, and written.

use super::error::OfError;

/// Reads from the front. Running out is the error it was made with.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    short: OfError,
}

impl<'a> Reader<'a> {
    /// Of these bytes; `short` is what to say when there are too few.
    pub(crate) fn new(bytes: &'a [u8], short: OfError) -> Reader<'a> {
        Reader { rest: bytes, short }
    }

    /// The next `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], OfError> {
        let (front, rest) = self.rest.split_at_checked(n).ok_or(self.short)?;
        self.rest = rest;
        Ok(front)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], OfError> {
        let (front, rest) = self.rest.split_first_chunk().ok_or(self.short)?;
        self.rest = rest;
        Ok(*front)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, OfError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, OfError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, OfError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, OfError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A number of `n` bytes, at most 16.
    pub(crate) fn number(&mut self, n: usize) -> Result<u128, OfError> {
        Ok(self.bytes(n)?.iter().fold(0, |v, b| v << 8 | u128::from(*b)))
    }

    /// Passes over `n` bytes.
    pub(crate) fn skip(&mut self, n: usize) -> Result<(), OfError> {
        self.bytes(n).map(|_| ())
    }

    /// A reader of the next `n` bytes, with an error of its own.
    pub(crate) fn part(&mut self, n: usize, short: OfError) -> Result<Reader<'a>, OfError> {
        Ok(Reader::new(self.bytes(n)?, short))
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// What is left, without taking it.
    pub(crate) fn peek(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes at the end.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, v: u8) -> &mut Writer {
        self.bytes.push(v);
        self
    }

    pub(crate) fn u16(&mut self, v: u16) -> &mut Writer {
        self.put(&v.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, v: u32) -> &mut Writer {
        self.put(&v.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, v: u64) -> &mut Writer {
        self.put(&v.to_be_bytes())
    }

    /// The lowest `n` bytes of a number.
    pub(crate) fn number(&mut self, v: u128, n: usize) -> &mut Writer {
        self.put(&v.to_be_bytes()[16 - n..])
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn zeros(&mut self, n: usize) -> &mut Writer {
        self.bytes.resize(self.bytes.len() + n, 0);
        self
    }

    /// A text in a field of `n` bytes, cut to leave a zero at its end.
    pub(crate) fn text(&mut self, text: &str, n: usize) -> &mut Writer {
        let mut end = text.len().min(n - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.put(&text.as_bytes()[..end]).zeros(n - end)
    }

    /// Zeros until what began at `from` is a multiple of eight bytes.
    pub(crate) fn pad(&mut self, from: usize) -> &mut Writer {
        let over = (self.bytes.len() - from) % 8;
        self.zeros((8 - over) % 8)
    }

    /// Where the next byte goes.
    pub(crate) fn at(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the number of bytes since `from` into the two bytes at `place`.
    pub(crate) fn length(&mut self, place: usize, from: usize) {
        let length = (self.bytes.len() - from) as u16;
        self.bytes[place..place + 2].copy_from_slice(&length.to_be_bytes());
    }

    /// Rewrites two bytes.
    pub(crate) fn set_u16(&mut self, place: usize, v: u16) {
        self.bytes[place..place + 2].copy_from_slice(&v.to_be_bytes());
    }

    /// What was written.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
