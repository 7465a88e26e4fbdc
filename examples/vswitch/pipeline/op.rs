//! What is done to packets of a megaflow: the outcome of a translation.

use std::sync::Arc;

use super::meter::Bucket;
use crate::vswitch::flow::action::{Controller, Nat};
use crate::vswitch::flow::fields::Field;
use crate::vswitch::flow::key::VLAN_PRESENT;
use crate::vswitch::flow::values::{Numbers, hex, ipv4_text, ipv6_text, mac_text};
use crate::vswitch::flow::{Key, Mask};

/// One step. Ports are those of the datapath.
#[derive(Clone, Debug)]
pub enum Op {
    /// To a port.
    Output(u32),
    /// Only so many bytes go to the next output.
    Trunc(u32),
    /// Sets the bits of the mask.
    Set(Box<(Key, Mask)>),
    /// Puts a tag of this type and content on.
    PushVlan(u16, u16),
    /// Takes the outer tag off.
    PopVlan,
    /// Puts a label on.
    PushMpls(u16, u32),
    /// Takes one off; what is behind it is of this type.
    PopMpls(u16),
    /// To controllers: which table, cookie and metadata the packet had comes along.
    Controller(Box<ToController>),
    /// Looks the connection up, perhaps keeps it.
    Ct(Box<CtOp>),
    /// Forgets the connection.
    CtClear,
    /// Once more from the look-up, under this number.
    Recirc(u32),
    /// Drops what is over the rate.
    Meter(u32, Arc<Bucket>),
    /// On a copy.
    Clone(Vec<Op>),
}

/// A packet's way to a controller.
#[derive(Clone, Debug, PartialEq)]
pub struct ToController {
    /// Which bridge.
    pub bridge: usize,
    /// As the action says.
    pub how: Controller,
    /// The table.
    pub table: u8,
    /// The rule's cookie.
    pub cookie: u64,
    /// Fields of the pipeline then, and the input port as the bridge numbers it.
    pub flow: Key,
}

/// What is done about a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct CtOp {
    /// Zone.
    pub zone: u16,
    /// Keep it.
    pub commit: bool,
    /// Take it up anew if it goes the other way.
    pub force: bool,
    /// Bits of the mark: value, mask.
    pub mark: (u32, u32),
    /// Bits of the label: value, mask.
    pub label: (u128, u128),
    /// Change addresses.
    pub nat: Option<Nat>,
    /// Helper, by port.
    pub alg: u16,
}

impl PartialEq for Op {
    fn eq(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Output(a), Op::Output(b)) => a == b,
            (Op::Trunc(a), Op::Trunc(b)) | (Op::Recirc(a), Op::Recirc(b)) => a == b,
            (Op::Set(a), Op::Set(b)) => a == b,
            (Op::PushVlan(a, b), Op::PushVlan(c, d)) => (a, b) == (c, d),
            (Op::PopVlan, Op::PopVlan) | (Op::CtClear, Op::CtClear) => true,
            (Op::PushMpls(a, b), Op::PushMpls(c, d)) => (a, b) == (c, d),
            (Op::PopMpls(a), Op::PopMpls(b)) => a == b,
            (Op::Controller(a), Op::Controller(b)) => a == b,
            (Op::Ct(a), Op::Ct(b)) => a == b,
            (Op::Meter(a, x), Op::Meter(b, y)) => a == b && Arc::ptr_eq(x, y),
            (Op::Clone(a), Op::Clone(b)) => a == b,
            _ => false,
        }
    }
}

/// The steps as `dpctl/dump-flows` and `ofproto/trace` print them.
pub fn ops_text(ops: &[Op]) -> String {
    if ops.is_empty() {
        return "drop".into();
    }
    ops.iter().map(op_text).collect::<Vec<_>>().join(",")
}

