//! A submission queue entry (base 3.3.3.1), and the completion that answers it (base 3.3.3.2).

use super::bits::Status;
use std::sync::atomic::AtomicU64;
use wholebar_core::model::ReadOnly;

/// A submission queue entry, as the eight words it was read by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command([u64; 8]);

/// A submission queue entry in memory: the controller only reads it.
pub(super) type Sqe = [ReadOnly<AtomicU64>; 8];

impl Command {
    /// Reads an entry. The doorbell's Acquire load came before, so these loads see what was stored before it was rung.
    #[inline]
    pub(super) fn fetch(entry: &Sqe) -> Self {
        Self(std::array::from_fn(|i| u64::from_le(entry[i].load())))
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

    pub(super) fn cdw2(&self) -> u32 {
        self.0[1] as u32
    }

    pub(super) fn cdw3(&self) -> u32 {
        (self.0[1] >> 32) as u32
    }

    /// Metadata pointer.
    pub(super) fn mptr(&self) -> u64 {
        self.0[2]
    }

    #[inline]
    pub(super) fn prp1(&self) -> u64 {
        self.0[3]
    }

    #[inline]
    pub(super) fn prp2(&self) -> u64 {
        self.0[4]
    }

    /// A fault: the same command, with its data at `address`.
    #[must_use]
    pub(super) fn with_data_at(mut self, address: u64) -> Self {
        self.0[0] &= !(3 << 14);
        self.0[3] = address;
        self
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

    /// Dwords 14 and 15 as one.
    pub(super) fn cdw14_15(&self) -> u64 {
        self.0[7]
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

    pub(super) fn cdw13(&self) -> u32 {
        (self.0[6] >> 32) as u32
    }
}

/// What answers a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// Dwords 0 and 1: command specific.
    pub(super) result: u64,
    pub(super) sq_head: u16,
    pub(super) sq_id: u16,
    pub(super) cid: u16,
    pub(super) status: Status,
    /// A fault: posted with the other phase, so that the host does not see it.
    pub(super) stale: bool,
}

impl Answer {
    /// An answer to a command of queue `sq_id`; the queue's head is put in as it is posted.
    pub(super) fn new(sq_id: u16, cid: u16, outcome: Result<u64, Status>) -> Self {
        let (result, status) = match outcome {
            Ok(result) => (result, Status::OK),
            Err(status) => (0, status),
        };
        Self { result, sq_head: 0, sq_id, cid, status, stale: false }
    }
}
