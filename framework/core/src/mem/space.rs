//! The addresses a device sees: windows, what is mapped where, and the arenas that joined.
//!
//! One object a container, IOAS or vfio-user peer. What is mapped is only ever an [`Arena`], so that no safe code can let a device into
//! memory that may be freed. How a map is made is the backend's ([`DmaBackend`]).

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::ledger::Ledger;
use super::{Arena, Iova};
use crate::{Error, PageSize, Result};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// A range of addresses that a device can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IovaWindow {
    /// First to last address.
    pub range: RangeInclusive<u64>,
    /// The smallest granule a map can have.
    pub page: PageSize,
}

/// How maps are made: the kernel's containers, a vfio-user peer, a model's table.
pub trait DmaBackend: Send + Sync {
    /// The ranges that can be mapped.
    fn windows(&self) -> Vec<IovaWindow>;
    /// How many maps there can be, where that is limited.
    fn max_maps(&self) -> Option<usize>;
    /// Maps all of `arena` at `iova`.
    fn map(&self, arena: &Arc<Arena>, iova: Iova) -> Result<()>;
    /// Undoes one map, exactly.
    fn unmap(&self, iova: Iova, len: u64) -> Result<()>;
    /// Where `arena` is for devices in any case, where nothing translates addresses; `None` where the space chooses among its windows.
    fn fixed(&self, arena: &Arena) -> Result<Option<Iova>>;
}

/// The addresses a device, or several that share them, sees.
pub struct DmaSpace {
    // Dropped first: what could not be unmapped goes with the backend, and only then its memory.
    backend: Box<dyn DmaBackend>,
    ledger: Mutex<Ledger<Tenant>>,
}

/// What is mapped at an address.
enum Tenant {
    /// An arena, by its id, and the mapping that its holders have. Where that is being dropped, it is gone already.
    Arena(u32, Weak<DmaMapping>),
    /// An arena of which it isn't known whether a device reaches it, since unmapping failed: neither it nor the address is given back.
    Stuck(#[allow(dead_code, reason = "held")] Arc<Arena>),
}

/// An arena's place in a space; unmapped on drop.
pub struct DmaMapping {
    space: Arc<DmaSpace>,
    arena: Arc<Arena>,
    iova: Iova,
}

impl DmaSpace {
    /// A space over `backend`.
    ///
    /// # Errors
    /// [`Error::Ledger`] for windows that end before they begin, or overlap.
    pub fn new(backend: Box<dyn DmaBackend>) -> Result<Arc<Self>> {
        let ledger = Mutex::new(Ledger::new(backend.windows())?);
        Ok(Arc::new(Self { backend, ledger }))
    }

    /// Lets devices of this space into `arena`, at an address of the space's choice. An arena that has joined already is told where
    /// it is: it is mapped once, and unmapped when the last holder lets go.
    ///
    /// # Errors
    /// [`Error::NoIova`] where no window has room, [`Error::TooManyMaps`]; what the backend says.
    pub fn attach(self: &Arc<Self>, arena: &Arc<Arena>) -> Result<Arc<DmaMapping>> {
        self.join(arena, None)
    }

    /// As [`attach`](Self::attach), at an address of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Ledger`] where the address cannot be had, or the arena has joined at another; else as [`attach`](Self::attach).
    pub fn attach_at(self: &Arc<Self>, arena: &Arc<Arena>, iova: Iova) -> Result<Arc<DmaMapping>> {
        self.join(arena, Some(iova))
    }

