//! Two ports joined back to back: what goes into one comes out of the other, on another core if need
//! be. Buffers are passed on as they are, without a copy; their receipts come back the same way.
//!
//! A packet keeps its lender while it crosses, so the core it comes to holds receipts of an owner that
//! lives elsewhere. The pipe's queue there owes them to the other end ([`Receiver`]) and claims them
//! before anybody else does ([`Queue::carries`]): a buffer that crossed to another core and came back is
//! owed to the pipe first, although its lender is on this core, and comes home the long way round. The
//! receipts of one owner stand for each other, so every debt is paid and every buffer is settled once.
//!
//! A queue whose `reap` is called twice without an `rx` between has been stopped: it
//! [leaves](Receiver::leave), and the other end takes back what waits. The same happens when a queue goes
//! home or is dropped; it may start again at any time.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use hugepages::{Buf, Loan};

use crate::batch::Batch;
use crate::completion::doorbell::Doorbell;
use crate::completion::spsc::{self, Peer, Receiver, Sender};
use crate::port::frames::local_mac;
use crate::port::{Caps, Counters, Link, Port, PortError, Queue, Stats, Tally};
use crate::spec::net::{MAX_FRAME, MAX_QUEUE_PAIRS};

/// Buffers under way per queue and direction, unless told otherwise.
pub const CAPACITY: usize = 1024;

/// One end of a pipe: the control side.
pub struct Pipe {
    name: String,
    shelf: Shelf,
    /// By queue: whether the other end receives.
    peers: Vec<Peer>,
    tally: Tally,
}

/// Ends of queues that are not started.
type Shelf = Arc<Mutex<Vec<Option<Ends>>>>;

struct Ends {
    tx: Sender,
    rx: Receiver,
    /// Rung by the other end.
    bell: Arc<Doorbell>,
    /// The other end's.
    far: Arc<Doorbell>,
}

impl Pipe {
    /// Two ports joined by `queues` queues, for `capacity` buffers each way and queue (0: [`CAPACITY`]).
    ///
    /// # Errors
    /// No queue or more than [`MAX_QUEUE_PAIRS`]; no file descriptors left.
    pub fn pair(names: [&str; 2], queues: u16, capacity: usize) -> Result<(Pipe, Pipe), PortError> {
        let [name, far_name] = names;
        if !(1..=MAX_QUEUE_PAIRS).contains(&queues) {
            let what = format!("queues={queues} is not in 1..={MAX_QUEUE_PAIRS}");
            return Err(PortError::Config { port: name.into(), what });
        }
        let capacity = if capacity == 0 { CAPACITY } else { capacity };
        let bell = || {
            let io = |source| PortError::Io { port: name.into(), what: "eventfd of a queue".into(), source };
            Doorbell::new().map(Arc::new).map_err(io)
        };
        let (mut near_shelf, mut far_shelf) = (Vec::new(), Vec::new());
        for _ in 0..queues {
            let (near_bell, far_bell) = (bell()?, bell()?);
            let (there, from_there) = spsc::pair(capacity);
            let (here, from_here) = spsc::pair(capacity);
            near_shelf.push(Some(Ends {
                tx: there,
                rx: from_here,
                bell: Arc::clone(&near_bell),
                far: Arc::clone(&far_bell),
            }));
            far_shelf.push(Some(Ends { tx: here, rx: from_there, bell: far_bell, far: near_bell }));
        }
        Ok((Pipe::new(name, near_shelf), Pipe::new(far_name, far_shelf)))
    }

    fn new(name: &str, ends: Vec<Option<Ends>>) -> Pipe {
        let peers = ends.iter().flatten().map(|ends| ends.tx.peer()).collect();
        Pipe { name: name.into(), shelf: Arc::new(Mutex::new(ends)), peers, tally: Tally::default() }
    }
}

