//! Cuts a request into commands: at the controller's transfer limit, at the namespace's I/O boundary, and where buffers meet in a way that
//! PRPs cannot have. Pure; nothing is posted here.

use crate::prp::{Segment, joins};
use std::borrow::Cow;

/// What one command may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Bytes of a block as it is transferred: with its metadata where that follows it.
    pub block: u64,
    /// Blocks of one command at most, at least 1.
    pub max_blocks: u32,
    /// Commands don't cross multiples of so many blocks; 0 for no such boundary.
    pub boundary: u32,
    /// The controller's page, in bytes.
    pub page: u64,
    /// What addresses and lengths in an SGL have to be multiples of; `None` where SGLs can't be used.
    pub sgl: Option<u64>,
    /// Descriptors of one SGL at most.
    pub descriptors: u32,
}

/// One command's part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub lba: u64,
    pub blocks: u32,
    /// The segment it begins in, and how many bytes of that come before it.
    segment: usize,
    skip: u32,
    bytes: u64,
    /// PRPs can't describe it.
    pub sgl: bool,
}

/// Why a request cannot be cut.
const UNJOINABLE: &str = "buffers meet inside a block, in a way that PRPs cannot have: make them page-aligned, or multiples of the block size";

/// What of a request is not cut yet, piece by piece: with data, which is `segments`, or without. An error is the last item.
#[derive(Debug, Clone)]
pub(crate) struct Pieces<'a> {
    rules: Rules,
    segments: Cow<'a, [Segment]>,
    at: usize,
    skip: u32,
    lba: u64,
    /// Blocks.
    left: u64,
}

impl<'a> Pieces<'a> {
    /// The pieces of a request whose data is `segments`: multiples of the block size, in all.
    pub fn new(rules: Rules, segments: &'a [Segment], lba: u64) -> Self {
        let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
        Self { rules, segments: Cow::Borrowed(segments), at: 0, skip: 0, lba, left: bytes / rules.block }
    }

    /// The pieces of a request without data.
    pub fn bare(rules: Rules, lba: u64, blocks: u32) -> Self {
        Self { rules, segments: Cow::Borrowed(&[]), at: 0, skip: 0, lba, left: blocks.into() }
    }

    /// With segments of its own.
    pub fn into_owned(self) -> Pieces<'static> {
        let Self { rules, segments, at, skip, lba, left } = self;
        Pieces { rules, segments: Cow::Owned(segments.into_owned()), at, skip, lba, left }
    }

    /// Whether there are no more.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Where the data is; empty for a request without.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many bytes one command can have from here on, of `want`; and whether that takes an SGL.
    fn reach(&self, want: u64) -> (u64, bool) {
        let (prp, pages) = self.prp_reach(want);
        match self.rules.sgl.map(|align| self.sgl_reach(want, align)) {
            // One descriptor says what would take a list of pages.
            Some((sgl, count)) if sgl > prp || (sgl == prp && count == 1 && pages > 2) => (sgl, true),
            _ => (prp, false),
        }
    }

    /// As far as PRPs can go, and over how many pages that is.
    fn prp_reach(&self, want: u64) -> (u64, u64) {
        let (mut bytes, mut pages, mut before) = (0, 0, None);
        for part in self.parts(want) {
            // PRP entry 1 has to be a multiple of four (4.1.1).
            if before.map_or(!part.iova.is_multiple_of(4), |b| !joins(b, part, self.rules.page)) {
                break;
            }
            bytes += u64::from(part.len);
            pages += (part.iova % self.rules.page + u64::from(part.len)).div_ceil(self.rules.page);
            before = Some(part);
        }
        (self.whole_blocks(bytes), pages)
    }

    /// As far as an SGL can go, and over how many descriptors.
    fn sgl_reach(&self, want: u64, align: u64) -> (u64, u32) {
        let fits = |p: &Segment| p.iova.is_multiple_of(align) && u64::from(p.len).is_multiple_of(align);
        let parts = self.parts(want).take_while(fits).take(self.rules.descriptors as usize);
        let (bytes, count) = parts.fold((0, 0), |(bytes, n), p| (bytes + u64::from(p.len), n + 1));
        (self.whole_blocks(bytes), count)
    }

    fn parts(&self, want: u64) -> impl Iterator<Item = Segment> {
        parts(&self.segments, self.at, self.skip, want)
    }

    fn whole_blocks(&self, bytes: u64) -> u64 {
        bytes - bytes % self.rules.block
    }

    /// Steps over `bytes`.
    fn advance(&mut self, mut bytes: u64) {
        while bytes > 0
            && let Some(segment) = self.segments.get(self.at)
        {
            let rest = u64::from(segment.len - self.skip);
            if bytes < rest {
                self.skip += bytes as u32;
                return;
            }
            bytes -= rest;
            (self.at, self.skip) = (self.at + 1, 0);
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let mut blocks = self.rules.limit(self.lba, self.left);
        let (mut bytes, mut sgl) = (0, false);
        if !self.segments.is_empty() {
            (bytes, sgl) = self.reach(u64::from(blocks) * self.rules.block);
            blocks = (bytes / self.rules.block) as u32;
        }
        if blocks == 0 {
            self.left = 0;
            return Some(Err(UNJOINABLE));
        }
        let piece = Piece { lba: self.lba, blocks, segment: self.at, skip: self.skip, bytes, sgl };
        self.advance(bytes);
        self.lba = self.lba.wrapping_add(blocks.into());
        self.left -= u64::from(blocks);
        Some(Ok(piece))
    }
}

