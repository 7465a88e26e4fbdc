//! Groups and meters on the wire.

use super::actions::{Context, actions, properties, put_actions};
use super::error::OfError;
use super::flow_stats::put_duration;
use super::ofproto::{GroupMod, GroupStats, MeterMod, MeterStats, bucket};
use super::oxm;
use super::version::Version;
use super::wire::{Reader, Writer};
use crate::vswitch::flow::action::{Band, Bucket, Group, GroupKind, Meter, port};
use crate::vswitch::flow::fields::Field;

/// `OFPG_MAX` and `OFPG_ALL`.
const MAX_GROUP: u32 = 0xffff_ff00;
/// All groups.
pub(crate) const ALL_GROUPS: u32 = 0xffff_fffc;
const ANY: u32 = u32::MAX;
/// `OFPM_MAX` and `OFPM_ALL`.
const MAX_METER: u32 = 0xffff_0000;
/// All meters.
pub(crate) const ALL_METERS: u32 = 0xffff_ffff;
/// Properties of OpenFlow 1.5.
const BUCKET_WEIGHT: u16 = 0;
const BUCKET_WATCH_PORT: u16 = 1;
const BUCKET_WATCH_GROUP: u16 = 2;
const EXPERIMENTER_PROPERTY: u16 = 0xffff;
/// Netronome's `NTRT_SELECTION_METHOD`.
const NETRONOME: u32 = 0x0000_154d;
const SELECTION_METHOD: u32 = 1;
const METHOD_LENGTH: usize = 16;

/// Kinds in the order of `OFPGT_*`.
const KINDS: [GroupKind; 4] =
    [GroupKind::All, GroupKind::Select, GroupKind::Indirect, GroupKind::FastFailover];

fn kind_number(kind: GroupKind) -> u8 {
    KINDS.iter().position(|k| *k == kind).unwrap_or(0) as u8
}

/// Reads a group mod: in the form of OpenFlow 1.5 when `newer` (Nicira's has the same).
pub(crate) fn decode_mod(body: &[u8], version: Version, newer: bool) -> Result<GroupMod, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let (command, kind) = (from.u16()?, from.u8()?);
    from.skip(1)?;
    let id = from.u32()?;
    let (mut at, mut of_buckets) = (bucket::ALL, from.clone());
    if newer {
        let length = usize::from(from.u16()?);
        from.skip(2)?;
        at = from.u32()?;
        of_buckets = from.part(length, OfError::GMFC_BAD_BUCKET)?;
    } else {
        from.rest();
    }
    let buckets = buckets(&mut of_buckets, version, newer)?;
    let kind = KINDS.get(usize::from(kind)).copied().ok_or(OfError::GMFC_BAD_TYPE);
    let mut group = Group {
        id,
        kind: kind.unwrap_or(GroupKind::All),
        buckets,
        method: String::new(),
        param: 0,
        fields: Vec::new(),
    };
    selection(from.rest(), &mut group)?;
    let checked = |group: Group| {
        kind?;
        check(&group)?;
        Ok(group)
    };
    match command {
        0 => checked(group).map(GroupMod::Add),
        1 => checked(group).map(GroupMod::Modify),
        2 => Ok(GroupMod::Delete((id != ALL_GROUPS).then_some(id))),
        3 if newer => Ok(GroupMod::Insert { id, at, buckets: group.buckets }),
        5 if newer => Ok(GroupMod::Remove { id, at }),
        0x8000 => checked(group).map(GroupMod::AddOrModify),
        _ => Err(OfError::GMFC_BAD_COMMAND),
    }
}

fn check(group: &Group) -> Result<(), OfError> {
    let n = group.buckets.len();
    let watched = |b: &Bucket| b.watch_port.is_some() || b.watch_group.is_some();
    if group.id >= MAX_GROUP || (group.kind == GroupKind::Indirect && n != 1) {
        return Err(OfError::GMFC_INVALID_GROUP);
    }
    if group.kind == GroupKind::FastFailover && !group.buckets.iter().all(watched) {
        return Err(OfError::GMFC_BAD_WATCH);
    }
    if group.buckets.iter().any(|b| b.weight != 0) && !matches!(group.kind, GroupKind::Select) {
        return Err(OfError::GMFC_INVALID_GROUP);
    }
    let mut ids: Vec<u32> = group.buckets.iter().map(|b| b.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|w| w[0] == w[1]) {
        return Err(OfError::GMFC_BUCKET_EXISTS);
    }
    Ok(())
}

