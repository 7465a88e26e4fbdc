"""Two programs with one command line: DPDK's `dpdk-testpmd` and Hotring's `testpmd`."""

import os
import re
import select
import time

import place
from place import ROOT, check
from process import Process

PROMPT = r"testpmd> "
DPDK = os.environ.get("HOTRING_DPDK", "dpdk-testpmd")


def binary():
    """Hotring's testpmd: HOTRING_TESTPMD, or the release build."""
    given = os.environ.get("HOTRING_TESTPMD")
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = given or f"{target}/release/testpmd"
    if not os.path.exists(path):
        raise place.Skip(f"{path} is not built (cargo build --release)")
    return path


def stand_in():
    """DPDK's testpmd runs in our place."""
    return os.environ.get("HOTRING_DEVICE") == "dpdk"


class Testpmd(Process):
    """A running testpmd at its prompt."""

    def cmd(self, line, timeout_s=20):
        """Sends a line and returns what was printed up to the next prompt."""
        while self.pump(0) and self._pending():
            pass
        self.seen = b""
        self.send(line + "\n")
        return self.expect(PROMPT, timeout_s)

    def _pending(self):
        return bool(select.select([self.child.stdout], [], [], 0)[0])

    def counters(self):
        """{port: {"RX-packets": n, ...}} from `show port stats all`."""
        text, ports = self.cmd("show port stats all"), {}
        for part in re.split(r"NIC statistics for port", text)[1:]:
            number = int(part.split()[0])
            ports[number] = {k: int(v) for k, v in re.findall(r"([RT]X-\w+): *(\d+)", part)}
        check(ports, f"{self.name}: 'show port stats all' shows no port: {text!r}")
        return ports

    def total(self, key):
        return sum(p[key] for p in self.counters().values())

    def dropped(self):
        """Packets the forwarding loop dropped since `start`, received and transmitted, over all ports."""
        text = self.cmd("show fwd stats all")
        return sum(int(n) for n in re.findall(r"[RT]X-dropped: *(\d+)", text.split("Accumulated")[0]))

    def busy_cycles(self):
        """(cycles spent on packets since `start` or `clear fwd stats all`, cycles of a second); needs
        --record-core-cycles. None when there were no packets."""
        found = re.search(r"total cycles=(\d+) .* at (\d+) MHz", self.cmd("show fwd stats all"))
        return found and (int(found.group(1)), int(found.group(2)) * 1_000_000)

    def wait_for(self, condition, what, timeout_s=20):
        """Polls the counters until `condition(counters)` holds."""
        end = time.monotonic() + timeout_s
        while True:
            now = self.counters()
            if condition(now):
                return now
            check(time.monotonic() < end, f"{self.name}: {what} did not happen within {timeout_s} s: {now}")
            time.sleep(0.05)

    def quit(self, timeout_s=15):
        """Leaves by the prompt; a status other than 0 is a failure."""
        self.send("quit\n")
        status = self.wait(timeout_s)
        self.kill()
        check(status == 0, f"{self.name} quit with status {status}: {self.tail()}")


def dpdk(name, vdevs, args=(), core=1, netns=None, memory_mib=256, eal=(), file=None):
    """DPDK's testpmd at its prompt, forwarding on `core`. Leaves no file on hugetlbfs."""
    main = next(c for c in place.cores() if c != core)
    argv = ["stdbuf", "-o0", file or DPDK, "-l", f"{main},{core}", "--main-lcore", main, "--no-pci", "--no-telemetry",
            "--in-memory", "--single-file-segments", "-m", memory_mib, *eal]
    for v in vdevs:
        argv += ["--vdev", v]
    argv += ["--", "-i", *args]
    p = Testpmd(argv, name, netns=netns)
    started = p.expect(PROMPT, 60)
    wrong = re.search(r"[^\n]*\nFail to configure port[^\n]*", started)
    check(not wrong, f"{name}: {wrong and wrong.group(0)}")
    return p


def hotring(name, vdevs, args=(), core=0, netns=None, file=None):
    """Hotring's testpmd, or the build in `file`, at its prompt, forwarding on `core`.

    With HOTRING_DEVICE=dpdk DPDK's own takes its place: it shows whether the harness or the device is at fault.
    """
    if stand_in():
        extra = [a for a in args if not a.startswith("--idle-sleep")] + ["--total-num-mbufs=16384"]
        return dpdk(name, ["net_" + v for v in vdevs], extra, core, netns)
    main = next(c for c in place.cores() if c != core)
    argv = [file or binary(), "-l", f"{main},{core}"]
    for v in vdevs:
        argv += ["--vdev", v]
    argv += ["--", "-i", *args]
    p = Testpmd(argv, name, netns=netns)
    p.expect(PROMPT, 30)
    return p
