use super::*;
use proptest::prelude::*;
use std::fs::File;
use zerocopy::IntoBytes;

use crate::spec::vhost_user::Header;

fn fds(n: usize) -> Fds {
    (0..n).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect()
}

fn frame(id: u32, payload: &[u8], n: usize) -> Frame {
    let header = Header { request: id, flags: 1, size: payload.len() as u32 };
    Frame { header, payload: payload.to_vec(), fds: fds(n) }
}

fn parse(id: u32, payload: &[u8], n: usize) -> Result<Request, Malformed> {
    Request::parse(frame(id, payload, n))
}

/// Ids with the payload length and the number of descriptors that they take.
const SHAPES: [(u32, usize, usize); 39] = [
    (id::SET_DEVICE_STATE_FD, 8, 1),
    (id::CHECK_DEVICE_STATE, 0, 0),
    (id::VRING_KICK, 8, 0),
    (id::GET_FEATURES, 0, 0),
    (id::SET_FEATURES, 8, 0),
    (id::SET_OWNER, 0, 0),
    (id::RESET_OWNER, 0, 0),
    (id::SET_MEM_TABLE, 40, 1),
    (id::SET_VRING_NUM, 8, 0),
    (id::SET_VRING_ADDR, 40, 0),
    (id::SET_VRING_BASE, 8, 0),
    (id::GET_VRING_BASE, 8, 0),
    (id::SET_VRING_KICK, 8, 1),
    (id::SET_VRING_CALL, 8, 1),
    (id::SET_VRING_ERR, 8, 1),
    (id::GET_PROTOCOL_FEATURES, 0, 0),
    (id::SET_PROTOCOL_FEATURES, 8, 0),
    (id::GET_QUEUE_NUM, 0, 0),
    (id::SET_VRING_ENABLE, 8, 0),
    (id::NET_SET_MTU, 8, 0),
    (id::GET_CONFIG, 12, 0),
    (id::SET_CONFIG, 12, 0),
    (id::GET_MAX_MEM_SLOTS, 0, 0),
    (id::ADD_MEM_REG, 40, 1),
    (id::REM_MEM_REG, 40, 0),
    (id::SET_LOG_BASE, 16, 1),
    (id::SET_LOG_FD, 0, 1),
    (id::SEND_RARP, 8, 0),
    (id::SET_VRING_ENDIAN, 8, 0),
    (id::GET_INFLIGHT_FD, 24, 0),
    (id::SET_INFLIGHT_FD, 24, 1),
    (id::RESET_DEVICE, 0, 0),
    (id::SET_STATUS, 8, 0),
    (id::GET_STATUS, 0, 0),
    (id::SET_BACKEND_REQ_FD, 0, 1),
    (id::IOTLB_MSG, 32, 0),
    (id::POSTCOPY_ADVISE, 0, 0),
    (id::POSTCOPY_LISTEN, 0, 0),
    (id::POSTCOPY_END, 0, 0),
];

/// A payload of zeros, but for the count of regions.
fn plain(id: u32, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len];
    if id == id::SET_MEM_TABLE && len > 0 {
        payload[0] = 1;
    }
    payload
}

#[test]
fn every_message_takes_its_own_size_and_no_other() {
    for (id, want, n) in SHAPES {
        for len in 0..=80 {
            let got = parse(id, &plain(id, len), n);
            let roomy = id == id::SET_MEM_TABLE && len == want + 32
                || id == id::SET_LOG_FD && len == 8
                || matches!(id, id::GET_INFLIGHT_FD | id::SET_INFLIGHT_FD) && len == 20;
            assert_eq!(got.is_ok(), len == want || roomy, "{} of {len}: {got:?}", name(id));
            if let Err(e) = got {
                assert!(matches!(e, Malformed::Size { got, .. } if got == len), "{e}");
            }
        }
    }
}

#[test]
fn every_message_takes_its_own_descriptors_and_no_others() {
    for (id, len, want) in SHAPES {
        for n in 0..=12 {
            let got = parse(id, &plain(id, len), n);
            let tolerated = id == id::REM_MEM_REG && n == 1;
            assert_eq!(got.is_ok(), n == want || tolerated, "{} with {n}: {got:?}", name(id));
            if let Err(e) = got {
                assert_eq!(e, Malformed::Fds { id, got: n, want });
            }
        }
    }
}

#[test]
fn no_descriptor_flag_and_stray_bits() {
    for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
        let with = |value: u64, n| parse(id, &value.to_ne_bytes(), n);
        assert!(with(0x1ff, 0).is_ok());
        assert_eq!(with(0x1ff, 1).unwrap_err(), Malformed::Fds { id, got: 1, want: 0 });
        assert_eq!(with(0x0ff, 0).unwrap_err(), Malformed::Fds { id, got: 0, want: 1 });
        for bit in 9..64 {
            let value = 1u64 << bit;
            assert_eq!(with(value, 1).unwrap_err(), Malformed::VringFd { id, value });
        }
    }
}

