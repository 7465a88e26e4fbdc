//! The megaflow oracle: what the caches say of a packet is what the tables would.

use proptest::prelude::*;

use super::*;
use crate::vswitch::bridge::{Command, FlowMod, PortConfig, Switch, Upcall};
use crate::vswitch::flow::values::Numbers;
use crate::vswitch::flow::{Field, Flow};
use crate::vswitch::packet::Layers;
use crate::vswitch::pipeline::xlate;

const ACTIONS: &[&str] = &[
    "output:1",
    "output:2,output:3",
    "drop",
    "NORMAL",
    "mod_nw_dst:10.9.9.9,output:2",
    "push_vlan:0x8100,set_field:4099->vlan_vid,output:3",
    "pop_vlan,output:1",
    "mod_nw_ecn:1,output:2",
    "mod_nw_tos:64,output:3",
    "mod_vlan_vid:7,FLOOD",
    "resubmit(,1)",
    "load:5->NXM_NX_REG0[],resubmit(,1),output:1",
    "move:NXM_OF_IP_SRC[]->NXM_NX_REG1[],goto_table:2",
    "goto_table:1",
    "dec_ttl,resubmit(,2)",
    "push:NXM_OF_ETH_SRC[],pop:NXM_OF_ETH_DST[],IN_PORT",
    "push_mpls:0x8847,output:2",
    "set_field:80->tcp_dst,resubmit(,2),output:3",
    "clone(mod_dl_src:00:00:00:00:00:09,output:1),output:2",
    "write_actions(output:2),goto_table:2",
    "bundle(symmetric_l4,0,hrw,ofport,members:1,2,3)",
    "group:1",
];

fn any_flow() -> impl Strategy<Value = String> {
    let part = |values: &'static [&'static str]| prop::option::weighted(0.3, prop::sample::select(values));
    let parts = (
        part(&["in_port=1", "in_port=2"]),
        part(&["dl_vlan=3", "vlan_tci=0", "dl_vlan_pcp=2", "vlan_tci=0x1000/0x1000"]),
        part(&["dl_dst=00:00:00:00:00:01", "dl_src=00:00:00:00:00:02/00:00:00:00:00:03"]),
        part(&["nw_src=10.0.0.0/8", "nw_src=10.1.0.0/16", "nw_src=0.0.0.1/0.0.0.1"]),
        part(&["nw_dst=10.0.0.0/9", "nw_dst=10.9.9.9", "nw_dst=10.1.2.0/24"]),
        part(&["tp_dst=80", "tp_dst=0x50/0xfff0"]),
        part(&["reg0=5", "reg1=0x0a000000/0xff000000"]),
    );
    let action = prop::sample::select(ACTIONS);
    (0u8..3, 0u16..50, parts, action).prop_map(|(table, priority, (a, b, c, d, e, f, g), action)| {
        let parts: Vec<&str> = [a, b, c, d, e, f, g].into_iter().flatten().collect();
        format!("table={table},priority={priority},tcp,{},actions={action}", parts.join(","))
    })
}

fn any_packet() -> impl Strategy<Value = Key> {
    let ip =
        prop::sample::select(&[0x0a01_0203u128, 0x0a01_0204, 0x0a00_0001, 0x0b00_0000, 0x0a80_0101, 1][..]);
    let tci = prop::sample::select(&[0u128, 0, 0x1003, 0x5003, 0x1007][..]);
    let mac = 0u128..4;
    (1u32..4, mac.clone(), mac, tci, ip.clone(), ip, 78u128..82, 0u128..3).prop_map(
        |(port, src, dst, tci, from, to, tp, ttl)| {
            let mut key = Key::default();
            key.set_in_port(port);
            let fields = [
                (Field::EthType, 0x800),
                (Field::NwProto, 6),
                (Field::EthSrc, src),
                (Field::EthDst, dst),
                (Field::VlanTci, tci),
                (Field::NwSrc, from),
                (Field::NwDst, to),
                (Field::TcpDst, tp),
                (Field::NwTtl, ttl),
                (Field::NwTos, ttl << 5 | src & 3),
            ];
            fields.iter().for_each(|(f, v)| key.lay(*f, *v));
            key
        },
    )
}

fn switch(flows: &[String]) -> Switch {
    let switch = Switch::default();
    switch.add_bridge("br0", 1);
    for name in ["a", "b", "c"] {
        switch.add_port("br0", PortConfig::new(name)).unwrap();
    }
    use crate::vswitch::flow::action::{Action, Bucket, Group, GroupKind};
    let bucket = |port| Bucket {
        weight: 1,
        actions: vec![Action::SetEthSrc([port as u8; 6]), Action::Output { port, max_len: 0 }],
        ..Bucket::default()
    };
    let group = Group {
        id: 1,
        kind: GroupKind::Select,
        buckets: vec![bucket(1), bucket(2)],
        method: String::new(),
        param: 0,
        fields: Vec::new(),
    };
    switch.group_mod("br0", crate::vswitch::bridge::GroupCommand::Add, group).unwrap();
    for text in flows {
        let flow = Flow::parse(text, &Numbers).unwrap();
        // A jump back is refused; the rest of the table stands.
        let _ = switch.flow_mod("br0", &FlowMod::new(Command::Add, flow));
    }
    switch
}

