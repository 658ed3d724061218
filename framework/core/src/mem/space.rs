//! Device address spaces: their windows, and which arenas are mapped where.
//!
//! There is one space for each container, IOAS or vfio-user peer; each device has a [`DmaSpace`] of its own for it, with the device's DMA mask. Only
//! an [`Arena`] can be mapped, so no safe code can give a device access to memory that may be freed. How memory is mapped is up to the backend
//! ([`DmaBackend`]).

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::ledger::Ledger;
use super::{Arena, Iova};
use crate::{Error, PageSize, Result};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// A range of addresses that a device can use.
///
/// Linux: `struct vfio_iova_range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IovaWindow {
    /// The first and the last address.
    pub range: RangeInclusive<u64>,
    /// The granularity of maps: their addresses and lengths are multiples of this.
    pub page: PageSize,
}

/// The operations by which arenas are mapped for devices: a container of the kernel's, an IOAS, a vfio-user peer, or a model's table implements this.
///
/// The space calls [`map`](Self::map) and [`unmap`](Self::unmap) under its lock, keeps maps from overlapping, and matches every unmap to a map.
/// Drivers and applications do not call these methods: they use [`DmaSpace`].
pub trait DmaBackend: Send + Sync {
    /// Returns the ranges that can be mapped. The ranges must not overlap. Called when the space is made, and when a device joins it.
    fn windows(&self) -> Vec<IovaWindow>;
    /// Returns how many maps there can be at once; `None` for no limit. (Linux: `dma_entry_limit` of `vfio_iommu_type1`.)
    fn max_maps(&self) -> Option<usize>;
    /// Maps all of `arena` at `iova`, for reading and writing. On an error the device must not reach the memory.
    ///
    /// # Errors
    /// [`Error::Dma`] where the system refuses; [`Error::Peer`] or [`Error::Gone`] where the peer does not answer.
    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()>;
    /// Unmaps exactly one map, of `len` bytes at `iova`. Once this returns, the device must not reach the memory. On an error the space keeps the
    /// address and the arena for good.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    fn unmap(&self, iova: Iova, len: u64) -> Result<()>;
    /// Returns the address at which devices find `arena` in any case, where nothing translates addresses; `None` where the space chooses an address
    /// from its windows.
    ///
    /// # Errors
    /// [`Error::Physical`] where the arena's memory has no address that devices can use.
    fn fixed(&self, arena: &Arena) -> Result<Option<Iova>>;
}

/// The addresses that one device sees: its part of a space, which other devices may share, and its DMA mask.
///
/// [`PciDevice::dma`](crate::pci::PciDevice::dma) returns it.
///
/// [`attach`](Self::attach) takes the space's lock, and a system call or a message where the arena is not mapped yet: it is for set-up.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::Result;
/// use wholebar::mem::{Arena, ArenaOptions, Iova};
/// use wholebar::pci::PciDevice;
///
/// /// Maps 1 MiB for a device that has 32-bit addresses; returns where the device finds it.
/// fn map(device: &dyn PciDevice) -> Result<Iova> {
///     let space = device.dma();
///     space.set_dma_mask(32);
///     let mapping = space.attach(Arena::new(1 << 20, ArenaOptions::default())?)?;
///     Ok(mapping.iova())
///     // The mapping is dropped here, which unmaps the arena. A driver keeps it.
/// }
/// ```
pub struct DmaSpace {
    shared: Arc<Shared>,
    /// How many bits of an address the device has.
    bits: AtomicU32,
}

/// What devices of one container, IOAS or peer have together.
struct Shared {
    // Dropped first: what could not be unmapped goes with the backend, and only then its memory.
    backend: Box<dyn DmaBackend>,
    ledger: Mutex<Ledger<Tenant>>,
}

