//! Where front-ends come from: a socket we listen on, or one we connect to.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

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

/// A listening socket; removed from the file system when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, so that nobody else's is removed.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file on which nobody listens any more is replaced.
    pub(super) fn bind(path: &Path) -> Result<Listener, SocketError> {
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
        let listener = Listener { socket, path: path.into(), file };
        listen(&listener.socket, BACKLOG).map_err(fail("listen"))?;
        Ok(listener)
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
        if file_at(&self.path) == Some(self.file) {
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
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_and_other_sockets_are_left_alone() {
        let path = path("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "another process has taken the path over");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn errors_name_the_path() {
        let missing = Listener::bind(Path::new("/nonexistent/vm.sock")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/vm.sock"), "{missing}");
        let long = Listener::bind(&PathBuf::from("x".repeat(200))).unwrap_err().to_string();
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
}
