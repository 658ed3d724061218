//! A mapped part of a region: what [`PciDevice::map`](super::PciDevice::map) returns.
//!
//! It has no public access to the memory. What can be reached of a mapped page is [`crate::bar`]'s to decide: the MSI-X table
//! may lie in it.

use super::Prot;
use crate::cell::Width;
use crate::mem::Mapping;
use std::ptr::NonNull;

/// A mapped part of a region, unmapped on drop. Registers in it are reached through a [`Bar`](crate::bar::Bar).
#[derive(Debug)]
pub struct RegionMapping(Mapping);

impl From<Mapping> for RegionMapping {
    /// Gives the memory up: only the framework reaches it from here on.
    fn from(mapping: Mapping) -> Self {
        Self(mapping)
    }
}

impl RegionMapping {
    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// What may be done to it.
    pub fn prot(&self) -> Prot {
        self.0.prot()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    /// Whether stores go to a device's registers rather than to memory.
    pub(crate) fn is_device(&self) -> bool {
        self.0.is_device()
    }

    /// Loads a register.
    ///
    /// # Safety
    /// As [`Mapping::load`]: aligned to the width, and inside.
    pub(crate) unsafe fn load<T: Width>(&self, offset: u64) -> T {
        // SAFETY: passed on.
        unsafe { self.0.load(offset) }
    }

    /// Stores to a register.
    ///
    /// # Safety
    /// As [`Mapping::store`]: aligned to the width, inside, and writable.
    pub(crate) unsafe fn store<T: Width>(&self, offset: u64, value: T) {
        // SAFETY: passed on.
        unsafe { self.0.store(offset, value) }
    }
}
