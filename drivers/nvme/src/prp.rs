//! How a command says where its data is: PRP entries and lists (NVM Express Base 2.0, 4.1.1), and SGL descriptors (4.1.2).
//!
//! Pure arithmetic over device addresses. Lists are short enough to lie in one page, so they are never chained.

use crate::command::DataPointer;

/// Contiguous bytes, as the controller sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub iova: u64,
    pub len: u32,
}

impl Segment {
    fn end(self) -> u64 {
        self.iova.wrapping_add(self.len.into())
    }
}

/// Words of a command's list: PRP entries for the longest transfer, or 16 SGL descriptors.
pub(crate) fn list_words(max_transfer: u32, page: u64) -> u32 {
    ((u64::from(max_transfer) / page).max(32) as u32).next_power_of_two()
}

/// PRP entries for contiguous bytes, if there are some, that need at most two of them. `mask` is the page size less one.
#[inline(always)]
pub(crate) fn two_pages(iova: u64, len: u32, mask: u64) -> Option<(u64, u64)> {
    // Where the last byte is, from the start of the first page on; nowhere near for no bytes.
    let last = (iova & mask) + u64::from(len.wrapping_sub(1));
    if last <= mask {
        Some((iova, 0))
    } else if last >> 1 <= mask {
        Some((iova, (iova | mask).wrapping_add(1)))
    } else {
        None
    }
}

/// Whether PRPs can have `next` behind `before`: every page but the first is entered at its start, every one but the last left
/// at its end.
pub(crate) fn joins(before: Segment, next: Segment, page: u64) -> bool {
    before.end().is_multiple_of(page) && next.iova.is_multiple_of(page)
}

/// The pages of `segments`, which [join](joins).
fn pages(segments: impl Iterator<Item = Segment>, page: u64) -> impl Iterator<Item = u64> {
    segments.flat_map(move |s| {
        let first = s.iova & !(page - 1);
        let count = (s.iova - first + u64::from(s.len)).div_ceil(page);
        (0..count).map(move |i| if i == 0 { s.iova } else { first.wrapping_add(i * page) })
    })
}

/// The data pointer for `segments`, which [join](joins). Entries beyond the second go to a list at `list`, through `put`.
pub(crate) fn prps(
    segments: impl Iterator<Item = Segment>,
    page: u64,
    list: u64,
    mut put: impl FnMut(u32, u64),
) -> DataPointer {
    let mut pages = pages(segments, page);
    let (first, second) = (pages.next().unwrap_or(0), pages.next());
    let Some(second) = second else { return DataPointer::prp(first, 0) };
    let Some(third) = pages.next() else { return DataPointer::prp(first, second) };
    put(0, second);
    put(1, third);
    (2..).zip(pages).for_each(|(i, entry)| put(i, entry));
    DataPointer::prp(first, list)
}

/// SGL descriptor types (4.1.2.1), in the last byte of a descriptor.
const SGL_DATA_BLOCK: u64 = 0x0 << 60;
const SGL_LAST_SEGMENT: u64 = 0x3 << 60;

