//! Actions and flows from the text that `ovs-ofctl` takes.

use super::action::{
    Action, Bundle, Controller, Ct, Flow, From, Hash, Learn, Multipath, Nat, Reason, SAME_TABLE, Side, Spec,
    To, WHOLE_PACKET, Zone, port,
};
use super::fields::{Field, Subfield};
use super::matching::Match;
use super::values::{Names, TextError, bad, parse_mac, parse_port, parse_u128, parse_value};

type Out<T> = Result<T, TextError>;

/// Cuts at commas and spaces outside parentheses and brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ',' | ' ' | '\t' | '\n' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|p| !p.is_empty());
    parts
}

fn number<T: TryFrom<u128>>(text: &str) -> Out<T> {
    let value = parse_u128(text.trim()).and_then(|n| T::try_from(n).ok());
    value.map_or_else(|| bad(format!("{text}: bad number, or too large")), Ok)
}

/// Reads a part of a field: `reg0[0..15]`, `NXM_NX_REG0[]`, `reg0`.
pub fn parse_subfield(text: &str) -> Out<Subfield> {
    let text = text.trim();
    let (name, range) = match text.split_once('[') {
        Some((name, rest)) => {
            (name, rest.strip_suffix(']').ok_or_else(|| TextError(format!("{text}: no ]")))?)
        }
        None => (text, ""),
    };
    let Some(field) = Field::named(name) else { return bad(format!("{name}: unknown field")) };
    if range.is_empty() {
        return Ok(Subfield::whole(field));
    }
    let (first, last) = range.split_once("..").unwrap_or((range, range));
    let (first, last): (u32, u32) = (number(first)?, number(last)?);
    if last < first || last >= field.info().bits {
        return bad(format!("{text}: no such bits in {} of them", field.info().bits));
    }
    Ok(Subfield { field, start: first, len: last - first + 1 })
}

/// Reads a list of actions.
///
/// # Errors
/// What is wrong with it.
pub fn parse_actions(text: &str, names: &dyn Names) -> Out<Vec<Action>> {
    let parts = split(text);
    if parts == ["drop"] {
        return Ok(Vec::new());
    }
    parts.into_iter().map(|part| parse_action(part, names)).collect()
}

/// Name and argument: `name:arg`, `name(arg)`, `name=arg` or `name`.
fn cut(part: &str) -> (&str, &str) {
    let at = part.find([':', '(', '=']).unwrap_or(part.len());
    let (name, rest) = part.split_at(at);
    let arg = match rest.as_bytes().first() {
        Some(b'(') if rest.ends_with(')') => &rest[1..rest.len() - 1],
        Some(_) => &rest[1..],
        None => "",
    };
    (name, arg)
}

fn arrow(text: &str) -> Out<(&str, &str)> {
    text.split_once("->").ok_or_else(|| TextError(format!("{text}: missing ->")))
}

fn mac(text: &str) -> Out<[u8; 6]> {
    parse_mac(text).map(super::key::mac_bytes).ok_or_else(|| TextError(format!("{text}: bad MAC address")))
}

