//! SIGBUS: what an access to a mapping raises when no page can be had for it. A peer can cause that: the
//! file is its own, and it may truncate it, or leave no huge page for it.
//!
//! Once [`install`] was called, such a fault inside the mapping of a peer's file costs that mapping and not
//! the process: it is replaced, whole, by zeroed memory of ours, it is marked ([`Map::damage`]), the
//! access goes on, and every [`Bell`] rings, so that whoever runs the rings of that peer can end them. Any
//! other SIGBUS goes to the handler that was there before, or ends the process as it would have.
//!
//! [`Map::damage`]: crate::Map::damage

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Mappings of peers' files that a process may have at a time.
pub const MAX_GUARDED: usize = 16 * 1024;
/// Bells that a process may have at a time.
pub const MAX_BELLS: usize = 64;

/// A guarded mapping, as the handler finds it: nothing but atomics, changed under `FREE`.
struct Slot {
    /// Odd while the other fields change.
    turn: AtomicUsize,
    base: AtomicUsize,
    len: AtomicUsize,
    broken: AtomicBool,
}

static SLOTS: [Slot; MAX_GUARDED] = [const {
    Slot {
        turn: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; MAX_GUARDED];
/// Slots from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Used slots that are free.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Eventfds, made once and never closed: the handler may write to one at any time.
static BELLS: [AtomicI32; MAX_BELLS] = [const { AtomicI32::new(-1) }; MAX_BELLS];
static RUNG: Mutex<[bool; MAX_BELLS]> = Mutex::new([false; MAX_BELLS]);

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Has faults in mappings of peers' files cost the mapping and not the process, from now on. Called once by
/// an application, and as often as it likes. The handler that was there before gets all other faults.
///
/// # Errors
/// The kernel's refusal.
pub fn install() -> io::Result<()> {
    let mut all = Ok(());
    PREVIOUS.get_or_init(|| {
        // SAFETY: a sigaction of zeros is a valid value, about to be filled.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks for the disposition; writes one sigaction of ours.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut previous) } != 0 {
            all = Err(io::Error::last_os_error());
        }
        previous
    });
    all?;
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_fault as *const () as usize;
    // On the signal stack, which threads of the standard library have, in case the fault is of the stack.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler only does what a handler may: see `on_fault`.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Only atomics and system calls, none of which allocates, locks or takes long.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: this thread's errno, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a siginfo of a fault, which has an address.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if !(matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) && mend(at)) {
        pass_on(signal, code, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Replaces the guarded mapping that `at` lies in; whether there is one.
fn mend(at: usize) -> bool {
    let Some((slot, base, len)) = SLOTS[..USED.load(Ordering::Acquire)].iter().find_map(|slot| {
        // The mapping that was accessed is there, and so its slot does not change: whoever made the access
        // holds it. Any other that changes meanwhile is passed over. Pairs with the fence in `Slot::set`.
        let turn = slot.turn.load(Ordering::Acquire);
        let (base, len) = (slot.base.load(Ordering::Relaxed), slot.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let steady = turn.is_multiple_of(2) && slot.turn.load(Ordering::Relaxed) == turn;
        (steady && at.wrapping_sub(base) < len).then_some((slot, base, len))
    }) else {
        return false;
    };
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: exactly the range of a live mapping of this crate, whose bytes may change at any time.
    let mended = unsafe { libc::mmap(base as *mut _, len, access, flags, -1, 0) };
    if mended == libc::MAP_FAILED {
        return false;
    }
    // Release, pairs with `Guard::broken`: who sees it may ask the file for the cause.
    slot.broken.store(true, Ordering::Release);
    for bell in &BELLS {
        let fd = bell.load(Ordering::Acquire);
        if fd >= 0 {
            // SAFETY: an eventfd of ours that is never closed, and one word of this stack.
            unsafe { libc::write(fd, (&raw const ONE).cast(), size_of::<u64>()) };
        }
    }
    true
}

static ONE: u64 = 1;

/// A SIGBUS that is not ours: to whoever had it before.
fn pass_on(signal: libc::c_int, code: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a sigaction of zeros is the default disposition.
    let default = unsafe { std::mem::zeroed() };
    let previous = PREVIOUS.get().unwrap_or(&default);
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: back to the default, which ends the process when the access is made again.
            unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO the address is that of a function of this type.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the address is that of a function of this type.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
    // Sent by somebody (a code of 0 or less), no access is made again: where the disposition is the default
    // by now (the standard library's handler resets it), it is sent once more.
    // SAFETY: as above; asks for the disposition, and sends this thread a signal.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut now);
        if code <= 0 && now.sa_sigaction == libc::SIG_DFL {
            libc::raise(signal);
        }
    }
}

impl Slot {
    /// Under the lock of `FREE`.
    fn set(&self, base: usize, len: usize) {
        self.turn.fetch_add(1, Ordering::Relaxed);
        // Between the odd turn and the fields: pairs with the fence in `mend`.
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        self.turn.fetch_add(1, Ordering::Release);
    }
}

/// A mapping that may break without harm. Dropped before the mapping is.
#[derive(Debug)]
pub(crate) struct Guard(usize);

impl Guard {
    /// Guards a mapping that is there; `None`: [`MAX_GUARDED`] are.
    pub(crate) fn new(base: usize, len: usize) -> Option<Guard> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let used = USED.load(Ordering::Relaxed);
        let slot = free.pop().or_else(|| (used < MAX_GUARDED).then_some(used))?;
        SLOTS[slot].set(base, len);
        // Release, pairs with `mend`: the slot is filled.
        USED.fetch_max(slot + 1, Ordering::Release);
        Some(Guard(slot))
    }

    /// Whether it was replaced.
    pub(crate) fn broken(&self) -> bool {
        SLOTS[self.0].broken.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        SLOTS[self.0].set(0, 0);
        free.push(self.0);
    }
}

/// How many mappings are guarded; [`MAX_GUARDED`] at the most.
pub fn guarded() -> usize {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    USED.load(Ordering::Relaxed) - free.len()
}

/// Becomes readable when a mapping breaks, whosever it is.
#[derive(Debug)]
pub struct Bell(usize);

impl Bell {
    /// A bell.
    ///
    /// # Errors
    /// When [`MAX_BELLS`] are in use, or no eventfd can be had.
    pub fn new() -> io::Result<Bell> {
        let mut rung = RUNG.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(i) = rung.iter().position(|used| !used) else {
            return Err(io::Error::other(format!("all {MAX_BELLS} bells for faults of memory are in use")));
        };
        if BELLS[i].load(Ordering::Relaxed) < 0 {
            let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            BELLS[i].store(fd.into_raw_fd(), Ordering::Release);
        }
        rung[i] = true;
        let bell = Bell(i);
        bell.clear();
        Ok(bell)
    }

    /// Whether it rang since this was last asked.
    pub fn clear(&self) -> bool {
        rustix::io::read(self, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: an eventfd that is never closed.
        unsafe { BorrowedFd::borrow_raw(BELLS[self.0].load(Ordering::Acquire)) }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        RUNG.lock().unwrap_or_else(PoisonError::into_inner)[self.0] = false;
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;
    use crate::map::{Damage, Map};
    use crate::table::Table;
    use crate::window::Words;

    fn memfd(len: u64) -> OwnedFd {
        let fd = memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    #[test]
    fn a_file_that_shrinks_costs_its_mapping_and_no_other() {
        install().unwrap();
        install().unwrap();
        let (bell, len) = (Bell::new().unwrap(), 1 << 20);
        let (bad, good) = (memfd(len), memfd(len));
        let map = |fd: &OwnedFd| Table::of(Map::file(fd.try_clone().unwrap(), 0, len).unwrap().0);
        let tables = [map(&bad), map(&good)];
        let words = tables.each_ref().map(|table| table.window::<u64>(0, len as usize / 8).unwrap());
        let last = len as usize / 8 - 1;
        for words in &words {
            words.set(0, 7);
            words.set(last, 9);
        }
        ftruncate(&bad, 4096).unwrap();
        assert_eq!(
            (words[0].get(0), tables[0].damage().is_some()),
            (7, false),
            "what is left is still there"
        );
        assert_eq!(words[0].get(last), 0);
        assert_eq!(words[0].get(0), 0, "all of it is memory of ours now");
        words[0].release(last, 5);
        assert_eq!(words[0].acquire(last), 5);
        assert_eq!(tables[0].damage(), Some((0, Damage::Truncated { size: 4096 })));
        assert_eq!((words[1].get(0), words[1].get(last), tables[1].damage()), (7, 9, None));
        assert!(bell.clear());
    }

    #[test]
    fn a_slot_is_used_again_unbroken() {
        install().unwrap();
        for _ in 0..3 {
            let file = memfd(4096);
            let table = Table::of(Map::file(file.try_clone().unwrap(), 0, 4096).unwrap().0);
            let words = table.window::<u64>(0, 512).unwrap();
            assert_eq!((words.get(0), table.damage()), (0, None));
            ftruncate(&file, 0).unwrap();
            assert_eq!(words.get(0), 0);
            assert_eq!(table.damage(), Some((0, Damage::Truncated { size: 0 })));
        }
    }

    #[test]
    fn threads_that_fault_at_once_all_go_on() {
        install().unwrap();
        for _ in 0..50 {
            let file = memfd(1 << 16);
            let table = Table::of(Map::file(file.try_clone().unwrap(), 0, 1 << 16).unwrap().0);
            let cut = AtomicBool::new(false);
            std::thread::scope(|threads| {
                for start in 0..4 {
                    let (words, cut) = (table.window::<u64>(0, 1 << 13).unwrap(), &cut);
                    threads.spawn(move || {
                        // All of it once more when it is gone for certain.
                        let mut last = false;
                        while !last {
                            last = cut.load(Ordering::Relaxed);
                            (0..1 << 13).for_each(|i| words.set((start + i) % (1 << 13), 1));
                        }
                    });
                }
                ftruncate(&file, 0).unwrap();
                cut.store(true, Ordering::Relaxed);
            });
            assert!(table.damage().is_some());
        }
    }

    /// What happens to a process that has this handler and runs `case`.
    fn end_of(case: &str) -> std::process::ExitStatus {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "sigbus::tests::dies_here", "--nocapture"]).env("HOTRING_SIGBUS", case);
        child.output().unwrap().status
    }

    #[test]
    fn any_other_sigbus_ends_the_process() {
        for case in ["private", "sent", "gone"] {
            assert_eq!(end_of(case).signal(), Some(libc::SIGBUS), "{case}");
        }
        assert_eq!(end_of("chained").code(), Some(77));
        assert_eq!(end_of("none").code(), Some(0));
    }

    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(77) };
    }

    #[test]
    fn dies_here() {
        let Ok(case) = std::env::var("HOTRING_SIGBUS") else { return };
        if case == "chained" {
            // SAFETY: a handler that only leaves.
            unsafe { libc::signal(libc::SIGBUS, leave as *const () as usize) };
        }
        install().unwrap();
        let file = memfd(4096);
        let unguarded = || {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { rustix::mm::mmap(ptr::null_mut(), 4096, access, MapFlags::SHARED, &file, 0) }.unwrap()
        };
        match case.as_str() {
            "private" | "chained" => {
                let at = unguarded().cast::<u8>();
                ftruncate(&file, 0).unwrap();
                // SAFETY: mapped; the file behind it is gone, which is the point.
                unsafe { at.write_volatile(1) };
            }
            // SAFETY: a signal to this thread.
            "sent" => drop(unsafe { libc::raise(libc::SIGBUS) }),
            "gone" => {
                let map = Map::file(file.try_clone().unwrap(), 0, 4096).unwrap().0;
                let address = map.address() as usize;
                drop(map);
                let access = ProtFlags::READ | ProtFlags::WRITE;
                let flags = MapFlags::SHARED | MapFlags::FIXED;
                // SAFETY: where nothing is mapped any more.
                let at = unsafe { rustix::mm::mmap(address as *mut _, 4096, access, flags, &file, 0) };
                ftruncate(&file, 0).unwrap();
                // SAFETY: as above.
                unsafe { at.unwrap().cast::<u8>().write_volatile(1) };
            }
            _ => {}
        }
    }
}
