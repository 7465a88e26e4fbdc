//! A port on any interface of the host's kernel by packet sockets (AF_PACKET, TPACKET_V3), for interfaces
//! without XDP; one socket for each queue, the frames shared between them by flow.
//!
//! Received frames are lent where the kernel put them, in a ring of blocks that it shares with us; a block goes
//! back when the last of its frames is home. The kernel hands a block over when it is full or a millisecond or
//! so old. Sending is a system call for many packets, straight from where they lie. Checksums and segmentation are left
//! open both ways in the `virtio_net_hdr` in front of each frame.
//!
//! The host's own network stack sees every frame, too.

mod queue;
mod ring;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hugepages::{Map, Table};

use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use crate::sys::packet::{self as sys, Blocks};
use crate::sys::{netns, tap as netdevice, xsk};
use queue::PacketQueue;
use ring::{RESERVE, Ring};

/// Most queues of a port.
pub const MAX_QUEUES: u16 = 64;

/// What an AF_PACKET port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the interface.
    pub iface: String,
    /// The network namespace that it is in, by name; `None`: our own.
    pub netns: Option<String>,
    /// Receives what is for other addresses too.
    pub promiscuous: bool,
    /// Sends past the queueing discipline of the interface.
    pub qdisc_bypass: bool,
    /// Bytes of a block of the ring, a power of two; at least 128 KiB, which holds the longest packet.
    pub block: u32,
    /// Blocks of a queue's ring.
    pub blocks: u32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            iface: String::new(),
            netns: None,
            promiscuous: true,
            qdisc_bypass: false,
            block: 1 << 18,
            blocks: 32,
        }
    }
}

/// What is there while the port is started.
struct Attached {
    index: u32,
    sockets: Vec<Arc<OwnedFd>>,
    gone: Arc<AtomicBool>,
    /// Frames that found no room, as far as they were asked for.
    lost: AtomicU64,
    _promiscuous: Option<OwnedFd>,
}

/// The control side.
pub struct Packet {
    name: String,
    config: Config,
    control: OwnedFd,
    mac: [u8; 6],
    mtu: u32,
    tally: Tally,
    attached: Option<Attached>,
}

impl Packet {
    /// An AF_PACKET port, not started: it receives nothing yet.
    ///
    /// # Errors
    /// When there is no such interface or namespace, or a number is out of range.
    pub fn new(name: &str, config: Config) -> Result<Packet, PortError> {
        let io = |what: String| {
            let port = name.to_owned();
            move |source| PortError::Io { port, what, source }
        };
        if config.block < 1 << 17 || !config.block.is_power_of_two() || !(2..=4096).contains(&config.blocks) {
            let (block, blocks) = (config.block, config.blocks);
            let what = format!(
                "a ring of {blocks} blocks of {block} bytes: blocksz= is a power of two of 131072 or more, \
                 blockcnt= 2 to 4096"
            );
            return Err(PortError::Config { port: name.to_owned(), what });
        }
        let netns = config.netns.as_deref();
        let control = within(name, netns, netdevice::control)?;
        let control = control.map_err(io("socket for interface requests".into()))?;
        let iface = &config.iface;
        let mac = netdevice::mac(control.as_fd(), iface).map_err(io(format!(
            "interface {iface}: ip link shows those of this network namespace; choose one by iface=, another \
             namespace by netns="
        )))?;
        let mtu = netdevice::mtu(control.as_fd(), iface).map_err(io(format!("MTU of interface {iface}")))?;
        let name = name.to_owned();
        Ok(Packet { name, config, control, mac, mtu, tally: Tally::default(), attached: None })
    }

    fn error(&self, what: impl Into<String>, source: io::Error) -> PortError {
        PortError::Io { port: self.name.clone(), what: what.into(), source }
    }

