"""Our vswitch, driven by ovs-vsctl, ovs-ofctl and ovs-appctl; its answers beside those of ovs-vswitchd."""

import os
import random
import re
import socket
import subprocess
import sys
import time

import ovs
from place import LAB, ROOT, Failed, Skip, Unable, check, figure, is_root, run_dir, sh
from process import Process
from scenario import scenario

# Flows that every version of OpenFlow can carry, with Nicira's extensions.
FLOWS = [
    "in_port=1,actions=output:2",
    "ip,nw_src=10.0.0.0/8,nw_dst=10.1.2.3,nw_tos=32,actions=NORMAL",
    "tcp6,ipv6_src=2001:db8::/32,tp_dst=80,actions=CONTROLLER:128",
    "udp,tp_src=53,actions=FLOOD,ALL,LOCAL,IN_PORT",
    "sctp,tp_dst=7,actions=drop",
    "icmp,icmp_type=8,icmp_code=0,actions=output:1",
    "icmp6,icmp_type=135,nd_target=fe80::1,nd_sll=00:01:02:03:04:05,actions=output:1",
    "arp,arp_op=1,arp_spa=10.0.0.1,arp_tpa=10.0.0.2,arp_sha=00:01:02:03:04:05,actions=output:1",
    "dl_vlan=5,dl_vlan_pcp=3,actions=strip_vlan,output:1",
    "vlan_tci=0x1000/0x1000,actions=output:1",
    "dl_src=01:00:00:00:00:00/01:00:00:00:00:00,dl_dst=00:11:22:33:44:55,actions=mod_dl_src:00:aa:bb:cc:dd:ee,mod_dl_dst:00:aa:bb:cc:dd:ff,output:1",
    "tcp,actions=mod_nw_src:1.2.3.4,mod_nw_dst:5.6.7.8,mod_nw_tos:32,mod_tp_src:1,mod_tp_dst:2,output:1",
    "ip,actions=mod_nw_ttl:5,mod_nw_ecn:2,dec_ttl,dec_ttl(1,2),output:1",
    "mpls,mpls_label=17,mpls_tc=2,mpls_bos=1,actions=pop_mpls:0x0800,output:1",
    "actions=push_mpls:0x8847,set_mpls_label:5,set_mpls_tc:3,set_mpls_ttl:7,dec_mpls_ttl,output:1",
    "reg0=5,reg1=0x10/0xf0,metadata=7,tun_id=9,pkt_mark=3,actions=output:1",
    "actions=load:5->NXM_NX_REG0[],load:3->NXM_NX_REG1[4..7],move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],output:NXM_NX_REG0[0..15]",
    "actions=set_field:9->reg3,set_field:0x10/0xf0->reg4,set_tunnel:5,set_tunnel64:0x123456789,output:1",
    "actions=learn(table=1,idle_timeout=10,hard_timeout=20,priority=5,cookie=0x99,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:NXM_OF_IN_PORT[]->NXM_NX_REG0[0..15],output:NXM_OF_IN_PORT[]),output:1",
    "actions=learn(table=1,send_flow_rem,delete_learned,limit=5,result_dst=reg0[1],dl_type=0x800,load:0x5->NXM_NX_REG1[])",
    "ct_state=-trk,ip,actions=ct(table=1,zone=7)",
    "ct_state=+trk+new,ip,ct_zone=7,ct_mark=5/0xff,ct_label=0x123,actions=ct(commit,zone=NXM_NX_REG0[0..15],exec(load:1->NXM_NX_CT_MARK[],set_field:0x4->ct_label)),output:2",
    "ip,actions=ct(commit,table=2,nat(src=10.0.0.1-10.0.0.9:100-200,random)),ct_clear",
    "ip,actions=ct(commit,force,zone=1,nat(dst=10.0.0.1)),ct(nat,table=3)",
    "ipv6,actions=ct(commit,table=2,nat(src=fc00::1-fc00::9,persistent,hash))",
    "tcp,actions=ct(commit,alg=ftp)",
    "actions=note:11.22.33,note:01.02.03.04.05.06.07,exit",
    "actions=multipath(eth_src,50,modulo_n,4,0,NXM_NX_REG0[0..3])",
    "actions=bundle(eth_src,0,hrw,ofport,slaves:1,2,3)",
    "actions=bundle_load(symmetric_l4,0,active_backup,ofport,NXM_NX_REG0[],slaves:1,2)",
    "tcp,actions=fin_timeout(idle_timeout=5,hard_timeout=6),controller(reason=no_match,max_len=64,id=7),output:1",
    "actions=controller(userdata=01.02.03,pause),push:NXM_NX_REG0[],pop:NXM_NX_REG1[0..15],output:1",
    "actions=clone(output:1,set_field:5->reg0),output(port=2,max_len=100)",
    "actions=sample(probability=100,collector_set_id=1,obs_domain_id=2,obs_point_id=3),sample(probability=100,collector_set_id=1,obs_domain_id=2,obs_point_id=3,sampling_port=1)",
    "conj_id=5,ip,actions=output:1",
    "ip,nw_src=1.1.1.1,actions=conjunction(5,1/2)",
    "actions=check_pkt_larger(1500)->reg0[0],set_queue:5,pop_queue,enqueue:1:2",
    "ip,nw_frag=later,actions=output:1",
    "ip,nw_frag=yes,nw_ttl=64,nw_ecn=1,actions=output:1",
    "tcp,tcp_flags=+syn-ack,actions=output:1",
    "tcp,tcp_flags=0x12/0x12,actions=output:1",
    "ipv6,ipv6_label=0x12345,actions=output:1",
    "tun_src=1.2.3.4,tun_dst=5.6.7.8,tun_gbp_id=5,actions=output:1",
    "xreg0=0x1234567890,actions=output:1",
    "dl_vlan=5,actions=mod_vlan_vid:6,output:1",
    "actions=resubmit:3,resubmit(,4),resubmit(2,5)",
]

