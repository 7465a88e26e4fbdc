"""An OpenFlow 1.3 controller on os-ken: learns what a switch is, sets flows, groups and meters, and answers packets.

`controller.py PORT` listens there on the loopback, and prints a line for each thing that it saw, which the scenario
waits for.
"""

import sys

from os_ken import cfg
from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import CONFIG_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.lib.packet import ethernet, packet
from os_ken.ofproto import ofproto_v1_3


def say(*words):
    print("controller:", *words, flush=True)


class Controller(app_manager.OSKenApp):
    OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)
    def features(self, event):
        path = event.msg.datapath
        of, make = path.ofproto, path.ofproto_parser
        say(f"features {path.id:016x} tables={event.msg.n_tables}")
        path.send_msg(make.OFPRoleRequest(path, of.OFPCR_ROLE_MASTER, 7))
        to_us = [make.OFPActionOutput(of.OFPP_CONTROLLER, of.OFPCML_NO_BUFFER)]
        apply = [make.OFPInstructionActions(of.OFPIT_APPLY_ACTIONS, to_us)]
        path.send_msg(make.OFPFlowMod(datapath=path, priority=0, match=make.OFPMatch(), instructions=apply))
        bucket = make.OFPBucket(actions=[make.OFPActionOutput(1)])
        path.send_msg(make.OFPGroupMod(path, of.OFPGC_ADD, of.OFPGT_ALL, 9, [bucket]))
        path.send_msg(make.OFPMeterMod(path, of.OFPMC_ADD, of.OFPMF_KBPS, 3, [make.OFPMeterBandDrop(rate=100)]))
        path.send_msg(make.OFPBarrierRequest(path))
        path.send_msg(make.OFPPortDescStatsRequest(path, 0))

    @set_ev_cls(ofp_event.EventOFPRoleReply, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def role(self, event):
        say(f"role {event.msg.role} generation {event.msg.generation_id}")

    @set_ev_cls(ofp_event.EventOFPBarrierReply, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def barrier(self, event):
        path = event.msg.datapath
        say("barrier")
        path.send_msg(path.ofproto_parser.OFPGroupDescStatsRequest(path, 0))
        path.send_msg(path.ofproto_parser.OFPMeterConfigStatsRequest(path, 0))

    @set_ev_cls(ofp_event.EventOFPPortDescStatsReply, MAIN_DISPATCHER)
    def ports(self, event):
        say("ports", *sorted(p.name.decode() for p in event.msg.body))

    @set_ev_cls(ofp_event.EventOFPGroupDescStatsReply, MAIN_DISPATCHER)
    def groups(self, event):
        say("groups", *(g.group_id for g in event.msg.body))

    @set_ev_cls(ofp_event.EventOFPMeterConfigStatsReply, MAIN_DISPATCHER)
    def meters(self, event):
        say("meters", *(f"{m.meter_id}:{m.bands[0].rate}" for m in event.msg.body))

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def packet_in(self, event):
        message = event.msg
        path = message.datapath
        of, make = path.ofproto, path.ofproto_parser
        frame = packet.Packet(message.data).get_protocol(ethernet.ethernet)
        say(f"packet port={message.match['in_port']} from={frame.src} bytes={message.total_len}")
        apply = [make.OFPInstructionActions(of.OFPIT_APPLY_ACTIONS, [make.OFPActionOutput(message.match["in_port"])])]
        match = make.OFPMatch(eth_dst=frame.src)
        path.send_msg(make.OFPFlowMod(datapath=path, priority=1, match=match, instructions=apply, hard_timeout=1,
                                      flags=of.OFPFF_SEND_FLOW_REM))
        path.send_msg(make.OFPFlowStatsRequest(path))

    @set_ev_cls(ofp_event.EventOFPFlowStatsReply, MAIN_DISPATCHER)
    def flows(self, event):
        say("flows", *sorted(f"{f.priority}:{f.match.get('eth_dst', 'any')}" for f in event.msg.body))

    @set_ev_cls(ofp_event.EventOFPFlowRemoved, MAIN_DISPATCHER)
    def removed(self, event):
        say(f"removed priority={event.msg.priority} reason={event.msg.reason}")

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)
    def port(self, event):
        say(f"port {event.msg.desc.name.decode()} reason={event.msg.reason}")

    @set_ev_cls(ofp_event.EventOFPErrorMsg, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def error(self, event):
        say(f"error {event.msg.type} {event.msg.code}")


if __name__ == "__main__":
    # The options are those of this module.
    import os_ken.controller.controller  # noqa: F401
    cfg.CONF(["--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", sys.argv[1]], project="controller")
    app_manager.AppManager.run_apps(["os_ken.controller.ofp_handler", "controller"])
