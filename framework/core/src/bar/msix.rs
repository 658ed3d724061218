//! The MSI-X table and the PBA of a device, read-only: what the device has there, beside what its backend says of it.
//!
//! Nothing here writes, and what is mapped for it is mapped read-only. Interrupts are configured through [`PciDevice::set_irqs`] alone.

use super::{Access, Bar, BarOptions, MapPolicy, plan_of};
use crate::pci::config::Msix;
use crate::pci::{Config, PciDevice};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// A device's MSI-X table and pending bit array (PBA), read-only.
#[derive(Debug)]
pub struct MsixTable {
    msix: Msix,
    pub(super) table: Bar,
    pub(super) pba: Bar,
}

/// One entry of the table (PCI Express Base 6.0, 7.7.2.5 to 7.7.2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixEntry {
    /// The message address.
    pub address: u64,
    /// The message data.
    pub data: u32,
    /// The vector control word.
    pub control: u32,
    /// Whether the entry was read through a mapping. Otherwise the backend was asked, and the kernel's VFIO returns all ones instead of the entry.
    pub mapped: bool,
}

impl MsixEntry {
    /// Returns whether the vector is masked: vector control, bit 0.
    pub fn is_masked(&self) -> bool {
        self.control & 1 != 0
    }
}

impl MsixTable {
    /// Opens the table of `device`, whatever the plans of its BARs; `None` where it has no MSI-X. Pages of the table and the PBA are mapped
    /// read-only, where the backend lets them be mapped.
    ///
    /// # Errors
    /// [`Error::Config`] where the MSI-X capability makes no sense; [`Error::Access`] where configuration space cannot be read; else as [`Bar::of`].
    pub fn of(device: Arc<dyn PciDevice>) -> Result<Option<Self>> {
        let Some(msix) = Config::of(device.as_ref())?.msix()? else { return Ok(None) };
        let table = read_only(device.clone(), msix.table_bar, msix.table())?;
        let pba = read_only(device, msix.pba_bar, msix.pba())?;
        Ok(Some(Self { msix, table, pba }))
    }

    /// Returns the number of entries: 1 to 2048.
    #[allow(clippy::len_without_is_empty, reason = "a table has at least one entry")]
    pub fn len(&self) -> u32 {
        self.msix.vectors.into()
    }

    /// Returns the capability that says where the table and the PBA are.
    pub fn capability(&self) -> &Msix {
        &self.msix
    }

    /// Reads entry `vector`: four register reads.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the table has no such entry; [`Error::Access`] where the table is not mapped and the backend cannot read it;
    /// [`Error::Gone`].
    pub fn entry(&self, vector: u32) -> Result<MsixEntry> {
        let at = self.msix.table().start.saturating_add(u64::from(self.check(vector)?).saturating_mul(16));
        let (mut words, mut mapped) = ([0u32; 4], true);
        for (at, word) in (at..).step_by(4).zip(&mut words) {
            *word = self.table.load(at)?;
            mapped &= self.table.shared.mapped(at, 4, false).is_some();
        }
        let [low, high, data, control] = words;
        Ok(MsixEntry { address: u64::from(high) << 32 | u64::from(low), data, control, mapped })
    }

    /// Returns whether `vector` is pending: its message was due while the vector was masked (7.7.2.9).
    ///
    /// # Errors
    /// As [`entry`](Self::entry).
    pub fn is_pending(&self, vector: u32) -> Result<bool> {
        let bits = u64::from(self.check(vector)?);
        let word: u32 = self.pba.load(self.msix.pba().start.saturating_add((bits / 32).saturating_mul(4)))?;
        Ok(word >> (bits % 32) & 1 != 0)
    }

    fn check(&self, vector: u32) -> Result<u32> {
        let table = self.msix.table();
        match vector < self.len() {
            true => Ok(vector),
            false => Err(Error::OutOfRange {
                what: "MSI-X table",
                offset: 16 * u64::from(vector),
                len: 16,
                size: table.end.saturating_sub(table.start),
            }),
        }
    }
}

/// Opens BAR `bar` with nothing mapped but the pages that hold `range`, and these read-only.
fn read_only(device: Arc<dyn PciDevice>, bar: u8, range: Range<u64>) -> Result<Bar> {
    let mut plan = plan_of(device.as_ref(), bar, BarOptions { policy: MapPolicy::Whole, ..BarOptions::default() })?;
    for span in &mut plan.spans {
        let needed = span.range.start < range.end && range.start < span.range.end;
        span.access = if needed && span.access != Access::Trapped { Access::ReadOnly } else { Access::Trapped };
    }
    Bar::open(device, plan)
}
