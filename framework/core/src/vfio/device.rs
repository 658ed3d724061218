//! An open device: regions, interrupts, reset, over its descriptor.
//!
//! Accesses are one `pread` or `pwrite` each, of exactly the width asked for. Nothing is retried, and every error is told.

use super::ioctl;
use super::iommu::{Iommu, Target, hot_reset, hot_reset_groups};
use super::isolation::corroborate;
use super::{caps, sysfs::Sysfs};
use crate::irq::EventFd;
use crate::mem::{DmaSpace, Mapping};
use crate::pci::{
    Address, CONFIG, DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, RegionInfo,
    RegionMapping, Verdict, config, function,
};
use crate::{Error, PageSize, Result};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vfio_bindings::bindings::vfio::*;

/// A PCI function that is open through the kernel's VFIO; closed on drop.
///
/// Closing one that has vanished takes the kernel more than a minute, where no hotplug driver has been told that it is gone: it resets a function
/// that is closed, and waits for it to answer (`pci_dev_wait`, called by `vfio_pci_core_disable`; 77 s on Linux 6.12). It isn't so where the device
/// is back by then.
pub struct Vfio {
    /// Closed before what it is attached to.
    device: OwnedFd,
    name: String,
    address: Address,
    info: DeviceInfo,
    function_reset: bool,
    /// By index; `None` where the kernel knows none of that index.
    regions: Vec<Option<Region>>,
    irqs: Vec<IrqInfo>,
    isolation: Isolation,
    /// Raised when a mapped page is taken away, or the device answers nothing any more.
    gone: Arc<AtomicBool>,
    space: Arc<DmaSpace>,
    iommu: Arc<dyn Iommu>,
}

struct Region {
    info: RegionInfo,
    /// Where it is in the device's descriptor.
    offset: u64,
}

impl Vfio {
    /// Opens the target in `iommu`, unless someone did (`opened`), and asks what it is.
    pub(super) fn start(
        target: &Target,
        space: Arc<DmaSpace>,
        iommu: Arc<dyn Iommu>,
        opened: Option<OwnedFd>,
    ) -> Result<Arc<Self>> {
        let device = match opened {
            Some(device) => device,
            None => iommu.open(target)?,
        };
        // What a space can map is known when a device is in it, and each further group may take some of it away.
        space.refresh()?;
        let failed = |what, e| target.failed(what, e, "that is not a device of VFIO's");
        let info = ioctl::device_info(device.as_fd()).map_err(|e| failed("asking what it is", e))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 || info.num_regions <= CONFIG {
            return Err(target.refused("it is not a PCI function", "this framework drives PCI functions"));
        }
        let regions = (0..info.num_regions).map(|index| region(device.as_fd(), index)).collect();
        let irqs = (0..info.num_irqs).map(|index| irq(device.as_fd(), index)).collect();
        let function_reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let resettable = function_reset || hot_reset_groups(device.as_fd(), iommu.as_ref()).is_ok();
        let info = DeviceInfo { regions: info.num_regions, irqs: info.num_irqs, resettable };
        let isolation = iommu.attachment().isolation(target);
        let (name, address) = (target.name.clone(), target.address);
        let gone = Arc::default();
        let mut new =
            Self { device, name, address, info, function_reset, regions, irqs, isolation, gone, space, iommu };
        // A touch of a BAR that is not decoded would be a fault.
        config::enable_memory(&new, true)?;
        if new.isolation.verdict == Verdict::Unknown {
            new.corroborate(&target.sysfs);
        }
        Ok(Arc::new(new))
    }

    /// Returns the function's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Returns the function's IOMMU group, which sysfs is asked for; `None` where it does not show one.
    pub fn group(&self) -> Option<u32> {
        Sysfs::default().function(self.address)?.group()
    }

    /// Returns whether the device is gone. Every later call returns [`Error::Gone`] then, except reads of configuration space. One load.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Makes sure that a reset can end.
    fn before_reset(&self) -> Result<()> {
        self.alive()?;
        if self.answers_nothing() {
            // The kernel would wait a minute for it.
            return Err(self.vanished());
        }
        // The kernel writes the MSI-X table again after a reset, and expects that to be decoded: on POWER the write is a machine check else.
        config::enable_memory(self, true)
    }

