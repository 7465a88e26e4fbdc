"""A network namespace with an address plan of its own, removed with everything in it."""

import atexit
import itertools
import os

from place import sh
from process import Process

_count = itertools.count()


class Namespace:
    """A namespace that lives as long as the scenario. TAP ports made in it vanish with it."""

    def __init__(self):
        self.name = f"hotring{os.getpid()}-{next(_count)}"
        sh(["ip", "netns", "add", self.name])
        atexit.register(self.close)
        self.run("ip link set lo up")
        # Router solicitations and the like would be packets that nobody sent.
        self.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1", must=False)

    def run(self, command, must=True, timeout=60):
        return sh(["ip", "netns", "exec", self.name, "sh", "-c", command], must, timeout)

    def spawn(self, argv, name):
        return Process(argv, name, netns=self.name)

    def address(self, device, address):
        self.run(f"ip addr add {address} dev {device}; ip link set {device} up")

    def close(self):
        sh(["ip", "netns", "del", self.name], must=False)
