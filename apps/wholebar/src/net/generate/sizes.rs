//! How large frames are: one size, any of a range, or a mix.

use std::fmt;
use std::str::FromStr;

/// Bytes of a frame's check sequence (IEEE 802.3, 3.2.9), which sizes count and devices add.
pub const FCS: usize = 4;
/// The least frame there is on an Ethernet (IEEE 802.3, 4.4.2).
pub const LEAST: usize = 64;

/// The simple Internet mix: seven frames of 64 bytes, four of 594 and one of 1518.
const IMIX: [u16; 12] = [64, 594, 64, 594, 64, 64, 1518, 64, 594, 64, 594, 64];

/// Sizes of frames in bytes, with their check sequence.
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

    /// The next one.
    #[inline]
    pub fn next(self, turn: &mut usize, chance: &mut fastrand::Rng) -> usize {
        match self {
            Self::One(size) => size.into(),
            Self::Range(least, most) => chance.u16(least..=most).into(),
            Self::Imix => {
                *turn = if *turn + 1 < IMIX.len() { *turn + 1 } else { 0 };
                IMIX[*turn].into()
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
        let (mut turn, mut chance) = (0, fastrand::Rng::with_seed(1));
        let sizes: Vec<_> = (0..24).map(|_| Sizes::Imix.next(&mut turn, &mut chance)).collect();
        let count = |size| sizes.iter().filter(|s| **s == size).count();
        assert_eq!((count(64), count(594), count(1518)), (14, 8, 2));
        for _ in 0..1000 {
            assert!((70..=72).contains(&Sizes::Range(70, 72).next(&mut turn, &mut chance)));
        }
    }
}
