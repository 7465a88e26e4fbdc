//! Which queue feeds which, and on which core.

use crate::cli::{Lcore, Topology};

/// Packets of queue `rx.1` of port `rx.0` leave by queue `tx.1` of port `tx.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Stream {
    pub(crate) rx: (usize, u16),
    pub(crate) tx: (usize, u16),
}

/// A forwarding core and its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Share {
    pub(crate) lcore: Lcore,
    pub(crate) streams: Vec<Stream>,
}

/// The place to which the packets of place `i` of `n` go.
fn partner(topology: Topology, i: usize, n: usize) -> usize {
    match topology {
        Topology::Loop => i,
        Topology::Chained => (i + 1) % n,
        Topology::Paired if i % 2 == 1 => i - 1,
        // The last of an odd number of ports has nobody but itself.
        Topology::Paired if i + 1 == n => i,
        Topology::Paired => i + 1,
    }
}

/// Spreads the queues of `ports` over `lcores`, of which at most all are used. Queues that exchange
/// packets share a core, because a queue carries both directions.
pub(crate) fn spread(
    ports: &[usize],
    topology: Topology,
    (rxq, txq): (u16, u16),
    lcores: &[Lcore],
) -> Vec<Share> {
    let mut streams = Vec::new();
    for q in 0..rxq {
        for i in 0..ports.len() {
            let to = partner(topology, i, ports.len());
            streams.push(Stream { rx: (ports[i], q), tx: (ports[to], q % txq) });
        }
    }
    let groups = connected(&streams);
    let cores = lcores.len().min(groups.len());
    let mut shares = Vec::new();
    for (c, &lcore) in lcores.iter().enumerate().take(cores) {
        let mine = c * groups.len() / cores..(c + 1) * groups.len() / cores;
        let streams = groups[mine].iter().flatten().map(|&i| streams[i]).collect();
        shares.push(Share { lcore, streams });
    }
    shares
}

/// The streams in groups, such that no queue is in two of them, in the order of their first.
fn connected(streams: &[Stream]) -> Vec<Vec<usize>> {
    let mut group: Vec<usize> = (0..streams.len()).collect();
    for i in 0..streams.len() {
        for j in 0..i {
            let (a, b) = (streams[i], streams[j]);
            if [a.rx, a.tx].iter().any(|q| *q == b.rx || *q == b.tx) {
                let (low, high) = (group[i].min(group[j]), group[i].max(group[j]));
                group.iter_mut().filter(|g| **g == high).for_each(|g| *g = low);
            }
        }
    }
    let mut out: Vec<Vec<usize>> = Vec::new();
    for first in 0..streams.len() {
        let members: Vec<usize> = (0..streams.len()).filter(|&i| group[i] == first).collect();
        if !members.is_empty() {
            out.push(members);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread_over(cores: usize, ports: usize, topology: Topology, queues: (u16, u16)) -> Vec<Vec<String>> {
        let lcores: Vec<Lcore> = (1..=cores).map(|id| Lcore { id, cpu: id }).collect();
        let ports: Vec<usize> = (0..ports).collect();
        let shares = spread(&ports, topology, queues, &lcores);
        shares
            .iter()
            .map(|s| {
                let name = |s: &Stream| format!("{}.{}>{}.{}", s.rx.0, s.rx.1, s.tx.0, s.tx.1);
                s.streams.iter().map(name).collect()
            })
            .collect()
    }

    #[test]
    fn a_queue_is_on_one_core() {
        for (cores, ports, topology, queues, expected) in [
            (1, 2, Topology::Paired, (1, 1), vec![vec!["0.0>1.0", "1.0>0.0"]]),
            (2, 2, Topology::Paired, (1, 1), vec![vec!["0.0>1.0", "1.0>0.0"]]),
            (2, 2, Topology::Paired, (2, 2), vec![vec!["0.0>1.0", "1.0>0.0"], vec!["0.1>1.1", "1.1>0.1"]]),
            (2, 3, Topology::Paired, (1, 1), vec![vec!["0.0>1.0", "1.0>0.0"], vec!["2.0>2.0"]]),
            (3, 3, Topology::Chained, (1, 1), vec![vec!["0.0>1.0", "1.0>2.0", "2.0>0.0"]]),
            (2, 3, Topology::Loop, (1, 1), vec![vec!["0.0>0.0"], vec!["1.0>1.0", "2.0>2.0"]]),
            (2, 2, Topology::Paired, (2, 1), vec![vec!["0.0>1.0", "1.0>0.0", "0.1>1.0", "1.1>0.0"]]),
            (2, 1, Topology::Paired, (1, 2), vec![vec!["0.0>0.0"]]),
        ] {
            assert_eq!(spread_over(cores, ports, topology, queues), expected);
        }
        assert!(spread_over(2, 0, Topology::Paired, (1, 1)).is_empty());
    }
}
