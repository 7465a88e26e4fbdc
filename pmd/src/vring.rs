//! A ring, seen from the device: lends chains, takes receipts, publishes used elements.
//!
//! [`Vring`] is what both layouts share. The layouts ([`split`], [`packed`]) know where descriptors and
//! used elements lie; [`access`] knows how their memory is reached; `walk` goes through a chain;
//! `ledger` keeps what is out under each head, and order.

pub mod access;
pub mod driver;
mod fill;
pub mod iotlb;
mod ledger;
pub mod log;
pub mod notify;
pub mod packed;
mod place;
pub mod record;
pub mod split;
mod track;
mod walk;

use std::ops::Range;
use std::sync::Arc;

use hugepages::{Buf, Lender, Loan, Monitor, OutOfRange, Private, Table};

use crate::batch::Batch;
use crate::spec::virtio as v;
pub use access::{Access, Checked, Mapped};
pub use fill::Rooms;
use iotlb::Iommu;
use ledger::Ledger;
use log::Written;
pub use packed::Packed;
pub use split::Split;
use track::Track;
pub use walk::Memory;

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

    /// virtio 1.3 §2.7.9, §2.8.9: in order, one used element may stand for a batch. Bytes written to all
    /// but the last are not told, so that only rings to which nothing is written do it.
    fn batches(&self) -> bool {
        self.has(v::F_IN_ORDER) && self.way == Way::FromDriver
    }
}

/// What the walk through a chain needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    way: Way,
    indirect: bool,
    size: u16,
    /// One used element may stand for a batch, see [`RingLayout::batches`].
    batches: bool,
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

/// An available chain of one descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Single {
    /// Guest address of its buffer.
    pub addr: u64,
    /// Bytes of it.
    pub len: u32,
    /// Head or buffer id.
    pub id: u16,
}

/// One of the two ring layouts, from the device's side.
pub trait Layout: Sized + Send {
    /// Opens a ring over `table`.
    ///
    /// # Errors
    /// When an area is not guest memory or not aligned, see [`OutOfRange`].
    fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange>;
    /// Whether there is anything to pop: a chain or a fault.
    fn ready(&mut self) -> bool;
    /// Takes the next available chain: its buffers go to the back of `out`, the last without `MORE`.
    ///
    /// # Errors
    /// The driver's fault. Buffers lent before it was found are at the back of `out`.
    fn pop<M: Memory>(&mut self, mem: &M, rules: Rules, out: &mut Batch<Buf>)
    -> Result<Option<Chain>, Fault>;
    /// Looks ahead at what nearly all chains are: one descriptor with just the flags `flags`. How many
    /// of those that come next are in `out`, each with a head that is one; what comes after them is for
    /// another look or for [`Layout::pop`].
    fn look(&self, flags: u16, out: &mut [Single]) -> usize;
    /// Pops the first `n` of what was looked at.
    fn take(&mut self, n: usize);
    /// Puts the chain that was popped last back: `descs` as it said.
    fn unpop(&mut self, descs: u16);
    /// A used element as [`Layout::push`] takes it.
    fn used(id: u16, descs: u16, written: u32) -> u64;
    /// Stages used elements; the driver cannot see them yet.
    fn push(&mut self, used: &[u64]);
    /// Whether any element is staged.
    fn staged(&self) -> bool;
    /// Stages one element for chains of an in-order ring that nothing was written to.
    fn push_batch(&mut self, used: &[u64]);
    /// Makes all staged elements visible by one release store.
    fn publish(&mut self);
    /// Whether the driver wants to be called for what was published since this was last asked.
    fn wants_call(&mut self) -> bool;
    /// Asks the driver for kicks, or to be quiet; `true`: more arrived meanwhile.
    fn arm(&mut self, on: bool) -> bool;
    /// What the driver sees: split: the used index; packed: 1 if the descriptor at this place, with this wrap
    /// counter, is used.
    fn seen(&self, at: u16) -> u16;
    /// Where the ring stands, by what is in it; `None`: that cannot be told.
    fn place(&self) -> Option<u16>;
    /// Goes on with used elements there, and with chains of so many places, from there on, in flight.
    fn resume(&mut self, used: u16, places: u16);
    /// Pops a chain again that is in flight: by its head (split), or as its descriptors were (packed).
    ///
    /// # Errors
    /// The driver's fault, as of [`Layout::pop`].
    fn again<M: Memory>(
        &mut self,
        mem: &M,
        rules: Rules,
        out: &mut Batch<Buf>,
        head: u16,
        descriptors: &[(u64, u64)],
    ) -> Result<Chain, Fault>;
    /// The last `descs` descriptors that were popped, of a layout in which they do not stay.
    fn popped(&self, descs: u16) -> Vec<(u64, u64)>;
    /// Where the staged elements end, as [`Layout::seen`] and [`Layout::resume`] have it.
    fn used_end(&self) -> u16;
    /// Where the next element is pushed to.
    fn element(&self) -> Written;
    /// What [`Layout::publish`] writes besides elements.
    fn index(&self) -> Option<Written>;
    /// What [`Layout::arm`] writes.
    fn event(&self, on: bool) -> Option<Written>;
    /// Lets `monitor` watch the word that changes when the next chain becomes available; `false`: one
    /// is already.
    fn monitor(&self, monitor: &mut Monitor) -> bool;
    /// Where it stands, as `GET_VRING_BASE` tells it: split: next available index; packed: available
    /// position and wrap counter in bits 0 to 15, used ones in bits 16 to 31.
    fn base(&self) -> u32;
}

