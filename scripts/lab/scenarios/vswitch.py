"""The switch beside a real ovs-vswitchd: the same flows, the same packets, the same frames."""

import os
import random
import re
import shutil
import signal
import struct
import time

from netns import Namespace
from place import ROOT, Failed, Skip, Unable, check, cores, figure, need_command, run_dir, sh
from process import Process
from scenario import scenario

from .guest import iperf

PORTS = 3
TABLES, FULL_TABLES = 40, 400
PACKETS = 10  # from each port
BRIDGES = 20  # of one process of ours
RENEWED = 40  # tables of one ovs-vswitchd
SEED = 20


def binary():
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return f"{target}/release/vswitch"


def need():
    if os.geteuid() != 0:
        raise Skip("needs root")
    if not os.path.exists(binary()):
        raise Skip(f"{binary()} is not built (cargo build --release)")
    for command in ("ovs-vswitchd", "ovsdb-server", "ovs-ofctl", "ovs-appctl"):
        if not shutil.which(command):
            raise Skip(f"{command} is not installed (apt-get install openvswitch-switch)")


class Dummy:
    """An ovs-vswitchd whose ports are fed by commands, and whose frames go to pcap files."""

    def __init__(self, number):
        self.folder = run_dir() / f"dummy{number}"
        self.folder.mkdir()
        f = str(self.folder)
        os.environ.update(OVS_RUNDIR=f, OVS_LOGDIR=f, OVS_DBDIR=f, OVS_SYSCONFDIR=f)
        sh(["ovsdb-tool", "create", f + "/conf.db", "/usr/share/openvswitch/vswitch.ovsschema"])
        self.database = Process(["ovsdb-server", f + "/conf.db", f"--remote=punix:{f}/db.sock", f"--unixctl={f}/db.ctl"], "ovsdb")
        self.await_path(f + "/db.sock")
        sh(["ovs-vsctl", f"--db=unix:{f}/db.sock", "--no-wait", "init"])
        self.daemon = Process(["ovs-vswitchd", "--enable-dummy=override", "--disable-system", f"unix:{f}/db.sock",
                               f"--unixctl={f}/vs.ctl", f"--log-file={run_dir()}/logs/vswitchd.log"], "ovs-vswitchd")
        # Two tags are read, as we do.
        self.vsctl("set", "Open_vSwitch", ".", "other_config:vlan-limit=2")
        self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure")

    def await_path(self, path):
        end = time.monotonic() + 30
        while not os.path.exists(path):
            check(time.monotonic() < end, f"{path} did not appear")
            time.sleep(0.02)

    def vsctl(self, *args):
        return sh(["ovs-vsctl", f"--db=unix:{self.folder}/db.sock", "--timeout=30", *args])

    def appctl(self, *args, must=True):
        return sh(["ovs-appctl", "-t", f"{self.folder}/vs.ctl", *args], must=must)

    def ofctl(self, *args):
        return sh(["ovs-ofctl", args[0], f"unix:{self.folder}/br0.mgmt", *args[1:]])

    def run(self, number, flows, packets):
        """Frames that leave each port."""
        self.ofctl("del-flows")
        args = []
        for p in range(1, PORTS + 1):
            args += ["--", "--if-exists", "del-port", "br0", f"p{p}"]
        self.vsctl(*args[1:])
        args = []
        for p in range(1, PORTS + 1):
            args += ["--", "add-port", "br0", f"p{p}", "--", "set", "Interface", f"p{p}", "type=dummy", f"ofport_request={p}",
                     f"options:tx_pcap={self.folder}/{number}-{p}.pcap"]
        self.vsctl(*args[1:])
        self.appctl("fdb/flush", "br0")
        path = self.folder / f"{number}.flows"
        path.write_text("\n".join(flows) + "\n")
        self.ofctl("add-flows", str(path))
        for p, frames in packets.items():
            self.appctl("netdev-dummy/receive", f"p{p}", *[frame.hex() for frame in frames])
        # Whoever answers has done what came before.
        self.appctl("dpctl/dump-flows", must=False)
        return {p: read_pcap(self.folder / f"{number}-{p}.pcap") for p in packets}

    def close(self):
        self.appctl("exit", "--cleanup", must=False)
        self.daemon.wait(10)
        self.database.kill()


