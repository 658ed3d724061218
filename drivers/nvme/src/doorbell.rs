//! Doorbells, and their shadows (NVM Express Base 2.0, 5.8 and annex B.5).
//!
//! A submission queue in the controller's memory, or one whose entries are longer than 64 bytes, is written elsewhere, and copied there before its doorbell is rung.
//!
//! With shadows, the host writes an index to memory, and to the register only where the controller asked for that by an event index.

use crate::cmb::Part;
use crate::regs::{cq_doorbell, sq_doorbell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use wholebar_core::bar::{Bar, Doorbell, DoorbellCounts};
use wholebar_core::mem::{Arena, DmaRing};
use wholebar_core::{Result, barrier};

/// One doorbell of a queue.
pub(crate) struct Bell {
    register: Doorbell<u32>,
    beside: Option<Beside>,
}

/// What is written before the register.
enum Beside {
    Shadow(Shadow),
    Entries(Entries),
}

/// A submission queue that the controller has elsewhere: what is announced is copied there.
struct Entries {
    ring: DmaRing<[AtomicU64; 8]>,
    to: Elsewhere,
    /// The entry up to which it was.
    told: u32,
}

/// Where a controller has its submission queue, if it is not where entries are written.
pub(crate) enum Elsewhere {
    /// In its own memory.
    Controller(Part),
    /// In entries of 128 bytes, of which the second half is zeros.
    Long(DmaRing<[AtomicU64; 16]>),
}

impl Elsewhere {
    /// Stores word `word` of an entry.
    fn store(&self, entry: u32, word: usize, value: u64) {
        match self {
            Self::Controller(part) => part.write(u64::from(entry) * 64 + 8 * word as u64, value),
            // Relaxed: the doorbell publishes it.
            Self::Long(ring) => ring.at(entry)[word].store(value.to_le(), Ordering::Relaxed),
        }
    }

    fn set_quarantine(&self, on: bool) {
        match self {
            Self::Controller(part) => part.set_quarantine(on),
            Self::Long(ring) => ring.set_quarantine(on),
        }
    }
}

/// A doorbell's place in the two pages.
struct Shadow {
    pages: Arc<Shadows>,
    at: u32,
    old: u32,
    updates: u64,
}

/// The page of shadow doorbells, and the page of event indexes.
pub(crate) struct Shadows {
    doorbells: DmaRing<AtomicU32>,
    events: DmaRing<AtomicU32>,
    /// From one doorbell to the next, in words.
    stride: u32,
}

impl Shadows {
    /// Two zeroed pages in `arena`, of the controller's size.
    pub fn new(arena: Arc<Arena>, page: u64, stride: u64) -> Result<Self> {
        let words = (page / 4) as u32;
        let new = Self {
            doorbells: DmaRing::new(arena.clone(), words, page)?,
            events: DmaRing::new(arena, words, page)?,
            stride: (stride / 4) as u32,
        };
        new.set_quarantine(true);
        Ok(new)
    }

    /// Where in their arena they begin: doorbells, event indexes.
    pub fn offsets(&self) -> (u64, u64) {
        (self.doorbells.chunk().offset(), self.events.chunk().offset())
    }

    /// Zeroes both. The controller must not know of them.
    pub fn zero(&self) {
        self.doorbells.zero();
        self.events.zero();
    }

    /// Whether their memory is quarantined when they are dropped: on while the controller knows of them.
    pub fn set_quarantine(&self, on: bool) {
        self.doorbells.set_quarantine(on);
        self.events.set_quarantine(on);
    }
}

impl Bell {
    /// The doorbells of queue `qid`: submission, completion. Queues whose shadows would lie beyond the page have none.
    pub fn pair(bar: &Bar, qid: u16, stride: u64, shadows: Option<&Arc<Shadows>>) -> Result<(Self, Self)> {
        let bell = |offset: u64, index: u32| {
            let shadow = shadows.filter(|s| u64::from(index) * u64::from(s.stride) < u64::from(s.doorbells.len()));
            let shadow = shadow.map(|s| {
                let at = index * s.stride;
                // What another queue of that number left there. The controller doesn't know of this one yet.
                s.doorbells.at(at).store(0, Ordering::Relaxed);
                s.events.at(at).store(0, Ordering::Relaxed);
                Beside::Shadow(Shadow { pages: s.clone(), at, old: 0, updates: 0 })
            });
            Ok::<_, wholebar_core::Error>(Self { register: bar.doorbell(offset)?, beside: shadow })
        };
        let index = 2 * u32::from(qid);
        Ok((bell(sq_doorbell(qid, stride), index)?, bell(cq_doorbell(qid, stride), index + 1)?))
    }

    /// Publishes every earlier store to DMA memory, then tells the controller of `value`.
    #[inline(always)]
    pub fn ring(&mut self, value: u32) {
        match &mut self.beside {
            None => self.register.ring(value),
            Some(beside) => {
                if beside.update(value) {
                    self.register.ring(value);
                }
            }
        }
    }

    /// Has the entries of `ring` be copied elsewhere, as they are announced.
    pub fn copy_entries(&mut self, ring: DmaRing<[AtomicU64; 8]>, to: Elsewhere) {
        self.beside = Some(Beside::Entries(Entries { ring, to, told: 0 }));
    }

    /// Whether what entries were copied to is nobody else's when this is dropped.
    pub fn set_quarantine(&self, on: bool) {
        if let Some(Beside::Entries(entries)) = &self.beside {
            entries.to.set_quarantine(on);
        }
    }

    /// As new, after a reset.
    pub fn restart(&mut self) {
        match &mut self.beside {
            Some(Beside::Shadow(shadow)) => shadow.old = 0,
            Some(Beside::Entries(entries)) => entries.told = 0,
            None => {}
        }
    }

    /// How often the register was written.
    pub fn counts(&self) -> DoorbellCounts {
        self.register.counts()
    }

    /// How often the shadow was written.
    pub fn shadow_updates(&self) -> u64 {
        match &self.beside {
            Some(Beside::Shadow(shadow)) => shadow.updates,
            _ => 0,
        }
    }
}

impl Beside {
    /// Writes it; whether the register has to be written too.
    fn update(&mut self, value: u32) -> bool {
        match self {
            Self::Shadow(shadow) => shadow.update(value),
            Self::Entries(entries) => {
                entries.copy(value);
                true
            }
        }
    }
}

impl Entries {
    /// Copies what was posted since, up to entry `tail`.
    fn copy(&mut self, tail: u32) {
        while self.told != tail {
            for (i, word) in self.ring.at(self.told).iter().enumerate() {
                // Relaxed: this thread stored it.
                self.to.store(self.told, i, u64::from_le(word.load(Ordering::Relaxed)));
            }
            self.told = self.ring.slot(self.told.wrapping_add(1));
        }
    }
}

impl Shadow {
    /// Writes the shadow; whether the register has to be written too.
    fn update(&mut self, value: u32) -> bool {
        barrier::before_doorbell();
        // Release pairs with the controller's (or its model's) Acquire load of it: entries posted before are seen.
        self.pages.doorbells.at(self.at).store(value.to_le(), Ordering::Release);
        // The controller writes the event index, then looks at the shadow once more; we do it the other way round. With this
        // fence on both sides at least one of us sees the other's store.
        barrier::store_then_load();
        let event = u32::from_le(self.pages.events.at(self.at).load(Ordering::Relaxed));
        self.updates += 1;
        needs_event(event as u16, value as u16, std::mem::replace(&mut self.old, value) as u16)
    }
}

/// Whether going from `old` to `new` passed `event` (annex B.5), in 16-bit arithmetic.
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::needs_event;

    #[test]
    fn the_register_is_written_where_the_event_index_was_passed() {
        for (event, new, old, want) in [
            (0, 1, 0, true),
            (5, 4, 3, false),
            (5, 5, 4, false),
            (5, 6, 5, true),
            (5, 9, 3, true),
            (9, 9, 3, false),
            (127, 0, 127, true),
            (50, 0, 127, false),
            (0xffff, 0, 0xffff, true),
        ] {
            assert_eq!(needs_event(event, new, old), want, "event {event}, {old} to {new}");
        }
    }
}
