//! `show` and `clear`.

use std::fmt::Write;

use super::{App, Outcome, rate, say, total};
use crate::text::json::{Line, Port};
use crate::text::limits::limits;
use crate::text::port::{self as text, About};
use crate::text::{config, mac};

impl App {
    fn about(&self, port: usize) -> About {
        let slot = self.slot(port);
        About {
            name: slot.vdev.name.clone(),
            driver: slot.port.driver(),
            devargs: slot.vdev.devargs.clone(),
            mac: slot.port.mac(),
            link: slot.port.link(),
            caps: slot.port.caps(),
            filter: slot.port.filter(),
            queues: if slot.started.is_some() { (self.options.rxq, self.options.txq) } else { (0, 0) },
        }
    }

    /// `show port info|stats|summary|xstats`.
    pub(crate) fn show_port(&mut self, what: &str, word: &str) -> Outcome {
        let which = self.choose(word)?;
        match what {
            "info" => which.iter().for_each(|&p| say(&text::info(p, &self.about(p)))),
            "stats" => which.iter().for_each(|&p| say(&self.stats(p))),
            "summary" => {
                let lines: String = which.iter().map(|&p| text::summary(p, &self.about(p))).collect();
                say(&(text::summary_head(self.all().len()) + &lines));
            }
            _ => which.iter().for_each(|&p| {
                let slot = self.slot(p);
                say(&text::xstats(p, &text::xstats_of(&slot.port.stats(), slot.port.xstats())));
            }),
        }
        Ok(())
    }

    fn stats(&mut self, port: usize) -> String {
        let slot = self.slot_mut(port);
        let now = total(&*slot.port);
        text::stats(port, &now, rate(&mut slot.shown, now))
    }

    /// The banner of `--stats-period`, and statistics of all forwarding ports.
    pub(crate) fn period(&mut self) -> String {
        let head = String::from("\nPort statistics ====================================");
        let ports: String = self.forwarding().into_iter().map(|p| self.stats(p)).collect();
        head + &ports
    }

    /// The same, as a line of JSON.
    pub(crate) fn json(&mut self, event: &'static str) -> String {
        let mut ports = Vec::new();
        for p in self.forwarding() {
            let slot = self.slot_mut(p);
            let now = total(&*slot.port);
            let (up, rate) = (slot.port.link().up, rate(&mut slot.told, now));
            ports.push(Port::new(p, &self.slot(p).vdev.name, up, &now, rate, self.totals(p)));
        }
        let cycles_per_packet = Line::per_packet(self.cycles_now());
        let mode = self.options.forward_mode.name();
        Line { event, seconds: (self.seconds() * 1e6).round() / 1e6, mode, ports, cycles_per_packet }.render()
    }

    /// `clear port stats|xstats`.
    pub(crate) fn clear_port(&mut self, what: &str, word: &str) -> Outcome {
        for port in self.choose(word)? {
            let slot = self.slot_mut(port);
            slot.port.clear_stats();
            (slot.shown, slot.told) = (None, None);
            if what == "stats" {
                say(&format!("\n  NIC statistics for port {port} cleared\n"));
            }
        }
        Ok(())
    }

    /// `show config fwd|rxtx|cores|txpkts`.
    pub(crate) fn show_config(&self, what: &str) {
        let shares = self.shares();
        say(&match what {
            "fwd" => self.config_forwarding(&shares),
            "rxtx" => self.config_rxtx(&shares),
            "cores" => {
                let n = usize::from(self.options.nb_cores).min(self.lcores.len());
                config::cores(self.lcores[..n].iter().map(|l| l.id))
            }
            _ => config::txpkts(&self.options.txpkts),
        });
    }

    /// `show limits`: how much peers can make of anything.
    pub(crate) fn show_limits(&self) {
        say(&limits(self.all().len()));
    }

    /// `show rings`: where the buffers of every queue are, and what its core does.
    pub(crate) fn show_rings(&self) -> Outcome {
        let mut out = String::new();
        for core in &self.cores {
            let report = core.worker.read().map_err(|e| e.to_string())?;
            let stats = core.worker.counters().stats();
            let _ = writeln!(
                out,
                "lcore {}: {} - turns={} - empty turns={} - sleeps={} - dropped by mode={} - own frames out={}",
                core.lcore.id,
                if report.running { "forwards" } else { "paused" },
                stats.turns,
                stats.empty_turns,
                stats.sleeps,
                stats.dropped,
                report.frames_out
            );
            for queue in report.queues {
                let (port, q) = crate::forward::port_queue(queue.id);
                let _ = writeln!(out, "  P={port}/Q={q}: lent={} - held={}", queue.lent, queue.held);
            }
        }
        say(&out);
        Ok(())
    }

    /// `show vhost`: who is connected to the vhost and virtio-user ports.
    pub(crate) fn show_vhost(&self) {
        let mut out = String::new();
        for port in self.all() {
            let slot = self.slot(port);
            let Some(socket) = slot.vdev.text("iface").or(slot.vdev.text("path")) else { continue };
            if !matches!(slot.vdev.kind, "vhost" | "virtio_user") {
                continue;
            }
            let state = match (slot.started.is_some(), slot.port.link().up) {
                (false, _) => "stopped",
                (true, false) => "waits for its peer",
                (true, true) => "connected",
            };
            let address = mac(slot.port.mac());
            let _ = writeln!(out, "port {port}: {} {socket} - {state} - MAC {address}", slot.vdev.name);
            for (name, value) in slot.port.xstats() {
                let _ = writeln!(out, "  {name}: {value}");
            }
        }
        say(if out.is_empty() { "No vhost or virtio_user port\n" } else { &out });
    }
}
