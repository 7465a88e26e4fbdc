//! A port that is a guest: the driver's side of virtio-net towards any vhost-user back-end (DPDK's
//! `net_vhost`, a port of Open vSwitch, our own `vhost`).
//!
//! The memory is ours and sent to the back-end: rings and frames of all queues in one mapping. `rx`
//! lends received frames as they are; `tx` copies foreign packets into frames of its own and gives the
//! receipt at once, and sends its own received frames without a copy. When the back-end goes away the
//! link is down until it, or its successor, is back; then everything is negotiated afresh.
//!
//! - `memory`: where everything lies in the one mapping
//! - `frames`: the frames of one queue: free, on loan, in a ring
//! - `door`: how rings come to a queue on its core
//! - `wire`, `receive`, `scatter`, `send`: the header, and packets off and onto the rings
//! - `queue`: the data side
//! - `front`: the vhost-user protocol, the front-end's side
//! - `control`: the thread that connects, negotiates, watches and connects again

mod control;
mod door;
mod frames;
mod front;
#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
mod memory;
mod queue;
mod receive;
mod scatter;
mod send;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use hugepages::Backing;

use crate::port::frames::local_mac;
use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use crate::spec::net::{self, MAX_QUEUE_PAIRS};
use crate::spec::virtio as v;
use control::{Control, State};
use memory::Memory;

/// Most buffers one packet may take in a ring; a packet of 64 KiB takes 32 of the smallest frames.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes before the payload that a frame has room for: Ethernet and two VLAN tags.
const LINK_HEADER: u32 = 22;
/// The largest payload of an Ethernet frame that a port can be set to.
pub const MAX_MTU: u32 = 65535 - LINK_HEADER;

/// How to reach the back-end, and what to ask of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket.
    pub path: PathBuf,
    /// Listens on the socket and waits for the back-end to connect; otherwise connects to it.
    pub server: bool,
    /// Queue pairs it can start, 1 to [`MAX_QUEUE_PAIRS`].
    pub queues: u16,
    /// Entries of each ring, 1 to [`v::MAX_RING`]; a power of two unless `packed`.
    pub queue_size: u16,
    /// Asks for packed rings.
    pub packed: bool,
    /// Asks for received packets to take several buffers, which lets buffers be small.
    pub mrg_rxbuf: bool,
    /// Asks for buffers to be used in order.
    pub in_order: bool,
    /// Asks for notifications by event index.
    pub event_idx: bool,
    /// Asks for indirect descriptors, for packets of several buffers.
    pub indirect: bool,
    /// Address; made from the name if there is none.
    pub mac: Option<[u8; 6]>,
    /// Asks for checksum and segmentation offload, both ways.
    pub offloads: bool,
    /// Largest payload of a frame without segmentation, 68 to [`MAX_MTU`].
    pub mtu: u32,
    /// What the memory is to be made of.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            path: PathBuf::new(),
            server: false,
            queues: 1,
            queue_size: 256,
            packed: false,
            mrg_rxbuf: true,
            in_order: true,
            event_idx: false,
            indirect: true,
            mac: None,
            offloads: false,
            mtu: 1500,
            backing: Backing::default(),
        }
    }
}

impl Config {
    /// Features to ask for, when started with `queues`.
    fn features(&self, queues: u16) -> u64 {
        let mut features = v::F_VERSION_1;
        let mut ask = |wanted: bool, bits: u64| {
            if wanted {
                features |= bits;
            }
        };
        ask(self.packed, v::F_RING_PACKED);
        ask(self.mrg_rxbuf, net::F_MRG_RXBUF);
        ask(self.in_order, v::F_IN_ORDER);
        ask(self.event_idx, v::F_EVENT_IDX);
        ask(self.indirect, v::F_INDIRECT_DESC);
        ask(queues > 1, net::F_MQ);
        ask(self.offloads, net::F_CSUM | net::F_HOST_TSO4 | net::F_HOST_TSO6 | net::F_HOST_USO);
        ask(self.offloads, net::F_GUEST_CSUM);
        // Segments of 64 KiB are received into many small buffers or not at all.
        ask(self.offloads && self.mrg_rxbuf, net::F_GUEST_TSO4 | net::F_GUEST_TSO6);
        ask(self.offloads && self.mrg_rxbuf, net::F_GUEST_USO4 | net::F_GUEST_USO6);
        features
    }

