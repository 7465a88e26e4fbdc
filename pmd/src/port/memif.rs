//! A port to another process over memif, the shared-memory interface of VPP and of DPDK: for containers without
//! virtio. The client brings the memory, rings and buffers, and connects; the server listens.
//!
//! As a client, what it sends of its own buffers goes as it is, and what it receives is lent where the server
//! wrote it: no copy but of packets that lie in others' memory. As a server, what it receives is lent where it
//! lies in the client's memory, and what it sends is copied once. Checksums and segmentation that a packet asks
//! for are done in software: memif knows no offloads.
//!
//! Everything that the peer writes is checked as a guest's rings are; a fault retires the rings, and the
//! connection begins anew.
//!
//! - `address`, `wire`: the socket, and one message
//! - `ring`: a ring, and a packet on it
//! - `door`: how rings come to a queue on its core
//! - `client`, `server`: the data sides
//! - `control`: a client's thread; `hub`: the thread behind a server's socket, which ports share

mod address;
mod client;
mod control;
mod door;
mod hub;
#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
mod ring;
mod server;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use hugepages::Backing;

use crate::batch::CAP;
use crate::port::frames::{self, local_mac};
use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use crate::spec::memif::MAX_LOG2_RING;
use crate::spec::net::MAX_FRAME;
use crate::sys::eventfd::EventFd;
use address::Address;
use client::ClientQueue;
use control::Control;
use door::{Door, State};
use hub::{Hub, Member};
use server::ServerQueue;

/// Most queues of a port.
pub const MAX_QUEUES: u16 = 128;
/// Where memif servers listen unless told otherwise.
pub const SOCKET: &str = "/run/memif.sock";
/// Most bytes of a secret.
pub const MAX_SECRET: usize = 24;
/// Bytes of a buffer, least and most.
pub const BUFFER: std::ops::RangeInclusive<u32> = 512..=16384;

/// Which side of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Listens, and is given memory: memif's server, or master.
    Server,
    /// Brings the memory, and connects: memif's client, or slave.
    #[default]
    Client,
}

/// What a memif port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which side it is.
    pub role: Role,
    /// The server's socket, which several interfaces may share.
    pub socket: PathBuf,
    /// The socket is a name in the abstract namespace and no file.
    pub is_abstract: bool,
    /// Number of the interface on its socket, the same on both sides.
    pub id: u32,
    /// What a client must know; empty: nothing.
    pub secret: String,
    /// Descriptors of a ring, as a power of two; a server takes what the client has.
    pub ring_log2: u8,
    /// Bytes of a client's buffer. DPDK's server fills buffers without looking at their length: it must have the
    /// same.
    pub buffer: u32,
    /// Its address; made from the name if there is none.
    pub mac: Option<[u8; 6]>,
    /// Memory of a client's buffers.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            role: Role::Client,
            socket: SOCKET.into(),
            is_abstract: true,
            id: 0,
            secret: String::new(),
            ring_log2: 10,
            buffer: 2048,
            mac: None,
            backing: Backing::default(),
        }
    }
}

/// What there is while the port is started.
enum Started {
    Client(Arc<State>, JoinHandle<()>),
    Server(Arc<State>, Arc<Hub>),
}

/// The control side.
pub struct Memif {
    name: String,
    config: Config,
    tally: Tally,
    started: Option<Started>,
}

impl Memif {
    /// A memif port, not started: it neither listens nor connects yet.
    ///
    /// # Errors
    /// When an argument is missing or out of range.
    pub fn new(name: &str, config: Config) -> Result<Memif, PortError> {
        let wrong = |what| Err(PortError::Config { port: name.to_owned(), what });
        if config.socket.as_os_str().is_empty() {
            return wrong("socket= of the server is missing".to_owned());
        }
        if config.ring_log2 > MAX_LOG2_RING {
            return wrong(format!("rings of 2^{}: rsize= is 0 to {MAX_LOG2_RING}", config.ring_log2));
        }
        if !BUFFER.contains(&config.buffer) {
            let (low, high) = (BUFFER.start(), BUFFER.end());
            return wrong(format!("buffers of {} bytes: bsize= is {low} to {high}", config.buffer));
        }
        if config.secret.len() > MAX_SECRET {
            return wrong(format!("a secret of {} bytes: at most {MAX_SECRET}", config.secret.len()));
        }
        Ok(Memif { name: name.to_owned(), config, tally: Tally::default(), started: None })
    }

    fn address(&self) -> Address {
        Address { path: self.config.socket.clone(), is_abstract: self.config.is_abstract }
    }

