//! One thread that speaks with the front-ends of any number of ports.

mod frozen;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use hugepages::sigbus::Bell;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tracing::{debug, info};

use super::endpoint::{Access, Caller, Listener, Socket, SocketError};
use super::host::{Host, HostError};
use super::legacy::{Legacy, LegacyError};
use super::lines::{Lines, say};
use super::refusal::SessionError;
use super::session::{Offer, Session};
use super::wire::{Received, Wire, WireError};

/// Messages served for one port before the others have their turn.
pub const MESSAGES_A_TURN: usize = 32;
/// Connections accepted or refused for one port before the others have their turn.
const ACCEPTS_A_TURN: usize = 8;
/// How long no connection is accepted after accepting failed (descriptors have run out).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A port cannot be left, or not be gone on with.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// The thread could not be set up.
    #[error("control thread of vhost-user: {0}")]
    Thread(std::io::Error),
    /// The thread has ended.
    #[error("the control thread of vhost-user has ended; no port can be added")]
    Ended,
}

/// A port that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortId(u64);

enum Command {
    Add(Box<NewPort>, Sender<Result<PortId, ServerError>>),
    Freeze(Sender<Result<Vec<Legacy>, ServerError>>),
    Thaw,
    Leave(Sender<()>),
    Remove(PortId, Sender<Box<dyn Host>>),
    End,
}

/// A port to be served.
struct NewPort {
    socket: Socket,
    access: Access,
    offer: Offer,
    host: Box<dyn Host>,
    legacy: Option<Legacy>,
}

