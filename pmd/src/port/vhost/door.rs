//! How rings come to a queue on its core and go home again: the only place where the control side and
//! the data side of a vhost port meet.
//!
//! The control side leaves a ring at the door ([`Door::give`]) or asks for it ([`Door::take`]) and
//! knocks. The queue looks for a knock in `reap`, one relaxed load, and then answers under the lock.
//! A ring is owned by one side at any time.

use std::os::fd::OwnedFd;
#[cfg(not(loom))]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::sync::atomic::AtomicBool;

use super::herald::Herald;
use super::iommu::MAX_ASKS;
use super::orders::Orders;
use super::queue::{Events, Ring};
use crate::batch::Batch;
use crate::port::knock::Knock;
use crate::sys::eventfd::EventFd;
use crate::vring::iotlb::{Change, Want};
use crate::vring::log::Target;

/// Which ring of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The guest's transmit queue: what `rx` lends from.
    FromGuest = 0,
    /// The guest's receive queue: what `tx` fills.
    ToGuest = 1,
}

/// Why a ring did not come home.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring did not come home within {waited_ms} ms: {lent} of its buffers are still out")]
pub(crate) struct Stuck {
    pub(crate) waited_ms: u128,
    pub(crate) lent: u32,
}

#[derive(Default)]
struct Board {
    incoming: [Option<Ring>; 2],
    events: [Option<Events>; 2],
    wanted: [bool; 2],
    home: [Option<Ring>; 2],
    lent: [u32; 2],
    logs: [Option<Log>; 2],
    /// The queue has not yet said that it logs as it was told to.
    unlogged: [bool; 2],
    orders: [Option<Orders>; 2],
    /// The queue has not yet said that it obeys.
    unheard: [bool; 2],
    /// What a ring is to know of the guest's IOMMU.
    changes: [Vec<Change>; 2],
    /// I/O addresses that are to be nowhere, until the queue has said that it uses none of them.
    leaving: [Option<(u64, u64)>; 2],
    /// The ring is away for a short time, and its packets are to wait for it.
    away: [bool; 2],
    /// What the queue has said about I/O addresses.
    wants: Vec<Want>,
    herald: Option<Herald>,
}

/// The most that one wait takes of somebody's patience, however long it was: while the process is stopped, or has no
/// processor, no queue can answer.
const STEP: Duration = Duration::from_millis(10);

/// Changes that wait for one queue; of more, it is told to forget what it knows instead.
const MAX_CHANGES: usize = 4096;

/// Where all queues of a port call its control side.
pub(crate) struct Caller {
    calling: AtomicBool,
    bell: Arc<OwnedFd>,
}

impl Caller {
    /// Calls by signalling an eventfd.
    pub(crate) fn new(bell: Arc<OwnedFd>) -> Caller {
        Caller { calling: AtomicBool::new(false), bell }
    }

    fn call(&self) {
        // Pairs with the acquire in `called`: what was left at the door is seen.
        if !self.calling.swap(true, Ordering::AcqRel) {
            // Whatever comes of it: a counter that is full stays readable.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Whether a queue has called since the last time this was asked.
    pub(crate) fn called(&self) -> bool {
        // Pairs with the release in `call`.
        self.calling.swap(false, Ordering::AcqRel)
    }
}

/// Where a ring is to log from now on; `None`: nowhere.
pub(super) type Log = Option<Target>;

/// What waits at the door for one side.
#[derive(Default)]
pub(super) struct Look {
    /// A ring.
    pub(super) ring: Option<Ring>,
    /// Other eventfds for the ring inside.
    pub(super) events: Option<Events>,
    /// Another log for the ring inside; to be answered by [`Inside::logged`].
    pub(super) log: Option<Log>,
    /// Other orders for the ring inside; to be answered by [`Inside::obeyed`].
    pub(super) orders: Option<Orders>,
    /// What the ring inside is to know of the guest's IOMMU.
    pub(super) changes: Vec<Change>,
    /// I/O addresses that are to be nowhere; to be answered by [`Inside::left`].
    pub(super) leaving: Option<(u64, u64)>,
    /// Whether the ring inside is wanted.
    pub(super) wanted: bool,
    /// Whether it will be back soon.
    pub(super) away: bool,
}

struct Shared {
    knock: Knock,
    board: Mutex<Board>,
    answered: Condvar,
    caller: Option<Arc<Caller>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no holder panics")
    }

    /// Waits for an answer, one [`STEP`] of what is left of somebody's patience; `None`: nothing is.
    fn wait<'b>(&self, board: MutexGuard<'b, Board>, left: &mut Duration) -> Option<MutexGuard<'b, Board>> {
        let step = STEP.min(*left);
        if step.is_zero() {
            return None;
        }
        let since = Instant::now();
        let board = self.answered.wait_timeout(board, step).expect("no holder panics").0;
        *left -= since.elapsed().min(step);
        Some(board)
    }
}

