//! Well-behaved and hostile front-ends come and go in any order: no growth of memory, descriptors, mappings.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pmd::spec::net;
use rustix::fs::ftruncate;

use crate::front::message;
use crate::guest::{FORMS, FRAMES, GUEST, Guest, MEMORY, state};
use crate::house::House;
use crate::race::{Dice, disturb};
use crate::rings;

/// How long; `HOTRING_SOAK_SECS` says otherwise, as `scripts/soak` does.
fn length() -> Duration {
    let secs = std::env::var("HOTRING_SOAK_SECS").ok().and_then(|secs| secs.parse().ok());
    Duration::from_secs(secs.unwrap_or(3))
}

/// Pages of memory of our own that are resident: shared ones are counted as mappings.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// One front-end from its coming to its going.
fn visit(house: &House, dice: &mut Dice) {
    let features = dice.of(&FORMS) | dice.of(&[0, net::F_MRG_RXBUF]);
    let mut guest = Guest::connect(&house.path, features);
    match dice.throw() >> 61 {
        // Well-behaved.
        0 | 1 => drop(guest.ping(dice.throw() >> 56)),
        // A driver that breaks a rule.
        2 | 3 => {
            guest.start();
            rings::any(&guest, (dice.throw() >> 40) as usize);
            guest.kick();
        }
        // One that writes its rings while they are read.
        4 => {
            guest.start();
            let raw = [guest.raw(0), guest.raw(1)];
            (0..20_000).for_each(|_| disturb(dice, &raw, &guest.words, guest.packed()));
        }
        // A file that shrinks.
        5 => {
            guest.ping(5);
            guest.restart();
            ftruncate(&guest.file, dice.of(&[0, 4096, MEMORY / 2])).unwrap();
            guest.offer(dice.of(&[FRAMES, GUEST + MEMORY - 2048]));
            std::thread::sleep(Duration::from_micros(300));
        }
        // Messages of any kind, with descriptors; rings stop in the middle.
        6 => {
            guest.start();
            for _ in 0..50 {
                let payload: Vec<u8> = (0..dice.throw() >> 58).map(|_| (dice.throw() >> 56) as u8).collect();
                let fds = vec![guest.file.as_fd(); (dice.throw() >> 61) as usize];
                guest.front.send(&message((dice.throw() >> 58) as u32, 8, &payload), &fds);
            }
        }
        // Pieces of a message.
        _ => {
            guest.start();
            let whole = message(11, 0, &state(1, 0));
            let cut = (dice.throw() >> 33) as usize % whole.len();
            let _ = guest.front.0.write_all(&whole[..cut]);
        }
    }
}

#[test]
fn random_peers_come_and_go() {
    let house = House::new("soak", |_| {});
    let (mut dice, since) = (Dice(0x5eed_5eed_5eed_5eed), Instant::now());
    let (mut visits, mut settled, mut said) = (0u64, None, Instant::now());
    while since.elapsed() < length() {
        visit(&house, &mut dice);
        visits += 1;
        // What was logged is kept until it is looked at.
        house.lines(&[]);
        // What allocators keep for next time is there by then.
        if settled.is_none() && since.elapsed() > length() / 4 {
            settled = Some(resident_kib());
        }
        if said.elapsed() > Duration::from_secs(60) {
            said = Instant::now();
            println!("{visits} visits in {:?}, {} KiB", since.elapsed(), resident_kib());
        }
    }
    let (then, now) = (settled.expect("a quarter is over"), resident_kib());
    println!("{visits} visits in {:?}, {then} KiB after a quarter, {now} KiB at the end", since.elapsed());
    // A leak of a page a visit would show.
    assert!(now < then + 4096 + visits, "{then} KiB, then {now} KiB, in {visits} visits");
    house.ends("visits of all kinds");
}
