//! M12: translations of rings and frames that come, change and go during a burst; misses that nobody answers.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use hugepages::Words;
use pmd::spec::vhost_user::iotlb::{INVALIDATE, MISS, READ, UPDATE, WRITE};
use pmd::spec::vhost_user::{FLAG_REPLY, Header, IotlbMsg, VringAddr, backend_id, id};
use pmd::spec::{net, virtio as v};
use pmd::vring::driver::{Areas, Packed, Ring, Segment, Split};
use zerocopy::{FromBytes, IntoBytes};

use crate::front::message;
use crate::guest::{FORMS, FRAMES, GUEST, Guest, MEMORY, PROTOCOL, USER, state};
use crate::house::{House, eventually};

const PAGE: u64 = 4096;

/// Protocol features of a front-end that answers for an IOMMU.
const ASKED: u64 = PROTOCOL | pmd::spec::vhost_user::PROTOCOL_F_BACKEND_REQ;

/// What a front-end says of a range that is in its memory where the guest's own addresses are.
fn entry(kind: u8, iova: u64, size: u64, perm: u8) -> IotlbMsg {
    IotlbMsg {
        iova,
        size,
        user: iova.wrapping_sub(GUEST).wrapping_add(USER),
        perm,
        kind,
        ..IotlbMsg::default()
    }
}

fn tell(guest: &mut Guest, entry: IotlbMsg) -> Option<bool> {
    guest.front.tell(id::IOTLB_MSG, entry.as_bytes(), &[])
}

/// All of memory.
fn all(kind: u8, perm: u8) -> IotlbMsg {
    entry(kind, GUEST, MEMORY, perm)
}

/// A guest behind an IOMMU, and the channel on which its front-end is asked, that it need not listen to.
fn behind(house: &House, features: u64) -> (Guest, UnixStream) {
    let mut guest = Guest::connect(&house.path, features | v::F_ACCESS_PLATFORM);
    let (ours, theirs) = UnixStream::pair().unwrap();
    guest.front.send(&message(id::SET_PROTOCOL_FEATURES, 0, &ASKED.to_ne_bytes()), &[]);
    assert_eq!(guest.front.tell(id::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), Some(true));
    (guest, ours)
}

/// Everything is known again, rings begin anew: frames go round.
#[track_caller]
fn goes_on(guest: &mut Guest) {
    assert_eq!(tell(guest, all(UPDATE, READ | WRITE)), Some(true));
    guest.restart();
    for ring in 0..2 {
        assert!(guest.stop_ring(ring).is_some());
        guest.areas[ring].clear(&guest.table).unwrap();
    }
    // With its rings, all that was known has gone.
    assert_eq!(tell(guest, all(UPDATE, READ | WRITE)), Some(true));
    guest.ping(40);
}

#[test]
fn m12_translations_change_during_a_burst() {
    let house = House::new("iotlb", |_| {});
    for features in FORMS {
        let (mut guest, _asks) = behind(&house, features);
        assert_eq!(tell(&mut guest, all(UPDATE, READ | WRITE)), Some(true));
        let [receive, transmit] = guest.areas.map(|areas| areas);
        let places = [
            (receive.desc, PAGE),
            (transmit.desc & !(PAGE - 1), PAGE),
            (transmit.driver & !(PAGE - 1), PAGE),
            (transmit.device & !(PAGE - 1), PAGE),
            (FRAMES, PAGE),
            (FRAMES + PAGE, 8 * PAGE),
            (GUEST, MEMORY),
            (0, 0),
            (0, u64::MAX),
            (u64::MAX - PAGE + 1, PAGE),
        ];
        for (at, size) in places {
            for again in [READ | WRITE, READ, WRITE] {
                guest.start();
                guest.burst(40);
                // Taken away, and given back as it was, or for half of what it is needed for.
                assert_eq!(tell(&mut guest, entry(INVALIDATE, at, size, 0)), Some(true), "{at:#x} {size:#x}");
                if (GUEST..GUEST + MEMORY).contains(&at) {
                    assert_eq!(tell(&mut guest, entry(UPDATE, at, size, again)), Some(true));
                }
                house.stands_beside("an IOTLB entry went");
                goes_on(&mut guest);
                for ring in 0..2 {
                    assert!(guest.stop_ring(ring).is_some());
                    guest.areas[ring].clear(&guest.table).unwrap();
                }
                assert_eq!(tell(&mut guest, all(UPDATE, READ | WRITE)), Some(true));
            }
        }
        drop(guest);
        house.stands("translations changed");
    }
    house.ends("translations changed");
}

