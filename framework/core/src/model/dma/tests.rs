use super::*;
use crate::mem::memfd;

const PAGE: u64 = 4096;

/// A table of `pages` maps of a page each, side by side from `iova` on, whose memory lies the other way round.
fn descending(iova: u64, pages: u64, writable: impl Fn(u64) -> bool) -> (DmaTable, Arc<Mapping>) {
    let memory = Arc::new(memfd("dma", pages * PAGE, None).unwrap().0);
    let mut table = DmaTable::default();
    for page in 0..pages {
        let at = (pages - 1 - page) * PAGE;
        table.map(Iova(iova + page * PAGE), Some(memory.clone()), at, PAGE, writable(page)).unwrap();
    }
    (table, memory)
}

#[test]
#[cfg_attr(miri, ignore = "words of several widths at one place")]
fn a_span_may_cross_maps() {
    let (table, memory) = descending(0x10000, 4, |_| true);
    let bytes: Vec<_> = (0..3 * PAGE).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    let span = table.find(Iova(0x10000 + 100), 3 * PAGE).unwrap();
    assert!(span.write(0, &bytes) && span.writable() && span.len() == 3 * PAGE);
    let mut back = vec![0; bytes.len()];
    assert!(span.read(0, &mut back));
    assert_eq!(back, bytes);
    // Where they are in fact: the first bytes in the last page, behind 100 others.
    let mut piece = vec![0; 50];
    assert!(memory.read(3 * PAGE + 100, &mut piece));
    assert_eq!(piece, bytes[..50]);
    assert!(memory.read(2 * PAGE, &mut piece));
    assert_eq!(piece, bytes[(PAGE - 100) as usize..][..50]);
    assert!(span.fill(10, 2 * PAGE, 9) && span.read(0, &mut back));
    assert!(back[..10] == bytes[..10] && back[10..][..2 * PAGE as usize].iter().all(|b| *b == 9));
    assert_eq!(back[10 + 2 * PAGE as usize..], bytes[10 + 2 * PAGE as usize..]);
    // Not one byte outside of it.
    assert!(!span.read(3 * PAGE - 1, &mut [0; 2]) && !span.write(u64::MAX, &[0; 2]) && !span.fill(1, 3 * PAGE, 0));
}

#[test]
#[cfg_attr(miri, ignore = "words of several widths at one place")]
fn entries_may_cross_maps_and_one_may_not() {
    let (table, memory) = descending(0, 3, |_| true);
    let span = table.find(Iova(0), 3 * PAGE).unwrap();
    let entries = span.entries::<[AtomicU64; 8]>(0, 192).unwrap();
    for i in 0..192 {
        entries.at(i).unwrap()[7].store(i as u64, Ordering::Relaxed);
    }
    assert!(entries.at(192).is_none() && entries.at(usize::MAX).is_none());
    assert_eq!(memory.u64(2 * PAGE + 56).unwrap().load(Ordering::Relaxed), 0);
    assert_eq!(memory.u64(PAGE + 56).unwrap().load(Ordering::Relaxed), 64);
    // From 4 on, entries of 8 bytes in words of 4: the one at 4092 would cross.
    assert!(span.entries::<[AtomicU32; 2]>(4, 511).is_some() && span.entries::<[AtomicU32; 2]>(4, 512).is_none());
    assert!(span.entries::<AtomicU32>(4, 2000).is_some());
    // In one page they are a slice.
    assert!(span.slice::<AtomicU32>(PAGE, 1024).is_some() && span.slice::<AtomicU32>(PAGE, 1025).is_none());
    assert!(span.entries::<AtomicU64>(1, 4).is_none(), "not aligned");
    assert!(span.entries::<AtomicU64>(0, usize::MAX).is_none());
}

