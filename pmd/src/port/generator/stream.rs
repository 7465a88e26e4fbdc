//! A numbered stream of frames, and what became of them.
//!
//! Every frame is valid Ethernet, IPv4 and UDP and carries, in its payload, the stream, a number and
//! bytes that follow from the number. Whoever gets it back can tell whether it is undamaged and whole,
//! whether it came before, and whether a later one of its flow overtook it, whatever forwarders did to
//! its addresses.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use crate::offload::Sum;
use crate::port::Count;

/// Bytes of the headers (14 + 20 + 8) and of the tag: magic, stream, nonce, number.
pub(super) const HEAD: usize = 58;
/// Largest frame, bytes from the Ethernet header on, without FCS.
pub const MAX_SIZE: u32 = 16_384;
/// Smallest frame: 64 bytes on the wire.
pub const MIN_SIZE: u32 = 60;
/// Source ports of one source address.
const PORTS: u32 = 1024;
const MAGIC: [u8; 2] = [0x48, 0x52];
/// Numbers whose arrival is remembered: 2^20. One that is later than that cannot be judged.
const WORDS: u64 = 1 << 15;
const BITS: u64 = 32;

/// Payloads begin at one of so many places of the pattern, so that pieces of two frames never fit.
const PHASES: usize = 251;

static PATTERN: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..MAX_SIZE as usize + PHASES)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
});

/// Streams of this process, by number: a generator can check frames that another one sent.
static STREAMS: Mutex<Vec<Weak<Stream>>> = Mutex::new(Vec::new());

/// Addresses of a stream's frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) src_mac: [u8; 6],
    pub(super) dst_mac: [u8; 6],
    pub(super) src_ip: Ipv4Addr,
    pub(super) dst_ip: Ipv4Addr,
    pub(super) dst_port: u16,
}

/// The flows of a stream: every `step`-th of the port's, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flows {
    first: u32,
    step: u32,
    count: u32,
}

impl Flows {
    /// The share of queue `index` of `queues` in `flows` flows; at least one.
    pub(super) fn share(flows: u32, index: u16, queues: u16) -> Flows {
        let (index, queues) = (u32::from(index), u32::from(queues));
        if index < flows {
            Flows { first: index, step: queues, count: (flows - index).div_ceil(queues) }
        } else {
            Flows { first: index % flows, step: 0, count: 1 }
        }
    }

    fn of(self, seq: u64) -> (usize, u32) {
        let local = (seq % u64::from(self.count)) as u32;
        (local as usize, self.first + local * self.step)
    }
}

/// What a frame that came back turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not one of ours.
    Foreign,
    /// One of ours, not as it was sent.
    Damaged,
    /// Undamaged, and the first with its number.
    Good,
    /// Undamaged; its number came before.
    Duplicate,
    /// Undamaged; more than 2^20 later ones are here: whether it came before is unknown.
    Late,
}

/// One stream: written by the queue that sends it, judged by whoever receives.
#[derive(Debug)]
pub(super) struct Stream {
    id: u16,
    nonce: u32,
    sizes: Vec<u32>,
    addresses: Addresses,
    flows: Flows,
    /// Payload sums, by size and phase.
    sums: Vec<u16>,
    /// Frames sent.
    pub(super) sent: Count,
    /// Round `n + 1` in the upper half, a bit per number in the lower.
    seen: Box<[AtomicU64]>,
    /// By flow: the highest number that arrived, plus one.
    newest: Box<[AtomicU64]>,
    pub(super) received: AtomicU64,
    pub(super) duplicated: AtomicU64,
    pub(super) reordered: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) damaged: AtomicU64,
}

