//! The connections of one bridge: its management socket, sockets for controllers, and controllers we connect to.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use tracing::{info, warn};

use super::ofproto::{Event, Ofproto};
use super::session::{Origin, Role, Session, Shared};
use super::version::{Header, Version, message};
use crate::vswitch::stream::{Address, Listener, Stream, Target};

/// The port that IANA gave OpenFlow.
const PORT: u16 = 6653;
/// Connections to one bridge at once.
const CONNECTIONS: usize = 256;
/// Messages of one connection that are taken in one turn.
const TURN: usize = 1000;
/// A connection that takes no answers is not asked for more.
const BACKLOG: usize = 4 << 20;
/// Events are not told to a connection that is behind by this much: packets for it are lost.
const EVENT_BACKLOG: usize = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const ECHO_REQUEST: u8 = 2;

/// A controller as the database names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `tcp:`, `unix:`, `ptcp:`, `punix:`.
    pub target: String,
    /// The longest pause between attempts.
    pub max_backoff: Duration,
    /// How long it may be silent before it is asked whether it lives; zero: for ever.
    pub probe: Duration,
}

/// How a controller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its target.
    pub target: String,
    /// It is connected, and a version is agreed upon.
    pub connected: bool,
    /// `other`, `master` or `slave`.
    pub role: Option<&'static str>,
}

struct Connection {
    stream: Stream,
    session: Session,
    heard: Instant,
    probed: bool,
    probe: Duration,
}

/// A controller we connect to.
struct Active {
    wanted: Wanted,
    address: Address,
    connection: Option<Connection>,
    pause: Duration,
    next_try: Instant,
}

/// A socket that is listened on.
struct Passive {
    wanted: Option<Wanted>,
    target: String,
    listener: Listener,
    connections: Vec<Connection>,
}

/// All connections of one bridge.
pub struct Server {
    versions: Vec<Version>,
    actives: Vec<Active>,
    passives: Vec<Passive>,
    shared: Shared,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            versions: Version::ALL.to_vec(),
            actives: Vec::new(),
            passives: Vec::new(),
            shared: Shared::default(),
        }
    }
}

impl Server {
    /// Speaks these versions only, by the names of the column `protocols`; with none, all.
    pub fn speak(&mut self, names: &[String]) {
        let known: Vec<Version> = names.iter().filter_map(|n| Version::named(n)).collect();
        self.versions = if known.is_empty() { Version::ALL.to_vec() } else { known };
    }

    /// Listens for tools at a socket; the error says what is wrong.
    pub fn listen(&mut self, target: &str) -> Result<(), String> {
        self.open(target, None)
    }

    fn open(&mut self, target: &str, wanted: Option<Wanted>) -> Result<(), String> {
        let Target::Passive(address) = Target::parse(target, PORT)? else {
            return Err(format!("{target}: not a socket to listen on"));
        };
        let listener = Listener::bind(&address).map_err(|e| format!("{target}: {e}"))?;
        self.passives.push(Passive { wanted, target: target.to_owned(), listener, connections: Vec::new() });
        Ok(())
    }

    /// Keeps to these controllers: connections to others end. Gives what is wrong with targets.
    pub fn control(&mut self, wanted: &[Wanted]) -> Vec<String> {
        self.actives.retain(|a| wanted.contains(&a.wanted));
        self.passives.retain(|p| p.wanted.as_ref().is_none_or(|w| wanted.contains(w)));
        let mut wrong = Vec::new();
        for w in wanted {
            let there = self.actives.iter().any(|a| a.wanted == *w)
                || self.passives.iter().any(|p| p.wanted.as_ref() == Some(w));
            if there {
                continue;
            }
            match Target::parse(&w.target, PORT) {
                Ok(Target::Active(address)) => self.actives.push(Active {
                    wanted: w.clone(),
                    address,
                    connection: None,
                    pause: FIRST_PAUSE,
                    next_try: Instant::now(),
                }),
                Ok(Target::Passive(_)) => wrong.extend(self.open(&w.target, Some(w.clone())).err()),
                Err(e) => wrong.push(e),
            }
        }
        wrong
    }

    /// Whether a controller is connected: a bridge that fails open does as a plain switch does without one.
    pub fn has_controller(&self) -> bool {
        self.status().iter().any(|s| s.connected)
    }

    /// How the controllers do, sockets for controllers left out.
    pub fn status(&self) -> Vec<Status> {
        let of = |a: &Active| {
            let session = a.connection.as_ref().map(|c| &c.session).filter(|s| s.version().is_some());
            let role = session.map(|s| match s.role() {
                Role::Equal => "other",
                Role::Master => "master",
                Role::Slave => "slave",
            });
            Status { target: a.wanted.target.clone(), connected: session.is_some(), role }
        };
        self.actives.iter().map(of).collect()
    }

