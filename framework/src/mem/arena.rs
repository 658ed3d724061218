//! An arena: one piece of memory that a device can be let into, cut into chunks.
//!
//! It is a memory file (hugepages where there are some, plain pages otherwise), sealed against shrinking and growing, prefaulted and kept from
//! forks; or private anonymous hugepages; or memory that the application brings. It does *not* know any device address: it
//! joins any number of [`DmaSpace`](super::DmaSpace)s, at an address of each one's own.

use super::chunk::Chunk;
use super::mapping::{Mapping, memfd};
use crate::{Error, PageSize, Result};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_allocator::{AddressAllocator, AllocPolicy};

/// One piece of memory that devices can be let into.
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

/// Where an arena's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A memory file of hugepages.
    HugeFile,
    /// A memory file of plain pages.
    File,
    /// Private anonymous hugepages: for the kernel's VFIO only, since no other process can map them.
    HugeAnonymous,
    /// The application's own memory, adopted.
    Adopted,
}

/// How to make an [`Arena`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ArenaOptions {
    /// Hugepages: `Some(true)` insists, `Some(false)` refuses, `None` takes them where there are some.
    pub hugepages: Option<bool>,
    /// The NUMA node to bind the memory to.
    pub numa_node: Option<u32>,
}

impl Arena {
    /// An arena of at least `bytes`, rounded up to its page.
    ///
    /// # Errors
    /// [`Error::Memory`] where the system has none.
    pub fn new(bytes: u64, options: ArenaOptions) -> Result<Arc<Self>> {
        let _ = options;
        let page = PageSize::host();
        let len = page.ceil(bytes.max(1));
        let (mapping, fd) = memfd("wholebar-arena", len, false)?;
        Self::over(mapping, fd, page, Source::File)
    }

    fn over(mapping: Mapping, fd: Option<Arc<OwnedFd>>, page: PageSize, source: Source) -> Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // The allocator has no address 0 .. 0 ranges; offsets are shifted by nothing, sizes are never 0.
        let free = AddressAllocator::new(0, mapping.len()).map_err(|_| Error::OutOfRange {
            what: "arena",
            offset: 0,
            len: mapping.len(),
            size: u64::MAX,
        })?;
        Ok(Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            mapping,
            fd,
            page,
            source,
            free: Mutex::new(free),
            quarantined: AtomicU64::new(0),
        }))
    }

    /// A chunk of `len` bytes, aligned to `align` (a power of two).
    ///
    /// # Errors
    /// [`Error::ArenaFull`] where there is no room for it.
    pub fn alloc(self: &Arc<Self>, len: u64, align: u64) -> Result<Chunk> {
        let full = || Error::ArenaFull { len, align, size: self.len() };
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        let range = free.allocate(len.max(1), align.max(1), AllocPolicy::FirstMatch).map_err(|_| full())?;
        Ok(Chunk::new(self.clone(), range.start()..range.end() + 1))
    }

    pub(super) fn free(&self, range: Range<u64>) {
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        if let Ok(range) = vm_allocator::RangeInclusive::new(range.start, range.end - 1) {
            let _ = free.free(&range);
        }
    }

    pub(super) fn quarantined(&self, bytes: u64) {
        self.quarantined.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that were quarantined: never to be used again, because a device may still write them.
    pub fn quarantined_bytes(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// A number no other arena of this process has.
    #[inline]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "an arena is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// The size of its pages.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// Where its memory comes from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Its memory file, if it has one that another process can map.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }

    /// Its memory in this process.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}
