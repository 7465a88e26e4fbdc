//! The data side of a vhost port: one queue pair.
//!
//! `rx` lends chains of the guest's transmit ring with the virtio-net header taken off; `tx` copies
//! packets into chains of the guest's receive ring, straight from the lender's memory, so a packet
//! from guest to guest is copied once. Both publish once per burst; the guest is called, if it wants to
//! be, by the `reap` that follows.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hugepages::{Buf, Loan, Monitor};

use super::deliver::Deliver;
use super::door::{Door, Inside, Look, Side};
use super::herald::Herald;
use super::mail::{Mail, Office};
use super::orders::{Delivery, Orders, Sifted, Waiting};
use super::parked::Parked;
use super::receive::{LONGEST, receive};
use super::wire::Wire;
use crate::batch::{BURST, Batch};
use crate::port::{Counters, Queue, Wanted, drop_packet};
use crate::spec::net::HDR_LEN;
use crate::sys::eventfd::EventFd;
use crate::vhost::lines::{Lines, say};
use crate::vring::AnyVring;
use crate::vring::iotlb::Want;
use crate::with_ring;

/// The eventfds of a ring.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// What the guest signals; `None`: it does not, the ring can only be polled.
    pub(crate) kick: Option<EventFd>,
    /// What signals the guest; `None`: it polls.
    pub(crate) call: Option<EventFd>,
    /// What tells the front-end of a fault.
    pub(crate) err: Option<EventFd>,
}

/// A ring with all that its core needs to run it.
pub(crate) struct Ring {
    /// The ring itself.
    pub(crate) ring: AnyVring,
    /// How its frames are wrapped.
    pub(crate) wire: Wire,
    /// What else its guest has asked for, by its control queue.
    pub(crate) orders: Orders,
    /// What the guest was not called for yet, because it wants to be called rarely.
    pub(crate) waiting: Waiting,
    /// How its guest is reached.
    pub(crate) events: Events,
    /// Socket and queue, for the log.
    pub(crate) name: String,
}

impl Ring {
    /// One with these features whose guest has asked for nothing yet.
    pub(crate) fn new(ring: AnyVring, features: u64, events: Events, name: String) -> Ring {
        let (wire, orders) = (Wire::of(features), Orders::of(features));
        Ring { ring, wire, orders, waiting: Waiting::default(), events, name }
    }

    /// Serves its guest like this from now on.
    pub(super) fn obey(&mut self, orders: Orders) {
        self.wire = Wire::of(orders.features);
        self.orders = orders;
    }

    fn publish(&mut self, counters: &Counters) {
        if self.ring.publish() {
            self.call(counters);
        }
    }

    fn call(&self, counters: &Counters) {
        if let Some(call) = &self.events.call {
            call.signal();
            counters.calls.add(1);
        }
    }

    /// Reports the fault that has just retired the ring.
    #[cold]
    fn retired(&self, counters: &Counters, lines: &mut Lines) {
        let fault = self.ring.fault().expect("asked after a fault");
        counters.faults.add(1);
        // Of damaged memory the control side tells, once for all rings.
        if !self.ring.damaged() {
            say!(lines, error, "{}: ring retired: {fault}; the guest must reset its device", self.name);
        }
        if let Some(err) = &self.events.err {
            err.signal();
        }
    }
}

/// One queue pair of a vhost port. Its rings come and go through the door.
pub(super) struct VhostQueue {
    from_guest: Option<Ring>,
    to_guest: Option<Ring>,
    /// Empty chains of `to_guest`, during a burst.
    stash: Batch<Buf>,
    done: Batch<Loan>,
    leaving: [bool; 2],
    /// Of a guest whose chains are mostly no packets.
    shunned: Shunned,
    /// Used elements were shown, and the guest was not yet asked whether it wants to be called.
    shown: bool,
    /// About faults, by side: a front-end can start a ring again and again over the same one.
    lines: [Lines; 2],
    /// Packets in the name of a guest that has moved here.
    herald: Option<Herald>,
    /// What is needed for rings whose addresses are those of the guest's IOMMU.
    translated: Option<Box<Translated>>,
    /// Packets for other rings of the guest, and from other queues for its own.
    mail: Mail,
    door: Inside,
    counters: Arc<Counters>,
}

/// Turns at most in which a guest is left alone whose chains are mostly no packets: they cost its neighbours
/// on the core more than packets do.
const SHUN: u32 = 128;

