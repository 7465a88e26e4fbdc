//! A guest behind its front-end: memory, rings, frames that are numbered. Well-behaved until told otherwise.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hugepages::{Map, Region, Table, Window, Words};
use pmd::spec::vhost_user::{
    F_PROTOCOL_FEATURES, MemRegion, PROTOCOL_F_CONFIG, PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    PROTOCOL_F_INFLIGHT_SHMFD, PROTOCOL_F_LOG_SHMFD, PROTOCOL_F_MQ, PROTOCOL_F_NET_MTU, PROTOCOL_F_RARP,
    PROTOCOL_F_REPLY_ACK, PROTOCOL_F_RESET_DEVICE, PROTOCOL_F_STATUS, VringAddr, VringState, id,
};
use pmd::spec::virtio as v;
use pmd::vring::driver::{Areas, Desc, Packed, Raw, Ring, Segment, Split};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes;

use crate::front::Front;

/// Guest address of its memory.
pub(crate) const GUEST: u64 = 0x4000_0000;
/// Where the memory is in "its own process".
pub(crate) const USER: u64 = 0x7f12_0000_0000;
pub(crate) const MEMORY: u64 = 2 << 20;
/// Where frames are.
pub(crate) const FRAMES: u64 = GUEST + (1 << 20);
pub(crate) const FRAME: u64 = 2048;
pub(crate) const NUM: u16 = 128;
/// Bytes of the virtio-net header, and of a frame that is sent.
pub(crate) const HDR: u32 = 12;
pub(crate) const BYTES: u32 = 64;

pub(crate) const SPLIT: u64 = v::F_VERSION_1 | v::F_INDIRECT_DESC;
pub(crate) const PACKED: u64 = SPLIT | v::F_RING_PACKED;
/// What else changes the paths that are taken.
pub(crate) const MORE: u64 = v::F_IN_ORDER | v::F_EVENT_IDX;
/// Every kind of ring.
pub(crate) const FORMS: [u64; 4] = [SPLIT, PACKED, SPLIT | MORE, PACKED | MORE];

pub(crate) const PROTOCOL: u64 = PROTOCOL_F_MQ
    | PROTOCOL_F_LOG_SHMFD
    | PROTOCOL_F_RARP
    | PROTOCOL_F_REPLY_ACK
    | PROTOCOL_F_NET_MTU
    | PROTOCOL_F_CONFIG
    | PROTOCOL_F_INFLIGHT_SHMFD
    | PROTOCOL_F_RESET_DEVICE
    | PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | PROTOCOL_F_STATUS;

