"""A Linux guest whose device is killed under traffic and started again, on the same socket."""

import os
import re
import signal
import time

from guest import Guest
from netns import Namespace
from place import ROOT, check, figure, need_command, run_dir, sh
from scenario import scenario
from scenarios.guest import GUEST, HOST, forward, iperf, need, ping


def survives(name, device, times):
    """Kills our testpmd in the middle of TCP; the guest's connection must go on with the next one."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    vdevs = [f"vhost0,iface={sock}", "tap0,iface=tap0,mac=02:00:00:00:00:01"]
    pmd = forward(vdevs, 1, netns.name)
    netns.address("tap0", f"{HOST}/24")
    guest = Guest(name, sock, device, chardev=",reconnect-ms=100").up()
    guest.address(f"{GUEST}/24")
    ping(guest, HOST)
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    seconds, back = 3 * times + 4, []
    guest.sh(f"iperf3 -c {HOST} -t {seconds} --bidir --forceflush > /tmp/iperf 2>&1 &")
    for _ in range(times):
        time.sleep(1)
        pmd.kill(signal.SIGKILL)
        time.sleep(0.3)
        since = time.monotonic()
        pmd = forward(vdevs, 1, netns.name)
        netns.address("tap0", f"{HOST}/24")
        ping(guest, HOST, count=5)
        back.append(time.monotonic() - since)
    guest.sh("while pidof iperf3 > /dev/null; do sleep 0.1; done", seconds + 30)
    report = guest.sh("tail -8 /tmp/iperf")
    check("receiver" in report and "error" not in report, f"the connections did not survive: {report}")
    tcp = iperf(lambda c: guest.sh(c, 60), HOST, "", 2)["sum_received"]["bits_per_second"] / 1e6
    figure(f"{name}: killed {times} times, five pings answered {max(back):.1f} s after the start at the latest; "
           f"both connections went on; afterwards TCP {tcp:.0f} Mbit/s, ping {ping(guest, HOST):.2f} ms")
    guest.off()
    pmd.cmd("stop")
    pmd.quit()
    netns.close()


@scenario(need, seconds=120, full_seconds=300)
def reconnect(full):
    """The device is killed under TCP both ways and started again, split and packed: the guest notices a pause."""
    survives("split", "", 10 if full else 2)
    survives("packed", "packed=on", 10 if full else 2)


@scenario(lambda: need_command("cargo", "cargo"), seconds=240, full_seconds=1200)
def crashes(full):
    """Processes killed at any instruction, front-ends gone and back: a driver counts each chain it gave."""
    times = 1000 if full else 20
    command = ["env", f"HOTRING_CRASHES={times}", "cargo", "test", "-q", "--manifest-path", ROOT / "Cargo.toml", "-p", "pmd",
               "--test", "crash", "--", "--nocapture", "--test-threads=2"]
    out = sh(list(map(os.fspath, command)), must=False, timeout=3500)
    check("test result: ok." in out and "FAILED" not in out, out[-2000:])
    for line in re.findall(r"[\w-]+: \d+ frames over \d+ \w+", out):
        figure(line)