fn op_text(op: &Op) -> String {
    match op {
        Op::Output(port) => port.to_string(),
        Op::Trunc(len) => format!("trunc({len})"),
        Op::Set(set) => set_text(&set.0, &set.1),
        Op::PushVlan(kind, tci) => {
            let tpid = if *kind == 0x8100 { String::new() } else { format!("tpid=0x{kind:04x},") };
            format!("push_vlan({tpid}vid={},pcp={})", tci & 0xfff, tci >> 13)
        }
        Op::PopVlan => "pop_vlan".into(),
        Op::PushMpls(kind, lse) => format!(
            "push_mpls(label={},tc={},ttl={},bos={},eth_type=0x{kind:x})",
            lse >> 12,
            lse >> 9 & 7,
            lse & 0xff,
            lse >> 8 & 1
        ),
        Op::PopMpls(kind) => format!("pop_mpls(eth_type=0x{kind:x})"),
        Op::Controller(to) => {
            format!("userspace(pid=0,controller(reason={},max_len={}))", to.how.reason as u8, to.how.max_len)
        }
        Op::Ct(ct) => ct_text(ct),
        Op::CtClear => "ct_clear".into(),
        Op::Recirc(id) => format!("recirc({id:#x})"),
        Op::Meter(id, _) => format!("meter({id})"),
        Op::Clone(ops) => format!("clone({})", ops_text(ops)),
    }
}

/// How a value of a part is written.
type Shape = fn(u128) -> String;

fn set_text(key: &Key, mask: &Mask) -> String {
    let mac: Shape = |v| mac_text(crate::vswitch::flow::key::mac_bytes(v));
    let ip: Shape = |v| ipv4_text(v as u32, u32::MAX);
    let ip6: Shape = |v| ipv6_text(v, u128::MAX);
    let dec: Shape = |v| v.to_string();
    let part = |name: &str, fields: &[(&str, Field, Shape)]| {
        let set = fields.iter().filter(|(_, f, _)| mask.lie(*f) != 0);
        let inner: Vec<String> = set.map(|(n, f, text)| format!("{n}={}", text(key.lie(*f)))).collect();
        (!inner.is_empty()).then(|| format!("set({name}({}))", inner.join(",")))
    };
    let v6 = mask.lie(Field::Ipv6Src) != 0 || mask.lie(Field::Ipv6Dst) != 0;
    let (name, src, dst, addr) = match v6 {
        true => ("ipv6", Field::Ipv6Src, Field::Ipv6Dst, ip6),
        false => ("ipv4", Field::NwSrc, Field::NwDst, ip),
    };
    let tci = key.vlan_tci() & !VLAN_PRESENT;
    let vlan = format!("set(vlan(vid={},pcp={}))", tci & 0xfff, tci >> 13);
    let parts = [
        part("eth", &[("src", Field::EthSrc, mac), ("dst", Field::EthDst, mac)]),
        (mask.vlan_tci() != 0).then_some(vlan),
        part(
            name,
            &[("src", src, addr), ("dst", dst, addr), ("tos", Field::NwTos, hex), ("ttl", Field::NwTtl, dec)],
        ),
        part("tcp", &[("src", Field::TcpSrc, dec), ("dst", Field::TcpDst, dec)]),
        part("mpls", &[("lse", Field::MplsLse, dec)]),
        part("arp", &[("sha", Field::ArpSha, mac), ("tha", Field::ArpTha, mac)]),
        part("skb_mark", &[("mark", Field::PktMark, hex)]),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(",")
}

fn ct_text(ct: &CtOp) -> String {
    let mut parts: Vec<String> = Vec::new();
    if ct.commit {
        parts.push(if ct.force { "force_commit" } else { "commit" }.into());
    }
    if ct.zone != 0 {
        parts.push(format!("zone={}", ct.zone));
    }
    if ct.mark.1 != 0 {
        parts.push(format!("mark={:#x}/{:#x}", ct.mark.0, ct.mark.1));
    }
    if ct.label.1 != 0 {
        parts.push(format!("label={:#x}/{:#x}", ct.label.0, ct.label.1));
    }
    if let Some(nat) = &ct.nat {
        let action = crate::vswitch::flow::Action::Nat(Box::new(nat.clone()));
        parts.push(crate::vswitch::flow::print::action_text(&action, &Numbers));
    }
    if parts.is_empty() { "ct".into() } else { format!("ct({})", parts.join(",")) }
}
