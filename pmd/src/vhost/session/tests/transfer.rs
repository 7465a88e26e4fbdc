//! The state of the device, carried to another host.

use std::io::{Read, Write};

use super::*;
use crate::spec::vhost_user::{LOAD, SAVE, StateTransfer};

fn how(direction: u32, phase: u32) -> Vec<u8> {
    StateTransfer { direction, phase }.as_bytes().to_vec()
}

impl Talk {
    /// The channel, as a file that was received.
    fn channel(&mut self, direction: u32) -> File {
        let reply = self.on(message(id::SET_DEVICE_STATE_FD, NEED_REPLY, &how(direction, 0), 1)).unwrap();
        let answer = reply.answer.unwrap();
        #[rustfmt::skip]
        assert_eq!(answer.encode(), [42, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        answer.fd().unwrap().try_clone().unwrap().into()
    }

    fn checked(&mut self) -> Vec<u8> {
        self.on(message(id::CHECK_DEVICE_STATE, 0, &[], 0)).unwrap().answer.unwrap().encode()
    }
}

const GOOD: [u8; 20] = [43, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const BAD: [u8; 20] = [43, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn what_was_saved_is_read_to_its_end_and_loaded() {
    let mut talk = Talk::ready(SPLIT);
    let state: Vec<u8> = (0..70_000u32).map(|i| i as u8).collect();
    talk.host.diary().state = state.clone();
    let mut read = Vec::new();
    talk.channel(SAVE).read_to_end(&mut read).unwrap();
    assert!(read == state);
    assert_eq!(talk.checked(), GOOD);
    let mut there = Talk::ready(SPLIT);
    // In pieces, as a pipe would bring it.
    let mut channel = there.channel(LOAD);
    read.chunks(1000).for_each(|piece| channel.write_all(piece).unwrap());
    drop(channel);
    assert!(there.host.asked().is_empty());
    assert_eq!(there.checked(), GOOD);
    assert_eq!(there.host.asked(), [Asked::Load(state)]);
}

#[test]
fn what_is_no_transfer_is_refused_and_answered() {
    let mut talk = Talk::ready(SPLIT);
    let refused = |talk: &mut Talk, payload: &[u8], fds| {
        let reply = talk.on(message(id::SET_DEVICE_STATE_FD, 0, payload, fds)).unwrap();
        let answer = reply.answer.unwrap();
        assert!(answer.fd().is_none() && reply.refused.len() == 1);
        assert_eq!(answer.encode()[12..], [1, 1, 0, 0, 0, 0, 0, 0]);
    };
    for (direction, phase) in [(2, 0), (u32::MAX, 0), (SAVE, 1), (LOAD, u32::MAX)] {
        refused(&mut talk, &how(direction, phase), 1);
    }
    for (size, fds) in [(0, 1), (7, 1), (9, 1), (8, 0), (8, 2), (8, 9)] {
        refused(&mut talk, &vec![0; size], fds);
    }
    assert_eq!(talk.checked(), BAD, "nothing is under way");
    assert_eq!(talk.on(message(id::CHECK_DEVICE_STATE, 0, &[0], 0)).unwrap().answer.unwrap().encode(), BAD);
    // Too long; refused by the device; gone before it is checked; checked twice.
    talk.channel(LOAD).set_len((1 << 20) + 1).unwrap();
    assert_eq!(talk.checked(), BAD);
    talk.channel(LOAD).write_all(b"nonsense").unwrap();
    talk.host.diary().unmappable = true;
    assert_eq!(talk.checked(), BAD);
    talk.host.diary().unmappable = false;
    drop(talk.channel(LOAD));
    assert_eq!(talk.checked(), GOOD);
    assert_eq!(talk.checked(), BAD);
    // A device at work neither saves nor loads.
    let channel = talk.channel(LOAD);
    talk.run(0);
    assert_eq!(talk.checked(), BAD);
    drop(channel);
    refused(&mut talk, &how(SAVE, 0), 1);
    let mut without = Talk::new();
    refused(&mut without, &how(SAVE, 0), 1);
    assert_eq!(without.checked(), BAD);
}
