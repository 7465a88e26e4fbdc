//! A guest that has its device's control queue, and what comes of its commands.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use super::*;
use crate::spec::net::ctrl;

pub(super) const CONTROL: u64 = GUEST + (1 << 20);
const COMMAND: u64 = CONTROL + (1 << 16);
const ACK: u64 = COMMAND + (1 << 17);
const ENTRIES: u16 = 16;
const COMMANDS: u64 = net::F_CTRL_VQ
    | net::F_CTRL_RX
    | net::F_CTRL_RX_EXTRA
    | net::F_CTRL_VLAN
    | net::F_CTRL_MAC_ADDR
    | net::F_CTRL_GUEST_OFFLOADS
    | net::F_NOTF_COAL
    | net::F_VQ_NOTF_COAL;
const MINE: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const ALL: [u8; 6] = [0xff; 6];

/// A guest with one queue pair and a control queue.
pub(super) struct Commander<R> {
    pub(super) guest: Guest<R>,
    index: usize,
    areas: Areas,
    ring: R,
    kick: EventFd,
    call: EventFd,
}

impl<R: Ring> Commander<R> {
    fn connect(stage: &Stage, name: &str, features: u64) -> Self {
        let mut all = Self::prepare(stage, name, features);
        all.guest.start();
        let fresh = all.guest.fresh();
        all.start_control(fresh).unwrap();
        all
    }

    /// Connected, with no ring started.
    pub(super) fn prepare(stage: &Stage, name: &str, features: u64) -> Self {
        let guest = Guest::<R>::connect(stage, name, features | COMMANDS);
        let index = if features & (net::F_MQ | net::F_RSS) != 0 {
            2 * usize::from(stage.port.config.queues)
        } else {
            2
        };
        let areas = Areas::at(CONTROL, ENTRIES, guest.features, 4);
        let ring = R::open(&areas, &guest.table).unwrap();
        Commander { guest, index, areas, ring, kick: event(), call: event() }
    }

    pub(super) fn start_control(&mut self, base: u16) -> vhost::Result<()> {
        let user = |gpa: u64| gpa - GUEST + USER;
        let config = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: user(self.areas.desc),
            used_ring_addr: user(self.areas.device),
            avail_ring_addr: user(self.areas.driver),
            log_addr: None,
        };
        let (front, ring) = (&mut self.guest.front, self.index);
        front.set_vring_num(ring, ENTRIES)?;
        front.set_vring_base(ring, base)?;
        front.set_vring_addr(ring, &config)?;
        front.set_vring_call(ring, &self.call)?;
        front.set_vring_err(ring, &self.guest.err)?;
        front.set_vring_enable(ring, true)?;
        front.set_vring_kick(ring, &self.kick)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        for (i, pair) in bytes.chunks(2).enumerate() {
            let word = u16::from_le_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            self.guest.words.set((at - GUEST) as usize / 2 + i, word);
        }
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let word = |i| self.guest.words.get((at - GUEST) as usize / 2 + i).to_le_bytes();
        let mut bytes: Vec<u8> = (0..len.div_ceil(2)).flat_map(word).collect();
        bytes.truncate(len);
        bytes
    }

    fn offer(&mut self, chain: &[Segment], indirect: bool) -> u16 {
        let id = if indirect { self.ring.add_indirect(chain) } else { self.ring.add(chain) }.unwrap();
        if self.ring.publish() {
            self.kick.write(1).unwrap();
        }
        id
    }

    /// The next used chain, and what was written behind its command.
    fn answer(&mut self, len: usize) -> (u32, Vec<u8>) {
        let mut used = None;
        eventually("an answer", || {
            used = self.ring.used().unwrap();
            used.is_some()
        });
        (used.unwrap().len, self.read(ACK, len))
    }

    /// Has a command carried out, in pieces like those of Linux; whether it was obeyed.
    pub(super) fn ask(&mut self, class: u8, command: u8, data: &[u8]) -> bool {
        self.write(COMMAND, &[class, command]);
        self.write(COMMAND + 16, data);
        self.write(ACK, &[0xa5]);
        let mut chain = vec![Segment::read(COMMAND, 2)];
        if !data.is_empty() {
            chain.push(Segment::read(COMMAND + 16, data.len() as u32));
        }
        chain.push(Segment::write(ACK, 1));
        self.offer(&chain, false);
        let (used, ack) = self.answer(1);
        assert!(used == 1 && ack[0] <= 1, "{used} bytes, {ack:?}");
        ack[0] == ctrl::OK
    }

    /// Sends frames that begin with these bytes, then one to all; which of them came back.
    fn echoed(&mut self, heads: &[Vec<u8>]) -> Vec<bool> {
        let mark: Vec<u8> = [&ALL[..], &MINE, &[0x88, 0xb5, 0x77, 0x77]].concat();
        for (i, head) in heads.iter().chain([&mark]).enumerate() {
            let addr = GUEST + FRAMES + (u64::from(NUM) + i as u64) * FRAME;
            self.write(addr, &[0; HDR as usize + 60]);
            self.write(addr + u64::from(HDR), head);
            self.guest.transmit.add(&[Segment::read(addr, HDR + 60)]).unwrap();
        }
        if self.guest.transmit.publish() {
            self.guest.kick.write(1).unwrap();
        }
        let mut came = vec![false; heads.len()];
        loop {
            let mut used = None;
            eventually("a frame, the last of which is for all", || {
                used = self.guest.receive.used().unwrap();
                used.is_some()
            });
            let addr = self.guest.rooms[usize::from(used.unwrap().id)];
            let frame = self.read(addr + u64::from(HDR), 60);
            self.guest.post(addr);
            if frame.starts_with(&mark) {
                break;
            }
            came[heads.iter().position(|head| frame.starts_with(head)).unwrap()] = true;
        }
        eventually("all are sent", || {
            while self.guest.transmit.used().unwrap().is_some() {}
            self.guest.transmit.free() == NUM
        });
        came
    }
}

