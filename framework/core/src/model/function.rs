//! A model with its memory and interrupts: the part that the in-process backend and the vfio-user server have in common.

#[cfg(feature = "vhost-user")]
use super::dma::Dma;
use super::dma::DmaTable;
use super::host::{Host, Irqs, OwnMemory};
use super::pages::{Pages, Trap};
use super::{Model, ModelRegion, Refused, Shape};
use crate::mem::{Arena, Iova, Mapping};
use crate::pci::config::{CapabilityId, Config};
use crate::pci::{CONFIG, Irq, IrqInfo, Prot, RegionCap, RegionInfo};
use crate::reactor::Armed;
use crate::{Result, Work};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A model, the memory that it can reach and the eventfds that it can signal.
pub struct ModelFunction<M: ?Sized> {
    shape: Shape,
    irqs: Irqs,
    dma: DmaTable,
    /// Where pages of the model's own are, by address and length.
    own: Option<(Iova, u64)>,
    /// Where the enable bit of the MSI-X capability is in configuration space, while MSI-X is enabled: the byte whose bit 7 it is.
    msix_enabled: Option<u64>,
    model: M,
}

impl<M: Model> ModelFunction<M> {
    /// Wraps `model`, without memory and eventfds.
    pub fn new(model: M) -> Self {
        let shape = model.shape();
        // The table is words of 32 bits, whoever looks at it first; each vector is masked at first (PCI Express 6.0, 7.7.2.8).
        if let Some(msix) = shape.msix
            && let Some(pages) = shape.regions.get(usize::from(msix.table_bar)).and_then(|r| r.pages.as_ref())
        {
            let table = msix.table();
            for at in (table.start..table.end.min(pages.len())).step_by(4) {
                let is_control = (at - table.start) % 16 == 12;
                if let Some(word) = pages.u32(at) {
                    word.store(u32::from(is_control).to_le(), std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
        let counts: Vec<_> = (0..5).map(|i| shape.irqs.get(i).copied().unwrap_or_default().count).collect();
        Self { irqs: Irqs::new(&counts), dma: DmaTable::default(), own: None, msix_enabled: None, shape, model }
    }

    /// Wraps `model` for a peer that may be hostile, whose eventfds are never waited for.
    pub(crate) fn distrusting(model: M) -> Self {
        let mut function = Self::new(model);
        if let Err(error) = function.irqs.distrust() {
            tracing::warn!(
                %error,
                "no asynchronous I/O can be had from the kernel (sysctl fs.aio-max-nr?): eventfds that may block are refused, and a \
                 client that lies about that can hold this server"
            );
        }
        function
    }
}

impl<M: Model + ?Sized> ModelFunction<M> {
    /// Returns the model's shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns the model.
    pub fn model(&mut self) -> &mut M {
        &mut self.model
    }

    /// Returns the VFIO region info of region `index`; its size is 0 where there is none.
    pub fn region(&self, index: u32) -> RegionInfo {
        let Some(region) = self.shape.regions.get(index as usize).filter(|r| r.size > 0) else {
            return RegionInfo::default();
        };
        let mut info = RegionInfo { size: region.size, readable: true, writable: true, ..RegionInfo::default() };
        info.mappable = region.pages.is_some() && !region.direct.is_empty();
        if info.mappable {
            if region.direct.as_slice() != std::slice::from_ref(&(0..region.size)) {
                info.caps.push(RegionCap::SparseMmap(region.direct.clone()));
            }
            if self.shape.msix.is_some_and(|m| u32::from(m.table_bar) == index) {
                info.caps.push(RegionCap::MsixMappable);
            }
        }
        info
    }

    /// Returns region `index`; `None` where there is none.
    pub fn model_region(&self, index: u32) -> Option<&ModelRegion> {
        self.shape.regions.get(index as usize)
    }

    /// Returns the VFIO interrupt info of kind `index`.
    pub fn irq_info(&self, index: u32) -> IrqInfo {
        self.shape.irqs.get(index as usize).copied().unwrap_or_default()
    }

    /// Reads a region: from its memory where that is direct, else from the model. MSI-X reads as enabled while it is, as the kernel sets that bit.
    ///
    /// # Errors
    /// [`Refused`]: `EINVAL` outside of the region, else the model's.
    pub fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        self.read_model(region, offset, buf)?;
        if region == CONFIG
            && let Some(at) = self.msix_enabled.and_then(|at| at.checked_sub(offset))
            && let Some(byte) = buf.get_mut(at as usize)
        {
            *byte |= 1 << 7;
        }
        Ok(())
    }

    fn read_model(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match self.place(region, offset, buf.len() as u64)? {
            Some(pages) => pages.access(offset, Trap::Read(buf)),
            None => self.model.read(region, offset, buf),
        }
    }

    /// Where the enable bit of MSI-X is: bit 15 of the word at 2 in its capability (PCI Express Base 6.0, 7.7.2.2). None where there is no such capability.
    fn msix_enable_bit(&mut self) -> Option<u64> {
        let mut bytes = vec![0; self.model_region(CONFIG)?.size.min(4096) as usize];
        self.read_model(CONFIG, 0, &mut bytes).ok()?;
        let found = Config::from_bytes(&self.shape.name, bytes).ok()?.find(CapabilityId::MSIX)?;
        Some(u64::from(found.offset) + 3)
    }

    /// Writes a region; the counterpart of [`read`](Self::read). Writes of the MSI-X table and the PBA are dropped, as the kernel does.
    ///
    /// # Errors
    /// [`Refused`]: `EINVAL` outside of the region, else the model's.
    pub fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        let place = self.place(region, offset, buf.len() as u64)?.cloned();
        if self.shape.msix.is_some_and(|m| m.guards(region, offset, buf.len() as u64)) {
            return Ok(());
        }
        match place {
            Some(pages) => pages.access(offset, Trap::Write(buf)),
            None => self.model.write(region, offset, buf),
        }
    }

    fn place(&self, region: u32, offset: u64, len: u64) -> Result<Option<&Arc<Pages>>, Refused> {
        let r = self.shape.regions.get(region as usize).ok_or(Refused(libc::EINVAL))?;
        let end = offset.checked_add(len).filter(|end| *end <= r.size).ok_or(Refused(libc::EINVAL))?;
        Ok(r.pages.as_ref().filter(|_| r.direct.iter().any(|d| d.start <= offset && end <= d.end)))
    }

    /// Whether a peer's descriptor is one to signal: an eventfd, which is not waited for.
    #[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
    pub(crate) fn may_signal(&self, fd: &OwnedFd) -> bool {
        let nonblocking =
            || rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK));
        crate::irq::is_eventfd(fd) && (self.irqs.never_wait() || nonblocking())
    }

