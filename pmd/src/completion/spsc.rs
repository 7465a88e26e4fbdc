//! Two rings between two cores: buffers one way, their receipts back.
//!
//! The [`Sender`] passes on buffers of any lenders as they are. The [`Receiver`] hands them out and
//! keeps a debt per owner: so many receipts of that owner are to go back. It takes receipts only
//! against a debt, and the sender gives them out on the lender's core. Which of an owner's receipts
//! settles which debt does not matter: in the end all come home, over this way or another.
//!
//! A receiver that stops receiving [leaves](Receiver::leave): its end of the ring goes to where the
//! sender can reach it, and the sender takes back by itself what nobody will receive. So nothing is
//! stuck between two cores, whichever of them stops first.

#[cfg(not(loom))]
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

#[cfg(loom)]
use loom::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use hugepages::{Buf, Loan};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::batch::{Batch, CAP};

/// Makes both ends of a way for up to `capacity` buffers that are under way or handed out; at least
/// [`CAP`], so that every packet can pass. The receiver is away until it first receives.
pub fn pair(capacity: usize) -> (Sender, Receiver) {
    let capacity = capacity.clamp(CAP, u32::MAX as usize);
    let (into, from) = RingBuffer::new(capacity);
    let (home, receipts) = RingBuffer::new(capacity);
    let way = Arc::new(Way { here: AtomicBool::new(false), left: Mutex::new(Some(from)) });
    let sender = Sender { bufs: into, receipts, held: 0, capacity: capacity as u32, way: Arc::clone(&way) };
    // All zero: pages of the table are touched only where owners are.
    let debts = vec![0; 1 << 16].into_boxed_slice();
    let receiver = Receiver { bufs: None, receipts: home, debts, out: 0, way };
    (sender, receiver)
}

/// What both ends share beside the rings.
struct Way {
    /// Whether the receiver receives. Relaxed everywhere: it saves work, and `left` decides.
    here: AtomicBool,
    /// The receiver's end of the ring while the receiver is away.
    left: Mutex<Option<Consumer<Buf>>>,
}

impl Way {
    fn left(&self) -> MutexGuard<'_, Option<Consumer<Buf>>> {
        self.left.lock().expect("no holder panics")
    }

    #[cold]
    fn enter(&self) -> Consumer<Buf> {
        let bufs = self.left().take().expect("it is there while the receiver is away");
        self.here.store(true, Ordering::Relaxed);
        bufs
    }
}

/// Tells whether a receiver is there, see [`Sender::peer`].
#[derive(Clone)]
pub struct Peer(Arc<Way>);

impl Peer {
    /// Whether it receives.
    pub fn here(&self) -> bool {
        self.0.here.load(Ordering::Relaxed)
    }
}

/// What moved in one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Whole packets.
    pub packets: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// The end where buffers go in and their receipts come out.
pub struct Sender {
    bufs: Producer<Buf>,
    receipts: Consumer<Loan>,
    held: u32,
    capacity: u32,
    way: Arc<Way>,
}

impl Sender {
    /// Takes whole packets from the front of `batch`, as many as fit; none while the receiver is away.
    #[inline]
    pub fn send(&mut self, batch: &mut Batch<Buf>) -> Moved {
        if !self.way.here.load(Ordering::Relaxed) {
            return Moved::default();
        }
        let room = (self.capacity - self.held) as usize;
        let (n, moved) = whole_packets(batch.iter().take(room), usize::MAX);
        if n > 0 {
            // Fewer are held than fit, so fewer are in the ring.
            let chunk = self.bufs.write_chunk_uninit(n).expect("as many fit as may be held");
            chunk.fill_from_iter(std::iter::from_fn(|| batch.pop_front()).take(n));
            self.held += n as u32;
        }
        moved
    }

    /// Gives receipts that came back, as many as fit, and takes back what a receiver that is away
    /// will not receive. How many receipts, and how many of the packets were never received.
    #[inline]
    pub fn reap(&mut self, done: &mut Batch<Loan>) -> (usize, usize) {
        if self.held == 0 {
            return (0, 0);
        }
        let mut n = self.receipts.slots().min(done.room());
        if n > 0 {
            self.receipts.read_chunk(n).expect("counted").into_iter().for_each(|loan| done.push(loan));
        }
        let mut undelivered = 0;
        if !self.way.here.load(Ordering::Relaxed) {
            let before = done.len();
            undelivered = self.take_back(done);
            n += done.len() - before;
        }
        self.held -= n as u32;
        (n, undelivered)
    }