    /// What to wait for.
    pub fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listeners = self.passives.iter().map(|p| p.listener.interest());
        let all = self
            .passives
            .iter()
            .flat_map(|p| &p.connections)
            .chain(self.actives.iter().filter_map(|a| a.connection.as_ref()));
        listeners.chain(all.map(|c| c.stream.interest()))
    }

    /// Serves what came, and tells what happened: first `events` that the bridge had before, then those of each request.
    pub fn turn(&mut self, now: Instant, bridge: &mut dyn Bridge) {
        self.tell(&bridge.take_events(), None);
        self.accept(now);
        self.connect(now);
        let n = self.connections_mut().count();
        for which in 0..n {
            self.serve(which, now, bridge);
        }
        for passive in &mut self.passives {
            passive.connections.retain_mut(|c| c.flush(now));
        }
        for active in &mut self.actives {
            if active.connection.as_mut().is_some_and(|c| !c.flush(now)) {
                active.lose(now);
            }
        }
    }

    fn connections_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        let passive = self.passives.iter_mut().flat_map(|p| &mut p.connections);
        passive.chain(self.actives.iter_mut().filter_map(|a| a.connection.as_mut()))
    }

    /// Takes as many as there is room for: those that wait may find room in the next turn, when the ones that are
    /// over have gone. Refuses them when nobody went.
    fn accept(&mut self, now: Instant) {
        let mut count = self.connections_mut().count();
        let full = count >= CONNECTIONS;
        for passive in &mut self.passives {
            let origin = if passive.wanted.is_some() { Origin::Controller } else { Origin::Service };
            let probe = passive.wanted.as_ref().map_or(Duration::ZERO, |w| w.probe);
            while full || count < CONNECTIONS {
                let Some(stream) = passive.listener.accept() else { break };
                if full {
                    warn!("openflow: {}: {CONNECTIONS} connections are all there may be", passive.target);
                    continue;
                }
                count += 1;
                passive.connections.push(Connection::begin(
                    stream,
                    Session::new(self.versions.clone(), origin),
                    probe,
                    now,
                ));
            }
        }
    }

    fn connect(&mut self, now: Instant) {
        for active in self.actives.iter_mut().filter(|a| a.connection.is_none() && a.next_try <= now) {
            match Stream::connect(&active.address) {
                Ok(stream) => {
                    let session = Session::new(self.versions.clone(), Origin::Controller);
                    active.connection = Some(Connection::begin(stream, session, active.wanted.probe, now));
                }
                Err(_) => active.wait(now),
            }
        }
    }

    /// Takes the messages of one connection; what they cause is told to all.
    fn serve(&mut self, which: usize, now: Instant, bridge: &mut dyn Bridge) {
        for _ in 0..TURN {
            let Some((bytes, xid)) = self.connections_mut().nth(which).and_then(|c| c.next(now)) else {
                break;
            };
            let mut shared = std::mem::take(&mut self.shared);
            let elected =
                self.connections_mut().nth(which).is_some_and(|c| c.take(&bytes, &mut shared, bridge));
            self.shared = shared;
            if elected {
                for (_, other) in self.connections_mut().enumerate().filter(|(i, _)| *i != which) {
                    other.session.demote();
                }
            }
            let events = bridge.take_events();
            self.tell(&events, Some((which, xid)));
        }
    }

    fn tell(&mut self, events: &[Event], cause: Option<(usize, u32)>) {
        for event in events {
            for (i, connection) in self.connections_mut().enumerate() {
                let own = cause.filter(|(which, _)| *which == i).map(|(_, xid)| xid);
                if connection.stream.backlog() < EVENT_BACKLOG || !matches!(event, Event::PacketIn(_)) {
                    let said = connection.session.tell(event, own);
                    connection.stream.send(&said);
                }
            }
        }
    }
}

/// A bridge that says what happens in it.
pub trait Bridge: Ofproto {
    /// What happened since it was asked last.
    fn take_events(&mut self) -> Vec<Event>;
}

impl Active {
    fn lose(&mut self, now: Instant) {
        if let Some(old) = self.connection.take()
            && old.session.version().is_some()
        {
            info!("openflow: {}: connection lost", self.wanted.target);
            self.pause = FIRST_PAUSE;
        }
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        self.next_try = now + self.pause;
        self.pause = (self.pause * 2).min(self.wanted.max_backoff.max(FIRST_PAUSE));
    }
}

impl Connection {
    fn begin(mut stream: Stream, session: Session, probe: Duration, now: Instant) -> Connection {
        stream.send(&session.begin());
        Connection { stream, session, heard: now, probed: false, probe }
    }

    /// The next whole message and its xid.
    fn next(&mut self, now: Instant) -> Option<(Vec<u8>, u32)> {
        if self.stream.backlog() > BACKLOG {
            return None;
        }
        let ready = |s: &Stream| Header::of(s.input()).filter(|h| h.length <= s.input().len());
        if ready(&self.stream).is_none() && !self.stream.receive().unwrap_or(false) {
            self.stream.finish();
        }
        let header = ready(&self.stream)?;
        if header.length < super::version::HEADER {
            warn!("openflow: {}: a message of {} bytes", self.stream.peer(), header.length);
            self.stream.break_off();
            return None;
        }
        (self.heard, self.probed) = (now, false);
        Some((self.stream.take(header.length), header.xid))
    }

    /// Takes a message; true when it makes this connection the master.
    fn take(&mut self, bytes: &[u8], shared: &mut Shared, bridge: &mut dyn Bridge) -> bool {
        match self.session.on(bytes, shared, bridge) {
            Ok(answer) => self.stream.send(&answer),
            Err(e) => {
                warn!("openflow: {}: {e}", self.stream.peer());
                self.stream.break_off();
            }
        }
        std::mem::take(&mut self.session.elected)
    }

    /// Sends what waits, and asks a silent peer whether it lives; false when the connection is over.
    fn flush(&mut self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.heard);
        if !self.probe.is_zero() && silent > self.probe {
            if self.probed && silent > 2 * self.probe {
                info!("openflow: {}: no answer for {silent:?}", self.stream.peer());
                return false;
            }
            if !self.probed {
                let version = self.session.version().unwrap_or(Version::V10);
                self.stream.send(&message(version, ECHO_REQUEST, 0, |_| {}));
                self.probed = true;
            }
        }
        let sent: io::Result<()> = self.stream.flush();
        sent.is_ok() && !self.stream.is_over()
    }
}
