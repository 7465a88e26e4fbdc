//! The door of every device: a control side ([`Port`]) and a data side ([`Queue`]).
//!
//! A port hands out its queues when it starts; a queue is owned by one core, which calls its five
//! verbs; it comes home to be stopped. One kind of port per file below.

pub mod frames;
pub(crate) mod knock;
mod pace;
pub mod pipe;
pub mod null;
pub mod generator;
pub mod pcap;
pub mod tap;
pub mod packet;
pub mod nic;
pub mod afxdp;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod vhost;
pub mod virtio_user;
pub mod memif;
pub mod watch;
pub mod tracer;
pub mod fault;
pub mod gro;

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hugepages::{Buf, Loan, Monitor, Table};

use crate::batch::Batch;
pub use crate::filter::Filter;

/// What went wrong with a port. The message names the port, what was wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// An argument of the port is unknown, missing or out of range.
    #[error("port {port}: {what}")]
    Config {
        /// Name of the port.
        port: String,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The system refused.
    #[error("port {port}: {what}: {source}")]
    Io {
        /// Name of the port.
        port: String,
        /// The step that failed, and what to do.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// Memory could not be mapped.
    #[error("port {port}: {source}")]
    Memory {
        /// Name of the port.
        port: String,
        /// Why.
        source: hugepages::MapError,
    },
}

/// What a port can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Largest frame payload, bytes after the Ethernet header.
    pub mtu: u32,
    /// Most queues it can start.
    pub queues: u16,
    /// Checksums that a packet leaves open are completed by the receiver: it takes
    /// `Offload::flags` and `csum_*` as they are.
    pub checksum: bool,
    /// Takes packets to be segmented (`Offload::gso_*`) as they are.
    pub segmentation: bool,
    /// Its `tx` reads other lenders' memory in place and finishes the buffers later, in `reap`.
    pub reads_foreign_memory: bool,
}

/// State of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether packets can pass.
    pub up: bool,
    /// Mbit/s; 0 when the port has no such notion.
    pub speed: u32,
}