/// The control side's half.
pub(crate) struct Door(Arc<Shared>);

/// The queue's half; when it is dropped, its rings have gone home.
pub(super) struct Inside(Arc<Shared>);

impl Door {
    /// A door whose inner half goes to the queue, which may call its control side.
    pub(super) fn new(caller: Option<Arc<Caller>>) -> std::io::Result<(Door, Inside)> {
        let (knock, board, answered) = (Knock::new()?, Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { knock, board, answered, caller });
        Ok((Door(Arc::clone(&shared)), Inside(shared)))
    }

    /// Another inner half, for a port that is started again.
    pub(super) fn inside(&self) -> Inside {
        // Rings may wait at the door since it was closed.
        self.0.knock.knock();
        Inside(Arc::clone(&self.0))
    }

    /// Leaves a ring for the queue, which has none on that side. It waits here while no queue is there.
    pub(crate) fn give(&self, side: Side, ring: Ring) {
        let mut board = self.0.lock();
        assert!(board.incoming[side as usize].replace(ring).is_none(), "a ring waits at the door already");
        board.wanted[side as usize] = false;
        board.events[side as usize] = None;
        board.orders[side as usize] = None;
        board.changes[side as usize].clear();
        board.away[side as usize] = false;
        drop(board);
        self.0.knock.knock();
    }

    /// Gives a ring that was given, and not taken since, other eventfds. It uses the old ones until its
    /// queue has looked.
    pub(crate) fn rewire(&self, side: Side, events: Events) {
        let (mut board, i) = (self.0.lock(), side as usize);
        // Those that wait, if any, are older.
        board.events[i] = None;
        match &mut board.incoming[i] {
            Some(ring) => ring.events = events,
            None => board.events[i] = Some(events),
        }
        drop(board);
        self.0.knock.knock();
    }

    /// Takes a ring that was given home, all its buffers settled; waits for that, and takes from `patience` what it
    /// waits.
    ///
    /// # Errors
    /// [`Stuck`]: some buffers are still out. The ring has stopped lending; ask again.
    pub(crate) fn take(&self, side: Side, patience: &mut Duration) -> Result<Ring, Stuck> {
        let (waited_ms, i) = (patience.as_millis(), side as usize);
        let mut board = self.0.lock();
        board.wanted[i] = true;
        self.0.knock.knock();
        loop {
            if let Some(ring) = board.home[i].take().or_else(|| board.incoming[i].take()) {
                board.wanted[i] = false;
                return Ok(ring);
            }
            let stuck = Stuck { waited_ms, lent: board.lent[i] };
            board = self.0.wait(board, patience).ok_or(stuck)?;
        }
    }

    /// Tells a ring that was given where to log; see [`Door::logs`].
    pub(crate) fn log(&self, side: Side, log: Log) {
        let (mut board, i) = (self.0.lock(), side as usize);
        let board = &mut *board;
        match board.incoming[i].as_mut().or(board.home[i].as_mut()) {
            Some(ring) => ring.ring.log(log, &Batch::default()),
            None => (board.logs[i], board.unlogged[i]) = (Some(log), true),
        }
        self.0.knock.knock();
    }

