//! A front-end of rust-vmm and guests with real rings, against the port and the server.

mod control_queue;
mod steering;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan, Map, Region, Table, Window, Words};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::batch::Batch;
use crate::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES};
use crate::vhost::Server;
use crate::vring::driver::{Areas, Packed, Ring, Segment, Split};
use crate::worker::{self, Outbox, QueueId, Worker};

/// Where the guest's memory is in "its own process".
const USER: u64 = 0x7f12_0000_0000;
/// Guest address of it.
const GUEST: u64 = 0x4000_0000;
const MEMORY: u64 = 4 << 20;
const FRAMES: u64 = 2 << 20;
const FRAME: u64 = 2048;
const NUM: u16 = 256;
const HDR: u32 = 12;

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A port on its server.
struct Stage {
    port: Vhost,
    path: PathBuf,
    _server: Server,
}

impl Stage {
    fn new(name: &str, edit: impl FnOnce(&mut Config)) -> Stage {
        let path = std::env::temp_dir().join(format!("hotring-{}-port-{name}", std::process::id()));
        let mut config = Config::new(Socket::Listen(path.clone()));
        edit(&mut config);
        let server = Server::start().unwrap();
        let port = Vhost::new("vhost0", config, &server.handle()).unwrap();
        Stage { port, path, _server: server }
    }

    fn up(&self) -> bool {
        self.port.link().up
    }
}

/// A thread that sends every packet back where it came from.
struct Core {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Box<dyn Queue>>>,
}

impl Core {
    fn run(mut queues: Vec<Box<dyn Queue>>) -> Core {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
            loop {
                let mut busy = false;
                let last = flag.load(Ordering::Relaxed);
                for queue in &mut queues {
                    if !last && batch.is_empty() {
                        queue.rx(&mut batch);
                    }
                    queue.tx(&mut batch);
                    busy |= !batch.is_empty();
                    // What does not fit is dropped.
                    while let Some(buf) = batch.pop_front() {
                        loans.push(buf.finish(0));
                    }
                    queue.settle(&mut loans);
                    queue.reap(&mut loans);
                    queue.settle(&mut loans);
                    assert!(loans.is_empty());
                }
                if last {
                    return queues;
                }
                if !busy {
                    std::thread::yield_now();
                }
            }
        });
        Core { stop, thread }
    }

    fn stop(self) -> Vec<Box<dyn Queue>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A guest with one queue pair, and its front-end.
struct Guest<R> {
    front: Frontend,
    file: OwnedFd,
    table: Arc<Table>,
    features: u64,
    areas: [Areas; 2],
    receive: R,
    transmit: R,
    words: Window<u16>,
    /// Receive frames in the ring, by the id of their chain.
    rooms: Vec<u64>,
    kick: EventFd,
    call: EventFd,
    err: EventFd,
    sent: u64,
    got: u64,
}

fn memory(name: &str, len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

/// Mappings of that memory in this process.
fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&format!("memfd:{name} "))).count()
}

/// Word `i` of frame `number`.
fn word(number: u64, i: usize) -> u16 {
    (number >> (16 * (i % 4))) as u16 ^ i as u16
}

fn event() -> EventFd {
    EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap()
}

impl<R: Ring> Guest<R> {
    fn connect(stage: &Stage, name: &str, features: u64) -> Guest<R> {
        let file = memory(name, MEMORY);
        let (map, at) = Map::file(file.try_clone().unwrap(), 0, MEMORY).unwrap();
        let region = Region { gpa: GUEST, len: MEMORY, user: USER, map: Arc::new(map), at };
        let table = Arc::new(Table::new(vec![region]).unwrap());
        let receive = Areas::at(GUEST, NUM, features, 0);
        let areas = [receive, Areas::at(receive.end + 4096, NUM, features, 0)];
        let [receive, transmit] = areas.each_ref().map(|a| R::open(a, &table).unwrap());
        let words = table.window::<u16>(GUEST, MEMORY as usize / 2).unwrap();
        let mut front = Frontend::connect(&stage.path, 8).unwrap();
        front.set_owner().unwrap();
        assert_eq!(front.get_features().unwrap() & features, features);
        let protocol = Protocol::MQ | Protocol::REPLY_ACK | Protocol::CONFIGURE_MEM_SLOTS;
        let protocol = protocol | Protocol::CONFIG | Protocol::DEVICE_STATE | Protocol::BACKEND_REQ;
        assert!(front.get_protocol_features().unwrap().contains(protocol));
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        front.set_features(features | F_PROTOCOL_FEATURES).unwrap();
        let rooms = vec![0; NUM.into()];
        let (kick, call, err) = (event(), event(), event());
        Guest {
            front,
            file,
            table,
            features,
            areas,
            receive,
            transmit,
            words,
            rooms,
            kick,
            call,
            err,
            sent: 0,
            got: 0,
        }
    }