impl Port for Pipe {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_pipe"
    }

    fn caps(&self) -> Caps {
        // Whatever is left to do to a packet goes along with it.
        Caps {
            mtu: MAX_FRAME - 18,
            queues: self.peers.len() as u16,
            checksum: true,
            segmentation: true,
            reads_foreign_memory: true,
        }
    }

    fn mac(&self) -> [u8; 6] {
        local_mac(&self.name)
    }

    fn link(&self) -> Link {
        Link { up: self.peers.iter().any(Peer::here), speed: 0 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let mut shelf = self.shelf.lock().expect("no holder panics");
        let free = shelf.iter().take_while(|ends| ends.is_some()).count();
        if queues == 0 || usize::from(queues) > free {
            let what = format!(
                "{queues} queues asked for, {free} of {} can be started; bring home what runs, or make the \
                 pipe with more",
                shelf.len()
            );
            return Err(PortError::Config { port: self.name.clone(), what });
        }
        let queue = |(index, ends): (usize, &mut Option<Ends>)| -> Box<dyn Queue> {
            let shelf = Arc::clone(&self.shelf);
            Box::new(PipeQueue { ends: ends.take(), index, shelf, reaped: false, counters: Arc::default() })
        };
        let started: Vec<_> = shelf.iter_mut().take(queues.into()).enumerate().map(queue).collect();
        self.tally = Tally::of(&started);
        Ok(started)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        drop(queues);
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

/// The data side. Dropped, its ends go back to the shelf.
struct PipeQueue {
    /// Always there until it is dropped.
    ends: Option<Ends>,
    index: usize,
    shelf: Shelf,
    /// Whether `reap` was called since the last `rx`.
    reaped: bool,
    counters: Arc<Counters>,
}

impl PipeQueue {
    #[inline(always)]
    fn ends(&mut self) -> &mut Ends {
        self.ends.as_mut().expect("taken only in drop")
    }
}

impl Queue for PipeQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        self.reaped = false;
        let moved = self.ends().rx.recv(out);
        if moved.packets > 0 {
            self.counters.rx_packets.add(moved.packets as u64);
            self.counters.rx_bytes.add(moved.bytes);
        }
        moved.packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let ends = self.ends();
        let moved = ends.tx.send(batch);
        if moved.packets > 0 {
            ends.far.ring();
            self.counters.tx_packets.add(moved.packets as u64);
            self.counters.tx_bytes.add(moved.bytes);
        }
        moved.packets
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        let stopped = std::mem::replace(&mut self.reaped, true);
        let ends = self.ends();
        if stopped && ends.rx.leave() {
            // The other end may sleep over packets that it has to take back.
            ends.far.ring();
        }
        let (receipts, undelivered) = ends.tx.reap(done);
        if undelivered > 0 {
            self.counters.tx_errors.add(undelivered as u64);
        }
        receipts
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        let ends = self.ends();
        if ends.rx.give_back(loans) > 0 {
            ends.far.ring();
        }
    }

    fn carries(&self) -> bool {
        true
    }

    fn lent(&self) -> u32 {
        self.ends.as_ref().map_or(0, |ends| ends.rx.out())
    }

    fn held(&self) -> u32 {
        self.ends.as_ref().map_or(0, |ends| ends.tx.held())
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        let ends = self.ends();
        ends.bell.arm();
        if ends.rx.waiting() || ends.tx.ready() {
            return false;
        }
        wait(ends.bell.fd());
        true
    }

    fn wake(&mut self, _: bool) {
        self.ends().bell.disarm();
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for PipeQueue {
    fn drop(&mut self) {
        if let Some(mut ends) = self.ends.take() {
            if ends.rx.leave() {
                ends.far.ring();
            }
            if let Ok(mut shelf) = self.shelf.lock() {
                shelf[self.index] = Some(ends);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, PageSize, Pool};

    fn pool(frames: usize) -> Pool {
        Pool::new(frames, 64, Backing { page: PageSize::Base, node: None }).unwrap().0
    }

    type Queues = Vec<Box<dyn Queue>>;

    fn started(queues: u16) -> ((Pipe, Pipe), Queues, Queues) {
        let (mut a, mut b) = Pipe::pair(["pipe0", "pipe1"], queues, 0).unwrap();
        let (near, far) = (a.start(queues).unwrap(), b.start(queues).unwrap());
        ((a, b), near, far)
    }

    #[test]
    fn a_packet_that_crosses_and_comes_back_is_settled_once() {
        let ((mut a, mut b), mut near, mut far) = started(1);
        let mut own = pool(4);
        let (mut batch, mut loans) = (Batch::new(32), Batch::new(32));
        assert_eq!(near[0].rx(&mut batch) + far[0].rx(&mut batch), 0);
        assert!(a.link().up && b.link().up && near[0].carries());
        // There, and back again.
        batch.push(own.take().unwrap());
        assert_eq!((near[0].tx(&mut batch), far[0].rx(&mut batch)), (1, 1));
        assert_eq!((far[0].tx(&mut batch), near[0].rx(&mut batch)), (1, 1));
        for queue in [&near[0], &far[0]] {
            assert_eq!((queue.lent(), queue.held()), (1, 1));
        }
        // A receipt of a frame that never left is taken in its place, and nothing is owed twice.
        let crossed = batch.pop_front().unwrap();
        loans.push(own.take().unwrap().finish(0));
        near[0].settle(&mut loans);
        assert_eq!((near[0].lent(), loans.len()), (0, 0));
        loans.push(crossed.finish(0));
        near[0].settle(&mut loans);
        assert_eq!(loans.len(), 1);
        own.settle(loans.pop_front().unwrap());
        // The other one comes home by way of the far end, which reaps, and owes it to the near end.
        assert_eq!(far[0].reap(&mut loans), 1);
        far[0].settle(&mut loans);
        assert_eq!(near[0].reap(&mut loans), 1);
        near[0].settle(&mut loans);
        own.settle(loans.pop_front().unwrap());
        assert_eq!((own.out(), own.free()), (0, 4));
        for queue in [&near[0], &far[0]] {
            assert_eq!((queue.lent(), queue.held()), (0, 0));
        }
        a.stop(near).unwrap();
        assert!(!b.link().up);
        b.stop(far).unwrap();
        assert_eq!((a.stats()[0].tx_packets, b.stats()[0].rx_packets, b.stats()[0].tx_bytes), (1, 1, 64));
    }

    #[test]
    fn a_queue_that_stops_gives_back_what_waits() {
        for dropped in [false, true] {
            let ((_a, mut b), mut near, mut far) = started(2);
            let mut own = pool(8);
            let (mut batch, mut loans) = (Batch::new(32), Batch::new(32));
            far[1].rx(&mut batch);
            batch.push(own.take().unwrap());
            batch.push(own.take().unwrap());
            assert_eq!(near[1].tx(&mut batch), 2);
            assert_eq!((near[1].reap(&mut loans), near[1].held()), (0, 2));
            if dropped {
                b.stop(far).unwrap();
                far = b.start(2).unwrap();
            } else {
                far[1].reap(&mut loans);
                assert_eq!(near[1].reap(&mut loans), 0);
                far[1].reap(&mut loans);
            }
            assert_eq!((near[1].reap(&mut loans), near[1].held(), loans.len()), (2, 0, 2));
            assert_eq!(near[1].counters().tx_errors.get(), 2);
            while let Some(loan) = loans.pop_front() {
                own.settle(loan);
            }
            // Nothing is taken for a queue that is away; once it receives again, packets pass.
            batch.push(own.take().unwrap());
            assert_eq!(near[1].tx(&mut batch), 0);
            far[1].rx(&mut Batch::default());
            assert_eq!((near[1].tx(&mut batch), far[1].rx(&mut batch)), (1, 1));
            loans.push(batch.pop_front().unwrap().finish(0));
            far[1].settle(&mut loans);
            near[1].reap(&mut loans);
            own.settle(loans.pop_front().unwrap());
            assert_eq!(own.out(), 0);
        }
    }

    #[test]
    fn sleeps_only_when_nothing_waits() {
        let (_ports, mut near, mut far) = started(1);
        let mut own = pool(1);
        let (mut batch, mut loans) = (Batch::new(32), Batch::new(32));
        far[0].rx(&mut batch);
        let mut fds = 0;
        assert!(far[0].sleep(&mut |_| fds += 1) && near[0].sleep(&mut |_| fds += 1) && fds == 2);
        batch.push(own.take().unwrap());
        near[0].tx(&mut batch);
        assert!(!far[0].sleep(&mut |_| panic!("a packet waits")));
        far[0].wake(true);
        far[0].rx(&mut batch);
        loans.push(batch.pop_front().unwrap().finish(0));
        far[0].settle(&mut loans);
        assert!(!near[0].sleep(&mut |_| panic!("a receipt waits")));
        near[0].reap(&mut loans);
        own.settle(loans.pop_front().unwrap());
    }

    #[test]
    fn wrong_numbers_are_named() {
        let why = Pipe::pair(["pipe0", "pipe1"], 0, 0).err().unwrap();
        assert_eq!(why.to_string(), "port pipe0: queues=0 is not in 1..=128");
        let (mut a, _b) = Pipe::pair(["pipe0", "pipe1"], 1, 0).unwrap();
        let running = a.start(1).unwrap();
        let why = a.start(1).err().unwrap();
        assert!(
            why.to_string().starts_with("port pipe0: 1 queues asked for, 0 of 1 can be started"),
            "{why}"
        );
        a.stop(running).unwrap();
        assert_eq!(a.start(1).unwrap().len(), 1);
    }
}
