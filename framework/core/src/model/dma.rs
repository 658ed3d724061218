//! What is mapped for a model: one address space, whatever the number of maps that a span of it lies in.
//!
//! A client behind an IOMMU of its own maps page by page, so that neighbours in the device's address space are neighbours nowhere else: queues, lists
//! and buffers cross maps. A span in one map is found by two comparisons; one that crosses maps is looked up piece by piece, each time. A device
//! needs write access only to what it writes: what it only reads may be in memory that is mapped for reading.
//!
//! A client can take memory away that it shared. A copy that meets the place, and every copy after it, fails; words read zero until the poll
//! ends, and with it the connection.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod denied;

use super::Refused;
use crate::mem::{Iova, Mapping, Shared, copy_in, copy_out};
use crate::pci::Prot;
use crate::prefetch;
pub use denied::{Denied, Reason};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// A span of the device's address space, perhaps in several maps.
///
/// All of it was mapped when it was looked up, and stays so while this borrows the table. Offsets are relative to its start, and checked against its
/// length.
#[derive(Clone, Copy)]
pub struct Dma<'a> {
    place: Place<'a>,
    len: u64,
    writable: bool,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    /// In one map: its memory, and where in that the span starts.
    One(&'a Mapping, u64),
    /// In several, from this address on.
    Many(&'a DmaTable, u64),
}

impl<'a> Dma<'a> {
    /// Returns the length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "asked for by length")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether all of the span may be written.
    #[inline]
    pub fn writable(&self) -> bool {
        self.writable
    }

    #[inline]
    fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.len)
    }

    /// `bytes` at `offset`, where they are in one map: its memory, and where in that they start.
    #[inline]
    fn piece(&self, offset: u64, bytes: u64) -> Option<(&'a Mapping, u64)> {
        if !self.holds(offset, bytes) {
            return None;
        }
        match self.place {
            Place::One(memory, start) => Some((memory, start.wrapping_add(offset))),
            Place::Many(table, iova) => table.one(iova.wrapping_add(offset), bytes),
        }
    }

    /// Returns the 16-bit word at `offset`; `None` outside, unaligned, or in memory that is mapped read-only.
    #[inline]
    pub fn u16(&self, offset: u64) -> Option<&'a AtomicU16> {
        let (memory, at) = self.piece(offset, 2)?;
        memory.u16(at)
    }

    /// Returns the 32-bit word at `offset`; `None` outside, unaligned, or in memory that is mapped read-only.
    #[inline]
    pub fn u32(&self, offset: u64) -> Option<&'a AtomicU32> {
        let (memory, at) = self.piece(offset, 4)?;
        memory.u32(at)
    }

    /// Returns the 64-bit word at `offset`; `None` outside, unaligned, or in memory that is mapped read-only.
    #[inline]
    pub fn u64(&self, offset: u64) -> Option<&'a AtomicU64> {
        let (memory, at) = self.piece(offset, 8)?;
        memory.u64(at)
    }

    /// Returns `count` atomic words at `offset` as a slice; `None` as for single words, and where the words cross maps: see [`entries`](Self::entries).
    #[inline]
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Option<&'a [T]> {
        let (memory, at) = self.piece(offset, (count as u64).checked_mul(size_of::<T>() as u64)?)?;
        memory.slice(at, count)
    }

    /// Returns `count` entries at `offset`, a queue or a list, looked up once a poll; `None` outside, unaligned, where an entry crosses from one map
    /// into another, or where entries of this type are written and the memory is mapped read-only.
    #[inline]
    pub fn entries<T: Entry>(&self, offset: u64, count: usize) -> Option<Entries<'a, T>> {
        let bytes = (count as u64).checked_mul(size_of::<T>() as u64)?;
        if T::WRITTEN && !self.writable || !self.holds(offset, bytes) {
            return None;
        }
        match self.place {
            Place::One(memory, start) => {
                Some(Entries { slice: typed(memory, start.wrapping_add(offset), count)?, across: None })
            }
            Place::Many(table, iova) => table.entries(iova.wrapping_add(offset), count),
        }
    }

    /// Copies `bytes` to `offset`; returns `false` where that is not inside, may not be written, or was taken away.
    #[inline(always)]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        if !self.writable || !self.holds(offset, bytes.len() as u64) {
            return false;
        }
        match self.place {
            Place::One(memory, start) => memory.write(start.wrapping_add(offset), bytes) && !memory.is_gone(),
            Place::Many(table, iova) => {
                table.each(iova.wrapping_add(offset), bytes.len() as u64, |memory, at, done| {
                    memory.write(at, &bytes[done.start as usize..done.end as usize]) && !memory.is_gone()
                })
            }
        }
    }

    /// Copies bytes out from `offset`; returns `false` where that is not inside, or was taken away.
    #[inline(always)]
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        if !self.holds(offset, out.len() as u64) {
            return false;
        }
        match self.place {
            Place::One(memory, start) => memory.read(start.wrapping_add(offset), out) && !memory.is_gone(),
            Place::Many(table, iova) => table.each(iova.wrapping_add(offset), out.len() as u64, |memory, at, done| {
                memory.read(at, &mut out[done.start as usize..done.end as usize]) && !memory.is_gone()
            }),
        }
    }

    /// Sets `len` bytes at `offset` to `value`; returns `false` where that is not inside, may not be written, or was taken away.
    pub fn fill(&self, offset: u64, len: u64, value: u8) -> bool {
        if !self.writable || !self.holds(offset, len) {
            return false;
        }
        match self.place {
            Place::One(memory, start) => memory.fill(start.wrapping_add(offset), len, value) && !memory.is_gone(),
            Place::Many(table, iova) => table.each(iova.wrapping_add(offset), len, |memory, at, done| {
                memory.fill(at, done.end.saturating_sub(done.start), value) && !memory.is_gone()
            }),
        }
    }
}

