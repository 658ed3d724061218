//! What has to be known of a BAR to plan it, and how it is found: the region's size, and the MSI-X capability in configuration space.

use super::{BarPlan, MapPolicy, plan};
use crate::pci::{Config, PciDevice};
use crate::{Error, PageSize, Result};
use std::fmt;
use std::ops::Range;

/// What has to be known of a BAR to plan it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarLayout {
    /// 0 to 5.
    pub bar: u8,
    /// Bytes.
    pub size: u64,
    /// The part of the BAR that is the MSI-X table, if it is in this one.
    pub table: Option<Range<u64>>,
    /// The part of the BAR that is the PBA, if it is in this one.
    pub pba: Option<Range<u64>>,
    /// Registers the driver knows of. A page that holds table or PBA is mapped read-only only where none of these is in it.
    pub registers: Vec<Range<u64>>,
}

impl BarLayout {
    /// The ranges that table and PBA have to themselves, in this order: where no other registers are expected.
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

/// How a BAR is opened: by default as much is mapped as may be, in the device's own pages.
#[derive(Debug, Clone, Copy, Default)]
pub struct BarOptions<'a> {
    /// How much is to be mapped.
    pub policy: MapPolicy,
    /// A page size to plan for, at least the device's own: what a host with such pages would see.
    pub page: Option<PageSize>,
    /// Registers that the driver will write and that may share 4 KiB with the MSI-X table or the PBA. Without them such a page may be
    /// mapped read-only, and writes to it are trapped.
    pub registers: &'a [Range<u64>],
}

/// The layouts of the BARs that `device` has.
///
/// # Errors
/// [`Error::Config`] where the MSI-X capability makes no sense; [`Error::Access`] where it cannot be reached.
pub fn layouts(device: &dyn PciDevice) -> Result<Vec<BarLayout>> {
    let config = Config::of(device)?;
    (0..6).filter_map(|bar| layout_in(device, &config, bar).transpose()).collect()
}

/// The layout of one BAR.
///
/// # Errors
/// As [`layouts`], and [`Error::NoSuchRegion`] where the device has no such BAR.
pub fn layout(device: &dyn PciDevice, bar: u8) -> Result<BarLayout> {
    let none = || Error::NoSuchRegion { device: device.name().to_owned(), region: bar.into() };
    if bar > 5 {
        return Err(none());
    }
    layout_in(device, &Config::of(device)?, bar)?.ok_or_else(none)
}

/// Plans one BAR of `device`: what [`Bar::of`](super::Bar::of) opens, to look at first.
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
