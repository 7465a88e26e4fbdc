//! M12: translations of rings and frames that come, change and go during a burst; misses that nobody answers.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use pmd::spec::vhost_user::iotlb::{INVALIDATE, READ, UPDATE, WRITE};
use pmd::spec::vhost_user::{IotlbMsg, id};
use pmd::spec::virtio as v;
use zerocopy::IntoBytes;

use crate::front::message;
use crate::guest::{FORMS, FRAMES, GUEST, Guest, MEMORY, PROTOCOL, USER};
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
