//! The packed ring (VIRTIO 1.2, 2.8): one ring of descriptors, which the driver makes available and the device marks used in place.

use super::ids::{Ids, Slot};
use super::indirect::{self, Tables};
use super::{Areas, Ring, RingOptions, Segment, Used, needs_event};
use crate::error::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use wholebar_core::mem::{Arena, DmaRing};
use wholebar_core::{Result, barrier};

/// VIRTQ_DESC_F_NEXT (2.8.6): the buffer goes on in the next descriptor.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes.
const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
const INDIRECT: u16 = 4;
/// VIRTQ_DESC_F_AVAIL and VIRTQ_DESC_F_USED (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// RING_EVENT_FLAGS_ENABLE, _DISABLE and _DESC (2.8.10).
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

/// A place in the ring, and the lap it is on: 2.8.1's wrap counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { at: 0, wrap: true };

    #[inline(always)]
    fn forward(&mut self, by: u16, size: u16) {
        self.at += by;
        if self.at >= size {
            self.at -= size;
            self.wrap = !self.wrap;
        }
    }

    /// As an event index has it (2.8.10): the place, and the wrap counter in bit 15.
    fn event(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    /// The flags of a descriptor that is available here.
    #[inline(always)]
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }
}

/// The flags in a descriptor's second word.
#[inline(always)]
fn flags(word: u64) -> u16 {
    (u64::from_le(word) >> 48) as u16
}

/// A packed virtqueue.
pub(crate) struct Packed {
    ids: Ids,
    options: RingOptions,
    /// Descriptors that are free.
    free: u16,
    post: Place,
    take: Place,
    /// Descriptors posted since the last batch was published.
    batch: u16,
    /// The batch's first descriptor, and the word whose flags make it available, and all that follow it.
    first: Option<(u16, u64)>,
    /// Address; then length, identifier (at bit 32) and flags (at bit 48).
    descs: DmaRing<[AtomicU64; 2]>,
    /// Descriptor and flags, of each side's event suppression.
    driver_event: DmaRing<[AtomicU16; 2]>,
    device_event: DmaRing<[AtomicU16; 2]>,
    tables: Option<Tables>,
    areas: Areas,
}

impl Packed {
    /// What was used, once more, where its length was wrong. Without its flag the length is ignored (2.8.4): of a buffer that nothing can be written to, DPDK's vhost
    /// leaves there what the driver wrote. Others, QEMU among them, never set the flag, so that the length of what can be written counts without it.
    #[cold]
    #[inline(never)]
    fn land_without_length(&mut self, id: u32, flags: u16, fault: Fault) -> Result<(Used, Slot), Fault> {
        match fault {
            Fault::Length { most: 0, .. } if flags & WRITE == 0 => self.ids.land(id, 0),
            fault => Err(fault),
        }
    }

    #[inline(always)]
    fn describe(&mut self, id: u16, segment: Segment, flags: u16) {
        let Place { at, .. } = self.post;
        let entry = self.descs.at(at.into());
        // Relaxed: the flags of the batch's first descriptor publish it.
        entry[0].store(segment.iova.to_le(), Ordering::Relaxed);
        let flags = flags | self.post.available();
        let rest = (u64::from(segment.len) | u64::from(id) << 32 | u64::from(flags) << 48).to_le();
        if self.first.is_none() {
            self.first = Some((at, rest));
        } else {
            entry[1].store(rest, Ordering::Relaxed);
        }
        self.post.forward(1, self.ids.size());
        self.batch += 1;
    }
}

