//! Binary search for the highest rate that passes (RFC 2544 §26.1).

/// Between what passed and what failed.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    /// The highest that passed; 0 at first.
    low: f64,
    /// The lowest that failed, or the highest of all, to be tried first.
    high: f64,
    /// How far apart they may be in the end.
    apart: f64,
    tried_high: bool,
}

impl Search {
    /// A search from 0 to `highest` that ends when it is known to `resolution` percent of that.
    pub(crate) fn new(highest: f64, resolution: f64) -> Search {
        Search { low: 0.0, high: highest, apart: highest * resolution / 100.0, tried_high: false }
    }

    /// The next rate to try; `None`: it is found.
    pub(crate) fn next(&self) -> Option<f64> {
        if !self.tried_high {
            return Some(self.high);
        }
        (self.high - self.low > self.apart).then_some((self.low + self.high) / 2.0)
    }

    /// Says whether the rate of [`Search::next`] passed.
    pub(crate) fn tell(&mut self, passed: bool) {
        let Some(rate) = self.next() else { return };
        self.tried_high = true;
        if passed {
            self.low = rate;
        } else {
            self.high = rate;
        }
    }

    /// The highest rate that passed.
    pub(crate) fn found(&self) -> f64 {
        self.low
    }

    /// Trials that are left at most.
    pub(crate) fn left(&self) -> u32 {
        let halves = ((self.high - self.low) / self.apart).max(1.0).log2().ceil() as u32;
        halves + u32::from(!self.tried_high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for `limit`; what was found, and in how many trials.
    fn search(highest: f64, resolution: f64, limit: f64) -> (f64, u32) {
        let mut search = Search::new(highest, resolution);
        let (most, mut trials) = (search.left(), 0);
        while let Some(rate) = search.next() {
            assert!(trials + search.left() <= most);
            search.tell(rate <= limit);
            trials += 1;
        }
        (search.found(), trials)
    }

    #[test]
    fn finds_every_limit_to_its_resolution() {
        for percent in 0..=100 {
            let limit = f64::from(percent) * 0.2;
            let (found, trials) = search(20.0, 1.0, limit);
            assert!(found <= limit && limit - found <= 0.2, "{found} for {limit}");
            assert!(trials <= 8, "{trials}");
        }
    }

    #[test]
    fn what_passes_at_the_highest_rate_is_found_at_once() {
        assert_eq!(search(20.0, 0.1, 30.0), (20.0, 1));
    }

    #[test]
    fn what_never_passes_is_found_to_be_nothing() {
        assert_eq!(search(16.0, 1.0, -1.0), (0.0, 8));
    }
}
