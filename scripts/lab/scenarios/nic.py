"""NICs bound to VFIO in a guest, driven by our testpmd there; the host sends and receives at the far end of their wires."""

import re
import shutil
import struct
import time

import frames
from nics import WINDOW, Inside, NicGuest, pump
from place import ROOT, check, figure, need_command, need_guests, run_dir, sh
from scenario import scenario
from testpmd import DPDK, binary


def need():
    need_guests()
    binary()


def both_ways(guest, count, sizes, seed=0):
    """Frames through the guest in both directions, byte for byte and in order; frames a second."""
    rates = []
    for a, b in ((0, 1), (1, 0)):
        sent = [frames.frame(i, size, seed + a) for i, size in enumerate(frames.sizes(sizes, count))]
        began = time.monotonic()
        # A long frame takes up to six descriptors, of 256 that a ring of a virtio device has.
        got = pump(guest.wires[a], guest.wires[b], sent, window=24 if sizes[1] > 1514 else WINDOW)
        rates.append(len(got) / (time.monotonic() - began))
        wrong = frames.difference(sent, got)
        check(wrong is None, f"wire {a} to {b}, sizes {sizes}: {wrong}; {guest.faults()}")
    return rates


def nic(model, full, queues=1, mtu=9000):
    guest = NicGuest(model)
    nics = guest.bind()
    devices = [word for address in nics for word in ("-a", address)]
    pmd = Inside(guest, ["-l", "0", *devices, "--", "-i", f"--rxq={queues}", f"--txq={queues}",
                         f"--max-pkt-len={mtu + 18}"])
    pmd.cmd("start")
    rates = both_ways(guest, 20000 if full else 1500, (60, 1514))
    jumbo = both_ways(guest, 5000 if full else 300, (60, mtu + 14), 2) if mtu > 1500 else []
    if queues > 1:
        spread(guest, pmd, queues)
    filters(guest, pmd, model)
    link(guest, pmd)
    restart(guest, pmd)
    reopen(pmd, nics[0], 100 if full else 10)
    if model == "igb":
        remove(guest, pmd)
    pmd.cmd("stop")
    pmd.quit()
    figure(f"{model}: {', '.join(f'{r:.0f}' for r in rates)} frames/s of 60 to 1514 B each way; "
           f"{', '.join(f'{r:.0f}' for r in jumbo)} of up to {mtu + 14} B")
    guest.off()


def flow(number):
    """A UDP frame of a flow of its own, well-formed: IPv4 header with its checksum, UDP without."""
    payload = frames.frame(number, 100)[14:]
    head = struct.pack(">BBHHHBBHII", 0x45, 0, 28 + len(payload), number, 0, 64, 17, 0, 0x0A000001 + number * 7919, 0x0A630001)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", 0xFFFF - (total & 0xFFFF) - (total >> 16)) + head[12:]
    udp = struct.pack(">HHHH", 1000 + number, 9, 8 + len(payload), 0)
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\0" + head + udp + payload


def spread(guest, pmd, queues):
    """Flows are dealt to all queues; each frame comes out once, unharmed."""
    sent = [flow(n) for n in range(400)]
    got = pump(guest.wires[0], guest.wires[1], sent)
    check(sorted(got) == sorted(sent), f"{len(got)} of {len(sent)} frames of many flows, or not the same")
    share = [counter(pmd, 0, f"rx_q{q}_packets") for q in range(queues)]
    check(all(share), f"queues received {share}")


def up(pmd, port=0):
    """Whether a port says that its link is up."""
    return "Link status: up" in pmd.cmd(f"show port info {port}")


def link(guest, pmd):
    """The cable of the first NIC is pulled out and put back."""
    check(up(pmd), "the link is down at first")
    for state in (False, True):
        guest.qmp.command("set_link", name="net0", up=state)
        end = time.monotonic() + 10
        while up(pmd) != state:
            check(time.monotonic() < end, f"the link does not go {'up' if state else 'down'}")
            time.sleep(0.2)
    both_ways(guest, 200, (60, 1514), 4)


