//! A model in this process, behind the seam: a driver cannot tell it from hardware but by its speed.
//!
//! Stepped by hand ([`InProcess::step`]) or on a thread ([`InProcess::spawn`]), which ends with the device. A trapped access to a direct range
//! makes a real `pread` or `pwrite` on the page's memory file: the floor of what trapping costs anywhere. That call goes to a shadow of the page, and one
//! atomic access of the page follows it: the kernel copies by bytes, and a polling device could see half of a new value. Accesses
//! elsewhere are calls into the model. Whichever it is, it wakes the model's thread where that sleeps; stores to what is mapped do not, so once something
//! is, the thread naps for a millisecond at the most ([`rest`](super::rest)).

use super::pages::{Pages, Trap};
use super::thread::{ModelThread, Slot};
use super::{Model, ModelFunction, Refused, Shape};
use crate::mem::{Arena, DmaBackend, DmaSpace, Iova, IovaWindow};
use crate::pci::{
    DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, RegionInfo, RegionMapping,
};
use crate::{Error, PageSize, Result, Work};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// A model in this process, as a [`PciDevice`].
///
/// Its thread, where it has one, ends when the last reference to this is dropped: drivers hold one for as long as they use the device.
pub struct InProcess {
    shape: Shape,
    function: Arc<Slot>,
    dma: Arc<DmaSpace>,
    thread: Mutex<Option<ModelThread>>,
    counters: OnceLock<Counters>,
}

type Counters = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

impl InProcess {
    /// Creates the device of a model, which nobody polls yet: see [`step`](Self::step) and [`spawn`](Self::spawn).
    ///
    /// # Errors
    /// [`Error::PageSize`] where the model's page is smaller than the host's; [`Error::Io`] where the process has no descriptor left.
    pub fn new<M: Model + 'static>(model: M) -> Result<Arc<Self>> {
        let function: Box<ModelFunction<dyn Model>> = Box::new(ModelFunction::new(model));
        let shape = function.shape().clone();
        if shape.page < PageSize::host() {
            return Err(Error::PageSize { bytes: shape.page.bytes() });
        }
        let function = Arc::new(Slot::new(function)?);
        let dma = DmaSpace::new(Box::new(Dma(function.clone())))?;
        Ok(Arc::new(Self { shape, function, dma, thread: Mutex::new(None), counters: OnceLock::new() }))
    }

    /// Polls the model once on the calling thread. It takes the model's lock.
    pub fn step(&self) -> Work {
        self.function.lock().poll()
    }

    /// Runs the model on a thread of its own, until [`stop`](Self::stop) or the last reference is dropped. `prepare` runs on that thread first, to
    /// pin it, for example. Where the model has a thread already, nothing changes.
    ///
    /// # Errors
    /// [`Error::Io`] where the system has no thread left.
    pub fn spawn(&self, prepare: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut thread = self.thread();
        if thread.is_none() {
            *thread = Some(ModelThread::spawn(self.function.clone(), prepare)?);
        }
        Ok(())
    }

    /// Runs the model on the thread that runs `other`: the two take turns, and data between them stays in one core's caches. Returns whether the
    /// model has a thread now: `false` where `other` has none.
    pub fn spawn_beside(&self, other: &Self) -> bool {
        // One after the other: two threads may call this of each other.
        let beside = other.thread().as_ref().map(ModelThread::beside);
        let mut thread = self.thread();
        if thread.is_none() {
            *thread = beside.and_then(|beside| ModelThread::join(self.function.clone(), &beside));
        }
        thread.is_some()
    }

    /// Stops the model's thread, where it has one. The device does nothing more by itself until [`step`](Self::step) or [`spawn`](Self::spawn).
    pub fn stop(&self) {
        // Dropped once the lock is free: this waits for the thread.
        let thread = self.thread().take();
        drop(thread);
    }

    /// Sets how the model's counters are read while it runs, for [`PciDevice::counters`]. Only the first call has an effect.
    pub fn set_counters(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        let _ = self.counters.set(Box::new(read));
    }

    /// Returns the id of the model's thread in `/proc/self/task`, which shows the CPU time that it used; `None` where it has no thread.
    pub fn thread_id(&self) -> Option<i32> {
        self.thread().as_ref().map(ModelThread::tid)
    }

    /// Sets whether the model's thread looks for doorbells all the time, as hardware does, and takes a core for that. Otherwise, as at first, it rests
    /// where nothing happens: what the first doorbell after a pause waits is then in the latencies that somebody measures.
    pub fn set_spin(&self, spin: bool) {
        self.function.set_spin(spin);
    }

    /// Returns how often the model's thread has slept or napped, since nothing happened to its models; `None` where it has no thread.
    pub fn rests(&self) -> Option<u64> {
        self.thread().as_ref().map(|thread| thread.rests().0)
    }

    /// Returns whether the model's thread sleeps or naps now, or is about to.
    pub fn is_resting(&self) -> bool {
        self.thread().as_ref().is_some_and(|thread| thread.rests().1)
    }

    fn thread(&self) -> MutexGuard<'_, Option<ModelThread>> {
        self.thread.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn refused(&self, op: &'static str, region: u32, offset: u64, len: usize, Refused(errno): Refused) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        Error::Access { device: self.shape.name.clone(), op, region, offset, len: len as u64, cause: source }
    }

    /// The memory behind a range, where all of it is direct.
    fn direct(&self, region: u32, offset: u64, len: u64) -> Option<&Arc<Pages>> {
        let r = self.shape.regions.get(region as usize)?;
        let end = offset.checked_add(len)?;
        let pages = r.pages.as_ref().filter(|p| end <= p.len())?;
        r.direct.iter().any(|d| d.start <= offset && end <= d.end).then_some(pages)
    }

    /// Whether a write would touch what the function guards: MSI-X table and PBA.
    fn guarded(&self, region: u32, offset: u64, len: u64) -> bool {
        self.shape.msix.is_some_and(|m| m.guards(region, offset, len))
    }
}

