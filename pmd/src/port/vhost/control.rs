//! What front-ends ask of a vhost port, carried out: guest memory is mapped, rings are opened over it
//! and handed to the queues through their doors.

mod commanded;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use commanded::Desk;
use hugepages::map::{Backing, PageSize};
use hugepages::{DirtyLog, Map, MissingPages, OutOfRange, Region, Table, Words};
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

/// How long one message may wait for rings to come home, all of them together; and how long all messages of
/// a port may wait in vain in [`PATIENCE_PERIOD`], since other ports wait with them.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A port that has used up its patience gets it back after so long.
pub(super) const PATIENCE_PERIOD: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 20 });

/// How long a message waits at the least for a ring that runs, whatever messages before it waited in vain: those
/// may have been another front-end's. Longer than packets are parked: what an `INVALIDATE` is refused for may be
/// accessed after all.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

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

/// What is left of a port's patience.
#[derive(Debug, Default)]
struct Patience {
    since: Option<Instant>,
    spent: Duration,
}

impl Patience {
    /// How long may be waited at `now`.
    fn left(&mut self, now: Instant) -> Duration {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PATIENCE_PERIOD) {
            *self = Patience { since: Some(now), spent: Duration::ZERO };
        }
        PATIENCE.saturating_sub(self.spent)
    }

    /// It was waited so long in vain.
    fn spend(&mut self, waited: Duration) {
        self.spent += waited;
    }
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

/// Where rings keep what is in flight.
struct Records {
    table: Arc<Table>,
    /// First byte of the area in there.
    at: u64,
    area: InflightArea,
}

impl Records {
    /// The part of a ring.
    fn area(&self, ring: u16, packed: bool) -> Option<record::Area> {
        let len = record::bytes(packed, self.area.num);
        let at = len * u64::from(ring);
        let inside = ring < self.area.rings && at + len <= self.area.size;
        inside.then(|| record::Area { table: Arc::clone(&self.table), at: self.at + at, len })
    }
}

/// What a front-end has said about logging.
#[derive(Default)]
struct Logging {
    base: Option<Arc<DirtyLog>>,
    area: LogArea,
    signal: Option<Arc<OwnedFd>>,
    on: bool,
    /// By ring: guest address under which its used elements are logged.
    used: Vec<Option<u64>>,
}

impl Logging {
    /// Where a ring is to log.
    fn target(&self, ring: u16) -> Option<Target> {
        let log = self.base.clone().filter(|_| self.on)?;
        let used = self.used.get(usize::from(ring)).copied().flatten();
        Some(Target { log, used, signal: self.signal.clone() })
    }
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

    fn open_translated(&mut self, setup: &RingSetup, way: Way) -> Result<Option<AnyVring>, OutOfRange> {
        let Some(memory) = &self.table else { return Ok(None) };
        let Some(areas) = self.iommu.areas(setup, memory) else { return Ok(None) };
        let layout = layout(setup, way, Ok)?;
        AnyVring::open_translated(&layout, &areas, memory, &self.iommu.tlb, self.mapped).map(Some)
    }

    /// Starts rings that wait until it is known where their areas are, if it is.
    fn start_waiting(&mut self) {
        self.start_waiting_commands();
        for ring in 0..self.rings.len() {
            if self.rings[ring] == Place::Late && self.translated[ring].is_some() {
                // Late for an `INVALIDATE`; it may have come since.
                let _ = self.take_waiting(ring as u16, &mut Duration::default());
            }
            if self.rings[ring] == Place::Waiting
                && let Some(setup) = self.translated[ring].clone()
                && let Err(why) = self.run(setup)
            {
                debug!("{why}");
            }
        }
    }

