"""Live migration of a Linux guest between two QEMU processes, from one of our `vhost` ports to another."""

import hashlib
import os
import re
import sys
import time

import announce
from guest import Guest
from netns import Namespace
from place import check, figure, need_guests, need_peers, run_dir
from scenario import scenario
from scenarios.guest import GUEST, HOST, ping
from testpmd import hotring

CHUNK, CHUNKS = 1 << 18, 100
MAC = "52:54:00:00:00:01"
# Takes a file while it sends another, a piece at a time, so that both last for some seconds.
BOTH = """
import hashlib, os, socket, sys, threading, time
out = socket.create_server((sys.argv[1], 5200))
back = socket.create_server((sys.argv[1], 5201))
print("listening", flush=True)
size, n = int(sys.argv[2]), int(sys.argv[3])
def send():
    to, sum = out.accept()[0], hashlib.sha256()
    for _ in range(n):
        data = os.urandom(size)
        sum.update(data)
        to.sendall(data)
        time.sleep(0.1)
    to.close()
    print("sent", sum.hexdigest(), flush=True)
def take():
    of, sum = back.accept()[0], hashlib.sha256()
    while data := of.recv(size):
        sum.update(data)
        time.sleep(0.1 * len(data) / size)
    print("taken", sum.hexdigest(), flush=True)
for t in send, take:
    threading.Thread(target=t).start()
"""


def need():
    need_peers()
    need_guests()


def migrate(source, target, uri, wait=True):
    """Migrates; the answer of query-migrate at the end."""
    source.qmp.command("migrate-set-parameters", **{"max-bandwidth": 200 << 20, "downtime-limit": 500})
    source.qmp.command("migrate", uri=f"unix:{uri}")
    end = time.monotonic() + 60
    while wait:
        state = source.qmp.command("query-migrate")
        if state.get("status") in ("completed", "failed", "cancelled"):
            check(state["status"] == "completed", f"migration {state}")
            break
        check(time.monotonic() < end, f"migration does not converge: {state.get('ram')}")
        time.sleep(0.05)
    return wait and state


def differing_pages(one, other):
    """Numbers of the pages in which two files differ."""
    pages, size = [], 1 << 20
    with open(one, "rb") as a, open(other, "rb") as b:
        at = 0
        while True:
            x, y = a.read(size), b.read(size)
            if x != y:
                pages += [(at + i) >> 12 for i in range(0, len(x), 4096) if x[i:i + 4096] != y[i:i + 4096]]
            if not x:
                return pages
            at += len(x)


