//! Every field that a flow can match or an action can change: its names, its OXM and NXM numbers, its
//! width, what must be matched before it may be, and where it lies in a [`Key`](super::key::Key).

use super::key::word::*;

/// Which number space a field's number is of: what an OXM header starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// `oxm_class`.
    pub class: u16,
    /// The experimenter, where `class` is 0xffff; 0 otherwise.
    pub experimenter: u32,
    /// `oxm_field`.
    pub number: u8,
}

/// `OFPXMC_NXM_0`: OpenFlow 1.0's fields as Nicira numbered them.
pub const CLASS_NXM: u16 = 0;
/// `OFPXMC_NXM_1`: Nicira's own fields.
pub const CLASS_NX: u16 = 1;
/// `OFPXMC_OPENFLOW_BASIC`.
pub const CLASS_OXM: u16 = 0x8000;
/// `OFPXMC_PACKET_REGS`.
pub const CLASS_PKT_REG: u16 = 0x8001;
/// `OFPXMC_EXPERIMENTER`.
pub const CLASS_EXPERIMENTER: u16 = 0xffff;
/// Nicira's experimenter number.
pub const NICIRA: u32 = 0x0000_2320;
/// The Open Networking Foundation's experimenter number.
pub const ONF: u32 = 0x4f4e_4600;

const fn head(class: u16, experimenter: u32, number: u8) -> Option<Header> {
    Some(Header { class, experimenter, number })
}
const fn nxm(number: u8) -> Option<Header> {
    head(CLASS_NXM, 0, number)
}
const fn nx(number: u8) -> Option<Header> {
    head(CLASS_NX, 0, number)
}
const fn oxm(number: u8) -> Option<Header> {
    head(CLASS_OXM, 0, number)
}
const fn pkt_reg(number: u8) -> Option<Header> {
    head(CLASS_PKT_REG, 0, number)
}
const fn ext(number: u8) -> Option<Header> {
    head(CLASS_EXPERIMENTER, NICIRA, number)
}
const fn onf(number: u8) -> Option<Header> {
    head(CLASS_EXPERIMENTER, ONF, number)
}
#[allow(non_upper_case_globals)]
const none: Option<Header> = None;

/// How a value is written.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Decimal,
    Hex,
    Mac,
    Ipv4,
    Ipv6,
    Port,
    Frag,
    CtState,
    TcpFlags,
    TunFlags,
}

/// What a match must say already before it may say a field.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    None,
    /// That there is a tag.
    VlanVid,
    Arp,
    Ipv4,
    Ipv6,
    /// Either version.
    Ip,
    Mpls,
    Tcp,
    Udp,
    Sctp,
    Icmp4,
    Icmp6,
    /// Neighbour solicitation or advertisement.
    Nd,
    NdSolicit,
    NdAdvert,
    /// An IP version, for fields of the tracked connection.
    Ct,
}

/// Whether a match may say only some bits of a field.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matching {
    Exact,
    Masked,
}

/// Whether an action may change a field.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// What is known of a field.
#[derive(Debug)]
pub struct Info {
    /// As `ovs-ofctl` prints it in actions.
    pub name: &'static str,
    /// Another name of it; empty: none.
    pub alias: &'static str,
    /// Its Nicira number, if it has one.
    pub nxm: Option<Header>,
    /// Its OpenFlow number, if it has one.
    pub oxm: Option<Header>,
    /// Significant bits.
    pub bits: u32,
    /// Bytes on the wire.
    pub bytes: usize,
    /// Whether it may be masked.
    pub matching: Matching,
    /// How its values are written.
    pub form: Form,
    /// What comes first.
    pub need: Need,
    /// Whether actions may write it.
    pub access: Access,
    /// First word of a key that holds it; a field of 128 bits has its upper half there.
    pub word: usize,
    /// Bit of that word that its lowest bit is.
    pub shift: u32,
}

