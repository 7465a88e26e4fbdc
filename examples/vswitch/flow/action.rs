//! What a flow does: actions, in the order and the words of `ovs-ofctl`. Instructions of OpenFlow 1.1
//! and later stand among them, as the last of a list.

use std::net::IpAddr;

use super::fields::{Field, Subfield};
use super::matching::Match;

/// Port numbers of OpenFlow 1.1 and later that mean something else.
#[allow(missing_docs)]
pub mod port {
    pub const MAX: u32 = 0xffff_ff00;
    pub const UNSET: u32 = 0xffff_fff7;
    pub const IN_PORT: u32 = 0xffff_fff8;
    pub const TABLE: u32 = 0xffff_fff9;
    pub const NORMAL: u32 = 0xffff_fffa;
    pub const FLOOD: u32 = 0xffff_fffb;
    pub const ALL: u32 = 0xffff_fffc;
    pub const CONTROLLER: u32 = 0xffff_fffd;
    pub const LOCAL: u32 = 0xffff_fffe;
    pub const ANY: u32 = 0xffff_ffff;
    /// Ordinary ports have numbers below this.
    pub const FIRST_RESERVED: u32 = 0xff00;

    /// Names of those that have one, as `ovs-ofctl` prints them.
    pub const NAMES: &[(&str, u32)] = &[
        ("IN_PORT", IN_PORT),
        ("TABLE", TABLE),
        ("NORMAL", NORMAL),
        ("FLOOD", FLOOD),
        ("ALL", ALL),
        ("CONTROLLER", CONTROLLER),
        ("LOCAL", LOCAL),
        ("ANY", ANY),
        ("UNSET", UNSET),
    ];
}

/// A port number in OpenFlow 1.0's 16 bits.
pub fn port_to_16(port: u32) -> u16 {
    port as u16
}

/// A port number from OpenFlow 1.0's 16 bits.
pub fn port_from_16(port: u16) -> u32 {
    let wide = u32::from(port);
    if wide >= port::FIRST_RESERVED { wide | 0xffff_0000 } else { wide }
}

/// Bytes of a packet that a controller is sent unless it says otherwise; all of it.
pub const WHOLE_PACKET: u16 = u16::MAX;
/// Priority of a flow that names none.
pub const DEFAULT_PRIORITY: u16 = 0x8000;
/// In place of a table's number: the one the packet is in.
pub const SAME_TABLE: u8 = 255;
/// Tables of a bridge: 0 to 253.
pub const TABLES: u8 = 254;

/// An action, or an instruction.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To a port, or one that means something else: see [`port`]. Of a controller: at most `max_len` bytes.
    Output {
        port: u32,
        max_len: u16,
    },
    /// To the port whose number is there.
    OutputReg {
        src: Subfield,
        max_len: u16,
    },
    /// The first bytes only.
    OutputTrunc {
        port: u32,
        max_len: u32,
    },
    Controller(Box<Controller>),
    Enqueue {
        port: u32,
        queue: u32,
    },
    Group(u32),
    SetQueue(u32),
    PopQueue,
    /// `mod_vlan_vid` pushes a tag where there is none, `set_vlan_vid` does not.
    SetVlanVid {
        vid: u16,
        push: bool,
    },
    SetVlanPcp {
        pcp: u8,
        push: bool,
    },
    /// `pop` of those who call it `pop_vlan`, not `strip_vlan`.
    PopVlan {
        pop: bool,
    },
    PushVlan(u16),
    SetEthSrc([u8; 6]),
    SetEthDst([u8; 6]),
    SetIpv4Src(u32),
    SetIpv4Dst(u32),
    SetDscp(u8),
    SetEcn(u8),
    SetTtl(u8),
    SetTpSrc(u16),
    SetTpDst(u16),
    /// `set_field:value/mask->field`.
    SetField {
        field: Field,
        value: u128,
        mask: u128,
    },
    /// `load:value->field[a..b]`.
    Load {
        value: u128,
        dst: Subfield,
    },
    Move {
        src: Subfield,
        dst: Subfield,
    },
    StackPush(Subfield),
    StackPop(Subfield),
    /// Of the controllers to be told; empty: `dec_ttl` alone.
    DecTtl(Vec<u16>),
    SetMplsLabel(u32),
    SetMplsTc(u8),
    SetMplsTtl(u8),
    DecMplsTtl,
    PushMpls(u16),
    PopMpls(u16),
    /// `wide`: `set_tunnel64`.
    SetTunnel {
        id: u64,
        wide: bool,
    },
    /// Through a table as if it came from this port ([`port::IN_PORT`]: as it did).
    Resubmit {
        port: u32,
        table: u8,
        ct: bool,
    },
    Learn(Box<Learn>),
    Conjunction {
        id: u32,
        clause: u8,
        clauses: u8,
    },
    Multipath(Box<Multipath>),
    Bundle(Box<Bundle>),
    FinTimeout {
        idle: u16,
        hard: u16,
    },
    Note(Vec<u8>),
    Exit,
    Clone(Vec<Action>),
    Sample(Box<Sample>),
    Ct(Box<Ct>),
    CtClear,
    /// Within [`Ct`] only.
    Nat(Box<Nat>),
    CheckPktLarger {
        len: u16,
        dst: Subfield,
    },
    // What OpenFlow calls instructions.
    Meter(u32),
    ClearActions,
    WriteActions(Vec<Action>),
    WriteMetadata {
        value: u64,
        mask: u64,
    },
    GotoTable(u8),
}

