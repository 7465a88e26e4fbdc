//! What a guest has asked of its device, as bytes: for the process or the host that goes on with it.
//!
//! ```text
//! 0   magic "hotring\0"   8   version 1        10  queue pairs     12  pairs in use   14  flags
//! 16  features            24  offloads         32  address         38  zero
//! 40  control queue stood at                   44  further addresses
//! 48  [VLANs: 64 words]   packets, microseconds of each ring       further addresses, 6 bytes each
//!     [hash types, key]   [entries, queue without a hash, table of queues]
//! ```
//!
//! All numbers are little-endian. Who reads it believes nothing of it.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::commands::{Commands, MAX_COMMAND, MAX_HOLD_US};
use super::filter::Filter;
use super::hash::Hashing;
use super::orders::Moderation;
use super::steering::Indirection;
use crate::spec::net;
use crate::spec::net::hash::{MAX_KEY, MAX_TABLE as MAX_ENTRIES};

const MAGIC: [u8; 8] = *b"hotring\0";
const VERSION: u16 = 1;
/// Further addresses: as many as a command can set.
const MAX_TABLE: usize = MAX_COMMAND / 6;

/// Bits of `flags`: the modes of the filter, then these.
const MODES: u16 = 0x3f;
const VLANS: u16 = 1 << 6;
const STOPPED: u16 = 1 << 7;
const ANNOUNCE: u16 = 1 << 8;
const HASHING: u16 = 1 << 9;
const INDIRECTION: u16 = 1 << 10;
const FLAGS: u16 = MODES | VLANS | STOPPED | ANNOUNCE | HASHING | INDIRECTION;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u16,
    pairs: u16,
    active: u16,
    flags: u16,
    features: u64,
    offloads: u64,
    mac: [u8; 6],
    zero: [u8; 2],
    stopped_at: u32,
    table: u32,
}

/// Why bytes are no state of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StateError {
    #[error("{0} bytes are no state of a network device")]
    Foreign(usize),
    #[error("version {0} of the state is not known; {VERSION} is")]
    Version(u16),
    #[error("the state of a device with {theirs} queue pairs; this one has {ours}")]
    Pairs { theirs: u16, ours: u16 },
    #[error("the state has {got} bytes, {want} expected")]
    Length { got: usize, want: usize },
    #[error("the state has an impossible {0}")]
    Field(&'static str),
}

/// The bytes; `stopped_at`: where the control queue stood when it ran last.
pub(super) fn save(commands: &Commands, stopped_at: Option<u32>) -> Vec<u8> {
    let filter = &*commands.filter;
    let (modes, mac, table, vlans) = filter.parts();
    let flag = |on: bool, bit: u16| if on { bit } else { 0 };
    let flags = u16::from(modes)
        | flag(vlans.is_some(), VLANS)
        | flag(stopped_at.is_some(), STOPPED)
        | flag(commands.announce, ANNOUNCE)
        | flag(commands.hashing.is_some(), HASHING)
        | flag(commands.indirection.is_some(), INDIRECTION);
    let head = Head {
        magic: MAGIC,
        version: VERSION.to_le(),
        pairs: commands.pairs.to_le(),
        active: commands.active.to_le(),
        flags: flags.to_le(),
        features: commands.features.to_le(),
        offloads: commands.offloads.to_le(),
        mac,
        zero: [0; 2],
        stopped_at: stopped_at.unwrap_or(0).to_le(),
        table: (table.len() as u32).to_le(),
    };
    let mut bytes = head.as_bytes().to_vec();
    vlans.into_iter().flatten().for_each(|word| bytes.extend(word.to_le_bytes()));
    for Moderation { packets, usecs } in &commands.moderation {
        bytes.extend(packets.to_le_bytes());
        bytes.extend(usecs.to_le_bytes());
    }
    table.iter().for_each(|mac| bytes.extend(mac));
    if let Some(hashing) = &commands.hashing {
        let (types, key) = hashing.parts();
        bytes.extend(types.to_le_bytes());
        bytes.extend(key);
    }
    if let Some(Indirection { unclassified, table }) = commands.indirection.as_deref() {
        let entries = table.len() as u16;
        [&entries, unclassified].into_iter().chain(table).for_each(|n| bytes.extend(n.to_le_bytes()));
    }
    bytes
}