pub(crate) fn memfd(name: &str, len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Whether it was signalled since the last look.
pub(crate) fn rung(event: &OwnedFd) -> bool {
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

pub(crate) fn state(index: u32, num: u32) -> Vec<u8> {
    VringState { index, num }.as_bytes().to_vec()
}

/// One queue pair.
pub(crate) struct Guest {
    pub(crate) front: Front,
    pub(crate) file: OwnedFd,
    pub(crate) table: Arc<Table>,
    pub(crate) features: u64,
    /// Receive ring, transmit ring.
    pub(crate) areas: [Areas; 2],
    pub(crate) words: Window<u16>,
    pub(crate) kick: OwnedFd,
    pub(crate) call: OwnedFd,
    pub(crate) err: OwnedFd,
}

impl Guest {
    /// Connected, with features and memory, and no ring.
    pub(crate) fn connect(path: &Path, features: u64) -> Guest {
        Guest::over(path, features, memfd("hostile-guest", MEMORY))
    }

    /// The same over memory that is there.
    pub(crate) fn over(path: &Path, features: u64, file: OwnedFd) -> Guest {
        let (map, at) = Map::file(file.try_clone().unwrap(), 0, MEMORY).unwrap();
        let region = Region { gpa: GUEST, len: MEMORY, user: USER, map: Arc::new(map), at };
        let table = Arc::new(Table::new(vec![region]).unwrap());
        let receive = Areas::at(GUEST, NUM, features, 0);
        let areas = [receive, Areas::at(receive.end + 4096, NUM, features, 0)];
        let words = table.window::<u16>(GUEST, MEMORY as usize / 2).unwrap();
        // The front-end before may still be leaving.
        let mut front = Front::connect(path);
        let since = Instant::now();
        while front.ask(id::GET_FEATURES, &[], &[]).is_none() {
            assert!(since.elapsed() < Duration::from_secs(10), "no room for a front-end");
            std::thread::sleep(Duration::from_millis(1));
            front = Front::connect(path);
        }
        front.send(&crate::front::message(id::SET_PROTOCOL_FEATURES, 0, &PROTOCOL.to_ne_bytes()), &[]);
        let mut guest =
            Guest { front, file, table, features, areas, words, kick: event(), call: event(), err: event() };
        assert_eq!(guest.front.tell(id::SET_OWNER, &[], &[]), Some(true));
        let features = features | F_PROTOCOL_FEATURES;
        assert_eq!(guest.front.tell(id::SET_FEATURES, &features.to_ne_bytes(), &[]), Some(true));
        assert_eq!(guest.set_memory(), Some(true));
        guest
    }

    pub(crate) fn region(&self) -> MemRegion {
        MemRegion { guest: GUEST, size: MEMORY, user: USER, offset: 0 }
    }

    pub(crate) fn set_memory(&mut self) -> Option<bool> {
        let table = [&1u64.to_ne_bytes()[..], self.region().as_bytes()].concat();
        self.front.tell(id::SET_MEM_TABLE, &table, &[self.file.as_fd()])
    }

    pub(crate) fn addr(&self, ring: usize) -> VringAddr {
        let translated = self.features & v::F_ACCESS_PLATFORM != 0;
        let user = |gpa: u64| if translated { gpa } else { gpa - GUEST + USER };
        let Areas { desc, driver, device, .. } = self.areas[ring];
        VringAddr {
            index: ring as u32,
            descriptors: user(desc),
            available: user(driver),
            used: user(device),
            ..VringAddr::default()
        }
    }

    pub(crate) fn fresh(&self) -> u32 {
        if self.features & v::F_RING_PACKED != 0 { 0x8000_8000 } else { 0 }
    }

    /// Describes and starts a ring.
    pub(crate) fn start_ring(&mut self, ring: usize, base: u32) -> Option<bool> {
        let (index, addr) = (ring as u32, self.addr(ring));
        let Guest { front, kick, call, err, .. } = self;
        let mut all = front.tell(id::SET_VRING_NUM, &state(index, NUM.into()), &[])?;
        all &= front.tell(id::SET_VRING_BASE, &state(index, base), &[])?;
        all &= front.tell(id::SET_VRING_ADDR, addr.as_bytes(), &[])?;
        all &= front.tell(id::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[call.as_fd()])?;
        all &= front.tell(id::SET_VRING_ERR, &u64::from(index).to_ne_bytes(), &[err.as_fd()])?;
        all &= front.tell(id::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[kick.as_fd()])?;
        Some(all & front.tell(id::SET_VRING_ENABLE, &state(index, 1), &[])?)
    }

    /// Starts both rings as they are, empty if nobody wrote to them.
    pub(crate) fn start(&mut self) {
        for ring in 0..2 {
            assert_eq!(self.start_ring(ring, self.fresh()), Some(true));
        }
    }

    /// Stops both rings, empties them and starts them from their beginning.
    pub(crate) fn restart(&mut self) {
        for ring in 0..2 {
            assert!(self.stop_ring(ring).is_some());
            self.areas[ring].clear(&self.table).unwrap();
        }
        self.start();
    }

    /// Stops a ring: where it stands.
    pub(crate) fn stop_ring(&mut self, ring: usize) -> Option<u32> {
        let answer = self.front.ask(id::GET_VRING_BASE, &state(ring as u32, 0), &[])?;
        Some(u32::from_ne_bytes(answer[4..8].try_into().unwrap()))
    }

    /// Every word of a ring.
    pub(crate) fn raw(&self, ring: usize) -> Raw {
        Raw::open(&self.areas[ring], &self.table).unwrap()
    }

    pub(crate) fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    pub(crate) fn packed(&self) -> bool {
        self.features & v::F_RING_PACKED != 0
    }

    /// Makes a frame available, at any address, as the first of the transmit ring.
    pub(crate) fn offer(&self, addr: u64) {
        self.first(1, Desc { addr, len: HDR + BYTES, ..Desc::default() });
    }

    /// Makes room for a frame available as the first of the receive ring.
    pub(crate) fn post(&self, addr: u64) {
        self.first(0, Desc { addr, len: FRAME as u32, flags: v::DESC_F_WRITE, tag: 0 });
    }

    /// Makes so many frames available at once, in the first lap of the transmit ring.
    pub(crate) fn burst(&self, frames: u16) {
        let raw = self.raw(1);
        for i in 0..frames {
            let lap = if self.packed() { Raw::avail_bits(true) } else { 0 };
            let addr = FRAMES + u64::from(i) * FRAME;
            raw.set_desc(i, Desc { addr, len: HDR + BYTES, flags: lap, tag: i });
            if !self.packed() {
                raw.set_avail(i, i);
                raw.set_avail_idx(i + 1);
            }
        }
        self.kick();
    }

    fn first(&self, ring: usize, desc: Desc) {
        let raw = self.raw(ring);
        let lap = if self.packed() { Raw::avail_bits(true) } else { 0 };
        raw.set_desc(0, Desc { flags: desc.flags | lap, ..desc });
        if !self.packed() {
            raw.set_avail(0, 0);
            raw.set_avail_idx(1);
        }
        self.kick();
    }

    /// Sends so many frames and gets them back, in order. The longest that one was away.
    pub(crate) fn ping(&mut self, frames: u64) -> Duration {
        if self.features & v::F_RING_PACKED != 0 {
            Traffic::<Packed>::start(self).ping(frames)
        } else {
            Traffic::<Split>::start(self).ping(frames)
        }
    }
}

/// A clock that stands still while its owner does: what the machine takes from a test is no delay of a port.
pub(crate) struct Clock {
    last: Instant,
    shows: Duration,
}

impl Clock {
    /// The most that passes between two looks.
    const STEP: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Clock {
        Clock { last: Instant::now(), shows: Duration::ZERO }
    }

    /// What has passed since it was made. Whoever waits looks often.
    pub(crate) fn look(&mut self) -> Duration {
        let last = std::mem::replace(&mut self.last, Instant::now());
        self.shows += (self.last - last).min(Clock::STEP);
        self.shows
    }
}

/// Word `i` of frame `number`.
fn word(number: u64, i: usize) -> u16 {
    (number >> (16 * (i % 4))) as u16 ^ i as u16
}

/// Well-behaved traffic over both rings, from their beginning.
pub(crate) struct Traffic<'g, R> {
    guest: &'g mut Guest,
    receive: R,
    transmit: R,
    /// Receive frames in the ring, by the id of their chain.
    rooms: Vec<u64>,
    clock: Clock,
    /// When each was sent that is on its way.
    since: Vec<Duration>,
    sent: u64,
    got: u64,
}

impl<'g, R: Ring> Traffic<'g, R> {
    pub(crate) fn start(guest: &'g mut Guest) -> Self {
        let [receive, transmit] = guest.areas.each_ref().map(|a| R::open(a, &guest.table).unwrap());
        let (rooms, since) = (vec![0; NUM.into()], vec![Duration::ZERO; usize::from(NUM)]);
        let mut traffic =
            Traffic { guest, receive, transmit, rooms, clock: Clock::new(), since, sent: 0, got: 0 };
        (0..u64::from(NUM) / 2).for_each(|i| traffic.post(FRAMES + i * FRAME));
        traffic.guest.start();
        traffic
    }

    fn post(&mut self, addr: u64) {
        let id = self.receive.add(&[Segment::write(addr, FRAME as u32)]).unwrap();
        self.rooms[usize::from(id)] = addr;
        let _ = self.receive.publish();
    }

    /// The front-end, for messages meanwhile.
    pub(crate) fn front(&mut self) -> &mut Front {
        &mut self.guest.front
    }

    /// One frame more, if there is room.
    pub(crate) fn send(&mut self) -> bool {
        while self.transmit.used().unwrap().is_some() {}
        if self.transmit.free() <= NUM / 2 {
            return false;
        }
        let slot = self.sent % u64::from(NUM / 2);
        let addr = FRAMES + (u64::from(NUM) + slot) * FRAME;
        let at = (addr - GUEST) as usize / 2;
        (0..HDR as usize / 2).for_each(|i| self.guest.words.set(at + i, 0));
        for i in 0..BYTES as usize / 2 {
            self.guest.words.set(at + HDR as usize / 2 + i, word(self.sent, i));
        }
        self.transmit.add(&[Segment::read(addr, HDR + BYTES)]).unwrap();
        self.since[slot as usize] = self.clock.look();
        if self.transmit.publish() {
            self.guest.kick();
        }
        self.sent += 1;
        true
    }

    /// Takes what came back: the next frames, and no others. The longest that one was away.
    fn take(&mut self) -> Option<Duration> {
        let mut worst = None;
        while let Some(used) = self.receive.used().unwrap() {
            assert_eq!(used.len, HDR + BYTES);
            let addr = self.rooms[usize::from(used.id)];
            let at = (addr - GUEST) as usize / 2 + HDR as usize / 2;
            let whole = (0..BYTES as usize / 2).all(|i| self.guest.words.get(at + i) == word(self.got, i));
            assert!(whole, "frame {}", self.got);
            let sent = self.since[(self.got % u64::from(NUM / 2)) as usize];
            let away = self.clock.look() - sent;
            worst = worst.max(Some(away));
            self.got += 1;
            self.post(addr);
        }
        worst
    }

    pub(crate) fn ping(&mut self, frames: u64) -> Duration {
        let (end, mut last, mut worst) = (self.sent + frames, self.clock.look(), Duration::ZERO);
        while self.got < end {
            while self.sent < end && self.sent - self.got < 16 && self.send() {}
            match self.take() {
                Some(away) => (last, worst) = (self.clock.look(), worst.max(away)),
                None => {
                    let waited = self.clock.look() - last;
                    assert!(waited < Duration::from_secs(20), "{} of {end} came back", self.got);
                    std::thread::yield_now();
                }
            }
        }
        worst
    }
}
