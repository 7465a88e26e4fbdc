//! Byte streams of management peers: sockets that are listened on or connected to, and never waited for.
//!
//! A [`Stream`] holds what came and was not taken yet, and what is to leave and was not accepted yet. Both have a
//! limit: a peer that sends no end of a message, or takes no answers, is disconnected.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// What may wait to be sent to one peer before it counts as gone.
pub(crate) const OUTPUT_LIMIT: usize = 64 << 20;
/// How much is read in one turn from one peer, so that none starves the others.
const TURN: usize = 1 << 20;

/// A place to connect to or to listen at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// A target as OVS writes it: `tcp:IP[:PORT]`, `unix:FILE`, `ptcp:[PORT][:IP]`, `punix:FILE`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    /// We connect.
    Active(Address),
    /// Peers connect to us.
    Passive(Address),
}

impl Target {
    /// Reads a target; `port` is the one meant when none is given. The error says what is wrong.
    pub(crate) fn parse(text: &str, port: u16) -> Result<Target, String> {
        let (kind, rest) = text.split_once(':').ok_or_else(|| format!("{text}: a target is KIND:ADDRESS"))?;
        match kind {
            "unix" => Ok(Target::Active(Address::Unix(rest.into()))),
            "punix" => Ok(Target::Passive(Address::Unix(rest.into()))),
            "tcp" => host_port(rest, port)
                .map(|a| Target::Active(Address::Tcp(a)))
                .ok_or_else(|| bad_address(text)),
            "ptcp" => port_host(rest, port)
                .map(|a| Target::Passive(Address::Tcp(a)))
                .ok_or_else(|| bad_address(text)),
            "ssl" | "pssl" => Err(format!("{text}: TLS is not supported; use tcp: or unix:")),
            _ => Err(format!("{text}: unknown kind of target; use tcp:, ptcp:, unix: or punix:")),
        }
    }
}

fn bad_address(text: &str) -> String {
    format!("{text}: the address must be an IP address (IPv6 in brackets) and a port")
}

fn host_port(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(ip(text)?, port)))
}

fn port_host(text: &str, port: u16) -> Option<SocketAddr> {
    let (number, host) = text.split_once(':').unwrap_or((text, ""));
    let number = if number.is_empty() { port } else { number.parse().ok()? };
    let host = if host.is_empty() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { ip(host)? };
    Some(SocketAddr::new(host, number))
}

fn ip(text: &str) -> Option<IpAddr> {
    text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text).parse().ok()
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// One connection.
pub(crate) struct Stream {
    socket: Socket,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    peer: String,
    ended: bool,
    broken: bool,
}

impl Stream {
    /// Starts a connection. It may come to nothing yet: then the first [`Stream::receive`] or [`Stream::flush`] fails.
    pub(crate) fn connect(address: &Address) -> io::Result<Stream> {
        let (socket, peer) = match address {
            Address::Unix(path) => {
                (Socket::Unix(UnixStream::connect(path)?), format!("unix:{}", path.display()))
            }
            Address::Tcp(address) => (Socket::Tcp(begin_tcp(*address)?), format!("tcp:{address}")),
        };
        Stream::new(socket, peer)
    }

    fn new(socket: Socket, peer: String) -> io::Result<Stream> {
        match &socket {
            Socket::Unix(s) => s.set_nonblocking(true)?,
            Socket::Tcp(s) => {
                s.set_nonblocking(true)?;
                s.set_nodelay(true).ok();
            }
        }
        Ok(Stream {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            peer,
            ended: false,
            broken: false,
        })
    }

    /// Who is at the other end, for messages.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Reads what is there; false at the end of the stream.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        let mut block = [0; 16 << 10];
        let limit = self.input.len() + TURN;
        while self.input.len() < limit {
            let got = match &mut self.socket {
                Socket::Unix(s) => s.read(&mut block),
                Socket::Tcp(s) => s.read(&mut block),
            };
            match got {
                Ok(0) => return Ok(false),
                Ok(n) => self.input.extend_from_slice(&block[..n]),
                Err(e) if unready(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// What came and was not taken.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input
    }

    /// Takes the first `n` bytes of the input.
    pub(crate) fn take(&mut self, n: usize) -> Vec<u8> {
        let rest = self.input.split_off(n);
        std::mem::replace(&mut self.input, rest)
    }

    /// Queues bytes; they leave with [`Stream::flush`].
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Bytes that the peer has not accepted yet.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Sends as much as the peer accepts. Fails, too, when more than [`OUTPUT_LIMIT`] waits.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            let rest = &self.output[self.sent..];
            let put = match &mut self.socket {
                Socket::Unix(s) => s.write(rest),
                Socket::Tcp(s) => s.write(rest),
            };
            match put {
                Ok(n) => self.sent += n,
                Err(e) if unready(&e) => break,
                Err(e) => return Err(e),
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
        if self.backlog() > OUTPUT_LIMIT {
            return Err(io::Error::other(format!(
                "{} takes no answers: more than {OUTPUT_LIMIT} bytes wait",
                self.peer
            )));
        }
        Ok(())
    }

    /// The peer says no more; what waits is still sent.
    pub(crate) fn finish(&mut self) {
        self.ended = true;
    }

    /// There is nothing more to say.
    pub(crate) fn break_off(&mut self) {
        self.broken = true;
        self.input.clear();
    }

    /// Whether nothing more will come, and nothing waits to be sent.
    pub(crate) fn is_over(&self) -> bool {
        self.broken || (self.ended && self.backlog() == 0)
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let fd = match &self.socket {
            Socket::Unix(s) => s.as_fd(),
            Socket::Tcp(s) => s.as_fd(),
        };
        (fd, if self.backlog() > 0 { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN })
    }

    /// Two ends of one connection, for tests.
    #[cfg(test)]
    pub(crate) fn pair() -> (Stream, UnixStream) {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        (Stream::new(Socket::Unix(a), "test".into()).expect("a stream"), b)
    }
}

fn unready(e: &io::Error) -> bool {
    // A TCP connection that is still being made says ENOTCONN.
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::NotConnected)
}

fn begin_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(fd)),
        Err(e) => Err(e.into()),
    }
}

