//! Actions and instructions, read (OpenFlow 1.3.5 §7.2.4 and §7.2.5).

use super::{EXPERIMENTER, NICIRA, inst, nicira, of, of10};
use crate::vswitch::flow::action::{Action, port, port_from_16};
use crate::vswitch::flow::fields::{Field, Subfield};
use crate::vswitch::openflow::error::OfError;
use crate::vswitch::openflow::oxm;
use crate::vswitch::openflow::version::Version;
use crate::vswitch::openflow::wire::Reader;

/// How deep actions may stand in actions.
const DEPTH: u32 = 8;

/// The actions that fill `bytes`.
pub(crate) fn actions(bytes: &[u8], version: Version) -> Result<Vec<Action>, OfError> {
    let list = nested(bytes, version, 0)?;
    if list.iter().any(|a| matches!(a, Action::Nat(_))) {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    Ok(list)
}

/// The actions of an action.
pub(super) fn nested(bytes: &[u8], version: Version, depth: u32) -> Result<Vec<Action>, OfError> {
    if depth > DEPTH {
        return Err(OfError::BAC_TOO_MANY);
    }
    let mut from = Reader::new(bytes, OfError::BAC_BAD_LEN);
    let mut list = Vec::new();
    while !from.is_empty() {
        let (kind, length) = (from.u16()?, usize::from(from.u16()?));
        if length < 8 || length % 8 != 0 {
            return Err(OfError::BAC_BAD_LEN);
        }
        let mut body = from.part(length - 4, OfError::BAC_BAD_LEN)?;
        let action = match kind {
            EXPERIMENTER if body.u32()? == NICIRA => nicira::action(&mut body, version, depth)?,
            EXPERIMENTER => return Err(OfError::BAC_BAD_EXPERIMENTER),
            _ if version == Version::V10 => standard_10(kind, &mut body)?,
            _ => standard(kind, &mut body, version)?,
        };
        list.push(action);
    }
    Ok(list)
}

fn standard_10(kind: u16, body: &mut Reader<'_>) -> Result<Action, OfError> {
    Ok(match kind {
        of::OUTPUT => Action::Output { port: output_port(port_from_16(body.u16()?))?, max_len: body.u16()? },
        of::SET_VLAN_VID => Action::SetVlanVid { vid: vlan_vid(body)?, push: true },
        of::SET_VLAN_PCP => Action::SetVlanPcp { pcp: small(body, 7)?, push: true },
        of10::STRIP_VLAN => Action::PopVlan { pop: false },
        of10::SET_DL_SRC => Action::SetEthSrc(body.array()?),
        of10::SET_DL_DST => Action::SetEthDst(body.array()?),
        of10::SET_NW_SRC => Action::SetIpv4Src(body.u32()?),
        of10::SET_NW_DST => Action::SetIpv4Dst(body.u32()?),
        of10::SET_NW_TOS => Action::SetDscp(dscp(body)?),
        of::SET_TP_SRC => Action::SetTpSrc(body.u16()?),
        of::SET_TP_DST => Action::SetTpDst(body.u16()?),
        of10::ENQUEUE => {
            let port = output_port(port_from_16(body.u16()?))?;
            body.skip(6)?;
            Action::Enqueue { port, queue: body.u32()? }
        }
        _ => return Err(OfError::BAC_BAD_TYPE),
    })
}

fn standard(kind: u16, body: &mut Reader<'_>, version: Version) -> Result<Action, OfError> {
    Ok(match kind {
        of::OUTPUT => Action::Output { port: output_port(body.u32()?)?, max_len: body.u16()? },
        of::SET_VLAN_VID => Action::SetVlanVid { vid: vlan_vid(body)?, push: false },
        of::SET_VLAN_PCP => Action::SetVlanPcp { pcp: small(body, 7)?, push: false },
        of::SET_DL_SRC => Action::SetEthSrc(body.array()?),
        of::SET_DL_DST => Action::SetEthDst(body.array()?),
        of::SET_NW_SRC => Action::SetIpv4Src(body.u32()?),
        of::SET_NW_DST => Action::SetIpv4Dst(body.u32()?),
        of::SET_NW_TOS => Action::SetDscp(dscp(body)?),
        of::SET_NW_ECN => Action::SetEcn(small(body, 3)?),
        of::SET_TP_SRC => Action::SetTpSrc(body.u16()?),
        of::SET_TP_DST => Action::SetTpDst(body.u16()?),
        of::SET_MPLS_LABEL => Action::SetMplsLabel(mpls_label(body)?),
        of::SET_MPLS_TC => Action::SetMplsTc(small(body, 7)?),
        of::SET_MPLS_TTL => Action::SetMplsTtl(body.u8()?),
        of::DEC_MPLS_TTL => Action::DecMplsTtl,
        of::PUSH_VLAN => Action::PushVlan(ether_type(body, &[0x8100, 0x88a8])?),
        of::POP_VLAN => Action::PopVlan { pop: true },
        of::PUSH_MPLS => Action::PushMpls(ether_type(body, &[0x8847, 0x8848])?),
        of::POP_MPLS => Action::PopMpls(body.u16()?),
        of::SET_QUEUE => Action::SetQueue(body.u32()?),
        of::GROUP => Action::Group(body.u32()?),
        of::SET_NW_TTL => Action::SetTtl(body.u8()?),
        of::DEC_NW_TTL => Action::DecTtl(Vec::new()),
        of::SET_FIELD => set_field(body, version >= Version::V15)?,
        of::COPY_FIELD if version >= Version::V15 => {
            let (bits, src, dst) = (body.u16()?, body.u16()?, body.u16()?);
            body.skip(2)?;
            copy(body, bits, src, dst)?
        }
        of::METER if version >= Version::V15 => Action::Meter(body.u32()?),
        _ => return Err(OfError::BAC_BAD_TYPE),
    })
}

/// An output can go to ports that there are, and to those that mean something.
pub(super) fn output_port(number: u32) -> Result<u32, OfError> {
    match number {
        port::ANY | port::UNSET => Err(OfError::BAC_BAD_OUT_PORT),
        n if !(port::FIRST_RESERVED..port::IN_PORT).contains(&n) => Ok(n),
        _ => Err(OfError::BAC_BAD_OUT_PORT),
    }
}

fn vlan_vid(body: &mut Reader<'_>) -> Result<u16, OfError> {
    let vid = body.u16()?;
    if vid > 0xfff { Err(OfError::BAC_BAD_ARGUMENT) } else { Ok(vid) }
}

pub(super) fn small(body: &mut Reader<'_>, max: u8) -> Result<u8, OfError> {
    let value = body.u8()?;
    if value > max { Err(OfError::BAC_BAD_ARGUMENT) } else { Ok(value) }
}

fn dscp(body: &mut Reader<'_>) -> Result<u8, OfError> {
    let tos = body.u8()?;
    if tos & 3 != 0 { Err(OfError::BAC_BAD_ARGUMENT) } else { Ok(tos) }
}

pub(super) fn mpls_label(body: &mut Reader<'_>) -> Result<u32, OfError> {
    let label = body.u32()?;
    if label > 0xf_ffff { Err(OfError::BAC_BAD_ARGUMENT) } else { Ok(label) }
}

pub(super) fn ether_type(body: &mut Reader<'_>, known: &[u16]) -> Result<u16, OfError> {
    let kind = body.u16()?;
    if known.contains(&kind) { Ok(kind) } else { Err(OfError::BAC_BAD_ARGUMENT) }
}

/// A field with a value, and a mask where there may be one; then zeros.
pub(super) fn set_field(body: &mut Reader<'_>, masked: bool) -> Result<Action, OfError> {
    let (field, value, mask) = oxm::entry(body).map_err(|e| match e {
        OfError::BMC_BAD_FIELD => OfError::BAC_BAD_SET_TYPE,
        OfError::BMC_BAD_VALUE => OfError::BAC_BAD_SET_ARGUMENT,
        OfError::BMC_BAD_WILDCARDS => OfError::BAC_BAD_SET_MASK,
        OfError::BMC_BAD_LEN => OfError::BAC_BAD_SET_LEN,
        other => other,
    })?;
    let all = oxm::valid_bits(field);
    if mask != all && !masked {
        return Err(OfError::BAC_BAD_SET_MASK);
    }
    if !field.writable() || field == Field::InPortOxm {
        return Err(OfError::BAC_BAD_SET_ARGUMENT);
    }
    // "The OFPVID_PRESENT bit must be a 1-bit in oxm_value and in oxm_mask" (1.5.1 §7.2.6.7).
    if field == Field::VlanVid && value & mask & 0x1000 == 0 {
        return Err(OfError::BAC_BAD_SET_ARGUMENT);
    }
    let (value, mask) = if field == Field::VlanVid { (value & 0xfff, mask & 0xfff) } else { (value, mask) };
    if body.rest().iter().any(|b| *b != 0) {
        return Err(OfError::BAC_BAD_SET_ARGUMENT);
    }
    Ok(Action::SetField { field, value, mask })
}

/// The fields of a copy, whose numbers were read before.
pub(super) fn copy(body: &mut Reader<'_>, bits: u16, src: u16, dst: u16) -> Result<Action, OfError> {
    let src = subfield(oxm::field(body)?, src, bits)?;
    let dst = writable(subfield(oxm::field(body)?, dst, bits)?)?;
    Ok(Action::Move { src, dst })
}

/// Bits of a field, within it.
pub(super) fn subfield(field: Field, start: u16, bits: u16) -> Result<Subfield, OfError> {
    let sub = Subfield { field, start: start.into(), len: bits.into() };
    if bits == 0 || sub.start + sub.len > field.info().bits { Err(OfError::BAC_BAD_SET_LEN) } else { Ok(sub) }
}

/// A subfield that actions may write.
pub(super) fn writable(sub: Subfield) -> Result<Subfield, OfError> {
    if sub.field.writable() { Ok(sub) } else { Err(OfError::BAC_BAD_SET_ARGUMENT) }
}

/// Properties that fill `bytes`: kind and content (OpenFlow 1.4 §7.1.2).
pub(crate) fn properties(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, OfError> {
    let mut from = Reader::new(bytes, OfError::BPC_BAD_LEN);
    let mut list = Vec::new();
    while !from.is_empty() {
        let (kind, length) = (from.u16()?, usize::from(from.u16()?));
        let content = from.bytes(length.checked_sub(4).ok_or(OfError::BPC_BAD_LEN)?)?;
        from.skip((length.next_multiple_of(8) - length).min(from.len()))?;
        list.push((kind, content));
    }
    Ok(list)
}

/// The instructions that fill `bytes`, as one list in the order in which they are done.
pub(crate) fn instructions(bytes: &[u8], version: Version) -> Result<Vec<Action>, OfError> {
    let mut from = Reader::new(bytes, OfError::BIC_BAD_LEN);
    let mut found: [Option<Vec<Action>>; 7] = Default::default();
    while !from.is_empty() {
        let (kind, length) = (from.u16()?, usize::from(from.u16()?));
        if length < 8 || length % 8 != 0 {
            return Err(OfError::BIC_BAD_LEN);
        }
        let mut body = from.part(length - 4, OfError::BIC_BAD_LEN)?;
        let list = instruction(kind, &mut body, version)?;
        if found[usize::from(kind)].replace(list).is_some() {
            return Err(OfError::BIC_DUP_INST);
        }
    }
    const ORDER: [u16; 6] = [
        inst::METER,
        inst::APPLY_ACTIONS,
        inst::CLEAR_ACTIONS,
        inst::WRITE_ACTIONS,
        inst::WRITE_METADATA,
        inst::GOTO_TABLE,
    ];
    Ok(ORDER.iter().filter_map(|k| found[usize::from(*k)].take()).flatten().collect())
}

fn instruction(kind: u16, body: &mut Reader<'_>, version: Version) -> Result<Vec<Action>, OfError> {
    let exact =
        |body: &Reader<'_>, n: usize| if body.len() == n { Ok(()) } else { Err(OfError::BIC_BAD_LEN) };
    Ok(match kind {
        inst::GOTO_TABLE => {
            exact(body, 4)?;
            vec![Action::GotoTable(body.u8()?)]
        }
        inst::WRITE_METADATA => {
            exact(body, 20)?;
            body.skip(4)?;
            vec![Action::WriteMetadata { value: body.u64()?, mask: body.u64()? }]
        }
        inst::WRITE_ACTIONS => {
            body.skip(4)?;
            vec![Action::WriteActions(write_actions(body.rest(), version)?)]
        }
        inst::APPLY_ACTIONS => {
            body.skip(4)?;
            actions(body.rest(), version)?
        }
        inst::CLEAR_ACTIONS => {
            exact(body, 4)?;
            vec![Action::ClearActions]
        }
        inst::METER if version < Version::V15 => {
            exact(body, 4)?;
            vec![Action::Meter(body.u32()?)]
        }
        EXPERIMENTER => return Err(OfError::BIC_BAD_EXPERIMENTER),
        _ => return Err(OfError::BIC_UNKNOWN_INST),
    })
}

/// What may be in an action set: at most one of each kind is done, and some kinds make no sense there.
fn write_actions(bytes: &[u8], version: Version) -> Result<Vec<Action>, OfError> {
    let list = actions(bytes, version)?;
    let misplaced = |a: &Action| {
        matches!(
            a,
            Action::Learn(_)
                | Action::Resubmit { .. }
                | Action::Note(_)
                | Action::Exit
                | Action::StackPush(_)
                | Action::StackPop(_)
                | Action::Conjunction { .. }
                | Action::FinTimeout { .. }
                | Action::Sample(_)
                | Action::OutputReg { .. }
                | Action::Bundle(_)
                | Action::Multipath(_)
                | Action::Clone(_)
        )
    };
    if list.iter().any(misplaced) { Err(OfError::BAC_BAD_TYPE) } else { Ok(list) }
}
