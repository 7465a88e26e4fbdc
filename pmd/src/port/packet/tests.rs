//! Two ports on the two ends of a veth pair; needs root, says so without.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Loan, Offload, PageSize, Pool};

use super::*;
use crate::batch::Batch;
use crate::spec::net;

const BACKING: Backing = Backing { page: PageSize::Base, node: None };
const LONG: Duration = Duration::from_secs(10);

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).output().is_ok_and(|out| out.status.success())
}

/// Runs `test` in a thread with a network namespace of its own, in which there are `veth0` and `veth1`.
fn with_veth(mtu: u32, test: impl FnOnce() + Send) {
    let body = || {
        #[allow(deprecated)]
        let moved = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        if moved.is_err() || !ip("link add veth0 type veth peer name veth1") {
            println!("skipped: a veth pair needs root and iproute2");
            return;
        }
        for iface in ["veth0", "veth1"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{iface}/disable_ipv6"), "1");
            assert!(ip(&format!("link set {iface} mtu {mtu} up")));
        }
        test();
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
}

fn started(iface: &str, queues: u16) -> (Packet, Vec<Box<dyn Queue>>) {
    let config = Config { iface: iface.into(), block: 1 << 17, blocks: 4, ..Config::default() };
    let mut port = Packet::new(iface, config).unwrap();
    let queues = port.start(queues).unwrap();
    (port, queues)
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 7 + seed * 13 + i / 256) as u8).collect();
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
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

fn home(queue: &mut dyn Queue, pool: &mut Pool, done: &mut Batch<Loan>) {
    queue.reap(done);
    while !done.is_empty() {
        pool.settle_front(done);
        queue.settle(done);
    }
}

/// Frames that have arrived, with what they ask for, given back at once.
fn receive(queue: &mut dyn Queue, count: usize, patience: Duration) -> Vec<(Vec<u8>, Offload)> {
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let mut frames = Vec::new();
    let until = Instant::now() + patience;
    while frames.len() < count && Instant::now() < until {
        queue.rx(&mut batch);
        while let Some(buf) = batch.pop_front() {
            let mut bytes = vec![0; buf.len() as usize];
            buf.read(0, &mut bytes);
            frames.push((bytes, buf.offload));
            done.push(buf.finish(0));
        }
        queue.settle(&mut done);
    }
    assert_eq!(queue.lent(), 0);
    frames
}

#[test]
fn frames_pass_a_veth_pair_and_come_back() {
    with_veth(9000, || {
        let ((a, mut from), (b, mut to)) = (started("veth0", 1), started("veth1", 1));
        let (from, to) = (&mut *from[0], &mut *to[0]);
        let (mut pool, _) = Pool::new(256, 2048, BACKING).unwrap();
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        let sizes = [60, 61, 64, 1000, 1514, 2048, 2049, 9014];
        // More than the ring holds in all: blocks come and go.
        for lap in 0..60 {
            let frames: Vec<_> = sizes.iter().enumerate().map(|(i, &len)| frame(len, lap * 31 + i)).collect();
            frames.iter().for_each(|bytes| put(&mut pool, bytes, &mut batch));
            assert_eq!(from.tx(&mut batch), frames.len(), "lap {lap}");
            home(from, &mut pool, &mut done);
            let (until, mut turned) = (Instant::now() + LONG, 0);
            while turned < frames.len() && Instant::now() < until {
                turned += to.rx(&mut batch);
                while !batch.is_empty() && to.tx(&mut batch) > 0 {}
                to.reap(&mut done);
                to.settle(&mut done);
            }
            let got: Vec<_> = receive(from, frames.len(), LONG).into_iter().map(|(bytes, _)| bytes).collect();
            assert_eq!(got, frames, "lap {lap}");
            assert_eq!((to.lent(), to.held(), pool.out()), (0, 0, 0));
        }
        let n = 60 * sizes.len() as u64;
        let (sent, turned) = (a.stats()[0], b.stats()[0]);
        assert_eq!((sent.tx_packets, sent.rx_packets, turned.rx_packets, turned.tx_packets), (n, n, n, n));
        assert_eq!((a.caps().mtu, a.xstats()), (9000, vec![("rx_ring_full".to_owned(), 0)]));
    });
}

#[test]
fn tags_and_open_checksums_and_large_packets_arrive() {
    with_veth(1500, || {
        let ((_a, mut from), (_b, mut to)) = (started("veth0", 1), started("veth1", 1));
        let (from, to) = (&mut *from[0], &mut *to[0]);
        let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        let mut tagged = frame(100, 3);
        tagged[12..18].copy_from_slice(&[0x81, 0, 0x20, 7, 0x88, 0xb5]);
        put(&mut pool, &tagged, &mut batch);
        assert_eq!(from.tx(&mut batch), 1);
        home(from, &mut pool, &mut done);
        assert_eq!(receive(to, 1, LONG), [(tagged, Offload::default())], "the tag is where it was");
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 2000, 7, 100);
        let mut open = Vec::new();
        builder.write(&mut open, &frame(9000, 5)).unwrap();
        let mut pseudo = crate::offload::Sum::default();
        pseudo.add(&open[26..34]);
        pseudo.add_word(6);
        pseudo.add_word(9020);
        open[50..52].copy_from_slice(&pseudo.partial().to_be_bytes());
        let asked = Offload {
            flags: net::HDR_F_NEEDS_CSUM,
            gso_type: net::GSO_TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        put(&mut pool, &open, &mut batch);
        batch.get_mut(0).unwrap().offload = asked;
        assert_eq!(from.tx(&mut batch), 1);
        home(from, &mut pool, &mut done);
        let (bytes, offload) = receive(to, 1, LONG).pop().unwrap();
        assert_eq!((bytes.len(), offload.gso_size, offload.flags), (open.len(), 1448, net::HDR_F_NEEDS_CSUM));
        assert_eq!((&bytes[54..], offload.csum_start), (&open[54..], 34));
        // One that cannot be sent is taken, counted, and the next goes.
        put(&mut pool, &frame(4000, 1), &mut batch);
        put(&mut pool, &frame(60, 2), &mut batch);
        assert_eq!(from.tx(&mut batch), 2);
        home(from, &mut pool, &mut done);
        assert_eq!(receive(to, 1, LONG), [(frame(60, 2), Offload::default())]);
        assert_eq!((from.counters().stats().tx_errors, pool.out()), (1, 0));
    });
}

