//! Any number of producers and consumers.
//!
//! Each side has two indexes. To put, a producer moves the producers' `head` over as many free cells as it needs (one
//! compare-and-swap however many they are), fills them, waits until those who reserved before it have finished, and moves the
//! producers' `tail`: from then on consumers may take. Consumers mirror that. So the ring is fast, fair and in order; it is not
//! lock-free: a core preempted in the middle of a move delays its own side, which is why cores that poll are pinned.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::slots::{Slots, forget_first};
use crate::Result;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{spin_loop, yield_now};
use crossbeam::utils::CachePadded;
use std::fmt;

/// A ring for any number of producers and consumers.
///
/// DPDK: `rte_ring`.
pub struct Ring<T> {
    slots: Slots<T>,
    put: CachePadded<Producers>,
    take: CachePadded<Side>,
}

/// Producers keep what they saw of the consumers' tail: they look again only where that says full, so that the consumers' cache line
/// stays where it is. (Consumers look each time: a ring that is nearly empty, as most are, would have them look anyway.)
#[derive(Default)]
struct Producers {
    side: Side,
    /// A tail that the consumers had, not always the last that was seen.
    seen: AtomicUsize,
}

/// Indexes run freely; cells `take.tail..put.tail` hold items that nobody is moving, or consumers are.
#[derive(Default)]
struct Side {
    /// Cells before it are reserved.
    head: AtomicUsize,
    /// Cells before it are done with.
    tail: AtomicUsize,
}

/// What is asked for: all `n` or nothing, or as many of them as there are.
#[derive(Clone, Copy)]
pub(super) enum Want {
    All(usize),
    UpTo(usize),
}

impl Want {
    #[inline(always)]
    fn at_most(self, most: usize) -> Self {
        match self {
            Self::All(n) => Self::All(n.min(most)),
            Self::UpTo(n) => Self::UpTo(n.min(most)),
        }
    }
}

impl Side {
    /// Reserves cells for a move: `end` says, for a head, before which cell they are available, and is not behind that head. Returns the
    /// first and how many.
    #[inline(always)]
    fn reserve(&self, want: Want, end: impl Fn(usize) -> usize) -> (usize, usize) {
        // Pairs with the Release of the swap below. Whoever moved `head` to what we read had seen a `tail` of the other side that
        // allowed it; `end` must not see an older one, or the difference below would wrap.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let there = end(head).wrapping_sub(head);
            let n = match want {
                Want::All(n) if n <= there => n,
                Want::All(_) => 0,
                Want::UpTo(n) => n.min(there),
            };
            if n == 0 {
                return (head, 0);
            }
            match self.head.compare_exchange_weak(head, head.wrapping_add(n), Ordering::Release, Ordering::Acquire) {
                Ok(_) => return (head, n),
                Err(now) => head = now,
            }
        }
    }

    /// Waits for those who reserved before `start`.
    #[inline(always)]
    fn wait(&self, start: usize) {
        // Pairs with the Release store in `done` of the one before: what it did happens before what our own store releases.
        if self.tail.load(Ordering::Acquire) != start {
            self.wait_longer(start);
        }
    }

    #[cold]
    #[inline(never)]
    fn wait_longer(&self, start: usize) {
        let mut spins = 0u32;
        // As in `wait`.
        while self.tail.load(Ordering::Acquire) != start {
            spins = spins.wrapping_add(1);
            // Whoever it is may have been preempted: let it run.
            if cfg!(loom) || spins.is_multiple_of(256) { yield_now() } else { spin_loop() }
        }
    }

    /// Says that cells before `end` are done with.
    #[inline(always)]
    fn done(tail: &AtomicUsize, end: usize) {
        // Pairs with the Acquire loads in `room` or `ready`, of the other side, and in `wait`, of this one.
        tail.store(end, Ordering::Release);
    }
}

