//! What is written so that it can be verified, and how it is recognised: each block says where it belongs, from which run and which write it is, and a
//! CRC-32 over all of it says that it is whole. It does *not* know what was written when: whoever calls does.
//!
//! ```
//! use wholebar_measure::block::pattern::{Fault, check, fill};
//!
//! // Two blocks of 512 bytes, from LBA 7 on, of write 3 of run 1.
//! let mut bytes = [0; 1024];
//! fill(&mut bytes, 512, 7, 1, 3);
//! assert_eq!(check(&bytes, 512, 7, Some((1, 3))), Ok(()));
//! assert_eq!(check(&bytes, 512, 8, None), Err(Fault::Misplaced));
//! ```

use std::fmt;

/// A block's first bytes: magic, LBA, run, generation; its last four are the CRC. All little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"wholebar");
const HEADER: usize = 24;
const CRC: usize = 4;

/// What is wrong with a block that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It holds something else than a pattern.
    NoPattern,
    /// A pattern whose CRC doesn't fit.
    Corrupt,
    /// A block of another place.
    Misplaced,
    /// A block of this place, from another write than the last.
    Stale,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPattern => "no pattern there",
            Self::Corrupt => "corrupt: the CRC does not fit",
            Self::Misplaced => "a block of another LBA",
            Self::Stale => "not what was written last",
        })
    }
}

impl std::error::Error for Fault {}

/// Fills `bytes`, which hold whole blocks of `block` bytes, the first of them at `lba`. Bytes behind the last whole block stay as they are.
///
/// # Panics
/// Where a block has less than 28 bytes: there is no room for the header that it is recognised by.
pub fn fill(bytes: &mut [u8], block: usize, lba: u64, run: u32, generation: u32) {
    for (i, block) in bytes.chunks_exact_mut(block).enumerate() {
        let lba = lba + i as u64;
        block[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        block[8..16].copy_from_slice(&lba.to_le_bytes());
        block[16..20].copy_from_slice(&run.to_le_bytes());
        block[20..24].copy_from_slice(&generation.to_le_bytes());
        let end = block.len() - CRC;
        let mut word = lba ^ u64::from(run) << 32 ^ u64::from(generation);
        for bytes in block[HEADER..end].chunks_mut(8) {
            // Knuth's MMIX generator: what it makes must only be different everywhere.
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        let crc = crc32fast::hash(&block[..end]);
        block[end..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Checks blocks of `block` bytes that were read, the first of them from `lba`. `written` is the run and generation that must be there; `None` takes any.
///
/// # Errors
/// What is wrong with the first block that is wrong: each [`Fault`].
///
/// # Panics
/// Where a block has less than 28 bytes.
pub fn check(bytes: &[u8], block: usize, lba: u64, written: Option<(u32, u32)>) -> Result<(), Fault> {
    for (i, block) in bytes.chunks_exact(block).enumerate() {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let end = block.len() - CRC;
        if word(0) != MAGIC {
            return Err(Fault::NoPattern);
        }
        if half(end) != crc32fast::hash(&block[..end]) {
            return Err(Fault::Corrupt);
        }
        if word(8) != lba + i as u64 {
            return Err(Fault::Misplaced);
        }
        if written.is_some_and(|w| w != (half(16), half(20))) {
            return Err(Fault::Stale);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_is_recognised_and_nothing_else() {
        for block in [512, 520, 4096] {
            let mut bytes = vec![0; 3 * block];
            assert_eq!(check(&bytes, block, 7, None), Err(Fault::NoPattern));
            fill(&mut bytes, block, 7, 1, 2);
            assert_eq!(check(&bytes, block, 7, Some((1, 2))), Ok(()));
            assert_eq!(check(&bytes, block, 7, None), Ok(()));
            assert_eq!(check(&bytes, block, 8, None), Err(Fault::Misplaced));
            assert_eq!(check(&bytes, block, 7, Some((1, 3))), Err(Fault::Stale));
            assert_eq!(check(&bytes, block, 7, Some((0, 2))), Err(Fault::Stale));
            for at in [8, 100, block - 1, 2 * block + 50] {
                bytes[at] ^= 1;
                assert_eq!(check(&bytes, block, 7, None), Err(Fault::Corrupt), "bit 0 of byte {at}");
                bytes[at] ^= 1;
            }
        }
    }
}