def read_pcap(path):
    data = path.read_bytes()
    check(len(data) >= 24, f"{path} is no capture")
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    frames, at = [], 24
    while at + 16 <= len(data):
        length = struct.unpack(order + "IIII", data[at:at + 16])[2]
        frames.append(data[at + 16:at + 16 + length])
        at += 16 + length
    return frames


def write_pcap(path, frames):
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for frame in frames:
        out += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    path.write_bytes(out)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(rng, port, number):
    """A TCP or UDP packet, or something else, with fields that flows may meet."""
    # Each its own addresses: what is learned from one decides for no other in flight.
    src = bytes([2, 0, 0, 0, port, number])
    dst = rng.choice([b"\xff" * 6, bytes([2, 0, 0, 0, rng.randint(1, PORTS), rng.randrange(PACKETS)]), b"\x02\0\0\0\0\x01"])
    tags = rng.choice([b"", b"", struct.pack("!HH", 0x8100, rng.choice([3, 7, 0x6003])),
                       struct.pack("!HHHH", 0x8100, 3, 0x8100, 9)])
    if rng.random() < 0.1:
        arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, rng.choice([1, 2])) + src + bytes([10, 0, 0, 1]) + dst + bytes([10, 1, 2, 3])
        return (dst + src + tags + b"\x08\x06" + arp).ljust(60, b"\0")
    from_ip, to_ip = (bytes(rng.choice([(10, 1, 2, 3), (10, 1, 2, 4), (10, 0, 0, 1), (11, 0, 0, 0), (10, 128, 1, 1)])) for _ in "ab")
    tcp, payload = rng.random() < 0.7, bytes(rng.randrange(256) for _ in range(rng.choice([0, 10, 100])))
    ports = struct.pack("!HH", rng.choice([1000, 2000]), rng.choice([79, 80, 81, 443]))
    if tcp:
        upper = ports + struct.pack("!IIBBHHH", 1, 2, 0x50, rng.choice([2, 16, 17]), 500, 0, 0) + payload
    else:
        upper = ports + struct.pack("!HH", 8 + len(payload), 0) + payload
    at = 16 if tcp else 6
    pseudo = from_ip + to_ip + struct.pack("!BBH", 0, 6 if tcp else 17, len(upper))
    upper = upper[:at] + struct.pack("!H", checksum(pseudo + upper) or 0xFFFF) + upper[at + 2:]
    head = struct.pack("!BBHHHBBH", 0x45, rng.choice([0, 32, 2]), 20 + len(upper), 1, 0, rng.choice([1, 2, 64]), 6 if tcp else 17, 0)
    head += from_ip + to_ip
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return (dst + src + tags + b"\x08\0" + head + upper).ljust(60, b"\0")


ACTIONS = [
    "output:1", "output:2,output:3", "drop", "NORMAL", "FLOOD", "IN_PORT", "ALL", "mod_nw_dst:10.9.9.9,output:2", "pop_vlan,output:1",
    "mod_vlan_vid:7,FLOOD", "mod_vlan_pcp:3,output:2", "strip_vlan,NORMAL", "resubmit(,1)", "resubmit(2,1),output:3",
    "load:5->NXM_NX_REG0[],resubmit(,1),output:1", "move:NXM_OF_IP_SRC[]->NXM_NX_REG1[],resubmit(,2)", "dec_ttl,resubmit(,2)",
    "dec_ttl,output:2,output:3", "push:NXM_OF_ETH_SRC[],pop:NXM_OF_ETH_DST[],output:3", "mod_tp_dst:80,resubmit(,2),output:3",
    "clone(mod_dl_src:00:00:00:00:00:09,output:1),output:2", "mod_nw_tos:64,output:1,mod_dl_dst:02:00:00:00:00:77,output:3",
    "mod_nw_src:1.2.3.4,mod_tp_src:99,output:1,output:2",
    "set_field:3->reg2,output:NXM_NX_REG2[]", "mod_nw_ecn:1,output:2",
]


