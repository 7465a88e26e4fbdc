use super::*;
use hugepages::PageSize;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const BASE: Backing = Backing { page: PageSize::Base, node: None };

fn config() -> Config {
    Config { backing: BASE, iface: "hr%d".into(), ..Config::default() }
}

/// Moves this thread to a network namespace of its own; without the right to, says so.
fn namespace() -> bool {
    #[allow(deprecated)]
    let moved = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
    if moved.is_err() || sys::open().is_err() {
        println!("skipped: a TAP needs root and /dev/net/tun");
        return false;
    }
    true
}

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed");
    assert!(done.success(), "ip {args}");
}

/// Runs `test` in a thread whose network namespace is its own.
fn in_namespace(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if namespace() {
                test()
            }
        });
        thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
}

fn home(queue: &mut dyn Queue, batch: &mut Batch<Buf>) {
    let mut loans = Batch::default();
    while let Some(buf) = batch.pop_front() {
        loans.push(buf.finish(0));
    }
    queue.settle(&mut loans);
    assert!(loans.is_empty());
}

#[test]
fn names_that_cannot_be_are_refused() {
    for iface in ["sixteen-bytes-xx", "a/b", "..", "a b"] {
        let why = Tap::new("tap0", Config { iface: iface.into(), ..config() }).unwrap_err().to_string();
        assert!(why.starts_with(&format!("port tap0: iface={iface} ")), "{why}");
    }
}

#[test]
fn a_datagram_comes_from_the_kernel_and_goes_back() {
    in_namespace(|| {
        let mac = [2, 0, 0, 0, 0, 7];
        let mut port = Tap::new("tap0", Config { mac: Some(mac), mtu: Some(9000), ..config() }).unwrap();
        assert!(!port.link().up);
        let mut queues = port.start(1).unwrap();
        assert!(port.link().up);
        assert_eq!((port.interface(), port.mac()), (Some("hr0"), mac));
        ip("addr add 10.9.0.1/24 dev hr0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:08 dev hr0");
        let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let payload: Vec<u8> = (0..8000u32).map(|i| (i * 7) as u8).collect();
        for size in [1, 600, 4000, 8000] {
            socket.send_to(&payload[..size], "10.9.0.2:7").unwrap();
            echo(&mut *queues[0]);
            let mut got = [0; 9000];
            let (n, from) = socket.recv_from(&mut got).unwrap();
            assert_eq!((n, from.to_string()), (size, "10.9.0.2:7".into()));
            assert_eq!(got[..n], payload[..size]);
        }
        assert_eq!(queues[0].lent() + queues[0].held(), 0);
        port.stop(queues).unwrap();
        assert!(!port.link().up);
    });
}

/// Answers one UDP datagram: swaps its ends, keeps its open checksum.
fn echo(queue: &mut dyn Queue) {
    let (mut batch, start) = (Batch::new(1), Instant::now());
    loop {
        assert!(start.elapsed().as_secs() < 5, "no datagram");
        if queue.rx(&mut batch) == 0 {
            thread::yield_now();
            continue;
        }
        let first = batch.get_mut(0).unwrap();
        if first.peek::<[u8; 2]>(12) == Some([8, 0]) && first.peek::<u8>(23) == Some(17) {
            assert_eq!(first.offload.flags, HDR_F_NEEDS_CSUM);
            assert_eq!((first.offload.csum_start, first.offload.csum_offset), (34, 6));
            for (a, b, n) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
                let (mut x, mut y) = ([0; 6], [0; 6]);
                first.read(a, &mut x[..n]);
                first.read(b, &mut y[..n]);
                first.write(a, &y[..n]);
                first.write(b, &x[..n]);
            }
            break;
        }
        home(queue, &mut batch);
    }
    assert_eq!(queue.tx(&mut batch), 1);
    let mut loans = Batch::default();
    queue.reap(&mut loans);
    queue.settle(&mut loans);
}

