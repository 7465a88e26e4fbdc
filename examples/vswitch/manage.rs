//! The management thread: OpenFlow of every bridge, the database, and `ovs-appctl`. It waits for sockets, never for a peer.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tracing::warn;

use super::appctl;
use super::openflow::adapter::{Adapter, Post};
use super::openflow::server::Server;
use super::ovsdb::Follower;
use super::runner::Runner;
use super::stream::Target;

/// The longest time between two looks at what happened without a socket.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Where the switch is managed.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The socket of `ovs-appctl`.
    pub unixctl: Option<PathBuf>,
    /// Where each bridge has its `BRIDGE.mgmt`.
    pub folder: Option<PathBuf>,
    /// The database: `unix:FILE` or `tcp:IP:PORT`.
    pub database: Option<String>,
}

/// The management thread.
pub struct Management {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Manager {
    runner: Arc<Runner>,
    folder: Option<PathBuf>,
    post: Post,
    servers: BTreeMap<String, Server>,
    appctl: Option<appctl::Server>,
    follower: Option<Follower>,
}

impl Management {
    /// Starts it.
    ///
    /// # Errors
    /// A socket cannot be had, or an address is none.
    pub fn start(runner: Arc<Runner>, places: &Places, quit: Arc<AtomicBool>) -> Result<Management, String> {
        let appctl = match &places.unixctl {
            Some(path) => Some(appctl::Server::bind(path).map_err(|e| format!("{}: {e}", path.display()))?),
            None => None,
        };
        let follower = match &places.database {
            Some(target) => match Target::parse(target, 6640)? {
                Target::Active(address) => Some(Follower::new(address)),
                Target::Passive(_) => return Err(format!("{target}: the database is connected to")),
            },
            None => None,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (post, folder) = (Post::new(&runner), places.folder.clone());
        let mut manager = Manager { runner, folder, post, servers: BTreeMap::new(), appctl, follower };
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                manager.wait();
                manager.turn(&quit);
            }
        };
        let thread =
            std::thread::Builder::new().name("management".into()).spawn(run).map_err(|e| e.to_string())?;
        Ok(Management { stop, thread: Some(thread) })
    }

    /// Ends it, and gives its sockets up.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Management {
    fn drop(&mut self) {
        self.end();
    }
}

impl Manager {
    /// Until a socket has something, or it is time to look.
    fn wait(&self) {
        let servers = self.servers.values().flat_map(Server::interest);
        let rest = self.appctl.iter().flat_map(appctl::Server::interest);
        let database = self.follower.iter().flat_map(Follower::interest);
        let all: Vec<(BorrowedFd<'_>, PollFlags)> = servers.chain(rest).chain(database).collect();
        let mut fds: Vec<PollFd<'_>> = all.iter().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
        if rustix::event::poll(&mut fds, Some(&LOOK)).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn turn(&mut self, quit: &AtomicBool) {
        let now = Instant::now();
        self.sockets();
        if let Some(follower) = &mut self.follower {
            follower.turn(now, &self.runner, &mut self.servers);
        }
        for (name, server) in &mut self.servers {
            let mut bridge = Adapter { name: name.clone(), runner: &self.runner, post: &mut self.post };
            server.turn(now, &mut bridge);
        }
        if let Some(appctl) = &mut self.appctl {
            let runner = &self.runner;
            appctl.turn(&mut |command, args| appctl::run(runner, quit, command, args));
        }
    }

    /// A server for each bridge, with its management socket.
    fn sockets(&mut self) {
        let bridges = self.runner.switch().bridges();
        self.servers.retain(|name, _| bridges.contains(name));
        for name in bridges {
            if self.servers.contains_key(&name) {
                continue;
            }
            let mut server = Server::default();
            if let Some(folder) = &self.folder {
                let target = format!("punix:{}", folder.join(format!("{name}.mgmt")).display());
                if let Err(e) = server.listen(&target) {
                    warn!("bridge {name}: {e}");
                }
            }
            self.servers.insert(name, server);
        }
    }
}
