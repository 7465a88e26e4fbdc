//! What a sender left to its receiver (virtio 1.3 §5.1.6.2), done in software for a receiver that
//! cannot: the checksum of a packet, and its segmentation ([`segment`]). And the reverse, for a receiver that
//! takes large packets: [`join`].
//!
//! The bytes may be a guest's and change meanwhile: they are copied out before they are summed, and a
//! guest that rewrites its packet on the way damages only its own checksum.

mod fragment;
pub mod segment;
pub mod join;

use hugepages::{Buf, Offload};

use crate::batch::Batch;
use crate::spec::net::HDR_F_NEEDS_CSUM;

/// An offload request that does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checksum at byte {start} + {offset} lies outside a packet of {len} bytes")]
pub struct BadOffload {
    /// `csum_start` of the packet.
    pub start: u16,
    /// `csum_offset` of the packet.
    pub offset: u16,
    /// Bytes in the packet.
    pub len: u32,
}

/// Two bytes to be stored in a packet to complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Byte of the packet, counted from the start of its Ethernet header.
    pub at: u32,
    /// What to store there, in wire order.
    pub bytes: [u8; 2],
}

/// The checksum that the packet in `bufs` (all buffers of one packet, without any transport header)
/// leaves to its receiver; `None` when it leaves none. Whoever copies the packet stores the patch in
/// the copy; [`complete`] stores it in the packet itself.
///
/// # Errors
/// [`BadOffload`] when the sender's numbers point outside the packet: it cannot be sent.
pub fn checksum<'a>(
    offload: &Offload,
    bufs: impl Iterator<Item = &'a Buf> + Clone,
) -> Result<Option<Patch>, BadOffload> {
    if offload.flags & HDR_F_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let len = bufs.clone().map(|buf| u64::from(buf.len())).sum::<u64>();
    let at = field(offload, len)?;
    let mut skip = u32::from(offload.csum_start);
    let mut sum = Sum::default();
    let mut local = [0u8; 2048];
    for buf in bufs {
        let mut off = skip.min(buf.len());
        skip -= off;
        loop {
            let n = buf.read(off, &mut local);
            if n == 0 {
                break;
            }
            sum.add(&local[..n]);
            off += n as u32;
        }
    }
    Ok(Some(Patch { at, bytes: sum.stored() }))
}

/// Completes the checksum of the first packet of `batch` (`n` buffers) in place and marks it as done,
/// if it asks for that.
///
/// # Errors
/// [`BadOffload`] when the packet cannot be sent. A packet in read-only buffers is left as it is, and
/// `Ok(Some(patch))` says what to store in a copy of it.
pub fn complete(batch: &mut Batch<Buf>, n: usize) -> Result<Option<Patch>, BadOffload> {
    let Some(first) = batch.front() else { return Ok(None) };
    let offload = first.offload;
    let Some(patch) = checksum(&offload, batch.iter().take(n))? else { return Ok(None) };
    if !store(batch, n, patch) {
        return Ok(Some(patch));
    }
    let first = batch.get_mut(0).expect("looked at above");
    first.offload.flags &= !HDR_F_NEEDS_CSUM;
    (first.offload.csum_start, first.offload.csum_offset) = (0, 0);
    Ok(None)
}

/// Stores `patch` in the first packet of `batch` (`n` buffers); `false`: a buffer is read-only.
fn store(batch: &mut Batch<Buf>, n: usize, patch: Patch) -> bool {
    for (i, byte) in patch.bytes.into_iter().enumerate() {
        let mut at = patch.at + i as u32;
        let stored = batch.iter_mut().take(n).find_map(|buf| {
            if at < buf.len() {
                return Some(buf.poke(at, byte));
            }
            at -= buf.len();
            None
        });
        if stored != Some(true) {
            return false;
        }
    }
    true
}

/// Like [`complete`], for a packet that is one slice of our own.
///
/// # Errors
/// [`BadOffload`] when the numbers point outside it.
pub fn complete_slice(offload: &Offload, packet: &mut [u8]) -> Result<(), BadOffload> {
    if offload.flags & HDR_F_NEEDS_CSUM == 0 {
        return Ok(());
    }
    let at = field(offload, packet.len() as u64)? as usize;
    let mut sum = Sum::default();
    sum.add(&packet[usize::from(offload.csum_start)..]);
    packet[at..at + 2].copy_from_slice(&sum.stored());
    Ok(())
}

/// Byte of the packet where the checksum is stored.
fn field(offload: &Offload, len: u64) -> Result<u32, BadOffload> {
    let at = u32::from(offload.csum_start) + u32::from(offload.csum_offset);
    if u64::from(at) + 2 > len {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        return Err(BadOffload { start: offload.csum_start, offset: offload.csum_offset, len });
    }
    Ok(at)
}

