//! The thread behind a server's socket: any number of ports share it, told apart by the ids of their interfaces.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::sigbus::{self, Bell};
use hugepages::{Lender, Map, Region, Table};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::MAX_QUEUES;
use super::address::{Address, Listener};
use super::door::{Door, State};
use super::ring::Ring;
use super::server::{Inlet, Live, Outlet, REGION_SHIFT};
use super::wire::{Message, Wire, WireError, field, text};
use crate::spec::memif::{
    AddRegion, AddRing, Connect, Hello, Init, MAX_LOG2_RING, MODE_ETHERNET, RING_TO_SERVER, VERSION, kind,
};
use crate::sys::eventfd::EventFd;

/// Connections of one socket; more are closed at once.
const MAX_CONNECTIONS: usize = 256;
/// Regions of memory that a client may bring.
const MAX_REGIONS: u16 = 256;
/// Messages of one client before others have their turn.
const MESSAGES_A_TURN: usize = 64;
/// How long a client may take from its connection to its last message.
const PATIENCE: Duration = Duration::from_secs(10);

/// A port, as clients find it.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) id: u32,
    /// Empty: none is asked for.
    pub(super) secret: String,
    /// A client has asked for it, and is there.
    pub(super) taken: AtomicBool,
    pub(super) state: Arc<State>,
    pub(super) doors: Vec<Arc<Door<Live>>>,
}

/// What the thread and the ports know of each other.
struct Shared {
    members: Mutex<Vec<Arc<Member>>>,
    bell: Arc<EventFd>,
    stop: AtomicBool,
}

/// A socket on which ports are served, for as long as one of them holds it.
pub(super) struct Hub {
    address: Address,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

static HUBS: Mutex<Vec<Weak<Hub>>> = Mutex::new(Vec::new());

impl Hub {
    /// The hub of that address, begun if it is not there.
    pub(super) fn at(address: &Address) -> io::Result<Arc<Hub>> {
        let mut hubs = HUBS.lock().expect("no holder panics");
        hubs.retain(|hub| hub.strong_count() > 0);
        if let Some(hub) = hubs.iter().filter_map(Weak::upgrade).find(|hub| hub.address == *address) {
            return Ok(hub);
        }
        sigbus::install()?;
        let listener = Listener::bind(address)?;
        let bell = Arc::new(EventFd::new()?);
        let shared = Arc::new(Shared { members: Mutex::default(), bell, stop: AtomicBool::new(false) });
        let thread =
            Thread { listener, shared: Arc::clone(&shared), damage: Bell::new()?, clients: Vec::new() };
        let thread = std::thread::Builder::new().name("memif".to_owned()).spawn(move || thread.run())?;
        let hub = Arc::new(Hub { address: address.clone(), shared, thread: Some(thread) });
        hubs.push(Arc::downgrade(&hub));
        Ok(hub)
    }

    /// What ports ring.
    pub(super) fn bell(&self) -> Arc<EventFd> {
        Arc::clone(&self.shared.bell)
    }

    /// Clients find the port from now on.
    ///
    /// # Errors
    /// When a port of this id is there already.
    pub(super) fn enter(&self, member: Arc<Member>) -> io::Result<()> {
        let mut members = self.shared.members.lock().expect("no holder panics");
        if let Some(other) = members.iter().find(|other| other.id == member.id) {
            let what = format!("port {} has id={} on this socket already", other.name, other.id);
            return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
        }
        members.push(member);
        Ok(())
    }

    /// Clients do not find the port any more; one that it has is sent away.
    pub(super) fn leave(&self, id: u32) {
        self.shared.members.lock().expect("no holder panics").retain(|member| member.id != id);
        self.shared.bell.signal();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.bell.signal();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("memif socket {}: its thread panicked", self.address);
        }
    }
}

struct Thread {
    listener: Listener,
    shared: Arc<Shared>,
    /// Rings when memory of some client is gone.
    damage: Bell,
    clients: Vec<Client>,
}

