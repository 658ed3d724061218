//! Arenas: pieces of memory that devices can be given access to, cut into chunks.
//!
//! An arena is a memory file (of hugepages where there are some, of plain pages otherwise), sealed against shrinking and growing, prefaulted and
//! excluded from forks; or private anonymous hugepages; or memory that the application brings. This file does *not* know device addresses: an arena
//! can be attached to any number of [`DmaSpace`](super::DmaSpace)s, at an address of each one's choice.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::chunk::{Chunk, Shared};
use super::mapping::{Mapping, memfd};
use super::system;
use crate::{Error, PageSize, Result};
use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_allocator::{AddressAllocator, AllocPolicy};

/// A piece of memory that devices can be given access to.
///
/// It is unmapped when the last of its handles, chunks, rings and pools is dropped. (DPDK: `rte_memzone`, `rte_extmem_register`; SPDK:
/// `spdk_mem_register`.)
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::mem::{Arena, ArenaOptions};
///
/// let arena = Arena::new(1 << 20, ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() })?;
/// let chunk = arena.alloc(4096, 4096)?;
/// chunk.write(0, b"a descriptor")?;
/// assert!(chunk.offset().is_multiple_of(4096));
/// # Ok::<_, wholebar::Error>(())
/// ```
#[derive(Debug)]
pub struct Arena {
    id: u32,
    mapping: Mapping,
    fd: Option<Arc<OwnedFd>>,
    page: PageSize,
    source: Source,
    free: Mutex<AddressAllocator>,
    quarantined: AtomicU64,
}

/// The kind of memory that an arena is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A memory file (`memfd_create`) of hugepages.
    HugeFile,
    /// A memory file of plain pages.
    File,
    /// Private anonymous hugepages: for the kernel's VFIO only, since no other process can map them.
    HugeAnonymous,
    /// The application's own memory ([`Arena::adopt`]).
    Adopted,
}

/// The options with which an [`Arena`] is created.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArenaOptions {
    /// Hugepages: `Some(true)` requires them, `Some(false)` refuses them, `None` takes them where enough are free.
    pub hugepages: Option<bool>,
    /// The NUMA node that the memory is bound to; `None` for any.
    pub numa_node: Option<u32>,
}

/// What chunks are made of, in bytes: no two share a cache line, nor the neighbour that some CPUs fetch with it.
const GRAIN: u64 = 128;

/// The largest alignment of an arena's device address, in bytes.
const MAX_ALIGN: u64 = 2 << 20;

impl Arena {
    /// Creates an arena of at least `bytes`, rounded up to its page size, as a memory file, which a vfio-user server can map, too. The memory is zero.
    ///
    /// All of it is faulted in before this returns, which takes a while for gigabytes. Of several sizes of hugepages, that which wastes least is taken.
    ///
    /// # Errors
    /// [`Error::Memory`] where less memory is free, or a system call fails; [`Error::NoHugepages`] where hugepages are required and too few are free;
    /// [`Error::NoSuchNode`].
    pub fn new(bytes: u64, options: ArenaOptions) -> Result<Arc<Self>> {
        if let Some(node) = options.numa_node {
            system::check_node(node)?;
        }
        match options.hugepages {
            Some(true) => Self::huge_file(bytes, options.numa_node),
            Some(false) => Self::file(bytes, options.numa_node),
            None => Self::huge_file(bytes, options.numa_node).or_else(|why| {
                tracing::debug!(%why, "plain pages instead of hugepages");
                Self::file(bytes, options.numa_node)
            }),
        }
    }

    /// Creates an arena of private anonymous hugepages of the system's default size: for the kernel's VFIO only. The memory is zero, and faulted in.
    ///
    /// # Errors
    /// [`Error::NoHugepages`] where too few are free; [`Error::Memory`] where a system call fails.
    pub fn anonymous(bytes: u64, numa_node: Option<u32>) -> Result<Arc<Self>> {
        let page = system::default_hugepage().ok_or_else(|| no_hugepages(bytes, numa_node))?;
        let mapping = Mapping::huge(page.ceil(bytes.max(1))).ok_or_else(|| no_hugepages(bytes, numa_node))?;
        prepare(&mapping, page, numa_node)?;
        Self::over(mapping, None, page, Source::HugeAnonymous)
    }

