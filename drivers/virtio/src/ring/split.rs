//! The split ring (VIRTIO 1.2, 2.7): a table of descriptors, a ring of those that are available, a ring of those that were used.

use super::ids::Ids;
use super::indirect::{self, Tables};
use super::{Areas, Ring, RingOptions, Segment, Used, needs_event};
use crate::error::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use wholebar_core::mem::{Arena, DmaRing};
use wholebar_core::{Result, barrier};

/// VIRTQ_DESC_F_NEXT (2.7.5): the buffer goes on in another descriptor.
const NEXT: u64 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes.
const WRITE: u64 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
const INDIRECT: u64 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.7).
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.10).
const NO_NOTIFY: u16 = 1;

/// A split virtqueue.
pub(crate) struct Split {
    ids: Ids,
    options: RingOptions,
    /// The available index: what was posted, and what was published.
    posted: u16,
    published: u16,
    /// The used index: what was taken, and what the device said last.
    taken: u16,
    used: u16,
    /// Address; then length, flags (at bit 32) and next (at bit 48). The device reads it after an index that is published.
    table: DmaRing<[AtomicU64; 2]>,
    /// Flags, index.
    avail_head: DmaRing<AtomicU16>,
    avail: DmaRing<AtomicU16>,
    used_event: DmaRing<AtomicU16>,
    /// Flags, index.
    used_head: DmaRing<AtomicU16>,
    /// Identifier, length.
    used_ring: DmaRing<[AtomicU32; 2]>,
    avail_event: DmaRing<AtomicU16>,
    tables: Option<Tables>,
    areas: Areas,
}

impl Split {
    #[inline(always)]
    fn describe(&self, id: u16, segment: Segment, flags: u64, next: u16) {
        let entry = self.table.at(id.into());
        // Relaxed: the available index publishes it.
        entry[0].store(segment.iova.to_le(), Ordering::Relaxed);
        let rest = u64::from(segment.len) | flags << 32 | u64::from(next) << 48;
        entry[1].store(rest.to_le(), Ordering::Relaxed);
    }

    #[inline(always)]
    fn offer(&mut self, head: u16) {
        // Relaxed: the available index publishes it.
        self.avail.at(self.posted.into()).store(head.to_le(), Ordering::Relaxed);
        self.posted = self.posted.wrapping_add(1);
    }

    /// Reads the used index; whether there is something to take.
    #[inline(always)]
    fn poll_used(&mut self) -> Result<bool, Fault> {
        // Acquire pairs with the Release by which the device (or its model) sets the index after it wrote the entries and the buffers' data:
        // without it, both could be older than the index.
        self.used = u16::from_le(self.used_head.at(1).load(Ordering::Acquire));
        let ahead = self.used.wrapping_sub(self.taken);
        if ahead == 0 {
            return Ok(false);
        }
        barrier::after_status();
        if ahead > self.ids.flying() {
            return Err(Fault::Ahead { by: ahead, flying: self.ids.flying() });
        }
        Ok(true)
    }
}

impl Ring for Split {
    fn new(arena: Arc<Arena>, size: u16, options: RingOptions) -> Result<Self> {
        let n = u64::from(size);
        // 2.7: alignments of 16, 2 and 4; each area has cache lines of its own. What was used begins 4 bytes later, so that none of its entries of
        // 8 bytes is in two lines, or in two pages, which a device may find far apart.
        let driver = (16 * n).next_multiple_of(128);
        let device = driver + (6 + 2 * n).next_multiple_of(128) + 4;
        let tables = (device + 6 + 8 * n).next_multiple_of(16);
        let chunk = arena.alloc(tables + options.indirect.map_or(0, |_| indirect::bytes(size)), 128)?;
        let table = DmaRing::within(&chunk, 0, size.into())?;
        let avail_head = DmaRing::within(&chunk, driver, 2)?;
        let avail = DmaRing::within(&chunk, driver + 4, size.into())?;
        let used_event = DmaRing::within(&chunk, driver + 4 + 2 * n, 1)?;
        let used_head = DmaRing::within(&chunk, device, 2)?;
        let used_ring = DmaRing::within(&chunk, device + 4, size.into())?;
        let avail_event = DmaRing::within(&chunk, device + 4 + 8 * n, 1)?;
        let tables = options.indirect.map(|base| Tables::within(&chunk, tables, size, base)).transpose()?;
        let zero = {
            let halves = [&avail_head, &avail, &used_event, &used_head, &avail_event].map(DmaRing::clone);
            let (table, used): (DmaRing<[AtomicU64; 2]>, DmaRing<[AtomicU32; 2]>) = (table.clone(), used_ring.clone());
            Arc::new(move || {
                halves.iter().for_each(DmaRing::zero);
                table.zero();
                used.zero();
            })
        };
        zero();
        let mut ring = Self {
            ids: Ids::new(size, options.in_order),
            options,
            posted: 0,
            published: 0,
            taken: 0,
            used: 0,
            table,
            avail_head,
            avail,
            used_event,
            used_head,
            used_ring,
            avail_event,
            tables,
            areas: Areas { chunk, driver, device, zero },
        };
        ring.restart();
        Ok(ring)
    }

