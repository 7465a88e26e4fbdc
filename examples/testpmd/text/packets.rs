//! What `set verbose 1` prints of received packets.

use std::fmt::Write;

use hugepages::Buf;
use pmd::Batch;
use pmd::spec::net::{GSO_NONE, HDR_F_DATA_VALID};

use crate::headers::{Headers, L3, head_at, ip};

/// The packets of a burst, as DPDK's testpmd prints them.
pub(crate) fn received(port: usize, queue: u16, batch: &Batch<Buf>) -> String {
    let mut out = format!("port {port}/queue {queue}: received {} packets\n", batch.packets());
    let mut at = 0;
    while at < batch.len() {
        let (buffers, bytes) = batch.packet_at(at);
        packet(&mut out, queue, batch, at, buffers, bytes);
        at += buffers;
    }
    out
}

fn packet(out: &mut String, queue: u16, batch: &Batch<Buf>, at: usize, buffers: usize, bytes: u32) {
    let (head, n) = head_at(batch, at);
    let Some(first) = batch.get(at) else { return };
    let Some(h) = Headers::of(&head[..n]) else {
        let _ = writeln!(out, "  runt - pool=lender_{} - length={bytes} - nb_segs={buffers}", first.owner());
        return;
    };
    let address = |from: usize| super::mac(head[from..from + 6].try_into().expect("six bytes"));
    let _ = write!(
        out,
        "  src={} - dst={} - pool=lender_{} - type=0x{:04x} - length={bytes} - nb_segs={buffers} - sw ptype: {}",
        address(6),
        address(0),
        first.owner(),
        h.outer_type,
        ptype(&h),
    );
    let _ = write!(out, " - l2_len={}", h.l2_len);
    if h.l3_len > 0 {
        let _ = write!(out, " - l3_len={}", h.l3_len);
    }
    if h.l4_len > 0 {
        let _ = write!(out, " - l4_len={}", h.l4_len);
    }
    let offload = first.offload;
    let l4 = if offload.flags & HDR_F_DATA_VALID != 0 { "GOOD" } else { "UNKNOWN" };
    let lro = if offload.gso_type == GSO_NONE { "" } else { "RTE_MBUF_F_RX_LRO " };
    let _ = write!(
        out,
        " - Receive queue=0x{queue:x}\n  ol_flags: RTE_MBUF_F_RX_L4_CKSUM_{l4} RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN {lro}\
         RTE_MBUF_F_RX_OUTER_L4_CKSUM_UNKNOWN \n"
    );
}

/// DPDK's names of the layers, each with a space behind.
fn ptype(h: &Headers) -> String {
    let mut out = String::from(if h.vlan { "L2_ETHER_VLAN " } else { "L2_ETHER " });
    out += match h.l3 {
        L3::V4 if h.l3_len > 20 => "L3_IPV4_EXT ",
        L3::V4 => "L3_IPV4 ",
        L3::V6 => "L3_IPV6 ",
        L3::Other => "",
    };
    out += match h.proto {
        _ if h.fragment => "L4_FRAG ",
        ip::TCP if h.l4_len > 0 => "L4_TCP ",
        ip::UDP if h.l4_len > 0 => "L4_UDP ",
        _ => "",
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::testing::Bench;
    use etherparse::PacketBuilder;

    #[test]
    fn packets_are_printed_as_dpdk_does() {
        let mut bench = Bench::new();
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1000, 2000).write(&mut frame, &[7; 18]).unwrap();
        bench.push(&frame, 0);
        bench.push(&frame, 20);
        bench.push(&frame[..9], 0);
        let text =
            received(0, 1, &bench.batch).replace(&format!("lender_{}", bench.pool.owner()), "lender_1");
        insta::assert_snapshot!(text, @r"
        port 0/queue 1: received 3 packets
          src=02:00:00:00:00:02 - dst=02:00:00:00:00:01 - pool=lender_1 - type=0x0800 - length=60 - nb_segs=1 - sw ptype: L2_ETHER L3_IPV4 L4_UDP  - l2_len=14 - l3_len=20 - l4_len=8 - Receive queue=0x1
          ol_flags: RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN RTE_MBUF_F_RX_OUTER_L4_CKSUM_UNKNOWN 
          src=02:00:00:00:00:02 - dst=02:00:00:00:00:01 - pool=lender_1 - type=0x0800 - length=60 - nb_segs=3 - sw ptype: L2_ETHER L3_IPV4 L4_UDP  - l2_len=14 - l3_len=20 - l4_len=8 - Receive queue=0x1
          ol_flags: RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN RTE_MBUF_F_RX_OUTER_L4_CKSUM_UNKNOWN 
          runt - pool=lender_1 - length=9 - nb_segs=1
        ");
        bench.settle();
    }
}
