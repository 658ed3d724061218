//! Ratios of measured rates, with the interval in which the true one lies: a difference is one only where noise does not explain it.
//!
//! Nothing is assumed of the noise but that it meets both sides alike. Rates of a shared machine have several modes and long tails, so means and standard
//! deviations say little of them; medians and ranks do. It does *not* measure anything.
//!
//! ```
//! use wholebar_measure::ratio::Ratio;
//!
//! let whole = [4.4, 4.6, 4.5, 4.1, 4.5, 4.6, 4.4, 4.5];
//! let trapped = [1.1, 1.2, 1.1, 1.0, 1.1, 1.2, 1.1, 1.1];
//! // Each round has measured both, one after the other.
//! let ratio = Ratio::paired(&trapped, &whole).unwrap();
//! println!("{:.2} of whole, {:.2} to {:.2}", ratio.median, ratio.low, ratio.high);
//! assert!(!ratio.is_same());
//! assert!(Ratio::paired(&whole, &[4.5, 4.5, 4.4, 4.2, 4.6, 4.5, 4.4, 4.6]).unwrap().is_same());
//! ```

/// How sure an interval ought to be, where there are measurements enough.
const SURE: f64 = 0.99;

/// A ratio of two rates, and an interval around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The middle one of all ratios.
    pub median: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// With which probability it holds the true ratio: 0.99 at least with 8 pairs, or with 5 measurements of either side; less with fewer.
    pub confidence: f64,
}

/// A rate, and the state that the machine was in when it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The rate, in any unit a second; one that is not a number above 0 does not count.
    pub rate: f64,
    /// A figure by which states differ, above 0: how long a [cache line takes](crate::cpu::hand_over) from core to core. `None` where it is not known.
    pub state: Option<f64>,
}

/// A ratio of what was measured while the machine was in like states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alike {
    /// The ratio of these to those, by the Mann-Whitney test.
    pub ratio: Ratio,
    /// The lowest and the highest state of the window that was taken; `None` where a state was not known, and all samples count.
    pub states: Option<(f64, f64)>,
    /// The number of these samples within the window, 5 or more.
    pub these: usize,
    /// The number of those samples within the window, 5 or more.
    pub those: usize,
}

/// States whose figures differ by less are alike.
const ALIKE: f64 = 1.15;

impl Ratio {
    /// The ratio of `these` to `those`, measured at different times, [unpaired](Self::unpaired), of what was measured in like states alone: within 15 %, about where
    /// most of both lie. All of them where the state of one is not known.
    ///
    /// Rates that are not numbers above 0 don't count. `None` where fewer than five of either side are left.
    pub fn alike(these: &[Sample], those: &[Sample]) -> Option<Alike> {
        let counting = |side: &[Sample]| side.iter().copied().filter(|sample| is_rate(sample.rate)).collect::<Vec<_>>();
        let sides = [counting(these), counting(those)];
        let known: Option<Vec<f64>> = sides.iter().flatten().map(|sample| sample.state).collect();
        let within = |side: &[Sample], states: Option<(f64, f64)>| {
            let is_within = |state: f64| states.is_none_or(|(low, high)| (low..=high).contains(&state));
            side.iter().filter(|s| s.state.is_none_or(is_within)).map(|s| s.rate).collect::<Vec<_>>()
        };
        let count = |states| sides.each_ref().map(|side| within(side, states).len());
        let states = known.and_then(|known| {
            let windows = known.into_iter().map(|low| (low, low * ALIKE));
            windows.max_by_key(|states| {
                let [these, those] = count(Some(*states));
                (these.min(those), these + those)
            })
        });
        let [these, those] = sides.each_ref().map(|side| within(side, states));
        let ratio = if these.len().min(those.len()) < 5 { None } else { Self::unpaired(&these, &those) };
        ratio.map(|ratio| Alike { ratio, states, these: these.len(), those: those.len() })
    }