/// Why a packet is sent to a controller (`OFPR_*`).
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NoMatch = 0,
    Action = 1,
    InvalidTtl = 2,
    ActionSet = 3,
    Group = 4,
    PacketOut = 5,
}

/// `controller(...)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Bytes of the packet at most.
    pub max_len: u16,
    /// Which controller; 0: those that do not say.
    pub id: u16,
    /// Why it is sent.
    pub reason: Reason,
    /// Given back with the packet.
    pub userdata: Vec<u8>,
    /// Wait for the controller to resume it.
    pub pause: bool,
    /// Its meter, if it has one.
    pub meter: Option<u32>,
}

impl Controller {
    /// All of the packet, by an action, to any controller.
    pub fn plain(max_len: u16) -> Controller {
        Controller { max_len, id: 0, reason: Reason::Action, userdata: Vec::new(), pause: false, meter: None }
    }
}

/// `learn(...)`: adds or changes a flow made of this packet.
#[allow(missing_docs)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learn {
    pub idle_timeout: u16,
    pub hard_timeout: u16,
    pub priority: u16,
    pub cookie: u64,
    pub table: u8,
    pub send_flow_rem: bool,
    pub delete_learned: bool,
    pub fin_idle_timeout: u16,
    pub fin_hard_timeout: u16,
    /// Most flows of this cookie and table; 0: any number.
    pub limit: u32,
    /// Where to write whether it was possible.
    pub result: Option<Subfield>,
    pub specs: Vec<Spec>,
}

/// One thing that a learned flow has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where it is from.
    pub from: From,
    /// What it becomes.
    pub to: To,
    /// Bits of it.
    pub bits: u32,
}

/// Where a learned flow takes a value from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The packet.
    Field(Subfield),
    /// The action.
    Value(u128),
}

/// What a value of a learned flow becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// What it matches.
    Match(Subfield),
    /// What it writes.
    Load(Subfield),
    /// The port it outputs to.
    Output,
}

/// `ct(...)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ct {
    /// Keep the connection.
    pub commit: bool,
    /// Take it up anew if it goes the other way.
    pub force: bool,
    /// Go on in this table, by a copy that knows its connection.
    pub table: Option<u8>,
    /// The zone: a number, or where it is.
    pub zone: Zone,
    /// Port of the protocol that announces connections (21: FTP, 69: TFTP); 0: none.
    pub alg: u16,
    /// `nat` first, if any, then what is done to mark and label.
    pub actions: Vec<Action>,
}

/// A zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// This one.
    Number(u16),
    /// The one whose number is there.
    Field(Subfield),
}

impl Default for Zone {
    fn default() -> Zone {
        Zone::Number(0)
    }
}

/// `nat(...)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Which address is changed; `None`: as the connection says.
    pub side: Option<Side>,
    /// Addresses, first and last.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// Ports, first and last.
    pub ports: Option<(u16, u16)>,
    /// The same address after a restart.
    pub persistent: bool,
    /// Choose ports by hash.
    pub hash: bool,
    /// Choose ports at random.
    pub random: bool,
}

