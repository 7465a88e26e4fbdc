//! A port on an interface of the host's kernel: one queue per `/dev/net/tun` descriptor, one system
//! call per packet, offloads in the `virtio_net_hdr` in front of each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Offload, Pool, io as frame_io};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::batch::Batch;
use crate::port::frames::{self, local_mac};
use crate::port::{Caps, Counters, Link, Port, PortError, Queue, Stats, Tally, drop_packet};
use crate::spec::net::{HDR_F_NEEDS_CSUM, HDR_LEN, MAX_FRAME};
use crate::sys::{netns, tap as sys};

/// Most queues of a port; the kernel takes 256.
pub const MAX_QUEUES: u16 = 128;
/// Bytes of a frame of the pool. Not a power of two: the first lines of frames fall on different
/// sets of a cache.
const FRAME: u32 = 4096 + 64;
/// Frames that hold the largest packet.
const PIECES: usize = MAX_FRAME.div_ceil(FRAME) as usize;
/// Looks at an interface without traffic are left out, up to so many in a row: they cost a system
/// call each.
const MAX_SKIP: u32 = 32;

/// What a TAP port is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the interface, up to 15 bytes; empty: the port's name. A `%d` in it becomes a number.
    pub iface: String,
    /// The network namespace that it is in, by name; `None`: our own.
    pub netns: Option<String>,
    /// Queues of an interface that somebody else has opened: descriptors that this process was started with, one
    /// for each queue. `iface`, `netns`, `mac` and `mtu` mean nothing then: the interface is left as it is.
    pub fds: Vec<i32>,
    /// The interface stays when the port goes.
    pub persistent: bool,
    /// Its MAC address; `None`: made from the name, so that it is the same in every run.
    pub mac: Option<[u8; 6]>,
    /// Its MTU; `None`: as it is.
    pub mtu: Option<u32>,
    /// Received packets may leave their checksum to the receiver.
    pub checksum: bool,
    /// Received TCP packets may be up to 64 KiB long, to be segmented by the receiver; needs
    /// `checksum`. For far ports that take or segment them ([`Caps::segmentation`]; a vhost port always
    /// does): others drop what is larger than a frame.
    pub segmentation: bool,
    /// The same for UDP, if the kernel can.
    pub udp_segmentation: bool,
    /// Frames of a queue, 4 KiB each.
    pub frames: usize,
    /// Memory of the frames.
    pub backing: Backing,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            iface: String::new(),
            netns: None,
            fds: Vec::new(),
            persistent: false,
            mac: None,
            mtu: None,
            checksum: true,
            segmentation: false,
            udp_segmentation: false,
            frames: 1024,
            backing: Backing::default(),
        }
    }
}

/// The control side. The interface lives from the first start until the port is dropped; a restart
/// with another number of queues makes it anew.
#[derive(Debug)]
pub struct Tap {
    name: String,
    config: Config,
    tally: Tally,
    interface: Option<Interface>,
    mac: [u8; 6],
}

/// An interface and its queues.
#[derive(Debug)]
struct Interface {
    name: String,
    control: OwnedFd,
    queues: Vec<Arc<OwnedFd>>,
    /// Somebody else's, who knows where it is, and switches it on and off.
    foreign: bool,
}

impl Interface {
    /// Whether it is still there.
    fn exists(&self) -> bool {
        self.queues.iter().all(|fd| sys::interface(fd.as_fd()).is_some())
    }

    fn up(&self) -> bool {
        if self.foreign {
            return self.exists();
        }
        let want = libc::IFF_UP | libc::IFF_RUNNING;
        let Some(name) = self.queues.first().and_then(|fd| sys::interface(fd.as_fd())) else { return false };
        // One that was moved to another network namespace does not tell.
        sys::flags(self.control.as_fd(), &name).map_or(true, |flags| flags & want == want)
    }
}

