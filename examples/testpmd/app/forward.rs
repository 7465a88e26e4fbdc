//! `start` and `stop`, and what was forwarded between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use pmd::worker::{CoreStats, QueueId, Stream as QueueCounters, StreamStats, cycles};

use super::{App, Outcome, say, total};
use crate::cli::Mode;
use crate::forward::{Route, Routes, queue_id, stage, with_first};
use crate::streams::Share;
use crate::text::config;
use crate::text::forward::{Cycles, PortReport, Report, Spread, StreamReport, Totals, report};

/// Counters of a queue and where they stood.
struct Base {
    counters: Arc<QueueCounters>,
    then: StreamStats,
    rx_then: Spread,
    tx_then: Spread,
}

/// Forwarding, from `start` to `stop` and until the next `start`.
pub(super) struct Run {
    pub(super) since: Instant,
    /// When it stopped.
    until: Option<Instant>,
    mode: Mode,
    shares: Vec<Share>,
    queues: BTreeMap<QueueId, Base>,
    /// Missed and damaged packets of each port at the start.
    ports: BTreeMap<usize, (u64, u64)>,
    /// By core: its counters, and wrong checksums by port.
    cores: Vec<(CoreStats, Vec<(u64, u64)>)>,
}

impl App {
    /// Where the packets of a share go.
    pub(super) fn routes(&self, share: &Share) -> Routes {
        let route = |s: &crate::streams::Stream| Route {
            from: queue_id(s.rx.0, s.rx.1),
            to: queue_id(s.tx.0, s.tx.1),
            mac: self.slot(s.tx.0).port.mac(),
            peer: self.peer(s.tx.0),
        };
        Routes::new(share.streams.iter().map(route).collect())
    }

