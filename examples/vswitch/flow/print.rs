//! Actions and flows as `ovs-ofctl` prints them.

use std::fmt::Write;
use std::net::IpAddr;

use super::action::{
    Action, Bundle, Controller, Ct, Flow, FlowFlags, From, Hash, Learn, Multipath, Nat, Reason, SAME_TABLE,
    Sample, Side, To, Zone, port,
};
use super::fields::Subfield;
use super::names::wire_name;
use super::values::{Names, hex, ipv4_text, mac_text, port_text, value_text};

/// A part of a field: `NXM_NX_REG0[0..15]`.
pub fn subfield_text(sub: Subfield) -> String {
    let name = wire_name(sub.field);
    match sub {
        _ if sub.is_whole() => format!("{name}[]"),
        Subfield { start, len: 1, .. } => format!("{name}[{start}]"),
        Subfield { start, len, .. } => format!("{name}[{start}..{}]", start + len - 1),
    }
}

/// A list of actions; `drop`, if there are none.
pub fn actions_text(actions: &[Action], names: &dyn Names) -> String {
    if actions.is_empty() {
        return "drop".into();
    }
    actions.iter().map(|a| action_text(a, names)).collect::<Vec<_>>().join(",")
}

/// One action.
pub fn action_text(action: &Action, names: &dyn Names) -> String {
    let port = |p: u32| port_text(p, names);
    let sub = subfield_text;
    match action {
        Action::Output { port: port::CONTROLLER, max_len } => format!("CONTROLLER:{max_len}"),
        Action::Output { port: p, .. } if *p < port::MAX => format!("output:{}", port(*p)),
        Action::Output { port: p, .. } => port(*p),
        Action::OutputReg { src, .. } => format!("output:{}", sub(*src)),
        Action::OutputTrunc { port: p, max_len } => format!("output(port={},max_len={max_len})", port(*p)),
        Action::Controller(c) => controller(c),
        Action::Enqueue { port: p, queue } => format!("enqueue:{}:{queue}", port(*p)),
        Action::Group(id) => format!("group:{id}"),
        Action::SetQueue(id) => format!("set_queue:{id}"),
        Action::PopQueue => "pop_queue".into(),
        Action::SetVlanVid { vid, push } => {
            format!("{}:{vid}", if *push { "mod_vlan_vid" } else { "set_vlan_vid" })
        }
        Action::SetVlanPcp { pcp, push } => {
            format!("{}:{pcp}", if *push { "mod_vlan_pcp" } else { "set_vlan_pcp" })
        }
        Action::PopVlan { pop } => if *pop { "pop_vlan" } else { "strip_vlan" }.into(),
        Action::PushVlan(kind) => format!("push_vlan:{kind:#x}"),
        Action::SetEthSrc(mac) => format!("mod_dl_src:{}", mac_text(*mac)),
        Action::SetEthDst(mac) => format!("mod_dl_dst:{}", mac_text(*mac)),
        Action::SetIpv4Src(ip) => format!("mod_nw_src:{}", ipv4_text(*ip, u32::MAX)),
        Action::SetIpv4Dst(ip) => format!("mod_nw_dst:{}", ipv4_text(*ip, u32::MAX)),
        Action::SetDscp(tos) => format!("mod_nw_tos:{tos}"),
        Action::SetEcn(ecn) => format!("mod_nw_ecn:{ecn}"),
        Action::SetTtl(ttl) => format!("mod_nw_ttl:{ttl}"),
        Action::SetTpSrc(p) => format!("mod_tp_src:{p}"),
        Action::SetTpDst(p) => format!("mod_tp_dst:{p}"),
        Action::SetField { field, value, mask } => {
            format!("set_field:{}->{}", value_text(*field, *value, *mask, names), field.name())
        }
        Action::Load { value, dst } => format!("load:{}->{}", hex(*value), sub(*dst)),
        Action::Move { src, dst } => format!("move:{}->{}", sub(*src), sub(*dst)),
        Action::StackPush(s) => format!("push:{}", sub(*s)),
        Action::StackPop(s) => format!("pop:{}", sub(*s)),
        Action::DecTtl(ids) if ids.is_empty() => "dec_ttl".into(),
        Action::DecTtl(ids) => {
            format!("dec_ttl({})", ids.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
        }
        Action::SetMplsLabel(label) => format!("set_mpls_label({label})"),
        Action::SetMplsTc(tc) => format!("set_mpls_tc({tc})"),
        Action::SetMplsTtl(ttl) => format!("set_mpls_ttl({ttl})"),
        Action::DecMplsTtl => "dec_mpls_ttl".into(),
        Action::PushMpls(kind) => format!("push_mpls:0x{kind:04x}"),
        Action::PopMpls(kind) => format!("pop_mpls:0x{kind:04x}"),
        Action::SetTunnel { id, wide } => {
            format!(
                "set_tunnel{}:{}",
                if *wide || *id > u32::MAX.into() { "64" } else { "" },
                hex((*id).into())
            )
        }
        Action::Resubmit { port: p, table, ct } => resubmit(*p, *table, *ct, names),
        Action::Learn(l) => learn(l, names),
        Action::Conjunction { id, clause, clauses } => format!("conjunction({id},{}/{clauses})", clause + 1),
        Action::Multipath(m) => multipath(m),
        Action::Bundle(b) => bundle(b, names),
        Action::FinTimeout { idle, hard } => {
            let part = |name: &str, n: u16| (n != 0).then(|| format!("{name}={n}"));
            let parts: Vec<_> =
                [part("idle_timeout", *idle), part("hard_timeout", *hard)].into_iter().flatten().collect();
            format!("fin_timeout({})", parts.join(","))
        }
        Action::Note(bytes) => format!("note:{}", dotted(bytes)),
        Action::Exit => "exit".into(),
        Action::Clone(inner) => format!("clone({})", actions_text(inner, names)),
        Action::Sample(s) => sample(s, names),
        Action::Ct(ct) => connection(ct, names),
        Action::CtClear => "ct_clear".into(),
        Action::Nat(n) => nat(n),
        Action::CheckPktLarger { len, dst } => format!("check_pkt_larger({len})->{}", sub(*dst)),
        Action::Meter(id) => format!("meter:{id}"),
        Action::ClearActions => "clear_actions".into(),
        Action::WriteActions(inner) => format!("write_actions({})", actions_text(inner, names)),
        Action::WriteMetadata { value, mask } if *mask == u64::MAX => {
            format!("write_metadata:{}", hex((*value).into()))
        }
        Action::WriteMetadata { value, mask } => {
            format!("write_metadata:{}/{}", hex((*value).into()), hex((*mask).into()))
        }
        Action::GotoTable(table) => format!("goto_table:{table}"),
    }
}

fn dotted(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(".")
}

/// Why a packet is sent to a controller, in words.
pub fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::NoMatch => "no_match",
        Reason::Action => "action",
        Reason::InvalidTtl => "invalid_ttl",
        Reason::ActionSet => "action_set",
        Reason::Group => "group",
        Reason::PacketOut => "packet_out",
    }
}