enum Door {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A socket that peers connect to. A unix socket's file goes with it.
pub(crate) struct Listener {
    door: Door,
    visitors: u64,
}

impl Listener {
    /// Listens at `address`. A socket file that nobody listens at is replaced.
    pub(crate) fn bind(address: &Address) -> io::Result<Listener> {
        let door = match address {
            Address::Unix(path) => {
                if is_dead_socket(path) {
                    fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Door::Unix(listener, path.clone())
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Door::Tcp(listener)
            }
        };
        Ok(Listener { door, visitors: 0 })
    }

    /// The next peer that waits, if one does.
    pub(crate) fn accept(&mut self) -> Option<Stream> {
        self.visitors += 1;
        let made = match &self.door {
            Door::Unix(l, path) => {
                let name = format!("unix#{} at {}", self.visitors, path.display());
                l.accept().and_then(|(s, _)| Stream::new(Socket::Unix(s), name))
            }
            Door::Tcp(l) => {
                l.accept().and_then(|(s, peer)| Stream::new(Socket::Tcp(s), format!("tcp:{peer}")))
            }
        };
        made.ok()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.door {
            Door::Unix(l, _) => (l.as_fd(), PollFlags::IN),
            Door::Tcp(l) => (l.as_fd(), PollFlags::IN),
        }
    }

    /// The TCP port that was chosen, for tests.
    #[cfg(test)]
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match &self.door {
            Door::Unix(..) => None,
            Door::Tcp(l) => l.local_addr().ok(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Door::Unix(_, path) = &self.door {
            fs::remove_file(path).ok();
        }
    }
}

fn is_dead_socket(path: &PathBuf) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    socket && UnixStream::connect(path).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_as_ovs_writes_them() {
        let tcp = |text: &str| Address::Tcp(text.parse().expect("an address"));
        assert_eq!(Target::parse("tcp:127.0.0.1:6633", 6653), Ok(Target::Active(tcp("127.0.0.1:6633"))));
        assert_eq!(Target::parse("tcp:127.0.0.1", 6653), Ok(Target::Active(tcp("127.0.0.1:6653"))));
        assert_eq!(Target::parse("tcp:[::1]:1", 6653), Ok(Target::Active(tcp("[::1]:1"))));
        assert_eq!(Target::parse("ptcp:", 6653), Ok(Target::Passive(tcp("0.0.0.0:6653"))));
        assert_eq!(Target::parse("ptcp:1:[::1]", 6653), Ok(Target::Passive(tcp("[::1]:1"))));
        assert_eq!(Target::parse("punix:/a/b", 0), Ok(Target::Passive(Address::Unix("/a/b".into()))));
        for bad in ["", "tcp", "tcp:name:1", "ptcp:70000", "ssl:1.2.3.4", "x:y"] {
            assert!(Target::parse(bad, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tcp_connection_carries_bytes_both_ways_without_waiting() {
        let mut door =
            Listener::bind(&Address::Tcp("127.0.0.1:0".parse().expect("an address"))).expect("a listener");
        let mut us = Stream::connect(&Address::Tcp(door.local().expect("a port"))).expect("a connection");
        us.send(b"hello");
        let mut them = loop {
            if let Some(s) = door.accept() {
                break s;
            }
        };
        while them.input().len() < 5 {
            us.flush().expect("sent");
            assert!(them.receive().expect("received"));
        }
        assert_eq!(them.take(4), b"hell");
        assert_eq!(them.input(), b"o");
        drop(us);
        while them.receive().unwrap_or(false) {}
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        let (mut us, _them) = Stream::pair();
        us.send(&vec![0; OUTPUT_LIMIT]);
        us.flush().expect("within the limit");
        us.send(&vec![0; OUTPUT_LIMIT]);
        assert!(us.flush().is_err());
    }
}
