//! A port on an interface of the host's kernel over AF_XDP: packets pass between its driver and memory of
//! ours by shared rings, past the kernel's network stack; one socket for each queue.
//!
//! Received packets are lent where the kernel put them. Packets that came from the same queue are sent from
//! where they are; others are copied once, into the memory that the kernel reads.

mod program;
mod queue;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hugepages::Backing;

pub use program::Leave;
use queue::XskQueue;

use crate::port::frames;
use crate::port::packet::within;
use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use crate::sys::xsk::{self, Bind, Xsk};
use crate::sys::{bpf, tap as netdevice};

/// Most queues of a port.
pub const MAX_QUEUES: u16 = 64;
/// Bytes of a frame: what the kernel calls a chunk, a power of two up to a page.
const FRAME: u32 = 4096;
/// Bytes in front of a received packet that the kernel keeps (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;

/// Where packets leave the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In the driver if it can, behind it otherwise.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// Behind the driver: any interface, but slowly.
    Generic,
}

/// What an AF_XDP port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the interface.
    pub iface: String,
    /// The network namespace that it is in, by name; `None`: our own.
    pub netns: Option<String>,
    /// The first of its queues that the port uses.
    pub start_queue: u16,
    /// Where packets leave the kernel.
    pub mode: Mode,
    /// No zero copy between NIC and memory, even if the driver can.
    pub force_copy: bool,
    /// Receives what is for other addresses too.
    pub promiscuous: bool,
    /// Packets that the kernel handles at most when it is made to poll the NIC from our core
    /// (`SO_PREFER_BUSY_POLL`); 0: it does so by itself, on interrupts.
    pub busy_budget: u32,
    /// What stays with the kernel's network stack.
    pub leave: Vec<Leave>,
    /// Frames of a queue, 4 KiB each; half of them to receive into.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            iface: String::new(),
            netns: None,
            start_queue: 0,
            mode: Mode::Auto,
            force_copy: false,
            promiscuous: true,
            busy_budget: 0,
            leave: Vec::new(),
            frames: 4096,
            backing: Backing::default(),
        }
    }
}

/// What is there while the port is started; closing it takes the program from the interface, also when the
/// process dies.
struct Attached {
    index: u32,
    native: bool,
    sockets: Vec<Arc<OwnedFd>>,
    zero_copy: bool,
    several: bool,
    gone: Arc<AtomicBool>,
    _promiscuous: Option<OwnedFd>,
    _link: OwnedFd,
    _map: OwnedFd,
}

/// The control side.
pub struct Afxdp {
    name: String,
    config: Config,
    control: OwnedFd,
    mac: [u8; 6],
    mtu: u32,
    tally: Tally,
    attached: Option<Attached>,
}

