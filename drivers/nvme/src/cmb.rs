//! The controller memory buffer (NVM Express Base 2.0, 8.5): memory of the controller's behind a BAR, in which queues and PRP lists can lie, so that
//! the controller fetches neither from the host. Entries are stored there as registers are: by a store where the BAR is mapped, by a system call or a message each
//! where it is trapped.
//!
//! The controller has it at an address of the host's choice (CMBMSC.CBA), beyond all that DMA memory is given. One that has no such address (version 1.3 and
//! before) has it where its BAR is on the bus, which no program knows that is behind an IOMMU: it is not used.

use crate::error::Result;
use crate::regs::{self, Cmbloc, Cmbsz};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::{Bar, BarOptions, MapPolicy, Window};
use wholebar_core::pci::PciDevice;

/// Where the controller has it: above every address that a mask of [`DMA_BITS`] leaves to DMA memory.
const BASE: u64 = 1 << DMA_BITS;
/// Bits of the addresses of DMA memory, once it is used.
const DMA_BITS: u32 = 52;

/// What a controller says of its memory buffer (CMBLOC, CMBSZ).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryBuffer {
    /// The BAR that it is behind.
    pub bar: u8,
    /// Where in that BAR it begins, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Submission queues can lie in it (SQS).
    pub submission_queues: bool,
    /// Completion queues can lie in it (CQS): [`Options::controller_completions`](crate::Options::controller_completions).
    pub completion_queues: bool,
    /// PRP and SGL lists can lie in it (LISTS).
    pub lists: bool,
    /// Whether this driver uses the buffer: [`Options::controller_memory`](crate::Options::controller_memory).
    pub used: bool,
}

/// A memory buffer that is used.
pub(crate) struct ControllerMemory {
    window: Window,
    size: u64,
    taken: Mutex<Vec<Range<u64>>>,
}

/// A part of it, which nobody else has.
pub(crate) struct Part {
    memory: Arc<ControllerMemory>,
    range: Range<u64>,
    quarantine: AtomicBool,
}

impl MemoryBuffer {
    /// What the controller tells of it, which it does once it is asked to, within `patience`; `None` where it has none that could be used.
    pub(crate) fn find(bar: &Bar, patience: Duration) -> Result<Option<Self>> {
        // In halves, as it is written later: a register has one width.
        bar.write(regs::CMBMSC + 4, 0u32)?;
        bar.write(regs::CMBMSC, regs::CMBMSC_TELL as u32)?;
        let told = bar.wait_for("tell its memory buffer", regs::CMBSZ, patience, |size: u32| size != 0);
        let size = match told {
            Ok(size) => Cmbsz(size),
            Err(wholebar_core::Error::NotReady { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let location = Cmbloc(bar.read(regs::CMBLOC)?);
        let Some((offset, bytes)) = size.bytes().zip(size.unit().checked_mul(location.offset())).map(|(n, at)| (at, n))
        else {
            return Ok(None);
        };
        // BARs are 0 to 5.
        Ok(Some(location.bar()).filter(|bar| *bar < 6).map(|_| Self {
            bar: location.bar(),
            offset,
            size: bytes,
            submission_queues: size.submission_queues(),
            completion_queues: size.completion_queues(),
            lists: size.lists(),
            used: false,
        }))
    }

    /// Opens it for use: from here on, DMA memory lies below where the controller has it.
    pub(crate) fn open(
        &self,
        device: &Arc<dyn PciDevice>,
        policy: MapPolicy,
        page: Option<PageSize>,
    ) -> Result<Arc<ControllerMemory>> {
        let bar = Bar::of(device.clone(), self.bar, BarOptions { policy, page, registers: &[] })?;
        // What is beyond the BAR's end is not there, whatever the controller says.
        let end = self.offset.saturating_add(self.size).min(bar.size());
        let window = bar.window(self.offset..end)?;
        let size = window.len();
        device.dma().set_dma_mask(device.dma().dma_mask().min(DMA_BITS));
        Ok(Arc::new(ControllerMemory { window, size, taken: Mutex::new(Vec::new()) }))
    }
}

/// CMBMSC's value for a buffer that is used.
pub(crate) const CONTROL: u64 = BASE | regs::CMBMSC_TELL | regs::CMBMSC_ENABLE;

impl ControllerMemory {
    /// Takes `len` bytes, aligned to `align` (a power of two); `None` where there is no room.
    pub fn take(self: &Arc<Self>, len: u64, align: u64) -> Option<Part> {
        let mut taken = self.taken.lock().unwrap_or_else(|e| e.into_inner());
        let mut start = 0u64;
        for range in &*taken {
            if start.checked_add(len)? <= range.start {
                break;
            }
            start = range.end.checked_next_multiple_of(align)?;
        }
        let range = start..start.checked_add(len).filter(|end| *end <= self.size)?;
        let at = taken.partition_point(|other| other.start < range.start);
        taken.insert(at, range.clone());
        Some(Part { memory: self.clone(), range, quarantine: AtomicBool::new(false) })
    }
}

impl Part {
    /// Where it is, as the controller sees it.
    pub fn iova(&self) -> u64 {
        BASE + self.range.start
    }

    /// Whether it is nobody else's after this: on while the controller may fetch from it.
    pub fn set_quarantine(&self, on: bool) {
        self.quarantine.store(on, Ordering::Relaxed);
    }

    /// Stores a word, `at` bytes from its start. A device that does not take it any more is found out by its doorbells and its health.
    pub fn write(&self, at: u64, word: u64) {
        let inside = at.checked_add(8).is_some_and(|end| end <= self.range.end - self.range.start);
        debug_assert!(inside, "{at} in {:?}", self.range);
        if inside && let Err(error) = self.memory.window.write(self.range.start + at, word) {
            tracing::debug!(%error, "controller memory was not written");
        }
    }

    /// Reads a word, `at` bytes from its start; `None` where that cannot be done any more.
    pub fn read(&self, at: u64) -> Option<u64> {
        let inside = at.checked_add(8).is_some_and(|end| end <= self.range.end - self.range.start);
        debug_assert!(inside, "{at} in {:?}", self.range);
        self.memory.window.read(self.range.start + at).ok().filter(|_| inside)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !*self.quarantine.get_mut() {
            let mut taken = self.memory.taken.lock().unwrap_or_else(|e| e.into_inner());
            taken.retain(|range| *range != self.range);
        }
    }
}
