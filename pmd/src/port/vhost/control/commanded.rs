//! A port whose guest has its control queue here: the queue itself, and what its commands do to the rings.

use std::time::Instant;

use tracing::debug;

use super::*;
use crate::port::vhost::commands::Answer;

/// The guest's control queue.
#[derive(Default)]
pub(super) struct Desk {
    /// While it runs, and its index.
    attendant: Option<(u16, Attendant)>,
    /// What it was started with, if it uses addresses of the guest's IOMMU: with no attendant, it waits until it is
    /// known where its areas are.
    translated: Option<RingSetup>,
    /// Where it stopped when it ran last.
    stopped_at: Option<u32>,
    wants: Vec<Want>,
}

impl Desk {
    /// Whether this is the control queue that was started.
    pub(super) fn is(&self, ring: u16) -> bool {
        self.attendant.as_ref().is_some_and(|(index, _)| *index == ring)
            || self.translated.as_ref().is_some_and(|setup| setup.index == ring)
    }

    /// Whether none was started.
    pub(super) fn idle(&self) -> bool {
        self.attendant.is_none() && self.translated.is_none()
    }

    /// The queue while it runs.
    pub(super) fn attendant(&self) -> Option<&Attendant> {
        self.attendant.as_ref().map(|(_, attendant)| attendant)
    }

    /// Where it stopped when it ran last.
    pub(super) fn stopped_at(&self) -> Option<u32> {
        self.stopped_at
    }

    /// As it was when it stopped there, in another process.
    pub(super) fn load(&mut self, stopped_at: Option<u32>) {
        self.stopped_at = stopped_at;
    }

    /// Nothing is started, and the driver has asked for nothing.
    pub(super) fn clear(&mut self) {
        *self = Desk::default();
    }

    /// It stops: where it stands. To be asked only if [`Desk::is`].
    pub(super) fn stop(&mut self) -> u32 {
        let waiting = self.translated.take().map(|setup| setup.base);
        let running = self.attendant.take().map(|(_, attendant)| attendant.ring.ring.base());
        let base = running.or(waiting).expect("it was started");
        self.stopped_at = Some(base);
        base
    }

    /// It is to use other eventfds.
    pub(super) fn rewire(&mut self, signals: &Signals) -> Result<(), HostError> {
        let events = events(signals)?;
        if let Some((_, attendant)) = &mut self.attendant {
            attendant.ring.events = events;
            attendant.look();
        }
        if let Some(setup) = &mut self.translated {
            setup.signals = signals.clone();
        }
        Ok(())
    }

    /// Logs there from now on.
    pub(super) fn log(&mut self, logging: &Logging) {
        if let Some((index, attendant)) = &mut self.attendant {
            attendant.ring.ring.log(logging.target(*index), &Batch::default());
        }
    }

    /// What is known of the guest's IOMMU has changed.
    pub(super) fn change(&mut self, change: Change) {
        let Some((_, attendant)) = self.attendant.as_mut().filter(|_| self.translated.is_some()) else {
            return;
        };
        attendant.ring.ring.change(change);
        attendant.look();
    }

    /// These I/O addresses are nowhere any more: it waits if an area of its own is there.
    pub(super) fn forget(&mut self, range: (u64, u64)) {
        self.change(Change::Remove(range.0, range.1));
        if let Some(setup) = self.translated.as_mut().filter(|setup| iommu::touches(setup, range))
            && let Some((_, attendant)) = self.attendant.take()
        {
            // It has nothing out between two commands.
            setup.base = attendant.ring.ring.base();
        }
    }
}

impl Control {
    /// Starts the control queue.
    pub(super) fn start_commands(&mut self, setup: RingSetup) -> Result<(), HostError> {
        if self.desk.stopped_at != Some(setup.base) {
            // The driver has begun anew.
            self.forget_commands(setup.features);
            self.order_all()?;
        }
        let translated = setup.features & v::F_ACCESS_PLATFORM != 0;
        self.run_commands(&setup)?;
        self.desk.translated = translated.then_some(setup);
        Ok(())
    }

    /// Starts it if it waits, and it is known where its areas are.
    pub(super) fn start_waiting_commands(&mut self) {
        if self.desk.attendant.is_none()
            && let Some(setup) = self.desk.translated.clone()
            && let Err(why) = self.run_commands(&setup)
        {
            debug!("{why}");
        }
    }

    fn run_commands(&mut self, setup: &RingSetup) -> Result<(), HostError> {
        let ring = self.ring(setup, true)?;
        self.desk.attendant = ring.map(|ring| (setup.index, Attendant::new(ring)));
        Ok(())
    }

    /// Has its commands carried out.
    pub(super) fn attend_commands(&mut self) {
        let Some((index, mut attendant)) = self.desk.attendant.take() else { return };
        if attendant.serve(|command| self.command(command)) {
            let fault = attendant.ring.ring.fault().expect("retired just now");
            let name = &attendant.ring.name;
            say!(self.lines, warn, "{name}: ring retired: {fault}; the guest must reset its device");
            if let Some(err) = &attendant.ring.events.err {
                err.signal();
            }
        }
        if attendant.ring.ring.translated() {
            attendant.ring.ring.wants(&mut self.desk.wants);
            for want in self.desk.wants.drain(..) {
                if let Some(entry) = self.iommu.want(want) {
                    attendant.ring.ring.change(Change::Add(entry));
                    attendant.look();
                }
            }
        }
        self.desk.attendant = Some((index, attendant));
    }

    /// The driver has asked for nothing yet.
    pub(super) fn forget_commands(&mut self, features: u64) {
        self.commands = Commands::new(features, self.doors.len() as u16, self.mac);
        (self.desk.stopped_at, self.config_changed) = (None, false);
    }

    /// Has all rings serve the guest as it asked to be served.
    pub(super) fn order_all(&mut self) -> Result<(), HostError> {
        if self.commands.steers() {
            self.office.open().map_err(HostError::Files)?;
        }
        let out =
            (0..self.rings.len() as u16).filter(|ring| self.rings[usize::from(*ring)] == Place::Running);
        for ring in out.clone() {
            self.door(ring).order(side(ring), self.commands.orders(ring));
        }
        // They all run.
        let patience = self.patience.left(Instant::now()).max(LEAST_PATIENCE);
        let (mut left, mut all) = (patience, Ok(()));
        for ring in out {
            if let Err(stuck) = self.door(ring).obeys(side(ring), &mut left) {
                all = Err(late(stuck));
            }
        }
        if all.is_err() {
            self.patience.spend(patience - left);
        }
        all
    }

    /// Carries out a command of the guest; it is answered when every ring obeys.
    fn command(&mut self, command: &[u8]) -> Answer {
        let before = self.commands.clone();
        let answer = self.commands.obey(command);
        debug!("{}: command {:?}: {}", self.name, command.first_chunk::<2>(), answer.is_ok());
        if self.commands == before {
            return answer;
        }
        match self.order_all() {
            Ok(()) => answer,
            Err(late) => {
                say!(self.lines, warn, "{}: a command of the guest: {late}", self.name);
                Answer::ERR
            }
        }
    }
}
