//! `count CASE N`: runs one step of the data path N times and nothing else, so that instructions can be
//! counted: (count at 2 N - count at N) / N. `docs/performance.md` has the command for valgrind.

use std::process::ExitCode;

use benches::{Near, ring_bytes};
use hugepages::{Backing, Buf, Loan, Map, PageSize, Table};
use pmd::port::vhost::local;
use pmd::spec::net::F_MRG_RXBUF;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vring::{AnyVring, Layout, Mapped, Packed, Split, Vring, Way};
use pmd::{Batch, Queue};

const SIZE: u16 = 256;
const BURST: u16 = 32;

struct Rig {
    transmit: Near,
    receive: Near,
    table: std::sync::Arc<Table>,
    features: u64,
}

fn rig(packed: bool, frame: u32) -> Rig {
    let features = F_VERSION_1 | F_MRG_RXBUF | if packed { F_RING_PACKED } else { 0 };
    let (ring, n) = (ring_bytes(SIZE), u64::from(SIZE));
    let backing = Backing { page: PageSize::Base, node: None };
    let map = Map::shared((2 * ring + 2 * n * 2048) as usize, backing).expect("memory");
    let table = Table::of(map);
    let at = 2 * ring;
    let transmit = Near::new(&table, 0, SIZE, features, Way::FromDriver, (at, 2048, 12 + frame));
    let receive = Near::new(&table, ring, SIZE, features, Way::ToDriver, (at + n * 2048, 2048, 2048));
    Rig { transmit, receive, table, features }
}

fn chain<L: Layout>(packed: bool, n: u32) {
    let mut rig = rig(packed, 60);
    let mut ring: Vring<L> = Vring::open(&rig.transmit.layout, &rig.table).expect("inside");
    let (mut bufs, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    for _ in 0..n {
        rig.transmit.offer(BURST);
        while bufs.len() < usize::from(BURST) {
            if ring.pop_simple(&mut bufs, usize::from(BURST), (1, u32::MAX), u64::MAX).0 == 0 {
                assert!(ring.pop(&mut bufs).is_some());
            }
        }
        bufs.finish_front(usize::from(BURST), &mut loans);
        ring.settle_front(&mut loans);
        ring.publish();
    }
}

fn turn(packed: bool, frame: u32, n: u32) {
    let mut rig = rig(packed, frame);
    let open = |near: &Near| AnyVring::open(&near.layout, &rig.table).expect("inside");
    let (from, to) = (open(&rig.transmit), open(&rig.receive));
    let mut queue: Box<dyn Queue> = local("count", rig.features, Some(from), Some(to)).expect("descriptors");
    let (mut bufs, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    queue.reap(&mut loans);
    for _ in 0..n {
        rig.transmit.offer(BURST);
        rig.receive.offer(BURST);
        assert_eq!(queue.rx(&mut bufs), usize::from(BURST));
        assert_eq!(queue.tx(&mut bufs), usize::from(BURST));
        queue.reap(&mut loans);
        queue.settle(&mut loans);
        assert_eq!((rig.transmit.used(SIZE), rig.receive.used(SIZE)), (BURST, BURST));
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (case, n) =
        (args.next().unwrap_or_default(), args.next().and_then(|n| n.parse().ok()).unwrap_or(1000));
    match case.as_str() {
        "chain-split" => chain::<Split<Mapped>>(false, n),
        "chain-packed" => chain::<Packed<Mapped>>(true, n),
        "loop-split-60" => turn(false, 60, n),
        "loop-packed-60" => turn(true, 60, n),
        "loop-split-1514" => turn(false, 1514, n),
        "loop-packed-1514" => turn(true, 1514, n),
        _ => {
            eprintln!(
                "count: no case {case:?}; there are chain-{{split,packed}}, loop-{{split,packed}}-{{60,1514}}"
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
