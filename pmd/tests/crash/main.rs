//! A device that is killed under load and started again, and a front-end that goes and comes back, over and
//! over: every chain that the driver offered comes back, and comes back once. The driver tells
//! ([`Ring::used`]) of a chain that comes back twice; the front-end knows nothing of where the rings stand but
//! keeps the in-flight record.
//!
//! `HOTRING_CRASHES=1000 cargo test --test crash` does it so often; without, each test does it forty times.

mod pause;
mod takeover;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan, Map, Region, Table, Window, Words};
use pmd::port::vhost::{Config, Vhost};
use pmd::spec::vhost_user::F_PROTOCOL_FEATURES;
use pmd::spec::virtio as v;
use pmd::vhost::{Server, Socket};
use pmd::vring::driver::{Areas, Packed, Ring, Segment, Split};
use pmd::{Batch, Port};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const USER: u64 = 0x7f12_0000_0000;
const GUEST: u64 = 0x4000_0000;
const MEMORY: u64 = 4 << 20;
const FRAMES: u64 = 2 << 20;
const FRAME: u64 = 1024;
const NUM: u16 = 128;
const HDR: u64 = 12;
/// Names the socket to the process that is the device.
const SOCKET: &str = "HOTRING_CRASH_SOCKET";
/// How long the core of that process sleeps after each turn, in steps of 10 ms.
const SLEEP: &str = "HOTRING_CRASH_SLEEP";

fn crashes() -> usize {
    std::env::var("HOTRING_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(40)
}

/// The device, in a process of its own: sends back what it gets, until it is killed.
#[test]
fn device() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let parent = std::os::unix::process::parent_id();
    let steps = std::env::var(SLEEP).map_or(0, |steps| steps.parse().unwrap());
    let server = Server::start().unwrap();
    let config = Config::new(Socket::Listen(PathBuf::from(path)));
    let mut port = Vhost::new("vhost0", config, &server.handle()).unwrap();
    let mut queue = port.start(1).unwrap().remove(0);
    let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    while std::os::unix::process::parent_id() == parent {
        for _ in 0..100 {
            queue.rx(&mut batch);
            queue.tx(&mut batch);
            while let Some(buf) = batch.pop_front() {
                loans.push(buf.finish(0));
            }
            queue.reap(&mut loans);
            queue.settle(&mut loans);
            (0..steps).for_each(|_| std::thread::sleep(Duration::from_millis(10)));
        }
        std::thread::yield_now();
    }
    std::process::exit(0);
}

fn spawn(path: &Path) -> Child {
    let mut device = Command::new(std::env::current_exe().unwrap());
    device.args(["--exact", "device", "--nocapture"]).env(SOCKET, path);
    device.stdout(Stdio::null()).spawn().unwrap()
}

/// The guest: its memory, its rings, what is in them, and the record.
struct Guest<R> {
    file: OwnedFd,
    features: u64,
    areas: [Areas; 2],
    receive: R,
    transmit: R,
    words: Window<u64>,
    /// Buffers of frames to send that are free, and those in the ring, by id; those to receive into, by id.
    free: Vec<u64>,
    sending: Vec<u64>,
    rooms: Vec<u64>,
    sent: u64,
    received: Vec<u64>,
    /// Frames that came back, and how many may be under way. With a limit there is always room for them: none
    /// may be lost, and they come in order.
    returned: u64,
    window: u64,
    record: Option<(VhostUserInflight, File)>,
    event: EventFd,
}

