//! What is written down about a ring that does not run plainly: each chain that is popped, what was written
//! to it, each element that is published.

use hugepages::Buf;

use super::log::{Log, Written};
use super::record::{Again, Record};

/// The books of a ring.
#[derive(Default)]
pub(super) struct Track {
    pub(super) log: Option<Log>,
    pub(super) record: Option<Record>,
}

impl Track {
    /// Whether there is nothing to write down.
    pub(super) fn is_idle(&self) -> bool {
        self.log.is_none() && self.record.is_none()
    }

    /// The chain that is to be popped again, if there is one.
    pub(super) fn again(&self) -> Option<(Again, Vec<(u64, u64)>)> {
        let record = self.record.as_ref()?;
        record.next().map(|again| (again, record.descriptors(again)))
    }

    /// A chain was popped from the ring, or again; its descriptors, if its layout cannot find them later.
    pub(super) fn take(&mut self, id: u16, again: bool, descriptors: &[(u64, u64)]) {
        match &mut self.record {
            Some(record) if again => record.retake(id),
            Some(record) => record.take(id, descriptors),
            None => {}
        }
    }

    /// A chain is put back; whether it was popped again, and goes back there and not to the ring.
    pub(super) fn put_back(&mut self, id: u16) -> bool {
        self.record.as_mut().is_some_and(|record| record.put_back(id))
    }

    /// A chain was popped; its buffers, none for one that is complete already.
    pub(super) fn popped(&mut self, bufs: &[Buf]) {
        if let Some(log) = &mut self.log {
            for (i, buf) in bufs.iter().enumerate() {
                log.lent(buf, i == 0);
            }
        }
    }

    /// A chain is complete and about to be staged there.
    pub(super) fn stage(&mut self, id: u16, written: u32, element: Written) {
        if let Some(log) = &mut self.log {
            log.complete(id, written);
            log.stage(element);
        }
        if let Some(record) = &mut self.record {
            record.stage(id);
        }
    }

    /// A buffer of a retired ring came home.
    pub(super) fn lost(&mut self, id: u16, written: u32) {
        if let Some(log) = self.log.as_mut().filter(|_| written > 0) {
            log.complete(id, u32::MAX);
        }
    }

    /// What is staged is about to become visible, up to `end`.
    pub(super) fn publish(&mut self, end: u16) {
        if let Some(record) = &mut self.record {
            record.publish(end);
        }
    }

    /// What was staged is visible now, up to `end`, and `index` was written with it.
    pub(super) fn published(&mut self, end: u16, index: Option<Written>) {
        if let Some(record) = &mut self.record {
            record.published(end);
        }
        if let Some(log) = &mut self.log {
            log.published(index);
        }
    }

    /// Nothing was staged.
    pub(super) fn flush(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// The event area, or what is in its place, was written.
    pub(super) fn armed(&mut self, event: Option<Written>) {
        if let (Some(log), Some(event)) = (&mut self.log, event) {
            log.wrote(event);
            log.flush();
        }
    }
}
