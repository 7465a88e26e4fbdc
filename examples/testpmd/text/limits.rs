//! `show limits`: how much a peer can make of anything.

use std::fmt::Write;

use pmd::spec::{net, vhost_user as vu};
use pmd::{vhost, vring, worker};

use crate::forward::MAX_PORTS;

/// One line a limit; what is there now, where that is counted.
pub(crate) fn limits(ports: usize) -> String {
    let mapped = hugepages::sigbus::guarded();
    let all: [(&str, Option<usize>, usize); 15] = [
        ("ports", Some(ports), MAX_PORTS),
        ("queues of a core", None, worker::MAX_QUEUES),
        ("queue pairs of a port", None, net::MAX_QUEUE_PAIRS.into()),
        ("mappings of peers' files", Some(mapped), hugepages::sigbus::MAX_GUARDED),
        ("memory regions of a guest", None, vu::MAX_MEM_SLOTS),
        ("entries of a ring", None, vu::MAX_VRING_NUM as usize),
        ("descriptors walked for a chain", None, vring::MAX_WALK as usize),
        ("entries of an indirect table beyond a ring's", None, vring::MAX_INDIRECT as usize),
        ("IOTLB entries of a guest", None, vring::iotlb::MAX_ENTRIES),
        ("IOTLB misses a guest is asked about at a time", None, vring::iotlb::MAX_ASKED),
        ("bytes of a frame", None, net::MAX_FRAME as usize),
        ("bytes of a message", None, vu::MAX_PAYLOAD),
        ("descriptors of a message", None, vu::MAX_FDS),
        ("messages of a port before others' have their turn", None, vhost::MESSAGES_A_TURN),
        ("log lines a second, for each subject of a port", None, vhost::LINES as usize),
    ];
    let mut out = String::new();
    for (what, now, most) in all {
        let now = now.map_or_else(String::new, |now| format!("{now} of "));
        let _ = writeln!(out, "{what}: {now}{most}");
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_on_its_line() {
        let said = super::limits(3);
        assert!(said.contains("ports: 3 of ") && said.contains("memory regions of a guest: 509\n"), "{said}");
    }
}