impl Ring for Packed {
    fn new(arena: Arc<Arena>, size: u16, options: RingOptions) -> Result<Self> {
        let driver = (16 * u64::from(size)).next_multiple_of(128);
        let device = driver + 128;
        let tables = (device + 4).next_multiple_of(16);
        let chunk = arena.alloc(tables + options.indirect.map_or(0, |_| indirect::bytes(size)), 128)?;
        let descs: DmaRing<[AtomicU64; 2]> = DmaRing::within(&chunk, 0, size.into())?;
        let driver_event: DmaRing<[AtomicU16; 2]> = DmaRing::within(&chunk, driver, 1)?;
        let device_event: DmaRing<[AtomicU16; 2]> = DmaRing::within(&chunk, device, 1)?;
        let tables = options.indirect.map(|base| Tables::within(&chunk, tables, size, base)).transpose()?;
        let zero = {
            let descs = descs.clone();
            let events = [driver_event.clone(), device_event.clone()];
            Arc::new(move || {
                descs.zero();
                events.iter().for_each(DmaRing::zero);
            })
        };
        zero();
        let mut ring = Self {
            ids: Ids::new(size, options.in_order),
            options,
            free: size,
            post: Place::START,
            take: Place::START,
            batch: 0,
            first: None,
            descs,
            driver_event,
            device_event,
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
        self.free
    }

    #[inline(always)]
    fn post_one(&mut self, segment: Segment, write: bool) -> u16 {
        let id = self.ids.claim();
        self.describe(id, segment, if write { WRITE } else { 0 });
        self.ids.launch(id, 1, if write { segment.len } else { 0 });
        self.free -= 1;
        id
    }

    fn descriptors(&self, pieces: usize) -> usize {
        if self.tables.as_ref().is_some_and(|tables| tables.take(pieces)) { 1 } else { pieces }
    }

    fn post(&mut self, segments: &[Segment], readable: usize) -> u16 {
        let id = self.ids.claim();
        let mut writable = 0u32;
        if let Some(tables) = self.tables.as_ref().filter(|tables| tables.take(segments.len())) {
            for (i, segment) in segments.iter().enumerate() {
                let mut flags = 0;
                if i >= readable {
                    writable = writable.saturating_add(segment.len);
                    flags = WRITE;
                }
                // All of a table is one buffer: no flag says that it goes on (2.8.7).
                tables.describe(id, i, *segment, u64::from(flags) << 16);
            }
            self.describe(id, tables.segment(id, segments.len()), INDIRECT);
            self.ids.launch(id, 1, writable);
            self.free -= 1;
            return id;
        }
        for (i, segment) in segments.iter().enumerate() {
            let mut flags = if i + 1 < segments.len() { NEXT } else { 0 };
            if i >= readable {
                writable = writable.saturating_add(segment.len);
                flags |= WRITE;
            }
            self.describe(id, *segment, flags);
        }
        self.ids.launch(id, segments.len() as u16, writable);
        self.free -= segments.len() as u16;
        id
    }

    #[inline(always)]
    fn publish_soon(&self) {
        self.device_event.prefetch(0);
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        let Some((at, rest)) = self.first.take() else { return false };
        let batch = std::mem::take(&mut self.batch);
        self.ids.publish();
        barrier::before_doorbell();
        // Release pairs with the device's (or its model's) Acquire load of the flags: this descriptor and those that follow are seen. The device
        // takes them in their order, so none before this one.
        self.descs.at(at.into())[1].store(rest, Ordering::Release);
        // As in the split ring: at least one side sees the other's store.
        barrier::store_then_load();
        let event = self.device_event.at(0);
        match u16::from_le(event[1].load(Ordering::Relaxed)) {
            ENABLE => true,
            DESC if self.options.event_idx => {
                let event = u16::from_le(event[0].load(Ordering::Relaxed));
                // A place on the lap before lies behind the ring's start.
                let behind = if (event & 1 << 15 != 0) == self.post.wrap { 0 } else { self.ids.size() };
                let new = self.post.at;
                needs_event((event & !(1 << 15)).wrapping_sub(behind), new, new.wrapping_sub(batch))
            }
            // Disabled; reserved values ask for nothing.
            _ => false,
        }
    }

    #[inline(always)]
    fn take(&mut self) -> Result<Option<Used>, Fault> {
        let (used, slot) = match self.ids.land_next() {
            Some(next) => next,
            None => {
                let word = &self.descs.at(self.take.at.into())[1];
                // Acquire pairs with the Release by which the device (or its model) sets the flags after it wrote the descriptor's other fields and
                // the buffer's data: without it, both could be older than the flags.
                let flags = flags(word.load(Ordering::Acquire));
                let done = if self.take.wrap { AVAIL | USED } else { 0 };
                if flags & (AVAIL | USED) != done {
                    return Ok(None);
                }
                barrier::after_status();
                // Once more: a device that writes the fields one after the other may have written these since.
                let rest = u64::from_le(word.load(Ordering::Relaxed));
                let (len, id) = (rest as u32, (rest >> 32) as u16);
                match self.ids.land(id.into(), len) {
                    Ok(landed) => landed,
                    Err(fault) => self.land_without_length(id.into(), flags, fault)?,
                }
            }
        };
        self.ids.give_back(used.id);
        self.take.forward(slot.count, self.ids.size());
        self.free += slot.count;
        Ok(Some(used))
    }

    fn has_taken(&self) -> bool {
        self.take != Place::START
    }

    fn set_interrupt(&mut self, on: bool) {
        let event = self.driver_event.at(0);
        let flags = match on {
            true if self.options.event_idx => {
                event[0].store(self.take.event().to_le(), Ordering::Relaxed);
                DESC
            }
            true => ENABLE,
            false => DISABLE,
        };
        // Release: the device that reads these flags reads the event stored before.
        event[1].store(flags.to_le(), Ordering::Release);
        // As in the split ring.
        barrier::store_then_load();
    }

    fn restart(&mut self) {
        (self.post, self.take, self.batch, self.first) = (Place::START, Place::START, 0, None);
        self.free = self.ids.size();
        self.ids.restart();
        self.set_interrupt(false);
    }
}