fn controller(c: &Controller) -> String {
    if *c == Controller::plain(c.max_len) {
        return format!("CONTROLLER:{}", c.max_len);
    }
    let mut parts = Vec::new();
    if c.reason != Reason::Action {
        parts.push(format!("reason={}", reason_text(c.reason)));
    }
    if c.max_len != u16::MAX {
        parts.push(format!("max_len={}", c.max_len));
    }
    if c.id != 0 {
        parts.push(format!("id={}", c.id));
    }
    if !c.userdata.is_empty() {
        parts.push(format!("userdata={}", dotted(&c.userdata)));
    }
    if c.pause {
        parts.push("pause".into());
    }
    if let Some(meter) = c.meter {
        parts.push(format!("meter_id={meter}"));
    }
    format!("controller({})", parts.join(","))
}

fn resubmit(p: u32, table: u8, ct: bool, names: &dyn Names) -> String {
    if p != port::IN_PORT && table == SAME_TABLE {
        return format!("resubmit:{}", port_text(p, names));
    }
    let p = if p == port::IN_PORT { String::new() } else { port_text(p, names) };
    let table = if table == SAME_TABLE { String::new() } else { table.to_string() };
    format!("resubmit({p},{table}{})", if ct { ",ct" } else { "" })
}

fn learn(l: &Learn, names: &dyn Names) -> String {
    let mut out = format!("learn(table={}", l.table);
    let mut add = |text: String| out.push_str(&format!(",{text}"));
    for (name, value) in [
        ("idle_timeout", l.idle_timeout),
        ("hard_timeout", l.hard_timeout),
        ("fin_idle_timeout", l.fin_idle_timeout),
        ("fin_hard_timeout", l.fin_hard_timeout),
    ] {
        if value != 0 {
            add(format!("{name}={value}"));
        }
    }
    if l.priority != super::action::DEFAULT_PRIORITY {
        add(format!("priority={}", l.priority));
    }
    if l.send_flow_rem {
        add("send_flow_rem".into());
    }
    if l.delete_learned {
        add("delete_learned".into());
    }
    if l.cookie != 0 {
        add(format!("cookie={:#x}", l.cookie));
    }
    if l.limit != 0 {
        add(format!("limit={}", l.limit));
    }
    if let Some(result) = l.result {
        add(format!("result_dst={}", subfield_text(result)));
    }
    for spec in &l.specs {
        add(match (&spec.from, &spec.to) {
            (From::Value(v), To::Match(dst)) if dst.is_whole() => {
                format!("{}={}", dst.field.name(), value_text(dst.field, *v, dst.field.all_ones(), names))
            }
            (From::Value(v), To::Match(dst)) => format!("{}={v:#x}", subfield_text(*dst)),
            (From::Field(src), To::Match(dst)) if (src.field, src.start) == (dst.field, dst.start) => {
                subfield_text(*dst)
            }
            (From::Field(src), To::Match(dst)) => format!("{}={}", subfield_text(*dst), subfield_text(*src)),
            (From::Value(v), To::Load(dst)) => format!("load:{v:#x}->{}", subfield_text(*dst)),
            (From::Field(src), To::Load(dst)) => {
                format!("load:{}->{}", subfield_text(*src), subfield_text(*dst))
            }
            (From::Field(src), To::Output) => format!("output:{}", subfield_text(*src)),
            (From::Value(v), To::Output) => format!("output:{v:#x}"),
        });
    }
    out + ")"
}

