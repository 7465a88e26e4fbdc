//! Rings of vmxnet3. A descriptor belongs to the device when its generation bit is that of the round;
//! what is done is told in rings of their own.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Buf, Offload, Window, Words};

use super::layout as l;
use super::{Memory, Setup};
use crate::nic::slots::Slots;
use crate::nic::{Arrival, Broken, Fate, Regs, Rings};
use crate::spec::net::{GSO_NONE, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM};

/// Rings begin at a multiple of this, and have a multiple of 32 entries.
const ALIGN: u64 = 512;
const STEP: u16 = 32;
const BYTES: usize = 16;
/// Bytes of an entry of the ring for small frames, which is there and not used.
const DATA: usize = 128;
/// Most bytes of a descriptor: a length of 0 means so many.
const MAX_PIECE: u32 = 1 << 14;

/// Bits of a transmit descriptor, in its second word.
const TX_GENERATION: u64 = 1 << 14;
/// What the offload is about (checksum field, or segment size), and where its header is.
const TX_FIELD: u32 = 18;
const TX_HEADER: u32 = 32;
const TX_CHECKSUM: u64 = 2 << 42;
const TX_LAST: u64 = 1 << 44;
const TX_REPORT: u64 = 1 << 45;
/// Bits of a receive descriptor: what follows the first buffer of a packet; generation.
const RX_BODY: u64 = 1 << 14;
const RX_GENERATION: u64 = 1 << 31;
/// Bits of what is done, in its second word.
const DONE_GENERATION: u64 = 1 << 63;
const DONE_ERROR: u64 = 1 << 14;
/// The TCP or UDP checksum is right; the frame check sequence is.
const DONE_L4_RIGHT: u64 = 1 << 48;
const DONE_TCP_UDP: u64 = 1 << 49 | 1 << 50;
/// The same in its first word.
const DONE_LAST: u64 = 1 << 14;

/// Entries of the rings.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) tx: u16,
    /// Each of the two of a receive queue.
    pub(super) rx: u16,
}

impl Sizes {
    pub(super) fn of(setup: &Setup) -> Sizes {
        let even = |n: u16, most| n.clamp(STEP, most).next_multiple_of(STEP);
        Sizes { tx: even(setup.tx_size, 4096), rx: even(setup.rx_size, 2048) }
    }

    pub(super) fn bytes(self) -> usize {
        let (tx, rx) = (usize::from(self.tx), usize::from(self.rx));
        (2 * BYTES + DATA) * tx + 4 * BYTES * rx + 6 * ALIGN as usize
    }
}

/// Where the rings are, for the device.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) tx: u64,
    pub(super) data: u64,
    pub(super) tx_done: u64,
    pub(super) rx: [u64; 2],
    pub(super) rx_done: u64,
}

/// A place in a ring that goes round, and the generation of the round.
#[derive(Clone, Copy)]
struct Turn {
    at: u16,
    size: u16,
    generation: bool,
}

impl Turn {
    fn new(size: u16) -> Turn {
        Turn { at: 0, size, generation: true }
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.at += 1;
        if self.at == self.size {
            (self.at, self.generation) = (0, !self.generation);
        }
    }
}

/// One queue pair.
pub(crate) struct Rings3 {
    doors: Regs,
    places: Places,
    tx: Window<u64>,
    tx_next: Turn,
    tx_free: u16,
    tx_done: Window<u64>,
    tx_taken: Turn,
    /// Last descriptor of each packet the device has, and how many it takes.
    out: VecDeque<(u16, u16)>,
    rx: [Window<u64>; 2],
    rx_next: [Turn; 2],
    /// Descriptors of each that can be filled.
    rx_free: [u16; 2],
    /// The next of each that the device fills.
    rx_filled: [u16; 2],
    rx_done: Window<u64>,
    rx_taken: Turn,
    /// All rings, for a model of a device.
    #[cfg(any(test, fuzzing))]
    pub(crate) memory: std::sync::Arc<hugepages::Table>,
}

impl Rings3 {
    pub(super) fn new(doors: Regs, mut memory: Memory, sizes: Sizes) -> Rings3 {
        let (tx, rx) = (usize::from(sizes.tx), usize::from(sizes.rx));
        let mut ring = |n: usize| {
            let at = memory.take(BYTES * n, ALIGN);
            (at, memory.words::<u64>(at, 2 * n))
        };
        let (tx_at, tx_words) = ring(tx);
        let (tx_done_at, tx_done) = ring(tx);
        let (head_at, head) = ring(rx);
        let (body_at, body) = ring(rx);
        let (rx_done_at, rx_done) = ring(2 * rx);
        let data = memory.take(DATA * tx, ALIGN);
        let places =
            Places { tx: tx_at, data, tx_done: tx_done_at, rx: [head_at, body_at], rx_done: rx_done_at };
        Rings3 {
            doors,
            places,
            tx: tx_words,
            tx_next: Turn::new(sizes.tx),
            tx_free: sizes.tx - 1,
            tx_done,
            tx_taken: Turn::new(sizes.tx),
            out: VecDeque::with_capacity(tx),
            rx: [head, body],
            rx_next: [Turn::new(sizes.rx); 2],
            rx_free: [sizes.rx - 1; 2],
            rx_filled: [0; 2],
            rx_done,
            rx_taken: Turn::new(2 * sizes.rx),
            #[cfg(any(test, fuzzing))]
            memory: memory.table().clone(),
        }
    }