    /// Makes an arena of memory that the application gives up: whole pages of the host, such as [`Frame`]s. The contents stay; the memory is dropped
    /// with the arena.
    ///
    /// It has no memory file, so a vfio-user server cannot be given access to it; the application sees to forks itself.
    ///
    /// # Errors
    /// [`Error::NotWholePages`] where its start or length is no multiple of the host's page size, or it is empty.
    pub fn adopt<T: Shared + Send>(memory: Box<[T]>) -> Result<Arc<Self>> {
        /// What was given up, as it was.
        struct Given<T>(NonNull<[T]>);
        // SAFETY: it owns the items, and only to drop them.
        unsafe impl<T: Send> Send for Given<T> {}
        // SAFETY: nothing can be done with a shared one.
        unsafe impl<T> Sync for Given<T> {}
        impl<T> Drop for Given<T> {
            fn drop(&mut self) {
                // SAFETY: from a box, and dropped once.
                drop(unsafe { Box::from_raw(self.0.as_ptr()) });
            }
        }
        let len = size_of_val(&*memory);
        let given = NonNull::from(Box::leak(memory));
        let base = given.cast();
        // SAFETY: it is kept as long as the arena, is made of atomics, and nobody else has it any more.
        unsafe { Self::adopt_raw(base, len, Arc::new(Given(given))) }
    }

    /// Makes an arena of memory of the application that stays valid while `keep` lives: whole pages of the host. The contents stay.
    ///
    /// It has no memory file, so a vfio-user server cannot be given access to it; the application sees to forks itself.
    ///
    /// # Errors
    /// [`Error::NotWholePages`] where its start or length is no multiple of the host's page size, or it is empty.
    ///
    /// # Safety
    /// `base..base + len` stays mapped, readable, writable and initialised until `keep` is dropped, which happens when neither the arena nor
    /// anything in it is used any more. Until then nothing but the arena (its chunks, rings, buffers, and devices they are mapped
    /// for) touches it.
    pub unsafe fn adopt_raw(base: NonNull<u8>, len: usize, keep: Arc<dyn Any + Send + Sync>) -> Result<Arc<Self>> {
        let page = PageSize::host();
        let (at, bytes) = (base.as_ptr().addr() as u64, len as u64);
        if len == 0 || !at.is_multiple_of(page.bytes()) || !bytes.is_multiple_of(page.bytes()) {
            return Err(Error::NotWholePages { bytes, at, page: page.bytes() });
        }
        // SAFETY: the caller's.
        let mapping = unsafe { Mapping::of_owner(base, len, keep) };
        Self::over(mapping, None, page, Source::Adopted)
    }

    fn file(bytes: u64, node: Option<u32>) -> Result<Arc<Self>> {
        let page = PageSize::host();
        let len = page.ceil(bytes.max(1));
        // The kernel promises more than it has, and ends the process when it is touched.
        if system::available().is_some_and(|available| len > available) {
            let source = rustix::io::Errno::NOMEM.into();
            return Err(Error::Memory { bytes: len, step: "finding that much free", cause: source });
        }
        let (mapping, fd) = memfd("wholebar-arena", len, None)?;
        prepare(&mapping, page, node)?;
        Self::over(mapping, fd, page, Source::File)
    }

    fn huge_file(bytes: u64, node: Option<u32>) -> Result<Arc<Self>> {
        // The size that wastes least; of those, the largest.
        let enough = system::hugepages(node)
            .into_iter()
            .filter(|h| h.page.ceil(bytes.max(1)) >> h.page.bytes().trailing_zeros() <= h.free);
        let best = enough.min_by_key(|h| (h.page.ceil(bytes.max(1)), std::cmp::Reverse(h.page)));
        let page = best.ok_or_else(|| no_hugepages(bytes, node))?.page;
        let (mapping, fd) = memfd("wholebar-arena", page.ceil(bytes.max(1)), Some(page))?;
        prepare(&mapping, page, node)?;
        Self::over(mapping, fd, page, Source::HugeFile)
    }

