//! The ring that a packet socket shares with the kernel: blocks, each of them the kernel's or ours, with frames
//! in them (`Documentation/networking/packet_mmap.rst` of Linux, TPACKET_V3).

use std::sync::Arc;

use hugepages::{Buf, Lender, Loan, Monitor, Offload, Table, Window, Words};
use zerocopy::FromBytes;

use crate::batch::Batch;

/// Bytes in front of a frame that the kernel leaves to us: a VLAN tag goes there.
pub(super) const RESERVE: u32 = 16;
/// Bytes of the `virtio_net_hdr` in front of a frame.
pub(super) const HDR: u32 = 10;
/// `TP_STATUS_USER`: the block is ours.
const OURS: u32 = 1;
/// `TP_STATUS_VLAN_VALID` and `TP_STATUS_VLAN_TPID_VALID`: the kernel took a tag out of the frame.
const VLAN: u32 = 1 << 4;
const VLAN_TYPE: u32 = 1 << 6;
/// Words (32 bits) of a block's header: status, frames, and where the first is.
const STATUS: usize = 2;
const FRAMES: usize = 3;
const FIRST: usize = 4;
/// Bytes of `struct tpacket3_hdr`; behind it the sender's address (`struct sockaddr_ll`).
const HEADER: u32 = 48;
const PACKET_OUTGOING: u8 = 4;

/// `struct tpacket3_hdr`.
#[derive(Clone, Copy, FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
struct Header {
    next: u32,
    sec: u32,
    nsec: u32,
    captured: u32,
    len: u32,
    status: u32,
    mac: u16,
    net: u16,
    hash: u32,
    tag: u32,
    tag_type: u16,
    pad: u16,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Header>() == HEADER as usize);

/// Which block is next, and where we are in it.
pub(super) struct Ring {
    lender: Lender,
    words: Window<u32>,
    block: u32,
    /// Frames out of each block; the block goes back when there are none and it is read.
    out: Box<[u32]>,
    read: Box<[bool]>,
    at: u32,
    /// Frames left in the block, and the offset of the next; 0 left: a block is to be begun.
    left: u32,
    next: u32,
}

/// What became of a look.
pub(super) enum Got {
    Frame(u32),
    /// A frame that is nobody's.
    Nothing,
    /// It was cut off, or is no frame.
    Damaged,
    Empty,
}

impl Ring {
    pub(super) fn new(table: Arc<Table>, block: u32, blocks: u32) -> Ring {
        let whole = block as usize * blocks as usize;
        let words = table.window(0, whole / size_of::<u32>()).expect("the mapping has all blocks");
        let lender = Lender::new(table);
        let (out, read) = (vec![0; blocks as usize].into(), vec![false; blocks as usize].into());
        Ring { lender, words, block, out, read, at: 0, left: 0, next: 0 }
    }

    #[inline(always)]
    fn word(&self, block: u32, word: usize) -> usize {
        (block * self.block) as usize / size_of::<u32>() + word
    }

    /// Whether there is a frame.
    pub(super) fn any(&self) -> bool {
        self.left > 0 || self.is_ours(self.at)
    }

    /// Whether the kernel has handed over the block, and it is not one that we have read and not given back.
    #[inline(always)]
    fn is_ours(&self, block: u32) -> bool {
        // Pairs with the kernel's barrier before it sets the status: the block is filled.
        let status = self.words.acquire(self.word(block, STATUS));
        status & OURS != 0 && !self.read[block as usize]
    }

    /// Lends the next frame to the back of `out`, which has room.
    #[inline(always)]
    pub(super) fn take(&mut self, out: &mut Batch<Buf>) -> Got {
        if self.left == 0 {
            if !self.is_ours(self.at) {
                return Got::Empty;
            }
            self.left = self.words.get(self.word(self.at, FRAMES));
            self.next = self.words.get(self.word(self.at, FIRST));
            if self.left == 0 {
                self.leave();
                return Got::Nothing;
            }
        }
        let start = u64::from(self.at) * u64::from(self.block) + u64::from(self.next);
        self.left -= 1;
        let got = self.lend(start, out);
        match got {
            Some((next, got)) => {
                self.next = self.next.wrapping_add(next);
                // The last has no next; one before that must have.
                if self.left > 0 && next == 0 {
                    self.left = 0;
                }
                self.left_or_leave();
                got
            }
            None => {
                self.left = 0;
                self.leave();
                Got::Damaged
            }
        }
    }

