//! The control side of a guest's IOMMU: what the front-end has told of it, for all rings of a port, and the
//! rings that wait until their areas are known.

use std::collections::BTreeSet;
use std::sync::Arc;

use hugepages::{Region, Table};

use crate::spec::vhost_user::IotlbMsg;
use crate::spec::vhost_user::iotlb::{READ, WRITE};
use crate::spec::virtio as v;
use crate::vhost::{Ask, HostError, RingSetup};
use crate::vring::iotlb::{Entry, Iotlb, Miss, PAGE, Want};

/// What may wait to be asked; a front-end can take back and again what it told, and listen to nothing.
pub(super) const MAX_ASKS: usize = 4096;

/// What is known of a guest's IOMMU.
#[derive(Default)]
pub(super) struct Iommu {
    pub(super) tlb: Iotlb,
    /// Asked for and not answered yet, by rings and for them. What is taken back meanwhile is not asked for
    /// again: the answer is still to come, and a guest may have given the address up when the second is asked.
    asked: BTreeSet<(u64, u8)>,
    asks: Vec<Ask>,
}

/// The range of an IOTLB message, its first and its last address. Of size 0: to the end of all addresses, as
/// QEMU and the kernel have it, which cannot say so otherwise.
pub(super) fn range(entry: &IotlbMsg) -> (u64, u64) {
    let last = entry.iova.checked_add(entry.size.wrapping_sub(1));
    (entry.iova, last.unwrap_or(u64::MAX))
}

/// The translation that an `UPDATE` tells, over this memory.
pub(super) fn entry(entry: &IotlbMsg, memory: Option<&Table>) -> Result<Entry, HostError> {
    let &IotlbMsg { iova, size, user, perm, .. } = entry;
    let wrong = |what| HostError::Translation { iova, size, what };
    if size == 0 || (iova | size | user) % PAGE != 0 {
        return Err(wrong("it is empty, or not of whole pages"));
    }
    let last = iova.checked_add(size - 1).ok_or(wrong("it goes past the last address"))?;
    if perm & !(READ | WRITE) != 0 || perm == 0 {
        return Err(wrong("its permissions are none of read and write"));
    }
    let nowhere = wrong("it is not in one region of the guest's memory");
    let Some((memory, gpa)) = memory.and_then(|memory| Some((memory, memory.gpa_of(user)?))) else {
        return Err(nowhere);
    };
    if memory.contiguous(gpa) < size {
        return Err(nowhere);
    }
    Ok(Entry { first: iova, last, gpa, perm })
}

/// The areas of a ring: first address, bytes, and how they are accessed.
fn areas(setup: &RingSetup) -> [(u64, u64, u8); 3] {
    let (addr, n) = (&setup.addr, u64::from(setup.num));
    if setup.features & v::F_RING_PACKED != 0 {
        [(addr.descriptors, 16 * n, READ | WRITE), (addr.available, 4, READ), (addr.used, 4, WRITE)]
    } else {
        [(addr.descriptors, 16 * n, READ), (addr.available, 6 + 2 * n, READ), (addr.used, 6 + 8 * n, WRITE)]
    }
}

/// Whether a range touches an area of a ring.
pub(super) fn touches(setup: &RingSetup, (first, last): (u64, u64)) -> bool {
    areas(setup).iter().any(|&(at, len, _)| at <= last && at + (len - 1) >= first)
}

impl Iommu {
    /// Nothing is known any more.
    pub(super) fn clear(&mut self) {
        *self = Iommu::default();
    }

    /// A range is there.
    pub(super) fn add(&mut self, entry: Entry) {
        self.tlb.insert(entry);
        self.asked.retain(|(iova, _)| !(entry.first..=entry.last).contains(iova));
    }

    /// A range is nowhere.
    pub(super) fn remove(&mut self, (first, last): (u64, u64)) {
        self.tlb.remove(first, last);
    }

    /// The front-end refused to translate that.
    pub(super) fn refused(&mut self, miss: Miss) {
        self.asked.remove(&(miss.iova, miss.perm));
    }

    /// What a ring says; the translation that it wants, if that is known by now. A guest may give an address up
    /// as soon as the ring has used what was told before: to ask once more would be to ask for what is nowhere.
    pub(super) fn want(&mut self, want: Want) -> Option<Entry> {
        match want {
            Want::Translation(miss) => {
                let known = self.tlb.entry(miss.iova, miss.perm);
                if known.is_none() {
                    self.ask(miss);
                }
                return known;
            }
            Want::Denied(Miss { iova, perm }) if self.asks.len() < MAX_ASKS => {
                self.asks.push(Ask::AccessFail { iova, perm });
            }
            Want::Denied(_) => {}
        }
        None
    }

    fn ask(&mut self, Miss { iova, perm }: Miss) {
        if self.asked.len() >= MAX_ASKS {
            // Of a front-end that does not say what it refuses.
            self.asked.clear();
        }
        if self.asks.len() < MAX_ASKS && self.asked.insert((iova, perm)) {
            self.asks.push(Ask::Miss { iova, perm });
        }
    }

