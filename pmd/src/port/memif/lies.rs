//! A memif peer that lies: anything is written at any time to rings and buffers, under the queue of a server and of
//! a client; and messages of any kind, with descriptors, to a server's socket. It is left, and what was lent comes
//! home.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hugepages::{Backing, Batch, Buf, Lender, Loan, Map, Offload, PageSize, Pool, Table, Window, Words};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::address::Address;
use super::client::{self, ClientQueue, Lane};
use super::door::{Door, State};
use super::ring::{MAX_CHAIN, Ring};
use super::server::{self, Inlet, Outlet, ServerQueue};
use super::wire::{Wire, WireError};
use super::{Config, Memif, Role};
use crate::port::nic::lies::Script;
use crate::port::{Port, Queue};
use crate::spec::memif::{AddRegion, AddRing, MESSAGE, RING_TO_SERVER, kind};
use crate::spec::net::MAX_FRAME;
use crate::sys::eventfd::EventFd;
use zerocopy::IntoBytes;

const BASE: Backing = Backing { page: PageSize::Base, node: None };
/// Bytes of a peer's memory: two rings of at most 32 descriptors, each in a page, and buffers.
const BYTES: u64 = 1 << 16;

/// What a peer may write: words of the rings, and their indices.
struct Peer {
    words: Window<u64>,
    rings: [Ring; 2],
}

impl Peer {
    /// Rings that have begun, in their memory.
    fn new(table: &Arc<Table>, log2: u8) -> Peer {
        let rings = [0, 4096].map(|at| Ring::open(table, at, log2).unwrap());
        rings.iter().for_each(Ring::init);
        Peer { words: table.window(0, BYTES as usize / 8).unwrap(), rings }
    }

    fn write(&self, step: u8, script: &mut Script<'_>) {
        let ring = &self.rings[usize::from(step >> 7)];
        match step >> 3 & 3 {
            0 => ring.set_head(script.number(2) as u16),
            1 => ring.set_tail(script.number(2) as u16),
            // One more than last time, as a good peer.
            2 => ring.set_head(ring.head().wrapping_add(1 + script.number(1) as u16 % 4)),
            _ => ring.set_tail(ring.tail().wrapping_add(1 + script.number(1) as u16 % 4)),
        }
    }

    /// A descriptor of a frame that may well lie in memory, or any word at all.
    fn describe(&self, step: u8, script: &mut Script<'_>) {
        let (ring, at) = (u64::from(step >> 7), script.number(1) % 32);
        let first = (ring * 4096 + 128) / 8 + 2 * at;
        let (next, len, offset) = (u64::from(step >> 3 & 1), script.number(2), script.number(2));
        self.words.set(first as usize, next | (len & 0xfff) << 32);
        self.words.set(first as usize + 1, 8192 + offset % (BYTES - 8192));
    }
}

/// Packets to a queue, and its receipts.
fn send(queue: &mut dyn Queue, guest: &Lender, step: u8, script: &mut Script<'_>, id: &mut u16) {
    let mut batch = Batch::<Buf>::default();
    let n = script.number(1) as u16 % 12 + 1;
    for i in 0..n {
        let mut buf =
            guest.lend(u64::from(*id % 60) * 4096, script.number(2) as u32 % 3000 + 1, *id).unwrap();
        buf.set_more(step & 0x40 != 0 && i + 1 < n);
        if step & 0x80 != 0 && i == 0 {
            buf.offload = Offload {
                flags: script.number(1) as u8,
                gso_type: script.number(1) as u8,
                hdr_len: script.number(2) as u16,
                gso_size: script.number(2) as u16,
                csum_start: script.number(1) as u16,
                csum_offset: script.number(1) as u16,
            };
        }
        *id = id.wrapping_add(1);
        batch.push(buf);
    }
    queue.tx(&mut batch);
    while let Some(buf) = batch.pop_front() {
        guest.settle(buf.finish(0));
    }
}

