//! Page sizes, as a type: nothing in this framework assumes 4096.

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

    /// `bytes` as a page size.
    ///
    /// # Errors
    /// [`Error::PageSize`] where it isn't a power of two of at least 4 KiB and at most 1 GiB.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(Error::PageSize { bytes })
        }
    }

    /// The page size of this host.
    pub fn host() -> Self {
        Self(rustix::param::page_size() as u64)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The start of the page that holds `offset`.
    pub const fn floor(self, offset: u64) -> u64 {
        offset & !(self.0 - 1)
    }

    /// The first page boundary at or after `offset`, saturating at the last boundary.
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
