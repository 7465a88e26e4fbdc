//! What happens between start and end: commands at the prompt, or statistics until the time is up.

mod filter;
mod handover;
mod set;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use pmd::confine::{User, only_needed_calls};

use crate::Error;
use crate::app::{App, hush, say};
use crate::cli::Lcore;
use crate::command::{self, Verb};
use crate::demo::{Guests, Sockets};
use crate::prompt::{Event, Events, complain};
use handover::Heir;

/// Files that load files that load files.
const MAX_LOADS: usize = 8;

/// A session with an application.
pub(crate) struct Session {
    app: App,
    events: Events,
    json: Option<Box<dyn Write>>,
    /// JSON takes the place of text.
    only_json: bool,
    /// For the demo: where its guests are to connect, and their core.
    wanted: Option<(Sockets, Option<Lcore>)>,
    guests: Option<Guests>,
    /// Where the next process will come.
    heir: Option<Heir>,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Quit,
}

impl Session {
    /// A session; lines of JSON go where the options say.
    ///
    /// # Errors
    /// When the file for them cannot be made.
    pub(crate) fn new(app: App, events: Events) -> Result<Session, Error> {
        let path = app.options.json.clone();
        let only_json = path.as_deref() == Some(Path::new("-"));
        let json: Option<Box<dyn Write>> = match path {
            None => None,
            Some(_) if only_json => {
                if !app.options.interactive {
                    hush();
                }
                Some(Box::new(std::io::stdout()))
            }
            Some(path) => {
                let file = File::create(&path).map_err(Error::io(format!("--json={}", path.display())))?;
                Some(Box::new(file))
            }
        };
        Ok(Session { app, events, json, only_json, wanted: None, guests: None, heir: None })
    }

    /// Runs the demo, with its guests on a core.
    ///
    /// # Errors
    /// When there is no folder for sockets, or as [`Session::run`].
    pub(crate) fn demo(mut self, core: Option<Lcore>) -> Result<(), Error> {
        let sockets = Sockets::new()?;
        self.app.brief = true;
        let o = &mut self.app.options;
        o.vdevs = sockets.vdevs()?;
        o.stats_period = o.stats_period.max(1);
        self.wanted = Some((sockets, core));
        self.run()
    }

