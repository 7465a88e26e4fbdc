//! On DPDK's software devices. Its environment starts once in a process: one test.

use std::time::{Duration, Instant};

use hugepages::{Buf, Loan, Offload, PageSize, Pool};

use super::*;
use crate::batch::Batch;
use crate::spec::net;

const BACKING: Backing = Backing { page: PageSize::Base, node: None };

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed * 13 + i / 256) as u8).collect()
}

fn put(pool: &mut Pool, bytes: &[u8], batch: &mut Batch<Buf>) {
    let mut chunks = bytes.chunks(pool.frame() as usize).peekable();
    while let Some(chunk) = chunks.next() {
        let mut buf = pool.take().unwrap();
        buf.truncate(chunk.len() as u32);
        buf.write(0, chunk);
        buf.set_more(chunks.peek().is_some());
        batch.push(buf);
    }
}

/// Receipts to where they belong.
fn home(queue: &mut dyn Queue, pool: &mut Pool, done: &mut Batch<Loan>) {
    queue.reap(done);
    while !done.is_empty() {
        let before = done.len();
        pool.settle_front(done);
        queue.settle(done);
        assert!(done.len() < before, "every receipt has its owner");
    }
}

fn receive(queue: &mut dyn Queue, count: usize) -> Vec<Vec<u8>> {
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let (mut frames, mut bytes) = (Vec::new(), Vec::new());
    let until = Instant::now() + Duration::from_secs(2);
    while frames.len() < count && Instant::now() < until {
        queue.rx(&mut batch);
        while let Some(buf) = batch.pop_front() {
            let mut part = vec![0; buf.len() as usize];
            buf.read(0, &mut part);
            bytes.extend(part);
            if !buf.more() {
                frames.push(std::mem::take(&mut bytes));
            }
            done.push(buf.finish(0));
        }
        queue.settle(&mut done);
    }
    frames
}

fn port(name: &str) -> Dpdk {
    let (id, _) = ports().into_iter().find(|(_, n)| n == name).expect("as it was asked for");
    Dpdk::new(name, Config { id, frames: 2047, backing: BACKING, rings: (256, 256), ..Config::default() })
        .unwrap()
}

#[test]
fn devices_of_dpdk_are_ports() {
    let folder = std::env::temp_dir();
    let [taken, given] =
        ["in", "out"].map(|way| folder.join(format!("hotring-{}-{way}.pcap", std::process::id())));
    let frames: Vec<_> = [60, 61, 1514, 2048].iter().map(|&len| frame(len, len)).collect();
    std::fs::write(&taken, capture(&frames)).unwrap();
    let socket = format!("hotring-dpdk-{}", std::process::id());
    let args = format!(
        "--no-huge --no-shconf --no-pci --no-telemetry -m 128 --vdev net_ring0 --vdev net_null0,size=64,copy=1 \
         --vdev net_pcap0,rx_pcap={},tx_pcap={} --vdev net_memif0,role=client,socket={socket}",
        taken.display(),
        given.display()
    );
    // Mapped before DPDK was there: registered as well.
    let (mut pool, _) = Pool::new(512, 2048, BACKING).unwrap();
    assert!(ports().is_empty());
    init(&args.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap();
    assert!(init(&[]).unwrap_err().to_string().contains("once in a process"));
    assert!(Dpdk::new("dpdk9", Config { id: 9, ..Config::default() }).is_err());
    ring(&mut pool);
    null(&mut pool);
    pcap(&frames);
    assert_eq!(std::fs::read(&given).unwrap().len(), capture(&frames).len());
    assert!(std::fs::read(&given).unwrap().ends_with(&frames[3]));
    memif(&mut pool, &socket);
    assert_eq!(leaked(), 0, "every buffer of DPDK's is home");
    [taken, given].iter().for_each(|file| std::fs::remove_file(file).unwrap());
}

/// A capture file of Ethernet frames.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let mut out = words(&[0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 65535, 1]);
    for frame in frames {
        out.extend(words(&[0, 0, frame.len() as u32, frame.len() as u32]));
        out.extend(frame);
    }
    out
}

/// Frames from one file go to another where they lie.
fn pcap(frames: &[Vec<u8>]) {
    let mut port = port("net_pcap0");
    let mut queue = port.start(1).unwrap().pop().unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let (mut turned, until) = (0, Instant::now() + Duration::from_secs(20));
    while turned < frames.len() && Instant::now() < until {
        queue.rx(&mut batch);
        turned += queue.tx(&mut batch);
        queue.reap(&mut done);
        queue.settle(&mut done);
    }
    assert_eq!((turned, queue.lent(), queue.held()), (frames.len(), 0, 0));
    port.stop(vec![queue]).unwrap();
}

