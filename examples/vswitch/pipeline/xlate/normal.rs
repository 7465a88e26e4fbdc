//! NORMAL: a learning switch with VLANs.

use super::{Effect, Walk};
use crate::vswitch::flow::Field;
use crate::vswitch::flow::key::{VLAN_PRESENT, ether};
use crate::vswitch::pipeline::{Port, Vlan};

impl Walk<'_> {
    pub(super) fn normal(&mut self) {
        for field in [Field::EthSrc, Field::EthDst, Field::VlanTci] {
            self.out.mask.mark(field);
        }
        let from = self.flow.in_port();
        let bridge = self.bridge();
        let Some(port) = bridge.ports.get(&from) else {
            self.say(|| ">> no input port: dropped".into());
            return;
        };
        let tci = self.flow.vlan_tci();
        let Some(vlan) = incoming(&port.vlan, tci) else {
            self.say(|| format!(">> dropping VLAN {} packet received on port {}", tci & 0xfff, port.name));
            return;
        };
        if port.mirror_output {
            self.say(|| {
                format!(
                    ">> dropping packet received on port {}, which is reserved exclusively for mirroring",
                    port.name
                )
            });
            return;
        }
        let dst = self.flow.eth_dst();
        // Bridges keep these to themselves (802.1D table 7-10).
        if dst[..5] == [1, 0x80, 0xc2, 0, 0] && dst[5] & 0xf0 == 0 {
            self.say(|| ">> dropping packet to a reserved address".into());
            return;
        }
        let src = self.flow.eth_src();
        if src[0] & 1 == 0 {
            self.out.effects.push(Effect::Address(self.bridge, vlan, src, from));
        }
        let known = match dst {
            // The source is learned before the destination is looked for.
            _ if dst == src => Some(from),
            _ if dst[0] & 1 == 1 => None,
            _ => bridge.fdb.lock().expect("no holder panics").lookup(vlan, dst),
        };
        match known {
            Some(to) if to == from => self.say(|| ">> forwarding to the port it came from: dropped".into()),
            Some(to) if bridge.ports.contains_key(&to) => {
                self.say(|| "-> forwarding to learned port".into());
                self.outgoing(&bridge.ports[&to], vlan);
            }
            _ => {
                let why = if dst[0] & 1 == 1 { "multicast" } else { "no learned MAC for destination" };
                self.say(|| format!("-> {why}, flooding"));
                for port in bridge.ports.values() {
                    let wants = port.number != from && !port.no_flood && !port.mirror_output;
                    if wants && port.vlan.carries(vlan) {
                        self.outgoing(port, vlan);
                    }
                }
            }
        }
    }

    /// Out of a port, with the tag that it wants.
    fn outgoing(&mut self, port: &Port, vlan: u16) {
        if !port.vlan.carries(vlan) {
            return;
        }
        let tagged = match &port.vlan {
            Vlan::Access(_) => false,
            Vlan::NativeUntagged(tag, _) => *tag != vlan,
            Vlan::Trunk(_) | Vlan::NativeTagged(..) => vlan != 0,
        };
        let (flow, base) = (self.flow, self.base);
        let ops = std::mem::take(&mut self.out.ops);
        let has = self.flow.vlan_tci() & VLAN_PRESENT != 0;
        match (tagged, has) {
            (false, true) => self.pop_vlan(),
            (true, false) => self.push_vlan(ether::VLAN, VLAN_PRESENT | vlan),
            _ => {}
        }
        self.output(port.number);
        let inner = std::mem::replace(&mut self.out.ops, ops);
        (self.flow, self.base) = (flow, base);
        self.nest(inner);
    }
}

/// The VLAN of a frame that comes in with this tag; `None`: it may not.
fn incoming(mode: &Vlan, tci: u16) -> Option<u16> {
    let vid = tci & 0xfff;
    let tagged = tci & VLAN_PRESENT != 0 && vid != 0;
    let vlan = match mode {
        Vlan::Access(tag) => return (!tagged).then_some(*tag),
        Vlan::NativeUntagged(tag, _) | Vlan::NativeTagged(tag, _) if !tagged => *tag,
        _ if tagged => vid,
        _ => 0,
    };
    mode.carries(vlan).then_some(vlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_take_the_frames_of_their_vlans() {
        let tag = |vid: u16| vid | VLAN_PRESENT;
        for (mode, tci, vlan) in [
            (Vlan::Access(5), 0, Some(5)),
            (Vlan::Access(5), tag(5), None),
            (Vlan::Access(5), tag(0), Some(5)),
            (Vlan::Trunk(vec![]), 0, Some(0)),
            (Vlan::Trunk(vec![]), tag(7), Some(7)),
            (Vlan::Trunk(vec![7]), tag(8), None),
            (Vlan::Trunk(vec![7]), 0, None),
            (Vlan::NativeUntagged(3, vec![7]), 0, Some(3)),
            (Vlan::NativeTagged(3, vec![7]), tag(3), Some(3)),
        ] {
            assert_eq!(incoming(&mode, tci), vlan, "{mode:?} {tci:#x}");
        }
    }
}