#[test]
fn m12_entries_that_are_none_are_refused() {
    let house = House::new("iotlb-odd", |_| {});
    for features in FORMS {
        for odd in [
            entry(UPDATE, GUEST, 0, READ),
            entry(UPDATE, GUEST, 1, READ),
            entry(UPDATE, GUEST + 1, PAGE, READ),
            entry(UPDATE, GUEST, MEMORY + PAGE, READ),
            entry(UPDATE, GUEST - PAGE, PAGE, READ),
            entry(UPDATE, GUEST, u64::MAX - PAGE + 1, READ),
            entry(UPDATE, 0u64.wrapping_sub(PAGE), 2 * PAGE, READ),
            entry(UPDATE, GUEST, PAGE, 0),
            entry(UPDATE, GUEST, PAGE, 4),
            entry(1, GUEST, PAGE, READ),
            entry(4, GUEST, PAGE, READ),
            entry(0xff, GUEST, PAGE, READ),
        ] {
            let (mut guest, _asks) = behind(&house, features);
            assert_eq!(tell(&mut guest, all(UPDATE, READ | WRITE)), Some(true));
            guest.start();
            guest.burst(10);
            assert_ne!(tell(&mut guest, odd), Some(true), "{odd:x?}");
        }
        // Of a guest without an IOMMU.
        let mut guest = Guest::connect(&house.path, features);
        assert_ne!(tell(&mut guest, all(UPDATE, READ)), Some(true));
        drop(guest);
        house.stands("odd entries");
    }
    house.ends("odd entries");
}

#[test]
fn m12_a_miss_is_never_answered() {
    let house = House::new("iotlb-deaf", |_| {});
    for features in FORMS {
        // Nothing is known of the rings; or nothing of the frames. Nobody listens, or nobody is there.
        for (known, listens) in [(0, true), (0, false), (1 << 20, true), (1 << 20, false)] {
            let (mut guest, asks) = behind(&house, features);
            let asks = Some(asks).filter(|_| listens);
            if known > 0 {
                assert_eq!(tell(&mut guest, entry(UPDATE, GUEST, known, READ | WRITE)), Some(true));
            }
            guest.start();
            guest.burst(100);
            house.stands_beside("nobody answers");
            // Its rings come home all the same, and what was asked for may still come.
            for ring in 0..2 {
                assert!(guest.stop_ring(ring).is_some());
                guest.areas[ring].clear(&guest.table).unwrap();
            }
            if listens {
                goes_on(&mut guest);
            }
            drop((guest, asks));
        }
        house.stands("misses without answers");
    }
    house.ends("misses without answers");
}

#[test]
fn m12_a_storm_of_invalidations() {
    let house = House::new("iotlb-storm", |_| {});
    for features in FORMS {
        let (mut guest, asks) = behind(&house, features);
        asks.set_nonblocking(true).unwrap();
        assert_eq!(tell(&mut guest, all(UPDATE, READ | WRITE)), Some(true));
        guest.start();
        guest.burst(100);
        for i in 0..500u64 {
            let at = [GUEST, FRAMES, FRAMES + i % 64 * PAGE][i as usize % 3];
            assert_eq!(tell(&mut guest, entry(INVALIDATE, at, PAGE, 0)), Some(true));
            assert_eq!(tell(&mut guest, entry(UPDATE, at, PAGE, READ | WRITE)), Some(true));
        }
        // One entry for each page, and holes between them: more than are kept.
        for i in 0..300 {
            assert_eq!(tell(&mut guest, entry(INVALIDATE, FRAMES + i % 200 * PAGE, PAGE, 0)), Some(true));
        }
        house.stands_beside("invalidations");
        goes_on(&mut guest);
        drop((guest, asks));
        eventually("rest", || !pmd::Port::link(&house.target).up);
        house.stands("a storm of invalidations");
    }
    house.ends("storms of invalidations");
}

/// Where the control queue and its commands are, for the guest and for the device.
const CONTROL: u64 = GUEST + (3 << 18);
const COMMAND: u64 = CONTROL + 16 * PAGE;
const AWAY: u64 = 1 << 40;

/// A front-end that answers what it is asked: the control queue's addresses are [`AWAY`], others where they are, and
/// `ACK` in one of two places.
struct Answers<'g> {
    guest: &'g mut Guest,
    asks: UnixStream,
    /// Where the second page of commands is.
    ack: u64,
    misses: usize,
}

impl Answers<'_> {
    fn entry(&self, kind: u8, iova: u64) -> IotlbMsg {
        let page = iova & !(PAGE - 1);
        let at = match page.checked_sub(AWAY) {
            Some(page) if page == COMMAND + PAGE => self.ack,
            Some(page) => page,
            None => page,
        };
        IotlbMsg { iova: page, ..entry(kind, at, PAGE, READ | WRITE) }
    }

    /// Answers what was asked so far.
    fn answer(&mut self) {
        let mut bytes = [0; size_of::<Header>() + size_of::<IotlbMsg>()];
        // They come whole.
        while self.asks.read_exact(&mut bytes).is_ok() {
            let (header, body) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(
                (header.request, usize::try_from(header.size).unwrap()),
                (backend_id::IOTLB_MSG, body.len())
            );
            let miss = IotlbMsg::read_from_bytes(body).unwrap();
            assert_eq!(miss.kind, MISS);
            let reply = message(backend_id::IOTLB_MSG, FLAG_REPLY, &0u64.to_ne_bytes());
            self.asks.write_all(&reply).unwrap();
            let update = self.entry(UPDATE, miss.iova);
            assert_eq!(tell(self.guest, update), Some(true));
            self.misses += 1;
        }
    }

    fn take_back(&mut self, iova: u64) {
        let gone = self.entry(INVALIDATE, iova);
        assert_eq!(tell(self.guest, gone), Some(true));
    }
}

