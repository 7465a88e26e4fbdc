//! Nicira's actions, written.

use std::net::IpAddr;

use super::encode::{Context, put_actions};
use super::{EXPERIMENTER, NICIRA, nx};
use crate::vswitch::flow::action::{
    Action, Bundle, Controller, Ct, From, Learn, Nat, Reason, SAME_TABLE, Sample, Side, Spec, To,
    WHOLE_PACKET, Zone, port, port_to_16,
};
use crate::vswitch::flow::fields::{Field, Subfield};
use crate::vswitch::openflow::oxm;
use crate::vswitch::openflow::version::Version;
use crate::vswitch::openflow::wire::Writer;

/// One of Nicira's actions, at least 16 bytes long.
pub(super) fn nicira(out: &mut Writer, kind: u16, body: impl FnOnce(&mut Writer)) {
    let from = out.at();
    out.u16(EXPERIMENTER).u16(0).u32(NICIRA).u16(kind);
    body(out);
    let short = 16_usize.saturating_sub(out.at() - from);
    out.zeros(short);
    out.pad(from);
    out.length(from + 2, from);
}

/// `ofs_nbits`.
pub(super) fn place(out: &mut Writer, sub: Subfield) {
    out.u16((sub.start << 6 | (sub.len - 1)) as u16);
}

/// A field as Nicira's actions name it.
fn header(out: &mut Writer, field: Field) {
    oxm::put_field(out, Version::V10, field);
}

/// Writes an action that is Nicira's in every version.
pub(super) fn put(out: &mut Writer, context: Context, action: &Action) {
    match action {
        Action::OutputReg { src, max_len } => nicira(out, nx::OUTPUT_REG, |w| {
            place(w, *src);
            header(w, src.field);
            w.u16(*max_len).zeros(6);
        }),
        Action::OutputTrunc { port, max_len } => {
            nicira(out, nx::OUTPUT_TRUNC, |w| {
                w.u16(port_to_16(*port)).u32(*max_len);
            });
        }
        Action::Controller(c) => controller(out, c),
        Action::PopQueue => nicira(out, nx::POP_QUEUE, |_| {}),
        Action::Move { src, dst } => nicira(out, nx::REG_MOVE, |w| {
            w.u16(dst.len as u16).u16(src.start as u16).u16(dst.start as u16);
            header(w, src.field);
            header(w, dst.field);
        }),
        Action::StackPush(sub) => stack(out, nx::STACK_PUSH, *sub),
        Action::StackPop(sub) => stack(out, nx::STACK_POP, *sub),
        Action::DecTtl(ids) => nicira(out, nx::DEC_TTL_CNT_IDS, |w| {
            w.u16(ids.len() as u16).zeros(4);
            for id in ids {
                w.u16(*id);
            }
        }),
        Action::SetTunnel { id, wide } => match u32::try_from(*id) {
            Ok(id) if !wide => nicira(out, nx::SET_TUNNEL, |w| {
                w.zeros(2).u32(id);
            }),
            _ => nicira(out, nx::SET_TUNNEL64, |w| {
                w.zeros(6).u64(*id);
            }),
        },
        Action::Resubmit { port, table, ct } => resubmit(out, *port, *table, *ct),
        Action::GotoTable(table) => resubmit(out, port::IN_PORT, *table, false),
        Action::WriteMetadata { value, mask } => {
            nicira(out, nx::WRITE_METADATA, |w| {
                w.zeros(6).u64(*value).u64(*mask);
            });
        }
        Action::Learn(l) => learn(out, l),
        Action::Conjunction { id, clause, clauses } => {
            nicira(out, nx::CONJUNCTION, |w| {
                w.u8(*clause).u8(*clauses).u32(*id);
            });
        }
        Action::Multipath(m) => nicira(out, nx::MULTIPATH, |w| {
            w.u16(m.fields as u16).u16(m.basis).zeros(2).u16(m.algorithm).u16(m.max_link).u32(m.arg).zeros(2);
            place(w, m.dst);
            header(w, m.dst.field);
        }),
        Action::Bundle(b) => bundle(out, b),
        Action::FinTimeout { idle, hard } => nicira(out, nx::FIN_TIMEOUT, |w| {
            w.u16(*idle).u16(*hard);
        }),
        Action::Note(data) => nicira(out, nx::NOTE, |w| {
            w.put(data);
        }),
        Action::Exit => nicira(out, nx::EXIT, |_| {}),
        Action::Clone(list) => nicira(out, nx::CLONE, |w| {
            w.zeros(6);
            put_actions(w, context, list);
        }),
        Action::Sample(s) => sample(out, s),
        Action::Ct(c) => ct(out, context, c),
        Action::CtClear => nicira(out, nx::CT_CLEAR, |_| {}),
        Action::Nat(n) => nat(out, n),
        Action::CheckPktLarger { len, dst } => nicira(out, nx::CHECK_PKT_LARGER, |w| {
            w.u16(*len).u16(dst.start as u16);
            header(w, dst.field);
            w.zeros(6);
        }),
        // The others are standard.
        _ => {}
    }
}

fn resubmit(out: &mut Writer, port: u32, table: u8, ct: bool) {
    let port = port_to_16(port);
    if table == SAME_TABLE && !ct {
        nicira(out, nx::RESUBMIT, |w| {
            w.u16(port);
        });
    } else {
        let kind = if ct { nx::RESUBMIT_TABLE_CT } else { nx::RESUBMIT_TABLE };
        nicira(out, kind, |w| {
            w.u16(port).u8(table);
        });
    }
}