    /// Bytes of a frame. Without mergeable buffers one must hold a whole packet. An odd number of cache
    /// lines, so that the first lines of frames do not all fall into the same few sets of the cache.
    fn frame(&self) -> u32 {
        let whole = if self.mrg_rxbuf { 0 } else { net::HDR_LEN + LINK_HEADER + self.mtu };
        whole.max(2048).next_multiple_of(64) | 64
    }

    fn check(&self, name: &str) -> Result<(), PortError> {
        let wrong = |what| Err(PortError::Config { port: name.to_owned(), what });
        if self.path.as_os_str().is_empty() {
            return wrong("path=SOCKET of the back-end is missing".to_owned());
        }
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queues) {
            return wrong(format!("queues={} is not in 1..={MAX_QUEUE_PAIRS}", self.queues));
        }
        if !(1..=v::MAX_RING).contains(&self.queue_size) {
            return wrong(format!("queue_size={} is not in 1..={}", self.queue_size, v::MAX_RING));
        }
        if !self.packed && !self.queue_size.is_power_of_two() {
            return wrong(format!(
                "queue_size={} is no power of two, as split rings have it",
                self.queue_size
            ));
        }
        if !(68..=MAX_MTU).contains(&self.mtu) {
            return wrong(format!("mtu={} is not in 68..={MAX_MTU}", self.mtu));
        }
        Ok(())
    }
}

/// The control side.
pub struct VirtioUser {
    name: String,
    config: Config,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    tally: Tally,
}

impl VirtioUser {
    /// A port, not started and not connected.
    ///
    /// # Errors
    /// When an argument is missing or out of range.
    pub fn new(name: &str, config: Config) -> Result<Self, PortError> {
        config.check(name)?;
        let io = |source| PortError::Io { port: name.to_owned(), what: "eventfd".to_owned(), source };
        let state = Arc::new(State::new().map_err(io)?);
        Ok(VirtioUser { name: name.to_owned(), config, state, thread: None, tally: Tally::default() })
    }

    /// Features in use with the back-end; 0 while there is none.
    pub fn features(&self) -> u64 {
        self.state.features()
    }
}

impl Port for VirtioUser {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_virtio_user"
    }

    fn caps(&self) -> Caps {
        let features = self.state.features();
        let tso = net::F_CSUM | net::F_HOST_TSO4 | net::F_HOST_TSO6;
        Caps {
            mtu: self.config.mtu,
            queues: self.config.queues,
            checksum: features & net::F_CSUM != 0,
            segmentation: features & tso == tso,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.config.mac.unwrap_or_else(|| local_mac(&self.name))
    }

    fn link(&self) -> Link {
        Link { up: self.state.features() != 0, speed: 10_000 }
    }

    /// Connects and negotiates; with `server`, listens, and the link comes up when the back-end does.
    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        assert!(self.thread.is_none(), "port {} is started already", self.name);
        let memory = Arc::new(Memory::new(&self.name, &self.config, queues)?);
        let (control, queues) = Control::start(&self.name, &self.config, memory, &self.state)?;
        let io =
            |source| PortError::Io { port: self.name.clone(), what: "control thread".to_owned(), source };
        let thread = std::thread::Builder::new().name(format!("{}-ctl", self.name));
        self.thread = Some(thread.spawn(move || control.run()).map_err(io)?);
        self.tally = Tally::of(&queues);
        Ok(queues)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        self.end();
        drop(queues);
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        vec![("connections".to_owned(), self.state.connections())]
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

impl VirtioUser {
    /// Takes the back-end off the rings and ends the thread.
    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.state.stop();
            if thread.join().is_err() {
                tracing::error!("port {}: control thread panicked", self.name);
            }
        }
    }
}

impl Drop for VirtioUser {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
