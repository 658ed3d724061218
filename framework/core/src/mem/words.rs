//! Which width each word of a piece of shared memory has: one, for as long as the memory is what it is.
//!
//! Two atomic accesses of one place by two threads, of different widths and one of them a store, are undefined behaviour, whatever CPUs make of
//! them. So the first access of a place says what width its word has, and a later one of another width is refused, or made out of accesses of
//! that width. This is asked where references to words are made, and by accesses that may be slow; what holds a reference asks no more.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::sync::atomic::{AtomicU8, Ordering};
use std::ops::Range;

/// The widths of a range of memory: for each aligned 8 bytes a byte, a half for each of its halves: 1, 2 or 4 where that is made of words of
/// so many bytes, 8 in both where all of it is one word, 0 where nobody has looked yet.
#[derive(Debug)]
pub(crate) struct Words(Box<[AtomicU8]>);

/// Both halves of 8 bytes that are one word.
const ONE: u8 = 0x88;

/// A word that an access touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where the word is, in bytes.
    pub at: u64,
    /// Its bytes.
    pub width: u8,
    /// Which of them are accessed, from so many on.
    pub first: usize,
    /// How many are accessed.
    pub len: usize,
}

impl Part {
    pub fn bytes(&self) -> Range<usize> {
        self.first..self.first.saturating_add(self.len)
    }
}

impl Words {
    /// For `len` bytes that nobody has looked at; `None` where there is no memory. What is not looked at costs none.
    pub fn new(len: u64) -> Option<Self> {
        let count = usize::try_from(len.div_ceil(8)).ok()?;
        zeroed(count).map(Self)
    }

    /// Whether the `width` bytes at `offset` are a word, or may be from now on; false outside, or where that is no multiple of the width.
    #[inline]
    pub fn claim(&self, offset: u64, width: u8) -> bool {
        let Some(cell) = self.cell(offset).filter(|_| offset & u64::from(width).wrapping_sub(1) == 0) else {
            return false;
        };
        let (half, word) = match width {
            8 => (u8::MAX, ONE),
            _ => (15 << (offset & 4), width << (offset & 4)),
        };
        let mut now = cell.load(Ordering::Relaxed);
        loop {
            match now & half {
                0 => {}
                there => return there == word,
            }
            // Relaxed: whoever sees the width needs to see nothing else.
            match cell.compare_exchange_weak(now, now | word, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
    }

    /// The width of the word that holds the byte at `offset`; `None` where nobody has looked.
    pub fn width(&self, offset: u64) -> Option<u8> {
        let half = self.cell(offset)?.load(Ordering::Relaxed) >> (offset & 4) & 15;
        (half != 0).then_some(half)
    }

    /// The words of `len` bytes at `offset`. Where nobody has looked they become words of 4 bytes.
    pub fn parts(&self, offset: u64, len: usize) -> impl Iterator<Item = Part> + '_ {
        let end = offset.saturating_add(len as u64);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let width = self.width(at).or_else(|| {
                // Somebody else may have been faster, and then it has another width.
                self.claim(at & !3, 4);
                self.width(at)
            })?;
            let part = part(at, end, width);
            at = part.at.saturating_add(width.into());
            Some(part)
        })
    }

    #[inline]
    fn cell(&self, offset: u64) -> Option<&AtomicU8> {
        self.0.get(usize::try_from(offset / 8).ok()?)
    }
}

#[cfg(not(loom))]
fn zeroed(count: usize) -> Option<Box<[AtomicU8]>> {
    zerocopy::FromZeros::new_box_zeroed_with_elems(count).ok()
}

/// Zeroes are no atomics of loom's.
#[cfg(loom)]
fn zeroed(count: usize) -> Option<Box<[AtomicU8]>> {
    Some((0..count).map(|_| AtomicU8::new(0)).collect())
}

/// The part of `at..end` that lies in the word of `width` bytes around `at`.
pub(super) fn part(at: u64, end: u64, width: u8) -> Part {
    let first = at & (u64::from(width).saturating_sub(1));
    let len = end.saturating_sub(at).min(u64::from(width).saturating_sub(first));
    Part { at: at.saturating_sub(first), width, first: first as usize, len: len as usize }
}

#[cfg(all(test, loom))]
mod exhaustive {
    //! Who claims the same place at the same moment: `RUSTFLAGS="--cfg loom" cargo test -p wholebar-core --lib exhaustive`

    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn a_place_has_one_width_whoever_is_first() {
        for (theirs, ours) in [([0, 8], [0, 4]), ([4, 2], [4, 1]), ([0, 4], [0, 8])] {
            crate::sync::explore(move || {
                let words = Arc::new(Words::new(8).unwrap());
                let there = thread::spawn({
                    let words = words.clone();
                    move || words.claim(theirs[0], theirs[1] as u8)
                });
                let here = words.claim(ours[0], ours[1] as u8);
                let there = there.join().unwrap();
                assert!(here != there, "one of the two is refused");
                let width = words.width(ours[0]).unwrap();
                assert_eq!(u64::from(width), if here { ours[1] } else { theirs[1] });
            });
        }
    }

    /// Its other half is none of its business: both are granted.
    #[test]
    fn halves_are_claimed_apart() {
        crate::sync::explore(|| {
            let words = Arc::new(Words::new(8).unwrap());
            let there = thread::spawn({
                let words = words.clone();
                move || words.claim(0, 4)
            });
            let here = words.claim(6, 2);
            assert!(here && there.join().unwrap());
            assert_eq!([words.width(0), words.width(4)], [Some(4), Some(2)]);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_the_width_of_its_first_word() {
        let words = Words::new(32).unwrap();
        assert!(
            words.claim(0, 8) && words.claim(0, 8) && !words.claim(0, 4) && !words.claim(4, 4) && !words.claim(7, 1)
        );
        assert!(
            words.claim(8, 4) && !words.claim(8, 8) && !words.claim(10, 2) && words.claim(12, 1) && words.claim(15, 1)
        );
        assert!(words.claim(16, 2) && words.claim(18, 2) && !words.claim(19, 1) && !words.claim(16, 8));
        assert_eq!(
            [0, 7, 8, 13, 17, 20].map(|at| words.width(at)),
            [Some(8), Some(8), Some(4), Some(1), Some(2), None]
        );
        assert!(
            !words.claim(20, 8)
                && !words.claim(21, 4)
                && !words.claim(32, 1)
                && !words.claim(!7, 8)
                && words.width(32).is_none()
        );
    }

    #[test]
    fn an_access_is_made_of_the_words_that_are_there() {
        let words = Words::new(32).unwrap();
        words.claim(0, 8);
        words.claim(8, 2);
        let parts: Vec<_> = words.parts(2, 14).map(|p| (p.at, p.width, p.bytes())).collect();
        assert_eq!(parts, [(0, 8, 2..8), (8, 2, 0..2), (10, 2, 0..2), (12, 4, 0..4)]);
        assert_eq!(words.parts(17, 2).map(|p| (p.at, p.width, p.bytes())).collect::<Vec<_>>(), [(16, 4, 1..3)]);
        assert_eq!(words.parts(28, 8).count(), 1, "nothing past the end");
    }
}