/// Chains that are looked at together.
const RUN: usize = 64;

/// A ring of one layout and everything it has lent.
pub struct Vring<L> {
    layout: L,
    lender: Lender,
    rules: Rules,
    ledger: Ledger,
    singles: Private<[Single; RUN]>,
    /// Those that were looked at and are not popped: the next ones.
    ahead: Range<usize>,
    used: Private<[u64; RUN]>,
    fault: Option<Fault>,
    /// Nothing is to be done for single chains but what every ring does: runs of them take short cuts.
    plain: bool,
    track: Option<Box<Track>>,
    /// Its addresses are those of the guest's IOMMU.
    iommu: Option<Box<Iommu>>,
    place: RingLayout,
}

impl<L: Layout> Vring<L> {
    /// Opens a ring that lends from `table`.
    ///
    /// # Errors
    /// When one of its areas is not guest memory or not aligned.
    pub fn open(ring: &RingLayout, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        Vring::over(ring, table, table)
    }

    /// Opens a ring whose areas are in `areas` and that lends from `table`.
    fn over(ring: &RingLayout, areas: &Arc<Table>, table: &Arc<Table>) -> Result<Self, OutOfRange> {
        let rules = Rules {
            way: ring.way,
            indirect: ring.has(v::F_INDIRECT_DESC),
            size: ring.size,
            batches: ring.batches(),
        };
        Ok(Vring {
            layout: L::open(ring, areas)?,
            lender: Lender::new(Arc::clone(table)),
            rules,
            ledger: Ledger::new(ring.size, ring.has(v::F_IN_ORDER)),
            singles: Private::new([Single::default(); RUN]),
            ahead: 0..0,
            used: Private::new([0; RUN]),
            fault: None,
            plain: true,
            track: None,
            iommu: None,
            place: *ring,
        })
    }

    /// After a change of what decides between short cuts and the long way.
    fn choose_way(&mut self) {
        self.track = self.track.take().filter(|track| !track.is_idle());
        self.plain = self.fault.is_none() && self.track.is_none() && self.iommu.is_none();
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
        if !self.plain && self.iommu.is_some() {
            return self.pop_translated(out);
        }
        if !self.plain
            && let Some((again, descriptors)) = self.track.as_ref().and_then(|track| track.again())
        {
            return self.pop_again(out, again.at, &descriptors);
        }
        let before = out.len();
        self.ahead = 0..0;
        let chain = match self.layout.pop(&self.lender, self.rules, out) {
            Ok(Some(chain)) => chain,
            Ok(None) => return None,
            Err(fault) => return self.retire(fault, out, before),
        };
        let left = out.len() - before;
        if !self.ledger.take(chain.id, left as u16, chain.descs) {
            return self.retire(Fault::Duplicate(chain.id), out, before);
        }
        if left == 1 && !chain.overflow && self.plain {
            self.ledger.follow(chain.id);
            return Some(chain);
        }
        if let Some(track) = &mut self.track {
            track.take(chain.id, false, &self.layout.popped(chain.descs));
        }
        self.popped_rarely(chain, out, before)
    }

