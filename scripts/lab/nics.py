"""A guest with NICs of one model behind an emulated IOMMU, bound to VFIO; the host is at the other end of their wires."""

import re
import select
import shlex
import socket
import time

import testpmd
from guest import Guest
from place import ROOT, check, run_dir

# Model: (device, needs a root port of its own, option of the kernel's command line).
MODELS = {
    "virtio": "virtio-net-pci,iommu_platform=on,disable-legacy=on",
    "virtio-packed": "virtio-net-pci,iommu_platform=on,disable-legacy=on,packed=on",
    "e1000e": "e1000e",
    "igb": "igb",
    "vmxnet3": "vmxnet3",
}
IOMMU = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"
# The files of the host, for a guest; and a guest's way to them, and to VFIO.
HOST_FILES = ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
VFIO = ("modprobe 9pnet_virtio; modprobe 9p; mkdir -p /host; "
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host; "
        "for d in proc sys dev; do mount -o bind /$d /host/$d; done; mount -t tmpfs run /host/run; "
        "modprobe vfio_iommu_type1; modprobe vfio_pci; echo 160 > /proc/sys/vm/nr_hugepages")
WINDOW = 48  # frames on their way at a time: fewer than any ring holds


class Wire:
    """One end of a NIC's cable: frames go in and out as datagrams."""

    def __init__(self, name):
        self.here, self.there = run_dir() / f"{name}.host", run_dir() / f"{name}.nic"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(str(self.here))
        self.socket.setblocking(False)

    def netdev(self, name):
        return (f"dgram,id={name},local.type=unix,local.path={self.there},"
                f"remote.type=unix,remote.path={self.here}")

    def send(self, frame):
        """False: the NIC takes no more now."""
        try:
            self.socket.sendto(frame, str(self.there))
        except OSError:
            return False
        return True

    def take(self, wait_s=0.0):
        """The next frame that came out, or None."""
        if not select.select([self.socket], [], [], wait_s)[0]:
            return None
        return self.socket.recv(1 << 17)

    def drain(self):
        """Takes what is still on its way."""
        while self.take(0.7) is not None:
            pass


def pump(into, out, sent, patience_s=5, window=WINDOW, ours=lambda frame: True):
    """Sends frames into one wire and returns what comes out of another, a window at a time."""
    got, at, last = [], 0, time.monotonic()
    while len(got) < len(sent) and time.monotonic() - last < patience_s:
        while at < len(sent) and at - len(got) < window and into.send(sent[at]):
            at += 1
        frame = out.take(0.05)
        if frame is not None and ours(frame):
            got.append(frame)
            last = time.monotonic()
    return got


class NicGuest(Guest):
    """A guest with `n` NICs of a model, on wires; the files of the host are at /host.

    It has one CPU: several that reach registers at a time without KVM lose some, or break an assertion of QEMU's own
    (`iotlb_to_section`), when a device comes or goes meanwhile, which every reset of one is. A CPU whose timer is lost
    never wakes again.
    """

    def __init__(self, model, n=2, memory_mib=1024, options="", append=""):
        self.boot(model, n, memory_mib, options, append)
        self.up()
        self.sh(VFIO)

    def boot(self, model, n, memory_mib, options, append):
        self.wires = [Wire(f"{model}-{i}") for i in range(n)]
        extra = ["-device", IOMMU, *HOST_FILES]
        for i, wire in enumerate(self.wires):
            # The virtual functions of an igb claim places on its bus.
            place = f"bus=root{i}" if model == "igb" else f"addr={i + 4}"
            if model == "igb":
                extra += ["-device", f"pcie-root-port,id=root{i},slot={i + 1},chassis={i + 1},addr={i + 4}"]
            extra += ["-netdev", wire.netdev(f"net{i}"),
                      "-device", f"{MODELS[model]},romfile=,id=nic{i},netdev=net{i},mac=52:54:00:00:01:0{i},{place}{options}"]
        super().__init__(f"nic-{model}", None, memory_mib=memory_mib, cpus=1, extra=extra,
                         append=f"intel_iommu=on iommu.passthrough=0 no_timer_check {append}")

    def chroot(self, command, timeout_s=60, must=True):
        """Runs a command of the host in the guest."""
        return self.sh(f"chroot /host {command}", timeout_s, must)

    def bind(self):
        """Gives all NICs to VFIO; their addresses."""
        status = self.chroot(f"{ROOT}/scripts/bind status")
        nics = re.findall(r"(?m)^([0-9a-f:.]{12,}) ", status)
        check(len(nics) == len(self.wires), f"scripts/bind status: {status}")
        said = self.chroot(f"{ROOT}/scripts/bind bind vfio-pci {' '.join(nics)}")
        check(said.count("has the driver vfio-pci") == len(nics), f"scripts/bind bind: {said}")
        return nics

    def faults(self):
        """What the IOMMU complained about."""
        return self.sh("dmesg | grep -iE 'DMAR.*fault|DMAR:.*(read|write)' | tail -5", must=False)