#[test]
fn an_interface_removed_under_traffic_is_a_link_that_is_down() {
    in_namespace(|| {
        let mut port = Tap::new("tap0", config()).unwrap();
        let mut queues = port.start(2).unwrap();
        assert!(port.link().up);
        ip("link del hr0");
        let mut source = crate::port::null::Null::new(
            "null0",
            crate::port::null::Config { backing: BASE, ..Default::default() },
        )
        .unwrap();
        let mut frames = source.start(1).unwrap();
        let (mut batch, mut loans) = (Batch::new(4), Batch::default());
        frames[0].rx(&mut batch);
        for queue in &mut queues {
            assert_eq!(queue.rx(&mut Batch::default()), 0);
        }
        assert_eq!(queues[0].tx(&mut batch), 4, "taken and counted as errors");
        queues[0].reap(&mut loans);
        frames[0].settle(&mut loans);
        assert!(queues[0].sleep(&mut |_| panic!("a removed interface never wakes")));
        assert!(!port.link().up);
        assert_eq!(port.stats()[0].tx_errors, 4);
        port.stop(queues).unwrap();
        // The next start makes it anew.
        let queues = port.start(2).unwrap();
        assert!(port.link().up);
        port.stop(queues).unwrap();
    });
}

#[test]
fn errors_say_what_to_do() {
    in_namespace(|| {
        let named = |iface: &str| Tap::new("tap0", Config { iface: iface.into(), ..config() }).unwrap();
        let mut first = named("busy0");
        let _queues = first.start(1).unwrap();
        let why = named("busy0").start(1).err().unwrap().to_string();
        assert!(why.starts_with("port tap0: interface busy0 is in use by another program; "), "{why}");
        let why = named("lo").start(1).err().unwrap().to_string();
        assert!(why.starts_with("port tap0: interface lo exists and is no TAP"), "{why}");
    });
}

/// Two kernels' TCP stacks, 16 MiB each way through two TAP ports, with and without offloads.
#[test]
fn tcp_crosses_two_taps_undamaged() {
    const BYTES: usize = 16 << 20;
    for (checksum, segmentation, queues) in [(true, true, 2), (true, false, 1), (false, false, 1)] {
        let through = AtomicUsize::new(0);
        let (ready, taps) = mpsc::channel();
        let side = |addr: &'static str, peer: Option<&'static str>| {
            let (ready, through) = (ready.clone(), &through);
            move || {
                if !namespace() {
                    return;
                }
                let config = Config { checksum, segmentation, udp_segmentation: true, ..config() };
                let mut port = Tap::new(addr, config).unwrap();
                let started = port.start(queues).unwrap();
                ip(&format!("addr add {addr}/24 dev hr0"));
                let listener = TcpListener::bind((addr, 5001)).unwrap();
                ready.send(started).unwrap();
                let stream = match peer {
                    Some(peer) => TcpStream::connect((peer, 5001)).unwrap(),
                    None => listener.accept().unwrap().0,
                };
                exchange(&stream, BYTES);
                // Both are through before an interface goes away.
                through.fetch_add(1, Ordering::Relaxed);
                while through.load(Ordering::Relaxed) < 2 {
                    thread::sleep(Duration::from_millis(1));
                }
                drop(port);
            }
        };
        thread::scope(|scope| {
            let a = scope.spawn(side("10.9.1.1", None));
            let Ok(from) = taps.recv_timeout(Duration::from_secs(5)) else { return };
            let b = scope.spawn(side("10.9.1.2", Some("10.9.1.1")));
            let to = taps.recv_timeout(Duration::from_secs(5)).unwrap();
            let mut largest = 0;
            let mut pairs: Vec<_> = from.into_iter().zip(to).collect();
            let start = Instant::now();
            while through.load(Ordering::Relaxed) < 2 && !(a.is_finished() || b.is_finished()) {
                for (a, b) in &mut pairs {
                    largest = largest.max(forward(&mut **a, &mut **b));
                    largest = largest.max(forward(&mut **b, &mut **a));
                }
            }
            a.join().unwrap();
            b.join().unwrap();
            println!("csum {checksum} tso {segmentation}: largest frame {largest}, {:?}", start.elapsed());
            assert_eq!(largest > 9000, segmentation);
        });
    }
}

/// Sends and receives `bytes` at once, and compares.
fn exchange(stream: &TcpStream, bytes: usize) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let data = |i: usize| ((i * 31) ^ (i >> 11)) as u8;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut out = stream;
            let all: Vec<u8> = (0..bytes).map(data).collect();
            out.write_all(&all).unwrap();
        });
        let (mut got, mut input) = (vec![0; bytes], stream);
        input.read_exact(&mut got).unwrap();
        assert!(got.into_iter().enumerate().all(|(i, byte)| byte == data(i)), "damaged");
    });
}