fn parse_action(part: &str, names: &dyn Names) -> Out<Action> {
    let (name, arg) = cut(part);
    Ok(match name.to_ascii_lowercase().as_str() {
        "output" => output(part, arg, names)?,
        "controller" => controller(part, arg)?,
        "enqueue" => {
            let (p, q) = arg.split_once([':', ',']).unwrap_or((arg, "0"));
            Action::Enqueue { port: parse_port(p, names)?, queue: number(q)? }
        }
        "group" => Action::Group(number(arg)?),
        "set_queue" => Action::SetQueue(number(arg)?),
        "pop_queue" => Action::PopQueue,
        "mod_vlan_vid" | "set_vlan_vid" => {
            Action::SetVlanVid { vid: number(arg)?, push: name.starts_with("mod") }
        }
        "mod_vlan_pcp" | "set_vlan_pcp" => {
            Action::SetVlanPcp { pcp: number(arg)?, push: name.starts_with("mod") }
        }
        "strip_vlan" | "pop_vlan" => Action::PopVlan { pop: name == "pop_vlan" },
        "push_vlan" => Action::PushVlan(number(arg)?),
        "mod_dl_src" => Action::SetEthSrc(mac(arg)?),
        "mod_dl_dst" => Action::SetEthDst(mac(arg)?),
        "mod_nw_src" => Action::SetIpv4Src(parse_value(Field::NwSrc, arg, names)?.0 as u32),
        "mod_nw_dst" => Action::SetIpv4Dst(parse_value(Field::NwDst, arg, names)?.0 as u32),
        "mod_nw_tos" => Action::SetDscp(number(arg)?),
        "mod_nw_ecn" => Action::SetEcn(number(arg)?),
        "mod_nw_ttl" => Action::SetTtl(number(arg)?),
        "mod_tp_src" => Action::SetTpSrc(number(arg)?),
        "mod_tp_dst" => Action::SetTpDst(number(arg)?),
        "set_field" => set_field(arg, names)?,
        "load" => {
            let (value, dst) = arrow(arg)?;
            Action::Load { value: number(value)?, dst: parse_subfield(dst)? }
        }
        "move" => {
            let (src, dst) = arrow(arg)?;
            let (src, dst) = (parse_subfield(src)?, parse_subfield(dst)?);
            if src.len != dst.len {
                return bad(format!("{part}: source and destination differ in width"));
            }
            Action::Move { src, dst }
        }
        "push" => Action::StackPush(parse_subfield(arg)?),
        "pop" => Action::StackPop(parse_subfield(arg)?),
        "dec_ttl" => Action::DecTtl(split(arg).into_iter().map(number).collect::<Out<_>>()?),
        "set_mpls_label" => Action::SetMplsLabel(number(arg)?),
        "set_mpls_tc" => Action::SetMplsTc(number(arg)?),
        "set_mpls_ttl" => Action::SetMplsTtl(number(arg)?),
        "dec_mpls_ttl" => Action::DecMplsTtl,
        "push_mpls" => Action::PushMpls(number(arg)?),
        "pop_mpls" => Action::PopMpls(number(arg)?),
        "set_tunnel" | "set_tunnel64" => Action::SetTunnel { id: number(arg)?, wide: name.ends_with("64") },
        "resubmit" => resubmit(part, arg, names)?,
        "learn" => Action::Learn(Box::new(learn(arg, names)?)),
        "conjunction" => conjunction(arg)?,
        "multipath" => multipath(arg)?,
        "bundle" | "bundle_load" => bundle(arg, names)?,
        "fin_timeout" => {
            let (mut idle, mut hard) = (0, 0);
            for part in split(arg) {
                match cut(part) {
                    ("idle_timeout", n) => idle = number(n)?,
                    ("hard_timeout", n) => hard = number(n)?,
                    _ => return bad(format!("{part}: unknown argument of fin_timeout")),
                }
            }
            Action::FinTimeout { idle, hard }
        }
        "note" => Action::Note(bytes(arg)?),
        "exit" => Action::Exit,
        "clone" => Action::Clone(parse_actions(arg, names)?),
        "ct" => Action::Ct(Box::new(connection(arg, names)?)),
        "ct_clear" => Action::CtClear,
        "nat" => Action::Nat(Box::new(nat(arg)?)),
        "check_pkt_larger" => {
            let (len, dst) = arg.split_once(")->").ok_or_else(|| TextError(format!("{part}: missing ->")))?;
            Action::CheckPktLarger { len: number(len)?, dst: parse_subfield(dst)? }
        }
        "meter" => Action::Meter(number(arg)?),
        "clear_actions" => Action::ClearActions,
        "write_actions" => Action::WriteActions(parse_actions(arg, names)?),
        "write_metadata" => {
            let (value, mask) = arg.split_once('/').unwrap_or((arg, "0xffffffffffffffff"));
            Action::WriteMetadata { value: number(value)?, mask: number(mask)? }
        }
        "goto_table" => Action::GotoTable(number(arg)?),
        _ if arg.is_empty() => Action::Output { port: parse_port(part, names)?, max_len: 0 },
        _ => return bad(format!("{part}: unknown action")),
    })
}

