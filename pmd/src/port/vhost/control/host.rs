//! What front-ends ask for, one by one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use tracing::debug;

use super::*;

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
