//! What a flow matches: a [`Key`] and the bits of it that count; and its text, as `ovs-ofctl` has it.

use std::fmt::{self, Write};

use super::action::DEFAULT_PRIORITY;
use super::fields::{Field, Form, Need, ones};
use super::key::{Key, Mask, VLAN_PRESENT, ether, mac_bytes, proto};
use super::values::{
    CT_STATE, Names, Numbers, TCP_FLAGS, TextError, bad, flags_text, hex, ipv4_text, ipv6_text, mac_text,
    parse_value, port_text,
};

/// A match. Bits of `key` that `mask` does not have are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// What is wanted.
    pub key: Key,
    /// Of which bits.
    pub mask: Mask,
}

impl Match {
    /// Of these bits of a key.
    pub fn new(key: &Key, mask: &Mask) -> Match {
        Match { key: key.masked(mask), mask: *mask }
    }

    /// Whether a packet is what it wants.
    #[inline]
    pub fn matches(&self, key: &Key) -> bool {
        key.matches(&self.key, &self.mask)
    }

    /// Whether every packet that this matches is matched by `other`.
    pub fn within(&self, other: &Match) -> bool {
        other.mask.within(&self.mask) && self.key.matches(&other.key, &other.mask)
    }

    /// Whether some packet is matched by both.
    pub fn overlaps(&self, other: &Match) -> bool {
        let bits = |i: usize| self.mask.words[i] & other.mask.words[i];
        (0..self.key.words.len()).all(|i| (self.key.words[i] ^ other.key.words[i]) & bits(i) == 0)
    }

    /// Wants all bits of a field.
    pub fn set(&mut self, field: Field, value: u128) {
        self.set_masked(field, value, field.all_ones());
    }

    /// Wants some bits of a field, given as they are on the wire: a VLAN number has the bit that says
    /// there is a tag (0x1000). Bits that were wanted of it before are forgotten.
    pub fn set_masked(&mut self, field: Field, value: u128, mask: u128) {
        let (value, mask) = match field {
            Field::InPort => (super::action::port_from_16(value as u16).into(), ones(32)),
            // 0xffff of OpenFlow 1.0: no tag.
            Field::DlVlan if value == 0xffff => {
                self.set_masked(Field::VlanTci, 0, 0xffff);
                return;
            }
            Field::DlVlan => (value | u128::from(VLAN_PRESENT), 0x1fff),
            Field::VlanVid if mask == field.all_ones() => (value, 0x1fff),
            Field::DlVlanPcp | Field::VlanPcp => {
                self.key.words[super::key::word::ETH_SRC] |= u64::from(VLAN_PRESENT);
                self.mask.words[super::key::word::ETH_SRC] |= u64::from(VLAN_PRESENT);
                (value, mask)
            }
            Field::NwTos => {
                let ecn = (self.key.lie(Field::NwEcn), self.mask.lie(Field::NwEcn));
                (value & 0xfc | ecn.0, mask & 0xfc | ecn.1)
            }
            _ => (value, mask),
        };
        self.mask.lay(field, mask);
        self.key.lay(field, value & mask);
    }

    /// What is wanted of a field: value and mask, as they are on the wire; a mask of zero: nothing.
    pub fn get(&self, field: Field) -> (u128, u128) {
        match field {
            Field::InPort => (self.key.get(field), self.mask.lie(field) & 0xffff),
            Field::NwTos => (self.key.lie(field) & 0xfc, self.mask.lie(field) & 0xfc),
            _ => (self.key.lie(field), self.mask.lie(field)),
        }
    }

