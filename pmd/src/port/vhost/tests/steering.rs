//! A guest with several receive rings, and which of them its packets come to.

use super::control_queue::{CONTROL, Commander};
use super::*;
use crate::port::vhost::hash::tests::{KEY, V4, V6, v4_frame, v6_frame};
use crate::spec::net::{ctrl, hash};

const QUEUES: u16 = 3;
const ROOMS: u64 = 32;
const LEN: u32 = 60;

/// A guest with three queue pairs and a control queue; it sends by the first pair only.
struct Many<R> {
    all: Commander<R>,
    /// Receive rings, and by id where the frames in them are.
    rings: Vec<(R, Vec<u64>)>,
    hdr: u32,
    /// Where the last frame was sent from.
    slot: u64,
}

/// What came: the ring it came to, its hash and what was hashed.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    queue: usize,
    hash: u32,
    report: u16,
}

impl<R: Ring> Many<R> {
    fn connect(stage: &Stage, name: &str, features: u64) -> Self {
        let mut many = Self::prepare(stage, name, features);
        many.start();
        many
    }

    fn prepare(stage: &Stage, name: &str, features: u64) -> Self {
        let all = Commander::<R>::prepare(stage, name, features);
        let hdr = if features & net::F_HASH_REPORT != 0 { 20 } else { 12 };
        Many { all, rings: Vec::new(), hdr, slot: 0 }
    }

    fn start(&mut self) {
        let guest = &mut self.all.guest;
        guest.front.set_mem_table(&[guest.info()]).unwrap();
        guest.start_ring(1, guest.fresh(), 0).unwrap();
        for queue in 0..QUEUES {
            let areas = self.areas(queue);
            let mut ring = (R::open(&areas, &self.all.guest.table).unwrap(), vec![0; NUM.into()]);
            for i in 0..ROOMS {
                let frame = 512 + u64::from(queue) * ROOMS + i;
                post(&mut ring, GUEST + FRAMES + frame * FRAME);
            }
            self.rings.push(ring);
            self.start_ring(queue, self.all.guest.fresh());
        }
        let fresh = self.all.guest.fresh();
        self.all.start_control(fresh).unwrap();
    }

    fn areas(&self, queue: u16) -> Areas {
        Areas::at(CONTROL / 2 + GUEST / 2 + u64::from(queue) * 0x10000, NUM, self.all.guest.features, 0)
    }

    /// Starts a receive ring at `base`.
    fn start_ring(&mut self, queue: u16, base: u16) {
        self.all.guest.areas[0] = self.areas(queue);
        let areas = self.all.guest.areas[0];
        let (guest, ring) = (&mut self.all.guest, 2 * usize::from(queue));
        let user = |gpa: u64| gpa - GUEST + USER;
        let config = VringConfigData {
            queue_max_size: NUM,
            queue_size: NUM,
            flags: 0,
            desc_table_addr: user(areas.desc),
            used_ring_addr: user(areas.device),
            avail_ring_addr: user(areas.driver),
            log_addr: None,
        };
        guest.front.set_vring_num(ring, NUM).unwrap();
        guest.front.set_vring_base(ring, base).unwrap();
        guest.front.set_vring_addr(ring, &config).unwrap();
        guest.front.set_vring_call(ring, &guest.call).unwrap();
        guest.front.set_vring_enable(ring, true).unwrap();
        guest.front.set_vring_kick(ring, &guest.kick).unwrap();
    }

    /// Sends a frame.
    fn send(&mut self, frame: &[u8]) {
        self.slot = (self.slot + 1) % 64;
        let addr = GUEST + FRAMES + (u64::from(NUM) + self.slot) * FRAME;
        self.all.write(addr, &[0; 20]);
        self.all.write(addr + u64::from(self.hdr), &[0; LEN as usize]);
        self.all.write(addr + u64::from(self.hdr), frame);
        let len = self.hdr + (frame.len() as u32).max(LEN);
        self.all.guest.transmit.add(&[Segment::read(addr, len)]).unwrap();
        if self.all.guest.transmit.publish() {
            self.all.guest.kick.write(1).unwrap();
        }
    }

    /// Waits until what was sent is given back.
    fn sent(&mut self) {
        eventually("it is sent", || {
            while self.all.guest.transmit.used().unwrap().is_some() {}
            self.all.guest.transmit.free() == NUM
        });
    }

    /// What has come since, without waiting.
    fn come(&mut self) -> Vec<(Came, Vec<u8>)> {
        let mut came = Vec::new();
        for queue in 0..self.rings.len() {
            while let Some(used) = self.rings[queue].0.used().unwrap() {
                let addr = self.rings[queue].1[usize::from(used.id)];
                let bytes = self.all.read(addr, used.len as usize);
                let (mut hash, mut report) = (0, 0);
                if self.hdr == 20 {
                    assert_eq!(bytes[18..20], [0, 0]);
                    hash = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
                    report = u16::from_le_bytes(bytes[16..18].try_into().unwrap());
                }
                came.push((Came { queue, hash, report }, bytes[self.hdr as usize..].to_vec()));
                post(&mut self.rings[queue], addr);
            }
        }
        came
    }

