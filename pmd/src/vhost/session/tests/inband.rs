//! Kicks, calls and errors as messages.

use rustix::io::{read, write};

use super::*;

const INBAND: u64 = 1 << 14;
const NONE: u64 = 1 << 8;

/// A session that has messages in place of descriptors.
fn ready() -> Talk {
    let mut talk = Talk::new();
    talk.session.offer.inband = true;
    talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | INBAND);
    talk.tell(id::SET_FEATURES, SPLIT);
    talk.send(id::SET_MEM_TABLE, NEED_REPLY, &table(&[region(0, 0x10_0000)]), 1);
    talk.host.asked();
    talk
}

fn bare(talk: &mut Talk, id: u32, ring: u32) {
    assert!(talk.ask(id, &(u64::from(ring) | NONE).to_ne_bytes(), 0));
}

#[test]
fn it_is_offered_when_asked_for_and_takes_two_others() {
    let mut talk = Talk::new();
    assert!(matches!(
        talk.on(message(id::SET_PROTOCOL_FEATURES, 0, &INBAND.to_ne_bytes(), 0)),
        Err(SessionError::Unheard(Refusal::Features { .. }))
    ));
    let mut talk = Talk::new();
    talk.session.offer.inband = true;
    let offered = talk.send(id::GET_PROTOCOL_FEATURES, 0, &[], 0).unwrap();
    assert_eq!(offered, (PROTOCOL_FEATURES | INBAND).to_ne_bytes());
    talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
    for lacks in [PROTOCOL_F_BACKEND_REQ, PROTOCOL_F_REPLY_ACK] {
        assert!(!talk.ask(
            id::SET_PROTOCOL_FEATURES,
            &((PROTOCOL_FEATURES | INBAND) & !lacks).to_ne_bytes(),
            0
        ));
    }
    // Without it, the message is none, and no descriptor means polling.
    assert!(!talk.ask(id::VRING_KICK, &state(0, 0), 0));
}

#[test]
fn a_kick_reaches_the_ring_and_its_call_and_error_the_front_end() {
    let mut talk = ready();
    talk.describe(1, 256, 0);
    bare(&mut talk, id::SET_VRING_CALL, 1);
    bare(&mut talk, id::SET_VRING_ERR, 1);
    bare(&mut talk, id::SET_VRING_KICK, 1);
    talk.tell(id::SET_VRING_ENABLE, state(1, 1));
    let signals = talk.host.diary().running[&1].signals.clone();
    let [kick, call, err] = [signals.kick, signals.call, signals.err].map(Option::unwrap);
    assert!(read(&kick, &mut [0; 8]).is_err(), "not kicked yet");
    assert!(talk.ask(id::VRING_KICK, &state(1, 0), 0));
    assert!(read(&kick, &mut [0; 8]).is_ok());
    assert!(talk.session.requests(&mut talk.host).is_empty());
    assert_eq!(talk.session.bells().count(), 2);
    for bell in [&call, &call, &err] {
        write(bell, &1u64.to_ne_bytes()).unwrap();
    }
    #[rustfmt::skip]
    assert_eq!(talk.session.requests(&mut talk.host), [
        4, 0, 0, 0,  9, 0, 0, 0,  8, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0,
        5, 0, 0, 0,  9, 0, 0, 0,  8, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0,
    ]);
    assert!(talk.session.requests(&mut talk.host).is_empty());
    let header = Header { request: 4, flags: 5, size: 8 };
    for _ in 0..2 {
        let reply = Frame { header, payload: vec![0; 8], fds: Fds::default() };
        assert!(talk.session.on_reply(&reply, &mut talk.host));
    }
    // With a descriptor it is as ever.
    talk.tell(id::SET_VRING_CALL, 1u64);
    assert_eq!(talk.session.bells().count(), 1);
}

#[test]
fn a_kick_of_no_ring_is_refused_and_one_of_a_stopped_ring_starts_it() {
    let mut talk = ready();
    for index in [4, 5, 0x100, u32::MAX] {
        assert!(!talk.ask(id::VRING_KICK, &state(index, 0), 0), "{index:#x}");
    }
    for size in [0, 7, 9] {
        assert!(!talk.ask(id::VRING_KICK, &vec![0; size], 0), "{size} bytes");
    }
    assert!(!talk.ask(id::VRING_KICK, &state(0, 0), 1), "a descriptor");
    talk.tell(id::SET_VRING_NUM, state(0, 256));
    talk.tell(id::SET_VRING_ADDR, addr(0));
    talk.tell(id::SET_VRING_ENABLE, state(0, 1));
    assert!(talk.host.diary().running.is_empty());
    assert!(talk.ask(id::VRING_KICK, &state(0, 0), 0));
    // As user-mode Linux has it, which says nothing of descriptors at all.
    assert!(talk.host.diary().running[&0].signals.call.is_some());
    assert_eq!(talk.session.bells().count(), 1);
    // Any number of kicks blocks nobody.
    (0..1000).for_each(|_| assert!(talk.ask(id::VRING_KICK, &state(0, 0), 0)));
}
