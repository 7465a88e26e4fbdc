"""Our `af_packet` and `tap` ports under the kernel's own TCP."""

import time

from netns import Namespace
from place import Skip, check, is_root, need_command
from scenario import scenario
from scenarios.afxdp import Wire, tcp
from testpmd import hotring


def need():
    if not is_root():
        raise Skip("needs root")
    need_command("iperf3", "iperf3")
    need_command("busybox", "busybox-static")


def ports(queues, netns):
    return [f"af_packet{i},iface={name}0,queues={queues},netns={netns}" for i, name in enumerate("xy")]


@scenario(need, seconds=120, full_seconds=180)
def packet_tcp(full):
    """The kernel's TCP through two AF_PACKET ports on veth pairs, offloads on: one queue, jumbo frames, two queues."""
    for mtu, queues in ((1500, 1), (9000, 1), (1500, 2)):
        wire = Wire(mtu)
        for name, end in wire.ends.items():
            end.run(f"ethtool -K {name}1 tx on", must=False)
        # By its name: the process stays in its own namespace.
        pmd = hotring("device", ports(queues, wire.name), [f"--rxq={queues}", f"--txq={queues}"])
        pmd.cmd("start")
        tcp(wire, f"MTU {mtu}, {queues} queue(s)", pmd, 6 if full else 2)
        wire.run("ip link del x0")
        time.sleep(0.2)
        check("Link status: down" in pmd.cmd("show port info 0"), "the removed interface is still up")
        pmd.cmd("stop")
        pmd.quit()
        wire.close()


@scenario(need, seconds=120, full_seconds=180)
def tap_tcp(full):
    """The kernel's TCP between two TAP ports in namespaces, by name: large packets, several queues."""
    for queues, large in ((1, 0), (1, 1), (2, 1)):
        ends = {"x": Namespace(), "y": Namespace()}
        vdevs = [f"tap{i},iface={name}1,netns={end.name},queues={queues},tso={large},uso={large},mtu=1500"
                 for i, (name, end) in enumerate(ends.items())]
        pmd = hotring("device", vdevs, [f"--rxq={queues}", f"--txq={queues}"])
        ends["x"].address("x1", "10.77.0.1/24")
        ends["y"].address("y1", "10.77.0.2/24")
        pmd.cmd("start")
        wire = type("Ends", (), {"ends": ends})
        tcp(wire, f"{queues} queue(s), {'64 KiB' if large else '1500 B'} packets", pmd, 6 if full else 2)
        pmd.cmd("stop")
        pmd.quit()
        for end in ends.values():
            check(f"{'x1' if end is ends['x'] else 'y1'}:" not in end.run("ip link"), "an interface was left")
            end.close()