/// The control side of a device.
pub trait Port: Send {
    /// Its name, as given (`vhost0`).
    fn name(&self) -> &str;
    /// Its kind (`net_vhost`), in DPDK's words where DPDK has it.
    fn driver(&self) -> &'static str;
    /// What it can do.
    fn caps(&self) -> Caps;
    /// Its own MAC address.
    fn mac(&self) -> [u8; 6];
    /// State of its link, now.
    fn link(&self) -> Link;
    /// Which frames it takes; `None`: all that there are, and that cannot be changed.
    fn filter(&self) -> Option<Filter> {
        None
    }
    /// Takes these frames from now on.
    ///
    /// # Errors
    /// When the device cannot.
    fn set_filter(&mut self, filter: Filter) -> Result<(), PortError> {
        let _ = filter;
        let what = "takes every frame, whatever its destination; that cannot be changed".to_owned();
        Err(PortError::Config { port: self.name().to_owned(), what })
    }
    /// Lets the device reach a guest's memory (DMA). Ports that copy have nothing to do.
    ///
    /// # Errors
    /// When the IOMMU refuses.
    fn map(&mut self, memory: &Arc<Table>) -> Result<(), PortError> {
        let _ = memory;
        Ok(())
    }
    /// Starts it with `queues` queues (1 to `caps().queues`) and hands them out, by index.
    ///
    /// # Errors
    /// When the device cannot be opened or has fewer queues.
    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError>;
    /// Takes its queues home, none with buffers out, and stops.
    ///
    /// # Errors
    /// When the device does not stop cleanly.
    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError>;
    /// Counters of all its queues since the last `clear_stats`, by queue.
    fn stats(&self) -> Vec<Stats>;
    /// Further counters of this kind of port, by name.
    fn xstats(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
    /// Sets all counters to zero.
    fn clear_stats(&mut self);
}

/// The data side of a device: one queue pair, owned by one core, a burst per call. A port knows its
/// own again when they come home, as [`Any`].
pub trait Queue: Send + Any {
    /// Lends up to `out.burst()` packets to the back of `out`; how many. Never more buffers than
    /// `out.room()`.
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize;
    /// Takes packets from the front of `batch`; how many. What does not fit stays with the caller; a
    /// packet that can never be sent is taken, finished and counted as an error.
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize;
    /// Gives receipts of what `tx` has finished with, as many as fit; how many. Called every turn unless
    /// it [rests](Queue::rest), also while forwarding is stopped: housekeeping of the queue belongs here.
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize;
    /// Takes its own receipts from the front of `loans`, and stops at the first that is not its own.
    fn settle(&mut self, loans: &mut Batch<Loan>);
    /// Whether `rx` passes on buffers that lenders on other cores own, and `settle` takes their receipts
    /// to carry them back. Such a queue is offered receipts before all others, because the lender may
    /// be on this core as well. Ports around ports pass the answer on.
    fn carries(&self) -> bool {
        false
    }
    /// Buffers that `rx` lent and that are not settled; 0: the queue may leave its core.
    fn lent(&self) -> u32;
    /// Buffers of others that `tx` took and that are not reaped yet.
    fn held(&self) -> u32;
    /// Direct receive: the empty buffers of a guest that [`Queue::post`] would take now; `None`: it takes
    /// none, or does not receive at present.
    fn wants(&self) -> Option<Wanted> {
        None
    }
    /// Direct receive: takes empty buffers of another lender from the front of `empty` to fill; how many.
    /// What comes in is lent by `rx` in them, behind 12 bytes for their header; those that are given up
    /// come back by `reap`.
    fn post(&mut self, empty: &mut Batch<Buf>) -> usize {
        let _ = empty;
        0
    }
    /// Direct receive: gives up what was posted and has not been filled.
    fn unpost(&mut self) {}
    /// Direct receive, at the other end: lends empty buffers, as `wanted`, to the back of `out`, which is empty;
    /// how many. `tx` takes them again, filled, and nothing is copied. `None`: those that are out are wanted back.
    fn empty(&mut self, wanted: &Wanted, out: &mut Batch<Buf>) -> Option<usize> {
        let _ = (wanted, out);
        Some(0)
    }
    /// After some turns in which `rx` brought nothing: `true`, it may be left alone until the word that
    /// it lets `monitor` watch changes, it is sent something, receipts come for it, or the control side
    /// knocks. A call of `rx` finds nothing until then, and `reap` has nothing to do. `false`: it is asked every turn.
    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        let _ = monitor;
        false
    }
    /// Before the core sleeps: asks the peer to call, and hands the descriptors that become readable
    /// when it does to `wait`. `false`: there is work already, or the queue can only be polled: do
    /// not sleep.
    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        let _ = wait;
        false
    }
    /// After the core woke: asks the peer to be quiet again. `rung`: one of the descriptors that it waited
    /// for was readable.
    fn wake(&mut self, rung: bool) {
        let _ = rung;
    }
    /// Its counters, shared with the control side.
    fn counters(&self) -> Arc<Counters>;
}

/// Empty buffers for direct receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How many.
    pub most: usize,
    /// Bytes that each must have, the 12 of a header among them.
    pub least: u32,
    /// Bytes that each must have of a guest whose packets are of one buffer each.
    pub whole: u32,
}

