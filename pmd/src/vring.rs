//! A ring, seen from the device: lends chains, takes receipts, publishes used elements.
//!
//! [`Vring`] is what both layouts share: the table of what is in flight, order, faults. The layouts
//! ([`split`], [`packed`]) know where descriptors and used elements lie; [`access`] knows how their
//! memory is reached.

pub mod access;
pub mod driver;
pub mod notify;
pub mod packed;
pub mod split;

use std::sync::Arc;

use hugepages::{Buf, Lender, Loan, OutOfRange, Private, Table};

use crate::batch::Batch;
use crate::spec::virtio as v;
pub use access::{Access, Checked, Mapped};
pub use packed::Packed;
pub use split::Split;

/// Entries an indirect table may have beyond the size of its ring.
pub const MAX_INDIRECT: u32 = 1024;
/// Descriptors of one chain that are looked at, a descriptor that goes on in other regions once for each.
/// Heads can share a chain, so that every head of a burst may cost as much: a bound on what one driver
/// takes of its core.
pub const MAX_WALK: u32 = 1024;

/// What a driver did wrong. Retires its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    #[error("avail index {index} is more than the ring of {size} ahead of {used} used")]
    AvailJump { index: u16, used: u16, size: u16 },
    #[error("head or buffer id {0} is outside the ring")]
    HeadRange(u16),
    #[error("next descriptor {0} is outside its table")]
    NextRange(u16),
    #[error("descriptor chain of head {0} is longer than its table: a loop")]
    Loop(u16),
    #[error("indirect descriptor without the feature, nested, or with NEXT set")]
    Indirect,
    #[error("indirect table of {0} bytes: not a multiple of 16, empty, or too long")]
    IndirectLength(u32),
    #[error("{0}")]
    Memory(#[from] OutOfRange),
    #[error("chain of head {0} has more than 4 GiB of buffers")]
    TooLong(u16),
    #[error("chain of head {0} has a buffer of the wrong direction")]
    Direction(u16),
    #[error("head {0} was made available again while it is in flight")]
    Duplicate(u16),
}

/// Which way the buffers of a ring go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the driver: all readable (a network device's transmit queue).
    FromDriver,
    /// To the driver: all writable (its receive queue).
    ToDriver,
    /// Readable ones first, then writable ones (a control queue).
    Both,
}

/// Where a ring lies and by which rules it runs: all that a front-end says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries, 1 to [`v::MAX_RING`]; a power of two for split rings.
    pub size: u16,
    /// Guest address of the descriptor table (split) or ring (packed).
    pub desc: u64,
    /// Guest address of the available ring (split) or driver event area (packed).
    pub driver: u64,
    /// Guest address of the used ring (split) or device event area (packed).
    pub device: u64,
    /// Negotiated features, of which the ring features matter here.
    pub features: u64,
    /// Where to go on, in the form of [`Layout::base`].
    pub base: u32,
    /// Which way its buffers go.
    pub way: Way,
}

impl RingLayout {
    /// Whether the feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// What the walk through a chain needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    way: Way,
    indirect: bool,
    size: u16,
}

/// A chain that was popped: its buffers are at the back of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Head (split) or buffer id (packed).
    pub id: u16,
    /// Places it takes in the ring.
    pub descs: u16,
    /// Bytes of all its buffers.
    pub bytes: u32,
    /// The batch had no room for all of its buffers, or it has more than [`MAX_WALK`] descriptors.
    pub overflow: bool,
}

