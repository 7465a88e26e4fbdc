//! A queue pair whose driver costs next to nothing: rings kept full, or filled at a pace; entries
//! recycled without a look at what is in them.

use std::io;
use std::os::fd::OwnedFd;

use benches::{Entries, Near};
use hugepages::{Lender, Window, Words};
use pmd::vring::Way;

use crate::args::{Mode, Shape};
use crate::frames::{self, HEADERS, Size};
use crate::frontend::ring_bell;
use crate::memory::{self, Memory, Places};

/// The tag of a frame, behind its headers: which lane sends it, and which entry of that lane.
pub(crate) const TAG: usize = HEADERS;

/// One queue pair.
pub(crate) struct Lane {
    receive: Near,
    transmit: Near,
    places: Places,
    /// The receive buffers' memory, to read a tag or a header now and then.
    memory: Lender,
    flows: Option<Flows>,
    kick: Option<OwnedFd>,
    /// Transmit entries that the device does not have.
    free: u16,
    /// Receive entries that the device has used and that were not offered again.
    home: u16,
    /// Receive buffers used, and frames taken by the device, since it began.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// Frames offered since it began.
    pub(crate) offered: u64,
}

/// More flows than frames: they are written into the frames when these are sent.
struct Flows {
    words: Window<u16>,
    port: u16,
    next: u32,
    count: u32,
}

/// What arrived at the end of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) frames: u64,
    pub(crate) buffers: u64,
    pub(crate) bytes: u64,
}

impl Lane {
    /// Queue pair `pair` of port `port`, the `index`-th lane of all; its frames are written.
    pub(crate) fn new(
        memory: &Memory,
        shape: &Shape,
        frame: Size,
        (port, pair, index): (u16, usize, u16),
    ) -> Lane {
        let places = memory.pairs[pair];
        let (table, features) = (&memory.table, shape.features());
        let near = |ring: usize, way, part: &dyn Fn(u16, u16) -> (u64, u32)| {
            let entries = Entries { parts: places.parts[ring], tables: places.tables[ring], part };
            Near::of(table, places.rings[ring], shape.size, features, way, entries)
        };
        let receive = near(0, Way::ToDriver, &|entry, part| places.room(entry, part));
        let transmit =
            near(1, Way::FromDriver, &|entry, part| places.packet(entry, part, frame.of(u64::from(entry))));
        let (free, lender) = (transmit.entries(), Lender::new(table.clone()));
        let frames = u32::from(shape.queues) * u32::from(free);
        for entry in 0..free {
            let mut bytes = vec![0; frame.of(u64::from(entry)) as usize];
            let number = pair as u32 * u32::from(free) + u32::from(entry);
            frames::headers(&mut bytes, port, number % shape.flows);
            bytes[TAG..TAG + 2].copy_from_slice(&index.to_le_bytes());
            bytes[TAG + 2..TAG + 4].copy_from_slice(&entry.to_le_bytes());
            memory::write(&lender, places.frame(entry), &bytes);
        }
        let end = places.frame(free - 1) + u64::from(frames::SMALLEST);
        let flows = (shape.flows > frames).then(|| Flows {
            words: table.window(0, (end / 2) as usize).expect("the frames lie in the memory"),
            port,
            next: (u64::from(shape.flows) * pair as u64 / u64::from(shape.queues)) as u32,
            count: shape.flows,
        });
        Lane {
            receive,
            transmit,
            places,
            memory: lender,
            flows,
            kick: None,
            free,
            home: 0,
            received: 0,
            sent: 0,
            offered: 0,
        }
    }

    /// The two rings, as a back-end is told of them.
    pub(crate) fn rings(&self) -> [pmd::vring::RingLayout; 2] {
        [self.receive.layout, self.transmit.layout]
    }

    /// Offers all receive buffers; the device is running, and kicked by `kicks` (receive, transmit).
    pub(crate) fn begin(&mut self, kicks: [OwnedFd; 2]) -> io::Result<()> {
        let [receive, transmit] = kicks;
        self.receive.offer(self.receive.entries());
        ring_bell(&receive)?;
        self.kick = Some(transmit);
        Ok(())
    }

    /// Entries of its transmit ring.
    pub(crate) fn entries(&self) -> u16 {
        self.transmit.entries()
    }

    /// Entries of its receive ring.
    pub(crate) fn rooms(&self) -> u16 {
        self.receive.entries()
    }

    /// Transmit entries that the device does not have.
    pub(crate) fn free(&self) -> u16 {
        self.free
    }