# Flows of OpenFlow 1.3 and later.
NEWER = [
    "tcp,actions=push_vlan:0x8100,set_field:4101->vlan_vid,set_field:3->vlan_pcp,set_field:10.0.0.1->ip_src,set_field:80->tcp_dst,output:1",
    "actions=clear_actions,write_actions(output:1,set_field:5->reg0),write_metadata:0x12/0xff,goto_table:5",
    "actions=meter:1,output:1",
    "actions=group:1",
]

# Forgotten before answers are compared: what depends on the time.
TIMES = re.compile(r"(duration|idle_age|hard_age)=[0-9.]+s?, ?|\(xid=0x[0-9a-f]+\)|^\d{4}-\d\d-.*$", re.M)


def vswitch():
    """Our switch: HOTRING_VSWITCH, or the release build."""
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    path = os.environ.get("HOTRING_VSWITCH") or f"{target}/release/vswitch"
    if not os.path.exists(path):
        raise Skip(f"{path} is not built (cargo build --release)")
    return path


def need():
    vswitch()
    ovs.need()
    if not is_root():
        raise Skip("needs root")


class Side:
    """A database and a switch that follows it: ours, or Open vSwitch's with ports that carry nothing."""

    def __init__(self, name):
        self.name, self.folder = name, run_dir() / name
        self.folder.mkdir()
        f = self.folder
        self.env = {"OVS_RUNDIR": str(f), "OVS_LOGDIR": str(f), "OVS_DBDIR": str(f), "OVS_SYSCONFDIR": str(f)}
        sh(["ovsdb-tool", "create", f"{f}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema"])
        self.database = Process(["ovsdb-server", f"{f}/conf.db", f"--remote=punix:{f}/db.sock", f"--unixctl={f}/ovsdb.ctl"],
                                f"{name}-ovsdb", env=self.env)
        self.wait_for(f / "db.sock")
        self.vsctl("--no-wait", "init")
        if name == "ours":
            argv = [vswitch(), "--db", f"unix:{f}/db.sock", "--unixctl", f"{f}/vswitchd.ctl", "--rundir", f, "--no-huge"]
        else:
            argv = [ovs.VSWITCHD, f"unix:{f}/db.sock", f"--unixctl={f}/vswitchd.ctl", "--enable-dummy=override", "--disable-system"]
        self.daemon = Process(argv, f"{name}-switch", env=self.env)
        self.wait_for(f / "vswitchd.ctl")

    @staticmethod
    def wait_for(path, timeout_s=60):
        end = time.monotonic() + timeout_s
        while not path.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{path} did not appear")
            time.sleep(0.02)

    def run(self, *argv, must=True):
        return sh(["env", *(f"{k}={v}" for k, v in self.env.items()), *map(str, argv)], must=must)

    def vsctl(self, *args, must=True):
        return self.run("ovs-vsctl", f"--db=unix:{self.folder}/db.sock", "--timeout=60", *args, must=must)

    def ofctl(self, version, command, *args, must=True):
        """`ovs-ofctl -O OpenFlowVERSION COMMAND br0 ARGUMENTS`, without what depends on the time."""
        out = self.run("ovs-ofctl", "--timeout=60", "-O", f"OpenFlow{version}", *command.split(), f"unix:{self.folder}/br0.mgmt", *args, must=must)
        return "\n".join(sorted(line for line in TIMES.sub("", out).splitlines() if line))

    def appctl(self, *args, must=True):
        return self.run("ovs-appctl", "--timeout=60", "-t", self.folder / "vswitchd.ctl", *args, must=must)

    def bridge(self):
        """`br0` with three ports; the same ports, though of different types."""
        self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure",
                   "other_config:hwaddr=aa:55:aa:55:00:00")
        for n in (1, 2, 3):
            kind = ["type=dpdkvhostuserclient", f"options:vhost-server-path={self.folder}/p{n}.sock"] if self.name == "ours" else ["type=dummy"]
            self.vsctl("add-port", "br0", f"p{n}", "--", "set", "interface", f"p{n}", *kind, f"ofport_request={n}")


