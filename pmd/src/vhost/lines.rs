//! How much a peer may put into the log.

use std::time::{Duration, Instant};

/// Lines that each subject of a port may put into the log in a second.
pub const LINES: u32 = 16;

/// Lines about one thing that a peer can cause any number of, and writing them is our time: [`LINES`] a
/// second are said, the others counted.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Lines {
    /// At `now`: `None`, the line is not to be said, or what is to be appended to it: how many before it
    /// were not.
    pub(crate) fn next(&mut self, now: Instant) -> Option<String> {
        let second = Duration::from_secs(1);
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= second) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said == LINES {
            self.unsaid += 1;
            return None;
        }
        self.said += 1;
        Some(match std::mem::take(&mut self.unsaid) {
            0 => String::new(),
            unsaid => format!(" ({unsaid} lines like this were left out before it)"),
        })
    }
}

/// Says a line at a level, `say!(lines, warn, "...")`, if [`Lines`] let it.
macro_rules! say {
    ($lines:expr, $level:ident, $($field:ident = %$value:expr,)? $text:literal $($rest:tt)*) => {
        if let Some(more) = $lines.next(std::time::Instant::now()) {
            tracing::$level!($($field = %$value,)? "{}{more}", format_args!($text $($rest)*));
        }
    };
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_a_second_that_count_the_others() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!((0..LINES).all(|_| lines.next(at(5)).as_deref() == Some("")));
        assert!((0..900).all(|i| lines.next(at(5 + i)).is_none()));
        assert!(lines.next(at(1005)).unwrap().contains("900"));
        assert_eq!(lines.next(at(1006)).unwrap(), "");
    }
}
