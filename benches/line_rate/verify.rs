//! Is every frame that was sent there, once, in order and undamaged?

use std::error::Error;
use std::time::{Duration, Instant, SystemTime};

use pmd::vring::driver::{Packed, Ring, Split};
use serde::Serialize;

use crate::args::Mode;
use crate::frames::Size;
use crate::frontend::{Door, Frontend};
use crate::memory::Memory;
use crate::pair::{Pair, areas};
use crate::rig::{HINT, connect};
use crate::run::Run;
use crate::sequence::{self, Verdict};

/// How long what is under way may take until it is given up: a back-end may be kept from its core.
const GIVE_UP: Duration = Duration::from_secs(3);
/// The same when what was sent last is there: what was sent before it is overtaken.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// Silence after which nothing more is to be expected when all is there.
const QUIET: Duration = Duration::from_millis(20);
/// How long the first frames may take: the back-end may still be starting.
const FIRST: Duration = Duration::from_secs(10);
/// Receive buffers that a queue takes in a turn.
const BURST: u16 = 32;

/// What became of the frames.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Found {
    pub(crate) sent: u64,
    /// Undamaged, each number once.
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    /// Received after a later one of their flow.
    pub(crate) reordered: u64,
    /// Neither whole and undamaged nor recognisable as another's.
    pub(crate) damaged: u64,
    /// Undamaged, but at another port than they were to arrive at.
    pub(crate) misdelivered: u64,
    /// Undamaged, but of a number not sent, or too late to be judged.
    pub(crate) unknown: u64,
    /// Received with a virtio-net header that asks for something, or with a wrong count of buffers.
    pub(crate) bad_headers: u64,
    pub(crate) mpps: f64,
    pub(crate) gbps: f64,
    pub(crate) seconds: f64,
    /// What the device did wrong with its descriptors, which ended the measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fault: Option<String>,
}

impl Found {
    /// Whether all is well.
    pub(crate) fn well(&self) -> bool {
        self.fault.is_none()
            && self.received == self.sent
            && self.sent > 0
            && [
                self.duplicated,
                self.reordered,
                self.damaged,
                self.misdelivered,
                self.unknown,
                self.bad_headers,
            ] == [0; 6]
    }
}

/// Measures over rings of the layout that is asked for; calls `tell` each `period` with the seconds so far
/// and what was found.
pub(crate) fn measure(
    doors: &[Door],
    run: &Run<'_>,
    tell: impl FnMut(f64, &Found),
) -> Result<Found, Box<dyn Error>> {
    if run.args.shape.packed {
        Check::<Packed>::open(doors, run)?.run(run, tell)
    } else {
        Check::<Split>::open(doors, run)?.run(run, tell)
    }
}

/// All ports and queues.
struct Check<R> {
    pairs: Vec<Pair<R>>,
    ports: Vec<Frontend>,
    /// Tells our frames from those of an earlier run.
    nonce: u64,
    found: Found,
}

impl<R: Ring> Check<R> {
    fn open(doors: &[Door], run: &Run<'_>) -> Result<Check<R>, Box<dyn Error>> {
        let args = run.args;
        let (mut pairs, mut ports) = (Vec::new(), Vec::new());
        for (port, door) in doors.iter().enumerate().take(args.path.len()) {
            let memory = Memory::new(areas(0, &args.shape).end, &args.shape, run.frame)?;
            let first = pairs.len();
            for places in &memory.pairs {
                pairs.push(Pair::<R>::new(&memory, *places, (port, pairs.len()), run)?);
            }
            let rings: Vec<_> = pairs[first..].iter().flat_map(|pair| pair.rings(&args.shape)).collect();
            let (frontend, kicks) = connect(door, args, &memory, &rings)
                .map_err(|e| format!("{}: {e}", door.path().display()))?;
            let mut kicks = kicks.into_iter();
            for pair in &mut pairs[first..] {
                pair.begin(kicks.by_ref().take(2).collect())?;
            }
            ports.push(frontend);
        }
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
        let nonce = time ^ u64::from(std::process::id()) << 32;
        Ok(Check { pairs, ports, nonce, found: Found::default() })
    }