    /// Whether what a field needs is wanted already: `nw_src` needs an IP match.
    pub fn allows(&self, need: Need) -> bool {
        let kind = if self.mask.lie(Field::EthType) == 0xffff { self.key.ether_type() } else { 0 };
        let protocol = if self.mask.lie(Field::NwProto) == 0xff { self.key.nw_proto() } else { 0 };
        let ip = matches!(kind, ether::IPV4 | ether::IPV6);
        // Ports are not there in later fragments.
        let upper =
            |p| ip && protocol == p && self.key.lie(Field::NwFrag) & self.mask.lie(Field::NwFrag) & 2 == 0;
        let icmp6 = kind == ether::IPV6 && upper(proto::ICMP6);
        let nd = |t: u128| icmp6 && self.get(Field::IcmpType) == (t, 0xff);
        match need {
            Need::None => true,
            Need::VlanVid => self.key.vlan_tci() & VLAN_PRESENT != 0,
            Need::Arp => matches!(kind, ether::ARP | ether::RARP),
            Need::Ipv4 => kind == ether::IPV4,
            Need::Ipv6 => kind == ether::IPV6,
            Need::Ip | Need::Ct => ip,
            Need::Mpls => matches!(kind, ether::MPLS | ether::MPLS_MULTICAST),
            Need::Tcp => upper(proto::TCP),
            Need::Udp => upper(proto::UDP),
            Need::Sctp => upper(proto::SCTP),
            Need::Icmp4 => kind == ether::IPV4 && upper(proto::ICMP),
            Need::Icmp6 => icmp6,
            Need::Nd => nd(135) || nd(136),
            Need::NdSolicit => nd(135),
            Need::NdAdvert => nd(136),
        }
    }

    /// The fields it says something of, each bit once, what others need first: value and mask as on the
    /// wire in OpenFlow 1.2 and later. (A tag of the older form is `get(Field::VlanTci)`.)
    pub fn fields(&self) -> Vec<(Field, u128, u128)> {
        let mut left = self.mask;
        let mut out = Vec::new();
        for field in [Field::InPortOxm, Field::EthDst, Field::EthSrc, Field::EthType] {
            if left.lie(field) != 0 {
                out.push((field, self.get(field).0, self.get(field).1));
                left.lay(field, 0);
            }
        }
        let (vid, mask) = self.get(Field::VlanVid);
        if mask != 0 {
            out.push((Field::VlanVid, vid, mask));
        }
        let (pcp, mask) = self.get(Field::VlanPcp);
        if mask != 0 && vid != 0 {
            out.push((Field::VlanPcp, pcp, mask));
        }
        left.lay(Field::VlanTci, 0);
        // The DSCP is what `nw_tos` wants, too.
        let rest = Field::ALL.iter().copied().filter(|f| *f != Field::NwTos);
        for field in rest.filter(|f| self.allows(f.info().need)) {
            if left.lie(field) != 0 {
                out.push((field, self.get(field).0, self.get(field).1));
                left.lay(field, 0);
            }
        }
        out
    }

    /// The text of a mask of packets in the datapath: what all of them say comes first.
    pub fn megaflow_text(&self) -> String {
        let mut rest = *self;
        rest.key.lay(Field::RecircId, 0);
        rest.mask.lay(Field::RecircId, 0);
        let recirc = format!("recirc_id={}", hex(self.key.lie(Field::RecircId)));
        let rest = rest.text(DEFAULT_PRIORITY, &Numbers);
        // Connections are said before the type.
        let parts: Vec<&str> = rest.split(',').filter(|p| !p.is_empty()).collect();
        let (tracked, others) = parts.split_at(parts.iter().take_while(|p| p.starts_with("ct_")).count());
        [&[recirc.as_str()], tracked, &["eth"], others].concat().join(",")
    }

    /// The text of it, as `ovs-ofctl dump-flows` prints it, after `priority=` unless that is usual.
    pub fn text(&self, priority: u16, names: &dyn Names) -> String {
        let mut out = Text { out: String::new(), of: self, names };
        if priority != DEFAULT_PRIORITY {
            let _ = write!(out.out, "priority={priority},");
        }
        out.metadata();
        let (type_said, protocol_said) = out.kind();
        (0..16).for_each(|i| out.hex(Field::reg(i)));
        out.tunnel();
        out.hex(Field::Metadata);
        out.value("in_port", Field::InPortOxm);
        out.vlan();
        out.value("dl_src", Field::EthSrc);
        out.value("dl_dst", Field::EthDst);
        if !type_said && self.mask.ether_type() != 0 {
            let _ = write!(out.out, "dl_type=0x{:04x},", self.key.ether_type());
        }
        out.network(protocol_said);
        out.transport();
        out.out.pop();
        out.out
    }
}

/// A match on its way to be text.
struct Text<'a> {
    out: String,
    of: &'a Match,
    names: &'a dyn Names,
}

