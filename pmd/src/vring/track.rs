//! What is written down about a ring that does not run plainly: each chain that is popped, what was written
//! to it, each element that is published.

use hugepages::Buf;

use super::log::{Log, Written};

/// The books of a ring.
#[derive(Default)]
pub(super) struct Track {
    pub(super) log: Option<Log>,
}

impl Track {
    /// Whether there is nothing to write down.
    pub(super) fn is_idle(&self) -> bool {
        self.log.is_none()
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
    }

    /// A buffer of a retired ring came home.
    pub(super) fn lost(&mut self, id: u16, written: u32) {
        if let Some(log) = self.log.as_mut().filter(|_| written > 0) {
            log.complete(id, u32::MAX);
        }
    }

    /// What was staged is visible now, and `index` was written with it.
    pub(super) fn published(&mut self, index: Option<Written>) {
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
