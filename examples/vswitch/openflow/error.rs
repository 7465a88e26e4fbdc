//! Why a request is refused: `OFPT_ERROR`'s kind and code, as OpenFlow 1.4 numbers them.

use super::version::Version;
use super::wire::Writer;

/// What an `OFPT_ERROR` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("OpenFlow error {kind}, code {code}")]
pub struct OfError {
    /// `OFPET_*`.
    pub kind: u16,
    /// The code within the kind.
    pub code: u16,
}

macro_rules! errors {
    ($($name:ident $kind:literal $code:literal;)*) => {
        #[allow(missing_docs)]
        impl OfError {
            $(pub const $name: OfError = OfError { kind: $kind, code: $code };)*
        }
    };
}

errors! {
    BRC_BAD_VERSION 1 0;
    BRC_BAD_TYPE 1 1;
    BRC_BAD_MULTIPART 1 2;
    BRC_BAD_EXPERIMENTER 1 3;
    BRC_BAD_EXP_TYPE 1 4;
    BRC_BAD_LEN 1 6;
    BRC_BUFFER_UNKNOWN 1 8;
    BRC_BAD_TABLE_ID 1 9;
    BRC_IS_SLAVE 1 10;
    BRC_BAD_PORT 1 11;
    BRC_BAD_PACKET 1 12;
    BRC_MULTIPART_OVERFLOW 1 13;
    BAC_BAD_TYPE 2 0;
    BAC_BAD_LEN 2 1;
    BAC_BAD_EXPERIMENTER 2 2;
    BAC_BAD_EXP_TYPE 2 3;
    BAC_BAD_OUT_PORT 2 4;
    BAC_BAD_ARGUMENT 2 5;
    BAC_TOO_MANY 2 7;
    BAC_BAD_OUT_GROUP 2 9;
    BAC_MATCH_INCONSISTENT 2 10;
    BAC_BAD_SET_TYPE 2 13;
    BAC_BAD_SET_LEN 2 14;
    BAC_BAD_SET_ARGUMENT 2 15;
    BAC_BAD_SET_MASK 2 16;
    BIC_UNKNOWN_INST 3 0;
    BIC_UNSUP_INST 3 1;
    BIC_BAD_TABLE_ID 3 2;
    BIC_BAD_EXPERIMENTER 3 5;
    BIC_BAD_LEN 3 7;
    BIC_DUP_INST 3 9;
    BMC_BAD_TYPE 4 0;
    BMC_BAD_LEN 4 1;
    BMC_BAD_WILDCARDS 4 5;
    BMC_BAD_FIELD 4 6;
    BMC_BAD_VALUE 4 7;
    BMC_BAD_MASK 4 8;
    BMC_BAD_PREREQ 4 9;
    BMC_DUP_FIELD 4 10;
    FMFC_UNKNOWN 5 0;
    FMFC_TABLE_FULL 5 1;
    FMFC_BAD_TABLE_ID 5 2;
    FMFC_OVERLAP 5 3;
    FMFC_EPERM 5 4;
    FMFC_BAD_COMMAND 5 6;
    FMFC_BAD_FLAGS 5 7;
    GMFC_GROUP_EXISTS 6 0;
    GMFC_INVALID_GROUP 6 1;
    GMFC_OUT_OF_GROUPS 6 3;
    GMFC_OUT_OF_BUCKETS 6 4;
    GMFC_LOOP 6 7;
    GMFC_UNKNOWN_GROUP 6 8;
    GMFC_BAD_TYPE 6 10;
    GMFC_BAD_COMMAND 6 11;
    GMFC_BAD_BUCKET 6 12;
    GMFC_BAD_WATCH 6 13;
    GMFC_UNKNOWN_BUCKET 6 15;
    GMFC_BUCKET_EXISTS 6 16;
    PMFC_BAD_PORT 7 0;
    PMFC_BAD_HW_ADDR 7 1;
    TMFC_BAD_TABLE 8 0;
    TMFC_BAD_CONFIG 8 1;
    QOFC_BAD_PORT 9 0;
    QOFC_BAD_QUEUE 9 1;
    SCFC_BAD_FLAGS 10 0;
    RRFC_STALE 11 0;
    RRFC_BAD_ROLE 11 2;
    MMFC_METER_EXISTS 12 1;
    MMFC_INVALID_METER 12 2;
    MMFC_UNKNOWN_METER 12 3;
    MMFC_BAD_COMMAND 12 4;
    MMFC_BAD_FLAGS 12 5;
    MMFC_BAD_BAND 12 8;
    MMFC_OUT_OF_METERS 12 10;
    MMFC_OUT_OF_BANDS 12 11;
    TFFC_EPERM 13 5;
    BPC_BAD_TYPE 14 0;
    BPC_BAD_LEN 14 1;
    BPC_BAD_VALUE 14 2;
    MOFC_MONITOR_EXISTS 16 1;
    MOFC_UNKNOWN_MONITOR 16 3;
    MOFC_BAD_COMMAND 16 4;
    MOFC_BAD_FLAGS 16 5;
    BFC_BAD_ID 17 2;
    BFC_BUNDLE_EXIST 17 3;
    BFC_BUNDLE_CLOSED 17 4;
    BFC_OUT_OF_BUNDLES 17 5;
    BFC_BAD_TYPE 17 6;
    BFC_BAD_FLAGS 17 7;
    BFC_MSG_BAD_LEN 17 8;
    BFC_MSG_BAD_XID 17 9;
    BFC_MSG_UNSUP 17 10;
    BFC_MSG_TOO_MANY 17 12;
    BFC_MSG_FAILED 17 13;
}