/// One turn from one port to another; bytes of the largest packet.
fn forward(from: &mut dyn Queue, to: &mut dyn Queue) -> u32 {
    let (mut batch, mut loans, mut largest) = (Batch::default(), Batch::default(), 0);
    from.rx(&mut batch);
    while !batch.is_empty() {
        largest = largest.max(batch.packet_at(0).1);
        to.tx(&mut batch);
        to.reap(&mut loans);
        from.settle(&mut loans);
    }
    largest
}

/// A namespace by name, for as long as the test runs.
struct Named(String);

impl Named {
    fn new(what: &str) -> Option<Named> {
        let name = format!("hotring-{what}-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("skipped: a namespace needs root and iproute2");
            return None;
        }
        Some(Named(name))
    }

    fn links(&self) -> String {
        let out = Command::new("ip").args(["-n", &self.0, "link"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn an_interface_is_made_in_a_namespace_and_stays_if_it_is_to() {
    if sys::open().is_err() {
        println!("skipped: a TAP needs root and /dev/net/tun");
        return;
    }
    let Some(named) = Named::new("tap") else { return };
    let netns = Some(named.0.clone());
    for persistent in [false, true] {
        let config = Config { netns: netns.clone(), iface: "there".into(), persistent, ..config() };
        let mut port = Tap::new("tap0", config).unwrap();
        let queues = port.start(2).unwrap();
        assert!(named.links().contains("there: <BROADCAST,MULTICAST,UP"), "{}", named.links());
        assert!(port.link().up);
        port.stop(queues).unwrap();
        drop(port);
        assert_eq!(named.links().contains("there"), persistent);
    }
    // One that stayed is taken up again.
    let again = Config { netns, iface: "there".into(), ..config() };
    assert!(Tap::new("tap0", again).unwrap().start(2).is_ok());
    let nowhere = Config { netns: Some("nonesuch".into()), ..config() };
    let why = Tap::new("tap0", nowhere).unwrap().start(1).err().unwrap().to_string();
    assert!(why.contains("port tap0: netns=nonesuch: ip netns list shows"), "{why}");
    let path = Config { netns: Some("../1".into()), ..config() };
    assert!(Tap::new("tap0", path).unwrap().start(1).is_err());
}

#[test]
fn queues_that_somebody_else_opened_are_taken_over() {
    use std::os::fd::AsRawFd;
    in_namespace(|| {
        let made: Vec<_> = (0..2).map(|_| sys::open().unwrap()).collect();
        made.iter().for_each(|fd| _ = sys::attach(fd.as_fd(), "given", true, 10).unwrap());
        ip("link set given address 02:00:00:00:00:21 up");
        ip("addr add 10.9.0.1/24 dev given");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:08 dev given");
        let fds: Vec<i32> = made.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut port = Tap::new("tap0", Config { fds: fds.clone(), ..config() }).unwrap();
        let few = port.start(1).err().unwrap().to_string();
        assert!(few.contains("2 descriptors (fd=), and 1 queues"), "{few}");
        let mut queues = port.start(2).unwrap();
        assert_eq!(
            (port.interface(), port.mac(), port.link().up),
            (Some("given"), [2, 0, 0, 0, 0, 0x21], true)
        );
        let socket = UdpSocket::bind("10.9.0.1:700").unwrap();
        socket.send_to(b"over", "10.9.0.2:7").unwrap();
        let (mut batch, mut packets) = (Batch::default(), 0);
        let until = Instant::now() + Duration::from_secs(5);
        while packets == 0 && Instant::now() < until {
            for queue in &mut queues {
                queue.rx(&mut batch);
                packets += batch.iter().filter(|buf| buf.peek::<[u8; 4]>(42) == Some(*b"over")).count();
                home(&mut **queue, &mut batch);
            }
        }
        assert_eq!(packets, 1);
        port.stop(queues).unwrap();
        assert!(port.link().up, "whoever made it switches it off");
        drop(port);
        let null = std::fs::File::open("/dev/null").unwrap();
        for fd in [null.as_raw_fd(), -1, 99_999] {
            let why = Tap::new("tap0", Config { fds: vec![fd], ..config() }).unwrap().start(1).err().unwrap();
            assert!(why.to_string().contains("not a queue of a TAP interface"), "{why}");
        }
    });
}
