//! Descriptors of the 82574: extended ones for receive (§7.1.5), context and data ones for transmit
//! (§7.2.10).

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use hugepages::{Buf, Offload, Window, Words};

use super::registers as r;
use super::{ALIGN, Memory};
use crate::nic::slots::Slots;
use crate::nic::{Arrival, Broken, Fate, Regs, Rings};
use crate::spec::net::{GSO_NONE, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM};

/// Bytes of one data descriptor; the field has room for more, which the chip's buffer has not (§7.2.1).
const MAX_PIECE: u32 = 8192;

/// §7.1.5.2: bits of a receive descriptor that was written back, in its second word.
const RX_DONE: u64 = 1;
const RX_LAST: u64 = 1 << 1;
/// Checksums were not looked at.
const RX_UNCHECKED: u64 = 1 << 2;
/// The TCP or UDP checksum was.
const RX_L4: u64 = 1 << 4 | 1 << 5;
/// RXE, CXE, SEQ, SE, CE.
const RX_DAMAGED: u64 = (1 << 31) | (1 << 28) | (1 << 26) | (1 << 25) | (1 << 24);
const RX_L4_WRONG: u64 = 1 << 29;
const RX_LENGTH: u32 = 32;

/// §7.2.10, §7.2.11: bits of a transmit descriptor, in its second word.
const TX_DATA: u64 = 1 << 20;
const TX_LAST: u64 = 1 << 24;
const TX_CRC: u64 = 1 << 25;
const TX_REPORT: u64 = 1 << 27;
const TX_EXTENDED: u64 = 1 << 29;
const TX_DONE: u64 = 1 << 32;
const TX_L4_CHECKSUM: u64 = 1 << 41;

/// The one queue pair.
pub(crate) struct E1000eRings {
    regs: Regs,
    rx: Receive,
    tx: Transmit,
}

struct Receive {
    at: u64,
    /// Two words a descriptor.
    ring: Window<u64>,
    size: u16,
    /// The next to be filled by the device, and by us.
    next: u16,
    tail: u16,
}

struct Transmit {
    at: u64,
    ring: Window<u64>,
    size: u16,
    /// The next to be written, and descriptors that are free.
    tail: u16,
    free: u16,
    /// Last descriptor of each packet the device has, and how many it takes.
    out: VecDeque<(u16, u16)>,
    /// What the last context descriptor said.
    context: (u16, u16),
}

impl E1000eRings {
    pub(super) fn new(regs: Regs, mut memory: Memory, rx: u16, tx: u16) -> E1000eRings {
        let (rx_at, tx_at) =
            (memory.take(16 * usize::from(rx), ALIGN), memory.take(16 * usize::from(tx), ALIGN));
        let words = |at, n: u16| memory.words(at, 2 * usize::from(n));
        let receive = Receive { at: rx_at, ring: words(rx_at, rx), size: rx, next: 0, tail: 0 };
        let transmit = Transmit {
            at: tx_at,
            ring: words(tx_at, tx),
            size: tx,
            tail: 0,
            free: tx - 1,
            out: VecDeque::with_capacity(tx.into()),
            context: (0, 0),
        };
        E1000eRings { regs, rx: receive, tx: transmit }
    }

    /// Tells the device where the receive ring is.
    pub(super) fn open_receive(&self) {
        let Receive { at, size, .. } = self.rx;
        self.regs.set(r::RDBAL, at as u32);
        self.regs.set(r::RDBAH, (at >> 32) as u32);
        self.regs.set(r::RDLEN, u32::from(size) * 16);
        self.regs.set(r::RDH, 0);
        self.regs.set(r::RDT, 0);
        self.regs.set(r::RDTR, 0);
        // Prefetch 8 when the host has 4; write back each.
        self.regs.set(r::RXDCTL, r::DCTL_DESCRIPTORS | 1 << 16 | 4 << 8 | 8);
    }

    /// The same of the transmit ring.
    pub(super) fn open_transmit(&self) {
        let Transmit { at, size, .. } = self.tx;
        self.regs.set(r::TDBAL, at as u32);
        self.regs.set(r::TDBAH, (at >> 32) as u32);
        self.regs.set(r::TDLEN, u32::from(size) * 16);
        self.regs.set(r::TDH, 0);
        self.regs.set(r::TDT, 0);
        self.regs.set(r::TIDV, 0);
        self.regs.set(r::TXDCTL, r::DCTL_DESCRIPTORS | r::TXDCTL_ONE | 1 << 16 | 1 << 8 | 31);
    }
}

impl Transmit {
    /// Writes one descriptor; its place.
    #[inline(always)]
    fn write(&mut self, first: u64, second: u64) -> u16 {
        let at = self.tail;
        self.ring.set(2 * usize::from(at), first);
        self.ring.set(2 * usize::from(at) + 1, second);
        self.tail = if at + 1 == self.size { 0 } else { at + 1 };
        self.free -= 1;
        at
    }
}