fn output(part: &str, arg: &str, names: &dyn Names) -> Out<Action> {
    if part.contains('(') && arg.contains("port=") {
        let (mut p, mut len) = (None, None);
        for part in split(arg) {
            match cut(part) {
                ("port", v) => p = Some(parse_port(v, names)?),
                ("max_len", v) => len = Some(number(v)?),
                _ => return bad(format!("{part}: unknown argument of output")),
            }
        }
        let (Some(port), Some(max_len)) = (p, len) else {
            return bad(format!("{part}: needs port and max_len"));
        };
        return Ok(Action::OutputTrunc { port, max_len });
    }
    if arg.contains('[') {
        return Ok(Action::OutputReg { src: parse_subfield(arg)?, max_len: WHOLE_PACKET });
    }
    let number = parse_port(arg, names)?;
    Ok(Action::Output { port: number, max_len: if number == port::CONTROLLER { WHOLE_PACKET } else { 0 } })
}

fn controller(part: &str, arg: &str) -> Out<Action> {
    if !part.contains('(') {
        let max_len = if arg.is_empty() { WHOLE_PACKET } else { number(arg)? };
        return Ok(Action::Output { port: port::CONTROLLER, max_len });
    }
    let mut out = Controller::plain(WHOLE_PACKET);
    for part in split(arg) {
        match cut(part) {
            ("max_len", n) => out.max_len = number(n)?,
            ("id", n) => out.id = number(n)?,
            ("userdata", n) => out.userdata = bytes(n)?,
            ("pause", _) => out.pause = true,
            ("meter_id", n) => out.meter = Some(number(n)?),
            ("reason", "action") => out.reason = Reason::Action,
            ("reason", "no_match") => out.reason = Reason::NoMatch,
            ("reason", "invalid_ttl") => out.reason = Reason::InvalidTtl,
            _ => return bad(format!("{part}: unknown argument of controller")),
        }
    }
    if out == Controller::plain(out.max_len) {
        return Ok(Action::Output { port: port::CONTROLLER, max_len: out.max_len });
    }
    Ok(Action::Controller(Box::new(out)))
}

fn bytes(text: &str) -> Out<Vec<u8>> {
    let byte = |t: &str| u8::from_str_radix(t, 16).map_err(|_| TextError(format!("{t}: bad byte")));
    text.split('.').filter(|t| !t.is_empty()).map(byte).collect()
}

fn set_field(arg: &str, names: &dyn Names) -> Out<Action> {
    let (value, name) = arrow(arg)?;
    let Some(field) = Field::named(name.trim_end_matches("[]")) else {
        return bad(format!("{name}: unknown field"));
    };
    if !field.writable() {
        return bad(format!("{name}: cannot be written"));
    }
    let (value, mask) = parse_value(field, value, names)?;
    let mask = mask & field.all_ones() | if field == Field::VlanVid { 0xfff } else { 0 };
    Ok(Action::SetField { field, value, mask })
}

fn resubmit(part: &str, arg: &str, names: &dyn Names) -> Out<Action> {
    if !part.contains('(') {
        return Ok(Action::Resubmit { port: parse_port(arg, names)?, table: SAME_TABLE, ct: false });
    }
    let mut parts = arg.split(',');
    let port = parts.next().map(str::trim).filter(|p| !p.is_empty());
    let table = parts.next().map(str::trim).filter(|t| !t.is_empty());
    Ok(Action::Resubmit {
        port: port.map_or(Ok(port::IN_PORT), |p| parse_port(p, names))?,
        table: table.map_or(Ok(SAME_TABLE), number)?,
        ct: parts.next().is_some_and(|p| p.trim() == "ct"),
    })
}

fn conjunction(arg: &str) -> Out<Action> {
    let parsed = arg.split_once(',').and_then(|(id, rest)| Some((id, rest.split_once('/')?)));
    let Some((id, (clause, clauses))) = parsed else { return bad(format!("conjunction({arg}): bad syntax")) };
    let (clause, clauses): (u8, u8) = (number(clause)?, number(clauses)?);
    if clause == 0 || clause > clauses || !(2..=64).contains(&clauses) {
        return bad(format!("conjunction({arg}): clauses are 1 to n, n from 2 to 64"));
    }
    Ok(Action::Conjunction { id: number(id)?, clause: clause - 1, clauses })
}