    pub(super) fn places(&self) -> Places {
        self.places
    }
}

/// Descriptors of a buffer.
#[inline(always)]
fn pieces(buf: &Buf) -> u16 {
    buf.len().div_ceil(MAX_PIECE).max(1) as u16
}

impl Rings for Rings3 {
    /// The device takes 16 descriptors a packet, and no more.
    const MOST: usize = 8;

    fn completes(&self, offload: &Offload) -> bool {
        let field = u32::from(offload.csum_start) + u32::from(offload.csum_offset);
        offload.gso_type == GSO_NONE && offload.csum_start < 1 << 10 && field < 1 << 14
    }

    fn tx_size(&self) -> u16 {
        self.tx_next.size
    }

    fn free(&self) -> usize {
        self.tx_free.into()
    }

    #[inline]
    fn send(&mut self, packet: &[Buf]) -> Fate {
        let needed = packet.iter().map(pieces).sum::<u16>();
        if needed > self.tx_free {
            return Fate::Full;
        }
        let offload = packet[0].offload;
        let (mut asks, mut field) = (0, 0);
        if offload.flags & HDR_F_NEEDS_CSUM != 0 {
            asks = TX_CHECKSUM | u64::from(offload.csum_start) << TX_HEADER;
            field = u64::from(offload.csum_start + offload.csum_offset) << TX_FIELD;
        }
        let mut first = None;
        let mut last = 0;
        for (i, buf) in packet.iter().enumerate() {
            let (mut at, mut left) = (buf.iova(), buf.len());
            loop {
                let len = left.min(MAX_PIECE);
                left -= len;
                let end = left == 0 && i + 1 == packet.len();
                let end = if end { TX_LAST | TX_REPORT } else { 0 };
                let turn = self.tx_next;
                let generation = if turn.generation { TX_GENERATION } else { 0 };
                let word = u64::from(len % MAX_PIECE) | asks | field | end | generation;
                last = turn.at;
                let place = 2 * usize::from(last);
                self.tx.set(place, at);
                if first.is_none() {
                    // The device looks at it first: it is not its own until all are written.
                    first = Some((place + 1, word));
                    self.tx.set(place + 1, word ^ TX_GENERATION);
                } else {
                    self.tx.set(place + 1, word);
                }
                self.tx_next.advance();
                at += u64::from(len);
                if left == 0 {
                    break;
                }
            }
        }
        if let Some((place, word)) = first {
            // Pairs with the device's look at the generation: it sees all descriptors, and the packet.
            self.tx.release(place, word);
        }
        self.tx_free -= needed;
        self.out.push_back((last, needed));
        Fate::Taken(last)
    }

    #[inline]
    fn show_sent(&mut self) {
        fence(Ordering::Release);
        self.doors.set(l::TX_DOOR, self.tx_next.at.into());
    }

    #[inline]
    fn sent(&mut self) -> Result<Option<u16>, Broken> {
        let turn = self.tx_taken;
        // Pairs with the device's write of the entry, after it has read the packet.
        let word = self.tx_done.acquire(2 * usize::from(turn.at) + 1);
        if (word & DONE_GENERATION != 0) != turn.generation {
            return Ok(None);
        }
        let id = self.tx_done.get(2 * usize::from(turn.at)) as u16 & 0xfff;
        let Some(&(last, taken)) = self.out.front() else {
            return Err(Broken("it sent a packet that it was not given".into()));
        };
        if id != last {
            return Err(Broken(format!("it sent packet {id} before packet {last}").into()));
        }
        self.tx_taken.advance();
        self.out.pop_front();
        self.tx_free += taken;
        Ok(Some(last))
    }

    fn rx_size(&self) -> u16 {
        // Of each ring one stays empty.
        2 * (self.rx_next[0].size - 1)
    }

    fn writes(&self) -> u32 {
        0
    }

