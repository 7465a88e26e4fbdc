//! `show config fwd|rxtx|cores|txpkts`, and what `start` says.

use std::fmt::Write;

use crate::streams::Share;

/// `show config fwd`.
pub(crate) fn forwarding(
    mode: &str,
    ports: usize,
    shares: &[Share],
    peer: impl Fn(usize) -> [u8; 6],
) -> String {
    let streams: usize = shares.iter().map(|s| s.streams.len()).sum();
    let mut out = format!(
        "{mode} packet forwarding - ports={ports} - cores={} - streams={streams} - NUMA support enabled, \
         MP allocation mode: native\n",
        shares.len()
    );
    for share in shares {
        let n = share.streams.len();
        let _ = write!(out, "Logical Core {} (socket 0) forwards packets on {n} streams:", share.lcore.id);
        for s in &share.streams {
            let peer = super::mac(peer(s.tx.0));
            let _ = write!(
                out,
                "\n  RX P={}/Q={} (socket 0) -> TX P={}/Q={} (socket 0) peer={peer}",
                s.rx.0, s.rx.1, s.tx.0, s.tx.1
            );
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

/// Numbers of `show config rxtx`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub(crate) struct RxTx<'a> {
    pub(crate) mode: &'a str,
    pub(crate) burst: u16,
    pub(crate) cores: usize,
    pub(crate) ports: &'a [usize],
    pub(crate) rxq: u16,
    pub(crate) txq: u16,
    pub(crate) rxd: u16,
    pub(crate) txd: u16,
}

/// `show config rxtx`.
pub(crate) fn rxtx(config: RxTx<'_>) -> String {
    let RxTx { mode, burst, cores, ports, rxq, txq, rxd, txd } = config;
    let mut out = format!(
        "  {mode} packet forwarding packets/burst={burst}\n  \
         nb forwarding cores={cores} - nb forwarding ports={}\n",
        ports.len()
    );
    for port in ports {
        let _ = write!(
            out,
            "  port {port}: RX queue number: {rxq} Tx queue number: {txq}\n    \
             Rx offloads=0x0 Tx offloads=0x0\n    \
             RX queue: 0\n      \
             RX desc={rxd} - RX free threshold=0\n      \
             RX threshold registers: pthresh=0 hthresh=0  wthresh=0\n      \
             RX Offloads=0x0\n    \
             TX queue: 0\n      \
             TX desc={txd} - TX free threshold=0\n      \
             TX threshold registers: pthresh=0 hthresh=0  wthresh=0\n      \
             TX offloads=0x0 - TX RS bit threshold=0\n"
        );
    }
    out
}

/// `show config cores`.
pub(crate) fn cores(lcores: impl Iterator<Item = usize>) -> String {
    lcores.fold(String::from("List of forwarding lcores:"), |out, id| out + &format!("  {id}")) + "\n"
}

/// `show config txpkts`.
pub(crate) fn txpkts(lengths: &[u16]) -> String {
    let sizes: Vec<String> = lengths.iter().map(u16::to_string).collect();
    format!("Number of segments: {}\nSegment sizes: {}\nSplit packet: off\n", lengths.len(), sizes.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Lcore, Topology};
    use crate::streams::spread;

    #[test]
    fn forwarding_is_dpdks() {
        let lcores: Vec<Lcore> = (1..3).map(|id| Lcore { id, cpu: id }).collect();
        let shares = spread(&[0, 1], Topology::Paired, (1, 1), &lcores);
        insta::assert_snapshot!(forwarding("io", 2, &shares, |p| [2, 0, 0, 0, 0, p as u8]), @r"
        io packet forwarding - ports=2 - cores=1 - streams=2 - NUMA support enabled, MP allocation mode: native
        Logical Core 1 (socket 0) forwards packets on 2 streams:
          RX P=0/Q=0 (socket 0) -> TX P=1/Q=0 (socket 0) peer=02:00:00:00:00:01
          RX P=1/Q=0 (socket 0) -> TX P=0/Q=0 (socket 0) peer=02:00:00:00:00:00

        ");
    }

    #[test]
    fn rxtx_cores_and_txpkts_are_dpdks() {
        let config = RxTx { mode: "mac", burst: 64, cores: 1, ports: &[0], rxq: 1, txq: 1, rxd: 0, txd: 256 };
        insta::assert_snapshot!(rxtx(config), @r"
          mac packet forwarding packets/burst=64
          nb forwarding cores=1 - nb forwarding ports=1
          port 0: RX queue number: 1 Tx queue number: 1
            Rx offloads=0x0 Tx offloads=0x0
            RX queue: 0
              RX desc=0 - RX free threshold=0
              RX threshold registers: pthresh=0 hthresh=0  wthresh=0
              RX Offloads=0x0
            TX queue: 0
              TX desc=256 - TX free threshold=0
              TX threshold registers: pthresh=0 hthresh=0  wthresh=0
              TX offloads=0x0 - TX RS bit threshold=0
        ");
        assert_eq!(cores([1, 2].into_iter()), "List of forwarding lcores:  1  2\n");
        assert_eq!(txpkts(&[64, 128]), "Number of segments: 2\nSegment sizes: 64,128\nSplit packet: off\n");
    }
}
