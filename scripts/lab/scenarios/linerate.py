"""`linerate` on our `vhost` port: what it says of a good back-end, of a bad one, and how it says it; and on the
back-ends of others.

Figures are printed and not judged: others use these cores. What is judged is what was counted, and that results are
whole: one JSON object a line, all percentiles in order, a plot that is XML, a comparison with itself that is 1.
"""

import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree

import ovs
import place
from place import ROOT, Unable, check, cores, figure, need_peers, run_dir
from scenario import scenario
from testpmd import binary, dpdk, hotring

PERCENTILES = ["p50_ns", "p75_ns", "p90_ns", "p95_ns", "p99_ns", "p99_9_ns", "p99_99_ns", "p99_999_ns"]


def program():
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = os.environ.get("HOTRING_LINERATE") or f"{target}/release/linerate"
    if not os.path.exists(path):
        raise place.Skip(f"{path} is not built (cargo build --release)")
    return path


def need():
    binary()
    program()
    if len(cores()) < 2:
        raise Unable("needs two cores: one for the device, one for its driver")


def need_others():
    need()
    need_peers()
    ovs.need()


class BackEnd:
    """Whoever serves `sockets`."""

    def __init__(self, *sockets):
        self.sockets = sockets

    def argv(self, line):
        return [program(), "--core", "1", "--quiet", "--path", *map(str, self.sockets), *line.split()]

    def linerate(self, line, status=0):
        """Runs it to its end; the objects that it printed."""
        done = subprocess.run(self.argv(line) + ["--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=60)
        check(done.returncode == status, f"linerate {line}: exit {done.returncode}, not {status}: "
                                         f"{done.stdout}{done.stderr}")
        return [json.loads(s) for s in done.stdout.splitlines()]


class Device(BackEnd):
    """Our testpmd on core 0: ports that return packets, or two that cross them."""

    def __init__(self, ports=1, queues=1, mode="io", keys=""):
        super().__init__(*[run_dir() / f"port{n}.sock" for n in range(ports)])
        vdevs = [f"vhost{n},iface={s},queues={queues}{keys}" for n, s in enumerate(self.sockets)]
        self.pmd = hotring("device", vdevs, [f"--forward-mode={mode}", f"--rxq={queues}", f"--txq={queues}",
                                             f"--port-topology={'loop' if ports == 1 else 'paired'}"])
        self.pmd.cmd("start")

    def leave(self):
        self.pmd.cmd("stop")
        self.pmd.quit()


def whole(record, measure, line):
    """Checks what every record has."""
    check(record["measure"] == measure, f"{line}: {record['measure']}, not {measure}")
    check(record["packed"] == ("--packed" in line), f"{line}: packed is {record['packed']}")
    host = record["host"]
    check(host["kernel"] == os.uname().release and host["cpus"] == os.cpu_count(), f"{line}: another host: {host}")
    check("interrupted" not in record, f"{line}: says it was interrupted")


def verified(device, line):
    [record] = device.linerate(f"--measure verify {line}")
    whole(record, "verify", line)
    wrong = {k: record[k] for k in ("lost", "duplicated", "reordered", "damaged", "misdelivered", "unknown",
                                    "bad_headers") if record[k]}
    check(not wrong and record["received"] == record["sent"] > 0, f"{line}: {record}")
    figure(f"verify {line}: {record['received']:,} at {record['mpps']:.2f} Mpps, none lost, doubled, late or damaged")


@scenario(need, seconds=120, full_seconds=400)
def linerate_verify(full):
    """linerate's own check of every byte, over every shape of ring; and that it notices what is wrong."""
    seconds = f"--seconds {5 if full else 0.5}"
    device = Device()
    for layout in ("", "--packed "):
        for shape in ("", "--in-order --frame imix --flows 1000", "--header own --indirect --frame 1514",
                      "--no-mergeable --header own --frame 9000", "--room 256 --frame 9000", "--size 64 --flows 100000"):
            verified(device, f"{layout}{shape} {seconds}")
    verified(device, f"--legacy --no-mergeable --header own {seconds}")
    verified(device, f"--legacy --frame imix {seconds}")
    device.leave()
    device = Device(queues=4)
    verified(device, f"--packed --queues 4 {seconds}")
    device.leave()
    device = Device(ports=2)
    verified(device, f"--mode guests --frame imix {seconds}")
    device.leave()
    if os.environ.get("HOTRING_DEVICE") == "dpdk":
        return
    for fault, kind in (("drop", "lost"), ("duplicate", "duplicated"), ("reorder", "reordered"), ("corrupt", "damaged")):
        device = Device(keys=f",fault={fault}:0.001+turns:1")
        [record] = device.linerate(f"--measure verify --window 128 {seconds}", status=1)
        found = {k: record[k] for k in ("duplicated", "reordered", "damaged")}
        found["lost"] = record["lost"] - record["damaged"]
        others = {k: n for k, n in found.items() if n and k != kind}
        check(found[kind] and not others, f"fault {fault}: {record}")
        figure(f"fault {fault}: {found[kind]} {kind} of {record['sent']:,}, and nothing else")
        device.leave()


@scenario(need_others, seconds=120, full_seconds=300)
def linerate_others(full):
    """linerate on DPDK's net_vhost and on two ports of Open vSwitch: rates, and every byte."""
    seconds = f"--seconds {5 if full else 0.5}"
    socket = run_dir() / "dpdk.sock"
    peer = dpdk("net_vhost", [f"net_vhost0,iface={socket},queues=2"],
                ["--forward-mode=io", "--port-topology=loop", "--rxq=2", "--txq=2"], core=0)
    peer.cmd("start")
    device = BackEnd(socket)
    for line in ("", "--packed --queues 2 --frame imix", "--indirect --header own --in-order", "--legacy --no-mergeable"):
        verified(device, f"{line} {seconds}")
        [record] = device.linerate(f"{line} {seconds}")
        whole(record, "rate", line)
        figure(f"DPDK {line}: {record['mpps']:.2f} Mpps, driver busy {record['driver_busy']:.0%}")
    peer.quit()
    switch = ovs.Switch(core=0)
    device = BackEnd(switch.server_port("a"), switch.server_port("b"))
    switch.cross("a", "b")
    for layout in ("", "--packed"):
        # The switch frees what it took before it is delivered, and drops what finds a full ring: half of one is safe.
        verified(device, f"--mode guests --frame imix --flows 100 --window 512 {layout} {seconds}")
        [record] = device.linerate(f"--mode guests --measure lone {layout} {seconds}")
        check(record["way"] == "one-way" and record["samples"] > 100, f"one-way: {record}")
        figure(f"Open vSwitch {layout}, one-way: " + said(record))
    switch.close()


@scenario(need, seconds=120, full_seconds=600)
def linerate_rfc2544(full):
    """linerate's rates, latencies, throughput and loss curves, split and packed; JSON, plot, comparison, Ctrl-C."""
    device, files = Device(), []
    for layout in ("", "--packed"):
        [record] = device.linerate(f"--seconds 0.5 {layout}")
        whole(record, "rate", layout)
        check(record["sampled"]["bytes"] == 60 and record["sampled"]["buffers"] == 1, f"frames seen: {record['sampled']}")
        figure(f"rate {layout}: {record['mpps']:.2f} Mpps, driver busy {record['driver_busy']:.0%}")
        [record] = device.linerate(f"--measure lone --seconds 1 {layout}")
        whole(record, "lone", layout)
        times(record, 1000)
        figure(f"lone {layout}: " + said(record))
        [record] = device.linerate(f"--measure latency --rate 0.05 --seconds 0.5 {layout}")
        whole(record, "latency", layout)
        times(record, 1000)
        figure(f"latency {layout} at 0.05 Mpps: " + said(record))
        files.append(rfc2544(device, layout, 10 if full else 0.1))
    itself = compared(files[0], files[0])
    check(itself and all(line["ratio"] in (1, None) for line in itself), f"compared with itself: {itself}")
    check(not compared(files[0], files[1]), "split and packed were compared as if they were alike")
    interrupted(device)
    device.leave()


def rfc2544(device, layout, seconds):
    """Throughput at 5 % loss, latency at three loads, loss curve; returns the file with the records. Where others
    take the cores for longer than a ring lasts, the throughput may be 0; it must agree with its trials."""
    plot, file = run_dir() / f"plot{layout}.svg", run_dir() / f"records{layout}.json"
    line = f"--measure rfc2544 --seconds {seconds} --loss 5 --resolution 5 --tries 3 --loads 10,50,90 --plot {plot} {layout}"
    records = device.linerate(line)
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = records[0]
    whole(found, "throughput", line)
    passed = [(t["wanted_mpps"], t["offered_mpps"]) for t in found["trials"] if t["kept_up"] and t["loss"] <= 5]
    check(found["mpps"] == max(passed, default=(0, 0))[1], f"throughput: {found}")
    check(all(t["received"] + t["refused"] <= t["offered"] for t in found["trials"]), f"trials: {found['trials']}")
    figure(f"throughput {layout} at 5 % loss: {found['mpps']:.2f} of {found['highest_mpps']:.2f} Mpps, "
           f"{len(found['trials'])} trials")
    latencies = [r for r in records if r["measure"] == "latency"]
    check([r["load"] for r in latencies] == ([10, 50, 90] if passed else []), f"latencies: {latencies}")
    for record in latencies:
        whole(record, "latency", line)
        times(record, 100)
        check(record["unknown"] <= record["samples"] / 100, f"frames that could not be told: {record}")
        figure(f"latency {layout} at {record['load']} %: " + said(record))
    curve = records[-1]
    whole(curve, "loss-curve", line)
    offered = [p["wanted_mpps"] for p in curve["points"]]
    check(offered == sorted(offered, reverse=True) and len(offered) >= 2, f"loss curve: {curve}")
    picture = xml.etree.ElementTree.parse(plot).getroot()
    lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
    check(len(lines) == 2 + len(latencies), f"{plot} has {len(lines)} lines")
    return file


def times(record, least):
    """Percentiles rise, and none is told of fewer samples than it needs."""
    check(record["samples"] >= least and record["way"] == "round trip", f"{record['samples']} samples: {record}")
    known = [record[p] for p in PERCENTILES if record[p] is not None]
    row = [record["min_ns"], *known, record["max_ns"]]
    check(row[0] > 0 and all(a <= b * 1.002 for a, b in zip(row, row[1:])), f"percentiles do not rise: {record}")
    check((record["p99_9_ns"] is None) == (record["samples"] < 1000), f"p99.9 of {record['samples']} samples")


def said(record):
    return ", ".join(f"{p[:-3].replace('_', '.')} {record[p] / 1000:.2f}" for p in PERCENTILES
                     if record[p] is not None) + " us"


def compared(a, b):
    done = subprocess.run([program(), "--compare", a, b, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(s) for s in done.stdout.splitlines()]


def interrupted(device):
    """Ctrl-C in a soak: what was measured until then is printed, marked, and the exit status is good."""
    argv = device.argv("--measure soak --period 0.2 --json")
    soak = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(2)
        soak.send_signal(signal.SIGINT)
        out, err = soak.communicate(timeout=20)
    finally:
        soak.kill()
    *periods, last = [json.loads(s) for s in out.splitlines()]
    check(soak.returncode == 0, f"soak ended with {soak.returncode}: {out}{err}")
    check(last["measure"] == "soak" and last["interrupted"] and last["received"] == last["sent"] > 0, f"soak: {last}")
    check(periods and all(p["measure"] == "period" for p in periods), f"periods: {periods}")
    figure(f"Ctrl-C after {last['seconds']:.1f} s of a soak: {last['received']:,} frames, {len(periods)} periods kept")
