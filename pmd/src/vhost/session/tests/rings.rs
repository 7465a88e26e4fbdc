//! When rings start and stop, and what they may be.

use super::*;

#[test]
fn a_ring_starts_with_the_last_thing_it_needs() {
    type Step = fn(&mut Talk);
    let steps: [Step; 6] = [
        |t| t.tell(id::SET_FEATURES, SPLIT),
        |t| {
            t.send(id::SET_MEM_TABLE, 0, &table(&[region(0, 0x10_0000)]), 1);
        },
        |t| t.tell(id::SET_VRING_NUM, state(0, 256)),
        |t| t.tell(id::SET_VRING_ADDR, addr(0)),
        |t| t.tell(id::SET_VRING_KICK, 0u64),
        |t| t.tell(id::SET_VRING_ENABLE, state(0, 1)),
    ];
    // SET_VRING_NUM and SET_VRING_BASE start nothing themselves: they come before the kick.
    for last in [0, 1, 3, 4, 5] {
        let mut talk = Talk::new();
        for (_, step) in steps.iter().enumerate().filter(|(i, _)| *i != last) {
            step(&mut talk);
            assert!(talk.host.diary().running.is_empty());
        }
        steps[last](&mut talk);
        assert_eq!(talk.host.diary().running.len(), 1, "step {last} comes last");
    }
}

#[test]
fn without_protocol_features_a_ring_starts_enabled() {
    let mut talk = Talk::ready(F_VERSION_1);
    talk.describe(0, 256, 0);
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 256, base: 0 }]);
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
}

#[test]
fn no_descriptor_means_polling() {
    let mut talk = Talk::ready(SPLIT);
    talk.describe(1, 256, 0);
    talk.tell(id::SET_VRING_ENABLE, state(1, 1));
    assert!(talk.ask(id::SET_VRING_KICK, &0x101u64.to_ne_bytes(), 0));
    assert!(talk.host.diary().running[&1].signals.kick.is_none());
}

#[test]
fn a_disabled_ring_goes_on_where_it_stopped() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.host.diary().bases.insert(0, 99);
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    talk.tell(id::SET_VRING_ENABLE, state(0, 0));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 256, base: 99 }]);
}

#[test]
fn get_vring_base_stops_a_ring_until_the_next_kick() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.host.diary().bases.insert(0, 0xfffe);
    assert_eq!(talk.base(0), 0xfffe);
    assert_eq!(talk.base(0), 0xfffe, "asked again");
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    talk.tell(id::SET_VRING_NUM, state(0, 512));
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.asked(), [Asked::Start { index: 0, num: 512, base: 0xfffe }]);
}

#[test]
fn bases_of_packed_rings() {
    let mut talk = Talk::ready(PACKED);
    assert_eq!(talk.base(3), 0x8000_8000, "never set");
    // DPDK's virtio-user sets the available half only.
    talk.describe(0, 100, 0x8000);
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert_eq!(talk.host.diary().running[&0].base, 0x8000_8000);
    talk.host.diary().bases.insert(0, 0x8063_0005);
    assert_eq!(talk.base(0), 0x8063_0005);
    talk.tell(id::SET_VRING_BASE, state(0, 0x8063_0005));
    talk.tell(id::SET_VRING_KICK, 0u64);
    assert_eq!(talk.host.diary().running[&0].base, 0x8063_0005);
}

#[test]
fn a_running_ring_keeps_size_and_base_and_may_move() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    assert!(!talk.ask(id::SET_VRING_NUM, &state(0, 256), 0));
    assert!(!talk.ask(id::SET_VRING_BASE, &state(0, 7), 0));
    talk.tell(id::SET_VRING_ADDR, addr(0));
    assert!(talk.host.asked().is_empty(), "the same addresses");
    let moved = VringAddr { index: 0, ..addr(9) };
    talk.tell(id::SET_VRING_ADDR, moved);
    let start = Asked::Start { index: 0, num: 256, base: 7 };
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![0]), start]);
    assert_eq!(talk.host.diary().running[&0].addr, moved);
}

#[test]
fn eventfds_change_while_a_ring_runs() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.tell(id::SET_VRING_CALL, 0u64);
    talk.tell(id::SET_VRING_ERR, 0u64);
    assert!(talk.ask(id::SET_VRING_CALL, &0x100u64.to_ne_bytes(), 0));
    assert!(talk.ask(id::SET_VRING_KICK, &0x100u64.to_ne_bytes(), 0));
    let signals = |kick, call, err| Asked::Signals { ring: 0, kick, call, err };
    let want =
        [signals(true, true, false), signals(true, true, true), signals(true, false, true)].into_iter();
    assert_eq!(talk.host.asked(), want.chain([signals(false, false, true)]).collect::<Vec<_>>());
}

