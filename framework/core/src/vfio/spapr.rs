//! Maps in an sPAPR TCE container: POWER, where a hypervisor (or firmware) owns the IOMMU's tables.
//!
//! There is a 32-bit window to start with, 1 GiB or 2 at address 0 in units of 4 KiB. Version 2 can make a second one, far up, with larger
//! pages; memory is registered (pinned) before it is mapped. Version 1 has the first window alone, and all of it counts as locked
//! from the start.

use super::container::Container;
use super::iommu::{Target, dma_error, unmapped};
use super::{IommuType, ioctl};
use crate::mem::{Arena, DmaBackend, Iova, IovaWindow};
use crate::{PageSize, Result};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use vfio_bindings::bindings::vfio::*;

/// The second window has at most so many entries: 8 bytes each in the kernel, and seconds to tear down where there are many more.
const MOST_ENTRIES: u64 = 1 << 20;

pub(super) struct Tce {
    container: Arc<Container>,
    windows: Vec<IovaWindow>,
    /// Version 2: what is registered, by the device address it is mapped at. `None` in version 1.
    registered: Option<Mutex<BTreeMap<u64, (u64, u64)>>>,
}

impl Tce {
    pub(super) fn new(target: &Target, container: Arc<Container>) -> Result<Self> {
        let fd = container.fd();
        let info = ioctl::tce_info(fd)
            .map_err(|e| target.failed("asking what the IOMMU can map", e, "the kernel log says more: `dmesg`"))?;
        let start = u64::from(info.dma32_window_start);
        let mut windows = Vec::new();
        if info.dma32_window_size > 0 {
            let end = start + u64::from(info.dma32_window_size) - 1;
            windows.push(IovaWindow { range: start..=end, page: PageSize::K4 });
        }
        let second = container.iommu() == IommuType::TceV2;
        if second {
            // First in line: it is larger, and so are its pages.
            match second_window(&container, &info) {
                Ok(window) => windows.insert(0, window),
                Err(error) => {
                    tracing::info!(device = target.name, %error, "no second DMA window; the 32-bit one has to do")
                }
            }
        } else {
            ioctl::tce_enable(fd).map_err(|e| {
                let bytes = u64::from(info.dma32_window_size);
                let advice =
                    format!("all {} KiB of the window count as locked memory: `ulimit -l unlimited`", bytes >> 10);
                target.failed("enabling the IOMMU", e, advice)
            })?;
        }
        Ok(Self { container, windows, registered: second.then(Mutex::default) })
    }
}

/// Makes the second window: as large as memory (up to [`MOST_ENTRIES`]), in the largest pages that any memory here comes in.
fn second_window(container: &Container, info: &vfio_iommu_spapr_tce_info) -> io::Result<IovaWindow> {
    let none = || io::Error::other("the hypervisor offers none");
    if info.flags & VFIO_IOMMU_SPAPR_INFO_DDW == 0 || info.ddw.max_dynamic_windows_supported == 0 {
        return Err(none());
    }
    let page = largest_page(info.ddw.pgsizes, PageSize::host()).ok_or_else(none)?;
    let memory = rustix::system::sysinfo();
    let bytes = u64::from(memory.mem_unit).saturating_mul(memory.totalram as u64);
    let size = window_size(bytes, page);
    // One level of tables is the fastest; a large window may need more.
    let levels = info.ddw.levels.max(1);
    let made = ioctl::tce_create(container.fd(), page.bytes().trailing_zeros(), size, 1);
    let start = match made {
        Err(_) if levels > 1 => ioctl::tce_create(container.fd(), page.bytes().trailing_zeros(), size, levels)?,
        made => made?,
    };
    Ok(IovaWindow { range: start..=start + (size - 1), page })
}

/// The largest page of a bit mask of sizes that is not larger than `most`.
fn largest_page(sizes: u64, most: PageSize) -> Option<PageSize> {
    let fitting = sizes & (most.bytes() | (most.bytes() - 1));
    PageSize::new(1u64.checked_shl(63u32.checked_sub(fitting.leading_zeros())?)?).ok()
}

/// How large a second window is where there are `memory` bytes: a power of two, as the kernel wants it.
fn window_size(memory: u64, page: PageSize) -> u64 {
    let most = page.bytes() * MOST_ENTRIES;
    memory.max(page.bytes()).checked_next_power_of_two().map_or(most, |size| size.min(most))
}

impl DmaBackend for Tce {
    fn windows(&self) -> Vec<IovaWindow> {
        self.windows.clone()
    }

    fn max_maps(&self) -> Option<usize> {
        None
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        let (fd, len) = (self.container.fd(), arena.len());
        let failed = |e| dma_error("map", iova, len, e);
        let Some(registered) = &self.registered else { return ioctl::map_dma(fd, &arena, iova).map_err(failed) };
        ioctl::register_memory(fd, &arena).map_err(failed)?;
        let address = arena.mapping().base().as_ptr().addr() as u64;
        if let Err(e) = ioctl::map_dma(fd, &arena, iova) {
            let _ = ioctl::unregister_memory(fd, address, len);
            return Err(failed(e));
        }
        registered.lock().unwrap_or_else(|e| e.into_inner()).insert(iova.0, (address, len));
        Ok(())
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        let fd = self.container.fd();
        unmapped(iova, len, ioctl::unmap_dma(fd, iova, len))?;
        let Some(registered) = &self.registered else { return Ok(()) };
        let known = registered.lock().unwrap_or_else(|e| e.into_inner()).remove(&iova.0);
        match known {
            Some((address, len)) => {
                ioctl::unregister_memory(fd, address, len).map_err(|e| dma_error("unmap", iova, len, e))
            }
            None => Ok(()),
        }
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_second_window() {
        let offered = 1 << 12 | 1 << 16 | 1 << 24;
        for (most, page) in [(PageSize::K4, 1 << 12), (PageSize::K16, 1 << 12), (PageSize::K64, 1 << 16)] {
            assert_eq!(largest_page(offered, most).map(PageSize::bytes), Some(page));
        }
        assert_eq!(largest_page(offered, PageSize::new(1 << 30).unwrap()).map(PageSize::bytes), Some(1 << 24));
        assert_eq!(largest_page(1 << 24, PageSize::K64), None, "memory does not come in such pages");
        assert_eq!(largest_page(0, PageSize::K64), None);
    }

    #[test]
    fn sizes_of_the_second_window() {
        for (memory, page, size) in [
            (3 << 30, PageSize::K64, 4 << 30),
            (4 << 30, PageSize::K64, 4 << 30),
            (1 << 40, PageSize::K64, 64 << 30),
            (64 << 30, PageSize::K4, 4 << 30),
            (u64::MAX, PageSize::K4, 4 << 30),
            (0, PageSize::K4, 4096),
        ] {
            assert_eq!(window_size(memory, page), size, "{memory:#x} {page}");
        }
    }
}
