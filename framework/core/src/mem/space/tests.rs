use super::*;
use crate::mem::ArenaOptions;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A backend that checks what it is told: no overlap, no unmap that matches no map, no more maps than it can hold.
#[derive(Default)]
struct Strict {
    maps: Mutex<BTreeMap<u64, u64>>,
    limit: Option<usize>,
    fixed: Option<Iova>,
    fail_map: AtomicBool,
    fail_unmap: AtomicBool,
    calls: AtomicUsize,
}

const WINDOW: RangeInclusive<u64> = 0..=(64 << 20) - 1;

impl DmaBackend for Arc<Strict> {
    fn windows(&self) -> Vec<IovaWindow> {
        vec![IovaWindow { range: WINDOW, page: PageSize::K4 }]
    }
    fn max_maps(&self) -> Option<usize> {
        self.limit
    }
    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fail_map.load(Ordering::Relaxed) {
            return Err(Error::Gone { device: "strict".to_owned(), why: "of its own will".to_owned() });
        }
        let mut maps = self.maps.lock().unwrap();
        let end = iova.0 + arena.len();
        assert!(maps.iter().all(|(at, len)| at + len <= iova.0 || end <= *at), "an overlap");
        maps.insert(iova.0, arena.len());
        assert!(self.limit.is_none_or(|limit| maps.len() <= limit), "too many");
        Ok(())
    }
    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fail_unmap.load(Ordering::Relaxed) {
            return Err(Error::Gone { device: "strict".to_owned(), why: "of its own will".to_owned() });
        }
        assert_eq!(self.maps.lock().unwrap().remove(&iova.0), Some(len), "an unmap of what isn't mapped");
        Ok(())
    }
    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(self.fixed)
    }
}

fn space(limit: Option<usize>) -> (Arc<Strict>, Arc<DmaSpace>) {
    let strict = Arc::new(Strict { limit, ..Strict::default() });
    (strict.clone(), DmaSpace::new(Box::new(strict)).unwrap())
}

fn arena(pages: u64) -> Arc<Arena> {
    let options = ArenaOptions { hugepages: Some(false), numa_node: None };
    Arena::new(pages * PageSize::host().bytes(), options).unwrap()
}

#[test]
fn an_arena_is_mapped_once_a_space_until_all_let_go() {
    let ((strict, space), (_, other)) = (space(None), space(None));
    let arena = arena(3);
    let (a, b, c) = (
        space.attach(arena.clone()).unwrap(),
        space.attach(arena.clone()).unwrap(),
        other.attach(arena.clone()).unwrap(),
    );
    assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
    assert!(Arc::ptr_eq(&c.shared, &other.shared) && Arc::ptr_eq(a.arena(), &arena));
    assert!(a.iova().0.is_multiple_of(arena.align()) && a.iova().0 > 0);
    drop(a);
    assert_eq!((strict.calls.load(Ordering::Relaxed), space.mapped(), other.mapped()), (1, 1, 1));
    drop(b);
    assert_eq!((strict.calls.load(Ordering::Relaxed), space.mapped(), other.mapped()), (2, 0, 1));
    // Its address is free again.
    assert_eq!(space.attach(arena).unwrap().iova(), c.iova());
}

#[test]
fn what_cannot_be_mapped_is_refused_before_the_backend_sees_it() {
    let (strict, space) = space(Some(2));
    let (small, large) = (arena(1), arena(20_000));
    assert!(matches!(space.attach(large), Err(Error::NoIova { .. })));
    let at = space.attach_at(small.clone(), Iova(16 << 20)).unwrap();
    for (arena, iova) in
        [(&small, 1 << 20), (&arena(1), 16 << 20), (&arena(2), (16 << 20) - 1), (&arena(1), 64 << 20), (&arena(1), 0)]
    {
        let refused = space.attach_at(arena.clone(), Iova(iova));
        assert!(matches!(refused, Err(Error::Ledger { .. })), "{iova:x} {refused:?}");
    }
    assert!(Arc::ptr_eq(&at, &space.attach_at(small.clone(), Iova(16 << 20)).unwrap()));
    let _second = space.attach(arena(1)).unwrap();
    assert!(matches!(space.attach(arena(1)), Err(Error::TooManyMaps { limit: 2 })));
    assert_eq!(strict.calls.load(Ordering::Relaxed), 2);
}

