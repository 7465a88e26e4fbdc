//! Devices that reach memory by themselves: whatever is mapped here is mapped for them as well.
//!
//! A [`Domain`] is what an IOMMU lets the devices of this process see. While one is
//! [attached](attach), every [`Map`](crate::Map) lies in it, at its own virtual address, from before
//! anything can lend it until after nothing can: so that a driver may hand the address of any
//! [`Buf`](crate::Buf) to its device, and a device that writes late writes nowhere.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What an IOMMU lets the devices of this process see. I/O addresses equal virtual ones.
pub trait Domain: Send + Sync {
    /// Lets the devices read and write `len` bytes at `va`, whole pages.
    ///
    /// # Errors
    /// When the addresses are out of the devices' reach, or the kernel refuses.
    fn map(&self, va: u64, len: u64) -> io::Result<()>;
    /// Ends that. Once it returns nothing is written there any more.
    fn unmap(&self, va: u64, len: u64);
}

/// Why memory is out of the devices' reach.
#[derive(Debug, thiserror::Error)]
#[error("{len:#x} bytes of memory at {va:#x} cannot be mapped for devices: {source}")]
pub struct Unreachable {
    /// Where it lies.
    pub va: u64,
    /// Bytes.
    pub len: u64,
    /// What the IOMMU or the kernel said.
    pub source: io::Error,
}

struct State {
    domain: Option<Arc<dyn Domain>>,
    /// Every mapping that lives: address and bytes.
    live: Vec<(u64, u64)>,
}

static STATE: Mutex<State> = Mutex::new(State { domain: None, live: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().expect("no holder panics")
}

fn map(domain: &dyn Domain, va: u64, len: u64) -> Result<(), Unreachable> {
    domain.map(va, len).map_err(|source| Unreachable { va, len, source })
}

/// A domain that is attached; detached when dropped.
#[must_use = "the domain is detached when this is dropped"]
pub struct Attached(());

/// Maps all there is into `domain`, and from now on all that comes.
///
/// # Errors
/// When some mapping is out of its reach: nothing stays mapped.
///
/// # Panics
/// When another domain is attached: one process has one, for all its devices.
pub fn attach(domain: Arc<dyn Domain>) -> Result<Attached, Unreachable> {
    let mut state = state();
    assert!(state.domain.is_none(), "a domain is attached already");
    for (i, &(va, len)) in state.live.iter().enumerate() {
        if let Err(why) = map(domain.as_ref(), va, len) {
            state.live[..i].iter().for_each(|&(va, len)| domain.unmap(va, len));
            return Err(why);
        }
    }
    state.domain = Some(domain);
    Ok(Attached(()))
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = state();
        if let Some(domain) = state.domain.take() {
            state.live.iter().for_each(|&(va, len)| domain.unmap(va, len));
        }
    }
}

/// The guard inside a mapping: it lies in the attached domain, if any, as long as this lives.
#[derive(Debug)]
pub(crate) struct Guard {
    va: u64,
    len: u64,
}

impl Guard {
    pub(crate) fn new(va: u64, len: u64) -> Result<Guard, Unreachable> {
        let mut state = state();
        if let Some(domain) = &state.domain {
            map(domain.as_ref(), va, len)?;
        }
        state.live.push((va, len));
        Ok(Guard { va, len })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = state();
        if let Some(at) = state.live.iter().position(|live| *live == (self.va, self.len)) {
            state.live.swap_remove(at);
        }
        if let Some(domain) = &state.domain {
            domain.unmap(self.va, self.len);
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::{Backing, Lender, Map, MapError, PageSize, Table};

    const BASE: Backing = Backing { page: PageSize::Base, node: None };

    /// Notes what is mapped; refuses what ends above its limit.
    #[derive(Default)]
    struct Book {
        mapped: Mutex<Vec<(u64, u64)>>,
        refuse: Mutex<Option<usize>>,
    }

    impl Domain for Book {
        fn map(&self, va: u64, len: u64) -> io::Result<()> {
            if *self.refuse.lock().unwrap() == Some(len as usize) {
                return Err(io::Error::other("out of reach"));
            }
            self.mapped.lock().unwrap().push((va, len));
            Ok(())
        }

        fn unmap(&self, va: u64, len: u64) {
            let mut mapped = self.mapped.lock().unwrap();
            let at = mapped.iter().position(|m| *m == (va, len)).expect("unmapped once, as it was mapped");
            mapped.swap_remove(at);
        }
    }

    impl Book {
        fn has(&self, map: (u64, u64)) -> bool {
            self.mapped.lock().unwrap().contains(&map)
        }
    }

    /// One test, because a process has one domain at a time.
    #[test]
    fn what_is_mapped_is_in_reach_for_just_as_long() {
        let book = Arc::new(Book::default());
        let before = Map::shared(3 << 12, BASE).unwrap();
        let place = |map: &Map| (map.address(), map.len() as u64);
        let early = place(&before);
        let attached = attach(Arc::clone(&book) as Arc<dyn Domain>).unwrap();
        let after = Map::shared(5 << 12, BASE).unwrap();
        let late = place(&after);
        assert!(book.has(early) && book.has(late));
        drop(before);
        assert!(!book.has(early) && book.has(late));

        // A lender that goes with a buffer out leaves its memory in reach: a device may still have it.
        let lender = Lender::new(Table::of(after));
        let buf = lender.lend(0, 64, 0).unwrap();
        drop(lender);
        assert!(book.has(late));
        let _ = buf.finish(0);

        // What is out of reach cannot be mapped at all: no buffer of it comes to be.
        const STRANGE: usize = 4099 << 12;
        *book.refuse.lock().unwrap() = Some(STRANGE);
        let refused = Map::shared(STRANGE, BASE).unwrap_err();
        assert!(matches!(&refused, MapError::Reach(_)), "{refused}");
        assert!(refused.to_string().contains("out of reach"), "{refused}");

        drop(attached);
        assert!(book.mapped.lock().unwrap().is_empty());
        let there = Map::shared(STRANGE, BASE).unwrap();
        assert!(attach(Arc::clone(&book) as Arc<dyn Domain>).is_err());
        assert!(book.mapped.lock().unwrap().is_empty(), "a domain that cannot have all has nothing");
        drop(there);
        drop(attach(book).unwrap());
    }
}