macro_rules! fields {
    ($($id:ident $name:literal $alias:literal $nxm:ident $(($n:literal))? $oxm:ident $(($o:literal))?
       $bits:literal / $bytes:literal $matching:ident $form:ident $need:ident $access:ident
       $word:ident, $shift:literal $(+ $plus:literal)?;)*) => {
        /// A field.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field { $($id),* }

        static INFO: &[Info] = &[$(Info {
            name: $name, alias: $alias, nxm: $nxm $(($n))?, oxm: $oxm $(($o))?, bits: $bits, bytes: $bytes,
            matching: Matching::$matching, form: Form::$form, need: Need::$need, access: Access::$access,
            word: $word $(+ $plus)?, shift: $shift,
        }),*];

        impl Field {
            /// All of them. What needs another field matched first comes after that field.
            pub const ALL: &'static [Field] = &[$(Field::$id),*];
        }
    };
}

// name, other name, NXM, OXM, bits/bytes on the wire, maskable, form, prerequisite, access, place.
fields! {
DpHash "dp_hash" "" nx(35) ext(0) 32/4 Masked Hex None Read HASH, 32;
RecircId "recirc_id" "" nx(36) none 32/4 Exact Decimal None Read IN, 0;
ConjId "conj_id" "" nx(37) none 32/4 Exact Decimal None Read SET, 0;
TunId "tun_id" "tunnel_id" nx(16) oxm(38) 64/8 Masked Hex None Write TUN_ID, 0;
TunSrc "tun_src" "" nx(31) none 32/4 Masked Ipv4 None Write TUN_IP4, 32;
TunDst "tun_dst" "" nx(32) none 32/4 Masked Ipv4 None Write TUN_IP4, 0;
TunIpv6Src "tun_ipv6_src" "" nx(109) none 128/16 Masked Ipv6 None Write TUN_SRC6, 0;
TunIpv6Dst "tun_ipv6_dst" "" nx(110) none 128/16 Masked Ipv6 None Write TUN_DST6, 0;
TunFlags "tun_flags" "" nx(104) none 1/2 Masked TunFlags None Write TUN, 48;
TunGbpId "tun_gbp_id" "" nx(38) none 16/2 Masked Decimal None Write TUN, 32;
TunGbpFlags "tun_gbp_flags" "" nx(39) none 8/1 Masked Hex None Write TUN, 24;
TunTos "tun_tos" "" none none 8/1 Exact Decimal None Read TUN, 16;
TunTtl "tun_ttl" "" none none 8/1 Exact Decimal None Read TUN, 8;
Metadata "metadata" "" none oxm(2) 64/8 Masked Hex None Write METADATA, 0;
InPort "in_port" "" nxm(0) none 16/2 Exact Port None Write IN, 32;
InPortOxm "in_port_oxm" "" none oxm(0) 32/4 Exact Port None Write IN, 32;
ActsetOutput "actset_output" "" none onf(43) 32/4 Exact Port None Read SET, 32;
SkbPriority "skb_priority" "" none none 32/4 Exact Hex None Read HASH, 0;
PktMark "pkt_mark" "" nx(33) none 32/4 Masked Hex None Write MARK, 0;
CtState "ct_state" "" nx(105) none 32/4 Masked CtState None Read CT, 32;
CtZone "ct_zone" "" nx(106) none 16/2 Exact Hex None Read CT, 16;
CtMark "ct_mark" "" nx(107) none 32/4 Masked Hex None Write MARK, 32;
CtLabel "ct_label" "" nx(108) none 128/16 Masked Hex None Write CT_LABEL, 0;
CtNwProto "ct_nw_proto" "" nx(119) none 8/1 Exact Decimal Ct Read CT_L4, 24;
CtNwSrc "ct_nw_src" "" nx(120) none 32/4 Masked Ipv4 Ct Read CT_IP4, 32;
CtNwDst "ct_nw_dst" "" nx(121) none 32/4 Masked Ipv4 Ct Read CT_IP4, 0;
CtIpv6Src "ct_ipv6_src" "" nx(122) none 128/16 Masked Ipv6 Ct Read CT_SRC6, 0;
CtIpv6Dst "ct_ipv6_dst" "" nx(123) none 128/16 Masked Ipv6 Ct Read CT_DST6, 0;
CtTpSrc "ct_tp_src" "" nx(124) none 16/2 Masked Decimal Ct Read CT_L4, 48;
CtTpDst "ct_tp_dst" "" nx(125) none 16/2 Masked Decimal Ct Read CT_L4, 32;
Reg0 "reg0" "" nx(0) none 32/4 Masked Hex None Write REGS, 32 + 0;
Reg1 "reg1" "" nx(1) none 32/4 Masked Hex None Write REGS, 0 + 0;
Reg2 "reg2" "" nx(2) none 32/4 Masked Hex None Write REGS, 32 + 1;
Reg3 "reg3" "" nx(3) none 32/4 Masked Hex None Write REGS, 0 + 1;
Reg4 "reg4" "" nx(4) none 32/4 Masked Hex None Write REGS, 32 + 2;
Reg5 "reg5" "" nx(5) none 32/4 Masked Hex None Write REGS, 0 + 2;
Reg6 "reg6" "" nx(6) none 32/4 Masked Hex None Write REGS, 32 + 3;
Reg7 "reg7" "" nx(7) none 32/4 Masked Hex None Write REGS, 0 + 3;
Reg8 "reg8" "" nx(8) none 32/4 Masked Hex None Write REGS, 32 + 4;
Reg9 "reg9" "" nx(9) none 32/4 Masked Hex None Write REGS, 0 + 4;
Reg10 "reg10" "" nx(10) none 32/4 Masked Hex None Write REGS, 32 + 5;
Reg11 "reg11" "" nx(11) none 32/4 Masked Hex None Write REGS, 0 + 5;
Reg12 "reg12" "" nx(12) none 32/4 Masked Hex None Write REGS, 32 + 6;
Reg13 "reg13" "" nx(13) none 32/4 Masked Hex None Write REGS, 0 + 6;
Reg14 "reg14" "" nx(14) none 32/4 Masked Hex None Write REGS, 32 + 7;
Reg15 "reg15" "" nx(15) none 32/4 Masked Hex None Write REGS, 0 + 7;
Xreg0 "xreg0" "" none pkt_reg(0) 64/8 Masked Hex None Write REGS, 0 + 0;
Xreg1 "xreg1" "" none pkt_reg(1) 64/8 Masked Hex None Write REGS, 0 + 1;
Xreg2 "xreg2" "" none pkt_reg(2) 64/8 Masked Hex None Write REGS, 0 + 2;
Xreg3 "xreg3" "" none pkt_reg(3) 64/8 Masked Hex None Write REGS, 0 + 3;
Xreg4 "xreg4" "" none pkt_reg(4) 64/8 Masked Hex None Write REGS, 0 + 4;
Xreg5 "xreg5" "" none pkt_reg(5) 64/8 Masked Hex None Write REGS, 0 + 5;
Xreg6 "xreg6" "" none pkt_reg(6) 64/8 Masked Hex None Write REGS, 0 + 6;
Xreg7 "xreg7" "" none pkt_reg(7) 64/8 Masked Hex None Write REGS, 0 + 7;
Xxreg0 "xxreg0" "" nx(111) none 128/16 Masked Hex None Write REGS, 0 + 0;
Xxreg1 "xxreg1" "" nx(112) none 128/16 Masked Hex None Write REGS, 0 + 2;
Xxreg2 "xxreg2" "" nx(113) none 128/16 Masked Hex None Write REGS, 0 + 4;
Xxreg3 "xxreg3" "" nx(114) none 128/16 Masked Hex None Write REGS, 0 + 6;
EthSrc "eth_src" "dl_src" nxm(2) oxm(4) 48/6 Masked Mac None Write ETH_SRC, 16;
EthDst "eth_dst" "dl_dst" nxm(1) oxm(3) 48/6 Masked Mac None Write ETH_DST, 16;
EthType "eth_type" "dl_type" nxm(3) oxm(5) 16/2 Exact Hex None Read ETH_DST, 0;
VlanTci "vlan_tci" "" nxm(4) none 16/2 Masked Hex None Write ETH_SRC, 0;
DlVlan "dl_vlan" "" none none 12/2 Exact Decimal None Write ETH_SRC, 0;
VlanVid "vlan_vid" "" none oxm(6) 12/2 Masked Decimal None Write ETH_SRC, 0;
DlVlanPcp "dl_vlan_pcp" "" none none 3/1 Exact Decimal None Write ETH_SRC, 13;
VlanPcp "vlan_pcp" "" none oxm(7) 3/1 Exact Decimal VlanVid Write ETH_SRC, 13;
VlanTci1 "vlan_tci1" "" none none 16/2 Masked Hex None Read MISC, 32;
MplsLabel "mpls_label" "" none oxm(34) 20/4 Exact Decimal Mpls Write MPLS, 44;
MplsTc "mpls_tc" "" none oxm(35) 3/1 Exact Decimal Mpls Write MPLS, 41;
MplsBos "mpls_bos" "" none oxm(36) 1/1 Exact Decimal Mpls Read MPLS, 40;
MplsTtl "mpls_ttl" "" nx(30) none 8/1 Exact Decimal Mpls Write MPLS, 32;
MplsLse1 "mpls_lse1" "" none none 32/4 Masked Hex Mpls Read MPLS, 0;
MplsLse "mpls_lse" "" none none 32/4 Masked Hex Mpls Read MPLS, 32;
NwSrc "ip_src" "nw_src" nxm(7) oxm(11) 32/4 Masked Ipv4 Ipv4 Write IP4, 32;
NwDst "ip_dst" "nw_dst" nxm(8) oxm(12) 32/4 Masked Ipv4 Ipv4 Write IP4, 0;
Ipv6Src "ipv6_src" "" nx(19) oxm(26) 128/16 Masked Ipv6 Ipv6 Write SRC6, 0;
Ipv6Dst "ipv6_dst" "" nx(20) oxm(27) 128/16 Masked Ipv6 Ipv6 Write DST6, 0;
Ipv6Label "ipv6_label" "" nx(27) oxm(28) 20/4 Masked Hex Ipv6 Write MISC, 0;
NwProto "nw_proto" "ip_proto" nxm(6) oxm(10) 8/1 Exact Decimal Ip Read L4, 24;
NwTos "nw_tos" "" nxm(5) none 8/1 Exact Decimal Ip Write L4, 16;
IpDscp "ip_dscp" "" none oxm(8) 6/1 Exact Decimal Ip Write L4, 18;
NwEcn "nw_ecn" "ip_ecn" nx(28) oxm(9) 2/1 Exact Decimal Ip Write L4, 16;
NwTtl "nw_ttl" "" nx(29) none 8/1 Exact Decimal Ip Write L4, 8;
NwFrag "ip_frag" "nw_frag" nx(26) none 2/1 Masked Frag Ip Read L4, 0;
ArpOp "arp_op" "" nxm(15) oxm(21) 16/2 Exact Decimal Arp Write L4, 24;
ArpSpa "arp_spa" "" nxm(16) oxm(22) 32/4 Masked Ipv4 Arp Write IP4, 32;
ArpTpa "arp_tpa" "" nxm(17) oxm(23) 32/4 Masked Ipv4 Arp Write IP4, 0;
ArpSha "arp_sha" "" nx(17) oxm(24) 48/6 Masked Mac Arp Write ARP_SHA, 16;
ArpTha "arp_tha" "" nx(18) oxm(25) 48/6 Masked Mac Arp Write ARP_THA, 16;
TcpSrc "tcp_src" "tp_src" nxm(9) oxm(13) 16/2 Masked Decimal Tcp Write L4, 48;
TcpDst "tcp_dst" "tp_dst" nxm(10) oxm(14) 16/2 Masked Decimal Tcp Write L4, 32;
UdpSrc "udp_src" "" nxm(11) oxm(15) 16/2 Masked Decimal Udp Write L4, 48;
UdpDst "udp_dst" "" nxm(12) oxm(16) 16/2 Masked Decimal Udp Write L4, 32;
SctpSrc "sctp_src" "" none oxm(17) 16/2 Masked Decimal Sctp Write L4, 48;
SctpDst "sctp_dst" "" none oxm(18) 16/2 Masked Decimal Sctp Write L4, 32;
TcpFlags "tcp_flags" "" nx(34) onf(42) 12/2 Masked TcpFlags Tcp Read MISC, 48;
IcmpType "icmp_type" "" nxm(13) oxm(19) 8/1 Exact Decimal Icmp4 Write L4, 48;
IcmpCode "icmp_code" "" nxm(14) oxm(20) 8/1 Exact Decimal Icmp4 Write L4, 32;
Icmp6Type "icmpv6_type" "" nx(21) oxm(29) 8/1 Exact Decimal Icmp6 Write L4, 48;
Icmp6Code "icmpv6_code" "" nx(22) oxm(30) 8/1 Exact Decimal Icmp6 Write L4, 32;
NdTarget "nd_target" "" nx(23) oxm(31) 128/16 Masked Ipv6 Nd Write ND, 0;
NdSll "nd_sll" "" nx(24) oxm(32) 48/6 Masked Mac NdSolicit Write ARP_SHA, 16;
NdTll "nd_tll" "" nx(25) oxm(33) 48/6 Masked Mac NdAdvert Write ARP_THA, 16;}

