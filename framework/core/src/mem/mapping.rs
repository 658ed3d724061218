//! A range of this process's address space that stays mapped while its value lives, and safe access to it by atomic words.
//!
//! This is memory that someone else looks at: a device, another process, a model's thread. So there are no references to
//! plain bytes here, only atomics and copies made of atomic words. It does *not* know what the memory means.
//!
//! Registers' words have one width each, which the mapping keeps ([`Words`]). DMA memory's don't: what is where is agreed on by driver and
//! device, and the boundary (see `mem`).

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Shared;
use super::words::{Part, Words};
use crate::cell::Width;
use crate::pci::Prot;
use crate::{Error, Result, prefetch};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

/// A range of mapped memory, unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    prot: Prot,
    /// Registers of a device on a bus, rather than memory that another thread or process looks at.
    device: bool,
    /// The widths of its words, and where among them it begins; all that map the same memory in this process share them.
    words: Option<(Arc<Words>, u64)>,
    /// Raised when its owner took some of it away and that was touched (`sigbus.rs`), where its owner can.
    gone: Option<Arc<AtomicBool>>,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// From `mmap`; unmapped on drop.
    Mmap,
    /// From the global allocator (Miri has no shared mappings).
    #[cfg(miri)]
    Heap(std::alloc::Layout),
    /// From `hugepage_rs`.
    #[cfg(not(miri))]
    Huge(std::alloc::Layout),
    /// Memory of an owner, which frees it.
    Owner(#[allow(dead_code, reason = "held for its Drop")] Arc<dyn std::any::Any + Send + Sync>),
}

// SAFETY: the range is only reachable through atomics, volatile cells and word copies, which any thread may do.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.origin {
            Origin::Mmap => {
                // SAFETY: `base` and `len` came from mmap, and every pointer handed out borrows from `self` or holds it.
                let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
            }
            #[cfg(miri)]
            // SAFETY: allocated with this layout, freed once.
            Origin::Heap(layout) => unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) },
            #[cfg(not(miri))]
            // SAFETY: allocated with this layout, freed once.
            Origin::Huge(layout) => unsafe { hugepage_rs::dealloc(self.base.as_ptr(), layout) },
            Origin::Owner(_) => {}
        }
    }
}

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $atomic:ty) => {
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(&self, offset: u64) -> Option<&$atomic> {
            let at = self.word_at(offset, size_of::<$atomic>())?;
            if !self.is_word(offset, size_of::<$atomic>() as u8) {
                return None;
            }
            // SAFETY: in bounds, aligned, and mapped as long as `self` is borrowed; the range is only accessed atomically.
            Some(unsafe { at.cast::<$atomic>().as_ref() })
        }
    };
}

