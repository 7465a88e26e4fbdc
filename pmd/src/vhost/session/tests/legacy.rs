//! Conversations that another process goes on with.

use proptest::prelude::*;

use super::promises::any_message;
use super::*;

/// Left by `talk`, with messages as bytes.
fn left(talk: &mut Talk) -> Vec<(u32, Vec<u8>, usize)> {
    for odd in [true, false] {
        talk.session.rest(odd, &mut talk.host).unwrap();
    }
    let said = talk.session.leave(&talk.host).unwrap();
    said.into_iter().map(|frame| (frame.header.request, frame.payload, frame.fds.len())).collect()
}

fn inherit(said: &[(u32, Vec<u8>, usize)]) -> Result<Talk, Refusal> {
    let mut host = Recorder::default();
    let said = said.iter().map(|(id, payload, fds)| message(*id, 0, payload, *fds)).collect();
    Session::inherit(offer(), said, &mut host).map(|session| Talk { session, host })
}

#[test]
fn it_is_these_messages() {
    let mut talk = Talk::ready(PACKED | 1 << 26);
    talk.tell(id::SET_STATUS, 15u64);
    talk.describe(1, 256, 0x8007);
    talk.tell(id::SET_VRING_KICK, 1u64);
    talk.tell(id::SET_VRING_ENABLE, state(1, 1));
    assert!(talk.ask(id::SET_VRING_KICK, &0x102u64.to_ne_bytes(), 0));
    talk.host.diary().bases.insert(1, 0x8009_8009);
    let said = left(&mut talk);
    let config: Vec<u8> = [&[0, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0][..], &offer().config].concat();
    let number = |n: u64| n.to_ne_bytes().to_vec();
    let want = [
        (id::SET_PROTOCOL_FEATURES, number(PROTOCOL_FEATURES), 0),
        (id::SET_FEATURES, number(PACKED), 0),
        (id::SET_STATUS, number(15), 0),
        (id::SET_CONFIG, config, 0),
        (id::ADD_MEM_REG, single(region(0, 0x10_0000)), 1),
        (id::SET_FEATURES, number(PACKED | 1 << 26), 0),
        (id::SET_VRING_NUM, state(1, 256).to_vec(), 0),
        (id::SET_VRING_BASE, state(1, 0x8009_8009).to_vec(), 0),
        (id::SET_VRING_ADDR, addr(1).as_bytes().to_vec(), 0),
        (id::SET_VRING_CALL, number(1), 1),
        (id::SET_VRING_KICK, number(1), 1),
        (id::SET_VRING_ENABLE, state(1, 1).to_vec(), 0),
        (id::SET_VRING_KICK, number(0x102), 0),
    ];
    assert_eq!(said, want);
    let mut next = inherit(&said).unwrap();
    assert!(next.host.diary().running.is_empty(), "held");
    assert!(next.session.resume(&mut next.host).is_empty());
    assert_eq!(next.host.asked().last(), Some(&Asked::Start { index: 1, num: 256, base: 0x8009_8009 }));
    assert_eq!(left(&mut next), want);
    // The one before can go on, too.
    assert!(talk.session.resume(&mut talk.host).is_empty());
    assert!(talk.host.diary().running.contains_key(&1));
}

#[test]
fn rings_from_the_guest_stop_before_the_others() {
    let mut talk = Talk::ready(SPLIT);
    (0..4).for_each(|ring| talk.run(ring));
    let _ = left(&mut talk);
    assert_eq!(talk.host.asked(), [Asked::Stop(vec![1, 3]), Asked::Stop(vec![0, 2])]);
    // One that is late: nothing is left, and the others go on.
    let mut talk = Talk::ready(SPLIT);
    (0..2).for_each(|ring| talk.run(ring));
    talk.host.diary().late = vec![1];
    assert!(matches!(talk.session.rest(true, &mut talk.host), Err(Refusal::Stop { index: 1, .. })));
}

#[test]
fn what_a_front_end_would_be_refused_for_is_refused() {
    let mut talk = Talk::ready(SPLIT);
    talk.run(0);
    let said = left(&mut talk);
    for id in [id::GET_FEATURES, id::RESET_DEVICE, id::GET_VRING_BASE, id::SET_BACKEND_REQ_FD, 0, 99] {
        let wrong = [&said[..], &[(id, Vec::new(), 0)]].concat();
        assert!(matches!(inherit(&wrong), Err(Refusal::Legacy(_))), "{}", name(id));
    }
    // Every message cut short, or without its descriptor.
    for at in 0..said.len() {
        let mut short = said.clone();
        short[at].1.pop();
        assert!(matches!(inherit(&short), Err(Refusal::Malformed(_))), "{}", name(short[at].0));
        let mut fds = said.clone();
        fds[at].2 += 1;
        assert!(inherit(&fds).is_err(), "{}", name(fds[at].0));
    }
    let wrong = [(id::SET_FEATURES, (1u64 << 50).to_ne_bytes().to_vec(), 0)];
    assert!(matches!(inherit(&wrong), Err(Refusal::Features { .. })), "not offered any more");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever a front-end has said: the rings that ran run in the next process, where they stood.
    #[test]
    fn any_conversation_is_gone_on_with(messages in prop::collection::vec(any_message(), 0..120)) {
        let mut talk = Talk::new();
        talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
        for (id, flags, payload, fds) in messages {
            if talk.on(message(id, flags, &payload, fds)).is_err() {
                return Ok(());
            }
        }
        let at = |talk: &Talk| -> Vec<_> {
            talk.host.diary().running.values().map(|r| (r.index, r.num, r.addr, r.base, r.features)).collect()
        };
        let before = at(&talk);
        let said = left(&mut talk);
        let mut next = inherit(&said).unwrap();
        next.session.resume(&mut next.host);
        prop_assert_eq!(at(&next), before);
    }
}
