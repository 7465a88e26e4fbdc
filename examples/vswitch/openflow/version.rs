//! The versions of OpenFlow we speak, the header of a message, and the message that begins a connection.

use super::wire::Writer;

/// A version. The order is that of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 1.0, which `ovs-ofctl` speaks unless told otherwise, with Nicira's extensions.
    V10 = 1,
    /// 1.3.
    V13 = 4,
    /// 1.4.
    V14 = 5,
    /// 1.5.
    V15 = 6,
}

/// Bytes of a message's header.
pub(crate) const HEADER: usize = 8;
/// `OFPT_HELLO`.
pub(crate) const HELLO: u8 = 0;
const VERSION_BITMAP: u16 = 1;

impl Version {
    /// All, oldest first.
    pub(crate) const ALL: &[Version] = &[Version::V10, Version::V13, Version::V14, Version::V15];

    /// As the `protocols` column of a bridge has it.
    pub(crate) fn named(name: &str) -> Option<Version> {
        match name {
            "OpenFlow10" => Some(Version::V10),
            "OpenFlow13" => Some(Version::V13),
            "OpenFlow14" => Some(Version::V14),
            "OpenFlow15" => Some(Version::V15),
            _ => None,
        }
    }
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// `version`.
    pub(crate) version: u8,
    /// `OFPT_*`.
    pub(crate) kind: u8,
    /// Of all of the message.
    pub(crate) length: usize,
    /// Repeated in what answers it.
    pub(crate) xid: u32,
}

impl Header {
    /// That of the message that begins here, once it has come.
    pub(crate) fn of(bytes: &[u8]) -> Option<Header> {
        let h: &[u8; HEADER] = bytes.first_chunk()?;
        let length = u16::from_be_bytes([h[2], h[3]]).into();
        Some(Header { version: h[0], kind: h[1], length, xid: u32::from_be_bytes([h[4], h[5], h[6], h[7]]) })
    }
}

/// A message of this kind; what `body` writes must leave it below 64 KiB.
pub(crate) fn message(version: Version, kind: u8, xid: u32, body: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Writer::default();
    out.u8(version as u8).u8(kind).u16(0).u32(xid);
    body(&mut out);
    debug_assert!(out.at() <= usize::from(u16::MAX), "a message of {} bytes", out.at());
    out.length(2, 0);
    out.finish()
}

/// Our `OFPT_HELLO`, that of the newest of `ours`, with all of them as a bitmap (OpenFlow 1.3.1 §7.5.1).
pub(crate) fn hello(ours: &[Version]) -> Vec<u8> {
    let newest = ours.iter().copied().max().unwrap_or(Version::V15);
    message(newest, HELLO, 1, |w| {
        if newest > Version::V10 {
            w.u16(VERSION_BITMAP).u16(8).u32(ours.iter().fold(0, |b, v| b | 1 << *v as u32));
        }
    })
}

/// The newest version that both sides speak: theirs are in the bitmap of their hello, or all up to that of its header.
pub(crate) fn negotiate(ours: &[Version], theirs: &[u8]) -> Option<Version> {
    let header = Header::of(theirs)?;
    let upto = || (1u32 << (u32::from(header.version).min(30) + 1)) - 1;
    let bits = bitmap(theirs.get(HEADER..header.length)?).unwrap_or_else(upto);
    ours.iter().copied().filter(|v| bits >> *v as u32 & 1 != 0).max()
}

fn bitmap(mut elements: &[u8]) -> Option<u32> {
    while let [a, b, c, d, ..] = *elements {
        let length = usize::from(u16::from_be_bytes([c, d]));
        if length < 4 {
            return None;
        }
        if u16::from_be_bytes([a, b]) == VERSION_BITMAP {
            return elements.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
        }
        elements = elements.get(length.next_multiple_of(8)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hellos_of_ovs_ofctl_are_understood() {
        let plain = [1, 0, 0, 8, 0, 0, 0, 1];
        assert_eq!(negotiate(Version::ALL, &plain), Some(Version::V10));
        let of13 = [4, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0x10];
        assert_eq!(negotiate(Version::ALL, &of13), Some(Version::V13));
        assert_eq!(negotiate(&[Version::V10, Version::V15], &of13), None);
        let all = [6, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0x7e];
        assert_eq!(negotiate(Version::ALL, &all), Some(Version::V15));
        assert_eq!(negotiate(&[Version::V10, Version::V13], &all), Some(Version::V13));
        let without_bitmap = [5, 0, 0, 8, 0, 0, 0, 1];
        assert_eq!(negotiate(Version::ALL, &without_bitmap), Some(Version::V14));
    }

    #[test]
    fn our_hello_is_that_of_ovs() {
        assert_eq!(hello(&[Version::V10]), [1, 0, 0, 8, 0, 0, 0, 1]);
        let both = [6, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0x72];
        assert_eq!(hello(Version::ALL), both);
    }

    proptest! {
        #[test]
        fn any_hello_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = negotiate(Version::ALL, &bytes);
        }
    }
}
