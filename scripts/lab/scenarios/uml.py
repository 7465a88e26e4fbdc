"""User-mode Linux on our `vhost` port: its driver's control queue is ours to serve."""

import os
import re
import sys

import announce
from netns import Namespace
from place import LAB, Skip, check, figure, need_command, need_peers, run_dir
from scenario import scenario
from testpmd import stand_in
from uml import UserMode

from .guest import GUEST, GUEST_CSUM, GUEST_TSO4, HOST, MRG, forward, iperf, ping
from .takeover import Chain, lasting_tap

# Feature bits: virtio 1.3 §5.1.3.
CTRL_GUEST_OFFLOADS, CTRL_VQ, CTRL_RX, CTRL_VLAN, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR, NOTF_COAL = 2, 17, 18, 19, 21, 22, 23, 53
HASH_REPORT, RSS = 57, 60
MAC = "02:00:00:00:00:02"
OTHER, GROUP = "020000000077", "01005e000011"
SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("tap0", 0))
for _ in range(int(sys.argv[2])):
    s.send(bytes.fromhex(sys.argv[1]) + bytes(46))
"""


# UDP datagrams for the guest, from ports of which each is a flow.
FLOWS = """
import socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("tap0", 0))
address = socket.inet_aton
for n in range(int(sys.argv[4])):
    for port in range(1024, 1024 + int(sys.argv[5])):
        ip = struct.pack(">BBHHHBBH4s4s", 69, 0, 28, 0, 0, 64, 17, 0, address(sys.argv[2]), address(sys.argv[3]))
        words = struct.unpack(">10H", ip)
        total = sum(words)
        total = (total >> 16) + (total & 65535)
        ip = ip[:10] + struct.pack(">H", 65535 - (total >> 16) - (total & 65535)) + ip[12:]
        s.send(bytes.fromhex(sys.argv[1] + "0200000000010800") + ip + struct.pack(">HHHH", port, 9, 8, 0) + bytes(18))
"""


def need():
    need_peers()
    need_command("ethtool", "ethtool")
    if stand_in():
        raise Skip("DPDK offers no control queue")
    if not (LAB / "initramfs-uml.gz").exists():
        raise Skip(f"{LAB} has no user-mode Linux (scripts/lab/fetch)")


def arrive(netns, guest, to, tag="", count=40):
    """Sends frames to an address; how many the guest's driver got."""
    rx = "cat /sys/class/net/eth0/statistics/rx_packets"
    before = int(guest.sh(rx))
    netns.run(f"{sys.executable} -c '{SEND}' {to}020000000001{tag}88b5 {count}")
    # A ping behind them: when it is answered, they have passed or not.
    ping(guest, HOST, count=2)
    return int(guest.sh(rx)) - before - 2