/// One of the two ring layouts, from the device's side.
pub trait Layout: Sized + Send {
    /// A place on the way through a run of simple chains: kept in registers.
    type Run;
    /// Opens a ring over `table`.
    ///
    /// # Errors
    /// When an area is not guest memory or not aligned, see [`OutOfRange`].
    fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange>;
    /// Takes the next available chain: its buffers go to the back of `out`, the last without `MORE`.
    ///
    /// # Errors
    /// The driver's fault. Buffers lent before it was found are at the back of `out`.
    fn pop(&mut self, mem: &Lender, rules: Rules, out: &mut Batch<Buf>) -> Result<Option<Chain>, Fault>;
    /// Where the next chains are, of which at most `most` are looked at.
    fn run(&self, most: usize) -> Self::Run;
    /// Address, length and id of the chain at `run`, if it is what nearly all are: one descriptor with
    /// just the flags `flags`. `None` at the end of the run and at anything else, which is for
    /// [`Layout::pop`].
    fn look(&self, run: &Self::Run, flags: u16) -> Option<(u64, u32, u16)>;
    /// Goes on to the next chain.
    fn step(&self, run: &mut Self::Run);
    /// Pops all chains before `run`; how many.
    fn take(&mut self, run: Self::Run) -> usize;
    /// Puts the chain that was popped last back: `descs` as it said.
    fn unpop(&mut self, descs: u16);
    /// Stages a used element; the driver cannot see it yet.
    fn push(&mut self, id: u16, descs: u16, written: u32);
    /// Makes all staged elements visible by one release store; `true`: the driver wants to be called.
    fn publish(&mut self) -> bool;
    /// Asks the driver for kicks, or to be quiet; `true`: more arrived meanwhile.
    fn arm(&mut self, on: bool) -> bool;
    /// Where it stands, as `GET_VRING_BASE` tells it: split: next available index; packed: available
    /// position and wrap counter in bits 0 to 15, used ones in bits 16 to 31.
    fn base(&self) -> u32;
}

/// What is in flight under one head.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Buffers out; 0: the head is home.
    left: u16,
    descs: u16,
    written: u32,
    /// Value of `Vring::staged` when it was last completed; [`FLYING`] from `pop` until then.
    staged: u64,
}

/// Later than anything published.
const FLYING: u64 = u64::MAX;

/// `IN_ORDER`: chains that are complete wait here until those popped before them are, too.
struct Order {
    heads: Private<[u16]>,
    ready: Private<[bool]>,
    first: usize,
    count: usize,
}

impl Order {
    #[inline(always)]
    fn add(&mut self, id: u16) {
        let mut at = self.first + self.count;
        if at >= self.heads.len() {
            at -= self.heads.len();
        }
        self.heads[at] = id;
        self.ready[usize::from(id)] = false;
        self.count += 1;
    }
}

/// A ring of one layout and everything it has lent.
pub struct Vring<L> {
    layout: L,
    lender: Lender,
    rules: Rules,
    slots: Private<[Slot]>,
    order: Option<Order>,
    /// Elements staged and published since it was opened.
    staged: u64,
    published: u64,
    fault: Option<Fault>,
    /// Neither a fault nor an order to keep: what is complete is staged at once.
    plain: bool,
}

