//! Memory, its log, its records, and its pages that come late.

use super::*;

/// Front-ends differ in what they expect of SET_LOG_BASE, and hang if they do not get it.
#[test]
fn the_log_base_is_answered_as_it_came() {
    let area = LogArea { size: 0x20, offset: 0 };
    for flags in [0, NEED_REPLY] {
        let mut talk = Talk::ready(SPLIT);
        let answer = talk.on(message(id::SET_LOG_BASE, flags, area.as_bytes(), 1)).unwrap().answer.unwrap();
        #[rustfmt::skip]
        assert_eq!(answer.encode(), [
            6, 0, 0, 0, 5, 0, 0, 0, 16, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(talk.host.asked(), [Asked::LogBase(area)]);
    }
    // Without LOG_SHMFD there is no answer unless it is asked for.
    let mut talk = Talk::new();
    talk.tell(id::SET_PROTOCOL_FEATURES, 1u64 << 3);
    assert_eq!(talk.send(id::SET_LOG_BASE, 0, area.as_bytes(), 1), None);
    assert!(talk.ask(id::SET_LOG_BASE, area.as_bytes(), 1));
    // QEMU does not look into the answer, and rust-vmm would wait for the rest of a shorter one.
    for flags in [0, NEED_REPLY] {
        let mut talk = Talk::ready(SPLIT);
        talk.host.diary().unmappable = true;
        let end = talk.on(message(id::SET_LOG_BASE, flags, area.as_bytes(), 1));
        assert!(matches!(end, Err(SessionError::Unanswerable(Refusal::Log(_)))), "{end:?}");
    }
}

#[test]
fn logging_begins_and_ends_while_rings_run() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    let logged = VringAddr { flags: 1, log: 0x77_0000, ..addr(0) };
    talk.tell(id::SET_FEATURES, SPLIT | 1 << 26);
    talk.tell(id::SET_VRING_ADDR, logged);
    talk.tell(id::SET_VRING_ADDR, logged);
    talk.tell(id::SET_FEATURES, SPLIT | 1 << 26);
    talk.tell(id::SET_FEATURES, SPLIT);
    talk.tell(id::SET_VRING_ADDR, addr(0));
    let used = |log| Asked::LogUsed(0, log);
    assert_eq!(talk.host.asked(), [Asked::LogAll(true), used(0x77_0000), Asked::LogAll(false), used(0),]);
    assert!(!talk.ask(id::SET_VRING_ADDR, VringAddr { flags: 2, ..addr(0) }.as_bytes(), 0));
    // Other features still cannot change under a ring.
    talk.run(1);
    assert!(!talk.ask(id::SET_FEATURES, &(PACKED | 1 << 26).to_ne_bytes(), 0));
    assert!(talk.ask(id::SET_LOG_FD, &[], 1));
    assert_eq!(talk.host.asked(), [Asked::LogSignal]);
    // A core that does not answer: the front-end must not believe that it logs.
    talk.host.diary().late = vec![0];
    assert!(!talk.ask(id::SET_FEATURES, &(SPLIT | 1 << 26).to_ne_bytes(), 0));
}

#[test]
fn records_of_what_is_in_flight() {
    let mut talk = Talk::ready(SPLIT);
    let area = InflightArea { rings: 4, num: 256, ..InflightArea::default() };
    // With the padding of a C structure or without, as it was asked.
    for len in [20, 24] {
        let frame = message(id::GET_INFLIGHT_FD, 0, &area.as_bytes()[..len], 0);
        let answer = talk.on(frame).unwrap().answer.unwrap();
        assert!(answer.fd().is_some());
        #[rustfmt::skip]
        let want = [
            31, 0, 0, 0, 5, 0, 0, 0, len as u8, 0, 0, 0, 0x45, 0x23, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            4, 0, 0, 1, 0, 0, 0, 0,
        ];
        assert_eq!(answer.encode(), want[..12 + len]);
        assert_eq!(talk.host.asked(), [Asked::MakeRecords(4, 256)]);
    }
    let area = InflightArea { size: 0x1_2345, ..area };
    assert!(talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1));
    assert_eq!(talk.host.asked(), [Asked::SetRecords(area)]);
    for (rings, num) in [(0, 256), (5, 256), (65535, 256), (4, 0), (4, 32769), (4, 65535)] {
        let area = InflightArea { rings, num, ..area };
        assert!(!talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1), "{area:?}");
        let end = Talk::ready(SPLIT).on(message(id::GET_INFLIGHT_FD, 0, area.as_bytes(), 0));
        assert!(matches!(end, Err(SessionError::Unanswerable(Refusal::Records { .. }))));
    }
    talk.run(0);
    assert!(!talk.ask(id::SET_INFLIGHT_FD, area.as_bytes(), 1), "a ring runs");
}