    fn info(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Describes and starts a ring at `base`, with its areas moved by `off`.
    fn start_ring(&mut self, ring: usize, base: u16, off: u64) -> vhost::Result<()> {
        self.start_ring_of(ring, NUM, base, off)
    }

    fn start_ring_of(&mut self, ring: usize, size: u16, base: u16, off: u64) -> vhost::Result<()> {
        let user = |gpa: u64| (gpa - GUEST + USER).wrapping_add(off);
        let areas = &self.areas[ring];
        let config = VringConfigData {
            queue_max_size: NUM,
            queue_size: size,
            flags: 0,
            desc_table_addr: user(areas.desc),
            used_ring_addr: user(areas.device),
            avail_ring_addr: user(areas.driver),
            log_addr: None,
        };
        self.front.set_vring_num(ring, size)?;
        self.front.set_vring_base(ring, base)?;
        self.front.set_vring_addr(ring, &config)?;
        self.front.set_vring_call(ring, &self.call)?;
        self.front.set_vring_err(ring, &self.err)?;
        self.front.set_vring_enable(ring, true)?;
        self.front.set_vring_kick(ring, &self.kick)
    }

    fn fresh(&self) -> u16 {
        if self.features & v::F_RING_PACKED != 0 { 0x8000 } else { 0 }
    }

    fn start(&mut self) {
        self.front.set_mem_table(&[self.info()]).unwrap();
        for ring in 0..2 {
            self.start_ring(ring, self.fresh(), 0).unwrap();
        }
        for i in 0..u64::from(NUM) / 2 {
            self.post(GUEST + FRAMES + i * FRAME);
        }
    }

    /// Offers a frame to receive into.
    fn post(&mut self, addr: u64) {
        let id = self.receive.add(&[Segment::write(addr, FRAME as u32)]).unwrap();
        self.rooms[usize::from(id)] = addr;
        let _ = self.receive.publish();
    }

    /// Sends the next frame, if there is room: its number, repeated.
    fn send(&mut self) -> bool {
        while self.transmit.used().unwrap().is_some() {}
        let slot = self.sent % u64::from(NUM / 2);
        let addr = GUEST + FRAMES + (u64::from(NUM) + slot) * FRAME;
        if self.transmit.free() <= NUM / 2 {
            return false;
        }
        let at = (addr - GUEST) as usize / 2;
        for i in 0..HDR as usize / 2 {
            self.words.set(at + i, 0);
        }
        for i in 0..32 {
            self.words.set(at + HDR as usize / 2 + i, word(self.sent, i));
        }
        self.transmit.add(&[Segment::read(addr, HDR + 64)]).unwrap();
        if self.transmit.publish() {
            self.kick.write(1).unwrap();
        }
        self.sent += 1;
        true
    }

    /// Takes what came back: the next frame, and no other.
    fn receive(&mut self) -> usize {
        let mut n = 0;
        while let Some(used) = self.receive.used().unwrap() {
            assert_eq!(used.len, HDR + 64);
            let addr = self.rooms[usize::from(used.id)];
            let at = (addr - GUEST) as usize / 2 + HDR as usize / 2;
            assert!((0..32).all(|i| self.words.get(at + i) == word(self.got, i)), "frame {}", self.got);
            self.got += 1;
            n += 1;
            self.post(addr);
        }
        n
    }

    /// Sends so many and gets them all back, in order, with at most half a ring on the way.
    fn ping(&mut self, count: u64) {
        let (end, since) = (self.sent + count, Instant::now());
        while self.got < end {
            while self.sent < end && self.sent - self.got < u64::from(NUM / 4) && self.send() {}
            if self.receive() == 0 {
                assert!(since.elapsed() < Duration::from_secs(30), "{} of {end} came back", self.got);
                std::thread::yield_now();
            }
        }
    }
}

const SPLIT: u64 = v::F_VERSION_1;
const PACKED: u64 = v::F_VERSION_1 | v::F_RING_PACKED;

fn frames_go_round<R: Ring>(name: &str, features: u64, edit: impl FnOnce(&mut Config)) {
    let mut stage = Stage::new(name, edit);
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<R>::connect(&stage, name, features);
    assert!(!stage.up());
    guest.start();
    assert!(stage.up());
    guest.ping(3000);
    assert!(guest.call.read().is_ok(), "the guest was called");
    let stats = stage.port.stats()[0];
    assert_eq!((stats.rx_packets, stats.tx_packets, stats.rx_bytes), (3000, 3000, 3000 * 64));
    drop(guest);
    eventually("link down", || !stage.up());
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn split_rings() {
    frames_go_round::<Split>("split", SPLIT, |_| {});
}

#[test]
fn packed_rings() {
    frames_go_round::<Packed>("packed", PACKED, |_| {});
}

#[test]
fn rings_in_order_with_event_idx() {
    frames_go_round::<Split>("split-order", SPLIT | v::F_IN_ORDER | v::F_EVENT_IDX, |_| {});
    frames_go_round::<Packed>("packed-order", PACKED | v::F_IN_ORDER | v::F_EVENT_IDX, |_| {});
}

#[test]
fn rings_by_the_checked_path() {
    frames_go_round::<Split>("split-checked", SPLIT, |config| config.mapped = false);
    frames_go_round::<Packed>("packed-checked", PACKED, |config| config.mapped = false);
}

#[test]
fn memory_changes_under_traffic_and_nothing_is_lost() {
    let name = "mem-change";
    let mut stage = Stage::new(name, |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Packed>::connect(&stage, name, PACKED);
    guest.start();
    let more = memory("mem-change-more", 1 << 20);
    let added = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 1 << 20,
        userspace_addr: USER + MEMORY,
        mmap_offset: 0,
        mmap_handle: more.as_raw_fd(),
    };
    for round in 0..60 {
        for _ in 0..40 {
            guest.send();
        }
        match round % 3 {
            0 => drop(guest.front.set_mem_table(&[guest.info()]).unwrap()),
            1 => drop(guest.front.add_mem_region(&added).unwrap()),
            _ => guest.front.remove_mem_region(&added).unwrap(),
        }
        if round % 3 == 0 {
            assert_eq!(mappings(name), 2, "ours and the guest's");
        }
        guest.ping(20);
    }
    drop(guest.front);
    eventually("unmapped", || mappings(name) == 1 && mappings("mem-change-more") == 0);
    stage.port.stop(core.stop()).unwrap();
}

fn a_ring_goes_on_at_its_base<R: Ring>(name: &str, features: u64) {
    let mut stage = Stage::new(name, |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<R>::connect(&stage, name, features);
    guest.start();
    for _ in 0..30 {
        for _ in 0..50 {
            guest.send();
        }
        // The way back last: what comes from the way there would be lost without it.
        let [there, back] = [1, 0].map(|ring| guest.front.get_vring_base(ring).unwrap());
        assert!(!stage.up());
        guest.start_ring(0, back as u16, 0).unwrap();
        guest.start_ring(1, there as u16, 0).unwrap();
        assert!(stage.up());
        guest.ping(77);
    }
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn stopped_rings_go_on_at_their_base() {
    a_ring_goes_on_at_its_base::<Split>("split-base", SPLIT);
    a_ring_goes_on_at_its_base::<Packed>("packed-base", PACKED);
}

#[test]
fn disabled_rings_go_on_when_enabled() {
    let mut stage = Stage::new("disable", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "disable", SPLIT);
    guest.start();
    for _ in 0..30 {
        guest.ping(10);
        guest.front.set_vring_enable(1, false).unwrap();
        assert!(guest.send() && !stage.up());
        guest.front.set_vring_enable(1, true).unwrap();
    }
    guest.ping(10);
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn a_ring_outside_memory_is_refused_and_told() {
    let mut stage = Stage::new("outside", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "outside", SPLIT);
    guest.front.set_mem_table(&[guest.info()]).unwrap();
    guest.start_ring(0, 0, 0).unwrap();
    let last_byte = USER + MEMORY - guest.areas[1].device + GUEST - USER - 16;
    for off in [MEMORY, 0u64.wrapping_sub(USER), last_byte.next_multiple_of(16)] {
        assert!(guest.start_ring(1, 0, off).is_err(), "{off:#x}");
        assert!(guest.err.read().is_ok(), "the front-end hears of it");
    }
    guest.front.get_vring_base(0).unwrap();
    guest.start();
    guest.ping(100);
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn a_guest_at_fault_may_reset_its_device() {
    let mut stage = Stage::new("fault", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "fault", SPLIT);
    guest.start();
    guest.ping(100);
    // Far more available than the ring has entries.
    let index = (guest.areas[1].driver - GUEST) as usize / 2 + 1;
    guest.words.set(index, 0x7000);
    eventually("the error descriptor", || guest.err.read().is_ok());
    assert_eq!(stage.port.stats()[0].faults, 1);
    for ring in 0..2 {
        guest.front.get_vring_base(ring).unwrap();
    }
    let [receive, transmit] = guest.areas.each_ref().map(|a| Split::open(a, &guest.table).unwrap());
    (guest.receive, guest.transmit) = (receive, transmit);
    (guest.sent, guest.got) = (0, 0);
    guest.start();
    guest.ping(1000);
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

/// virtio 1.3 §2.6.1: one ring is reset with frames in it, again and again, while the other goes on; then
/// it begins anew, of another size and elsewhere.
fn one_ring_is_reset_under_traffic<R: Ring>(name: &str, features: u64) {
    let features = features | v::F_RING_RESET;
    let mut stage = Stage::new(name, |config| config.ring_reset = true);
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<R>::connect(&stage, name, features);
    guest.start();
    for round in 0..40 {
        // Frames are on their way through the ring that is reset, and for it.
        for _ in 0..30 {
            guest.send();
        }
        let areas = &guest.areas[0];
        guest.front.get_vring_base(0).unwrap();
        let before = stage.port.stats()[0].rx_packets;
        let moved = Areas::at(areas.desc ^ (1 << 16), NUM >> (round % 3), features, 0);
        guest.areas[0] = moved;
        guest.receive = R::open(&moved, &guest.table).unwrap();
        for _ in 0..10 {
            guest.send();
        }
        let sent = guest.sent;
        eventually("the other ring goes on", || stage.port.stats()[0].rx_packets == sent);
        assert!(sent > before || round == 0);
        let size = moved.size;
        guest.call = event();
        guest.start_ring_of(0, size, guest.fresh(), 0).unwrap();
        eventually("its queue has taken it in", || guest.call.read().is_ok());
        // What was sent meanwhile is lost: nobody offered room for it.
        guest.got = guest.sent;
        for i in 0..u64::from(size) {
            guest.post(GUEST + FRAMES + i * FRAME);
        }
        guest.ping(u64::from(size));
    }
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn one_ring_is_reset_under_traffic_split() {
    one_ring_is_reset_under_traffic::<Split>("ring-reset-split", SPLIT);
}

#[test]
fn one_ring_is_reset_under_traffic_packed() {
    one_ring_is_reset_under_traffic::<Packed>("ring-reset-packed", PACKED);
}

#[test]
fn descriptors_that_do_not_serve_are_refused() {
    let mut stage = Stage::new("kinds", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "kinds", SPLIT);
    let directory = OwnedFd::from(std::fs::File::open("/").unwrap());
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (pipe, _other) = std::io::pipe().unwrap();
    let short = memory("kinds-short", MEMORY - 1);
    for fd in [&directory, &null, &OwnedFd::from(pipe), &short] {
        let info = VhostUserMemoryRegionInfo { mmap_handle: fd.as_raw_fd(), ..guest.info() };
        assert!(guest.front.set_mem_table(&[info]).is_err());
        assert!(guest.front.add_mem_region(&info).is_err());
    }
    let unaligned = VhostUserMemoryRegionInfo { mmap_offset: 4095, memory_size: 4096, ..guest.info() };
    assert!(guest.front.add_mem_region(&unaligned).is_err());
    // A pipe that is full would stop the core that calls it.
    for fd in [directory, null, short] {
        let call = crate::vhost::Signals { call: Some(Arc::new(fd)), ..Default::default() };
        let refused = control::events(&call).unwrap_err().to_string();
        assert!(refused.contains("call descriptor") && refused.contains("eventfd"), "{refused}");
    }
    guest.start();
    guest.ping(100);
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn a_new_call_descriptor_is_called() {
    let mut stage = Stage::new("call", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "call", SPLIT);
    guest.start();
    for _ in 0..50 {
        guest.call = event();
        guest.front.set_vring_call(0, &guest.call).unwrap();
        eventually("a call of its own, in case one was lost", || guest.call.read().is_ok());
        guest.ping(10);
        eventually("a call", || guest.call.read().is_ok());
    }
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn a_ring_whose_core_does_not_answer_stays_out_until_it_does() {
    let mut stage = Stage::new("late", |_| {});
    let mut queues = stage.port.start(1).unwrap();
    let mut guest = Guest::<Split>::connect(&stage, "late", SPLIT);
    guest.start();
    let mut loans = Batch::default();
    queues[0].reap(&mut loans);
    // Nobody runs the queue now.
    let since = Instant::now();
    assert!(guest.front.set_mem_table(&[guest.info()]).is_err());
    assert!(since.elapsed() >= control::PATIENCE);
    assert!(guest.start_ring(0, 0, 0).is_err());
    // One that begins anew when there is patience again waits for what is late.
    std::thread::sleep(control::PATIENCE_PERIOD);
    let late = std::thread::spawn(|| {
        std::thread::sleep(control::PATIENCE / 8);
        Core::run(queues)
    });
    guest.start_ring(0, 0, 0).unwrap();
    let core = late.join().unwrap();
    eventually("the rings to come home", || guest.front.set_mem_table(&[guest.info()]).is_ok());
    eventually("both", || stage.up() || (0..2).all(|ring| guest.start_ring(ring, 0, 0).is_ok()));
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn rings_wait_while_the_port_is_stopped() {
    let mut stage = Stage::new("restart", |_| {});
    let mut core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Packed>::connect(&stage, "restart", PACKED);
    guest.start();
    for _ in 0..20 {
        guest.ping(50);
        stage.port.stop(core.stop()).unwrap();
        assert!(!stage.up());
        guest.send();
        core = Core::run(stage.port.start(1).unwrap());
        assert!(stage.up(), "the front-end is still there");
    }
    stage.port.stop(core.stop()).unwrap();
    let base = guest.front.get_vring_base(0).unwrap();
    assert_ne!(base, 0x8000_8000, "answered while no queue runs");
    drop(stage);
    assert!(guest.front.get_features().is_err(), "the port is gone");
}

/// L1, L7: a front-end that copies the pages whose bits are set has what was received, and no bit is set when
/// logging has ended.
fn all_that_is_received_is_logged<R: Ring>(name: &str, features: u64) {
    const BITS: u64 = (GUEST + MEMORY) / 4096 / 8;
    let mut stage = Stage::new(name, |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<R>::connect(&stage, name, features);
    guest.front.set_protocol_features(Protocol::REPLY_ACK | Protocol::LOG_SHMFD).unwrap();
    guest.start();
    let log = memory(name, BITS);
    let (map, _) = Map::file(log.try_clone().unwrap(), 0, BITS).unwrap();
    let bits = Table::of(map).window::<u64>(0, BITS as usize / 8).unwrap();
    let dirty = |page: u64| bits.get(page as usize / 64) >> (page % 64) & 1 == 1;
    let frames = (GUEST + FRAMES) / 4096..(GUEST + FRAMES + u64::from(NUM) * FRAME) / 4096;
    let page = |guest: &Guest<R>, page: u64| -> Vec<u16> {
        let at = (page * 4096 - GUEST) as usize / 2;
        (at..at + 2048).map(|i| guest.words.get(i)).collect()
    };
    for _ in 0..2 {
        guest.ping(100);
        let (mmap_size, mmap_offset, mmap_handle) = (BITS, 0, log.as_raw_fd());
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset, mmap_handle };
        guest.front.set_log_base(0, Some(region)).unwrap();
        guest.front.set_features(features | F_PROTOCOL_FEATURES | F_LOG_ALL).unwrap();
        let mut copy: Vec<Vec<u16>> = frames.clone().map(|at| page(&guest, at)).collect();
        guest.ping(30);
        let [there, back] = [1, 0].map(|ring| guest.front.get_vring_base(ring).unwrap() as u16);
        for (at, copy) in frames.clone().zip(&mut copy).filter(|(at, _)| dirty(*at)) {
            *copy = page(&guest, at);
        }
        assert!(frames.clone().map(|at| page(&guest, at)).eq(copy), "a page was missed");
        let marked = frames.clone().filter(|at| dirty(*at)).count();
        assert!((1..=31).contains(&marked), "{marked} pages for 30 frames");
        for areas in guest.areas {
            let at = if areas.has(v::F_RING_PACKED) { areas.desc } else { areas.device };
            assert!((at / 4096..=(at + 16 * u64::from(NUM) - 1) / 4096).any(dirty), "the ring at {at:#x}");
        }
        guest.front.set_features(features | F_PROTOCOL_FEATURES).unwrap();
        (0..bits.len()).for_each(|i| bits.set(i, 0));
        guest.start_ring(0, back, 0).unwrap();
        guest.start_ring(1, there, 0).unwrap();
        guest.ping(100);
        assert!((0..bits.len()).all(|i| bits.get(i) == 0), "logging has ended");
    }
    // One that ends before memory does is refused, which no answer says.
    let (mmap_size, mmap_offset, mmap_handle) = (GUEST / 4096 / 8, 0, log.as_raw_fd());
    let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset, mmap_handle };
    assert!(guest.front.set_log_base(0, Some(region)).is_err());
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn all_that_is_received_is_logged_split() {
    all_that_is_received_is_logged::<Split>("log-split", SPLIT);
}

#[test]
fn all_that_is_received_is_logged_packed() {
    all_that_is_received_is_logged::<Packed>("log-packed", PACKED);
}

#[test]
fn front_ends_come_and_go() {
    let mut stage = Stage::new("reconnect", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    for round in 0..20 {
        let mut guest = Guest::<Split>::connect(&stage, "reconnect", SPLIT);
        guest.start();
        guest.ping(100);
        // Some leave with frames on the way.
        for _ in 0..round {
            guest.send();
        }
    }
    eventually("unmapped", || mappings("reconnect") == 0);
    stage.port.stop(core.stop()).unwrap();
}

/// Sends every packet back where it came from, on a real core.
struct Back;

impl worker::Stage for Back {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(from, batch);
    }
}

/// After pauses in which the core leaves the queue alone, or sleeps.
fn a_queue_at_rest_hears_its_front_end(name: &str, idle_sleep: Option<Duration>) {
    let mut stage = Stage::new(name, |_| {});
    let backing = hugepages::Backing { page: hugepages::PageSize::Base, node: None };
    let config = worker::Config { frames: 1, large_frames: 1, backing, idle_sleep, ..Default::default() };
    let core = Worker::spawn(config, Box::new(Back)).unwrap();
    core.attach(QueueId(0), stage.port.start(1).unwrap().pop().unwrap()).unwrap();
    core.start().unwrap();
    let pause = || std::thread::sleep(Duration::from_millis(3));
    pause();
    for _ in 0..3 {
        let mut guest = Guest::<Packed>::connect(&stage, name, PACKED);
        guest.start();
        for _ in 0..30 {
            pause();
            guest.front.set_mem_table(&[guest.info()]).unwrap();
            assert_eq!(mappings(name), 2, "ours and the guest's");
            guest.ping(1);
            pause();
            let [there, back] = [1, 0].map(|ring| guest.front.get_vring_base(ring).unwrap());
            guest.start_ring(0, back as u16, 0).unwrap();
            guest.start_ring(1, there as u16, 0).unwrap();
            guest.ping(40);
        }
        pause();
        drop(guest);
        eventually("unmapped", || mappings(name) == 0);
    }
    stage.port.stop(vec![core.recall(QueueId(0), Duration::from_secs(1)).unwrap()]).unwrap();
}

#[test]
fn a_queue_at_rest_hears_its_front_end_at_once() {
    a_queue_at_rest_hears_its_front_end("rest", None);
}

#[test]
fn a_queue_of_a_core_asleep_hears_its_front_end_at_once() {
    a_queue_at_rest_hears_its_front_end("asleep", Some(Duration::from_secs(10)));
}

#[test]
fn arguments_out_of_range() {
    let server = Server::start().unwrap();
    let config = Config::new(Socket::Listen("/nonexistent/vm0.sock".into()));
    for bad in [
        Config { queues: 0, ..config.clone() },
        Config { queues: 129, ..config.clone() },
        Config { mtu: Some(67), ..config.clone() },
    ] {
        assert!(Vhost::new("vhost0", bad, &server.handle()).is_err());
    }
    let mut port = Vhost::new("vhost0", config, &server.handle()).unwrap();
    assert!(matches!(port.start(2), Err(PortError::Config { .. })));
    let refused = port.start(1).err().unwrap().to_string();
    assert!(refused.contains("vhost0") && refused.contains("/nonexistent/vm0.sock"), "{refused}");
    let config = Config { mtu: Some(9000), ..Config::new(Socket::Listen("x".into())) };
    assert_eq!(Vhost::new("vhost0", config, &server.handle()).unwrap().caps().mtu, 9000);
}
