//! Changes of flows, read, in the forms of OpenFlow 1.0, Nicira and OpenFlow 1.1 (`OFPT_FLOW_MOD`, `NXT_FLOW_MOD`).

use super::actions::{self, instructions};
use super::error::OfError;
use super::match10;
use super::ofproto::{Command, FlowMod, Select};
use super::oxm::{self, Cookie};
use super::version::Version;
use super::wire::Reader;
use crate::vswitch::flow::action::{Action, Flow, FlowFlags, SAME_TABLE, TABLES, port, port_from_16};
use crate::vswitch::flow::fields::Need;
use crate::vswitch::flow::matching::Match;

/// `OFPTT_ALL`.
const ALL_TABLES: u8 = 0xff;
/// `OFP_NO_BUFFER`.
pub(crate) const NO_BUFFER: u32 = u32::MAX;
/// `OFPG_ANY`.
const ANY_GROUP: u32 = u32::MAX;

/// Reads the body of a flow mod. `by_table`: in OpenFlow 1.0, the command's upper half names the table.
pub(crate) fn decode(
    body: &[u8],
    version: Version,
    nicira: bool,
    by_table: bool,
) -> Result<FlowMod, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let made = match (version, nicira) {
        (_, true) => extended(&mut from, version, by_table)?,
        (Version::V10, false) => of_10(&mut from, by_table)?,
        _ => of_11(&mut from, version)?,
    };
    check(&made)?;
    Ok(made)
}

fn of_10(from: &mut Reader<'_>, by_table: bool) -> Result<FlowMod, OfError> {
    let (matching, exact) = match10::decode(from)?;
    let cookie = from.u64()?;
    let (command, table) = command_10(from.u16()?, by_table)?;
    let mut made = plain(command, Flow { matching, cookie, ..Flow::default() }, table);
    tail_10(from, &mut made)?;
    if exact {
        made.flow.priority = u16::MAX;
    }
    made.flow.actions = actions::actions(from.rest(), Version::V10)?;
    Ok(made)
}

/// Timeouts to flags, as OpenFlow 1.0 has them.
fn tail_10(from: &mut Reader<'_>, made: &mut FlowMod) -> Result<(), OfError> {
    made.flow.idle_timeout = from.u16()?;
    made.flow.hard_timeout = from.u16()?;
    made.flow.priority = from.u16()?;
    buffer(from.u32()?, made.command)?;
    made.out_port = filter_port(port_from_16(from.u16()?));
    made.flow.flags = flags(from.u16()?, made.command, Version::V10)?;
    made.new_cookie = made.flow.cookie != u64::MAX;
    made.add_if_none = made.new_cookie && matches!(made.command, Command::Modify | Command::ModifyStrict);
    Ok(())
}

fn extended(from: &mut Reader<'_>, version: Version, by_table: bool) -> Result<FlowMod, OfError> {
    let cookie = from.u64()?;
    let (command, table) = command_10(from.u16()?, by_table)?;
    let mut made = plain(command, Flow { cookie, ..Flow::default() }, table);
    tail_10(from, &mut made)?;
    let length = usize::from(from.u16()?);
    from.skip(6)?;
    let (matching, filter) = nx_match(from, length)?;
    if filter.is_some() && command == Command::Add {
        return Err(OfError::BMC_BAD_FIELD);
    }
    made.flow.matching = matching;
    made.cookie = filter.unwrap_or_default();
    made.add_if_none &= made.cookie.mask == 0;
    made.flow.actions = actions::actions(from.rest(), version)?;
    Ok(made)
}

/// A match of this many bytes, and the padding after it.
pub(crate) fn nx_match(from: &mut Reader<'_>, length: usize) -> Result<(Match, Option<Cookie>), OfError> {
    let found = oxm::decode(from.part(length, OfError::BMC_BAD_LEN)?.rest(), false)?;
    from.skip(length.next_multiple_of(8) - length)?;
    Ok(found)
}