    /// The ratio of `these` to `those`, of which each pair was measured one right after the other: what disturbed one is likely to have disturbed the
    /// other. The interval is that of the sign test: with 8 to 10 pairs from the least to the greatest ratio, with more an outlier or two are left out.
    ///
    /// Pairs that lack a partner, or hold a rate that is not a number above 0, don't count. `None` of fewer than five, which say nothing.
    pub fn paired(these: &[f64], those: &[f64]) -> Option<Self> {
        let mut ratios: Vec<_> =
            these.iter().zip(those).filter(|(a, b)| is_rate(**a) && is_rate(**b)).map(|(a, b)| a / b).collect();
        if ratios.len() < 5 {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        // So many ratios lie below the true one as heads come of n coins.
        let mut weights = vec![1.0];
        for n in 1..=ratios.len() {
            weights.push(weights[n - 1] * (ratios.len() + 1 - n) as f64 / n as f64);
        }
        Some(Self::of(&ratios, &weights))
    }

    /// The ratio of `these` to `those`, measured at different times. The interval is that of the Mann-Whitney test, of the ratios of each of these to each
    /// of those. It knows the noise within each of both, and nothing of what has changed between them.
    ///
    /// Rates that are not numbers above 0 don't count. `None` where one side has fewer than three.
    pub fn unpaired(these: &[f64], those: &[f64]) -> Option<Self> {
        let [these, those] =
            [these, those].map(|side| side.iter().copied().filter(|rate| is_rate(*rate)).collect::<Vec<_>>());
        if these.len() < 3 || those.len() < 3 {
            return None;
        }
        let mut ratios: Vec<_> = these.iter().flat_map(|a| those.iter().map(move |b| a / b)).collect();
        ratios.sort_by(f64::total_cmp);
        Some(Self::of(&ratios, &rank_sums(these.len(), those.len())))
    }

    /// The median of sorted ratios, and an interval. `weights[n]` is how often, of all orders that are equally likely, `n` of the ratios lie below the true one.
    fn of(ratios: &[f64], weights: &[f64]) -> Self {
        let all: f64 = weights.iter().sum();
        let mut outside = weights[0];
        let (mut cut, mut confidence) = (0, 1.0 - 2.0 * outside / all);
        // From both ends so many are left out as that allows.
        while 2 * (cut + 1) < ratios.len() && 1.0 - 2.0 * (outside + weights[cut + 1]) / all >= SURE {
            cut += 1;
            outside += weights[cut];
            confidence = 1.0 - 2.0 * outside / all;
        }
        let half = ratios.len() / 2;
        let median = if ratios.len() % 2 == 1 { ratios[half] } else { f64::midpoint(ratios[half - 1], ratios[half]) };
        Self { median, low: ratios[cut], high: ratios[ratios.len() - 1 - cut], confidence }
    }

    /// Whether the interval holds 1: both sides may be equally fast.
    pub fn is_same(&self) -> bool {
        self.low <= 1.0 && 1.0 <= self.high
    }

    /// Whether these are slower, or faster, by more than a share, with the probability of the interval: 0.1 is a tenth.
    pub fn differs_by(&self, share: f64) -> bool {
        self.high < 1.0 - share || self.low > 1.0 + share
    }
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

/// In how many orders of `n` and `m` values it happens that so many of the pairs have the first value below the second (Mann and Whitney, 1947).
fn rank_sums(n: usize, m: usize) -> Vec<f64> {
    // By how many of these there are: the number of orders by the number of such pairs. One more of those is below all, or the last of these is above all.
    let mut orders = vec![vec![1.0]; n + 1];
    for those in 1..=m {
        for these in 1..=n {
            let mut sums = vec![0.0; these * those + 1];
            for (pairs, orders) in orders[these].iter().enumerate() {
                sums[pairs] += orders;
            }
            for (pairs, orders) in orders[these - 1].iter().enumerate() {
                sums[pairs + those] += orders;
            }
            orders[these] = sums;
        }
    }
    orders.swap_remove(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates around 100 with the noise of a machine: most lie close together, some lost up to half of their time. A generator of Lehmer's.
    fn noise(seed: &mut u64, n: usize) -> Vec<f64> {
        let mut next = || {
            *seed = *seed * 48271 % 0x7fff_ffff;
            *seed as f64 / 0x7fff_ffff as f64
        };
        (0..n).map(|_| 100.0 + 4.0 * next() - if next() < 0.1 { 50.0 * next() } else { 0.0 }).collect()
    }

    /// Tables of both tests have these: 8 and 9 pairs need all ratios for 99 %, 12 leave out one at each end; 5 against 5 leave out two.
    #[test]
    fn intervals_are_those_of_the_tables() {
        let to = |n: usize| (1..=n).map(|i| i as f64).collect::<Vec<_>>();
        let ones = |n| vec![1.0; n];
        let paired = |n| Ratio::paired(&to(n), &ones(n)).unwrap();
        assert_eq!(paired(8), Ratio { median: 4.5, low: 1.0, high: 8.0, confidence: 1.0 - 2.0 / 256.0 });
        assert_eq!((paired(9).low, paired(9).high), (1.0, 9.0));
        assert_eq!(paired(12), Ratio { median: 6.5, low: 2.0, high: 11.0, confidence: 1.0 - 2.0 * 13.0 / 4096.0 });
        assert_eq!((paired(5).low, paired(5).confidence), (1.0, 1.0 - 2.0 / 32.0));
        // U of 5 and 5: one order each has 0 and 1 pairs, two have 2, three have 3, of 252.
        assert_eq!(rank_sums(5, 5)[..4], [1.0, 1.0, 2.0, 3.0]);
        assert_eq!(rank_sums(5, 5).iter().sum::<f64>(), 252.0);
        assert_eq!(rank_sums(3, 4).iter().sum::<f64>(), 35.0);
        let unpaired = Ratio::unpaired(&to(5), &ones(5)).unwrap();
        assert!((unpaired.confidence - (1.0 - 2.0 / 252.0)).abs() < 1e-9, "{unpaired:?}");
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(Ratio::paired(&[1.0; 4], &[1.0; 9]), None);
        assert_eq!(Ratio::paired(&[1.0, 1.0, 1.0, 1.0, f64::NAN], &[1.0; 5]), None);
        assert_eq!(Ratio::paired(&[0.0; 9], &[1.0; 9]), None);
        assert_eq!(Ratio::unpaired(&[1.0, 1.0, f64::INFINITY], &[1.0; 9]), None);
        assert_eq!(Ratio::unpaired(&[], &[]), None);
    }

    /// Of 500 comparisons of what is the same, one in a hundred may be called different; what is slower by a tenth is found in most.
    #[test]
    fn noise_is_no_difference_and_a_tenth_is_one() {
        let mut seed = 7;
        let (mut wrong, mut found) = ([0; 2], [0; 2]);
        for _ in 0..500 {
            let (a, b) = (noise(&mut seed, 12), noise(&mut seed, 12));
            let slower: Vec<_> = b.iter().map(|rate| rate * 0.9).collect();
            for (i, ratio) in [Ratio::paired(&b, &a), Ratio::unpaired(&b, &a)].into_iter().flatten().enumerate() {
                wrong[i] += i32::from(!ratio.is_same());
            }
            for (i, ratio) in
                [Ratio::paired(&slower, &a), Ratio::unpaired(&slower, &a)].into_iter().flatten().enumerate()
            {
                found[i] += i32::from(ratio.high < 1.0);
            }
        }
        assert!(wrong.iter().all(|wrong| *wrong <= 10), "{wrong:?}");
        assert!(found[0] > 350 && found[1] > 430, "{found:?}");
    }

    /// A machine that is twice as fast at times, at other times in each run: what is slower by a tenth is found, and what is the same is not called different.
    #[test]
    fn states_are_told_from_differences() {
        let run = |seed: &mut u64, fast: usize, factor: f64| -> Vec<Sample> {
            let rates = noise(seed, 24);
            let sample = |(n, rate)| match n < fast {
                true => Sample { rate: 2.0 * factor * rate, state: Some(50.0 + (n % 4) as f64) },
                false => Sample { rate: factor * rate, state: Some(330.0 + (n % 7) as f64) },
            };
            rates.into_iter().enumerate().map(sample).collect()
        };
        let (mut seed, mut wrong, mut found) = (11, 0, 0);
        for _ in 0..200 {
            let (old, same, slower) = (run(&mut seed, 16, 1.0), run(&mut seed, 10, 1.0), run(&mut seed, 12, 0.9));
            let same = Ratio::alike(&same, &old).unwrap();
            assert_eq!((same.these, same.those), (10, 16), "{same:?}");
            assert!(same.states.is_some_and(|(low, high)| low == 50.0 && high < 58.0), "{same:?}");
            wrong += i32::from(!same.ratio.is_same());
            found += i32::from(Ratio::alike(&slower, &old).unwrap().ratio.high < 1.0);
        }
        assert!(wrong <= 8 && found > 150, "{wrong} {found}");
        // Of states that never met nothing is said; of unknown ones all are taken.
        let sample = |state| move |rate: &f64| Sample { rate: *rate, state };
        let rates = [1.0, 1.1, 1.2, 1.3, 1.4];
        let [near, far, unknown] =
            [Some(50.0), Some(330.0), None].map(|s| rates.iter().map(sample(s)).collect::<Vec<_>>());
        assert_eq!(Ratio::alike(&near, &far), None);
        assert_eq!(Ratio::alike(&near, &unknown).map(|alike| (alike.these, alike.states)), Some((5, None)));
        assert_eq!(Ratio::alike(&near[..4], &near), None);
    }

    #[test]
    fn a_share_is_exceeded_by_the_whole_interval() {
        let ratio = Ratio { median: 0.85, low: 0.8, high: 0.92, confidence: 0.99 };
        assert!(ratio.differs_by(0.05) && !ratio.differs_by(0.1) && !ratio.is_same());
        let faster = Ratio { median: 1.2, low: 1.15, high: 1.3, confidence: 0.99 };
        assert!(faster.differs_by(0.1) && !faster.differs_by(0.2));
    }
}