#[test]
fn memory_that_lacks_pages_is_told_where_it_is_and_not_touched_before_they_come() {
    let mut talk = Talk::new();
    talk.session.offer.postcopy = true;
    let all = PROTOCOL_FEATURES | PROTOCOL_F_PAGEFAULT;
    talk.tell(id::SET_PROTOCOL_FEATURES, all);
    talk.tell(id::SET_FEATURES, SPLIT);
    assert!(!talk.ask(id::POSTCOPY_LISTEN, &[], 0), "before the descriptor");
    let answer = talk.on(message(id::POSTCOPY_ADVISE, 0, &[], 0)).unwrap().answer.unwrap();
    assert_eq!((answer.encode(), answer.fd().is_some()), (vec![28, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0], true));
    assert!(talk.ask(id::POSTCOPY_LISTEN, &[], 0));
    let ours = |guest, size| MemRegion { user: guest + 0x10_0000_0000, ..region(guest, size) };
    let (one, two) = (region(0, 0x1000), region(0x1000, 0x1000));
    let sent = talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[one, two]), 2).unwrap();
    assert_eq!(sent, table(&[ours(0, 0x1000), ours(0x1000, 0x1000)]));
    let sent = talk.send(id::ADD_MEM_REG, NEED_REPLY, &single(region(0x2000, 0x8000)), 1).unwrap();
    assert_eq!(sent, single(ours(0x2000, 0x8000)));
    // A ring that is described waits until pages are brought.
    talk.describe(0, 256, 7);
    talk.tell(id::SET_VRING_KICK, 0u64);
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert!(talk.host.diary().running.is_empty());
    assert_eq!(talk.send(id::SET_MEM_TABLE, NEED_REPLY, &[0; 8], 0), None, "nobody looks for an answer");
    assert!(talk.host.diary().running.contains_key(&0));
    assert!(!talk.ask(id::ADD_MEM_REG, &[0; 8], 0), "once");
    assert_eq!(talk.send(id::POSTCOPY_END, 0, &[], 0).unwrap(), [0; 8]);
    assert_eq!(talk.host.asked().last(), Some(&Asked::EndPostcopy));
    // As ever.
    assert!(talk.ask(id::ADD_MEM_REG, &single(region(0x10_0000, 0x1000)), 1));
}

#[test]
fn a_front_end_that_leaves_in_post_copy_lets_those_go_who_wait_for_pages() {
    let mut talk = Talk::new();
    talk.session.offer.postcopy = true;
    talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | PROTOCOL_F_PAGEFAULT);
    talk.tell(id::SET_FEATURES, SPLIT);
    talk.send(id::POSTCOPY_ADVISE, 0, &[], 0);
    talk.tell(id::POSTCOPY_LISTEN, [0u8; 0]);
    talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x10_0000)]), 1);
    talk.send(id::SET_MEM_TABLE, 0, &[0; 8], 0);
    talk.run(0);
    assert!(talk.session.close(&mut talk.host).is_none());
    // Before the ring is waited for.
    assert_eq!(talk.host.asked(), [Asked::EndPostcopy, Asked::Stop(vec![0]), Asked::Disconnected]);
}