def restart(guest, pmd):
    """Ports are stopped under traffic, which resets their devices with whatever they had, and started again."""
    for i in range(64):
        guest.wires[0].send(frames.frame(i, 1000, 6))
    pmd.cmd("stop")
    pmd.cmd("port stop all")
    said = pmd.cmd("port start all")
    check("rror" not in said and "Fail" not in said, f"ports do not start again: {said}")
    pmd.cmd("start")
    time.sleep(0.3)
    for wire in guest.wires:
        wire.drain()
    both_ways(guest, 200, (60, 1514), 8)


GROUP, OTHER_GROUP = "01:00:5e:00:00:fb", "33:33:00:00:00:16"
FRIEND, STRANGER = "02:00:00:00:00:07", "02:00:00:00:00:08"


def to(address, vlan=None):
    """A frame for an address, on a network of its own or on none."""
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return bytes.fromhex(address.replace(":", "")) + b"\x02\0\0\0\0\x01" + tag + b"\x88\xb5" + f"{address} {vlan}".encode().ljust(64, b".")


def passes(guest, *frames_sent):
    """Which of these frames, sent to the first NIC, come out of the second."""
    last = to("ff:ff:ff:ff:ff:ff")
    for frame in [*frames_sent, last]:
        check(guest.wires[0].send(frame), "the NIC takes no frame")
    got, end = [], time.monotonic() + 10
    while last not in got:
        check(time.monotonic() < end, f"not even the broadcast came out: {got}")
        frame = guest.wires[1].take(0.5)
        got += [frame] if frame else []
    return [frame in got for frame in frames_sent]


def filters(guest, pmd, model):
    """The NIC takes what it was told to take: addresses, groups, networks; also after it was started anew."""
    own = "52:54:00:00:01:00"
    everybody = [to(a) for a in (own, FRIEND, STRANGER, GROUP, OTHER_GROUP)]

    def expect(what, *lines):
        said = "".join(pmd.cmd(line) for line in lines)
        got = passes(guest, *everybody)
        check(got == [word in what.split() for word in "own friend stranger group other".split()], f"{lines}: {said}: {got}")

    expect("own friend stranger group other")
    expect("own", "set promisc 0 off")
    check("Promiscuous mode: disabled" in pmd.cmd("show port info 0"), "promiscuous mode is shown as enabled")
    expect("own group", f"mcast_addr add 0 {GROUP}")
    if model == "vmxnet3":
        check("one address" in pmd.cmd(f"mac_addr add 0 {FRIEND}"), "vmxnet3 took a second address")
    else:
        expect("own friend group", f"mac_addr add 0 {FRIEND}")
        pmd.cmds(["stop", "port stop 0", "port start 0", "start"])
        end = time.monotonic() + 10
        while not up(pmd):
            check(time.monotonic() < end, "the link stays down")
        expect("own friend group")
        expect("own group", f"mac_addr remove 0 {FRIEND}")
    expect("own group other", "set allmulti 0 on")
    expect("own", "set allmulti 0 off", f"mcast_addr remove 0 {GROUP}")
    tagged = [to(own, 5), to(own, 6)]
    if model.startswith("virtio"):
        check("not filtered" in pmd.cmd("vlan set filter on 0"), "a virtio device filters VLANs")
    else:
        check(passes(guest, *tagged) == [True, True], "tagged frames do not pass")
        pmd.cmds(["vlan set filter on 0", "rx_vlan add 5 0"])
        check(passes(guest, *tagged) == [True, False], "other networks than VLAN 5 pass, or it does not")
        pmd.cmd("vlan set filter off 0")
        check(passes(guest, *tagged) == [True, True], "tagged frames do not pass any more")
    expect("own friend stranger group other", "set promisc 0 on")


@scenario(need, seconds=240, full_seconds=600)
def nic_e1000e(full):
    """Intel 82574s under VFIO in a guest forward frames both ways, byte for byte."""
    nic("e1000e", full)


