//! What a measurement is given: what was asked for, when to stop, where to say how far it is.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::frames::Size;
use crate::stop::Stop;

/// One size of frames, to be measured as asked for.
pub(crate) struct Run<'a> {
    pub(crate) args: &'a Args,
    pub(crate) frame: Size,
    pub(crate) stop: &'a Stop,
    pub(crate) progress: &'a Progress,
}

impl Run<'_> {
    /// Whether a receive buffer may hold a part of a frame.
    pub(crate) fn mergeable(&self) -> bool {
        !self.args.shape.no_mergeable
    }
}

/// How far a long measurement is, on standard error: a line that is written over on a terminal; elsewhere
/// a line now and then, once it takes long.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    said: Cell<Instant>,
}

/// Between two lines that nobody watches.
const SELDOM: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: std::io::stderr().is_terminal(), said: Cell::new(Instant::now()) }
    }

    /// Says where things are.
    pub(crate) fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.terminal {
            eprint!("\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
        } else if self.said.get().elapsed() >= SELDOM {
            eprintln!("{text}");
            self.said.set(Instant::now());
        }
    }

    /// Makes room for what is not progress.
    pub(crate) fn clear(&self) {
        if self.terminal && !self.quiet {
            eprint!("\r\x1b[K");
        }
    }
}
