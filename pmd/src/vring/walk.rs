//! The walk through one chain, the same for both layouts.

use hugepages::{Buf, Lender, OutOfRange, Pod};

use super::{Chain, Fault, MAX_INDIRECT, MAX_WALK, Rules, Way};
use crate::batch::Batch;
use crate::spec::virtio as v;

/// Where the addresses in descriptors lead: a type of its own for each meaning they can have, so that the
/// common one costs nothing.
pub trait Memory {
    /// Lends `len` bytes at `addr` under a number.
    ///
    /// # Errors
    /// When they are not at one place.
    fn lend(&self, addr: u64, len: u32, id: u16, write: bool) -> Result<Buf, OutOfRange>;
    /// How many bytes from `addr` on are at one place, to be read or written.
    fn contiguous(&self, addr: u64, write: bool) -> u64;
    /// A copy of the value at `addr`.
    ///
    /// # Errors
    /// When there is none.
    fn peek<T: Pod>(&self, addr: u64) -> Result<T, OutOfRange>;
}

/// Guest addresses.
impl Memory for Lender {
    #[inline(always)]
    fn lend(&self, addr: u64, len: u32, id: u16, write: bool) -> Result<Buf, OutOfRange> {
        if write { self.lend_writable(addr, len, id) } else { Lender::lend(self, addr, len, id) }
    }

    fn contiguous(&self, addr: u64, _write: bool) -> u64 {
        self.table().contiguous(addr)
    }

    #[inline(always)]
    fn peek<T: Pod>(&self, addr: u64) -> Result<T, OutOfRange> {
        Lender::peek(self, addr)
    }
}

/// Checks direction and total, lends, counts.
pub(crate) struct Walk<'a, M> {
    mem: &'a M,
    pub(super) rules: Rules,
    out: &'a mut Batch<Buf>,
    first: usize,
    pub(super) id: u16,
    bytes: u64,
    walked: u32,
    writing: bool,
    overflow: bool,
}

impl<'a, M: Memory> Walk<'a, M> {
    #[inline(always)]
    pub(super) fn new(mem: &'a M, rules: Rules, out: &'a mut Batch<Buf>, id: u16) -> Self {
        let first = out.len();
        Walk { mem, rules, out, first, id, bytes: 0, walked: 0, writing: false, overflow: false }
    }

    /// Lends the only descriptor of a chain, if it is as simple as that.
    #[inline(always)]
    pub(super) fn single(self, addr: u64, len: u32, flags: u16, descs: u16) -> Result<Chain, Fault> {
        let write = flags & v::DESC_F_WRITE != 0;
        let fits = match self.rules.way {
            Way::FromDriver => !write,
            Way::ToDriver => write,
            Way::Both => true,
        };
        if fits
            && len > 0
            && let Ok(buf) = self.mem.lend(addr, len, self.id, write)
        {
            self.out.push(buf);
            return Ok(Chain { id: self.id, descs, bytes: len, overflow: false });
        }
        let mut walk = self;
        walk.add(addr, len, flags)?;
        walk.end(descs)
    }

    /// Lends one descriptor of a chain. Empty ones are passed over, whatever their address. `false`: it
    /// has been walked as far as any chain is.
    pub(super) fn add(&mut self, mut addr: u64, mut len: u32, flags: u16) -> Result<bool, Fault> {
        let write = flags & v::DESC_F_WRITE != 0;
        let fits = match self.rules.way {
            Way::FromDriver => !write,
            Way::ToDriver => write,
            Way::Both => write || !self.writing,
        };
        if !fits {
            return Err(Fault::Direction(self.id));
        }
        self.writing |= write;
        self.bytes += u64::from(len);
        if self.bytes > u64::from(u32::MAX) {
            return Err(Fault::TooLong(self.id));
        }
        if !self.go_on() {
            return Ok(false);
        }
        // A buffer may go on from one region into the next: one piece for each.
        while len > 0 {
            let whole = OutOfRange { gpa: addr, len: u64::from(len) };
            let run = self.mem.contiguous(addr, write);
            if run == 0 {
                return Err(whole.into());
            }
            let piece = u64::from(len).min(run) as u32;
            if self.out.room() == 0 {
                self.overflow = true;
            } else {
                let mut buf = self.mem.lend(addr, piece, self.id, write)?;
                buf.set_more(true);
                self.out.push(buf);
            }
            len -= piece;
            addr = addr.checked_add(u64::from(piece)).ok_or(whole)?;
            if len > 0 && !self.go_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn go_on(&mut self) -> bool {
        self.walked += 1;
        self.overflow |= self.walked > MAX_WALK;
        self.walked <= MAX_WALK
    }

    /// Ends the chain: its last buffer loses `MORE`.
    pub(super) fn end(self, descs: u16) -> Result<Chain, Fault> {
        if self.out.len() > self.first {
            let last = self.out.len() - 1;
            self.out.get_mut(last).expect("not empty").set_more(false);
        }
        Ok(Chain { id: self.id, descs, bytes: self.bytes as u32, overflow: self.overflow })
    }

    /// Bytes of an indirect table to its number of entries, by §2.7.5.3 and §2.8.7.
    pub(super) fn indirect_entries(&self, len: u32, flags: u16) -> Result<u32, Fault> {
        if !self.rules.indirect || flags & v::DESC_F_NEXT != 0 {
            return Err(Fault::Indirect);
        }
        let entries = len / v::DESC_BYTES;
        let most = MAX_INDIRECT.max(u32::from(self.rules.size));
        if !len.is_multiple_of(v::DESC_BYTES) || entries == 0 || entries > most {
            return Err(Fault::IndirectLength(len));
        }
        Ok(entries)
    }

    /// Entry `i` of an indirect table at `table`: address, and the word beside it.
    pub(super) fn indirect_entry(&self, table: u64, i: u32) -> Result<(u64, u64), Fault> {
        let at = table
            .checked_add(u64::from(i) * u64::from(v::DESC_BYTES))
            .ok_or(OutOfRange { gpa: table, len: u64::from(i) * 16 })?;
        let [addr, rest] = self.mem.peek::<[u64; 2]>(at)?;
        Ok((addr, rest))
    }
}