    /// What the front-end is to be asked.
    pub(super) fn asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// The areas of a ring by I/O addresses; `None`: some of it is not known yet, and was asked for.
    pub(super) fn areas(&mut self, setup: &RingSetup, memory: &Table) -> Option<Arc<Table>> {
        let mut regions: Vec<Region> = Vec::new();
        let mut known = true;
        let mut pages = BTreeSet::new();
        for (at, len, perm) in areas(setup) {
            let mut page = at & !(PAGE - 1);
            loop {
                if self.tlb.find(page, perm).is_some() {
                    pages.insert(page);
                } else {
                    known = false;
                    self.ask(Miss { iova: page, perm });
                }
                match page.checked_add(PAGE) {
                    Some(next) if next <= at + (len - 1) => page = next,
                    _ => break,
                }
            }
        }
        for page in pages.into_iter().filter(|_| known) {
            let (gpa, _) = self.tlb.find(page, 0)?;
            let region = memory.regions().iter().find(|r| gpa >= r.gpa && gpa - r.gpa < r.len)?;
            let off = gpa - region.gpa;
            let next = Region {
                gpa: page,
                len: PAGE,
                user: region.user + off,
                map: Arc::clone(&region.map),
                at: region.at + off as usize,
            };
            match regions.last_mut().filter(|last| goes_on(last, &next)) {
                Some(last) => last.len += PAGE,
                None => regions.push(next),
            }
        }
        known.then(|| Arc::new(Table::new(regions).expect("whole pages of memory, in order")))
    }
}

fn goes_on(last: &Region, next: &Region) -> bool {
    last.gpa + last.len == next.gpa
        && last.user + last.len == next.user
        && Arc::ptr_eq(&last.map, &next.map)
        && last.at as u64 + last.len == next.at as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::vhost_user::VringAddr;
    use crate::vhost::Signals;

    fn setup(at: u64, num: u16, features: u64) -> RingSetup {
        let addr = VringAddr {
            descriptors: at,
            available: at + 0x10_0000,
            used: at + 0x20_0000,
            ..VringAddr::default()
        };
        RingSetup { index: 0, features, num, addr, base: 0, signals: Signals::default() }
    }

    fn message(iova: u64, size: u64, perm: u8) -> IotlbMsg {
        IotlbMsg { iova, size, perm, ..IotlbMsg::default() }
    }

    #[test]
    fn odd_translations_are_refused() {
        for (iova, size, perm) in [
            (0, 0, 1),
            (1, PAGE, 1),
            (0, 1, 1),
            (0, PAGE, 0),
            (0, PAGE, 4),
            (0u64.wrapping_sub(PAGE), 2 * PAGE, 1),
            (0, PAGE, 1),
        ] {
            let refused = entry(&message(iova, size, perm), None);
            assert!(matches!(refused, Err(HostError::Translation { .. })), "{iova:#x} {size:#x} {perm}");
        }
    }

    #[test]
    fn a_range_without_a_size_has_no_end() {
        assert_eq!(range(&message(0, 0, 0)), (0, u64::MAX));
        assert_eq!(range(&message(PAGE, PAGE, 0)), (PAGE, 2 * PAGE - 1));
        assert_eq!(range(&message(2 * PAGE, u64::MAX, 0)), (2 * PAGE, u64::MAX));
        let ring = setup(0x1000, 256, 0);
        assert!(touches(&ring, (0x1fff, 0x1fff)) && !touches(&ring, (0x2000, 0x10_0fff)));
        assert!(touches(&ring, (0x20_1000 + 6 + 8 * 256 - 1, u64::MAX)));
        assert!(!touches(&ring, (0x20_1000 + 6 + 8 * 256, u64::MAX)));
    }

    #[test]
    fn a_front_end_that_takes_back_again_and_again_makes_nothing_grow() {
        let mut iommu = Iommu::default();
        let memory = Table::new(Vec::new()).unwrap();
        for features in [0, v::F_RING_PACKED] {
            let ring = setup(0x1000, 4096, features);
            for i in 0..5000 {
                assert!(iommu.areas(&ring, &memory).is_none());
                iommu.remove((0, u64::MAX));
                iommu.want(Want::Translation(Miss { iova: i * PAGE, perm: READ }));
                assert!(iommu.asked.len() <= MAX_ASKS && iommu.asks.len() <= MAX_ASKS);
            }
        }
        iommu.clear();
        assert!(iommu.areas(&setup(0x1000, 256, 0), &memory).is_none());
        // Pages of descriptors, of the available ring, of the used ring; each once.
        let asks = iommu.asks();
        let miss = |iova, perm| Ask::Miss { iova, perm };
        assert_eq!(asks, [miss(0x1000, READ), miss(0x10_1000, READ), miss(0x20_1000, WRITE)]);
        assert!(iommu.areas(&setup(0x1000, 256, 0), &memory).is_none() && iommu.asks().is_empty());
    }
}
