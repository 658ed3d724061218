//! The addresses a device sees: windows, a ledger of what is mapped where, and the arenas that joined.
//!
//! One object a container, IOAS or vfio-user peer. What is mapped is only ever an [`Arena`], so that no safe code can let a device into
//! memory that may be freed. How a map is made is the backend's ([`DmaBackend`]).

use super::{Arena, Iova};
use crate::{Error, PageSize, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use vm_allocator::{AddressAllocator, AllocPolicy};

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

/// What arenas are aligned to in a space, if they are as large: a large page of most platforms.
const ALIGN: u64 = 2 << 20;

/// The addresses a device, or several that share them, sees.
pub struct DmaSpace {
    backend: Box<dyn DmaBackend>,
    ledger: Mutex<Ledger>,
}

struct Ledger {
    windows: Vec<(IovaWindow, AddressAllocator)>,
    /// By address: length, and the arena's mapping.
    maps: BTreeMap<u64, (u64, u32, Weak<DmaMapping>)>,
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
    /// Those of windows that make no sense.
    pub fn new(backend: Box<dyn DmaBackend>) -> Result<Arc<Self>> {
        let windows = allocators(backend.windows(), &BTreeMap::new())?;
        Ok(Arc::new(Self { backend, ledger: Mutex::new(Ledger { windows, maps: BTreeMap::new() }) }))
    }

    /// Lets devices of this space into `arena`, at an address of the space's choice. An arena that has joined already is told where
    /// it is: it is mapped once, and unmapped when the last holder lets go.
    ///
    /// # Errors
    /// [`Error::NoIova`] where no window has room; what the backend says.
    pub fn attach(self: &Arc<Self>, arena: &Arc<Arena>) -> Result<Arc<DmaMapping>> {
        let mut ledger = self.ledger();
        let known = ledger.maps.values().find(|(_, id, _)| *id == arena.id());
        if let Some(mapping) = known.and_then(|(_, _, m)| m.upgrade()) {
            return Ok(mapping);
        }
        if let Some(limit) = self.backend.max_maps()
            && ledger.maps.len() >= limit
        {
            return Err(Error::TooManyMaps { limit });
        }
        let len = arena.len();
        if let Some(iova) = self.backend.fixed(arena)? {
            return self.enter(&mut ledger, arena, iova);
        }
        let mut found = None;
        for (at, (window, free)) in ledger.windows.iter_mut().enumerate() {
            // Devices have pages of their own, up to 64 KiB and more, and want their queues on them: what is aligned in the arena
            // is aligned for the device too.
            let align = len.next_power_of_two().min(ALIGN).max(window.page.bytes()).max(arena.page().bytes());
            if let Ok(range) = free.allocate(len.next_multiple_of(window.page.bytes()), align, AllocPolicy::FirstMatch)
            {
                found = Some((at, range));
                break;
            }
        }
        let (at, range) = found.ok_or(Error::NoIova { len })?;
        self.enter(&mut ledger, arena, Iova(range.start())).inspect_err(|_| {
            let _ = ledger.windows[at].1.free(&range);
        })
    }

    fn enter(self: &Arc<Self>, ledger: &mut Ledger, arena: &Arc<Arena>, iova: Iova) -> Result<Arc<DmaMapping>> {
        self.backend.map(arena, iova)?;
        let mapping = Arc::new(DmaMapping { space: self.clone(), arena: arena.clone(), iova });
        ledger.maps.insert(iova.0, (arena.len(), arena.id(), Arc::downgrade(&mapping)));
        Ok(mapping)
    }

    /// Asks the backend for its windows anew: a device that joined may have taken some away. What is mapped stays where it is.
    pub(crate) fn refresh(&self) -> Result<()> {
        let mut ledger = self.ledger();
        ledger.windows = allocators(self.backend.windows(), &ledger.maps)?;
        Ok(())
    }

    /// The ranges that devices of this space can use.
    pub fn windows(&self) -> Vec<IovaWindow> {
        self.backend.windows()
    }

    /// How many arenas are mapped now.
    pub fn mapped(&self) -> usize {
        self.ledger().maps.len()
    }

    fn detach(&self, iova: Iova, len: u64) {
        let mut ledger = self.ledger();
        if ledger.maps.remove(&iova.0).is_none() {
            return;
        }
        if let Err(error) = self.backend.unmap(iova, len) {
            // The address stays taken: nobody else may be mapped where a device may still be let in.
            tracing::error!(%iova, len, %error, "unmap failed; the address is not used again");
            return;
        }
        for (window, free) in &mut ledger.windows {
            let end = iova.0 + len.next_multiple_of(window.page.bytes()) - 1;
            if window.range.contains(&iova.0)
                && let Ok(range) = vm_allocator::RangeInclusive::new(iova.0, end)
            {
                let _ = free.free(&range);
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Allocators over windows, in which what is mapped is taken.
fn allocators(
    windows: Vec<IovaWindow>,
    maps: &BTreeMap<u64, (u64, u32, Weak<DmaMapping>)>,
) -> Result<Vec<(IovaWindow, AddressAllocator)>> {
    let allocator = |w: IovaWindow| {
        // Address 0 is never handed out: too many devices take it for "none".
        let first = (*w.range.start()).max(w.page.bytes());
        let len = w.range.end().saturating_sub(first).saturating_add(1);
        let mut free = AddressAllocator::new(first, len).map_err(|_| Error::OutOfRange {
            what: "IOVA window",
            offset: first,
            len,
            size: u64::MAX,
        })?;
        for (iova, (len, ..)) in maps.range(w.range.clone()) {
            let len = len.next_multiple_of(w.page.bytes());
            // One that lies across the window's end can't be in it.
            let _ = free.allocate(len, w.page.bytes(), AllocPolicy::ExactMatch(*iova));
        }
        Ok((w, free))
    };
    windows.into_iter().map(allocator).collect()
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

impl Drop for DmaMapping {
    fn drop(&mut self) {
        self.space.detach(self.iova, self.arena.len());
    }
}
