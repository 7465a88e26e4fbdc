//! Many loans at a time, as fast as a loop can make them.

use crate::batch::Batch;
use crate::buf::{Buf, Lender, Offload, Tag, WRITE};

impl Lender {
    /// Lends what `next` asks for, address, length and number of each, to the back of `out` as long as
    /// there is room, at most `most`: how many. Ends at a `None`, and at bytes that are not all in one
    /// region, which are not lent. The cache is asked for the first lines of each. `WRITABLE`: they may be written.
    #[inline(always)]
    pub fn lend_run<const WRITABLE: bool>(
        &self,
        out: &mut Batch<Buf>,
        most: usize,
        mut next: impl FnMut() -> Option<(u64, u32, u16)>,
    ) -> usize {
        let (mut span, owner) = (self.span.get(), self.owner());
        let back = out.back(most);
        let most = most.min(back.len());
        let mut n = 0;
        for slot in &mut back[..most] {
            let Some((gpa, len, id)) = next() else { break };
            let at = match span.locate(gpa, len) {
                Some(at) => at,
                None => {
                    let Some((other, at)) = self.look_up(gpa, len) else { break };
                    span = other;
                    at
                }
            };
            let flags = if WRITABLE { WRITE } else { 0 };
            let buf = Buf { at, len, tag: Tag::new(owner, id), flags, offload: Offload::default() };
            if WRITABLE {
                buf.prefetch_write();
            } else {
                // A header in front puts small frames on two lines.
                buf.prefetch();
                buf.prefetch_at(64);
            }
            slot.write(buf);
            n += 1;
        }
        self.span.set(span);
        self.count_out(n);
        // SAFETY: the loop has filled the first n of the free slots.
        unsafe { out.grow(n) };
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::CAP;
    use crate::map::{Backing, Map, PageSize};
    use crate::table::Table;

    fn lender() -> Lender {
        let map = Map::shared(8192, Backing { page: PageSize::Base, node: None }).unwrap();
        Lender::new(Table::of(map))
    }

    #[test]
    fn a_run_is_what_single_loans_are_and_ends_at_what_cannot_be_lent() {
        let lender = lender();
        let mut batch = Batch::default();
        let asked = [(8191, 1), (0, 8192), (5, 0), (8191, 2), (0, 1)];
        for wrong in [(8191, 2), (8192, 0), (u64::MAX, 1), (0, u32::MAX)] {
            let mut asked = asked;
            asked[3] = wrong;
            let mut i = 0;
            let mut next = || {
                i += 1;
                asked.get(i - 1).map(|&(gpa, len)| (gpa, len, i as u16))
            };
            assert_eq!(lender.lend_run::<false>(&mut batch, 2, &mut next), 2);
            assert_eq!(lender.lend_run::<true>(&mut batch, 9, &mut next), 1);
            assert_eq!(lender.lend_run::<true>(&mut batch, 9, &mut next), 1);
            assert_eq!(lender.lend_run::<true>(&mut batch, 9, &mut next), 0);
            assert!(batch.iter().map(Buf::id).eq([1, 2, 3, 5]), "{wrong:?} is not lent");
            assert!(batch.iter().map(Buf::writable).eq([false, false, true, true]));
            assert!(batch.iter().map(Buf::len).eq([1, 8192, 0, 1]));
            assert_eq!(lender.out(), 4);
            while let Some(buf) = batch.pop_front() {
                lender.settle(buf.finish(0));
            }
            assert_eq!(lender.out(), 0);
        }
    }

    #[test]
    fn a_run_fills_the_room_of_its_batch_and_no_more() {
        let lender = lender();
        let mut batch = Batch::default();
        for round in 0..3 {
            let room = batch.room();
            assert_eq!(lender.lend_run::<true>(&mut batch, 1000, || Some((64, 64, 7))), room);
            assert_eq!((batch.len(), lender.out() as usize), (CAP, CAP), "round {round}");
            lender.take_back(&mut batch, 100);
        }
        lender.take_back(&mut batch, CAP);
        assert_eq!(lender.out(), 0);
    }
}
