"""What the machine does to a figure: a cache line's round trip, and whether each side had its core to itself."""

import os
import pathlib
import platform
import subprocess

import place
from place import run_dir, sh

HERE = pathlib.Path(__file__).resolve().parent


def round_trip(cores):
    """A cache line's way there and back between two cores, ns."""
    program = run_dir() / "roundtrip"
    if not program.exists():
        sh(["cc", "-O2", "-pthread", str(HERE / "roundtrip.c"), "-o", str(program)])
    done = subprocess.run([program, *map(str, cores)], stdout=subprocess.PIPE, check=True, start_new_session=True,
                          preexec_fn=lambda: prefer(os.getpid()))
    return int(done.stdout)


def tasks(pid, name=""):
    """The folders in /proc of the process's threads whose names begin so."""
    found = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [t for t in found if (t / "comm").read_text().startswith(name)]


def prefer(pid, name=""):
    """What else runs on the cores of these threads gets what they leave over, the process's other threads too."""
    wanted = tasks(pid, name)
    for task in tasks(pid):
        os.setpriority(os.PRIO_PROCESS, int(task.name), -20 if task in wanted else 19)
    autogroup = pathlib.Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():  # with automatic groups, the priority of a session's group decides
        autogroup.write_text("-20")


def on_core(pid):
    """{thread: (ns on a core, ns waiting for one)} of a process."""
    return {t.name: tuple(map(int, (t / "schedstat").read_text().split()[:2])) for t in tasks(pid)}


def own_core(pid, since):
    """How long the busiest thread, the one that polls, ran since `since` (what `on_core` said), in ns, and the share of
    that time in which it had its core."""
    now = on_core(pid)
    ran, waited = max(tuple(b - a for a, b in zip(since.get(t, (0, 0)), now[t])) for t in now)
    return ran, ran / (ran + waited) if ran + waited else 0.0


def facts():
    """What the figures depend on."""
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": len(place.cores()), "kernel": platform.release(),
            "free_huge_pages": place.free_huge_pages(), "load": os.getloadavg()[0]}