    /// Waits until the ring logs as it was told to.
    ///
    /// # Errors
    /// [`Stuck`]: its queue has not looked.
    pub(crate) fn logs(&self, side: Side, patience: &mut Duration) -> Result<(), Stuck> {
        self.wait(side, patience, |board, i| board.unlogged[i])
    }

    fn wait(
        &self,
        side: Side,
        patience: &mut Duration,
        unanswered: impl Fn(&Board, usize) -> bool,
    ) -> Result<(), Stuck> {
        let (waited_ms, i) = (patience.as_millis(), side as usize);
        let mut board = self.0.lock();
        while unanswered(&board, i) {
            let stuck = Stuck { waited_ms, lent: board.lent[i] };
            board = self.0.wait(board, patience).ok_or(stuck)?;
        }
        Ok(())
    }

    /// Has a ring that was given serve its guest differently; see [`Door::obeys`].
    pub(crate) fn order(&self, side: Side, orders: Orders) {
        let (mut board, i) = (self.0.lock(), side as usize);
        let board = &mut *board;
        match board.incoming[i].as_mut().or(board.home[i].as_mut()) {
            Some(ring) => ring.obey(orders),
            None => (board.orders[i], board.unheard[i]) = (Some(orders), true),
        }
        self.0.knock.knock();
    }

    /// Waits until the ring serves its guest as it was told to.
    ///
    /// # Errors
    /// [`Stuck`]: its queue has not looked.
    pub(crate) fn obeys(&self, side: Side, patience: &mut Duration) -> Result<(), Stuck> {
        self.wait(side, patience, |board, i| board.unheard[i])
    }

    /// Tells a ring that was given what is known of the guest's IOMMU from now on.
    pub(crate) fn change(&self, side: Side, change: Change) {
        let (mut board, i) = (self.0.lock(), side as usize);
        let board = &mut *board;
        if let Some(ring) = board.incoming[i].as_mut().or(board.home[i].as_mut()) {
            return ring.ring.change(change);
        }
        if board.changes[i].len() == MAX_CHANGES {
            board.changes[i].clear();
            board.changes[i].push(Change::Clear);
        }
        board.changes[i].push(change);
        self.0.knock.knock();
    }

    /// Tells a ring that was given that I/O addresses are nowhere; see [`Door::left`].
    pub(crate) fn leave(&self, side: Side, (first, last): (u64, u64)) {
        self.change(side, Change::Remove(first, last));
        let (mut board, i) = (self.0.lock(), side as usize);
        if board.incoming[i].is_none() && board.home[i].is_none() {
            board.leaving[i] = Some((first, last));
        }
        drop(board);
        self.0.knock.knock();
    }

    /// Waits until the ring uses none of these addresses.
    ///
    /// # Errors
    /// [`Stuck`]: some buffers there are still out.
    pub(crate) fn left(&self, side: Side, patience: &mut Duration) -> Result<(), Stuck> {
        self.wait(side, patience, |board, i| board.leaving[i].is_some())
    }

    /// The ring that is taken next will be back soon.
    pub(crate) fn away(&self, side: Side) {
        self.0.lock().away[side as usize] = true;
    }

    /// What the queue has said about I/O addresses since the last time.
    pub(crate) fn wants(&self) -> Vec<Want> {
        std::mem::take(&mut self.0.lock().wants)
    }

    /// Leaves packets for the queue to receive.
    pub(crate) fn announce(&self, herald: Herald) {
        self.0.lock().herald = Some(herald);
        self.0.knock.knock();
    }
}

impl Inside {
    /// Whether the control side wants something; clears the knock.
    #[inline(always)]
    pub(super) fn knocked(&self) -> bool {
        self.0.knock.knocked()
    }

    /// Whether the control side waits for an answer.
    pub(super) fn knocking(&self) -> bool {
        self.0.knock.knocking()
    }

