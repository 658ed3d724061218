//! Parts of an arena: bytes ([`Chunk`]) and rings of entries made of atomic words ([`DmaRing`]).
//!
//! A ring's entries are atomics, so that code which drives a queue, or models one, is safe code and runs under Miri. Indexes wrap by a mask, so no
//! access can be out of range. Each word of a chunk has one width, that of the first ring which contains it. Head, tail, phase bits and doorbells
//! belong to the driver; this file has none.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Arena;
use super::mapping::{Mapping, words_of};
use super::words::{Part, Words, part};
use crate::{Error, Result, prefetch};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A part of an [`Arena`], as bytes.
///
/// Clones are the same part, which returns to the arena when the last of them is dropped. (Linux: `dma_alloc_coherent`.)
#[derive(Debug, Clone)]
pub struct Chunk(Arc<Place>);

#[derive(Debug)]
struct Place {
    arena: Arc<Arena>,
    range: Range<u64>,
    quarantine: AtomicBool,
    /// The widths of its words, once there is a ring in it. Copies hold the lock, so that no ring gets words meanwhile that they take for none.
    words: Mutex<Option<Words>>,
}

impl Chunk {
    pub(super) fn new(arena: Arc<Arena>, range: Range<u64>) -> Self {
        Self(Arc::new(Place { arena, range, quarantine: AtomicBool::new(false), words: Mutex::new(None) }))
    }

    /// Returns the arena that the chunk is part of.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.0.arena
    }

    /// Returns where the chunk starts, in bytes from the start of the arena. The arena's device address plus this is the chunk's.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.0.range.start
    }

    /// Returns the size in bytes, as it was asked for.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> u64 {
        self.0.range.end.saturating_sub(self.0.range.start)
    }

    /// Copies `bytes` to `offset`, by atomic words: where there are rings, in words of their widths. It takes the chunk's lock, so it is for set-up
    /// and the slow path.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the range is not inside of the chunk.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = self.check(offset, bytes.len() as u64)?;
        let words = self.words();
        let Some(words) = &*words else {
            self.mapping().write(at.start, bytes);
            return Ok(());
        };
        let mut rest = bytes;
        self.each_part(words, offset, bytes.len(), |part, is_word| {
            let (now, later) = rest.split_at(part.len.min(rest.len()));
            let at = self.offset().saturating_add(part.at);
            match is_word {
                true => self.mapping().store_part(at, part, now),
                false => _ = self.mapping().write(at.saturating_add(part.first as u64), now),
            }
            rest = later;
        });
        Ok(())
    }

    /// Copies `out.len()` bytes from `offset`, by atomic words: where there are rings, in words of their widths. It takes the chunk's lock. Sound
    /// whatever a device writes meanwhile.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the range is not inside of the chunk.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let at = self.check(offset, out.len() as u64)?;
        let words = self.words();
        let Some(words) = &*words else {
            self.mapping().read(at.start, out);
            return Ok(());
        };
        let (len, mut rest) = (out.len(), out);
        self.each_part(words, offset, len, |part, is_word| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(part.len);
            let at = self.offset().saturating_add(part.at);
            match is_word {
                true => self.mapping().load_part(at, part, now),
                false => _ = self.mapping().read(at.saturating_add(part.first as u64), now),
            }
            rest = later;
        });
        Ok(())
    }

    /// Sets the whole chunk to zero, as [`write`](Self::write) does.
    pub fn zero(&self) {
        const STEP: u64 = 4096;
        for at in (0..self.len()).step_by(STEP as usize) {
            let n = STEP.min(self.len().saturating_sub(at));
            // Inside, so it can't fail.
            let _ = self.write(at, &[0; STEP as usize][..n as usize]);
        }
    }

    /// Goes through the words of `len` bytes at `offset`, and through what is no word yet, by 4 bytes; says which of the two.
    fn each_part(&self, words: &Words, offset: u64, len: usize, mut each: impl FnMut(Part, bool)) {
        let (mut at, end) = (offset, offset.saturating_add(len as u64));
        while at < end {
            let width = words.width(at);
            let part = part(at, end, width.unwrap_or(4));
            each(part, width.is_some());
            at = part.at.saturating_add(part.width.into());
        }
    }

    fn words(&self) -> MutexGuard<'_, Option<Words>> {
        self.0.words.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has `entries` entries at `offset`, which are inside, be words of their widths.
    fn claim<T: Shared>(&self, offset: u64, entries: u32) -> Result<()> {
        let mut words = self.words();
        if words.is_none() {
            let lacking = std::io::ErrorKind::OutOfMemory.into();
            let failed = || Error::Memory { bytes: self.len(), step: "remembering its words", cause: lacking };
            *words = Some(Words::new(self.len()).ok_or_else(failed)?);
        }
        let (words, mut other) = (words.as_ref(), None);
        words_of::<T>(offset, entries as usize, |at, width| {
            let is_word = words.is_some_and(|words| words.claim(at, width));
            if !is_word {
                other = Some(Error::WordWidth { offset: at, width: width.into() });
            }
            is_word
        });
        other.map_or(Ok(()), Err)
    }

    /// Gives the chunk up for good, because a device may still write it. It never returns to its arena, which is never unmapped then.
    pub fn quarantine(self) {
        self.set_quarantine(true);
    }

    /// Sets whether the chunk is quarantined when its last clone is dropped, rather than returned to the arena. A driver sets this while a device
    /// knows of the chunk.
    pub fn set_quarantine(&self, on: bool) {
        // Whoever drops the last clone has seen what the others did: `Arc` sees to that.
        self.0.quarantine.store(on, Ordering::Relaxed);
    }

    fn mapping(&self) -> &Mapping {
        self.0.arena.mapping()
    }

    /// Where `len` bytes at `offset` are in the arena.
    fn check(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        let inside = offset.checked_add(len).filter(|end| *end <= self.len());
        match (inside, self.offset().checked_add(offset)) {
            (Some(_), Some(start)) => Ok(start..start.saturating_add(len)),
            _ => Err(Error::OutOfRange { what: "chunk", offset, len, size: self.len() }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if *self.quarantine.get_mut() {
            self.arena.quarantined(self.range.end.saturating_sub(self.range.start));
            // The arena stays for as long as the process does.
            std::mem::forget(self.arena.clone());
        } else {
            self.arena.free(self.range.clone());
        }
    }
}

/// A type that ring entries can have: an atomic integer, an array of a [`Shared`] type, or a [`Field`] of an entry.
///
/// # Safety
/// Every byte that a shared reference reaches is part of an atomic integer, which [`words`](Self::words) names and which is aligned to its size
/// where the entry is aligned; so such a reference may be held while a device or another process writes it. Any bytes are a value of it.
pub unsafe trait Shared: Sync + 'static {
    /// Calls `each` with the offset and the width, in bytes, of each word of an entry.
    fn words(each: &mut dyn FnMut(u64, u8));

    /// Sets the entry to zero, word by word.
    fn clear(&self);
}

