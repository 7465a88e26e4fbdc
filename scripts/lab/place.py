"""Where the lab's things are, what this machine can do, and the two ways not to run a test."""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAB = pathlib.Path(os.environ.get("HOTRING_LAB", "/var/cache/hotring-lab"))
CI = os.environ.get("CI") == "true"


class Skip(Exception):
    """Something is missing that set-up would provide. With CI=true this counts as a failure."""


class Unable(Skip):
    """This machine cannot run the test at all: a core, an instruction set or a device is missing."""


class Failed(Exception):
    """What was tested is wrong; the message says what was seen and what was expected."""


def check(condition, message):
    """Raises `Failed` with the message when the condition does not hold."""
    if not condition:
        raise Failed(message)


def figure(text):
    """Prints one figure of the running scenario."""
    print(text, flush=True)


def sh(command, must=True, timeout=60):
    """Runs a command (a list, or a string for the shell) and returns its output, stripped."""
    done = subprocess.run(command, shell=isinstance(command, str), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if must and done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


def is_root():
    return os.geteuid() == 0


def cores():
    return sorted(os.sched_getaffinity(0))


def cpu_flags():
    with open("/proc/cpuinfo") as f:
        return next((set(line.split()) for line in f if line.startswith("flags")), set())


def need_command(name, package):
    if not shutil.which(name):
        raise Skip(f"{name} is not installed (apt-get install {package})")


def free_huge_pages():
    try:
        return int(pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except FileNotFoundError:
        return 0


def need_peers():
    """What every scenario with a real peer needs: root, two cores, huge pages, DPDK."""
    if not is_root():
        raise Skip("needs root")
    if len(cores()) < 2:
        raise Unable("needs two cores: one for the device, one for its driver")
    need_command("dpdk-testpmd", "dpdk-dev")
    if free_huge_pages() < 384:
        raise Skip(f"{free_huge_pages()} huge pages of 2 MiB are free and 384 are needed (scripts/setup)")


def need_guests():
    """What scenarios with QEMU guests need besides."""
    if not is_root():
        raise Skip("needs root")
    if not (LAB / "initramfs-6.12.gz").exists() or not (LAB / "qemu").exists():
        raise Skip(f"{LAB} has no kernels and QEMU (scripts/lab/fetch)")
    need_command("iperf3", "iperf3")
    need_command("busybox", "busybox-static")


_run = None


def run_dir():
    """This process's own folder for sockets, logs and captures; the suite removes it."""
    global _run
    if _run is None:
        given = os.environ.get("HOTRING_RUN")
        _run = pathlib.Path(given or tempfile.mkdtemp(prefix="hotring-"))
        (_run / "logs").mkdir(exist_ok=True)
        os.chmod(_run, 0o755)
    return _run


def only_one():
    """Takes the lock that keeps two suites from measuring on the same two cores at once; only root can measure."""
    if not is_root():
        return None
    held = open("/run/hotring-lab.lock", "w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another run of the lab on this machine", file=sys.stderr, flush=True)
        fcntl.flock(held, fcntl.LOCK_EX)
    return held
