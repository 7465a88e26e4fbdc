//! Drivers that break the rules. The oracle is the same for every case: the ring is retired, once, for
//! the right reason; nothing is lent afterwards; what was lent comes home; nothing panics; nothing that
//! was not complete is published. What only looks odd must not retire it.

use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::driver::{Desc, Raw, Segment};
use pmd::vring::{Fault, MAX_WALK, Way};
use pmd::with_ring;

use crate::rig::{DATA, FORMS, Form, Guest, MEMORY, Rig, plain_forms};

const SIZE: u16 = 256;
/// A feature set for each case: plain, and with everything that changes the paths taken.
const FEATURES: [u64; 2] = [v::F_INDIRECT_DESC, v::F_INDIRECT_DESC | v::F_IN_ORDER | v::F_EVENT_IDX];

/// A broken driver's ring: `good` chains are offered in front of what is wrong, so that the fault comes
/// in each lane of a burst and with buffers out.
struct Case {
    rig: Rig,
    form: Form,
    good: u16,
    /// The good ones are popped in runs, as ports do, if they can be.
    runs: bool,
    /// Descriptors written raw so far, after the good ones.
    place: u16,
}

impl Case {
    fn new(form: Form, size: u16, features: u64, way: Way, good: u16) -> Case {
        let rig = Rig::new(form, size, features, way);
        let mut guest = Guest::new(&rig.raw);
        for i in 0..good {
            let segment = Segment { addr: DATA + u64::from(i) * 64, len: 64, write: way == Way::ToDriver };
            guest.offer(&rig.raw, &[segment], None, 0).expect("a new ring has room");
        }
        if !form.packed {
            guest.publish(&rig.raw);
        }
        Case { rig, form, good, runs: false, place: good }
    }

    fn raw(&self) -> &Raw {
        &self.rig.raw
    }

    /// Writes the next descriptor as it is told; in a packed ring, with the bits that make it available.
    fn put(&mut self, desc: Desc) -> u16 {
        let lap = if self.form.packed { Raw::avail_bits(true) } else { 0 };
        self.raw().set_desc(self.place, Desc { flags: desc.flags | lap, ..desc });
        self.place += 1;
        self.place - 1
    }

    /// Makes one more head available; packed rings have that in the descriptor.
    fn offer(&self, head: u16, n: u16) {
        if !self.form.packed {
            self.raw().set_avail(self.good + n, head);
            self.raw().set_avail_idx(self.good + n + 1);
        }
    }

    /// Pops the good chains.
    fn pop_good(&mut self) -> Batch<hugepages::Buf> {
        let mut out = Batch::default();
        let good = usize::from(self.good);
        if self.runs && good > 0 {
            // The first makes the ring look at what is available.
            self.rig.pop(&mut out);
            let rest = good - out.len();
            self.rig.pop_simple(&mut out, rest);
        }
        while out.len() < good && self.rig.pop(&mut out).is_some() {}
        out
    }

    /// Everything is popped up to the fault, which must be `expected`, and then the oracle is asked.
    #[track_caller]
    fn retires(mut self, what: &str, expected: impl Fn(&Fault) -> bool) {
        let mut out = self.pop_good();
        assert_eq!(out.len(), usize::from(self.good), "{what}");
        if self.runs {
            assert_eq!(self.rig.pop_simple(&mut out, 32), 0, "{what}: nothing simple in {:?}", self.form);
        }
        assert_eq!(self.rig.pop(&mut out), None, "{what} in {:?}", self.form);
        let fault = self.rig.ring.fault();
        assert!(fault.is_some_and(|fault| expected(&fault)), "{what} in {:?}: {fault:?}", self.form);
        self.dead(what, out);
    }

