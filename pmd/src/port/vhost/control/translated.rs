//! Rings whose addresses are those of the guest's IOMMU: they wait until it is known where they are.

use std::time::{Duration, Instant};

use tracing::debug;

use super::*;

impl Control {
    pub(super) fn open_translated(
        &mut self,
        setup: &RingSetup,
        way: Way,
    ) -> Result<Option<AnyVring>, OutOfRange> {
        let Some(memory) = &self.table else { return Ok(None) };
        let Some(areas) = self.iommu.areas(setup, memory) else { return Ok(None) };
        let layout = layout(setup, way, Ok)?;
        AnyVring::open_translated(&layout, &areas, memory, &self.iommu.tlb, self.mapped).map(Some)
    }

    /// Starts rings that wait until it is known where their areas are, if it is.
    pub(super) fn start_waiting(&mut self) {
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
    pub(super) fn forget(&mut self, range: (u64, u64)) -> Result<(), HostError> {
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
    pub(super) fn take_waiting(&mut self, ring: u16, patience: &mut Duration) -> Result<(), HostError> {
        let home = self.take(ring, patience)?;
        if let Some(setup) = &mut self.translated[usize::from(ring)] {
            setup.base = home.ring.base();
        }
        self.rings[usize::from(ring)] = Place::Waiting;
        Ok(())
    }
}
