//! Ports from their descriptions.

use hugepages::Backing;
use pmd::Port;
use pmd::confine::User;
use pmd::port::{
    afxdp, fault, generator, gro, memif, nic, null, packet, pcap, tap, tracer, vhost, virtio_user,
};
use pmd::vhost::handover::{Claim, Will};
use pmd::vhost::{Access, Handle, Server, Socket};

use super::Error;
use super::faults;
use super::vdev::Vdev;

/// What ports have that are not told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Entries of a receive ring; 0: what the port usually has.
    pub rxd: u16,
    /// The same for sending.
    pub txd: u16,
    /// Queues.
    pub queues: u16,
    /// Bytes of the largest packet, after the Ethernet header.
    pub mtu: u32,
}

/// Makes ports.
pub struct Maker {
    /// What their buffers are made of.
    backing: Backing,
    /// Serves the sockets of all vhost ports; started for the first. Outlives the ports it serves.
    server: Option<Server>,
    /// Ports of the process before, see `--takeover`.
    pub claim: Option<Claim>,
    /// Where the next process will come, if there was none before.
    pub will: Option<Will>,
}

impl Maker {
    /// Makes ports whose buffers are in such pages.
    pub fn new(backing: Backing) -> Maker {
        Maker { backing, server: None, claim: None, will: None }
    }

    /// What serves the vhost ports, if there are any.
    pub fn server(&self) -> Option<Handle> {
        self.server.as_ref().map(Server::handle)
    }

    /// What buffers are made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Makes the port that `vdev` describes, not started.
    ///
    /// # Errors
    /// When the port refuses its keys, or the system refuses what it needs.
    pub fn make(&mut self, vdev: &Vdev, rings: &Rings) -> Result<Box<dyn Port>, Error> {
        let name = vdev.name.as_str();
        let mut port: Box<dyn Port> = match vdev.kind {
            "null" => Box::new(null::Null::new(name, self.null(vdev))?),
            "generator" => Box::new(generator::Generator::new(name, self.generator(vdev))?),
            "nic" => nic::new(name, vdev.text("pci").unwrap_or_default(), self.nic(vdev, rings))?,
            "memif" => Box::new(memif::Memif::new(name, self.memif(vdev, rings)?)?),
            "tap" => Box::new(tap::Tap::new(name, self.tap(vdev))?),
            "af_xdp" => Box::new(afxdp::Afxdp::new(name, self.afxdp(vdev)?)?),
            "af_packet" => Box::new(packet::Packet::new(name, packet_port(vdev))?),
            "dpdk" => self.dpdk_port(vdev, rings)?,
            "pcap" => Box::new(pcap::Pcap::new(name, self.pcap(vdev))?),
            "vhost" => {
                let server = match self.server.take() {
                    Some(server) => server,
                    None => Server::start().map_err(|e| Error::Usage(e.to_string()))?,
                };
                let handle = self.server.insert(server).handle();
                let mut port = vhost::Vhost::new(name, vhost(vdev, rings)?, &handle)?;
                let left = socket(vdev).and_then(|socket| self.claim.as_mut()?.take(&socket));
                left.into_iter().for_each(|left| port.inherit(left));
                Box::new(port)
            }
            "virtio_user" => Box::new(virtio_user::VirtioUser::new(name, self.virtio_user(vdev, rings))?),
            kind => unreachable!("{kind} is not among vdev::KINDS"),
        };
        // From the inside out: what goes wrong, what is recorded of it, what is told of it, what is joined.
        if let Some(config) = vdev.text("fault").and_then(faults::parse) {
            port = Box::new(fault::Fault::new(port, fault::Config { backing: self.backing, ..config })?);
        }
        if let Some(path) = vdev.text("record") {
            port = Box::new(pcap::Tap::new(port, path.as_ref())?);
        }
        match vdev.text("tracer") {
            None | Some("0") => {}
            Some("1") => port = Box::new(tracer::Tracer::new(port, tracer::Config::default())?),
            Some(path) => {
                let config = tracer::Config { file: Some(path.into()) };
                port = Box::new(tracer::Tracer::new(port, config)?);
            }
        }
        if vdev.flag("gro") == Some(true) {
            port = Box::new(gro::Gro::around(port, self.backing));
        }
        Ok(port)
    }

