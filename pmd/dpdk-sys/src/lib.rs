//! An installed libdpdk, as far as Hotring uses it: any of its devices as queues that lend packets in
//! their own memory, and send packets that lie in any memory, without a copy.
//!
//! DPDK's structures change between versions and much of it is inline functions of C: `shim.c` is compiled
//! against whatever is installed, and has plain functions with arguments of its own. Buffers of its
//! pools lie in memory of ours (the kind that `hugepages::Pool` has), so that what a device received can
//! be lent as any other memory; what it sends is attached to its packets, and comes home when DPDK has
//! done with it.
//!
//! Without the feature `linked` the crate is empty.
#![cfg(feature = "linked")]
// UNSAFETY: calls into C.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::num::NonZeroU16;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hugepages::dma::{self, Attached, Domain};
use hugepages::{Backing, Batch, Buf, Lender, Loan, Map, Table};

/// Bytes of a frame, headroom included.
pub const FRAME: u32 = 2176 + 64;
/// Most ports that DPDK has.
pub const MAX_PORTS: usize = 32;
/// Packets of a burst.
const BURST: usize = 64;
/// Most buffers of a burst.
const PARTS: usize = 256;
/// Buffers of others that a queue may keep.
const KEPT: usize = 2048;

/// What a port is, as DPDK tells.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawInfo {
    name: [c_char; 64],
    driver: [c_char; 64],
    mac: [u8; 8],
    max_queues: u16,
    max_mtu: u16,
    mtu: u16,
    several: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawLink {
    speed: u32,
    up: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Part {
    mbuf: *mut c_void,
    at: u64,
    len: u32,
    more: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawXstat {
    name: [c_char; 64],
    value: u64,
}

// As in shim.h.
unsafe extern "C" {
    fn hr_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    fn hr_error() -> *const c_char;
    fn hr_ports(ids: *mut u16, most: c_int) -> c_int;
    fn hr_info(port: u16, out: *mut RawInfo) -> c_int;
    fn hr_link(port: u16, out: *mut RawLink) -> c_int;
    fn hr_pool(name: *const c_char, base: *mut c_void, len: u64, frame: u32, n: u32) -> *mut c_void;
    fn hr_heads(name: *const c_char, n: u32) -> *mut c_void;
    fn hr_pool_free(pool: *mut c_void);
    fn hr_pool_out(pool: *mut c_void) -> u32;
    fn hr_start(
        port: u16,
        queues: u16,
        rxd: u16,
        txd: u16,
        mtu: u16,
        promisc: c_int,
        pools: *mut *mut c_void,
    ) -> c_int;
    fn hr_stop(port: u16) -> c_int;
    fn hr_thread() -> c_int;
    fn hr_memory(va: u64, len: u64, add: c_int) -> c_int;
    fn hr_receive(
        port: u16,
        queue: u16,
        pool: *mut c_void,
        parts: *mut Part,
        most: u16,
        packets: u16,
        taken: *mut u16,
        missed: *mut u16,
    ) -> u16;
    fn hr_free(mbuf: *mut c_void);
    fn hr_drop(packet: *mut c_void);
    fn hr_external(heads: *mut c_void, at: u64, len: u32, shared: *mut c_void) -> *mut c_void;
    fn hr_trim(mbuf: *mut c_void, at: u64, len: u32);
    fn hr_chain(head: *mut c_void, tail: *mut c_void) -> c_int;
    fn hr_send(port: u16, queue: u16, packets: *mut *mut c_void, n: u16) -> u16;
    fn hr_clean(port: u16, queue: u16);
    fn hr_shared(n: u32) -> *mut c_void;
    fn hr_shared_free(shared: *mut c_void);
    fn hr_shared_at(shared: *mut c_void, i: u32) -> *mut c_void;
    fn hr_shared_done(at: *mut c_void) -> c_int;
    fn hr_xstats(port: u16, out: *mut RawXstat, most: c_int) -> c_int;
}

/// What DPDK refused, in its words.
#[derive(Debug)]
pub struct Refused {
    what: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refused {}

fn refused(what: impl Into<String>) -> Refused {
    // SAFETY: a string of DPDK's, for the thread, until its next error.
    let why = unsafe { CStr::from_ptr(hr_error()) }.to_string_lossy().into_owned();
    Refused { what: format!("{}: {why}", what.into()) }
}

fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|&&b| b != 0).map(|&b| b as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every mapping of ours is registered with DPDK, and mapped for its devices, as long as it lives.
struct Memory;

impl Domain for Memory {
    fn map(&self, va: u64, len: u64) -> std::io::Result<()> {
        // SAFETY: the range is a live mapping, until unmap().
        match unsafe { hr_memory(va, len, 1) } {
            rc if rc < 0 => Err(std::io::Error::other(refused("registering memory with DPDK").to_string())),
            _ => Ok(()),
        }
    }

    fn unmap(&self, va: u64, len: u64) {
        // SAFETY: as in map(); DPDK forgets the range.
        unsafe { hr_memory(va, len, 0) };
    }
}

/// DPDK's environment, there from the first [`init`] until the process ends: it can be had once.
static STARTED: OnceLock<()> = OnceLock::new();
static ATTACHED: Mutex<Option<Attached>> = Mutex::new(None);

/// Starts DPDK's environment with arguments of its own (`-a 0000:01:00.0`, `--vdev net_tap0`, `--no-huge`),
/// and registers all memory of this process that packets lie in.
///
/// # Errors
/// What DPDK refuses, and a second call.
pub fn init(args: &[String]) -> Result<(), Refused> {
    if STARTED.set(()).is_err() {
        return Err(Refused { what: "DPDK's environment can be started once in a process".into() });
    }
    let cstring =
        |s: &String| CString::new(s.as_str()).map_err(|_| Refused { what: "an argument has a 0".into() });
    let mut words = vec![CString::from(c"hotring")];
    let given = |names: &[&str]| args.iter().any(|arg| names.contains(&arg.as_str()));
    if !given(&["-l", "-c", "--lcores"]) {
        // DPDK would start a thread on each core; ours do the work.
        words.extend([CString::from(c"--lcores"), CString::from(c"0")]);
    }
    words.extend(args.iter().map(cstring).collect::<Result<Vec<_>, _>>()?);
    // DPDK permutes the array and keeps the strings: they are never freed.
    let mut argv: Vec<*mut c_char> = words.into_iter().map(CString::into_raw).collect();
    argv.push(ptr::null_mut());
    let argv = argv.leak();
    // SAFETY: an array of strings that ends with a null, for good.
    if unsafe { hr_init(argv.len() as c_int - 1, argv.as_mut_ptr()) } < 0 {
        return Err(refused("starting DPDK's environment (--dpdk)"));
    }
    let attached = dma::attach(Arc::new(Memory)).map_err(|e| Refused { what: e.to_string() })?;
    *ATTACHED.lock().expect("no holder panics") = Some(attached);
    Ok(())
}

/// The numbers of DPDK's ports.
pub fn ports() -> Vec<u16> {
    if STARTED.get().is_none() {
        return Vec::new();
    }
    let mut ids = [0; MAX_PORTS];
    // SAFETY: writes up to that many.
    let n = unsafe { hr_ports(ids.as_mut_ptr(), MAX_PORTS as c_int) };
    ids[..n as usize].to_vec()
}

/// What a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// DPDK's name of it, such as `net_tap0` or `0000:01:00.0`.
    pub name: String,
    /// DPDK's driver.
    pub driver: String,
    /// Its address.
    pub mac: [u8; 6],
    /// Most queues, of either direction.
    pub max_queues: u16,
    /// Largest payload of a frame that it can have.
    pub max_mtu: u16,
    /// Largest payload of a frame now.
    pub mtu: u16,
    /// Frames of several buffers can be sent.
    pub several: bool,
}

/// Asks what a port is.
///
/// # Errors
/// When there is no such port.
pub fn info(port: u16) -> Result<Info, Refused> {
    let mut raw = RawInfo {
        name: [0; 64],
        driver: [0; 64],
        mac: [0; 8],
        max_queues: 0,
        max_mtu: 0,
        mtu: 0,
        several: 0,
    };
    // SAFETY: writes one hr_info.
    if unsafe { hr_info(port, &raw mut raw) } < 0 {
        return Err(refused(format!("asking for DPDK's port {port}")));
    }
    Ok(Info {
        name: text(&raw.name),
        driver: text(&raw.driver),
        mac: raw.mac[..6].try_into().expect("6 bytes"),
        max_queues: raw.max_queues,
        max_mtu: raw.max_mtu,
        mtu: raw.mtu,
        several: raw.several != 0,
    })
}

/// Whether the link is up, and its Mbit/s (0: unknown).
pub fn link(port: u16) -> (bool, u32) {
    let mut raw = RawLink::default();
    // SAFETY: writes one hr_link.
    unsafe { hr_link(port, &raw mut raw) };
    (raw.up != 0, raw.speed)
}

/// DPDK's own counters of a port.
pub fn xstats(port: u16) -> Vec<(String, u64)> {
    let mut raw = vec![RawXstat { name: [0; 64], value: 0 }; 256];
    // SAFETY: writes up to that many.
    let n = unsafe { hr_xstats(port, raw.as_mut_ptr(), raw.len() as c_int) };
    raw[..n.max(0) as usize].iter().map(|x| (text(&x.name), x.value)).collect()
}

/// Buffers of a queue: mbufs whose bytes lie in a mapping of ours.
struct Frames {
    raw: NonNull<c_void>,
    lender: Lender,
    base: u64,
    /// The mbuf of each frame that is lent.
    lent: Vec<*mut c_void>,
}

impl Frames {
    fn new(name: &str, frames: u32, backing: Backing) -> Result<Frames, Refused> {
        let fail = |e: &dyn std::fmt::Display| Refused { what: e.to_string() };
        let bytes = frames as usize * FRAME as usize;
        let (map, _) = Map::shared_or_base(bytes, backing).map_err(|e| fail(&e))?;
        let base = map.address();
        let lender = Lender::new(Table::of(map));
        let c = CString::new(name).map_err(|e| fail(&e))?;
        // SAFETY: the mapping has that many frames; it lives as long as the pool, which is freed before it.
        let raw = unsafe { hr_pool(c.as_ptr(), base as *mut c_void, bytes as u64, FRAME, frames) };
        let raw = NonNull::new(raw).ok_or_else(|| refused(format!("making a pool of {frames} frames")))?;
        Ok(Frames { raw, lender, base, lent: vec![ptr::null_mut(); frames as usize] })
    }

    /// Lends one part of what was received.
    fn lend(&mut self, part: &Part) -> Option<Buf> {
        let at = part.at.checked_sub(self.base)?;
        let id = (at / u64::from(FRAME)) as usize;
        let slot = self.lent.get_mut(id)?;
        let mut buf = self.lender.lend_writable(at, part.len, id as u16).ok()?;
        buf.set_more(part.more != 0);
        *slot = part.mbuf;
        Some(buf)
    }

    fn take_back(&mut self, loan: Loan) -> *mut c_void {
        let (id, _) = self.lender.settle(loan);
        std::mem::replace(&mut self.lent[usize::from(id)], ptr::null_mut())
    }
}

/// What a started port uses, whichever of its queues are still there: it is stopped, and only then freed,
/// when the last of them and [`Started`] are gone.
struct Open {
    port: u16,
    started: bool,
    pools: Vec<NonNull<c_void>>,
    shared: Vec<NonNull<c_void>>,
    /// The memory of its frames.
    _memory: Vec<Arc<Table>>,
}

// SAFETY: DPDK's pools belong to no thread; they are only freed, by whoever is the last.
unsafe impl Send for Open {}
// SAFETY: nothing is done to them through a shared reference.
unsafe impl Sync for Open {}

impl Drop for Open {
    fn drop(&mut self) {
        if self.started {
            // SAFETY: nobody has a queue of it any more.
            unsafe { hr_stop(self.port) };
        }
        // SAFETY: pools that are there still.
        let out: u32 = self.pools.iter().map(|pool| unsafe { hr_pool_out(pool.as_ptr()) }).sum();
        if out > 0 {
            // A driver keeps buffers though its device is stopped: they, and their memory, are left to it.
            LEAKED.fetch_add(out.into(), Ordering::Relaxed);
            std::mem::forget(std::mem::take(&mut self._memory));
            return;
        }
        // SAFETY: a port that is stopped uses none of these, and each is freed once.
        unsafe {
            self.pools.iter().for_each(|pool| hr_pool_free(pool.as_ptr()));
            self.shared.iter().for_each(|shared| hr_shared_free(shared.as_ptr()));
        }
    }
}

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Buffers that drivers kept when their devices were stopped, in all: none of a driver without a leak.
pub fn leaked() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// A started port, which it is until this and all of its queues are dropped.
pub struct Started {
    _open: Arc<Open>,
}

impl Started {
    /// Starts a port: its queues, by number. `mtu` 0: as it is.
    ///
    /// # Errors
    /// What DPDK refuses.
    pub fn new(
        port: u16,
        queues: u16,
        (rxd, txd): (u16, u16),
        mtu: u16,
        promiscuous: bool,
        (frames, backing): (u32, Backing),
    ) -> Result<(Started, Vec<Queue>), Refused> {
        let mut open =
            Open { port, started: false, pools: Vec::new(), shared: Vec::new(), _memory: Vec::new() };
        let mut parts = Vec::new();
        // Names that no pool has that a driver kept buffers of.
        static STARTS: AtomicU64 = AtomicU64::new(0);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        for queue in 0..queues {
            let frames = Frames::new(&format!("hotring{start}_{port}_{queue}"), frames, backing)?;
            open.pools.push(frames.raw);
            open._memory.push(Arc::clone(frames.lender.table()));
            let name = CString::new(format!("heads{start}_{port}_{queue}")).expect("no 0 in it");
            // SAFETY: a name; KEPT heads, and what caches keep.
            let heads = unsafe { hr_heads(name.as_ptr(), 2 * KEPT as u32 - 1) };
            let heads = NonNull::new(heads).ok_or_else(|| refused("making a pool of heads"))?;
            open.pools.push(heads);
            // SAFETY: room for that many.
            let shared = NonNull::new(unsafe { hr_shared(KEPT as u32) });
            let shared = shared.ok_or_else(|| Refused { what: "no memory for what is kept".into() })?;
            open.shared.push(shared);
            parts.push((queue, frames, heads, shared));
        }
        let mut pools: Vec<*mut c_void> = parts.iter().map(|(_, frames, ..)| frames.raw.as_ptr()).collect();
        // SAFETY: as many pools as queues.
        let rc = unsafe { hr_start(port, queues, rxd, txd, mtu, promiscuous.into(), pools.as_mut_ptr()) };
        if rc < 0 {
            return Err(refused(format!("starting DPDK's port {port}")));
        }
        open.started = true;
        let open = Arc::new(open);
        let queue = |(queue, frames, heads, shared)| Queue {
            port,
            queue,
            frames,
            heads,
            shared,
            free: (0..KEPT as u32).rev().collect(),
            kept: VecDeque::with_capacity(KEPT),
            waiting: Vec::with_capacity(BURST),
            registered: false,
            _open: Arc::clone(&open),
        };
        let queues = parts.into_iter().map(queue).collect();
        Ok((Started { _open: open }, queues))
    }
}

/// A buffer of somebody else's that DPDK reads.
struct Kept {
    slot: u32,
    buf: Buf,
}

/// A queue of a started port, owned by one core.
pub struct Queue {
    port: u16,
    queue: u16,
    frames: Frames,
    heads: NonNull<c_void>,
    shared: NonNull<c_void>,
    free: Vec<u32>,
    kept: VecDeque<Kept>,
    /// Packets that are made up and not sent.
    waiting: Vec<*mut c_void>,
    registered: bool,
    /// Freed after all else of the queue.
    _open: Arc<Open>,
}

// SAFETY: its pointers are its own; DPDK's pools and queues may be used by any one thread at a time.
unsafe impl Send for Queue {}

impl Queue {
    /// The number its buffers carry.
    pub fn owner(&self) -> NonZeroU16 {
        self.frames.lender.owner()
    }

    /// Its buffers that are lent.
    pub fn lent(&self) -> u32 {
        self.frames.lender.out()
    }

    /// Buffers of others that DPDK has.
    pub fn held(&self) -> u32 {
        self.kept.len() as u32
    }

    /// Packets that can be made up before the next [`Queue::flush`].
    pub fn room(&self) -> usize {
        BURST - self.waiting.len()
    }

    /// Makes the calling thread known to DPDK, once.
    fn register(&mut self) {
        if !self.registered {
            // SAFETY: registers this thread; where that fails it goes without caches.
            unsafe { hr_thread() };
            self.registered = true;
        }
    }

    /// Lends up to `packets` received packets to the back of `out`: how many, their bytes, and how many were
    /// lost for want of buffers.
    pub fn receive(&mut self, out: &mut Batch<Buf>, packets: usize) -> (usize, u64, usize) {
        self.register();
        let empty = Part { mbuf: ptr::null_mut(), at: 0, len: 0, more: 0 };
        let mut parts = [empty; PARTS];
        let most = PARTS.min(out.room());
        let packets = packets.min(BURST).min(most);
        let (mut taken, mut missed) = (0, 0);
        // SAFETY: writes up to `most` parts.
        let n = unsafe {
            let (parts, pool) = (parts.as_mut_ptr(), self.frames.raw.as_ptr());
            let (most, packets) = (most as u16, packets as u16);
            hr_receive(self.port, self.queue, pool, parts, most, packets, &raw mut taken, &raw mut missed)
        };
        let mut bytes = 0;
        for part in &parts[..usize::from(n)] {
            let buf = self.frames.lend(part).expect("mbufs of its pool lie in its memory");
            bytes += u64::from(buf.len());
            out.push(buf);
        }
        (taken.into(), bytes, missed.into())
    }

    /// Takes a receipt of its own.
    pub fn settle(&mut self, loan: Loan) {
        let mbuf = self.frames.take_back(loan);
        // SAFETY: an mbuf that was received, and not freed since.
        unsafe { hr_free(mbuf) };
    }

    /// Makes up a packet of the first `n` buffers of `batch`, which are taken; `false`, and none is, unless
    /// there is room for all.
    pub fn send(&mut self, batch: &mut Batch<Buf>, n: usize) -> bool {
        self.register();
        if self.room() == 0 || self.free.len() < n {
            return false;
        }
        let mut head: *mut c_void = ptr::null_mut();
        for _ in 0..n {
            let buf = batch.pop_front().expect("counted by the caller");
            let (at, len) = (buf.iova(), buf.len());
            let mbuf = if buf.owner() == self.owner() {
                let mbuf = self.frames.take_back(buf.finish(0));
                // SAFETY: the bytes lie in this mbuf's buffer, where they were received.
                unsafe { hr_trim(mbuf, at, len) };
                mbuf
            } else {
                let slot = self.free.pop().expect("counted");
                // SAFETY: memory that stays mapped while `buf` is kept, until DPDK has done with it.
                let mbuf = unsafe {
                    let place = hr_shared_at(self.shared.as_ptr(), slot);
                    hr_external(self.heads.as_ptr(), at, len, place)
                };
                assert!(!mbuf.is_null(), "more heads than buffers that can be kept");
                self.kept.push_back(Kept { slot, buf });
                mbuf
            };
            if head.is_null() {
                head = mbuf;
            } else {
                // SAFETY: two packets of ours; up to 65535 buffers can be joined.
                let rc = unsafe { hr_chain(head, mbuf) };
                assert!(rc == 0, "a packet has fewer buffers than a batch");
            }
        }
        self.waiting.push(head);
        true
    }

    /// Gives DPDK the packets that were made up. What it does not take stays, and is given again.
    pub fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        // SAFETY: packets of ours, which DPDK owns once it took them.
        let n =
            unsafe { hr_send(self.port, self.queue, self.waiting.as_mut_ptr(), self.waiting.len() as u16) };
        self.waiting.drain(..usize::from(n));
    }

    /// Receipts of what DPDK has done with, as many as fit.
    pub fn reap(&mut self, done: &mut Batch<Loan>) {
        self.flush();
        if self.kept.is_empty() {
            return;
        }
        let before = done.len();
        let mut looked = 0;
        while done.room() > 0 && looked < 2 * BURST && !self.kept.is_empty() {
            let kept = self.kept.pop_front().expect("not empty");
            // SAFETY: a place of ours.
            let home = unsafe { hr_shared_done(hr_shared_at(self.shared.as_ptr(), kept.slot)) } != 0;
            if home {
                self.free.push(kept.slot);
                done.push(kept.buf.finish(0));
            } else {
                self.kept.push_front(kept);
                break;
            }
            looked += 1;
        }
        if done.len() == before {
            // Many drivers free what they sent only when there is more to send.
            // SAFETY: a queue of a started port; where its driver cannot, nothing happens.
            unsafe { hr_clean(self.port, self.queue) };
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: packets of ours that are made up and not sent: in no queue of DPDK's.
        self.waiting.drain(..).for_each(|packet| unsafe { hr_drop(packet) });
    }
}
