//! M: front-ends that send what they must not. `pmd/src/vhost/` tries every value of every field against the
//! parser and the session; here it is a port with rings at work, and the oracle, that counts.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use pmd::spec::vhost_user::{
    CONFIG_F_MIGRATION, ConfigAccess, F_PROTOCOL_FEATURES, FLAG_NEED_REPLY, FLAG_REPLY, Header, InflightArea,
    LogArea, MemRegion, SingleRegion, VRING_FD_NONE, VringAddr, id,
};
use pmd::spec::virtio as v;
use rustix::fs::ftruncate;
use zerocopy::IntoBytes;

use crate::front::{Front, message};
use crate::guest::{FORMS, GUEST, Guest, MEMORY, NUM, PACKED, SPLIT, USER, event, memfd, state};
use crate::house::House;

/// How often what can leak is repeated; `HOTRING_REPEAT` says otherwise.
fn repeat() -> u32 {
    std::env::var("HOTRING_REPEAT").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

/// A front-end with rings at work.
fn at_work(house: &House, features: u64) -> Guest {
    let mut guest = Guest::connect(&house.path, features);
    guest.start();
    guest
}

/// What the message of a front-end at work must come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Refused by an answer, or by the end of the connection.
    Refused,
    /// Served.
    Served,
}

#[track_caller]
fn meets(house: &House, features: u64, id: u32, payload: &[u8], fds: &[BorrowedFd<'_>], fate: Fate) {
    let mut guest = at_work(house, features);
    let served = match guest.front.tell(id, payload, fds) {
        Some(true) => Fate::Served,
        Some(false) | None => Fate::Refused,
    };
    assert_eq!(served, fate, "message {id} with {payload:x?}");
}

#[test]
fn m1_sizes_pieces_and_ends_at_every_byte() {
    let house = House::new("pieces", |_| {});
    for request in 0..48 {
        for size in [0, 1, 7, 8, 9, 12, 20, 39, 40, 41, 264, 300, 4096] {
            let mut guest = at_work(&house, SPLIT);
            let _ = guest.front.tell(request, &vec![0xff; size], &[]);
        }
        for size in [4097, 1 << 20, u32::MAX] {
            let guest = at_work(&house, SPLIT);
            let header = Header { request, flags: 1, size };
            guest.front.send(header.as_bytes(), &[]);
        }
    }
    house.stands("sizes");
    let region = MemRegion { guest: 0, size: 0x1000, user: 0, offset: 0 };
    let whole = message(id::ADD_MEM_REG, 0, SingleRegion { padding: 0, region }.as_bytes());
    let file = memfd("hostile-pieces", 0x1000);
    for cut in 1..whole.len() {
        let guest = at_work(&house, PACKED);
        guest.front.send(&whole[..cut], &[file.as_fd()]);
    }
    house.stands("pieces");
    let mut guest = at_work(&house, PACKED);
    for byte in message(id::GET_FEATURES, 0, &[]) {
        guest.front.0.write_all(&[byte]).unwrap();
    }
    assert!(guest.front.answer().is_some());
    drop((guest, file));
    house.ends("pieces");
}

/// Descriptors that are of no use, or of another.
fn kinds() -> Vec<OwnedFd> {
    vec![
        memfd("hostile-kind", 0x1000),
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        std::fs::File::open("/proc/self/maps").unwrap().into(),
        std::fs::File::open(std::env::current_exe().unwrap()).unwrap().into(),
        std::io::pipe().unwrap().1.into(),
        UnixStream::pair().unwrap().0.into(),
        event(),
    ]
}

#[test]
fn m2_m4_every_message_with_every_number_and_kind_of_descriptors() {
    let house = House::new("kinds", |_| {});
    let kinds = kinds();
    // Without the feature that SET_PROTOCOL_FEATURES would take away, nobody is told anything.
    for request in (0..48).filter(|request| *request != id::SET_PROTOCOL_FEATURES) {
        for kind in &kinds {
            let mut guest = at_work(&house, SPLIT);
            for n in 0..10 {
                // The index of a ring, with the bit that says that no descriptor comes, and without.
                for payload in [0, VRING_FD_NONE] {
                    let fds = vec![kind.as_fd(); n];
                    if guest.front.tell(request, &payload.to_ne_bytes(), &fds).is_none() {
                        guest = at_work(&house, SPLIT);
                    }
                }
            }
        }
    }
    drop(kinds);
    house.ends("descriptors");
}

#[test]
fn m5_m6_m7_indices_sizes_and_addresses_of_rings() {
    let house = House::new("ring-messages", |_| {});
    use Fate::{Refused, Served};
    for features in FORMS {
        let meets = |id, payload: &[u8], fate| meets(&house, features, id, payload, &[], fate);
        for index in [3, 4, 0xff, 0x100, 0xffff, 0x1_0000, 0x1_0001, u32::MAX - 1, u32::MAX] {
            for id in [
                id::SET_VRING_NUM,
                id::SET_VRING_BASE,
                id::SET_VRING_ENABLE,
                id::GET_VRING_BASE,
                id::SET_VRING_ENDIAN,
            ] {
                meets(id, &state(index, NUM.into()), Refused);
            }
            meets(id::SET_VRING_ADDR, VringAddr { index, ..VringAddr::default() }.as_bytes(), Refused);
        }
        for num in [0, 1, 3, 100, 32768, 32769, 65536, 0x1_0080, u32::MAX] {
            meets(id::SET_VRING_NUM, &state(1, num), Refused);
        }
        let good = Guest::connect(&house.path, features).addr(1);
        let ring = |edit: fn(&mut VringAddr)| {
            let mut addr = good;
            edit(&mut addr);
            addr.as_bytes().to_vec()
        };
        for wrong in [
            ring(|a| a.descriptors += 1),
            ring(|a| a.descriptors = 0u64.wrapping_sub(16)),
            ring(|a| a.available = u64::MAX - 3),
            ring(|a| a.used = 0),
            ring(|a| a.used = USER + MEMORY - 4),
            ring(|a| a.descriptors = USER - 16),
            ring(|a| a.flags = 2),
        ] {
            // Of a packed ring the used area is four bytes, which do fit there.
            let fits = features & v::F_RING_PACKED != 0 && wrong == ring(|a| a.used = USER + MEMORY - 4);
            meets(id::SET_VRING_ADDR, &wrong, if fits { Served } else { Refused });
        }
        // Over each other, and over the other ring: a guest's own harm.
        for odd in [ring(|a| a.used = a.descriptors), ring(|a| a.descriptors = USER)] {
            meets(id::SET_VRING_ADDR, &odd, Served);
        }
        house.stands("messages about rings");
    }
    house.ends("messages about rings");
}

#[test]
fn m8_m9_regions_of_every_kind() {
    let house = House::new("regions", |_| {});
    let file = memfd("hostile-regions", MEMORY);
    let region = |guest, size, user, offset| MemRegion { guest, size, user, offset };
    let table =
        |n: u32, regions: &[MemRegion]| [&u64::from(n).to_ne_bytes()[..], regions.as_bytes()].concat();
    let one = region(0, 0x1000, 0, 0);
    let touching = region(0x1000, 0x1000, 0x1000, 0);
    for (n, regions) in [
        (0, vec![]),
        (9, vec![one; 9]),
        (u32::MAX, vec![one]),
        (2, vec![one]),
        (1, vec![one, touching]),
        (2, vec![one, one]),
        (2, vec![one, region(0xfff, 0x1000, 0x1000, 0)]),
        (1, vec![region(0, MEMORY + 1, 0, 0)]),
        (1, vec![region(0, MEMORY, 0, 1)]),
        (1, vec![region(0, 0, 0, 0)]),
        (1, vec![region(0, u64::MAX, 0, 0)]),
        (1, vec![region(u64::MAX - 0xfff, 0x1001, 0, 0)]),
        (1, vec![region(0, 0x1000, u64::MAX - 0xff, 0)]),
        (1, vec![region(0, 0x1000, 0, u64::MAX - 0xfff)]),
        (1, vec![region(8, 0x1000, 0, 0)]),
        (1, vec![region(0, 0x1000, 0, 4095)]),
    ] {
        let fds = vec![file.as_fd(); regions.len().min(8)];
        meets(&house, SPLIT, id::SET_MEM_TABLE, &table(n, &regions), &fds, Fate::Refused);
        if let [region] = regions[..] {
            let single = SingleRegion { padding: 0, region };
            if region != one {
                meets(&house, SPLIT, id::ADD_MEM_REG, single.as_bytes(), &[file.as_fd()], Fate::Refused);
            }
        }
    }
    house.stands("tables");
    for features in FORMS {
        let mut guest = at_work(&house, features);
        let single = |region| SingleRegion { padding: 0, region };
        // Every slot, and one more; twice the same; the one with the rings taken away under them.
        let far = |i: u64| region(0x80_0000_0000 + i * 0x1000, 0x1000, i * 0x1000, 0);
        for i in 1..509 {
            let told = guest.front.tell(id::ADD_MEM_REG, single(far(i)).as_bytes(), &[file.as_fd()]);
            assert_eq!(told, Some(true), "slot {i}");
        }
        for wrong in [far(509), far(1)] {
            let told = guest.front.tell(id::ADD_MEM_REG, single(wrong).as_bytes(), &[file.as_fd()]);
            assert_eq!(told, Some(false));
        }
        let rings = single(guest.region());
        assert_eq!(guest.front.tell(id::REM_MEM_REG, rings.as_bytes(), &[]), Some(true));
        assert_eq!(guest.front.tell(id::REM_MEM_REG, rings.as_bytes(), &[]), Some(false));
        house.stands_beside("no memory under the rings");
        assert_eq!(guest.front.tell(id::ADD_MEM_REG, rings.as_bytes(), &[guest.file.as_fd()]), Some(true));
        // A file that shrinks between fstat and its use, and one that has shrunk before.
        ftruncate(&file, 0).unwrap();
        let told = guest.front.tell(id::ADD_MEM_REG, single(far(509)).as_bytes(), &[file.as_fd()]);
        assert_eq!(told, Some(false));
        ftruncate(&file, MEMORY).unwrap();
        drop(guest);
        house.stands("slots");
    }
    drop(file);
    house.ends("regions");
}

#[test]
fn m10_m11_logs_and_records_of_every_size() {
    let house = House::new("areas", |_| {});
    let sizes = [0, 1, 8, 4095, 4096, 1 << 16, 1 << 63, u64::MAX - 7, u64::MAX];
    for features in [SPLIT, PACKED] {
        for size in sizes {
            for offset in sizes {
                let file = memfd("hostile-area", 1 << 16);
                let mut guest = at_work(&house, features);
                let area = LogArea { size, offset };
                // 32832 bytes are enough for this guest's memory.
                let fits = size == 1 << 16 && offset == 0;
                let log = guest.front.ask(id::SET_LOG_BASE, area.as_bytes(), &[file.as_fd()]);
                assert!(log.is_none() || fits, "{area:?} is no log for this memory");
                drop(guest);
                for (rings, num) in [(0, 1), (1, 0), (2, NUM), (4, NUM), (u16::MAX, u16::MAX), (2, 32769)] {
                    let area = InflightArea { size, offset, rings, num, padding: 0 };
                    let mut guest = Guest::connect(&house.path, features);
                    let told = guest.front.tell(id::SET_INFLIGHT_FD, area.as_bytes(), &[file.as_fd()]);
                    let fits = (rings, num, size, offset) == (2, NUM, 1 << 16, 0)
                        || (rings, num, size) == (2, NUM, 4096) && offset <= 1 << 15 && offset % 8 == 0
                        || (rings, num, size, offset) == (2, NUM, 4096, 4096);
                    assert!(told != Some(true) || fits, "{area:?} is no record");
                }
            }
        }
        house.stands("areas");
    }
    house.ends("areas");
}

#[test]
fn m13_m15_m16_m18_numbers_that_nobody_offered() {
    let house = House::new("numbers", |_| {});
    let number = |id, n: u64, fate| meets(&house, PACKED, id, &n.to_ne_bytes(), &[], fate);
    use Fate::{Refused, Served};
    for features in [u64::MAX, 1 << 63, v::F_RING_PACKED, SPLIT | F_PROTOCOL_FEATURES] {
        number(id::SET_FEATURES, features, Refused);
    }
    number(id::SET_FEATURES, PACKED | F_PROTOCOL_FEATURES, Served);
    number(id::SET_PROTOCOL_FEATURES, u64::MAX, Refused);
    for mtu in [0, 67, 0x1_0000, u64::MAX] {
        number(id::NET_SET_MTU, mtu, Refused);
    }
    for status in [0x100, u64::MAX] {
        number(id::SET_STATUS, status, Refused);
    }
    for unknown in [0, 26, 27, 33, 41, 45, 99, u32::MAX] {
        number(unknown, 0, Refused);
    }
    for (offset, size) in [(0, 257), (255, 2), (u32::MAX, 1), (1, u32::MAX), (256, 0), (0, 0)] {
        let mut guest = at_work(&house, SPLIT);
        let access = ConfigAccess { offset, size, flags: 0 };
        let payload = [access.as_bytes(), &vec![0; size.min(300) as usize]].concat();
        let answer = guest.front.ask(id::GET_CONFIG, &payload, &[]);
        assert!(answer.is_none_or(|answer| answer.is_empty() || size == 0), "{access:?}");
        let access = ConfigAccess { flags: CONFIG_F_MIGRATION, ..access };
        let payload = [access.as_bytes(), &vec![0; size.min(300) as usize]].concat();
        assert!(guest.front.tell(id::SET_CONFIG, &payload, &[]) != Some(true) || size == 0, "{access:?}");
    }
    // A peer that says its requests are answers, of another version, or both.
    for flags in [FLAG_REPLY, FLAG_REPLY | FLAG_NEED_REPLY, 2, 3, 0xffff_fff0] {
        let mut guest = at_work(&house, SPLIT);
        guest.front.send(&message(id::GET_FEATURES, flags, &[]), &[]);
        let _ = guest.front.0.shutdown(std::net::Shutdown::Write);
        while guest.front.answer().is_some() {}
    }
    house.ends("numbers");
}

/// M14: rings are stopped, disabled and left with any number of chains in flight.
#[test]
fn m14_stops_in_the_middle_of_a_burst() {
    let house = House::new("stops", |_| {});
    for features in FORMS {
        for burst in 0..40u16 {
            let mut guest = at_work(&house, features);
            guest.burst(burst);
            match burst % 4 {
                0 => assert!(guest.stop_ring(1).is_some()),
                1 => assert_eq!(guest.front.tell(id::SET_VRING_ENABLE, &state(1, 0), &[]), Some(true)),
                2 => assert_eq!(guest.set_memory(), Some(true)),
                _ => {}
            }
        }
        house.stands("stops");
    }
    house.ends("stops");
}

/// M17, and what leaks by repetition: every message again and again.
#[test]
fn m17_again_and_again() {
    let house = House::new("again", |_| {});
    let (file, fd) = (memfd("hostile-again", MEMORY), event());
    let mut guest = at_work(&house, SPLIT);
    for _ in 0..repeat() {
        // An announcement would come back among the frames of whoever is there by then.
        for request in (1..48).filter(|request| *request != id::SEND_RARP) {
            let (payload, fds): (Vec<u8>, Vec<BorrowedFd<'_>>) = match request {
                id::SET_MEM_TABLE => {
                    let region = MemRegion { guest: GUEST, size: MEMORY, user: USER, offset: 0 };
                    ([&1u64.to_ne_bytes()[..], region.as_bytes()].concat(), vec![file.as_fd()])
                }
                id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR => (vec![0; 8], vec![fd.as_fd()]),
                id::SET_LOG_BASE => {
                    (LogArea { size: 1 << 16, offset: 0 }.as_bytes().into(), vec![file.as_fd()])
                }
                id::SET_INFLIGHT_FD | id::GET_INFLIGHT_FD => {
                    let area = InflightArea { size: 1 << 16, rings: 2, num: NUM, ..InflightArea::default() };
                    let fds = if request == id::SET_INFLIGHT_FD { vec![file.as_fd()] } else { vec![] };
                    (area.as_bytes().into(), fds)
                }
                id::SET_LOG_FD => (vec![], vec![fd.as_fd()]),
                id::SET_FEATURES => ((SPLIT | F_PROTOCOL_FEATURES).to_ne_bytes().into(), vec![]),
                id::SET_PROTOCOL_FEATURES => (crate::guest::PROTOCOL.to_ne_bytes().into(), vec![]),
                _ => (vec![0; 8], vec![fd.as_fd(); usize::from(request % 3 == 0)]),
            };
            if guest.front.tell(request, &payload, &fds).is_none() {
                guest = at_work(&house, SPLIT);
            }
        }
    }
    drop(guest);
    house.stands("every message again and again");
    house.lines(&[]);
    for _ in 0..repeat() * 10 {
        drop(Front::connect(&house.path));
    }
    // Thousands a second came and went.
    let lines = house.lines(&["connected"]).len();
    assert!(lines < 1000, "{lines} lines for {} connections", repeat() * 10);
    drop((file, fd));
    house.ends("connections");
}
