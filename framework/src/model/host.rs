//! What a model can reach of its host: memory that was mapped for it, and eventfds that it was given.

use super::Refused;
use super::signal::Signaller;
use crate::mem::{Iova, Mapping, Shared};
use crate::pci::IRQ_MSIX;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// A model's host, for one turn.
pub struct Host<'a> {
    dma: &'a DmaTable,
    irqs: &'a Irqs,
}

impl<'a> Host<'a> {
    pub(super) fn new(dma: &'a DmaTable, irqs: &'a Irqs) -> Self {
        Self { dma, irqs }
    }

    /// The memory at `iova`; `None` where not all of it is inside one map.
    #[inline(always)]
    pub fn dma(&self, iova: Iova, len: u64) -> Option<Dma<'a>> {
        self.dma.find(iova, len)
    }

    /// A hint that the memory at `iova` will be read soon, or written: its beginning is on its way to this core's cache from here on. Nothing
    /// is said of whether there is such memory.
    #[inline(always)]
    pub fn prefetch(&self, iova: Iova, len: u64, write: bool) {
        self.dma.prefetch(iova, len, write);
    }

    /// Signals MSI-X vector `vector`; nothing happens where nobody listens.
    pub fn interrupt(&mut self, vector: u32) {
        self.irqs.signal(IRQ_MSIX, vector);
    }

    /// Signals interrupt `vector` of another kind.
    pub fn interrupt_of(&mut self, index: u32, vector: u32) {
        self.irqs.signal(index, vector);
    }
}

/// A part of host memory, as a device reaches it.
#[derive(Clone, Copy)]
pub struct Dma<'a> {
    memory: &'a Mapping,
    start: u64,
    len: u64,
    writable: bool,
}

impl<'a> Dma<'a> {
    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "asked for by length")]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    fn at(&self, offset: u64, bytes: u64) -> Option<u64> {
        offset.checked_add(bytes).filter(|end| *end <= self.len)?;
        Some(self.start + offset)
    }

    /// The 16-bit word at `offset`; `None` outside or unaligned.
    #[inline]
    pub fn u16(&self, offset: u64) -> Option<&'a AtomicU16> {
        self.memory.u16(self.at(offset, 2)?)
    }

    /// The 32-bit word at `offset`; `None` outside or unaligned.
    #[inline]
    pub fn u32(&self, offset: u64) -> Option<&'a AtomicU32> {
        self.memory.u32(self.at(offset, 4)?)
    }

    /// The 64-bit word at `offset`; `None` outside or unaligned.
    #[inline]
    pub fn u64(&self, offset: u64) -> Option<&'a AtomicU64> {
        self.memory.u64(self.at(offset, 8)?)
    }

    /// `count` entries of atomic words at `offset`: a queue, looked up once a turn. `None` outside or unaligned.
    #[inline]
    pub fn slice<T: Shared>(&self, offset: u64, count: usize) -> Option<&'a [T]> {
        self.memory.slice(self.at(offset, (count as u64).checked_mul(size_of::<T>() as u64)?)?, count)
    }

    /// Whether it may be written.
    #[inline]
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Copies `bytes` to `offset`; false where that isn't inside, or may not be written.
    #[inline(always)]
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        self.writable && self.at(offset, bytes.len() as u64).is_some_and(|at| self.memory.write(at, bytes))
    }

    /// Copies out from `offset`; false where that isn't inside.
    #[inline(always)]
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        self.at(offset, out.len() as u64).is_some_and(|at| self.memory.read(at, out))
    }

    /// Fills `len` bytes at `offset`; false where that isn't inside, or may not be written.
    pub fn fill(&self, offset: u64, len: u64, value: u8) -> bool {
        self.writable && self.at(offset, len).is_some_and(|at| self.memory.fill(at, len, value))
    }
}

/// What is mapped for a model, by address.
#[derive(Default)]
pub(super) struct DmaTable {
    /// Sorted by `iova`, without overlap.
    maps: Vec<Map>,
    /// The map found last: most look-ups are in the same one.
    last: Cell<usize>,
}

