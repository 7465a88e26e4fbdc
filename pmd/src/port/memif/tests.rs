//! A client and a server in one process, and each of them with a peer that lies.

mod hostile;

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hugepages::{Buf, Offload, PageSize, Pool};

use super::*;
use crate::batch::Batch;
use crate::spec::net;

const BACKING: Backing = Backing { page: PageSize::Base, node: None };
const LONG: Duration = Duration::from_secs(20);

/// An address that no other test has.
fn somewhere() -> Address {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Address { path: format!("hotring-memif-{}-{n}", std::process::id()).into(), is_abstract: true }
}

fn config(role: Role, address: &Address) -> Config {
    let (socket, is_abstract) = (address.path.clone(), address.is_abstract);
    Config { role, socket, is_abstract, ring_log2: 6, backing: BACKING, ..Config::default() }
}

type Queues = Vec<Box<dyn Queue>>;

fn started(config: Config, queues: u16) -> (Memif, Queues) {
    let mut port = Memif::new(&format!("{:?}", config.role), config).unwrap();
    let queues = port.start(queues).unwrap();
    (port, queues)
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A client and a server that are connected.
fn pair(client: Config, server: Config, queues: u16) -> [(Memif, Queues); 2] {
    let mut server = started(server, queues);
    let mut client = started(client, queues);
    settle_down(&mut [&mut client, &mut server]);
    [client, server]
}

/// Waits until both are connected and have taken in their rings.
fn settle_down(ports: &mut [&mut (Memif, Queues); 2]) {
    let mut done = Batch::default();
    wait_for("a connection", || ports.iter().all(|(port, _)| port.link().up));
    for (_, queues) in ports {
        queues.iter_mut().for_each(|queue| _ = queue.reap(&mut done));
        queues.iter_mut().for_each(|queue| _ = queue.rx(&mut Batch::default()));
    }
}

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

/// One turn of a queue without forwarding, and its receipts for the pool.
fn home(queue: &mut dyn Queue, pool: &mut Pool) {
    let mut done = Batch::default();
    queue.reap(&mut done);
    while !done.is_empty() {
        pool.settle_front(&mut done);
        queue.settle(&mut done);
    }
}

/// The next frames, given back at once.
fn receive(queue: &mut dyn Queue, count: usize) -> Vec<Vec<u8>> {
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let (mut frames, mut bytes) = (Vec::new(), Vec::new());
    let until = Instant::now() + LONG;
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

const SIZES: [usize; 9] = [60, 61, 64, 1000, 2047, 2048, 2049, 4096, 9000];

/// Frames from one end; the other sends each back where it lies; it arrives as it was. Whether the far end's
/// copies were none.
fn there_and_back(from: &mut dyn Queue, to: &mut dyn Queue, lap: usize) -> bool {
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    let frames: Vec<_> = SIZES.iter().enumerate().map(|(i, &len)| frame(len, lap * 31 + i)).collect();
    frames.iter().for_each(|bytes| put(&mut pool, bytes, &mut batch));
    assert_eq!(from.tx(&mut batch), frames.len(), "lap {lap}");
    home(from, &mut pool);
    assert_eq!(pool.out(), 0);
    let (mut turned, mut copies) = (0, 0);
    wait_for("all frames", || {
        turned += to.rx(&mut batch);
        while !batch.is_empty() && to.tx(&mut batch) > 0 {}
        copies += to.reap(&mut done);
        to.settle(&mut done);
        turned == frames.len() && batch.is_empty()
    });
    assert_eq!(receive(from, frames.len()), frames, "lap {lap}");
    assert_eq!((to.lent(), to.held()), (0, 0));
    copies == 0
}

#[test]
fn frames_pass_both_ways_on_every_queue() {
    let at = somewhere();
    let [mut client, mut server] = pair(config(Role::Client, &at), config(Role::Server, &at), 3);
    for lap in 0..60 {
        let (ours, theirs) = (&mut client.1[lap % 3], &mut server.1[lap % 3]);
        there_and_back(&mut **ours, &mut **theirs, lap);
        assert!(there_and_back(&mut **theirs, &mut **ours, lap), "a client's own buffers go as they are");
    }
    let n = 2 * 20 * SIZES.len() as u64;
    for (port, _) in [&client, &server] {
        assert!(port.stats().iter().all(|s| (s.rx_packets, s.tx_packets) == (n, n)), "{:?}", port.stats());
    }
    let (mut port, queues) = client;
    port.stop(queues).unwrap();
    wait_for("the server's link to go down", || !server.0.link().up);
}

#[test]
fn smaller_rings_and_buffers_and_a_file_for_a_socket() {
    let path = std::env::temp_dir().join(format!("hotring-memif-{}.sock", std::process::id()));
    // What a process that was killed has left.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let at = Address { path, is_abstract: false };
    let small =
        Config { ring_log2: 5, buffer: 513, secret: "x".repeat(24), id: 7, ..config(Role::Client, &at) };
    let known = Config { secret: "x".repeat(24), id: 7, ..config(Role::Server, &at) };
    let [mut client, mut server] = pair(small, known, 1);
    let (ours, theirs) = (&mut *client.1[0], &mut *server.1[0]);
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let mut batch = Batch::default();
    for (lap, len) in [60, 512, 513, 514, 1026, 1027, 9000, 16416].into_iter().enumerate() {
        let bytes = frame(len, lap);
        for server_sends in [false, true] {
            put(&mut pool, &bytes, &mut batch);
            let (from, to) =
                if server_sends { (&mut *theirs, &mut *ours) } else { (&mut *ours, &mut *theirs) };
            assert_eq!(from.tx(&mut batch), 1, "{len}");
            home(from, &mut pool);
            assert_eq!(receive(to, 1), std::slice::from_ref(&bytes), "{len} bytes");
        }
    }
    // What no ring of 32 buffers holds is taken, counted, and the next goes.
    for server_sends in [false, true] {
        put(&mut pool, &frame(16417, 1), &mut batch);
        put(&mut pool, &frame(60, 2), &mut batch);
        let (from, to) = if server_sends { (&mut *theirs, &mut *ours) } else { (&mut *ours, &mut *theirs) };
        assert_eq!(from.tx(&mut batch), 2);
        home(from, &mut pool);
        assert_eq!(receive(to, 1), [frame(60, 2)]);
        assert_eq!((from.counters().stats().tx_errors, pool.out()), (1, 0));
    }
    let (mut port, queues) = server;
    port.stop(queues).unwrap();
    assert!(!at.path.exists(), "the socket went with its last port");
}

#[test]
fn what_was_left_open_is_completed() {
    let at = somewhere();
    let [mut client, mut server] = pair(config(Role::Client, &at), config(Role::Server, &at), 1);
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let mut batch = Batch::default();
    let builder = || {
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 2000, 7, 100)
    };
    let payload = frame(9000, 5);
    let mut whole = Vec::new();
    builder().write(&mut whole, &payload).unwrap();
    let mut open = whole.clone();
    let mut pseudo = crate::offload::Sum::default();
    pseudo.add(&open[26..34]);
    pseudo.add_word(6);
    pseudo.add_word((20 + payload.len()) as u16);
    open[50..52].copy_from_slice(&pseudo.partial().to_be_bytes());
    let csum =
        Offload { flags: net::HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Offload::default() };
    let gso = Offload { gso_type: net::GSO_TCPV4, hdr_len: 54, gso_size: 1448, ..csum };
    for server_sends in [false, true] {
        let [(_, ours), (_, theirs)] = [&mut client, &mut server];
        let (from, to) =
            if server_sends { (&mut theirs[0], &mut ours[0]) } else { (&mut ours[0], &mut theirs[0]) };
        for (asked, frames) in [(csum, 1), (gso, 7)] {
            put(&mut pool, &open, &mut batch);
            batch.get_mut(0).unwrap().offload = asked;
            assert_eq!(from.tx(&mut batch), 1);
            home(&mut **from, &mut pool);
            let got = receive(&mut **to, frames);
            let joined: Vec<u8> = got.iter().flat_map(|bytes| bytes[54..].to_vec()).collect();
            assert_eq!((got.len(), &joined), (frames, &payload));
            for bytes in &got {
                let ip = etherparse::SlicedPacket::from_ethernet(bytes).unwrap();
                let Some(etherparse::TransportSlice::Tcp(tcp)) = &ip.transport else { panic!() };
                let Some(etherparse::NetSlice::Ipv4(v4)) = &ip.net else { panic!() };
                let sum = tcp.calc_checksum_ipv4(v4.header().source(), v4.header().destination()).unwrap();
                assert_eq!(tcp.checksum(), sum);
            }
        }
    }
}

#[test]
fn a_client_that_comes_again_waits_for_what_was_lent() {
    let at = somewhere();
    let [client, mut server] = pair(config(Role::Client, &at), config(Role::Server, &at), 1);
    let (mut port, mut queues) = client;
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let (mut batch, mut held, mut done) = (Batch::default(), Batch::default(), Batch::default());
    for i in 0..8 {
        put(&mut pool, &frame(100, i), &mut batch);
    }
    assert_eq!(queues[0].tx(&mut batch), 8);
    home(&mut *queues[0], &mut pool);
    wait_for("frames", || server.1[0].rx(&mut held) == 8);
    port.stop(queues).unwrap();
    wait_for("the end", || !server.0.link().up);
    let mut queues = port.start(1).unwrap();
    wait_for("a connection", || server.0.link().up && port.link().up);
    queues[0].reap(&mut done);
    for i in 0..8 {
        server.1[0].reap(&mut done);
        assert_eq!((server.1[0].lent(), server.1[0].rx(&mut batch)), (8 - i, 0));
        let buf = held.pop_front().unwrap();
        assert_eq!(
            buf.peek::<u8>(1),
            Some(frame(2, i as usize)[1]),
            "the memory of the one that left is there"
        );
        done.push(buf.finish(0));
        server.1[0].settle(&mut done);
    }
    assert_eq!(server.1[0].lent(), 0);
    // Now the new rings are taken in.
    server.1[0].reap(&mut done);
    assert!(there_and_back(&mut *server.1[0], &mut *queues[0], 3));
    assert_eq!(server.0.xstats()[0], ("connections".to_owned(), 2));
}

#[test]
fn a_server_that_comes_again_is_found() {
    let at = somewhere();
    let [mut client, (mut port, queues)] = pair(config(Role::Client, &at), config(Role::Server, &at), 1);
    let mut held = Batch::default();
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    for _ in 0..3 {
        // A frame is in the ring and nobody takes it.
        put(&mut pool, &frame(100, 1), &mut held);
    }
    assert_eq!(client.1[0].tx(&mut held), 3);
    home(&mut *client.1[0], &mut pool);
    port.stop(queues).unwrap();
    wait_for("the end", || !client.0.link().up);
    let mut again = started(config(Role::Server, &at), 1);
    settle_down(&mut [&mut client, &mut again]);
    for lap in 0..20 {
        there_and_back(&mut *client.1[0], &mut *again.1[0], lap);
    }
    assert_eq!(client.1[0].lent(), 0);
}

#[test]
fn a_queue_asks_to_be_called_and_is() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::fd::{BorrowedFd, OwnedFd};
    fn sleeps(queue: &mut dyn Queue) -> Option<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        let mut wait = |fd: BorrowedFd<'_>| fds.push(fd.try_clone_to_owned().unwrap());
        queue.sleep(&mut wait).then_some(fds)
    }
    let rung = |fds: &[OwnedFd]| {
        let mut list: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        poll(&mut list, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    };
    let at = somewhere();
    let [mut client, mut server] = pair(config(Role::Client, &at), config(Role::Server, &at), 1);
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let mut batch = Batch::default();
    for server_sleeps in [false, true] {
        let (ours, theirs) = (&mut *client.1[0], &mut *server.1[0]);
        let (from, to) = if server_sleeps { (ours, theirs) } else { (theirs, ours) };
        to.wake(true);
        let fds = sleeps(to).expect("nothing is there");
        assert!(!rung(&fds));
        put(&mut pool, &frame(60, 1), &mut batch);
        assert_eq!(from.tx(&mut batch), 1);
        assert!(rung(&fds));
        to.wake(true);
        let calls = from.counters().stats().calls;
        put(&mut pool, &frame(60, 2), &mut batch);
        assert_eq!(from.tx(&mut batch), 1);
        assert!(!rung(&fds), "a queue that is awake is left in peace");
        assert_eq!((calls, from.counters().stats().calls), (1, 1));
        assert!(sleeps(to).is_none(), "frames are there");
        to.wake(false);
        home(from, &mut pool);
        assert_eq!(receive(to, 2), [frame(60, 1), frame(60, 2)]);
    }
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let at = somewhere();
    let server = || config(Role::Server, &at);
    for (config, words) in [
        (Config { ring_log2: 15, ..server() }, "rings of 2^15: rsize= is 0 to 14"),
        (Config { buffer: 100, ..server() }, "bsize= is 512 to 16384"),
        (Config { secret: "x".repeat(25), ..server() }, "a secret of 25 bytes: at most 24"),
        (Config { socket: "".into(), ..server() }, "socket= of the server is missing"),
    ] {
        let why = Memif::new("memif0", config).err().unwrap().to_string();
        assert!(why.starts_with("port memif0: ") && why.contains(words), "{why}");
    }
    let [first, second] = [server(), server()].map(|config| Memif::new("memif0", config).unwrap());
    let (mut first, mut second) = (first, second);
    let _queues = first.start(1).unwrap();
    let why = second.start(1).err().unwrap().to_string();
    assert!(why.contains("port memif0 has id=0 on this socket already"), "{why}");
    let there = Address { path: "/nonesuch/memif.sock".into(), is_abstract: false };
    let why = Memif::new("memif1", config(Role::Server, &there)).unwrap().start(1).err().unwrap().to_string();
    assert!(why.contains("cannot listen on memif socket /nonesuch/memif.sock"), "{why}");
}