/// Entries of a queue or a list in the device's address space, which may lie in several maps.
///
/// Each entry is inside of one: those that are aligned to their size always are, in maps of whole pages.
pub struct Entries<'a, T> {
    /// Where they are in one map.
    slice: &'a [T],
    /// Where they are not: the first one's address, and how many there are.
    across: Option<(&'a DmaTable, u64, usize)>,
}

impl<'a, T: Entry> Entries<'a, T> {
    /// Returns entry `index`; `None` where there is none.
    #[inline(always)]
    pub fn at(&self, index: usize) -> Option<&'a T> {
        match self.slice.get(index) {
            Some(entry) => Some(entry),
            None => self.across_maps(index),
        }
    }

    /// Prefetches entry `index` for writing, where it is one. A hint without effect on memory.
    #[inline(always)]
    pub fn prefetch_write(&self, index: usize) {
        if let Some(entry) = self.slice.get(index) {
            prefetch::write(std::ptr::from_ref(entry).cast(), 1);
        }
    }

    #[cold]
    fn across_maps(&self, index: usize) -> Option<&'a T> {
        let (table, first, count) = self.across?;
        if index >= count {
            return None;
        }
        let (memory, at) =
            table.one(first.checked_add(index.checked_mul(size_of::<T>())? as u64)?, size_of::<T>() as u64)?;
        typed(memory, at, 1)?.first()
    }
}

/// A type that entries of a queue or a list can have: atomic words, [`ReadOnly`] ones, or arrays of one of these.
///
/// # Safety
/// Every byte is part of an atomic integer, and any bytes are a value. Where [`WRITTEN`](Self::WRITTEN) is false, nothing but
/// relaxed loads can be done to it by safe code.
pub unsafe trait Entry: Sync + 'static {
    /// Whether entries of this type can be written.
    const WRITTEN: bool;
}

/// A word that the device only loads, so that it may be in memory that is mapped read-only.
#[repr(transparent)]
pub struct ReadOnly<T>(T);

macro_rules! entry {
    ($($atomic:ty, $int:ty);*) => {$(
        // SAFETY: an atomic integer.
        unsafe impl Entry for $atomic {
            const WRITTEN: bool = true;
        }
        // SAFETY: as above, and its methods only load, relaxed.
        unsafe impl Entry for ReadOnly<$atomic> {
            const WRITTEN: bool = false;
        }
        impl ReadOnly<$atomic> {
            /// Loads the word, relaxed.
            #[inline(always)]
            pub fn load(&self) -> $int {
                self.0.load(Ordering::Relaxed)
            }

            /// Loads the word. Later loads are at least as new as what the other side stored before it stored this word, with Release.
            #[inline(always)]
            pub fn acquire(&self) -> $int {
                // Of memory that can't be written only relaxed loads are sure to be loads (`std::sync::atomic`).
                let value = self.load();
                fence(Ordering::Acquire);
                value
            }
        }
    )*};
}
entry!(AtomicU8, u8; AtomicU16, u16; AtomicU32, u32; AtomicU64, u64);

// SAFETY: an array of them has no padding and no other bytes, and no methods that theirs are not.
unsafe impl<T: Entry, const N: usize> Entry for [T; N] {
    const WRITTEN: bool = T::WRITTEN;
}