impl<L: Layout> Vring<L> {
    /// Opens a ring that lends from `table`.
    ///
    /// # Errors
    /// When one of its areas is not guest memory or not aligned.
    pub fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        let size = usize::from(ring.size);
        let order = ring.has(v::F_IN_ORDER).then(|| Order {
            heads: Private::zeroed(size),
            ready: Private::zeroed(size),
            first: 0,
            count: 0,
        });
        let plain = order.is_none();
        let rules = Rules { way: ring.way, indirect: ring.has(v::F_INDIRECT_DESC), size: ring.size };
        Ok(Vring {
            layout: L::open(ring, table)?,
            lender: Lender::new(Arc::clone(table)),
            rules,
            slots: Private::from_fn(size, |_| Slot::default()),
            order,
            staged: 0,
            published: 0,
            fault: None,
            plain,
        })
    }

    /// Lends the next chain to the back of `out`, all of its buffers or none. `None`: nothing is
    /// available, `out` has no room for it, or the ring is retired (see [`Vring::fault`]).
    ///
    /// A chain without bytes is completed at once and has no buffers in `out`; so is one with more
    /// buffers than a batch holds ([`Chain::overflow`] says so). Of a ring to the driver only when `out`
    /// is empty, so that what is in `out` can be put back.
    #[inline(always)]
    pub fn pop(&mut self, out: &mut Batch<Buf>) -> Option<Chain> {
        if self.fault.is_some() || out.room() == 0 {
            return None;
        }
        let before = out.len();
        let chain = match self.layout.pop(&self.lender, self.rules, out) {
            Ok(Some(chain)) => chain,
            Ok(None) => return None,
            Err(fault) => return self.retire(fault, out, before),
        };
        let slot = &mut self.slots[usize::from(chain.id)];
        // Its buffers may all be home: with IN_ORDER it may still wait for its turn.
        if slot.staged > self.published {
            return self.retire(Fault::Duplicate(chain.id), out, before);
        }
        slot.staged = FLYING;
        slot.left = (out.len() - before) as u16;
        slot.descs = chain.descs;
        slot.written = 0;
        if slot.left == 1 && !chain.overflow && self.plain {
            return Some(chain);
        }
        self.popped_rarely(chain, out, before)
    }

    /// Lends up to `most` chains of one buffer each, of `least` (1 at the least) to `longest` bytes, to
    /// the back of `out`, as long as they have fewer than `weight` bytes together: how many, and their
    /// bytes. Stops at any other chain, and at the first that the driver made available after the last
    /// look: both are for [`Vring::pop`].
    #[inline(always)]
    pub fn pop_simple(
        &mut self,
        out: &mut Batch<Buf>,
        most: usize,
        (least, longest): (u32, u32),
        weight: u64,
    ) -> (usize, u64) {
        let flags = match self.rules.way {
            Way::FromDriver => 0,
            Way::ToDriver => v::DESC_F_WRITE,
            Way::Both => return (0, 0),
        };
        if self.fault.is_some() {
            return (0, 0);
        }
        let most = most.min(out.room());
        let mut bytes = 0u64;
        let mut run = self.layout.run(most);
        while let Some((addr, len, id)) = self.layout.look(&run, flags) {
            let Some(slot) = self.slots.get_mut(usize::from(id)) else { break };
            if slot.staged > self.published || len < least || len > longest || bytes >= weight {
                break;
            }
            let lent = if flags == 0 {
                self.lender.lend(addr, len, id)
            } else {
                self.lender.lend_writable(addr, len, id)
            };
            let Ok(buf) = lent else { break };
            if flags == 0 {
                buf.prefetch();
            } else {
                buf.prefetch_write();
            }
            out.push(buf);
            *slot = Slot { left: 1, descs: 1, written: 0, staged: FLYING };
            if let Some(order) = &mut self.order {
                order.add(id);
            }
            bytes += u64::from(len);
            self.layout.step(&mut run);
        }
        let n = self.layout.take(run);
        (n, bytes)
    }

    /// Finishes the first `n` buffers of `stash`, each all the buffers of its chain; as many bytes as each
    /// has are said to be written.
    #[inline(always)]
    pub fn finish_simple(&mut self, stash: &mut Batch<Buf>, n: usize) {
        if !self.plain {
            for _ in 0..n {
                let Some(buf) = stash.pop_front() else { break };
                let written = buf.len();
                self.settle(buf.finish(written));
            }
            return;
        }
        for buf in &stash.as_slice()[..n] {
            let slot = &mut self.slots[usize::from(buf.id())];
            self.staged += 1;
            (slot.left, slot.staged) = (0, self.staged);
            self.layout.push(buf.id(), slot.descs, buf.len());
        }
        self.lender.take_back(stash, n);
    }

    /// Takes its own receipts from the front of `loans`, up to the first that is another's.
    #[inline(always)]
    pub fn settle_front(&mut self, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == self.lender.owner()) {
            self.settle(loans.pop_front().expect("not empty"));
        }
    }

    /// Takes a receipt of its own. The chain whose last buffer it is becomes a staged used element.
    ///
    /// # Panics
    /// When the receipt is another lender's.
    #[inline(always)]
    pub fn settle(&mut self, loan: Loan) {
        let (id, written) = self.lender.settle(loan);
        let slot = &mut self.slots[usize::from(id)];
        slot.left -= 1;
        slot.written = slot.written.wrapping_add(written);
        if slot.left > 0 {
            return;
        }
        if !self.plain {
            return self.complete(id);
        }
        self.staged += 1;
        slot.staged = self.staged;
        self.layout.push(id, slot.descs, slot.written);
    }

    /// Makes what was staged visible, once; `true`: the driver wants to be called.
    #[inline(always)]
    pub fn publish(&mut self) -> bool {
        if self.staged == self.published || self.fault.is_some() {
            return false;
        }
        self.published = self.staged;
        self.layout.publish()
    }

    /// Puts back chains that were popped last and not used: all of `stash`, which holds their
    /// buffers as [`Vring::pop`] gave them.
    pub fn unpop(&mut self, stash: &mut Batch<Buf>) {
        while let Some(buf) = stash.pop_back() {
            let (id, _) = self.lender.settle(buf.finish(0));
            let slot = &mut self.slots[usize::from(id)];
            slot.left -= 1;
            if slot.left == 0 {
                slot.staged = 0;
                self.layout.unpop(slot.descs);
                if let Some(order) = &mut self.order {
                    order.count -= 1;
                }
            }
        }
    }

    /// Asks the driver for kicks, or to be quiet; `true`: more arrived meanwhile.
    pub fn arm(&mut self, on: bool) -> bool {
        self.fault.is_none() && self.layout.arm(on)
    }

    /// Buffers that are out.
    #[inline(always)]
    pub fn lent(&self) -> u32 {
        self.lender.out()
    }

    /// The number of its buffers' lender.
    #[inline(always)]
    pub fn owner(&self) -> std::num::NonZeroU16 {
        self.lender.owner()
    }

    /// Why it was retired.
    #[inline(always)]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Where it stands, see [`Layout::base`]. Complete only when nothing is lent or staged.
    pub fn base(&self) -> u32 {
        self.layout.base()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.rules.size
    }

    #[cold]
    fn retire(&mut self, fault: Fault, out: &mut Batch<Buf>, keep: usize) -> Option<Chain> {
        self.fault = Some(fault);
        self.plain = false;
        self.take_back(out, keep);
        None
    }

    fn take_back(&self, out: &mut Batch<Buf>, keep: usize) {
        while out.len() > keep {
            let buf = out.pop_back().expect("counted");
            self.lender.settle(buf.finish(0));
        }
    }

    fn popped_rarely(&mut self, mut chain: Chain, out: &mut Batch<Buf>, before: usize) -> Option<Chain> {
        if chain.overflow {
            self.take_back(out, before);
            self.slots[usize::from(chain.id)].left = 0;
        }
        let empty = self.slots[usize::from(chain.id)].left == 0;
        if before > 0 && (chain.overflow || (empty && self.rules.way == Way::ToDriver)) {
            // Next turn's batch may hold it, or nothing may have to be put back before it.
            self.slots[usize::from(chain.id)].staged = 0;
            self.layout.unpop(chain.descs);
            return None;
        }
        if let Some(order) = &mut self.order {
            order.add(chain.id);
        }
        if empty {
            chain.bytes = 0;
            self.complete(chain.id);
        }
        Some(chain)
    }

    fn complete(&mut self, id: u16) {
        if self.order.is_some() { self.complete_in_order(id) } else { self.stage(id) }
    }

    fn stage(&mut self, id: u16) {
        if self.fault.is_some() {
            return;
        }
        self.staged += 1;
        let slot = &mut self.slots[usize::from(id)];
        slot.staged = self.staged;
        self.layout.push(id, slot.descs, slot.written);
    }

    /// virtio 1.3 §2.7.9, §2.8.10: with `IN_ORDER`, used elements follow the order of availability.
    fn complete_in_order(&mut self, id: u16) {
        let order = self.order.as_mut().expect("asked for in order only");
        order.ready[usize::from(id)] = true;
        while let Some(order) = self.order.as_mut().filter(|o| o.count > 0) {
            let id = order.heads[order.first];
            if !order.ready[usize::from(id)] {
                break;
            }
            order.first = if order.first + 1 == order.heads.len() { 0 } else { order.first + 1 };
            order.count -= 1;
            self.stage(id);
        }
    }
}

