//! The connection to an `ovsdb-server`: follows the tables, holds the lock, writes back. Comes back when it breaks.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::config::FOLLOWED;
use super::replica::{Replica, Uuid};
use crate::vswitch::jsonrpc::{self, Message, Scanner};
use crate::vswitch::stream::{Address, Stream};

const DATABASE: &str = "Open_vSwitch";
/// Who holds it is the switch of this database; `ovs-vswitchd` takes the same.
const LOCK: &str = "ovs_vswitchd";
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What a request was for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Lock,
    Monitor,
    Transact,
}

/// Follows one database.
pub(crate) struct Client {
    server: Address,
    connection: Option<Connection>,
    pause: Duration,
    next_try: Instant,
}

struct Connection {
    stream: Stream,
    scanner: Scanner,
    replica: Replica,
    asked: HashMap<u64, Asked>,
    next_id: u64,
    locked: bool,
    followed: bool,
    /// What the server holds of the columns that we write.
    written: HashMap<(&'static str, Uuid), Map<String, Value>>,
}

/// Rows and columns to be written.
#[derive(Default)]
pub(crate) struct Changes(Vec<(&'static str, Uuid, Map<String, Value>)>);

impl Changes {
    /// Sets columns (an object) of one row.
    pub(crate) fn set(&mut self, table: &'static str, uuid: &str, columns: Value) {
        if let Value::Object(columns) = columns {
            self.0.push((table, uuid.to_owned(), columns));
        }
    }
}

impl Client {
    /// Connects with the first [`Client::turn`].
    pub(crate) fn new(server: Address) -> Client {
        Client { server, connection: None, pause: Duration::from_secs(1), next_try: Instant::now() }
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.connection.iter().map(|c| c.stream.interest())
    }

    /// Takes in what came; true when the database says something new, and we are the one to do it.
    pub(crate) fn turn(&mut self, now: Instant) -> bool {
        let Some(connection) = &mut self.connection else {
            self.connect(now);
            return false;
        };
        match connection.serve() {
            Ok(news) => news && connection.locked && connection.followed,
            Err(e) => {
                warn!("ovsdb: {}: {e}; trying again in {:?}", connection.stream.peer(), self.pause);
                self.connection = None;
                self.wait(now);
                false
            }
        }
    }

    fn wait(&mut self, now: Instant) {
        self.next_try = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn connect(&mut self, now: Instant) {
        if now < self.next_try {
            return;
        }
        match Stream::connect(&self.server) {
            Ok(stream) => {
                info!("ovsdb: connected to {}", stream.peer());
                self.connection = Some(Connection::begin(stream));
                self.pause = Duration::from_secs(1);
            }
            Err(e) => {
                if self.pause < LONGEST_PAUSE {
                    warn!("ovsdb: {:?}: {e}; trying again", self.server);
                }
                self.wait(now);
            }
        }
    }

    /// The database as far as it is known; nothing while it is not, or while another switch serves it.
    pub(crate) fn replica(&self) -> Option<&Replica> {
        self.connection.as_ref().filter(|c| c.locked && c.followed).map(|c| &c.replica)
    }

    /// Writes what differs from what was written before. False when an earlier write is still under way: try again.
    pub(crate) fn write(&mut self, changes: Changes) -> bool {
        let Some(connection) = &mut self.connection else {
            return true;
        };
        if connection.asked.values().any(|a| *a == Asked::Transact) {
            return false;
        }
        connection.write(changes);
        true
    }
}

impl Connection {
    fn begin(stream: Stream) -> Connection {
        let mut connection = Connection {
            stream,
            scanner: Scanner::default(),
            replica: Replica::default(),
            asked: HashMap::new(),
            next_id: 0,
            locked: false,
            followed: false,
            written: HashMap::new(),
        };
        connection.ask(Asked::Lock, "lock", json!([LOCK]));
        let tables: Map<String, Value> =
            FOLLOWED.iter().map(|(t, c)| ((*t).to_owned(), json!({"columns": c}))).collect();
        connection.ask(Asked::Monitor, "monitor", json!([DATABASE, "switch", tables]));
        connection
    }

    fn ask(&mut self, what: Asked, method: &str, params: Value) {
        self.next_id += 1;
        self.asked.insert(self.next_id, what);
        self.stream.send(&jsonrpc::request(method, params, json!(self.next_id)));
    }

    /// True when rows changed, or when the lock became ours.
    fn serve(&mut self) -> io::Result<bool> {
        let open = self.stream.receive()?;
        let mut news = false;
        while let Some(n) = self.scanner.scan(self.stream.input()).map_err(io::Error::other)? {
            let bytes = self.stream.take(n);
            news |= self.on(Message::parse(&bytes).map_err(io::Error::other)?)?;
        }
        self.stream.flush()?;
        if open { Ok(news) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    }

    fn on(&mut self, message: Message) -> io::Result<bool> {
        match message {
            Message::Request { method, params, id } => Ok(match (method.as_str(), params.as_slice()) {
                ("echo", _) => {
                    self.stream.send(&jsonrpc::reply(Value::Array(params), Value::Null, id));
                    false
                }
                ("update", [_, updates]) => {
                    self.replica.update(updates).map_err(io::Error::other)?;
                    true
                }
                ("locked", _) => self.lock(true),
                ("stolen", _) => self.lock(false),
                _ => false,
            }),
            Message::Reply { result, error, id } => self.answer(id, &result, &error),
        }
    }

    fn lock(&mut self, ours: bool) -> bool {
        if !ours {
            warn!("ovsdb: another switch serves this database; waiting until it ends");
        }
        self.locked = ours;
        ours
    }

    fn answer(&mut self, id: Value, result: &Value, error: &Value) -> io::Result<bool> {
        let Some(asked) = id.as_u64().and_then(|id| self.asked.remove(&id)) else {
            return Ok(false);
        };
        match asked {
            Asked::Lock | Asked::Monitor if !error.is_null() => {
                Err(io::Error::other(format!("the server refuses: {error}")))
            }
            Asked::Lock => Ok(self.lock(result.get("locked") == Some(&Value::Bool(true)))),
            Asked::Monitor => {
                self.replica.update(result).map_err(io::Error::other)?;
                self.followed = true;
                Ok(true)
            }
            Asked::Transact => {
                let failed = result
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|r| r.get("error").is_some_and(|e| !e.is_null()));
                if failed.is_some() || !error.is_null() {
                    warn!("ovsdb: a write was refused: {}", failed.unwrap_or(error));
                    self.written.clear();
                }
                Ok(false)
            }
        }
    }

    fn write(&mut self, changes: Changes) {
        let mut operations = vec![json!(DATABASE)];
        for (table, uuid, columns) in changes.0 {
            let known = self.written.entry((table, uuid.clone())).or_default();
            let row: Map<String, Value> =
                columns.into_iter().filter(|(k, v)| known.get(k) != Some(v)).collect();
            if !row.is_empty() {
                known.extend(row.clone());
                operations.push(json!({"op": "update", "table": table, "where": [["_uuid", "==", ["uuid", uuid]]], "row": row}));
            }
        }
        if operations.len() > 1 {
            self.ask(Asked::Transact, "transact", Value::Array(operations));
        }
    }
}