def compare(sides, version, command, *args):
    """Both give the same answer to a command; returns it."""
    ours, theirs = (s.ofctl(version, command, *args, must=False) for s in sides)
    if ours != theirs:
        only = [f"ours:   {line}" for line in ours.splitlines() if line not in theirs.splitlines()]
        only += [f"theirs: {line}" for line in theirs.splitlines() if line not in ours.splitlines()]
        raise Failed(f"OpenFlow {version}, {command} {args}:\n" + "\n".join(only))
    return ours


def both(sides, version, command, *args):
    for side in sides:
        side.ofctl(version, command, *args)


@scenario(need, seconds=180)
def vswitch_openflow(full):
    """ovs-vsctl, ovs-ofctl and ovs-appctl drive our vswitch; every dump is the one of ovs-vswitchd."""
    sides = ours, theirs = Side("ours"), Side("theirs")
    for side in sides:
        side.bridge()
    database(ours)
    compared = 0
    both(sides, 13, "add-meter", "meter=1,kbps,band=type=drop,rate=100")
    both(sides, 13, "add-group", "group_id=1,type=all,bucket=output:1")
    for version in (10, 13, 15):
        both(sides, version, "del-flows")
        corpus = run_dir() / f"flows-{version}"
        list_ = FLOWS + (NEWER if version > 10 else [])
        corpus.write_text("".join(f"priority={n + 1},{flow}\n" for n, flow in enumerate(list_)))
        both(sides, version, "add-flows", corpus)
        for dumped in (10, 13, 14, 15) if version == 10 else (13, 14, 15):
            found = compare(sides, dumped, "dump-flows")
            check(found.count("priority=") >= len(FLOWS), f"{found.count('priority=')} flows of {len(list_)} are there")
            compared += found.count("priority=")
    figure(f"{compared} flows dumped as ovs-vswitchd dumps them")
    changes(sides)
    groups_and_meters(sides)
    monitor(ours)
    commands(ours)
    hostile(ours)
    ours.vsctl("del-br", "br0")
    check(not (ours.folder / "br0.mgmt").exists(), "br0.mgmt outlives its bridge")
    ours.appctl("exit")
    status = ours.daemon.wait(30)
    check(status == 0, f"vswitch ended with status {status}")


def database(ours):
    """What the database is told of."""
    check(ours.vsctl("get", "interface", "p2", "ofport") == "2", "p2 does not have the port number it asked for")
    check(ours.vsctl("get", "bridge", "br0", "datapath_id") == '"0000aa55aa550000"', "the bridge's number is another")
    ours.vsctl("add-port", "br0", "odd", "--", "set", "interface", "odd", "type=nonsense", must=False)
    error = ours.vsctl("get", "interface", "odd", "error")
    check("nonsense" in error and ours.vsctl("get", "interface", "odd", "ofport") == "-1", f"an odd interface has error {error}")
    ours.vsctl("del-port", "odd", "--", "set", "port", "p3", "tag=7")
    figure("ovs-vsctl is answered: port numbers, errors, addresses")


