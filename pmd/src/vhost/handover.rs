//! From one process to the next: the ports of a [`Server`](super::Server), handed over while their front-ends
//! stay connected.
//!
//! The process that serves them listens at a socket of its own ([`Will`]); its successor connects there
//! ([`claim`]). What they say has the form of vhost-user messages:
//!
//! ```text
//! successor                                predecessor
//! HELLO versions, PORT path ...     --->
//!                                   <---   REFUSED why, or rings stop and
//!                                   <---   WILL (listening socket), then for each port
//!                                          PORT (listening socket), WIRE (connection) with what was received and
//!                                          not sent, the messages of its conversation, ASKED, DEVICE, CHANNEL
//!                                   <---   DONE
//! READY, or REFUSED why             --->
//!                                   <---   YOURS
//! rings start                              ends
//! ```
//!
//! Until the predecessor says YOURS it can go on, and does so when its successor refuses, ends, or takes too
//! long. Nothing that comes through the socket is believed: a successor checks each message like one of a
//! front-end.

mod format;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use super::endpoint::{Access, Caller, Listener, Socket, SocketError};
use super::legacy::Legacy;
use super::message::{Fds, Frame};
use super::wire::{Received, Wire, WireError};
use format::{Reader, id};

/// Versions of the format that are understood; the last is the one that is written.
pub const VERSIONS: (u32, u32) = (1, 1);

/// How long a process may take to say who it is.
const GREETING: Duration = Duration::from_secs(2);
/// How long the ports may be at rest until the successor is ready: their guests wait.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a successor waits for the ports: until all rings have stopped.
const LONGEST_STOP: Duration = Duration::from_secs(30);

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The other process says no.
    #[error("the other process refuses: {0}")]
    Refused(String),
    /// The other process is somebody else's.
    #[error("the process at the other end is of user {0}; it must be of the same user, or of root")]
    User(u32),
    /// It has gone.
    #[error("the other process ended before it was done")]
    Gone,
    /// It takes too long.
    #[error("the other process did not answer within {0:?}")]
    Late(Duration),
    /// It speaks another version.
    #[error("versions {} to {} of the format are understood there, {} to {} here", .0.0, .0.1, VERSIONS.0, VERSIONS.1)]
    Versions((u32, u32)),
    /// It has other ports.
    #[error("{}: served by the process before, and not named here; name it (--vdev), or detach it there", .0.display())]
    Unnamed(PathBuf),
    /// What came makes no sense.
    #[error("{0}")]
    Nonsense(String),
    /// The connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// A connection to the other process.
#[derive(Debug)]
struct Line(Wire);

impl Line {
    /// With a process of this user or of root; with any, if `root` and that is what we are: what it leaves is
    /// checked like what front-ends say.
    fn of(socket: OwnedFd, root: bool) -> Result<Line, HandoverError> {
        // Who cannot be asked is nobody.
        let user = socket_peercred(&socket).map_or(u32::MAX, |peer| peer.uid.as_raw());
        let me = geteuid();
        if user != 0 && user != me.as_raw() && !(root && me.is_root()) {
            return Err(HandoverError::User(user));
        }
        Ok(Line(Wire::new(socket)))
    }

