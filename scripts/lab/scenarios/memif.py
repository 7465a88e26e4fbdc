"""Our `memif` port and DPDK's `net_memif`, each as server and as client."""

import re
import signal
import time

from peer import Peer
from place import check, figure, need_peers, run_dir
from scenario import scenario
from testpmd import dpdk, hotring

RING = 1024
SIZES = (60, 9000)


class Memif:
    """Our testpmd with one memif port that returns every packet to its sender."""

    def __init__(self, role, queues=1, options=()):
        self.socket, self.role, self.queues = run_dir() / "memif.sock", role, queues
        self.secret = f"secret-{role}"
        self.pmd = hotring("device", [f"memif0,role={role},{self.common()},queues={queues}"],
                           ["--forward-mode=io", "--port-topology=loop", f"--rxq={queues}", f"--txq={queues}", *options])
        self.pmd.cmd("start")

    def common(self):
        return f"id=5,socket={self.socket},socket-abstract=no,secret={self.secret}"

    def peer(self, sizes=SIZES, **features):
        """DPDK at the other end, once the link is up."""
        role = "client" if self.role == "server" else "server"
        more = "".join(f",{k}={v}" for k, v in features.items())
        vdev = f"net_memif0,role={role},{self.common()}{more}"
        peer = Peer("memif", vdev, queues=self.queues, ring=RING, size=sizes, count=300)
        self.link("up")
        # DPDK's client makes room for what is to come when it is first asked for packets, not before.
        for line in ("set portlist 0", "set fwd rxonly", "start", "stop"):
            peer.pmd.cmd(line)
        return peer

    def link(self, state, timeout_s=30):
        end = time.monotonic() + timeout_s
        while f"Link status: {state}" not in (said := self.pmd.cmd("show port info 0")):
            check(time.monotonic() < end, f"our link is not {state}: {said[-300:]}")
            time.sleep(0.05)

    def faults(self):
        found = re.search(r"faults: (\d+)", self.pmd.cmd("show port xstats 0"))
        return int(found.group(1))

    def leave(self):
        check(self.faults() == 0, f"{self.faults()} faults of a peer that has none")
        self.pmd.cmd("stop")
        self.pmd.quit()


def cell(device, label, packets, rounds, **features):
    """Frames circulate and are counted, then numbered ones of all sizes are compared."""
    # DPDK's client loses the chains of what it receives when it is to copy nothing, from DPDK's server as well.
    sizes = (60, 2048) if features else SIZES
    peer = device.peer(sizes, **features)
    rate = peer.circulate(packets, 64)
    returned = peer.exchange_often(rounds)
    peer.quit()
    device.link("down")
    figure(f"{label}: {packets:,} of 64 B circulated at {rate:.2f} Mpps, {returned:,} of {sizes[0]} to {sizes[1]} B "
           "compared, none lost")


def killed(device, label, times):
    """The peer is killed with frames on their way, and the next one finds everything in order."""
    for _ in range(times):
        peer = device.peer()
        peer.pmd.cmd("set fwd io retry")
        peer.pmd.cmd("start tx_first 4")
        peer.pmd.wait_for(lambda c: c[0]["RX-packets"] > 1000, "traffic")
        peer.pmd.child.send_signal(signal.SIGKILL)
        peer.pmd.kill()
        if device.role == "client":
            device.socket.unlink()  # DPDK's server does not replace one that was left
        device.link("down")
    peer = device.peer()
    returned = peer.exchange_often(2)
    peer.quit()
    figure(f"{label}: DPDK killed {times} times under traffic; then {returned:,} compared, none lost")


@scenario(need_peers, seconds=300, full_seconds=600)
def memif_dpdk(full):
    """Our memif port against DPDK's net_memif in both roles: chained frames, several queues, kill -9 and again."""
    packets, rounds = (3_000_000, 30) if full else (200_000, 3)
    for role in ("server", "client"):
        for queues in (1, 4):
            device = Memif(role, queues)
            # DPDK's client can send from its own buffers, which are the regions then.
            kinds = ({}, {"zero-copy": "yes"}) if role == "server" else ({},)
            for features in kinds:
                more = "".join(f", DPDK's {k}" for k in features)
                cell(device, f"our {role}, {queues} queue(s){more}", packets, rounds, **features)
            if queues == 1:
                killed(device, f"our {role}", 10 if full else 2)
            device.leave()
        device = Memif(role, options=["--idle-sleep"])
        cell(device, f"our {role} that sleeps", packets // 10, 1)
        device.leave()
    theirs = between_dpdk(packets)
    figure(f"DPDK's server and client in the place of ours: {theirs:.2f} Mpps")


def between_dpdk(packets):
    """The rate at which frames circulate between two of DPDK's."""
    common = f"id=5,socket={run_dir() / 'theirs.sock'},socket-abstract=no"
    device = dpdk("dpdk", [f"net_memif0,role=server,{common}"],
                  ["--forward-mode=io", "--port-topology=loop", f"--rxd={RING}", f"--txd={RING}"], core=0)
    device.cmd("start")
    peer = Peer("memif", f"net_memif0,role=client,{common}", ring=RING, size=SIZES, count=64)
    for line in ("set portlist 0", "set fwd rxonly", "start", "stop"):
        peer.pmd.cmd(line)
    rate = peer.circulate(packets, 64)
    peer.quit()
    device.cmd("stop")
    device.quit()
    return rate
