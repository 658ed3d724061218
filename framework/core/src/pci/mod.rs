//! PCI functions, as VFIO describes them.
//!
//! Four kinds of device implement [`PciDevice`]: a function opened through the kernel's VFIO, a vfio-user server behind a
//! socket, a virtio function whose queues a vhost-user back end serves, and a [model](crate::model) in this process. Everything here is cold, so it is `dyn`; hot paths (doorbells, rings, buffers) use pointers that
//! were obtained once through it.
//!
//! This module does *not* plan BARs ([`crate::bar`]) or lay out memory ([`crate::mem`]).
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::Result;
//! use wholebar::pci::{BAR0, Config, Irq, PciDevice};
//!
//! /// Describes a device in a line.
//! fn describe(device: &dyn PciDevice) -> Result<String> {
//!     let config = Config::of(device)?;
//!     let (bar0, msix) = (device.region(BAR0)?.size, device.irq_info(Irq::Msix)?.count);
//!     Ok(format!("{}: {:04x}:{:04x}, BAR0 {bar0:#x} bytes, {msix} vectors", device.name(), config.vendor(), config.device()))
//! }
//! ```

use crate::mem::DmaSpace;
use crate::{PageSize, Result};
use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

mod address;
pub mod config;
pub mod function;
mod mapping;

pub use address::Address;
pub use config::{Class, Config};
pub use function::Opening;
pub use mapping::RegionMapping;

/// The region index of BAR0; BAR `n` is region `n`.
///
/// Linux: `VFIO_PCI_BAR0_REGION_INDEX`.
pub const BAR0: u32 = 0;
/// The region index of the expansion ROM.
///
/// Linux: `VFIO_PCI_ROM_REGION_INDEX`.
pub const ROM: u32 = 6;
/// The region index of configuration space.
///
/// Linux: `VFIO_PCI_CONFIG_REGION_INDEX`.
pub const CONFIG: u32 = 7;

/// A kind of interrupt.
///
/// The discriminant is VFIO's index of it. (Linux: `VFIO_PCI_INTX_IRQ_INDEX` and those that follow.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Irq {
    /// An interrupt line (INTA to INTD), level-triggered. The kernel masks it when it signals it, until
    /// [`Interrupts::rearm`](crate::irq::Interrupts::rearm).
    Intx = 0,
    /// Message signalled interrupts: up to 32 vectors.
    Msi = 1,
    /// Message signalled interrupts with a table: up to 2048 vectors.
    Msix = 2,
    /// The kernel's notice of an error of the function (AER).
    Err = 3,
    /// The kernel's request to give the device back.
    Req = 4,
}

impl Irq {
    /// Returns VFIO's index of this kind.
    pub const fn index(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for Irq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
            Self::Err => "error",
            Self::Req => "unbind-request",
        })
    }
}

/// A PCI function as VFIO describes one: regions, interrupts, DMA, reset.
///
/// All methods can be called from any thread. Those that reach the device cost a system call, a message to a peer, or a lock; none belongs on a hot
/// path. Drivers reach registers through [`Bar`](crate::bar::Bar) and memory through [`DmaSpace`], and use the methods here for the rest.
///
/// An implementer is a backend: it must bound each wait for a peer, and report a device that is gone as [`Error::Gone`](crate::Error::Gone), from
/// then on at every call that reaches the device. Configuration space is read even then, where that is possible: by it the framework finds out
/// whether the function still answers. No unsafe code trusts an implementer: a [`RegionMapping`] can be made only of memory that the framework has
/// mapped.
pub trait PciDevice: Send + Sync {
    /// Returns the device's name: `0000:01:00.0`, `vfio-user:/run/x.sock`, `sim:nvme,size=1G`. Every error of the device begins with it.
    fn name(&self) -> &str;

    /// Returns the kind of backend, by which programs label the figures that they measure.
    fn kind(&self) -> DeviceKind;

    /// Returns how many regions and interrupt kinds there are, and whether [`reset`](Self::reset) can work. (Linux: `VFIO_DEVICE_GET_INFO`.)
    fn info(&self) -> DeviceInfo;

    /// Returns the granularity by which regions are mapped: the host's page size, or a larger one that a model simulates.
    fn page_size(&self) -> PageSize;