class Inside:
    """A testpmd in the guest, at its prompt."""

    def __init__(self, guest, args, name="pmd", timeout_s=60, binary=None):
        self.guest, self.name = guest, name
        words = " ".join(shlex.quote(str(a)) for a in [binary or testpmd.binary(), *args])
        # The pipe has a writer until the guest ends. Not children of the shell: it ends when one ends while it reads.
        guest.detach(f"sleep 86400 > /tmp/{name}.in", f"mkfifo /tmp/{name}.in")
        guest.detach(f"chroot /host {words} < /tmp/{name}.in > /tmp/{name}.out 2>&1; echo ended with $? >> /tmp/{name}.out")
        self._prompt(0, timeout_s)

    def _prompt(self, size, timeout_s, n=1):
        end = time.monotonic() + timeout_s
        while True:
            text = self.guest.sh(f"tail -c +{size + 1} /tmp/{self.name}.out", must=False)
            if text.count("testpmd>") >= n:
                return text
            check("ended with" not in text, f"{self.name} in the guest: {text[-1500:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} in the guest does not answer: {text[-1500:]}\n{self.state()}")
            time.sleep(0.1)

    def state(self):
        """What each of its threads does, and what the kernel says: for the report of one that hangs."""
        return self.guest.sh("for p in $(pidof testpmd); do for t in /proc/$p/task/*; do cat $t/comm; grep State $t/status; "
                             "echo \"system call $(cat $t/syscall)\"; cat $t/stack; done; done; dmesg | tail -20", must=False)

    def cmd(self, line, timeout_s=20):
        size = int(self.guest.sh(f"stat -c %s /tmp/{self.name}.out"))
        self.guest.sh(f"echo {shlex.quote(line)} > /tmp/{self.name}.in")
        return self._prompt(size, timeout_s)

    def cmds(self, lines, timeout_s=60):
        """Many commands; what they print."""
        size = int(self.guest.sh(f"stat -c %s /tmp/{self.name}.out"))
        text = "\\n".join(lines)
        self.guest.sh(f"printf '{text}\\n' > /tmp/{self.name}.in")
        return self._prompt(size, timeout_s, len(lines))

    def holds(self):
        """Descriptors and mappings that it has."""
        text = self.guest.sh("p=$(pidof testpmd); ls /proc/$p/fd | wc -l; wc -l < /proc/$p/maps")
        return [int(n) for n in text.split()]

    def quit(self, timeout_s=20):
        self.guest.sh(f"echo quit > /tmp/{self.name}.in")
        end = time.monotonic() + timeout_s
        while True:
            text = self.guest.sh(f"tail -3 /tmp/{self.name}.out")
            if "ended with" in text:
                check("ended with 0" in text, f"{self.name} in the guest: {text}")
                return
            check(time.monotonic() < end, f"{self.name} in the guest does not end: {text}")
            time.sleep(0.1)

    def ended(self, timeout_s=10):
        """Waits for its end, however it ends."""
        end = time.monotonic() + timeout_s
        while "ended with" not in self.tail():
            check(time.monotonic() < end, f"{self.name} in the guest does not end")
            time.sleep(0.1)

    def tail(self):
        return self.guest.sh(f"tail -c 1500 /tmp/{self.name}.out", must=False)