    /// The ring is retired and stays so, whatever the driver does now.
    #[track_caller]
    fn dead(mut self, what: &str, mut out: Batch<hugepages::Buf>) {
        let fault = self.rig.ring.fault();
        assert_eq!(self.rig.ring.lent() as usize, out.len(), "{what}: what it lent for the fault is home");
        let good = Desc { addr: DATA, len: 64, ..Desc::default() };
        for i in 0..SIZE.min(self.rig.size()) {
            let flags = if self.form.packed { Raw::avail_bits(true) } else { 0 };
            self.raw().set_desc(i, Desc { flags, tag: i, ..good });
        }
        if !self.form.packed {
            self.raw().set_avail_idx(self.raw().used_idx());
        }
        let mut more = Batch::default();
        assert_eq!((self.rig.pop(&mut more), more.len()), (None, 0), "{what}: lent after the fault");
        assert_eq!((self.rig.pop_simple(&mut more, 32), more.len()), (0, 0), "{what}: lent after the fault");
        let device: Vec<u16> = (0..2).map(|i| self.raw().device(i)).collect();
        assert!(!self.rig.settle(&mut out), "{what}: a retired ring calls nobody");
        assert!(!self.rig.ring.arm(true) && !self.rig.ring.arm(false));
        assert_eq!(self.rig.ring.lent(), 0, "{what}");
        assert_eq!(device, (0..2).map(|i| self.raw().device(i)).collect::<Vec<_>>(), "{what}: published");
        assert_eq!(self.rig.ring.fault(), fault, "{what}: for one reason, once");
    }

    /// The odd chain is no fault: it is popped with these buffers, and a good one after it.
    #[track_caller]
    fn passes(mut self, what: &str, expected: &[Segment]) {
        let mut out = self.pop_good();
        let mut odd = Batch::default();
        let chain = self.rig.pop(&mut odd);
        assert!(chain.is_some(), "{what} in {:?}: {:?}", self.form, self.rig.ring.fault());
        let lent: Vec<Segment> = odd.iter().map(|buf| self.rig.segment(buf)).collect();
        assert_eq!(lent, expected, "{what}");
        self.rig.settle(&mut out);
        self.rig.settle(&mut odd);
        assert_eq!((self.rig.ring.lent(), self.rig.ring.fault()), (0, None), "{what}");
    }
}

/// Runs a case in every form, with every feature set, behind 0 to 4 good chains.
fn everywhere(way: Way, mut run: impl FnMut(Case)) {
    for form in FORMS {
        for features in FEATURES {
            for (good, runs) in [(0, false), (1, false), (3, false), (4, true)] {
                run(Case { runs, ..Case::new(form, SIZE, features, way, good) });
            }
        }
    }
}

fn data(len: u32) -> Desc {
    Desc { addr: DATA, len, ..Desc::default() }
}

#[test]
fn t1_head_or_id_outside_the_ring() {
    for head in [SIZE, SIZE + 1, 0x7fff, 0x8000, 0xffff] {
        everywhere(Way::FromDriver, |mut case| {
            case.put(Desc { tag: head, ..data(64) });
            case.offer(head, 0);
            case.retires("head", |f| *f == Fault::HeadRange(head));
        });
        // The id that counts is that of a packed chain's last descriptor.
        everywhere(Way::FromDriver, |mut case| {
            if case.form.packed {
                case.put(Desc { flags: v::DESC_F_NEXT, tag: 0, ..data(64) });
                case.put(Desc { tag: head, ..data(64) });
                case.retires("id of a chain", |f| *f == Fault::HeadRange(head));
            }
        });
    }
}

#[test]
fn t2_next_outside_the_table() {
    for next in [SIZE, 0x8000, 0xffff] {
        everywhere(Way::FromDriver, |mut case| {
            if !case.form.packed {
                let head = case.put(Desc { flags: v::DESC_F_NEXT, tag: next, ..data(64) });
                case.offer(head, 0);
                case.retires("next", |f| *f == Fault::NextRange(next));
            }
        });
    }
    for next in [3, 4, 255, 0xffff] {
        everywhere(Way::FromDriver, |mut case| {
            if !case.form.packed {
                let table = [
                    Desc { flags: v::DESC_F_NEXT, tag: 1, ..data(64) },
                    Desc { flags: v::DESC_F_NEXT, tag: next, ..data(64) },
                    data(64),
                ];
                indirect(&mut case, &table);
                case.retires("next in a table", |f| *f == Fault::NextRange(next));
            }
        });
    }
}

/// Offers an indirect table at a fixed place.
fn indirect(case: &mut Case, table: &[Desc]) {
    const AT: u64 = DATA + 0x8000;
    case.raw().set_table(AT, table).unwrap();
    let len = 16 * table.len() as u32;
    let tag = case.place;
    let head = case.put(Desc { addr: AT, len, flags: v::DESC_F_INDIRECT, tag });
    case.offer(head, 0);
}