#[test]
fn tables_hold_one_to_eight_regions() {
    for n in [0u32, 1, 2, 7, 8, 9, 0x1_0000, u32::MAX] {
        let fits = (1..=8).contains(&n);
        let regions = n.min(9) as usize;
        let mut payload = n.to_ne_bytes().to_vec();
        payload.resize(8 + regions * 32, 0xa5);
        let got = parse(id::SET_MEM_TABLE, &payload, regions);
        match got {
            Ok(Request::SetMemTable(table)) => assert!(fits && table.len() == regions),
            Err(e) => assert!(!fits && e == Malformed::Regions(n), "{e}"),
            other => panic!("{other:?}"),
        }
    }
    let two = [2u32.to_ne_bytes().as_slice(), &[0; 4 + 64]].concat();
    assert!(parse(id::SET_MEM_TABLE, &two[..40], 2).is_err(), "one region of two");
    assert!(parse(id::SET_MEM_TABLE, &two, 1).is_err(), "one descriptor of two");
}

#[test]
fn config_says_how_much_it_carries() {
    let with = |id, size: u32, carried: usize| {
        let head = ConfigAccess { offset: 0, size, flags: 0 };
        parse(id, &[head.as_bytes(), &vec![7; carried]].concat(), 0)
    };
    assert!(with(id::GET_CONFIG, 8, 8).is_ok());
    assert!(with(id::GET_CONFIG, 8, 0).is_ok());
    assert!(with(id::SET_CONFIG, 256, 256).is_ok());
    for (id, size, carried) in [
        (id::SET_CONFIG, 8, 0),
        (id::SET_CONFIG, 8, 9),
        (id::GET_CONFIG, 8, 7),
        (id::SET_CONFIG, 257, 257),
        (id::SET_CONFIG, u32::MAX, 256),
    ] {
        assert!(matches!(with(id, size, carried), Err(Malformed::Size { .. })), "{size} {carried}");
    }
}

#[test]
fn headers() {
    let check = |flags, size| check_header(&Header { request: 3, flags, size });
    assert_eq!(check(0x1, 0), Ok(()));
    assert_eq!(check(0x9, 4096), Ok(()));
    assert_eq!(check(0x5, 0), Err(FramingError::Reply { id: 3 }));
    for flags in [0x0, 0x2, 0x3, 0xa] {
        assert_eq!(check(flags, 0), Err(FramingError::Version { id: 3, version: flags & 3 }));
    }
    for size in [4097, 0x1_0000, u32::MAX] {
        assert_eq!(check(1, size), Err(FramingError::Oversize { id: 3, size }));
    }
}

#[test]
fn answers_are_these_bytes() {
    #[rustfmt::skip]
    assert_eq!(Answer::number(id::GET_FEATURES, 0x0102_0304_0506_0708).encode(), [
        1, 0, 0, 0,  5, 0, 0, 0,  8, 0, 0, 0,  8, 7, 6, 5, 4, 3, 2, 1,
    ]);
    #[rustfmt::skip]
    assert_eq!(Answer::vring(id::GET_VRING_BASE, VringState { index: 3, num: 0x8001_8001 }).encode(), [
        11, 0, 0, 0,  5, 0, 0, 0,  8, 0, 0, 0,  3, 0, 0, 0,  1, 0x80, 1, 0x80,
    ]);
    #[rustfmt::skip]
    assert_eq!(Answer::config(ConfigAccess { offset: 6, size: 2, flags: 0 }, &[1, 0]).encode(), [
        24, 0, 0, 0,  5, 0, 0, 0,  14, 0, 0, 0,  6, 0, 0, 0,  2, 0, 0, 0,  0, 0, 0, 0,  1, 0,
    ]);
    assert_eq!(Answer::no_config().encode(), [24, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn names_follow_their_ids() {
    assert_eq!(name(id::GET_FEATURES), "GET_FEATURES");
    assert_eq!(name(id::SEND_RARP), "SEND_RARP");
    assert_eq!(name(id::GET_SHMEM_CONFIG), "GET_SHMEM_CONFIG");
    assert_eq!(name(0), "number 0");
    assert_eq!(name(45), "number 45");
    assert_eq!(name(u32::MAX), format!("number {}", u32::MAX));
}

proptest! {
    #[test]
    fn any_bytes_parse_or_are_refused(
        id in 0u32..50,
        payload in proptest::collection::vec(any::<u8>(), 0..320),
        n in 0usize..10,
    ) {
        let served = SHAPES.iter().any(|s| s.0 == id);
        match parse(id, &payload, n) {
            Ok(Request::Unknown(got)) => prop_assert!(got == id && !served),
            _ => prop_assert!(served),
        }
    }
}
