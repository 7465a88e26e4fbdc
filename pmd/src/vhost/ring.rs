//! What a front-end has said about one ring so far, and whether that makes a ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::host::{RingSetup, Signals};
use crate::spec::vhost_user::{F_LOG_ALL, F_PROTOCOL_FEATURES, MAX_VRING_NUM, VRING_F_LOG, VringAddr};
use crate::spec::virtio::F_RING_PACKED;

/// What is wrong with what was said about a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// No such ring.
    #[error("the device has rings 0 to {}", .0 - 1)]
    NoSuchRing(usize),
    /// It runs.
    #[error("its {0} cannot change while it runs; GET_VRING_BASE stops it")]
    Running(&'static str),
    /// A size no ring can have.
    #[error(
        "size {0}; a split ring has 1 to {MAX_VRING_NUM} entries, a power of two, a packed one any number up to that"
    )]
    Num(u32),
    /// An area at an address it cannot have.
    #[error("{area} at {addr:#x} is not a multiple of {align}")]
    Unaligned {
        /// Which area.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// An area beyond the last address there is.
    #[error("{area} at {addr:#x} with {len} bytes goes past the end of the address space")]
    Wraps {
        /// Which area.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// Flags that do not exist.
    #[error("address flags {0:#x}; 1 (used elements are logged) is possible")]
    Flags(u32),
    /// A base no ring of that layout and size can have.
    #[error("base {base:#x} is not an index of a {} ring of {num} entries", if *.packed { "packed" } else { "split" })]
    Base {
        /// As it came.
        base: u32,
        /// Layout.
        packed: bool,
        /// Size of the ring.
        num: u32,
    },
    /// Neither on nor off.
    #[error("enabled with {0}; 0 and 1 are possible")]
    Enable(u32),
}

impl RingError {
    /// Whether the guest's driver chose what is wrong, rather than the front-end.
    pub(super) fn is_the_guests(self) -> bool {
        use RingError::{Base, Num, Unaligned, Wraps};
        matches!(self, Num(_) | Unaligned { .. } | Wraps { .. } | Base { .. })
    }
}

/// Where kicks come from.
#[derive(Clone, Debug)]
pub(super) enum Kick {
    /// From nowhere: the ring is to be polled.
    Polled,
    /// From an eventfd.
    Fd(Arc<OwnedFd>),
    /// From messages, which signal an eventfd of ours.
    Message(Arc<OwnedFd>),
}

/// One ring, as far as it was described.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) num: Option<u32>,
    pub(super) addr: Option<VringAddr>,
    /// As it was set, see [`check_base`], or as the host said when it stopped the ring.
    pub(super) base: Option<u32>,
    pub(super) kick: Option<Kick>,
    pub(super) call: Option<Arc<OwnedFd>>,
    pub(super) err: Option<Arc<OwnedFd>>,
    /// Whether those two are eventfds of ours, for which messages are sent.
    pub(super) call_message: bool,
    pub(super) err_message: bool,
    pub(super) enabled: Option<bool>,
    pub(super) running: bool,
}

impl Ring {
    /// Spec "Ring states": enabled from the start, unless protocol features were negotiated.
    pub(super) fn enabled(&self, features: u64) -> bool {
        self.enabled.unwrap_or(features & F_PROTOCOL_FEATURES == 0)
    }

    /// Spec "Ring states": back to stopped. What was said about size, addresses and base stays.
    pub(super) fn forget_start(&mut self) {
        self.kick = None;
        self.call = None;
        self.call_message = false;
    }

    pub(super) fn signals(&self) -> Signals {
        let kick = match &self.kick {
            Some(Kick::Fd(fd) | Kick::Message(fd)) => Some(Arc::clone(fd)),
            Some(Kick::Polled) | None => None,
        };
        Signals { kick, call: self.call.clone(), err: self.err.clone() }
    }

    /// The base a GET_VRING_BASE answers when the ring does not run.
    pub(super) fn base_at_rest(&self, features: u64) -> u32 {
        self.base.unwrap_or(initial_base(features))
    }

    /// The ring to run; `None` while it is stopped, disabled, or not fully described.
    pub(super) fn setup(&self, index: u16, features: u64) -> Result<Option<RingSetup>, RingError> {
        let (Some(num), Some(addr), Some(_)) = (self.num, self.addr, &self.kick) else { return Ok(None) };
        if !self.enabled(features) {
            return Ok(None);
        }
        check_num(num, Some(features))?;
        check_addr(&addr, num, features)?;
        let base = check_base(self.base_at_rest(features), num, features)?;
        let num = num as u16; // MAX_VRING_NUM fits.
        let features = features & !F_LOG_ALL; // The host knows what is logged.
        Ok(Some(RingSetup { index, features, num, addr, base, signals: self.signals() }))
    }
}

/// Virtio 1.3 §2.7: a power of two; §2.8.10.1: any number. Before features are known, either will do.
pub(super) fn check_num(num: u32, features: Option<u64>) -> Result<(), RingError> {
    let split = features.is_some_and(|f| f & F_RING_PACKED == 0);
    let good = (1..=MAX_VRING_NUM).contains(&num) && (!split || num.is_power_of_two());
    if good { Ok(()) } else { Err(RingError::Num(num)) }
}

