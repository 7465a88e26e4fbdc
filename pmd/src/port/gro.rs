//! A port around a port that joins the TCP segments which it receives into large packets, flow by flow,
//! within a burst ([`offload::join`](crate::offload::join)). For ports behind which nobody has joined
//! them, on the way to receivers that take large packets: others get them segmented again.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Monitor, Pool, Table};

use crate::batch::Batch;
use crate::offload::join::{HEADERS, Joiner};
use crate::port::{Caps, Count, Counters, Filter, Link, Port, PortError, Queue, Stats, frames};

/// Headers of joined packets on their way, of a queue: enough for what a ring of usual size takes.
const FRAMES: usize = 1024;

/// The control side: the port inside, in all but what its queues give out.
pub struct Gro {
    inner: Box<dyn Port>,
    backing: Backing,
    joined: Vec<Arc<Count>>,
}

impl Gro {
    /// Joins what `inner` receives.
    pub fn around(inner: Box<dyn Port>, backing: Backing) -> Gro {
        Gro { inner, backing, joined: Vec::new() }
    }
}

impl Port for Gro {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn driver(&self) -> &'static str {
        self.inner.driver()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn mac(&self) -> [u8; 6] {
        self.inner.mac()
    }

    fn link(&self) -> Link {
        self.inner.link()
    }

    fn map(&mut self, memory: &Arc<Table>) -> Result<(), PortError> {
        self.inner.map(memory)
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let pools: Result<Vec<Pool>, PortError> = (0..queues)
            .map(|_| frames::pool(self.inner.name(), FRAMES, HEADERS as u32, self.backing))
            .collect();
        let (pools, inner) = (pools?, self.inner.start(queues)?);
        self.joined = inner.iter().map(|_| Arc::default()).collect();
        let wrap = |((inner, pool), joined): ((Box<dyn Queue>, Pool), &Arc<Count>)| -> Box<dyn Queue> {
            let (joiner, empty, joined) = (Joiner::default(), Batch::default(), Arc::clone(joined));
            Box::new(GroQueue { inner, pool, joiner, empty, joined })
        };
        Ok(inner.into_iter().zip(pools).zip(&self.joined).map(wrap).collect())
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        let inner = queues.into_iter().map(|queue| {
            let queue: Box<dyn Any> = queue;
            queue.downcast::<GroQueue>().expect("a port gets its own queues back").inner
        });
        self.inner.stop(inner.collect())
    }

    fn stats(&self) -> Vec<Stats> {
        self.inner.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let joined = self.joined.iter().map(|joined| joined.get()).sum();
        let mut all = self.inner.xstats();
        all.push(("rx_joined".to_owned(), joined));
        all
    }

    fn filter(&self) -> Option<Filter> {
        self.inner.filter()
    }

    fn set_filter(&mut self, filter: Filter) -> Result<(), PortError> {
        self.inner.set_filter(filter)
    }

    fn clear_stats(&mut self) {
        self.inner.clear_stats();
    }
}

struct GroQueue {
    inner: Box<dyn Queue>,
    pool: Pool,
    joiner: Joiner,
    /// Receipts of buffers of which nothing was left.
    empty: Batch<Loan>,
    /// Packets that became part of another.
    joined: Arc<Count>,
}

impl Queue for GroQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let alone = out.is_empty();
        let n = self.inner.rx(out);
        if n < 2 || !alone {
            return n;
        }
        let GroQueue { inner, pool, joiner, empty, joined } = self;
        let gone = joiner.join(out, |_| pool.take(), |buf| empty.push(buf.finish(0)));
        if gone > 0 {
            joined.add(gone as u64);
            inner.settle(empty);
            assert!(empty.is_empty(), "a queue takes receipts of what it lent");
        }
        n - gone
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        self.inner.tx(batch)
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.inner.reap(done)
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        // Headers come home between payloads.
        loop {
            let before = loans.len();
            self.pool.settle_front(loans);
            self.inner.settle(loans);
            if loans.is_empty() || loans.len() == before {
                return;
            }
        }
    }

    fn carries(&self) -> bool {
        self.inner.carries()
    }

    fn lent(&self) -> u32 {
        self.inner.lent() + self.pool.out()
    }

    fn held(&self) -> u32 {
        self.inner.held()
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        self.inner.rest(monitor)
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        self.inner.sleep(wait)
    }

    fn wake(&mut self, rung: bool) {
        self.inner.wake(rung);
    }

    fn counters(&self) -> Arc<Counters> {
        self.inner.counters()
    }
}

#[cfg(test)]
mod tests {
    use hugepages::PageSize;

    use super::*;
    use crate::port::generator::{self, Generator};

    #[test]
    fn what_is_no_tcp_passes_and_everything_comes_home() {
        let backing = Backing { page: PageSize::Base, node: None };
        let config = generator::Config { backing, ..Default::default() };
        let inner = Box::new(Generator::new("generator0", config).unwrap());
        let mut port = Gro::around(inner, backing);
        let mut queues = port.start(1).unwrap();
        let (mut batch, mut loans) = (Batch::default(), Batch::default());
        assert_eq!(queues[0].rx(&mut batch), 32);
        assert_eq!((batch.len(), queues[0].lent()), (32, 32));
        batch.finish_front(32, &mut loans);
        queues[0].settle(&mut loans);
        assert_eq!((loans.len(), queues[0].lent()), (0, 0));
        assert!(port.xstats().contains(&("rx_joined".to_owned(), 0)));
        port.stop(queues).unwrap();
    }
}
