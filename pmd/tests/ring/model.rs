//! Our device side, in all four forms, against a guest that does what the specification says and a
//! model of what the ring owes it: every chain is lent once, as it was offered; comes back once, with
//! what was written to it; not before it is published; in order if that was negotiated; and nobody
//! sleeps through a notification that was asked for.

use std::collections::VecDeque;

use crate::rig::{DATA, FORMS, Form, Guest, MEMORY, Rig};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::driver::Segment;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    Offer { chain: Vec<(u32, u32, bool)>, indirect: bool, pick: u16 },
    GuestPublishes,
    DevicePops { burst: u8, room: u8, run: bool },
    DeviceReturns(u8),
    Finish { which: u8, written: u32 },
    DevicePublishes,
    GuestTakes(u8),
    GuestArms(bool),
    DeviceArms(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let segment = (0u32..0x1000, prop_oneof![1 => Just(0u32), 6 => 1u32..3000], any::<bool>());
    let chain = prop::collection::vec(segment, 1..6);
    prop_oneof![
        6 => (chain, any::<bool>(), any::<u16>())
            .prop_map(|(chain, indirect, pick)| Act::Offer { chain, indirect, pick }),
        4 => Just(Act::GuestPublishes),
        4 => (1u8..9, 0u8..20, any::<bool>())
            .prop_map(|(burst, room, run)| Act::DevicePops { burst, room, run }),
        1 => (0u8..5).prop_map(Act::DeviceReturns),
        8 => (any::<u8>(), 0u32..3000).prop_map(|(which, written)| Act::Finish { which, written }),
        4 => Just(Act::DevicePublishes),
        4 => (1u8..9).prop_map(Act::GuestTakes),
        1 => any::<bool>().prop_map(Act::GuestArms),
        1 => any::<bool>().prop_map(Act::DeviceArms),
    ]
}

/// A chain on its way.
#[derive(Debug)]
struct Sent {
    id: u16,
    chain: Vec<Segment>,
    /// Buffers that are out, and what was written to those that came back.
    left: usize,
    written: u32,
}

/// Which segments of a chain are lent: all that have bytes.
fn lent(chain: &[Segment]) -> Vec<Segment> {
    chain.iter().copied().filter(|s| s.len > 0).collect()
}

