//! The control thread of a client: connects, says where memory and rings are, hands the rings to the queues,
//! watches the connection, and begins again when it ends.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Backing, Map, PageSize, Table};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::address::Address;
use super::client::{Lane, Live};
use super::door::{Door, State};
use super::ring::Ring;
use super::wire::{Message, Wire, WireError, field, init, text};
use crate::spec::memif::{AddRegion, AddRing, Connect, Hello, RING_TO_SERVER, VERSION, kind};
use crate::sys::eventfd::EventFd;

/// Between two attempts to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The thread's own.
pub(super) struct Control {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) id: u32,
    pub(super) secret: String,
    pub(super) log2: u8,
    pub(super) state: Arc<State>,
    pub(super) doors: Vec<Arc<Door<Live>>>,
    /// The frames of each queue: its region, the rings being region 0.
    pub(super) frames: Vec<Arc<Table>>,
}

impl Control {
    /// Until the port stops.
    pub(super) fn run(self) {
        let (mut pause, mut told) = (FIRST_PAUSE, false);
        while !self.state.stopped() {
            match self.converse() {
                Err(why) => {
                    if !std::mem::replace(&mut told, true) {
                        let address = &self.address;
                        tracing::warn!("port {}: memif server at {address}: {why}; trying again", self.name);
                    }
                    self.wait(None, Some(pause));
                    pause = (2 * pause).min(LAST_PAUSE);
                }
                Ok(ended) => {
                    if let Some(why) = ended {
                        tracing::warn!("port {}: {why}; link down, waiting for the server", self.name);
                    }
                    (pause, told) = (FIRST_PAUSE, false);
                    self.wait(None, Some(if self.state.broken() { LAST_PAUSE } else { FIRST_PAUSE }));
                }
            }
        }
    }

    /// One connection from its first message to its end: why it ended, `None` because the port stops.
    fn converse(&self) -> Result<Option<WireError>, WireError> {
        let socket = self.address.connect().map_err(|errno| WireError::Os { what: "connect", errno })?;
        let wire = Wire::new(socket);
        let lives = match self.set_up(&wire) {
            Ok(lives) => lives,
            Err(why) => {
                if !why.is_peers() {
                    wire.leave(&why.to_string());
                }
                return Err(why);
            }
        };
        for (door, live) in self.doors.iter().zip(lives) {
            door.give(live);
        }
        self.state.set_up(true);
        let ended = self.watch(&wire);
        self.state.set_up(false);
        self.doors.iter().for_each(|door| door.down());
        Ok(ended)
    }

