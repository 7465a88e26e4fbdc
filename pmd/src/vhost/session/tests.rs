mod inband;
mod legacy;
mod transfer;

use super::super::host::testing::{Asked, Recorder};
use super::super::message::{Fds, name};
use super::super::ring::RingError;
use super::*;
use crate::spec::vhost_user::{Header, InflightArea, LogArea, SingleRegion, VringAddr};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use zerocopy::{Immutable, IntoBytes};

const FEATURES: u64 = F_VERSION_1 | F_RING_PACKED | 1;
const NEED_REPLY: u32 = 8;

fn offer() -> Offer {
    Offer {
        features: FEATURES,
        pairs: 2,
        control: 0,
        mtu: 9000,
        postcopy: false,
        inband: false,
        config: (0..24).collect(),
    }
}

/// A session, its host, and what a front-end does with them.
struct Talk {
    session: Session,
    host: Recorder,
}

fn message(id: u32, flags: u32, payload: &[u8], fds: usize) -> Frame {
    let header = Header { request: id, flags: 1 | flags, size: payload.len() as u32 };
    let fds: Fds = (0..fds).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect();
    Frame { header, payload: payload.to_vec(), fds }
}

fn state(index: u32, num: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload.copy_from_slice(VringState { index, num }.as_bytes());
    payload
}

fn region(guest: u64, size: u64) -> MemRegion {
    MemRegion { guest, size, user: 0x7f00_0000_0000 + guest, offset: 0 }
}

fn table(regions: &[MemRegion]) -> Vec<u8> {
    [&(regions.len() as u64).to_ne_bytes()[..], regions.as_bytes()].concat()
}

fn single(region: MemRegion) -> Vec<u8> {
    SingleRegion { padding: 0, region }.as_bytes().to_vec()
}

fn addr(index: u32) -> VringAddr {
    let at = 0x7f00_0000_0000 + u64::from(index) * 0x1_0000;
    VringAddr { index, flags: 0, descriptors: at, used: at + 0x2000, available: at + 0x1000, log: 0 }
}

impl Talk {
    fn new() -> Talk {
        Talk { session: Session::new(offer()), host: Recorder::default() }
    }

    /// Negotiated, with one region of memory.
    fn ready(features: u64) -> Talk {
        let mut talk = Talk::new();
        talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
        talk.tell(id::SET_FEATURES, features);
        talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x10_0000)]), 1);
        talk.host.asked();
        talk
    }

    fn on(&mut self, frame: Frame) -> Result<Reply, SessionError> {
        self.session.on(frame, &mut self.host)
    }

    /// The answer's bytes, after the header.
    fn send(&mut self, id: u32, flags: u32, payload: &[u8], fds: usize) -> Option<Vec<u8>> {
        let reply = self.on(message(id, flags, payload, fds)).unwrap();
        reply.answer.map(|answer| answer.encode()[12..].to_vec())
    }

    /// Sends a message that must be served without a word.
    fn tell<T: IntoBytes + Immutable>(&mut self, id: u32, payload: T) {
        let fds = usize::from(matches!(id, id::SET_VRING_KICK | id::SET_VRING_CALL | id::SET_VRING_ERR));
        let reply = self.on(message(id, 0, payload.as_bytes(), fds)).unwrap();
        assert!(reply.answer.is_none() && reply.refused.is_empty(), "{reply:?}");
    }

    /// Asks for an acknowledgement; whether it says "done".
    fn ask(&mut self, id: u32, payload: &[u8], fds: usize) -> bool {
        match self.send(id, NEED_REPLY, payload, fds).as_deref() {
            Some([0, 0, 0, 0, 0, 0, 0, 0]) => true,
            Some([1, 0, 0, 0, 0, 0, 0, 0]) => false,
            other => panic!("{} is answered with {other:?}", name(id)),
        }
    }

    /// Everything a ring needs but the last word that starts it.
    fn describe(&mut self, ring: u32, num: u32, base: u32) {
        self.tell(id::SET_VRING_NUM, state(ring, num));
        self.tell(id::SET_VRING_BASE, state(ring, base));
        self.tell(id::SET_VRING_ADDR, addr(ring));
        self.tell(id::SET_VRING_CALL, u64::from(ring));
    }

    fn run(&mut self, ring: u32) {
        self.describe(ring, 256, 7);
        self.tell(id::SET_VRING_KICK, u64::from(ring));
        self.tell(id::SET_VRING_ENABLE, state(ring, 1));
        assert!(self.host.diary().running.contains_key(&(ring as u16)));
        self.host.asked();
    }

    fn base(&mut self, ring: u32) -> u32 {
        let answer = self.send(id::GET_VRING_BASE, 0, &state(ring, 0), 0).unwrap();
        assert_eq!(answer[..4], ring.to_ne_bytes());
        u32::from_ne_bytes(answer[4..].try_into().unwrap())
    }
}

const SPLIT: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;
const PACKED: u64 = SPLIT | F_RING_PACKED;