fn hash(text: &str) -> Out<Hash> {
    let found = Hash::NAMES.iter().find(|(name, _)| *name == text);
    found.map_or_else(|| bad(format!("{text}: unknown fields to hash")), |(_, hash)| Ok(*hash))
}

fn multipath(arg: &str) -> Out<Action> {
    let parts: Vec<&str> = arg.split(',').map(str::trim).collect();
    let [fields, basis, algorithm, links, more, dst] = parts[..] else {
        return bad(format!(
            "multipath({arg}): needs fields, basis, algorithm, links, argument, destination"
        ));
    };
    let algorithm = ["modulo_n", "hash_threshold", "hrw", "iter_hash"].iter().position(|a| *a == algorithm);
    let links: u32 = number(links)?;
    let (Some(algorithm), 1..=0x1_0000) = (algorithm, links) else {
        return bad(format!("multipath({arg}): unknown algorithm, or links not 1 to 65536"));
    };
    Ok(Action::Multipath(Box::new(Multipath {
        fields: hash(fields)?,
        basis: number(basis)?,
        algorithm: algorithm as u16,
        max_link: (links - 1) as u16,
        arg: number(more)?,
        dst: parse_subfield(dst)?,
    })))
}

fn bundle(arg: &str, names: &dyn Names) -> Out<Action> {
    let (head, members) = match arg.split_once("members:").or_else(|| arg.split_once("slaves:")) {
        Some((head, members)) => (head.trim_end_matches(','), members),
        None => return bad(format!("bundle({arg}): needs members:")),
    };
    let parts: Vec<&str> = head.split(',').map(str::trim).collect();
    let (fields, basis, algorithm, dst) = match parts[..] {
        [fields, basis, algorithm, "ofport"] => (fields, basis, algorithm, None),
        [fields, basis, algorithm, "ofport", dst] => (fields, basis, algorithm, Some(parse_subfield(dst)?)),
        _ => return bad(format!("bundle({arg}): needs fields, basis, algorithm, ofport")),
    };
    if !matches!(algorithm, "hrw" | "active_backup") {
        return bad(format!("bundle({arg}): unknown algorithm {algorithm}"));
    }
    let slaves = members.split(',').filter(|m| !m.trim().is_empty()).map(|m| parse_port(m.trim(), names));
    Ok(Action::Bundle(Box::new(Bundle {
        fields: hash(fields)?,
        basis: number(basis)?,
        active_backup: algorithm == "active_backup",
        slaves: slaves.collect::<Out<_>>()?,
        dst,
    })))
}

fn learn(arg: &str, names: &dyn Names) -> Out<Learn> {
    let mut out = Learn { table: 1, priority: super::action::DEFAULT_PRIORITY, ..Learn::default() };
    for part in split(arg) {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) if !name.contains("->") => (name, value),
            _ => (part, ""),
        };
        match name {
            "table" => out.table = number(value)?,
            "idle_timeout" => out.idle_timeout = number(value)?,
            "hard_timeout" => out.hard_timeout = number(value)?,
            "fin_idle_timeout" => out.fin_idle_timeout = number(value)?,
            "fin_hard_timeout" => out.fin_hard_timeout = number(value)?,
            "priority" => out.priority = number(value)?,
            "cookie" => out.cookie = number(value)?,
            "limit" => out.limit = number(value)?,
            "send_flow_rem" => out.send_flow_rem = true,
            "delete_learned" => out.delete_learned = true,
            "result_dst" => out.result = Some(parse_subfield(value)?),
            _ => spec(part, name, value, names, &mut out.specs)?,
        }
    }
    Ok(out)
}

