//! Frames with any virtio-net header, in any pieces, out of one guest's ring and into another's that did not
//! negotiate the same: headers are believed or not, checksums and segments completed, and every buffer comes
//! home.

use hugepages::{Lender, Loan};
use pmd::Batch;
use pmd::port::vhost::local;
use pmd::spec::{net, virtio as v};
use pmd::vring::Way;
use pmd::vring::driver::Segment;

use crate::rig::{DATA, FORMS, Guest, Rig};

const SIZE: u16 = 256;
const OFFLOADS: u64 = net::F_CSUM
    | net::F_GUEST_CSUM
    | net::F_HOST_TSO4
    | net::F_HOST_TSO6
    | net::F_HOST_ECN
    | net::F_HOST_USO
    | net::F_GUEST_TSO4
    | net::F_GUEST_TSO6
    | net::F_GUEST_ECN
    | net::F_GUEST_USO4
    | net::F_GUEST_USO6;

pub(crate) fn run(data: &[u8]) {
    let Some((&[form, offloads, room, pieces], frame)) = data.split_first_chunk::<4>() else { return };
    let form = FORMS[usize::from(form) % 4];
    let merge = if room & 1 != 0 { net::F_MRG_RXBUF } else { 0 };
    let from = v::F_VERSION_1 | v::F_INDIRECT_DESC | OFFLOADS | merge;
    // What the receiver took of it.
    let to = from & !(u64::from(offloads) << 7) & !(u64::from(offloads) << 50);
    let sender = Rig::new(form, SIZE, from, Way::FromDriver);
    let receiver = Rig::new(form, SIZE, to, Way::ToDriver);
    let (mut transmit, mut receive) = (Guest::new(&sender.raw), Guest::new(&receiver.raw));
    let lender = Lender::new(sender.raw.table().clone());
    let len = frame.len().min(0x4000) as u32;
    if len == 0 {
        return;
    }
    let mut buf = lender.lend_writable(DATA, len, 0).unwrap();
    buf.write(0, &frame[..len as usize]);
    lender.settle(buf.finish(0));
    // In pieces of growing length.
    let (mut segments, mut at, mut piece) = (Vec::new(), 0, u32::from(pieces) + 1);
    while at < len && segments.len() < 32 {
        let last = segments.len() == 31;
        let part = if last { len - at } else { piece.min(len - at) };
        segments.push(Segment::read(DATA + u64::from(at), part));
        (at, piece) = (at + part, piece * 2);
    }
    transmit.offer(&sender.raw, &segments, None, 0).unwrap();
    transmit.publish(&sender.raw);
    for i in 0..64u64 {
        let segment = Segment::write(DATA + i * 2048, u32::from(room) * 8 + 1);
        receive.offer(&receiver.raw, &[segment], None, 0).unwrap();
    }
    receive.publish(&receiver.raw);
    let mut source = local("source", from, Some(sender.ring), None).unwrap();
    let mut sink = local("sink", to, None, Some(receiver.ring)).unwrap();
    let (mut batch, mut loans) = (Batch::default(), Batch::<Loan>::default());
    source.reap(&mut loans);
    sink.reap(&mut loans);
    source.rx(&mut batch);
    sink.tx(&mut batch);
    sink.reap(&mut loans);
    while let Some(buf) = batch.pop_front() {
        loans.push(buf.finish(0));
    }
    source.settle(&mut loans);
    source.reap(&mut loans);
    assert!(loans.is_empty() && source.lent() == 0 && sink.lent() == 0);
    assert_eq!(source.counters().stats().faults + sink.counters().stats().faults, 0);
}
