//! Sequence marks: what a sender puts into its packets, so that a receiver can say what became of each. A mark is at the start of the UDP payload, and a
//! pattern is behind it. All of it is in network byte order.
//!
//! | byte | bytes | what |
//! |---|---|---|
//! | 0 | 2 | 0x5742 |
//! | 2 | 2 | check: of the rest of the mark, and of the payload's length |
//! | 4 | 1 | run: a packet of an earlier run of the sender is not one of this |
//! | 5 | 5 | when it was sent: nanoseconds of the [clock](Clock), modulo 2^40 |
//! | 10 | 2 | flow |
//! | 12 | 6 | number in the flow, from 0 |
//! | 18 | | the [pattern](Pattern), to the payload's end |
//!
//! ```
//! use wholebar_measure::net::mark::{Clock, Found, Mark};
//! use wholebar_measure::quanta;
//!
//! let mut clock = Clock::new(&quanta::Clock::new());
//! let mark = Mark { run: 1, flow: 0, number: 42, sent: clock.now() & 0xff_ffff_ffff };
//! // In front of a payload of 100 bytes in all:
//! let payload = mark.bytes(100);
//! assert_eq!(Mark::find(&payload, 100), Found::Mark(mark));
//! assert_eq!(Mark::find(&payload, 99), Found::Damaged);
//! assert!(mark.age(clock.now()).is_some());
//! ```

use quanta::Clock as Counter;
use rustix::time::{ClockId, clock_gettime};
use std::ops::Range;

/// Bytes of a mark: the least payload.
pub const LEN: usize = 18;
/// How one begins.
const MAGIC: u16 = 0x5742;
/// Times in marks are modulo this: 18 minutes.
const TIME: u64 = 1 << 40;
const NUMBER: u64 = 1 << 48;

/// A sequence mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which run of the sender sent it.
    pub run: u8,
    /// The flow.
    pub flow: u16,
    /// Its number in the flow: 48 bits.
    pub number: u64,
    /// When it was sent: 40 bits of nanoseconds.
    pub sent: u64,
}

/// What a UDP payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It begins with a mark.
    Mark(Mark),
    /// It begins as marks do, and is damaged.
    Damaged,
    /// Something else.
    Foreign,
}

impl Mark {
    /// The bytes of it in front of a payload of `len` bytes in all.
    #[inline]
    pub fn bytes(self, len: usize) -> [u8; LEN] {
        let (a, b) = self.words();
        let mut out = [0; LEN];
        out[..2].copy_from_slice(&MAGIC.to_be_bytes());
        out[2..4].copy_from_slice(&check(a, b, len).to_be_bytes());
        out[4..12].copy_from_slice(&a.to_be_bytes());
        out[12..].copy_from_slice(&b.to_be_bytes()[2..]);
        out
    }

    /// Finds the mark of a UDP payload of `len` bytes, of which at least the mark has to be there: [`Found::Mark`] is not returned of a shorter one.
    #[inline]
    pub fn find(payload: &[u8], len: usize) -> Found {
        let Some(mark) = payload.first_chunk::<LEN>() else { return Found::Foreign };
        let half = |at: usize| u16::from_be_bytes([mark[at], mark[at + 1]]);
        if half(0) != MAGIC {
            return Found::Foreign;
        }
        let a = u64::from_be_bytes([mark[4], mark[5], mark[6], mark[7], mark[8], mark[9], mark[10], mark[11]]);
        let b = u64::from_be_bytes([0, 0, mark[12], mark[13], mark[14], mark[15], mark[16], mark[17]]);
        // Whoever knows how a check is made can make one of less than a mark.
        if len < LEN || half(2) != check(a, b, len) {
            return Found::Damaged;
        }
        Found::Mark(Self { run: (a >> 56) as u8, flow: a as u16, number: b, sent: a >> 16 & (TIME - 1) })
    }

    /// Bytes 4 to 11, and 12 to 17.
    #[inline]
    fn words(self) -> (u64, u64) {
        let a = u64::from(self.run) << 56 | (self.sent & (TIME - 1)) << 16 | u64::from(self.flow);
        (a, self.number & (NUMBER - 1))
    }

    /// How long ago it was sent, in nanoseconds; `None` where that is later than `now`: the clocks are not the same.
    #[inline]
    pub fn age(self, now: u64) -> Option<u64> {
        let age = now.wrapping_sub(self.sent) & (TIME - 1);
        // Clocks of two threads may be that far apart, not more.
        const CLOSE: u64 = 20_000;
        match TIME - age {
            ahead if ahead <= CLOSE => Some(0),
            ahead if ahead < TIME / 2 => None,
            _ => Some(age),
        }
    }
}

/// Multiplications carry every bit into the highest ones.
#[inline]
fn check(a: u64, b: u64, len: usize) -> u16 {
    let b = b | (len as u64) << 48;
    let sum = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (sum >> 48) as u16
}

/// The bytes behind marks: an excerpt of the same long text, which begins elsewhere for each packet.
pub struct Pattern {
    bytes: Vec<u8>,
    /// Before each 16-bit word: the sum of all that come before it.
    sums: Vec<u32>,
}

/// How many places excerpts begin at, two bytes apart.
const PLACES: u64 = 128;