    /// Returns whether the device's interrupts are isolated from the rest of the machine, with the evidence.
    fn isolation(&self) -> Isolation;

    /// Returns size, flags and capabilities of region `index`. A region that is not implemented has size 0. (Linux: `VFIO_DEVICE_GET_REGION_INFO`.)
    ///
    /// # Errors
    /// [`Error::NoSuchRegion`](crate::Error::NoSuchRegion) where the device has no region of that index.
    fn region(&self, index: u32) -> Result<RegionInfo>;

    /// Reads `buf.len()` bytes at `offset` of a region, by a message or a system call, never through a mapping.
    ///
    /// Register reads are 1, 2, 4 or 8 bytes, naturally aligned; an implementer passes them to the device as one access of that width where it can.
    ///
    /// # Errors
    /// [`Error::Access`](crate::Error::Access) where the backend refuses; [`Error::Gone`](crate::Error::Gone) where the device is gone.
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` at `offset` of a region, by a message or a system call; the counterpart of [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()>;

    /// Maps a page-aligned range of a region; its end may be the region's end instead. The mapping has exactly that range, or more at its end.
    /// (Linux: `mmap` of a VFIO device.)
    ///
    /// # Errors
    /// [`Error::NotMappable`](crate::Error::NotMappable) where the backend does not let this range be mapped; [`Error::Mmap`](crate::Error::Mmap)
    /// where the system refuses; [`Error::Memory`](crate::Error::Memory) where it has no memory left; [`Error::Gone`](crate::Error::Gone).
    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping>;

    /// Returns how many interrupts of a kind there are, and what can be done with them. (Linux: `VFIO_DEVICE_GET_IRQ_INFO`.) The count is 0 where the
    /// device has none of that kind.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`](crate::Error::NoSuchIrq) where the backend does not know the kind, which comes to the same.
    fn irq_info(&self, kind: Irq) -> Result<IrqInfo>;

    /// Configures interrupts of a kind, from `first` on. Drivers use [`Interrupts`](crate::irq::Interrupts) instead. (Linux: `VFIO_DEVICE_SET_IRQS`.)
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`](crate::Error::NoSuchIrq) for vectors that the device does not have; [`Error::Io`](crate::Error::Io) or
    /// [`Error::Access`](crate::Error::Access) where the system or the peer refuses; [`Error::Gone`](crate::Error::Gone).
    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()>;

    /// Returns the address space of this device's DMA, with this device's DMA mask ([`DmaSpace::set_dma_mask`]): always the same object. Devices of
    /// one container or IOAS share a space ([`DmaSpace::is_shared_with`]).
    fn dma(&self) -> Arc<DmaSpace>;

    /// Returns the counters that a model in this process keeps of itself, by name. Other devices have counters in registers alone: by default the
    /// list is empty.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Tells the backend that a driver begins to open the device, or has opened it: [`Opening`] calls this. A backend with a peer bounds the time
    /// that all of the peer's answers take together meanwhile.
    fn opening(&self, begins: bool) {
        let _ = begins;
    }

    /// Resets the function: a function-level reset, or the nearest there is. Mappings survive it; their pages may fault in again at the next access.
    /// Drivers use [`function::reset`], which waits until the function answers again. (Linux: `VFIO_DEVICE_RESET`.)
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) or [`Error::Access`](crate::Error::Access) where the system or the peer refuses;
    /// [`Error::Gone`](crate::Error::Gone).
    fn reset(&self) -> Result<()>;

    /// Resets all that is in the function's slot, or on its bus, if all of that is this process's: other functions among it, too. Drivers use
    /// [`function::reset_slot`]. (Linux: `VFIO_DEVICE_PCI_HOT_RESET`.) By default there is no slot.
    ///
    /// # Errors
    /// [`Error::NoSlotReset`](crate::Error::NoSlotReset) where the backend has no slots, or others have a part of this one: nothing was reset then;
    /// [`Error::Io`](crate::Error::Io) or [`Error::Access`](crate::Error::Access) where the system refuses; [`Error::Gone`](crate::Error::Gone).
    fn reset_slot(&self) -> Result<()> {
        let why = "it is in no slot: software plays it".to_owned();
        Err(crate::Error::NoSlotReset { device: self.name().to_owned(), why })
    }
}

/// The kind of backend behind a [`PciDevice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A PCI function through the kernel's VFIO. In a guest, the function may itself be emulated.
    Kernel,
    /// A vfio-user server behind a Unix socket: always software.
    VfioUser,
    /// A virtio function of this process, whose queues a vhost-user back end serves behind a Unix socket: always software.
    VhostUser,
    /// A model in this process.
    Model,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel VFIO",
            Self::VfioUser => "vfio-user",
            Self::VhostUser => "vhost-user",
            Self::Model => "model",
        })
    }
}

