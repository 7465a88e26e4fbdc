//! A ring of either layout over memory of any content: chains are lent and come home, or the ring is retired
//! for good.

use hugepages::Words;
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;

use crate::rig::{DATA, FORMS, Rig};

const SIZE: u16 = 16;
/// What of memory the input fills: rings, tables, some of the buffers.
const FILLED: u64 = 0x1000;

pub(crate) fn run(data: &[u8]) {
    let Some((&[form, features, way, steps], image)) = data.split_first_chunk::<4>() else { return };
    let form = FORMS[usize::from(form) % 4];
    let feature = |bit: u8, feature: u64| if features & bit != 0 { feature } else { 0 };
    let features = feature(1, v::F_INDIRECT_DESC) | feature(2, v::F_IN_ORDER) | feature(4, v::F_EVENT_IDX);
    let way = [Way::FromDriver, Way::ToDriver, Way::Both][usize::from(way) % 3];
    let mut rig = Rig::new(form, SIZE, features, way);
    let areas = *rig.raw.areas();
    let table = rig.raw.table().clone();
    let words = table.window::<u16>(areas.desc, (FILLED / 2) as usize).unwrap();
    let mut image = image.chunks(2).map(|pair| u16::from(pair[0]) | u16::from(*pair.last().unwrap()) << 8);
    for i in 0..words.len() {
        let Some(word) = image.next() else { break };
        words.set(i, word);
    }
    let data = table.window::<u16>(DATA, 64).unwrap();
    for step in 0..steps % 16 {
        let mut out = Batch::default();
        if step % 3 == 2 {
            rig.pop_simple(&mut out, 32);
        }
        while rig.pop(&mut out).is_some() {}
        assert_eq!(rig.ring.lent() as usize, out.len());
        if let Some(buf) = out.iter().next() {
            let _ = buf.peek::<u16>(0);
        }
        let fault = rig.ring.fault();
        rig.settle(&mut out);
        assert_eq!((rig.ring.lent(), rig.ring.fault()), (0, fault));
        if fault.is_some() {
            assert!(rig.pop(&mut out).is_none() && out.is_empty());
        }
        rig.ring.arm(step % 2 == 0);
        data.set(usize::from(step), u16::from(step));
        // The driver goes on.
        for _ in 0..8 {
            let (Some(at), Some(word)) = (image.next(), image.next()) else { break };
            words.set(usize::from(at) % words.len(), word);
        }
    }
}