    /// Takes rings home that have an area there, until it is known again where it is; then as
    /// [`Host::invalidate`].
    fn forget(&mut self, range: (u64, u64)) -> Result<(), HostError> {
        // A guest takes back thousands of addresses a second, and each waits for a turn of a core: only waits
        // in vain count against what other ports bear.
        let patience = self.patience.left(Instant::now()).max(LEAST_PATIENCE);
        let mut left = patience;
        let rings = 0..self.rings.len() as u16;
        let running = |control: &Control, ring: u16| {
            let at = usize::from(ring);
            let out = matches!(control.rings[at], Place::Running | Place::Late);
            control.translated[at].as_ref().filter(|_| out).map(|setup| iommu::touches(setup, range))
        };
        let rings: Vec<_> = rings.filter_map(|ring| Some((ring, running(self, ring)?))).collect();
        for &(ring, touched) in &rings {
            self.door(ring).leave(side(ring), range);
            if touched {
                self.door(ring).away(side(ring));
                // Asked here, waited for below.
                let _ = self.take_waiting(ring, &mut Duration::default());
            }
        }
        let mut all = Ok(());
        for (ring, touched) in rings {
            let gone = self.door(ring).left(side(ring), &mut left).map_err(late);
            let home = if touched && self.rings[usize::from(ring)] != Place::Waiting {
                self.take_waiting(ring, &mut left)
            } else {
                Ok(())
            };
            all = all.and(gone).and(home);
        }
        if all.is_err() {
            self.patience.spend(patience - left);
        }
        all
    }