#[test]
fn t3_and_t4_loops_with_and_without_bytes() {
    for len in [0, 1, 64] {
        // A loop of one, of two, of the whole table.
        for round in [1, 2, SIZE] {
            everywhere(Way::FromDriver, |case| {
                // The loop of all leads over the good ones' descriptors.
                if case.form.packed || (round == SIZE && case.good > 0) {
                    return;
                }
                let first = if round == SIZE { 0 } else { case.place };
                for i in 0..round {
                    let next = if i + 1 == round { first } else { first + i + 1 };
                    case.raw().set_desc(first + i, Desc { flags: v::DESC_F_NEXT, tag: next, ..data(len) });
                }
                case.offer(first, 0);
                case.retires("loop", |f| *f == Fault::Loop(first));
            });
        }
        everywhere(Way::FromDriver, |mut case| {
            if !case.form.packed {
                let head = case.place;
                let table = [
                    Desc { flags: v::DESC_F_NEXT, tag: 1, ..data(len) },
                    Desc { flags: v::DESC_F_NEXT, tag: 0, ..data(len) },
                ];
                indirect(&mut case, &table);
                case.retires("loop in a table", |f| *f == Fault::Loop(head));
            }
        });
    }
}

#[test]
fn t4_heads_that_share_a_long_chain() {
    // The table is walked up to a bound, not to its end; the head comes back and the ring goes on.
    for form in FORMS {
        for (len, n) in [(0, 1024), (0, 1025), (0, 8192), (1, 8192)] {
            let features = v::F_INDIRECT_DESC;
            let mut case = Case::new(form, 8192, features, Way::FromDriver, 0);
            let entry = |i: u16| {
                let more = !form.packed && i + 1 < n;
                let flags = if more { v::DESC_F_NEXT } else { 0 };
                Desc { flags, tag: if more { i + 1 } else { 0 }, ..data(len) }
            };
            let mut table: Vec<Desc> = (0..n).map(entry).collect();
            if n > MAX_WALK as u16 {
                // Never looked at, so no fault.
                table[MAX_WALK as usize] = Desc { addr: u64::MAX, len: 1, ..table[MAX_WALK as usize] };
            }
            indirect(&mut case, &table);
            let mut out = Batch::default();
            let chain = case.rig.pop(&mut out).expect("no fault");
            assert_eq!((chain.overflow, chain.bytes, out.len()), (n > 1024, 0, 0), "{n} in {form:?}");
            case.rig.settle(&mut out);
            Guest::new(case.raw()).skip(case.raw());
        }
    }
}

#[test]
fn t5_empty_receive_chains_between_others_that_are_put_back() {
    for form in plain_forms() {
        for features in FEATURES {
            let Rig { mut ring, raw, .. } = Rig::new(form, SIZE, features, Way::ToDriver);
            let mut guest = Guest::new(&raw);
            let base = ring.base();
            let lens = [64, 64, 0, 64, 0, 0, 64];
            let mut posted = Vec::new();
            for len in lens {
                let segment = Segment { addr: DATA, len, write: true };
                posted.push(guest.offer(&raw, &[segment], None, 0).unwrap());
            }
            guest.publish(&raw);
            let mut stash = Batch::default();
            while with_ring!(&mut ring, ring => ring.pop(&mut stash)).is_some() {}
            ring.unpop(&mut stash);
            assert_eq!((ring.base() & 0xffff, ring.lent()), (base & 0xffff, 0), "{form:?}");
            // Popped again, one at a time, they come back once each.
            for _ in lens {
                assert!(with_ring!(&mut ring, ring => ring.pop(&mut stash)).is_some());
                while let Some(buf) = stash.pop_front() {
                    ring.settle(buf.finish(0));
                }
            }
            ring.publish();
            let back: Vec<u16> = std::iter::from_fn(|| guest.take_used(&raw)).map(|(id, _)| id).collect();
            assert_eq!((back, ring.fault()), (posted, None), "{form:?}");
        }
    }
}

