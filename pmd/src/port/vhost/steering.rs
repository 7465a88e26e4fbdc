//! Which of a guest's receive rings a packet goes into: virtio 1.3 §5.1.6.5.7.

use std::sync::Arc;

use super::hash::Hashing;
use super::wire::Mark;

/// By the hash of each packet, as the driver has said (RSS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Indirection {
    /// Of packets that have no hash.
    pub(super) unclassified: u16,
    /// Queue pairs; a power of two of them.
    pub(super) table: Vec<u16>,
}

impl Indirection {
    fn queue(&self, mark: Mark) -> u16 {
        let at = mark.hash().map(|hash| hash as usize & (self.table.len() - 1));
        at.map_or(self.unclassified, |at| self.table[at])
    }
}

/// Where the packets go that come to one queue.
#[derive(Clone, Debug)]
pub(super) enum Steering {
    /// To this one.
    Here,
    /// All to another one: this one is not in use.
    There(u16),
    /// To each its own.
    Dealt(Arc<Hashing>, Arc<Indirection>),
}

impl Steering {
    /// The queue of a packet that came to `here`.
    pub(super) fn queue<'b>(&self, here: u16, bufs: impl Iterator<Item = &'b hugepages::Buf>) -> u16 {
        match self {
            Steering::Here => here,
            Steering::There(there) => *there,
            Steering::Dealt(hashing, indirection) => indirection.queue(hashing.packet(bufs)),
        }
    }
}