/// `count` entries at `at` of `memory`; `None` outside, unaligned, or where they could be written and `memory` can't.
#[inline]
fn typed<T: Entry>(memory: &Mapping, at: u64, count: usize) -> Option<&[T]> {
    let end = at.checked_add((count as u64).checked_mul(size_of::<T>() as u64)?)?;
    if end > memory.len() || memory.is_device() || T::WRITTEN && memory.prot() == Prot::Read {
        return None;
    }
    // SAFETY: `at <= end <= len`, so this stays in the mapping.
    let first = unsafe { memory.base().add(at as usize) }.cast::<T>();
    if !first.is_aligned() {
        return None;
    }
    // SAFETY: `count` entries from `first` on are inside of the mapping, which lives as long as `memory` is borrowed; `first` is aligned. `T` is
    // made of atomics, for which any bytes are a value, and the memory is only accessed atomically. Where `T` could be written, so can the
    // memory; else there are relaxed loads alone, which work on memory that can't.
    Some(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
}

/// What is mapped for a model, by address.
#[derive(Default)]
pub(super) struct DmaTable {
    /// The maps, in places that they keep; free ones have no length.
    maps: Vec<Map>,
    free: Vec<usize>,
    /// Where in `maps` each is, by its first address. There are tens of thousands, and thousands of changes a second.
    index: BTreeMap<u64, usize>,
    /// The maps found last, the latest first: those of a queue, its data and its completions take turns.
    recent: [Cell<usize>; 4],
}

#[derive(Default)]
struct Map {
    iova: u64,
    len: u64,
    /// `None`: the addresses are taken, but what is there cannot be reached from here.
    memory: Option<Arc<Mapping>>,
    /// Where in `memory` it starts.
    at: u64,
    writable: bool,
    /// It is writable, and its memory is memory: any bytes of it may be copied.
    plain: bool,
}

impl Map {
    /// How far into the map a span starts that is inside of it.
    #[inline(always)]
    fn inside(&self, iova: u64, len: u64) -> Option<u64> {
        iova.checked_sub(self.iova).filter(|o| o.checked_add(len).is_some_and(|end| end <= self.len))
    }

    /// Its end: maps end at 2^64 - 1 at most.
    fn end(&self) -> u64 {
        self.iova.saturating_add(self.len)
    }
}

impl DmaTable {
    pub(super) fn map(
        &mut self,
        iova: Iova,
        memory: Option<Arc<Mapping>>,
        at: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), Refused> {
        let end = iova.0.checked_add(len).ok_or(Refused(libc::EINVAL))?;
        let inside = |m: &Arc<Mapping>| at.checked_add(len).is_some_and(|end| end <= m.len());
        if len == 0 || !memory.as_ref().is_none_or(inside) {
            return Err(Refused(libc::EINVAL));
        }
        let before = self.index.range(..end).next_back().map(|(_, at)| &self.maps[*at]);
        if before.is_some_and(|m| m.end() > iova.0) {
            return Err(Refused(libc::EEXIST));
        }
        let plain = writable && memory.as_ref().is_some_and(|memory| memory.is_plain());
        let map = Map { iova: iova.0, len, memory, at, writable, plain };
        let place = match self.free.pop() {
            Some(place) => {
                self.maps[place] = map;
                place
            }
            None => {
                let place = self.maps.len();
                self.maps.push(map);
                place
            }
        };
        self.index.insert(iova.0, place);
        Ok(())
    }

    pub(super) fn unmap(&mut self, iova: Iova, len: u64) -> Result<(), Refused> {
        let place = self.index.get(&iova.0).filter(|at| self.maps[**at].len == len).ok_or(Refused(libc::ENOENT))?;
        self.remove(iova.0, *place);
        Ok(())
    }

    fn remove(&mut self, iova: u64, place: usize) {
        self.index.remove(&iova);
        self.maps[place] = Map::default();
        self.free.push(place);
    }

    pub(super) fn unmap_all_in(&mut self, iova: Iova, len: u64) -> Result<usize, Refused> {
        // The last address, since the end of all addresses is none.
        let last = len.checked_sub(1).and_then(|n| iova.0.checked_add(n)).ok_or(Refused(libc::EINVAL))?;
        let before = self.index.range(..iova.0).next_back().map(|(_, at)| &self.maps[*at]);
        let inside: Vec<_> = self.index.range(iova.0..=last).map(|(iova, at)| (*iova, *at)).collect();
        let over = inside.last().is_some_and(|(_, at)| self.maps[*at].end().saturating_sub(1) > last);
        if over || before.is_some_and(|m| m.end() > iova.0) {
            return Err(Refused(libc::EINVAL));
        }
        inside.iter().for_each(|(iova, at)| self.remove(*iova, *at));
        Ok(inside.len())
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn maps(&self) -> impl Iterator<Item = (Iova, u64)> + '_ {
        self.index.values().map(|at| &self.maps[*at]).map(|m| (Iova(m.iova), m.len))
    }

    /// In the map that was found last: most look-ups are there.
    #[inline(always)]
    pub(super) fn prefetch(&self, iova: Iova, len: u64, write: bool) {
        if let Some(map) = self.maps.get(self.recent[0].get())
            && let Some(memory) = &map.memory
        {
            memory.prefetch(map.at.wrapping_add(iova.0.wrapping_sub(map.iova)), len, write);
        }
    }

    /// A span; `None` where not all of it is mapped and can be reached.
    #[inline(always)]
    pub(super) fn find(&self, iova: Iova, len: u64) -> Option<Dma<'_>> {
        let map = self.maps.get(self.recent[0].get())?;
        match map.inside(iova.0, len) {
            Some(offset) => Some(Dma {
                place: Place::One(map.memory.as_ref()?, map.at.wrapping_add(offset)),
                len,
                writable: map.writable,
            }),
            None => self.search(iova.0, len),
        }
    }

    /// Copies pieces, one behind the other, to the start of the `len` bytes at `iova`, all of which are to be mapped: what [`Dma::write`] does, in one step where
    /// these are in the map that was found last, as most are. Where there is no room for a piece, those before it are written.
    #[inline(always)]
    pub(super) fn write<'p>(&self, iova: Iova, len: u64, pieces: impl Iterator<Item = &'p [u8]>) -> bool {
        let Some((memory, mut at)) = self.plain(iova, len) else { return self.write_anywhere(iova, len, pieces) };
        let mut room = len;
        for bytes in pieces {
            let Some(left) = room.checked_sub(bytes.len() as u64) else { return false };
            // SAFETY: `plain` says that there are `len` bytes, which may be written and are accessed atomically, and `room` how many of them are left from `at`
            // on; they are mapped while `self` is borrowed.
            unsafe { copy_in(memory.base().add(at as usize), bytes) };
            (at, room) = (at.wrapping_add(bytes.len() as u64), left);
        }
        !memory.is_gone()
    }

    /// Copies the first of the `len` bytes at `iova`; the counterpart of [`write`](Self::write).
    #[inline(always)]
    pub(super) fn read(&self, iova: Iova, len: u64, out: &mut [u8]) -> bool {
        let Some((memory, at)) = self.plain(iova, len) else { return self.read_anywhere(iova, len, out) };
        if out.len() as u64 > len {
            return false;
        }
        // SAFETY: as in `write`.
        unsafe { copy_out(memory.base().add(at as usize), out) };
        !memory.is_gone()
    }

    #[inline(never)]
    fn write_anywhere<'p>(&self, iova: Iova, len: u64, mut pieces: impl Iterator<Item = &'p [u8]>) -> bool {
        let mut at = 0u64;
        self.find(iova, len).is_some_and(|span| {
            pieces.all(|bytes| {
                let written = span.write(at, bytes);
                at = at.wrapping_add(bytes.len() as u64);
                written
            })
        })
    }

    #[inline(never)]
    fn read_anywhere(&self, iova: Iova, len: u64, out: &mut [u8]) -> bool {
        self.find(iova, len).is_some_and(|span| span.read(0, out))
    }

    /// Where the `len` bytes at `iova` are; `None` where they are not all in the map found last, or that is not plain memory. The map is inside of the memory
    /// (`map`), so these are.
    #[inline(always)]
    fn plain(&self, iova: Iova, len: u64) -> Option<(&Mapping, u64)> {
        let map = self.maps.get(self.recent[0].get()).filter(|map| map.plain)?;
        let offset = map.inside(iova.0, len)?;
        Some((map.memory.as_ref()?, map.at.wrapping_add(offset)))
    }

    #[inline(never)]
    fn search(&self, iova: u64, len: u64) -> Option<Dma<'_>> {
        if let Some((map, offset)) = self.inside_one(iova, len) {
            let place = Place::One(map.memory.as_ref()?, map.at.wrapping_add(offset));
            return Some(Dma { place, len, writable: map.writable });
        }
        let mut writable = true;
        let mut all = |map: &Map| {
            writable &= map.writable;
            map.memory.is_some()
        };
        self.cover(iova, len, &mut all).then_some(Dma { place: Place::Many(self, iova), len, writable })
    }

    /// The map that a span is inside of, and how far into it the span starts.
    fn inside_one(&self, iova: u64, len: u64) -> Option<(&Map, u64)> {
        let recent = self.recent.iter().enumerate().find_map(|(age, place)| {
            let map = self.maps.get(place.get())?;
            Some((age, place.get(), map.inside(iova, len)?))
        });
        let (age, place, offset) = match recent {
            Some(recent) => recent,
            None => {
                let (_, place) = self.index.range(..=iova).next_back()?;
                (self.recent.len().saturating_sub(1), *place, self.maps.get(*place)?.inside(iova, len)?)
            }
        };
        // It is the latest; those that were later than it grow older.
        self.recent.get(..=age)?.iter().fold(place, |place, cell| cell.replace(place));
        Some((self.maps.get(place)?, offset))
    }

    /// A span that is in one map: its memory, and where in that it starts.
    #[inline(never)]
    fn one(&self, iova: u64, len: u64) -> Option<(&Mapping, u64)> {
        let (map, offset) = self.inside_one(iova, len)?;
        Some((map.memory.as_ref()?, map.at.wrapping_add(offset)))
    }

    /// Entries that may lie in several maps, each of them in one.
    #[cold]
    fn entries<T: Entry>(&self, iova: u64, count: usize) -> Option<Entries<'_, T>> {
        let (size, align) = (size_of::<T>() as u64, align_of::<T>() as u64);
        let bytes = (count as u64).checked_mul(size)?;
        if let Some((memory, at)) = self.one(iova, bytes) {
            return Some(Entries { slice: typed(memory, at, count)?, across: None });
        }
        let whole = self.cover(iova, bytes, &mut |map| {
            let Some(memory) = &map.memory else { return false };
            let start = map.iova.max(iova);
            let address =
                (memory.base().as_ptr().addr() as u64).wrapping_add(map.at).wrapping_add(start.wrapping_sub(map.iova));
            start.wrapping_sub(iova).is_multiple_of(size) && address.is_multiple_of(align)
        });
        whole.then_some(Entries { slice: &[], across: Some((self, iova, count)) })
    }

    /// Goes through the maps that a span lies in, as long as there are such and `each` says so; says whether they cover it.
    fn cover<'a>(&'a self, iova: u64, len: u64, each: &mut dyn FnMut(&'a Map) -> bool) -> bool {
        let Some(end) = iova.checked_add(len) else { return false };
        let first = self.index.range(..=iova).next_back().map_or(iova, |(first, _)| *first);
        let mut at = iova;
        for map in self.index.range(first..end.max(first)).map(|(_, at)| &self.maps[*at]) {
            if map.iova > at || map.end() <= at || !each(map) {
                break;
            }
            at = map.end();
        }
        at >= end
    }

    /// Gives `each` the pieces of a span: memory, where in it, and which bytes of the span. Ends where it says false, and says so.
    #[cold]
    fn each(&self, iova: u64, len: u64, mut each: impl FnMut(&Mapping, u64, std::ops::Range<u64>) -> bool) -> bool {
        self.cover(iova, len, &mut |map| {
            let Some(memory) = &map.memory else { return false };
            let start = map.iova.max(iova);
            let end = map.end().min(iova.saturating_add(len));
            each(
                memory,
                map.at.wrapping_add(start.wrapping_sub(map.iova)),
                start.wrapping_sub(iova)..end.wrapping_sub(iova),
            )
        })
    }

    /// Why a span can't be read, or written.
    #[cold]
    pub(super) fn denied(&self, iova: Iova, len: u64, write: bool) -> Denied {
        let (mut at, mut why) = (iova.0, None);
        let covered = self.cover(iova.0, len, &mut |map| {
            let this = (Iova(map.iova), map.len);
            why = match &map.memory {
                None => Some(Reason::NoMemory(this)),
                Some(memory) if memory.is_gone() => Some(Reason::TakenAway(this)),
                Some(_) if write && !map.writable => Some(Reason::ReadOnly(this)),
                Some(_) => None,
            };
            at = map.end();
            why.is_none()
        });
        let why = why.unwrap_or(if covered { Reason::Alignment } else { Reason::Unmapped(Iova(at)) });
        Denied { iova, len, write, why }
    }
}

#[cfg(test)]
mod tests;
