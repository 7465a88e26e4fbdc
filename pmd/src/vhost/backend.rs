//! What the device asks of the front-end, on a channel of its own (spec "Back-end communication").

use std::collections::VecDeque;

use zerocopy::{FromBytes, IntoBytes};

use super::message::Frame;
use crate::spec::vhost_user::{
    FLAG_NEED_REPLY, FLAG_VERSION, Header, IotlbMsg, VringState, backend_id, iotlb,
};

/// Requests that wait for the front-end's reply; those beyond wait here.
pub const MAX_UNANSWERED: usize = 64;

/// Something that the device wants of the front-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Where this address of the guest's IOMMU is, to be accessed like that (bits of
    /// [`iotlb`]).
    Miss {
        /// The address.
        iova: u64,
        /// How it is to be accessed.
        perm: u8,
    },
    /// The configuration space has changed, and the driver is to be told.
    ConfigChange,
    /// The driver of a ring is to be called; for rings without a descriptor for that.
    Call {
        /// Which.
        ring: u16,
    },
    /// A ring is retired for a fault; for rings without a descriptor for that.
    Err {
        /// Which.
        ring: u16,
    },
    /// A ring ended because the guest's IOMMU does not let the device access this address like that.
    AccessFail {
        /// The address.
        iova: u64,
        /// How it was to be accessed.
        perm: u8,
    },
}

impl Ask {
    /// Its message, if this is one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Ask> {
        let (header, body) = Header::read_from_prefix(bytes).ok()?;
        if body.is_empty() && header.request == backend_id::CONFIG_CHANGE_MSG {
            return Some(Ask::ConfigChange);
        }
        if let Ok(VringState { index, num: 0 }) = VringState::read_from_bytes(body) {
            let ring = index.try_into().ok()?;
            return match header.request {
                backend_id::VRING_CALL => Some(Ask::Call { ring }),
                backend_id::VRING_ERR => Some(Ask::Err { ring }),
                _ => None,
            };
        }
        let IotlbMsg { iova, perm, kind, .. } = IotlbMsg::read_from_bytes(body).ok()?;
        match (header.request, kind) {
            (backend_id::IOTLB_MSG, iotlb::MISS) => Some(Ask::Miss { iova, perm }),
            (backend_id::IOTLB_MSG, iotlb::ACCESS_FAIL) => Some(Ask::AccessFail { iova, perm }),
            _ => None,
        }
    }

    /// Its message.
    pub(super) fn encode(self, flags: u32) -> Vec<u8> {
        let entry = |kind, iova, perm| {
            let body = IotlbMsg { iova, perm, kind, ..IotlbMsg::default() };
            (backend_id::IOTLB_MSG, body.as_bytes().to_vec())
        };
        let about = |ring: u16| VringState { index: ring.into(), num: 0 }.as_bytes().to_vec();
        let (request, body) = match self {
            Ask::Miss { iova, perm } => entry(iotlb::MISS, iova, perm),
            Ask::AccessFail { iova, perm } => entry(iotlb::ACCESS_FAIL, iova, perm),
            Ask::ConfigChange => (backend_id::CONFIG_CHANGE_MSG, Vec::new()),
            Ask::Call { ring } => (backend_id::VRING_CALL, about(ring)),
            Ask::Err { ring } => (backend_id::VRING_ERR, about(ring)),
        };
        let header = Header { request, flags: FLAG_VERSION | flags, size: body.len() as u32 };
        [header.as_bytes(), &body].concat()
    }
}

/// What was asked, in order.
#[derive(Debug, Default)]
pub(super) struct Asked {
    waiting: VecDeque<Ask>,
    unanswered: VecDeque<Ask>,
}

impl Asked {
    /// One more.
    pub(super) fn push(&mut self, ask: Ask) {
        self.waiting.push_back(ask);
    }

    /// What was sent, and is not answered.
    pub(super) fn unanswered(&self) -> Vec<Ask> {
        self.unanswered.iter().copied().collect()
    }

    /// These were sent, by another process.
    pub(super) fn inherit(&mut self, unanswered: Vec<Ask>) {
        self.unanswered = unanswered.into();
    }

    /// One more, unless the same one waits.
    pub(super) fn push_once(&mut self, ask: Ask) {
        if !self.waiting.contains(&ask) {
            self.waiting.push_back(ask);
        }
    }

