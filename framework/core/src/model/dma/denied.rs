//! Why a device may not access memory: the access, and what it met.

use crate::mem::Iova;
use std::fmt;

/// The refusal of a device's access to memory: the access, and the map it met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// The address.
    pub iova: Iova,
    /// Bytes.
    pub len: u64,
    /// To write, rather than to read.
    pub write: bool,
    /// Why not.
    pub why: Reason,
}

/// The reason why a device may not access memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is mapped at this address.
    Unmapped(Iova),
    /// This map (address, bytes) came without a file descriptor.
    NoMemory((Iova, u64)),
    /// This map (address, bytes) is for reading only.
    ReadOnly((Iova, u64)),
    /// The peer that mapped this (address, bytes) took memory away that it had shared.
    TakenAway((Iova, u64)),
    /// An entry is not aligned, or crosses from one map into the next.
    Alignment,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.write { "write" } else { "read" };
        write!(f, "can't {verb} {:#x} bytes at {:#x}: ", self.len, self.iova.0)?;
        match self.why {
            Reason::Unmapped(at) => write!(f, "nothing is mapped at {:#x}", at.0),
            Reason::NoMemory((at, len)) => {
                write!(f, "the map of {len:#x} bytes at {:#x} came without a file descriptor", at.0)
            }
            Reason::ReadOnly((at, len)) => write!(f, "the map of {len:#x} bytes at {:#x} is for reading only", at.0),
            Reason::TakenAway((at, len)) => {
                write!(f, "the memory of the map of {len:#x} bytes at {:#x} was taken away", at.0)
            }
            Reason::Alignment => write!(f, "it is not aligned there, or an entry crosses maps"),
        }
    }
}