/// In OpenFlow 1.0, where a kind is an extension of Nicira's: its type and code there.
const VENDOR_10: &[(OfError, u16, u16)] = &[
    (OfError::BRC_BAD_TABLE_ID, 1, 512),
    (OfError::BRC_BAD_PORT, 1, 514),
    (OfError::BAC_BAD_OUT_GROUP, 2, 9),
    (OfError::BAC_MATCH_INCONSISTENT, 1, 522),
    (OfError::BAC_BAD_SET_TYPE, 1, 523),
    (OfError::BAC_BAD_SET_LEN, 1, 524),
    (OfError::BAC_BAD_SET_ARGUMENT, 1, 525),
    (OfError::BMC_BAD_LEN, 1, 256),
    (OfError::BMC_BAD_WILDCARDS, 1, 262),
    (OfError::BMC_BAD_FIELD, 0, 263),
    (OfError::BMC_BAD_VALUE, 1, 258),
    (OfError::BMC_BAD_MASK, 1, 259),
    (OfError::BMC_BAD_PREREQ, 1, 260),
    (OfError::BMC_DUP_FIELD, 1, 261),
    (OfError::FMFC_BAD_TABLE_ID, 5, 257),
    (OfError::FMFC_BAD_FLAGS, 3, 258),
    (OfError::MOFC_MONITOR_EXISTS, 1, 517),
    (OfError::MOFC_UNKNOWN_MONITOR, 1, 519),
    (OfError::MOFC_BAD_FLAGS, 1, 518),
    (OfError::BPC_BAD_TYPE, 13, 2),
    (OfError::BPC_BAD_LEN, 13, 3),
    (OfError::BPC_BAD_VALUE, 13, 4),
];
/// Says in OpenFlow 1.0 that an error is a vendor's.
const VENDOR_ERROR_10: u16 = 0xb0c2;
const OFPET_EXPERIMENTER: u16 = 0xffff;
const NICIRA: u32 = 0x2320;
const ONF: u32 = 0x4f4e_4600;

impl OfError {
    /// The error's body without the data that follows it.
    pub(crate) fn encode(self, version: Version) -> Vec<u8> {
        let mut out = Writer::default();
        let OfError { kind, code } = self;
        match version {
            Version::V10 => self.encode_10(&mut out),
            // Bundles and the flow monitor came with 1.4.
            Version::V13 if kind == 17 => {
                out.u16(OFPET_EXPERIMENTER).u16(2300 + code).u32(ONF);
            }
            Version::V13 if kind == 14 && code <= 2 => {
                out.u16(13).u16(2 + code);
            }
            _ => {
                out.u16(kind).u16(code);
            }
        }
        out.finish()
    }

    fn encode_10(self, out: &mut Writer) {
        if let Some((_, kind, code)) = VENDOR_10.iter().find(|(e, _, _)| *e == self) {
            out.u16(VENDOR_ERROR_10).u16(0).u32(NICIRA).u16(*kind).u16(*code);
            return;
        }
        match (self.kind, self.code) {
            (1 | 2, code) => out.u16(self.kind).u16(code),
            (5, 1) => out.u16(3).u16(0),
            (5, 3) => out.u16(3).u16(1),
            (5, 4) => out.u16(3).u16(2),
            (5, 6) => out.u16(3).u16(4),
            (5, _) => out.u16(3).u16(5),
            (7, code) => out.u16(4).u16(code),
            (9, code) => out.u16(5).u16(code),
            (kind, code) => out.u16(VENDOR_ERROR_10).u16(0).u32(NICIRA).u16(kind).u16(code),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_numbers() {
        assert_eq!(OfError::FMFC_OVERLAP.encode(Version::V15), [0, 5, 0, 3]);
        assert_eq!(OfError::FMFC_OVERLAP.encode(Version::V10), [0, 3, 0, 1]);
        let unmet = OfError::BMC_BAD_PREREQ;
        assert_eq!(unmet.encode(Version::V13), [0, 4, 0, 9]);
        assert_eq!(unmet.encode(Version::V10), [0xb0, 0xc2, 0, 0, 0, 0, 0x23, 0x20, 0, 1, 1, 4]);
    }
}
