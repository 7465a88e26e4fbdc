//! The socket that `ovs-appctl` connects to: one JSON-RPC request, one answer of text.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::event::PollFlags;
use serde_json::Value;
use tracing::{debug, info};

use crate::vswitch::jsonrpc::{self, Message, Scanner};
use crate::vswitch::stream::{Address, Listener, Stream};

/// Does a command with its arguments; an `Err` is shown as an error, and `ovs-appctl` then exits with status 2.
pub(crate) type Run<'a> = dyn FnMut(&str, &[String]) -> Result<String, String> + 'a;

/// How many may be connected at once.
const PEERS: usize = 64;

struct Peer {
    stream: Stream,
    scanner: Scanner,
}

/// The listening socket and who is connected to it.
pub(crate) struct Server {
    listener: Listener,
    peers: Vec<Peer>,
}

impl Server {
    /// Listens at `path`, which `ovs-appctl -t PATH` is told.
    pub(crate) fn bind(path: &Path) -> io::Result<Server> {
        Ok(Server { listener: Listener::bind(&Address::Unix(path.into()))?, peers: Vec::new() })
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        std::iter::once(self.listener.interest()).chain(self.peers.iter().map(|p| p.stream.interest()))
    }

    /// Serves what came.
    pub(crate) fn turn(&mut self, run: &mut Run<'_>) {
        while let Some(stream) = self.listener.accept() {
            if self.peers.len() < PEERS {
                self.peers.push(Peer { stream, scanner: Scanner::default() });
            }
        }
        self.peers.retain_mut(|peer| match peer.serve(run) {
            Ok(goes_on) => goes_on,
            Err(e) => {
                info!("appctl: {}: {e}", peer.stream.peer());
                false
            }
        });
    }
}

impl Peer {
    fn serve(&mut self, run: &mut Run<'_>) -> io::Result<bool> {
        let open = self.stream.receive()?;
        while let Some(n) = self.scanner.scan(self.stream.input()).map_err(io::Error::other)? {
            let bytes = self.stream.take(n);
            let Message::Request { method, params, id } = Message::parse(&bytes).map_err(io::Error::other)?
            else {
                continue;
            };
            debug!("appctl: {method} {params:?}");
            let (result, error) = match arguments(&params).and_then(|args| run(&method, &args)) {
                Ok(text) => (Value::String(text), Value::Null),
                Err(text) => (Value::Null, Value::String(text)),
            };
            self.stream.send(&jsonrpc::reply(result, error, id));
        }
        self.stream.flush()?;
        Ok(open || self.stream.backlog() > 0)
    }
}

fn arguments(params: &[Value]) -> Result<Vec<String>, String> {
    let text = |v: &Value| v.as_str().map(str::to_owned).ok_or("arguments must be strings");
    Ok(params.iter().map(text).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn ask(server: &mut Server, path: &Path, request: &[u8]) -> String {
        let mut client = UnixStream::connect(path).expect("connected");
        client.write_all(request).expect("sent");
        client.shutdown(std::net::Shutdown::Write).expect("shut down");
        let mut run = |command: &str, args: &[String]| match command {
            "echo" => Ok(args.join(" ") + "\n"),
            _ => Err(format!("\"{command}\" is not a valid command\n")),
        };
        server.turn(&mut run);
        server.turn(&mut run);
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn a_request_is_answered_and_nonsense_disconnected() {
        let path = std::env::temp_dir().join(format!("hotring-appctl-{}", std::process::id()));
        let mut server = Server::bind(&path).expect("bound");
        let answer = ask(&mut server, &path, br#"{"id":3,"method":"echo","params":["a","b"]}"#);
        assert_eq!(answer, r#"{"error":null,"id":3,"result":"a b\n"}"#);
        let answer = ask(&mut server, &path, br#"{"id":4,"method":"no","params":[]}"#);
        assert_eq!(answer, r#"{"error":"\"no\" is not a valid command\n","id":4,"result":null}"#);
        let answer = ask(&mut server, &path, br#"{"id":5,"method":"echo","params":[7]}"#);
        assert!(answer.contains("must be strings"), "{answer}");
        assert_eq!(ask(&mut server, &path, b"GET / HTTP/1.0"), "");
        drop(server);
        assert!(!path.exists(), "the socket's file goes with the server");
    }
}
