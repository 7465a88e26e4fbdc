//! The in-flight record: a device that ends at any moment, again and again, and the one after it. Every chain
//! that the driver offered comes back, once. (`vhost_crash` ends processes between any two instructions.)

use std::sync::Arc;

use hugepages::{Backing, Buf, Map, PageSize, Table};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::driver::Segment;
use pmd::vring::record::{Area, bytes};
use proptest::prelude::*;

use super::rig::{DATA, FORMS, Form, Guest, Rig};

const SIZE: u16 = 8;

#[derive(Clone, Debug)]
enum Act {
    Offer {
        descs: u8,
        indirect: bool,
        pick: u16,
    },
    /// Pops chains; puts the last ones back.
    Pop {
        chains: u8,
        back: u8,
    },
    Complete(u16),
    Publish,
    Collect,
    Crash,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0u8..4, any::<bool>(), any::<u16>())
            .prop_map(|(descs, indirect, pick)| Act::Offer { descs, indirect, pick }),
        4 => (1u8..5, 0u8..3).prop_map(|(chains, back)| Act::Pop { chains, back }),
        6 => any::<u16>().prop_map(Act::Complete),
        3 => Just(Act::Publish),
        2 => Just(Act::Collect),
        1 => Just(Act::Crash),
    ];
    prop::collection::vec(act, 0..200)
}

/// Where the record lies: not at the beginning of its memory.
fn area(packed: bool) -> Area {
    let backing = Backing { page: PageSize::Base, node: None };
    Area { table: Table::of(Map::shared(4096, backing).unwrap()), at: 512, len: bytes(packed, SIZE) }
}

struct Play {
    rig: Rig,
    guest: Guest,
    area: Area,
    way: Way,
    flying: Vec<Vec<Buf>>,
    out: Vec<u16>,
    /// Indirect tables so far: none is written again soon.
    tables: u64,
}

impl Play {
    fn new(form: Form, features: u64, way: Way) -> Play {
        let mut rig = Rig::new(form, SIZE, features, way);
        let guest = Guest::new(&rig.raw);
        let area = area(form.packed);
        rig.ring.record(&area).unwrap();
        Play { rig, guest, area, way, flying: Vec::new(), out: Vec::new(), tables: 0 }
    }

    /// The ring is gone and opened again, as a front-end opens it that knows nothing.
    fn crash(&mut self) {
        self.flying.drain(..).flatten().for_each(|buf| drop(buf.finish(0)));
        self.rig.reopen(self.way);
        self.rig.ring.record(&self.area).unwrap();
    }

    fn offer(&mut self, descs: u8, indirect: bool, pick: u16) {
        let write = self.way == Way::ToDriver;
        // None at all: a chain without bytes, which is complete as soon as it is popped.
        let len = if descs == 0 { 0 } else { 64 };
        let chain: Vec<Segment> = (0..descs.max(1))
            .map(|i| Segment { addr: DATA + 0x1000 + u64::from(i) * 256, len, write })
            .collect();
        self.tables += 1;
        let table = indirect.then_some(DATA + 0x1_0000 + self.tables % 1024 * 64);
        self.out.extend(self.guest.offer(&self.rig.raw, &chain, table, pick));
        self.guest.publish(&self.rig.raw);
    }

    fn pop(&mut self, chains: u8, back: u8) {
        let mut batch = Batch::default();
        let mut popped = 0;
        while popped < chains && self.rig.pop(&mut batch).is_some() {
            popped += 1;
        }
        let mut whole: Vec<Vec<Buf>> = Vec::new();
        while let Some(buf) = batch.pop_front() {
            if whole.last().is_none_or(|chain| !chain.last().unwrap().more()) {
                whole.push(Vec::new());
            }
            whole.last_mut().unwrap().push(buf);
        }
        // Chains without buffers are complete, and those before them cannot be put back.
        if whole.len() == usize::from(popped) && self.way == Way::ToDriver {
            let mut stash = Batch::default();
            let keep = whole.len().saturating_sub(back.into());
            whole.drain(keep..).flatten().for_each(|buf| stash.push(buf));
            self.rig.ring.unpop(&mut stash);
        }
        self.flying.extend(whole);
    }