/// What the bytes say, of a device with so many queue pairs, and where its control queue stood.
pub(super) fn load(bytes: &[u8], pairs: u16) -> Result<(Commands, Option<u32>), StateError> {
    let (head, rest) = Head::read_from_prefix(bytes).map_err(|_| StateError::Foreign(bytes.len()))?;
    let [version, theirs, active, flags] =
        [head.version, head.pairs, head.active, head.flags].map(u16::from_le);
    let (features, offloads) = (u64::from_le(head.features), u64::from_le(head.offloads));
    let table = u32::from_le(head.table) as usize;
    let check = |good: bool, what| if good { Ok(()) } else { Err(StateError::Field(what)) };
    if head.magic != MAGIC {
        return Err(StateError::Foreign(bytes.len()));
    }
    if version != VERSION {
        return Err(StateError::Version(version));
    }
    if theirs != pairs {
        return Err(StateError::Pairs { theirs, ours: pairs });
    }
    check(flags & !FLAGS == 0 && head.zero == [0; 2], "flag")?;
    check((1..=pairs).contains(&active), "number of pairs in use")?;
    check(offloads & !(features & net::GUEST_OFFLOADS) == 0, "offload")?;
    check(table <= MAX_TABLE, "number of addresses")?;
    let vlans = if flags & VLANS != 0 { 64 * 8 } else { 0 };
    let rings = usize::from(pairs) * 2 * 8;
    let least = size_of::<Head>() + vlans + rings + table * 6;
    let steered = Steered::of(flags, bytes.get(least..).unwrap_or(&[]));
    let want = least + steered.len;
    if bytes.len() != want {
        return Err(StateError::Length { got: bytes.len(), want });
    }
    let (vlans, rest) = rest.split_at(vlans);
    let (rings, rest) = rest.split_at(rings);
    let (table, rest) = rest.split_at(table * 6);
    let (hashing, indirection) = steered.load(rest, pairs).map_err(StateError::Field)?;
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let vlans: Vec<u64> = vlans.as_chunks().0.iter().map(word).collect();
    let moderation = rings.as_chunks().0.iter().map(word);
    let moderation = moderation.map(|n| Moderation { packets: n as u32, usecs: (n >> 32) as u32 });
    let moderation: Vec<Moderation> = moderation.collect();
    check(moderation.iter().all(|m| m.usecs <= MAX_HOLD_US), "time to hold calls back")?;
    let filter = Filter::of_parts((flags & MODES) as u8, head.mac, table.as_chunks().0, vlans.first_chunk());
    let (filter, announce) = (Arc::new(filter), flags & ANNOUNCE != 0);
    let commands =
        Commands { features, pairs, active, filter, hashing, indirection, offloads, moderation, announce };
    Ok((commands, (flags & STOPPED != 0).then_some(u32::from_le(head.stopped_at))))
}

/// What is hashed, and how rings are chosen by that.
type Steering = (Option<Arc<Hashing>>, Option<Arc<Indirection>>);

/// The part of the state that says how packets are dealt to rings.
struct Steered {
    hashing: bool,
    /// Entries of the table.
    entries: Option<usize>,
    len: usize,
}

impl Steered {
    /// What there should be, by the bytes that are there.
    fn of(flags: u16, bytes: &[u8]) -> Steered {
        let hashing = flags & HASHING != 0;
        let hash = if hashing { 4 + MAX_KEY } else { 0 };
        let count = || bytes.get(hash..)?.first_chunk().map(|n| u16::from_le_bytes(*n).into());
        let entries = (flags & INDIRECTION != 0).then(|| count().unwrap_or(0));
        Steered { hashing, entries, len: hash + entries.map_or(0, |n| 4 + 2 * n) }
    }