fn hash_name(hash: Hash) -> &'static str {
    Hash::NAMES.iter().find(|(_, h)| *h == hash).map_or("", |(name, _)| name)
}

fn multipath(m: &Multipath) -> String {
    let algorithm = ["modulo_n", "hash_threshold", "hrw", "iter_hash"][usize::from(m.algorithm.min(3))];
    format!(
        "multipath({},{},{algorithm},{},{},{})",
        hash_name(m.fields),
        m.basis,
        u32::from(m.max_link) + 1,
        m.arg,
        subfield_text(m.dst)
    )
}

fn bundle(b: &Bundle, names: &dyn Names) -> String {
    let algorithm = if b.active_backup { "active_backup" } else { "hrw" };
    let slaves: Vec<_> = b.slaves.iter().map(|p| port_text(*p, names)).collect();
    let head = format!("{},{},{algorithm},ofport", hash_name(b.fields), b.basis);
    match b.dst {
        None => format!("bundle({head},members:{})", slaves.join(",")),
        Some(dst) => format!("bundle_load({head},{},members:{})", subfield_text(dst), slaves.join(",")),
    }
}

fn sample(s: &Sample, names: &dyn Names) -> String {
    let port =
        s.sampling_port.map_or_else(String::new, |p| format!(",sampling_port={}", port_text(p, names)));
    format!(
        "sample(probability={},collector_set_id={},obs_domain_id={},obs_point_id={}{port})",
        s.probability, s.collector_set_id, s.obs_domain_id, s.obs_point_id
    )
}