/// virtio 1.3 §5.1.6.5: a command and its answer, both by addresses of the IOMMU; what is taken back is asked for
/// again, also when it is the ring.
fn commands_by_addresses_of_the_iommu<R: Ring>(house: &House, features: u64) {
    let wanted = net::F_CTRL_VQ | net::F_CTRL_RX;
    let (mut guest, asks) = behind(house, features | wanted);
    asks.set_nonblocking(true).unwrap();
    let areas = Areas::at(CONTROL, 16, features, 4);
    let mut ring = R::open(&areas, &guest.table).unwrap();
    let addr = VringAddr {
        index: 2,
        descriptors: areas.desc + AWAY,
        available: areas.driver + AWAY,
        used: areas.device + AWAY,
        ..VringAddr::default()
    };
    let fresh = guest.fresh();
    let start = |guest: &mut Guest, base: u32| {
        let index = 2u64.to_ne_bytes();
        let Guest { front, kick, call, .. } = guest;
        for (id, payload, fds) in [
            (id::SET_VRING_NUM, state(2, 16), vec![]),
            (id::SET_VRING_BASE, state(2, base), vec![]),
            (id::SET_VRING_ADDR, addr.as_bytes().to_vec(), vec![]),
            (id::SET_VRING_CALL, index.to_vec(), vec![call.as_fd()]),
            (id::SET_VRING_KICK, index.to_vec(), vec![kick.as_fd()]),
            (id::SET_VRING_ENABLE, state(2, 1), vec![]),
        ] {
            assert_eq!(front.tell(id, &payload, &fds), Some(true), "message {id}");
        }
    };
    start(&mut guest, fresh);
    let other = COMMAND + 5 * PAGE;
    let mut front = Answers { guest: &mut guest, asks, ack: COMMAND + PAGE, misses: 0 };
    let (command, ack) = (COMMAND + PAGE - 2, COMMAND + PAGE + 64);
    let at = |gpa: u64| (gpa - GUEST) as usize / 2;
    let ask = |front: &mut Answers<'_>, ring: &mut R, on: u16| {
        // Class and command at the end of one page, the data at the beginning of the next.
        front.guest.words.set(at(command), u16::from_le_bytes([0, 1]));
        front.guest.words.set(at(front.ack), on);
        front.guest.words.set(at(front.ack + 64), 0xa5a5);
        let chain = [Segment::read(command + AWAY, 3), Segment::write(ack + AWAY, 1)];
        ring.add(&chain).unwrap();
        if ring.publish() {
            front.guest.kick();
        }
        let mut used = None;
        eventually("an answer", || {
            front.answer();
            used = ring.used().unwrap();
            used.is_some()
        });
        assert_eq!(used.unwrap().len, 1);
        front.guest.words.get(at(front.ack + 64))
    };
    assert_eq!(ask(&mut front, &mut ring, 1), 0xa500, "obeyed");
    let misses = front.misses;
    assert!(misses >= 3, "{misses} pages were asked for");
    assert_eq!((ask(&mut front, &mut ring, 0), front.misses), (0xa500, misses), "all is known");
    assert_eq!(ask(&mut front, &mut ring, 2), 0xa501, "there is no such mode");
    // The answer goes elsewhere, from now on.
    front.take_back(ack + AWAY);
    front.ack = other;
    assert_eq!(ask(&mut front, &mut ring, 1), 0xa500);
    assert!(front.misses > misses);
    // The ring itself is nowhere, and waits; then it goes on. It stands where it stood.
    for area in [areas.desc, areas.driver, areas.device] {
        let misses = front.misses;
        front.take_back(area + AWAY);
        assert_eq!(ask(&mut front, &mut ring, 0), 0xa500);
        assert!(front.misses > misses);
    }
    front.take_back(areas.desc + AWAY);
    let base = front.guest.stop_ring(2).unwrap();
    start(front.guest, base);
    assert_eq!(ask(&mut front, &mut ring, 1), 0xa500, "it goes on at {base:#x}");
    assert!(front.guest.stop_ring(2).is_some());
}

#[test]
fn a_control_queue_behind_an_iommu() {
    let house = House::new("iotlb-control", |_| {});
    for features in FORMS {
        if features & v::F_RING_PACKED != 0 {
            commands_by_addresses_of_the_iommu::<Packed>(&house, features);
        } else {
            commands_by_addresses_of_the_iommu::<Split>(&house, features);
        }
    }
    house.ends("commands by addresses of the IOMMU");
}
