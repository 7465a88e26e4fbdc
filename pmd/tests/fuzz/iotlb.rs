//! Translations that come and go in any order: what is found is what a model knows, page by page; and a ring of
//! any content that is told them: what it lends lies where it was told, and comes home.

use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::iotlb::{Change, Entry, Iotlb, Miss, PAGE};
use pmd::with_ring;

use crate::rig::{DATA, FORMS, Rig};

/// Pages of the model.
const PAGES: u64 = 64;
const SIZE: u16 = 16;

/// By page: guest page and permissions.
type Model = [Option<(u64, u8)>; PAGES as usize];

fn check(tlb: &Iotlb, model: &Model, base: u64) {
    for page in 0..PAGES {
        let iova = base + page * PAGE;
        let known = model[page as usize];
        let found = tlb.find(iova + 5, 0);
        assert_eq!(found.map(|(gpa, _)| gpa), known.map(|(gpa, _)| gpa * PAGE + 5));
        let Some((gpa, perm)) = known else { continue };
        for wanted in 1..4 {
            assert_eq!(tlb.find(iova, wanted).is_some(), perm & wanted == wanted);
        }
        let goes_on = |n: &u64| model.get((page + n) as usize) == Some(&Some((gpa + n, perm)));
        let run = (0..PAGES).take_while(goes_on).count() as u64 * PAGE;
        assert_eq!(found.expect("known").1, run - 5);
    }
    assert!(tlb.len() <= model.iter().flatten().count());
}

fn table(data: &[u8], base: u64) {
    let (mut tlb, mut model) = (Iotlb::default(), [None; PAGES as usize]);
    for step in data.chunks_exact(4) {
        let (a, b) = (u64::from(step[1]) % PAGES, u64::from(step[2]) % PAGES);
        let (from, to) = (a.min(b), a.max(b));
        let (first, last) = (base + from * PAGE, base + to * PAGE + (PAGE - 1));
        match step[0] % 4 {
            0 | 1 => {
                // Nowhere near the end of all addresses: what an entry leads to was checked before.
                let (gpa, perm) = (u64::from(step[3]) / 4 * 32 + from, step[3] % 3 + 1);
                tlb.insert(Entry { first, last, gpa: gpa * PAGE, perm });
                (from..=to).for_each(|page| model[page as usize] = Some((gpa + page - from, perm)));
            }
            2 => {
                tlb.remove(first, last);
                (from..=to).for_each(|page| model[page as usize] = None);
            }
            _ if step[3] == 0xff => {
                tlb.remove(0, u64::MAX);
                model = [None; PAGES as usize];
            }
            _ => {}
        }
        check(&tlb, &model, base);
    }
}

fn ring(form: u8, features: u8, data: &[u8]) {
    let form = FORMS[usize::from(form) % 4 + 4];
    let feature = |bit: u8, feature: u64| if features & bit != 0 { feature } else { 0 };
    let way = if features & 8 != 0 { Way::ToDriver } else { Way::FromDriver };
    let features = feature(1, v::F_INDIRECT_DESC) | feature(2, v::F_IN_ORDER) | feature(4, v::F_EVENT_IDX);
    let mut rig = Rig::new(form, SIZE, features | v::F_VERSION_1, way);
    let (image, changes) = data.split_at(data.len().min(512));
    let words = rig.raw.table().window::<u16>(rig.raw.areas().desc, 0x400).unwrap();
    for (i, pair) in image.chunks(2).enumerate() {
        hugepages::Words::set(&words, i, u16::from(pair[0]) | u16::from(pair[pair.len() - 1]) << 8);
    }
    let mut wants = Vec::new();
    for step in changes.chunks_exact(4) {
        let page = if step[1] < 8 { u64::from(step[1]) } else { DATA / PAGE + u64::from(step[1] % 64) };
        let (first, perm) = (page * PAGE, step[2] % 4);
        let change = match step[0] % 8 {
            0..4 => Change::Add(Entry { first, last: first + (PAGE - 1), gpa: rig.place(first), perm }),
            4 => Change::Remove(first, first + u64::from(step[3]) * PAGE + (PAGE - 1)),
            5 => Change::Remove(0, u64::MAX),
            6 => Change::Refuse(Miss { iova: first, perm }),
            _ => Change::Clear,
        };
        rig.ring.change(change);
        let mut out = Batch::default();
        while with_ring!(&mut rig.ring, ring => ring.pop(&mut out)).is_some() {}
        assert_eq!(rig.ring.lent() as usize, out.len());
        assert!(out.is_empty() || rig.ring.overlaps(0, u64::MAX));
        for buf in out.iter() {
            let _ = buf.peek::<u8>(0);
        }
        rig.settle(&mut out);
        assert!(rig.ring.lent() == 0 && !rig.ring.overlaps(0, u64::MAX));
        rig.ring.foresee();
        rig.ring.wants(&mut wants);
        assert!(wants.len() <= pmd::vring::iotlb::MAX_ASKED + 1);
        wants.clear();
    }
}

pub(crate) fn run(data: &[u8]) {
    let Some((&[kind, form, features], data)) = data.split_first_chunk::<3>() else { return };
    match kind % 3 {
        0 => table(data, 0x1000 * PAGE),
        1 => table(data, (u64::MAX - PAGES * PAGE).wrapping_add(1)),
        _ => ring(form, features, data),
    }
}
