//! BARs: which parts are mapped ([`plan()`]), and how their registers are reached.
//!
//! A register is an offset, never a struct laid over memory: an offset survives trapping. Cold registers go through [`Bar`], which looks up
//! their span; hot ones through a [`Doorbell`], made once. No window and no register access touches the MSI-X table or the PBA: only
//! [`MsixTable`] sees them, and only to read.

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

/// One BAR, mapped by its plan.
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
    /// Opens BAR `bar` of `device`: reads where its MSI-X table is, plans, and maps.
    ///
    /// # Errors
    /// [`Error::NoSuchRegion`] where the device has no such BAR, [`Error::Config`] where its configuration space makes no sense,
    /// [`Error::Plan`] where a page size below the device's own is asked for; [`Error::Access`] where it cannot be reached.
    pub fn of(device: &Arc<dyn PciDevice>, bar: u8, options: BarOptions<'_>) -> Result<Self> {
        Self::map(device.clone(), plan_of(device.as_ref(), bar, options)?)
    }

    /// Maps a BAR as `plan` says.
    ///
    /// # Errors
    /// [`Error::Plan`] where the plan is for another BAR than this device has (its size, its table, its pages); as [`of`](Self::of).
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

    /// The plan it was opened with.
    pub fn plan(&self) -> &BarPlan {
        &self.shared.plan
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.shared.device
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.shared.plan.layout.size
    }

    /// Whether a trapped doorbell failed, or a mapped page was taken away, since the BAR was opened: a load or two, to be asked at each
    /// poll.
    #[inline]
    pub fn failed(&self) -> bool {
        self.failure().is_some()
    }

    /// What the first trapped doorbell that failed was told, or that the device is gone. A failed [`read`](Self::read) or
    /// [`write`](Self::write) told its caller.
    #[inline]
    pub fn failure(&self) -> Option<&Error> {
        if self.shared.is_gone() {
            self.shared.failure.get_or_init(|| self.shared.gone());
        }
        self.shared.failure.get()
    }

    /// Reads a register. What is loaded from DMA memory later is not older than it.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::Guarded`]; where the register is trapped, [`Error::Access`] if it cannot be reached, and where its
    /// page was taken away, [`Error::Gone`].
    pub fn read<T: Width>(&self, offset: u64) -> Result<T> {
        self.shared.check(offset, T::BYTES)?;
        self.load(offset)
    }

    /// Reads what may be a part of table or PBA.
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

    /// Writes a register. Every earlier store to DMA memory is visible to the device before it.
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

    /// Reads a register until `is` holds of it, at most for `patience`; returns what it read then. `what` says in the error what the device was asked
    /// to do: "end its reset". Linux has the like as `readl_poll_timeout`. It sleeps between reads, so it is not for the hot path.
    ///
    /// # Errors
    /// [`Error::NotReady`] where the time is over, [`Error::Gone`] where the register reads all ones because nobody answers for the device on its bus;
    /// as [`read`](Self::read).
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

    /// A register for the hot path: one store where its span is direct, a system call or a message where it is trapped.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfRange`], [`Error::Guarded`].
    pub fn doorbell<T: Width>(&self, offset: u64) -> Result<Doorbell<T>> {
        self.shared.check(offset, T::BYTES)?;
        Ok(Doorbell::new(self.clone(), offset))
    }

    /// A part of the BAR for a driver's own use.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], and [`Error::Guarded`] where it would touch the MSI-X table or the PBA.
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

/// A part of a BAR that touches neither MSI-X table nor PBA.
#[derive(Debug, Clone)]
pub struct Window {
    bar: Bar,
    range: Range<u64>,
}

impl Window {
    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a window is never empty")]
    pub fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Reads a register at `offset` in the window.
    ///
    /// # Errors
    /// As [`Bar::read`].
    pub fn read<T: Width>(&self, offset: u64) -> Result<T> {
        self.bar.read(self.at::<T>(offset)?)
    }

    /// Writes a register at `offset` in the window.
    ///
    /// # Errors
    /// As [`Bar::write`].
    pub fn write<T: Width>(&self, offset: u64, value: T) -> Result<()> {
        self.bar.write(self.at::<T>(offset)?, value)
    }

    /// Waits for a register at `offset` in the window.
    ///
    /// # Errors
    /// As [`Bar::wait_for`].
    pub fn wait_for<T: Width>(
        &self,
        what: &'static str,
        offset: u64,
        patience: Duration,
        is: impl Fn(T) -> bool,
    ) -> Result<T> {
        self.bar.wait_for(what, self.at::<T>(offset)?, patience, is)
    }

    /// A register for the hot path at `offset` in the window.
    ///
    /// # Errors
    /// As [`Bar::doorbell`].
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
