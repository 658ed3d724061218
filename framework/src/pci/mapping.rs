//! A mapped part of a region: what [`PciDevice::map`](super::PciDevice::map) returns.
//!
//! It has no public access to the memory. What can be reached of a mapped page is [`crate::bar`]'s to decide: the MSI-X table
//! may lie in it.

use super::Prot;
use crate::cell::Width;
use crate::mem::Mapping;
use crate::sigbus::{Guard, Guarded};
use crate::{Error, PageSize, Result};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A mapped part of a region, unmapped on drop. Registers in it are reached through a [`Bar`](crate::bar::Bar).
#[derive(Debug)]
pub struct RegionMapping {
    /// Ends before the memory is unmapped.
    guard: Option<Guard>,
    memory: Mapping,
}

impl From<Mapping> for RegionMapping {
    /// Gives the memory up: only the framework reaches it from here on.
    fn from(memory: Mapping) -> Self {
        Self { guard: None, memory }
    }
}

impl RegionMapping {
    /// Memory whose pages may be taken away at any time: then it reads all ones, and `gone` is raised.
    pub(crate) fn guarded(memory: Mapping, gone: Arc<AtomicBool>) -> Result<Self> {
        let (page, writable) = (PageSize::host(), memory.prot() == Prot::ReadWrite);
        let guard = Guard::new(memory.base(), memory.len() as usize, page, Guarded::Registers, writable, gone);
        match guard {
            Ok(guard) => Ok(Self { guard: Some(guard), memory }),
            Err(source) => Err(Error::Io { what: "guarding a mapping".to_owned(), cause: source }),
        }
    }

    /// Whether a page of it was taken away; what is read is all ones from then on.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_gone)
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// What may be done to it.
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

    /// Loads a register.
    ///
    /// # Safety
    /// As [`Mapping::load`]: aligned to the width, and inside.
    pub(crate) unsafe fn load<T: Width>(&self, offset: u64) -> T {
        // SAFETY: passed on.
        unsafe { self.memory.load(offset) }
    }

    /// Stores to a register.
    ///
    /// # Safety
    /// As [`Mapping::store`]: aligned to the width, inside, and writable.
    pub(crate) unsafe fn store<T: Width>(&self, offset: u64, value: T) {
        // SAFETY: passed on.
        unsafe { self.memory.store(offset, value) }
    }
}