/// The outcome of the tables, now.
fn truth(switch: &Switch, key: &Key) -> Vec<crate::vswitch::pipeline::op::Op> {
    xlate::translate(&switch.read(), key, false).ops
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_the_tables_say(
        flows in prop::collection::vec(any_flow(), 0..40),
        packets in prop::collection::vec(any_packet(), 1..60),
        late in any_flow(),
    ) {
        let switch = switch(&flows);
        let shared = Arc::default();
        switch.cores.lock().unwrap().push(Arc::clone(&shared));
        let mut cache = Cache::new(shared);
        for _ in 0..3 {
            for packet in &packets {
                let place = match cache.lookup(packet) {
                    Some(place) => place,
                    None => {
                        let flow = switch.upcall(&Upcall { key: packet, layers: Layers::default() });
                        cache.sweep();
                        let place = cache.insert(flow).unwrap();
                        // What was learned on the way may have changed what all get, this one too.
                        switch.revalidate();
                        place
                    }
                };
                if !cache.get(place).dead.load(Ordering::Relaxed) {
                    prop_assert_eq!(&cache.get(place).ops, &truth(&switch, packet), "{:?}", packet);
                }
            }
            switch.revalidate();
            cache.sweep();
        }
        // A flow that comes later is seen by what was kept before.
        let flow = Flow::parse(&late, &Numbers).unwrap();
        let _ = switch.flow_mod("br0", &FlowMod::new(Command::Add, flow));
        switch.revalidate();
        cache.sweep();
        for packet in &packets {
            if let Some(place) = cache.lookup(packet) {
                prop_assert_eq!(&cache.get(place).ops, &truth(&switch, packet));
            }
        }
    }
}

#[test]
fn packets_are_found_in_the_nearest_cache() {
    let switch = switch(&["ip,actions=output:2".into()]);
    let shared = Arc::default();
    let mut cache = Cache::new(shared);
    let mut key = Key::default();
    key.set_in_port(1);
    key.lay(Field::EthType, 0x800);
    assert_eq!(cache.lookup(&key), None);
    cache.insert(switch.upcall(&Upcall { key: &key, layers: Layers::default() })).unwrap();
    assert!(cache.lookup(&key).is_some() && cache.lookup(&key).is_some());
    key.lay(Field::NwSrc, 5);
    assert!(cache.lookup(&key).is_some());
    assert_eq!(cache.hits, Hits { exact: 1, signature: 0, megaflow: 2, lookups: 2, miss: 1 });
    assert_eq!((cache.len(), cache.masks()), (1, 1));
}

#[test]
fn among_many_masks_the_signature_of_a_packet_comes_first() {
    let switch = switch(&[
        "priority=9,dl_type=0x9001,actions=output:1".into(),
        "priority=8,dl_src=00:00:00:00:00:01,actions=output:2".into(),
        "priority=7,dl_dst=00:00:00:00:00:01,actions=output:3".into(),
        "priority=6,vlan_tci=0x1003,actions=output:2".into(),
    ]);
    let mut cache = Cache::new(Arc::default());
    let keys = [(0x9001, 0, 0, 0), (0x9002, 1, 0, 0), (0x9002, 2, 1, 0), (0x9002, 2, 2, 0x1003)].map(
        |(kind, src, dst, tci)| {
            let mut key = Key::default();
            key.set_in_port(1);
            let fields =
                [(Field::EthType, kind), (Field::EthSrc, src), (Field::EthDst, dst), (Field::VlanTci, tci)];
            fields.iter().for_each(|(f, v)| key.lay(*f, *v));
            key
        },
    );
    for key in &keys {
        assert_eq!(cache.lookup(key), None);
        cache.insert(switch.upcall(&Upcall { key, layers: Layers::default() })).unwrap();
    }
    assert!(cache.masks() > FEW_MASKS, "{}", cache.masks());
    cache.hits = Hits::default();
    let places = keys.each_ref().map(|key| cache.lookup(key));
    assert_eq!((cache.hits.signature, cache.hits.megaflow), (0, 4));
    assert_eq!(keys.each_ref().map(|key| cache.lookup(key)), places);
    assert_eq!((cache.hits.signature, cache.hits.megaflow, cache.hits.miss), (4, 4, 0));
}