struct Map {
    iova: u64,
    len: u64,
    /// `None`: the addresses are taken, but what is there cannot be reached from here.
    memory: Option<Arc<Mapping>>,
    /// Where in `memory` it starts.
    at: u64,
    writable: bool,
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
        let place = self.maps.partition_point(|m| m.iova + m.len <= iova.0);
        if self.maps.get(place).is_some_and(|m| m.iova < end) {
            return Err(Refused(libc::EEXIST));
        }
        self.maps.insert(place, Map { iova: iova.0, len, memory, at, writable });
        self.last.set(0);
        Ok(())
    }

    pub(super) fn unmap(&mut self, iova: Iova, len: u64) -> Result<(), Refused> {
        let place = self.maps.binary_search_by_key(&iova.0, |m| m.iova).map_err(|_| Refused(libc::ENOENT))?;
        if self.maps[place].len != len {
            return Err(Refused(libc::ENOENT));
        }
        self.maps.remove(place);
        self.last.set(0);
        Ok(())
    }

    pub(super) fn unmap_all_in(&mut self, iova: Iova, len: u64) -> Result<usize, Refused> {
        // The last address, since the end of all addresses is none.
        let last = len.checked_sub(1).and_then(|n| iova.0.checked_add(n)).ok_or(Refused(libc::EINVAL))?;
        let first = self.maps.partition_point(|m| m.iova + (m.len - 1) < iova.0);
        let end = self.maps.partition_point(|m| m.iova <= last).max(first);
        if self.maps[first..end].iter().any(|m| m.iova < iova.0 || m.iova + (m.len - 1) > last) {
            return Err(Refused(libc::EINVAL));
        }
        self.maps.drain(first..end);
        self.last.set(0);
        Ok(end - first)
    }

    pub(super) fn len(&self) -> usize {
        self.maps.len()
    }

    pub(super) fn clear(&mut self) {
        self.maps.clear();
        self.last.set(0);
    }

    pub(super) fn maps(&self) -> impl Iterator<Item = (Iova, u64)> + '_ {
        self.maps.iter().map(|m| (Iova(m.iova), m.len))
    }

    /// In the map that was found last: most look-ups are there.
    #[inline(always)]
    fn prefetch(&self, iova: Iova, len: u64, write: bool) {
        if let Some(map) = self.maps.get(self.last.get())
            && let Some(memory) = &map.memory
        {
            memory.prefetch(map.at.wrapping_add(iova.0.wrapping_sub(map.iova)), len, write);
        }
    }

    #[inline(always)]
    fn find(&self, iova: Iova, len: u64) -> Option<Dma<'_>> {
        let inside =
            |m: &Map| iova.0.checked_sub(m.iova).filter(|o| o.checked_add(len).is_some_and(|end| end <= m.len));
        let mut map = self.maps.get(self.last.get())?;
        let offset = match inside(map) {
            Some(offset) => offset,
            None => {
                map = self.search(iova)?;
                inside(map)?
            }
        };
        Some(Dma { memory: map.memory.as_ref()?, start: map.at + offset, len, writable: map.writable })
    }
}

impl DmaTable {
    /// The map in which `iova` is, or would be.
    #[cold]
    fn search(&self, iova: Iova) -> Option<&Map> {
        let place = self.maps.partition_point(|m| m.iova <= iova.0).checked_sub(1)?;
        self.last.set(place);
        self.maps.get(place)
    }
}

/// The eventfds a model may signal, by kind and vector.
pub(super) struct Irqs {
    vectors: Vec<Vec<Vector>>,
    /// For eventfds that a peer has too.
    signaller: Option<Signaller>,
}

/// One interrupt.
#[derive(Default)]
struct Vector {
    fd: Option<OwnedFd>,
    masked: Cell<bool>,
    /// It was raised while it was masked.
    pending: Cell<bool>,
}

impl Irqs {
    pub(super) fn new(counts: &[u32]) -> Self {
        let vectors = counts.iter().map(|n| (0..*n).map(|_| Vector::default()).collect()).collect();
        Self { vectors, signaller: None }
    }

    /// Signals without ever waiting, whatever a peer does with its eventfds.
    pub(super) fn distrust(&mut self) -> std::io::Result<()> {
        self.signaller = Some(Signaller::new()?);
        Ok(())
    }

    pub(super) fn never_wait(&self) -> bool {
        self.signaller.is_some()
    }

    /// Vectors `first..first + count` of a kind.
    fn vectors(&mut self, index: u32, first: u32, count: usize) -> Option<&mut [Vector]> {
        let first = first as usize;
        self.vectors.get_mut(index as usize)?.get_mut(first..first.checked_add(count)?)
    }

    pub(super) fn set(&mut self, index: u32, first: u32, fds: Vec<Option<OwnedFd>>) -> Option<()> {
        let vectors = self.vectors(index, first, fds.len())?;
        vectors.iter_mut().zip(fds).for_each(|(vector, fd)| vector.fd = fd);
        Some(())
    }

    pub(super) fn mask(&mut self, index: u32, first: u32, count: u32, masked: bool) -> Option<()> {
        self.vectors(index, first, count as usize)?.iter().for_each(|v| v.masked.set(masked));
        for vector in (first..first + count).filter(|_| !masked) {
            if self.vectors[index as usize][vector as usize].pending.take() {
                self.signal(index, vector);
            }
        }
        Some(())
    }

    pub(super) fn clear(&mut self, index: u32) {
        if let Some(vectors) = self.vectors.get_mut(index as usize) {
            vectors.iter_mut().for_each(|v| *v = Vector::default());
        }
    }

    pub(super) fn fd(&self, index: u32, vector: u32) -> Option<BorrowedFd<'_>> {
        Some(self.vectors.get(index as usize)?.get(vector as usize)?.fd.as_ref()?.as_fd())
    }

    pub(super) fn signal(&self, index: u32, vector: u32) {
        let Some(vector) = self.vectors.get(index as usize).and_then(|kind| kind.get(vector as usize)) else { return };
        if vector.masked.get() {
            vector.pending.set(true);
            return;
        }
        let Some(fd) = &vector.fd else { return };
        match &self.signaller {
            Some(signaller) => signaller.signal(fd.as_fd()),
            // An eventfd that is full has its event already; where it may block, writing would wait for its reader. Miri can't poll.
            None if cfg!(miri)
                || rustix::event::poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&Timespec::default())) == Ok(1) =>
            {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            }
            None => {}
        }
    }
}
