//! Connections as packets make them.

use super::*;
use crate::vswitch::flow::action::{Nat, Side};

fn key(from: u32, to: u32, ports: (u16, u16), flags: u8) -> Key {
    let mut key = Key::default();
    let proto = if flags == 0 { 17 } else { 6 };
    for (field, value) in [
        (Field::EthType, 0x800),
        (Field::NwProto, proto),
        (Field::NwSrc, from.into()),
        (Field::NwDst, to.into()),
        (Field::TcpSrc, ports.0.into()),
        (Field::TcpDst, ports.1.into()),
        (Field::TcpFlags, flags.into()),
    ] {
        key.lay(field, value);
    }
    key
}

fn op(commit: bool) -> CtOp {
    CtOp { zone: 5, commit, force: false, mark: (0, 0), label: (0, 0), nat: None, alg: 0 }
}

fn state_of(table: &mut Conntrack, op: &CtOp, mut key: Key) -> u32 {
    table.track(op, &mut key, &Beyond::default(), 1);
    key.lie(Field::CtState) as u32
}

const NEW: u32 = state::TRACKED | state::NEW;
const EST: u32 = state::TRACKED | state::ESTABLISHED;

#[test]
fn a_connection_is_new_until_it_is_answered() {
    let mut table = Conntrack::default();
    let there = key(1, 2, (10, 20), 2);
    assert_eq!(state_of(&mut table, &op(false), there), NEW);
    // Not kept yet: the answer is as new.
    assert_eq!(state_of(&mut table, &op(false), key(2, 1, (20, 10), 0x12)), NEW);
    assert_eq!(state_of(&mut table, &op(true), there), NEW);
    assert_eq!(state_of(&mut table, &op(false), there), NEW);
    assert_eq!(state_of(&mut table, &op(false), key(2, 1, (20, 10), 0x12)), EST | state::REPLY);
    assert_eq!(state_of(&mut table, &op(false), key(1, 2, (10, 20), 0x10)), EST);
    let other = CtOp { zone: 6, ..op(false) };
    assert_eq!(state_of(&mut table, &other, key(1, 2, (10, 20), 0x10)), NEW);
    assert_eq!(
        table.dump(),
        [
            "tcp,orig=(src=0.0.0.1,dst=0.0.0.2,sport=10,dport=20),reply=(src=0.0.0.2,dst=0.0.0.1,sport=20,dport=10),\
          zone=5,protoinfo=(state=ESTABLISHED)"
        ]
    );
    table.flush(Some(5));
    assert_eq!((table.count(5), table.dump().len()), (0, 0));
}

#[test]
fn marks_and_labels_are_the_connections() {
    let mut table = Conntrack::default();
    let commit = CtOp { mark: (7, 0xff), label: (1 << 100, 1 << 100), ..op(true) };
    table.track(&commit, &mut key(1, 2, (1, 2), 0), &Beyond::default(), 1);
    let mut answer = key(2, 1, (2, 1), 0);
    table.track(&op(false), &mut answer, &Beyond::default(), 1);
    assert_eq!((answer.lie(Field::CtMark), answer.lie(Field::CtLabel)), (7, 1 << 100));
    assert_eq!((answer.lie(Field::CtNwSrc), answer.lie(Field::CtTpDst)), (1, 2));
}

#[test]
fn sources_are_changed_there_and_back() {
    let mut table = Conntrack::default();
    let addr = std::net::Ipv4Addr::from(99).into();
    let nat =
        Nat { side: Some(Side::Src), addrs: Some((addr, addr)), ports: Some((500, 501)), ..Nat::default() };
    let commit = CtOp { nat: Some(nat), ..op(true) };
    let follow = CtOp { nat: Some(Nat::default()), ..op(false) };
    let mut used = Vec::new();
    for port in [10, 11] {
        let out = table.track(&commit, &mut key(1, 2, (port, 80), 0), &Beyond::default(), 1).unwrap().tuple;
        assert_eq!((out.src, out.dst, out.dst_port), (99, 2, 80));
        used.push(out.src_port);
        let back = table
            .track(&follow, &mut key(2, 99, (80, out.src_port), 0), &Beyond::default(), 1)
            .unwrap()
            .tuple;
        assert_eq!((back.src, back.dst, back.dst_port), (2, 1, port));
    }
    used.sort_unstable();
    assert_eq!(used, [500, 501]);
    // Both ports are taken.
    let state = state_of(&mut table, &commit, key(1, 2, (12, 80), 0));
    assert_eq!(state, state::TRACKED | state::INVALID);
}

