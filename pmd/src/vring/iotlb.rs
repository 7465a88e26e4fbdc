//! Addresses of a guest's IOMMU: where they are in its memory, as far as its front-end has told, and what
//! a ring that uses them keeps beside.
//!
//! Each such ring has an [`Iotlb`] of its own, read and written by its core only: changes come to it between
//! turns, so that nothing on the data path is shared. A translation that is missing is asked for once; the
//! chain that needs it stays in the ring until it has come. What is lent is known by its I/O addresses until
//! it is home: a range that is to be nowhere is waited for ([`Vring::overlaps`](super::Vring::overlaps)).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use hugepages::{Buf, Lender, OutOfRange, Pod, Table};

use super::walk::Memory;
use super::{Chain, Fault, Layout, RingLayout, Vring, Way};
use crate::batch::Batch;
use crate::spec::vhost_user::iotlb::{READ, WRITE};
use crate::spec::virtio as v;

/// Ranges that one [`Iotlb`] keeps; of more, some are forgotten, and asked for again when they are needed.
pub const MAX_ENTRIES: usize = 8192;
/// Translations that one ring may wait for.
pub const MAX_ASKED: usize = 64;
/// Translations that a chain asks for at once: each that comes has the chain walked again.
const MAX_FORESEEN: usize = 32;
/// The granule of IOMMUs.
pub const PAGE: u64 = 4096;

/// Where a range of I/O addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its first address.
    pub first: u64,
    /// Its last address.
    pub last: u64,
    /// Guest address of the first.
    pub gpa: u64,
    /// What the device may do there: bits of [`iotlb`](crate::spec::vhost_user::iotlb).
    pub perm: u8,
}

impl Entry {
    fn at(&self, iova: u64) -> u64 {
        self.gpa + (iova - self.first)
    }

    /// Whether `next`, which begins behind it, goes on with it.
    fn goes_on(&self, next: &Entry) -> bool {
        self.last.checked_add(1) == Some(next.first)
            && self.perm == next.perm
            && self.gpa.checked_add(next.first - self.first) == Some(next.gpa)
    }
}

/// Ranges without overlap, each to be found in logarithmic time; neighbours that go on are one.
#[derive(Clone, Debug, Default)]
pub struct Iotlb {
    entries: BTreeMap<u64, Entry>,
    /// Where the next range to be forgotten is looked for.
    hand: u64,
}

impl Iotlb {
    /// Ranges in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A range is there now, whatever was known of it.
    pub fn insert(&mut self, mut entry: Entry) {
        self.remove(entry.first, entry.last);
        if let Some(before) = self.before(entry.first).filter(|before| before.goes_on(&entry)) {
            entry = Entry { last: entry.last, ..before };
        }
        let behind = entry.last.checked_add(1).and_then(|next| self.entries.get(&next).copied());
        if let Some(behind) = behind.filter(|behind| entry.goes_on(behind)) {
            self.entries.remove(&behind.first);
            entry.last = behind.last;
        }
        self.entries.insert(entry.first, entry);
        self.forget();
    }

    /// A range is nowhere. What it cuts through is kept outside of it.
    pub fn remove(&mut self, first: u64, last: u64) {
        if let Some(cut) = self.before(first).filter(|cut| cut.last >= first) {
            self.entries.insert(cut.first, Entry { last: first - 1, ..cut });
            if cut.last > last {
                self.rest(&cut, last);
            }
        }
        while let Some((&at, &inside)) = self.entries.range(first..=last).next() {
            self.entries.remove(&at);
            if inside.last > last {
                self.rest(&inside, last);
            }
        }
        self.forget();
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Where an address is, and how many bytes from there on are known to follow it; `None`: it is not known
    /// where, or it may not be accessed like that.
    pub fn find(&self, iova: u64, perm: u8) -> Option<(u64, u64)> {
        // All 2^64 bytes are one less.
        self.entry(iova, perm).map(|entry| (entry.at(iova), (entry.last - iova).saturating_add(1)))
    }

    /// The range that an address is in, if it may be accessed like that.
    pub fn entry(&self, iova: u64, perm: u8) -> Option<Entry> {
        let (_, entry) = self.entries.range(..=iova).next_back()?;
        let known = iova <= entry.last && entry.perm & perm == perm;
        known.then_some(*entry)
    }

    fn before(&self, first: u64) -> Option<Entry> {
        self.entries.range(..first).next_back().map(|(_, entry)| *entry)
    }

    /// Keeps what of `entry` lies behind `last`.
    fn rest(&mut self, entry: &Entry, last: u64) {
        let rest = Entry { first: last + 1, gpa: entry.at(last + 1), ..*entry };
        self.entries.insert(rest.first, rest);
    }

    /// Makes room, going round: what is forgotten was mostly not used for long.
    fn forget(&mut self) {
        while self.entries.len() > MAX_ENTRIES {
            let next = self.entries.range(self.hand..).next().or_else(|| self.entries.iter().next());
            let at = *next.expect("there are some").0;
            self.entries.remove(&at);
            self.hand = at.wrapping_add(1);
        }
    }
}

/// A page that is to be accessed, and that it is not known where, or that may not be accessed like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Its first I/O address.
    pub iova: u64,
    /// How it is to be accessed.
    pub perm: u8,
}

