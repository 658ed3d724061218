//! A table of a power of two of entries, for hot paths: an index is taken modulo its size, so that no access can miss, and none is checked.
//!
//! An index from a device is input all the same: whether there is such an entry, `get` says, as that of any slice.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::ops::{Deref, DerefMut};

/// `2^n` entries, found by an index modulo their number.
pub struct Table<T> {
    /// `mask + 1` of them.
    entries: Box<[T]>,
    /// One less than a power of two.
    mask: u16,
}

impl<T> Table<T> {
    /// The smallest power of two of entries that is at least `size` and at most 32,768; each as `entry` makes it of its index.
    pub fn new(size: u16, entry: impl FnMut(u16) -> T) -> Self {
        let mask = size.clamp(1, 1 << 15).next_power_of_two().wrapping_sub(1);
        Self { entries: (0..=mask).map(entry).collect(), mask }
    }

    /// Entry `i`, modulo their number.
    #[inline(always)]
    pub fn at(&self, i: u16) -> &T {
        // SAFETY: there are `mask + 1` entries, since `new`: neither field is ever set again.
        unsafe { self.entries.get_unchecked(usize::from(i & self.mask)) }
    }

    /// Entry `i`, modulo their number, to change.
    #[inline(always)]
    pub fn at_mut(&mut self, i: u16) -> &mut T {
        // SAFETY: as in `at`.
        unsafe { self.entries.get_unchecked_mut(usize::from(i & self.mask)) }
    }
}

/// As the slice that it is: to go through all, or to look one up by an index that may be wrong.
impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.entries
    }
}

impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.entries
    }
}

impl<T: fmt::Debug> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.entries.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_wrap_whatever_the_size() {
        for (size, len) in [(0, 1), (1, 1), (2, 2), (5, 8), (256, 256), (32768, 32768), (u16::MAX, 32768)] {
            let mut table = Table::new(size, u32::from);
            assert_eq!(table.len(), len);
            for i in [0, 1, 2, 255, 256, 32767, 32768, u16::MAX] {
                assert_eq!(*table.at(i) as usize, usize::from(i) % len);
            }
            *table.at_mut(u16::MAX) = 7;
            assert_eq!((table[len - 1], table.get(len)), (7, None));
        }
    }
}
