//! What a device has: empty buffers to be filled, packets to be sent. Kept by the number that the rings
//! gave them, so that completions may come in any order, and each once.

use hugepages::Buf;

/// Buffers by number.
pub(crate) struct Slots {
    bufs: Box<[Option<Buf>]>,
    n: usize,
}

impl Slots {
    /// Room for numbers below `size`.
    pub(crate) fn new(size: u16) -> Slots {
        Slots { bufs: (0..size).map(|_| None).collect(), n: 0 }
    }

    /// Buffers in it.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Keeps a buffer.
    ///
    /// # Panics
    /// When the number is taken: a ring gave it out twice.
    pub(crate) fn put(&mut self, id: u16, buf: Buf) {
        let old = self.bufs[usize::from(id)].replace(buf);
        assert!(old.is_none(), "number {id} of a ring was given out twice");
        self.n += 1;
    }

    /// Takes the buffer of that number; `None`: the device never had it, or gave it back before.
    pub(crate) fn take(&mut self, id: u16) -> Option<Buf> {
        let buf = self.bufs.get_mut(usize::from(id))?.take()?;
        self.n -= 1;
        Some(buf)
    }

    /// Takes any that is left, at or after number `from`; its number too.
    pub(crate) fn take_any(&mut self, from: u16) -> Option<(u16, Buf)> {
        let id = (usize::from(from)..self.bufs.len()).find(|&id| self.bufs[id].is_some())? as u16;
        Some((id, self.take(id)?))
    }
}

/// No slot.
const NONE: u16 = u16::MAX;

/// Packets by number, each of several buffers.
pub(crate) struct Held {
    /// First buffer of each packet, by number.
    first: Box<[u16]>,
    /// The buffer behind each, in its packet or in the list of free ones.
    next: Box<[u16]>,
    bufs: Box<[Option<Buf>]>,
    free: u16,
    n: usize,
}

impl Held {
    /// Room for numbers below `packets`, and `bufs` buffers in all.
    pub(crate) fn new(packets: u16, bufs: u16) -> Held {
        let next = (1..bufs).chain([NONE]).collect();
        let first = vec![NONE; usize::from(packets)].into();
        Held { first, next, bufs: (0..bufs).map(|_| None).collect(), free: 0, n: 0 }
    }

    /// Buffers in it.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Buffers it still takes.
    pub(crate) fn room(&self) -> usize {
        self.bufs.len() - self.n
    }

    /// Keeps one more buffer of packet `id`.
    ///
    /// # Panics
    /// When there is no room.
    pub(crate) fn put(&mut self, id: u16, buf: Buf) {
        let at = self.free;
        self.free = self.next[usize::from(at)];
        self.next[usize::from(at)] = self.first[usize::from(id)];
        self.first[usize::from(id)] = at;
        self.bufs[usize::from(at)] = Some(buf);
        self.n += 1;
    }

    /// Takes a buffer of packet `id`, until there is none.
    pub(crate) fn take(&mut self, id: u16) -> Option<Buf> {
        let at = *self.first.get(usize::from(id))?;
        let buf = self.bufs.get_mut(usize::from(at))?.take()?;
        self.first[usize::from(id)] = self.next[usize::from(at)];
        self.next[usize::from(at)] = self.free;
        self.free = at;
        self.n -= 1;
        Some(buf)
    }

    /// Takes a buffer of any packet from number `*from` on, which is moved on to it.
    pub(crate) fn take_any(&mut self, from: &mut u16) -> Option<Buf> {
        while usize::from(*from) < self.first.len() {
            if let Some(buf) = self.take(*from) {
                return Some(buf);
            }
            *from += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Backing, PageSize, Pool};

    use super::*;

    fn pool() -> Pool {
        Pool::new(8, 64, Backing { page: PageSize::Base, node: None }).unwrap().0
    }

    #[test]
    fn packets_come_out_whole_in_any_order_and_once() {
        let (mut pool, mut held) = (pool(), Held::new(4, 6));
        for (id, n) in [(2, 3), (0, 1), (3, 2)] {
            for _ in 0..n {
                held.put(id, pool.take().unwrap());
            }
        }
        assert_eq!((held.len(), held.room(), pool.free()), (6, 0, 2));
        for (id, n) in [(3, 2), (1, 0), (9, 0), (2, 3), (2, 0)] {
            let out: Vec<Buf> = std::iter::from_fn(|| held.take(id)).collect();
            assert_eq!(out.len(), n, "packet {id}");
            out.into_iter().for_each(|buf| pool.settle(buf.finish(0)));
        }
        held.put(1, pool.take().unwrap());
        let mut from = 0;
        let rest: Vec<Buf> = std::iter::from_fn(|| held.take_any(&mut from)).collect();
        assert_eq!((rest.len(), held.len(), held.room()), (2, 0, 6));
        rest.into_iter().for_each(|buf| pool.settle(buf.finish(0)));
        assert_eq!(pool.out(), 0);
    }

    #[test]
    fn a_number_has_one_buffer() {
        let (mut pool, mut slots) = (pool(), Slots::new(4));
        slots.put(3, pool.take().unwrap());
        slots.put(1, pool.take().unwrap());
        assert!(slots.take(0).is_none() && slots.take(9).is_none() && slots.len() == 2);
        let buf = slots.take(3).unwrap();
        assert!(slots.take(3).is_none(), "given back before");
        pool.settle(buf.finish(0));
        let (id, buf) = slots.take_any(0).unwrap();
        assert!(id == 1 && slots.take_any(0).is_none() && slots.len() == 0);
        pool.settle(buf.finish(0));
    }
}
