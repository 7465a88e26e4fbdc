//! Z: a device on the same core that has the target's frames read where they lie, as a NIC does, and is done
//! with them late, in any order, or never. Memory that it has stays in its reach, whatever the front-end does.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use hugepages::dma::{self, Domain};
use hugepages::{Batch, Buf, Loan};
use pmd::Queue;
use pmd::port::Counters;
use pmd::spec::vhost_user::iotlb::{INVALIDATE, READ, UPDATE, WRITE};
use pmd::spec::vhost_user::{IotlbMsg, SingleRegion, id};
use pmd::spec::virtio as v;
use pmd::vring::driver::{Desc, Raw};
use zerocopy::IntoBytes;

use crate::guest::{FORMS, GUEST, Guest, MEMORY, USER, memfd};
use crate::house::{House, eventually};

/// Frames that the device has room for.
const ROOM: usize = 256;
/// Frames that it has when something happens.
const FLYING: u16 = 16;

#[derive(Default)]
struct Inner {
    has: Vec<Buf>,
    /// How many it may be done with.
    done: usize,
    /// Which of what it has is next.
    step: usize,
    /// What an IOMMU lets it see.
    seen: Vec<(u64, u64)>,
    /// Frames that were out of its reach.
    out_of_reach: usize,
}

impl Inner {
    fn reaches(&self, buf: &Buf) -> bool {
        let (at, end) = (buf.iova(), buf.iova() + u64::from(buf.len()));
        self.seen.iter().any(|&(va, len)| at >= va && end <= va + len)
    }
}

/// The device, as test, stage and core share it.
#[derive(Clone, Default)]
pub(crate) struct Device {
    inner: Arc<Mutex<Inner>>,
    listens: Arc<AtomicBool>,
}

