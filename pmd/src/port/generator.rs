//! A port that makes traffic and judges what comes back: valid UDP frames of many flows and sizes, at
//! a rate, each with a number; frames that return are checked for loss, copies, order and damage.
//!
//! Streams are known in the whole process: a frame that one generator sent and another one gets is
//! checked too, and counted where it was sent.

mod stream;

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hugepages::{Backing, Buf, Loan, Offload, Pool};

use crate::batch::Batch;
use crate::offload;
use crate::port::frames::{self, FRAMES, local_mac};
use crate::port::pace::Pace;
use crate::port::{Caps, Count, Counters, Link, Port, PortError, Queue, Stats, Tally, drop_packet};
use crate::spec::net::{MAX_FRAME, MAX_QUEUE_PAIRS};

use stream::{Addresses, Flows, HEAD, Judge, Stream, Verdict};
pub use stream::{MAX_SIZE, MIN_SIZE};

/// Most flows of a port.
pub const MAX_FLOWS: u32 = 1_000_000;
/// Most sizes that take turns.
pub const MAX_SIZES: usize = 64;
/// Simple IMIX: 7 to 4 to 1 of 64, 594 and 1518 bytes on the wire, which count 4 bytes of FCS.
pub const IMIX: [u32; 12] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590];

/// What a generator is to send.
#[derive(Clone, Debug)]
pub struct Config {
    /// Flows of the port (source address and port), 1 to [`MAX_FLOWS`], shared out to its queues.
    pub flows: u32,
    /// Bytes of the frames without FCS, [`MIN_SIZE`] to [`MAX_SIZE`], in turn; see [`IMIX`].
    pub sizes: Vec<u32>,
    /// Packets per second of the port, shared by its queues; `None`: as many as are asked for.
    pub rate: Option<u64>,
    /// Packets of the port in all, shared by its queues; `None`: without end.
    pub count: Option<u64>,
    /// Judges the frames that come back.
    pub check: bool,
    /// Source MAC address; `None`: the port's own.
    pub src_mac: Option<[u8; 6]>,
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source address of the first flow.
    pub src_ip: Ipv4Addr,
    /// Destination address.
    pub dst_ip: Ipv4Addr,
    /// Destination port.
    pub dst_port: u16,
    /// Frames of a queue: as many may be on their way.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        // The addresses are those set aside for benchmarks (RFC 2544), the port is "discard".
        Config {
            flows: 1,
            sizes: vec![64],
            rate: None,
            count: None,
            check: false,
            src_mac: None,
            dst_mac: [0x02, 0, 0, 0, 0, 0],
            src_ip: Ipv4Addr::new(198, 18, 0, 1),
            dst_ip: Ipv4Addr::new(198, 19, 0, 1),
            dst_port: 9,
            frames: FRAMES,
            backing: Backing::default(),
        }
    }
}

/// The control side.
#[derive(Debug)]
pub struct Generator {
    name: String,
    config: Config,
    tally: Tally,
    streams: Vec<Arc<Stream>>,
    foreign: Vec<Arc<Count>>,
    cleared: Sums,
    up: bool,
}

/// What became of the frames of a port.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    sent: u64,
    received: u64,
    duplicated: u64,
    reordered: u64,
    late: u64,
    damaged: u64,
    foreign: u64,
}

impl Generator {
    /// A generator, not started.
    ///
    /// # Errors
    /// When a number of the configuration is out of range.
    pub fn new(name: &str, config: Config) -> Result<Generator, PortError> {
        let wrong = |what: String| Err(PortError::Config { port: name.to_owned(), what });
        if config.flows == 0 || config.flows > MAX_FLOWS {
            return wrong(format!("flows={} is not in 1..={MAX_FLOWS}", config.flows));
        }
        if config.sizes.is_empty() || config.sizes.len() > MAX_SIZES {
            return wrong(format!("{} sizes are not 1 to {MAX_SIZES}", config.sizes.len()));
        }
        if let Some(size) = config.sizes.iter().find(|&&s| !(MIN_SIZE..=MAX_SIZE).contains(&s)) {
            return wrong(format!("size={size} is not in {MIN_SIZE}..={MAX_SIZE} bytes"));
        }
        if config.rate == Some(0) {
            return wrong("rate=0 sends nothing; leave it out for no limit".into());
        }
        Ok(Generator {
            name: name.to_owned(),
            config,
            tally: Tally::default(),
            streams: Vec::new(),
            foreign: Vec::new(),
            cleared: Sums::default(),
            up: false,
        })
    }