def toeplitz(key, data):
    """The hash of receive side scaling, bit by bit, as Microsoft's document describes it."""
    window, total = int.from_bytes(key, "big"), 0
    for i, bit in enumerate(f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"):
        if bit == "1":
            total ^= window >> 8 * len(key) - 32 - i & 0xFFFFFFFF
    return total


class Flows:
    """Datagrams of many flows for a guest, all together fewer than a ring holds, and the rings that they come to, by the hash that its driver has set."""

    PORTS, EACH = range(1024, 1088), 2

    def __init__(self, netns, guest, mac):
        self.netns, self.guest, self.mac = netns, guest, mac
        shown = guest.sh("ethtool -x eth0")
        self.key = bytes.fromhex(re.search(r"(?:[0-9a-f]{2}:){39}[0-9a-f]{2}", shown).group(0).replace(":", ""))
        self.addresses = bytes(map(int, f"{HOST}.{GUEST}".split(".")))

    def counted(self):
        counted = self.guest.sh("ethtool -S eth0")
        return [int(n) for _, n in sorted(re.findall(r"rx_?(?:queue_)?(\d+)_packets: (\d+)", counted))]

    def come(self, what, table, ports=True):
        """Sends them; each must come to the ring that the table has for its hash."""
        wanted = [0, 0]
        for port in self.PORTS:
            data = self.addresses + (port.to_bytes(2, "big") + bytes([0, 9]) if ports else b"")
            wanted[table[toeplitz(self.key, data) % len(table)]] += self.EACH
        before = self.counted()
        self.netns.run(f"{sys.executable} -c '{FLOWS}' {self.mac} {HOST} {GUEST} {self.EACH} {len(self.PORTS)}")
        ping(self.guest, HOST, count=2)
        got = [after - n for after, n in zip(self.counted(), before)]
        # Pings, and what the kernels say to each other besides.
        close = all(0 <= n - m <= 12 for n, m in zip(got, wanted))
        check(close, f"{what}: packets by ring {got}, expected {wanted} and a few others")
        return f"{what} {got[0]}:{got[1]}"


def steering(flows):
    """The guest's driver says by which hash packets come to which ring; each flow comes where that says."""
    equal, words = [i % 2 for i in range(128)], []
    for setting, table in (("equal 2", equal), ("weight 1 3", [0] * 32 + [1] * 96), ("weight 0 1", [1] * 128)):
        flows.guest.sh(f"ethtool -X eth0 {setting}")
        words.append(flows.come(setting, table))
    flows.guest.sh("ethtool -N eth0 rx-flow-hash udp4 sd; ethtool -X eth0 equal 2")
    words.append(flows.come("addresses only", equal, ports=False))
    flows.guest.sh("ethtool -N eth0 rx-flow-hash udp4 sdfn")
    return ", ".join(words)


@scenario(need, seconds=120)
def uml_control(full):
    """User-mode Linux: receive mode, addresses, VLANs, queue pairs, offloads and moderation by its control queue."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    # Its front-end begins packed rings at 0 instead of with both wrap counters set, and it knows no IOMMU.
    taps = "tap0,iface=tap0,tso=1,mac=02:00:00:00:00:01"
    pmd = forward([f"vhost0,iface={sock},queues=2,packed=0,iommu-support=0,mac=02:00:00:00:00:02", taps], 2, netns.name)
    netns.address("tap0", f"{HOST}/24")
    netns.run("ip neigh add {} lladdr 02:00:00:00:00:02 dev tap0 nud permanent".format(GUEST))
    guest = UserMode("uml", sock).up()
    wanted = {CTRL_GUEST_OFFLOADS, CTRL_VQ, CTRL_RX, CTRL_VLAN, MQ, CTRL_MAC_ADDR, NOTF_COAL, MRG, GUEST_CSUM, GUEST_TSO4, HASH_REPORT, RSS}
    agreed = guest.features()
    check(wanted <= agreed, f"features agreed on are {sorted(agreed)}: expected {sorted(wanted)}")
    mac = guest.sh("cat /sys/class/net/eth0/address")
    check(mac == "02:00:00:00:00:02", f"the guest's address is {mac}")
    guest.address(f"{GUEST}/24")
    guest.sh("ethtool -L eth0 combined 2")
    small = ping(guest, HOST)
    words = []

    def arrives(what, expected, *args):
        got = arrive(netns, guest, *args)
        check(got == expected, f"{what}: {got} frames arrived, {expected} expected")
        words.append(f"{what} {got}")

    arrives("own", 40, "020000000002")
    arrives("broadcast", 40, "ffffffffffff")
    arrives("other's", 0, OTHER)
    guest.sh("ip link set eth0 promisc on")
    arrives("promiscuous", 40, OTHER)
    guest.sh("ip link set eth0 promisc off")
    arrives("no more", 0, OTHER)
    arrives("group", 0, GROUP)
    guest.sh("ifconfig eth0 allmulti")
    arrives("all groups", 40, GROUP)
    guest.sh("ifconfig eth0 -allmulti; ip link set eth0 address 02:00:00:00:00:77")
    netns.run(f"ip neigh replace {GUEST} lladdr 02:00:00:00:00:77 dev tap0 nud permanent")
    # The guest asks for the host's address again.
    ping(guest, HOST, count=2)
    arrives("new address", 40, OTHER)
    arrives("old address", 0, "020000000002")
    arrives("VLAN 5", 0, OTHER, "81000005")
    guest.sh("modprobe 8021q; ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 up")
    arrives("joined", 40, OTHER, "81000005")
    arrives("VLAN 6", 0, OTHER, "81000006")
    filtered = int(re.search(r"tx_filtered: (\d+)", pmd.cmd("show port xstats 0")).group(1))
    check(filtered >= 240, f"{filtered} frames were filtered, at least 240 expected")
    figure(f"ping {small:.2f} ms; frames of 40 that arrive: {', '.join(words)}; {filtered} filtered")

    figure(f"by hash, to two rings: {steering(Flows(netns, guest, OTHER))}")

    guest.sh("ethtool -C eth0 rx-usecs 200 rx-frames 16 tx-usecs 200 tx-frames 16")
    held = ping(guest, HOST)
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    rates = []
    for offloads in ("on", "off"):
        guest.sh(f"ethtool -K eth0 rx-gro-hw {offloads}")
        for way in ("", "-R"):
            rate = iperf(guest.sh, HOST, way, 2)["sum_received"]["bits_per_second"] / 1e6
            check(rate > 1, f"TCP {way} with large packets {offloads} moves only {rate:.2f} Mbit/s")
            rates.append(f"{rate:.0f}")
    figure(f"calls held back: ping {held:.2f} ms; TCP out and in, large packets on {rates[0]} {rates[1]}, off {rates[2]} {rates[3]} Mbit/s")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=90)
def uml_messages(full):
    """User-mode Linux with messages in place of eventfds: kicks come in them, and so do the calls it waits for."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    vhost = f"vhost0,iface={sock},packed=0,iommu-support=0,inband=1"
    pmd = forward([vhost, "tap0,iface=tap0,mac=02:00:00:00:00:01"], 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    guest = UserMode("uml", sock).up()
    guest.address(f"{GUEST}/24")
    # Its control queue is reached by nothing but a message.
    guest.sh("ip link set eth0 promisc on; ip link set eth0 promisc off")
    small, large = ping(guest, HOST), ping(guest, HOST, 1400, 10)
    calls = int(re.search(r"calls: (\d+)", pmd.cmd("show port xstats 0")).group(1))
    check(calls > 20, f"only {calls} calls: the guest does not wait for any")
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    rates = [iperf(guest.sh, HOST, way, 1)["sum_received"]["bits_per_second"] / 1e6 for way in ("", "-R")]
    check(min(rates) > 1, f"TCP moves only {rates} Mbit/s")
    figure(f"ping {small:.2f} ms, {large:.2f} ms at 1400 B, {calls} calls as messages; TCP out and in {rates[0]:.0f} {rates[1]:.0f} Mbit/s")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=90)
def uml_announce(full):
    """User-mode Linux after a takeover: it is told to announce itself, does, and says so by its control queue."""
    netns, sock, mac = Namespace(), run_dir() / "vm0.sock", "02:00:00:00:00:02"
    lasting_tap(netns)
    os.environ["RUST_LOG"] = "warn,pmd::port::vhost=debug"
    chain = Chain([f"vhost0,iface={sock},packed=0,iommu-support=0,mac={mac}", "tap0,iface=tap0"], netns=netns.name)
    guest = UserMode("uml", sock).up()
    check(GUEST_ANNOUNCE in guest.features(), f"features agreed on are {sorted(guest.features())}")
    guest.address(f"{GUEST}/24")
    ping(guest, HOST)
    times = 10 if full else 2
    for _ in range(times):
        announced = announce.listen(netns, "tap0", announce.arp(mac, GUEST))
        chain.next(lossless=False)
        announced.expect("heard", 30)
        # Class 3, command 0: ANNOUNCE_ACK.
        chain.now.logged(r"command Some\(\[3, 0\]\): true", 30)
    figure(f"taken over {times} times, each time announced by the guest; ping {ping(guest, HOST):.2f} ms")


@scenario(need, seconds=120)
def uml_takeover(full):
    """User-mode Linux, taken over by the next testpmd: what its driver has asked for by its control queue holds."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    lasting_tap(netns)
    netns.run(f"ip neigh add {GUEST} lladdr {MAC} dev tap0 nud permanent")
    chain = Chain([f"vhost0,iface={sock},queues=2,packed=0,iommu-support=0,mac={MAC}", "tap0,iface=tap0"],
                  ["--rxq=2", "--txq=2"], netns=netns.name)
    guest = UserMode("uml", sock).up()
    guest.address(f"{GUEST}/24")
    guest.sh("ethtool -L eth0 combined 2; ethtool -X eth0 weight 0 1")
    ping(guest, HOST, count=5)
    flows, mine = Flows(netns, guest, MAC.replace(":", "")), "020000000002"
    words = [flows.come("before", [1] * 128)]
    for _ in range(10 if full else 3):
        # Nothing is sent, but by the guest and the kernel of the host.
        chain.next(lossless=False)
        ping(guest, HOST, count=3)
        for what, to, expected in (("own", mine, 40), ("other's", OTHER, 0), ("group", GROUP, 0)):
            got = arrive(netns, guest, to)
            check(got == expected, f"{what}: {got} frames arrived after {chain.n} takeovers, {expected} expected")
        words = words[:1] + [flows.come("after", [1] * 128)]
    guest.sh("ip link set eth0 promisc on; ethtool -X eth0 equal 2")
    check(arrive(netns, guest, OTHER) == 40, "the last testpmd does not obey the driver")
    words.append(flows.come("then equal 2", [i % 2 for i in range(128)]))
    figure(f"{chain.n} takeovers, forwarding rested {max(chain.ms):.0f} ms at most; filters hold; by hash, to two rings: "
           + ", ".join(words))
    guest.off()
    chain.quit()
    netns.close()
