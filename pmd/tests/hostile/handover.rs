//! What comes to the socket of a hand-over, and from a process that claims to have ports.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use pmd::spec::vhost_user::{LOAD, PROTOCOL_F_DEVICE_STATE, SAVE, StateTransfer, id};
use pmd::vhost::Socket;
use pmd::vhost::handover::{self, HandoverError, Will};
use zerocopy::IntoBytes;

use crate::front::{Front, message};
use crate::guest::{Guest, SPLIT, event, memfd};
use crate::house::House;

const HELLO: u32 = 0x100;
const NAMED: u32 = 0x101;
const WILL: u32 = 0x102;
const PORT: u32 = 0x103;
const WIRE: u32 = 0x104;
const DONE: u32 = 0x10a;

fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hotring-{}-hostile-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Nobody who is no successor changes anything, or is waited for.
#[test]
fn strangers_at_the_socket() {
    let house = House::new("strangers", |_| {});
    let at = path("will");
    let will = Will::open(&at).unwrap();
    let served = [Socket::Listen("/run/vm0.sock".into())];
    let versions = |first: u32, last: u32| [first.to_ne_bytes(), last.to_ne_bytes()].concat();
    let hello = || message(HELLO, 0, &versions(1, 1));
    let port = [&[1, 0, 0, 0, 0, 0, 0, 0][..], b"/run/vm1.sock"].concat();
    let mut cases = vec![
        Vec::new(),
        vec![0; 5],
        vec![0xff; 4096],
        message(DONE, 0, &[]),
        message(HELLO, 0, &[0; 7]),
        message(HELLO, 0, &versions(0, 0)),
        message(HELLO, 0, &versions(2, u32::MAX)),
        [hello(), message(DONE, 0, &[])].concat(),
        [hello(), message(NAMED, 0, &port), message(DONE, 0, &[])].concat(),
        [hello(), message(NAMED, 0, &port[..8])].concat(),
        [hello(), message(0x10c, 0, &[])].concat(),
        [hello(), message(NAMED, 0, &port).repeat(5000)].concat(),
    ];
    cases.extend((0..20).map(|cut| hello()[..cut].to_vec()));
    for bytes in cases {
        let mut stranger = UnixStream::connect(&at).unwrap();
        stranger.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let n = bytes.len().min(100);
        let sender = std::thread::spawn(move || {
            // Whoever is refused early takes no more.
            let _ = stranger.write_all(&bytes);
            let _ = stranger.shutdown(std::net::Shutdown::Write);
            let _ = stranger.read_to_end(&mut Vec::new());
        });
        let why = will.successor(&served).expect_err("he is none");
        assert!(!matches!(why, HandoverError::Late(_)), "{n} bytes: {why}");
        sender.join().unwrap();
    }
    assert!(will.successor(&served).unwrap().is_none(), "nobody is there");
    drop(will);
    house.ends("strangers");
}

