//! Operations of the NVM command set that are none of every disk: Dataset Management of many ranges, Copy, Write Uncorrectable. Each is one command,
//! which completes as all others do.

use super::build::in_range;
use super::{Limits, Queue};
use crate::command::{Command, DataPointer, io};
use crate::protection::{GuardFormat, ProtectionType};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wholebar_core::block::{Data, Op, Reject, Request};

/// Blocks, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first block.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
}

/// What Dataset Management says of ranges (NVM Command Set 1.0, 3.2.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatasetAttributes {
    /// AD: they are no longer used.
    pub deallocate: bool,
    /// IDW: they will be written as a whole.
    pub integral_write: bool,
    /// IDR: they will be read as a whole.
    pub integral_read: bool,
}

/// Ranges of one command at most: NR has 8 bits, 0's based (NVM Command Set 1.0, 3.2.2 and 3.2.3).
const MAX_RANGES: usize = 256;

impl Queue {
    /// Posts a Dataset Management command of up to [`max_ranges`](Self::max_ranges) ranges, which completes with `tag`. (nvme-cli: `dsm`; SPDK:
    /// `spdk_nvme_ns_cmd_dataset_management`.)
    ///
    /// # Errors
    /// [`Reject::Invalid`] for no ranges, too many, some past the namespace's end, or above the controller's limits (DMRL, DMRSL, DMSL); the others of
    /// [`submit`](Self::submit).
    pub fn submit_dataset_management(
        &mut self,
        tag: u64,
        nsid: u32,
        attributes: DatasetAttributes,
        ranges: &[BlockRange],
        deadline: Option<Instant>,
    ) -> Result<(), Reject> {
        let controller = &self.inner.driver().controller;
        let (has, limits) = (controller.has_dataset_management(), controller.limits);
        let ns = self.prepare(has, "the controller has no Dataset Management", nsid)?;
        let at_most = |limit: u64, n: u64| limit == 0 || n <= limit;
        check(ns, ranges, self.max_ranges())?;
        if !at_most(limits.deallocate_ranges.into(), ranges.len() as u64) {
            return Err(Reject::Invalid("more ranges than the controller takes at once (DMRL)"));
        }
        if !ranges.iter().all(|r| at_most(limits.deallocate.into(), r.blocks.into())) {
            return Err(Reject::Invalid("a range has more blocks than the controller takes (DMRSL)"));
        }
        if !at_most(limits.deallocate_total, total(ranges)) {
            return Err(Reject::Invalid("the ranges have more blocks than the controller takes at once (DMSL)"));
        }
        let DatasetAttributes { deallocate, integral_write, integral_read } = attributes;
        let attributes = u32::from(integral_read) | u32::from(integral_write) << 1 | u32::from(deallocate) << 2;
        // Context attributes and length, then the first block.
        let words = |r: &BlockRange| [u64::from(r.blocks) << 32, r.lba];
        let nr = ranges.len() as u32 - 1;
        self.post_list(tag, deadline, ranges.iter().flat_map(words), |list| {
            Command::new(io::DATASET_MANAGEMENT, nsid, list).dw10(nr, attributes).entry(0)
        })
    }

    /// Posts a Copy command: the blocks of `from`, one range after the other, to those from `to` on, of the same namespace; it completes with `tag`.
    /// (nvme-cli: `copy`; SPDK: `spdk_nvme_ns_cmd_copy`.)
    ///
    /// # Errors
    /// [`Reject::Invalid`] where the controller has no Copy with descriptors of format 0, for no ranges, and for more of them or larger ones than
    /// [`Namespace::copy`](crate::Namespace::copy) allows; the others of [`submit`](Self::submit).
    pub fn submit_copy(
        &mut self,
        tag: u64,
        nsid: u32,
        to: u64,
        from: &[BlockRange],
        deadline: Option<Instant>,
    ) -> Result<(), Reject> {
        let has = self.inner.driver().controller.has_copy();
        let ns = self.prepare(has, "the controller has no Copy with descriptors of format 0", nsid)?;
        // Four words a descriptor.
        check(ns, from, self.max_ranges() / 2)?;
        if from.len() > ns.copy.ranges.into() || from.iter().any(|r| r.blocks > ns.copy.range_blocks.into()) {
            return Err(Reject::Invalid("more ranges, or more blocks in one, than a Copy can have (MSRC, MSSRL)"));
        }
        if total(from) > ns.copy.blocks.into() {
            return Err(Reject::Invalid("more blocks than a Copy can have (MCL)"));
        }
        in_range(ns, to, total(from))?;
        if ns.layout.guards != GuardFormat::Bits16 || ns.layout.storage_tag > 0 {
            return Err(Reject::Invalid(
                "blocks with guards of more than 16 bits, or with storage tags, are copied with descriptors of format 1, which this driver does not make",
            ));
        }
        // Protection information is checked where it is read, and made anew where it is written: PRACT of both is 1 (5.3.2.5), with PRINFOR in bits 15:12
        // and PRINFOW in bits 29:26.
        let reference = |lba: u64| if ns.layout.protection.is_some() { lba & 0xffff_ffff } else { 0 };
        let action = match ns.layout.protection {
            Some(ProtectionType::Type3) => 1 << 29 | 0b1100 << 12,
            Some(_) => 1 << 29 | 0b1101 << 12,
            None => 0,
        };
        // Source Range Entry of format 0: 8 bytes reserved, the first block, how many, 0's based, and the reference tag that is expected.
        let words = |r: &BlockRange| [0, r.lba, u64::from(r.blocks - 1), reference(r.lba)];
        let nr = from.len() as u32 - 1;
        self.post_list(tag, deadline, from.iter().flat_map(words), |list| {
            let command = Command::new(io::COPY, nsid, list).dw10(to as u32, (to >> 32) as u32).dw12(nr | action, 0);
            let mut entry = command.entry(0);
            entry[7] = reference(to);
            entry
        })
    }