def flow(rng):
    match = [rng.choice(["tcp", "udp", "ip", "", "arp"])]
    ip = match[0] in ("tcp", "udp", "ip")
    for chance, values in ((0.2, ["in_port=1", "in_port=2"]),
                           (0.2, ["dl_vlan=3", "vlan_tci=0", "dl_vlan_pcp=3", "vlan_tci=0x1000/0x1000"]),
                           (0.2, ["dl_dst=ff:ff:ff:ff:ff:ff", "dl_src=02:00:00:00:01:00/ff:ff:ff:ff:ff:00"]),
                           (0.1, ["reg0=5", "reg1=0x0a000000/0xff000000"])):
        if rng.random() < chance:
            match.append(rng.choice(values))
    if ip and rng.random() < 0.4:
        match.append(rng.choice(["nw_src=10.0.0.0/8", "nw_src=10.1.0.0/16", "nw_src=0.0.0.1/0.0.0.1", "nw_dst=10.0.0.0/9", "nw_dst=10.9.9.9",
                                 "nw_dst=10.1.2.0/24", "nw_tos=32", "nw_ttl=1"]))
    if match[0] in ("tcp", "udp") and rng.random() < 0.4:
        match.append(rng.choice(["tp_dst=80", "tp_dst=0x50/0xfff0"]))
    action = rng.choice(ACTIONS)
    if not ip:
        # What an address is of a packet that has none is no question.
        while any(word in action for word in ("nw_", "tp_", "ttl", "IP_")):
            action = rng.choice(ACTIONS)
    elif match[0] == "ip":
        while "tp_" in action:
            action = rng.choice(ACTIONS)
    return ",".join(m for m in match if m), action


def table_of(rng):
    """Flows of tables 0 to 2; no two that may both be meant have one priority."""
    flows = []
    for i in range(rng.randint(1, 25)):
        match, action = flow(rng)
        table = rng.choice([0, 0, 1, 2])
        # Only onwards.
        if "resubmit" in action and table > 0 and not (table == 1 and "(,2)" in action):
            action = "output:2"
        flows.append(f"table={table},priority={i + 1},{match + ',' if match else ''}actions={action}")
    return flows


def conjunctions(rng):
    """Flows that are met together. Each ID has a flow: Open vSwitch overlooks rules behind a whole whose ID has none."""
    flows = []
    for at, value in ((0, rng.randint(1, 3)), (1, rng.randint(1, 3))):
        flows += [f"priority={100 + at},{match},actions=conjunction({value},1/2)"
                  for match in rng.sample(["ip,nw_src=10.1.2.3", "ip,nw_src=10.0.0.0/9", "in_port=1", "in_port=2"], 2)]
        flows += [f"priority={100 + at},{match},actions=conjunction({value},2/2)"
                  for match in rng.sample(["tcp,tp_dst=80", "udp", "ip,nw_dst=10.1.2.0/24", "ip,nw_ttl=64"], 2)]
    return flows + [f"priority={rng.randint(30, 200)},conj_id={n},actions=output:{n}" for n in (1, 2, 3)]


def ours(cases):
    """Frames that leave each port of each case: one process, a bridge for each."""
    folder = run_dir() / "ours"
    folder.mkdir(exist_ok=True)
    config = ["idle_sleep_ms = 1"]
    for number, (flows, packets) in cases.items():
        quoted = ",\n".join(f'"{f}"' for f in flows)
        config.append(f'[[bridge]]\nname = "br{number}"\nflows = [{quoted}]')
        for p, frames in packets.items():
            write_pcap(folder / f"{number}-{p}.in", frames)
            n = number * PORTS + p
            config.append(f'[[bridge.port]]\nname = "b{number}p{p}"\nnumber = {p}\n'
                          f'vdev = "net_pcap{n},rx_pcap={folder}/{number}-{p}.in,tx_pcap={folder}/{number}-{p}.pcap"')
    path = folder / f"{min(cases)}.toml"
    path.write_text("\n".join(config) + "\n")
    switch = Process([binary(), "--config", str(path), "--no-huge"], f"vswitch-{min(cases)}")
    switch.expect("vswitch: ready", 60)
    # It has come to rest when nothing was added to any capture for a while.
    end, last, since = time.monotonic() + 60, None, time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < 1:
        sizes = [os.path.getsize(folder / f"{n}-{p}.pcap") for n in cases for p in range(1, PORTS + 1)]
        if sizes != last:
            last, since = sizes, time.monotonic()
        time.sleep(0.1)
    switch.child.terminate()
    switch.wait(30)
    return {n: {p: read_pcap(folder / f"{n}-{p}.pcap") for p in range(1, PORTS + 1)} for n in cases}


