//! The control thread of a port: connects, negotiates, hands rings to the queues, watches the
//! connection, and begins again when it ends.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Config;
use super::door::{Door, Live, Rings};
use super::frames::Frames;
use super::front::{Front, FrontError};
use super::memory::{Memory, Side};
use super::queue::UserQueue;
use crate::port::{PortError, Queue};
use crate::spec::net;
use crate::spec::vhost_user::{
    F_PROTOCOL_FEATURES, MemRegion, PROTOCOL_F_MQ, PROTOCOL_F_NET_MTU, PROTOCOL_F_REPLY_ACK, VringAddr,
};
use crate::spec::virtio as v;
use crate::sys::eventfd::EventFd;
use crate::vring::Way;
use crate::vring::driver::{Packed, Ring, Split};

/// Between two attempts to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What the port, its thread and its queues know of each other.
pub(super) struct State {
    /// Negotiated; 0 while there is no back-end.
    features: AtomicU64,
    connections: AtomicU64,
    stop: AtomicBool,
    broken: AtomicBool,
    bell: EventFd,
}

impl State {
    pub(super) fn new() -> io::Result<State> {
        Ok(State {
            features: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            bell: EventFd::new()?,
        })
    }

    pub(super) fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Asks the thread to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.signal();
    }

    /// Asks the thread to leave a back-end that broke the rules.
    pub(super) fn complain(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.bell.signal();
    }
}

/// Where the back-end is.
enum Endpoint {
    Connect(PathBuf),
    Listen(UnixListener, PathBuf),
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Endpoint::Listen(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

impl Endpoint {
    fn open(config: &Config) -> io::Result<Endpoint> {
        if !config.server {
            return Ok(Endpoint::Connect(config.path.clone()));
        }
        let listener = match UnixListener::bind(&config.path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && nobody_listens(&config.path) => {
                fs::remove_file(&config.path)?;
                UnixListener::bind(&config.path)
            }
            bound => bound,
        }?;
        listener.set_nonblocking(true)?;
        Ok(Endpoint::Listen(listener, config.path.clone()))
    }

    fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Endpoint::Connect(path) => UnixStream::connect(path),
            Endpoint::Listen(listener, _) => listener.accept().map(|(socket, _)| socket),
        }
    }

    /// What becomes readable when `connect` may succeed; `None`: only trying tells.
    fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Endpoint::Connect(_) => None,
            Endpoint::Listen(listener, _) => Some(listener.as_fd()),
        }
    }
}

