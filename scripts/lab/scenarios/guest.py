"""Linux guests in QEMU on our `vhost` ports, with a TAP in a namespace, or another guest, at the far end."""

import base64
import hashlib
import json
import os
import re
import sys

from guest import Guest
from netns import Namespace
from place import check, figure, need_command, need_guests, need_peers, run_dir, sh
from scenario import scenario
from testpmd import hotring, stand_in

NO_OFFLOADS = ",".join(f"{f}=off" for f in (
    "csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "guest_uso4", "guest_uso6",
    "host_tso4", "host_tso6", "host_ecn", "host_ufo", "host_uso"))
HOST, GUEST, SECOND = "10.9.0.1", "10.9.0.2", "10.9.0.3"
LISTEN = """
import socket, sys
s = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
c = s.accept()[0]
"""
SERVE = LISTEN + "c.sendfile(open(sys.argv[3], 'rb'))"
TAKE = LISTEN + """
with open(sys.argv[3], "wb") as f:
    while data := c.recv(1 << 16):
        f.write(data)
"""
# Feature bits: virtio 1.3 §6, §5.1.3.
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG, MQ, PACKED = 0, 1, 7, 11, 15, 22, 34


def offloads():
    """Features that a guest gets by default; DPDK in our place offers no segmentation unless it is asked to."""
    return {MRG} if stand_in() else {MRG, CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4}


def need():
    need_peers()
    need_guests()


def forward(vdevs, queues, netns=None):
    """Our testpmd, joining two ports."""
    pmd = hotring("testpmd", vdevs, ["--forward-mode=io", f"--rxq={queues}", f"--txq={queues}"], netns=netns)
    pmd.cmd("start")
    return pmd


def ping(guest, to, size=56, count=20):
    """Pings; every one must be answered. Returns the mean round trip in ms."""
    out = guest.sh(f"ping -c {count} -i 0.1 -s {size} -W 3 {to}", 60, must=False)
    got = re.search(r"(\d+) packets transmitted, (\d+) packets received", out)
    check(got and got.group(1) == got.group(2) == str(count), f"ping of {size} bytes to {to}: {out[-300:]}")
    return float(re.search(r"= [\d.]+/([\d.]+)/", out).group(1))


def iperf(run, server, what, seconds):
    """Runs an iperf3 client by `run` and returns its report; `what` adds its options."""
    text = run(f"iperf3 -c {server} -t {seconds} -J {what}")
    report = json.loads(text[text.index("{"):])
    check("error" not in report, f"iperf3 {what}: {report.get('error')}")
    return report["end"]


def measure(run, server, seconds, udp_mbit=20):
    """TCP and UDP, both ways, from where `run` runs to the server: figures in Mbit/s, share of datagrams lost."""
    words = []
    for name, reverse in (("out", ""), ("in", "-R")):
        tcp = iperf(run, server, reverse, seconds)["sum_received"]["bits_per_second"] / 1e6
        check(tcp > 1, f"TCP {name} moves only {tcp:.2f} Mbit/s")
        udp = iperf(run, server, f"-u -b {udp_mbit}M -l 1400 {reverse}", seconds)["sum"]
        check(udp["packets"] > 100 and udp["lost_percent"] < 5, f"UDP {name}: {udp}")
        words.append(f"TCP {name} {tcp:.0f} Mbit/s, UDP {name} {udp['packets'] - udp['lost_packets']}/{udp['packets']}")
    return "; ".join(words)


def transfer(guest, netns, mib):
    """A file from the host into the guest and another back; their sums must agree."""
    there, back = run_dir() / "there", run_dir() / "back"
    there.write_bytes(os.urandom(mib << 20))
    want = hashlib.sha256(there.read_bytes()).hexdigest()
    serve = netns.spawn([sys.executable, "-c", SERVE, HOST, "5100", there], "serve")
    serve.expect("listening")
    got = guest.sh(f"nc {HOST} 5100 < /dev/null | sha256sum", 120).split()[0]
    serve.wait(20)
    check(got == want, f"the file's sha256 in the guest is {got}, at the host {want}")
    take = netns.spawn([sys.executable, "-c", TAKE, HOST, "5101", back], "take")
    take.expect("listening")
    sent = guest.sh(f"dd if=/dev/urandom of=/tmp/f bs=1M count={mib} 2>/dev/null; nc {HOST} 5101 < /tmp/f; sha256sum /tmp/f", 120)
    take.wait(20)
    got = hashlib.sha256(back.read_bytes()).hexdigest()
    check(got in sent, f"the file's sha256 at the host is {got}, in the guest {sent}")