    fn queue(&self, index: u16, queues: u16) -> Result<GeneratorQueue, PortError> {
        let config = &self.config;
        let addresses = Addresses {
            src_mac: config.src_mac.unwrap_or(self.mac()),
            dst_mac: config.dst_mac,
            src_ip: config.src_ip,
            dst_ip: config.dst_ip,
            dst_port: config.dst_port,
        };
        let flows = Flows::share(config.flows, index, queues);
        let stream = Stream::new(&config.sizes, addresses, flows, config.check).ok_or_else(|| {
            let what = "65536 generator queues are alive, the most there can be".to_owned();
            PortError::Config { port: self.name.clone(), what }
        })?;
        let share = |all: u64| {
            let (queues, index) = (u64::from(queues), u64::from(index));
            all / queues + u64::from(index < all % queues)
        };
        let largest = *config.sizes.iter().max().expect("not empty");
        Ok(GeneratorQueue {
            pool: frames::packets(&self.name, config.frames, largest, config.backing)?,
            stream,
            pace: Pace::new(config.rate.map(|rate| rate as f64 / f64::from(queues))),
            limit: config.count.map_or(u64::MAX, share),
            check: config.check.then(|| (Judge::default(), vec![0; MAX_FRAME as usize])),
            foreign: Arc::default(),
            done: Batch::default(),
            counters: Arc::default(),
        })
    }

    fn sums(&self) -> Sums {
        let mut all = Sums::default();
        // Relaxed: counts order nothing. Arrivals are read first: they are never more than were sent.
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        for stream in &self.streams {
            all.received += get(&stream.received);
            all.duplicated += get(&stream.duplicated);
            all.reordered += get(&stream.reordered);
            all.late += get(&stream.late);
            all.damaged += get(&stream.damaged);
            all.sent += stream.sent.get();
        }
        all.foreign = self.foreign.iter().map(|count| count.get()).sum();
        all
    }
}