impl Afxdp {
    /// An AF_XDP port, not started: nothing is attached to the interface yet.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn new(name: &str, config: Config) -> Result<Afxdp, PortError> {
        let io = |what: String| {
            let port = name.to_owned();
            move |source| PortError::Io { port, what, source }
        };
        let control = within(name, config.netns.as_deref(), netdevice::control)?;
        let control = control.map_err(io("socket for interface requests".into()))?;
        let iface = &config.iface;
        let mac = netdevice::mac(control.as_fd(), iface).map_err(io(format!(
            "interface {iface}: ip link shows those of this network namespace; choose one by iface="
        )))?;
        let mtu = netdevice::mtu(control.as_fd(), iface).map_err(io(format!("MTU of interface {iface}")))?;
        let name = name.to_owned();
        Ok(Afxdp { name, config, control, mac, mtu, tally: Tally::default(), attached: None })
    }

    /// Whether the started port works in the interface's driver, and whether without any copy.
    pub fn mode(&self) -> Option<(bool, bool)> {
        self.attached.as_ref().map(|attached| (attached.native, attached.zero_copy))
    }

    fn error(&self, what: impl Into<String>, source: io::Error) -> PortError {
        PortError::Io { port: self.name.clone(), what: what.into(), source }
    }

    /// Loads the program for packets of several buffers, or of one where the kernel or driver knows no
    /// others, and attaches it: its link, whether in the driver, and whether for several.
    fn attach(&self, map: &OwnedFd, index: u32) -> Result<(OwnedFd, bool, bool), PortError> {
        let code = program::assemble(map.as_raw_fd(), &self.config.leave);
        let modes: &[bool] = match self.config.mode {
            Mode::Auto => &[true, false],
            Mode::Native => &[true],
            Mode::Generic => &[false],
        };
        let mut refused = None;
        for &native in modes {
            for several in [true, false] {
                let loaded = bpf::load(&code, several);
                match loaded.and_then(|program| bpf::attach(program.as_fd(), index, native)) {
                    Ok(link) => return Ok((link, native, several)),
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(self.refused(e)),
                    Err(e) => refused = Some(e),
                }
            }
        }
        Err(self.refused(refused.expect("some mode was tried")))
    }

    /// Why the program could not be attached.
    fn refused(&self, e: io::Error) -> PortError {
        let iface = &self.config.iface;
        let what = match e.raw_os_error() {
            Some(libc::EPERM) => {
                "loading an XDP program needs CAP_BPF and CAP_NET_ADMIN: run as root".to_owned()
            }
            Some(libc::EBUSY) => format!(
                "interface {iface} has an XDP program already: stop its owner, or take it off (ip link set dev \
                 {iface} xdp off)"
            ),
            Some(libc::EOPNOTSUPP) => {
                format!("the driver of interface {iface} knows no native XDP: mode=generic")
            }
            Some(libc::EINVAL | libc::ERANGE) => format!(
                "interface {iface} does not take the XDP program (an MTU beyond a page needs a driver with \
                 multi-buffer XDP; mode=generic takes any)"
            ),
            _ => format!("attaching an XDP program to interface {iface}"),
        };
        self.error(what, e)
    }

    /// Attaches to the interface, in the namespace that the thread is in.
    fn open(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        self.attached = None;
        let iface = &self.config.iface;
        let index = netdevice::index(self.control.as_fd(), iface)
            .map_err(|e| self.error(format!("interface {iface}"), e))?;
        let first = u32::from(self.config.start_queue);
        let map = bpf::socket_map(first + u32::from(queues)).map_err(|e| {
            let what = "an XDP program needs CAP_BPF and CAP_NET_ADMIN: run as root";
            self.error(
                if e.raw_os_error() == Some(libc::EPERM) { what } else { "making a map of sockets" },
                e,
            )
        })?;
        let (link, native, several) = self.attach(&map, index)?;
        let gone = Arc::new(AtomicBool::new(false));
        let (mut started, mut sockets): (Vec<Box<dyn Queue>>, _) = (Vec::new(), Vec::new());
        let mut zero_copy = true;
        for queue in first..first + u32::from(queues) {
            let (copy, busy_budget) = (self.config.force_copy || !native, self.config.busy_budget);
            let (xsk, pool) = self.bind(Bind { interface: index, queue, copy, several, busy_budget })?;
            bpf::set_socket(map.as_fd(), queue, xsk.as_fd())
                .map_err(|e| self.error(format!("steering queue {queue} of interface {iface}"), e))?;
            zero_copy &= xsk.zero_copy;
            sockets.push(Arc::clone(&xsk.fd));
            started.push(Box::new(XskQueue::new(xsk, pool, several, busy_budget > 0, Arc::clone(&gone))));
        }
        let promiscuous = if self.config.promiscuous {
            let promiscuous = xsk::promiscuous(index);
            Some(promiscuous.map_err(|e| self.error(format!("interface {iface}: promiscuous mode"), e))?)
        } else {
            None
        };
        tracing::info!(
            "port {}: interface {iface}, {} XDP, {}",
            self.name,
            if native { "native" } else { "generic" },
            if zero_copy { "zero copy" } else { "one copy in the kernel" }
        );
        self.tally = Tally::of(&started);
        let (_promiscuous, _link, _map) = (promiscuous, link, map);
        self.attached =
            Some(Attached { index, native, sockets, zero_copy, several, gone, _promiscuous, _link, _map });
        Ok(started)
    }

    fn bind(&self, bind: Bind) -> Result<(Xsk, hugepages::Pool), PortError> {
        let (iface, queue) = (&self.config.iface, bind.queue);
        let pool = frames::pool(&self.name, self.config.frames.max(256), FRAME, self.config.backing)?;
        let xsk = Xsk::bind(pool.table(), FRAME, bind).map_err(|(step, e)| {
            let there = netdevice::receive_queues(self.control.as_fd(), iface).ok();
            let what = match e.raw_os_error() {
                Some(libc::EINVAL) if there.is_some_and(|n| queue >= n) => format!(
                    "interface {iface} has {} queues, none of number {queue}; ethtool -L {iface} may make more",
                    there.unwrap_or_default()
                ),
                Some(libc::EBUSY) => {
                    format!("queue {queue} of interface {iface} belongs to another AF_XDP socket; stop its owner")
                }
                Some(libc::ENETDOWN) => {
                    format!("interface {iface} is down: ip link set dev {iface} up")
                }
                Some(libc::ENOBUFS | libc::ENOMEM) => {
                    format!("{step} of queue {queue}: the limit of locked memory is too low (ulimit -l)")
                }
                _ => format!("{step}, queue {queue} of interface {iface}"),
            };
            self.error(what, e)
        })?;
        Ok((xsk, pool))
    }
}

impl Port for Afxdp {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_af_xdp"
    }

    fn caps(&self) -> Caps {
        let several = self.attached.as_ref().is_none_or(|attached| attached.several);
        let mtu = if several { self.mtu } else { self.mtu.min(FRAME - HEADROOM - 18) };
        Caps { mtu, queues: MAX_QUEUES, checksum: false, segmentation: false, reads_foreign_memory: false }
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
        let (name, netns) = (self.name.clone(), self.config.netns.clone());
        within(&name, netns.as_deref(), || self.open(queues))?
    }

    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        // The program first: packets go to the kernel again before the sockets are closed.
        self.attached = None;
        drop(queues);
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let Some(attached) = &self.attached else { return Vec::new() };
        let mut out = vec![
            ("native_xdp".to_owned(), attached.native.into()),
            ("zero_copy".to_owned(), attached.zero_copy.into()),
        ];
        for (queue, socket) in attached.sockets.iter().enumerate() {
            let Ok(counted) = xsk::statistics(socket) else { continue };
            let counts = [
                ("rx_dropped", counted.rx_dropped),
                ("rx_ring_full", counted.rx_ring_full),
                ("rx_fill_ring_empty", counted.rx_fill_ring_empty_descs),
                ("rx_invalid", counted.rx_invalid_descs),
                ("tx_invalid", counted.tx_invalid_descs),
                ("tx_ring_empty", counted.tx_ring_empty_descs),
            ];
            out.extend(counts.map(|(name, n)| (format!("q{queue}_{name}"), n)));
        }
        out
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

#[cfg(test)]
mod tests;
