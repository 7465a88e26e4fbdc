//! A stage on a real worker, between a queue that lends given frames and one that keeps what is sent.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Lender, Loan, Map, Offload, PageSize, Pool, Table};
use pmd::port::Counters;
use pmd::worker::{Config, QueueId, Worker};
use pmd::{Batch, Queue};

use super::{Route, Routes, csum::Checks, queue_id, stage};
use crate::cli::{Mode, Options};

/// Of the port that packets leave by.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
/// Of whoever is behind it.
pub(crate) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
const BASE: Backing = Backing { page: PageSize::Base, node: None };
const WAIT: Duration = Duration::from_secs(10);

/// A frame and what is left to do to it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

/// `len` bytes that differ by `seed`, with an EtherType of nobody.
pub(crate) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut out: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    if len >= 14 {
        out[12..14].copy_from_slice(&[0x88, 0xb5]);
    }
    out
}

/// What the command line gives by default, in a mode.
pub(crate) fn options(mode: Mode) -> Options {
    Options { forward_mode: mode, ..crate::cli::defaults() }
}

/// A batch to be filled by hand.
pub(crate) struct Bench {
    pub(crate) pool: Pool,
    pub(crate) batch: Batch<Buf>,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench { pool: Pool::new(64, 2048, BASE).unwrap().0, batch: Batch::default() }
    }

    /// Adds a packet, in buffers of `cut` bytes (0: in one).
    pub(crate) fn push(&mut self, bytes: &[u8], cut: usize) {
        let pieces: Vec<_> = bytes.chunks(if cut == 0 { bytes.len() } else { cut }).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let mut buf = self.pool.take().unwrap();
            buf.truncate(piece.len() as u32);
            buf.write(0, piece);
            buf.set_more(i + 1 < pieces.len());
            self.batch.push(buf);
        }
    }

    pub(crate) fn settle(mut self) {
        while let Some(buf) = self.batch.pop_front() {
            self.pool.settle(buf.finish(0));
        }
        assert_eq!(self.pool.out(), 0);
    }
}

/// Lends frames read-only, as a guest's, in buffers of `cut` bytes.
struct Source {
    lender: Lender,
    /// Address, length, offload and whether the packet goes on, last first.
    left: Vec<(u64, u32, Offload, bool)>,
}

impl Source {
    fn new(frames: &[Sent], cut: usize) -> Source {
        let size = frames.iter().map(|f| f.bytes.len()).sum::<usize>().max(1);
        let lender = Lender::new(Table::of(Map::shared(size, BASE).unwrap()));
        let (mut at, mut left) = (0, Vec::new());
        for frame in frames {
            let pieces: Vec<_> = frame.bytes.chunks(if cut == 0 { frame.bytes.len() } else { cut }).collect();
            for (i, piece) in pieces.iter().enumerate() {
                let mut buf = lender.lend_writable(at, piece.len() as u32, 0).unwrap();
                buf.write(0, piece);
                lender.settle(buf.finish(0));
                left.push((at, piece.len() as u32, frame.offload, i + 1 < pieces.len()));
                at += piece.len() as u64;
            }
        }
        left.reverse();
        Source { lender, left }
    }
}

impl Queue for Source {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let mut packets = 0;
        while packets < out.burst() && !self.left.is_empty() {
            let pieces = 1 + self.left.iter().rev().take_while(|piece| piece.3).count();
            if pieces > out.room() {
                break;
            }
            for (at, len, offload, more) in self.left.split_off(self.left.len() - pieces).into_iter().rev() {
                let mut buf = self.lender.lend(at, len, 0).unwrap();
                (buf.offload, _) = (offload, buf.set_more(more));
                out.push(buf);
            }
            packets += 1;
        }
        packets
    }
    fn tx(&mut self, _: &mut Batch<Buf>) -> usize {
        0
    }
    fn reap(&mut self, _: &mut Batch<Loan>) -> usize {
        0
    }
    fn settle(&mut self, loans: &mut Batch<Loan>) {
        while loans.front().is_some_and(|loan| loan.owner() == self.lender.owner()) {
            self.lender.settle(loans.pop_front().unwrap());
        }
    }
    fn lent(&self) -> u32 {
        self.lender.out()
    }
    fn held(&self) -> u32 {
        0
    }
    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }
}

