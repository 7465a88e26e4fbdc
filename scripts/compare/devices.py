"""The back-ends that are compared, each with the settings that are its best."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import ovs
import place
import testpmd
from place import run_dir, sh

# mode -> forward mode of a testpmd
FORWARD = {"loop": "io", "dequeue": "rxonly", "enqueue": "txonly", "guests": "io"}
BIG = 9728  # bytes of an mbuf that holds a jumbo frame in one piece


class Testpmd:
    """DPDK's net_vhost or our vhost port, forwarding in a testpmd."""

    modes = tuple(FORWARD)
    poller = ""  # how the names of the threads that forward begin

    def __init__(self, ports):
        self.ports = ports  # argument of a port

    def options(self, mode, frame, burst, cycles):
        topology = "paired" if mode == "guests" else "loop"
        return [f"--forward-mode={FORWARD[mode]}", f"--port-topology={topology}", f"--txpkts={frame}",
                f"--burst={burst}"] + (["--record-core-cycles"] if cycles else [])

    def start(self, mode, sockets, frame, core, burst=32, cycles=False):
        """Starts it on `core`; it listens on each of the sockets and forwards."""
        ports = [self.ports.format(n=n, socket=socket) for n, socket in enumerate(sockets)]
        running = self.launch(ports, self.options(mode, frame, burst, cycles), frame, core)
        running.cmd("start")
        self.settings = " ".join(running.argv)
        return running

    @staticmethod
    def stop(running):
        """Ends it; DPDK's net_vhost does not always manage to close a port whose driver has gone."""
        try:
            running.cmd("stop", timeout_s=5)
            running.quit(timeout_s=5)
        except TimeoutError as stuck:
            print(f"compare: {stuck}", file=sys.stderr)
            running.kill(signal.SIGKILL)


class Hotring(Testpmd):
    """Ours. `file` names another build, `checked` forces the checked path to the rings' metadata."""

    def __init__(self, file=None, checked=False):
        super().__init__("vhost{n},iface={socket},queues=1" + (",mapped=0" if checked else ""))
        self.file = file or testpmd.binary()
        self.name = "hotring" + (" checked" if checked else "") + (f" {file}" if file else "")
        self.version = sh([self.file, "--version"], must=False).splitlines()[0]
        self.build = "cargo build --release"

    def launch(self, ports, options, frame, core):
        return testpmd.hotring("device", ports, options, core, file=self.file)


class Dpdk(Testpmd):
    """The net_vhost of a dpdk-testpmd."""

    def __init__(self, file):
        super().__init__("net_vhost{n},iface={socket},queues=1")
        self.file = shutil.which(file) or file
        if not os.path.exists(self.file):
            raise place.Skip(f"there is no {file}")
        said = subprocess.run([self.file, "-v", "--no-pci", "--no-huge", "--no-telemetry"], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        found = re.search(r"RTE Version: 'DPDK ([^']*)'", said.stdout + said.stderr)
        self.version = f"DPDK {found.group(1) if found else '(unknown)'}"
        self.name = self.version.lower()
        self.build = self._build()

    def _build(self):
        """How it was built, when it lies in its build folder."""
        options = pathlib.Path(self.file).resolve().parents[1] / "meson-info/intro-buildoptions.json"
        if not options.exists():
            return "as packaged"
        values = {o["name"]: o["value"] for o in json.loads(options.read_text())}
        return ", ".join(f"{k}={values[k]}" for k in ("buildtype", "optimization", "cpu_instruction_set") if k in values)

    def launch(self, ports, options, frame, core):
        if frame > 2048 - 128:
            # In front: --txpkts is refused when no mbuf holds so much by then.
            options = [f"--mbuf-size={BIG}", "--total-num-mbufs=8192"] + options
        return testpmd.dpdk("device", ports, options, core, eal=["--force-max-simd-bitwidth=512"], file=self.file)


class Ovs:
    """Open vSwitch with DPDK: one poll core, one flow for each port."""

    modes = ("loop", "dequeue", "guests")
    poller = "pmd"

    def __init__(self):
        ovs.need()
        said = sh([ovs.VSWITCHD, "--version"]).splitlines()
        self.name = "ovs " + said[0].split()[-1]
        self.version = ", ".join(said)
        self.build = "as packaged"

    def start(self, mode, sockets, frame, core, burst=32, cycles=False):
        shutil.rmtree(run_dir() / "ovs", ignore_errors=True)
        switch = ovs.Switch(core)
        ports = [f"vm{n}" for n in range(len(sockets))]
        for port, socket in zip(ports, sockets):
            os.symlink(switch.server_port(port, mtu=max(frame, 1500)), socket)
        if mode == "guests":
            switch.cross(*ports)
        else:
            switch.flows({ports[0]: "in_port" if mode == "loop" else "drop"})
        self.settings = "; ".join([*switch.settings, *self._fastest(switch)])
        switch.child = switch.daemon.child
        return switch

    @staticmethod
    def _fastest(switch):
        """Whatever vector code this build has; says which it took."""
        wanted = ["dpif-netdev/dpif-impl-set dpif_avx512", "dpif-netdev/miniflow-parser-set study",
                  "dpif-netdev/subtable-lookup-prio-set avx512_gather 3", "odp-execute/action-impl-set avx512"]
        return [w for w in wanted if "rror" not in switch.appctl(*w.split(), must=False)]

    @staticmethod
    def stop(running):
        running.close()
