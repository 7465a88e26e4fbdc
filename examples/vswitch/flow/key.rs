//! What is known of a packet, as plain words: compared, masked and hashed without asking what they mean.
//!
//! Words that every frame has come first, then those of IPv4, IPv6, ARP and neighbour discovery, MPLS,
//! connection tracking and tunnels. What only the pipeline knows (metadata, registers) comes last: a
//! packet starts with zeros there, and the caches do not look at it.

use std::fmt;

use super::fields::{Field, Subfield, ones};

/// Where things lie: `WORD` below, and the shift in [`Info::shift`](super::fields::Info::shift).
#[allow(missing_docs)]
pub mod word {
    /// Input port in the upper half, recirculation in the lower.
    pub const IN: usize = 0;
    /// Destination, EtherType.
    pub const ETH_DST: usize = 1;
    /// Source, outer tag.
    pub const ETH_SRC: usize = 2;
    /// IPv4 or ARP addresses.
    pub const IP4: usize = 3;
    /// Ports (or ICMP type and code), protocol (or ARP operation), TOS, TTL, fragment bits.
    pub const L4: usize = 4;
    /// TCP flags, inner tag, IPv6 label.
    pub const MISC: usize = 5;
    pub const SRC6: usize = 6;
    pub const DST6: usize = 8;
    pub const ARP_SHA: usize = 10;
    pub const ARP_THA: usize = 11;
    pub const ND: usize = 12;
    /// First and second label stack entry.
    pub const MPLS: usize = 14;
    /// State, zone.
    pub const CT: usize = 15;
    /// Mark of the connection, mark of the packet.
    pub const MARK: usize = 16;
    pub const CT_LABEL: usize = 17;
    pub const CT_IP4: usize = 19;
    pub const CT_SRC6: usize = 20;
    pub const CT_DST6: usize = 22;
    pub const CT_L4: usize = 24;
    pub const TUN_ID: usize = 25;
    pub const TUN_IP4: usize = 26;
    pub const TUN_SRC6: usize = 27;
    pub const TUN_DST6: usize = 29;
    pub const TUN: usize = 31;
    /// Hash of the datapath, priority.
    pub const HASH: usize = 32;
    pub const METADATA: usize = 33;
    pub const REGS: usize = 34;
    /// Output of the action set, conjunction.
    pub const SET: usize = 42;
}

/// Words of a key.
pub const WORDS: usize = 43;
/// Those a packet can have set before the pipeline sees it: all that the caches look at.
pub const PACKET_WORDS: usize = word::METADATA;

/// Of the VLAN tag control information: a tag is there.
pub const VLAN_PRESENT: u16 = 0x1000;
/// Of the fragment bits: is a fragment.
pub const FRAG_ANY: u8 = 1;
/// Of the fragment bits: and not the first.
pub const FRAG_LATER: u8 = 2;

/// EtherTypes that decide what the other words mean.
#[allow(missing_docs)]
pub mod ether {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const RARP: u16 = 0x8035;
    pub const VLAN: u16 = 0x8100;
    pub const QINQ: u16 = 0x88a8;
    pub const IPV6: u16 = 0x86dd;
    pub const MPLS: u16 = 0x8847;
    pub const MPLS_MULTICAST: u16 = 0x8848;
    pub const LACP: u16 = 0x8809;
    /// What stands for the type of an 802.2 frame.
    pub const LLC: u16 = 0x05ff;
}

/// IP protocols.
#[allow(missing_docs)]
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMP6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// A packet's fields, or the bits of them that count (then called a mask).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(64))]
pub struct Key {
    /// The words, see [`word`].
    pub words: [u64; WORDS],
}

/// The bits of a key that count.
pub type Mask = Key;

impl Default for Key {
    fn default() -> Key {
        Key { words: [0; WORDS] }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.words.iter().enumerate().filter(|(_, w)| **w != 0);
        f.debug_map().entries(set.map(|(i, w)| (i, format!("{w:#x}")))).finish()
    }
}

