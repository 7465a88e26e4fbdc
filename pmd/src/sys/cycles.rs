//! The cycle counter of the core.

// UNSAFETY: the instruction that reads the counter is an intrinsic.
#![allow(unsafe_code)]

/// Cycles of the time stamp counter: constant rate, alike on all cores of today's machines.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: every x86_64 processor has the instruction; it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds since the first call, where there is no cheaper counter.
#[cfg(any(not(target_arch = "x86_64"), miri))]
pub fn cycles() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn never_runs_backwards_on_a_thread() {
        let then = super::cycles();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::cycles() > then);
    }
}
