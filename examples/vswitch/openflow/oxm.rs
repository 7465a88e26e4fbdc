//! Matches on the wire: OXM of OpenFlow 1.2 and later, and Nicira's NXM that it came from (OpenFlow 1.3.5 §7.2.3).

use super::error::OfError;
use super::version::Version;
use super::wire::{Reader, Writer};
use crate::vswitch::flow::fields::{CLASS_EXPERIMENTER, CLASS_NX, CLASS_OXM, Field, Header, Need, ones};
use crate::vswitch::flow::matching::Match;

/// `OFPMT_OXM`.
const OFPMT_OXM: u16 = 1;
/// `NXM_NX_COOKIE`, which shares its number with a field of one byte.
const COOKIE: Header = Header { class: CLASS_NX, experimenter: 0, number: 30 };
/// `OXM_OF_PACKET_TYPE`: we know Ethernet only.
const PACKET_TYPE: Header = Header { class: CLASS_OXM, experimenter: 0, number: 44 };
/// Fields that OpenFlow 1.5 took in: their number there.
const SINCE_15: &[(Field, u8)] = &[(Field::TcpFlags, 42), (Field::ActsetOutput, 43)];

/// A cookie, and the bits of it that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cookie {
    /// Wanted.
    pub value: u64,
    /// Of which bits.
    pub mask: u64,
}

impl Cookie {
    /// Whether a flow's cookie is meant.
    pub fn matches(self, cookie: u64) -> bool {
        (cookie ^ self.value) & self.mask == 0
    }
}

/// What one entry says.
enum Entry {
    Field(Field),
    Cookie,
    PacketType,
}

fn by_header(header: Header, payload: usize) -> Option<Entry> {
    if header == COOKIE && payload >= 8 {
        return Some(Entry::Cookie);
    }
    if header == PACKET_TYPE {
        return Some(Entry::PacketType);
    }
    let newer =
        SINCE_15.iter().find(|(_, n)| header.class == CLASS_OXM && header.number == *n).map(|(f, _)| *f);
    newer.or_else(|| Field::of(header)).map(Entry::Field)
}

/// The numbers that precede a value: which field, whether a mask follows, how many bytes do.
struct Prefix {
    header: Header,
    masked: bool,
    payload: usize,
}

fn prefix(from: &mut Reader<'_>) -> Result<Prefix, OfError> {
    let word = from.u32()?;
    let (class, number) = ((word >> 16) as u16, (word >> 9 & 0x7f) as u8);
    let (masked, length) = (word >> 8 & 1 != 0, (word & 0xff) as usize);
    let (experimenter, payload) = if class == CLASS_EXPERIMENTER {
        (from.u32()?, length.checked_sub(4).ok_or(OfError::BMC_BAD_LEN)?)
    } else {
        (0, length)
    };
    Ok(Prefix { header: Header { class, experimenter, number }, masked, payload })
}

fn value_and_mask(
    from: &mut Reader<'_>,
    prefix: &Prefix,
    bytes: usize,
    all: u128,
) -> Result<(u128, u128), OfError> {
    if prefix.payload != bytes << u32::from(prefix.masked) {
        return Err(OfError::BMC_BAD_LEN);
    }
    let value = from.number(bytes)?;
    if !prefix.masked {
        return Ok((value, all));
    }
    let mask = from.number(bytes)?;
    if value & !mask != 0 {
        return Err(OfError::BMC_BAD_WILDCARDS);
    }
    Ok((value, mask & all))
}

/// The bits that a value of a field may have; VLAN numbers have one that says there is a tag.
pub(crate) fn valid_bits(field: Field) -> u128 {
    match field {
        Field::VlanVid => 0x1fff,
        Field::NwTos => 0xfc,
        Field::ArpOp => 0xff,
        other => other.all_ones(),
    }
}