    /// Buffers that were sent and whose receipts were not reaped.
    #[inline(always)]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Whether [`Sender::reap`] has something to give.
    pub fn ready(&self) -> bool {
        self.held > 0 && (!self.receipts.is_empty() || !self.way.here.load(Ordering::Relaxed))
    }

    /// Tells whether the receiver is there, from any thread.
    pub fn peer(&self) -> Peer {
        Peer(Arc::clone(&self.way))
    }

    #[cold]
    fn take_back(&mut self, done: &mut Batch<Loan>) -> usize {
        // The lock orders this side's use of the receiver's end after the receiver's last.
        let mut left = self.way.left();
        let Some(bufs) = left.as_mut() else {
            return 0;
        };
        let mut packets = 0;
        while done.room() > 0
            && let Ok(buf) = bufs.pop()
        {
            packets += usize::from(!buf.more());
            done.push(buf.finish(0));
        }
        packets
    }
}

/// The end where buffers come out and their receipts go in.
pub struct Receiver {
    /// `None` while away.
    bufs: Option<Consumer<Buf>>,
    receipts: Producer<Loan>,
    /// By owner: receipts that are to go back.
    debts: Box<[u32]>,
    /// Their sum.
    out: u32,
    way: Arc<Way>,
}

impl Receiver {
    /// Hands out up to `out.burst()` whole packets to the back of `out`. A receiver that was away is
    /// there again.
    #[inline]
    pub fn recv(&mut self, out: &mut Batch<Buf>) -> Moved {
        let bufs = self.bufs.get_or_insert_with(|| self.way.enter());
        let ready = bufs.slots().min(out.room());
        if ready == 0 {
            return Moved::default();
        }
        let chunk = bufs.read_chunk(ready).expect("counted");
        let (first, second) = chunk.as_slices();
        let (n, moved) = whole_packets(first.iter().chain(second), out.burst());
        // What is not iterated stays in the ring.
        for buf in chunk.into_iter().take(n) {
            self.debts[usize::from(buf.owner().get())] += 1;
            out.push(buf);
        }
        self.out += n as u32;
        moved
    }

    /// Takes receipts from the front of `loans` against its debts, and stops at the first owner to
    /// whom it owes nothing. How many.
    #[inline]
    pub fn give_back(&mut self, loans: &mut Batch<Loan>) -> usize {
        let mut n = 0;
        for loan in loans.iter() {
            let debt = &mut self.debts[usize::from(loan.owner().get())];
            if *debt == 0 {
                break;
            }
            *debt -= 1;
            n += 1;
        }
        if n > 0 {
            // The sender holds no more than fit, receipts in the ring among them.
            let chunk = self.receipts.write_chunk_uninit(n).expect("room for all that is held");
            chunk.fill_from_iter(std::iter::from_fn(|| loans.pop_front()).take(n));
            self.out -= n as u32;
        }
        n
    }

    /// Buffers handed out whose receipts were not given back.
    #[inline(always)]
    pub fn out(&self) -> u32 {
        self.out
    }

    /// Whether buffers wait to be received.
    pub fn waiting(&self) -> bool {
        self.bufs.as_ref().is_some_and(|bufs| !bufs.is_empty())
    }

    /// Stops receiving until the next [`Receiver::recv`]: what was sent goes back to the sender.
    /// Receipts of what was handed out are still given back. Whether it was there until now.
    pub fn leave(&mut self) -> bool {
        let Some(bufs) = self.bufs.take() else {
            return false;
        };
        *self.way.left() = Some(bufs);
        self.way.here.store(false, Ordering::Relaxed);
        true
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Buffers up to the end of the last whole packet, of `packets` at most.
#[inline(always)]
fn whole_packets<'b>(bufs: impl Iterator<Item = &'b Buf>, packets: usize) -> (usize, Moved) {
    let (mut n, mut moved, mut bytes) = (0, Moved::default(), 0);
    for (i, buf) in bufs.enumerate() {
        bytes += u64::from(buf.len());
        if !buf.more() {
            n = i + 1;
            moved = Moved { packets: moved.packets + 1, bytes };
            if moved.packets == packets {
                break;
            }
        }
    }
    (n, moved)
}

#[cfg(test)]
mod fixture {
    use super::*;
    use hugepages::{Backing, PageSize, Pool};