#[test]
fn a_ring_of_the_guests_making_costs_the_ring_only() {
    let bad = VringAddr { descriptors: 0x7f00_0000_0008, ..addr(0) };
    let wraps = VringAddr { used: u64::MAX - 7, ..addr(0) };
    for addr in [bad, wraps] {
        let mut talk = Talk::ready(SPLIT);
        talk.run(1);
        talk.run(0);
        let reply = talk.on(message(id::SET_VRING_ADDR, 0, addr.as_bytes(), 0)).unwrap();
        assert!(matches!(reply.refused[..], [Refusal::Ring { index: 0, .. }]), "{reply:?}");
        assert_eq!(talk.host.asked(), [Asked::Stop(vec![0])]);
        talk.tell(id::SET_VRING_KICK, 0u64);
        assert_eq!(talk.host.diary().running.len(), 1, "it does not run at its old address");
        talk.run(0);
    }
    // Refused by the host: outside memory, for one.
    let mut talk = Talk::ready(SPLIT);
    talk.host.diary().broken = vec![0];
    talk.describe(0, 256, 0);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    let reply = talk.on(message(id::SET_VRING_KICK, 0, &[0; 8], 1)).unwrap();
    assert!(matches!(reply.refused[..], [Refusal::Start { index: 0, .. }]));
    assert!(!talk.ask(id::SET_VRING_KICK, &[0; 8], 1));
    talk.host.diary().broken.clear();
    assert!(talk.ask(id::SET_VRING_KICK, &[0; 8], 1));
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn sizes_of_rings() {
    for (features, num, good) in [
        (SPLIT, 0, false),
        (SPLIT, 1, true),
        (SPLIT, 100, false),
        (SPLIT, 32768, true),
        (PACKED, 0, false),
        (PACKED, 100, true),
        (PACKED, 32768, true),
        (PACKED, 32769, false),
        (SPLIT, 65536, false),
        (SPLIT, 0x1_0100, false),
        (SPLIT, u32::MAX, false),
    ] {
        let mut talk = Talk::ready(features);
        assert_eq!(talk.ask(id::SET_VRING_NUM, &state(0, num), 0), good, "{features:#x} {num}");
    }
    // A size set before the layout was known is checked when the ring starts.
    let mut talk = Talk::new();
    talk.describe(0, 100, 0);
    talk.send(id::SET_MEM_TABLE, 0, &table(&[region(0, 0x10_0000)]), 1);
    talk.tell(id::SET_FEATURES, F_VERSION_1);
    let reply = talk.on(message(id::SET_VRING_KICK, 0, &[0; 8], 1)).unwrap();
    assert!(matches!(reply.refused[..], [Refusal::Ring { source: RingError::Num(100), .. }]));
    talk.tell(id::SET_FEATURES, F_VERSION_1 | F_RING_PACKED);
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn a_late_ring_refuses_the_message_and_counts_as_stopped() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(1);
    talk.host.diary().late = vec![1];
    talk.host.diary().broken = vec![1];
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0x1000)]), 1));
    assert_eq!(talk.host.diary().running.keys().copied().collect::<Vec<_>>(), [0]);
    assert!(talk.host.asked().iter().all(|a| !matches!(a, Asked::Map(_))));
    talk.host.diary().broken.clear();
    talk.tell(id::SET_VRING_KICK, 1u64);
    talk.host.diary().late = vec![0];
    assert!(talk.on(message(id::GET_VRING_BASE, 0, &state(0, 0), 0)).is_err(), "no base to answer");
}

#[test]
fn indices_are_checked_in_full() {
    let mut talk = Talk::ready(SPLIT);
    for index in [4, 5, 255, 256, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX] {
        for id in [id::SET_VRING_NUM, id::SET_VRING_BASE, id::SET_VRING_ENABLE] {
            assert!(!talk.ask(id, &state(index, 1), 0), "{} {index:#x}", name(id));
        }
        assert!(!talk.ask(id::SET_VRING_ADDR, addr(index).as_bytes(), 0));
        if index == 256 {
            continue; // In the messages below, ring 0 without a descriptor.
        }
        for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
            assert!(!talk.ask(id, &u64::from(index).to_ne_bytes(), 1), "{} {index:#x}", name(id));
        }
        let mut other = Talk::ready(SPLIT);
        assert!(other.on(message(id::GET_VRING_BASE, 0, &state(index, 0), 0)).is_err());
    }
    assert!(talk.host.asked().is_empty());
}