/// One field with its value and mask, as a set-field action has it.
pub(crate) fn entry(from: &mut Reader<'_>) -> Result<(Field, u128, u128), OfError> {
    let prefix = prefix(from)?;
    match by_header(prefix.header, prefix.payload) {
        Some(Entry::Field(field)) => {
            let all = valid_bits(field);
            let (value, mask) = value_and_mask(from, &prefix, field.info().bytes, all)?;
            if value & !all != 0 { Err(OfError::BMC_BAD_VALUE) } else { Ok((field, value, mask)) }
        }
        _ => Err(OfError::BMC_BAD_FIELD),
    }
}

/// A field, and the bits of it that a group hashes: those of its value.
pub(crate) fn masked_or_whole(from: &mut Reader<'_>) -> Result<(Field, u128, u128), OfError> {
    let (field, value, mask) = entry(from)?;
    Ok((field, value, if value == 0 { mask } else { value }))
}

/// A field without value, as actions name it.
pub(crate) fn field(from: &mut Reader<'_>) -> Result<Field, OfError> {
    let prefix = prefix(from).map_err(|_| OfError::BAC_BAD_LEN)?;
    match by_header(prefix.header, prefix.payload) {
        Some(Entry::Field(field)) if !prefix.masked && prefix.payload == field.info().bytes => Ok(field),
        Some(Entry::Field(_)) => Err(OfError::BAC_BAD_SET_LEN),
        _ => Err(OfError::BAC_BAD_SET_TYPE),
    }
}

/// The entries of a match that fill `bytes`. Entries that we do not know are refused, or passed over when `loose`.
pub(crate) fn decode(bytes: &[u8], loose: bool) -> Result<(Match, Option<Cookie>), OfError> {
    let mut from = Reader::new(bytes, OfError::BMC_BAD_LEN);
    let (mut matching, mut cookie) = (Match::default(), None);
    while !from.is_empty() {
        let prefix = prefix(&mut from)?;
        match by_header(prefix.header, prefix.payload) {
            Some(Entry::Field(field)) => {
                let (value, mask) =
                    value_and_mask(&mut from, &prefix, field.info().bytes, valid_bits(field))?;
                add(&mut matching, field, value, mask)?;
            }
            Some(Entry::Cookie) if cookie.is_some() => return Err(OfError::BMC_DUP_FIELD),
            Some(Entry::Cookie) => {
                let (value, mask) = value_and_mask(&mut from, &prefix, 8, u64::MAX.into())?;
                cookie = Some(Cookie { value: value as u64, mask: mask as u64 });
            }
            Some(Entry::PacketType) => {
                let (value, _) = value_and_mask(&mut from, &prefix, 4, u32::MAX.into())?;
                if value != 0 {
                    return Err(OfError::BMC_BAD_VALUE);
                }
            }
            None if loose => from.skip(prefix.payload)?,
            None => return Err(OfError::BMC_BAD_FIELD),
        }
    }
    Ok((matching, cookie))
}

fn add(matching: &mut Match, field: Field, value: u128, mask: u128) -> Result<(), OfError> {
    let all = valid_bits(field);
    if value & !all != 0 || (field == Field::InPortOxm && (0xff00..0xffff_ff00).contains(&value)) {
        return Err(OfError::BMC_BAD_VALUE);
    }
    if mask == 0 {
        return Ok(());
    }
    if mask != all && !field.maskable() {
        return Err(OfError::BMC_BAD_MASK);
    }
    if !matching.allows(field.info().need) {
        return Err(OfError::BMC_BAD_PREREQ);
    }
    if matching.get(field).1 != 0 {
        return Err(OfError::BMC_DUP_FIELD);
    }
    if mask == all {
        matching.set(field, value)
    } else {
        matching.set_masked(field, value, mask)
    }
    Ok(())
}

/// An `ofp_match` of OpenFlow 1.2 and later, with the padding after it.
pub(crate) fn decode_ofp(from: &mut Reader<'_>) -> Result<Match, OfError> {
    let kind = from.u16()?;
    let length = usize::from(from.u16()?);
    if kind != OFPMT_OXM {
        return Err(OfError::BMC_BAD_TYPE);
    }
    let entries = length.checked_sub(4).ok_or(OfError::BMC_BAD_LEN)?;
    let (matching, cookie) = decode(from.part(entries, OfError::BMC_BAD_LEN)?.rest(), false)?;
    from.skip(length.next_multiple_of(8) - length)?;
    if cookie.is_some() { Err(OfError::BMC_BAD_FIELD) } else { Ok(matching) }
}

