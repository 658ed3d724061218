//! The memory files a client sends, each mapped once: a guest's memory comes in thousands of maps of the same few files, and a process
//! can have only some ten thousand mappings.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::mem::Mapping;
use crate::pci::Prot;
use crate::sigbus::{self, Guard};
use crate::{Error, PageSize};
use rustix::fs::SealFlags;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Files that are mapped while something of them is in use.
#[derive(Default)]
pub struct Files {
    /// One of them became shorter than what is mapped of it, and that was touched.
    shrunk: Arc<AtomicBool>,
    /// From their start to their end, by device, inode and whether they may be written.
    whole: HashMap<(u64, u64, bool), Weak<Mapping>>,
    /// Parts of files: they could not be mapped whole, or have grown since.
    parts: Vec<Weak<Mapping>>,
}

/// How many mappings one client can cause.
const MOST_MAPPINGS: usize = 1024;
/// How many bytes of addresses it can cause to be taken.
const MOST_BYTES: u64 = 1 << 44;

impl Files {
    /// `len` bytes of `fd` at `offset`: a mapping, and where in it they begin; or an `errno`.
    pub fn memory(&mut self, fd: &OwnedFd, offset: u64, len: u64, writable: bool) -> Result<(Arc<Mapping>, u64), i32> {
        let stat = rustix::fs::fstat(fd).map_err(|e| e.raw_os_error())?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let end = offset.checked_add(len).ok_or(libc::EINVAL)?;
        // What lies behind a file's end dies by SIGBUS when it is touched; what is no file may do anything.
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() || end > size {
            return Err(libc::EINVAL);
        }
        let key = (stat.st_dev, stat.st_ino, writable);
        if let Some(known) = self.whole.get(&key).and_then(Weak::upgrade)
            && end <= known.len()
        {
            return Ok((known, offset));
        }
        let room = self.room()?;
        let prot = if writable { Prot::ReadWrite } else { Prot::Read };
        let page = page_of(fd);
        if size <= room
            && let Ok(mapping) = self.map(fd, 0..size, page, prot)
        {
            // A file that grew is mapped anew; what was mapped of it stays for as long as it is in use.
            self.parts.extend(self.whole.insert(key, Arc::downgrade(&mapping)));
            return Ok((mapping, offset));
        }
        // A file of hugepages can only be mapped by hugepages, and has only so many of them.
        let start = page.floor(offset);
        if page.ceil(end).saturating_sub(start) > room {
            return Err(libc::ENOSPC);
        }
        let mapping = self.map(fd, start..page.ceil(end), page, prot)?;
        self.parts.push(Arc::downgrade(&mapping));
        Ok((mapping, offset.saturating_sub(start)))
    }

    /// Whether a client took memory away that it had shared.
    pub fn have_shrunk(&self) -> bool {
        self.shrunk.load(Ordering::Relaxed)
    }

    fn map(&self, fd: &OwnedFd, range: Range<u64>, page: PageSize, prot: Prot) -> Result<Arc<Mapping>, i32> {
        let len = range.end.checked_sub(range.start).and_then(|len| usize::try_from(len).ok()).ok_or(libc::ENOMEM)?;
        let memory = Mapping::of_fd(fd.as_fd(), range.start, len, prot).map_err(|e| match e {
            Error::Mmap { cause: source, .. } => source.raw_os_error().unwrap_or(libc::ENOMEM),
            _ => libc::ENOMEM,
        })?;
        if can_shrink(fd) { guard(memory, page, self.shrunk.clone()) } else { Ok(Arc::new(memory)) }
    }

    /// How many more bytes may be mapped.
    fn room(&mut self) -> Result<u64, i32> {
        self.whole.retain(|_, m| m.strong_count() > 0);
        self.parts.retain(|m| m.strong_count() > 0);
        if self.whole.len().saturating_add(self.parts.len()) >= MOST_MAPPINGS {
            return Err(libc::ENOSPC);
        }
        let taken: u64 = self.whole.values().chain(&self.parts).filter_map(Weak::upgrade).map(|m| m.len()).sum();
        Ok(MOST_BYTES.saturating_sub(taken))
    }
}