impl Stream {
    /// A stream of frames of `sizes`, in turn. Only a `checked` one keeps account of what comes back.
    /// `None`: 65,536 streams are alive.
    pub(super) fn new(
        sizes: &[u32],
        addresses: Addresses,
        flows: Flows,
        checked: bool,
    ) -> Option<Arc<Stream>> {
        let pattern = &*PATTERN;
        let sums = sizes.iter().flat_map(|&size| {
            (0..PHASES).map(move |phase| {
                let mut sum = Sum::default();
                sum.add(&pattern[phase..phase + size as usize - HEAD]);
                sum.partial()
            })
        });
        let zeroes = |n: u64| (0..if checked { n } else { 0 }).map(|_| AtomicU64::new(0)).collect();
        let mut nonce = [0; 4];
        // Without a random number, frames of an earlier stream could be taken for this one's: rare.
        let _ = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::NONBLOCK);
        let mut stream = Stream {
            id: 0,
            nonce: u32::from_ne_bytes(nonce),
            sizes: sizes.to_vec(),
            addresses,
            flows,
            sums: sums.collect(),
            sent: Count::default(),
            seen: zeroes(WORDS),
            newest: zeroes(u64::from(flows.count)),
            received: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            reordered: AtomicU64::new(0),
            late: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        };
        let mut all = STREAMS.lock().expect("no holder panics");
        let free = all.iter().position(|s| s.strong_count() == 0).unwrap_or(all.len());
        stream.id = u16::try_from(free).ok()?;
        let stream = Arc::new(stream);
        if free == all.len() {
            all.push(Arc::downgrade(&stream));
        } else {
            all[free] = Arc::downgrade(&stream);
        }
        Some(stream)
    }

    /// Frame `seq`: its first [`HEAD`] bytes, and the rest.
    #[inline]
    pub(super) fn frame(&self, seq: u64) -> ([u8; HEAD], &'static [u8]) {
        let which = (seq % self.sizes.len() as u64) as usize;
        let size = self.sizes[which] as usize;
        let phase = (seq % PHASES as u64) as usize;
        let (_, flow) = self.flows.of(seq);
        let src = self.source(flow);
        let a = &self.addresses;
        let mut head = [0; HEAD];
        head[..6].copy_from_slice(&a.dst_mac);
        head[6..12].copy_from_slice(&a.src_mac);
        head[12..14].copy_from_slice(&[0x08, 0x00]);
        head[14] = 0x45;
        head[16..18].copy_from_slice(&((size - 14) as u16).to_be_bytes());
        head[20] = 0x40; // DF
        head[22] = 64; // TTL
        head[23] = 17; // UDP
        head[26..30].copy_from_slice(&src.0.octets());
        head[30..34].copy_from_slice(&a.dst_ip.octets());
        let mut sum = Sum::default();
        sum.add(&head[14..34]);
        head[24..26].copy_from_slice(&sum.bytes());
        head[34..36].copy_from_slice(&src.1.to_be_bytes());
        head[36..38].copy_from_slice(&a.dst_port.to_be_bytes());
        head[38..40].copy_from_slice(&((size - 34) as u16).to_be_bytes());
        head[42..44].copy_from_slice(&MAGIC);
        head[44..46].copy_from_slice(&self.id.to_be_bytes());
        head[46..50].copy_from_slice(&self.nonce.to_be_bytes());
        head[50..58].copy_from_slice(&seq.to_be_bytes());
        let mut sum = pseudo(&head, size);
        sum.add(&head[34..HEAD]);
        sum.add_word(self.sums[which * PHASES + phase]);
        head[40..42].copy_from_slice(&sum.stored());
        (head, &PATTERN[phase..phase + size - HEAD])
    }

    fn source(&self, flow: u32) -> (Ipv4Addr, u16) {
        let ip = u32::from(self.addresses.src_ip).wrapping_add(flow / PORTS);
        (Ipv4Addr::from(ip), 1024 + (flow % PORTS) as u16)
    }

    /// Judges `frame`, which names this stream, and counts it.
    fn judge(&self, frame: &[u8]) -> Verdict {
        let verdict = if self.intact(frame) { self.arrived(number(frame)) } else { Verdict::Damaged };
        let count = match verdict {
            Verdict::Good => &self.received,
            Verdict::Duplicate => &self.duplicated,
            Verdict::Late => &self.late,
            Verdict::Damaged | Verdict::Foreign => &self.damaged,
        };
        // Relaxed: a count orders nothing.
        count.fetch_add(1, Ordering::Relaxed);
        verdict
    }

    /// Whether the frame is, but for MAC addresses, TTL and a swap of its ends, as it was sent.
    fn intact(&self, frame: &[u8]) -> bool {
        let seq = number(frame);
        if seq >= self.sent.get() {
            return false;
        }
        let size = self.sizes[(seq % self.sizes.len() as u64) as usize] as usize;
        if frame.len() != size
            || frame[16..18] != ((size - 14) as u16).to_be_bytes()
            || frame[38..40] != ((size - 34) as u16).to_be_bytes()
            || frame[HEAD..] != PATTERN[(seq % PHASES as u64) as usize..][..size - HEAD]
        {
            return false;
        }
        let mut ip = Sum::default();
        ip.add(&frame[14..34]);
        let mut udp = pseudo(frame, size);
        udp.add(&frame[34..]);
        ip.verifies() && udp.verifies() && frame[40..42] != [0, 0] && self.ends(frame, seq)
    }

    fn ends(&self, frame: &[u8], seq: u64) -> bool {
        let (ip, port) = self.source(self.flows.of(seq).1);
        let (src, dst) = (ip.octets(), self.addresses.dst_ip.octets());
        let (sport, dport) = (port.to_be_bytes(), self.addresses.dst_port.to_be_bytes());
        let ips = (&frame[26..30], &frame[30..34]);
        let ports = (&frame[34..36], &frame[36..38]);
        (ips == (&src, &dst) || ips == (&dst, &src))
            && (ports == (&sport, &dport) || ports == (&dport, &sport))
    }

    /// Remembers that number `seq` is here.
    fn arrived(&self, seq: u64) -> Verdict {
        let (word, round, bit) = ((seq / BITS) % WORDS, seq / BITS / WORDS + 1, 1u64 << (seq % BITS));
        let Some(seen) = self.seen.get(word as usize) else { return Verdict::Good };
        // Relaxed throughout: the words say all there is to say, and order nothing else.
        let mut old = seen.load(Ordering::Relaxed);
        loop {
            let bits = match (old >> BITS).cmp(&round) {
                std::cmp::Ordering::Greater => return Verdict::Late,
                std::cmp::Ordering::Equal if old & bit != 0 => return Verdict::Duplicate,
                std::cmp::Ordering::Equal => old | bit,
                std::cmp::Ordering::Less => round << BITS | bit,
            };
            match seen.compare_exchange_weak(old, bits, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        let newest = &self.newest[self.flows.of(seq).0];
        if newest.fetch_max(seq + 1, Ordering::Relaxed) > seq + 1 {
            self.reordered.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Good
    }
}

fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[50..58].try_into().expect("8 bytes"))
}