@scenario(need, seconds=180, full_seconds=900)
def vswitch_tables(full):
    """Random flow tables and packets through vswitch and a real ovs-vswitchd: the same frames leave the same ports."""
    rng = random.Random(SEED)
    count = FULL_TABLES if full else TABLES
    cases = {}
    for number in range(count):
        packets = {p: [frame(rng, p, n) for n in range(PACKETS)] for p in range(1, PORTS + 1)}
        flows = table_of(rng)
        if number % 4 == 3:
            flows += conjunctions(random.Random(number))
        cases[number] = (flows, packets)
    numbers, got = list(cases), {}
    for start in range(0, count, BRIDGES):
        got.update(ours({n: cases[n] for n in numbers[start:start + BRIDGES]}))
    peer, wrong, frames = None, [], 0
    for number, (flows, packets) in cases.items():
        if number % RENEWED == 0:
            # One that has made and removed hundreds of ports comes to a stop.
            if peer:
                peer.close()
            peer = Dummy(number)
        wanted = peer.run(number, flows, packets)
        for p in wanted:
            frames += len(wanted[p])
            if sorted(wanted[p]) != sorted(got[number][p]):
                missing = [f.hex() for f in wanted[p] if f not in got[number][p]][:2]
                extra = [f.hex() for f in got[number][p] if f not in wanted[p]][:2]
                wrong.append(f"table {number}, port {p}: {len(got[number][p])} frames, Open vSwitch {len(wanted[p])}; "
                             f"missing {missing}, extra {extra}")
    peer.close()
    figure(f"{count} tables, {count * PORTS * PACKETS} packets in, {frames} frames out")
    if wrong:
        raise Failed("\n".join(wrong[:20]) + f"\n{len(wrong)} ports differ")


class Taps:
    """vswitch with a TAP for each of three namespaces, named a, b and c: 10.79.0.1 to 3."""

    def __init__(self):
        self.home, self.rooms = Namespace(), {name: Namespace() for name in "abc"}
        self.config = run_dir() / "taps.toml"
        self.write(["priority=0,actions=NORMAL"])
        self.switch = self.home.spawn([binary(), "--config", str(self.config), "--no-huge"], "vswitch")
        self.switch.expect("vswitch: ready", 60)
        for n, (name, room) in enumerate(self.rooms.items(), 1):
            self.home.run(f"ip link set tap{name} netns {room.name}")
            room.address(f"tap{name}", f"10.79.0.{n}/24")

    def write(self, flows, tags={}, cores=()):
        """`cores`: those that serve the ports in turn; none: one, anywhere."""
        lines = ["idle_sleep_ms = 1", f"cores = {list(cores)}", 'assign = "roundrobin"', "[[bridge]]", 'name = "br0"']
        lines.append("flows = [" + ",".join(f'"{f}"' for f in flows) + "]")
        for n, name in enumerate("abc", 1):
            lines += ["[[bridge.port]]", f'name = "{name}"', f"number = {n}",
                      f'vdev = "net_tap{n},iface=tap{name},mac=02:00:00:00:00:0{n}"']
            lines += [f"tag = {tags[name]}"] if name in tags else []
        self.config.write_text("\n".join(lines) + "\n")

    def reload(self, flows, tags={}, cores=()):
        self.write(flows, tags, cores)
        os.kill(self.switch.child.pid, signal.SIGHUP)
        self.switch.expect("vswitch: read again", 60)

    def reaches(self, name, to):
        """Whether any of a few pings is answered."""
        out = self.rooms[name].run(f"busybox ping -c 6 -i 0.2 -W 1 10.79.0.{'abc'.index(to) + 1}", must=False)
        got = re.search(r"(\d+) packets received", out)
        return got is not None and int(got.group(1)) > 0


def need_tunnel():
    need_taps()
    room = Namespace()
    out = room.run("ip link add vx type vxlan id 1 remote 10.0.0.2 dstport 4789 && echo made", must=False)
    room.close()
    if "made" not in out:
        raise Unable("this kernel has no VXLAN")


def need_taps():
    need()
    need_command("busybox", "busybox-static")
    need_command("iperf3", "iperf3")


