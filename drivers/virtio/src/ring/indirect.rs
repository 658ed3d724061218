//! Tables of indirect descriptors (VIRTIO 1.2, 2.7.5.3 and 2.8.7): with one, a buffer of several pieces takes one descriptor of its ring.
//!
//! Each of a ring's identifiers has a table of its own, so that none has to be allocated. This file does *not* know how the two formats of
//! ring lay out what is behind an address.

use super::Segment;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::Result;
use wholebar_core::mem::{Chunk, DmaRing, Iova};

/// Bytes of a descriptor in a table.
const DESCRIPTOR: u64 = 16;
/// Descriptors of all tables of a ring, unless that leaves fewer than four to each.
const ALL: u16 = 8192;

/// Descriptors of each table of a ring of `size`, a power of two: a buffer in more pieces is a chain in the ring.
fn entries(size: u16) -> u16 {
    // A chain is no longer than its queue, in a table neither (2.7.5.3.1).
    (ALL / size.max(1)).clamp(4, 32).min(size)
}

/// Bytes of the tables of a ring of `size`.
pub(crate) fn bytes(size: u16) -> u64 {
    DESCRIPTOR * u64::from(entries(size)) * u64::from(size)
}

/// The tables of a ring.
pub(super) struct Tables {
    entries: u16,
    words: DmaRing<[AtomicU64; 2]>,
    /// Where the first is, as the device sees it.
    iova: u64,
}

impl Tables {
    /// Those of a ring of `size`, `at` bytes into its chunk, whose arena begins at `base` as the device sees it.
    pub fn within(chunk: &Chunk, at: u64, size: u16, base: Iova) -> Result<Self> {
        let entries = entries(size);
        let words = DmaRing::within(chunk, at, u32::from(entries) * u32::from(size))?;
        Ok(Self { entries, words, iova: base.offset(chunk.offset() + at).0 })
    }

    /// Whether a buffer of so many pieces goes into a table.
    #[inline(always)]
    pub fn take(&self, pieces: usize) -> bool {
        (2..=usize::from(self.entries)).contains(&pieces)
    }

    /// Where the table of `id` is, with `pieces` descriptors.
    #[inline(always)]
    pub fn segment(&self, id: u16, pieces: usize) -> Segment {
        let at = u64::from(id) * u64::from(self.entries) * DESCRIPTOR;
        Segment { iova: self.iova.wrapping_add(at), len: (pieces as u64 * DESCRIPTOR) as u32 }
    }

    /// Writes descriptor `index` of the table of `id`: `rest` is what is behind the length.
    #[inline(always)]
    pub fn describe(&self, id: u16, index: usize, segment: Segment, rest: u64) {
        let words = self.words.at(u32::from(id) * u32::from(self.entries) + index as u32);
        // Relaxed: what publishes the ring's descriptor publishes these.
        words[0].store(segment.iova.to_le(), Ordering::Relaxed);
        words[1].store((u64::from(segment.len) | rest << 32).to_le(), Ordering::Relaxed);
    }
}
