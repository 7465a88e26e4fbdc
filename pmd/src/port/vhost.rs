//! vhost-user, device side: the port through which a virtual machine or a container is reached.
//!
//! The socket is there from the first start of the port until it is dropped or started with another
//! number of queues; front-ends come and go meanwhile. The control thread of
//! [`vhost::Server`](crate::vhost::Server) maps the guest's memory, opens its rings and hands them to
//! the queues.
//!
//! - `wire`: the virtio-net header
//! - `receive`, `deliver`: packets out of a guest's ring, and into one
//! - `queue`: the data side
//! - `iommu`: what is known of a guest's IOMMU
//! - `parked`: packets that wait until it is known where the guest's buffers are
//! - `filter`: which frames a guest wants
//! - `hash`: the hash of a packet
//! - `steering`: which of a guest's rings a packet is for
//! - `mail`: packets that come to one queue and are for another's ring
//! - `orders`: how a ring is to serve its guest
//! - `commands`: what a guest asks for through its control queue
//! - `state`: all of it as bytes, for whoever goes on with the device
//! - `attendant`: serves that queue
//! - `herald`: a packet in the name of a guest that has moved here
//! - `door`: how rings come to a queue and go home
//! - `control`: what front-ends ask for, carried out

mod attendant;
mod commands;
mod control;
mod deliver;
pub(crate) mod door;
mod filter;
mod hash;
mod herald;
mod iommu;
#[cfg(any(test, fuzzing))]
pub(crate) mod lies;
mod mail;
pub(crate) mod orders;
pub(crate) mod queue;
mod parked;
mod receive;
mod state;
mod steering;
pub(crate) mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::IntoBytes;

use crate::port::frames::local_mac;
use crate::port::{Caps, Link, Port, PortError, Queue, Stats, Tally};
use crate::spec::net::{self, MAX_FRAME, MAX_QUEUE_PAIRS, NetConfig};
use crate::spec::vhost_user::MIN_MTU;
use crate::spec::virtio as v;
use crate::vhost::{Access, Handle, Legacy, Offer, PortId, ServerError, Socket};
use control::Control;
use door::{Caller, Door};
use mail::{Mail, Office};
use queue::VhostQueue;
pub use queue::local;

/// MTU in the configuration space when none is set.
const DEFAULT_MTU: u16 = 1500;

/// What a vhost port offers, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket.
    pub socket: Socket,
    /// Who may connect.
    pub access: Access,
    /// Most queue pairs it can start, 1 to 128. The front-end is offered as many as are started.
    pub queues: u16,
    /// Offers packed rings.
    pub packed: bool,
    /// Offers to use buffers in order.
    pub in_order: bool,
    /// Offers packets that span several receive buffers.
    pub mergeable: bool,
    /// Offers to leave checksums to the receiver, both ways.
    pub checksum: bool,
    /// Offers packets to be segmented, both ways; needs `checksum`.
    pub segmentation: bool,
    /// Offers a control queue, to front-ends that have none of their own. Not with all 128 queue pairs: a
    /// message names one of 256 rings.
    pub control: bool,
    /// Offers to reset one ring while others go on. Only for front-ends that pass such a reset on, as
    /// GET_VRING_BASE: QEMU's vhost-user-net offers it to its guest and does not.
    pub ring_reset: bool,
    /// Largest MTU a front-end may set, and the one in the configuration space.
    pub mtu: Option<u16>,
    /// Reaches ring metadata through mapped windows where it can; otherwise always by the checked path.
    pub mapped: bool,
    /// Offers to use addresses of the guest's IOMMU, where it has one.
    pub iommu: bool,
    /// Offers to take a guest before its memory has come (post-copy): its front-end gets a descriptor by which
    /// it can put pages into this process.
    pub postcopy: bool,
    /// Offers messages in place of the rings' eventfds, for simulations: slow, and user-mode Linux takes them
    /// when they are offered.
    pub inband: bool,
    /// Address in the configuration space; made from the name if there is none.
    pub mac: Option<[u8; 6]>,
}

impl Config {
    /// One queue pair on this socket, with everything offered.
    pub fn new(socket: Socket) -> Config {
        Config {
            socket,
            access: Access::default(),
            queues: 1,
            packed: true,
            in_order: true,
            mergeable: true,
            checksum: true,
            segmentation: true,
            control: true,
            ring_reset: false,
            mtu: None,
            mapped: true,
            iommu: true,
            postcopy: false,
            inband: false,
            mac: None,
        }
    }

    /// Whether a control queue is offered beside so many queue pairs.
    fn commanded(&self, pairs: u16) -> bool {
        self.control && pairs < MAX_QUEUE_PAIRS
    }