/// Counters of one queue: written by its core only, read by anyone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Packets lent by `rx`.
    pub rx_packets: Count,
    /// Their bytes, without any header of the transport.
    pub rx_bytes: Count,
    /// Packets that arrived but could not be lent for want of buffers.
    pub rx_missed: Count,
    /// Packets that arrived damaged.
    pub rx_errors: Count,
    /// Packets taken by `tx` and delivered.
    pub tx_packets: Count,
    /// Their bytes.
    pub tx_bytes: Count,
    /// Packets taken by `tx` that could not be delivered.
    pub tx_errors: Count,
    /// Packets taken by `tx` that the peer has said it does not want.
    pub tx_filtered: Count,
    /// Packets taken by `tx` that lay in the peer's memory already: nothing was copied.
    pub tx_in_place: Count,
    /// Notifications sent to the peer.
    pub calls: Count,
    /// Rings retired for a fault of the peer.
    pub faults: Count,
}

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds; to be called by the one writer only (no locked instruction is used).
    #[inline(always)]
    pub fn add(&self, n: u64) {
        // Relaxed both: a count orders nothing.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The number now.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What [`Counters`] held at a moment, or how much they grew between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_missed: u64,
    pub rx_errors: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
    pub tx_filtered: u64,
    pub tx_in_place: u64,
    pub calls: u64,
    pub faults: u64,
}

impl Counters {
    /// The counters now.
    pub fn stats(&self) -> Stats {
        Stats {
            rx_packets: self.rx_packets.get(),
            rx_bytes: self.rx_bytes.get(),
            rx_missed: self.rx_missed.get(),
            rx_errors: self.rx_errors.get(),
            tx_packets: self.tx_packets.get(),
            tx_bytes: self.tx_bytes.get(),
            tx_errors: self.tx_errors.get(),
            tx_filtered: self.tx_filtered.get(),
            tx_in_place: self.tx_in_place.get(),
            calls: self.calls.get(),
            faults: self.faults.get(),
        }
    }
}

impl Stats {
    fn zip(self, other: Stats, f: impl Fn(u64, u64) -> u64) -> Stats {
        Stats {
            rx_packets: f(self.rx_packets, other.rx_packets),
            rx_bytes: f(self.rx_bytes, other.rx_bytes),
            rx_missed: f(self.rx_missed, other.rx_missed),
            rx_errors: f(self.rx_errors, other.rx_errors),
            tx_packets: f(self.tx_packets, other.tx_packets),
            tx_bytes: f(self.tx_bytes, other.tx_bytes),
            tx_errors: f(self.tx_errors, other.tx_errors),
            tx_filtered: f(self.tx_filtered, other.tx_filtered),
            tx_in_place: f(self.tx_in_place, other.tx_in_place),
            calls: f(self.calls, other.calls),
            faults: f(self.faults, other.faults),
        }
    }

    /// How much each grew since `earlier`.
    pub fn since(self, earlier: Stats) -> Stats {
        self.zip(earlier, u64::wrapping_sub)
    }

    /// The sum.
    pub fn plus(self, other: Stats) -> Stats {
        self.zip(other, u64::wrapping_add)
    }
}

/// The counters of a port's queues and where they stood when they were last cleared: what most ports
/// keep on their control side.
#[derive(Debug, Default)]
pub struct Tally {
    queues: Vec<(Arc<Counters>, Stats)>,
}

impl Tally {
    /// Counts these queues from zero.
    pub fn of(queues: &[Box<dyn Queue>]) -> Tally {
        Tally { queues: queues.iter().map(|q| (q.counters(), q.counters().stats())).collect() }
    }

    /// By queue, since the last clear.
    pub fn stats(&self) -> Vec<Stats> {
        self.queues.iter().map(|(now, then)| now.stats().since(*then)).collect()
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        for (now, then) in &mut self.queues {
            *then = now.stats();
        }
    }
}

/// Finishes the first packet of `batch` without sending it; its receipts go to `done`, which must
/// have room for as many. How many buffers it had.
pub fn drop_packet(batch: &mut Batch<Buf>, done: &mut Batch<Loan>) -> usize {
    let mut n = 0;
    while let Some(buf) = batch.pop_front() {
        let more = buf.more();
        done.push(buf.finish(0));
        n += 1;
        if !more {
            break;
        }
    }
    n
}