def joined(name, device="", queues=1, has=frozenset(), lacks=frozenset(), kernel="6.12", full=False, memory_mib=384, backing="memfd"):
    """A guest and a TAP joined by our testpmd: ping, iperf3 both ways, a file both ways."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    pmd = forward([f"vhost0,iface={sock},queues={queues}", "tap0,iface=tap0,mac=02:00:00:00:00:01"], queues, netns.name)
    netns.address("tap0", f"{HOST}/24")
    guest = Guest(name, sock, device, queues, kernel, memory_mib=memory_mib, backing=backing).up()
    guest.address(f"{GUEST}/24")
    agreed = guest.features()
    check(has <= agreed and not lacks & agreed, f"features agreed on are {sorted(agreed)}: "
          f"expected {sorted(has)}, not {sorted(lacks)}")
    small, large = ping(guest, HOST), ping(guest, HOST, 1400, 10)
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    figures = measure(lambda c: guest.sh(c, 60 if not full else 120), HOST, 10 if full else 2)
    transfer(guest, netns, 64 if full else 8)
    figure(f"{name} (Linux {kernel}): ping {small:.2f} ms, {large:.2f} ms at 1400 B; {figures}; files agree")
    guest.off()
    # The port takes the next guest on the same socket.
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=90, full_seconds=180)
def guest_split(full):
    """A guest on a split ring with checksum and segmentation offload."""
    joined("split", has=offloads(), lacks={PACKED}, full=full)


@scenario(need, seconds=90, full_seconds=180)
def guest_packed(full):
    """A guest on a packed ring with checksum and segmentation offload."""
    joined("packed", "packed=on", has=offloads() | {PACKED}, full=full)


@scenario(need, seconds=120, full_seconds=360)
def guest_plain(full):
    """Guests without any offload, mergeable on and off, split and packed."""
    joined("plain", NO_OFFLOADS, lacks={CSUM, HOST_TSO4}, full=full)
    joined("plain-packed", NO_OFFLOADS + ",mrg_rxbuf=off,packed=on", has={PACKED}, lacks={CSUM, HOST_TSO4, MRG}, full=full)
    if full:
        joined("plain-unmerged", NO_OFFLOADS + ",mrg_rxbuf=off", lacks={CSUM, HOST_TSO4, MRG}, full=True)


def need_capture():
    need()
    need_command("tshark", "tshark")


def judge(file, what, most):
    """Every packet of a capture has good checksums, and none is larger than the MTU; how many there are."""
    fields = ["frame.len", "ip.checksum.status", "tcp.checksum.status", "tcp.checksum", "ip.src", "tcp.seq"]
    out = sh(["tshark", "-r", file, "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-Y", "tcp", "-T", "fields",
              *sum((["-e", field] for field in fields), [])], timeout=120)
    rows = [line.split("\t") for line in out.splitlines() if line[:1].isdigit()]
    # 1: good. Linux stores 0xffff where a TCP checksum is 0 (skb_checksum_help), which is the same sum; tshark calls it
    # bad (RFC 1624).
    bad = [row for row in rows if int(row[0]) > most or row[1] != "1" or (row[2] != "1" and row[3] != "0xffff")]
    check(len(rows) > 200, f"{what}: only {len(rows)} packets in the capture: {out[-300:]}")
    check(not bad, f"{what}: {len(bad)} of {len(rows)} packets are damaged or too large: {bad[:5]}")
    return len(rows)


def exchange(sender, receiver, address, mib):
    """A file from one guest to the other by HTTP; its sums must agree."""
    want = sender.sh(f"dd if=/dev/urandom of=/tmp/f bs=1M count={mib} 2>/dev/null; "
                     f"(pidof httpd || httpd -p 80 -h /tmp) >/dev/null; sha256sum < /tmp/f", 60)
    got = receiver.sh(f"wget -q -O - http://{address}/f | sha256sum", 120)
    check(got == want, f"the file's sha256 is {want} where it was sent and {got} where it arrived")


CSUM_ERRORS = "awk '/^Tcp: [0-9]/ { print $NF }' /proc/net/snmp"


@scenario(need_capture, seconds=150)
def guest_mixed(full):
    """Offloads on one side only: TAP or guest with, guest without; every packet there has good checksums (tshark)."""
    mib = 8
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    pmd = forward([f"vhost0,iface={sock},queues=1", "tap0,iface=tap0,tso=1,mac=02:00:00:00:00:01"], 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    plain = Guest("plain", sock, NO_OFFLOADS).up()
    plain.address(f"{GUEST}/24")
    # The guest's own joining comes before the capture.
    plain.sh("ethtool -K eth0 gro off; (tcpdump -Z root -i eth0 -s 0 -B 8192 -w /tmp/capture tcp 2>/tmp/said &); sleep 1")
    transfer(plain, netns, mib)
    plain.sh("killall -INT tcpdump; sleep 1; cat /tmp/said")
    capture = run_dir() / "tap.pcap"
    take = netns.spawn([sys.executable, "-c", TAKE, HOST, "5102", capture], "take-capture")
    take.expect("listening")
    plain.sh(f"nc {HOST} 5102 < /tmp/capture; rm /tmp/capture", 60)
    take.wait(20)
    figure(f"TAP with, guest without: {judge(capture, 'TAP and guest', 1514)} packets, none bad; files agree")
    plain.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()

    second, capture = run_dir() / "vm1.sock", run_dir() / "guests.pcap"
    pmd = forward([f"vhost0,iface={sock},queues=1,gro=1", f"vhost1,iface={second},queues=1"], 1)
    large = Guest("large", second, mac="52:54:00:00:00:02").up()
    large.address(f"{SECOND}/24")
    check({GUEST_TSO4, HOST_TSO4} <= large.features(), "the second guest has no segmentation offload")
    plain = Guest("plain-again", sock, NO_OFFLOADS).up()
    plain.address(f"{GUEST}/24")
    ping(plain, SECOND, count=3)
    # Some of each way: it comes out by the console.
    plain.sh("ethtool -K eth0 gro off; (tcpdump -Z root -i eth0 -s 0 -c 300 -w /tmp/capture tcp 2>/dev/null &); sleep 1")
    exchange(large, plain, SECOND, 2)
    plain.sh("(tcpdump -Z root -i eth0 -s 0 -c 200 -w /tmp/second tcp 2>/dev/null &); sleep 1")
    exchange(plain, large, GUEST, mib)
    # A capture has one header, of 24 bytes.
    text = plain.sh("sleep 1; (cat /tmp/capture; tail -c +25 /tmp/second) | base64", 90)
    capture.write_bytes(base64.b64decode(text[text.rindex("1MOyoQ"):]))
    packets = judge(capture, "guest and guest", 1514)
    joined = int(re.search(r"rx_joined: (\d+)", pmd.cmd("show port xstats 0")).group(1))
    check(joined > 100, f"only {joined} segments were joined")
    for guest in (plain, large):
        errors = guest.sh(CSUM_ERRORS)
        check(errors == "0", f"{guest.name} counts {errors} bad TCP checksums")
    figure(f"guest with, guest without: {packets} packets, none bad, {joined} segments joined on the way to the first; files agree")
    plain.off()
    large.off()
    pmd.cmd("stop")
    pmd.quit()


@scenario(need, seconds=120, full_seconds=360)
def guest_queues(full):
    """Guests with several queue pairs on a TAP with as many."""
    joined("mq-packed", "packed=on", queues=2, has=offloads() | {PACKED, MQ}, full=full)
    if full:
        joined("mq-split", queues=4, has=offloads() | {MQ}, full=True)


@scenario(need, seconds=90, full_seconds=180)
def guest_old_kernel(full):
    """A guest with Linux 6.1, its memory a plain shared file."""
    joined("linux-6.1", kernel="6.1", backing="shm", full=full)


@scenario(need, seconds=120, full_seconds=240)
def guest_two(full):
    """Two guests joined by one testpmd, one split, one packed; then one of them reboots."""
    first, second = run_dir() / "vm0.sock", run_dir() / "vm1.sock"
    pmd = forward([f"vhost0,iface={first},queues=1", f"vhost1,iface={second},queues=1"], 1)
    a = Guest("first", first)
    b = Guest("second", second, "packed=on", mac="52:54:00:00:00:02")
    a.up().address(f"{GUEST}/24")
    b.up().address(f"{SECOND}/24")
    small = ping(a, SECOND)
    b.sh("iperf3 -s -D")
    figures = measure(lambda c: a.sh(c, 120), SECOND, 10 if full else 2)
    a.sh(f"dd if=/dev/urandom of=/tmp/f bs=1M count={32 if full else 8} 2>/dev/null")
    want = a.sh("httpd -p 80 -h /tmp; sha256sum < /tmp/f")
    got = b.sh(f"wget -q -O - http://{GUEST}/f | sha256sum", 120)
    check(got == want, f"the file's sha256 is {want} where it was sent and {got} where it arrived")
    figure(f"two guests: ping {small:.2f} ms; {figures}; the file agrees")
    b.off()
    b = Guest("second-again", second, mac="52:54:00:00:00:02").up()
    b.address(f"{SECOND}/24")
    figure(f"the second one again, on a split ring: ping {ping(b, GUEST):.2f} ms")
    a.off()
    b.off()
    pmd.cmd("stop")
    pmd.quit()
