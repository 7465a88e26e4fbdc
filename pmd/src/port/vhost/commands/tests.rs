use proptest::prelude::*;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ALL: u64 = net::F_CTRL_VQ
    | net::F_CTRL_RX
    | net::F_CTRL_RX_EXTRA
    | net::F_CTRL_VLAN
    | net::F_CTRL_MAC_ADDR
    | net::F_CTRL_GUEST_OFFLOADS
    | net::F_GUEST_ANNOUNCE
    | net::F_MQ
    | net::F_RSS
    | net::F_HASH_REPORT
    | net::F_NOTF_COAL
    | net::F_VQ_NOTF_COAL
    | net::F_GUEST_CSUM
    | net::F_GUEST_TSO4;
const PAIRS: u16 = 4;

fn fresh() -> Commands {
    Commands::new(ALL, PAIRS, MAC)
}

fn command(class: u8, command: u8, data: &[u8]) -> Vec<u8> {
    [&[class, command], data].concat()
}

fn mac_table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut data = (unicast.len() as u32).to_le_bytes().to_vec();
    data.extend(unicast.as_flattened());
    data.extend((multicast.len() as u32).to_le_bytes());
    data.extend(multicast.as_flattened());
    data
}

fn rss(types: u16, table: &[u16], unclassified: u16, pairs: u16) -> Vec<u8> {
    let numbers = [&[types, 0, table.len() as u16 - 1, unclassified][..], table, &[pairs]].concat();
    let numbers = numbers.iter().flat_map(|n| n.to_le_bytes());
    numbers.chain([3, 1, 2, 3]).collect()
}

fn coalesce(packets: u32, usecs: u32) -> Vec<u8> {
    [packets.to_le_bytes(), usecs.to_le_bytes()].concat()
}

/// Every command there is, well-formed, with the feature that it needs.
fn all() -> Vec<(u64, Vec<u8>)> {
    let mut all = vec![
        (net::F_CTRL_RX, command(ctrl::RX, ctrl::RX_PROMISC, &[0])),
        (net::F_CTRL_RX, command(ctrl::RX, ctrl::RX_ALLMULTI, &[1])),
        (net::F_CTRL_MAC_ADDR, command(ctrl::MAC, ctrl::MAC_ADDR_SET, &[2, 1, 1, 1, 1, 1])),
        (net::F_CTRL_RX, command(ctrl::MAC, ctrl::MAC_TABLE_SET, &mac_table(&[[2; 6]], &[[1; 6], [3; 6]]))),
        (net::F_CTRL_VLAN, command(ctrl::VLAN, ctrl::VLAN_ADD, &[0xff, 0x0f])),
        (net::F_CTRL_VLAN, command(ctrl::VLAN, ctrl::VLAN_DEL, &[1, 0])),
        (net::F_GUEST_ANNOUNCE, command(ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, &[])),
        (net::F_MQ, command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[4, 0])),
        (net::F_RSS, command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0], 2, 4))),
        (
            net::F_HASH_REPORT,
            command(ctrl::MQ, ctrl::MQ_HASH_CONFIG, &[1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 1, 7]),
        ),
        (
            net::F_CTRL_GUEST_OFFLOADS,
            command(ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET, &net::F_GUEST_CSUM.to_le_bytes()),
        ),
        (net::F_NOTF_COAL, command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_TX_SET, &coalesce(8, 100))),
        (net::F_NOTF_COAL, command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_RX_SET, &coalesce(8, 1_000_000))),
        (
            net::F_VQ_NOTF_COAL,
            command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_SET, &[&[7, 0, 0, 0], &*coalesce(1, 2)].concat()),
        ),
        (net::F_VQ_NOTF_COAL, command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_GET, &[0, 0, 0, 0])),
    ];
    for mode in [ctrl::RX_ALLUNI, ctrl::RX_NOMULTI, ctrl::RX_NOUNI, ctrl::RX_NOBCAST] {
        all.push((net::F_CTRL_RX_EXTRA, command(ctrl::RX, mode, &[1])));
    }
    all
}

