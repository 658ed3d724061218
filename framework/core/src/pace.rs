//! How often servers of models poll their sockets: a poll of a model costs tens of nanoseconds, a read of a socket a system call.

use crate::Work;
use std::time::{Duration, Instant};

/// How often it checks whether it shall stop, while there is no client.
pub const STOP_LATENCY: Duration = Duration::from_millis(50);
/// Idle polls after which others get the core, if they want it.
pub const POLITE: u32 = 4096;

/// When to poll the socket: every poll while messages come, then ever less often, up to [`Pace::LONGEST`] apart.
///
/// It counts polls, since the time costs as much as one; and learns what a poll costs from the time between two polls of the socket.
pub struct Pace {
    /// Until the next poll of the socket; a busy poll is worth [`Pace::BUSY`] idle ones.
    left: u32,
    gap: u32,
    /// How far apart polls of the socket shall be.
    target: Duration,
    polled: Instant,
}

impl Pace {
    /// The longest a message waits while the model is busy polling, about: one each 50 us is below 1 % of a core.
    const LONGEST: Duration = Duration::from_micros(50);
    const BUSY: u32 = 64;

    pub fn new() -> Self {
        Self { left: 0, gap: 0, target: Duration::ZERO, polled: Instant::now() }
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

    pub fn polled(&mut self, came: bool) {
        let now = Instant::now();
        let took = now.duration_since(self.polled);
        self.polled = now;
        if came {
            (self.target, self.gap) = (Duration::ZERO, 0);
        } else {
            self.target = (self.target * 2).clamp(Duration::from_micros(1), Self::LONGEST);
            self.gap = if took < self.target { (self.gap * 2).clamp(1, 1 << 16) } else { self.gap / 2 };
        }
        self.left = self.gap;
    }

    /// Poll the socket after the next poll of the model.
    pub fn hurry(&mut self) {
        self.left = 0;
    }
}
