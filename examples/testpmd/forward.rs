//! What is done to packets between receive and transmit: one mode per file, twins in one.

pub(crate) mod csum;
mod echo;
mod flows;
mod io;
mod noisy;
mod swap;
#[cfg(test)]
pub(crate) mod testing;
mod verbose;

use std::sync::Arc;

use hugepages::Buf;
use pmd::Batch;
use pmd::worker::{Outbox, QueueId, Stage};

use crate::cli::{Mode, Options};

/// Most ports: their queues' names are 16 bits wide.
pub(crate) const MAX_PORTS: usize = 256;
const QUEUES: usize = pmd::spec::net::MAX_QUEUE_PAIRS as usize;

/// The name of a port's queue on its core.
pub(crate) fn queue_id(port: usize, queue: u16) -> QueueId {
    QueueId((port * QUEUES + usize::from(queue)) as u16)
}

/// The port and queue of a name.
pub(crate) fn port_queue(id: QueueId) -> (usize, u16) {
    (usize::from(id.0) / QUEUES, id.0 % QUEUES as u16)
}

/// Where the packets of a queue go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// The queue they come from.
    pub(crate) from: QueueId,
    /// The queue they leave by.
    pub(crate) to: QueueId,
    /// MAC address of the port they leave by.
    pub(crate) mac: [u8; 6],
    /// MAC address of whoever is behind that port.
    pub(crate) peer: [u8; 6],
}

/// The routes of one core.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    all: Vec<Route>,
    /// By queue: 1 + its place in `all`.
    at: Vec<u16>,
}

impl Routes {
    /// Takes them in the order of streams.
    pub(crate) fn new(all: Vec<Route>) -> Routes {
        let size = all.iter().map(|r| usize::from(r.from.0) + 1).max().unwrap_or(0);
        let mut at = vec![0; size];
        for (i, route) in all.iter().enumerate() {
            at[usize::from(route.from.0)] = i as u16 + 1;
        }
        Routes { all, at }
    }

    /// The route of a queue, and its place.
    #[inline(always)]
    fn find(&self, from: QueueId) -> Option<(usize, &Route)> {
        let i = usize::from(*self.at.get(usize::from(from.0))?).checked_sub(1)?;
        Some((i, &self.all[i]))
    }
}

/// A stage for one core, in the mode and with the details of `options`.
pub(crate) fn stage(
    options: &Options,
    routes: Routes,
    checks: &Arc<csum::Checks>,
    verbose: u16,
) -> Box<dyn Stage> {
    let stage: Box<dyn Stage> = match options.forward_mode {
        Mode::Io => Box::new(io::Io { routes }),
        Mode::Rxonly => Box::new(io::RxOnly),
        Mode::Mac => Box::new(Rewriter { routes, rewrite: swap::Mac }),
        Mode::Macswap => Box::new(Rewriter { routes, rewrite: swap::MacSwap }),
        Mode::FiveTuple => Box::new(Rewriter { routes, rewrite: swap::FiveTuple }),
        Mode::Csum => Box::new(csum::Csum::new(routes, Arc::clone(checks))),
        Mode::Icmpecho => Box::new(echo::Echo { routes }),
        Mode::Txonly => Box::new(flows::TxOnly::new(routes, options, true)),
        Mode::Flowgen => Box::new(flows::FlowGen::new(routes, options)),
        Mode::Noisy => Box::new(noisy::Noisy::new(routes, options)),
    };
    // Odd levels print what is received.
    if verbose & 1 == 1 { Box::new(verbose::Verbose { stage }) } else { stage }
}

/// The same stage, after `first` bursts of frames have been sent from every queue.
pub(crate) fn with_first(
    options: &Options,
    routes: Routes,
    first: u32,
    stage: Box<dyn Stage>,
) -> Box<dyn Stage> {
    Box::new(flows::First { maker: flows::TxOnly::new(routes, options, false), left: first, stage })
}

/// A mode that changes the headers of every packet and sends it on.
trait Rewrite: Send {
    /// Changes a packet that is all in one writable buffer.
    fn rewrite(&mut self, route: &Route, packet: &mut Buf);
}

struct Rewriter<R> {
    routes: Routes,
    rewrite: R,
}

impl<R: Rewrite> Stage for Rewriter<R> {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let Some((_, route)) = self.routes.find(from) else { return };
        while !batch.is_empty() {
            if let Some(next) = batch.get(1) {
                next.prefetch();
            }
            let Some(mut packet) = out.own(batch) else { continue };
            self.rewrite.rewrite(route, &mut packet);
            out.send(route.to, packet);
        }
    }
}

/// Drops the first packet of a batch, whatever it consists of.
fn drop_first(batch: &mut Batch<Buf>, out: &mut Outbox) {
    while let Some(buf) = batch.pop_front() {
        let more = buf.more();
        out.drop(buf);
        if !more {
            break;
        }
    }
}

/// Sends the first packet of a batch as it is.
fn send_first(to: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
    while let Some(buf) = batch.pop_front() {
        let more = buf.more();
        out.send(to, buf);
        if !more {
            break;
        }
    }
}
