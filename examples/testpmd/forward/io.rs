//! Modes `io` and `rxonly`: send packets on as they are; drop them.

use hugepages::Buf;
use pmd::Batch;
use pmd::worker::{Outbox, QueueId, Stage};

use super::Routes;

pub(super) struct Io {
    pub(super) routes: Routes,
}

impl Stage for Io {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        if let Some((_, route)) = self.routes.find(from) {
            out.send_all(route.to, batch);
        }
    }
}

pub(super) struct RxOnly;

impl Stage for RxOnly {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.drop_all(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, run};
    use crate::cli::Mode;

    #[test]
    fn io_changes_nothing_and_rxonly_sends_nothing() {
        let frames = [frame(60, 1), frame(1514, 2), frame(9000, 3), vec![1], frame(65_000, 4)];
        for cut in [0, 700] {
            assert_eq!(run(Mode::Io, &frames, cut), frames);
            assert!(run(Mode::Rxonly, &frames, cut).is_empty());
        }
    }
}
