//! What front-ends ask of a vhost port, carried out: guest memory is mapped, rings are opened over it
//! and handed to the queues through their doors.

mod commanded;
mod host;
mod logging;
mod patience;
mod translated;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use commanded::Desk;
use hugepages::map::{Backing, PageSize};
use hugepages::{DirtyLog, Map, MissingPages, OutOfRange, Region, Table, Words};
use logging::{Logging, Records, covers};
use patience::{LEAST_PATIENCE, Patience};
#[cfg(test)]
pub(super) use patience::{PATIENCE, PATIENCE_PERIOD};
use tracing::debug;

use super::attendant::Attendant;
use super::commands::Commands;
use super::door::{Caller, Door, Side, Stuck};
use super::herald::Herald;
use super::iommu::{self, Iommu};
use super::mail::Office;
use super::queue::{Events, Ring};
use super::state;
use crate::batch::Batch;
use crate::spec::net;
use crate::spec::vhost_user::{InflightArea, IotlbMsg, LogArea, MemRegion, VRING_F_LOG, VringAddr};
use crate::spec::virtio as v;
use crate::sys::eventfd::EventFd;
use crate::vhost::lines::{Lines, say};
use crate::vhost::{Ask, Files, Host, HostError, RingSetup, Signals};
use crate::vring::iotlb::{Change, Entry, Miss, Want};
use crate::vring::log::Target;
use crate::vring::record;
use crate::vring::{AnyVring, RingLayout, Vring, Way};

/// Where a ring is, as far as the control side knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With no queue.
    Home,
    /// With its queue.
    Running,
    /// With its queue, which was asked for it in vain.
    Late,
    /// With no queue, until it is known where its areas are.
    Waiting,
}

/// The control side of one port, owned by the control thread.
pub(super) struct Control {
    /// Port and socket, for the log.
    name: String,
    doors: Arc<[Door]>,
    office: Office,
    caller: Arc<Caller>,
    up: Arc<AtomicBool>,
    mapped: bool,
    iommu: Iommu,
    missing: Option<MissingPages>,
    /// By ring: what it was started with, if it uses addresses of the guest's IOMMU.
    translated: Vec<Option<RingSetup>>,
    table: Option<Arc<Table>>,
    rings: Vec<Place>,
    logging: Logging,
    records: Option<Records>,
    patience: Patience,
    /// About changes, and about what went wrong: neither can hide the other.
    changes: Lines,
    lines: Lines,
    /// The device's own address, and whether that is its guest's, too: front-ends may have given it another.
    mac: [u8; 6],
    named: bool,
    /// What the guest has asked for through its control queue.
    commands: Commands,
    /// What the guest is to be told has changed, and the front-end was not.
    config_changed: bool,
    /// That queue.
    desk: Desk,
}

/// virtio 1.3 §5.1.2: receiveq1, transmitq1, receiveq2, ... as the guest sees them.
fn side(ring: u16) -> Side {
    if ring.is_multiple_of(2) { Side::ToGuest } else { Side::FromGuest }
}

impl Control {
    pub(super) fn new(
        name: String,
        (doors, office): (Arc<[Door]>, Office),
        caller: Arc<Caller>,
        up: Arc<AtomicBool>,
        mapped: bool,
        (mac, named): ([u8; 6], bool),
    ) -> Control {
        let rings = vec![Place::Home; doors.len() * 2];
        let translated = vec![None; rings.len()];
        let commands = Commands::new(0, doors.len() as u16, mac);
        Control {
            name,
            doors,
            office,
            caller,
            up,
            mapped,
            iommu: Iommu::default(),
            missing: None,
            translated,
            table: None,
            rings,
            logging: Logging::default(),
            records: None,
            patience: Patience::default(),
            changes: Lines::default(),
            lines: Lines::default(),
            mac,
            named,
            commands,
            config_changed: false,
            desk: Desk::default(),
        }
    }

    fn door(&self, ring: u16) -> &Door {
        &self.doors[usize::from(ring / 2)]
    }

    /// Port, socket, queue and direction as the port sees it.
    fn ring_name(&self, ring: u16) -> String {
        let way = match side(ring) {
            Side::FromGuest => "rx",
            Side::ToGuest => "tx",
        };
        format!("{} {way} queue {}", self.name, ring / 2)
    }

