//! Our device side against that of the `virtio-queue` crate (split rings): the same guest does the same
//! to two memories, and both devices must see the same chains, write the same used ring, ask for the
//! same kicks and make the same calls.

use crate::rig::{DATA, Form, Guest, Rig};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::driver::{Raw, Segment};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// The other device, and the guest it serves.
struct Other {
    queue: Queue,
    memory: GuestMemoryMmap,
    raw: Raw,
    guest: Guest,
}

impl Other {
    fn new(size: u16, features: u64, way: Way) -> Other {
        // The ring of this rig is never used.
        let Rig { raw, .. } =
            Rig::new(Form { packed: false, checked: false, translated: false }, size, features, way);
        let map = &raw.table().regions()[0].map;
        let file = std::fs::File::from(map.fd().try_clone_to_owned().unwrap());
        let range = (GuestAddress(0), map.len(), Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let (mut queue, areas) = (Queue::new(size).unwrap(), *raw.areas());
        let halves = |a: u64| (Some(a as u32), Some((a >> 32) as u32));
        let (low, high) = halves(areas.desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(areas.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(areas.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(features & v::F_EVENT_IDX != 0);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        let guest = Guest::new(&raw);
        Other { queue, memory, raw, guest }
    }

    fn pop(&mut self) -> Option<(u16, Vec<Segment>)> {
        let chain = self.queue.pop_descriptor_chain(&self.memory)?;
        let head = chain.head_index();
        let segments = chain.map(|d| Segment { addr: d.addr().0, len: d.len(), write: d.is_write_only() });
        Some((head, segments.filter(|s| s.len > 0).collect()))
    }
}

#[derive(Clone, Debug)]
enum Act {
    Offer { chain: Vec<(u32, u32, bool)>, indirect: bool, pick: u16 },
    GuestPublishes,
    Pop,
    Finish { which: u8, written: u32 },
    Publish,
    GuestTakes,
    GuestArms(bool),
    DeviceArms(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let segment = (0u32..0x8000, prop_oneof![1 => Just(0u32), 6 => 1u32..3000], any::<bool>());
    let chain = prop::collection::vec(segment, 1..6);
    prop_oneof![
        6 => (chain, any::<bool>(), any::<u16>())
            .prop_map(|(chain, indirect, pick)| Act::Offer { chain, indirect, pick }),
        4 => Just(Act::GuestPublishes),
        8 => Just(Act::Pop),
        8 => (any::<u8>(), 0u32..3000).prop_map(|(which, written)| Act::Finish { which, written }),
        4 => Just(Act::Publish),
        8 => Just(Act::GuestTakes),
        1 => any::<bool>().prop_map(Act::GuestArms),
        2 => any::<bool>().prop_map(Act::DeviceArms),
    ]
}

fn play(form: Form, size: u16, features: u64, acts: &[Act]) {
    let way = Way::Both;
    let event_idx = features & v::F_EVENT_IDX != 0;
    let mut ours = Rig::new(form, size, features, way);
    let mut guest = Guest::new(&ours.raw);
    let mut other = Other::new(size, features, way);
    // Chains out, with their buffers; what ours has staged, to be added to the other when it publishes.
    let mut out: Vec<(u16, Vec<hugepages::Buf>)> = Vec::new();
    let mut staged: Vec<(u16, u32)> = Vec::new();
    let mut tables = DATA;
    for act in acts {
        match act {
            Act::Offer { chain, indirect, pick } => {
                let mut chain: Vec<Segment> = chain
                    .iter()
                    .map(|&(at, len, write)| Segment { addr: DATA + 0x4_0000 + u64::from(at), len, write })
                    .collect();
                chain.sort_by_key(|s| s.write);
                let table = indirect.then_some(tables);
                let id = guest.offer(&ours.raw, &chain, table, *pick);
                assert_eq!(id, other.guest.offer(&other.raw, &chain, table, *pick));
                tables = DATA + (tables - DATA + 0x80) % 0x4_0000;
            }
            Act::GuestPublishes => {
                let kick = guest.publish(&ours.raw);
                assert_eq!(kick, other.guest.publish(&other.raw), "kicks");
            }
            Act::Pop => {
                let mut batch = Batch::default();
                let chain = ours.pop(&mut batch);
                let bufs: Vec<_> = std::iter::from_fn(|| batch.pop_front()).collect();
                let segments = bufs.iter().map(|buf| ours.segment(buf)).collect();
                assert_eq!(chain.map(|chain| (chain.id, segments)), other.pop());
                match chain {
                    Some(chain) if bufs.is_empty() => staged.push((chain.id, 0)),
                    Some(chain) => out.push((chain.id, bufs)),
                    None => {}
                }
            }
            Act::Finish { which, written } => {
                if out.is_empty() {
                    continue;
                }
                let (id, bufs) = out.remove(usize::from(*which) % out.len());
                let mut sum = 0;
                for buf in bufs {
                    let written = if buf.writable() { (*written).min(buf.len()) } else { 0 };
                    sum += written;
                    ours.ring.settle(buf.finish(written));
                }
                staged.push((id, sum));
            }
            Act::Publish => {
                let any = !staged.is_empty();
                for (id, len) in staged.drain(..) {
                    other.queue.add_used(&other.memory, id, len).unwrap();
                }
                let call = ours.ring.publish();
                assert!(any || !call);
                if any {
                    let others = other.queue.needs_notification(&other.memory).unwrap();
                    // It always calls without event index.
                    assert!(!event_idx || call == others, "calls");
                }
                for i in 1..2 + 4 * usize::from(size) {
                    assert_eq!(ours.raw.device(i), other.raw.device(i), "word {i} of the used ring");
                }
            }
            Act::GuestTakes => assert_eq!(guest.take_used(&ours.raw), other.guest.take_used(&other.raw)),
            Act::GuestArms(on) => {
                guest.arm(&ours.raw, *on);
                other.guest.arm(&other.raw, *on);
            }
            Act::DeviceArms(true) => {
                let more = ours.ring.arm(true);
                assert_eq!(more, other.queue.enable_notification(&other.memory).unwrap(), "more");
                assert_eq!(ours.raw.device(0), other.raw.device(0), "used flags");
                assert!(!event_idx || ours.raw.avail_event() == other.raw.avail_event(), "avail_event");
            }
            Act::DeviceArms(false) => {
                ours.ring.arm(false);
                other.queue.disable_notification(&other.memory).unwrap();
                assert_eq!(ours.raw.device(0), other.raw.device(0), "used flags");
            }
        }
        assert_eq!(ours.ring.fault(), None);
    }
    assert_eq!(ours.ring.base(), u32::from(other.queue.next_avail()));
    for buf in out.into_iter().flat_map(|(_, bufs)| bufs) {
        ours.ring.settle(buf.finish(0));
    }
    assert_eq!(ours.ring.lent(), 0);
}

proptest! {
    #[test]
    fn both_devices_do_the_same(
        acts in prop::collection::vec(act(), 1..400),
        exponent in 0u32..9,
        event_idx in any::<bool>(),
    ) {
        let features = v::F_VERSION_1 | v::F_INDIRECT_DESC | if event_idx { v::F_EVENT_IDX } else { 0 };
        for checked in [false, true] {
            play(Form { packed: false, checked, translated: false }, 1 << exponent, features, &acts);
        }
    }
}
