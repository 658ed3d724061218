//! Where buffers are, as a device sees them: what a queue keeps of the arenas that it has used. It does *not* map arenas.

use super::QueueContext;
use crate::mem::{Buf, DmaMapping};
use std::sync::Arc;

/// Translates the addresses of a queue's buffers: the arenas used so far, the last one at hand. They stay mapped while this is there.
pub struct Iovas {
    /// The arena used last, and where it is as the device sees it.
    arena: u32,
    base: u64,
    known: Vec<Arc<DmaMapping>>,
}

impl Default for Iovas {
    fn default() -> Self {
        Self { arena: u32::MAX, base: 0, known: Vec::new() }
    }
}

impl Iovas {
    /// Returns where a buffer's data is, as the device sees it; `None` where its arena is not attached. Takes a lock for an arena that is new to it.
    #[inline(always)]
    pub fn of<T>(&mut self, buf: &Buf, context: &QueueContext<T>) -> Option<u64> {
        if buf.arena_id() != self.arena {
            self.find(buf.arena_id(), context)?;
        }
        Some(self.base.wrapping_add(buf.arena_offset()))
    }

    #[cold]
    fn find<T>(&mut self, id: u32, context: &QueueContext<T>) -> Option<()> {
        if self.known.iter().all(|mapping| mapping.arena().id() != id) {
            self.known.push(context.arena(id)?);
        }
        let mapping = self.known.iter().find(|mapping| mapping.arena().id() == id)?;
        (self.arena, self.base) = (id, mapping.iova().0);
        Some(())
    }
}