impl Text<'_> {
    fn value(&mut self, name: &str, field: Field) {
        let (value, mask) = self.of.get(field);
        if mask == 0 {
            return;
        }
        let all = mask == field.all_ones();
        let text = match field.info().form {
            Form::Mac if all => mac_text(mac_bytes(value)),
            Form::Mac => format!("{}/{}", mac_text(mac_bytes(value)), mac_text(mac_bytes(mask))),
            Form::Ipv4 => ipv4_text(value as u32, mask as u32),
            Form::Ipv6 => ipv6_text(value, mask),
            Form::Port => port_text(value as u32, self.names),
            _ if all => value.to_string(),
            _ => format!("0x{value:x}/0x{mask:x}"),
        };
        let _ = write!(self.out, "{name}={text},");
    }

    fn hex(&mut self, field: Field) {
        let (value, mask) = self.of.get(field);
        if mask == field.all_ones() {
            let _ = write!(self.out, "{}={},", field.name(), hex(value));
        } else if mask != 0 {
            let _ = write!(self.out, "{}={}/{},", field.name(), hex(value), hex(mask));
        }
    }

    /// A number that is printed whole even where some of its bits are all that is wanted.
    fn whole(&mut self, name: &str, field: Field) {
        let (value, mask) = self.of.get(field);
        if mask != 0 {
            let _ = write!(self.out, "{name}={value},");
        }
    }

    fn metadata(&mut self) {
        for field in [Field::PktMark, Field::RecircId, Field::DpHash] {
            self.hex(field);
        }
        self.whole("conj_id", Field::ConjId);
        let (value, mask) = self.of.get(Field::SkbPriority);
        if mask != 0 {
            let _ = write!(self.out, "skb_priority={},", hex(value));
        }
        self.value("actset_output", Field::ActsetOutput);
        let (state, mask) = self.of.get(Field::CtState);
        if mask != 0 {
            let _ = write!(self.out, "ct_state={},", flags_text(CT_STATE, state as u32, mask as u32, 0xff));
        }
        self.value("ct_zone", Field::CtZone);
        self.hex(Field::CtMark);
        let (label, mask) = self.of.get(Field::CtLabel);
        if mask == u128::MAX {
            let _ = write!(self.out, "ct_label={label:#x},");
        } else if mask != 0 {
            let _ = write!(self.out, "ct_label={label:#x}/{mask:#x},");
        }
        for field in [Field::CtNwSrc, Field::CtIpv6Src, Field::CtNwDst, Field::CtIpv6Dst] {
            self.value(field.name(), field);
        }
        if self.of.mask.lie(Field::CtNwProto) != 0 {
            for field in [Field::CtNwProto, Field::CtTpSrc, Field::CtTpDst] {
                self.value(field.name(), field);
            }
        }
    }

    /// The word that stands for type and protocol; whether each is said by it.
    fn kind(&mut self) -> (bool, bool) {
        if self.of.mask.ether_type() == 0 {
            return (false, false);
        }
        let protocol = (self.of.mask.nw_proto() != 0).then(|| self.of.key.nw_proto());
        let (word, protocol_said) = match (self.of.key.ether_type(), protocol) {
            (ether::IPV4, Some(proto::ICMP)) => ("icmp", true),
            (ether::IPV4, Some(proto::TCP)) => ("tcp", true),
            (ether::IPV4, Some(proto::UDP)) => ("udp", true),
            (ether::IPV4, Some(proto::SCTP)) => ("sctp", true),
            (ether::IPV4, _) => ("ip", false),
            (ether::IPV6, Some(proto::ICMP6)) => ("icmp6", true),
            (ether::IPV6, Some(proto::TCP)) => ("tcp6", true),
            (ether::IPV6, Some(proto::UDP)) => ("udp6", true),
            (ether::IPV6, Some(proto::SCTP)) => ("sctp6", true),
            (ether::IPV6, _) => ("ipv6", false),
            (ether::ARP, _) => ("arp", false),
            (ether::RARP, _) => ("rarp", false),
            (ether::MPLS, _) => ("mpls", false),
            (ether::MPLS_MULTICAST, _) => ("mplsm", false),
            _ => return (false, false),
        };
        let _ = write!(self.out, "{word},");
        (true, protocol_said)
    }

    fn tunnel(&mut self) {
        self.hex(Field::TunId);
        for field in [Field::TunSrc, Field::TunDst, Field::TunIpv6Src, Field::TunIpv6Dst, Field::TunGbpId] {
            self.value(field.name(), field);
        }
        let value = |field| (self.of.mask.lie(field) != 0).then(|| self.of.key.lie(field));
        let (flags, tos, ttl) = (value(Field::TunGbpFlags), value(Field::TunTos), value(Field::TunTtl));
        if let Some(flags) = flags {
            let _ = write!(self.out, "tun_gbp_flags={},", hex(flags));
        }
        if let Some(tos) = tos {
            let _ = write!(self.out, "tun_tos={tos:x},");
        }
        if let Some(ttl) = ttl {
            let _ = write!(self.out, "tun_ttl={ttl},");
        }
        if self.of.mask.lie(Field::TunFlags) != 0 {
            let oam = if self.of.key.lie(Field::TunFlags) == 0 { "0" } else { "oam" };
            let _ = write!(self.out, "tun_flags={oam},");
        }
    }

    fn vlan(&mut self) {
        for (field, suffix) in [(Field::VlanTci, ""), (Field::VlanTci1, "1")] {
            let (tci, mask) = (self.of.key.lie(field) as u16, self.of.mask.lie(field) as u16);
            if mask == 0 {
                return;
            }
            let (vid_mask, pcp_mask) = (mask & 0xfff, mask & 0xe000);
            let tagged = mask & tci & VLAN_PRESENT != 0;
            let whole = matches!(vid_mask, 0 | 0xfff) && matches!(pcp_mask, 0 | 0xe000);
            let out = &mut self.out;
            let _ = match mask {
                _ if tagged && whole && (vid_mask | pcp_mask) != 0 => {
                    if vid_mask != 0 {
                        let _ = write!(out, "dl_vlan{suffix}={},", tci & 0xfff);
                    }
                    if pcp_mask == 0 { Ok(()) } else { write!(out, "dl_vlan_pcp{suffix}={},", tci >> 13) }
                }
                0xffff => write!(out, "vlan_tci{suffix}=0x{tci:04x},"),
                _ => write!(out, "vlan_tci{suffix}=0x{tci:04x}/0x{mask:04x},"),
            };
        }
    }

    fn network(&mut self, protocol_said: bool) {
        let kind = self.of.key.ether_type();
        let arp = matches!(kind, ether::ARP | ether::RARP);
        let [src, dst] = match kind {
            ether::IPV6 => [("ipv6_src", Field::Ipv6Src), ("ipv6_dst", Field::Ipv6Dst)],
            _ if arp => [("arp_spa", Field::ArpSpa), ("arp_tpa", Field::ArpTpa)],
            _ => [("nw_src", Field::NwSrc), ("nw_dst", Field::NwDst)],
        };
        self.value(src.0, src.1);
        self.value(dst.0, dst.1);
        let (label, mask) = self.of.get(Field::Ipv6Label);
        if kind == ether::IPV6 && mask == 0xfffff {
            let _ = write!(self.out, "ipv6_label=0x{label:05x},");
        } else if kind == ether::IPV6 && mask != 0 {
            let _ = write!(self.out, "ipv6_label=0x{label:05x}/0x{mask:05x},");
        }
        if !protocol_said {
            self.whole(if arp { "arp_op" } else { "nw_proto" }, Field::NwProto);
        }
        if arp {
            self.value("arp_sha", Field::ArpSha);
            self.value("arp_tha", Field::ArpTha);
        }
        self.whole("nw_tos", Field::NwTos);
        self.whole("nw_ecn", Field::NwEcn);
        self.whole("nw_ttl", Field::NwTtl);
        for field in [Field::MplsLabel, Field::MplsTc, Field::MplsTtl, Field::MplsBos] {
            self.whole(field.name(), field);
        }
        self.value("mpls_lse1", Field::MplsLse1);
        let (frag, mask) = self.of.get(Field::NwFrag);
        let text = match (mask, frag) {
            (0, _) => return,
            (3, 0) => "no",
            (3, 1) => "first",
            (3, 3) => "later",
            (1, 0) => "no",
            (1, _) => "yes",
            (2, 0) => "not_later",
            (2, _) => "later",
            _ => "<error>",
        };
        let _ = write!(self.out, "nw_frag={text},");
    }

    fn transport(&mut self) {
        let key = &self.of.key;
        let icmp6 = (key.ether_type(), key.nw_proto()) == (ether::IPV6, proto::ICMP6);
        let icmp = icmp6 || (key.ether_type(), key.nw_proto()) == (ether::IPV4, proto::ICMP);
        let [src, dst] = if icmp { ["icmp_type", "icmp_code"] } else { ["tp_src", "tp_dst"] };
        self.value(src, if icmp { Field::IcmpType } else { Field::TcpSrc });
        self.value(dst, if icmp { Field::IcmpCode } else { Field::TcpDst });
        if icmp6 {
            self.value("nd_target", Field::NdTarget);
            self.value("nd_sll", Field::NdSll);
            self.value("nd_tll", Field::NdTll);
        }
        let (flags, mask) = self.of.get(Field::TcpFlags);
        if key.is_ip() && key.nw_proto() == proto::TCP && mask != 0 {
            // Nothing follows it: what is cut off at the end is this comma.
            let _ =
                write!(self.out, "tcp_flags={},", flags_text(TCP_FLAGS, flags as u32, mask as u32, 0xfff));
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(DEFAULT_PRIORITY, &Numbers))
    }
}

