//! The match of OpenFlow 1.0: a fixed structure with a word of wildcards.

use super::error::OfError;
use super::wire::{Reader, Writer};
use crate::vswitch::flow::action::port_from_16;
use crate::vswitch::flow::fields::{Field, Need};
use crate::vswitch::flow::key::mac_value;
use crate::vswitch::flow::matching::Match;

/// `OFPFW10_*`.
mod wild {
    pub(super) const IN_PORT: u32 = 1;
    pub(super) const DL_VLAN: u32 = 1 << 1;
    pub(super) const DL_SRC: u32 = 1 << 2;
    pub(super) const DL_DST: u32 = 1 << 3;
    pub(super) const DL_TYPE: u32 = 1 << 4;
    pub(super) const NW_PROTO: u32 = 1 << 5;
    pub(super) const TP_SRC: u32 = 1 << 6;
    pub(super) const TP_DST: u32 = 1 << 7;
    pub(super) const NW_SRC_SHIFT: u32 = 8;
    pub(super) const NW_DST_SHIFT: u32 = 14;
    pub(super) const DL_VLAN_PCP: u32 = 1 << 20;
    pub(super) const NW_TOS: u32 = 1 << 21;
    pub(super) const ALL: u32 = (1 << 22) - 1;
}

/// No tag.
const VLAN_NONE: u16 = 0xffff;

/// What is here by protocol: ports, or the type and code of ICMP.
const PORTS: &[(Need, Field, Field)] = &[
    (Need::Tcp, Field::TcpSrc, Field::TcpDst),
    (Need::Udp, Field::UdpSrc, Field::UdpDst),
    (Need::Sctp, Field::SctpSrc, Field::SctpDst),
    (Need::Icmp4, Field::IcmpType, Field::IcmpCode),
];

/// Reads a match; true with it when nothing is a wildcard. What has no meaning for the packets that are matched is
/// passed over, as OpenFlow 1.0.1 has it.
pub(crate) fn decode(from: &mut Reader<'_>) -> Result<(Match, bool), OfError> {
    let wildcards = from.u32()? & wild::ALL;
    let in_port = port_from_16(from.u16()?);
    let (src, dst) = (from.array()?, from.array()?);
    let (vlan, pcp) = (from.u16()?, from.u8()?);
    from.skip(1)?;
    let kind = from.u16()?;
    let (tos, proto) = (from.u8()?, from.u8()?);
    from.skip(2)?;
    let (nw_src, nw_dst, tp_src, tp_dst) = (from.u32()?, from.u32()?, from.u16()?, from.u16()?);
    let wanted = |bit: u32| wildcards & bit == 0;
    let prefix = |shift: u32| u32::MAX.checked_shl(wildcards >> shift & 0x3f).unwrap_or(0);
    let mut m = Match::default();
    let set = |m: &mut Match, bit: u32, field: Field, value: u128| {
        if wanted(bit) && m.allows(field.info().need) {
            m.set(field, value & super::oxm::valid_bits(field));
        }
    };
    set(&mut m, wild::IN_PORT, Field::InPortOxm, in_port.into());
    set(&mut m, wild::DL_SRC, Field::EthSrc, mac_value(src));
    set(&mut m, wild::DL_DST, Field::EthDst, mac_value(dst));
    set(&mut m, wild::DL_TYPE, Field::EthType, kind.into());
    if wanted(wild::DL_VLAN) && vlan == VLAN_NONE {
        m.set(Field::VlanTci, 0);
    } else {
        set(&mut m, wild::DL_VLAN, Field::DlVlan, (vlan & 0xfff).into());
        set(&mut m, wild::DL_VLAN_PCP, Field::DlVlanPcp, (pcp & 7).into());
    }
    set(&mut m, wild::NW_TOS, Field::IpDscp, (tos >> 2).into());
    set(&mut m, wild::NW_PROTO, Field::NwProto, proto.into());
    set(&mut m, wild::NW_PROTO, Field::ArpOp, proto.into());
    for (field, arp, value, shift) in [
        (Field::NwSrc, Field::ArpSpa, nw_src, wild::NW_SRC_SHIFT),
        (Field::NwDst, Field::ArpTpa, nw_dst, wild::NW_DST_SHIFT),
    ] {
        let mask = prefix(shift);
        for field in
            [field, arp].into_iter().filter(|f| mask != 0 && m.allows(f.info().need)).collect::<Vec<_>>()
        {
            m.set_masked(field, value.into(), mask.into());
        }
    }
    if let Some((_, a, b)) = PORTS.iter().find(|(need, _, _)| m.allows(*need)) {
        set(&mut m, wild::TP_SRC, *a, tp_src.into());
        set(&mut m, wild::TP_DST, *b, tp_dst.into());
    }
    Ok((m, wildcards == 0))
}

/// Writes a match, of what OpenFlow 1.0 can say of it.
pub(crate) fn encode(out: &mut Writer, m: &Match) {
    let mut wildcards = 0;
    let mut get = |field: Field, bit: u32| {
        let (value, mask) = m.get(field);
        if mask == 0 || !m.allows(field.info().need) {
            wildcards |= bit;
            return 0;
        }
        value
    };
    let in_port = get(Field::InPort, wild::IN_PORT) as u16;
    let (src, dst) = (get(Field::EthSrc, wild::DL_SRC), get(Field::EthDst, wild::DL_DST));
    let kind = get(Field::EthType, wild::DL_TYPE) as u16;
    let tos = (get(Field::IpDscp, wild::NW_TOS) as u8) << 2;
    let arp = m.allows(Need::Arp);
    let proto = get(if arp { Field::ArpOp } else { Field::NwProto }, wild::NW_PROTO) as u8;
    let ports = PORTS.iter().find(|(need, _, _)| m.allows(*need));
    let (a, b) = ports.map_or((Field::TcpSrc, Field::TcpDst), |(_, a, b)| (*a, *b));
    let (tp_src, tp_dst) = (get(a, wild::TP_SRC) as u16, get(b, wild::TP_DST) as u16);
    let (tci, tci_mask) = m.get(Field::VlanTci);
    let (mut vlan, mut pcp) = (0, 0);
    match (tci as u16, tci_mask as u16) {
        (_, 0) => wildcards |= wild::DL_VLAN | wild::DL_VLAN_PCP,
        (tci, mask) if mask & 0x1000 != 0 && tci & 0x1000 == 0 => vlan = VLAN_NONE,
        (tci, mask) => {
            if mask & 0xfff == 0 {
                wildcards |= wild::DL_VLAN;
            }
            if mask & 0xe000 == 0 {
                wildcards |= wild::DL_VLAN_PCP;
            }
            (vlan, pcp) = (tci & 0xfff, (tci >> 13) as u8);
        }
    }
    let mut address = |ip: Field, of_arp: Field, shift: u32| {
        let field = if arp { of_arp } else { ip };
        let (value, mask) = if m.allows(field.info().need) { m.get(field) } else { (0, 0) };
        wildcards |= (mask as u32).trailing_zeros() << shift;
        value as u32
    };
    let nw_src = address(Field::NwSrc, Field::ArpSpa, wild::NW_SRC_SHIFT);
    let nw_dst = address(Field::NwDst, Field::ArpTpa, wild::NW_DST_SHIFT);
    out.u32(wildcards)
        .u16(in_port)
        .number(src, 6)
        .number(dst, 6)
        .u16(vlan)
        .u8(pcp)
        .zeros(1)
        .u16(kind)
        .u8(tos)
        .u8(proto);
    out.zeros(2).u32(nw_src).u32(nw_dst).u16(tp_src).u16(tp_dst);
}