/// So many of these without a turn that brought more packets, and it begins.
const RUNTS: usize = 256;

/// How long it is left alone: twice as long each time, for as long as it goes on.
#[derive(Default)]
struct Shunned {
    turns: u32,
    last: u32,
    runts: usize,
}

impl Shunned {
    /// Whether it is this turn.
    #[inline(always)]
    fn now(&mut self) -> bool {
        let shunned = self.turns > 0;
        self.turns -= u32::from(shunned);
        shunned
    }

    /// What a turn brought.
    #[inline(always)]
    fn judge(&mut self, packets: usize, errors: usize) {
        self.runts = if errors > packets { (self.runts + errors).min(RUNTS) } else { 0 };
        self.last = if self.runts == RUNTS { (2 * self.last).clamp(1, SHUN) } else { 0 };
        self.turns = self.last;
    }
}

/// Groups of packets that it takes from other queues in one turn.
const LETTERS: usize = 8;

/// Turns after which it is asked for what the next chains will need.
const FORESEE: u32 = 32;

/// What a queue does besides for rings whose addresses are those of the guest's IOMMU.
#[derive(Default)]
struct Translated {
    /// Packets for a guest whose buffers are not known yet.
    parked: Parked,
    /// The ring to the guest will be back soon.
    away: bool,
    /// By side: I/O addresses that are to be nowhere, and are still in use.
    leaving: [Option<(u64, u64)>; 2],
    turns: u32,
    wants: Vec<Want>,
}

/// A queue over rings of this process, without a socket, for tests and measurements; the driver's side
/// is the caller's. The rings are taken in at the first `reap`.
///
/// # Errors
/// When no event descriptor can be had.
pub fn local(
    name: &str,
    features: u64,
    from_guest: Option<AnyVring>,
    to_guest: Option<AnyVring>,
) -> std::io::Result<Box<dyn Queue>> {
    let (door, inside) = Door::new(None)?;
    for (side, ring) in [(Side::FromGuest, from_guest), (Side::ToGuest, to_guest)] {
        if let Some(ring) = ring {
            door.give(side, Ring::new(ring, features, Events::default(), name.into()));
        }
    }
    Ok(Box::new(VhostQueue::new(inside, Mail::new(Office::new(1), 0), Arc::default())))
}

impl Translated {
    /// Whether it needs turns: what was asked for comes with a knock, but what waits must not wait for long.
    fn is_due(&self) -> bool {
        !self.parked.is_empty() || self.leaving != [None; 2] || !self.wants.is_empty()
    }
}

impl VhostQueue {
    pub(super) fn new(door: Inside, mail: Mail, counters: Arc<Counters>) -> Self {
        VhostQueue {
            from_guest: None,
            to_guest: None,
            stash: Batch::default(),
            done: Batch::default(),
            leaving: [false; 2],
            shunned: Shunned::default(),
            shown: false,
            lines: Default::default(),
            herald: None,
            translated: None,
            mail,
            door,
            counters,
        }
    }

    /// Takes in rings that wait at the door and sends home those that are wanted.
    #[cold]
    fn answer(&mut self) {
        let counters = Arc::clone(&self.counters);
        for side in [Side::FromGuest, Side::ToGuest] {
            let Look { ring, events, log, orders, changes, leaving, wanted, away } = self.door.look(side);
            if let Some(mut ring) = ring {
                if ring.ring.translated() {
                    self.translated.get_or_insert_default();
                }
                ring.ring.arm(false);
                // A call may have been lost while the ring was away.
                ring.call(&counters);
                ring.ring.foresee();
                *self.slot(side) = Some(ring);
            }
            if let (Some(events), Some(ring)) = (events, self.slot(side).as_mut()) {
                ring.events = events;
                // Or while the old descriptor was still called.
                ring.call(&counters);
            }
            if let Some(log) = log {
                let none = Batch::default();
                let (ring, held) = match side {
                    Side::FromGuest => (&mut self.from_guest, &none),
                    Side::ToGuest => (&mut self.to_guest, &self.stash),
                };
                if let Some(ring) = ring {
                    ring.ring.log(log, held);
                }
                self.door.logged(side);
            }
            if let Some(orders) = orders {
                if let Some(ring) = self.slot(side) {
                    ring.obey(orders);
                }
                self.door.obeyed(side);
            }
            if let Some(ring) = self.slot(side).as_mut().filter(|_| !changes.is_empty()) {
                changes.into_iter().for_each(|change| ring.ring.change(change));
                ring.ring.foresee();
            }
            if let Some(translated) = &mut self.translated {
                translated.leaving[side as usize] = leaving;
                if side == Side::ToGuest {
                    translated.away = away;
                }
            } else if leaving.is_some() {
                self.door.left(side);
            }
            self.leaving[side as usize] = wanted;
        }
        if let Some(herald) =
            self.door.herald().filter(|_| self.herald.as_ref().is_none_or(|h| h.lent() == 0))
        {
            self.herald = Some(herald);
        }
        self.leave();
    }

