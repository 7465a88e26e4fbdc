//! Descriptor rings of Intel's gigabit and ten-gigabit controllers. Their receive descriptors agree but
//! for the error bits, their transmit descriptors in where the common bits are; what differs is a
//! [`Format`].

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use hugepages::{Buf, Offload, Window, Words};

use super::memory::Memory;
use super::slots::Slots;
use super::{Arrival, Broken, Fate, NicError, Regs, Rings, wait};
use crate::filter::Filter;
use crate::spec::net::{GSO_NONE, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM};

/// Rings are a multiple of 128 bytes long, and as aligned.
const ALIGN: u64 = 128;
/// Bytes of a descriptor.
const BYTES: usize = 16;
/// The longest frame that all let in, with a VLAN tag.
const LONGEST: u32 = 1518;

/// Bits of a receive descriptor that was written back, in its second word (82574 §7.1.5.2, 82576
/// §7.1.5.2, 82599 §7.1.6.2).
const RX_DONE: u64 = 1;
const RX_LAST: u64 = 1 << 1;
/// The TCP or UDP checksum was looked at.
const RX_L4: u64 = 1 << 4 | 1 << 5;
const RX_LENGTH: u32 = 32;

/// Bits of a transmit descriptor, in its second word (82574 §7.2.11, 82576 §7.2.2.3, 82599 §7.2.3.2).
const TX_LAST: u64 = 1 << 24;
const TX_CRC: u64 = 1 << 25;
const TX_REPORT: u64 = 1 << 27;
const TX_EXTENDED: u64 = 1 << 29;
const TX_DONE: u64 = 1 << 32;

/// What a family's descriptors say differently.
pub(crate) trait Format: Send + 'static {
    /// Most bytes of one transmit descriptor.
    const MAX_PIECE: u32;
    /// Bits of a damaged packet.
    const DAMAGED: u64;
    /// Bits of a wrong TCP or UDP checksum, or of none looked at.
    const UNSURE: u64;

    /// Whether the device does what is asked.
    fn completes(offload: &Offload) -> bool;
    /// The context descriptor of what is asked; `network` is where the IP header begins.
    fn context(offload: &Offload, network: u16) -> (u64, u64);
    /// Second word of a data descriptor of `len` bytes, of a packet of `total`.
    fn data(offload: &Offload, len: u32, total: u32) -> u64;
}

/// Where a family has its filters.
pub(crate) struct Filters {
    /// Its own address, and behind it further ones, two registers each.
    pub(crate) addresses: u32,
    /// How many in all.
    pub(crate) most: u32,
    /// Groups of stations: one bit for each hash of an address.
    pub(crate) groups: u32,
    /// Networks: one bit each.
    pub(crate) networks: u32,
}

impl Filters {
    const WORDS: u32 = 128;
    const VALID: u32 = 1 << 31;

    /// The device's own address.
    pub(crate) fn mac(&self, regs: &Regs) -> [u8; 6] {
        let [a, b, c, d] = regs.get(self.addresses).to_le_bytes();
        let [e, f, ..] = regs.get(self.addresses + 4).to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Listens to an address; number 0 is its own.
    pub(crate) fn listen(&self, regs: &Regs, number: u32, [a, b, c, d, e, f]: [u8; 6]) {
        regs.set(self.addresses + 8 * number, u32::from_le_bytes([a, b, c, d]));
        regs.set(self.addresses + 8 * number + 4, u32::from_le_bytes([e, f, 0, 0]) | Filters::VALID);
    }

    /// Whether there is room for all that a filter names.
    pub(crate) fn check(&self, filter: &Filter) -> Result<(), NicError> {
        if filter.unicast.len() < self.most as usize {
            return Ok(());
        }
        let what =
            format!("the device has room for {} further addresses; use promiscuous mode", self.most - 1);
        Err(NicError::Device(what.into()))
    }

    /// Sets all but the bits that are elsewhere.
    pub(crate) fn set(&self, regs: &Regs, filter: &Filter) {
        for number in 1..self.most {
            match filter.unicast.get(number as usize - 1) {
                Some(mac) => self.listen(regs, number, *mac),
                None => regs.set(self.addresses + 8 * number + 4, 0),
            }
        }
        // Bits 36 to 47 of an address, counted as it is sent: 12 bits of its last two bytes.
        let hash = |mac: &[u8; 6]| (u16::from_le_bytes([mac[4], mac[5]]) >> 4).into();
        let groups = filter.multicast.iter().map(hash);
        bits(regs, self.groups, groups);
        bits(regs, self.networks, filter.vlans.iter().flatten().map(|vlan| u32::from(*vlan) & 0xfff));
    }
}

/// The bits of those modes that are to be on, or of those that are not.
pub(crate) fn mask(modes: &[(bool, u32)], on: bool) -> u32 {
    modes.iter().filter(|mode| mode.0 == on).fold(0, |bits, mode| bits | mode.1)
}

/// Sets these bits of a table of 4096, and no others.
fn bits(regs: &Regs, table: u32, set: impl Iterator<Item = u32>) {
    let mut words = [0u32; Filters::WORDS as usize];
    set.for_each(|bit| words[bit as usize / 32] |= 1 << (bit % 32));
    words.iter().zip(0..).for_each(|(word, i)| regs.set(table + 4 * i, *word));
}

/// What a family's counters were at resets, and how far they have come since. They are cleared as they are
/// read; of a pair the lower one is read first.
pub(crate) struct Totals(Vec<u64>);

impl Totals {
    pub(crate) fn of(counters: &[(&str, u32, bool)]) -> Totals {
        Totals(vec![0; counters.len()])
    }

