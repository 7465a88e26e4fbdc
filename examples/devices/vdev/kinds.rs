//! Every kind of port and its keys.

use super::Form;

/// A key of a kind of port.
#[derive(Debug)]
pub(super) struct Key {
    /// As it is spelled.
    pub name: &'static str,
    /// What its value may be.
    pub form: Form,
    /// What it does, for `--help`.
    pub about: &'static str,
}

const fn key(name: &'static str, form: Form, about: &'static str) -> Key {
    Key { name, form, about }
}

/// A kind of port.
#[derive(Debug)]
pub(super) struct Kind {
    /// Without the number and without `net_`.
    pub name: &'static str,
    /// What it is, for `--help`.
    pub about: &'static str,
    /// Its own keys.
    pub keys: &'static [Key],
    /// Keys without which it cannot be.
    pub required: &'static [&'static str],
    /// Keys of DPDK's port of that name that have nothing to act on here.
    pub meaningless: &'static [&'static str],
}

const QUEUES: Key = key("queues", Form::Number(1, 128), "queue pairs");
const NETNS: Key = key("netns", Form::Text, "network namespace of the interface; ours unless given");
const MAC: Key = key("mac", Form::Mac, "its MAC address; made from its name unless given");

/// Every kind of port, in the order of `--help`.
pub(super) const KINDS: &[Kind] = &[
    Kind {
        name: "vhost",
        about: "a virtual machine or container connects here over vhost-user",
        keys: &[
            key("iface", Form::Text, "path of the unix socket"),
            key("client", Form::Flag, "1: connect to the socket and reconnect; 0: listen on it"),
            key("mode", Form::Mode, "permissions of the socket"),
            key("owner", Form::Text, "owner of the socket: a user, or UID:GID"),
            key("peer-uid", Form::Text, "serve processes of this user only"),
            key("queues", Form::Number(1, 128), "queue pairs offered"),
            key("packed", Form::Flag, "0: do not offer packed rings"),
            key("in_order", Form::Flag, "0: do not offer in-order completion"),
            key("mrg_rxbuf", Form::Flag, "0: do not offer mergeable receive buffers"),
            key("csum", Form::Flag, "0: do not offer checksum offload"),
            key("tso", Form::Flag, "0: do not offer segmentation offload"),
            key("ctrl_vq", Form::Flag, "0: do not offer a control queue"),
            key("ring_reset", Form::Flag, "1: offer to reset single rings; not for QEMU's vhost-user-net"),
            key("mtu", Form::Number(68, 65535), "MTU told to the guest"),
            key("mapped", Form::Flag, "0: reach ring metadata by the checked path"),
            key("postcopy-support", Form::Flag, "1: take guests before their memory has come"),
            key("inband", Form::Flag, "1: offer messages in place of eventfds, for simulations"),
            key("iommu-support", Form::Flag, "0: do not offer to use addresses of the guest's IOMMU"),
            MAC,
        ],
        required: &["iface"],
        meaningless: &["linear-buffer", "ext-buffer", "legacy-ol-flags"],
    },
    Kind {
        name: "virtio_user",
        about: "the driver's side of a virtio ring: connects to any vhost-user back-end",
        keys: &[
            key("path", Form::Text, "path of the unix socket"),
            key("server", Form::Flag, "1: listen on the socket; 0: connect to it"),
            QUEUES,
            key("queue_size", Form::Number(1, 32768), "descriptors in a ring; 256 unless given"),
            key("packed_vq", Form::Flag, "1: packed rings"),
            key("mrg_rxbuf", Form::Flag, "0: no mergeable receive buffers"),
            key("in_order", Form::Flag, "0: no in-order completion"),
            key("event_idx", Form::Flag, "1: notifications by event index"),
            key("indirect", Form::Flag, "0: no indirect descriptors"),
            key("offloads", Form::Flag, "1: checksum and segmentation offload, both ways"),
            key("mtu", Form::Number(68, 65513), "largest payload of a frame; 1500 unless given"),
            MAC,
        ],
        required: &["path"],
        meaningless: &["cq", "speed", "vectorized"],
    },
    Kind {
        name: "memif",
        about: "another process over memif: VPP, DPDK, a container without virtio",
        keys: &[
            key("role", Form::Text, "client: brings the memory and connects, unless given; server: listens"),
            key("socket", Form::Text, "the server's socket; /run/memif.sock unless given"),
            key("socket-abstract", Form::Text, "no: the socket is a file; yes, unless given: a name of none"),
            key("id", Form::Number(0, 4_294_967_295), "number of the interface on its socket"),
            key("rsize", Form::Number(0, 14), "descriptors of a ring, as a power of two; 10 unless given"),
            key(
                "bsize",
                Form::Number(512, 16384),
                "bytes of a buffer, the same on both sides; 2048 unless given",
            ),
            key("secret", Form::Text, "what both sides must know, up to 24 bytes"),
            QUEUES,
            MAC,
        ],
        required: &[],
        meaningless: &["zero-copy"],
    },
    Kind {
        name: "tap",
        about: "a network interface of the host",
        keys: &[
            key("iface", Form::Text, "name of the interface; dtap<N> unless given"),
            key("csum", Form::Flag, "0: the host completes checksums before it sends"),
            key(
                "tso",
                Form::Flag,
                "1: the host sends TCP packets of up to 64 KiB, for guests that take them",
            ),
            key("uso", Form::Flag, "1: the same for UDP"),
            key("mtu", Form::Number(68, 65535), "MTU of the interface"),
            key("persist", Form::Flag, "1: the interface stays when the port goes"),
            NETNS,
            key("fd", Form::Number(0, 1_000_000), "a queue opened by who started us; once for each queue"),
            QUEUES,
            MAC,
        ],
        required: &[],
        meaningless: &[],
    },
    Kind {
        name: "af_xdp",
        about: "a network interface of the host, past its network stack",
        keys: &[
            key("iface", Form::Text, "name of the interface"),
            key("start_queue", Form::Number(0, 1023), "its first queue that is used; 0 unless given"),
            key("mode", Form::Text, "native: in the driver; generic: behind it; auto, unless given"),
            key("force_copy", Form::Flag, "1: no zero copy between NIC and memory"),
            key("promisc", Form::Flag, "0: only what is for its own address"),
            key("busy_budget", Form::Number(0, 65535), "packets a busy poll handles; 0: interrupts"),
            key("leave", Form::Text, "what stays with the kernel: arp+tcp:22+udp:53"),
            NETNS,
            QUEUES,
        ],
        required: &["iface"],
        meaningless: &["queue_count", "shared_umem", "xdp_prog", "use_cni", "use_pinned_map", "dp_path"],
    },
    Kind {
        name: "af_packet",
        about: "a network interface of the host, beside its network stack; for those without XDP",
        keys: &[
            key("iface", Form::Text, "name of the interface"),
            key("promisc", Form::Flag, "0: only what is for its own address"),
            key("qdisc_bypass", Form::Flag, "1: sends past the queueing discipline of the interface"),
            key("blocksz", Form::Number(131_072, 1 << 30), "bytes of a block of the ring, a power of two"),
            key("blockcnt", Form::Number(2, 4096), "blocks of a ring; 32 of 262144 bytes unless given"),
            NETNS,
            QUEUES,
        ],
        required: &["iface"],
        meaningless: &["qpairs", "framesz", "framecnt", "fanout_mode"],
    },
    Kind {
        name: "pcap",
        about: "frames from and to capture files",
        keys: &[
            key("rx_pcap", Form::Text, "file to receive the frames of"),
            key("tx_pcap", Form::Text, "file to write sent frames to"),
            key("infinite_rx", Form::Flag, "1: read the file again and again"),
            key("rate", Form::Number(0, 1_000_000_000), "packets per second; 0: as fast as asked"),
        ],
        required: &[],
        meaningless: &[],
    },
    Kind {
        name: "null",
        about: "takes everything, gives empty frames",
        keys: &[
            key("size", Form::Number(14, 65535), "bytes of a frame"),
            key("no-rx", Form::Flag, "1: gives nothing"),
            QUEUES,
        ],
        required: &[],
        meaningless: &["copy"],
    },
    Kind {
        name: "nic",
        about: "a NIC bound to vfio-pci; -a PCI-ADDRESS,key=value,... is the same (docs/nics.md)",
        keys: &[
            key("pci", Form::Text, "its address, as 0000:3b:00.0; scripts/bind status lists them"),
            key("copy_break", Form::Number(0, 65535), "frames of at most so many bytes are copied when sent"),
            key("direct", Form::Flag, "1: a guest's own: what comes in goes straight into its buffers"),
            key("promisc", Form::Flag, "0: take only frames for its own address"),
            key("mtu", Form::Number(68, 65535), "largest payload of a frame; --max-pkt-len unless given"),
            QUEUES,
            MAC,
        ],
        required: &["pci"],
        meaningless: &[],
    },
    Kind {
        name: "dpdk",
        about: "a device of DPDK's; --dpdk makes one of each it finds",
        keys: &[
            key("device", Form::Text, "DPDK's name of it, as 0000:01:00.0 or net_tap0"),
            key("promisc", Form::Flag, "0: only what is for its own address"),
            key("mtu", Form::Number(68, 65535), "largest payload of a frame"),
            QUEUES,
        ],
        required: &["device"],
        meaningless: &[],
    },
    Kind {
        name: "generator",
        about: "UDP flows, numbered frame by frame, and a check of what comes back",
        keys: &[
            key("flows", Form::Number(1, 1_000_000), "UDP flows"),
            key("size", Form::Number(60, 65535), "bytes of a frame"),
            key("imix", Form::Flag, "1: frames of 64, 594 and 1518 bytes, 7:4:1"),
            key("rate", Form::Number(0, 1_000_000_000), "packets per second; 0: as fast as asked"),
            key("count", Form::Number(0, u64::MAX), "frames to make in all; 0: no end"),
            key("check", Form::Flag, "1: verify the frames that come in, count lost and damaged ones"),
            QUEUES,
        ],
        required: &[],
        meaningless: &[],
    },
];

/// Keys that any port takes: a port around the port.
pub(super) const WRAPPERS: &[Key] = &[
    key("tracer", Form::Text, "1: a line for every packet on standard error; otherwise the file it goes to"),
    key("record", Form::Text, "capture file for the frames of both directions"),
    key("gro", Form::Flag, "1: join TCP segments that it receives, for far ports that take large packets"),
    key("fault", Form::Faults, "what goes wrong, and how often: drop:0.01+corrupt:0.001+permute:1+..."),
];

/// The kinds and keys of ports, for `--help`.
pub fn help() -> String {
    let mut out = String::from("Kinds of ports (--vdev KIND<N>,key=value,...; net_KIND<N> is the same):\n");
    for kind in KINDS {
        out += &format!("  {}<N>  {}\n", kind.name, kind.about);
        for key in kind.keys {
            let needed = if kind.required.contains(&key.name) { " (required)" } else { "" };
            out += &format!("      {:<12} {}{needed}\n", format!("{}=", key.name), key.about);
        }
    }
    out += "  any port\n";
    for key in WRAPPERS {
        out += &format!("      {:<12} {}\n", format!("{}=", key.name), key.about);
    }
    out
}
