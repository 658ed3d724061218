//! Device barriers: what orders memory against a device, which no C++ fence promises.
//!
//! A doorbell must not overtake the stores to the descriptor it announces, and nothing read from memory that a device wrote
//! may be older than the status word that said it is complete. Between two threads a Release/Acquire pair does that; between
//! cacheable memory and a device register it does not on every CPU (powerpc's `lwsync`, which a Release fence becomes, does
//! not order cacheable stores against cache-inhibited ones). Hence inline assembly, in this file and (for hints) in `prefetch.rs`. Neither
//! emulators nor Miri show a mistake here, so CI looks at the instructions of each target.
//!
//! Under Miri the device is a thread, and these are nothing: what it then checks is that each caller's own Release store or Acquire load
//! carries its side. A fence here would hide one that is too weak.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

#[cfg(not(any(miri, target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
use std::sync::atomic::{Ordering, fence};

/// Orders every earlier store to DMA memory before a later store to a device register.
///
/// Linux: `dma_wmb` and the barrier in `writel`; DPDK: `rte_io_wmb`.
///
/// x86-64: nothing but the compiler (stores stay in order towards uncached memory). aarch64: `dmb oshst`. powerpc64: `sync`.
///
/// Earlier *loads* are not ordered on aarch64: who hands an entry back to the device has branched on what it read there, which orders it.
#[inline(always)]
pub fn before_doorbell() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: no instruction; the implied memory clobber keeps the compiler from moving accesses across.
    unsafe {
        std::arch::asm!("", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "powerpc64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("sync", options(nostack, preserves_flags))
    };
    #[cfg(not(any(miri, target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
    fence(Ordering::SeqCst);
}

/// Orders the load of a status word before every later load of what the device wrote ahead of it.
///
/// Linux: `dma_rmb`; DPDK: `rte_io_rmb`.
///
/// x86-64: nothing but the compiler. aarch64: `dmb oshld`. powerpc64: `lwsync` (cacheable against cacheable).
#[inline(always)]
pub fn after_status() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: no instruction; the implied memory clobber keeps the compiler from moving accesses across.
    unsafe {
        std::arch::asm!("", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "powerpc64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("lwsync", options(nostack, preserves_flags))
    };
    #[cfg(not(any(miri, target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
    fence(Ordering::Acquire);
}

/// Orders the load of a register before every later load and store, to memory and to the device: what a register says holds for what is accessed
/// next.
///
/// Not for hot paths. (Linux: the barrier in `readl`.)
///
/// x86-64: nothing but the compiler (loads stay in order). aarch64: `dmb oshld`. powerpc64: `sync`, since `lwsync` does not order loads of
/// registers.
#[inline(always)]
pub fn after_register() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: no instruction; the implied memory clobber keeps the compiler from moving accesses across.
    unsafe {
        std::arch::asm!("", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "powerpc64", not(miri)))]
    // SAFETY: a barrier changes no register and no memory.
    unsafe {
        std::arch::asm!("sync", options(nostack, preserves_flags))
    };
    #[cfg(not(any(miri, target_arch = "x86_64", target_arch = "aarch64", target_arch = "powerpc64")))]
    fence(Ordering::Acquire);
}

/// Orders an earlier store before a later load, both to memory: for publishing an index and then checking whether the other side wants a notification
/// (shadow doorbells, event indexes), and for arming an interrupt before the last check of a queue.
///
/// A sequentially consistent fence. (DPDK: `rte_smp_mb`.)
#[inline(always)]
pub fn store_then_load() {
    crate::sync::atomic::fence(crate::sync::atomic::Ordering::SeqCst);
}