#[test]
fn numbers_are_answered_byte_for_byte() {
    let mut talk = Talk::new();
    for (id, number) in [
        (id::GET_FEATURES, FEATURES | 1 << 30 | 1 << 26),
        (id::GET_PROTOCOL_FEATURES, 0x19_b23f),
        (id::GET_QUEUE_NUM, 2),
        (id::GET_MAX_MEM_SLOTS, 509),
        (id::GET_STATUS, 0),
    ] {
        // An explicit answer is the same with an acknowledgement asked for.
        for flags in [0, NEED_REPLY] {
            let answer = talk.on(message(id, flags, &[], 0)).unwrap().answer.unwrap().encode();
            let header = [id.to_ne_bytes(), 5u32.to_ne_bytes(), 8u32.to_ne_bytes()].concat();
            assert_eq!(answer, [&header[..], &u64::to_ne_bytes(number)].concat(), "{}", name(id));
        }
    }
}

#[test]
fn acknowledgements_only_once_negotiated() {
    let mut talk = Talk::new();
    assert_eq!(talk.send(id::SET_OWNER, NEED_REPLY, &[], 0), None);
    // The message that negotiates them is acknowledged already.
    assert!(talk.ask(id::SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), 0));
    assert!(talk.ask(id::SET_OWNER, &[], 0));
    assert_eq!(talk.send(id::SET_OWNER, 0, &[], 0), None);
}

#[test]
fn unknown_messages_are_refused_and_the_session_lives() {
    let mut talk = Talk::ready(SPLIT);
    for id in [0, id::GPU_SET_SOCKET, id::CLOSE_CRYPTO_SESSION, 46, 0x1_0001, u32::MAX] {
        assert!(!talk.ask(id, &[1, 2, 3], 3), "{}", name(id));
        let reply = talk.on(message(id, 0, &[0; 100], 9)).unwrap();
        assert!(reply.answer.is_none());
        assert!(matches!(reply.refused[..], [Refusal::Unknown(got)] if got == id));
    }
    talk.run(0);
}

#[test]
fn what_is_not_offered_is_refused_and_nobody_waits_for_an_answer() {
    // HOST_NOTIFIER, SHARED_OBJECT, CROSS_ENDIAN, CRYPTO_SESSION, XEN_MMAP.
    for bit in [11, 18, 6, 7, 17] {
        let mut talk = Talk::new();
        assert!(matches!(
            talk.on(message(id::SET_PROTOCOL_FEATURES, 0, &(1u64 << bit).to_ne_bytes(), 0)),
            Err(SessionError::Unheard(Refusal::Features { .. }))
        ));
    }
    for id in [id::GET_SHARED_OBJECT, id::GET_SHMEM_CONFIG, id::CREATE_CRYPTO_SESSION] {
        let mut talk = Talk::ready(SPLIT);
        assert!(!talk.ask(id, &[0; 16], 0), "{}", name(id));
        let end = talk.on(message(id, 0, &[0; 16], 0));
        assert!(matches!(end, Err(SessionError::Unanswerable(Refusal::Unknown(got))) if got == id));
    }
    let mut talk = Talk::ready(SPLIT);
    assert!(talk.ask(id::SET_VRING_ENDIAN, &state(0, 0), 0));
    assert!(!talk.ask(id::SET_VRING_ENDIAN, &state(0, 1), 0), "big-endian");
    assert!(!talk.ask(id::SET_VRING_ENDIAN, &state(4, 0), 0), "no such ring");
}

/// Front-ends differ in what they expect of SET_LOG_BASE, and hang if they do not get it.
#[test]
fn the_log_base_is_answered_as_it_came() {
    let area = LogArea { size: 0x20, offset: 0 };
    for flags in [0, NEED_REPLY] {
        let mut talk = Talk::ready(SPLIT);
        let answer = talk.on(message(id::SET_LOG_BASE, flags, area.as_bytes(), 1)).unwrap().answer.unwrap();
        #[rustfmt::skip]
        assert_eq!(answer.encode(), [
            6, 0, 0, 0, 5, 0, 0, 0, 16, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(talk.host.asked(), [Asked::LogBase(area)]);
    }
    // Without LOG_SHMFD there is no answer unless it is asked for.
    let mut talk = Talk::new();
    talk.tell(id::SET_PROTOCOL_FEATURES, 1u64 << 3);
    assert_eq!(talk.send(id::SET_LOG_BASE, 0, area.as_bytes(), 1), None);
    assert!(talk.ask(id::SET_LOG_BASE, area.as_bytes(), 1));
    // QEMU does not look into the answer, and rust-vmm would wait for the rest of a shorter one.
    for flags in [0, NEED_REPLY] {
        let mut talk = Talk::ready(SPLIT);
        talk.host.diary().unmappable = true;
        let end = talk.on(message(id::SET_LOG_BASE, flags, area.as_bytes(), 1));
        assert!(matches!(end, Err(SessionError::Unanswerable(Refusal::Log(_)))), "{end:?}");
    }
}

#[test]
fn logging_begins_and_ends_while_rings_run() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    let logged = VringAddr { flags: 1, log: 0x77_0000, ..addr(0) };
    talk.tell(id::SET_FEATURES, SPLIT | 1 << 26);
    talk.tell(id::SET_VRING_ADDR, logged);
    talk.tell(id::SET_VRING_ADDR, logged);
    talk.tell(id::SET_FEATURES, SPLIT | 1 << 26);
    talk.tell(id::SET_FEATURES, SPLIT);
    talk.tell(id::SET_VRING_ADDR, addr(0));
    let used = |log| Asked::LogUsed(0, log);
    assert_eq!(talk.host.asked(), [Asked::LogAll(true), used(0x77_0000), Asked::LogAll(false), used(0),]);
    assert!(!talk.ask(id::SET_VRING_ADDR, VringAddr { flags: 2, ..addr(0) }.as_bytes(), 0));
    // Other features still cannot change under a ring.
    talk.run(1);
    assert!(!talk.ask(id::SET_FEATURES, &(PACKED | 1 << 26).to_ne_bytes(), 0));
    assert!(talk.ask(id::SET_LOG_FD, &[], 1));
    assert_eq!(talk.host.asked(), [Asked::LogSignal]);
    // A core that does not answer: the front-end must not believe that it logs.
    talk.host.diary().late = vec![0];
    assert!(!talk.ask(id::SET_FEATURES, &(SPLIT | 1 << 26).to_ne_bytes(), 0));
}

#[test]
fn status_and_reset() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    let status = |talk: &mut Talk| talk.send(id::GET_STATUS, 0, &[], 0).unwrap()[0];
    for bits in [1u64, 3, 11, 15] {
        talk.tell(id::SET_STATUS, bits);
        assert_eq!(u64::from(status(&mut talk)), bits);
    }
    assert!(!talk.ask(id::SET_STATUS, &256u64.to_ne_bytes(), 0));
    talk.host.asked();
    talk.tell(id::SET_STATUS, 0u64);
    assert_eq!((status(&mut talk), talk.host.asked()), (0, vec![Asked::Stop(vec![0]), Asked::ClearRecords]));
    talk.run(0);
    talk.tell(id::SET_FEATURES, SPLIT | 1 << 26);
    talk.tell(id::SET_STATUS, 15u64);
    talk.host.asked();
    assert!(talk.ask(id::RESET_DEVICE, &[], 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0]), Asked::ClearRecords, Asked::LogAll(false)]);
    assert_eq!((status(&mut talk), talk.base(0)), (0, 0));
    // Features are negotiated anew; the memory has stayed.
    talk.describe(0, 256, 0);
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert!(talk.host.asked().is_empty());
    talk.tell(id::SET_FEATURES, SPLIT);
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 256, base: 0 }]);
}

