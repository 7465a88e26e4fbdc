//! Whether a driver posts the buffers that it sent from as room for what it receives.
//!
//! Many do: a pool gives the buffer that was freed last. Then the line of its header, which the driver
//! wrote, is better taken for writing when it is first read: a line that is only read must be taken from
//! the driver once more when it becomes room for a header. With DPDK's driver on packed rings that is
//! 11 % of packets per second (`scripts/compare/compare --driver virtio-user --layouts packed`); with
//! drivers that do not reuse buffers, it only makes lines dirty, and costs as much.

/// Bursts in which a buffer must come back. Pools have more buffers than rings.
const PATIENCE: u16 = 1024;
/// No address that is looked for.
const NONE: u64 = u64::MAX;

/// What is known of one ring. The two of a pair tell each other.
pub(super) struct Reuse {
    /// The cache line that is looked for among those of rooms.
    line: u64,
    bursts: u16,
    found: bool,
    expected: bool,
}

impl Default for Reuse {
    fn default() -> Self {
        Reuse { line: NONE, bursts: 0, found: false, expected: false }
    }
}

impl Reuse {
    /// Of a ring from the driver: whether its buffers will be written to.
    #[inline(always)]
    pub(super) fn expected(&self) -> bool {
        self.expected
    }

    /// Of a ring to the driver: there is room at an address.
    #[inline(always)]
    pub(super) fn room(&mut self, addr: u64) {
        self.found |= addr >> 6 == self.line;
    }

    /// Of a ring from the driver, of which a burst was popped, with a buffer at `addr`, and the `other`
    /// one of its pair.
    #[inline(always)]
    pub(super) fn learn(&mut self, addr: u64, other: &mut Reuse) {
        self.bursts += 1;
        if other.found || self.bursts == PATIENCE {
            self.expected = other.found;
            *other = Reuse { line: addr >> 6, ..Reuse::default() };
            self.bursts = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_comes_back_is_noticed_and_one_that_does_not_is_forgotten() {
        let (mut from, mut to) = (Reuse::default(), Reuse::default());
        let burst = |from: &mut Reuse, to: &mut Reuse, sent: u64, room: u64| {
            from.learn(sent, to);
            to.room(room);
        };
        for i in 0..u64::from(PATIENCE) * 3 {
            burst(&mut from, &mut to, i % 50 * 2048, (1 << 30) + i % 50 * 2048);
            assert!(!from.expected());
        }
        // Each buffer is posted twenty bursts after it was sent.
        for i in 0..u64::from(PATIENCE) * 3 {
            burst(&mut from, &mut to, i % 50 * 2048, (i + 30) % 50 * 2048);
            assert!(from.expected() || i < u64::from(PATIENCE) + 50);
        }
        for i in 0..u64::from(PATIENCE) * 3 {
            burst(&mut from, &mut to, i % 50 * 2048, 1 << 30);
        }
        assert!(!from.expected());
    }
}
