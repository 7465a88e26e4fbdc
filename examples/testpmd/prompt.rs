//! What wakes the main thread: a line, the end of input, a signal.
//!
//! Lines are read on a thread of their own, one at a time and only when asked for, so that answers come
//! before the next prompt. On a terminal there is history and completion; from a pipe, lines are echoed
//! behind the prompt, as DPDK's testpmd does.

use std::io::{BufRead, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Editor, Helper};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Error;
use crate::app::say;
use crate::command;

const PROMPT: &str = "testpmd> ";
/// Lines of history kept.
const HISTORY: usize = 1000;

/// Why the main thread wakes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A line was read.
    Line(String),
    /// There will be no more lines.
    End,
    /// SIGINT or SIGTERM.
    Signal,
    /// Somebody has come to take over.
    Successor,
}

/// Where events come from.
pub(crate) struct Events {
    sender: Sender<Event>,
    /// Events, as they come.
    pub(crate) receiver: Receiver<Event>,
    ask: Option<Sender<()>>,
    /// The terminal as it was found.
    terminal: Option<Termios>,
}

impl Events {
    /// Listens to signals from now on.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor for that.
    pub(crate) fn new() -> Result<Events, Error> {
        let (sender, receiver) = unbounded();
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::io("signal handlers"))?;
        let to = sender.clone();
        let listen = move || signals.forever().take_while(|_| to.send(Event::Signal).is_ok()).for_each(drop);
        thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .map_err(Error::io("thread for signals"))?;
        Ok(Events { sender, receiver, ask: None, terminal: tcgetattr(std::io::stdin()).ok() })
    }

    /// Asks for one more line; it comes as an event.
    ///
    /// # Errors
    /// When there is no thread for the prompt.
    pub(crate) fn ask(&mut self) -> Result<(), Error> {
        if self.ask.is_none() {
            let (ask, asked) = bounded(1);
            let to = self.sender.clone();
            let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
            let read = move || if terminal { from_terminal(&asked, &to) } else { from_pipe(&asked, &to) };
            thread::Builder::new()
                .name("prompt".into())
                .spawn(read)
                .map_err(Error::io("thread for the prompt"))?;
            self.ask = Some(ask);
        }
        // A reader that has ended has sent `End`.
        let _ = self.ask.as_ref().expect("made above").send(());
        Ok(())
    }

    /// Tells when somebody has come to take over, once each time that `again` is sent.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn await_successor(&self, will: OwnedFd) -> Result<Sender<()>, Error> {
        let (to, (again, wanted)) = (self.sender.clone(), bounded(1));
        let wait = move || {
            for () in wanted {
                while poll(&mut [PollFd::new(&will, PollFlags::IN)], None) == Err(Errno::INTR) {}
                if to.send(Event::Successor).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new()
            .name("takeover".into())
            .spawn(wait)
            .map_err(Error::io("thread for --takeover"))?;
        Ok(again)
    }

    /// One character or the end of standard input, as an event.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn await_enter(&self) -> Result<(), Error> {
        let to = self.sender.clone();
        let read = move || {
            let _ = std::io::stdin().lock().read_until(b'\n', &mut Vec::new());
            let _ = to.send(Event::End);
        };
        thread::Builder::new().name("enter".into()).spawn(read).map_err(Error::io("thread for input"))?;
        Ok(())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The reader may have been in the middle of a line.
        if let Some(terminal) = &self.terminal {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, terminal);
        }
    }
}

fn from_pipe(asked: &Receiver<()>, to: &Sender<Event>) {
    let mut lines = std::io::stdin().lines();
    for () in asked {
        say(PROMPT);
        let Some(Ok(line)) = lines.next() else {
            say("\n");
            let _ = to.send(Event::End);
            return;
        };
        say(&format!("{line}\n"));
        if to.send(Event::Line(line)).is_err() {
            return;
        }
    }
}

fn from_terminal(asked: &Receiver<()>, to: &Sender<Event>) {
    let config = rustyline::Config::builder()
        .max_history_size(HISTORY)
        .and_then(|c| c.history_ignore_dups(true))
        .map(|c| c.completion_type(rustyline::CompletionType::List).auto_add_history(true).build());
    let Ok(mut editor) = config.and_then(Editor::<Commands, FileHistory>::with_config) else {
        return from_pipe(asked, to);
    };
    editor.set_helper(Some(Commands));
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".testpmd_history"));
    if let Some(path) = &history {
        let _ = editor.load_history(path);
    }
    for () in asked {
        let event = match editor.readline(PROMPT) {
            Ok(line) => Event::Line(line),
            Err(ReadlineError::Interrupted) => Event::Signal,
            Err(_) => Event::End,
        };
        if let Some(path) = &history {
            let _ = editor.append_history(path);
        }
        let end = event == Event::End;
        if to.send(event).is_err() || end {
            return;
        }
    }
}

/// Completes commands.
struct Commands;

impl Helper for Commands {}
impl Hinter for Commands {
    type Hint = String;
}
impl Highlighter for Commands {}
impl Validator for Commands {}

impl Completer for Commands {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let (begin, words) = command::complete(&line[..at]);
        Ok((begin, words.into_iter().map(|w| format!("{w} ")).collect()))
    }
}

/// Prints an error of a command, and flushes.
pub(crate) fn complain(message: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{message}").and_then(|()| out.flush());
}
