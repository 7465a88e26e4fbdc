//! Bundles: changes that are collected, and then made all or none (OpenFlow 1.4 §6.8; ONF extension 230 in 1.3).

use std::collections::BTreeMap;

use super::error::OfError;
use super::ofproto::{Change, Ofproto};
use super::session::{ONF, Session, error};
use super::version::{HEADER, Header, Version, message};
use super::wire::{Reader, Writer};

/// How many a connection may have open.
const BUNDLES: usize = 64;
/// How many bytes of messages they may hold together.
const BYTES: usize = 64 << 20;
const EXPERIMENTER: u8 = 4;
const BUNDLE_CONTROL: u8 = 33;
const ONFT_BUNDLE_CONTROL: u32 = 2300;

struct Bundle {
    closed: bool,
    flags: u16,
    /// Changes, and the messages they came in.
    changes: Vec<(Change, Vec<u8>)>,
}

/// The bundles of one connection.
#[derive(Default)]
pub(crate) struct Bundles {
    open: BTreeMap<u32, Bundle>,
    bytes: usize,
}

/// `OFPBCT_*`.
mod step {
    pub(super) const OPEN: u16 = 0;
    pub(super) const CLOSE: u16 = 2;
    pub(super) const COMMIT: u16 = 4;
    pub(super) const DISCARD: u16 = 6;
}

impl Session {
    /// `OFPT_BUNDLE_CONTROL`; `onf`: in the form of the extension of 1.3.
    pub(super) fn bundle_control(
        &mut self,
        version: Version,
        xid: u32,
        body: &[u8],
        onf: bool,
        bridge: &mut dyn Ofproto,
    ) -> Result<Vec<u8>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let (id, step, flags) = (from.u32()?, from.u16()?, from.u16()?);
        let mut before = Vec::new();
        match step {
            step::OPEN => self.bundles.begin(id, flags)?,
            step::CLOSE => self.bundles.get(id, flags)?.closed = true,
            step::DISCARD => drop(self.bundles.end(id).ok_or(OfError::BFC_BAD_ID)?),
            step::COMMIT => {
                self.bundles.get(id, flags)?;
                let bundle = self.bundles.end(id).ok_or(OfError::BFC_BAD_ID)?;
                let (changes, messages): (Vec<_>, Vec<_>) = bundle.changes.into_iter().unzip();
                if let Err((which, why)) = self.apply_all(bridge, &changes) {
                    let culprit = messages.get(which).map_or(&[][..], Vec::as_slice);
                    let of = Header::of(culprit).map_or(xid, |h| h.xid);
                    before = error(version, of, why, culprit);
                    // What failed is told first, then that the bundle did.
                    let mut whole = body_of(version, xid, body, onf);
                    whole.truncate(1024);
                    before.extend(error(version, xid, OfError::BFC_MSG_FAILED, &whole));
                    return Ok(before);
                }
            }
            _ => return Err(OfError::BFC_BAD_TYPE),
        }
        let put = |w: &mut Writer| {
            w.u32(id).u16(step + 1).u16(0);
        };
        before.extend(if onf {
            message(version, EXPERIMENTER, xid, |w| {
                w.u32(ONF).u32(ONFT_BUNDLE_CONTROL);
                put(w);
            })
        } else {
            message(version, BUNDLE_CONTROL, xid, put)
        });
        Ok(before)
    }

    /// `OFPT_BUNDLE_ADD_MESSAGE`.
    pub(super) fn bundle_add(&mut self, version: Version, xid: u32, body: &[u8]) -> Result<Vec<u8>, OfError> {
        let mut from = Reader::new(body, OfError::BRC_BAD_LEN);
        let id = from.u32()?;
        from.skip(2)?;
        let flags = from.u16()?;
        let rest = from.rest();
        let header = Header::of(rest).ok_or(OfError::BFC_MSG_BAD_LEN)?;
        let message =
            rest.get(..header.length).filter(|m| m.len() >= HEADER).ok_or(OfError::BFC_MSG_BAD_LEN)?;
        if header.xid != xid || header.version != version as u8 {
            return Err(OfError::BFC_MSG_BAD_XID);
        }
        let change = self.bundled(version, header, &message[HEADER..])?;
        if !self.bundles.open.contains_key(&id) {
            self.bundles.begin(id, flags)?;
        }
        if self.bundles.bytes + message.len() > BYTES {
            return Err(OfError::BFC_MSG_TOO_MANY);
        }
        let bundle = self.bundles.get(id, flags)?;
        if bundle.closed {
            return Err(OfError::BFC_BUNDLE_CLOSED);
        }
        bundle.changes.push((change, message.to_vec()));
        self.bundles.bytes += message.len();
        Ok(Vec::new())
    }
}

/// The request again, as errors show it.
fn body_of(version: Version, xid: u32, body: &[u8], onf: bool) -> Vec<u8> {
    if onf {
        return message(version, EXPERIMENTER, xid, |w| {
            w.u32(ONF).u32(ONFT_BUNDLE_CONTROL).put(body);
        });
    }
    message(version, BUNDLE_CONTROL, xid, |w| {
        w.put(body);
    })
}

impl Bundles {
    fn begin(&mut self, id: u32, flags: u16) -> Result<(), OfError> {
        if flags >> 2 != 0 {
            return Err(OfError::BFC_BAD_FLAGS);
        }
        if self.open.contains_key(&id) {
            return Err(OfError::BFC_BUNDLE_EXIST);
        }
        if self.open.len() >= BUNDLES {
            return Err(OfError::BFC_OUT_OF_BUNDLES);
        }
        self.open.insert(id, Bundle { closed: false, flags, changes: Vec::new() });
        Ok(())
    }

    fn get(&mut self, id: u32, flags: u16) -> Result<&mut Bundle, OfError> {
        let bundle = self.open.get_mut(&id).ok_or(OfError::BFC_BAD_ID)?;
        if bundle.flags == flags { Ok(bundle) } else { Err(OfError::BFC_BAD_FLAGS) }
    }

    fn end(&mut self, id: u32) -> Option<Bundle> {
        let bundle = self.open.remove(&id)?;
        self.bytes -= bundle.changes.iter().map(|(_, m)| m.len()).sum::<usize>();
        Some(bundle)
    }
}
