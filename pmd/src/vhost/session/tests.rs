mod inband;
mod legacy;
mod memory;
mod promises;
mod rings;
mod transfer;

use super::super::host::testing::{Asked, Recorder};
use super::super::message::{Fds, name};
use super::super::ring::RingError;
use super::*;
use crate::spec::vhost_user::{Header, InflightArea, LogArea, SingleRegion, VringAddr};
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