fn spec(part: &str, name: &str, value: &str, names: &dyn Names, out: &mut Vec<Spec>) -> Out<()> {
    let mut add = |from, to, bits| out.push(Spec { from, to, bits });
    if let Some(arg) = part.strip_prefix("load:") {
        let (src, dst) = arrow(arg)?;
        let dst = parse_subfield(dst)?;
        match parse_u128(src) {
            Some(value) => add(From::Value(value), To::Load(dst), dst.len),
            None => add(From::Field(parse_subfield(src)?), To::Load(dst), dst.len),
        }
        return Ok(());
    }
    if let Some(src) = part.strip_prefix("output:") {
        let src = parse_subfield(src)?;
        add(From::Field(src), To::Output, src.len);
        return Ok(());
    }
    let mut word = Match::default();
    if value.is_empty() && word.add_word(part) {
        for field in [Field::EthType, Field::NwProto] {
            if word.mask.lie(field) != 0 {
                let dst = Subfield::whole(field);
                add(From::Value(word.key.lie(field)), To::Match(dst), dst.len);
            }
        }
        return Ok(());
    }
    let dst = parse_subfield(name)?;
    if value.is_empty() {
        add(From::Field(dst), To::Match(dst), dst.len);
        return Ok(());
    }
    if let Ok(src) = parse_subfield(value) {
        add(From::Field(src), To::Match(dst), dst.len);
        return Ok(());
    }
    let value = if dst.is_whole() { parse_value(dst.field, value, names)?.0 } else { number(value)? };
    add(From::Value(value), To::Match(dst), dst.len);
    Ok(())
}

fn connection(arg: &str, names: &dyn Names) -> Out<Ct> {
    let mut out = Ct::default();
    for part in split(arg) {
        match cut(part) {
            ("commit", "") => out.commit = true,
            ("force", "") => out.force = true,
            ("table", n) => out.table = Some(number(n)?),
            ("zone", n) => {
                out.zone = match parse_u128(n) {
                    Some(_) => Zone::Number(number(n)?),
                    None => Zone::Field(parse_subfield(n)?),
                }
            }
            ("alg", "ftp") => out.alg = 21,
            ("alg", "tftp") => out.alg = 69,
            ("nat", n) => out.actions.insert(0, Action::Nat(Box::new(nat(n)?))),
            ("exec", inner) => out.actions.extend(parse_actions(inner, names)?),
            _ => return bad(format!("{part}: unknown argument of ct")),
        }
    }
    Ok(out)
}

fn nat(arg: &str) -> Out<Nat> {
    let mut out = Nat::default();
    for part in split(arg) {
        match part.split_once('=').unwrap_or((part, "")) {
            (side @ ("src" | "dst"), range) => {
                out.side = Some(if side == "src" { Side::Src } else { Side::Dst });
                if !range.is_empty() {
                    nat_range(range, &mut out)?;
                }
            }
            ("persistent", "") => out.persistent = true,
            ("hash", "") => out.hash = true,
            ("random", "") => out.random = true,
            _ => return bad(format!("{part}: unknown argument of nat")),
        }
    }
    Ok(out)
}

/// `first-last:port-port`, IPv6 addresses in brackets where ports follow.
fn nat_range(text: &str, out: &mut Nat) -> Out<()> {
    let v6 = text.matches(':').count() > 1;
    let (addrs, ports) = match (v6, text.rfind("]:")) {
        (true, Some(i)) => (&text[..=i], Some(&text[i + 2..])),
        (true, None) => (text, None),
        (false, _) => text.split_once(':').map_or((text, None), |(a, p)| (a, Some(p))),
    };
    let addr =
        |t: &str| t.trim_matches(['[', ']']).parse().map_err(|_| TextError(format!("{t}: bad address")));
    let (first, last) = addrs.split_once('-').unwrap_or((addrs, addrs));
    out.addrs = Some((addr(first)?, addr(last)?));
    if let Some(ports) = ports {
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        out.ports = Some((number(first)?, number(last)?));
    }
    Ok(())
}