    /// Starts DPDK with these arguments: a port for each device that it has found.
    ///
    /// # Errors
    /// What DPDK refuses; or when this testpmd was built without it.
    #[cfg(feature = "dpdk")]
    pub fn dpdk(&mut self, args: &str) -> Result<Vec<Vdev>, Error> {
        use pmd::port::dpdk;
        dpdk::init(&args.split_whitespace().map(str::to_owned).collect::<Vec<_>>())?;
        let found = dpdk::ports();
        if found.is_empty() {
            return Err(Error::Usage(format!("--dpdk {args}: DPDK has found no device")));
        }
        let vdev = |(i, (_, name)): (usize, (u16, String))| Vdev::parse(&format!("dpdk{i},device={name}"));
        found.into_iter().enumerate().map(vdev).collect()
    }

    /// A testpmd without DPDK says how to have one.
    #[cfg(not(feature = "dpdk"))]
    pub fn dpdk(&mut self, _: &str) -> Result<Vec<Vdev>, Error> {
        Err(without_dpdk("--dpdk"))
    }

    #[cfg(feature = "dpdk")]
    fn dpdk_port(&self, vdev: &Vdev, rings: &Rings) -> Result<Box<dyn Port>, Error> {
        use pmd::port::dpdk;
        let device = vdev.text("device").unwrap_or_default();
        let found = dpdk::ports();
        let Some(&(id, _)) = found.iter().find(|(_, name)| name == device) else {
            let names: Vec<_> = found.iter().map(|(_, name)| name.as_str()).collect();
            let known = if names.is_empty() { "none: start it by --dpdk".into() } else { names.join(", ") };
            return Err(Error::Usage(format!(
                "--vdev {}: DPDK has no device '{device}'; it has {known}",
                vdev.name
            )));
        };
        let default = dpdk::Config::default();
        let ring = |given: u16, usual| if given > 0 { given } else { usual };
        let config = dpdk::Config {
            id,
            rings: (ring(rings.rxd, default.rings.0), ring(rings.txd, default.rings.1)),
            mtu: vdev.number("mtu").map(|n| n as u32),
            promiscuous: vdev.flag("promisc").unwrap_or(true),
            backing: self.backing,
            ..default
        };
        Ok(Box::new(dpdk::Dpdk::new(&vdev.name, config)?))
    }

    #[cfg(not(feature = "dpdk"))]
    fn dpdk_port(&self, vdev: &Vdev, _: &Rings) -> Result<Box<dyn Port>, Error> {
        Err(without_dpdk(&format!("--vdev {}", vdev.name)))
    }

    fn null(&self, vdev: &Vdev) -> null::Config {
        null::Config {
            size: vdev.number("size").unwrap_or(64) as u32,
            no_rx: vdev.flag("no-rx").unwrap_or(false),
            backing: self.backing,
            ..null::Config::default()
        }
    }

    fn generator(&self, vdev: &Vdev) -> generator::Config {
        let sizes = match vdev.flag("imix") {
            Some(true) => generator::IMIX.to_vec(),
            _ => vec![vdev.number("size").unwrap_or(64) as u32],
        };
        generator::Config {
            flows: vdev.number("flows").unwrap_or(1) as u32,
            sizes,
            // 0 is no limit.
            rate: vdev.number("rate").filter(|&n| n > 0),
            count: vdev.number("count").filter(|&n| n > 0),
            check: vdev.flag("check").unwrap_or(false),
            backing: self.backing,
            ..generator::Config::default()
        }
    }

    fn pcap(&self, vdev: &Vdev) -> pcap::Config {
        pcap::Config {
            rx: vdev.text("rx_pcap").map(Into::into),
            tx: vdev.text("tx_pcap").map(Into::into),
            looped: vdev.flag("infinite_rx").unwrap_or(false),
            rate: vdev.number("rate").filter(|&n| n > 0),
            backing: self.backing,
            ..pcap::Config::default()
        }
    }

