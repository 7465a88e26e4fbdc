//! Live migration of one ring: the bitmap against a true difference of memory. Whoever copies the pages
//! whose bits are set, and those that the guest itself wrote, has the guest's memory in the end; and no bit
//! is set for a page that the device did not write.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hugepages::{Buf, DirtyLog};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::driver::Segment;
use pmd::vring::log::Target;

use super::rig::{DATA, FORMS, Form, Guest, MEMORY, Rig};

const PAGE: usize = 4096;
const PAGES: usize = MEMORY as usize / PAGE;

/// Numbers that differ and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(c"log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

fn read(fd: impl AsFd, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(rustix::io::pread(fd, &mut bytes, 0).unwrap(), len);
    bytes
}

fn differing(a: &[u8], b: &[u8]) -> Vec<bool> {
    a.chunks(PAGE).zip(b.chunks(PAGE)).map(|(a, b)| a != b).collect()
}

/// The front-end that migrates: its copy of memory, and who wrote which page.
struct Migration {
    log: Arc<DirtyLog>,
    file: OwnedFd,
    copy: Vec<u8>,
    guest: Vec<bool>,
    device: Vec<bool>,
}

impl Migration {
    fn begin(rig: &Rig) -> Migration {
        let file = memfd(PAGES as u64 / 8);
        let log = DirtyLog::open(file.try_clone().unwrap(), 0, PAGES as u64 / 8).unwrap();
        let copy = read(rig.table.regions()[0].map.fd(), MEMORY as usize);
        Migration { log: Arc::new(log), file, copy, guest: vec![false; PAGES], device: vec![false; PAGES] }
    }

    fn target(&self) -> Target {
        Target { log: Arc::clone(&self.log), used: None, signal: None }
    }

    /// Takes the bits away and copies pages. Every bit must be the device's doing, if that is `exact`.
    fn sync(&mut self, rig: &Rig, exact: bool) {
        let bits = read(&self.file, PAGES / 8);
        rustix::io::pwrite(&self.file, &[0; PAGES / 8], 0).unwrap();
        let memory = read(rig.table.regions()[0].map.fd(), MEMORY as usize);
        for page in 0..PAGES {
            let bit = rig.place((page * PAGE) as u64) as usize / PAGE;
            let dirty = bits[bit / 8] >> (bit % 8) & 1 == 1;
            assert!(!exact || !dirty || self.device[page], "page {page} is marked and was not written");
            if dirty || std::mem::take(&mut self.guest[page]) {
                let at = page * PAGE..(page + 1) * PAGE;
                self.copy[at.clone()].copy_from_slice(&memory[at]);
            }
        }
    }
}

/// A ring, its driver, and what is in flight, each chain in a vector of its own.
struct Play {
    rig: Rig,
    guest: Guest,
    numbers: Numbers,
    flying: Vec<Vec<Buf>>,
    memory: Vec<u8>,
}

impl Play {
    fn new(form: Form, size: u16, features: u64, way: Way, seed: u64) -> Play {
        let rig = Rig::new(form, size, features, way);
        let guest = Guest::new(&rig.raw);
        let memory = read(rig.table.regions()[0].map.fd(), MEMORY as usize);
        Play { rig, guest, numbers: Numbers(seed), flying: Vec::new(), memory }
    }

    /// The pages that have changed since the last look.
    fn changed(&mut self) -> Vec<bool> {
        let now = read(self.rig.table.regions()[0].map.fd(), MEMORY as usize);
        let changed = differing(&self.memory, &now);
        self.memory = now;
        changed
    }

    fn offer(&mut self, way: Way) {
        for _ in 0..self.numbers.below(8) {
            let n = 1 + self.numbers.below(3);
            let mut chain: Vec<Segment> = (0..n)
                .map(|i| Segment {
                    addr: DATA + self.numbers.below(MEMORY - DATA - 9000),
                    len: 1 + self.numbers.below(if i == 0 { 9000 } else { 300 }) as u32,
                    write: way == Way::ToDriver || way == Way::Both && self.numbers.below(2) == 1,
                })
                .collect();
            chain.sort_by_key(|s| s.write);
            let pick = self.numbers.next() as u16;
            self.guest.offer(&self.rig.raw, &chain, None, pick);
        }
        self.guest.publish(&self.rig.raw);
    }

    fn pop(&mut self) {
        for _ in 0..self.numbers.below(6) {
            let mut batch = Batch::default();
            if self.rig.pop(&mut batch).is_none() {
                break;
            }
            self.flying.push(std::iter::from_fn(|| batch.pop_front()).collect());
        }
    }

    /// Writes to some chain in flight, from its first byte on, and completes it.
    fn complete(&mut self, way: Way) {
        if self.flying.is_empty() {
            return;
        }
        let at = self.numbers.below(self.flying.len() as u64) as usize;
        let chain = self.flying.remove(at);
        let writable: u64 = chain.iter().filter(|b| b.writable()).map(|b| u64::from(b.len())).sum();
        let mut left = if way == Way::FromDriver { 0 } else { self.numbers.below(writable + 1) as usize };
        for mut buf in chain {
            let mut written = 0;
            if buf.writable() && left > 0 {
                let bytes: Vec<u8> =
                    (0..left.min(buf.len() as usize)).map(|_| self.numbers.next() as u8).collect();
                written = buf.write(0, &bytes);
                left -= written;
            }
            self.rig.ring.settle(buf.finish(written as u32));
        }
    }

