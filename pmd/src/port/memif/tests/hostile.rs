//! Peers that break the rules, with our own codec and rings for tools.

use std::os::fd::OwnedFd;

use super::*;
use crate::port::memif::address::Listener;
use crate::port::memif::ring::{Desc, Ring};
use crate::port::memif::wire::{Message, Wire, field, init};
use crate::spec::memif::{AddRegion, AddRing, Connect, Hello, RING_TO_SERVER, VERSION, kind};
use hugepages::{Map, Table, Window, Words};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{Immutable, IntoBytes};

const LOG2: u8 = 4;
const BYTES: usize = 1 << 16;

/// A client by hand: one region, a ring each way at its front, buffers of 2 KiB behind.
struct Raw {
    wire: Wire,
    rings: [Ring; 2],
}

fn next(wire: &Wire) -> Result<Message, wire::WireError> {
    let mut got = None;
    wait_for("an answer", || match wire.receive() {
        Ok(None) => false,
        other => {
            got = Some(other.map(|message| message.expect("there is one")).and_then(Message::or_end));
            true
        }
    });
    got.expect("waited for")
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn ring_at(side: usize) -> AddRing {
    let flags = if side == 0 { RING_TO_SERVER } else { 0 };
    AddRing { flags, index: 0, region: 0, offset: 4096 * side as u32, log2_size: LOG2, private_header: 0 }
}

fn tell<T: IntoBytes + Immutable>(wire: &Wire, kind: u16, body: &T, fd: Option<&OwnedFd>) -> Message {
    use std::os::fd::AsFd;
    wire.send(kind, body, fd.map(AsFd::as_fd)).unwrap();
    next(wire).unwrap()
}

fn hello(at: &Address) -> Wire {
    let wire = Wire::new(at.connect().unwrap());
    assert!(matches!(next(&wire).unwrap(), Message::Hello(_)));
    wire
}

impl Raw {
    fn connect(at: &Address) -> Raw {
        let wire = hello(at);
        assert!(matches!(tell(&wire, kind::INIT, &init(0, "", "raw"), None), Message::Ack));
        let map = Map::shared(BYTES, BACKING).unwrap();
        let fd = map.fd().try_clone_to_owned().unwrap();
        let table = Table::of(map);
        let rings = [0, 1].map(|side| Ring::open(&table, 4096 * side, LOG2).unwrap());
        rings.iter().for_each(Ring::init);
        tell(&wire, kind::ADD_REGION, &AddRegion { index: 0, size: BYTES as u64 }, Some(&fd));
        (0..2).for_each(|side| _ = tell(&wire, kind::ADD_RING, &ring_at(side), Some(&event())));
        let last = tell(&wire, kind::CONNECT, &Connect { name: field("raw") }, None);
        assert!(matches!(last, Message::Connected(_)));
        Raw { wire, rings }
    }
}

fn part(next: bool, len: u32, offset: u32) -> Desc {
    Desc { next, region: 0, len, offset }
}

#[test]
fn a_server_retires_the_rings_of_a_client_that_lies() {
    let at = somewhere();
    let (port, mut queues) = started(config(Role::Server, &at), 1);
    let queue = &mut *queues[0];
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    let end = BYTES as u32;
    type Lie = (&'static str, fn(&Raw, u32));
    let lies: [Lie; 10] = [
        ("head", |raw, _| raw.rings[0].set_head(17)),
        ("region", |raw, _| raw.rings[0].put(0, Desc { region: 1, ..part(false, 60, 0) })),
        ("region far", |raw, _| raw.rings[0].put(0, Desc { region: 0xffff, ..part(false, 60, 0) })),
        ("offset", |raw, end| raw.rings[0].put(0, part(false, 60, end - 59))),
        ("length", |raw, end| raw.rings[0].put(0, part(false, end, 1))),
        ("wraps", |raw, _| raw.rings[0].put(0, part(false, 60000, u32::MAX))),
        ("chain", |raw, _| (0..16).for_each(|i| raw.rings[0].put(i, part(true, 60, 8192)))),
        ("second part", |raw, end| {
            raw.rings[0].put(0, part(true, 60, 8192));
            raw.rings[0].put(1, part(false, 60, end));
        }),
        ("to fill: empty", |raw, _| raw.rings[1].put(0, part(false, 0, 0))),
        ("to fill: outside", |raw, end| raw.rings[1].put(0, part(false, 2048, end - 10))),
    ];
    for (i, (what, lie)) in lies.iter().enumerate() {
        let raw = Raw::connect(&at);
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        wait_for("rings", || {
            queue.reap(&mut done);
            port.link().up
        });
        queue.reap(&mut done);
        lie(&raw, end);
        let to_fill = what.starts_with("to fill");
        let heads = [("head", 17), ("chain", 16), ("second part", 2)];
        let head = heads.iter().find(|(name, _)| name == what).map_or(1, |(_, head)| *head);
        raw.rings[usize::from(to_fill)].set_head(head);
        if to_fill {
            put(&mut pool, &frame(60, 1), &mut batch);
            put(&mut pool, &frame(60, 2), &mut batch);
            queue.tx(&mut batch);
            assert_eq!(raw.rings[1].tail(), 0, "{what}");
            home(queue, &mut pool);
            while let Some(buf) = batch.pop_front() {
                pool.settle(buf.finish(0));
            }
        } else {
            assert_eq!(queue.rx(&mut batch), 0, "{what}");
        }
        assert_eq!(
            (queue.counters().stats().faults, queue.lent(), pool.out()),
            (i as u64 + 1, 0, 0),
            "{what}"
        );
        let why = next(&raw.wire).unwrap_err().to_string();
        assert!(why.contains("the client broke the rules of a ring"), "{what}: {why}");
        wait_for("the end", || !port.link().up);
    }
    // A client that behaves is served.
    let raw = Raw::connect(&at);
    wait_for("a connection", || port.link().up);
    queue.reap(&mut Batch::default());
    raw.rings[0].put(0, part(false, 60, 8192));
    raw.rings[0].put(1, part(true, 0, 0));
    raw.rings[0].put(2, part(false, 0, 0));
    raw.rings[0].put(3, part(false, 61, 16384));
    raw.rings[0].set_head(4);
    assert_eq!(receive(queue, 2).iter().map(Vec::len).collect::<Vec<_>>(), [60, 61]);
    assert_eq!((raw.rings[0].tail(), queue.counters().stats().rx_errors), (4, 1));
    assert_eq!(raw.rings[0].desc(1), part(false, 0, 0), "DPDK's client relies on it");
}

/// Places go back in the order of the ring, whatever the order of the receipts.
#[test]
fn buffers_are_given_back_in_order() {
    let at = somewhere();
    let (port, mut queues) = started(config(Role::Server, &at), 1);
    let queue = &mut *queues[0];
    let raw = Raw::connect(&at);
    wait_for("a connection", || port.link().up);
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    queue.reap(&mut done);
    for lap in 0..5 {
        (0..16).for_each(|i| raw.rings[0].put(i, part(false, 60, 8192 + 64 * u32::from(i))));
        raw.rings[0].set_head(16 * (lap + 1));
        assert_eq!((queue.rx(&mut batch), queue.rx(&mut Batch::default())), (16, 0));
        let mut order: Vec<Buf> = std::iter::from_fn(|| batch.pop_front()).collect();
        let first = order.remove(0);
        order.into_iter().rev().for_each(|buf| done.push(buf.finish(0)));
        queue.settle(&mut done);
        assert_eq!((raw.rings[0].tail(), queue.lent()), (16 * lap, 1));
        done.push(first.finish(0));
        queue.settle(&mut done);
        assert_eq!((raw.rings[0].tail(), queue.lent()), (16 * (lap + 1), 0));
    }
}

#[test]
fn memory_that_shrinks_costs_the_connection() {
    let at = somewhere();
    let (port, mut queues) = started(config(Role::Server, &at), 1);
    let wire = hello(&at);
    tell(&wire, kind::INIT, &init(0, "", "raw"), None);
    let file = rustix::fs::memfd_create(c"shrinks", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, BYTES as u64).unwrap();
    let (map, _) = Map::file(file.try_clone().unwrap(), 0, BYTES as u64).unwrap();
    let table = Table::of(map);
    let rings = [0, 1].map(|side| Ring::open(&table, 4096 * side, LOG2).unwrap());
    rings.iter().for_each(Ring::init);
    tell(&wire, kind::ADD_REGION, &AddRegion { index: 0, size: BYTES as u64 }, Some(&file));
    (0..2).for_each(|side| _ = tell(&wire, kind::ADD_RING, &ring_at(side), Some(&event())));
    tell(&wire, kind::CONNECT, &Connect { name: field("raw") }, None);
    rings[0].put(0, part(false, 60, 8192));
    rings[0].set_head(1);
    let (mut batch, mut done) = (Batch::default(), Batch::default());
    wait_for("a connection", || port.link().up);
    queues[0].reap(&mut done);
    assert_eq!(queues[0].rx(&mut batch), 1);
    rustix::fs::ftruncate(&file, 8192).unwrap();
    let buf = batch.pop_front().unwrap();
    let _ = buf.peek::<u64>(0);
    done.push(buf.finish(0));
    queues[0].settle(&mut done);
    let why = next(&wire).unwrap_err().to_string();
    assert!(why.contains("memory of region 0 is gone"), "{why}");
    wait_for("the end", || !port.link().up);
}

/// What a conversation may not say, and that the server goes on.
#[test]
fn a_conversation_that_breaks_the_rules_ends() {
    let at = somewhere();
    let (port, _queues) = started(Config { secret: "open".into(), ..config(Role::Server, &at) }, 1);
    let begun = || {
        let wire = hello(&at);
        tell(&wire, kind::INIT, &init(0, "open", "raw"), None);
        wire
    };
    let memory = || {
        let fd = rustix::fs::memfd_create(c"memif", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, BYTES as u64).unwrap();
        fd
    };
    let refused = |wire: Wire, kind: u16, body: &dyn Fn(&Wire), words: &str| {
        body(&wire);
        let why = next(&wire).unwrap_err().to_string();
        assert!(why.contains(words), "message {kind}: {why}");
        let gone = matches!(next(&wire), Err(wire::WireError::Closed));
        assert!(gone, "{words}: the server hangs up");
    };
    use std::os::fd::AsFd;
    let say = |wire: &Wire, kind, body: &[u8], fd: Option<&OwnedFd>| {
        let mut bytes = [0u8; 100];
        bytes[..body.len()].copy_from_slice(body);
        wire.send(kind, &bytes, fd.map(AsFd::as_fd)).unwrap();
    };
    let region = |index, size| AddRegion { index, size };
    for (asked, words) in [
        (init(0, "", "raw"), "wrong secret"),
        (init(0, "opens", "raw"), "wrong secret"),
        (init(9, "open", "raw"), "no interface of id 9"),
        (Init { version: 1, ..init(0, "open", "raw") }, "version 0x1"),
        (Init { mode: 1, ..init(0, "open", "raw") }, "only 0x200, Ethernet"),
    ] {
        refused(hello(&at), kind::INIT, &|wire| say(wire, kind::INIT, asked.as_bytes(), None), words);
    }
    use crate::spec::memif::Init;
    let (event, file) = (event(), memory());
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for (kind, body, fd, words) in [
        (kind::ADD_REGION, region(1, 4096).as_bytes().to_vec(), Some(&file), "region 1 out of turn"),
        (kind::ADD_REGION, region(0, 0).as_bytes().to_vec(), Some(&file), "region 0: "),
        (kind::ADD_REGION, region(0, 1 << 40).as_bytes().to_vec(), Some(&file), "region 0: "),
        (kind::ADD_REGION, region(0, 4096).as_bytes().to_vec(), Some(&null), "region 0: "),
        (kind::ADD_REGION, region(0, 4096).as_bytes().to_vec(), None, "message 4 with 0 descriptors"),
        (kind::ADD_RING, ring_at(0).as_bytes().to_vec(), Some(&file), "ring 0: "),
        (
            kind::ADD_RING,
            AddRing { index: 1, ..ring_at(0) }.as_bytes().to_vec(),
            Some(&event),
            "there are 1 queues",
        ),
        (
            kind::ADD_RING,
            AddRing { log2_size: 15, ..ring_at(0) }.as_bytes().to_vec(),
            Some(&event),
            "size 2^15",
        ),
        (
            kind::ADD_RING,
            AddRing { private_header: 8, ..ring_at(0) }.as_bytes().to_vec(),
            Some(&event),
            "private",
        ),
        (kind::INIT, init(0, "open", "raw").as_bytes().to_vec(), None, "message 3 out of turn"),
        (kind::CONNECTED, Vec::new(), None, "message 7 out of turn"),
        (99, Vec::new(), None, "message 99 out of turn"),
    ] {
        refused(begun(), kind, &|wire| say(wire, kind, &body, fd), words);
    }
    // Rings that are not in memory, not aligned, not begun, given twice.
    for (ring, words) in [
        (AddRing { region: 3, ..ring_at(0) }, "ring 0: "),
        (AddRing { offset: BYTES as u32 - 256, ..ring_at(0) }, "ring 0: "),
        (AddRing { offset: u32::MAX - 7, ..ring_at(0) }, "ring 0: "),
        (AddRing { offset: 4, ..ring_at(0) }, "ring 0: "),
        (ring_at(0), "ring 0 does not begin as one"),
    ] {
        let wire = begun();
        tell(&wire, kind::ADD_REGION, &region(0, BYTES as u64), Some(&file));
        tell(&wire, kind::ADD_RING, &ring, Some(&event));
        refused(wire, kind::CONNECT, &|wire| say(wire, kind::CONNECT, &[], None), words);
    }
    let wire = begun();
    tell(&wire, kind::ADD_RING, &ring_at(0), Some(&event));
    let twice = |wire: &Wire| say(wire, kind::ADD_RING, ring_at(0).as_bytes(), Some(&event));
    refused(wire, kind::ADD_RING, &twice, "ring 0 given twice");
    // One client at a time; without rings it is a link without traffic.
    let first = begun();
    let asked = init(0, "open", "raw");
    refused(hello(&at), kind::INIT, &|wire| say(wire, kind::INIT, asked.as_bytes(), None), "has a client");
    assert!(matches!(
        tell(&first, kind::CONNECT, &Connect { name: field("raw") }, None),
        Message::Connected(_)
    ));
    assert!(port.link().up);
}

/// A server by hand, to the point where the client's rings are known.
fn serve(listener: &Listener) -> (Wire, Arc<Table>, [Ring; 2]) {
    let mut socket = None;
    wait_for("a client", || {
        socket = listener.accept();
        socket.is_some()
    });
    let wire = Wire::new(socket.unwrap());
    let hello = Hello {
        name: field("raw"),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 1,
        max_to_client: 0,
        max_to_server: 0,
        max_log2_ring_size: LOG2,
    };
    wire.send(kind::HELLO, &hello, None).unwrap();
    let (mut tables, mut rings) = (Vec::new(), Vec::new());
    loop {
        match next(&wire).unwrap() {
            Message::AddRegion(region, fd) => {
                let (map, _) = Map::file(fd, 0, region.size).unwrap();
                tables.push(Table::of(map));
            }
            Message::AddRing(ring, _) => {
                rings.push(Ring::open(&tables[0], ring.offset.into(), ring.log2_size).unwrap());
            }
            Message::Connect(_) => break,
            _ => {}
        }
        wire.ack().unwrap();
    }
    wire.send(kind::CONNECTED, &Connect { name: field("raw") }, None).unwrap();
    (wire, tables.swap_remove(1), rings.try_into().unwrap())
}

#[test]
fn a_client_retires_the_rings_of_a_server_that_lies() {
    let at = somewhere();
    let listener = Listener::bind(&at).unwrap();
    let (port, mut queues) = started(config(Role::Client, &at), 1);
    let queue = &mut *queues[0];
    let (mut pool, _) = Pool::new(64, 4096, BACKING).unwrap();
    for (i, lie) in ["index", "length", "chain", "sent index", "none"].into_iter().enumerate() {
        let (wire, memory, [to_us, to_client]) = serve(&listener);
        let (mut batch, mut done) = (Batch::default(), Batch::default());
        wait_for("a connection", || port.link().up);
        queue.reap(&mut done);
        assert_eq!((to_client.head(), to_client.size(), queue.rx(&mut batch)), (16, 16, 0));
        let first = to_client.desc(0);
        match lie {
            "index" => to_client.set_tail(17),
            "length" => {
                to_client.put(0, Desc { len: 2049, ..first });
                to_client.set_tail(1);
            }
            "chain" => {
                (0..16).for_each(|i| to_client.put(i, Desc { next: true, len: 60, ..first }));
                to_client.set_tail(16);
            }
            "sent index" => to_us.set_tail(1),
            // Where a client's buffer is, is not for the server to say.
            _ => {
                let words: Window<u64> = memory.window(first.offset.into(), 8).unwrap();
                words.set(0, 0x1234_5678_9abc_def0);
                to_client.put(0, Desc { next: false, region: 77, len: 60, offset: u32::MAX });
                to_client.set_tail(1);
            }
        }
        if lie == "sent index" {
            put(&mut pool, &frame(60, 1), &mut batch);
            assert_eq!(queue.tx(&mut batch), 0);
            pool.settle(batch.pop_front().expect("it was not taken").finish(0));
        } else {
            assert_eq!(queue.rx(&mut batch), usize::from(lie == "none"), "{lie}");
        }
        if lie == "none" {
            let buf = batch.pop_front().unwrap();
            assert_eq!(buf.peek::<u64>(0), Some(0x1234_5678_9abc_def0));
            done.push(buf.finish(0));
            queue.settle(&mut done);
            assert_eq!((queue.counters().stats().faults, queue.lent()), (i as u64, 0));
            continue;
        }
        assert_eq!((queue.counters().stats().faults, queue.lent()), (i as u64 + 1, 0), "{lie}");
        let why = next(&wire).unwrap_err().to_string();
        assert!(why.contains("the server broke the rules of a ring"), "{lie}: {why}");
        wait_for("the end", || !port.link().up);
    }
}
