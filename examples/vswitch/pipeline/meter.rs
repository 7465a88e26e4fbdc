//! Meters: token buckets that several cores take from.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::rule::now_ms;
use crate::vswitch::flow::action::Meter;

/// A meter at work.
#[derive(Debug)]
pub struct Bucket {
    /// As it was asked for.
    pub meter: Meter,
    /// Of each band: thousandths of a packet or bit that may pass.
    tokens: Vec<AtomicI64>,
    filled_ms: AtomicU64,
    /// When it was made.
    pub created_ms: u64,
    /// Packets and bytes that came.
    pub came: [AtomicU64; 2],
    /// Of each band: packets and bytes that it took.
    pub hit: Vec<[AtomicU64; 2]>,
}

impl Bucket {
    /// A full one.
    pub fn new(meter: Meter) -> Bucket {
        let now = now_ms();
        Bucket {
            tokens: meter.bands.iter().map(|b| AtomicI64::new(depth(&meter, b))).collect(),
            filled_ms: AtomicU64::new(now),
            created_ms: now,
            came: Default::default(),
            hit: meter.bands.iter().map(|_| Default::default()).collect(),
            meter,
        }
    }

    /// A packet of so many bytes comes; `true`: it passes.
    pub fn pass(&self, bytes: u64) -> bool {
        self.came[0].fetch_add(1, Ordering::Relaxed);
        self.came[1].fetch_add(bytes, Ordering::Relaxed);
        let now = now_ms();
        let then = self.filled_ms.swap(now, Ordering::Relaxed);
        let cost = if self.meter.packets { 1000 } else { bytes as i64 * 8 * 1000 };
        // The band of the highest rate that is exceeded takes it.
        let mut over: Option<usize> = None;
        for (i, band) in self.meter.bands.iter().enumerate() {
            let unit = if self.meter.packets { 1 } else { 1000 };
            let more = i64::from(band.rate) * unit * now.saturating_sub(then) as i64;
            let full = depth(&self.meter, band);
            let left = (self.tokens[i].load(Ordering::Relaxed) + more).min(full) - cost;
            self.tokens[i].store(if left < 0 { left + cost } else { left }, Ordering::Relaxed);
            if left < 0 && over.is_none_or(|o| self.meter.bands[o].rate < band.rate) {
                over = Some(i);
            }
        }
        let Some(band) = over else { return true };
        self.hit[band][0].fetch_add(1, Ordering::Relaxed);
        self.hit[band][1].fetch_add(bytes, Ordering::Relaxed);
        self.meter.bands[band].dscp_remark.is_some()
    }
}

/// What a band holds at most: its burst, or what passes in a second.
fn depth(meter: &Meter, band: &crate::vswitch::flow::action::Band) -> i64 {
    let burst = if band.burst == 0 { band.rate } else { band.burst };
    i64::from(burst) * if meter.packets { 1000 } else { 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vswitch::flow::action::Band;

    #[test]
    fn what_is_over_the_burst_is_dropped_and_counted() {
        let bands = vec![Band { dscp_remark: None, rate: 1, burst: 5 }];
        let bucket = Bucket::new(Meter { id: 1, packets: true, burst: true, stats: true, bands });
        let passed = (0..20).filter(|_| bucket.pass(100)).count();
        // A second may go by meanwhile.
        assert!((5..8).contains(&passed), "{passed}");
        assert_eq!(bucket.came[0].load(Ordering::Relaxed), 20);
        assert_eq!(bucket.hit[0][0].load(Ordering::Relaxed), 20 - passed as u64);
    }
}
