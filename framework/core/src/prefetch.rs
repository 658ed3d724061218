//! Hints to the CPU: a cache line will be wanted soon. They change no memory and fault on no address, so that any pointer may be given to them.
//!
//! A poll loop knows what it will touch a few packets from now, and what is in another core's cache takes longer to come than a packet
//! does to be worked on. Under Miri, and on CPUs that are not named here, these are nothing.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

/// What comes in one piece on the CPUs named here, or at least.
const LINE: usize = 64;

/// `len` bytes from `at` on will be read: the first two lines of them are asked for. Further ones come by themselves, as the CPU sees what is
/// being read.
#[inline(always)]
pub(crate) fn read(at: *const u8, len: usize) {
    lines(at, len, |at| {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint, which accesses nothing.
        unsafe {
            std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        #[cfg(all(target_arch = "powerpc64", not(miri)))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("dcbt 0, {}", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        let _ = at;
    });
}

/// `len` bytes from `at` on will be written: the same for that.
#[inline(always)]
pub(crate) fn write(at: *const u8, len: usize) {
    lines(at, len, |at| {
        // CPUs without it take it as no operation (AMD64 Architecture Programmer's Manual 3, PREFETCHW).
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint, which accesses nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        #[cfg(all(target_arch = "powerpc64", not(miri)))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("dcbtst 0, {}", in(reg) at, options(nostack, preserves_flags, readonly))
        };
        let _ = at;
    });
}

#[inline(always)]
fn lines(at: *const u8, len: usize, each: impl Fn(*const u8)) {
    each(at);
    // The second, or the first once more where there is none.
    each(at.wrapping_add(len.saturating_sub(1).min(LINE)));
}