impl Thread {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let mut ready = self.wait();
            if self.damage.clear() || ready[0] {
                let shared = Arc::clone(&self.shared);
                self.clients
                    .retain_mut(|client| client.check(&shared).map_err(|why| client.end(why)).is_ok());
                // Places have moved; who has something to say is heard anyway.
                ready = vec![true; 3 + self.clients.len()];
            }
            let mut readable = ready.into_iter().skip(3);
            self.clients.retain_mut(|client| {
                let said = if readable.next() == Some(true) { client.talk(&self.shared) } else { Ok(()) };
                said.and_then(|()| client.hurry()).map_err(|why| client.end(why)).is_ok()
            });
            while let Some(socket) = self.listener.accept() {
                if self.clients.len() < MAX_CONNECTIONS {
                    self.clients.extend(Client::greet(socket));
                }
            }
        }
        for mut client in std::mem::take(&mut self.clients) {
            client.end(WireError::Refused("the port was stopped".to_owned()));
        }
    }

    /// What is ready: bell, damage, listener, clients.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![
            PollFd::new(&*self.shared.bell, PollFlags::IN),
            PollFd::new(&self.damage, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.clients.iter().map(|c| PollFd::from_borrowed_fd(c.wire.socket(), PollFlags::IN)));
        // Those who are slow to connect are looked at now and then.
        let slow = self.clients.iter().any(|client| client.table.is_none());
        let timeout = slow.then_some(Timespec { tv_sec: 1, tv_nsec: 0 });
        let _ = poll(&mut fds, timeout.as_ref());
        let ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        self.shared.bell.clear();
        ready
    }
}

/// A connection.
struct Client {
    wire: Wire,
    since: Instant,
    member: Option<Arc<Member>>,
    regions: Vec<Region>,
    /// By index, those to us and those to the client.
    rings: [BTreeMap<u16, (AddRing, EventFd)>; 2],
    /// Its memory, once it is connected.
    table: Option<Arc<Table>>,
}

impl Client {
    fn greet(socket: OwnedFd) -> Option<Client> {
        let wire = Wire::new(socket);
        let hello = Hello {
            name: field("Hotring"),
            min_version: VERSION,
            max_version: VERSION,
            max_region: MAX_REGIONS - 1,
            max_to_client: MAX_QUEUES - 1,
            max_to_server: MAX_QUEUES - 1,
            max_log2_ring_size: MAX_LOG2_RING,
        };
        wire.send(kind::HELLO, &hello, None).ok()?;
        let (since, rings) = (Instant::now(), Default::default());
        Some(Client { wire, since, member: None, regions: Vec::new(), rings, table: None })
    }

    /// Whether its port is there, its rings are in order, and its memory is.
    fn check(&self, shared: &Shared) -> Result<(), WireError> {
        let refused = |why: &str| Err(WireError::Refused(why.to_owned()));
        let Some(member) = &self.member else { return Ok(()) };
        let members = shared.members.lock().expect("no holder panics");
        if !members.iter().any(|other| Arc::ptr_eq(other, member)) {
            return refused("the port was stopped");
        }
        if self.table.is_some() && member.state.broken() {
            return refused("the client broke the rules of a ring");
        }
        match self.table.as_ref().and_then(|table| table.damage()) {
            Some((at, damage)) => {
                Err(WireError::Refused(format!("memory of region {} is gone: {damage}", at >> REGION_SHIFT)))
            }
            None => Ok(()),
        }
    }

    /// Whether it has connected in time.
    fn hurry(&self) -> Result<(), WireError> {
        if self.table.is_none() && self.since.elapsed() > PATIENCE {
            return Err(WireError::Refused(format!("not connected within {PATIENCE:?}")));
        }
        Ok(())
    }

    fn end(&mut self, why: WireError) {
        if !why.is_peers() {
            self.wire.leave(&why.to_string());
        }
        let Some(member) = self.member.take() else {
            tracing::debug!("memif client: {why}");
            return;
        };
        tracing::warn!("port {}: client: {why}; link down", member.name);
        member.taken.store(false, Ordering::Relaxed);
        if self.table.take().is_some() {
            member.state.set_up(false);
            member.doors.iter().for_each(|door| door.down());
        }
    }

    fn talk(&mut self, shared: &Shared) -> Result<(), WireError> {
        for _ in 0..MESSAGES_A_TURN {
            let Some(message) = self.wire.receive()? else { break };
            match (message.or_end()?, &self.member, &self.table) {
                (Message::Init(init), None, None) => self.init(&init, shared)?,
                (Message::AddRegion(region, fd), Some(_), None) => self.add_region(region, fd)?,
                (Message::AddRing(ring, fd), Some(_), None) => self.add_ring(ring, fd)?,
                (Message::Connect(peer), Some(member), None) => {
                    let member = Arc::clone(member);
                    self.connect(&member, &peer)?;
                    continue;
                }
                (other, ..) => return Err(WireError::Unexpected(other.kind())),
            }
            self.wire.ack()?;
        }
        Ok(())
    }