/// Words that stand for a type and a protocol.
const WORDS: &[(&str, u16, u8)] = &[
    ("eth", 0, 0),
    ("ip", ether::IPV4, 0),
    ("ipv4", ether::IPV4, 0),
    ("ip4", ether::IPV4, 0),
    ("icmp", ether::IPV4, proto::ICMP),
    ("tcp", ether::IPV4, proto::TCP),
    ("udp", ether::IPV4, proto::UDP),
    ("sctp", ether::IPV4, proto::SCTP),
    ("ipv6", ether::IPV6, 0),
    ("ip6", ether::IPV6, 0),
    ("icmp6", ether::IPV6, proto::ICMP6),
    ("tcp6", ether::IPV6, proto::TCP),
    ("udp6", ether::IPV6, proto::UDP),
    ("sctp6", ether::IPV6, proto::SCTP),
    ("arp", ether::ARP, 0),
    ("rarp", ether::RARP, 0),
    ("mpls", ether::MPLS, 0),
    ("mplsm", ether::MPLS_MULTICAST, 0),
];

impl Match {
    /// Adds a word such as `tcp`; `false`: it is not one.
    pub fn add_word(&mut self, word: &str) -> bool {
        let Some((_, kind, protocol)) = WORDS.iter().find(|(name, ..)| *name == word) else { return false };
        if *kind != 0 {
            self.set(Field::EthType, (*kind).into());
        }
        if *protocol != 0 {
            self.set(Field::NwProto, (*protocol).into());
        }
        true
    }

