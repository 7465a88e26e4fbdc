//! T: drivers that break the rules, through a whole port. `pmd/tests/ring/` has every place and every lane of
//! these; here it is the oracle that counts.

use std::os::fd::AsFd;

use pmd::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, InflightArea, LogArea, id};
use pmd::spec::{net, virtio as v};
use pmd::vring::driver::{Desc, Raw};
use zerocopy::IntoBytes;

use crate::guest::{BYTES, FORMS, FRAME, FRAMES, GUEST, Guest, HDR, MEMORY, NUM, rung};
use crate::house::{House, eventually};

/// Where indirect tables are.
const TABLE: u64 = FRAMES - 0x8000;

/// A driver's hand on one ring, from its beginning.
struct Hand {
    raw: Raw,
    packed: bool,
    place: u16,
    heads: u16,
}

impl Hand {
    fn on(guest: &Guest, ring: usize) -> Hand {
        Hand { raw: guest.raw(ring), packed: guest.packed(), place: 0, heads: 0 }
    }

    /// Writes the next descriptor; of a packed ring it is available then.
    fn put(&mut self, desc: Desc) -> u16 {
        let lap = if self.packed { Raw::avail_bits(self.place < NUM) } else { 0 };
        self.raw.set_desc(self.place % NUM, Desc { flags: desc.flags | lap, ..desc });
        self.place += 1;
        self.place - 1
    }

    /// Makes a head of a split ring available.
    fn offer(&mut self, head: u16) {
        if !self.packed {
            self.raw.set_avail(self.heads, head);
            self.heads += 1;
            self.raw.set_avail_idx(self.heads);
        }
    }

    /// One descriptor on its own.
    fn one(&mut self, desc: Desc) {
        let tag = if self.packed { self.place } else { desc.tag };
        let head = self.put(Desc { tag, ..desc });
        self.offer(head);
    }

    /// A chain of descriptors, each of which names the next.
    fn chain(&mut self, descs: &[Desc]) {
        let first = self.place;
        for (i, desc) in descs.iter().enumerate() {
            let next = if i + 1 < descs.len() { v::DESC_F_NEXT } else { 0 };
            let tag = if self.packed { first } else { self.place + 1 };
            self.put(Desc { flags: desc.flags | next, tag, ..*desc });
        }
        self.offer(first);
    }

    /// An indirect table.
    fn table(&mut self, table: &[Desc]) {
        self.raw.set_table(TABLE, table).unwrap();
        self.one(Desc { addr: TABLE, len: 16 * table.len() as u32, flags: v::DESC_F_INDIRECT, tag: 0 });
    }
}

fn data(len: u32) -> Desc {
    Desc { addr: FRAMES + 0x8_0000, len, ..Desc::default() }
}

