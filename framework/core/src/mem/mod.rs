//! DMA memory: arenas, device address spaces, rings of atomic words, buffer pools.
//!
//! - [`Arena`]: a piece of memory that devices can be given access to.
//! - [`DmaSpace`]: the addresses that a device sees; [`DmaSpace::attach`] maps an arena there.
//! - [`Chunk`], [`DmaRing`]: parts of an arena, as bytes and as ring entries made of atomic words.
//! - [`Pool`], [`Buf`]: buffers of equal size in an arena, as owned 8-byte handles; a [`PoolCache`] is one core's share of a pool.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//!
//! // 1 MiB, and 64 buffers of 2048 bytes in it.
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! let pool = Pool::new(arena.clone(), 64, 2048, 64)?;
//! let mut buf = pool.get().expect("a buffer");
//! buf.copy_from(b"hello");
//! assert_eq!((buf.bytes(), pool.available()), (&b"hello"[..], 63));
//! // A dropped buffer returns to its pool.
//! drop(buf);
//! assert_eq!(pool.available(), 64);
//! # Ok::<_, wholebar::Error>(())
//! ```
//!
//! A driver's `attach` ([`Port::attach`](crate::net::Port::attach), [`Disk::attach`](crate::block::Disk::attach)) maps an arena for its device; from
//! then on buffers of that arena can be given to the device's queues. What a device writes is *input*: nothing here trusts it.
//!
//! # The boundary
//! The types here cannot enforce *when and where* a device writes. The bytes of a [`Buf`] are plain bytes to its holder ([`Buf::bytes`]); that nobody else
//! writes them meanwhile rests on these rules:
//!
//! - A driver gives a device the address of a buffer only together with the buffer: the command in flight owns it until the device reports that it is done
//!   with it, or was reset, or is gone. A buffer that may still be written is quarantined, and never handed out again.
//! - A device writes only where it was told to, and nothing after it reported that it was done. The IOMMU keeps hardware that breaks this rule from all
//!   memory but the arenas that were attached for it; inside of these it can change bytes that somebody reads, and then a `&str` made of them need not
//!   be UTF-8 any more.
//! - A [model](crate::model) is a device, and so is a vfio-user server: it is sent the arena's memory file, and can pass that on. The rule covers
//!   everyone in this process who has either of them, even in safe code, and everyone who writes to this process through `/proc/self/mem`.
//! - On this side, each word of a ring is accessed in one width ([`DmaRing`]). A model must access it in the same width.
//!
//! A program that handles a device it does not trust takes no references to memory that the device can write: [`Buf::copy_to`], [`Chunk::read`] and rings
//! access memory by atomic words, and stay sound whatever the device does. The values may be torn, and nothing worse.
//!
//! A driver that programs a wrong address, or frees a buffer too early, breaks the first rule. Drivers contain no unsafe code, and are trusted to follow
//! that rule.

mod arena;
mod buf;
mod chunk;
mod ledger;
mod mapping;
mod offload;
mod pool;
mod space;
mod system;
mod words;

pub use arena::{Arena, ArenaOptions, Frame, Source};
pub use buf::{Buf, give_back};
pub use chunk::{Chunk, DmaRing, Field, Shared};
pub use mapping::Mapping;
pub(crate) use mapping::{copy_in, copy_out, memfd};
pub use offload::{Checked, L4, Offload};
pub use pool::{Pool, PoolCache, leaked_buffers};
pub(crate) use space::WeakSpace;
pub use space::{DmaBackend, DmaMapping, DmaSpace, IovaWindow};
pub(crate) use words::Words;

use std::fmt;

/// An I/O virtual address: an address as a device sees it.
///
/// DPDK: `rte_iova_t`; Linux: `dma_addr_t`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// Returns the address `bytes` further on; it wraps at 2⁶⁴.
    #[inline]
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