impl Field {
    /// What is known of it.
    #[inline]
    pub fn info(self) -> &'static Info {
        &INFO[self as usize]
    }

    /// As `ovs-ofctl` prints it in actions.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The field of this name: `nw_src`, `ip_src`, `NXM_OF_IP_SRC`, `OXM_OF_IPV4_SRC`.
    pub fn named(name: &str) -> Option<Field> {
        let plain =
            Field::ALL.iter().find(|f| f.name() == name || (!name.is_empty() && f.info().alias == name));
        plain.copied().or_else(|| super::names::by_wire_name(name))
    }

    /// The field of this number, in either numbering.
    pub fn of(header: Header) -> Option<Field> {
        Field::ALL.iter().copied().find(|f| f.info().nxm == Some(header) || f.info().oxm == Some(header))
    }

    /// Register `i`, below 16.
    pub fn reg(i: usize) -> Field {
        Field::ALL[Field::Reg0 as usize + i]
    }

    /// All its bits.
    pub fn all_ones(self) -> u128 {
        ones(self.info().bits)
    }

    /// Whether actions may write it.
    pub fn writable(self) -> bool {
        self.info().access == Access::Write
    }

    /// Whether a match may say only some of its bits.
    pub fn maskable(self) -> bool {
        self.info().matching == Matching::Masked
    }
}

