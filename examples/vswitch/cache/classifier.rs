//! A tuple-space search: for every mask a hash table, the busiest asked first. Translations do not
//! overlap, so that the first find is the only one.

use crate::vswitch::flow::key::PACKET_WORDS;
use crate::vswitch::flow::{Key, Mask};

/// Translations of one mask.
struct Subtable {
    mask: Mask,
    /// Words that count, and their bits.
    words: Box<[(usize, u64)]>,
    /// Open addressing: hash, and 1 + the place; 0: empty; `GONE`: was there.
    slots: Vec<(u32, u32)>,
    used: usize,
    gone: usize,
    hits: u64,
}

const GONE: u32 = u32::MAX;

/// The search.
#[derive(Default)]
pub(super) struct Classifier {
    subtables: Vec<Subtable>,
}

impl Subtable {
    fn new(mask: &Mask) -> Subtable {
        let words = (0..PACKET_WORDS).filter(|i| mask.words[*i] != 0).map(|i| (i, mask.words[i])).collect();
        Subtable { mask: *mask, words, slots: vec![(0, 0); 16], used: 0, gone: 0, hits: 0 }
    }

    #[inline(always)]
    fn hash(&self, key: &Key) -> u32 {
        let mix = |h: u64, (i, mask): &(usize, u64)| {
            (h ^ key.words[*i] & mask).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        let hash = self.words.iter().fold(0, mix);
        (hash ^ hash >> 32) as u32
    }

    #[inline(always)]
    fn find(&self, key: &Key, same: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = self.hash(key);
        let last = self.slots.len() - 1;
        let mut at = hash as usize & last;
        loop {
            let (h, place) = self.slots[at];
            if place == 0 {
                return None;
            }
            if h == hash && place != GONE && same(place - 1) {
                return Some(place - 1);
            }
            at = (at + 1) & last;
        }
    }

    fn insert(&mut self, hash: u32, place: u32) {
        if (self.used + self.gone + 1) * 2 > self.slots.len() {
            let size = ((self.used + 1) * 4).next_power_of_two().max(16);
            let old = std::mem::replace(&mut self.slots, vec![(0, 0); size]);
            (self.used, self.gone) = (0, 0);
            old.into_iter().filter(|(_, p)| *p != 0 && *p != GONE).for_each(|(h, p)| self.put(h, p));
        }
        self.put(hash, place + 1);
    }

    fn put(&mut self, hash: u32, stored: u32) {
        let last = self.slots.len() - 1;
        let mut at = hash as usize & last;
        while self.slots[at].1 != 0 {
            at = (at + 1) & last;
        }
        self.slots[at] = (hash, stored);
        self.used += 1;
    }

    fn remove(&mut self, hash: u32, place: u32) {
        let last = self.slots.len() - 1;
        let mut at = hash as usize & last;
        while self.slots[at].1 != 0 {
            if self.slots[at].1 == place + 1 {
                self.slots[at].1 = GONE;
                self.used -= 1;
                self.gone += 1;
                return;
            }
            at = (at + 1) & last;
        }
    }
}

impl Classifier {
    /// The place for which `same` says yes, and how many subtables were looked into.
    #[inline]
    pub(super) fn lookup(&mut self, key: &Key, same: impl Fn(u32) -> bool) -> (Option<u32>, u64) {
        for (i, subtable) in self.subtables.iter_mut().enumerate() {
            if let Some(place) = subtable.find(key, &same) {
                subtable.hits += 1;
                return (Some(place), i as u64 + 1);
            }
        }
        (None, self.subtables.len() as u64)
    }

    pub(super) fn insert(&mut self, key: &Key, mask: &Mask, place: u32) {
        let at = self.subtables.iter().position(|s| s.mask == *mask).unwrap_or_else(|| {
            self.subtables.push(Subtable::new(mask));
            self.subtables.len() - 1
        });
        let subtable = &mut self.subtables[at];
        let hash = subtable.hash(key);
        subtable.insert(hash, place);
    }

    pub(super) fn remove(&mut self, key: &Key, mask: &Mask, place: u32) {
        if let Some(at) = self.subtables.iter().position(|s| s.mask == *mask) {
            let hash = self.subtables[at].hash(key);
            self.subtables[at].remove(hash, place);
            if self.subtables[at].used == 0 {
                self.subtables.remove(at);
            }
        }
    }

    /// The busiest first; what was long ago counts less.
    pub(super) fn rank(&mut self) {
        self.subtables.sort_by_key(|s| std::cmp::Reverse(s.hits));
        self.subtables.iter_mut().for_each(|s| s.hits /= 2);
    }

    pub(super) fn masks(&self) -> usize {
        self.subtables.len()
    }
}
