//! Is every frame that was sent there, once, in order and undamaged? A driver that looks at everything:
//! at each byte of each frame, and at what the device says of each descriptor.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use hugepages::Lender;
use pmd::vring::Way;
use pmd::vring::driver::{Areas, Packed, Ring, Segment, Split};
use serde::Serialize;

use crate::args::Mode;
use crate::frames::Size;
use crate::frontend::{Door, Frontend, ring_bell};
use crate::memory::{self, Memory, Places};
use crate::rig::connect;
use crate::run::Run;
use crate::sequence::{self, Sequence, Verdict};

/// How long what is under way may take until it is given up.
const GIVE_UP: Duration = Duration::from_secs(1);
/// Silence after which nothing more is to be expected when all is there.
const QUIET: Duration = Duration::from_millis(20);
/// How long the first frames may take: the back-end may still be starting.
const FIRST: Duration = Duration::from_secs(10);
/// Frames that a queue sends, and buffers that it takes, in a turn.
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
    /// What each queue sends.
    sequences: Vec<Sequence>,
    ports: Vec<Frontend>,
    /// Tells our frames from those of an earlier run.
    nonce: u64,
    found: Found,
    frame: Vec<u8>,
}

/// A queue pair.
struct Pair<R> {
    receive: R,
    transmit: R,
    places: Places,
    memory: Lender,
    kicks: Vec<OwnedFd>,
    port: usize,
    /// Frames of ours that the device does not have.
    free: Vec<u16>,
    /// By id: which frame, or which receive buffer.
    frames: Vec<u16>,
    rooms: Vec<u16>,
    /// A frame whose buffers are not all there.
    parts: Parts,
    /// Frames that are not under way any more: arrived, or given up.
    over: u64,
    window: u64,
}

#[derive(Default)]
struct Parts {
    left: u16,
    bytes: Vec<u8>,
    bad_header: bool,
}

impl<R: Ring> Check<R> {
    fn open(doors: &[Door], run: &Run<'_>) -> Result<Check<R>, Box<dyn Error>> {
        let args = run.args;
        let shape = &args.shape;
        let areas = |at| Areas::at(at, shape.size, shape.features(), if shape.indirect { 2 } else { 0 });
        let (mut pairs, mut ports) = (Vec::new(), Vec::new());
        for (port, door) in doors.iter().enumerate().take(args.path.len()) {
            let memory = Memory::new(areas(0).end, shape, run.frame)?;
            let first = pairs.len();
            let mut rings = Vec::new();
            for places in &memory.pairs {
                let [receive, transmit] = places.rings.map(areas);
                rings.extend([receive.ring(Way::ToDriver), transmit.ring(Way::FromDriver)]);
                pairs.push(Pair::<R>::new(&memory, *places, [receive, transmit], port, run)?);
            }
            let (frontend, kicks) = connect(door, args, &memory, &rings)
                .map_err(|e| format!("{}: {e}", door.path().display()))?;
            let mut kicks = kicks.into_iter();
            for pair in &mut pairs[first..] {
                pair.kicks = kicks.by_ref().take(2).collect();
                ring_bell(&pair.kicks[0])?;
            }
            ports.push(frontend);
        }
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
        let nonce = time ^ u64::from(std::process::id()) << 32;
        let sequences = pairs.iter().map(|_| Sequence::new(shape.flows)).collect();
        let frame = vec![0; run.frame.longest() as usize];
        Ok(Check { pairs, sequences, ports, nonce, found: Found::default(), frame })
    }

