//! Values of fields as text, both ways.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::action::port;
use super::fields::{Field, Form, ones};
use super::key::mac_bytes;

/// Bits of `ct_state`, by name, lowest first.
pub const CT_STATE: &[(&str, u32)] = &[
    ("new", 0x01),
    ("est", 0x02),
    ("rel", 0x04),
    ("rpl", 0x08),
    ("inv", 0x10),
    ("trk", 0x20),
    ("snat", 0x40),
    ("dnat", 0x80),
];
/// TCP flags, lowest first.
pub const TCP_FLAGS: &[(&str, u32)] = &[
    ("fin", 0x001),
    ("syn", 0x002),
    ("rst", 0x004),
    ("psh", 0x008),
    ("ack", 0x010),
    ("urg", 0x020),
    ("ece", 0x040),
    ("cwr", 0x080),
    ("ns", 0x100),
];
const TUN_FLAGS: &[(&str, u32)] = &[("oam", 1)];
/// What a match says of fragments: name, value, mask.
const FRAGS: &[(&str, u128, u128)] =
    &[("no", 0, 3), ("yes", 1, 1), ("first", 1, 3), ("later", 3, 3), ("not_later", 0, 2)];

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TextError(pub String);

/// Fails with a message.
pub(super) fn bad<T>(what: impl Into<String>) -> Result<T, TextError> {
    Err(TextError(what.into()))
}

/// How ports are called.
pub trait Names {
    /// The number of a port of this name.
    fn number(&self, name: &str) -> Option<u32>;
    /// The name of a port; `None`: its number is printed.
    fn name(&self, port: u32) -> Option<String>;
}

/// Ports by number only.
pub struct Numbers;

impl Names for Numbers {
    fn number(&self, _: &str) -> Option<u32> {
        None
    }
    fn name(&self, _: u32) -> Option<String> {
        None
    }
}

/// A port as `ovs-ofctl` prints it.
pub fn port_text(number: u32, names: &dyn Names) -> String {
    if let Some((name, _)) = port::NAMES.iter().find(|(_, n)| *n == number) {
        return (*name).to_owned();
    }
    match names.name(number) {
        // A name that could be taken for something else is quoted.
        Some(name) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) => name,
        Some(name) => format!("{name:?}"),
        None => number.to_string(),
    }
}

/// Reads a port: a number, a name that means something else, or the name of one.
pub fn parse_port(text: &str, names: &dyn Names) -> Result<u32, TextError> {
    let text = text.trim_matches('"');
    if let Some(number) = parse_u128(text) {
        let Ok(number) = u32::try_from(number) else {
            return bad(format!("{text}: port number out of range"));
        };
        return Ok(if number <= 0xffff { super::action::port_from_16(number as u16) } else { number });
    }
    let reserved = port::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, n)| *n);
    let none = text.eq_ignore_ascii_case("none").then_some(port::ANY);
    match reserved.or(none).or_else(|| names.number(text)) {
        Some(port) => Ok(port),
        None => bad(format!("{text}: unknown port")),
    }
}

/// Reads a number, decimal, hexadecimal after `0x`, or octal after `0`.
pub fn parse_u128(text: &str) -> Option<u128> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u128::from_str_radix(hex, 16).ok();
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    match text.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u128::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// As `printf("%#x")`: zero has no `0x`.
pub fn hex(value: u128) -> String {
    if value == 0 { "0".into() } else { format!("{value:#x}") }
}

/// A MAC address.
pub fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Reads a MAC address.
pub fn parse_mac(text: &str) -> Option<u128> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() != 6 {
        return None;
    }
    parts.iter().try_fold(0u128, |n, part| {
        let good = (1..=2).contains(&part.len());
        Some(n << 8 | u128::from(u8::from_str_radix(part, 16).ok().filter(|_| good)?))
    })
}

/// An address and its mask: as a prefix where it is one.
pub fn ipv4_text(value: u32, mask: u32) -> String {
    let addr = Ipv4Addr::from(value);
    match mask {
        u32::MAX => addr.to_string(),
        m if m.leading_ones() + m.trailing_zeros() == 32 => format!("{addr}/{}", m.leading_ones()),
        m => format!("{addr}/{}", Ipv4Addr::from(m)),
    }
}