impl Key {
    /// All bits of the first `n` words.
    pub fn ones(n: usize) -> Key {
        let mut key = Key::default();
        key.words[..n].fill(u64::MAX);
        key
    }

    /// Bits `shift..shift + bits` of the word, or of this word and the next for more than 64.
    #[inline]
    fn raw(&self, word: usize, shift: u32, bits: u32) -> u128 {
        if bits > 64 {
            return u128::from(self.words[word]) << 64 | u128::from(self.words[word + 1]);
        }
        u128::from(self.words[word] >> shift) & ones(bits)
    }

    #[inline]
    fn set_raw(&mut self, word: usize, shift: u32, bits: u32, value: u128) {
        if bits > 64 {
            self.words[word] = (value >> 64) as u64;
            self.words[word + 1] = value as u64;
            return;
        }
        let mask = (ones(bits) as u64) << shift;
        self.words[word] = self.words[word] & !mask | (value as u64) << shift & mask;
    }

    /// Bits that a field takes here: more than its own for ports and tags, fewer for ARP operations.
    pub fn width(field: Field) -> u32 {
        match field {
            Field::InPort => 32,
            Field::VlanVid | Field::DlVlan => 13,
            Field::ArpOp => 8,
            other => other.info().bits,
        }
    }

    /// The value of a field as it lies here: a tag's number with the bit that says it is there, a
    /// 32-bit port.
    #[inline]
    pub fn lie(&self, field: Field) -> u128 {
        let info = field.info();
        self.raw(info.word, info.shift, Key::width(field))
    }

    /// Stores such a value.
    #[inline]
    pub fn lay(&mut self, field: Field, value: u128) {
        let info = field.info();
        self.set_raw(info.word, info.shift, Key::width(field), value);
    }

    /// The value of a field as actions see it.
    pub fn get(&self, field: Field) -> u128 {
        match field {
            Field::InPort => u128::from(super::action::port_to_16(self.lie(field) as u32)),
            Field::NwTos => self.lie(field) & 0xfc,
            Field::DlVlan => self.lie(field) & 0xfff,
            other => self.lie(other),
        }
    }

    /// Sets a field as an action does. Setting a tag's number or priority makes sure a tag is there.
    pub fn set(&mut self, field: Field, value: u128) {
        match field {
            Field::InPort => self.lay(field, super::action::port_from_16(value as u16).into()),
            Field::NwTos => {
                let ecn = self.lie(Field::NwEcn);
                self.lay(field, value & 0xfc | ecn);
            }
            Field::DlVlan | Field::VlanVid => self.lay(field, value & 0xfff | u128::from(VLAN_PRESENT)),
            Field::DlVlanPcp | Field::VlanPcp => {
                self.lay(field, value);
                self.words[word::ETH_SRC] |= u64::from(VLAN_PRESENT);
            }
            other => self.lay(other, value),
        }
    }

    /// The value of a part of a field.
    pub fn get_sub(&self, sub: Subfield) -> u128 {
        self.get(sub.field) >> sub.start & ones(sub.len)
    }

    /// Sets a part of a field as an action does.
    pub fn set_sub(&mut self, sub: Subfield, value: u128) {
        let old = self.get(sub.field);
        self.set(sub.field, old & !sub.mask() | value << sub.start & sub.mask());
    }

    /// Sets all bits of a field, of a mask: the bits an action that reads or writes it looks at.
    pub fn mark(&mut self, field: Field) {
        self.mark_bits(field, u128::MAX);
    }

    /// Sets these bits of a field, of a mask; a tag's bits come with the one that says it is there.
    pub fn mark_bits(&mut self, field: Field, bits: u128) {
        let info = field.info();
        let width = Key::width(field);
        let bits = match field {
            Field::InPort | Field::ArpOp => ones(width),
            Field::NwTos => bits & 0xfc,
            _ => bits & ones(width),
        };
        let old = self.raw(info.word, info.shift, width);
        self.set_raw(info.word, info.shift, width, old | bits);
        if matches!(field, Field::DlVlan | Field::VlanVid | Field::DlVlanPcp | Field::VlanPcp) {
            self.words[word::ETH_SRC] |= u64::from(VLAN_PRESENT);
        }
    }