    /// Name, register, and whether it goes on in the next one, of which the bits `high` count.
    pub(crate) fn read(
        &mut self,
        regs: &Regs,
        counters: &[(&'static str, u32, bool)],
        high: u32,
    ) -> Vec<(&'static str, u64)> {
        for (total, (_, at, wide)) in self.0.iter_mut().zip(counters) {
            let low = regs.get(*at);
            let high = if *wide { regs.get(*at + 4) & high } else { 0 };
            // All ones: the device is gone.
            if low != u32::MAX {
                *total += u64::from(low) | u64::from(high) << 32;
            }
        }
        counters.iter().zip(&self.0).map(|((name, ..), total)| (*name, *total)).collect()
    }
}

/// Device control and status, and the bits that all have in common (82574 §10.2.2, 82576 §8.2, 82599 §8.2.3.1).
pub(super) const CTRL: u32 = 0;
const STATUS: u32 = 8;
const CTRL_GIO_MASTER_DISABLE: u32 = 1 << 2;
const STATUS_GIO_MASTER: u32 = 1 << 19;
/// Patience with requests that are on the bus (82574 §3.1.3.10), and with a reset.
const PATIENCE: Duration = Duration::from_millis(100);

/// Resets a device that has been told to receive and send no more: waits for what is on the bus, sets `bits`,
/// gives it `takes`, and waits until it has cleared them (82574 §4.6.1, 82576 §4.3, 82599 §4.6.3).
pub(crate) fn reset(regs: &Regs, bits: u32, takes: Duration) -> Result<(), NicError> {
    regs.change(CTRL, CTRL_GIO_MASTER_DISABLE, 0);
    // One that has requests out for good is reset all the same.
    wait(PATIENCE, || regs.get(STATUS) & STATUS_GIO_MASTER == 0);
    regs.change(CTRL, bits, 0);
    std::thread::sleep(takes);
    if !wait(PATIENCE, || regs.get(CTRL) & bits == 0) {
        return Err(NicError::Late("leave reset", PATIENCE.as_millis() as u64));
    }
    Ok(())
}

/// Where a ring is, for the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Its address.
    pub(crate) at: u64,
    /// Its length in bytes.
    pub(crate) bytes: u32,
}

/// Packets at most that are reported as sent together: a report costs the device a write of its own.
const GROUP: u16 = 32;

/// Rings of one queue pair.
pub(crate) struct IntelRings<F> {
    regs: Regs,
    rx: Receive,
    tx: Transmit,
    format: PhantomData<F>,
    /// All rings, for a model of a device.
    #[cfg(any(test, fuzzing))]
    pub(crate) memory: std::sync::Arc<hugepages::Table>,
}

struct Receive {
    place: Place,
    /// Two words a descriptor.
    ring: Window<u64>,
    size: u16,
    /// The next to be filled by the device, and by us.
    next: u16,
    tail: u16,
    /// Register that shows the tail to the device.
    door: u32,
    /// Bytes that it may write to any buffer.
    writes: u32,
}

struct Transmit {
    place: Place,
    ring: Window<u64>,
    size: u16,
    /// The next to be written, and descriptors that are free.
    tail: u16,
    free: u16,
    door: u32,
    /// Last descriptor of each packet the device has, and how many it takes.
    out: VecDeque<(u16, u16)>,
    /// Of each group of packets that the device reports together: its last descriptor, and how many.
    groups: VecDeque<(u16, u16)>,
    /// Packets since the last group, and those at the front of `out` that are reported.
    open: u16,
    reported: u16,
    /// What the last context descriptor said.
    context: (u64, u64),
}

impl<F: Format> IntelRings<F> {
    /// `queues` pairs of about `rx` and `tx` descriptors; `doors` names the tail registers of each.
    pub(crate) fn make(
        regs: &Regs,
        setup: &super::Setup,
        doors: impl Fn(u16) -> (u32, u32),
    ) -> Result<Vec<IntelRings<F>>, NicError> {
        // 8 descriptors make 128 bytes.
        let even = |n: u16| n.clamp(8, 4096).next_multiple_of(8);
        let (rx, tx) = (even(setup.rx_size), even(setup.tx_size));
        let bytes = BYTES * (usize::from(rx) + usize::from(tx)) + 2 * ALIGN as usize;
        let mut memory = Memory::new(bytes * usize::from(setup.queues), setup.backing)?;
        let mut ring = |n: u16| {
            let bytes = BYTES * usize::from(n);
            let at = memory.take(bytes, ALIGN);
            (Place { at, bytes: bytes as u32 }, memory.words(at, 2 * usize::from(n)))
        };
        // Longer frames, with their check sequence, are not let in.
        let writes = setup.room.min(setup.max_frame.max(LONGEST) + 4);
        let pair = |queue| {
            let (rx_door, tx_door) = doors(queue);
            let (place, words) = ring(rx);
            let receive = Receive { place, ring: words, size: rx, next: 0, tail: 0, door: rx_door, writes };
            let (place, words) = ring(tx);
            let transmit = Transmit {
                place,
                ring: words,
                size: tx,
                tail: 0,
                free: tx - 1,
                door: tx_door,
                out: VecDeque::with_capacity(tx.into()),
                groups: VecDeque::with_capacity(tx.into()),
                open: 0,
                reported: 0,
                context: (0, 0),
            };
            (receive, transmit)
        };
        let pairs: Vec<_> = (0..setup.queues).map(pair).collect();
        let rings = |(rx, tx)| IntelRings {
            regs: regs.clone(),
            rx,
            tx,
            format: PhantomData,
            #[cfg(any(test, fuzzing))]
            memory: memory.table().clone(),
        };
        Ok(pairs.into_iter().map(rings).collect())
    }