#[test]
fn t5_a_zero_length_descriptor_may_have_any_address() {
    for addr in [0, DATA, MEMORY, u64::MAX] {
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let head = case.put(Desc { addr, len: 0, flags: 0, tag });
            case.offer(head, 0);
            case.passes("one of zero length", &[]);
        });
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let mut chain =
                [data(10), Desc { addr, ..Desc::default() }, Desc { addr: DATA + 32, ..data(20) }];
            for (i, desc) in chain.iter_mut().enumerate() {
                desc.flags = if i < 2 { v::DESC_F_NEXT } else { 0 };
                desc.tag = if case.form.packed { tag } else { tag + i as u16 + 1 };
            }
            let head = case.place;
            for desc in chain {
                case.put(desc);
            }
            case.offer(head, 0);
            case.passes(
                "zero length between others",
                &[Segment::read(DATA, 10), Segment::read(DATA + 32, 20)],
            );
        });
    }
}

#[test]
fn t6_indirect_tables() {
    let good = [data(64)];
    // Nested.
    everywhere(Way::FromDriver, |mut case| {
        indirect(&mut case, &[Desc { flags: v::DESC_F_INDIRECT, ..data(16) }]);
        case.retires("nested", |f| *f == Fault::Indirect);
    });
    // With NEXT.
    everywhere(Way::FromDriver, |mut case| {
        case.raw().set_table(DATA + 0x8000, &good).unwrap();
        let flags = v::DESC_F_INDIRECT | v::DESC_F_NEXT;
        let tag = case.place;
        let head = case.put(Desc { addr: DATA + 0x8000, len: 16, flags, tag });
        case.put(Desc { tag, ..data(64) });
        case.offer(head, 0);
        case.retires("with NEXT", |f| *f == Fault::Indirect);
    });
    // Lengths.
    for len in [0, 1, 15, 17, 31, 16 * 1024 + 1, 16 * 1025, u32::MAX, u32::MAX - 15] {
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let head = case.put(Desc { addr: DATA, len, flags: v::DESC_F_INDIRECT, tag });
            case.offer(head, 0);
            case.retires("table length", |f| *f == Fault::IndirectLength(len));
        });
    }
    // Places.
    for addr in [MEMORY, MEMORY - 16 + 1, u64::MAX, u64::MAX - 31, MEMORY - 8] {
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let head = case.put(Desc { addr, len: 32, flags: v::DESC_F_INDIRECT, tag });
            case.offer(head, 0);
            case.retires("table outside memory", |f| matches!(f, Fault::Memory(_)));
        });
    }
    // Without the feature.
    for form in FORMS {
        let mut case = Case::new(form, SIZE, 0, Way::FromDriver, 2);
        indirect(&mut case, &good);
        case.retires("not negotiated", |f| *f == Fault::Indirect);
    }
}

#[test]
fn t7_addresses_and_lengths_that_wrap() {
    for (addr, len) in [
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 63, 64),
        (u64::MAX - 0xffff_ffff, u32::MAX),
        (DATA, u32::MAX),
        (0, u32::MAX),
        (MEMORY, 1),
        (1 << 63, 64),
    ] {
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let head = case.put(Desc { addr, len, flags: 0, tag });
            case.offer(head, 0);
            case.retires("address", |f| matches!(f, Fault::Memory(_)));
        });
        everywhere(Way::FromDriver, |mut case| {
            indirect(&mut case, &[Desc { addr, len, ..Desc::default() }]);
            case.retires("address in a table", |f| matches!(f, Fault::Memory(_)));
        });
    }
}

#[test]
fn t7_a_chain_of_more_than_4_gib() {
    // Each buffer is good, and as long as the memory allows: 261 of them pass 2^32.
    let memory = 16 * MEMORY;
    let len = (memory - DATA) as u32;
    let n = (1u64 << 32) / u64::from(len) + 1;
    for form in FORMS {
        let rig = Rig::with_memory(form, SIZE, v::F_INDIRECT_DESC, Way::FromDriver, memory);
        let mut case = Case { rig, form, good: 0, runs: false, place: 0 };
        let at = case.place;
        let table: Vec<Desc> = (0..n)
            .map(|i| {
                let next = !form.packed && i + 1 < n;
                let flags = if next { v::DESC_F_NEXT } else { 0 };
                Desc { addr: DATA, len, flags, tag: if next { i as u16 + 1 } else { 0 } }
            })
            .collect();
        indirect(&mut case, &table);
        case.retires("total", |f| *f == Fault::TooLong(at));
    }
}

