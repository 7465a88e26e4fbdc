//! Ports and tables on the wire.

use super::flow_stats::put_duration;
use super::groups::matchable;
use super::ofproto::{PortDesc, PortStats, TableStats};
use super::oxm;
use super::version::Version;
use super::wire::Writer;
use crate::vswitch::flow::action::{TABLES, port_to_16};

/// Flows that a table may have, as far as controllers are told.
pub(crate) const MAX_FLOWS: u32 = 1_000_000;
const NAME: usize = 16;
const TABLE_NAME: usize = 32;

/// `OFPPC_*` and `OFPPS_*` of OpenFlow 1.0, which has a state of STP where later versions have others.
const STATE_10: u32 = 1;
const CONFIG_10: u32 = 0x7f;

/// A port's description.
pub(crate) fn put_port(out: &mut Writer, version: Version, port: &PortDesc) {
    match version {
        Version::V10 => {
            out.u16(port_to_16(port.number)).put(&port.mac).text(&port.name, NAME);
            out.u32(port.config & CONFIG_10).u32(port.state & STATE_10).zeros(16);
        }
        Version::V13 => {
            out.u32(port.number).zeros(4).put(&port.mac).zeros(2).text(&port.name, NAME);
            out.u32(port.config).u32(state(port)).zeros(16).u32(port.speed_kbps).u32(port.speed_kbps);
        }
        Version::V14 | Version::V15 => {
            out.u32(port.number).u16(72).zeros(2).put(&port.mac).zeros(2).text(&port.name, NAME);
            // One property: Ethernet.
            out.u32(port.config).u32(state(port)).u16(0).u16(32).zeros(4).zeros(16);
            out.u32(port.speed_kbps).u32(port.speed_kbps);
        }
    }
}

/// With `OFPPS_LIVE` where the link is.
fn state(port: &PortDesc) -> u32 {
    port.state | if port.state & 1 == 0 && port.config & 1 == 0 { 4 } else { 0 }
}

/// An entry of the counters of ports.
pub(crate) fn put_stats(out: &mut Writer, version: Version, number: u32, s: &PortStats) {
    let counters = [
        s.rx_packets,
        s.tx_packets,
        s.rx_bytes,
        s.tx_bytes,
        s.rx_dropped,
        s.tx_dropped,
        s.rx_errors,
        s.tx_errors,
    ];
    let from = out.at();
    match version {
        Version::V10 => {
            out.u16(port_to_16(number)).zeros(6);
        }
        Version::V13 => {
            out.u32(number).zeros(4);
        }
        Version::V14 | Version::V15 => {
            out.u16(0).zeros(2).u32(number);
            put_duration(out, s.duration);
        }
    }
    for counter in counters {
        out.u64(counter);
    }
    if version >= Version::V14 {
        // Framing, overrun and checksum errors are a property of Ethernet, and not counted apart.
        out.u16(0).u16(40).zeros(4);
        out.u64(u64::MAX).u64(u64::MAX).u64(u64::MAX).u64(u64::MAX);
        out.length(from, from);
        return;
    }
    out.u64(u64::MAX).u64(u64::MAX).u64(u64::MAX).u64(u64::MAX);
    if version == Version::V13 {
        put_duration(out, s.duration);
    }
}

/// An entry of the counters of tables.
pub(crate) fn put_table(out: &mut Writer, version: Version, id: u8, stats: &TableStats) {
    if version == Version::V10 {
        out.u8(id).zeros(3).zeros(TABLE_NAME).u32(0x003f_ffff).u32(MAX_FLOWS);
        out.u32(stats.active).u64(stats.lookups).u64(stats.matched);
    } else {
        out.u8(id).zeros(3).u32(stats.active).u64(stats.lookups).u64(stats.matched);
    }
}

/// `OFPTFPT_*`.
mod feature {
    pub(super) const INSTRUCTIONS: u16 = 0;
    pub(super) const NEXT_TABLES: u16 = 2;
    pub(super) const WRITE_ACTIONS: u16 = 4;
    pub(super) const APPLY_ACTIONS: u16 = 6;
    pub(super) const MATCH: u16 = 8;
    pub(super) const WILDCARDS: u16 = 10;
    pub(super) const WRITE_SETFIELD: u16 = 12;
    pub(super) const APPLY_SETFIELD: u16 = 14;
}

/// An entry of the features of tables (OpenFlow 1.3.5 §7.3.5.5): all tables can do the same.
pub(crate) fn put_features(out: &mut Writer, version: Version, id: u8) {
    let from = out.at();
    out.u16(0).u8(id).zeros(5).zeros(TABLE_NAME);
    out.u64(u64::MAX).u64(u64::MAX).u32(0).u32(MAX_FLOWS);
    let property = |out: &mut Writer, kind: u16, body: &dyn Fn(&mut Writer)| {
        let at = out.at();
        out.u16(kind).u16(0);
        body(out);
        out.length(at + 2, at);
        out.pad(at);
    };
    let last = if version == Version::V15 { 5 } else { 6 };
    property(out, feature::INSTRUCTIONS, &|w| {
        (1..=last).for_each(|i| {
            w.u16(i).u16(4);
        })
    });
    property(out, feature::NEXT_TABLES, &|w| {
        (id + 1..TABLES).for_each(|t| {
            w.u8(t);
        })
    });
    let actions: &[u16] = &[0, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25];
    for kind in [feature::WRITE_ACTIONS, feature::APPLY_ACTIONS] {
        property(out, kind, &|w| {
            actions.iter().for_each(|a| {
                w.u16(*a).u16(4);
            })
        });
    }
    property(out, feature::MATCH, &|w| {
        for field in matchable() {
            oxm::put_header(w, version, field, field.maskable());
        }
    });
    property(out, feature::WILDCARDS, &|w| matchable().for_each(|f| oxm::put_field(w, version, f)));
    for kind in [feature::WRITE_SETFIELD, feature::APPLY_SETFIELD] {
        property(out, kind, &|w| {
            matchable().filter(|f| f.writable()).for_each(|f| oxm::put_field(w, version, f));
        });
    }
    out.length(from, from);
}
