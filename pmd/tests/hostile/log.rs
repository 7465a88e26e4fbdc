//! L: what is written while a guest moves is logged, beside a neighbour under traffic: all of it, nothing else, and
//! nothing when logging has ended.

use std::os::fd::AsFd;

use hugepages::{Map, Table, Words};
use pmd::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, LogArea, id};
use pmd::vring::driver::{Packed, Ring, Split};
use zerocopy::IntoBytes;

use crate::guest::{FORMS, FRAME, FRAMES, GUEST, Guest, MEMORY, NUM, Traffic, memfd};
use crate::house::House;

const PAGE: u64 = 4096;
/// Bytes of the log: a bit for each page up to the end of memory, and more.
const LOG: u64 = 1 << 16;
/// Pages that frames are received into.
const ROOMS: std::ops::Range<u64> = FRAMES / PAGE..(FRAMES + NUM as u64 / 2 * FRAME) / PAGE;
/// All pages of the guest.
const ALL: std::ops::Range<u64> = GUEST / PAGE..(GUEST + MEMORY) / PAGE;

fn moved<R: Ring>(house: &House, features: u64) {
    let mut guest = Guest::connect(&house.path, features);
    let words = guest.table.window::<u64>(GUEST, MEMORY as usize / 8).unwrap();
    let page = |page: u64| -> Vec<u64> {
        let at = (page * PAGE - GUEST) as usize / 8;
        (at..at + PAGE as usize / 8).map(|i| words.get(i)).collect()
    };
    let file = memfd("hostile-log", LOG);
    let (map, _) = Map::file(file.try_clone().unwrap(), 0, LOG).unwrap();
    let bits = Table::of(map).window::<u64>(0, LOG as usize / 8).unwrap();
    let dirty = |page: &u64| bits.get(*page as usize / 64) >> (page % 64) & 1 == 1;
    // What is used is written in the rings.
    let rings = guest.areas[0].desc / PAGE..guest.areas[1].end.div_ceil(PAGE);
    let mut traffic = Traffic::<R>::start(&mut guest);
    traffic.ping(40);
    for _ in 0..3 {
        let area = LogArea { size: LOG, offset: 0 };
        assert!(traffic.front().ask(id::SET_LOG_BASE, area.as_bytes(), &[file.as_fd()]).is_some());
        // Frames are on their way when logging begins, and when it ends.
        let log = |traffic: &mut Traffic<'_, R>, on: bool| {
            (0..8).for_each(|_| _ = traffic.send());
            let features = features | F_PROTOCOL_FEATURES | if on { F_LOG_ALL } else { 0 };
            assert_eq!(traffic.front().tell(id::SET_FEATURES, &features.to_ne_bytes(), &[]), Some(true));
        };
        log(&mut traffic, true);
        let before: Vec<Vec<u64>> = ROOMS.map(page).collect();
        traffic.ping(20);
        let now: Vec<Vec<u64>> = ROOMS.map(page).collect();
        let written = ROOMS.zip(before.iter().zip(&now)).filter(|(_, (then, now))| then != now);
        let written: Vec<u64> = written.map(|(page, _)| page).collect();
        assert!(written.len() >= 10, "{} pages", written.len());
        assert!(written.iter().all(dirty), "a page that was written is not marked");
        log(&mut traffic, false);
        traffic.ping(0);
        let mut others = ALL.filter(|page| !ROOMS.contains(page) && !rings.contains(page));
        assert!(others.all(|page| !dirty(&page)), "marked, and not written");
        assert!(rings.clone().any(|page| dirty(&page)), "the rings were written");
        (0..bits.len()).for_each(|i| bits.set(i, 0));
        traffic.ping(100);
        assert!((0..bits.len()).all(|i| bits.get(i) == 0), "logging has ended");
    }
}

#[test]
fn l1_l3_l7_what_is_written_is_marked() {
    let house = House::new("log", |_| {});
    for features in FORMS {
        if features & pmd::spec::virtio::F_RING_PACKED != 0 {
            moved::<Packed>(&house, features);
        } else {
            moved::<Split>(&house, features);
        }
        house.stands("a migration");
    }
    house.ends("migrations");
}