/// The walk through one chain, shared by the layouts: checks direction and total, lends, counts.
pub(crate) struct Walk<'a> {
    mem: &'a Lender,
    rules: Rules,
    out: &'a mut Batch<Buf>,
    first: usize,
    id: u16,
    bytes: u64,
    walked: u32,
    writing: bool,
    overflow: bool,
}

impl<'a> Walk<'a> {
    #[inline(always)]
    fn new(mem: &'a Lender, rules: Rules, out: &'a mut Batch<Buf>, id: u16) -> Self {
        let first = out.len();
        Walk { mem, rules, out, first, id, bytes: 0, walked: 0, writing: false, overflow: false }
    }

    /// Lends the only descriptor of a chain, if it is as simple as that.
    #[inline(always)]
    fn single(self, addr: u64, len: u32, flags: u16, descs: u16) -> Result<Chain, Fault> {
        let write = flags & v::DESC_F_WRITE != 0;
        let fits = match self.rules.way {
            Way::FromDriver => !write,
            Way::ToDriver => write,
            Way::Both => true,
        };
        if fits && len > 0 {
            let lent = if write {
                self.mem.lend_writable(addr, len, self.id)
            } else {
                self.mem.lend(addr, len, self.id)
            };
            if let Ok(buf) = lent {
                self.out.push(buf);
                return Ok(Chain { id: self.id, descs, bytes: len, overflow: false });
            }
        }
        let mut walk = self;
        walk.add(addr, len, flags)?;
        walk.end(descs)
    }