impl Rules {
    /// Blocks that one command can have from `lba` on, of `left`.
    fn limit(&self, lba: u64, left: u64) -> u32 {
        let to_boundary = match u64::from(self.boundary) {
            0 => u64::MAX,
            boundary => boundary - lba % boundary,
        };
        left.min(to_boundary).min(self.max_blocks.into()) as u32
    }
}

impl Piece {
    /// Its part of the request's segments.
    pub fn segments<'a>(&self, segments: &'a [Segment]) -> impl Iterator<Item = Segment> + use<'a> {
        parts(segments, self.segment, self.skip, self.bytes)
    }
}

/// `bytes` of `segments`, from `skip` bytes into segment `at` on.
fn parts(segments: &[Segment], at: usize, skip: u32, bytes: u64) -> impl Iterator<Item = Segment> + use<'_> {
    let (mut skip, mut left) = (skip, bytes);
    segments.get(at..).unwrap_or(&[]).iter().map_while(move |s| {
        let len = u64::from(s.len - skip).min(left);
        let part = Segment { iova: s.iova.wrapping_add(skip.into()), len: len as u32 };
        (left, skip) = (left - len, 0);
        (len > 0).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { block: 512, max_blocks: 256, boundary: 0, page: 4096, sgl: None, descriptors: 4 };

    fn segments(list: &[(u64, u32)]) -> Vec<Segment> {
        list.iter().map(|(iova, len)| Segment { iova: *iova, len: *len }).collect()
    }

    /// First block, blocks, whether it is an SGL.
    fn cut(rules: Rules, list: &[(u64, u32)], lba: u64) -> Result<Vec<(u64, u32, bool)>, &'static str> {
        let list = segments(list);
        Pieces::new(rules, &list, lba).map(|p| p.map(|p| (p.lba, p.blocks, p.sgl))).collect()
    }

    #[test]
    fn the_transfer_limit_cuts() {
        assert_eq!(cut(RULES, &[(0x1000, 4096)], 7), Ok(vec![(7, 8, false)]));
        assert_eq!(cut(RULES, &[(0x1000, 128 << 10)], 0), Ok(vec![(0, 256, false)]));
        assert_eq!(cut(RULES, &[(0x1200, 300 << 9)], 5), Ok(vec![(5, 256, false), (261, 44, false)]));
    }

    #[test]
    fn the_io_boundary_cuts() {
        let rules = Rules { boundary: 10, ..RULES };
        let want = vec![(7, 3, false), (10, 10, false), (20, 5, false)];
        assert_eq!(cut(rules, &[(0x1000, 18 << 9)], 7), Ok(want));
        let bare: Vec<_> = Pieces::bare(rules, 7, 18).map(|p| p.map(|p| (p.lba, p.blocks, p.sgl))).collect();
        assert_eq!(bare, [Ok((7, 3, false)), Ok((10, 10, false)), Ok((20, 5, false))]);
    }

    #[test]
    fn buffers_that_do_not_join_are_cut_apart() {
        let apart = [(0x1000, 512), (0x9000, 512), (0x3000, 4096), (0x8000, 512)];
        let want = vec![(0, 1, false), (1, 1, false), (2, 9, false)];
        assert_eq!(cut(RULES, &apart, 0), Ok(want));
        assert_eq!(cut(Rules { sgl: Some(1), ..RULES }, &apart, 0), Ok(vec![(0, 11, true)]));
        assert_eq!(
            cut(Rules { sgl: Some(1), descriptors: 3, ..RULES }, &apart, 0),
            Ok(vec![(0, 10, true), (10, 1, false)])
        );
    }

    #[test]
    fn a_block_across_buffers_needs_an_sgl() {
        let list = [(0x1000, 256), (0x9008, 256)];
        assert_eq!(cut(RULES, &list, 0), Err(UNJOINABLE));
        assert_eq!(cut(Rules { sgl: Some(4), ..RULES }, &list, 0), Ok(vec![(0, 1, true)]));
        let odd = [(0x1000, 255), (0x9001, 257)];
        assert_eq!(cut(Rules { sgl: Some(4), ..RULES }, &odd, 0), Err(UNJOINABLE));
        assert_eq!(cut(Rules { sgl: Some(1), ..RULES }, &odd, 0), Ok(vec![(0, 1, true)]));
    }

    #[test]
    fn one_descriptor_is_better_than_a_list() {
        let rules = Rules { sgl: Some(4), ..RULES };
        assert_eq!(cut(rules, &[(0x1000, 8192)], 0), Ok(vec![(0, 16, false)]));
        assert_eq!(cut(rules, &[(0x1000, 8704)], 0), Ok(vec![(0, 17, true)]));
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
            let rules = Rules {
                block: [512, 4096, 520, 4160][next(4) as usize],
                max_blocks: 1 + next(40) as u32,
                boundary: next(20) as u32,
                page: [4096, 16384, 65536][next(3) as usize],
                sgl: [None, Some(1), Some(4)][next(3) as usize],
                descriptors: 1 + next(5) as u32,
            };
            let block = rules.block as u32;
            let list: Vec<_> = (0..1 + next(6))
                .map(|i| Segment { iova: (i << 32) + next(32) * 2048, len: block * (1 + next(60) as u32) })
                .collect();
            let (mut lba, mut bytes) = (next(100), Vec::new());
            // What waits for room goes on as it would have.
            let mut now = Pieces::new(rules, &list, lba);
            let first: Vec<_> = now.by_ref().take(next(4) as usize).collect();
            let later = now.into_owned();
            assert_eq!(later.segments(), list);
            for piece in first.into_iter().chain(later) {
                let piece = piece.unwrap();
                assert_eq!(piece.lba, lba);
                assert!(piece.blocks <= rules.max_blocks);
                if rules.boundary > 0 {
                    let b = u64::from(rules.boundary);
                    assert_eq!(piece.lba / b, (piece.lba + u64::from(piece.blocks) - 1) / b);
                }
                let parts: Vec<_> = piece.segments(&list).collect();
                assert_eq!(parts.iter().map(|s| s.len).sum::<u32>(), piece.blocks * block);
                if piece.sgl {
                    assert!(rules.sgl.is_some() && parts.len() <= rules.descriptors as usize);
                } else {
                    assert!(parts.windows(2).all(|w| joins(w[0], w[1], rules.page)));
                }
                lba += u64::from(piece.blocks);
                bytes.extend(parts);
            }
            // Joined up again, the parts are the segments.
            let mut whole: Vec<Segment> = Vec::new();
            for part in bytes {
                match whole.last_mut() {
                    Some(last) if last.iova + u64::from(last.len) == part.iova => last.len += part.len,
                    _ => whole.push(part),
                }
            }
            assert_eq!(whole, list);
        }
    }
}