#[test]
fn every_command_needs_its_feature_and_just_its_bytes() {
    for (feature, good) in all() {
        assert!(fresh().obey(&good).is_ok(), "{good:?}");
        let mut without = Commands::new(ALL & !feature, PAIRS, MAC);
        let before = without.clone();
        assert_eq!((without.obey(&good), &without), (Answer::ERR, &before), "{good:?} without its feature");
        let mut commands = fresh();
        for len in 0..good.len() {
            assert_eq!(commands.obey(&good[..len]), Answer::ERR, "{good:?} cut to {len}");
        }
        assert_eq!(commands.obey(&[&*good, &[0]].concat()), Answer::ERR, "{good:?} and a byte");
        assert!(commands == fresh(), "{good:?}: what is refused changes nothing");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let coalesce_vq = |ring: u8| [&[ring, 0, 0, 0], &*coalesce(1, 2)].concat();
    let csum_off = (net::F_GUEST_CSUM | net::F_GUEST_UFO).to_le_bytes();
    let mut huge = mac_table(&[], &[]);
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    for bad in [
        command(ctrl::RX, ctrl::RX_PROMISC, &[2]),
        command(ctrl::RX, 6, &[1]),
        command(ctrl::MAC, 2, &[0; 6]),
        command(ctrl::MAC, ctrl::MAC_TABLE_SET, &huge),
        command(ctrl::VLAN, ctrl::VLAN_ADD, &[0, 0x10]),
        command(ctrl::VLAN, 2, &[0, 0]),
        command(ctrl::ANNOUNCE, 1, &[]),
        command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[0, 0]),
        command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[5, 0]),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(0x200, &[3, 0], 2, 4)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[4, 0], 2, 4)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0], 4, 4)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0, 1], 2, 4)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[0; 256], 2, 4)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0], 2, 5)),
        command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0], 2, 0)),
        command(ctrl::MQ, ctrl::MQ_HASH_CONFIG, &[0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        command(ctrl::MQ, 3, &[1, 0]),
        command(ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET, &csum_off),
        command(ctrl::GUEST_OFFLOADS, 1, &[0; 8]),
        command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_RX_SET, &coalesce(1, 1_000_001)),
        command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_SET, &coalesce_vq(8)),
        command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_GET, &[8, 0, 0, 0]),
        command(ctrl::NOTF_COAL, 4, &coalesce(1, 2)),
        command(7, 0, &[]),
        command(0xff, 0xff, &[1]),
        vec![],
    ] {
        let mut commands = fresh();
        assert_eq!(commands.obey(&bad), Answer::ERR, "{bad:?}");
        assert!(commands == fresh(), "{bad:?}");
    }
}

fn delivers(commands: &Commands) -> Vec<&'static str> {
    let name = |ring| match commands.orders(ring).delivery {
        Delivery::All => "all",
        Delivery::Some(_) => "some",
    };
    (0..2 * PAIRS).map(name).collect()
}

#[test]
fn queue_pairs_in_use() {
    let mut commands = fresh();
    // What comes to the others goes to the first.
    assert_eq!(delivers(&commands), ["all", "all", "some", "all", "some", "all", "some", "all"]);
    assert!(commands.steers());
    assert!(commands.obey(&command(ctrl::MQ, 0, &[3, 0])).is_ok());
    assert_eq!(delivers(&commands), ["all", "all", "all", "all", "all", "all", "some", "all"]);
    assert!(commands.obey(&command(ctrl::RX, ctrl::RX_PROMISC, &[0])).is_ok());
    assert_eq!(delivers(&commands), ["some", "all", "some", "all", "some", "all", "some", "all"]);
    assert!(commands.obey(&command(ctrl::RX, ctrl::RX_PROMISC, &[1])).is_ok());
    assert!(commands.obey(&command(ctrl::MQ, 0, &[4, 0])).is_ok() && !commands.steers());
    assert_eq!(delivers(&commands), ["all"; 8]);
    assert!(commands.obey(&command(ctrl::MQ, ctrl::MQ_RSS_CONFIG, &rss(1, &[3, 0], 2, 4))).is_ok());
    assert_eq!(delivers(&commands), ["some", "all", "some", "all", "some", "all", "some", "all"]);
    assert!(commands.steers());
    // A front-end that keeps the control queue to itself enables rings instead.
    let all = Commands::new(ALL & !net::F_CTRL_VQ, PAIRS, MAC);
    assert_eq!(delivers(&all), ["all"; 8]);
}

