//! What a core counts: one writer each, read by anyone at any time.

use crate::batch::CAP;
use crate::port::Count;

/// Counters of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreCounters {
    /// Turns of the loop.
    pub turns: Count,
    /// Turns that moved nothing.
    pub empty_turns: Count,
    /// Cycles of turns that moved something, see [`cycles`](super::cycles).
    pub busy_cycles: Count,
    /// Cycles of the others, sleep included.
    pub idle_cycles: Count,
    /// Calls of `rx` that brought nothing.
    pub empty_polls: Count,
    /// Times the core slept until a peer called.
    pub sleeps: Count,
    /// Packets that the stage dropped, or sent to a queue that is not here.
    pub dropped: Count,
    /// Packets dropped because no frame was free to copy them into.
    pub no_frame: Count,
    /// Receipts that nobody claimed.
    pub lost: Count,
}

/// Counters of one queue on its worker.
#[derive(Debug)]
#[repr(align(128))]
pub struct Stream {
    /// Packets received.
    pub rx_packets: Count,
    /// Calls of `rx` that brought something.
    pub rx_bursts: Count,
    /// Packets that the queue took.
    pub tx_packets: Count,
    /// Calls of `tx` that sent something.
    pub tx_bursts: Count,
    /// Packets dropped because the queue was full (or on its way home).
    pub tx_dropped: Count,
    rx_spread: Box<[Count; CAP + 1]>,
    tx_spread: Box<[Count; CAP + 1]>,
}

impl Default for Stream {
    fn default() -> Self {
        let spread = || Box::new(std::array::from_fn(|_| Count::default()));
        Stream {
            rx_packets: Count::default(),
            rx_bursts: Count::default(),
            tx_packets: Count::default(),
            tx_bursts: Count::default(),
            tx_dropped: Count::default(),
            rx_spread: spread(),
            tx_spread: spread(),
        }
    }
}

impl Stream {
    #[inline(always)]
    pub(super) fn count_rx(&self, packets: usize) {
        self.rx_packets.add(packets as u64);
        self.rx_bursts.add(1);
        self.rx_spread[packets.min(CAP)].add(1);
    }

    #[inline(always)]
    pub(super) fn count_tx(&self, packets: usize) {
        self.tx_packets.add(packets as u64);
        self.tx_bursts.add(1);
        self.tx_spread[packets.min(CAP)].add(1);
    }

    /// The counters now.
    pub fn stats(&self) -> StreamStats {
        StreamStats {
            rx_packets: self.rx_packets.get(),
            rx_bursts: self.rx_bursts.get(),
            tx_packets: self.tx_packets.get(),
            tx_bursts: self.tx_bursts.get(),
            tx_dropped: self.tx_dropped.get(),
        }
    }

    /// How often `rx` brought 0, 1, 2, ... packets; index 0 stays 0, see `CoreCounters::empty_polls`.
    pub fn rx_spread(&self) -> Vec<u64> {
        self.rx_spread.iter().map(Count::get).collect()
    }

    /// How often `tx` took 0, 1, 2, ... packets; index 0 stays 0.
    pub fn tx_spread(&self) -> Vec<u64> {
        self.tx_spread.iter().map(Count::get).collect()
    }
}

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $($field:ident),* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: u64),* }

        impl $name {
            /// How much each grew since `earlier`.
            pub fn since(self, earlier: $name) -> $name {
                $name { $($field: self.$field.wrapping_sub(earlier.$field)),* }
            }

            /// The sum.
            pub fn plus(self, other: $name) -> $name {
                $name { $($field: self.$field.wrapping_add(other.$field)),* }
            }
        }
    };
}

stats! {
    /// What [`Stream`] held at a moment, or how much it grew between two.
    StreamStats { rx_packets, rx_bursts, tx_packets, tx_bursts, tx_dropped }
}

stats! {
    /// What [`CoreCounters`] held at a moment, or how much they grew between two.
    CoreStats { turns, empty_turns, busy_cycles, idle_cycles, empty_polls, sleeps, dropped, no_frame, lost }
}

impl CoreCounters {
    /// The counters now.
    pub fn stats(&self) -> CoreStats {
        CoreStats {
            turns: self.turns.get(),
            empty_turns: self.empty_turns.get(),
            busy_cycles: self.busy_cycles.get(),
            idle_cycles: self.idle_cycles.get(),
            empty_polls: self.empty_polls.get(),
            sleeps: self.sleeps.get(),
            dropped: self.dropped.get(),
            no_frame: self.no_frame.get(),
            lost: self.lost.get(),
        }
    }
}
