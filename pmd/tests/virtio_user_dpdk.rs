//! Our `virtio_user` port against DPDK's back-end: `dpdk-testpmd` with `net_vhost`, which swaps the
//! MAC addresses and sends every frame back. Skipped where `dpdk-testpmd` is not installed.

mod dpdk;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dpdk::Testpmd;
use hugepages::{Backing, Buf, Loan, PageSize, Pool};
use pmd::port::virtio_user::{Config, VirtioUser};
use pmd::spec::{net, virtio as v};
use pmd::{Batch, Port, Queue};

const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Frames of a case, over all queues.
const FRAMES: u32 = 10_000;

/// Each of the tests wants both cores.
fn alone() -> MutexGuard<'static, ()> {
    static CORES: Mutex<()> = Mutex::new(());
    CORES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn base() -> Backing {
    Backing { page: PageSize::Base, node: None }
}

/// Byte `i` of the payload of frame `seq`.
fn payload(seq: u32, i: u32) -> u8 {
    (seq.wrapping_mul(31) ^ i.wrapping_mul(7) ^ i >> 8) as u8
}

fn size_of(seq: u32, largest: u32) -> u32 {
    const SIZES: [u32; 8] = [60, 61, 64, 65, 128, 777, 1200, 1514];
    if largest > 1514 && seq % 8 == 7 { largest - seq % 5 } else { SIZES[seq as usize % 8] }
}

/// Writes frame `seq` into one buffer, or into a chain of pieces.
fn make(pool: &mut Pool, seq: u32, len: u32, out: &mut Batch<Buf>) -> bool {
    let pieces = if seq.is_multiple_of(5) { 3 } else { 1 }.max(len.div_ceil(pool.frame()));
    if pool.free() < pieces as usize || out.room() < pieces as usize {
        return false;
    }
    let mut bytes = Vec::with_capacity(len as usize);
    bytes.extend(THERE);
    bytes.extend(HERE);
    bytes.extend([0x88, 0xb5]);
    bytes.extend(seq.to_be_bytes());
    bytes.extend((18..len).map(|i| payload(seq, i)));
    let part = len.div_ceil(pieces) as usize;
    let mut chunks = bytes.chunks(part).peekable();
    while let Some(chunk) = chunks.next() {
        let mut buf = pool.take().expect("counted");
        buf.truncate(chunk.len() as u32);
        assert_eq!(buf.write(0, chunk), chunk.len());
        buf.set_more(chunks.peek().is_some());
        out.push(buf);
    }
    true
}

/// Reads the first packet of `batch`; its number. The buffers are finished.
fn check(batch: &mut Batch<Buf>, loans: &mut Batch<Loan>, largest: u32) -> u32 {
    let mut bytes = Vec::new();
    while let Some(buf) = batch.pop_front() {
        let mut part = vec![0; buf.len() as usize];
        assert_eq!(buf.read(0, &mut part), part.len());
        bytes.extend(part);
        let more = buf.more();
        loans.push(buf.finish(0));
        if !more {
            break;
        }
    }
    assert_eq!((&bytes[..6], &bytes[6..12]), (&HERE[..], &THERE[..]), "addresses are swapped");
    let seq = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
    assert_eq!(bytes.len() as u32, size_of(seq, largest), "frame {seq}");
    assert!((18..bytes.len()).all(|i| bytes[i] == payload(seq, i as u32)), "frame {seq} is damaged");
    seq
}

struct Lane {
    queue: Box<dyn Queue>,
    pool: Pool,
    waiting: Batch<Buf>,
    next: u32,
    end: u32,
    back: HashMap<u32, u32>,
}

/// Sends every lane's frames and waits for all to come back. At most `window` are out: testpmd drops
/// what finds no empty buffers in our ring.
fn exchange(lanes: &mut [Lane], largest: u32, window: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut received = Batch::default();
    let (mut own, mut theirs) = (Batch::default(), Batch::default());
    while lanes.iter().any(|lane| (lane.back.len() as u32) < lane.end) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            for _ in 0..8 {
                if lane.next < lane.end
                    && lane.next - (lane.back.len() as u32) < window
                    && make(&mut lane.pool, lane.next, size_of(lane.next, largest), &mut lane.waiting)
                {
                    lane.next += 1;
                }
            }
            lane.queue.tx(&mut lane.waiting);
            lane.queue.reap(&mut theirs);
            while let Some(loan) = theirs.pop_front() {
                lane.pool.settle(loan);
            }
            lane.queue.rx(&mut received);
            while !received.is_empty() {
                *lane.back.entry(check(&mut received, &mut own, largest)).or_default() += 1;
            }
            lane.queue.settle(&mut own);
            assert!(own.is_empty() && lane.queue.lent() == 0);
            assert!(Instant::now() < deadline, "lane {i}: {} of {} back", lane.back.len(), lane.end);
        }
    }
    for lane in lanes {
        assert!((0..lane.end).all(|seq| lane.back.get(&seq) == Some(&1)), "each frame once");
        assert_eq!((lane.pool.out(), lane.queue.held()), (0, 0));
    }
}

/// Lanes of a started port, for `frames` frames in all.
fn lanes(port: &mut VirtioUser, queues: u16, frames: u32) -> Vec<Lane> {
    let lane = |queue| Lane {
        queue,
        pool: Pool::new(1024, 2048, base()).unwrap().0,
        waiting: Batch::default(),
        next: 0,
        end: frames / u32::from(queues),
        back: HashMap::new(),
    };
    port.start(queues).unwrap().into_iter().map(lane).collect()
}

fn stop(port: &mut VirtioUser, lanes: Vec<Lane>) {
    port.stop(lanes.into_iter().map(|lane| lane.queue).collect()).unwrap();
    assert!(!port.link().up);
}

