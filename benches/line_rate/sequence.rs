//! Numbered frames, and what became of them.
//!
//! A frame carries, behind its headers, its source, its number and a checksum over all of it. Whoever
//! gets it back can tell whether it is one of ours, whole and undamaged, whether it came before, and
//! whether a later one of its flow overtook it.

use crate::frames::{self, HEADERS};

/// Numbers whose arrival is remembered: 2^20. One that is later than that cannot be judged.
const WINDOW: u64 = 1 << 20;
/// Where the checksum lies; before it, in one word, the source (16 bits) and the number (48 bits).
const SUM: usize = HEADERS + 8;
const PATTERN: usize = SUM + 8;

/// What a frame that arrived turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Undamaged, and the first with its number.
    Good,
    /// The same; a later one of its flow was here before.
    Reordered,
    /// Undamaged; its number came before.
    Duplicate,
    /// Undamaged; more than 2^20 later ones are here.
    Late,
    /// Undamaged; nobody has sent this number.
    Unsent,
}

/// What was sent from one source, and what came of it.
pub(crate) struct Sequence {
    pub(crate) sent: u64,
    flows: u64,
    /// By flow: the highest number that arrived, plus one.
    newest: Vec<u64>,
    /// The highest number that arrived, plus one; a bit for each of the last [`WINDOW`] before it.
    top: u64,
    seen: Vec<u64>,
}

impl Sequence {
    /// Nothing sent yet, in so many flows, which take turns.
    pub(crate) fn new(flows: u32) -> Sequence {
        let (newest, seen) = (vec![0; flows as usize], vec![0; (WINDOW / 64) as usize]);
        Sequence { sent: 0, flows: flows.into(), newest, top: 0, seen }
    }

    /// The flow of a number.
    pub(crate) fn flow(&self, number: u64) -> u32 {
        (number % self.flows) as u32
    }

    /// The highest number that arrived, plus one.
    pub(crate) fn top(&self) -> u64 {
        self.top
    }

    /// Judges the arrival of an undamaged frame.
    pub(crate) fn arrived(&mut self, number: u64) -> Verdict {
        if number >= self.sent {
            return Verdict::Unsent;
        }
        if number >= self.top {
            // Whole laps need no more than one clearing.
            for n in self.top.max((number + 1).saturating_sub(WINDOW))..=number {
                *self.word(n) &= !(1 << (n % 64));
            }
            self.top = number + 1;
        } else if self.top - number > WINDOW {
            return Verdict::Late;
        }
        let word = self.word(number);
        if *word >> (number % 64) & 1 != 0 {
            return Verdict::Duplicate;
        }
        *word |= 1 << (number % 64);
        let newest = &mut self.newest[(number % self.flows) as usize];
        if number < *newest {
            return Verdict::Reordered;
        }
        *newest = number + 1;
        Verdict::Good
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        &mut self.seen[(number % WINDOW / 64) as usize]
    }
}

/// Makes frame `number` of `source`: headers, number, checksum, and bytes that follow from the number.
/// `run` tells the frames of one run from those of another.
pub(crate) fn make(frame: &mut [u8], run: u64, (source, port): (u16, u16), number: u64, flow: u32) {
    frames::headers(frame, port, flow);
    frame[HEADERS..SUM].copy_from_slice(&(u64::from(source) << 48 | number).to_le_bytes());
    let mut state = number ^ run;
    for bytes in frame[PATTERN..].chunks_mut(8) {
        state = mix(state.wrapping_add(0x9E37_79B9_7F4A_7C15));
        bytes.copy_from_slice(&state.to_le_bytes()[..bytes.len()]);
    }
    let sum = sum(frame, run);
    frame[SUM..PATTERN].copy_from_slice(&sum.to_le_bytes());
}

/// Source and number of a frame that is whole and undamaged.
pub(crate) fn read(frame: &[u8], run: u64) -> Option<(u16, u64)> {
    let word = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("8 bytes"));
    if frame.len() < PATTERN || word(SUM) != sum(frame, run) {
        return None;
    }
    let tag = word(HEADERS);
    Some(((tag >> 48) as u16, tag & ((1 << 48) - 1)))
}

