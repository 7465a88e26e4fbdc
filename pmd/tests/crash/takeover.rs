//! Ports that are handed from one process to the next, over and over, under load: every frame comes back, once,
//! in order, and the front-end does not notice. Here both sides are in one process, each with its own server,
//! and they share nothing but a socket.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use pmd::vhost::handover::{self, HandoverError, Will};

use super::*;

/// Frames under way: less than there are rooms for.
const WINDOW: u64 = 100;

fn takeovers() -> usize {
    crashes().min(200)
}

/// A process: a server with ports, and a core that sends back what it gets.
struct Process {
    server: Server,
    ports: Vec<Vhost>,
    stop: Arc<AtomicBool>,
    core: JoinHandle<()>,
}

/// A process that goes on, and why.
type Kept = Box<(Process, Will, HandoverError)>;

impl Process {
    /// Ports on these sockets, left by another process or new.
    fn start(sockets: &[Socket], mut claim: Option<&mut handover::Claim>) -> Result<Process, pmd::PortError> {
        let server = Server::start().unwrap();
        let (mut ports, mut queues) = (Vec::new(), Vec::new());
        for (i, socket) in sockets.iter().enumerate() {
            let config = Config::new(socket.clone());
            let mut port = Vhost::new(&format!("vhost{i}"), config, &server.handle()).unwrap();
            if let Some(legacy) = claim.as_mut().and_then(|claim| claim.take(socket)) {
                port.inherit(legacy);
            }
            queues.extend(port.start(1)?);
            ports.push(port);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let core = std::thread::spawn(move || {
            let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
            while !flag.load(Ordering::Relaxed) {
                for queue in &mut queues {
                    queue.rx(&mut batch);
                    queue.tx(&mut batch);
                    while let Some(buf) = batch.pop_front() {
                        loans.push(buf.finish(0));
                    }
                    queue.reap(&mut loans);
                    queue.settle(&mut loans);
                }
                std::thread::yield_now();
            }
        });
        Ok(Process { server, ports, stop, core })
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.core.join().unwrap();
        drop(self.ports);
    }

    /// Waits for a successor and hands over; as it is when that fails.
    fn hand_over(self, will: Will, served: &[Socket]) -> Result<(), Kept> {
        let since = Instant::now();
        let mut successor = loop {
            match will.successor(served) {
                Ok(Some(successor)) => break successor,
                Ok(None) => assert!(since.elapsed() < Duration::from_secs(20), "nobody came"),
                Err(e) => return Err(Box::new((self, will, e))),
            }
            std::thread::yield_now();
        };
        let handle = self.server.handle();
        let ports = handle.freeze().unwrap();
        let handed = successor.bequeath(&will, ports).and_then(|()| successor.confirm());
        if let Err(e) = handed {
            handle.thaw();
            return Err(Box::new((self, will, e)));
        }
        handle.leave();
        will.leave();
        self.end();
        Ok(())
    }
}

/// What the next process does.
fn take_over(path: &Path, sockets: &[Socket]) -> Result<(Process, Will), HandoverError> {
    let mut claim = handover::claim(path, sockets)?.expect("somebody listens there");
    let process = Process::start(sockets, Some(&mut claim)).expect("it goes on");
    let will = claim.settle()?;
    process.server.handle().thaw();
    Ok((process, will))
}

/// Every frame, and every chain.
fn all_come_back<R: Ring>(guest: &mut Guest<R>) {
    guest.end();
    let since = Instant::now();
    guest.window = 0;
    while guest.returned < guest.sent {
        guest.turn();
        let lost = guest.sent - guest.returned;
        assert!(since.elapsed() < Duration::from_secs(20), "{lost} frames are lost");
    }
}

/// Several guests, whose front-ends were connected once.
fn handed_over<R: Ring + Send>(name: &str, features: u64) {
    let sockets: Vec<Socket> = (0..3).map(|i| Socket::Listen(path(&format!("{name}-{i}")))).collect();
    let at = path(&format!("{name}-will"));
    let mut process = Process::start(&sockets, None).unwrap();
    let mut will = Will::open(&at).unwrap();
    let mut guests: Vec<(Guest<R>, Frontend)> = sockets
        .iter()
        .map(|socket| {
            let mut guest = Guest::<R>::new(features);
            guest.window = WINDOW;
            let front = guest.connect(socket.path());
            (guest, front)
        })
        .collect();
    for time in times(Duration::from_millis(3)).take(takeovers()) {
        guests.iter_mut().for_each(|(guest, _)| guest.run(time / 3));
        let (new, served) = (at.clone(), sockets.clone());
        let old = std::thread::spawn(move || process.hand_over(will, &served));
        let new = {
            let sockets = sockets.clone();
            std::thread::spawn(move || take_over(&new, &sockets))
        };
        while !(old.is_finished() && new.is_finished()) {
            guests.iter_mut().for_each(|(guest, _)| guest.turn());
        }
        old.join().unwrap().map_err(|kept| kept.2).unwrap();
        (process, will) = new.join().unwrap().unwrap();
    }
    for (guest, front) in &mut guests {
        // The conversation goes on, too.
        assert_ne!(front.get_features().unwrap(), 0);
        let before = guest.returned;
        let since = Instant::now();
        while guest.returned < before + 1000 {
            guest.turn();
            assert!(since.elapsed() < Duration::from_secs(20), "nothing comes back");
        }
        all_come_back(guest);
    }
    let sent: u64 = guests.iter().map(|(guest, _)| guest.sent).sum();
    println!("{name}: {sent} frames over {} takeovers", takeovers());
    drop(guests);
    process.end();
    for socket in &sockets {
        assert!(!socket.path().exists(), "the last process removes its sockets");
    }
    drop(will);
    assert!(!at.exists());
}

#[test]
fn ports_that_are_handed_over_split() {
    handed_over::<Split>("over-split", v::F_VERSION_1);
}

#[test]
fn ports_that_are_handed_over_packed() {
    handed_over::<Packed>("over-packed", v::F_VERSION_1 | v::F_RING_PACKED);
}

/// Whatever a successor does wrong, its predecessor goes on.
#[test]
fn a_successor_that_fails() {
    let sockets = [Socket::Listen(path("fails"))];
    let at = path("fails-will");
    let mut process = Process::start(&sockets, None).unwrap();
    let mut will = Will::open(&at).unwrap();
    let mut guest = Guest::<Packed>::new(v::F_VERSION_1 | v::F_RING_PACKED);
    guest.window = WINDOW;
    let front = guest.connect(sockets[0].path());
    type Attempt = Box<dyn Fn(&Path, &[Socket]) + Send>;
    let attempts: [(&str, Attempt); 6] = [
        (
            "did not answer",
            Box::new(|at, _| {
                let _silent = UnixStream::connect(at).unwrap();
                std::thread::sleep(Duration::from_millis(2500));
            }),
        ),
        ("ended before", Box::new(|at, _| drop(UnixStream::connect(at).unwrap()))),
        (
            "not named here",
            Box::new(|at, _| {
                let wrong = handover::claim(at, &[Socket::Listen("/nowhere".into())]);
                assert!(matches!(wrong, Err(HandoverError::Refused(why)) if why.contains("not named here")));
            }),
        ),
        ("ended before", Box::new(|at, sockets| drop(handover::claim(at, sockets).unwrap()))),
        (
            "out of memory",
            Box::new(|at, sockets| {
                handover::claim(at, sockets).unwrap().unwrap().refuse(&"out of memory\u{1b}");
            }),
        ),
        (
            "ctrl_vq=",
            Box::new(|at, sockets| {
                let mut claim = handover::claim(at, sockets).unwrap().unwrap();
                let server = Server::start().unwrap();
                let config = Config { control: false, ..Config::new(sockets[0].clone()) };
                let mut port = Vhost::new("vhost0", config, &server.handle()).unwrap();
                port.inherit(claim.take(&sockets[0]).unwrap());
                let Err(why) = port.start(1).map(drop) else { panic!("it lacks a queue") };
                claim.refuse(&why);
            }),
        ),
    ];
    for (why, attempt) in attempts {
        guest.run(Duration::from_millis(2));
        let (path, served) = (at.clone(), sockets.clone());
        let new = std::thread::spawn(move || attempt(&path, &served));
        let served = sockets.clone();
        let old = std::thread::spawn(move || process.hand_over(will, &served));
        while !(old.is_finished() && new.is_finished()) {
            guest.turn();
        }
        new.join().unwrap();
        let e;
        (process, will, e) = *old.join().unwrap().expect_err("nothing is handed over");
        assert!(e.to_string().contains(why), "{e}, not {why}");
        assert!(!e.to_string().contains('\u{1b}'));
        let before = guest.returned;
        let since = Instant::now();
        while guest.returned < before + 100 {
            guest.turn();
            assert!(since.elapsed() < Duration::from_secs(20), "nothing comes back after: {why}");
        }
    }
    all_come_back(&mut guest);
    drop(front);
    process.end();
}