impl<R: Ring> Guest<R> {
    fn new(features: u64) -> Guest<R> {
        let file = rustix::fs::memfd_create(c"guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, MEMORY).unwrap();
        let (map, at) = Map::file(file.try_clone().unwrap(), 0, MEMORY).unwrap();
        let region = Region { gpa: GUEST, len: MEMORY, user: USER, map: Arc::new(map), at };
        let table = Arc::new(Table::new(vec![region]).unwrap());
        let receive = Areas::at(GUEST, NUM, features, 0);
        let areas = [receive, Areas::at(receive.end + 4096, NUM, features, 0)];
        let [receive, transmit] = areas.each_ref().map(|a| R::open(a, &table).unwrap());
        let frame = |i: u64| GUEST + FRAMES + i * FRAME;
        let mut guest = Guest {
            file,
            features,
            areas,
            receive,
            transmit,
            words: table.window(GUEST, MEMORY as usize / 8).unwrap(),
            free: (0..u64::from(NUM)).map(|i| frame(u64::from(NUM) + i)).collect(),
            sending: vec![0; NUM.into()],
            rooms: vec![0; NUM.into()],
            sent: 0,
            returned: 0,
            window: u64::MAX,
            received: vec![0; NUM.into()],
            record: None,
            event: EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap(),
        };
        (0..u64::from(NUM)).for_each(|i| guest.post(frame(i)));
        guest
    }

    fn connect(&mut self, path: &Path) -> Frontend {
        let since = Instant::now();
        let mut front = loop {
            // A device that is being started, between fork and exec, has a copy of each connection of this
            // process: the one before may not have ended yet, and there is one front-end at a time.
            match Frontend::connect(path, 2).and_then(|front| front.get_features().map(|_| front)) {
                Ok(front) => break front,
                Err(e) => assert!(since.elapsed() < Duration::from_secs(20), "no device: {e}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        front.set_owner().unwrap();
        front.get_features().unwrap();
        assert!(front.get_protocol_features().unwrap().contains(Protocol::INFLIGHT_SHMFD));
        front.set_protocol_features(Protocol::REPLY_ACK | Protocol::INFLIGHT_SHMFD).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(self.features | F_PROTOCOL_FEATURES).unwrap();
        let (info, file) = self
            .record
            .get_or_insert_with(|| front.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, NUM)).unwrap());
        front.set_inflight_fd(info, file.as_raw_fd()).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        front.set_mem_table(&[region]).unwrap();
        for ring in 0..2 {
            let user = |gpa: u64| gpa - GUEST + USER;
            let areas = &self.areas[ring];
            let config = VringConfigData {
                queue_max_size: NUM,
                queue_size: NUM,
                flags: 0,
                desc_table_addr: user(areas.desc),
                used_ring_addr: user(areas.device),
                avail_ring_addr: user(areas.driver),
                log_addr: None,
            };
            front.set_vring_num(ring, NUM).unwrap();
            // Where it began, long ago.
            front.set_vring_base(ring, if areas.has(v::F_RING_PACKED) { 0x8000 } else { 0 }).unwrap();
            front.set_vring_addr(ring, &config).unwrap();
            front.set_vring_call(ring, &self.event).unwrap();
            front.set_vring_kick(ring, &self.event).unwrap();
            front.set_vring_enable(ring, true).unwrap();
        }
        front
    }

    fn post(&mut self, addr: u64) {
        let id = self.receive.add(&[Segment::write(addr, FRAME as u32)]).expect("there is room");
        self.rooms[usize::from(id)] = addr;
        let _ = self.receive.publish();
    }

    /// Frames that are under way: none, if those that a killed device had delivered came once more.
    fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.returned)
    }

    /// Sends what there is room for, takes what came back.
    fn turn(&mut self) {
        while let Some(used) = self.transmit.used().expect("every frame that was sent comes back once") {
            self.free.push(std::mem::take(&mut self.sending[usize::from(used.id)]));
        }
        while self.transmit.free() > 2
            && self.under_way() < self.window
            && let Some(addr) = self.free.pop()
        {
            let at = (addr - GUEST) as usize / 8;
            self.words.set(at, 0);
            self.words.set(at + 1, self.sent << 32);
            self.words.set(at + 2, self.sent);
            // Of one buffer, or of two.
            let whole = HDR + 64;
            let chain = [Segment::read(addr, 20), Segment::read(addr + 20, whole as u32 - 20)];
            let one = [Segment::read(addr, whole as u32)];
            let chain = if self.sent.is_multiple_of(3) { &chain[..] } else { &one[..] };
            let id = self.transmit.add(chain).expect("there is room for two");
            self.sending[usize::from(id)] = addr;
            self.sent += 1;
        }
        let _ = self.transmit.publish();
        while let Some(used) = self.receive.used().expect("every room comes back once") {
            let addr = self.rooms[usize::from(used.id)];
            let at = (addr - GUEST) as usize / 8;
            assert_eq!(u64::from(used.len), HDR + 64);
            let number = self.words.get(at + 2);
            assert!(number < self.sent && self.words.get(at + 1) >> 32 == number & 0xffff_ffff);
            assert!(self.window == u64::MAX || number == self.returned, "lost, twice, or out of order");
            self.returned += 1;
            self.received[usize::from(used.id)] += 1;
            self.post(addr);
        }
    }

