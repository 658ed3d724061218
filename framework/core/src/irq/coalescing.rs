//! Coalescing: how long, or for how much, a queue waits before it interrupts.

use std::fmt;
use std::time::Duration;

/// When a queue that has something for its owner interrupts: once `events` have come since it last did, or `time` after the first of them, whichever is
/// first. (Linux: `ethtool -C`, `rx-usecs` and `rx-frames`; NVMe: feature 08h; VIRTIO: notification coalescing.)
///
/// Where one of the two is 0 it interrupts for each. It matters to who sleeps until a queue wakes him; a poller is not concerned.
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::time::Duration;
/// use wholebar::irq::Coalescing;
///
/// let coalescing = Coalescing { events: 8, time: Duration::from_micros(50) };
/// assert_eq!(coalescing.to_string(), "50 us, or 8");
/// assert_eq!(Coalescing::default().to_string(), "off");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Completions, or packets; `u32::MAX` where the time alone counts.
    pub events: u32,
    /// A device has a unit of its own, to which drivers round this up: whole microseconds, or NVMe's 100.
    pub time: Duration,
}

impl Coalescing {
    /// Waits for `time`, whatever comes.
    pub const fn after(time: Duration) -> Self {
        Self { events: u32::MAX, time }
    }

    /// Whether a queue waits at all.
    pub const fn is_off(&self) -> bool {
        self.events == 0 || self.time.is_zero()
    }
}

impl fmt::Display for Coalescing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            _ if self.is_off() => f.write_str("off"),
            Self { events: u32::MAX, time } => write!(f, "{} us", time.as_micros()),
            Self { events, time } => write!(f, "{} us, or {events}", time.as_micros()),
        }
    }
}
