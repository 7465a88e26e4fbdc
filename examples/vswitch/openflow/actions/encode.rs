//! Actions and instructions, written as `ovs-vswitchd` writes them: what a version lacks, in terms of what it has.

use super::{extended, inst, nx, of, of10};
use crate::vswitch::flow::action::{Action, WHOLE_PACKET, port_to_16};
use crate::vswitch::flow::fields::{Field, Need, Subfield, ones};
use crate::vswitch::flow::key::proto;
use crate::vswitch::flow::matching::Match;
use crate::vswitch::openflow::oxm;
use crate::vswitch::openflow::version::Version;
use crate::vswitch::openflow::wire::Writer;

/// What the form of an action depends on.
#[derive(Clone, Copy)]
pub(crate) struct Context {
    /// The version spoken.
    pub(crate) version: Version,
    /// Packets have a VLAN tag here.
    vlan: bool,
    /// The IP protocol, where it is matched.
    protocol: u8,
}

impl Context {
    /// Of the packets that a match selects.
    pub(crate) fn new(version: Version, matching: &Match) -> Context {
        let protocol = if matching.allows(Need::Ip) { matching.get(Field::NwProto).0 as u8 } else { 0 };
        Context { version, vlan: matching.allows(Need::VlanVid), protocol }
    }

    /// Of any packets.
    pub(crate) fn any(version: Version) -> Context {
        Context { version, vlan: false, protocol: 0 }
    }
}

/// Writes actions; what a version calls instructions is left out, unless it is one that has none.
pub(crate) fn put_actions(out: &mut Writer, mut context: Context, actions: &[Action]) {
    for action in actions {
        put_action(out, &mut context, action);
    }
}

/// Writes instructions (OpenFlow 1.1 and later); in OpenFlow 1.0, actions.
pub(crate) fn put_instructions(out: &mut Writer, mut context: Context, actions: &[Action]) {
    let version = context.version;
    if version == Version::V10 {
        return put_actions(out, context, actions);
    }
    let simple = |out: &mut Writer, kind: u16, length: u16| {
        out.u16(kind).u16(length);
    };
    // Before 1.5 a meter is an instruction, of which there is one, done first.
    let old_meter = |a: &Action| version < Version::V15 && matches!(a, Action::Meter(_));
    if let Some(Action::Meter(id)) = actions.iter().find(|a| old_meter(a)) {
        simple(out, inst::METER, 8);
        out.u32(*id);
    }
    let mut apply = None;
    for action in actions.iter().filter(|a| !old_meter(a)) {
        let is_instruction = matches!(
            action,
            Action::ClearActions
                | Action::WriteActions(_)
                | Action::WriteMetadata { .. }
                | Action::GotoTable(_)
        );
        if !is_instruction {
            apply.get_or_insert_with(|| {
                let from = out.at();
                out.u16(inst::APPLY_ACTIONS).u16(0).zeros(4);
                from
            });
            put_action(out, &mut context, action);
            continue;
        }
        if let Some(from) = apply.take() {
            out.length(from + 2, from);
        }
        match action {
            Action::ClearActions => {
                simple(out, inst::CLEAR_ACTIONS, 8);
                out.zeros(4);
            }
            Action::WriteActions(list) => {
                let from = out.at();
                out.u16(inst::WRITE_ACTIONS).u16(0).zeros(4);
                put_actions(out, context, list);
                out.length(from + 2, from);
            }
            Action::WriteMetadata { value, mask } => {
                simple(out, inst::WRITE_METADATA, 24);
                out.zeros(4).u64(*value).u64(*mask);
            }
            Action::GotoTable(table) => {
                simple(out, inst::GOTO_TABLE, 8);
                out.u8(*table).zeros(3);
            }
            _ => {}
        }
    }
    if let Some(from) = apply {
        out.length(from + 2, from);
    }
}

/// A standard action whose body is this.
fn standard(out: &mut Writer, kind: u16, body: impl FnOnce(&mut Writer)) {
    let from = out.at();
    out.u16(kind).u16(0);
    body(out);
    out.pad(from);
    out.length(from + 2, from);
}

/// A standard action of OpenFlow 1.1 and later that is Nicira's in 1.0.
fn later(out: &mut Writer, version: Version, (old, new): (u16, u16), body: impl FnOnce(&mut Writer, bool)) {
    if version == Version::V10 {
        extended::nicira(out, old, |w| body(w, true));
    } else {
        standard(out, new, |w| body(w, false));
    }
}

/// Sets a whole field: as an action of its own in OpenFlow 1.0, as a field later.
fn set(
    out: &mut Writer,
    version: Version,
    old: u16,
    field: Field,
    value: u128,
    body: impl FnOnce(&mut Writer),
) {
    if version == Version::V10 {
        standard(out, old, body)
    } else {
        set_field(out, version, field, value, field.all_ones())
    }
}