    #[inline(always)]
    fn left_or_leave(&mut self) {
        if self.left == 0 {
            self.leave();
        }
    }

    /// The frame whose header is at `start`, lent if it is one: where the next is, and what it was.
    #[inline(always)]
    fn lend(&mut self, start: u64, out: &mut Batch<Buf>) -> Option<(u32, Got)> {
        let id = self.at as u16;
        let front = self.lender.lend_writable(start, HEADER + 12, id).ok()?;
        let (header, kind) = (front.peek::<Header>(0), front.peek::<u8>(HEADER + 10));
        self.lender.settle(front.finish(0));
        let (header, kind) = (header?, kind?);
        let (mac, len) = (u32::from(header.mac), header.captured);
        if kind == PACKET_OUTGOING {
            return Some((header.next, Got::Nothing));
        }
        if len < header.len || len < 14 || mac < HEADER + HDR + 4 {
            return Some((header.next, Got::Damaged));
        }
        let from = start + u64::from(mac) - u64::from(HDR);
        let mut buf = self.lender.lend_writable(from, HDR + len, id).ok()?;
        let mut bytes = [0; HDR as usize];
        buf.read(0, &mut bytes);
        buf.advance(HDR);
        if header.status & VLAN != 0 {
            buf = self.tagged(buf, start + u64::from(mac), &header)?;
        }
        buf.offload = Offload::read_from_bytes(&bytes).expect("10 bytes");
        if header.status & VLAN != 0 && buf.offload.csum_start > 0 {
            buf.offload.csum_start += 4;
            buf.offload.hdr_len += 4;
        }
        let len = buf.len();
        out.push(buf);
        self.out[self.at as usize] += 1;
        Some((header.next, Got::Frame(len)))
    }

    /// The frame at `at` with the tag that the kernel took out of it: the addresses move to the front.
    #[cold]
    fn tagged(&self, buf: Buf, at: u64, header: &Header) -> Option<Buf> {
        let addresses: [u8; 12] = buf.peek(0)?;
        let (len, id) = (buf.len(), buf.id());
        self.lender.settle(buf.finish(0));
        let mut buf = self.lender.lend_writable(at - 4, len + 4, id).ok()?;
        let kind = if header.status & VLAN_TYPE != 0 { header.tag_type } else { 0x8100 };
        let tag = [kind.to_be_bytes(), (header.tag as u16).to_be_bytes()];
        let stored = buf.poke(0, addresses) && buf.poke(12, tag);
        debug_assert!(stored, "there are 18 bytes, and it was lent to be written");
        Some(buf)
    }

    /// On to the next block.
    fn leave(&mut self) {
        let block = self.at;
        self.read[block as usize] = true;
        self.at = if block as usize + 1 == self.read.len() { 0 } else { block + 1 };
        self.give_back(block);
    }

    #[inline(always)]
    fn give_back(&mut self, block: u32) {
        if self.out[block as usize] == 0 && self.read[block as usize] {
            self.read[block as usize] = false;
            // Pairs with the kernel's reading of the status before it writes to the block.
            self.words.release(self.word(block, STATUS), 0);
        }
    }

    /// Takes receipts of its own from the front.
    #[inline(always)]
    pub(super) fn settle(&mut self, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == self.lender.owner()) {
            let (block, _) = self.lender.settle(loans.pop_front().expect("looked at"));
            self.out[usize::from(block)] -= 1;
            self.give_back(block.into());
        }
    }

    #[inline(always)]
    pub(super) fn lent(&self) -> u32 {
        self.lender.out()
    }

    /// Lets `monitor` watch whether the next block is handed over.
    pub(super) fn monitor(&self, monitor: &mut Monitor) -> bool {
        let at = u64::from(self.at) * u64::from(self.block) + 4 * STATUS as u64;
        let Ok(status) = self.lender.table().window::<u16>(at, 1) else { return false };
        status.monitor(0, 0, monitor);
        !self.any()
    }
}
