//! Modes `txonly` and `flowgen`: UDP frames out of nothing.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use hugepages::Buf;
use hugepages::pool::MAX_FRAMES;
use pmd::Batch;
use pmd::offload::Sum;
use pmd::worker::{Outbox, QueueId, Stage};

use super::{Route, Routes};
use crate::cli::Options;

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
/// Bytes of a frame's check sequence: DPDK's flowgen counts it as part of the frame.
const FCS: usize = 4;

/// The bytes of a UDP frame.
struct Frame(Vec<u8>);

impl Frame {
    fn address(&mut self, dst: [u8; 6], src: [u8; 6], ip_src: Ipv4Addr, ip_dst: Ipv4Addr) {
        let frame = &mut self.0;
        frame[..6].copy_from_slice(&dst);
        frame[6..12].copy_from_slice(&src);
        frame[26..30].copy_from_slice(&ip_src.octets());
        frame[30..34].copy_from_slice(&ip_dst.octets());
        frame[24..26].fill(0);
        let mut sum = Sum::default();
        sum.add(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.bytes());
    }
}

/// A UDP frame that is sent again and again, with other addresses.
struct Template {
    frame: Frame,
    segments: Vec<u16>,
    /// Segments of the frame that is being made, or frames of one segment.
    parts: Batch<Buf>,
    /// Of our frames that hold one of one segment, by number: they need new headers only.
    held: Option<(NonZeroU16, Vec<bool>)>,
}

impl Template {
    /// `lengths` are those of the segments; the headers are the first 42 bytes of them all.
    fn new(lengths: &[u16], udp: (u16, u16)) -> Template {
        let len: usize = lengths.iter().map(|&l| usize::from(l)).sum();
        let mut frame = vec![0; len];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..16].copy_from_slice(&[0x45, 0]);
        // Frames longer than an IPv4 packet say the most that it can.
        let be = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        frame[16..18].copy_from_slice(&be(len - 14));
        frame[22..24].copy_from_slice(&[64, 17]);
        frame[34..36].copy_from_slice(&udp.0.to_be_bytes());
        frame[36..38].copy_from_slice(&udp.1.to_be_bytes());
        frame[38..40].copy_from_slice(&be(len - 34));
        Template { frame: Frame(frame), segments: lengths.to_vec(), parts: Batch::default(), held: None }
    }

    /// Sends up to `n` frames, before each of which `next` is told. Nobody but this template writes to our
    /// frames if they are `ours`.
    fn burst(
        &mut self,
        n: usize,
        to: QueueId,
        out: &mut Outbox,
        ours: bool,
        mut next: impl FnMut(&mut Frame),
    ) {
        if self.segments.len() > 1 {
            for _ in 0..n {
                next(&mut self.frame);
                if !self.send(to, out) {
                    break;
                }
            }
            return;
        }
        let Template { frame, parts, held, .. } = self;
        out.frames(n, frame.0.len() as u32, parts);
        for buf in parts.iter_mut() {
            next(frame);
            let (owner, held) = held.get_or_insert_with(|| (buf.owner(), vec![false; MAX_FRAMES]));
            let known = buf.owner() == *owner && std::mem::replace(&mut held[usize::from(buf.id())], ours);
            buf.write(0, if known { &frame.0[..HEADERS] } else { &frame.0 });
        }
        out.send_all(to, parts);
    }

    /// Sends it; `false`: no buffers of our own are left.
    fn send(&mut self, to: QueueId, out: &mut Outbox) -> bool {
        let mut at = 0;
        for (i, &len) in self.segments.iter().enumerate() {
            let Some(mut part) = out.frame(len.into()) else {
                while let Some(mut part) = self.parts.pop_front() {
                    part.set_more(!self.parts.is_empty());
                    out.drop(part);
                }
                return false;
            };
            part.write(0, &self.frame.0[at..at + usize::from(len)]);
            part.set_more(i + 1 < self.segments.len());
            self.parts.push(part);
            at += usize::from(len);
        }
        while let Some(part) = self.parts.pop_front() {
            out.send(to, part);
        }
        true
    }
}

pub(super) struct TxOnly {
    routes: Routes,
    template: Template,
    burst: u16,
    ips: (Ipv4Addr, Ipv4Addr),
    many: bool,
    next: u8,
    alone: bool,
}

