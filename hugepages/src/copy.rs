//! Moves of bytes that another party may be writing. They are machine instructions in `asm!`, not
//! Rust accesses: the compiler cannot split, repeat or assume anything about them, and the two sides
//! may even be the same bytes.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod imp {
    use std::arch::asm;

    /// Past this, wide moves pay for the call.
    const LONG: usize = 512;

    /// # Safety
    /// Both ranges of `n` bytes are mapped; any other party may read or write them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn bytes(src: *const u8, dst: *mut u8, n: usize) {
        // SAFETY: every branch touches only bytes 0..n of both sides; the pieces of a branch may
        // overlap each other, never the ends.
        unsafe {
            if n >= 16 {
                if n > LONG {
                    return long(src, dst, n);
                }
                let mut at = 0;
                while n - at > 64 {
                    move64(src.add(at), dst.add(at));
                    at += 64;
                }
                let left = n - at;
                if left > 32 {
                    move16x2(src.add(at), dst.add(at));
                    move16x2(src.add(n - 32), dst.add(n - 32));
                } else if left > 16 {
                    move16(src.add(at), dst.add(at));
                    move16(src.add(n - 16), dst.add(n - 16));
                } else {
                    move16(src.add(n - 16), dst.add(n - 16));
                }
            } else if n >= 8 {
                move8(src, dst);
                move8(src.add(n - 8), dst.add(n - 8));
            } else if n >= 4 {
                move4(src, dst);
                move4(src.add(n - 4), dst.add(n - 4));
            } else if n >= 2 {
                move2(src, dst);
                move2(src.add(n - 2), dst.add(n - 2));
            } else if n == 1 {
                rep(src, dst, 1);
            }
        }
    }

    /// # Safety
    /// As for [`bytes`]; `n` is at least 160.
    #[inline(never)]
    unsafe fn long(src: *const u8, dst: *mut u8, n: usize) {
        // SAFETY: the caller's promise; the processor has what `wide` needs.
        unsafe { if std::is_x86_feature_detected!("avx") { wide(src, dst, n) } else { rep(src, dst, n) } }
    }

    /// Stores are aligned, which wins a tenth; the first 32 and the last 128 bytes are moved at any place.
    ///
    /// # Safety
    /// As for [`bytes`]; `n` is at least 160.
    #[target_feature(enable = "avx")]
    unsafe fn wide(src: *const u8, dst: *mut u8, n: usize) {
        // SAFETY: `at` begins at 1 to 32, so that what `move32` skipped is none; `at + 128 <= n` in the loop.
        unsafe {
            move32(src, dst);
            let mut at = 32 - (dst.addr() & 31);
            while n - at > 128 {
                move128(src.add(at), dst.add(at));
                at += 128;
            }
            move128(src.add(n - 128), dst.add(n - 128));
            asm!("vzeroupper", options(nomem, nostack, preserves_flags));
        }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn move128(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "vmovups {a}, [{s}]", "vmovups {b}, [{s} + 32]", "vmovups {c}, [{s} + 64]", "vmovups {e}, [{s} + 96]",
                "vmovups [{d}], {a}", "vmovups [{d} + 32], {b}", "vmovups [{d} + 64], {c}", "vmovups [{d} + 96], {e}",
                s = in(reg) src, d = in(reg) dst, a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _,
                e = out(ymm_reg) _, options(nostack, preserves_flags)
            );
        }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn move32(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("vmovups {a}, [{s}]", "vmovups [{d}], {a}", s = in(reg) src, d = in(reg) dst, a = out(ymm_reg) _,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn rep(src: *const u8, dst: *mut u8, n: usize) {
        // SAFETY: the caller's promise; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") n => _, inout("rsi") src => _, inout("rdi") dst => _,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn move64(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups {c}, [{s} + 32]", "movups {e}, [{s} + 48]",
                "movups [{d}], {a}", "movups [{d} + 16], {b}", "movups [{d} + 32], {c}", "movups [{d} + 48], {e}",
                s = in(reg) src, d = in(reg) dst, a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _,
                e = out(xmm_reg) _, options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn move16x2(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups [{d}], {a}", "movups [{d} + 16], {b}",
                s = in(reg) src, d = in(reg) dst, a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn move16(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("movups {a}, [{s}]", "movups [{d}], {a}", s = in(reg) src, d = in(reg) dst, a = out(xmm_reg) _,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn move8(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov {t}, [{s}]", "mov [{d}], {t}", s = in(reg) src, d = in(reg) dst, t = out(reg) _,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn move4(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov {t:e}, [{s}]", "mov [{d}], {t:e}", s = in(reg) src, d = in(reg) dst, t = out(reg) _,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn move2(src: *const u8, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("movzx {t:e}, word ptr [{s}]", "mov [{d}], {t:x}", s = in(reg) src, d = in(reg) dst,
                t = out(reg) _, options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// 2 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn load2(src: *const u8) -> u16 {
        let value: u16;
        // SAFETY: the caller's promise.
        unsafe {
            asm!("movzx {t:e}, word ptr [{s}]", s = in(reg) src, t = out(reg) value,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// 2 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn store2(value: u16, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov [{d}], {t:x}", d = in(reg) dst, t = in(reg) value, options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// 4 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn load4(src: *const u8) -> u32 {
        let value: u32;
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov {t:e}, [{s}]", s = in(reg) src, t = out(reg) value,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// 4 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn store4(value: u32, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov [{d}], {t:e}", d = in(reg) dst, t = in(reg) value, options(nostack, preserves_flags));
        }
    }

    /// # Safety
    /// 8 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn load8(src: *const u8) -> u64 {
        let value: u64;
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov {t:r}, [{s}]", s = in(reg) src, t = out(reg) value,
                options(nostack, preserves_flags, readonly));
        }
        value
    }

    /// # Safety
    /// 8 bytes are mapped.
    #[inline(always)]
    pub(crate) unsafe fn store8(value: u64, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("mov [{d}], {t:r}", d = in(reg) dst, t = in(reg) value, options(nostack, preserves_flags));
        }
    }

    /// Brings a line near, to be read. Any address is allowed.
    #[inline(always)]
    pub(crate) fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of an unmapped address does nothing.
        unsafe { asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }

    /// Brings a line near, to be written. Any address is allowed.
    #[inline(always)]
    pub(crate) fn prefetch_write(at: *const u8) {
        // SAFETY: a prefetch of an unmapped address does nothing.
        unsafe { asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
}

#[cfg(any(not(target_arch = "x86_64"), miri))]
mod imp {
    use std::sync::atomic::{AtomicU8, Ordering};

    /// # Safety
    /// Both ranges of `n` bytes are mapped; any other party may read or write them meanwhile.
    pub(crate) unsafe fn bytes(src: *const u8, dst: *mut u8, n: usize) {
        for i in 0..n {
            // SAFETY: i < n; the caller's promise. The source may be borrowed to be read only, so no
            // atomic is made of it.
            unsafe {
                let byte = src.add(i).read_volatile();
                AtomicU8::from_ptr(dst.add(i)).store(byte, Ordering::Relaxed);
            }
        }
    }

    /// # Safety
    /// 2 bytes are mapped.
    pub(crate) unsafe fn load2(src: *const u8) -> u16 {
        let mut value = [0; 2];
        // SAFETY: the caller's promise.
        unsafe { bytes(src, value.as_mut_ptr(), 2) };
        u16::from_ne_bytes(value)
    }

    /// # Safety
    /// 2 bytes are mapped.
    pub(crate) unsafe fn store2(value: u16, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { bytes(value.to_ne_bytes().as_ptr(), dst, 2) };
    }

    /// # Safety
    /// 4 bytes are mapped.
    pub(crate) unsafe fn load4(src: *const u8) -> u32 {
        let mut value = [0; 4];
        // SAFETY: the caller's promise.
        unsafe { bytes(src, value.as_mut_ptr(), 4) };
        u32::from_ne_bytes(value)
    }

    /// # Safety
    /// 4 bytes are mapped.
    pub(crate) unsafe fn store4(value: u32, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { bytes(value.to_ne_bytes().as_ptr(), dst, 4) };
    }

    /// # Safety
    /// 8 bytes are mapped.
    pub(crate) unsafe fn load8(src: *const u8) -> u64 {
        let mut value = [0; 8];
        // SAFETY: the caller's promise.
        unsafe { bytes(src, value.as_mut_ptr(), 8) };
        u64::from_ne_bytes(value)
    }

    /// # Safety
    /// 8 bytes are mapped.
    pub(crate) unsafe fn store8(value: u64, dst: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { bytes(value.to_ne_bytes().as_ptr(), dst, 8) };
    }

    pub(crate) fn prefetch(_: *const u8) {}
    pub(crate) fn prefetch_write(_: *const u8) {}
}

pub(crate) use imp::{bytes, prefetch, prefetch_write};

/// A value at any alignment; words of up to 8 bytes by one instruction.
///
/// # Safety
/// All of it is mapped, and any bytes are a valid `T`; any other party may write them meanwhile.
#[inline(always)]
pub(crate) unsafe fn load<T>(at: *const T) -> T {
    // SAFETY: the caller's promise; `transmute_copy` is between types of one size.
    unsafe {
        match size_of::<T>() {
            2 => std::mem::transmute_copy(&imp::load2(at.cast())),
            4 => std::mem::transmute_copy(&imp::load4(at.cast())),
            8 => std::mem::transmute_copy(&imp::load8(at.cast())),
            n => {
                let mut value = std::mem::MaybeUninit::<T>::uninit();
                bytes(at.cast(), value.as_mut_ptr().cast(), n);
                value.assume_init()
            }
        }
    }
}

/// Stores a value at any alignment; words of up to 8 bytes by one instruction.
///
/// # Safety
/// All of it is mapped, and `T` has no padding; any other party may read or write it meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<T>(value: T, at: *mut T) {
    // SAFETY: the caller's promise; `transmute_copy` is between types of one size.
    unsafe {
        match size_of::<T>() {
            2 => imp::store2(std::mem::transmute_copy(&value), at.cast()),
            4 => imp::store4(std::mem::transmute_copy(&value), at.cast()),
            8 => imp::store8(std::mem::transmute_copy(&value), at.cast()),
            n => bytes((&raw const value).cast(), at.cast(), n),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_length_is_copied_exactly() {
        let src: Vec<u8> = (0..3000u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let lengths = if cfg!(miri) { 0..80 } else { 0..2100 };
        for n in lengths {
            let mut dst = vec![0xEEu8; n + 128];
            // SAFETY: both vectors are long enough for offsets 3 and 64.
            unsafe { super::bytes(src.as_ptr().add(3), dst.as_mut_ptr().add(64), n) };
            assert!(dst[..64].iter().all(|&b| b == 0xEE), "{n}: wrote before");
            assert_eq!(dst[64..64 + n], src[3..3 + n], "{n}");
            assert!(dst[64 + n..].iter().all(|&b| b == 0xEE), "{n}: wrote after");
        }
    }
}