/// What is mapped at an address.
enum Tenant {
    /// An arena, by its id, and the mapping that its holders have, with its number. Where that is being dropped, it is gone already.
    Arena(u32, Weak<DmaMapping>, u64),
    /// An arena of which it isn't known whether a device reaches it, since unmapping failed: neither it nor the address is given back.
    Stuck(#[allow(dead_code, reason = "held")] Arc<Arena>),
}

/// A space that nobody need be in any more.
#[derive(Clone)]
pub(crate) struct WeakSpace(Weak<Shared>);

/// An arena's mapping in a space.
///
/// The arena is unmapped when the last holder drops it.
///
/// All who attach an arena to a space hold the same mapping: a queue holds those of the arenas whose buffers it was given. So an arena is *detached*
/// from a device by dropping everything that uses it; [`detach`](Self::detach) tells whether that has happened.
pub struct DmaMapping {
    shared: Arc<Shared>,
    arena: Arc<Arena>,
    iova: Iova,
    /// No other mapping of this process has it. (Nor has another its address while it is in its `Arc`, but it can be moved out of that.)
    number: u64,
}

impl DmaSpace {
    /// Creates a space over `backend`, whose windows it asks for.
    ///
    /// # Errors
    /// [`Error::Ledger`] where a window ends before it begins, or windows overlap.
    pub fn new(backend: Box<dyn DmaBackend>) -> Result<Arc<Self>> {
        let ledger = Mutex::new(Ledger::new(backend.windows())?);
        Ok(Self::of(Arc::new(Shared { backend, ledger })))
    }

    fn of(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, bits: AtomicU32::new(64) })
    }

    pub(crate) fn downgrade(&self) -> WeakSpace {
        WeakSpace(Arc::downgrade(&self.shared))
    }

    /// Returns whether two devices share one space: an arena mapped for one can be reached by the other.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Sets how many bits of an address the device can use: at most 64, which is the value at first. (Linux: `dma_set_mask`; DPDK:
    /// `rte_mem_set_dma_mask`.)
    ///
    /// The device's driver calls this before it attaches the first arena. From then on, arenas that are attached for this device lie within the mask:
    /// an address is chosen there, and an arena that is mapped beyond it already (for another device of this space, or from before) is refused.
    /// Existing maps stay as they are, and other devices of this space keep their masks.
    pub fn set_dma_mask(&self, bits: u32) {
        // Relaxed: it guards nothing but itself.
        self.bits.store(bits.min(64), Ordering::Relaxed);
    }

    /// Returns how many bits of an address the device can use.
    pub fn dma_mask(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    /// Maps `arena` for the devices of this space, at an address of the space's choice. An arena that is mapped already is mapped once only: the call
    /// returns the existing mapping. (Linux: `VFIO_IOMMU_MAP_DMA`; DPDK: `rte_dev_dma_map`.)
    ///
    /// # Errors
    /// [`Error::NoIova`] where no window has room within the device's [mask](Self::set_dma_mask); [`Error::BeyondMask`] where the arena is mapped
    /// already, beyond the mask; [`Error::TooManyMaps`]; [`Error::Granule`] where its size is no multiple of any window's granularity; [`Error::Dma`]
    /// or [`Error::Peer`] where the backend does not map it.
    pub fn attach(&self, arena: Arc<Arena>) -> Result<Arc<DmaMapping>> {
        self.shared.attach(arena, None, self.dma_mask())
    }

    /// Maps `arena` as [`attach`](Self::attach) does, at the address `iova`.
    ///
    /// # Errors
    /// [`Error::Ledger`] where the address is taken, outside of the windows or not aligned to [`Arena::align`], or the arena is mapped at another; else as
    /// [`attach`](Self::attach).
    pub fn attach_at(&self, arena: Arc<Arena>, iova: Iova) -> Result<Arc<DmaMapping>> {
        self.shared.attach(arena, Some(iova), self.dma_mask())
    }

    /// Asks the backend for its windows anew: a device that joined may have taken some away. What is mapped stays where it is.
    pub(crate) fn refresh(&self) -> Result<()> {
        self.shared.ledger().set_windows(self.shared.backend.windows())
    }

    /// Returns the ranges that devices of this space can use.
    pub fn windows(&self) -> Vec<IovaWindow> {
        self.shared.ledger().windows().to_vec()
    }

    /// Returns the number of maps, for all devices of this space. Maps that could not be undone count.
    pub fn mapped(&self) -> usize {
        self.shared.ledger().len()
    }

    /// Returns how many more maps there can be; `None` for no limit. A program that attaches arenas again and again asks this, and takes larger ones
    /// where few maps are left.
    pub fn maps_left(&self) -> Option<usize> {
        self.shared.backend.max_maps().map(|limit| limit.saturating_sub(self.mapped()))
    }
}

impl WeakSpace {
    /// A new device's part in it, while any other is left.
    pub(crate) fn upgrade(&self) -> Option<Arc<DmaSpace>> {
        self.0.upgrade().map(DmaSpace::of)
    }
}