    /// What they say, of a device with so many queue pairs; otherwise what is impossible. All are there.
    fn load(&self, bytes: &[u8], pairs: u16) -> Result<Steering, &'static str> {
        let number = |bytes: &[u8; 2]| u16::from_le_bytes(*bytes);
        let (mut hashing, mut rest) = (None, bytes);
        if self.hashing {
            let (types, key) = rest.split_first_chunk().expect("counted");
            let (key, after) = key.split_at(MAX_KEY);
            hashing = Some(Hashing::new(u32::from_le_bytes(*types), key).ok_or("type of hash")?);
            rest = after;
        }
        let mut indirection = None;
        if let Some(entries) = self.entries {
            let (head, table) = rest.split_at(4);
            let table: Vec<u16> = table.as_chunks().0.iter().map(number).collect();
            let unclassified = u16::from_le_bytes([head[2], head[3]]);
            let known = table.iter().chain([&unclassified]).all(|queue| *queue < pairs);
            if !known || !entries.is_power_of_two() || entries > MAX_ENTRIES || hashing.is_none() {
                return Err("table of queues");
            }
            indirection = Some(Indirection { unclassified, table });
        }
        Ok((hashing.map(Arc::new), indirection.map(Arc::new)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::net::ctrl;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const FEATURES: u64 = net::F_CTRL_VQ
        | net::F_CTRL_RX
        | net::F_CTRL_VLAN
        | net::F_CTRL_MAC_ADDR
        | net::F_MQ
        | net::F_RSS
        | net::F_HASH_REPORT
        | net::F_VQ_NOTF_COAL
        | net::F_CTRL_GUEST_OFFLOADS
        | net::F_GUEST_CSUM
        | net::F_GUEST_TSO4;

    /// Something of every kind.
    fn busy() -> Commands {
        let mut commands = Commands::new(FEATURES, 2, MAC);
        let table =
            [&2u32.to_le_bytes()[..], &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &0u32.to_le_bytes()].concat();
        let coalescing = [&[3, 0, 0, 0][..], &7u32.to_le_bytes(), &50u32.to_le_bytes()].concat();
        for (class, command, data) in [
            (ctrl::RX, ctrl::RX_PROMISC, &[0][..]),
            (ctrl::RX, ctrl::RX_ALLMULTI, &[1]),
            (ctrl::MAC, ctrl::MAC_TABLE_SET, &table),
            (ctrl::MAC, ctrl::MAC_ADDR_SET, &[2, 1, 2, 3, 4, 5]),
            (ctrl::VLAN, ctrl::VLAN_ADD, &[100, 0]),
            (ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[2, 0]),
            (ctrl::NOTF_COAL, ctrl::NOTF_COAL_VQ_SET, &coalescing),
            (ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET, &net::F_GUEST_CSUM.to_le_bytes()),
        ] {
            assert!(commands.obey(&[&[class, command], data].concat()).is_ok(), "{class} {command}");
        }
        commands
    }

    /// The same, and packets dealt to rings by their hash.
    fn dealt() -> Commands {
        let mut commands = busy();
        let rss = [&0x3fu32.to_le_bytes()[..], &[1, 0, 1, 0], &[1, 0, 0, 0], &[2, 0], &[3, 7, 8, 9]].concat();
        assert!(commands.obey(&[&[ctrl::MQ, ctrl::MQ_RSS_CONFIG], &rss[..]].concat()).is_ok());
        commands
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let mut announced = busy();
        announced.announce = true;
        assert_eq!(load(&save(&announced, None), 2), Ok((announced, None)));
        for (commands, at) in [
            (busy(), Some(17)),
            (dealt(), None),
            (Commands::new(0, 2, MAC), None),
            (Commands::new(net::F_CTRL_VQ, 2, MAC), Some(0)),
        ] {
            assert_eq!(load(&save(&commands, at), 2), Ok((commands, at)));
        }
    }

    #[test]
    fn it_is_these_bytes() {
        let bytes = save(&busy(), Some(0x1_0005));
        assert_eq!(bytes.len(), 48 + 512 + 32 + 12);
        #[rustfmt::skip]
        assert_eq!(bytes[..16], [b'h', b'o', b't', b'r', b'i', b'n', b'g', 0, 1, 0, 2, 0, 2, 0, 0xc2, 0]);
        assert_eq!(bytes[16..24], FEATURES.to_le_bytes());
        assert_eq!(bytes[24..48], [2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 0, 0, 5, 0, 1, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[48 + 12], 1 << 4, "VLAN 100");
        assert_eq!(bytes[560 + 24..], [7, 0, 0, 0, 50, 0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn how_packets_are_dealt_comes_last() {
        let bytes = save(&dealt(), None);
        let at = save(&busy(), None).len();
        assert_eq!(bytes.len(), at + 4 + 40 + 4 + 4);
        assert_eq!(bytes[at..at + 8], [0x3f, 0, 0, 0, 7, 8, 9, 0]);
        assert_eq!(bytes[at + 44..], [2, 0, 1, 0, 1, 0, 0, 0]);
        for cut in 0..bytes.len() {
            assert!(load(&bytes[..cut], 2).is_err(), "{cut} bytes");
        }
        for (byte, value, what) in
            [(at + 1, 2, "type of hash"), (at + 48, 2, "table of queues"), (at + 46, 2, "table of queues")]
        {
            let mut bytes = bytes.clone();
            bytes[byte] = value;
            assert_eq!(load(&bytes, 2).unwrap_err(), StateError::Field(what), "byte {byte}");
        }
        let mut table_alone = bytes;
        table_alone.drain(at..at + 44);
        table_alone[15] = 4;
        assert_eq!(load(&table_alone, 2).unwrap_err(), StateError::Field("table of queues"));
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let good = save(&busy(), None);
        for cut in 0..good.len() {
            assert!(load(&good[..cut], 2).is_err(), "{cut} bytes");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            load(&bytes, 2).unwrap_err()
        };
        assert_eq!(load(&good, 4), Err(StateError::Pairs { theirs: 2, ours: 4 }));
        assert_eq!(load(&[&good[..], &[0]].concat(), 2), Err(StateError::Length { got: 605, want: 604 }));
        assert_eq!(with(0, b'x'), StateError::Foreign(604));
        assert_eq!(with(8, 2), StateError::Version(2));
        for (at, byte, what) in [
            (12, 3, "number of pairs in use"),
            (12, 0, "number of pairs in use"),
            (15, 8, "flag"),
            (38, 1, "flag"),
            (24, 3, "offload"),
            (47, 0xff, "number of addresses"),
            (560 + 31, 0xff, "time to hold calls back"),
        ] {
            assert_eq!(with(at, byte), StateError::Field(what), "byte {at}");
        }
    }

    proptest! {
        /// Whatever it is: refused, or a state that is saved as it was loaded.
        #[test]
        fn any_bytes(mut bytes in Just(save(&dealt(), Some(3))), at in 0..656usize, byte: u8, cut in 0..700usize) {
            bytes[at] = byte;
            bytes.truncate(cut);
            if let Ok((commands, stopped_at)) = load(&bytes, 2) {
                let again = save(&commands, stopped_at);
                prop_assert_eq!(load(&again, 2), Ok((commands, stopped_at)));
            }
        }
    }
}