    /// Pops a chain that was in flight when the process before ended.
    #[cold]
    fn pop_again(&mut self, out: &mut Batch<Buf>, head: u16, descriptors: &[(u64, u64)]) -> Option<Chain> {
        let before = out.len();
        let chain = match self.layout.again(&self.lender, self.rules, out, head, descriptors) {
            Ok(chain) => chain,
            Err(fault) => return self.retire(fault, out, before),
        };
        if !self.ledger.take(chain.id, (out.len() - before) as u16, chain.descs) {
            return self.retire(Fault::Duplicate(chain.id), out, before);
        }
        if let Some(track) = &mut self.track {
            track.take(chain.id, true, descriptors);
        }
        self.popped_rarely(chain, out, before)
    }

    /// The chain that was popped last goes back to where it came from.
    fn put_back(&mut self, id: u16, descs: u16) {
        self.ahead = 0..0;
        if !self.track.as_mut().is_some_and(|track| track.put_back(id)) {
            self.layout.unpop(descs);
        }
    }

    /// Goes on where the ring stands by what is in it, if it is said to be at its beginning and is not: a
    /// front-end has lost the place. Where, if that is elsewhere. To be called before anything is popped.
    pub fn find_place(&mut self) -> Option<u16> {
        let begins = if self.place.has(v::F_RING_PACKED) { 0x8000_8000 } else { 0 };
        let place = self.layout.place().filter(|_| self.place.base == begins)?;
        let elsewhere = place != begins as u16;
        elsewhere.then(|| {
            self.layout.resume(place, 0);
            place
        })
    }

    /// Whether there is anything to pop: a chain or a fault.
    #[inline(always)]
    pub fn ready(&mut self) -> bool {
        self.fault.is_none()
            && (self.layout.ready()
                || !self.plain && self.track.as_ref().is_some_and(|track| track.again().is_some()))
    }

    /// Lends up to `most` chains of one buffer each, of `least` (1 at the least) to `longest` bytes, to
    /// the back of `out`, as long as they have fewer than `weight` bytes together: how many, and their
    /// bytes. There may be more of them. Stops at any other chain, which is for [`Vring::pop`].
    // A function of its own, so that its loops have the registers for themselves.
    #[inline(never)]
    pub fn pop_simple(
        &mut self,
        out: &mut Batch<Buf>,
        most: usize,
        sizes: (u32, u32),
        weight: u64,
    ) -> (usize, u64) {
        match self.rules.way {
            _ if !self.plain => (0, 0),
            Way::FromDriver => self.pop_run::<false>(out, most, sizes, weight),
            Way::ToDriver => self.pop_run::<true>(out, most, sizes, weight),
            Way::Both => (0, 0),
        }
    }

    #[inline(always)]
    fn pop_run<const WRITABLE: bool>(
        &mut self,
        out: &mut Batch<Buf>,
        most: usize,
        (least, longest): (u32, u32),
        weight: u64,
    ) -> (usize, u64) {
        if WRITABLE {
            // Those that `fill` has looked at.
            self.ahead = 0..0;
        }
        let Vring { layout, lender, ledger, singles, .. } = self;
        let flags = if WRITABLE { v::DESC_F_WRITE } else { 0 };
        let seen = layout.look(flags, &mut singles[..most.min(RUN)]);
        let mut bytes = 0u64;
        let mut next = singles[..seen].iter();
        let n = lender.lend_run::<WRITABLE>(out, seen, || {
            let &Single { addr, len, id } = next.as_slice().first()?;
            if len < least || len > longest || bytes >= weight || !ledger.take_simple(id) {
                return None;
            }
            bytes += u64::from(len);
            next.next();
            Some((addr, len, id))
        });
        layout.take(n);
        let asked = seen - next.len();
        if asked > n {
            // The last one was not lent.
            ledger.untake(singles[n].id);
            ledger.unfollow();
            bytes -= u64::from(singles[n].len);
        }
        (n, bytes)
    }