/// The sum of the UDP pseudo header (RFC 768) of a frame of `size` bytes.
fn pseudo(frame: &[u8], size: usize) -> Sum {
    let mut sum = Sum::default();
    sum.add(&frame[26..34]);
    sum.add_word(17);
    sum.add_word((size - 34) as u16);
    sum
}

/// Finds the stream of each frame that comes back.
#[derive(Debug, Default)]
pub(super) struct Judge {
    known: Vec<Option<Arc<Stream>>>,
}

impl Judge {
    /// Judges one frame, whole and without transport header.
    pub(super) fn judge(&mut self, frame: &[u8]) -> Verdict {
        let ours = frame.len() >= HEAD
            && frame[12..15] == [0x08, 0x00, 0x45]
            && frame[23] == 17
            && frame[42..44] == MAGIC;
        if !ours {
            return Verdict::Foreign;
        }
        let id = u16::from_be_bytes([frame[44], frame[45]]);
        let nonce = u32::from_be_bytes(frame[46..50].try_into().expect("4 bytes"));
        match self.stream(id, nonce) {
            Some(stream) => stream.judge(frame),
            None => Verdict::Foreign,
        }
    }

    #[inline]
    fn stream(&mut self, id: u16, nonce: u32) -> Option<&Stream> {
        let known = matches!(self.known.get(usize::from(id)), Some(Some(s)) if s.nonce == nonce);
        if !known && !self.learn(id, nonce) {
            return None;
        }
        self.known[usize::from(id)].as_deref()
    }