    /// The features of virtio that are offered.
    fn features(&self, pairs: u16) -> u64 {
        // QEMU and virtio-user keep the control queue to themselves, and with it what MQ and
        // GUEST_ANNOUNCE need: what is offered of it here, they do not take.
        let mut features = v::F_VERSION_1
            | v::F_ANY_LAYOUT
            | v::F_INDIRECT_DESC
            | v::F_EVENT_IDX
            | net::F_MQ
            | net::F_MTU
            | net::F_MAC
            | net::F_STATUS
            | net::F_SPEED_DUPLEX
            | net::F_GUEST_ANNOUNCE;
        let mut offer = |wanted: bool, bits: u64| features |= if wanted { bits } else { 0 };
        offer(self.iommu, v::F_ACCESS_PLATFORM);
        offer(self.packed, v::F_RING_PACKED);
        offer(self.in_order, v::F_IN_ORDER);
        offer(self.mergeable, net::F_MRG_RXBUF);
        let commands = net::F_CTRL_RX | net::F_CTRL_RX_EXTRA | net::F_CTRL_VLAN | net::F_CTRL_MAC_ADDR;
        let commands = commands | net::F_CTRL_GUEST_OFFLOADS | net::F_NOTF_COAL | net::F_VQ_NOTF_COAL;
        offer(self.commanded(pairs), net::F_CTRL_VQ | commands | net::F_RSS | net::F_HASH_REPORT);
        offer(self.ring_reset, v::F_RING_RESET);
        offer(self.checksum, net::F_CSUM | net::F_GUEST_CSUM);
        let segments = self.checksum && self.segmentation;
        offer(segments, net::F_HOST_TSO4 | net::F_HOST_TSO6 | net::F_HOST_ECN | net::F_HOST_USO);
        offer(segments, net::F_GUEST_TSO4 | net::F_GUEST_TSO6 | net::F_GUEST_ECN);
        offer(segments, net::F_HOST_UFO | net::F_GUEST_UFO);
        offer(segments, net::F_GUEST_USO4 | net::F_GUEST_USO6);
        features
    }
}

/// The control side.
pub struct Vhost {
    name: String,
    config: Config,
    mac: [u8; 6],
    server: Handle,
    served: Option<Served>,
    /// What another process has left, until it is served.
    legacy: Option<Legacy>,
    started: bool,
    tally: Tally,
}

/// What is there while the socket is.
struct Served {
    id: PortId,
    doors: Arc<[Door]>,
    office: Office,
    up: Arc<AtomicBool>,
}

impl Vhost {
    /// A vhost port, not started: there is no socket yet. `server` will serve it.
    ///
    /// # Errors
    /// When an argument is out of range.
    pub fn new(name: &str, config: Config, server: &Handle) -> Result<Vhost, PortError> {
        let wrong = |what| PortError::Config { port: name.to_owned(), what };
        if config.queues == 0 || config.queues > MAX_QUEUE_PAIRS {
            return Err(wrong(format!("queues={} is not in 1..={MAX_QUEUE_PAIRS}", config.queues)));
        }
        if let Some(mtu) = config.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(wrong(format!("mtu={mtu} is less than {MIN_MTU}")));
        }
        if config.postcopy
            && let Err(why) = hugepages::MissingPages::new()
        {
            return Err(wrong(format!("postcopy-support=1: {why}; vm.unprivileged_userfaultfd=1, or root")));
        }
        let mac = config.mac.unwrap_or_else(|| local_mac(name));
        let (name, server) = (name.to_owned(), server.clone());
        let tally = Tally::default();
        Ok(Vhost { name, config, mac, server, served: None, legacy: None, started: false, tally })
    }

    /// Goes on with a port that another process has left, at the next start; its rings run from
    /// [`Handle::thaw`] on. The front-end keeps the device that it knows: its MAC address and MTU stay.
    pub fn inherit(&mut self, legacy: Legacy) {
        assert!(self.served.is_none(), "{}: a port that is served has a front-end of its own", self.name);
        assert_eq!(*legacy.socket(), self.config.socket, "{}: the legacy of another port", self.name);
        self.legacy = Some(legacy);
    }

    fn offer(&self, pairs: u16) -> Offer {
        let hashes = self.config.commanded(pairs);
        let config = NetConfig {
            mac: self.mac,
            status: net::S_LINK_UP,
            max_queue_pairs: pairs,
            mtu: self.config.mtu.unwrap_or(DEFAULT_MTU),
            speed: u32::MAX,
            duplex: 0xff,
            rss_max_key_size: if hashes { net::hash::MAX_KEY as u8 } else { 0 },
            rss_max_indirection_table_length: if hashes { net::hash::MAX_TABLE as u16 } else { 0 },
            supported_hash_types: if hashes { net::hash::ALL } else { 0 },
        };
        let mtu = self.config.mtu.unwrap_or(u16::MAX);
        let control = self.config.commanded(pairs).into();
        let features = self.config.features(pairs);
        let (postcopy, inband) = (self.config.postcopy, self.config.inband);
        Offer { features, pairs, control, mtu, postcopy, inband, config: config.as_bytes().to_vec() }
    }

    fn serve(&mut self, queues: u16) -> Result<(), PortError> {
        let caller = Arc::new(Caller::new(self.server.bell()));
        let door = || Door::new(Some(Arc::clone(&caller))).map(|(door, _)| door);
        let doors = (0..queues).map(|_| door()).collect::<Result<Arc<[Door]>, _>>();
        let what = "eventfd of a queue; is the limit of open files (ulimit -n) reached?".to_owned();
        let doors = doors.map_err(|source| PortError::Io { port: self.name.clone(), what, source })?;
        let up = Arc::new(AtomicBool::new(false));
        let name = format!("{} ({})", self.name, self.config.socket.path().display());
        let office = Office::new(queues.into());
        let inside = (Arc::clone(&doors), office.clone());
        let mac = (self.mac, self.config.mac.is_some());
        let host = Control::new(name, inside, caller, Arc::clone(&up), self.config.mapped, mac);
        let (socket, access) = (self.config.socket.clone(), self.config.access);
        let (offer, host) = (self.offer(queues), Box::new(host));
        let added = match self.legacy.take() {
            Some(legacy) => self.server.inherit(legacy, access, offer, host),
            None => self.server.add_for(access, socket, offer, host),
        };
        let id = added.map_err(|source| self.refused(source))?;
        self.served = Some(Served { id, doors, office, up });
        Ok(())
    }

    fn refused(&self, source: ServerError) -> PortError {
        let (port, what) = (self.name.clone(), "vhost-user socket".to_owned());
        PortError::Io { port, what, source: std::io::Error::other(source) }
    }

    fn leave(&mut self) {
        if let Some(served) = self.served.take() {
            drop(self.server.remove(served.id));
        }
    }
}

