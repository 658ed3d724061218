//! No IOMMU: devices see physical addresses, which `/proc/self/pagemap` tells (to who has CAP_SYS_ADMIN).
//!
//! Nothing keeps a device, or a bug in its driver, from any other memory. Nothing pins pages either, so only hugepages will do: Linux does not
//! move those. An arena must be one piece of physical memory, since it has one device address.

use super::container::Container;
use super::iommu::Target;
use crate::mem::{Arena, DmaBackend, Iova, IovaWindow, Source};
use crate::{Error, PageSize, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) struct Physical {
    /// Keeps the device's group attached.
    _container: Arc<Container>,
    pagemap: File,
}

impl Physical {
    pub(super) fn new(target: &Target, container: Arc<Container>) -> Result<Self> {
        tracing::warn!(
            device = target.name,
            "no IOMMU: this device can reach all of memory, and its interrupts are not isolated; a bug can overwrite anything"
        );
        let pagemap = File::open(target.sysfs.path("proc/self/pagemap")).map_err(|e| {
            target.failed("opening /proc/self/pagemap", e, "it tells the addresses that the device must know")
        })?;
        Ok(Self { _container: container, pagemap })
    }

    /// The physical address of the page at `address`.
    fn page(&self, address: u64) -> Result<u64, String> {
        // Documentation/admin-guide/mm/pagemap.rst: 8 bytes a page; bit 63 present, bits 0 to 54 the frame's number, which is 0 to
        // those who may not know.
        let page = PageSize::host().bytes();
        let mut entry = [0; 8];
        self.pagemap
            .read_exact_at(&mut entry, address / page * 8)
            .map_err(|e: io::Error| format!("/proc/self/pagemap: {e}"))?;
        let entry = u64::from_ne_bytes(entry);
        match entry & ((1 << 55) - 1) {
            _ if entry >> 63 == 0 => Err("it is not in memory".to_owned()),
            0 => Err("/proc/self/pagemap tells it to root alone (CAP_SYS_ADMIN)".to_owned()),
            frame => Ok(frame * page),
        }
    }
}

impl DmaBackend for Physical {
    fn windows(&self) -> Vec<IovaWindow> {
        Vec::new()
    }

    fn max_maps(&self) -> Option<usize> {
        None
    }

    fn map(&self, _: Arc<Arena>, _: Iova) -> Result<()> {
        Ok(())
    }

    fn unmap(&self, _: Iova, _: u64) -> Result<()> {
        Ok(())
    }

    fn fixed(&self, arena: &Arena) -> Result<Option<Iova>> {
        let len = arena.len();
        let failed = |why| Error::Physical { len, why };
        if !matches!(arena.source(), Source::HugeFile | Source::HugeAnonymous) {
            let why = "it is not made of hugepages, and plain pages move: set some aside (nr_hugepages; `wholebar doctor` says how)";
            return Err(failed(why.to_owned()));
        }
        let base = arena.mapping().base().as_ptr().addr() as u64;
        let start = self.page(base).map_err(failed)?;
        for offset in (0..len).step_by(PageSize::host().bytes() as usize) {
            let at = self.page(base + offset).map_err(failed)?;
            if at != start + offset {
                let why = format!(
                    "its hugepages lie apart ({start:#x}, and {at:#x} at {offset:#x}): use arenas of one hugepage, or larger hugepages"
                );
                return Err(failed(why));
            }
        }
        Ok(Some(Iova(start)))
    }
}