fn put_action(out: &mut Writer, context: &mut Context, action: &Action) {
    let version = context.version;
    let old = version == Version::V10;
    match action {
        Action::Output { port, max_len } if old => standard(out, of::OUTPUT, |w| {
            w.u16(port_to_16(*port)).u16(*max_len);
        }),
        Action::Output { port, max_len } => standard(out, of::OUTPUT, |w| {
            w.u32(*port).u16(*max_len);
        }),
        Action::Enqueue { port, queue } if old => {
            standard(out, of10::ENQUEUE, |w| {
                w.u16(port_to_16(*port)).zeros(6).u32(*queue);
            });
        }
        Action::Enqueue { port, queue } => {
            standard(out, of::SET_QUEUE, |w| {
                w.u32(*queue);
            });
            standard(out, of::OUTPUT, |w| {
                w.u32(*port).u16(WHOLE_PACKET);
            });
            extended::nicira(out, nx::POP_QUEUE, |_| {});
        }
        Action::Group(id) => later(out, version, (nx::GROUP, of::GROUP), |w, nx| {
            w.zeros(2 * usize::from(nx)).u32(*id);
        }),
        Action::SetQueue(id) => {
            later(out, version, (nx::SET_QUEUE, of::SET_QUEUE), |w, nx| {
                w.zeros(2 * usize::from(nx)).u32(*id);
            });
        }
        Action::SetVlanVid { vid, push } => {
            push_if_needed(out, context, *push);
            let value = u128::from(*vid);
            set(out, version, of::SET_VLAN_VID, Field::VlanVid, value, |w| {
                w.u16(*vid);
            });
        }
        Action::SetVlanPcp { pcp, push } => {
            push_if_needed(out, context, *push);
            set(out, version, of::SET_VLAN_PCP, Field::VlanPcp, (*pcp).into(), |w| {
                w.u8(*pcp);
            });
        }
        Action::PopVlan { .. } => {
            context.vlan = false;
            standard(out, if old { of10::STRIP_VLAN } else { of::POP_VLAN }, |_| {});
        }
        // In 1.0 a tag is pushed by setting its number, which follows.
        Action::PushVlan(_) if old => {}
        Action::PushVlan(kind) => {
            context.vlan = true;
            standard(out, of::PUSH_VLAN, |w| {
                w.u16(*kind);
            });
        }
        Action::SetEthSrc(mac) => set(out, version, of10::SET_DL_SRC, Field::EthSrc, number(mac), |w| {
            w.put(mac);
        }),
        Action::SetEthDst(mac) => set(out, version, of10::SET_DL_DST, Field::EthDst, number(mac), |w| {
            w.put(mac);
        }),
        Action::SetIpv4Src(ip) => set(out, version, of10::SET_NW_SRC, Field::NwSrc, (*ip).into(), |w| {
            w.u32(*ip);
        }),
        Action::SetIpv4Dst(ip) => set(out, version, of10::SET_NW_DST, Field::NwDst, (*ip).into(), |w| {
            w.u32(*ip);
        }),
        Action::SetDscp(tos) => set(out, version, of10::SET_NW_TOS, Field::IpDscp, (*tos >> 2).into(), |w| {
            w.u8(*tos);
        }),
        Action::SetEcn(ecn) if old => reg_load(out, Subfield::whole(Field::NwEcn), (*ecn).into()),
        Action::SetEcn(ecn) => set_field(out, version, Field::NwEcn, (*ecn).into(), 3),
        Action::SetTtl(ttl) if old => reg_load(out, Subfield::whole(Field::NwTtl), (*ttl).into()),
        Action::SetTtl(ttl) => standard(out, of::SET_NW_TTL, |w| {
            w.u8(*ttl);
        }),
        Action::SetTpSrc(n) => {
            set_port(out, context, *n, of::SET_TP_SRC, [Field::TcpSrc, Field::UdpSrc, Field::SctpSrc])
        }
        Action::SetTpDst(n) => {
            set_port(out, context, *n, of::SET_TP_DST, [Field::TcpDst, Field::UdpDst, Field::SctpDst])
        }
        Action::SetField { field, value, mask } => put_set_field(out, context, *field, *value, *mask),
        Action::Load { value, dst } if version >= Version::V15 => {
            // Unlike `set_field` of a whole field, a load keeps the mask where the field has fewer bits than its bytes.
            let all = ones(8 * dst.field.info().bytes as u32);
            let mask = (dst.mask() != all).then_some(dst.mask());
            standard(out, of::SET_FIELD, |w| oxm::put(w, version, dst.field, value << dst.start, mask));
        }
        Action::Load { value, dst } => reg_load(out, *dst, *value),
        Action::Move { src, dst } if version >= Version::V15 => standard(out, of::COPY_FIELD, |w| {
            w.u16(dst.len as u16).u16(src.start as u16).u16(dst.start as u16).zeros(2);
            oxm::put_field(w, version, src.field);
            oxm::put_field(w, version, dst.field);
        }),
        Action::DecTtl(ids) if ids.is_empty() => {
            later(out, version, (nx::DEC_TTL, of::DEC_NW_TTL), |_, _| {})
        }
        Action::SetMplsLabel(v) if old => extended::nicira(out, nx::SET_MPLS_LABEL, |w| {
            w.zeros(2).u32(*v);
        }),
        Action::SetMplsLabel(v) => set_field(out, version, Field::MplsLabel, (*v).into(), ones(20)),
        Action::SetMplsTc(v) if old => extended::nicira(out, nx::SET_MPLS_TC, |w| {
            w.u8(*v);
        }),
        Action::SetMplsTc(v) => set_field(out, version, Field::MplsTc, (*v).into(), 7),
        Action::SetMplsTtl(v) => later(out, version, (nx::SET_MPLS_TTL, of::SET_MPLS_TTL), |w, _| {
            w.u8(*v);
        }),
        Action::DecMplsTtl => later(out, version, (nx::DEC_MPLS_TTL, of::DEC_MPLS_TTL), |_, _| {}),
        Action::PushMpls(v) => later(out, version, (nx::PUSH_MPLS, of::PUSH_MPLS), |w, _| {
            w.u16(*v);
        }),
        Action::PopMpls(v) => later(out, version, (nx::POP_MPLS, of::POP_MPLS), |w, _| {
            w.u16(*v);
        }),
        Action::SetTunnel { id, .. } if !old => {
            set_field(out, version, Field::TunId, (*id).into(), u64::MAX.into())
        }
        Action::Meter(id) if version >= Version::V15 => standard(out, of::METER, |w| {
            w.u32(*id);
        }),
        Action::Meter(_) | Action::ClearActions | Action::WriteActions(_) => {}
        other => extended::put(out, *context, other),
    }
}

