//! A PCI function as some source tells of it: the facts that decide what of its BARs can be mapped, and what could not be read.
//!
//! Every source (a device that was opened, sysfs, the text of `lspci`) ends here, so that one planner, one strip and one JSON serve all.

use std::ops::RangeInclusive;
use wholebar_core::PageSize;
use wholebar_core::pci::config::{BarKind, Msix};
use wholebar_core::pci::{Address, DeviceKind, Isolation, RegionInfo};

/// All functions that a source tells of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// In the order of the source.
    pub functions: Vec<Function>,
    /// What could not be read, or makes no sense, of the source as a whole.
    pub notes: Vec<String>,
    /// The page size of the machine the functions are in, where the source says.
    pub page: Option<PageSize>,
    /// The source may leave out what is there, as text may: a BAR that it doesn't tell of is not in the source, and may be in the device.
    pub partial: bool,
    /// Whether the source tells of several machines: who is whose neighbour isn't known.
    pub mixed: bool,
    /// What [`Auto`](wholebar_core::bar::MapPolicy::Auto) comes to where an MSI-X table may be mapped, and why, where the source lets that be known.
    pub auto: Option<&'static str>,
}

/// One PCI function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Function {
    /// What the source calls it: `0000:01:00.0`, `sim:nvme`.
    pub name: String,
    /// Where it is, if it has an address.
    pub address: Option<Address>,
    /// What a person would call it, without its address, where the source says.
    pub title: Option<String>,
    /// Its numbers.
    pub ids: Ids,
    /// The kernel's driver that has it.
    pub driver: Option<String>,
    /// Its BARs, by number. Those that are not implemented are left out.
    pub bars: Vec<Bar>,
    /// Its expansion ROM.
    pub rom: Option<Place>,
    /// Its MSI-X capability.
    pub msix: MsixFact,
    /// Its SR-IOV capability.
    pub sriov: Option<Sriov>,
    /// Virtio: where its notifications are.
    pub notify: Option<Notify>,
    /// NVMe: how far apart its doorbells are, in bytes (4 << CAP.DSTRD), where that was read.
    pub doorbell_stride: Option<u64>,
    /// What a backend says that has it open.
    pub open: Option<Open>,
    /// What could not be read, or makes no sense: a sentence each.
    pub notes: Vec<String>,
}

/// Who made a function, and what it is. `None` where the source doesn't say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ids {
    /// The vendor.
    pub vendor: Option<u16>,
    /// Which of the vendor's devices it is.
    pub device: Option<u16>,
    /// Base class and sub-class: 0x0108 is non-volatile memory.
    pub class: Option<u16>,
    /// The programming interface: 2 of 0x0108 is NVMe.
    pub interface: Option<u8>,
}

/// A range of the machine's physical addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Its first address; `None` where nothing is assigned, or the source doesn't say.
    pub address: Option<u64>,
    /// Bytes; `None` where the source doesn't say.
    pub size: Option<u64>,
}

impl Place {
    /// The addresses, if both address and size are known.
    pub fn range(&self) -> Option<RangeInclusive<u64>> {
        let (address, size) = (self.address?, self.size.filter(|size| *size > 0)?);
        Some(address..=address.checked_add(size - 1)?)
    }
}

/// One BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Where, and how large.
    pub place: Place,
    /// Decoding is switched off.
    pub disabled: bool,
    /// The device's own register reads 0, and its place is what the system says (`[virtual]` of `lspci`): so of SR-IOV's virtual functions, of a
    /// device that forgot it (reset, asleep), and where the bus has it at address 0.
    pub hidden: bool,
    /// Why it has no address, where the source says.
    pub unplaced: Option<Unplaced>,
    /// What the backend says that has the function open.
    pub region: Option<RegionInfo>,
}

/// Why a BAR has no address, in `lspci`'s words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unplaced {
    /// Neither the system nor the device's register has one.
    Unassigned,
    /// The register holds something, and the system made nothing of it.
    Ignored,
    /// The last register there is says that it is the first half of two.
    Broken,
}

impl Unplaced {
    /// As `lspci` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unassigned => "<unassigned>",
            Self::Ignored => "<ignored>",
            Self::Broken => "<broken-64-bit-slot>",
        }
    }
}

impl Bar {
    /// Whether it is memory: I/O ports are never mapped.
    pub fn is_memory(&self) -> bool {
        matches!(self.kind, BarKind::Memory { .. })
    }
}

/// What a source says of MSI-X.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MsixFact {
    /// The function has none.
    #[default]
    Absent,
    /// It has this.
    Present(Msix),
    /// The source cannot tell, and why.
    Unknown(String),
}

impl MsixFact {
    /// The capability, if there is one.
    pub fn present(&self) -> Option<&Msix> {
        match self {
            Self::Present(msix) => Some(msix),
            _ => None,
        }
    }
}

/// The SR-IOV capability (PCI Express Base 6.0, 9.3.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sriov {
    /// How many virtual functions there can be.
    pub total: u16,
    /// How many there are.
    pub enabled: u16,
    /// From the function's own address to its first virtual function's.
    pub offset: u16,
    /// From one virtual function's address to the next one's.
    pub stride: u16,
    /// The page sizes that BARs of virtual functions can be aligned to: bit n is 4 KiB << n.
    pub supported_pages: Option<u32>,
    /// The BARs of the virtual functions: where the first one's is, and how large each one's, where the source says.
    pub bars: Vec<Bar>,
}

impl Sriov {
    /// What Linux aligns the BARs of virtual functions to on a host with pages of `page`: the smallest size the device supports that is
    /// no smaller. `None` where there is none, or the source doesn't say.
    pub fn page_on(&self, page: PageSize) -> Option<u64> {
        let supported = self.supported_pages?;
        let sizes = (0..32).filter(|bit| supported >> bit & 1 != 0).map(|bit| 4096u64 << bit);
        sizes.into_iter().find(|size| *size >= page.bytes())
    }
}

/// Virtio's notification structure (Virtual I/O Device 1.2, 4.1.4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notify {
    /// The BAR that holds it.
    pub bar: u8,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// From one queue's notification to the next one's, in bytes; 0: all queues have the same.
    pub multiplier: u32,
}

/// What a backend says of a function that it has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// What stands behind it.
    pub kind: DeviceKind,
    /// The granularity by which its regions are mapped.
    pub page: PageSize,
    /// Whether its interrupts are isolated, and how that is known.
    pub isolation: Isolation,
}