/// The lowest `bits` bits.
pub fn ones(bits: u32) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

/// Bits `start..start + len` of a field: `NXM_NX_REG0[0..15]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subfield {
    /// The field.
    pub field: Field,
    /// Its first bit that counts.
    pub start: u32,
    /// How many do.
    pub len: u32,
}

impl Subfield {
    /// A whole field.
    pub fn whole(field: Field) -> Subfield {
        Subfield { field, start: 0, len: field.info().bits }
    }

    /// Whether it is all of its field.
    pub fn is_whole(self) -> bool {
        self.start == 0 && self.len == self.field.info().bits
    }

    /// Its bits, in the field.
    pub fn mask(self) -> u128 {
        ones(self.len) << self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_of_one_field() {
        for (i, &f) in Field::ALL.iter().enumerate() {
            assert_eq!(f as usize, i);
            let info = f.info();
            assert!(info.bits <= 8 * info.bytes as u32, "{f:?}");
            assert_eq!(Field::named(info.name), Some(f));
            for header in [info.nxm, info.oxm].into_iter().flatten() {
                assert_eq!(Field::of(header), Some(f), "{f:?}");
            }
            assert!(info.shift + info.bits.min(64) <= 64, "{f:?}");
        }
        assert_eq!(Field::named("nw_src"), Some(Field::NwSrc));
        assert_eq!(Field::named("NXM_NX_REG3"), Some(Field::Reg3));
        assert_eq!(Field::named("OXM_OF_VLAN_VID"), Some(Field::VlanVid));
        assert_eq!(Field::named(""), None);
    }
}
