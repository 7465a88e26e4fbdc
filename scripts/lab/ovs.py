"""A private Open vSwitch with DPDK: its own database, sockets and logs, gone when the scenario ends."""

import os
import time

from place import Skip, cores, run_dir, sh
from process import Process

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"


def need():
    if not os.path.exists(VSWITCHD):
        raise Skip("Open vSwitch with DPDK is not installed (apt-get install openvswitch-switch-dpdk)")


class Switch:
    """One bridge `br0`, polled by `core`; its other threads run on another. Ports are vhost-user servers in `folder`."""

    def __init__(self, core=1):
        main = next(c for c in cores() if c != core)
        self.folder = run_dir() / "ovs"
        (self.folder / "vhost").mkdir(parents=True)
        f = str(self.folder)
        os.environ.update(OVS_RUNDIR=f, OVS_LOGDIR=f, OVS_DBDIR=f, OVS_SYSCONFDIR=f)
        self.db = f"unix:{f}/db.sock"
        sh(["ovsdb-tool", "create", f + "/conf.db", "/usr/share/openvswitch/vswitch.ovsschema"])
        self.database = Process(["ovsdb-server", f + "/conf.db", f"--remote=punix:{f}/db.sock", f"--unixctl={f}/ovsdb.ctl"], "ovsdb")
        self._await(f + "/db.sock")
        self.vsctl("--no-wait", "init")
        settings = {"dpdk-init": "true", "dpdk-socket-mem": "256", "dpdk-lcore-mask": hex(1 << main),
                    "pmd-cpu-mask": hex(1 << core), "dpdk-extra": '"--no-pci --in-memory"', "vhost-sock-dir": "vhost"}
        self.settings = [f"other_config:{k}={v}" for k, v in settings.items()]
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *self.settings)
        self.daemon = Process([VSWITCHD, self.db, f"--unixctl={f}/vswitchd.ctl", f"--log-file={run_dir()}/logs/vswitchd.log"],
                              "ovs-vswitchd")
        self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")

    def _await(self, path, timeout_s=10):
        end = time.monotonic() + timeout_s
        while not os.path.exists(path):
            if time.monotonic() > end:
                raise TimeoutError(f"{path} did not appear")
            time.sleep(0.02)

    def vsctl(self, *args):
        return sh(["ovs-vsctl", f"--db={self.db}", "--timeout=30", *args])

    def server_port(self, name, mtu=1500):
        """A `dpdkvhostuser` port; returns its socket."""
        self.vsctl("add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuser", f"mtu_request={mtu}")
        path = self.folder / "vhost" / name
        self._await(path)
        return path

    def client_port(self, name, path, mtu=1500):
        """A `dpdkvhostuserclient` port, which connects to a front-end that listens there."""
        self.vsctl("add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuserclient", f"mtu_request={mtu}",
                   f"options:vhost-server-path={path}")

    def cross(self, a, b):
        """What comes in at one of the two ports leaves at the other, nothing else."""
        self.flows({a: f"output:{self._number(b)}", b: f"output:{self._number(a)}"})

    def flows(self, actions):
        """What is done with packets from each port: {port: OpenFlow actions}, and nothing else."""
        bridge = f"unix:{self.folder}/br0.mgmt"
        sh(["ovs-ofctl", "del-flows", bridge])
        for port, what in actions.items():
            sh(["ovs-ofctl", "add-flow", bridge, f"in_port={self._number(port)},actions={what}"])

    def _number(self, name):
        return self.vsctl("get", "Interface", name, "ofport")

    def appctl(self, *args, must=True):
        return sh(["ovs-appctl", "-t", f"{self.folder}/vswitchd.ctl", *args], must=must)

    def close(self):
        self.appctl("exit", "--cleanup", must=False)
        self.daemon.wait(10)
        self.database.kill()
