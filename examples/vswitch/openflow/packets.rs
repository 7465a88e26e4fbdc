//! Packets to and from controllers: `OFPT_PACKET_IN` and Nicira's two forms of it, `OFPT_PACKET_OUT`.

use super::actions::actions;
use super::error::OfError;
use super::flow_mod::NO_BUFFER;
use super::flow_stats::put_nx_match;
use super::ofproto::{PacketIn, PacketOut};
use super::oxm;
use super::session::NICIRA;
use super::version::{Version, message};
use super::wire::{Reader, Writer};
use crate::vswitch::flow::action::{Reason, port, port_from_16, port_to_16};
use crate::vswitch::flow::fields::Field;
use crate::vswitch::flow::matching::Match;

const EXPERIMENTER: u8 = 4;
const PACKET_IN: u8 = 10;
const NXT_PACKET_IN: u32 = 17;
const NXT_PACKET_IN2: u32 = 30;

/// How a controller wants packets (`NXPIF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// As its version of OpenFlow has it.
    Standard = 0,
    /// `NXT_PACKET_IN`.
    Nicira = 1,
    /// `NXT_PACKET_IN2`.
    Nicira2 = 2,
}

/// `NXPINT_*`.
mod property {
    pub(super) const PACKET: u16 = 0;
    pub(super) const FULL_LEN: u16 = 1;
    pub(super) const TABLE_ID: u16 = 3;
    pub(super) const COOKIE: u16 = 4;
    pub(super) const REASON: u16 = 5;
    pub(super) const METADATA: u16 = 6;
    pub(super) const USERDATA: u16 = 7;
}

/// Reads a packet out. Its source must be a port, or one of those that mean something.
pub(crate) fn decode_out(body: &[u8], version: Version) -> Result<PacketOut, OfError> {
    let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
    let buffer = from.u32()?;
    let mut metadata = Match::default();
    let length = match version {
        Version::V10 => {
            metadata.set(Field::InPortOxm, port_from_16(from.u16()?).into());
            usize::from(from.u16()?)
        }
        Version::V13 | Version::V14 => {
            metadata.set(Field::InPortOxm, from.u32()?.into());
            let length = usize::from(from.u16()?);
            from.skip(6)?;
            length
        }
        Version::V15 => {
            let length = usize::from(from.u16()?);
            from.skip(2)?;
            metadata = oxm::decode_ofp(&mut from)?;
            length
        }
    };
    let in_port = metadata.get(Field::InPortOxm).0 as u32;
    let known =
        in_port < port::FIRST_RESERVED || matches!(in_port, port::LOCAL | port::ANY | port::CONTROLLER);
    if !known || metadata.get(Field::InPortOxm).1 == 0 {
        return Err(OfError::BRC_BAD_PORT);
    }
    let list = actions(from.bytes(length)?, version)?;
    if buffer != NO_BUFFER {
        return Err(OfError::BRC_BUFFER_UNKNOWN);
    }
    Ok(PacketOut { metadata, actions: list, frame: from.rest().to_vec() })
}

/// A packet in, with at most `max_len` bytes of the frame.
pub(crate) fn encode_in(version: Version, format: Format, packet: &PacketIn, max_len: u16) -> Vec<u8> {
    let wanted = if max_len == u16::MAX { usize::MAX } else { max_len.into() };
    // What surrounds the frame must fit in the message with it.
    let frame =
        &packet.frame[..packet.frame.len().min(wanted).min(0xff00 - packet.userdata.len().min(0x8000))];
    let table = packet.table;
    let total = u16::try_from(packet.total).unwrap_or(u16::MAX);
    match format {
        Format::Nicira2 => nicira(version, NXT_PACKET_IN2, |w| put_in2(w, version, packet, frame)),
        Format::Nicira => nicira(version, NXT_PACKET_IN, |w| {
            w.u32(NO_BUFFER).u16(total).u8(packet.reason as u8).u8(table).u64(packet.cookie);
            let length_at = w.at();
            w.u16(0).zeros(6);
            put_nx_match(w, length_at, |w| oxm::encode(w, Version::V10, &packet.metadata));
            w.zeros(2).put(frame);
        }),
        Format::Standard if version == Version::V10 => message(version, PACKET_IN, 0, |w| {
            let in_port = port_to_16(packet.metadata.get(Field::InPortOxm).0 as u32);
            w.u32(NO_BUFFER).u16(total).u16(in_port).u8(reason(version, packet.reason)).zeros(1).put(frame);
        }),
        Format::Standard => message(version, PACKET_IN, 0, |w| {
            w.u32(NO_BUFFER).u16(total).u8(reason(version, packet.reason)).u8(table).u64(packet.cookie);
            oxm::encode_ofp(w, version, &packet.metadata);
            w.zeros(2).put(frame);
        }),
    }
}

/// Reasons that OpenFlow 1.4 brought are "an action" before.
fn reason(version: Version, reason: Reason) -> u8 {
    match reason {
        Reason::ActionSet | Reason::Group | Reason::PacketOut if version < Version::V14 => {
            Reason::Action as u8
        }
        other => other as u8,
    }
}

fn nicira(version: Version, subtype: u32, body: impl FnOnce(&mut Writer)) -> Vec<u8> {
    message(version, EXPERIMENTER, 0, |w| {
        w.u32(NICIRA).u32(subtype);
        body(w);
    })
}

fn put_in2(out: &mut Writer, version: Version, packet: &PacketIn, frame: &[u8]) {
    let property = |out: &mut Writer, kind: u16, body: &dyn Fn(&mut Writer)| {
        let from = out.at();
        out.u16(kind).u16(0);
        body(out);
        out.length(from + 2, from);
        out.pad(from);
    };
    property(out, property::PACKET, &|w| {
        w.put(frame);
    });
    if frame.len() != packet.total {
        property(out, property::FULL_LEN, &|w| {
            w.u32(packet.total as u32);
        });
    }
    property(out, property::TABLE_ID, &|w| {
        w.u8(packet.table);
    });
    if packet.cookie != u64::MAX {
        property(out, property::COOKIE, &|w| {
            w.zeros(4).u64(packet.cookie);
        });
    }
    property(out, property::REASON, &|w| {
        w.u8(packet.reason as u8);
    });
    property(out, property::METADATA, &|w| oxm::encode(w, version, &packet.metadata));
    if !packet.userdata.is_empty() {
        property(out, property::USERDATA, &|w| {
            w.put(&packet.userdata);
        });
    }
}