macro_rules! shared {
    ($($atomic:ty),*) => {$(
        // SAFETY: an atomic integer.
        unsafe impl Shared for $atomic {
            fn words(each: &mut dyn FnMut(u64, u8)) {
                each(0, size_of::<Self>() as u8);
            }

            fn clear(&self) {
                self.store(0, Ordering::Relaxed);
            }
        }
    )*};
}
shared!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: an array of them has no padding and no other bytes.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {
    fn words(each: &mut dyn FnMut(u64, u8)) {
        for start in (0..N as u64).map(|i| i.wrapping_mul(size_of::<T>() as u64)) {
            T::words(&mut |at, width| each(start.wrapping_add(at), width));
        }
    }

    fn clear(&self) {
        self.iter().for_each(T::clear);
    }
}

/// A `T` that is `AT` bytes into an entry of `SIZE` bytes, and nothing else of that entry.
///
/// For entries whose words have several widths: they are several rings in one place.
///
/// ```
/// # use wholebar_core as wholebar;
/// # use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
/// use wholebar::mem::{Arena, ArenaOptions, DmaRing, Field};
///
/// // A descriptor of a packed virtqueue: an address, a length, an identifier and flags.
/// let chunk = Arena::new(4096, ArenaOptions::default())?.alloc(16 * 8, 16)?;
/// let addresses: DmaRing<Field<AtomicU64, 0, 16>> = DmaRing::within(&chunk, 0, 8)?;
/// let lengths: DmaRing<Field<AtomicU32, 8, 16>> = DmaRing::within(&chunk, 0, 8)?;
/// let ids_and_flags: DmaRing<Field<[AtomicU16; 2], 12, 16>> = DmaRing::within(&chunk, 0, 8)?;
/// lengths.at(3).store(1514, Ordering::Relaxed);
/// // A word has one width.
/// assert!(DmaRing::<AtomicU64>::within(&chunk, 8, 1).is_err());
/// # let _ = (addresses, ids_and_flags);
/// # Ok::<_, wholebar::Error>(())
/// ```
#[repr(C)]
pub struct Field<T, const AT: usize, const SIZE: usize> {
    /// Aligns the entry.
    of: [T; 0],
    bytes: [UnsafeCell<MaybeUninit<u8>>; SIZE],
}

