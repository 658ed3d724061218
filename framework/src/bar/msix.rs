//! The MSI-X table and the PBA, to read: what the device really has, beside what `pread` says.
//!
//! Nothing here writes: interrupts are configured through [`PciDevice::set_irqs`](crate::pci::PciDevice::set_irqs) alone.

use super::Bar;
use crate::{Error, Result};

/// The MSI-X table that a BAR holds, read-only.
pub struct MsixTable {
    bar: Bar,
}

/// One entry (PCI Express Base 6.0, 7.7.2 "MSI-X Table Structure").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixEntry {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control, bit 0: the vector is masked.
    pub masked: bool,
}

impl MsixTable {
    pub(super) fn new(bar: Bar) -> Result<Self> {
        match bar.plan().layout.table {
            Some(_) => Ok(Self { bar }),
            None => Err(Error::OutOfRange { what: "MSI-X table", offset: 0, len: 16, size: 0 }),
        }
    }

    /// How many entries.
    #[allow(clippy::len_without_is_empty, reason = "a table has at least one entry")]
    pub fn len(&self) -> u32 {
        self.bar.plan().layout.table.as_ref().map_or(0, |t| ((t.end - t.start) / 16) as u32)
    }

    /// Entry `vector`, and whether it was read through the mapping (what `pread` says of the table is all ones).
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a vector that isn't there.
    pub fn entry(&self, vector: u32) -> Result<(MsixEntry, bool)> {
        let layout = &self.bar.plan().layout;
        let table = layout.table.clone().unwrap_or(0..0);
        if vector >= self.len() {
            return Err(Error::OutOfRange {
                what: "MSI-X table",
                offset: u64::from(vector) * 16,
                len: 16,
                size: table.end - table.start,
            });
        }
        let mut words = [0u32; 4];
        let mut mapped = true;
        for (i, word) in words.iter_mut().enumerate() {
            let offset = table.start + u64::from(vector) * 16 + 4 * i as u64;
            if let Some((mapping, at)) = self.bar.shared.mapped(offset, 4, false) {
                // SAFETY: `mapped` says that the word lies inside; the table is aligned to 8 bytes.
                *word = unsafe { mapping.load::<u32>(at) };
            } else {
                mapped = false;
                let mut bytes = [0; 4];
                self.bar.shared.device.read(layout.bar.into(), offset, &mut bytes)?;
                *word = u32::from_le_bytes(bytes);
            }
        }
        let [low, high, data, control] = words;
        let address = u64::from(high) << 32 | u64::from(low);
        Ok((MsixEntry { address, data, masked: control & 1 != 0 }, mapped))
    }
}
