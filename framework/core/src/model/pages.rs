//! The memory of a model's region that can be mapped: registers that a driver and the model look at, and that neither sees the other touch.
//!
//! Each word of it has one width, that of its first access, here or through a BAR: a model makes its registers' widths known by touching all of them
//! before anybody else can. What comes from outside in another width (a client may read a register of 64 bits by halves) is made out of accesses of
//! the width that is there.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Refused;
use crate::mem::{Mapping, Shared, Words};
use crate::pci::Prot;
use crate::{Error, PageSize, Result};
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// The memory of a region that can be mapped: a memory file and its mapping in this process.
///
/// The file is twice as long as the mapping: the second half is where trapped accesses of this process go by system call
/// (see [`InProcess`](super::InProcess)).
pub struct Pages {
    mapping: Mapping,
    words: Arc<Words>,
    fd: Option<Arc<OwnedFd>>,
}

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $atomic:ty) => {
        $(#[$doc])*
        #[inline]
        pub fn $name(&self, offset: u64) -> Option<&$atomic> {
            self.mapping.$name(offset)
        }
    };
}

impl Pages {
    /// Allocates `len` bytes of zeroes, rounded up to the host's page size.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(len: u64) -> Result<Arc<Self>> {
        let len = PageSize::host().ceil(len.max(1));
        let lacking = |step| Error::Memory { bytes: len, step, cause: std::io::ErrorKind::OutOfMemory.into() };
        let twice = len.checked_mul(2).ok_or_else(|| lacking("making a file of twice as many"))?;
        // Where there are no files there is no second half.
        let (whole, fd) = crate::mem::memfd("wholebar-bar", if cfg!(miri) { len } else { twice }, None)?;
        let mapping = match &fd {
            Some(fd) => Mapping::of_fd(fd.as_fd(), 0, len as usize, Prot::ReadWrite)?,
            None => whole,
        };
        let words = Arc::new(Words::new(mapping.len()).ok_or_else(|| lacking("remembering its words"))?);
        Ok(Arc::new(Self { mapping: mapping.with_words(words.clone(), 0), words, fd }))
    }

    /// One system call on the file, of the shape of a trapped access, that changes nothing a device can see.
    pub(super) fn trap(&self, offset: u64, access: Trap<'_>) {
        let (Some(fd), Some(at)) = (&self.fd, self.mapping.len().checked_add(offset)) else { return };
        let _ = match access {
            Trap::Read(buf) => rustix::io::pread(fd, buf, at),
            Trap::Write(buf) => rustix::io::pwrite(fd, buf, at),
        };
    }

    /// A part of the memory, mapped once more, with the same words.
    pub(super) fn map(self: &Arc<Self>, range: Range<u64>, prot: Prot) -> Result<Mapping> {
        let words = (self.words.clone(), range.start);
        let mapping = match &self.fd {
            Some(fd) => {
                let len = range.end.saturating_sub(range.start);
                Mapping::of_fd(fd.as_fd(), range.start, len as usize, prot)?
            }
            None => self.share(range, prot),
        };
        Ok(mapping.with_words(words.0, words.1))
    }

    /// A part of the memory itself, clipped to it, for where there is no file to map.
    fn share(self: &Arc<Self>, range: Range<u64>, prot: Prot) -> Mapping {
        let end = range.end.min(self.mapping.len());
        let start = range.start.min(end);
        // SAFETY: `start` is at most the mapping's length, and its end too; the mapping lives as long as these pages, which the part
        // keeps, and is only accessed atomically.
        unsafe {
            let base = self.mapping.base().add(start as usize);
            Mapping::of_owner(base, end.saturating_sub(start) as usize, self.clone()).limited_to(prot)
        }
    }

    /// Returns the size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "at least a page")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    word!(
        /// The byte at `offset`; `None` outside, or where its word has another width.
        u8, AtomicU8
    );
    word!(
        /// The 16-bit word at `offset`; `None` outside, unaligned, or where its word has another width.
        u16, AtomicU16
    );
    word!(
        /// The 32-bit word at `offset`; `None` outside, unaligned, or where its word has another width.
        u32, AtomicU32
    );
    word!(
        /// The 64-bit word at `offset`; `None` outside, unaligned, or where its word has another width.
        u64, AtomicU64
    );

    /// Returns `count` registers of one kind at `offset`, to be held: those that a model reads in each poll. `None` outside, unaligned, or where
    /// some of their words have other widths.
    pub fn registers<T: Shared>(self: &Arc<Self>, offset: u64, count: usize) -> Option<Registers<T>> {
        let words = NonNull::from(self.mapping.slice(offset, count)?);
        Some(Registers { words, _pages: self.clone() })
    }

    /// A region access, made of the words that are there: one of a register's width is one access where that is its word's, too.
    pub(super) fn access(&self, offset: u64, access: Trap<'_>) -> Result<(), Refused> {
        use std::sync::atomic::Ordering::{Acquire, Release};
        macro_rules! read {
            ($word:ident, $buf:expr) => {
                self.$word(offset).map(|w| $buf.copy_from_slice(&w.load(Acquire).to_ne_bytes())).is_some()
            };
        }
        macro_rules! write {
            ($word:ident, $buf:expr) => {
                match (self.$word(offset), $buf.try_into()) {
                    (Some(w), Ok(bytes)) => {
                        w.store($word::from_ne_bytes(bytes), Release);
                        true
                    }
                    _ => false,
                }
            };
        }
        let done = match access {
            Trap::Read(buf) => {
                let one = match buf.len() {
                    1 => read!(u8, buf),
                    2 => read!(u16, buf),
                    4 => read!(u32, buf),
                    8 => read!(u64, buf),
                    _ => false,
                };
                one || self.mapping.read(offset, buf)
            }
            Trap::Write(buf) => {
                let one = match buf.len() {
                    1 => write!(u8, buf),
                    2 => write!(u16, buf),
                    4 => write!(u32, buf),
                    8 => write!(u64, buf),
                    _ => false,
                };
                one || self.mapping.write(offset, buf)
            }
        };
        if done { Ok(()) } else { Err(Refused(libc::EINVAL)) }
    }

    /// Its file, where there is one: for a client. Nothing but words of registers is in it.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }
}