    fn wait(&self, flags: PollFlags, until: Instant, within: Duration) -> Result<(), HandoverError> {
        let left = until.checked_duration_since(Instant::now()).ok_or(HandoverError::Late(within))?;
        let left = Timespec::try_from(left + Duration::from_millis(1)).expect("a short wait");
        match poll(&mut [PollFd::from_borrowed_fd(self.0.socket(), flags)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(WireError::Os(errno).into()),
        }
    }

    fn send(&mut self, frame: &Frame, within: Duration) -> Result<(), HandoverError> {
        let until = Instant::now() + within;
        self.0.pass(frame)?;
        while self.0.blocked() {
            self.wait(PollFlags::OUT, until, within)?;
            self.0.flush()?;
        }
        Ok(())
    }

    fn receive(&mut self, within: Duration) -> Result<Frame, HandoverError> {
        let until = Instant::now() + within;
        loop {
            match self.0.receive()? {
                Received::Frame(frame) if frame.header.request == id::REFUSED => {
                    return Err(HandoverError::Refused(format::text(&frame.payload)));
                }
                Received::Frame(frame) => return Ok(frame),
                Received::Closed => return Err(HandoverError::Gone),
                Received::Nothing => self.wait(PollFlags::IN, until, within)?,
            }
        }
    }

    fn expect(&mut self, id: u32, within: Duration) -> Result<Frame, HandoverError> {
        let frame = self.receive(within)?;
        let got = frame.header.request;
        if got == id {
            Ok(frame)
        } else {
            Err(HandoverError::Nonsense(format!("message {got:#x}, not {id:#x}")))
        }
    }

    /// Tells the other side why nothing comes of it; it may have gone.
    fn refuse(&mut self, why: &dyn std::fmt::Display) {
        let why = why.to_string();
        let _ = self.send(&format::bare(id::REFUSED, format::clip(&why)), GREETING);
    }
}

/// The socket at which a successor is waited for.
#[derive(Debug)]
pub struct Will {
    listener: Listener,
}

impl Will {
    /// Listens at `path`, for processes of this user and of root only.
    ///
    /// # Errors
    /// [`HandoverError::Socket`].
    pub fn open(path: &Path) -> Result<Will, HandoverError> {
        let access = Access { mode: Some(0o600), ..Access::default() };
        Ok(Will { listener: Listener::bind(path, &access)? })
    }

    /// What is readable when somebody has come.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.socket()
    }

    /// Whoever has come, if he is one; `served`: the ports that there are here.
    ///
    /// # Errors
    /// Why he is none; he was told so. Nothing has changed.
    pub fn successor(&self, served: &[Socket]) -> Result<Option<Successor>, HandoverError> {
        let accepted = self.listener.accept().map_err(|errno| HandoverError::Wire(WireError::Os(errno)))?;
        let Some(socket) = accepted else { return Ok(None) };
        let mut line = Line::of(socket, false)?;
        match greeted(&mut line, served) {
            Ok(()) => Ok(Some(Successor(line))),
            Err(why) => {
                line.refuse(&why);
                Err(why)
            }
        }
    }

    /// The path is the successor's.
    pub fn leave(mut self) {
        self.listener.leave();
    }
}

/// Takes a greeting, and sees whether its sender would have all ports.
fn greeted(line: &mut Line, served: &[Socket]) -> Result<(), HandoverError> {
    let until = Instant::now() + GREETING;
    let versions = format::versions(&line.expect(id::HELLO, GREETING)?.payload)?;
    if versions.0 > VERSIONS.1 || versions.1 < VERSIONS.1 {
        return Err(HandoverError::Versions(versions));
    }
    let mut named = Vec::new();
    loop {
        let frame = line.receive(until.saturating_duration_since(Instant::now()))?;
        match frame.header.request {
            id::NAMED if named.len() < format::MAX_PORTS => named.push(format::socket(&frame.payload)?),
            id::DONE => break,
            other => return Err(HandoverError::Nonsense(format!("message {other:#x} in a greeting"))),
        }
    }
    match served.iter().find(|socket| !named.contains(socket)) {
        Some(unnamed) => Err(HandoverError::Unnamed(unnamed.path().clone())),
        None => Ok(()),
    }
}

/// A process that would go on with our ports.
#[derive(Debug)]
pub struct Successor(Line);

