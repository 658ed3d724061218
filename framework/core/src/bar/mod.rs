//! BARs: which parts of them are mapped ([`plan()`]), and access to their registers.
//!
//! A register is an offset, never a struct laid over memory, so that a driver works whether its page is mapped or trapped. Cold registers go through
//! [`Bar`], which looks up their span; hot ones through a [`Doorbell`], made once. No window and no register access touches the MSI-X table or the
//! PBA: only [`MsixTable`] shows them, and only to read.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use std::sync::Arc;
//! use std::time::Duration;
//! use wholebar::Result;
//! use wholebar::bar::{Bar, BarOptions, Doorbell};
//! use wholebar::pci::{BAR0, PciDevice};
//!
//! /// Resets an engine by its control register and returns the doorbell of its first queue.
//! fn start(device: Arc<dyn PciDevice>) -> Result<Doorbell<u32>> {
//!     let bar = Bar::of(device, BAR0 as u8, BarOptions::default())?;
//!     bar.write(0x10, 1u32)?;
//!     bar.wait_for("end its reset", 0x14, Duration::from_secs(1), |status: u32| status & 1 == 0)?;
//!     bar.doorbell(0x1000)
//! }
//! ```

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod doorbell;
mod layout;
mod msix;
mod plan;

pub use crate::cell::Width;
pub use doorbell::{Doorbell, DoorbellCounts};
pub use layout::{BarLayout, BarOptions, layout, layouts, plan_of};
pub use msix::{MsixEntry, MsixTable};
pub use plan::{Access, BarPlan, MapPolicy, Span, Why, plan};

use crate::pci::{PciDevice, Prot, RegionMapping, Verdict, function};
use crate::{Error, Result, barrier};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One BAR, mapped as its plan says.
///
/// A clone is another handle; the BAR is unmapped when the last of them, its windows and its doorbells is dropped. (Linux: `pci_iomap`; DPDK:
/// `rte_pci_map_device`.)
///
/// Registers are little-endian, as PCI has them; values are the CPU's. An access costs a look-up of its span, a barrier and one load or store where
/// the span is mapped; a system call or a message where it is trapped. Any thread may access registers.
#[derive(Clone)]
pub struct Bar {
    shared: Arc<Shared>,
}

struct Shared {
    /// The mapped spans: where each is in the BAR, and its mapping, which is as long at least. Unmapped before the device is closed.
    maps: Vec<(Range<u64>, RegionMapping)>,
    device: Arc<dyn PciDevice>,
    plan: BarPlan,
    /// What the first trapped doorbell that failed was told.
    failure: OnceLock<Error>,
}

impl Bar {
    /// Opens BAR `bar` (0 to 5) of `device`: reads from configuration space where the MSI-X table is, makes a plan, and maps the BAR.
    ///
    /// # Errors
    /// [`Error::NoSuchRegion`] where the device has no such BAR; [`Error::Config`] where its configuration space makes no sense;
    /// [`Error::Plan`] where a page size below the device's own is asked for; [`Error::Access`] where configuration space cannot be read; what
    /// [`PciDevice::map`] returns where the backend refuses.
    pub fn of(device: Arc<dyn PciDevice>, bar: u8, options: BarOptions<'_>) -> Result<Self> {
        let plan = plan_of(device.as_ref(), bar, options)?;
        Self::map(device, plan)
    }

    /// Opens a BAR as `plan` says: the plan of [`plan_of`], perhaps changed.
    ///
    /// # Errors
    /// [`Error::Plan`] where the plan is for another BAR than the device has (its size, its table, its PBA), or for smaller pages; else as
    /// [`of`](Self::of).
    pub fn open(device: Arc<dyn PciDevice>, plan: BarPlan) -> Result<Self> {
        // Anyone can write a plan; only the device knows where its table is.
        let found = layout(device.as_ref(), plan.layout.bar)?;
        let (asked, found) = (&plan.layout, &found);
        if (asked.size, &asked.table, &asked.pba) != (found.size, &found.table, &found.pba) {
            return Err(plan.misfit(device.as_ref(), format!("it is for {asked}, and the device has {found}")));
        }
        Self::map(device, plan)
    }

    fn map(device: Arc<dyn PciDevice>, plan: BarPlan) -> Result<Self> {
        let own = device.page_size();
        if plan.is_hypothetical(own) {
            let why = format!("it is for pages of {}, and the device is mapped in pages of {own}", plan.page);
            return Err(plan.misfit(device.as_ref(), why));
        }
        let isolation = device.isolation();
        if plan.policy == MapPolicy::Whole && plan.layout.table.is_some() && isolation.verdict != Verdict::Isolated {
            tracing::warn!(
                device = device.name(),
                bar = plan.layout.bar,
                "the MSI-X table is mapped, as asked, though a stray write there could raise any interrupt of this machine: {}",
                isolation.evidence.join("; ")
            );
        }
        let maps = plan
            .spans
            .iter()
            .filter_map(|span| match span.access {
                Access::Direct => Some((span, Prot::ReadWrite)),
                Access::ReadOnly => Some((span, Prot::Read)),
                Access::Trapped => None,
            })
            .map(|(span, prot)| {
                let mapping = device.map(plan.layout.bar.into(), span.range.clone(), prot)?;
                // What follows rests on this, and backends are not all ours.
                let len = span.range.end.checked_sub(span.range.start).filter(|len| *len <= mapping.len());
                let aligned = (mapping.base().addr().get() as u64 | span.range.start).is_multiple_of(8);
                match len {
                    Some(_) if aligned => Ok((span.range.clone(), mapping)),
                    _ => Err(plan.misfit(device.as_ref(), format!("{:x?} could not be mapped as it is", span.range))),
                }
            })
            .collect::<Result<_>>()?;
        Ok(Self { shared: Arc::new(Shared { maps, device, plan, failure: OnceLock::new() }) })
    }

