//! A front-end that sends any messages, in any order, with descriptors, to a port at work; a well-behaved one
//! after it is answered.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use hugepages::{Backing, Batch, Buf, PageSize};
use pmd::Port;
use pmd::port::vhost::{Config, Vhost};
use pmd::spec::vhost_user::{FLAG_VERSION, Header, MemRegion, id};
use pmd::vhost::{Server, Socket};
use pmd::worker::{self, Outbox, QueueId, Worker, WorkerHandle};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes;

const MEMORY: u64 = 1 << 16;

/// Sends every packet back where it came from.
struct Back;

impl worker::Stage for Back {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(from, batch);
    }
}

/// A port, and what front-ends send along with their messages.
struct House {
    path: PathBuf,
    kinds: [OwnedFd; 3],
    _port: Vhost,
    _core: WorkerHandle,
    _server: Server,
}

fn house() -> &'static Mutex<House> {
    static HOUSE: OnceLock<Mutex<House>> = OnceLock::new();
    HOUSE.get_or_init(|| {
        hugepages::sigbus::install().unwrap();
        let path = std::env::temp_dir().join(format!("hotring-{}-conversation", std::process::id()));
        let server = Server::start().unwrap();
        let config = Config::new(Socket::Listen(path.clone()));
        let mut port = Vhost::new("fuzzed", config, &server.handle()).unwrap();
        let backing = Backing { page: PageSize::Base, node: None };
        let idle_sleep = Some(Duration::from_secs(1));
        let config = worker::Config { frames: 1, large_frames: 1, backing, idle_sleep, ..Default::default() };
        let core = Worker::spawn(config, Box::new(Back)).unwrap();
        core.attach(QueueId(0), port.start(1).unwrap().pop().unwrap()).unwrap();
        core.start().unwrap();
        let memory = rustix::fs::memfd_create(c"fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let other = std::fs::File::open("/dev/null").unwrap().into();
        Mutex::new(House { path, kinds: [memory, event, other], _port: port, _core: core, _server: server })
    })
}

fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { request, flags: FLAG_VERSION | flags, size: payload.len() as u32 };
    [header.as_bytes(), payload].concat()
}

fn send(front: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(front, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
}

/// A connection that is answered; the one before may still be leaving.
fn connect(house: &House) -> UnixStream {
    for _ in 0..20_000 {
        let mut front = UnixStream::connect(&house.path).unwrap();
        front.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let asked = front.write_all(&message(id::GET_FEATURES, 0, &[]));
        if asked.and_then(|()| front.read_exact(&mut [0; 20])).is_ok() {
            return front;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("a well-behaved front-end is not served");
}

/// Each message: number, flags, descriptors (how many and which), payload and its length.
pub(crate) fn run(data: &[u8]) {
    let house = house().lock().unwrap();
    let front = connect(&house);
    let mut rest = data;
    // Half of all inputs begin with memory, so that rings can start.
    if data.first().is_some_and(|byte| byte & 1 != 0) {
        let region = MemRegion { guest: 0, size: MEMORY, user: 0, offset: 0 };
        let table = [&1u64.to_ne_bytes()[..], region.as_bytes()].concat();
        send(&front, &message(id::SET_MEM_TABLE, 0, &table), &[house.kinds[0].as_fd()]);
    }
    while let Some((&[request, flags, fds, len], more)) = rest.split_first_chunk::<4>() {
        let (payload, more) = more.split_at(usize::from(len).min(more.len()));
        rest = more;
        let kind = house.kinds[usize::from(fds >> 4) % 3].as_fd();
        let fds = vec![kind; usize::from(fds & 15).min(10)];
        if !send(&front, &message(u32::from(request) % 50, u32::from(flags & 12), payload), &fds) {
            break;
        }
    }
    // Everything was read when the connection is closed by the other side.
    let _ = front.shutdown(std::net::Shutdown::Write);
    let mut front = front;
    while front.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
}
