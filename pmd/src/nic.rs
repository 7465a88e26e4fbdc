//! NICs behind VFIO: what a chip offers to its port, and one family of chips per file.
//!
//! A [`Chip`] is the control side: registers, link, filters, counters. Its [`Rings`] are the data side
//! of one queue pair: descriptors in memory of ours, and the addresses of packets in them. Neither owns
//! a packet: the port keeps what the device has ([`slots`]).

pub(crate) mod pci;
pub(crate) mod memory;
pub(crate) mod slots;
mod intel;
mod rss;
pub(crate) mod e1000e;
pub(crate) mod igb;
pub(crate) mod ixgbe;
pub(crate) mod virtio;
pub(crate) mod vmxnet3;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Offload};

use crate::filter::Filter;
use crate::sys::vfio::{Bar, Device, VfioError};
use slots::Slots;

/// Registers of a device, behind one base address.
pub(crate) trait Registers: Send + Sync {
    /// The register at byte `at`, of 1, 2 or 4 bytes; all ones when the device is gone.
    fn read(&self, at: u32, bytes: u32) -> u32;
    /// Writes it.
    fn write(&self, at: u32, bytes: u32, value: u32);

    /// A register of 4 bytes.
    fn get(&self, at: u32) -> u32 {
        self.read(at, 4)
    }
    /// Writes a register of 4 bytes.
    fn set(&self, at: u32, value: u32) {
        self.write(at, 4, value);
    }
    /// Sets bits of a register of 4 bytes and clears others.
    fn change(&self, at: u32, set: u32, clear: u32) {
        self.set(at, (self.get(at) & !clear) | set);
    }
}

impl Registers for Bar {
    fn read(&self, at: u32, bytes: u32) -> u32 {
        Bar::read(self, at, bytes)
    }
    fn write(&self, at: u32, bytes: u32, value: u32) {
        Bar::write(self, at, bytes, value);
    }
}

/// Registers as drivers hold them: a device's, or a model's.
pub(crate) type Regs = Arc<dyn Registers>;

/// Why a NIC does not start, or cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NicError {
    /// VFIO's or the IOMMU's refusal.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// The address is no device, or one that nothing here drives.
    #[error("{0}")]
    Device(Cow<'static, str>),
    /// No memory for its rings.
    #[error(transparent)]
    Memory(#[from] hugepages::MapError),
    /// It did not do in time what it was told.
    #[error("the device did not {0} within {1} ms")]
    Late(&'static str, u64),
}

/// What a chip can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// `net_e1000e`, in DPDK's words.
    pub(crate) driver: &'static str,
    /// Most queue pairs.
    pub(crate) queues: u16,
    /// Longest frame, without the check sequence.
    pub(crate) max_frame: u32,
}

/// How a port wants its chip to start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Queue pairs, 1 to [`About::queues`].
    pub(crate) queues: u16,
    /// Descriptors of a receive ring; a chip takes the next number it can.
    pub(crate) rx_size: u16,
    /// Descriptors of a transmit ring.
    pub(crate) tx_size: u16,
    /// Bytes of every empty buffer that will be posted: a multiple of 1 KiB, at most 16 KiB.
    pub(crate) room: u32,
    /// Longest frame, without the check sequence.
    pub(crate) max_frame: u32,
    /// The address to listen to; `None`: the device's own.
    pub(crate) mac: Option<[u8; 6]>,
    /// Memory of the rings.
    pub(crate) backing: Backing,
}

/// A device that does not keep the rules: it is stopped.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) Cow<'static, str>);

/// The control side of a NIC.
pub(crate) trait Chip: Send + 'static {
    /// One queue pair of it.
    type Rings: Rings;
    /// What it can do.
    fn about(&self) -> About;
    /// Its address.
    fn mac(&self) -> [u8; 6];
    /// Resets it and starts as many queue pairs, with empty rings.
    fn start(&mut self, setup: &Setup) -> Result<Vec<Self::Rings>, NicError>;
    /// Takes these frames from now on, and after each start.
    fn filter(&mut self, filter: &Filter) -> Result<(), NicError>;
    /// Stops it: when this returns it reads and writes no memory.
    fn stop(&mut self);
    /// Whether the link is up, and its speed in Mbit/s.
    fn link(&self) -> (bool, u32);
    /// What its own registers count since it was opened.
    fn counters(&mut self) -> Vec<(&'static str, u64)>;
}

/// What became of a packet that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The device has it, under this number: below the size of the ring, and of no other packet that the
    /// device has.
    Taken(u16),
    /// Not now.
    Full,
}

/// What came in.
pub(crate) enum Arrival {
    /// The next buffer of a packet, cut to what was received, with `MORE` if others follow.
    Piece(Buf),
    /// The same, of a packet that was damaged.
    Damaged(Buf),
}

/// The data side: one queue pair. Descriptors are written, then shown together.
pub(crate) trait Rings: Send {
    /// Most buffers that one packet may have.
    const MOST: usize;
    /// The device writes the header of a virtio-net packet, of 12 bytes, in front of what it receives.
    const HEADER: bool = false;

    /// Whether the device itself does what a packet leaves to be done.
    fn completes(&self, offload: &Offload) -> bool;

    /// Entries of the transmit ring.
    fn tx_size(&self) -> u16;
    /// Packets of one buffer that can be added.
    fn free(&self) -> usize;
    /// Adds a packet of at most [`Rings::MOST`] buffers.
    fn send(&mut self, packet: &[Buf]) -> Fate;
    /// Shows the device what was added.
    fn show_sent(&mut self);
    /// A packet that the device has done with.
    fn sent(&mut self) -> Result<Option<u16>, Broken>;

    /// Empty buffers that the receive ring holds at most.
    fn rx_size(&self) -> u16;
    /// Bytes that the device may write to an empty buffer, whatever its length; 0: it keeps to the length.
    fn writes(&self) -> u32;
    /// Adds an empty buffer; the number under which it is kept, below [`Rings::rx_size`] + 2. The caller
    /// counts them.
    fn post(&mut self, empty: &Buf) -> u16;
    /// Shows the device what was added.
    fn show_posted(&mut self);
    /// The next buffer that was filled, taken out of `posted`.
    fn received(&mut self, posted: &mut Slots) -> Result<Option<Arrival>, Broken>;
}

/// Opens the device and lets it be mapped; its registers behind base address 0.
pub(crate) fn open(address: &pci::Address) -> Result<(Arc<Device>, pci::Id), NicError> {
    let id = address.id()?;
    let group = address.group()?;
    Ok((Arc::new(Device::open(&address.to_string(), group)?), id))
}

/// Registers behind base address `index`.
pub(crate) fn registers(device: &Device, index: u32) -> Result<Regs, NicError> {
    let bar = device.bar(index)?;
    let missing = || NicError::Device(format!("no registers behind base address {index}").into());
    Ok(Arc::new(bar.ok_or_else(missing)?))
}

/// Waits until `done` holds, up to `limit`; whether it did.
pub(crate) fn wait(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
