//! What the kernel appends to its answers: chains of capabilities, taken apart. Pure: bytes in, values out.
//!
//! A chain is trusted no more than any input: it must go forward and stay inside its answer, so every walk ends; what doesn't fit is
//! left out, and what isn't known is skipped.

use super::ioctl::Answer;
use crate::PageSize;
use crate::mem::IovaWindow;
use crate::pci::RegionCap;
use std::ops::{Range, RangeInclusive};
use vfio_bindings::bindings::vfio::*;

/// One capability: its number, and the bytes from its header on.
struct Cap<'a> {
    id: u32,
    bytes: &'a [u8],
}

impl Cap<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// The pairs of an array: the count at 8, the entries from 16 on. Those that lie outside are left out.
    fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let count = self.u32(8).unwrap_or(0) as usize;
        (0..count).map_while(|i| Some((self.u64(16 + 16 * i)?, self.u64(24 + 16 * i)?)))
    }
}

/// The chain whose first header is at `first` (0: there is none). Ends at a link that doesn't go forward.
fn chain(bytes: &[u8], first: u32) -> impl Iterator<Item = Cap<'_>> {
    let mut next = first;
    std::iter::from_fn(move || {
        if next == 0 {
            return None;
        }
        // struct vfio_info_cap_header: id, version, next.
        let at = next;
        let cap = bytes.get(at as usize..).filter(|b| b.len() >= size_of::<vfio_info_cap_header>())?;
        let id = u16::from_ne_bytes([cap[0], cap[1]]).into();
        let link = u32::from_ne_bytes([cap[4], cap[5], cap[6], cap[7]]);
        next = if link > at { link } else { 0 };
        Some(Cap { id, bytes: cap })
    })
}

/// The capabilities of a region.
pub(super) fn of_region(region: &Answer<vfio_region_info>) -> Vec<RegionCap> {
    if region.head.flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
        return Vec::new();
    }
    chain(&region.bytes, region.head.cap_offset)
        .map(|cap| match cap.id {
            VFIO_REGION_INFO_CAP_SPARSE_MMAP => RegionCap::SparseMmap(sparse(&cap, region.head.size)),
            VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => RegionCap::MsixMappable,
            other => RegionCap::Other(other as u16),
        })
        .collect()
}

fn sparse(cap: &Cap<'_>, size: u64) -> Vec<Range<u64>> {
    let area = |(offset, len): (u64, u64)| Some(offset..offset.checked_add(len)?);
    cap.pairs().filter_map(area).filter(|a| !a.is_empty() && a.end <= size).collect()
}

/// What a type1 container can map: its windows, and how many maps are left, where the kernel says so.
pub(super) fn of_type1(info: &Answer<vfio_iommu_type1_info>) -> (Vec<IovaWindow>, Option<usize>) {
    let head = &info.head;
    let page_sizes = if head.flags & VFIO_IOMMU_INFO_PGSIZES != 0 { head.iova_pgsizes } else { 0 };
    let first = if head.flags & VFIO_IOMMU_INFO_CAPS != 0 { head.cap_offset } else { 0 };
    let (mut ranges, mut available) = (None, None);
    for cap in chain(&info.bytes, first) {
        match cap.id {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => ranges = Some(cap.pairs().map(|(a, b)| a..=b).collect()),
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => available = cap.u32(8).map(|n| n as usize),
            _ => {}
        }
    }
    (windows(ranges.unwrap_or_else(usual_ranges), smallest_page(page_sizes)), available)
}

/// The smallest page of a bit mask of page sizes that a map of this process's memory can have.
///
/// Smaller ones than the host's don't help: memory comes in the host's pages. Below 4 KiB nothing is meant.
pub(super) fn smallest_page(sizes: u64) -> PageSize {
    let host = PageSize::host();
    let usable = sizes & !(PageSize::K4.bytes() - 1);
    match PageSize::new(1u64.checked_shl(usable.trailing_zeros()).unwrap_or(0)) {
        Ok(page) => page.max(host),
        Err(_) => host,
    }
}

/// Ranges as windows: trimmed to whole pages, and what is empty then left out.
pub(super) fn windows(ranges: Vec<RangeInclusive<u64>>, page: PageSize) -> Vec<IovaWindow> {
    let trim = |r: RangeInclusive<u64>| {
        let start = page.ceil(*r.start());
        // The last address of the last whole page; a range may end at the very last address there is.
        let end = match r.end().checked_add(1) {
            Some(end) => page.floor(end).checked_sub(1)?,
            None => u64::MAX,
        };
        (start >= *r.start() && start < end).then_some(IovaWindow { range: start..=end, page })
    };
    ranges.into_iter().filter_map(trim).collect()
}