// SAFETY: all that can be reached of it is the `T`, which may be shared.
unsafe impl<T: Shared, const AT: usize, const SIZE: usize> Sync for Field<T, AT, SIZE> {}

impl<T: Shared, const AT: usize, const SIZE: usize> Deref for Field<T, AT, SIZE> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        const {
            assert!(AT.is_multiple_of(align_of::<T>()) && size_of::<T>() <= SIZE && AT <= SIZE - size_of::<T>());
        }
        // SAFETY: inside of the `SIZE` bytes that `self` borrows, as the assertion above says.
        let at = unsafe { (&raw const self.bytes).cast::<u8>().add(AT) };
        // SAFETY: aligned, since the entry and `AT` are; made of atomics, for which any bytes are a value.
        unsafe { &*at.cast::<T>() }
    }
}

// SAFETY: only the `T` can be reached, whose words these are.
unsafe impl<T: Shared, const AT: usize, const SIZE: usize> Shared for Field<T, AT, SIZE> {
    fn words(each: &mut dyn FnMut(u64, u8)) {
        T::words(&mut |at, width| each(at.wrapping_add(AT as u64), width));
    }

    fn clear(&self) {
        T::clear(self);
    }
}

/// A ring of a power of two of entries in DMA memory, shared with a device.
///
/// Each word has one width, for both sides: NVMe's submission entry is `[AtomicU64; 8]`, its completion entry `[AtomicU32; 4]`. Where the words of an
/// entry have several widths there are several rings in one place, each of a [`Field`]. A clone is the same ring.
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use wholebar::mem::{Arena, ArenaOptions, DmaRing};
///
/// let arena = Arena::new(1 << 20, ArenaOptions::default())?;
/// let ring: DmaRing<[AtomicU64; 8]> = DmaRing::new(arena, 64, 4096)?;
/// // Indexes run freely: entry 65 is entry 1, on the second lap.
/// ring.at(65)[0].store(7u64.to_le(), Ordering::Relaxed);
/// assert_eq!((ring.slot(65), ring.lap(65)), (1, true));
/// assert_eq!(u64::from_le(ring.at(1)[0].load(Ordering::Relaxed)), 7);
/// # Ok::<_, wholebar::Error>(())
/// ```
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
    /// Allocates a ring of `entries` in `arena`, all zero, aligned to `align` bytes (a power of two, at least the entry's own alignment).
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the entries or the alignment; [`Error::ArenaFull`] where there is no room.
    pub fn new(arena: Arc<Arena>, entries: u32, align: u64) -> Result<Self> {
        // More bytes than there are numbers is more than there is room for.
        let len = Self::bytes(entries)?.unwrap_or(u64::MAX);
        let chunk = arena.alloc(len, align.max(align_of::<T>() as u64))?;
        let ring = Self::within(&chunk, 0, entries)?;
        ring.zero();
        Ok(ring)
    }

    /// Makes a ring of `entries` that starts `offset` bytes into a chunk, with the contents that are there. For structures of several parts, and for
    /// entries whose words have several widths. The ring keeps the whole chunk, and is quarantined with it.
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the entries; [`Error::OutOfRange`] where the ring is not inside of the chunk; [`Error::Unaligned`];
    /// [`Error::WordWidth`] where another ring in this place has words of other widths; [`Error::Memory`] where the system has no memory to record
    /// the widths.
    pub fn within(chunk: &Chunk, offset: u64, entries: u32) -> Result<Self> {
        let at = chunk.check(offset, Self::bytes(entries)?.unwrap_or(u64::MAX))?;
        // SAFETY: the chunk lies inside the arena's mapping, and all of the ring inside the chunk.
        let base = unsafe { chunk.mapping().base().add(at.start as usize) };
        if !base.as_ptr().addr().is_multiple_of(align_of::<T>()) {
            return Err(Error::Unaligned { offset, width: align_of::<T>() as u64 });
        }
        chunk.claim::<T>(offset, entries)?;
        Ok(Self { base: base.cast(), mask: entries.saturating_sub(1), chunk: chunk.clone() })
    }

    /// The bytes of `entries` entries; `None` where no number is large enough.
    fn bytes(entries: u32) -> Result<Option<u64>> {
        match entries.is_power_of_two() {
            true => Ok(u64::from(entries).checked_mul(size_of::<T>() as u64)),
            false => Err(Error::NotPowerOfTwo { what: "ring entries", value: entries.into() }),
        }
    }

    /// Sets the whole ring to zero, in words of its own widths, which is all that a device that is a thread sees.
    pub fn zero(&self) {
        (0..self.len()).for_each(|i| self.at(i).clear());
    }

    /// Returns entry `i`, modulo the number of entries. One mask and no bounds check.
    #[inline(always)]
    pub fn at(&self, i: u32) -> &T {
        // SAFETY: the mask keeps the index inside the chunk, which `self` holds; `within` saw that it is aligned for `T`.
        unsafe { self.base.add((i & self.mask) as usize).as_ref() }
    }

    /// Prefetches entry `i` for reading. A hint without effect on memory.
    #[inline(always)]
    pub fn prefetch(&self, i: u32) {
        prefetch::read(std::ptr::from_ref(self.at(i)).cast(), 1);
    }

    /// Returns `i` modulo the number of entries: the index that goes into a doorbell.
    #[inline(always)]
    pub fn slot(&self, i: u32) -> u32 {
        i & self.mask
    }

    /// Returns whether a free-running index `i` is on an odd lap of the ring, as phase bits tell (NVMe: the phase tag; VIRTIO: the wrap counters).
    #[inline(always)]
    pub fn lap(&self, i: u32) -> bool {
        i & self.mask.wrapping_add(1) != 0
    }

    /// Returns the number of entries.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a ring is never empty")]
    pub fn len(&self) -> u32 {
        self.mask.wrapping_add(1)
    }

    /// Returns the memory that the ring is in.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// Sets whether the ring's memory is quarantined when it is dropped: [`Chunk::set_quarantine`].
    pub fn set_quarantine(&self, on: bool) {
        self.chunk.set_quarantine(on);
    }

    /// Gives the ring's memory up for good, because a device may still write it: [`Chunk::quarantine`].
    pub fn quarantine(self) {
        self.set_quarantine(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ArenaOptions;

    /// 16 entries of 2^60 bytes each are 2^64 bytes, which is 0 where nobody looks: all of memory would be in reach.
    #[test]
    fn a_ring_of_more_bytes_than_there_are_is_refused() {
        type Huge = [AtomicU64; 1 << 57];
        let arena = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
        let chunk = arena.alloc(64, 8).unwrap();
        for entries in [1, 16, 1 << 31] {
            assert!(
                matches!(DmaRing::<Huge>::new(arena.clone(), entries, 8), Err(Error::ArenaFull { .. })),
                "{entries}"
            );
            assert!(matches!(DmaRing::<Huge>::within(&chunk, 0, entries), Err(Error::OutOfRange { .. })), "{entries}");
            assert!(matches!(DmaRing::<Huge>::within(&chunk, 8, entries), Err(Error::OutOfRange { .. })), "{entries}");
        }
    }

    /// Two rings of one place, used by two threads: Miri says that atomics of two widths there are a race.
    #[test]
    fn a_word_has_one_width() {
        let arena = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
        let chunk = arena.alloc(64, 8).unwrap();
        let long = DmaRing::<AtomicU64>::within(&chunk, 8, 4).unwrap();
        for (offset, entries) in [(0, 4), (8, 1), (12, 1), (36, 1)] {
            let short = DmaRing::<AtomicU32>::within(&chunk, offset, entries);
            assert!(matches!(short, Err(Error::WordWidth { width: 4, .. })), "{offset}");
        }
        let pairs = DmaRing::<Field<AtomicU16, 2, 4>>::within(&chunk, 40, 4).unwrap();
        let others = DmaRing::<Field<AtomicU16, 0, 4>>::within(&chunk, 40, 4).unwrap();
        assert!(DmaRing::<AtomicU8>::within(&chunk, 40, 1).is_err());
        // Copies are made of the words that are there.
        std::thread::scope(|scope| {
            for bytes in [[1; 33], [2; 33]] {
                let (chunk, long, pairs, others) = (&chunk, &long, &pairs, &others);
                scope.spawn(move || {
                    chunk.write(11, &bytes).unwrap();
                    long.at(1).fetch_add(0x0100_0000_0000_0000, Ordering::Relaxed);
                    others.at(0).store(u16::from_ne_bytes([7; 2]), Ordering::Relaxed);
                    pairs.at(0).store(u16::from_ne_bytes([9; 2]), Ordering::Relaxed);
                    chunk.read(11, &mut [0; 33]).unwrap();
                });
            }
        });
        let mut all = [0; 64];
        chunk.read(0, &mut all).unwrap();
        assert!(all[..11].iter().chain(&all[44..]).all(|b| *b == 0), "{all:?}");
        assert_eq!(all[40..44], [7, 7, 9, 9]);
        chunk.zero();
        chunk.read(0, &mut all).unwrap();
        assert_eq!(all, [0; 64]);
    }

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
