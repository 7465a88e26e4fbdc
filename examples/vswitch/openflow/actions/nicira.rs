//! Nicira's actions, read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::decode::{
    copy, ether_type, mpls_label, nested, output_port, properties, set_field, small, subfield, writable,
};
use super::nx;
use crate::vswitch::flow::action::{
    Action, Bundle, Controller, Ct, From, Hash, Learn, Multipath, Nat, Reason, SAME_TABLE, Sample, Side,
    Spec, To, WHOLE_PACKET, Zone, port_from_16,
};
use crate::vswitch::flow::fields::{Field, Subfield};
use crate::vswitch::openflow::error::OfError;
use crate::vswitch::openflow::oxm;
use crate::vswitch::openflow::version::Version;
use crate::vswitch::openflow::wire::Reader;

/// The action whose number comes next.
pub(super) fn action(body: &mut Reader<'_>, version: Version, depth: u32) -> Result<Action, OfError> {
    let kind = body.u16()?;
    if let Some(plain) = of_older(kind, body, version)? {
        return Ok(plain);
    }
    Ok(match kind {
        nx::RESUBMIT => Action::Resubmit { port: port_from_16(body.u16()?), table: SAME_TABLE, ct: false },
        nx::RESUBMIT_TABLE | nx::RESUBMIT_TABLE_CT => {
            let ct = kind == nx::RESUBMIT_TABLE_CT;
            Action::Resubmit { port: port_from_16(body.u16()?), table: body.u8()?, ct }
        }
        nx::SET_TUNNEL => {
            body.skip(2)?;
            Action::SetTunnel { id: body.u32()?.into(), wide: false }
        }
        nx::SET_TUNNEL64 => {
            body.skip(6)?;
            Action::SetTunnel { id: body.u64()?, wide: true }
        }
        nx::POP_QUEUE => Action::PopQueue,
        nx::REG_MOVE => {
            let (bits, src, dst) = (body.u16()?, body.u16()?, body.u16()?);
            copy(body, bits, src, dst)?
        }
        nx::REG_LOAD => reg_load(body)?,
        nx::REG_LOAD2 => {
            body.skip(6)?;
            set_field(body, true)?
        }
        nx::NOTE => Action::Note(body.rest().to_vec()),
        nx::MULTIPATH => multipath(body)?,
        nx::BUNDLE | nx::BUNDLE_LOAD => bundle(body, kind == nx::BUNDLE_LOAD)?,
        nx::OUTPUT_REG => {
            let (start, bits) = offset_bits(body.u16()?);
            let src = subfield(oxm::field(body)?, start, bits)?;
            Action::OutputReg { src, max_len: body.u16()? }
        }
        nx::OUTPUT_REG2 => {
            let (start, bits) = offset_bits(body.u16()?);
            let max_len = body.u16()?;
            Action::OutputReg { src: subfield(oxm::field(body)?, start, bits)?, max_len }
        }
        nx::OUTPUT_TRUNC => {
            Action::OutputTrunc { port: output_port(port_from_16(body.u16()?))?, max_len: body.u32()? }
        }
        nx::LEARN | nx::LEARN2 => learn(body, kind == nx::LEARN2)?,
        nx::EXIT => Action::Exit,
        nx::FIN_TIMEOUT => Action::FinTimeout { idle: body.u16()?, hard: body.u16()? },
        nx::CONTROLLER => {
            let (max_len, id, code) = (body.u16()?, body.u16()?, body.u8()?);
            Action::Controller(Box::new(Controller {
                id,
                reason: reason(code)?,
                ..Controller::plain(max_len)
            }))
        }
        nx::CONTROLLER2 => controller(body)?,
        nx::DEC_TTL_CNT_IDS => {
            let n = body.u16()?;
            body.skip(4)?;
            Action::DecTtl((0..n).map(|_| body.u16()).collect::<Result<_, _>>()?)
        }
        nx::STACK_PUSH => Action::StackPush(stack(body)?),
        nx::STACK_POP => Action::StackPop(writable(stack(body)?)?),
        nx::SAMPLE | nx::SAMPLE2 => sample(body, kind == nx::SAMPLE2)?,
        nx::CONJUNCTION => conjunction(body)?,
        nx::CT => ct(body, version, depth)?,
        nx::NAT => nat(body)?,
        nx::CLONE => {
            body.skip(6)?;
            let list = nested(body.rest(), version, depth + 1)?;
            if list.iter().any(|a| matches!(a, Action::Nat(_))) {
                return Err(OfError::BAC_BAD_ARGUMENT);
            }
            Action::Clone(list)
        }
        nx::CT_CLEAR => Action::CtClear,
        nx::CHECK_PKT_LARGER => {
            let (len, offset) = (body.u16()?, body.u16()?);
            Action::CheckPktLarger { len, dst: writable(subfield(oxm::field(body)?, offset, 1)?)? }
        }
        _ => return Err(OfError::BAC_BAD_EXP_TYPE),
    })
}