    /// Enables one vector for a moment: only then does sysfs say which chip delivers it.
    fn corroborate(&mut self, sysfs: &Sysfs) {
        let kind =
            [Irq::Msix, Irq::Msi].into_iter().find(|kind| self.irqs.get(*kind as usize).is_some_and(|i| i.count > 0));
        let (Some(kind), Ok(fd)) = (kind, EventFd::new()) else { return };
        if self.set_irqs(kind, 0, IrqAction::Fds(&[Some(fd.as_fd())])).is_err() {
            return;
        }
        let chips = sysfs.function(self.address).map(|f| f.message_interrupts()).unwrap_or_default();
        if let Err(error) = self.set_irqs(kind, 0, IrqAction::Disable) {
            tracing::warn!(device = self.name, %error, "a vector stays enabled");
        }
        self.isolation = corroborate(self.isolation.clone(), &chips);
    }

    fn alive(&self) -> Result<()> {
        if self.is_gone() { Err(self.lost("a mapped page was taken away, or it answered nothing")) } else { Ok(()) }
    }

    fn vanished(&self) -> Error {
        self.gone.store(true, Ordering::Relaxed);
        self.lost("its configuration space reads all ones, or the kernel knows it no more")
    }

    fn lost(&self, why: &str) -> Error {
        Error::Gone { device: self.name.clone(), why: why.to_owned() }
    }

    fn known(&self, region: u32) -> Result<&Region> {
        let known = self.regions.get(region as usize).and_then(Option::as_ref);
        known.ok_or_else(|| Error::NoSuchRegion { device: self.name.clone(), region })
    }

    /// Where in the descriptor an access goes.
    fn at(&self, region: u32, offset: u64, len: usize) -> Result<u64> {
        let known = self.known(region)?;
        let (len, size) = (len as u64, known.info.size);
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(known.offset + offset),
            _ => Err(Error::OutOfRange { what: "region", offset, len, size }),
        }
    }

    /// What an access came to: all of it, or an error.
    fn accessed(&self, op: &'static str, region: u32, offset: u64, len: usize, done: io::Result<usize>) -> Result<()> {
        let source = match done {
            Ok(n) if n == len => return Ok(()),
            Ok(n) => io::Error::other(format!("{n} of {len} bytes")),
            Err(e) => e,
        };
        if source.raw_os_error() == Some(libc::ENODEV) || self.answers_nothing() {
            return Err(self.vanished());
        }
        Err(Error::Access { device: self.name.clone(), op, region, offset, len: len as u64, cause: source })
    }

    /// [`function::is_absent`], past [`read`](PciDevice::read), which asks this when an access failed.
    fn answers_nothing(&self) -> bool {
        let mut class = [0; 4];
        let Ok(config) = self.known(CONFIG) else { return false };
        let at = config.offset + function::CLASS;
        matches!(rustix::io::pread(&self.device, &mut class, at), Ok(4)) && class == function::NOBODY
    }

    fn system_error(&self, what: &str, source: io::Error) -> Error {
        if source.raw_os_error() == Some(libc::ENODEV) {
            return self.vanished();
        }
        Error::Io { what: format!("{}: {what}", self.name), cause: source }
    }
}

/// What the kernel says of a region; `None` where it knows none of that index (VGA's, of what is no VGA).
fn region(device: BorrowedFd<'_>, index: u32) -> Option<Region> {
    let answer = ioctl::region_info(device, index).ok()?;
    let flag = |flag| answer.head.flags & flag != 0;
    let info = RegionInfo {
        size: answer.head.size,
        readable: flag(VFIO_REGION_INFO_FLAG_READ),
        writable: flag(VFIO_REGION_INFO_FLAG_WRITE),
        mappable: flag(VFIO_REGION_INFO_FLAG_MMAP),
        caps: caps::of_region(&answer),
    };
    Some(Region { info, offset: answer.head.offset })
}

/// What the kernel says of an interrupt kind; none where it doesn't know it.
fn irq(device: BorrowedFd<'_>, index: u32) -> IrqInfo {
    let Ok(info) = ioctl::irq_info(device, index) else { return IrqInfo::default() };
    IrqInfo {
        count: info.count,
        eventfd: info.flags & VFIO_IRQ_INFO_EVENTFD != 0,
        maskable: info.flags & VFIO_IRQ_INFO_MASKABLE != 0,
        resizable: info.flags & VFIO_IRQ_INFO_NORESIZE == 0,
    }
}