    /// Lends one descriptor of a chain. Empty ones are passed over, whatever their address. `false`: it
    /// has been walked as far as any chain is.
    fn add(&mut self, mut addr: u64, mut len: u32, flags: u16) -> Result<bool, Fault> {
        let write = flags & v::DESC_F_WRITE != 0;
        let fits = match self.rules.way {
            Way::FromDriver => !write,
            Way::ToDriver => write,
            Way::Both => write || !self.writing,
        };
        if !fits {
            return Err(Fault::Direction(self.id));
        }
        self.writing |= write;
        self.bytes += u64::from(len);
        if self.bytes > u64::from(u32::MAX) {
            return Err(Fault::TooLong(self.id));
        }
        if !self.go_on() {
            return Ok(false);
        }
        // A buffer may go on from one region into the next: one piece for each.
        while len > 0 {
            let whole = OutOfRange { gpa: addr, len: u64::from(len) };
            let run = self.mem.table().contiguous(addr);
            if run == 0 {
                return Err(whole.into());
            }
            let piece = u64::from(len).min(run) as u32;
            if self.out.room() == 0 {
                self.overflow = true;
            } else {
                let lent = if write {
                    self.mem.lend_writable(addr, piece, self.id)
                } else {
                    self.mem.lend(addr, piece, self.id)
                };
                let mut buf = lent?;
                buf.set_more(true);
                self.out.push(buf);
            }
            len -= piece;
            addr = addr.checked_add(u64::from(piece)).ok_or(whole)?;
            if len > 0 && !self.go_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn go_on(&mut self) -> bool {
        self.walked += 1;
        self.overflow |= self.walked > MAX_WALK;
        self.walked <= MAX_WALK
    }

    /// Ends the chain: its last buffer loses `MORE`.
    fn end(self, descs: u16) -> Result<Chain, Fault> {
        if self.out.len() > self.first {
            let last = self.out.len() - 1;
            self.out.get_mut(last).expect("not empty").set_more(false);
        }
        Ok(Chain { id: self.id, descs, bytes: self.bytes as u32, overflow: self.overflow })
    }

    /// Bytes of an indirect table to its number of entries, by §2.7.5.3 and §2.8.7.
    fn indirect_entries(&self, len: u32, flags: u16) -> Result<u32, Fault> {
        if !self.rules.indirect || flags & v::DESC_F_NEXT != 0 {
            return Err(Fault::Indirect);
        }
        let entries = len / v::DESC_BYTES;
        let most = MAX_INDIRECT.max(u32::from(self.rules.size));
        if !len.is_multiple_of(v::DESC_BYTES) || entries == 0 || entries > most {
            return Err(Fault::IndirectLength(len));
        }
        Ok(entries)
    }

    /// Entry `i` of an indirect table at `table`: address, and the word beside it.
    fn indirect_entry(&self, table: u64, i: u32) -> Result<(u64, u64), Fault> {
        let at = table
            .checked_add(u64::from(i) * u64::from(v::DESC_BYTES))
            .ok_or(OutOfRange { gpa: table, len: u64::from(i) * 16 })?;
        let [addr, rest] = self.mem.peek::<[u64; 2]>(at)?;
        Ok((addr, rest))
    }
}

/// A ring of whichever layout and access its front-end and its memory ask for. Matched once per burst.
#[allow(missing_docs)]
pub enum AnyVring {
    Split(Vring<Split<Mapped>>),
    Packed(Vring<Packed<Mapped>>),
    SplitChecked(Vring<Split<Checked>>),
    PackedChecked(Vring<Packed<Checked>>),
}

/// Runs the same code on whichever ring it is.
#[macro_export]
macro_rules! with_ring {
    ($any:expr, $ring:ident => $body:expr) => {
        match $any {
            $crate::vring::AnyVring::Split($ring) => $body,
            $crate::vring::AnyVring::Packed($ring) => $body,
            $crate::vring::AnyVring::SplitChecked($ring) => $body,
            $crate::vring::AnyVring::PackedChecked($ring) => $body,
        }
    };
}

impl AnyVring {
    /// Opens a ring: mapped where each of its areas lies in one piece, checked where not.
    ///
    /// # Errors
    /// When some of it is not guest memory or not aligned.
    pub fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<AnyVring, OutOfRange> {
        if ring.has(v::F_RING_PACKED) {
            Vring::open(ring, table)
                .map(AnyVring::Packed)
                .or_else(|_| Vring::open(ring, table).map(AnyVring::PackedChecked))
        } else {
            Vring::open(ring, table)
                .map(AnyVring::Split)
                .or_else(|_| Vring::open(ring, table).map(AnyVring::SplitChecked))
        }
    }

    /// See [`Vring::lent`].
    pub fn lent(&self) -> u32 {
        with_ring!(self, ring => ring.lent())
    }

    /// See [`Vring::fault`].
    pub fn fault(&self) -> Option<Fault> {
        with_ring!(self, ring => ring.fault())
    }

    /// See [`Vring::base`].
    pub fn base(&self) -> u32 {
        with_ring!(self, ring => ring.base())
    }

    /// See [`Vring::owner`].
    pub fn owner(&self) -> std::num::NonZeroU16 {
        with_ring!(self, ring => ring.owner())
    }

    /// See [`Vring::arm`].
    pub fn arm(&mut self, on: bool) -> bool {
        with_ring!(self, ring => ring.arm(on))
    }

    /// See [`Vring::settle`].
    pub fn settle(&mut self, loan: Loan) {
        with_ring!(self, ring => ring.settle(loan));
    }

    /// See [`Vring::publish`].
    pub fn publish(&mut self) -> bool {
        with_ring!(self, ring => ring.publish())
    }

    /// See [`Vring::unpop`].
    pub fn unpop(&mut self, stash: &mut Batch<Buf>) {
        with_ring!(self, ring => ring.unpop(stash));
    }

    /// Whether its metadata is reached through mapped windows.
    pub fn mapped(&self) -> bool {
        matches!(self, AnyVring::Split(_) | AnyVring::Packed(_))
    }
}
