//! Against our own back-end in this process: the vhost port, whose core swaps the MAC addresses and
//! sends every frame back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use hugepages::Pool;
use pmd::port::vhost::{self, Vhost};
use pmd::port::virtio_user::{Config, VirtioUser};
use pmd::vhost::{Server, Socket};
use pmd::{Batch, Port, Queue};

use crate::lanes::*;

const FRAMES: u32 = 2000;

/// A vhost port, its socket and its core.
struct Back {
    port: Vhost,
    stop: Arc<AtomicBool>,
    core: Option<JoinHandle<Vec<Box<dyn Queue>>>>,
    _server: Server,
}

impl Back {
    fn new(socket: Socket, queues: u16, edit: impl FnOnce(&mut vhost::Config)) -> Back {
        let mut config = vhost::Config::new(socket);
        config.queues = queues;
        edit(&mut config);
        let server = Server::start().unwrap();
        let mut port = Vhost::new("vhost0", config, &server.handle()).unwrap();
        let started = port.start(queues).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let core = Some(std::thread::spawn(move || send_back(started, &flag)));
        Back { port, stop, core, _server: server }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let queues = self.core.take().unwrap().join().expect("the core does not panic");
        self.port.stop(queues).unwrap();
    }
}

/// Until `stop`: copies what a queue receives, addresses swapped, and sends that back.
fn send_back(mut queues: Vec<Box<dyn Queue>>, stop: &AtomicBool) -> Vec<Box<dyn Queue>> {
    let mut pool = Pool::new(512, 16384, base()).unwrap().0;
    let (mut received, mut waiting) = (Batch::new(8), Vec::new());
    waiting.resize_with(queues.len(), Batch::default);
    let mut loans = Batch::default();
    while !stop.load(Ordering::Relaxed) {
        for (queue, waiting) in queues.iter_mut().zip(&mut waiting) {
            if waiting.len() < 64 {
                queue.rx(&mut received);
            }
            while !received.is_empty() {
                let mut bytes = Vec::new();
                while let Some(buf) = received.pop_front() {
                    let at = bytes.len();
                    bytes.resize(at + buf.len() as usize, 0);
                    buf.read(0, &mut bytes[at..]);
                    let more = buf.more();
                    loans.push(buf.finish(0));
                    if !more {
                        break;
                    }
                }
                let (to, from) = bytes[..12].split_at_mut(6);
                to.swap_with_slice(from);
                let mut buf = pool.take().expect("more frames than can wait");
                buf.write(0, &bytes);
                buf.truncate(bytes.len() as u32);
                waiting.push(buf);
            }
            queue.settle(&mut loans);
            queue.tx(waiting);
            queue.reap(&mut loans);
            while let Some(loan) = loans.pop_front() {
                pool.settle(loan);
            }
        }
        std::thread::yield_now();
    }
    for mut batch in waiting {
        while let Some(buf) = batch.pop_front() {
            pool.settle(buf.finish(0));
        }
    }
    queues
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hotring-{}-user-{name}.sock", std::process::id()))
}

fn config(path: &Path) -> Config {
    Config { path: path.to_owned(), backing: base(), mtu: 9000, ..Config::default() }
}

#[test]
fn every_frame_comes_back() {
    for queues in [1, 3] {
        let path = socket(&format!("all{queues}"));
        for case in 0..32 {
            let bit = |i: u32| case >> i & 1 != 0;
            let back = Back::new(Socket::Listen(path.clone()), queues, |c| c.mapped = !bit(0) ^ bit(4));
            let config = Config {
                queues,
                packed: bit(0),
                in_order: bit(1),
                mrg_rxbuf: bit(2),
                event_idx: bit(3),
                indirect: bit(4),
                queue_size: if bit(0) { 333 } else { 256 },
                ..config(&path)
            };
            round_trip(config, queues, 9014, FRAMES);
            drop(back);
        }
    }
}

#[test]
fn a_new_back_end_takes_over() {
    for (server, packed) in [(false, false), (true, true)] {
        let path = socket(&format!("again{packed}"));
        let make = || {
            let socket = if server { Socket::Connect(path.clone()) } else { Socket::Listen(path.clone()) };
            Back::new(socket, 2, |_| {})
        };
        let mut back = (!server).then(make);
        let config = Config { server, packed, queues: 2, ..config(&path) };
        let mut port = VirtioUser::new("virtio_user0", config).unwrap();
        let mut lanes = lanes(&mut port, 2, 0);
        for round in 1..5 {
            let _back = back.take().unwrap_or_else(make);
            wait_for(true, &port, &mut lanes);
            for lane in &mut lanes {
                lane.end += FRAMES;
            }
            exchange(&mut lanes, 9014, 32);
            assert_eq!(port.xstats()[0].1, round);
            drop(_back);
            wait_for(false, &port, &mut lanes);
        }
        stop(&mut port, lanes);
        assert!(!server || !path.exists(), "the socket we listened on is gone");
    }
}

#[test]
fn what_the_back_end_lacks_is_named() {
    let path = socket("lacks");
    let _back = Back::new(Socket::Listen(path.clone()), 2, |c| c.packed = false);
    for (config, queues, named) in [
        (Config { queue_size: 1000, packed: true, ..config(&path) }, 1, "1000"),
        (Config { queues: 3, ..config(&path) }, 3, "the back-end has 2"),
    ] {
        let message = VirtioUser::new("user0", config).unwrap().start(queues).err().unwrap().to_string();
        assert!(message.contains(named) && message.contains("lacks.sock"), "{message}");
    }
    // What it can do without is left out.
    let mut port = VirtioUser::new("user0", Config { packed: true, ..config(&path) }).unwrap();
    let mut lanes = lanes(&mut port, 1, FRAMES);
    exchange(&mut lanes, 1514, 64);
    stop(&mut port, lanes);
}
