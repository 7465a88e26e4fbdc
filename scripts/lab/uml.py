"""User-mode Linux: a guest that is a process, whose own vhost-user front-end leaves every queue to the back-end, the
control queue too."""

from guest import Shell
from place import LAB
from process import Process


class UserMode(Shell):
    """A Linux guest with one virtio-net device on a vhost-user socket, at its shell once `up` returns."""

    def __init__(self, name, sock, memory_mib=192):
        super().__init__(name)
        argv = ["nice", "-n", "5", LAB / "uml/usr/bin/linux.uml", f"mem={memory_mib}M", f"umid={name}",
                f"initrd={LAB / 'initramfs-uml.gz'}", "con0=fd:0,fd:1", "con=null", "quiet", "panic=-1", "ipv6.disable=1",
                f"virtio_uml.device={sock}:1:0"]
        # Its memory is a file in TMPDIR, which the back-end maps.
        self.process = Process(argv, f"uml-{name}", env={"TMPDIR": "/dev/shm", "HOME": "/tmp"})

    def receive(self):
        alive = self.process.pump(0.1)
        data, self.process.seen = self.process.seen, b""
        return data if alive or data else None

    def write(self, text):
        self.process.send(text)

    def off(self):
        """Powers the guest off and waits for its end."""
        self.write("poweroff -f\n")
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
