//! Which queues of a core a turn looks after. One that brings nothing for a while rests: it costs a look
//! at one word of its ring a turn, until that word changes.

use hugepages::Monitor;

/// Empty polls in a row after which a queue is asked whether it can rest.
pub(super) const REST_POLLS: u32 = 16;

/// The queues of a core by slot: awake, or what they wait for.
#[derive(Default)]
pub(super) struct Awake {
    /// One bit a slot.
    awake: Vec<u64>,
    /// Of those at rest; clear for the others: what is awake keeps no memory of a guest, which may be
    /// taken away from it in any `reap`.
    monitors: Vec<Monitor>,
}

/// The slots whose bits are set in the word of slots from `64 * word` on, in order.
#[inline(always)]
pub(super) fn slots(word: usize, mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let i = 64 * word + bits.trailing_zeros() as usize;
        bits &= bits - 1;
        Some(i)
    })
}

impl Awake {
    /// There are `n` slots now, all awake.
    pub(super) fn reset(&mut self, n: usize) {
        self.monitors.clear();
        self.monitors.resize_with(n, Monitor::default);
        self.awake.clear();
        self.awake.resize(n.div_ceil(64), 0);
        self.wake_all();
    }

    /// Words of 64 slots.
    #[inline(always)]
    pub(super) fn words(&self) -> usize {
        self.awake.len()
    }

    /// The awake ones of a word.
    #[inline(always)]
    pub(super) fn get(&self, word: usize) -> u64 {
        self.awake[word]
    }

    /// Wakes those of a word whose monitors changed. All that are awake then.
    #[inline]
    pub(super) fn look(&mut self, word: usize) -> u64 {
        let mut awake = self.awake[word];
        for i in slots(word, self.here(word) & !awake) {
            if self.monitors[i].changed() {
                self.monitors[i].clear();
                awake |= 1 << (i % 64);
            }
        }
        self.awake[word] = awake;
        awake
    }

    /// Has a slot looked after from this turn on; whether it rested.
    #[inline(always)]
    pub(super) fn wake(&mut self, i: usize) -> bool {
        let rested = self.awake[i / 64] >> (i % 64) & 1 == 0;
        if rested {
            self.awake[i / 64] |= 1 << (i % 64);
            self.monitors[i].clear();
        }
        rested
    }

    /// The same of all.
    #[cold]
    pub(super) fn wake_all(&mut self) {
        for word in 0..self.awake.len() {
            for i in slots(word, self.here(word) & !self.awake[word]) {
                self.wake(i);
            }
        }
    }

    /// Lets a slot rest if `ask`, which is shown its monitor, agrees; whether it did.
    #[inline]
    pub(super) fn rest(&mut self, i: usize, ask: impl FnOnce(&mut Monitor) -> bool) -> bool {
        let rests = ask(&mut self.monitors[i]);
        if rests {
            self.awake[i / 64] &= !(1 << (i % 64));
        } else {
            self.monitors[i].clear();
        }
        rests
    }

    /// All slots of a word.
    #[inline(always)]
    fn here(&self, word: usize) -> u64 {
        let n = self.monitors.len() - 64 * word;
        if n >= 64 { u64::MAX } else { (1 << n) - 1 }
    }
}