    fn areas(&self) -> Areas {
        self.areas.clone()
    }

    #[inline(always)]
    fn size(&self) -> u16 {
        self.ids.size()
    }

    #[inline(always)]
    fn free(&self) -> u16 {
        self.ids.free()
    }

    #[inline(always)]
    fn post_one(&mut self, segment: Segment, write: bool) -> u16 {
        let id = self.ids.claim();
        self.describe(id, segment, if write { WRITE } else { 0 }, 0);
        self.ids.launch(id, 1, if write { segment.len } else { 0 });
        self.offer(id);
        id
    }

    fn descriptors(&self, pieces: usize) -> usize {
        if self.tables.as_ref().is_some_and(|tables| tables.take(pieces)) { 1 } else { pieces }
    }

    fn post(&mut self, segments: &[Segment], readable: usize) -> u16 {
        if let Some(tables) = self.tables.as_ref().filter(|tables| tables.take(segments.len())) {
            let id = self.ids.claim();
            let mut writable = 0u32;
            for (i, segment) in segments.iter().enumerate() {
                let next = i + 1;
                let mut rest = if next < segments.len() { NEXT | (next as u64) << 16 } else { 0 };
                if i >= readable {
                    writable = writable.saturating_add(segment.len);
                    rest |= WRITE;
                }
                tables.describe(id, i, *segment, rest);
            }
            self.describe(id, tables.segment(id, segments.len()), INDIRECT, 0);
            self.ids.launch(id, 1, writable);
            self.offer(id);
            return id;
        }
        let head = self.ids.claim();
        let (mut id, mut writable) = (head, 0u32);
        for (i, segment) in segments.iter().enumerate() {
            let mut flags = 0;
            if i >= readable {
                writable = writable.saturating_add(segment.len);
                flags = WRITE;
            }
            if i + 1 < segments.len() {
                let next = self.ids.claim();
                self.describe(id, *segment, flags | NEXT, next);
                // The table is the device's too: what it says there is not believed later.
                self.ids.slots.at_mut(id).next = next;
                id = next;
            } else {
                self.describe(id, *segment, flags, 0);
            }
        }
        self.ids.launch(head, segments.len() as u16, writable);
        self.offer(head);
        head
    }

    #[inline(always)]
    fn publish_soon(&self) {
        if self.options.event_idx { self.avail_event.prefetch(0) } else { self.used_head.prefetch(0) }
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.posted);
        if old == new {
            return false;
        }
        self.published = new;
        self.ids.publish();
        barrier::before_doorbell();
        // Release pairs with the device's (or its model's) Acquire load of the index: descriptors posted before are seen.
        self.avail_head.at(1).store(new.to_le(), Ordering::Release);
        // The device says that it wants to be notified, then looks at the index once more; we do it the other way round. With this barrier on
        // both sides at least one of us sees the other's store.
        barrier::store_then_load();
        if self.options.event_idx {
            needs_event(u16::from_le(self.avail_event.at(0).load(Ordering::Relaxed)), new, old)
        } else {
            u16::from_le(self.used_head.at(0).load(Ordering::Relaxed)) & NO_NOTIFY == 0
        }
    }

    #[inline(always)]
    fn take(&mut self) -> Result<Option<Used>, Fault> {
        if self.taken == self.used && !self.poll_used()? {
            // A batch is as many entries as its buffers, and the index says so (2.7.9).
            return if self.ids.in_batch() { Err(Fault::Batch) } else { Ok(None) };
        }
        let (used, slot) = match self.ids.land_next() {
            Some(next) => next,
            None => {
                let entry = self.used_ring.at(self.taken.into());
                let [id, len] = [0, 1].map(|i| u32::from_le(entry[i].load(Ordering::Relaxed)));
                self.ids.land(id, len)?
            }
        };
        self.taken = self.taken.wrapping_add(1);
        let mut id = used.id;
        for left in (0..slot.count).rev() {
            self.ids.give_back(id);
            if left > 0 {
                id = self.ids.slots.at(id).next;
            }
        }
        Ok(Some(used))
    }

    fn has_taken(&self) -> bool {
        self.taken != 0
    }

    fn set_interrupt(&mut self, on: bool) {
        if self.options.event_idx {
            // 2.7.7.1: flags stay 0. Behind what was taken, the index passes the event after 65,535 more buffers.
            let event = if on { self.taken } else { self.taken.wrapping_sub(1) };
            self.used_event.at(0).store(event.to_le(), Ordering::Relaxed);
        } else {
            let flags = if on { 0 } else { NO_INTERRUPT };
            self.avail_head.at(0).store(flags.to_le(), Ordering::Relaxed);
        }
        // Before the caller's last look. Pairs with the device's barrier between its used index and its look at what is stored here.
        barrier::store_then_load();
    }

    fn restart(&mut self) {
        (self.posted, self.published, self.taken, self.used) = (0, 0, 0, 0);
        self.ids.restart();
        self.set_interrupt(false);
    }
}