    fn over(mapping: Mapping, fd: Option<Arc<OwnedFd>>, page: PageSize, source: Source) -> Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let free = AddressAllocator::new(0, mapping.len()).map_err(|_| Error::OutOfRange {
            what: "arena",
            offset: 0,
            len: mapping.len(),
            size: u64::MAX,
        })?;
        let bytes = mapping.len();
        let cause = || io::Error::other("this process has made 4,294,967,295 arenas, and no number is left");
        let id =
            take_number(&NEXT).ok_or_else(|| Error::Memory { bytes, step: "numbering an arena", cause: cause() })?;
        Ok(Arc::new(Self { id, mapping, fd, page, source, free: Mutex::new(free), quarantined: AtomicU64::new(0) }))
    }

    /// Allocates a chunk of `len` bytes (0 is taken as 1), aligned to `align` bytes, a power of two, in memory and in every device address space.
    ///
    /// Chunks take multiples of 128 bytes, so no two share a cache line. The call takes a lock: it is for set-up. A chunk is zero where the memory
    /// was not used before; rings are zeroed when they are made.
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the alignment; [`Error::ArenaFull`] where there is no room, or `align` exceeds [`align`](Self::align).
    pub fn alloc(self: &Arc<Self>, len: u64, align: u64) -> Result<Chunk> {
        if !align.is_power_of_two() {
            return Err(Error::NotPowerOfTwo { what: "bytes of alignment", value: align });
        }
        let full = || Error::ArenaFull { len, align, size: self.len() };
        let len = len.max(1);
        let grains = len.checked_next_multiple_of(GRAIN).filter(|_| align <= self.align()).ok_or_else(full)?;
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        let range = free.allocate(grains, align.max(GRAIN), AllocPolicy::FirstMatch).map_err(|_| full())?;
        // Memory changes hands: Miri is to report a device that still writes to it, and to forget what widths its words had.
        // What an application brings keeps what is in it.
        #[cfg(miri)]
        if self.source != Source::Adopted {
            // SAFETY: inside the mapping, and nobody else was given this range.
            unsafe { self.mapping.base().add(range.start() as usize).write_bytes(0, len as usize) };
        }
        Ok(Chunk::new(self.clone(), range.start()..range.start().saturating_add(len)))
    }

    pub(super) fn free(&self, range: Range<u64>) {
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        if let Ok(range) =
            vm_allocator::RangeInclusive::new(range.start, range.end.next_multiple_of(GRAIN).saturating_sub(1))
        {
            let _ = free.free(&range);
        }
    }

    pub(super) fn quarantined(&self, bytes: u64) {
        self.quarantined.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes that were quarantined: they are never used again, because a device may still write them.
    pub fn quarantined_bytes(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Returns the arena's number, which no other arena of this process has.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the size in bytes: a multiple of the page size.
    #[allow(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// Returns the size of its pages.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// Returns the kind of memory that the arena is made of.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Returns the memory file, which another process can map, for a backend that sends it to its peer; `None` for an arena without one.
    ///
    /// # Safety
    /// Whoever has the descriptor, or a copy of it, does with the memory what a device may that was let into it, and no more: it writes nothing
    /// while this process has it as plain bytes ([`Buf::bytes`](super::Buf::bytes)). So it is sent to devices alone, and neither mapped
    /// nor written here.
    pub unsafe fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }

    /// Returns the alignment of the arena's device address in every space, in bytes: its page size, or, where the arena is larger, its size rounded
    /// up to a power of two, at most 2 MiB.
    pub fn align(&self) -> u64 {
        self.page.bytes().max(self.len().checked_next_power_of_two().unwrap_or(MAX_ALIGN).min(MAX_ALIGN))
    }

    /// Its memory in this process. Not for everybody: whoever holds a [`Buf`](super::Buf) takes its bytes for their own.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

/// What is done with new memory before anybody sees it.
fn prepare(mapping: &Mapping, page: PageSize, node: Option<u32>) -> Result<()> {
    if cfg!(miri) {
        return Ok(());
    }
    if let Some(node) = node {
        system::bind(mapping, node)?;
    }
    system::keep_from_forks(mapping)?;
    system::prefault(mapping, page)
}

fn no_hugepages(bytes: u64, node: Option<u32>) -> Error {
    let found: Vec<_> = system::hugepages(node).iter().map(ToString::to_string).collect();
    let place = node.map_or_else(String::new, |node| format!(" on node {node}"));
    let found = if found.is_empty() { "no kind of them".to_owned() } else { found.join(", ") };
    Error::NoHugepages { bytes, found: found + &place }
}

/// 64 KiB of atomic words, aligned to 64 KiB: whole pages on every host, for an application to fill and [`Arena::adopt`].
#[repr(C, align(65536))]
#[derive(Debug)]
pub struct Frame(pub [AtomicU64; 8192]);

// SAFETY: an array of atomics as long as its alignment: no padding.
unsafe impl Shared for Frame {
    fn words(each: &mut dyn FnMut(u64, u8)) {
        <[AtomicU64; 8192]>::words(each);
    }

    fn clear(&self) {
        self.0.clear();
    }
}
const _: () = assert!(size_of::<Frame>() == 65536);

impl Frame {
    /// Allocates `count` frames, all zero.
    pub fn zeroed(count: usize) -> Box<[Self]> {
        std::iter::repeat_with(|| Self([const { AtomicU64::new(0) }; 8192])).take(count).collect()
    }
}

/// The next number, which nobody else gets: by it a queue knows an arena again, so none is given twice. `u32::MAX` is none.
fn take_number(next: &AtomicU32) -> Option<u32> {
    next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Arc<Arena> {
        Arena::new(64 << 10, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap()
    }

    #[test]
    fn an_arena_is_whole_pages_of_zeroes() {
        let arena = Arena::new(1, ArenaOptions { hugepages: Some(false), numa_node: Some(0) }).unwrap();
        assert_eq!((arena.len(), arena.page(), arena.source()), (arena.page().bytes(), PageSize::host(), Source::File));
        assert_eq!(arena.fd.is_some(), !cfg!(miri));
        let all = arena.alloc(arena.len(), arena.page().bytes()).unwrap();
        let mut bytes = vec![1; arena.len() as usize];
        all.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 0));
        assert!(all.read(1, &mut bytes).is_err() && all.write(u64::MAX, &[1]).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "the kernel's doing")]
    fn a_memory_file_is_sealed_and_not_inherited() {
        use rustix::fs::{SealFlags, fcntl_get_seals, ftruncate};
        let arena = small();
        let fd = arena.fd.as_ref().unwrap();
        assert!(fcntl_get_seals(fd).unwrap().contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        assert!(ftruncate(fd, 0).is_err());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", arena.mapping().base().as_ptr().addr());
        let mut mine = maps.lines().skip_while(|l| !l.starts_with(&start));
        assert!(mine.clone().next().unwrap().contains("wholebar-arena"));
        let field = |name| mine.clone().find_map(|l: &str| l.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(field("Rss:"), "64 kB", "prefaulted");
        assert!(mine.find(|l| l.starts_with("VmFlags:")).unwrap().contains(" dc"), "kept from forks");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn what_the_system_lacks_is_named() {
        let error = Arena::new(1 << 50, ArenaOptions { hugepages: Some(true), numa_node: None }).unwrap_err();
        assert!(matches!(error, Error::NoHugepages { .. }) && error.to_string().contains("nr_hugepages"), "{error}");
        assert!(matches!(Arena::anonymous(1 << 50, None), Err(Error::NoHugepages { .. })));
        for bytes in [1 << 50, 1 << 63, u64::MAX] {
            let error = Arena::new(bytes, ArenaOptions::default()).unwrap_err();
            assert!(matches!(error, Error::Memory { .. }), "{error}");
        }
        let error = Arena::new(1, ArenaOptions { hugepages: None, numa_node: Some(77) }).unwrap_err();
        assert!(matches!(error, Error::NoSuchNode { node: 77, .. }), "{error}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn hugepages_are_taken_where_there_are_some() {
        let insist = || Arena::new(1, ArenaOptions { hugepages: Some(true), numa_node: Some(0) });
        let Some(most) = system::hugepages(None).into_iter().filter(|h| h.free > 0).min_by_key(|h| h.page) else {
            assert!(matches!(insist(), Err(Error::NoHugepages { .. })));
            assert_eq!(Arena::new(1, ArenaOptions::default()).unwrap().source(), Source::File);
            return;
        };
        let arena = insist().unwrap();
        assert_eq!((arena.source(), arena.page(), arena.len()), (Source::HugeFile, most.page, most.page.bytes()));
        arena.alloc(arena.len(), most.page.bytes()).unwrap().write(arena.len() - 1, &[1]).unwrap();
        drop(arena);
        assert_eq!(Arena::new(1, ArenaOptions::default()).unwrap().source(), Source::HugeFile);
        if system::default_hugepage() == Some(most.page) {
            let arena = Arena::anonymous(1, Some(0)).unwrap();
            assert_eq!((arena.source(), arena.page(), arena.fd.is_none()), (Source::HugeAnonymous, most.page, true));
            arena.alloc(arena.len(), 1).unwrap().write(arena.len() - 1, &[1]).unwrap();
        }
    }

    #[test]
    fn memory_of_the_application_is_adopted() {
        let frames = Frame::zeroed(2);
        frames[1].0[3].store(0x1234, Ordering::Relaxed);
        let arena = Arena::adopt(frames).unwrap();
        assert_eq!((arena.len(), arena.source(), arena.fd.is_none()), (128 << 10, Source::Adopted, true));
        let all = arena.alloc(128 << 10, 4096).unwrap();
        let mut word = [0; 8];
        all.read((64 << 10) + 24, &mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 0x1234);

        for odd in [Frame::zeroed(0).into_iter().map(|_| AtomicU64::new(0)).collect(), vec![AtomicU64::new(7)]] {
            assert!(matches!(Arena::adopt(odd.into_boxed_slice()), Err(Error::NotWholePages { .. })));
        }
    }

    #[test]
    fn chunks_that_cannot_be_are_refused() {
        let arena = small();
        for (len, align) in [(1, 1 << 20), (65 << 10, 1), (u64::MAX, 1), (u64::MAX, 1 << 63), (0, 1 << 40)] {
            assert!(matches!(arena.alloc(len, align), Err(Error::ArenaFull { .. })), "{len} {align}");
        }
        for align in [0, 3, u64::MAX] {
            assert!(matches!(arena.alloc(1, align), Err(Error::NotPowerOfTwo { .. })));
        }
        let _none = arena.alloc(0, 1).unwrap();
        assert!(arena.alloc(64 << 10, 1).is_err());
        drop(_none);
        assert!(arena.alloc(64 << 10, 1).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 3 } else { 200 }, failure_persistence: None, ..ProptestConfig::default()
        })]

        /// Chunks are aligned, inside, and disjoint; a request that fails finds no gap that would do; what was given back is whole.
        #[test]
        fn chunks_are_disjoint(ops in prop::collection::vec((any::<bool>(), 0..5000u64, 0..14u32), 0..if cfg!(miri) { 30 } else { 120 })) {
            let arena = small();
            let mut held: Vec<Chunk> = Vec::new();
            for (free, n, log) in ops {
                if free && !held.is_empty() {
                    held.swap_remove(n as usize % held.len());
                    continue;
                }
                let align = 1u64 << log;
                held.sort_by_key(Chunk::offset);
                match arena.alloc(n, align) {
                    Ok(chunk) => {
                        prop_assert!(chunk.offset().is_multiple_of(align) && chunk.len() == n.max(1));
                        prop_assert!(chunk.offset() + chunk.len() <= arena.len());
                        let apart = |h: &Chunk| chunk.offset() + chunk.len() <= h.offset() || h.offset() + h.len() <= chunk.offset();
                        prop_assert!(held.iter().all(apart));
                        held.push(chunk);
                    }
                    Err(_) => {
                        let mut start = 0u64;
                        let ends = held.iter().map(|h| (h.offset(), (h.offset() + h.len()).next_multiple_of(GRAIN)));
                        for (end, next) in ends.chain([(arena.len(), 0)]) {
                            let first = start.next_multiple_of(align.max(GRAIN));
                            prop_assert!(first + n.max(1).next_multiple_of(GRAIN) > end, "a gap at {start:#x}..{end:#x} was missed");
                            start = next;
                        }
                    }
                }
            }
            held.clear();
            prop_assert!(arena.alloc(arena.len(), 1).is_ok());
        }
    }

    /// A queue that found two arenas with one number would give a device the one's addresses for the other's buffers.
    #[test]
    fn no_number_is_given_twice() {
        let next = AtomicU32::new(u32::MAX - 2);
        let numbers: Vec<_> = (0..4).map(|_| take_number(&next)).collect();
        assert_eq!(numbers, [Some(u32::MAX - 2), Some(u32::MAX - 1), None, None]);
    }
}
