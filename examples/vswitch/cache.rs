//! What a core keeps of translations: an exact-match cache, a signature cache, and a tuple-space
//! classifier, asked in this order. One core owns all of it; nothing here is locked.

mod classifier;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::vswitch::bridge::{Kept, Megaflow};
use crate::vswitch::flow::Key;
use crate::vswitch::flow::key::{PACKET_WORDS, ether, word};
use classifier::Classifier;

/// Entries of the exact-match cache, as Open vSwitch has them; two places for each key.
const EXACT: usize = 8192;
/// Of so many packets that the exact-match cache does not know, one is put in, so that many flows do not
/// drive each other out.
const EXACT_ONE_IN: u32 = 100;
/// Words of a key that the exact-match cache compares: those of IPv4 without tunnel and connection.
const EXACT_WORDS: usize = 6;
/// Lines of the signature cache, of eight places each.
const SIGNATURES: usize = 1 << 14;
/// Up to so many masks the classifier is asked at once: their tables are near, where a line of the signature
/// cache seldom is when flows are many.
const FEW_MASKS: usize = 3;
/// Most translations of one core.
pub const MAX_MEGAFLOWS: usize = 1 << 18;

/// Which translation, and which generation of its place: one that is gone is not taken for its successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Handle {
    place: u32,
    generation: u32,
}

#[derive(Clone, Default)]
#[repr(align(64))]
struct Exact {
    words: [u64; EXACT_WORDS],
    handle: Handle,
}

/// A translation in its place.
struct Place {
    flow: Option<Arc<Megaflow>>,
    generation: u32,
    /// Which words it compares, with what bits, and what they are.
    words: Box<[(usize, u64, u64)]>,
}

/// Where packets were found.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    pub exact: u64,
    pub signature: u64,
    pub megaflow: u64,
    /// Subtables that were looked into for them.
    pub lookups: u64,
    pub miss: u64,
}

/// What one core keeps.
pub struct Cache {
    kept: Vec<Place>,
    free: Vec<u32>,
    exact: Vec<Exact>,
    signatures: Vec<[u64; 8]>,
    classifier: Classifier,
    shared: Kept,
    dice: u32,
    /// Where packets were found.
    pub hits: Hits,
}

/// How many words of a key can be set: fewer to hash for what most packets are.
#[inline(always)]
fn extent(key: &Key) -> usize {
    let w = &key.words;
    let special =
        w[word::CT] | w[word::TUN_ID] | w[word::TUN_IP4] | w[word::MARK] | w[word::HASH] | w[word::TUN];
    if key.ether_type() == ether::IPV4 && special == 0 { EXACT_WORDS } else { PACKET_WORDS }
}

