//! A port on capture files: receives what one file holds, at a rate, once or over and over; writes what
//! it is sent to another. And [`Tap`], which records what passes any port.

mod capture;
mod record;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hugepages::{Backing, Buf, Loan, Pool};

use crate::batch::Batch;
use crate::offload;
use crate::port::frames::{self, FRAMES, local_mac};
use crate::port::pace::Pace;
use crate::port::{Caps, Counters, Link, Port, PortError, Queue, Stats, Tally, drop_packet};
use crate::spec::net::MAX_FRAME;

use capture::Capture;
pub use capture::MAX_BYTES;
pub use record::{Recorder, Tap};

/// Bytes of a frame of the pool; longer packets take several.
const FRAME: u32 = 2048 + 64;

/// What a pcap port is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// File (pcap or pcapng) whose packets are received; `None`: none are.
    pub rx: Option<PathBuf>,
    /// Begins again at the end of it.
    pub looped: bool,
    /// Packets per second; `None`: as many as are asked for. The times in the file do not count.
    pub rate: Option<u64>,
    /// File (pcap) to which sent packets are written, made anew at each start; `None`: they are
    /// dropped.
    pub tx: Option<PathBuf>,
    /// Frames for received packets.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config { rx: None, looped: false, rate: None, tx: None, frames: FRAMES, backing: Backing::default() }
    }
}

/// The control side.
#[derive(Debug)]
pub struct Pcap {
    name: String,
    config: Config,
    capture: Arc<Capture>,
    recorder: Option<Arc<Mutex<Recorder>>>,
    tally: Tally,
    up: bool,
}

impl Pcap {
    /// A pcap port, not started; the packets to be received are read now.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no Ethernet frame.
    pub fn new(name: &str, config: Config) -> Result<Pcap, PortError> {
        if config.rate == Some(0) {
            let what = "rate=0 receives nothing; leave it out for no limit".to_owned();
            return Err(PortError::Config { port: name.to_owned(), what });
        }
        let capture = match &config.rx {
            Some(path) => load(name, path)?,
            None => Capture::default(),
        };
        Ok(Pcap {
            name: name.to_owned(),
            config,
            capture: Arc::new(capture),
            recorder: None,
            tally: Tally::default(),
            up: false,
        })
    }
}

fn load(name: &str, path: &Path) -> Result<Capture, PortError> {
    let capture = Capture::load(path).map_err(|source| PortError::Io {
        port: name.to_owned(),
        what: format!("reading {}", path.display()),
        source,
    })?;
    if capture.skipped > 0 {
        tracing::warn!("port {name}: {} packets of {} are no frames", capture.skipped, path.display());
    }
    if capture.cut {
        tracing::warn!("port {name}: {} ends within a packet", path.display());
    }
    Ok(capture)
}

