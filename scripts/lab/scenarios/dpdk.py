"""DPDK's virtio-user driver against our `vhost` port.

Every cell of the matrix is a fresh driver process with other features on the same socket, so that each is a
reconnection too. A cell counts (a constant number of frames circulates, none may go missing) and compares (numbered
frames come back in order and byte for byte).
"""

import itertools
import signal
import time

from peer import Peer
from place import Unable, check, cpu_flags, figure, need_peers, run_dir
from scenario import scenario
from testpmd import dpdk, hotring


class Device:
    """Our testpmd with one vhost port that returns every packet to its sender."""

    def __init__(self, queues=1, mode="io", ring=1024):
        self.socket, self.queues = run_dir() / "vm0.sock", queues
        self.pmd = hotring("device", [f"vhost0,iface={self.socket},queues={queues}"],
                           [f"--forward-mode={mode}", "--port-topology=loop", f"--rxq={queues}", f"--txq={queues}",
                            f"--rxd={ring}", f"--txd={ring}"])
        self.pmd.cmd("start")

    def driver(self, **features):
        """The --vdev of a virtio-user that connects here."""
        options = {"path": self.socket, "queues": self.queues, **features}
        if options["queues"] > 1:
            options["cq"] = 1
        return "net_virtio_user0," + ",".join(f"{k}={v}" for k, v in options.items())

    def leave(self):
        self.pmd.cmd("stop")
        self.pmd.quit()
        check(not self.socket.exists(), f"{self.socket} is still there after quit")


def cell(device, label, features, packets, size=64, count=20000, wire=64, queues=None, **how):
    """One cell; prints its figure."""
    ring = features.get("queue_size", 256)
    queues = queues or device.queues
    peer = Peer("virtio-user", device.driver(queues=queues, **features), queues=queues, ring=ring, size=size,
                count=count, **how)
    rate = peer.circulate(packets, wire)
    returned = peer.exchange()
    peer.quit()
    figure(f"{label}: {packets:,} of {wire} B circulated at {rate:.2f} Mpps, {returned:,} compared, none lost")


def layouts(layout):
    return {"split": {"packed_vq": 0}, "packed": {"packed_vq": 1}}[layout]


def features_matrix(layout, full):
    device = Device()
    packets = 2_000_000 if full else 300_000
    for mrg, in_order in itertools.product((0, 1), (0, 1)):
        for size in (256, 1024) if full else (256,):
            features = {**layouts(layout), "mrg_rxbuf": mrg, "in_order": in_order, "queue_size": size}
            label = f"{layout} mrg_rxbuf={mrg} in_order={in_order} ring={size}"
            cell(device, label, features, packets, size=(64, 1518), count=100_000 if full else 20_000)
    device.leave()


@scenario(need_peers, seconds=60, full_seconds=180)
def dpdk_split(full):
    """DPDK virtio-user on split rings: mergeable and in-order, on and off."""
    features_matrix("split", full)


@scenario(need_peers, seconds=60, full_seconds=180)
def dpdk_packed(full):
    """DPDK virtio-user on packed rings: mergeable and in-order, on and off."""
    features_matrix("packed", full)


def need_vector():
    need_peers()
    if not {"avx512f", "avx512bw", "avx512vl"} <= cpu_flags():
        raise Unable("DPDK's vectorised packed ring needs AVX-512")


@scenario(need_vector, seconds=60, full_seconds=120)
def dpdk_vectorised(full):
    """DPDK virtio-user with its vectorised paths, split and packed."""
    device = Device()
    for layout in ("split", "packed"):
        for size in (256, 1024) if full else (256,):
            # A split ring is vectorised when it is not in order, a packed one when it is.
            features = {**layouts(layout), "vectorized": 1, "mrg_rxbuf": 0, "in_order": int(layout == "packed"),
                        "queue_size": size}
            cell(device, f"{layout} vectorized=1 ring={size}", features, 2_000_000 if full else 500_000,
                 eal=["--force-max-simd-bitwidth=512"])
    device.leave()


