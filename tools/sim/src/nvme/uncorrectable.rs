//! Blocks that a host has marked as uncorrectable (nvm 3.2.7): reads of them fail until they are written.

use super::bits::Status;
use std::ops::Range;

/// So many ranges are kept.
const MAX: usize = 1024;

/// Ranges of blocks, none of which touch.
#[derive(Default)]
pub(super) struct Uncorrectable(Vec<Range<u64>>);

impl Uncorrectable {
    /// Whether blocks can be read, as far as this goes.
    #[inline]
    pub(super) fn check(&self, blocks: Range<u64>) -> Result<(), Status> {
        if self.0.is_empty() { Ok(()) } else { self.find(blocks) }
    }

    #[cold]
    fn find(&self, blocks: Range<u64>) -> Result<(), Status> {
        match self.0.iter().any(|r| r.start < blocks.end && blocks.start < r.end) {
            true => Err(Status::UNRECOVERED_READ),
            false => Ok(()),
        }
    }

    /// Marks blocks.
    pub(super) fn mark(&mut self, blocks: Range<u64>) -> Result<(), Status> {
        if self.0.len() >= MAX {
            return Err(Status::WRITE_FAULT);
        }
        self.clear(blocks.clone());
        self.0.push(blocks);
        Ok(())
    }

    /// Blocks were written.
    #[inline]
    pub(super) fn written(&mut self, blocks: Range<u64>) {
        if !self.0.is_empty() {
            self.clear(blocks);
        }
    }

    #[cold]
    fn clear(&mut self, blocks: Range<u64>) {
        let around = |r: Range<u64>| [r.start..r.end.min(blocks.start), r.start.max(blocks.end)..r.end];
        self.0 = std::mem::take(&mut self.0).into_iter().flat_map(around).filter(|r| !r.is_empty()).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_again() {
        let mut bad = Uncorrectable::default();
        bad.mark(10..20).unwrap();
        bad.mark(15..30).unwrap();
        assert!(bad.check(0..10).is_ok() && bad.check(30..31).is_ok());
        assert_eq!(bad.check(29..31), Err(Status::UNRECOVERED_READ));
        bad.written(12..14);
        assert!(bad.check(12..14).is_ok() && bad.check(11..12).is_err() && bad.check(14..15).is_err());
        bad.written(0..100);
        assert!(bad.0.is_empty());
        assert!((0..2 * MAX as u64).map(|i| bad.mark(2 * i..2 * i + 1)).any(|r| r.is_err()), "there is an end to it");
    }
}