impl Shared {
    fn attach(self: &Arc<Self>, arena: Arc<Arena>, wanted: Option<Iova>, bits: u32) -> Result<Arc<DmaMapping>> {
        let len = arena.len();
        let highest = u64::MAX.checked_shr(64u32.saturating_sub(bits)).unwrap_or(0);
        let within = |iova: Iova, why| match iova.0.checked_add(len.saturating_sub(1)) {
            Some(last) if last <= highest => Ok(()),
            _ => Err(Error::BeyondMask { iova: iova.0, len, bits, why }),
        };
        let mut ledger = self.ledger();
        let joined = ledger.items_mut().find_map(|(iova, tenant)| match tenant {
            Tenant::Arena(id, mapping, number) if *id == arena.id() => Some((iova, mapping, number)),
            _ => None,
        });
        if let Some((iova, known, number)) = joined {
            if wanted.is_some_and(|wanted| wanted != iova) {
                let why = "this arena is mapped already, at another address";
                return Err(Error::Ledger { op: "map", iova: iova.0, len, why });
            }
            within(
                iova,
                "the arena is mapped there already, so give this device an arena of its own, or attach it for this device first",
            )?;
            return Ok(known.upgrade().unwrap_or_else(|| {
                // Its last holder is dropping it and waits for the ledger. The map is taken over before it is undone.
                let heir = self.mapping(arena, iova);
                (*known, *number) = (Arc::downgrade(&heir), heir.number);
                heir
            }));
        }
        if let Some(limit) = self.backend.max_maps()
            && ledger.len() >= limit
        {
            return Err(Error::TooManyMaps { limit });
        }
        let align = arena.align();
        let iova = match (self.backend.fixed(&arena)?, wanted) {
            (Some(iova), _) => {
                within(iova, "the arena's memory is there, and nothing translates this device's addresses")?;
                iova
            }
            (None, Some(iova)) => {
                ledger.check(iova, len)?;
                within(iova, "choose a lower address")?;
                iova
            }
            (None, None) => {
                let pages = || ledger.windows().iter().map(|window| window.page);
                if let Some(page) = pages().min().filter(|_| pages().all(|p| !len.is_multiple_of(p.bytes()))) {
                    return Err(Error::Granule { len, page });
                }
                ledger.find(len, align, highest).ok_or(Error::NoIova { len, align, bits })?
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
        if let Err(error) = self.backend.map(arena.clone(), iova) {
            let _ = ledger.strike(iova, len);
            return Err(error);
        }
        let mapping = self.mapping(arena, iova);
        if let Ok(tenant) = ledger.get_mut(iova, len) {
            *tenant = Tenant::Arena(mapping.arena.id(), Arc::downgrade(&mapping), mapping.number);
        }
        Ok(mapping)
    }

    fn mapping(self: &Arc<Self>, arena: Arc<Arena>, iova: Iova) -> Arc<DmaMapping> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(DmaMapping { shared: self.clone(), arena, iova, number })
    }

    fn leave(&self, mapping: &DmaMapping) {
        let (iova, len) = (mapping.iova, mapping.arena.len());
        let mut ledger = self.ledger();
        match ledger.get_mut(iova, len) {
            // Not taken over by an heir.
            Ok(Tenant::Arena(_, _, number)) if *number == mapping.number => {}
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
        let (windows, mapped, bits) = (self.windows(), self.mapped(), self.dma_mask());
        f.debug_struct("DmaSpace").field("windows", &windows).field("mapped", &mapped).field("dma_mask", &bits).finish()
    }
}

impl DmaMapping {
    /// Returns the address of the arena's start, as devices see it.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Returns the arena.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Unmaps the arena: when this returns, the device, and those that share its space, cannot reach it any more. The arena, its pools and buffers
    /// stay, and can be attached again, perhaps at another address.
    ///
    /// # Errors
    /// Returns the mapping where others hold it, too: queues hold those of the arenas whose buffers they were given until they are dropped, and so
    /// does a device that was told to attach the arena. Nothing has changed then.
    pub fn detach(self: Arc<Self>) -> Result<(), Arc<Self>> {
        Arc::try_unwrap(self).map(drop)
    }
}

impl fmt::Debug for DmaMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMapping({} bytes at {})", self.arena.len(), self.iova)
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        self.shared.leave(self);
    }
}

#[cfg(test)]
mod tests;