#[test]
fn records_of_what_is_in_flight() {
    let mut talk = Talk::ready(SPLIT);
    let area = InflightArea { rings: 4, num: 256, ..InflightArea::default() };
    // With the padding of a C structure or without, as it was asked.
    for len in [20, 24] {
        let frame = message(id::GET_INFLIGHT_FD, 0, &area.as_bytes()[..len], 0);
        let answer = talk.on(frame).unwrap().answer.unwrap();
        assert!(answer.fd().is_some());
        #[rustfmt::skip]
        let want = [
            31, 0, 0, 0, 5, 0, 0, 0, len as u8, 0, 0, 0, 0x45, 0x23, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            4, 0, 0, 1, 0, 0, 0, 0,
        ];
        assert_eq!(answer.encode(), want[..12 + len]);
        assert_eq!(talk.host.asked(), [Asked::MakeRecords(4, 256)]);
    }
    let area = InflightArea { size: 0x1_2345, ..area };
    assert!(talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1));
    assert_eq!(talk.host.asked(), [Asked::SetRecords(area)]);
    for (rings, num) in [(0, 256), (5, 256), (65535, 256), (4, 0), (4, 32769), (4, 65535)] {
        let area = InflightArea { rings, num, ..area };
        assert!(!talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1), "{area:?}");
        let end = Talk::ready(SPLIT).on(message(id::GET_INFLIGHT_FD, 0, area.as_bytes(), 0));
        assert!(matches!(end, Err(SessionError::Unanswerable(Refusal::Records { .. }))));
    }
    talk.run(0);
    assert!(!talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1), "a ring runs");
}

#[test]
fn a_guest_that_has_moved_is_announced() {
    let mut talk = Talk::ready(SPLIT);
    assert!(talk.ask(id::SEND_RARP, &[2, 3, 4, 5, 6, 7, 0, 0], 0));
    assert_eq!(talk.host.asked(), [Asked::Announce([2, 3, 4, 5, 6, 7])]);
}

#[test]
fn what_is_refused_unheard_ends_the_connection() {
    for (id, payload) in [
        (id::SET_FEATURES, (1u64 << 50).to_ne_bytes()),
        (id::SET_VRING_NUM, state(4, 256)),
        (id::SET_VRING_ENABLE, state(0, 2)),
        (id::NET_SET_MTU, 67u64.to_ne_bytes()),
    ] {
        let mut talk = Talk::ready(SPLIT);
        assert!(!talk.ask(id, &payload, 0), "{}", name(id));
        talk.run(0);
        let mut talk = Talk::ready(SPLIT);
        assert!(matches!(talk.on(message(id, 0, &payload, 0)), Err(SessionError::Unheard(_))));
    }
    // No answer to these says "refused".
    for id in [id::GET_FEATURES, id::GET_QUEUE_NUM, id::GET_VRING_BASE] {
        let mut talk = Talk::ready(SPLIT);
        let end = talk.on(message(id, NEED_REPLY, &[0xff; 8], 0));
        assert!(matches!(end, Err(SessionError::Unanswerable(_))), "{}", name(id));
    }
}