/// A socket file that a process left behind when it was killed.
fn nobody_listens(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// The thread's own.
pub(super) struct Control {
    name: String,
    config: Config,
    memory: Arc<Memory>,
    state: Arc<State>,
    doors: Vec<Arc<Door>>,
    /// Which set of rings each queue is given next.
    sets: Vec<usize>,
    endpoint: Endpoint,
    front: Option<Front>,
    /// What transmit rings call, and nobody listens to: sent buffers are looked for, not waited for.
    quiet: EventFd,
}

impl Control {
    /// Makes the queues and connects; with `server`, listens.
    pub(super) fn start(
        name: &str,
        config: &Config,
        memory: Arc<Memory>,
        state: &Arc<State>,
    ) -> Result<(Control, Vec<Box<dyn Queue>>), PortError> {
        let path = config.path.display();
        let fail = |what: String| {
            let port = name.to_owned();
            move |source| PortError::Io { port, what, source }
        };
        let (mut doors, mut queues) = (Vec::new(), Vec::<Box<dyn Queue>>::new());
        for i in 0..memory.queues() {
            let door = Arc::new(Door::new(state).map_err(fail("eventfd".to_owned()))?);
            let label = format!("port {name} queue {i}");
            queues.push(Box::new(UserQueue::new(label, Frames::new(&memory, i), Arc::clone(&door))));
            doors.push(door);
        }
        let mut control = Control {
            name: name.to_owned(),
            config: config.clone(),
            sets: vec![0; doors.len()],
            memory,
            state: Arc::clone(state),
            doors,
            endpoint: Endpoint::open(config).map_err(fail(format!("cannot listen on {path}")))?,
            front: None,
            quiet: EventFd::new().map_err(fail("eventfd".to_owned()))?,
        };
        state.stop.store(false, Ordering::Relaxed);
        if !config.server {
            let hint = "is the back-end running, and may we connect?";
            let socket = control.endpoint.connect();
            let socket = socket.map_err(fail(format!("cannot connect to {path}; {hint}")))?;
            control.negotiate(socket).map_err(|e| PortError::Config {
                port: name.to_owned(),
                what: format!("back-end at {path}: {e}"),
            })?;
        }
        Ok((control, queues))
    }

    /// Until the port stops.
    pub(super) fn run(mut self) {
        let (mut pause, mut told) = (FIRST_PAUSE, false);
        loop {
            if let Some(front) = &self.front {
                let ended = wait(&self.state, Some(front.socket()), None);
                if self.state.stop.load(Ordering::Relaxed) {
                    break;
                }
                let broken = self.state.broken.load(Ordering::Relaxed);
                if broken || ended {
                    let why = if broken { "broke the rules of its rings" } else { "closed the connection" };
                    tracing::warn!("port {}: back-end {why}; link down, waiting for it", self.name);
                    self.down();
                    (pause, told) = (if broken { LAST_PAUSE } else { FIRST_PAUSE }, false);
                    wait(&self.state, None, Some(pause));
                }
                continue;
            }
            if self.state.stop.load(Ordering::Relaxed) {
                break;
            }
            let failed = match self.endpoint.connect() {
                Ok(socket) => self.negotiate(socket).err().map(|e| e.to_string()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    wait(&self.state, self.endpoint.listener(), None);
                    continue;
                }
                Err(e) => Some(e.to_string()),
            };
            if let Some(why) = failed {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("port {}: no connection: {why}; trying again", self.name);
                }
                wait(&self.state, None, Some(pause));
                pause = (2 * pause).min(LAST_PAUSE);
            }
        }
        self.leave();
    }

    /// The back-end is gone: so are its rings.
    fn down(&mut self) {
        self.front = None;
        self.state.features.store(0, Ordering::Relaxed);
        for (door, set) in self.doors.iter().zip(&mut self.sets) {
            let untouched = door.down();
            if !untouched {
                *set = 1 - *set;
            }
        }
        self.state.broken.store(false, Ordering::Relaxed);
    }

    /// Stops the rings one by one, as a guest's driver does that is unloaded.
    fn leave(&mut self) {
        if let Some(mut front) = self.front.take() {
            for index in 0..2 * u32::from(self.memory.queues()) {
                match front.vring_base(index) {
                    Ok(base) => tracing::debug!("port {}: ring {index} stopped at {base:#x}", self.name),
                    Err(e) => {
                        tracing::warn!("port {}: back-end does not stop cleanly: {e}", self.name);
                        break;
                    }
                }
            }
        }
        self.down();
    }

    /// From a connected socket to rings that run.
    fn negotiate(&mut self, socket: UnixStream) -> Result<(), FrontError> {
        let io = |source| FrontError::Io { what: "connect", source };
        let mut front = Front::new(socket).map_err(io)?;
        let queues = self.memory.queues();
        let offered = front.features()?;
        if offered & v::F_VERSION_1 == 0 {
            return Err(FrontError::Lacks(format!(
                "features {offered:#x} lack VERSION_1: too old a back-end"
            )));
        }
        front.set_owner()?;
        let mut protocol = 0;
        if offered & F_PROTOCOL_FEATURES != 0 {
            let known = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_NET_MTU;
            protocol = front.protocol_features()? & known;
            front.set_protocol_features(protocol)?;
        }
        let most = if protocol & PROTOCOL_F_MQ != 0 { front.queue_pairs()? } else { 1 };
        if u64::from(queues) > most {
            return Err(FrontError::Lacks(format!(
                "{queues} queue pairs asked for, the back-end has {most}"
            )));
        }
        let features = consistent(offered & self.config.features(queues));
        let size = self.memory.size();
        if features & v::F_RING_PACKED == 0 && !size.is_power_of_two() {
            let what = format!("rings of {size} entries must be packed, the back-end has split ones only");
            return Err(FrontError::Lacks(what));
        }
        front.set_features(features | offered & F_PROTOCOL_FEATURES)?;
        if protocol & PROTOCOL_F_NET_MTU != 0 {
            front.set_mtu(self.config.mtu.into())?;
        }
        self.send_memory(&mut front)?;
        let mut lives = Vec::new();
        for queue in 0..queues {
            lives.push(self.send_rings(&mut front, queue, features).map_err(|e| match e {
                RingsError::Front(e) => e,
                RingsError::Io(source) => FrontError::Io { what: "eventfd", source },
            })?);
        }
        if offered & F_PROTOCOL_FEATURES != 0 {
            for index in 0..2 * u32::from(queues) {
                front.set_vring_enable(index, true)?;
            }
        }
        for (door, live) in self.doors.iter().zip(lives) {
            door.give(Box::new(live));
        }
        self.front = Some(front);
        self.state.connections.fetch_add(1, Ordering::Relaxed);
        self.state.features.store(features, Ordering::Relaxed);
        tracing::info!("port {}: link up, {queues} queue pairs, features {features:#x}", self.name);
        Ok(())
    }

    fn send_memory(&self, front: &mut Front) -> Result<(), FrontError> {
        let of = self.memory.region();
        let region = MemRegion { guest: of.gpa, size: of.len, user: of.user, offset: 0 };
        front.set_memory(region, of.map.fd())
    }

    /// Opens the two rings of a queue pair and tells the back-end of them.
    fn send_rings(&self, front: &mut Front, queue: u16, features: u64) -> Result<Live, RingsError> {
        let set = self.sets[usize::from(queue)];
        let areas = [Side::Rx, Side::Tx].map(|side| self.memory.areas(queue, side, set, features));
        let table = self.memory.table();
        let planned = "the areas are planned to lie in the mapping";
        let rings = if features & v::F_RING_PACKED != 0 {
            let [rx, tx] = areas.map(|areas| Packed::open(&areas, table).expect(planned));
            Rings::Packed(rx, tx)
        } else {
            let [rx, tx] = areas.map(|areas| Split::open(&areas, table).expect(planned));
            Rings::Split(rx, tx)
        };
        let kick = [EventFd::shared()?, EventFd::shared()?];
        let call = [&**self.doors[usize::from(queue)].bell(), &self.quiet];
        let user = self.memory.region().user;
        for (side, areas) in areas.iter().enumerate() {
            let index = 2 * u32::from(queue) + side as u32;
            let ring = areas.ring(if side == 0 { Way::ToDriver } else { Way::FromDriver });
            front.set_vring_num(index, ring.size.into())?;
            front.set_vring_base(index, ring.base)?;
            front.set_vring_addr(VringAddr {
                index,
                flags: 0,
                descriptors: user + ring.desc,
                used: user + ring.device,
                available: user + ring.driver,
                log: 0,
            })?;
            front.set_vring_call(index, call[side].as_fd())?;
            front.set_vring_kick(index, kick[side].as_fd())?;
        }
        Ok(Live { rings, kick, features })
    }
}

