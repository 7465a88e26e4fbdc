//! A ring behind an IOMMU: what it asks for, how often, what it does with the answers, and what it says of
//! addresses that are taken away.

use pmd::Batch;
use pmd::spec::vhost_user::iotlb::{READ, WRITE};
use pmd::spec::virtio as v;
use pmd::vring::driver::Segment;
use pmd::vring::iotlb::{Change, Entry, MAX_ASKED, Miss, Want};
use pmd::vring::{Chain, Fault, Way};
use pmd::with_ring;

use super::rig::{DATA, FORMS, Form, Guest, Rig};

const PAGE: u64 = 4096;

/// A ring that was told nothing yet.
struct Play {
    rig: Rig,
    guest: Guest,
}

impl Play {
    fn new(form: Form, way: Way) -> Play {
        let rig = Rig::new(form, 256, v::F_VERSION_1, way);
        let guest = Guest::new(&rig.raw);
        Play { rig, guest }
    }

    fn offer(&mut self, addr: u64, len: u32, write: bool) {
        self.guest.offer(&self.rig.raw, &[Segment { addr, len, write }], None, 0).unwrap();
        self.guest.publish(&self.rig.raw);
    }

    /// Pops once, without answers.
    fn pop(&mut self, out: &mut Batch<hugepages::Buf>) -> Option<Chain> {
        with_ring!(&mut self.rig.ring, ring => ring.pop(out))
    }

    fn wants(&mut self) -> Vec<Want> {
        let mut wants = Vec::new();
        self.rig.ring.wants(&mut wants);
        wants
    }

    fn add(&mut self, page: u64, perm: u8) {
        let gpa = self.rig.place(page);
        self.rig.ring.change(Change::Add(Entry { first: page, last: page + PAGE - 1, gpa, perm }));
    }
}

fn translated() -> impl Iterator<Item = Form> {
    FORMS.into_iter().filter(|form| form.translated)
}

fn want(iova: u64, perm: u8) -> Want {
    Want::Translation(Miss { iova, perm })
}

#[test]
fn a_chain_stays_until_all_of_it_is_known_and_each_page_is_asked_for_once() {
    for form in translated() {
        let mut play = Play::new(form, Way::ToDriver);
        let mut out = Batch::default();
        play.offer(DATA + 100, 2 * PAGE as u32, true);
        for _ in 0..5 {
            assert!(play.pop(&mut out).is_none() && out.is_empty() && play.rig.ring.blocked());
        }
        // The one it stumbled over, and what it saw ahead.
        let pages = [DATA, DATA + PAGE, DATA + 2 * PAGE];
        assert_eq!(play.wants(), pages.map(|page| want(page, WRITE)));
        for page in pages {
            assert!(play.pop(&mut out).is_none());
            play.add(page, READ | WRITE);
        }
        assert!(play.pop(&mut out).is_some() && play.wants().is_empty());
        assert_eq!(play.rig.ring.lent() as usize, out.len());
        play.rig.settle(&mut out);
        assert_eq!((play.rig.ring.lent(), play.rig.ring.fault()), (0, None));
    }
}

#[test]
fn what_is_taken_away_is_in_use_until_it_is_home_and_never_lent_again() {
    for form in translated() {
        for way in [Way::ToDriver, Way::FromDriver] {
            let mut play = Play::new(form, way);
            let mut out = Batch::default();
            for page in [0, 1, 2] {
                play.add(DATA + page * PAGE, READ | WRITE);
                play.offer(DATA + page * PAGE + 10, 50, way == Way::ToDriver);
            }
            assert!(play.pop(&mut out).is_some());
            let first = (DATA, DATA + PAGE - 1);
            let ring = &play.rig.ring;
            assert!(ring.overlaps(first.0, first.1) && ring.overlaps(0, u64::MAX));
            assert!(ring.overlaps(DATA + 59, DATA + 59) && !ring.overlaps(DATA + 60, u64::MAX));
            assert!(!ring.overlaps(0, DATA + 9));
            play.rig.ring.change(Change::Remove(0, u64::MAX));
            let mut more = Batch::default();
            assert!(play.pop(&mut more).is_none() && more.is_empty(), "nothing is known any more");
            assert!(play.rig.ring.overlaps(first.0, first.1), "still out");
            play.rig.settle(&mut out);
            assert!(!play.rig.ring.overlaps(0, u64::MAX));
            // Elsewhere now, and lent from there.
            play.add(DATA + PAGE, READ | WRITE);
            assert!(play.pop(&mut out).is_some());
            play.rig.settle(&mut out);
            assert_eq!((play.rig.ring.lent(), play.rig.ring.fault()), (0, None));
        }
    }
}

#[test]
fn what_is_refused_or_may_not_be_accessed_like_that_retires_the_ring() {
    for form in translated() {
        for short in [false, true] {
            let mut play = Play::new(form, Way::ToDriver);
            let mut out = Batch::default();
            if short {
                play.add(DATA, READ);
            }
            play.offer(DATA, 64, true);
            assert!(play.pop(&mut out).is_none());
            assert_eq!(play.wants(), [want(DATA, WRITE)]);
            if short {
                play.add(DATA, READ);
            } else {
                // Of something that it does not need, it takes no notice.
                play.rig.ring.change(Change::Refuse(Miss { iova: DATA + PAGE, perm: WRITE }));
                assert!(play.pop(&mut out).is_none() && play.rig.ring.fault().is_none());
                play.rig.ring.change(Change::Refuse(Miss { iova: DATA, perm: WRITE }));
            }
            assert!(play.pop(&mut out).is_none() && out.is_empty());
            assert!(matches!(play.rig.ring.fault(), Some(Fault::Memory(_))));
            assert_eq!(play.wants(), [Want::Denied(Miss { iova: DATA, perm: WRITE })]);
            assert_eq!(play.rig.ring.lent(), 0);
        }
    }
}

#[test]
fn a_ring_asks_for_so_much_and_no_more() {
    for form in translated() {
        let mut play = Play::new(form, Way::FromDriver);
        let mut out = Batch::default();
        for page in 0..100 {
            play.offer(DATA + page * PAGE, 64, false);
        }
        for _ in 0..100 {
            assert!(play.pop(&mut out).is_none());
            play.rig.ring.foresee();
        }
        assert_eq!(play.wants().len(), MAX_ASKED);
        // Forgotten, it is asked for again.
        play.rig.ring.change(Change::Clear);
        assert!(play.pop(&mut out).is_none());
        assert!(play.wants().contains(&want(DATA, READ)));
    }
}
