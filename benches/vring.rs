//! Per chain: pop, settle and publish of both layouts, mapped and checked, and of `virtio-queue`.
//!
//! One thread plays both sides, 32 chains at a time; the driver's part is an index (split) or a word
//! a descriptor (packed), and is measured alone as `driver`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hugepages::{Backing, Buf, Loan, Map, Table};
use pmd::Batch;
use pmd::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use pmd::vring::{Checked, Layout, Mapped, Packed, Split, Vring, Way};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use benches::{Near, ring_bytes};

const BURST: u16 = 32;
const SIZE: u16 = 1024;

fn rig(packed: bool) -> (std::sync::Arc<Table>, Near) {
    let at = ring_bytes(SIZE);
    let (map, _) =
        Map::shared_or_base((at + u64::from(SIZE) * 2048) as usize, Backing::default()).expect("memory");
    let table = Table::of(map);
    let features = F_VERSION_1 | if packed { F_RING_PACKED } else { 0 };
    let near = Near::new(&table, 0, SIZE, features, Way::FromDriver, (at, 2048, 64));
    (table, near)
}

fn ours<L: Layout>(c: &mut Criterion, name: &str, packed: bool) {
    let (table, mut rig) = rig(packed);
    let mut ring: Vring<L> = Vring::open(&rig.layout, &table).expect("the ring lies in the table");
    let (mut bufs, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Elements(BURST.into()));
    group.bench_function(name, |b| {
        b.iter(|| {
            rig.offer(BURST);
            while bufs.len() < usize::from(BURST) {
                if ring.pop_simple(&mut bufs, usize::from(BURST), (1, u32::MAX), u64::MAX).0 == 0 {
                    assert!(ring.pop(&mut bufs).is_some());
                }
            }
            bufs.finish_front(usize::from(BURST), &mut loans);
            ring.settle_front(&mut loans);
            ring.publish()
        });
    });
    group.finish();
}

fn theirs(c: &mut Criterion) {
    let (_, rig) = rig(false);
    // The crate wants a memory of its own: the same ring, written there.
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).expect("memory");
    let (desc, driver, device) = (rig.layout.desc, rig.layout.driver, rig.layout.device);
    for i in 0..u64::from(SIZE) {
        memory.write_obj(0x10_0000 + i * 2048, GuestAddress(desc + i * 16)).expect("inside");
        memory.write_obj(64u64, GuestAddress(desc + i * 16 + 8)).expect("inside");
        memory.write_obj(i as u16, GuestAddress(driver + 4 + 2 * i)).expect("inside");
    }
    memory.write_obj(1u16, GuestAddress(driver)).expect("inside");
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_desc_table_address(Some(desc as u32), Some(0));
    queue.set_avail_ring_address(Some(driver as u32), Some(0));
    queue.set_used_ring_address(Some(device as u32), Some(0));
    queue.set_ready(true);
    let mut idx = 0u16;
    let mut heads = Vec::new();
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Elements(BURST.into()));
    group.bench_function("virtio-queue", |b| {
        b.iter(|| {
            idx = idx.wrapping_add(BURST);
            memory.write_obj(idx, GuestAddress(driver + 2)).expect("inside");
            heads.clear();
            for chain in queue.iter(&memory).expect("ready") {
                let head = chain.head_index();
                let buf = chain.into_iter().next().expect("one buffer");
                heads.push((head, memory.get_slice(buf.addr(), buf.len() as usize).expect("inside").len()));
            }
            assert_eq!(heads.len(), usize::from(BURST));
            for &(head, _) in &heads {
                queue.add_used(&memory, head, 0).expect("inside");
            }
            queue.needs_notification(&memory).expect("inside")
        });
    });
    group.finish();
}

fn driver(c: &mut Criterion) {
    let (_, mut rig) = rig(true);
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Elements(BURST.into()));
    group.bench_function("driver, packed", |b| b.iter(|| rig.offer(BURST)));
    group.finish();
}

fn all(c: &mut Criterion) {
    ours::<Split<Mapped>>(c, "split, mapped", false);
    ours::<Packed<Mapped>>(c, "packed, mapped", true);
    ours::<Split<Checked>>(c, "split, checked", false);
    ours::<Packed<Checked>>(c, "packed, checked", true);
    theirs(c);
    driver(c);
}

criterion_group!(benches, all);
criterion_main!(benches);
