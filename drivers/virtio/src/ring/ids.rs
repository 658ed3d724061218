//! What the driver remembers of its own: which identifiers are free, and what each buffer in flight is. No device can write this.

use super::Used;
use crate::error::Fault;

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
    free: Box<[u16]>,
    mask: u16,
    /// Free-running: identifiers are taken at `head`, and come back at `tail`.
    head: u16,
    tail: u16,
    pub slots: Box<[Slot]>,
    /// What was posted, in its order: free-running, `end` is the next.
    launched: Box<[u16]>,
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
        let none = || vec![0; size.into()].into_boxed_slice();
        let mut ids = Self {
            free: none(),
            mask: size - 1,
            head: 0,
            tail: 0,
            slots: vec![Slot::default(); size.into()].into_boxed_slice(),
            launched: none(),
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
        let id = self.free[usize::from(self.head & self.mask)];
        self.head = self.head.wrapping_add(1);
        id
    }

    /// Gives one back.
    #[inline(always)]
    pub fn give_back(&mut self, id: u16) {
        self.free[usize::from(self.tail & self.mask)] = id;
        self.tail = self.tail.wrapping_add(1);
    }

    /// The buffer `id` of `count` descriptors, into which the device may write so much, is in flight.
    #[inline(always)]
    pub fn launch(&mut self, id: u16, count: u16, writable: u32) {
        let slot = &mut self.slots[usize::from(id)];
        (slot.count, slot.writable) = (count, writable);
        self.launched[usize::from(self.end & self.mask)] = id;
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
        let place = |back: u16| self.launched[usize::from(self.end.wrapping_sub(back) & self.mask)];
        (1..=self.unpublished).any(|back| u32::from(place(back)) == id)
    }

    /// The rest of a batch whose last was told, where one is being taken.
    #[inline(always)]
    pub fn in_batch(&self) -> Option<Used> {
        self.order.as_ref().and_then(|order| order.batch)
    }

    /// What the device said that it used, checked: the buffer to be taken now, and its slot as it was. In order, that is the oldest in flight;
    /// where the device named a later one, all up to that are used (2.7.9), and those that it did not name wholly.
    #[inline(always)]
    pub fn land(&mut self, id: u32, len: u32) -> Result<(Used, Slot), Fault> {
        let named = self.slots.get(id as usize).filter(|slot| slot.count > 0);
        let Some(named) = named.filter(|_| self.unpublished == 0 || !self.is_unpublished(id)) else {
            return Err(Fault::NotInFlight { id });
        };
        if len > named.writable {
            return Err(Fault::Length { id, len, most: named.writable });
        }
        let mut used = Used { id: id as u16, len };
        if let Some(order) = &mut self.order {
            let oldest = self.launched[usize::from(order.first & self.mask)];
            order.first = order.first.wrapping_add(1);
            if oldest == used.id {
                order.batch = None;
            } else {
                order.batch = Some(used);
                used = Used { id: oldest, len: self.slots[usize::from(oldest)].writable };
            }
        }
        self.flying -= 1;
        let slot = &mut self.slots[usize::from(used.id)];
        let was = *slot;
        slot.count = 0;
        Ok((used, was))
    }
}