    fn device(&mut self, way: Way) {
        match self.numbers.below(8) {
            0 | 1 => self.pop(),
            2..=4 => self.complete(way),
            5 | 6 => drop(self.rig.ring.publish()),
            _ => {
                let on = self.numbers.below(2) == 0;
                self.rig.ring.arm(on);
            }
        }
    }

    /// Pages that the device may write without a change: its event area, and used elements without bytes.
    fn rewritten(&self, way: Way) -> impl Iterator<Item = usize> + use<> {
        let areas = self.rig.raw.areas();
        let split = !areas.has(v::F_RING_PACKED);
        let bytes = if split { 6 + 8 * u64::from(areas.size) } else { 4 };
        let (first, last) = (areas.device / PAGE as u64, (areas.device + bytes - 1) / PAGE as u64);
        let some = (first..=last).filter(move |page| way != Way::ToDriver || *page == first || *page == last);
        some.map(|page| page as usize)
    }

    /// Everything comes home, as before a ring is stopped.
    fn drain(&mut self, way: Way) {
        while !self.flying.is_empty() {
            self.complete(way);
        }
        self.rig.ring.publish();
    }

    /// Logging begins; chains in flight are shown to the ring, or not.
    fn log(&mut self, migration: &Migration, shown: bool) {
        let mut held = Batch::default();
        if shown {
            self.flying.drain(..).flatten().for_each(|buf| held.push(buf));
        }
        self.rig.ring.log(Some(migration.target()), &held);
        while let Some(buf) = held.pop_front() {
            let goes_on = self.flying.last().is_some_and(|chain| chain.last().is_some_and(Buf::more));
            if !goes_on {
                self.flying.push(Vec::new());
            }
            self.flying.last_mut().unwrap().push(buf);
        }
    }
}

fn migrate(form: Form, features: u64, way: Way, shown: bool, seed: u64) {
    let mut play = Play::new(form, if form.packed { 300 } else { 512 }, features, way, seed);
    let mut begin = 20;
    // A migration that fails, one after it, and what comes between.
    for _ in 0..2 {
        for _ in 0..begin {
            play.offer(way);
            play.pop();
            play.device(way);
            while play.guest.take_used(&play.rig.raw).is_some() {}
        }
        begin = 5;
        play.changed();
        let mut migration = Migration::begin(&play.rig);
        play.rewritten(way).for_each(|page| migration.device[page] = true);
        let exact = shown || play.flying.is_empty();
        play.log(&migration, shown);
        for _ in 0..150 {
            play.offer(way);
            while play.guest.take_used(&play.rig.raw).is_some() {}
            play.changed().iter().zip(&mut migration.guest).for_each(|(new, all)| *all |= new);
            for _ in 0..4 {
                play.device(way);
            }
            play.changed().iter().zip(&mut migration.device).for_each(|(new, all)| *all |= new);
            if play.numbers.below(4) == 0 {
                migration.sync(&play.rig, exact);
            }
        }
        play.drain(way);
        play.changed().iter().zip(&mut migration.device).for_each(|(new, all)| *all |= new);
        migration.sync(&play.rig, exact);
        let missed: Vec<usize> = differing(&migration.copy, &play.memory)
            .iter()
            .enumerate()
            .filter(|d| *d.1)
            .map(|d| d.0)
            .collect();
        assert!(missed.is_empty(), "{form:?} {features:#x} {way:?}: pages {missed:?} were missed");
        assert!(play.rig.ring.fault().is_none(), "{:?}", play.rig.ring.fault());
        // Switched off, nothing is logged.
        play.rig.ring.log(None, &Batch::default());
        for _ in 0..10 {
            play.offer(way);
            play.pop();
            play.drain(way);
            while play.guest.take_used(&play.rig.raw).is_some() {}
        }
        assert_eq!(read(&migration.file, PAGES / 8), [0; PAGES / 8]);
        assert_eq!(Arc::strong_count(&migration.log), 1, "nobody holds the log any more");
    }
}

#[test]
fn l1_l2_l3_l7_the_copy_is_the_memory_and_no_page_is_marked_in_vain() {
    for (i, form) in FORMS.into_iter().enumerate() {
        for features in [v::F_VERSION_1, v::F_VERSION_1 | v::F_EVENT_IDX, v::F_VERSION_1 | v::F_IN_ORDER] {
            for way in [Way::ToDriver, Way::FromDriver, Way::Both] {
                migrate(form, features, way, true, 0x9e37_79b9_7f4a_7c15 + i as u64);
            }
        }
    }
}

#[test]
fn l3_chains_in_flight_that_nobody_shows_are_not_missed() {
    for form in FORMS {
        migrate(form, v::F_VERSION_1, Way::ToDriver, false, 77);
    }
}

#[test]
fn l5_a_log_that_ends_before_memory_is_not_overrun() {
    for form in FORMS {
        let mut play = Play::new(form, 64, v::F_VERSION_1, Way::ToDriver, 5);
        let file = memfd(4096);
        let log = Arc::new(DirtyLog::open(file.try_clone().unwrap(), 8, 3).unwrap());
        play.rig.ring.log(Some(Target { log, used: Some(u64::MAX - 8), signal: None }), &Batch::default());
        for _ in 0..50 {
            play.offer(Way::ToDriver);
            play.pop();
            play.drain(Way::ToDriver);
            while play.guest.take_used(&play.rig.raw).is_some() {}
        }
        let bytes = read(&file, 4096);
        assert!(bytes[..8].iter().chain(&bytes[11..]).all(|byte| *byte == 0), "{form:?}");
    }
}
