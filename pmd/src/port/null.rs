//! A port without a device: packets of one size for nothing, and a bottomless drain.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Monitor, Pool};

use crate::batch::Batch;
use crate::port::frames::{self, FRAMES, local_mac};
use crate::port::{Caps, Counters, Link, Port, PortError, Queue, Stats, Tally, drop_packet};
use crate::spec::net::{MAX_FRAME, MAX_QUEUE_PAIRS};

/// What a null port is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of a received packet, 1 to [`MAX_FRAME`]; 64 as in DPDK's `net_null`.
    pub size: u32,
    /// Receives nothing: a drain only.
    pub no_rx: bool,
    /// Frames of a queue.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config { size: 64, no_rx: false, frames: FRAMES, backing: Backing::default() }
    }
}

/// The control side.
#[derive(Debug)]
pub struct Null {
    name: String,
    config: Config,
    tally: Tally,
    up: bool,
}

impl Null {
    /// A null port, not started.
    ///
    /// # Errors
    /// When the size is out of range.
    pub fn new(name: &str, config: Config) -> Result<Null, PortError> {
        if config.size == 0 || config.size > MAX_FRAME {
            let what = format!("size={} is not in 1..={MAX_FRAME} bytes", config.size);
            return Err(PortError::Config { port: name.to_owned(), what });
        }
        Ok(Null { name: name.to_owned(), config, tally: Tally::default(), up: false })
    }
}

impl Port for Null {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_null"
    }

    fn caps(&self) -> Caps {
        // What is thrown away needs no checksum and no segmentation.
        Caps {
            mtu: MAX_FRAME - 18,
            queues: MAX_QUEUE_PAIRS,
            checksum: true,
            segmentation: true,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        local_mac(&self.name)
    }

    fn link(&self) -> Link {
        Link { up: self.up, speed: 10_000 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let mut started: Vec<Box<dyn Queue>> = Vec::new();
        for _ in 0..queues {
            let frames = if self.config.no_rx { 1 } else { self.config.frames };
            let pool = frames::packets(&self.name, frames, self.config.size, self.config.backing)?;
            started.push(Box::new(NullQueue {
                pool,
                size: self.config.size,
                no_rx: self.config.no_rx,
                done: Batch::default(),
                counters: Arc::default(),
            }));
        }
        self.tally = Tally::of(&started);
        self.up = true;
        Ok(started)
    }

    fn stop(&mut self, _: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        self.up = false;
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

struct NullQueue {
    pool: Pool,
    size: u32,
    no_rx: bool,
    /// Receipts of what was sent, until they are reaped.
    done: Batch<Loan>,
    counters: Arc<Counters>,
}

impl Queue for NullQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        if self.no_rx {
            return 0;
        }
        let mut n = 0;
        for _ in 0..out.burst().min(out.room()) {
            let Some(mut buf) = self.pool.take() else { break };
            buf.truncate(self.size);
            out.push(buf);
            n += 1;
        }
        self.counters.rx_packets.add(n);
        self.counters.rx_bytes.add(n * u64::from(self.size));
        n as usize
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut packets, mut sum) = (0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            drop_packet(batch, &mut self.done);
            packets += 1;
            sum += u64::from(bytes);
        }
        self.counters.tx_packets.add(packets);
        self.counters.tx_bytes.add(sum);
        packets as usize
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.done.move_to(done)
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.pool.settle_front(loans);
    }

    fn lent(&self) -> u32 {
        self.pool.out()
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        monitor.clear();
        self.no_rx && self.done.is_empty()
    }

    fn sleep<'q>(&'q mut self, _: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        // A drain never has work of its own.
        self.no_rx
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::PageSize;

    fn config() -> Config {
        Config { frames: 40, backing: Backing { page: PageSize::Base, node: None }, ..Config::default() }
    }

    #[test]
    fn lends_what_it_has_and_takes_everything() {
        let mut port = Null::new("null0", Config { size: 100, ..config() }).unwrap();
        let mut queues = port.start(1).unwrap();
        let queue = &mut queues[0];
        let (mut batch, mut loans) = (Batch::new(32), Batch::default());
        assert_eq!((queue.rx(&mut batch), queue.rx(&mut batch), queue.rx(&mut batch)), (32, 8, 0));
        assert!(batch.iter().all(|buf| buf.len() == 100 && !buf.more()));
        // Twenty packets of two buffers.
        batch.iter_mut().enumerate().for_each(|(i, buf)| buf.set_more(i % 2 == 0));
        assert_eq!((queue.tx(&mut batch), queue.held(), queue.lent()), (20, 40, 40));
        assert_eq!(queue.reap(&mut loans), 40);
        queue.settle(&mut loans);
        assert_eq!((queue.lent(), queue.held(), loans.len()), (0, 0, 0));
        port.stop(queues).unwrap();
        let stats = port.stats()[0];
        assert_eq!((stats.rx_packets, stats.rx_bytes), (40, 4000));
        assert_eq!((stats.tx_packets, stats.tx_bytes), (20, 4000));
        port.clear_stats();
        assert_eq!(port.stats()[0], Stats::default());
    }

    #[test]
    fn a_drain_receives_nothing_and_a_wrong_size_is_named() {
        let mut port = Null::new("null0", Config { no_rx: true, ..config() }).unwrap();
        let mut queues = port.start(2).unwrap();
        assert_eq!(queues.len(), 2);
        assert_eq!(queues[1].rx(&mut Batch::default()), 0);
        assert!(queues[1].sleep(&mut |_| panic!("nothing to wait for")));
        let why = Null::new("null0", Config { size: 0, ..config() }).unwrap_err();
        assert_eq!(why.to_string(), "port null0: size=0 is not in 1..=65554 bytes");
    }
}
