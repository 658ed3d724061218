//! How often servers of models look at their sockets: a turn of a model costs tens of nanoseconds, a look a system call.

use crate::Work;
use std::time::{Duration, Instant};

/// How often it looks whether it shall stop, while there is no client.
pub const STOP_LATENCY: Duration = Duration::from_millis(50);
/// Idle turns after which others get the core, if they want it.
pub const POLITE: u32 = 4096;

/// When to look at the socket: every turn while messages come, then ever less often, up to [`Pace::LONGEST`] apart.
///
/// It counts turns, since the time costs as much as one; and learns what a turn costs from the time between two looks.
pub struct Pace {
    /// Until the next look; a busy turn is worth [`Pace::BUSY`] idle ones.
    left: u32,
    gap: u32,
    /// How far apart looks shall be.
    target: Duration,
    looked: Instant,
}

impl Pace {
    /// The longest a message waits while the model is busy polling, about: a look each 50 us is below 1 % of a core.
    const LONGEST: Duration = Duration::from_micros(50);
    const BUSY: u32 = 64;

    pub fn new() -> Self {
        Self { left: 0, gap: 0, target: Duration::ZERO, looked: Instant::now() }
    }

    #[inline]
    pub fn is_due(&mut self, work: Work) -> bool {
        let cost = match work {
            Work::Busy => Self::BUSY,
            Work::Idle => 1,
        };
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                false
            }
            None => true,
        }
    }

    pub fn looked(&mut self, came: bool) {
        let now = Instant::now();
        let took = now.duration_since(self.looked);
        self.looked = now;
        if came {
            (self.target, self.gap) = (Duration::ZERO, 0);
        } else {
            self.target = (self.target * 2).clamp(Duration::from_micros(1), Self::LONGEST);
            self.gap = if took < self.target { (self.gap * 2).clamp(1, 1 << 16) } else { self.gap / 2 };
        }
        self.left = self.gap;
    }

    /// Look at the next turn.
    pub fn hurry(&mut self) {
        self.left = 0;
    }
}