    fn virtio_user(&self, vdev: &Vdev, rings: &Rings) -> virtio_user::Config {
        let default = virtio_user::Config::default();
        // As asked for all rings, if this port is not told.
        let ring = Some(rings.rxd.max(rings.txd)).filter(|&n| n > 0).unwrap_or(default.queue_size);
        virtio_user::Config {
            path: vdev.text("path").unwrap_or_default().into(),
            server: vdev.flag("server").unwrap_or(false),
            queues: queues(vdev).unwrap_or(rings.queues),
            queue_size: vdev.number("queue_size").map_or(ring, |n| n as u16),
            packed: vdev.flag("packed_vq").unwrap_or(default.packed),
            mrg_rxbuf: vdev.flag("mrg_rxbuf").unwrap_or(default.mrg_rxbuf),
            in_order: vdev.flag("in_order").unwrap_or(default.in_order),
            event_idx: vdev.flag("event_idx").unwrap_or(default.event_idx),
            indirect: vdev.flag("indirect").unwrap_or(default.indirect),
            offloads: vdev.flag("offloads").unwrap_or(default.offloads),
            mac: vdev.mac("mac"),
            mtu: vdev.number("mtu").map_or(rings.mtu, |n| n as u32),
            backing: self.backing,
        }
    }

    fn memif(&self, vdev: &Vdev, rings: &Rings) -> Result<memif::Config, Error> {
        let usage = |what: String| Error::Usage(format!("--vdev {}: {what}", vdev.name));
        let default = memif::Config::default();
        let role = match vdev.text("role") {
            None | Some("client" | "slave") => memif::Role::Client,
            Some("server" | "master") => memif::Role::Server,
            Some(other) => return Err(usage(format!("role={other} is none of client, server"))),
        };
        let is_abstract = match vdev.text("socket-abstract") {
            None | Some("yes" | "1") => true,
            Some("no" | "0") => false,
            Some(other) => return Err(usage(format!("socket-abstract={other} is none of yes, no"))),
        };
        // As asked for all rings, if this port is not told.
        let ring = rings.rxd.max(rings.txd);
        let usual = if ring > 0 { ring.next_power_of_two().ilog2() as u8 } else { default.ring_log2 };
        Ok(memif::Config {
            role,
            socket: vdev.text("socket").unwrap_or(memif::SOCKET).into(),
            is_abstract,
            id: vdev.number("id").unwrap_or(0) as u32,
            secret: vdev.text("secret").unwrap_or_default().into(),
            ring_log2: vdev.number("rsize").map_or(usual, |n| n as u8),
            buffer: vdev.number("bsize").map_or(default.buffer, |n| n as u32),
            mac: vdev.mac("mac"),
            backing: self.backing,
        })
    }

    fn nic(&self, vdev: &Vdev, rings: &Rings) -> nic::Config {
        let default = nic::Config::default();
        let ring = |given: u16, usual| if given > 0 { given } else { usual };
        nic::Config {
            rx_size: ring(rings.rxd, default.rx_size),
            tx_size: ring(rings.txd, default.tx_size),
            mtu: vdev.number("mtu").map_or(rings.mtu, |n| n as u32),
            promiscuous: vdev.flag("promisc").unwrap_or(default.promiscuous),
            mac: vdev.mac("mac"),
            copy_break: vdev.number("copy_break").map_or(default.copy_break, |n| n as u32),
            direct: vdev.flag("direct").unwrap_or(default.direct),
            backing: self.backing,
        }
    }

    fn afxdp(&self, vdev: &Vdev) -> Result<afxdp::Config, Error> {
        let usage = |what: String| Error::Usage(format!("--vdev {}: {what}", vdev.name));
        let mode = match vdev.text("mode") {
            None | Some("auto") => afxdp::Mode::Auto,
            Some("native") => afxdp::Mode::Native,
            Some("generic") => afxdp::Mode::Generic,
            Some(other) => return Err(usage(format!("mode={other} is none of auto, native, generic"))),
        };
        let leave = vdev.text("leave").map(|text| text.split('+').map(str::parse).collect());
        Ok(afxdp::Config {
            iface: vdev.text("iface").unwrap_or_default().into(),
            netns: vdev.text("netns").map(str::to_owned),
            start_queue: vdev.number("start_queue").unwrap_or(0) as u16,
            mode,
            force_copy: vdev.flag("force_copy").unwrap_or(false),
            promiscuous: vdev.flag("promisc").unwrap_or(true),
            busy_budget: vdev.number("busy_budget").unwrap_or(0) as u32,
            leave: leave
                .transpose()
                .map_err(|what: String| usage(format!("leave=: {what}")))?
                .unwrap_or_default(),
            backing: self.backing,
            ..afxdp::Config::default()
        })
    }

