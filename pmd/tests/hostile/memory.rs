//! M8: memory files that shrink while they are used, and pages that cannot be had.

use std::os::fd::AsFd;

use pmd::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, InflightArea, LogArea, id};
use rustix::fs::ftruncate;
use zerocopy::IntoBytes;

use crate::guest::{FORMS, FRAMES, GUEST, Guest, MEMORY, NUM, memfd, rung};
use crate::house::{House, eventually};

/// Bytes of a log of all memory.
const LOG: u64 = (GUEST + MEMORY) / 4096 / 8;

/// Whether the front-end was disconnected.
fn dismissed(guest: &mut Guest) -> bool {
    let wait = std::time::Duration::from_millis(1);
    guest.front.0.set_read_timeout(Some(wait)).unwrap();
    let mut byte = [0];
    matches!(std::io::Read::read(&mut guest.front.0, &mut byte), Ok(0))
}

#[test]
fn a_file_truncated_under_traffic_costs_its_port_and_no_other() {
    let house = House::new("short-memory", |_| {});
    for features in FORMS {
        // To nothing, with the rings; to half, with the frames; by a page, in which the next frame lies.
        for left in [0, MEMORY / 2, MEMORY - 4096] {
            let mut guest = Guest::connect(&house.path, features);
            house.lines(&[]);
            guest.ping(100);
            guest.restart();
            ftruncate(&guest.file, left).unwrap();
            if left > 0 {
                guest.offer(GUEST + MEMORY - 2048);
            }
            eventually("the end of the connection", || dismissed(&mut guest));
            let said = house.lines(&["truncated", "retired"]);
            assert!(said.len() == 1 && said[0].contains("guest address 0x40000000"), "{said:?}");
            drop(guest);
            house.stands("a file was truncated");
        }
    }
    house.ends("files were truncated");
}

#[test]
fn a_log_that_is_truncated_costs_its_port_and_no_other() {
    let house = House::new("short-log", |_| {});
    for features in FORMS {
        let mut guest = Guest::connect(&house.path, features);
        house.lines(&[]);
        let log = memfd("hostile-log", LOG);
        let area = LogArea { size: LOG, offset: 0 };
        assert!(guest.front.ask(id::SET_LOG_BASE, area.as_bytes(), &[log.as_fd()]).is_some());
        let logging = features | F_PROTOCOL_FEATURES | F_LOG_ALL;
        assert_eq!(guest.front.tell(id::SET_FEATURES, &logging.to_ne_bytes(), &[]), Some(true));
        guest.ping(100);
        guest.restart();
        ftruncate(&log, 0).unwrap();
        guest.post(FRAMES);
        guest.offer(FRAMES + 4096);
        eventually("the end of the connection", || dismissed(&mut guest));
        let said = house.lines(&["truncated", "retired", "disconnected"]);
        assert!(said.len() == 1 && said[0].contains("dirty log: its file was truncated"), "{said:?}");
        drop(guest);
        house.stands("a log was truncated");
    }
    house.ends("logs were truncated");
}

#[test]
fn a_record_that_is_truncated_costs_its_port_and_no_other() {
    let house = House::new("short-record", |_| {});
    for features in FORMS {
        let mut guest = Guest::connect(&house.path, features);
        house.lines(&[]);
        let record = memfd("hostile-record", 1 << 16);
        let area = InflightArea { size: 1 << 16, rings: 2, num: NUM, ..InflightArea::default() };
        assert_eq!(guest.front.tell(id::SET_INFLIGHT_FD, area.as_bytes(), &[record.as_fd()]), Some(true));
        guest.start();
        ftruncate(&record, 0).unwrap();
        guest.offer(FRAMES + 4096);
        eventually("the end of the connection", || dismissed(&mut guest));
        let said = house.lines(&["truncated", "retired", "disconnected"]);
        assert!(said.len() == 1 && said[0].contains("in-flight record: its file was truncated"), "{said:?}");
        drop(guest);
        house.stands("a record was truncated");
    }
    house.ends("records were truncated");
}

/// A call or error eventfd that the peer has filled, and made to block.
#[test]
fn an_eventfd_that_blocks_stops_no_core() {
    let house = House::new("full", |_| {});
    for features in FORMS {
        let mut guest = Guest::connect(&house.path, features);
        for fd in [&guest.call, &guest.err, &guest.kick] {
            rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        }
        guest.ping(10);
        assert!(rung(&guest.call), "it was called");
        let faults = house.faults();
        for fd in [&guest.call, &guest.err, &guest.kick] {
            let _ = rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes());
            rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::empty()).unwrap();
        }
        guest.restart();
        guest.post(FRAMES);
        guest.offer(FRAMES + 4096);
        // And a fault, of which the other is told.
        guest.restart();
        guest.offer(1);
        eventually("the fault", || house.faults() == faults + 1);
        house.stands_beside("an eventfd is full");
        drop(guest);
        house.stands("an eventfd was full");
    }
    house.ends("eventfds were full");
}
