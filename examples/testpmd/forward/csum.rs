//! Mode `csum`: completes checksums that the sender left open, verifies the others.
//!
//! A packet with a wrong checksum is counted and sent on as it came: repaired, its damage would reach
//! the receiver unseen. A checksum that cannot be completed, because the sender's numbers point outside
//! the packet, drops it. Packets to be segmented keep their offload: the segments get their checksums
//! where they are made.

use std::sync::Arc;

use hugepages::{Buf, Offload};
use pmd::Batch;
use pmd::port::Count;
use pmd::spec::net::{GSO_NONE, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM};
use pmd::worker::{Outbox, QueueId, Stage};

use super::{MAX_PORTS, Routes, port_queue, send_first};
use crate::sums::{complete, verify};

/// Wrong checksums found by one core.
#[derive(Debug)]
pub(crate) struct Checks {
    /// By port: of IPv4 headers, and of TCP or UDP.
    bad: Vec<(Count, Count)>,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { bad: (0..MAX_PORTS).map(|_| Default::default()).collect() }
    }
}

impl Checks {
    /// Of a port: IPv4 headers, and TCP or UDP.
    pub(crate) fn bad(&self, port: usize) -> (u64, u64) {
        let (ip, l4) = &self.bad[port];
        (ip.get(), l4.get())
    }
}

pub(super) struct Csum {
    routes: Routes,
    checks: Arc<Checks>,
}

impl Csum {
    pub(super) fn new(routes: Routes, checks: Arc<Checks>) -> Csum {
        Csum { routes, checks }
    }
}

impl Stage for Csum {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let Some((_, route)) = self.routes.find(from) else { return };
        let (bad_ip, bad_l4) = &self.checks.bad[port_queue(from).0];
        while let Some(first) = batch.front() {
            let Offload { flags, gso_type, .. } = first.offload;
            let open = flags & HDR_F_NEEDS_CSUM != 0;
            if open && gso_type == GSO_NONE {
                let Some(mut packet) = out.own(batch) else { continue };
                if complete(&mut packet) {
                    out.send(route.to, packet);
                } else {
                    bad_l4.add(1);
                    out.drop(packet);
                }
                continue;
            }
            let (ip_good, l4_good) = verify(batch, !open && flags & HDR_F_DATA_VALID == 0);
            bad_ip.add(u64::from(!ip_good));
            bad_l4.add(u64::from(!l4_good));
            send_first(route.to, batch, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Sent, run_checked};
    use super::*;
    use crate::cli::Mode;
    use etherparse::PacketBuilder;
    use pmd::offload::Sum;

    fn udp4() -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.udp(1, 2).write(&mut out, &[7; 601]).unwrap();
        out
    }

    fn tcp6() -> Vec<u8> {
        let mut out = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        builder.tcp(1, 2, 3, 4).write(&mut out, &[7; 1000]).unwrap();
        // Padding behind the packet is not summed.
        out.extend_from_slice(&[0xee; 5]);
        out
    }

    #[test]
    fn right_and_wrong_checksums_are_told_apart_and_sent_as_they_are() {
        let flip = |mut frame: Vec<u8>, at: usize| {
            frame[at] ^= 0x10;
            frame
        };
        let mut none = udp4();
        none[40..42].fill(0);
        for (frame, bad) in [
            (udp4(), (0, 0)),
            (tcp6(), (0, 0)),
            (none, (0, 0)),
            (flip(udp4(), 300), (0, 1)),
            (flip(udp4(), 22), (1, 0)),
            (flip(tcp6(), 600), (0, 1)),
            (flip(tcp6(), 1073), (0, 1)),
            (flip(tcp6(), 1075), (0, 0)),
            (udp4()[..100].to_vec(), (0, 1)),
            (udp4()[..30].to_vec(), (0, 0)),
            (vec![1; 60], (0, 0)),
        ] {
            for cut in [0, 13, 64, 500] {
                let sent = Sent { bytes: frame.clone(), offload: Offload::default() };
                assert_eq!(run_checked(Mode::Csum, &[sent], cut), (vec![frame.clone()], bad), "cut {cut}");
            }
        }
    }

    #[test]
    fn open_checksums_are_completed_or_the_packet_is_dropped() {
        let (whole, mut open) = (udp4(), udp4());
        // What a kernel leaves: the sum of the pseudo header.
        let mut sum = Sum::default();
        sum.add(&whole[26..34]);
        sum.add_word(17);
        sum.add_word(609);
        open[40..42].copy_from_slice(&sum.partial().to_be_bytes());
        let offload = |csum_start, csum_offset| Offload {
            flags: HDR_F_NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Offload::default()
        };
        for cut in [0, 41, 500] {
            let sent = Sent { bytes: open.clone(), offload: offload(34, 6) };
            assert_eq!(run_checked(Mode::Csum, &[sent], cut), (vec![whole.clone()], (0, 0)));
            for (start, offset) in [(34, 60_000), (643, 0), (65_535, 65_535)] {
                let sent = Sent { bytes: open.clone(), offload: offload(start, offset) };
                assert_eq!(run_checked(Mode::Csum, &[sent], cut), (vec![], (0, 1)));
            }
        }
    }
}