impl PciDevice for InProcess {
    fn name(&self) -> &str {
        &self.shape.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Model
    }

    fn info(&self) -> DeviceInfo {
        self.shape.info()
    }

    fn page_size(&self) -> PageSize {
        self.shape.page
    }

    fn isolation(&self) -> Isolation {
        Isolation::by_construction()
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        if index >= self.info().regions {
            return Err(Error::NoSuchRegion { device: self.shape.name.clone(), region: index });
        }
        Ok(self.function.lock().region(index))
    }

    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        let done = match self.direct(region, offset, len as u64) {
            Some(pages) => {
                pages.trap(offset, Trap::Read(buf));
                pages.access(offset, Trap::Read(buf))
            }
            None => self.function.lock().read(region, offset, buf),
        };
        done.map_err(|e| self.refused("read", region, offset, len, e))
    }

    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        let len = buf.len() as u64;
        let done = match self.direct(region, offset, len).filter(|_| !self.guarded(region, offset, len)) {
            Some(pages) => {
                pages.trap(offset, Trap::Write(buf));
                let done = pages.access(offset, Trap::Write(buf));
                self.function.wake();
                done
            }
            None => self.function.lock().write(region, offset, buf),
        };
        done.map_err(|e| self.refused("write", region, offset, buf.len(), e))
    }

    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        let len = range.end.saturating_sub(range.start);
        let refuse =
            |why| Error::NotMappable { device: self.shape.name.clone(), region, offset: range.start, len, why };
        if range.is_empty() || !range.start.is_multiple_of(PageSize::host().bytes()) {
            return Err(refuse("not whole pages"));
        }
        let pages = self.direct(region, range.start, len).ok_or_else(|| refuse("the model does not offer it"))?;
        let mapping = RegionMapping::new(pages.map(range.clone(), prot)?, self, region, range.start)?;
        self.function.set_mapped();
        Ok(mapping)
    }

    fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
        Ok(self.shape.irqs.get(kind as usize).copied().unwrap_or_default())
    }

    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
        let (index, count) = (kind.index(), self.irq_info(kind)?.count);
        let missing = |vector| Error::NoSuchIrq { device: self.shape.name.clone(), kind, vector, count };
        match action {
            IrqAction::Fds(fds) => {
                let last = first.saturating_add(fds.len() as u32).saturating_sub(1);
                let owned = fds
                    .iter()
                    .map(|fd| fd.map(|fd| fd.try_clone_to_owned()).transpose())
                    .collect::<io::Result<_>>()
                    .map_err(|cause| Error::Io { what: "duplicating an eventfd".to_owned(), cause })?;
                self.function.lock().set_irqs(index, first, owned).map_err(|_| missing(last))
            }
            IrqAction::Disable => {
                self.function.lock().disable_irqs(index);
                Ok(())
            }
            IrqAction::Trigger(n) => {
                self.function.lock().trigger(index, first, n).map_err(|_| missing(first.saturating_add(n)))
            }
            IrqAction::Mask(n) | IrqAction::Unmask(n) => {
                let masked = matches!(action, IrqAction::Mask(_));
                self.function.lock().mask_irqs(index, first, n, masked).map_err(|Refused(errno)| match errno {
                    libc::EINVAL => missing(first.saturating_add(n)),
                    // As with the kernel's MSI and MSI-X.
                    errno => Error::Io {
                        what: format!("{}: masking {kind} interrupts", self.shape.name),
                        cause: io::Error::from_raw_os_error(errno),
                    },
                })
            }
        }
    }

    fn dma(&self) -> Arc<DmaSpace> {
        self.dma.clone()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.get().map_or_else(Vec::new, |read| read())
    }

    fn reset(&self) -> Result<()> {
        self.function.lock().reset();
        Ok(())
    }
}

/// The address space of a model in this process: it remembers base and length.
struct Dma(Arc<Slot>);

impl DmaBackend for Dma {
    fn windows(&self) -> Vec<IovaWindow> {
        vec![IovaWindow { range: 0..=(1 << 47) - 1, page: PageSize::host() }]
    }

    fn max_maps(&self) -> Option<usize> {
        None
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        let len = arena.len();
        self.0.lock().dma_map_arena(iova, arena, 0, len, true).map_err(|_| Error::Ledger {
            op: "map",
            iova: iova.0,
            len,
            why: "it overlaps what is mapped",
        })
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        self.0.lock().dma_unmap(iova, len).map_err(|_| Error::Ledger {
            op: "unmap",
            iova: iova.0,
            len,
            why: "nothing is mapped exactly so",
        })
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}
