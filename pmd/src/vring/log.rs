//! Dirty logging of one ring: what the device wrote, marked when a chain is complete and when elements are
//! published.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hugepages::{Buf, DirtyLog, Marks, Table};

use super::{Layout, RingLayout};
use crate::batch::Batch;
use crate::spec::virtio as v;
use crate::sys::aio;

/// Where the writes of a ring are logged.
#[derive(Clone, Debug)]
pub struct Target {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// Guest address under which writes to the used ring are logged, if that is not where it lies.
    pub used: Option<u64>,
    /// An eventfd that is signalled when a bit was set.
    pub signal: Option<Arc<OwnedFd>>,
}

/// Some bytes of a ring that the device writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// In the descriptor ring (packed), or in the used ring or event area.
    pub descriptors: bool,
    /// First byte, from the beginning of the area.
    pub at: u32,
    /// Bytes.
    pub len: u32,
}

/// What was lent under one head.
#[derive(Clone, Debug, Default)]
struct Lent {
    /// Guest address and length of each writable buffer.
    pieces: Vec<(u64, u32)>,
    /// It was lent before logging began, and where is not known.
    unknown: bool,
}

/// The log of a ring.
pub(super) struct Log {
    marks: Marks,
    signal: Option<Arc<OwnedFd>>,
    table: Arc<Table>,
    /// The ring's areas, if they are given by I/O addresses.
    areas: Option<Arc<Table>>,
    descriptors: u64,
    device: u64,
    lent: Vec<Lent>,
    /// Elements that are staged.
    staged: Vec<Written>,
}

impl Log {
    /// The log of a ring over `table`.
    pub(super) fn new(
        target: Target,
        ring: &RingLayout,
        table: &Arc<Table>,
        areas: Option<Arc<Table>>,
    ) -> Log {
        let split = !ring.has(v::F_RING_PACKED);
        Log {
            marks: Marks::new(target.log),
            signal: target.signal,
            table: Arc::clone(table),
            descriptors: ring.desc,
            // Of a packed ring, a front-end gives the address of one area, and which is not clear; of one behind
            // an IOMMU, QEMU gives an I/O address.
            device: target.used.filter(|_| split && areas.is_none()).unwrap_or(ring.device),
            areas,
            lent: vec![Lent::default(); usize::from(ring.size)],
            staged: Vec::new(),
        }
    }

    /// Goes on with another bitmap: all that is known of what is lent stays known.
    pub(super) fn go_on(&mut self, mut before: Log) {
        before.flush();
        self.lent = before.lent;
        self.staged = before.staged;
    }

    /// A chain was lent before logging began, and nothing is known of it yet.
    pub(super) fn unknown(&mut self, id: u16) {
        self.lent[usize::from(id)].unknown = true;
    }

    /// A buffer of chain `id` was lent; `first` of its chain.
    pub(super) fn lent(&mut self, buf: &Buf, first: bool) {
        let lent = &mut self.lent[usize::from(buf.id())];
        if first {
            lent.pieces.clear();
            lent.unknown = false;
        }
        if buf.writable()
            && let Some(gpa) = self.table.gpa_at(buf.iova())
        {
            lent.pieces.push((gpa, buf.len()));
        }
    }

    /// All buffers of a chain are home, and this much was written to them, from the first byte on.
    pub(super) fn complete(&mut self, id: u16, mut written: u32) {
        let lent = &mut self.lent[usize::from(id)];
        if std::mem::take(&mut lent.unknown) && written > 0 {
            // Rather all of it than one page too few.
            for region in self.table.regions() {
                self.marks.mark(region.gpa, region.len);
            }
        }
        for (gpa, len) in lent.pieces.drain(..) {
            let len = len.min(written);
            self.marks.mark(gpa, u64::from(len));
            written -= len;
        }
    }

    /// An element is about to be staged there.
    pub(super) fn stage(&mut self, element: Written) {
        self.staged.push(element);
    }

    /// What was staged is visible, and `also` was written with it.
    pub(super) fn published(&mut self, also: Option<Written>) {
        for i in 0..self.staged.len() {
            self.wrote(self.staged[i]);
        }
        self.staged.clear();
        also.into_iter().for_each(|also| self.wrote(also));
        self.flush();
    }

    /// The device wrote there.
    pub(super) fn wrote(&mut self, Written { descriptors, at, len }: Written) {
        let area = if descriptors { self.descriptors } else { self.device };
        let at = area.saturating_add(at.into());
        let Some(areas) = &self.areas else { return self.marks.mark(at, len.into()) };
        let end = at.saturating_add(len.into());
        for region in areas.regions() {
            let (from, to) = (at.max(region.gpa), end.min(region.gpa + region.len));
            if from < to
                && let Some(gpa) = self.table.gpa_of(region.user + (from - region.gpa))
            {
                self.marks.mark(gpa, to - from);
            }
        }
    }

    /// Brings what was marked into the bitmap.
    pub(super) fn flush(&mut self) {
        if self.marks.flush()
            && let Some(signal) = &self.signal
        {
            aio::signal(signal.as_fd());
        }
    }
}

impl<L: Layout> super::Vring<L> {
    /// Logs what the device writes from now on, or logs it elsewhere, or no more. `held` are buffers of this
    /// ring that are lent and at hand, whole chains as [`Vring::pop`](super::Vring::pop) gave them, nothing
    /// written to them yet.
    ///
    /// A chain that is lent and not at hand when logging begins is marked, if it is written at all, with all
    /// the memory of the guest: more pages than were written, and none too few.
    pub fn log(&mut self, target: Option<Target>, held: &Batch<Buf>) {
        let mut track = self.track.take().unwrap_or_default();
        let before = track.log.take();
        if let Some(target) = target {
            let areas = self.iommu.as_ref().map(|iommu| Arc::clone(&iommu.areas));
            let mut log = Log::new(target, &self.place, self.lender.table(), areas);
            if let Some(before) = before {
                log.go_on(before);
            } else {
                self.ledger.out().for_each(|id| log.unknown(id));
                let mut first = true;
                for buf in held.iter().filter(|buf| buf.owner() == self.lender.owner()) {
                    log.lent(buf, first);
                    first = !buf.more();
                }
            }
            track.log = Some(log);
        } else if let Some(mut before) = before {
            before.flush();
        }
        self.track = Some(track);
        self.choose_way();
    }
}