fn buckets(from: &mut Reader<'_>, version: Version, newer: bool) -> Result<Vec<Bucket>, OfError> {
    let mut list = Vec::new();
    while !from.is_empty() {
        let length = usize::from(from.u16()?);
        let rest = length.checked_sub(2).ok_or(OfError::GMFC_BAD_BUCKET)?;
        let mut body = from.part(rest, OfError::GMFC_BAD_BUCKET)?;
        list.push(if newer {
            bucket_15(&mut body, version)?
        } else {
            bucket_11(&mut body, version, list.len() as u32)?
        });
    }
    Ok(list)
}

fn bucket_11(body: &mut Reader<'_>, version: Version, id: u32) -> Result<Bucket, OfError> {
    let weight = body.u16()?;
    let (watch_port, watch_group) = (body.u32()?, body.u32()?);
    body.skip(4)?;
    Ok(Bucket {
        id,
        weight,
        watch_port: (watch_port != port::ANY).then_some(watch_port),
        watch_group: (watch_group != ANY).then_some(watch_group),
        actions: actions(body.rest(), version)?,
    })
}

fn bucket_15(body: &mut Reader<'_>, version: Version) -> Result<Bucket, OfError> {
    let length = usize::from(body.u16()?);
    let id = body.u32()?;
    let actions = actions(body.bytes(length)?, version)?;
    let mut made = Bucket { id, actions, ..Bucket::default() };
    for (kind, content) in properties(body.rest())? {
        let mut value = Reader::new(content, OfError::BPC_BAD_LEN);
        match kind {
            BUCKET_WEIGHT => made.weight = value.u16()?,
            BUCKET_WATCH_PORT => made.watch_port = Some(value.u32()?).filter(|p| *p != port::ANY),
            BUCKET_WATCH_GROUP => made.watch_group = Some(value.u32()?).filter(|g| *g != ANY),
            _ => return Err(OfError::BPC_BAD_TYPE),
        }
    }
    Ok(made)
}

/// How a select group chooses, in a property of Netronome's.
fn selection(bytes: &[u8], group: &mut Group) -> Result<(), OfError> {
    for (kind, content) in properties(bytes)? {
        let mut value = Reader::new(content, OfError::BPC_BAD_LEN);
        if kind != EXPERIMENTER_PROPERTY || value.u32()? != NETRONOME || value.u32()? != SELECTION_METHOD {
            return Err(OfError::BPC_BAD_TYPE);
        }
        value.skip(4)?;
        let name = value.bytes(METHOD_LENGTH)?.split(|b| *b == 0).next().unwrap_or_default();
        group.method = String::from_utf8(name.to_vec()).map_err(|_| OfError::BPC_BAD_VALUE)?;
        group.param = value.u64()?;
        while value.len() >= 4 && value.peek()[..4] != [0; 4] {
            let (field, _, mask) = oxm::masked_or_whole(&mut value)?;
            group.fields.push((field, mask));
        }
        if !matches!(group.method.as_str(), "" | "hash" | "dp_hash") || group.kind != GroupKind::Select {
            return Err(OfError::BPC_BAD_VALUE);
        }
    }
    Ok(())
}

/// An entry of the description of groups.
pub(crate) fn put_desc(out: &mut Writer, version: Version, newer: bool, group: &Group) {
    let from = out.at();
    out.u16(0).u8(kind_number(group.kind)).zeros(1).u32(group.id);
    let length_at = out.at();
    if newer {
        out.u16(0).zeros(6);
    }
    let begin = out.at();
    for bucket in &group.buckets {
        put_bucket(out, version, newer, group.kind, bucket);
    }
    if newer {
        out.length(length_at, begin);
        put_selection(out, group);
    }
    out.length(from, from);
}

fn put_bucket(out: &mut Writer, version: Version, newer: bool, kind: GroupKind, bucket: &Bucket) {
    let from = out.at();
    let (watch_port, watch_group) =
        (bucket.watch_port.unwrap_or(port::ANY), bucket.watch_group.unwrap_or(ANY));
    out.u16(0);
    if !newer {
        out.u16(bucket.weight).u32(watch_port).u32(watch_group).zeros(4);
        put_actions(out, Context::any(version), &bucket.actions);
    } else {
        let length_at = out.at();
        out.u16(0).u32(bucket.id);
        let begin = out.at();
        put_actions(out, Context::any(version), &bucket.actions);
        out.length(length_at, begin);
        if kind == GroupKind::Select {
            out.u16(BUCKET_WEIGHT).u16(8).u16(bucket.weight).zeros(2);
        }
        if bucket.watch_port.is_some() {
            out.u16(BUCKET_WATCH_PORT).u16(8).u32(watch_port);
        }
        if bucket.watch_group.is_some() {
            out.u16(BUCKET_WATCH_GROUP).u16(8).u32(watch_group);
        }
    }
    out.length(from, from);
}