/// What a ring has to say about addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It needs a translation.
    Translation(Miss),
    /// It is retired, because the front-end refused it that one.
    Denied(Miss),
}

/// What a ring is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A range is there.
    Add(Entry),
    /// A range, from its first to its last address, is nowhere.
    Remove(u64, u64),
    /// Nothing is known any more, and what was asked for is forgotten.
    Clear,
    /// The front-end does not translate that.
    Refuse(Miss),
}

/// What a ring that uses I/O addresses keeps.
pub(super) struct Iommu {
    tlb: Iotlb,
    /// Where the areas of the ring are, by I/O addresses.
    pub(super) areas: Arc<Table>,
    asked: Vec<Miss>,
    wants: Vec<Want>,
    /// What the next chain needs, and whether it was refused.
    needed: Option<Miss>,
    refused: bool,
    /// The next chain waits for a translation.
    blocked: bool,
    /// By head: first and last address of each buffer that was lent.
    lent: Vec<Vec<(u64, u64)>>,
}

impl Iommu {
    fn ask(&mut self, miss: Miss) {
        if self.asked.len() < MAX_ASKED && !self.asked.contains(&miss) {
            self.asked.push(miss);
            self.wants.push(Want::Translation(miss));
        }
    }

    /// A chain needs these; `false`: it will never have the first.
    fn miss(&mut self, misses: &[Miss]) -> bool {
        let first = misses[0];
        let again = self.needed.replace(first) == Some(first);
        if std::mem::take(&mut self.refused) && again {
            self.wants.push(Want::Denied(first));
            return false;
        }
        self.blocked = true;
        misses.iter().for_each(|miss| self.ask(*miss));
        true
    }

    /// Asks for what is not known of a range; whether all of it is.
    fn foresee(&mut self, addr: u64, len: u32, perm: u8) -> bool {
        let (mut at, end) = (addr, addr.saturating_add(len.into()));
        let mut known = true;
        while at < end && self.asked.len() < MAX_ASKED {
            at = match self.tlb.find(at, perm) {
                Some((_, run)) => at.saturating_add(run),
                None => {
                    known = false;
                    self.ask(Miss { iova: at & !(PAGE - 1), perm });
                    (at | (PAGE - 1)).saturating_add(1)
                }
            };
        }
        known && at >= end
    }

    fn change(&mut self, change: Change) {
        self.blocked = false;
        match change {
            Change::Add(entry) => {
                self.tlb.insert(entry);
                let hit = |miss: &Miss| (entry.first..=entry.last).contains(&miss.iova);
                // An answer that does not do is a refusal.
                let short = |miss: &&Miss| hit(miss) && entry.perm & miss.perm != miss.perm;
                self.refused |= self.needed.as_ref().is_some_and(|needed| short(&needed));
                self.asked.retain(|miss| !hit(miss));
            }
            Change::Remove(first, last) => {
                self.tlb.remove(first, last);
                self.asked.retain(|miss| miss.iova > last || miss.iova + (PAGE - 1) < first);
            }
            Change::Clear => {
                self.tlb.clear();
                self.asked.clear();
            }
            Change::Refuse(miss) => {
                self.asked.retain(|asked| *asked != miss);
                self.refused |= self.needed == Some(miss);
            }
        }
    }
}

/// A lender's memory by I/O addresses, for one chain. What it misses it notes, and the walk goes on, so that
/// all that a chain needs is asked for at once.
struct Translated<'a> {
    lender: &'a Lender,
    tlb: &'a Iotlb,
    misses: RefCell<Vec<Miss>>,
    lent: RefCell<Vec<(u64, u64)>>,
}