impl Mapping {
    /// Maps `len` bytes of `fd` at `offset`, shared. Not for everybody: over the memory file of an arena, its words would be what a
    /// [`Buf`](super::Buf) has as plain bytes.
    ///
    /// # Errors
    /// [`Error::Mmap`] with what the system said.
    pub(crate) fn of_fd(fd: BorrowedFd<'_>, offset: u64, len: usize, prot: Prot) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let flags = match prot {
            Prot::Read => ProtFlags::READ,
            Prot::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap(std::ptr::null_mut(), len, flags, MapFlags::SHARED, fd, offset) }
            .map_err(|e| Error::Mmap { offset, len: len as u64, cause: e.into() })?;
        let base = NonNull::new(base.cast()).ok_or(Error::Mmap {
            offset,
            len: len as u64,
            cause: std::io::ErrorKind::InvalidInput.into(),
        })?;
        Ok(Self { base, len, prot, device: false, words: None, gone: None, origin: Origin::Mmap })
    }

    /// Says that these are registers of a device on a bus: accessed as volatile cells from here on.
    #[must_use]
    #[allow(dead_code, reason = "for the kernel backend")]
    pub(crate) fn of_device(mut self) -> Self {
        self.device = true;
        self
    }

    /// Zeroed memory of this process alone, for where there are no shared mappings.
    #[cfg(miri)]
    pub(crate) fn heap(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len.max(1), 4096).expect("a size below isize::MAX");
        // SAFETY: the layout has a size above 0.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
        Self { base, len, prot: Prot::ReadWrite, device: false, words: None, gone: None, origin: Origin::Heap(layout) }
    }

    /// Private anonymous hugepages, of which `len` bytes are a multiple; `None` where there are none to be had.
    ///
    /// Only where the system tells a hugepage size: `hugepage_rs` panics where it doesn't.
    #[cfg(not(miri))]
    pub(super) fn huge(len: u64) -> Option<Self> {
        let len = usize::try_from(len).ok()?;
        let layout = std::alloc::Layout::from_size_align(len, 1).ok().filter(|l| l.size() > 0)?;
        // SAFETY: the layout has a size above 0.
        let base = NonNull::new(unsafe { hugepage_rs::alloc(layout) })?;
        Some(Self {
            base,
            len,
            prot: Prot::ReadWrite,
            device: false,
            words: None,
            gone: None,
            origin: Origin::Huge(layout),
        })
    }

    /// There are none.
    #[cfg(miri)]
    pub(super) fn huge(_: u64) -> Option<Self> {
        None
    }

    /// Makes a mapping of memory that somebody else owns.
    ///
    /// # Safety
    /// `base..base + len` stays readable and writable while `owner` lives, and is accessed only atomically, or by whoever owns it in
    /// agreement with every device it is mapped for.
    pub unsafe fn of_owner(base: NonNull<u8>, len: usize, owner: Arc<dyn std::any::Any + Send + Sync>) -> Self {
        Self { base, len, prot: Prot::ReadWrite, device: false, words: None, gone: None, origin: Origin::Owner(owner) }
    }

    /// The same, promising not to store where `prot` doesn't say so.
    #[must_use]
    pub(crate) fn limited_to(mut self, prot: Prot) -> Self {
        self.prot = prot;
        self
    }

    /// The same, of an owner who may take it away: that raises `gone`.
    #[must_use]
    pub(crate) fn taken_away_with(mut self, gone: Arc<AtomicBool>) -> Self {
        self.gone = Some(gone);
        self
    }

    /// Whether its owner took some of it away, as far as anybody touched that: asked after what was touched.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.as_ref().is_some_and(|gone| {
            // The handler of the signal ran on this thread, in the middle of what comes before this.
            compiler_fence(Ordering::SeqCst);
            gone.load(Ordering::Relaxed)
        })
    }

    /// Returns the size in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Returns the protection.
    pub fn prot(&self) -> Prot {
        self.prot
    }

    /// Returns where the memory starts in this process. Dereferencing that is unsafe, and the caller's responsibility.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether stores go to a device's registers rather than to memory.
    #[inline]
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// Whether this is memory to be read and written, whose words have no widths of their own: any bytes of it may be copied.
    pub(crate) fn is_plain(&self) -> bool {
        !self.device && self.prot == Prot::ReadWrite && self.words.is_none()
    }

    #[inline]
    fn word_at(&self, offset: u64, bytes: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes as u64)?;
        if end > self.len as u64 || self.device || self.prot == Prot::Read {
            return None;
        }
        // SAFETY: `offset + bytes <= len`.
        let at = unsafe { self.base.add(offset as usize) };
        at.as_ptr().addr().is_multiple_of(bytes).then_some(at)
    }

    word!(
        /// The byte at `offset`; `None` outside, where this isn't writable memory, or where its word has another width.
        u8, AtomicU8
    );
    word!(
        /// The 16-bit word at `offset`; `None` outside, unaligned, where this isn't writable memory, or where its word has another width.
        u16, AtomicU16
    );
    word!(
        /// The 32-bit word at `offset`; `None` outside, unaligned, where this isn't writable memory, or where its word has another width.
        u32, AtomicU32
    );
    word!(
        /// The 64-bit word at `offset`; `None` outside, unaligned, where this isn't writable memory, or where its word has another width.
        u64, AtomicU64
    );

    /// `count` entries of atomic words at `offset`; `None` outside, unaligned, where this isn't writable memory, or where some of its words
    /// have other widths.
    #[inline]
    pub(crate) fn slice<T: Shared>(&self, offset: u64, count: usize) -> Option<&[T]> {
        let end = offset.checked_add((count as u64).checked_mul(size_of::<T>() as u64)?)?;
        if end > self.len as u64 || self.device || self.prot == Prot::Read {
            return None;
        }
        // SAFETY: `offset <= end <= len`.
        let at = unsafe { self.base.add(offset as usize) };
        if !at.as_ptr().addr().is_multiple_of(align_of::<T>()) || !self.are_words::<T>(offset, count) {
            return None;
        }
        // SAFETY: in bounds, aligned, and mapped as long as `self` is borrowed; `T` is made of atomics, for which any bytes are
        // a value, and the range is only accessed atomically.
        Some(unsafe { std::slice::from_raw_parts(at.cast().as_ptr(), count) })
    }

    /// The same, with words of one width each from now on: those of `words`, of which it is the part from `start` on.
    #[must_use]
    pub(crate) fn with_words(mut self, words: Arc<Words>, start: u64) -> Self {
        self.words = Some((words, start));
        self
    }

    /// Whether its words have one width each, or (a device's registers) need none.
    pub(crate) fn has_words(&self) -> bool {
        self.device || self.words.is_some()
    }

    /// Whether the `width` bytes at `offset` are a word, or may be from now on.
    #[inline]
    fn is_word(&self, offset: u64, width: u8) -> bool {
        self.words.as_ref().is_none_or(|(words, start)| words.claim(start.wrapping_add(offset), width))
    }

    #[inline]
    fn are_words<T: Shared>(&self, offset: u64, count: usize) -> bool {
        let Some((words, start)) = &self.words else { return true };
        words_of::<T>(start.wrapping_add(offset), count, |at, width| words.claim(at, width))
    }

    /// The register at `offset`, to be stored to from now on; `None` outside, unaligned, where it can't be written, or where its word has
    /// another width.
    pub(crate) fn register<T: Width>(&self, offset: u64) -> Option<NonNull<u8>> {
        let at = self.place(offset, T::BYTES)?;
        (self.prot == Prot::ReadWrite && self.is_word(offset, T::BYTES as u8)).then_some(at)
    }

    /// Where `bytes` bytes at `offset` are; `None` outside, or unaligned.
    #[inline]
    fn place(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        if !self.holds(offset, bytes as usize) {
            return None;
        }
        // SAFETY: `offset + bytes <= len`.
        let at = unsafe { self.base.add(offset as usize) };
        at.as_ptr().addr().is_multiple_of(bytes as usize).then_some(at)
    }

    /// A hint that `len` bytes at `offset` will be read, or written.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: u64, len: u64, write: bool) {
        let at = self.base.as_ptr().wrapping_add(offset as usize);
        if write { prefetch::write(at, len as usize) } else { prefetch::read(at, len as usize) }
    }

    /// Copies `bytes` to `offset` by atomic words. Returns false, having done nothing, where that isn't inside.
    #[inline]
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        if self.device || self.prot == Prot::Read || !self.holds(offset, bytes.len()) {
            return false;
        }
        if let Some((words, start)) = &self.words {
            let mut rest = bytes;
            for part in words.parts(start.wrapping_add(offset), bytes.len()) {
                let (now, later) = rest.split_at(part.len.min(rest.len()));
                self.store_part(part.at.wrapping_sub(*start), part, now);
                rest = later;
            }
            return true;
        }
        // SAFETY: `offset + bytes.len() <= len`, and the mapping is writable.
        unsafe { copy_in(self.base.add(offset as usize), bytes) };
        true
    }

    /// Copies `out.len()` bytes from `offset` by atomic words. Returns false, having done nothing, where that isn't inside.
    #[inline]
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        if self.device || !self.holds(offset, out.len()) {
            return false;
        }
        if let Some((words, start)) = &self.words {
            let mut rest = out;
            for part in words.parts(start.wrapping_add(offset), rest.len()) {
                let (now, later) = rest.split_at_mut(part.len.min(rest.len()));
                self.load_part(part.at.wrapping_sub(*start), part, now);
                rest = later;
            }
            return true;
        }
        // SAFETY: `offset + out.len() <= len`.
        unsafe { copy_out(self.base.add(offset as usize), out) };
        true
    }

    /// Fills `len` bytes at `offset`. Returns false, having done nothing, where that isn't inside.
    pub(crate) fn fill(&self, offset: u64, len: u64, value: u8) -> bool {
        const STEP: usize = 512;
        let Ok(len) = usize::try_from(len) else { return false };
        if self.device || self.prot == Prot::Read || !self.holds(offset, len) {
            return false;
        }
        let block = [value; STEP];
        for at in (0..len).step_by(STEP) {
            let n = STEP.min(len.wrapping_sub(at));
            self.write(offset.wrapping_add(at as u64), &block[..n]);
        }
        true
    }

    /// Stores into a word, all of it or some of its bytes. Release pairs with the Acquire of [`load_part`](Self::load_part), and of whoever polls it.
    pub(super) fn store_part(&self, at: u64, part: Part, bytes: &[u8]) {
        macro_rules! store {
            ($int:ty, $atomic:ty, $word:expr) => {{
                let Some(word) = $word else { return };
                if let Ok(bytes) = bytes.try_into() {
                    word.store(<$int>::from_ne_bytes(bytes), Ordering::Release);
                    return;
                }
                let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                    let mut new = old.to_ne_bytes();
                    new.get_mut(part.bytes())?.copy_from_slice(bytes);
                    Some(<$int>::from_ne_bytes(new))
                });
            }};
        }
        match part.width {
            8 => store!(u64, AtomicU64, self.u64(at)),
            4 => store!(u32, AtomicU32, self.u32(at)),
            2 => store!(u16, AtomicU16, self.u16(at)),
            _ => store!(u8, AtomicU8, self.u8(at)),
        }
    }

    /// Loads a word, or some of its bytes.
    pub(super) fn load_part(&self, at: u64, part: Part, out: &mut [u8]) {
        // Of a mapping that may not be written, too.
        let word = match part.width {
            8 => self.load_word::<u64>(at).map(u64::to_le_bytes),
            4 => self.load_word::<u32>(at).map(|word| padded(word.to_le_bytes())),
            2 => self.load_word::<u16>(at).map(|word| padded(word.to_le_bytes())),
            _ => self.load_word::<u8>(at).map(|word| padded([word])),
        };
        if let Some(bytes) = word.as_ref().and_then(|word| word.get(part.bytes())) {
            out.copy_from_slice(bytes);
        }
    }

    #[inline]
    fn holds(&self, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.len as u64)
    }

    /// Loads a register; `None` outside, or unaligned. Where it has words, one of another width is loaded as those that are there.
    #[inline]
    pub(crate) fn load<T: Width>(&self, offset: u64) -> Option<T> {
        self.place(offset, T::BYTES)?;
        if self.is_word(offset, T::BYTES as u8) {
            return self.load_word(offset);
        }
        let mut bytes = T::Bytes::default();
        self.read(offset, bytes.as_mut()).then(|| T::from_le(bytes))
    }

    /// Stores to a register; false outside, unaligned, or where it can't be written. As [`load`](Self::load).
    #[inline]
    pub(crate) fn store<T: Width>(&self, offset: u64, value: T) -> bool {
        match self.register::<T>(offset) {
            Some(at) => {
                // SAFETY: inside, aligned and writable; the mapping lives as long as `self`.
                unsafe { value.store(at.as_ptr(), self.device) };
                true
            }
            None => self.place(offset, T::BYTES).is_some() && self.write(offset, value.to_le().as_ref()),
        }
    }

    /// Loads what is a word.
    #[inline]
    fn load_word<T: Width>(&self, offset: u64) -> Option<T> {
        let at = self.place(offset, T::BYTES)?;
        // SAFETY: inside and aligned; the mapping lives as long as `self`.
        Some(unsafe { T::load(at.as_ptr(), self.device) })
    }
}

