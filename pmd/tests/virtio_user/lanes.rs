//! Queues of a port, and frames that are known again when they come back with their addresses swapped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Loan, PageSize, Pool};
use pmd::port::virtio_user::{Config, VirtioUser};
use pmd::spec::{net, virtio as v};
use pmd::{Batch, Port, Queue};

pub(crate) const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) fn base() -> Backing {
    Backing { page: PageSize::Base, node: None }
}

/// Byte `i` of the payload of frame `seq`.
pub(crate) fn payload(seq: u32, i: u32) -> u8 {
    (seq.wrapping_mul(31) ^ i.wrapping_mul(7) ^ i >> 8) as u8
}

pub(crate) fn size_of(seq: u32, largest: u32) -> u32 {
    const SIZES: [u32; 8] = [60, 61, 64, 65, 128, 777, 1200, 1514];
    if largest > 1514 && seq % 8 == 7 { largest - seq % 5 } else { SIZES[seq as usize % 8] }
}

/// Writes frame `seq` into one buffer, or into a chain of pieces.
pub(crate) fn make(pool: &mut Pool, seq: u32, len: u32, out: &mut Batch<Buf>) -> bool {
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
pub(crate) fn check(batch: &mut Batch<Buf>, loans: &mut Batch<Loan>, largest: u32) -> u32 {
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

pub(crate) struct Lane {
    pub(crate) queue: Box<dyn Queue>,
    pub(crate) pool: Pool,
    pub(crate) waiting: Batch<Buf>,
    pub(crate) next: u32,
    pub(crate) end: u32,
    pub(crate) back: HashMap<u32, u32>,
}

/// Sends every lane's frames and waits for all to come back. At most `window` are out: testpmd drops
/// what finds no empty buffers in our ring.
pub(crate) fn exchange(lanes: &mut [Lane], largest: u32, window: u32) {
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
pub(crate) fn lanes(port: &mut VirtioUser, queues: u16, frames: u32) -> Vec<Lane> {
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

pub(crate) fn stop(port: &mut VirtioUser, lanes: Vec<Lane>) {
    port.stop(lanes.into_iter().map(|lane| lane.queue).collect()).unwrap();
    assert!(!port.link().up);
}

pub(crate) fn round_trip(config: Config, queues: u16, largest: u32, frames: u32) {
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
    let mut lanes = lanes(&mut port, queues, frames);
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

/// Runs the lanes' cores until the link is up or down, as said.
pub(crate) fn wait_for(up: bool, port: &VirtioUser, lanes: &mut [Lane]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while port.link().up != up {
        assert!(Instant::now() < deadline, "link up: {}", port.link().up);
        for lane in lanes.iter_mut() {
            let mut none = Batch::default();
            lane.queue.reap(&mut none);
        }
    }
}