    /// Takes its own receipts from the front of `loans`, up to the first that is another's.
    #[inline(never)]
    pub fn settle_front(&mut self, loans: &mut Batch<Loan>) {
        if self.plain {
            let Vring { lender, ledger, layout, used, .. } = self;
            let batches = self.rules.batches;
            let push = |layout: &mut L, used: &[u64]| {
                if batches { layout.push_batch(used) } else { layout.push(used) }
            };
            let mut n = 0;
            lender.settle_front(loans, |id, written| {
                let Some((descs, written)) = ledger.home(id, written) else { return };
                used[n] = L::used(id, descs, written);
                n += 1;
                if n == RUN || ledger.follows() {
                    push(layout, &used[..n]);
                    n = 0;
                    ledger.follow_up(layout, None);
                }
            });
            return push(layout, &used[..n]);
        }
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
        if self.fault.is_none() {
            let home = self.ledger.home(id, written);
            self.complete(id, home);
        } else if let Some(track) = &mut self.track {
            track.lost(id, written);
        }
    }

    /// Stages a chain that is complete, and those that waited for it.
    #[inline(always)]
    fn complete(&mut self, id: u16, home: Option<(u16, u32)>) {
        if let Some((descs, written)) = home {
            if let Some(track) = &mut self.track {
                track.stage(id, written, self.layout.element());
            }
            self.layout.push(&[L::used(id, descs, written)]);
            if self.ledger.follows() {
                self.ledger.follow_up(&mut self.layout, self.track.as_deref_mut());
            }
        }
    }

    /// Makes what was staged visible, once; `true`: the driver wants to be called.
    pub fn publish(&mut self) -> bool {
        self.show();
        self.wants_call()
    }

    /// The first half of [`Vring::publish`]: makes what was staged visible; whether there was any.
    #[inline(always)]
    pub fn show(&mut self) -> bool {
        if !self.plain {
            return self.show_tracked();
        }
        let any = self.layout.staged();
        if any {
            self.layout.publish();
        }
        any
    }

    /// The second half, which waits until the stores have arrived, so that it is cheaper some time later
    /// and once for several rings: whether the driver wants to be called.
    #[inline(always)]
    pub fn wants_call(&mut self) -> bool {
        self.fault.is_none() && self.layout.wants_call()
    }

    #[cold]
    fn show_tracked(&mut self) -> bool {
        let visible = self.layout.staged() && self.fault.is_none();
        let Some(track) = &mut self.track else {
            if visible {
                self.layout.publish();
            }
            return visible;
        };
        if visible {
            let end = self.layout.used_end();
            track.publish(end);
            self.layout.publish();
            track.published(end, self.layout.index());
        } else {
            track.flush();
        }
        visible
    }

    /// Puts back chains that were popped last and not used: all of `stash`, which holds their
    /// buffers as [`Vring::pop`] gave them.
    pub fn unpop(&mut self, stash: &mut Batch<Buf>) {
        while let Some(buf) = stash.pop_back() {
            let (id, _) = self.lender.settle(buf.finish(0));
            if let Some(descs) = self.ledger.untake(id) {
                self.put_back(id, descs);
                self.ledger.unfollow();
            }
        }
    }

    /// Asks the driver for kicks, or to be quiet; `true`: more arrived meanwhile.
    pub fn arm(&mut self, on: bool) -> bool {
        if self.fault.is_some() {
            return false;
        }
        let more = self.layout.arm(on);
        if let Some(track) = &mut self.track {
            track.armed(self.layout.event(on));
        }
        more
    }