    /// Sends home what is wanted and has nothing out.
    #[cold]
    fn leave(&mut self) {
        if self.leaving[Side::FromGuest as usize] {
            match &self.from_guest {
                Some(ring) if ring.ring.lent() > 0 => self.door.tell(Side::FromGuest, ring.ring.lent()),
                _ => self.go(Side::FromGuest),
            }
        }
        if self.leaving[Side::ToGuest as usize] {
            if self.mail.due() {
                self.post();
            }
            match &self.to_guest {
                // With a NIC, which gives up what it has: see `empty`.
                Some(ring) if ring.ring.lent() > 0 => self.door.tell(Side::ToGuest, ring.ring.lent()),
                _ => self.go(Side::ToGuest),
            }
        }
    }

    fn go(&mut self, side: Side) {
        self.leaving[side as usize] = false;
        if let Some(mut ring) = self.slot(side).take() {
            ring.publish(&self.counters);
            self.door.send(side, ring);
        }
    }

    /// Calls the guest for what was shown since the last turn, if it wants to be. By now the stores have
    /// left the core, so that the fence that this takes waits for nothing.
    #[inline]
    fn call(&mut self) {
        self.shown = false;
        for ring in [&mut self.to_guest, &mut self.from_guest].into_iter().flatten() {
            if ring.waiting.holds(ring.orders.moderation) {
                self.shown = true;
            } else if ring.ring.wants_call() {
                ring.call(&self.counters);
            }
        }
    }

    /// The part of a turn that is for rings whose addresses are those of the guest's IOMMU.
    #[cold]
    #[inline(never)]
    fn translate(&mut self) {
        let Some(mut own) = self.translated.take() else { return };
        let translated = &mut *own;
        translated.turns = translated.turns.wrapping_add(1);
        for side in [Side::FromGuest, Side::ToGuest] {
            let slot = self.slot(side);
            if let Some(ring) = slot {
                if translated.turns.is_multiple_of(FORESEE) {
                    ring.ring.foresee();
                }
                ring.ring.wants(&mut translated.wants);
            }
            let used = |&(first, last): &(u64, u64)| {
                slot.as_ref().is_some_and(|ring| ring.ring.overlaps(first, last))
            };
            if translated.leaving[side as usize].as_ref().is_some_and(|range| !used(range)) {
                translated.leaving[side as usize] = None;
                self.door.left(side);
            }
        }
        if !translated.wants.is_empty() {
            self.door.want(&mut translated.wants);
        }
        if !translated.parked.is_empty() {
            self.unpark(translated);
        }
        self.translated = Some(own);
    }

    /// Delivers packets that waited, as far as that can be; those that waited for too long are lost.
    fn unpark(&mut self, translated: &mut Translated) {
        if self.deliver(translated.parked.batch()) > 0 {
            translated.parked.moved();
        }
        if translated.parked.expired() || self.to_guest.is_none() && !translated.away {
            let lost = translated.parked.finish(&mut self.done);
            self.counters.tx_errors.add(lost);
        }
    }

    /// [`Queue::tx`] into a ring that may have to wait for translations, or that is away until it is known
    /// again where it is: packets wait with it.
    #[cold]
    #[inline(never)]
    fn tx_translated(&mut self, batch: &mut Batch<Buf>) -> usize {
        let Some(mut translated) = self.translated.take() else { return 0 };
        if !translated.parked.is_empty() {
            self.unpark(&mut translated);
        }
        let mut packets = 0;
        if translated.parked.is_empty() {
            packets = self.deliver(batch);
        }
        let waits = match &self.to_guest {
            Some(ring) => ring.ring.blocked(),
            None => translated.away,
        };
        if waits {
            packets += translated.parked.take(batch);
        }
        self.translated = Some(translated);
        packets
    }