    fn join(self: &Arc<Self>, arena: &Arc<Arena>, wanted: Option<Iova>) -> Result<Arc<DmaMapping>> {
        let len = arena.len();
        let mut ledger = self.ledger();
        let joined = ledger.items_mut().find_map(|(iova, tenant)| match tenant {
            Tenant::Arena(id, mapping) if *id == arena.id() => Some((iova, mapping)),
            _ => None,
        });
        if let Some((iova, known)) = joined {
            if wanted.is_some_and(|wanted| wanted != iova) {
                let why = "this arena is mapped already, at another address";
                return Err(Error::Ledger { op: "map", iova: iova.0, len, why });
            }
            return Ok(known.upgrade().unwrap_or_else(|| {
                // Its last holder is dropping it and waits for the ledger. The map is taken over before it is undone.
                let heir = self.mapping(arena, iova);
                *known = Arc::downgrade(&heir);
                heir
            }));
        }
        if let Some(limit) = self.backend.max_maps()
            && ledger.len() >= limit
        {
            return Err(Error::TooManyMaps { limit });
        }
        let align = arena.align();
        let iova = match (self.backend.fixed(arena)?, wanted) {
            (Some(iova), _) => iova,
            (None, Some(iova)) => {
                ledger.check(iova, len)?;
                iova
            }
            (None, None) => {
                let pages = || ledger.windows().iter().map(|window| window.page);
                if let Some(page) = pages().min().filter(|_| pages().all(|p| !len.is_multiple_of(p.bytes()))) {
                    return Err(Error::Granule { len, page });
                }
                ledger.find(len, align).ok_or(Error::NoIova { len, align })?
            }
        };
        let refuse = |why| Err(Error::Ledger { op: "map", iova: iova.0, len, why });
        if wanted.is_some_and(|wanted| wanted != iova) {
            return refuse("nothing translates this device's addresses, and the arena is elsewhere");
        }
        if !iova.0.is_multiple_of(align) {
            return refuse("it is not aligned as parts of this arena may be");
        }
        // In the book before the device is let in: where the backend panics nobody knows whether it was, and the place stays taken.
        ledger.enter(iova, len, Tenant::Stuck(arena.clone()))?;
        if let Err(error) = self.backend.map(arena, iova) {
            let _ = ledger.strike(iova, len);
            return Err(error);
        }
        let mapping = self.mapping(arena, iova);
        if let Ok(tenant) = ledger.get_mut(iova, len) {
            *tenant = Tenant::Arena(arena.id(), Arc::downgrade(&mapping));
        }
        Ok(mapping)
    }

    fn mapping(self: &Arc<Self>, arena: &Arc<Arena>, iova: Iova) -> Arc<DmaMapping> {
        Arc::new(DmaMapping { space: self.clone(), arena: arena.clone(), iova })
    }

    /// Asks the backend for its windows anew: a device that joined may have taken some away. What is mapped stays where it is.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.ledger().set_windows(self.backend.windows())
    }

    /// The ranges that devices of this space can use.
    pub fn windows(&self) -> Vec<IovaWindow> {
        self.ledger().windows().to_vec()
    }

    /// How many maps there are now; those that could not be undone count.
    pub fn mapped(&self) -> usize {
        self.ledger().len()
    }

    /// How many maps more there can be, where that is limited. Whoever needs memory again and again asks, and takes more at once where few are left.
    pub fn maps_left(&self) -> Option<usize> {
        self.backend.max_maps().map(|limit| limit.saturating_sub(self.mapped()))
    }