/// Writes an `ofp_match` of OpenFlow 1.2 and later, padded.
pub(crate) fn encode_ofp(out: &mut Writer, version: Version, matching: &Match) {
    let from = out.at();
    out.u16(OFPMT_OXM).u16(0);
    encode(out, version, matching);
    out.length(from + 2, from);
    out.pad(from);
}

/// Writes the entries of a match: NXM where `version` is 1.0, OXM otherwise.
pub(crate) fn encode(out: &mut Writer, version: Version, matching: &Match) {
    for (field, value, mask) in on_wire(version, matching) {
        put(out, version, field, value, (mask != valid_bits(field)).then_some(mask));
    }
}

/// Writes one field with its value, and a mask where not all bits count.
pub(crate) fn put(out: &mut Writer, version: Version, field: Field, value: u128, mask: Option<u128>) {
    let bytes = field.info().bytes;
    put_prefix(out, version, field, mask.is_some(), bytes << u32::from(mask.is_some()));
    out.number(value, bytes);
    if let Some(mask) = mask {
        out.number(mask, bytes);
    }
}

/// Writes a field without value.
pub(crate) fn put_field(out: &mut Writer, version: Version, field: Field) {
    put_prefix(out, version, field, false, field.info().bytes);
}

/// Writes a field without value, and whether it may have a mask.
pub(crate) fn put_header(out: &mut Writer, version: Version, field: Field, masked: bool) {
    put_prefix(out, version, field, masked, field.info().bytes << u32::from(masked));
}

fn put_prefix(out: &mut Writer, version: Version, field: Field, masked: bool, payload: usize) {
    let Some(header) = number(version, field) else {
        return;
    };
    if header.class == CLASS_EXPERIMENTER {
        out.u32(word(header, masked, payload + 4)).u32(header.experimenter);
    } else {
        out.u32(word(header, masked, payload));
    }
}

fn word(header: Header, masked: bool, length: usize) -> u32 {
    u32::from(header.class) << 16 | u32::from(header.number) << 9 | u32::from(masked) << 8 | length as u32
}

/// The number of a field in a version; nothing for what only has a name.
pub(crate) fn number(version: Version, field: Field) -> Option<Header> {
    let info = field.info();
    if version == Version::V10 {
        return info.nxm.or(info.oxm);
    }
    let newer = SINCE_15.iter().find(|(f, _)| version == Version::V15 && *f == field);
    newer.map(|(_, n)| Header { class: CLASS_OXM, experimenter: 0, number: *n }).or(info.oxm).or(info.nxm)
}

/// Whether the matches of a version say this field by itself, and not as part of another.
pub(crate) fn of_version(version: Version, field: Field) -> bool {
    let nxm = version == Version::V10;
    match field {
        Field::InPort | Field::VlanTci | Field::NwTos => nxm,
        Field::InPortOxm | Field::VlanVid | Field::VlanPcp | Field::IpDscp => !nxm,
        f if (Field::Reg0..=Field::Reg15).contains(&f) => version < Version::V15,
        f if (Field::Xreg0..=Field::Xreg7).contains(&f) => version >= Version::V15,
        f => !(Field::Xxreg0..=Field::Xxreg3).contains(&f) && number(version, f).is_some(),
    }
}

/// What a match says, in fields of the version, what others need first.
fn on_wire(version: Version, matching: &Match) -> Vec<(Field, u128, u128)> {
    let of_connection = |f: &Field| f.info().need == Need::Ct;
    let all = Field::ALL.iter().copied();
    let ordered = all.clone().filter(|f| !of_connection(f)).chain(all.filter(of_connection));
    let mut out = Vec::new();
    for field in ordered.filter(|f| of_version(version, *f)) {
        let (value, mask) = matching.get(field);
        // A tag's number is matched also where it is said that there is no tag; its priority is not.
        if mask & valid_bits(field) != 0 && matching.allows(field.info().need) {
            out.push((field, value & valid_bits(field), mask & valid_bits(field)));
        }
    }
    out
}

