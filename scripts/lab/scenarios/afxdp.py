"""Our AF_XDP port on veth pairs: the kernel's own TCP at both ends, and DPDK's `net_af_xdp` in the same place."""

import re
import time

from netns import Namespace
from place import check, figure, need_peers
from scenario import scenario
from testpmd import dpdk, hotring


class Wire(Namespace):
    """A namespace with one end of each of two veth pairs, x0 and y0, the other ends in namespaces of their own."""

    def __init__(self, mtu=1500, queues=1):
        super().__init__()
        self.ends = {"x": Namespace(), "y": Namespace()}
        for name, end in self.ends.items():
            self.run(f"ip link add {name}0 numtxqueues {queues} numrxqueues {queues} mtu {mtu} type veth peer name "
                     f"{name}1 numtxqueues {queues} numrxqueues {queues} mtu {mtu} netns {end.name}")
            self.run(f"ip link set {name}0 up; ethtool -L {name}0 rx {queues} tx {queues}", must=False)
            # A packet past the network stack has no one who would complete its checksum.
            end.run(f"ethtool -K {name}1 tx off; ethtool -L {name}1 rx {queues} tx {queues}", must=False)
        self.ends["x"].address("x1", "10.77.0.1/24")
        self.ends["y"].address("y1", "10.77.0.2/24")

    def close(self):
        for end in self.ends.values():
            end.close()
        super().close()


def ports(mode, queues=1):
    return [f"af_xdp{i},iface={name}0,mode={mode},queues={queues}" for i, name in enumerate("xy")]


def tcp(wire, label, pmd, seconds):
    """Ping, and TCP both ways through the testpmd between the ends."""
    x, y = wire.ends["x"], wire.ends["y"]
    seen = x.run("busybox ping -c 20 -i 0.05 -W 1 10.77.0.2")
    check(" 0% packet loss" in seen, f"{label}: {seen[-200:]}")
    server = y.spawn(["iperf3", "-s", "-1", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    report = x.run(f"iperf3 -c 10.77.0.2 -t {seconds} --bidir --forceflush 2>&1", timeout=60)
    rates = re.findall(r"([\d.]+) ([MG])bits/sec.*receiver", report)
    check(len(rates) == 2, f"{label}: {report[-400:]}")
    total = sum(float(n) * (1000 if unit == "G" else 1) for n, unit in rates)
    counters = pmd.counters()
    errors = sum(p["RX-errors"] + p["TX-errors"] for p in counters.values())
    check(errors == 0, f"{label}: {counters}")
    figure(f"{label}: TCP both ways {total:,.0f} Mbit/s in all, {sum(p['RX-packets'] for p in counters.values()):,} "
           "packets")


@scenario(need_peers, seconds=90, full_seconds=180)
def afxdp_tcp(full):
    """The kernel's TCP through two AF_XDP ports on veth pairs: native and generic, jumbo frames, two queues."""
    for mode, mtu, queues in (("native", 1500, 1), ("generic", 1500, 1), ("native", 9000, 1), ("native", 1500, 2)):
        wire = Wire(mtu, queues)
        pmd = hotring("device", ports(mode, queues), [f"--rxq={queues}", f"--txq={queues}", f"--max-pkt-len={mtu + 18}"],
                      netns=wire.name)
        pmd.cmd("start")
        tcp(wire, f"{mode}, MTU {mtu}, {queues} queue(s)", pmd, 6 if full else 2)
        # An interface that goes away under traffic is a port without a link, and no end of the process.
        wire.run("ip link del x0")
        time.sleep(0.2)
        check("Link status: down" in pmd.cmd("show port info 0"), "the removed interface is still up")
        pmd.cmd("stop")
        pmd.quit()
        wire.close()


def looped(wire, device, seconds):
    """Packets a second that a generator on y1 gets back from the device on y0."""
    source = hotring("source", ["generator0,size=64,flows=64,check=1", "af_xdp0,iface=y1,mode=native"], [],
                     core=1, netns=wire.ends["y"].name)
    source.cmd("start")
    time.sleep(0.5)
    before, then = source.counters()[1]["RX-packets"], time.monotonic()
    time.sleep(seconds)
    after, now = source.counters()[1]["RX-packets"], time.monotonic()
    source.cmd("stop")
    source.quit()
    device.cmd("stop")
    device.quit()
    check(after > before, "nothing came back")
    return (after - before) / (now - then) / 1e6


@scenario(need_peers, seconds=60, full_seconds=120)
def afxdp_dpdk(full):
    """The loop over AF_XDP on a veth pair, ours and DPDK's net_af_xdp in turns: rates, no verdict."""
    rates = {"hotring": [], "dpdk": []}
    for _ in range(4 if full else 2):
        for who, found in rates.items():
            wire = Wire()
            loop = ["--forward-mode=io", "--port-topology=loop"]
            if who == "hotring":
                device = hotring("device", ["af_xdp0,iface=y0,mode=native"], loop, core=0, netns=wire.name)
            else:
                device = dpdk("device", ["net_af_xdp0,iface=y0,busy_budget=0"], loop, core=0, netns=wire.name)
            device.cmd("start")
            found.append(looped(wire, device, 2))
            wire.close()
    shown = {who: ", ".join(f"{r:.2f}" for r in found) for who, found in rates.items()}
    figure(f"loop of 64 B frames: hotring {shown['hotring']} Mpps, dpdk {shown['dpdk']} Mpps")