/// Goes through the words of `count` entries from `start` on; false where `each` said so of one.
pub(super) fn words_of<T: Shared>(start: u64, count: usize, mut each: impl FnMut(u64, u8) -> bool) -> bool {
    let (mut all, mut entry) = (true, start);
    for _ in 0..if size_of::<T>() == 0 { 0 } else { count } {
        T::words(&mut |at, width| all = all && each(entry.wrapping_add(at), width));
        entry = entry.wrapping_add(size_of::<T>() as u64);
    }
    all
}

/// The bytes of a word, and none behind them.
fn padded<const N: usize>(word: [u8; N]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    bytes
}

/// Copies into shared memory by atomic words: relaxed, so that a peer that looks meanwhile sees mixed data and nothing worse.
///
/// # Safety
/// `to..to + from.len()` is writable memory that is only accessed atomically while this runs.
#[inline]
pub(crate) unsafe fn copy_in(to: NonNull<u8>, from: &[u8]) {
    macro_rules! store {
        ($at:expr, $int:ty, $atomic:ty) => {{
            // SAFETY: `words` gives words inside of `from.len()` bytes, aligned where `to` is added to their offset: the caller vouches for
            // those of `to`, and those of `from` are a slice's.
            unsafe {
                let word = from.as_ptr().add($at).cast::<$int>().read_unaligned();
                to.add($at).cast::<$atomic>().as_ref().store(word, Ordering::Relaxed);
            }
        }};
    }
    words(to.as_ptr().addr(), from.len(), |at, bytes| match bytes {
        8 => store!(at, u64, AtomicU64),
        4 => store!(at, u32, AtomicU32),
        2 => store!(at, u16, AtomicU16),
        _ => store!(at, u8, AtomicU8),
    });
}