/// Which address `nat` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The source.
    Src,
    /// The destination.
    Dst,
}

/// What a choice among links or buckets is made by.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    EthSrc,
    SymmetricL4,
    SymmetricL3L4,
    SymmetricL3L4Udp,
    NwSrc,
    NwDst,
    SymmetricL3,
}

impl Hash {
    /// All, and their names.
    pub const NAMES: &[(&str, Hash)] = &[
        ("eth_src", Hash::EthSrc),
        ("symmetric_l4", Hash::SymmetricL4),
        ("symmetric_l3l4", Hash::SymmetricL3L4),
        ("symmetric_l3l4+udp", Hash::SymmetricL3L4Udp),
        ("nw_src", Hash::NwSrc),
        ("nw_dst", Hash::NwDst),
        ("symmetric_l3", Hash::SymmetricL3),
    ];
}

/// `multipath(...)`: writes the number of a link chosen by hash.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipath {
    pub fields: Hash,
    pub basis: u16,
    /// `modulo_n`, `hash_threshold`, `hrw`, `iter_hash`: 0 to 3.
    pub algorithm: u16,
    pub max_link: u16,
    pub arg: u32,
    pub dst: Subfield,
}

/// `bundle(...)` and `bundle_load(...)`: one of these ports.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub fields: Hash,
    pub basis: u16,
    /// The first that is up, instead of by hash.
    pub active_backup: bool,
    pub slaves: Vec<u32>,
    pub dst: Option<Subfield>,
}

/// `sample(...)`.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of 65,535.
    pub probability: u16,
    pub collector_set_id: u32,
    pub obs_domain_id: u32,
    pub obs_point_id: u32,
    pub sampling_port: Option<u32>,
}

/// How a group chooses among its buckets.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    All,
    Select,
    Indirect,
    FastFailover,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub id: u32,
    /// How it chooses.
    pub kind: GroupKind,
    /// What it chooses among.
    pub buckets: Vec<Bucket>,
    /// `selection_method`; empty: the default.
    pub method: String,
    /// `selection_method_param`.
    pub param: u64,
    /// Fields hashed, with their masks, for the method `hash`.
    pub fields: Vec<(Field, u128)>,
}

/// One choice of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Its number (OpenFlow 1.5).
    pub id: u32,
    /// Its share.
    pub weight: u16,
    /// Only while this port is up.
    pub watch_port: Option<u32>,
    /// Only while this group has a live bucket.
    pub watch_group: Option<u32>,
    /// What it does.
    pub actions: Vec<Action>,
}

/// A meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    /// Its number.
    pub id: u32,
    /// Rates are of packets, not of kilobits.
    pub packets: bool,
    /// Bursts are named.
    pub burst: bool,
    /// It counts.
    pub stats: bool,
    /// Its bands.
    pub bands: Vec<Band>,
}

/// A band of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// `Some`: lowers the DSCP by this, instead of dropping.
    pub dscp_remark: Option<u8>,
    /// Packets or kilobits a second.
    pub rate: u32,
    /// Packets or kilobits at once.
    pub burst: u32,
}

/// What a flow is asked to have done with it besides its actions (`OFPFF_*`).
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFlags {
    pub send_flow_rem: bool,
    pub check_overlap: bool,
    pub reset_counts: bool,
    pub no_packet_counts: bool,
    pub no_byte_counts: bool,
}

/// A flow as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Table.
    pub table: u8,
    /// The higher goes first.
    pub priority: u16,
    /// What it matches.
    pub matching: Match,
    /// The controller's own number for it.
    pub cookie: u64,
    /// Seconds without a packet after which it goes; 0: never.
    pub idle_timeout: u16,
    /// Seconds after which it goes; 0: never.
    pub hard_timeout: u16,
    /// The lower goes first when the table is full.
    pub importance: u16,
    /// Flags.
    pub flags: FlowFlags,
    /// What it does; nothing: drop.
    pub actions: Vec<Action>,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow {
            table: 0,
            priority: DEFAULT_PRIORITY,
            matching: Match::default(),
            cookie: 0,
            idle_timeout: 0,
            hard_timeout: 0,
            importance: 0,
            flags: FlowFlags::default(),
            actions: Vec::new(),
        }
    }
}