/// A region access: what is read into, or what is written.
pub(super) enum Trap<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// Registers of one kind, one after the other, in a model's [`Pages`].
pub struct Registers<T> {
    words: NonNull<[T]>,
    /// Keeps them mapped.
    _pages: Arc<Pages>,
}

// SAFETY: it is a shared reference to words that any thread may access, and what keeps them.
unsafe impl<T: Shared> Send for Registers<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Registers<T> {}

impl<T> Deref for Registers<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: a slice of the mapping that `_pages` keeps, and neither moves nor changes.
        unsafe { self.words.as_ref() }
    }
}

impl<T> std::fmt::Debug for Registers<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registers({} of {} bytes)", self.len(), size_of::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn pages_that_cannot_be_are_refused() {
        for len in [1 << 63, u64::MAX] {
            assert!(matches!(Pages::new(len), Err(Error::Memory { .. })), "{len:#x}");
        }
    }

    /// `u32` and `u64` at one place, by two threads: Miri says that this is a race. Whoever is first has the place.
    #[test]
    fn a_register_has_one_width() {
        let pages = Pages::new(4096).unwrap();
        for place in (0..if cfg!(miri) { 64 } else { 4096 }).step_by(8) {
            let (short, long) = std::thread::scope(|scope| {
                let short = scope.spawn(|| {
                    let word = pages.u32(place + 4)?;
                    word.store(1, Ordering::Relaxed);
                    Some(())
                });
                let long = scope.spawn(|| {
                    let word = pages.u64(place)?;
                    word.store(2, Ordering::Relaxed);
                    Some(())
                });
                (short.join().unwrap(), long.join().unwrap())
            });
            assert_ne!(short, long, "one of them has it, and the other doesn't");
        }
        assert!(pages.registers::<AtomicU16>(0, 4).is_none());
        assert!(
            pages.registers::<AtomicU64>(4096, 1).is_none() && pages.registers::<[AtomicU64; 1 << 57]>(0, 16).is_none()
        );
    }

    /// What a client reads first, in whatever width, changes nothing about what is shown there later.
    #[test]
    fn the_table_is_of_words_of_32_bits() {
        use crate::model::{Host, Model, ModelFunction, ModelRegion, MsixPlace, Shape};
        struct Table(Arc<Pages>);
        impl Model for Table {
            fn shape(&self) -> Shape {
                let region = ModelRegion { size: 4096, pages: Some(self.0.clone()), direct: vec![0..4096] };
                let (table_bar, table_offset, pba_bar, pba_offset) = (0, 1024, 0, 2048);
                let msix = Some(MsixPlace { table_bar, table_offset, pba_bar, pba_offset, vectors: 8 });
                let irqs = vec![crate::pci::IrqInfo { count: 8, ..Default::default() }; 3];
                Shape { name: "table".to_owned(), page: PageSize::host(), regions: vec![region], irqs, msix }
            }
            fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Refused> {
                Ok(())
            }
            fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Refused> {
                Ok(())
            }
            fn reset(&mut self) {}
            fn poll(&mut self, _: &mut Host<'_>) -> crate::Work {
                crate::Work::Idle
            }
        }
        let mut function = ModelFunction::new(Table(Pages::new(4096).unwrap()));
        let mut entry = [0; 16];
        for width in [1, 2, 8] {
            for at in (0..128).step_by(width) {
                function.read(0, 1024 + at as u64, &mut entry[..width]).unwrap();
            }
        }
        function.set_irqs(2, 7, vec![None]).unwrap();
        function.read(0, 1024 + 7 * 16, &mut entry).unwrap();
        assert_eq!(entry[12..], [1, 0, 0, 0], "masked");
    }

    #[test]
    fn an_access_from_outside_has_any_width() {
        let pages = Pages::new(4096).unwrap();
        pages.u64(0).unwrap().store(u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]), Ordering::Relaxed);
        let bells = pages.registers::<AtomicU16>(8, 2).unwrap();
        let mut all = [0; 13];
        for (at, bytes) in [(4, &[9; 4][..]), (1, &[8]), (6, &[1, 2, 3, 4]), (11, &[5, 6])] {
            pages.access(at, Trap::Write(bytes)).unwrap();
        }
        pages.access(0, Trap::Read(&mut all)).unwrap();
        assert_eq!(all, [1, 8, 3, 4, 9, 9, 1, 2, 3, 4, 0, 5, 6]);
        assert_eq!(bells[0].load(Ordering::Relaxed), u16::from_ne_bytes([3, 4]));
        assert!(pages.access(4095, Trap::Write(&[0; 2])).is_err());
        assert!(pages.access(u64::MAX, Trap::Read(&mut all)).is_err());
    }
}