fn stack(out: &mut Writer, kind: u16, sub: Subfield) {
    nicira(out, kind, |w| {
        w.u16(sub.start as u16);
        header(w, sub.field);
        w.u16(sub.len as u16).zeros(6);
    });
}

/// One property, padded.
fn property(out: &mut Writer, kind: u16, content: &[u8]) {
    let from = out.at();
    out.u16(kind).u16(4 + content.len() as u16).put(content).pad(from);
}

fn controller(out: &mut Writer, c: &Controller) {
    if c.userdata.is_empty() && !c.pause && c.meter.is_none() {
        nicira(out, nx::CONTROLLER, |w| {
            w.u16(c.max_len).u16(c.id).u8(c.reason as u8);
        });
        return;
    }
    nicira(out, nx::CONTROLLER2, |w| {
        w.zeros(6);
        if c.max_len != WHOLE_PACKET {
            property(w, 0, &c.max_len.to_be_bytes());
        }
        if c.id != 0 {
            property(w, 1, &c.id.to_be_bytes());
        }
        if c.reason != Reason::Action {
            property(w, 2, &[c.reason as u8]);
        }
        if !c.userdata.is_empty() {
            property(w, 3, &c.userdata);
        }
        if c.pause {
            property(w, 4, &[]);
        }
        if let Some(meter) = c.meter {
            property(w, 5, &meter.to_be_bytes());
        }
    });
}

fn bundle(out: &mut Writer, b: &Bundle) {
    nicira(out, if b.dst.is_some() { nx::BUNDLE_LOAD } else { nx::BUNDLE }, |w| {
        w.u16(u16::from(!b.active_backup)).u16(b.fields as u16).u16(b.basis);
        header(w, Field::InPort);
        w.u16(b.slaves.len() as u16);
        match b.dst {
            Some(dst) => {
                place(w, dst);
                header(w, dst.field);
            }
            None => {
                w.zeros(6);
            }
        }
        w.zeros(4);
        for slave in &b.slaves {
            w.u16(port_to_16(*slave));
        }
    });
}

fn sample(out: &mut Writer, s: &Sample) {
    nicira(out, if s.sampling_port.is_some() { nx::SAMPLE2 } else { nx::SAMPLE }, |w| {
        w.u16(s.probability).u32(s.collector_set_id).u32(s.obs_domain_id).u32(s.obs_point_id);
        if let Some(port) = s.sampling_port {
            w.u16(port_to_16(port)).zeros(6);
        }
    });
}

fn ct(out: &mut Writer, context: Context, c: &Ct) {
    nicira(out, nx::CT, |w| {
        w.u16(u16::from(c.commit) | u16::from(c.force) << 1);
        match c.zone {
            Zone::Number(n) => {
                w.u32(0).u16(n);
            }
            Zone::Field(sub) => {
                header(w, sub.field);
                place(w, sub);
            }
        }
        w.u8(c.table.unwrap_or(SAME_TABLE)).zeros(3).u16(c.alg);
        put_actions(w, context, &c.actions);
    });
}

fn nat(out: &mut Writer, n: &Nat) {
    nicira(out, nx::NAT, |w| {
        let side = match n.side {
            Some(Side::Src) => 1,
            Some(Side::Dst) => 2,
            None => 0,
        };
        let flags = side | u16::from(n.persistent) << 2 | u16::from(n.hash) << 3 | u16::from(n.random) << 4;
        w.zeros(2).u16(flags);
        let at = w.at();
        w.u16(0);
        let mut present = 0;
        if let Some((first, last)) = n.addrs {
            let shift = if first.is_ipv4() { 0 } else { 2 };
            addr(w, first);
            present |= 1 << shift;
            if last != first {
                addr(w, last);
                present |= 2 << shift;
            }
        }
        if let Some((low, high)) = n.ports {
            w.u16(low);
            present |= 16;
            if high != low {
                w.u16(high);
                present |= 32;
            }
        }
        w.set_u16(at, present);
    });
}

fn addr(out: &mut Writer, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => out.put(&a.octets()),
        IpAddr::V6(a) => out.put(&a.octets()),
    };
}

fn learn(out: &mut Writer, l: &Learn) {
    let second = l.limit != 0 || l.result.is_some();
    nicira(out, if second { nx::LEARN2 } else { nx::LEARN }, |w| {
        w.u16(l.idle_timeout).u16(l.hard_timeout).u16(l.priority).u64(l.cookie);
        w.u16(
            u16::from(l.send_flow_rem)
                | u16::from(l.delete_learned) << 1
                | u16::from(l.result.is_some()) << 2,
        );
        w.u8(l.table).zeros(1).u16(l.fin_idle_timeout).u16(l.fin_hard_timeout);
        if second {
            w.u32(l.limit).u16(l.result.map_or(0, |r| r.start as u16)).zeros(2);
        }
        if let Some(result) = l.result {
            header(w, result.field);
        }
        for spec in &l.specs {
            put_spec(w, spec);
        }
    });
}

fn put_spec(out: &mut Writer, spec: &Spec) {
    let to = match spec.to {
        To::Match(_) => 0,
        To::Load(_) => 1,
        To::Output => 2,
    };
    let immediate = u16::from(matches!(spec.from, From::Value(_)));
    out.u16(immediate << 13 | to << 11 | spec.bits as u16);
    match spec.from {
        From::Field(sub) => {
            header(out, sub.field);
            out.u16(sub.start as u16);
        }
        From::Value(value) => {
            out.number(value, 2 * (spec.bits as usize).div_ceil(16));
        }
    }
    if let To::Match(sub) | To::Load(sub) = spec.to {
        header(out, sub.field);
        out.u16(sub.start as u16);
    }
}