/// How many regions and interrupt kinds a device has.
///
/// Linux: `VFIO_DEVICE_GET_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of region indexes; 9 for PCI.
    pub regions: u32,
    /// Number of interrupt indexes; 5 for PCI.
    pub irqs: u32,
    /// Whether [`PciDevice::reset`] can work.
    pub resettable: bool,
}

/// The size, flags and capabilities of a region.
///
/// Linux: `VFIO_DEVICE_GET_REGION_INFO`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// The size in bytes; 0 where the region is not implemented.
    pub size: u64,
    /// [`PciDevice::read`] works.
    pub readable: bool,
    /// [`PciDevice::write`] works.
    pub writable: bool,
    /// [`PciDevice::map`] works for at least a part of the region.
    pub mappable: bool,
    /// The capability chain. Unknown capabilities are kept by their number.
    pub caps: Vec<RegionCap>,
}

impl RegionInfo {
    /// Returns whether the backend says that the pages of the MSI-X table may be mapped.
    pub fn msix_mappable(&self) -> bool {
        self.caps.contains(&RegionCap::MsixMappable)
    }

    /// Returns the areas that can be mapped, where the backend lists them; `None` where the whole region can be.
    pub fn sparse(&self) -> Option<&[Range<u64>]> {
        self.caps.iter().find_map(|c| match c {
            RegionCap::SparseMmap(areas) => Some(&areas[..]),
            _ => None,
        })
    }
}

/// A capability of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegionCap {
    /// Only these areas can be mapped. (Linux: `VFIO_REGION_INFO_CAP_SPARSE_MMAP`.)
    SparseMmap(Vec<Range<u64>>),
    /// The pages of the MSI-X table can be mapped, too. It says that `mmap` will not be refused, *not* that interrupts are isolated. (Linux:
    /// `VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`.)
    MsixMappable,
    /// A capability that this framework does not know, by its id.
    Other(u16),
}

/// The properties of a kind of interrupt.
///
/// Linux: `VFIO_DEVICE_GET_IRQ_INFO`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors; 0 where the kind is not implemented.
    pub count: u32,
    /// Vectors can signal eventfds.
    pub eventfd: bool,
    /// Vectors can be masked.
    pub maskable: bool,
    /// Vectors can be added to an enabled set: `VFIO_IRQ_INFO_NORESIZE` is clear.
    pub resizable: bool,
}

/// The action of [`PciDevice::set_irqs`].
#[derive(Debug, Clone, Copy)]
pub enum IrqAction<'a> {
    /// Connects vectors to these eventfds, one each; `None` disconnects a vector.
    Fds(&'a [Option<BorrowedFd<'a>>]),
    /// Disables the whole kind.
    Disable,
    /// Masks this number of vectors.
    Mask(u32),
    /// Unmasks this number of vectors.
    Unmask(u32),
    /// Signals this number of vectors by software, as a loopback test.
    Trigger(u32),
}

/// The protection with which a region is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prot {
    /// Loads only: a store ends in SIGSEGV.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Whether the platform isolates a device's interrupts: whether a message that the device sends can raise only this device's own interrupts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The verdict.
    pub verdict: Verdict,
    /// The facts that led to it, as sentences, in the order in which they were weighed.
    pub evidence: Vec<String>,
}

impl Isolation {
    /// Returns the verdict for devices that can reach only eventfds: vfio-user servers and models.
    pub fn by_construction() -> Self {
        Self {
            verdict: Verdict::Isolated,
            evidence: vec!["the device can only signal eventfds that it was given".to_owned()],
        }
    }
}

/// The verdict of [`Isolation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An overwritten table entry can disturb only this device's own interrupts.
    Isolated,
    /// Nothing says so, and nothing says otherwise.
    Unknown,
    /// An overwritten table entry can raise any interrupt of the machine.
    NotIsolated,
}
