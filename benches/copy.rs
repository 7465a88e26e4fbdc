//! A frame from one guest's buffer into another's: [`Buf::copy_to`] by size, beside `memcpy` of the same
//! bytes. 64 buffers on each side, so that the data is in the second-level cache, as it is behind a ring.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hugepages::{Backing, Buf, MapError, Pool};

const FRAMES: usize = 64;

type Make = fn(usize, u32, Backing) -> Result<(Pool, Option<MapError>), MapError>;

/// Where copies come from and go to: both at the beginning of a line; to where a packet is in a guest's buffer, from
/// the beginning of a line; and both there.
const PLACES: [(&str, Make, Make); 3] = [
    ("Buf::copy_to", Pool::new, Pool::new),
    ("behind a header", Pool::new, Pool::for_packets),
    ("behind a header, from a frame for packets", Pool::for_packets, Pool::for_packets),
];

fn frames(bytes: u32, make: Make) -> (Pool, Vec<Buf>) {
    let (mut pool, _) = make(FRAMES, 9216, Backing::default()).expect("memory");
    let bufs = (0..FRAMES)
        .map(|_| {
            let mut buf = pool.take().expect("as many as there are");
            buf.truncate(bytes);
            buf
        })
        .collect();
    (pool, bufs)
}

fn copies(c: &mut Criterion) {
    for bytes in [60u32, 128, 252, 508, 1024, 1514, 4096, 9014] {
        let mut group = c.benchmark_group(format!("copy/{bytes}"));
        group.throughput(Throughput::Bytes(u64::from(bytes)));
        let mut i = 0;
        for (name, from, to) in PLACES {
            let ((mut from_pool, from), (mut to_pool, mut to)) = (frames(bytes, from), frames(bytes, to));
            group.bench_function(name, |b| {
                b.iter(|| {
                    i = (i + 1) % FRAMES;
                    from[i].copy_to(&mut to[i])
                });
            });
            from.into_iter().for_each(|buf| from_pool.settle(buf.finish(0)));
            to.into_iter().for_each(|buf| to_pool.settle(buf.finish(0)));
        }
        let from = vec![vec![1u8; 9216]; FRAMES];
        let mut to = vec![vec![2u8; 9216]; FRAMES];
        group.bench_function("memcpy", |b| {
            b.iter(|| {
                i = (i + 1) % FRAMES;
                let n = std::hint::black_box(bytes as usize);
                to[i][..n].copy_from_slice(&from[i][..n]);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, copies);
criterion_main!(benches);