    fn complete(&mut self, which: u16) {
        if self.flying.is_empty() {
            return;
        }
        let chain = self.flying.remove(usize::from(which) % self.flying.len());
        chain.into_iter().for_each(|buf| self.rig.ring.settle(buf.finish(1)));
    }

    fn collect(&mut self) {
        while let Some((id, _)) = self.guest.take_used(&self.rig.raw) {
            let at = self.out.iter().position(|out| *out == id).expect("it was out");
            self.out.remove(at);
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Offer { descs, indirect, pick } => self.offer(descs, indirect, pick),
            Act::Pop { chains, back } => self.pop(chains, back),
            Act::Complete(which) => self.complete(which),
            Act::Publish => drop(self.rig.ring.publish()),
            Act::Collect => self.collect(),
            Act::Crash => self.crash(),
        }
        assert_eq!(self.rig.ring.fault(), None);
    }

    /// The last crash, and then everything comes back.
    fn end(mut self) {
        self.crash();
        for _ in 0..3 * SIZE {
            self.pop(4, 0);
            self.complete(1);
            self.rig.ring.publish();
            self.collect();
            assert_eq!(self.rig.ring.fault(), None);
        }
        assert_eq!(self.out, [] as [u16; 0], "chains that were lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_chain_comes_back_once_however_often_the_device_ends(
        acts in acts(),
        form in prop::sample::select(FORMS.to_vec()),
        in_order in any::<bool>(),
        way in prop::sample::select(vec![Way::FromDriver, Way::ToDriver]),
    ) {
        let features = v::F_VERSION_1 | v::F_INDIRECT_DESC | if in_order { v::F_IN_ORDER } else { 0 };
        let mut play = Play::new(form, features, way);
        acts.iter().for_each(|act| play.act(act));
        play.end();
    }

    /// Whatever is in the record, nothing worse than a retired ring comes of it.
    #[test]
    fn m11_any_bytes_for_a_record(
        words in prop::collection::vec(prop_oneof![0u16..12, any::<u16>()], 300),
        at in prop::collection::vec((0usize..300, prop_oneof![0u16..12, any::<u16>()]), 0..40),
        acts in acts(),
        form in prop::sample::select(FORMS.to_vec()),
        way in prop::sample::select(vec![Way::FromDriver, Way::ToDriver]),
    ) {
        use hugepages::Words;
        let mut play = Play::new(form, v::F_VERSION_1, way);
        let memory = play.area.table.window::<u16>(play.area.at, 300).unwrap();
        words.iter().enumerate().for_each(|(i, word)| memory.set(i, *word));
        memory.set(4, 1);
        memory.set(5, SIZE);
        play.crash();
        for (i, act) in acts.iter().enumerate() {
            match act {
                Act::Offer { .. } | Act::Collect => continue,
                Act::Pop { chains, .. } => play.pop(*chains, 0),
                Act::Complete(which) => play.complete(*which),
                Act::Publish => drop(play.rig.ring.publish()),
                Act::Crash => play.crash(),
            }
            // While it runs, too.
            if let Some((at, word)) = at.get(i) {
                memory.set(*at, *word);
            }
        }
    }
}

#[test]
fn an_area_that_is_too_small_is_refused() {
    for form in FORMS {
        let mut rig = Rig::new(form, SIZE, v::F_VERSION_1, Way::ToDriver);
        let whole = area(form.packed);
        let short = Area { len: whole.len - 1, table: Arc::clone(&whole.table), ..whole };
        assert!(rig.ring.record(&short).is_err() && rig.ring.record(&whole).is_ok());
    }
    // As other back-ends have it.
    assert_eq!([bytes(false, 256), bytes(true, 256), bytes(true, 1)], [4160, 8256, 64]);
}