    #[inline]
    fn post(&mut self, empty: &Buf) -> u16 {
        debug_assert!(empty.len() <= MAX_PIECE, "what its descriptor can say");
        let ring = usize::from(self.rx_free[0] == 0);
        let turn = self.rx_next[ring];
        let kind = if ring == 0 { 0 } else { RX_BODY };
        let generation = if turn.generation { RX_GENERATION } else { 0 };
        let place = 2 * usize::from(turn.at);
        self.rx[ring].set(place, empty.iova());
        // Pairs with the device's look at the generation.
        self.rx[ring].release(place + 1, u64::from(empty.len()) | kind | generation);
        self.rx_next[ring].advance();
        self.rx_free[ring] -= 1;
        ring as u16 * turn.size + turn.at
    }

    #[inline]
    fn show_posted(&mut self) {
        fence(Ordering::Release);
        for (door, turn) in l::RX_DOORS.iter().zip(self.rx_next) {
            self.doors.set(*door, turn.at.into());
        }
    }

    #[inline]
    fn received(&mut self, posted: &mut Slots) -> Result<Option<Arrival>, Broken> {
        let turn = self.rx_taken;
        // Pairs with the device's write of the entry, after that of the packet.
        let word = self.rx_done.acquire(2 * usize::from(turn.at) + 1);
        if (word & DONE_GENERATION != 0) != turn.generation {
            return Ok(None);
        }
        let first = self.rx_done.get(2 * usize::from(turn.at));
        let (at, ring) = (first as u16 & 0xfff, (first >> 16) as u16 & 0x3ff);
        let size = self.rx_next[0].size;
        // In their turn: a place that is filled again while the device has a buffer there would be lost.
        let turn = self.rx_filled.get(usize::from(ring)).is_some_and(|next| *next == at);
        let buf = if turn { posted.take(ring * size + at) } else { None };
        let Some(mut buf) = buf else {
            return Err(Broken(
                format!("it filled buffer {at} of ring {ring}, which is not its next").into(),
            ));
        };
        self.rx_taken.advance();
        self.rx_filled[usize::from(ring)] = if at + 1 == size { 0 } else { at + 1 };
        self.rx_free[usize::from(ring)] += 1;
        let last = first & DONE_LAST != 0;
        buf.truncate(word as u32 & 0x3fff);
        buf.set_more(!last);
        if word & DONE_L4_RIGHT != 0 && word & DONE_TCP_UDP != 0 {
            buf.offload.flags = HDR_F_DATA_VALID;
        }
        let damaged = word & DONE_ERROR != 0;
        Ok(Some(if damaged { Arrival::Damaged(buf) } else { Arrival::Piece(buf) }))
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Backing, PageSize, Pool};

    use super::*;

    struct Deaf;

    impl crate::nic::Registers for Deaf {
        fn read(&self, _: u32, _: u32) -> u32 {
            0
        }
        fn write(&self, _: u32, _: u32, _: u32) {}
    }

    #[test]
    fn a_buffer_filled_out_of_its_turn_is_a_lie() {
        let backing = Backing { page: PageSize::Base, node: None };
        let sizes = Sizes { tx: STEP, rx: STEP };
        let memory = Memory::new(sizes.bytes(), backing).unwrap();
        let mut rings = Rings3::new(std::sync::Arc::new(Deaf), memory, sizes);
        let (mut pool, _) = Pool::new(128, 2048, backing).unwrap();
        let mut posted = Slots::new(rings.rx_size() + 2);
        let mut fill = |rings: &mut Rings3, posted: &mut Slots| {
            while posted.len() < usize::from(rings.rx_size()) {
                let empty = pool.take().unwrap();
                posted.put(rings.post(&empty), empty);
            }
        };
        fill(&mut rings, &mut posted);
        let done = |rings: &Rings3, entry: usize, at: u64, ring: u64| {
            rings.rx_done.set(2 * entry, at | DONE_LAST | ring << 16);
            rings.rx_done.set(2 * entry + 1, DONE_GENERATION | 60);
        };
        // In turn, of each ring.
        for (entry, (at, ring)) in [(0, 0), (1, 0), (0, 1)].into_iter().enumerate() {
            done(&rings, entry, at, ring);
            let Ok(Some(Arrival::Piece(buf))) = rings.received(&mut posted) else { panic!("entry {entry}") };
            drop(buf);
            fill(&mut rings, &mut posted);
        }
        for (at, ring) in [(5, 0), (1, 0), (0, 1), (STEP.into(), 0), (0, 2), (0xfff, 0x3ff)] {
            done(&rings, 3, at, ring);
            assert!(rings.received(&mut posted).is_err(), "buffer {at} of ring {ring}");
        }
        done(&rings, 3, 2, 0);
        assert!(matches!(rings.received(&mut posted), Ok(Some(_))));
        fill(&mut rings, &mut posted);
    }
}