/// A checksum over length and all bytes but its own. Each step is one-to-one, so that a wrong word is
/// always noticed.
fn sum(frame: &[u8], run: u64) -> u64 {
    let mut sum = run ^ frame.len() as u64;
    let mut add = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    };
    frame[..SUM].chunks(8).for_each(&mut add);
    frame[PATTERN..].chunks(8).for_each(&mut add);
    mix(sum)
}

/// The finish of splitmix64: every bit of the input moves half of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Duplicate, Good, Late, Reordered, Unsent};

    fn sent(flows: u32, sent: u64) -> Sequence {
        Sequence { sent, ..Sequence::new(flows) }
    }

    fn judge(sequence: &mut Sequence, numbers: &[u64]) -> Vec<Verdict> {
        numbers.iter().map(|&n| sequence.arrived(n)).collect()
    }

    #[test]
    fn loss_copies_and_order_are_told_apart() {
        let mut one = sent(1, 10);
        // 2 is lost, 4 comes twice, 6 and 5 change places.
        assert_eq!(
            judge(&mut one, &[0, 1, 3, 4, 4, 6, 5, 7, 0, 10]),
            [Good, Good, Good, Good, Duplicate, Good, Reordered, Good, Duplicate, Unsent]
        );
        // What was thought lost comes late, but once.
        assert_eq!(judge(&mut one, &[2, 2]), [Reordered, Duplicate]);
    }

    #[test]
    fn order_is_kept_by_flow() {
        // Two flows: even and odd numbers.
        let mut two = sent(2, 10);
        assert_eq!(judge(&mut two, &[1, 0, 3, 5, 2, 4, 7]), [Good; 7]);
        assert_eq!(judge(&mut two, &[9, 6, 8]), [Good; 3]);
        let mut two = sent(2, 10);
        assert_eq!(judge(&mut two, &[2, 0, 1]), [Good, Reordered, Good]);
        assert_eq!((two.flow(7), two.flow(8)), (1, 0));
    }

    #[test]
    fn only_so_many_numbers_are_remembered_and_none_of_another_lap_is_taken_for_them() {
        let mut one = sent(1, u64::MAX);
        for n in 0..WINDOW {
            assert_eq!(one.arrived(n), Good);
        }
        assert_eq!(
            judge(&mut one, &[0, WINDOW, 0, 1, WINDOW]),
            [Duplicate, Good, Late, Duplicate, Duplicate]
        );
        // A jump over more than a lap leaves nothing behind.
        assert_eq!(judge(&mut one, &[5 * WINDOW + 3]), [Good]);
        assert_eq!(
            judge(&mut one, &[5 * WINDOW + 2, 4 * WINDOW + 4, 4 * WINDOW + 3]),
            [Reordered, Reordered, Late]
        );
    }

    #[test]
    fn a_frame_is_read_as_it_was_made_and_every_wrong_byte_is_noticed() {
        for len in [60, 61, 590, 1514] {
            let mut frame = vec![0; len];
            make(&mut frame, 7, (3, 1), 0x1234_5678_9abc, 5);
            assert_eq!(read(&frame, 7), Some((3, 0x1234_5678_9abc)));
            assert_eq!(read(&frame, 8), None, "of another run");
            for at in 0..len {
                frame[at] ^= 1 << (at % 8);
                assert_eq!(read(&frame, 7), None, "byte {at} of {len}");
                frame[at] ^= 1 << (at % 8);
            }
            assert_eq!(read(&frame[..len - 1], 7), None, "cut short");
            frame.push(0);
            assert_eq!(read(&frame, 7), None, "a byte too many");
            assert_eq!(read(&frame[..30], 7), None);
        }
    }

    #[test]
    fn pieces_of_two_frames_do_not_fit() {
        let (mut a, mut b) = (vec![0; 1514], vec![0; 1514]);
        make(&mut a, 7, (0, 0), 1, 0);
        make(&mut b, 7, (0, 0), 2, 0);
        for at in [60, 64, 700, 1506] {
            let mixed: Vec<u8> = a[..at].iter().chain(&b[at..]).copied().collect();
            assert_eq!(read(&mixed, 7), None);
        }
    }
}
