//! Parts of an arena: bytes ([`Chunk`]) and rings of entries made of atomic words ([`DmaRing`]).
//!
//! A ring's entries are atomics, so that code which drives a queue, or models one, is safe code and runs under Miri. Indexes wrap by
//! a mask: no access can miss. Head, tail, phase and doorbells are the driver's; this file has none.

use super::{Arena, mapping::Mapping};
use crate::{Error, Result, prefetch};
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
        let ring = Self::within(&chunk, 0, entries)?;
        ring.zero();
        Ok(ring)
    }

    /// A ring of `entries` that lies `offset` bytes into a chunk, with what is there: for structures of several parts, and for parts whose
    /// words are of several widths. The memory is the whole chunk's, and quarantined with it.
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the entries, [`Error::OutOfRange`] where it isn't inside, [`Error::Unaligned`].
    pub fn within(chunk: &Chunk, offset: u64, entries: u32) -> Result<Self> {
        if !entries.is_power_of_two() {
            return Err(Error::NotPowerOfTwo { what: "ring entries", value: entries.into() });
        }
        chunk.check(offset, u64::from(entries) * size_of::<T>() as u64)?;
        // SAFETY: the chunk lies inside the arena's mapping, and `offset` inside the chunk.
        let base = unsafe { chunk.mapping().base().add((chunk.offset() + offset) as usize) };
        if !base.as_ptr().addr().is_multiple_of(align_of::<T>()) {
            return Err(Error::Unaligned { offset, width: align_of::<T>() as u64 });
        }
        Ok(Self { base: base.cast(), mask: entries - 1, chunk: chunk.clone() })
    }

    /// Sets all of it to zero, in words of their own width: a device that is a thread sees nothing else.
    pub fn zero(&self) {
        (0..self.len()).for_each(|i| self.at(i).clear());
    }

    /// Entry `i`, modulo the ring.
    #[inline(always)]
    pub fn at(&self, i: u32) -> &T {
        // SAFETY: the mask keeps the index inside the chunk, which `self` holds; `within` saw that it is aligned for `T`.
        unsafe { self.base.add((i & self.mask) as usize).as_ref() }
    }

    /// A hint that entry `i` will be read soon.
    #[inline(always)]
    pub fn prefetch(&self, i: u32) {
        prefetch::read(std::ptr::from_ref(self.at(i)).cast(), 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ArenaOptions;

    #[test]
    fn rings_lie_within_chunks() {
        let arena = Arena::new(1 << 14, ArenaOptions::default()).unwrap();
        let chunk = arena.alloc(44, 16).unwrap();
        let head = DmaRing::<AtomicU16>::within(&chunk, 0, 2).unwrap();
        let body = DmaRing::<[AtomicU32; 2]>::within(&chunk, 4, 4).unwrap();
        let tail = DmaRing::<AtomicU16>::within(&chunk, 36, 4).unwrap();
        head.at(1).store(u16::to_le(0x0201), Ordering::Relaxed);
        body.at(3)[1].store(u32::to_le(0x0605_0403), Ordering::Relaxed);
        tail.at(0).store(u16::to_le(0x0807), Ordering::Relaxed);
        let mut bytes = [0; 44];
        chunk.read(0, &mut bytes).unwrap();
        assert_eq!((&bytes[2..4], &bytes[32..38]), (&[1, 2][..], &[3, 4, 5, 6, 7, 8][..]));
        assert!(matches!(DmaRing::<AtomicU32>::within(&chunk, 2, 1), Err(Error::Unaligned { .. })));
        assert!(matches!(DmaRing::<AtomicU32>::within(&chunk, 4, 16), Err(Error::OutOfRange { .. })));
        assert!(matches!(DmaRing::<AtomicU32>::within(&chunk, u64::MAX, 1), Err(Error::OutOfRange { .. })));
        assert!(matches!(DmaRing::<AtomicU32>::within(&chunk, 0, 3), Err(Error::NotPowerOfTwo { .. })));
        drop((chunk, head, body));
        assert!(arena.alloc(arena.len(), 1).is_err());
        drop(tail);
        assert!(arena.alloc(arena.len(), 1).is_ok());
    }
}
