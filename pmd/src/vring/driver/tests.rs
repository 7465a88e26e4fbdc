//! The driver's side against devices that are not ours: `virtio-queue` (split), and models that do what
//! the specification says with one word at a time (split in order, packed).

use std::collections::VecDeque;
use std::sync::Arc;

use hugepages::{Backing, Map, PageSize, Table};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::*;

/// A chain as a device sees it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    id: u16,
    descs: u16,
    chain: Vec<Segment>,
}

trait Device {
    fn pop(&mut self) -> Option<Seen>;
    /// One used element for chains that take `descs` places; for a batch that of its last chain.
    fn push(&mut self, id: u16, len: u32, chains: u16, descs: u16);
    fn wants_call(&mut self) -> bool;
    /// Whether something is available, with kicks asked for.
    fn arm(&mut self) -> bool;
    fn disarm(&mut self);
}

struct VirtioQueue {
    queue: Queue,
    memory: GuestMemoryMmap,
}

impl VirtioQueue {
    fn new(areas: &Areas, table: &Arc<Table>) -> Self {
        let map = &table.regions()[0].map;
        let file = std::fs::File::from(map.fd().try_clone_to_owned().unwrap());
        let range = (GuestAddress(0), map.len(), Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut queue = Queue::new(areas.size).unwrap();
        let halves = |a: u64| (Some(a as u32), Some((a >> 32) as u32));
        let (low, high) = halves(areas.desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(areas.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(areas.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(areas.has(v::F_EVENT_IDX));
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        VirtioQueue { queue, memory }
    }
}

impl Device for VirtioQueue {
    fn pop(&mut self) -> Option<Seen> {
        let chain = self.queue.pop_descriptor_chain(&self.memory)?;
        let id = chain.head_index();
        let segment = |d: virtio_queue::desc::split::Descriptor| Segment {
            addr: d.addr().0,
            len: d.len(),
            write: d.is_write_only(),
        };
        Some(Seen { id, descs: 1, chain: chain.map(segment).collect() })
    }
    fn push(&mut self, id: u16, len: u32, _: u16, _: u16) {
        self.queue.add_used(&self.memory, id, len).unwrap();
    }
    fn wants_call(&mut self) -> bool {
        self.queue.needs_notification(&self.memory).unwrap()
    }
    fn arm(&mut self) -> bool {
        self.queue.enable_notification(&self.memory).unwrap()
    }
    fn disarm(&mut self) {
        self.queue.disable_notification(&self.memory).unwrap();
    }
}

struct SplitModel {
    raw: Raw,
    avail: u16,
    used: u16,
    called: u16,
}

impl Device for SplitModel {
    fn pop(&mut self) -> Option<Seen> {
        if self.avail == self.raw.avail_idx() {
            return None;
        }
        let size = self.raw.areas().size;
        let id = self.raw.driver(2 + usize::from(self.avail % size));
        self.avail = self.avail.wrapping_add(1);
        let mut seen = Seen { id, descs: 0, chain: Vec::new() };
        let mut at = id;
        loop {
            let d = self.raw.desc(at);
            seen.descs += 1;
            if d.flags & v::DESC_F_INDIRECT != 0 {
                assert_eq!((seen.descs, d.flags), (1, v::DESC_F_INDIRECT));
                seen.chain = table_of(&self.raw, d, true);
                return Some(seen);
            }
            seen.chain.push(Segment { addr: d.addr, len: d.len, write: d.flags & v::DESC_F_WRITE != 0 });
            if d.flags & v::DESC_F_NEXT == 0 {
                return Some(seen);
            }
            if self.raw.areas().has(v::F_IN_ORDER) {
                assert_eq!(d.tag, (at + 1) % size, "in order, chains go on in the next descriptor");
            }
            at = d.tag;
        }
    }
    fn push(&mut self, id: u16, len: u32, chains: u16, _: u16) {
        self.raw.set_used(self.used, id.into(), len);
        self.used = self.used.wrapping_add(chains);
        self.raw.set_used_idx(self.used);
    }
    fn wants_call(&mut self) -> bool {
        let called = std::mem::replace(&mut self.called, self.used);
        let size = usize::from(self.raw.areas().size);
        if !self.raw.areas().has(v::F_EVENT_IDX) {
            return self.raw.driver(0) & v::AVAIL_F_NO_INTERRUPT == 0;
        }
        // The index passed the event when the event is one of those that were used since.
        let event = self.raw.driver(2 + size);
        (0..self.used.wrapping_sub(called)).any(|i| called.wrapping_add(i) == event)
    }
    fn arm(&mut self) -> bool {
        self.raw.set_device(0, 0);
        self.raw.set_device(2 + 4 * usize::from(self.raw.areas().size), self.avail);
        self.avail != self.raw.avail_idx()
    }
    fn disarm(&mut self) {
        self.raw.set_device(0, v::USED_F_NO_NOTIFY);
    }
}

struct PackedModel {
    raw: Raw,
    avail: (u16, bool),
    used: (u16, bool),
    called: (u16, bool),
}

impl PackedModel {
    fn step(&self, (at, wrap): (u16, bool), descs: u16) -> (u16, bool) {
        (0..descs).fold(
            (at, wrap),
            |(at, wrap), _| if at + 1 == self.raw.areas().size { (0, !wrap) } else { (at + 1, wrap) },
        )
    }
    fn available(&self) -> bool {
        self.raw.desc(self.avail.0).flags & (v::DESC_F_AVAIL | v::DESC_F_USED)
            == Raw::avail_bits(self.avail.1)
    }
}

impl Device for PackedModel {
    fn pop(&mut self) -> Option<Seen> {
        if !self.available() {
            return None;
        }
        let mut seen = Seen { id: 0, descs: 0, chain: Vec::new() };
        loop {
            assert!(self.available(), "part of a chain is available");
            let d = self.raw.desc(self.avail.0);
            self.avail = self.step(self.avail, 1);
            seen.descs += 1;
            seen.id = d.tag;
            if d.flags & v::DESC_F_INDIRECT != 0 {
                assert_eq!((seen.descs, d.flags & v::DESC_F_NEXT), (1, 0));
                seen.chain = table_of(&self.raw, d, false);
                return Some(seen);
            }
            seen.chain.push(Segment { addr: d.addr, len: d.len, write: d.flags & v::DESC_F_WRITE != 0 });
            if d.flags & v::DESC_F_NEXT == 0 {
                return Some(seen);
            }
        }
    }
    fn push(&mut self, id: u16, len: u32, _: u16, descs: u16) {
        let d = Desc { addr: 0xdead, len, flags: Raw::used_bits(self.used.1), tag: id };
        self.raw.set_desc(self.used.0, d);
        self.used = self.step(self.used, descs);
    }
    fn wants_call(&mut self) -> bool {
        let mut at = std::mem::replace(&mut self.called, self.used);
        match self.raw.driver(1) {
            v::EVENT_ENABLE => true,
            v::EVENT_DISABLE => false,
            flags => {
                assert_eq!(flags, v::EVENT_DESC);
                let (off, wrap) = (self.raw.driver(0) & 0x7fff, self.raw.driver(0) >> 15 != 0);
                let mut passed = false;
                while at != self.used {
                    passed |= at == (off, wrap);
                    at = self.step(at, 1);
                }
                passed
            }
        }
    }
    fn arm(&mut self) -> bool {
        if self.raw.areas().has(v::F_EVENT_IDX) {
            self.raw.set_device(0, self.avail.0 | u16::from(self.avail.1) << 15);
            self.raw.set_device(1, v::EVENT_DESC);
        } else {
            self.raw.set_device(1, v::EVENT_ENABLE);
        }
        self.available()
    }
    fn disarm(&mut self) {
        self.raw.set_device(1, v::EVENT_DISABLE);
    }
}

fn table_of(raw: &Raw, d: Desc, linked: bool) -> Vec<Segment> {
    assert!(d.len.is_multiple_of(16));
    let n = d.len / 16;
    let words = raw.table().window::<u64>(d.addr, 2 * n as usize).unwrap();
    let entry = |i: u32| {
        let word = words.get(2 * i as usize + 1);
        let flags = (word >> if linked { 32 } else { 48 }) as u16;
        if linked {
            let last = i + 1 == n;
            assert_eq!(
                (flags & v::DESC_F_NEXT == 0, (word >> 48) as u32),
                (last, if last { 0 } else { i + 1 })
            );
        }
        Segment { addr: words.get(2 * i as usize), len: word as u32, write: flags & v::DESC_F_WRITE != 0 }
    };
    (0..n).map(entry).collect()
}

fn memory(areas: &Areas) -> Arc<Table> {
    Table::of(Map::shared(areas.end as usize, Backing { page: PageSize::Base, node: None }).unwrap())
}

fn device(areas: &Areas, table: &Arc<Table>) -> Box<dyn Device> {
    let raw = || Raw::open(areas, table).unwrap();
    if areas.has(v::F_RING_PACKED) {
        let start = (0, true);
        Box::new(PackedModel { raw: raw(), avail: start, used: start, called: start })
    } else if areas.has(v::F_IN_ORDER) {
        Box::new(SplitModel { raw: raw(), avail: 0, used: 0, called: 0 })
    } else {
        Box::new(VirtioQueue::new(areas, table))
    }
}

/// What happens next to a ring.
#[derive(Clone, Debug)]
enum Act {
    Add { chain: Vec<(u32, bool)>, indirect: bool },
    Publish,
    DeviceTakes(u8),
    DeviceUses { which: u8, batch: u8, len: u32 },
    DriverTakes(u8),
    DriverArms(Option<u8>),
    DeviceArms(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let chain = prop::collection::vec((0u32..5000, any::<bool>()), 1..5);
    prop_oneof![
        6 => (chain, any::<bool>()).prop_map(|(chain, indirect)| Act::Add { chain, indirect }),
        3 => Just(Act::Publish),
        4 => (1u8..9).prop_map(Act::DeviceTakes),
        4 => (any::<u8>(), 1u8..5, 0u32..5000).prop_map(|(which, batch, len)| Act::DeviceUses { which, batch, len }),
        4 => (1u8..9).prop_map(Act::DriverTakes),
        1 => prop::option::of(0u8..4).prop_map(Act::DriverArms),
        1 => any::<bool>().prop_map(Act::DeviceArms),
    ]
}

/// Plays `acts` on a ring, and checks every chain on its way there and back.
fn play<R: Ring>(areas: &Areas, acts: &[Act]) {
    let table = memory(areas);
    let mut ring = R::open(areas, &table).unwrap();
    let mut device = device(areas, &table);
    let in_order = areas.has(v::F_IN_ORDER);
    let mut added: VecDeque<Seen> = VecDeque::new();
    let mut published: VecDeque<Seen> = VecDeque::new();
    let mut taken: VecDeque<Seen> = VecDeque::new();
    let mut used: VecDeque<Used> = VecDeque::new();
    // What either side was promised: a notification at the next change.
    let (mut kick_promised, mut call_promised) = (false, false);
    let mut out = vec![false; areas.size.into()];
    let mut next_addr = 0x1000;
    for act in acts {
        match act {
            Act::Add { chain, indirect } => {
                let mut chain: Vec<Segment> = chain
                    .iter()
                    .map(|&(len, write)| {
                        next_addr += 0x2000;
                        Segment { addr: next_addr, len, write }
                    })
                    .collect();
                chain.sort_by_key(|s| s.write);
                chain.truncate(areas.size.into());
                let indirect = *indirect && areas.entries > 0;
                let need = if indirect { 1 } else { chain.len() as u16 };
                let free = ring.free();
                let id = if indirect { ring.add_indirect(&chain) } else { ring.add(&chain) };
                assert_eq!(id.is_some(), need <= free);
                let Some(id) = id else { continue };
                assert_eq!(ring.free(), free - need);
                assert!(!std::mem::replace(&mut out[usize::from(id)], true), "id {id} twice");
                added.push_back(Seen { id, descs: need, chain });
            }
            Act::Publish => {
                let kick = ring.publish();
                assert!(!kick || !added.is_empty());
                assert!(kick || added.is_empty() || !kick_promised, "the device was not kicked");
                kick_promised &= added.is_empty();
                published.append(&mut added);
            }
            Act::DeviceTakes(n) => {
                for _ in 0..*n {
                    let seen = device.pop();
                    let expected = published.pop_front();
                    assert_eq!(
                        seen.as_ref().map(|s| (s.id, &s.chain)),
                        expected.as_ref().map(|s| (s.id, &s.chain))
                    );
                    taken.extend(expected);
                }
            }
            Act::DeviceUses { which, batch, len } => {
                let n = if in_order {
                    usize::from(*batch).min(taken.len())
                } else {
                    usize::from(!taken.is_empty())
                };
                if n == 0 {
                    continue;
                }
                let first = if in_order { 0 } else { usize::from(*which) % taken.len() };
                let group: Vec<Seen> = (0..n).map(|_| taken.remove(first).unwrap()).collect();
                let last = group.last().unwrap();
                device.push(last.id, *len, n as u16, group.iter().map(|s| s.descs).sum());
                for (i, seen) in group.iter().enumerate() {
                    let full = seen.chain.iter().filter(|s| s.write).map(|s| s.len).sum();
                    used.push_back(Used { id: seen.id, len: if i + 1 == n { *len } else { full } });
                    out[usize::from(seen.id)] = false;
                }
                assert!(device.wants_call() || !call_promised, "the driver was not called");
                call_promised = false;
            }
            Act::DriverTakes(n) => {
                for _ in 0..*n {
                    assert_eq!(ring.used(), Ok(used.pop_front()));
                }
            }
            Act::DriverArms(after) => {
                let come = ring.arm(after.map(u16::from));
                match after {
                    None => assert!(!come),
                    Some(0) => assert_eq!(come, !used.is_empty()),
                    Some(_) => assert!(!come || !used.is_empty()),
                }
                call_promised = *after == Some(0) && !come;
            }
            Act::DeviceArms(on) => {
                if *on {
                    let more = device.arm();
                    assert_eq!(more, !published.is_empty());
                    kick_promised = !more;
                } else {
                    device.disarm();
                    kick_promised = false;
                }
            }
        }
    }
    ring.publish().then_some(());
    published.append(&mut added);
    while let Some(seen) = device.pop() {
        assert_eq!(Some(seen.id), published.front().map(|s| s.id));
        taken.extend(published.pop_front());
    }
    for seen in taken.drain(..) {
        device.push(seen.id, 1, 1, seen.descs);
        used.push_back(Used { id: seen.id, len: 1 });
    }
    for expected in used {
        assert_eq!(ring.used(), Ok(Some(expected)));
    }
    assert_eq!((ring.used(), ring.free()), (Ok(None), areas.size));
}

proptest! {
    #[test]
    fn every_chain_goes_there_and_back(
        acts in prop::collection::vec(act(), 1..400),
        bits in 0u64..8,
        split in 0u32..8,
        packed in prop_oneof![1u16..20, Just(256)],
        entries in prop_oneof![Just(0u16), Just(4)],
    ) {
        let features = [v::F_EVENT_IDX, v::F_IN_ORDER]
            .into_iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0).fold(0, |all, (_, f)| all | f);
        play::<Split>(&Areas::at(0, 1 << split, features, entries), &acts);
        play::<Packed>(&Areas::at(0, packed, features | v::F_RING_PACKED, entries), &acts);
    }
}

fn full_lap<R: Ring>(size: u16, features: u64) {
    let areas = Areas::at(0, size, features, 0);
    let table = memory(&areas);
    let mut ring = R::open(&areas, &table).unwrap();
    let mut device = device(&areas, &table);
    for lap in 0..3 {
        for i in 0..size {
            assert!(ring.add(&[Segment::read(u64::from(i), lap)]).is_some());
        }
        assert_eq!(ring.add(&[Segment::read(0, 1)]), None);
        assert!(ring.publish());
        for i in 0..size {
            let seen = device.pop().unwrap();
            assert_eq!(seen.chain, [Segment::read(u64::from(i), lap)]);
            device.push(seen.id, 0, 1, 1);
            assert!(ring.used().unwrap().is_some());
        }
        assert!(device.pop().is_none());
    }
}

#[test]
fn smallest_and_largest_rings() {
    for size in [1, 32768] {
        full_lap::<Split>(size, 0);
    }
    for size in [1, 3, 32767, 32768] {
        full_lap::<Packed>(size, v::F_RING_PACKED);
    }
}

#[test]
fn a_lying_split_device_is_found_out() {
    for features in [0, v::F_IN_ORDER] {
        let areas = Areas::at(0, 8, features, 0);
        let table = memory(&areas);
        let raw = Raw::open(&areas, &table).unwrap();
        let ring = || {
            let mut ring = Split::open(&areas, &table).unwrap();
            for _ in 0..3 {
                ring.add(&[Segment::write(0, 8)]).unwrap();
            }
            assert!(ring.publish());
            ring
        };
        let mut r = ring();
        raw.set_used_idx(4);
        assert_eq!(r.used(), Err(Lie::Index { used: 4, offered: 3 }));
        raw.set_used_idx(0xffff);
        assert_eq!(r.used(), Err(Lie::Index { used: 0xffff, offered: 3 }));
        raw.set_used_idx(0);
        assert_eq!(r.used(), Ok(None));
        let mut r = ring();
        raw.set_used(0, 8, 1);
        raw.set_used_idx(1);
        assert_eq!(r.used(), Err(Lie::Range { id: 8, size: 8 }));
        raw.set_used(0, 0x1_0000, 1);
        assert_eq!(r.used(), Err(Lie::Range { id: 0xffff, size: 8 }));
        raw.set_used(0, 3, 1);
        assert_eq!(r.used(), Err(Lie::NotOffered(3)));
        assert_eq!(r.used(), Err(Lie::NotOffered(3)));
        raw.set_used(0, 0, 99);
        assert_eq!(r.used(), Ok(Some(Used { id: 0, len: 99 })));
        raw.set_used(1, 0, 1);
        raw.set_used_idx(2);
        assert_eq!(r.used(), Err(Lie::NotOffered(0)));
    }
    let areas = Areas::at(0, 8, v::F_IN_ORDER, 0);
    let table = memory(&areas);
    let raw = Raw::open(&areas, &table).unwrap();
    let mut ring = Split::open(&areas, &table).unwrap();
    for _ in 0..3 {
        ring.add(&[Segment::write(0, 8)]).unwrap();
    }
    assert!(ring.publish());
    raw.set_used(0, 2, 5);
    raw.set_used_idx(2);
    assert_eq!(ring.used(), Ok(Some(Used { id: 0, len: 8 })));
    assert_eq!(ring.used(), Err(Lie::Batch(2)));
}

#[test]
fn a_lying_packed_device_is_found_out() {
    for features in [v::F_RING_PACKED, v::F_RING_PACKED | v::F_IN_ORDER] {
        let areas = Areas::at(0, 5, features, 0);
        let table = memory(&areas);
        let raw = Raw::open(&areas, &table).unwrap();
        let mut ring = Packed::open(&areas, &table).unwrap();
        let used = |i, tag| raw.set_desc(i, Desc { addr: 0, len: 9, flags: Raw::used_bits(true), tag });
        used(0, 0);
        assert_eq!(ring.used(), Ok(None), "the device has nothing");
        for _ in 0..3 {
            ring.add(&[Segment::write(0, 8)]).unwrap();
        }
        assert!(ring.publish());
        used(0, 5);
        assert_eq!(ring.used(), Err(Lie::Range { id: 5, size: 5 }));
        used(0, 4);
        assert_eq!(ring.used(), Err(Lie::NotOffered(4)));
        used(0, 0);
        assert_eq!(ring.used(), Ok(Some(Used { id: 0, len: 9 })));
        used(1, 0);
        assert_eq!(ring.used(), Err(Lie::NotOffered(0)));
    }
}

#[test]
fn areas_are_aligned_and_apart() {
    for features in [0, v::F_RING_PACKED] {
        for size in [1u16, 2, 256, 1024, 32768, 3, 1000] {
            if features == 0 && !size.is_power_of_two() {
                continue;
            }
            let a = Areas::at(8, size, features, 4);
            let n = u64::from(size);
            let (driver, device) = if features == 0 { (6 + 2 * n, 6 + 8 * n) } else { (4, 4) };
            assert!(a.desc >= 8 && a.desc.is_multiple_of(16) && a.desc + 16 * n <= a.driver);
            assert!(a.driver.is_multiple_of(4) && a.driver + driver <= a.device);
            assert!(a.device.is_multiple_of(4) && a.device + device <= a.tables);
            assert!(a.tables.is_multiple_of(16) && a.tables + 64 * n == a.end);
        }
    }
}

#[test]
#[should_panic(expected = "no power of two")]
fn a_split_ring_is_a_power_of_two() {
    Areas::at(0, 3, 0, 0);
}