    /// Sends single frames until some of each queue came back, and forgets about them: what a back-end
    /// drops while it starts is no loss.
    fn greet(&mut self, run: &Run<'_>) -> Result<(), Box<dyn Error>> {
        let windows: Vec<u64> = self.pairs.iter_mut().map(|p| std::mem::replace(&mut p.window, 1)).collect();
        let (began, mut quiet) = (Instant::now(), Instant::now());
        let silent = |check: &Check<R>| check.sequences.iter().filter(|s| s.top() == 0).count();
        while silent(self) > 0 || quiet.elapsed() < QUIET {
            let before = self.found.received;
            self.turn(run, silent(self) > 0)?;
            if self.found.received > before {
                quiet = Instant::now();
            } else if quiet.elapsed() > 2 * QUIET {
                self.give_up();
            }
            if began.elapsed() > FIRST || run.stop.now() {
                let (silent, all) = (silent(self), self.pairs.len());
                return Err(format!("from {silent} of {all} queues no frame comes back; is the back-end forwarding, on as many queues, and as --mode says?").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for ((pair, sequence), window) in self.pairs.iter_mut().zip(&mut self.sequences).zip(windows) {
            (pair.over, pair.window) = (0, window);
            *sequence = Sequence::new(run.args.shape.flows);
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
            if let Err(lie) = self.turn(run, !over) {
                self.found.fault = Some(lie.to_string());
                break now;
            }
            let silence = now - arrived;
            if self.found.received > before {
                arrived = now;
            } else if over && silence > if self.under_way() == 0 { QUIET } else { GIVE_UP } {
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
            port.stop()?;
        }
        Ok(self.found)
    }

    /// Takes what has arrived, and sends.
    fn turn(&mut self, run: &Run<'_>, send: bool) -> Result<(), Box<dyn Error>> {
        for i in 0..self.pairs.len() {
            self.receive(i, run)?;
            let pair = &mut self.pairs[i];
            while let Some(used) = pair.transmit.used()? {
                pair.free.push(pair.frames[usize::from(used.id)]);
            }
            if send {
                let sequence = &mut self.sequences[i];
                pair.send(sequence, (i as u16, self.nonce), run, &mut self.frame);
            }
            pair.publish();
        }
        Ok(())
    }

    fn receive(&mut self, i: usize, run: &Run<'_>) -> Result<(), Box<dyn Error>> {
        for _ in 0..BURST {
            let pair = &mut self.pairs[i];
            let Some(used) = pair.receive.used()? else { break };
            let entry = pair.rooms[usize::from(used.id)];
            let whole = pair.take(entry, used.len, run.mergeable())?;
            let offered = pair.offer(entry);
            assert!(offered, "its descriptors are free again");
            if whole {
                let parts = std::mem::take(&mut pair.parts);
                self.judge(&parts, i, run.args.mode);
                self.pairs[i].parts.bytes = parts.bytes;
            }
        }
        Ok(())
    }

    /// Judges a frame that arrived at queue pair `at`.
    fn judge(&mut self, parts: &Parts, at: usize, mode: Mode) {
        let (port, queues) = (self.pairs[at].port, self.pairs.len() / self.ports.len());
        let found = &mut self.found;
        found.bad_headers += u64::from(parts.bad_header);
        let tag = sequence::read(&parts.bytes, self.nonce);
        let Some((source, number)) = tag.filter(|tag| usize::from(tag.0) < self.pairs.len()) else {
            found.damaged += 1;
            // Most likely one that was sent to here.
            let partner = at % queues + queues * (port ^ usize::from(mode == Mode::Guests));
            self.pairs[partner].over += 1;
            return;
        };
        let source = usize::from(source);
        let wanted = self.pairs[source].port ^ usize::from(mode == Mode::Guests);
        found.misdelivered += u64::from(wanted != port);
        match self.sequences[source].arrived(number) {
            verdict @ (Verdict::Good | Verdict::Reordered) => {
                found.received += 1;
                found.reordered += u64::from(verdict == Verdict::Reordered);
                self.pairs[source].over += 1;
            }
            Verdict::Duplicate => found.duplicated += 1,
            Verdict::Late | Verdict::Unsent => found.unknown += 1,
        }
    }

    fn under_way(&self) -> u64 {
        self.pairs.iter().zip(&self.sequences).map(|(pair, s)| pair.under_way(s)).sum()
    }

    fn give_up(&mut self) {
        for (pair, sequence) in self.pairs.iter_mut().zip(&self.sequences) {
            pair.over = pair.over.max(sequence.sent);
        }
    }

    fn sum_up(&mut self, time: Duration, frame: Size) {
        let found = &mut self.found;
        found.sent = self.sequences.iter().map(|s| s.sent).sum();
        found.lost = found.sent - found.received;
        found.seconds = time.as_secs_f64();
        found.mpps = found.received as f64 / found.seconds / 1e6;
        found.gbps = found.mpps * frame.mean() * 8e-3;
    }
}

impl<R: Ring> Pair<R> {
    /// A queue pair whose receive ring is full, not published.
    fn new(
        memory: &Memory,
        places: Places,
        [receive, transmit]: [Areas; 2],
        port: usize,
        run: &Run<'_>,
    ) -> Result<Pair<R>, Box<dyn Error>> {
        let (shape, table) = (&run.args.shape, &memory.table);
        let (mut receive, mut transmit) = (R::open(&receive, table)?, R::open(&transmit, table)?);
        receive.arm(None);
        transmit.arm(None);
        let size = usize::from(shape.size);
        let descs = |ring: usize| if places.tables[ring].is_some() { 1 } else { places.parts[ring] };
        let (rooms, frames) = (shape.size / descs(0), shape.size / descs(1));
        let longest = (0..12).map(|n| shape.rooms(run.frame, n)).max().expect("twelve");
        let hold = u64::from(u32::from(rooms) / longest).max(1);
        let mut pair = Pair {
            receive,
            transmit,
            places,
            memory: Lender::new(table.clone()),
            kicks: Vec::new(),
            port,
            free: (0..frames).rev().collect(),
            frames: vec![0; size],
            rooms: vec![0; size],
            parts: Parts::default(),
            over: 0,
            window: run.args.window.map_or(hold, u64::from),
        };
        for entry in 0..rooms {
            if !pair.offer(entry) {
                return Err("the receive ring has no room for its buffers".into());
            }
        }
        let _ = pair.receive.publish();
        Ok(pair)
    }

    /// Offers a receive buffer, which the device sees when it is published.
    fn offer(&mut self, entry: u16) -> bool {
        let part = |part| {
            let (addr, len) = self.places.room(entry, part);
            Segment::write(addr, len)
        };
        let id = add(&mut self.receive, self.places.parts[0], self.places.tables[0].is_some(), part);
        id.map(|id| self.rooms[usize::from(id)] = entry).is_some()
    }

    /// Sends the next frames, as far as window, ring and frames of ours go.
    fn send(
        &mut self,
        sequence: &mut Sequence,
        (source, nonce): (u16, u64),
        run: &Run<'_>,
        bytes: &mut [u8],
    ) {
        for _ in 0..BURST {
            if self.under_way(sequence) >= self.window {
                break;
            }
            let Some(entry) = self.free.pop() else { break };
            let (number, len) = (sequence.sent, run.frame.of(sequence.sent));
            let bytes = &mut bytes[..len as usize];
            sequence::make(bytes, nonce, (source, self.port as u16), number, sequence.flow(number));
            memory::write(&self.memory, self.places.frame(entry), bytes);
            let part = |part| {
                let (addr, len) = self.places.packet(entry, part, len);
                Segment::read(addr, len)
            };
            let id = add(&mut self.transmit, self.places.parts[1], self.places.tables[1].is_some(), part);
            let id = id.expect("as many frames as fit the ring");
            self.frames[usize::from(id)] = entry;
            sequence.sent += 1;
        }
    }

    /// Frames that may still arrive. Those long overtaken are lost, and what was given up may come after
    /// all.
    fn under_way(&self, sequence: &Sequence) -> u64 {
        let overtaken = sequence.top().saturating_sub(self.window / 2);
        sequence.sent.saturating_sub(self.over.max(overtaken))
    }

    fn publish(&mut self) {
        for (ring, kick) in [(&mut self.receive, 0), (&mut self.transmit, 1)] {
            if ring.publish() {
                let _ = ring_bell(&self.kicks[kick]);
            }
        }
    }

    /// Adds what a receive buffer holds to the frame that is arriving; whether it is whole now.
    fn take(&mut self, entry: u16, len: u32, mergeable: bool) -> Result<bool, String> {
        let (places, parts) = (&self.places, &mut self.parts);
        let room: u32 = (0..places.parts[0]).map(|part| places.room(entry, part).1).sum();
        if len > room {
            return Err(format!("the device says it wrote {len} bytes to a buffer of {room}"));
        }
        let (mut at, mut bytes) = (places.room(entry, 0).0, len);
        if parts.left == 0 {
            if len < places.hdr {
                return Err(format!("the device wrote {len} bytes, less than a virtio-net header"));
            }
            let mut header = [0; 12];
            memory::read(&self.memory, places.room_header(entry), &mut header[..places.hdr as usize]);
            let buffers = u16::from_le_bytes([header[10], header[11]]);
            parts.bytes.clear();
            parts.left = if mergeable { buffers.max(1) } else { 1 };
            parts.bad_header = header[..10] != [0; 10] || mergeable && buffers == 0;
            (at, bytes) = (places.room_frame(entry), len - places.hdr);
        }
        let begin = parts.bytes.len();
        parts.bytes.resize(begin + bytes as usize, 0);
        memory::read(&self.memory, at, &mut parts.bytes[begin..]);
        parts.left -= 1;
        Ok(parts.left == 0)
    }
}

/// Adds a chain of one or two parts.
fn add<R: Ring>(ring: &mut R, parts: u16, indirect: bool, part: impl Fn(u16) -> Segment) -> Option<u16> {
    let chain = [part(0), part(parts - 1)];
    let chain = &chain[..usize::from(parts)];
    if indirect { ring.add_indirect(chain) } else { ring.add(chain) }
}