/// Copies out of shared memory by atomic words; the counterpart of [`copy_in`].
///
/// # Safety
/// `from..from + to.len()` is readable memory that is only accessed atomically while this runs.
#[inline]
pub(crate) unsafe fn copy_out(from: NonNull<u8>, to: &mut [u8]) {
    let out = to.as_mut_ptr();
    macro_rules! load {
        ($at:expr, $int:ty, $atomic:ty) => {{
            // SAFETY: as in `copy_in`, the other way round.
            unsafe {
                let word = from.add($at).cast::<$atomic>().as_ref().load(Ordering::Relaxed);
                out.add($at).cast::<$int>().write_unaligned(word);
            }
        }};
    }
    words(from.as_ptr().addr(), to.len(), |at, bytes| match bytes {
        8 => load!(at, u64, AtomicU64),
        4 => load!(at, u32, AtomicU32),
        2 => load!(at, u16, AtomicU16),
        _ => load!(at, u8, AtomicU8),
    });
}

/// Splits `len` bytes at `address` into aligned words: of rising width up to a multiple of 8, of 8 bytes, and of falling width. Each is given by its
/// offset and its bytes.
#[allow(clippy::arithmetic_side_effects, reason = "`at` is at most `len`, and no memory reaches past the last address")]
#[inline(always)]
fn words(address: usize, len: usize, mut each: impl FnMut(usize, usize)) {
    let mut at = 0;
    if address % 8 == 4 && len >= 4 {
        // A packet behind a virtio header of 12 bytes.
        each(0, 4);
        at = 4;
    } else if !address.is_multiple_of(8) {
        for bytes in [1, 2, 4] {
            if (address + at) & bytes != 0 && len - at >= bytes {
                each(at, bytes);
                at += bytes;
            }
        }
    }
    // Where the end came before a multiple of 8, fewer than 8 bytes are left, and no word of more than the address is a multiple of.
    while len - at >= 64 {
        // One by one: a loop of them would stay one.
        each(at, 8);
        each(at + 8, 8);
        each(at + 16, 8);
        each(at + 24, 8);
        each(at + 32, 8);
        each(at + 40, 8);
        each(at + 48, 8);
        each(at + 56, 8);
        at += 64;
    }
    while len - at >= 8 {
        each(at, 8);
        at += 8;
    }
    if at == len {
        return;
    }
    for bytes in [4, 2, 1] {
        if len - at >= bytes {
            each(at, bytes);
            at += bytes;
        }
    }
}

