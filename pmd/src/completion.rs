//! Receipts on their way home: by owner on one core ([`Loans`]), over a ring between two ([`spsc`]).

pub mod doorbell;
pub mod spsc;

use hugepages::Loan;

use crate::batch::{Batch, CAP};

/// Receipts that a core has collected and not yet brought home, oldest first.
///
/// Receipts are claimed at desks, numbered from 0: the queues and pools of the core. Who lent what is
/// unknown here. A desk that is offered the batch takes its own receipts from the front and stops at
/// the first foreign one; which desk took an owner's receipts is remembered, so that a run of one
/// owner costs one offer.
pub struct Loans {
    batch: Batch<Loan>,
    /// By owner: 1 + the desk that took its receipts last; 0 unknown.
    routes: Box<[u16]>,
    lost: u64,
}

impl Default for Loans {
    fn default() -> Self {
        Loans::new()
    }
}

impl Loans {
    /// Nothing collected, nothing known.
    pub fn new() -> Loans {
        // All zero: pages of the map are touched only where owners are.
        Loans { batch: Batch::default(), routes: vec![0; 1 << 16].into_boxed_slice(), lost: 0 }
    }

    /// Receipts that it holds.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether it holds none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Whether it should be settled before more is collected.
    #[inline(always)]
    pub fn near_full(&self) -> bool {
        self.batch.len() >= CAP / 2
    }

    /// Adds a receipt.
    ///
    /// # Panics
    /// When it is full: callers look at [`Loans::near_full`] first.
    #[inline(always)]
    pub fn push(&mut self, loan: Loan) {
        self.batch.push(loan);
    }

    /// The batch behind it, to be filled by `reap`.
    #[inline(always)]
    pub fn batch(&mut self) -> &mut Batch<Loan> {
        &mut self.batch
    }

    /// Receipts dropped so far because nobody claimed them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Forgets who claims what: desks got other numbers.
    pub fn forget(&mut self) {
        self.routes.fill(0);
    }

    /// Brings all receipts home. `offer` shows the batch to a desk; `first` are desks that are asked
    /// before all others, `desks` is how many there are. Receipts that nobody claims are dropped and
    /// counted.
    #[inline]
    pub fn settle(&mut self, first: &[u16], desks: u16, mut offer: impl FnMut(u16, &mut Batch<Loan>)) {
        let Loans { batch, routes, lost } = self;
        let mut took = |desk: u16, batch: &mut Batch<Loan>| {
            let before = batch.len();
            offer(desk, batch);
            debug_assert!(batch.len() <= before, "settle only takes");
            batch.len() < before
        };
        while let Some(front) = batch.front() {
            let owner = front.owner();
            if first.iter().any(|&desk| took(desk, batch)) {
                continue;
            }
            let route = &mut routes[usize::from(owner.get())];
            if (1..=desks).contains(route) && took(*route - 1, batch) {
                continue;
            }
            match (0..desks).find(|&desk| took(desk, batch)) {
                Some(desk) => *route = desk + 1,
                None => {
                    while batch.front().is_some_and(|loan| loan.owner() == owner) {
                        let _ = batch.pop_front();
                        *lost += 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Backing, PageSize, Pool};

    fn pool() -> Pool {
        Pool::new(64, 64, Backing { page: PageSize::Base, node: None }).unwrap().0
    }

    fn claim(pool: &mut Pool, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == pool.owner()) {
            pool.settle(loans.pop_front().unwrap());
        }
    }

    #[test]
    fn every_receipt_comes_home_and_a_known_owner_costs_one_offer() {
        let mut pools = [pool(), pool(), pool()];
        let mut loans = Loans::new();
        let mut offers = Vec::new();
        for round in 0..3 {
            for (owner, n) in [(2, 20), (0, 3), (2, 1), (1, 8)] {
                for _ in 0..n {
                    loans.push(pools[owner].take().unwrap().finish(0));
                }
            }
            offers.clear();
            loans.settle(&[], 3, |desk, batch| {
                offers.push(desk);
                claim(&mut pools[usize::from(desk)], batch);
            });
            assert!(loans.is_empty() && loans.lost() == 0);
            assert!(pools.iter().all(|p| p.out() == 0));
            let expected: &[u16] = if round == 0 { &[0, 1, 2, 0, 2, 0, 1] } else { &[2, 0, 2, 1] };
            assert_eq!(offers, expected);
        }
    }

    #[test]
    fn a_route_that_went_stale_is_found_again() {
        let mut pools = [pool(), pool()];
        let mut loans = Loans::new();
        for swapped in [0, 1, 0] {
            loans.push(pools[0].take().unwrap().finish(0));
            loans.settle(&[], 2, |desk, batch| claim(&mut pools[usize::from(desk ^ swapped)], batch));
            assert_eq!(pools[0].out(), 0);
        }
        loans.forget();
        loans.push(pools[1].take().unwrap().finish(0));
        // Fewer desks than the route knew of.
        loans.settle(&[], 1, |_, batch| claim(&mut pools[1], batch));
        assert_eq!(pools[1].out(), 0);
    }

    #[test]
    fn desks_asked_first_take_what_another_would() {
        let mut own = pool();
        let mut loans = Loans::new();
        let mut debt = 2;
        for _ in 0..5 {
            loans.push(own.take().unwrap().finish(0));
        }
        let mut carried = Vec::new();
        loans.settle(&[1], 2, |desk, batch| match desk {
            0 => claim(&mut own, batch),
            _ => {
                while debt > 0 && !batch.is_empty() {
                    carried.push(batch.pop_front().unwrap());
                    debt -= 1;
                }
            }
        });
        assert_eq!((carried.len(), own.out()), (2, 2));
        for loan in carried {
            own.settle(loan);
        }
    }

    #[test]
    fn what_nobody_claims_is_counted_once() {
        let (mut gone, mut own) = (pool(), pool());
        let mut loans = Loans::new();
        for _ in 0..3 {
            loans.push(gone.take().unwrap().finish(0));
            loans.push(own.take().unwrap().finish(0));
        }
        loans.settle(&[], 1, |_, batch| claim(&mut own, batch));
        assert_eq!((loans.lost(), loans.len(), own.out(), gone.out()), (3, 0, 0, 3));
    }
}
