//! Flows, written: entries of `OFPMP_FLOW` and `NXST_FLOW`, the aggregate, and `OFPT_FLOW_REMOVED`.

use std::time::Duration;

use super::actions::{Context, put_actions, put_instructions};
use super::flow_mod::flag_bits;
use super::match10;
use super::ofproto::{FlowStats, Removal};
use super::oxm;
use super::version::Version;
use super::wire::Writer;

/// `OFPXSC_OPENFLOW_BASIC`.
const OXS_BASIC: u32 = 0x8002;

/// Seconds, and nanoseconds beyond them.
pub(crate) fn put_duration(out: &mut Writer, duration: Duration) {
    out.u32(seconds(duration)).u32(duration.subsec_nanos());
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// One entry of the answer to a request for flows.
pub(crate) fn put_flow(out: &mut Writer, version: Version, nicira: bool, stats: &FlowStats) {
    let from = out.at();
    let flow = &stats.flow;
    let context = Context::new(version, &flow.matching);
    match version {
        _ if nicira => put_nx_flow(out, version, stats),
        Version::V10 => {
            out.u16(0).u8(flow.table).zeros(1);
            match10::encode(out, &flow.matching);
            put_duration(out, stats.duration);
            out.u16(flow.priority).u16(flow.idle_timeout).u16(flow.hard_timeout).zeros(6);
            out.u64(flow.cookie).u64(stats.packets).u64(stats.bytes);
            put_actions(out, context, &flow.actions);
        }
        Version::V13 | Version::V14 => {
            out.u16(0).u8(flow.table).zeros(1);
            put_duration(out, stats.duration);
            out.u16(flow.priority).u16(flow.idle_timeout).u16(flow.hard_timeout);
            out.u16(flag_bits(&flow.flags, version));
            out.u16(if version == Version::V14 { flow.importance } else { 0 }).zeros(2);
            out.u64(flow.cookie).u64(stats.packets).u64(stats.bytes);
            oxm::encode_ofp(out, version, &flow.matching);
            put_instructions(out, context, &flow.actions);
        }
        Version::V15 => {
            out.u16(0).zeros(2).u8(flow.table).zeros(1);
            out.u16(flow.priority).u16(flow.idle_timeout).u16(flow.hard_timeout);
            out.u16(flag_bits(&flow.flags, version)).u16(flow.importance).u64(flow.cookie);
            oxm::encode_ofp(out, version, &flow.matching);
            put_oxs(out, Some((stats.duration, Some(stats.idle))), None, stats.packets, stats.bytes);
            put_instructions(out, context, &flow.actions);
        }
    }
    out.length(from, from);
}

fn put_nx_flow(out: &mut Writer, version: Version, stats: &FlowStats) {
    let flow = &stats.flow;
    out.u16(0).u8(flow.table).zeros(1);
    put_duration(out, stats.duration);
    out.u16(flow.priority).u16(flow.idle_timeout).u16(flow.hard_timeout);
    let length_at = out.at();
    // One more than the age: zero is "unknown".
    let age = |d: Duration| u16::try_from(d.as_secs() + 1).unwrap_or(u16::MAX);
    out.u16(0)
        .u16(age(stats.idle))
        .u16(age(stats.unchanged))
        .u64(flow.cookie)
        .u64(stats.packets)
        .u64(stats.bytes);
    put_nx_match(out, length_at, |w| oxm::encode(w, Version::V10, &flow.matching));
    put_actions(out, Context::new(version, &flow.matching), &flow.actions);
}

/// A match whose length, without the padding, goes to the two bytes at `length_at`.
pub(crate) fn put_nx_match(out: &mut Writer, length_at: usize, entries: impl FnOnce(&mut Writer)) {
    let from = out.at();
    entries(out);
    out.length(length_at, from);
    out.pad(from);
}

/// `ofp_stats` (OpenFlow 1.5.1 §7.2.4).
fn put_oxs(
    out: &mut Writer,
    times: Option<(Duration, Option<Duration>)>,
    flows: Option<u32>,
    packets: u64,
    bytes: u64,
) {
    let from = out.at();
    out.u16(0).u16(0);
    let field = |number: u32, length: u32| OXS_BASIC << 16 | number << 9 | length;
    if let Some((duration, idle)) = times {
        out.u32(field(0, 8));
        put_duration(out, duration);
        if let Some(idle) = idle {
            out.u32(field(1, 8)).u32(seconds(idle)).u32(0);
        }
    }
    if let Some(flows) = flows {
        out.u32(field(3, 4)).u32(flows);
    }
    out.u32(field(4, 8)).u64(packets).u32(field(5, 8)).u64(bytes);
    out.length(from + 2, from);
    out.pad(from);
}

/// The body of an aggregate.
pub(crate) fn put_aggregate(out: &mut Writer, version: Version, flows: &[FlowStats]) {
    let (packets, bytes) = flows.iter().fold((0_u64, 0_u64), |(p, b), f| (p + f.packets, b + f.bytes));
    if version == Version::V15 {
        put_oxs(out, None, Some(flows.len() as u32), packets, bytes);
    } else {
        out.u64(packets).u64(bytes).u32(flows.len() as u32).zeros(4);
    }
}

/// The body of `OFPT_FLOW_REMOVED`, or of `NXT_FLOW_REMOVED`.
pub(crate) fn put_removed(
    out: &mut Writer,
    version: Version,
    nicira: bool,
    reason: Removal,
    stats: &FlowStats,
) {
    let flow = &stats.flow;
    let code = match reason {
        Removal::MeterDelete | Removal::Eviction if version < Version::V14 => Removal::Delete as u8,
        Removal::GroupDelete if version == Version::V10 => Removal::Delete as u8,
        other => other as u8,
    };
    if nicira {
        out.u64(flow.cookie).u16(flow.priority).u8(code).u8(flow.table + 1);
        put_duration(out, stats.duration);
        out.u16(flow.idle_timeout);
        let length_at = out.at();
        out.u16(0).u64(stats.packets).u64(stats.bytes);
        return put_nx_match(out, length_at, |w| oxm::encode(w, Version::V10, &flow.matching));
    }
    match version {
        Version::V10 => {
            match10::encode(out, &flow.matching);
            out.u64(flow.cookie).u16(flow.priority).u8(code).zeros(1);
            put_duration(out, stats.duration);
            out.u16(flow.idle_timeout).zeros(2).u64(stats.packets).u64(stats.bytes);
        }
        Version::V13 | Version::V14 => {
            out.u64(flow.cookie).u16(flow.priority).u8(code).u8(flow.table);
            put_duration(out, stats.duration);
            out.u16(flow.idle_timeout).u16(flow.hard_timeout).u64(stats.packets).u64(stats.bytes);
            oxm::encode_ofp(out, version, &flow.matching);
        }
        Version::V15 => {
            out.u8(flow.table)
                .u8(code)
                .u16(flow.priority)
                .u16(flow.idle_timeout)
                .u16(flow.hard_timeout)
                .u64(flow.cookie);
            oxm::encode_ofp(out, version, &flow.matching);
            put_oxs(out, Some((stats.duration, None)), None, stats.packets, stats.bytes);
        }
    }
}