#[test]
#[cfg_attr(miri, ignore = "words of several widths at one place")]
fn short_copies_do_what_copies_of_spans_do() {
    // The second page is for reading, and nothing is mapped behind the fourth; found last is now this, now that.
    let (table, memory) = descending(0, 4, |page| page != 1);
    let bytes: Vec<_> = (1..=200).collect();
    for (found, iova, len, used) in [0, 1, 2]
        .into_iter()
        .flat_map(|page| {
            [0, 100, PAGE - 200, PAGE - 199, PAGE, 2 * PAGE, 3 * PAGE + 100, 4 * PAGE - 150, u64::MAX]
                .map(|iova| (page, iova))
        })
        .flat_map(|(page, iova)| {
            [(200, 200), (200, 76), (300, 1), (100, 101), (0, 0)].map(|(len, used)| (page, iova, len, used))
        })
    {
        let fresh = |value| {
            (0..4).for_each(|page| assert!(memory.fill(page * PAGE, PAGE, value)));
            table.find(Iova(found * PAGE), 8).unwrap();
        };
        let whole = |of: &Mapping| {
            let mut all = vec![0; 4 * PAGE as usize];
            assert!(of.read(0, &mut all));
            all
        };
        let case = format!("found {found}, {used} of {len} at {iova:#x}");
        fresh(7);
        let expected =
            table.find(Iova(iova), len).is_some_and(|span| used as u64 <= len && span.write(0, &bytes[..used]));
        let there = whole(&memory);
        fresh(7);
        let (one, other) = bytes[..used].split_at(used / 3);
        assert_eq!(table.write(Iova(iova), len, [one, other].into_iter()), expected, "{case}");
        // Of pieces that are too long together, those are written for which there is room.
        assert!(whole(&memory) == there || used as u64 > len, "{case}");
        let (mut one, mut other) = (vec![0; used], vec![0; used]);
        let expected = table.find(Iova(iova), len).is_some_and(|span| used as u64 <= len && span.read(0, &mut one));
        fresh(9);
        assert_eq!(table.read(Iova(iova), len, &mut other), expected, "{case}");
        assert!(!expected || other == vec![9; used], "{case}");
    }
    // Registers are no memory, and what was taken away is gone.
    let gone = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let lent = memfd("lent", PAGE, None).unwrap().0.taken_away_with(gone.clone());
    let mut table = DmaTable::default();
    table.map(Iova(0), Some(Arc::new(lent)), 0, PAGE, true).unwrap();
    let one = || table.write(Iova(0), 8, [&[1; 8][..]].into_iter());
    assert!(one() && table.read(Iova(0), 8, &mut [0; 8]));
    gone.store(true, Ordering::Relaxed);
    assert!(!one() && !table.read(Iova(0), 8, &mut [0; 8]));
}

#[test]
fn who_only_reads_needs_no_more() {
    let (table, _memory) = descending(0, 3, |page| page != 1);
    let span = table.find(Iova(0), 3 * PAGE).unwrap();
    assert!(!span.writable() && !span.write(0, &[1]) && !span.fill(0, 1, 1));
    assert!(span.entries::<AtomicU64>(0, 8).is_none());
    assert_eq!(span.entries::<ReadOnly<AtomicU64>>(0, 1536).unwrap().at(1000).unwrap().acquire(), 0);
    assert!(table.find(Iova(0), PAGE).unwrap().writable());
}

#[cfg(not(miri))]
#[test]
fn pages_that_cannot_be_written_are_read() {
    use std::os::fd::AsFd;
    let (memory, fd) = memfd("dma", PAGE, None).unwrap();
    memory.u64(8).unwrap().store(77, Ordering::Relaxed);
    let reading = Mapping::of_fd(fd.unwrap().as_fd(), 0, PAGE as usize, Prot::Read).unwrap();
    let mut table = DmaTable::default();
    table.map(Iova(0), Some(Arc::new(reading)), 0, PAGE, false).unwrap();
    let page = table.find(Iova(0), PAGE).unwrap();
    let words = page.entries::<[ReadOnly<AtomicU64>; 2]>(0, 256).unwrap();
    assert_eq!((words.at(0).unwrap()[1].load(), words.at(0).unwrap()[1].acquire()), (77, 77));
    assert!(page.u64(8).is_none() && page.slice::<AtomicU64>(0, 1).is_none());
}

