//! Packets that come to one queue of a port and go into another's ring: where the guest has said that they are to,
//! by the hash of each ([`Steering`](super::steering::Steering)), or because their own ring is not in use.
//!
//! Every queue has a letterbox. Another one leaves packets there, under a lock, once for all of a burst that go
//! there; the queue whose box it is takes them in its `reap`, puts them into its ring and leaves the receipts in
//! the box of the queue they came from, which gives them out on the lender's core. A port whose guest has not
//! asked for it looks at one flag a turn, and no more.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use hugepages::{Buf, Loan};

use crate::batch::Batch;
use crate::completion::doorbell::Doorbell;

/// Buffers that wait in one box, and those that one queue may have out in others: of more, packets are lost.
const ROOM: usize = 512;
/// How long a queue waits for another to take a packet, before it takes it back: that one has left its core, or
/// its core stands still.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a packet waits until it is known where the guest's buffers are.
const UNKNOWN: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Contents {
    /// The queue that each comes from.
    letters: VecDeque<(u16, Buf)>,
    receipts: VecDeque<Loan>,
    /// A queue is there to take them.
    open: bool,
}

/// One for each queue.
#[derive(Default)]
struct Letterbox {
    /// Something was put in since the queue looked.
    waiting: AtomicBool,
    /// Since it is in use.
    bell: OnceLock<Doorbell>,
    contents: Mutex<Contents>,
}

impl Letterbox {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("no holder panics")
    }

    /// Something was put in.
    fn tell(&self) {
        // Pairs with the acquire in `Mail::receipts`: what was put in is seen.
        self.waiting.store(true, Ordering::Release);
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }
}

/// The letterboxes of a port.
#[derive(Clone)]
pub(super) struct Office(Arc<[Letterbox]>);

impl Office {
    /// For so many queues.
    pub(super) fn new(queues: usize) -> Office {
        Office((0..queues).map(|_| Letterbox::default()).collect())
    }

    /// Opens it for good: nothing can be left in a box before.
    ///
    /// # Errors
    /// No file descriptors left.
    pub(super) fn open(&self) -> std::io::Result<()> {
        for letterbox in self.0.iter().filter(|letterbox| letterbox.bell.get().is_none()) {
            let mut contents = letterbox.lock();
            contents.letters.reserve(ROOM);
            contents.receipts.reserve(ROOM);
            drop(contents);
            // Set by nobody else: there is one control side.
            let _ = letterbox.bell.set(Doorbell::new()?);
        }
        Ok(())
    }
}

/// Packets of one queue, that wait to be put into the ring.
#[derive(Default)]
pub(super) struct Group {
    pub(super) packets: Batch<Buf>,
    pub(super) done: Batch<Loan>,
    from: u16,
    since: Option<Instant>,
}

impl Group {
    /// Whether they have waited for too long for a ring that is not ready.
    pub(super) fn expired(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() > UNKNOWN)
    }
}

/// What one queue has to do with it.
pub(super) struct Mail {
    office: Office,
    index: u16,
    /// Buffers in other boxes or other rings, whose receipts have not come.
    out: u32,
    /// When anything moved there.
    moved: Option<Instant>,
    group: Option<Box<Group>>,
    /// More is in the box than was taken.
    more: bool,
}

impl Mail {
    /// Of the queue with this index.
    pub(super) fn new(office: Office, index: u16) -> Mail {
        let mail = Mail { office, index, out: 0, moved: None, group: None, more: false };
        mail.own().lock().open = true;
        mail
    }

