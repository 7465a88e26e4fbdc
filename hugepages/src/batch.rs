//! A burst on its way: up to [`CAP`] of something, in order.

use std::mem::MaybeUninit;
use std::{ptr, slice};

use crate::buf::{Buf, Lender, Loan};
use crate::private::Private;

/// Room in a batch: buffers, of which a packet may take several.
pub const CAP: usize = 256;
/// Packets in a burst unless told otherwise, as in DPDK.
pub const BURST: usize = 32;

/// A queue of fixed room that is filled at the back and taken from the front. Nothing is allocated
/// after it is made.
pub struct Batch<T> {
    /// Slots `head..tail` hold items; `head <= tail <= CAP`.
    slots: Private<[MaybeUninit<T>; CAP]>,
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
        let slots = Private::new([const { MaybeUninit::uninit() }; CAP]);
        Batch { slots, head: 0, tail: 0, burst: burst.clamp(1, CAP) }
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

    /// The items, first to last.
    #[inline(always)]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: slots head..tail are initialised and lie in the array.
        unsafe { slice::from_raw_parts(self.slots.as_ptr().add(self.head).cast(), self.tail - self.head) }
    }

    /// The items, first to last, to be changed.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: slots head..tail are initialised and lie in the array; `&mut self` is exclusive.
        unsafe {
            slice::from_raw_parts_mut(self.slots.as_mut_ptr().add(self.head).cast(), self.tail - self.head)
        }
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
        // SAFETY: tail < CAP, or compact() has panicked.
        unsafe { self.slots.as_mut_ptr().add(self.tail).write(MaybeUninit::new(item)) };
        self.tail += 1;
    }

    /// Takes the first.
    #[inline(always)]
    pub fn pop_front(&mut self) -> Option<T> {
        if self.head == self.tail {
            return None;
        }
        // SAFETY: slot head is initialised; it is given up before anything can panic.
        let item = unsafe { self.slots.as_ptr().add(self.head).read().assume_init() };
        self.head += 1;
        self.rewind();
        Some(item)
    }

    /// Takes the last.
    #[inline(always)]
    pub fn pop_back(&mut self) -> Option<T> {
        if self.head == self.tail {
            return None;
        }
        self.tail -= 1;
        // SAFETY: slot tail was initialised and is given up.
        let item = unsafe { self.slots.as_ptr().add(self.tail).read().assume_init() };
        self.rewind();
        Some(item)
    }

    /// The first.
    #[inline(always)]
    pub fn front(&self) -> Option<&T> {
        self.as_slice().first()
    }

    /// Item `i` from the front.
    #[inline(always)]
    pub fn get(&self, i: usize) -> Option<&T> {
        self.as_slice().get(i)
    }

    /// Item `i` from the front, to be changed.
    #[inline(always)]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut T> {
        self.as_mut_slice().get_mut(i)
    }

    /// From front to back.
    #[inline(always)]
    pub fn iter(&self) -> slice::Iter<'_, T> {
        self.as_slice().iter()
    }

    /// From front to back, to be changed.
    #[inline(always)]
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, T> {
        self.as_mut_slice().iter_mut()
    }

    /// Moves as much as fits to the back of `to`; how many moved.
    #[inline]
    pub fn move_to(&mut self, to: &mut Batch<T>) -> usize {
        let n = self.len().min(to.room());
        if CAP - to.tail < n {
            to.compact();
        }
        // SAFETY: n items from head on are initialised here and n slots from tail on are free there;
        // they are given up here as they become `to`'s.
        unsafe {
            let from = self.slots.as_ptr().add(self.head);
            ptr::copy_nonoverlapping(from, to.slots.as_mut_ptr().add(to.tail), n);
        }
        self.head += n;
        to.tail += n;
        self.rewind();
        n
    }

    /// Turns the first `n` items (or all, if there are fewer) into `f` of them at the back of `to`.
    ///
    /// # Panics
    /// When `to` has less room.
    #[inline(always)]
    pub fn map_front<U>(&mut self, n: usize, to: &mut Batch<U>, mut f: impl FnMut(T) -> U) {
        let n = n.min(self.len());
        if CAP - to.tail < n {
            to.compact();
            assert!(CAP - to.tail >= n, "batch has no room for {n} more");
        }
        for _ in 0..n {
            // SAFETY: slot head is initialised, and given up before `f` can panic.
            let item = unsafe { self.slots.as_ptr().add(self.head).read().assume_init() };
            self.head += 1;
            let item = f(item);
            // SAFETY: there is room for n items from tail on.
            unsafe { to.slots.as_mut_ptr().add(to.tail).write(MaybeUninit::new(item)) };
            to.tail += 1;
        }
        self.rewind();
    }

    /// Gives up the first `n` items, which must be there, without dropping them.
    #[inline(always)]
    pub(crate) fn forget_front(&mut self, n: usize) {
        assert!(n <= self.len(), "no {n} items to forget");
        self.head += n;
        self.rewind();
    }

    /// The free slots behind the last item, at least `n` of them if there is so much room.
    #[inline(always)]
    pub(crate) fn back(&mut self, n: usize) -> &mut [MaybeUninit<T>] {
        if CAP - self.tail < n && self.head > 0 {
            self.compact();
        }
        &mut self.slots[self.tail..]
    }

    /// Adds the first `n` of [`Batch::back`] to the items.
    ///
    /// # Safety
    /// They are initialised.
    #[inline(always)]
    pub(crate) unsafe fn grow(&mut self, n: usize) {
        self.tail += n;
    }

    #[inline(always)]
    fn rewind(&mut self) {
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
    }

    #[cold]
    fn compact(&mut self) {
        assert!(self.head > 0, "batch of {CAP} is full");
        let n = self.len();
        let slots = self.slots.as_mut_ptr();
        // SAFETY: both ranges lie in the array; the items move to its front.
        unsafe { ptr::copy(slots.add(self.head), slots, n) };
        (self.head, self.tail) = (0, n);
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            while self.pop_front().is_some() {}
        }
    }
}