    /// Once per stream, and for every frame that names none.
    #[cold]
    fn learn(&mut self, id: u16, nonce: u32) -> bool {
        let all = STREAMS.lock().expect("no holder panics");
        let Some(stream) = all.get(usize::from(id)).and_then(Weak::upgrade) else { return false };
        if stream.nonce != nonce {
            return false;
        }
        if self.known.len() <= usize::from(id) {
            self.known.resize(usize::from(id) + 1, None);
        }
        self.known[usize::from(id)] = Some(stream);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use std::collections::HashSet;

    fn stream(sizes: &[u32], flows: Flows) -> Arc<Stream> {
        let addresses = Addresses {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            src_ip: Ipv4Addr::new(198, 18, 0, 1),
            dst_ip: Ipv4Addr::new(198, 19, 0, 1),
            dst_port: 9,
        };
        Stream::new(sizes, addresses, flows, true).unwrap()
    }

    fn whole(stream: &Stream, seq: u64) -> Vec<u8> {
        let (head, rest) = stream.frame(seq);
        [&head[..], rest].concat()
    }

    #[test]
    fn frames_are_valid_for_another_parser() {
        let stream = stream(&[60, 61, 594, 1514, MAX_SIZE], Flows::share(3000, 0, 1));
        let mut flows = HashSet::new();
        for seq in 0..6000 {
            let frame = whole(&stream, seq);
            let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = parsed.net else { panic!("no IPv4") };
            let Some(TransportSlice::Udp(udp)) = parsed.transport else { panic!("no UDP") };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let udp_header = udp.to_header();
            let sum = udp_header.calc_checksum_ipv4(&header, udp.payload()).unwrap();
            assert_eq!(udp_header.checksum, sum, "{seq}");
            flows.insert((header.source, udp_header.source_port));
        }
        assert_eq!(flows.len(), 3000);
    }

    #[test]
    fn queues_share_the_flows_without_overlap() {
        for (flows, queues) in [(1, 1), (7, 3), (1_000_000, 4), (2, 4)] {
            let mut all: Vec<u32> = Vec::new();
            for index in 0..queues.min(flows as u16) {
                let share = Flows::share(flows, index, queues);
                all.extend((0..u64::from(share.count)).map(|seq| share.of(seq).1));
            }
            all.sort_unstable();
            assert!(all.into_iter().eq(0..flows), "{flows} flows on {queues} queues");
            assert!(Flows::share(flows, queues - 1, queues).of(5).1 < flows);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_noticed() {
        let stream = stream(&[90], Flows::share(1, 0, 1));
        stream.sent.add(1);
        let mut judge = Judge::default();
        let frame = whole(&stream, 0);
        for bit in 14 * 8..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(judge.judge(&bad), Verdict::Damaged | Verdict::Foreign), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(matches!(judge.judge(&frame[..len]), Verdict::Damaged | Verdict::Foreign), "{len}");
        }
        assert_eq!(judge.judge(&[&frame[..], &[0]].concat()), Verdict::Damaged);
        assert_eq!(judge.judge(&whole(&stream, 1)), Verdict::Damaged, "never sent");
        assert_eq!((judge.judge(&frame), judge.judge(&frame)), (Verdict::Good, Verdict::Duplicate));
    }

    #[test]
    fn pieces_of_two_frames_do_not_pass_as_one() {
        let stream = stream(&[1514], Flows::share(1, 0, 1));
        stream.sent.add(2);
        let (a, b) = (whole(&stream, 0), whole(&stream, 1));
        for cut in [HEAD, 64, 128, 1024, 1513] {
            let mixed = [&a[..cut], &b[cut..]].concat();
            assert_eq!(Judge::default().judge(&mixed), Verdict::Damaged, "cut at {cut}");
        }
    }

    #[test]
    fn forwarders_may_swap_ends_and_lower_the_ttl() {
        let stream = stream(&[60], Flows::share(1, 0, 1));
        stream.sent.add(1);
        let mut frame = whole(&stream, 0);
        frame[..6].fill(9);
        let (src, dst): (Vec<u8>, Vec<u8>) = (frame[26..30].into(), frame[30..34].into());
        frame[26..30].copy_from_slice(&dst);
        frame[30..34].copy_from_slice(&src);
        let (sport, dport): (Vec<u8>, Vec<u8>) = (frame[34..36].into(), frame[36..38].into());
        frame[34..36].copy_from_slice(&dport);
        frame[36..38].copy_from_slice(&sport);
        frame[22] = 63;
        frame[24..26].fill(0);
        let mut sum = Sum::default();
        sum.add(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.bytes());
        assert_eq!(Judge::default().judge(&frame), Verdict::Good);
    }

    #[test]
    fn counts_what_overtook_what_by_flow_and_forgets_the_old() {
        let stream = stream(&[60], Flows::share(2, 0, 1));
        let window = WORDS * BITS;
        stream.sent.add(3 * window);
        // Two flows: even and odd numbers. 4 overtakes 2; 1 and 3 are in order.
        for (seq, verdict) in [(0, Verdict::Good), (4, Verdict::Good), (1, Verdict::Good), (2, Verdict::Good)]
        {
            assert_eq!(stream.arrived(seq), verdict);
        }
        assert_eq!((stream.arrived(3), stream.arrived(2)), (Verdict::Good, Verdict::Duplicate));
        assert_eq!(stream.reordered.load(Ordering::Relaxed), 1);
        assert_eq!(stream.arrived(window + 6), Verdict::Good);
        assert_eq!(stream.arrived(5), Verdict::Late);
        assert_eq!(stream.arrived(window + 6), Verdict::Duplicate);
        assert_eq!(stream.arrived(40), Verdict::Good, "another word");
    }
}
