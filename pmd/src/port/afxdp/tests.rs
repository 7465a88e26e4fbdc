//! Two ports on the two ends of a veth pair; needs root, says so without.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan, Offload, PageSize, Pool};

use super::*;
use crate::batch::Batch;
use crate::spec::net;

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

const BACKING: Backing = Backing { page: PageSize::Base, node: None };

fn started(iface: &str, mode: Mode, leave: Vec<Leave>) -> (Afxdp, Box<dyn Queue>) {
    let config =
        Config { iface: iface.into(), mode, leave, frames: 1024, backing: BACKING, ..Config::default() };
    let mut port = Afxdp::new(iface, config).unwrap();
    let queue = port.start(1).unwrap().pop().unwrap();
    (port, queue)
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 7 + seed * 13 + i / 256) as u8).collect();
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// Puts a frame into buffers of a pool.
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

/// One turn of a queue without forwarding: what `done` has for it, and its receipts for the pool.
fn home(queue: &mut dyn Queue, pool: &mut Pool, done: &mut Batch<Loan>) {
    queue.reap(done);
    while !done.is_empty() {
        pool.settle_front(done);
        queue.settle(done);
    }
}

/// The frames that have arrived, given back at once.
fn receive(queue: &mut dyn Queue, count: usize) -> Vec<Vec<u8>> {
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let (mut frames, mut bytes) = (Vec::new(), Vec::new());
    let until = Instant::now() + Duration::from_secs(3);
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
    assert_eq!(queue.lent(), 0);
    frames
}

/// Sends frames of these sizes from one end to the other, in bursts, and back.
fn there_and_back(mode: Mode, mtu: u32, sizes: &[usize]) {
    let (mut a, mut from) = started("veth0", mode, Vec::new());
    let (mut b, mut to) = started("veth1", mode, Vec::new());
    assert_eq!(a.mode().unwrap().0, mode != Mode::Generic);
    assert!(link_is(&a, true) && a.mac() != b.mac() && a.caps().mtu == mtu);
    let (mut pool, _) = Pool::new(256, 2048, BACKING).unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    for lap in 0..40 {
        let frames: Vec<_> = sizes.iter().enumerate().map(|(i, &len)| frame(len, lap * 31 + i)).collect();
        for bytes in &frames {
            put(&mut pool, bytes, &mut batch);
        }
        assert_eq!(from.tx(&mut batch), frames.len(), "lap {lap}");
        home(&mut *from, &mut pool, &mut done);
        // At the other end every frame is sent back where it lies, and arrives as it was.
        let until = Instant::now() + Duration::from_secs(3);
        let mut turned = 0;
        while turned < frames.len() && Instant::now() < until {
            turned += to.rx(&mut batch);
            while !batch.is_empty() && to.tx(&mut batch) > 0 {}
            to.reap(&mut done);
            to.settle(&mut done);
        }
        assert_eq!(receive(&mut *from, frames.len()), frames, "lap {lap}");
        to.reap(&mut done);
        to.settle(&mut done);
        assert_eq!((to.lent(), to.held(), pool.out()), (0, 0, 0));
    }
    let n = 40 * sizes.len() as u64;
    let (sent, turned) = (a.stats()[0], b.stats()[0]);
    assert_eq!((sent.tx_packets, sent.rx_packets, turned.rx_packets, turned.tx_packets), (n, n, n, n));
    assert!(a.xstats().iter().all(|(name, n)| !name.contains("invalid") || *n == 0), "{:?}", a.xstats());
    a.stop(vec![from]).unwrap();
    b.stop(vec![to]).unwrap();
}

const SIZES: [usize; 9] = [60, 61, 64, 100, 500, 1000, 1400, 1500, 1514];

#[test]
fn frames_pass_a_veth_pair_and_come_back_native() {
    with_veth(1500, || there_and_back(Mode::Native, 1500, &SIZES));
}

#[test]
fn frames_pass_a_veth_pair_and_come_back_generic() {
    with_veth(1500, || there_and_back(Mode::Generic, 1500, &SIZES));
}

#[test]
fn frames_of_several_buffers_pass_a_veth_pair() {
    let sizes = [60, 3800, 4000, 4096, 4097, 8000, 9014];
    with_veth(9000, || there_and_back(Mode::Native, 9000, &sizes));
}

#[test]
fn what_was_left_open_is_completed() {
    with_veth(1500, completes);
}

