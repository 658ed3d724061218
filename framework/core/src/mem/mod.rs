//! Memory that devices reach: arenas, address spaces, rings of atomic words, buffer pools.
//!
//! - [`Arena`]: one piece of memory that a device can be let into.
//! - [`DmaSpace`]: the addresses a device sees; an arena joins it by [`DmaSpace::attach`].
//! - [`Chunk`], [`DmaRing`]: parts of an arena, as bytes and as ring entries made of atomic words.
//! - [`Pool`], [`Buf`]: equal buffers in an arena, handed out as owned 8-byte handles; [`PoolCache`] is one core's share.
//!
//! What a device writes is *input*: nothing here trusts it.
//!
//! # The boundary
//! What no type here can hold is *when and where* a device writes. A [`Buf`]'s bytes are plain bytes to whoever holds it ([`Buf::bytes`]), and
//! that nobody else writes them then rests on this:
//!
//! - A driver gives a device the address of a buffer only with the buffer: the command in flight holds it until the device says that it is done with
//!   it, or was reset, or is gone. What may still be written is quarantined, and never handed out again.
//! - A device writes nothing but what it was told to, and nothing after it said that it was done. Hardware that breaks this is kept by the
//!   IOMMU from all memory but the arenas that were attached for it; inside of these it can change bytes that somebody reads, and then a
//!   `&str` made of them need not be UTF-8 any more.
//! - A [model](crate::model) is a device, and a vfio-user server is one: it is sent the arena's memory file, and can hand that on. So is whoever in
//!   this process has either of them, though their code be safe code, and whoever writes to this process through `/proc/self/mem`.
//! - Words of rings are accessed in one width each by all that is on this side ([`DmaRing`]); by which width a model accesses them is the
//!   model's to get right.
//!
//! Who has to do with a device that is not trusted so far takes no references to what it can write: [`Buf::copy_to`], [`Chunk::read`] and rings
//! are made of atomic words, and stay sound whatever the device does. What they give may be torn, and nothing worse.
//!
//! A driver that programs a wrong address, or lets a buffer go too early, is such a device's accomplice: drivers are free of unsafe code, and trusted to
//! follow the first rule.

mod arena;
mod buf;
mod chunk;
mod ledger;
mod mapping;
mod pool;
mod space;
mod system;
mod words;

pub use arena::{Arena, ArenaOptions, Frame, Source};
pub use buf::{Buf, Checked, L4, Offload, give_back};
pub use chunk::{Chunk, DmaRing, Field, Shared};
pub use mapping::Mapping;
pub(crate) use mapping::memfd;
pub use pool::{Pool, PoolCache, leaked_buffers};
pub(crate) use space::WeakSpace;
pub use space::{DmaBackend, DmaMapping, DmaSpace, IovaWindow};
pub(crate) use words::Words;

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
