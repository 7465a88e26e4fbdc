//! Where everything lies in the one mapping that the back-end is sent: for each queue pair two sets of
//! rings, used in turn by successive connections, then its frames.

use std::sync::{Arc, Once};

use hugepages::{Map, Region, Table};

use super::{Config, MAX_SEGMENTS};
use crate::batch::CAP;
use crate::port::PortError;
use crate::spec::net::{HDR_LEN, MAX_FRAME};
use crate::spec::virtio as v;
use crate::vring::driver::Areas;

/// Most frames of a queue: their numbers are 16 bits wide.
const MAX_FRAMES: usize = 1 << 16;

/// Which ring of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// What `rx` lends from: virtio's receive queue.
    Rx = 0,
    /// What `tx` fills.
    Tx = 1,
}

/// The plan of the mapping.
#[derive(Debug)]
pub(super) struct Memory {
    table: Arc<Table>,
    size: u16,
    queues: u16,
    /// Entries of an indirect table of a transmit ring; 0: none.
    entries: u16,
    /// Bytes of the areas of one ring.
    ring: u64,
    frame: u32,
    frames: usize,
}

impl Memory {
    pub(super) fn new(name: &str, config: &Config, queues: u16) -> Result<Memory, PortError> {
        static TOLD: Once = Once::new();
        let (size, frame) = (config.queue_size, config.frame());
        let segments = (MAX_FRAME + HDR_LEN).div_ceil(frame) as u16;
        let entries = if config.indirect && segments > 1 { segments.min(MAX_SEGMENTS as u16) } else { 0 };
        // The larger of the two layouts: which it will be is for the back-end to say.
        let split = Areas::at(0, size.next_power_of_two(), 0, entries).end;
        let packed = Areas::at(0, size, v::F_RING_PACKED, entries).end;
        let ring = split.max(packed).next_multiple_of(4096);
        // A ring of empty frames, a ring of frames to send, a ring of frames on loan, and a batch.
        let frames = (3 * usize::from(size) + CAP).min(MAX_FRAMES);
        let whole = u64::from(queues) * (4 * ring + frames as u64 * u64::from(frame));
        let memory = |source| PortError::Memory { port: name.to_owned(), source };
        let (map, fallback) = Map::shared_or_base(whole as usize, config.backing).map_err(memory)?;
        if let Some(why) = fallback {
            TOLD.call_once(|| tracing::warn!("port {name}: ordinary pages are used: {why}"));
        }
        Ok(Memory { table: Table::of(map), size, queues, entries, ring, frame, frames })
    }

    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The one region, which the back-end is sent.
    pub(super) fn region(&self) -> &Region {
        &self.table.regions()[0]
    }

    pub(super) fn queues(&self) -> u16 {
        self.queues
    }

    /// Bytes of a frame.
    pub(super) fn frame(&self) -> u32 {
        self.frame
    }

    /// Frames of a queue.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Entries of a ring.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The areas of one ring of a queue pair, in one of its two sets.
    pub(super) fn areas(&self, queue: u16, side: Side, set: usize, features: u64) -> Areas {
        let index = u64::from(queue) * 4 + 2 * set as u64 + side as u64;
        let tables = side == Side::Tx && features & v::F_INDIRECT_DESC != 0;
        let entries = if tables { self.entries } else { 0 };
        Areas::at(index * self.ring, self.size, features, entries)
    }

    /// Where the frames of a queue begin.
    pub(super) fn frames_at(&self, queue: u16) -> u64 {
        let rings = u64::from(self.queues) * 4 * self.ring;
        rings + u64::from(queue) * self.frames as u64 * u64::from(self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, PageSize};

    #[test]
    fn nothing_lies_over_anything_else() {
        for (queue_size, packed) in [(1, false), (256, false), (1000, true)] {
            let backing = Backing { page: PageSize::Base, node: None };
            let config = Config { queue_size, packed, backing, ..Config::default() };
            let memory = Memory::new("test", &config, 3).unwrap();
            let features = if packed { v::F_RING_PACKED } else { 0 } | v::F_INDIRECT_DESC;
            let mut spans: Vec<(u64, u64)> = Vec::new();
            for queue in 0..3 {
                for set in 0..2 {
                    for side in [Side::Rx, Side::Tx] {
                        let areas = memory.areas(queue, side, set, features);
                        spans.push((areas.desc, areas.end));
                    }
                }
                let at = memory.frames_at(queue);
                spans.push((at, at + memory.frames() as u64 * u64::from(memory.frame())));
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0), "{spans:x?}");
            assert!(spans.last().unwrap().1 <= memory.region().len);
        }
    }
}