/// What a kernel before 5.4, which doesn't tell, most likely maps: what the smallest IOMMUs have (39 bits), without the addresses that
/// x86 takes for interrupts.
fn usual_ranges() -> Vec<RangeInclusive<u64>> {
    vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with `caps` (number, body) chained after a head of `N` words.
    fn answer<T: Default>(caps: &[(u16, &[u64])]) -> (Answer<T>, u32) {
        let mut bytes = vec![0; size_of::<T>()];
        let first = if caps.is_empty() { 0 } else { bytes.len() as u32 };
        for (i, (id, body)) in caps.iter().enumerate() {
            let next = if i + 1 < caps.len() { bytes.len() as u32 + 8 + 8 * body.len() as u32 } else { 0 };
            bytes.extend(id.to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(body.iter().flat_map(|w| w.to_ne_bytes()));
        }
        (Answer { head: T::default(), bytes }, first)
    }

    fn region(caps: &[(u16, &[u64])]) -> Answer<vfio_region_info> {
        let (mut region, first) = answer::<vfio_region_info>(caps);
        (region.head.flags, region.head.cap_offset, region.head.size) = (VFIO_REGION_INFO_FLAG_CAPS, first, 0x4000);
        region
    }

    fn type1(page_sizes: u64, caps: &[(u16, &[u64])]) -> Answer<vfio_iommu_type1_info> {
        let (mut info, first) = answer::<vfio_iommu_type1_info>(caps);
        info.head.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
        (info.head.iova_pgsizes, info.head.cap_offset) = (page_sizes, first);
        info
    }

    #[test]
    fn region_capabilities() {
        let all = region(&[(9, &[1, 2]), (1, &[2, 0x1000, 0x1000, 0x3000, 0x1000]), (3, &[])]);
        let areas = vec![0x1000..0x2000, 0x3000..0x4000];
        assert_eq!(of_region(&all), [RegionCap::Other(9), RegionCap::SparseMmap(areas), RegionCap::MsixMappable]);
        assert_eq!(of_region(&region(&[])), []);
        let mut unflagged = all;
        unflagged.head.flags = 0;
        assert_eq!(of_region(&unflagged), []);
    }

    #[test]
    fn areas_that_are_not_inside_are_left_out() {
        // Past the end, over the end of all numbers, empty; and more of them announced than there are.
        let bad = region(&[(1, &[9, 0x3000, 0x2000, u64::MAX, 2, 0x1000, 0, 0, 0x1000])]);
        assert!(
            matches!(&of_region(&bad)[..], [RegionCap::SparseMmap(areas)] if areas.len() == 1 && areas[0] == (0..0x1000))
        );
    }

    #[test]
    fn chains_end_on_any_bytes() {
        let whole = region(&[(3, &[]), (1, &[1, 0, 0x1000]), (2, &[5])]);
        for len in 0..whole.bytes.len() {
            let short = Answer { head: whole.head, bytes: whole.bytes[..len].to_vec() };
            assert!(of_region(&short).len() <= 3);
        }
        for link in [0u32, 1, 32, 33, 0x8000_0000, u32::MAX] {
            for at in 0..whole.bytes.len() - 4 {
                let mut wrong = Answer { head: whole.head, bytes: whole.bytes.clone() };
                wrong.bytes[at..at + 4].copy_from_slice(&link.to_ne_bytes());
                assert!(of_region(&wrong).len() <= wrong.bytes.len());
            }
            let mut wrong = Answer { head: whole.head, bytes: whole.bytes.clone() };
            wrong.head.cap_offset = link;
            assert!(of_region(&wrong).len() <= 3);
        }
    }

    #[test]
    fn type1_windows_and_maps() {
        let ranges: &[u64] = &[2, 0, 0xfedf_ffff, 0xfef0_0000, u64::MAX];
        let (windows, left) = of_type1(&type1(0x4020_1000, &[(1, ranges), (2, &[0, 0, 0]), (3, &[65535])]));
        let page = PageSize::host();
        let expected = [0..=0xfedf_ffff, 0xfef0_0000..=u64::MAX].map(|range| IovaWindow { range, page });
        assert_eq!((&windows[..], left), (&expected[..], Some(65535)));
        // A kernel that says nothing.
        let (windows, left) = of_type1(&type1(0, &[]));
        assert_eq!((windows.len(), left), (2, None));
        assert!(windows.iter().all(|w| !w.range.contains(&0xfee0_0000)), "interrupts are written there");
    }

    #[test]
    fn windows_are_whole_pages() {
        let empty = RangeInclusive::new(5, 4);
        let ranges =
            vec![0..=0x1_7fff, 0x1_8000..=0x2_7fff, 1..=0xffff, empty, 0x3_0001..=u64::MAX, u64::MAX..=u64::MAX];
        let trimmed: Vec<_> = windows(ranges, PageSize::K64).into_iter().map(|w| w.range).collect();
        assert_eq!(trimmed, [0..=0xffff, 0x4_0000..=u64::MAX]);
    }

    #[test]
    fn pages_are_at_least_the_hosts() {
        let host = PageSize::host();
        for (sizes, page) in [(0, host), (u64::MAX, host), (1 << 9, host), (1 << 30, PageSize::new(1 << 30).unwrap())] {
            assert_eq!(smallest_page(sizes), page);
        }
        assert_eq!(smallest_page(1 << 16).bytes(), host.bytes().max(1 << 16));
        assert_eq!(smallest_page(1 << 40), host, "no page is that large");
    }
}