    fn error(&self, what: impl Into<String>) -> impl FnOnce(io::Error) -> PortError {
        let (port, what) = (self.name.clone(), what.into());
        move |source| PortError::Io { port, what, source }
    }

    fn state(&self) -> Option<&Arc<State>> {
        match &self.started {
            Some(Started::Client(state, _) | Started::Server(state, _)) => Some(state),
            None => None,
        }
    }

    fn label(&self, queue: u16) -> String {
        format!("port {} queue {queue}", self.name)
    }

    fn start_client(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let bell = Arc::new(EventFd::new().map_err(self.error("eventfd"))?);
        let state = Arc::new(State::new(bell));
        let (mut doors, mut memory, mut started) = (Vec::new(), Vec::new(), Vec::<Box<dyn Queue>>::new());
        // A ring of empty buffers, a ring of buffers to send, a ring of buffers on loan, and a batch.
        let frames = (3 << self.config.ring_log2) + CAP;
        // An odd number of cache lines: the first lines of frames fall into different sets of the cache.
        let frame = self.config.buffer.next_multiple_of(64) | 64;
        for queue in 0..queues {
            let pool = frames::pool(&self.name, frames, frame, self.config.backing)?;
            let door = Arc::new(Door::new(&state).map_err(self.error("eventfd"))?);
            memory.push(Arc::clone(pool.table()));
            doors.push(Arc::clone(&door));
            let (region, size) = (queue + 1, self.config.buffer);
            started.push(Box::new(ClientQueue::new(self.label(queue), pool, region, size, door)));
        }
        let control = Control {
            name: self.name.clone(),
            address: self.address(),
            id: self.config.id,
            secret: self.config.secret.clone(),
            log2: self.config.ring_log2,
            state: Arc::clone(&state),
            doors,
            frames: memory,
        };
        let thread = std::thread::Builder::new().name(format!("{}-ctl", self.name));
        let thread = thread.spawn(move || control.run()).map_err(self.error("control thread"))?;
        self.started = Some(Started::Client(state, thread));
        Ok(started)
    }

    fn start_server(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let address = self.address();
        let hub = Hub::at(&address).map_err(self.error(format!(
            "cannot listen on memif socket {address}; does another process, or may we not write there?"
        )))?;
        let state = Arc::new(State::new(hub.bell()));
        let (mut doors, mut started) = (Vec::new(), Vec::<Box<dyn Queue>>::new());
        for queue in 0..queues {
            let door = Arc::new(Door::new(&state).map_err(self.error("eventfd"))?);
            doors.push(Arc::clone(&door));
            started.push(Box::new(ServerQueue::new(self.label(queue), door)));
        }
        let member = Member {
            name: self.name.clone(),
            id: self.config.id,
            secret: self.config.secret.clone(),
            taken: AtomicBool::new(false),
            state: Arc::clone(&state),
            doors,
        };
        hub.enter(Arc::new(member)).map_err(self.error(format!("memif socket {address}")))?;
        self.started = Some(Started::Server(state, hub));
        Ok(started)
    }

    /// Leaves the peer; nobody is at the queues' doors any more.
    fn end(&mut self) {
        match self.started.take() {
            Some(Started::Client(state, thread)) => {
                state.stop();
                if thread.join().is_err() {
                    tracing::error!("port {}: control thread panicked", self.name);
                }
            }
            Some(Started::Server(_, hub)) => hub.leave(self.config.id),
            None => {}
        }
    }
}

impl Port for Memif {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_memif"
    }

    fn caps(&self) -> Caps {
        Caps {
            mtu: MAX_FRAME - 18,
            queues: MAX_QUEUES,
            checksum: false,
            segmentation: false,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.config.mac.unwrap_or_else(|| local_mac(&self.name))
    }

    fn link(&self) -> Link {
        Link { up: self.state().is_some_and(|state| state.up()), speed: 10_000 }
    }

    /// A client connects, again and again until there is a server; the link comes up when it does.
    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        assert!(self.started.is_none(), "port {} is started already", self.name);
        let started = match self.config.role {
            Role::Client => self.start_client(queues),
            Role::Server => self.start_server(queues),
        }?;
        self.tally = Tally::of(&started);
        Ok(started)
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
        let Some(state) = self.state() else { return Vec::new() };
        let faults = self.tally.stats().iter().map(|stats| stats.faults).sum();
        vec![("connections".to_owned(), state.connections()), ("faults".to_owned(), faults)]
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

impl Drop for Memif {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