    #[inline(always)]
    fn own(&self) -> &Letterbox {
        &self.office.0[usize::from(self.index)]
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Whether there is anything to do.
    #[inline(always)]
    pub(super) fn due(&self) -> bool {
        // Relaxed: the lock orders what is taken.
        self.out > 0 || self.more || self.own().waiting.load(Ordering::Relaxed)
    }

    /// Whether anything may come.
    pub(super) fn in_use(&self) -> bool {
        self.own().bell.get().is_some()
    }

    /// Buffers of others that it knows of.
    pub(super) fn held(&self) -> usize {
        self.out as usize + self.group.as_ref().map_or(0, |group| group.packets.len())
    }

    /// Before the core sleeps: what becomes readable when anything comes; `false`: something has.
    pub(super) fn arm<'m>(&'m self, wait: &mut dyn FnMut(BorrowedFd<'m>)) -> bool {
        let Some(bell) = self.own().bell.get() else { return true };
        bell.arm();
        let idle = self.group.as_ref().is_none_or(|group| group.packets.is_empty())
            && !self.more
            && !self.own().waiting.load(Ordering::Relaxed);
        if idle {
            wait(bell.fd());
        }
        idle
    }

    /// The core is awake.
    pub(super) fn disarm(&self) {
        if let Some(bell) = self.own().bell.get() {
            bell.disarm();
        }
    }

    /// Leaves packets from the front of `packets` for another queue, as many as there is room for.
    pub(super) fn send(&mut self, to: u16, packets: &mut Batch<Buf>) {
        let Some(letterbox) = self.office.0.get(usize::from(to)).filter(|to| to.bell.get().is_some()) else {
            return;
        };
        let mut contents = letterbox.lock();
        if !contents.open {
            return;
        }
        let before = contents.letters.len();
        while !packets.is_empty() {
            let (bufs, _) = packets.packet_at(0);
            if contents.letters.len() + bufs > ROOM || self.out as usize + bufs > ROOM {
                break;
            }
            for _ in 0..bufs {
                contents.letters.push_back((self.index, packets.pop_front().expect("counted")));
            }
            self.out += bufs as u32;
        }
        let sent = contents.letters.len() > before;
        drop(contents);
        if sent {
            self.moved = Some(Instant::now());
            letterbox.tell();
        }
    }

    /// Takes receipts of what was left elsewhere, as many as fit. How many packets were taken back unsent, because
    /// their queue did not take them.
    pub(super) fn receipts(&mut self, done: &mut Batch<Loan>) -> u64 {
        // Pairs with the release in `tell`. Cleared first: what comes from now on is seen the next time.
        let came = self.own().waiting.swap(false, Ordering::Acquire);
        if came || self.more {
            let mut contents = self.own().lock();
            let before = done.len();
            while done.room() > 0
                && let Some(loan) = contents.receipts.pop_front()
            {
                done.push(loan);
            }
            let more = !contents.receipts.is_empty() || !contents.letters.is_empty();
            drop(contents);
            let came = (done.len() - before) as u32;
            self.out = self.out.saturating_sub(came);
            self.more = more;
            if came > 0 {
                self.moved = Some(Instant::now());
            }
        }
        let late = self.out > 0 && self.moved.is_none_or(|moved| moved.elapsed() > PATIENCE);
        if late { self.take_back() } else { 0 }
    }

    /// Takes back what no queue has taken; its receipts are in its own box then.
    #[cold]
    fn take_back(&mut self) -> u64 {
        let (mut packets, mut back) = (0, Vec::new());
        for letterbox in self.office.0.iter() {
            let mut contents = letterbox.lock();
            for _ in 0..contents.letters.len() {
                let Some((from, buf)) = contents.letters.pop_front() else { break };
                if from == self.index {
                    packets += u64::from(!buf.more());
                    back.push(buf.finish(0));
                } else {
                    contents.letters.push_back((from, buf));
                }
            }
        }
        self.moved = Some(Instant::now());
        self.more |= !back.is_empty();
        self.own().lock().receipts.extend(back);
        packets
    }

    /// The next packets to be put into the ring, all from one queue: those that wait, or others from the box.
    pub(super) fn next(&mut self) -> Option<Box<Group>> {
        if let Some(group) = self.group.take_if(|group| !group.packets.is_empty()) {
            return Some(group);
        }
        let group = self.group.take();
        let mut contents = self.own().lock();
        let from = contents.letters.front()?.0;
        let mut group = group.unwrap_or_default();
        (group.from, group.since) = (from, Some(Instant::now()));
        let mut whole = 0;
        for (i, (_, buf)) in contents.letters.iter().take_while(|(of, _)| *of == from).enumerate() {
            if i == group.packets.room() {
                break;
            }
            whole = if buf.more() { whole } else { i + 1 };
        }
        contents.letters.drain(..whole).for_each(|(_, buf)| group.packets.push(buf));
        let more = !contents.letters.is_empty();
        drop(contents);
        self.more |= more;
        Some(group)
    }

    /// Gives back what is done, and keeps the rest for the next time; whether all is done.
    pub(super) fn keep(&mut self, mut group: Box<Group>) -> bool {
        if !group.done.is_empty() {
            let home = &self.office.0[usize::from(group.from)];
            let mut contents = home.lock();
            while let Some(loan) = group.done.pop_front() {
                contents.receipts.push_back(loan);
            }
            drop(contents);
            home.tell();
        }
        let all = group.packets.is_empty();
        self.more |= !all;
        self.group = Some(group);
        all
    }

    /// Takes nothing any more: what waits goes back.
    pub(super) fn close(&mut self) {
        self.own().lock().open = false;
        while let Some(mut group) = self.next() {
            while let Some(buf) = group.packets.pop_front() {
                group.done.push(buf.finish(0));
            }
            self.keep(group);
        }
    }
}
