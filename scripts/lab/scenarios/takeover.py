"""Our testpmd hands its ports to the next one, again and again, under traffic: nobody at the other end notices."""

import re
import time

import announce
from guest import Guest
from netns import Namespace
from place import check, figure, need_guests, need_peers, run_dir
from scenario import scenario
from scenarios.guest import GUEST, HOST, iperf, ping
from scenarios.migration import MAC
from testpmd import hotring

FORWARD = ["--forward-mode=io"]


class Chain:
    """The testpmd that has the ports now, and those before it."""

    def __init__(self, vdevs, args=(), netns=None):
        self.args = (vdevs, [*FORWARD, f"--takeover={run_dir() / 'takeover.sock'}", *args])
        self.netns, self.n, self.ms = netns, 0, []
        self.now = hotring("testpmd-0", *self.args, netns=netns)
        self.now.cmd("start")

    def next(self, lossless=True):
        """Another process takes over; the one before ends by itself."""
        before, self.n = self.now, self.n + 1
        self.now = hotring(f"testpmd-{self.n}", *self.args, netns=self.netns)
        check(before.wait(20) == 0, f"the testpmd before did not end well: {before.tail()}")
        took = re.search(rb"has taken over within ([\d.]+) ms", before.seen)
        check(took, f"the testpmd before does not say that it was taken over: {before.tail()}")
        dropped = sum(int(n) for n in re.findall(rb"TX-dropped: *(\d+)", before.seen.split(b"Accumulated")[0]))
        check(dropped == 0 or not lossless, f"{dropped} packets dropped: {before.tail()}")
        before.kill()
        self.ms.append(float(took.group(1)))

    def quit(self):
        self.now.cmd("stop")
        self.now.quit()


def circulate(times):
    """Frames go round between three driver's sides, split and packed, and three ports; none may be missing."""
    at = [run_dir() / f"port{i}.sock" for i in range(3)]
    chain = Chain([f"vhost{i},iface={path}" for i, path in enumerate(at)], ["--port-topology=loop"])
    packed = [0, 1, 1]
    driver = hotring("driver", [f"virtio_user{i},path={path},packed_vq={p},queue_size=512"
                                for i, (path, p) in enumerate(zip(at, packed))], ["--port-topology=loop"], core=1)
    driver.wait_for(lambda c: len(c) == 3, "three ports")
    for i in range(3):
        driver.wait_for(lambda c: "up" in driver.cmd(f"show port info {i}").lower().split("link status:")[1][:12], "a link")
    driver.cmd("start tx_first 4")
    for _ in range(times):
        before = driver.total("RX-packets")
        time.sleep(0.2)
        chain.next()
        driver.wait_for(lambda c: sum(p["RX-packets"] for p in c.values()) > before + 1000, "frames that go round")
    driver.cmd("stop")
    driver.cmd("set fwd rxonly")
    driver.cmd("start")
    driver.wait_for(lambda c: all(p["RX-packets"] == p["TX-packets"] for p in c.values()), "the return of every frame")
    counted = driver.counters()
    check(all(p["RX-bytes"] == p["TX-bytes"] and p["RX-packets"] > 1000 for p in counted.values()), f"{counted}")
    driver.cmd("stop")
    driver.quit()
    chain.quit()
    figure(f"{times} takeovers of three ports under load: {driver_total(counted):,} frames sent, as many came back; "
           f"forwarding rested {max(chain.ms):.0f} ms at most")


def driver_total(counted):
    return sum(p["TX-packets"] for p in counted.values())


def lasting_tap(netns):
    """A TAP of the host's, which stays when its testpmd goes."""
    netns.run("ip tuntap add tap0 mode tap multi_queue vnet_hdr")
    netns.run("ip link set tap0 address 02:00:00:00:00:01")
    netns.address("tap0", f"{HOST}/24")


def guest_goes_on(name, device, times):
    """A Linux guest under TCP both ways. Its control queue is its front-end's: the device announces it."""
    netns, sock = Namespace(), run_dir() / "vm0.sock"
    lasting_tap(netns)
    chain = Chain([f"vhost0,iface={sock},mac={MAC}", "tap0,iface=tap0"], netns=netns.name)
    # No `reconnect`: a connection that is lost would stay lost.
    guest = Guest(name, sock, device).up()
    guest.address(f"{GUEST}/24")
    ping(guest, HOST)
    before = guest.sh("cat /sys/class/net/eth0/carrier_changes").strip()
    server = netns.spawn(["iperf3", "-s", "--forceflush"], "iperf-server")
    server.expect("Server listening")
    guest.sh(f"iperf3 -c {HOST} -t {3 * times + 2} --bidir --forceflush > /tmp/iperf 2>&1 &")
    for _ in range(times):
        time.sleep(1.5)
        announced = announce.listen(netns, "tap0", announce.rarp(MAC))
        # TCP fills a queue until something is dropped, with or without a takeover.
        chain.next(lossless=False)
        announced.expect("heard", 30)
        ping(guest, HOST, count=5)
    guest.sh("while pidof iperf3 > /dev/null; do sleep 0.1; done", 3 * times + 60)
    report = guest.sh("tail -8 /tmp/iperf")
    check("receiver" in report and "error" not in report, f"the connections did not survive: {report}")
    links = guest.sh("cat /sys/class/net/eth0/carrier_changes").strip()
    check(links == before, f"the guest's link was gone: {before} changes before, {links} after")
    tcp = iperf(lambda c: guest.sh(c, 60), HOST, "", 2)["sum_received"]["bits_per_second"] / 1e6
    figure(f"{name}: taken over {times} times under TCP both ways, forwarding rested {max(chain.ms):.0f} ms at most; "
           f"afterwards TCP {tcp:.0f} Mbit/s")
    guest.off()
    chain.quit()
    netns.close()


@scenario(need_peers, seconds=120, full_seconds=600)
def takeover(full):
    """The next testpmd takes three ports over under load, split and packed: every frame comes back, none twice."""
    circulate(100 if full else 5)


def need():
    need_peers()
    need_guests()


@scenario(need, seconds=180, full_seconds=600)
def takeover_guest(full):
    """The next testpmd takes a Linux guest over under TCP both ways; the guest's front-end does not reconnect."""
    guest_goes_on("split", "", 10 if full else 2)
    if full:
        guest_goes_on("packed", "packed=on", 10)