    /// Where the receive and the transmit ring are.
    pub(crate) fn places(&self) -> (Place, Place) {
        (self.rx.place, self.tx.place)
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

    /// Has the device report when it has sent the last packet that was added, and all before it.
    #[inline(always)]
    fn report(&mut self) {
        if self.open == 0 {
            return;
        }
        let &(last, _) = self.out.back().expect("counted");
        let second = 2 * usize::from(last) + 1;
        self.ring.set(second, self.ring.get(second) | TX_REPORT);
        self.groups.push_back((last, self.open));
        self.open = 0;
    }
}

/// Whether something is left to be done to the packet.
#[inline(always)]
fn asks(offload: &Offload) -> bool {
    offload.flags & HDR_F_NEEDS_CSUM != 0 || offload.gso_type != GSO_NONE
}

/// Where the IP header of a frame begins: behind one VLAN tag, if it has one.
fn network(packet: &[Buf]) -> u16 {
    const TAGGED: [u8; 2] = [0x81, 0x00];
    if packet[0].peek::<[u8; 2]>(12) == Some(TAGGED) { 18 } else { 14 }
}

impl<F: Format> Rings for IntelRings<F> {
    /// What fits the smallest ring with its context.
    const MOST: usize = 6;

    fn completes(&self, offload: &Offload) -> bool {
        F::completes(offload)
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
        let asks = asks(&offload);
        let (mut needed, mut total) = (u32::from(asks), 0);
        for buf in packet {
            needed += if buf.len() <= F::MAX_PIECE { 1 } else { buf.len().div_ceil(F::MAX_PIECE) };
            total += buf.len();
        }
        if needed > u32::from(tx.free) {
            return Fate::Full;
        }
        let before = tx.free;
        if asks {
            let context = F::context(&offload, network(packet));
            if tx.context != context || offload.gso_type != GSO_NONE {
                tx.write(context.0, context.1 | TX_EXTENDED);
                tx.context = context;
            }
        }
        let mut last = 0;
        for (i, buf) in packet.iter().enumerate() {
            let (mut at, mut left) = (buf.iova(), buf.len());
            loop {
                let len = left.min(F::MAX_PIECE);
                left -= len;
                let end = left == 0 && i + 1 == packet.len();
                let end = if end { TX_LAST } else { 0 };
                last = tx.write(at, F::data(&offload, len, total) | TX_CRC | TX_EXTENDED | end);
                at += u64::from(len);
                if left == 0 {
                    break;
                }
            }
        }
        tx.out.push_back((last, before - tx.free));
        tx.open += 1;
        if tx.open == GROUP {
            tx.report();
        }
        Fate::Taken(last)
    }