fn round_trip(config: Config, queues: u16, largest: u32) {
    let wanted = [
        (config.packed, v::F_RING_PACKED),
        (config.in_order, v::F_IN_ORDER),
        (config.mrg_rxbuf, net::F_MRG_RXBUF),
        (config.event_idx, v::F_EVENT_IDX),
        (config.indirect, v::F_INDIRECT_DESC),
    ];
    // The longest frame takes five buffers.
    let window = (u32::from(config.queue_size) / 6).min(100);
    let mut port = VirtioUser::new("virtio_user0", config).unwrap();
    let mut lanes = lanes(&mut port, queues, FRAMES);
    assert!(port.link().up);
    for (asked, feature) in wanted {
        assert_eq!(port.features() & feature != 0, asked, "feature {feature:#x}");
    }
    exchange(&mut lanes, largest, window);
    for (stats, lane) in port.stats().iter().zip(&lanes) {
        assert_eq!((stats.tx_packets, stats.rx_packets), (lane.end.into(), lane.end.into()));
        assert_eq!(
            (stats.tx_bytes, stats.rx_errors, stats.tx_errors, stats.faults),
            (stats.rx_bytes, 0, 0, 0)
        );
    }
    stop(&mut port, lanes);
}

#[test]
fn every_frame_comes_back() {
    let _alone = alone();
    for queues in [1, 4] {
        let Some(peer) = Testpmd::vhost("frames", queues, "") else { return };
        for case in 0..16 {
            let bit = |i: u32| case >> i & 1 != 0;
            let config = Config {
                path: peer.socket().to_owned(),
                queues,
                packed: bit(0),
                in_order: bit(1),
                mrg_rxbuf: bit(2),
                event_idx: bit(3),
                backing: base(),
                ..Config::default()
            };
            let (flags, began) = ([0, 1, 2, 3].map(bit), Instant::now());
            round_trip(config, queues, 1514);
            println!(
                "{queues} queue pairs, [packed, in-order, mergeable, event index] {flags:?}: {FRAMES} frames \
                 there and back in {:?}",
                began.elapsed()
            );
        }
    }
}

#[test]
fn long_frames_and_odd_rings() {
    let _alone = alone();
    let Some(peer) = Testpmd::vhost("long", 1, "") else { return };
    for (queue_size, packed, mrg_rxbuf, indirect) in [
        (1024, false, true, true),
        (1024, false, false, false),
        (1000, true, true, true),
        (333, true, false, false),
        (64, true, true, false),
        (64, false, true, true),
    ] {
        let path = peer.socket().to_owned();
        let (mtu, backing) = (9000, base());
        let config =
            Config { path, queue_size, packed, mrg_rxbuf, indirect, mtu, backing, ..Config::default() };
        round_trip(config, 1, 9014);
    }
}

/// Runs the lanes' cores until the link is up or down, as said.
fn wait_for(up: bool, port: &VirtioUser, lanes: &mut [Lane]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while port.link().up != up {
        assert!(Instant::now() < deadline, "link up: {}", port.link().up);
        for lane in lanes.iter_mut() {
            let mut none = Batch::default();
            lane.queue.reap(&mut none);
        }
    }
}

/// Sends single frames until they come back: a testpmd that connects to us takes frames before it can
/// send any. None is on its way afterwards.
fn warm_up(lanes: &mut [Lane]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut sent, mut loans, mut back) = (Batch::default(), Batch::default(), Batch::default());
    for lane in lanes {
        let mut quiet = 0;
        lane.queue.reap(&mut loans);
        while quiet < 3 {
            assert!(Instant::now() < deadline, "nothing comes back");
            assert!(make(&mut lane.pool, 1, size_of(1, 1514), &mut sent));
            assert_eq!(lane.queue.tx(&mut sent), 1);
            lane.queue.reap(&mut loans);
            lane.pool.settle(loans.pop_front().unwrap());
            std::thread::sleep(Duration::from_millis(20));
            quiet = if lane.queue.rx(&mut back) > 0 { quiet + 1 } else { 0 };
            while !back.is_empty() {
                check(&mut back, &mut loans, 1514);
            }
            lane.queue.settle(&mut loans);
        }
    }
}

#[test]
fn a_new_back_end_takes_over() {
    let _alone = alone();
    for (server, packed) in [(false, false), (false, true), (true, false), (true, true)] {
        let name = format!("again{}{}", u8::from(server), u8::from(packed));
        let path = dpdk::socket_of(&name);
        let vdev = if server { ",client=1" } else { "" };
        let mut peer = None;
        if !server {
            peer = Testpmd::vhost(&name, 2, vdev);
            if peer.is_none() {
                return;
            }
        }
        let config = Config { path, server, packed, queues: 2, backing: base(), ..Config::default() };
        let mut port = VirtioUser::new("virtio_user0", config).unwrap();
        let mut lanes = lanes(&mut port, 2, 0);
        for round in 1..3 {
            if peer.is_none() {
                peer = Testpmd::vhost(&name, 2, vdev);
                if peer.is_none() {
                    return;
                }
            }
            wait_for(true, &port, &mut lanes);
            warm_up(&mut lanes);
            for lane in &mut lanes {
                lane.end += 3000;
            }
            exchange(&mut lanes, 1514, 64);
            assert_eq!(port.xstats()[0].1, round);
            peer = None;
            wait_for(false, &port, &mut lanes);
            let mut batch = Batch::default();
            make(&mut lanes[0].pool, 1, 60, &mut batch);
            lanes[0].queue.reap(&mut Batch::default());
            assert_eq!(lanes[0].queue.tx(&mut batch), 0, "no link, nothing is taken");
            lanes[0].pool.settle(batch.pop_front().unwrap().finish(0));
        }
        stop(&mut port, lanes);
    }
}