/// A memory file of `len` bytes, sealed against shrinking and growing, and its shared mapping; of hugepages, or of plain pages.
///
/// # Errors
/// [`Error::Memory`] where the system has none.
pub(crate) fn memfd(
    name: &str,
    len: u64,
    huge: Option<crate::PageSize>,
) -> Result<(Mapping, Option<std::sync::Arc<std::os::fd::OwnedFd>>)> {
    #[cfg(miri)]
    {
        let _ = (name, huge);
        Ok((Mapping::heap(len as usize), None))
    }
    #[cfg(not(miri))]
    {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        use std::os::fd::AsFd;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // The page's size as a power of two, in the upper bits (memfd_create(2), MFD_HUGE_SHIFT).
        let size = |page: crate::PageSize| MemfdFlags::from_bits_retain(page.bytes().trailing_zeros() << 26);
        let flags = huge.map_or(flags, |page| flags | MemfdFlags::HUGETLB | size(page));
        let failed = |step| move |e: rustix::io::Errno| Error::Memory { bytes: len, step, cause: e.into() };
        let fd = memfd_create(name, flags).map_err(failed("memfd_create"))?;
        ftruncate(&fd, len).map_err(failed("ftruncate"))?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed("F_ADD_SEALS"))?;
        let mapping = Mapping::of_fd(fd.as_fd(), 0, len as usize, Prot::ReadWrite)?;
        Ok((mapping, Some(std::sync::Arc::new(fd))))
    }
}

#[cfg(test)]
mod tests;