    #[inline]
    fn show_sent(&mut self) {
        self.tx.report();
        // Descriptors and packets are in memory before the device is told.
        fence(Ordering::Release);
        self.regs.set(self.tx.door, self.tx.tail.into());
    }

    #[inline]
    fn sent(&mut self) -> Result<Option<u16>, Broken> {
        let tx = &mut self.tx;
        if tx.reported == 0 {
            let Some(&(last, packets)) = tx.groups.front() else { return Ok(None) };
            // Pairs with the device's write of the descriptor, after it has read the packets.
            if tx.ring.acquire(2 * usize::from(last) + 1) & TX_DONE == 0 {
                return Ok(None);
            }
            tx.groups.pop_front();
            tx.reported = packets;
        }
        let (last, taken) = tx.out.pop_front().expect("as many as are reported");
        tx.reported -= 1;
        tx.free += taken;
        Ok(Some(last))
    }

    fn rx_size(&self) -> u16 {
        // Head and tail alike mean an empty ring.
        self.rx.size - 1
    }

    fn writes(&self) -> u32 {
        self.rx.writes
    }

    #[inline]
    fn post(&mut self, empty: &Buf) -> u16 {
        let rx = &mut self.rx;
        let at = rx.tail;
        // The second word is the address of a header buffer, of which there is none; not done yet.
        rx.ring.set(2 * usize::from(at) + 1, 0);
        rx.ring.set(2 * usize::from(at), empty.iova());
        rx.tail = if at + 1 == rx.size { 0 } else { at + 1 };
        at
    }

    #[inline]
    fn show_posted(&mut self) {
        fence(Ordering::Release);
        self.regs.set(self.rx.door, self.rx.tail.into());
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
        if word & F::UNSURE == 0 && word & RX_L4 != 0 {
            buf.offload.flags = HDR_F_DATA_VALID;
        }
        let damaged = last && word & F::DAMAGED != 0;
        Ok(Some(if damaged { Arrival::Damaged(buf) } else { Arrival::Piece(buf) }))
    }
}

/// Advanced descriptors: 82576 §7.2.2, 82599 §7.2.3. Contexts and data agree but for one bit.
pub(crate) struct Advanced;

impl Advanced {
    const CONTEXT: u64 = 2 << 20;
    const DATA: u64 = 3 << 20;
    const TCP: u64 = 1 << 11;
    const L4_CHECKSUM: u64 = 1 << 41;
    const PAYLOAD: u32 = 46;
    /// Where a TCP and a UDP header have their checksum.
    const TCP_FIELD: u16 = 16;
    const UDP_FIELD: u16 = 6;

    pub(crate) fn completes(offload: &Offload) -> bool {
        let known = [Advanced::TCP_FIELD, Advanced::UDP_FIELD].contains(&offload.csum_offset);
        offload.gso_type == GSO_NONE && known && (18..=14 + 511).contains(&offload.csum_start)
    }

    pub(crate) fn context(offload: &Offload, network: u16) -> (u64, u64) {
        let network = network.min(offload.csum_start);
        let ip = u64::from(offload.csum_start - network);
        let l4 = if offload.csum_offset == Advanced::TCP_FIELD { Advanced::TCP } else { 0 };
        (ip | u64::from(network) << 9, Advanced::CONTEXT | l4)
    }

    pub(crate) fn data(offload: &Offload, len: u32, total: u32) -> u64 {
        let sum = if asks(offload) { Advanced::L4_CHECKSUM } else { 0 };
        u64::from(len) | Advanced::DATA | sum | u64::from(total) << Advanced::PAYLOAD
    }
}