@scenario(need_peers, seconds=60, full_seconds=120)
def dpdk_queues(full):
    """DPDK virtio-user with four queue pairs, then one, on a port that has four."""
    device = Device(queues=4)
    for layout in ("split", "packed"):
        for queues in (4, 1):
            for size in (256, 1024) if full else (256,):
                features = {**layouts(layout), "queue_size": size}
                cell(device, f"{layout} queues={queues} ring={size}", features, 2_000_000 if full else 400_000,
                     queues=queues, size=(64, 1518))
    device.leave()


@scenario(need_peers, seconds=90, full_seconds=300)
def dpdk_sizes(full):
    """DPDK virtio-user with frames of 64 to 9000 bytes: one buffer each, several, and mergeable."""
    device = Device()
    for layout in ("split", "packed"):
        for mrg, jumbo in ((1, "segments"), (0, "one buffer")):
            for wire in (64, 128, 256, 512, 1024, 1518, 2048, 4096, 9000) if full else (64, 1518, 9000):
                features = {**layouts(layout), "mrg_rxbuf": mrg, "queue_size": 1024}
                # DPDK sends 32 frames a turn but takes back 32 buffers, of which a frame of 9000 bytes has five:
                # all that are sent must fit into the ring at once.
                count = 1000 // (wire // 2048 + 1) if mrg and wire > 2048 else 3000
                cell(device, f"{layout} mrg_rxbuf={mrg} frames of {wire} in {jumbo}", features,
                     1_000_000 if full else 100_000, wire=wire, size=(64, wire) if wire > 64 else 64, count=count,
                     jumbo=jumbo)
    device.leave()


@scenario(need_peers, seconds=60)
def dpdk_reconnect(full):
    """A driver that is killed in mid-traffic, and one that leaves cleanly, again and again on one socket."""
    device = Device()
    for n in range(20 if full else 4):
        features = layouts("packed" if n % 2 else "split")
        peer = Peer("killed", device.driver(**features))
        peer.pmd.cmd("set portlist 0")
        peer.pmd.cmd("start tx_first 2")
        time.sleep(0.2)
        peer.pmd.kill(signal.SIGKILL)
        cell(device, f"after kill {n + 1}", features, 100_000, count=5000)
    device.leave()


@scenario(need_peers, seconds=30)
def dpdk_macswap(full):
    """Forward mode macswap changes the addresses of every frame and nothing else."""
    device = Device(mode="macswap")
    peer = Peer("virtio-user", device.driver(packed_vq=1))
    returned = peer.exchange(swapped=True)
    peer.quit()
    figure(f"{returned:,} frames came back with their addresses swapped")
    device.leave()


@scenario(need_peers, seconds=30)
def dpdk_one_way(full):
    """Our rxonly and txonly against DPDK's txonly and rxonly: both sides count the same."""
    for layout in ("split", "packed"):
        device = Device(mode="rxonly")
        peer = dpdk("virtio-user", [device.driver(**layouts(layout))], ["--forward-mode=txonly"])
        rate, sent, got = one_way(peer, device.pmd)
        peer.quit()
        check(sent == got, f"DPDK sent {sent} and our rxonly counts {got}")
        figure(f"{layout}: our rxonly took {rate:.2f} Mpps, all {got:,} of them")
        device.leave()

        device = Device(mode="txonly")
        device.pmd.cmd("stop")
        peer = dpdk("virtio-user", [device.driver(**layouts(layout))], ["--forward-mode=rxonly"])
        rate, sent, got = one_way(device.pmd, peer)
        peer.quit()
        check(sent == got, f"our txonly counts {sent} and DPDK received {got}")
        figure(f"{layout}: our txonly gave {rate:.2f} Mpps, all {got:,} of them")
        device.pmd.quit()


def one_way(sender, receiver, seconds=1.0):
    """Lets the sender send; returns the rate in Mpps and what each side counts once all is quiet."""
    receiver.cmd("stop")
    receiver.cmd("start")
    sent0, got0 = sender.total("TX-packets"), receiver.total("RX-packets")
    began = time.monotonic()
    sender.cmd("start")
    time.sleep(seconds)
    sender.cmd("stop")
    took = time.monotonic() - began
    sent = sender.total("TX-packets") - sent0
    end = time.monotonic() + 3
    while (got := receiver.total("RX-packets") - got0) != sent and time.monotonic() < end:
        time.sleep(0.05)
    return got / took / 1e6, sent, got