    /// `start`, sending `first` bursts from every port before.
    ///
    /// # Errors
    /// In testpmd's words.
    pub(crate) fn start(&mut self, first: u32) -> Outcome {
        let ports = self.forwarding();
        if ports.is_empty() {
            return Err("No port to forward between; attach one: port attach null0".into());
        }
        if ports.iter().any(|&p| self.slot(p).started.is_none()) {
            return Err("Not all ports were started".into());
        }
        if self.is_forwarding() {
            return Err("Packet forwarding already started".into());
        }
        let shares = self.shares();
        self.settle_queues(&shares)?;
        let verbose = self.verbose;
        self.set_stages(
            |core, routes| {
                let stage = stage(&self.options, routes.clone(), &core.checks, verbose);
                if first > 0 { with_first(&self.options, routes, first, stage) } else { stage }
            },
            &shares,
        )?;
        if !self.brief {
            say(&(self.config_forwarding(&shares) + &self.config_rxtx(&shares)));
        }
        if self.options.forward_mode == Mode::Flowgen {
            for port in &ports {
                say(&format!("  number of flows for port {port}: {}\n", self.options.flowgen_flows));
            }
        }
        self.run = Some(self.baseline(shares));
        for port in ports {
            let slot = self.slot_mut(port);
            slot.told = Some((Instant::now(), total(&*slot.port)));
        }
        for core in &self.cores {
            core.worker.start().map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Where all counters stand now.
    fn baseline(&self, shares: Vec<Share>) -> Run {
        let mut queues = BTreeMap::new();
        for core in &self.cores {
            for &id in &core.queues {
                let counters = core.worker.stream(id).expect("attached here");
                let (then, rx_then, tx_then) = (counters.stats(), counters.rx_spread(), counters.tx_spread());
                queues.insert(id, Base { counters, then, rx_then, tx_then });
            }
        }
        let ports = self.forwarding().into_iter().map(|p| {
            let s = total(&*self.slot(p).port);
            (p, (s.rx_missed, s.rx_errors))
        });
        let bad = |c: &super::Core| (0..self.ports.len()).map(|p| c.checks.bad(p)).collect();
        Run {
            since: Instant::now(),
            until: None,
            mode: self.options.forward_mode,
            shares,
            queues,
            ports: ports.collect(),
            cores: self.cores.iter().map(|c| (c.worker.counters().stats(), bad(c))).collect(),
        }
    }

    /// Gives running cores a stage that fits what is set now.
    pub(super) fn restage(&self) -> Outcome {
        let Some(run) = &self.run else { return Ok(()) };
        let mut options = self.options.clone();
        options.forward_mode = run.mode;
        self.set_stages(|core, routes| stage(&options, routes, &core.checks, self.verbose), &run.shares)
    }

    /// Lets cores receive nothing for a while.
    pub(super) fn rest(&self) -> Outcome {
        for core in &self.cores {
            core.worker.pause().map_err(|e| e.to_string())?;
        }
        // Answered after the pause was obeyed.
        self.cores.iter().try_for_each(|core| core.worker.read().map(drop).map_err(|e| e.to_string()))
    }

    /// Goes on after it, if packets are forwarded.
    pub(super) fn go_on(&self) -> Outcome {
        if self.is_forwarding() {
            self.cores.iter().try_for_each(|core| core.worker.start().map_err(|e| e.to_string()))?;
        }
        Ok(())
    }

    /// `stop`.
    ///
    /// # Errors
    /// When nothing is forwarded, or a core is gone.
    pub(crate) fn stop(&mut self) -> Outcome {
        let Some(mut run) = self.run.take() else { return Err("Packet forwarding not started".into()) };
        say("Telling cores to stop...\n");
        say("Waiting for lcores to finish...\n");
        // Counters stand still afterwards.
        self.rest()?;
        run.until = Some(Instant::now());
        say(&(report(&self.report(&run)) + "\nDone.\n"));
        self.last = Some(run);
        Ok(())
    }

    /// `show fwd stats all`.
    pub(crate) fn show_forward(&self) -> Outcome {
        let run = self.run.as_ref().or(self.last.as_ref());
        match run {
            Some(run) => say(&report(&self.report(run))),
            None => say(&report(&self.report(&self.baseline(Vec::new())))),
        }
        Ok(())
    }

    /// `clear fwd stats all`.
    pub(crate) fn clear_forward(&mut self) {
        if let Some(run) = self.run.take() {
            let fresh = self.baseline(run.shares.clone());
            self.run = Some(Run { since: run.since, mode: run.mode, ..fresh });
        }
        self.last = None;
    }

    /// What was forwarded since the start of a run.
    fn report(&self, run: &Run) -> Report {
        let bursts = self.options.record_burst_stats;
        let ports = run.ports.keys().filter(|p| self.ports[**p].is_some());
        let ports: Vec<PortReport> = ports.map(|&port| self.port_report(run, port, bursts)).collect();
        let streams: Vec<_> = run.shares.iter().flat_map(|s| &s.streams).collect();
        let mut report = Report { mode: run.mode.name(), ports, ..Report::default() };
        if streams.len() > report.ports.len() {
            report.streams = streams.iter().map(|s| self.stream_report(run, **s, bursts)).collect();
            report.ports.iter_mut().for_each(|p| p.bursts = None);
        }
        report.cycles = self.options.record_core_cycles.then(|| self.cycles(run)).flatten();
        report
    }

    fn port_report(&self, run: &Run, port: usize, bursts: bool) -> PortReport {
        let mut sum = StreamStats::default();
        let (mut rx, mut tx) = (Spread::new(), Spread::new());
        for (_, base) in run.queues.range(queue_id(port, 0)..queue_id(port + 1, 0)) {
            sum = sum.plus(base.counters.stats().since(base.then));
            add(&mut rx, &base.counters.rx_spread(), &base.rx_then);
            add(&mut tx, &base.counters.tx_spread(), &base.tx_then);
        }
        let now = total(&*self.slot(port).port);
        let (missed, errors) = run.ports[&port];
        let (bad_ip, bad_l4) = self.bad(run, port);
        let totals = Totals {
            rx_packets: sum.rx_packets,
            // Cleared meanwhile: counts began anew.
            rx_missed: now.rx_missed.checked_sub(missed).unwrap_or(now.rx_missed),
            rx_errors: now.rx_errors.checked_sub(errors).unwrap_or(now.rx_errors),
            tx_packets: sum.tx_packets,
            tx_dropped: sum.tx_dropped,
            bad_ip,
            bad_l4,
        };
        PortReport { port, totals, bursts: bursts.then_some((rx, tx)) }
    }

    fn stream_report(&self, run: &Run, stream: crate::streams::Stream, bursts: bool) -> StreamReport {
        let grown = |(port, queue)| {
            let base = run.queues.get(&queue_id(port, queue));
            base.map_or_else(StreamStats::default, |b| b.counters.stats().since(b.then))
        };
        let (from, to) = (grown(stream.rx), grown(stream.tx));
        let (mut rx, mut tx) = (Spread::new(), Spread::new());
        if let Some(b) = run.queues.get(&queue_id(stream.rx.0, stream.rx.1)) {
            add(&mut rx, &b.counters.rx_spread(), &b.rx_then);
        }
        if let Some(b) = run.queues.get(&queue_id(stream.tx.0, stream.tx.1)) {
            add(&mut tx, &b.counters.tx_spread(), &b.tx_then);
        }
        let (bad_ip, bad_l4) = self.bad(run, stream.rx.0);
        let totals = Totals {
            rx_packets: from.rx_packets,
            tx_packets: to.tx_packets,
            tx_dropped: to.tx_dropped,
            bad_ip,
            bad_l4,
            ..Totals::default()
        };
        StreamReport { stream, totals, bursts: bursts.then_some((rx, tx)) }
    }

    /// Wrong checksums of a port since the start.
    fn bad(&self, run: &Run, port: usize) -> (u64, u64) {
        let grown = self.cores.iter().zip(&run.cores).map(|(core, (_, then))| {
            let (ip, l4) = core.checks.bad(port);
            let (ip_then, l4_then) = then.get(port).copied().unwrap_or_default();
            (ip - ip_then, l4 - l4_then)
        });
        grown.fold((0, 0), |sum, bad| (sum.0 + bad.0, sum.1 + bad.1))
    }

    /// Cycles of turns that moved something, over the packets received (made, in the modes that make
    /// them).
    fn cycles(&self, run: &Run) -> Option<Cycles> {
        let cores = self.cores.iter().zip(&run.cores);
        let total =
            cores.map(|(core, (then, _))| core.worker.counters().stats().since(*then).busy_cycles).sum();
        let made = matches!(run.mode, Mode::Txonly | Mode::Flowgen);
        let packets = run.queues.values().map(|b| {
            let grown = b.counters.stats().since(b.then);
            if made { grown.tx_packets + grown.tx_dropped } else { grown.rx_packets }
        });
        let mhz = (cycles() - self.born.1) as f64 / self.born.0.elapsed().as_secs_f64() / 1e6;
        Some(Cycles { total, packets: packets.sum(), mhz: mhz.round() as u64 })
    }

    /// Totals of a port in this run, or the last one.
    pub(super) fn totals(&self, port: usize) -> Totals {
        match self.run.as_ref().or(self.last.as_ref()) {
            Some(run) if run.ports.contains_key(&port) => self.port_report(run, port, false).totals,
            _ => Totals::default(),
        }
    }

    /// Cycles a packet cost in this run or the last one, if measured.
    pub(super) fn cycles_now(&self) -> Option<Cycles> {
        let run = self.run.as_ref().or(self.last.as_ref())?;
        self.options.record_core_cycles.then(|| self.cycles(run)).flatten()
    }

    /// Seconds forwarded, in this run or the last one.
    pub(crate) fn seconds(&self) -> f64 {
        let run = self.run.as_ref().or(self.last.as_ref());
        run.map_or(0.0, |r| (r.until.unwrap_or_else(Instant::now) - r.since).as_secs_f64())
    }

    /// `show config fwd`, for these streams.
    pub(super) fn config_forwarding(&self, shares: &[Share]) -> String {
        let mode = self.options.forward_mode.name();
        config::forwarding(&mode, self.forwarding().len(), shares, |p| self.peer(p))
    }

    /// `show config rxtx`, for these streams.
    pub(super) fn config_rxtx(&self, shares: &[Share]) -> String {
        let o = &self.options;
        config::rxtx(config::RxTx {
            mode: &o.forward_mode.name(),
            burst: o.burst,
            cores: shares.len(),
            ports: &self.forwarding(),
            rxq: o.rxq,
            txq: o.txq,
            rxd: o.rxd,
            txd: o.txd,
        })
    }
}

fn add(sum: &mut Spread, now: &[u64], then: &[u64]) {
    sum.resize(now.len().max(sum.len()), 0);
    for (i, n) in now.iter().enumerate() {
        sum[i] += n - then.get(i).copied().unwrap_or(0);
    }
}