impl<'a> Translated<'a> {
    fn new(lender: &'a Lender, tlb: &'a Iotlb) -> Self {
        Translated { lender, tlb, misses: RefCell::default(), lent: RefCell::default() }
    }

    fn note(&self, iova: u64, perm: u8) {
        let (miss, mut misses) = (Miss { iova: iova & !(PAGE - 1), perm }, self.misses.borrow_mut());
        if misses.len() < MAX_FORESEEN && !misses.contains(&miss) {
            misses.push(miss);
        }
    }

    /// Guest address of `len` bytes that are at one place.
    fn locate(&self, iova: u64, len: u32, perm: u8) -> Result<u64, OutOfRange> {
        let whole = self.tlb.find(iova, perm).filter(|(_, run)| *run >= u64::from(len));
        whole.map(|(gpa, _)| gpa).ok_or(OutOfRange { gpa: iova, len: len.into() })
    }

    /// In the place of a buffer in a page that is not known yet.
    fn stand_in(&self, id: u16) -> Option<Buf> {
        let first = self.lender.table().regions().first()?;
        self.lender.lend(first.gpa, 1, id).ok()
    }
}

/// Bytes from an address to the end of its page.
fn page_rest(iova: u64) -> u64 {
    PAGE - (iova & (PAGE - 1))
}

impl Memory for Translated<'_> {
    fn lend(&self, iova: u64, len: u32, id: u16, write: bool) -> Result<Buf, OutOfRange> {
        let perm = if write { WRITE } else { READ };
        let gpa = match self.locate(iova, len, perm) {
            Ok(gpa) => gpa,
            Err(missed) if u64::from(len) <= page_rest(iova) => {
                self.note(iova, perm);
                return self.stand_in(id).ok_or(missed);
            }
            // Of several pages, the walk goes on page by page.
            Err(apart) => return Err(apart),
        };
        let buf =
            if write { self.lender.lend_writable(gpa, len, id)? } else { self.lender.lend(gpa, len, id)? };
        self.lent.borrow_mut().push((iova, iova + u64::from(len.max(1) - 1)));
        Ok(buf)
    }

    fn contiguous(&self, iova: u64, write: bool) -> u64 {
        let perm = if write { WRITE } else { READ };
        let Some((gpa, run)) = self.tlb.find(iova, perm) else {
            self.note(iova, perm);
            // A longer chain is walked on when these are known.
            let enough = self.misses.borrow().len() >= MAX_FORESEEN;
            return if enough { 0 } else { page_rest(iova) };
        };
        run.min(self.lender.table().contiguous(gpa))
    }

    fn peek<T: Pod>(&self, iova: u64) -> Result<T, OutOfRange> {
        let len = size_of::<T>();
        if let Some((gpa, run)) = self.tlb.find(iova, READ)
            && run >= len as u64
        {
            return self.lender.peek(gpa);
        }
        // Across pages that are not neighbours, or not known yet.
        let mut bytes = Vec::with_capacity(len);
        for i in 0..len as u64 {
            let at = iova.checked_add(i).ok_or(OutOfRange { gpa: iova, len: len as u64 })?;
            let gpa = self.locate(at, 1, READ).inspect_err(|_| self.note(at, READ))?;
            bytes.push(self.lender.peek::<u8>(gpa)?);
        }
        Ok(T::read_from_bytes(&bytes).expect("as many bytes as it has"))
    }
}

impl<L: Layout> Vring<L> {
    /// Opens a ring whose addresses, those of its areas and those in its descriptors, are I/O addresses:
    /// `areas` has its areas by I/O addresses, `memory` all memory by guest addresses, and `tlb` what is
    /// known.
    ///
    /// # Errors
    /// When one of its areas is not in `areas` or not aligned.
    pub fn open_translated(
        ring: &RingLayout,
        areas: &Arc<Table>,
        memory: &Arc<Table>,
        tlb: Iotlb,
    ) -> Result<Self, OutOfRange> {
        let mut vring = Vring::over(ring, areas, memory)?;
        vring.iommu = Some(Box::new(Iommu {
            tlb,
            areas: Arc::clone(areas),
            asked: Vec::new(),
            wants: Vec::new(),
            needed: None,
            refused: false,
            blocked: false,
            lent: vec![Vec::new(); usize::from(ring.size)],
        }));
        vring.choose_way();
        Ok(vring)
    }