/// The Internet checksum (RFC 1071) of bytes given piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    /// Adds the next bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if self.odd
            && let Some((&first, rest)) = bytes.split_first()
        {
            self.sum += u64::from(u16::from_ne_bytes([0, first]));
            self.odd = false;
            bytes = rest;
        }
        // Words are summed in memory order and swapped once at the end (RFC 1071 §2 B); 2^32 words
        // of 32 bits fit the sum.
        let mut words = bytes.chunks_exact(4);
        let mut sum = 0u64;
        for word in &mut words {
            sum += u64::from(u32::from_ne_bytes(word.try_into().expect("4 bytes")));
        }
        let mut tail = words.remainder();
        if let [a, b, rest @ ..] = tail {
            sum += u64::from(u16::from_ne_bytes([*a, *b]));
            tail = rest;
        }
        if let [a] = tail {
            sum += u64::from(u16::from_ne_bytes([*a, 0]));
            self.odd = true;
        }
        self.sum += fold(sum);
    }

    /// Adds a 16-bit number, as it stands on the wire in network order. Only between whole words.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.odd, "a word between two halves of another");
        self.sum += u64::from(word.to_be());
    }

    /// The sum, not complemented, in host order: what a pseudo header leaves in the field.
    #[inline]
    pub fn partial(self) -> u16 {
        u16::from_be(fold(self.sum) as u16)
    }

    /// The checksum, in wire order.
    #[inline]
    pub fn bytes(self) -> [u8; 2] {
        (!(fold(self.sum) as u16)).to_ne_bytes()
    }

    /// The checksum as TCP and UDP store it, in wire order: zero would mean that UDP has none, so its
    /// other form is stored (RFC 768).
    #[inline]
    pub fn stored(self) -> [u8; 2] {
        match self.bytes() {
            [0, 0] => [0xFF, 0xFF],
            bytes => bytes,
        }
    }

    /// Whether bytes that include their own checksum are undamaged.
    #[inline]
    pub fn verifies(self) -> bool {
        fold(self.sum) == 0xFFFF
    }
}

/// A one's complement sum of 16 bits, 1 to 0xFFFF for anything but zero.
#[inline]
fn fold(mut sum: u64) -> u64 {
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, PageSize, Pool};

    /// RFC 1071, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 + i / 7) as u8).collect()
    }

    #[test]
    fn any_split_gives_the_sum_of_the_whole() {
        let all = bytes(300);
        for len in 0..all.len() {
            let want = plain(&all[..len]);
            for cut in [0, 1, 2, 3, 5, len / 2, len] {
                let mut sum = Sum::default();
                sum.add(&all[..cut.min(len)]);
                sum.add(&all[cut.min(len)..len]);
                assert_eq!(u16::from_be_bytes(sum.bytes()), want, "{len} cut at {cut}");
            }
        }
        let mut sum = Sum::default();
        sum.add(&[0xFF; 64]);
        assert_eq!((sum.bytes(), sum.stored(), sum.verifies()), ([0, 0], [0xFF, 0xFF], true));
    }

    #[test]
    fn completes_a_packet_in_any_pieces() {
        let (mut pool, _) = Pool::new(64, 256, Backing { page: PageSize::Base, node: None }).unwrap();
        let packet = bytes(190);
        let offload =
            Offload { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Default::default() };
        let mut want = packet.clone();
        want[50..52].copy_from_slice(&plain(&packet[34..]).to_be_bytes());
        let mut slice = packet.clone();
        complete_slice(&offload, &mut slice).unwrap();
        assert_eq!(slice, want);
        for piece in [190, 100, 51, 50, 34, 33, 17] {
            let mut batch = Batch::default();
            for part in packet.chunks(piece) {
                let mut buf = pool.take().unwrap();
                buf.truncate(part.len() as u32);
                buf.write(0, part);
                buf.set_more(true);
                batch.push(buf);
            }
            let n = batch.len();
            batch.get_mut(n - 1).unwrap().set_more(false);
            batch.get_mut(0).unwrap().offload = offload;
            assert_eq!(complete(&mut batch, n), Ok(None));
            assert_eq!(batch.front().unwrap().offload, Offload::default());
            let mut got = Vec::new();
            while let Some(buf) = batch.pop_front() {
                let mut part = vec![0; buf.len() as usize];
                buf.read(0, &mut part);
                got.extend(part);
                pool.settle(buf.finish(0));
            }
            assert_eq!(got, want, "pieces of {piece}");
        }
    }

    #[test]
    fn numbers_outside_the_packet_are_refused() {
        let flags = HDR_F_NEEDS_CSUM;
        for (start, offset, len, ok) in [
            (34, 16, 52, true),
            (34, 16, 51, false),
            (0, 0, 2, true),
            (0, 0, 1, false),
            (u16::MAX, u16::MAX, 64, false),
            (64, 0, 64, false),
        ] {
            let offload = Offload { flags, csum_start: start, csum_offset: offset, ..Default::default() };
            assert_eq!(complete_slice(&offload, &mut vec![0; len]).is_ok(), ok, "{start} {offset} {len}");
        }
    }
}