#[test]
fn memory_changes_between_a_stop_and_a_start() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(2);
    let starts = |talk: &Talk| {
        let base = |ring: u16| talk.host.diary().bases[&ring];
        [0, 2].map(|index| Asked::Start { index, num: 256, base: base(index) })
    };
    talk.host.diary().bases.insert(2, 77);
    let more = region(0x10_0000, 0x1000);
    let whole = region(0, 0x20_0000);
    for (id, payload, fds, asked) in [
        (id::ADD_MEM_REG, single(more), 1, Asked::Add(more)),
        (id::REM_MEM_REG, single(MemRegion { offset: 9, ..more }), 1, Asked::Remove(more)),
        (id::SET_MEM_TABLE, table(&[whole]), 1, Asked::Map(vec![whole])),
    ] {
        assert!(talk.ask(id, &payload, fds));
        let [first, second] = starts(&talk);
        assert_eq!(talk.host.asked(), [Asked::Stop(vec![0, 2]), asked, first, second]);
    }
    // A memory that is refused leaves everything as it was.
    talk.host.diary().unmappable = true;
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0x1000)]), 1));
    assert_eq!(talk.host.diary().running.len(), 2);
    assert_eq!(talk.host.diary().memory.len(), 1);
    talk.host.diary().unmappable = false;
    assert!(!talk.ask(id::ADD_MEM_REG, &single(region(0x1f_ffff, 1)), 1), "overlaps the old memory still");
    // Without any memory nothing runs.
    assert!(talk.ask(id::REM_MEM_REG, &single(whole), 0));
    assert!(talk.host.diary().running.is_empty());
    assert!(talk.ask(id::ADD_MEM_REG, &single(whole), 1));
    assert_eq!(talk.host.diary().running.len(), 2);
}

#[test]
fn a_ring_that_new_memory_does_not_hold_is_refused_alone() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    talk.run(1);
    talk.host.diary().broken = vec![0];
    let reply = talk.on(message(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x1000)]), 1)).unwrap();
    assert_eq!(
        reply.answer.unwrap().encode(),
        Answer::number(id::SET_MEM_TABLE, 0).encode(),
        "memory is as it was wanted"
    );
    assert!(matches!(reply.refused[..], [Refusal::Start { index: 0, .. }]));
    assert_eq!(talk.host.diary().running.len(), 1);
}

#[test]
fn tables_and_slots() {
    let mut talk = Talk::ready(SPLIT);
    let overlap = table(&[region(0, 0x2000), region(0x1fff, 0x1000)]);
    assert!(!talk.ask(id::SET_MEM_TABLE, &overlap, 2));
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[region(0, 0)]), 1));
    assert!(!talk.ask(id::SET_MEM_TABLE, &table(&[]), 0));
    assert!(talk.host.asked().is_empty());
    for slot in 1..MAX_MEM_SLOTS as u64 {
        assert!(talk.ask(id::ADD_MEM_REG, &single(region(0x10_0000 * slot, 0x1000)), 1), "slot {slot}");
    }
    let more = single(region(0x1000_0000_0000, 0x1000));
    assert!(!talk.ask(id::ADD_MEM_REG, &more, 1), "the 510th");
    assert!(!talk.ask(id::REM_MEM_REG, &more, 0), "one that is not there");
    assert!(talk.ask(id::REM_MEM_REG, &single(region(0x10_0000, 0x1000)), 0));
    assert!(!talk.ask(id::REM_MEM_REG, &single(region(0x10_0000, 0x1000)), 0), "twice");
    assert!(talk.ask(id::ADD_MEM_REG, &more, 1));
    assert_eq!(talk.host.diary().memory.len(), MAX_MEM_SLOTS);
}