fn completes() {
    let (_a, mut from) = started("veth0", Mode::Native, Vec::new());
    let (_b, mut to) = started("veth1", Mode::Native, Vec::new());
    let (mut pool, _) = Pool::new(64, 2048, BACKING).unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    // A UDP packet whose checksum field has the sum of its pseudo header.
    let payload: Vec<u8> = (0..100u8).collect();
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000);
    let mut whole = Vec::new();
    builder.write(&mut whole, &payload).unwrap();
    let mut open = whole.clone();
    let mut pseudo = crate::offload::Sum::default();
    pseudo.add(&open[26..34]);
    pseudo.add_word(17);
    pseudo.add_word(108);
    open[40..42].copy_from_slice(&pseudo.partial().to_be_bytes());
    put(&mut pool, &open, &mut batch);
    batch.get_mut(0).unwrap().offload =
        Offload { flags: net::HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
    assert_eq!(from.tx(&mut batch), 1);
    home(&mut *from, &mut pool, &mut done);
    assert_eq!(receive(&mut *to, 1), [whole]);
    // One that cannot be sent is taken, counted, and the next goes.
    put(&mut pool, &frame(6000, 1), &mut batch);
    put(&mut pool, &frame(60, 2), &mut batch);
    batch.get_mut(0).unwrap().offload =
        Offload { flags: net::HDR_F_NEEDS_CSUM, csum_start: 6000, csum_offset: 6, ..Offload::default() };
    assert_eq!(from.tx(&mut batch), 2);
    home(&mut *from, &mut pool, &mut done);
    assert_eq!(receive(&mut *to, 1), [frame(60, 2)]);
    assert_eq!((from.counters().stats().tx_errors, pool.out()), (1, 0));
}

#[test]
fn what_is_left_to_the_kernel_does_not_arrive() {
    with_veth(1500, leaves);
}

fn leaves() {
    let (_a, mut from) = started("veth0", Mode::Native, Vec::new());
    let leave = vec![Leave::Neighbours, Leave::Tcp(22), Leave::Udp(53)];
    let (_b, mut to) = started("veth1", Mode::Native, leave);
    let (mut pool, _) = Pool::new(64, 2048, BACKING).unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let packet = |v6: bool, tcp: bool, port: u16| {
        let ethernet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if v6 { ethernet.ipv6([1; 16], [2; 16], 9) } else { ethernet.ipv4([10; 4], [11; 4], 9) };
        let mut bytes = Vec::new();
        let payload = [7; 30];
        if tcp {
            ip.tcp(9, port, 1, 2).write(&mut bytes, &payload).unwrap();
        } else {
            ip.udp(9, port).write(&mut bytes, &payload).unwrap();
        }
        bytes
    };
    let mut arp = frame(60, 1);
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut wanted = vec![frame(60, 2)];
    put(&mut pool, &arp, &mut batch);
    put(&mut pool, &wanted[0], &mut batch);
    for v6 in [false, true] {
        for (tcp, port) in [(true, 22), (false, 22), (true, 53), (false, 53), (true, 80)] {
            let bytes = packet(v6, tcp, port);
            put(&mut pool, &bytes, &mut batch);
            if (tcp, port) != (true, 22) && (tcp, port) != (false, 53) {
                wanted.push(bytes);
            }
        }
    }
    assert_eq!(from.tx(&mut batch), 12);
    home(&mut *from, &mut pool, &mut done);
    assert_eq!(receive(&mut *to, wanted.len()), wanted);
    assert_eq!(receive(&mut *to, 1).len(), 0);
}

#[test]
fn an_interface_that_goes_away_is_a_link_down() {
    with_veth(1500, goes_away);
}

/// Whether the link is so before long: the kernel tells of it up to a second later.
fn link_is(port: &Afxdp, up: bool) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while port.link().up != up && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    port.link().up == up
}

fn goes_away() {
    let (port, mut queue) = started("veth0", Mode::Auto, Vec::new());
    assert!(link_is(&port, true));
    assert!(ip("link set veth1 down") && link_is(&port, false));
    assert!(ip("link set veth1 up") && link_is(&port, true));
    assert!(ip("link set veth0 down") && link_is(&port, false));
    assert!(ip("link set veth0 name other"));
    assert!(ip("link set other up") && link_is(&port, true), "by another name");
    assert!(ip("link del other") && link_is(&port, false));
    let (mut pool, _) = Pool::new(64, 2048, BACKING).unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    put(&mut pool, &frame(60, 1), &mut batch);
    assert_eq!((queue.rx(&mut Batch::default()), queue.tx(&mut batch)), (0, 1));
    home(&mut *queue, &mut pool, &mut done);
    assert_eq!((pool.out(), queue.counters().stats().tx_errors), (0, 1));
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let config = |iface: &str| Config { iface: iface.into(), backing: BACKING, ..Config::default() };
    let none = Afxdp::new("af_xdp0", config("nonesuch")).err().unwrap().to_string();
    assert!(none.contains("port af_xdp0: interface nonesuch: ip link"), "{none}");
    assert!(["arp", "tcp:22", "udp:65535"].iter().all(|s| s.parse::<Leave>().unwrap().to_string() == *s));
    assert!(["", "tcp", "tcp:", "tcp:65536", "sctp:1"].iter().all(|s| s.parse::<Leave>().is_err()));
    with_veth(1500, refuses);
}

fn refuses() {
    let config = |iface: &str| Config { iface: iface.into(), backing: BACKING, ..Config::default() };
    let (mut port, queue) = started("veth0", Mode::Auto, Vec::new());
    let mut second = Afxdp::new("af_xdp1", config("veth0")).unwrap();
    let taken = second.start(1).err().unwrap().to_string();
    assert!(taken.contains("has an XDP program already"), "{taken}");
    port.stop(vec![queue]).unwrap();
    let many = second.start(2).err().unwrap().to_string();
    assert!(many.contains("has 1 queues, none of number 1; ethtool -L"), "{many}");
    assert!(second.start(1).is_ok(), "nothing is left behind");
}
