//! Cuts a request into those that the device takes: at its limits of segments, of bytes and of blocks. Pure; nothing is posted here.

use crate::ring::Segment;

/// Bytes of one request at most, whatever the device says: none that is known takes more (QEMU's limit is 2 GiB), and what it says that it wrote
/// has 32 bits.
pub(super) const MAX_BYTES: u64 = 16 << 20;

/// What one request with data may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Bytes of a block, a power of two.
    pub block: u32,
    /// Segments at most (5.2.4: `seg_max`), at least 1.
    pub max_segments: u32,
    /// Bytes of a segment at most (5.2.4: `size_max`), at least 1.
    pub max_segment: u32,
}

/// What of a request is not posted yet, as pieces of which each is a request to the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces {
    what: What,
    lba: u64,
    /// Blocks.
    left: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// Data: its segments, and how far they are cut: `at` and `skip` bytes of that one.
    Data { rules: Rules, segments: Vec<Segment>, at: usize, skip: u32 },
    /// A range of blocks: at most so many at once, ending at multiples of `align` where that can be; 0 for no such alignment.
    Range { max_blocks: u32, align: u32 },
}

impl Pieces {
    /// Of a transfer: `segments` are whole blocks, in all.
    pub fn data(rules: Rules, segments: Vec<Segment>, lba: u64) -> Self {
        let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
        let left = bytes / u64::from(rules.block);
        Self { what: What::Data { rules, segments, at: 0, skip: 0 }, lba, left }
    }