    pub(super) fn pool(frames: usize) -> Pool {
        Pool::new(frames, 64, Backing { page: PageSize::Base, node: None }).unwrap().0
    }

    pub(super) fn claim(pool: &mut Pool, loans: &mut Batch<Loan>) -> usize {
        let before = loans.len();
        while loans.front().is_some_and(|loan| loan.owner() == pool.owner()) {
            pool.settle(loans.pop_front().unwrap());
        }
        before - loans.len()
    }

    /// Packets of one, two, three buffers in turn, as far as frames and room reach.
    #[cfg_attr(loom, allow(dead_code))]
    pub(super) fn fill(pool: &mut Pool, batch: &mut Batch<Buf>, next: &mut u32) -> usize {
        let before = batch.len();
        loop {
            let buffers = 1 + (*next % 3) as usize;
            if pool.free() < buffers || batch.room() < buffers {
                return batch.len() - before;
            }
            for i in 0..buffers {
                let mut buf = pool.take().unwrap();
                assert!(buf.poke(0, *next));
                buf.set_more(i + 1 < buffers);
                batch.push(buf);
            }
            *next += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::fixture::*;
    use super::*;

    #[test]
    fn whole_packets_go_over_in_order_and_their_receipts_come_back() {
        let (mut sender, mut receiver) = pair(0);
        let mut pool = pool(600);
        let (mut batch, mut got, mut loans) = (Batch::new(32), Batch::new(32), Batch::new(32));
        let (mut next, mut expected) = (0, 0);
        assert_eq!(receiver.recv(&mut got), Moved::default());
        for _ in 0..20 {
            fill(&mut pool, &mut batch, &mut next);
            sender.send(&mut batch);
            assert!(sender.held() <= CAP as u32);
            let moved = receiver.recv(&mut got);
            assert_eq!((moved.packets, got.packets()), (32, 32));
            assert_eq!(moved.bytes, got.len() as u64 * 64);
            while let Some(buf) = got.pop_front() {
                assert_eq!(buf.peek::<u32>(0), Some(expected));
                expected += u32::from(!buf.more());
                loans.push(buf.finish(0));
            }
            assert_eq!(receiver.out() as usize, loans.len());
            receiver.give_back(&mut loans);
            let (n, lost) = sender.reap(&mut loans);
            assert_eq!((claim(&mut pool, &mut loans), lost, receiver.out()), (n, 0, 0));
        }
        // What the sender did not take, and what is under way when the receiver leaves.
        while let Some(buf) = batch.pop_front() {
            pool.settle(buf.finish(0));
        }
        assert!(sender.held() > 0 && receiver.waiting() && receiver.leave() && !receiver.leave());
        assert!(sender.reap(&mut loans).1 > 0);
        claim(&mut pool, &mut loans);
        assert_eq!((sender.held(), pool.out()), (0, 0));
        // Away, it is sent nothing; when it comes again, it is.
        fill(&mut pool, &mut batch, &mut next);
        assert_eq!(sender.send(&mut batch), Moved::default());
        receiver.recv(&mut got);
        assert!(sender.send(&mut batch).packets > 0 && sender.peer().here());
        drop(receiver);
        assert!(!sender.peer().here());
        sender.reap(&mut loans);
        claim(&mut pool, &mut loans);
        while let Some(buf) = batch.pop_front() {
            pool.settle(buf.finish(0));
        }
        assert_eq!((sender.held(), pool.out()), (0, 0));
    }

    #[test]
    fn receipts_are_taken_only_against_a_debt() {
        let (mut sender, mut receiver) = pair(0);
        let (mut far, mut near) = (pool(8), pool(8));
        let (mut batch, mut got, mut loans) = (Batch::new(32), Batch::new(32), Batch::new(32));
        receiver.recv(&mut got);
        batch.push(far.take().unwrap());
        batch.push(far.take().unwrap());
        assert_eq!(sender.send(&mut batch).packets, 2);
        receiver.recv(&mut got);
        for _ in 0..2 {
            loans.push(got.pop_front().unwrap().finish(0));
        }
        // A third receipt of the same owner, and one of another.
        loans.push(far.take().unwrap().finish(0));
        loans.push(near.take().unwrap().finish(0));
        assert_eq!((receiver.give_back(&mut loans), loans.len()), (2, 2));
        assert_eq!(receiver.give_back(&mut loans), 0);
        assert_eq!((claim(&mut far, &mut loans), claim(&mut near, &mut loans)), (1, 1));
        assert_eq!(sender.reap(&mut loans), (2, 0));
        assert_eq!((claim(&mut far, &mut loans), far.out(), near.out()), (2, 0, 0));
    }

    #[test]
    fn nothing_is_lost_between_two_threads_while_the_receiver_comes_and_goes() {
        let packets = if cfg!(miri) { 300 } else { 50_000 };
        let (mut sender, mut receiver) = pair(0);
        let peer = sender.peer();
        let far = std::thread::spawn(move || {
            let (mut got, mut loans) = (Batch::new(32), Batch::default());
            let (mut last, mut turn, mut received) = (None, 0u32, 0u64);
            loop {
                turn += 1;
                if turn % 1000 < 8 {
                    receiver.leave();
                    std::thread::yield_now();
                } else {
                    receiver.recv(&mut got);
                }
                while let Some(buf) = got.pop_front() {
                    let number = buf.peek::<u32>(0).unwrap();
                    if !buf.more() {
                        assert!(last < Some(number), "{last:?} before {number}");
                        last = Some(number);
                        received += 1;
                    }
                    if number == u32::MAX {
                        loans.push(buf.finish(0));
                        while receiver.give_back(&mut loans) == 0 {}
                        assert_eq!((loans.len(), receiver.out()), (0, 0));
                        return received;
                    }
                    loans.push(buf.finish(0));
                }
                receiver.give_back(&mut loans);
                if turn % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut pool = pool(512);
        let (mut batch, mut loans) = (Batch::default(), Batch::default());
        let (mut next, mut undelivered) = (0, 0);
        while next < packets {
            fill(&mut pool, &mut batch, &mut next);
            if sender.send(&mut batch).packets == 0 {
                std::thread::yield_now();
            }
            undelivered += sender.reap(&mut loans).1;
            claim(&mut pool, &mut loans);
        }
        while !batch.is_empty() || sender.held() > 0 {
            sender.send(&mut batch);
            undelivered += sender.reap(&mut loans).1;
            claim(&mut pool, &mut loans);
        }
        let mut endings = 0u64;
        while !far.is_finished() {
            if peer.here() && sender.held() == 0 {
                let mut last = pool.take().unwrap();
                assert!(last.poke(0, u32::MAX));
                batch.push(last);
                endings += 1;
                sender.send(&mut batch);
            }
            while let Some(unsent) = batch.pop_front() {
                pool.settle(unsent.finish(0));
                endings -= 1;
            }
            undelivered += sender.reap(&mut loans).1;
            claim(&mut pool, &mut loans);
        }
        let received = far.join().unwrap();
        while sender.held() > 0 {
            undelivered += sender.reap(&mut loans).1;
            claim(&mut pool, &mut loans);
        }
        assert_eq!(received + undelivered as u64, u64::from(next) + endings);
        assert_eq!((pool.out(), pool.free()), (0, 512));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::fixture::*;
    use super::*;
    use loom::thread;

    /// Whenever the receiver leaves, comes again and leaves for good, the sender gets everything back.
    #[test]
    fn loom_a_receiver_that_leaves_strands_nothing() {
        loom::model(|| {
            let (mut sender, mut receiver) = pair(0);
            let far = thread::spawn(move || {
                let (mut got, mut loans) = (Batch::new(1), Batch::default());
                for _ in 0..2 {
                    receiver.recv(&mut got);
                    while let Some(buf) = got.pop_front() {
                        loans.push(buf.finish(0));
                    }
                    receiver.give_back(&mut loans);
                    receiver.leave();
                }
                assert_eq!((receiver.out(), loans.len()), (0, 0));
            });
            let mut pool = pool(2);
            let (mut batch, mut loans) = (Batch::default(), Batch::default());
            for _ in 0..2 {
                batch.push(pool.take().unwrap());
                sender.send(&mut batch);
                sender.reap(&mut loans);
                claim(&mut pool, &mut loans);
            }
            far.join().unwrap();
            sender.reap(&mut loans);
            claim(&mut pool, &mut loans);
            while let Some(buf) = batch.pop_front() {
                pool.settle(buf.finish(0));
            }
            assert_eq!((sender.held(), pool.out()), (0, 0));
        });
    }
}
