"""A Linux guest in QEMU (TCG, no KVM needed): a shell on its serial line, and QMP."""

import itertools
import json
import os
import re
import select
import shlex
import socket
import time

from place import LAB, run_dir
from process import Process

_tags = itertools.count()
LIBRARIES = ":".join(str(LAB / "qemu" / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))


class Qmp:
    """QEMU's control socket."""

    def __init__(self, path, timeout_s=20):
        self.sock = connect(path, timeout_s)
        self.file = self.sock.makefile("rwb")
        self.file.readline()
        self.command("qmp_capabilities")

    def command(self, execute, **arguments):
        self.file.write(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise RuntimeError(f"QMP {execute}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def connect(path, timeout_s):
    """A stream connection to a unix socket that may not be there yet."""
    end = time.monotonic() + timeout_s
    while True:
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(str(path))
            return s
        except OSError:
            s.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


class Shell:
    """A guest at its shell, by whatever line there is: `receive` takes what came (None at its end), `write` sends."""

    def __init__(self, name):
        self.name, self.seen = name, b""
        self.console = open(run_dir() / "logs" / f"console-{name}.log", "wb")

    def up(self, timeout_s=90):
        """Waits for the shell."""
        self.expect(r"GUEST-READY [^\n]*\n", timeout_s)
        self.expect(r"# $", 20)
        self.sh("true")
        return self

    def expect(self, pattern, timeout_s):
        regex, end = re.compile(pattern.encode(), re.S), time.monotonic() + timeout_s
        while True:
            found = regex.search(self.seen)
            if found:
                out, self.seen = self.seen[:found.end()], self.seen[found.end():]
                return out.decode(errors="replace")
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: no {pattern!r} within {timeout_s} s: {self.seen[-1500:].decode(errors='replace')}")
            data = self.receive()
            if data is None:
                status = self.process.wait(10)
                raise RuntimeError(f"{self.name}: the guest ended with status {status}: {self.process.tail()}")
            self.seen += data
            self.console.write(data)
            self.console.flush()

    def sh(self, command, timeout_s=60, must=True):
        """Runs a command in the guest; returns what it printed."""
        tag = f"done-{next(_tags)}"
        self.write(f"{command}\necho \"<{tag}:$?>\"\n")
        out = self.expect(rf"<{tag}:\d+>", timeout_s)
        status = int(re.search(rf"<{tag}:(\d+)>", out).group(1))
        text = re.sub(r"(?m)^(# )+", "", out[:out.rindex("<")].replace("\r", "")).strip()
        if must and status:
            raise RuntimeError(f"{self.name}: {command!r}: exit {status}: {text}")
        return text

    def detach(self, command, first="true"):
        """Runs a command that goes on by itself."""
        self.sh(f"{first}; sh -c {shlex.quote(f'({command}) &')}")

    def address(self, address):
        self.sh(f"ip addr add {address} dev eth0; ip link set eth0 up")

    def features(self):
        """The features that the guest's driver and the device agreed on, as bit numbers."""
        bits = self.sh("cat /sys/class/net/eth0/device/features")
        return {i for i, bit in enumerate(bits) if bit == "1"}


class Guest(Shell):
    """A guest with one virtio-net device on a vhost-user socket, at its shell once `up` returns. Without a socket it has
    only the devices of `extra`.

    `device` adds properties to virtio-net-pci (`packed=on`), `queues` more than one asks for MQ. It has as
    many CPUs as queue pairs, because its driver leaves those disabled that have no CPU, and what a TAP sends there is
    dropped. `iommu` are arguments for QEMU that must come before the device's, `append` goes to the kernel.
    """

    def __init__(self, name, sock, device="", queues=1, kernel="6.12", mac="52:54:00:00:00:01", memory_mib=384,
                 backing="memfd", extra=(), chardev="", iommu=(), append="", cpus=None):
        super().__init__(name)
        serial, qmp = run_dir() / f"{name}.serial", run_dir() / f"{name}.qmp"
        share = f"memory-backend-{backing},id=mem,size={memory_mib}M,share=on"
        if queues > 1:
            device = f"mq=on,vectors={2 * queues + 2}," + device
        argv = ["nice", "-n", "5", LAB / "qemu/usr/bin/qemu-system-x86_64",
                "-L", LAB / "qemu/usr/share/qemu", "-L", LAB / "qemu/usr/share/seabios",
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35",
                "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", cpus or queues, "-m", f"{memory_mib}M,slots=4,maxmem=4G",
                "-object", share, "-numa", "node,memdev=mem",
                "-kernel", LAB / f"vmlinuz-{kernel}", "-initrd", LAB / f"initramfs-{kernel}.gz",
                "-append", f"console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check ipv6.disable=1 {append}", *iommu,
                "-chardev", f"socket,id=serial,path={serial},server=on,wait=off", "-serial", "chardev:serial",
                "-qmp", f"unix:{qmp},server=on,wait=off"]
        if sock:
            device = filter(None, [f"virtio-net-pci,netdev=net,mac={mac},disable-legacy=on,romfile=", device])
            argv += ["-chardev", f"socket,id=vhost,path={sock}{chardev}",
                     "-netdev", f"vhost-user,id=net,chardev=vhost,queues={queues}", "-device", ",".join(device)]
        argv += extra
        env = {"QEMU_MODULE_DIR": str(LAB / "qemu/usr/lib/x86_64-linux-gnu/qemu"), "LD_LIBRARY_PATH": LIBRARIES}
        self.process = Process(argv, f"qemu-{name}", env=env)
        try:
            self.line = connect(serial, 20)
            self.qmp = Qmp(qmp)
        except OSError as e:
            self.process.pump(0.5)
            raise RuntimeError(f"QEMU for {name} did not start: {e}: {self.process.tail()}") from e

    def memory(self):
        """The file behind the guest's memory."""
        folder = f"/proc/{self.process.child.pid}/fd"
        names = (f"{folder}/{fd}" for fd in os.listdir(folder))
        return next(name for name in names if "memory-backend-memfd" in os.readlink(name))

    def receive(self):
        self.process.pump(0)
        if not select.select([self.line], [], [], 0.1)[0]:
            return b""
        return self.line.recv(1 << 16) or None

    def write(self, text):
        self.line.sendall(text.encode())

    def off(self):
        """Powers the guest off and waits for QEMU's end."""
        self.write("poweroff -f\n")
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
