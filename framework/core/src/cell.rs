//! The one file that accesses mapped registers.
//!
//! There are two kinds of memory behind a mapping. A *device's* registers are volatile cells ([`volatile_register`]): each access
//! happens once, in its width, in program order. Memory that another thread or process polls (a model, a vfio-user server) is
//! *atomic*, as is everything under Miri. Nowhere else in this workspace is anything volatile.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

mod sealed {
    pub trait Sealed {}
}

/// The width of a register: `u8`, `u16`, `u32` or `u64`.
///
/// PCI is little-endian; values are the CPU's.
pub trait Width: sealed::Sealed + Copy + PartialEq + Send + Into<u64> + std::fmt::LowerHex + 'static {
    /// The width in bytes.
    const BYTES: u64 = size_of::<Self>() as u64;
    /// All bits set: what a read from a device that is gone returns.
    #[doc(hidden)]
    type Bytes: AsMut<[u8]> + AsRef<[u8]> + Default;
    #[doc(hidden)]
    fn to_le(self) -> Self::Bytes;
    #[doc(hidden)]
    fn from_le(bytes: Self::Bytes) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `at` is aligned to the width, inside a live mapping of kind `volatile`.
    unsafe fn load(at: *const u8, volatile: bool) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// As [`load`](Self::load), and the mapping is writable.
    unsafe fn store(self, at: *mut u8, volatile: bool);
}

macro_rules! width {
    ($($int:ty, $atomic:ty;)*) => {$(
        impl sealed::Sealed for $int {}
        impl Width for $int {
            type Bytes = [u8; size_of::<$int>()];
            #[inline]
            fn to_le(self) -> Self::Bytes { self.to_le_bytes() }
            #[inline]
            fn from_le(bytes: Self::Bytes) -> Self { <$int>::from_le_bytes(bytes) }
            #[inline(always)]
            unsafe fn load(at: *const u8, volatile: bool) -> Self {
                let raw = if volatile && !cfg!(miri) {
                    // SAFETY: the caller says that `at` is aligned and mapped; `RO` is a transparent cell of that width.
                    unsafe { &*at.cast::<volatile_register::RO<$int>>() }.read()
                } else {
                    // SAFETY: as above; memory of this kind is only ever accessed atomically.
                    let raw = unsafe { &*at.cast::<$atomic>() }.load(Ordering::Relaxed);
                    // The mapping may be read-only, where no load is promised to work but a relaxed one. Pairs with the Release store of
                    // whoever models the device.
                    fence(Ordering::Acquire);
                    raw
                };
                <$int>::from_le(raw)
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut u8, volatile: bool) {
                if volatile && !cfg!(miri) {
                    // SAFETY: the caller says that `at` is aligned, mapped and writable; what the write does is the device's
                    // business, and reaches memory only through DMA that the IOMMU confines.
                    unsafe { (*at.cast::<volatile_register::WO<$int>>()).write(self.to_le()) }
                } else {
                    // Release pairs with the Acquire load of whoever models the device: it must see what was stored before.
                    // SAFETY: as above; memory of this kind is only ever accessed atomically.
                    unsafe { &*at.cast::<$atomic>() }.store(self.to_le(), Ordering::Release)
                }
            }
        }
    )*};
}
width! { u8, AtomicU8; u16, AtomicU16; u32, AtomicU32; u64, AtomicU64; }