impl Flow {
    /// Reads a flow as `ovs-ofctl add-flow` takes it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, names: &dyn Names) -> Result<Flow, TextError> {
        let mut flow = Flow::default();
        let (head, actions) = match text.find("actions=").or_else(|| text.find("action=")) {
            Some(at) => (&text[..at], text[at..].split_once('=').map(|(_, a)| a)),
            None => (text, None),
        };
        for part in split(head) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "table" => flow.table = number(value)?,
                "priority" => flow.priority = number(value)?,
                "cookie" => flow.cookie = number(value)?,
                "idle_timeout" => flow.idle_timeout = number(value)?,
                "hard_timeout" => flow.hard_timeout = number(value)?,
                "importance" => flow.importance = number(value)?,
                // Printed, and read over.
                "duration" | "n_packets" | "n_bytes" | "idle_age" | "hard_age" => {}
                "send_flow_rem" => flow.flags.send_flow_rem = true,
                "check_overlap" => flow.flags.check_overlap = true,
                "reset_counts" => flow.flags.reset_counts = true,
                "no_packet_counts" => flow.flags.no_packet_counts = true,
                "no_byte_counts" => flow.flags.no_byte_counts = true,
                _ if value.is_empty() && flow.matching.add_word(name) => {}
                _ if flow.matching.add(name, value, names)? => {}
                _ => return bad(format!("{part}: unknown keyword")),
            }
        }
        if let Some(actions) = actions {
            flow.actions = parse_actions(actions, names)?;
        }
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::super::print::actions_text;
    use super::super::values::Numbers;
    use super::*;

    #[test]
    fn actions_are_printed_as_they_are_read() {
        for text in [
            "drop",
            "output:1,LOCAL,NORMAL,FLOOD,IN_PORT,CONTROLLER:65535",
            "mod_vlan_vid:5,push_vlan:0x8100,set_field:4101->vlan_vid,pop_vlan,strip_vlan",
            "set_field:10.0.0.1->ip_src,set_field:0x5/0xff->reg0,load:0x7->NXM_NX_REG0[0..15]",
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],push:NXM_NX_REG1[],pop:NXM_NX_REG2[3]",
            "resubmit(,3),resubmit(5,),resubmit:7,resubmit(2,4)".replace("(5,)", "(,5)").as_str(),
            "learn(table=1,idle_timeout=60,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],output:NXM_OF_IN_PORT[])"
                .replace("load:0->", "load:0x0->")
                .as_str(),
            "ct(commit,table=2,zone=5,nat(src=10.0.0.1-10.0.0.9:1000-2000,random),exec(load:0x1->NXM_NX_CT_MARK[]))",
            "ct(table=1,zone=NXM_NX_REG0[0..15]),ct_clear",
            "nat(dst=[fe80::1]:80)",
            "dec_ttl,group:7,meter:3,write_metadata:0x5/0xf,goto_table:9",
            "clone(output:1,output:2),write_actions(output:3),clear_actions",
            "controller(max_len=100,id=5,userdata=01.02,pause)",
            "output(port=3,max_len=100),output:NXM_NX_REG0[],check_pkt_larger(1500)->NXM_NX_REG0[4]",
            "multipath(eth_src,50,modulo_n,4,0,NXM_NX_REG0[]),bundle(nw_src,0,hrw,ofport,members:4,8)",
            "conjunction(7,1/2),note:00.01,set_tunnel:0x5,exit",
        ] {
            let read = parse_actions(text, &Numbers).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(actions_text(&read, &Numbers), text);
        }
    }

    #[test]
    fn flows_are_printed_as_they_are_read() {
        for text in [
            "actions=NORMAL",
            "table=3, idle_timeout=10, send_flow_rem priority=10,tcp,nw_dst=10.0.0.0/8,tp_dst=80 actions=output:1,output:2",
            "cookie=0x5, priority=0 actions=drop",
        ] {
            assert_eq!(Flow::parse(text, &Numbers).unwrap().text(&Numbers), text);
        }
        for text in [
            "actions=foo",
            "priority=70000,actions=drop",
            "bar=1,actions=drop",
            "actions=move:reg0[]->xreg0[]",
        ] {
            assert!(Flow::parse(text, &Numbers).is_err(), "{text}");
        }
    }
}