#[test]
fn t8_edges_of_regions() {
    let last = MEMORY - 1;
    everywhere(Way::FromDriver, |mut case| {
        let tag = case.place;
        let head = case.put(Desc { addr: last, len: 1, flags: 0, tag });
        case.offer(head, 0);
        case.passes("last byte", &[Segment::read(last, 1)]);
    });
    for (addr, len) in [(last, 2), (last - 1, 3), (MEMORY - 64, 65)] {
        everywhere(Way::FromDriver, |mut case| {
            let tag = case.place;
            let head = case.put(Desc { addr, len, flags: 0, tag });
            case.offer(head, 0);
            case.retires("past the end", |f| matches!(f, Fault::Memory(_)));
        });
    }
    // Over the border of two regions: in two pieces, each inside its own. Only checked rings have one.
    everywhere(Way::FromDriver, |mut case| {
        if case.form.translated || case.rig.table.regions().len() == 1 {
            return;
        }
        let border = case.rig.table.regions()[1].gpa;
        let tag = case.place;
        let head = case.put(Desc { addr: border - 10, len: 30, flags: 0, tag });
        case.offer(head, 0);
        case.passes("border", &[Segment::read(border - 10, 10), Segment::read(border, 20)]);
    });
}

#[test]
fn t10_a_frame_in_1_to_12_pieces() {
    for pieces in 1..=12u16 {
        everywhere(Way::FromDriver, |mut case| {
            let (head, form) = (case.place, case.form);
            let mut expected = Vec::new();
            for i in 0..pieces {
                let segment = Segment::read(DATA + u64::from(i) * 100, u32::from(i) + 1);
                expected.push(segment);
                let more = i + 1 < pieces;
                let tag = if form.packed { head } else { head + i + 1 };
                let flags = if more { v::DESC_F_NEXT } else { 0 };
                case.put(Desc { addr: segment.addr, len: segment.len, flags, tag });
            }
            case.offer(head, 0);
            case.passes("pieces", &expected);
        });
    }
}

#[test]
fn t12_buffers_of_the_wrong_direction() {
    let (read, write) = (0, v::DESC_F_WRITE);
    for (way, chain) in [
        (Way::FromDriver, vec![write]),
        (Way::FromDriver, vec![read, write]),
        (Way::ToDriver, vec![read]),
        (Way::ToDriver, vec![write, read]),
        (Way::Both, vec![write, read]),
        (Way::Both, vec![read, write, read]),
    ] {
        for len in [0, 64] {
            everywhere(way, |mut case| {
                let (head, form) = (case.place, case.form);
                for (i, flags) in chain.iter().enumerate() {
                    let more = i + 1 < chain.len();
                    let tag = if form.packed { head } else { head + i as u16 + 1 };
                    case.put(Desc { flags: flags | if more { v::DESC_F_NEXT } else { 0 }, tag, ..data(len) });
                }
                case.offer(head, 0);
                case.retires("direction", |f| *f == Fault::Direction(head));
            });
            everywhere(way, |mut case| {
                let (head, form) = (case.place, case.form);
                if form.packed && way == Way::FromDriver {
                    // WRITE means nothing in such a table: see `indirect` in vring/packed.rs.
                    return;
                }
                let entry = |(i, flags): (usize, &u16)| {
                    let more = !form.packed && i + 1 < chain.len();
                    let next = if more { v::DESC_F_NEXT } else { 0 };
                    Desc { flags: flags | next, tag: if more { i as u16 + 1 } else { 0 }, ..data(len) }
                };
                let table: Vec<Desc> = chain.iter().enumerate().map(entry).collect();
                indirect(&mut case, &table);
                if form.packed && way == Way::FromDriver {
                    // DPDK's driver leaves WRITE set there: it is overlooked, and nothing may be written.
                    let lent = if len > 0 { chain.len() } else { 0 };
                    return case.passes("WRITE in a table", &vec![Segment::read(DATA, len); lent]);
                }
                case.retires("direction in a table", |f| *f == Fault::Direction(head));
            });
        }
    }
}

