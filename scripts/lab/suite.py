"""Runs the list of tests, one process each, and counts. `scripts/test` is its command line.

A test that needs what is not here is skipped and says why; with CI=true a skip that set-up should have prevented is a
failure. A test past its time is ended, and what it started ends with it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import place
import setup
from place import ROOT
from process import end_with_parent

SKIPPED, UNABLE = 77, 78  # exit statuses of a scenario's process
PATIENCE = 3  # times the seconds that a scenario needs on an idle machine, until it is ended


TARGET = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")


@dataclasses.dataclass
class Test:
    name: str
    group: str  # "unit" or "interop"
    argv: list
    seconds: int
    summary: str


def cargo(*args):
    return ["cargo", *args]


def unit_tests():
    """What needs neither root nor a peer."""
    return [
        Test("format", "unit", cargo("fmt", "--all", "--check"), 60, "cargo fmt --check"),
        Test("layers", "unit", [str(ROOT / "scripts/layers")], 60, "arrows between modules point one way"),
        Test("clippy", "unit", cargo("clippy", "--workspace", "--all-targets", "--", "-D", "warnings"), 900,
             "clippy, warnings are errors"),
        Test("tests", "unit", cargo("test", "--workspace", "--quiet", "--no-fail-fast"), 1200, "cargo test --workspace"),
        Test("loom", "unit", ["env", "RUSTFLAGS=--cfg loom", f"CARGO_TARGET_DIR={TARGET}/loom",
                              *cargo("test", "--quiet", "-p", "pmd", "--lib", "loom")], 600,
             "what two threads touch, in every order (loom)"),
        Test("miri", "unit", [str(ROOT / "scripts/miri")], 1200, "unit tests under Miri"),
        Test("docs", "unit", cargo("doc", "--workspace", "--no-deps"), 600, "documentation builds without a warning"),
        Test("build", "unit", cargo("build", "--release", "--bins"), 1200, "release build of the applications"),
        Test("instructions", "unit", [str(ROOT / "scripts/instructions")], 600, "instructions per packet, against the table"),
        Test("demo", "unit", scenario_argv("demo"), 60, "testpmd without arguments, root or huge pages"),
    ]


def scenario_argv(name):
    return [sys.executable, str(pathlib.Path(__file__)), "--one", name]


def interop_tests(full):
    import scenarios  # noqa: F401
    from scenario import ALL
    return [Test(s.name, "interop", scenario_argv(s.name) + (["--full"] if full else []),
                 PATIENCE * (s.full_seconds if full else s.seconds), s.summary) for s in ALL.values() if s.name != "demo"]


def run_one(name, full):
    """The body of a scenario's process."""
    import scenarios  # noqa: F401
    from scenario import ALL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything registered with atexit runs
    it = ALL[name]
    try:
        it.need()
        it.run(full)
    except place.Unable as reason:
        print(reason, flush=True)
        return UNABLE
    except place.Skip as reason:
        print(reason, flush=True)
        return SKIPPED
    except place.Failed as reason:
        print(f"FAILED: {reason}", flush=True)
        return 1
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1
    return 0