    /// [`Vring::pop`] of such a ring. A chain that needs a translation stays where it is.
    #[cold]
    pub(super) fn pop_translated(&mut self, out: &mut Batch<Buf>) -> Option<Chain> {
        let iommu = self.iommu.as_deref_mut().filter(|iommu| !iommu.blocked)?;
        let before = out.len();
        let again = self.track.as_ref().and_then(|track| track.again());
        let memory = Translated::new(&self.lender, &iommu.tlb);
        let popped = match &again {
            Some((again, descriptors)) => {
                self.layout.again(&memory, self.rules, out, again.at, descriptors).map(Some)
            }
            None => self.layout.pop(&memory, self.rules, out),
        };
        let (misses, lent) = (memory.misses.into_inner(), memory.lent.into_inner());
        let chain = match popped {
            Ok(chain) if misses.is_empty() => chain?,
            Err(fault) if misses.is_empty() || !matches!(fault, Fault::Memory(_)) => {
                return self.retire(fault, out, before);
            }
            walked => {
                if let (Ok(Some(chain)), None) = (walked, again) {
                    self.layout.unpop(chain.descs);
                }
                if !iommu.miss(&misses) {
                    return self.retire(OutOfRange { gpa: misses[0].iova, len: PAGE }.into(), out, before);
                }
                self.take_back(out, before);
                self.foresee();
                return None;
            }
        };
        iommu.lent[usize::from(chain.id)] = lent;
        if !self.ledger.take(chain.id, (out.len() - before) as u16, chain.descs) {
            return self.retire(Fault::Duplicate(chain.id), out, before);
        }
        if let Some(track) = &mut self.track {
            match again {
                Some((_, descriptors)) => track.take(chain.id, true, &descriptors),
                None => track.take(chain.id, false, &self.layout.popped(chain.descs)),
            }
        }
        self.popped_rarely(chain, out, before)
    }

    /// Asks for what the next chains will need, if they have one descriptor each, in the ring or in a table.
    pub fn foresee(&mut self) {
        let Some(iommu) = self.iommu.as_deref_mut() else { return };
        if self.fault.is_some() || !self.layout.ready() {
            return;
        }
        let (flags, perm) = match self.rules.way {
            Way::ToDriver => (v::DESC_F_WRITE, WRITE),
            Way::FromDriver | Way::Both => (0, READ),
        };
        let seen = self.layout.look(flags, &mut self.singles[..]);
        for single in &self.singles[..seen] {
            iommu.foresee(single.addr, single.len, perm);
        }
        let seen = self.layout.look(v::DESC_F_INDIRECT, &mut self.singles[..]);
        for single in &self.singles[..seen] {
            if !iommu.foresee(single.addr, single.len, READ) || self.rules.way == Way::Both {
                continue;
            }
            let entries = (single.len / v::DESC_BYTES).min(MAX_ASKED as u32);
            for at in (0..entries).map(|i| single.addr.saturating_add(u64::from(i * v::DESC_BYTES))) {
                // In both layouts an entry begins with its address and its length.
                let entry = Translated::new(&self.lender, &iommu.tlb).peek::<[u64; 2]>(at);
                if let Ok([addr, rest]) = entry {
                    iommu.foresee(addr, rest as u32, perm);
                }
            }
        }
    }

    /// Takes what is known from now on. What was lent before is not concerned, see [`Vring::overlaps`].
    pub fn change(&mut self, change: Change) {
        if let Some(iommu) = &mut self.iommu {
            iommu.change(change);
        }
    }

    /// Whether a buffer with one of these I/O addresses is out.
    pub fn overlaps(&self, first: u64, last: u64) -> bool {
        let Some(iommu) = &self.iommu else { return false };
        let overlap = |&(from, to): &(u64, u64)| from <= last && to >= first;
        self.lender.out() > 0 && self.ledger.out().any(|id| iommu.lent[usize::from(id)].iter().any(overlap))
    }

    /// Moves what it has to say to the back of `wants`.
    pub fn wants(&mut self, wants: &mut Vec<Want>) {
        if let Some(iommu) = &mut self.iommu {
            wants.append(&mut iommu.wants);
        }
    }

    /// Whether the next chain waits for a translation.
    pub fn blocked(&self) -> bool {
        self.iommu.as_ref().is_some_and(|iommu| iommu.blocked)
    }

    /// Whether its addresses are I/O addresses.
    pub fn translated(&self) -> bool {
        self.iommu.is_some()
    }
}

#[cfg(test)]
mod tests;