    /// Opens the sockets; the kernel gives frames to none of them yet.
    fn sockets(&self, index: u32, queues: u16) -> Result<Vec<OwnedFd>, PortError> {
        let blocks = Blocks { size: self.config.block, count: self.config.blocks };
        let mut sockets = Vec::new();
        let mut group = None;
        for _ in 0..queues {
            let fd = sys::open(blocks, RESERVE, self.config.qdisc_bypass).map_err(|(step, e)| {
                let what = match e.raw_os_error() {
                    Some(libc::EPERM) => "packet sockets need CAP_NET_RAW: run as root".to_owned(),
                    Some(libc::ENOMEM) => format!("{step}: no memory for {} blocks of it", blocks.count),
                    _ => step.to_owned(),
                };
                self.error(what, e)
            })?;
            let iface = &self.config.iface;
            // Between binding and sharing each would have all frames.
            let ready = sys::deafen(&fd, true).and_then(|()| sys::bind(fd.as_fd(), index));
            ready.map_err(|e| self.error(format!("binding to interface {iface}"), e))?;
            if queues > 1 {
                let shared = sys::share(&fd, group);
                let shared = shared.map_err(|e| self.error(format!("sharing interface {iface}"), e))?;
                group = Some(shared);
            }
            sockets.push(fd);
        }
        Ok(sockets)
    }

    fn open_all(&self, queues: u16) -> Result<(u32, Vec<OwnedFd>, Option<OwnedFd>), PortError> {
        let iface = &self.config.iface;
        let index = netdevice::index(self.control.as_fd(), iface)
            .map_err(|e| self.error(format!("interface {iface}"), e))?;
        let sockets = self.sockets(index, queues)?;
        let promiscuous = self.config.promiscuous.then(|| xsk::promiscuous(index)).transpose();
        let promiscuous =
            promiscuous.map_err(|e| self.error(format!("interface {iface}: promiscuous mode"), e))?;
        Ok((index, sockets, promiscuous))
    }
}

/// Runs `make` in a namespace.
pub(crate) fn within<T: Send>(
    port: &str,
    netns: Option<&str>,
    make: impl FnOnce() -> T + Send,
) -> Result<T, PortError> {
    netns::within(netns, make).map_err(|source| {
        let what = format!("netns={}: ip netns list shows those there are", netns.unwrap_or_default());
        PortError::Io { port: port.to_owned(), what, source }
    })
}

impl Port for Packet {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_af_packet"
    }

    fn caps(&self) -> Caps {
        Caps {
            mtu: self.mtu,
            queues: MAX_QUEUES,
            checksum: true,
            segmentation: true,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link(&self) -> Link {
        let want = libc::IFF_UP | libc::IFF_RUNNING;
        let up = self.attached.as_ref().is_some_and(|attached| {
            // By its number: it may have been renamed.
            let name = netdevice::name_of(self.control.as_fd(), attached.index);
            let flags = name.and_then(|name| netdevice::flags(self.control.as_fd(), &name));
            if flags.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV))
                && !attached.gone.swap(true, Ordering::Relaxed)
            {
                tracing::warn!("port {}: interface {} is gone", self.name, self.config.iface);
            }
            flags.is_ok_and(|flags| flags & want == want)
        });
        Link { up, speed: 10_000 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        self.attached = None;
        let netns = self.config.netns.as_deref();
        let (index, sockets, promiscuous) = within(&self.name, netns, || self.open_all(queues))??;
        let gone = Arc::new(AtomicBool::new(false));
        let (mut started, mut kept): (Vec<Box<dyn Queue>>, _) = (Vec::new(), Vec::new());
        for fd in sockets {
            let ours = fd.try_clone().map_err(|e| self.error("a descriptor more", e))?;
            let len = self.config.block as usize * self.config.blocks as usize;
            let map = Map::ring(ours, len);
            let map = map.map_err(|source| PortError::Memory { port: self.name.clone(), source })?;
            let ring = Ring::new(Table::of(map), self.config.block, self.config.blocks);
            let fd = Arc::new(fd);
            kept.push(Arc::clone(&fd));
            started.push(Box::new(PacketQueue::new(fd, ring, Arc::clone(&gone))));
        }
        for fd in &kept {
            sys::deafen(fd, false).map_err(|e| self.error("beginning to receive", e))?;
        }
        self.tally = Tally::of(&started);
        let (lost, _promiscuous) = (AtomicU64::new(0), promiscuous);
        self.attached = Some(Attached { index, sockets: kept, gone, lost, _promiscuous });
        Ok(started)
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        self.attached = None;
        drop(queues);
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let Some(attached) = &self.attached else { return Vec::new() };
        // The kernel forgets what it has told.
        let more = attached.sockets.iter().filter_map(|fd| sys::statistics(fd).ok());
        let more: u64 = more.map(|(_, drops)| u64::from(drops)).sum();
        let lost = attached.lost.fetch_add(more, Ordering::Relaxed) + more;
        vec![("rx_ring_full".to_owned(), lost)]
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

#[cfg(test)]
mod tests;