fn push_if_needed(out: &mut Writer, context: &mut Context, push: bool) {
    if push && !context.vlan && context.version > Version::V10 {
        standard(out, of::PUSH_VLAN, |w| {
            w.u16(0x8100);
        });
    }
    context.vlan |= push;
}

fn number(mac: &[u8; 6]) -> u128 {
    mac.iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

/// A port of the protocol that is matched; where none is, as OpenFlow 1.1 has it.
fn set_port(out: &mut Writer, context: &Context, number: u16, old: u16, [tcp, udp, sctp]: [Field; 3]) {
    let field = match context.protocol {
        proto::TCP => Some(tcp),
        proto::UDP => Some(udp),
        proto::SCTP => Some(sctp),
        _ => None,
    };
    match field {
        Some(field) if context.version > Version::V10 => {
            set_field(out, context.version, field, number.into(), 0xffff)
        }
        _ => standard(out, old, |w| {
            w.u16(number);
        }),
    }
}

/// `OFPAT_SET_FIELD` with a mask where not all bits are set.
fn set_field(out: &mut Writer, version: Version, field: Field, value: u128, mask: u128) {
    // Where a tag's number is set, the bit that says there is one is (1.5.1 §7.2.6.7).
    let present = if field == Field::VlanVid { 0x1000 } else { 0 };
    let mask = (mask != field.all_ones()).then_some(mask | present);
    standard(out, of::SET_FIELD, |w| oxm::put(w, version, field, value | present, mask));
}

fn put_set_field(out: &mut Writer, context: &mut Context, field: Field, value: u128, mask: u128) {
    let (version, whole) = (context.version, mask == field.all_ones());
    match version {
        Version::V15 => return set_field(out, version, field, value, mask),
        Version::V13 | Version::V14 if whole => return set_field(out, version, field, value, mask),
        Version::V10 if whole => {
            let mac = || crate::vswitch::flow::key::mac_bytes(value);
            let as_action = match field {
                Field::VlanVid => Some(Action::SetVlanVid { vid: value as u16, push: true }),
                Field::VlanPcp => Some(Action::SetVlanPcp { pcp: value as u8, push: true }),
                Field::EthSrc => Some(Action::SetEthSrc(mac())),
                Field::EthDst => Some(Action::SetEthDst(mac())),
                Field::NwSrc => Some(Action::SetIpv4Src(value as u32)),
                Field::NwDst => Some(Action::SetIpv4Dst(value as u32)),
                Field::NwTos => Some(Action::SetDscp(value as u8)),
                Field::IpDscp => Some(Action::SetDscp((value as u8) << 2)),
                Field::TcpSrc | Field::UdpSrc => Some(Action::SetTpSrc(value as u16)),
                Field::TcpDst | Field::UdpDst => Some(Action::SetTpDst(value as u16)),
                _ => None,
            };
            if let Some(action) = as_action {
                return put_action(out, context, &action);
            }
        }
        _ => {}
    }
    // Runs of bits that are set, from the lowest on.
    let mut start = 0;
    while start < 128 && mask >> start != 0 {
        start += (mask >> start).trailing_zeros();
        let len = (mask >> start).trailing_ones().min(64);
        reg_load(out, Subfield { field, start, len }, value >> start & ones(len));
        start += len;
    }
}

/// `NXAST_REG_LOAD`, of at most 64 bits.
fn reg_load(out: &mut Writer, dst: Subfield, value: u128) {
    extended::nicira(out, nx::REG_LOAD, |w| {
        extended::place(w, dst);
        oxm::put_field(w, Version::V10, dst.field);
        w.u64(value as u64);
    });
}
