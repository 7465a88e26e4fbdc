"""A Linux guest whose network device changes drivers: the kernel's, ours through VFIO, the kernel's again."""

import sys

from guest import Guest
from netns import Namespace
from nics import HOST_FILES, VFIO, Inside
from place import ROOT, check, figure, run_dir
from scenarios.guest import GUEST, HOST, forward, ping, transfer

# Sends numbered frames, and takes them back with their addresses swapped; each must be there once, unharmed.
ECHO = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
s.bind(("tap0", 0x88b5))
s.settimeout(20)
to, me = bytes.fromhex("525400000001"), bytes.fromhex("020000000001")
def rest(n):
    return bytes.fromhex("88b5") + n.to_bytes(4, "big") + bytes((n * 7 + i) % 256 for i in range(42 + n * 37 % 1400))
out, back, count = 0, 0, int(sys.argv[1])
while back < count:
    while out < count and out - back < 32:
        s.send(to + me + rest(out))
        out += 1
    frame = s.recv(2000)
    if frame[:12] == to + me:
        continue
    assert frame == me + to + rest(back), (back, frame[:32].hex())
    back += 1
print(back, "came back", flush=True)
"""


def give(guest, address, driver):
    said = guest.sh(f"chroot /host {ROOT}/scripts/bind bind {driver} {address}")
    check(f"has the driver {driver}" in said, f"scripts/bind: {said}")


def changes_drivers(name, device, turns=2, count=2000):
    """The guest's device goes from its kernel to VFIO, where our testpmd drives it, and back."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    pmd = forward([f"vhost0,iface={sock}", "tap0,iface=tap0,mac=02:00:00:00:00:01"], 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    iommu = ["-device", "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on,aw-bits=48"]
    guest = Guest(name, sock, f"iommu_platform=on,ats=on,{device}".strip(","), memory_mib=768, iommu=iommu,
                  extra=HOST_FILES, append="intel_iommu=on iommu.passthrough=0").up()
    guest.sh("dmesg -n 1")
    guest.address(f"{GUEST}/24")
    times = [ping(guest, HOST, count=5)]
    guest.sh(VFIO)
    for turn in range(turns):
        address = guest.sh("basename $(readlink -f /sys/class/net/eth0/device/..)")
        give(guest, address, "vfio-pci")
        inside = Inside(guest, ["-l", "0", "-a", address, "--", "-i", "--forward-mode=macswap", "--port-topology=loop"],
                        f"inside{turn}")
        inside.cmd("start")
        back = netns.run(f"{sys.executable} -c '{ECHO}' {count}", timeout=300)
        check(f"{count} came back" in back, back[-400:])
        inside.cmd("stop")
        inside.quit()
        give(guest, address, "virtio-pci")
        guest.address(f"{GUEST}/24")
        times.append(ping(guest, HOST, count=5))
    transfer(guest, netns, 1)
    faults = guest.sh("dmesg | grep 'fault addr' | head -3", must=False)
    check(not faults, f"the device asked for what was not mapped: {faults}")
    check(b"ring retired" not in pmd.seen, f"{pmd.tail()}")
    figure(f"{name}: {turns} times to VFIO and back, {count} frames to our driver there and back each time, none lost; ping by "
           f"the kernel's {', '.join(f'{t:.2f}' for t in times)} ms; files agree")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()
