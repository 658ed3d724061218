//! Which device addresses can be used and which are taken: a book, without any device.
//!
//! An entry is made before a device is let in and struck out after it is shut out, exactly as it was made.

use super::{Iova, IovaWindow};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The addresses of one space, and an item for each range that is taken.
pub(super) struct Ledger<T> {
    /// As the backend told them.
    windows: Vec<IovaWindow>,
    /// By first address: length and item.
    taken: BTreeMap<u64, (u64, T)>,
}

impl<T> Ledger<T> {
    pub(super) fn new(windows: Vec<IovaWindow>) -> Result<Self> {
        let mut new = Self { windows: Vec::new(), taken: BTreeMap::new() };
        new.set_windows(windows)?;
        Ok(new)
    }

    /// Other windows from now on. What is taken stays so.
    pub(super) fn set_windows(&mut self, windows: Vec<IovaWindow>) -> Result<()> {
        for (i, window) in windows.iter().enumerate() {
            let (first, last) = (*window.range.start(), *window.range.end());
            let wrong = |why| {
                Err(Error::Ledger { op: "a window", iova: first, len: last.wrapping_sub(first).wrapping_add(1), why })
            };
            if first > last {
                return wrong("it ends before it begins");
            }
            if windows[..i].iter().any(|w| *w.range.start() <= last && first <= *w.range.end()) {
                return wrong("it overlaps another");
            }
        }
        self.windows = windows;
        Ok(())
    }

    pub(super) fn windows(&self) -> &[IovaWindow] {
        &self.windows
    }

    /// How many ranges are taken.
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// The first free range of `len` bytes aligned to `align` that ends at `highest` or before, in the first window that has one and whose pages
    /// divide `len`.
    pub(super) fn find(&self, len: u64, align: u64, highest: u64) -> Option<Iova> {
        self.windows.iter().find_map(|window| {
            let (first, last) = usable(window)?;
            let last = last.min(highest);
            let page = window.page.bytes();
            if len == 0 || !len.is_multiple_of(page) {
                return None;
            }
            let align = align.max(page);
            let mut at = first.checked_next_multiple_of(align)?;
            for (start, (size, _)) in self.taken.range(..=last) {
                let end = start + (size - 1);
                if end < at {
                    continue;
                }
                if at.checked_add(len - 1)? < *start {
                    break;
                }
                at = end.checked_add(1)?.checked_next_multiple_of(align)?;
            }
            (at.checked_add(len - 1)? <= last).then_some(Iova(at))
        })
    }

    /// Says whether exactly this range lies in a window and fits its pages.
    pub(super) fn check(&self, iova: Iova, len: u64) -> Result<()> {
        let wrong = |why| Err(Error::Ledger { op: "map", iova: iova.0, len, why });
        let last = last(iova, len)?;
        let inside = |w: &&IovaWindow| usable(w).is_some_and(|(first, end)| first <= iova.0 && last <= end);
        let Some(window) = self.windows.iter().find(inside) else {
            return wrong("no window of the device's address space holds it");
        };
        if !(iova.0 | len).is_multiple_of(window.page.bytes()) {
            return wrong("it is not whole pages of its window");
        }
        Ok(())
    }

    /// Takes a range, in a window or not.
    pub(super) fn enter(&mut self, iova: Iova, len: u64, item: T) -> Result<()> {
        let last = last(iova, len)?;
        // The only range that could reach into this one is the last that begins at or before its end.
        if self.taken.range(..=last).next_back().is_some_and(|(start, (size, _))| start + (size - 1) >= iova.0) {
            let why = "it overlaps what is mapped";
            return Err(Error::Ledger { op: "map", iova: iova.0, len, why });
        }
        self.taken.insert(iova.0, (len, item));
        Ok(())
    }

    /// The item of exactly this range.
    pub(super) fn get_mut(&mut self, iova: Iova, len: u64) -> Result<&mut T> {
        match self.taken.get_mut(&iova.0) {
            Some((size, item)) if *size == len => Ok(item),
            _ => Err(Error::Ledger { op: "unmap", iova: iova.0, len, why: "nothing is mapped exactly so" }),
        }
    }

    /// Gives exactly this range back.
    pub(super) fn strike(&mut self, iova: Iova, len: u64) -> Result<T> {
        self.get_mut(iova, len)?;
        match self.taken.remove(&iova.0) {
            Some((_, item)) => Ok(item),
            None => Err(Error::Ledger { op: "unmap", iova: iova.0, len, why: "nothing is mapped there" }),
        }
    }

