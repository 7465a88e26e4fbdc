//! How many packets are due: a rate, kept over time.

use std::time::{Duration, Instant};

/// How late packets may be caught up, at the rate: a core that was away longer sends no flood.
const CATCH_UP: Duration = Duration::from_millis(1);

/// Packets per second, or as many as are asked for.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Nanoseconds between two packets; `None`: no limit.
    gap_ns: Option<f64>,
    start: Instant,
    /// Packets since `start`.
    sent: u64,
}

impl Pace {
    /// Keeps `rate` packets per second, from now on.
    pub(crate) fn new(rate: Option<f64>) -> Pace {
        Pace { gap_ns: rate.map(|rate| 1e9 / rate), start: Instant::now(), sent: 0 }
    }

    /// How many of `want` packets may be sent now.
    #[inline]
    pub(crate) fn due(&mut self, want: usize) -> usize {
        let Some(gap_ns) = self.gap_ns else { return want };
        self.due_at(Instant::now(), gap_ns, want)
    }

    /// Counts packets that were sent.
    #[inline]
    pub(crate) fn sent(&mut self, n: usize) {
        self.sent += n as u64;
    }

    fn due_at(&mut self, now: Instant, gap_ns: f64, want: usize) -> usize {
        let elapsed = now.saturating_duration_since(self.start).as_nanos() as f64;
        let due = (elapsed / gap_ns) as u64;
        let late = due.saturating_sub(self.sent);
        let most = (CATCH_UP.as_nanos() as f64 / gap_ns) as u64 + 1;
        if late > most {
            // The packets missed are gone; the rate goes on from here.
            self.start += Duration::from_nanos(((late - most) as f64 * gap_ns) as u64);
        }
        late.min(most).min(want as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_rate_and_sends_no_flood() {
        let mut pace = Pace::new(Some(1e6));
        let start = pace.start;
        let mut total = 0;
        for us in 1..=1000 {
            let n = pace.due_at(start + Duration::from_micros(us * 10), 1e3, 32);
            pace.sent(n);
            total += n;
        }
        assert_eq!(total, 10_000);
        // After a second away it catches up one millisecond, then goes on at the rate.
        let back = start + Duration::from_secs(1);
        let mut flood = 0;
        for _ in 0..100 {
            let n = pace.due_at(back, 1e3, 32);
            pace.sent(n);
            flood += n;
        }
        assert!((1000..=1001).contains(&flood), "{flood}");
        assert!((9..=11).contains(&pace.due_at(back + Duration::from_micros(10), 1e3, 32)));
        assert_eq!(Pace::new(None).due(77), 77);
    }
}
