//! Memory that devices reach: arenas, address spaces, rings of atomic words, buffer pools.
//!
//! - [`Arena`]: one piece of memory that a device can be let into.
//! - [`DmaSpace`]: the addresses a device sees; an arena joins it by [`DmaSpace::attach`].
//! - [`Chunk`], [`DmaRing`]: parts of an arena, as bytes and as ring entries made of atomic words.
//! - [`Pool`], [`Buf`]: equal buffers in an arena, handed out as owned 8-byte handles; [`PoolCache`] is one core's share.
//!
//! What a device writes is *input*: nothing here trusts it.

mod arena;
mod buf;
mod chunk;
mod ledger;
mod mapping;
mod pool;
mod space;
mod system;

pub use arena::{Arena, ArenaOptions, Frame, Source};
pub use buf::{Buf, Checked, L4, Offload, give_back};
pub use chunk::{Chunk, DmaRing, Shared};
pub use mapping::Mapping;
pub(crate) use mapping::memfd;
pub use pool::{Pool, PoolCache, leaked_buffers};
pub use space::{DmaBackend, DmaMapping, DmaSpace, IovaWindow};

use std::fmt;

/// An address as a device sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// `bytes` further on; wraps, as addresses do.
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