    /// Sends a frame and waits until it comes back, whole: where, and with what hash.
    fn echo(&mut self, frame: &[u8]) -> Came {
        self.send(frame);
        let mut came = Vec::new();
        eventually("the frame", || {
            came.extend(self.come());
            !came.is_empty()
        });
        self.sent();
        let (came, bytes) = came.pop().unwrap();
        assert!(bytes.starts_with(frame));
        came
    }

    fn rss(&mut self, types: u32, table: &[u16], unclassified: u16) -> bool {
        let table: Vec<u8> = table.iter().flat_map(|queue| queue.to_le_bytes()).collect();
        let mask = (table.len() / 2) as u16 - 1;
        let data = [
            &types.to_le_bytes()[..],
            &mask.to_le_bytes(),
            &unclassified.to_le_bytes(),
            &table,
            &QUEUES.to_le_bytes(),
            &[40],
            &KEY,
        ];
        self.all.ask(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &data.concat())
    }
}

fn post<R: Ring>((ring, rooms): &mut (R, Vec<u64>), addr: u64) {
    let id = ring.add(&[Segment::write(addr, FRAME as u32)]).unwrap();
    rooms[usize::from(id)] = addr;
    let _ = ring.publish();
}

/// The ports' queues on two cores.
fn two_cores(stage: &mut Stage) -> [Core; 2] {
    let mut queues = stage.port.start(QUEUES).unwrap();
    let last = queues.pop().unwrap();
    [Core::run(queues), Core::run(vec![last])]
}

fn stop(stage: &mut Stage, cores: [Core; 2]) {
    let queues = cores.into_iter().flat_map(Core::stop).collect();
    stage.port.stop(queues).unwrap();
}

/// Frames that are hashed: the frame, the hash of all, what is reported.
fn flows() -> Vec<(Vec<u8>, u32, u16)> {
    let v4 = V4.iter().flat_map(|(from, a, to, b, _, all)| {
        [(6, 2), (17, 3)].map(|(protocol, report)| (v4_frame(from, to, protocol, (*a, *b)), *all, report))
    });
    let v6 = V6.iter().flat_map(|(from, a, to, b, _, all)| {
        [(6, 5), (17, 6)].map(|(protocol, report)| (v6_frame(from, to, protocol, (*a, *b)), *all, report))
    });
    v4.chain(v6).collect()
}

fn packets_come_where_their_hash_says<R: Ring>(name: &str, features: u64) {
    let mut stage = Stage::new(name, |config| config.queues = QUEUES);
    let cores = two_cores(&mut stage);
    let mut many = Many::<R>::connect(&stage, name, features | net::F_MQ | net::F_RSS);
    let reports = many.hdr == 20;
    let came = |queue: u16, hash: u32, report: u16| Came {
        queue: queue.into(),
        hash: if reports { hash } else { 0 },
        report: if reports { report } else { 0 },
    };
    let other = [&[2u8; 12][..], &[0x88, 0xb5]].concat();
    assert_eq!(many.echo(&flows()[0].0), came(0, 0, 0), "nothing is hashed before it is asked for");
    let table = [2, 0, 1, 2, 0, 1, 2, 1];
    assert!(many.rss(hash::ALL, &table, 1));
    for (frame, hash, report) in flows() {
        assert_eq!(many.echo(&frame), came(table[hash as usize & 7], hash, report));
    }
    assert_eq!(many.echo(&other), came(1, 0, 0));
    // What cannot be is refused, and changes nothing.
    for (types, table, unclassified) in
        [(1 << 9, &[0u16, 0][..], 0), (hash::ALL, &[0, QUEUES], 0), (hash::ALL, &[0, 0], 3), (1, &[0; 3], 0)]
    {
        assert!(!many.rss(types, table, unclassified));
    }
    assert!(!many.rss(hash::ALL, &[0; 256], 0));
    assert_eq!(many.echo(&other), came(1, 0, 0));
    // Only some are hashed.
    assert!(many.rss(hash::TCPV4, &[2], 1));
    for (frame, hash, report) in flows() {
        let expected = if report == 2 { came(2, hash, report) } else { came(1, 0, 0) };
        assert_eq!(many.echo(&frame), expected);
    }
    // To each the ring of the queue it comes to, as without; what is reported stays.
    assert!(many.all.ask(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &QUEUES.to_le_bytes()));
    for (frame, hash, report) in flows() {
        assert_eq!(many.echo(&frame), if report == 2 { came(0, hash, report) } else { came(0, 0, 0) });
    }
    drop(many);
    stop(&mut stage, cores);
}