/// Receipts of buffers of one connection and of the next may alternate: as a core, asks as long as some are there.
fn settle(queue: &mut dyn Queue, loans: &mut Batch<Loan>) {
    while !loans.is_empty() {
        let before = loans.len();
        queue.settle(loans);
        assert!(loans.len() < before, "they are all its own");
    }
}

/// Until the script ends; `door` gives the queue new rings.
fn play(queue: &mut dyn Queue, peer: &Peer, mut script: Script<'_>, mut door: impl FnMut(bool)) {
    let guest = Lender::new(Table::of(Map::shared(1 << 18, BASE).unwrap()));
    let (mut kept, mut loans, mut id) = (Batch::<Buf>::default(), Batch::<Loan>::default(), 0u16);
    let home = |queue: &mut dyn Queue, loans: &mut Batch<Loan>| {
        queue.reap(loans);
        while let Some(loan) = loans.pop_front() {
            guest.settle(loan);
        }
    };
    while let Some(step) = script.byte() {
        match step % 8 {
            0 => {
                let mut batch = Batch::<Buf>::default();
                let packets = queue.rx(&mut batch);
                for _ in 0..packets {
                    let (n, bytes) = batch.packet_at(0);
                    assert!((1..=MAX_CHAIN).contains(&n) && (1..=MAX_FRAME).contains(&bytes), "{n}, {bytes}");
                    for _ in 0..n {
                        let buf = batch.pop_front().expect("counted");
                        // Some stay a while, over what the peer does next.
                        if step & 0x80 != 0 && kept.room() > 0 {
                            kept.push(buf)
                        } else {
                            loans.push(buf.finish(0))
                        }
                    }
                }
                assert!(batch.is_empty(), "nothing but packets");
                settle(queue, &mut loans);
            }
            1 => send(queue, &guest, step, &mut script, &mut id),
            2 => home(queue, &mut loans),
            3 => {
                while let Some(buf) = if step & 0x80 != 0 { kept.pop_front() } else { kept.pop_back() } {
                    loans.push(buf.finish(0));
                }
                settle(queue, &mut loans);
            }
            4 => peer.write(step, &mut script),
            5 => peer.describe(step, &mut script),
            6 => peer.words.set(script.number(2) as usize % peer.words.len(), script.number(8)),
            _ => {
                door(true);
                home(queue, &mut loans);
            }
        }
    }
    door(false);
    while let Some(buf) = kept.pop_front() {
        loans.push(buf.finish(0));
    }
    settle(queue, &mut loans);
    (0..2).for_each(|_| home(queue, &mut loans));
    assert_eq!((queue.held(), queue.lent(), guest.out()), (0, 0, 0), "everything comes home");
}

fn state() -> Arc<State> {
    Arc::new(State::new(Arc::new(EventFd::new().unwrap())))
}

fn server(log2: u8, script: Script<'_>) {
    let table = Table::of(Map::shared(BYTES as usize, BASE).unwrap());
    let peer = Peer::new(&table, log2);
    let door = Arc::new(Door::new(&state()).unwrap());
    let mut queue = ServerQueue::new("fuzz".to_owned(), Arc::clone(&door));
    let live = || {
        let [to_us, to_them] = [0, 4096].map(|at| Ring::open(&table, at, log2).unwrap());
        server::Live {
            lender: Lender::new(Arc::clone(&table)),
            receive: Some((Inlet::new(to_us), EventFd::new().unwrap())),
            send: Some((Outlet::new(to_them), EventFd::new().unwrap())),
        }
    };
    door.give(live());
    queue.reap(&mut Batch::default());
    play(&mut queue, &peer, script, |up| if up { door.give(live()) } else { door.down() });
}