#[test]
fn t13_the_available_index_jumps() {
    for form in FORMS.into_iter().filter(|form| !form.packed) {
        for features in FEATURES {
            // From nothing: more than the ring, backwards.
            for index in [SIZE + 1, 0x7fff, 0x8000, 0xffff] {
                let case = Case::new(form, SIZE, features, Way::FromDriver, 0);
                case.raw().set_avail_idx(index);
                case.retires("index", |f| matches!(f, Fault::AvailJump { .. }));
            }
            // With chains out: what the device has and what is offered is more than the ring.
            for index in [SIZE + 1, SIZE + 4, 0, 3, 0xffff] {
                let mut case = Case::new(form, SIZE, features, Way::FromDriver, 4);
                let mut out = Batch::default();
                while case.rig.pop(&mut out).is_some() {}
                assert_eq!(case.rig.ring.fault(), None);
                case.raw().set_avail_idx(index);
                let mut none = Batch::default();
                assert_eq!(case.rig.pop(&mut none), None);
                assert!(matches!(case.rig.ring.fault(), Some(Fault::AvailJump { .. })), "{index}");
                case.dead("index with chains out", out);
            }
        }
    }
}

#[test]
fn t13_more_descriptors_than_the_ring_has() {
    // A packed ring has no index to jump: the driver offers places again that the device still has.
    for form in FORMS.into_iter().filter(|form| form.packed) {
        for features in FEATURES {
            let mut case = Case::new(form, 8, features, Way::FromDriver, 0);
            for i in 0..8 {
                case.put(Desc { tag: i, ..data(64) });
            }
            let mut out = Batch::default();
            for _ in 0..8 {
                assert!(case.rig.pop(&mut out).is_some());
            }
            case.raw().set_desc(0, Desc { flags: Raw::avail_bits(false), tag: 0, ..data(64) });
            let mut none = Batch::default();
            assert_eq!((case.rig.pop(&mut none), none.len()), (None, 0));
            let fault = case.rig.ring.fault();
            assert!(matches!(fault, Some(Fault::AvailJump { .. } | Fault::Duplicate(0))), "{fault:?}");
            case.dead("overrun", out);
        }
    }
}

/// Offers `head` once more, as the `n`th after the good ones.
fn again(case: &mut Case, head: u16, n: u16) {
    if case.form.packed {
        case.put(Desc { tag: head, ..data(64) });
    } else {
        case.offer(head, n);
    }
}

#[test]
fn t14_the_same_head_twice() {
    // While it is in flight, in each lane of a burst.
    everywhere(Way::FromDriver, |mut case| {
        if case.good > 0 {
            let head = case.good - 1;
            again(&mut case, head, 0);
            case.retires("in flight", |f| *f == Fault::Duplicate(head));
        }
    });
    // Nothing of it is out any more, whether the driver can know or not: no fault.
    for publish in [false, true] {
        everywhere(Way::FromDriver, |mut case| {
            let mut out = case.pop_good();
            if case.good == 0 {
                return;
            }
            while let Some(buf) = out.pop_front() {
                case.rig.ring.settle(buf.finish(0));
            }
            if publish {
                case.rig.ring.publish();
            }
            again(&mut case, 0, 0);
            assert!(case.rig.pop(&mut out).is_some(), "{:?}", case.rig.ring.fault());
            case.rig.settle(&mut out);
        });
    }
}

#[test]
fn t14_a_head_that_waits_for_its_turn() {
    // In order: the second chain is complete and waits for the first. Its head is in flight.
    for form in FORMS {
        for len in [0, 64] {
            let features = v::F_IN_ORDER | v::F_INDIRECT_DESC;
            let mut case = Case::new(form, SIZE, features, Way::FromDriver, 1);
            let tag = case.place;
            let second = case.put(Desc { tag, ..data(len) });
            case.offer(second, 0);
            let (mut first, mut other) = (Batch::default(), Batch::default());
            assert!(case.rig.pop(&mut first).is_some() && case.rig.pop(&mut other).is_some());
            while let Some(buf) = other.pop_front() {
                case.rig.ring.settle(buf.finish(0));
            }
            // Offered again, and longer than it was.
            if form.packed {
                case.put(Desc { flags: v::DESC_F_NEXT, tag, ..data(8) });
                case.put(Desc { flags: v::DESC_F_NEXT, tag, ..data(8) });
            }
            again(&mut case, second, 1);
            assert_eq!(case.rig.pop(&mut other), None, "{form:?}, {len} bytes");
            assert_eq!(case.rig.ring.fault(), Some(Fault::Duplicate(second)));
            case.dead("waiting", first);
        }
    }
}