    /// Whether [`Vring::pop`] finds nothing until the word that `monitor` watches from now on changes.
    /// One that is retired never finds anything: then it watches nothing.
    pub fn monitor(&self, monitor: &mut Monitor) -> bool {
        if self.fault.is_some() {
            monitor.clear();
            return true;
        }
        self.layout.monitor(monitor)
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

    /// Whether its buffers may be out for long, filled by a device that nobody watches: nothing is written
    /// down about them, their addresses stay what they are, and none waits for those before it.
    pub fn lends_far(&self) -> bool {
        self.plain && !self.place.has(v::F_IN_ORDER)
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
        }
        let empty = out.len() == before;
        if empty {
            self.ledger.forget(chain.id);
        }
        if before > 0 && (chain.overflow || (empty && self.rules.way == Way::ToDriver)) {
            // Next turn's batch may hold it, or nothing may have to be put back before it.
            self.put_back(chain.id, chain.descs);
            return None;
        }
        self.ledger.follow(chain.id);
        if let Some(track) = &mut self.track {
            track.popped(&out.as_slice()[before..]);
        }
        if empty {
            chain.bytes = 0;
            let home = self.ledger.complete(chain.id);
            self.complete(chain.id, home);
        }
        Some(chain)
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

    /// See [`Vring::open_translated`]; mapped or checked, as [`AnyVring::open`] has it, or always checked.
    ///
    /// # Errors
    /// As there.
    pub fn open_translated(
        ring: &RingLayout,
        areas: &Arc<Table>,
        memory: &Arc<Table>,
        tlb: &iotlb::Iotlb,
        mapped: bool,
    ) -> Result<AnyVring, OutOfRange> {
        let packed = ring.has(v::F_RING_PACKED);
        if mapped {
            let tlb = tlb.clone();
            let open = if packed {
                Vring::open_translated(ring, areas, memory, tlb).map(AnyVring::Packed)
            } else {
                Vring::open_translated(ring, areas, memory, tlb).map(AnyVring::Split)
            };
            if open.is_ok() {
                return open;
            }
        }
        if packed {
            Vring::open_translated(ring, areas, memory, tlb.clone()).map(AnyVring::PackedChecked)
        } else {
            Vring::open_translated(ring, areas, memory, tlb.clone()).map(AnyVring::SplitChecked)
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

    /// Whether some of its memory is gone, and was replaced: see [`hugepages::sigbus`].
    pub fn damaged(&self) -> bool {
        with_ring!(self, ring => ring.lender.table().damage().is_some())
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

    /// See [`Vring::monitor`].
    pub fn monitor(&self, monitor: &mut Monitor) -> bool {
        with_ring!(self, ring => ring.monitor(monitor))
    }

    /// See [`Vring::settle`].
    pub fn settle(&mut self, loan: Loan) {
        with_ring!(self, ring => ring.settle(loan));
    }

    /// See [`Vring::publish`].
    pub fn publish(&mut self) -> bool {
        with_ring!(self, ring => ring.publish())
    }

    /// See [`Vring::wants_call`].
    pub fn wants_call(&mut self) -> bool {
        with_ring!(self, ring => ring.wants_call())
    }

    /// See [`Vring::log`].
    pub fn log(&mut self, target: Option<log::Target>, held: &Batch<Buf>) {
        with_ring!(self, ring => ring.log(target, held));
    }

    /// See [`Vring::lends_far`].
    pub fn lends_far(&self) -> bool {
        with_ring!(self, ring => ring.lends_far())
    }

    /// See [`Vring::size`].
    pub fn size(&self) -> u16 {
        with_ring!(self, ring => ring.size())
    }

    /// See [`Vring::find_place`].
    pub fn find_place(&mut self) -> Option<u16> {
        with_ring!(self, ring => ring.find_place())
    }

    /// See [`Vring::record`].
    ///
    /// # Errors
    /// As there.
    pub fn record(&mut self, area: &record::Area) -> Result<(), OutOfRange> {
        with_ring!(self, ring => ring.record(area))
    }

    /// See [`Vring::unpop`].
    pub fn unpop(&mut self, stash: &mut Batch<Buf>) {
        with_ring!(self, ring => ring.unpop(stash));
    }

    /// See [`Vring::change`].
    pub fn change(&mut self, change: iotlb::Change) {
        with_ring!(self, ring => ring.change(change));
    }

    /// See [`Vring::overlaps`].
    pub fn overlaps(&self, first: u64, last: u64) -> bool {
        with_ring!(self, ring => ring.overlaps(first, last))
    }

    /// See [`Vring::foresee`].
    pub fn foresee(&mut self) {
        with_ring!(self, ring => ring.foresee());
    }

    /// See [`Vring::wants`].
    pub fn wants(&mut self, wants: &mut Vec<iotlb::Want>) {
        with_ring!(self, ring => ring.wants(wants));
    }

    /// See [`Vring::blocked`].
    pub fn blocked(&self) -> bool {
        with_ring!(self, ring => ring.blocked())
    }

    /// See [`Vring::translated`].
    pub fn translated(&self) -> bool {
        with_ring!(self, ring => ring.translated())
    }

    /// Whether its metadata is reached through mapped windows.
    pub fn mapped(&self) -> bool {
        matches!(self, AnyVring::Split(_) | AnyVring::Packed(_))
    }
}
