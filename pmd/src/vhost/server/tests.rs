use super::super::host::testing::{Asked, Recorder};
use super::super::wire::testing::send_with;
use super::*;
use crate::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, Header, LogArea, MemRegion, VringState, id};
use crate::spec::virtio::{F_RING_PACKED, F_VERSION_1};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol, VhostUserVringAddrFlags,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use zerocopy::IntoBytes;

const FEATURES: u64 = F_VERSION_1 | F_RING_PACKED;

/// A server with one listening port.
struct Stage {
    server: Server,
    path: PathBuf,
    host: Recorder,
    port: PortId,
}

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

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hotring-{}-server-{name}", std::process::id()))
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(10), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Stage {
    fn new(name: &str) -> Stage {
        let (server, path, host) = (Server::start().unwrap(), path(name), Recorder::default());
        let port =
            server.handle().add(Socket::Listen(path.clone()), offer(), Box::new(host.clone())).unwrap();
        Stage { server, path, host, port }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// A well-behaved front-end is served, and leaves.
    fn serves(&self) {
        eventually("room for a front-end", || features(&mut self.connect()).is_some());
    }
}

fn bytes(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { request, flags: 1 | flags, size: payload.len() as u32 };
    [header.as_bytes(), payload].concat()
}

/// Asks for the features; `None` when the connection has ended.
fn features(stream: &mut UnixStream) -> Option<u64> {
    let mut answer = [0; 20];
    stream.write_all(&bytes(id::GET_FEATURES, 0, &[])).ok()?;
    stream.read_exact(&mut answer).ok()?;
    Some(u64::from_ne_bytes(answer[12..].try_into().unwrap()))
}

/// Whether the other end was closed.
fn ended(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

fn info(fd: &OwnedFd, guest: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: 0x10_0000,
        userspace_addr: 0x7f00_0000_0000 + guest,
        mmap_offset: 0,
        mmap_handle: fd.as_raw_fd(),
    }
}

#[test]
fn the_front_end_of_rust_vmm_agrees_with_us() {
    let stage = Stage::new("rust-vmm");
    let mut front = Frontend::connect(&stage.path, 4).unwrap();
    front.set_owner().unwrap();
    assert_eq!(front.get_features().unwrap(), FEATURES | F_PROTOCOL_FEATURES | F_LOG_ALL);
    let offered = front.get_protocol_features().unwrap();
    let wanted = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::LOG_SHMFD
        | Protocol::RESET_DEVICE;
    assert!(offered.contains(wanted));
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front.set_protocol_features(wanted).unwrap();
    front.set_features(FEATURES | F_PROTOCOL_FEATURES).unwrap();
    assert_eq!(front.get_max_mem_slots().unwrap(), 509);

    let (low, high) = (memfd(0x10_0000), memfd(0x10_0000));
    front.set_mem_table(&[info(&low, 0)]).unwrap();
    front.add_mem_region(&info(&high, 0x10_0000)).unwrap();
    assert!(front.add_mem_region(&info(&high, 0x18_0000)).is_err(), "overlaps");
    front.remove_mem_region(&info(&high, 0x10_0000)).unwrap();
    assert_eq!(stage.host.diary().memory.len(), 1);

    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    for ring in 0..4 {
        front.set_vring_num(ring, 100).unwrap();
        front.set_vring_base(ring, 0x8000).unwrap();
        let at = 0x7f00_0000_0000 + ring as u64 * 0x1_0000;
        let config = VringConfigData {
            queue_max_size: 100,
            queue_size: 100,
            flags: VhostUserVringAddrFlags::empty().bits(),
            desc_table_addr: at,
            used_ring_addr: at + 0x1000,
            avail_ring_addr: at + 0x2000,
            log_addr: None,
        };
        front.set_vring_addr(ring, &config).unwrap();
        front.set_vring_call(ring, &event).unwrap();
        front.set_vring_err(ring, &event).unwrap();
        front.set_vring_kick(ring, &event).unwrap();
        assert!(!stage.host.diary().running.contains_key(&(ring as u16)));
        front.set_vring_enable(ring, true).unwrap();
        let setup = stage.host.diary().running[&(ring as u16)].clone();
        assert_eq!((setup.num, setup.base, setup.addr.used), (100, 0x8000_8000, at + 0x1000));
    }
    // It waits for as many bytes as it sent.
    let log = memfd(0x1000);
    let region = VhostUserDirtyLogRegion { mmap_size: 0x1000, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    front.set_log_base(0, Some(region)).unwrap();
    front.set_features(FEATURES | F_PROTOCOL_FEATURES | F_LOG_ALL).unwrap();
    front.set_features(FEATURES | F_PROTOCOL_FEATURES).unwrap();
    assert!(stage.host.diary().asked.ends_with(&[
        Asked::LogBase(LogArea { size: 0x1000, offset: 0 }),
        Asked::LogAll(true),
        Asked::LogAll(false)
    ]));
    front.set_vring_enable(3, false).unwrap();
    assert_eq!(stage.host.diary().running.len(), 3);
    assert!(front.set_vring_num(0, 256).is_err(), "it runs");
    assert_eq!(front.get_vring_base(0).unwrap(), 0x8000_8000);
    front.set_vring_num(0, 256).unwrap();

    let (_, config) = front.get_config(4, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    assert_eq!(config, [4, 5, 6, 7, 8, 9, 10, 11]);
    assert!(front.set_config(0, VhostUserConfigFlags::WRITABLE, &[1; 6]).is_ok(), "bit 0: a migration");
    front.reset_device().unwrap();
    assert!(stage.host.diary().running.is_empty());
    let (_, config) = front.get_config(0, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
    assert_eq!(config, [0, 1, 2, 3, 4, 5], "as before the migration");
    // Last: from here on that front-end takes the number of pairs for the number of rings.
    assert_eq!(front.get_queue_num().unwrap(), 2);
    drop(front);
    eventually("the end of it", || stage.host.diary().asked.last() == Some(&Asked::Disconnected));
    assert!(stage.host.diary().running.is_empty());
    stage.serves();
}

#[test]
fn a_message_byte_by_byte_with_its_descriptor_first() {
    let stage = Stage::new("pieces");
    let mut front = stage.connect();
    let region = MemRegion { guest: 0, size: 0x1000, user: 0x1000, offset: 0 };
    let table = [&1u64.to_ne_bytes()[..], region.as_bytes()].concat();
    let message = bytes(id::SET_MEM_TABLE, 0, &table);
    let file = memfd(0x1000);
    send_with(&front, &message[..1], &[file.as_fd()]).unwrap();
    for byte in &message[1..] {
        front.write_all(&[*byte]).unwrap();
    }
    assert_eq!(features(&mut front), Some(FEATURES | F_PROTOCOL_FEATURES | F_LOG_ALL));
    assert_eq!(stage.host.asked(), [Asked::Connected, Asked::Map(vec![region])]);
}

#[test]
fn a_front_end_that_goes_at_any_byte_leaves_nothing_behind() {
    let stage = Stage::new("gone");
    let region = MemRegion { guest: 0, size: 0x1000, user: 0x1000, offset: 0 };
    let table = [&1u64.to_ne_bytes()[..], region.as_bytes()].concat();
    let message = bytes(id::SET_MEM_TABLE, 0, &table);
    for cut in 1..=message.len() {
        // When every copy of `theirs` is closed, `ours` reads the end of the stream.
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let front = stage.connect();
        send_with(&front, &message[..cut], &[theirs.as_fd()]).unwrap();
        drop((front, theirs));
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0, "a descriptor is kept after {cut} bytes");
    }
    stage.serves();
}

#[test]
fn what_cannot_be_understood_ends_the_connection_and_no_more() {
    let stage = Stage::new("malformed");
    let state = |index, num| VringState { index, num }.as_bytes().to_vec();
    let mut cases = vec![
        vec![0; 12],
        vec![0xff; 12],
        bytes(id::GET_FEATURES, 4, &[]),
        bytes(id::GET_FEATURES, 3, &[]),
        Header { request: id::SET_FEATURES, flags: 1, size: 4097 }.as_bytes().to_vec(),
        Header { request: id::SET_FEATURES, flags: 1, size: u32::MAX }.as_bytes().to_vec(),
        bytes(id::GET_VRING_BASE, 0, &state(0x1_0000, 0)),
        bytes(id::SET_VRING_NUM, 0, &state(u32::MAX, 256)),
        bytes(id::SET_MEM_TABLE, 0, &[0xff; 8]),
        bytes(id::SET_MEM_TABLE, 0, &[0; 8]),
        bytes(id::SET_FEATURES, 0, &[0xff; 8]),
        bytes(id::SET_VRING_KICK, 0, &[0; 8]),
    ];
    cases.extend((1..=4).map(|short| bytes(id::SET_VRING_ADDR, 0, &vec![0; 40 - short])));
    for case in cases {
        let mut front = stage.connect();
        front.write_all(&case).unwrap();
        assert!(ended(&mut front), "{case:x?} is served");
        stage.serves();
    }
}

#[test]
fn descriptors_of_every_kind_are_closed_whatever_becomes_of_the_message() {
    let stage = Stage::new("kinds");
    let kinds: [OwnedFd; 5] = [
        memfd(0x1000),
        std::fs::File::open("/").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
        UnixStream::pair().unwrap().0.into(),
    ];
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    for request in 0..48 {
        for kind in &kinds {
            for n in 0..9 {
                let mut fds = vec![kind.as_fd(); n];
                fds.push(theirs.as_fd());
                let front = stage.connect();
                let _ = send_with(&front, &bytes(request, 8, &[0; 8]), &fds);
            }
        }
    }
    drop(theirs);
    ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0, "a descriptor is kept");
    stage.serves();
}

#[test]
fn a_second_front_end_is_turned_away() {
    let stage = Stage::new("second");
    let mut first = stage.connect();
    assert!(features(&mut first).is_some());
    for _ in 0..20 {
        assert!(ended(&mut stage.connect()));
    }
    assert!(features(&mut first).is_some(), "the first is still served");
    drop(first);
    stage.serves();
}

#[test]
fn many_connections_one_after_the_other() {
    let stage = Stage::new("many");
    for _ in 0..2000 {
        drop(stage.connect());
    }
    stage.serves();
    let asked = stage.host.asked();
    assert!(asked.chunks_exact(2).all(|two| two == [Asked::Connected, Asked::Disconnected]));
}

#[test]
fn a_front_end_that_does_not_read_stalls_itself_only() {
    let stage = Stage::new("deaf");
    let other = path("deaf-other");
    let handle = stage.server.handle();
    handle.add(Socket::Listen(other.clone()), offer(), Box::new(Recorder::default())).unwrap();
    let mut deaf = stage.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let heap = bytes(id::GET_FEATURES, 0, &[]).repeat(1000);
    while deaf.write_all(&heap).is_ok() {}
    let mut good = UnixStream::connect(&other).unwrap();
    for _ in 0..100 {
        assert!(features(&mut good).is_some());
    }
}

#[test]
fn sockets_go_with_their_ports() {
    let stage = Stage::new("unlinked");
    let handle = stage.server.handle();
    let again = handle.add(Socket::Listen(stage.path.clone()), offer(), Box::new(Recorder::default()));
    assert!(matches!(again, Err(ServerError::Socket(SocketError::InUse { .. }))));
    let mut front = stage.connect();
    assert!(features(&mut front).is_some());
    stage.host.asked();
    assert!(handle.remove(stage.port).is_some());
    assert!(ended(&mut front) && !stage.path.exists());
    assert_eq!(stage.host.asked(), [Asked::Disconnected]);
    assert!(handle.remove(stage.port).is_none(), "removed already");

    handle.add(Socket::Listen(stage.path.clone()), offer(), Box::new(stage.host.clone())).unwrap();
    let mut front = stage.connect();
    assert!(features(&mut front).is_some());
    let Stage { server, path, host, .. } = stage;
    drop(server);
    assert!(ended(&mut front) && !path.exists());
    assert_eq!(host.asked(), [Asked::Connected, Asked::Disconnected]);
    let late = handle.add(Socket::Listen(path), offer(), Box::new(Recorder::default()));
    assert!(matches!(late, Err(ServerError::Ended)));
}

#[test]
fn a_client_connects_again_and_again() {
    let (server, path) = (Server::start().unwrap(), path("client"));
    let host = Recorder::default();
    let port = server.handle().add(Socket::Connect(path.clone()), offer(), Box::new(host.clone())).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(20));
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..2 {
            let mut front = listener.accept().unwrap().0;
            assert!(features(&mut front).is_some());
        }
        std::fs::remove_file(&path).unwrap();
    }
    server.handle().remove(port).unwrap();
    assert_eq!(host.asked().iter().filter(|a| **a == Asked::Connected).count(), 6);
}

#[test]
fn two_hundred_ports() {
    let server = Server::start().unwrap();
    let paths: Vec<PathBuf> = (0..200).map(|i| path(&format!("crowd-{i}"))).collect();
    let handle = server.handle();
    let add = |path: &PathBuf| {
        handle.add(Socket::Listen(path.clone()), offer(), Box::new(Recorder::default())).unwrap()
    };
    let ports: Vec<PortId> = paths.iter().map(add).collect();
    let mut fronts: Vec<UnixStream> = paths.iter().map(|p| UnixStream::connect(p).unwrap()).collect();
    for front in &mut fronts {
        assert!(features(front).is_some());
    }
    for port in ports.iter().step_by(2) {
        handle.remove(*port).unwrap();
    }
    for (i, front) in fronts.iter_mut().enumerate() {
        assert_eq!(features(front).is_some(), i % 2 == 1);
    }
    drop(server);
    assert!(!paths.iter().any(|p| Path::new(p).exists()));
}