impl Port for Vhost {
    fn name(&self) -> &str {
        &self.name
    }

    fn driver(&self) -> &'static str {
        "net_vhost"
    }

    fn caps(&self) -> Caps {
        // What a guest did not negotiate is done in software before it gets the packet.
        Caps {
            mtu: self.config.mtu.map_or(MAX_FRAME - 18, u32::from),
            queues: self.config.queues,
            checksum: true,
            segmentation: true,
            reads_foreign_memory: false,
        }
    }

    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link(&self) -> Link {
        // Relaxed: nothing is read on the strength of it.
        let up = self.served.as_ref().is_some_and(|served| served.up.load(Ordering::Relaxed));
        Link { up: self.started && up, speed: 0 }
    }

    fn start(&mut self, queues: u16) -> Result<Vec<Box<dyn Queue>>, PortError> {
        assert!(!self.started, "{} is started twice", self.name);
        if queues == 0 || queues > self.config.queues {
            let what = format!("{queues} queues; it has 1 to {} (queues=)", self.config.queues);
            return Err(PortError::Config { port: self.name.clone(), what });
        }
        if self.served.as_ref().is_some_and(|served| served.doors.len() != usize::from(queues)) {
            self.leave();
        }
        if self.served.is_none() {
            self.serve(queues)?;
        }
        let Served { doors, office, .. } = self.served.as_ref().expect("served just now");
        let queue = |(door, index): (&Door, u16)| -> Box<dyn Queue> {
            Box::new(VhostQueue::new(door.inside(), Mail::new(office.clone(), index), Arc::default()))
        };
        let started: Vec<_> = doors.iter().zip(0..).map(queue).collect();
        self.tally = Tally::of(&started);
        self.started = true;
        Ok(started)
    }

    /// The front-end stays connected; its rings wait for the next start.
    fn stop(&mut self, queues: Vec<Box<dyn Queue>>) -> Result<(), PortError> {
        for queue in &queues {
            assert!(queue.lent() == 0 && queue.held() == 0, "{}: buffers are still out", self.name);
        }
        drop(queues);
        self.started = false;
        Ok(())
    }

    fn stats(&self) -> Vec<Stats> {
        self.tally.stats()
    }

    fn xstats(&self) -> Vec<(String, u64)> {
        let sum = self.tally.stats().into_iter().fold(Stats::default(), Stats::plus);
        vec![("tx_filtered".to_owned(), sum.tx_filtered), ("tx_in_place_packets".to_owned(), sum.tx_in_place)]
    }

    fn clear_stats(&mut self) {
        self.tally.clear();
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