    /// Offers all that the device does not have, and kicks it.
    pub(crate) fn fill(&mut self, mode: Mode) -> io::Result<()> {
        self.receive.offer(std::mem::take(&mut self.home));
        if mode != Mode::Enqueue {
            let n = std::mem::take(&mut self.free);
            self.transmit.offer(n);
            self.offered += u64::from(n);
        }
        self.kick.as_ref().map_or(Ok(()), ring_bell)
    }

    /// Offers again what the device has used; whether that was at least `least` of a ring. Nothing is
    /// looked at but indices or flags.
    #[inline(always)]
    pub(crate) fn turn(&mut self, least: u16) -> bool {
        let got = self.receive.used(u16::MAX);
        let sent = self.transmit.used(u16::MAX);
        if got > 0 {
            self.receive.offer(got);
        }
        if sent > 0 {
            if let Some(flows) = &mut self.flows {
                flows.write(&self.places, self.offered, sent, self.transmit.entries());
            }
            self.transmit.offer(sent);
            self.offered += u64::from(sent);
        }
        self.received += u64::from(got);
        self.sent += u64::from(sent);
        got.max(sent) >= least
    }

    /// Takes what the device has used: how many receive buffers. They are offered again at a later call,
    /// when there are enough of them, so that the device is not disturbed for each.
    #[inline(always)]
    pub(crate) fn collect(&mut self) -> u16 {
        if self.home > 0 && self.home >= self.receive.entries() / 8 {
            self.receive.offer(std::mem::take(&mut self.home));
        }
        let got = self.receive.used(u16::MAX);
        self.received += u64::from(got);
        self.home += got;
        let sent = self.transmit.used(u16::MAX);
        self.sent += u64::from(sent);
        self.free += sent;
        got
    }

    /// Offers up to `n` frames, as far as the ring has room, and kicks a device that sleeps: how many.
    #[inline(always)]
    pub(crate) fn send(&mut self, n: u16) -> u16 {
        let n = n.min(self.free);
        if n == 0 {
            return 0;
        }
        if let Some(flows) = &mut self.flows {
            flows.write(&self.places, self.offered, n, self.transmit.entries());
        }
        self.transmit.offer(n);
        self.free -= n;
        self.offered += u64::from(n);
        if self.transmit.wants_kick()
            && let Some(kick) = &self.kick
        {
            let _ = ring_bell(kick);
        }
        n
    }

    /// Lane and entry that receive buffer number `n` says its frame is from. It must be used, the first
    /// of its frame, and not older than a lap.
    #[inline]
    pub(crate) fn tag(&self, n: u64) -> (u16, u16) {
        let entry = (n % u64::from(self.receive.entries())) as u16;
        let mut tag = [0; 4];
        memory::read(&self.memory, self.places.room_frame(entry) + TAG as u64, &mut tag);
        (u16::from_le_bytes([tag[0], tag[1]]), u16::from_le_bytes([tag[2], tag[3]]))
    }

    /// Takes the next buffers that the device fills, without offering them again, until there are no
    /// more: what was in them.
    pub(crate) fn sample(&mut self, mergeable: bool) -> Sample {
        let mut sample = Sample::default();
        let since = std::time::Instant::now();
        while self.home < self.receive.entries() && since.elapsed().as_millis() < 20 {
            let got = self.receive.used(u16::MAX);
            let mut left = 0;
            for back in (0..got).rev() {
                let entry = (self.received % u64::from(self.receive.entries())) as u16;
                self.received += 1;
                if left == 0 {
                    left = if mergeable { self.buffers(entry).max(1) } else { 1 };
                    sample.frames += 1;
                }
                left -= 1;
                sample.buffers += 1;
                sample.bytes += u64::from(self.receive.said(back).1);
            }
            self.home += got;
        }
        sample.bytes = sample.bytes.saturating_sub(sample.frames * u64::from(self.places.hdr));
        sample
    }

    /// `num_buffers` in the header of a receive entry (virtio 1.3 §5.1.6).
    fn buffers(&self, entry: u16) -> u16 {
        let mut number = [0; 2];
        memory::read(&self.memory, self.places.room_header(entry) + 10, &mut number);
        u16::from_le_bytes(number)
    }
}

impl Flows {
    /// Writes the next flows into `n` frames, from number `first` on.
    fn write(&mut self, places: &Places, first: u64, n: u16, entries: u16) {
        for i in 0..u64::from(n) {
            let at = places.frame(((first + i) % u64::from(entries)) as u16);
            for (field, word) in frames::fields(self.port, self.next) {
                self.words.set((at as usize + field) / 2, u16::from_ne_bytes(word));
            }
            self.next = if self.next + 1 == self.count { 0 } else { self.next + 1 };
        }
    }
}