    /// Connects vectors `first..` of kind `index` to their eventfds, or disconnects them.
    ///
    /// # Errors
    /// [`Refused`] with `EINVAL` for vectors that do not exist.
    pub fn set_irqs(&mut self, index: u32, first: u32, fds: Vec<Option<OwnedFd>>) -> Result<(), Refused> {
        let count = fds.len() as u32;
        self.irqs.set(index, first, fds).ok_or(Refused(libc::EINVAL))?;
        if index == Irq::Msix.index() {
            self.msix_enabled = self.msix_enable_bit();
            (first..first + count).for_each(|v| self.show_vector(v));
        }
        Ok(())
    }

    /// Disables a kind of interrupt.
    pub fn disable_irqs(&mut self, index: u32) {
        self.irqs.clear(index);
        if index == Irq::Msix.index() {
            self.msix_enabled = None;
            (0..self.irq_info(index).count).for_each(|v| self.show_vector(v));
        }
    }

    /// Masks or unmasks vectors. A vector that is raised while it is masked is signalled when it is unmasked.
    ///
    /// # Errors
    /// [`Refused`]: `ENOTTY` where the kind cannot be masked, `EINVAL` for vectors that do not exist.
    pub fn mask_irqs(&mut self, index: u32, first: u32, count: u32, masked: bool) -> Result<(), Refused> {
        if !self.irq_info(index).maskable {
            return Err(Refused(libc::ENOTTY));
        }
        self.irqs.mask(index, first, count, masked).ok_or(Refused(libc::EINVAL))
    }

    /// Signals vectors by software.
    ///
    /// # Errors
    /// [`Refused`] with `EINVAL` for vectors that do not exist.
    pub fn trigger(&mut self, index: u32, first: u32, count: u32) -> Result<(), Refused> {
        let end = first.checked_add(count).filter(|end| *end <= self.irq_info(index).count);
        let end = end.ok_or(Refused(libc::EINVAL))?;
        (first..end).for_each(|v| self.irqs.signal(index, v));
        Ok(())
    }

    /// Shows a vector in the table, as the kernel's programming of it would.
    fn show_vector(&self, vector: u32) {
        let Some(msix) = self.shape.msix.filter(|m| vector < m.vectors) else { return };
        let Some(pages) = self.model_region(msix.table_bar.into()).and_then(|r| r.pages.as_ref()) else { return };
        let fd = self.irqs.fd(Irq::Msix.index(), vector);
        // An address no platform uses, so that nobody takes a model's table for a machine's; data is the descriptor's number.
        let (address, data, control) = match fd {
            Some(fd) => (0xfee0_0000u32, fd.as_raw_fd() as u32, 0),
            None => (0, 0, 1),
        };
        for (i, word) in [address, 0, data, control].into_iter().enumerate() {
            let at = msix.table_offset.saturating_add(u64::from(vector) * 16 + 4 * i as u64);
            if let Some(cell) = pages.u32(at) {
                cell.store(word.to_le(), std::sync::atomic::Ordering::Release);
            }
        }
    }

