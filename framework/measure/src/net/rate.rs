//! How fast packets are sent: a rate as a person writes it, and the rate limiter that follows from it.
//!
//! ```
//! use wholebar_measure::net::rate::{Rate, RateLimiter};
//!
//! let rate: Rate = "1Mpps".parse()?;
//! let mut limiter = RateLimiter::new(rate, 1);
//! limiter.start(0);
//! // A packet is due each microsecond: after ten, eleven were sent.
//! let mut sent = 0;
//! while limiter.is_due(10_000) {
//!     limiter.sent(64);
//!     sent += 1;
//! }
//! assert_eq!((sent, rate.to_string().as_str()), (11, "1 Mpps"));
//! # Ok::<(), String>(())
//! ```

use std::fmt;
use std::str::FromStr;

/// Bytes that a frame takes on a wire besides those of its size: preamble, start of frame, and the gap behind it (IEEE 802.3, 3.1.1 and 4.4.2).
pub const GAP: u64 = 20;

/// A rate. As text it is `max`, packets a second (`1000`, `1.5M`, `10Mpps`) or bits a second (`1Gbps`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// As fast as the device takes packets.
    Max,
    /// Packets a second.
    Packets(f64),
    /// Bits a second of a wire: frames, preambles and gaps.
    Bits(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let bad = || {
            format!(
                "{text:?} is not a rate: write packets a second (1000, 1.5M, 10Mpps), bits a second (1Gbps), or max"
            )
        };
        let (number, bits) = match (text.strip_suffix("pps"), text.strip_suffix("bps")) {
            (Some(number), _) => (number, false),
            (_, Some(number)) => (number, true),
            _ => (text, false),
        };
        let digits = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let factor = match &number[digits..] {
            "" => 1.0,
            "k" | "K" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            _ => return Err(bad()),
        };
        let rate = number[..digits].parse::<f64>().map_err(|_| bad())? * factor;
        match rate {
            0.0 => Err("a rate of 0 sends nothing: write packets or bits a second, or max".to_owned()),
            // Slower than one in a day, faster than any wire.
            rate if !(1e-5..=1e13).contains(&rate) => Err(bad()),
            rate if bits => Ok(Self::Bits(rate)),
            rate => Ok(Self::Packets(rate)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: f64| match n {
            n if n >= 1e9 => format!("{} G", n / 1e9),
            n if n >= 1e6 => format!("{} M", n / 1e6),
            n if n >= 1e3 => format!("{} k", n / 1e3),
            n => format!("{n} "),
        };
        match self {
            Self::Max => f.write_str("max"),
            Self::Packets(rate) => write!(f, "{}pps", number(*rate)),
            Self::Bits(rate) => write!(f, "{}b/s", number(*rate)),
        }
    }
}

/// When packets are due: a token bucket that holds a millisecond's worth. It follows a clock that whoever calls reads: after a stall it catches up, by that
/// much at most. DPDK's like is `rte_meter`.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    /// What a packet costs, and a byte of it, in 2^-32 ns; both 0: nothing.
    packet: u64,
    byte: u64,
    /// When the next packet is due, in 2^-32 ns.
    due: u128,
}

impl RateLimiter {
    /// How far it catches up, in nanoseconds.
    const CATCH_UP: u64 = 1_000_000;

    /// Creates the limiter of one of `share` senders that have a rate together. There is at least one.
    pub fn new(rate: Rate, share: usize) -> Self {
        const SECOND: f64 = 1e9 * (1u64 << 32) as f64;
        let share = share as f64 * SECOND;
        let (packet, byte) = match rate {
            Rate::Max => (0, 0),
            Rate::Packets(rate) => ((share / rate) as u64, 0),
            Rate::Bits(rate) => {
                let byte = 8.0 * share / rate;
                ((byte * GAP as f64) as u64, byte as u64)
            }
        };
        Self { packet, byte, due: 0 }
    }

    /// The first packet is due now. Times are in nanoseconds.
    pub fn start(&mut self, now: u64) {
        self.due = u128::from(now) << 32;
    }

    /// Whether a packet is due: it costs a comparison.
    #[inline]
    pub fn is_due(&self, now: u64) -> bool {
        self.due >> 32 <= u128::from(now)
    }

    /// When the next packet is due, in nanoseconds.
    pub fn due(&self) -> u64 {
        (self.due >> 32) as u64
    }

    /// A frame of `size` bytes was sent, its check sequence included.
    #[inline]
    pub fn sent(&mut self, size: usize) {
        self.due += u128::from(self.packet) + u128::from(self.byte) * size as u128;
    }

    /// Goes on to the time `now`: what was due too long ago is given up. Returns how many nanoseconds of it, where there is a rate to be reached.
    #[inline]
    pub fn advance(&mut self, now: u64) -> u64 {
        let due = (self.due >> 32) as u64;
        if due + Self::CATCH_UP >= now {
            return 0;
        }
        self.due = u128::from(now - Self::CATCH_UP) << 32;
        if self.packet > 0 { now - Self::CATCH_UP - due } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_understood() {
        for (text, rate) in [
            ("max", Some(Rate::Max)),
            ("1", Some(Rate::Packets(1.0))),
            ("1M", Some(Rate::Packets(1e6))),
            ("1.5Mpps", Some(Rate::Packets(1.5e6))),
            ("250k", Some(Rate::Packets(250e3))),
            ("10Gbps", Some(Rate::Bits(1e10))),
            ("9600bps", Some(Rate::Bits(9600.0))),
            ("0", None),
            ("0Gbps", None),
            ("0.0", None),
            ("-1", None),
            ("1T", None),
            ("nan", None),
            ("inf", None),
            ("", None),
            ("M", None),
            ("1e400", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(text.parse().ok(), rate, "{text}");
        }
        assert!("0".parse::<Rate>().unwrap_err().contains("sends nothing"));
        assert_eq!(Rate::Bits(1e10).to_string(), "10 Gb/s");
        assert_eq!(Rate::Packets(1.5e6).to_string(), "1.5 Mpps");
    }

    /// Packets sent in a millisecond, asked for every microsecond.
    fn sent(rate: &str, share: usize, size: usize) -> u64 {
        let mut limiter = RateLimiter::new(rate.parse().unwrap(), share);
        limiter.start(5000);
        let mut sent = 0;
        for now in (5000..1_005_000).step_by(1000) {
            limiter.advance(now);
            while limiter.is_due(now) && sent < 1_000_000 {
                limiter.sent(size);
                sent += 1;
            }
        }
        sent
    }

    #[test]
    fn a_limiter_keeps_its_rate() {
        assert_eq!(sent("1M", 1, 64), 1000);
        assert_eq!(sent("1M", 4, 64), 250);
        // 14.88 Mpps of the smallest frames fill 10 Gb/s.
        assert!((14_860..=14_881).contains(&sent("10Gbps", 1, 64)), "{}", sent("10Gbps", 1, 64));
        assert!((812..=813).contains(&sent("10Gbps", 1, 1518)));
        assert_eq!(sent("1000", 1, 64), 1);
        assert_eq!(sent("max", 1, 64), 1_000_000);
    }

    #[test]
    fn a_stall_is_not_caught_up_for_ever() {
        let mut limiter = RateLimiter::new(Rate::Packets(1e6), 1);
        let now = 1_000_000_000;
        let behind = limiter.advance(now);
        let due = std::iter::from_fn(|| limiter.is_due(now).then(|| limiter.sent(64))).count();
        assert_eq!((due, behind, limiter.advance(now)), (1001, now - RateLimiter::CATCH_UP, 0));
    }
}