    /// Until the connection ends.
    fn watch(&self, wire: &Wire) -> Option<WireError> {
        loop {
            self.wait(Some(wire), None);
            if self.state.stopped() {
                wire.leave("the port was stopped");
                return None;
            }
            if self.state.broken() {
                wire.leave("the server broke the rules of a ring");
                return Some(WireError::Refused("the server broke the rules of a ring".to_owned()));
            }
            match wire.receive().and_then(|message| message.map(Message::or_end).transpose()) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    let why = WireError::Unexpected(message.kind());
                    wire.leave(&why.to_string());
                    return Some(why);
                }
                Err(why) => return Some(why),
            }
        }
    }

    /// From a connected socket to rings that the server runs.
    fn set_up(&self, wire: &Wire) -> Result<Vec<Live>, WireError> {
        let hello = match self.expect(wire)? {
            Message::Hello(hello) => hello,
            other => return Err(WireError::Unexpected(other.kind())),
        };
        let (min, max) = (hello.min_version, hello.max_version);
        if !(min..=max).contains(&VERSION) {
            return Err(WireError::Refused(format!(
                "versions {min:#x} to {max:#x}, where ours is {VERSION:#x}"
            )));
        }
        if usize::from(hello.max_region) < self.doors.len() {
            let (n, most) = (self.doors.len() + 1, u32::from(hello.max_region) + 1);
            return Err(WireError::Refused(format!("it takes {most} regions of memory, and {n} are needed")));
        }
        wire.send(kind::INIT, &init(self.id, &self.secret, &self.name), None)?;
        self.acknowledged(wire)?;
        let log2 = self.log2.min(hello.max_log2_ring_size);
        let rings = self.rings(log2)?;
        for (index, table) in std::iter::once(&rings).chain(&self.frames).enumerate() {
            let map = &table.regions()[0].map;
            let region = AddRegion { index: index as u16, size: map.len() as u64 };
            wire.send(kind::ADD_REGION, &region, Some(map.fd()))?;
            self.acknowledged(wire)?;
        }
        let lives = self.add_rings(wire, &hello, &rings, log2)?;
        wire.send(kind::CONNECT, &Connect { name: field(&self.name) }, None)?;
        match self.expect(wire)? {
            Message::Connected(peer) => {
                let (id, name) = (self.id, text(&peer.name));
                tracing::info!("port {}: link up, interface {id} of server '{name}'", self.name);
                Ok(lives)
            }
            other => Err(WireError::Unexpected(other.kind())),
        }
    }

    /// Memory for all rings, each on pages of its own.
    fn rings(&self, log2: u8) -> Result<Arc<Table>, WireError> {
        let whole = 2 * self.doors.len() as u64 * Ring::bytes(log2).next_multiple_of(4096);
        let map = Map::shared(whole as usize, Backing { page: PageSize::Base, node: None });
        Ok(Table::of(map.map_err(|e| WireError::Refused(format!("memory for rings: {e}")))?))
    }

    /// Tells the server of as many rings as it takes.
    fn add_rings(
        &self,
        wire: &Wire,
        hello: &Hello,
        table: &Arc<Table>,
        log2: u8,
    ) -> Result<Vec<Live>, WireError> {
        let fail = |e: std::io::Error| WireError::Refused(format!("eventfd: {e}"));
        let most = [hello.max_to_server, hello.max_to_client].map(|last| usize::from(last) + 1);
        let mut lives = Vec::new();
        for queue in 0..self.doors.len() {
            let events = [EventFd::shared().map_err(fail)?, EventFd::shared().map_err(fail)?];
            let mut lanes = [None, None];
            for (side, lane) in lanes.iter_mut().enumerate().filter(|(side, _)| queue < most[*side]) {
                let offset = (2 * queue + side) as u64 * Ring::bytes(log2).next_multiple_of(4096);
                let ring = Ring::open(table, offset, log2).expect("planned to lie in the mapping");
                ring.init();
                let ring_at = AddRing {
                    flags: if side == 0 { RING_TO_SERVER } else { 0 },
                    index: queue as u16,
                    region: 0,
                    offset: offset as u32,
                    log2_size: log2,
                    private_header: 0,
                };
                wire.send(kind::ADD_RING, &ring_at, Some(events[side].as_fd()))?;
                self.acknowledged(wire)?;
                *lane = Some(Lane::new(ring));
            }
            let ([kick, call], [send, receive]) = (events, lanes);
            lives.push(Live { send, receive, kick, call });
        }
        Ok(lives)
    }

    fn acknowledged(&self, wire: &Wire) -> Result<(), WireError> {
        match self.expect(wire)? {
            Message::Ack => Ok(()),
            other => Err(WireError::Unexpected(other.kind())),
        }
    }

    /// The server's next message.
    fn expect(&self, wire: &Wire) -> Result<Message, WireError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = wire.receive()? {
                return message.or_end();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.state.stopped() || left.is_zero() {
                return Err(WireError::Refused(format!("no answer within {PATIENCE:?}")));
            }
            self.wait(Some(wire), Some(left));
        }
    }

    /// Waits for the bell, for a message or an end, or for the time to pass.
    fn wait(&self, wire: Option<&Wire>, timeout: Option<Duration>) {
        let bell = self.state.bell();
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
        fds.extend(wire.map(|wire| PollFd::from_borrowed_fd(wire.socket(), PollFlags::IN)));
        let time = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let _ = poll(&mut fds, time.as_ref());
        bell.clear();
    }
}