class Suite:
    """Counts what it ran."""

    def __init__(self):
        self.passed, self.failed, self.skipped, self.unsteady, self.records = 0, 0, 0, [], []

    def run(self, test):
        """Runs one test. One with guests, threads and clocks that fails is run once more: emulation has faults of its own,
        and a busy machine its moods. If it passes then it is named at the end, and the report of its failure stays."""
        failed = self.failed
        self._run(test)
        if self.failed > failed and (test.group == "interop" or test.name == "tests"):
            self._run(test)
            again = self.failed > failed + 1
            self.failed = failed + again
            if not again:
                self.unsteady.append(test.name)

    def _run(self, test):
        """Runs it in a folder of its own, which is gone afterwards whatever happens."""
        print(f"--- {test.name}: {test.summary}", flush=True)
        with tempfile.TemporaryDirectory(prefix="hotring-", ignore_cleanup_errors=True) as folder:
            self._run_in(pathlib.Path(folder), test)

    def _run_in(self, folder, test):
        began = time.monotonic()
        env = {**os.environ, "HOTRING_RUN": str(folder), "RUSTDOCFLAGS": "-D warnings", "CARGO_TERM_COLOR": "never"}
        child = subprocess.Popen(test.argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
                                 preexec_fn=lambda: end_with_parent(signal.SIGTERM))
        expired = threading.Event()
        watch = threading.Timer(test.seconds, self._expire, (child, expired))
        watch.start()
        lines, live = [], test.argv[0] != "cargo"
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            if live:
                print("    " + lines[-1], flush=True)
        status = child.wait()
        watch.cancel()
        took = time.monotonic() - began
        self._count(test, "expired" if expired.is_set() else status, lines, took, folder, live)

    @staticmethod
    def _expire(child, expired):
        """SIGTERM lets the test clean up; whoever outlives it by 15 s is killed with its children."""
        expired.set()
        try:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _count(self, test, status, lines, took, folder, live):
        name = test.name
        if status in (SKIPPED, UNABLE) and not (place.CI and status == SKIPPED):
            self.skipped += 1
            verdict = f"skipped: {lines[-1] if lines else 'no reason given'}"
        elif status == 0:
            self.passed += 1
            verdict = f"ok ({took:.1f} s)"
        else:
            self.failed += 1
            why = f"ended after {test.seconds} s" if status == "expired" else \
                "skipped, which CI=true does not allow" if status == SKIPPED else f"exit {status}"
            verdict = f"FAILED ({took:.1f} s): {why}"
            if not live:
                print("\n".join("    " + line for line in lines[-60:]))
            self._print_logs(folder)
        if not live and status == 0 and name == "tests":
            for line in lines:
                if line.startswith("test result:") and " 0 passed; 0 failed" not in line:
                    print("    " + line)
        self.records.append({"name": name, "verdict": verdict, "seconds": round(took, 1),
                             "figures": lines if live else []})
        print(f"{name}: {verdict}", flush=True)

    @staticmethod
    def _print_logs(folder, last=25):
        for log in sorted(folder.glob("logs/*.log")):
            print(f"    == the end of {log.name}")
            for line in log.read_text(errors="replace").splitlines()[-last:]:
                print("    | " + line)


def main():
    parser = argparse.ArgumentParser(prog="scripts/test", description="Hotring's tests; see docs/testing.md")
    parser.add_argument("what", nargs="*", help="unit, interop, or names (a prefix will do); all when left out")
    parser.add_argument("--full", action="store_true", help="the whole matrices, millions of frames a cell")
    parser.add_argument("--list", action="store_true", help="names what can be run")
    parser.add_argument("--no-setup", action="store_true", help="install and reserve nothing")
    parser.add_argument("--device", choices=("hotring", "dpdk"), default="hotring",
                        help="dpdk: DPDK in our place in the interop scenarios, to try the harness itself")
    parser.add_argument("--json", metavar="FILE", help="also write verdicts and figures to FILE")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        sys.exit(run_one(args.one, args.full))
    os.environ["HOTRING_DEVICE"] = args.device

    tests = unit_tests() + interop_tests(args.full)
    chosen = [t for t in tests if not args.what or selected(t, args.what)]
    if args.list:
        for t in chosen:
            print(f"{t.group:8} {t.name:20} {t.summary}")
        return
    unknown = [w for w in args.what if not any(selected(t, [w]) for t in tests)]
    if unknown or not chosen:
        parser.error(f"no test is called {', '.join(unknown)}; scripts/test --list names them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    held = place.only_one() if any(t.group == "interop" for t in chosen) else None
    if not args.no_setup:
        setup.ready(chosen)
    suite = Suite()
    for test in chosen:
        suite.run(test)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(suite.records, indent=1) + "\n")
    del held
    if suite.unsteady:
        print(f"failed once, then passed: {', '.join(suite.unsteady)}")
    print(f"{suite.passed} passed, {suite.failed} failed, {suite.skipped} skipped", flush=True)
    sys.exit(1 if suite.failed else 0)


def selected(test, words):
    """`unit` and `interop` choose the group; any further word narrows it down by the beginning of a name."""
    groups = {w for w in words if w in ("unit", "interop")}
    names = [w for w in words if w not in groups]
    if groups and test.group not in groups:
        return False
    return not names or any(test.name == n or test.name.startswith(n) for n in names)


if __name__ == "__main__":
    main()