def tcp(taps):
    """Mbit/s from a to b."""
    server = taps.rooms["b"].spawn(["iperf3", "-s", "-1", "--forceflush"], "iperf3")
    server.expect("Server listening", 30)
    moved = iperf(taps.rooms["a"].run, "10.79.0.2", "", 2)["sum_received"]["bits_per_second"] / 1e6
    check(moved > 1, f"TCP moves only {moved:.2f} Mbit/s")
    return moved


FIREWALL = ["priority=20,arp,actions=NORMAL", "priority=10,ip,ct_state=-trk,actions=ct(table=1)",
            "table=1,priority=10,in_port=a,ip,ct_state=+trk+new,actions=ct(commit),NORMAL",
            "table=1,priority=10,ip,ct_state=+trk+est,actions=NORMAL"]


@scenario(need_taps, seconds=120)
def vswitch_taps(full):
    """The kernel's ARP, ping and TCP through vswitch: learning, two cores, VLAN isolation, a firewall that knows connections."""
    taps = Taps()
    check(taps.reaches("a", "b") and taps.reaches("c", "a"), "NORMAL does not join a, b and c")
    one = tcp(taps)
    # a and b are on different cores now.
    taps.reload(["priority=0,actions=NORMAL"], cores=cores()[:2])
    check(taps.reaches("a", "b") and taps.reaches("c", "b"), "NORMAL does not join ports of two cores")
    two = tcp(taps)
    taps.reload(["priority=0,actions=NORMAL"], {"a": 5, "b": 5, "c": 6})
    check(taps.reaches("a", "b"), "ports of one VLAN do not reach each other")
    check(not taps.reaches("a", "c"), "a port of another VLAN is reached")
    taps.reload(FIREWALL)
    check(taps.reaches("a", "b"), "the firewall does not let a reach b")
    check(not taps.reaches("c", "b"), "the firewall lets c reach b")
    figure(f"TCP {one:.0f} Mbit/s through two TAPs, {two:.0f} Mbit/s between two cores")


@scenario(need_tunnel, seconds=90)
def vswitch_tunnel(full):
    """A TAP, vswitch and VXLAN to the kernel's own VXLAN device: pings whole and in fragments, TCP, a match on the tunnel."""
    home, inside, far = Namespace(), Namespace(), Namespace()
    home.run(f"ip link add under type veth peer name over netns {far.name}")
    home.address("under", "10.78.0.1/24")
    far.address("over", "10.78.0.2/24")
    far.run("ip link add vx type vxlan id 77 remote 10.78.0.1 local 10.78.0.2 dstport 4789; ip link set vx mtu 1500")
    far.address("vx", "10.79.0.2/24")
    path = run_dir() / "tunnel.toml"
    path.write_text("""idle_sleep_ms = 1
[[bridge]]
name = "br0"
flows = ["in_port=1,actions=2", "in_port=2,tun_id=77,tun_src=10.78.0.2,tun_dst=10.78.0.1,actions=1"]
[[bridge.port]]
name = "tapa"
number = 1
vdev = "net_tap1,iface=tapa,mac=02:00:00:00:00:01"
[[bridge.port]]
name = "vx77"
number = 2
tunnel = { type = "vxlan", remote_ip = "10.78.0.2", local_ip = "10.78.0.1", key = "77" }
""")
    switch = home.spawn([binary(), "--config", str(path), "--no-huge"], "vswitch")
    switch.expect("vswitch: ready", 60)
    home.run(f"ip link set tapa netns {inside.name}")
    inside.address("tapa", "10.79.0.1/24")
    for size in (56, 1400, 1472, 4000):
        out = inside.run(f"busybox ping -c 6 -i 0.2 -W 1 -s {size} 10.79.0.2", must=False)
        got = re.search(r"(\d+) packets received", out)
        check(got and int(got.group(1)) > 0, f"pings of {size} bytes: {out}")
    server = far.spawn(["iperf3", "-s", "-1", "--forceflush"], "iperf3")
    server.expect("Server listening", 30)
    moved = iperf(inside.run, "10.79.0.2", "", 2)["sum_received"]["bits_per_second"] / 1e6
    check(moved > 1, f"TCP moves only {moved:.2f} Mbit/s")
    switch.child.terminate()
    switch.wait(30)
    check("vx77" not in home.run("ip -o link"), "the tunnel's device was left behind")
    figure(f"TCP {moved:.0f} Mbit/s from a TAP through VXLAN")