    /// Maps memory at `iova` for the model.
    ///
    /// # Errors
    /// [`Refused`] with `EEXIST` where it overlaps another map.
    pub fn dma_map(
        &mut self,
        iova: Iova,
        memory: Arc<Mapping>,
        at: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), Refused> {
        self.dma.map(iova, Some(memory), at, len, writable)
    }

    /// Maps `len` bytes of an arena, from `at` on, for the model.
    ///
    /// # Errors
    /// [`Refused`]: `EEXIST` where they overlap another map, `EINVAL` where they are not inside of the arena.
    pub fn dma_map_arena(
        &mut self,
        iova: Iova,
        arena: Arc<Arena>,
        at: u64,
        len: u64,
        writable: bool,
    ) -> Result<(), Refused> {
        // SAFETY: the arena is kept alive by the mapping, and its memory is reached by atomics alone, or by who holds a buffer.
        let memory = unsafe { Mapping::of_owner(arena.mapping().base(), arena.len() as usize, arena) };
        let memory = memory.limited_to(if writable { Prot::ReadWrite } else { Prot::Read });
        self.dma.map(iova, Some(Arc::new(memory)), at, len, writable)
    }

    /// Maps addresses whose memory cannot be reached from this process: the model's accesses fail, as those of unmapped addresses do.
    ///
    /// # Errors
    /// [`Refused`] with `EEXIST` where they overlap another map.
    pub fn dma_map_unreachable(&mut self, iova: Iova, len: u64) -> Result<(), Refused> {
        self.dma.map(iova, None, 0, len, false)
    }

    /// The memory at `iova`, as the model reaches it; `None` where not all of it is mapped.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn dma(&self, iova: Iova, len: u64) -> Option<Dma<'_>> {
        self.dma.find(iova, len)
    }

    /// Unmaps exactly one map.
    ///
    /// # Errors
    /// [`Refused`] with `ENOENT` where there is no such map.
    pub fn dma_unmap(&mut self, iova: Iova, len: u64) -> Result<(), Refused> {
        self.dma.unmap(iova, len)
    }

    /// Unmaps every map that is inside of a range, and returns their number.
    ///
    /// # Errors
    /// [`Refused`] with `EINVAL` where a map is only partly inside; nothing is unmapped then.
    pub fn dma_unmap_all_in(&mut self, iova: Iova, len: u64) -> Result<usize, Refused> {
        self.dma.unmap_all_in(iova, len)
    }

    /// Unmaps everything.
    pub fn dma_clear(&mut self) {
        self.dma.clear();
    }

    /// Returns the number of maps.
    pub fn dma_count(&self) -> usize {
        self.dma.len()
    }

    /// Returns the maps: address and length of each.
    pub fn dma_maps(&self) -> impl Iterator<Item = (Iova, u64)> + '_ {
        self.dma.maps()
    }

    /// Resets the function: interrupts are disabled, and the model is reset. Maps stay.
    pub fn reset(&mut self) {
        (0..5).for_each(|i| self.disable_irqs(i));
        self.model.reset();
    }

    /// Handles the end of its client: everything is unmapped, interrupts are disabled, and the model is reset.
    pub fn release(&mut self) {
        self.dma.clear();
        self.reset();
    }

    /// Polls the model once.
    #[inline]
    pub fn poll(&mut self) -> Work {
        let mut host = Host::new(&self.dma, &self.irqs);
        let work = self.model.poll(&mut host);
        if let Some(memory) = host.placed() {
            self.place_own(memory);
        }
        work
    }

    /// Maps pages of the model's own for it, and no others.
    #[cold]
    fn place_own(&mut self, memory: OwnMemory) {
        if let Some((iova, len)) = self.own.take() {
            // It may have gone with all the others.
            let _ = self.dma.unmap(iova, len);
        }
        let Some((iova, pages)) = memory else { return };
        let len = pages.len();
        let placed = pages.map(0..len, Prot::ReadWrite).map_err(|error| error.to_string()).and_then(|mapping| {
            let mapped = self.dma.map(iova, Some(Arc::new(mapping)), 0, len, true);
            mapped.map_err(|Refused(errno)| format!("errno {errno}"))
        });
        match placed {
            Ok(()) => self.own = Some((iova, len)),
            Err(why) => tracing::warn!(model = self.shape.name, %why, "memory of its own cannot be at {:#x}", iova.0),
        }
    }

    /// Does something with the model between polls: by its own ways, and with what it can reach.
    #[inline]
    pub fn with<T>(&mut self, act: impl FnOnce(&mut M, &mut Host<'_>) -> T) -> T {
        act(&mut self.model, &mut Host::new(&self.dma, &self.irqs))
    }

    /// Prepares for a rest: see [`Model::arm`].
    pub fn arm(&mut self) -> Armed {
        self.model.arm()
    }

    /// Returns the descriptors that the model waits for: see [`Model::wakeups`].
    pub fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        self.model.wakeups()
    }
}