@scenario(need, seconds=240, full_seconds=600)
def nic_igb(full):
    """Intel 82576s under VFIO in a guest forward frames both ways, byte for byte, on two queue pairs."""
    nic("igb", full, queues=2)


@scenario(need, seconds=240, full_seconds=600)
def nic_virtio(full):
    """virtio-net devices under VFIO in a guest forward frames both ways, byte for byte, on split and packed rings."""
    nic("virtio", full)
    nic("virtio-packed", full)


@scenario(need, seconds=240, full_seconds=600)
def nic_vmxnet3(full):
    """VMware vmxnet3 devices under VFIO in a guest forward frames both ways, byte for byte."""
    nic("vmxnet3", full)


def reopen(pmd, address, times):
    """A device is closed and opened again and again; nothing of it stays."""
    pmd.cmd("stop")
    numbers = [0, *range(2, times + 3)]  # a port that is attached gets the next number
    rounds = [[f"port stop {old}", f"port close {old}", f"port attach {address}", f"port start {new}"]
              for old, new in zip(numbers, numbers[1:])]
    pmd.cmds(rounds[0])
    before = pmd.holds()
    said = pmd.cmds([line for lines in rounds[1:] for line in lines], 30 + 2 * times)
    check(said.count("is attached") == times and "rror" not in said, f"reopened {said.count('is attached')} times: {said[-900:]}")
    after = pmd.holds()
    check(after[0] <= before[0] and after[1] <= before[1] + 8, f"descriptors and mappings grew from {before} to {after}")


def remove(guest, pmd):
    """The second device is pulled out of its slot: its port says so, and the device is free once the port is closed."""
    guest.qmp.command("device_del", id="nic1")
    end = time.monotonic() + 20
    while "being removed" not in guest.sh(f"cat /tmp/{pmd.name}.out"):
        check(time.monotonic() < end, "nobody heard that the device is to go")
        time.sleep(0.3)
    check(not up(pmd, 1), "the link of a device that is being removed is up")
    pmd.cmds(["port stop 1", "port close 1"])
    while "0000:02:00.0" in guest.sh("ls /sys/bus/pci/devices"):
        check(time.monotonic() < end + 10, "the device is still there")
        time.sleep(0.3)


def counter(pmd, port, name):
    """One of a port's further counters."""
    text = pmd.cmd(f"show port xstats {port}")
    found = re.search(rf"(?m)^{name}: (\d+)", text)
    check(found, f"port {port} has no {name}: {text[-600:]}")
    return int(found.group(1))


@scenario(need, seconds=240, full_seconds=600)
def nic_zero_copy(full):
    """A NIC sends from the memory of a vhost-user guest, byte for byte; the guest is killed with frames on their way."""
    guest = NicGuest("e1000e")
    first, second = guest.bind()
    back = Inside(guest, ["-l", "0", "--vdev", "vhost0,iface=/run/v.sock", "-a", f"{first},copy_break=0", "--", "-i"], "back")
    back.cmd("start")
    died = 3 if full else 1
    for life in range(died + 1):
        front = Inside(guest, ["-l", "0", "--vdev", f"virtio_user0,path=/run/v.sock,packed_vq={life % 2}", "-a", second,
                               "--", "-i"], f"front{life}")
        front.cmd("start")
        end = time.monotonic() + 10
        while not up(back):
            check(time.monotonic() < end, f"the front-end does not connect: {front.tail()}")
        before = counter(back, 1, "tx_in_place_packets")
        count = 4000 if full else 500
        rates = both_ways(guest, count, (60, 1514), 10 + life)
        moved = counter(back, 1, "tx_in_place_packets") - before
        check(moved == count, f"{moved} of {count} frames went from the guest's memory")
        check(counter(back, 1, "tx_copied_packets") == 0, "some were copied")
        if life < died:
            # Frames are on their way through its memory when it ends without a word.
            for i in range(200):
                guest.wires[1].send(frames.frame(i, 1400, 20))
            guest.sh("for p in $(pidof testpmd); do grep -q virtio_user0 /proc/$p/cmdline && kill -9 $p; done; true")
            front.ended()
            time.sleep(0.3)
            for wire in guest.wires:
                wire.drain()
    wrong = guest.faults()
    check(not wrong, f"the IOMMU had to stop a device: {wrong}")
    figure(f"{(died + 1) * count} frames sent from a guest's memory, none copied; {', '.join(f'{r:.0f}' for r in rates)} frames/s "
           f"each way; the guest was killed {died} times with frames on their way")
    front.quit()
    back.cmd("stop")
    back.quit()
    guest.off()


