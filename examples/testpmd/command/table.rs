//! Every command of the prompt.

use super::Verb::*;
use super::Word::{Any, Is, Number, One, Port};
use super::{Command, Section, Verb, Word};

const fn command(verb: Verb, section: Section, words: &'static [Word], about: &'static str) -> Command {
    Command { verb, words, section, about }
}

pub(super) const MODES: &[&str] =
    &["io", "mac", "macswap", "flowgen", "rxonly", "txonly", "csum", "icmpecho", "noisy", "5tswap"];
const ON_OFF: Word = One(&["on", "off"]);

/// All commands, in the order of help.
pub(super) const COMMANDS: &[Command] = &[
    command(Start, Section::Control, &[Is("start")], "Start packet forwarding with current configuration."),
    command(
        StartFirst,
        Section::Control,
        &[Is("start"), Is("tx_first")],
        "Start packet forwarding with current config after sending one burst of packets.",
    ),
    command(
        StartFirst,
        Section::Control,
        &[Is("start"), Is("tx_first"), Number],
        "The same after sending so many bursts.",
    ),
    command(
        Stop,
        Section::Control,
        &[Is("stop")],
        "Stop packet forwarding, and display accumulated statistics.",
    ),
    command(Load, Section::Control, &[Is("load"), Any("file")], "Run the commands of a file."),
    command(Quit, Section::Control, &[Is("quit")], "Stop everything and leave."),
    command(Help, Section::Control, &[Is("help")], "List the sections of help."),
    command(
        Help,
        Section::Control,
        &[Is("help"), Any("section|command")],
        "Explain a section (control, display, config, ports, all) or the commands that begin with a word.",
    ),
    command(
        ShowPort,
        Section::Display,
        &[Is("show"), Is("port"), One(&["info", "stats", "summary", "xstats"]), Port],
        "Display information for port_id, or all.",
    ),
    command(
        ClearPort,
        Section::Display,
        &[Is("clear"), Is("port"), One(&["stats", "xstats"]), Port],
        "Clear information for port_id, or all.",
    ),
    command(
        ShowConfig,
        Section::Display,
        &[Is("show"), Is("config"), One(&["rxtx", "cores", "fwd", "txpkts"])],
        "Display the given configuration.",
    ),
    command(
        ShowForward,
        Section::Display,
        &[Is("show"), Is("fwd"), Is("stats"), Is("all")],
        "Display statistics for all fwd engines.",
    ),
    command(
        ClearForward,
        Section::Display,
        &[Is("clear"), Is("fwd"), Is("stats"), Is("all")],
        "Clear statistics for all fwd engines.",
    ),
    command(
        ShowLimits,
        Section::Display,
        &[Is("show"), Is("limits")],
        "Display how much peers can make of anything, and how much there is.",
    ),
    command(
        ShowRings,
        Section::Display,
        &[Is("show"), Is("rings")],
        "Display where the buffers of every queue are, and what its core does.",
    ),
    command(
        ShowVhost,
        Section::Display,
        &[Is("show"), Is("vhost")],
        "Display who is connected to the vhost and virtio_user ports.",
    ),
    command(SetForward, Section::Config, &[Is("set"), Is("fwd"), One(MODES)], "Set packet forwarding mode."),
    command(SetBurst, Section::Config, &[Is("set"), Is("burst"), Number], "Set number of packets per burst."),
    command(
        SetTxpkts,
        Section::Config,
        &[Is("set"), Is("txpkts"), Any("x[,y]*")],
        "Set the length of each segment of TXONLY and FLOWGEN packets.",
    ),
    command(
        SetVerbose,
        Section::Config,
        &[Is("set"), Is("verbose"), Number],
        "Set the debug verbosity level X: 1 prints received packets.",
    ),
    command(
        SetCores,
        Section::Config,
        &[Is("set"), Is("nbcore"), Number],
        "Set number of cores used for forwarding.",
    ),
    command(
        SetPorts,
        Section::Config,
        &[Is("set"), Is("nbport"), Number],
        "Set number of ports used for forwarding.",
    ),
    command(
        SetPromisc,
        Section::Config,
        &[Is("set"), One(&["promisc", "allmulti"]), Port, ON_OFF],
        "Set promiscuous or allmulti mode: of NICs; other ports take every frame.",
    ),
    command(
        MacAddress,
        Section::Config,
        &[Is("mac_addr"), One(&["add", "remove"]), Port, Any("XX:XX:XX:XX:XX:XX")],
        "Add or remove a further MAC address of a NIC.",
    ),
    command(
        Multicast,
        Section::Config,
        &[Is("mcast_addr"), One(&["add", "remove"]), Port, Any("mcast_addr")],
        "Add or remove a multicast address that a NIC takes frames for.",
    ),
    command(
        Vlan,
        Section::Config,
        &[Is("rx_vlan"), One(&["add", "rm"]), Any("vlan_id|all"), Port],
        "Add or remove a VLAN that a NIC takes frames of, while its VLAN filter is on.",
    ),
    command(
        VlanFilter,
        Section::Config,
        &[Is("vlan"), Is("set"), Is("filter"), ON_OFF, Port],
        "Take tagged frames of some VLANs only, of none at first; or of all.",
    ),
    command(
        SetPeer,
        Section::Config,
        &[Is("set"), Is("eth-peer"), Port, Any("peer_addr")],
        "Set the peer address for certain port.",
    ),
    command(
        SetTopology,
        Section::Config,
        &[Is("set"), Is("port-topology"), One(&["paired", "chained", "loop"])],
        "Set which port a packet leaves by.",
    ),
    command(
        SetCycles,
        Section::Config,
        &[Is("set"), Is("record-core-cycles"), ON_OFF],
        "Set the option to enable measurement of CPU cycles.",
    ),
    command(
        SetBursts,
        Section::Config,
        &[Is("set"), Is("record-burst-stats"), ON_OFF],
        "Set the option to enable display of RX and TX bursts.",
    ),
    command(PortStart, Section::Ports, &[Is("port"), Is("start"), Port], "Start all ports or port_id."),
    command(PortStop, Section::Ports, &[Is("port"), Is("stop"), Port], "Stop all ports or port_id."),
    command(PortClose, Section::Ports, &[Is("port"), Is("close"), Port], "Close all ports or port_id."),
    command(
        PortReset,
        Section::Ports,
        &[Is("port"), Is("reset"), Port],
        "Stop and start all ports or port_id.",
    ),
    command(
        PortAttach,
        Section::Ports,
        &[Is("port"), Is("attach"), Any("ident")],
        "Make a port, as --vdev does; it is stopped.",
    ),
    command(
        PortDetach,
        Section::Ports,
        &[Is("port"), Is("detach"), Port],
        "Remove a stopped port by port_id.",
    ),
    command(
        PortConfig,
        Section::Ports,
        &[Is("port"), Is("config"), Is("all"), One(&["rxq", "txq", "rxd", "txd", "burst"]), Number],
        "Set number for rxq/txq/rxd/txd of stopped ports, or packets per burst.",
    ),
];
