//! What is out under each head, and the order in which it comes home.

use hugepages::Private;

use super::Layout;
use super::track::Track;

/// What is out under one head.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Buffers out; 0: the head is home; [`WAITS`]: they are home, and a chain before it is not.
    left: u16,
    descs: u16,
    written: u32,
}

/// More than the buffers of any chain.
const WAITS: u16 = u16::MAX;

/// `IN_ORDER`: the heads that are not home, oldest first.
struct Order {
    heads: Private<[u16]>,
    first: usize,
    count: usize,
    /// How many of them are complete and wait for the first.
    waiting: usize,
}

impl Order {
    /// The oldest head is home.
    #[inline(always)]
    fn forward(&mut self) {
        self.first = if self.first + 1 == self.heads.len() { 0 } else { self.first + 1 };
        self.count -= 1;
    }
}

/// The slots of a ring.
pub(super) struct Ledger {
    slots: Private<[Slot]>,
    order: Option<Order>,
}

impl Ledger {
    /// Everything is home.
    pub(super) fn new(size: u16, in_order: bool) -> Ledger {
        let size = usize::from(size);
        let order = in_order.then(|| Order { heads: Private::zeroed(size), first: 0, count: 0, waiting: 0 });
        let slots = Private::from_fn(size, |_| Slot::default());
        Ledger { slots, order }
    }

    /// `left` buffers go out under a head; `false`: it is not home.
    #[inline(always)]
    pub(super) fn take(&mut self, id: u16, left: u16, descs: u16) -> bool {
        let slot = &mut self.slots[usize::from(id)];
        let home = slot.left == 0;
        if home {
            *slot = Slot { left, descs, written: 0 };
        }
        home
    }

    /// The only buffer of a chain of one descriptor goes out under a head, which is the youngest then;
    /// `false`: there is no such head, or it is not home.
    #[inline(always)]
    pub(super) fn take_simple(&mut self, id: u16) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(id)).filter(|slot| slot.left == 0) else {
            return false;
        };
        *slot = Slot { left: 1, descs: 1, written: 0 };
        self.follow(id);
        true
    }

    /// The head is now the youngest.
    #[inline(always)]
    pub(super) fn follow(&mut self, id: u16) {
        let Some(order) = &mut self.order else { return };
        let mut at = order.first + order.count;
        if at >= order.heads.len() {
            at -= order.heads.len();
        }
        order.heads[at] = id;
        order.count += 1;
    }

    /// The youngest head goes back to where it came from.
    pub(super) fn unfollow(&mut self) {
        if let Some(order) = &mut self.order {
            order.count -= 1;
        }
    }

    /// A buffer goes back unused; the descriptors of its chain, if it was the last.
    pub(super) fn untake(&mut self, id: u16) -> Option<u16> {
        let slot = &mut self.slots[usize::from(id)];
        slot.left -= 1;
        (slot.left == 0).then_some(slot.descs)
    }

    /// The heads with buffers that are out.
    pub(super) fn out(&self) -> impl Iterator<Item = u16> {
        let out = |slot: &Slot| (1..WAITS).contains(&slot.left);
        self.slots.iter().enumerate().filter(move |(_, slot)| out(slot)).map(|(id, _)| id as u16)
    }

    /// None of a chain's buffers is out.
    pub(super) fn forget(&mut self, id: u16) {
        self.slots[usize::from(id)].left = 0;
    }

    /// A buffer comes home. If the chain can be given back now: its descriptors, and the bytes written to
    /// it.
    #[inline(always)]
    pub(super) fn home(&mut self, id: u16, written: u32) -> Option<(u16, u32)> {
        let slot = &mut self.slots[usize::from(id)];
        slot.left -= 1;
        let (left, descs, written) = (slot.left, slot.descs, slot.written.wrapping_add(written));
        if left > 0 || self.order.is_some() {
            slot.written = written;
            return if left > 0 { None } else { self.complete(id) };
        }
        Some((descs, written))
    }

    /// Nothing of a chain is out. As [`Ledger::home`]; virtio 1.3 §2.7.9, §2.8.10: with `IN_ORDER`, used
    /// elements follow the order of availability.
    #[inline(always)]
    pub(super) fn complete(&mut self, id: u16) -> Option<(u16, u32)> {
        let slot = &mut self.slots[usize::from(id)];
        if let Some(order) = &mut self.order {
            if order.heads[order.first] != id {
                slot.left = WAITS;
                order.waiting += 1;
                return None;
            }
            order.forward();
        }
        Some((slot.descs, slot.written))
    }

    /// Whether some chain may be given back now that could not before.
    #[inline(always)]
    pub(super) fn follows(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.waiting > 0)
    }

    /// Stages the chains that waited for the one that was given back last.
    #[cold]
    pub(super) fn follow_up<L: Layout>(&mut self, layout: &mut L, mut track: Option<&mut Track>) {
        let Ledger { slots, order: Some(order) } = self else { return };
        while order.waiting > 0 {
            let id = order.heads[order.first];
            let slot = &mut slots[usize::from(id)];
            if slot.left != WAITS {
                return;
            }
            slot.left = 0;
            order.waiting -= 1;
            order.forward();
            if let Some(track) = &mut track {
                track.stage(id, slot.written, layout.element());
            }
            layout.push(&[L::used(id, slot.descs, slot.written)]);
        }
    }
}