    /// Takes a ring that is to go on when its areas are known again.
    fn take_waiting(&mut self, ring: u16, patience: &mut Duration) -> Result<(), HostError> {
        let home = self.take(ring, patience)?;
        if let Some(setup) = &mut self.translated[usize::from(ring)] {
            setup.base = home.ring.base();
        }
        self.rings[usize::from(ring)] = Place::Waiting;
        Ok(())
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

    fn set_used_log(&mut self, ring: u16, addr: &VringAddr) {
        self.logging.used.resize(self.rings.len() + 1, None);
        self.logging.used[usize::from(ring)] = (addr.flags & VRING_F_LOG != 0).then_some(addr.log);
    }

    /// How long may be waited for these rings, all together. One that was waited for in vain before has no more
    /// than is left.
    fn patience(&mut self, mut rings: impl Iterator<Item = u16>) -> Duration {
        let runs = rings.any(|ring| self.place(ring) == Place::Running);
        self.patience.left(Instant::now()).max(if runs { LEAST_PATIENCE } else { Duration::ZERO })
    }

    /// Tells rings where to log and waits until they do.
    fn log(&mut self, rings: impl Iterator<Item = u16>) -> Result<(), HostError> {
        let away = |ring: &u16| matches!(self.rings[usize::from(*ring)], Place::Running | Place::Late);
        let out: Vec<u16> = rings.filter(away).collect();
        for &ring in &out {
            self.door(ring).log(side(ring), self.logging.target(ring));
        }
        let mut all = Ok(());
        let patience = self.patience(out.iter().copied());
        let mut left = patience;
        for ring in out {
            if let Err(stuck) = self.door(ring).logs(side(ring), &mut left) {
                all = Err(late(stuck));
            }
        }
        if all.is_err() {
            self.patience.spend(patience - left);
        }
        all
    }

    fn log_everywhere(&mut self) -> Result<(), HostError> {
        self.desk.log(&self.logging);
        self.log(0..self.rings.len() as u16)
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

/// Spec "Migration": the log covers all memory.
fn covers(log: &DirtyLog, table: &Table) -> Result<(), HostError> {
    let end = table.regions().last().map_or(0, |last| last.gpa + last.len);
    if end <= log.end() {
        return Ok(());
    }
    let what = format!("it ends at guest address {:#x}, memory at {end:#x}", log.end());
    Err(HostError::Log(what.into()))
}

impl Host for Control {
    fn damage(&mut self) -> Option<HostError> {
        let table = |table: &Arc<Table>| table.damage();
        let memory = self.table.as_ref().and_then(table);
        let memory = memory.map(|(at, damage)| (format!("memory at guest address {at:#x}"), damage));
        let log = || Some(("dirty log".to_owned(), self.logging.base.as_ref()?.damage()?));
        let record = || Some(("in-flight record".to_owned(), table(&self.records.as_ref()?.table)?.1));
        memory.or_else(log).or_else(record).map(|(what, damage)| HostError::Damaged { what, damage })
    }

    fn disconnected(&mut self) {
        self.iommu.clear();
        self.missing = None;
        self.table = None;
        self.logging = Logging::default();
        self.records = None;
        self.desk.clear();
        self.forget_commands(0);
    }

    fn map(&mut self, regions: Vec<(MemRegion, OwnedFd)>) -> Result<(), HostError> {
        let map = |(region, file): (MemRegion, OwnedFd)| self.map_region(&region, file);
        let regions = regions.into_iter().map(map).collect::<Result<_, _>>()?;
        self.set_memory(regions)
    }

    fn add(&mut self, region: MemRegion, file: OwnedFd) -> Result<(), HostError> {
        let mut regions = self.regions();
        regions.push(self.map_region(&region, file)?);
        self.set_memory(regions)
    }

    fn remove(&mut self, region: &MemRegion) {
        let mut regions = self.regions();
        regions.retain(|r| r.gpa != region.guest);
        self.set_memory(regions).expect("fewer regions than made a table before");
    }

    fn start(&mut self, setup: RingSetup) -> Result<(), HostError> {
        let index = setup.index;
        // virtio 1.3 §5.1.2: with MQ or RSS the control queue comes after all pairs, otherwise after the first.
        let commanded = setup.features & net::F_CTRL_VQ != 0;
        let many = setup.features & (net::F_MQ | net::F_RSS) != 0;
        let control = if many { self.rings.len() as u16 } else { 2 };
        if commanded && index == control {
            return self.start_commands(setup);
        }
        if usize::from(index) >= self.rings.len() {
            return Err(HostError::Ring(
                format!("{}: ring {index} would be a control queue", self.name).into(),
            ));
        }
        if self.rings[usize::from(index)] == Place::Late {
            // The front-end has it begin anew after it was told that the ring did not come: it may come now.
            let patience = self.patience(std::iter::once(index));
            let mut left = patience;
            let home = self.take(index, &mut left);
            if home.is_err() {
                self.patience.spend(patience - left);
            }
            drop(home?);
        }
        let translated = setup.features & v::F_ACCESS_PLATFORM != 0;
        self.translated[usize::from(index)] = translated.then(|| setup.clone());
        if !self.commands.of(setup.features) {
            self.forget_commands(setup.features);
        }
        self.run(setup)
    }

    fn stop(&mut self, rings: &[u16]) -> Vec<Result<u32, HostError>> {
        let patience = self.patience(rings.iter().copied());
        let mut left = patience;
        // All are asked before any is waited for: their cores answer at the same time. Those from the
        // guest first, so that what it sends to itself still arrives.
        let mut asked: Vec<_> = rings.iter().map(|_| None).collect();
        for from in [Side::FromGuest, Side::ToGuest] {
            for (&ring, home) in rings.iter().zip(&mut asked).filter(|(ring, _)| side(**ring) == from) {
                if !self.desk.is(ring) && self.place(ring) != Place::Waiting {
                    *home = self.take(ring, &mut Duration::default()).ok();
                }
            }
        }
        let mut bases = Vec::with_capacity(rings.len());
        for (&ring, home) in rings.iter().zip(asked) {
            if self.desk.is(ring) {
                bases.push(Ok(self.desk.stop()));
                continue;
            }
            let translated = self.translated.get_mut(usize::from(ring)).and_then(Option::take);
            if let (Place::Waiting, Some(setup)) = (self.place(ring), translated) {
                self.rings[usize::from(ring)] = Place::Home;
                bases.push(Ok(setup.base));
                continue;
            }
            let home = home.map_or_else(|| self.take(ring, &mut left), Ok);
            match &home {
                Ok(home) => debug!("{}: stopped at {:#x}", home.name, home.ring.base()),
                Err(late) => say!(self.lines, warn, "{}: {late}", self.ring_name(ring)),
            }
            bases.push(home.map(|home| home.ring.base()));
        }
        if bases.iter().any(Result::is_err) {
            self.patience.spend(patience - left);
        }
        // A front-end whose device is stopped tells no more what is nowhere.
        if !self.rings.iter().any(|place| matches!(place, Place::Running | Place::Waiting))
            && self.desk.idle()
        {
            self.iommu.clear();
        }
        self.set_link();
        bases
    }

    fn signals(&mut self, ring: u16, signals: &Signals) -> Result<(), HostError> {
        if self.desk.is(ring) {
            return self.desk.rewire(signals);
        }
        if let Some(setup) = &mut self.translated[usize::from(ring)] {
            setup.signals = signals.clone();
        }
        if self.rings[usize::from(ring)] == Place::Waiting {
            return events(signals).map(drop);
        }
        self.door(ring).rewire(side(ring), events(signals)?);
        Ok(())
    }

    fn log_base(&mut self, area: LogArea, file: OwnedFd) -> Result<(), HostError> {
        let log = DirtyLog::open(file, area.offset, area.size).map_err(|e| HostError::Log(e.into()))?;
        if let Some(table) = &self.table {
            covers(&log, table)?;
        }
        say!(self.changes, info, "{}: dirty log for {:#x} bytes of guest memory", self.name, log.end());
        (self.logging.base, self.logging.area) = (Some(Arc::new(log)), area);
        self.log_everywhere()
    }

    fn log_signal(&mut self, fd: OwnedFd) -> Result<(), HostError> {
        let fd = Arc::new(fd);
        EventFd::adopt(Arc::clone(&fd)).map_err(|e| HostError::Log(e.into()))?;
        self.logging.signal = Some(fd);
        self.log_everywhere()
    }

    fn log_all(&mut self, on: bool) -> Result<(), HostError> {
        say!(
            self.lines,
            info,
            "{}: writes are logged {}",
            self.name,
            if on { "from now on" } else { "no more" }
        );
        self.logging.on = on;
        let done = self.log_everywhere();
        if !on {
            (self.logging.base, self.logging.signal) = (None, None);
        }
        done
    }

    fn log_used(&mut self, ring: u16, addr: &VringAddr) -> Result<(), HostError> {
        self.set_used_log(ring, addr);
        if self.desk.is(ring) { self.log_everywhere() } else { self.log(std::iter::once(ring)) }
    }

    fn make_records(&mut self, rings: u16, num: u16) -> Result<(u64, OwnedFd), HostError> {
        // As much as either layout needs: which one it will be may not have been said yet.
        let len = record::bytes(true, num) * u64::from(rings);
        let made = Map::shared(len as usize, Backing { page: PageSize::Base, node: None });
        let made = made.map_err(|e| HostError::Record(e.into()))?;
        let file = made.fd().try_clone_to_owned().map_err(|e| HostError::Record(e.into()))?;
        Ok((len, file))
    }

    fn set_records(&mut self, area: InflightArea, file: OwnedFd) -> Result<(), HostError> {
        let InflightArea { size: len, offset, rings, num, .. } = area;
        let wrong = |e: Box<dyn std::error::Error + Send + Sync>| HostError::Record(e);
        self.records = None;
        if !offset.is_multiple_of(8) {
            return Err(wrong(format!("its offset {offset} is not a multiple of 8").into()));
        }
        let need = record::bytes(false, num) * u64::from(rings);
        if len < need {
            return Err(wrong(format!("it has {len} bytes and needs {need}").into()));
        }
        let (map, at) = Map::file(file, offset, len).map_err(|e| wrong(e.into()))?;
        debug!("{}: records of {rings} rings of {num} entries", self.name);
        self.records = Some(Records { table: Table::of(map), at: at as u64, area });
        Ok(())
    }

    fn clear_records(&mut self) {
        self.forget_commands(0);
        let Some(Records { table, at, area }) = &self.records else { return };
        let words = table.window::<u64>(*at, (area.size / 8) as usize).expect("the area lies in its mapping");
        (0..words.len()).for_each(|i| words.set(i, 0));
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        let ring = &self.desk.attendant()?.ring;
        let kick = ring.events.kick.as_ref().filter(|_| ring.ring.fault().is_none());
        kick.map(AsFd::as_fd)
    }

    fn alarm(&self) -> Option<Instant> {
        self.desk.attendant()?.alarm()
    }

    fn attend(&mut self) {
        self.attend_commands();
    }

    fn advise_postcopy(&mut self) -> Result<OwnedFd, HostError> {
        let missing = MissingPages::new().map_err(|e| HostError::Postcopy(e.into()))?;
        let fd = missing.fd().try_clone_to_owned().map_err(|e| HostError::Postcopy(e.into()))?;
        self.missing = Some(missing);
        Ok(fd)
    }

    fn wait_for_pages(&mut self, region: &MemRegion) -> Result<u64, HostError> {
        let nothing = || HostError::Postcopy("no such region, or no descriptor was asked for".into());
        let regions = self.table.as_ref().map_or(&[][..], |table| table.regions());
        let mapped = regions.iter().find(|r| r.gpa == region.guest && r.len == region.size);
        let (mapped, missing) = mapped.zip(self.missing.as_mut()).ok_or_else(nothing)?;
        missing.wait_for(&mapped.map).map_err(|e| HostError::Postcopy(e.into()))?;
        Ok(mapped.map.address() + mapped.at as u64)
    }

    fn end_postcopy(&mut self) {
        self.missing = None;
    }

    fn translate(&mut self, update: &IotlbMsg) -> Result<(), HostError> {
        let entry = iommu::entry(update, self.table.as_deref())?;
        self.iommu.add(entry);
        (0..self.rings.len() as u16).for_each(|ring| self.tell(ring, entry));
        self.desk.change(Change::Add(entry));
        self.start_waiting();
        Ok(())
    }

    fn invalidate(&mut self, entry: &IotlbMsg) -> Result<(), HostError> {
        let range = iommu::range(entry);
        // What rings have wanted is known, or asked for, before it is known no more.
        self.hear();
        self.iommu.remove(range);
        self.desk.forget(range);
        let done = self.forget(range);
        // They ask for their areas again.
        self.start_waiting();
        done
    }

    fn save(&self) -> Vec<u8> {
        state::save(&self.commands, self.desk.stopped_at())
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), HostError> {
        let loaded = state::load(bytes, self.doors.len() as u16).map_err(|e| HostError::State(e.into()))?;
        self.commands = loaded.0;
        self.desk.load(loaded.1);
        if self.commands.steers() {
            self.office.open().map_err(HostError::Files)?;
        }
        // What is on the other side may be another network, or have forgotten where the guest is.
        self.commands.announce();
        self.config_changed = self.commands.announce;
        let address = self.commands.address();
        if !self.commands.announce && (self.named || address != self.mac) {
            self.herald(address);
        }
        Ok(())
    }

    fn files(&self) -> Result<Files, HostError> {
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(HostError::Files);
        let regions = self.table.as_ref().map_or(&[][..], |table| table.regions());
        let memory = regions.iter().map(|region| Ok((region.gpa, clone(region.map.fd())?)));
        let log = self.logging.base.as_ref().map(|log| Ok((self.logging.area, clone(log.fd())?)));
        let signal = self.logging.signal.as_ref().map(|fd| clone(fd.as_fd()));
        let records = self.records.as_ref().map(|records| {
            let file = &records.table.regions().first().expect("made of one mapping").map;
            Ok((records.area, clone(file.fd())?))
        });
        Ok(Files {
            memory: memory.collect::<Result<_, _>>()?,
            log: log.transpose()?,
            log_signal: signal.transpose()?,
            records: records.transpose()?,
        })
    }

    fn asks(&mut self) -> Vec<Ask> {
        if self.caller.called() {
            self.hear();
        }
        let mut asks = self.iommu.asks();
        // A driver whose rings do not run has nothing to announce itself by.
        if self.up.load(Ordering::Relaxed) {
            asks.extend(std::mem::take(&mut self.config_changed).then_some(Ask::ConfigChange));
        }
        asks
    }

    fn refused(&mut self, ask: Ask) {
        let (Ask::Miss { iova, perm } | Ask::AccessFail { iova, perm }) = ask else { return };
        debug!("{}: the front-end has nothing at I/O address {iova:#x} for access {perm}", self.name);
        self.iommu.refused(Miss { iova, perm });
        self.desk.change(Change::Refuse(Miss { iova, perm }));
        for ring in 0..self.rings.len() as u16 {
            if self.translated[usize::from(ring)].is_some() {
                self.door(ring).change(side(ring), Change::Refuse(Miss { iova, perm }));
            }
        }
    }

    /// virtio 1.3 §5.1.4: the address comes first, then the status.
    fn fill_config(&self, config: &mut [u8]) {
        let Some((own, [status, ..])) = config.split_first_chunk_mut::<6>() else { return };
        // Until the driver sets another, it is what the front-end has.
        if self.commands.address() != self.mac {
            *own = self.commands.address();
        }
        *status |= if self.commands.announce { net::S_ANNOUNCE as u8 } else { 0 };
    }

    fn announce(&mut self, mac: [u8; 6]) {
        // A driver that can does it once more, for what a packet of ours does not tell: its IP addresses.
        self.config_changed |= self.commands.announce();
        self.herald(mac);
    }
}
