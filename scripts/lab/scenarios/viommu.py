"""Linux guests in QEMU whose network device is behind an IOMMU of theirs: Intel's, and virtio's."""

from guest import Guest
from netns import Namespace
from place import check, figure, need_guests, need_peers, run_dir
from scenario import scenario
from scenarios.driver import changes_drivers
from scenarios.guest import GUEST, HOST, PACKED, forward, iperf, ping, transfer
from testpmd import stand_in

ACCESS_PLATFORM = 33
INTEL = ["-device", "intel-iommu,intremap=on,device-iotlb=on"]
VIRTIO = ["-device", "virtio-iommu-pci"]
STRICT, LAZY = "intel_iommu=on iommu.passthrough=0 iommu.strict=1", "intel_iommu=on iommu.passthrough=0 iommu.strict=0"


def need():
    need_peers()
    need_guests()


def behind(name, iommu, append, device="", key="", seconds=2):
    """A guest and a TAP joined by our testpmd: no ping is lost, from the first on; TCP and a file both ways."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    support = ",iommu-support=1" if stand_in() else key
    pmd = forward([f"vhost0,iface={sock},queues=1{support}", "tap0,iface=tap0,mac=02:00:00:00:00:01"], 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    ats = "ats=on," if iommu is INTEL else ""
    guest = Guest(name, sock, f"{ats}iommu_platform=on,{device}".strip(","), iommu=iommu, append=append).up()
    check(ACCESS_PLATFORM in guest.features(), f"features agreed on are {sorted(guest.features())}")
    check("packed" not in device or PACKED in guest.features(), "no packed ring")
    kinds = guest.sh("cat /sys/kernel/iommu_groups/*/type | sort | uniq -c")
    # What the kernel has to say must not come between what commands print.
    guest.sh("dmesg -n 1")
    guest.address(f"{GUEST}/24")
    small = ping(guest, HOST, count=40)
    out = netns.run(f"busybox ping -c 40 -i 0.05 -W 3 {GUEST}")
    check("40 packets received" in out, f"ping from the host: {out[-200:]}")
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    words = []
    for way, reverse in ("out", ""), ("in", "-R"):
        tcp = iperf(lambda c: guest.sh(c, 60), HOST, reverse, seconds)["sum_received"]["bits_per_second"] / 1e6
        check(tcp > 0.1, f"TCP {way} moves only {tcp:.2f} Mbit/s")
        words.append(f"TCP {way} {tcp:.0f} Mbit/s")
    transfer(guest, netns, 4)
    faults = guest.sh("dmesg | grep 'fault addr' | head -3", must=False)
    check(not faults, f"the device asked for what the guest had taken back: {faults}")
    figure(f"{name} ({' '.join(kinds.split())}): ping {small:.2f} ms, none of 80 lost; {', '.join(words)}; files agree")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=180, full_seconds=900)
def viommu(full):
    """Guests behind intel-iommu and virtio-iommu, strict and lazy, split and packed: no ping lost, TCP and files both ways."""
    behind("intel-strict", INTEL, STRICT)
    behind("virtio-packed", VIRTIO, STRICT, "packed=on")
    if full:
        behind("intel-strict-packed", INTEL, STRICT, "packed=on", seconds=5)
        behind("intel-lazy", INTEL, LAZY, seconds=5)
        behind("intel-lazy-packed", INTEL, LAZY, "packed=on", seconds=5)
        behind("intel-checked", INTEL, STRICT, key=",mapped=0", seconds=5)
        behind("virtio-strict", VIRTIO, STRICT, seconds=5)
        behind("virtio-lazy", VIRTIO, LAZY, seconds=5)
        behind("passthrough", INTEL, "intel_iommu=on iommu.passthrough=1", seconds=5)
        changes_drivers("drivers-split", "")
        changes_drivers("drivers-packed", "packed=on")