fn of_11(from: &mut Reader<'_>, version: Version) -> Result<FlowMod, OfError> {
    let (cookie, mask) = (from.u64()?, from.u64()?);
    let (table, command) = (from.u8()?, command(from.u8()?.into())?);
    let mut made = plain(command, Flow::default(), (table != ALL_TABLES).then_some(table));
    let deletes = matches!(command, Command::Delete | Command::DeleteStrict);
    if made.table.is_none() && !deletes {
        return Err(OfError::FMFC_BAD_TABLE_ID);
    }
    if command == Command::Add {
        made.flow.cookie = cookie;
    } else {
        made.cookie = Cookie { value: cookie, mask };
    }
    made.flow.idle_timeout = from.u16()?;
    made.flow.hard_timeout = from.u16()?;
    made.flow.priority = from.u16()?;
    buffer(from.u32()?, command)?;
    made.out_port = filter_port(from.u32()?);
    let group = from.u32()?;
    made.out_group = (group != ANY_GROUP && deletes).then_some(group);
    made.flow.flags = flags(from.u16()?, command, version)?;
    let importance = from.u16()?;
    if version >= Version::V14 && command == Command::Add {
        made.flow.importance = importance;
    }
    made.flow.matching = oxm::decode_ofp(from)?;
    made.flow.actions = instructions(from.rest(), version)?;
    Ok(made)
}

fn plain(command: Command, flow: Flow, table: Option<u8>) -> FlowMod {
    let flow = Flow { table: table.unwrap_or(0), ..flow };
    let cookie = Cookie::default();
    FlowMod {
        command,
        flow,
        table,
        cookie,
        new_cookie: false,
        add_if_none: false,
        out_port: None,
        out_group: None,
    }
}

fn command(code: u16) -> Result<Command, OfError> {
    const ALL: [Command; 5] =
        [Command::Add, Command::Modify, Command::ModifyStrict, Command::Delete, Command::DeleteStrict];
    ALL.get(usize::from(code)).copied().ok_or(OfError::FMFC_BAD_COMMAND)
}

fn command_10(code: u16, by_table: bool) -> Result<(Command, Option<u8>), OfError> {
    if !by_table {
        return Ok((command(code)?, None));
    }
    let table = (code >> 8) as u8;
    Ok((command(code & 0xff)?, (table != ALL_TABLES).then_some(table)))
}

fn filter_port(number: u32) -> Option<u32> {
    (number != port::ANY).then_some(number)
}

/// We keep no packets for controllers; a delete has no use for one.
fn buffer(id: u32, command: Command) -> Result<(), OfError> {
    let used = !matches!(command, Command::Delete | Command::DeleteStrict);
    if used && id != NO_BUFFER { Err(OfError::BRC_BUFFER_UNKNOWN) } else { Ok(()) }
}

/// `OFPFF_*`.
fn flags(raw: u16, command: Command, version: Version) -> Result<FlowFlags, OfError> {
    let known = if version == Version::V10 { 3 } else { 0x1f };
    if raw & !known != 0 {
        return Err(OfError::FMFC_BAD_FLAGS);
    }
    let bit = |i: u32| raw >> i & 1 != 0;
    Ok(FlowFlags {
        send_flow_rem: bit(0),
        check_overlap: bit(1),
        // In OpenFlow 1.0 an add always does.
        reset_counts: bit(2) || (version == Version::V10 && command == Command::Add),
        no_packet_counts: bit(3),
        no_byte_counts: bit(4),
    })
}

/// The flags of a flow, in a version's numbers.
pub(crate) fn flag_bits(flags: &FlowFlags, version: Version) -> u16 {
    let bits = u16::from(flags.send_flow_rem)
        | u16::from(flags.check_overlap) << 1
        | u16::from(flags.reset_counts) << 2
        | u16::from(flags.no_packet_counts) << 3
        | u16::from(flags.no_byte_counts) << 4;
    if version == Version::V10 { bits & 3 } else { bits }
}

