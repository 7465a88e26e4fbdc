//! Modes `mac`, `macswap` and `5tswap`: new addresses on every packet. Checksums stay right: the first
//! two touch none, and the third swaps words of the same sum.

use hugepages::Buf;

use super::{Rewrite, Route};
use crate::headers::{HEAD, Headers, L3};

pub(super) struct Mac;

impl Rewrite for Mac {
    fn rewrite(&mut self, route: &Route, packet: &mut Buf) {
        // A runt goes on as it is.
        let _ = packet.poke(0, [route.peer, route.mac]);
    }
}

pub(super) struct MacSwap;

impl Rewrite for MacSwap {
    fn rewrite(&mut self, _: &Route, packet: &mut Buf) {
        if let Some([dst, src]) = packet.peek::<[[u8; 6]; 2]>(0) {
            let _ = packet.poke(0, [src, dst]);
        }
    }
}

pub(super) struct FiveTuple;

impl Rewrite for FiveTuple {
    fn rewrite(&mut self, _: &Route, packet: &mut Buf) {
        let mut head = [0; HEAD];
        let n = packet.read(0, &mut head);
        let head = &mut head[..n];
        let Some(h) = Headers::of(head) else { return };
        swap(head, 0, 6);
        match h.l3 {
            L3::V4 => swap(head, h.l2_len + 12, 4),
            L3::V6 => swap(head, h.l2_len + 8, 16),
            L3::Other => {}
        }
        if h.l4_len > 0 {
            swap(head, h.l4(), 2);
        }
        packet.write(0, head);
    }
}

/// Swaps two neighbours of `len` bytes each, of which the first is at `at`.
fn swap(bytes: &mut [u8], at: usize, len: usize) {
    let (a, b) = bytes[at..at + 2 * len].split_at_mut(len);
    a.swap_with_slice(b);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MAC, PEER, frame, run};
    use crate::cli::Mode;
    use etherparse::PacketBuilder;

    #[test]
    fn mac_addresses_are_set_or_swapped() {
        let frames = [frame(60, 1), frame(1514, 2), frame(9000, 3)];
        for cut in [0, 40, 700] {
            for (sent, got) in frames.iter().zip(run(Mode::Mac, &frames, cut)) {
                assert_eq!((&got[..6], &got[6..12], &got[12..]), (&PEER[..], &MAC[..], &sent[12..]));
            }
            for (sent, got) in frames.iter().zip(run(Mode::Macswap, &frames, cut)) {
                assert_eq!((&got[..6], &got[6..12], &got[12..]), (&sent[6..12], &sent[..6], &sent[12..]));
            }
        }
        // Runts go on.
        assert_eq!(run(Mode::Macswap, &[vec![1; 11]], 0), [vec![1; 11]]);
    }

    #[test]
    fn the_five_tuple_is_turned_round_and_its_checksums_hold() {
        let eth = |flip| {
            let (a, b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
            if flip { PacketBuilder::ethernet2(b, a) } else { PacketBuilder::ethernet2(a, b) }
        };
        let id = etherparse::VlanId::try_new(7).unwrap();
        let build = |flip: bool| {
            let two = |a: u8, b: u8| if flip { (b, a) } else { (a, b) };
            let ((a, b), (c, d)) = (two(1, 2), two(30, 40));
            let (mut v4, mut v6, mut arp) = (Vec::new(), Vec::new(), Vec::new());
            let builder = eth(flip).single_vlan(id).ipv4([a; 4], [b; 4], 9).udp(c.into(), d.into());
            builder.write(&mut v4, &[9; 30]).unwrap();
            let builder = eth(flip).ipv6([a; 16], [b; 16], 9).tcp(c.into(), d.into(), 5, 6);
            builder.write(&mut v6, &[9; 31]).unwrap();
            arp.extend_from_slice(&v6[..12]);
            arp.extend_from_slice(&[8, 6, 0, 1]);
            [v4, v6, arp]
        };
        for cut in [0, 20] {
            assert_eq!(run(Mode::FiveTuple, &build(false), cut), build(true));
        }
    }
}
