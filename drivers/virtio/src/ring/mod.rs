//! Virtqueues as words in memory (VIRTIO 1.2, 2.6 to 2.8): post buffers, publish a batch of them, take what the device used.
//!
//! Two formats of ring, [`Split`] and [`Packed`], with one trait, over which queues are generic: no call is dynamic. What the device
//! writes is checked against [`Ids`] before it is believed: a ring that breaks the rules is a [`Fault`], and nothing else. Words are atomics
//! of the widths that the specification gives them: this is safe code, with the device, or a thread that models it, on the other side.
//! Nothing here knows what buffers hold.

mod ids;
mod indirect;
mod packed;
mod split;
#[cfg(test)]
mod tests;

pub(crate) use indirect::bytes as table_bytes;
pub(crate) use packed::Packed;
pub(crate) use split::Split;

use crate::error::Fault;
use crate::feature;
use std::sync::Arc;
use wholebar_core::mem::{Arena, Chunk, Iova};

/// One piece of a buffer, as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub iova: u64,
    pub len: u32,
}

/// A buffer that the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// As [`Ring::post`] gave it.
    pub id: u16,
    /// Bytes that the device wrote: at most what it could.
    pub len: u32,
}

/// What was negotiated of rings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RingOptions {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_IN_ORDER.
    pub in_order: bool,
    /// VIRTIO_F_INDIRECT_DESC, where the ring is to have tables: where its arena begins as the device sees it.
    pub indirect: Option<Iova>,
}

impl RingOptions {
    /// As the features say, without tables.
    pub fn of(features: u64) -> Self {
        let has = |feature: u64| features & feature != 0;
        Self { event_idx: has(feature::EVENT_IDX), in_order: has(feature::IN_ORDER), indirect: None }
    }
}

/// A ring's memory, for who makes it known to the device.
#[derive(Clone)]
pub(crate) struct Areas {
    chunk: Chunk,
    /// Where in the chunk the driver area and the device area are; the descriptor area is at its start.
    driver: u64,
    device: u64,
    /// Zeroes each word in its own width: a device that is a thread sees nothing else.
    zero: Arc<dyn Fn() + Send + Sync>,
}

impl Areas {
    /// Where in their arena they begin: descriptors, driver, device.
    pub fn offsets(&self) -> [u64; 3] {
        [0, self.driver, self.device].map(|at| self.chunk.offset() + at)
    }

    /// Zeroes them. The device must not know of them.
    pub fn zero(&self) {
        (self.zero)();
    }

    /// Whether their memory is quarantined when it is dropped: on while the device knows of it.
    pub fn set_quarantine(&self, on: bool) {
        self.chunk.set_quarantine(on);
    }
}

/// One virtqueue, driver's side.
pub(crate) trait Ring: Send + Sized + 'static {
    /// A ring of `size` descriptors (a power of two), in zeroed memory of `arena`.
    fn new(arena: Arc<Arena>, size: u16, options: RingOptions) -> wholebar_core::Result<Self>;

    /// Its memory.
    fn areas(&self) -> Areas;

    /// Its descriptors.
    fn size(&self) -> u16;

    /// Descriptors that are free.
    fn free(&self) -> u16;

    /// How many descriptors a buffer of so many pieces takes.
    fn descriptors(&self, pieces: usize) -> usize;

    /// Posts a buffer in one piece, which the device reads, or writes. At least one descriptor is free.
    fn post_one(&mut self, segment: Segment, write: bool) -> u16;

    /// Posts a buffer of several pieces: first `readable` that the device reads, then those that it writes. There is one piece at least, and
    /// as many descriptors are free as [`descriptors`](Self::descriptors) says.
    fn post(&mut self, segments: &[Segment], readable: usize) -> u16;

    /// A hint that [`publish`](Self::publish) comes soon: what it reads of the device's is on its way from here on.
    fn publish_soon(&self);

    /// Makes known what was posted: one store. Whether the device wants to be notified.
    fn publish(&mut self) -> bool;

    /// Takes the next buffer that the device is done with.
    fn take(&mut self) -> Result<Option<Used>, Fault>;

    /// Whether any was taken since the ring was new: it says no once in 65,536 as well, or (packed) once in two laps.
    fn has_taken(&self) -> bool;

    /// Whether the device is to interrupt when it uses the next buffer.
    fn set_interrupt(&mut self, on: bool);

    /// As new, in memory that was [zeroed](Areas::zero).
    fn restart(&mut self);
}

/// Whether going from `old` to `new` passed `event` (2.7.7.2), in 16-bit arithmetic.
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