def changes(sides):
    """Flows changed and deleted, strictly and not; bundles that succeed and that fail."""
    both(sides, 13, "del-flows")
    flows = run_dir() / "flows"
    flows.write_text("cookie=1,priority=5,ip,actions=output:1\ncookie=2,priority=6,tcp,actions=output:2\n"
                     "table=1,priority=7,arp,actions=output:1,output:3\npriority=5,udp,actions=drop\n")
    both(sides, 13, "add-flows", flows)
    for version, command, text in (
            (13, "mod-flows", "table=0,cookie=0x2/-1,actions=output:3"), (10, "mod-flows", "table=1,cookie=9,actions=output:2"),
            (13, "--strict mod-flows", "priority=5,udp,actions=NORMAL"), (13, "del-flows", "out_port=3"),
            (13, "--strict del-flows", "priority=5,ip"), (10, "mod-flows", "sctp,actions=output:1"), (13, "del-flows", "ip")):
        both(sides, version, command, text)
        compare(sides, 13, "dump-flows")
        compare(sides, 10, "dump-aggregate")
    flows.write_text("priority=1,actions=output:1\npriority=2,icmp,actions=output:2\n")
    both(sides, 14, "--bundle add-flows", flows)
    compare(sides, 13, "dump-flows")
    flows.write_text("priority=1,actions=output:9\npriority=3,actions=group:77\n")
    for side in sides:
        refused = side.ofctl(14, "--bundle add-flows", flows, must=False)
        check("BAD_OUT_GROUP" in refused, f"{side.name}: a bundle with a flow to no group is answered {refused}")
    compare(sides, 13, "dump-flows")
    for side in sides:
        refused = side.ofctl(13, "add-flow", "check_overlap,priority=2,ip,actions=drop", must=False)
        check("OVERLAP" in refused, f"{side.name}: an overlap is answered {refused}")
    figure("flows changed and deleted, bundles kept and given up, as with ovs-vswitchd")


def groups_and_meters(sides):
    both(sides, 15, "add-group", "group_id=2,type=select,bucket=bucket_id:1,weight:5,output:1,bucket=bucket_id:2,weight:2,output:2")
    both(sides, 15, "insert-buckets", "group_id=2,command_bucket_id=first,bucket=bucket_id:7,weight:1,output:3")
    both(sides, 15, "remove-buckets", "group_id=2,command_bucket_id=1")
    both(sides, 13, "add-group", "group_id=3,type=ff,bucket=watch_port:1,output:1,bucket=watch_port:2,output:2")
    both(sides, 13, "mod-group", "group_id=1,type=indirect,bucket=output:2")
    both(sides, 13, "add-meter", "meter=2,pktps,burst,stats,band=type=drop,rate=5,burst_size=9")
    both(sides, 13, "mod-meter", "meter=1,kbps,band=type=drop,rate=7")
    for version in (10, 13, 15):
        compare(sides, version, "dump-groups")
    for command in ("dump-meters", "dump-group-stats"):
        compare(sides, 13, command)
    both(sides, 13, "del-groups", "group_id=2")
    both(sides, 13, "del-meter", "meter=1")
    compare(sides, 15, "dump-groups")
    compare(sides, 13, "dump-meters")
    figure("groups and meters added, changed, deleted and dumped alike")


def monitor(ours):
    """A controller is told of packets and of changes."""
    ours.ofctl(13, "del-flows")
    f = ours.folder
    watch = Process(["ovs-ofctl", "monitor", f"unix:{f}/br0.mgmt", "65534", "watch:", f"--unixctl={f}/monitor.ctl"], "monitor", env=ours.env)
    watch.expect("FLOW_MONITOR reply", 30)
    ours.ofctl(10, "add-flow", "cookie=5,tcp,tp_dst=80,actions=output:2")
    watch.expect(r"event=ADDED table=0 cookie=0x5 tcp,tp_dst=80 actions=output:2", 30)
    ours.ofctl(10, "packet-out", "in_port=1,packet=ffffffffffffaabbccddee0188b5,actions=controller")
    watch.expect(r"PACKET_IN2.*total_len=14 in_port=1 \(via action\)", 30)
    ours.ofctl(10, "add-flow", "send_flow_rem,hard_timeout=1,priority=3,actions=drop")
    watch.expect(r"event=DELETED reason=hard", 30)
    watch.expect(r"FLOW_REMOVED.*priority=3 reason=hard", 30)
    watch.kill()
    figure("ovs-ofctl monitor sees packets, flows that come, and flows whose time is up")


