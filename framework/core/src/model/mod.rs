//! Device models: devices in software, on the other side of [`PciDevice`](crate::pci::PciDevice).
//!
//! A [`Model`] runs in one of three places: stepped by hand in a test, on a thread of this process ([`InProcess`]), or in a process of its own behind a
//! vfio-user socket. [`ModelFunction`] is what these have in common: the model, the memory that it can reach and the eventfds that it can signal.
//!
//! A mapped page has memory semantics: a model sees the value there, not each store. So a model declares the ranges where values are enough (doorbells,
//! registers without side effects of access) as *direct*, and gets a call for each access elsewhere.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};
//! use wholebar::pci::{BAR0, PciDevice};
//! use wholebar::{PageSize, Work};
//!
//! const EINVAL: i32 = 22;
//!
//! /// A device of one register, which reads back inverted.
//! #[derive(Default)]
//! struct Inverter(u32);
//!
//! impl Model for Inverter {
//!     fn shape(&self) -> Shape {
//!         let bar0 = ModelRegion { size: 4096, ..ModelRegion::default() };
//!         Shape { name: "inverter".to_owned(), page: PageSize::host(), regions: vec![bar0], irqs: Vec::new(), msix: None }
//!     }
//!
//!     fn read(&mut self, _: u32, _: u64, buf: &mut [u8]) -> Result<(), Refused> {
//!         let value = (!self.0).to_le_bytes();
//!         buf.copy_from_slice(value.get(..buf.len()).ok_or(Refused(EINVAL))?);
//!         Ok(())
//!     }
//!
//!     fn write(&mut self, _: u32, _: u64, buf: &[u8]) -> Result<(), Refused> {
//!         self.0 = u32::from_le_bytes(buf.try_into().map_err(|_| Refused(EINVAL))?);
//!         Ok(())
//!     }
//!
//!     fn reset(&mut self) {
//!         self.0 = 0;
//!     }
//!
//!     fn poll(&mut self, _: &mut Host<'_>) -> Work {
//!         Work::Idle
//!     }
//! }
//!
//! let device = InProcess::new(Inverter::default())?;
//! device.write(BAR0, 0, &5u32.to_le_bytes())?;
//! let mut value = [0; 4];
//! device.read(BAR0, 0, &mut value)?;
//! assert_eq!(u32::from_le_bytes(value), !5);
//! # Ok::<_, wholebar::Error>(())
//! ```

mod dma;
mod function;
mod host;
mod in_process;
mod pages;
pub(crate) mod rest;
mod signal;
mod thread;

pub use dma::{Denied, Dma, Entries, Entry, ReadOnly, Reason};
pub use function::ModelFunction;
pub use host::Host;
pub use in_process::InProcess;
pub use pages::{Pages, Registers};
#[cfg(any(feature = "kernel", feature = "vhost-user"))]
pub(crate) use signal::Signaller;

use crate::pci::{DeviceInfo, IrqInfo};
use crate::reactor::Armed;
use crate::{PageSize, Work};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A device in software.
///
/// It is called by one thread at a time.
///
/// An implementer handles a driver's accesses in [`read`](Self::read) and [`write`](Self::write), and does all else in [`poll`](Self::poll). It must
/// not block, and treats all that it reads from memory as input: the driver may be hostile.
pub trait Model: Send {
    /// Returns regions, interrupts and page size of the device. Called before anything else; the answer must not change.
    fn shape(&self) -> Shape;

    /// Reads `buf.len()` bytes at `offset` of a region, outside of the direct ranges; configuration space is one of the regions. The access is inside
    /// of the region.
    ///
    /// # Errors
    /// [`Refused`], with an `errno` for the driver's side.
    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused>;

    /// Writes `buf` at `offset` of a region, outside of the direct ranges. The access is inside of the region.
    ///
    /// # Errors
    /// [`Refused`], with an `errno` for the driver's side.
    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused>;

    /// Resets the function: the model returns to how it was created, except for its storage.
    fn reset(&mut self);

    /// Runs the model for a bounded time: it reads its doorbells, does DMA and signals interrupts, through `host`. Returns whether there was
    /// something to do.
    fn poll(&mut self, host: &mut Host<'_>) -> Work;

    /// Prepares for a rest of its thread, after a poll that found nothing; another [`poll`](Self::poll) follows before that.
    ///
    /// Returns [`Armed::Yes`] where nothing but these brings work: calls of [`read`](Self::read), [`write`](Self::write) and [`reset`](Self::reset), stores to
    /// direct ranges, changes of its memory, and [`wakeups`](Self::wakeups); [`Armed::Until`] where something is due by itself, too. Its thread sleeps then
    /// until one of these comes, if nobody has mapped a direct range; else it naps. By default this returns [`Armed::No`]: there is
    /// something else that the model looks for, and its thread naps for a millisecond at the most.
    fn arm(&mut self) -> Armed {
        Armed::No
    }

    /// Returns the descriptors that become readable when there is work which no call brings: those of wires. They do not change. By default there are
    /// none.
    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
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

    fn arm(&mut self) -> Armed {
        (**self).arm()
    }

    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        (**self).wakeups()
    }
}

/// The refusal of an access, with an `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub i32);

/// The regions, interrupts and page size of a model.
#[derive(Clone)]
pub struct Shape {
    /// The model's name.
    pub name: String,
    /// The page size of the host that the model simulates; never below the host's own.
    pub page: PageSize,
    /// Up to 9 regions, by their VFIO index. Those that are missing have size 0.
    pub regions: Vec<ModelRegion>,
    /// Up to 5 kinds of interrupt, by their VFIO index.
    pub irqs: Vec<IrqInfo>,
    /// The place of the MSI-X table, so that configured vectors are shown there, as a device does; `None` for a model without MSI-X.
    pub msix: Option<MsixPlace>,
}

impl Shape {
    /// Returns the model's VFIO device info.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, resettable: true }
    }
}

/// The place of a model's MSI-X table and PBA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// The BAR of the table.
    pub table_bar: u8,
    /// The table's offset in that BAR, in bytes.
    pub table_offset: u64,
    /// The BAR of the PBA.
    pub pba_bar: u8,
    /// The PBA's offset in that BAR, in bytes.
    pub pba_offset: u64,
    /// Number of vectors.
    pub vectors: u32,
}

impl MsixPlace {
    /// Returns the table as a range of its BAR.
    pub fn table(&self) -> Range<u64> {
        self.table_offset..self.table_offset.saturating_add(u64::from(self.vectors) * 16)
    }

    /// Returns the PBA as a range of its BAR: a bit a vector, in 64-bit words.
    pub fn pba(&self) -> Range<u64> {
        self.pba_offset..self.pba_offset.saturating_add(u64::from(self.vectors).div_ceil(64) * 8)
    }

    /// Returns whether an access to BAR `region` touches the table or the PBA.
    pub fn guards(&self, region: u32, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        [(self.table_bar, self.table()), (self.pba_bar, self.pba())]
            .into_iter()
            .any(|(bar, r)| u32::from(bar) == region && offset < r.end && r.start < end)
    }
}

/// A region of a model.
#[derive(Clone, Default)]
pub struct ModelRegion {
    /// The size in bytes; 0 for none.
    pub size: u64,
    /// The memory behind the direct ranges, as large as the region; `None` where every access is a call.
    pub pages: Option<Arc<Pages>>,
    /// The ranges where memory semantics are enough. Where this is the whole region, it can be mapped whole; else these are its sparse areas.
    pub direct: Vec<Range<u64>>,
}
