"""What is asked of DPDK's side whichever port type joins it to ours: circulate frames, then send known ones.

The DPDK process holds the port that faces ours and a pcap port; ours returns every packet to where it came from.
"""

import time

import frames
from place import check, run_dir
from testpmd import dpdk

BURST = 32


class Peer:
    """DPDK's testpmd on core 1 with `vdev` as port 0 and a pcap port, one file a queue, as port 1."""

    def __init__(self, name, vdev, queues=1, ring=256, size=64, count=20000, eal=(), jumbo=False, memory_mib=256):
        self.queues, self.ring = queues, ring
        self.sent = []
        share = max(count // queues, 2)
        files = []
        for q in range(queues):
            out = [frames.frame(n, length, q) for n, length in enumerate(frames.sizes(size, share))]
            frames.write(self._file("in", name, q), out)
            self.sent.append(out)
            files += [f"rx_pcap={self._file('in', name, q)}", f"tx_pcap={self._file('out', name, q)}"]
        self.name = name
        # Part of the ring for sending: what comes back always finds room, even after the other side was preempted.
        args = [f"--rxq={queues}", f"--txq={queues}", f"--rxd={ring}", f"--txd={ring // 2}", "--no-flush-rx",
                f"--burst={BURST}", "--total-num-mbufs=%d" % (4096 + 4 * ring * queues)]
        if jumbo:
            args += ["--max-pkt-len=9018", "--disable-device-start"]
        if jumbo == "one buffer":
            args += ["--mbuf-size=9728"]
        vdevs = [vdev, "net_pcap0," + ",".join(files)]
        self.pmd = dpdk(name, vdevs, args, memory_mib=memory_mib, eal=eal)
        if jumbo:
            self._take_jumbo(jumbo)
        self.pmd.cmd("set burst tx delay 1 retry 1000000")

    def _take_jumbo(self, jumbo):
        """Frames in several buffers are an offload, and one that the pcap port does not list."""
        if jumbo == "segments":
            self.pmd.cmd("port config 0 rx_offload scatter on")
        self.pmd.cmd("port config 0 tx_offload multi_segs on")
        said = self.pmd.cmd("port start all")
        check("Fail" not in said, f"{self.name}: {said}")

    @staticmethod
    def _file(way, name, queue):
        return run_dir() / f"{way}-{name}-{queue}.pcap"

    def circulate(self, packets, length, timeout_s=60):
        """Lets a constant number of frames of `length` bytes go round until `packets` were sent; none may be lost.

        Returns the rate in Mpps.
        """
        p = self.pmd
        p.cmd("set portlist 0")
        p.cmd(f"set txpkts {self._segments(length)}")
        p.cmd("set fwd io retry")
        p.cmd("clear port stats all")
        said = p.cmd(f"start tx_first {2 if length <= 2048 else 1}")
        check("Not all ports were started" not in said, f"{self.name}: a port did not start")
        first, began = p.counters()[0]["TX-packets"], time.monotonic()
        p.wait_for(lambda c: c[0]["TX-packets"] >= packets, f"sending {packets} packets", timeout_s)
        last, ended = p.counters()[0]["TX-packets"], time.monotonic()
        p.cmd("stop")
        p.cmd("set fwd rxonly")
        p.cmd("start")
        c = self._settled()
        p.cmd("stop")
        seen = f"sent {c['TX-packets']}, came back {c['RX-packets']}"
        check(c["TX-packets"] == c["RX-packets"], f"{self.name}: packets lost or doubled: {seen}")
        check(c["TX-bytes"] == c["RX-bytes"], f"{self.name}: {c['TX-bytes']} bytes sent, {c['RX-bytes']} came back")
        check(c["RX-errors"] == 0 and c["TX-errors"] == 0, f"{self.name}: errors at DPDK's port: {c}")
        return (last - first) / (ended - began) / 1e6

    @staticmethod
    def _segments(length):
        """The frame as mbuf segments of at most 1600 bytes."""
        whole, rest = divmod(length, 1600)
        return ",".join(["1600"] * whole + ([str(rest)] if rest else []))

    def _settled(self, timeout_s=5):
        """Port 0's counters once everything came back, or once nothing has changed for a while."""
        end, before = time.monotonic() + timeout_s, None
        while time.monotonic() < end:
            now = self.pmd.counters()[0]
            if now["TX-packets"] == now["RX-packets"] and now == before:
                break
            before = now
            time.sleep(0.05)
        return self.pmd.counters()[0]

    def exchange(self, swapped=False, timeout_s=60):
        """Sends the numbered frames once; each must come back once, in its queue's order, byte for byte."""
        p = self.pmd
        p.cmd("set portlist 0,1")
        p.cmd("set fwd io retry")
        p.cmd("clear port stats all")
        p.cmd("start")
        total = sum(len(s) for s in self.sent)
        try:
            p.wait_for(lambda c: c[1]["TX-packets"] >= total, f"the return of {total} frames", timeout_s)
        finally:
            p.cmd("stop")
            p.cmd("port stop 1")  # closes, and so completes, the capture files
        for q, sent in enumerate(self.sent):
            got = frames.read(self._file("out", self.name, q))
            wrong = frames.difference([frames.macs_swapped(f) for f in sent] if swapped else sent, got)
            check(not wrong, f"{self.name}: queue {q}: {wrong}")
        return total

    def exchange_often(self, rounds):
        """`exchange` of the same frames again and again: where more of them under way would be more than fit."""
        total = 0
        for n in range(rounds):
            if n:
                self.pmd.cmd("port start 1")
            total += self.exchange()
        return total

    def quit(self):
        """Leaves cleanly and removes the frames' files."""
        self.pmd.quit()
        for q in range(self.queues):
            for way in ("in", "out"):
                self._file(way, self.name, q).unlink(missing_ok=True)