/// Whether a file can become shorter than it is: sealed ones can't.
pub fn can_shrink(fd: impl AsFd) -> bool {
    !rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Memory that its owner may take away: that raises `gone`, rather than ending this process.
fn guard(memory: Mapping, page: PageSize, gone: Arc<AtomicBool>) -> Result<Arc<Mapping>, i32> {
    struct Guarded {
        /// Ends before the memory is unmapped.
        _guard: Guard,
        memory: Mapping,
    }
    let (base, len, prot) = (memory.base(), memory.len() as usize, memory.prot());
    let guard = Guard::new(base, len, page, sigbus::Guarded::Memory, prot == Prot::ReadWrite, gone.clone())
        .map_err(|_| libc::ENOSPC)?;
    let memory = Arc::new(Guarded { _guard: guard, memory });
    // SAFETY: what keeps it keeps `memory`, which is mapped so; nobody reaches it but through what is made here, and
    // `limited_to` says what may be done to it.
    let memory = unsafe { Mapping::of_owner(memory.memory.base(), len, memory) }.limited_to(prot);
    Ok(Arc::new(memory.taken_away_with(gone)))
}

/// What the offsets of a file's mappings must be multiples of.
fn page_of(fd: &OwnedFd) -> PageSize {
    let host = PageSize::host();
    let huge = rustix::fs::fstatfs(fd).ok().filter(|f| f.f_type == libc::HUGETLBFS_MAGIC);
    huge.and_then(|f| PageSize::new(f.f_bsize as u64).ok()).unwrap_or(host).max(host)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::Work;
    use crate::mem::Iova;
    use crate::model::{Host, Model, ModelFunction, Reason, Refused, Shape};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    const SIZE: u64 = 1 << 20;

    /// Its memory is taken away in the middle of a poll. What copies of 64 bytes said before that and after it.
    struct Robbed {
        file: OwnedFd,
        said: Vec<[bool; 3]>,
        why: Option<Reason>,
    }

    impl Model for Robbed {
        fn shape(&self) -> Shape {
            Shape {
                name: "robbed".to_owned(),
                page: PageSize::host(),
                regions: Vec::new(),
                irqs: Vec::new(),
                msix: None,
            }
        }

        fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Refused> {
            Err(Refused(libc::EINVAL))
        }

        fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Refused> {
            Err(Refused(libc::EINVAL))
        }

        fn reset(&mut self) {}

        fn poll(&mut self, host: &mut Host<'_>) -> Work {
            // In one map, and across both.
            for (first, len) in [(0, 64), (SIZE - 32, 64)] {
                let dma = host.dma(Iova(first), len).unwrap();
                let mut bytes = [0; 64];
                self.said.push([dma.read(0, &mut bytes), dma.write(0, &bytes), dma.fill(0, len, 7)]);
            }
            ftruncate(&self.file, 0).unwrap();
            // The first of these is what meets it.
            for (first, len) in [(4096, 64), (4096, 64), (SIZE - 32, 64)] {
                let dma = host.dma(Iova(first), len).unwrap();
                let mut bytes = [0; 64];
                self.said.push([dma.read(0, &mut bytes), dma.write(0, &bytes), dma.fill(0, len, 7)]);
            }
            self.why = Some(host.denied(Iova(4096), 64, false).why);
            Work::Busy
        }
    }

    #[test]
    fn copies_fail_from_where_memory_was_taken_away_in_the_middle_of_a_poll() {
        let file = || {
            let file = memfd_create("robbed", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, SIZE).unwrap();
            file
        };
        let (first, second) = (file(), file());
        let mut files = Files::default();
        let maps = [&first, &second].map(|file| files.memory(file, 0, SIZE, true).unwrap());
        let mut function = ModelFunction::new(Robbed { file: first, said: Vec::new(), why: None });
        for ((memory, at), iova) in maps.into_iter().zip([0, SIZE]) {
            function.dma_map(Iova(iova), memory, at, SIZE, true).unwrap();
        }
        function.poll();
        let Robbed { said, why, .. } = function.model();
        assert_eq!(said[..], [[true; 3], [true; 3], [false; 3], [false; 3], [false; 3]]);
        assert_eq!(*why, Some(Reason::TakenAway((Iova(0), SIZE))));
        assert!(files.have_shrunk());
    }
}