impl Port for Generator {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_generator"
    }

    fn caps(&self) -> Caps {
        // An open checksum is completed in the copy that is judged.
        Caps {
            mtu: MAX_FRAME - 18,
            queues: MAX_QUEUE_PAIRS,
            checksum: true,
            segmentation: false,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        local_mac(&self.name)
    }

    fn link(&self) -> Link {
        Link { up: self.up, speed: 0 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let mut started: Vec<Box<dyn Queue>> = Vec::new();
        let (mut streams, mut foreign) = (Vec::new(), Vec::new());
        for index in 0..queues {
            let queue = self.queue(index, queues)?;
            streams.push(queue.stream.clone());
            foreign.push(queue.foreign.clone());
            started.push(Box::new(queue));
        }
        self.tally = Tally::of(&started);
        (self.streams, self.foreign, self.cleared) = (streams, foreign, Sums::default());
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

    /// With `check`: `sent`, `returned` (undamaged, each number once), `lost` (sent and not returned:
    /// exact when nothing is on its way any more), `duplicated`, `reordered` (returned after a later
    /// one of its flow), `late` (after more than 2^20 later ones; counted as lost), `damaged` (ours,
    /// but not as sent; counted as lost) and `foreign` (not ours, or damaged beyond recognition).
    fn xstats(&self) -> Vec<(String, u64)> {
        if !self.config.check {
            return Vec::new();
        }
        let (now, then) = (self.sums(), self.cleared);
        let (sent, returned) = (now.sent - then.sent, now.received - then.received);
        [
            ("sent", sent),
            ("returned", returned),
            ("lost", sent.saturating_sub(returned)),
            ("duplicated", now.duplicated - then.duplicated),
            ("reordered", now.reordered - then.reordered),
            ("late", now.late - then.late),
            ("damaged", now.damaged - then.damaged),
            ("foreign", now.foreign - then.foreign),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
        self.cleared = self.sums();
    }
}

struct GeneratorQueue {
    pool: Pool,
    stream: Arc<Stream>,
    pace: Pace,
    /// Frames to send in all.
    limit: u64,
    /// Judges a copy of each frame that comes back.
    check: Option<(Judge, Vec<u8>)>,
    foreign: Arc<Count>,
    done: Batch<Loan>,
    counters: Arc<Counters>,
}

impl GeneratorQueue {
    /// Judges the first packet of `batch`, `n` buffers.
    fn judge(&mut self, batch: &Batch<Buf>, n: usize) {
        let Some((judge, copy)) = &mut self.check else { return };
        let mut len = 0;
        for buf in batch.iter().take(n) {
            len += buf.read(0, &mut copy[len..]);
        }
        let frame = &mut copy[..len];
        let offload = batch.front().map_or(Offload::default(), |buf| buf.offload);
        // Numbers that do not fit leave the checksum open, and the frame is found damaged.
        let _ = offload::complete_slice(&offload, frame);
        if judge.judge(frame) == Verdict::Foreign {
            self.foreign.add(1);
        }
    }
}

impl Queue for GeneratorQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let first = self.stream.sent.get();
        let left = usize::try_from(self.limit - first).unwrap_or(usize::MAX);
        let want = out.burst().min(out.room()).min(self.pool.free()).min(left);
        let n = self.pace.due(want);
        let mut bytes = 0;
        for seq in first..first + n as u64 {
            let Some(mut buf) = self.pool.take() else { break };
            let (head, rest) = self.stream.frame(seq);
            let len = (HEAD + rest.len()) as u32;
            buf.truncate(len);
            buf.write(0, &head);
            buf.write(HEAD as u32, rest);
            bytes += u64::from(len);
            out.push(buf);
        }
        self.stream.sent.add(n as u64);
        self.pace.sent(n);
        self.counters.rx_packets.add(n as u64);
        self.counters.rx_bytes.add(bytes);
        n
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut packets, mut sum) = (0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            self.judge(batch, n);
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

    fn sleep<'q>(&'q mut self, _: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        // When all is sent, it has no work of its own.
        self.stream.sent.get() == self.limit
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::PageSize;
    use std::collections::HashMap;

    const BASE: Backing = Backing { page: PageSize::Base, node: None };

    fn start(config: Config, queues: u16) -> (Generator, Vec<Box<dyn Queue>>) {
        let mut port = Generator::new("gen0", Config { backing: BASE, ..config }).unwrap();
        let queues = port.start(queues).unwrap();
        (port, queues)
    }

    fn sent_home(from: &mut dyn Queue, to: &mut dyn Queue, batch: &mut Batch<Buf>) {
        to.tx(batch);
        let mut loans = Batch::default();
        to.reap(&mut loans);
        from.settle(&mut loans);
    }

    fn xstats(port: &Generator) -> HashMap<String, u64> {
        port.xstats().into_iter().collect()
    }

    #[test]
    fn a_loop_loses_nothing_and_each_fault_is_counted_once() {
        let config =
            Config { check: true, flows: 10, sizes: IMIX.into(), count: Some(1000), ..Config::default() };
        let (mut port, mut queues) = start(config, 1);
        let queue = &mut *queues[0];
        let (mut batch, mut loans, mut total) = (Batch::new(32), Batch::default(), 0);
        let mut turn = 0;
        while {
            total += queue.rx(&mut batch);
            !batch.is_empty()
        } {
            turn += 1;
            match turn {
                // Loss: the first of the burst goes home unsent.
                2 => {
                    drop_packet(&mut batch, &mut loans);
                }
                // Damage.
                3 => {
                    let last = batch.get(0).unwrap().peek::<u8>(59).unwrap();
                    assert!(batch.get_mut(0).unwrap().poke(59, !last));
                }
                // Order: two flows of ten; 0 goes after all others of the burst (3 or 4 of its flow).
                4 => {
                    let first = batch.pop_front().unwrap();
                    batch.push(first);
                }
                // Foreign.
                5 => assert!(batch.get_mut(0).unwrap().poke(12, 0x0608u16)),
                _ => {}
            }
            queue.tx(&mut batch);
            queue.reap(&mut loans);
            queue.settle(&mut loans);
        }
        assert_eq!((total, queue.lent(), queue.held()), (1000, 0, 0));
        assert!(queue.sleep(&mut |_| panic!("nothing to wait for")));
        let found = xstats(&port);
        let want = [
            ("sent", 1000),
            ("returned", 997),
            ("lost", 3),
            ("duplicated", 0),
            ("reordered", 1),
            ("late", 0),
            ("damaged", 1),
            ("foreign", 1),
        ];
        for (name, value) in want {
            assert_eq!(found[name], value, "{name}");
        }
        let stats = port.stats()[0];
        assert_eq!((stats.rx_packets, stats.tx_packets), (1000, 999));
        port.clear_stats();
        assert!(xstats(&port).values().all(|&v| v == 0));
    }

    #[test]
    fn another_generator_checks_what_this_one_sent() {
        let (a, mut from) = start(Config { check: true, count: Some(64), ..Config::default() }, 1);
        let (b, mut to) = start(Config { check: true, count: Some(0), ..Config::default() }, 1);
        let mut batch = Batch::new(64);
        from[0].rx(&mut batch);
        sent_home(&mut *from[0], &mut *to[0], &mut batch);
        let (a, b) = (xstats(&a), xstats(&b));
        assert_eq!((a["returned"], a["lost"], b["sent"], b["foreign"]), (64, 0, 0, 0));
    }

    #[test]
    fn queues_share_count_and_stay_within_their_frames() {
        let (port, mut queues) = start(Config { count: Some(10), frames: 3, ..Config::default() }, 4);
        let mut held = Vec::new();
        for queue in &mut queues {
            let mut batch = Batch::new(32);
            held.push((queue.rx(&mut batch), batch));
        }
        assert_eq!(held.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3, 3, 2, 2]);
        let mut batch = Batch::new(32);
        assert_eq!(queues[0].rx(&mut batch), 0, "three frames, all out");
        for (i, (_, mut batch)) in held.into_iter().enumerate() {
            let [from, to] = queues.get_disjoint_mut([i, (i + 1) % 4]).unwrap();
            sent_home(&mut **from, &mut **to, &mut batch);
        }
        assert_eq!(port.stats().iter().map(|s| s.rx_packets).sum::<u64>(), 10);
        assert!(port.xstats().is_empty());
    }

    #[test]
    fn a_rate_is_kept() {
        let (_, mut queues) = start(Config { rate: Some(10_000), ..Config::default() }, 2);
        let start = std::time::Instant::now();
        let (mut batch, mut n) = (Batch::new(32), 0);
        while start.elapsed().as_millis() < 100 {
            n += queues[0].rx(&mut batch);
            let mut loans = Batch::default();
            while let Some(buf) = batch.pop_front() {
                loans.push(buf.finish(0));
            }
            queues[0].settle(&mut loans);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        // Half of the port's rate; a host that stalls loses some, none are added.
        let due = start.elapsed().as_micros() as usize / 200;
        assert!(n <= due + 1 && n > due / 4, "{n} of {due}");
    }

    #[test]
    fn wrong_numbers_are_named() {
        for (config, what) in [
            (Config { flows: 0, ..Config::default() }, "flows=0 is not in 1..=1000000"),
            (Config { sizes: vec![64, 59], ..Config::default() }, "size=59 is not in 60..=16384 bytes"),
            (Config { sizes: vec![], ..Config::default() }, "0 sizes are not 1 to 64"),
            (
                Config { rate: Some(0), ..Config::default() },
                "rate=0 sends nothing; leave it out for no limit",
            ),
        ] {
            let why = Generator::new("gen0", config).unwrap_err().to_string();
            assert_eq!(why, format!("port gen0: {what}"));
        }
    }
}