fn play(form: Form, size: u16, features: u64, way: Way, acts: &[Act]) {
    let mut rig = Rig::new(form, size, features, way);
    let mut guest = Guest::new(&rig.raw);
    let in_order = features & v::F_IN_ORDER != 0;
    let mut offered: VecDeque<Sent> = VecDeque::new();
    let mut visible: VecDeque<Sent> = VecDeque::new();
    // Popped, in order, and complete ones among them that wait for their turn if that is owed.
    let mut flying: VecDeque<Sent> = VecDeque::new();
    let mut staged: VecDeque<(u16, u32)> = VecDeque::new();
    let mut used: VecDeque<(u16, u32)> = VecDeque::new();
    let mut out = Vec::new();
    // Ids as they were popped: only the last ones can go back.
    let mut popped = Vec::new();
    let (mut kick_promised, mut call_promised) = (false, false);
    let mut tables = DATA;
    let stage = |flying: &mut VecDeque<Sent>, staged: &mut VecDeque<(u16, u32)>| {
        while let Some(i) = flying.iter().position(|s| s.left == 0).filter(|&i| !in_order || i == 0) {
            let sent = flying.remove(i).unwrap();
            staged.push_back((sent.id, sent.written));
        }
    };
    for act in acts {
        match act {
            Act::Offer { chain, indirect, pick } => {
                let mut chain: Vec<Segment> = chain
                    .iter()
                    .map(|&(at, len, write)| {
                        let write = match way {
                            Way::FromDriver => false,
                            Way::ToDriver => true,
                            Way::Both => write,
                        };
                        Segment { addr: DATA + 0x4_0000 + u64::from(at) * 8, len, write }
                    })
                    .collect();
                chain.sort_by_key(|s| s.write);
                chain.truncate(size.into());
                let table = (*indirect && features & v::F_INDIRECT_DESC != 0).then_some(tables);
                if let Some(id) = guest.offer(&rig.raw, &chain, table, *pick) {
                    // Tables of chains in flight are never written again.
                    tables = DATA + (tables - DATA + 0x80) % 0x4_0000;
                    let left = lent(&chain).len();
                    offered.push_back(Sent { id, chain, left, written: 0 });
                }
            }
            Act::GuestPublishes => {
                let kick = guest.publish(&rig.raw);
                assert!(kick || offered.is_empty() || !kick_promised, "the device sleeps through chains");
                kick_promised &= !kick && offered.is_empty();
                visible.append(&mut offered);
            }
            Act::DevicePops { burst, room, run } => {
                let mut batch = Batch::default();
                if *run {
                    let n = rig.pop_simple(&mut batch, (*burst).into());
                    assert_eq!(batch.len(), n);
                    for i in 0..n {
                        if visible.is_empty() && form.packed {
                            visible.extend(offered.pop_front());
                        }
                        let sent = visible.pop_front().expect("nothing is lent that was not offered");
                        let buf = batch.get(i).unwrap();
                        assert_eq!((buf.id(), vec![rig.segment(buf)]), (sent.id, sent.chain.clone()));
                        popped.push(sent.id);
                        flying.push_back(sent);
                    }
                }
                for _ in 0..*burst {
                    // A batch that is nearly full takes a chain whole or not at all.
                    let before = batch.len();
                    if pmd::batch::CAP - before < usize::from(*room) {
                        break;
                    }
                    let chain = rig.pop(&mut batch);
                    assert_eq!(rig.ring.fault(), None);
                    // A packed chain is visible as soon as its first descriptor is written.
                    if visible.is_empty() && form.packed && chain.is_some() {
                        visible.extend(offered.pop_front());
                    }
                    let Some(sent) = visible.pop_front() else {
                        assert_eq!(chain, None);
                        break;
                    };
                    let expected = lent(&sent.chain);
                    if way == Way::ToDriver && before > 0 && expected.is_empty() {
                        // It waits for a batch in which nothing may be put back before it.
                        assert_eq!(chain, None);
                        visible.push_front(sent);
                        break;
                    }
                    let chain = chain.expect("a chain is available");
                    assert!(chain.id == sent.id && !chain.overflow);
                    assert_eq!(chain.bytes, expected.iter().map(|s| s.len).sum::<u32>());
                    assert_eq!(batch.len() - before, expected.len());
                    for (i, segment) in expected.iter().enumerate() {
                        let buf = batch.get(before + i).unwrap();
                        assert_eq!((rig.segment(buf), buf.more()), (*segment, i + 1 < expected.len()));
                    }
                    popped.push(sent.id);
                    flying.push_back(sent);
                    stage(&mut flying, &mut staged);
                }
                while let Some(buf) = batch.pop_front() {
                    out.push(buf);
                }
                assert_eq!(rig.ring.lent() as usize, out.len());
            }
            Act::DeviceReturns(n) => {
                // The chains that were popped last and are whole go back, as if never popped.
                let mut batch = Batch::default();
                let mut back = Vec::new();
                for _ in 0..*n {
                    let Some(sent) = flying.back() else { break };
                    let whole = lent(&sent.chain).len();
                    let last = popped.last() == Some(&sent.id);
                    if !last || whole == 0 || whole != sent.left || out.len() < whole {
                        break;
                    }
                    let tail = &out[out.len() - whole..];
                    if tail.iter().any(|buf| buf.id() != sent.id) {
                        break;
                    }
                    back.push(out.split_off(out.len() - whole));
                    visible.push_front(flying.pop_back().unwrap());
                    popped.pop();
                }
                for buf in back.into_iter().rev().flatten() {
                    batch.push(buf);
                }
                rig.ring.unpop(&mut batch);
                assert!(batch.is_empty() && rig.ring.lent() as usize == out.len());
            }
            Act::Finish { which, written } => {
                if out.is_empty() {
                    continue;
                }
                let buf = out.remove(usize::from(*which) % out.len());
                let sent = flying.iter_mut().find(|s| s.id == buf.id()).unwrap();
                let written = if buf.writable() { (*written).min(buf.len()) } else { 0 };
                (sent.left, sent.written) = (sent.left - 1, sent.written + written);
                rig.ring.settle(buf.finish(written));
                stage(&mut flying, &mut staged);
            }
            Act::DevicePublishes => {
                let call = rig.ring.publish();
                assert!(call || staged.is_empty() || !call_promised, "the guest sleeps through used chains");
                call_promised &= !call && staged.is_empty();
                used.append(&mut staged);
            }
            Act::GuestTakes(n) => {
                for _ in 0..*n {
                    assert_eq!(guest.take_used(&rig.raw), used.pop_front());
                }
            }
            Act::GuestArms(on) => {
                guest.arm(&rig.raw, *on);
                call_promised = *on && used.is_empty();
            }
            Act::DeviceArms(on) => {
                let more = rig.ring.arm(*on);
                let available = !visible.is_empty() || (form.packed && !offered.is_empty());
                assert!(!on || more == available, "arm says {more}, there is {available}");
                kick_promised = *on && !more && offered.is_empty();
            }
        }
    }
    drain(rig, guest, out, used);
}

/// Finishes everything: what is out comes back, and all that came back is taken once.
fn drain(mut rig: Rig, mut guest: Guest, out: Vec<hugepages::Buf>, used: VecDeque<(u16, u32)>) {
    for buf in out {
        rig.ring.settle(buf.finish(0));
    }
    rig.ring.publish();
    for expected in used {
        assert_eq!(guest.take_used(&rig.raw), Some(expected));
    }
    while guest.take_used(&rig.raw).is_some() {}
    guest.publish(&rig.raw);
    let mut batch = Batch::default();
    while rig.pop(&mut batch).is_some() {
        rig.settle(&mut batch);
        guest.take_used(&rig.raw).expect("published");
    }
    assert_eq!((rig.ring.lent(), rig.ring.fault(), guest.take_used(&rig.raw)), (0, None, None));
    assert!(rig.table.regions().iter().map(|r| r.len).sum::<u64>() == MEMORY);
}

fn ways() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::FromDriver), Just(Way::ToDriver), Just(Way::Both)]
}

proptest! {
    #[test]
    fn the_ring_owes_its_driver(
        acts in prop::collection::vec(act(), 1..300),
        bits in 0u32..8,
        exponent in 0u32..9,
        odd in 1u16..300,
        way in ways(),
    ) {
        let names = [v::F_EVENT_IDX, v::F_IN_ORDER, v::F_INDIRECT_DESC];
        let chosen = names.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0);
        let features = chosen.fold(v::F_VERSION_1, |all, (_, f)| all | f);
        for form in FORMS {
            play(form, if form.packed { odd } else { 1 << exponent }, features, way, &acts);
        }
    }
}