/// The same for IPv6.
pub fn ipv6_text(value: u128, mask: u128) -> String {
    let addr = Ipv6Addr::from(value);
    match mask {
        u128::MAX => addr.to_string(),
        m if m.leading_ones() + m.trailing_zeros() == 128 => format!("{addr}/{}", m.leading_ones()),
        m => format!("{addr}/{}", Ipv6Addr::from(m)),
    }
}

/// Flags by name: `syn|ack`, or `+syn-ack` where only some are said.
pub fn flags_text(names: &[(&str, u32)], value: u32, mask: u32, all: u32) -> String {
    let name = |bit: u32| names.iter().find(|(_, b)| *b == bit).map_or("[Unknown]", |(n, _)| n);
    let bits = |set: u32| (0..32).map(|i| 1u32 << i).filter(move |b| set & b != 0);
    if mask & all == all {
        if value & all == 0 {
            return "0".into();
        }
        let known = names.iter().fold(0, |n, (_, b)| n | b);
        let mut parts: Vec<String> = bits(value & all & known).map(|b| name(b).to_owned()).collect();
        if value & all & !known != 0 {
            parts.push(hex((value & all & !known).into()));
        }
        return parts.join("|");
    }
    if mask == 0 {
        return "0/0".into();
    }
    bits(mask).fold(String::new(), |mut out, b| {
        let _ = write!(out, "{}{}", if value & b != 0 { '+' } else { '-' }, name(b));
        out
    })
}

/// Reads flags: `+syn-ack`, `syn|ack`, a number, or a number and a mask.
pub fn parse_flags(names: &[(&str, u32)], text: &str, all: u32) -> Result<(u128, u128), TextError> {
    let find = |name: &str| match names.iter().find(|(n, _)| *n == name) {
        Some((_, bit)) => Ok(*bit),
        None => bad(format!("{name}: unknown flag")),
    };
    if text.starts_with(['+', '-']) {
        let (mut value, mut mask, mut rest) = (0u32, 0u32, text);
        while !rest.is_empty() {
            let end = rest[1..].find(['+', '-']).map_or(rest.len(), |i| i + 1);
            let bit = find(&rest[1..end])?;
            if mask & bit != 0 {
                return bad(format!("{text}: flag given twice"));
            }
            mask |= bit;
            value |= if rest.starts_with('+') { bit } else { 0 };
            rest = &rest[end..];
        }
        return Ok((value.into(), mask.into()));
    }
    let (value, mask) = text.split_once('/').unwrap_or((text, ""));
    if let Some(number) = parse_u128(value) {
        let mask = if mask.is_empty() { Some(all.into()) } else { parse_u128(mask) };
        return mask.map_or_else(|| bad(format!("{text}: bad mask")), |mask| Ok((number, mask)));
    }
    let mut set = 0;
    for name in text.split('|') {
        set |= find(name)?;
    }
    Ok((set.into(), all.into()))
}

fn flag_names(form: Form) -> Option<(&'static [(&'static str, u32)], u32)> {
    match form {
        Form::CtState => Some((CT_STATE, 0xff)),
        Form::TcpFlags => Some((TCP_FLAGS, 0xfff)),
        Form::TunFlags => Some((TUN_FLAGS, 1)),
        _ => None,
    }
}