    /// Sets just these bits of a field, of a mask.
    pub fn mark_raw(&mut self, field: Field, bits: u128) {
        let old = self.lie(field);
        self.lay(field, old | bits & ones(Key::width(field)));
    }

    /// The bits of it that `mask` has.
    #[inline]
    pub fn masked(&self, mask: &Mask) -> Key {
        Key { words: std::array::from_fn(|i| self.words[i] & mask.words[i]) }
    }

    /// Whether all bits that `mask` has are those of `value`, of which it has no others.
    #[inline]
    pub fn matches(&self, value: &Key, mask: &Mask) -> bool {
        (0..WORDS).all(|i| self.words[i] & mask.words[i] == value.words[i])
    }

    /// Adds the bits of another mask.
    pub fn widen(&mut self, other: &Mask) {
        for (mine, more) in self.words.iter_mut().zip(&other.words) {
            *mine |= more;
        }
    }

    /// Whether it has no bits outside `other`.
    pub fn within(&self, other: &Mask) -> bool {
        (0..WORDS).all(|i| self.words[i] & !other.words[i] == 0)
    }

    /// The input port.
    pub fn in_port(&self) -> u32 {
        (self.words[word::IN] >> 32) as u32
    }

    /// Sets the input port.
    pub fn set_in_port(&mut self, port: u32) {
        self.lay(Field::InPortOxm, port.into());
    }

    /// The EtherType.
    #[inline]
    pub fn ether_type(&self) -> u16 {
        self.words[word::ETH_DST] as u16
    }

    /// The IP protocol, or the ARP operation.
    #[inline]
    pub fn nw_proto(&self) -> u8 {
        (self.words[word::L4] >> 24) as u8
    }

    /// Control information of the outer tag; 0: there is none.
    #[inline]
    pub fn vlan_tci(&self) -> u16 {
        self.words[word::ETH_SRC] as u16
    }

    /// Whether it is IPv4 or IPv6.
    pub fn is_ip(&self) -> bool {
        matches!(self.ether_type(), ether::IPV4 | ether::IPV6)
    }

    /// Destination.
    pub fn eth_dst(&self) -> [u8; 6] {
        mac_bytes(self.lie(Field::EthDst))
    }

    /// Source.
    pub fn eth_src(&self) -> [u8; 6] {
        mac_bytes(self.lie(Field::EthSrc))
    }
}

/// A MAC address from the low 48 bits.
pub fn mac_bytes(value: u128) -> [u8; 6] {
    let b = (value as u64).to_be_bytes();
    [b[2], b[3], b[4], b[5], b[6], b[7]]
}

/// A MAC address as a number.
pub fn mac_value(mac: [u8; 6]) -> u128 {
    mac.iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_apart_or_on_top_of_each_other_as_meant() {
        for &f in Field::ALL {
            let mut key = Key::default();
            key.set(f, f.all_ones());
            let allowed = match f {
                Field::NwTos => 0xfc,
                Field::ArpOp => 0xff,
                Field::VlanVid => 0x1fff,
                _ => f.all_ones(),
            };
            assert_eq!(key.get(f), allowed, "{f:?}");
            let mut mask = Key::default();
            mask.mark(f);
            assert!(key.within(&mask), "{f:?} writes only where it marks: {key:?} {mask:?}");
        }
    }

    #[test]
    fn parts_of_fields_are_set_alone() {
        let mut key = Key::default();
        let sub = Subfield { field: Field::Xxreg1, start: 60, len: 8 };
        key.set_sub(sub, 0xab);
        assert_eq!((key.get_sub(sub), key.get(Field::Xxreg1)), (0xab, 0xab << 60));
        assert_eq!((key.get(Field::Reg5), key.get(Field::Reg6)), (0xa, 0xb000_0000));
        key.set(Field::VlanPcp, 5);
        assert_eq!(key.vlan_tci(), 0xb000);
        assert_eq!(mac_bytes(mac_value([1, 2, 3, 4, 5, 6])), [1, 2, 3, 4, 5, 6]);
    }
}
