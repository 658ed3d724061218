//! One producer, one consumer.
//!
//! Each side owns its index and keeps its last look at the other's: it looks again only where that look says full, or empty. So a
//! cache line crosses between the cores about once a lap, not once an item.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::slots::{Slots, forget_first};
use crate::Result;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crossbeam::utils::CachePadded;
use std::fmt;

/// Creates a ring for `capacity` items, a power of two, and returns its two ends.
///
/// Items that must be aligned to more than 128 bytes do not compile.
///
/// # Errors
/// [`Error::NotPowerOfTwo`](crate::Error::NotPowerOfTwo).
pub fn spsc<T: Send>(capacity: usize) -> Result<(Producer<T>, Consumer<T>)> {
    let (tail, head) = Default::default();
    let shared = Arc::new(Shared { slots: Slots::new(capacity)?, tail, head });
    Ok((Producer { shared: shared.clone(), tail: 0, head: 0 }, Consumer { shared, head: 0, tail: 0 }))
}

/// Indexes run freely; cells `head..tail` hold items.
struct Shared<T> {
    slots: Slots<T>,
    /// Where the producer will put the next item; only it stores this.
    tail: CachePadded<AtomicUsize>,
    /// Where the consumer will take the next one; only it stores this.
    head: CachePadded<AtomicUsize>,
}

/// The end of a ring into which items are put.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// As last seen.
    head: usize,
}

/// The end of a ring from which items are taken.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// As last seen.
    tail: usize,
}

impl<T: Send> Producer<T> {
    /// Puts one item.
    ///
    /// # Errors
    /// Returns the item where there is no room.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(item);
        }
        // SAFETY: there is room, so the cell's item was taken: seen by the Acquire load in `room`. No one else puts.
        unsafe { self.shared.slots.write(self.tail, item) };
        self.publish(1);
        Ok(())
    }

    /// Puts all items, or none where there is no room for all; returns whether it did.
    #[inline]
    pub fn push_bulk(&mut self, items: &mut Vec<T>) -> bool {
        let n = items.len();
        let fits = self.room(n) >= n;
        if fits {
            self.push_first(items, n);
        }
        fits
    }

    /// Puts as many items as there is room for, from the front, and returns their number. The rest stays.
    #[inline]
    pub fn push_burst(&mut self, items: &mut Vec<T>) -> usize {
        let n = items.len().min(self.room(items.len()));
        self.push_first(items, n);
        n
    }

    /// Returns how many items there is room for, at least.
    #[inline]
    pub fn free(&mut self) -> usize {
        self.room(usize::MAX)
    }

    /// `n` is at most the room.
    #[inline(always)]
    fn push_first(&mut self, items: &mut Vec<T>, n: usize) {
        // SAFETY: as in `push`, for `n` cells; those items are forgotten in `items`.
        unsafe {
            self.shared.slots.fill(self.tail, items.as_ptr(), n);
            forget_first(items, n);
        }
        self.publish(n);
    }

    /// How many items there is room for; looks at the consumer's index only where that would be fewer than `wanted`.
    #[inline(always)]
    fn room(&mut self, wanted: usize) -> usize {
        let capacity = self.shared.slots.capacity();
        let room = capacity.wrapping_sub(self.tail.wrapping_sub(self.head));
        if room >= wanted {
            return room;
        }
        // Pairs with the Release store in `Consumer::release`: what it took is out of its cells before we write there.
        self.head = self.shared.head.load(Ordering::Acquire);
        capacity.wrapping_sub(self.tail.wrapping_sub(self.head))
    }

    #[inline(always)]
    fn publish(&mut self, n: usize) {
        self.tail = self.tail.wrapping_add(n);
        // Pairs with the Acquire load in `Consumer::ready`: whoever sees the index sees the items.
        self.shared.tail.store(self.tail, Ordering::Release);
    }
}

impl<T: Send> Consumer<T> {
    /// Takes the oldest item; `None` where there is none.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.ready(1) == 0 {
            return None;
        }
        // SAFETY: the cell's item was put there: seen by the Acquire load in `ready`. No one else takes.
        let item = unsafe { self.shared.slots.read(self.head) };
        self.release(1);
        Some(item)
    }

    /// Appends the `n` oldest items to `out`, or none where there are fewer; returns whether it did.
    #[inline]
    pub fn pop_bulk(&mut self, out: &mut Vec<T>, n: usize) -> bool {
        let there = self.ready(n) >= n;
        if there {
            self.pop_first(out, n);
        }
        there
    }

    /// Appends the oldest items to `out`, at most `max`, and returns their number.
    #[inline]
    pub fn pop_burst(&mut self, out: &mut Vec<T>, max: usize) -> usize {
        let n = max.min(self.ready(max));
        self.pop_first(out, n);
        n
    }

    /// Returns how many items there are, at least.
    #[inline]
    pub fn available(&mut self) -> usize {
        self.ready(usize::MAX)
    }

    /// `n` is at most what is ready.
    #[inline(always)]
    fn pop_first(&mut self, out: &mut Vec<T>, n: usize) {
        out.reserve(n);
        // SAFETY: as in `pop`, for `n` cells; `out` has room for them.
        unsafe { self.shared.slots.drain(self.head, out, n) };
        self.release(n);
    }

    /// How many items there are; looks at the producer's index only where that would be fewer than `wanted`.
    #[inline(always)]
    fn ready(&mut self, wanted: usize) -> usize {
        let ready = self.tail.wrapping_sub(self.head);
        if ready >= wanted {
            return ready;
        }
        // Pairs with the Release store in `Producer::publish`: the items are there when the index says so.
        self.tail = self.shared.tail.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn release(&mut self, n: usize) {
        self.head = self.head.wrapping_add(n);
        // Pairs with the Acquire load in `Producer::room`: the items are out of their cells before it writes there.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Relaxed: both ends are gone, and what they did is seen by whoever drops it.
        let (mut at, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        while at != tail {
            // SAFETY: both ends are gone, so this thread sees all they did; cells from head to tail hold items.
            drop(unsafe { self.slots.read(at) });
            at = at.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Producer({} put)", self.tail)
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({} taken)", self.head)
    }
}