#[test]
fn packets_come_where_their_hash_says_split() {
    packets_come_where_their_hash_says::<Split>("rss-split", SPLIT);
    packets_come_where_their_hash_says::<Split>(
        "rss-split-report",
        SPLIT | net::F_HASH_REPORT | v::F_EVENT_IDX,
    );
}

#[test]
fn packets_come_where_their_hash_says_packed() {
    packets_come_where_their_hash_says::<Packed>("rss-packed", PACKED);
    packets_come_where_their_hash_says::<Packed>(
        "rss-packed-report",
        PACKED | net::F_HASH_REPORT | net::F_MRG_RXBUF,
    );
}

#[test]
fn a_hash_is_reported_without_steering() {
    let mut stage = Stage::new("hash-only", |config| config.queues = QUEUES);
    let cores = two_cores(&mut stage);
    let mut many = Many::<Split>::connect(&stage, "hash-only", SPLIT | net::F_MQ | net::F_HASH_REPORT);
    let (frame, hash, report) = flows().swap_remove(0);
    let config = |types: u32| [&types.to_le_bytes()[..], &[0; 8], &[40], &KEY].concat();
    assert!(!many.rss(hash::ALL, &[1], 1), "not negotiated");
    assert!(!many.all.ask(ctrl::MQ, ctrl::MQ_HASH_CONFIG, &config(1 << 9)));
    assert!(many.all.ask(ctrl::MQ, ctrl::MQ_HASH_CONFIG, &config(hash::ALL)));
    assert_eq!(many.echo(&frame), Came { queue: 0, hash, report });
    assert!(many.all.ask(ctrl::MQ, ctrl::MQ_HASH_CONFIG, &config(0)));
    assert_eq!(many.echo(&frame), Came { queue: 0, hash: 0, report: 0 });
    drop(many);
    stop(&mut stage, cores);
}

/// Many frames for another core's ring, which comes and goes: what is counted as delivered is there, the rest is
/// counted as lost, and every buffer is given back.
#[test]
fn rings_of_other_cores_come_and_go() {
    let name = "rss-busy";
    let mut stage = Stage::new(name, |config| config.queues = QUEUES);
    let cores = two_cores(&mut stage);
    let mut many = Many::<Packed>::connect(&stage, name, PACKED | net::F_MQ | net::F_RSS);
    let flows = flows();
    assert!(many.rss(hash::ALL, &[0, 1, 2, 2], 2));
    let (mut sent, mut got) = (0u64, 0u64);
    for round in 0..50 {
        for (frame, ..) in flows.iter().cycle().take(40) {
            many.send(frame);
            sent += 1;
        }
        if round % 5 == 2 {
            let base = many.all.guest.front.get_vring_base(4).unwrap();
            many.sent();
            many.start_ring(2, base as u16);
        }
        many.sent();
        got += many.come().len() as u64;
    }
    let stats = || stage.port.stats();
    eventually("all are counted", || {
        got += many.come().len() as u64;
        let delivered: u64 = stats().iter().map(|queue| queue.tx_packets).sum();
        let errors: u64 = stats().iter().map(|queue| queue.tx_errors).sum();
        delivered == got && got + errors <= sent && got > 500
    });
    assert_eq!(stats()[0].rx_packets, sent);
    assert!(stats()[2].tx_packets > 0 && stats()[1].tx_packets > 0);
    drop(many);
    stop(&mut stage, cores);
}

#[test]
fn the_configuration_says_what_can_be_hashed() {
    use vhost::vhost_user::message::VhostUserConfigFlags;
    for control in [true, false] {
        let name = if control { "rss-config" } else { "rss-no-config" };
        let mut stage = Stage::new(name, |config| config.control = control);
        let core = Core::run(stage.port.start(1).unwrap());
        let mut guest = Guest::<Split>::connect(&stage, name, SPLIT);
        let offered = guest.front.get_features().unwrap() & (net::F_RSS | net::F_HASH_REPORT);
        let none = VhostUserConfigFlags::empty();
        let (_, bytes) = guest.front.get_config(16, 8, none, &[0; 8]).unwrap();
        if control {
            assert_eq!(
                (offered, &bytes[..]),
                (net::F_RSS | net::F_HASH_REPORT, &[0xff, 40, 128, 0, 0xff, 1, 0, 0][..])
            );
        } else {
            assert_eq!((offered, &bytes[..]), (0, &[0xff, 0, 0, 0, 0, 0, 0, 0][..]));
        }
        drop(guest);
        stage.port.stop(core.stop()).unwrap();
    }
}