    /// Whether some wait for the replies to others.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The bytes of what can be sent now. With `reply`, the front-end is to say how each ended.
    pub(super) fn send(&mut self, reply: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.unanswered.len() < MAX_UNANSWERED
            && let Some(ask) = self.waiting.pop_front()
        {
            bytes.extend(ask.encode(if reply { FLAG_NEED_REPLY } else { 0 }));
            if reply {
                self.unanswered.push_back(ask);
            }
        }
        bytes
    }

    /// A reply came: what it is about, and whether it says "done". `None`: it is about nothing.
    pub(super) fn reply(&mut self, frame: &Frame) -> Option<(Ask, bool)> {
        let value = u64::read_from_bytes(&frame.payload).ok()?;
        self.unanswered.pop_front().map(|ask| (ask, value == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Fds;
    use super::*;

    fn reply(value: u64) -> Frame {
        let header = Header { request: 1, flags: 5, size: 8 };
        Frame { header, payload: value.as_bytes().to_vec(), fds: Fds::default() }
    }

    #[test]
    fn a_miss_is_these_bytes() {
        let mut asked = Asked::default();
        asked.push(Ask::Miss { iova: 0x1122_3344_5000, perm: 2 });
        #[rustfmt::skip]
        assert_eq!(asked.send(true), [
            1, 0, 0, 0,  9, 0, 0, 0,  32, 0, 0, 0,
            0, 0x50, 0x44, 0x33, 0x22, 0x11, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
            2, 1, 0, 0, 0, 0, 0, 0,
        ]);
        asked.push(Ask::AccessFail { iova: 0x1000, perm: 1 });
        let bytes = asked.send(false);
        assert_eq!((bytes[4], bytes[36], bytes[37]), (1, 1, 4));
    }

    #[test]
    fn calls_and_errors_are_these_bytes_and_are_asked_for_once() {
        let mut asked = Asked::default();
        for ask in [Ask::Call { ring: 3 }, Ask::Err { ring: 258 }, Ask::Call { ring: 3 }] {
            asked.push_once(ask);
            assert_eq!(Ask::decode(&ask.encode(0)), Some(ask));
        }
        #[rustfmt::skip]
        assert_eq!(asked.send(true), [
            4, 0, 0, 0,  9, 0, 0, 0,  8, 0, 0, 0,  3, 0, 0, 0,  0, 0, 0, 0,
            5, 0, 0, 0,  9, 0, 0, 0,  8, 0, 0, 0,  2, 1, 0, 0,  0, 0, 0, 0,
        ]);
        assert_eq!(Ask::ConfigChange.encode(0), [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Ask::decode(&Ask::ConfigChange.encode(0)), Some(Ask::ConfigChange));
        for ask in [Ask::Miss { iova: 0x5000, perm: 3 }, Ask::AccessFail { iova: u64::MAX, perm: 1 }] {
            let bytes = ask.encode(0);
            assert_eq!(Ask::decode(&bytes), Some(ask));
            assert!((0..bytes.len()).all(|cut| Ask::decode(&bytes[..cut]).is_none()));
        }
    }

    #[test]
    fn replies_belong_to_what_was_asked_in_order_and_the_rest_waits() {
        let mut asked = Asked::default();
        for i in 0..MAX_UNANSWERED as u64 + 2 {
            asked.push(Ask::Miss { iova: i << 12, perm: 1 });
        }
        assert_eq!(asked.send(true).len(), MAX_UNANSWERED * 44);
        assert!(asked.send(true).is_empty());
        assert_eq!(asked.reply(&reply(0)), Some((Ask::Miss { iova: 0, perm: 1 }, true)));
        assert_eq!(asked.reply(&reply(7)), Some((Ask::Miss { iova: 4096, perm: 1 }, false)));
        assert_eq!(asked.send(true).len(), 2 * 44);
        for _ in 0..MAX_UNANSWERED {
            assert!(asked.reply(&reply(0)).is_some());
        }
        assert_eq!(asked.reply(&reply(0)), None);
        let short = Frame { payload: vec![0; 7], ..reply(0) };
        assert_eq!(asked.reply(&short), None);
    }
}