#[test]
fn indices_are_checked_in_full() {
    let mut talk = Talk::ready(SPLIT);
    for index in [4, 5, 255, 256, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX] {
        for id in [id::SET_VRING_NUM, id::SET_VRING_BASE, id::SET_VRING_ENABLE] {
            assert!(!talk.ask(id, &state(index, 1), 0), "{} {index:#x}", name(id));
        }
        assert!(!talk.ask(id::SET_VRING_ADDR, addr(index).as_bytes(), 0));
        if index == 256 {
            continue; // In the messages below, ring 0 without a descriptor.
        }
        for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
            assert!(!talk.ask(id, &u64::from(index).to_ne_bytes(), 1), "{} {index:#x}", name(id));
        }
        let mut other = Talk::ready(SPLIT);
        assert!(other.on(message(id::GET_VRING_BASE, 0, &state(index, 0), 0)).is_err());
    }
    assert!(talk.host.asked().is_empty());
}

#[test]
fn features() {
    let mut talk = Talk::ready(SPLIT);
    let set = |talk: &mut Talk, features: u64| talk.ask(id::SET_FEATURES, &features.to_ne_bytes(), 0);
    assert!(!set(&mut talk, 1 << 63));
    assert!(!set(&mut talk, FEATURES | 2));
    assert!(!set(&mut talk, F_RING_PACKED), "packed without VERSION_1");
    assert!(set(&mut talk, 0), "a legacy driver");
    assert!(set(&mut talk, SPLIT));
    talk.run(0);
    assert!(set(&mut talk, SPLIT), "the same again, for another queue pair");
    assert!(!set(&mut talk, PACKED), "another layout under a running ring");
    talk.base(0);
    assert!(set(&mut talk, PACKED));
    assert!(!talk.ask(id::SET_PROTOCOL_FEATURES, &(1u64 << 6).to_ne_bytes(), 0));
}

#[test]
fn memory_that_lacks_pages_is_told_where_it_is_and_not_touched_before_they_come() {
    let mut talk = Talk::new();
    talk.session.offer.postcopy = true;
    let all = PROTOCOL_FEATURES | PROTOCOL_F_PAGEFAULT;
    talk.tell(id::SET_PROTOCOL_FEATURES, all);
    talk.tell(id::SET_FEATURES, SPLIT);
    assert!(!talk.ask(id::POSTCOPY_LISTEN, &[], 0), "before the descriptor");
    let answer = talk.on(message(id::POSTCOPY_ADVISE, 0, &[], 0)).unwrap().answer.unwrap();
    assert_eq!((answer.encode(), answer.fd().is_some()), (vec![28, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0], true));
    assert!(talk.ask(id::POSTCOPY_LISTEN, &[], 0));
    let ours = |guest, size| MemRegion { user: guest + 0x10_0000_0000, ..region(guest, size) };
    let (one, two) = (region(0, 0x1000), region(0x1000, 0x1000));
    let sent = talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[one, two]), 2).unwrap();
    assert_eq!(sent, table(&[ours(0, 0x1000), ours(0x1000, 0x1000)]));
    let sent = talk.send(id::ADD_MEM_REG, NEED_REPLY, &single(region(0x2000, 0x8000)), 1).unwrap();
    assert_eq!(sent, single(ours(0x2000, 0x8000)));
    // A ring that is described waits until pages are brought.
    talk.describe(0, 256, 7);
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert!(talk.host.diary().running.is_empty());
    assert_eq!(talk.send(id::SET_MEM_TABLE, NEED_REPLY, &[0; 8], 0), None, "nobody looks for an answer");
    assert!(talk.host.diary().running.contains_key(&0));
    assert!(!talk.ask(id::ADD_MEM_REG, &[0; 8], 0), "once");
    assert_eq!(talk.send(id::POSTCOPY_END, 0, &[], 0).unwrap(), [0; 8]);
    assert_eq!(talk.host.asked().last(), Some(&Asked::EndPostcopy));
    // As ever.
    assert!(talk.ask(id::ADD_MEM_REG, &single(region(0x10_0000, 0x1000)), 1));
}

#[test]
fn a_front_end_that_leaves_in_post_copy_lets_those_go_who_wait_for_pages() {
    let mut talk = Talk::new();
    talk.session.offer.postcopy = true;
    talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | PROTOCOL_F_PAGEFAULT);
    talk.tell(id::SET_FEATURES, SPLIT);
    talk.send(id::POSTCOPY_ADVISE, 0, &[], 0);
    talk.tell(id::POSTCOPY_LISTEN, [0u8; 0]);
    talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x10_0000)]), 1);
    talk.send(id::SET_MEM_TABLE, 0, &[0; 8], 0);
    talk.run(0);
    assert!(talk.session.close(&mut talk.host).is_none());
    // Before the ring is waited for.
    assert_eq!(talk.host.asked(), [Asked::EndPostcopy, Asked::Stop(vec![0]), Asked::Disconnected]);
}

