"""Devices of DPDK's as ports of our testpmd, built with the feature `dpdk`."""

import os
import shutil
import subprocess

from netns import Namespace
from place import ROOT, Skip, check, figure, need_peers
from scenario import scenario
from scenarios.afxdp import Wire, tcp
from testpmd import hotring


def need():
    need_peers()
    if subprocess.run(["pkg-config", "--atleast-version=22.11", "libdpdk"]).returncode:
        raise Skip("libdpdk 22.11 or later is not installed (libdpdk-dev, pkg-config)")
    if not shutil.which("cargo"):
        raise Skip("cargo is not there: testpmd must be built with the feature dpdk")


def build(*argv):
    """Builds in a folder of its own, so that features do not chase each other through one."""
    target = f"{os.environ.get('CARGO_TARGET_DIR', ROOT / 'target')}/dpdk"
    done = subprocess.run(["cargo", *argv, "--target-dir", target], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    check(done.returncode == 0, done.stdout[-1500:])
    return target


def ours(args, options, netns, core=0, vdevs=()):
    target = build("build", "--release", "-p", "examples", "--features", "dpdk", "--bin", "testpmd")
    return hotring("device", vdevs, [f"--dpdk={args}", *options], core, netns, file=f"{target}/release/testpmd")


@scenario(need, seconds=700)
def dpdk_port_tests(full):
    """Tests of the DPDK port on net_ring, net_null, net_pcap and net_memif: every byte, every buffer back."""
    build("test", "--quiet", "--release", "-p", "pmd", "--features", "dpdk", "--lib", "dpdk")
    figure("net_ring, net_null, net_pcap, net_memif: zero copy both ways, checksums completed, nothing kept")


@scenario(need, seconds=700)
def dpdk_port_tcp(full):
    """The kernel's TCP through two of DPDK's af_packet devices, then its tap device, in our testpmd."""
    wire = Wire()
    eal = "--no-pci --no-huge --no-shconf -m 256 --no-telemetry"
    devices = " ".join(f"--vdev net_af_packet{i},iface={name}0" for i, name in enumerate("xy"))
    pmd = ours(f"{eal} {devices}", [], wire.name)
    pmd.cmd("start")
    tcp(wire, "net_af_packet", pmd, 6 if full else 2)
    pmd.cmd("stop")
    pmd.quit()
    wire.close()
    netns = Namespace()
    pmd = ours(f"{eal} --vdev net_tap0,iface=dt0", ["--forward-mode=icmpecho", "--port-topology=loop"], netns.name)
    pmd.cmd("start")
    netns.address("dt0", "10.78.0.1/24")
    netns.run("ip neigh replace 10.78.0.2 lladdr 02:00:00:00:00:09 dev dt0")
    seen = netns.run("busybox ping -c 20 -i 0.05 -W 1 10.78.0.2")
    check(" 0% packet loss" in seen, seen[-300:])
    figure("net_tap: 20 of 20 echoes")
    pmd.cmd("stop")
    pmd.quit()
    netns.close()