#[test]
fn queues_share_the_frames_by_flow() {
    with_veth(1500, || {
        let ((_a, mut from), (_b, mut to)) = (started("veth0", 1), started("veth1", 3));
        let (mut pool, _) = Pool::new(256, 2048, BACKING).unwrap();
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        for port in 0..60 {
            let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .udp(1000 + port, 2000);
            let mut bytes = Vec::new();
            builder.write(&mut bytes, &[port as u8; 32]).unwrap();
            put(&mut pool, &bytes, &mut batch);
        }
        assert_eq!(from[0].tx(&mut batch), 60);
        home(&mut *from[0], &mut pool, &mut done);
        let (mut seen, mut by_queue) = (Vec::new(), [0; 3]);
        let until = Instant::now() + LONG;
        while seen.len() < 60 && Instant::now() < until {
            for (queue, n) in to.iter_mut().zip(&mut by_queue) {
                let got = receive(&mut **queue, 60, Duration::from_millis(2));
                *n += got.len();
                seen.extend(got.iter().map(|(bytes, _)| bytes[42]));
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..60).collect::<Vec<u8>>(), "each once");
        assert!(by_queue.iter().all(|&n| n > 0), "{by_queue:?}");
    });
}

#[test]
fn a_block_goes_back_when_its_last_frame_is_home() {
    with_veth(1500, || {
        let ((a, mut from), (b, mut to)) = (started("veth0", 1), started("veth1", 1));
        let (from, to) = (&mut *from[0], &mut *to[0]);
        let (mut pool, _) = Pool::new(256, 2048, BACKING).unwrap();
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        let (mut held, mut sent) = (Vec::new(), 0);
        // Until all blocks are ours: the kernel drops the rest.
        for lap in 0..40 {
            (0..32).for_each(|i| put(&mut pool, &frame(1514, lap * 32 + i), &mut batch));
            sent += from.tx(&mut batch);
            home(from, &mut pool, &mut done);
            thread::sleep(Duration::from_millis(5));
            while to.rx(&mut batch) > 0 {
                held.extend(std::iter::from_fn(|| batch.pop_front()));
            }
        }
        assert!(sent == 40 * 32 && held.len() < sent && to.lent() as usize == held.len(), "{}", held.len());
        let whole = |(seed, buf): (usize, &Buf)| buf.peek::<u8>(1) == Some(frame(60, seed)[1]);
        assert!(held.iter().enumerate().all(whole), "what is lent is not written over");
        for buf in held {
            done.push(buf.finish(0));
            to.settle(&mut done);
        }
        assert_eq!(to.lent(), 0);
        assert!(b.xstats()[0].1 > 0 && a.link().up);
        put(&mut pool, &frame(70, 9), &mut batch);
        assert_eq!(from.tx(&mut batch), 1);
        home(from, &mut pool, &mut done);
        let last = receive(to, 1, LONG);
        assert_eq!(last.len(), 1, "the ring goes on");
    });
}

#[test]
fn an_interface_that_goes_away_is_a_link_down() {
    with_veth(1500, || {
        let (port, mut queues) = started("veth0", 1);
        let queue = &mut *queues[0];
        let link_is = |up| {
            let until = Instant::now() + LONG;
            while port.link().up != up && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            port.link().up == up
        };
        let (mut pool, _) = Pool::new(64, 2048, BACKING).unwrap();
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        let mut send = |queue: &mut dyn Queue| {
            put(&mut pool, &frame(60, 1), &mut batch);
            assert_eq!(queue.tx(&mut batch), 1);
            home(queue, &mut pool, &mut done);
            assert_eq!(pool.out(), 0);
        };
        assert!(link_is(true));
        assert!(ip("link set veth0 down") && link_is(false));
        send(queue);
        assert_eq!(queue.counters().stats().tx_errors, 1);
        assert!(
            ip("link set veth0 name other") && ip("link set other up") && link_is(true),
            "by another name"
        );
        send(queue);
        assert_eq!(queue.counters().stats().tx_packets, 1);
        assert!(ip("link del other") && link_is(false));
        send(queue);
        assert_eq!((queue.rx(&mut Batch::default()), queue.counters().stats().tx_errors), (0, 2));
    });
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let config = |iface: &str| Config { iface: iface.into(), ..Config::default() };
    for (config, words) in [
        (config("nonesuch"), "port p0: interface nonesuch: ip link shows"),
        (Config { netns: Some("nonesuch".into()), ..config("lo") }, "port p0: netns=nonesuch: ip netns list"),
        (Config { block: 4096, ..config("lo") }, "a ring of 32 blocks of 4096 bytes: blocksz= is"),
    ] {
        let why = Packet::new("p0", config).err().unwrap().to_string();
        assert!(why.contains(words), "{why}");
    }
}