impl Tap {
    /// A TAP port, not started: there is no interface yet.
    ///
    /// # Errors
    /// When the interface name cannot be one.
    pub fn new(name: &str, config: Config) -> Result<Tap, PortError> {
        let mut config = config;
        if config.iface.is_empty() {
            config.iface = name.to_owned();
        }
        let iface = &config.iface;
        let fault = if iface.len() > sys::MAX_NAME {
            Some(format!("is longer than {} bytes", sys::MAX_NAME))
        } else if iface == "." || iface == ".." || iface.contains(['/', ':', '\0', ' ', '\t', '\n']) {
            Some("has a character that no interface name has".to_owned())
        } else {
            None
        };
        if let Some(fault) = fault {
            let what = format!("iface={iface} {fault}; choose another iface=");
            return Err(PortError::Config { port: name.to_owned(), what });
        }
        let mac = config.mac.unwrap_or_else(|| local_mac(iface));
        Ok(Tap { name: name.to_owned(), config, tally: Tally::default(), interface: None, mac })
    }

    /// Name of the interface, once started.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_ref().map(|interface| interface.name.as_str())
    }

    fn error(&self, what: impl Into<String>, source: impl Into<io::Error>) -> PortError {
        PortError::Io { port: self.name.clone(), what: what.into(), source: source.into() }
    }

    fn open(&self, queues: u16) -> Result<Interface, PortError> {
        if !self.config.fds.is_empty() {
            return self.take_over(queues);
        }
        let netns = self.config.netns.as_deref();
        netns::within(netns, || self.make(queues)).map_err(|e| {
            let what = format!("netns={}: ip netns list shows those there are", netns.unwrap_or_default());
            self.error(what, e)
        })?
    }

    /// The interface whose queues this process was given.
    fn take_over(&self, queues: u16) -> Result<Interface, PortError> {
        let given = &self.config.fds;
        if given.len() != usize::from(queues) {
            let what = format!("{} descriptors (fd=), and {queues} queues: one for each", given.len());
            return Err(PortError::Config { port: self.name.clone(), what });
        }
        let control = sys::control().map_err(|e| self.error("socket for interface requests", e))?;
        let mut interface = Interface { name: String::new(), control, queues: Vec::new(), foreign: true };
        for &number in given {
            let taken = sys::inherited(number).and_then(|fd| Ok((sys::take_over(fd.as_fd(), HDR_LEN)?, fd)));
            let (name, fd) = taken.map_err(|e| {
                let what = format!("fd={number}: not a queue of a TAP interface that we were started with");
                self.error(what, e)
            })?;
            self.set_offload(fd.as_fd())
                .map_err(|e| self.error(format!("offloads of interface {name}"), e))?;
            interface.name = name;
            interface.queues.push(Arc::new(fd));
        }
        Ok(interface)
    }

    fn make(&self, queues: u16) -> Result<Interface, PortError> {
        let control = sys::control().map_err(|e| self.error("socket for interface requests", e))?;
        let name = self.config.iface.clone();
        let mut interface = Interface { name, control, queues: Vec::new(), foreign: false };
        for _ in 0..queues {
            let fd = self.open_queue(&mut interface, queues > 1)?;
            interface.queues.push(Arc::new(fd));
        }
        Ok(interface)
    }

    fn open_queue(&self, interface: &mut Interface, multi_queue: bool) -> Result<OwnedFd, PortError> {
        let fd = sys::open().map_err(|e| {
            let what = match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "no /dev/net/tun: load it (modprobe tun), or give it to the container \
                     (--device /dev/net/tun)"
                }
                _ => "opening /dev/net/tun",
            };
            self.error(what, e)
        })?;
        let name = interface.name.clone();
        let mut attached = sys::attach(fd.as_fd(), &name, multi_queue, HDR_LEN);
        if !multi_queue && attached.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)) {
            // An interface that was made with `multi_queue` takes no other kind of queue.
            attached = sys::attach(fd.as_fd(), &name, true, HDR_LEN);
        }
        interface.name = attached.map_err(|e| {
            let what = match e.raw_os_error() {
                Some(libc::EPERM) => format!(
                    "interface {name} needs CAP_NET_ADMIN: run as root, or make it before: ip tuntap add dev \
                     {name} mode tap multi_queue vnet_hdr user $USER"
                ),
                Some(libc::EBUSY) => {
                    format!("interface {name} is in use by another program; stop it or choose another iface=")
                }
                Some(libc::EINVAL) => format!(
                    "interface {name} exists and is no TAP that takes our queues; remove it (ip link del \
                     {name}) or choose another iface="
                ),
                Some(libc::E2BIG) => format!("interface {name} has no room for a further queue"),
                _ => format!("attaching to interface {name}"),
            };
            self.error(what, e)
        })?;
        self.set_offload(fd.as_fd()).map_err(|e| self.error(format!("offloads of interface {name}"), e))?;
        if self.config.persistent {
            sys::set_persistent(fd.as_fd(), true)
                .map_err(|e| self.error(format!("making interface {name} persistent"), e))?;
        }
        Ok(fd)
    }

    fn set_offload(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let config = &self.config;
        let mut flags = 0;
        if config.checksum {
            flags |= sys::OFFLOAD_CSUM;
            flags |= if config.segmentation { sys::OFFLOAD_TSO } else { 0 };
            if config.udp_segmentation && sys::set_offload(fd, flags | sys::OFFLOAD_USO).is_ok() {
                return Ok(());
            }
        }
        sys::set_offload(fd, flags)
    }

    /// Address, MTU and state of the interface. One that is not ours to change (made for us by somebody
    /// else, or moved to another network namespace since) is taken as it is.
    fn configure(&mut self, interface: &Interface) -> Result<(), PortError> {
        let (control, name) = (interface.control.as_fd(), &interface.name);
        let denied = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENODEV));
        if interface.foreign {
            self.mac = sys::mac_of(interface.queues[0].as_fd()).unwrap_or(self.mac);
            return Ok(());
        }
        match sys::set_mac(control, name, self.mac) {
            Err(e) if denied(&e) && self.config.mac.is_none() => {
                self.mac = sys::mac(control, name).unwrap_or(self.mac);
            }
            other => other.map_err(|e| self.error(format!("setting the address of interface {name}"), e))?,
        }
        if let Some(mtu) = self.config.mtu {
            sys::set_mtu(control, name, mtu)
                .map_err(|e| self.error(format!("setting mtu={mtu} of interface {name}"), e))?;
        }
        match sys::set_up(control, name, true) {
            Err(e) if denied(&e) => Ok(()),
            other => other.map_err(|e| self.error(format!("switching interface {name} on"), e)),
        }
    }
}