#[test]
fn what_a_guests_iommu_says_is_always_answered() {
    let with = |kind| IotlbMsg {
        iova: 0x1000,
        size: 0x1000,
        user: 0x7f00_0000_0000,
        perm: 3,
        kind,
        ..IotlbMsg::default()
    };
    let tell =
        |talk: &mut Talk, kind, flags| talk.send(id::IOTLB_MSG, flags, with(kind).as_bytes(), 0).unwrap();
    let (done, refused) = (0u64.to_ne_bytes(), 1u64.to_ne_bytes());
    let mut talk = Talk::ready(SPLIT);
    assert_eq!(tell(&mut talk, iotlb::UPDATE, 0), refused, "without ACCESS_PLATFORM");
    talk.session.offer.features |= F_ACCESS_PLATFORM;
    talk.tell(id::SET_FEATURES, SPLIT | F_ACCESS_PLATFORM);
    for flags in [0, NEED_REPLY] {
        assert_eq!(tell(&mut talk, iotlb::UPDATE, flags), done);
        assert_eq!(tell(&mut talk, iotlb::INVALIDATE, flags), done);
        for kind in [0, iotlb::MISS, iotlb::ACCESS_FAIL, 5, 255] {
            assert_eq!(tell(&mut talk, kind, flags), refused);
        }
        let (update, invalidate) = (with(iotlb::UPDATE), with(iotlb::INVALIDATE));
        assert_eq!(talk.host.asked(), [Asked::Translate(update), Asked::Invalidate(invalidate)]);
    }
    talk.host.diary().late = vec![0];
    assert_eq!(tell(&mut talk, iotlb::INVALIDATE, 0), refused);
    talk.host.diary().unmappable = true;
    assert_eq!(tell(&mut talk, iotlb::UPDATE, 0), refused);
}

#[test]
fn what_the_device_asks_goes_over_its_channel_and_a_refusal_comes_back() {
    let mut talk = Talk::ready(SPLIT);
    let reply = talk.on(message(id::SET_BACKEND_REQ_FD, 0, &[], 1)).unwrap();
    assert!(reply.channel.is_some() && reply.answer.is_none());
    let miss = Ask::Miss { iova: 0x5000, perm: 1 };
    talk.host.diary().asks = vec![miss; 2];
    let bytes = talk.session.requests(&mut talk.host);
    assert_eq!((bytes.len(), bytes[4]), (88, 9), "each with an acknowledgement asked for");
    talk.host.asked();
    let answer = |value: u64| message(1, 4, value.as_bytes(), 0);
    assert!(talk.session.on_reply(&answer(0), &mut talk.host) && talk.host.asked().is_empty());
    assert!(talk.session.on_reply(&answer(1), &mut talk.host));
    assert_eq!(talk.host.asked(), [Asked::Refused(miss)]);
    assert!(!talk.session.on_reply(&answer(0), &mut talk.host), "nothing was asked");
    // Not negotiated.
    let mut talk = Talk::new();
    talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_F_REPLY_ACK);
    assert!(!talk.ask(id::SET_BACKEND_REQ_FD, &[], 1));
}

#[test]
fn a_ring_starts_with_the_last_thing_it_needs() {
    type Step = fn(&mut Talk);
    let steps: [Step; 6] = [
        |t| t.tell(id::SET_FEATURES, SPLIT),
        |t| {
            t.send(id::SET_MEM_TABLE, 0, &table(&[region(0, 0x10_0000)]), 1);
        },
        |t| t.tell(id::SET_VRING_NUM, state(0, 256)),
        |t| t.tell(id::SET_VRING_ADDR, addr(0)),
        |t| t.tell(id::SET_VRING_KICK, 0u64),
        |t| t.tell(id::SET_VRING_ENABLE, state(0, 1)),
    ];
    // SET_VRING_NUM and SET_VRING_BASE start nothing themselves: they come before the kick.
    for last in [0, 1, 3, 4, 5] {
        let mut talk = Talk::new();
        for (_, step) in steps.iter().enumerate().filter(|(i, _)| *i != last) {
            step(&mut talk);
            assert!(talk.host.diary().running.is_empty());
        }
        steps[last](&mut talk);
        assert_eq!(talk.host.diary().running.len(), 1, "step {last} comes last");
    }
}

#[test]
fn without_protocol_features_a_ring_starts_enabled() {
    let mut talk = Talk::ready(F_VERSION_1);
    talk.describe(0, 256, 0);
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 256, base: 0 }]);
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
}

#[test]
fn no_descriptor_means_polling() {
    let mut talk = Talk::ready(SPLIT);
    talk.describe(1, 256, 0);
    talk.tell(id::SET_VRING_ENABLE, state(1, 1));
    assert!(talk.ask(id::SET_VRING_KICK, &0x101u64.to_ne_bytes(), 0));
    assert!(talk.host.diary().running[&1].signals.kick.is_none());
}

#[test]
fn a_disabled_ring_goes_on_where_it_stopped() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.host.diary().bases.insert(0, 99);
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 256, base: 99 }]);
}

#[test]
fn get_vring_base_stops_a_ring_until_the_next_kick() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.host.diary().bases.insert(0, 0xfffe);
    assert_eq!(talk.base(0), 0xfffe);
    assert_eq!(talk.base(0), 0xfffe, "asked again");
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    talk.tell(id::SET_VRING_NUM, state(0, 512));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 512, base: 0xfffe }]);
}

#[test]
fn bases_of_packed_rings() {
    let mut talk = Talk::ready(PACKED);
    assert_eq!(talk.base(3), 0x8000_8000, "never set");
    // DPDK's virtio-user sets the available half only.
    talk.describe(0, 100, 0x8000);
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert_eq!(talk.host.diary().running[&0].base, 0x8000_8000);
    talk.host.diary().bases.insert(0, 0x8063_0005);
    assert_eq!(talk.base(0), 0x8063_0005);
    talk.tell(id::SET_VRING_BASE, state(0, 0x8063_0005));
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.diary().running[&0].base, 0x8063_0005);
}