    fn regions(&self) -> Vec<Region> {
        self.table.as_ref().map_or_else(Vec::new, |table| table.regions().to_vec())
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), HostError> {
        let table = Table::new(regions).map_err(|e| HostError::Table(e.into()))?;
        if let Some(log) = self.logging.base.as_ref().filter(|_| self.logging.on) {
            covers(log, &table)?;
        }
        self.table = Some(Arc::new(table));
        // Rings ask again for what they need.
        self.iommu.clear();
        Ok(())
    }

    fn map_region(&self, region: &MemRegion, file: OwnedFd) -> Result<Region, HostError> {
        let MemRegion { guest, size, user, offset } = *region;
        let (map, at) = Map::file(file, offset, size).map_err(|source| HostError::Memory {
            guest,
            size,
            source: source.into(),
        })?;
        debug!("{}: {size:#x} bytes at guest address {guest:#x}, pages of {:#x}", self.name, map.page());
        Ok(Region { gpa: guest, len: size, user, map: Arc::new(map), at })
    }

    /// Opens a ring; `None`: it is not known yet where its areas are.
    fn open(&mut self, setup: &RingSetup, way: Way) -> Result<Option<AnyVring>, OutOfRange> {
        if setup.features & v::F_ACCESS_PLATFORM != 0 {
            return self.open_translated(setup, way);
        }
        let nowhere = |user| OutOfRange { gpa: user, len: 1 };
        let table = self.table.as_ref().ok_or(nowhere(setup.addr.descriptors))?;
        let gpa = |user| table.gpa_of(user).ok_or(nowhere(user));
        let layout = layout(setup, way, gpa)?;
        let open = if self.mapped {
            AnyVring::open(&layout, table)
        } else if setup.features & v::F_RING_PACKED != 0 {
            Vring::open(&layout, table).map(AnyVring::PackedChecked)
        } else {
            Vring::open(&layout, table).map(AnyVring::SplitChecked)
        };
        open.map(Some)
    }

    /// Opens a ring and gives it to its queue, unless it has to wait.
    fn run(&mut self, setup: RingSetup) -> Result<(), HostError> {
        let index = setup.index;
        let Some(mut ring) = self.ring(&setup, false)? else {
            self.rings[usize::from(index)] = Place::Waiting;
            return Ok(());
        };
        if self.commands.steers() {
            self.office.open().map_err(HostError::Files)?;
        }
        ring.obey(self.commands.orders(index));
        self.door(index).give(side(index), ring);
        self.rings[usize::from(index)] = Place::Running;
        self.set_link();
        Ok(())
    }

    /// Where a ring is; the control queue, if that is not one of a door.
    fn place(&self, ring: u16) -> Place {
        self.rings.get(usize::from(ring)).copied().unwrap_or(Place::Home)
    }

    /// Asks for a ring. One that comes is at home, whatever it was before.
    fn take(&mut self, ring: u16, patience: &mut Duration) -> Result<Ring, HostError> {
        let home = self.door(ring).take(side(ring), patience);
        self.rings[usize::from(ring)] = if home.is_ok() { Place::Home } else { Place::Late };
        home.map_err(late)
    }

    /// How long may be waited for these rings, all together. One that was waited for in vain before has no more
    /// than is left.
    fn patience(&mut self, mut rings: impl Iterator<Item = u16>) -> Duration {
        let runs = rings.any(|ring| self.place(ring) == Place::Running);
        self.patience.left(Instant::now()).max(if runs { LEAST_PATIENCE } else { Duration::ZERO })
    }

