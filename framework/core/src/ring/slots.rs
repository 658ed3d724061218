//! The cells of a ring, and moves between them and a `Vec`: all the unsafe code that rings need.
//!
//! Which cells hold an item is known to the ring's indexes alone; each function says what its caller must know.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::{Error, Result};
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// A power of two of cells, found by free-running indexes. They start with a cache line, so that a burst touches no more lines than it must.
pub(super) struct Slots<T> {
    lines: Box<[Line]>,
    mask: usize,
    items: PhantomData<T>,
}

/// Room for cells: what a core takes from another at a time, or two of that.
#[repr(align(128))]
struct Line(#[allow(dead_code, reason = "reached as cells")] UnsafeCell<[MaybeUninit<u8>; 128]>);

// SAFETY: cells are only reached through the functions below, whose callers answer for each cell being one thread's at a time; items
// move between threads by that, hence `T: Send`.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    pub(super) fn new(capacity: usize) -> Result<Self> {
        if !capacity.is_power_of_two() {
            return Err(Error::NotPowerOfTwo { what: "ring entries", value: capacity as u64 });
        }
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let bytes = capacity.saturating_mul(size_of::<T>());
        let (mut lines, count) = (Vec::new(), bytes.div_ceil(size_of::<Line>()));
        lines.try_reserve_exact(count).map_err(|_| Error::Memory {
            bytes: bytes as u64,
            step: "allocating a ring",
            cause: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        lines.resize_with(count, || Line(UnsafeCell::new([MaybeUninit::uninit(); 128])));
        Ok(Self { lines: lines.into_boxed_slice(), mask: capacity.wrapping_sub(1), items: PhantomData })
    }

    #[inline(always)]
    pub(super) fn capacity(&self) -> usize {
        self.mask.wrapping_add(1)
    }

    #[inline(always)]
    fn cell(&self, at: usize) -> *mut T {
        // SAFETY: the mask keeps the index below the capacity, and the lines are at least as many bytes as so many items; they are
        // aligned for an item, as `new` makes sure.
        unsafe { UnsafeCell::raw_get(self.lines.as_ptr().cast::<UnsafeCell<T>>().add(at & self.mask)) }
    }

    /// Moves one item into cell `at`.
    ///
    /// # Safety
    /// The cell holds no item and is this thread's to write.
    #[inline(always)]
    pub(super) unsafe fn write(&self, at: usize, item: T) {
        // SAFETY: the caller's.
        unsafe { self.cell(at).write(item) }
    }

    /// Moves one item out of cell `at`.
    ///
    /// # Safety
    /// The cell holds an item, and is this thread's to take.
    #[inline(always)]
    pub(super) unsafe fn read(&self, at: usize) -> T {
        // SAFETY: the caller's.
        unsafe { self.cell(at).read() }
    }

    /// Moves `n` items from `from` into cells `at..at + n`.
    ///
    /// # Safety
    /// `n` is at most the capacity; those cells hold no items and are this thread's to write; `from` points at `n` items, which the
    /// caller forgets.
    #[inline(always)]
    pub(super) unsafe fn fill(&self, at: usize, from: *const T, n: usize) {
        let first = n.min(self.capacity().wrapping_sub(at & self.mask));
        // SAFETY: two runs, up to the last cell and from the first; the rest is the caller's.
        unsafe {
            move_items(from, self.cell(at), first);
            if first < n {
                self.cell(0).copy_from_nonoverlapping(from.add(first), n.wrapping_sub(first));
            }
        }
    }

    /// Moves the items of cells `at..at + n` to the end of `to`.
    ///
    /// # Safety
    /// `n` is at most the capacity and at most the spare capacity of `to`; those cells hold items and are this thread's to take.
    #[inline(always)]
    pub(super) unsafe fn drain(&self, at: usize, to: &mut Vec<T>, n: usize) {
        let first = n.min(self.capacity().wrapping_sub(at & self.mask));
        // SAFETY: two runs, up to the last cell and from the first; `to` has room for both; the rest is the caller's.
        unsafe {
            let end = to.as_mut_ptr().add(to.len());
            move_items(self.cell(at), end, first);
            if first < n {
                end.add(first).copy_from_nonoverlapping(self.cell(0), n.wrapping_sub(first));
            }
            to.set_len(to.len().wrapping_add(n));
        }
    }
}

/// Forgets the first `n` items, which were moved elsewhere, and closes the gap.
///
/// # Safety
/// `n <= items.len()`, and those items are owned elsewhere now.
#[inline(always)]
pub(super) unsafe fn forget_first<T>(items: &mut Vec<T>, n: usize) {
    let rest = items.len().wrapping_sub(n);
    // SAFETY: the last `rest` items move down; the rest is the caller's.
    unsafe {
        let base = items.as_mut_ptr();
        if rest > 0 {
            base.copy_from(base.add(n), rest);
        }
        items.set_len(rest);
    }
}

/// Moves the last `n` items of `from` to the end of `to`, in their order. Nothing where there are fewer.
#[inline(always)]
pub(super) fn move_last<T>(from: &mut Vec<T>, to: &mut Vec<T>, n: usize) {
    let Some(rest) = from.len().checked_sub(n) else { return };
    to.reserve(n);
    // SAFETY: `from` gives up its last `n` items before they count in `to`, which has room for them.
    unsafe {
        from.set_len(rest);
        move_items(from.as_ptr().add(rest), to.as_mut_ptr().add(to.len()), n);
        to.set_len(to.len().wrapping_add(n));
    }
}

/// Moves `n` items. Few of them are moved here: the call of a `memcpy` costs more than they do.
///
/// # Safety
/// `from` points at `n` items, which the caller forgets, and `to` at room for as many, elsewhere.
#[allow(clippy::arithmetic_side_effects, reason = "all of it is at most `n`, which is few")]
#[inline(always)]
unsafe fn move_items<T>(from: *const T, to: *mut T, n: usize) {
    const FEW: usize = 16;
    // SAFETY: the caller's; each step moves items inside the `n`, some of them a second time to the same place.
    unsafe {
        if n > FEW {
            to.copy_from_nonoverlapping(from, n);
        } else if n >= 4 {
            let mut at = 0;
            while at + 4 < n {
                move_some::<T, 4>(from.add(at), to.add(at));
                at += 4;
            }
            move_some::<T, 4>(from.add(n - 4), to.add(n - 4));
        } else if n >= 2 {
            move_some::<T, 2>(from, to);
            move_some::<T, 2>(from.add(n - 2), to.add(n - 2));
        } else if n == 1 {
            move_some::<T, 1>(from, to);
        }
    }
}

/// # Safety
/// As for `move_items`, of `N` items; an item may be moved more than once, as long as it counts in one place in the end.
#[inline(always)]
unsafe fn move_some<T, const N: usize>(from: *const T, to: *mut T) {
    // SAFETY: the caller's. As `MaybeUninit` the items are bytes.
    unsafe { to.cast::<[MaybeUninit<T>; N]>().write(from.cast::<[MaybeUninit<T>; N]>().read()) }
}