#[test]
fn a_running_ring_keeps_size_and_base_and_may_move() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    assert!(!talk.ask(id::SET_VRING_NUM, &state(0, 256), 0));
    assert!(!talk.ask(id::SET_VRING_BASE, &state(0, 7), 0));
    talk.tell(id::SET_VRING_ADDR, addr(0));
    assert!(talk.host.asked().is_empty(), "the same addresses");
    let moved = VringAddr { index: 0, ..addr(9) };
    talk.tell(id::SET_VRING_ADDR, moved);
    let start = Asked::Start { index: 0, num: 256, base: 7 };
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0]), start]);
    assert_eq!(talk.host.diary().running[&0].addr, moved);
}

#[test]
fn eventfds_change_while_a_ring_runs() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.tell(id::SET_VRING_CALL, 0u64);
    talk.tell(id::SET_VRING_ERR, 0u64);
    assert!(talk.ask(id::SET_VRING_CALL, &0x100u64.to_ne_bytes(), 0));
    assert!(talk.ask(id::SET_VRING_KICK, &0x100u64.to_ne_bytes(), 0));
    let signals = |kick, call, err| Asked::Signals { ring: 0, kick, call, err };
    let want =
        [signals(true, true, false), signals(true, true, true), signals(true, false, true)].into_iter();
    assert_eq!(talk.host.asked(), want.chain([signals(false, false, true)]).collect::<Vec<_>>());
}

#[test]
fn a_ring_of_the_guests_making_costs_the_ring_only() {
    let bad = VringAddr { descriptors: 0x7f00_0000_0008, ..addr(0) };
    let wraps = VringAddr { used: u64::MAX - 7, ..addr(0) };
    for addr in [bad, wraps] {
        let mut talk = Talk::ready(SPLIT);
        talk.run(1);
        talk.run(0);
        let reply = talk.on(message(id::SET_VRING_ADDR, 0, addr.as_bytes(), 0)).unwrap();
        assert!(matches!(reply.refused[..], [Refusal::Ring { index: 0, .. }]), "{reply:?}");
        assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
        talk.tell(id::SET_VRING_KICK, 0u64);
        assert_eq!(talk.host.diary().running.len(), 1, "it does not run at its old address");
        talk.run(0);
    }
    // Refused by the host: outside memory, for one.
    let mut talk = Talk::ready(SPLIT);
    talk.host.diary().broken = vec![0];
    talk.describe(0, 256, 0);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    let reply = talk.on(message(id::SET_VRING_KICK, 0, &[0; 8], 1)).unwrap();
    assert!(matches!(reply.refused[..], [Refusal::Start { index: 0, .. }]));
    assert!(!talk.ask(id::SET_VRING_KICK, &[0; 8], 1));
    talk.host.diary().broken.clear();
    assert!(talk.ask(id::SET_VRING_KICK, &[0; 8], 1));
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn sizes_of_rings() {
    for (features, num, good) in [
        (SPLIT, 0, false),
        (SPLIT, 1, true),
        (SPLIT, 100, false),
        (SPLIT, 32768, true),
        (PACKED, 0, false),
        (PACKED, 100, true),
        (PACKED, 32768, true),
        (PACKED, 32769, false),
        (SPLIT, 65536, false),
        (SPLIT, 0x1_0100, false),
        (SPLIT, u32::MAX, false),
    ] {
        let mut talk = Talk::ready(features);
        assert_eq!(talk.ask(id::SET_VRING_NUM, &state(0, num), 0), good, "{features:#x} {num}");
    }
    // A size set before the layout was known is checked when the ring starts.
    let mut talk = Talk::new();
    talk.describe(0, 100, 0);
    talk.send(id::SET_MEM_TABLE, 0, &table(&[region(0, 0x10_0000)]), 1);
    talk.tell(id::SET_FEATURES, F_VERSION_1);
    let reply = talk.on(message(id::SET_VRING_KICK, 0, &[0; 8], 1)).unwrap();
    assert!(matches!(reply.refused[..], [Refusal::Ring { source: RingError::Num(100), .. }]));
    talk.tell(id::SET_FEATURES, F_VERSION_1 | F_RING_PACKED);
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn memory_changes_between_a_stop_and_a_start() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(2);
    let starts = |talk: &Talk| {
        let base = |ring: u16| talk.host.diary().bases[&ring];
        [0, 2].map(|index| Asked::Start { index, num: 256, base: base(index) })
    };
    talk.host.diary().bases.insert(2, 77);
    let more = region(0x10_0000, 0x1000);
    let whole = region(0, 0x20_0000);
    for (id, payload, fds, asked) in [
        (id::ADD_MEM_REG, single(more), 1, Asked::Add(more)),
        (id::REM_MEM_REG, single(MemRegion { offset: 9, ..more }), 1, Asked::Remove(more)),
        (id::SET_MEM_TABLE, table(&[whole]), 1, Asked::Map(vec![whole])),
    ] {
        assert!(talk.ask(id, &payload, fds));
        let [first, second] = starts(&talk);
        assert_eq!(talk.host.asked(), [Asked::Stop(vec![0, 2]), asked, first, second]);
    }
    // A memory that is refused leaves everything as it was.
    talk.host.diary().unmappable = true;
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0x1000)]), 1));
    assert_eq!(talk.host.diary().running.len(), 2);
    assert_eq!(talk.host.diary().memory.len(), 1);
    talk.host.diary().unmappable = false;
    assert!(!talk.ask(id::ADD_MEM_REG, &single(region(0x1f_ffff, 1)), 1), "overlaps the old memory still");
    // Without any memory nothing runs.
    assert!(talk.ask(id::REM_MEM_REG, &single(whole), 0));
    assert!(talk.host.diary().running.is_empty());
    assert!(talk.ask(id::ADD_MEM_REG, &single(whole), 1));
    assert_eq!(talk.host.diary().running.len(), 2);
}