impl PciDevice for Vfio {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Kernel
    }

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn page_size(&self) -> PageSize {
        PageSize::host()
    }

    fn isolation(&self) -> Isolation {
        self.isolation.clone()
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        match self.regions.get(index as usize) {
            Some(Some(region)) => Ok(region.info.clone()),
            Some(None) => Ok(RegionInfo::default()),
            None => Err(Error::NoSuchRegion { device: self.name.clone(), region: index }),
        }
    }

    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        // Configuration space is there to be read when all else is given up: by it one knows whether the function can still write memory.
        if region != CONFIG {
            self.alive()?;
        }
        let (at, len) = (self.at(region, offset, buf.len())?, buf.len());
        let done = rustix::io::pread(&self.device, buf, at).map_err(io::Error::from);
        self.accessed("read", region, offset, len, done)
    }

    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        self.alive()?;
        let at = self.at(region, offset, buf.len())?;
        let done = rustix::io::pwrite(&self.device, buf, at).map_err(io::Error::from);
        self.accessed("write", region, offset, buf.len(), done)
    }

    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        self.alive()?;
        let known = self.known(region)?;
        let (page, size) = (PageSize::host(), known.info.size);
        let len = range.end.saturating_sub(range.start);
        let refused = |why| Error::NotMappable { device: self.name.clone(), region, offset: range.start, len, why };
        if !known.info.mappable {
            return Err(refused(
                "the kernel does not let it be mapped (a BAR smaller than a page must have that page for itself)",
            ));
        }
        if range.is_empty() || page.floor(range.start) != range.start || range.end > size {
            return Err(refused("not whole pages of it"));
        }
        let mapping = Mapping::of_fd(self.device.as_fd(), known.offset + range.start, len as usize, prot)?;
        RegionMapping::new(mapping.of_device(), self, region, range.start)?.guarded(self.gone.clone())
    }

    fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
        let missing = || Error::NoSuchIrq { device: self.name.clone(), kind, vector: 0, count: 0 };
        self.irqs.get(kind as usize).copied().ok_or_else(missing)
    }

    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
        self.alive()?;
        let (index, have) = (kind.index(), self.irq_info(kind)?.count);
        let check = |n: u32| match first.checked_add(n) {
            Some(end) if end <= have => Ok(n),
            end => {
                let vector = end.map_or(u32::MAX, |end| end.saturating_sub(1));
                Err(Error::NoSuchIrq { device: self.name.clone(), kind, vector, count: have })
            }
        };
        let device = self.device.as_fd();
        let (what, done) = match action {
            IrqAction::Fds(fds) => {
                check(u32::try_from(fds.len()).unwrap_or(u32::MAX))?;
                ("enabling", ioctl::set_irq_fds(device, index, first, fds))
            }
            IrqAction::Disable => {
                ("disabling", ioctl::set_irq_action(device, VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0))
            }
            IrqAction::Mask(n) => {
                ("masking", ioctl::set_irq_action(device, VFIO_IRQ_SET_ACTION_MASK, index, first, check(n)?))
            }
            IrqAction::Unmask(n) => {
                ("unmasking", ioctl::set_irq_action(device, VFIO_IRQ_SET_ACTION_UNMASK, index, first, check(n)?))
            }
            IrqAction::Trigger(n) => {
                ("triggering", ioctl::set_irq_action(device, VFIO_IRQ_SET_ACTION_TRIGGER, index, first, check(n)?))
            }
        };
        done.map_err(|e| self.system_error(&format!("{what} {kind} interrupts from {first} on"), e))
    }

    fn dma(&self) -> Arc<DmaSpace> {
        self.space.clone()
    }

    /// Function-level reset; where the function has none, all of its slot or bus is reset, if all of that is ours.
    fn reset(&self) -> Result<()> {
        self.before_reset()?;
        let done = match self.function_reset {
            true => ioctl::reset(self.device.as_fd()),
            false => hot_reset(self.device.as_fd(), self.iommu.as_ref()),
        };
        done.map_err(|e| self.system_error("reset", e))
    }

    fn reset_slot(&self) -> Result<()> {
        self.before_reset()?;
        if let Err(error) = hot_reset_groups(self.device.as_fd(), self.iommu.as_ref()) {
            return Err(Error::NoSlotReset { device: self.name.clone(), why: error.to_string() });
        }
        let done = hot_reset(self.device.as_fd(), self.iommu.as_ref());
        done.map_err(|e| match e.raw_os_error() {
            // `pci_bridge_wait_for_secondary_bus`.
            Some(libc::ENOTTY) => {
                self.system_error("reset of its slot: Linux did not see the port's link up again (dmesg says more)", e)
            }
            _ => self.system_error("reset of its slot", e),
        })
    }
}

impl fmt::Debug for Vfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vfio").field("name", &self.name).field("info", &self.info).finish_non_exhaustive()
    }
}
