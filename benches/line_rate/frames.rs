//! The frames that are sent: valid Ethernet, IPv4 and UDP, of one size or of a mix, in many flows.
//!
//! Addresses are those set aside for benchmarks (RFC 2544, appendix C). A flow has a source MAC address,
//! a pair of IP addresses and a source port of its own; its IP addresses complement each other, so that
//! all headers of a size have the same checksum.

use std::fmt;
use std::str::FromStr;

use pmd::port::generator::IMIX;
use serde::{Serialize, Serializer};

/// Smallest and largest frame, bytes without FCS.
pub(crate) const SMALLEST: u32 = 60;
pub(crate) const LARGEST: u32 = 9014;
/// Most flows: what the addresses can tell apart here.
pub(crate) const MAX_FLOWS: u32 = 1_000_000;
/// Bytes of the headers; then comes the payload.
pub(crate) const HEADERS: usize = 42;

/// Bytes of the frames of a stream, without FCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// All alike.
    Bytes(u32),
    /// 7 of 60, 4 of 590 and 1 of 1514 bytes.
    Imix,
}

impl Size {
    /// Bytes of frame `n`.
    pub(crate) fn of(self, n: u64) -> u32 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Imix => IMIX[(n % IMIX.len() as u64) as usize],
        }
    }

    pub(crate) fn longest(self) -> u32 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Imix => IMIX.into_iter().max().expect("not empty"),
        }
    }

    pub(crate) fn mean(self) -> f64 {
        match self {
            Size::Bytes(bytes) => f64::from(bytes),
            Size::Imix => IMIX.iter().map(|&b| f64::from(b)).sum::<f64>() / IMIX.len() as f64,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Size, String> {
        if s == "imix" {
            return Ok(Size::Imix);
        }
        let bytes = s.parse().map_err(|_| format!("neither a number of bytes nor imix: {s:?}"))?;
        if !(SMALLEST..=LARGEST).contains(&bytes) {
            return Err(format!("not in {SMALLEST}..={LARGEST} (bytes without FCS)"));
        }
        Ok(Size::Bytes(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => bytes.fmt(f),
            Size::Imix => f.pad("imix"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::Bytes(bytes) => to.serialize_u32(*bytes),
            Size::Imix => to.serialize_str("imix"),
        }
    }
}

/// Writes the headers of a frame of `frame.len()` bytes that port `port` sends in `flow`; leaves the
/// payload alone.
pub(crate) fn headers(frame: &mut [u8], port: u16, flow: u32) {
    let len = frame.len();
    frame[..8].copy_from_slice(&[2, 0xff, 0, 0, 0, 0, 2, port as u8]);
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    // No identification, DF, 64 hops, UDP; a checksum to come.
    frame[18..26].copy_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame[26..34].copy_from_slice(&[198, 18, 0, 0, 198, 19, 0, 0]);
    // To port 9, discard. UDP over IPv4 may go without a checksum.
    frame[36..38].copy_from_slice(&9u16.to_be_bytes());
    frame[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    frame[40..42].copy_from_slice(&[0, 0]);
    for (at, word) in fields(port, flow) {
        frame[at..at + 2].copy_from_slice(&word);
    }
    let sum = !fold(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The words of the headers that tell flows apart, and where they are.
pub(crate) fn fields(port: u16, flow: u32) -> [(usize, [u8; 2]); 5] {
    let [_, high, third, low] = flow.to_be_bytes();
    let source = (1024 + u16::from(high)).to_be_bytes();
    [
        (8, [(port >> 8) as u8, high]),
        (10, [third, low]),
        (28, [third, low]),
        (32, [!third, !low]),
        (34, source),
    ]
}

/// The sum of 16-bit words in one's complement (RFC 1071).
fn fold(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn sizes_are_read_and_written_as_they_are_called() {
        for (text, size) in [("60", Size::Bytes(60)), ("9014", Size::Bytes(9014)), ("imix", Size::Imix)] {
            assert_eq!(text.parse(), Ok(size));
            assert_eq!(size.to_string(), text);
        }
        for wrong in ["59", "9015", "mix", ""] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        assert_eq!(serde_json::json!([Size::Bytes(60), Size::Imix]).to_string(), r#"[60,"imix"]"#);
        let sum: u32 = (0..12).map(|n| Size::Imix.of(n)).sum();
        assert_eq!((sum, Size::Imix.longest()), (7 * 60 + 4 * 590 + 1514, 1514));
        assert_eq!(Size::Imix.mean(), f64::from(sum) / 12.0);
    }

    #[test]
    fn headers_are_valid_and_flows_differ_without_touching_the_checksum() {
        let (mut macs, mut ends) = (HashSet::new(), HashSet::new());
        let mut first = [0; 60];
        headers(&mut first, 3, 0);
        for flow in (0..MAX_FLOWS).step_by(997).chain([MAX_FLOWS - 1]) {
            let mut frame = [0; 60];
            headers(&mut frame, 3, flow);
            assert_eq!(fold(&frame[14..34]), 0xffff, "checksum of flow {flow}");
            assert_eq!(frame[24..26], first[24..26]);
            assert!(macs.insert(<[u8; 6]>::try_from(&frame[6..12]).unwrap()));
            assert!(ends.insert(<[u8; 12]>::try_from(&frame[26..38]).unwrap()));
            assert_eq!((frame[0] & 3, frame[6] & 3), (2, 2), "local, not a group");
            // Rewriting a frame of another flow gives the same frame.
            let mut other = first;
            for (at, word) in fields(3, flow) {
                other[at..at + 2].copy_from_slice(&word);
            }
            assert_eq!(other, frame);
        }
        let mut other = [0; 60];
        headers(&mut other, 259, 0);
        assert_ne!(other[6..12], first[6..12], "ports differ");
    }
}