fn put_selection(out: &mut Writer, group: &Group) {
    if group.method.is_empty() {
        return;
    }
    let from = out.at();
    out.u16(EXPERIMENTER_PROPERTY).u16(0).u32(NETRONOME).u32(SELECTION_METHOD).zeros(4);
    out.text(&group.method, METHOD_LENGTH).u64(group.param);
    for (field, mask) in &group.fields {
        oxm::put(out, Version::V15, *field, *mask, None);
    }
    out.length(from + 2, from);
    out.pad(from);
}

/// An entry of the counters of groups.
pub(crate) fn put_stats(out: &mut Writer, id: u32, stats: &GroupStats) {
    let from = out.at();
    out.u16(0).zeros(2).u32(id).u32(stats.references).zeros(4).u64(stats.packets).u64(stats.bytes);
    put_duration(out, stats.duration);
    for (packets, bytes) in &stats.buckets {
        out.u64(*packets).u64(*bytes);
    }
    out.length(from, from);
}

/// What groups can do: all four kinds, with weights, liveness and chains.
pub(crate) fn put_features(out: &mut Writer) {
    out.u32(0xf).u32(0x7);
    for _ in 0..4 {
        out.u32(MAX_GROUP);
    }
    for _ in 0..4 {
        out.u32(0x03ff_ffff);
    }
}

/// `OFPMF_*`.
mod flag {
    pub(super) const KBPS: u16 = 1;
    pub(super) const PKTPS: u16 = 2;
    pub(super) const BURST: u16 = 4;
    pub(super) const STATS: u16 = 8;
}

/// Reads a meter mod.
pub(crate) fn decode_meter_mod(body: &[u8]) -> Result<MeterMod, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let (command, flags, id) = (from.u16()?, from.u16()?, from.u32()?);
    if command == 2 {
        return Ok(MeterMod::Delete((id != ALL_METERS).then_some(id)));
    }
    if id == 0 || id >= MAX_METER {
        return Err(OfError::MMFC_INVALID_METER);
    }
    if flags > 15 || flags & 3 == 3 {
        return Err(OfError::MMFC_BAD_FLAGS);
    }
    let mut bands = Vec::new();
    while !from.is_empty() {
        bands.push(band(&mut from)?);
    }
    let has = |f: u16| flags & f != 0;
    let meter =
        Meter { id, packets: has(flag::PKTPS), burst: has(flag::BURST), stats: has(flag::STATS), bands };
    match command {
        0 => Ok(MeterMod::Add(meter)),
        1 => Ok(MeterMod::Modify(meter)),
        _ => Err(OfError::MMFC_BAD_COMMAND),
    }
}

fn band(from: &mut Reader<'_>) -> Result<Band, OfError> {
    let (kind, length) = (from.u16()?, from.u16()?);
    if length != 16 {
        return Err(OfError::MMFC_BAD_BAND);
    }
    let (rate, burst, level) = (from.u32()?, from.u32()?, from.u8()?);
    from.skip(3)?;
    match kind {
        1 => Ok(Band { dscp_remark: None, rate, burst }),
        2 => Ok(Band { dscp_remark: Some(level), rate, burst }),
        _ => Err(OfError::MMFC_BAD_BAND),
    }
}

/// An entry of the configuration of meters.
pub(crate) fn put_meter(out: &mut Writer, meter: &Meter) {
    let from = out.at();
    let unit = if meter.packets { flag::PKTPS } else { flag::KBPS };
    let flags = unit | (flag::BURST * u16::from(meter.burst)) | (flag::STATS * u16::from(meter.stats));
    out.u16(0).u16(flags).u32(meter.id);
    for band in &meter.bands {
        let kind = if band.dscp_remark.is_some() { 2 } else { 1 };
        out.u16(kind).u16(16).u32(band.rate).u32(band.burst).u8(band.dscp_remark.unwrap_or(0)).zeros(3);
    }
    out.length(from, from);
}

/// An entry of the counters of meters.
pub(crate) fn put_meter_stats(out: &mut Writer, id: u32, stats: &MeterStats) {
    let from = out.at();
    out.u32(id).u16(0).zeros(6).u32(stats.flows).u64(stats.packets).u64(stats.bytes);
    put_duration(out, stats.duration);
    for (packets, bytes) in &stats.bands {
        out.u64(*packets).u64(*bytes);
    }
    out.length(from + 4, from);
}

/// What meters can do: drop and remark, in kilobits or packets.
pub(crate) fn put_meter_features(out: &mut Writer) {
    out.u32(65_535).u32(0x6).u32(0xf).u8(8).u8(0).zeros(2);
}

/// The fields that a table can match, for its features.
pub(crate) fn matchable() -> impl Iterator<Item = Field> {
    Field::ALL.iter().copied().filter(|f| oxm::of_version(Version::V13, *f))
}
