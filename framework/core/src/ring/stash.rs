//! One core's own stack in front of a shared ring.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::mpmc::{Ring, Want};
use super::slots::move_last;
use std::fmt;

/// One core's stack of items that belong to a [`Ring`]: most operations are a few instructions on memory of that core; the ring is used once a batch.
///
/// DPDK: `rte_mempool_cache`.
///
/// It holds at most two batches, or more after a bulk of more than one. Others do not find its items until they are [given back](Self::give_back).
/// Dropping a stash drops its items.
pub struct Stash<T> {
    items: Vec<T>,
    batch: usize,
}

impl<T: Send> Stash<T> {
    /// Creates an empty stash that exchanges `batch` items at a time with its ring (at least one).
    pub fn new(batch: usize) -> Self {
        // Two batches are a number of items that can be.
        let batch = batch.clamp(1, usize::MAX / 2);
        Self { items: Vec::with_capacity(batch.saturating_mul(2)), batch }
    }

    /// Takes the item that was put last, which is the likeliest to be in this core's cache; `None` where stash and ring are empty.
    #[inline]
    pub fn pop(&mut self, home: &Ring<T>) -> Option<T> {
        if self.items.is_empty() {
            self.refill(home, self.batch);
        }
        self.items.pop()
    }

    /// Puts one item.
    #[inline]
    pub fn push(&mut self, item: T, home: &Ring<T>) {
        if self.items.len() >= self.most() {
            self.spill(home, self.batch);
        }
        self.items.push(item);
    }

    /// Appends `n` items to `out`, or none where there are fewer; returns whether it did.
    #[inline]
    pub fn pop_bulk(&mut self, out: &mut Vec<T>, n: usize, home: &Ring<T>) -> bool {
        if self.items.len() < n {
            self.refill(home, (n.wrapping_sub(self.items.len())).saturating_add(self.batch));
            if self.items.len() < n {
                return false;
            }
        }
        move_last(&mut self.items, out, n);
        true
    }

    /// Puts all items.
    #[inline]
    pub fn push_bulk(&mut self, items: &mut Vec<T>, home: &Ring<T>) {
        if self.items.len().saturating_add(items.len()) > self.most() {
            self.make_room(items, home);
        }
        let n = items.len();
        move_last(items, &mut self.items, n);
    }

    /// Returns all items to the ring. Those for which it has no room stay.
    pub fn give_back(&mut self, home: &Ring<T>) {
        home.push_burst(&mut self.items);
    }

    /// Returns the number of items in the stash.
    #[inline]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there are no items in the stash.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    #[inline(always)]
    fn most(&self) -> usize {
        self.batch.wrapping_mul(2)
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self, home: &Ring<T>, n: usize) {
        home.pop_burst(&mut self.items, n);
    }

    /// Gives the `n` items back that lie here longest.
    #[cold]
    #[inline(never)]
    fn spill(&mut self, home: &Ring<T>, n: usize) {
        home.push_first(&mut self.items, Want::UpTo(n));
    }

    #[cold]
    #[inline(never)]
    fn make_room(&mut self, items: &mut Vec<T>, home: &Ring<T>) {
        if items.len() > self.batch {
            home.push_burst(items);
        } else {
            self.spill(home, self.batch);
        }
    }
}

impl<T> fmt::Debug for Stash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stash({} of {})", self.items.len(), self.batch.saturating_mul(2))
    }
}