/// Descriptors of a buffer.
#[inline(always)]
fn pieces(buf: &Buf) -> u16 {
    if buf.len() <= MAX_PIECE { 1 } else { buf.len().div_ceil(MAX_PIECE) as u16 }
}

impl Rings for E1000eRings {
    /// What fits the smallest ring with its context.
    const MOST: usize = 6;

    fn completes(&self, offload: &Offload) -> bool {
        let field = u32::from(offload.csum_start) + u32::from(offload.csum_offset);
        offload.gso_type == GSO_NONE && offload.flags & HDR_F_NEEDS_CSUM != 0 && field <= 255
    }

    fn tx_size(&self) -> u16 {
        self.tx.size
    }

    fn free(&self) -> usize {
        self.tx.free.into()
    }

    #[inline]
    fn send(&mut self, packet: &[Buf]) -> Fate {
        let tx = &mut self.tx;
        let offload = packet[0].offload;
        let checksum = offload.flags & HDR_F_NEEDS_CSUM != 0;
        let needed = u16::from(checksum) + packet.iter().map(pieces).sum::<u16>();
        if needed > tx.free {
            return Fate::Full;
        }
        let before = tx.free;
        let mut options = 0;
        if checksum {
            let context = (offload.csum_start, offload.csum_start + offload.csum_offset);
            if tx.context != context {
                // TUCSS, TUCSO; TUCSE 0: to the end. The IP fields are not used.
                let (start, field) = (u64::from(context.0), u64::from(context.1));
                tx.write(start << 32 | field << 40, TX_EXTENDED);
                tx.context = context;
            }
            options = TX_L4_CHECKSUM;
        }
        let mut last = 0;
        for (i, buf) in packet.iter().enumerate() {
            let (mut at, mut left) = (buf.iova(), buf.len());
            loop {
                let len = left.min(MAX_PIECE);
                left -= len;
                let end = left == 0 && i + 1 == packet.len();
                let end = if end { TX_LAST | TX_REPORT } else { 0 };
                last = tx.write(at, u64::from(len) | TX_DATA | TX_CRC | TX_EXTENDED | options | end);
                at += u64::from(len);
                if left == 0 {
                    break;
                }
            }
        }
        tx.out.push_back((last, before - tx.free));
        Fate::Taken(last)
    }

    #[inline]
    fn show_sent(&mut self) {
        // Descriptors and packets are in memory before the device is told.
        fence(Ordering::Release);
        self.regs.set(r::TDT, self.tx.tail.into());
    }

    #[inline]
    fn sent(&mut self) -> Result<Option<u16>, Broken> {
        let tx = &mut self.tx;
        let Some(&(last, taken)) = tx.out.front() else { return Ok(None) };
        // Pairs with the device's write of the descriptor, after it has read the packet.
        if tx.ring.acquire(2 * usize::from(last) + 1) & TX_DONE == 0 {
            return Ok(None);
        }
        tx.out.pop_front();
        tx.free += taken;
        Ok(Some(last))
    }

    fn rx_size(&self) -> u16 {
        // Head and tail alike mean an empty ring.
        self.rx.size - 1
    }

    #[inline]
    fn post(&mut self, empty: &Buf) -> u16 {
        let rx = &mut self.rx;
        let at = rx.tail;
        rx.ring.set(2 * usize::from(at) + 1, 0);
        rx.ring.set(2 * usize::from(at), empty.iova());
        rx.tail = if at + 1 == rx.size { 0 } else { at + 1 };
        at
    }

    #[inline]
    fn show_posted(&mut self) {
        fence(Ordering::Release);
        self.regs.set(r::RDT, self.rx.tail.into());
    }

    #[inline]
    fn received(&mut self, posted: &mut Slots) -> Result<Option<Arrival>, Broken> {
        let rx = &mut self.rx;
        // Pairs with the device's write of the descriptor, after that of the packet.
        let word = rx.ring.acquire(2 * usize::from(rx.next) + 1);
        if word & RX_DONE == 0 {
            return Ok(None);
        }
        let Some(mut buf) = posted.take(rx.next) else { return Ok(None) };
        rx.next = if rx.next + 1 == rx.size { 0 } else { rx.next + 1 };
        let last = word & RX_LAST != 0;
        buf.truncate((word >> RX_LENGTH & 0xffff) as u32);
        buf.set_more(!last);
        if word & (RX_UNCHECKED | RX_L4_WRONG) == 0 && word & RX_L4 != 0 {
            buf.offload.flags = HDR_F_DATA_VALID;
        }
        let damaged = last && word & RX_DAMAGED != 0;
        Ok(Some(if damaged { Arrival::Damaged(buf) } else { Arrival::Piece(buf) }))
    }
}