    pub(super) fn items_mut(&mut self) -> impl Iterator<Item = (Iova, &mut T)> {
        self.taken.iter_mut().map(|(iova, (_, item))| (Iova(*iova), item))
    }
}

/// The last address of a range.
fn last(iova: Iova, len: u64) -> Result<u64> {
    let last = len.checked_sub(1).and_then(|more| iova.0.checked_add(more));
    last.ok_or(Error::Ledger { op: "map", iova: iova.0, len, why: "it is no range of addresses" })
}

/// The first and last address of a window that are handed out: whole pages of it.
///
/// Not address 0, which too many devices take for "none"; nor the page at the very end, since the address after it has no number.
fn usable(window: &IovaWindow) -> Option<(u64, u64)> {
    let page = window.page;
    let first = window.range.start().checked_next_multiple_of(page.bytes())?.max(page.bytes());
    let end = page.floor((*window.range.end()).min(u64::MAX - 1) + 1);
    (first < end).then(|| (first, end - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;
    use proptest::prelude::*;
    use std::ops::RangeInclusive;

    fn window(range: RangeInclusive<u64>, page: PageSize) -> IovaWindow {
        IovaWindow { range, page }
    }

    impl<T> Ledger<T> {
        fn place(&mut self, iova: Iova, len: u64, item: T) -> Result<()> {
            self.check(iova, len)?;
            self.enter(iova, len, item)
        }
    }

    #[test]
    fn edges_of_windows() {
        let k64 = 64 << 10;
        for (range, page, first, last) in [
            (0..=0xffff, PageSize::K4, 0x1000, 0xffff),
            (1..=0x1fff, PageSize::K4, 0x1000, 0x1fff),
            (0x1001..=0x3ffe, PageSize::K4, 0x2000, 0x2fff),
            (0x1000..=0x1fff, PageSize::K4, 0x1000, 0x1fff),
            (1 << 59..=(1 << 59) + k64 - 1, PageSize::K64, 1 << 59, (1 << 59) + k64 - 1),
            (u64::MAX - 0x1fff..=u64::MAX, PageSize::K4, u64::MAX - 0x1fff, u64::MAX - 0x1000),
            (0..=u64::MAX, PageSize::K4, 0x1000, u64::MAX - 0x1000),
        ] {
            assert_eq!(usable(&window(range.clone(), page)), Some((first, last)), "{range:x?}");
            let mut ledger = Ledger::new(vec![window(range.clone(), page)]).unwrap();
            assert_eq!(ledger.find(page.bytes(), 1, u64::MAX), Some(Iova(first)));
            for at in [Iova(first), Iova(last + 1 - page.bytes())] {
                ledger.place(at, page.bytes(), ()).unwrap();
                assert!(ledger.place(at, page.bytes(), ()).is_err());
                ledger.strike(at, page.bytes()).unwrap();
            }
            assert!(ledger.check(Iova(last + 1), page.bytes()).is_err());
        }
        for range in [0..=0xfff, 0..=0, 0x1001..=0x2ffe, 5..=6, u64::MAX - 0xfff..=u64::MAX, u64::MAX..=u64::MAX] {
            assert_eq!(usable(&window(range.clone(), PageSize::K4)), None, "{range:x?}");
            assert_eq!(Ledger::<()>::new(vec![window(range, PageSize::K4)]).unwrap().find(4096, 1, u64::MAX), None);
        }
    }

    #[test]
    fn windows_that_make_no_sense_are_refused() {
        let (a, b) = (window(0..=0xffff, PageSize::K4), window(0xffff..=0x1ffff, PageSize::K64));
        assert!(Ledger::<()>::new(vec![a.clone(), b]).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        let reversed = window(2..=1, PageSize::K4);
        assert!(Ledger::<()>::new(vec![a, reversed]).is_err());
        assert_eq!(Ledger::<()>::new(vec![]).unwrap().find(4096, 1, u64::MAX), None);
    }

    #[test]
    fn only_what_was_entered_can_be_removed() {
        let mut ledger = Ledger::new(vec![window(0..=0xff_ffff, PageSize::K4)]).unwrap();
        ledger.place(Iova(0x4000), 0x2000, 'a').unwrap();
        for (iova, len) in
            [(0x4000, 0x1000), (0x5000, 0x1000), (0x4000, 0x3000), (0x4000, 0), (0x3000, 0x1000), (0x4001, 0x2000)]
        {
            assert!(
                matches!(ledger.strike(Iova(iova), len), Err(Error::Ledger { op: "unmap", .. })),
                "{iova:x} {len:x}"
            );
        }
        for (iova, len) in [
            (0x3000, 0x2000),
            (0x5000, 0x1000),
            (0x2000, 0x8000),
            (0x6000, 0),
            (0x6000, 1),
            (0x6800, 0x1000),
            (0, 0x1000),
            (u64::MAX - 1, 4096),
        ] {
            assert!(
                matches!(ledger.place(Iova(iova), len, 'b'), Err(Error::Ledger { op: "map", .. })),
                "{iova:x} {len:x}"
            );
        }
        // A place outside of all windows is nobody's business but those who are there.
        ledger.enter(Iova(1 << 40), 0x1000, 'c').unwrap();
        assert!(ledger.enter(Iova((1 << 40) - 0x800), 0x1000, 'd').is_err());
        ledger.set_windows(vec![window(1 << 40..=(1 << 40) + 0x1fff, PageSize::K4)]).unwrap();
        assert_eq!(ledger.find(0x1000, 1, u64::MAX), Some(Iova((1 << 40) + 0x1000)));
        ledger.strike(Iova(1 << 40), 0x1000).unwrap();
        assert_eq!(ledger.len(), 1);
        assert_eq!(ledger.strike(Iova(0x4000), 0x2000).unwrap(), 'a');
        assert_eq!(ledger.len(), 0);
    }

    /// Three small windows, of 4 KiB and 16 KiB pages, in units of 4 KiB.
    fn windows() -> Vec<IovaWindow> {
        let pages = |first: u64, count: u64| first << 12..=((first + count) << 12) - 1;
        vec![
            window(pages(0, 12), PageSize::K4),
            window(pages(20, 20), PageSize::K16),
            window(pages(1 << 47, 9), PageSize::K4),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 3 } else { 500 }, failure_persistence: None, ..ProptestConfig::default()
        })]

        /// The ledger and a list of pages agree on what can be taken, where the first gap is, and what can be struck.
        #[test]
        fn agrees_with_a_list_of_pages(ops in prop::collection::vec((0..4u8, 0..24u64, 0..9u64, 0..5u32), 0..60)) {
            let all: Vec<u64> = (1..12).chain(20..40).chain((1 << 47)..(1 << 47) + 9).collect();
            // Page size of each page's window, in pages; a range must lie in one window.
            let window_of = |page: u64| windows().iter().position(|w| w.range.contains(&(page << 12)));
            let unit = |page: u64| if (20..40).contains(&page) { 4 } else { 1 };
            let mut ledger = Ledger::new(windows()).unwrap();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (what, place, pages, log) in ops {
                let page = if place < 12 { all[place as usize] - 1 } else { *all.get(3 * place as usize - 25).unwrap_or(&(1 << 47)) };
                let free = |taken: &[(u64, u64)], first: u64, n: u64| {
                    n > 0 && (first..first + n).all(|p| all.contains(&p) && window_of(p) == window_of(first))
                        && first.is_multiple_of(unit(first)) && n.is_multiple_of(unit(first))
                        && taken.iter().all(|(s, l)| first + n <= *s || s + l <= first)
                };
                let expected = match what {
                    0 | 1 => {
                        let highest = if what == 0 { u64::MAX } else { (page << 12) + 0x333 * u64::from(log) };
                        let align = 1u64 << log;
                        let candidates = all.iter().copied().filter(|p| p.is_multiple_of(align) && free(&taken, *p, pages) && ((p + pages) << 12) - 1 <= highest);
                        let found = ledger.find(pages << 12, align << 12, highest);
                        prop_assert_eq!(found, candidates.min().map(|p| Iova(p << 12)));
                        let Some(iova) = found else { continue };
                        Some((iova.0 >> 12, pages))
                    }
                    2 => free(&taken, page, pages).then_some((page, pages)),
                    _ => {
                        let known = taken.iter().position(|t| *t == (page, pages));
                        prop_assert_eq!(ledger.strike(Iova(page << 12), pages << 12).is_ok(), known.is_some());
                        known.map(|k| taken.swap_remove(k));
                        if known.is_none() && !taken.is_empty() {
                            let (first, n) = taken.swap_remove(place as usize % taken.len());
                            prop_assert!(ledger.strike(Iova(first << 12), n << 12).is_ok());
                        }
                        continue;
                    }
                };
                let (first, n) = expected.unwrap_or((page, pages));
                prop_assert_eq!(ledger.place(Iova(first << 12), n << 12, ()).is_ok(), expected.is_some());
                taken.extend(expected);
                prop_assert_eq!(ledger.len(), taken.len());
            }
        }
    }
}
