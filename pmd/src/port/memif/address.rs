//! Where a server listens: a path, or a name in the abstract namespace of its network namespace.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) path: PathBuf,
    pub(super) is_abstract: bool,
}

impl Address {
    fn unix(&self) -> Result<SocketAddrUnix, Errno> {
        use std::os::unix::ffi::OsStrExt;
        if self.is_abstract {
            SocketAddrUnix::new_abstract_name(self.path.as_os_str().as_bytes())
        } else {
            SocketAddrUnix::new(&self.path)
        }
    }

    /// A socket that is connected to the server.
    pub(super) fn connect(&self) -> Result<OwnedFd, Errno> {
        let socket = socket()?;
        connect(&socket, &self.unix()?)?;
        Ok(socket)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.is_abstract { "@" } else { "" }, self.path.display())
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    file: Option<PathBuf>,
}

impl Listener {
    /// Listens. A socket file on which nobody listens any more is replaced.
    pub(super) fn bind(address: &Address) -> Result<Listener, Errno> {
        let (socket, unix) = (socket()?, address.unix()?);
        match bind(&socket, &unix) {
            Err(Errno::ADDRINUSE) if !address.is_abstract && nobody_listens(address) => {
                fs::remove_file(&address.path).map_err(|_| Errno::ADDRINUSE)?;
                bind(&socket, &unix)?;
            }
            bound => bound?,
        }
        listen(&socket, BACKLOG)?;
        let file = (!address.is_abstract).then(|| Path::to_owned(&address.path));
        Ok(Listener { socket, file })
    }

    /// The next connection, if one waits.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// A socket file that a process left behind when it was killed.
fn nobody_listens(address: &Address) -> bool {
    address.connect().is_err_and(|errno| errno == Errno::CONNREFUSED)
}
