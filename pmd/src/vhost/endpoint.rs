//! Where front-ends come from: a socket we listen on, or one we connect to.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, OFlags, Uid, chmod, chown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_peercred};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

use crate::confine::User;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;
/// Between two attempts to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_millis(1000);

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{}: another process (or port) listens on this socket; choose another path", .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{}: exists and is no socket; choose another path or remove it", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{}: {what}: {errno}", .path.display())]
    Os {
        /// The path.
        path: PathBuf,
        /// The step that failed.
        what: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// Where a port's front-end is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// We listen at this path; front-ends connect, one at a time.
    Listen(PathBuf),
    /// A front-end listens at this path; we connect, and connect again when it has gone.
    Connect(PathBuf),
}

impl Socket {
    /// The path.
    pub fn path(&self) -> &PathBuf {
        match self {
            Socket::Listen(path) | Socket::Connect(path) => path,
        }
    }
}

/// Who may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Permissions of the socket file; without them, as the process makes files.
    pub mode: Option<u32>,
    /// Owner of the socket file.
    pub owner: Option<User>,
    /// The only user whose processes are served, whatever the file says, by `SO_PEERCRED`.
    pub peer: Option<u32>,
}

impl Access {
    /// Whether the process at the other end is served; its user.
    pub(super) fn admits(&self, socket: BorrowedFd<'_>) -> Result<(), u32> {
        let Some(wanted) = self.peer else { return Ok(()) };
        // Who cannot be asked is nobody.
        let user = socket_peercred(socket).map_or(u32::MAX, |peer| peer.uid.as_raw());
        if user == wanted { Ok(()) } else { Err(user) }
    }
}

/// A listening socket; removed from the file system when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, so that nobody else's is removed; `None`: another process has it.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A socket file on which nobody listens any more is replaced.
    pub(super) fn bind(path: &Path, access: &Access) -> Result<Listener, SocketError> {
        let fail = |what| move |errno| SocketError::Os { path: path.into(), what, errno };
        let address = SocketAddrUnix::new(path).map_err(fail("not a path for a socket"))?;
        let socket = new_socket().map_err(fail("socket"))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&socket, &address).map_err(fail("bind"))?;
            }
            bound => bound.map_err(fail("bind; does the directory exist, and may we write there"))?,
        }
        let file = file_at(path).ok_or(Errno::NOENT).map_err(fail("the new socket is gone"))?;
        let listener = Listener { socket, path: path.into(), file: Some(file) };
        // Nobody can connect before it listens.
        if let Some(User { uid, gid }) = access.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chown(path, Some(uid), Some(gid)).map_err(fail("giving it to its owner; only root can"))?;
        }
        if let Some(mode) = access.mode {
            chmod(path, Mode::from_raw_mode(mode)).map_err(fail("its permissions"))?;
        }
        listen(&listener.socket, BACKLOG).map_err(fail("listen"))?;
        Ok(listener)
    }

    /// Goes on with a socket that listens at `path`, which is another process's until [`Listener::own`].
    pub(super) fn adopt(path: &Path, socket: OwnedFd) -> Result<Listener, Errno> {
        if !socket_acceptconn(&socket)? {
            return Err(Errno::INVAL);
        }
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Listener { socket, path: path.into(), file: None })
    }

    /// The path is ours again, or now.
    pub(super) fn own(&mut self) {
        self.file = file_at(&self.path);
    }

    /// Leaves the path to another process, which has the socket too.
    pub(super) fn leave(&mut self) {
        self.file = None;
    }

    /// The next connection, if one waits.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && file_at(&self.path) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A front-end that listens; it is tried again until it is there.
#[derive(Debug)]
pub(super) struct Caller {
    address: SocketAddrUnix,
    next: Instant,
    pause: Duration,
}

impl Caller {
    pub(super) fn new(path: &Path) -> Result<Caller, SocketError> {
        let fail = |errno| SocketError::Os { path: path.into(), what: "not a path for a socket", errno };
        let address = SocketAddrUnix::new(path).map_err(fail)?;
        Ok(Caller { address, next: Instant::now(), pause: FIRST_PAUSE })
    }

    /// When to try next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Connects. An error sets the time of the next attempt.
    pub(super) fn connect(&mut self) -> Result<OwnedFd, Errno> {
        let connected = new_socket().and_then(|socket| connect(&socket, &self.address).map(|()| socket));
        match connected {
            Ok(_) => self.pause = FIRST_PAUSE,
            Err(_) => {
                self.rest();
                self.pause = (self.pause * 2).min(LAST_PAUSE);
            }
        }
        connected
    }

    /// Leaves a pause before the next attempt, after a connection has ended.
    pub(super) fn rest(&mut self) {
        self.next = Instant::now() + self.pause;
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Removes the socket file of a process that is gone.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let fail = |what| move |errno| SocketError::Os { path: path.into(), what, errno };
    if fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket()) {
        return Err(SocketError::NotASocket { path: path.into() });
    }
    let probe = new_socket().map_err(fail("socket"))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => {
            let _ = fs::remove_file(path);
            Ok(())
        }
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::InUse { path: path.into() }),
        Err(errno) => Err(fail("connect, to see whether anybody listens")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hotring-{}-endpoint-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = path("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let listener = Listener::bind(&path, &Access::default()).unwrap();
        assert!(matches!(Listener::bind(&path, &Access::default()), Err(SocketError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_and_other_sockets_are_left_alone() {
        let path = path("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, &Access::default()), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        let listener = Listener::bind(&path, &Access::default()).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "another process has taken the path over");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn errors_name_the_path() {
        let missing =
            Listener::bind(Path::new("/nonexistent/vm.sock"), &Access::default()).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/vm.sock"), "{missing}");
        let long =
            Listener::bind(&PathBuf::from("x".repeat(200)), &Access::default()).unwrap_err().to_string();
        assert!(long.contains("xxx"), "{long}");
    }

    #[test]
    fn a_caller_pauses_longer_and_longer_up_to_a_limit() {
        let path = path("caller");
        let mut caller = Caller::new(&path).unwrap();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let before = Instant::now();
            assert_eq!(caller.connect().unwrap_err(), Errno::NOENT);
            pauses.push(caller.next() - before);
        }
        assert!(pauses[0] < Duration::from_millis(100) && pauses[7] >= LAST_PAUSE, "{pauses:?}");
        assert!(pauses.iter().all(|p| *p < LAST_PAUSE * 2), "{pauses:?}");
        let listener = UnixListener::bind(&path).unwrap();
        caller.connect().unwrap();
        let _: UnixStream = listener.accept().unwrap().0;
        assert_eq!(caller.pause, FIRST_PAUSE);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_socket_has_its_mode_and_owner_before_anybody_can_connect() {
        let path = std::env::temp_dir().join(format!("hotring-{}-mode", std::process::id()));
        let root = rustix::process::geteuid().is_root();
        let owner = root.then_some(User { uid: 65534, gid: 65533 });
        let access = Access { mode: Some(0o620), owner, peer: None };
        let _listener = Listener::bind(&path, &access).unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.mode() & 0o777, 0o620);
        assert!(!root || (file.uid(), file.gid()) == (65534, 65533));
    }

    #[test]
    fn only_the_wanted_user_is_admitted() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let admits = |peer| Access { peer, ..Access::default() }.admits(ours.as_fd());
        assert_eq!([admits(None), admits(Some(me)), admits(Some(me + 1))], [Ok(()), Ok(()), Err(me)]);
    }
}