    fn run(&mut self, time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time {
            self.turn();
        }
    }

    /// All that was ever offered has come back, or comes now.
    fn end(&mut self) {
        let before = self.received.clone();
        let since = Instant::now();
        while self.received.iter().zip(&before).any(|(now, before)| now == before) {
            self.turn();
            assert!(since.elapsed() < Duration::from_secs(20), "rooms are lost: {:?}", self.received);
            std::thread::yield_now();
        }
        while self.free.len() < usize::from(NUM) {
            while let Some(used) = self.transmit.used().unwrap() {
                self.free.push(std::mem::take(&mut self.sending[usize::from(used.id)]));
            }
            let lost = || self.sending.iter().filter(|addr| **addr != 0).count();
            assert!(since.elapsed() < Duration::from_secs(40), "{} frames are lost", lost());
            std::thread::yield_now();
        }
    }
}

/// Times that differ, up to `most`.
fn times(most: Duration) -> impl Iterator<Item = Duration> {
    let mut x = 0x2545_f491_4f6c_dd1du64 ^ u64::from(std::process::id());
    std::iter::from_fn(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        Some(most.mul_f64((x >> 40) as f64 / (1u64 << 24) as f64))
    })
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hotring-{}-crash-{name}", std::process::id()))
}

fn killed<R: Ring>(name: &str, features: u64) {
    let path = path(name);
    let mut guest = Guest::<R>::new(features);
    for time in times(Duration::from_millis(4)).take(crashes()) {
        let mut device = spawn(&path);
        let front = guest.connect(&path);
        guest.run(time);
        device.kill().unwrap();
        device.wait().unwrap();
        drop(front);
    }
    let mut device = spawn(&path);
    let front = guest.connect(&path);
    guest.end();
    println!("{name}: {} frames over {} crashes", guest.sent, crashes());
    device.kill().unwrap();
    device.wait().unwrap();
    drop(front);
    let _ = std::fs::remove_file(path);
}

fn left<R: Ring>(name: &str, features: u64) {
    let path = path(name);
    let mut guest = Guest::<R>::new(features);
    let mut device = spawn(&path);
    for time in times(Duration::from_millis(4)).take(crashes()) {
        let front = guest.connect(&path);
        guest.run(time);
        drop(front);
    }
    let front = guest.connect(&path);
    guest.end();
    println!("{name}: {} frames over {} connections", guest.sent, crashes());
    drop(front);
    device.kill().unwrap();
    device.wait().unwrap();
    let _ = std::fs::remove_file(path);
}

#[test]
fn a_device_that_is_killed_split() {
    killed::<Split>("split", v::F_VERSION_1);
}

#[test]
fn a_device_that_is_killed_packed() {
    killed::<Packed>("packed", v::F_VERSION_1 | v::F_RING_PACKED);
}

#[test]
fn a_device_that_is_killed_in_order() {
    killed::<Packed>("order", v::F_VERSION_1 | v::F_RING_PACKED | v::F_IN_ORDER);
}

#[test]
fn a_front_end_that_comes_back_split() {
    left::<Split>("left-split", v::F_VERSION_1);
}

#[test]
fn a_front_end_that_comes_back_packed() {
    left::<Packed>("left-packed", v::F_VERSION_1 | v::F_RING_PACKED);
}
