//! Mode `noisy`: forwards like a busy network function, which keeps packets back for a while and looks
//! things up in memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hugepages::Buf;
use pmd::Batch;
use pmd::batch::CAP;
use pmd::worker::{Outbox, QueueId, Stage};

use super::Routes;
use crate::cli::Options;

const LINE: usize = 64;

pub(super) struct Noisy {
    routes: Routes,
    /// By route: buffers kept back.
    kept: Vec<Kept>,
    /// Buffers that a route may keep back; 0: none are.
    room: usize,
    /// After how long what is kept back is sent; zero: when it is pushed out.
    hold: Duration,
    memory: Vec<u8>,
    writes: u32,
    reads: u32,
    reads_writes: u32,
    random: u64,
}

struct Kept {
    bufs: VecDeque<Buf>,
    sent: Instant,
}

impl Noisy {
    pub(super) fn new(routes: Routes, options: &Options) -> Noisy {
        let room = match usize::from(options.noisy_tx_sw_buffer_size) {
            0 => 0,
            // A packet of many buffers must fit.
            size => size.max(CAP),
        };
        let kept = |_| Kept { bufs: VecDeque::with_capacity(room + CAP), sent: Instant::now() };
        Noisy {
            kept: routes.all.iter().map(kept).collect(),
            routes,
            room,
            hold: Duration::from_millis(options.noisy_tx_sw_buffer_flushtime.into()),
            memory: vec![0; (options.noisy_lkup_memory as usize) << 20],
            writes: options.noisy_lkup_num_writes,
            reads: options.noisy_lkup_num_reads,
            reads_writes: options.noisy_lkup_num_reads_writes,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A place in memory, at the begin of a cache line.
    fn place(&mut self) -> usize {
        // xorshift64 (Marsaglia); the product's upper half spreads it without a division.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let lines = (self.memory.len() / LINE) as u128;
        ((u128::from(self.random) * lines) >> 64) as usize * LINE
    }

    /// The look-ups of `packets` packets.
    fn look_up(&mut self, packets: usize) {
        for _ in 0..packets {
            for _ in 0..self.writes {
                let at = self.place();
                self.memory[at] = at as u8;
            }
            for _ in 0..self.reads {
                let at = self.place();
                std::hint::black_box(self.memory[at]);
            }
            for _ in 0..self.reads_writes {
                let at = self.place();
                self.memory[at] = self.memory[at].wrapping_add(1);
            }
        }
    }
}

/// Sends whole packets until at most `room` buffers are kept back.
fn send_down_to(kept: &mut Kept, room: usize, to: QueueId, out: &mut Outbox) {
    let mut whole = true;
    while kept.bufs.len() > room || !whole {
        let Some(buf) = kept.bufs.pop_front() else { break };
        whole = !buf.more();
        out.send(to, buf);
    }
}

impl Stage for Noisy {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        if self.writes + self.reads + self.reads_writes > 0 {
            self.look_up(batch.packets());
        }
        let Some((i, route)) = self.routes.find(from) else { return };
        if self.room == 0 {
            return out.send_all(route.to, batch);
        }
        let kept = &mut self.kept[i];
        let before = kept.bufs.len();
        while let Some(buf) = batch.pop_front() {
            kept.bufs.push_back(buf);
        }
        if kept.bufs.len() > self.room {
            send_down_to(kept, self.room, route.to, out);
            kept.sent = Instant::now();
        } else if before == 0 {
            kept.sent = Instant::now();
        }
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        if self.room == 0 || self.hold.is_zero() {
            return false;
        }
        let mut any = false;
        for (kept, route) in self.kept.iter_mut().zip(&self.routes.all) {
            any |= !kept.bufs.is_empty();
            if !kept.bufs.is_empty() && kept.sent.elapsed() >= self.hold {
                send_down_to(kept, 0, route.to, out);
                kept.sent = Instant::now();
            }
        }
        any
    }

    fn flush(&mut self, out: &mut Outbox) {
        for (kept, route) in self.kept.iter_mut().zip(&self.routes.all) {
            send_down_to(kept, 0, route.to, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, options, run_with};
    use crate::cli::{Mode, Options};

    #[test]
    fn packets_come_out_in_order_and_none_is_lost() {
        let frames: Vec<_> = (0..600).map(|i| frame(60 + i % 700, i as u8)).collect();
        let base = options(Mode::Noisy);
        let looks = Options {
            noisy_lkup_memory: 1,
            noisy_lkup_num_reads: 2,
            noisy_lkup_num_writes: 2,
            noisy_lkup_num_reads_writes: 2,
            ..base.clone()
        };
        let keeps = Options { noisy_tx_sw_buffer_size: 100, ..base.clone() };
        let flushes = Options { noisy_tx_sw_buffer_flushtime: 1, ..keeps.clone() };
        for options in [base, looks, keeps, flushes] {
            for cut in [0, 100] {
                assert_eq!(run_with(&options, &frames, cut, frames.len()), frames);
            }
        }
    }
}