#[test]
fn t15_packed_rings() {
    for form in FORMS.into_iter().filter(|form| form.packed) {
        for features in FEATURES {
            // Every descriptor goes on in the next.
            let mut case = Case::new(form, SIZE, features, Way::FromDriver, 0);
            for _ in 0..SIZE {
                case.put(Desc { flags: v::DESC_F_NEXT, ..data(64) });
            }
            case.retires("all NEXT", |f| *f == Fault::Loop(0));
            // Wrap counters that do not belong to this lap: nothing is available, nothing is wrong.
            for bits in [Raw::avail_bits(false), Raw::used_bits(false), Raw::used_bits(true)] {
                let mut case = Case::new(form, SIZE, features, Way::FromDriver, 0);
                for i in 0..SIZE {
                    case.raw().set_desc(i, Desc { flags: bits, tag: i, ..data(64) });
                }
                let mut out = Batch::default();
                assert_eq!((case.rig.pop(&mut out), case.rig.ring.fault()), (None, None), "{bits:#x}");
            }
            // Events that are nowhere in the ring, and flags that mean nothing.
            for (place, flags) in [
                (0x7fff, v::EVENT_DESC),
                (0xffff, v::EVENT_DESC),
                (SIZE, v::EVENT_DESC),
                (SIZE | 1 << 15, v::EVENT_DESC),
                (0, 3),
                (0xffff, 0xffff),
            ] {
                let case = Case::new(form, SIZE, features, Way::FromDriver, 4);
                case.raw().set_driver(0, place);
                case.raw().set_driver(1, flags);
                case.passes_with_events();
            }
        }
    }
}

impl Case {
    /// Goes round the ring several times in odd steps, whatever the event area says.
    fn passes_with_events(mut self) {
        let mut guest = Guest::new(self.raw());
        for i in 0..self.good {
            let segment = Segment::read(DATA + u64::from(i) * 64, 64);
            guest.offer(&self.rig.raw, &[segment], None, 0).unwrap();
        }
        for round in 0..300u16 {
            let mut out = Batch::default();
            while self.rig.pop(&mut out).is_some() {}
            self.rig.settle(&mut out);
            while guest.take_used(&self.rig.raw).is_some() {}
            for _ in 0..round % 7 + 1 {
                guest.offer(&self.rig.raw, &[Segment::read(DATA, 64)], None, round).unwrap();
            }
        }
        assert_eq!((self.rig.ring.lent(), self.rig.ring.fault()), (0, None));
    }
}

#[test]
fn t16_a_chain_of_more_buffers_than_a_batch_holds() {
    for form in FORMS {
        for features in FEATURES {
            for n in [256u16, 257, 1000, 1024] {
                let mut case = Case::new(form, SIZE, features, Way::FromDriver, 3);
                let head = case.place;
                let entry = |i: u16| {
                    let more = !form.packed && i + 1 < n;
                    let flags = if more { v::DESC_F_NEXT } else { 0 };
                    Desc { flags, tag: if more { i + 1 } else { 0 }, ..data(60) }
                };
                let table: Vec<Desc> = (0..n).map(entry).collect();
                indirect(&mut case, &table);
                let mut out = Batch::default();
                for _ in 0..3 {
                    assert!(case.rig.pop(&mut out).is_some());
                }
                // Not beside others: it waits for a batch of its own.
                assert_eq!((case.rig.pop(&mut out), case.rig.ring.fault()), (None, None));
                assert_eq!((out.len(), case.rig.ring.lent()), (3, 3));
                case.rig.settle(&mut out);
                let chain = case.rig.pop(&mut out).expect("alone in its batch");
                assert_eq!((chain.id, chain.overflow), (head, n > 256));
                assert_eq!(out.len(), if n > 256 { 0 } else { 256 });
                case.rig.settle(&mut out);
                assert_eq!((case.rig.ring.lent(), case.rig.ring.fault()), (0, None));
                // Its head comes back, whatever became of it.
                let mut guest = Guest::new(case.raw());
                for _ in 0..4 {
                    guest.skip(case.raw());
                }
            }
        }
    }
}