#[test]
fn a_ring_that_new_memory_does_not_hold_is_refused_alone() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(1);
    talk.host.diary().broken = vec![0];
    let reply = talk.on(message(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x1000)]), 1)).unwrap();
    assert_eq!(
        reply.answer.unwrap().encode(),
        Answer::number(id::SET_MEM_TABLE, 0).encode(),
        "memory is as it was wanted"
    );
    assert!(matches!(reply.refused[..], [Refusal::Start { index: 0, .. }]));
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn a_late_ring_refuses_the_message_and_counts_as_stopped() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(1);
    talk.host.diary().late = vec![1];
    talk.host.diary().broken = vec![1];
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0x1000)]), 1));
    assert_eq!(talk.host.diary().running.keys().copied().collect::<Vec<_>>(), [0]);
    assert!(talk.host.asked().iter().all(|a| !matches!(a, Asked::Map(_))));
    talk.host.diary().broken.clear();
    talk.tell(id::SET_VRING_KICK, 1u64);
    talk.host.diary().late = vec![0];
    assert!(talk.on(message(id::GET_VRING_BASE, 0, &state(0, 0), 0)).is_err(), "no base to answer");
}

#[test]
fn tables_and_slots() {
    let mut talk = Talk::ready(SPLIT);
    let overlap = table(&[region(0, 0x2000), region(0x1fff, 0x1000)]);
    assert!(!talk.ask(id::SET_MEM_TABLE, &overlap, 2));
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0)]), 1));
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[]), 0));
    assert!(talk.host.asked().is_empty());
    for slot in 1..MAX_MEM_SLOTS as u64 {
        assert!(talk.ask(id::ADD_MEM_REG, &single(region(0x10_0000 * slot, 0x1000)), 1), "slot {slot}");
    }
    let more = single(region(0x1000_0000_0000, 0x1000));
    assert!(!talk.ask(id::ADD_MEM_REG, &more, 1), "the 510th");
    assert!(!talk.ask(id::REM_MEM_REG, &more, 0), "one that is not there");
    assert!(talk.ask(id::REM_MEM_REG, &single(region(0x10_0000, 0x1000)), 0));
    assert!(!talk.ask(id::REM_MEM_REG, &single(region(0x10_0000, 0x1000)), 0), "twice");
    assert!(talk.ask(id::ADD_MEM_REG, &more, 1));
    assert_eq!(talk.host.diary().memory.len(), MAX_MEM_SLOTS);
}

#[test]
fn configuration_space() {
    let mut talk = Talk::ready(SPLIT);
    let access = |offset, size, flags| ConfigAccess { offset, size, flags };
    let payload = |a: ConfigAccess, n: usize| [a.as_bytes(), &vec![0xee; n]].concat();
    let got = talk.send(id::GET_CONFIG, 0, &payload(access(6, 4, 0), 4), 0).unwrap();
    assert_eq!(got, [6, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 6, 7, 8, 9]);
    for (offset, size) in [(0, 0), (0, 25), (24, 1), (23, 2), (u32::MAX, 1), (u32::MAX, 200), (25, 0)] {
        let n = size as usize;
        let reply = talk.on(message(id::GET_CONFIG, 0, &payload(access(offset, size, 0), n), 0)).unwrap();
        assert_eq!(reply.answer.unwrap().encode(), Answer::no_config().encode(), "{offset} {size}");
        assert_eq!(reply.refused.len(), 1);
        assert!(!talk.ask(id::SET_CONFIG, &payload(access(offset, size, 1), n), 0), "{offset} {size}");
    }
    assert!(!talk.ask(id::SET_CONFIG, &payload(access(0, 6, 0), 6), 0), "read-only for the driver");
    assert!(talk.ask(id::SET_CONFIG, &payload(access(0, 6, 1), 6), 0), "a migration sets it");
    let got = talk.send(id::GET_CONFIG, 0, &payload(access(0, 8, 0), 0), 0).unwrap();
    assert_eq!(got[12..], [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 6, 7]);
}

#[test]
fn mtu() {
    let mut talk = Talk::ready(SPLIT);
    for (mtu, good) in [(0, false), (67, false), (68, true), (9000, true), (9001, false), (0x1_05dc, false)] {
        assert_eq!(talk.ask(id::NET_SET_MTU, &u64::to_ne_bytes(mtu), 0), good, "{mtu}");
    }
    assert!(!talk.ask(id::NET_SET_MTU, &u64::MAX.to_ne_bytes(), 0));
}