    fn leave(&self, mapping: &DmaMapping) {
        let (iova, len) = (mapping.iova, mapping.arena.len());
        let mut ledger = self.ledger();
        match ledger.get_mut(iova, len) {
            // Not taken over by an heir.
            Ok(Tenant::Arena(_, known)) if std::ptr::eq(known.as_ptr(), mapping) => {}
            _ => return,
        }
        // Neither the address nor the memory is used again before it is known that no device reaches it.
        if let Ok(tenant) = ledger.get_mut(iova, len) {
            *tenant = Tenant::Stuck(mapping.arena.clone());
        }
        match self.backend.unmap(iova, len) {
            Ok(()) => _ = ledger.strike(iova, len),
            Err(error) => {
                tracing::error!(%iova, len, %error, "unmapping failed; neither the address nor the memory is used again");
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<Tenant>> {
        self.ledger.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace").field("windows", &self.windows()).field("mapped", &self.mapped()).finish()
    }
}

impl DmaMapping {
    /// Where the arena starts, as devices see it.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// The arena.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The space.
    pub fn space(&self) -> &Arc<DmaSpace> {
        &self.space
    }
}

impl fmt::Debug for DmaMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMapping({} bytes at {})", self.arena.len(), self.iova)
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        self.space.leave(self);
    }
}

#[cfg(test)]
mod tests {
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
        fn map(&self, arena: &Arc<Arena>, iova: Iova) -> Result<()> {
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
        let (a, b, c) = (space.attach(&arena).unwrap(), space.attach(&arena).unwrap(), other.attach(&arena).unwrap());
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        assert!(Arc::ptr_eq(c.space(), &other) && Arc::ptr_eq(a.arena(), &arena));
        assert!(a.iova().0.is_multiple_of(arena.align()) && a.iova().0 > 0);
        drop(a);
        assert_eq!((strict.calls.load(Ordering::Relaxed), space.mapped(), other.mapped()), (1, 1, 1));
        drop(b);
        assert_eq!((strict.calls.load(Ordering::Relaxed), space.mapped(), other.mapped()), (2, 0, 1));
        // Its address is free again.
        assert_eq!(space.attach(&arena).unwrap().iova(), c.iova());
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_before_the_backend_sees_it() {
        let (strict, space) = space(Some(2));
        let (small, large) = (arena(1), arena(20_000));
        assert!(matches!(space.attach(&large), Err(Error::NoIova { .. })));
        let at = space.attach_at(&small, Iova(16 << 20)).unwrap();
        for (arena, iova) in [
            (&small, 1 << 20),
            (&arena(1), 16 << 20),
            (&arena(2), (16 << 20) - 1),
            (&arena(1), 64 << 20),
            (&arena(1), 0),
        ] {
            let refused = space.attach_at(arena, Iova(iova));
            assert!(matches!(refused, Err(Error::Ledger { .. })), "{iova:x} {refused:?}");
        }
        assert!(Arc::ptr_eq(&at, &space.attach_at(&small, Iova(16 << 20)).unwrap()));
        let _second = space.attach(&arena(1)).unwrap();
        assert!(matches!(space.attach(&arena(1)), Err(Error::TooManyMaps { limit: 2 })));
        assert_eq!(strict.calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn where_nothing_translates_an_arena_is_where_it_is() {
        let fixed = Some(Iova(1 << 40));
        let space = DmaSpace::new(Box::new(Arc::new(Strict { fixed, ..Strict::default() }))).unwrap();
        let (one, other) = (arena(1), arena(1));
        assert!(matches!(space.attach_at(&one, Iova(1 << 20)), Err(Error::Ledger { .. })));
        let at = space.attach(&one).unwrap();
        assert_eq!(Some(at.iova()), fixed);
        assert!(matches!(space.attach(&other), Err(Error::Ledger { .. })));
        drop(at);
        assert_eq!(Some(space.attach(&other).unwrap().iova()), fixed);
    }

    #[test]
    fn a_map_that_fails_takes_nothing() {
        let (strict, space) = space(None);
        let arena = arena(1);
        strict.fail_map.store(true, Ordering::Relaxed);
        assert!(matches!(space.attach(&arena), Err(Error::Gone { .. })));
        assert_eq!(space.mapped(), 0);
        strict.fail_map.store(false, Ordering::Relaxed);
        assert_eq!(space.attach(&arena).unwrap().iova(), Iova(arena.align()));
    }

    #[test]
    fn an_unmap_that_fails_keeps_address_and_memory() {
        let (strict, space) = space(Some(2));
        let arena = arena(1);
        let at = space.attach(&arena).unwrap();
        let iova = at.iova();
        strict.fail_unmap.store(true, Ordering::Relaxed);
        drop(at);
        assert_eq!((space.mapped(), Arc::strong_count(&arena)), (1, 2));
        strict.fail_unmap.store(false, Ordering::Relaxed);
        let again = space.attach(&arena).unwrap();
        assert_ne!(again.iova(), iova);
        assert!(matches!(space.attach_at(&super::tests::arena(1), iova), Err(Error::TooManyMaps { .. })));
        drop(again);
        assert!(matches!(space.attach_at(&super::tests::arena(1), iova), Err(Error::Ledger { .. })));
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
                        held.push(space.attach(&arenas[(i + who) % 2]).unwrap());
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
                    match space.attach(&arenas[who]) {
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
}