#[test]
fn no_connection_takes_the_answers_of_another() {
    let mut table = Conntrack::default();
    let addr = std::net::Ipv4Addr::from(99).into();
    let nat =
        Nat { side: Some(Side::Src), addrs: Some((addr, addr)), ports: Some((500, 500)), ..Nat::default() };
    let commit = CtOp { nat: Some(nat), ..op(true) };
    table.track(&commit, &mut key(1, 2, (10, 80), 0), &Beyond::default(), 1).unwrap();
    // Somebody who says that he is that address, and has that port.
    let state = state_of(&mut table, &op(true), key(99, 2, (500, 80), 0));
    assert_eq!(state, state::TRACKED | state::INVALID);
    table.check();
    let follow = CtOp { nat: Some(Nat::default()), ..op(false) };
    let back = table.track(&follow, &mut key(2, 99, (80, 500), 0), &Beyond::default(), 1).unwrap().tuple;
    assert_eq!((back.dst, back.dst_port), (1, 10));
    // When the first has ended, its answers are anybody's.
    table.age(1 + timeout::UDP);
    assert_eq!(state_of(&mut table, &op(true), key(99, 2, (500, 80), 0)), NEW);
    table.check();
}

#[test]
fn ports_that_are_used_up_cost_few_look_ups() {
    let original = Tuple::of(&key(1, 2, (1500, 80), 0), 5, 0).unwrap();
    let number = |n: u32| std::net::Ipv4Addr::from(n).into();
    for addrs in [None, Some((number(99), number(99))), Some((number(0), number(u32::MAX)))] {
        let nat = Nat { side: Some(Side::Src), addrs, ..Nat::default() };
        let looked = std::cell::Cell::new(0);
        let full = |_: &Tuple| {
            looked.set(looked.get() + 1);
            true
        };
        assert!(nat::choose(&nat, &original, full).is_none());
        assert!(looked.get() <= 1100, "{} look-ups", looked.get());
        // Most are taken, in a row.
        let free = nat::choose(&nat, &original, |reply| reply.dst_port < 60_000).unwrap();
        assert!(free.dst_port >= 60_000);
    }
}

#[test]
fn errors_are_related_to_what_they_quote() {
    let mut table = Conntrack::default();
    state_of(&mut table, &op(true), key(1, 2, (10, 20), 0));
    let mut icmp =
        vec![3, 1, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    icmp.extend([0, 10, 0, 20]);
    let mut error = Key::default();
    for (field, value) in
        [(Field::EthType, 0x800), (Field::NwProto, 1), (Field::NwSrc, 9), (Field::IcmpType, 3)]
    {
        error.lay(field, value);
    }
    let beyond = Beyond::of(&error, &icmp);
    table.track(&op(false), &mut error, &beyond, 1);
    assert_eq!(error.lie(Field::CtState) as u32, state::TRACKED | state::RELATED | state::REPLY);
    assert!(Beyond::of(&error, &icmp[..20]).quoted.is_none());
}

#[test]
fn zones_have_limits_and_connections_an_end() {
    let mut table = Conntrack::default();
    table.limit(5, Some(2));
    for port in 1..=3 {
        let state = state_of(&mut table, &op(true), key(1, 2, (port, 9), 0));
        assert_eq!(state & state::INVALID != 0, port == 3);
    }
    table.age(1 + timeout::UDP_FIRST);
    assert_eq!(table.count(5), 0);
    let mut arp = Key::default();
    arp.lay(Field::EthType, 0x806);
    assert_eq!(state_of(&mut table, &op(true), arp), state::TRACKED | state::INVALID);
}