#[inline(always)]
fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0, |h, w| (h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

impl Cache {
    /// An empty one. `shared`: where the control side looks for what it keeps.
    pub fn new(shared: Kept) -> Cache {
        Cache {
            kept: Vec::new(),
            free: Vec::new(),
            exact: vec![Exact::default(); EXACT],
            signatures: vec![[0; 8]; SIGNATURES],
            classifier: Classifier::default(),
            shared,
            dice: 1,
            hits: Hits::default(),
        }
    }

    /// The place of the translation that holds for a packet; `None`: there is none yet.
    #[inline]
    pub fn lookup(&mut self, key: &Key) -> Option<u32> {
        let extent = extent(key);
        let hash = hash(&key.words[..extent]);
        if extent == EXACT_WORDS {
            for way in [hash as usize % EXACT, (hash >> 32) as usize % EXACT] {
                let entry = &self.exact[way];
                if entry.words == key.words[..EXACT_WORDS] && self.alive(entry.handle) {
                    self.hits.exact += 1;
                    return Some(entry.handle.place);
                }
            }
        }
        self.behind_exact(key, hash, extent)
    }

    #[inline(always)]
    fn alive(&self, handle: Handle) -> bool {
        let Some(kept) = self.kept.get(handle.place as usize) else { return false };
        kept.generation == handle.generation
            && kept.flow.as_ref().is_some_and(|f| !f.dead.load(Ordering::Relaxed))
    }

    fn behind_exact(&mut self, key: &Key, hash: u64, extent: usize) -> Option<u32> {
        let few = self.classifier.masks() <= FEW_MASKS;
        let place = if few {
            self.by_mask(key)?
        } else if let Some(place) = self.by_signature(key, hash) {
            self.hits.signature += 1;
            place
        } else {
            let place = self.by_mask(key)?;
            self.sign(hash, place);
            place
        };
        if extent == EXACT_WORDS {
            self.remember(key, hash, place);
        }
        Some(place)
    }

    /// A place of a line holds 16 bits of the hash, and 1 + the place.
    fn by_signature(&self, key: &Key, hash: u64) -> Option<u32> {
        let signature = hash >> 48;
        let line = &self.signatures[(hash >> 20) as usize % SIGNATURES];
        line.iter().filter(|slot| **slot >> 48 == signature && **slot as u32 != 0).find_map(|slot| {
            let place = *slot as u32 - 1;
            self.holds(place, key).then_some(place)
        })
    }

    #[inline(always)]
    fn holds(&self, place: u32, key: &Key) -> bool {
        let kept = &self.kept[place as usize];
        kept.words.iter().all(|(i, mask, value)| key.words[*i] & mask == *value)
            && kept.flow.as_ref().is_some_and(|f| !f.dead.load(Ordering::Relaxed))
    }

    fn sign(&mut self, hash: u64, place: u32) {
        self.dice = self.dice.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let line = &mut self.signatures[(hash >> 20) as usize % SIGNATURES];
        let slot = line.iter().position(|s| *s == 0).unwrap_or((self.dice >> 29) as usize);
        line[slot] = hash >> 48 << 48 | u64::from(place + 1);
    }

    fn by_mask(&mut self, key: &Key) -> Option<u32> {
        let kept = &self.kept;
        let same = |place: u32| {
            let kept = &kept[place as usize];
            kept.words.iter().all(|(i, mask, value)| key.words[*i] & mask == *value)
                && kept.flow.as_ref().is_some_and(|f| !f.dead.load(Ordering::Relaxed))
        };
        let (found, looked) = self.classifier.lookup(key, same);
        match found {
            Some(_) => {
                self.hits.megaflow += 1;
                self.hits.lookups += looked;
            }
            None => self.hits.miss += 1,
        }
        found
    }

    fn remember(&mut self, key: &Key, hash: u64, place: u32) {
        self.dice = self.dice.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let ways = [hash as usize % EXACT, (hash >> 32) as usize % EXACT];
        let stale = ways.iter().find(|w| !self.alive(self.exact[**w].handle));
        let way = match stale {
            Some(way) => *way,
            None if self.dice >> 8 < (1 << 24) / EXACT_ONE_IN => ways[(self.dice & 1) as usize],
            None => return,
        };
        let entry = &mut self.exact[way];
        entry.words.copy_from_slice(&key.words[..EXACT_WORDS]);
        entry.handle = Handle { place, generation: self.kept[place as usize].generation };
    }

    /// The translation in a place that was just looked up.
    #[inline(always)]
    pub fn get(&self, place: u32) -> &Arc<Megaflow> {
        self.kept[place as usize].flow.as_ref().expect("looked up in this turn")
    }

    /// Keeps a translation, unless there are too many; its place.
    pub fn insert(&mut self, flow: Arc<Megaflow>) -> Option<u32> {
        if self.free.is_empty() && self.kept.len() >= MAX_MEGAFLOWS {
            return None;
        }
        let used = flow.mask.words[..PACKET_WORDS].iter().enumerate().filter(|(_, m)| **m != 0);
        let words = used.map(|(i, mask)| (i, *mask, flow.key.words[i])).collect();
        let place = match self.free.pop() {
            Some(place) => {
                let kept = &mut self.kept[place as usize];
                (kept.flow, kept.words) = (Some(Arc::clone(&flow)), words);
                kept.generation += 1;
                place
            }
            None => {
                // Generation 0 is that of entries that were never filled.
                self.kept.push(Place { flow: Some(Arc::clone(&flow)), generation: 1, words });
                (self.kept.len() - 1) as u32
            }
        };
        self.classifier.insert(&flow.key, &flow.mask, place);
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
        Some(place)
    }

    /// Forgets what no longer holds, and ranks the subtables by how often they had it.
    pub fn sweep(&mut self) {
        for place in 0..self.kept.len() {
            let kept = &mut self.kept[place];
            if kept.flow.as_ref().is_some_and(|f| f.dead.load(Ordering::Acquire)) {
                let flow = kept.flow.take().expect("just seen");
                kept.words = Box::default();
                self.classifier.remove(&flow.key, &flow.mask, place as u32);
                self.free.push(place as u32);
            }
        }
        // An empty place compares nothing, and so must not be asked for.
        for line in &mut self.signatures {
            for slot in line {
                if *slot as u32 != 0 && self.kept[*slot as u32 as usize - 1].flow.is_none() {
                    *slot = 0;
                }
            }
        }
        self.classifier.rank();
    }

    /// Translations that it keeps.
    pub fn len(&self) -> usize {
        self.kept.len() - self.free.len()
    }

    /// Whether it keeps none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Masks of which it keeps translations.
    pub fn masks(&self) -> usize {
        self.classifier.masks()
    }
}

#[cfg(test)]
mod tests;
