//! A model's access to its host: memory that was mapped for it, and eventfds that it was given.

use super::dma::{Denied, Dma, DmaTable};
use super::pages::Pages;
use super::signal::Signaller;
use crate::mem::Iova;
use crate::pci::Irq;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The host of a model, during one [`poll`](super::Model::poll).
pub struct Host<'a> {
    dma: &'a DmaTable,
    irqs: &'a Irqs,
    placed: Option<OwnMemory>,
}

/// Pages of a model's, and where they are for it; `None` for nowhere.
pub(super) type OwnMemory = Option<(Iova, Arc<Pages>)>;

impl<'a> Host<'a> {
    pub(super) fn new(dma: &'a DmaTable, irqs: &'a Irqs) -> Self {
        Self { dma, irqs, placed: None }
    }

    /// Returns the memory at `iova`, in however many maps it is; `None` where not all of it is mapped: [`denied`](Self::denied) says why.
    #[inline(always)]
    pub fn dma(&self, iova: Iova, len: u64) -> Option<Dma<'a>> {
        self.dma.find(iova, len)
    }

    /// Copies pieces, one behind the other, to the start of a buffer of `len` bytes at `iova`; returns `false` where not all of that is mapped, may be written and
    /// is there, or the pieces are more. What [`dma`](Self::dma) and [`Dma::write`] do, made for short copies.
    #[inline(always)]
    pub fn write<'p>(&self, iova: Iova, len: u64, pieces: impl Iterator<Item = &'p [u8]>) -> bool {
        self.dma.write(iova, len, pieces)
    }

    /// Copies the start of a buffer of `len` bytes at `iova`; the counterpart of [`write`](Self::write).
    #[inline(always)]
    pub fn read(&self, iova: Iova, len: u64, out: &mut [u8]) -> bool {
        self.dma.read(iova, len, out)
    }

    /// Returns why the memory at `iova` cannot be read, or written.
    pub fn denied(&self, iova: Iova, len: u64, write: bool) -> Denied {
        self.dma.denied(iova, len, write)
    }

    /// Prefetches the start of the memory at `iova`, for reading or for writing. A hint: it says nothing of whether there is such memory.
    #[inline(always)]
    pub fn prefetch(&self, iova: Iova, len: u64, write: bool) {
        self.dma.prefetch(iova, len, write);
    }

    /// Has pages of the model's own be at an address for its accesses, from the next poll on, in the place of those that it placed before; or be nowhere. For
    /// memory of a device that its driver gives an address: a controller memory buffer. Where something else is mapped there, they are nowhere. Memory that
    /// is unmapped takes these along where all is: a device places them when it is enabled.
    pub fn place_own_memory(&mut self, memory: Option<(Iova, Arc<Pages>)>) {
        self.placed = Some(memory);
    }

    /// What was placed in this poll.
    pub(super) fn placed(&mut self) -> Option<OwnMemory> {
        self.placed.take()
    }

    /// Signals MSI-X vector `vector`. Where it has no eventfd, nothing happens.
    pub fn interrupt(&mut self, vector: u32) {
        self.irqs.signal(Irq::Msix.index(), vector);
    }

    /// Signals vector `vector` of the interrupt kind `index` ([`Irq::index`]).
    pub fn interrupt_of(&mut self, index: u32, vector: u32) {
        self.irqs.signal(index, vector);
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