    fn tap(&self, vdev: &Vdev) -> tap::Config {
        let number = vdev.name.trim_start_matches("net_tap");
        tap::Config {
            iface: vdev.text("iface").map_or_else(|| format!("dtap{number}"), str::to_owned),
            netns: vdev.text("netns").map(str::to_owned),
            fds: vdev.texts("fd").filter_map(|fd| fd.parse().ok()).collect(),
            persistent: vdev.flag("persist").unwrap_or(false),
            mac: vdev.mac("mac"),
            mtu: vdev.number("mtu").map(|n| n as u32),
            checksum: vdev.flag("csum").unwrap_or(true),
            segmentation: vdev.flag("tso").unwrap_or(false),
            udp_segmentation: vdev.flag("uso").unwrap_or(false),
            backing: self.backing,
            ..tap::Config::default()
        }
    }
}

#[cfg(not(feature = "dpdk"))]
fn without_dpdk(what: &str) -> Error {
    Error::Usage(format!(
        "{what}: this testpmd was built without DPDK; install libdpdk (22.11 or later) and build it by: cargo build \
         --release --features dpdk --bin testpmd"
    ))
}

fn packet_port(vdev: &Vdev) -> packet::Config {
    let default = packet::Config::default();
    packet::Config {
        iface: vdev.text("iface").unwrap_or_default().into(),
        netns: vdev.text("netns").map(str::to_owned),
        promiscuous: vdev.flag("promisc").unwrap_or(true),
        qdisc_bypass: vdev.flag("qdisc_bypass").unwrap_or(false),
        block: vdev.number("blocksz").map_or(default.block, |n| n as u32),
        blocks: vdev.number("blockcnt").map_or(default.blocks, |n| n as u32),
    }
}

/// The socket of a vhost port; `None`: it is another kind.
pub fn socket(vdev: &Vdev) -> Option<Socket> {
    let path = vdev.text("iface").unwrap_or_default().into();
    let connects = vdev.flag("client").unwrap_or(false);
    let socket = if connects { Socket::Connect(path) } else { Socket::Listen(path) };
    (vdev.kind == "vhost").then_some(socket)
}

fn vhost(vdev: &Vdev, rings: &Rings) -> Result<vhost::Config, Error> {
    let default = vhost::Config::new(socket(vdev).expect("it is a vhost port"));
    let user = |key| vdev.text(key).map(User::find).transpose();
    // A user's number may be one that has no name.
    let number = |peer: &str| peer.parse().or_else(|_| User::find(peer).map(|user| user.uid));
    let access = Access {
        mode: vdev.mode("mode"),
        owner: user("owner")?,
        peer: vdev.text("peer-uid").map(number).transpose()?,
    };
    Ok(vhost::Config {
        access,
        queues: queues(vdev).unwrap_or(rings.queues),
        packed: vdev.flag("packed").unwrap_or(default.packed),
        in_order: vdev.flag("in_order").unwrap_or(default.in_order),
        mergeable: vdev.flag("mrg_rxbuf").unwrap_or(default.mergeable),
        checksum: vdev.flag("csum").unwrap_or(default.checksum),
        segmentation: vdev.flag("tso").unwrap_or(default.segmentation),
        control: vdev.flag("ctrl_vq").unwrap_or(default.control),
        ring_reset: vdev.flag("ring_reset").unwrap_or(default.ring_reset),
        mtu: vdev.number("mtu").map(|n| n as u16),
        mapped: vdev.flag("mapped").unwrap_or(default.mapped),
        iommu: vdev.flag("iommu-support").unwrap_or(default.iommu),
        postcopy: vdev.flag("postcopy-support").unwrap_or(default.postcopy),
        inband: vdev.flag("inband").unwrap_or(default.inband),
        mac: vdev.mac("mac"),
        ..default
    })
}

/// Queues that a port is described to have, if it is said.
pub fn queues(vdev: &Vdev) -> Option<u16> {
    vdev.number("queues").map(|n| n as u16)
}
