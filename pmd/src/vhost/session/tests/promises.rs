//! What holds whatever is said.

use proptest::prelude::*;

use super::*;

/// Messages that often make sense together.
pub(super) fn any_message() -> impl Strategy<Value = (u32, u32, Vec<u8>, usize)> {
    let index = prop_oneof![8 => 0u32..4, 1 => any::<u32>()];
    let num = prop_oneof![4 => Just(256), 2 => 0u32..3, 2 => Just(0x8000), 1 => any::<u32>()];
    let at = prop_oneof![4 => (0u64..32).prop_map(|a| a * 0x1000), 1 => any::<u64>()];
    let features = prop_oneof![4 => Just(SPLIT), 4 => Just(PACKED), 1 => Just(0), 1 => any::<u64>()];
    let region = (at.clone(), prop_oneof![4 => Just(0x1000u64), 1 => any::<u64>()])
        .prop_map(|(guest, size)| MemRegion { guest, size, user: guest, offset: 0 });
    let need = prop_oneof![3 => Just(NEED_REPLY), 1 => Just(0u32)];
    let body = prop_oneof![
        2 => features.prop_map(|f| (id::SET_FEATURES, f.to_ne_bytes().to_vec(), 0)),
        6 => (prop::sample::select(vec![
                id::SET_VRING_NUM, id::SET_VRING_BASE, id::GET_VRING_BASE, id::SET_VRING_ENABLE,
            ]), index.clone(), num).prop_map(|(id, index, num)| (id, state(index, num).to_vec(), 0)),
        3 => (index, at.clone(), at.clone(), at).prop_map(|(index, descriptors, used, available)| {
                let (flags, log) = ((used >> 12) as u32 & 1, descriptors);
                let addr = VringAddr { index, flags, descriptors, used, available, log };
                (id::SET_VRING_ADDR, addr.as_bytes().to_vec(), 0)
            }),
        3 => (id::SET_VRING_KICK..=id::SET_VRING_ERR, 0u64..5)
            .prop_map(|(id, ring)| (id, ring.to_ne_bytes().to_vec(), 1)),
        2 => prop::collection::vec(region.clone(), 1..4)
            .prop_map(|t| (id::SET_MEM_TABLE, table(&t), t.len())),
        2 => (id::ADD_MEM_REG..=id::REM_MEM_REG, region)
            .prop_map(|(id, r)| (id, single(r), usize::from(id == id::ADD_MEM_REG))),
        1 => prop::sample::select(vec![id::RESET_OWNER, id::RESET_DEVICE]).prop_map(|id| (id, Vec::new(), 0)),
        1 => (0u64..4).prop_map(|status| (id::SET_STATUS, status.to_ne_bytes().to_vec(), 0)),
        1 => Just((id::SET_LOG_BASE, LogArea { size: 64, offset: 0 }.as_bytes().to_vec(), 1)),
        2 => (0u32..48, prop::collection::vec(any::<u8>(), 0..60), 0usize..4),
    ];
    (need, body).prop_map(|(flags, (id, payload, fds))| (id, flags, payload, fds))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// The recorder asserts what a host is promised.
    #[test]
    fn any_conversation_keeps_the_promises(
        messages in prop::collection::vec(any_message(), 0..120),
        broken in prop::collection::vec(0u16..4, 0..2),
        late in prop::collection::vec(0u16..4, 0..2),
    ) {
        let mut talk = Talk::new();
        talk.tell(id::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
        talk.host.diary().broken = broken;
        talk.host.diary().late = late;
        for (id, flags, payload, fds) in messages {
            match talk.on(message(id, flags, &payload, fds)) {
                Ok(reply) => prop_assert!(flags == 0 || reply.answer.is_some(), "{} unanswered", name(id)),
                Err(_) => break,
            }
        }
        let _ = talk.session.close(&mut talk.host);
        prop_assert!(talk.host.diary().running.is_empty() && talk.host.diary().memory.is_empty());
    }
}