/// DPDK's client on our server.
fn memif(pool: &mut Pool, socket: &str) {
    use crate::port::memif::{self, Memif, Role};
    let config = memif::Config { role: Role::Server, socket: socket.into(), ..memif::Config::default() };
    let mut ours = Memif::new("memif0", config).unwrap();
    let mut server = ours.start(1).unwrap().pop().unwrap();
    let mut theirs = port("net_memif0");
    let mut client = theirs.start(1).unwrap().pop().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !(ours.link().up && theirs.link().up) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    server.reap(&mut done);
    // It makes room for what is to come only when it is asked.
    client.rx(&mut batch);
    for lap in 0..50 {
        let frames: Vec<_> = [60, 1514, 2048].iter().map(|&len| frame(len, lap)).collect();
        for server_sends in [false, true] {
            let (from, to) =
                if server_sends { (&mut server, &mut client) } else { (&mut client, &mut server) };
            frames.iter().for_each(|bytes| put(pool, bytes, &mut batch));
            assert_eq!(from.tx(&mut batch), 3, "lap {lap}");
            assert_eq!(receive(&mut **to, 3), frames, "lap {lap}");
            home(&mut **from, pool, &mut done);
            assert_eq!((from.held(), pool.out()), (0, 0));
        }
    }
    theirs.stop(vec![client]).unwrap();
    ours.stop(vec![server]).unwrap();
}

/// What is sent comes back on the same port.
fn ring(pool: &mut Pool) {
    let mut port = port("net_ring0");
    let mut queue = port.start(1).unwrap().pop().unwrap();
    assert!(port.link().up);
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    for lap in 0..200 {
        let sizes = [60, 61, 64, 1000, 1514, 2048];
        let frames: Vec<_> = sizes.iter().enumerate().map(|(i, &len)| frame(len, lap * 31 + i)).collect();
        frames.iter().for_each(|bytes| put(pool, bytes, &mut batch));
        assert_eq!(queue.tx(&mut batch), frames.len());
        assert_eq!(queue.held(), frames.len() as u32, "they are read where they lie");
        // Lent where they are, sent back where they are, and once more.
        let mut turned = 0;
        while turned < frames.len() {
            turned += queue.rx(&mut batch);
            while !batch.is_empty() && queue.tx(&mut batch) > 0 {}
        }
        assert_eq!(receive(&mut *queue, frames.len()), frames, "lap {lap}");
        home(&mut *queue, pool, &mut done);
        assert_eq!((queue.lent(), queue.held(), pool.out()), (0, 0, 0));
    }
    open(&mut *queue, pool);
    assert_eq!(port.stats()[0].tx_packets, 200 * 12 + 1);
    port.stop(vec![queue]).unwrap();
    // And again.
    let queue = port.start(1).unwrap();
    port.stop(queue).unwrap();
}

/// A checksum that was left open is completed in a copy.
fn open(queue: &mut dyn Queue, pool: &mut Pool) {
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let payload: Vec<u8> = (0..100u8).collect();
    let builder =
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2);
    let mut whole = Vec::new();
    builder.write(&mut whole, &payload).unwrap();
    let mut open = whole.clone();
    let mut pseudo = crate::offload::Sum::default();
    pseudo.add(&open[26..34]);
    pseudo.add_word(17);
    pseudo.add_word(108);
    open[40..42].copy_from_slice(&pseudo.partial().to_be_bytes());
    put(pool, &open, &mut batch);
    batch.get_mut(0).unwrap().offload =
        Offload { flags: net::HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
    assert_eq!(queue.tx(&mut batch), 1);
    assert_eq!(receive(queue, 1), [whole]);
    home(queue, pool, &mut done);
    assert_eq!((queue.held(), pool.out()), (0, 0));
}

/// Gives frames for nothing, takes everything.
fn null(pool: &mut Pool) {
    let mut port = port("net_null0");
    let mut queue = port.start(1).unwrap().pop().unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    for _ in 0..100 {
        assert_eq!(queue.rx(&mut batch), batch.burst());
        assert!(queue.lent() > 0);
        (0..32).for_each(|i| put(pool, &frame(200, i), &mut batch));
        while !batch.is_empty() {
            assert!(queue.tx(&mut batch) > 0);
            home(&mut *queue, pool, &mut done);
        }
    }
    assert_eq!((queue.lent(), queue.held(), pool.out()), (0, 0, 0));
    port.stop(vec![queue]).unwrap();
}