impl<T: Send> Ring<T> {
    /// Creates a ring for `capacity` items, a power of two. Items that must be aligned to more than 128 bytes do not compile.
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`](crate::Error::NotPowerOfTwo).
    pub fn new(capacity: usize) -> Result<Self> {
        let (put, take) = Default::default();
        Ok(Self { slots: Slots::new(capacity)?, put, take })
    }

    /// Puts one item.
    ///
    /// # Errors
    /// Returns the item where there is no room.
    #[inline]
    pub fn push(&self, item: T) -> Result<(), T> {
        // SAFETY: `self` is borrowed.
        unsafe { Self::push_at(self, item) }
    }

    /// As [`push`](Self::push), and does not touch the ring any more once consumers can see the item: another thread may then free it.
    ///
    /// # Safety
    /// `this` points to a ring that lives until the item can be taken.
    #[inline]
    pub(crate) unsafe fn push_at(this: *const Self, item: T) -> Result<(), T> {
        let tail = {
            // SAFETY: the ring lives while this item isn't in it.
            let ring = unsafe { &*this };
            let (start, n) = ring.room(Want::All(1));
            if n == 0 {
                return Err(item);
            }
            // SAFETY: the cell is reserved for us, and its last item was taken: seen by the Acquire loads in `room`.
            unsafe { ring.slots.write(start, item) };
            ring.put.side.wait(start);
            (&raw const ring.put.side.tail, start.wrapping_add(1))
        };
        // SAFETY: alive until this very store; an atomic is all that is borrowed for it.
        Side::done(unsafe { &*tail.0 }, tail.1);
        Ok(())
    }

    /// Puts all items, or none where there is no room for all; returns whether it did.
    #[inline]
    pub fn push_bulk(&self, items: &mut Vec<T>) -> bool {
        let n = items.len();
        self.push_first(items, Want::All(n)) == n
    }

    /// Puts as many items as there is room for, from the front, and returns their number. The rest stays.
    #[inline]
    pub fn push_burst(&self, items: &mut Vec<T>) -> usize {
        let n = items.len();
        self.push_first(items, Want::UpTo(n))
    }

    #[inline(always)]
    pub(super) fn push_first(&self, items: &mut Vec<T>, want: Want) -> usize {
        // SAFETY: `self` is borrowed.
        unsafe { Self::push_first_at(self, items, want) }
    }

    /// As [`push_burst`](Self::push_burst) of the first `most` items, and does not touch the ring any more once consumers can see them:
    /// another thread may then free it.
    ///
    /// # Safety
    /// `this` points to a ring that lives until those items can be taken.
    #[inline]
    pub(crate) unsafe fn push_some_at(this: *const Self, items: &mut Vec<T>, most: usize) -> usize {
        // SAFETY: the caller's.
        unsafe { Self::push_first_at(this, items, Want::UpTo(most)) }
    }

    /// # Safety
    /// `this` points to a ring that lives until the items can be taken.
    #[inline(always)]
    unsafe fn push_first_at(this: *const Self, items: &mut Vec<T>, want: Want) -> usize {
        let (tail, end, n) = {
            // SAFETY: the ring lives while these items aren't in it.
            let ring = unsafe { &*this };
            let (start, n) = ring.room(want.at_most(items.len()));
            if n == 0 {
                return 0;
            }
            // SAFETY: as in `push_at`, for `n` cells; `items` has as many, and forgets them.
            unsafe {
                ring.slots.fill(start, items.as_ptr(), n);
                forget_first(items, n);
            }
            ring.put.side.wait(start);
            (&raw const ring.put.side.tail, start.wrapping_add(n), n)
        };
        // SAFETY: alive until this very store; an atomic is all that is borrowed for it.
        Side::done(unsafe { &*tail }, end);
        n
    }

    /// Takes the oldest item; `None` where there is none.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        let (start, n) = self.ready(Want::All(1));
        if n == 0 {
            return None;
        }
        // SAFETY: the cell is reserved for us, and its item was put there: seen by the Acquire load in `ready`.
        let item = unsafe { self.slots.read(start) };
        self.take.wait(start);
        Side::done(&self.take.tail, start.wrapping_add(1));
        Some(item)
    }

    /// Appends the `n` oldest items to `out`, or none where there are fewer; returns whether it did.
    #[inline]
    pub fn pop_bulk(&self, out: &mut Vec<T>, n: usize) -> bool {
        self.pop_first(out, Want::All(n)) == n
    }

    /// Appends the oldest items to `out`, at most `max`, and returns their number.
    #[inline]
    pub fn pop_burst(&self, out: &mut Vec<T>, max: usize) -> usize {
        self.pop_first(out, Want::UpTo(max))
    }

    #[inline(always)]
    fn pop_first(&self, out: &mut Vec<T>, want: Want) -> usize {
        // Before cells are reserved: an allocation can fail, and others would then wait for us for ever.
        let (Want::All(most) | Want::UpTo(most)) = want;
        out.reserve(most.min(self.slots.capacity()));
        let (start, n) = self.ready(want);
        if n > 0 {
            // SAFETY: as in `pop`, for `n` cells; `n` is at most what was wanted and the capacity, for which `out` has room.
            unsafe { self.slots.drain(start, out, n) };
            self.take.wait(start);
            Side::done(&self.take.tail, start.wrapping_add(n));
        }
        n
    }

    /// Reserves free cells for a producer.
    #[inline(always)]
    fn room(&self, want: Want) -> (usize, usize) {
        let (Want::All(wanted) | Want::UpTo(wanted)) = want;
        self.put.side.reserve(want, |head| {
            // Pairs with the Release store below, of whoever looked: what the consumers did before that tail happens before what we do.
            let seen = self.put.seen.load(Ordering::Acquire);
            let end = seen.wrapping_add(self.slots.capacity());
            // Signed: what was kept may be older than the tail by which `head` was moved.
            if end.wrapping_sub(head) as isize >= wanted as isize {
                return end;
            }
            // Pairs with the Release store in `done` of the consumers: the items are out of their cells before we write there.
            let tail = self.take.tail.load(Ordering::Acquire);
            if tail != seen {
                // Pairs with the Acquire load above.
                self.put.seen.store(tail, Ordering::Release);
            }
            tail.wrapping_add(self.slots.capacity())
        })
    }

    /// Reserves items for a consumer.
    #[inline(always)]
    fn ready(&self, want: Want) -> (usize, usize) {
        // Pairs with the Release store in `done` of the producers: the items are there when the index says so.
        self.take.reserve(want, |_| self.put.side.tail.load(Ordering::Acquire))
    }
}

impl<T> Ring<T> {
    /// Returns the number of items. While others use the ring, it is out of date already.
    pub fn len(&self) -> usize {
        let taken = self.take.tail.load(Ordering::Acquire);
        let put = self.put.side.tail.load(Ordering::Acquire);
        // `taken` was loaded first, so `put` is not behind it; items may have come and gone between the loads.
        put.wrapping_sub(taken).min(self.slots.capacity())
    }

    /// Returns whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of items that the ring can hold.
    pub fn capacity(&self) -> usize {
        self.slots.capacity()
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // Relaxed: nobody else is left, and whoever was has been seen by whoever drops it.
        let (mut at, end) = (self.take.tail.load(Ordering::Relaxed), self.put.side.tail.load(Ordering::Relaxed));
        while at != end {
            // SAFETY: nobody else is left, and no move is under way; cells between the tails hold items.
            drop(unsafe { self.slots.read(at) });
            at = at.wrapping_add(1);
        }
    }
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} of {})", self.len(), self.capacity())
    }
}