/// A value of a field, as `set_field` and `learn` print it; `mask` all ones: none is printed.
pub fn value_text(field: Field, value: u128, mask: u128, names: &dyn Names) -> String {
    let info = field.info();
    let all = field.all_ones();
    if mask == 0 {
        return "ANY".into();
    }
    if let Some((flags, max)) = flag_names(info.form) {
        return flags_text(flags, value as u32, mask as u32, max);
    }
    match info.form {
        Form::Port if mask & all == all && field == Field::InPort => {
            port_text(super::action::port_from_16(value as u16), names)
        }
        Form::Port if mask & all == all => port_text(value as u32, names),
        Form::Mac if mask & all == all => mac_text(mac_bytes(value)),
        Form::Mac => format!("{}/{}", mac_text(mac_bytes(value)), mac_text(mac_bytes(mask))),
        Form::Ipv4 => ipv4_text(value as u32, mask as u32),
        Form::Ipv6 => ipv6_text(value, mask),
        Form::Frag => {
            let found = FRAGS.iter().find(|(_, v, m)| (*v, *m) == (value & mask & 3, mask & 3));
            found.map_or("<error>", |(name, ..)| name).into()
        }
        form => {
            let value = if form == Form::Hex { format!("{value:#x}") } else { value.to_string() };
            if mask & all == all { value } else { format!("{value}/{mask:#x}") }
        }
    }
}

/// Reads a value of a field, with its mask if it has one.
///
/// # Errors
/// What is wrong with it.
pub fn parse_value(field: Field, text: &str, names: &dyn Names) -> Result<(u128, u128), TextError> {
    let info = field.info();
    let all = field.all_ones();
    let wrong = || TextError(format!("{text}: bad value of {}", info.name));
    if let Some((flags, max)) = flag_names(info.form) {
        return parse_flags(flags, text, max);
    }
    if text == "*" || text == "ANY" {
        return Ok((0, 0));
    }
    if info.form == Form::Frag
        && let Some((_, value, mask)) = FRAGS.iter().find(|(name, ..)| *name == text)
    {
        return Ok((*value, *mask));
    }
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (value, Some(mask)),
        None => (text, None),
    };
    let one = |text: &str| match info.form {
        Form::Mac => parse_mac(text),
        Form::Ipv4 => text.parse::<Ipv4Addr>().ok().map(|a| u32::from(a).into()),
        Form::Ipv6 => text.parse::<Ipv6Addr>().ok().map(u128::from),
        Form::Port => parse_port(text, names).ok().map(|p| match field {
            Field::InPort => super::action::port_to_16(p).into(),
            _ => p.into(),
        }),
        _ => parse_u128(text),
    };
    let mask = match mask {
        None => all,
        Some(mask) => match (info.form, mask.parse::<u32>()) {
            (Form::Ipv4 | Form::Ipv6, Ok(prefix)) if prefix <= info.bits => all & !ones(info.bits - prefix),
            _ => one(mask).ok_or_else(wrong)?,
        },
    };
    let value = one(value).ok_or_else(wrong)?;
    // OpenFlow carries the bit that says there is a tag in its number.
    let most = if field == Field::VlanVid { 0x1fff } else { all };
    let mask = if field == Field::VlanVid && mask == all { most } else { mask };
    if value & !most != 0 && field != Field::DlVlan {
        return bad(format!("{text}: {} has {} bits", info.name, info.bits));
    }
    Ok((value, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back_as_printed() {
        for (field, text) in [
            (Field::NwSrc, "10.0.0.0/8"),
            (Field::NwSrc, "10.0.0.1"),
            (Field::NwSrc, "10.0.0.1/255.0.0.255"),
            (Field::Ipv6Dst, "2001:db8::/32"),
            (Field::EthDst, "01:00:00:00:00:00/01:00:00:00:00:00"),
            (Field::CtState, "+est-rel+trk"),
            (Field::TcpFlags, "+syn-ack"),
            (Field::TcpFlags, "syn|ack"),
            (Field::NwFrag, "not_later"),
            (Field::Reg3, "0x7/0xff"),
            (Field::TcpDst, "80"),
            (Field::InPort, "LOCAL"),
        ] {
            let (value, mask) = parse_value(field, text, &Numbers).unwrap();
            assert_eq!(value_text(field, value, mask, &Numbers), text);
        }
        assert_eq!(parse_port("65534", &Numbers), Ok(port::LOCAL));
        assert_eq!(parse_u128("010"), Some(8));
        for (field, text) in [(Field::NwTtl, "256"), (Field::NwSrc, "10.0.0"), (Field::CtState, "+no")] {
            assert!(parse_value(field, text, &Numbers).is_err(), "{text}");
        }
    }
}
