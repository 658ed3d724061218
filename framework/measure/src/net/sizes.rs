//! How large frames are: one size, any of a range, or a mix.
//!
//! ```
//! use wholebar_measure::net::sizes::{FrameSizes, Sizes};
//!
//! let sizes: Sizes = "64-1518".parse()?;
//! assert_eq!(sizes.ends(), (64, 1518));
//! let mut frames = FrameSizes::new(sizes, 1);
//! assert!((0..1000).all(|_| (64..=1518).contains(&frames.next_size())));
//! # Ok::<(), String>(())
//! ```

use std::fmt;
use std::str::FromStr;

/// Bytes of a frame's check sequence (IEEE 802.3, 3.2.9), which sizes count and devices add.
pub const FCS: usize = 4;
/// The least frame there is on an Ethernet (IEEE 802.3, 4.4.2).
pub const LEAST: usize = 64;

/// The simple Internet mix: seven frames of 64 bytes, four of 594 and one of 1518.
const IMIX: [u16; 12] = [64, 594, 64, 594, 64, 64, 1518, 64, 594, 64, 594, 64];

/// Sizes of frames in bytes, with their check sequence. As text: `64`, `64-1518`, `imix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    One(u16),
    /// Any from one to the other, by chance.
    Range(u16, u16),
    /// The simple Internet mix.
    Imix,
}

impl Sizes {
    /// The smallest and the largest.
    pub fn ends(self) -> (usize, usize) {
        let (least, most) = match self {
            Self::One(size) => (size, size),
            Self::Range(least, most) => (least, most),
            Self::Imix => (64, 1518),
        };
        (least.into(), most.into())
    }
}

/// The sizes of frames, one after the other.
#[derive(Debug, Clone)]
pub struct FrameSizes {
    sizes: Sizes,
    rng: fastrand::Rng,
    /// Where in a mix it is.
    mix: usize,
}

impl FrameSizes {
    /// Such sizes; the same `seed` gives the same.
    pub fn new(sizes: Sizes, seed: u64) -> Self {
        Self { sizes, rng: fastrand::Rng::with_seed(seed), mix: 0 }
    }

    /// Which sizes these are.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The next frame's, in bytes, its check sequence included.
    #[inline]
    pub fn next_size(&mut self) -> usize {
        match self.sizes {
            Sizes::One(size) => size.into(),
            Sizes::Range(least, most) => self.rng.u16(least..=most).into(),
            Sizes::Imix => {
                self.mix = if self.mix + 1 < IMIX.len() { self.mix + 1 } else { 0 };
                IMIX[self.mix].into()
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size of frames: write bytes (64), a range (64-1518), or imix");
        if text == "imix" {
            return Ok(Self::Imix);
        }
        match text.split_once('-') {
            None => Ok(Self::One(text.parse().map_err(|_| bad())?)),
            Some((least, most)) => {
                let (least, most) = (least.parse().map_err(|_| bad())?, most.parse().map_err(|_| bad())?);
                if least > most { Err(bad()) } else { Ok(Self::Range(least, most)) }
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(size) => write!(f, "{size}"),
            Self::Range(least, most) => write!(f, "{least}-{most}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood() {
        for (text, sizes) in [
            ("64", Some(Sizes::One(64))),
            ("64-1518", Some(Sizes::Range(64, 1518))),
            ("imix", Some(Sizes::Imix)),
            ("1518-64", None),
            ("64-", None),
            ("", None),
            ("-1", None),
            ("70000", None),
        ] {
            assert_eq!(text.parse().ok(), sizes, "{text}");
            assert!(sizes.is_none_or(|sizes| sizes.to_string() == text));
        }
    }

    #[test]
    fn the_mix_is_seven_to_four_to_one() {
        let mut imix = FrameSizes::new(Sizes::Imix, 1);
        let sizes: Vec<_> = (0..24).map(|_| imix.next_size()).collect();
        let count = |size| sizes.iter().filter(|s| **s == size).count();
        assert_eq!((count(64), count(594), count(1518)), (14, 8, 2));
        let mut range = FrameSizes::new(Sizes::Range(70, 72), 1);
        for _ in 0..1000 {
            assert!((70..=72).contains(&range.next_size()));
        }
    }
}
