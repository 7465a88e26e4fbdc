//! Flow mods of `ovs-ofctl` 3.1.0: what was typed, and what it sent.

use proptest::prelude::*;

use super::{Context, actions, instructions, put_instructions};
use crate::vswitch::openflow::flow_mod::decode;
use crate::vswitch::openflow::ofproto::FlowMod;
use crate::vswitch::openflow::oxm;
use crate::vswitch::openflow::version::{HEADER, Version};
use crate::vswitch::openflow::wire::Writer;

/// Pairs of lines: version and flow; the message in hexadecimal.
const GOLDEN: &str = include_str!("golden.txt");
const EXPERIMENTER: u8 = 4;

fn messages() -> Vec<(Version, &'static str, Vec<u8>)> {
    let lines: Vec<&str> = GOLDEN.lines().collect();
    let of = |pair: &[&'static str]| {
        let (name, text) = pair[0].split_once(' ').expect("a version and a flow");
        let digits = |i: usize| u8::from_str_radix(&pair[1][2 * i..2 * i + 2], 16).expect("hexadecimal");
        let bytes = (0..pair[1].len() / 2).map(digits).collect();
        (Version::named(name).expect("a version"), text, bytes)
    };
    lines.chunks(2).map(of).collect()
}

fn read(version: Version, text: &str, bytes: &[u8]) -> FlowMod {
    let nicira = bytes[1] == EXPERIMENTER;
    let body = if nicira { &bytes[HEADER + 8..] } else { &bytes[HEADER..] };
    decode(body, version, nicira, true).unwrap_or_else(|e| panic!("{version:?} {text}: {e}"))
}

#[test]
fn flow_mods_of_ovs_ofctl_are_read_and_written_alike() {
    let all = messages();
    assert!(all.len() > 130);
    for (version, text, bytes) in &all {
        let change = read(*version, text, bytes);
        let mut out = Writer::default();
        put_instructions(&mut out, Context::new(*version, &change.flow.matching), &change.flow.actions);
        let written = out.finish();
        let end = &bytes[bytes.len() - written.len().min(bytes.len())..];
        assert_eq!(end, written, "{version:?} {text}: {:?}", change.flow.actions);
        let mut out = Writer::default();
        oxm::encode(&mut out, *version, &change.flow.matching);
        let (back, _) = oxm::decode(&out.finish(), false).expect("a match");
        assert_eq!(back, change.flow.matching, "{version:?} {text}");
    }
}

proptest! {
    #[test]
    fn any_actions_are_survived(
        which in 0..200usize,
        damage in proptest::collection::vec((0..400usize, any::<u8>()), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let all = messages();
        let (version, _, mut bytes) = all[which % all.len()].clone();
        for (at, value) in damage {
            let at = HEADER + at % (bytes.len() - HEADER);
            bytes[at] = value;
        }
        let nicira = bytes[1] == EXPERIMENTER;
        let body = if nicira { &bytes[HEADER + 8..] } else { &bytes[HEADER..] };
        if let Ok(change) = decode(body, version, nicira, true) {
            // What is taken can be said again in every version, and is taken then.
            for version in Version::ALL {
                let mut out = Writer::default();
                put_instructions(&mut out, Context::new(*version, &change.flow.matching), &change.flow.actions);
                let written = out.finish();
                let back = if *version == Version::V10 { actions(&written, *version) } else { instructions(&written, *version) };
                prop_assert!(back.is_ok(), "{version:?}: {:?} {back:?}", change.flow.actions);
            }
        }
        for version in Version::ALL {
            let _ = actions(&noise, *version);
            let _ = instructions(&noise, *version);
        }
    }
}
