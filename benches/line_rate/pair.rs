//! A queue pair whose driver looks at everything: at each byte of each frame, and at what the device says
//! of each descriptor.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;

use hugepages::Lender;
use pmd::vring::driver::{Areas, Lie, Ring, Segment};
use pmd::vring::{RingLayout, Way};

use crate::args::Shape;
use crate::frontend::ring_bell;
use crate::memory::{self, Memory, Places};
use crate::run::Run;
use crate::sequence::{self, Sequence};

/// Frames that are sent in a turn.
const BURST: u16 = 32;

/// Where a ring of this shape lies.
pub(crate) fn areas(at: u64, shape: &Shape) -> Areas {
    Areas::at(at, shape.size, shape.features(), if shape.indirect { 2 } else { 0 })
}

/// A queue pair.
pub(crate) struct Pair<R> {
    receive: R,
    transmit: R,
    places: Places,
    memory: Lender,
    kicks: Vec<OwnedFd>,
    /// The port it belongs to, and its number among all queue pairs.
    pub(crate) port: usize,
    index: u16,
    mergeable: bool,
    /// What it sends, and what became of it.
    pub(crate) sequence: Sequence,
    /// Frames of it that are not under way any more: arrived, or given up.
    pub(crate) over: u64,
    /// Frames of it that may be under way.
    pub(crate) window: u64,
    /// Frames that the device does not have.
    free: Vec<u16>,
    /// By id: which frame, or which receive buffer.
    frames: Vec<u16>,
    rooms: Vec<u16>,
    /// The frame that is arriving: receive buffers to come, and what is there.
    left: u16,
    bytes: Vec<u8>,
    bad_header: bool,
    /// The frame that is being made.
    made: Vec<u8>,
}

impl<R: Ring> Pair<R> {
    /// The `index`-th queue pair of all, of port `port`, at these places; its receive ring is full.
    pub(crate) fn new(
        memory: &Memory,
        places: Places,
        (port, index): (usize, usize),
        run: &Run<'_>,
    ) -> Result<Pair<R>, Box<dyn Error>> {
        let shape = &run.args.shape;
        let open = |at| R::open(&areas(at, shape), &memory.table);
        let [mut receive, mut transmit] = [open(places.rings[0])?, open(places.rings[1])?];
        receive.arm(None);
        transmit.arm(None);
        let size = usize::from(shape.size);
        let entries = |ring: usize| match places.tables[ring] {
            Some(_) => shape.size,
            None => shape.size / places.parts[ring],
        };
        // As many frames as find room, however many buffers they take.
        let longest = (0..12).map(|n| shape.rooms(run.frame, n)).max().expect("twelve");
        let hold = u64::from(u32::from(entries(0)) / longest).max(1);
        let mut pair = Pair {
            receive,
            transmit,
            places,
            memory: Lender::new(memory.table.clone()),
            kicks: Vec::new(),
            port,
            index: index as u16,
            mergeable: run.mergeable(),
            sequence: Sequence::new(shape.flows),
            over: 0,
            window: run.args.window.map_or(hold, u64::from),
            free: (0..entries(1)).rev().collect(),
            frames: vec![0; size],
            rooms: vec![0; size],
            left: 0,
            bytes: Vec::new(),
            bad_header: false,
            made: vec![0; run.frame.longest() as usize],
        };
        for entry in 0..entries(0) {
            pair.offer(entry);
        }
        // The device is not there yet; it is kicked when it is.
        let _ = pair.receive.publish();
        Ok(pair)
    }

    /// Its rings, as a back-end is told of them.
    pub(crate) fn rings(&self, shape: &Shape) -> [RingLayout; 2] {
        let [receive, transmit] = self.places.rings.map(|at| areas(at, shape));
        [receive.ring(Way::ToDriver), transmit.ring(Way::FromDriver)]
    }

    /// The device is there, and is kicked by these: receive, transmit.
    pub(crate) fn begin(&mut self, kicks: Vec<OwnedFd>) -> io::Result<()> {
        self.kicks = kicks;
        self.kicks.iter().try_for_each(ring_bell)
    }

    /// Frames that may still arrive. Those long overtaken are lost, and what was given up may come after
    /// all.
    pub(crate) fn under_way(&self) -> u64 {
        let overtaken = self.sequence.top().saturating_sub(self.window / 2);
        self.sequence.sent.saturating_sub(self.over.max(overtaken))
    }