/// A process before that is none: what it leaves is refused, with what came with it.
#[test]
fn a_false_predecessor() {
    let house = House::new("false", |_| {});
    let (at, other_at) = (path("false"), path("false-port"));
    let (listener, other) = (UnixListener::bind(&at).unwrap(), UnixListener::bind(&other_at).unwrap());
    let named = [Socket::Listen("/run/vm0.sock".into())];
    let port = |path: &[u8]| [&[1, 0, 0, 0, 1, 0, 1, 0][..], path].concat();
    let version = 1u32.to_ne_bytes();
    let first = || message(WILL, 0, &version);
    let (socket, file) = (UnixStream::pair().unwrap().0, memfd("no-socket", 4096));
    let (ours, none, wrong) = (other.as_fd(), event(), file.as_fd());
    // Messages with a descriptor each, or without.
    let cases: Vec<Vec<(Vec<u8>, Option<std::os::fd::BorrowedFd<'_>>)>> = vec![
        vec![(message(WILL, 0, &2u32.to_ne_bytes()), Some(ours))],
        vec![(message(WILL, 0, &[]), Some(ours))],
        vec![(first(), None)],
        vec![(first(), Some(wrong))],
        vec![(first(), Some(none.as_fd()))],
        vec![(message(DONE, 0, &[]), None)],
        vec![(first(), Some(ours)), (message(WIRE, 0, &[]), Some(socket.as_fd()))],
        vec![(first(), Some(ours)), (message(PORT, 0, &port(b"")), Some(ours))],
        vec![(first(), Some(ours)), (message(PORT, 0, &port(b"/a")), None)],
        vec![
            (first(), Some(ours)),
            (message(PORT, 0, &port(b"/a")), Some(ours)),
            (message(PORT, 0, &port(b"/a")), Some(ours)),
        ],
        vec![(first(), Some(ours)), (vec![0xff; 64], None)],
        vec![(first(), Some(ours)), (message(PORT, 0, &[0; 4096]), Some(ours))],
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let path = at.clone();
        let named = named.clone();
        let new = std::thread::spawn(move || handover::claim(&path, &named).map(drop));
        let (stream, _) = listener.accept().unwrap();
        let mut front = Front(stream);
        front.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        while front.answer().is_some_and(|(header, _)| header.request != DONE) {}
        for (bytes, fd) in case {
            front.send(&bytes, fd.as_slice());
        }
        let _ = front.0.shutdown(std::net::Shutdown::Write);
        let why = new.join().unwrap().expect_err("it is refused");
        assert!(!matches!(why, HandoverError::Late(_)), "case {i}: {why}");
    }
    std::fs::remove_file(at).unwrap();
    std::fs::remove_file(other_at).unwrap();
    drop((listener, other, socket, file, none));
    house.ends("false predecessors");
}

/// A state of the device that is none: refused, and the device is as it was.
#[test]
fn a_false_state_of_the_device() {
    let house = House::new("state", |_| {});
    let transfer = |direction: u32| StateTransfer { direction, phase: 0 }.as_bytes().to_vec();
    let negotiated = |house: &House| {
        let mut guest = Guest::connect(&house.path, SPLIT);
        let offered = guest.front.ask(id::GET_PROTOCOL_FEATURES, &[], &[]).unwrap();
        let features = u64::from_ne_bytes(offered.try_into().unwrap());
        assert_ne!(features & PROTOCOL_F_DEVICE_STATE, 0);
        assert_eq!(guest.front.tell(id::SET_PROTOCOL_FEATURES, &features.to_ne_bytes(), &[]), Some(true));
        guest
    };
    let nothing = event();
    let mut guest = negotiated(&house);
    // The channels are files of the device's; what the front-end brings is closed.
    for direction in [SAVE, LOAD] {
        for _ in 0..300 {
            let fds = [nothing.as_fd()];
            let answer = guest.front.ask(id::SET_DEVICE_STATE_FD, &transfer(direction), &fds).unwrap();
            assert_eq!(answer, [0; 8], "direction {direction}");
        }
    }
    // Nothing was written: no state.
    assert_ne!(guest.front.ask(id::CHECK_DEVICE_STATE, &[], &[]).unwrap(), [0; 8]);
    for payload in [transfer(2), vec![0; 7], vec![0xff; 8], Vec::new()] {
        let answer = guest.front.ask(id::SET_DEVICE_STATE_FD, &payload, &[nothing.as_fd()]).unwrap();
        assert_ne!(answer[0], 0, "{payload:?}");
    }
    drop(guest);
    let mut guest = negotiated(&house);
    guest.start();
    let answer = guest.front.ask(id::SET_DEVICE_STATE_FD, &transfer(SAVE), &[nothing.as_fd()]).unwrap();
    assert_eq!(answer[..2], [1, 1], "a device at work");
    drop((guest, nothing));
    house.ends("false states");
}