#[test]
fn reset_owner_and_close_stop_everything() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(3);
    assert!(talk.ask(id::RESET_OWNER, &[], 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0, 3])]);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert!(talk.host.diary().running.is_empty(), "stopped until it is kicked anew");
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.host.asked();
    assert!(talk.session.close(&mut talk.host).is_none());
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0]), Asked::Disconnected]);
}

#[test]
fn descriptors_are_closed_with_the_session() {
    use std::io::Read;
    // When every copy of `theirs` is closed, `ours` reads the end of the stream.
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let with = |id, payload: &[u8], n| {
        let fds = (0..n).map(|_| OwnedFd::from(theirs.try_clone().unwrap())).collect();
        Frame { fds, ..message(id, NEED_REPLY, payload, 0) }
    };
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    for round in 0..300 {
        for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR, id::SET_LOG_FD] {
            for n in 0..10 {
                talk.on(with(id, &[0; 8], n)).unwrap();
            }
        }
        let slot = single(region(0x10_0000 * (1 + round), 0x1000));
        talk.on(with(id::ADD_MEM_REG, &slot, 1)).unwrap();
        talk.on(with(id::REM_MEM_REG, &slot, (round % 2) as usize)).unwrap();
    }
    drop(theirs);
    ours.set_nonblocking(true).unwrap();
    assert!(ours.read(&mut [0; 1]).is_err(), "the ring that runs still has its own");
    assert!(talk.session.close(&mut talk.host).is_none());
    assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
}

/// Messages that often make sense together.
fn any_message() -> impl Strategy<Value = (u32, u32, Vec<u8>, usize)> {
    let index = prop_oneof![8 => 0u32..4, 1 => any::<u32>()];
    let num = prop_oneof![4 => Just(256), 2 => 0u32..3, 2 => Just(0x8000), 1 => any::<u32>()];
    let at = prop_oneof![4 => (0u64..32).prop_map(|a| a * 0x1000), 1 => any::<u64>()];
    let features = prop_oneof![4 => Just(SPLIT), 4 => Just(PACKED), 1 => Just(0), 1 => any::<u64>()];
    let region = (at.clone(), prop_oneof![4 => Just(0x1000u64), 1 => any::<u64>()])
        .prop_map(|(guest, size)| MemRegion { guest, size, user: guest, offset: 0 });
    let need = prop_oneof![3 => Just(NEED_REPLY), 1 => Just(0u32)];
    let body = prop_oneof![
        2 => features.prop_map(|f| (id::SET_FEATURES, f.to_ne_bytes().to_vec(), 0)),
        6 => (prop::sample::select(vec![
                id::SET_VRING_NUM, id::SET_VRING_BASE, id::GET_VRING_BASE, id::SET_VRING_ENABLE,
            ]), index.clone(), num).prop_map(|(id, index, num)| (id, state(index, num).to_vec(), 0)),
        3 => (index, at.clone(), at.clone(), at).prop_map(|(index, descriptors, used, available)| {
                let (flags, log) = ((used >> 12) as u32 & 1, descriptors);
                let addr = VringAddr { index, flags, descriptors, used, available, log };
                (id::SET_VRING_ADDR, addr.as_bytes().to_vec(), 0)
            }),
        3 => (id::SET_VRING_KICK..=id::SET_VRING_ERR, 0u64..5)
            .prop_map(|(id, ring)| (id, ring.to_ne_bytes().to_vec(), 1)),
        2 => prop::collection::vec(region.clone(), 1..4)
            .prop_map(|t| (id::SET_MEM_TABLE, table(&t), t.len())),
        2 => (id::ADD_MEM_REG..=id::REM_MEM_REG, region)
            .prop_map(|(id, r)| (id, single(r), usize::from(id == id::ADD_MEM_REG))),
        1 => prop::sample::select(vec![id::RESET_OWNER, id::RESET_DEVICE]).prop_map(|id| (id, Vec::new(), 0)),
        1 => (0u64..4).prop_map(|status| (id::SET_STATUS, status.to_ne_bytes().to_vec(), 0)),
        1 => Just((id::SET_LOG_BASE, LogArea { size: 64, offset: 0 }.as_bytes().to_vec(), 1)),
        2 => (0u32..48, prop::collection::vec(any::<u8>(), 0..60), 0usize..4),
    ];
    (need, body).prop_map(|(flags, (id, payload, fds))| (id, flags, payload, fds))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// The recorder asserts what a host is promised.
    #[test]
    fn any_conversation_keeps_the_promises(
        messages in prop::collection::vec(any_message(), 0..120),
        broken in prop::collection::vec(0u16..4, 0..2),
        late in prop::collection::vec(0u16..4, 0..2),
    ) {
        let mut talk = Talk::new();
        talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
        talk.host.diary().broken = broken;
        talk.host.diary().late = late;
        for (id, flags, payload, fds) in messages {
            match talk.on(message(id, flags, &payload, fds)) {
                Ok(reply) => prop_assert!(flags == 0 || reply.answer.is_some(), "{} unanswered", name(id)),
                Err(_) => break,
            }
        }
        let _ = talk.session.close(&mut talk.host);
        prop_assert!(talk.host.diary().running.is_empty() && talk.host.diary().memory.is_empty());
    }
}