#[test]
fn offloads_go_off_and_on_again() {
    let mut commands = fresh();
    let set = |commands: &mut Commands, offloads: u64| {
        assert!(commands.obey(&command(ctrl::GUEST_OFFLOADS, 0, &offloads.to_le_bytes())).is_ok());
        commands.orders(0).features
    };
    assert_eq!(commands.orders(0).features, ALL);
    assert_eq!(set(&mut commands, net::F_GUEST_CSUM), ALL & !net::F_GUEST_TSO4);
    // Segmentation needs checksums, whatever is asked.
    assert_eq!(set(&mut commands, net::F_GUEST_TSO4), ALL & !net::F_GUEST_TSO4 & !net::F_GUEST_CSUM);
    assert_eq!(set(&mut commands, net::F_GUEST_TSO4 | net::F_GUEST_CSUM), ALL);
}

#[test]
fn moderation_of_all_and_of_one() {
    let mut commands = fresh();
    let of = |commands: &Commands, ring| {
        let Moderation { packets, usecs } = commands.orders(ring).moderation;
        (packets, usecs)
    };
    assert!(commands.obey(&command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_RX_SET, &coalesce(8, 50))).is_ok());
    assert!(commands.obey(&command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_TX_SET, &coalesce(9, 60))).is_ok());
    let one = [&[2, 0, 0, 0], &*coalesce(1, 2)].concat();
    assert!(commands.obey(&command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_SET, &one)).is_ok());
    assert_eq!(
        [0, 1, 2, 3, 6, 7].map(|ring| of(&commands, ring)),
        [(8, 50), (9, 60), (1, 2), (9, 60), (8, 50), (9, 60)]
    );
    let got = commands.obey(&command(ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_GET, &[7, 0, 0, 0]));
    assert_eq!(got.bytes(), [0, 9, 0, 0, 0, 60, 0, 0, 0]);
}

#[test]
fn the_largest_table_is_taken() {
    let macs: Vec<[u8; 6]> = (0..(MAX_COMMAND as u32 - 10) / 6)
        .map(|i| [2, 0, 0, (i >> 16) as u8, (i >> 8) as u8, i as u8])
        .collect();
    let whole = command(ctrl::MAC, ctrl::MAC_TABLE_SET, &mac_table(&macs, &[]));
    assert!(whole.len() <= MAX_COMMAND && whole.len() > MAX_COMMAND - 6);
    let mut commands = fresh();
    assert!(commands.obey(&whole).is_ok() && commands.obey(&command(ctrl::RX, 0, &[0])).is_ok());
    let mut head = [0; 16];
    for mac in [macs[0], macs[macs.len() - 1]] {
        head[..6].copy_from_slice(&mac);
        assert!(commands.filter.takes(&head, 16));
    }
    head[..6].copy_from_slice(&[2, 0, 1, 0, 0, 0]);
    assert!(!commands.filter.takes(&head, 16));
}

proptest! {
    /// Any bytes, and good commands with some bytes changed: nothing panics, what is refused changes nothing, and
    /// what comes of it is always something that rings can obey.
    #[test]
    fn any_bytes(
        features in any::<u64>(),
        commands in prop::collection::vec((0..19usize, prop::collection::vec((0..24usize, any::<u8>()), 0..3),
            prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 1..20),
    ) {
        let mut state = Commands::new(features | net::F_CTRL_VQ, PAIRS, MAC);
        for (which, changes, random, good) in commands {
            let bytes = if good {
                let mut bytes = all()[which].1.clone();
                for (at, byte) in changes {
                    if let Some(b) = bytes.get_mut(at) {
                        *b = byte;
                    }
                }
                bytes
            } else {
                random
            };
            let before = state.clone();
            let answer = state.obey(&bytes);
            prop_assert!(answer.is_ok() || state == before);
            prop_assert!((1..=PAIRS).contains(&state.active));
            for ring in 0..2 * PAIRS {
                let orders = state.orders(ring);
                prop_assert_eq!(orders.features & !features & !net::F_CTRL_VQ, 0);
                prop_assert!(orders.moderation.usecs <= MAX_HOLD_US);
            }
        }
    }
}