    /// Adds `name=value` or `name=value/mask`; `false`: no field is called so.
    ///
    /// # Errors
    /// When the value is wrong, or something that it needs is not wanted yet.
    pub fn add(&mut self, name: &str, value: &str, names: &dyn Names) -> Result<bool, TextError> {
        let icmp6 = self.key.ether_type() == ether::IPV6;
        let field = match name {
            "in_port" | "in_port_oxm" => Some(Field::InPortOxm),
            // One name for the ports of three protocols, and for ICMP of either version.
            "tp_src" => Some(self.port(Field::TcpSrc, Field::UdpSrc, Field::SctpSrc)),
            "tp_dst" => Some(self.port(Field::TcpDst, Field::UdpDst, Field::SctpDst)),
            "icmp_type" if icmp6 => Some(Field::Icmp6Type),
            "icmp_code" if icmp6 => Some(Field::Icmp6Code),
            "nw_src" | "ip_src" if self.allows(Need::Arp) => Some(Field::ArpSpa),
            "nw_dst" | "ip_dst" if self.allows(Need::Arp) => Some(Field::ArpTpa),
            "nw_proto" | "ip_proto" if self.allows(Need::Arp) => Some(Field::ArpOp),
            "dl_vlan1" | "dl_vlan_pcp1" | "" => None,
            name => Field::named(name),
        };
        let Some(field) = field else { return Ok(false) };
        if field == Field::VlanVid && !value.contains('/') {
            // `vlan_vid=5` alone means a tag of this number.
            let (vid, _) = parse_value(field, value, names)?;
            self.set_masked(field, vid | u128::from(VLAN_PRESENT), 0x1fff);
            return Ok(true);
        }
        let (value, mask) = parse_value(field, value, names)?;
        if mask == 0 {
            return Ok(true);
        }
        if mask != field.all_ones() && !field.maskable() && field != Field::VlanVid {
            return bad(format!("{name}: may not be masked"));
        }
        if !self.allows(field.info().need) {
            return bad(format!("{name}: prerequisites not met: say the protocol before it"));
        }
        self.set_masked(field, value, mask);
        Ok(true)
    }