impl Successor {
    /// Sends it the ports, which are frozen, and waits until it is ready to go on with them.
    ///
    /// # Errors
    /// It is not; the ports are to be thawed.
    pub fn bequeath(&mut self, will: &Will, ports: Vec<Legacy>) -> Result<(), HandoverError> {
        let until = Instant::now() + PATIENCE;
        let left = || until.saturating_duration_since(Instant::now());
        let listener = will.socket().try_clone_to_owned();
        let listener =
            listener.map_err(|e| HandoverError::Nonsense(format!("socket of the hand-over: {e}")))?;
        self.0.send(&Frame::of(id::WILL, &VERSIONS.1.to_ne_bytes(), Fds::from_iter([listener])), left())?;
        for port in ports {
            for frame in format::port(port) {
                self.0.send(&frame, left())?;
            }
        }
        self.0.send(&format::bare(id::DONE, &[]), left())?;
        self.0.expect(id::READY, left()).map(drop)
    }

    /// Tells it that nothing comes of it.
    pub fn refuse(mut self, why: &dyn std::fmt::Display) {
        self.0.refuse(why);
    }

    /// The ports are its own from now on.
    ///
    /// # Errors
    /// It has ended meanwhile; the ports are to be thawed.
    pub fn confirm(mut self) -> Result<(), HandoverError> {
        self.0.send(&format::bare(id::YOURS, &[]), GREETING)
    }
}

/// Ports that another process has left.
#[derive(Debug)]
pub struct Claim {
    line: Line,
    will: Option<Will>,
    ports: Vec<Legacy>,
}

/// Asks the process that listens at `path` for its ports; this process has the ports of `named`, and maybe
/// more. `None`: nobody listens there.
///
/// # Errors
/// [`HandoverError`]; the other process goes on.
pub fn claim(path: &Path, named: &[Socket]) -> Result<Option<Claim>, HandoverError> {
    let socket = match Caller::new(path)?.connect() {
        Ok(socket) => socket,
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(errno) => {
            return Err(SocketError::Os { path: path.into(), what: "connect", errno }.into());
        }
    };
    let mut line = Line::of(socket, true)?;
    line.send(&format::bare(id::HELLO, &format::hello(VERSIONS)), GREETING)?;
    for socket in named {
        line.send(&format::bare(id::NAMED, &format::of_socket(socket)), GREETING)?;
    }
    line.send(&format::bare(id::DONE, &[]), GREETING)?;
    match read(&mut line, path) {
        Ok((will, ports)) => Ok(Some(Claim { line, will: Some(will), ports })),
        Err(why) => {
            line.refuse(&why);
            Err(why)
        }
    }
}

fn read(line: &mut Line, path: &Path) -> Result<(Will, Vec<Legacy>), HandoverError> {
    let first = line.expect(id::WILL, LONGEST_STOP)?;
    let version = format::version(&first.payload)?;
    if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
        return Err(HandoverError::Versions((version, version)));
    }
    let listener = format::one_fd(first)?;
    let adopted =
        Listener::adopt(path, listener).map_err(|errno| HandoverError::Wire(WireError::Os(errno)))?;
    let will = Will { listener: adopted };
    let mut reader = Reader::default();
    loop {
        let frame = line.receive(PATIENCE)?;
        if frame.header.request == id::DONE {
            return Ok((will, reader.ports));
        }
        reader.take(frame)?;
    }
}

impl Claim {
    /// The port that was served at a socket, if one was.
    pub fn take(&mut self, socket: &Socket) -> Option<Legacy> {
        let at = self.ports.iter().position(|port| port.socket() == socket)?;
        Some(self.ports.swap_remove(at))
    }

    /// Everything is ready to go on: from now on the ports are ours, and are to be thawed. The socket for the
    /// successor of this process.
    ///
    /// # Errors
    /// The other process goes on.
    pub fn settle(mut self) -> Result<Will, HandoverError> {
        self.line.send(&format::bare(id::READY, &[]), GREETING)?;
        self.line.expect(id::YOURS, GREETING)?;
        let mut will = self.will.take().expect("it came first");
        will.listener.own();
        Ok(will)
    }

    /// Tells the other process that it has to go on, and why.
    pub fn refuse(mut self, why: &dyn std::fmt::Display) {
        self.line.refuse(why);
    }
}

impl AsFd for Will {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket()
    }
}

#[cfg(test)]
mod tests;
