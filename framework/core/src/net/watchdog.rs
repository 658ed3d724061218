//! Whether a queue that sends is stuck, as the slow path sees it by the queue's counters alone: it costs the hot path nothing.
//!
//! Nobody can tell a queue without traffic from one that is stuck. But who finds no room has packets to send, and the device has as many: so a queue is
//! stuck that found no room again and again, for as long as its driver is patient, while nothing was posted and the link was up. This does *not*
//! look at the device, nor mend anything: its driver tells of it ([`Event::Stalled`](super::Event::Stalled)).

use super::TxCounters;
use std::time::{Duration, Instant};

/// Looks after a queue that sends. For drivers, who [check](Self::check) it where they look after their device.
///
/// ```
/// use std::time::{Duration, Instant};
/// use wholebar_core::net::{TxCounters, TxWatchdog};
///
/// let (counters, start) = (TxCounters::default(), Instant::now());
/// let mut watchdog = TxWatchdog::new(Duration::from_secs(5));
/// // A burst for which there was no room, and another one seconds later.
/// counters.full.add(1);
/// assert_eq!(watchdog.check(true, &counters, start), None);
/// counters.full.add(1);
/// assert_eq!(watchdog.check(true, &counters, start + Duration::from_secs(6)), Some(Duration::from_secs(6)));
/// ```
#[derive(Debug)]
pub struct TxWatchdog {
    patience: Duration,
    /// When there was no room first, since packets were posted last.
    since: Option<Instant>,
    packets: u64,
    /// Bursts for which there was no room.
    full: u64,
    /// It was told.
    told: bool,
}

impl TxWatchdog {
    /// For a queue that has been stuck when it found no room for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, packets: 0, full: 0, told: false }
    }

    /// How long the queue of these counters has been stuck: told once, until packets are posted again. `link` says whether the link is up; `now` is when
    /// this is, and no earlier than at the check before.
    pub fn check(&mut self, link: bool, counters: &TxCounters, now: Instant) -> Option<Duration> {
        let (packets, full) = (counters.packets.get(), counters.full.get());
        let moved = std::mem::replace(&mut self.packets, packets) != packets;
        let tried = std::mem::replace(&mut self.full, full) != full;
        if moved || !link {
            (self.since, self.told) = (None, false);
        } else if tried && !self.told {
            let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
            self.told = waited >= self.patience;
            return self.told.then_some(waited);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_that_stays_full_while_the_link_is_up_is_stuck() {
        let (start, counters) = (Instant::now(), TxCounters::default());
        let mut watchdog = TxWatchdog::new(Duration::from_secs(5));
        let mut check = |link, packets, full, seconds| {
            counters.packets.add(packets - counters.packets.get());
            counters.full.add(full - counters.full.get());
            watchdog.check(link, &counters, start + Duration::from_secs(seconds))
        };
        // It works, is without a link, is left alone after it was full.
        assert_eq!(check(true, 10, 1, 1), None);
        assert_eq!(check(true, 20, 2, 10), None);
        assert_eq!(check(false, 20, 9, 20), None);
        assert_eq!(check(true, 20, 10, 21), None);
        assert_eq!(check(true, 20, 10, 29), None);
        assert_eq!(check(true, 21, 10, 30), None);
        // It is stuck, which is told once.
        assert_eq!(check(true, 21, 11, 31), None);
        assert_eq!(check(true, 21, 12, 35), None);
        assert_eq!(check(true, 21, 13, 36), Some(Duration::from_secs(5)));
        assert_eq!(check(true, 21, 14, 50), None);
        // It goes on, and is stuck again.
        assert_eq!(check(true, 22, 15, 51), None);
        assert_eq!(check(true, 22, 16, 52), None);
        assert_eq!(check(true, 22, 17, 58), Some(Duration::from_secs(6)));
    }
}