/// Virtio 1.3 §2.7 and §2.8.10: alignment and extent of the three areas of a ring of `num` entries.
pub(super) fn check_addr(addr: &VringAddr, num: u32, features: u64) -> Result<(), RingError> {
    let n = u64::from(num);
    let areas = if features & F_RING_PACKED != 0 {
        [
            ("descriptor ring", addr.descriptors, 16 * n, 16),
            ("driver event area", addr.available, 4, 4),
            ("device event area", addr.used, 4, 4),
        ]
    } else {
        // Index, flags and event index beside the entries.
        [
            ("descriptor table", addr.descriptors, 16 * n, 16),
            ("available ring", addr.available, 6 + 2 * n, 2),
            ("used ring", addr.used, 6 + 8 * n, 4),
        ]
    };
    if addr.flags & !VRING_F_LOG != 0 {
        return Err(RingError::Flags(addr.flags));
    }
    for (area, addr, len, align) in areas {
        if !addr.is_multiple_of(align) {
            return Err(RingError::Unaligned { area, addr, align });
        }
        if addr.checked_add(len).is_none() {
            return Err(RingError::Wraps { area, addr, len });
        }
    }
    Ok(())
}

/// Virtio 1.3 §2.8.1: both wrap counters of a fresh packed ring are 1.
fn initial_base(features: u64) -> u32 {
    if features & F_RING_PACKED == 0 { 0 } else { 0x8000_8000 }
}

/// Spec "Vring descriptor index for split virtqueues" and "for packed virtqueues": the base with both
/// halves, when it can be one of this ring.
pub(super) fn check_base(base: u32, num: u32, features: u64) -> Result<u32, RingError> {
    let packed = features & F_RING_PACKED != 0;
    let wrong = Err(RingError::Base { base, packed, num });
    let (available, used) = (base & 0xffff, base >> 16);
    if !packed {
        return if used == 0 { Ok(base) } else { wrong };
    }
    // Front-ends that know no used half (DPDK's virtio-user) leave it zero: nothing is in flight then.
    let used = if used == 0 { available } else { used };
    if available & 0x7fff >= num || used & 0x7fff >= num { wrong } else { Ok(used << 16 | available) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLIT: u64 = 0;
    const PACKED: u64 = F_RING_PACKED;

    #[test]
    fn sizes() {
        for num in [1, 2, 256, 32768] {
            assert_eq!(check_num(num, Some(SPLIT)), Ok(()));
        }
        for num in [3, 255, 32767] {
            assert_eq!(check_num(num, Some(SPLIT)), Err(RingError::Num(num)));
            assert_eq!(check_num(num, Some(PACKED)), Ok(()));
            assert_eq!(check_num(num, None), Ok(()));
        }
        for num in [0, 32769, 65536, 0x1_0100, u32::MAX] {
            for features in [None, Some(SPLIT), Some(PACKED)] {
                assert_eq!(check_num(num, features), Err(RingError::Num(num)));
            }
        }
    }

    #[test]
    fn areas_are_aligned_and_end() {
        let good = VringAddr { descriptors: 0x1000, available: 0x2000, used: 0x3000, ..VringAddr::default() };
        for features in [SPLIT, PACKED] {
            assert_eq!(check_addr(&good, 256, features), Ok(()));
            for off in 1..16 {
                let addr = VringAddr { descriptors: 0x1000 + off, ..good };
                assert!(matches!(check_addr(&addr, 256, features), Err(RingError::Unaligned { .. })));
            }
            let used = VringAddr { used: 0x3002, ..good };
            assert!(matches!(check_addr(&used, 256, features), Err(RingError::Unaligned { align: 4, .. })));
            assert_eq!(check_addr(&VringAddr { flags: 1, ..good }, 256, features), Ok(()));
            assert_eq!(check_addr(&VringAddr { flags: 3, ..good }, 256, features), Err(RingError::Flags(3)));
        }
        let two = VringAddr { available: 0x2002, ..good };
        assert_eq!(check_addr(&two, 256, SPLIT), Ok(()));
        assert!(check_addr(&two, 256, PACKED).is_err());
        // The last descriptor ends with the address space, or one descriptor later.
        let last = VringAddr { descriptors: 0u64.wrapping_sub(4096 + 16), ..good };
        assert_eq!(check_addr(&last, 256, SPLIT), Ok(()));
        assert!(matches!(check_addr(&last, 512, SPLIT), Err(RingError::Wraps { len: 8192, .. })));
        let top = VringAddr { used: u64::MAX - 3, ..good };
        assert!(matches!(check_addr(&top, 1, PACKED), Err(RingError::Wraps { len: 4, .. })));
    }

    #[test]
    fn bases() {
        let split = |base| check_base(base, 256, SPLIT);
        assert_eq!(split(0xffff), Ok(0xffff), "free running");
        assert!(split(0x1_0000).is_err());
        let packed = |base| check_base(base, 256, PACKED);
        assert_eq!(packed(0x8000_8000), Ok(0x8000_8000));
        assert_eq!(packed(0x0000_8000), Ok(0x8000_8000), "the used half left out");
        assert_eq!(packed(0x8005_0007), Ok(0x8005_0007));
        assert_eq!(packed(0x80ff_00ff), Ok(0x80ff_00ff));
        assert!(packed(0x8000_8100).is_err());
        assert!(packed(0x8100_8000).is_err());
    }
}