fn client(log2: u8, script: Script<'_>) {
    let table = Table::of(Map::shared(BYTES as usize, BASE).unwrap());
    let peer = Peer::new(&table, log2);
    let door = Arc::new(Door::new(&state()).unwrap());
    let (pool, _) = Pool::new(256, 2048, BASE).unwrap();
    let mut queue = ClientQueue::new("fuzz".to_owned(), pool, 1, 2048, Arc::clone(&door));
    let live = || {
        let [send, receive] = [0, 4096].map(|at| {
            let ring = Ring::open(&table, at, log2).unwrap();
            ring.init();
            ring.set_head(0);
            ring.set_tail(0);
            Some(Lane::new(ring))
        });
        client::Live { send, receive, kick: EventFd::new().unwrap(), call: EventFd::new().unwrap() }
    };
    door.give(live());
    queue.reap(&mut Batch::default());
    play(&mut queue, &peer, script, |up| if up { door.give(live()) } else { door.down() });
}

/// A server, for the process.
fn house() -> Address {
    static HOUSE: Mutex<Option<Memif>> = Mutex::new(None);
    let path = format!("hotring-memif-lies-{}", std::process::id());
    let address = Address { path: path.into(), is_abstract: true };
    let mut house = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
    if house.is_none() {
        let socket = address.path.clone();
        let role = Role::Server;
        let config = Config { role, socket, is_abstract: true, backing: BASE, ..Config::default() };
        let mut port = Memif::new("fuzz", config).unwrap();
        // Nobody runs the queues: rings lie at their doors.
        drop(port.start(2).unwrap());
        *house = Some(port);
    }
    address
}

fn conversation(mut script: Script<'_>) {
    let wire = Wire::new(house().connect().unwrap());
    let memory = rustix::fs::memfd_create(c"lies", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, BYTES).unwrap();
    let (map, _) = Map::file(memory.try_clone().unwrap(), 0, BYTES).unwrap();
    drop(Peer::new(&Table::of(map), 4));
    let event: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    while let Some(step) = script.byte() {
        let mut bytes = [0u8; MESSAGE - 2];
        let (index, side) = (u16::from(step >> 6), step >> 5 & 1);
        let (kind, fd) = match step % 8 {
            0 => {
                let asked = super::wire::init(0, "", "fuzz");
                bytes[..size_of_val(&asked)].copy_from_slice(asked.as_bytes());
                (kind::INIT, None)
            }
            1 => {
                let region = AddRegion { index, size: script.number(3) };
                bytes[..size_of_val(&region)].copy_from_slice(region.as_bytes());
                (kind::ADD_REGION, Some(memory.as_fd()))
            }
            2 => {
                let (flags, offset) = (if side == 0 { RING_TO_SERVER } else { 0 }, script.number(2) as u32);
                let log2_size = script.number(1) as u8;
                let ring = AddRing { flags, index, region: 0, offset, log2_size, private_header: 0 };
                bytes[..size_of_val(&ring)].copy_from_slice(ring.as_bytes());
                (kind::ADD_RING, Some(event.as_fd()))
            }
            3 => (kind::CONNECT, None),
            _ => {
                let n = script.number(1) as usize % bytes.len();
                bytes[..n].iter_mut().for_each(|byte| *byte = script.number(1) as u8);
                let fd = [None, Some(memory.as_fd()), Some(event.as_fd())][usize::from(step >> 3) % 3];
                (script.number(1) as u16, fd)
            }
        };
        if wire.send(kind, &bytes, fd).is_err() {
            break;
        }
    }
    let _ = rustix::net::shutdown(wire.socket(), rustix::net::Shutdown::Write);
    let since = Instant::now();
    // The server answers, or not, and hangs up.
    loop {
        match wire.receive() {
            Ok(None) => {}
            Ok(Some(_)) => continue,
            Err(WireError::Closed) => break,
            Err(why) => panic!("{why}"),
        }
        assert!(since.elapsed() < Duration::from_secs(60), "the server is gone");
        let time = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::from_borrowed_fd(wire.socket(), PollFlags::IN)], Some(&time));
    }
}

/// The first byte chooses who is lied to, the second the size of rings.
pub fn run(data: &[u8]) {
    let Some((&[who, size], data)) = data.split_first_chunk::<2>() else { return };
    let (script, log2) = (Script::new(data), size % 6);
    match who % 4 {
        0 | 1 => server(log2, script),
        2 => client(log2, script),
        _ => conversation(script),
    }
}
