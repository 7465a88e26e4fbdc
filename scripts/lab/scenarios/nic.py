"""NICs bound to VFIO in a guest, driven by our testpmd there; the host sends and receives at the far end of their wires."""

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
    stats = pmd.cmd("show port stats all")
    pmd.cmd("stop")
    pmd.quit()
    figure(f"{model}: {', '.join(f'{r:.0f}' for r in rates)} frames/s of 60 to 1514 B each way; "
           f"{', '.join(f'{r:.0f}' for r in jumbo)} of up to {mtu + 14} B")
    guest.off()
    return stats


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