/// The thread. Dropped, it disconnects all front-ends, stops their rings and removes its sockets.
#[derive(Debug)]
pub struct Server {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Adds ports to a [`Server`] and removes them, from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Server {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ServerError::Thread`].
    pub fn start() -> Result<Server, ServerError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(|errno| ServerError::Thread(errno.into()))?);
        let (commands, inbox) = unbounded();
        let bell = Bell::new().map_err(ServerError::Thread)?;
        let control = Control { inbox, wake: Arc::clone(&wake), bell, ports: Vec::new(), next_id: 0 };
        let thread = std::thread::Builder::new().name("vhost-user".into());
        let thread = thread.spawn(|| control.run()).map_err(ServerError::Thread)?;
        Ok(Server { handle: Handle { commands, wake }, thread: Some(thread) })
    }

    /// A handle to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.tell(Command::End);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "the control thread panicked");
    }
}

impl Handle {
    /// Serves a port from now on. `host` is called by the control thread only.
    ///
    /// # Errors
    /// When the socket cannot be had, or the server has ended.
    pub fn add(&self, socket: Socket, offer: Offer, host: Box<dyn Host>) -> Result<PortId, ServerError> {
        self.add_for(Access::default(), socket, offer, host)
    }

    /// The same for those who are admitted.
    ///
    /// # Errors
    /// As [`Handle::add`].
    pub fn add_for(
        &self,
        access: Access,
        socket: Socket,
        offer: Offer,
        host: Box<dyn Host>,
    ) -> Result<PortId, ServerError> {
        self.tell_of(NewPort { socket, access, offer, host, legacy: None })
    }

    /// The same, of a port that another process has left. Nothing moves before [`Handle::thaw`].
    ///
    /// # Errors
    /// As [`Handle::add`]; [`ServerError::Legacy`] when this port cannot go on like that.
    pub fn inherit(
        &self,
        legacy: Legacy,
        access: Access,
        offer: Offer,
        host: Box<dyn Host>,
    ) -> Result<PortId, ServerError> {
        let socket = legacy.socket().clone();
        self.tell_of(NewPort { socket, access, offer, host, legacy: Some(legacy) })
    }

    fn tell_of(&self, port: NewPort) -> Result<PortId, ServerError> {
        let (reply, answer) = bounded(1);
        self.tell(Command::Add(Box::new(port), reply));
        answer.recv().unwrap_or(Err(ServerError::Ended))
    }

    /// Stops the rings of all ports and reads no socket any more: what another process needs to go on with
    /// them. They can go on here, too: [`Handle::thaw`].
    ///
    /// # Errors
    /// [`ServerError::Legacy`], and all ports go on.
    pub fn freeze(&self) -> Result<Vec<Legacy>, ServerError> {
        let (reply, answer) = bounded(1);
        self.tell(Command::Freeze(reply));
        answer.recv().unwrap_or(Err(ServerError::Ended))
    }

    /// All ports go on.
    pub fn thaw(&self) {
        self.tell(Command::Thaw);
    }

    /// Another process has gone on with the ports that were frozen: they are forgotten, and neither their
    /// front-ends nor their sockets notice.
    pub fn leave(&self) {
        let (reply, answer) = bounded(1);
        self.tell(Command::Leave(reply));
        let _ = answer.recv();
    }

    /// Serves it no more: its front-end is disconnected, its rings are stopped, its socket is removed.
    /// The host comes back; `None` when the port is not known or the server has ended.
    pub fn remove(&self, port: PortId) -> Option<Box<dyn Host>> {
        let (reply, answer) = bounded(1);
        self.tell(Command::Remove(port, reply));
        answer.recv().ok()
    }

    fn tell(&self, command: Command) {
        // When the thread has ended, the command is dropped and with it the sender of the answer.
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// An eventfd to be signalled when a [`Host`] has something to ask, see [`Host::asks`].
    pub fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.wake)
    }
}

/// What the thread owns.
struct Control {
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    /// Rings when memory of some front-end is gone.
    bell: Bell,
    ports: Vec<Port>,
    next_id: u64,
}

impl Control {
    fn run(mut self) {
        loop {
            let events = self.wait();
            if self.bell.clear() {
                self.ports.iter_mut().for_each(Port::look_at_memory);
            }
            for (port, events) in self.ports.iter_mut().zip(events) {
                port.turn(events);
            }
            if self.obey() {
                break;
            }
        }
        self.ports.drain(..).for_each(|port| drop(port.close()));
    }

    /// Waits until something is to be done. What is ready, by port.
    fn wait(&self) -> Vec<Events> {
        let now = Instant::now();
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&self.bell, PollFlags::IN)];
        for port in &self.ports {
            fds.extend(port.sockets(now).map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let until = self.ports.iter().filter_map(|port| port.alarm(now)).min();
        let timeout = until.map(|until| {
            // Rounded up to a millisecond: never early.
            let left = until.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec::try_from(left).expect("a short wait")
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR | Errno::NOMEM) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        let mut ready = fds.iter().skip(2).map(|fd| !fd.revents().is_empty());
        let mut next = |polled: bool| polled && ready.next().expect("as many as were polled");
        self.ports
            .iter()
            .map(|port| {
                let events = Events {
                    link: next(port.link.is_some() && !port.frozen),
                    channel: next(port.channel().is_some()),
                    listener: next(port.listens(now)),
                    bell: next(port.bell().is_some()),
                };
                // Every port is asked for its requests, whatever is ready.
                for _ in port.bells() {
                    next(true);
                }
                events
            })
            .collect()
    }

    /// Carries out what was asked through handles; whether to end.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Add(port, reply) => {
                    let id = PortId(self.next_id);
                    let added = Port::open(id, *port).map(|port| self.ports.push(port));
                    self.next_id += 1;
                    let _ = reply.send(added.map(|()| id));
                }
                Command::Freeze(reply) => drop(reply.send(self.freeze())),
                Command::Thaw => self.ports.iter_mut().for_each(Port::thaw),
                Command::Leave(reply) => {
                    self.leave();
                    let _ = reply.send(());
                }
                Command::Remove(id, reply) => {
                    if let Some(at) = self.ports.iter().position(|port| port.id == id) {
                        let _ = reply.send(self.ports.swap_remove(at).close());
                    }
                }
                Command::End => return true,
            }
        }
        false
    }
}

/// What is ready of a port.
#[derive(Clone, Copy, Debug)]
struct Events {
    link: bool,
    channel: bool,
    listener: bool,
    bell: bool,
}

enum Endpoint {
    Listener { listener: Listener, not_before: Option<Instant> },
    Caller { caller: Caller, complained: bool },
}

struct Link {
    wire: Wire,
    session: Session,
    /// Where our own requests go.
    channel: Option<Wire>,
}

impl Link {
    /// Takes replies from the channel, if it is `ready`, and sends what is to be asked.
    fn ask(&mut self, ready: bool, host: &mut dyn Host) -> Result<(), WireError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        channel.flush()?;
        for _ in 0..if ready { MESSAGES_A_TURN } else { 0 } {
            match channel.receive()? {
                Received::Frame(frame) if self.session.on_reply(&frame, host) => {}
                Received::Frame(frame) => debug!("a reply to nothing: {:?}", frame.header),
                Received::Nothing => break,
                Received::Closed => return Err(WireError::Cut { got: 0 }),
            }
        }
        if channel.blocked() { Ok(()) } else { channel.request(&self.session.requests(host)) }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the front-end closed the connection")]
    Closed,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Memory(HostError),
    #[error("the port is removed")]
    Removed,
}

struct Port {
    id: PortId,
    path: PathBuf,
    access: Access,
    endpoint: Endpoint,
    offer: Offer,
    host: Box<dyn Host>,
    link: Option<Link>,
    /// Its rings are stopped, and nobody reads its sockets.
    frozen: bool,
    /// About front-ends that come and go, and about what was wrong: neither can hide the other.
    comings: Lines,
    lines: Lines,
}

impl Port {
    fn open(id: PortId, port: NewPort) -> Result<Port, ServerError> {
        let NewPort { socket, access, offer, host, mut legacy } = port;
        let path = socket.path().clone();
        let endpoint = match socket {
            Socket::Listen(path) => {
                let listener = match legacy.as_mut().and_then(|legacy| legacy.listener.take()) {
                    None => Listener::bind(&path, &access)?,
                    Some(socket) => Listener::adopt(&path, socket).map_err(|e| frozen::listener(&path, e))?,
                };
                Endpoint::Listener { listener, not_before: None }
            }
            Socket::Connect(path) => Endpoint::Caller { caller: Caller::new(&path)?, complained: false },
        };
        debug!(socket = %path.display(), "serving");
        let (comings, lines) = (Lines::default(), Lines::default());
        let mut port =
            Port { id, path, access, endpoint, offer, host, link: None, frozen: false, comings, lines };
        if let Some(legacy) = legacy
            && let Err(why) = port.inherit(legacy)
        {
            port.host.disconnected();
            port.forget_path();
            return Err(why.into());
        }
        Ok(port)
    }

    fn close(mut self) -> Box<dyn Host> {
        if self.link.is_some() {
            self.end(&End::Removed);
        }
        self.host
    }

    /// Whether its listening socket is polled.
    fn listens(&self, now: Instant) -> bool {
        match &self.endpoint {
            Endpoint::Listener { not_before, .. } => !self.frozen && not_before.is_none_or(|at| now >= at),
            Endpoint::Caller { .. } => false,
        }
    }

    /// The channel for our own requests.
    fn channel(&self) -> Option<&Wire> {
        self.link.as_ref().filter(|_| !self.frozen).and_then(|link| link.channel.as_ref())
    }

    /// What rings when the front-end is to be told of a ring: nothing, while it cannot be.
    fn bells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let channel = self.channel().filter(|channel| !channel.blocked());
        let link = self.link.as_ref().filter(|_| channel.is_some());
        link.into_iter().flat_map(|link| link.session.bells())
    }

    /// What rings when the host has work of its own.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.host.bell().filter(|_| !self.frozen)
    }

    /// What to poll, in the order of [`Events`].
    fn sockets(&self, now: Instant) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let link = self.link.as_ref().filter(|_| !self.frozen).map(|link| {
            let flags = if link.wire.blocked() { PollFlags::OUT } else { PollFlags::IN };
            (link.wire.socket(), flags)
        });
        let channel = self.channel().map(|channel| {
            let also = if channel.blocked() { PollFlags::OUT } else { PollFlags::empty() };
            (channel.socket(), PollFlags::IN | also)
        });
        let listener = match &self.endpoint {
            Endpoint::Listener { listener, .. } if self.listens(now) => {
                Some((listener.socket(), PollFlags::IN))
            }
            _ => None,
        };
        let bell = self.bell().map(|bell| (bell, PollFlags::IN));
        let bells = self.bells().map(|bell| (bell, PollFlags::IN));
        link.into_iter().chain(channel).chain(listener).chain(bell).chain(bells)
    }

    /// When it has to have a turn, ready or not.
    fn alarm(&self, now: Instant) -> Option<Instant> {
        if self.frozen {
            return None;
        }
        let endpoint = match &self.endpoint {
            Endpoint::Caller { caller, .. } if self.link.is_none() => Some(caller.next()),
            Endpoint::Listener { not_before, .. } => not_before.filter(|at| now < *at),
            Endpoint::Caller { .. } => None,
        };
        endpoint.into_iter().chain(self.host.alarm()).min()
    }

    /// The link first: a front-end that has gone makes room for the next.
    fn turn(&mut self, events: Events) {
        if self.frozen {
            return;
        }
        if events.bell || self.host.alarm().is_some_and(|at| Instant::now() >= at) {
            self.host.attend();
        }
        if events.link
            && let Err(end) = self.talk()
        {
            self.end(&end);
        }
        self.ask(events.channel);
        match &mut self.endpoint {
            Endpoint::Listener { .. } if events.listener => self.accept(),
            Endpoint::Caller { caller, .. } if self.link.is_none() && Instant::now() >= caller.next() => {
                self.call();
            }
            _ => {}
        }
    }

    /// Memory of some front-end is gone: if it is this one's, it goes.
    fn look_at_memory(&mut self) {
        if self.link.is_some()
            && !self.frozen
            && let Some(damage) = self.host.damage()
        {
            self.end(&End::Memory(damage));
        }
    }

    fn talk(&mut self) -> Result<(), End> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.wire.flush()?;
        for _ in 0..MESSAGES_A_TURN {
            if link.wire.blocked() {
                break;
            }
            let frame = match link.wire.receive()? {
                Received::Frame(frame) => frame,
                Received::Nothing => break,
                Received::Closed => return Err(End::Closed),
            };
            let reply = link.session.on(frame, self.host.as_mut())?;
            for refusal in reply.refused {
                say!(self.lines, warn, socket = %self.path.display(), "refused: {refusal}");
            }
            if let Some(channel) = reply.channel {
                link.channel = Some(Wire::channel(channel));
            }
            if let Some(answer) = reply.answer {
                link.wire.send(&answer)?;
            }
        }
        Ok(())
    }

    /// What the device wants of the front-end; a channel that fails is left, and the conversation goes on.
    fn ask(&mut self, ready: bool) {
        let Some(link) = &mut self.link else { return };
        if let Err(why) = link.ask(ready, self.host.as_mut()) {
            let socket = self.path.display();
            say!(self.lines, warn, socket = %socket, "back-end channel: {why}; nothing is asked any more");
            link.channel = None;
        }
    }

    fn begin(&mut self, socket: OwnedFd) {
        if let Err(user) = self.access.admits(socket.as_fd()) {
            say!(self.lines, warn, socket = %self.path.display(), "connection refused: user {user} is not admitted");
            return;
        }
        say!(self.comings, info, socket = %self.path.display(), "front-end connected");
        self.host.connected();
        let session = Session::new(self.offer.clone());
        self.link = Some(Link { wire: Wire::new(socket), session, channel: None });
    }

    fn end(&mut self, why: &End) {
        let Some(link) = self.link.take() else { return };
        let socket = self.path.display();
        match why {
            End::Closed | End::Removed => say!(self.comings, info, socket = %socket, "disconnected: {why}"),
            End::Wire(_) | End::Session(_) | End::Memory(_) => {
                say!(self.lines, warn, socket = %socket, "disconnected: {why}");
            }
        }
        if let Some(refusal) = link.session.close(self.host.as_mut()) {
            say!(self.lines, warn, socket = %socket, "while disconnecting: {refusal}");
        }
        if let Endpoint::Caller { caller, complained } = &mut self.endpoint {
            caller.rest();
            *complained = false;
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_A_TURN {
            let Endpoint::Listener { listener, not_before } = &mut self.endpoint else { return };
            *not_before = None;
            match listener.accept() {
                Ok(Some(socket)) => {
                    // The one before may have gone since it was looked at.
                    if let Err(end) = self.talk() {
                        self.end(&end);
                    }
                    if self.link.is_none() {
                        self.begin(socket);
                    } else {
                        debug!(socket = %self.path.display(), "connection refused: one front-end at a time");
                    }
                }
                Ok(None) => return,
                Err(errno) => {
                    say!(self.lines, warn, socket = %self.path.display(), "accept: {errno}; trying again");
                    *not_before = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn call(&mut self) {
        let Endpoint::Caller { caller, complained } = &mut self.endpoint else { return };
        match caller.connect() {
            Ok(socket) => self.begin(socket),
            Err(errno) if !*complained => {
                info!(socket = %self.path.display(), "no front-end there yet ({errno}); trying again");
                *complained = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