    /// Copies packets into the guest's ring, those that it wants; how many went.
    #[inline(always)]
    fn deliver(&mut self, batch: &mut Batch<Buf>) -> usize {
        let Some(ring) = &mut self.to_guest else { return 0 };
        match &mut ring.orders.delivery {
            Delivery::All => self.put(batch),
            Delivery::Some(sieve) => match sieve.sift(batch, &mut self.done, &mut self.mail) {
                Some(sifted) => self.put_rest(batch, sifted),
                None => 0,
            },
        }
    }

    /// Copies those into the ring that are left, of packets that were looked at; how many went.
    #[inline(never)]
    fn put_rest(&mut self, batch: &mut Batch<Buf>, Sifted { refused, elsewhere, lost }: Sifted) -> usize {
        self.counters.tx_filtered.add(refused as u64);
        self.counters.tx_errors.add(lost as u64);
        self.put(batch) + refused + elsewhere + lost
    }

    /// Copies packets into the guest's ring; how many went.
    #[inline(always)]
    fn put(&mut self, batch: &mut Batch<Buf>) -> usize {
        let Some(ring) = &mut self.to_guest else { return 0 };
        let had = ring.ring.fault().is_some();
        let (packets, shown) = with_ring!(&mut ring.ring, vring => {
            let (stash, done) = (&mut self.stash, &mut self.done);
            let hashing = ring.orders.hashing.as_deref();
            let mut to = Deliver { ring: vring, wire: ring.wire, hashing, stash, done, idle: BURST };
            let packets = to.burst(batch, &self.counters);
            let shown = vring.show();
            vring.prepare(packets);
            (packets, shown)
        });
        self.shown |= shown;
        ring.waiting.add(packets);
        if !had && ring.ring.fault().is_some() {
            ring.retired(&self.counters, &mut self.lines[Side::ToGuest as usize]);
        }
        packets
    }

    /// Takes receipts of packets that went to other queues, and puts those of others into the ring. What there is
    /// no room for is lost: their senders wait for nobody.
    #[cold]
    #[inline(never)]
    fn post(&mut self) {
        let returned = self.mail.receipts(&mut self.done);
        self.counters.tx_errors.add(returned);
        for _ in 0..LETTERS {
            let Some(mut group) = self.mail.next() else { return };
            std::mem::swap(&mut self.done, &mut group.done);
            self.put(&mut group.packets);
            let waits = match (&self.to_guest, &self.translated) {
                (Some(ring), _) => ring.ring.blocked(),
                (None, translated) => translated.as_ref().is_some_and(|translated| translated.away),
            };
            while !group.packets.is_empty() && (!waits || group.expired()) {
                drop_packet(&mut group.packets, &mut self.done);
                self.counters.tx_errors.add(1);
            }
            std::mem::swap(&mut self.done, &mut group.done);
            if !self.mail.keep(group) {
                return;
            }
        }
    }

    /// Receipts of empty buffers that nothing was received in, or something that was not for this guest.
    #[cold]
    fn settle_empty(&mut self, loans: &mut Batch<Loan>) {
        let Some(ring) = &mut self.to_guest else { return };
        let before = loans.len();
        self.shown |= with_ring!(&mut ring.ring, vring => {
            vring.settle_front(loans);
            vring.show()
        });
        ring.waiting.add(before - loans.len());
    }

    fn slot(&mut self, side: Side) -> &mut Option<Ring> {
        match side {
            Side::FromGuest => &mut self.from_guest,
            Side::ToGuest => &mut self.to_guest,
        }
    }
}

