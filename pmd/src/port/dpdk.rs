//! A port on any device of an installed libdpdk (feature `dpdk`): what DPDK has a driver for, its virtual
//! devices among them.
//!
//! Received packets are lent where DPDK put them. Packets are sent from where they lie, whoever lent them:
//! DPDK's packets have them attached, and receipts come home when it has done with them. Only packets whose
//! checksum or segmentation was left open are copied.

mod queue;

pub use dpdk_sys::leaked;
use hugepages::Backing;

use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use queue::DpdkQueue;

/// Starts DPDK's environment with its own arguments; once in a process, before any port is made.
///
/// # Errors
/// What DPDK refuses; its log on standard error says more.
pub fn init(args: &[String]) -> Result<(), PortError> {
    dpdk_sys::init(args).map_err(|e| config("dpdk", e.to_string()))
}

/// The ports that DPDK has: its number and name of each.
pub fn ports() -> Vec<(u16, String)> {
    let named = |id| dpdk_sys::info(id).ok().map(|info| (id, info.name));
    dpdk_sys::ports().into_iter().filter_map(named).collect()
}

fn config(port: &str, what: String) -> PortError {
    PortError::Config { port: port.to_owned(), what }
}

/// What a DPDK port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// DPDK's number of it.
    pub id: u16,
    /// Descriptors of a receive ring and of a transmit ring; many drivers give a sent buffer back only when
    /// the latter is nearly full.
    pub rings: (u16, u16),
    /// Largest payload of a frame; `None`: as it is.
    pub mtu: Option<u32>,
    /// Receives what is for other addresses too.
    pub promiscuous: bool,
    /// Frames of a queue, a little over 2 KiB each.
    pub frames: u32,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            id: 0,
            rings: (1024, 256),
            mtu: None,
            promiscuous: true,
            frames: 8191,
            backing: Backing::default(),
        }
    }
}

/// The control side.
pub struct Dpdk {
    name: String,
    config: Config,
    info: dpdk_sys::Info,
    tally: Tally,
    started: Option<dpdk_sys::Started>,
}

impl Dpdk {
    /// A port on a device that DPDK has found, not started.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn new(name: &str, config: Config) -> Result<Dpdk, PortError> {
        let info = dpdk_sys::info(config.id).map_err(|e| self::config(name, e.to_string()))?;
        Ok(Dpdk { name: name.to_owned(), config, info, tally: Tally::default(), started: None })
    }

    /// DPDK's name of the device.
    pub fn device(&self) -> &str {
        &self.info.name
    }
}

impl Port for Dpdk {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "dpdk"
    }

    fn caps(&self) -> Caps {
        let mtu = self.config.mtu.unwrap_or(self.info.mtu.into());
        let queues = self.info.max_queues;
        Caps { mtu, queues, checksum: false, segmentation: false, reads_foreign_memory: true }
    }

    fn mac(&self) -> [u8; 6] {
        self.info.mac
    }

    fn link(&self) -> Link {
        let (up, speed) = dpdk_sys::link(self.config.id);
        Link { up: up && self.started.is_some(), speed }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        self.started = None;
        let Config { id, rings, mtu, promiscuous, frames, backing } = self.config;
        let mtu = mtu.unwrap_or(0) as u16;
        let (started, raw) = dpdk_sys::Started::new(id, queues, rings, mtu, promiscuous, (frames, backing))
            .map_err(|e| config(&self.name, e.to_string()))?;
        let mut out: Vec<Box<dyn Queue>> = Vec::new();
        for queue in raw {
            out.push(Box::new(DpdkQueue::new(&self.name, queue, self.info.several, backing)?));
        }
        self.tally = Tally::of(&out);
        self.started = Some(started);
        Ok(out)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        // It stops when the last of both is gone.
        let before = leaked();
        drop(queues);
        self.started = None;
        let kept = leaked() - before;
        if kept > 0 {
            tracing::warn!("port {}: DPDK's driver kept {kept} buffers of a stopped device", self.name);
        }
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        dpdk_sys::xstats(self.config.id)
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

#[cfg(test)]
mod tests;