impl Pattern {
    /// One that is long enough for any UDP payload. It takes 200 KiB.
    #[allow(clippy::new_without_default)] // It takes memory and time.
    pub fn new() -> Self {
        const LONG: usize = (1 << 16) + 2 * PLACES as usize;
        let bytes: Vec<u8> = (0..LONG as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let mut sums = vec![0];
        let mut sum = 0;
        for word in bytes.chunks_exact(2) {
            // 2^15 words of 16 bits: no overflow.
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            sums.push(sum);
        }
        Self { bytes, sums }
    }

    /// The `len` bytes behind a mark.
    ///
    /// # Panics
    /// Where they are more than 65,536, which no UDP payload has.
    #[inline]
    pub fn of(&self, mark: Mark, len: usize) -> &[u8] {
        &self.bytes[Self::range(mark, len)]
    }

    /// The sum of their 16-bit words, the last one filled up by a zero (RFC 1071).
    #[inline]
    pub fn sum(&self, mark: Mark, len: usize) -> u32 {
        let range = Self::range(mark, len);
        let whole = self.sums[range.end / 2] - self.sums[range.start / 2];
        if len.is_multiple_of(2) { whole } else { whole + (u32::from(self.bytes[range.end - 1]) << 8) }
    }

    #[inline]
    fn range(mark: Mark, len: usize) -> Range<usize> {
        let start = 2 * ((u64::from(mark.flow) + mark.number) % PLACES) as usize;
        start..start + len
    }
}

/// The time in nanoseconds of the machine's monotonic clock, which all its processes share, read often: by the CPU's counter, which is set
/// by the system's clock every millisecond.
pub struct Clock {
    counter: Counter,
    /// The counter and the time when it was set.
    set: (u64, u64),
    /// It doesn't go back where it is set.
    last: u64,
}

impl Clock {
    /// How long the counter is trusted, in nanoseconds: not for long, since how fast it goes was found out on a machine that may have been busy.
    const TRUST: u64 = 1_000_000;
    /// The system's clock was read in so many nanoseconds, if nothing came between; else it is tried again, some times.
    const TIGHT: u64 = 500;
    const TRIES: u32 = 8;

    /// A clock, set once; `counter` is the same for all of a process.
    pub fn new(counter: &Counter) -> Self {
        let mut this = Self { counter: counter.clone(), set: (0, 0), last: 0 };
        this.set();
        this
    }

    /// Now, in nanoseconds: never less than before. It reads a counter of the CPU, and each millisecond the system's clock.
    #[inline]
    pub fn now(&mut self) -> u64 {
        let mut since = self.counter.delta_as_nanos(self.set.0, self.counter.raw());
        if since >= Self::TRUST {
            self.set();
            since = 0;
        }
        self.last = self.last.max(self.set.1 + since);
        self.last
    }

    #[cold]
    fn set(&mut self) {
        let mut tightest = u64::MAX;
        for _ in 0..Self::TRIES {
            let (before, now, after) = (self.counter.raw(), monotonic(), self.counter.raw());
            let took = self.counter.delta_as_nanos(before, after);
            if took < tightest {
                tightest = took;
                self.set = (before + after.saturating_sub(before) / 2, now);
            }
            if took <= Self::TIGHT {
                break;
            }
        }
    }
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative, and a machine does not run for 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { run: 7, flow: 0xfffe, number: NUMBER - 2, sent: TIME - 3 };

    #[test]
    fn marks_are_found_again() {
        let mut payload = MARK.bytes(100).to_vec();
        assert_eq!(Mark::find(&payload, 100), Found::Mark(MARK));
        assert_eq!(Mark::find(&payload, 101), Found::Damaged, "cut off or longer");
        assert_eq!(Mark::find(&payload[..17], 100), Found::Foreign);
        for len in [0, 17] {
            assert_eq!(Mark::find(&MARK.bytes(len), len), Found::Damaged, "no payload of {len} bytes has room for one");
        }
        for bit in 0..8 * LEN {
            payload[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 16 { Found::Foreign } else { Found::Damaged };
            assert_eq!(Mark::find(&payload, 100), expected, "bit {bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn ages_wrap_with_their_clock() {
        assert_eq!(MARK.age(TIME - 3), Some(0));
        assert_eq!(MARK.age(7), Some(10));
        assert_eq!(MARK.age(TIME - 503), Some(0), "threads are that far apart");
        assert_eq!(MARK.age(TIME - 50_000), None, "it comes from the future");
    }

    #[test]
    fn sums_of_the_pattern_are_those_of_its_bytes() {
        let pattern = Pattern::new();
        for (number, len) in [(0, 0), (0, 1), (1, 2), (126, 1479), (127, 65_507), (128, 8)] {
            let mark = Mark { number, flow: 0, ..MARK };
            let bytes = pattern.of(mark, len);
            let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
            assert_eq!((bytes.len(), pattern.sum(mark, len)), (len, words.sum::<u32>()), "{number}, {len}");
        }
        assert_ne!(pattern.of(MARK, 64), pattern.of(Mark { number: MARK.number + 1, ..MARK }, 64));
    }

    /// Two clocks, each set at times of its own, show the system's time, and never go back.
    #[test]
    fn clocks_show_the_systems_time() {
        let counter = Counter::new();
        let mut clocks = [Clock::new(&counter), Clock::new(&counter)];
        let (began, mut last) = (monotonic(), [0; 2]);
        while monotonic() - began < 10 * Clock::TRUST {
            for (clock, last) in clocks.iter_mut().zip(&mut last) {
                let (before, now) = (monotonic(), clock.now());
                let after = monotonic();
                let slack = 50_000;
                assert!(now >= *last && now + slack >= before && now <= after + slack, "{before} {now} {after}");
                *last = now;
            }
        }
    }
}
