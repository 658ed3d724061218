//! Latencies: recorded in ticks of a clock, told in nanoseconds, as histograms and percentiles.
//!
//! ```
//! use wholebar_measure::latency::{Percentiles, histogram};
//!
//! let mut nanos = histogram();
//! (1..=1000).for_each(|n| nanos.saturating_record(n));
//! let p = Percentiles::of(&nanos);
//! assert_eq!((p.min, p.p50, p.p90, p.max), (1, 500, 900, 1000));
//! ```

use hdrhistogram::Histogram;
use quanta::Clock;
use serde::{Deserialize, Serialize};

/// How long commands took. Commands that one poll finds together often have the same latency: in a row, these are one record of the histogram.
///
/// Made for hot loops: a record is a comparison and an addition, or an entry of the histogram. It allocates when it is made.
pub struct Latency {
    ticks: u64,
    times: u64,
    clock: Clock,
    nanos: Histogram<u64>,
}

impl Latency {
    /// Of nothing yet; ticks are those of `clock`, as its `raw` tells them.
    pub fn new(clock: &Clock) -> Self {
        Self { ticks: 0, times: 0, clock: clock.clone(), nanos: histogram() }
    }

    /// A command took so many ticks of the clock.
    #[inline]
    pub fn record(&mut self, ticks: u64) {
        if ticks != self.ticks {
            self.settle();
            self.ticks = ticks;
        }
        self.times += 1;
    }

    fn settle(&mut self) {
        if self.times > 0 {
            self.nanos.saturating_record_n(self.clock.delta_as_nanos(0, self.ticks), self.times);
            self.times = 0;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.times = 0;
        self.nanos.reset();
    }

    /// What was recorded, in nanoseconds. What is above 100 seconds counts as 100 seconds.
    pub fn into_histogram(mut self) -> Histogram<u64> {
        self.settle();
        self.nanos
    }
}

/// An empty histogram, from a nanosecond to 100 seconds, with three significant digits. All of these can be added to one another.
pub fn histogram() -> Histogram<u64> {
    const MOST: u64 = 100_000_000_000;
    Histogram::new_with_bounds(1, MOST, 3).unwrap_or_else(|_| unreachable!("constant bounds that are valid"))
}

/// The percentiles that reports show, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Average.
    pub mean: u64,
    /// Smallest.
    pub min: u64,
    /// Half of all are at most this.
    pub p50: u64,
    /// 90 % are.
    pub p90: u64,
    /// 99 % are.
    pub p99: u64,
    /// 99.9 % are.
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    /// 99.99 % are.
    #[serde(rename = "p99.99")]
    pub p99_99: u64,
    /// Largest.
    pub max: u64,
}

impl Percentiles {
    /// Of a histogram of nanoseconds; all 0 where it is empty.
    pub fn of(nanos: &Histogram<u64>) -> Self {
        let at = |p| nanos.value_at_quantile(p);
        Self {
            mean: nanos.mean() as u64,
            min: nanos.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: nanos.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_latencies_in_a_row_are_all_counted() {
        let (clock, _mock) = Clock::mock();
        let mut latency = Latency::new(&clock);
        for ticks in [5, 5, 5, 7, 5, 1_000_000_000_000] {
            latency.record(ticks);
        }
        let nanos = latency.into_histogram();
        assert_eq!(nanos.len(), 6);
        let p = Percentiles::of(&nanos);
        assert_eq!((p.min, p.p50), (5, 5));
        assert!(p.max >= 100_000_000_000, "more than the histogram holds is its largest value: {}", p.max);
    }
}
