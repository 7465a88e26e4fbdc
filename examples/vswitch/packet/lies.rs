//! Frames of any bytes through the switch's own eyes: read, rewritten by any steps, and tracked. Headers that it sees
//! lie in the frame, a head knows of itself what a new look at it would say, a checksum that was right stays right,
//! and no two connections answer to the same packet.

use hugepages::Offload;

use super::parse::{HEAD, parse};
use super::rewrite::{Head, ROOM};
use crate::vswitch::conntrack::{Beyond, Conntrack};
use crate::vswitch::flow::action::{Nat, Side};
use crate::vswitch::flow::key::ether;
use crate::vswitch::flow::{Field, Key};
use crate::vswitch::pipeline::op::CtOp;

/// The bytes that say what happens.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// What is missing is zero.
    fn number(&mut self, bytes: usize) -> u128 {
        (0..bytes).fold(0, |number, _| number << 8 | u128::from(self.byte().unwrap_or(0)))
    }
}

/// The sum of an IPv4 header that lies at `l3`, whole: 0xffff, if it is right.
fn header_sum(frame: &[u8], l3: usize) -> Option<u16> {
    let header = frame.get(l3..l3 + usize::from(frame.get(l3)? & 15) * 4)?;
    let mut sum: u32 = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Some(sum as u16)
}

/// What a frame says, as far as the switch reads.
fn look(frame: &[u8], size: usize) -> Key {
    let mut key = Key::default();
    let seen = &frame[..frame.len().min(HEAD)];
    let layers = parse(seen, size, &mut key);
    let inside = layers.l2_len <= seen.len() && layers.l3 <= seen.len().max(14) && layers.end <= size;
    assert!(
        inside && (layers.l4 == 0 || layers.l3 < layers.l4 && layers.l4 <= layers.end),
        "{layers:?}, {size}"
    );
    key
}

/// One step of rewriting; whether it was only fields that changed.
fn rewrite(head: &mut Head, step: u8, script: &mut Script<'_>) -> bool {
    let kinds =
        [ether::VLAN, ether::QINQ, ether::MPLS, ether::MPLS_MULTICAST, ether::IPV4, ether::IPV6, ether::ARP];
    let kind = kinds[usize::from(step >> 4) % kinds.len()];
    let before = head.size();
    let (done, by) = match step % 8 {
        0 => (head.push_vlan(kind, script.number(2) as u16), 4),
        1 => (head.pop_vlan(), -4),
        2 => (head.push_mpls(kind, script.number(4) as u32), 4),
        3 => (head.pop_mpls(kind), -4),
        4 => {
            let bytes: Vec<u8> = (0..script.number(1) % 70).map(|_| script.number(1) as u8).collect();
            (head.encapsulate(&bytes), bytes.len() as i64)
        }
        5 => {
            let n = script.number(1) as usize;
            (head.decapsulate(n), -(n as i64))
        }
        _ => {
            let field = Field::ALL[script.number(1) as usize % Field::ALL.len()];
            head.set_field(field, script.number(16), script.number(2) << 112 | script.number(2));
            assert_eq!(head.size(), before, "a field that is set moves nothing");
            return true;
        }
    };
    let grown = if done { by } else { 0 };
    assert_eq!(head.size() as i64, before as i64 + grown, "step {step}: {done}");
    false
}

fn rewritten(frame: &[u8], size: usize, offload: Offload, mut script: Script<'_>) {
    let mut head = Head::new(frame, size, offload);
    let mut steps = 0;
    while let Some(step) = script.byte() {
        let right = |head: &Head| {
            let key = look(head.bytes(), head.size());
            let mut other = Key::default();
            let layers = parse(&head.bytes()[..head.bytes().len().min(HEAD)], head.size(), &mut other);
            let v4 = key.ether_type() == ether::IPV4 && layers.l4 > 0;
            v4 && header_sum(head.bytes(), layers.l3) == Some(0xffff)
        };
        let was = right(&head);
        if rewrite(&mut head, step, &mut script) {
            assert!(!was || right(&head), "a header's checksum was right before a field was set");
        }
        assert!(head.bytes().len() <= ROOM + HEAD && head.bytes().len() <= head.size());
        steps += 1;
        if steps == 64 {
            break;
        }
    }
}

/// Frames that differ in a few bytes, through a tracker of connections.
fn tracked(frame: &[u8], size: usize, mut script: Script<'_>) {
    let mut frame = frame.to_vec();
    let (mut tracker, mut now) = (Conntrack::default(), 0);
    tracker.limit(0, Some(40));
    let mut steps = 0;
    while let Some(step) = script.byte() {
        if step & 1 != 0 && !frame.is_empty() {
            let at = script.number(1) as usize % frame.len();
            frame[at] = script.number(1) as u8;
        }
        // The answer.
        if step & 2 != 0 && frame.len() >= 38 && frame[12..14] == [8, 0] {
            let (sources, targets) = frame[26..34].split_at_mut(4);
            sources.swap_with_slice(targets);
            let (from, to) = frame[34..38].split_at_mut(2);
            from.swap_with_slice(to);
        }
        now += u64::from(step >> 6) * 20_000;
        let mut key = look(&frame, size);
        let side = [None, Some(Side::Src), Some(Side::Dst)][usize::from(step >> 3) % 3];
        let ports = (step & 0x20 != 0).then_some((100, 103));
        let nat = Nat { side, addrs: None, ports, random: false, ..Nat::default() };
        let op = CtOp {
            zone: 0,
            commit: step & 4 != 0,
            force: step & 0x10 != 0,
            mark: (1, 1),
            label: (2, 2),
            nat: side.map(|_| nat),
            alg: 0,
        };
        let mut layers = Key::default();
        let l4 = parse(&frame[..frame.len().min(HEAD)], size, &mut layers).l4;
        let beyond = Beyond::of(&key, frame.get(l4..).unwrap_or(&[]));
        tracker.track(&op, &mut key, &beyond, now);
        assert!(tracker.count(0) <= 40);
        tracker.check();
        if step == 0xff {
            tracker.age(now);
        }
        steps += 1;
        if steps == 200 {
            break;
        }
    }
    tracker.flush(None);
    tracker.check();
    assert_eq!(tracker.count(0), 0);
}

/// The first bytes choose what is done, and how long the frame is; then the frame, then steps.
pub fn run(data: &[u8]) {
    let Some((&[what, len, beyond, flags], data)) = data.split_first_chunk::<4>() else { return };
    let (frame, script) = data.split_at(data.len().min(usize::from(len)));
    // Bytes of a frame that is longer than what is looked at are nowhere.
    let size = frame.len() + if frame.len() >= HEAD - 1 { usize::from(beyond) * 8 } else { 0 };
    let first = &frame[..frame.len().min(HEAD)];
    look(first, size);
    let offload = Offload { flags: flags & 1, csum_start: u16::from(beyond), ..Offload::default() };
    if what & 1 == 0 {
        rewritten(first, size, offload, Script(script));
    } else {
        tracked(first, size, Script(script));
    }
}

#[cfg(test)]
mod tests {
    include!("../../../fuzz/replay.rs");

    #[test]
    fn frames_of_all_kinds() {
        replay("switch", super::run);
    }
}
