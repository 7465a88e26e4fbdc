"""NICs bound to VFIO in a guest, driven by our testpmd there; the host sends and receives at the far end of their wires."""

import re
import struct
import time

import frames
from nics import Inside, NicGuest, pump
from place import check, figure, need_guests
from scenario import scenario
from testpmd import binary


def need():
    need_guests()
    binary()


def both_ways(guest, count, sizes, seed=0):
    """Frames through the guest in both directions, byte for byte and in order; frames a second."""
    rates = []
    for a, b in ((0, 1), (1, 0)):
        sent = [frames.frame(i, size, seed + a) for i, size in enumerate(frames.sizes(sizes, count))]
        began = time.monotonic()
        got = pump(guest.wires[a], guest.wires[b], sent)
        rates.append(len(got) / (time.monotonic() - began))
        wrong = frames.difference(sent, got)
        check(wrong is None, f"wire {a} to {b}, sizes {sizes}: {wrong}; {guest.faults()}")
    return rates


def nic(model, full, queues=1, mtu=9000):
    guest = NicGuest(model)
    nics = guest.bind()
    devices = [word for address in nics for word in ("-a", address)]
    pmd = Inside(guest, ["-l", "0,1", *devices, "--", "-i", f"--rxq={queues}", f"--txq={queues}",
                         f"--max-pkt-len={mtu + 18}"])
    pmd.cmd("start")
    rates = both_ways(guest, 20000 if full else 1500, (60, 1514))
    jumbo = both_ways(guest, 5000 if full else 300, (60, mtu + 14), 2) if mtu > 1500 else []
    if queues > 1:
        spread(guest, pmd, queues)
    link(guest, pmd)
    restart(guest, pmd)
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


@scenario(need, seconds=90, full_seconds=300)
def nic_e1000e(full):
    """Intel 82574s under VFIO in a guest forward frames both ways, byte for byte."""
    nic("e1000e", full)


@scenario(need, seconds=90, full_seconds=300)
def nic_igb(full):
    """Intel 82576s under VFIO in a guest forward frames both ways, byte for byte, on two queue pairs."""
    nic("igb", full, queues=2)


@scenario(need, seconds=120, full_seconds=400)
def nic_virtio(full):
    """virtio-net devices under VFIO in a guest forward frames both ways, byte for byte, on split and packed rings."""
    nic("virtio", full)
    nic("virtio-packed", full)


@scenario(need, seconds=90, full_seconds=300)
def nic_vmxnet3(full):
    """VMware vmxnet3 devices under VFIO in a guest forward frames both ways, byte for byte."""
    nic("vmxnet3", full)


def counter(pmd, port, name):
    """One of a port's further counters."""
    text = pmd.cmd(f"show port xstats {port}")
    found = re.search(rf"(?m)^{name}: (\d+)", text)
    check(found, f"port {port} has no {name}: {text[-600:]}")
    return int(found.group(1))


@scenario(need, seconds=120, full_seconds=300)
def nic_zero_copy(full):
    """A NIC sends from the memory of a vhost-user guest, byte for byte; the guest is killed with frames on their way."""
    guest = NicGuest("e1000e", cpus=3)
    first, second = guest.bind()
    back = Inside(guest, ["-l", "0,1", "--vdev", "vhost0,iface=/run/v.sock", "-a", f"{first},copy_break=0", "--", "-i"], "back")
    back.cmd("start")
    died = 3 if full else 1
    for life in range(died + 1):
        front = Inside(guest, ["-l", "0,2", "--vdev", f"virtio_user0,path=/run/v.sock,packed_vq={life % 2}", "-a", second,
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
