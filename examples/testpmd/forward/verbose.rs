//! `set verbose 1`: prints what is received before the mode sees it.

use std::io::Write;

use hugepages::Buf;
use pmd::Batch;
use pmd::worker::{Outbox, QueueId, Stage};

use super::port_queue;
use crate::text::packets;

pub(super) struct Verbose {
    pub(super) stage: Box<dyn Stage>,
}

impl Stage for Verbose {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let (port, queue) = port_queue(from);
        let _ = std::io::stdout().lock().write_all(packets::received(port, queue, batch).as_bytes());
        self.stage.burst(from, batch, out);
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        self.stage.tick(out)
    }

    fn flush(&mut self, out: &mut Outbox) {
        self.stage.flush(out);
    }
}
