//! The seam: a PCI function as VFIO describes one.
//!
//! Three kinds of device stand behind [`PciDevice`]: a function opened through the kernel's VFIO, a vfio-user server on a
//! socket, and a [model](crate::model) in this process. Everything here is cold, so it is `dyn`; what is hot (doorbells,
//! rings, buffers) is a pointer obtained once through it.
//!
//! This file does *not* know how to plan a BAR ([`crate::bar`]) or how memory is laid out ([`crate::mem`]).

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

/// Region index of BAR0; BAR `n` is region `n` (`VFIO_PCI_BAR0_REGION_INDEX`).
pub const BAR0: u32 = 0;
/// Region index of the expansion ROM.
pub const ROM: u32 = 6;
/// Region index of configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
pub const CONFIG: u32 = 7;

/// Interrupt index of INTx (`VFIO_PCI_INTX_IRQ_INDEX`).
pub const IRQ_INTX: u32 = 0;
/// Interrupt index of MSI.
pub const IRQ_MSI: u32 = 1;
/// Interrupt index of MSI-X.
pub const IRQ_MSIX: u32 = 2;
/// Interrupt index of error reporting (AER).
pub const IRQ_ERR: u32 = 3;
/// Interrupt index of the kernel's request to give the device back.
pub const IRQ_REQ: u32 = 4;

/// A PCI function as VFIO describes one: regions, interrupts, DMA, reset.
///
/// All methods may be called from any thread. None of them belongs on a hot path.
pub trait PciDevice: Send + Sync {
    /// What a person calls this device: `0000:01:00.0`, `vfio-user:/run/x.sock`, `sim:nvme,size=1G`.
    fn name(&self) -> &str;

    /// What stands behind the seam; decides how figures measured on it may be presented.
    fn kind(&self) -> DeviceKind;

    /// How many regions and interrupt kinds there are, and whether [`reset`](Self::reset) can work.
    fn info(&self) -> DeviceInfo;

    /// The granularity by which regions are mapped: the host's page, or a model's pretended larger one.
    fn page_size(&self) -> PageSize;

    /// Whether the device's interrupts are isolated from the rest of the machine, with the evidence.
    fn isolation(&self) -> Isolation;

    /// Size, flags and capabilities of region `index`. A region that isn't implemented has size 0.
    fn region(&self, index: u32) -> Result<RegionInfo>;

    /// Reads `buf.len()` bytes at `offset` by message or system call (never by mapping). Register reads are 1, 2, 4 or 8
    /// bytes, naturally aligned, and arrive at the device as one access of that width where the backend can.
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` at `offset` by message or system call; the counterpart of [`read`](Self::read).
    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()>;

    /// Maps a page-aligned range of a region (its end may be the region's end instead): exactly that, or more at its end.
    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping>;

    /// How many interrupts of kind `index` there are and what can be done with them.
    fn irq_info(&self, index: u32) -> Result<IrqInfo>;

    /// Configures interrupts `first..` of kind `index`.
    fn set_irqs(&self, index: u32, first: u32, action: IrqAction<'_>) -> Result<()>;

    /// The address space this device's DMA goes through: one object a container, IOAS or peer, so that the identity of the
    /// `Arc` tells who shares it.
    fn dma(&self) -> Arc<DmaSpace>;

    /// What is counted of the device on the other side of the seam, by name: by a model in this process. Others tell what they count by registers alone.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// A driver begins to open the device, or has opened it ([`Opening`]). A backend whose answers somebody else gives bounds what all of them take
    /// until then together.
    fn opening(&self, begins: bool) {
        let _ = begins;
    }

    /// Function-level reset (or the nearest there is). Mappings survive it; their pages may fault in again on the next touch.
    fn reset(&self) -> Result<()>;
}

/// What stands behind a [`PciDevice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A PCI function through the kernel's VFIO (which may itself be emulated, in a guest).
    Kernel,
    /// A vfio-user server on a Unix socket: always software.
    VfioUser,
    /// A model in this process.
    Model,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel VFIO",
            Self::VfioUser => "vfio-user",
            Self::Model => "model",
        })
    }
}

/// How many regions and interrupt kinds a device has (`VFIO_DEVICE_GET_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of region indexes; 9 for PCI.
    pub regions: u32,
    /// Number of interrupt indexes; 5 for PCI.
    pub irqs: u32,
    /// Whether [`PciDevice::reset`] can work.
    pub resettable: bool,
}

/// One region's size, flags and capabilities (`VFIO_DEVICE_GET_REGION_INFO`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 where the region isn't implemented.
    pub size: u64,
    /// Readable by [`PciDevice::read`].
    pub readable: bool,
    /// Writable by [`PciDevice::write`].
    pub writable: bool,
    /// Some of it can be mapped.
    pub mappable: bool,
    /// The capability chain; unknown ones are kept by number.
    pub caps: Vec<RegionCap>,
}

impl RegionInfo {
    /// Whether the backend says that the pages holding the MSI-X table may be mapped.
    pub fn msix_mappable(&self) -> bool {
        self.caps.contains(&RegionCap::MsixMappable)
    }

    /// The sparse areas, if only parts can be mapped.
    pub fn sparse(&self) -> Option<&[Range<u64>]> {
        self.caps.iter().find_map(|c| match c {
            RegionCap::SparseMmap(areas) => Some(&areas[..]),
            _ => None,
        })
    }
}

/// One capability of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegionCap {
    /// Only these areas can be mapped (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
    SparseMmap(Vec<Range<u64>>),
    /// The pages that hold the MSI-X table can be mapped too (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`). It says that mmap will
    /// not be refused, *not* that interrupts are isolated.
    MsixMappable,
    /// A capability this framework does not know, by its id.
    Other(u16),
}

/// One interrupt kind (`VFIO_DEVICE_GET_IRQ_INFO`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors; 0 where the kind isn't implemented.
    pub count: u32,
    /// Can signal eventfds.
    pub eventfd: bool,
    /// Can be masked.
    pub maskable: bool,
    /// Vectors can be added to an enabled set (`VFIO_IRQ_INFO_NORESIZE` is clear).
    pub resizable: bool,
}

/// What [`PciDevice::set_irqs`] shall do.
#[derive(Debug, Clone, Copy)]
pub enum IrqAction<'a> {
    /// Signal these eventfds, one a vector; `None` takes a vector's eventfd away.
    Fds(&'a [Option<BorrowedFd<'a>>]),
    /// Disable the whole kind.
    Disable,
    /// Mask so many vectors.
    Mask(u32),
    /// Unmask so many vectors.
    Unmask(u32),
    /// Raise so many vectors in software, as a loopback test.
    Trigger(u32),
}

/// How a region is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prot {
    /// Reads only: a store dies by SIGSEGV.
    Read,
    /// Reads and stores.
    ReadWrite,
}

/// Whether the platform keeps a device's interrupts from reaching anyone else, and how we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The verdict.
    pub verdict: Verdict,
    /// Sentences, each a fact that was read, in the order they were weighed.
    pub evidence: Vec<String>,
}

impl Isolation {
    /// The verdict of anything that can reach only eventfds: vfio-user servers and models.
    pub fn by_construction() -> Self {
        Self {
            verdict: Verdict::Isolated,
            evidence: vec!["the device can only signal eventfds that it was given".to_owned()],
        }
    }
}

/// What [`Isolation`] comes down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A scribbled table entry can only disturb this device's own interrupts.
    Isolated,
    /// Nothing says so, nothing says otherwise.
    Unknown,
    /// A scribbled table entry can raise any interrupt of the machine.
    NotIsolated,
}