impl Lender {
    /// Takes the first `n` buffers of `bufs` back, all its own, as if each were finished and settled.
    ///
    /// # Panics
    /// When one is another lender's.
    #[inline(always)]
    pub fn take_back(&self, bufs: &mut Batch<Buf>, n: usize) {
        let n = n.min(bufs.len());
        self.count_home(&bufs.as_slice()[..n]);
        bufs.forget_front(n);
    }

    /// Takes its own receipts from the front of `loans`, up to the first that is another's: `home` is
    /// told number and bytes written of each.
    #[inline(always)]
    pub fn settle_front(&self, loans: &mut Batch<Loan>, home: impl FnMut(u16, u32)) {
        let n = self.count_loans(loans.as_slice(), home);
        loans.forget_front(n);
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
        for buf in self.as_slice().get(i..).unwrap_or(&[]) {
            n += 1;
            bytes = bytes.saturating_add(buf.len());
            if !buf.more() {
                break;
            }
        }
        (n, bytes)
    }

    /// Finishes the first `n` buffers with nothing written; their receipts go to `done`.
    ///
    /// # Panics
    /// When `done` has no room for them.
    #[inline(always)]
    pub fn finish_front(&mut self, n: usize, done: &mut Batch<Loan>) {
        self.map_front(n, done, |buf| buf.finish(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

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
            assert_eq!((batch.get(0).copied(), batch.pop_back()), (Some(round * 1000 + 100), Some(7)));
            let mut other = Batch::new(32);
            assert_eq!(batch.move_to(&mut other), CAP - 100);
            assert!(batch.is_empty() && batch.pop_front().is_none() && batch.pop_back().is_none());
            assert!(other.iter().copied().eq((100..CAP).map(|i| round * 1000 + i)));
        }
    }

    #[test]
    fn moves_and_maps_without_losing_or_doubling() {
        let token = Rc::new(());
        let mut from = Batch::default();
        for _ in 0..200 {
            from.push(Rc::clone(&token));
        }
        let mut to = Batch::default();
        for _ in 0..150 {
            to.push(Rc::clone(&token));
        }
        for _ in 0..10 {
            to.pop_front();
        }
        assert_eq!((from.move_to(&mut to), from.len(), to.len()), (116, 84, 256));
        let mut pairs = Batch::default();
        from.map_front(50, &mut pairs, |t| (t, 1));
        from.map_front(1000, &mut pairs, |t| (t, 2));
        assert_eq!(
            (from.len(), pairs.len(), pairs.get(49).unwrap().1, pairs.get(50).unwrap().1),
            (0, 84, 1, 2)
        );
        assert_eq!(Rc::strong_count(&token), 1 + 256 + 84);
        drop((from, to, pairs));
        assert_eq!(Rc::strong_count(&token), 1);
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn refuses_one_more() {
        let mut batch = Batch::default();
        for i in 0..=CAP {
            batch.push(i);
        }
    }
}