/// The bits of `n` that a field of an action has room for.
pub(crate) fn fits(value: u128, bits: u32) -> bool {
    value & !ones(bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    /// Match of `tcp,tp_dst=80` as ovs-ofctl 3.1 sends it with `-O OpenFlow13`.
    const TCP_80: &str = "000100158000_0a020800_80001401_06_80001c02_0050";

    #[test]
    fn a_match_of_ovs_ofctl_is_read_and_written() {
        let mut wire = bytes(&TCP_80.replace('_', ""));
        wire.resize(24, 0);
        let matching = decode_ofp(&mut Reader::new(&wire, OfError::BRC_BAD_LEN)).expect("a match");
        assert_eq!(matching.get(Field::TcpDst), (80, 0xffff));
        assert_eq!(matching.get(Field::EthType), (0x800, 0xffff));
        let mut out = Writer::default();
        encode_ofp(&mut out, Version::V13, &matching);
        assert_eq!(out.finish(), wire);
        // Of the same in NXM: NXM_OF_ETH_TYPE, NXM_OF_IP_PROTO, NXM_OF_TCP_DST.
        let mut out = Writer::default();
        encode(&mut out, Version::V10, &matching);
        assert_eq!(out.finish(), bytes("000006020800 00000c0106 000014020050".replace(' ', "").as_str()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |hex: &str| decode(&bytes(&hex.replace(' ', "")), false).expect_err(hex);
        assert_eq!(refused("80001401 06"), OfError::BMC_BAD_PREREQ);
        assert_eq!(refused("80000a02 0800 80000a02 0800"), OfError::BMC_DUP_FIELD);
        assert_eq!(refused("80000a02 08"), OfError::BMC_BAD_LEN);
        assert_eq!(refused("80000a01 08"), OfError::BMC_BAD_LEN);
        assert_eq!(refused("80000b04 0800ff00"), OfError::BMC_BAD_MASK);
        assert_eq!(refused("80000a02 0800 80001708 0a000001 ff000000"), OfError::BMC_BAD_WILDCARDS);
        assert_eq!(refused("8000fe01 00"), OfError::BMC_BAD_FIELD);
        assert_eq!(refused("80000c02 ffff"), OfError::BMC_BAD_VALUE);
        assert!(decode(&bytes("8000fe0100"), true).is_ok());
    }

    #[test]
    fn tags_mean_the_same_in_every_version() {
        for (vid, mask) in [(0, 0x1fff), (0x1000, 0x1000), (0x1005, 0x1fff)] {
            let mut matching = Match::default();
            matching.set_masked(Field::VlanVid, vid, mask);
            for version in Version::ALL {
                let mut out = Writer::default();
                encode(&mut out, *version, &matching);
                let (back, _) = decode(&out.finish(), false).expect("a match");
                assert_eq!(back, matching, "{version:?} {vid:#x}/{mask:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_entries_are_survived_and_what_is_taken_comes_back(
            words in proptest::collection::vec((0..6usize, 0..64u32, any::<bool>(), 0..40u8, any::<u64>()), 0..6),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let classes = [0u32, 1, 0x8000, 0x8001, 0xffff, 7];
            let mut wire = Vec::new();
            for (class, number, masked, length, value) in words {
                let word = classes[class] << 16 | number << 9 | u32::from(masked) << 8 | u32::from(length);
                wire.extend(word.to_be_bytes());
                wire.extend(value.to_be_bytes().iter().cycle().take(length.into()));
            }
            let _ = decode(&noise, true);
            if let Ok((matching, _)) = decode(&wire, false) {
                for version in Version::ALL {
                    let mut out = Writer::default();
                    encode(&mut out, *version, &matching);
                    let back = decode(&out.finish(), false);
                    prop_assert_eq!(back.map(|(m, _)| m), Ok(matching));
                }
            }
        }
    }
}