    /// Returns the plan that the BAR was opened with.
    pub fn plan(&self) -> &BarPlan {
        &self.shared.plan
    }

    /// Returns the device that the BAR belongs to.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.shared.device
    }

    /// Returns the size of the BAR in bytes.
    pub fn size(&self) -> u64 {
        self.shared.plan.layout.size
    }

    /// Returns whether a trapped doorbell failed, or a mapped page was taken away, since the BAR was opened. It costs a load or two: a queue asks
    /// this at each poll.
    #[inline]
    pub fn failed(&self) -> bool {
        self.failure().is_some()
    }

    /// Returns the error of the first trapped doorbell that failed, or [`Error::Gone`] where a mapped page was taken away. Failures of
    /// [`read`](Self::read) and [`write`](Self::write) are returned to their callers and not kept here.
    #[inline]
    pub fn failure(&self) -> Option<&Error> {
        if self.shared.is_gone() {
            self.shared.failure.get_or_init(|| self.shared.gone());
        }
        self.shared.failure.get()
    }

    /// Reads a register. Loads from DMA memory that follow are not older than the register's value, and the read does not overtake earlier writes of
    /// registers. (Linux: `readl`.)
    ///
    /// # Errors
    /// [`Error::Unaligned`]; [`Error::OutOfRange`]; [`Error::Guarded`] for the MSI-X table and the PBA; [`Error::Access`] where the register is
    /// trapped and the backend cannot reach it; [`Error::Gone`] where its page was taken away.
    pub fn read<T: Width>(&self, offset: u64) -> Result<T> {
        self.shared.check(offset, T::BYTES)?;
        self.load(offset)
    }

    /// Reads a register, which may be part of the table or the PBA.
    fn load<T: Width>(&self, offset: u64) -> Result<T> {
        if let Some((mapping, at)) = self.shared.mapped(offset, T::BYTES, false) {
            // As `writel` before `readl`: a read does not overtake an earlier write of another register.
            barrier::before_doorbell();
            if let Some(value) = mapping.load(at) {
                barrier::after_register();
                // What a page that was taken away reads may also be the register's value.
                return if mapping.is_gone() { Err(self.shared.gone()) } else { Ok(value) };
            }
        }
        let mut bytes = T::Bytes::default();
        self.shared.device.read(self.shared.region(), offset, bytes.as_mut())?;
        Ok(T::from_le(bytes))
    }

    /// Writes a register. Earlier stores to DMA memory are visible to the device before it. (Linux: `writel`.)
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<T: Width>(&self, offset: u64, value: T) -> Result<()> {
        self.shared.check(offset, T::BYTES)?;
        barrier::before_doorbell();
        if let Some((mapping, at)) = self.shared.mapped(offset, T::BYTES, true)
            && mapping.store(at, value)
        {
            return if mapping.is_gone() { Err(self.shared.gone()) } else { Ok(()) };
        }
        self.shared.device.write(self.shared.region(), offset, value.to_le().as_ref())
    }

    /// Reads a register until `is` returns `true` for its value, for at most `patience`, and returns that value. (Linux: `readl_poll_timeout`.)
    ///
    /// `what` says in the error what the device was asked to do: "end its reset". The thread sleeps 50 µs between reads, so this is not for the hot path.
    ///
    /// # Errors
    /// [`Error::NotReady`] where the time is over; [`Error::Gone`] where the register reads all ones because the function does not answer on its bus
    /// any more; else as [`read`](Self::read).
    pub fn wait_for<T: Width>(
        &self,
        what: &'static str,
        offset: u64,
        patience: Duration,
        is: impl Fn(T) -> bool,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            // The clock first: what is read once the time is over is what counts.
            let waited = start.elapsed();
            let value: T = self.read(offset)?;
            if value.to_le().as_ref().iter().all(|byte| *byte == 0xff) {
                function::check(self.shared.device.as_ref())?;
            }
            if is(value) {
                return Ok(value);
            }
            if waited >= patience {
                let (device, bar, value) =
                    (self.shared.device.name().to_owned(), self.shared.plan.layout.bar, value.into());
                return Err(Error::NotReady { device, what, bar, offset, value, waited });
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Returns a register for the hot path: a barrier and one store where its span is mapped for stores, a system call or a message where it is trapped.
    ///
    /// # Errors
    /// [`Error::Unaligned`]; [`Error::OutOfRange`]; [`Error::Guarded`] for the MSI-X table and the PBA.
    pub fn doorbell<T: Width>(&self, offset: u64) -> Result<Doorbell<T>> {
        self.shared.check(offset, T::BYTES)?;
        Ok(Doorbell::new(self.clone(), offset))
    }

    /// Returns a part of the BAR, in which offsets begin at 0: for a block of registers that a capability or a table locates.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is not inside of the BAR, or empty; [`Error::Guarded`] where it would touch the MSI-X table or the PBA.
    pub fn window(&self, range: Range<u64>) -> Result<Window> {
        self.shared.check_range(range.start, range.end.saturating_sub(range.start))?;
        Ok(Window { bar: self.clone(), range })
    }
}

impl Shared {
    fn region(&self) -> u32 {
        self.plan.layout.bar.into()
    }

    #[inline]
    fn is_gone(&self) -> bool {
        self.maps.iter().any(|(_, mapping)| mapping.is_gone())
    }

    fn gone(&self) -> Error {
        let why = format!("a touch of BAR{} failed: its memory is not decoded any more", self.plan.layout.bar);
        Error::Gone { device: self.device.name().to_owned(), why }
    }

    fn check(&self, offset: u64, width: u64) -> Result<()> {
        if !offset.is_multiple_of(width) {
            return Err(Error::Unaligned { offset, width });
        }
        self.check_range(offset, width)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let layout = &self.plan.layout;
        let Some(end) = offset.checked_add(len).filter(|end| *end <= layout.size && len > 0) else {
            return Err(Error::OutOfRange { what: "BAR", offset, len, size: layout.size });
        };
        for (guarded, what) in [(&layout.table, "table"), (&layout.pba, "PBA")] {
            if let Some(r) = guarded
                && offset < r.end
                && r.start < end
            {
                return Err(Error::Guarded { bar: layout.bar, offset, len, what });
            }
        }
        // What the mapping itself knows, whatever was said of the device.
        for (range, mapping) in &self.maps {
            let part = offset.max(range.start).saturating_sub(range.start)..end.saturating_sub(range.start);
            if let Some(what) = mapping.msix(part) {
                return Err(Error::Guarded { bar: layout.bar, offset, len, what });
            }
        }
        Ok(())
    }

    /// The mapping that holds a register, and where in it, aligned to its width; `None` where it is trapped.
    fn mapped(&self, offset: u64, width: u64, write: bool) -> Option<(&RegionMapping, u64)> {
        let end = offset.checked_add(width).filter(|_| offset.is_multiple_of(width))?;
        let (range, mapping) = self.maps.iter().find(|(r, _)| r.start <= offset && end <= r.end)?;
        // `Bar::map` saw to it that spans and mappings begin on multiples of 8, so the register is as aligned as its offset.
        (!write || mapping.prot() == Prot::ReadWrite).then(|| (mapping, offset.wrapping_sub(range.start)))
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { device, plan, .. } = &*self.shared;
        f.debug_struct("Bar").field("device", &device.name()).field("plan", plan).finish_non_exhaustive()
    }
}

/// A part of a BAR that contains neither the MSI-X table nor the PBA.
///
/// Offsets begin at its start; costs are those of [`Bar`].
#[derive(Debug, Clone)]
pub struct Window {
    bar: Bar,
    range: Range<u64>,
}

impl Window {
    /// Returns the size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a window is never empty")]
    pub fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Reads the register at `offset` in the window: [`Bar::read`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is not inside of the window; else as [`Bar::read`].
    pub fn read<T: Width>(&self, offset: u64) -> Result<T> {
        self.bar.read(self.at::<T>(offset)?)
    }

    /// Writes the register at `offset` in the window: [`Bar::write`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is not inside of the window; else as [`Bar::write`].
    pub fn write<T: Width>(&self, offset: u64, value: T) -> Result<()> {
        self.bar.write(self.at::<T>(offset)?, value)
    }

    /// Reads the register at `offset` in the window until `is` returns `true` for its value: [`Bar::wait_for`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is not inside of the window; else as [`Bar::wait_for`].
    pub fn wait_for<T: Width>(
        &self,
        what: &'static str,
        offset: u64,
        patience: Duration,
        is: impl Fn(T) -> bool,
    ) -> Result<T> {
        self.bar.wait_for(what, self.at::<T>(offset)?, patience, is)
    }

    /// Returns the register at `offset` in the window for the hot path: [`Bar::doorbell`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where it is not inside of the window; else as [`Bar::doorbell`].
    pub fn doorbell<T: Width>(&self, offset: u64) -> Result<Doorbell<T>> {
        self.bar.doorbell(self.at::<T>(offset)?)
    }

    fn at<T: Width>(&self, offset: u64) -> Result<u64> {
        match offset.checked_add(T::BYTES) {
            Some(end) if end <= self.len() => Ok(self.range.start.saturating_add(offset)),
            _ => Err(Error::OutOfRange { what: "window", offset, len: T::BYTES, size: self.len() }),
        }
    }
}

#[cfg(test)]
mod tests;