/// What OpenFlow 1.0 lacks and later versions have.
fn of_older(kind: u16, body: &mut Reader<'_>, version: Version) -> Result<Option<Action>, OfError> {
    if version != Version::V10 && kind != nx::WRITE_METADATA {
        return Ok(None);
    }
    Ok(Some(match kind {
        nx::SET_QUEUE => {
            body.skip(2)?;
            Action::SetQueue(body.u32()?)
        }
        nx::GROUP => {
            body.skip(2)?;
            Action::Group(body.u32()?)
        }
        nx::DEC_TTL => Action::DecTtl(Vec::new()),
        nx::WRITE_METADATA => {
            body.skip(6)?;
            Action::WriteMetadata { value: body.u64()?, mask: body.u64()? }
        }
        nx::PUSH_MPLS => Action::PushMpls(ether_type(body, &[0x8847, 0x8848])?),
        nx::POP_MPLS => Action::PopMpls(body.u16()?),
        nx::SET_MPLS_TTL => Action::SetMplsTtl(body.u8()?),
        nx::DEC_MPLS_TTL => Action::DecMplsTtl,
        nx::SET_MPLS_LABEL => {
            body.skip(2)?;
            Action::SetMplsLabel(mpls_label(body)?)
        }
        nx::SET_MPLS_TC => Action::SetMplsTc(small(body, 7)?),
        _ => return Ok(None),
    }))
}

/// `ofs_nbits`: where it starts, and how many bits.
fn offset_bits(word: u16) -> (u16, u16) {
    (word >> 6, (word & 0x3f) + 1)
}

fn reg_load(body: &mut Reader<'_>) -> Result<Action, OfError> {
    let (start, bits) = offset_bits(body.u16()?);
    let dst = writable(subfield(oxm::field(body)?, start, bits)?)?;
    let value = body.u64()?.into();
    if oxm::fits(value, dst.len) { Ok(Action::Load { value, dst }) } else { Err(OfError::BAC_BAD_ARGUMENT) }
}

fn stack(body: &mut Reader<'_>) -> Result<Subfield, OfError> {
    let offset = body.u16()?;
    let field = oxm::field(body)?;
    subfield(field, offset, body.u16()?)
}

fn reason(code: u8) -> Result<Reason, OfError> {
    const ALL: [Reason; 6] = [
        Reason::NoMatch,
        Reason::Action,
        Reason::InvalidTtl,
        Reason::ActionSet,
        Reason::Group,
        Reason::PacketOut,
    ];
    ALL.into_iter().find(|r| *r as u8 == code).ok_or(OfError::BAC_BAD_ARGUMENT)
}

/// `NXAC2PT_*`.
fn controller(body: &mut Reader<'_>) -> Result<Action, OfError> {
    body.skip(6)?;
    let mut made = Controller::plain(WHOLE_PACKET);
    for (kind, content) in properties(body.rest())? {
        let mut value = Reader::new(content, OfError::BPC_BAD_LEN);
        match kind {
            0 => made.max_len = value.u16()?,
            1 => made.id = value.u16()?,
            2 => made.reason = reason(value.u8()?)?,
            3 => made.userdata = content.to_vec(),
            4 => made.pause = true,
            5 => made.meter = Some(value.u32()?),
            _ => return Err(OfError::BPC_BAD_TYPE),
        }
    }
    Ok(Action::Controller(Box::new(made)))
}

fn hash_fields(number: u16) -> Result<Hash, OfError> {
    Hash::NAMES.iter().map(|(_, h)| *h).find(|h| *h as u16 == number).ok_or(OfError::BAC_BAD_ARGUMENT)
}