impl Port for Pcap {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_pcap"
    }

    fn caps(&self) -> Caps {
        // Open checksums are completed in what is written; packets to be segmented are written whole.
        Caps {
            mtu: MAX_FRAME - 18,
            queues: 1,
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

    fn start(&mut self, _: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        self.recorder = match &self.config.tx {
            Some(path) => {
                let recorder = Recorder::create(path).map_err(|source| PortError::Io {
                    port: self.name.clone(),
                    what: format!("making {}", path.display()),
                    source,
                })?;
                Some(Arc::new(Mutex::new(recorder)))
            }
            None => None,
        };
        let pieces = MAX_FRAME.div_ceil(FRAME) as usize;
        let frames = if self.config.rx.is_some() { self.config.frames.max(pieces) } else { 1 };
        let queue = PcapQueue {
            pool: frames::packets(&self.name, frames, FRAME, self.config.backing)?,
            capture: self.capture.clone(),
            next: 0,
            looped: self.config.looped,
            pace: Pace::new(self.config.rate.map(|rate| rate as f64)),
            recorder: self.recorder.clone(),
            copy: vec![0; MAX_FRAME as usize],
            done: Batch::default(),
            counters: Arc::default(),
        };
        let started: Vec<Box<dyn Queue>> = vec![Box::new(queue)];
        self.tally = Tally::of(&started);
        self.up = true;
        Ok(started)
    }

    fn stop(&mut self, _: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        self.up = false;
        let Some(recorder) = self.recorder.take() else { return Ok(()) };
        recorder.lock().expect("no holder panics").flush().map_err(|source| PortError::Io {
            port: self.name.clone(),
            what: "writing what was sent".to_owned(),
            source,
        })
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

struct PcapQueue {
    pool: Pool,
    capture: Arc<Capture>,
    /// Packet of the capture that is received next.
    next: usize,
    looped: bool,
    pace: Pace,
    recorder: Option<Arc<Mutex<Recorder>>>,
    /// One packet in one piece, to be written.
    copy: Vec<u8>,
    done: Batch<Loan>,
    counters: Arc<Counters>,
}

impl PcapQueue {
    /// Lends a copy of the next packet; its bytes. `None`: there is none, or no room for it.
    fn lend(&mut self, out: &mut Batch<Buf>) -> Option<usize> {
        let packet = self.capture.get(self.next)?;
        let pieces = packet.len().div_ceil(FRAME as usize);
        if pieces > out.room() || pieces > self.pool.free() {
            return None;
        }
        let mut rest = packet;
        while !rest.is_empty() {
            let mut buf = self.pool.take().expect("counted");
            let n = buf.write(0, rest);
            buf.truncate(n as u32);
            rest = &rest[n..];
            buf.set_more(!rest.is_empty());
            out.push(buf);
        }
        self.next += 1;
        if self.looped && self.next == self.capture.len() {
            self.next = 0;
        }
        Some(packet.len())
    }

    /// Copies the first packet of `batch`, `n` buffers, and completes its checksum; `None`: it is
    /// longer than any frame, or its checksum lies outside.
    fn copied(&mut self, batch: &Batch<Buf>, n: usize, bytes: u32) -> Option<&[u8]> {
        let packet = self.copy.get_mut(..bytes as usize)?;
        let mut len = 0;
        for buf in batch.iter().take(n) {
            len += buf.read(0, &mut packet[len..]);
        }
        offload::complete_slice(&batch.front()?.offload, packet).ok()?;
        Some(packet)
    }
}

impl Queue for PcapQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let due = self.pace.due(out.burst());
        let (mut packets, mut bytes) = (0, 0);
        while packets < due {
            let Some(n) = self.lend(out) else { break };
            packets += 1;
            bytes += n as u64;
        }
        self.pace.sent(packets);
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(bytes);
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let recorder = self.recorder.clone();
        let mut recorder = recorder.as_ref().map(|recorder| recorder.lock().expect("no holder panics"));
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (mut taken, mut written, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            let ok = match (&mut recorder, self.copied(batch, n, bytes)) {
                (Some(recorder), Some(packet)) => recorder.add(at, packet, bytes),
                (None, _) => true,
                (Some(_), None) => false,
            };
            if ok {
                written += 1;
                sum += u64::from(bytes);
            }
            drop_packet(batch, &mut self.done);
            taken += 1;
        }
        self.counters.tx_packets.add(written);
        self.counters.tx_bytes.add(sum);
        self.counters.tx_errors.add(taken - written);
        taken as usize
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
        // At the end of the file it has no work of its own.
        self.next == self.capture.len()
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::generator::{self, Generator, IMIX};
    use crate::spec::net::HDR_F_NEEDS_CSUM;
    use hugepages::{Offload, PageSize};

    const BASE: Backing = Backing { page: PageSize::Base, node: None };

    /// A path that is removed again.
    struct Path(PathBuf);

    impl Path {
        fn new(name: &str) -> Path {
            Path(std::env::temp_dir().join(format!("hotring-{}-{name}", std::process::id())))
        }
    }

    impl Drop for Path {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn pcap(config: Config) -> Pcap {
        Pcap::new("pcap0", Config { backing: BASE, ..config }).unwrap()
    }

    fn traffic(count: u64, sizes: &[u32]) -> Generator {
        let config = generator::Config {
            count: Some(count),
            sizes: sizes.into(),
            check: true,
            backing: BASE,
            ..Default::default()
        };
        Generator::new("gen0", config).unwrap()
    }

    /// Sends all that one queue gives to the other; how many packets.
    fn pass(from: &mut dyn Queue, to: &mut dyn Queue) -> usize {
        let (mut batch, mut loans, mut total) = (Batch::new(32), Batch::default(), 0);
        loop {
            from.rx(&mut batch);
            if batch.is_empty() {
                return total;
            }
            total += to.tx(&mut batch);
            to.reap(&mut loans);
            from.settle(&mut loans);
        }
    }

    fn xstat(port: &Generator, name: &str) -> u64 {
        port.xstats().into_iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn what_is_written_can_be_received() {
        let path = Path::new("round.pcap");
        let sizes = [&IMIX[..], &[9000, generator::MAX_SIZE]].concat();
        let mut source = traffic(500, &sizes);
        let mut queues = source.start(1).unwrap();
        let mut port = pcap(Config { tx: Some(path.0.clone()), ..Config::default() });
        let mut out = port.start(1).unwrap();
        assert_eq!(pass(&mut *queues[0], &mut *out[0]), 500);
        port.stop(out).unwrap();
        assert_eq!(port.stats()[0].tx_packets, 500);

        let mut port = pcap(Config { rx: Some(path.0.clone()), ..Config::default() });
        let mut back = port.start(1).unwrap();
        assert_eq!(pass(&mut *back[0], &mut *queues[0]), 500);
        assert!(back[0].sleep(&mut |_| panic!("nothing to wait for")));
        assert_eq!((xstat(&source, "returned"), xstat(&source, "reordered")), (500, 0));
        assert_eq!((back[0].lent(), queues[0].held()), (0, 0));
        assert_eq!(port.stats()[0].rx_packets, 500);
    }

    #[test]
    fn a_loop_begins_again() {
        let path = Path::new("loop.pcap");
        let mut source = traffic(10, &[64]);
        let mut queues = source.start(1).unwrap();
        let mut port = pcap(Config { tx: Some(path.0.clone()), ..Config::default() });
        let mut out = port.start(1).unwrap();
        pass(&mut *queues[0], &mut *out[0]);
        port.stop(out).unwrap();
        let mut port = pcap(Config { rx: Some(path.0.clone()), looped: true, ..Config::default() });
        let mut back = port.start(1).unwrap();
        let (mut batch, mut loans) = (Batch::new(25), Batch::default());
        assert_eq!(back[0].rx(&mut batch), 25);
        queues[0].tx(&mut batch);
        queues[0].reap(&mut loans);
        back[0].settle(&mut loans);
        assert_eq!((xstat(&source, "returned"), xstat(&source, "duplicated")), (10, 15));
    }

    #[test]
    fn an_open_checksum_is_completed_in_the_file() {
        let path = Path::new("csum.pcap");
        let mut source = traffic(1, &[60]);
        let mut queues = source.start(1).unwrap();
        let mut batch = Batch::default();
        queues[0].rx(&mut batch);
        let frame = batch.get_mut(0).unwrap();
        let want = frame.peek::<[u8; 2]>(40).unwrap();
        // What a guest leaves: the sum of the pseudo header.
        let mut sum = offload::Sum::default();
        let mut ends = [0; 8];
        frame.read(26, &mut ends);
        sum.add(&ends);
        sum.add_word(17);
        sum.add_word(26);
        assert!(frame.poke(40, sum.partial().to_be_bytes()));
        frame.offload =
            Offload { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
        let mut port = pcap(Config { tx: Some(path.0.clone()), ..Config::default() });
        let mut out = port.start(1).unwrap();
        assert_eq!(out[0].tx(&mut batch), 1);
        let mut loans = Batch::default();
        out[0].reap(&mut loans);
        queues[0].settle(&mut loans);
        port.stop(out).unwrap();
        let capture = Capture::load(&path.0).unwrap();
        assert_eq!(capture.get(0).unwrap()[40..42], want);
    }

    #[test]
    fn a_tap_records_both_ways_and_changes_nothing() {
        let path = Path::new("tap.pcap");
        let mut port = Tap::new(Box::new(traffic(40, &IMIX)), &path.0).unwrap();
        let mut queues = port.start(2).unwrap();
        let [a, b] = queues.get_disjoint_mut([0, 1]).unwrap();
        assert_eq!(pass(&mut **a, &mut **b) + pass(&mut **b, &mut **a), 40);
        assert_eq!((a.lent(), b.held()), (0, 0));
        port.stop(queues).unwrap();
        assert_eq!((port.name(), port.driver()), ("gen0", "net_generator"));
        let returned = port.xstats().into_iter().find(|(n, _)| n == "returned").unwrap().1;
        assert_eq!(returned, 40);
        // Each packet is there twice: received, and sent.
        let capture = Capture::load(&path.0).unwrap();
        assert_eq!(capture.len(), 80);
        let mut all: Vec<&[u8]> = (0..80).map(|i| capture.get(i).unwrap()).collect();
        all.sort_unstable();
        assert!(all.chunks(2).all(|pair| pair[0] == pair[1]));
        // A port that was stopped starts again.
        assert_eq!(port.start(1).unwrap().len(), 1);
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let nowhere = PathBuf::from("/nowhere/a.pcap");
        let config = Config { rx: Some(nowhere.clone()), ..Config::default() };
        let why = Pcap::new("pcap0", config).unwrap_err().to_string();
        assert!(why.starts_with("port pcap0: reading /nowhere/a.pcap: No such file"), "{why}");
        let why = pcap(Config { tx: Some(nowhere), ..Config::default() }).start(1).err().unwrap();
        assert!(why.to_string().starts_with("port pcap0: making /nowhere/a.pcap: No such file"), "{why}");
    }

    #[test]
    fn a_full_disk_counts_errors_and_fails_the_stop() {
        let mut source = traffic(1000, &[9000]);
        let mut queues = source.start(1).unwrap();
        let mut port = pcap(Config { tx: Some("/dev/full".into()), ..Config::default() });
        let mut out = port.start(1).unwrap();
        assert_eq!(pass(&mut *queues[0], &mut *out[0]), 1000);
        let stats = port.stats()[0];
        assert!(stats.tx_errors > 800 && stats.tx_packets + stats.tx_errors == 1000, "{stats:?}");
        let why = port.stop(out).unwrap_err().to_string();
        assert!(why.contains("/dev/full is incomplete"), "{why}");
    }
}