/// What a driver does, and whether it costs the ring.
type Case = (&'static str, fn(&mut Hand), bool);

const CASES: &[Case] = &[
    ("t1 head outside the ring", |hand| hand.one_as(NUM), true),
    ("t1 head 0xffff", |hand| hand.one_as(0xffff), true),
    ("t2 next outside the table", |hand| hand.linked(&[(64, NUM)]), true),
    ("t3 loop of one", |hand| hand.linked(&[(64, 0)]), true),
    ("t3 loop of two", |hand| hand.linked(&[(64, 1), (64, 0)]), true),
    ("t4 loop of two without bytes", |hand| hand.linked(&[(0, 1), (0, 0)]), true),
    ("t4 every head the same long empty table", Hand::long_tables, false),
    ("t5 zero length, bad address", |hand| hand.one(Desc { addr: u64::MAX, ..data(0) }), false),
    ("t6 nested table", |hand| hand.table(&[Desc { flags: v::DESC_F_INDIRECT, ..data(16) }]), true),
    (
        "t6 table with NEXT",
        |hand| hand.one(Desc { flags: v::DESC_F_INDIRECT | v::DESC_F_NEXT, ..data(16) }),
        true,
    ),
    ("t6 table of 15 bytes", |hand| hand.one(Desc { flags: v::DESC_F_INDIRECT, ..data(15) }), true),
    ("t6 empty table", |hand| hand.one(Desc { flags: v::DESC_F_INDIRECT, ..data(0) }), true),
    ("t6 table too long", |hand| hand.one(Desc { flags: v::DESC_F_INDIRECT, ..data(16 << 16) }), true),
    (
        "t6 table outside memory",
        |hand| hand.one(Desc { addr: GUEST + MEMORY, len: 32, flags: v::DESC_F_INDIRECT, tag: 0 }),
        true,
    ),
    ("t7 address wraps", |hand| hand.one(Desc { addr: u64::MAX, ..data(64) }), true),
    ("t7 length of 4 GiB", |hand| hand.one(data(u32::MAX)), true),
    ("t8 one past the end", |hand| hand.one(Desc { addr: GUEST + MEMORY - 63, ..data(64) }), true),
    ("t8 up to the end", |hand| hand.one(Desc { addr: GUEST + MEMORY - 64, ..data(64) }), false),
    ("t8 one before the beginning", |hand| hand.one(Desc { addr: GUEST - 1, ..data(64) }), true),
    ("t10 header in pieces", |hand| hand.chain(&[data(1), data(3), data(8), data(60)]), false),
    ("t10 runts", Hand::runts, false),
    ("t12 wrong direction", |hand| hand.one(Desc { flags: v::DESC_F_WRITE, ..data(64) }), true),
    ("t14 a head twice", Hand::twice, true),
    ("t15 everything available at once, all NEXT", Hand::all_next, true),
    ("t16 a chain of 300 buffers", |hand| hand.linked_table(300), false),
    ("t16 a frame of 200000 bytes", |hand| hand.one(data(200_000)), false),
    ("t17 offloads that point anywhere", |hand| hand.one(data(64)), false),
];

/// Plays one of the cases, over rings that have just started.
pub(crate) fn any(guest: &Guest, which: usize) {
    CASES[which % CASES.len()].1(&mut Hand::on(guest, 1));
}

impl Hand {
    fn one_as(&mut self, head: u16) {
        self.put(Desc { tag: head, ..data(64) });
        self.offer(head);
    }

    /// Descriptors that name these as the next. A packed ring has no such thing: there the last of all lacks
    /// memory instead.
    fn linked(&mut self, chain: &[(u32, u16)]) {
        for &(len, next) in chain {
            let addr = if self.packed { u64::MAX } else { data(0).addr };
            self.put(Desc { addr, len: len.max(u32::from(self.packed)), flags: v::DESC_F_NEXT, tag: next });
        }
        if self.packed {
            self.put(data(64));
        }
        self.offer(0);
    }

    fn linked_table(&mut self, n: u16) {
        let last = |i: u16| !self.packed && i + 1 < n;
        let entry = |i| Desc {
            flags: if last(i) { v::DESC_F_NEXT } else { 0 },
            tag: if last(i) { i + 1 } else { 0 },
            ..data(100)
        };
        let table: Vec<Desc> = (0..n).map(entry).collect();
        self.table(&table);
    }

    fn long_tables(&mut self) {
        for _ in 0..NUM / 2 {
            let last = |i: u16| !self.packed && i + 1 < 1024;
            let entry = |i| Desc {
                flags: if last(i) { v::DESC_F_NEXT } else { 0 },
                tag: if last(i) { i + 1 } else { 0 },
                ..data(0)
            };
            let table: Vec<Desc> = (0..1024).map(entry).collect();
            self.table(&table);
        }
    }

    fn runts(&mut self) {
        for len in 0..=HDR + 1 {
            self.one(data(len));
        }
    }

    /// Both are available before the device looks: the first is in flight when the second is found.
    fn twice(&mut self) {
        if self.packed {
            self.raw.set_desc(1, Desc { flags: Raw::avail_bits(true), tag: 0, ..data(64) });
            return self.put_first();
        }
        self.put(data(64));
        self.raw.set_avail(0, 0);
        self.raw.set_avail(1, 0);
        self.raw.set_avail_idx(2);
    }

    fn put_first(&mut self) {
        self.put(Desc { tag: 0, ..data(64) });
    }

    fn all_next(&mut self) {
        for _ in 0..NUM {
            let tag = self.place + 1;
            self.put(Desc { flags: v::DESC_F_NEXT, tag, ..data(1) });
        }
        self.raw.set_driver(1, if self.packed { 3 } else { 0xffff });
    }
}

#[test]
fn drivers_that_break_the_rules() {
    let house = House::new("drivers", |_| {});
    for (name, act, costs) in CASES {
        for features in FORMS {
            let mut guest = Guest::connect(&house.path, features);
            // Headers that ask for everything.
            let at = (data(0).addr - GUEST) as usize / 2;
            (0..1024).for_each(|i| hugepages::Words::set(&guest.words, at + i, 0xffff));
            let (faults, _) = (house.faults(), house.lines(&[]));
            guest.start();
            act(&mut Hand::on(&guest, 1));
            guest.kick();
            if *costs {
                eventually(&format!("{name}, {features:#x}"), || rung(&guest.err));
                // Whatever it does now: once.
                Hand::on(&guest, 1).one(data(64));
                guest.kick();
                house.stands_beside(name);
                assert_eq!(house.faults(), faults + 1, "{name}, {features:#x}");
                let said = house.lines(&["retired"]);
                assert!(said.len() <= 1 && said.iter().all(|s| s.contains("rx queue 0")), "{name}: {said:?}");
            } else {
                house.stands_beside(name);
                assert_eq!(house.faults(), faults, "{name}, {features:#x}");
                // The ring goes on.
                guest.restart();
                guest.post(FRAMES);
                guest.offer(FRAMES + 4096);
                eventually(name, || rung(&guest.call));
            }
        }
        house.stands(name);
    }
    house.ends("drivers that break the rules");
}

/// T2, T11, T12: buffers to receive into that are none, while frames come.
#[test]
fn receive_buffers_that_are_none() {
    let house = House::new("receive", |_| {});
    let write = |addr, len| Desc { addr, len, flags: v::DESC_F_WRITE, tag: 0 };
    let cases = [
        ("t11 shorter than the header", write(FRAMES, HDR - 1), false),
        ("t11 as long as the header", write(FRAMES, HDR), false),
        ("t11 shorter than the frame", write(FRAMES, HDR + 10), false),
        ("t5 empty", write(u64::MAX, 0), false),
        ("t12 wrong direction", Desc { flags: 0, ..write(FRAMES, 2048) }, true),
        ("t7 wraps", write(u64::MAX - 10, 2048), true),
        ("t8 past the end", write(GUEST + MEMORY - 2047, 2048), true),
    ];
    for (name, desc, costs) in cases {
        for form in FORMS {
            for features in [form, form | net::F_MRG_RXBUF] {
                let mut guest = Guest::connect(&house.path, features);
                let faults = house.faults();
                guest.start();
                let mut receive = Hand::on(&guest, 0);
                (0..3).for_each(|_| receive.one(desc));
                let mut transmit = Hand::on(&guest, 1);
                (0..NUM / 2).for_each(|_| transmit.one(data(HDR + BYTES)));
                guest.kick();
                house.stands_beside(name);
                if costs {
                    eventually(name, || house.faults() == faults + 1);
                }
                assert_eq!(house.faults(), faults + u64::from(costs), "{name}, {features:#x}");
            }
        }
        house.stands(name);
    }
    house.ends("receive buffers that are none");
}

#[test]
fn t13_the_available_index_jumps() {
    let house = House::new("jump", |_| {});
    for features in FORMS.into_iter().filter(|features| features & v::F_RING_PACKED == 0) {
        for index in [NUM + 1, 0x7fff, 0x8000, 0xffff] {
            let mut guest = Guest::connect(&house.path, features);
            guest.start();
            guest.raw(1).set_avail_idx(index);
            guest.kick();
            eventually("the fault", || rung(&guest.err));
        }
        house.stands("a jump");
    }
    house.ends("jumps");
}

/// T18: frames are received over rings, over the log, over the in-flight record, and sent from them.
#[test]
fn t18_buffers_that_alias_a_ring_or_the_log_or_the_record() {
    let house = House::new("alias", |_| {});
    for form in FORMS {
        for features in [form, form | net::F_MRG_RXBUF] {
            for way in 0..3 {
                let mut guest = Guest::connect(&house.path, features);
                let (record, log) = (GUEST + 0xc_0000, GUEST + 0xe_0000);
                if way == 1 {
                    let offset = record - GUEST;
                    let area = InflightArea {
                        size: 0x1_0000,
                        offset,
                        rings: 2,
                        num: NUM,
                        ..InflightArea::default()
                    };
                    guest.front.tell(id::SET_INFLIGHT_FD, area.as_bytes(), &[guest.file.as_fd()]).unwrap();
                }
                if way == 2 {
                    let area = LogArea { size: (GUEST + MEMORY) / 4096 / 8, offset: log - GUEST };
                    guest.front.ask(id::SET_LOG_BASE, area.as_bytes(), &[guest.file.as_fd()]).unwrap();
                    let on = features | F_PROTOCOL_FEATURES | F_LOG_ALL;
                    assert_eq!(guest.front.tell(id::SET_FEATURES, &on.to_ne_bytes(), &[]), Some(true));
                }
                guest.start();
                let mut receive = Hand::on(&guest, 0);
                let places = guest.areas.iter().flat_map(|a| [a.desc, a.driver & !1, a.device & !1]);
                for addr in places.chain([record, log, log + 0x8000]) {
                    receive.one(Desc { addr, len: FRAME as u32, flags: v::DESC_F_WRITE, tag: 0 });
                }
                let mut transmit = Hand::on(&guest, 1);
                for i in 0..NUM {
                    let areas = &guest.areas[usize::from(i) % 2];
                    let addr = [areas.desc, areas.driver, areas.device, record, log][usize::from(i) % 5];
                    transmit.one(Desc { addr, ..data(HDR + 1000) });
                }
                guest.kick();
                house.stands_beside("aliases");
                // Whatever became of its rings, they come home.
                for ring in 0..2 {
                    assert!(guest.stop_ring(ring).is_some());
                }
            }
        }
        house.stands("aliases");
    }
    house.ends("aliases");
}

/// T20: kicks without end, chains that are wrong, rings that are never emptied.
#[test]
fn t20_storms_cost_the_neighbour_no_frame() {
    let house = House::new("storm", |_| {});
    for features in FORMS {
        let mut guest = Guest::connect(&house.path, features);
        guest.start();
        (0..20_000).for_each(|_| guest.kick());
        // A fault, and a new start over it, again and again.
        for _ in 0..50 {
            guest.restart();
            guest.offer(1);
        }
        house.stands_beside("kicks and faults");
        // All of the ring is empty chains, and it never looks at what was used.
        guest.restart();
        let mut transmit = Hand::on(&guest, 1);
        (0..NUM).for_each(|_| transmit.one(data(0)));
        guest.kick();
        house.stands_beside("empty chains");
    }
    house.ends("storms");
}