    /// Forgets all that was sent so far.
    pub(crate) fn forget(&mut self, window: u64, flows: u32) {
        (self.over, self.window, self.sequence) = (0, window, Sequence::new(flows));
    }

    /// Takes frames back that the device has read.
    pub(crate) fn reap(&mut self) -> Result<(), Lie> {
        while let Some(used) = self.transmit.used()? {
            self.free.push(self.frames[usize::from(used.id)]);
        }
        Ok(())
    }

    /// Takes the next receive buffer that the device has filled: whether a frame is whole with it, or
    /// `None` if there is none.
    pub(crate) fn receive(&mut self) -> Result<Option<bool>, Box<dyn Error>> {
        let Some(used) = self.receive.used()? else { return Ok(None) };
        let entry = self.rooms[usize::from(used.id)];
        self.take(entry, used.len)?;
        self.offer(entry);
        Ok(Some(self.left == 0))
    }

    /// The frame that is whole now.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether its virtio-net header asks for something, or counts no buffers.
    pub(crate) fn bad_header(&self) -> bool {
        self.bad_header
    }

    /// Adds the next frames, as far as window, ring and frames of ours go. `nonce` tells them from those
    /// of another run.
    pub(crate) fn send(&mut self, nonce: u64, run: &Run<'_>) {
        for _ in 0..BURST {
            if self.under_way() >= self.window {
                break;
            }
            let Some(entry) = self.free.pop() else { break };
            let number = self.sequence.sent;
            let len = run.frame.of(number);
            let made = &mut self.made[..len as usize];
            let flow = self.sequence.flow(number);
            sequence::make(made, nonce, (self.index, self.port as u16), number, flow);
            memory::write(&self.memory, self.places.frame(entry), made);
            let part = |part| {
                let (addr, len) = self.places.packet(entry, part, len);
                Segment::read(addr, len)
            };
            let id = add(&mut self.transmit, self.places.parts[1], self.places.tables[1].is_some(), part);
            self.frames[usize::from(id)] = entry;
            self.sequence.sent += 1;
        }
    }

    /// Shows the device what was added and offered, and kicks it if it asks for that.
    pub(crate) fn publish(&mut self) {
        for (ring, kick) in [(&mut self.receive, 0), (&mut self.transmit, 1)] {
            if ring.publish() {
                // A full eventfd has been kicked.
                let _ = ring_bell(&self.kicks[kick]);
            }
        }
    }

    /// Offers a receive buffer.
    fn offer(&mut self, entry: u16) {
        let part = |part| {
            let (addr, len) = self.places.room(entry, part);
            Segment::write(addr, len)
        };
        let id = add(&mut self.receive, self.places.parts[0], self.places.tables[0].is_some(), part);
        self.rooms[usize::from(id)] = entry;
    }

    /// Adds what a receive buffer holds to the frame that is arriving.
    fn take(&mut self, entry: u16, len: u32) -> Result<(), String> {
        let places = &self.places;
        let room: u32 = (0..places.parts[0]).map(|part| places.room(entry, part).1).sum();
        if len > room {
            return Err(format!("the device says it wrote {len} bytes to a buffer of {room}"));
        }
        let (mut at, mut rest) = (places.room(entry, 0).0, len);
        if self.left == 0 {
            rest = len.checked_sub(places.hdr).ok_or_else(|| {
                format!("the device says it wrote {len} bytes, less than a virtio-net header")
            })?;
            at = places.room_frame(entry);
            let mut header = [0; 12];
            memory::read(&self.memory, places.room_header(entry), &mut header[..places.hdr as usize]);
            let buffers = u16::from_le_bytes([header[10], header[11]]);
            self.left = if self.mergeable { buffers.max(1) } else { 1 };
            self.bad_header = header[..10] != [0; 10] || self.mergeable && buffers == 0;
            self.bytes.clear();
        }
        let begin = self.bytes.len();
        self.bytes.resize(begin + rest as usize, 0);
        memory::read(&self.memory, at, &mut self.bytes[begin..]);
        self.left -= 1;
        Ok(())
    }
}

/// Adds a chain of one or two parts, for which there is room.
fn add<R: Ring>(ring: &mut R, parts: u16, indirect: bool, part: impl Fn(u16) -> Segment) -> u16 {
    let chain = [part(0), part(parts - 1)];
    let chain = &chain[..usize::from(parts)];
    let id = if indirect { ring.add_indirect(chain) } else { ring.add(chain) };
    id.expect("no more are added than fit the ring")
}
