//! Which frames a guest wants: virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3.

/// Bytes of a frame that decide: addresses, EtherType, VLAN tag.
pub(super) const HEAD: usize = 16;

const BROADCAST: u64 = 0xffff_ffff_ffff;
/// The bit of a group address, in an address as a number.
const GROUP: u64 = 1 << 40;
const VLAN: [u8; 2] = [0x81, 0];

/// What is taken and what is not. After a reset everything is, until the driver asks for less: drivers that
/// know no filters never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) all_unicast: bool,
    pub(super) no_multicast: bool,
    pub(super) no_unicast: bool,
    pub(super) no_broadcast: bool,
    /// The device's address.
    mac: u64,
    /// Further addresses, in order.
    table: Vec<u64>,
    /// One bit for each VLAN that is taken; `None`: all are.
    vlans: Option<Box<[u64; 64]>>,
}

/// What a filter is made of: its modes as bits, in their order, the address, further addresses, VLANs.
pub(super) type Parts<'f> = (u8, [u8; 6], Vec<[u8; 6]>, Option<&'f [u64; 64]>);

/// An address as a number, in the order in which it is written.
fn number(mac: [u8; 6]) -> u64 {
    mac.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// The address that is this number.
fn bytes(number: u64) -> [u8; 6] {
    let [_, _, mac @ ..] = number.to_be_bytes();
    mac
}

impl Filter {
    /// After a reset of a device with this address, whose driver filters VLANs or does not.
    pub(super) fn new(mac: [u8; 6], vlans: bool) -> Filter {
        Filter {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            mac: number(mac),
            table: Vec::new(),
            vlans: vlans.then(|| Box::new([0; 64])),
        }
    }

    /// What it is made of.
    pub(super) fn parts(&self) -> Parts<'_> {
        let modes = [
            self.promiscuous,
            self.all_multicast,
            self.all_unicast,
            self.no_multicast,
            self.no_unicast,
            self.no_broadcast,
        ];
        let modes = modes.iter().rev().fold(0, |bits, on| bits << 1 | u8::from(*on));
        (modes, bytes(self.mac), self.table.iter().map(|mac| bytes(*mac)).collect(), self.vlans.as_deref())
    }

    /// One of such parts.
    pub(super) fn of_parts(modes: u8, mac: [u8; 6], table: &[[u8; 6]], vlans: Option<&[u64; 64]>) -> Filter {
        let on = |bit: u8| modes >> bit & 1 == 1;
        let mut filter = Filter {
            promiscuous: on(0),
            all_multicast: on(1),
            all_unicast: on(2),
            no_multicast: on(3),
            no_unicast: on(4),
            no_broadcast: on(5),
            mac: number(mac),
            table: Vec::new(),
            vlans: vlans.map(|vlans| Box::new(*vlans)),
        };
        filter.set_table(table.iter());
        filter
    }

    pub(super) fn set_mac(&mut self, mac: [u8; 6]) {
        self.mac = number(mac);
    }

    /// Replaces the table of further addresses.
    pub(super) fn set_table<'a>(&mut self, macs: impl Iterator<Item = &'a [u8; 6]>) {
        self.table = macs.map(|mac| number(*mac)).collect();
        self.table.sort_unstable();
        self.table.dedup();
    }

    /// Whether frames of this VLAN (below 4096) are taken.
    pub(super) fn set_vlan(&mut self, id: u16, on: bool) {
        let Some(vlans) = &mut self.vlans else { return };
        let (word, bit) = (usize::from(id / 64), 1 << (id % 64));
        vlans[word] = vlans[word] & !bit | if on { bit } else { 0 };
    }

    /// Whether it takes everything.
    pub(super) fn is_open(&self) -> bool {
        self.promiscuous
    }

    /// Whether a frame that begins like this is taken: `len` bytes of it are known.
    pub(super) fn takes(&self, head: &[u8; HEAD], len: usize) -> bool {
        if self.promiscuous {
            return true;
        }
        if len < 14 {
            return false;
        }
        if let Some(vlans) = &self.vlans
            && head[12..14] == VLAN
            && len >= HEAD
        {
            // One without an id is only a priority (IEEE 802.1Q §9.6).
            let id = u16::from_be_bytes([head[14], head[15]]) & 0xfff;
            if id != 0 && vlans[usize::from(id / 64)] >> (id % 64) & 1 == 0 {
                return false;
            }
        }
        let to = number([head[0], head[1], head[2], head[3], head[4], head[5]]);
        let known = || self.table.binary_search(&to).is_ok();
        if to == BROADCAST {
            !self.no_broadcast
        } else if to & GROUP != 0 {
            !self.no_multicast && (self.all_multicast || known())
        } else {
            !self.no_unicast && (self.all_unicast || to == self.mac || known())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP_A: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const GROUP_B: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    fn head(to: [u8; 6], vlan: Option<u16>) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..6].copy_from_slice(&to);
        head[12] = 8;
        if let Some(id) = vlan {
            head[12..14].copy_from_slice(&VLAN);
            head[14..].copy_from_slice(&(0xe000 | id).to_be_bytes());
        }
        head
    }

    /// Which of five frames are taken.
    fn taken(filter: &Filter) -> [bool; 5] {
        [MINE, OTHER, GROUP_A, GROUP_B, ALL].map(|to| filter.takes(&head(to, None), HEAD))
    }

    #[test]
    fn modes_and_addresses() {
        let open = Filter::new(MINE, false);
        assert!(open.is_open());
        assert_eq!(taken(&open), [true; 5]);
        let strict = Filter { promiscuous: false, ..open };
        assert_eq!(taken(&strict), [true, false, false, false, true]);
        assert_eq!(taken(&Filter { all_multicast: true, ..strict.clone() }), [true, false, true, true, true]);
        assert_eq!(taken(&Filter { all_unicast: true, ..strict.clone() }), [true, true, false, false, true]);
        assert_eq!(taken(&Filter { no_unicast: true, ..strict.clone() }), [false, false, false, false, true]);
        assert_eq!(
            taken(&Filter { no_broadcast: true, ..strict.clone() }),
            [true, false, false, false, false]
        );
        let mut listed = strict.clone();
        listed.set_table([GROUP_B, OTHER, OTHER].iter());
        assert_eq!(taken(&listed), [true, true, false, true, true]);
        listed.no_multicast = true;
        listed.all_multicast = true;
        assert_eq!(taken(&listed), [true, true, false, false, true]);
        listed.set_mac(OTHER);
        listed.set_table([].iter());
        assert_eq!(taken(&listed), [false, true, false, false, true]);
    }

    #[test]
    fn vlans() {
        let mut filter = Filter { promiscuous: false, ..Filter::new(MINE, true) };
        let takes = |filter: &Filter, id| filter.takes(&head(MINE, Some(id)), HEAD);
        assert!(filter.takes(&head(MINE, None), HEAD), "untagged");
        assert!(takes(&filter, 0), "a priority only");
        assert!(![1, 63, 64, 4095].into_iter().any(|id| takes(&filter, id)));
        for id in [1, 64, 4095] {
            filter.set_vlan(id, true);
        }
        assert_eq!([1, 63, 64, 4095].map(|id| takes(&filter, id)), [true, false, true, true]);
        filter.set_vlan(64, false);
        assert!(!takes(&filter, 64) && takes(&filter, 1));
        filter.promiscuous = true;
        assert!(takes(&filter, 64));
        let unfiltered = Filter { promiscuous: false, ..Filter::new(MINE, false) };
        assert!(takes(&unfiltered, 7));
    }

    #[test]
    fn a_runt_is_taken_only_by_who_takes_everything() {
        let open = Filter::new(MINE, true);
        assert!(open.takes(&head(MINE, None), 5));
        let strict = Filter { promiscuous: false, ..open };
        assert!(!strict.takes(&head(MINE, None), 13) && strict.takes(&head(MINE, None), 14));
    }
}