    fn port(&self, tcp: Field, udp: Field, sctp: Field) -> Field {
        match self.key.nw_proto() {
            proto::UDP => udp,
            proto::SCTP => sctp,
            _ => tcp,
        }
    }

    /// Reads a match: `tcp,nw_dst=10.0.0.0/8,tp_dst=80`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, names: &dyn Names) -> Result<Match, TextError> {
        let mut out = Match::default();
        for part in text.split([',', ' ']).filter(|p| !p.is_empty()) {
            let known = match part.split_once('=') {
                Some((name, value)) => out.add(name, value, names)?,
                None => out.add_word(part),
            };
            if !known {
                return bad(format!("{part}: unknown field"));
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(text: &str) -> Match {
        let read = Match::parse(text, &Numbers).unwrap();
        assert_eq!(read.to_string(), text);
        read
    }

    #[test]
    fn matches_are_printed_as_they_are_read() {
        for text in [
            "",
            "ip",
            "tcp,in_port=1,dl_vlan=5,nw_src=10.0.0.0/8,tp_dst=80,tcp_flags=+syn-ack",
            "arp,dl_dst=ff:ff:ff:ff:ff:ff,arp_spa=10.0.0.1,arp_tpa=10.0.0.2,arp_op=1",
            "udp6,reg3=0x5/0xff,ipv6_dst=2001:db8::/32,tp_src=0x10/0xfff0",
            "icmp6,icmp_type=135,nd_target=fe80::1,nd_sll=02:00:00:00:00:01",
            "dl_src=01:00:00:00:00:00/01:00:00:00:00:00,dl_type=0x88b5",
            "ct_state=+est+trk,ct_zone=7,ip,nw_proto=50,nw_tos=32,nw_ttl=3,nw_frag=later",
            "vlan_tci=0x1000/0x1000",
            "vlan_tci=0x0000",
            "mpls,mpls_label=100,mpls_bos=1",
            "tun_id=0x2a,metadata=0x1/0xff,in_port=LOCAL,dl_vlan=3,dl_vlan_pcp=5",
        ] {
            same(text);
        }
        assert_eq!(Match::parse("dl_vlan=0xffff", &Numbers).unwrap().to_string(), "vlan_tci=0x0000");
        assert_eq!(Match::default().text(5, &Numbers), "priority=5");
    }

    #[test]
    fn fields_are_listed_once_and_what_is_needed_first() {
        let m = same("tcp,reg0=0x1,reg1=0x2,in_port=1,dl_vlan=5,nw_src=10.0.0.0/8,nw_tos=32,tp_dst=80");
        let fields: Vec<Field> = m.fields().iter().map(|f| f.0).collect();
        use Field::*;
        assert_eq!(fields, [InPortOxm, EthType, VlanVid, Reg0, Reg1, NwSrc, NwProto, IpDscp, TcpDst]);
        assert_eq!(m.fields()[2], (VlanVid, 0x1005, 0x1fff));
        let mut back = Match::default();
        m.fields().into_iter().for_each(|(f, v, mask)| back.set_masked(f, v, mask));
        assert_eq!(back, m);
    }

    #[test]
    fn what_is_needed_must_be_said() {
        for text in ["nw_src=1.2.3.4", "tcp_dst=80", "ip,tp_dst=80", "nd_target=::1", "foo=1", "tcp,foo"] {
            assert!(Match::parse(text, &Numbers).is_err(), "{text}");
        }
    }

    #[test]
    fn narrower_matches_are_within_wider_ones() {
        let [wide, narrow, other] = ["ip", "ip,nw_src=10.0.0.0/8", "ip,nw_src=11.0.0.0/8"]
            .map(|t| Match::parse(t, &Numbers).unwrap());
        assert!(narrow.within(&wide) && !wide.within(&narrow));
        assert!(narrow.overlaps(&wide) && !narrow.overlaps(&other));
    }
}
