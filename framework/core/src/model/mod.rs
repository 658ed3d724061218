//! The device side of the seam: a device as software.
//!
//! A [`Model`] runs at three distances: stepped by hand in a test, on a thread of this process ([`InProcess`]), and in a process of its own behind a
//! vfio-user socket. [`ModelFunction`] is what these have in common: it holds the model, the memory it may reach and the eventfds it may signal.
//!
//! A page that is mapped has memory semantics: a model cannot see a store, only a value. So a model declares the ranges where values
//! are enough (doorbells, registers without side effects of access) as *direct*, and gets a call for each access elsewhere.

mod dma;
mod function;
mod host;
mod in_process;
mod pages;
mod signal;
mod thread;

pub use dma::{Denied, Dma, Entries, Entry, ReadOnly, Reason};
pub use function::ModelFunction;
pub use host::Host;
pub use in_process::InProcess;
pub use pages::{Pages, Registers};

use crate::pci::{DeviceInfo, IrqInfo};
use crate::{PageSize, Work};
use std::ops::Range;
use std::sync::Arc;

/// A device as software.
pub trait Model: Send {
    /// What it is, once: regions, interrupts, page size. Called before anything else; the answer must not change.
    fn shape(&self) -> Shape;

    /// Reads outside of the direct ranges (configuration space included). The access was checked to be inside the region.
    ///
    /// # Errors
    /// [`Refused`], with an `errno` for the asker.
    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused>;

    /// Writes outside of the direct ranges; the counterpart of [`read`](Self::read).
    ///
    /// # Errors
    /// As `read`.
    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused>;

    /// Function-level reset: back to how it was when it was made, but for what its backing holds.
    fn reset(&mut self);

    /// Runs for a bounded while: looks at its doorbells, does DMA, signals interrupts.
    fn poll(&mut self, host: &mut Host<'_>) -> Work;
}

impl<M: Model + ?Sized> Model for Box<M> {
    fn shape(&self) -> Shape {
        (**self).shape()
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        (**self).read(region, offset, buf)
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        (**self).write(region, offset, buf)
    }

    fn reset(&mut self) {
        (**self).reset();
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        (**self).poll(host)
    }
}

/// A refusal of an access, with an `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub i32);

/// What a model is.
#[derive(Clone)]
pub struct Shape {
    /// What a person calls it.
    pub name: String,
    /// The page size it pretends its host to have; never below the host's.
    pub page: PageSize,
    /// Up to 9 regions by their VFIO index; those missing have size 0.
    pub regions: Vec<ModelRegion>,
    /// Up to 5 interrupt kinds by their VFIO index.
    pub irqs: Vec<IrqInfo>,
    /// Where the MSI-X table is, so that configured vectors show there, as they do on a device.
    pub msix: Option<MsixPlace>,
}

impl Shape {
    /// Its VFIO device info.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, resettable: true }
    }
}

/// Where a model's MSI-X table and PBA are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// The table's region (BAR).
    pub table_bar: u8,
    /// Its offset there, in bytes.
    pub table_offset: u64,
    /// The PBA's region (BAR).
    pub pba_bar: u8,
    /// Its offset there, in bytes.
    pub pba_offset: u64,
    /// How many vectors.
    pub vectors: u32,
}

impl MsixPlace {
    /// The table, as a range of its BAR.
    pub fn table(&self) -> Range<u64> {
        self.table_offset..self.table_offset.saturating_add(u64::from(self.vectors) * 16)
    }

    /// The PBA, as a range of its BAR: a bit a vector, in 64-bit words.
    pub fn pba(&self) -> Range<u64> {
        self.pba_offset..self.pba_offset.saturating_add(u64::from(self.vectors).div_ceil(64) * 8)
    }

    /// Whether an access to BAR `region` touches table or PBA.
    pub fn guards(&self, region: u32, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        [(self.table_bar, self.table()), (self.pba_bar, self.pba())]
            .into_iter()
            .any(|(bar, r)| u32::from(bar) == region && offset < r.end && r.start < end)
    }
}

/// One region of a model.
#[derive(Clone, Default)]
pub struct ModelRegion {
    /// Bytes; 0 where there is none.
    pub size: u64,
    /// The memory behind its direct ranges, as large as the region; `None` where every access is a call.
    pub pages: Option<Arc<Pages>>,
    /// Where memory semantics are enough. All of the region: it can be mapped whole. Else these areas, offered as sparse.
    pub direct: Vec<Range<u64>>,
}
