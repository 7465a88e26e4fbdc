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
        p.expect(r"pps", 20)
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
    rates = [int(r.replace(",", "")) for r in re.findall(r"Rx-pps: *([\d,]+)", text)]
    check(rates and max(rates) > 0, f"the demo showed no rate above 0: {rates}")
    totals = [int(n) for n in re.findall(r"RX-packets: *(\d+)", text)]
    check(totals and totals[-1] > 0, "the demo ended without a summary")
    figure(f"as nobody, {free_huge_pages()} huge pages left to it: {max(rates) / 1e6:.2f} Mpps at a port, {totals[-1]:,} packets in all")


def hold_huge_pages():
    """Takes the huge pages that are free, so that there are none, until closed."""
    free = free_huge_pages()
    if not free or not is_root():
        return None
    try:
        return mmap.mmap(-1, free * HUGE_PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
    except OSError as e:
        raise Skip(f"cannot take the {free} huge pages that are free: {e}") from e
