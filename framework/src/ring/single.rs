//! One producer, one consumer.
//!
//! Each side stores its index and keeps what its last look at the other's allowed: it looks again only where that says full, or empty. So
//! a cache line crosses between the cores about once a lap, not once an item.

use super::slots::{Slots, forget_first};
use crate::Result;
use crossbeam::utils::CachePadded;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A ring of `capacity` items (a power of two), as its two ends.
///
/// # Errors
/// [`Error::NotPowerOfTwo`](crate::Error::NotPowerOfTwo).
pub fn spsc<T: Send>(capacity: usize) -> Result<(Producer<T>, Consumer<T>)> {
    let (tail, head) = Default::default();
    let shared = Arc::new(Shared { slots: Slots::new(capacity)?, tail, head });
    Ok((Producer { shared: shared.clone(), end: capacity }, Consumer { shared, end: 0 }))
}

/// Indexes run freely; cells `head..tail` hold items.
struct Shared<T> {
    slots: Slots<T>,
    /// Where the producer will put the next item; only it stores this.
    tail: CachePadded<AtomicUsize>,
    /// Where the consumer will take the next one; only it stores this.
    head: CachePadded<AtomicUsize>,
}

/// The end of a ring that items are put into.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Cells before it are free, as last seen.
    end: usize,
}

/// The end of a ring that items are taken from.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Cells before it hold items, as last seen.
    end: usize,
}

impl<T: Send> Producer<T> {
    /// Puts one item; gives it back where there is no room.
    ///
    /// # Errors
    /// The item.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        let shared = &*self.shared;
        let (tail, room) = shared.room(&mut self.end, 1);
        if room == 0 {
            return Err(item);
        }
        // SAFETY: there is room, so the cell's item was taken: seen by the Acquire load in `room`. No one else puts.
        unsafe { shared.slots.write(tail, item) };
        shared.publish(tail.wrapping_add(1));
        Ok(())
    }

    /// Puts all items, or none; says whether it did.
    #[inline]
    pub fn push_bulk(&mut self, items: &mut Vec<T>) -> bool {
        let n = items.len();
        let (tail, room) = self.shared.room(&mut self.end, n);
        if room >= n {
            self.push_first(items, tail, n);
        }
        room >= n
    }

    /// Puts as many items as there is room for, from the front; returns how many. The rest stays.
    #[inline]
    pub fn push_burst(&mut self, items: &mut Vec<T>) -> usize {
        let (tail, room) = self.shared.room(&mut self.end, items.len());
        let n = items.len().min(room);
        self.push_first(items, tail, n);
        n
    }

    /// How many items there is room for at least.
    #[inline]
    pub fn free(&mut self) -> usize {
        self.shared.room(&mut self.end, usize::MAX).1
    }

    /// `n` is at most the room from `tail` on.
    #[inline(always)]
    fn push_first(&mut self, items: &mut Vec<T>, tail: usize, n: usize) {
        let shared = &*self.shared;
        // SAFETY: as in `push`, for `n` cells; those items are forgotten in `items`.
        unsafe {
            shared.slots.fill(tail, items.as_ptr(), n);
            forget_first(items, n);
        }
        shared.publish(tail.wrapping_add(n));
    }
}

impl<T: Send> Consumer<T> {
    /// Takes one item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let shared = &*self.shared;
        let (head, ready) = shared.ready(&mut self.end, 1);
        if ready == 0 {
            return None;
        }
        // SAFETY: the cell's item was put there: seen by the Acquire load in `ready`. No one else takes.
        let item = unsafe { shared.slots.read(head) };
        shared.release(head.wrapping_add(1));
        Some(item)
    }

    /// Takes `n` items, or none; says whether it did.
    #[inline]
    pub fn pop_bulk(&mut self, out: &mut Vec<T>, n: usize) -> bool {
        let (head, ready) = self.shared.ready(&mut self.end, n);
        if ready >= n {
            self.pop_first(out, head, n);
        }
        ready >= n
    }

    /// Takes as many items as there are, at most `max`; returns how many.
    #[inline]
    pub fn pop_burst(&mut self, out: &mut Vec<T>, max: usize) -> usize {
        let (head, ready) = self.shared.ready(&mut self.end, max);
        let n = max.min(ready);
        self.pop_first(out, head, n);
        n
    }

    /// How many items there are at least.
    #[inline]
    pub fn available(&mut self) -> usize {
        self.shared.ready(&mut self.end, usize::MAX).1
    }

    /// `n` is at most what is ready from `head` on.
    #[inline(always)]
    fn pop_first(&mut self, out: &mut Vec<T>, head: usize, n: usize) {
        out.reserve(n);
        let shared = &*self.shared;
        // SAFETY: as in `pop`, for `n` cells; `out` has room for them.
        unsafe { shared.slots.drain(head, out, n) };
        shared.release(head.wrapping_add(n));
    }
}

impl<T> Shared<T> {
    /// For the producer: where it puts next, and how many items there is room for; looks at the consumer's index only where what it saw
    /// last, `end`, is fewer than `wanted`.
    #[inline(always)]
    fn room(&self, end: &mut usize, wanted: usize) -> (usize, usize) {
        // The producer's own store.
        let tail = self.tail.load(Ordering::Relaxed);
        let room = end.wrapping_sub(tail);
        if room >= wanted {
            return (tail, room);
        }
        // Pairs with the Release store in `release`: what the consumer took is out of its cells before we write there.
        let now = self.head.load(Ordering::Acquire).wrapping_add(self.slots.capacity());
        *end = now;
        (tail, now.wrapping_sub(tail))
    }

    /// For the producer: cells before `tail` hold items.
    #[inline(always)]
    fn publish(&self, tail: usize) {
        // Pairs with the Acquire load in `ready`: whoever sees the index sees the items.
        self.tail.store(tail, Ordering::Release);
    }

    /// For the consumer: where it takes next, and how many items there are; looks at the producer's index only where what it saw last,
    /// `end`, is fewer than `wanted`.
    #[inline(always)]
    fn ready(&self, end: &mut usize, wanted: usize) -> (usize, usize) {
        // The consumer's own store.
        let head = self.head.load(Ordering::Relaxed);
        let ready = end.wrapping_sub(head);
        if ready >= wanted {
            return (head, ready);
        }
        // Pairs with the Release store in `publish`: the items are there when the index says so.
        let now = self.tail.load(Ordering::Acquire);
        *end = now;
        (head, now.wrapping_sub(head))
    }

    /// For the consumer: cells before `head` are free.
    #[inline(always)]
    fn release(&self, head: usize) {
        // Pairs with the Acquire load in `room`: the items are out of their cells before the producer writes there.
        self.head.store(head, Ordering::Release);
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let (mut at, tail) = (*self.head.get_mut(), *self.tail.get_mut());
        while at != tail {
            // SAFETY: both ends are gone, so this thread sees all they did; cells from head to tail hold items.
            drop(unsafe { self.slots.read(at) });
            at = at.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Producer({} put)", self.shared.tail.load(Ordering::Relaxed))
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({} taken)", self.shared.head.load(Ordering::Relaxed))
    }
}