impl TxOnly {
    /// `alone`: no other stage runs on its core, between its bursts.
    pub(super) fn new(routes: Routes, options: &Options, alone: bool) -> TxOnly {
        TxOnly {
            routes,
            template: Template::new(&options.txpkts, options.tx_udp),
            burst: options.burst,
            ips: options.tx_ip,
            many: options.txonly_multi_flow,
            next: 0,
            alone,
        }
    }
}

impl Stage for TxOnly {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.drop_all(batch);
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        let TxOnly { routes, template, burst, ips, many, next, alone } = self;
        for &Route { to, mac, peer, .. } in &routes.all {
            template.frame.address(peer, mac, ips.0, ips.1);
            template.burst((*burst).into(), to, out, *alone, |frame| {
                if *many {
                    // As DPDK does: the last byte of the source address runs.
                    let [a, b, c, _] = ips.0.octets();
                    *next = next.wrapping_add(1);
                    frame.address(peer, mac, Ipv4Addr::new(a, b, c, *next), ips.1);
                }
            });
        }
        true
    }
}

pub(super) struct FlowGen {
    routes: Routes,
    template: Template,
    burst: u16,
    flows: u32,
    next: u32,
}

impl FlowGen {
    pub(super) fn new(routes: Routes, options: &Options) -> FlowGen {
        let len: usize = options.txpkts.iter().map(|&l| usize::from(l)).sum();
        let len = (len - FCS).max(HEADERS).min(usize::from(u16::MAX));
        let template = Template::new(&[len as u16], (1000, 1001));
        FlowGen { routes, template, burst: options.burst, flows: options.flowgen_flows, next: 0 }
    }
}

impl Stage for FlowGen {
    fn burst(&mut self, _: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.drop_all(batch);
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        // The addresses of DPDK's flowgen.
        let (src, dst) = ([0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 1]);
        let FlowGen { routes, template, burst, flows, next } = self;
        for route in &routes.all {
            template.burst((*burst).into(), route.to, out, true, |frame| {
                let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 253, 0, 0).to_bits().wrapping_add(*next));
                frame.address(dst, src, Ipv4Addr::new(10, 254, 0, 0), ip);
                *next = if *next + 1 < *flows { *next + 1 } else { 0 };
            });
        }
        true
    }
}

/// A stage that sends some bursts before it does what it does.
pub(super) struct First {
    pub(super) maker: TxOnly,
    pub(super) left: u32,
    pub(super) stage: Box<dyn Stage>,
}

impl Stage for First {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        self.stage.burst(from, batch, out);
    }

    fn tick(&mut self, out: &mut Outbox) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return self.maker.tick(out);
        }
        self.stage.tick(out)
    }

    fn flush(&mut self, out: &mut Outbox) {
        self.stage.flush(out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MAC, PEER, options, run_with};
    use super::*;
    use crate::cli::Mode;
    use etherparse::{NetSlice, SlicedPacket};

    #[test]
    fn txonly_sends_the_frames_of_txpkts() {
        for lengths in [vec![64], vec![20, 30, 100], vec![42], vec![9000]] {
            let options = Options { txpkts: lengths.clone(), ..options(Mode::Txonly) };
            let got = run_with(&options, &[], 0, 40);
            for frame in &got {
                assert_eq!(frame.len(), lengths.iter().map(|&l| usize::from(l)).sum::<usize>());
                assert_eq!((&frame[..6], &frame[6..12]), (&PEER[..], &MAC[..]));
                let packet = SlicedPacket::from_ethernet(frame).unwrap();
                let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!() };
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                assert_eq!(header.source, [198, 18, 0, 1]);
                assert!(frame[42..].iter().all(|&b| b == 0));
            }
        }
    }

    #[test]
    fn flowgen_walks_through_its_flows_and_txonly_through_sources() {
        let options = Options { flowgen_flows: 5, ..options(Mode::Flowgen) };
        let got = run_with(&options, &[vec![1; 60]], 0, 12);
        let last: Vec<u8> = got.iter().take(12).map(|frame| frame[33]).collect();
        assert_eq!(last, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
        assert!(got.iter().all(|frame| frame.len() == 60 && frame[..6] == [0, 1, 2, 3, 4, 1]));
        let options = Options { txonly_multi_flow: true, ..super::super::testing::options(Mode::Txonly) };
        let got = run_with(&options, &[], 0, 12);
        let last: Vec<u8> = got.iter().take(12).map(|frame| frame[29]).collect();
        assert!(last.windows(2).all(|w| w[1] == w[0] + 1), "{last:?}");
    }
}
