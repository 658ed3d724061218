//! The layout of BARs: the region's size, and where the MSI-X capability puts table and PBA. What a plan is made from.

use super::{BarPlan, MapPolicy, plan};
use crate::pci::{Config, PciDevice};
use crate::{Error, PageSize, Result};
use std::fmt;
use std::ops::Range;

/// The layout of one BAR: all that [`plan()`] has to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarLayout {
    /// The BAR's number, 0 to 5.
    pub bar: u8,
    /// The size in bytes.
    pub size: u64,
    /// The part of the BAR that is the MSI-X table; `None` where the table is in another BAR, or there is none.
    pub table: Option<Range<u64>>,
    /// The part of the BAR that is the PBA; `None` where the PBA is in another BAR, or there is none.
    pub pba: Option<Range<u64>>,
    /// Registers that the driver writes. A page that holds the table or the PBA is mapped read-only only where none of these is in it.
    pub registers: Vec<Range<u64>>,
}

impl BarLayout {
    /// Returns the ranges that the table and the PBA, in this order, have to themselves: no other registers are expected there.
    ///
    /// PCI recommends that no other register be in the 4 KiB ranges that hold them (PCI Express Base 6.0, 7.7.2), and devices that keep to it let
    /// the first of them begin such a range. Where neither does, something else was put there first: then a part has no more to itself than its
    /// own bytes and, of the 4 KiB ranges behind the one it begins in, the whole.
    pub fn own_ranges(&self) -> [Option<Range<u64>>; 2] {
        let inside =
            |r: &Option<Range<u64>>| r.as_ref().map(|r| r.start..r.end.min(self.size)).filter(|r| !r.is_empty());
        let parts = [inside(&self.table), inside(&self.pba)];
        let own = |r: &Range<u64>| {
            let first = PageSize::K4.floor(r.start);
            let next = first.saturating_add(PageSize::K4.bytes());
            // A part that begins this 4 KiB range, or reaches into it from the one before.
            let begins = parts.iter().flatten().any(|other| other.start <= first && first < other.end);
            let start = if begins { first } else { r.start };
            let end = if begins || r.end > next { plan::up(PageSize::K4, r.end).min(self.size) } else { r.end };
            start..end
        };
        [parts[0].as_ref().map(own), parts[1].as_ref().map(own)]
    }
}

impl fmt::Display for BarLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR{} of {:#x} bytes", self.bar, self.size)?;
        for (what, part) in [("MSI-X table", &self.table), ("PBA", &self.pba)] {
            match part {
                Some(part) => write!(f, ", {what} at {part:#x?}")?,
                None => write!(f, ", no {what}")?,
            }
        }
        Ok(())
    }
}

/// The options with which a BAR is opened.
///
/// By default as much is mapped as is safe, in pages of the device's own size.
#[derive(Debug, Clone, Copy, Default)]
pub struct BarOptions<'a> {
    /// How much is to be mapped.
    pub policy: MapPolicy,
    /// The page size to plan for, at least the device's own: what a host with such pages would see. `None` for the device's own.
    pub page: Option<PageSize>,
    /// Registers that the driver writes and that may share 4 KiB with the MSI-X table or the PBA. A page that holds such a register is not mapped
    /// read-only, so that writes to it are not trapped.
    pub registers: &'a [Range<u64>],
}

/// Returns the layouts of all BARs that `device` has.
///
/// It reads configuration space.
///
/// # Errors
/// [`Error::Config`] where the MSI-X capability makes no sense; [`Error::Access`] where configuration space cannot be read; [`Error::Gone`] where it
/// reads all ones.
pub fn layouts(device: &dyn PciDevice) -> Result<Vec<BarLayout>> {
    let config = Config::of(device)?;
    (0..6).filter_map(|bar| layout_in(device, &config, bar).transpose()).collect()
}

/// Returns the layout of one BAR.
///
/// It reads configuration space.
///
/// # Errors
/// [`Error::NoSuchRegion`] where the device has no such BAR; else as [`layouts`].
pub fn layout(device: &dyn PciDevice, bar: u8) -> Result<BarLayout> {
    let none = || Error::NoSuchRegion { device: device.name().to_owned(), region: bar.into() };
    if bar > 5 {
        return Err(none());
    }
    layout_in(device, &Config::of(device)?, bar)?.ok_or_else(none)
}

/// Returns the plan by which [`Bar::of`](super::Bar::of) would open a BAR of `device`.
///
/// It reads configuration space and maps nothing.
///
/// # Errors
/// As [`layout`].
pub fn plan_of(device: &dyn PciDevice, bar: u8, options: BarOptions<'_>) -> Result<BarPlan> {
    let mut layout = layout(device, bar)?;
    layout.registers = options.registers.to_vec();
    let page = options.page.unwrap_or_else(|| device.page_size());
    Ok(plan(&layout, &device.region(bar.into())?, page, &device.isolation(), options.policy))
}

fn layout_in(device: &dyn PciDevice, config: &Config, bar: u8) -> Result<Option<BarLayout>> {
    let size = device.region(bar.into())?.size;
    let msix = config.msix()?;
    let inside = |what: &str, range: Range<u64>| match range.end <= size {
        true => Ok(range),
        // Not clipped: whoever tells of a table that cannot be there may have told of the wrong BAR.
        false => Err(config.broken(format!(
            "its MSI-X {what} would be at {:#x} to {:#x} of BAR{bar}, which has {size:#x} bytes",
            range.start, range.end
        ))),
    };
    let table = msix.filter(|m| m.table_bar == bar).map(|m| inside("table", m.table())).transpose()?;
    let pba = msix.filter(|m| m.pba_bar == bar).map(|m| inside("PBA", m.pba())).transpose()?;
    Ok((size > 0).then(|| BarLayout { bar, size, table, pba, registers: Vec::new() }))
}
