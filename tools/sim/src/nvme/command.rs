//! A submission queue entry (base 3.3.3.1), and the completion that answers it (base 3.3.3.2).

use super::bits::Status;
use std::sync::atomic::{AtomicU64, Ordering};

/// A submission queue entry, as the eight words it was read by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command([u64; 8]);

/// A submission queue entry in memory.
pub(super) type Sqe = [AtomicU64; 8];

impl Command {
    /// Reads an entry. The doorbell's Acquire load came before, so these loads see what was stored before it was rung.
    #[inline]
    pub(super) fn fetch(entry: &Sqe) -> Self {
        Self(std::array::from_fn(|i| u64::from_le(entry[i].load(Ordering::Relaxed))))
    }

    #[inline]
    pub(super) fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// Fused operation, bits 9:8.
    #[inline]
    pub(super) fn fuse(&self) -> u8 {
        (self.0[0] >> 8) as u8 & 3
    }

    /// PRP or SGL, bits 15:14.
    #[inline]
    pub(super) fn psdt(&self) -> u8 {
        (self.0[0] >> 14) as u8 & 3
    }

    #[inline]
    pub(super) fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    #[inline]
    pub(super) fn nsid(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    #[inline]
    pub(super) fn prp1(&self) -> u64 {
        self.0[3]
    }

    #[inline]
    pub(super) fn prp2(&self) -> u64 {
        self.0[4]
    }

    /// The first SGL descriptor, in the place of the PRPs.
    pub(super) fn sgl1(&self) -> [u64; 2] {
        [self.0[3], self.0[4]]
    }

    /// Dwords 10 and 11 as one: a starting LBA.
    #[inline]
    pub(super) fn cdw10_11(&self) -> u64 {
        self.0[5]
    }

    /// Dwords 12 and 13 as one.
    pub(super) fn cdw12_13(&self) -> u64 {
        self.0[6]
    }

    #[inline]
    pub(super) fn cdw10(&self) -> u32 {
        self.0[5] as u32
    }

    #[inline]
    pub(super) fn cdw11(&self) -> u32 {
        (self.0[5] >> 32) as u32
    }

    #[inline]
    pub(super) fn cdw12(&self) -> u32 {
        self.0[6] as u32
    }
}

/// What answers a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// Dword 0: command specific.
    pub(super) dw0: u32,
    pub(super) sq_head: u16,
    pub(super) sq_id: u16,
    pub(super) cid: u16,
    pub(super) status: Status,
}