@scenario(need, seconds=240, full_seconds=600)
def nic_direct(full):
    """A NIC receives into the memory of a vhost-user guest of its own, nothing copied either way; the guest is killed meanwhile."""
    for model in ("virtio", "e1000e", "igb", "vmxnet3", "virtio-packed") if full else ("virtio",):
        direct(model, 3000 if full else 400)


def direct(model, count):
    guest = NicGuest(model)
    first, second = guest.bind()
    back = Inside(guest, ["-l", "0", "--vdev", "vhost0,iface=/run/v.sock,in_order=0", "-a", f"{first},direct=1,copy_break=0", "--", "-i"], "back")
    back.cmd("start")
    for life in range(2):
        front = Inside(guest, ["-l", "0", "--vdev", f"virtio_user0,path=/run/v.sock,packed_vq={life}", "-a", second,
                               "--", "-i"], f"front{life}")
        front.cmd("start")
        end = time.monotonic() + 10
        while not up(back):
            check(time.monotonic() < end, f"the front-end does not connect: {front.tail()}")
        # Frames of the device's own were in its ring before the guest came.
        both_ways(guest, 100, (60, 1514), 10)
        names = [(1, "rx_in_place_packets"), (0, "tx_in_place_packets"), (1, "tx_in_place_packets")]
        before = [counter(back, *name) for name in names]
        rates = both_ways(guest, count, (60, 1514), 20 + life)
        moved = [counter(back, *name) - then for name, then in zip(names, before)]
        check(moved == [count] * 3, f"{model}: of {count} frames each way, in place: {dict(zip(names, moved))}; {back.tail()}")
        check(counter(back, 1, "tx_copied_packets") == 0, "some were copied")
        if life == 0:
            # Frames are on their way into its memory when it ends without a word.
            for i in range(200):
                guest.wires[0].send(frames.frame(i, 1400, 30))
            guest.sh("for p in $(pidof testpmd); do grep -q virtio_user0 /proc/$p/cmdline && kill -9 $p; done; true")
            front.ended()
            time.sleep(0.3)
            for wire in guest.wires:
                wire.drain()
    back.cmds(["stop", "port stop 1", "port start 1", "start"])
    end = time.monotonic() + 10
    while not (up(back) and up(back, 1)):
        check(time.monotonic() < end, f"a link stays down: {back.tail()}")
    both_ways(guest, 200, (60, 1514), 40)
    wrong = guest.faults()
    check(not wrong, f"the IOMMU had to stop a device: {wrong}")
    figure(f"{model}: {2 * count} frames received into a guest's memory and as many sent from it, none copied; "
           f"{', '.join(f'{r:.0f}' for r in rates)} frames/s; the guest was killed once with its buffers at the NIC")
    front.quit()
    back.cmd("stop")
    back.quit()
    guest.off()


def dpdk_inside(guest, devices):
    """DPDK's testpmd in the guest, forwarding between those devices on its only CPU."""
    args = ["-o0", shutil.which(DPDK), "--lcores", "0@0,1@0", "-m", "192", "--in-memory", "--no-telemetry", "--iova-mode=va"]
    args += [word for device in devices for word in ("-a", device)]
    return Inside(guest, [*args, "--", "-i", "--rxd=512", "--txd=512", "--total-num-mbufs=8192"], "dpdk", binary="/usr/bin/stdbuf")


def need_dpdk():
    need()
    need_command("dpdk-testpmd", "dpdk-dev")