fn frame(to: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
    let tag = vlan.map(|id| [[0x81, 0], id.to_be_bytes()].concat()).unwrap_or_default();
    [&to[..], &MINE, &tag, &[0x88, 0xb5]].concat()
}

fn four() -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = [MINE, OTHER, GROUP].map(|to| frame(to, None)).into();
    frames.push(frame(MINE, Some(0x123)));
    frames
}

/// Receive mode, addresses and VLANs decide what a guest gets; memory may change, a reset forgets them.
fn filters_filter<R: Ring>(name: &str, features: u64, mapped: bool) {
    let mut stage = Stage::new(name, |config| {
        config.mac = Some(MINE);
        config.mapped = mapped;
    });
    let core = Core::run(stage.port.start(1).unwrap());
    let mut c = Commander::<R>::connect(&stage, name, features);
    assert_eq!(c.echoed(&four()), [true; 4], "everything, before it asks for less");
    assert!(c.ask(ctrl::RX, ctrl::RX_PROMISC, &[0]));
    eventually("a call", || c.call.read().is_ok());
    assert_eq!(c.echoed(&four()), [true, false, false, false]);
    assert_eq!(stage.port.xstats()[0], ("tx_filtered".to_owned(), 3));
    assert!(c.ask(ctrl::VLAN, ctrl::VLAN_ADD, &0x123u16.to_le_bytes()));
    assert!(c.ask(ctrl::RX, ctrl::RX_ALLMULTI, &[1]));
    assert_eq!(c.echoed(&four()), [true, false, true, true]);
    assert!(c.ask(ctrl::RX, ctrl::RX_ALLMULTI, &[0]));
    let table = [&[1, 0, 0, 0], &OTHER[..], &[1, 0, 0, 0], &GROUP].concat();
    assert!(c.ask(ctrl::MAC, ctrl::MAC_TABLE_SET, &table));
    assert_eq!(c.echoed(&four()), [true; 4]);
    assert!(c.ask(ctrl::MAC, ctrl::MAC_ADDR_SET, &OTHER));
    assert!(c.ask(ctrl::MAC, ctrl::MAC_TABLE_SET, &[0; 8]));
    assert_eq!(c.echoed(&four()), [false, true, false, false]);
    // All rings stop, and go on over other mappings: what was asked for holds.
    c.guest.front.set_mem_table(&[c.guest.info()]).unwrap();
    assert_eq!(c.echoed(&four()), [false, true, false, false]);
    assert!(c.ask(ctrl::RX, ctrl::RX_ALLUNI, &[1]));
    assert_eq!(c.echoed(&four()), [true, true, false, true]);
    // The driver begins anew.
    let ring = c.index;
    c.guest.front.get_vring_base(ring).unwrap();
    c.ring = R::open(&c.areas, &c.guest.table).unwrap();
    let fresh = c.guest.fresh();
    c.start_control(fresh).unwrap();
    assert_eq!(c.echoed(&four()), [true; 4]);
    drop(c);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn filters_filter_split() {
    filters_filter::<Split>("filter-split", SPLIT, true);
    filters_filter::<Split>("filter-split-checked", SPLIT | v::F_EVENT_IDX, false);
}

#[test]
fn filters_filter_packed() {
    filters_filter::<Packed>("filter-packed", PACKED | v::F_IN_ORDER, true);
    filters_filter::<Packed>("filter-packed-checked", PACKED | v::F_EVENT_IDX, false);
}

#[test]
fn the_control_queue_comes_after_all_pairs_with_mq_and_after_the_first_without() {
    for (name, features, most) in [("ctrl-mq", net::F_MQ, 3u16), ("ctrl-one", 0, 0)] {
        let mut stage = Stage::new(name, |config| config.queues = 3);
        let core = Core::run(stage.port.start(3).unwrap());
        let mut c = Commander::<Split>::connect(&stage, name, SPLIT | features);
        for pairs in [0, 1, 3, 4u16] {
            let set = c.ask(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &pairs.to_le_bytes());
            assert_eq!(set, (1..=most).contains(&pairs), "{pairs} pairs");
        }
        c.guest.ping(100);
        drop(c);
        stage.port.stop(core.stop()).unwrap();
    }
    // Without the feature there is no such ring.
    let mut stage = Stage::new("ctrl-none", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut guest = Guest::<Split>::connect(&stage, "ctrl-none", SPLIT);
    guest.start();
    guest.areas[0] = Areas::at(CONTROL, NUM, SPLIT, 0);
    let areas = guest.areas[0];
    let config = VringConfigData {
        queue_max_size: NUM,
        queue_size: NUM,
        flags: 0,
        desc_table_addr: areas.desc - GUEST + USER,
        used_ring_addr: areas.device - GUEST + USER,
        avail_ring_addr: areas.driver - GUEST + USER,
        log_addr: None,
    };
    guest.front.set_vring_num(2, NUM).unwrap();
    guest.front.set_vring_addr(2, &config).unwrap();
    guest.front.set_vring_enable(2, true).unwrap();
    assert!(guest.front.set_vring_kick(2, &guest.kick).is_err());
    guest.ping(100);
    drop(guest);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn calls_are_held_back_for_so_many_packets_or_so_long() {
    let mut stage = Stage::new("coalesce", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut c = Commander::<Packed>::connect(&stage, "coalesce", PACKED);
    let hold = Duration::from_millis(400);
    let moderation = [40u32.to_le_bytes(), (hold.as_micros() as u32).to_le_bytes()].concat();
    for command in [ctrl::NOTF_COAL_RX_SET, ctrl::NOTF_COAL_TX_SET] {
        assert!(c.ask(ctrl::NOTF_COAL, command, &moderation));
    }
    c.write(COMMAND, &[ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_GET, 1, 0, 0, 0]);
    c.offer(&[Segment::read(COMMAND, 6), Segment::write(ACK, 9)], false);
    assert_eq!(c.answer(9), (9, [&[0], &moderation[..]].concat()));
    let ping = |c: &mut Commander<Packed>, count| {
        let _ = c.guest.call.read();
        let since = Instant::now();
        c.guest.ping(count);
        assert!(since.elapsed() < hold / 2, "a machine too slow for this test");
        since
    };
    // A call from before may still be on its way the first time.
    let held = (0..3).find_map(|_| {
        let since = ping(&mut c, 8);
        if c.guest.call.read().is_err() {
            return Some(since);
        }
        std::thread::sleep(hold + hold / 4);
        None
    });
    let since = held.expect("held back");
    eventually("a call", || c.guest.call.read().is_ok());
    assert!(since.elapsed() > hold * 9 / 10);
    std::thread::sleep(hold + hold / 4);
    let since = ping(&mut c, 60);
    eventually("a call", || c.guest.call.read().is_ok());
    assert!(since.elapsed() < hold / 2, "there were packets enough");
    assert!(c.ask(ctrl::NOTF_COAL, ctrl::NOTF_COAL_RX_SET, &[0; 8]));
    std::thread::sleep(hold + hold / 4);
    let since = ping(&mut c, 1);
    eventually("a call", || c.guest.call.read().is_ok());
    assert!(since.elapsed() < hold / 2, "at once again");
    drop(c);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn offloads_that_are_turned_off_are_done_here() {
    let mut stage = Stage::new("turned-off", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let features = SPLIT | net::F_CSUM | net::F_GUEST_CSUM;
    let mut c = Commander::<Split>::connect(&stage, "turned-off", features);
    for (offloads, flags) in [(None, 1), (Some(0), 0), (Some(net::F_GUEST_CSUM), 1)] {
        if let Some(offloads) = offloads {
            let set = ctrl::GUEST_OFFLOADS_SET;
            assert!(c.ask(ctrl::GUEST_OFFLOADS, set, &u64::to_le_bytes(offloads)));
        }
        let addr = GUEST + FRAMES + u64::from(NUM) * FRAME;
        // Needs a checksum from byte 14 on, at 16.
        c.write(addr, &[1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0]);
        c.write(addr + u64::from(HDR), &[&ALL[..], &MINE, &[8, 0, 0x12, 0x34, 0, 0, 0x11, 0x11]].concat());
        c.guest.transmit.add(&[Segment::read(addr, HDR + 20)]).unwrap();
        let _ = c.guest.transmit.publish();
        let mut used = None;
        eventually("the frame", || {
            used = c.guest.receive.used().unwrap();
            used.is_some()
        });
        let room = c.guest.rooms[usize::from(used.unwrap().id)];
        let got = c.read(room, HDR as usize + 20);
        let sum = if flags == 1 { [0, 0] } else { (!0x2345u16).to_be_bytes() };
        assert_eq!((got[0], &got[28..30]), (flags, &sum[..]));
        c.guest.post(room);
        eventually("it is sent", || c.guest.transmit.used().unwrap().is_some());
    }
    drop(c);
    stage.port.stop(core.stop()).unwrap();
}

fn odd_chains<R: Ring>(name: &str, features: u64) {
    let mut stage = Stage::new(name, |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut c = Commander::<R>::connect(&stage, name, features | v::F_INDIRECT_DESC);
    c.write(COMMAND, &[ctrl::RX, ctrl::RX_PROMISC, 1]);
    let (read, write) = (Segment::read(COMMAND, 3), Segment::write(ACK, 1));
    let bytes = |from: u64, to: u64| -> Vec<Segment> {
        (from..to).map(|i| Segment::read(COMMAND + i, 1)).chain([write]).collect()
    };
    for (chain, indirect, used, ack) in [
        // No room for an answer, none for a command.
        (vec![read], false, 0, None),
        (vec![write], false, 1, Some(ctrl::ERR)),
        (vec![Segment::read(COMMAND, 1), write], false, 1, Some(ctrl::ERR)),
        (vec![Segment::read(COMMAND, 4), write], false, 1, Some(ctrl::ERR)),
        // In any pieces.
        (bytes(0, 3), false, 1, Some(ctrl::OK)),
        (vec![read, write], true, 1, Some(ctrl::OK)),
        (vec![read, Segment::write(ACK, 4096)], false, 1, Some(ctrl::OK)),
        // More than any command has.
        (vec![Segment::read(COMMAND, 65537), write], false, 1, Some(ctrl::ERR)),
        (vec![Segment::read(GUEST, MEMORY as u32), write], false, 1, Some(ctrl::ERR)),
        (vec![Segment::read(COMMAND, 65536), Segment::read(COMMAND, 1), write], true, 1, Some(ctrl::ERR)),
    ] {
        c.write(ACK, &[0xa5]);
        c.offer(&chain, indirect);
        assert_eq!(c.answer(1), (used, vec![ack.unwrap_or(0xa5)]), "{chain:?}");
        assert!(c.ask(ctrl::RX, ctrl::RX_PROMISC, &[1]));
    }
    // Many at once, more than are carried out in a turn, none kicked but the first.
    for _ in 0..40 {
        let offered = (0..5).filter(|_| c.ring.add(&[read, write]).is_some()).count();
        assert_eq!(offered, 5);
        let _ = c.ring.publish();
        c.kick.write(1).unwrap();
        (0..5).for_each(|_| assert_eq!(c.answer(1).0, 1));
    }
    // A fault retires this ring alone.
    c.offer(&[Segment::read(GUEST + MEMORY, 3), write], false);
    eventually("the error descriptor", || c.guest.err.read().is_ok());
    c.guest.ping(100);
    c.kick.write(1).unwrap();
    c.guest.front.get_features().unwrap();
    let ring = c.index;
    c.guest.front.get_vring_base(ring).unwrap();
    c.ring = R::open(&c.areas, &c.guest.table).unwrap();
    let fresh = c.guest.fresh();
    c.start_control(fresh).unwrap();
    assert!(c.ask(ctrl::RX, ctrl::RX_PROMISC, &[0]));
    drop(c);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn odd_chains_are_answered_or_retire_the_control_queue_alone() {
    odd_chains::<Split>("odd-split", SPLIT);
    odd_chains::<Packed>("odd-packed", PACKED);
}

fn config(front: &mut Frontend) -> (Vec<u8>, u8) {
    use vhost::vhost_user::message::VhostUserConfigFlags;
    let (_, bytes) = front.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    (bytes[..6].to_vec(), bytes[6])
}

/// The other end of a pipe for the state of the device.
fn transfer(front: &mut Frontend, direction: VhostTransferStateDirection) -> File {
    let pipe = OwnedFd::from(File::open("/dev/null").unwrap());
    front.set_device_state_fd(direction, VhostTransferStatePhase::STOPPED, pipe).unwrap().unwrap()
}

/// virtio 1.3 §5.1.4: what the driver has set is what it reads; §5.1.6.5.4: a guest that has moved is asked to
/// announce itself until it says that it did.
#[test]
fn the_configuration_follows_the_guest() {
    let mut stage = Stage::new("config-follows", |config| config.mac = Some(MINE));
    let core = Core::run(stage.port.start(1).unwrap());
    let features = v::F_VERSION_1 | net::F_GUEST_ANNOUNCE | net::F_STATUS;
    let mut all = Commander::<Split>::connect(&stage, "config-follows", features);
    let (mut channel, theirs) = UnixStream::pair().unwrap();
    all.guest.front.set_backend_request_fd(&theirs).unwrap();
    assert_eq!(config(&mut all.guest.front), (MINE.to_vec(), 1));
    assert!(all.ask(ctrl::MAC, ctrl::MAC_ADDR_SET, &OTHER));
    assert_eq!(config(&mut all.guest.front), (OTHER.to_vec(), 1));
    assert!(all.ask(ctrl::RX, ctrl::RX_PROMISC, &[0]));

    // With the state of this device another goes on: what it was asked for holds.
    let bases: Vec<u16> = (0..3).map(|ring| all.guest.front.get_vring_base(ring).unwrap() as u16).collect();
    let mut state = Vec::new();
    let front = &mut all.guest.front;
    transfer(front, VhostTransferStateDirection::SAVE).read_to_end(&mut state).unwrap();
    front.check_device_state().unwrap();
    transfer(front, VhostTransferStateDirection::LOAD).write_all(&state).unwrap();
    front.check_device_state().unwrap();
    assert_eq!(config(front), (OTHER.to_vec(), 3));
    channel.set_nonblocking(true).unwrap();
    assert_eq!(
        channel.read(&mut [0; 12]).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "no ring runs"
    );
    all.guest.start_ring(0, bases[0], 0).unwrap();
    all.guest.start_ring(1, bases[1], 0).unwrap();
    all.start_control(bases[2]).unwrap();
    channel.set_nonblocking(false).unwrap();
    let mut told = [0; 12];
    channel.read_exact(&mut told).unwrap();
    // CONFIG_CHANGE_MSG, to be acknowledged.
    assert_eq!(told, [2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    assert!(all.ask(ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, &[]));
    assert_eq!(config(&mut all.guest.front), (OTHER.to_vec(), 1));
    drop(all);
    stage.port.stop(core.stop()).unwrap();

    let mut stage = Stage::new("config-moved", |config| config.mac = Some(MINE));
    let core = Core::run(stage.port.start(1).unwrap());
    let mut all = Commander::<Split>::prepare(&stage, "config-moved", features);
    transfer(&mut all.guest.front, VhostTransferStateDirection::LOAD).write_all(&state).unwrap();
    all.guest.front.check_device_state().unwrap();
    assert_eq!(config(&mut all.guest.front), (OTHER.to_vec(), 3));
    drop(all);
    stage.port.stop(core.stop()).unwrap();
}

#[test]
fn a_control_queue_that_is_not_kicked_is_looked_at() {
    let mut stage = Stage::new("unkicked", |_| {});
    let core = Core::run(stage.port.start(1).unwrap());
    let mut c = Commander::<Split>::connect(&stage, "unkicked", SPLIT);
    c.kick = event();
    for _ in 0..3 {
        // Signalled to nobody: the front-end's own descriptor is another one now.
        c.ring.add(&[Segment::read(COMMAND, 2), Segment::write(ACK, 1)]).unwrap();
        let _ = c.ring.publish();
        let base = c.guest.front.get_vring_base(c.index).unwrap();
        c.start_control(base as u16).unwrap();
        assert_eq!(c.answer(1), (1, vec![ctrl::ERR]), "what waits is looked at when the ring starts");
    }
    drop(c);
    stage.port.stop(core.stop()).unwrap();
}