    /// What readable means somebody knocked.
    pub(super) fn bell(&self) -> &EventFd {
        self.0.knock.bell()
    }

    /// What waits for one side.
    pub(super) fn look(&self, side: Side) -> Look {
        let (mut board, i) = (self.0.lock(), side as usize);
        let (ring, events, log) = (board.incoming[i].take(), board.events[i].take(), board.logs[i].take());
        let orders = board.orders[i].take();
        let changes = std::mem::take(&mut board.changes[i]);
        let (leaving, wanted, away) = (board.leaving[i], board.wanted[i], board.away[i]);
        Look { ring, events, log, orders, changes, leaving, wanted, away }
    }

    /// The ring logs as it was told to.
    pub(super) fn logged(&self, side: Side) {
        self.0.lock().unlogged[side as usize] = false;
        self.0.answered.notify_all();
    }

    /// The ring serves its guest as it was told to.
    pub(super) fn obeyed(&self, side: Side) {
        self.0.lock().unheard[side as usize] = false;
        self.0.answered.notify_all();
    }

    /// The ring uses none of the I/O addresses that are to be nowhere.
    pub(super) fn left(&self, side: Side) {
        self.0.lock().leaving[side as usize] = None;
        self.0.answered.notify_all();
    }

    /// Says something about I/O addresses to the control side.
    pub(super) fn want(&self, wants: &mut Vec<Want>) {
        let Some(caller) = &self.0.caller else { return wants.clear() };
        let mut board = self.0.lock();
        if board.wants.len() < MAX_ASKS {
            board.wants.append(wants);
        }
        wants.clear();
        drop(board);
        caller.call();
    }

    /// Packets to be received, left at the door.
    pub(super) fn herald(&self) -> Option<Herald> {
        self.0.lock().herald.take()
    }

    /// Sends a ring home.
    pub(super) fn send(&self, side: Side, ring: Ring) {
        self.0.lock().home[side as usize] = Some(ring);
        self.0.answered.notify_all();
    }

    /// Tells how many buffers a wanted ring still has out.
    pub(super) fn tell(&self, side: Side, lent: u32) {
        self.0.lock().lent[side as usize] = lent;
    }

    /// No queue answers any more: rings that are not wanted wait at the door for the next one.
    pub(super) fn close(&self, rings: [Option<Ring>; 2]) {
        let mut board = self.0.lock();
        for (i, ring) in rings.into_iter().enumerate() {
            if let Some(mut ring) = ring {
                if let Some(log) = board.logs[i].take() {
                    ring.ring.log(log, &Batch::default());
                }
                if let Some(orders) = board.orders[i].take() {
                    ring.obey(orders);
                }
                board.changes[i].drain(..).for_each(|change| ring.ring.change(change));
                board.incoming[i] = Some(ring);
            }
            (board.unlogged[i], board.unheard[i]) = (false, false);
            board.leaving[i] = None;
        }
        drop(board);
        self.0.answered.notify_all();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::vring::iotlb::Miss;

    /// What a queue says reaches its control side, which looks only when it was called.
    #[test]
    fn loom_what_a_queue_wants_is_heard() {
        loom::model(|| {
            let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
            let caller = Arc::new(Caller::new(Arc::clone(&bell)));
            let (door, inside) = Door::new(Some(Arc::clone(&caller))).unwrap();
            let queue = thread::spawn(move || {
                for iova in 0..2 {
                    inside.want(&mut vec![Want::Translation(Miss { iova, perm: 1 })]);
                }
            });
            // As the control thread: awake because of the descriptor, or because of something else.
            let look = |heard: &mut usize| {
                let _ = rustix::io::read(&bell, &mut [0; 8]);
                if caller.called() {
                    *heard += door.wants().len();
                }
            };
            let mut heard = 0;
            look(&mut heard);
            look(&mut heard);
            queue.join().unwrap();
            while rustix::io::read(&bell, &mut [0; 8]).is_ok() {
                look(&mut heard);
            }
            assert_eq!(heard, 2);
        });
    }
}