impl Queue for VhostQueue {
    #[inline]
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let Some(ring) = &mut self.from_guest else { return 0 };
        if self.leaving[Side::FromGuest as usize] || self.shunned.now() {
            return 0;
        }
        let had = ring.ring.fault().is_some();
        if let Some(bytes) = self.herald.as_mut().and_then(|herald| herald.rx(out)) {
            self.counters.rx_packets.add(1);
            self.counters.rx_bytes.add(bytes);
            return 1;
        }
        let (packets, errors, bytes) = with_ring!(&mut ring.ring, vring => receive(vring, ring.wire, out));
        if packets + errors > 0 {
            self.shunned.judge(packets, errors);
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(bytes);
            self.counters.rx_errors.add(errors as u64);
        }
        if errors > 0 {
            // Runts and empty chains are complete already.
            ring.publish(&self.counters);
        }
        if !had && ring.ring.fault().is_some() {
            ring.retired(&self.counters, &mut self.lines[Side::FromGuest as usize]);
        }
        packets
    }

    #[inline]
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        if self.translated.is_some() {
            return self.tx_translated(batch);
        }
        self.deliver(batch)
    }

    #[inline]
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.door.knocked() {
            self.answer();
        } else if self.leaving != [false; 2] {
            self.leave();
        }
        if self.translated.is_some() {
            self.translate();
        }
        if self.mail.due() {
            self.post();
        }
        if self.shown {
            self.call();
        }
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    #[inline]
    fn settle(&mut self, loans: &mut Batch<Loan>) {
        if let Some(herald) = &mut self.herald {
            herald.settle(loans);
            if !herald.due() && herald.lent() == 0 {
                self.herald = None;
            }
        }
        let before = loans.len();
        if let Some(ring) = &mut self.from_guest {
            self.shown |= with_ring!(&mut ring.ring, vring => {
                vring.settle_front(loans);
                vring.show()
            });
            ring.waiting.add(before - loans.len());
        }
        if loans.len() == before {
            self.settle_empty(loans);
        }
    }

    fn lent(&self) -> u32 {
        [&self.from_guest, &self.to_guest].into_iter().flatten().map(|ring| ring.ring.lent()).sum::<u32>()
            + self.herald.as_ref().map_or(0, Herald::lent)
    }

    fn held(&self) -> u32 {
        let parked = self.translated.as_ref().map_or(0, |translated| translated.parked.len());
        (self.done.len() + parked + self.mail.held()) as u32
    }

    fn empty(&mut self, wanted: &Wanted, out: &mut Batch<Buf>) -> Option<usize> {
        let Some(ring) = &mut self.to_guest else { return Some(0) };
        let away = self.leaving[Side::ToGuest as usize] || !ring.ring.lends_far();
        // Headers of 12 bytes; whatever comes in is for the guest.
        if away || ring.wire.hdr != HDR_LEN || ring.orders.delivery.is_elsewhere() {
            return None;
        }
        // Some stay for packets from elsewhere, which are copied.
        let size = ring.ring.size();
        let most = u32::from(size - size / 4).saturating_sub(ring.ring.lent());
        let least = if ring.wire.mergeable { wanted.least } else { wanted.least.max(wanted.whole) };
        let most = wanted.most.min(most as usize);
        Some(with_ring!(&mut ring.ring, vring => {
            if most > 0 && vring.ready() { vring.pop_simple(out, most, (least, LONGEST), u64::MAX).0 } else { 0 }
        }))
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        let due = self.herald.as_ref().is_some_and(Herald::due);
        if due
            || self.translated.as_ref().is_some_and(|translated| translated.is_due())
            || self.shown
            || !self.done.is_empty()
            || self.leaving != [false; 2]
            || self.mail.in_use()
        {
            return false;
        }
        match &self.from_guest {
            Some(ring) => ring.ring.monitor(monitor),
            None => {
                monitor.clear();
                true
            }
        }
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        use std::os::fd::AsFd;
        let due = self.translated.as_ref().is_some_and(|translated| translated.is_due());
        if self.door.knocking() || self.shown || due {
            return false;
        }
        if self.from_guest.as_mut().is_some_and(|ring| ring.events.kick.is_none() || ring.ring.arm(true)) {
            return false;
        }
        if !self.mail.arm(wait) {
            return false;
        }
        wait(self.door.bell().as_fd());
        if let Some(kick) = self.from_guest.as_ref().and_then(|ring| ring.events.kick.as_ref()) {
            wait(kick.as_fd());
        }
        true
    }

    fn wake(&mut self, rung: bool) {
        self.mail.disarm();
        if rung {
            self.door.bell().clear();
        }
        if let Some(ring) = &mut self.from_guest {
            ring.ring.arm(false);
            if let Some(kick) = ring.events.kick.as_ref().filter(|_| rung) {
                kick.clear();
            }
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for VhostQueue {
    fn drop(&mut self) {
        self.mail.close();
        for ring in [&mut self.to_guest, &mut self.from_guest].into_iter().flatten() {
            ring.waiting = Waiting::default();
        }
        self.call();
        if let Some(ring) = &mut self.to_guest {
            ring.publish(&self.counters);
        }
        self.door.close([self.from_guest.take(), self.to_guest.take()]);
    }
}
