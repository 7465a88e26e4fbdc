"""The demo: what someone sees who has neither root nor huge pages nor a virtual machine."""

import mmap
import re
import shutil
import signal
import time

from place import Skip, check, figure, free_huge_pages, is_root, need_command, run_dir
from process import Process
from scenario import scenario
from testpmd import binary

MAP_HUGETLB = 0x40000
HUGE_PAGE = 2 << 20


def need():
    binary()
    if is_root():
        need_command("setpriv", "util-linux")


@scenario(need, seconds=60)
def demo(full):
    """testpmd without arguments, root or huge pages: live rates, and a clean end on Ctrl-C."""
    program = run_dir() / "testpmd"
    shutil.copy(binary(), program)
    program.chmod(0o755)
    argv = [program]
    if is_root():
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", program]
    held = hold_huge_pages()
    p = Process(argv, "demo")
    try:
        p.expect(r"Mpps", 20)
        time.sleep(8 if full else 3)
        p.pump()
        p.child.send_signal(signal.SIGINT)
        status = p.wait(10)
    finally:
        p.kill()
        if held:
            held.close()
    text = (run_dir() / "logs/demo.log").read_text()
    check(status == 0, f"the demo ended with status {status} on Ctrl-C")
    rates = [float(r) for r in re.findall(r"in all +([\d.]+) Mpps", text)]
    check(rates and max(rates) > 0, f"the demo showed no rate above 0: {rates}")
    guests = [[int(n) for n in found] for found in re.findall(r"sent (\d+), received (\d+), missing (\d+)", text)]
    check(len(guests) == 2 and all(g[1] > 0 for g in guests), f"the demo's summary of its two guests is {guests}")
    # A guest that is not on its core finds its ring full when it comes back; what did not fit is counted.
    dropped = sum(map(int, re.findall(r"Accumulated.*?TX-dropped: *(\d+)", text, re.S)))
    missing = sum(g[2] for g in guests)
    check(missing == dropped, f"{missing} packets are missing at the guests, and {dropped} are counted as dropped")
    figure(f"as nobody, without huge pages: {max(rates):.2f} Mpps at best, {sum(g[1] for g in guests):,} packets, "
           f"{dropped} found a guest's ring full")


def hold_huge_pages():
    """Takes the huge pages that are free, so that there are none, until closed."""
    free = free_huge_pages()
    if not free or not is_root():
        return None
    try:
        return mmap.mmap(-1, free * HUGE_PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    except OSError as e:
        raise Skip(f"cannot take the {free} huge pages that are free: {e}") from e
