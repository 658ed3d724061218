//! A mapped part of a region: the result of [`PciDevice::map`](super::PciDevice::map).
//!
//! It gives no public access to the memory. Which registers of a mapped page can be reached is up to [`crate::bar`], since the MSI-X table
//! may be in it. The mapping itself knows where the table is, from the backend that made it: a device wrapped around that backend, which shows another
//! configuration space or hands the mapping out as another BAR's, changes nothing about it.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::{CONFIG, Config, PciDevice, Prot};
use crate::cell::Width;
use crate::mem::{Mapping, Words};
use crate::sigbus::{Guard, Guarded};
use crate::{Error, PageSize, Result};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A mapped part of a region, unmapped on drop.
///
/// Its registers are reached through a [`Bar`](crate::bar::Bar).
#[derive(Debug)]
pub struct RegionMapping {
    /// Ends before the memory is unmapped.
    guard: Option<Guard>,
    memory: Mapping,
    /// Where the MSI-X table and the PBA are in it, in bytes from its start.
    msix: Vec<(Range<u64>, &'static str)>,
}

impl RegionMapping {
    /// Makes a mapping of `memory`, which is region `region` of `backend` from `start` on. For backends.
    ///
    /// Only the framework reaches the memory from then on. The MSI-X table and the PBA, where `backend` itself has them in this range, are out of
    /// reach of registers.
    ///
    /// # Errors
    /// [`Error::Config`] where the MSI-X capability makes no sense; [`Error::Access`] where configuration space cannot be read; [`Error::Memory`]
    /// where the system has no memory left.
    pub fn new(memory: Mapping, backend: &dyn PciDevice, region: u32, start: u64) -> Result<Self> {
        let msix = match backend.region(CONFIG) {
            Ok(config) if config.size > 0 => Config::of(backend)?.msix()?,
            // What has no configuration space has no capability there.
            _ => None,
        };
        let inside = |range: Range<u64>| range.start.saturating_sub(start)..range.end.saturating_sub(start);
        let parts = msix.map(|m| [(m.table_bar, m.table(), "table"), (m.pba_bar, m.pba(), "PBA")]);
        let ours = parts.into_iter().flatten().filter(|(bar, ..)| u32::from(*bar) == region);
        let msix = ours.map(|(_, range, what)| (inside(range), what)).filter(|(r, _)| !r.is_empty()).collect();
        let memory = match memory.has_words() {
            true => memory,
            false => {
                let lacking = || Error::Memory {
                    bytes: memory.len(),
                    step: "remembering its words",
                    cause: std::io::ErrorKind::OutOfMemory.into(),
                };
                let words = Words::new(memory.len()).ok_or_else(lacking)?;
                memory.with_words(Arc::new(words), 0)
            }
        };
        Ok(Self { guard: None, memory, msix })
    }

    /// Its pages may be taken away at any time: then they read all ones, and `gone` is raised.
    pub(crate) fn guarded(mut self, gone: Arc<AtomicBool>) -> Result<Self> {
        let (page, writable) = (PageSize::host(), self.memory.prot() == Prot::ReadWrite);
        let (base, len) = (self.memory.base(), self.memory.len() as usize);
        let guard = Guard::new(base, len, page, Guarded::Registers, writable, gone);
        self.guard = Some(guard.map_err(|source| Error::Io { what: "guarding a mapping".to_owned(), cause: source })?);
        Ok(self)
    }

    /// Whether a page of it was taken away; what is read is all ones from then on.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_gone)
    }

    /// Whether a part of it touches the MSI-X table or the PBA, and which.
    pub(crate) fn msix(&self, part: Range<u64>) -> Option<&'static str> {
        self.msix.iter().find(|(r, _)| part.start < r.end && r.start < part.end).map(|(_, what)| *what)
    }

    /// Returns the size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// Returns the protection.
    pub fn prot(&self) -> Prot {
        self.memory.prot()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.memory.base()
    }

    /// Whether stores go to a device's registers rather than to memory.
    pub(crate) fn is_device(&self) -> bool {
        self.memory.is_device()
    }

    /// The register at `offset`, to be stored to from now on: as [`Mapping::register`].
    pub(crate) fn register<T: Width>(&self, offset: u64) -> Option<NonNull<u8>> {
        self.memory.register::<T>(offset)
    }

    /// Loads a register: as [`Mapping::load`].
    pub(crate) fn load<T: Width>(&self, offset: u64) -> Option<T> {
        self.memory.load(offset)
    }

    /// Stores to a register: as [`Mapping::store`].
    pub(crate) fn store<T: Width>(&self, offset: u64, value: T) -> bool {
        self.memory.store(offset, value)
    }
}
