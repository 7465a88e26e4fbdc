//! A burst on its way: up to [`CAP`] of something, in order.

use hugepages::{Buf, Private};

/// Room in a batch: buffers, of which a packet may take several.
pub const CAP: usize = 256;
/// Packets in a burst unless told otherwise, as in DPDK.
pub const BURST: usize = 32;

/// A queue of fixed room that is filled at the back and taken from the front. Lives where it is made;
/// nothing is allocated after that.
pub struct Batch<T> {
    slots: Private<[Option<T>; CAP]>,
    head: usize,
    tail: usize,
    burst: usize,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Batch::new(BURST)
    }
}

impl<T> Batch<T> {
    /// An empty batch that asks a port for up to `burst` packets (1 to [`CAP`]) at a time.
    pub fn new(burst: usize) -> Self {
        Batch { slots: Private::new([const { None }; CAP]), head: 0, tail: 0, burst: burst.clamp(1, CAP) }
    }

    /// Packets that one `rx` may put in.
    #[inline(always)]
    pub fn burst(&self) -> usize {
        self.burst
    }

    /// Sets the packets that one `rx` may put in, 1 to [`CAP`].
    pub fn set_burst(&mut self, burst: usize) {
        self.burst = burst.clamp(1, CAP);
    }

    /// Items in it.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Whether nothing is in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Items that can be pushed before it is full.
    #[inline(always)]
    pub fn room(&self) -> usize {
        CAP - self.len()
    }

    /// Adds at the back.
    ///
    /// # Panics
    /// When it is full: callers look at [`Batch::room`] first.
    #[inline(always)]
    pub fn push(&mut self, item: T) {
        if self.tail == CAP {
            self.compact();
        }
        self.slots[self.tail] = Some(item);
        self.tail += 1;
    }

    /// Takes the first.
    #[inline(always)]
    pub fn pop_front(&mut self) -> Option<T> {
        if self.head == self.tail {
            return None;
        }
        let item = self.slots[self.head & (CAP - 1)].take();
        self.head += 1;
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
        item
    }

    /// Takes the last.
    #[inline(always)]
    pub fn pop_back(&mut self) -> Option<T> {
        if self.head == self.tail {
            return None;
        }
        self.tail -= 1;
        let item = self.slots[self.tail & (CAP - 1)].take();
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
        item
    }

    /// The first.
    #[inline(always)]
    pub fn front(&self) -> Option<&T> {
        if self.is_empty() { None } else { self.slots[self.head & (CAP - 1)].as_ref() }
    }

    /// Item `i` from the front.
    #[inline(always)]
    pub fn get(&self, i: usize) -> Option<&T> {
        if i < self.len() { self.slots[(self.head + i) & (CAP - 1)].as_ref() } else { None }
    }

    /// Item `i` from the front, to be changed.
    #[inline(always)]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        if i < self.len() { self.slots[(self.head + i) & (CAP - 1)].as_mut() } else { None }
    }

    /// From front to back.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.slots[self.head..self.tail].iter().flatten()
    }

    /// From front to back, to be changed.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots[self.head..self.tail].iter_mut().flatten()
    }

    /// Moves as much as fits to the back of `to`; how many moved.
    #[inline]
    pub fn move_to(&mut self, to: &mut Batch<T>) -> usize {
        let n = self.len().min(to.room());
        for _ in 0..n {
            to.push(self.pop_front().expect("counted"));
        }
        n
    }

    #[cold]
    fn compact(&mut self) {
        assert!(self.head > 0, "batch of {CAP} is full");
        for i in self.head..self.tail {
            self.slots[i - self.head] = self.slots[i].take();
        }
        self.tail -= self.head;
        self.head = 0;
    }
}

impl Batch<Buf> {
    /// Packets in it: buffers without `MORE`.
    #[inline]
    pub fn packets(&self) -> usize {
        self.iter().filter(|buf| !buf.more()).count()
    }

    /// Buffers of the packet that begins at buffer `i`, and its bytes; `(0, 0)` at the end.
    #[inline(always)]
    pub fn packet_at(&self, i: usize) -> (usize, u32) {
        let (mut n, mut bytes) = (0, 0u32);
        while let Some(buf) = self.get(i + n) {
            n += 1;
            bytes = bytes.saturating_add(buf.len());
            if !buf.more() {
                break;
            }
        }
        (n, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_queue_of_fixed_room() {
        let mut batch = Batch::new(32);
        for round in 0..5 {
            for i in 0..CAP {
                batch.push(round * 1000 + i);
            }
            assert_eq!((batch.len(), batch.room()), (CAP, 0));
            for i in 0..100 {
                assert_eq!(batch.pop_front(), Some(round * 1000 + i));
            }
            batch.push(7);
            assert_eq!(batch.get(0), Some(&(round * 1000 + 100)));
            assert_eq!(batch.pop_back(), Some(7));
            let mut other = Batch::new(32);
            assert_eq!(batch.move_to(&mut other), CAP - 100);
            assert!(batch.is_empty() && batch.pop_front().is_none() && batch.pop_back().is_none());
            assert!(other.iter().copied().eq((100..CAP).map(|i| round * 1000 + i)));
        }
    }
}
