"""Child processes that one talks to: send a line, wait for a pattern. None outlives the scenario."""

import atexit
import ctypes
import os
import pathlib
import re
import select
import signal
import subprocess
import time

from place import run_dir

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_alive = []


def end_with_parent(sig=signal.SIGKILL):
    """For `preexec_fn`: the child gets the signal when its parent ends, however it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, sig)


class Process:
    """A child with its standard streams on pipes; what it prints goes to `logs/NAME.log` too."""

    def __init__(self, argv, name, netns=None, env=None):
        argv = [str(a) for a in argv]
        if netns:
            argv = ["ip", "netns", "exec", netns] + argv
        self.name, self.argv, self.seen = name, argv, b""
        self.log = open(run_dir() / "logs" / f"{name}.log", "ab")
        self.log.write(("$ " + " ".join(argv) + "\n").encode())
        self.log.flush()
        self.child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, env={**os.environ, **(env or {})},
                                      start_new_session=True, preexec_fn=end_with_parent)
        os.set_blocking(self.child.stdout.fileno(), False)
        _alive.append(self)

    def pump(self, wait_s=0.0):
        """Takes what the child printed, waiting up to `wait_s` for something; False at its end."""
        if not select.select([self.child.stdout], [], [], wait_s)[0]:
            return True
        data = self.child.stdout.read(1 << 16)
        if data:
            self.seen += data
            self.log.write(data)
            self.log.flush()
        return data != b""

    def expect(self, pattern, timeout_s=30):
        """Everything printed up to and including the first match of the pattern."""
        regex, end = re.compile(pattern.encode(), re.S), time.monotonic() + timeout_s
        while True:
            found = regex.search(self.seen)
            if found:
                out, self.seen = self.seen[:found.end()], self.seen[found.end():]
                return out.decode(errors="replace")
            ended = not self.pump(0.05)
            if ended and not regex.search(self.seen):
                raise RuntimeError(f"{self.name} ended (exit {self.child.wait(5)}) before {pattern!r}: {self.tail()}")
            if time.monotonic() > end and not regex.search(self.seen):
                raise TimeoutError(f"{self.name}: no {pattern!r} in {timeout_s} s: {self.tail()}")

    def logged(self, pattern, timeout_s=30):
        """Waits until all that was printed since the start has a match of the pattern."""
        regex, end = re.compile(pattern.encode(), re.S), time.monotonic() + timeout_s
        while not regex.search(pathlib.Path(self.log.name).read_bytes()):
            if not self.pump(0.05) or time.monotonic() > end:
                raise TimeoutError(f"{self.name}: no {pattern!r} in {timeout_s} s: {self.tail()}")

    def tail(self):
        return self.seen[-1200:].decode(errors="replace").strip()

    def send(self, text):
        self.child.stdin.write(text.encode())
        self.child.stdin.flush()

    def running(self):
        return self.child.poll() is None

    def wait(self, timeout_s=10):
        """The exit status, once the child has ended by itself."""
        end = time.monotonic() + timeout_s
        while self.child.poll() is None:
            self.pump(0.02)
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} did not end within {timeout_s} s: {self.tail()}")
        while select.select([self.child.stdout], [], [], 0)[0] and self.pump():
            pass
        return self.child.returncode

    def kill(self, sig=signal.SIGTERM, timeout_s=5):
        """Ends the child and all of its session; returns its exit status."""
        if self.running():
            try:
                os.killpg(self.child.pid, sig)
                self.wait(timeout_s)
            except (TimeoutError, ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
        if self in _alive:
            _alive.remove(self)
        return self.child.returncode


@atexit.register
def kill_all():
    """Ends every child that is still there, newest first."""
    for p in reversed(_alive[:]):
        p.kill()
