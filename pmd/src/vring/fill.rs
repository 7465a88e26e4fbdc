//! Packets into the chains of a ring to the driver, in place: nothing becomes a loan.

use std::marker::PhantomData;

use hugepages::{Buf, Reach, Room};

use super::{Layout, RUN, Single, Vring, Way};
use crate::spec::virtio as v;

/// The next chains of one buffer each, to be filled from the front.
pub struct Rooms<'a, L> {
    reach: Reach<'a>,
    singles: &'a [Single],
    used: &'a mut [u64],
    filled: usize,
    /// There were too few chains for a packet.
    short: bool,
    layout: PhantomData<L>,
}

impl<'a, L: Layout> Rooms<'a, L> {
    /// The next one, to be written to; it stays the next one until [`Rooms::written`].
    #[inline(always)]
    pub fn front(&mut self) -> Option<Room<'a>> {
        let Some(single) = self.singles.get(self.filled) else {
            self.short = true;
            return None;
        };
        self.reach.room(single.addr, single.len)
    }

    /// How many of the next ones hold `bytes` together; `None`: all of them do not.
    pub fn holding(&mut self, bytes: u64) -> Option<usize> {
        let mut held = 0;
        for (n, single) in self.singles[self.filled..].iter().enumerate() {
            held += u64::from(single.len);
            if held >= bytes {
                return Some(n + 1);
            }
        }
        self.short = true;
        None
    }

    /// Copies `header` and a packet of one buffer into the next `rooms`, which hold both; `false`, and none of
    /// them is filled, if one is not the guest's memory or the first is too short for the header.
    #[inline(always)]
    pub fn scatter(&mut self, rooms: usize, header: &[u8], packet: &Buf) -> bool {
        let Rooms { reach, singles, used, filled, .. } = self;
        let end = *filled + rooms;
        let (mut start, mut off) = (header.len() as u32, 0);
        for (single, used) in singles[*filled..end].iter().zip(&mut used[*filled..end]) {
            let Some(room) = reach.room(single.addr, single.len) else { return false };
            if start > 0 && !room.write(header) {
                return false;
            }
            let n = room.copy_part(start, packet, off, u32::MAX);
            *used = L::used(single.id, 1, start + n);
            (start, off) = (0, off + n);
        }
        *filled = end;
        true
    }

    /// So many bytes were written to the next one.
    #[inline(always)]
    pub fn written(&mut self, bytes: u32) {
        self.used[self.filled] = L::used(self.singles[self.filled].id, 1, bytes);
        self.filled += 1;
    }

    /// How many were written to.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Nothing was written to the last ones, down to the first `filled`.
    pub fn undo(&mut self, filled: usize) {
        self.filled = self.filled.min(filled);
    }
}

impl<L: Layout> Vring<L> {
    /// Fills up to `most` chains of one buffer each at once, none of which becomes a loan: `fill` writes
    /// to each and says how many bytes; `None`: it did not, and that is the last one. How many were
    /// filled; there may be more of them. Of a ring to the driver of which nothing is out.
    #[inline(always)]
    pub fn fill_each(&mut self, most: usize, mut fill: impl FnMut(Room<'_>) -> Option<u32>) -> usize {
        if !self.in_place() {
            return 0;
        }
        if self.ahead.start == self.ahead.end {
            self.look_ahead(most);
        }
        let Vring { layout, lender, singles, ahead, used, .. } = self;
        let mut reach = lender.reach();
        let mut n = 0;
        let singles = &singles[ahead.clone()];
        for (single, used) in singles.iter().zip(used[..most.min(RUN)].iter_mut()) {
            let Some(written) = reach.room(single.addr, single.len).and_then(&mut fill) else { break };
            *used = L::used(single.id, 1, written);
            n += 1;
        }
        layout.take(n);
        layout.push(&used[..n]);
        ahead.start += n;
        n
    }

    /// Looks at the next chains once those that were looked at are filled, for `most` packets like the last
    /// ones: their lines come while something else is done.
    #[inline(always)]
    pub fn prepare(&mut self, most: usize) {
        if self.in_place() && self.ahead.start == self.ahead.end {
            self.look_ahead(most);
        }
    }

    /// As [`Vring::fill_each`], for packets that may take several chains: `fill` puts one into the next
    /// rooms, and is called up to `packets` times; `false`: it did not, and that is the last one. How many
    /// packets went.
    #[inline(always)]
    pub fn fill(&mut self, packets: usize, mut fill: impl FnMut(&mut Rooms<'_, L>) -> bool) -> usize {
        if !self.in_place() {
            return 0;
        }
        let (n, short) = self.fill_ahead(packets, &mut fill);
        if n > 0 || !short || self.ahead.len() == RUN {
            return n;
        }
        self.look_ahead(RUN);
        self.fill_ahead(packets, &mut fill).0
    }

    /// As [`Vring::fill`], into chains that were looked at; and whether there were too few of them.
    fn fill_ahead(
        &mut self,
        packets: usize,
        fill: &mut impl FnMut(&mut Rooms<'_, L>) -> bool,
    ) -> (usize, bool) {
        let Vring { layout, lender, singles, ahead, used, .. } = self;
        let (reach, singles, used) = (lender.reach(), &singles[ahead.clone()], &mut used[..]);
        let mut rooms = Rooms { reach, singles, used, filled: 0, short: false, layout: PhantomData };
        let mut n = 0;
        while n < packets && fill(&mut rooms) {
            n += 1;
        }
        let Rooms { filled, short, used, .. } = rooms;
        layout.take(filled);
        layout.push(&used[..filled]);
        ahead.start += filled;
        (n, short)
    }

    /// Whether chains may be filled without loans.
    #[inline(always)]
    fn in_place(&self) -> bool {
        self.plain && self.rules.way == Way::ToDriver && self.lender.out() == 0
    }

    /// Looks at the next chains to be filled and asks the cache for their first lines.
    #[inline(always)]
    fn look_ahead(&mut self, most: usize) {
        let seen = self.layout.look(v::DESC_F_WRITE, &mut self.singles[..most.min(RUN)]);
        let mut reach = self.lender.reach();
        for single in &self.singles[..seen] {
            if let Some(room) = reach.room(single.addr, single.len) {
                room.prefetch();
            }
        }
        self.ahead = 0..seen;
    }
}
