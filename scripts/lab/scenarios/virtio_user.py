"""Our `virtio_user` port, the driver's side, against two back-ends of others: DPDK's net_vhost and Open vSwitch."""

import ovs
from peer import Peer
from place import figure, need_peers, run_dir
from scenario import scenario
from testpmd import hotring, stand_in

RING = 512


def ours(socket, queues=1, ring=RING, **features):
    """Our testpmd that returns what arrives at its virtio_user port."""
    options = {"path": socket, "queues": queues, "queue_size": ring, **features}
    if queues > 1 and stand_in():
        options["cq"] = 1  # DPDK has several queues only with a control queue
    vdev = "virtio_user0," + ",".join(f"{k}={v}" for k, v in options.items())
    pmd = hotring("driver", [vdev], ["--forward-mode=io", "--port-topology=loop", f"--rxq={queues}", f"--txq={queues}",
                                     f"--rxd={ring}", f"--txd={ring}"])
    pmd.cmd("start")
    return pmd


@scenario(need_peers, seconds=60, full_seconds=180)
def virtio_user_dpdk(full):
    """Our driver's side against DPDK's net_vhost, split and packed, one queue pair and four."""
    socket = run_dir() / "vhost.sock"
    for queues in (1, 4):
        for packed in (0, 1):
            for extra in ({}, {"mrg_rxbuf": 0}, {"in_order": 0}) if full else ({},):
                peer = Peer("net_vhost", f"net_vhost0,iface={socket},queues={queues}", queues=queues, ring=RING,
                            size=(64, 1518), count=(RING - 64) * queues)
                pmd = ours(socket, queues, packed_vq=packed, **extra)
                packets = 2_000_000 if full else 300_000
                rate = peer.circulate(packets, 64)
                # DPDK fills our ring while we stand still, and we pass all of that on at once: only what the ring to
                # send from holds may be under way.
                returned = peer.exchange_often(50 if full else 6)
                pmd.cmd("stop")
                pmd.quit()
                peer.quit()
                label = " ".join(["packed" if packed else "split", f"queues={queues}"] + [f"{k}={v}" for k, v in extra.items()])
                figure(f"{label}: {packets:,} circulated at {rate:.2f} Mpps, {returned:,} compared, none lost")


def need_ovs():
    need_peers()
    ovs.need()


@scenario(need_ovs, seconds=90)
def virtio_user_ovs(full):
    """Our driver's side on a server port of Open vSwitch, then on a client port, DPDK's on another, packets both ways."""
    switch = ovs.Switch()
    ring = 1024
    # The switch frees what it took before it is delivered, and three pollers share two cores: only as many frames as
    # one ring holds may be under way.
    rounds, each = (20 if full else 3), ring // 2 - 64
    for kind, packets in ("server", 100_000 if full else 25_000), ("client", 100_000 if full else 5_000):
        name, theirs = f"ours-{kind}", f"theirs-{kind}"
        if kind == "server":
            pmd = ours(switch.server_port(name), ring=ring)
        else:
            at = run_dir() / "client.sock"
            pmd = ours(at, ring=ring, server=1)
            switch.client_port(name, at)
        theirs_at = switch.server_port(theirs)
        switch.cross(name, theirs)
        pmd.wait_for(lambda _: "Link status: up" in pmd.cmd("show port info 0"), "a link")
        peer = Peer("virtio-user", f"net_virtio_user0,path={theirs_at},queue_size={ring}", ring=ring, size=(64, 1500),
                    count=each, memory_mib=128)
        rate = peer.circulate(packets, 64)
        figure(f"{kind} port: {packets:,} circulated through the switch at {rate:.2f} Mpps, none lost")
        figure(f"{peer.exchange_often(rounds):,} frames compared, none lost")
        peer.quit()
        pmd.cmd("stop")
        pmd.quit()
    switch.close()