impl Port for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_tap"
    }

    fn caps(&self) -> Caps {
        Caps {
            mtu: MAX_FRAME - 18,
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
        Link { up: self.interface.as_ref().is_some_and(Interface::up), speed: 10_000 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        let kept = self.interface.take();
        let kept = kept.filter(|i| i.queues.len() == usize::from(queues) && i.exists());
        let interface = match kept {
            Some(interface) => interface,
            None => self.open(queues)?,
        };
        self.configure(&interface)?;
        let mut started: Vec<Box<dyn Queue>> = Vec::new();
        for fd in &interface.queues {
            let frames = self.config.frames.max(4 * PIECES);
            started.push(Box::new(TapQueue {
                fd: fd.clone(),
                pool: frames::packets(&self.name, frames, FRAME, self.config.backing)?,
                ready: Vec::with_capacity(PIECES),
                done: Batch::default(),
                gone: false,
                skip: 0,
                empty: 0,
                counters: Arc::default(),
            }));
        }
        self.tally = Tally::of(&started);
        self.interface = Some(interface);
        Ok(started)
    }

    fn stop(&mut self, _: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        if let Some(interface) = self.interface.as_ref().filter(|interface| !interface.foreign) {
            // One that is gone, or not ours to change, needs no switching off.
            let _ = sys::set_up(interface.control.as_fd(), &interface.name, false);
        }
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

struct TapQueue {
    fd: Arc<OwnedFd>,
    pool: Pool,
    /// Empty frames for the next packet, the first one last.
    ready: Vec<Buf>,
    done: Batch<Loan>,
    /// The interface was removed.
    gone: bool,
    /// Looks to leave out, and how many the last one that found nothing asked for.
    skip: u32,
    empty: u32,
    counters: Arc<Counters>,
}

impl TapQueue {
    /// Reads one packet to the back of `out`; its bytes. Leaves it to the kernel while there are not
    /// frames enough for the largest.
    fn read(&mut self, out: &mut Batch<Buf>) -> Option<u32> {
        while self.ready.len() < PIECES {
            self.ready.push(self.pool.take()?);
        }
        let mut header = [0; HDR_LEN as usize];
        let got = frame_io::read(self.fd.as_fd(), &mut header, self.ready.iter_mut().rev());
        let bytes = match got {
            Ok(n) => (n as u32).saturating_sub(HDR_LEN),
            Err(Errno::BADFD) => {
                self.gone = true;
                return None;
            }
            Err(_) => return None,
        };
        if bytes == 0 {
            self.counters.rx_errors.add(1);
            return None;
        }
        // virtio 1.3 §5.1.6: the first ten bytes are those of Offload.
        let (offload, _) = Offload::read_from_prefix(&header).expect("12 bytes");
        let mut left = bytes;
        while left > 0 {
            let mut buf = self.ready.pop().expect("PIECES frames hold any packet");
            buf.truncate(left);
            if left == bytes {
                buf.offload = offload;
            }
            left -= buf.len();
            buf.set_more(left > 0);
            out.push(buf);
        }
        Some(bytes)
    }

    /// Writes the first packet of `batch`, `n` buffers.
    fn write(&self, batch: &Batch<Buf>, n: usize) -> Result<(), Errno> {
        let mut offload = batch.front().map_or(Offload::default(), |buf| buf.offload);
        // §5.1.6.2: a sender sets no other flag.
        offload.flags &= HDR_F_NEEDS_CSUM;
        let mut header = [0; HDR_LEN as usize];
        header[..size_of::<Offload>()].copy_from_slice(offload.as_bytes());
        frame_io::write(self.fd.as_fd(), &header, batch.iter().take(n)).map(drop)
    }
}

impl Drop for TapQueue {
    fn drop(&mut self) {
        for buf in self.ready.drain(..) {
            self.pool.settle(buf.finish(0));
        }
    }
}

impl Queue for TapQueue {
    fn rx(&mut self, out: &mut Batch<Buf>) -> usize {
        if self.gone {
            return 0;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return 0;
        }
        let (mut packets, mut sum) = (0, 0);
        while packets < out.burst() && out.room() >= PIECES {
            let Some(bytes) = self.read(out) else { break };
            packets += 1;
            sum += u64::from(bytes);
        }
        self.empty = if packets > 0 { 0 } else { (self.empty * 2).clamp(1, MAX_SKIP) };
        self.skip = self.empty;
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(sum);
        packets
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut taken, mut sent, mut sum) = (0, 0, 0);
        loop {
            let (n, bytes) = batch.packet_at(0);
            if n == 0 || n > self.done.room() {
                break;
            }
            let written = if self.gone { Err(Errno::BADFD) } else { self.write(batch, n) };
            match written {
                Ok(()) => {
                    sent += 1;
                    sum += u64::from(bytes);
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(e) => {
                    self.gone |= e == Errno::BADFD;
                    self.counters.tx_errors.add(1);
                }
            }
            drop_packet(batch, &mut self.done);
            taken += 1;
        }
        self.counters.tx_packets.add(sent);
        self.counters.tx_bytes.add(sum);
        taken
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        self.done.move_to(done)
    }

    fn settle(&mut self, loans: &mut Batch<Loan>) {
        self.pool.settle_front(loans);
    }

    fn lent(&self) -> u32 {
        self.pool.out() - self.ready.len() as u32
    }

    fn held(&self) -> u32 {
        self.done.len() as u32
    }

    fn sleep<'q>(&'q mut self, wait: &mut dyn FnMut(BorrowedFd<'q>)) -> bool {
        self.skip = 0;
        if !self.gone {
            wait(self.fd.as_fd());
        }
        true
    }

    fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

#[cfg(test)]
mod tests;
