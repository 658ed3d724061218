//! A table of a power of two of entries, for hot paths. An index is taken modulo the size, so no access can be out of range, and none is checked.
//!
//! Where an index comes from a device, use `get` of the slice, which tells whether there is such an entry.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::ops::{Deref, DerefMut};

/// A table of `2^n` entries, indexed modulo their number.
///
/// It dereferences to a slice.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::Table;
///
/// let mut table = Table::new(100, |index| index);
/// assert_eq!(table.len(), 128);
/// *table.at_mut(130) = 7;
/// assert_eq!((*table.at(2), table.get(130)), (7, None));
/// ```
pub struct Table<T> {
    /// `mask + 1` of them.
    entries: Box<[T]>,
    /// One less than a power of two.
    mask: u16,
}

impl<T> Table<T> {
    /// Creates a table of the smallest power of two of entries that is at least `size`, at most 32,768. `entry` makes each entry of its index.
    pub fn new(size: u16, entry: impl FnMut(u16) -> T) -> Self {
        let mask = size.clamp(1, 1 << 15).next_power_of_two().wrapping_sub(1);
        Self { entries: (0..=mask).map(entry).collect(), mask }
    }

    /// Returns entry `i`, modulo the number of entries. One mask and no bounds check.
    #[inline(always)]
    pub fn at(&self, i: u16) -> &T {
        // SAFETY: there are `mask + 1` entries, since `new`: neither field is ever set again.
        unsafe { self.entries.get_unchecked(usize::from(i & self.mask)) }
    }

    /// Returns entry `i`, modulo the number of entries, to be changed.
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