def commands(ours):
    ours.ofctl(13, "add-flow", "priority=9,ip,nw_dst=1.2.3.4,actions=mod_dl_dst:00:00:00:00:00:07,output:2")
    said = ours.appctl("ofproto/trace", "br0", "in_port=1,ip,nw_dst=1.2.3.4")
    check("priority 9" in said and "Datapath actions:" in said, f"ofproto/trace says {said}")
    wanted = {"dpif/show": "p1 1/", "dpif-netdev/pmd-rxq-show": "port: p2", "dpif-netdev/pmd-perf-show": "Rx packets",
              "dpif-netdev/pmd-stats-clear": "", "dpif-netdev/pmd-stats-show": "packets received: ",
              "upcall/show": "flows", "list-commands": "ofproto/trace", "version": "vswitch"}
    for command, part in wanted.items():
        check(part in ours.appctl(command), f"{command} does not say {part!r}")
    check("MAC" in ours.appctl("fdb/show", "br0"), "fdb/show has no heading")
    ours.appctl("fdb/flush", "br0")
    check("not a valid command" in ours.appctl("nosuch", must=False), "a command that is none is not refused")
    check(ours.appctl("dpctl/dump-conntrack") == "", "there are connections that nobody made")
    figure("ovs-appctl is answered")


def hostile(ours):
    """Messages of any content: the switch answers the next one."""
    dice = random.Random(7)
    for _ in range(300):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(ours.folder / "br0.mgmt"))
            version = dice.choice((1, 4, 5, 6))
            message = bytes((version, 0, 0, 8, 0, 0, 0, 1))
            for _ in range(dice.randrange(12)):
                body = dice.randbytes(dice.randrange(120))
                message += bytes((version, dice.randrange(36))) + (8 + len(body)).to_bytes(2, "big") + dice.randbytes(4) + body
            try:
                s.sendall(message + dice.randbytes(dice.randrange(8)))
            except OSError:
                pass
    check("OFPT_FEATURES_REPLY" in ours.ofctl(13, "show"), "the switch does not answer any more")
    figure("300 connections full of nonsense are survived")


def os_ken():
    """Python of a virtual environment in the lab's folder, which pip fills."""
    place = LAB / "os-ken"
    if not (place / "done").exists():
        for argv in ([sys.executable, "-m", "venv", place], [place / "bin/pip", "install", "-q", "os-ken"]):
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise Unable(f"os-ken cannot be installed: {done.stdout.strip()[-300:]}")
        (place / "done").touch()
    return place / "bin/python"


@scenario(need, seconds=400)
def vswitch_controller(full):
    """A controller of os-ken, connected to and lost and connected to again, sets and sees what it should."""
    python = os_ken()
    ours = Side("ours")
    ours.bridge()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # The controller is not there yet: the switch tries again.
    ours.vsctl("set-controller", "br0", f"tcp:127.0.0.1:{port}")
    for turn in (1, 2):
        controller = Process([python, ROOT / "scripts/lab/controller.py", port], f"controller-{turn}")
        ours.ofctl(13, "del-flows")
        ours.ofctl(13, "del-groups")
        ours.ofctl(13, "del-meters")
        controller.expect(r"features 0000aa55aa550000 tables=254", 90)
        controller.expect(r"role 2 generation 7", 60)
        controller.expect(r"barrier.*ports br0 (late1 )?p1 p2 p3", 60)
        controller.expect(r"groups 9.*meters 3:100", 60)
        ours.ofctl(10, "packet-out", "in_port=2,packet=ffffffffffff02000000000288b5" + "00" * 46 + ",actions=table")
        controller.expect(r"packet port=2 from=02:00:00:00:00:02 bytes=60", 60)
        controller.expect(r"flows 0:any 1:02:00:00:00:00:02", 60)
        controller.expect(r"removed priority=1 reason=1", 60)
        ours.vsctl("add-port", "br0", f"late{turn}", "--", "set", "interface", f"late{turn}", "type=dpdkvhostuserclient",
                   f"options:vhost-server-path={ours.folder}/late{turn}.sock")
        controller.expect(rf"port late{turn} reason=0", 60)
        connected = ours.vsctl("--columns=is_connected,role", "list", "controller")
        check("true" in connected and "master" in connected, f"the database says of the controller: {connected}")
        check("controller: error" not in controller.tail(), f"the controller was refused: {controller.tail()}")
        controller.kill()
    figure("a controller sets flows, groups and meters, is master, and sees packets, ports and timeouts; twice")