    /// Sends single frames until some of each queue came back, and forgets about them: what a back-end
    /// drops while it starts is no loss.
    fn greet(&mut self, run: &Run<'_>) -> Result<(), Box<dyn Error>> {
        let windows: Vec<u64> = self.pairs.iter_mut().map(|p| std::mem::replace(&mut p.window, 1)).collect();
        let (began, mut quiet) = (Instant::now(), Instant::now());
        let silent = |check: &Check<R>| check.pairs.iter().filter(|p| p.sequence.top() == 0).count();
        while silent(self) > 0 || quiet.elapsed() < QUIET {
            let before = self.found.received;
            self.turn(run, |pair| pair.sequence.top() == 0)?;
            if self.found.received > before {
                quiet = Instant::now();
            } else if quiet.elapsed() > 2 * QUIET {
                self.give_up();
            }
            if began.elapsed() > FIRST || run.stop.now() {
                let (silent, all) = (silent(self), self.pairs.len());
                return Err(format!("of {silent} of {all} queues no frame comes back; {HINT}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for (pair, window) in self.pairs.iter_mut().zip(windows) {
            pair.forget(window, run.args.shape.flows);
        }
        (self.nonce, self.found) = (self.nonce ^ 1, Found::default());
        Ok(())
    }

    fn run(mut self, run: &Run<'_>, mut tell: impl FnMut(f64, &Found)) -> Result<Found, Box<dyn Error>> {
        self.greet(run)?;
        let (began, period) = (Instant::now(), run.args.period());
        let (mut told, mut arrived) = (began, began);
        // When it is over, it goes on until what is under way has had its time.
        let ended = loop {
            let before = self.found.received;
            let now = Instant::now();
            let time = now - began;
            let over = time.as_secs_f64() >= run.args.seconds() || run.stop.now();
            if let Err(lie) = self.turn(run, |_| !over) {
                self.found.fault = Some(lie.to_string());
                break now;
            }
            let silence = now - arrived;
            if self.found.received > before {
                arrived = now;
            } else if over && silence > self.patience() {
                break arrived;
            } else if silence > GIVE_UP {
                self.give_up();
            }
            if let Some(period) = period
                && (now - told).as_secs_f64() >= period
            {
                told = now;
                self.sum_up(time, run.frame);
                tell(time.as_secs_f64(), &self.found);
            }
        };
        self.sum_up(ended - began, run.frame);
        for port in &mut self.ports {
            if let Err(e) = port.stop() {
                self.found.fault.get_or_insert(format!("the back-end does not stop its rings: {e}"));
            }
        }
        Ok(self.found)
    }

    /// How long to wait, once nothing is sent any more.
    fn patience(&self) -> Duration {
        if self.pairs.iter().all(|pair| pair.under_way() == 0) {
            QUIET
        } else if self.pairs.iter().all(|pair| pair.sequence.top() == pair.sequence.sent) {
            OVERTAKEN
        } else {
            GIVE_UP
        }
    }

    /// Takes what has arrived, and sends what `send` says.
    fn turn(&mut self, run: &Run<'_>, send: impl Fn(&Pair<R>) -> bool) -> Result<(), Box<dyn Error>> {
        for i in 0..self.pairs.len() {
            for _ in 0..BURST {
                match self.pairs[i].receive()? {
                    None => break,
                    Some(false) => {}
                    Some(true) => self.judge(i, run.args.mode),
                }
            }
            let pair = &mut self.pairs[i];
            pair.reap()?;
            if send(pair) {
                pair.send(self.nonce, run);
            }
            pair.publish();
        }
        Ok(())
    }

    /// Judges the frame that arrived at queue pair `at`.
    fn judge(&mut self, at: usize, mode: Mode) {
        let (pair, queues) = (&self.pairs[at], self.pairs.len() / self.ports.len());
        let port = pair.port;
        let found = &mut self.found;
        found.bad_headers += u64::from(pair.bad_header());
        let tag = sequence::read(pair.frame(), self.nonce);
        let Some((source, number)) = tag.filter(|tag| usize::from(tag.0) < self.pairs.len()) else {
            found.damaged += 1;
            // Most likely one that was sent to here.
            let partner = at % queues + queues * (port ^ usize::from(mode == Mode::Guests));
            self.pairs[partner].over += 1;
            return;
        };
        let source = &mut self.pairs[usize::from(source)];
        found.misdelivered += u64::from(port != source.port ^ usize::from(mode == Mode::Guests));
        match source.sequence.arrived(number) {
            verdict @ (Verdict::Good | Verdict::Reordered) => {
                found.received += 1;
                found.reordered += u64::from(verdict == Verdict::Reordered);
                source.over += 1;
            }
            Verdict::Duplicate => found.duplicated += 1,
            Verdict::Late | Verdict::Unsent => found.unknown += 1,
        }
    }

    fn give_up(&mut self) {
        for pair in &mut self.pairs {
            pair.over = pair.over.max(pair.sequence.sent);
        }
    }

    fn sum_up(&mut self, time: Duration, frame: Size) {
        let found = &mut self.found;
        found.sent = self.pairs.iter().map(|pair| pair.sequence.sent).sum();
        found.lost = found.sent - found.received;
        found.seconds = time.as_secs_f64();
        found.mpps = found.received as f64 / found.seconds / 1e6;
        found.gbps = found.mpps * frame.mean() * 8e-3;
    }
}
