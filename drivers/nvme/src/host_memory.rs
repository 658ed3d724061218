//! The host memory buffer (NVM Express Base 2.0, 8.9 and 5.27.1.10): memory of the host's that a controller with too little of its own keeps its tables in. This
//! driver gives it one piece, which nobody else has, and takes it back before it is shut down. A reset takes it away from the controller, too: it gets the same again
//! then, and is told that nothing in it has changed.

use crate::admin::AdminQueue;
use crate::command::set_features;
use crate::control::memory;
use crate::error::Result;
use crate::feature::HOST_MEMORY_BUFFER;
use crate::hardware::Hardware;
use crate::identify::Controller;
use std::sync::Arc;
use wholebar_core::mem::{Chunk, DmaMapping};

/// EHM, bit 0 of dword 11: the controller may use it.
const ENABLE: u32 = 1;
/// MR, bit 1: it had it before, and nothing in it has changed.
const RETURN: u32 = 1 << 1;
/// Bytes of a descriptor: an address, and how many of the controller's pages.
const DESCRIPTOR: usize = 16;

pub(crate) struct HostMemory {
    /// Keeps it mapped.
    _mapping: Arc<DmaMapping>,
    /// The memory, and behind it the list of its one descriptor.
    chunk: Chunk,
    /// Where it is as the controller sees it.
    iova: u64,
    bytes: u64,
    page: u64,
    /// The controller may use it.
    given: bool,
    /// It may have something in it.
    used: bool,
}

impl HostMemory {
    /// Memory for a controller that prefers to have some: what it prefers or `most` bytes, or less where there is less; `None` where it prefers none, may have none,
    /// or could not use what it may have.
    pub fn find(hw: &Hardware, controller: &Controller, most: Option<u64>) -> Result<Option<Self>> {
        let Controller { host_memory_preferred: preferred, host_memory_minimum: minimum, .. } = *controller;
        let Some(most) = most.filter(|_| preferred > 0) else { return Ok(None) };
        // A descriptor has 32 bits for its pages.
        let largest = u64::from(u32::MAX).saturating_mul(hw.page);
        let least = minimum.max(controller.host_memory_piece).max(hw.page);
        let whole = |bytes: u64| bytes - bytes % hw.page;
        let mut bytes = whole(preferred.min(most).min(largest));
        while bytes >= least {
            match Self::new(hw, bytes) {
                Ok(memory) => return Ok(Some(memory)),
                Err(error) => tracing::info!(device = hw.name(), bytes, %error, "less memory is tried for its buffer"),
            }
            bytes = whole(bytes / 2);
        }
        tracing::warn!(device = hw.name(), preferred, least, most, "it is given no host memory buffer");
        Ok(None)
    }

    fn new(hw: &Hardware, bytes: u64) -> Result<Self> {
        let mapping = memory(hw, bytes.saturating_add(hw.page))?;
        let chunk = mapping.arena().alloc(bytes + hw.page, hw.page)?;
        let iova = hw.aligned(mapping.iova().offset(chunk.offset()).0)?;
        let mut descriptor = [0; DESCRIPTOR];
        descriptor[..8].copy_from_slice(&iova.to_le_bytes());
        descriptor[8..12].copy_from_slice(&((bytes / hw.page) as u32).to_le_bytes());
        chunk.write(bytes, &descriptor)?;
        Ok(Self { _mapping: mapping, chunk, iova, bytes, page: hw.page, given: false, used: false })
    }

    /// Returns how many bytes the controller may use now: 0 before it was given any, and after it was taken back.
    pub fn given(&self) -> u64 {
        if self.given { self.bytes } else { 0 }
    }

    /// Lets the controller use the memory, by Set Features (0Dh, EHM).
    pub fn give(&mut self, hw: &Hardware, admin: &mut AdminQueue) -> Result<()> {
        self.chunk.set_quarantine(true);
        let how = if self.used { ENABLE | RETURN } else { ENABLE };
        let given = admin.execute_entry(hw, self.command(how));
        (self.given, self.used) = (given.is_ok(), true);
        if let Err(crate::Error::Refused { .. }) = given {
            self.chunk.set_quarantine(false);
        }
        given.map(drop)
    }

    /// Has the controller use it no more: when this returns, it has taken out what it needs.
    pub fn take_back(&mut self, hw: &Hardware, admin: &mut AdminQueue) -> Result<()> {
        if self.given {
            admin.execute_entry(hw, self.command(0))?;
            self.given = false;
        }
        Ok(())
    }

    /// Set Features with dwords 12 to 15: the size in pages, where the list is, and how long it is.
    fn command(&self, how: u32) -> [u64; 8] {
        let mut entry = set_features(HOST_MEMORY_BUFFER, 0, how, false).entry(0);
        let list = self.iova + self.bytes;
        if how & ENABLE != 0 {
            let pages = self.bytes / self.page;
            entry[6] = pages | (list << 32);
            entry[7] = (list >> 32) | (1 << 32);
        }
        entry
    }

    /// Whether the memory is leaked when this is dropped: on while the controller may use it.
    pub fn set_quarantine(&self, on: bool) {
        self.chunk.set_quarantine(on);
    }
}