    /// Which port it wants.
    fn init(&mut self, init: &Init, shared: &Shared) -> Result<(), WireError> {
        let refused = |why: String| Err(WireError::Refused(why));
        let (version, id) = (init.version, init.id);
        if version != VERSION || init.mode != MODE_ETHERNET {
            return refused(format!("version {version:#x}, mode {}: only {VERSION:#x}, Ethernet", init.mode));
        }
        let members = shared.members.lock().expect("no holder panics");
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return refused(format!("no interface of id {id}"));
        };
        let secret = member.secret.as_bytes();
        let mut wanted = [0; 24];
        wanted[..secret.len().min(24)].copy_from_slice(&secret[..secret.len().min(24)]);
        if !secret.is_empty() && init.secret != wanted {
            return refused("wrong secret".to_owned());
        }
        // The first who asks has it, connected or not yet.
        if member.taken.swap(true, Ordering::Relaxed) {
            return refused(format!("interface {id} has a client"));
        }
        self.member = Some(Arc::clone(member));
        Ok(())
    }

    fn add_region(&mut self, region: AddRegion, fd: OwnedFd) -> Result<(), WireError> {
        let (index, size) = (region.index, region.size);
        if usize::from(index) != self.regions.len() || index >= MAX_REGIONS {
            return Err(WireError::Refused(format!("region {index} out of turn")));
        }
        // No descriptor reaches further.
        let size = size.min(1 << REGION_SHIFT);
        let map = Map::file(fd, 0, size);
        let (map, at) = map.map_err(|e| WireError::Refused(format!("region {index}: {e}")))?;
        let gpa = u64::from(index) << REGION_SHIFT;
        self.regions.push(Region { gpa, len: size, user: gpa, map: Arc::new(map), at });
        Ok(())
    }

    fn add_ring(&mut self, ring: AddRing, fd: OwnedFd) -> Result<(), WireError> {
        let (flags, index, log2) = (ring.flags, ring.index, ring.log2_size);
        let queues = self.member.as_ref().map_or(0, |member| member.doors.len());
        if usize::from(index) >= queues {
            return Err(WireError::Refused(format!("ring {index}, where there are {queues} queues")));
        }
        if log2 > MAX_LOG2_RING || ring.private_header != 0 {
            return Err(WireError::Refused(format!(
                "ring {index}: of size 2^{log2}, or with private headers"
            )));
        }
        let call = EventFd::adopt(Arc::new(fd));
        let call = call.map_err(|e| WireError::Refused(format!("ring {index}: {e}")))?;
        let side = usize::from(flags & RING_TO_SERVER == 0);
        match self.rings[side].insert(index, (ring, call)) {
            None => Ok(()),
            Some(_) => Err(WireError::Refused(format!("ring {index} given twice"))),
        }
    }

    /// Opens the rings and hands them to the queues.
    fn connect(&mut self, member: &Member, peer: &Connect) -> Result<(), WireError> {
        let table = Table::new(std::mem::take(&mut self.regions));
        let table = Arc::new(table.map_err(|e| WireError::Refused(format!("regions: {e}")))?);
        let open = |(at, call): (AddRing, EventFd)| {
            let (index, region, offset) = (at.index, at.region, at.offset);
            let gpa = (u64::from(region) << REGION_SHIFT) + u64::from(offset);
            let ring = Ring::open(&table, gpa, at.log2_size);
            let ring = ring.map_err(|e| WireError::Refused(format!("ring {index}: {e}")))?;
            if !ring.is_one() {
                return Err(WireError::Refused(format!("ring {index} does not begin as one")));
            }
            Ok((ring, call))
        };
        let mut lives = Vec::new();
        for queue in 0..member.doors.len() as u16 {
            let [to_us, to_them] = &mut self.rings;
            let receive = to_us.remove(&queue).map(open).transpose()?;
            let send = to_them.remove(&queue).map(open).transpose()?;
            lives.push(Live {
                lender: Lender::new(Arc::clone(&table)),
                receive: receive.map(|(ring, call)| (Inlet::new(ring), call)),
                send: send.map(|(ring, call)| (Outlet::new(ring), call)),
            });
        }
        for (door, live) in member.doors.iter().zip(lives) {
            door.give(live);
        }
        self.table = Some(table);
        member.state.set_up(true);
        self.wire.send(kind::CONNECTED, &Connect { name: field(&member.name) }, None)?;
        tracing::info!("port {}: link up, client '{}'", member.name, text(&peer.name));
        Ok(())
    }
}