def moved(name, device, full=False):
    """A guest under traffic both ways moves; all of its memory must have moved with it, and its connections."""
    netns = Namespace()
    first, second, uri = (run_dir() / f for f in ("vm0.sock", "vm1.sock", "migration.sock"))
    pmd = hotring("testpmd", [f"vhost0,iface={first}", "tap0,iface=tap0,mac=02:00:00:00:00:01",
                              f"vhost1,iface={second}", "tap1,iface=tap1,mac=02:00:00:00:00:02"],
                  ["--forward-mode=io"], netns=netns.name)
    pmd.cmd("start")
    netns.run("ip link add br0 type bridge; ip link set br0 up; for t in tap0 tap1; do "
              "ip link set $t master br0; ip link set $t up; done")
    netns.address("br0", f"{HOST}/24")
    source = Guest(f"{name}-source", first, device).up()
    source.address(f"{GUEST}/24")
    ping(source, HOST)
    # A migration that is given up: logging ends, traffic goes on.
    source.qmp.command("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
    source.qmp.command("migrate", uri="exec:cat > /dev/null")
    time.sleep(0.5)
    source.qmp.command("migrate_cancel")
    ping(source, HOST)

    peer = netns.spawn([sys.executable, "-c", BOTH, HOST, CHUNK, CHUNKS], "peer")
    peer.expect("listening")
    target = Guest(f"{name}-target", second, device, extra=["-incoming", f"unix:{uri}", "-S"])
    source.sh(f"dd if=/dev/urandom of=/tmp/f bs={CHUNK} count={CHUNKS} 2>/dev/null; sha256sum /tmp/f > /tmp/sent")
    source.sh(f"(nc {HOST} 5200 < /dev/null | sha256sum > /tmp/taken) & (nc {HOST} 5201 < /tmp/f) &")
    time.sleep(1)
    state = migrate(source, target, uri)
    check(source.qmp.command("query-status")["running"] is False, "the source goes on")
    pages = differing_pages(source.memory(), target.memory())
    check(not pages, f"{len(pages)} pages differ after the migration: {pages[:40]}")

    silent = "guest_announce=off" in device
    announced = announce.listen(netns, "tap1", announce.rarp(MAC) if silent else announce.arp(MAC, GUEST))
    source.process.kill()
    target.qmp.command("cont")
    announced.expect("heard", 60)
    target.sh("while ! [ -s /tmp/taken ]; do sleep 0.1; done", 90)
    sums = peer.expect(r"(sent|taken) \w+\s+(sent|taken) \w+\s", 90)
    sent, taken = (re.search(rf"{what} (\w+)", sums).group(1) for what in ("sent", "taken"))
    sums = target.sh("cat /tmp/taken /tmp/sent")
    check(sent in sums and taken in sums, f"sent {sent}, taken {taken}, in the guest: {sums}")
    ram = state["ram"]
    figure(f"{name}: {state['total-time']} ms, {ram['dirty-sync-count']} rounds, downtime {state['downtime']} ms; "
           f"memory of both the same, {CHUNK * CHUNKS >> 20} MiB each way unharmed; announced by "
           f"{'RARP' if silent else 'the guest'}; ping {ping(target, HOST):.2f} ms")
    target.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


def moved_before_its_memory(name, device):
    """A guest goes on at its new place before its memory has come; it and the device wait for pages as they need them."""
    netns = Namespace()
    first, second, uri = (run_dir() / f for f in ("vm0.sock", "vm1.sock", "migration.sock"))
    pmd = hotring("testpmd", [f"vhost0,iface={first},postcopy-support=1", "tap0,iface=tap0,mac=02:00:00:00:00:01",
                              f"vhost1,iface={second},postcopy-support=1", "tap1,iface=tap1,mac=02:00:00:00:00:02"],
                  ["--forward-mode=io"], netns=netns.name)
    pmd.cmd("start")
    netns.run("ip link add br0 type bridge; ip link set br0 up; for t in tap0 tap1; do "
              "ip link set $t master br0; ip link set $t up; done")
    netns.address("br0", f"{HOST}/24")
    source = Guest(f"{name}-source", first, device).up()
    source.address(f"{GUEST}/24")
    ping(source, HOST)
    peer = netns.spawn([sys.executable, "-c", BOTH, HOST, CHUNK, CHUNKS], "peer")
    peer.expect("listening")
    target = Guest(f"{name}-target", second, device, extra=["-incoming", "defer"])
    for qemu in source, target:
        qemu.qmp.command("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
    target.qmp.command("migrate-incoming", uri=f"unix:{uri}")
    # Memory that is looked at only afterwards: its pages come late.
    source.sh("dd if=/dev/urandom of=/tmp/still bs=1M count=48 2>/dev/null; sha256sum /tmp/still > /tmp/sum; cat /tmp/sum")
    source.sh(f"dd if=/dev/urandom of=/tmp/f bs={CHUNK} count={CHUNKS} 2>/dev/null; sha256sum /tmp/f > /tmp/sent")
    source.sh(f"(nc {HOST} 5200 < /dev/null | sha256sum > /tmp/taken) & (nc {HOST} 5201 < /tmp/f) &")
    time.sleep(1)
    source.qmp.command("migrate-set-parameters", **{"max-bandwidth": 4 << 20, "max-postcopy-bandwidth": 24 << 20})
    source.qmp.command("migrate", uri=f"unix:{uri}")
    time.sleep(1)
    source.qmp.command("migrate-start-postcopy")
    end, seen = time.monotonic() + 90, set()
    while True:
        state = source.qmp.command("query-migrate")
        seen.add(state.get("status"))
        if state.get("status") in ("completed", "failed", "cancelled", "postcopy-paused"):
            break
        check(time.monotonic() < end, f"post-copy does not end: {state}")
        time.sleep(0.02)
    check(state["status"] == "completed" and "postcopy-active" in seen, f"migration {seen}, {state}")
    source.process.kill()
    check("OK" in target.sh("sha256sum -c /tmp/sum", 90), "memory that came late differs")
    target.sh("while ! [ -s /tmp/taken ]; do sleep 0.1; done", 90)
    sums = peer.expect(r"(sent|taken) \w+\s+(sent|taken) \w+\s", 90)
    sent, taken = (re.search(rf"{what} (\w+)", sums).group(1) for what in ("sent", "taken"))
    sums = target.sh("cat /tmp/taken /tmp/sent")
    check(sent in sums and taken in sums, f"sent {sent}, taken {taken}, in the guest: {sums}")
    ram = state["ram"]
    figure(f"{name}: {state['total-time']} ms, {ram.get('postcopy-requests', 0)} pages asked for, downtime {state['downtime']} ms; "
           f"{CHUNK * CHUNKS >> 20} MiB each way unharmed; ping {ping(target, HOST):.2f} ms")
    target.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=180, full_seconds=300)
def post_copy(full):
    """A guest moves before its memory does, under TCP both ways: every byte arrives, and so does memory that nobody touched."""
    moved_before_its_memory("post-copy", "")
    if full:
        moved_before_its_memory("post-copy-packed", "packed=on")


@scenario(need, seconds=120, full_seconds=300)
def migration(full):
    """A guest moves between two QEMUs under TCP both ways, split and packed: all of its memory, no byte lost."""
    moved("split", "", full)
    moved("packed", "packed=on,guest_announce=off", full)
    if full:
        moved("plain", "csum=off,guest_csum=off,mrg_rxbuf=off", full)
        moved("packed-announce", "packed=on", full)