/// Whether the actions make sense for what is matched, as far as that can be seen here.
fn check(made: &FlowMod) -> Result<(), OfError> {
    if matches!(made.command, Command::Delete | Command::DeleteStrict) {
        return Ok(());
    }
    if made.flow.table >= TABLES {
        return Err(OfError::FMFC_BAD_TABLE_ID);
    }
    let conjunctions = made.flow.actions.iter().filter(|a| matches!(a, Action::Conjunction { .. })).count();
    let others = made
        .flow
        .actions
        .iter()
        .filter(|a| !matches!(a, Action::Conjunction { .. } | Action::Note(_)))
        .count();
    if conjunctions > 0 && others > 0 {
        return Err(OfError::BAC_BAD_ARGUMENT);
    }
    // An action may make what a later one needs: then nothing can be said of it here.
    let makes = |a: &Action| {
        matches!(
            a,
            Action::PushMpls(_) | Action::PopMpls(_) | Action::PushVlan(_) | Action::SetVlanVid { .. }
        )
    };
    for action in made.flow.actions.iter().take_while(|a| !makes(a)) {
        consistent(action, made)?;
    }
    Ok(())
}

fn consistent(action: &Action, made: &FlowMod) -> Result<(), OfError> {
    let matching = &made.flow.matching;
    let need = match action {
        Action::GotoTable(table) if made.table.is_some() && *table <= made.flow.table || *table >= TABLES => {
            return Err(OfError::BIC_BAD_TABLE_ID);
        }
        Action::SetField { field, .. } => field.info().need,
        Action::Load { dst, .. } | Action::StackPop(dst) => dst.field.info().need,
        Action::Move { src, dst } if matching.allows(src.field.info().need) => dst.field.info().need,
        Action::Move { src, .. } => src.field.info().need,
        Action::OutputReg { src, .. } | Action::StackPush(src) => src.field.info().need,
        Action::SetIpv4Src(_) | Action::SetIpv4Dst(_) => Need::Ipv4,
        Action::SetDscp(_) | Action::SetEcn(_) | Action::SetTtl(_) | Action::DecTtl(_) | Action::Ct(_) => {
            Need::Ip
        }
        Action::PopMpls(_)
        | Action::DecMplsTtl
        | Action::SetMplsLabel(_)
        | Action::SetMplsTc(_)
        | Action::SetMplsTtl(_) => Need::Mpls,
        Action::Resubmit { ct: true, .. } => Need::Ip,
        Action::SetVlanPcp { push: false, .. } => Need::VlanVid,
        Action::SetTpSrc(_) | Action::SetTpDst(_) => {
            let there = [Need::Tcp, Need::Udp, Need::Sctp].into_iter().any(|n| matching.allows(n));
            return if there { Ok(()) } else { Err(OfError::BAC_MATCH_INCONSISTENT) };
        }
        _ => Need::None,
    };
    if matching.allows(need) { Ok(()) } else { Err(OfError::BAC_MATCH_INCONSISTENT) }
}

/// A request for flows: `OFPMP_FLOW` and `OFPMP_AGGREGATE`, `NXST_FLOW` and `NXST_AGGREGATE`.
pub(crate) fn decode_select(body: &[u8], version: Version, nicira: bool) -> Result<Select, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let named = |table: u8| (table != SAME_TABLE).then_some(table);
    let (table, out_port, out_group, cookie, matching);
    if nicira {
        out_port = filter_port(port_from_16(from.u16()?));
        let length = usize::from(from.u16()?);
        table = named(from.u8()?);
        from.skip(3)?;
        let (found, filter) = nx_match(&mut from, length)?;
        (matching, cookie, out_group) = (found, filter.unwrap_or_default(), None);
    } else if version == Version::V10 {
        matching = match10::decode(&mut from)?.0;
        table = named(from.u8()?);
        from.skip(1)?;
        out_port = filter_port(port_from_16(from.u16()?));
        (cookie, out_group) = (Cookie::default(), None);
    } else {
        table = named(from.u8()?);
        from.skip(3)?;
        out_port = filter_port(from.u32()?);
        let group = from.u32()?;
        out_group = (group != ANY_GROUP).then_some(group);
        from.skip(4)?;
        cookie = Cookie { value: from.u64()?, mask: from.u64()? };
        matching = oxm::decode_ofp(&mut from)?;
    }
    if !from.is_empty() {
        return Err(OfError::BRC_BAD_LEN);
    }
    Ok(Select { table, matching, cookie, out_port, out_group })
}
