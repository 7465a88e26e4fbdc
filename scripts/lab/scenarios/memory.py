"""Memory that comes and goes while packets flow."""

import re
import time

from guest import Guest
from netns import Namespace
from place import check, figure, run_dir
from scenario import scenario
from scenarios.guest import GUEST, HOST, forward, need, ping


def plug(guest, name, mib):
    guest.qmp.command("object-add", **{"qom-type": "memory-backend-memfd", "id": f"{name}-memory",
                                       "size": mib << 20, "share": True})
    guest.qmp.command("device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory")


def unplug(guest, name):
    """Asks the guest to let go of a DIMM; whether it did."""
    guest.qmp.command("device_del", id=name)
    end = time.monotonic() + 10
    while any(dimm["data"]["id"] == name for dimm in guest.qmp.command("query-memory-devices")):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    guest.qmp.command("object-del", id=f"{name}-memory")
    return True


@scenario(need, seconds=120, full_seconds=240)
def hot_plug(full):
    """DIMMs are plugged into a guest and pulled out under TCP both ways; nothing is lost, new memory carries packets."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    pmd = forward([f"vhost0,iface={sock}", "tap0,iface=tap0,mac=02:00:00:00:00:01"], 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    guest = Guest("dimms", sock, "packed=on", memory_mib=256).up()
    guest.address(f"{GUEST}/24")
    ping(guest, HOST)
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    guest.sh(f"iperf3 -c {HOST} -t 12 --bidir --forceflush > /tmp/iperf 2>&1 &")
    time.sleep(1)
    before, pulled = int(guest.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo")), 0
    times = 6 if full else 2
    for i in range(times):
        plug(guest, f"dimm{i}", 128)
        time.sleep(0.5)
        guest.sh("for m in /sys/devices/system/memory/memory*/state; do "
                 "grep -q offline $m && echo online_movable > $m; done; true")
        if i % 2 or full:
            pulled += unplug(guest, f"dimm{i}")
    after = int(guest.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    # More than it had at first: sockets and packets lie in what was plugged in.
    fill = (before >> 10) * 3 // 4
    guest.sh(f"mount -o remount,size=1G /tmp; dd if=/dev/zero of=/tmp/fill bs=1M count={fill} 2>/dev/null", 60)
    guest.sh("while pidof iperf3 > /dev/null; do sleep 0.1; done", 40)
    report = guest.sh("tail -8 /tmp/iperf")
    check("receiver" in report and "error" not in report, f"the connections did not survive: {report}")
    check(full or after > before + (100 << 10), f"the guest had {before} KiB and has {after}")
    rates = re.findall(r"([\d.]+ [MG]bits/sec).*receiver", report)
    figure(f"{times} DIMMs plugged in, {pulled} pulled out under TCP ({', '.join(rates)}); the guest had "
           f"{before >> 10} MiB and has {after >> 10}; ping {ping(guest, HOST):.2f} ms")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()
