//! A port around a port that shows each packet which passes to a [`Watcher`].
//!
//! The packets are copied out for it under a lock per burst: an instrument, not for full speed. A burst
//! that the port refuses is not shown.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use hugepages::{Buf, Loan, Monitor, Offload, Table};

use crate::batch::Batch;
use crate::port::{Caps, Counters, Filter, Link, Port, PortError, Queue, Stats, Wanted};

/// The direction of a packet, seen from the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Received from the port.
    Rx,
    /// Sent to the port, and taken by it.
    Tx,
}

/// A packet that passes.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its direction.
    pub way: Way,
    /// The queue it passes.
    pub queue: u16,
    /// When, since 1970 (of the whole burst).
    pub at: Duration,
    /// Its first bytes, as many as the watcher wants.
    pub bytes: &'a [u8],
    /// All its bytes.
    pub len: u32,
    /// Buffers it is in.
    pub bufs: usize,
    /// What is left to do to it.
    pub offload: Offload,
}

/// Gets to see packets.
pub trait Watcher: Send + 'static {
    /// Bytes of a packet it wants to see; 0: it is not interested now.
    fn wants(&self) -> u32;
    /// One packet.
    fn packet(&mut self, port: &str, packet: &Seen<'_>);
    /// The port stops: what is still in a buffer goes out.
    ///
    /// # Errors
    /// When it does not.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The control side: the port inside, in all but what its queues show.
pub struct Watched<W> {
    inner: Box<dyn Port>,
    watcher: Arc<Mutex<W>>,
}

impl<W: Watcher> Watched<W> {
    /// Shows the packets of `inner` to `watcher`.
    pub fn around(inner: Box<dyn Port>, watcher: W) -> Watched<W> {
        Watched { inner, watcher: Arc::new(Mutex::new(watcher)) }
    }
}

fn locked<W>(watcher: &Mutex<W>) -> MutexGuard<'_, W> {
    watcher.lock().expect("no watcher panics")
}

impl<W: Watcher> Port for Watched<W> {
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
        let name: Arc<str> = self.inner.name().into();
        let inner = self.inner.start(queues)?;
        let wrap = |(index, inner)| -> Box<dyn Queue> {
            let (port, watcher) = (name.clone(), self.watcher.clone());
            Box::new(WatchedQueue { inner, port, index, watcher, copies: Copies::default() })
        };
        Ok((0..).zip(inner).map(wrap).collect())
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        let inner = queues.into_iter().map(|queue| {
            let queue: Box<dyn Any> = queue;
            queue.downcast::<WatchedQueue<W>>().expect("a port gets its own queues back").inner
        });
        let inner = inner.collect();
        self.inner.stop(inner)?;
        locked(&self.watcher).flush().map_err(|source| PortError::Io {
            port: self.inner.name().to_owned(),
            what: "writing what was recorded".to_owned(),
            source,
        })
    }

    fn stats(&self) -> Vec<Stats> {
        self.inner.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        self.inner.xstats()
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

struct WatchedQueue<W> {
    inner: Box<dyn Queue>,
    port: Arc<str>,
    index: u16,
    watcher: Arc<Mutex<W>>,
    copies: Copies,
}

/// Copies of the first bytes of the packets of a burst.
#[derive(Default)]
struct Copies {
    bytes: Vec<u8>,
    /// End in `bytes`, length, buffers, offload of each packet.
    packets: Vec<(usize, u32, usize, Offload)>,
}

impl Copies {
    /// Copies the packets of `batch` from buffer `first` on.
    fn take(&mut self, batch: &Batch<Buf>, first: usize, wants: u32) {
        self.bytes.clear();
        self.packets.clear();
        let mut at = first;
        while let Some(head) = batch.get(at) {
            let (n, len) = batch.packet_at(at);
            let start = self.bytes.len();
            self.bytes.resize(start + wants.min(len) as usize, 0);
            let mut to = start;
            for buf in (at..at + n).filter_map(|i| batch.get(i)) {
                to += buf.read(0, &mut self.bytes[to..]);
            }
            self.packets.push((self.bytes.len(), len, n, head.offload));
            at += n;
        }
    }

    /// Shows the first `n`.
    fn show<W: Watcher>(&self, n: usize, way: Way, queue: &WatchedQueue<W>) {
        if n == 0 {
            return;
        }
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut watcher = locked(&queue.watcher);
        let mut start = 0;
        for &(end, len, bufs, offload) in self.packets.iter().take(n) {
            let bytes = &self.bytes[start..end];
            start = end;
            watcher.packet(&queue.port, &Seen { way, queue: queue.index, at, bytes, len, bufs, offload });
        }
    }
}

impl<W: Watcher> WatchedQueue<W> {
    fn wants(&self) -> u32 {
        locked(&self.watcher).wants()
    }
}

impl<W: Watcher> Queue for WatchedQueue<W> {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let first = out.len();
        let n = self.inner.rx(out);
        if n > 0 && self.wants() > 0 {
            self.copies.take(out, first, self.wants());
            self.copies.show(n, Way::Rx, self);
        }
        n
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let wants = self.wants();
        if wants > 0 {
            self.copies.take(batch, 0, wants);
        }
        let n = self.inner.tx(batch);
        if wants > 0 {
            self.copies.show(n, Way::Tx, self);
        }
        n
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.inner.reap(done)
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.inner.settle(loans);
    }

    fn carries(&self) -> bool {
        self.inner.carries()
    }

    fn lent(&self) -> u32 {
        self.inner.lent()
    }

    fn held(&self) -> u32 {
        self.inner.held()
    }

    fn wants(&self) -> Option<Wanted> {
        self.inner.wants()
    }

    fn post(&mut self, empty: &mut Batch<Buf>) -> usize {
        self.inner.post(empty)
    }

    fn unpost(&mut self) {
        self.inner.unpost();
    }

    fn empty(&mut self, wanted: &Wanted, out: &mut Batch<Buf>) -> Option<usize> {
        self.inner.empty(wanted, out)
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
