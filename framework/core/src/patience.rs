//! How long a peer may take to answer: each message, and all of them together while its device is opened, since each answer alone may come just in
//! time.

use crate::listener::A_YEAR;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The times that a peer is given.
pub struct Patience {
    /// For one message.
    timeout: Duration,
    /// For all that is asked while the device is opened, and what is left of it.
    opening: Mutex<Option<(Duration, Duration)>>,
    open_timeout: Duration,
}

/// Until when a message must be answered, and why.
#[derive(Clone, Copy)]
pub struct Limit {
    timeout: Duration,
    pub at: Instant,
    /// It is what is left of the time for opening, not this message's own.
    opening: bool,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, opening, .. } = self;
        if *opening { write!(f, "the {timeout:?} that opening it may take in all") } else { write!(f, "{timeout:?}") }
    }
}

/// The moment that is `timeout` away.
pub fn later(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout.min(A_YEAR)).unwrap_or(now)
}

impl Patience {
    pub fn new(timeout: Duration, open_timeout: Duration) -> Self {
        Self { timeout, opening: Mutex::default(), open_timeout }
    }

    /// How long the next message may take.
    pub fn limit(&self) -> Limit {
        match *self.left() {
            Some((timeout, left)) if left < self.timeout => Limit { timeout, at: later(left), opening: true },
            _ => Limit { timeout: self.timeout, at: later(self.timeout), opening: false },
        }
    }

    /// A message took so long.
    pub fn spent(&self, time: Duration) {
        if let Some((_, left)) = &mut *self.left() {
            *left = left.saturating_sub(time);
        }
    }

    /// Bounds what all messages from now on take together, or only what each takes.
    pub fn opening(&self, begins: bool) {
        *self.left() = begins.then_some((self.open_timeout, self.open_timeout));
    }

    fn left(&self) -> MutexGuard<'_, Option<(Duration, Duration)>> {
        self.opening.lock().unwrap_or_else(|e| e.into_inner())
    }
}
