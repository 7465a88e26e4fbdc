"""The drivers that devices are measured with: what they negotiate, and one run of each."""

import json
import os
import time

import place
import testpmd
from machine import on_core, own_core, prefer
from place import run_dir
from process import Process

FIRST_S = 0.3  # from a driver's start until nobody else gets its core: a switch's slow path has to see the first packets


class Linerate:
    """Our near-free driver: it recycles descriptors without a look at the data, so that the device is the limit."""

    layouts = {
        "split": [],
        "packed": ["--packed"],
        "split-in-order": ["--in-order"],
        "packed-in-order": ["--packed", "--in-order"],
        "split-unmergeable": ["--no-mergeable"],
        "packed-unmergeable": ["--packed", "--no-mergeable"],
    }

    def __init__(self):
        target = os.environ.get("CARGO_TARGET_DIR", place.ROOT / "target")
        self.file = os.environ.get("HOTRING_LINERATE", f"{target}/release/linerate")
        if not os.path.exists(self.file):
            raise place.Skip(f"{self.file} is not built (cargo build --release)")

    def run(self, device, cell, args, cores):
        """One run of a device; a dictionary of what was seen."""
        sockets = [run_dir() / f"compare{n}.sock" for n in range(2 if cell.mode == "guests" else 1)]
        running = device.start(cell.mode, sockets, cell.frame, cores[0], args.burst)
        command = [self.file, *[x for s in sockets for x in ("--path", s)], "--mode", cell.mode, "--size", args.ring,
                   "--frame", cell.frame, "--seconds", args.seconds, "--core", cores[1], "--json",
                   "--flows", getattr(cell, "flows", 1), *self.layouts[cell.layout]]
        driver = Process(command, "driver")
        try:
            time.sleep(FIRST_S)
            before = take_cores(device, running, driver)
            own = own_until(driver, before)
            status = driver.wait(10)
            results = [line for line in driver.seen.decode().splitlines() if line.startswith("{")]
            # With a result, it is the device that does not stop its rings: what it did until then counts.
            place.check(results, f"linerate left with {status}: {driver.tail()}")
            seen = json.loads(results[-1])
        finally:
            driver.kill()
            device.stop(running)
            for socket in sockets:
                socket.unlink(missing_ok=True)
        forwards = cell.mode in ("loop", "guests") and seen["sent_mpps"] > 0
        lost = max(1 - seen["received_mpps"] / seen["sent_mpps"], 0.0) if forwards else 0.0
        return {"mpps": seen["mpps"], "driver_busy": seen["driver_busy"], "own_core": own, "lost": lost,
                "unstopped": status != 0, "driver": driver.argv}


class VirtioUser:
    """DPDK's virtio-user in testpmd, which handles every packet: a constant number circulates in `loop` and `guests`."""

    layouts = {
        "split": "packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1",
        "packed": "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
        "split-plain": "packed_vq=0,mrg_rxbuf=1,in_order=1",
        "packed-plain": "packed_vq=1,mrg_rxbuf=1,in_order=1",
    }
    # mode -> (the driver's forward mode, the counters at device and driver that see each packet once)
    modes = {"loop": ("io", "TX-packets", "RX-packets"), "guests": ("io", "TX-packets", "RX-packets"),
             "dequeue": ("txonly", "RX-packets", "TX-packets"), "enqueue": ("rxonly", "TX-packets", "RX-packets")}

    def run(self, device, cell, args, cores):
        """One run of a device; a dictionary of what was seen."""
        sockets = [run_dir() / f"compare{n}.sock" for n in range(2 if cell.mode == "guests" else 1)]
        running = device.start(cell.mode, sockets, cell.frame, cores[0], args.burst, cycles=True)
        forward, at_device, at_driver = self.modes[cell.mode]
        options = [f"--forward-mode={forward}", "--port-topology=loop", f"--txpkts={cell.frame}",
                   "--record-core-cycles", f"--burst={args.burst}", f"--rxd={args.ring}", f"--txd={args.ring}"]
        vdevs = [f"net_virtio_user{n},path={s},queues=1,queue_size={args.ring},{self.layouts[cell.layout]}"
                 for n, s in enumerate(sockets)]
        driver = testpmd.dpdk("driver", vdevs, options, cores[1], eal=["--force-max-simd-bitwidth=512"])
        first = args.circulating // args.burst
        driver.cmd(f"start tx_first {first}" if forward == "io" else "start")
        time.sleep(FIRST_S)
        before = take_cores(device, running, driver)
        sides = ((running, at_device), (driver, at_driver))
        cleared = [(side.cmd("clear fwd stats all"), time.monotonic())[1] for side, _ in sides]
        mpps, theirs = self._rates(sides, args.seconds)
        own = [own_core(side.child.pid, since)[1] for side, since in before]
        busy = [busy_share(side, since) for (side, _), since in zip(sides, cleared)]
        lost = running.dropped() + driver.dropped() if forward == "io" else 0
        driver.cmd("stop")
        driver.quit()
        device.stop(running)
        return {"mpps": mpps, "driver_mpps": theirs, "device_busy": busy[0], "driver_busy": busy[1], "own_core": own,
                "lost": lost, "driver": driver.argv}

    @staticmethod
    def _rates(sides, seconds):
        """Mpps at each side over the same time."""
        first = [(side.total(key), time.monotonic()) for side, key in sides]
        time.sleep(seconds)
        last = [(side.total(key), time.monotonic()) for side, key in sides]
        return [(b - a) / (tb - ta) / 1e6 for (a, ta), (b, tb) in zip(first, last)]


def own_until(driver, before):
    """The share of its core that each side had until the driver ended. Its polling thread ends before it does: what is
    seen at the end is not the last, but that in which the busiest thread had run longest."""
    most = [(0, 0.0) for _ in before]
    while os.waitid(os.P_PID, driver.child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        time.sleep(0.05)
        try:
            most = [max(seen, own_core(side.child.pid, since)) for seen, (side, since) in zip(most, before)]
        except OSError:
            pass  # a thread that ended while it was looked at
    return [share for _, share in most]


def take_cores(device, running, driver):
    """Puts both sides before everything else on their cores; (side, what `on_core` says of it now) of each."""
    prefer(running.child.pid, device.poller)
    prefer(driver.child.pid)
    return [(side, on_core(side.child.pid)) for side in (running, driver)]


def busy_share(side, since):
    """The share of the time since then that a testpmd's core spent on packets."""
    cycles = side.busy_cycles()
    return min(cycles[0] / cycles[1] / (time.monotonic() - since), 1.0) if cycles else 0.0


DRIVERS = {"linerate": Linerate, "virtio-user": VirtioUser}
