//! Where a MAC address was seen last: what NORMAL learns.

use std::collections::HashMap;

/// Most addresses; the one that was seen the longest time ago makes room.
pub const MAX_ENTRIES: usize = 8192;
/// Seconds after which an address is forgotten.
pub const AGEING_S: u64 = 300;

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The port of the bridge behind which it is.
    pub port: u32,
    /// When it was seen last.
    pub seen_ms: u64,
}

/// Addresses of a bridge, by VLAN.
#[derive(Debug, Default)]
pub struct Fdb {
    entries: HashMap<(u16, [u8; 6]), Entry>,
    /// Changes whenever an address appears, moves or goes.
    pub generation: u64,
}

impl Fdb {
    /// The port behind which an address is.
    pub fn lookup(&self, vlan: u16, mac: [u8; 6]) -> Option<u32> {
        self.entries.get(&(vlan, mac)).map(|e| e.port)
    }

    /// An address was seen; whether that is news.
    pub fn learn(&mut self, vlan: u16, mac: [u8; 6], port: u32, now: u64) -> bool {
        let old = self.entries.insert((vlan, mac), Entry { port, seen_ms: now });
        let news = old.is_none_or(|e| e.port != port);
        if news {
            self.generation += 1;
            if self.entries.len() > MAX_ENTRIES
                && let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.seen_ms).map(|(k, _)| *k)
            {
                self.entries.remove(&oldest);
            }
        }
        news
    }

    /// Forgets what was not seen for long.
    pub fn age(&mut self, now: u64, ageing_s: u64) {
        let before = self.entries.len();
        self.entries.retain(|_, e| now.saturating_sub(e.seen_ms) < ageing_s * 1000);
        self.generation += u64::from(before != self.entries.len());
    }

    /// Forgets everything, or what is behind a port.
    pub fn flush(&mut self, port: Option<u32>) {
        self.entries.retain(|_, e| port.is_some_and(|p| p != e.port));
        self.generation += 1;
    }

    /// All, in order of VLAN and address: VLAN, address, where and when.
    pub fn entries(&self) -> Vec<(u16, [u8; 6], Entry)> {
        let mut all: Vec<_> = self.entries.iter().map(|((v, m), e)| (*v, *m, *e)).collect();
        all.sort_by_key(|(v, m, _)| (*v, *m));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_move_and_age() {
        let mut fdb = Fdb::default();
        assert!(fdb.learn(0, [1; 6], 1, 0) && !fdb.learn(0, [1; 6], 1, 1000));
        assert!(fdb.learn(0, [1; 6], 2, 2000) && fdb.learn(5, [1; 6], 3, 2000));
        assert_eq!(
            (fdb.lookup(0, [1; 6]), fdb.lookup(5, [1; 6]), fdb.lookup(6, [1; 6])),
            (Some(2), Some(3), None)
        );
        fdb.age(301_999, AGEING_S);
        assert_eq!(fdb.entries().len(), 2);
        fdb.age(302_000, AGEING_S);
        assert!(fdb.entries().is_empty());
        (0..10_000u32).for_each(|i| {
            let b = i.to_be_bytes();
            fdb.learn(0, [2, 0, b[0], b[1], b[2], b[3]], 1, u64::from(i));
        });
        assert_eq!(fdb.entries().len(), MAX_ENTRIES);
    }
}
