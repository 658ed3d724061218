//! Parts of an arena: bytes ([`Chunk`]) and rings of entries made of atomic words ([`DmaRing`]).
//!
//! A ring's entries are atomics, so that code which drives a queue, or models one, is safe code and runs under Miri. Indexes wrap by
//! a mask: no access can miss. Head, tail, phase and doorbells are the driver's; this file has none.

use super::{Arena, mapping::Mapping};
use crate::{Error, Result};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A part of an [`Arena`]. Clones are the same part, which is given back when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Chunk(Arc<Place>);

#[derive(Debug)]
struct Place {
    arena: Arc<Arena>,
    range: Range<u64>,
    quarantine: AtomicBool,
}

impl Chunk {
    pub(super) fn new(arena: Arc<Arena>, range: Range<u64>) -> Self {
        Self(Arc::new(Place { arena, range, quarantine: AtomicBool::new(false) }))
    }

    /// The arena it is part of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.0.arena
    }

    /// Where in the arena it starts, in bytes. Its device address is the arena's in some space, plus this.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.0.range.start
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> u64 {
        self.0.range.end - self.0.range.start
    }

    /// Copies `bytes` to `offset` by atomic words.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that isn't inside.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        self.mapping().write(self.offset() + offset, bytes);
        Ok(())
    }

    /// Copies `out.len()` bytes from `offset` by atomic words.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where that isn't inside.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len() as u64)?;
        self.mapping().read(self.offset() + offset, out);
        Ok(())
    }

    /// Sets all of it to zero.
    pub fn zero(&self) {
        self.mapping().fill(self.offset(), self.len(), 0);
    }

    /// Never gives it back: for memory that a device may still write.
    pub fn quarantine(self) {
        self.set_quarantine(true);
    }

    /// Whether it is quarantined when the last clone is dropped, rather than given back: on while a device knows of it.
    pub fn set_quarantine(&self, on: bool) {
        // Whoever drops the last clone has seen what the others did: `Arc` sees to that.
        self.0.quarantine.store(on, Ordering::Relaxed);
    }

    fn mapping(&self) -> &Mapping {
        self.0.arena.mapping()
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Error::OutOfRange { what: "chunk", offset, len, size: self.len() }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if *self.quarantine.get_mut() {
            self.arena.quarantined(self.range.end - self.range.start);
            // The arena stays for as long as the process does.
            std::mem::forget(self.arena.clone());
        } else {
            self.arena.free(self.range.clone());
        }
    }
}

/// What a ring's entry may be: atomic words, or arrays of one kind of them.
///
/// # Safety
/// Every byte is part of an atomic integer, so a shared reference may be held while a device or another process writes it; and any
/// bytes are a value of it.
pub unsafe trait Shared: Sync + 'static {
    /// Sets it to zero, word by word.
    fn clear(&self);
}

macro_rules! shared {
    ($($atomic:ty),*) => {$(
        // SAFETY: an atomic integer.
        unsafe impl Shared for $atomic {
            fn clear(&self) {
                self.store(0, Ordering::Relaxed);
            }
        }
    )*};
}
shared!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: an array of them has no padding and no other bytes.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {
    fn clear(&self) {
        self.iter().for_each(T::clear);
    }
}

/// A power-of-two ring of entries in DMA memory.
///
/// Each word has one width, for both sides: NVMe's submission entry is `[AtomicU64; 8]`, its completion entry `[AtomicU32; 4]`. A clone is
/// the same ring.
#[derive(Debug)]
pub struct DmaRing<T: Shared> {
    base: NonNull<T>,
    mask: u32,
    chunk: Chunk,
}

// SAFETY: entries are atomics, which any thread may access; the chunk keeps them mapped.
unsafe impl<T: Shared> Send for DmaRing<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for DmaRing<T> {}

impl<T: Shared> Clone for DmaRing<T> {
    fn clone(&self) -> Self {
        Self { base: self.base, mask: self.mask, chunk: self.chunk.clone() }
    }
}

impl<T: Shared> DmaRing<T> {
    /// A zeroed ring of `entries` in `arena`, aligned to `align` bytes (a power of two; at least the entry's own).
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the entries, [`Error::ArenaFull`] where there is no room.
    pub fn new(arena: &Arc<Arena>, entries: u32, align: u64) -> Result<Self> {
        if !entries.is_power_of_two() {
            return Err(Error::NotPowerOfTwo { what: "ring entries", value: entries.into() });
        }
        let chunk = arena.alloc(u64::from(entries) * size_of::<T>() as u64, align.max(align_of::<T>() as u64))?;
        // SAFETY: the chunk lies inside the arena's mapping.
        let base = unsafe { arena.mapping().base().add(chunk.offset() as usize) }.cast();
        let ring = Self { base, mask: entries - 1, chunk };
        ring.zero();
        Ok(ring)
    }

    /// Sets all of it to zero, in words of their own width: a device that is a thread sees nothing else.
    pub fn zero(&self) {
        (0..self.len()).for_each(|i| self.at(i).clear());
    }

    /// Entry `i`, modulo the ring.
    #[inline(always)]
    pub fn at(&self, i: u32) -> &T {
        // SAFETY: the mask keeps the index inside the chunk, which `self` holds; `new` aligned it for `T`.
        unsafe { self.base.add((i & self.mask) as usize).as_ref() }
    }

    /// `i` modulo the ring: what goes into a doorbell.
    #[inline(always)]
    pub fn slot(&self, i: u32) -> u32 {
        i & self.mask
    }

    /// Whether a free-running `i` is on an odd lap: what a phase bit tells.
    #[inline(always)]
    pub fn lap(&self, i: u32) -> bool {
        i & (self.mask + 1) != 0
    }

    /// How many entries.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a ring is never empty")]
    pub fn len(&self) -> u32 {
        self.mask + 1
    }

    /// The memory it lies in.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// Whether its memory is quarantined when it is dropped, rather than given back: on while a device knows of it.
    pub fn set_quarantine(&self, on: bool) {
        self.chunk.set_quarantine(on);
    }

    /// Never gives its memory back: for a ring that a device may still write.
    pub fn quarantine(self) {
        self.set_quarantine(true);
    }
}
