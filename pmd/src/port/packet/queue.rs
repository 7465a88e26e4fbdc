//! The data side: one socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hugepages::{Buf, Loan, Monitor, io as frame_io};
use rustix::io::Errno;

use super::ring::{Got, HDR, Ring};
use crate::batch::Batch;
use crate::port::{Counters, Queue, drop_packet};
use crate::spec::net::HDR_F_NEEDS_CSUM;

/// One queue of an interface.
pub(super) struct PacketQueue {
    fd: Arc<OwnedFd>,
    ring: Ring,
    done: Batch<Loan>,
    /// Of the packets that are being sent.
    headers: Vec<[u8; HDR as usize]>,
    /// The interface is gone; said by whoever notices, read by the control side.
    gone: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

impl PacketQueue {
    pub(super) fn new(fd: Arc<OwnedFd>, ring: Ring, gone: Arc<AtomicBool>) -> PacketQueue {
        let headers = Vec::with_capacity(frame_io::MAX_PACKETS);
        PacketQueue { fd, ring, done: Batch::default(), headers, gone, counters: Arc::default() }
    }

    /// Sends packets at the front of `batch`: how many, and what the kernel said about the first, if none.
    fn send(&mut self, batch: &Batch<Buf>) -> Result<usize, Errno> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Errno::NXIO);
        }
        self.headers.clear();
        let mut first = true;
        for buf in batch.iter() {
            if first {
                if self.headers.len() == frame_io::MAX_PACKETS {
                    break;
                }
                let mut offload = buf.offload;
                // virtio 1.3 §5.1.6.2: a sender sets no other flag.
                offload.flags &= HDR_F_NEEDS_CSUM;
                self.headers.push(zerocopy::transmute!(offload));
            }
            first = !buf.more();
        }
        // An error may be left from before, of an interface that was down, say: once more then.
        match frame_io::send(self.fd.as_fd(), &self.headers, batch.iter()) {
            Err(Errno::NETDOWN) => frame_io::send(self.fd.as_fd(), &self.headers, batch.iter()),
            sent => sent,
        }
    }
}

impl Queue for PacketQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        let (mut packets, mut sum, mut errors) = (0, 0, 0);
        while packets < out.burst() && out.room() > 0 {
            match self.ring.take(out) {
                Got::Frame(bytes) => {
                    packets += 1;
                    sum += u64::from(bytes);
                }
                Got::Nothing => {}
                Got::Damaged => errors += 1,
                Got::Empty => break,
            }
        }
        if packets > 0 {
            self.counters.rx_packets.add(packets as u64);
            self.counters.rx_bytes.add(sum);
        }
        if errors > 0 {
            self.counters.rx_errors.add(errors);
        }
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        // What was sent needs room for its receipts.
        while !batch.is_empty() && self.done.room() >= batch.len() {
            let n = match self.send(batch) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(e) => {
                    if matches!(e, Errno::NXIO | Errno::NODEV) {
                        self.gone.store(true, Ordering::Relaxed);
                    }
                    self.counters.tx_errors.add(1);
                    drop_packet(batch, &mut self.done);
                    taken += 1;
                    continue;
                }
            };
            for _ in 0..n {
                sum += u64::from(batch.packet_at(0).1);
                drop_packet(batch, &mut self.done);
            }
            sent += n as u64;
            taken += n;
        }
        if taken > 0 {
            self.counters.tx_packets.add(sent);
            self.counters.tx_bytes.add(sum);
        }
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        if self.done.is_empty() { 0 } else { self.done.move_to(done) }
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.ring.settle(loans);
    }

    fn lent(&self) -> u32 {
        self.ring.lent()
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn rest(&mut self, monitor: &mut Monitor) -> bool {
        self.done.is_empty() && self.ring.monitor(monitor)
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        if self.ring.any() {
            return false;
        }
        if !self.gone.load(Ordering::Relaxed) {
            wait(self.fd.as_fd());
        }
        true
    }

    fn wake(&mut self, rung: bool) {
        if rung {
            // An interface that was switched off leaves an error, which would be readable for ever.
            let _ = rustix::net::sockopt::socket_error(&self.fd);
        }
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}