fn multipath(body: &mut Reader<'_>) -> Result<Action, OfError> {
    let (fields, basis) = (hash_fields(body.u16()?)?, body.u16()?);
    body.skip(2)?;
    let (algorithm, max_link, arg) = (body.u16()?, body.u16()?, body.u32()?);
    body.skip(2)?;
    let (start, bits) = offset_bits(body.u16()?);
    let dst = writable(subfield(oxm::field(body)?, start, bits)?)?;
    // Every link's number must fit in where it is written.
    if algorithm > 3 || !oxm::fits(max_link.into(), dst.len) {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    Ok(Action::Multipath(Box::new(Multipath { fields, basis, algorithm, max_link, arg, dst })))
}

fn bundle(body: &mut Reader<'_>, load: bool) -> Result<Action, OfError> {
    const PORTS: u32 = 0x0000_0002;
    let (algorithm, fields, basis) = (body.u16()?, hash_fields(body.u16()?)?, body.u16()?);
    let (kind, n, place) = (body.u32()?, body.u16()?, body.u16()?);
    let dst = if load {
        let (start, bits) = offset_bits(place);
        Some(writable(subfield(oxm::field(body)?, start, bits)?)?)
    } else {
        body.skip(4)?;
        None
    };
    body.skip(4)?;
    if kind != PORTS || algorithm > 1 {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    let slaves = (0..n).map(|_| body.u16().map(port_from_16)).collect::<Result<_, _>>()?;
    Ok(Action::Bundle(Box::new(Bundle { fields, basis, active_backup: algorithm == 0, slaves, dst })))
}

fn sample(body: &mut Reader<'_>, port: bool) -> Result<Action, OfError> {
    let (probability, collector_set_id) = (body.u16()?, body.u32()?);
    let (obs_domain_id, obs_point_id) = (body.u32()?, body.u32()?);
    let sampling_port = if port { Some(port_from_16(body.u16()?)) } else { None };
    if probability == 0 {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    Ok(Action::Sample(Box::new(Sample {
        probability,
        collector_set_id,
        obs_domain_id,
        obs_point_id,
        sampling_port,
    })))
}

fn conjunction(body: &mut Reader<'_>) -> Result<Action, OfError> {
    let (clause, clauses, id) = (body.u8()?, body.u8()?, body.u32()?);
    if !(2..=64).contains(&clauses) || clause >= clauses {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    Ok(Action::Conjunction { id, clause, clauses })
}

fn ct(body: &mut Reader<'_>, version: Version, depth: u32) -> Result<Action, OfError> {
    let (flags, mut source, immediate) = (body.u16()?, body.part(4, OfError::BAC_BAD_LEN)?, body.u16()?);
    let table = body.u8()?;
    body.skip(3)?;
    let alg = body.u16()?;
    let zone = if source.peek() == [0; 4] {
        Zone::Number(immediate)
    } else {
        let (start, bits) = offset_bits(immediate);
        Zone::Field(
            subfield(oxm::field(&mut source)?, start, bits)
                .ok()
                .filter(|s| s.len == 16)
                .ok_or(OfError::BAC_BAD_SET_LEN)?,
        )
    };
    let (commit, force) = (flags & 1 != 0, flags & 2 != 0);
    let actions = nested(body.rest(), version, depth + 1)?;
    let marks = |f: Field| matches!(f, Field::CtMark | Field::CtLabel);
    let plain_nat = |a: &Action| matches!(a, Action::Nat(n) if **n == Nat::default());
    let allowed = actions.iter().all(|a| match a {
        Action::Nat(_) => true,
        Action::SetField { field, .. } => marks(*field),
        Action::Load { dst, .. } | Action::Move { dst, .. } => marks(dst.field),
        _ => false,
    });
    if !allowed || (force && !commit) || (!commit && !actions.iter().all(plain_nat)) {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    let table = (table != SAME_TABLE).then_some(table);
    Ok(Action::Ct(Box::new(Ct { commit, force, table, zone, alg, actions })))
}

/// `NX_NAT_F_*` and `NX_NAT_RANGE_*`.
fn nat(body: &mut Reader<'_>) -> Result<Action, OfError> {
    body.skip(2)?;
    let (flags, present) = (body.u16()?, body.u16()?);
    let bit = |n: u16, i: u32| n >> i & 1 != 0;
    let side = match (bit(flags, 0), bit(flags, 1)) {
        (true, false) => Some(Side::Src),
        (false, true) => Some(Side::Dst),
        (false, false) => None,
        (true, true) => return Err(OfError::BAC_BAD_ARGUMENT),
    };
    let v4 = bit(present, 0) || bit(present, 1);
    let v6 = bit(present, 2) || bit(present, 3);
    let mut addr = |there: bool| -> Result<Option<IpAddr>, OfError> {
        Ok(match (there, v4) {
            (false, _) => None,
            (true, true) => Some(Ipv4Addr::from(body.u32()?).into()),
            (true, false) => Some(Ipv6Addr::from(body.array::<16>()?).into()),
        })
    };
    let first = addr(bit(present, 0) || bit(present, 2))?;
    let last = addr(bit(present, 1) || bit(present, 3))?;
    let mut number =
        |there: bool| -> Result<Option<u16>, OfError> { if there { body.u16().map(Some) } else { Ok(None) } };
    let (low, high) = (number(bit(present, 4))?, number(bit(present, 5))?);
    let addrs = range(first.filter(|a| !a.is_unspecified()), last, first.is_some())?;
    let ports = range(low.filter(|p| *p != 0), high, low.is_some())?;
    let known = flags < 32 && present < 64 && !(v4 && v6) && !(bit(flags, 3) && bit(flags, 4));
    if !known || (ports.is_some() && addrs.is_none()) || (side.is_none() && (flags | present) != 0) {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    let (persistent, hash, random) = (bit(flags, 2), bit(flags, 3), bit(flags, 4));
    Ok(Action::Nat(Box::new(Nat { side, addrs, ports, persistent, hash, random })))
}

/// First and last; the last alone, or before the first, is an error.
fn range<T: PartialOrd + Copy>(
    first: Option<T>,
    last: Option<T>,
    given: bool,
) -> Result<Option<(T, T)>, OfError> {
    match (first, last) {
        (Some(a), b) if b.is_none_or(|b| a <= b) => Ok(Some((a, b.unwrap_or(a)))),
        (None, None) if !given => Ok(None),
        _ => Err(OfError::BAC_BAD_ARGUMENT),
    }
}

const LEARN_WRITE_RESULT: u16 = 4;

fn learn(body: &mut Reader<'_>, second: bool) -> Result<Action, OfError> {
    let mut made = Learn {
        idle_timeout: body.u16()?,
        hard_timeout: body.u16()?,
        priority: body.u16()?,
        cookie: body.u64()?,
        ..Learn::default()
    };
    let flags = body.u16()?;
    made.table = body.u8()?;
    body.skip(1)?;
    (made.fin_idle_timeout, made.fin_hard_timeout) = (body.u16()?, body.u16()?);
    (made.send_flow_rem, made.delete_learned) = (flags & 1 != 0, flags & 2 != 0);
    let known = if second { 7 } else { 3 };
    if flags & !known != 0 || made.table == SAME_TABLE {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    if second {
        made.limit = body.u32()?;
        let offset = body.u16()?;
        body.skip(2)?;
        if flags & LEARN_WRITE_RESULT != 0 {
            made.result = Some(writable(subfield(oxm::field(body)?, offset, 1)?)?);
        }
    }
    while body.len() >= 2 {
        match body.u16()? {
            0 => break,
            header => made.specs.push(spec(body, header)?),
        }
    }
    if body.rest().iter().any(|b| *b != 0) {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    Ok(Action::Learn(Box::new(made)))
}

/// `NX_LEARN_*`: ten bits of length, two of what it becomes, one of where it is from.
fn spec(body: &mut Reader<'_>, header: u16) -> Result<Spec, OfError> {
    let bits = header & 0x3ff;
    if header >> 14 != 0 || bits == 0 || bits > 128 {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    let part = |body: &mut Reader<'_>| {
        let field = oxm::field(body)?;
        subfield(field, body.u16()?, bits)
    };
    let from = if header & 1 << 13 == 0 {
        From::Field(part(body)?)
    } else {
        let value = body.number(2 * usize::from(bits).div_ceil(16))?;
        if !oxm::fits(value, bits.into()) {
            return Err(OfError::BAC_BAD_ARGUMENT);
        }
        From::Value(value)
    };
    let to = match (header >> 11 & 3, &from) {
        (0, _) => To::Match(part(body)?),
        (1, _) => To::Load(writable(part(body)?)?),
        (2, From::Field(_)) => To::Output,
        _ => return Err(OfError::BAC_BAD_ARGUMENT),
    };
    Ok(Spec { from, to, bits: bits.into() })
}