fn connection(ct: &Ct, names: &dyn Names) -> String {
    let mut parts = Vec::new();
    if ct.commit {
        parts.push("commit".into());
    }
    if ct.force {
        parts.push("force".into());
    }
    if let Some(table) = ct.table {
        parts.push(format!("table={table}"));
    }
    match ct.zone {
        Zone::Number(0) => {}
        Zone::Number(n) => parts.push(format!("zone={n}")),
        Zone::Field(sub) => parts.push(format!("zone={}", subfield_text(sub))),
    }
    let mut actions = ct.actions.as_slice();
    if let Some((Action::Nat(n), rest)) = actions.split_first() {
        parts.push(nat(n));
        actions = rest;
    }
    if !actions.is_empty() {
        parts.push(format!("exec({})", actions_text(actions, names)));
    }
    match ct.alg {
        0 => {}
        21 => parts.push("alg=ftp".into()),
        69 => parts.push("alg=tftp".into()),
        other => parts.push(format!("alg={other}")),
    }
    format!("ct({})", parts.join(","))
}

fn nat(n: &Nat) -> String {
    let Some(side) = n.side else { return "nat".into() };
    let mut out = format!("nat({}", if side == Side::Src { "src" } else { "dst" });
    let bracket = |a: IpAddr| match (a, n.ports) {
        (IpAddr::V6(_), Some(_)) => format!("[{a}]"),
        _ => a.to_string(),
    };
    if let Some((first, last)) = n.addrs {
        let _ = write!(out, "={}", bracket(first));
        if last != first {
            let _ = write!(out, "-{}", bracket(last));
        }
    }
    if let Some((first, last)) = n.ports {
        let _ = write!(out, ":{first}");
        if last != first {
            let _ = write!(out, "-{last}");
        }
    }
    for (set, word) in [(n.persistent, "persistent"), (n.hash, "hash"), (n.random, "random")] {
        if set {
            let _ = write!(out, ",{word}");
        }
    }
    out + ")"
}

/// Flags of a flow, each followed by a space.
fn flags(flags: FlowFlags) -> String {
    let all = [
        (flags.send_flow_rem, "send_flow_rem "),
        (flags.check_overlap, "check_overlap "),
        (flags.reset_counts, "reset_counts "),
        (flags.no_packet_counts, "no_packet_counts "),
        (flags.no_byte_counts, "no_byte_counts "),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect()
}

impl Flow {
    /// As `ovs-ofctl dump-flows --no-stats` prints it.
    pub fn text(&self, names: &dyn Names) -> String {
        let mut out = String::new();
        if self.cookie != 0 {
            let _ = write!(out, "cookie={:#x}, ", self.cookie);
        }
        out + &self.tail(names)
    }

    /// The part after cookie and counters.
    pub fn tail(&self, names: &dyn Names) -> String {
        let mut out = String::new();
        if self.table != 0 {
            let _ = write!(out, "table={}, ", self.table);
        }
        for (name, value) in [("idle_timeout", self.idle_timeout), ("hard_timeout", self.hard_timeout)] {
            if value != 0 {
                let _ = write!(out, "{name}={value}, ");
            }
        }
        out.push_str(&flags(self.flags));
        if self.importance != 0 {
            let _ = write!(out, "importance={}, ", self.importance);
        }
        let matching = self.matching.text(self.priority, names);
        if !matching.is_empty() {
            let _ = write!(out, "{matching} ");
        }
        out + "actions=" + &actions_text(&self.actions, names)
    }
}