    /// Of a range of blocks without data; `max_blocks` is not 0.
    pub fn range(max_blocks: u32, align: u32, lba: u64, blocks: u32) -> Self {
        Self { what: What::Range { max_blocks, align }, lba, left: blocks.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes the next piece, and adds its segments to `out`: its first block, and how many. No block where a block is in more segments than a request may
    /// have; `None` where nothing is left.
    pub fn next(&mut self, out: &mut Vec<Segment>) -> Option<(u64, u64)> {
        if self.left == 0 {
            return None;
        }
        let (lba, blocks) = (self.lba, self.length(out));
        (self.lba, self.left) = (lba.wrapping_add(blocks), self.left - blocks);
        Some((lba, blocks))
    }

    fn length(&mut self, out: &mut Vec<Segment>) -> u64 {
        match &mut self.what {
            What::Data { rules, segments, at, skip } => {
                let bytes = gather(*rules, segments.get(*at..).unwrap_or(&[]), *skip, out);
                let mut rest = bytes;
                while rest > 0
                    && let Some(segment) = segments.get(*at)
                {
                    let step = rest.min(u64::from(segment.len - *skip)) as u32;
                    (rest, *skip) = (rest - u64::from(step), *skip + step);
                    if *skip == segment.len {
                        (*at, *skip) = (*at + 1, 0);
                    }
                }
                bytes / u64::from(rules.block)
            }
            What::Range { max_blocks, align } => {
                let (most, align) = (u64::from(*max_blocks), u64::from(*align));
                if self.left <= most {
                    return self.left;
                }
                // 5.2.4: `discard_sector_alignment` is there for who splits requests.
                match self.lba.saturating_add(most).checked_rem(align) {
                    Some(over) if over < most => most - over,
                    _ => most,
                }
            }
        }
    }
}

/// Adds the first segments to `out`, `skip` bytes into the first one, as many as one request may have: whole blocks. Returns their bytes.
fn gather(rules: Rules, segments: &[Segment], skip: u32, out: &mut Vec<Segment>) -> u64 {
    let (first, mut skip, mut bytes) = (out.len(), skip, 0);
    let mut segments = segments.iter();
    let mut segment = segments.next();
    while out.len() - first < rules.max_segments as usize
        && bytes < MAX_BYTES
        && let Some(Segment { iova, len }) = segment
    {
        let here = u64::from((len - skip).min(rules.max_segment)).min(MAX_BYTES - bytes) as u32;
        out.push(Segment { iova: iova.wrapping_add(skip.into()), len: here });
        (bytes, skip) = (bytes + u64::from(here), skip + here);
        if skip == *len {
            (segment, skip) = (segments.next(), 0);
        }
    }
    // What is not a whole block goes with the next piece.
    let mut over = (bytes % u64::from(rules.block)) as u32;
    let whole = bytes - u64::from(over);
    while over > 0
        && let Some(last) = out.last_mut()
    {
        let less = over.min(last.len);
        (last.len, over) = (last.len - less, over - less);
        if last.len == 0 {
            out.pop();
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { block: 512, max_segments: 3, max_segment: 4096 };

    fn cut(rules: Rules, lens: &[u32]) -> Vec<(u64, u64, Vec<u32>)> {
        let segments = (1..).zip(lens).map(|(i, len)| Segment { iova: i << 32, len: *len }).collect();
        let mut pieces = Pieces::data(rules, segments, 100);
        let mut all = Vec::new();
        loop {
            let mut out = Vec::new();
            match pieces.next(&mut out) {
                None => return all,
                Some((lba, 0)) => panic!("block {lba} cannot be cut: {all:?}"),
                Some((lba, blocks)) => all.push((lba, blocks, out.iter().map(|s| s.len).collect())),
            }
        }
    }

    #[test]
    fn limits_of_segments_cut() {
        assert_eq!(cut(RULES, &[4096]), [(100, 8, vec![4096])]);
        let wanted = [(100, 24, vec![4096; 3]), (124, 1, vec![512])];
        assert_eq!(cut(RULES, &[12800]), wanted);
        // A segment's limit that is no whole block; a block over the end of a piece.
        let odd = Rules { max_segment: 1000, ..RULES };
        assert_eq!(cut(odd, &[3072]), [(100, 5, vec![1000, 1000, 560]), (105, 1, vec![512])]);
        assert_eq!(
            cut(Rules { max_segments: 2, ..RULES }, &[256, 256, 300, 212]),
            [(100, 1, vec![256, 256]), (101, 1, vec![300, 212])]
        );
    }

    #[test]
    fn no_request_is_larger_than_any_device_takes() {
        let rules = Rules { max_segment: u32::MAX, ..RULES };
        let all = cut(rules, &[33 << 20, 1 << 20]);
        assert_eq!(all.iter().map(|piece| piece.1 * 512).collect::<Vec<_>>(), [16 << 20, 16 << 20, 2 << 20]);
    }

    #[test]
    fn a_block_in_too_many_segments_cannot_be_cut() {
        let segments = (0..4).map(|i| Segment { iova: i << 32, len: 128 }).collect();
        let mut out = Vec::new();
        assert_eq!(Pieces::data(RULES, segments, 0).next(&mut out), Some((0, 0)));
        assert!(out.is_empty());
    }

    #[test]
    fn ranges_are_cut_where_the_device_likes_it() {
        let cut = |max, align, lba, blocks| {
            let mut pieces = Pieces::range(max, align, lba, blocks);
            std::iter::from_fn(|| pieces.next(&mut Vec::new())).collect::<Vec<_>>()
        };
        assert_eq!(cut(10, 0, 5, 10), [(5, 10)]);
        assert_eq!(cut(10, 0, 5, 25), [(5, 10), (15, 10), (25, 5)]);
        assert_eq!(cut(10, 8, 5, 25), [(5, 3), (8, 8), (16, 8), (24, 6)]);
        // No multiple is within reach.
        assert_eq!(cut(4, 32, 5, 9), [(5, 4), (9, 4), (13, 1)]);
    }

    /// Whatever is cut, the pieces are all of it, in order, and none breaks a rule.
    #[test]
    fn pieces_are_all_of_it_in_order() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..if cfg!(miri) { 30 } else { 20_000 } {
            // Every block is in few enough segments: buffers are of 128 bytes at least, segments too.
            let rules = Rules { block: 512, max_segments: 12 + next(9) as u32, max_segment: 128 + next(9000) as u32 };
            let mut lens: Vec<_> = (0..1 + next(40)).map(|_| 128 + next(20_000) as u32).collect();
            let sum: u32 = lens.iter().sum();
            lens.push(1024 - sum % 512);
            let all = cut(rules, &lens);
            let (mut lba, mut total) = (100, 0);
            for (at, blocks, parts) in &all {
                assert_eq!(*at, lba);
                assert!(parts.len() <= rules.max_segments as usize);
                assert!(parts.iter().all(|len| (1..=rules.max_segment).contains(len)));
                assert_eq!(u64::from(parts.iter().sum::<u32>()), blocks * 512);
                (lba, total) = (lba + blocks, total + parts.iter().sum::<u32>());
            }
            assert_eq!(total, lens.iter().sum::<u32>());
        }
    }
}