/// Keeps the bytes of up to `most` packets.
struct Sink {
    got: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
    part: Vec<u8>,
    done: Batch<Loan>,
}

impl Queue for Sink {
    fn rx(&mut self, _: &mut Batch<Buf>) -> usize {
        0
    }
    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let mut packets = 0;
        let mut got = self.got.lock().unwrap();
        while got.len() < self.most && batch.packet_at(0).0 > 0 && batch.packet_at(0).0 <= self.done.room() {
            while let Some(buf) = batch.pop_front() {
                let at = self.part.len();
                self.part.resize(at + buf.len() as usize, 0);
                buf.read(0, &mut self.part[at..]);
                let more = buf.more();
                self.done.push(buf.finish(0));
                if !more {
                    break;
                }
            }
            got.push(std::mem::take(&mut self.part));
            packets += 1;
        }
        packets
    }
    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.done.move_to(done)
    }
    fn settle(&mut self, _: &mut Batch<Loan>) {}
    fn lent(&self) -> u32 {
        0
    }
    fn held(&self) -> u32 {
        self.done.len() as u32
    }
    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }
}

/// What a mode makes of frames, which are lent in buffers of `cut` bytes (0: in one).
pub(crate) fn run(mode: Mode, frames: &[Vec<u8>], cut: usize) -> Vec<Vec<u8>> {
    run_with(&options(mode), frames, cut, usize::MAX)
}

/// The same with other options; up to `most` packets.
pub(crate) fn run_with(options: &Options, frames: &[Vec<u8>], cut: usize, most: usize) -> Vec<Vec<u8>> {
    let sent = |bytes: &Vec<u8>| Sent { bytes: bytes.clone(), offload: Offload::default() };
    go(options, &frames.iter().map(sent).collect::<Vec<_>>(), cut, most).0
}

/// What a mode makes of frames with offloads, and the wrong checksums it found.
pub(crate) fn run_checked(mode: Mode, frames: &[Sent], cut: usize) -> (Vec<Vec<u8>>, (u64, u64)) {
    go(&options(mode), frames, cut, usize::MAX)
}

fn go(options: &Options, frames: &[Sent], cut: usize, most: usize) -> (Vec<Vec<u8>>, (u64, u64)) {
    let (from, to) = (queue_id(0, 0), queue_id(1, 0));
    let checks = Arc::new(Checks::default());
    let routes = Routes::new(vec![Route { from, to, mac: MAC, peer: PEER }]);
    let config = Config { backing: BASE, frames: 512, large_frames: 8, ..Config::default() };
    let worker = Worker::spawn(config, stage(options, routes, &checks, 0)).unwrap();
    let got = Arc::default();
    let sink = Sink { got: Arc::clone(&got), most, part: Vec::new(), done: Batch::default() };
    let source = worker.attach(from, Box::new(Source::new(frames, cut))).unwrap();
    worker.attach(to, Box::new(sink)).unwrap();
    worker.start().unwrap();
    let made = matches!(options.forward_mode, Mode::Txonly | Mode::Flowgen);
    let deadline = Instant::now() + WAIT;
    while source.stats().rx_packets < frames.len() as u64 || (made && got.lock().unwrap().len() < most) {
        assert!(Instant::now() < deadline, "the frames do not come out");
        std::thread::yield_now();
    }
    let home = |id: QueueId| worker.recall(id, WAIT).unwrap().lent();
    worker.pause().unwrap();
    assert_eq!((home(from), home(to)), (0, 0));
    let stopped = worker.stop(WAIT).unwrap();
    assert!(stopped.report.clean(), "{}", stopped.report);
    let got = std::mem::take(&mut *got.lock().unwrap());
    (got, checks.bad(0))
}
