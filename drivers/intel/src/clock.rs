//! A device's clock, whose units are parts of a nanosecond, as nanoseconds that do not come round. It does *not* know registers.

use std::time::{Duration, Instant};

/// Units of the device's clock in a nanosecond: 2 to the power of this.
pub(crate) const SHIFT: u32 = 19;

/// A clock that was read at least once. (Linux: `struct timecounter`.)
#[derive(Debug)]
pub(crate) struct Clock {
    /// The device's, when it was read last, less what is not a whole nanosecond.
    last: u64,
    /// The time then.
    nanos: u64,
    /// When that was, by the system's clock.
    seen: Instant,
}

impl Clock {
    /// Begins at 0 now, when the device's clock says `cycles`.
    pub fn new(cycles: u64) -> Self {
        Self { last: cycles, nanos: 0, seen: Instant::now() }
    }

    /// The time now, when the device's clock says `cycles`. It comes round every 9 hours, so it is asked more often.
    pub fn now(&mut self, cycles: u64) -> Duration {
        let passed = cycles.wrapping_sub(self.last) >> SHIFT;
        (self.last, self.nanos) = (self.last.wrapping_add(passed << SHIFT), self.nanos.wrapping_add(passed));
        self.seen = Instant::now();
        Duration::from_nanos(self.nanos)
    }

    /// The time of a stamp, shortly before or after the clock was read last.
    pub fn at(&self, stamp: u64) -> Duration {
        let ahead = stamp.wrapping_sub(self.last) as i64 >> SHIFT;
        Duration::from_nanos(self.nanos.saturating_add_signed(ahead))
    }

    /// Sets the clock to `time`, as of the counter's value `cycles`.
    pub fn set(&mut self, cycles: u64, time: Duration) {
        self.now(cycles);
        self.nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    }

    /// Moves the clock by so many nanoseconds, back where they are negative, as of the counter's value `cycles`.
    pub fn adjust(&mut self, cycles: u64, nanoseconds: i64) {
        self.now(cycles);
        self.nanos = self.nanos.saturating_add_signed(nanoseconds);
    }

    /// Goes on where the device's clock began anew, or jumped: the system's went on meanwhile.
    pub fn resume(&mut self, cycles: u64) {
        let away = u64::try_from(self.seen.elapsed().as_nanos()).unwrap_or(0);
        (self.last, self.nanos, self.seen) = (cycles, self.nanos.saturating_add(away), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANO: u64 = 1 << SHIFT;

    #[test]
    fn it_counts_nanoseconds_and_does_not_come_round() {
        let nanos = Duration::from_nanos;
        let mut clock = Clock::new(u64::MAX - 10 * NANO);
        assert_eq!(clock.now(u64::MAX - 9 * NANO), nanos(1));
        // Parts of a nanosecond are not lost; the device's clock comes round in between.
        let mut cycles = u64::MAX - 9 * NANO;
        for _ in 0..100 {
            cycles = cycles.wrapping_add(NANO / 4);
            clock.now(cycles);
        }
        assert_eq!(clock.now(cycles), nanos(26));
        // Stamps before and after that, and before the clock was set on.
        assert_eq!(
            (clock.at(cycles.wrapping_sub(3 * NANO)), clock.at(cycles.wrapping_add(7 * NANO))),
            (nanos(23), nanos(33))
        );
        assert_eq!(clock.at(cycles.wrapping_sub(30 * NANO)), nanos(0));
        clock.set(cycles, Duration::from_secs(1 << 33));
        assert_eq!(clock.now(cycles.wrapping_add(5 * NANO)), Duration::from_secs(1 << 33) + nanos(5));
        clock.adjust(cycles.wrapping_add(5 * NANO), -8_000_000_005);
        assert_eq!(clock.now(cycles.wrapping_add(5 * NANO)), Duration::from_secs((1 << 33) - 8));
        let before = clock.now(cycles.wrapping_add(5 * NANO));
        clock.resume(3);
        assert!(clock.now(3 + NANO) > before && clock.now(3 + NANO) < before + Duration::from_secs(300));
    }
}
