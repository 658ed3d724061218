//! What the driver remembers of its own: which identifiers are free, and what each buffer in flight is. No device can write this.

use super::Used;
use crate::error::Fault;
use wholebar_core::Table;

/// A buffer in flight, or nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    /// Descriptors of the buffer; 0 where none is in flight.
    pub count: u16,
    /// The buffer's next descriptor, in a split ring.
    pub next: u16,
    /// What the device may write.
    pub writable: u32,
}

/// Identifiers `0..size`, first in, first out: a device that uses buffers in order finds descriptors in order (2.7.5.1, 2.7.9).
#[derive(Debug)]
pub(super) struct Ids {
    free: Table<u16>,
    mask: u16,
    /// Free-running: identifiers are taken at `head`, and come back at `tail`.
    head: u16,
    tail: u16,
    pub slots: Table<Slot>,
    /// What was posted, in its order: free-running, `end` is the next.
    launched: Table<u16>,
    end: u16,
    /// How many of those the device was not told of yet.
    unpublished: u16,
    /// Buffers in flight that it was told of.
    flying: u16,
    order: Option<Order>,
}

/// Buffers are used in the order in which they were posted (VIRTIO_F_IN_ORDER: 2.7.9, 2.8.8).
#[derive(Debug, Default)]
struct Order {
    /// The oldest in flight.
    first: u16,
    /// The last of a batch that the device told in one entry: its identifier, and what was written to it.
    batch: Option<Used>,
}

impl Ids {
    /// `size` free identifiers, a power of two from 2 to 32,768.
    pub fn new(size: u16, in_order: bool) -> Self {
        let mut ids = Self {
            free: Table::new(size, |id| id),
            mask: size - 1,
            head: 0,
            tail: 0,
            slots: Table::new(size, |_| Slot::default()),
            launched: Table::new(size, |_| 0),
            end: 0,
            unpublished: 0,
            flying: 0,
            order: in_order.then(Order::default),
        };
        ids.restart();
        ids
    }

    /// All are free.
    pub fn restart(&mut self) {
        (0..).zip(self.free.iter_mut()).for_each(|(i, id)| *id = i);
        (self.head, self.tail) = (0, self.mask + 1);
        (self.end, self.unpublished, self.flying) = (0, 0, 0);
        self.slots.fill(Slot::default());
        self.order = self.order.as_ref().map(|_| Order::default());
    }

    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// How many are free.
    #[inline(always)]
    pub fn free(&self) -> u16 {
        self.tail.wrapping_sub(self.head)
    }

    /// Buffers in flight that the device was told of.
    #[inline(always)]
    pub fn flying(&self) -> u16 {
        self.flying
    }

    /// Takes one. There is one.
    #[inline(always)]
    pub fn claim(&mut self) -> u16 {
        debug_assert!(self.free() > 0, "no identifier is free");
        let id = *self.free.at(self.head);
        self.head = self.head.wrapping_add(1);
        id
    }

    /// Gives one back.
    #[inline(always)]
    pub fn give_back(&mut self, id: u16) {
        *self.free.at_mut(self.tail) = id;
        self.tail = self.tail.wrapping_add(1);
    }

    /// The buffer `id` of `count` descriptors, into which the device may write so much, is in flight.
    #[inline(always)]
    pub fn launch(&mut self, id: u16, count: u16, writable: u32) {
        let slot = self.slots.at_mut(id);
        (slot.count, slot.writable) = (count, writable);
        *self.launched.at_mut(self.end) = id;
        self.end = self.end.wrapping_add(1);
        self.unpublished += 1;
    }

    /// The device is told of all that is in flight.
    #[inline(always)]
    pub fn publish(&mut self) {
        self.flying += std::mem::take(&mut self.unpublished);
    }

    /// Whether the device cannot know of a buffer in flight.
    #[cold]
    fn is_unpublished(&self, id: u32) -> bool {
        (1..=self.unpublished).any(|back| u32::from(*self.launched.at(self.end.wrapping_sub(back))) == id)
    }

    /// Whether a batch is being taken: [`land_next`](Self::land_next) has more.
    #[inline(always)]
    pub fn in_batch(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.batch.is_some())
    }

    /// What the device said that it used, checked: the buffer to be taken now, and its slot as it was. In order, that is the oldest in flight;
    /// where the device named a later one, all up to that are used (2.7.9), and those that it did not name wholly. Nothing is taken where there is a fault.
    #[inline(always)]
    pub fn land(&mut self, id: u32, len: u32) -> Result<(Used, Slot), Fault> {
        let named = self.slots.get(id as usize).filter(|slot| slot.count > 0);
        let Some(named) = named.filter(|_| self.unpublished == 0 || !self.is_unpublished(id)) else {
            return Err(Fault::NotInFlight { id });
        };
        if len > named.writable {
            return Err(Fault::Length { id, len, most: named.writable });
        }
        let used = Used { id: id as u16, len };
        Ok(match &mut self.order {
            None => self.lift(used),
            // It named the oldest, as it most often does: no batch.
            Some(order) if *self.launched.at(order.first) == used.id => {
                order.first = order.first.wrapping_add(1);
                self.lift(used)
            }
            Some(order) => {
                order.batch = Some(used);
                self.lift_oldest(used)
            }
        })
    }

    /// The next of a batch, where one is being taken: nothing of it is the device's to say any more.
    #[inline(always)]
    pub fn land_next(&mut self) -> Option<(Used, Slot)> {
        let last = self.order.as_ref()?.batch?;
        Some(self.lift_oldest(last))
    }

    /// Takes the oldest in flight, of a batch that ends with `last`, which is in flight.
    #[inline(always)]
    fn lift_oldest(&mut self, last: Used) -> (Used, Slot) {
        let Some(order) = &mut self.order else { return self.lift(last) };
        let oldest = *self.launched.at(order.first);
        order.first = order.first.wrapping_add(1);
        if oldest == last.id {
            order.batch = None;
            return self.lift(last);
        }
        let len = self.slots.at(oldest).writable;
        self.lift(Used { id: oldest, len })
    }

    /// It is not in flight any more.
    #[inline(always)]
    fn lift(&mut self, used: Used) -> (Used, Slot) {
        self.flying -= 1;
        let slot = self.slots.at_mut(used.id);
        (used, std::mem::replace(slot, Slot { count: 0, ..*slot }))
    }
}