#[test]
fn where_nothing_translates_an_arena_is_where_it_is() {
    let fixed = Some(Iova(1 << 40));
    let space = DmaSpace::new(Box::new(Arc::new(Strict { fixed, ..Strict::default() }))).unwrap();
    let (one, other) = (arena(1), arena(1));
    assert!(matches!(space.attach_at(one.clone(), Iova(1 << 20)), Err(Error::Ledger { .. })));
    let at = space.attach(one).unwrap();
    assert_eq!(Some(at.iova()), fixed);
    assert!(matches!(space.attach(other.clone()), Err(Error::Ledger { .. })));
    drop(at);
    assert_eq!(Some(space.attach(other).unwrap().iova()), fixed);
}

#[test]
fn a_device_is_given_no_address_beyond_its_mask() {
    let ((strict, space), page) = (space(None), PageSize::host().bytes());
    let narrow = space.downgrade().upgrade().unwrap();
    narrow.set_dma_mask(24);
    assert!(narrow.is_shared_with(&space) && (narrow.dma_mask(), space.dma_mask()) == (24, 64));
    // All below 16 MiB but the last page.
    let last = Iova((16 << 20) - page);
    let low = arena((last.0 - (2 << 20)) / page);
    let _low = space.attach_at(low, Iova(2 << 20)).unwrap();
    let sizes = (0..).map(|n| page << n).take_while(|size| *size < 2 << 20);
    let _lower: Vec<_> = sizes.map(|at| space.attach_at(arena(at / page), Iova(at)).unwrap()).collect();
    let (one, other) = (arena(1), arena(1));
    assert_eq!(narrow.attach(one.clone()).unwrap().iova(), last, "the only one that there is");
    let held = narrow.attach_at(one.clone(), last).unwrap();
    assert!(matches!(narrow.attach(other.clone()), Err(Error::NoIova { bits: 24, .. })));
    assert!(matches!(narrow.attach_at(other.clone(), Iova(16 << 20)), Err(Error::BeyondMask { bits: 24, .. })));
    let high = space.attach(other.clone()).unwrap();
    assert!(high.iova().0 >= 16 << 20, "whoever has a wider mask goes there");
    let calls = strict.calls.load(Ordering::Relaxed);
    let error = narrow.attach(other.clone()).unwrap_err().to_string();
    assert!(error.contains("24 bits: the arena is mapped there already"), "{error}");
    // Maps from before a mask was set stay; they aren't given out any more.
    narrow.set_dma_mask(23);
    assert!(matches!(narrow.attach(one), Err(Error::BeyondMask { iova, .. }) if iova == last.0));
    assert_eq!((strict.calls.load(Ordering::Relaxed), held.iova()), (calls, last));
    narrow.set_dma_mask(0);
    assert!(matches!(narrow.attach(arena(1)), Err(Error::NoIova { .. })));
    narrow.set_dma_mask(u32::MAX);
    assert!(Arc::ptr_eq(&narrow.attach(other).unwrap(), &high));
}

#[test]
fn where_nothing_translates_a_mask_refuses_what_lies_beyond() {
    let strict = Arc::new(Strict { fixed: Some(Iova(1 << 28)), ..Strict::default() });
    let space = DmaSpace::new(Box::new(strict.clone())).unwrap();
    space.set_dma_mask(28);
    assert!(matches!(space.attach(arena(1)), Err(Error::BeyondMask { .. })));
    assert_eq!(strict.calls.load(Ordering::Relaxed), 0);
    space.set_dma_mask(29);
    space.attach(arena(1)).unwrap();
}

#[test]
fn an_arena_is_detached_once_nobody_holds_it() {
    let (strict, space) = space(None);
    let arena = arena(1);
    let (one, other) = (space.attach(arena.clone()).unwrap(), space.attach(arena.clone()).unwrap());
    let one = one.detach().unwrap_err();
    assert_eq!((space.mapped(), Arc::ptr_eq(&one, &other)), (1, true), "somebody holds it: nothing has changed");
    drop(other);
    one.detach().unwrap();
    assert_eq!((space.mapped(), strict.maps.lock().unwrap().len(), Arc::strong_count(&arena)), (0, 0, 1));
    space.attach(arena).unwrap();
}

