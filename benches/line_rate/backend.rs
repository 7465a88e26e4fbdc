//! A back-end in this process, for tests: vhost ports that return or cross what they receive, with faults
//! where these are wanted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use hugepages::{Backing, Buf, Loan, PageSize};
use pmd::port::fault::{self, Fault};
use pmd::port::vhost::{Config, Vhost};
use pmd::vhost::{Server, Socket};
use pmd::{Batch, Port, Queue};

use crate::frontend::Door;

/// One at a time: each keeps a core busy, and its driver another.
static ONE: Mutex<()> = Mutex::new(());

/// Running until it is dropped.
pub(crate) struct Backend {
    paths: Vec<PathBuf>,
    stop: Arc<AtomicBool>,
    core: Option<JoinHandle<()>>,
    _server: Server,
    _one: MutexGuard<'static, ()>,
}

impl Backend {
    /// One port that returns frames, or two that cross them.
    pub(crate) fn start(ports: usize, queues: u16, faults: Option<fault::Config>) -> Backend {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (server, mut paths) = (Server::start().unwrap(), Vec::new());
        let (mut sides, mut started): (Vec<Box<dyn Port>>, Vec<Vec<_>>) = (Vec::new(), Vec::new());
        for _ in 0..ports {
            let name = format!("linerate-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            let config = Config { queues, ..Config::new(Socket::Listen(path.clone())) };
            let mut port: Box<dyn Port> = Box::new(Vhost::new("vhost0", config, &server.handle()).unwrap());
            if let Some(faults) = &faults {
                let backing = Backing { page: PageSize::Base, node: None };
                port = Box::new(Fault::new(port, fault::Config { backing, ..faults.clone() }).unwrap());
            }
            started.push(port.start(queues).unwrap());
            sides.push(port);
            paths.push(path);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let core = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) || lent(&started) {
                if !turn(&mut started, !ended.load(Ordering::Relaxed)) {
                    thread::yield_now();
                }
            }
            for (mut port, queues) in sides.into_iter().zip(started) {
                port.stop(queues).unwrap();
            }
        });
        Backend { paths, stop, core: Some(core), _server: server, _one: one }
    }

    pub(crate) fn doors(&self) -> Vec<Door> {
        self.paths.iter().map(|path| Door::open(path, false).unwrap()).collect()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.core.take().expect("dropped once").join();
        assert!(ended.is_ok() || thread::panicking(), "the back-end panicked");
    }
}

fn lent(ports: &[Vec<Box<dyn Queue>>]) -> bool {
    ports.iter().flatten().any(|queue| queue.lent() > 0 || queue.held() > 0)
}

/// Forwards a burst of each queue; whether there was anything.
fn turn(ports: &mut [Vec<Box<dyn Queue>>], rx: bool) -> bool {
    let (mut batch, mut loans, mut any) = (Batch::<Buf>::default(), Batch::<Loan>::default(), false);
    for port in 0..ports.len() {
        for queue in 0..ports[port].len() {
            if rx {
                any |= ports[port][queue].rx(&mut batch) > 0;
            }
            let to = if ports.len() == 2 { port ^ 1 } else { port };
            ports[to][queue].tx(&mut batch);
            while let Some(buf) = batch.pop_front() {
                loans.push(buf.finish(0));
                settle(ports, &mut loans);
            }
            ports[to][queue].reap(&mut loans);
            settle(ports, &mut loans);
        }
    }
    any
}

fn settle(ports: &mut [Vec<Box<dyn Queue>>], loans: &mut Batch<Loan>) {
    while !loans.is_empty() {
        for queue in ports.iter_mut().flatten() {
            queue.settle(loans);
        }
    }
}