impl Device {
    /// Whether frames are to be sent through it.
    pub(crate) fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    /// Its only queue.
    pub(crate) fn queue(&self) -> Box<dyn Queue> {
        Box::new(DeviceQueue { device: self.clone(), counters: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn listen(&self, on: bool) {
        self.listens.store(on, Ordering::Relaxed);
    }

    fn has(&self) -> usize {
        self.lock().has.len()
    }

    /// Is done with so many, in an order of its own.
    fn finish(&self, n: usize, step: usize) {
        let mut inner = self.lock();
        (inner.done, inner.step) = (inner.done + n, step);
    }
}

impl Domain for Device {
    fn map(&self, va: u64, len: u64) -> io::Result<()> {
        self.lock().seen.push((va, len));
        Ok(())
    }

    fn unmap(&self, va: u64, len: u64) {
        let mut inner = self.lock();
        inner.seen.retain(|seen| *seen != (va, len));
        let lost = inner.has.iter().filter(|buf| !inner.reaches(buf)).count();
        inner.out_of_reach += lost;
    }
}

struct DeviceQueue {
    device: Device,
    counters: Arc<Counters>,
}

impl Queue for DeviceQueue {
    fn rx(&mut self, _: &mut Batch<Buf>) -> usize {
        0
    }

    fn tx(&mut self, batch: &mut Batch<Buf>) -> usize {
        let (mut inner, mut packets) = (self.device.lock(), 0);
        while inner.has.len() < ROOM {
            let Some(buf) = batch.pop_front() else { break };
            packets += usize::from(!buf.more());
            inner.has.push(buf);
        }
        packets
    }

    fn reap(&mut self, done: &mut Batch<Loan>) -> usize {
        let mut inner = self.device.lock();
        let inner = &mut *inner;
        // It reads what it has for as long as it has it.
        let lost = inner.has.iter().filter(|buf| !inner.reaches(buf) || buf.peek::<u8>(0).is_none()).count();
        inner.out_of_reach += lost;
        let mut n = 0;
        while inner.done > 0 && !inner.has.is_empty() && done.room() > 0 {
            let next = inner.step % inner.has.len();
            done.push(inner.has.swap_remove(next).finish(0));
            (inner.done, n) = (inner.done - 1, n + 1);
        }
        n
    }

    fn settle(&mut self, _: &mut Batch<Loan>) {}

    fn lent(&self) -> u32 {
        0
    }

    fn held(&self) -> u32 {
        self.device.has() as u32
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

/// What happens, features that it needs, and how it is done.
type Event = (&'static str, u64, fn(&mut Guest));

/// What a front-end does while a device reads its guest's frames.
const EVENTS: &[Event] = &[
    ("nothing", 0, |_| {}),
    ("its ring is stopped", 0, |guest| {
        let _ = guest.stop_ring(1);
    }),
    ("its device is reset", 0, |guest| {
        let _ = guest.front.tell(id::RESET_DEVICE, &[], &[]);
    }),
    ("its ring gets other addresses", 0, |guest| {
        let addr = guest.addr(0);
        let moved = pmd::spec::vhost_user::VringAddr { index: 1, ..addr };
        let _ = guest.front.tell(id::SET_VRING_ADDR, moved.as_bytes(), &[]);
    }),
    ("its region is removed", 0, |guest| {
        let region = SingleRegion { padding: 0, region: guest.region() };
        let _ = guest.front.tell(id::REM_MEM_REG, region.as_bytes(), &[]);
    }),
    ("its memory is replaced", 0, |guest| {
        guest.file = memfd("hostile-other", MEMORY);
        let _ = guest.set_memory();
    }),
    ("its IOMMU takes it back", v::F_ACCESS_PLATFORM, |guest| {
        let _ = guest.front.tell(id::IOTLB_MSG, iotlb(INVALIDATE).as_bytes(), &[]);
    }),
    ("it is killed", 0, |guest| drop(guest.front.0.shutdown(std::net::Shutdown::Both))),
];

fn iotlb(kind: u8) -> IotlbMsg {
    IotlbMsg { iova: GUEST, size: MEMORY, user: USER, perm: READ | WRITE, kind, ..IotlbMsg::default() }
}

/// A guest whose frames the device has.
fn flying(house: &House, device: &Device, features: u64) -> Guest {
    let mut guest = Guest::connect(&house.path, features);
    if features & v::F_ACCESS_PLATFORM != 0 {
        assert_eq!(guest.front.tell(id::IOTLB_MSG, iotlb(UPDATE).as_bytes(), &[]), Some(true));
    }
    // The ring before it may still be on its way home.
    eventually("rings", || guest.start_ring(0, guest.fresh()) == Some(true));
    eventually("rings", || guest.start_ring(1, guest.fresh()) == Some(true));
    device.listen(true);
    guest.burst(FLYING);
    eventually("the device's frames", || device.has() == usize::from(FLYING));
    guest
}

/// Z1, Z2, Z4: nothing that the device has leaves its reach before it is done; then everything comes home.
#[test]
fn z1_z2_z4_memory_stays_in_reach_until_the_device_is_done() {
    let device = Device::default();
    let house = House::with("device", |_| {}, Some(device.clone()));
    let attached = dma::attach(Arc::new(device.clone())).unwrap();
    for (name, more, act) in EVENTS {
        for (i, form) in FORMS.into_iter().enumerate() {
            let mut guest = flying(&house, &device, form | more);
            act(&mut guest);
            // It sits on them, though nobody has an interest in them any more.
            house.stands_beside(name);
            assert_eq!(device.has(), usize::from(FLYING), "{name}");
            drop(guest);
            // The next front-end is served, or told to wait; what comes for the one before is not for it.
            let mut next = Guest::connect(&house.path, form);
            let _ = next.start_ring(1, next.fresh());
            device.finish(usize::from(FLYING), i * 7);
            eventually("receipts", || device.has() == 0);
            device.listen(false);
            drop(next);
            // Its ring is home some turns later.
            eventually("the ring", || {
                let mut next = Guest::connect(&house.path, form);
                (0..2).all(|ring| next.start_ring(ring, next.fresh()) == Some(true))
            });
            house.stands(name);
            assert_eq!(device.lock().out_of_reach, 0, "{name}");
        }
    }
    house.ends("a device sat on frames");
    drop(attached);
    assert_eq!(device.lock().out_of_reach, 0);
}

/// T19: what the device reads are the rings themselves, while they change.
#[test]
fn t19_what_a_device_reads_aliases_a_ring() {
    let device = Device::default();
    let house = House::with("device-alias", |_| {}, Some(device.clone()));
    let attached = dma::attach(Arc::new(device.clone())).unwrap();
    for features in FORMS {
        let mut guest = Guest::connect(&house.path, features);
        guest.start();
        device.listen(true);
        let raw = guest.raw(1);
        let places: Vec<u64> =
            guest.areas.iter().flat_map(|areas| [areas.desc, areas.driver & !1, areas.device & !1]).collect();
        for i in 0..FLYING {
            let lap = if guest.packed() { Raw::avail_bits(true) } else { 0 };
            let addr = places[usize::from(i) % places.len()];
            raw.set_desc(i, Desc { addr, len: 1500, flags: lap, tag: i });
            if !guest.packed() {
                raw.set_avail(i, i);
                raw.set_avail_idx(i + 1);
            }
        }
        guest.kick();
        eventually("the device's frames", || device.has() == usize::from(FLYING));
        // Done in an order of its own: used elements are written into what the others read.
        for _ in 0..FLYING {
            device.finish(1, 5);
            house.stands_beside("aliases");
        }
        eventually("receipts", || device.has() == 0);
        assert!(guest.stop_ring(1).is_some());
        device.listen(false);
        drop(guest);
        house.stands("a device read rings");
    }
    house.ends("a device read rings");
    drop(attached);
    assert_eq!(device.lock().out_of_reach, 0);
}