#[test]
fn a_refusal_says_what_was_asked_of_which_map() {
    let (mut table, _memory) = descending(0x1000, 3, |page| page != 1);
    table.map(Iova(0x8000), None, 0, PAGE, false).unwrap();
    let said = |iova, len, write| table.denied(Iova(iova), len, write).to_string();
    assert!(table.find(Iova(0x3ff0), 32).is_none() && table.find(Iova(0x8000), 4).is_none());
    assert_eq!(said(0x3ff0, 32, false), "can't read 0x20 bytes at 0x3ff0: nothing is mapped at 0x4000");
    assert_eq!(said(0, 16, false), "can't read 0x10 bytes at 0x0: nothing is mapped at 0x0");
    let read_only = "can't write 0x2000 bytes at 0x1000: the map of 0x1000 bytes at 0x2000 is for reading only";
    assert_eq!(said(0x1000, 0x2000, true), read_only);
    let nothing = "can't read 0x4 bytes at 0x8000: the map of 0x1000 bytes at 0x8000 came without a file descriptor";
    assert_eq!(said(0x8000, 4, false), nothing);
    assert!(said(0x1004, 8, false).contains("not aligned"));
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand changes")]
fn there_may_be_tens_of_thousands_of_maps() {
    const MAPS: u64 = 33_000;
    let memory = Arc::new(memfd("dma", PAGE, None).unwrap().0);
    let mut table = DmaTable::default();
    let add = |table: &mut DmaTable, page: u64| table.map(Iova(page * PAGE), Some(memory.clone()), 0, PAGE, true);
    // In no order: 7919 has no divisor in common with the number of maps.
    (0..MAPS).for_each(|i| add(&mut table, i * 7919 % MAPS).unwrap());
    assert!(table.len() as u64 == MAPS && table.find(Iova(0), MAPS * PAGE).is_some());
    for i in 0..MAPS {
        let page = i * 104_729 % MAPS;
        table.unmap(Iova(page * PAGE), PAGE).unwrap();
        assert!(table.find(Iova(page * PAGE + 8), 8).is_none());
        add(&mut table, page).unwrap();
        assert!(table.find(Iova(page * PAGE + 8), 8).is_some());
    }
    assert_eq!(table.maps.len() as u64, MAPS, "places are used again");
    assert_eq!(table.unmap_all_in(Iova(0), MAPS * PAGE), Ok(MAPS as usize));
}

#[test]
fn maps_come_and_go_in_any_order() {
    let memory = Arc::new(memfd("dma", 16 * PAGE, None).unwrap().0);
    let mut table = DmaTable::default();
    let add = |table: &mut DmaTable, page: u64, pages: u64| {
        table.map(Iova(page * PAGE), Some(memory.clone()), page * PAGE, pages * PAGE, true)
    };
    add(&mut table, 4, 2).unwrap();
    for (page, pages) in [(4, 1), (5, 1), (3, 2), (5, 4), (0, 16)] {
        assert_eq!(add(&mut table, page, pages), Err(Refused(libc::EEXIST)), "{page} {pages}");
    }
    add(&mut table, 6, 1).unwrap();
    add(&mut table, 3, 1).unwrap();
    assert!(table.find(Iova(3 * PAGE), 4 * PAGE).is_some() && table.len() == 3);
    assert_eq!(table.unmap(Iova(4 * PAGE), PAGE), Err(Refused(libc::ENOENT)));
    assert_eq!(table.unmap_all_in(Iova(0), 5 * PAGE), Err(Refused(libc::EINVAL)));
    assert_eq!(table.unmap_all_in(Iova(5 * PAGE), 5 * PAGE), Err(Refused(libc::EINVAL)));
    table.unmap(Iova(4 * PAGE), 2 * PAGE).unwrap();
    assert!(table.find(Iova(4 * PAGE), 1).is_none() && table.find(Iova(3 * PAGE), 2 * PAGE).is_none());
    add(&mut table, 4, 1).unwrap();
    add(&mut table, 5, 1).unwrap();
    assert!(table.find(Iova(3 * PAGE), 4 * PAGE).is_some());
    assert_eq!(table.maps().map(|(at, _)| at.0 / PAGE).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(table.unmap_all_in(Iova(0), u64::MAX), Ok(4));
    assert!(table.len() == 0 && table.find(Iova(3 * PAGE), 1).is_none());
    assert_eq!(table.unmap_all_in(Iova(0), 0), Err(Refused(libc::EINVAL)));
}