    /// Runs to the end and takes everything apart.
    ///
    /// # Errors
    /// What ended it, if it was not asked to end.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let outcome = self.live();
        if let Some(guests) = &mut self.guests {
            guests.pause();
        }
        if self.app.is_forwarding() {
            self.stop();
        }
        let mut left = Ok(());
        if let Some(guests) = self.guests.take() {
            say(&guests.summary());
            left = guests.close();
        }
        let closed = self.app.close().map_err(Error::Usage);
        say("\nBye...\n");
        outcome.and(left).and(closed)
    }

    fn live(&mut self) -> Result<(), Error> {
        // Before anything is opened: a user that there is not costs nothing yet.
        let user = self.app.options.user.as_deref().map(User::find).transpose()?;
        let ready = self.app.open().and_then(|()| self.confine(user));
        if let Err(why) = ready {
            self.app.refuse(&why);
            return Err(why);
        }
        let auto_start = self.await_heir()? || self.app.options.auto_start;
        say("Checking link statuses...\nDone\n");
        if let Some(path) = self.app.options.cmdline_file.clone()
            && self.load(&path, 0) == Flow::Quit
        {
            return Ok(());
        }
        let first = u32::from(self.app.options.tx_first);
        if !self.app.options.interactive {
            if let Some((sockets, core)) = self.wanted.take() {
                let guests = Guests::connect(sockets, core, self.app.backing(), &self.app.options)?;
                say(guests.greeting());
                self.guests = Some(guests);
            } else {
                say("No commandline core given, start packet forwarding\n");
            }
            self.app.start(first).map_err(Error::Usage)?;
            if let Some(guests) = &mut self.guests {
                guests.start()?;
            }
            return self.watch();
        }
        if auto_start && !self.app.is_forwarding() {
            say("Start automatic packet forwarding\n");
            self.app.start(first).map_err(Error::Usage)?;
        }
        self.events.ask()?;
        loop {
            match self.events.receiver.recv() {
                Ok(Event::Line(line)) if self.command(&line, 0) == Flow::On => self.events.ask()?,
                Ok(Event::Successor) if self.hand_over() == Flow::On => {}
                Ok(Event::Signal) => {
                    say("\nSignal received, preparing to exit...\n");
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// Gives up what is not needed any more.
    fn confine(&self, user: Option<User>) -> Result<(), Error> {
        if let Some(user) = user {
            user.assume()?;
        }
        if user.is_some() || self.app.options.confine {
            only_needed_calls()?;
        }
        Ok(())
    }

    /// Shows statistics until a signal, the end of the time, or Enter.
    fn watch(&mut self) -> Result<(), Error> {
        let o = &self.app.options;
        let period = Duration::from_secs(o.stats_period.into());
        let end = o.duration.map(|d| Instant::now() + Duration::from_secs_f64(d));
        if period.is_zero() && end.is_none() {
            say("Press enter to exit\n");
            self.events.await_enter()?;
        }
        let mut next = Instant::now() + period;
        if !period.is_zero() && self.guests.is_none() {
            self.show_period();
        }
        loop {
            let due = if period.is_zero() { None } else { Some(next) };
            let until = [due, end].into_iter().flatten().min();
            let event = match until {
                Some(until) => self.events.receiver.recv_deadline(until),
                None => self.events.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Err(RecvTimeoutError::Timeout) if end.is_some_and(|end| Instant::now() >= end) => {
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    next += period;
                    self.show_period();
                }
                Ok(Event::Successor) if self.hand_over() == Flow::On => {}
                Ok(Event::Signal) => {
                    say("\nSignal received, preparing to exit...\n");
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    fn show_period(&mut self) {
        self.write_json("period");
        if self.only_json {
            return;
        }
        if let Some(guests) = &mut self.guests {
            return say(&guests.line());
        }
        let text = self.app.period();
        // A terminal is cleared; what reads a pipe wants to read it all.
        let clear = if std::io::stdout().is_terminal() { "\x1b[2J\x1b[1;1H" } else { "" };
        say(&format!("{clear}{text}"));
    }

    fn write_json(&mut self, event: &'static str) {
        if let Some(out) = &mut self.json {
            let line = self.app.json(event);
            let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        }
    }

    fn stop(&mut self) {
        if let Err(e) = self.app.stop() {
            return complain(&e);
        }
        self.write_json("end");
    }

    /// Runs the commands of a file.
    fn load(&mut self, path: &Path, depth: usize) -> Flow {
        if depth >= MAX_LOADS {
            complain(&format!("{}: files are loaded {MAX_LOADS} deep at most", path.display()));
            return Flow::On;
        }
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => {
                complain(&format!("{}: {e}", path.display()));
                return Flow::On;
            }
        };
        for line in text.lines() {
            if self.command(line, depth) == Flow::Quit {
                return Flow::Quit;
            }
        }
        say(&format!("Read CLI commands from {}\n", path.display()));
        Flow::On
    }

    /// Obeys one line.
    fn command(&mut self, line: &str, depth: usize) -> Flow {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            return Flow::On;
        }
        match command::parse(line) {
            Ok((Verb::Quit, _)) => return Flow::Quit,
            Ok((Verb::Load, words)) => return self.load(Path::new(words[0]), depth + 1),
            Ok((Verb::Stop, _)) if self.app.is_forwarding() => self.stop(),
            Ok((verb, words)) => {
                if let Err(e) = self.obey(verb, &words) {
                    complain(&e);
                }
            }
            Err(e) => complain(&e),
        }
        Flow::On
    }

    fn obey(&mut self, verb: Verb, words: &[&str]) -> Result<(), String> {
        let app = &mut self.app;
        match verb {
            Verb::Start => app.start(0),
            Verb::StartFirst => app.start(words.first().map_or(Ok(1), |n| set::number(n))?),
            Verb::Stop => app.stop(),
            Verb::ShowPort => app.show_port(words[0], words[1]),
            Verb::ShowForward => app.show_forward(),
            Verb::ShowConfig => {
                app.show_config(words[0]);
                Ok(())
            }
            Verb::ShowLimits => {
                app.show_limits();
                Ok(())
            }
            Verb::ShowRings => app.show_rings(),
            Verb::ShowVhost => {
                app.show_vhost();
                Ok(())
            }
            Verb::ClearPort => app.clear_port(words[0], words[1]),
            Verb::ClearForward => {
                app.clear_forward();
                Ok(())
            }
            Verb::PortStart => app.port_start(words[0]),
            Verb::PortStop => app.port_stop(words[0]),
            Verb::PortClose => app.port_close(words[0]),
            Verb::PortReset => app.port_stop(words[0]).and_then(|()| app.port_start(words[0])),
            Verb::PortAttach => app.port_attach(words[0]),
            Verb::PortDetach => app.port_detach(words[0]),
            Verb::Help => {
                say(&command::help(words.first().copied()));
                Ok(())
            }
            Verb::Quit | Verb::Load => unreachable!("obeyed by `command`"),
            Verb::SetPromisc | Verb::MacAddress | Verb::Multicast | Verb::Vlan | Verb::VlanFilter => {
                filter::set(app, verb, words)
            }
            _ => set::set(app, verb, words),
        }
    }
}
