//! Where rings log what they write, and keep what is in flight.

use super::*;

/// Where rings keep what is in flight.
pub(super) struct Records {
    pub(super) table: Arc<Table>,
    /// First byte of the area in there.
    pub(super) at: u64,
    pub(super) area: InflightArea,
}

impl Records {
    /// The part of a ring.
    pub(super) fn area(&self, ring: u16, packed: bool) -> Option<record::Area> {
        let len = record::bytes(packed, self.area.num);
        let at = len * u64::from(ring);
        let inside = ring < self.area.rings && at + len <= self.area.size;
        inside.then(|| record::Area { table: Arc::clone(&self.table), at: self.at + at, len })
    }
}

/// What a front-end has said about logging.
#[derive(Default)]
pub(super) struct Logging {
    pub(super) base: Option<Arc<DirtyLog>>,
    pub(super) area: LogArea,
    pub(super) signal: Option<Arc<OwnedFd>>,
    pub(super) on: bool,
    /// By ring: guest address under which its used elements are logged.
    used: Vec<Option<u64>>,
}

impl Logging {
    /// Where a ring is to log.
    pub(super) fn target(&self, ring: u16) -> Option<Target> {
        let log = self.base.clone().filter(|_| self.on)?;
        let used = self.used.get(usize::from(ring)).copied().flatten();
        Some(Target { log, used, signal: self.signal.clone() })
    }
}

impl Control {
    pub(super) fn set_used_log(&mut self, ring: u16, addr: &VringAddr) {
        self.logging.used.resize(self.rings.len() + 1, None);
        self.logging.used[usize::from(ring)] = (addr.flags & VRING_F_LOG != 0).then_some(addr.log);
    }

    /// Tells rings where to log and waits until they do.
    pub(super) fn log(&mut self, rings: impl Iterator<Item = u16>) -> Result<(), HostError> {
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

    pub(super) fn log_everywhere(&mut self) -> Result<(), HostError> {
        self.desk.log(&self.logging);
        self.log(0..self.rings.len() as u16)
    }
}

/// Spec "Migration": the log covers all memory.
pub(super) fn covers(log: &DirtyLog, table: &Table) -> Result<(), HostError> {
    let end = table.regions().last().map_or(0, |last| last.gpa + last.len);
    if end <= log.end() {
        return Ok(());
    }
    let what = format!("it ends at guest address {:#x}, memory at {end:#x}", log.end());
    Err(HostError::Log(what.into()))
}