/// The data pointer for `segments` as an SGL: one descriptor in the command, or several at `list`, through `put` (word by word).
pub(crate) fn sgl(
    mut segments: impl Iterator<Item = Segment>,
    list: u64,
    mut put: impl FnMut(u32, u64),
) -> DataPointer {
    let descriptor = |s: Segment| (s.iova, u64::from(s.len) | SGL_DATA_BLOCK);
    let first = segments.next().unwrap_or(Segment { iova: 0, len: 0 });
    let Some(second) = segments.next() else {
        let (low, high) = descriptor(first);
        return DataPointer { low, high, sgl: true };
    };
    let mut count = 0;
    for segment in [first, second].into_iter().chain(segments) {
        let (low, high) = descriptor(segment);
        put(2 * count, low);
        put(2 * count + 1, high);
        count += 1;
    }
    let bytes = u64::from(count) * 16;
    DataPointer { low: list, high: bytes | SGL_LAST_SEGMENT, sgl: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: u64 = 0xaaaa_0000;

    /// What the controller would read: the standard's rules, applied to the data pointer.
    fn walk(pointer: DataPointer, list: &[u64], len: u64, page: u64) -> Vec<(u64, u64)> {
        let mut parts = Vec::new();
        let first = len.min(page - pointer.low % page);
        parts.push((pointer.low, first));
        let mut left = len - first;
        let mut entries: Vec<u64> = match left {
            0 => vec![],
            n if n <= page => vec![pointer.high],
            _ => {
                assert_eq!(pointer.high, LIST);
                list.to_vec()
            }
        };
        entries.reverse();
        while left > 0 {
            let entry = entries.pop().expect("an entry for each page");
            assert!(entry.is_multiple_of(page), "only the first entry has an offset");
            let n = left.min(page);
            parts.push((entry, n));
            left -= n;
        }
        assert!(entries.is_empty());
        parts
    }

    fn build(segments: &[Segment], page: u64) -> (DataPointer, Vec<u64>) {
        let mut list = Vec::new();
        let pointer = prps(segments.iter().copied(), page, LIST, |i, entry| {
            assert_eq!(i as usize, list.len());
            list.push(entry);
        });
        (pointer, list)
    }

    /// Offsets, lengths and page sizes: every byte is covered once, in order, as the standard would read it.
    #[test]
    fn contiguous_data() {
        let mut cases = 0;
        for page in [4096u64, 16384, 65536] {
            let offsets = [0, 8, 512, 2048, page / 2, page - 512, page - 8];
            let lengths = [
                512,
                4096,
                page - 512,
                page,
                page + 512,
                2 * page - 8,
                2 * page,
                2 * page + 512,
                7 * page,
                8 * page + 8,
            ];
            for offset in offsets {
                for len in lengths {
                    let iova = 0x10_0000_0000 + offset;
                    let segment = Segment { iova, len: len as u32 };
                    let (pointer, list) = build(&[segment], page);
                    let mut at = iova;
                    for (start, n) in walk(pointer, &list, len, page) {
                        assert_eq!(start, at);
                        at += n;
                    }
                    assert_eq!(at, iova + len);
                    let short = two_pages(iova, segment.len, page - 1);
                    assert_eq!(short, list.is_empty().then_some((pointer.low, pointer.high)), "{offset} + {len}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 210);
    }

    #[test]
    fn known_answers() {
        let one = |iova, len| build(&[Segment { iova, len }], 4096);
        assert_eq!(one(0x1000, 4096), (DataPointer::prp(0x1000, 0), vec![]));
        assert_eq!(one(0x1200, 4096), (DataPointer::prp(0x1200, 0x2000), vec![]));
        assert_eq!(one(0x1000, 8192), (DataPointer::prp(0x1000, 0x2000), vec![]));
        assert_eq!(one(0x1200, 8192), (DataPointer::prp(0x1200, LIST), vec![0x2000, 0x3000]));
        assert_eq!(one(0x1000, 16384), (DataPointer::prp(0x1000, LIST), vec![0x2000, 0x3000, 0x4000]));
    }

    #[test]
    fn several_segments_join_at_pages() {
        let (a, b) = (Segment { iova: 0x1800, len: 0x800 }, Segment { iova: 0x8000, len: 0x1800 });
        assert!(joins(a, b, 4096) && !joins(b, a, 4096) && !joins(a, Segment { iova: 0x8008, len: 8 }, 4096));
        let (pointer, list) = build(&[a, b], 4096);
        assert_eq!((pointer, list), (DataPointer::prp(0x1800, LIST), vec![0x8000, 0x9000]));
    }

    #[test]
    fn sgl_descriptors() {
        let (a, b) = (Segment { iova: 0x1004, len: 0x300 }, Segment { iova: 0x9000, len: 0x200 });
        let mut list = Vec::new();
        let one = sgl([a].into_iter(), LIST, |_, _| unreachable!("one needs no list"));
        assert_eq!(one, DataPointer { low: 0x1004, high: 0x300, sgl: true });
        let two = sgl([a, b].into_iter(), LIST, |_, word| list.push(word));
        assert_eq!(two, DataPointer { low: LIST, high: 0x3000_0000_0000_0020, sgl: true });
        assert_eq!(list, [0x1004, 0x300, 0x9000, 0x200]);
    }
}