@scenario(need_dpdk, seconds=120, full_seconds=1200)
def nic_dpdk(full):
    """The same NICs in the same guest, forwarding by DPDK's testpmd and by ours: rates side by side."""
    models, turns, count = (("e1000e", "igb", "vmxnet3", "virtio"), 3, 10000) if full else (("e1000e",), 1, 1000)
    for model in models:
        guest = NicGuest(model)
        nics = guest.bind()
        rows = {}
        for turn in range(turns):
            for who in ("DPDK", "Hotring"):
                if who == "DPDK":
                    pmd = dpdk_inside(guest, nics)
                else:
                    pmd = Inside(guest, ["-l", "0", "-a", nics[0], "-a", nics[1], "--", "-i"], f"ours{turn}")
                pmd.cmd("start")
                time.sleep(1)
                for wire in guest.wires:
                    wire.drain()
                for size in (60, 1514):
                    rate = sum(both_ways(guest, count, (size, size), turn)) / 2
                    rows.setdefault((who, size), []).append(rate)
                pmd.cmd("stop")
                pmd.quit(60)
        for size in (60, 1514):
            best = {who: max(rows[who, size]) for who in ("DPDK", "Hotring")}
            figure(f"{model}, {size} B: DPDK {best['DPDK']:.0f} frames/s, Hotring {best['Hotring']:.0f}")
        guest.off()


@scenario(lambda: None, seconds=30)
def nic_bind(full):
    """scripts/bind names NICs, drivers and groups, and takes no interface that carries the default route."""
    root = run_dir() / "bind"
    pci, net = root / "sys/bus/pci", root / "proc/net"
    net.mkdir(parents=True)
    (net / "route").write_text("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
                               "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n"
                               "eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n")
    (net / "ipv6_route").write_text("")
    (pci / "drivers/vfio-pci").mkdir(parents=True)
    for address, name, group in (("0000:01:00.0", "eth0", 7), ("0000:01:00.1", "eth1", 7), ("0000:02:00.0", "", 8)):
        device = pci / "devices" / address
        (device / "net" / name).mkdir(parents=True)
        for file, text in (("class", "0x020000"), ("vendor", "0x8086"), ("device", "0x10d3"), ("driver_override", "")):
            (device / file).write_text(text + "\n")
        (root / f"sys/kernel/iommu_groups/{group}/devices").mkdir(parents=True, exist_ok=True)
        (root / f"sys/kernel/iommu_groups/{group}/devices/{address}").symlink_to(device)
        (device / "iommu_group").symlink_to(root / f"sys/kernel/iommu_groups/{group}")
        driver = pci / "drivers" / ("e1000e" if name else "vfio-pci")
        driver.mkdir(exist_ok=True)
        (device / "driver").symlink_to(driver)

    def run(words):
        env = f"HOTRING_SYSFS={root}/sys HOTRING_PROC={root}/proc"
        return sh(f"{env} {ROOT}/scripts/bind {words}", must=False)

    status = run("status")
    check(re.search(r"01:00\.0 +8086:10d3 +e1000e +7 +eth0 +default route", status) and
          re.search(r"01:00\.1 +8086:10d3 +e1000e +7 +eth1 *$", status, re.M) and
          re.search(r"02:00\.0 +8086:10d3 +vfio-pci +8 +-", status), f"status: {status}")
    taken = pci / "drivers/e1000e/unbind"
    for word in ("eth0", "01:00.0", "0000:01:00.0"):
        for command in ("unbind", "bind vfio-pci"):
            said = run(f"{command} {word}")
            check("default route" in said and "--force" in said and not taken.exists(), f"{command} {word}: {said}")
    run("unbind eth1")
    check(taken.read_text() == "0000:01:00.1\n", "eth1 was not taken from its driver")
    run("unbind eth0 --force")
    check(taken.read_text() == "0000:01:00.0\n", "--force did not take eth0")
    check("already" in run("bind vfio-pci 02:00.0"), "a device that is bound is bound again")
    check("no PCI device" in run("bind vfio-pci eth9"), "an interface that is not there")
    figure("three NICs named, six attempts on the default route refused")