/// Where the mapping is when it is dropped makes no difference.
#[test]
fn a_mapping_that_was_moved_out_of_its_arc_is_undone() {
    let (strict, space) = space(None);
    let mapping = Arc::try_unwrap(space.attach(arena(1)).unwrap()).unwrap();
    drop(Box::new(mapping));
    assert_eq!((space.mapped(), strict.maps.lock().unwrap().len()), (0, 0));
}

#[test]
fn a_map_that_fails_takes_nothing() {
    let (strict, space) = space(None);
    let arena = arena(1);
    strict.fail_map.store(true, Ordering::Relaxed);
    assert!(matches!(space.attach(arena.clone()), Err(Error::Gone { .. })));
    assert_eq!(space.mapped(), 0);
    strict.fail_map.store(false, Ordering::Relaxed);
    assert_eq!(space.attach(arena.clone()).unwrap().iova(), Iova(arena.align()));
}

#[test]
fn an_unmap_that_fails_keeps_address_and_memory() {
    let (strict, space) = space(Some(2));
    let arena = arena(1);
    let at = space.attach(arena.clone()).unwrap();
    let iova = at.iova();
    strict.fail_unmap.store(true, Ordering::Relaxed);
    drop(at);
    assert_eq!((space.mapped(), Arc::strong_count(&arena)), (1, 2));
    strict.fail_unmap.store(false, Ordering::Relaxed);
    let again = space.attach(arena.clone()).unwrap();
    assert_ne!(again.iova(), iova);
    assert!(matches!(space.attach_at(super::tests::arena(1), iova), Err(Error::TooManyMaps { .. })));
    drop(again);
    assert!(matches!(space.attach_at(super::tests::arena(1), iova), Err(Error::Ledger { .. })));
    drop(space);
    assert_eq!(Arc::strong_count(&arena), 1, "with the space its maps are gone, and the memory is free");
}

/// Holders come and go on several threads; the backend sees every map once, and none is left.
#[test]
fn attaching_races_letting_go() {
    let (strict, space) = space(Some(2));
    let arenas = [arena(1), arena(2)];
    let rounds = if cfg!(miri) { 40 } else { 5000 };
    std::thread::scope(|scope| {
        for who in 0..3 {
            let (strict, space, arenas) = (&strict, &space, &arenas);
            scope.spawn(move || {
                let mut held = Vec::new();
                for i in 0..rounds {
                    // Two arenas and two maps: one that is mapped twice for a moment would be one too many.
                    held.push(space.attach(arenas[(i + who) % 2].clone()).unwrap());
                    std::thread::yield_now();
                    let mapped = |m: &Arc<DmaMapping>| strict.maps.lock().unwrap().contains_key(&m.iova().0);
                    assert!(held.iter().all(mapped), "held, and not mapped");
                    if i % 3 != who {
                        held.clear();
                    }
                }
            });
        }
    });
    assert_eq!((space.mapped(), strict.maps.lock().unwrap().len()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 100 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Whatever comes and goes, each holder sees its arena where the backend has it, and nobody else there.
    #[test]
    fn holders_and_backend_agree(ops in prop::collection::vec((0..6usize, any::<bool>(), any::<bool>()), 0..if cfg!(miri) { 15 } else { 60 })) {
        let (strict, space) = space(Some(5));
        let arenas: Vec<_> = (0..6).map(|i| arena(1 + i % 3)).collect();
        let mut held: Vec<Option<Arc<DmaMapping>>> = vec![None; 6];
        for (who, come, fails) in ops {
            strict.fail_map.store(fails, Ordering::Relaxed);
            let there = held.iter().flatten().count();
            if come {
                match space.attach(arenas[who].clone()) {
                    Ok(mapping) => {
                        prop_assert!(held[who].is_some() || (there < 5 && !fails));
                        held[who] = Some(mapping);
                    }
                    Err(Error::TooManyMaps { .. }) => prop_assert!(there == 5 && held[who].is_none()),
                    Err(_) => prop_assert!(fails && held[who].is_none()),
                }
            } else {
                held[who] = None;
            }
            let expected: BTreeMap<_, _> = held.iter().flatten().map(|m| (m.iova().0, m.arena().len())).collect();
            prop_assert_eq!(&expected, &*strict.maps.lock().unwrap());
            prop_assert_eq!(expected.len(), space.mapped());
        }
    }
}
