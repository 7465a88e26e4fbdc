//! An in-flight record of any content under a ring of any content: what it says is checked before it is
//! believed, and what is lent for it comes home.

use std::sync::Arc;

use hugepages::{Backing, Map, PageSize, Table, Words};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::Way;
use pmd::vring::record::{Area, bytes};

use crate::rig::{FORMS, Rig};

const SIZE: u16 = 8;

pub(crate) fn run(data: &[u8]) {
    let Some((&[form, features], image)) = data.split_first_chunk::<2>() else { return };
    let form = FORMS[usize::from(form) % 4];
    let feature = |bit: u8, feature: u64| if features & bit != 0 { feature } else { 0 };
    let features = feature(1, v::F_INDIRECT_DESC) | feature(2, v::F_IN_ORDER);
    let mut rig = Rig::new(form, SIZE, features, Way::FromDriver);
    let backing = Backing { page: PageSize::Base, node: None };
    let len = bytes(form.packed, SIZE);
    let table: Arc<Table> = Table::of(Map::shared(4096, backing).unwrap());
    let record = table.window::<u16>(512, (len / 2) as usize).unwrap();
    let ring = rig.raw.table().window::<u16>(rig.raw.areas().desc, 256).unwrap();
    let mut image = image.chunks(2).map(|pair| u16::from(pair[0]) | u16::from(*pair.last().unwrap()) << 8);
    (0..record.len()).zip(&mut image).for_each(|(i, word)| record.set(i, word));
    (0..ring.len()).zip(&mut image).for_each(|(i, word)| ring.set(i, word));
    if rig.ring.record(&Area { table: Arc::clone(&table), at: 512, len }).is_err() {
        return;
    }
    for _ in 0..4 {
        let mut out = Batch::default();
        while rig.pop(&mut out).is_some() {}
        rig.settle(&mut out);
        assert_eq!(rig.ring.lent(), 0);
    }
}