    /// Makes a ring of what a front-end has said of it; `None`: it is not known yet where its areas are.
    /// `commanded`: it is the control queue.
    fn ring(&mut self, setup: &RingSetup, commanded: bool) -> Result<Option<Ring>, HostError> {
        let index = setup.index;
        let (name, way) = match (commanded, side(index)) {
            (true, _) => (format!("{} control queue", self.name), Way::Both),
            (false, Side::FromGuest) => (self.ring_name(index), Way::FromDriver),
            (false, Side::ToGuest) => (self.ring_name(index), Way::ToDriver),
        };
        let events = events(&setup.signals)?;
        let open = self.open(setup, way).map_err(|e| {
            if let Some(err) = &events.err {
                err.signal();
            }
            HostError::Ring(format!("{name}: {e} (a ring area, in the front-end's addresses)").into())
        })?;
        let Some(mut ring) = open else {
            debug!("{name}: waits until it is known where its areas are");
            return Ok(None);
        };
        let packed = setup.features & v::F_RING_PACKED != 0;
        let layout = if packed { "packed" } else { "split" };
        let access = if ring.mapped() { "mapped" } else { "checked" };
        debug!("{name}: starts, {layout}, {access}, {} entries, at {:#x}", setup.num, setup.base);
        self.set_used_log(index, &setup.addr);
        if let Some(area) = self.records.as_ref().and_then(|records| records.area(index, packed)) {
            ring.record(&area).map_err(|e| HostError::Record(e.into()))?;
        } else if let Some(place) = ring.find_place() {
            say!(
                self.lines,
                info,
                "{name}: the front-end has it begin anew; it goes on at {place:#x}, where it stands"
            );
        }
        ring.log(self.logging.target(index), &Batch::default());
        Ok(Some(Ring::new(ring, setup.features, events, name)))
    }

    /// Tells a ring that is with its queue where a range of I/O addresses is.
    fn tell(&self, ring: u16, entry: Entry) {
        let at = usize::from(ring);
        let out = matches!(self.rings[at], Place::Running | Place::Late);
        if out && self.translated[at].is_some() {
            self.door(ring).change(side(ring), Change::Add(entry));
        }
    }

    /// Takes what rings want of the guest's IOMMU, and tells them what is known.
    fn hear(&mut self) {
        for pair in 0..self.doors.len() as u16 {
            for want in self.door(2 * pair).wants() {
                if let Some(entry) = self.iommu.want(want) {
                    self.tell(2 * pair, entry);
                    self.tell(2 * pair + 1, entry);
                }
            }
        }
    }

    /// Has a packet received that says where this address is.
    fn herald(&mut self, mac: [u8; 6]) {
        match Herald::new(mac) {
            Ok(herald) => self.doors[0].announce(herald),
            Err(e) => say!(self.lines, warn, "{}: the guest's new place is not announced: {e}", self.name),
        }
    }

    /// Spec "Ring states" and DPDK's practice: the link is up when packets can pass both ways.
    fn set_link(&mut self) {
        let runs = |place: &Place| matches!(place, Place::Running | Place::Waiting);
        let up = self.rings.chunks_exact(2).any(|pair| pair.iter().all(runs));
        // Relaxed: nothing is read on the strength of it.
        if self.up.swap(up, Ordering::Relaxed) != up {
            say!(self.changes, info, "{}: link {}", self.name, if up { "up" } else { "down" });
        }
    }
}

fn late(Stuck { waited_ms, lent }: Stuck) -> HostError {
    HostError::Late { waited_ms: waited_ms as u64, lent }
}

/// Where a ring lies, its addresses translated by `at`.
fn layout(
    setup: &RingSetup,
    way: Way,
    at: impl Fn(u64) -> Result<u64, OutOfRange>,
) -> Result<RingLayout, OutOfRange> {
    Ok(RingLayout {
        size: setup.num,
        desc: at(setup.addr.descriptors)?,
        driver: at(setup.addr.available)?,
        device: at(setup.addr.used)?,
        features: setup.features,
        base: setup.base,
        way,
    })
}

pub(super) fn events(signals: &Signals) -> Result<Events, HostError> {
    let adopt = |what: &str, fd: &Option<Arc<OwnedFd>>, how: fn(Arc<OwnedFd>) -> _| {
        let adopted = fd.clone().map(how).transpose();
        adopted.map_err(|e: std::io::Error| HostError::Ring(format!("{what} descriptor: {e}").into()))
    };
    let Signals { kick, call, err } = signals;
    let kick = adopt("kick", kick, EventFd::adopt)?;
    let call = adopt("call", call, EventFd::adopt_call)?;
    Ok(Events { kick, call, err: adopt("error", err, EventFd::adopt_call)? })
}
