"""What the tests ask of the machine, installed and reserved here when the suite runs as root."""

import importlib.util
import os
import shutil
import subprocess

import place
from place import ROOT

# command or file -> package, on Debian 12
PACKAGES = {
    "dpdk-testpmd": "dpdk-dev",
    "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk": "openvswitch-switch-dpdk",
    "iperf3": "iperf3",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "cpio": "cpio",
    "xz": "xz-utils",
    "modprobe": "kmod",
    "setpriv": "util-linux",
    "sysctl": "procps",
    "cc": "gcc",
    "ethtool": "ethtool",
    "pkg-config": "pkg-config",
    "/usr/include/dpdk/rte_ethdev.h": "libdpdk-dev",
    "tcpdump": "tcpdump",
    "tshark": "tshark",
}
VALGRIND = {"valgrind": "valgrind"}
# Scenarios that boot nothing; the others need what scripts/lab/fetch brings.
WITHOUT_GUESTS = ("dpdk-", "linerate-", "virtio-user-", "afxdp-", "crashes", "demo", "nic-bind", "vswitch-")


def present(thing):
    return os.path.exists(thing) if thing.startswith("/") else shutil.which(thing) is not None


def step(argv):
    """Runs a set-up step, its output indented; a failure is said, and the tests that need it will skip."""
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    lines = done.stdout.splitlines()
    for line in lines[-15:] if done.returncode else [s for s in lines if s.startswith(("setup:", "fetch:"))]:
        print("    " + line)
    if done.returncode:
        print(f"    {argv[0]} failed (exit {done.returncode}); what needs it is skipped", flush=True)
    return done.returncode == 0


def ready(tests):
    """Does what the chosen tests need; without root it says what will be skipped."""
    interop = any(t.group == "interop" for t in tests)
    wanted = PACKAGES if interop else {}
    if any(t.name == "instructions" for t in tests):
        wanted = wanted | VALGRIND
    missing = {package for thing, package in wanted.items() if not present(thing)}
    if interop and importlib.util.find_spec("ensurepip") is None:
        missing.add("python3-venv")  # Debian's Python comes without what makes virtual environments
    missing = sorted(missing)
    if not interop and not missing:
        return
    print("--- set-up", flush=True)
    if not place.is_root():
        print("    not root: nothing is installed or reserved; what needs it is skipped", flush=True)
        return
    if missing:
        print(f"    installing {' '.join(missing)}", flush=True)
        step(["apt-get", "update", "-q"])
        step(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing])
    if not interop:
        return
    step([ROOT / "scripts/setup"])
    if any(t.group == "interop" and not t.name.startswith(WITHOUT_GUESTS) for t in tests):
        step([ROOT / "scripts/lab/fetch"])
