//! Page sizes as a type. Nothing in this framework assumes 4096.

use crate::{Error, Result};
use std::fmt;

/// A page size: a power of two of at least 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u64);

impl PageSize {
    /// 4 KiB.
    pub const K4: Self = Self(4 << 10);
    /// 16 KiB.
    pub const K16: Self = Self(16 << 10);
    /// 64 KiB.
    pub const K64: Self = Self(64 << 10);

    /// Returns `bytes` as a page size.
    ///
    /// # Errors
    /// [`Error::PageSize`] where it is not a power of two from 4 KiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(Error::PageSize { bytes })
        }
    }

    /// Returns the page size of this host.
    pub fn host() -> Self {
        Self(rustix::param::page_size() as u64)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the start of the page that contains `offset`.
    pub const fn floor(self, offset: u64) -> u64 {
        offset & !(self.0 - 1)
    }

    /// Returns the first page boundary at or after `offset`; the last boundary of the address space where there is none.
    pub const fn ceil(self, offset: u64) -> u64 {
        match offset.checked_add(self.0 - 1) {
            Some(end) => self.floor(end),
            None => self.floor(u64::MAX),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1 << 20 { write!(f, "{} MiB", self.0 >> 20) } else { write!(f, "{} KiB", self.0 >> 10) }
    }
}