enum RingsError {
    Front(FrontError),
    Io(io::Error),
}

impl From<FrontError> for RingsError {
    fn from(e: FrontError) -> Self {
        RingsError::Front(e)
    }
}

impl From<io::Error> for RingsError {
    fn from(e: io::Error) -> Self {
        RingsError::Io(e)
    }
}

/// Features that rest on others which the back-end does not have (virtio 1.3 §5.1.3.1) are left out.
fn consistent(mut features: u64) -> u64 {
    if features & net::F_CSUM == 0 {
        features &= !(net::F_HOST_TSO4 | net::F_HOST_TSO6 | net::F_HOST_USO);
    }
    let guest = net::F_GUEST_TSO4 | net::F_GUEST_TSO6 | net::F_GUEST_USO4 | net::F_GUEST_USO6;
    if features & net::F_GUEST_CSUM == 0 || features & net::F_MRG_RXBUF == 0 {
        features &= !guest;
    }
    features
}

/// Waits for the bell, for `fd` to be readable or closed, or for the time to pass; whether it was `fd`.
fn wait(state: &State, fd: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> bool {
    let mut fds = vec![PollFd::new(&state.bell, PollFlags::IN)];
    fds.extend(fd.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP)));
    let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
    let ready = poll(&mut fds, timeout.as_ref()).is_ok();
    let ready = ready && fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    state.bell.clear();
    ready
}