    /// Posts a Write Uncorrectable command: reads of these blocks, 65,536 at most, fail until they are written. It completes with `tag`. (nvme-cli:
    /// `write-uncor`; SPDK: `spdk_nvme_ns_cmd_write_uncorrectable`.)
    ///
    /// # Errors
    /// [`Reject::Invalid`] where the controller has none, for no blocks, and for more; the others of [`submit`](Self::submit).
    pub fn submit_write_uncorrectable(
        &mut self,
        tag: u64,
        nsid: u32,
        range: BlockRange,
        deadline: Option<Instant>,
    ) -> Result<(), Reject> {
        let has = self.inner.driver().controller.has_write_uncorrectable();
        let ns = self.prepare(has, "the controller has no Write Uncorrectable", nsid)?;
        check(ns, &[range], 1)?;
        if range.blocks > 65536 {
            return Err(Reject::Invalid("more than the 65,536 blocks of one command"));
        }
        let BlockRange { lba, blocks } = range;
        self.post_list(tag, deadline, [], |_| {
            Command::on_blocks(io::WRITE_UNCORRECTABLE, nsid, DataPointer::default(), lba, blocks).entry(0)
        })
    }

    /// Returns the largest number of ranges of one Dataset Management: what a slot's list has room for, 256 at most. A Copy can have half as many, or what
    /// the namespace says.
    pub fn max_ranges(&self) -> usize {
        (self.list_words as usize / 2).min(MAX_RANGES)
    }

    /// The namespace, of a queue that runs and a controller that has the command.
    fn prepare(&mut self, has: bool, lacks: &'static str, nsid: u32) -> Result<Limits, Reject> {
        if !self.gate.open() {
            return Err(self.closed());
        }
        if !has {
            return Err(Reject::Invalid(lacks));
        }
        self.namespace(nsid)
    }

    /// Posts a command whose data are these words, in its slot's list.
    pub(super) fn post_list(
        &mut self,
        tag: u64,
        deadline: Option<Instant>,
        words: impl IntoIterator<Item = u64>,
        command: impl FnOnce(DataPointer) -> [u64; 8],
    ) -> Result<(), Reject> {
        let posted = self.pair.tail();
        let (cid, slot) = self.slots.claim().ok_or(Reject::Full)?;
        slot.fill(Request { tag, nsid: 0, op: Op::Flush, data: Data::None, deadline }, posted);
        let first = u32::from(cid) * self.list_words;
        for (i, word) in (first..first + self.list_words).zip(words) {
            // Relaxed: the doorbell publishes it.
            self.lists.at(i).store(word.to_le(), Ordering::Relaxed);
        }
        // A list lies in one page: PRP entry 2 is not used.
        let list = DataPointer::prp(self.lists_iova.wrapping_add(u64::from(first) * 8), 0);
        let mut entry = command(list);
        entry[0] |= u64::from(cid) << 16;
        self.pair.post_entry(entry);
        Ok(())
    }
}

/// Whether they are ranges of the namespace, and not too many.
fn check(ns: Limits, ranges: &[BlockRange], most: usize) -> Result<(), Reject> {
    if ranges.is_empty() || ranges.iter().any(|r| r.blocks == 0) {
        return Err(Reject::Invalid("there are no blocks to act on"));
    }
    if ranges.len() > most {
        return Err(Reject::Invalid("more ranges than a command of this queue can have: see `Queue::max_ranges`"));
    }
    ranges.iter().try_for_each(|r| in_range(ns, r.lba, r.blocks.into()))
}

fn total(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|r| u64::from(r.blocks)).sum()
}
